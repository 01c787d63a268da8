//! Encrypted qcow2 images, beside QEMU's own tools where they are installed.

mod common;

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::qcow2::DRIVER;
use plinth_image::format::{
    Backing, BackingLink, CreateRequest, Format, Image, OpenOptions, Options, OutputFiles, Progress, Repair,
    Snapshot, open,
};
use plinth_image::graph::{Cache, IoBuf, IoData, Node};
use plinth_image::testing::Random;
use plinth_image::{Error, ErrorKind};

const SIZE: u64 = (3 << 20) + 512 * 3;
const SECRET: &[u8] = b"a good passphrase";

const VARIANTS: [&str; 10] = [
    "encrypt.format=luks",
    "encrypt.format=luks,cluster_size=512",
    "encrypt.format=luks,cluster_size=4k,refcount_bits=1,encrypt.cipher-alg=aes-128,encrypt.hash-alg=sha512",
    "encrypt.format=luks,extended_l2=on,encrypt.cipher-alg=serpent-256",
    "encrypt.format=luks,lazy_refcounts=on,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
    "encrypt.format=luks,data_file=data",
    "encrypt.format=luks,compat=0.10,cluster_size=2M",
    "encrypt.format=aes",
    "encrypt.format=aes,extended_l2=on,cluster_size=16k",
    "encrypt.format=aes,compat=0.10,cluster_size=4k",
];

/// With little to do for a try of a passphrase.
fn quick(options: &str) -> String {
    let more = if options.contains("luks") { ",encrypt.iter-time=10" } else { "" };
    format!("{options}{more}")
}

fn has_qemu() -> bool {
    ["qemu-img", "qemu-io"].into_iter().all(common::has)
}

/// Runs a program of QEMU's; `$` stands for the image with its passphrase.
fn run(dir: &Path, program: &str, file: &str, method: &str, args: &[&str]) -> String {
    let object = format!("secret,id=s,data={}", std::str::from_utf8(SECRET).unwrap());
    let opts = format!(
        "driver=qcow2,encrypt.format={method},encrypt.key-secret=s,file.filename={file},discard=unmap"
    );
    let args: Vec<&str> = args.iter().map(|&a| if a == "$" { opts.as_str() } else { a }).collect();
    for _ in 0..200 {
        let mut command = Command::new(program);
        command.current_dir(dir);
        if program == "qemu-img" {
            command.arg(args[0]).args(["--object", &object]).args(&args[1..]);
        } else {
            command.args(["--object", &object]).args(&args);
        }
        let out = command.output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if out.status.success() && !text.contains("failed") {
            return text;
        }
        // A process that another test is just starting has our files, with their locks, for a moment.
        assert!(text.contains("lock"), "{program} {args:?}: {text}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{program} {args:?}: the image stays in use");
}

fn method(options: &str) -> &'static str {
    if options.contains("=luks") { "luks" } else { "aes" }
}

async fn make(
    path: &Path,
    size: u64,
    options: &str,
    backing: Option<Backing>,
    secret: Option<&[u8]>,
) -> Result<(), Error> {
    let output = OutputFiles::new(path, Cache::Cached)?;
    let options = Options::parse(options)?;
    options.check(DRIVER.options)?;
    let request = CreateRequest { output: &output, size, options: &options, backing, secret };
    let image = (DRIVER.create.unwrap())(request).await?;
    // It can be used at once.
    image.write(1000, IoData::copy_of(&[1; 700])).await?;
    let now = image.read(990, IoBuf::new(720)).await?;
    assert!(now[10..710] == [1; 700] && now[..10] == [0; 10] && now[710..] == [0; 10]);
    image.write_zeroes(1000, 700, true).await?;
    image.close().await?;
    output.finish()
}

async fn open_with(path: &Path, secret: Option<&[u8]>) -> Result<Rc<dyn Image>, Error> {
    let options = OpenOptions { secret: secret.map(Into::into), ..OpenOptions::default() };
    loop {
        match open(path, &options).await {
            Err(e) if e.kind == ErrorKind::Busy => std::thread::sleep(std::time::Duration::from_millis(10)),
            opened => return Ok(opened?.image),
        }
    }
}

