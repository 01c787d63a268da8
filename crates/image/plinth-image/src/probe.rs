//! What the contents of a raw disk say.

/// What files begin with that are no disks as they are.
const NOT_DISKS: [(&[u8], &str); 5] = [
    (&[0x1f, 0x8b], "compressed with gzip"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh9", "compressed with bzip2"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd"),
    (b"PK\x03\x04", "a zip archive"),
];

/// What a file that begins with `head` is, if it is something that nobody means as a disk.
#[must_use]
pub fn not_a_disk(head: &[u8]) -> Option<&'static str> {
    NOT_DISKS.iter().find(|(mark, _)| head.starts_with(mark)).map(|m| m.1)
}

fn le<const N: usize>(b: &[u8], at: usize) -> Option<u64> {
    let bytes: [u8; N] = b.get(at..at + N)?.try_into().ok()?;
    Some(bytes.iter().rev().fold(0, |v, &x| v << 8 | u64::from(x)))
}

/// Bytes that the contents of a raw disk say it has, where they say so: its GUID partition table (UEFI
/// specification, section 5.3.2), or an ext2/3/4 file system without partitions. `head` is the first 2 KiB.
pub fn stated_size(head: &[u8]) -> Option<u64> {
    if head.get(512..520)? == b"EFI PART" {
        return le::<8>(head, 512 + 32)?.checked_add(1)?.checked_mul(512);
    }
    let sb = head.get(1024..)?;
    if le::<2>(sb, 56)? != 0xef53 {
        return None;
    }
    const INCOMPAT_64BIT: u64 = 0x80;
    let high = if le::<4>(sb, 96)? & INCOMPAT_64BIT != 0 { le::<4>(sb, 0x150)? } else { 0 };
    let block = 1024u64.checked_shl(u32::try_from(le::<4>(sb, 24)?).ok().filter(|&l| l <= 6)?)?;
    (high << 32 | le::<4>(sb, 4)?).checked_mul(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_files_are_no_disks() {
        assert_eq!(not_a_disk(&[0x1f, 0x8b, 8]), Some("compressed with gzip"));
        assert_eq!(not_a_disk(&[0; 512]), None);
        assert_eq!(not_a_disk(&[]), None);
    }

    #[test]
    fn disks_state_their_size() {
        let mut gpt = vec![0; 2048];
        gpt[512..520].copy_from_slice(b"EFI PART");
        gpt[544..552].copy_from_slice(&99u64.to_le_bytes());
        assert_eq!(stated_size(&gpt), Some(100 * 512));
        gpt[544..552].fill(0xff);
        assert_eq!(stated_size(&gpt), None);
        let mut ext = vec![0; 2048];
        ext[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        ext[1024 + 4] = 7;
        ext[1024 + 24] = 2;
        assert_eq!(stated_size(&ext), Some(7 * 4096));
        ext[1024 + 96] = 0x80;
        ext[1024 + 0x150] = 1;
        assert_eq!(stated_size(&ext), Some(((1 << 32) + 7) * 4096));
        ext[1024 + 24] = 60;
        assert_eq!(stated_size(&ext), None);
        for n in 0..ext.len() {
            assert_eq!(stated_size(&ext[..n]), None);
        }
    }
}
