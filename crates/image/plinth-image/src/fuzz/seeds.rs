//! Small images of every kind, made by Plinth itself, that inputs of the fuzzer are changes to.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::SECRET;
use crate::Error;
use crate::format::{
    BackingLink, CreateRequest, Driver, Format, Image, Links, MemoryOutput, OpenOptions, OpenRequest,
    Options, Output, Snapshot,
};
use crate::graph::{Io, IoBuf, IoData, MemoryNode, Node, NodeRef};
use crate::testing::samples;
use crate::{ErrorKind, SECTOR};

/// The image's main file.
pub const MAIN: &str = "image";

/// The files of an image and of those below it.
#[derive(Clone, Default)]
pub struct Files(BTreeMap<String, Rc<MemoryNode>>);

impl Files {
    /// Copies, which are not to grow to more than `limit` bytes each.
    pub fn copies(&self, limit: u64) -> Self {
        let copy = |node: &MemoryNode| Rc::new(node.clone().limited(limit));
        Self(self.0.iter().map(|(name, node)| (name.clone(), copy(node))).collect())
    }

    /// The main file.
    pub fn main(&self) -> Rc<MemoryNode> {
        self.0[MAIN].clone()
    }

    pub fn set_main(&mut self, node: MemoryNode) {
        self.0.insert(MAIN.to_owned(), Rc::new(node));
    }
}

impl Links for Files {
    fn open_file<'a>(&'a self, name: &'a str, _read_only: bool) -> Io<'a, NodeRef> {
        let file = self.0.get(name).map(|f| f.clone() as NodeRef);
        let file =
            file.ok_or_else(|| Error::new(ErrorKind::NotFound, "cannot open a file", "it is not there"));
        Box::pin(async { file })
    }

    fn open_backing<'a>(&'a self, link: &'a BackingLink) -> Io<'a, Rc<dyn Image>> {
        Box::pin(async move {
            let file = self.open_file(&link.name, true).await?;
            if link.name == MAIN {
                return Err(Error::new(ErrorKind::Denied, "cannot open a file", "it is its own parent"));
            }
            let format = link.format.unwrap_or(Format::Raw);
            let options = OpenOptions { format: Some(format), read_only: true, ..OpenOptions::default() };
            let driver = format.driver().ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "cannot open a file", "there is no such format")
            })?;
            (driver.open)(OpenRequest { file, links: Rc::new(self.clone()), options }).await
        })
    }

    fn candidates(&self, suffix: &str) -> Vec<String> {
        self.0.keys().filter(|n| n.ends_with(suffix)).cloned().collect()
    }
}

/// An image and what is known of it.
pub struct Seed {
    pub files: Files,
    /// Where 64 bytes begin that are not all the same: changes elsewhere mean little.
    pub hot: Vec<u64>,
    /// What the disk holds, if it is known.
    pub contents: Option<MemoryNode>,
}

impl Seed {
    fn new(files: Files, contents: Option<MemoryNode>) -> Self {
        const UNIT: u64 = 64;
        let main = files.main();
        let mut hot = Vec::new();
        let mut bytes = [0; UNIT as usize];
        for at in (0..main.size()).step_by(UNIT as usize) {
            main.get(at, &mut bytes);
            // The one after it too: tables grow.
            if bytes.iter().any(|&b| b != bytes[0]) {
                hot.extend([at, at + UNIT]);
            }
        }
        hot.sort_unstable();
        hot.dedup();
        if hot.is_empty() {
            hot.push(0);
        }
        Self { files, hot, contents }
    }

    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut files = Files::default();
        files.set_main(MemoryNode::with(MAIN, bytes));
        Self::new(files, None)
    }
}

/// One image to make.
#[derive(Clone, Copy, Default)]
struct Plan {
    options: &'static str,
    size: u64,
    /// Over another image of the same format.
    over: bool,
    /// With a snapshot and a bitmap.
    more: bool,
    /// Left as by a crash, after a flush.
    crashed: bool,
}

const fn plan(options: &'static str, size: u64) -> Plan {
    Plan { options, size, over: false, more: false, crashed: false }
}

const K: u64 = 1024;

