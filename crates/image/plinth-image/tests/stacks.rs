//! Graphs that nobody drew: nodes and images over each other in any order behave like one disk.

mod common;

use std::rc::Rc;

use plinth_host::aio::block_on;
use plinth_image::format::{
    CreateRequest, Format, Image, MemoryOutput, OpenOptions, Options, Progress, Repair, open_node,
};
use plinth_image::graph::{
    IoBuf, IoData, Keep, Limits, MemoryNode, Node, NodeRef, OverlayNode, SliceNode, ThrottleNode, is_zero,
};
use plinth_image::testing::{Cuts, Random, Shadow, Workload, World};
use plinth_image::{Error, SECTOR};

/// Bytes of the disk at the bottom.
const SIZE: u64 = 6 << 20;

/// Formats and options of images.
const IMAGES: &[(Format, &str)] = &[
    (Format::Qcow2, "cluster_size=4k"),
    (Format::Qcow2, "extended_l2=on,cluster_size=16k"),
    (Format::Qcow2, "compat=0.10,cluster_size=512"),
    (Format::Vmdk, ""),
    (Format::Vdi, ""),
    (Format::Vhd, ""),
    (Format::Vhd, "subformat=fixed"),
    (Format::Vhdx, "block_size=1M,log_size=1M"),
    (Format::Parallels, "cluster_size=64k"),
    (Format::Qed, ""),
    (Format::Raw, ""),
];

/// A container whose key costs little.
const ENCRYPTION: (Format, &str) = (Format::Luks, "iter-time=10");
/// Bytes of its header, at most.
const HEADER: u64 = 3 << 20;
const SECRET: &[u8] = b"secret";

/// One layer of a stack, as the seed says.
#[derive(Clone, Debug)]
enum Layer {
    Image(usize),
    Encryption,
    Slice { start: u64, len: u64 },
    Throttle,
    Overlay { cluster: u32 },
    Cache { cluster: u32 },
}

/// A stack, bottom first. `lasting`: what it holds is there again when it is opened again.
fn draw(random: &mut Random, lasting: bool) -> Vec<Layer> {
    let mut layers = Vec::new();
    if random.one_in(3) {
        layers.push(Layer::Throttle);
    }
    // Other nodes do not become longer by a write, which most images need of their file.
    if !random.one_in(3) {
        layers.push(Layer::Image(random.below(IMAGES.len() as u64) as usize));
    }
    if random.one_in(4) {
        layers.push(Layer::Encryption);
    }
    for _ in 0..random.below(4) {
        let layer = match random.below(if lasting { 3 } else { 6 }) {
            0 => Layer::Throttle,
            1..3 => Layer::Slice { start: random.below(64), len: 64 + random.below(4096) },
            3..5 => Layer::Overlay { cluster: 512 << random.below(8) },
            _ => {
                layers.push(Layer::Cache { cluster: 512 << random.below(8) });
                // Above a cache nothing could be written without this.
                Layer::Overlay { cluster: 4096 }
            }
        };
        layers.push(layer);
    }
    layers
}

/// Opens the image in a node; with `new`, writes one there first.
async fn image_in(below: &NodeRef, what: (Format, &str), new: bool) -> Result<Rc<dyn Image>, Error> {
    let (format, options) = what;
    let secret = (format == Format::Luks).then_some(SECRET);
    if new {
        let output = MemoryOutput::new("new");
        let options = Options::parse(options)?;
        let size = if format == Format::Luks { below.size() - HEADER } else { below.size() };
        let request = CreateRequest { output: &output, size, options: &options, backing: None, secret };
        let made = (format.driver().unwrap().create.unwrap())(request).await?;
        made.close().await?;
        let bytes = output.file("new").unwrap().contents();
        if format != Format::Luks {
            // The footer of VHD is the file's end.
            below.resize(0).await?;
        }
        below.write(0, IoData::copy_of(&bytes)).await?;
        below.flush().await?;
    }
    let secret = secret.map(Into::into);
    let options = OpenOptions { format: Some(format), secret, ..OpenOptions::default() };
    Ok(open_node(below.clone(), &options).await?.image)
}

/// A stack's top, and the images in it.
struct Stack {
    top: NodeRef,
    images: Vec<Rc<dyn Image>>,
}

