//! Random sequences of operations, done by Plinth and by QEMU's tools, on two images that must hold the same then.
//!
//! Each sequence has two images, one made here and one made by the peer, over bases of their own where the format has
//! them. Every step is done to both: by Plinth to the one and by the peer to the other, and in the next step perhaps
//! the other way round. At the end both programs read both images, and both check them. `PLINTH_SEQUENCES` says how
//! many sequences there are in all, `PLINTH_SEED` with which one they begin, `PLINTH_FORMAT` which format alone is taken.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use common::has;
use plinth_host::aio::block_on;
use plinth_image::format::{
    BackingLink, CreateRequest, Format, Image, OpenOptions, Options, Output, OutputFiles, Progress, Repair,
    Snapshot, open,
};
use plinth_image::graph::{Cache, IoBuf, IoData, Node};
use plinth_image::job::{commit, rebase_safe};
use plinth_image::testing::Random;

const SECRET: &[u8] = b"123456";
const M: u64 = 1 << 20;

/// A format with a set of options, as each program writes them, and how often it is taken.
struct Kind {
    format: Format,
    /// QEMU's name of the format.
    peer: &'static str,
    ours: &'static str,
    theirs: &'static str,
    /// Images over others, and snapshots inside.
    over: bool,
    snapshots: bool,
    /// Both can change the size; the peer's check knows the format.
    resize: bool,
    check: bool,
    weight: u64,
}

const fn kind(format: Format, peer: &'static str, options: &'static str, weight: u64) -> Kind {
    Kind {
        format,
        peer,
        ours: options,
        theirs: options,
        over: false,
        snapshots: false,
        resize: false,
        check: true,
        weight,
    }
}

const fn qcow2(options: &'static str) -> Kind {
    Kind { over: true, snapshots: true, resize: true, ..kind(Format::Qcow2, "qcow2", options, 45) }
}

fn kinds() -> Vec<Kind> {
    let mut all: Vec<Kind> = [
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
        "data_file=data",
        "data_file=data,data_file_raw=on,cluster_size=16k",
    ]
    .into_iter()
    .map(qcow2)
    .collect();
    for one in &mut all {
        if one.ours.contains("data_file") {
            (one.over, one.snapshots) = (false, false);
        }
        // One user of a cluster at most: no snapshots.
        one.snapshots &= !one.ours.contains("refcount_bits=1");
        one.snapshots |= one.ours.contains("cluster_size=2M");
        // Version 2 has no zeros to put over a base, where QEMU gives up; and see below on the last cluster.
        one.resize &= !one.ours.contains("0.10") && !one.ours.contains("cluster_size=2M");
    }
    all.extend(
        [
            "",
            "zeroed_grain=on",
            "subformat=monolithicFlat",
            "subformat=twoGbMaxExtentSparse",
            "subformat=twoGbMaxExtentFlat",
        ]
        .map(|o| Kind { over: o.is_empty(), ..kind(Format::Vmdk, "vmdk", o, 30) }),
    );
    all.extend([
        Kind { ours: "", theirs: "", ..kind(Format::Vdi, "vdi", "", 40) },
        Kind { ours: "static", theirs: "static=on", ..kind(Format::Vdi, "vdi", "", 20) },
        Kind { check: false, ..kind(Format::Vhd, "vpc", "force_size=on", 40) },
        Kind { check: false, ..kind(Format::Vhd, "vpc", "force_size=on,subformat=fixed", 20) },
        kind(Format::Vhdx, "vhdx", "block_size=1M", 40),
        kind(Format::Vhdx, "vhdx", "subformat=fixed,block_size=1M", 20),
        kind(Format::Parallels, "parallels", "cluster_size=64k", 40),
        kind(Format::Parallels, "parallels", "cluster_size=4k", 20),
        Kind { check: false, resize: true, ..kind(Format::Raw, "raw", "", 30) },
        Kind {
            ours: "iter-time=1",
            theirs: "key-secret=s,iter-time=10",
            check: false,
            ..kind(Format::Luks, "luks", "", 20)
        },
    ]);
    all
}

