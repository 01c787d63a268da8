//! `plinth disk convert` and `plinth disk dd`.

use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use plinth_image::format::{Format, Options};
use plinth_image::graph::NodeRef;
use plinth_image::job::{self, ConvertRequest, CopyOptions, CopyReport};

use super::address::open_any;
use super::common::{
    allocated, backing_link, close, failed, new_format, new_options, place, result, secret, with_progress,
};
use crate::cli::disk_tool::{ConvertArgs, DdArgs, NewArgs};
use crate::cli::{Global, size};
use crate::failure::{Code, Failure, Result};

/// Turns `--compress TYPE` into an option of the format, where it has a choice.
pub fn choose_compression(options: &mut Options, format: Format, kind: &str) -> Result<()> {
    if kind.is_empty() {
        return Ok(());
    }
    let has_choice = format.driver().is_some_and(|d| d.options.iter().any(|o| o.name == "compression_type"));
    if !has_choice {
        return Err(Failure::usage(format!("the format {format} has no choice of compression"))
            .help("write --compress without a type"));
    }
    options.set("compression_type", kind);
    format.driver().map_or(Ok(()), |d| options.check(d.options)).map_err(failed)
}

fn report(global: &Global, target: &Path, format: Format, report: &CopyReport, start: Instant) -> Result<()> {
    let allocated = allocated(target);
    let seconds = start.elapsed().as_secs_f64();
    let value = serde_json::json!({
        "path": target, "format": format.name(), "read": report.read, "written": report.written,
        "allocated": allocated, "seconds": seconds, "unreadable": report.unreadable,
    });
    // Of a device or an export nobody says what it takes up.
    let place = match target.is_file() || target.is_dir() {
        true => format!(", {} on the disk", size::show(allocated)),
        false => String::new(),
    };
    let read = size::show(report.read);
    let mut text = format!("{}: {format}, {read} copied in {seconds:.1} s{place}\n", target.display());
    for (at, len) in &report.unreadable {
        text.push_str(&format!("unreadable, now zeros: {len} bytes at {at}\n"));
    }
    result(global, &value, &text)
}

/// Refuses to write what is read.
fn refuse_itself(source: &Path, target: &Path) -> Result<()> {
    let real = std::fs::canonicalize;
    match (real(source), real(target)) {
        (Ok(a), Ok(b)) if a == b => {
            let what = format!("'{}' is what is read, too", target.display());
            Err(Failure::usage(what).help("name another file for the new image"))
        }
        _ => Ok(()),
    }
}

pub fn run(args: &ConvertArgs, global: &Global) -> Result<ExitCode> {
    let Some((target, sources)) = args.paths.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(Failure::usage("name the images to read, and last the image to write"));
    };
    let format = new_format(&args.new, target);
    let Some(mut options) = new_options(&args.new.options, format)? else { return Ok(ExitCode::SUCCESS) };
    if let Some(kind) = &args.compress {
        choose_compression(&mut options, format, kind)?;
    }
    if args.backing.is_some() && sources.len() > 1 {
        return Err(Failure::usage("several disks cannot be put over one backing image"));
    }
    for source in sources {
        refuse_itself(source, target)?;
    }
    let start = Instant::now();
    let done = with_progress("converting", async |progress| {
        let mut nodes: Vec<NodeRef> = Vec::new();
        for path in sources {
            let opened = open_any(path, &args.open, args.from).await?;
            nodes.push(match &args.snapshot {
                None => opened.image,
                Some(name) => {
                    let Some(snapshots) = opened.image.snapshots() else {
                        let why = format!("'{}' has no snapshots", path.display());
                        return Err(Failure::new(Code::Failed, why));
                    };
                    snapshots.view(name).await.map_err(failed)?
                }
            });
        }
        let mut backing = None;
        if let Some(path) = &args.backing {
            backing = Some(backing_link(target, path, args.backing_format, &args.open).await?.0);
        }
        // Compressed clusters lie at any byte, which is slow past the page cache.
        let cached = args.new.cached || args.compress.is_some();
        let files = place(target, &NewArgs { cached, ..args.new.clone() }).await?;
        let secret = secret(args.open.secret_file.as_deref())?;
        let copy = CopyOptions {
            compress: args.compress.is_some(),
            zero_run: args.zero_run.0,
            layers: backing.as_ref().map(|_| 1),
            salvage: args.salvage,
            rate: args.rate.map(|r| r.0),
            share: !args.no_reflink,
            ..CopyOptions::default()
        };
        let request = ConvertRequest {
            sources: nodes,
            format,
            options: &options,
            backing,
            secret: secret.as_deref(),
            copy,
        };
        let done = job::convert(request, &files, progress).await.map_err(failed)?;
        files.finish().map_err(failed)?;
        Ok(done)
    })?;
    report(global, target, format, &done, start)?;
    Ok(ExitCode::SUCCESS)
}

pub fn dd(args: &DdArgs, global: &Global) -> Result<ExitCode> {
    let format = new_format(&args.new, &args.target);
    let Some(options) = new_options(&args.new.options, format)? else { return Ok(ExitCode::SUCCESS) };
    refuse_itself(&args.source, &args.target)?;
    let start = Instant::now();
    let done = with_progress("copying", async |progress| {
        let opened = open_any(&args.source, &args.open, args.from).await?;
        let source: Rc<_> = opened.image;
        let from = args.skip.map_or(0, |s| s.0);
        if from > source.size() {
            return Err(Failure::usage(format!(
                "--skip is behind the disk's end at {}",
                size::show(source.size())
            )));
        }
        let to = args.length.map_or(u64::MAX, |l| from.saturating_add(l.0)).min(source.size());
        progress.total.set(to - from);
        let files = place(&args.target, &args.new).await?;
        let secret = secret(args.open.secret_file.as_deref())?;
        let image = job::create(&files, format, to - from, &options, None, secret.as_deref())
            .await
            .map_err(failed)?;
        let target_is_zero = job::starts_as_zeros(&*image).await.map_err(failed)?;
        let share = !args.no_reflink && !options.reserves_space();
        let copy = CopyOptions { target_is_zero, share, ..CopyOptions::default() };
        let done = job::copy(&*source, from..to, &*image, 0, &copy, progress).await.map_err(failed)?;
        close(&*image).await?;
        drop(image);
        files.finish().map_err(failed)?;
        Ok(done)
    })?;
    report(global, &args.target, format, &done, start)?;
    Ok(ExitCode::SUCCESS)
}