/// Opens a stack; with `new`, its images are made.
async fn stack(base: NodeRef, layers: &[Layer], new: bool) -> Result<Stack, Error> {
    let mut top = base;
    let mut images = Vec::new();
    for layer in layers {
        top = match *layer {
            Layer::Image(_) | Layer::Encryption => {
                let what = if let Layer::Image(which) = layer { IMAGES[*which] } else { ENCRYPTION };
                let image = image_in(&top, what, new).await?;
                images.push(image.clone());
                image as NodeRef
            }
            Layer::Slice { start, len } => {
                let sectors = top.size() / SECTOR;
                let start = start.min(sectors / 4);
                let len = len.clamp(1, sectors - start);
                Rc::new(SliceNode::new(top, start * SECTOR, len * SECTOR)?)
            }
            Layer::Throttle => {
                Rc::new(ThrottleNode::new(top, Limits { bytes: Some(1 << 40), requests: None }))
            }
            Layer::Overlay { cluster } => {
                let store = Rc::new(MemoryNode::new("store"));
                Rc::new(OverlayNode::new(top, store, Keep::Writes, cluster)?)
            }
            Layer::Cache { cluster } => {
                let store = Rc::new(MemoryNode::new("cache"));
                Rc::new(OverlayNode::new(top, store, Keep::Reads, cluster)?)
            }
        };
    }
    Ok(Stack { top, images })
}

/// What a disk holds before any work.
async fn shadow_of(disk: &dyn Node) -> Shadow {
    let all = disk.read(0, IoBuf::new(disk.size() as usize)).await.unwrap();
    let mut shadow = Shadow::default();
    let sectors = all.chunks(SECTOR as usize).enumerate();
    shadow.below = sectors.filter(|(_, s)| !is_zero(s)).map(|(n, s)| (n as u64, s.to_vec())).collect();
    shadow
}

/// What is said of ranges covers the disk once, and what reads as zeros by it does.
async fn status_is_true(disk: &dyn Node) {
    let mut at = 0;
    while at < disk.size() {
        let extent = disk.status(at, disk.size() - at).await.unwrap();
        assert!((1..=disk.size() - at).contains(&extent.len), "{extent:?} at {at}");
        if extent.zero {
            let bytes = disk.read(at, IoBuf::new(extent.len as usize)).await.unwrap();
            assert!(is_zero(&bytes), "{extent:?} at {at}");
        }
        at += extent.len;
    }
}

async fn nothing_is_wrong(images: &[Rc<dyn Image>]) -> Result<(), String> {
    // Nothing of a raw disk can be wrong.
    for image in images.iter().filter(|i| i.format() != Format::Raw) {
        let report = image.check(Repair::No, &Progress::default()).await.map_err(|e| e.to_string())?;
        if report.corruptions + report.errors > 0 {
            return Err(format!("{report:?}"));
        }
    }
    Ok(())
}

/// A disk that is full.
async fn base(world: &World) -> NodeRef {
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n / SECTOR * 31 + n % 251) as u8).collect();
    let base = world.add("base", MemoryNode::new("base"));
    base.write(0, IoData::copy_of(&bytes)).await.unwrap();
    base
}

#[test]
fn stacks_of_nodes_behave_like_one_disk() {
    let seeds = if common::long() { 2000 } else { 120 };
    for seed in 0..seeds {
        let layers = draw(&mut Random::new(seed), false);
        block_on(async {
            let mut world = World::new(seed);
            world.record = false;
            let Stack { top, images } = stack(base(&world).await, &layers, true).await.unwrap();
            let shadow = shadow_of(&*top).await;
            let work = Workload { cluster: 4096, ..Workload::new(seed, 200) };
            let wrong = |e: String| panic!("seed {seed}, {layers:?}: {e}");
            work.run(&*top, &shadow, &|| 0).await.unwrap_or_else(wrong);
            shadow.verify(&*top, None).await.unwrap_or_else(wrong);
            status_is_true(&*top).await;
            top.flush().await.unwrap();
            nothing_is_wrong(&images).await.unwrap_or_else(wrong);
            top.close().await.unwrap();
        });
    }
}

#[test]
fn stacks_of_images_survive_power_cuts() {
    let (seeds, cuts) = if common::long() { (200, 12) } else { (40, 5) };
    for seed in 0..seeds {
        let layers = draw(&mut Random::new(seed), true);
        block_on(async {
            let world = World::new(seed);
            let made = stack(base(&world).await, &layers, true).await.unwrap();
            made.top.flush().await.unwrap();
            let shadow = shadow_of(&*made.top).await;
            let begin = world.now();
            let work = Workload { cluster: 4096, ..Workload::new(seed, 100) };
            let wrong = |e: String| panic!("seed {seed}, {layers:?}: {e}");
            work.run(&*made.top, &shadow, &|| world.tick()).await.unwrap_or_else(wrong);
            let (records, names) = (world.records(), world.names());
            for cut in Cuts::new(&names, &records, begin, cuts, Random::new(seed)) {
                let at = cut.at;
                let mut after = World::new(0);
                (after.slow, after.record) = (false, false);
                let (name, memory) = cut.files.into_iter().next().unwrap();
                let again = stack(after.add(&name, memory), &layers, false).await;
                let again = again.unwrap_or_else(|e| panic!("seed {seed}, {layers:?}: {e}"));
                shadow.verify(&*again.top, Some(at)).await.unwrap_or_else(wrong);
                nothing_is_wrong(&again.images).await.unwrap_or_else(wrong);
                again.top.close().await.unwrap();
            }
        });
    }
}
