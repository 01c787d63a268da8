//! Entry points for fuzzing: what is read of a disk's contents, and image files.

mod script;
mod seeds;
mod work;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use plinth_host::aio::{Backend, block_on_with};

use crate::format::{Format, Sample, probe};
use crate::graph::{MemoryNode, Node};
use crate::probe::{not_a_disk, stated_size};
use script::{Input, change};
use seeds::{Files, MAIN, Seed, seeds};
use work::{Model, Work};

/// Treats `data` as the first bytes of a disk.
pub fn fuzz_disk_head(data: &[u8]) {
    // All are asked on every disk that is opened; any answer is right but a panic.
    let _format = probe(&Sample { head: data, tail: data, len: data.len() as u64, name: "fuzz" });
    let _kind = not_a_disk(data);
    let _size = stated_size(data);
}

/// Bytes of a disk that are read at one place, and that a file in memory may have.
const READ: u64 = 16 << 10;
const LIMIT: u64 = 16 << 20;
/// The passphrase of encrypted images in the corpus.
pub const SECRET: &[u8] = b"a good passphrase";

/// Opens `data` as an image, reads, checks and, if it can be written, writes and mends it.
fn fuzz_image(format: Format, data: &[u8]) {
    for read_only in [true, false] {
        block_on_with(Backend::Inline, async {
            let mut files = Files::default();
            files.set_main(MemoryNode::with(MAIN, data));
            let work = Work { format, read_only, no_backing: true, files: files.copies(LIMIT), model: None };
            work.run(&mut Input(&[])).await;
        });
    }
}

/// Treats `data` as changes to one of a few images, and as what is done to it then. Where there are no changes, the
/// image must stay right.
pub fn fuzz_changes(format: Format, data: &[u8]) {
    thread_local! {
        static SEEDS: RefCell<HashMap<Format, Rc<Vec<Seed>>>> = RefCell::default();
    }
    let mut input = Input(data);
    let flags = input.byte();
    if flags & 2 != 0 {
        return fuzz_image(format, input.0);
    }
    block_on_with(Backend::Inline, async {
        let known = SEEDS.with_borrow(|s| s.get(&format).cloned());
        let seeds = match known {
            Some(seeds) => seeds,
            None => {
                let made = Rc::new(seeds(format).await);
                SEEDS.with_borrow_mut(|s| s.insert(format, made.clone()));
                made
            }
        };
        let seed = &seeds[usize::from(input.byte()) % seeds.len()];
        // Tables as large as the file may be take their time, and show no more than smaller ones.
        let room = (2 * seed.files.main().size()).clamp(LIMIT / 8, LIMIT);
        let files = seed.files.copies(room);
        let changes = change(seed, &files.main(), &mut input);
        if changes > 0 && flags & 4 == 0 {
            seal(format, &files.main());
        }
        let no_backing = flags & 8 != 0;
        let model = seed.contents.clone().filter(|_| changes == 0 && !no_backing).map(Model::new);
        Work { format, read_only: flags & 1 != 0, no_backing, files, model }.run(&mut input).await;
    });
}

/// Treats `data` as changes to the envelope of a package of virtual machines.
pub fn fuzz_ovf_changes(data: &[u8]) {
    thread_local! {
        static SEED: Seed = Seed::of_bytes(crate::testing::samples::OVF.as_bytes());
    }
    let mut input = Input(data);
    if input.byte() & 2 != 0 {
        return fuzz_ovf(input.0);
    }
    SEED.with(|seed| {
        let files = seed.files.copies(LIMIT);
        change(seed, &files.main(), &mut input);
        // Zeros behind the text only take longer.
        let file = files.main();
        file.set_size(file.size().min(16 << 10));
        fuzz_ovf(&file.contents());
    });
}

/// Makes checksums right again, so that more than they is tested.
fn seal(format: Format, file: &MemoryNode) {
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.get(at, &mut bytes);
        bytes
    };
    let crc = |at: u64, len: usize| {
        let mut bytes = read(at, len);
        bytes[4..8].fill(0);
        file.put(at + 4, &crc32c::crc32c(&bytes).to_le_bytes());
    };
    let sum = |at: u64, len: usize, place: usize| {
        let mut bytes = read(at, len);
        bytes[place..place + 4].fill(0);
        let sum = !bytes.iter().fold(0u32, |s, &b| s + u32::from(b));
        file.put(at + place as u64, &sum.to_be_bytes());
    };
    match format {
        Format::Vhdx => {
            for (at, len, magic) in
                [(64, 4, b"head"), (128, 4, b"head"), (192, 64, b"regi"), (256, 64, b"regi")]
            {
                if read(at << 10, 4) == magic {
                    crc(at << 10, len << 10);
                }
            }
            for at in (1 << 20..(1 << 20) + (64 << 10)).step_by(4096) {
                let head = read(at, 12);
                let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
                if head.starts_with(b"loge") && (4096..=65536).contains(&len) {
                    crc(at, len);
                }
            }
        }
        Format::Vhd => {
            let end = file.size().saturating_sub(512);
            for at in [0, end] {
                if read(at, 8) == b"conectix" {
                    let header = read(at + 16, 8);
                    let header = u64::from_be_bytes(header[..].try_into().expect("eight bytes were read"));
                    if header < file.size() && read(header, 8) == b"cxsparse" {
                        sum(header, 1024, 36);
                    }
                    sum(at, 512, 64);
                }
            }
        }
        Format::Luks => {
            for at in [0, 0x4000] {
                let mut bytes = read(at, 0x4000);
                if matches!(&bytes[..8], b"LUKS\xba\xbe\0\x02" | b"SKUL\xba\xbe\0\x02") {
                    bytes[448..512].fill(0);
                    file.put(at + 448, &crate::crypt::Hash::Sha256.digest(&[&bytes]));
                }
            }
        }
        _ => {}
    }
}

