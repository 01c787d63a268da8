//! Jobs over whole images: copies are exact, and only what has to be touched is.

mod common;

use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::{
    Format, Image, MemoryOutput, OpenOptions, OpenRequest, Options, Output, OutputFiles, Progress, open,
    open_node,
};
use plinth_image::graph::{Cache, Extent, Io, IoBuf, IoData, MemoryNode, Node, NodeInfo, NodeRef, ReadNode};
use plinth_image::job::{
    self, CompareOptions, Concat, Contents, ConvertRequest, CopyOptions, Difference, MapEntry, Measured,
};
use plinth_image::testing::{Random, World};
use plinth_image::{Error, ErrorKind};

/// A file with random runs of data and of zeros, some of them stored.
fn random_file(random: &mut Random, size: u64) -> MemoryNode {
    let node = MemoryNode::new("random");
    node.set_size(size);
    let mut at = 0;
    while at < size {
        let len = match random.below(3) {
            0 => random.below(2000) + 1,
            1 => random.below(40_000) + 1,
            _ => random.below(700_000) + 1,
        };
        let len = len.min(size - at);
        match random.below(3) {
            0 => {}
            1 => node.put(at, &vec![0; len as usize]),
            _ => {
                let bytes: Vec<u8> = (0..len).map(|i| (i ^ random.number()) as u8 | 1).collect();
                node.put(at, &bytes);
            }
        }
        at += len;
    }
    node
}

async fn raw(node: MemoryNode) -> Rc<dyn Image> {
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    open_node(Rc::new(node), &options).await.unwrap().image
}

async fn all(node: &dyn Node) -> Vec<u8> {
    node.read(0, IoBuf::new(node.size() as usize)).await.unwrap().to_vec()
}

fn request(sources: Vec<NodeRef>, options: &Options, copy: CopyOptions) -> ConvertRequest<'_> {
    ConvertRequest { sources, format: Format::Raw, options, backing: None, secret: None, copy }
}

#[test]
fn copies_are_exact_whatever_the_options() {
    let mut random = Random::new(1);
    for round in 0..60 {
        let size = (random.below(6 << 20) + 1).next_multiple_of(512);
        let source = random_file(&mut random, size);
        let expected = source.contents();
        let copy = CopyOptions {
            piece: 4096 << random.below(9),
            in_flight: random.below(20) as usize + 1,
            in_order: random.one_in(3),
            zero_run: [0, 4096, 32 << 10, 1 << 20][random.below(4) as usize],
            ..CopyOptions::default()
        };
        block_on(async {
            let output = MemoryOutput::new("x");
            let options = Options::default();
            let progress = Progress::default();
            let source = raw(source).await;
            let report = job::convert(request(vec![source], &options, copy.clone()), &output, &progress)
                .await
                .unwrap();
            let made = output.file("x").unwrap();
            assert!(made.contents() == expected, "round {round} of {size} bytes with {copy:?}");
            assert_eq!(progress.done.get(), size);
            if copy.zero_run == 0 {
                assert_eq!(report.written, size);
            }
        });
    }
}

#[test]
fn a_copy_to_what_is_not_empty_writes_its_zeros() {
    let mut random = Random::new(2);
    for _ in 0..20 {
        let size = (random.below(3 << 20) + 4096).next_multiple_of(512);
        let (source, target) = (random_file(&mut random, size), random_file(&mut random, size));
        let expected = source.contents();
        block_on(async {
            let (source, target) = (raw(source).await, raw(target).await);
            let copy = CopyOptions::default();
            job::copy(&*source, 0..size, &*target, 0, &copy, &Progress::default()).await.unwrap();
            assert!(all(&*target).await == expected);
        });
    }
}

