//! What the tests of several formats share.
#![allow(dead_code, reason = "not every test file needs all of it")]

use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use plinth_host::aio::block_on;
use plinth_image::format::{
    BackingLink, CreateRequest, Driver, Image, OpenOptions, OpenRequest, Opened, Options, Output,
    OutputFiles, Progress, Repair, open,
};
use plinth_image::graph::{Cache, IoBuf, IoData, MemoryNode, Node};
use plinth_image::testing::{
    CrashTest, Cut, Cuts, FaultCount, FaultTest, Faults, Random, Shadow, SimOutput, Subject, Workload, World,
};
use plinth_image::{Error, SECTOR};

/// True in the long run.
pub fn long() -> bool {
    std::env::var_os("PLINTH_LONG").is_some()
}

/// What is tested, without a passphrase.
pub fn subject(driver: &'static Driver, options: &str, size: u64) -> Subject {
    Subject { driver, options: options.to_owned(), size, secret: None }
}

/// Power cuts for one format and one set of options.
pub fn crash(driver: &'static Driver, options: &str, size: u64, cluster: u64) {
    crash_seen(&subject(driver, options, size), cluster, |_| Ok(false));
}

/// As [`crash`]; `look` sees the files before they are opened, and tells if the peer's checker has judged them.
pub fn crash_seen(subject: &Subject, cluster: u64, mut look: impl FnMut(&Cut) -> Result<bool, String>) {
    let (seeds, cuts) = if long() { (26, 80) } else { (3, 12) };
    let begin = Instant::now();
    let mut seen = 0;
    for seed in 1..=seeds {
        let test = CrashTest {
            subject: subject.clone(),
            work: Workload { cluster, ..Workload::new(seed, 150) },
            cuts,
        };
        block_on(test.run(|cut| look(cut).map(|l| seen += u32::from(l)))).unwrap();
    }
    println!(
        "crash: {} ({}): {} cuts, {seen} seen by the peer's checker, {:.1} s",
        subject.driver.format,
        subject.options,
        seeds * cuts as u64,
        begin.elapsed().as_secs_f64()
    );
}

/// Failing requests for one format and one set of options.
pub fn fault(driver: &'static Driver, options: &str, size: u64, cluster: u64) {
    fault_of(&subject(driver, options, size), cluster);
}

/// As [`fault`].
pub fn fault_of(subject: &Subject, cluster: u64) {
    // Each request fails once; and in the long run one alone now and then.
    let modes = if long() {
        [(2000, Faults::Spaced { step: 60 }), (2000, Faults::Single { step: 499 })]
    } else {
        [(60, Faults::Spaced { step: 9 }), (30, Faults::Single { step: 13 })]
    };
    for (requests, faults) in modes {
        let begin = Instant::now();
        let mut work = Workload::new(7, requests);
        (work.cluster, work.may_fail) = (cluster, true);
        let test = FaultTest { subject: subject.clone(), work, faults };
        let FaultCount { runs, failures, requests, refused } = block_on(test.run()).unwrap();
        println!(
            "fault: {} ({}), {faults:?}: {failures} I/Os failed in {runs} runs, and with them {refused} of \
             {requests} requests, {:.1} s",
            subject.driver.format,
            subject.options,
            begin.elapsed().as_secs_f64()
        );
        // A disk that refuses everything after an error would pass, and prove nothing.
        assert!(failures > 1 && refused * 2 < requests, "{failures} {refused} {requests}");
    }
}

/// Makes an image in a world.
pub async fn create_in(
    world: &World,
    driver: &'static Driver,
    name: &str,
    size: u64,
    options: &str,
    backing: Option<BackingLink>,
) -> Result<Rc<dyn Image>, Error> {
    let output = SimOutput { name: name.to_owned(), world: world.clone(), count: Rc::new(Cell::new(0)) };
    let options = Options::parse(options)?;
    options.check(driver.options)?;
    let request = CreateRequest {
        output: &output,
        size,
        options: &options,
        backing: backing.map(Into::into),
        secret: None,
    };
    let image = (driver.create.unwrap())(request).await?;
    image.flush().await?;
    Ok(image)
}

/// Opens an image in a world.
pub async fn open_in(
    world: &World,
    driver: &'static Driver,
    name: &str,
    read_only: bool,
) -> Result<Rc<dyn Image>, Error> {
    let options = OpenOptions { format: Some(driver.format), read_only, ..OpenOptions::default() };
    let file = world.file(name).unwrap();
    (driver.open)(OpenRequest { file, links: Rc::new(world.clone()), options }).await
}

