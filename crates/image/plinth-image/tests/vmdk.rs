//! VMware's disks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::{
    BackingLink, CreateRequest, Format, Image, MemoryOutput, NoLinks, OpenOptions, OpenRequest, Options,
    OutputFiles, Progress, Repair, open, vmdk,
};
use plinth_image::graph::{Cache, IoBuf, IoData, MemoryNode, Node};
use plinth_image::testing::{CrashTest, FaultTest, Random, Shadow, Workload};
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
    let request = CreateRequest { output: &output, size, options: &options, backing, secret: None };
    let image = (vmdk::DRIVER.create.unwrap())(request).await?;
    Ok((image, output))
}

async fn opened(path: &Path, read_only: bool) -> Result<Rc<dyn Image>, Error> {
    let options = OpenOptions { read_only, ..OpenOptions::default() };
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
        let (seeds, cuts) = if long() { (1..81, 25) } else { (1..4, 8) };
        let mut seen = 0;
        for seed in seeds {
            let test = CrashTest::new(&vmdk::DRIVER, options, SIZE, seed, cuts);
            let look = |cut: &plinth_image::testing::Cut| {
                seen += 1;
                if !has_peer || seen % 10 != 0 {
                    return Ok(());
                }
                for (name, file) in &cut.files {
                    std::fs::write(dir.path().join(name), file.contents()).map_err(|e| e.to_string())?;
                }
                let main = dir.path().join(&cut.files[0].0);
                qemu("qemu-img", &["check", "-f", "vmdk", text(&main)]).map(drop)
            };
            block_on(test.run(look)).unwrap();
        }
    }
}

#[test]
fn failures_leave_old_or_new_contents() {
    for options in WRITABLE {
        let (requests, step) = if long() { (2000, 7) } else { (60, 9) };
        let failures =
            block_on(FaultTest::new(&vmdk::DRIVER, options, SIZE, 7, requests, step).run()).unwrap();
        assert!(failures > 5, "{options}: {failures}");
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
