//! `qemu-img commit` and `qemu-img rebase`.

use std::rc::Rc;

use plinth_image::ErrorKind;
use plinth_image::format::{BackingLink, Image, backing_path};
use plinth_image::graph::Node;
use plinth_image::job;

use super::convert::with_progress;
use super::create::{beside, link};
use super::getopt::parse;
use super::names::{cache, format, number, qemu_name};
use super::open::{How, described_below, how, image, link_of, path, trust};
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
    // With a base further down, the images between keep what they have: others may stand on them.
    let drop = parsed.has("d") || parsed.has("b");
    let below_how = How { cache, no_backing: true, ..how(&parsed, true)? };
    let top_how = How { read_only: drop, ..below_how.clone() };
    block_on(async {
        with_progress(parsed.has("p") && !parsed.has("q"), async |progress| {
            let first = image(name, parsed.value("f"), opts, &top_how).await?;
            let mut top = first.clone();
            let mut file = path(name, opts).unwrap_or_default();
            // Every image between the top and the base is written down, the lowest first.
            let mut chain: Vec<Rc<dyn Image>> = Vec::new();
            loop {
                let Some(below) = link_of(&*top)? else {
                    return Err(Exit::failed(match parsed.value("b") {
                        Some(base) => format!("Did not find '{base}' in the backing chain of '{name}'"),
                        None => "Image does not have a backing file".to_owned(),
                    }));
                };
                let real = backing_path(&file, &below.name, &trust(&top_how)).map_err(failed)?;
                let shown = real.to_str().unwrap_or_default().to_owned();
                // A base is named as the images name it: as seen from the image above.
                let meant = |base: &str| beside(&file.display().to_string(), base);
                let wanted = parsed.value("b").is_none_or(|b| {
                    b == below.name || std::fs::canonicalize(meant(b)).is_ok_and(|b| b == real)
                });
                chain.push(top);
                let below_format = below.format.map(qemu_name);
                let layer = chain.len();
                let open = async |how: &How| match described_below(name, opts, layer, how).await? {
                    Some(image) => Ok(image),
                    None => image(&shown, below_format, false, how).await,
                };
                if wanted {
                    let base = open(&How { read_only: false, ..below_how.clone() }).await?;
                    while let Some(layer) = chain.pop() {
                        let written = job::commit(&*layer, &*base, progress).await;
                        written.map_err(|e| Exit::failed(format!("Block job failed: {}", reason(&e))))?;
                    }
                    base.close().await.map_err(failed)?;
                    return if drop { Ok(()) } else { empty(&*first, name).await };
                }
                top = open(&below_how).await?;
                file = real;
            }
        })
        .await
    })?;
    if parsed.has("q") { Ok(()) } else { say("Image committed.\n") }
}

/// Takes away what an image has itself, all of which the one below has too; formats that cannot do it keep it.
async fn empty(image: &dyn Image, name: &str) -> Result {
    let explain = |e: plinth_image::Error| Exit::failed(format!("Failed to empty {name}: {}", reason(&e)));
    match image.make_empty().await {
        Err(e) if e.kind == ErrorKind::Unsupported => {}
        done => done.map_err(explain)?,
    }
    image.close().await.map_err(explain)
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
    if unsafe_mode && !base.is_empty() && base_format.is_none() {
        let why = "backing format must be specified";
        return Err(Exit::failed(format!("Could not change the backing file to '{base}': {why}")));
    }
    let new_path = beside(&path(file, opts).unwrap_or_default().display().to_string(), base);
    let top_how = How { cache, no_backing: unsafe_mode, share: false, ..how(&parsed, false)? };
    block_on(async {
        let mut below = None;
        let mut new_link = None;
        if !base.is_empty() {
            let shown = new_path.to_str().unwrap_or(base);
            if unsafe_mode {
                let identity = None;
                new_link = Some(BackingLink { name: base.to_owned(), format: base_format, identity });
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
                let (new, _) = link(file, base, Some(opened.format()), &how).await?;
                new_link = Some(BackingLink { format: base_format, ..new.link });
                below = Some(opened);
            }
        }
        let top = image(file, parsed.value("f"), opts, &top_how).await?;
        if parsed.has("c") && top.write_compressed(0, plinth_image::IoData::copy_of(&[])).is_none() {
            return Err(Exit::failed("Compression not supported for this file format"));
        }
        with_progress(parsed.has("p") && !parsed.has("q"), async |progress| {
            if !unsafe_mode {
                let new = below.as_deref().map(|b| b as &dyn Node);
                job::rebase_safe(&*top, new, parsed.has("c"), progress).await.map_err(failed)?;
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
