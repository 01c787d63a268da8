//! Bundles: a `DiskDescriptor.xml` that names the disk's parts and, for each, the images of its snapshots. They are
//! created with one part and no snapshots.
//!
//! Only the newest image of a part is written. Where there are others below it, a cluster that it does not have is
//! written whole, with what is below around the new data; and as the format has no mark for zeros that hide what is
//! below, zeros are written as data there, and nothing is ever given back.

use std::cell::Cell;
use std::collections::HashMap;

use roxmltree::{Document, Node as Xml, ParsingOptions};
use serde_json::json;

use super::image::ParallelsImage;
use crate::format::{CheckReport, Description, Format, Image, Links, Progress, Repair};
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeLocks, check_range, check_write,
};
use crate::ovf::escape;
use crate::{Error, ErrorKind, SECTOR};

/// Bytes, elements and images of a descriptor at most.
const MAX_BYTES: u64 = 1 << 20;
const MAX_ELEMENTS: u32 = 20_000;
const MAX_IMAGES: usize = 1024;
/// The parent of the first snapshot.
const NONE: &str = "{00000000-0000-0000-0000-000000000000}";
/// What is being written to, where the descriptor does not say.
const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";

/// The file in a bundle's folder that describes it.
pub const DESCRIPTOR: &str = "DiskDescriptor.xml";

/// The name of the image in a new bundle whose folder has this name.
#[must_use]
pub fn main_name(folder: &str) -> String {
    format!("{folder}.0.{TOP}.hds")
}

/// Cylinders, heads and sectors, which have to give the size exactly; guests do not see them any more.
fn geometry(sectors: u64) -> (u64, u64, u64) {
    let (heads, per_track) = [(16, 63), (16, 32), (16, 1)]
        .into_iter()
        .find(|(h, s)| sectors.is_multiple_of(h * s))
        .unwrap_or((1, 1));
    (sectors / (heads * per_track), heads, per_track)
}

/// Describes a disk of one image.
pub fn descriptor(size: u64, cluster: u64, image: &str) -> String {
    let sectors = size / SECTOR;
    let (cylinders, heads, per_track) = geometry(sectors);
    let (image, block) = (escape(image), cluster / SECTOR);
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Parallels_disk_image Version="1.0">
    <Disk_Parameters>
        <Disk_size>{sectors}</Disk_size>
        <Cylinders>{cylinders}</Cylinders>
        <Heads>{heads}</Heads>
        <Sectors>{per_track}</Sectors>
        <Padding>0</Padding>
    </Disk_Parameters>
    <StorageData>
        <Storage>
            <Start>0</Start>
            <End>{sectors}</End>
            <Blocksize>{block}</Blocksize>
            <Image>
                <GUID>{TOP}</GUID>
                <Type>Compressed</Type>
                <File>{image}</File>
            </Image>
        </Storage>
    </StorageData>
    <Snapshots>
        <Shot>
            <GUID>{TOP}</GUID>
            <ParentGUID>{NONE}</ParentGUID>
        </Shot>
    </Snapshots>
</Parallels_disk_image>
"#
    )
}

/// True if a file begins like a descriptor.
pub fn is_descriptor(head: &[u8]) -> bool {
    let head = &head[..head.len().min(512)];
    let mark = b"<Parallels_disk_image";
    let start = head.iter().position(|&b| b == b'<').is_some_and(|n| n < 8);
    start && head.windows(mark.len()).any(|w| w == mark)
}

/// Zeros that are written as data at once, at most.
const ZEROS: u64 = 1 << 20;
/// Bytes of a cluster at most that is written over others: it is in memory whole.
const MAX_OVER: u64 = 16 << 20;

/// One image of one part.
enum Layer {
    Sparse(Box<ParallelsImage>),
    Plain(NodeRef),
}

impl Layer {
    fn node(&self) -> &dyn Node {
        match self {
            Self::Sparse(disk) => &**disk,
            Self::Plain(file) => &**file,
        }
    }
}

/// A part of the disk, and its images, the newest first.
struct Part {
    start: u64,
    end: Cell<u64>,
    layers: Vec<Layer>,
    /// Clusters that the newest image is just given.
    locks: RangeLocks,
}