fn stamp(sector: u64) -> Vec<u8> {
    (0..SECTOR).map(|n| (sector * 7 + n * 13 + 1) as u8).collect()
}

/// A parent with every third run of sectors written, and what it holds.
pub async fn parent_in(
    world: &World,
    driver: &'static Driver,
    name: &str,
    options: &str,
    size: u64,
) -> Shadow {
    let parent = create_in(world, driver, name, size, options, None).await.unwrap();
    let mut shadow = Shadow::default();
    for run in (0..size / SECTOR).step_by(3 * 37) {
        let sectors: Vec<_> = (run..(run + 37).min(size / SECTOR)).collect();
        let bytes: Vec<u8> = sectors.iter().flat_map(|&s| stamp(s)).collect();
        parent.write(run * SECTOR, IoData::copy_of(&bytes)).await.unwrap();
        shadow.below.extend(sectors.into_iter().map(|s| (s, stamp(s))));
    }
    parent.close().await.unwrap();
    shadow
}

/// What an image is known by to those above it.
pub fn link_to(name: &str, parent: &dyn Image) -> BackingLink {
    BackingLink { name: name.to_owned(), format: Some(parent.format()), identity: parent.describe().identity }
}

/// Power cuts and failures of an image over another one, whose contents show through.
pub fn differencing(driver: &'static Driver, suffix: &str, options: &str, size: u64, cluster: u64) {
    let (seeds, cuts) = if long() { (26, 80) } else { (3, 12) };
    let parent_name = format!("parent.{suffix}");
    for seed in 1..=seeds {
        block_on(async {
            let world = World::new(seed);
            let shadow = parent_in(&world, driver, &parent_name, options, size).await;
            let parent = open_in(&world, driver, &parent_name, true).await.unwrap();
            let link = link_to(&parent_name, &*parent);
            let made = create_in(&world, driver, "child", size, options, Some(link)).await.unwrap();
            made.close().await.unwrap();
            let child = open_in(&world, driver, "child", false).await.unwrap();
            assert!(child.backing().is_some());
            let begin = world.now();
            let mut work = Workload::new(seed, 150);
            work.cluster = cluster;
            work.run(&*child, &shadow, &|| world.tick()).await.unwrap();
            shadow.verify(&*child, None).await.unwrap();
            child.close().await.unwrap();
            let (records, names) = (world.records(), world.names());
            for (n, cut) in Cuts::new(&names, &records, begin, cuts, Random::new(seed)).enumerate() {
                let at = cut.at;
                let mut after = World::new(n as u64);
                (after.slow, after.record) = (false, false);
                for (name, memory) in cut.files {
                    after.add(&name, memory);
                }
                // First as who only reads sees it.
                let image = open_in(&after, driver, "child", true).await.unwrap();
                shadow
                    .verify(&*image, Some(at))
                    .await
                    .unwrap_or_else(|e| panic!("seed {seed}, cut {n}: {e}"));
                let image = open_in(&after, driver, "child", false).await.unwrap();
                shadow
                    .verify(&*image, Some(at))
                    .await
                    .unwrap_or_else(|e| panic!("seed {seed}, cut {n}: {e}"));
                clean(&*image).await;
                image.close().await.unwrap();
            }
        });
    }
    println!("crash: {} ({options}) over a parent: {} cuts", driver.format, seeds * cuts as u64);
}

