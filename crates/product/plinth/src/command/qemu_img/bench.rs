//! `qemu-img bench`.

use plinth_image::job::{self, BenchOptions};

use super::getopt::parse;
use super::names::{cache, number};
use super::open::{How, how, image};
use super::{Exit, Result, block_on, reason, say};

/// `qemu-img bench`.
pub fn run(args: Vec<String>) -> Result {
    let long = [
        ("flush-interval", true, "flush-interval"),
        ("pattern", true, "pattern"),
        ("no-drain", false, "no-drain"),
        ("force-share", false, "U"),
    ];
    let parsed = parse(args, "hc:d:f:ni:o:qs:S:t:wU", &long)?;
    let whole = |name: &str, default: u64, why: &str| match parsed.value(name) {
        None => Ok(default),
        Some(text) => text.parse().ok().filter(|n| *n <= i32::MAX as u64).ok_or_else(|| Exit::failed(why)),
    };
    let size =
        |name: &str, default: u64, what: &str| parsed.value(name).map_or(Ok(default), |v| number(what, v));
    let count = whole("c", 75_000, "Invalid request count specified")?;
    let depth = whole("d", 64, "Invalid queue depth specified")?;
    let pattern = whole("pattern", 0, "Invalid pattern byte specified")?;
    let flush = whole("flush-interval", 0, "Invalid flush interval specified")?;
    if let Some(aio) = parsed.value("i").filter(|a| !matches!(*a, "native" | "threads" | "io_uring")) {
        return Err(Exit::failed(format!("Invalid aio option: {aio}")));
    }
    let buffer = size("s", 4096, "buffer size")?;
    let step = size("S", 0, "step_size")?;
    let offset = size("o", 0, "offset")?;
    let pattern = u8::try_from(pattern).map_err(|_| Exit::failed("Invalid pattern byte specified"))?;
    let write = parsed.has("w");
    let name = parsed.one("Expecting one image file name")?;
    let mode = parsed.value("t").unwrap_or("writeback");
    let cache = cache(mode).ok_or_else(|| Exit::failed("Invalid cache mode"))?;
    if flush > 0 && !write {
        return Err(Exit::failed("--flush-interval is only available in write tests"));
    }
    if flush > 0 && flush < depth {
        return Err(Exit::failed("Flush interval can't be smaller than depth"));
    }
    let options = BenchOptions {
        count,
        depth: depth as usize,
        size: u32::try_from(buffer).map_err(|_| Exit::failed("Invalid buffer size specified"))?,
        step,
        offset,
        write: write.then_some(pattern),
        flush_every: flush,
        no_drain: parsed.has("no-drain"),
    };
    let how = How { cache, ..how(&parsed, !write)? };
    block_on(async {
        let image = image(name, parsed.value("f"), parsed.has("image-opts"), &how).await?;
        let kind = if write { "write" } else { "read" };
        let step = if step == 0 { buffer } else { step };
        let mut text = format!(
            "Sending {count} {kind} requests, {buffer} bytes each, {depth} in parallel (starting at offset {offset}, \
             step size {step})\n"
        );
        if flush > 0 {
            text += &format!("Sending flush every {flush} requests\n");
        }
        say(&text)?;
        let failed = |e: plinth_image::Error| Exit::failed(format!("Failed request: {}", reason(&e)));
        let report = job::bench(&*image, &options).await.map_err(failed)?;
        if write {
            image.close().await.map_err(failed)?;
        }
        say(&format!("Run completed in {:.3} seconds.\n", report.time.as_secs_f64()))
    })
}