/// A disk of several images.
pub struct Bundle {
    info: NodeInfo,
    /// The descriptor.
    file: NodeRef,
    size: Cell<u64>,
    parts: Vec<Part>,
    snapshots: Vec<String>,
}

fn child<'a>(node: Xml<'a, 'a>, name: &str) -> Result<Xml<'a, 'a>, String> {
    node.children().find(|n| n.has_tag_name(name)).ok_or_else(|| format!("'{name}' is missing"))
}

fn word<'a>(node: Xml<'a, 'a>, name: &str) -> Result<&'a str, String> {
    Ok(child(node, name)?.text().unwrap_or("").trim())
}

fn sectors(node: Xml<'_, '_>, name: &str) -> Result<u64, String> {
    let n = word(node, name)?.parse::<u64>().ok().and_then(|n| n.checked_mul(SECTOR));
    n.ok_or_else(|| format!("'{name}' is no number of sectors"))
}

/// What the descriptor says of a part: where it is, and its images' kinds and files.
struct Plan {
    start: u64,
    end: u64,
    /// (sparse, file), the newest first.
    images: Vec<(bool, String)>,
}

/// Snapshots from the newest to the oldest.
fn chain(root: Xml<'_, '_>) -> Result<Vec<String>, String> {
    let mut parents = HashMap::new();
    let mut top = None;
    if let Ok(snapshots) = child(root, "Snapshots") {
        top = word(snapshots, "TopGUID").ok().map(str::to_owned);
        for shot in snapshots.children().filter(|n| n.has_tag_name("Shot")) {
            parents.insert(word(shot, "GUID")?.to_owned(), word(shot, "ParentGUID")?.to_owned());
        }
    }
    let mut next = top.unwrap_or_else(|| TOP.to_owned());
    let mut chain: Vec<String> = Vec::new();
    while next != NONE {
        if chain.contains(&next) {
            return Err("its snapshots go in a circle".to_owned());
        }
        let parent = parents.get(&next).cloned();
        chain.push(next);
        next = parent.unwrap_or_else(|| NONE.to_owned());
    }
    Ok(chain)
}

fn plan(text: &str) -> Result<(u64, Vec<Plan>, Vec<String>), String> {
    let document = parse(text)?;
    let root = document.root_element();
    let parameters = child(root, "Disk_Parameters")?;
    let size = sectors(parameters, "Disk_size")?;
    if let Ok(encryption) = child(parameters, "Encryption")
        && word(encryption, "Engine").is_ok_and(|e| !e.is_empty() && e != NONE)
    {
        return Err("encrypted disks are not supported".to_owned());
    }
    let chain = chain(root)?;
    let mut plans = Vec::new();
    let mut images = 0;
    for storage in child(root, "StorageData")?.children().filter(|n| n.has_tag_name("Storage")) {
        let mut part =
            Plan { start: sectors(storage, "Start")?, end: sectors(storage, "End")?, images: Vec::new() };
        let mut found = HashMap::new();
        for image in storage.children().filter(|n| n.has_tag_name("Image")) {
            let sparse = match word(image, "Type")? {
                "Compressed" => true,
                "Plain" => false,
                other => return Err(format!("images of type '{other}' are not supported")),
            };
            found.insert(word(image, "GUID")?, (sparse, word(image, "File")?.to_owned()));
        }
        for guid in &chain {
            part.images.extend(found.remove(guid.as_str()));
        }
        images += part.images.len();
        if part.images.is_empty() || images > MAX_IMAGES {
            return Err(format!("the part at {} has no image of its own, or there are too many", part.start));
        }
        plans.push(part);
    }
    plans.sort_by_key(|p| p.start);
    let mut at = 0;
    for part in &plans {
        if part.start != at || part.end <= at {
            return Err(format!("its parts do not follow each other at {at}"));
        }
        at = part.end;
    }
    if at != size {
        return Err(format!("its parts are {at} bytes, and the disk {size}"));
    }
    Ok((size, plans, chain))
}

fn parse(text: &str) -> Result<Document<'_>, String> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_ELEMENTS, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|e| e.to_string())
}

