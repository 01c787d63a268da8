//! `qemu-img bitmap`.

use super::getopt::parse;
use super::names::number;
use super::open::{How, how, image};
use super::{Exit, Result, block_on, reason};

/// `qemu-img bitmap`.
pub fn run(args: Vec<String>) -> Result {
    let long = [
        ("add", false, "add"),
        ("remove", false, "remove"),
        ("clear", false, "clear"),
        ("enable", false, "enable"),
        ("disable", false, "disable"),
        ("merge", true, "merge"),
        ("granularity", true, "g"),
    ];
    let parsed = parse(args, "hb:f:F:g:", &long)?;
    let granularity = parsed.value("g").map(|g| number("granularity", g)).transpose()?;
    let actions: Vec<_> =
        parsed.options.iter().filter(|o| o.0 != "g" && long.iter().any(|l| l.2 == o.0)).collect();
    let [file, name] = &parsed.rest[..] else {
        return Err(Exit::failed("Expecting filename and bitmap name"));
    };
    if actions.is_empty() {
        return Err(Exit::failed(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    if granularity.is_some() && !parsed.has("add") {
        return Err(Exit::failed("granularity only supported with --add"));
    }
    if parsed.has("F") && !parsed.has("b") {
        return Err(Exit::failed("-F only supported with -b"));
    }
    if parsed.has("b") && !parsed.has("merge") {
        return Err(Exit::failed("Merge bitmap source file only supported with --merge"));
    }
    let how = how(&parsed, false)?;
    block_on(async {
        let target = image(file, parsed.value("f"), parsed.has("image-opts"), &how).await?;
        let other = match parsed.value("b") {
            Some(source) => {
                // It may be the same file: only its bitmap is read.
                let how = How { read_only: true, share: true, no_backing: true, ..how.clone() };
                Some(image(source, parsed.value("F"), false, &how).await?)
            }
            None => None,
        };
        for (action, value) in &actions {
            let failed =
                |why: String| Exit::failed(format!("Operation {action} on bitmap {name} failed: {why}"));
            let explain = |e: plinth_image::Error| failed(reason(&e));
            let Some(bitmaps) = target.bitmaps() else {
                return Err(failed("Cannot store dirty bitmaps in this file".into()));
            };
            match action.as_str() {
                "add" => bitmaps.add(name, granularity, !parsed.has("disable")).await,
                "remove" => bitmaps.remove(name).await,
                "clear" => bitmaps.clear(name).await,
                "enable" => bitmaps.enable(name, true).await,
                "disable" => bitmaps.enable(name, false).await,
                _ => {
                    let source = other.as_deref().unwrap_or(&*target).bitmaps();
                    let Some(source) = source else { return Err(failed("Bitmap not found".into())) };
                    match source.ranges(value).await {
                        Ok(ranges) => bitmaps.set(name, &ranges).await,
                        Err(e) => Err(e),
                    }
                }
            }
            .map_err(explain)?;
        }
        target
            .close()
            .await
            .map_err(|e| Exit::failed(format!("Error while closing the image: {}", reason(&e))))
    })
}
