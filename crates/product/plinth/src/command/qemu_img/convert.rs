//! `qemu-img convert` and `qemu-img dd`.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;

use plinth_image::format::{Backing, Format, Image, Options, Progress};
use plinth_image::graph::{Cache, NodeRef};
use plinth_image::job::{self, ConvertRequest, CopyOptions};

use super::create::{create_reason, inner, link, secret};
use super::getopt::{Parsed, parse};
use super::names::{cache, format, known_format, number, number_between, qemu_name, source_cache};
use super::open::{How, how, image, path};
use super::options::{NewOptions, can_have_backing, collect, sort};
use super::refusal::refusal;
use super::target::target as place;
use super::{Exit, Result, block_on, option_help, put, reason, say, warn};

/// Runs a job and shows how far it is, if `shown`: at each whole step of 1 % that it makes, as QEMU does, so that
/// programs that read this see the same of a small disk as of a large one.
pub async fn with_progress<T>(shown: bool, job: impl AsyncFnOnce(&Progress) -> Result<T>) -> Result<T> {
    /// Part of the work that is worth a line.
    const STEP: f64 = 0.01;
    if !shown {
        return job(&Progress::default()).await;
    }
    let print = |part: f64| put(&format!("    ({:.2}/100%)\r", part * 100.0));
    print(0.0)?;
    let told = Cell::new(0.0);
    let progress = Progress::watched(move |p| {
        let part = p.done.get().min(p.total.get()) as f64 / p.total.get().max(1) as f64;
        if part > told.get() + STEP || part < told.get() - STEP || part == 1.0 {
            told.set(part);
            // A terminal that is gone does not stop the work.
            let _ = print(part);
            let _ = std::io::stdout().flush();
        }
    });
    let value = job(&progress).await?;
    print(1.0)?;
    say("\n")?;
    Ok(value)
}

const SHORT: &str = "hf:O:B:CcF:o:l:S:pt:T:qnm:WUr:";

/// The snapshot that `-l` names.
pub fn snapshot_name(parsed: &Parsed) -> Result<Option<String>> {
    let Some(text) = parsed.value("l") else { return Ok(None) };
    let Some(_) = text.strip_prefix("snapshot.") else { return Ok(Some(text.to_owned())) };
    let map = super::tree::keys(text, "snapshot");
    if let Some(bad) = map.keys().find(|k| !matches!(k.as_str(), "snapshot.id" | "snapshot.name")) {
        warn(&format!("Invalid parameter '{bad}'"));
        return Err(Exit::failed(format!("Failed in parsing snapshot param '{text}'")));
    }
    Ok(map.into_values().next())
}

/// The disk as it was at a snapshot.
pub async fn at_snapshot(image: Rc<dyn Image>, name: &str) -> Result<NodeRef> {
    let failed = |why: String| Exit::failed(format!("Failed to load snapshot: {why}"));
    let Some(snapshots) = image.snapshots() else {
        let format = qemu_name(image.format());
        return Err(failed(format!("Device '' does not support snapshots ({format})")));
    };
    snapshots.view(name).await.map_err(|e| failed(reason(&e)))
}

/// How to copy, by the command's options.
fn copy_options(parsed: &Parsed) -> Result<CopyOptions> {
    let zero_run = match parsed.value("S") {
        None => 4096,
        Some(text) => match super::names::size(text) {
            Some(Ok(n)) if n % 512 == 0 && n <= 16 << 20 => n,
            _ => {
                return Err(Exit::failed(
                    "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
                     16777216. Select 0 to disable sparse detection (fully allocates output).",
                ));
            }
        },
    };
    if let Some(text) = parsed.value("m") {
        /// QEMU's limit of requests in flight.
        const MOST: u64 = 16;
        if !text.parse::<u64>().is_ok_and(|n| (1..=MOST).contains(&n)) {
            return Err(Exit::failed(format!(
                "Invalid number of coroutines. Allowed number of coroutines is between 1 and {MOST}"
            )));
        }
    }
    Ok(CopyOptions {
        zero_run,
        zero_grain: 1 << zero_run.max(1).ilog2(),
        progress_by_data: parsed.has("p") && !parsed.has("q"),
        compress: parsed.has("c"),
        salvage: parsed.has("salvage"),
        rate: parsed.value("r").map(|r| number("rate limit", r)).transpose()?,
        ..CopyOptions::default()
    })
}

