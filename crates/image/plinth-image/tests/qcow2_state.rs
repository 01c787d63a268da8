//! Machine state in snapshots of qcow2 images, beside QEMU where it is installed.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::ErrorKind;
use plinth_image::format::qcow2::DRIVER;
use plinth_image::format::{
    Backing, BackingLink, CreateRequest, Image, MemoryOutput, NoLinks, OpenOptions, OpenRequest, Options,
    OutputFiles, Progress, Repair, Snapshot, open,
};
use plinth_image::graph::{Cache, IoBuf, IoData, MemoryNode, NodeRef};
use plinth_image::testing::Random;

const SECRET: &[u8] = b"a good passphrase";

fn take(name: &str, vm_state_size: u64) -> Snapshot {
    Snapshot {
        name: name.to_owned(),
        vm_state_size,
        date: (1_700_000_000, 5),
        vm_clock: 9,
        ..Snapshot::default()
    }
}

async fn check(image: &dyn Image) {
    let report = image.check(Repair::No, &Progress::default()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.number() as u8).collect()
}

async fn all(image: &dyn Image) -> Vec<u8> {
    image.read(0, IoBuf::new(image.size() as usize)).await.unwrap().to_vec()
}

/// Writes state in pieces of odd sizes.
async fn write_state(image: &dyn Image, random: &mut Random, state: &[u8]) {
    let mut at = 0;
    while at < state.len() {
        let n = (random.below(40_000) as usize + 1).min(state.len() - at);
        image.snapshots().unwrap().write_state(at as u64, IoData::copy_of(&state[at..at + n])).await.unwrap();
        at += n;
    }
}

async fn read_state(image: &dyn Image, name: &str, len: usize) -> Vec<u8> {
    image.snapshots().unwrap().read_state(name, 0, IoBuf::new(len)).await.unwrap().to_vec()
}

#[test]
fn machine_state_stays_with_its_snapshot() {
    for options in [
        "",
        "cluster_size=512",
        "extended_l2=on",
        "compat=0.10,cluster_size=4k",
        "encrypt.format=aes,cluster_size=1k",
    ] {
        block_on(async {
            let mut random = Random::new(4);
            let size = (3 << 20) + 512u64;
            // What is below is longer, and is no state.
            let below: NodeRef = Rc::new(MemoryNode::with("below", &noise(&mut random, 24 << 20)));
            let link = BackingLink { name: "below".to_owned(), format: None, identity: None };
            let output = MemoryOutput::new("image");
            let parsed = Options::parse(options).unwrap();
            let request = CreateRequest {
                output: &output,
                size,
                options: &parsed,
                backing: Some(Backing { link, node: Some(below) }),
                secret: Some(SECRET),
            };
            let image = (DRIVER.create.unwrap())(request).await.unwrap();
            let s = image.snapshots().unwrap();
            image.write(5000, IoData::copy_of(&[1; 100_000])).await.unwrap();
            let disk = all(&*image).await;
            let (one, two) = (noise(&mut random, 700_001), noise(&mut random, 1_300_000));
            write_state(&*image, &mut random, &one).await;
            check(&*image).await;
            s.create(&take("one", one.len() as u64)).await.unwrap();
            check(&*image).await;
            assert!(read_state(&*image, "one", one.len()).await == one, "{options}");
            image.write(70_000, IoData::copy_of(&[2; 100_000])).await.unwrap();
            let later = all(&*image).await;
            write_state(&*image, &mut random, &two).await;
            s.create(&take("two", two.len() as u64)).await.unwrap();
            s.create(&take("none", 0)).await.unwrap();
            check(&*image).await;
            let beyond = s.read_state("one", 1, IoBuf::new(one.len())).await.unwrap_err();
            assert_eq!(beyond.kind, ErrorKind::OutOfRange);
            image.close().await.unwrap();
            drop(image);
            // No longer state of the disk, whatever becomes of it.
            let file = Rc::new(MemoryNode::with("image", &output.file("image").unwrap().contents()));
            let options =
                OpenOptions { no_backing: true, secret: Some(SECRET.into()), ..OpenOptions::default() };
            let request = OpenRequest { file, links: Rc::new(NoLinks), options };
            let image = (DRIVER.open)(request).await.unwrap();
            let s = image.snapshots().unwrap();
            assert_eq!(s.list().iter().map(|s| s.vm_state_size).collect::<Vec<_>>(), [700_001, 1_300_000, 0]);
            assert!(read_state(&*image, "one", one.len()).await == one);
            assert!(read_state(&*image, "two", two.len()).await == two);
            s.apply("one").await.unwrap();
            check(&*image).await;
            // Without what is below, in version 2, only what was written is the same.
            assert!(all(&*image).await[8192..100_000] == disk[8192..100_000]);
            s.delete("one").await.unwrap();
            check(&*image).await;
            assert!(read_state(&*image, "two", two.len()).await == two);
            s.apply("two").await.unwrap();
            assert!(all(&*image).await[8192..160_000] == later[8192..160_000]);
            write_state(&*image, &mut random, &one).await;
            s.delete("two").await.unwrap();
            s.delete("none").await.unwrap();
            check(&*image).await;
            // State that nobody kept goes when the disk grows into its place.
            image.resize(size + (40 << 20)).await.unwrap();
            let grown = image.read(size, IoBuf::new(40 << 20)).await.unwrap();
            assert!(grown.iter().all(|&b| b == 0));
            check(&*image).await;
            image.close().await.unwrap();
        });
    }
}