/// The descriptor of the same disk, grown in its last part.
fn resized(text: &str, size: u64) -> Result<String, String> {
    let document = parse(text)?;
    let root = document.root_element();
    let parameters = child(root, "Disk_Parameters")?;
    let parts = child(root, "StorageData")?.children().filter(|n| n.has_tag_name("Storage"));
    let last = parts.max_by_key(|n| sectors(*n, "Start").unwrap_or(0)).ok_or("it has no parts")?;
    let (cylinders, heads, per_track) = geometry(size / SECTOR);
    let mut changes = Vec::new();
    for (of, name, value, wanted) in [
        (parameters, "Disk_size", size / SECTOR, true),
        (parameters, "Cylinders", cylinders, false),
        (parameters, "Heads", heads, false),
        (parameters, "Sectors", per_track, false),
        (last, "End", size / SECTOR, true),
    ] {
        match child(of, name).ok().and_then(|n| n.first_child()).filter(|n| n.is_text()) {
            Some(old) => changes.push((old.range(), value)),
            None if wanted => return Err(format!("'{name}' is missing")),
            None => {}
        }
    }
    changes.sort_by_key(|c| std::cmp::Reverse(c.0.start));
    let mut new = text.to_owned();
    for (range, value) in changes {
        new.replace_range(range, &value.to_string());
    }
    // White space may follow, so that the file need not become shorter.
    while new.len() < text.len() {
        new.push('\n');
    }
    match plan(&new)? {
        (now, ..) if now == size => Ok(new),
        (now, ..) => Err(format!("it would say {now} bytes")),
    }
}

