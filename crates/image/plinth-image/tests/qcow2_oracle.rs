//! qcow2 beside QEMU's own tools, both ways. Without `qemu-img` and `qemu-io` these tests say so and do nothing.

mod common;

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::qcow2::DRIVER;
use plinth_image::format::{
    BackingLink, CreateRequest, Format, Image, OpenOptions, Options, OutputFiles, Progress, Repair, Snapshot,
    open,
};
use plinth_image::graph::{Cache, IoBuf, IoData, Node};
use plinth_image::job::{self, Contents, Measured};
use plinth_image::testing::Random;

const SIZE: u64 = (3 << 20) + 512 * 3;

const VARIANTS: [&str; 12] = [
    "",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=1k,refcount_bits=64",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k,compression_type=zstd",
    "lazy_refcounts=on,cluster_size=4k",
    "compat=0.10,cluster_size=4k",
    "cluster_size=2M,refcount_bits=8",
    "compression_type=zstd,cluster_size=8k",
    "data_file=data.raw",
    "data_file=data.raw,data_file_raw=on,cluster_size=16k",
];

fn has_qemu() -> bool {
    ["qemu-img", "qemu-io"].into_iter().all(common::has)
}

fn run(dir: &Path, program: &str, args: &[&str]) -> String {
    for _ in 0..200 {
        let out = Command::new(program).args(args).current_dir(dir).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if out.status.success() {
            return text;
        }
        // As in `reopen`.
        assert!(text.contains("lock"), "{program} {args:?}: {text}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{program} {args:?}: the image stays in use");
}

fn img(dir: &Path, args: &[&str]) -> String {
    run(dir, "qemu-img", args)
}

fn io(dir: &Path, file: &str, commands: &[String]) {
    let mut args = vec!["-f", "qcow2"];
    for c in commands {
        args.extend(["-c", c]);
    }
    args.push(file);
    let out = Command::new("qemu-io").args(&args).current_dir(dir).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!text.contains("corrupt"), "{commands:?}: {text}");
    // They write compressed data to new clusters only.
    let may_fail = commands.iter().any(|c| c.contains(" -c "));
    assert!(may_fail || !text.contains("failed"), "{commands:?}: {text}");
}

async fn make(path: &Path, size: u64, options: &str, backing: Option<BackingLink>) -> Rc<dyn Image> {
    let output = OutputFiles::new(path, Cache::Cached).unwrap();
    let options = Options::parse(options).unwrap();
    options.check(DRIVER.options).unwrap();
    let request = CreateRequest {
        output: &output,
        size,
        options: &options,
        backing: backing.map(Into::into),
        secret: None,
    };
    (DRIVER.create.unwrap())(request).await.unwrap().close().await.unwrap();
    output.finish().unwrap();
    reopen(path).await
}

async fn reopen(path: &Path) -> Rc<dyn Image> {
    // A process that another test is just starting has our files, with their locks, for a moment.
    for _ in 0..200 {
        match open(path, &OpenOptions::default()).await {
            Err(e) if e.kind == plinth_image::ErrorKind::Busy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            opened => return opened.unwrap().image,
        }
    }
    panic!("{} stays in use", path.display());
}

async fn all(disk: &dyn Node) -> Vec<u8> {
    disk.read(0, IoBuf::new(disk.size() as usize)).await.unwrap().to_vec()
}

