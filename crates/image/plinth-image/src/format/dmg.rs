//! Apple's disk images (UDIF). For reading.
//!
//! A trailer ("koly") names a property list, or a resource fork in old ones, whose `blkx` entries ("mish") list the
//! disk's chunks: zeros, bytes as they are, or compressed with ADC, zlib, bzip2, LZFSE or LZMA. Apple has never
//! described it; what is here is what all programs that read it agree on. An image without a trailer (`UDRW`) holds
//! the disk's bytes as they are, and is a raw image to Plinth.

use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use roxmltree::{Document, Node as Xml, ParsingOptions};

use super::chunks::{ChunkCache, Codec, MAX_CHUNK, Packed};
use super::{CheckReport, Description, Driver, Format, Image, OpenRequest, Progress, Repair, Sample};
use crate::graph::{Extent, Io, IoBuf, NodeInfo, NodeRef, ReadNode, check_range, read_table};
use crate::{Error, ErrorKind, SECTOR};

/// Apple's disk images.
pub static DRIVER: Driver = Driver {
    format: Format::Dmg,
    probe,
    open: |request| Box::pin(open(request)),
    create: None,
    options: &[],
};

/// Bytes of the trailer.
const TRAILER: usize = 512;
/// Bytes of the property list or the resource fork, and chunks, at most.
const MAX_LIST: u64 = 16 << 20;
const MAX_CHUNKS: usize = 400_000;
const MAX_ELEMENTS: u32 = 100_000;

/// Where a trailer is in a file's last bytes: at its very end, or with some bytes behind it.
fn find_trailer(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(TRAILER)?;
    (0..=last).rev().find(|&at| tail[at..].starts_with(b"koly\0\0\0\x04\0\0\x02\0"))
}

fn is_encrypted(sample_head: &[u8], tail: &[u8]) -> bool {
    sample_head.starts_with(b"encrcdsa") || tail.ends_with(b"cdsaencr")
}

fn probe(sample: &Sample<'_>) -> bool {
    find_trailer(sample.tail).is_some() || is_encrypted(sample.head, sample.tail)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    /// Bytes as they are, so many; what is missing are zeros.
    Raw {
        offset: u64,
        len: u64,
    },
    Packed {
        codec: Codec,
        offset: u64,
        len: u64,
    },
}

/// A chunk of the disk; offsets and lengths are bytes.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    start: u64,
    size: u64,
    kind: Kind,
}

fn be32(b: &[u8], at: usize) -> u32 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
}

fn be64(b: &[u8], at: usize) -> u64 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
}

/// Adds the chunks of one `blkx` entry.
fn mish(entry: &[u8], fork: u64, file: u64, chunks: &mut Vec<Chunk>) -> Result<(), String> {
    const HEAD: usize = 204;
    const CHUNK: usize = 40;
    if !entry.starts_with(b"mish") || entry.len() < HEAD {
        return Err("a list of chunks does not begin as it should".to_owned());
    }
    let (first, base, count) = (be64(entry, 8), be64(entry, 24), be32(entry, 200) as usize);
    let table = entry[HEAD..].get(..count.saturating_mul(CHUNK)).ok_or("a list of chunks is cut off")?;
    if chunks.len() + count > MAX_CHUNKS {
        return Err(format!("it has more than {MAX_CHUNKS} chunks"));
    }
    for b in table.chunks(CHUNK) {
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR).filter(|&b| b <= i64::MAX as u64);
        let place = || {
            let start = bytes(first.checked_add(be64(b, 8))?)?;
            let offset = fork.checked_add(base)?.checked_add(be64(b, 24))?;
            Some((start, bytes(be64(b, 16))?, offset, be64(b, 32)))
        };
        let (start, size, offset, len) = place().ok_or("a chunk is nowhere")?;
        let codec = match be32(b, 0) {
            0 | 2 => None,
            1 => None,
            0x8000_0004 => Some(Codec::Adc),
            0x8000_0005 => Some(Codec::Zlib),
            0x8000_0006 => Some(Codec::Bzip2),
            0x8000_0007 => Some(Codec::Lzfse),
            0x8000_0008 => Some(Codec::Xz),
            // A comment, and the end.
            0x7fff_fffe | 0xffff_ffff => continue,
            other => return Err(format!("chunks of type {other:#x} are not supported")),
        };
        if size == 0 {
            continue;
        }
        let kind = match codec {
            None if be32(b, 0) == 1 => Kind::Raw { offset, len: len.min(size) },
            None => Kind::Zero,
            Some(codec) => Kind::Packed { codec, offset, len },
        };
        let end = offset.checked_add(len);
        if kind != Kind::Zero && end.is_none_or(|e| e > file) {
            return Err(format!("a chunk ({len} bytes at {offset}) is beyond the file's end at {file}"));
        }
        if matches!(kind, Kind::Packed { .. }) && (size > MAX_CHUNK || len > MAX_CHUNK) {
            return Err(format!("a compressed chunk has {} bytes", size.max(len)));
        }
        if start.checked_add(size).is_none() {
            return Err("a chunk is nowhere".to_owned());
        }
        chunks.push(Chunk { start, size, kind });
    }
    Ok(())
}