fn refused(name: &str, why: String) -> Error {
    let kind = if why.contains("not supported") { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
    Error::new(kind, format!("cannot use the description '{name}'"), why)
}

async fn read_text(file: &dyn Node) -> Result<String, Error> {
    let refused = |why: String| refused(&file.info().name, why);
    if file.size() > MAX_BYTES {
        return Err(refused(format!("it has {} bytes, more than any honest one", file.size())));
    }
    let bytes = file.read(0, IoBuf::new(file.size() as usize)).await?;
    String::from_utf8(bytes.to_vec()).map_err(|_| refused("it is not UTF-8".to_owned()))
}

/// Opens the disk that a descriptor describes.
///
/// # Errors
/// It, or an image that it names, is wrong or not supported; the images may not be opened.
pub async fn open(file: NodeRef, links: &dyn Links, read_only: bool) -> Result<Bundle, Error> {
    let name = file.info().name.clone();
    let text = read_text(&*file).await?;
    let (size, plans, snapshots) = plan(&text).map_err(|why| refused(&name, why))?;
    let mut parts = Vec::new();
    for Plan { start, end, images } in plans {
        let over = images.len() > 1;
        let mut layers = Vec::new();
        for (n, (sparse, image)) in images.into_iter().enumerate() {
            // Only the newest one is written.
            let read_only = read_only || n > 0;
            let node = links.open_file(&image, read_only).await?;
            let (layer, len) = if sparse {
                let disk = ParallelsImage::open(node, read_only).await?;
                let len = disk.size();
                let cluster = disk.describe().cluster_size.unwrap_or(SECTOR);
                if over && !read_only && cluster > MAX_OVER {
                    let doing = format!("cannot open '{name}' for writing");
                    let why = format!("'{image}' is over another image and has clusters of {cluster} bytes");
                    let why = format!("{why}, more than {MAX_OVER}: convert it");
                    return Err(Error::new(ErrorKind::Limit, doing, why));
                }
                (Layer::Sparse(Box::new(disk)), len)
            } else {
                let len = node.size();
                (Layer::Plain(node), len)
            };
            if len < end - start {
                return Err(Error::corrupt(&image, format!("it is shorter than its part of '{name}'")));
            }
            layers.push(layer);
        }
        parts.push(Part { start, end: Cell::new(end), layers, locks: RangeLocks::default() });
    }
    let blocks = parts.iter().map(|p| p.layers[0].node().info().block);
    let block = blocks.max().unwrap_or(0).max(SECTOR as u32);
    let info = NodeInfo { name, read_only, block };
    Ok(Bundle { info, file, size: Cell::new(size), parts, snapshots })
}

/// Where bytes are.
struct Found<'a> {
    /// The image's file and the byte in it; `None`: nowhere.
    place: Option<(&'a NodeRef, u64)>,
    len: u64,
    depth: u32,
}

impl Part {
    /// The first bytes of a range of the part that are in one place, looked for from the `first` newest image on.
    fn find(&self, within: u64, mut len: u64, first: usize) -> Result<Found<'_>, Error> {
        let mut depth = 0;
        for (n, layer) in self.layers.iter().enumerate().skip(first) {
            depth = n as u32;
            match layer {
                Layer::Plain(file) => return Ok(Found { place: Some((file, within)), len, depth }),
                Layer::Sparse(disk) => {
                    let (at, run) = disk.run(within, len)?;
                    len = run;
                    if let Some(at) = at {
                        return Ok(Found { place: Some((disk.file(), at)), len, depth });
                    }
                }
            }
        }
        Ok(Found { place: None, len, depth })
    }

    async fn read(&self, within: u64, mut buf: IoBuf, first: usize) -> Result<IoBuf, Error> {
        if let ([only], 0) = (&self.layers[..], first) {
            return only.node().read(within, buf).await;
        }
        let len = buf.len() as u64;
        let mut done = 0;
        while done < len {
            let found = self.find(within + done, len - done, first)?;
            let out = done as usize..(done + found.len) as usize;
            match found.place {
                None => buf[out].fill(0),
                Some((file, at)) if found.len == len => return file.read(at, buf).await,
                Some((file, at)) => {
                    let part = file.read(at, IoBuf::new(found.len as usize)).await?;
                    buf[out].copy_from_slice(&part);
                }
            }
            done += found.len;
        }
        Ok(buf)
    }

    /// The newest image, if it does not hold all by itself.
    fn over(&self) -> Option<&ParallelsImage> {
        match &self.layers[..] {
            [Layer::Sparse(disk), _, ..] => Some(disk),
            _ => None,
        }
    }

    /// Writes to the newest image, which has others below; `None` writes zeros.
    async fn write_over(
        &self,
        disk: &ParallelsImage,
        within: u64,
        len: u64,
        data: Option<IoData>,
    ) -> Result<(), Error> {
        let cluster = disk.describe().cluster_size.unwrap_or(SECTOR);
        let piece = |done: u64, n: u64| match &data {
            Some(data) => data.slice(done as usize..(done + n) as usize),
            None => IoData::copy_of(&vec![0; n as usize]),
        };
        let mut done = 0;
        while done < len {
            let at = within + done;
            let (place, run) = disk.run(at, (len - done).min(ZEROS))?;
            if place.is_some() {
                disk.write(at, piece(done, run)).await?;
                done += run;
                continue;
            }
            let start = at / cluster * cluster;
            let end = (start + cluster).min(self.end.get() - self.start);
            let n = (end - at).min(len - done);
            let _alone = self.locks.lock(start..end, true).await;
            // Somebody else may have written it meanwhile.
            if disk.run(at, n)?.0.is_some() {
                continue;
            }
            let below = self.find(start, end - start, 1)?;
            let nothing = below.place.is_none() && below.len == end - start;
            if data.is_some() && (nothing || n == end - start) {
                disk.write(at, piece(done, n)).await?;
            } else if !nothing {
                let mut whole = self.read(start, IoBuf::new((end - start) as usize), 1).await?;
                whole[(at - start) as usize..(at - start + n) as usize].copy_from_slice(&piece(done, n));
                disk.write(start, whole.into()).await?;
            }
            done += n;
        }
        Ok(())
    }
}

impl Bundle {
    /// Parts of the disk that a range is in: the part, the byte in it, and the bytes of the range before and in it.
    fn split(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Part, u64, u64, u64)> {
        let first = self.parts.partition_point(|p| p.end.get() <= offset);
        self.parts[first..].iter().take_while(move |p| p.start < offset + len).map(move |p| {
            let from = offset.max(p.start);
            (p, from - p.start, from - offset, p.end.get().min(offset + len) - from)
        })
    }
}

