//! Entry point for fuzzing the loaders.

use plinth_memory::GuestRam;

use crate::load::{Content, HEAD, Kind, identify, load_elf};

const RAM_START: u64 = 0x8000_0000;
const RAM_LEN: u64 = 1 << 20;

/// Treats `data` as a kernel or firmware file: finds out what it is, unpacks it, loads it. Whatever comes
/// of it, an entry point is within what was loaded.
pub fn fuzz_boot_file(data: &[u8]) {
    let Ok(ram) = GuestRam::new(&[(RAM_START, RAM_LEN)]) else { return };
    let file = Content::Memory(data.to_vec());
    let unpacked = match identify(&data[..data.len().min(HEAD)]) {
        Kind::Compressed(how) => file.unpack(how, 0, file.len(), RAM_LEN),
        Kind::Zboot { offset, len, compression: Some(how) } => file.unpack(how, offset, len, RAM_LEN),
        _ => return load(&file, &ram),
    };
    if let Ok(bytes) = unpacked {
        assert!(bytes.len() as u64 <= RAM_LEN);
        load(&Content::Memory(bytes), &ram);
    }
}

fn load(content: &Content<'_>, ram: &GuestRam) {
    if let Ok(placed) = load_elf(content, ram, RAM_START) {
        assert!(placed.end > RAM_START && placed.end <= RAM_START + RAM_LEN);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn elf() -> Vec<u8> {
        let mut e = vec![0; 0x200];
        e[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        e[16..21].copy_from_slice(&[2, 0, 243, 0, 1]);
        e[24..32].copy_from_slice(&RAM_START.to_le_bytes());
        e[32..40].copy_from_slice(&64u64.to_le_bytes());
        e[52..58].copy_from_slice(&[64, 0, 56, 0, 2, 0]);
        for (segment, at) in [(64, RAM_START), (120, RAM_START + 0x1000)] {
            let fields = [1u64, 0x100, at, at, 0x80, 0x200, 0x1000];
            for (i, v) in fields.iter().enumerate() {
                e[segment + i * 8..segment + i * 8 + 8].copy_from_slice(&v.to_le_bytes());
            }
        }
        e
    }

    #[test]
    fn damaged_files_never_do_harm() {
        let gzip = {
            let mut z = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            z.write_all(&elf()).unwrap();
            z.finish().unwrap()
        };
        let mut zboot = b"MZ\0\0zimg\x40\0\0\0".to_vec();
        zboot.extend((gzip.len() as u32).to_le_bytes());
        zboot.extend(b"\0\0\0\0\0\0\0\0gzip");
        zboot.resize(64, 0);
        zboot.extend(&gzip);
        let mut random = 99u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % below
        };
        let mut from_zero = elf();
        from_zero[16] = 3;
        for (segment, at) in [(64, 0u64), (120, 0x1000)] {
            for field in [16, 24] {
                from_zero[segment + field..segment + field + 8].copy_from_slice(&at.to_le_bytes());
            }
        }
        for good in [elf(), from_zero, gzip, zboot] {
            for _ in 0..3000 {
                let mut bad = good.clone();
                for _ in 0..=next(4) {
                    let at = next(bad.len());
                    bad[at] = [0, 0xff, 0x80, next(256) as u8][next(4)];
                }
                bad.truncate(bad.len() - next(20).saturating_sub(15) * bad.len() / 8);
                fuzz_boot_file(&bad);
            }
        }
    }
}