/// Treats `data` as a LUKS image.
pub fn fuzz_luks(data: &[u8]) {
    fuzz_image(Format::Luks, data);
}

/// Treats `data` as a Parallels disk or a description of one.
pub fn fuzz_parallels(data: &[u8]) {
    fuzz_image(Format::Parallels, data);
}

/// Treats `data` as a QED image.
pub fn fuzz_qed(data: &[u8]) {
    fuzz_image(Format::Qed, data);
}

/// Treats `data` as a cloop image.
pub fn fuzz_cloop(data: &[u8]) {
    fuzz_image(Format::Cloop, data);
}

/// Treats `data` as an Apple disk image.
pub fn fuzz_dmg(data: &[u8]) {
    fuzz_image(Format::Dmg, data);
}

/// Treats `data` as a VMDK image in one file.
pub fn fuzz_vmdk(data: &[u8]) {
    fuzz_image(Format::Vmdk, data);
}

/// Treats `data` as a VDI image.
pub fn fuzz_vdi(data: &[u8]) {
    fuzz_image(Format::Vdi, data);
}

/// Treats `data` as a VHD image.
pub fn fuzz_vhd(data: &[u8]) {
    fuzz_image(Format::Vhd, data);
}

/// Treats `data` as a VHDX image.
pub fn fuzz_vhdx(data: &[u8]) {
    fuzz_image(Format::Vhdx, data);
}

/// Treats `data` as a qcow2 image.
pub fn fuzz_qcow2(data: &[u8]) {
    fuzz_image(Format::Qcow2, data);
}

/// Damages `good` in some places, again and again, and gives it to `fuzz`.
pub fn damage(good: &[u8], rounds: u64, at_most: usize, fuzz: fn(&[u8])) {
    for seed in 0..rounds {
        let mut random = crate::testing::Random::new(seed + 1);
        let mut bad = good.to_vec();
        for _ in 0..1 + random.below(6) {
            let at = random.below(at_most.min(bad.len()) as u64) as usize;
            match random.below(3) {
                0 => bad[at] ^= 1 << random.below(8),
                1 => bad[at] = [0, 1, 0x7f, 0xff][random.below(4) as usize],
                _ => bad[at] = random.number() as u8,
            }
        }
        if random.one_in(8) {
            bad.truncate(random.below(good.len() as u64) as usize);
        }
        fuzz(&bad);
    }
}

/// Treats `data` as the envelope of a package of virtual machines.
pub fn fuzz_ovf(data: &[u8]) {
    let _machines = crate::ovf::parse_envelope(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// As the fuzzer's, only blind.
    #[test]
    fn changes_and_scripts_do_no_harm() {
        let rounds = std::env::var("PLINTH_ROUNDS").map_or(400, |n| n.parse().expect("a number"));
        let mut failures = Vec::new();
        for format in Format::ALL.into_iter().filter(|f| *f != Format::Raw) {
            for seed in 0..rounds {
                let mut random = Random::new(seed);
                let mut data: Vec<u8> = (0..3 + random.below(60)).map(|_| random.number() as u8).collect();
                data[0] &= 0xf5;
                if seed % 2 == 0 {
                    data[2] = 0;
                }
                let done = std::panic::catch_unwind(|| fuzz_changes(format, &data));
                if done.is_err() {
                    failures.push(format!("{format}: {data:02x?}"));
                }
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    /// Inputs that once kept a repair busy for long, or for ever.
    #[test]
    fn repairs_of_scattered_damage_end() {
        let inputs: [(Format, &[u8]); 2] = [
            // Counts of clusters far beyond the file's end.
            (Format::Qcow2, &[0x28, 0xa4, 0x5b, 0x08, 0x41, 0, 0, 0xa4, 0x5b, 0xa4, 0x5b, 0xc0, 0x08]),
            // More blocks that share their space than one repair remembers.
            (Format::Vdi, &[0x14, 1, 0x14, 1, 1, 1, 1, 1, 0xff, 1, 1, 1, 1, 0xff, 1]),
        ];
        for (format, input) in inputs {
            let start = std::time::Instant::now();
            fuzz_changes(format, input);
            let took = start.elapsed();
            assert!(took.as_secs() < 2, "{format} took {took:?}");
        }
    }

    #[test]
    fn envelopes_do_no_harm() {
        for seed in 0..2000 {
            let mut random = Random::new(seed);
            let data: Vec<u8> = (0..40).map(|_| random.number() as u8).collect();
            fuzz_ovf_changes(&data);
        }
    }
}