async fn reopen(path: &Path) -> Rc<dyn Image> {
    open_with(path, Some(SECRET)).await.unwrap()
}

async fn all(disk: &dyn Node) -> Vec<u8> {
    disk.read(0, IoBuf::new(disk.size() as usize)).await.unwrap().to_vec()
}

fn same(a: &[u8], b: &[u8], what: &str) {
    let differs = a.iter().zip(b).position(|(x, y)| x != y);
    assert_eq!((a.len(), differs), (b.len(), None), "{what}");
}

async fn check(image: &dyn Image) {
    let report = image.check(Repair::No, &Progress::default()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Random work, parts of sectors among it, and what the disk should hold then.
async fn work(image: &dyn Image, random: &mut Random, mut model: Vec<u8>, steps: usize) -> Vec<u8> {
    let size = model.len() as u64;
    for step in 0..steps {
        let (mut at, mut len) = (random.below(size / 512) * 512, (1 + random.below(200)) * 512);
        if random.one_in(3) {
            (at, len) = (random.below(size), 1 + random.below(5000));
        }
        let len = len.min(size - at);
        let (a, b) = (at as usize, (at + len) as usize);
        match random.below(9) {
            0..6 => {
                model[a..b].iter_mut().enumerate().for_each(|(n, x)| *x = (step * 3 + n) as u8 | 1);
                image.write(at, IoData::copy_of(&model[a..b])).await.unwrap();
            }
            6 | 7 => {
                image.write_zeroes(at, len, random.one_in(2)).await.unwrap();
                model[a..b].fill(0);
            }
            _ => image.flush().await.unwrap(),
        }
    }
    same(&all(image).await, &model, "after the work");
    model
}

fn theirs(dir: &Path, file: &str, method: &str) -> Vec<u8> {
    run(dir, "qemu-img", file, method, &["convert", "--image-opts", "$", "-O", "raw", "out.raw"]);
    std::fs::read(dir.join("out.raw")).unwrap()
}

fn their_check(dir: &Path, file: &str, method: &str) {
    run(dir, "qemu-img", file, method, &["check", "-q", "--image-opts", "$"]);
}

fn their_work(dir: &Path, file: &str, method: &str, random: &mut Random) {
    let mut commands = Vec::new();
    for step in 0..25 {
        let at = random.below(SIZE / 512) * 512;
        let len = ((1 + random.below(200)) * 512).min(SIZE - at);
        commands.push(match random.below(6) {
            0..4 => format!("write -q -P {} {at} {len}", step + 1),
            4 => format!("write -q -z {at} {len}"),
            _ => format!("discard -q {at} {len}"),
        });
    }
    let mut args = vec!["--image-opts", "$"];
    commands.iter().for_each(|c| args.extend(["-c", c.as_str()]));
    run(dir, "qemu-io", file, method, &args);
}

#[test]
fn both_sides_read_and_write_encrypted_images() {
    let qemu = has_qemu();
    for (n, options) in VARIANTS.iter().enumerate() {
        let (dir, method) = (tempfile::tempdir().unwrap(), method(options));
        let dir = dir.path();
        let mut random = Random::new(n as u64 + 50);
        for ours_first in [true, false] {
            let file = if ours_first { "ours" } else { "theirs" };
            let path = dir.join(file);
            block_on(async {
                if ours_first {
                    make(&path, SIZE, &quick(options), None, Some(SECRET)).await.unwrap();
                } else if qemu {
                    let _ = std::fs::remove_file(dir.join("data"));
                    let options = format!("{},encrypt.key-secret=s", quick(options));
                    let size = SIZE.to_string();
                    let args = ["create", "-q", "-f", "qcow2", "-o", &options, file, &size];
                    run(dir, "qemu-img", file, method, &args);
                } else {
                    return;
                }
                let mut model = vec![0; SIZE as usize];
                for round in 0..if std::env::var_os("PLINTH_LONG").is_some() { 6 } else { 1 } {
                    let what = format!("{options}, {file}, round {round}");
                    let image = reopen(&path).await;
                    model = work(&*image, &mut random, model, 40).await;
                    check(&*image).await;
                    image.close().await.unwrap();
                    drop(image);
                    let image = reopen(&path).await;
                    same(&all(&*image).await, &model, &what);
                    image.close().await.unwrap();
                    drop(image);
                    if qemu {
                        their_check(dir, file, method);
                        same(&theirs(dir, file, method), &model, &format!("{what}: they read"));
                        their_work(dir, file, method, &mut random);
                        their_check(dir, file, method);
                        let image = reopen(&path).await;
                        model = all(&*image).await;
                        check(&*image).await;
                        drop(image);
                        same(&theirs(dir, file, method), &model, &format!("{what}: we read"));
                    }
                }
            });
        }
        // Nothing of what was written is in the files.
        let data = if options.contains("data_file") { "data" } else { "ours" };
        let bytes = std::fs::read(dir.join(data)).unwrap();
        assert!(
            !bytes.windows(512).any(|w| w.windows(2).take(300).all(|p| p[1] == p[0].wrapping_add(1) | 1))
        );
    }
}

#[test]
fn snapshots_resizing_and_images_below_are_encrypted_too() {
    let qemu = has_qemu();
    for options in
        ["encrypt.format=luks", "encrypt.format=aes,cluster_size=4k", "encrypt.format=luks,extended_l2=on"]
    {
        let (dir, method) = (tempfile::tempdir().unwrap(), method(options));
        let dir = dir.path();
        block_on(async {
            let mut random = Random::new(9);
            let base = dir.join("base");
            make(&base, SIZE, &quick("encrypt.format=luks"), None, Some(SECRET)).await.unwrap();
            let below = reopen(&base).await;
            let base_model = work(&*below, &mut random, vec![0; SIZE as usize], 30).await;
            below.close().await.unwrap();
            drop(below);
            let path = dir.join("top");
            let link = BackingLink { name: "base".to_owned(), format: Some(Format::Qcow2), identity: None };
            let read = OpenOptions { read_only: true, secret: Some(SECRET.into()), ..OpenOptions::default() };
            let node: Rc<dyn Image> = open(&base, &read).await.unwrap().image;
            let backing = Backing { link, node: Some(node) };
            let output = OutputFiles::new(&path, Cache::Cached).unwrap();
            let parsed = Options::parse(&quick(options)).unwrap();
            let request = CreateRequest {
                output: &output,
                size: SIZE,
                options: &parsed,
                backing: Some(backing),
                secret: Some(SECRET),
            };
            let image = (DRIVER.create.unwrap())(request).await.unwrap();
            let one = work(&*image, &mut random, base_model, 30).await;
            image.close().await.unwrap();
            drop(image);
            output.finish().unwrap();
            let image = reopen(&path).await;
            let s = image.snapshots().unwrap();
            let template = Snapshot {
                name: "one".to_owned(),
                date: (1_700_000_000, 5),
                vm_clock: 9,
                ..Snapshot::default()
            };
            s.create(&template).await.unwrap();
            let two = work(&*image, &mut random, one.clone(), 30).await;
            same(&all(&*s.view("one").await.unwrap()).await, &one, "view");
            image.resize(SIZE + (1 << 20)).await.unwrap();
            image.resize(SIZE).await.unwrap();
            check(&*image).await;
            same(&all(&*image).await, &two, "two");
            image.close().await.unwrap();
            drop(image);
            if qemu {
                // Images below have secrets of their own there.
                let object = format!("secret,id=s,data={}", std::str::from_utf8(SECRET).unwrap());
                let top = format!(
                    "driver=qcow2,encrypt.format={method},encrypt.key-secret=s,file.filename=top,backing.driver=qcow2,\
                     backing.encrypt.format=luks,backing.encrypt.key-secret=s,backing.file.filename=base"
                );
                for (snapshot, want) in [(None, &two), (Some("one"), &one)] {
                    let mut args = vec!["convert", "--object", &object, "--image-opts", "-O", "raw"];
                    args.extend(snapshot.iter().flat_map(|s| ["-l", s]));
                    args.extend([top.as_str(), "out.raw"]);
                    let out = Command::new("qemu-img").args(&args).current_dir(dir).output().unwrap();
                    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                    same(&std::fs::read(dir.join("out.raw")).unwrap(), want, "they read");
                }
            }
            let image = reopen(&path).await;
            image.snapshots().unwrap().apply("one").await.unwrap();
            same(&all(&*image).await, &one, "one again");
            let last = work(&*image, &mut random, one, 20).await;
            check(&*image).await;
            image.close().await.unwrap();
            drop(image);
            same(&all(&*reopen(&path).await).await, &last, "last");
        });
    }
}

#[test]
fn without_the_passphrase_it_is_described_and_checked_but_not_read() {
    for options in ["encrypt.format=luks", "encrypt.format=aes"] {
        let (dir, method) = (tempfile::tempdir().unwrap(), method(options));
        let dir = dir.path();
        let path = dir.join("disk");
        block_on(async {
            let refused = make(&path, SIZE, &quick(options), None, None).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Key, "{refused}");
            for wrong in ["data_file=d,data_file_raw=on", "compat=0.10,preallocation=metadata"] {
                let wrong = format!("{options},{wrong}");
                let refused = make(&path, SIZE, &wrong, None, Some(SECRET)).await.unwrap_err();
                assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
            }
            make(&path, SIZE, &quick(options), None, Some(SECRET)).await.unwrap();
            let image = open_with(&path, None).await.unwrap();
            let described = image.describe();
            assert!(described.encrypted);
            check(&*image).await;
            image.status(0, SIZE).await.unwrap();
            let read = image.read(0, IoBuf::new(512)).await.unwrap_err();
            assert!(read.kind == ErrorKind::Key && read.to_string().contains("passphrase"), "{read}");
            let write = image.write(0, IoData::copy_of(&[1; 512])).await.unwrap_err();
            assert_eq!(write.kind, ErrorKind::Key);
            assert_eq!(image.write_zeroes(0, 512, true).await.unwrap_err().kind, ErrorKind::Key);
            image.close().await.unwrap();
            drop(image);
            let image = reopen(&path).await;
            let packed = image.write_compressed(0, IoData::copy_of(&[1; 65536])).unwrap().await;
            assert_eq!(packed.unwrap_err().kind, ErrorKind::Unsupported);
            let refused = image
                .amend(&Options::parse("encrypt.format=luks").unwrap(), &Progress::default())
                .await
                .unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Unsupported);
            image.close().await.unwrap();
            drop(image);
            if method == "luks" {
                let wrong = open_with(&path, Some(b"a bad passphrase")).await.err().unwrap();
                assert_eq!(wrong.kind, ErrorKind::Key, "{wrong}");
            }
            if has_qemu() {
                let args = ["info", "--output=json", "disk"];
                let info: serde_json::Value =
                    serde_json::from_str(&run(dir, "qemu-img", "disk", method, &args)).unwrap();
                assert_eq!(info["encrypted"], true);
                let theirs = &info["format-specific"]["data"]["encrypt"];
                assert_eq!(theirs, &described.details["encrypt"]);
            }
        });
    }
}

