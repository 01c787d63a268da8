//! Parallels disks.

mod common;

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::{
    CreateRequest, Image, OpenOptions, Options, OutputFiles, Progress, Repair, open, parallels,
};
use plinth_image::graph::{Cache, IoBuf, IoData};
use plinth_image::testing::Random;
use plinth_image::testing::samples::PARALLELS_BUNDLE as DESCRIPTOR;
use plinth_image::{Error, ErrorKind};

const SIZE: u64 = 4 << 20;

async fn make(path: &Path, options: &str, size: u64) -> Rc<dyn Image> {
    let output = OutputFiles::new(path, Cache::Cached).unwrap();
    let options = Options::parse(options).unwrap();
    options.check(parallels::DRIVER.options).unwrap();
    let request = CreateRequest { output: &output, size, options: &options, backing: None, secret: None };
    let image = (parallels::DRIVER.create.unwrap())(request).await.unwrap();
    image.close().await.unwrap();
    drop(image);
    output.finish().unwrap();
    open_it(path).await.unwrap()
}

async fn open_it(path: &Path) -> Result<Rc<dyn Image>, Error> {
    Ok(open(path, &OpenOptions::default()).await?.image)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// `None` where it is not installed.
fn qemu_img(args: &[&str]) -> Option<bool> {
    let out = Command::new("qemu-img").args(args).output().ok()?;
    if !out.status.success() {
        eprintln!(
            "{args:?}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Some(out.status.success())
}

#[test]
fn power_cuts_and_failures() {
    let dir = tempfile::tempdir().unwrap();
    for options in ["cluster_size=64k", "cluster_size=4k", "cluster_size=63k"] {
        let mut n = 0;
        let subject = common::subject(&parallels::DRIVER, options, SIZE);
        common::crash_seen(&subject, 64 << 10, |cut| {
            n += 1;
            if n % 20 != 0 {
                return Ok(false);
            }
            // The peer mends by itself what it calls damaged: the mark. Afterwards all must be well.
            let path = dir.path().join("cut.hdd");
            cut.files[0].1.save(&path).map_err(|e| e.to_string())?;
            let path = path.to_str().unwrap();
            qemu_img(&["check", "-f", "parallels", "-r", "all", path]);
            match qemu_img(&["check", "-f", "parallels", path]) {
                Some(false) => Err("qemu-img check finds something".to_owned()),
                checked => Ok(checked.is_some()),
            }
        });
        common::fault_of(&subject, 64 << 10);
    }
}

#[test]
fn qemu_reads_ours_and_we_read_qemus() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, theirs, ours, back) = (file("raw"), file("theirs"), file("ours"), file("back"));
    let mut data = pattern(SIZE as usize, 7);
    data[1 << 20..3 << 20].fill(0);
    std::fs::write(&raw, &data).unwrap();
    for options in ["cluster_size=1M", "cluster_size=64k", "cluster_size=512"] {
        let convert = ["convert", "-f", "raw", "-O", "parallels", "-o", options, &raw, &theirs];
        if qemu_img(&convert).is_none() {
            eprintln!("qemu-img is not installed");
            return;
        }
        block_on(async {
            let image = open_it(theirs.as_ref()).await.unwrap();
            assert!(image.read(0, IoBuf::new(SIZE as usize)).await.unwrap()[..] == data);
            assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
            // Changed by us, read by them.
            let mut random = Random::new(5);
            for _ in 0..100 {
                let at = random.below(SIZE / 512) * 512;
                let n = (random.below(300) * 512 + 512).min(SIZE - at);
                let zero = random.one_in(3);
                let new = if zero { vec![0; n as usize] } else { pattern(n as usize, at as u32) };
                if zero {
                    image.write_zeroes(at, n, true).await.unwrap();
                } else {
                    image.write(at, IoData::copy_of(&new)).await.unwrap();
                }
                data[at as usize..(at + n) as usize].copy_from_slice(&new);
                if random.one_in(10) {
                    image.flush().await.unwrap();
                }
            }
            image.close().await.unwrap();
            let image = make(ours.as_ref(), options, SIZE).await;
            image.write(0, IoData::copy_of(&data)).await.unwrap();
            // Clusters of 512 bytes leave no room in the table.
            if options != "cluster_size=512" {
                image.resize(SIZE + (1 << 20)).await.unwrap();
                image.write(SIZE + 4096, IoData::copy_of(b"more")).await.unwrap();
            }
            image.close().await.unwrap();
        });
        assert_eq!(qemu_img(&["check", "-f", "parallels", &theirs]), Some(true));
        assert_eq!(qemu_img(&["convert", "-f", "parallels", "-O", "raw", &theirs, &back]), Some(true));
        assert!(std::fs::read(&back).unwrap() == data, "{options}");
        assert_eq!(qemu_img(&["check", "-f", "parallels", &ours]), Some(true));
        assert_eq!(qemu_img(&["convert", "-f", "parallels", "-O", "raw", &ours, &back]), Some(true));
        let mut longer = data.clone();
        if options != "cluster_size=512" {
            longer.resize((SIZE + (1 << 20)) as usize, 0);
            longer[SIZE as usize + 4096..SIZE as usize + 4100].copy_from_slice(b"more");
        }
        assert!(std::fs::read(&back).unwrap() == longer, "{options}");
        std::fs::write(&raw, &data).unwrap();
    }
}

#[test]
fn damage_is_found_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.hdd");
    let data = pattern(256 << 10, 3);
    block_on(async {
        let image = make(&path, "cluster_size=64k", SIZE).await;
        image.write(0, IoData::copy_of(&data)).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        let mut bytes = std::fs::read(&path).unwrap();
        // The second cluster is where the first is, the third is beyond the end, the fourth in the table.
        bytes[68..72].copy_from_slice(&1u32.to_le_bytes());
        bytes[72..76].copy_from_slice(&100_000u32.to_le_bytes());
        bytes.extend([0; 65536]);
        std::fs::write(&path, &bytes).unwrap();
        let image = open_it(&path).await.unwrap();
        assert_eq!(image.write(0, IoData::copy_of(&data)).await.unwrap_err().kind, ErrorKind::Corrupt);
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (2, 1), "{report:?}");
        let report = image.check(Repair::All, &Progress::default()).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        let report = image.check(Repair::No, &Progress::default()).await.unwrap();
        assert!(report.is_clean() && report.corruptions == 0 && report.leaks == 0, "{report:?}");
        let all = image.read(0, IoBuf::new(256 << 10)).await.unwrap();
        assert!(all[..65536] == data[..65536] && all[65536..131_072] == data[..65536]);
        assert!(all[131_072..196_608].iter().all(|&b| b == 0) && all[196_608..] == data[196_608..]);
        image.write(65536, IoData::copy_of(&data[..512])).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        let qemu = qemu_img(&["check", "-f", "parallels", path.to_str().unwrap()]);
        assert_ne!(qemu, Some(false));
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.hdd");
    block_on(async {
        let image = make(&path, "cluster_size=64k", SIZE).await;
        assert_eq!(image.resize(1 << 20).await.unwrap_err().kind, ErrorKind::Unsupported);
        drop(image);
        let good = std::fs::read(&path).unwrap();
        for (at, bytes) in [
            (28, [0; 4]),
            (28, [0xff; 4]),
            (32, [0xff; 4]),
            (32, [1, 0, 0, 0]),
            (40, [0xff; 4]),
            (48, [1, 0, 0, 0]),
            (60, [0xff; 4]),
        ] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&bytes);
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(open_it(&path).await.err().unwrap().kind, ErrorKind::Corrupt, "{at}");
        }
    });
}

