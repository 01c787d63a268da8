//! `qemu-img info`.

use std::path::Path;

use plinth_image::format::{Format, Image, backing_path};
use serde_json::{Map, Value, json};

use super::getopt::parse;
use super::json::{human, pretty};
use super::names::{json_wanted, qemu_name, show_size};
use super::open::{How, how, image, link_of, path, shown, trust};
use super::{Exit, Result, block_on, put, reason, say, snapshot};

/// Images above each other that are shown at most.
const MAX_CHAIN: usize = 256;

fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}

/// Bytes of a file, or of a device.
fn length(path: &Path) -> u64 {
    use std::io::{Seek, SeekFrom};
    std::fs::File::open(path).and_then(|mut f| f.seek(SeekFrom::End(0))).unwrap_or(0)
}

/// What `info` shows of an image.
fn value(image: &dyn Image, name: &str, path: &Path, how: &How) -> Value {
    let d = image.describe();
    let mut map = Map::new();
    // What is no file takes up nobody knows how much.
    let local = path.exists();
    let file = if local {
        json!({
            "children": [], "virtual-size": length(path), "filename": path, "format": "file",
            "actual-size": allocated(path), "format-specific": { "type": "file", "data": {} }, "dirty-flag": false,
        })
    } else {
        let protocol = name.split([':', '+']).next().unwrap_or_default();
        json!({
            "children": [], "virtual-size": image.size(), "filename": name, "format": protocol, "dirty-flag": false,
        })
    };
    map.insert("children".into(), json!([{ "name": "file", "info": file }]));
    map.insert("virtual-size".into(), image.size().into());
    map.insert("filename".into(), name.into());
    map.insert("format".into(), qemu_name(image.format()).into());
    if local {
        map.insert("actual-size".into(), allocated(path).into());
    }
    // QEMU's parallels driver does not say it.
    if image.format() != Format::Parallels {
        map.insert("dirty-flag".into(), d.dirty.into());
        if let Some(n) = d.cluster_size.filter(|_| image.format() != Format::Raw) {
            map.insert("cluster-size".into(), n.into());
        }
    }
    if d.encrypted {
        map.insert("encrypted".into(), true.into());
    }
    if let Some(link) = &d.backing {
        map.insert("backing-filename".into(), link.name.clone().into());
        if let Ok(real) = backing_path(path, &link.name, &trust(how)) {
            let folder = path.parent().unwrap_or(Path::new(""));
            let joined = folder.join(&link.name);
            let shown = if joined.exists() { joined } else { real };
            map.insert("full-backing-filename".into(), json!(shown));
        }
        let format = link.format.map(|f| qemu_name(f).to_owned()).or(d.unknown_backing_format);
        if let Some(format) = format {
            map.insert("backing-filename-format".into(), format.into());
        }
    }
    let snapshots = image.snapshots().map(|s| s.list()).unwrap_or_default();
    if !snapshots.is_empty() {
        map.insert("snapshots".into(), Value::Array(snapshots.iter().map(snapshot::value).collect()));
    }
    let mut details = d.details;
    if let Some(bitmaps) = image.bitmaps().map(|b| b.list()).filter(|b| !b.is_empty()) {
        let all = bitmaps.iter().map(|b| {
            let mut flags = Vec::new();
            if b.in_use {
                flags.push("in-use");
            }
            if b.enabled {
                flags.push("auto");
            }
            json!({ "flags": flags, "name": b.name, "granularity": b.granularity })
        });
        details.insert("bitmaps".into(), Value::Array(all.collect()));
    }
    if !details.is_empty() {
        let kind = qemu_name(image.format());
        map.insert("format-specific".into(), json!({ "type": kind, "data": details }));
    }
    Value::Object(map)
}