impl Node for Bundle {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let len = buf.len() as u64;
            check_range(self, "read", offset, len)?;
            for (part, within, done, n) in self.split(offset, len) {
                if n == len {
                    return part.read(within, buf, 0).await;
                }
                let own = part.read(within, IoBuf::new(n as usize), 0).await?;
                buf[done as usize..(done + n) as usize].copy_from_slice(&own);
            }
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            for (part, within, done, n) in self.split(offset, data.len() as u64) {
                let data = data.slice(done as usize..(done + n) as usize);
                match part.over() {
                    Some(disk) => part.write_over(disk, within, n, Some(data)).await?,
                    None => part.layers[0].node().write(within, data).await?,
                }
            }
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            for (part, within, _, n) in self.split(offset, len) {
                match part.over() {
                    Some(disk) => part.write_over(disk, within, n, None).await?,
                    None => part.layers[0].node().write_zeroes(within, n, unmap).await?,
                }
            }
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            // Where there is something below, it would come to light.
            for (part, within, _, n) in self.split(offset, len).filter(|p| p.0.over().is_none()) {
                part.layers[0].node().discard(within, n).await?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            for part in &self.parts {
                part.layers[0].node().flush().await?;
            }
            Ok(())
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let Some((part, within, _, n)) = self.split(offset, len).next() else {
                return Ok(Extent::hole(len));
            };
            let found = part.find(within, n, 0)?;
            // Its bytes are in several files, so there is no place to name.
            let extent = match found.place {
                Some(_) => Extent::stored(found.len, None),
                None => Extent::hole(found.len),
            };
            Ok(Extent { depth: found.depth, ..extent })
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let cannot = |kind, why: &str| {
                Err(Error::new(kind, format!("cannot resize '{}' to {size} bytes", self.info.name), why))
            };
            let old = self.size.get();
            if !size.is_multiple_of(SECTOR) {
                return cannot(ErrorKind::Invalid, "the size is not a multiple of 512");
            }
            if size < old {
                return cannot(ErrorKind::Unsupported, "a Parallels disk cannot be made smaller");
            }
            // The size is the disk's and its snapshots' alike, and snapshots must not change. Parallels' own tool merges
            // them all before it resizes.
            let Some(last) = self.parts.last().filter(|p| p.layers.len() == 1) else {
                let why = "it has snapshots, which have the same size and would change, too: convert it to a new \
                           disk, which has none, and resize that";
                return cannot(ErrorKind::Unsupported, why);
            };
            let text = read_text(&*self.file).await?;
            let text = resized(&text, size).map_err(|why| refused(&self.info.name, why))?;
            // An image may be longer than its part, with anything there, and not shorter.
            let (image, len) = (last.layers[0].node(), old - last.start);
            let behind = image.size().min(size - last.start).saturating_sub(len);
            image.write_zeroes(len, behind, true).await?;
            image.resize(image.size().max(size - last.start)).await?;
            image.flush().await?;
            self.file.write(0, IoData::copy_of(text.as_bytes())).await?;
            self.file.flush().await?;
            last.end.set(size);
            self.size.set(size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            for layer in self.parts.iter().flat_map(|p| &p.layers) {
                layer.node().close().await?;
            }
            Ok(())
        })
    }
}

impl Image for Bundle {
    fn format(&self) -> Format {
        Format::Parallels
    }

    fn describe(&self) -> Description {
        let mut details = serde_json::Map::new();
        details.insert("parts".into(), json!(self.parts.len()));
        details.insert("snapshots".into(), json!(self.snapshots));
        Description { details, ..Description::default() }
    }

    fn backing(&self) -> Option<NodeRef> {
        None
    }

    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            let mut all = CheckReport::default();
            for (n, layer) in self.parts.iter().flat_map(|p| p.layers.iter().enumerate()) {
                let Layer::Sparse(disk) = layer else { continue };
                let repair = if n == 0 { repair } else { Repair::No };
                let report = disk.check(repair, progress).await?;
                all.corruptions += report.corruptions;
                all.corruptions_fixed += report.corruptions_fixed;
                all.leaks += report.leaks;
                all.leaks_fixed += report.leaks_fixed;
                all.total_clusters += report.total_clusters;
                all.allocated_clusters += report.allocated_clusters;
                all.fragmented_clusters += report.fragmented_clusters;
                for message in report.messages {
                    all.say(format_args!("{}: {message}", disk.info().name));
                }
            }
            Ok(all)
        })
    }
}