#[test]
fn a_part_is_copied_to_its_place() {
    let mut random = Random::new(3);
    let source = random_file(&mut random, 2 << 20);
    let expected = source.contents();
    block_on(async {
        let (source, target) = (raw(source).await, raw(random_file(&mut random, 2 << 20)).await);
        let mut before = all(&*target).await;
        let copy = CopyOptions::default();
        for (from, to, at) in [(512, 1_000_448, 70_144), (0, 512, 1 << 20), (1 << 20, (2 << 20) - 512, 512)] {
            job::copy(&*source, from..to, &*target, at, &copy, &Progress::default()).await.unwrap();
            let (from, to, at) = (from as usize, to as usize, at as usize);
            before[at..at + to - from].copy_from_slice(&expected[from..to]);
            assert!(all(&*target).await == before, "{from}..{to} to {at}");
        }
    });
}

#[test]
fn several_disks_become_one() {
    let mut random = Random::new(4);
    let parts: Vec<MemoryNode> = [512, 1 << 20, 4608, 70_144].map(|n| random_file(&mut random, n)).into();
    let expected: Vec<u8> = parts.iter().flat_map(MemoryNode::contents).collect();
    block_on(async {
        let mut nodes: Vec<NodeRef> = Vec::new();
        for part in parts {
            nodes.push(raw(part).await);
        }
        let whole = Concat::new(nodes.clone()).unwrap();
        assert!(all(&whole).await == expected);
        whole.write(500, IoData::copy_of(&[9; 2000])).await.unwrap();
        whole.write_zeroes(1_049_000, 6000, true).await.unwrap();
        let mut changed = expected.clone();
        changed[500..2500].fill(9);
        changed[1_049_000..1_055_000].fill(0);
        assert!(all(&whole).await == changed);
        let output = MemoryOutput::new("x");
        let options = Options::default();
        job::convert(request(nodes, &options, CopyOptions::default()), &output, &Progress::default())
            .await
            .unwrap();
        assert!(output.file("x").unwrap().contents() == changed);
    });
}

#[test]
fn the_first_difference_is_found() {
    let mut random = Random::new(5);
    for _ in 0..40 {
        let size = (random.below(2 << 20) + 8192).next_multiple_of(512);
        let a = random_file(&mut random, size);
        let b = MemoryNode::with("b", &a.contents());
        let longer = MemoryNode::with("longer", &a.contents());
        longer.set_size(size + 100 * 512);
        let place = random.below(size);
        let mut byte = [0];
        a.get(place, &mut byte);
        let changed = MemoryNode::with("changed", &a.contents());
        changed.put(place, &[byte[0] ^ 0x80]);
        block_on(async {
            let [a, b, longer, changed] = [raw(a).await, raw(b).await, raw(longer).await, raw(changed).await];
            let compare = async |x: &Rc<dyn Image>, y: &Rc<dyn Image>, strict| {
                job::compare(&**x, &**y, CompareOptions { strict }, &Progress::default()).await.unwrap()
            };
            assert_eq!(compare(&a, &b, false).await.difference, None);
            let found = compare(&a, &longer, false).await;
            assert_eq!((found.difference, found.sizes_differ), (None, true));
            assert_eq!(compare(&longer, &a, true).await.difference, Some(Difference::Size));
            assert_eq!(compare(&a, &changed, false).await.difference, Some(Difference::Content(place)));
            longer.write(size + 5000, IoData::copy_of(&[1])).await.unwrap();
            assert_eq!(compare(&a, &longer, false).await.difference, Some(Difference::Content(size + 5000)));
        });
    }
}

#[test]
fn a_map_covers_the_disk_once_and_joins_what_is_alike() {
    let mut random = Random::new(6);
    let file = random_file(&mut random, 3 << 20);
    block_on(async {
        let disk = raw(file).await;
        let mut entries: Vec<MapEntry> = Vec::new();
        job::map::<Error>(&*disk, 1000, 2_000_000, &[], &mut |e| {
            entries.push(e);
            Ok(())
        })
        .await
        .unwrap();
        let mut at = 1000;
        for e in &entries {
            assert_eq!(e.start, at);
            let bytes = disk.read(at, IoBuf::new(e.extent.len as usize)).await.unwrap();
            assert!(!e.extent.zero || bytes.iter().all(|&b| b == 0));
            at += e.extent.len;
        }
        assert_eq!(at, 2_000_000);
        assert!(entries.windows(2).all(|w| w[0].extent.zero != w[1].extent.zero));
    });
}

