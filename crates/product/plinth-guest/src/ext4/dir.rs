//! Linear directories.

use super::BLOCK_LEN;
use super::inode::{TYPE_BLOCK, TYPE_CHAR, TYPE_DIRECTORY, TYPE_FIFO, TYPE_REGULAR, TYPE_SYMLINK};
use super::layout::{put16, put32};

/// An entry: name, inode, type bits of the inode's mode.
pub(super) type Entry<'a> = (&'a [u8], u32, u16);

/// The content of a directory: whole blocks. An entry never crosses a block border, and the last one of
/// a block reaches to its end. Names have 255 bytes at most.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block = vec![0; BLOCK_LEN];
    let (mut at, mut last) = (0, 0);
    for (name, inode, file_type) in entries {
        let len = (8 + name.len()).next_multiple_of(4);
        if at + len > BLOCK_LEN {
            close(&mut block, last);
            out.append(&mut block);
            block = vec![0; BLOCK_LEN];
            at = 0;
        }
        put32(&mut block, at, u64::from(*inode));
        put16(&mut block, at + 4, len as u64);
        block[at + 6] = name.len() as u8;
        block[at + 7] = type_code(*file_type);
        block[at + 8..at + 8 + name.len()].copy_from_slice(name);
        last = at;
        at += len;
    }
    close(&mut block, last);
    out.append(&mut block);
    out
}

/// Lets the entry at `last` take the rest of the block.
fn close(block: &mut [u8], last: usize) {
    put16(block, last + 4, (BLOCK_LEN - last) as u64);
}

fn type_code(file_type: u16) -> u8 {
    match file_type {
        TYPE_REGULAR => 1,
        TYPE_DIRECTORY => 2,
        TYPE_CHAR => 3,
        TYPE_BLOCK => 4,
        TYPE_FIFO => 5,
        TYPE_SYMLINK => 7,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_tile_their_blocks() {
        let names: Vec<Vec<u8>> = (0..300).map(|i| vec![b'a' + (i % 26) as u8; i % 255 + 1]).collect();
        let entries: Vec<_> = names.iter().map(|n| (n.as_slice(), 12, TYPE_REGULAR)).collect();
        let bytes = encode(&entries);
        assert_eq!(bytes.len() % BLOCK_LEN, 0);
        let mut found = 0;
        for block in bytes.chunks(BLOCK_LEN) {
            let mut at = 0;
            while at < BLOCK_LEN {
                let len = usize::from(u16::from_le_bytes([block[at + 4], block[at + 5]]));
                let name_len = usize::from(block[at + 6]);
                assert_eq!(&block[at + 8..at + 8 + name_len], names[found]);
                assert!(len >= 8 + name_len && len % 4 == 0);
                found += 1;
                at += len;
            }
            assert_eq!(at, BLOCK_LEN);
        }
        assert_eq!(found, names.len());
    }
}