/// The value of a key in a property list's dictionary.
fn value<'a>(dict: Xml<'a, 'a>, key: &str) -> Option<Xml<'a, 'a>> {
    let mut elements = dict.children().filter(Xml::is_element);
    elements.find(|n| n.has_tag_name("key") && n.text() == Some(key))?;
    elements.next()
}

/// The `blkx` entries of a property list.
fn list_entries(text: &str) -> Result<Vec<Vec<u8>>, String> {
    // Property lists begin with a document type, which refers to a file that nobody reads.
    let options = ParsingOptions { allow_dtd: true, nodes_limit: MAX_ELEMENTS, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| e.to_string())?;
    let root = document.root_element().children().find(|n| n.has_tag_name("dict"));
    let blkx = root.and_then(|d| value(d, "resource-fork")).and_then(|d| value(d, "blkx"));
    let blkx = blkx.ok_or("its property list has no 'blkx'")?;
    let mut entries = Vec::new();
    for dict in blkx.children().filter(|n| n.has_tag_name("dict")) {
        let data = value(dict, "Data").and_then(|d| d.text()).ok_or("an entry of 'blkx' has no data")?;
        let packed: Vec<u8> = data.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        entries.push(BASE64.decode(packed).map_err(|_| "an entry of 'blkx' is no base64".to_owned())?);
    }
    Ok(entries)
}

/// The `mish` entries of a resource fork (Inside Macintosh: More Macintosh Toolbox, 1-121): data begins where its first
/// word says, and each piece has its length in front.
fn fork_entries(fork: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let (at, len) = (be32(fork, 0) as usize, be32(fork, 8) as usize);
    let mut data =
        at.checked_add(len).and_then(|end| fork.get(at..end)).ok_or("its resource fork is cut off")?;
    let mut entries = Vec::new();
    while data.len() >= 4 {
        let len = be32(data, 0) as usize;
        let Some(entry) = len.checked_add(4).and_then(|end| data.get(4..end)) else { break };
        if entry.starts_with(b"mish") {
            entries.push(entry.to_vec());
        }
        data = &data[4 + len..];
    }
    if entries.is_empty() { Err("its resource fork lists no chunks".to_owned()) } else { Ok(entries) }
}

struct DmgImage {
    info: NodeInfo,
    file: NodeRef,
    size: u64,
    /// In order, apart from each other.
    chunks: Vec<Chunk>,
    cache: ChunkCache,
}

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    let file = request.file;
    let name = file.info().name.clone();
    let refused = |why: String| {
        let kind = if why.contains("not supported") { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
        Error::new(kind, format!("cannot use the disk image '{name}'"), why)
    };
    let len = file.size();
    let tail_at = len.saturating_sub(2 * TRAILER as u64);
    let tail = file.read(tail_at, IoBuf::new((len - tail_at) as usize)).await?;
    let head = file.read(0, IoBuf::new(len.min(8) as usize)).await?;
    if is_encrypted(&head, &tail) {
        return Err(refused("encrypted disk images of Apple are not supported".to_owned()));
    }
    let at =
        find_trailer(&tail).ok_or_else(|| refused("it has no trailer: it may be a raw image".to_owned()))?;
    let koly = &tail[at..at + TRAILER];
    if be32(koly, 60) > 1 {
        return Err(refused(format!("images in {} files are not supported", be32(koly, 60))));
    }
    let (fork, sectors) = (be64(koly, 24), be64(koly, 492));
    let (list, list_len) = (be64(koly, 216), be64(koly, 224));
    let (resources, resources_len) = (be64(koly, 40), be64(koly, 48));
    if list_len.max(resources_len) > MAX_LIST {
        return Err(refused(format!("its list of chunks has {} bytes", list_len.max(resources_len))));
    }
    let entries = if list_len > 0 {
        let bytes = read_table(&*file, list, list_len as usize, "the property list").await?;
        std::str::from_utf8(&bytes).map_err(|e| e.to_string()).and_then(list_entries)
    } else if resources_len > 0 {
        let bytes = read_table(&*file, resources, resources_len as usize, "the resource fork").await?;
        fork_entries(&bytes)
    } else {
        Err("it has no list of chunks".to_owned())
    };
    let mut chunks = Vec::new();
    for entry in entries.map_err(refused)? {
        mish(&entry, fork, len, &mut chunks).map_err(refused)?;
    }
    chunks.sort_by_key(|c| c.start);
    if let Some(pair) = chunks.windows(2).find(|p| p[0].start + p[0].size > p[1].start) {
        return Err(refused(format!("two chunks overlap at {}", pair[1].start)));
    }
    let end = chunks.last().map_or(0, |c| c.start + c.size);
    // Old images do not say how large the disk is.
    let size = sectors.checked_mul(SECTOR).filter(|&s| s <= i64::MAX as u64).unwrap_or(0).max(end);
    let info = NodeInfo { name, read_only: true, block: SECTOR as u32 };
    Ok(Rc::new(DmgImage { info, file, size, chunks, cache: ChunkCache::default() }))
}

