//! VMware's disks.

mod common;

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::{
    BackingLink, CreateRequest, Format, Image, MemoryOutput, NoLinks, OpenOptions, OpenRequest, Options,
    OutputFiles, Progress, Repair, open, vmdk,
};
use plinth_image::graph::{Cache, IoBuf, IoData, MemoryNode, Node};
use plinth_image::testing::samples::{cowd, sesparse};
use plinth_image::testing::{Random, Shadow, Workload};
use plinth_image::{Error, ErrorKind};

/// Every kind that can be written in place.
const WRITABLE: [&str; 5] = [
    "",
    "zeroed_grain=on",
    "subformat=twoGbMaxExtentSparse",
    "subformat=monolithicFlat",
    "subformat=twoGbMaxExtentFlat",
];
const SIZE: u64 = 40 << 20;

/// True for the run before a release: `PLINTH_LONG=1`.
fn long() -> bool {
    std::env::var_os("PLINTH_LONG").is_some()
}

/// True if QEMU's tools are here; says so if not.
fn peer() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: qemu-img is not installed");
    }
    found
}

fn qemu(tool: &str, args: &[&str]) -> Result<String, String> {
    let out = Command::new(tool).args(args).output().map_err(|e| e.to_string())?;
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(text) } else { Err(format!("{tool} {args:?}: {text}")) }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn create(
    path: &Path,
    options: &str,
    size: u64,
    backing: Option<BackingLink>,
) -> Result<(Rc<dyn Image>, OutputFiles), Error> {
    let output = OutputFiles::new(path, Cache::Cached)?;
    let options = Options::parse(options)?;
    options.check(vmdk::DRIVER.options)?;
    let request = CreateRequest {
        output: &output,
        size,
        options: &options,
        backing: backing.map(Into::into),
        secret: None,
    };
    let image = (vmdk::DRIVER.create.unwrap())(request).await?;
    Ok((image, output))
}

/// Without locks: a process that another test starts has all open files, and so their locks, for a moment.
async fn opened(path: &Path, read_only: bool) -> Result<Rc<dyn Image>, Error> {
    let options = OpenOptions { read_only, share: true, ..OpenOptions::default() };
    Ok(open(path, &options).await?.image)
}

async fn contents(image: &dyn Node) -> Vec<u8> {
    let mut all = Vec::new();
    while (all.len() as u64) < image.size() {
        let n = (image.size() - all.len() as u64).min(3 << 20);
        all.extend_from_slice(&image.read(all.len() as u64, IoBuf::new(n as usize)).await.unwrap());
    }
    all
}

/// Bytes that compress, with holes of all sizes.
fn pattern(size: u64, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut data = vec![0; size as usize];
    let mut at = 0;
    while at < data.len() {
        let n = (1 + random.below(400_000)) as usize;
        let end = data.len().min(at + n);
        match random.below(3) {
            0 => {}
            1 => data[at..end].iter_mut().enumerate().for_each(|(i, b)| *b = (i / 7 % 251) as u8),
            _ => data[at..end].iter_mut().for_each(|b| *b = random.number() as u8),
        }
        at = end;
    }
    data
}