#[test]
fn zeros_become_holes_and_nothing_else_changes() {
    let mut random = Random::new(7);
    for grain in [512, 4096, 65536] {
        let file = random_file(&mut random, 3 << 20);
        let expected = file.contents();
        block_on(async {
            let disk = raw(file).await;
            let report = job::punch_zeros(&*disk, grain, &Progress::default()).await.unwrap();
            assert!(all(&*disk).await == expected);
            assert!(grain == 65536 || report.punched > 0);
        });
    }
}

#[test]
fn measured_sizes_are_those_of_the_peer() {
    let measured = |format, options: &str, size| {
        let options = Options::parse(options).unwrap();
        block_on(job::measure(format, &options, Contents::Size(size)))
    };
    // Taken from qemu-img measure, version 10.
    let q = |options, size| measured(Format::Qcow2, options, size).unwrap();
    assert_eq!(q("", 1 << 30), Measured { required: 393_216, fully_allocated: 1_074_135_040 });
    assert_eq!(q("cluster_size=512", 1 << 30).fully_allocated, 1_095_127_040);
    assert_eq!(q("preallocation=full", 1 << 20).required, q("", 1 << 20).fully_allocated);
    assert_eq!(measured(Format::Raw, "", 1000).unwrap().required, 1024);
    assert_eq!(measured(Format::Qcow2, "cluster_size=3", 1).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(measured(Format::Qcow2, "cluster_size=512", 1 << 60).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(measured(Format::Vdi, "", 1).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn a_conversion_that_is_dropped_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.raw");
    std::fs::write(&path, b"old").unwrap();
    block_on(async {
        let source = raw(random_file(&mut Random::new(8), 8 << 20)).await;
        let options = Options::default();
        let copy = CopyOptions { rate: Some(1 << 20), ..CopyOptions::default() };
        let output = OutputFiles::new(&path, Cache::Direct).unwrap();
        assert_eq!(output.name(), "x.raw");
        let progress = Progress::default();
        let job = Box::pin(job::convert(request(vec![source], &options, copy), &output, &progress));
        let sleep = Box::pin(plinth_host::aio::sleep(std::time::Duration::from_millis(50)));
        assert!(matches!(
            futures_util::future::select(job, sleep).await,
            futures_util::future::Either::Right(_)
        ));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[test]
fn files_on_the_host_are_copied_past_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(9);
    // A last sector that is not a whole block.
    let file = random_file(&mut random, (5 << 20) + 512);
    let (from, to) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&from, file.contents()).unwrap();
    block_on(async {
        let raw = OpenOptions { format: Some(Format::Raw), read_only: true, ..OpenOptions::default() };
        let source = open(&from, &raw).await.unwrap().image;
        let output = OutputFiles::new(&to, Cache::Direct).unwrap();
        let options = Options::default();
        let report = job::convert(
            request(vec![source], &options, CopyOptions::default()),
            &output,
            &Progress::default(),
        )
        .await
        .unwrap();
        output.finish().unwrap();
        assert!(report.written <= report.read);
    });
    assert!(std::fs::read(&to).unwrap() == file.contents());
}

/// A new LUKS image is noise where nothing was written, so a copy writes zeros too.
#[test]
fn zeros_are_written_to_what_is_noise() {
    let mut random = Random::new(12);
    let source = random_file(&mut random, 3 << 20);
    let expected = source.contents();
    block_on(async {
        let (output, secret) = (MemoryOutput::new("x"), b"a good passphrase");
        let options = Options::parse("iter-time=1").unwrap();
        let request = ConvertRequest {
            sources: vec![raw(source).await],
            format: Format::Luks,
            options: &options,
            backing: None,
            secret: Some(secret),
            copy: CopyOptions::default(),
        };
        job::convert(request, &output, &Progress::default()).await.unwrap();
        let secret = Some((&secret[..]).into());
        let read = OpenOptions { format: Some(Format::Luks), secret, ..OpenOptions::default() };
        let image = open_node(output.file("x").unwrap(), &read).await.unwrap().image;
        assert!(all(&*image).await == expected);
    });
}

#[test]
fn an_image_without_a_base_reads_the_same_over_its_first_one() {
    const SIZE: u64 = 1 << 20;
    for options in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        block_on(async {
            let world = World::new(1);
            let driver = Format::Qcow2.driver().unwrap();
            let base = common::create_in(&world, driver, "base", SIZE, "", None).await.unwrap();
            base.write(0, IoData::copy_of(&vec![9; SIZE as usize])).await.unwrap();
            base.close().await.unwrap();
            let image = common::create_in(&world, driver, "image", SIZE, options, None).await.unwrap();
            image.write(300_000, IoData::copy_of(&[1; 100_000])).await.unwrap();
            let before = all(&*image).await;
            job::rebase_safe(&*image, Some(&*base), false, &Progress::default()).await.unwrap();
            image.set_backing(Some(&common::link_to("base", &*base))).await.unwrap();
            image.close().await.unwrap();
            let image = common::open_in(&world, driver, "image", true).await.unwrap();
            assert!(image.backing().is_some());
            assert!(all(&*image).await == before, "{options}");
        });
    }
}

#[test]
fn a_commit_leaves_alone_what_the_upper_image_does_not_have() {
    const SIZE: u64 = 1 << 20;
    for (below, above) in
        [("", "cluster_size=4k"), ("", "extended_l2=on"), ("cluster_size=512", "cluster_size=512")]
    {
        block_on(async {
            let world = World::new(1);
            let driver = Format::Qcow2.driver().unwrap();
            let base = common::create_in(&world, driver, "base", SIZE, below, None).await.unwrap();
            base.write(0, IoData::copy_of(&vec![9; SIZE as usize])).await.unwrap();
            base.close().await.unwrap();
            let link = common::link_to("base", &*base);
            let made = common::create_in(&world, driver, "image", SIZE, above, Some(link)).await.unwrap();
            made.close().await.unwrap();
            let image = common::open_in(&world, driver, "image", false).await.unwrap();
            for at in [5000, 99_000, 300_000, SIZE - 512] {
                image.write(at, IoData::copy_of(&[1; 512])).await.unwrap();
            }
            let before = all(&*image).await;
            image.close().await.unwrap();
            let options = OpenOptions { no_backing: true, read_only: true, ..OpenOptions::default() };
            let file = world.file("image").unwrap();
            let request = OpenRequest { file, links: Rc::new(world.clone()), options };
            let alone = (driver.open)(request).await.unwrap();
            let base = common::open_in(&world, driver, "base", false).await.unwrap();
            job::commit(&*alone, &*base, &Progress::default()).await.unwrap();
            assert!(all(&*base).await == before, "{above} over {below}");
        });
    }
}

#[test]
fn progress_counts_data_where_it_is_asked_to() {
    const SIZE: u64 = 64 << 20;
    let node = MemoryNode::new("holes");
    node.set_size(SIZE);
    for n in 0..4u64 {
        node.put(n * (16 << 20), &vec![n as u8 + 1; 1 << 20]);
    }
    block_on(async {
        let (source, output) = (raw(node).await, MemoryOutput::new("x"));
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let told = seen.clone();
        let progress = Progress::watched(move |p| told.borrow_mut().push(p.done.get() * 100 / p.total.get()));
        let copy = CopyOptions { progress_by_data: true, ..CopyOptions::default() };
        let options = Options::default();
        job::convert(request(vec![source], &options, copy), &output, &progress).await.unwrap();
        assert_eq!(*seen.borrow(), [25, 50, 75, 100]);
        assert_eq!(progress.total.get(), 4 << 20);
    });
}

/// A qcow2 image in memory.
async fn qcow2(options: &str, size: u64) -> Rc<dyn Image> {
    let options = Options::parse(options).unwrap();
    job::create(&MemoryOutput::new("x"), Format::Qcow2, size, &options, None, None).await.unwrap()
}

#[test]
fn zeros_are_noted_or_compressed_where_that_is_asked_for() {
    const SIZE: u64 = 1 << 20;
    block_on(async {
        let node = MemoryNode::new("zeros");
        node.set_size(SIZE);
        let source = raw(node).await;
        let copied = async |options: CopyOptions| {
            let target = qcow2("", SIZE).await;
            job::copy(&*source, 0..SIZE, &*target, 0, &options, &Progress::default()).await.unwrap();
            target.status(0, SIZE).await.unwrap()
        };
        let nothing = copied(CopyOptions::default()).await;
        assert!(!nothing.present && nothing.zero);
        let noted = copied(CopyOptions { note_zeros: true, ..CopyOptions::default() }).await;
        assert!(noted.present && noted.zero && !noted.data && noted.len == SIZE);
        let all = CopyOptions { zero_run: 0, compress: true, ..CopyOptions::default() };
        let packed = copied(all).await;
        assert!(packed.present && packed.compressed && !packed.zero);
    });
}

#[test]
fn what_is_written_in_a_row_lies_in_a_row() {
    block_on(async {
        let node = MemoryNode::with("data", &vec![7; 64 << 20]);
        let (source, target) = (raw(node).await, qcow2("", 64 << 20).await);
        let copy = CopyOptions::default();
        job::copy(&*source, 0..64 << 20, &*target, 0, &copy, &Progress::default()).await.unwrap();
        assert_eq!(target.status(0, 64 << 20).await.unwrap().len, 64 << 20);
    });
}

/// A disk of which a part cannot be read, nor looked at.
struct Broken {
    below: MemoryNode,
    bad: std::ops::Range<u64>,
}

impl Broken {
    fn look(&self, offset: u64, len: u64) -> Result<(), Error> {
        match offset < self.bad.end && offset + len > self.bad.start {
            true => Err(Error::new(ErrorKind::Io, "cannot read 'broken'", "it is scratched")),
            false => Ok(()),
        }
    }
}

impl ReadNode for Broken {
    fn info(&self) -> &NodeInfo {
        Node::info(&self.below)
    }

    fn size(&self) -> u64 {
        Node::size(&self.below)
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            self.look(offset, buf.len() as u64)?;
            Node::read(&self.below, offset, buf).await
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            self.look(offset, 1)?;
            Node::status(&self.below, offset, len).await
        })
    }
}

#[test]
fn what_cannot_be_read_is_salvaged_around() {
    block_on(async {
        const SIZE: u64 = 4 << 20;
        let below = MemoryNode::new("broken");
        below.put(0, &vec![5; SIZE as usize]);
        let bad = 1_500_160..1_501_184;
        let broken = Broken { below, bad: bad.clone() };
        let mut options = CopyOptions { salvage: true, in_flight: 8, ..CopyOptions::default() };
        let target = raw(MemoryNode::new("target")).await;
        target.resize(SIZE).await.unwrap();
        let copy = async |options: &CopyOptions| {
            job::copy(&broken, 0..SIZE, &*target, 0, options, &Progress::default()).await
        };
        let report = copy(&options).await.unwrap();
        assert_eq!(report.unreadable, [(1_500_160, 1024)]);
        for (at, byte) in (0..).zip(all(&*target).await) {
            assert_eq!(byte, if bad.contains(&at) { 0 } else { 5 }, "{at}");
        }
        options.salvage = false;
        copy(&options).await.unwrap_err();
    });
}