/// One thing that is done to the disk.
#[derive(Clone, Debug)]
enum Request {
    Write { at: u64, len: u64, byte: u8, compressed: bool },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Resize(u64),
    Flush,
}

/// One step: what one program does before the other one may be next.
#[derive(Clone, Debug)]
enum Step {
    Requests(Vec<Request>),
    Take(String),
    Apply(String),
    Delete(String),
    Commit,
    /// Onto the base with this number, or none.
    Rebase(Option<usize>),
}

/// What the disk should hold, and its snapshots and bases.
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    bases: [Vec<u8>; 2],
    base: Option<usize>,
}

/// A folder with one image and its bases.
struct Side {
    dir: PathBuf,
    kind: &'static Kind,
}

const TOP: &str = "image";

impl Side {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// How the peer is to open it.
    fn source(&self, name: &str) -> Vec<String> {
        if self.kind.format == Format::Luks {
            let image = format!("driver=luks,key-secret=s,file.filename={name}");
            return ["--object", "secret,id=s,data=123456", "--image-opts", &image].map(str::to_owned).into();
        }
        ["-f", self.kind.peer, name].map(str::to_owned).into()
    }

    /// Runs one of the peer's tools; what it says if it fails.
    fn peer(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let out = Command::new(program).args(args).current_dir(&self.dir).output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if out.status.success() { Ok(text) } else { Err(format!("{program} {args:?}: {text}")) }
    }

    fn peer_creates(&self, name: &str, size: u64, base: Option<&str>) -> Result<(), String> {
        let size = size.to_string();
        let mut args = vec!["create", "-q", "-f", self.kind.peer];
        if self.kind.format == Format::Luks {
            args.extend(["--object", "secret,id=s,data=123456"]);
        }
        if !self.kind.theirs.is_empty() {
            args.extend(["-o", self.kind.theirs]);
        }
        if let Some(base) = base {
            args.extend(["-b", base, "-F", self.kind.peer]);
        }
        args.extend([name, &size]);
        self.peer("qemu-img", &args).map(drop)
    }

    async fn create(&self, name: &str, size: u64, base: Option<&str>) -> Result<(), String> {
        let failed = |e: plinth_image::Error| format!("Plinth creates {name}: {e}");
        let output = OutputFiles::new(&self.path(name), Cache::Cached).map_err(failed)?;
        let options = Options::parse(self.kind.ours).map_err(failed)?;
        let driver = self.kind.format.driver().unwrap();
        let backing = match base {
            Some(base) => Some(self.link(base).await?),
            None => None,
        };
        let secret = (self.kind.format == Format::Luks).then_some(SECRET);
        let request = CreateRequest {
            output: &output,
            size,
            options: &options,
            backing: backing.map(Into::into),
            secret,
        };
        let image = (driver.create.unwrap())(request).await.map_err(failed)?;
        image.close().await.map_err(failed)?;
        drop(image);
        assert!(!output.name().is_empty());
        output.finish().map_err(failed)
    }

    async fn link(&self, base: &str) -> Result<BackingLink, String> {
        let identity = self.open(base, true, false).await?.describe().identity;
        Ok(BackingLink { name: base.to_owned(), format: Some(self.kind.format), identity })
    }

    async fn open(&self, name: &str, read_only: bool, no_backing: bool) -> Result<Rc<dyn Image>, String> {
        let options = OpenOptions {
            format: Some(self.kind.format),
            read_only,
            no_backing,
            secret: (self.kind.format == Format::Luks).then(|| SECRET.into()),
            ..OpenOptions::default()
        };
        Ok(open(&self.path(name), &options).await.map_err(|e| format!("Plinth opens {name}: {e}"))?.image)
    }