async fn write_all(image: &dyn Image, data: &[u8], compressed: bool) {
    const AT_ONCE: usize = 1 << 20;
    for (n, part) in data.chunks(AT_ONCE).enumerate() {
        let (at, part) = ((n * AT_ONCE) as u64, IoData::copy_of(part));
        match compressed.then(|| image.write_compressed(at, part.clone())).flatten() {
            Some(write) => write.await.unwrap(),
            None => image.write(at, part).await.unwrap(),
        }
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let has_peer = peer();
    for options in WRITABLE {
        let mut n = 0;
        common::crash_seen(&common::subject(&vmdk::DRIVER, options, SIZE), 65536, |cut| {
            n += 1;
            if !has_peer || n % 10 != 0 {
                return Ok(false);
            }
            for (name, file) in &cut.files {
                file.save(&dir.path().join(name)).map_err(|e| e.to_string())?;
            }
            let main = dir.path().join(&cut.files[0].0);
            qemu("qemu-img", &["check", "-f", "vmdk", text(&main)]).map(|_| true)
        });
    }
}

#[test]
fn failures_leave_old_or_new_contents() {
    for options in WRITABLE {
        common::fault(&vmdk::DRIVER, options, SIZE, 65536);
    }
}

/// What QEMU's tool creates, ours reads; and the other way round; through all subformats.
#[test]
fn the_peer_reads_what_is_written_here_and_the_other_way_round() {
    if !peer() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A last grain in part, and for the split kinds more than one file is in another test.
    let data = pattern((9 << 20) + 512 * 37, 5);
    let raw = dir.path().join("a.raw");
    std::fs::write(&raw, &data).unwrap();
    let kinds = [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ];
    for kind in kinds {
        for more in ["", ",adapter_type=lsilogic,hwversion=7", ",compat6=on", ",zeroed_grain=on"] {
            if more.contains("zeroed") && (kind.ends_with("Flat") || kind == "streamOptimized") {
                continue;
            }
            let options = format!("subformat={kind}{more}");
            let theirs = dir.path().join("theirs.vmdk");
            qemu(
                "qemu-img",
                &["convert", "-f", "raw", "-O", "vmdk", "-o", &options, text(&raw), text(&theirs)],
            )
            .unwrap();
            let image = block_on(opened(&theirs, true)).unwrap();
            assert_eq!(image.size(), data.len() as u64);
            assert!(block_on(contents(&*image)) == data, "{options}");
            assert_eq!(image.describe().details["create-type"], kind);
            let report = block_on(image.check(Repair::No, &Progress::default())).unwrap();
            assert!(report.is_clean(), "{options}: {report:?}");
            drop(image);
            let ours = dir.path().join("ours.vmdk");
            block_on(async {
                let (image, output) = create(&ours, &options, data.len() as u64, None).await.unwrap();
                write_all(&*image, &data, kind == "streamOptimized").await;
                image.close().await.unwrap();
                drop(image);
                output.finish().unwrap();
            });
            qemu("qemu-img", &["check", "-f", "vmdk", text(&ours)]).unwrap();
            qemu("qemu-img", &["compare", "-f", "raw", "-F", "vmdk", text(&raw), text(&ours)]).unwrap();
            let image = block_on(opened(&ours, kind == "streamOptimized")).unwrap();
            assert!(block_on(contents(&*image)) == data, "{options}");
            let report = block_on(image.check(Repair::No, &Progress::default())).unwrap();
            assert!(report.is_clean(), "{options}: {report:?}");
            let info = qemu("qemu-img", &["info", "--output=json", text(&ours)]);
            drop(image);
            let info =
                info.or_else(|_| qemu("qemu-img", &["info", "-U", "--output=json", text(&ours)])).unwrap();
            assert!(info.contains(kind), "{info}");
        }
    }
}

async fn memory(
    name: &str,
    options: &str,
    size: u64,
    backing: Option<BackingLink>,
) -> (Rc<dyn Image>, Rc<MemoryNode>) {
    let output = MemoryOutput::new(name);
    let options = Options::parse(options).unwrap();
    let request = CreateRequest {
        output: &output,
        size,
        options: &options,
        backing: backing.map(Into::into),
        secret: None,
    };
    let image = (vmdk::DRIVER.create.unwrap())(request).await.unwrap();
    (image, output.file(name).unwrap())
}

async fn reopen(file: Rc<MemoryNode>) -> Result<Rc<dyn Image>, Error> {
    let options = OpenOptions { format: Some(Format::Vmdk), ..OpenOptions::default() };
    (vmdk::DRIVER.open)(OpenRequest { file, links: Rc::new(NoLinks), options }).await
}

#[test]
fn random_work_with_many_in_flight_is_right() {
    for (seed, options) in (1..).zip(WRITABLE) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.vmdk");
        block_on(async {
            let (image, output) = create(&path, options, SIZE, None).await.unwrap();
            let shadow = Shadow::default();
            let mut work = Workload::new(seed, if long() { 20_000 } else { 600 });
            work.depth = 24;
            let clock = std::cell::Cell::new(0);
            let now = || {
                clock.set(clock.get() + 1);
                clock.get()
            };
            work.run(&*image, &shadow, &now).await.unwrap();
            shadow.verify(&*image, None).await.unwrap();
            image.close().await.unwrap();
            drop(image);
            output.finish().unwrap();
            let image = opened(&path, false).await.unwrap();
            shadow.verify(&*image, None).await.unwrap();
            let report = image.check(Repair::No, &Progress::default()).await.unwrap();
            assert!(report.is_clean(), "{report:?}");
        });
    }
}