/// What bytes of the disk are.
enum Piece {
    Zero,
    /// Byte of the file.
    Raw(u64),
    /// Chunk, and byte in it.
    Packed(u64, usize),
}

impl DmgImage {
    fn packed(&self, n: u64) -> Option<Packed> {
        let chunk = self.chunks.get(n as usize)?;
        match chunk.kind {
            Kind::Packed { codec, offset, len } => Some(Packed { codec, offset, len, size: chunk.size }),
            _ => None,
        }
    }

    /// The first bytes of a range that are of one kind.
    fn find(&self, offset: u64, len: u64) -> (Piece, u64) {
        let n = self.chunks.partition_point(|c| c.start + c.size <= offset);
        let Some(chunk) = self.chunks.get(n) else { return (Piece::Zero, len) };
        if offset < chunk.start {
            return (Piece::Zero, len.min(chunk.start - offset));
        }
        let within = offset - chunk.start;
        let len = len.min(chunk.size - within);
        match chunk.kind {
            Kind::Raw { offset, len: stored } if within < stored => {
                (Piece::Raw(offset + within), len.min(stored - within))
            }
            Kind::Zero | Kind::Raw { .. } => (Piece::Zero, len),
            Kind::Packed { .. } => (Piece::Packed(n as u64, within as usize), len),
        }
    }
}

impl ReadNode for DmgImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            let mut done = 0;
            while done < buf.len() {
                let (piece, len) = self.find(offset + done as u64, (buf.len() - done) as u64);
                let out = done..done + len as usize;
                match piece {
                    Piece::Zero => buf[out].fill(0),
                    Piece::Raw(at) => {
                        let bytes = self.file.read(at, IoBuf::new(len as usize)).await?;
                        buf[out].copy_from_slice(&bytes);
                    }
                    Piece::Packed(n, at) => {
                        let chunk = self.cache.chunk(&*self.file, n, &|n| self.packed(n)).await?;
                        buf[out].copy_from_slice(&chunk[at..at + len as usize]);
                    }
                }
                done += len as usize;
            }
            Ok(buf)
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let (piece, len) = self.find(offset, len);
            Ok(match piece {
                Piece::Zero => Extent::zeros(len),
                Piece::Raw(at) => Extent::stored(len, Some(at)),
                Piece::Packed(..) => Extent { compressed: true, ..Extent::stored(len, None) },
            })
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(self.file.close())
    }
}

impl Image for DmgImage {
    fn format(&self) -> Format {
        Format::Dmg
    }

    fn describe(&self) -> Description {
        let packed = self.chunks.iter().any(|c| matches!(c.kind, Kind::Packed { .. }));
        Description { compressed: packed, ..Description::default() }
    }

    fn backing(&self) -> Option<NodeRef> {
        None
    }

    fn check<'a>(&'a self, _repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            progress.total.set(self.chunks.len() as u64);
            let total = self.chunks.len() as u64;
            let mut report = CheckReport { total_clusters: total, ..CheckReport::default() };
            for (n, chunk) in (0..).zip(&self.chunks) {
                report.allocated_clusters += u64::from(chunk.kind != Kind::Zero);
                if let Kind::Packed { .. } = chunk.kind {
                    report.compressed_clusters += 1;
                    match self.cache.chunk(&*self.file, n, &|n| self.packed(n)).await {
                        Err(e) if e.kind == ErrorKind::Corrupt => {
                            report.corruptions += 1;
                            report.say(&e.source);
                        }
                        result => _ = result?,
                    }
                }
                progress.add(1);
            }
            Ok(report)
        })
    }
}