async fn check(image: &dyn Image) {
    let report = image.check(Repair::No, &Progress::default()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Random work on an open image, and what it should hold then. Discards leave whatever is read.
async fn work(image: &dyn Image, random: &mut Random, mut model: Vec<u8>, steps: usize) -> Vec<u8> {
    let cluster = image.describe().cluster_size.unwrap();
    let size = model.len() as u64;
    for step in 0..steps {
        let at = random.below(size / 512) * 512;
        let len = (1 + random.below(200)).min(random.below(400) + 1) * 512;
        let len = len.min(size - at);
        let (a, b) = (at as usize, (at + len) as usize);
        match random.below(10) {
            0..5 => {
                let mut data = IoBuf::new(len as usize);
                data.fill(step as u8 | 1);
                data[0] = random.number() as u8;
                model[a..b].copy_from_slice(&data);
                image.write(at, data.freeze()).await.unwrap();
            }
            5 => {
                let at = at / cluster * cluster;
                let len = cluster.min(size - at) as usize;
                let data = IoData::copy_of(&vec![step as u8; len]);
                match image.write_compressed(at, data.clone()).unwrap().await {
                    Ok(()) => model[at as usize..at as usize + len].copy_from_slice(&data),
                    Err(e) => assert_eq!(e.kind, plinth_image::ErrorKind::Unsupported),
                }
            }
            6 | 7 => {
                image.write_zeroes(at, len, random.one_in(2)).await.unwrap();
                model[a..b].fill(0);
            }
            8 => {
                image.discard(at, len).await.unwrap();
                let now = image.read(at, IoBuf::new(len as usize)).await.unwrap();
                assert!(now.iter().zip(&model[a..b]).all(|(&n, &o)| n == o || n == 0));
                model[a..b].copy_from_slice(&now);
            }
            _ => image.flush().await.unwrap(),
        }
    }
    assert!(all(image).await == model);
    model
}

/// The same kind of work by QEMU, but nothing compressed: QEMU 10.0.2 allocates clusters twice when it writes compressed
/// clusters among others, to images that only it has written too (one of eight such runs, whatever the cluster size).
fn their_work(dir: &Path, file: &str, random: &mut Random, size: u64) {
    let mut commands = Vec::new();
    for step in 0..40 {
        let at = random.below(size / 512) * 512;
        let len = ((1 + random.below(200)) * 512).min(size - at);
        commands.push(match random.below(8) {
            0..4 => format!("write -q -P {} {at} {len}", step + 1),
            4 | 5 => format!("write -q -z {at} {len}"),
            6 => format!("write -q -z -u {at} {len}"),
            _ => format!("discard -q {at} {len}"),
        });
    }
    io(dir, file, &commands);
}

/// What QEMU reads.
fn theirs(dir: &Path, file: &str) -> Vec<u8> {
    img(dir, &["convert", "-f", "qcow2", "-O", "raw", file, "out.raw"]);
    std::fs::read(dir.join("out.raw")).unwrap()
}

fn same(a: &[u8], b: &[u8], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differs = a.iter().zip(b).position(|(x, y)| x != y);
    assert_eq!(differs, None, "{what}");
}

#[test]
fn random_work_on_both_sides() {
    if !has_qemu() {
        return;
    }
    let rounds = if std::env::var_os("PLINTH_LONG").is_some() { 20 } else { 1 };
    for (n, options) in VARIANTS.iter().enumerate() {
        for seed in 0..rounds {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            let mut random = Random::new((n as u64 + 1) * 1000 + seed);
            for ours_first in [true, false] {
                let file = if ours_first { "ours.qcow2" } else { "theirs.qcow2" };
                let path = dir.join(file);
                block_on(async {
                    let image = if ours_first {
                        make(&path, SIZE, options, None).await
                    } else {
                        let data = dir.join("data.raw");
                        let _ = std::fs::remove_file(data);
                        let size = SIZE.to_string();
                        let mut args = vec!["create", "-q", "-f", "qcow2"];
                        if !options.is_empty() {
                            args.extend(["-o", options]);
                        }
                        args.extend([file, &size]);
                        img(dir, &args);
                        reopen(&path).await
                    };
                    image.close().await.unwrap();
                    drop(image);
                    let mut model = vec![0; SIZE as usize];
                    for round in 0..3 {
                        let image = reopen(&path).await;
                        check(&*image).await;
                        model = work(&*image, &mut random, model, 60).await;
                        image.close().await.unwrap();
                        drop(image);
                        img(dir, &["check", "-q", file]);
                        same(&theirs(dir, file), &model, &format!("{options} {file} {round}: they read"));
                        their_work(dir, file, &mut random, SIZE);
                        img(dir, &["check", "-q", file]);
                        let image = reopen(&path).await;
                        model = all(&*image).await;
                        check(&*image).await;
                        image.close().await.unwrap();
                        drop(image);
                        same(&theirs(dir, file), &model, &format!("{options} {file} {round}: we read"));
                    }
                    if !options.contains("data_file") {
                        let mut args = vec!["convert", "-c", "-f", "qcow2", "-O", "qcow2"];
                        if !options.is_empty() {
                            args.extend(["-o", options]);
                        }
                        args.extend([file, "packed.qcow2"]);
                        img(dir, &args);
                        let packed = reopen(&dir.join("packed.qcow2")).await;
                        same(&all(&*packed).await, &model, &format!("{options} {file}: they compress"));
                        packed.close().await.unwrap();
                    }
                });
            }
        }
    }
}

#[test]
fn snapshots_on_both_sides() {
    if !has_qemu() {
        return;
    }
    for options in
        ["", "cluster_size=512", "extended_l2=on", "compat=0.10,cluster_size=4k", "lazy_refcounts=on"]
    {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let path = dir.join("s.qcow2");
        block_on(async {
            let mut random = Random::new(7);
            let image = make(&path, SIZE, options, None).await;
            let take = |name: &str| Snapshot {
                name: name.to_owned(),
                date: (1_700_000_000, 5),
                vm_clock: 9,
                ..Snapshot::default()
            };
            let s = image.snapshots().unwrap();
            let one = work(&*image, &mut random, vec![0; SIZE as usize], 40).await;
            s.create(&take("one")).await.unwrap();
            let two = work(&*image, &mut random, one.clone(), 40).await;
            s.create(&take("two")).await.unwrap();
            check(&*image).await;
            let three = work(&*image, &mut random, two.clone(), 40).await;
            let view = s.view("one").await.unwrap();
            same(&all(&*view).await, &one, "view");
            assert_eq!(s.delete("one").await.unwrap_err().kind, plinth_image::ErrorKind::Busy);
            drop(view);
            check(&*image).await;
            image.close().await.unwrap();
            drop(image);
            img(dir, &["check", "-q", "s.qcow2"]);
            assert!(img(dir, &["snapshot", "-l", "s.qcow2"]).contains("two"));
            img(dir, &["convert", "-l", "one", "-O", "raw", "s.qcow2", "one.raw"]);
            same(&std::fs::read(dir.join("one.raw")).unwrap(), &one, "one");
            same(&theirs(dir, "s.qcow2"), &three, "three");
            // They go on, and so do we.
            img(dir, &["snapshot", "-c", "three", "s.qcow2"]);
            their_work(dir, "s.qcow2", &mut random, SIZE);
            img(dir, &["snapshot", "-a", "two", "s.qcow2"]);
            img(dir, &["snapshot", "-d", "one", "s.qcow2"]);
            let image = reopen(&path).await;
            check(&*image).await;
            let s = image.snapshots().unwrap();
            assert_eq!(s.list().iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["two", "three"]);
            same(&all(&*image).await, &two, "two");
            let after = work(&*image, &mut random, two.clone(), 30).await;
            same(&all(&*s.view("two").await.unwrap()).await, &two, "two again");
            s.apply("three").await.unwrap();
            same(&all(&*image).await, &three, "three again");
            check(&*image).await;
            assert_ne!(after, three);
            work(&*image, &mut random, three.clone(), 30).await;
            s.delete("two").await.unwrap();
            check(&*image).await;
            let last = work(&*image, &mut random, all(&*image).await, 30).await;
            image.close().await.unwrap();
            drop(image);
            img(dir, &["check", "-q", "s.qcow2"]);
            same(&theirs(dir, "s.qcow2"), &last, "last");
            img(dir, &["snapshot", "-d", "three", "s.qcow2"]);
            img(dir, &["check", "-q", "s.qcow2"]);
        });
    }
}

#[test]
fn images_over_others_sizes_and_options() {
    if !has_qemu() {
        return;
    }
    for options in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        block_on(async {
            let mut random = Random::new(3);
            let base = make(&dir.join("base.qcow2"), SIZE, "", None).await;
            let below = work(&*base, &mut random, vec![0; SIZE as usize], 60).await;
            base.close().await.unwrap();
            drop(base);
            // Longer than what is below.
            let link =
                BackingLink { name: "base.qcow2".to_owned(), format: Some(Format::Qcow2), identity: None };
            let size = SIZE + (1 << 20);
            let top = make(&dir.join("top.qcow2"), size, options, Some(link)).await;
            let mut model = below.clone();
            model.resize(size as usize, 0);
            model = work(&*top, &mut random, model, 60).await;
            // Shorter and longer again: what is below must not come back.
            top.resize(SIZE / 2 / 512 * 512).await.unwrap();
            check(&*top).await;
            top.resize(size + (4 << 20)).await.unwrap();
            model.truncate((SIZE / 2 / 512 * 512) as usize);
            model.resize((size + (4 << 20)) as usize, 0);
            same(&all(&*top).await, &model, options);
            model = work(&*top, &mut random, model, 40).await;
            check(&*top).await;
            top.close().await.unwrap();
            drop(top);
            img(dir, &["check", "-q", "top.qcow2"]);
            same(&theirs(dir, "top.qcow2"), &model, options);
            their_work(dir, "top.qcow2", &mut random, size);
            let top = reopen(&dir.join("top.qcow2")).await;
            check(&*top).await;
            same(&all(&*top).await, &theirs_shared(dir, "top.qcow2"), options);
            let amended = if options.contains("0.10") {
                "compat=1.1,refcount_bits=32"
            } else {
                "refcount_bits=64,lazy_refcounts=on"
            };
            top.amend(&Options::parse(amended).unwrap(), &Progress::default()).await.unwrap();
            model = work(&*top, &mut random, all(&*top).await, 30).await;
            check(&*top).await;
            top.close().await.unwrap();
            drop(top);
            img(dir, &["check", "-q", "top.qcow2"]);
            same(&theirs(dir, "top.qcow2"), &model, options);
            let top = reopen(&dir.join("top.qcow2")).await;
            if !options.contains("extended") {
                let down = Options::parse("compat=0.10,refcount_bits=16,lazy_refcounts=off").unwrap();
                top.amend(&down, &Progress::default()).await.unwrap();
                same(&all(&*top).await, &model, "version 2");
            }
            check(&*top).await;
            top.set_backing(None).await.unwrap();
            top.close().await.unwrap();
            drop(top);
            img(dir, &["check", "-q", "top.qcow2"]);
            assert!(!img(dir, &["info", "top.qcow2"]).contains("backing file"));
        });
    }
}

fn theirs_shared(dir: &Path, file: &str) -> Vec<u8> {
    img(dir, &["convert", "-U", "-f", "qcow2", "-O", "raw", file, "out.raw"]);
    std::fs::read(dir.join("out.raw")).unwrap()
}

#[test]
fn bitmaps_on_both_sides() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("b.qcow2");
    let size = 64u64 << 20;
    block_on(async {
        let image = make(&path, size, "cluster_size=4k", None).await;
        let b = image.bitmaps().unwrap();
        b.add("a", None, true).await.unwrap();
        b.add("off", Some(512), false).await.unwrap();
        image.write(1 << 20, IoData::copy_of(&[1; 5000])).await.unwrap();
        image.write_zeroes(40 << 20, 4096, true).await.unwrap();
        let want = vec![(1 << 20, 8192), (40 << 20, 4096)];
        assert_eq!(b.ranges("a").await.unwrap(), want);
        b.set("off", &[(512, 1024), (1 << 20, 512)]).await.unwrap();
        check(&*image).await;
        image.close().await.unwrap();
        drop(image);
        img(dir, &["check", "-q", "b.qcow2"]);
        assert!(img(dir, &["info", "b.qcow2"]).contains("name: off"));
        img(dir, &["bitmap", "--add", "-g", "4096", "b.qcow2", "theirs"]);
        img(dir, &["bitmap", "--merge", "a", "b.qcow2", "theirs"]);
        io(dir, "b.qcow2", &["write -q 8M 4k".to_owned()]);
        let image = reopen(&path).await;
        let b = image.bitmaps().unwrap();
        let mut more = want.clone();
        more.insert(1, (8 << 20, 4096));
        assert_eq!(b.ranges("theirs").await.unwrap(), more);
        assert_eq!(b.ranges("a").await.unwrap(), more);
        assert_eq!(b.ranges("off").await.unwrap(), [(512, 1024), (1 << 20, 512)]);
        check(&*image).await;
        // A crash makes those mean nothing that were enabled.
        image.write(0, IoData::copy_of(&[9; 512])).await.unwrap();
        image.flush().await.unwrap();
        drop(image);
        let image = reopen(&path).await;
        let b = image.bitmaps().unwrap();
        assert!(b.list().iter().all(|b| b.in_use == (b.name != "off")), "{:?}", b.list());
        check(&*image).await;
        b.remove("a").await.unwrap();
        b.remove("theirs").await.unwrap();
        b.clear("off").await.unwrap();
        b.enable("off", true).await.unwrap();
        image.resize(size * 2).await.unwrap();
        image.write(size, IoData::copy_of(&[9; 512])).await.unwrap();
        image.close().await.unwrap();
        drop(image);
        img(dir, &["check", "-q", "b.qcow2"]);
        let image = reopen(&path).await;
        assert_eq!(image.bitmaps().unwrap().ranges("off").await.unwrap(), [(size, 512)]);
        image.bitmaps().unwrap().remove("off").await.unwrap();
        check(&*image).await;
        image.close().await.unwrap();
        drop(image);
        img(dir, &["check", "-q", "b.qcow2"]);
    });
}

