//! `plinth disk check`.

use std::process::ExitCode;

use plinth_image::format::{OpenOptions, Repair};
use serde_json::json;

use super::address::open_with;
use super::common::{close, failed, open_options, result, with_progress};
use super::package;
use crate::cli::Global;
use crate::cli::disk_tool::CheckArgs;
use crate::failure::{Code, Result};

pub fn run(args: &CheckArgs, global: &Global) -> Result<ExitCode> {
    if package::is_meant(&args.image) && args.image.open.disk.is_none() && args.repair.is_none() {
        return package::check(&args.image.path, global);
    }
    let repair = match args.repair.as_deref() {
        None => Repair::No,
        Some("leaks") => Repair::Leaks,
        Some(_) => Repair::All,
    };
    let report = with_progress("checking", async |progress| {
        let (image, read_only) = (&args.image, repair == Repair::No);
        let options = OpenOptions { for_check: true, ..open_options(&image.open, image.format, read_only)? };
        let opened = open_with(&image.path, &image.open, &options).await?;
        let report = opened.image.check(repair, progress).await.map_err(failed)?;
        if repair != Repair::No {
            close(&*opened.image).await?;
        }
        Ok(report)
    })?;
    let mut text = report.messages.iter().map(|m| format!("{m}\n")).collect::<String>();
    let count = |n: u64, fixed: u64, what: &str| {
        if n == 0 { String::new() } else { format!("{n} {what}, {fixed} of them mended\n") }
    };
    text += &count(report.corruptions, report.corruptions_fixed, "errors");
    text += &count(report.leaks, report.leaks_fixed, "leaks of space");
    if report.errors > 0 {
        text += &format!("{} parts could not be checked\n", report.errors);
    }
    if report.total_clusters > 0 {
        text += &format!(
            "{} of {} clusters have data, {} of them compressed\n",
            report.allocated_clusters, report.total_clusters, report.compressed_clusters
        );
    }
    text += if report.is_clean() { "the image is in order\n" } else { "the image is NOT in order\n" };
    let value = json!({
        "clean": report.is_clean(), "corruptions": report.corruptions,
        "corruptions_fixed": report.corruptions_fixed, "leaks": report.leaks, "leaks_fixed": report.leaks_fixed,
        "errors": report.errors, "total_clusters": report.total_clusters,
        "allocated_clusters": report.allocated_clusters, "fragmented_clusters": report.fragmented_clusters,
        "compressed_clusters": report.compressed_clusters, "image_end": report.image_end,
        "messages": report.messages,
    });
    result(global, &value, &text)?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { Code::Failed.into() })
}
