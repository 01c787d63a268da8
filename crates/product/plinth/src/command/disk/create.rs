//! `plinth disk create`.

use std::process::ExitCode;

use plinth_image::job;

use super::address::outer_only;
use super::common::{
    backing_link, close, failed, interruptible, new_format, new_options, output, result, secret,
};
use crate::cli::disk_tool::{CreateArgs, NewArgs};
use crate::cli::{Global, size};
use crate::failure::{Failure, Result};

pub fn run(args: &CreateArgs, global: &Global) -> Result<ExitCode> {
    outer_only(&args.open, "create")?;
    let format = new_format(&args.new, &args.path);
    let Some(options) = new_options(&args.new.options, format)? else { return Ok(ExitCode::SUCCESS) };
    if args.backing.is_some() && args.open.header.is_some() {
        return Err(Failure::usage(
            "a backing image with its header in a file of its own cannot be recorded",
        ));
    }
    let bytes = interruptible(async {
        let mut link = None;
        let mut bytes = args.size.map(|s| s.0);
        if let Some(backing) = &args.backing {
            let (new, opened) = backing_link(&args.path, backing, args.backing_format, &args.open).await?;
            bytes = bytes.or(Some(opened.image.size()));
            // It stays open, and locked, until the new image is there.
            link = Some(new);
        }
        let Some(bytes) = bytes else {
            return Err(Failure::usage("the disk has no size").help("write it with a unit, such as 20G"));
        };
        // A LUKS image has no backing image, whose header the option could mean.
        let new_header = args.new.new_header.clone().or_else(|| args.open.header.clone());
        let files = output(&args.path, &NewArgs { new_header, ..args.new.clone() })?;
        let secret = secret(args.open.secret_file.as_deref())?;
        let image =
            job::create(&files, format, bytes, &options, link, secret.as_deref()).await.map_err(failed)?;
        let bytes = image.size();
        close(&*image).await?;
        drop(image);
        files.finish().map_err(failed)?;
        Ok(bytes)
    })?;
    let value = serde_json::json!({ "path": args.path, "format": format.name(), "size": bytes });
    let text = format!("{}: {format}, {}\n", args.path.display(), size::show(bytes));
    result(global, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}
