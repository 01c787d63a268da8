//! `plinth disk bench`.

use std::process::ExitCode;

use plinth_image::format::OpenOptions;
use plinth_image::graph::Cache;
use plinth_image::job::{self, BenchOptions};
use serde_json::json;

use super::address::open_with;
use super::common::{close, failed, interruptible, open_options, result};
use crate::cli::disk_tool::BenchArgs;
use crate::cli::{Global, size};
use crate::failure::{Failure, Result};

pub fn run(args: &BenchArgs, global: &Global) -> Result<ExitCode> {
    /// A buffer of each request has to fit into memory.
    const MAX_SIZE: u64 = 16 << 20;
    let size = u32::try_from(args.size.0)
        .ok()
        .filter(|&s| u64::from(s) <= MAX_SIZE)
        .ok_or_else(|| Failure::usage(format!("a request has {} at most", size::show(MAX_SIZE))))?;
    let options = BenchOptions {
        count: args.count,
        depth: args.depth as usize,
        size,
        step: args.step.map_or(args.size.0, |s| s.0),
        offset: args.offset.map_or(0, |o| o.0),
        write: args.write.then_some(0),
        flush_every: args.flush.unwrap_or(0),
        no_drain: false,
    };
    let report = interruptible(async {
        let cache = if args.cached { Cache::Cached } else { Cache::Direct };
        let how = open_options(&args.image.open, args.image.format, !args.write)?;
        let opened = open_with(&args.image.path, &args.image.open, &OpenOptions { cache, ..how }).await?;
        let report = job::bench(&*opened.image, &options).await.map_err(failed)?;
        if args.write {
            close(&*opened.image).await?;
        }
        Ok(report)
    })?;
    let seconds = report.time.as_secs_f64().max(1e-9);
    let (rate, bytes) = (report.count as f64 / seconds, report.bytes as f64 / seconds);
    let value = json!({
        "requests": report.count, "bytes": report.bytes, "seconds": seconds, "requests_per_second": rate,
        "bytes_per_second": bytes,
    });
    let text = format!(
        "{} {} of {} in {seconds:.3} s: {rate:.0} a second, {} a second\n",
        report.count,
        if args.write { "writes" } else { "reads" },
        size::show(args.size.0),
        size::show(bytes as u64)
    );
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
