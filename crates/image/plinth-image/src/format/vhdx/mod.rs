//! VHDX, the format of Hyper-V: fixed, dynamic and differencing images. Source: MS-VHDX, version 6.0 and later.
//!
//! Two headers take turns, so that one is always valid; they say where the log is. Two region tables, of which one is
//! enough, say where the metadata and the table of blocks are. The table has eight bytes for each block (1 to 256 MiB)
//! and, in images over another one, for blocks of bitmaps of the sectors that are present.
//!
//! # Order of writes
//! Before the first change after an open, the header gets new IDs. Within one flush (see
//! [`blocks`](super::blocks)): the data of new blocks and space for new bitmaps; a barrier; one entry of the log
//! with all sectors of tables and bitmaps that change (several entries, each with all of this, if they are more than
//! 126); a barrier; with the first entry, the header that says that the log counts; a barrier; then the sectors in
//! their places, which the next flush makes durable before it writes its entry. So the newest entry is always enough,
//! and each entry says that it is. A cut anywhere leaves a file that is right once the log is replayed: into the
//! file when it is opened for writing, in memory when it is opened for reading. Closing empties the log.
//!
//! An entry takes less than half of the log, so a torn one leaves the one before it whole. Space that no entry refers
//! to is removed when the image is opened for writing, by moving the last blocks into gaps, also through the log.

mod check;
mod header;
mod layout;
mod log;
mod metadata;
mod overlay;

use std::rc::Rc;

use super::blocks::BlockImage;
use super::guid::Guid;
use super::vhd::from_windows;
use super::{
    Backing, BackingLink, CreateRequest, Driver, Format, Image, Links, OpenRequest, OptionKind, OptionSpec,
    Options,
};
use crate::graph::{IoBuf, IoData, NodeRef};
use crate::{Error, ErrorKind};
use header::{Header, MIB, REGIONS, Region, Regions, SECTOR, SIGNATURE};
use layout::{FULL, Vhdx, ZERO};
use metadata::{MAX_SIZE, Metadata, locator_of};

/// VHDX images.
pub static DRIVER: Driver = Driver {
    format: Format::Vhdx,
    probe: |sample| sample.head.starts_with(SIGNATURE),
    open: |request| Box::pin(open(request)),
    create: Some(|request| Box::pin(create(request))),
    options: &[
        OptionSpec {
            name: "subformat",
            kind: OptionKind::Choice(&["dynamic", "fixed"]),
            help: "dynamic (space as it is needed) or fixed (all of it now)",
        },
        OptionSpec {
            name: "block_size",
            kind: OptionKind::Size,
            help: "bytes allocated at once: a power of 2 from 1M to 256M (by the disk's size: 8M to 64M)",
        },
        OptionSpec { name: "log_size", kind: OptionKind::Size, help: "bytes of the log: 1M to 64M (1M)" },
        OptionSpec {
            name: "block_state_zero",
            kind: OptionKind::Flag,
            help: "on: new blocks are said to be zeros; off: to be absent, which is the same without a parent (on)",
        },
        OptionSpec {
            name: "logical_sector_size",
            kind: OptionKind::Choice(&["512", "4096"]),
            help: "bytes of the disk's sectors, as guests see them in Hyper-V (512)",
        },
    ],
};

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    let OpenRequest { mut file, links, options } = request;
    let name = file.info().name.clone();
    let read_only = options.read_only || file.info().read_only;
    if !file.read(0, IoBuf::new(SIGNATURE.len())).await?.starts_with(SIGNATURE) {
        return Err(Error::new(ErrorKind::Format, format!("cannot open '{name}'"), "it is not a VHDX image"));
    }
    let mut header = Header::read(&file).await?;
    if header.log_at.saturating_add(header.log_len.into()) > file.size() {
        return Err(Error::corrupt(&name, "its log is beyond the file's end"));
    }
    let clean = header.log == Guid::NIL;
    if !clean {
        match log::find(&file, &header).await? {
            Some(replay) if read_only => file = Rc::new(overlay::Replayed::new(file, replay)),
            Some(replay) => replay.apply(&file).await?,
            None => {}
        }
        if !read_only {
            header.log = Guid::NIL;
            header = header.write_next(&file).await?;
        }
    }
    let regions = Regions::read(&file).await?;
    for region in [regions.bat, regions.metadata] {
        if region.end() > file.size()
            || region.at < header.log_at + u64::from(header.log_len) && header.log_at < region.end()
        {
            return Err(Error::corrupt(&name, format!("a region of it would end at byte {}", region.end())));
        }
    }
    let metadata = Metadata::read(&file, regions.metadata).await?;
    let (size, has_parent) = (metadata.size, metadata.has_parent);
    let bat = regions.bat;
    let vhdx = Vhdx::new(file, header, regions, metadata, clean);
    vhdx.read_only.set(read_only);
    if vhdx.entries(size) * 8 > bat.len {
        let why = format!(
            "its table of blocks has {} bytes, and {} entries are needed",
            bat.len,
            vhdx.entries(size)
        );
        return Err(Error::corrupt(&name, why));
    }
    let mut backing = None;
    if has_parent {
        let (link, image) = open_parent(&name, &vhdx, &*links, options.no_backing).await?;
        *vhdx.backing.borrow_mut() = Some(link);
        backing = image;
    }
    if !read_only {
        vhdx.recover().await?;
    }
    Ok(Rc::new(BlockImage::new(vhdx, size, read_only, backing)))
}

