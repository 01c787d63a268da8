//! qcow2: power cuts and failures.

mod common;

use std::process::Command;
use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::qcow2::DRIVER;
use plinth_image::format::{
    CreateRequest, Format, Image, MemoryOutput, OpenOptions, OpenRequest, Options, Progress, Repair, Snapshot,
};
use plinth_image::fuzz::SECRET;
use plinth_image::graph::IoData;
use plinth_image::testing::{Cut, Cuts, Random, Shadow, SimOutput, Subject, Workload, World};

const SIZE: u64 = 4 << 20;

/// Options, the cluster that the work is made for, and bytes of the disk.
const VARIANTS: [(&str, u64, u64); 14] = [
    ("", 65536, SIZE),
    ("cluster_size=512", 512, 1 << 20),
    ("cluster_size=4k,refcount_bits=1", 4096, SIZE),
    ("cluster_size=512,refcount_bits=64", 512, 1 << 20),
    ("extended_l2=on", 2048, SIZE),
    ("extended_l2=on,cluster_size=16k", 16384, SIZE),
    ("lazy_refcounts=on,cluster_size=4k", 4096, SIZE),
    ("data_file=data", 65536, SIZE),
    ("data_file=data,data_file_raw=on,cluster_size=4k", 4096, SIZE),
    ("compat=0.10,cluster_size=4k", 4096, SIZE),
    ("cluster_size=2M,refcount_bits=8", 65536, 32 << 20),
    ("encrypt.format=luks,encrypt.iter-time=1,cluster_size=8k", 8192, SIZE),
    ("encrypt.format=aes,extended_l2=on,cluster_size=16k", 16384, SIZE),
    ("encrypt.format=aes,data_file=data", 65536, SIZE),
];

use common::long as is_long;

fn subject(options: &str, size: u64) -> Subject {
    Subject { secret: Some(SECRET.into()), ..common::subject(&DRIVER, options, size) }
}

