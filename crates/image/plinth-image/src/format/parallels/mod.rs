//! Parallels: expanding disks (`.hdd`, `.hds`), and bundles of them described by a `DiskDescriptor.xml`.
//!
//! A header, a block allocation table (BAT) and clusters; QEMU's docs/interop/parallels.rst describes the file, and
//! docs/interop/prl-xml.rst the bundles, as far as they are of one part; the rest was learned from samples.
//!
//! **Order of writes.** Before its first change an image is marked as in use, and that is flushed. A cluster's data is
//! written to space that nothing refers to, at the file's end or freed by a flush that is complete; its BAT entry
//! changes in memory when the data is written. A flush takes the changed BAT blocks as they are, flushes the file (the
//! data), writes these blocks, and flushes again. So the BAT on disk never names a cluster whose data is not there.
//! What a cut leaves is the mark, and clusters at the file's end that nothing names: the next open for writing cuts
//! them off.

mod bundle;
mod image;

pub use bundle::{DESCRIPTOR, main_name};

use std::rc::Rc;

use self::image::ParallelsImage;
use super::{CreateRequest, Driver, Format, Image, OpenRequest, OptionKind, OptionSpec};
use crate::graph::{IoData, Node, read_table};
use crate::{Error, ErrorKind, SECTOR};

/// Parallels' disks.
pub static DRIVER: Driver = Driver {
    format: Format::Parallels,
    probe: |sample| {
        let version2 = sample.head.get(16..20) == Some(&[2, 0, 0, 0]);
        (version2 && MAGICS.iter().any(|m| sample.head.starts_with(*m))) || bundle::is_descriptor(sample.head)
    },
    open: |request| Box::pin(open(request)),
    create: Some(|request| Box::pin(create(request))),
    options: &[OptionSpec {
        name: "cluster_size",
        kind: OptionKind::Size,
        help: "bytes that are allocated at once, a multiple of 512; 1M if not given",
    }],
};

/// The older form counts clusters in sectors, the newer one in clusters.
const MAGICS: [&[u8; 16]; 2] = [b"WithoutFreeSpace", b"WithouFreSpacExt"];
const HEADER: usize = 64;
/// A finding.
pub const WRONG_START: &str = "the header says that the data begins where it cannot";
/// How a finding ends that begins with how many.
pub const UNUSED_TAIL: &str = "bytes at the file's end are not in use";
/// How a finding ends that begins with which clusters.
pub const SAME_PLACE: &str = "are in the same place";
/// Values of the mark.
const IN_USE: u32 = 0x746f_6e59;
const CLOSED: u32 = 0x312e_3276;
/// Bytes of a BAT at most: it is in memory whole. 8 TiB of disk, with clusters of 1 MiB.
const MAX_BAT: u64 = 32 << 20;
/// Bytes of a cluster at most.
const MAX_CLUSTER: u64 = 1 << 30;

/// What does not change while an image is open, unless it is made larger.
#[derive(Clone, Debug)]
struct Header {
    /// The newer form.
    extended: bool,
    /// Bytes of a cluster.
    cluster: u64,
    entries: u64,
    /// Bytes of the disk.
    size: u64,
    in_use: u32,
    /// Byte of the file where clusters begin.
    data: u64,
    /// What the header says of that cannot be; `data` is the first place behind the table.
    misplaced: bool,
    /// Byte of the format extension, or 0.
    extension: u64,
}

