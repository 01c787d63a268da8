//! `plinth disk bitmap`.

use std::process::ExitCode;

use plinth_image::format::{Bitmap, Bitmaps, Opened};
use serde_json::{Value, json};

use super::common::{close, failed, interruptible, open_image, result};
use crate::cli::disk_tool::{BitmapArgs, BitmapCommand, ImageArgs};
use crate::cli::{Global, size};
use crate::failure::{Code, Failure, Result};

/// A bitmap, for programs.
pub fn value(b: &Bitmap) -> Value {
    json!({ "name": b.name, "granularity": b.granularity, "enabled": b.enabled, "in_use": b.in_use })
}

fn bitmaps(opened: &Opened) -> Result<&dyn Bitmaps> {
    opened.image.bitmaps().ok_or_else(|| {
        let what = format!("images of the format {} have no bitmaps", opened.image.format());
        Failure::new(Code::Failed, what).help("qcow2 has: `plinth disk convert IMAGE NEW.qcow2`")
    })
}

fn list(image: &ImageArgs, global: &Global) -> Result<()> {
    let all = interruptible(async { Ok(bitmaps(&open_image(image, true).await?)?.list()) })?;
    let mut text = if all.is_empty() { "no bitmaps\n".to_owned() } else { String::new() };
    for b in &all {
        let state = match (b.in_use, b.enabled) {
            (true, _) => "not stored in good order",
            (_, true) => "records writes",
            _ => "disabled",
        };
        text += &format!("{:<24} {:>10} a bit, {state}\n", b.name, size::show(b.granularity));
    }
    result(global, &Value::Array(all.iter().map(value).collect()), &text)
}

pub fn run(command: &BitmapCommand, global: &Global) -> Result<ExitCode> {
    let args: &BitmapArgs = match command {
        BitmapCommand::List { image } => return list(image, global).map(|()| ExitCode::SUCCESS),
        BitmapCommand::Add { bitmap, .. } | BitmapCommand::Merge { bitmap, .. } => bitmap,
        BitmapCommand::Remove(args)
        | BitmapCommand::Clear(args)
        | BitmapCommand::Enable(args)
        | BitmapCommand::Disable(args) => args,
    };
    let name = args.name.as_str();
    interruptible(async {
        let opened = open_image(&args.image, false).await?;
        let all = bitmaps(&opened)?;
        match command {
            BitmapCommand::List { .. } => Ok(()),
            BitmapCommand::Add { granularity, disabled, .. } => {
                all.add(name, granularity.map(|g| g.0), !disabled).await
            }
            BitmapCommand::Remove(_) => all.remove(name).await,
            BitmapCommand::Clear(_) => all.clear(name).await,
            BitmapCommand::Enable(_) => all.enable(name, true).await,
            BitmapCommand::Disable(_) => all.enable(name, false).await,
            BitmapCommand::Merge { from, .. } => match all.ranges(from).await {
                Ok(ranges) => all.set(name, &ranges).await,
                Err(e) => Err(e),
            },
        }
        .map_err(failed)?;
        close(&*opened.image).await
    })?;
    result(global, &json!({}), "")?;
    Ok(ExitCode::SUCCESS)
}