/// QEMU's checker must call a cut clean, or find leaks at most; `None` if it is not here.
fn their_check(cut: &Cut) -> Option<Result<(), String>> {
    let dir = tempfile::tempdir().unwrap();
    for (name, memory) in &cut.files {
        memory.save(&dir.path().join(name)).unwrap();
    }
    let header = std::fs::read(dir.path().join("image")).unwrap();
    let mut command = Command::new("qemu-img");
    command.arg("check").current_dir(dir.path());
    match header[35] {
        0 => command.arg("image"),
        method => {
            let object = format!("secret,id=s,data={}", std::str::from_utf8(SECRET).unwrap());
            let method = if method == 1 { "aes" } else { "luks" };
            let image =
                format!("driver=qcow2,encrypt.format={method},encrypt.key-secret=s,file.filename=image");
            command.args(["--object", &object, "--image-opts", &image])
        }
    };
    let out = command.output().ok()?;
    Some(match out.status.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(format!("QEMU finds {}{}", text(&out.stdout), text(&out.stderr))),
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    for (options, cluster, size) in VARIANTS {
        let mut n = 0;
        common::crash_seen(&subject(options, size), cluster, |cut| {
            n += 1;
            // With lazy counts, it is right that they are wrong.
            if n % 8 != 0 || options.contains("lazy") {
                return Ok(false);
            }
            their_check(cut).map_or(Ok(false), |r| r.map(|()| true))
        });
    }
}

#[test]
fn power_cuts_around_snapshots_and_emptying_lose_nothing() {
    let (seeds, cuts) = if is_long() { (26, 80) } else { (2, 30) };
    for (options, cluster, size) in
        VARIANTS.into_iter().filter(|v| !v.0.contains("data_file") && !v.0.contains("bits=1"))
    {
        for seed in 1..=seeds {
            block_on(snapshots_and_cuts(options, cluster, size.min(2 << 20), seed, cuts, [""; 2])).unwrap();
        }
        println!("crash: qcow2 ({options}) with snapshots: {} cuts", seeds * cuts as u64);
    }
}

#[test]
fn power_cuts_around_changes_of_options_lose_nothing() {
    let (seeds, cuts) = if is_long() { (26, 80) } else { (2, 30) };
    let versions = ["compat=0.10", "compat=1.1"];
    for (options, cluster, changes) in [
        ("", 65536, versions),
        ("cluster_size=4k", 4096, versions),
        ("lazy_refcounts=on,cluster_size=4k", 4096, versions),
        ("cluster_size=4k", 4096, ["refcount_bits=64", "refcount_bits=8"]),
    ] {
        for seed in 1..=seeds {
            block_on(snapshots_and_cuts(options, cluster, 2 << 20, seed, cuts, changes)).unwrap();
        }
        println!("crash: qcow2 ({options}) with {changes:?}: {} cuts", seeds * cuts as u64);
    }
}

/// `changes`: options that are changed on the way, while there are snapshots.
async fn snapshots_and_cuts(
    options: &str,
    cluster: u64,
    size: u64,
    seed: u64,
    cuts: usize,
    changes: [&str; 2],
) -> Result<(), String> {
    let world = World::new(seed);
    let output = SimOutput { name: "image".to_owned(), world: world.clone(), count: Rc::default() };
    let parsed = Options::parse(options).unwrap();
    let request =
        CreateRequest { output: &output, size, options: &parsed, backing: None, secret: Some(SECRET) };
    let image = (DRIVER.create.unwrap())(request).await.unwrap();
    image.flush().await.unwrap();
    let begin = world.now();
    let shadow = Shadow::default();
    let template = Snapshot { name: "s".to_owned(), ..Snapshot::default() };
    let snapshots = image.snapshots().unwrap();
    for part in 0..8 {
        let work = Workload { cluster, ..Workload::new(seed * 100 + part, 30) };
        work.run(&*image, &shadow, &|| world.tick()).await?;
        let done = match part {
            5 | 7 if !changes[0].is_empty() => {
                let change = changes[usize::from(part == 7)];
                image.amend(&Options::parse(change).unwrap(), &Progress::default()).await
            }
            0 | 2 | 3 => snapshots.create(&template).await.map(drop),
            4 | 6 => shadow.empty(image.size(), &|| world.tick(), image.make_empty()).await,
            _ => snapshots.delete("s").await,
        };
        done.map_err(|e| e.to_string())?;
    }
    shadow.verify(&*image, None).await?;
    image.close().await.map_err(|e| e.to_string())?;
    let (records, names) = (world.records(), world.names());
    for (n, cut) in Cuts::new(&names, &records, begin, cuts, Random::new(seed ^ 77)).enumerate() {
        let at = cut.at;
        let failed = |e: String| format!("{options}, seed {seed}, cut {n} at {at}: {e}");
        let mut after = World::new(n as u64);
        (after.slow, after.record) = (false, false);
        for (name, memory) in cut.files {
            after.add(&name, memory);
        }
        let image = reopen(&after).await.map_err(failed)?;
        shadow.verify(&*image, Some(at)).await.map_err(failed)?;
        let report =
            image.check(Repair::No, &Progress::default()).await.map_err(|e| failed(e.to_string()))?;
        if !report.is_clean() {
            return Err(failed(format!("{report:?}")));
        }
        image.close().await.map_err(|e| failed(e.to_string()))?;
    }
    Ok(())
}

async fn reopen(world: &World) -> Result<Rc<dyn Image>, String> {
    let file = world.file("image").expect("there is an image");
    let secret = Some(SECRET.into());
    let options = OpenOptions { format: Some(Format::Qcow2), secret, ..OpenOptions::default() };
    let request = OpenRequest { file, links: Rc::new(world.clone()), options };
    (DRIVER.open)(request).await.map_err(|e| e.to_string())
}

/// Requests of snapshots' making and deleting fail, each once.
#[test]
fn failures_around_snapshots_harm_nothing() {
    let step = if is_long() { 1 } else { 13 };
    for (options, size) in [("cluster_size=4k", 1 << 20), ("cluster_size=512,compat=0.10", 1 << 18)] {
        let mut n = 0;
        loop {
            let done = block_on(async {
                let mut world = World::new(n);
                world.record = false;
                let output =
                    SimOutput { name: "image".to_owned(), world: world.clone(), count: Rc::default() };
                let parsed = Options::parse(options).unwrap();
                let request = CreateRequest {
                    output: &output,
                    size,
                    options: &parsed,
                    backing: None,
                    secret: Some(SECRET),
                };
                let image = (DRIVER.create.unwrap())(request).await.unwrap();
                let shadow = Shadow::default();
                let work = Workload { cluster: 4096, may_fail: true, ..Workload::new(5, 40) };
                work.run(&*image, &shadow, &|| world.tick()).await.unwrap();
                image.flush().await.unwrap();
                world.fail_after(Some(n));
                let template = Snapshot { name: "s".to_owned(), ..Snapshot::default() };
                let snapshots = image.snapshots().unwrap();
                let made = snapshots.create(&template).await.is_ok();
                work.run(&*image, &shadow, &|| world.tick()).await.unwrap();
                if made {
                    let _ = snapshots.delete("s").await;
                }
                let failed = world.failures() > 0;
                world.fail_after(None);
                shadow.verify(&*image, None).await.unwrap();
                image.close().await.unwrap();
                let image = reopen(&world).await.unwrap();
                shadow.verify(&*image, None).await.unwrap();
                let report = image.check(Repair::No, &Progress::default()).await.unwrap();
                assert!(report.is_clean(), "{options}, failure {n}: {report:?}");
                !failed
            });
            if done {
                break;
            }
            n += step;
        }
        assert!(n > 50, "{n}");
    }
}

/// Damage of all kinds is an error or is lived with, but never a panic.
#[test]
fn damaged_images_do_no_harm() {
    let rounds = if is_long() { 3000 } else { 100 };
    for (options, _, size) in VARIANTS.into_iter().filter(|v| !v.0.contains("data_file")) {
        let bytes = block_on(async {
            let output = MemoryOutput::new("image");
            let parsed = Options::parse(options).unwrap();
            let size = size.min(1 << 20);
            let request = CreateRequest {
                output: &output,
                size,
                options: &parsed,
                backing: None,
                secret: Some(SECRET),
            };
            let image = (DRIVER.create.unwrap())(request).await.unwrap();
            let work = Workload { cluster: 4096, ..Workload::new(9, 40) };
            work.run(&*image, &Shadow::default(), &|| 0).await.unwrap();
            let cluster = image.describe().cluster_size.unwrap() as usize;
            let data = IoData::copy_of(&vec![7; cluster.min(size as usize)]);
            let packed = image.write_compressed(0, data).unwrap().await;
            assert_eq!(packed.is_err(), options.contains("encrypt"));
            image.close().await.unwrap();
            output.file("image").unwrap().contents()
        });
        let mut random = Random::new(11);
        // The tables are near the start; most of the rest is data.
        let near = (bytes.len() as u64).min(1 << 19);
        for _ in 0..rounds {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(4) {
                let span = if random.one_in(2) { 120 } else { near };
                damaged[random.below(span) as usize] = random.number() as u8;
            }
            plinth_image::fuzz::fuzz_qcow2(&damaged);
        }
    }
}

#[test]
fn failures_leave_old_or_new_contents() {
    for (options, cluster, size) in VARIANTS {
        common::fault_of(&subject(options, size), cluster);
    }
}