/// Runs QEMU's monitor over a machine that never starts; what it says.
fn monitor(dir: &Path, commands: &str, more: &[&str]) -> String {
    let mut child = Command::new("qemu-system-riscv64")
        .args(["-M", "virt", "-m", "32", "-S", "-display", "none", "-serial", "none", "-bios", "none"])
        .args(["-drive", "if=none,id=d,file=disk,format=qcow2", "-device", "virtio-blk-device,drive=d"])
        .args(["-monitor", "stdio"])
        .args(more)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{commands}\nquit\n").as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && !text.contains("Error") && !text.contains("rror:"), "{text}");
    text
}

#[test]
fn machines_that_qemu_saved_are_read_and_it_loads_what_is_written_here() {
    let there = |p: &str| Command::new(p).arg("--version").output().is_ok();
    if !there("qemu-system-riscv64") || !there("qemu-img") {
        eprintln!("qemu-system-riscv64 or qemu-img is not here: nothing is compared");
        return;
    }
    for options in ["", "cluster_size=4k,refcount_bits=32", "extended_l2=on,compression_type=zstd"] {
        let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        block_on(async {
            let make = async |dir: &Path| {
                let output = OutputFiles::new(&dir.join("disk"), Cache::Cached).unwrap();
                let options = Options::parse(options).unwrap();
                let size = 10 << 20;
                let request =
                    CreateRequest { output: &output, size, options: &options, backing: None, secret: None };
                let image = (DRIVER.create.unwrap())(request).await.unwrap();
                image.write(0, IoData::copy_of(&[7; 100_000])).await.unwrap();
                image.close().await.unwrap();
                output.finish().unwrap();
            };
            let reopen = async |dir: &Path| {
                for _ in 0..200 {
                    match open(&dir.join("disk"), &OpenOptions::default()).await {
                        Err(e) if e.kind == ErrorKind::Busy => {
                            std::thread::sleep(std::time::Duration::from_millis(10));
                        }
                        opened => return opened.unwrap().image,
                    }
                }
                panic!("it stays in use");
            };
            make(theirs.path()).await;
            make(ours.path()).await;
            monitor(theirs.path(), "savevm one", &[]);
            let image = reopen(theirs.path()).await;
            let list = image.snapshots().unwrap().list();
            let len = list[0].vm_state_size as usize;
            let state = read_state(&*image, "one", len).await;
            assert_eq!(&state[..4], b"QEVM");
            check(&*image).await;
            image.close().await.unwrap();
            drop(image);
            let image = reopen(ours.path()).await;
            write_state(&*image, &mut Random::new(1), &state).await;
            let two = Snapshot { name: "two".into(), ..list[0].clone() };
            image.snapshots().unwrap().create(&two).await.unwrap();
            image.write(0, IoData::copy_of(&[8; 5000])).await.unwrap();
            check(&*image).await;
            image.close().await.unwrap();
            drop(image);
            let img = |args: &[&str]| {
                let out = Command::new("qemu-img").args(args).current_dir(ours.path()).output().unwrap();
                let text = String::from_utf8_lossy(&out.stdout).into_owned();
                assert!(out.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
                text
            };
            img(&["check", "-q", "disk"]);
            let shown = img(&["snapshot", "-l", "disk"]);
            assert!(shown.contains("two") && shown.contains("KiB") | shown.contains("MiB"), "{shown}");
            img(&["convert", "-l", "two", "-O", "raw", "disk", "two.raw"]);
            assert!(std::fs::read(ours.path().join("two.raw")).unwrap()[..100_000] == [7; 100_000]);
            monitor(ours.path(), "info status", &["-loadvm", "two"]);
            monitor(ours.path(), "savevm three", &[]);
            img(&["check", "-q", "disk"]);
            let image = reopen(ours.path()).await;
            assert_eq!(&read_state(&*image, "three", 4).await, b"QEVM");
            check(&*image).await;
            image.snapshots().unwrap().delete("three").await.unwrap();
            check(&*image).await;
            image.close().await.unwrap();
        });
    }
}