/// Reserved space is noise, and must not be read as such.
#[test]
fn reserved_space_reads_as_zeros() {
    let qemu = has_qemu();
    for how in ["metadata", "falloc", "full", "metadata,extended_l2=on"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        block_on(async {
            let path = dir.join("disk");
            let options = quick(&format!("encrypt.format=luks,preallocation={how}"));
            make(&path, SIZE, &options, None, Some(SECRET)).await.unwrap();
            let image = reopen(&path).await;
            let mut model = vec![0; SIZE as usize];
            same(&all(&*image).await, &model, how);
            image.write(1_000_100, IoData::copy_of(&[7; 300])).await.unwrap();
            model[1_000_100..1_000_400].fill(7);
            same(&all(&*image).await, &model, how);
            check(&*image).await;
            image.close().await.unwrap();
            drop(image);
            if qemu {
                their_check(dir, "disk", "luks");
                same(&theirs(dir, "disk", "luks"), &model, how);
            }
        });
    }
}

#[test]
fn passphrases_are_added_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.qcow2");
    block_on(async {
        make(&path, 1 << 20, &quick("encrypt.format=luks"), None, Some(SECRET)).await.unwrap();
        let image = reopen(&path).await;
        image.write(5000, IoData::copy_of(&[7; 9000])).await.unwrap();
        let amend = async |o: &str| {
            image.amend(&Options::parse(o).unwrap(), &Progress::default()).await.map_err(|e| e.kind)
        };
        // The last one stays.
        let last = Err(ErrorKind::Invalid);
        assert_eq!(amend("encrypt.state=inactive,encrypt.keyslot=0").await, last);
        let old =
            format!("encrypt.state=inactive,encrypt.old-secret={}", std::str::from_utf8(SECRET).unwrap());
        assert_eq!(amend(&old).await, last);
        let add = "encrypt.state=active,encrypt.iter-time=1,encrypt.new-secret";
        amend(&format!("{add}=second")).await.unwrap();
        amend(&format!("{add}=third,encrypt.keyslot=5")).await.unwrap();
        assert_eq!(amend(&format!("{add}=x,encrypt.keyslot=5")).await, last);
        assert_eq!(amend("encrypt.state=inactive,encrypt.old-secret=x").await, Err(ErrorKind::Key));
        amend(&old).await.unwrap();
        // In place of another one, also where that is the only one.
        amend(&format!("{add}=fourth,encrypt.keyslot=5,encrypt.force=on")).await.unwrap();
        amend("encrypt.state=inactive,encrypt.old-secret=second").await.unwrap();
        amend(&format!("{add}=fifth,encrypt.keyslot=5,encrypt.force=on,lazy_refcounts=on")).await.unwrap();
        check(&*image).await;
        image.close().await.unwrap();
        drop(image);
        for wrong in [SECRET, b"second", b"third", b"fourth"] {
            assert_eq!(open_with(&path, Some(wrong)).await.err().map(|e| e.kind), Some(ErrorKind::Key));
        }
        let image = open_with(&path, Some(b"fifth")).await.unwrap();
        let bytes = image.read(5000, IoBuf::new(9000)).await.unwrap();
        assert!(bytes[..] == [7; 9000]);
        image.close().await.unwrap();
        drop(image);
        // Without a passphrase there is no key to put anywhere.
        let locked = open_with(&path, None).await.unwrap();
        let add = Options::parse(&format!("{add}=x")).unwrap();
        assert_eq!(locked.amend(&add, &Progress::default()).await.map_err(|e| e.kind), Err(ErrorKind::Key));
        // On demand the last one goes, and all data with it.
        drop(locked);
        let image = open_with(&path, Some(b"fifth")).await.unwrap();
        let gone = "encrypt.state=inactive,encrypt.keyslot=5,encrypt.force=on";
        image.amend(&Options::parse(gone).unwrap(), &Progress::default()).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        assert!(open_with(&path, Some(b"fifth")).await.is_err());
    });
    if has_qemu() {
        block_on(async {
            make(&path, 1 << 20, &quick("encrypt.format=luks"), None, Some(b"one")).await.unwrap();
            let image = open_with(&path, Some(b"one")).await.unwrap();
            image.write(5000, IoData::copy_of(&[7; 9000])).await.unwrap();
            let secret = std::str::from_utf8(SECRET).unwrap();
            for o in [
                format!("encrypt.state=active,encrypt.iter-time=1,encrypt.new-secret={secret}"),
                "encrypt.state=inactive,encrypt.keyslot=0".to_owned(),
            ] {
                image.amend(&Options::parse(&o).unwrap(), &Progress::default()).await.unwrap();
            }
            image.close().await.unwrap();
        });
        let out = run(
            dir.path(),
            "qemu-io",
            "keys.qcow2",
            "luks",
            &["--image-opts", "$", "-c", "read -P 7 5000 9000"],
        );
        assert!(!out.contains("Pattern"), "{out}");
    }
}