/// Opens the image below, by the names that are stored of it.
async fn open_parent(
    name: &str,
    vhdx: &Vhdx,
    links: &dyn Links,
    closed: bool,
) -> Result<(BackingLink, Option<NodeRef>), Error> {
    let metadata = vhdx.metadata.borrow().clone();
    let doing = || format!("cannot open the image below '{name}'");
    let keys = ["relative_path", "absolute_win32_path", "volume_path"];
    let mut names: Vec<String> =
        keys.into_iter().filter_map(|k| metadata.parent_value(k)).map(from_windows).collect();
    for n in 0..names.len() {
        let alone = names[n].rsplit('/').next().unwrap_or_default().to_owned();
        if !names.contains(&alone) {
            names.push(alone);
        }
    }
    names.retain(|n| !n.is_empty());
    let linkages: Vec<Guid> = ["parent_linkage", "parent_linkage2"]
        .into_iter()
        .filter_map(|k| Guid::parse(metadata.parent_value(k)?))
        .collect();
    let Some(linkage) = linkages.first() else {
        return Err(Error::corrupt(name, "it does not say which image is its parent"));
    };
    let link = |name: &str| BackingLink {
        name: name.to_owned(),
        format: Some(Format::Vhdx),
        identity: Some(linkage.to_string()),
    };
    if closed {
        return Ok((link(names.first().map_or("", String::as_str)), None));
    }
    let mut problem: Option<Error> = None;
    for candidate in &names {
        let e = match links.open_backing(&link(candidate)).await {
            Ok(image) => {
                let identity = image.describe().identity.and_then(|i| Guid::parse(&i));
                if identity.is_some_and(|i| linkages.contains(&i)) {
                    return Ok((link(candidate), Some(image)));
                }
                let why = format!(
                    "'{candidate}' is another one, or has been written to since this image was made over it: \
                     its data write GUID is {}, not {linkage}",
                    identity.unwrap_or(Guid::NIL)
                );
                Error::new(ErrorKind::Corrupt, doing(), why)
            }
            Err(e) => e,
        };
        if problem.as_ref().is_none_or(|p| p.kind == ErrorKind::NotFound) {
            problem = Some(e);
        }
    }
    Err(match problem {
        Some(e) if e.kind != ErrorKind::NotFound => e,
        _ => {
            let why = format!(
                "its data write GUID is {linkage}, and it is none of: {}; put it there, or name its folder with \
                 --allow-backing",
                names.join(", ")
            );
            Error::new(ErrorKind::NotFound, doing(), why)
        }
    })
}