#[test]
fn a_child_knows_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let (base, child) = (dir.path().join("base.vmdk"), dir.path().join("child.vmdk"));
    let data = pattern(3 << 20, 8);
    block_on(async {
        let (image, output) = create(&base, "", 3 << 20, None).await.unwrap();
        write_all(&*image, &data, false).await;
        image.close().await.unwrap();
        let identity = image.describe().identity;
        drop(image);
        output.finish().unwrap();
        let link = BackingLink { name: "base.vmdk".to_owned(), format: Some(Format::Vmdk), identity };
        for options in ["", "zeroed_grain=on", "subformat=twoGbMaxExtentSparse"] {
            let (image, output) = create(&child, options, 4 << 20, Some(link.clone())).await.unwrap();
            // Its parent is not open yet, and is not taken for zeros.
            assert!(image.read(0, IoBuf::new(512)).await.is_err());
            image.close().await.unwrap();
            drop(image);
            output.finish().unwrap();
            let image = opened(&child, false).await.unwrap();
            let mut want = data.clone();
            want.resize(4 << 20, 0);
            assert!(contents(&*image).await == want);
            let cid = image.describe().identity;
            image.write(70_000, IoData::copy_of(&[9; 5000])).await.unwrap();
            want[70_000..75_000].fill(9);
            image.write_zeroes(1_000_000, 500_000, true).await.unwrap();
            want[1_000_000..1_500_000].fill(0);
            assert!(contents(&*image).await == want, "{options}");
            assert_ne!(image.describe().identity, cid);
            image.close().await.unwrap();
            drop(image);
            if peer() {
                let raw = dir.path().join("raw");
                qemu("qemu-img", &["convert", "-f", "vmdk", "-O", "raw", text(&child), text(&raw)]).unwrap();
                assert!(std::fs::read(&raw).unwrap() == want, "{options}");
            }
            let image = opened(&child, true).await.unwrap();
            assert!(contents(&*image).await == want, "{options}");
        }
        // The parent changes, and the child says so.
        let image = opened(&base, false).await.unwrap();
        image.write(0, IoData::copy_of(&[1; 512])).await.unwrap();
        image.close().await.unwrap();
        let new = image.describe().identity;
        drop(image);
        let e = opened(&child, true).await.err().unwrap();
        assert!(e.to_string().contains("content ID"), "{e}");
        // Who knows better can say that it is the parent all the same.
        let options = OpenOptions { no_backing: true, share: true, ..OpenOptions::default() };
        let image = open(&child, &options).await.unwrap().image;
        image.set_backing(Some(&BackingLink { identity: new, ..link })).await.unwrap();
        drop(image);
        opened(&child, true).await.unwrap();
        let image = open(&child, &options).await.unwrap().image;
        image.set_backing(None).await.unwrap();
        drop(image);
        assert!(opened(&child, true).await.unwrap().backing().is_none());
    });
}

#[test]
fn the_redundant_directory_is_used_when_the_first_is_damaged() {
    block_on(async {
        let data = pattern(2 << 20, 4);
        let (image, file) = memory("a.vmdk", "", 2 << 20, None).await;
        write_all(&*image, &data, false).await;
        image.close().await.unwrap();
        let sound = file.contents();
        let word = |at: usize| u64::from_le_bytes(sound[at..at + 8].try_into().unwrap()) as usize * 512;
        let (second, first) = (word(48), word(56));
        let table = u32::from_le_bytes(sound[first..first + 4].try_into().unwrap()) as usize * 512;
        // The directory, or an entry of a table.
        for (at, frozen) in [(first, true), (table + 40, false)] {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
            let image = reopen(Rc::new(MemoryNode::with("a.vmdk", &bytes))).await.unwrap();
            assert!(contents(&*image).await == data);
            assert_eq!(image.write(0, IoData::copy_of(&[0; 512])).await.is_err(), frozen);
            let report = image.check(Repair::No, &Progress::default()).await.unwrap();
            assert!(report.corruptions > 0);
            if !frozen {
                let report = image.check(Repair::All, &Progress::default()).await.unwrap();
                assert!(
                    report.corruptions > 0 && report.corruptions == report.corruptions_fixed,
                    "{report:?}"
                );
                let report = image.check(Repair::No, &Progress::default()).await.unwrap();
                assert!(report.is_clean(), "{report:?}");
            }
        }
        assert_ne!(first, second);
    });
}

