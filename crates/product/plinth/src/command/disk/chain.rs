//! `plinth disk rebase` and `plinth disk commit`.

use std::process::ExitCode;

use plinth_image::format::{OpenOptions, open};
use plinth_image::graph::Node;
use plinth_image::{ErrorKind, job};
use serde_json::json;

use super::address::outer_only;
use super::common::{backing_link, backing_of, close, failed, open_options, result, with_progress};
use crate::cli::disk_tool::{CommitArgs, RebaseArgs};
use crate::cli::{Global, size};
use crate::failure::{Code, Failure, Result};

pub fn rebase(args: &RebaseArgs, global: &Global) -> Result<ExitCode> {
    let image = &args.image;
    outer_only(&image.open, "rebase")?;
    let copied = with_progress("rebasing", async |progress| {
        let mut link = None;
        let mut below = None;
        if let Some(path) = &args.backing {
            let (new, opened) = backing_link(&image.path, path, args.backing_format, &image.open).await?;
            link = Some(new.link);
            below = Some(opened.image);
        }
        let mut options = open_options(&image.open, image.format, false)?;
        // Only the old backing image may be missing, and only where it is not read.
        options.no_backing = args.r#unsafe;
        let top = open(&image.path, &options).await.map_err(failed)?.image;
        let mut copied = 0;
        if !args.r#unsafe {
            // Only the disk as it is now is kept: what snapshots show of the image below would change.
            if top.snapshots().is_some_and(|s| !s.list().is_empty()) {
                let what =
                    format!("cannot rebase '{}': it has snapshots, which would change", image.path.display());
                return Err(Failure::new(Code::Failed, what)
                    .help("convert it (and its snapshots, with --snapshot) to new images, or delete the snapshots first")
                    .help("--unsafe changes the link alone, for a backing image with the same contents"));
            }
            let new = below.as_deref().map(|i| i as &dyn Node);
            copied = job::rebase_safe(&*top, new, args.compress, progress).await.map_err(failed)?.written;
        }
        top.set_backing(link.as_ref()).await.map_err(failed)?;
        close(&*top).await?;
        Ok(copied)
    })?;
    let what =
        args.backing.as_ref().map_or("stands alone now".into(), |b| format!("stands on {}", b.display()));
    let text = format!("{} {what}, {} copied\n", image.path.display(), size::show(copied));
    let value = json!({ "path": image.path, "backing": args.backing, "copied": copied });
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

pub fn commit(args: &CommitArgs, global: &Global) -> Result<ExitCode> {
    let image = &args.image;
    outer_only(&image.open, "commit")?;
    let (base, written, emptied) = with_progress("committing", async |progress| {
        let options = open_options(&image.open, image.format, args.keep)?;
        let options = OpenOptions { no_backing: true, ..options };
        let top = open(&image.path, &options).await.map_err(failed)?.image;
        let Some(link) = top.describe().backing_to_open().map_err(failed)? else {
            let what = format!("'{}' has no backing image", image.path.display());
            return Err(Failure::new(Code::Failed, what));
        };
        let path = backing_of(&image.path, &link, &image.open)?;
        let base = open(&path, &open_options(&image.open, link.format, false)?).await.map_err(failed)?.image;
        let done = job::commit(&*top, &*base, progress).await.map_err(failed)?;
        close(&*base).await?;
        let mut emptied = !args.keep;
        if emptied && let Err(e) = top.make_empty().await {
            if e.kind != ErrorKind::Unsupported {
                return Err(failed(e));
            }
            // It holds nothing wrong, only what is below too.
            emptied = false;
        }
        close(&*top).await?;
        Ok((path, done.written, emptied))
    })?;
    let name = image.path.display();
    let then = match (emptied, args.keep) {
        (true, _) => format!("{name} is empty now"),
        (_, true) => format!("{name} still has it too"),
        _ => {
            format!("{name} still has it too, as its format cannot be emptied: create it anew to save space")
        }
    };
    let text = format!("{} written to {}; {then}\n", size::show(written), base.display());
    let value = json!({ "path": image.path, "backing": base, "written": written, "emptied": emptied });
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