fn check_combinations(parsed: &Parsed) -> Result {
    let wrong = [
        (
            parsed.has("skip-broken-bitmaps") && !parsed.has("bitmaps"),
            "Use of --skip-broken-bitmaps requires --bitmaps",
        ),
        (parsed.has("c") && parsed.has("C"), "Cannot enable copy offloading when -c is used"),
        (parsed.has("S") && parsed.has("C"), "Cannot enable copy offloading when -S is used"),
        (parsed.has("C") && parsed.has("salvage"), "Cannot use copy offloading in salvaging mode"),
        (parsed.has("target-image-opts") && !parsed.has("n"), "--target-image-opts requires use of -n flag"),
        (parsed.has("n") && parsed.has("o"), "-o has no effect when skipping image creation"),
        (parsed.has("target-is-zero") && !parsed.has("n"), "--target-is-zero requires use of -n flag"),
    ];
    match wrong.iter().find(|w| w.0) {
        Some((_, why)) => Err(Exit::failed(*why)),
        None => Ok(()),
    }
}

/// `qemu-img convert`.
pub fn convert(args: Vec<String>) -> Result {
    let long = [
        ("source-image-opts", false, "image-opts"),
        ("force-share", false, "U"),
        ("target-image-opts", false, "target-image-opts"),
        ("salvage", false, "salvage"),
        ("target-is-zero", false, "target-is-zero"),
        ("bitmaps", false, "bitmaps"),
        ("skip-broken-bitmaps", false, "skip-broken-bitmaps"),
    ];
    let parsed = parse(args, SHORT, &long)?;
    let snapshot = snapshot_name(&parsed)?;
    let copy = copy_options(&parsed)?;
    let out_format = parsed.value("O").unwrap_or("raw");
    if option_help::wanted(&parsed)? {
        return option_help::for_new(known_format(out_format)?, parsed.rest.len() > 1);
    }
    let all_options = collect(&parsed)?;
    check_combinations(&parsed)?;
    let Some((target, sources)) = parsed.rest.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(Exit::failed("Must specify image file name"));
    };
    let source_cache = source_cache(parsed.value("T")).map_err(Exit::failed)?;
    let from = How { cache: source_cache, ..how(&parsed, true)? };
    known_format(out_format)?;
    block_on(async {
        let mut nodes: Vec<NodeRef> = Vec::new();
        let mut first: Option<Rc<dyn Image>> = None;
        for source in sources {
            let opened = image(source, parsed.value("f"), parsed.has("image-opts"), &from).await?;
            first.get_or_insert_with(|| opened.clone());
            nodes.push(opened);
        }
        if let Some(name) = &snapshot {
            if nodes.len() > 1 {
                return Err(Exit::failed("No support for concatenating multiple snapshot"));
            }
            if let Some(image) = first.clone() {
                nodes = vec![at_snapshot(image, name).await?];
            }
        }
        let new = if parsed.has("n") {
            NewOptions::default()
        } else {
            sort(known_format(out_format)?, all_options)?
        };
        let broken = check_bitmaps(&parsed, first.as_deref(), nodes.len())?;
        let job = Job { parsed: &parsed, copy, from: &from, target, out_format, bitmaps_of: first, broken };
        if parsed.has("n") { job.into_there(nodes).await } else { job.into_new(nodes, new, sources).await }
    })
}

/// The bitmaps of the source that cannot be copied.
fn check_bitmaps(parsed: &Parsed, source: Option<&dyn Image>, sources: usize) -> Result<Vec<String>> {
    if !parsed.has("bitmaps") {
        return Ok(Vec::new());
    }
    if sources > 1 {
        return Err(Exit::failed("Copying bitmaps only possible with single source"));
    }
    let Some(bitmaps) = source.and_then(|s| s.bitmaps()) else {
        return Err(Exit::failed("Source lacks bitmap support"));
    };
    // QEMU looks at the newest first.
    let broken: Vec<String> = bitmaps.list().into_iter().rev().filter(|b| b.in_use).map(|b| b.name).collect();
    if let Some(name) = broken.first()
        && !parsed.has("skip-broken-bitmaps")
    {
        return Err(Exit::failed(format!(
            "Cannot copy inconsistent bitmap '{name}'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
        )));
    }
    Ok(broken)
}

/// Stores the first block of a raw image, as QEMU does: who opens it past the page cache finds out about alignment
/// by reading a stored block.
fn store_first_block(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    const BLOCK: usize = 4096;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    let mut block = [0; BLOCK];
    let len = file.read_at(&mut block, 0)?;
    if block[..len].iter().all(|&b| b == 0) { file.write_all_at(&block[..len], 0) } else { Ok(()) }
}

struct Job<'a> {
    parsed: &'a Parsed,
    copy: CopyOptions,
    from: &'a How,
    target: &'a str,
    out_format: &'a str,
    bitmaps_of: Option<Rc<dyn Image>>,
    broken: Vec<String>,
}