    /// The peer's part of a step.
    fn peer_does(&self, step: &Step) -> Result<(), String> {
        let done = match step {
            Step::Requests(requests) => {
                let mut args = self.source(TOP);
                let name = args.pop().unwrap();
                args.extend(["-d", "unmap"].map(str::to_owned));
                for request in requests {
                    args.extend(["-c".to_owned(), command(request)]);
                }
                args.push(name);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                self.peer("qemu-io", &args).and_then(|text| {
                    let bad = text.contains("failed") || text.contains("rror") || text.contains("annot");
                    if bad { Err(format!("qemu-io {args:?}: {text}")) } else { Ok(String::new()) }
                })
            }
            Step::Take(name) => self.peer("qemu-img", &["snapshot", "-q", "-c", name, TOP]),
            Step::Apply(name) => self.peer("qemu-img", &["snapshot", "-q", "-a", name, TOP]),
            Step::Delete(name) => self.peer("qemu-img", &["snapshot", "-q", "-d", name, TOP]),
            Step::Commit => self.peer("qemu-img", &["commit", "-q", "-f", self.kind.peer, TOP]),
            Step::Rebase(base) => {
                let name = base.map_or(String::new(), base_name);
                let peer = self.kind.peer;
                self.peer("qemu-img", &["rebase", "-q", "-f", peer, "-F", peer, "-b", &name, TOP])
            }
        };
        done.map(drop)
    }

    /// Plinth's part of a step.
    async fn does(&self, step: &Step) -> Result<(), String> {
        let failed = |e: plinth_image::Error| format!("Plinth: {step:?}: {e}");
        let own = matches!(step, Step::Commit);
        let image = self.open(TOP, false, own).await?;
        let snapshots = || image.snapshots().expect("the format has snapshots");
        match step {
            Step::Requests(requests) => {
                for request in requests {
                    self.request(&*image, request).await.map_err(|e| format!("Plinth: {request:?}: {e}"))?;
                }
            }
            Step::Take(name) => {
                let template = Snapshot {
                    name: name.clone(),
                    date: (1_700_000_000, 5),
                    vm_clock: 9,
                    ..Snapshot::default()
                };
                snapshots().create(&template).await.map_err(failed)?;
            }
            Step::Apply(name) => snapshots().apply(name).await.map_err(failed)?,
            Step::Delete(name) => snapshots().delete(name).await.map_err(failed)?,
            Step::Commit => {
                let base = image.describe().backing.expect("it has a base").name;
                let below = self.open(&base, false, false).await?;
                commit(&*image, &*below, &Progress::default()).await.map_err(failed)?;
                below.close().await.map_err(failed)?;
                let link = BackingLink {
                    name: base,
                    format: Some(self.kind.format),
                    identity: below.describe().identity,
                };
                // The base has a new identity then, where the format has them.
                if link.identity.is_some() {
                    image.set_backing(Some(&link)).await.map_err(failed)?;
                }
            }
            Step::Rebase(base) => {
                let (mut below, mut link) = (None, None);
                if let Some(n) = base {
                    let name = base_name(*n);
                    below = Some(self.open(&name, true, false).await?);
                    link = Some(self.link(&name).await?);
                }
                let node = below.as_deref().map(|b| b as &dyn Node);
                rebase_safe(&*image, node, false, &Progress::default()).await.map_err(failed)?;
                image.set_backing(link.as_ref()).await.map_err(failed)?;
            }
        }
        image.close().await.map_err(failed)
    }

    async fn request(&self, image: &dyn Image, request: &Request) -> Result<(), plinth_image::Error> {
        match *request {
            Request::Write { at, len, byte, compressed } => {
                let data = IoData::copy_of(&vec![byte; len as usize]);
                match image.write_compressed(at, data.clone()).filter(|_| compressed) {
                    Some(write) => write.await,
                    None => image.write(at, data).await,
                }
            }
            Request::Zero { at, len, unmap } => image.write_zeroes(at, len, unmap).await,
            Request::Discard { at, len } => image.discard(at, len).await,
            Request::Resize(size) => image.resize(size).await,
            Request::Flush => image.flush().await,
        }
    }
}

/// What QEMU 10.0 does wrong.
fn peer_cannot(kind: &Kind, step: &Step) -> bool {
    match step {
        // It loses zeros when it rebases images of version 2, which cannot note them.
        Step::Rebase(_) => kind.ours.contains("0.10"),
        // It changes the base's content ID and not what the image over it says of that, and cannot read that any more.
        Step::Commit => kind.format == Format::Vmdk,
        _ => false,
    }
}

fn base_name(n: usize) -> String {
    format!("base{n}")
}