/// Fails unless the check finds nothing.
pub async fn clean(image: &dyn Image) {
    let report = image.check(Repair::No, &Progress::default()).await.unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Resizes to and fro, with work between, and looks at every byte.
pub fn resizing(driver: &'static Driver, options: &str, sizes: &[u64], cluster: u64) {
    block_on(async {
        let world = World::new(5);
        let image = create_in(&world, driver, "image", sizes[0], options, None).await.unwrap();
        image.close().await.unwrap();
        let mut now = vec![0u8; sizes[0] as usize];
        let mut random = Random::new(11);
        for &size in sizes {
            let image = open_in(&world, driver, "image", false).await.unwrap();
            image.resize(size).await.unwrap();
            assert_eq!(image.size(), size);
            now.resize(size as usize, 0);
            let check = async |image: &dyn Image, now: &[u8]| {
                let all = image.read(0, IoBuf::new(now.len())).await.unwrap();
                let wrong = all.iter().zip(now).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "after resizing to {size}");
            };
            check(&*image, &now).await;
            for _ in 0..12 {
                let at = random.below(size - cluster) / 512 * 512;
                let bytes = vec![random.below(255) as u8 + 1; (random.below(cluster) + 1) as usize];
                now[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                image.write(at, IoData::copy_of(&bytes)).await.unwrap();
            }
            check(&*image, &now).await;
            clean(&*image).await;
            image.close().await.unwrap();
            let image = open_in(&world, driver, "image", true).await.unwrap();
            assert_eq!(image.size(), size);
            check(&*image, &now).await;
            clean(&*image).await;
        }
    });
}

/// Flips bits and bytes of a small image of each set of options, and lets `fuzz` have it.
pub fn damaged(driver: &'static Driver, options: &[&str], size: u64, fuzz: fn(&[u8])) {
    let mut random = Random::new(3);
    for options in options {
        let bytes = block_on(async {
            let world = World::new(1);
            let image = create_in(&world, driver, "image", size, options, None).await.unwrap();
            image.write(size / 3 / 512 * 512, IoData::copy_of(&[0x55; 9000])).await.unwrap();
            image.close().await.unwrap();
            world.file("image").unwrap().memory.contents()
        });
        // What matters is where bytes are not all the same.
        let places: Vec<usize> = (0..bytes.len()).filter(|&n| bytes[n] != 0 && bytes[n] != 0x55).collect();
        for n in 0..if long() { 3000 } else { 150 } {
            let mut copy = bytes.clone();
            for _ in 0..1 + random.below(3) {
                let at = match random.below(4) {
                    0 => random.below(bytes.len().min(4096) as u64) as usize,
                    _ => places[random.below(places.len() as u64) as usize],
                };
                copy[at] = match random.below(3) {
                    0 => 0xff,
                    1 => random.below(256) as u8,
                    _ => copy[at] ^ 1 << random.below(8),
                };
            }
            if n % 10 == 0 {
                copy.truncate(random.below(bytes.len() as u64) as usize);
            }
            fuzz(&copy);
        }
    }
}

/// True if this program is installed.
pub fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("skipped: there is no {program}");
    }
    there
}

/// Runs a program; its output.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}");
    text
}

/// Makes an image in a file.
pub fn create_file(driver: &'static Driver, path: &Path, size: u64, options: &str) {
    block_on(async {
        let output = OutputFiles::new(path, Cache::Cached).unwrap();
        let options = Options::parse(options).unwrap();
        options.check(driver.options).unwrap();
        let request = CreateRequest { output: &output, size, options: &options, backing: None, secret: None };
        let image = (driver.create.unwrap())(request).await.unwrap();
        image.close().await.unwrap();
        assert!(!output.name().is_empty());
        output.finish().unwrap();
    });
}

/// Opens an image in a file.
pub fn open_file(path: &Path, read_only: bool) -> Opened {
    block_on(open(path, &OpenOptions { read_only, ..OpenOptions::default() })).unwrap()
}

/// All bytes of a disk.
pub fn contents(image: &dyn Node) -> Vec<u8> {
    block_on(image.read(0, IoBuf::new(image.size() as usize))).unwrap().to_vec()
}

/// Both programs work on the same image in turns, and each reads what the other wrote.
/// `theirs` are qemu-img's options, `None` if Plinth makes the image.
pub fn with_qemu(
    driver: &'static Driver,
    theirs: Option<&str>,
    ours: &str,
    format: &str,
    check: bool,
    seed: u64,
) {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("disk"), dir.path().join("raw"));
    let (name, raw_name) = (path.to_str().unwrap(), raw.to_str().unwrap());
    let size = 9u64 << 20;
    match theirs {
        Some("") => _ = run("qemu-img", &["create", "-q", "-f", format, name, &size.to_string()]),
        Some(o) => _ = run("qemu-img", &["create", "-q", "-f", format, "-o", o, name, &size.to_string()]),
        None => create_file(driver, &path, size, ours),
    }
    let image = open_file(&path, true);
    assert_eq!(image.image.format(), driver.format);
    let size = image.image.size();
    drop(image);
    let mut now = vec![0u8; size as usize];
    let mut random = Random::new(seed);
    for round in 0..if long() { 40 } else { 2 } {
        let work: Vec<_> = (0..8)
            .map(|_| {
                let at = random.below(size / 512 - 1) * 512;
                let len = (random.below(5000) + 1) * 512;
                let byte = if random.one_in(4) { 0 } else { random.below(255) as u8 + 1 };
                (at, len.min(size - at), byte)
            })
            .collect();
        for &(at, len, byte) in &work {
            now[at as usize..(at + len) as usize].fill(byte);
        }
        if round % 2 == 0 {
            let commands: Vec<String> = work
                .iter()
                .map(|(at, len, byte)| match byte {
                    0 => format!("write -z {at} {len}"),
                    _ => format!("write -P {byte} {at} {len}"),
                })
                .collect();
            let mut args = vec!["-f", format];
            commands.iter().for_each(|c| args.extend(["-c", c.as_str()]));
            args.push(name);
            run("qemu-io", &args);
        } else {
            let image = open_file(&path, false).image;
            block_on(async {
                for &(at, len, byte) in &work {
                    match byte {
                        0 => image.write_zeroes(at, len, true).await.unwrap(),
                        _ => image.write(at, IoData::copy_of(&vec![byte; len as usize])).await.unwrap(),
                    }
                }
                image.close().await.unwrap();
            });
        }
        let image = open_file(&path, true).image;
        assert!(contents(&*image) == now, "Plinth reads something else in round {round}");
        block_on(clean(&*image));
        drop(image);
        run("qemu-img", &["convert", "-f", format, "-O", "raw", name, raw_name]);
        assert!(std::fs::read(&raw).unwrap()[..now.len()] == now, "the peer reads something else");
        if check {
            run("qemu-img", &["check", "-f", format, name]);
        }
    }
}