#[test]
fn bundles_are_read_and_written_through_their_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let part = 1 << 20;
    let (base, plain) = (pattern(part, 1), pattern(part, 2));
    block_on(async {
        let image = make(&dir.path().join("base.hds"), "cluster_size=64k", part as u64).await;
        image.write(0, IoData::copy_of(&base[..part / 2])).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        let image = make(&dir.path().join("top.hds"), "cluster_size=64k", part as u64).await;
        image.write(65536 * 2, IoData::copy_of(&[7; 65536])).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        std::fs::write(dir.path().join("plain.hds"), &plain).unwrap();
        let path = dir.path().join("DiskDescriptor.xml");
        std::fs::write(&path, DESCRIPTOR).unwrap();
        let mut want = base.clone();
        want[part / 2..].fill(0);
        want[65536 * 2..65536 * 3].fill(7);
        want.extend(&plain);
        let image = open_it(&path).await.unwrap();
        assert!(image.read(0, IoBuf::new(2 * part)).await.unwrap()[..] == want);
        assert!(
            image.read(65536 * 2 - 512, IoBuf::new(1024)).await.unwrap()[..]
                == want[65536 * 2 - 512..65536 * 2 + 512]
        );
        assert_eq!(image.status(0, 1 << 20).await.unwrap().depth, 1);
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
        drop(image);
        written_to(&path, &mut want).await;
        // The last part grows, over what its image may have behind it.
        let plain = std::fs::OpenOptions::new().append(true).open(dir.path().join("plain.hds"));
        std::io::Write::write_all(&mut plain.unwrap(), &[9; 4096]).unwrap();
        let image = open_it(&path).await.unwrap();
        assert_eq!(image.resize(4096).await.unwrap_err().kind, ErrorKind::Unsupported);
        want.resize(want.len() + (100 << 20), 0);
        image.resize(want.len() as u64).await.unwrap();
        image.write(want.len() as u64 - 512, IoData::copy_of(&[8; 512])).await.unwrap();
        want.last_chunk_mut::<512>().unwrap().fill(8);
        assert!(image.read(0, IoBuf::new(want.len())).await.unwrap()[..] == want);
        image.close().await.unwrap();
        drop(image);
        let image = open_it(&path).await.unwrap();
        assert!(image.read(0, IoBuf::new(want.len())).await.unwrap()[..] == want);
        drop(image);
        for (from, to, kind) in [
            ("top.hds", "../top.hds", ErrorKind::NotFound),
            ("plain.hds", "/etc/passwd", ErrorKind::Denied),
            ("<End>2048", "<End>2047", ErrorKind::Corrupt),
            ("<Type>Plain", "<Type>Strange", ErrorKind::Unsupported),
            ("<ParentGUID>{00000000-0000", "<ParentGUID>{5fbaabe3-6958", ErrorKind::Corrupt),
        ] {
            let mut text = DESCRIPTOR.replacen(from, to, 1);
            if from.starts_with("<Parent") {
                text = text.replace(
                    "{5fbaabe3-6958-0000-0000-000000000000}",
                    "{5fbaabe3-6958-40ff-92a7-860e329aab41}",
                );
            }
            std::fs::write(&path, text).unwrap();
            assert_eq!(open_it(&path).await.err().unwrap().kind, kind, "{to}");
        }
        // Clusters that are written whole have to fit into memory; for reading they need not.
        std::fs::write(&path, DESCRIPTOR).unwrap();
        std::fs::remove_file(dir.path().join("top.hds")).unwrap();
        drop(make(&dir.path().join("top.hds"), "cluster_size=32M", part as u64).await);
        assert_eq!(open_it(&path).await.err().unwrap().kind, ErrorKind::Limit);
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        assert!(open(&path, &options).await.is_ok());
    });
}