/// A request in the words of `qemu-io`.
fn command(request: &Request) -> String {
    match request {
        // Not compressed: QEMU 10.0 gives out clusters twice when it writes compressed data beside other data.
        Request::Write { at, len, byte, .. } => format!("write -q -P {byte} {at} {len}"),
        Request::Zero { at, len, unmap: false } => format!("write -q -z {at} {len}"),
        Request::Zero { at, len, unmap: true } => format!("write -q -z -u {at} {len}"),
        Request::Discard { at, len } => format!("discard -q {at} {len}"),
        Request::Resize(size) => format!("truncate {size}"),
        Request::Flush => "flush".to_owned(),
    }
}

fn fill(disk: &mut [u8], at: u64, len: u64, byte: u8) {
    disk[at as usize..(at + len) as usize].fill(byte);
}

/// Requests that follow each other, and what they make of the disk.
fn requests(kind: &Kind, random: &mut Random, model: &mut Model, cluster: u64) -> Vec<Request> {
    let mut out = Vec::new();
    for _ in 0..2 + random.below(7) {
        let size = model.disk.len() as u64;
        let at = random.below(size / 512) * 512;
        let most = if random.one_in(2) { 16 } else { 300 };
        let (mut at, mut len) = (at, ((1 + random.below(most)) * 512).min(size - at));
        if random.one_in(3) {
            at = at / cluster * cluster;
            len = (len.div_ceil(cluster) * cluster).min(size - at);
        }
        let byte = 1 + random.below(255) as u8;
        match random.below(12) {
            0..5 => {
                out.push(Request::Write { at, len, byte, compressed: false });
                fill(&mut model.disk, at, len, byte);
            }
            5 if kind.format == Format::Qcow2
                && (8192..M / 2).contains(&cluster)
                && !kind.ours.contains("data_file") =>
            {
                let at = at / cluster * cluster;
                let len = cluster.min(size - at);
                if model.base.is_none() && model.snapshots.is_empty() && len == cluster {
                    out.push(Request::Discard { at, len });
                    out.push(Request::Write { at, len, byte, compressed: true });
                    fill(&mut model.disk, at, len, byte);
                }
            }
            5..8 => {
                out.push(Request::Zero { at, len, unmap: random.one_in(2) });
                fill(&mut model.disk, at, len, 0);
            }
            8 | 9 => {
                // What a discard leaves is not said, so something is written there then.
                out.push(Request::Discard { at, len });
                out.push(match random.below(3) {
                    0 => Request::Write { at, len, byte, compressed: false },
                    n => Request::Zero { at, len, unmap: n == 1 },
                });
                fill(&mut model.disk, at, len, if is_write(out.last()) { byte } else { 0 });
            }
            10 if kind.resize && model.snapshots.is_empty() => {
                let new = if random.one_in(3) {
                    size / 1024 * 512 + random.below(size / 1024) * 512
                } else {
                    size + random.below(800) * 512
                };
                // QEMU 10.0 leaves in the last cluster what a larger disk had, and shows it when it grows again.
                let grain = if kind.format == Format::Qcow2 { cluster } else { 512 };
                let new = (new / grain * grain).clamp(64 << 10, 6 * M);
                out.push(Request::Resize(new));
                model.disk.resize(new as usize, 0);
            }
            _ => out.push(Request::Flush),
        }
    }
    out
}

fn is_write(request: Option<&Request>) -> bool {
    matches!(request, Some(Request::Write { .. }))
}

