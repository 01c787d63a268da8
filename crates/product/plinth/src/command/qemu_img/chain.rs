//! `qemu-img commit` and `qemu-img rebase`.

use std::rc::Rc;

use plinth_image::ErrorKind;
use plinth_image::format::{Image, backing_path};
use plinth_image::graph::Node;
use plinth_image::job;

use super::convert::with_progress;
use super::create::{beside, link};
use super::getopt::parse;
use super::names::{cache, format, number, qemu_name};
use super::open::{How, how, image, path, trust};
use super::{Exit, Result, block_on, reason, say};

fn failed(e: plinth_image::Error) -> Exit {
    Exit::failed(reason(&e))
}

/// `qemu-img commit`.
pub fn commit(args: Vec<String>) -> Result {
    let parsed = parse(args, "f:ht:b:dpqr:", &[])?;
    let name = parsed.one("Expecting one image file name")?;
    let mode = parsed.value("t").unwrap_or("writeback");
    let cache = cache(mode).ok_or_else(|| Exit::failed(format!("Invalid cache option: {mode}")))?;
    parsed.value("r").map(|r| number("rate limit", r)).transpose()?;
    let opts = parsed.has("image-opts");
    let top_how = How { cache, no_backing: true, ..how(&parsed, true)? };
    block_on(async {
        with_progress(parsed.has("p") && !parsed.has("q"), async |progress| {
            let mut top = image(name, parsed.value("f"), opts, &top_how).await?;
            let mut file = path(name, opts).unwrap_or_default();
            // Every image between the top and the base is written down, the lowest first.
            let mut chain: Vec<Rc<dyn Image>> = Vec::new();
            loop {
                let Some(below) = top.describe().backing else {
                    return Err(Exit::failed(match parsed.value("b") {
                        Some(base) => format!("Did not find '{base}' in the backing chain of '{name}'"),
                        None => "Image does not have a backing file".to_owned(),
                    }));
                };
                let real = backing_path(&file, &below.name, &trust(&top_how)).map_err(failed)?;
                let shown = real.to_str().unwrap_or_default().to_owned();
                let wanted = parsed
                    .value("b")
                    .is_none_or(|b| b == below.name || std::fs::canonicalize(b).is_ok_and(|b| b == real));
                chain.push(top);
                let below_format = below.format.map(qemu_name);
                if wanted {
                    let base_how = How { read_only: false, ..top_how.clone() };
                    let base = image(&shown, below_format, false, &base_how).await?;
                    while let Some(layer) = chain.pop() {
                        job::commit(&*layer, &*base, progress).await.map_err(failed)?;
                    }
                    return base.close().await.map_err(failed);
                }
                top = image(&shown, below_format, false, &top_how).await?;
                file = real;
            }
        })
        .await
    })?;
    if parsed.has("q") { Ok(()) } else { say("Image committed.\n") }
}

/// `qemu-img rebase`.
pub fn rebase(args: Vec<String>) -> Result {
    let long = [("force-share", false, "U"), ("compress", false, "c")];
    let parsed = parse(args, "hf:F:b:upt:T:qUc", &long)?;
    let file = parsed.one("Expecting one image file name")?;
    let unsafe_mode = parsed.has("u");
    let Some(base) = parsed.value("b").or(unsafe_mode.then_some("")) else {
        return Err(Exit::usage("Must specify backing file (-b) or use unsafe mode (-u)"));
    };
    let mode = parsed.value("t").unwrap_or("writeback");
    let cache = cache(mode).ok_or_else(|| Exit::failed(format!("Invalid cache option: {mode}")))?;
    let base_format = match parsed.value("F") {
        Some(f) => Some(format(f).ok_or_else(|| Exit::failed(format!("Invalid format name: '{f}'")))?),
        None => None,
    };
    let opts = parsed.has("image-opts");
    let new_path = beside(&path(file, opts).unwrap_or_default().display().to_string(), base);
    let top_how = How { cache, no_backing: unsafe_mode, share: false, ..how(&parsed, false)? };
    block_on(async {
        let mut below = None;
        let mut new_link = None;
        if !base.is_empty() {
            let shown = new_path.to_str().unwrap_or(base);
            if unsafe_mode {
                let identity = None;
                new_link = Some(plinth_image::format::BackingLink {
                    name: base.to_owned(),
                    format: base_format,
                    identity,
                });
            } else {
                let how = How {
                    read_only: true,
                    allowed: vec![new_path.clone()],
                    share: parsed.has("U"),
                    ..top_how.clone()
                };
                let opened =
                    image(shown, base_format.map(qemu_name), false, &how).await.map_err(|e| match e {
                        Exit::Failed(why, c) => {
                            let rest = why.split_once("': ").map_or(why.as_str(), |(_, r)| r);
                            Exit::Failed(format!("Could not open new backing file '{base}': {rest}"), c)
                        }
                        other => other,
                    })?;
                let mut new = link(file, base, Some(opened.format()), &how).await?.0.link;
                new.format = base_format;
                new_link = Some(new);
                below = Some(opened);
            }
        }
        let top = image(file, parsed.value("f"), opts, &top_how).await?;
        if parsed.has("c") && top.write_compressed(0, plinth_image::IoData::copy_of(&[])).is_none() {
            return Err(Exit::failed("Compression not supported for this file format"));
        }
        with_progress(parsed.has("p") && !parsed.has("q"), async |progress| {
            if !unsafe_mode {
                job::rebase_safe(&*top, below.as_deref().map(|b| b as &dyn Node), parsed.has("c"), progress)
                    .await
                    .map_err(failed)?;
            }
            top.set_backing(new_link.as_ref()).await.map_err(|e| {
                let why = match e.kind {
                    ErrorKind::Unsupported => "Operation not supported".to_owned(),
                    _ => reason(&e),
                };
                Exit::failed(format!("Could not change the backing file to '{base}': {why}"))
            })?;
            top.close().await.map_err(failed)
        })
        .await
    })
}