fn plans(format: Format) -> Vec<Plan> {
    let over = |options, size| Plan { over: true, ..plan(options, size) };
    let crashed = |options, size| Plan { crashed: true, ..plan(options, size) };
    let more = |options, size| Plan { more: true, ..plan(options, size) };
    match format {
        Format::Raw => vec![plan("", 64 * K)],
        Format::Qcow2 => vec![
            plan("cluster_size=512", 64 * K),
            more("cluster_size=512", 64 * K),
            more("cluster_size=1k,refcount_bits=64,compression_type=zstd", 64 * K),
            plan("cluster_size=4k,refcount_bits=1", 128 * K),
            more("extended_l2=on,cluster_size=16k", 128 * K),
            crashed("lazy_refcounts=on,cluster_size=512", 64 * K),
            more("compat=0.10,cluster_size=512", 64 * K),
            plan("data_file=data,cluster_size=4k", 64 * K),
            plan("data_file=data,data_file_raw=on,cluster_size=512", 64 * K),
            over("cluster_size=512", 64 * K),
            over("extended_l2=on,cluster_size=16k", 64 * K),
            plan("", 128 * K),
        ],
        Format::Vmdk => vec![
            plan("", 128 * K),
            plan("zeroed_grain=on", 128 * K),
            plan("subformat=streamOptimized", 128 * K),
            plan("subformat=monolithicFlat", 64 * K),
            plan("subformat=twoGbMaxExtentSparse", 128 * K),
            over("", 128 * K),
            crashed("", 128 * K),
        ],
        Format::Vdi => vec![
            plan("block_size=4k", 64 * K),
            plan("static,block_size=4k", 64 * K),
            over("block_size=4k", 64 * K),
            crashed("block_size=4k", 64 * K),
        ],
        Format::Vhd => vec![
            plan("block_size=4k", 64 * K),
            plan("subformat=fixed", 64 * K),
            over("block_size=4k", 64 * K),
            crashed("block_size=4k", 64 * K),
        ],
        Format::Vhdx => vec![
            plan("block_size=1M", 3 * K * K),
            plan("subformat=fixed,block_size=1M", K * K),
            over("block_size=1M", 3 * K * K),
            crashed("block_size=1M", 3 * K * K),
        ],
        Format::Parallels => vec![
            plan("cluster_size=4k", 64 * K),
            plan("cluster_size=512", 32 * K),
            crashed("cluster_size=4k", 64 * K),
        ],
        Format::Luks => vec![
            plan("iter-time=1,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv", 32 * K),
            plan("iter-time=1,hash-alg=sha1", 32 * K),
            plan("iter-time=1,version=2,pbkdf=pbkdf2,sector-size=512", 32 * K),
            plan("iter-time=1,version=2", 32 * K),
        ],
        _ => Vec::new(),
    }
}

/// The seeds of a format. Must be called in `block_on`.
pub async fn seeds(format: Format) -> Vec<Seed> {
    let mut all = Vec::new();
    for plan in plans(format) {
        let driver = format.driver().expect("a format with a plan has a driver");
        let seed = make(driver, plan).await;
        all.push(seed.unwrap_or_else(|e| panic!("cannot make {format} ({}): {e}", plan.options)));
    }
    let bytes = samples::data(40_000);
    all.extend(match format {
        Format::Vmdk => vec![
            Seed::of_bytes(&samples::cowd(&bytes[..8192])),
            Seed::of_bytes(&samples::sesparse(&bytes[..32_768], 0)),
        ],
        Format::Qed => vec![Seed::of_bytes(&samples::qed())],
        Format::Cloop => vec![Seed::of_bytes(&samples::cloop(&samples::data(3 * samples::CHUNK)))],
        Format::Dmg => dmgs(),
        Format::Parallels => vec![bundle().await],
        _ => Vec::new(),
    });
    all
}

fn dmgs() -> Vec<Seed> {
    let part = samples::data(samples::CHUNK);
    let mut lzfse = Vec::new();
    lzfse_rust::encode_bytes(&part, &mut lzfse).expect("memory suffices");
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    std::io::Write::write_all(&mut bzip2, &part).expect("memory suffices");
    std::io::Write::write_all(&mut xz, &part).expect("memory suffices");
    let bzip2 = bzip2.finish().expect("memory suffices");
    let xz = xz.finish().expect("memory suffices");
    let chunks = [
        (2, Vec::new()),
        (0x8000_0004, samples::adc(&part)),
        (0x8000_0005, samples::zlib(&part)),
        (0x8000_0006, bzip2),
        (0x8000_0007, lzfse),
        (0x8000_0008, xz),
    ];
    [false, true].map(|old| Seed::of_bytes(&samples::dmg(&chunks, old))).into()
}

/// A bundle of Parallels: a description of other images.
async fn bundle() -> Seed {
    let mut files = Files::default();
    for name in ["base.hds", "top.hds"] {
        let driver = Format::Parallels.driver().expect("there is one");
        let part = make(driver, plan("cluster_size=64k", 1 << 20)).await.expect("as for the others");
        files.0.insert(name.to_owned(), part.files.main());
    }
    let plain = MemoryNode::with("plain.hds", &[3; 4096]);
    plain.set_size(1 << 20);
    files.0.insert("plain.hds".to_owned(), Rc::new(plain));
    files.set_main(MemoryNode::with(MAIN, samples::PARALLELS_BUNDLE.as_bytes()));
    let driver = Format::Parallels.driver().expect("there is one");
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let request = OpenRequest { file: files.main(), links: Rc::new(files.clone()), options };
    let image = (driver.open)(request).await.expect("it was made for it");
    let contents = contents(&*image).await.expect("as for the others");
    Seed::new(files, Some(contents))
}