#[test]
fn extents_of_esxi_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = pattern(1 << 20, 6);
    let flat = pattern(64 << 10, 7);
    let descriptor = |kind: &str, line: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"{kind}\"\n{line}\n"
        )
    };
    std::fs::write(dir.path().join("c.bin"), cowd(&data)).unwrap();
    std::fs::write(dir.path().join("s.bin"), sesparse(&data, 0)).unwrap();
    std::fs::write(dir.path().join("j.bin"), sesparse(&data, 1)).unwrap();
    std::fs::write(dir.path().join("f.bin"), &flat).unwrap();
    let path = dir.path().join("d.vmdk");
    let open_with = |lines: &str| {
        let kind = if lines.contains("SESPARSE") { "seSparse" } else { "vmfsSparse" };
        std::fs::write(&path, descriptor(kind, lines)).unwrap();
        block_on(opened(&path, true))
    };
    for (kind, file) in [("VMFSSPARSE", "c.bin"), ("SESPARSE", "s.bin")] {
        let image = open_with(&format!("RW 2048 {kind} \"{file}\"")).unwrap();
        assert!(block_on(contents(&*image)) == data, "{kind}");
        assert!(block_on(image.check(Repair::No, &Progress::default())).unwrap().is_clean());
        if peer() {
            let raw = dir.path().join("raw");
            qemu("qemu-img", &["convert", "-f", "vmdk", "-O", "raw", text(&path), text(&raw)]).unwrap();
            assert!(std::fs::read(&raw).unwrap() == data, "{kind}: the peer differs");
        }
    }
    let e = open_with("RW 2048 SESPARSE \"j.bin\"").err().unwrap();
    assert!(e.kind == ErrorKind::Unsupported && e.to_string().contains("journal"), "{e}");
    let image =
        open_with("RW 128 VMFS \"f.bin\"\nRW 8 ZERO\nRW 120 FLAT \"f.bin\" 8\nNOACCESS 8 FLAT \"g.bin\" 0")
            .unwrap();
    let all = block_on(image.read(0, IoBuf::new(256 * 512))).unwrap();
    assert!(
        all[..65536] == flat && all[65536..69632].iter().all(|&b| b == 0) && all[69632..] == flat[4096..]
    );
    assert_eq!(block_on(image.read(256 * 512, IoBuf::new(512))).unwrap_err().kind, ErrorKind::Denied);
    // Nothing outside of the folder is an extent.
    let e = open_with("RW 1 FLAT \"/etc/hostname\" 0").err().unwrap();
    assert_eq!(e.kind, ErrorKind::Denied);
}

#[test]
fn sizes_change() {
    for options in ["", "subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.vmdk");
        block_on(async {
            let (image, output) = create(&path, options, 33 << 20, None).await.unwrap();
            let mut data = pattern(33 << 20, 3);
            write_all(&*image, &data, false).await;
            image.close().await.unwrap();
            drop(image);
            output.finish().unwrap();
            for size in [50 << 20, (3 << 20) + 1024, 70 << 20, 130 << 20, 5 << 20] {
                let image = opened(&path, false).await.unwrap();
                image.resize(size).await.unwrap();
                data.resize(size as usize, 0);
                let at = data.len() - 3000;
                data[at..].fill(size as u8 | 1);
                image.write(at as u64, IoData::copy_of(&data[at..])).await.unwrap();
                image.close().await.unwrap();
                drop(image);
                let image = opened(&path, true).await.unwrap();
                assert!(contents(&*image).await == data, "{options} {size}");
                let report = image.check(Repair::No, &Progress::default()).await.unwrap();
                assert!(report.is_clean(), "{options} {size}: {report:?}");
                drop(image);
                if peer() {
                    qemu("qemu-img", &["check", "-f", "vmdk", text(&path)]).unwrap();
                    let raw = dir.path().join("raw");
                    qemu("qemu-img", &["convert", "-f", "vmdk", "-O", "raw", text(&path), text(&raw)])
                        .unwrap();
                    assert!(std::fs::read(&raw).unwrap() == data, "{options} {size}");
                }
            }
        });
    }
}