/// The same for people.
fn text(value: &Value, level: usize) -> String {
    let get = |k: &str| &value[k];
    let number = |k: &str| get(k).as_u64().unwrap_or(0);
    let string = |k: &str| get(k).as_str().unwrap_or_default();
    let pad = "    ".repeat(level);
    let names = if level == 0 {
        ["image", "file format", "virtual size"]
    } else {
        ["filename", "protocol type", "file length"]
    };
    let size = number("virtual-size");
    let mut text = format!(
        "{pad}{}: {}\n{pad}{}: {}\n{pad}{}: {} ({size} bytes)\n{pad}disk size: {}\n",
        names[0],
        string("filename"),
        names[1],
        string("format"),
        names[2],
        show_size(size),
        get("actual-size").as_u64().map_or("unavailable".into(), show_size)
    );
    if get("encrypted") == &Value::Bool(true) {
        text += &format!("{pad}encrypted: yes\n");
    }
    if get("cluster-size").is_u64() {
        text += &format!("{pad}cluster_size: {}\n", number("cluster-size"));
    }
    if get("dirty-flag") == &Value::Bool(true) {
        text += &format!("{pad}cleanly shut down: no\n");
    }
    if get("backing-filename").is_string() {
        let (name, full) = (string("backing-filename"), get("full-backing-filename"));
        text += &format!("{pad}backing file: {name}");
        match full.as_str() {
            None => text += " (cannot determine actual path)",
            Some(full) if full != name => text += &format!(" (actual path: {full})"),
            Some(_) => {}
        }
        text += "\n";
        if get("backing-filename-format").is_string() {
            text += &format!("{pad}backing file format: {}\n", string("backing-filename-format"));
        }
    }
    if let Some(all) = get("snapshots").as_array() {
        text += &format!("{pad}Snapshot list:\n{pad}{}\n", snapshot::HEAD);
        for s in all {
            text += &format!("{pad}{}\n", snapshot::line_of(s));
        }
    }
    let specific = &get("format-specific")["data"];
    if specific.as_object().is_some_and(|m| !m.is_empty()) {
        text += &format!("{pad}Format specific information:\n");
        human(specific, level + 1, &mut text);
    }
    for child in get("children").as_array().into_iter().flatten() {
        text += &format!("{pad}Child node '/{}':\n", child["name"].as_str().unwrap_or_default());
        text += &self::text(&child["info"], level + 1);
    }
    text
}

/// `qemu-img info`.
pub fn run(args: Vec<String>) -> Result {
    let long = [
        ("format", true, "f"),
        ("output", true, "output"),
        ("backing-chain", false, "backing-chain"),
        ("force-share", false, "U"),
    ];
    let parsed = parse(args, "f:hU", &long)?;
    let name = parsed.one("Expecting one image file name")?.to_owned();
    let json = json_wanted(parsed.value("output"))?;
    let chain = parsed.has("backing-chain");
    // Whoever looks needs no exclusive use, and no keys.
    let how = How { no_backing: true, no_keys: true, ..how(&parsed, true)? };
    let all = block_on(async {
        let mut all = Vec::new();
        let mut seen = Vec::new();
        let mut next = Some((name, parsed.value("f").map(str::to_owned), parsed.has("image-opts")));
        while let Some((name, format, opts)) = next.take() {
            let image = image(&name, format.as_deref(), opts, &how).await?;
            let file = path(&name, opts).unwrap_or_default();
            let real = std::fs::canonicalize(&file).unwrap_or_else(|_| file.clone());
            if seen.contains(&real) || all.len() >= MAX_CHAIN {
                return Err(Exit::failed(format!("Backing file '{name}' creates an infinite loop.")));
            }
            seen.push(real);
            let named = opts || name.starts_with("json:") || name.starts_with("file:");
            let name = if named { shown(&name, opts) } else { name };
            all.push(value(&*image, &name, &file, &how));
            let link = if chain { link_of(&*image)? } else { None };
            if let Some(link) = link {
                let below = backing_path(&file, &link.name, &trust(&how))
                    .map_err(|e| Exit::failed(format!("Could not open '{}': {}", link.name, reason(&e))))?;
                let shown = file.parent().unwrap_or(Path::new("")).join(&link.name);
                let shown = if shown.exists() { shown } else { below };
                let shown = shown.to_str().unwrap_or_default().to_owned();
                next = Some((shown, link.format.map(|f| qemu_name(f).to_owned()), false));
            }
        }
        Ok(all)
    })?;
    if json {
        let whole = if chain { Value::Array(all) } else { all.into_iter().next().unwrap_or_default() };
        return put(&format!("{}\n", pretty(&whole)));
    }
    say(&all.iter().map(|v| text(v, 0)).collect::<Vec<_>>().join("\n"))
}