/// What the options say of a new image, without where it is.
fn plan(request: &CreateRequest<'_>) -> Result<(Metadata, u64), Error> {
    let CreateRequest { size, options, backing, .. } = request;
    let invalid = |why: String| {
        Error::new(ErrorKind::Invalid, format!("cannot create '{}'", request.output.name()), why)
    };
    let size = *size;
    let block_size = options.size("block_size")?.filter(|&b| b != 0).unwrap_or(match size {
        s if s > 32 << 40 => 64 * MIB,
        s if s > 100 << 30 => 32 * MIB,
        s if s > 1 << 30 => 16 * MIB,
        _ => 8 * MIB,
    });
    if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_size) {
        return Err(invalid("block_size is a power of 2 from 1M to 256M".into()));
    }
    let log_size = options.size("log_size")?.filter(|&l| l != 0).unwrap_or(MIB);
    if !log_size.is_multiple_of(MIB) || !(MIB..=64 * MIB).contains(&log_size) {
        return Err(invalid("log_size is a multiple of 1M up to 64M".into()));
    }
    let logical = if options.text("logical_sector_size") == Some("4096") { 4096 } else { 512 };
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(logical) {
        let why =
            format!("a VHDX disk has 64 TiB at most, and whole sectors of {logical} bytes, one at least");
        return Err(invalid(why));
    }
    let fixed = options.text("subformat") == Some("fixed");
    let parent = match backing {
        Some(_) if fixed => return Err(invalid("a fixed image is not over another one".into())),
        Some(backing) => locator_of(&backing.link).ok_or_else(|| {
            invalid("the image below is not a VHDX image, and VHDX can name no other".into())
        })?,
        None => Vec::new(),
    };
    let metadata = Metadata {
        block_size,
        keep: fixed,
        has_parent: backing.is_some(),
        size,
        logical,
        physical: 4096,
        disk_id: Guid::random()?,
        parent,
        size_at: 0,
    };
    Ok((metadata, log_size))
}

async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let (metadata, log_size) = plan(&request)?;
    let size = metadata.size;
    let file = request.output.main().await?;
    let header = Header::new(MIB, log_size as u32)?;
    let at = MIB + log_size;
    let bytes = metadata.bytes();
    let region = Region { at, len: (bytes.len() as u64).next_multiple_of(MIB) };
    let nowhere = Region { at: region.end(), len: MIB };
    let sized = Vhdx::new(file.clone(), header.clone(), Regions::new(nowhere, region), metadata, true);
    let bat = Region { at: nowhere.at, len: (sized.entries(size) * 8).next_multiple_of(MIB) };
    let regions = Regions::new(bat, region);
    let table = regions.bytes();
    file.write_zeroes(MIB, bat.end() - MIB, true).await?;
    file.write(region.at, bytes.freeze()).await?;
    let end = write_table(&file, &sized, bat, request.options).await?;
    for at in REGIONS {
        file.write(at, table.clone()).await?;
    }
    let header = header.write_next(&file).await?.write_next(&file).await?;
    let mut identifier = IoBuf::zeroed(SECTOR);
    identifier[..8].copy_from_slice(SIGNATURE);
    for (out, unit) in identifier[8..].chunks_mut(2).zip("Plinth".encode_utf16()) {
        out.copy_from_slice(&unit.to_le_bytes());
    }
    // Last: what has no beginning is no image.
    file.write(0, identifier.freeze()).await?;
    let metadata = Metadata::read(&file, region).await?;
    let vhdx = Vhdx::new(file, header, regions, metadata, true);
    vhdx.end.set(end);
    let below = request.backing.as_ref().map(Backing::below);
    *vhdx.backing.borrow_mut() = request.backing.map(|b| b.link);
    Ok(Rc::new(BlockImage::new(vhdx, size, false, below)))
}

/// Writes the table of a new image; where the file ends.
async fn write_table(file: &NodeRef, sized: &Vhdx, bat: Region, options: &Options) -> Result<u64, Error> {
    let (fixed, has_parent, block_size, size) = {
        let m = sized.metadata.borrow();
        (m.keep, m.has_parent, m.block_size, m.size)
    };
    let blocks = size.div_ceil(block_size);
    let end = if fixed { bat.end() + blocks * block_size } else { bat.end() };
    let zero = options.flag("block_state_zero").unwrap_or(true) && !has_parent;
    if fixed {
        file.write_zeroes(end - 1, 1, true).await?;
    }
    if !fixed && !zero {
        return Ok(end);
    }
    const AT_ONCE: u64 = 1 << 17;
    let entries = sized.entries(size);
    for first in (0..entries).step_by(AT_ONCE as usize) {
        let mut bytes = Vec::with_capacity(AT_ONCE as usize * 8);
        for index in first..entries.min(first + AT_ONCE) {
            let ratio = sized.ratio();
            let block = index - index / (ratio + 1);
            let entry = match index % (ratio + 1) == ratio {
                true => 0,
                false if fixed => (bat.end() + block * block_size) | FULL,
                false => ZERO,
            };
            bytes.extend(entry.to_le_bytes());
        }
        file.write(bat.at + first * 8, IoData::copy_of(&bytes)).await?;
    }
    Ok(end)
}