impl Job<'_> {
    fn shown(&self) -> bool {
        self.parsed.has("p") && !self.parsed.has("q")
    }

    fn target_cache(&self) -> Result<Cache> {
        match self.parsed.value("t") {
            // Compressed clusters lie at any byte, which is slow past the page cache.
            None if self.copy.compress => Ok(Cache::Cached),
            // Faster than the peer's default, and durable.
            None => Ok(Cache::Direct),
            Some(mode) => cache(mode).ok_or_else(|| Exit::failed(format!("Invalid cache option: {mode}"))),
        }
    }

    fn salvaged(&self, report: &job::CopyReport) {
        for (at, len) in &report.unreadable {
            for sector in (0..*len).step_by(512) {
                warn(&format!("warning: error while reading offset {}: Input/output error", at + sector));
            }
        }
    }

    /// Writes into an image that is there.
    async fn into_there(self, nodes: Vec<NodeRef>) -> Result {
        let how = How { cache: self.target_cache()?, secrets: self.from.secrets.clone(), ..How::default() };
        let opts = self.parsed.has("target-image-opts");
        let format = (!opts).then_some(self.out_format);
        let target = image(self.target, format, opts, &how).await?;
        let source: NodeRef = match <[NodeRef; 1]>::try_from(nodes) {
            Ok([one]) => one,
            Err(several) => Rc::new(job::Concat::new(several).map_err(|e| Exit::failed(reason(&e)))?),
        };
        if target.size() < source.size() {
            return Err(Exit::failed("output file is smaller than input file"));
        }
        if self.copy.compress && !can_compress(target.format()) {
            return Err(Exit::failed("Compression not supported for this file format"));
        }
        let backing = self.parsed.has("B");
        let options = CopyOptions {
            target_is_zero: self.parsed.has("target-is-zero"),
            layers: backing.then_some(1),
            note_zeros: has_notes(&*target),
            // What is there may have its space reserved.
            share: false,
            ..self.copy.clone()
        };
        let failed = |e: plinth_image::Error| Exit::failed(format!("error while converting: {}", reason(&e)));
        let report = with_progress(self.shown(), async |progress| {
            let report = job::copy(&*source, 0..source.size(), &*target, 0, &options, progress)
                .await
                .map_err(failed)?;
            Ok(report)
        })
        .await?;
        self.salvaged(&report);
        self.copy_bitmaps(&*target).await?;
        target.close().await.map_err(failed)
    }

    async fn into_new(self, nodes: Vec<NodeRef>, mut new: NewOptions, sources: &[String]) -> Result {
        let out = known_format(self.out_format)?;
        let name = qemu_name(out);
        if out.driver().is_none_or(|d| d.create.is_none()) {
            return Err(Exit::failed(format!("Format driver '{name}' does not support image creation")));
        }
        if let Some(base) = self.parsed.value("B") {
            if !can_have_backing(out) {
                return Err(Exit::failed(format!("Backing file not supported for file format '{name}'")));
            }
            new.backing = Some(base.to_owned());
        }
        if let Some(f) = self.parsed.value("F") {
            new.backing_format = Some(f.to_owned());
        }
        if new.backing.is_some() {
            if sources.len() > 1 {
                let why = "Having a backing file for the target makes no sense when concatenating multiple input images";
                return Err(Exit::failed(why));
            }
            if new.backing_format.is_none() {
                return Err(Exit::failed("Use of backing file requires explicit backing format"));
            }
        }
        if self.copy.compress {
            if !can_compress(out) {
                return Err(Exit::failed("Compression not supported for this file format"));
            }
            if new.own.text("encrypt.format").is_some() {
                return Err(Exit::failed("Compression and encryption not supported at the same time"));
            }
            if new.own.text("preallocation").is_some_and(|p| p != "off") {
                return Err(Exit::failed("Compression and preallocation not supported at the same time"));
            }
        }
        let target = self.target;
        let failed = |why: String| Exit::failed(format!("{target}: error while converting {name}: {why}"));
        let bytes = nodes.iter().fold(0, |sum: u64, n| sum.saturating_add(n.size()));
        let mut backing: Option<Backing> = None;
        if let Some(below) = &new.backing {
            let below_format = new.backing_format.as_deref().and_then(format);
            let found = link(target, below, below_format, self.from).await.map_err(|e| match e {
                Exit::Failed(why, code) => {
                    let why = inner(&why, below);
                    Exit::Failed(
                        format!("Could not open '{target}': Could not open backing file: {why}"),
                        code,
                    )
                }
                other => other,
            })?;
            backing = Some(found.0);
        }
        if let Some(why) = refusal(out, &new, bytes) {
            return Err(failed(why));
        }
        let secret = secret(&new, self.from).map_err(failed)?;
        let files = place(target, self.target_cache()?).await?;
        let layers = backing.as_ref().map(|_| 1);
        let copy = CopyOptions { layers, ..self.copy.clone() };
        let options: &Options = &new.own;
        let request =
            ConvertRequest { sources: nodes, format: out, options, backing, secret: secret.as_deref(), copy };
        let report = with_progress(self.shown(), async |progress| {
            job::convert(request, &files, progress).await.map_err(|e| failed(create_reason(&e, target)))
        })
        .await?;
        self.salvaged(&report);
        files.finish().map_err(|e| failed(reason(&e)))?;
        if out == Format::Raw
            && let Some(path) = path(target, false)
        {
            store_first_block(&path).map_err(|e| failed(e.to_string()))?;
        }
        if self.bitmaps_wanted() {
            let how = How { secrets: self.from.secrets.clone(), ..How::default() };
            let made = image(target, Some(name), false, &how).await?;
            self.copy_bitmaps(&*made).await?;
            made.close().await.map_err(|e| failed(reason(&e)))?;
        }
        Ok(())
    }

    fn bitmaps_wanted(&self) -> bool {
        self.parsed.has("bitmaps")
    }

    async fn copy_bitmaps(&self, target: &dyn Image) -> Result {
        if !self.bitmaps_wanted() {
            return Ok(());
        }
        let Some(to) = target.bitmaps() else {
            let name = qemu_name(target.format());
            return Err(Exit::failed(format!("Format driver '{name}' does not support bitmaps")));
        };
        let Some(from) = self.bitmaps_of.as_deref().and_then(|i| i.bitmaps()) else { return Ok(()) };
        for name in &self.broken {
            warn(&format!("warning: Skipping inconsistent bitmap '{name}'"));
        }
        for bitmap in from.list().into_iter().filter(|b| !self.broken.contains(&b.name)) {
            let failed = |e: plinth_image::Error| {
                Exit::failed(format!("Failed to create bitmap {}: {}", bitmap.name, reason(&e)))
            };
            let ranges = from.ranges(&bitmap.name).await.map_err(failed)?;
            to.add(&bitmap.name, Some(bitmap.granularity), bitmap.enabled).await.map_err(failed)?;
            to.set(&bitmap.name, &ranges).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// True if zeros can be noted in an image without any space for them.
fn has_notes(image: &dyn Image) -> bool {
    let details = image.describe().details;
    let new = details.get("compat").is_some_and(|c| c != "0.10");
    // A raw data file has the zeros itself.
    new && details.get("data-file-raw") != Some(&true.into())
}

/// True if a format has compressed clusters.
fn can_compress(format: Format) -> bool {
    matches!(format, Format::Qcow2 | Format::Vmdk)
}

/// `qemu-img dd`.
pub fn dd(args: Vec<String>) -> Result {
    let parsed = parse(args, "hf:O:U", &[("force-share", false, "U")])?;
    let out = parsed.value("O").unwrap_or("raw");
    let (mut block, mut count, mut skip, mut input, mut target) = (512, None, 0, None, None);
    for operand in &parsed.rest {
        let unknown = |o: &str| Exit::failed(format!("unrecognized operand {o}"));
        let (key, value) = operand.split_once('=').ok_or_else(|| unknown(operand))?;
        match key {
            "bs" => block = number_between("bs", value, 1, i32::MAX as u64)?,
            "count" => count = Some(number("count", value)?),
            "skip" => skip = number("skip", value)?,
            "if" => input = Some(value),
            "of" => target = Some(value),
            _ => return Err(unknown(key)),
        }
    }
    let (Some(input), Some(target)) = (input, target) else {
        return Err(Exit::failed("Must specify both input and output files"));
    };
    let from = How { cache: Cache::Spared, ..how(&parsed, true)? };
    block_on(async {
        let source = image(input, parsed.value("f"), parsed.has("image-opts"), &from).await?;
        let format = format(out).ok_or_else(|| Exit::failed("Unknown file format"))?;
        let end = count.and_then(|c: u64| c.checked_mul(block)).unwrap_or(u64::MAX).min(source.size());
        let start = skip.checked_mul(block).filter(|&s| s <= end);
        if start.is_none() {
            warn(&format!("{input}: cannot skip to specified offset"));
        }
        let start = start.unwrap_or(end);
        let failed = |e: plinth_image::Error| {
            Exit::failed(format!(
                "{target}: error while creating output image: {}",
                create_reason(&e, target)
            ))
        };
        let files = place(target, Cache::Direct).await?;
        let made = job::create(&files, format, end - start, &Options::default(), None, None)
            .await
            .map_err(failed)?;
        let target_is_zero = job::starts_as_zeros(&*made).await.map_err(failed)?;
        let copy = CopyOptions { target_is_zero, ..CopyOptions::default() };
        let wrote = |e: plinth_image::Error| {
            Exit::failed(format!("error while writing to output image file: {}", reason(&e)))
        };
        job::copy(&*source, start..end, &*made, 0, &copy, &Progress::default()).await.map_err(wrote)?;
        made.close().await.map_err(wrote)?;
        drop(made);
        files.finish().map_err(wrote)
    })
}
