//! `qemu-img check`.

use plinth_image::ErrorKind;
use plinth_image::format::{CheckReport, Format, Progress, Repair};
use serde_json::{Map, Value};

use super::getopt::parse;
use super::json::pretty;
use super::names::{cache, json_wanted, qemu_name};
use super::open::{How, how, image};
use super::words::finding;
use super::{Exit, Result, block_on, put, reason, say};
use crate::printable::printable;

fn text(r: &CheckReport) -> String {
    let mut text = String::new();
    if r.corruptions + r.leaks + r.errors == 0 {
        text += "No errors were found on the image.\n";
    }
    if r.corruptions > 0 {
        text += &format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may \
             corrupt it.\n",
            r.corruptions
        );
    }
    if r.leaks > 0 {
        text += &format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            r.leaks
        );
    }
    if r.errors > 0 {
        text += &format!("\n{} internal errors have occurred during the check.\n", r.errors);
    }
    if r.total_clusters > 0 && r.allocated_clusters > 0 {
        let percent = |n: u64, of: u64| n as f64 * 100.0 / of as f64;
        text += &format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            r.allocated_clusters,
            r.total_clusters,
            percent(r.allocated_clusters, r.total_clusters),
            percent(r.fragmented_clusters, r.allocated_clusters),
            percent(r.compressed_clusters, r.allocated_clusters)
        );
    }
    if r.image_end > 0 {
        text += &format!("Image end offset: {}\n", r.image_end);
    }
    text
}

fn value(r: &CheckReport, name: &str, format: &str, fixed: (u64, u64)) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, n: u64| {
        if n > 0 {
            map.insert(key.to_owned(), n.into());
        }
    };
    put("image-end-offset", r.image_end);
    put("corruptions", r.corruptions);
    put("leaks", r.leaks);
    put("corruptions-fixed", fixed.0);
    put("leaks-fixed", fixed.1);
    put("total-clusters", r.total_clusters);
    put("allocated-clusters", r.allocated_clusters);
    put("fragmented-clusters", r.fragmented_clusters);
    put("compressed-clusters", r.compressed_clusters);
    map.insert("check-errors".into(), r.errors.into());
    map.insert("filename".into(), name.into());
    map.insert("format".into(), format.into());
    Value::Object(map)
}

/// What was found, line by line.
fn tell(report: &CheckReport, repair: Repair) {
    for line in &report.messages {
        eprintln!("{}", printable(&finding(line, repair)));
    }
}

/// `qemu-img check`.
pub fn run(args: Vec<String>) -> Result {
    let long = [
        ("format", true, "f"),
        ("repair", true, "r"),
        ("output", true, "output"),
        ("force-share", false, "U"),
    ];
    let parsed = parse(args, "hf:r:T:qU", &long)?;
    let repair = match parsed.value("r") {
        None => Repair::No,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(Exit::usage(format!(
                "Unknown option value for -r (expecting 'leaks' or 'all'): {other}"
            )));
        }
    };
    let name = parsed.one("Expecting one image file name")?;
    let json = json_wanted(parsed.value("output"))?;
    let mode = parsed.value("T").unwrap_or("writeback");
    let cache = cache(mode).ok_or_else(|| Exit::failed(format!("Invalid source cache option: {mode}")))?;
    let how = How { cache, no_backing: true, for_check: true, ..how(&parsed, repair == Repair::No)? };
    let quiet = parsed.has("q");
    block_on(async {
        let image = image(name, parsed.value("f"), parsed.has("image-opts"), &how).await?;
        let progress = Progress::default();
        let explain = |e: plinth_image::Error| match e.kind {
            ErrorKind::Unsupported => Exit::Failed("This image format does not support checks".into(), 63),
            _ => Exit::failed(format!("Check failed: {}", reason(&e))),
        };
        // Printed at the end: between the two come the lines of the second check, on another stream.
        let mut shown = String::new();
        let mut report = image.check(repair, &progress).await.map_err(explain)?;
        if image.format() == Format::Vmdk && repair == Repair::No {
            // QEMU does not look for space that is not in use here, and scripts go by the exit code.
            report.leaks = 0;
            if report.corruptions + report.errors == 0 {
                report.messages.clear();
            }
        }
        tell(&report, repair);
        let fixed = (report.corruptions_fixed, report.leaks_fixed);
        if fixed != (0, 0) {
            if !json && !quiet {
                shown = format!(
                    "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} \
                     corruptions\n\nDouble checking the fixed image now...\n",
                    fixed.1, fixed.0
                );
            }
            report = image.check(Repair::No, &progress).await.map_err(explain)?;
            tell(&report, Repair::No);
        }
        if repair != Repair::No {
            image.close().await.map_err(explain)?;
        }
        if json {
            put(&format!("{}\n", pretty(&value(&report, name, qemu_name(image.format()), fixed))))?;
        } else if !quiet {
            say(&(shown + &text(&report)))?;
        }
        match (report.errors, report.corruptions, report.leaks) {
            (1.., ..) => Err(Exit::failed("Check failed")),
            (_, 1.., _) => Err(Exit::Code(2)),
            (.., 1..) => Err(Exit::Code(3)),
            _ => Ok(()),
        }
    })
}