/// What the peer's checker says of an image in memory.
pub fn qemu_check(memory: &MemoryNode, format: &str) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    memory.save(file.path()).unwrap();
    let name = file.path().to_str().unwrap();
    Command::new("qemu-img").args(["check", "-q", "-f", format, name]).output().unwrap().status.success()
}

/// For each cut, what the peer's checker says after Plinth has opened the image for writing; how many it did not like before.
pub fn peer_after_cuts(driver: &'static Driver, options: &str, size: u64, format: &str) {
    use futures_util::FutureExt;
    if !has("qemu-img") {
        return;
    }
    let (mut flagged, mut all) = (0, 0);
    for seed in 1..=if long() { 40 } else { 3 } {
        let look = |cut: &Cut| {
            let memory = cut.files[0].1.clone();
            flagged += u32::from(!qemu_check(&memory, format));
            all += 1;
            let mut world = World::new(1);
            world.slow = false;
            let file = world.add("image", memory);
            let mend = async { open_in(&world, driver, "image", false).await?.close().await };
            mend.now_or_never().expect("nothing waits in this world").map_err(|e| e.to_string())?;
            if qemu_check(&file.memory, format) { Ok(()) } else { Err("qemu-img check".into()) }
        };
        block_on(CrashTest::new(driver, options, size, seed, 10).run(look)).unwrap();
    }
    println!(
        "crash: {} ({options}): {all} cuts seen by the peer's checker, {flagged} not liked before Plinth opened them",
        driver.format
    );
}

/// Opens an image in a file, inside of `block_on`.
pub async fn open_in_file(path: &Path, read_only: bool) -> Rc<dyn Image> {
    open(path, &OpenOptions { read_only, ..OpenOptions::default() }).await.unwrap().image
}

/// A large disk with little in it: what is nowhere is found without a request or a look-up for each piece of the table.
/// `size` and the places of data are multiples of `block`.
pub fn sparse_table(driver: &'static Driver, options: &str, size: u64, block: u64) {
    block_on(async {
        let world = World::new(5);
        let image = create_in(&world, driver, "image", size, options, None).await.unwrap();
        let data = [block, size / 2, size / 2 + block];
        for at in data {
            image.write(at, IoData::copy_of(&[7; 4096])).await.unwrap();
        }
        image.close().await.unwrap();
        let image = open_in(&world, driver, "image", false).await.unwrap();
        // What is only noted ends what is alike in the table.
        let noted = size / 4;
        image.write(noted, IoData::copy_of(&[8; 4096])).await.unwrap();
        let before = world.requests();
        let (mut at, mut stored) = (0, Vec::new());
        while at < size {
            let extent = image.status(at, size - at).await.unwrap();
            if !extent.zero {
                // Neighbours may be one behind the other in the file, too.
                stored.extend((at / block..(at + extent.len).div_ceil(block)).map(|n| n * block));
            }
            at += extent.len;
        }
        stored.dedup();
        assert_eq!(stored, [block, noted, size / 2, size / 2 + block]);
        let requests = world.requests() - before;
        let table = size / block * 4;
        assert!(requests < table / 4096 / 4, "{requests} requests for a table of {table} bytes or more");
    });
}
