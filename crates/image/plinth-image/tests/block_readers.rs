//! VHD, VHDX and VDI as independent readers see them: libvhdi (its Python module) and 7-Zip, where they are installed.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use common::{contents, open_file};
use plinth_host::aio::block_on;
use plinth_image::format::{
    CreateRequest, Driver, Format, Image, OpenOptions, Options, OutputFiles, Progress, Repair, open, vdi,
    vhd, vhdx,
};
use plinth_image::graph::{Cache, IoBuf, IoData, Node};
use plinth_image::testing::Random;

const SIZE: u64 = 12 << 20;

/// A program that is being started has our files for a moment, and so their locks: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Reads an image and its parents, the nearest first, and compares with a file of what there should be.
const LIBVHDI: &str = r#"
import sys, pyvhdi
files = [pyvhdi.file() for _ in sys.argv[2:]]
for f, path in zip(files, sys.argv[2:]): f.open(path)
for f, parent in zip(files, files[1:]): f.set_parent(parent)
want = open(sys.argv[1], "rb").read()
image = files[0]
assert image.get_media_size() == len(want), (image.get_media_size(), len(want))
at = 0
while at < len(want):
    got = image.read_buffer_at_offset(min(65536, len(want) - at), at)
    if got != want[at:at + len(got)]:
        n = next(i for i in range(len(got)) if got[i] != want[at + i])
        sys.exit("byte %d is %d, not %d" % (at + n, got[n], want[at + n]))
    at += len(got)
"#;

fn libvhdi(want: &Path, images: &[&Path]) -> Option<bool> {
    if !Command::new("python3").args(["-c", "import pyvhdi"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: there is no libvhdi for Python");
        return None;
    }
    let out = Command::new("python3").args(["-c", LIBVHDI]).arg(want).args(images).output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&out.stderr));
    Some(out.status.success())
}

fn write_some(image: &dyn Image, seed: u64) {
    block_on(async {
        let mut random = Random::new(seed);
        for _ in 0..40 {
            let at = random.below(SIZE / 512 - 300) * 512;
            let byte = random.below(255) as u8 + 1;
            let data = vec![byte; random.below(300) as usize * 512 + 512];
            image.write(at, IoData::copy_of(&data)).await.unwrap();
        }
        image.write_zeroes(SIZE / 2, 3 << 20, true).await.unwrap();
        image.close().await.unwrap();
    });
}

/// Makes an image, over another one if there is one, and what it should hold.
fn make(driver: &'static Driver, options: &str, dir: &Path, name: &str, parent: Option<&str>) {
    let path = dir.join(name);
    let backing = parent.map(|p| common::link_to(p, &*open_file(&dir.join(p), true).image));
    block_on(async {
        let output = OutputFiles::new(&path, Cache::Cached).unwrap();
        let options = Options::parse(options).unwrap();
        let request = CreateRequest {
            output: &output,
            size: SIZE,
            options: &options,
            backing: backing.map(Into::into),
            secret: None,
        };
        (driver.create.unwrap())(request).await.unwrap().close().await.unwrap();
        output.finish().unwrap();
    });
    write_some(&*open_file(&path, false).image, name.len() as u64);
    std::fs::write(path.with_extension("raw"), contents(&*open_file(&path, true).image)).unwrap();
}

#[test]
fn libvhdi_reads_ours() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (driver, suffix) in [(&vhd::DRIVER, "vhd"), (&vhdx::DRIVER, "vhdx")] {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: &str| format!("{n}.{suffix}");
        make(driver, "subformat=fixed", dir.path(), &name("fixed"), None);
        make(driver, "", dir.path(), &name("base"), None);
        make(driver, "", dir.path(), &name("middle"), Some(&name("base")));
        make(driver, "block_size=4M", dir.path(), &name("top-one"), Some(&name("middle")));
        for chain in [&["fixed"][..], &["base"], &["middle", "base"], &["top-one", "middle", "base"]] {
            // It takes wrong sectors of differencing VHDs from the parent, where 7-Zip does not.
            if suffix == "vhd" && chain.len() > 1 {
                continue;
            }
            let images: Vec<_> = chain.iter().map(|n| dir.path().join(name(n))).collect();
            let images: Vec<&Path> = images.iter().map(|p| p.as_path()).collect();
            let right = libvhdi(&images[0].with_extension("raw"), &images);
            assert_ne!(right, Some(false), "{chain:?} of {suffix}");
        }
    }
}