fn le32(b: &[u8], at: usize) -> u32 {
    b[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

fn le64(b: &[u8], at: usize) -> u64 {
    b[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

impl Header {
    fn parse(b: &[u8], file: u64, for_check: bool) -> Result<Self, String> {
        let Some(form) = MAGICS.iter().position(|m| b.starts_with(*m)) else {
            return Err("it does not begin as a Parallels disk does".to_owned());
        };
        let extended = form == 1;
        if le32(b, 16) != 2 {
            return Err(format!("it has version {}, not 2", le32(b, 16)));
        }
        let cluster = u64::from(le32(b, 28)) * SECTOR;
        if cluster == 0 || cluster > MAX_CLUSTER {
            return Err(format!("its clusters have {cluster} bytes"));
        }
        let entries = u64::from(le32(b, 32));
        let end = HEADER as u64 + entries * 4;
        if entries * 4 > MAX_BAT || end > file {
            return Err(format!("its table of {entries} clusters does not fit into it"));
        }
        let sectors = if extended { le64(b, 36) } else { u64::from(le32(b, 36)) };
        let size = sectors.checked_mul(SECTOR).filter(|&s| s.div_ceil(cluster) <= entries);
        let size =
            size.ok_or_else(|| format!("its table of {entries} clusters is too short for the disk"))?;
        let data = match u64::from(le32(b, 48)) * SECTOR {
            0 if !extended => end.next_multiple_of(SECTOR),
            at => at,
        };
        let least = end.next_multiple_of(SECTOR);
        let misplaced = data < least || (extended && !data.is_multiple_of(cluster));
        if misplaced && !for_check {
            return Err(format!("its data begins at {data}, where it cannot be"));
        }
        let first = if extended { end.next_multiple_of(cluster) } else { least };
        let data = if misplaced { first } else { data };
        let extension = le64(b, 56).checked_mul(SECTOR).ok_or("its extension is nowhere")?;
        Ok(Self { extended, cluster, entries, size, in_use: le32(b, 44), data, misplaced, extension })
    }

    /// Bytes that one step of a BAT entry means.
    fn unit(&self) -> u64 {
        if self.extended { self.cluster } else { SECTOR }
    }
}

/// `for_check`: where the data begins need not be right.
async fn read_header(file: &dyn Node, for_check: bool) -> Result<Header, Error> {
    let bytes = read_table(file, 0, HEADER, "the header").await?;
    Header::parse(&bytes, file.size(), for_check).map_err(|why| Error::corrupt(&file.info().name, why))
}

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    let OpenRequest { file, links, options } = request;
    let head = file.read(0, crate::graph::IoBuf::new(file.size().min(512) as usize)).await?;
    if bundle::is_descriptor(&head) {
        return Ok(Rc::new(bundle::open(file, &*links, options.read_only).await?));
    }
    let read_only = options.read_only || file.info().read_only;
    Ok(Rc::new(ParallelsImage::open_with(file, read_only, options.for_check).await?))
}

async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let CreateRequest { output, size, options, backing, .. } = request;
    let refused = |kind, why: &str| Error::new(kind, format!("cannot create '{}'", output.name()), why);
    if backing.is_some() {
        return Err(refused(
            ErrorKind::Unsupported,
            "a Parallels disk has no image below outside of its bundle",
        ));
    }
    let cluster = options.size("cluster_size")?.unwrap_or(1 << 20);
    if cluster == 0 || !cluster.is_multiple_of(SECTOR) || cluster > MAX_CLUSTER {
        return Err(refused(ErrorKind::Invalid, "the cluster size is a multiple of 512, up to 1G"));
    }
    let entries = size.div_ceil(cluster);
    if entries * 4 > MAX_BAT {
        return Err(refused(ErrorKind::Limit, "the disk has too many clusters: use a larger cluster_size"));
    }
    let data = (HEADER as u64 + entries * 4).next_multiple_of(cluster);
    // The geometry that QEMU writes; guests do not see it any more.
    let (heads, per_track) = (16u32, 32u32);
    let cylinders = (size / SECTOR / u64::from(heads * per_track)).min(u64::from(u32::MAX)) as u32;
    let mut b = [0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, MAGICS[1]);
    for (at, value) in [
        (16, 2),
        (20, heads),
        (24, cylinders),
        (28, (cluster / SECTOR) as u32),
        (32, entries as u32),
        (44, CLOSED),
        (48, (data / SECTOR) as u32),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(36, &(size / SECTOR).to_le_bytes());
    if output.has_folder() {
        let text = bundle::descriptor(size, cluster, output.name());
        let side = output.sibling(bundle::DESCRIPTOR).await?;
        side.write(0, IoData::copy_of(text.as_bytes())).await?;
        side.flush().await?;
    }
    let file = output.main().await?;
    file.write_zeroes(0, data, true).await?;
    file.write(0, IoData::copy_of(&b)).await?;
    Ok(Rc::new(ParallelsImage::open(file, false).await?))
}