/// The next step, and what it makes of the disk.
fn next(kind: &Kind, random: &mut Random, model: &mut Model, cluster: u64) -> Step {
    let name = format!("s{}", random.below(1000));
    match random.below(10) {
        4 | 5 if kind.snapshots && model.snapshots.iter().all(|s| s.0 != name) => {
            model.snapshots.push((name.clone(), model.disk.clone()));
            Step::Take(name)
        }
        6 if !model.snapshots.is_empty() => {
            let n = random.below(model.snapshots.len() as u64) as usize;
            model.disk.clone_from(&model.snapshots[n].1);
            Step::Apply(model.snapshots[n].0.clone())
        }
        7 if !model.snapshots.is_empty() => {
            let n = random.below(model.snapshots.len() as u64) as usize;
            Step::Delete(model.snapshots.remove(n).0)
        }
        // Snapshots would show other contents over another base; a base that becomes longer stays so.
        8 if model.base.is_some() && model.snapshots.is_empty() => {
            let base = &mut model.bases[model.base.unwrap()];
            if base.len() < model.disk.len() {
                base.resize(model.disk.len(), 0);
            }
            base[..model.disk.len()].copy_from_slice(&model.disk);
            Step::Commit
        }
        9 if kind.over && kind.snapshots && model.snapshots.is_empty() => {
            model.base = [None, Some(0), Some(1)][random.below(3) as usize];
            Step::Rebase(model.base)
        }
        _ => Step::Requests(requests(kind, random, model, cluster)),
    }
}

fn differs(a: &[u8], b: &[u8]) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("{} bytes, not {}", a.len(), b.len()));
    }
    let n = a.iter().zip(b).position(|(a, b)| a != b)?;
    Some(format!("byte {n} is {}, not {}", a[n], b[n]))
}

async fn contents(disk: &dyn Node) -> Result<Vec<u8>, String> {
    let read = disk.read(0, IoBuf::new(disk.size() as usize)).await;
    Ok(read.map_err(|e| e.to_string())?.to_vec())
}

/// One sequence; what was wrong, and how many steps there were.
async fn sequence(kind: &'static Kind, seed: u64, dir: &Path) -> Result<u64, String> {
    let mut random = Random::new(seed);
    let sides = ["a", "b"].map(|name| Side { dir: dir.join(name), kind });
    for side in &sides {
        std::fs::create_dir_all(&side.dir).unwrap();
    }
    let size = M + random.below(3) * 512 * 7;
    let size = if matches!(kind.format, Format::Vhdx) { 3 * M } else { size };
    let mut model = Model {
        disk: vec![0; size as usize],
        snapshots: Vec::new(),
        bases: [vec![0; size as usize], vec![0; (size / 2 / 512 * 512) as usize]],
        base: None,
    };
    if kind.over {
        for n in 0..2 {
            let len = model.bases[n].len() as u64;
            let (at, byte) = (random.below(len / 1024) * 512, 200 + n as u8);
            let run = (len / 3).min(len - at);
            fill(&mut model.bases[n], at, run, byte);
            for side in &sides {
                side.create(&base_name(n), len, None).await?;
                let image = side.open(&base_name(n), false, false).await?;
                image
                    .write(at, IoData::copy_of(&vec![byte; run as usize]))
                    .await
                    .map_err(|e| e.to_string())?;
                image.close().await.map_err(|e| e.to_string())?;
            }
        }
        if random.one_in(2) {
            model.base = Some(0);
            model.disk.copy_from_slice(&model.bases[0]);
        }
    }
    let base = model.base.map(base_name);
    sides[0].create(TOP, size, base.as_deref()).await?;
    sides[1].peer_creates(TOP, size, base.as_deref())?;
    let cluster = sides[0].open(TOP, true, true).await?.describe().cluster_size.unwrap_or(4096).min(M / 2);
    let mut log = Vec::new();
    // The images that the peer was the last to change the length of.
    let mut peers = [false, true];
    let steps = 3 + random.below(4);
    for n in 0..steps {
        let step = if n == 0 && kind.format == Format::Luks {
            // What was never written is what random bytes become when they are decrypted.
            Step::Requests(vec![Request::Write { at: 0, len: size, byte: 0, compressed: false }])
        } else {
            next(kind, &mut random, &mut model, cluster)
        };
        let ours = usize::from(random.one_in(2));
        log.push((ours, step.clone()));
        let length = || std::fs::metadata(sides[ours].path(TOP)).map(|m| m.len()).ok();
        let before = length();
        let result = match sides[ours].does(&step).await {
            Ok(()) if peer_cannot(kind, &step) => sides[1 - ours].does(&step).await,
            Ok(()) => sides[1 - ours].peer_does(&step),
            failed => failed,
        };
        result.map_err(|e| format!("{e}\n{log:?}"))?;
        peers[ours] &= length() == before;
        peers[1 - ours] = true;
    }
    let wrong = |what: String| format!("{what}\n(number of Plinth's image, step) {log:?}");
    for (n, side) in sides.iter().enumerate() {
        // The peer does not cut off what it gives back at the end of a Parallels disk.
        if kind.format == Format::Parallels && peers[n] {
            let image = side.open(TOP, false, false).await?;
            image.check(Repair::Leaks, &Progress::default()).await.map_err(|e| wrong(e.to_string()))?;
            image.close().await.map_err(|e| wrong(e.to_string()))?;
        }
        let image = side.open(TOP, true, false).await?;
        if let Some(how) = differs(&contents(&*image).await?, &model.disk) {
            return Err(wrong(format!("image {n}: {how}")));
        }
        for (name, disk) in &model.snapshots {
            let view = image.snapshots().unwrap().view(name).await.map_err(|e| e.to_string())?;
            if let Some(how) = differs(&contents(&*view).await?, disk) {
                return Err(wrong(format!("image {n}, snapshot {name}: {how}")));
            }
        }
        match image.check(Repair::No, &Progress::default()).await {
            // The peer forgets grains that become zeros.
            Ok(report) if report.corruptions == 0 && report.errors == 0 && kind.ours.contains("zeroed") => {}
            Ok(report) if !report.is_clean() => return Err(wrong(format!("image {n}: {report:?}"))),
            Err(e) if e.kind != plinth_image::ErrorKind::Unsupported => return Err(wrong(e.to_string())),
            _ => {}
        }
        drop(image);
        if kind.check {
            let mut args = vec!["check".to_owned(), "-q".to_owned()];
            args.extend(side.source(TOP));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            side.peer("qemu-img", &args).map_err(|e| wrong(format!("image {n}: {e}")))?;
        }
    }
    let [a, b] = sides.each_ref().map(|side| {
        let image = format!("driver={},file.filename={}", kind.peer, side.path(TOP).display());
        match kind {
            _ if kind.format == Format::Luks => image + ",key-secret=s",
            // QEMU looks for it in the folder where it runs.
            _ if kind.ours.contains("data_file") => {
                format!("{image},data-file.filename={}", side.path("data").display())
            }
            _ => image,
        }
    });
    let args = ["compare", "-q", "--object", "secret,id=s,data=123456", "--image-opts", &a, &b];
    sides[0].peer("qemu-img", &args).map_err(wrong)?;
    Ok(steps)
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |n| n.parse().expect("a number"))
}