#[test]
fn preallocation_and_measures() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for options in [
        "preallocation=metadata",
        "preallocation=falloc,cluster_size=4k",
        "preallocation=full",
        "extended_l2=on,preallocation=metadata",
    ] {
        block_on(async {
            let path = dir.join("p.qcow2");
            let image = make(&path, 20 << 20, options, None).await;
            check(&*image).await;
            image.write(5 << 20, IoData::copy_of(&[3; 70000])).await.unwrap();
            image.close().await.unwrap();
            drop(image);
            img(dir, &["check", "-q", "p.qcow2"]);
            let map = img(dir, &["map", "--output=json", "p.qcow2"]);
            assert!(!map.contains("\"present\": false"), "{map}");
        });
    }
    let object = "secret,id=s,data=pw";
    let ask = |more: &[&str], options: &str| -> Measured {
        let mut args = vec!["measure", "--output=json", "--object", object, "-O", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend(more);
        let json: serde_json::Value = serde_json::from_str(&img(dir, &args)).unwrap();
        let field = |name: &str| json[name].as_u64().unwrap();
        Measured { required: field("required"), fully_allocated: field("fully-allocated") }
    };
    // A disk with data in odd places, over another one and alone.
    let link = BackingLink { name: "base".to_owned(), format: Some(Format::Qcow2), identity: None };
    let source = block_on(async {
        for (name, link) in [("base", None), ("source", Some(link))] {
            let image = make(&dir.join(name), 20 << 20, "cluster_size=4k", link).await;
            let shift = if name == "base" { 512 } else { 3 << 20 };
            for n in 0..20u64 {
                image
                    .write(shift + n * 700_000, IoData::copy_of(&vec![3; 5000 + 4000 * n as usize]))
                    .await
                    .unwrap();
            }
            image.write_zeroes(shift + (1 << 20), 2 << 20, true).await.unwrap();
            image.close().await.unwrap();
        }
        let read = OpenOptions { read_only: true, ..OpenOptions::default() };
        open(&dir.join("source"), &read).await.unwrap().image
    });
    for options in [
        "",
        "cluster_size=512",
        "cluster_size=2M,refcount_bits=1",
        "refcount_bits=64",
        "extended_l2=on",
        "preallocation=full",
        "preallocation=metadata",
        "compat=0.10",
        "data_file=x",
        "data_file=x,data_file_raw=on",
        "encrypt.format=luks,encrypt.key-secret=s",
        "encrypt.format=luks,encrypt.key-secret=s,cluster_size=4k,encrypt.cipher-alg=aes-128",
        "encrypt.format=aes,encrypt.key-secret=s",
    ] {
        let parsed = Options::parse(options).unwrap();
        let ours = |contents| block_on(job::measure(Format::Qcow2, &parsed, contents)).unwrap();
        for (size, bytes) in [("1G", 1 << 30), ("20G", 20 << 30), ("1536", 1536)] {
            let theirs = ask(&["--size", size], options);
            assert_eq!(ours(Contents::Size(bytes)), theirs, "{options} {size}");
        }
        let theirs = ask(&["-f", "qcow2", "source"], options);
        assert_eq!(ours(Contents::Disk(&*source)), theirs, "{options} of a disk");
    }
}