#[test]
fn seven_zip_reads_ours() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !Command::new("7z").output().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: there is no 7z");
        return;
    }
    let all: [(&'static Driver, &str, &str); 6] = [
        (&vdi::DRIVER, "", "dynamic.vdi"),
        (&vdi::DRIVER, "static", "static.vdi"),
        (&vhd::DRIVER, "", "dynamic.vhd"),
        (&vhd::DRIVER, "subformat=fixed", "fixed.vhd"),
        (&vhdx::DRIVER, "", "dynamic.vhdx"),
        (&vhdx::DRIVER, "subformat=fixed", "fixed.vhdx"),
    ];
    for (driver, options, name) in all {
        let dir = tempfile::tempdir().unwrap();
        make(driver, options, dir.path(), name, None);
        let path = dir.path().join(name);
        let kind = name.rsplit('.').next().unwrap();
        let out = Command::new("7z").args(["e", "-so", &format!("-t{kind}")]).arg(&path).output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stdout == std::fs::read(path.with_extension("raw")).unwrap(), "{name}");
    }
    // Differencing VHDs too: it finds the parents by their names.
    let dir = tempfile::tempdir().unwrap();
    make(&vhd::DRIVER, "", dir.path(), "base.vhd", None);
    make(&vhd::DRIVER, "", dir.path(), "middle.vhd", Some("base.vhd"));
    make(&vhd::DRIVER, "block_size=512k", dir.path(), "top-one.vhd", Some("middle.vhd"));
    for name in ["middle.vhd", "top-one.vhd"] {
        let path = dir.path().join(name);
        let out = Command::new("7z").args(["e", "-so", "-tvhd"]).arg(&path).output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stdout == std::fs::read(path.with_extension("raw")).unwrap(), "{name}");
    }
}

/// Compares two disks that may be large, and mostly nothing.
async fn same(a: &dyn Node, b: &dyn Node) -> Result<(), String> {
    if a.size() != b.size() {
        return Err(format!("{} and {} bytes", a.size(), b.size()));
    }
    let mut at = 0;
    while at < a.size() {
        let (x, y) = (a.status(at, a.size() - at).await.unwrap(), b.status(at, a.size() - at).await.unwrap());
        let mut n = x.len.min(y.len);
        if !(x.zero && y.zero) {
            n = n.min(1 << 20);
            let x = a.read(at, IoBuf::new(n as usize)).await.unwrap();
            let y = b.read(at, IoBuf::new(n as usize)).await.unwrap();
            if x[..] != y[..] {
                return Err(format!("they differ near byte {at}"));
            }
        }
        at += n;
    }
    Ok(())
}

/// `PLINTH_SAMPLES` names a folder with images of other programs, and beside each image what it holds (`.raw`).
#[test]
fn samples_hold_what_other_readers_say() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(folder) = std::env::var_os("PLINTH_SAMPLES") else { return };
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if ![".vhd", ".vhdx", ".vdi", ".avhdx"].iter().any(|s| name.ends_with(s)) {
            continue;
        }
        let raw = OpenOptions { read_only: true, format: Some(Format::Raw), ..OpenOptions::default() };
        let want = block_on(open(Path::new(&format!("{name}.raw")), &raw));
        let opened = block_on(open(&path, &OpenOptions { read_only: true, ..OpenOptions::default() }));
        match (opened, want) {
            (Ok(opened), Ok(want)) => {
                block_on(same(&*opened.image, &*want.image)).unwrap_or_else(|e| panic!("{name}: {e}"));
                let report = block_on(opened.image.check(Repair::No, &Progress::default()));
                assert!(report.as_ref().is_ok_and(|r| r.corruptions == 0), "{name}: {report:?}");
                eprintln!("{name}: {} bytes are right, {:?}", want.image.size(), opened.image.describe());
            }
            (Ok(opened), Err(_)) => eprintln!("{name}: opened, not compared: {:?}", opened.image.describe()),
            (Err(e), want) => {
                assert!(want.is_err(), "{name}: {e}");
                eprintln!("{name}: refused: {e}");
            }
        }
        seen += 1;
    }
    assert!(seen > 0);
}
