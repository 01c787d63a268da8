//! `qemu-img map` and `qemu-img measure`.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use plinth_image::format::{Bitmap, Format, Image, backing_path};
use plinth_image::graph::NodeRef;
use plinth_image::job::{self, Contents, MapEntry};

use super::convert::{at_snapshot, snapshot_name};
use super::getopt::parse;
use super::json::pretty;
use super::names::{json_wanted, known_format, number, qemu_name};
use super::open::{How, how, image, path, trust};
use super::options::{collect, sort};
use super::{Exit, Result, block_on, put, reason, say};

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

/// The files of an image, and of those below it.
struct Layer {
    /// The image's own, as the image above names it.
    own: PathBuf,
    /// The others that have bytes of the disk: from which one on.
    others: Vec<(u64, String)>,
}

impl Layer {
    /// The file that has a byte of the disk.
    fn file_of(&self, byte: u64) -> String {
        let n = self.others.partition_point(|f| f.0 <= byte);
        match n.checked_sub(1).map(|n| &self.others[n].1) {
            Some(other) => other.clone(),
            None => self.own.display().to_string(),
        }
    }
}

/// The files of an image and of those below it.
async fn files(image: &Rc<dyn Image>, top: PathBuf, how: &How) -> Vec<Layer> {
    let how = How { no_backing: true, share: true, ..how.clone() };
    let mut files = vec![Layer { own: top, others: image.data_files() }];
    let mut link = image.describe().backing;
    while let Some(l) = link.take() {
        let above = files.last().expect("the top is there").own.clone();
        let joined = above.parent().unwrap_or(Path::new("")).join(&l.name);
        let Ok(real) = backing_path(&above, &l.name, &trust(&how)) else { break };
        let shown = if joined.exists() { joined } else { real };
        let format = l.format.map(qemu_name);
        let mut others = Vec::new();
        // A chain that comes back to itself was refused when the image was opened.
        if let Ok(below) = super::open::image(&shown.display().to_string(), format, false, &how).await {
            link = below.describe().backing;
            others = below.data_files();
        }
        files.push(Layer { own: shown, others });
    }
    files
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
        let layers =
            if json { Vec::new() } else { files(&image, path(name, opts).unwrap_or_default(), &how).await };
        let head = if json {
            "[".to_owned()
        } else {
            format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to")
        };
        out.write_all(head.as_bytes()).map_err(wrote)?;
        let borders: Vec<u64> = layers.iter().flat_map(|l| l.others.iter().map(|f| f.0)).collect();
        let borders: Vec<u64> = borders.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut first = true;
        // Neighbours that people see as one.
        let mut pending: Option<MapEntry> = None;
        let human = |e: &MapEntry| {
            let hex = |n: u64| if n == 0 { "0".to_owned() } else { format!("{n:#x}") };
            let host = hex(e.extent.host.unwrap_or(0));
            let file = layers.get(e.extent.depth as usize).or(layers.last());
            let file = file.map(|f| f.file_of(e.start)).unwrap_or_default();
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
                    && last.extent.host.map(|h| h + last.extent.len) == entry.extent.host
                    && borders.binary_search(&entry.start).is_err();
                if follows {
                    last.extent.len += entry.extent.len;
                    return Ok(());
                }
                out.write_all(human(last).as_bytes()).map_err(wrote)?;
            }
            pending = Some(entry);
            Ok(())
        };
        job::map::<Exit>(&*image, start, end, &borders, &mut each).await?;
        if let Some(last) = &pending {
            out.write_all(human(last).as_bytes()).map_err(wrote)?;
        }
        if json {
            out.write_all(b"]\n").map_err(wrote)?;
        }
        out.flush().map_err(wrote)
    })
}

/// Bytes that bitmaps of a disk of `size` bytes need in a qcow2 file: themselves with all of their bits, the table of
/// their clusters, and their entries in the directory (the specification, "Bitmaps").
fn bitmap_space(bitmaps: &[Bitmap], size: u64, cluster: u64) -> u64 {
    /// Bytes of a directory entry without the name.
    const ENTRY: u64 = 24;
    let (mut space, mut directory) = (0, 0);
    for bitmap in bitmaps.iter().filter(|b| !b.in_use) {
        let clusters = size.div_ceil(bitmap.granularity).div_ceil(8).div_ceil(cluster);
        space += clusters * cluster + (clusters * 8).next_multiple_of(cluster);
        directory += (ENTRY + bitmap.name.len() as u64).next_multiple_of(8);
    }
    space + u64::next_multiple_of(directory, cluster)
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
        let mut bitmaps = None;
        if let Some(file) = file {
            let image = image(file, parsed.value("f"), parsed.has("image-opts"), &how).await?;
            bitmaps = image.bitmaps().map(|b| (b.list(), image.size()));
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
        let newer = !matches!(new.own.text("compat"), Some("0.10" | "v2"));
        let cluster = new.own.size("cluster_size")?.unwrap_or(64 << 10);
        let bitmaps = bitmaps.filter(|_| out == Format::Qcow2 && newer);
        Ok((measured, bitmaps.map(|(list, size)| bitmap_space(&list, size, cluster))))
    })?;
    let (measured, bitmaps) = measured;
    if json {
        let mut value =
            serde_json::json!({ "required": measured.required, "fully-allocated": measured.fully_allocated });
        if let Some(bytes) = bitmaps {
            value["bitmaps"] = bytes.into();
        }
        return put(&format!("{}\n", pretty(&value)));
    }
    let mut text =
        format!("required size: {}\nfully allocated size: {}\n", measured.required, measured.fully_allocated);
    if let Some(bytes) = bitmaps {
        text += &format!("bitmaps size: {bytes}\n");
    }
    say(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_of_bitmaps() {
        let bitmap = |granularity, in_use| Bitmap { name: "b1".into(), granularity, enabled: true, in_use };
        assert_eq!(bitmap_space(&[], 1 << 30, 65536), 0);
        // 2 TiB in steps of 512 bytes: 512 MiB of bits, a table of one cluster, a directory of one.
        assert_eq!(
            bitmap_space(&[bitmap(512, false), bitmap(512, true)], 2 << 40, 65536),
            (512 << 20) + 2 * 65536
        );
    }
}
