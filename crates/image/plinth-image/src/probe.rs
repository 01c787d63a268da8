//! What a file holds, by its first bytes. A raw disk has no mark of its own: whatever is not another
//! format is raw, which is why a file that looks like one is refused unless the user says `raw`.

/// A file format that is not a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A disk image in another format; its name.
    Image(&'static str),
    /// A compressed file; the name of the compression.
    Compressed(&'static str),
}

const MARKS: [(usize, &[u8], Format); 15] = [
    (0, b"QFI\xfb", Format::Image("qcow2")),
    (0, b"QED\0", Format::Image("qed")),
    (0, b"KDMV", Format::Image("vmdk")),
    (0, b"COWD", Format::Image("vmdk")),
    (0, b"# Disk DescriptorFile", Format::Image("vmdk")),
    (0, b"vhdxfile", Format::Image("vhdx")),
    (0, b"conectix", Format::Image("vhd")),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], Format::Image("vdi")),
    (0, b"WithoutFreeSpace", Format::Image("parallels")),
    (0, b"WithouFreSpacExt", Format::Image("parallels")),
    (0, &[0x1f, 0x8b], Format::Compressed("gzip")),
    (0, b"\xfd7zXZ\0", Format::Compressed("xz")),
    (0, b"BZh9", Format::Compressed("bzip2")),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], Format::Compressed("zstd")),
    (0, b"PK\x03\x04", Format::Compressed("zip")),
];

/// The format that the file's first bytes (512 are enough) are the mark of; `None` for a raw disk.
#[must_use]
pub fn probe(head: &[u8]) -> Option<Format> {
    MARKS.iter().find(|(at, mark, _)| head.get(*at..at + mark.len()) == Some(mark)).map(|m| m.2)
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
    fn marks_are_found_and_raw_is_what_has_none() {
        assert_eq!(probe(b"QFI\xfb\0\0\0\x03"), Some(Format::Image("qcow2")));
        let mut vdi = [0; 0x44];
        vdi[0x40..].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        assert_eq!(probe(&vdi), Some(Format::Image("vdi")));
        assert_eq!(probe(&vdi[..0x43]), None);
        assert_eq!(probe(&[]), None);
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
