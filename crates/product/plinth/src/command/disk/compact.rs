//! `plinth disk compact`.

use std::os::unix::fs::FileTypeExt;
use std::process::ExitCode;

use plinth_image::format::{Backing, Format, Image, OpenOptions, Options, OutputFiles, open};
use plinth_image::graph::Cache;
use plinth_image::job::{self, ConvertRequest, CopyOptions};
use serde_json::json;

use super::address::outer_only;
use super::common::{allocated, close, failed, open_options, result, with_progress};
use super::convert::choose_compression;
use crate::cli::disk_tool::CompactArgs;
use crate::cli::{Global, size};
use crate::failure::{Code, Failure, Result};

/// Bytes that raw images give back at once.
const GRAIN: u64 = 4096;

/// The options that an image like this one was created with, as far as its format tells.
fn options_of(image: &dyn Image) -> Options {
    let mut options = Options::default();
    let d = image.describe();
    let specs = image.format().driver().map_or(&[][..], |d| d.options);
    let has = |name: &str| specs.iter().any(|s| s.name == name);
    if let Some(n) = d.cluster_size.filter(|_| has("cluster_size")) {
        options.set("cluster_size", &n.to_string());
    }
    // QEMU's names for what it shows and for what it takes differ in these.
    let renamed = |name: &str| {
        match name {
            "compression-type" => "compression_type",
            "lazy-refcounts" => "lazy_refcounts",
            "refcount-bits" => "refcount_bits",
            "extended-l2" => "extended_l2",
            "create-type" => "subformat",
            _ => "",
        }
        .to_owned()
    };
    for (name, value) in &d.details {
        let name = if has(name) { name.clone() } else { renamed(name) };
        let value = match value {
            serde_json::Value::Bool(b) => if *b { "on" } else { "off" }.to_owned(),
            serde_json::Value::String(s) => s.clone(),
            serde_json::Value::Number(n) => n.to_string(),
            _ => continue,
        };
        if has(&name) {
            options.set(&name, &value);
        }
    }
    options
}

pub fn run(args: &CompactArgs, global: &Global) -> Result<ExitCode> {
    let image = &args.image;
    outer_only(&image.open, "compact")?;
    // Where the name is a link, the file behind it is replaced, not the link.
    let real = std::fs::canonicalize(&image.path).unwrap_or_else(|_| image.path.clone());
    let before = allocated(&image.path);
    with_progress("compacting", async |progress| {
        let opened =
            open(&image.path, &open_options(&image.open, image.format, false)?).await.map_err(failed)?;
        let disk = opened.image;
        if disk.format() == Format::Raw {
            job::punch_zeros(&*disk, GRAIN, progress).await.map_err(failed)?;
            return close(&*disk).await;
        }
        let d = disk.describe();
        let refuse = |what: &str| {
            let message = format!("cannot compact '{}': it has {what}", image.path.display());
            Err(Failure::new(Code::Failed, message)
                .help("a new image would not have them: remove them first, or convert to another file"))
        };
        if disk.snapshots().is_some_and(|s| !s.list().is_empty()) {
            return refuse("snapshots");
        }
        if disk.bitmaps().is_some_and(|b| !b.list().is_empty()) {
            return refuse("bitmaps");
        }
        if d.encrypted {
            return refuse("keys of its encryption");
        }
        if std::fs::metadata(&real).is_ok_and(|m| m.file_type().is_block_device()) {
            let message = format!("cannot compact '{}': it is a device", image.path.display());
            return Err(Failure::new(Code::Failed, message)
                .help("there is no place for a new image beside it: convert to another file"));
        }
        let format = disk.format();
        let mut options = options_of(&*disk);
        if let Some(kind) = &args.compress {
            choose_compression(&mut options, format, kind)?;
        }
        // Closed in good order, and opened anew for reading: the new files ask whether the old one is in use.
        close(&*disk).await?;
        drop(disk);
        let files = OutputFiles::new(&real, Cache::Direct).map_err(failed)?;
        let how = OpenOptions { cache: Cache::Spared, ..open_options(&image.open, image.format, true)? };
        let source = open(&image.path, &how).await.map_err(failed)?;
        let copy = CopyOptions {
            compress: args.compress.is_some(),
            layers: d.backing.as_ref().map(|_| 1),
            ..CopyOptions::default()
        };
        let node = source.image.backing();
        let request = ConvertRequest {
            sources: vec![source.image],
            format,
            options: &options,
            backing: d.backing.map(|link| Backing { link, node }),
            secret: None,
            copy,
        };
        job::convert(request, &files, progress).await.map_err(failed)?;
        files.finish().map_err(failed)
    })?;
    let after = allocated(&image.path);
    let text = format!(
        "{}: {} on the disk now, {} before\n",
        image.path.display(),
        size::show(after),
        size::show(before)
    );
    result(global, &json!({ "path": image.path, "before": before, "after": after }), &text)?;
    Ok(ExitCode::SUCCESS)
}
