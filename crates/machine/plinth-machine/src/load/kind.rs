//! Telling boot files apart by their first bytes.

use crate::isa::{self, Isa};

/// Bytes at a file's start that [`identify`] looks at.
pub const HEAD: usize = 0x400;

/// A compression that boot files come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The header of a Linux `Image` (`Documentation/arch/riscv/boot-image-header.rst`; the same layout in
/// `Documentation/arch/arm64/booting.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Offset of the load address from a 2 MiB boundary, in bytes.
    pub text_offset: u64,
    /// Bytes that the kernel takes in RAM, its BSS included; 0: not said.
    pub image_size: u64,
    /// The kernel is big-endian.
    pub big_endian: bool,
}

/// What a boot file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ELF file; its instruction set if it is one that has a name.
    Elf {
        /// The instruction set, where it is a known one.
        isa: Option<&'static Isa>,
        /// `e_machine`.
        machine: u16,
    },
    /// A Linux `Image`.
    Image(&'static Isa, ImageHeader),
    /// A compressed file.
    Compressed(Compression),
    /// An EFI application that unpacks a kernel: the payload's place in the file and its compression.
    Zboot {
        /// Bytes from the file's start.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// `None`: one that is not known here.
        compression: Option<Compression>,
    },
    /// A Linux kernel in a format of another instruction set, which is named.
    OtherKernel(&'static str),
    /// Nothing that is known.
    Unknown,
}

fn u16_at(b: &[u8], at: usize, big: bool) -> Option<u16> {
    let v = b.get(at..at + 2)?.try_into().ok()?;
    Some(if big { u16::from_be_bytes(v) } else { u16::from_le_bytes(v) })
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

fn elf(head: &[u8]) -> Option<Kind> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let big = head.get(5) == Some(&2);
    let machine = u16_at(head, 18, big)?;
    let is_64 = head.get(4) == Some(&2);
    Some(Kind::Elf { isa: isa::of_elf(machine, is_64).filter(|_| !big), machine })
}

fn zboot(head: &[u8]) -> Option<Kind> {
    // `linux/pe.h` and `drivers/firmware/efi/libstub/zboot-header.S`.
    if !head.starts_with(b"MZ") || head.get(4..8)? != b"zimg" {
        return None;
    }
    let name = head.get(24..56)?;
    let compression = match name.split(|&b| b == 0).next()? {
        b"gzip" => Some(Compression::Gzip),
        n if n.starts_with(b"zstd") => Some(Compression::Zstd),
        _ => None,
    };
    Some(Kind::Zboot { offset: u32_at(head, 8)?.into(), len: u32_at(head, 12)?.into(), compression })
}

fn image(head: &[u8]) -> Option<Kind> {
    let magic = head.get(56..60)?.try_into().ok()?;
    let header = ImageHeader {
        text_offset: u64_at(head, 8)?,
        image_size: u64_at(head, 16)?,
        big_endian: u64_at(head, 24)? & 1 != 0,
    };
    Some(Kind::Image(isa::of_image(magic)?, header))
}

fn other_kernel(head: &[u8]) -> Option<Kind> {
    // `Documentation/arch/x86/boot.rst`; `arch/arm/boot/compressed/head.S`.
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Some(Kind::OtherKernel("x86 (bzImage)"));
    }
    (u32_at(head, 0x24)? == 0x016f_2818).then_some(Kind::OtherKernel("arm (zImage)"))
}

/// What a file that starts with `head` is; [`HEAD`] bytes are enough.
#[must_use]
pub fn identify(head: &[u8]) -> Kind {
    if head.starts_with(&[0x1f, 0x8b]) {
        return Kind::Compressed(Compression::Gzip);
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Kind::Compressed(Compression::Zstd);
    }
    [elf, zboot, image, other_kernel].iter().find_map(|f| f(head)).unwrap_or(Kind::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut h = vec![0; HEAD];
        for (at, bytes) in parts {
            h[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        h
    }

    #[test]
    fn files_are_told_apart() {
        let riscv = head(&[(0, b"MZ"), (8, &[0, 0, 0x20]), (16, &[0, 0, 0, 2]), (56, b"RSC\x05")]);
        let header = ImageHeader { text_offset: 0x20_0000, image_size: 0x200_0000, big_endian: false };
        assert_eq!(identify(&riscv), Kind::Image(&isa::RISCV64, header));
        let arm = head(&[(56, b"ARM\x64")]);
        assert!(matches!(identify(&arm), Kind::Image(i, _) if i.name == "aarch64"));
        let bz = head(&[(0, b"MZ"), (0x202, b"HdrS")]);
        assert_eq!(identify(&bz), Kind::OtherKernel("x86 (bzImage)"));
        let elf = head(&[(0, b"\x7fELF\x02\x01"), (18, &[243, 0])]);
        assert_eq!(identify(&elf), Kind::Elf { isa: Some(&isa::RISCV64), machine: 243 });
        let elf = head(&[(0, b"\x7fELF\x02\x02"), (18, &[0, 21])]);
        assert_eq!(identify(&elf), Kind::Elf { isa: None, machine: 21 });
        let z = head(&[(0, b"MZ\0\0zimg"), (8, &[0, 1]), (12, &[2]), (24, b"zstd22")]);
        let kind = Kind::Zboot { offset: 0x100, len: 2, compression: Some(Compression::Zstd) };
        assert_eq!(identify(&z), kind);
        assert_eq!(identify(&head(&[])), Kind::Unknown);
        assert_eq!(identify(b""), Kind::Unknown);
        for n in 0..HEAD {
            assert!(!matches!(identify(&riscv[..n]), Kind::Image(..)) || n >= 60);
            assert!(!matches!(identify(&z[..n]), Kind::Zboot { .. }) || n >= 56);
            assert!(!matches!(identify(&bz[..n]), Kind::OtherKernel(_)) || n >= 0x206);
        }
    }
}