/// Writes all over a bundle, with several requests at once, and sees that only the newest images changed.
async fn written_to(path: &Path, want: &mut [u8]) {
    let base = path.with_file_name("base.hds");
    let before = std::fs::read(&base).unwrap();
    let mut random = Random::new(7);
    for round in 0..40 {
        let image = open_it(path).await.unwrap();
        let mut requests = Vec::new();
        // Neighbours in one cluster, in flight together, besides ranges of any length.
        let near = random.below(want.len() as u64 / 65536) * 65536;
        for n in 0..4 {
            let (at, len) = match n {
                0 => (random.below(want.len() as u64 / 512) * 512, 512 + random.below(300) * 512),
                n => (near + n * 8192, 8192),
            };
            let len = len.min(want.len() as u64 - at);
            if n == 0 && requests.is_empty() && at < near + 65536 && near < at + len {
                continue;
            }
            let (image, zeros, byte) = (image.clone(), random.one_in(3), random.number() as u8 | 1);
            want[at as usize..(at + len) as usize].fill(if zeros { 0 } else { byte });
            requests.push(async move {
                match zeros {
                    true => image.write_zeroes(at, len, true).await,
                    false => image.write(at, IoData::copy_of(&vec![byte; len as usize])).await,
                }
            });
        }
        futures_util::future::try_join_all(requests).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        let image = open_it(path).await.unwrap();
        assert!(image.read(0, IoBuf::new(want.len())).await.unwrap()[..] == want[..], "round {round}");
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
    }
    assert!(std::fs::read(base).unwrap() == before, "what is below was changed");
}