#[test]
fn both_programs_do_the_same() {
    if !has("qemu-img") || !has("qemu-io") {
        return;
    }
    let (sequences, first) = (number("PLINTH_SEQUENCES", 44), number("PLINTH_SEED", 1));
    let kinds: &'static [Kind] = kinds().leak();
    let weights: u64 = kinds.iter().map(|k| k.weight).sum();
    let begin = std::time::Instant::now();
    let mut failures = Vec::new();
    let mut all = (0, 0);
    let only = std::env::var("PLINTH_FORMAT").ok();
    for kind in kinds.iter().filter(|k| only.as_deref().is_none_or(|only| k.format.to_string() == only)) {
        let count = (sequences * kind.weight).div_ceil(weights);
        let (mut done, mut steps) = (0, 0);
        for seed in first..first + count {
            let dir = tempfile::tempdir().unwrap();
            match block_on(sequence(kind, seed, dir.path())) {
                Ok(n) => (done, steps) = (done + 1, steps + n),
                Err(e) => {
                    let what = format!("{} ({}), seed {seed}: {e}", kind.format, kind.ours);
                    // A long run shows at once what it finds.
                    println!("wrong: {what}");
                    failures.push(what);
                }
            }
        }
        all = (all.0 + done, all.1 + steps);
        println!("sequences: {} ({}): {done} of {count}, {steps} steps", kind.format, kind.ours);
    }
    let seconds = begin.elapsed().as_secs();
    println!("sequences: {} with {} steps in {seconds} s; {} wrong", all.0, all.1, failures.len());
    assert!(failures.is_empty(), "{} sequences are wrong; the first: {}", failures.len(), failures[0]);
}
