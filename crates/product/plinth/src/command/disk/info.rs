//! `plinth disk info`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use plinth_host::aio;
use plinth_image::format::{Format, OpenOptions};
use serde_json::{Value, json};

use super::address::open_with;
use super::common::{allocated, backing_of, open_options, result};
use super::package;
use crate::cli::disk_tool::InfoArgs;
use crate::cli::{Global, size};
use crate::failure::{Failure, Result};
use crate::printable::one_line;

/// Images above each other that are shown at most.
const MAX_CHAIN: usize = 256;

/// What is known of one image.
struct Facts {
    value: Value,
    text: String,
    next: Option<(PathBuf, Option<Format>)>,
}

pub fn run(args: &InfoArgs, global: &Global) -> Result<ExitCode> {
    if package::is_meant(&args.image) && args.image.open.disk.is_none() {
        return package::info(&args.image.path, global);
    }
    // It changes nothing, so a signal may end it anywhere.
    let all = aio::block_on(async {
        let mut all = Vec::new();
        let mut next = Some((args.image.path.clone(), args.image.format));
        while let Some((path, format)) = next.take() {
            let options = open_options(&args.image.open, format, true)?;
            let options = OpenOptions { no_backing: true, ..options };
            let facts = facts(&path, &options, args).await?;
            if args.chain && all.len() < MAX_CHAIN {
                next.clone_from(&facts.next);
            }
            all.push(facts);
        }
        Ok::<_, Failure>(all)
    })?;
    let text = all.iter().map(|f| f.text.as_str()).collect::<Vec<_>>().join("\n");
    let mut values: Vec<Value> = all.into_iter().map(|f| f.value).collect();
    let value = if args.chain { Value::Array(values) } else { values.swap_remove(0) };
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

async fn facts(path: &Path, options: &OpenOptions, args: &InfoArgs) -> Result<Facts> {
    let opened = open_with(path, &args.image.open, options).await?;
    let image = &opened.image;
    let d = image.describe();
    let how = if opened.probed { "found by its contents" } else { "as given" };
    // An address has no file here.
    let used = path.exists().then(|| allocated(path));
    let mut lines = vec![
        ("image", path.display().to_string()),
        ("format", format!("{} ({how})", image.format())),
        ("disk", format!("{} ({} bytes)", size::show(image.size()), image.size())),
    ];
    if let Some(used) = used {
        lines.push(("file takes up", size::show(used)));
    }
    if let Some(n) = d.cluster_size {
        lines.push(("cluster", size::show(n)));
    }
    if d.encrypted {
        lines.push(("encrypted", "yes".into()));
    }
    if d.compressed {
        lines.push(("compressed", "yes".into()));
    }
    if d.dirty {
        lines.push(("state", "was not closed in good order: `plinth disk check` is due".into()));
    }
    let mut next = None;
    if let Some(link) = &d.backing {
        let format = link.format.map_or("format not recorded".into(), |f| f.to_string());
        lines.push(("backing image", format!("{} ({format})", one_line(&link.name))));
        if args.chain {
            next = Some((backing_of(path, link, &args.image.open)?, link.format));
        }
    }
    let snapshots = image.snapshots().map(|s| s.list()).unwrap_or_default();
    for s in &snapshots {
        lines.push((
            "snapshot",
            format!("{} '{}', {}", one_line(&s.id), one_line(&s.name), super::snapshot::date(s.date.0)),
        ));
    }
    let bitmaps = image.bitmaps().map(|b| b.list()).unwrap_or_default();
    for b in &bitmaps {
        lines.push(("bitmap", format!("'{}', {} a bit", one_line(&b.name), size::show(b.granularity))));
    }
    for (name, value) in &d.details {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.push((name.as_str(), shown));
    }
    let width = lines.iter().map(|l| l.0.len()).max().unwrap_or(0);
    let text = lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect();
    let value = json!({
        "path": path, "format": image.format().name(), "probed": opened.probed, "size": image.size(),
        "allocated": used, "cluster_size": d.cluster_size, "encrypted": d.encrypted,
        "compressed": d.compressed, "dirty": d.dirty,
        "backing": d.backing.as_ref().map(|b| json!({ "name": b.name, "format": b.format.map(|f| f.name()) })),
        "snapshots": snapshots.iter().map(super::snapshot::value).collect::<Vec<_>>(),
        "bitmaps": bitmaps.iter().map(super::bitmap::value).collect::<Vec<_>>(),
        "details": d.details,
    });
    Ok(Facts { value, text, next })
}