/// The disk as it was at a snapshot.
async fn at_snapshot(image: &dyn Image, name: &str) -> Vec<u8> {
    let view = image.snapshots().unwrap().view(name).await.unwrap();
    view.read(0, IoBuf::new(view.size() as usize)).await.unwrap().to_vec()
}

/// Over another image, notes of zeros in snapshots become data: what is below must not come to light.
#[test]
fn version_2_over_another_image() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    block_on(async {
        let base = make(&dir.join("b"), SIZE, "", None).await;
        base.write(0, IoData::copy_of(&vec![9; SIZE as usize])).await.unwrap();
        base.close().await.unwrap();
        drop(base);
        img(dir, &["create", "-q", "-f", "qcow2", "-b", "b", "-F", "qcow2", "-o", "cluster_size=4k", "d"]);
        let image = open(&dir.join("d"), &OpenOptions::default()).await.unwrap().image;
        image.write(0, IoData::copy_of(&[1; 64 << 10])).await.unwrap();
        image.write_zeroes(8 << 10, 8 << 10, false).await.unwrap();
        image.write_zeroes(128 << 10, 256 << 10, true).await.unwrap();
        for name in ["s", "t"] {
            let new = Snapshot { name: name.to_owned(), ..Snapshot::default() };
            image.snapshots().unwrap().create(&new).await.unwrap();
        }
        image.write(200 << 10, IoData::copy_of(&[3; 2 << 10])).await.unwrap();
        image.write_zeroes(32 << 10, 8 << 10, false).await.unwrap();
        let (want, before) = (all(&*image).await, at_snapshot(&*image, "s").await);
        image.amend(&Options::parse("compat=0.10").unwrap(), &Progress::default()).await.unwrap();
        check(&*image).await;
        assert!(all(&*image).await == want);
        assert!(at_snapshot(&*image, "s").await == before && at_snapshot(&*image, "t").await == before);
        image.snapshots().unwrap().delete("s").await.unwrap();
        check(&*image).await;
        image.close().await.unwrap();
        drop(image);
        img(dir, &["check", "d"]);
        same(&theirs_shared(dir, "d"), &want, "version 2");
        img(dir, &["snapshot", "-a", "t", "d"]);
        same(&theirs_shared(dir, "d"), &before, "version 2 at the snapshot");
    });
}