#[test]
fn a_stream_is_written_once() {
    block_on(async {
        let data = pattern(40 << 20, 11);
        let (image, file) = memory("s.vmdk", "subformat=streamOptimized", 40 << 20, None).await;
        // Backwards, so that tables are left and come again.
        for (n, part) in data.chunks(1 << 16).enumerate().rev() {
            image.write((n << 16) as u64, IoData::copy_of(part)).await.unwrap();
        }
        let first = data.iter().position(|&b| b != 0).unwrap() as u64;
        let e = image.write(first, IoData::copy_of(&[1; 512])).await.unwrap_err();
        assert_eq!(e.kind, ErrorKind::ReadOnly, "{e}");
        assert!(contents(&*image).await == data);
        image.close().await.unwrap();
        assert!(contents(&*image).await == data);
        let image = reopen(file.clone()).await.unwrap();
        assert!(contents(&*image).await == data && image.info().read_only && image.describe().compressed);
        assert!(image.check(Repair::No, &Progress::default()).await.unwrap().is_clean());
        // Small reads across grains.
        let mut random = Random::new(1);
        for _ in 0..200 {
            let at = random.below((40 << 20) - 200_000);
            let n = 1 + random.below(200_000);
            let part = image.read(at, IoBuf::new(n as usize)).await.unwrap();
            assert!(*part == data[at as usize..(at + n) as usize]);
        }
        // What is cut short is refused, and a flipped bit is found.
        let bytes = file.contents();
        assert!(reopen(Rc::new(MemoryNode::with("s", &bytes[..bytes.len() - 512]))).await.is_err());
        let mut bytes = bytes;
        bytes[65536 + 100] ^= 4;
        let image = reopen(Rc::new(MemoryNode::with("s", &bytes))).await.unwrap();
        let mut at = 0;
        let mut failed = 0;
        while at < image.size() {
            failed += u32::from(image.read(at, IoBuf::new(65536)).await.is_err());
            at += 65536;
        }
        assert_eq!(failed, 1);
    });
}

#[test]
fn damaged_images_do_no_harm() {
    let mut random = Random::new(99);
    let rounds = if long() { 20_000 } else { 150 };
    let mut seeds = vec![cowd(&pattern(1 << 18, 1)), sesparse(&pattern(1 << 18, 2), 0)];
    for options in ["", "zeroed_grain=on", "subformat=streamOptimized"] {
        block_on(async {
            let data = pattern(1 << 20, 3);
            let (image, file) = memory("f.vmdk", options, 1 << 20, None).await;
            write_all(&*image, &data, true).await;
            image.close().await.unwrap();
            seeds.push(file.contents());
        });
    }
    for n in 0..rounds {
        let mut bytes = seeds[n % seeds.len()].clone();
        for _ in 0..1 + random.below(6) {
            let near = if random.one_in(3) { bytes.len() as u64 } else { 2048 };
            let at = random.below(near) as usize;
            bytes[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ 1 << random.below(8),
                _ => random.number() as u8,
            };
        }
        if random.one_in(8) {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        let begin = std::time::Instant::now();
        plinth_image::fuzz::fuzz_vmdk(&bytes);
        assert!(begin.elapsed().as_secs() < 20, "image {n} takes {:?}", begin.elapsed());
    }
}

#[test]
fn disks_of_several_files_say_which_one_has_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.vmdk");
    block_on(async {
        const GIB: u64 = 1 << 30;
        let made = create(&path, "subformat=twoGbMaxExtentSparse", 5 * GIB, None).await.unwrap();
        made.0.close().await.unwrap();
        drop(made.0);
        made.1.finish().unwrap();
        let image = opened(&path, false).await.unwrap();
        let files = image.data_files();
        let starts: Vec<u64> = files.iter().map(|f| f.0).collect();
        assert_eq!(starts, [0, 2 * GIB, 4 * GIB]);
        image.write(3 * GIB, IoData::copy_of(&[7; 65536])).await.unwrap();
        image.flush().await.unwrap();
        let extent = image.status(3 * GIB, 65536).await.unwrap();
        let bytes = std::fs::read(&files[1].1).unwrap();
        let at = extent.host.unwrap() as usize;
        assert!(bytes[at..at + 65536] == [7; 65536]);
    });
}

#[test]
fn descriptions_with_offsets_that_cannot_be_are_refused() {
    block_on(async {
        for (line, right) in [
            ("RW 16 VMFS \"x\"", true),
            ("RW 16 VMFS \"x\" 0", true),
            ("RW 16 VMFS \"x\" 1", false),
            ("RW 16 FLAT \"x\" 1", true),
        ] {
            let text = format!(
                "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"x\"\n{line}\n"
            );
            let error = reopen(Rc::new(MemoryNode::with("d", text.as_bytes()))).await.err().unwrap();
            // There is no such file in any case.
            assert_eq!(error.to_string().contains(vmdk::BAD_EXTENT), !right, "{line}: {error}");
        }
    });
}

#[test]
fn a_large_disk_with_little_in_it_is_not_looked_at_cluster_by_cluster() {
    common::sparse_table(&vmdk::DRIVER, "", 1 << 40, 65536);
}