#[test]
fn damaged_files_do_no_harm() {
    use plinth_image::fuzz::{damage, fuzz_parallels};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.hdd");
    block_on(async {
        let image = make(&path, "cluster_size=4k", 256 << 10).await;
        image.write(0, IoData::copy_of(&pattern(64 << 10, 3))).await.unwrap();
        image.close().await.unwrap();
    });
    damage(&std::fs::read(&path).unwrap(), 400, 400, fuzz_parallels);
    damage(DESCRIPTOR.as_bytes(), 100, 4000, fuzz_parallels);
}

#[test]
fn a_wrong_beginning_of_the_data_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    block_on(async {
        let image = make(&path, "", SIZE).await;
        let want = pattern(SIZE as usize, 3);
        image.write(0, IoData::copy_of(&want)).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        let good = std::fs::read(&path).unwrap();
        // Of the older form, which counts in sectors, the entries say where the data may begin.
        let mut old = good.clone();
        old[..16].copy_from_slice(b"WithoutFreeSpace");
        for at in (64..80).step_by(4) {
            let entry = u32::from_le_bytes(old[at..at + 4].try_into().unwrap()) * 2048;
            old[at..at + 4].copy_from_slice(&entry.to_le_bytes());
        }
        let for_check = OpenOptions { for_check: true, ..OpenOptions::default() };
        for (form, wrong) in [(&good, u32::MAX), (&good, 0), (&good, 7), (&old, 0x60)] {
            let mut bytes = form.clone();
            bytes[48..52].copy_from_slice(&wrong.to_le_bytes());
            if form == &old {
                // A table of 64 KiB, all of which is in front of the data still, and the data inside of it.
                bytes[32..36].copy_from_slice(&(wrong * 128).to_le_bytes());
            }
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(open_it(&path).await.err().unwrap().kind, ErrorKind::Corrupt);
            let image = open(&path, &for_check).await.unwrap().image;
            image.write(0, IoData::copy_of(&[1; 512])).await.unwrap_err();
            let report = image.check(Repair::All, &Progress::default()).await.unwrap();
            assert!(report.is_clean() && report.corruptions == 1, "{report:?}");
            assert_eq!(report.messages[0], parallels::WRONG_START);
            image.close().await.unwrap();
            drop(image);
            let image = open_it(&path).await.unwrap();
            assert!(image.read(0, IoBuf::new(SIZE as usize)).await.unwrap()[..] == want[..]);
            image.close().await.unwrap();
        }
    });
}
