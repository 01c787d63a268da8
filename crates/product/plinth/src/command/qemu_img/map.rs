//! `qemu-img map` and `qemu-img measure`.

use std::io::{BufWriter, Write};
use std::rc::Rc;

use plinth_image::format::{Format, Image};
use plinth_image::graph::NodeRef;
use plinth_image::job::{self, Contents, MapEntry};

use super::convert::{at_snapshot, snapshot_name};
use super::getopt::parse;
use super::json::pretty;
use super::names::{json_wanted, known_format, number, qemu_name};
use super::open::{how, image, path};
use super::options::{collect, sort};
use super::{Exit, Result, block_on, reason, say};

impl From<plinth_image::Error> for Exit {
    fn from(e: plinth_image::Error) -> Self {
        Exit::failed(format!("Could not read file metadata: {}", reason(&e)))
    }
}

fn json_line(entry: &MapEntry) -> String {
    let e = &entry.extent;
    let mut text = format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
         \"compressed\": {}",
        entry.start, e.len, e.depth, e.present, e.zero, e.data, e.compressed
    );
    if let Some(host) = e.host {
        text += &format!(", \"offset\": {host}");
    }
    text + "}"
}

/// The file of the layer `depth` below an image.
fn file_of(image: &Rc<dyn Image>, depth: u32, top: &str) -> String {
    let mut name = top.to_owned();
    let mut node: Option<NodeRef> = image.backing();
    for _ in 0..depth {
        let Some(n) = node.take() else { break };
        name.clone_from(&n.info().name);
    }
    name
}

/// `qemu-img map`.
pub fn map(args: Vec<String>) -> Result {
    let long = [
        ("format", true, "f"),
        ("output", true, "output"),
        ("force-share", false, "U"),
        ("start-offset", true, "s"),
        ("max-length", true, "l"),
    ];
    let parsed = parse(args, "f:s:l:hU", &long)?;
    let start = parsed.value("s").map(|v| number("start offset", v)).transpose()?.unwrap_or(0);
    let length = parsed.value("l").map(|v| number("max length", v)).transpose()?;
    let name = parsed.one("Expecting one image file name")?;
    let json = json_wanted(parsed.value("output"))?;
    let opts = parsed.has("image-opts");
    let how = how(&parsed, true)?;
    block_on(async {
        let image = image(name, parsed.value("f"), opts, &how).await?;
        let end = length.map_or(u64::MAX, |l| start.saturating_add(l));
        let mut out = BufWriter::new(std::io::stdout().lock());
        let wrote = |e: std::io::Error| Exit::failed(format!("cannot write to standard output: {e}"));
        let top = path(name, opts).unwrap_or_default().display().to_string();
        let head = if json {
            "[".to_owned()
        } else {
            format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to")
        };
        out.write_all(head.as_bytes()).map_err(wrote)?;
        let mut first = true;
        // Neighbours that people see as one.
        let mut pending: Option<MapEntry> = None;
        let human = |e: &MapEntry| {
            let hex = |n: u64| if n == 0 { "0".to_owned() } else { format!("{n:#x}") };
            let host = hex(e.extent.host.unwrap_or(0));
            let file = file_of(&image, e.extent.depth, &top);
            format!("{:<16}{:<16}{host:<16}{file}\n", hex(e.start), hex(e.extent.len))
        };
        let mut each = |entry: MapEntry| -> Result {
            if json {
                let line = format!("{}{}", if first { "" } else { ",\n" }, json_line(&entry));
                first = false;
                return out.write_all(line.as_bytes()).map_err(wrote);
            }
            if !entry.extent.data || entry.extent.zero {
                return Ok(());
            }
            if entry.extent.host.is_none() {
                return Err(Exit::failed("File contains external, encrypted or compressed clusters."));
            }
            if let Some(last) = &mut pending {
                let follows = last.start + last.extent.len == entry.start
                    && last.extent.depth == entry.extent.depth
                    && last.extent.host.map(|h| h + last.extent.len) == entry.extent.host;
                if follows {
                    last.extent.len += entry.extent.len;
                    return Ok(());
                }
                out.write_all(human(last).as_bytes()).map_err(wrote)?;
            }
            pending = Some(entry);
            Ok(())
        };
        job::map::<Exit>(&*image, start, end, &mut each).await?;
        if let Some(last) = &pending {
            out.write_all(human(last).as_bytes()).map_err(wrote)?;
        }
        if json {
            out.write_all(b"]\n").map_err(wrote)?;
        }
        out.flush().map_err(wrote)
    })
}

/// `qemu-img measure`.
pub fn measure(args: Vec<String>) -> Result {
    let long = [("output", true, "output"), ("size", true, "size"), ("force-share", false, "U")];
    let parsed = parse(args, "hf:O:o:l:U", &long)?;
    let options = collect(&parsed)?;
    let snapshot = snapshot_name(&parsed)?;
    let json = json_wanted(parsed.value("output"))?;
    let size = parsed.value("size").map(|v| number("image size", v)).transpose()?;
    let file = match &parsed.rest[..] {
        [] => None,
        [one] => Some(one),
        _ => return Err(Exit::failed("At most one filename argument is allowed.")),
    };
    if file.is_none() && ["image-opts", "f", "l"].iter().any(|o| parsed.has(o)) {
        return Err(Exit::failed("--image-opts, -f, and -l require a filename argument."));
    }
    if file.is_some() && size.is_some() {
        return Err(Exit::failed("--size N cannot be used together with a filename."));
    }
    if file.is_none() && size.is_none() {
        return Err(Exit::failed("Either --size N or one filename must be specified."));
    }
    let how = how(&parsed, true)?;
    let measured = block_on(async {
        let mut disk: Option<NodeRef> = None;
        let mut bitmaps = false;
        if let Some(file) = file {
            let image = image(file, parsed.value("f"), parsed.has("image-opts"), &how).await?;
            bitmaps = image.bitmaps().is_some();
            disk = Some(match &snapshot {
                Some(name) => at_snapshot(image, name).await?,
                None => image,
            });
        }
        let out = known_format(parsed.value("O").unwrap_or("raw"))?;
        let name = qemu_name(out);
        if out != Format::Qcow2 && out.driver().is_none_or(|d| d.create.is_none()) {
            return Err(Exit::failed(format!("Format driver '{name}' does not support image creation")));
        }
        let mut new = sort(out, options).map_err(|e| match e {
            Exit::Failed(why, _) => {
                super::warn(&why);
                Exit::failed(format!("Invalid options for file format '{name}'"))
            }
            other => other,
        })?;
        if let Some(backing) = &new.backing {
            new.own.set("backing_file", backing);
        }
        let contents = match &disk {
            Some(disk) => Contents::Disk(&**disk),
            None => Contents::Size(size.unwrap_or(0)),
        };
        let measured = job::measure(out, &new.own, contents).await.map_err(|e| match e.kind {
            plinth_image::ErrorKind::Unsupported => {
                Exit::failed(format!("Block driver '{name}' does not support size measurement"))
            }
            _ => Exit::failed(reason(&e)),
        })?;
        Ok((measured, bitmaps && out == Format::Qcow2))
    })?;
    let (measured, bitmaps) = measured;
    if json {
        let mut value =
            serde_json::json!({ "required": measured.required, "fully-allocated": measured.fully_allocated });
        if bitmaps {
            value["bitmaps"] = 0.into();
        }
        return say(&format!("{}\n", pretty(&value)));
    }
    let mut text =
        format!("required size: {}\nfully allocated size: {}\n", measured.required, measured.fully_allocated);
    if bitmaps {
        text += "bitmaps size: 0\n";
    }
    say(&text)
}