async fn contents(image: &dyn Image) -> Result<MemoryNode, Error> {
    let contents = MemoryNode::new("contents");
    contents.set_size(image.size());
    let mut at = 0;
    while at < image.size() {
        let n = (image.size() - at).min(65536);
        let bytes = image.read(at, IoBuf::new(n as usize)).await?;
        if !crate::graph::is_zero(&bytes) {
            contents.put(at, &bytes);
        }
        at += n;
    }
    Ok(contents)
}

async fn create(
    driver: &'static Driver,
    output: &MemoryOutput,
    size: u64,
    options: &str,
    backing: Option<BackingLink>,
) -> Result<Rc<dyn Image>, Error> {
    let options = Options::parse(options)?;
    options.check(driver.options)?;
    let secret = (driver.format == Format::Luks).then_some(SECRET);
    let request = CreateRequest { output, size, options: &options, backing: backing.map(Into::into), secret };
    (driver.create.expect("a format with a plan can be made"))(request).await
}

fn add(files: &mut Files, output: &MemoryOutput) {
    files.0.extend(output.files().into_iter().map(|(name, node)| (name, Rc::new((*node).clone()))));
}

async fn make(driver: &'static Driver, plan: Plan) -> Result<Seed, Error> {
    let mut files = Files::default();
    let mut backing = None;
    if plan.over {
        let name = format!("base.{}", driver.format);
        let output = MemoryOutput::new(&name);
        let base = create(driver, &output, plan.size, plan.options, None).await?;
        base.write(0, IoData::copy_of(&[0x33; 5000])).await?;
        base.write(plan.size / 2, IoData::copy_of(&[0x44; 5000])).await?;
        base.close().await?;
        add(&mut files, &output);
        let identity = base.describe().identity;
        backing = Some(BackingLink { name, format: Some(driver.format), identity });
    }
    let output = MemoryOutput::new(MAIN);
    create(driver, &output, plan.size, plan.options, backing).await?.close().await?;
    // From here on as who opens it, with what is below.
    let mut open_files = files.clone();
    open_files.0.extend(output.files());
    let file = output.file(output.name()).expect("it was made");
    let options = OpenOptions { secret: Some(SECRET.into()), ..OpenOptions::default() };
    let stream = plan.options.contains("streamOptimized");
    let image = if stream {
        // It is written once, by who makes it.
        create(driver, &output, plan.size, plan.options, None).await?
    } else {
        (driver.open)(OpenRequest { file, links: Rc::new(open_files.clone()), options }).await?
    };
    fill(&*image, plan).await?;
    if !plan.crashed {
        image.close().await?;
    }
    add(&mut files, &output);
    let contents = contents(&*image).await?;
    Ok(Seed::new(files, Some(contents)))
}

/// Data in some places, zeros, compressed data, and what else there is.
async fn fill(image: &dyn Image, plan: Plan) -> Result<(), Error> {
    let size = plan.size;
    let text = b"what a guest may write ".repeat(60);
    if plan.options.contains("streamOptimized") {
        image.write(0, IoData::copy_of(&text.repeat(60)[..65536])).await?;
        return image.write(size / 2, IoData::copy_of(&samples::data(65536))).await;
    }
    let third = size / 3 / SECTOR * SECTOR;
    image.write(third, IoData::copy_of(&[0x55; 9000])).await?;
    let cluster = image.describe().cluster_size.unwrap_or(4096).min(65536);
    let packed = text.repeat(60)[..cluster as usize].to_vec();
    if let Some(write) = image.write_compressed(0, IoData::copy_of(&packed)) {
        match write.await {
            Err(e) if e.kind != ErrorKind::Unsupported => return Err(e),
            _ => {}
        }
    }
    if plan.more
        && let Some(snapshots) = image.snapshots()
    {
        let template = Snapshot { name: "s".to_owned(), date: (1, 2), vm_clock: 3, ..Snapshot::default() };
        snapshots.create(&template).await?;
        if let Some(bitmaps) = image.bitmaps().filter(|_| !plan.options.contains("compat")) {
            bitmaps.add("b", Some(4096), true).await?;
            bitmaps.set("b", &[(0, 4096), (size / 2, 8192)]).await?;
        }
    }
    image.write(size - 700, IoData::copy_of(&text[..700])).await?;
    image.write_zeroes(third + 4096, 2048, true).await?;
    image.flush().await
}