#[test]
fn versions_of_images_with_snapshots_change() {
    if !has_qemu() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    block_on(async {
        let image = make(&dir.join("d"), SIZE, "cluster_size=4k", None).await;
        image.write(0, IoData::copy_of(&[1; 100 << 10])).await.unwrap();
        let template = Snapshot { name: "s".to_owned(), ..Snapshot::default() };
        image.snapshots().unwrap().create(&template).await.unwrap();
        // What is noted since then is written out.
        image.write(0, IoData::copy_of(&[2; 8 << 10])).await.unwrap();
        image.write_zeroes(8 << 10, 16 << 10, false).await.unwrap();
        let want = all(&*image).await;
        for (compat, version) in [("compat=0.10", "0.10"), ("compat=1.1", "1.1")] {
            image.amend(&Options::parse(compat).unwrap(), &Progress::default()).await.unwrap();
            assert!(all(&*image).await == want);
            check(&*image).await;
            image.flush().await.unwrap();
            img(dir, &["check", "-U", "d"]);
            assert!(img(dir, &["info", "-U", "d"]).contains(&format!("compat: {version}")));
            same(&theirs_shared(dir, "d"), &want, compat);
        }
        // Notes of zeros that a snapshot has are written out too: those that it shares with the disk, those that it has
        // alone, and those over a place in the file.
        image.write_zeroes(0, 4 << 10, false).await.unwrap();
        image.write_zeroes(40 << 10, 8 << 10, true).await.unwrap();
        image.snapshots().unwrap().create(&Snapshot { name: "t".to_owned(), ..template }).await.unwrap();
        image.write(0, IoData::copy_of(&[3; 2 << 10])).await.unwrap();
        let (want, before) = (all(&*image).await, at_snapshot(&*image, "t").await);
        let progress = Progress::default();
        image.amend(&Options::parse("compat=0.10").unwrap(), &progress).await.unwrap();
        assert!(progress.total.get() > 0 && progress.done.get() == progress.total.get());
        assert!(all(&*image).await == want && at_snapshot(&*image, "t").await == before);
        check(&*image).await;
        image.flush().await.unwrap();
        img(dir, &["check", "-U", "d"]);
        image.snapshots().unwrap().delete("t").await.unwrap();
        check(&*image).await;
        image.close().await.unwrap();
        drop(image);
        assert!(img(dir, &["snapshot", "-l", "d"]).contains('s'));
        img(dir, &["check", "d"]);
    });
}
