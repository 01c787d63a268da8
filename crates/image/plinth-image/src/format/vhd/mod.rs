//! VHD, the format of Virtual PC, of Hyper-V before 2012 and of Azure (QEMU calls it vpc).
//!
//! A fixed image is the disk with a footer behind it. Others have a table of blocks, each with a bitmap of the sectors
//! that are present; the rest is the parent's, or zeros. The footer is at the end, and a copy of it at the
//! beginning, from which an image is opened whose end is damaged.
//!
//! # Order of writes
//! Within one flush (see [`blocks`](super::blocks)): the data of new blocks, and the footer behind the last one; a
//! barrier; bitmaps and table; a barrier. A new block goes where the footer is, so a cut may leave a file without one
//! at its end; its copy at the beginning is never written but to change the size. A table entry that is durable without
//! the bits of its block says what was there before. When the image is opened for writing, gaps that are as long as a
//! block are filled with the last blocks (copy, barrier, table, barrier), the file is cut off behind the last one, and
//! the footer is written there.
//!
//! To grow: the new table (behind everything), a barrier, the header's first sector that says where it is, a
//! barrier, then the footer at the end and its copy. To shrink: the footers first.

mod check;
mod dynamic;
mod fixed;
mod footer;
mod parent;

use std::rc::Rc;

use super::blocks::BlockImage;
use super::{
    Backing, BackingLink, CreateRequest, Driver, Format, Image, OpenRequest, OptionKind, OptionSpec, Sample,
};
use crate::graph::{IoBuf, IoData, NodeRef};
use crate::{Error, ErrorKind, SECTOR};
use dynamic::Vhd;
use fixed::Fixed;
use footer::{FOOTER, Footer, HEADER, Header, Kind};
pub(super) use parent::from_windows;

/// VHD images.
pub static DRIVER: Driver = Driver {
    format: Format::Vhd,
    probe,
    open: |request| Box::pin(open(request)),
    create: Some(|request| Box::pin(create(request))),
    options: &[
        OptionSpec {
            name: "subformat",
            kind: OptionKind::Choice(&["dynamic", "fixed"]),
            help: "dynamic (space as it is needed) or fixed (all of it now, needed by Azure)",
        },
        OptionSpec {
            name: "force_size",
            kind: OptionKind::Flag,
            help: "on: exactly the size asked for; off: rounded up to a geometry, for Virtual PC (on)",
        },
        OptionSpec {
            name: "block_size",
            kind: OptionKind::Size,
            help: "bytes allocated at once by a dynamic image: a power of 2 from 4k to 256M (2M)",
        },
    ],
};

/// A file is a VHD if it begins with a footer, or ends with one of a fixed image that fits the file. Images that are
/// not fixed and lack the one at the beginning must be called VHD by the user: a guest could have written the other.
fn probe(sample: &Sample<'_>) -> bool {
    // Whatever is wrong with it, it is not the beginning of a raw disk.
    if footer::is_footer(sample.head) {
        return true;
    }
    [FOOTER, FOOTER - 1].into_iter().any(|len| {
        let footer = sample.tail.len().checked_sub(len).and_then(|at| Footer::parse(&sample.tail[at..]));
        let data = sample.len - (len as u64).min(sample.len);
        footer.is_some_and(|f| f.kind == Kind::Fixed && f.disk_size() > 0 && f.disk_size() <= data)
    })
}

/// The footer at the end, and where it is.
async fn last_footer(file: &NodeRef) -> Result<Option<(Footer, u64)>, Error> {
    let len = file.size();
    for size in [FOOTER as u64, FOOTER as u64 - 1] {
        let Some(at) = len.checked_sub(size) else { continue };
        let bytes = file.read(at, IoBuf::new(size as usize)).await?;
        if let Some(footer) = Footer::parse(&bytes) {
            return Ok(Some((footer, at)));
        }
    }
    Ok(None)
}

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    let OpenRequest { file, links, options } = request;
    let name = file.info().name.clone();
    let read_only = options.read_only || file.info().read_only;
    let copy = Footer::parse(&file.read(0, IoBuf::new(FOOTER)).await?);
    let last = last_footer(&file).await?;
    // What is at the beginning of a fixed image is the disk's own.
    let fixed = last.as_ref().filter(|(f, _)| f.kind == Kind::Fixed);
    if let (Some((footer, at)), None) = (fixed, copy.as_ref().filter(|c| c.kind != Kind::Fixed)) {
        let size = footer.disk_size();
        if size > *at {
            let why = format!("its disk would have {size} bytes, and there are {at}");
            return Err(Error::corrupt(&name, why));
        }
        let fixed = Fixed::new(file, footer.clone());
        return Ok(Rc::new(BlockImage::new(fixed, size, read_only, None)));
    }
    let last_is_right = copy.is_some() && last.as_ref().map(|l| &l.0) == copy.as_ref();
    let Some(footer) = copy.or(last.map(|l| l.0)).filter(|f| f.kind != Kind::Fixed) else {
        let why = "neither its end nor its beginning is the footer of a VHD image";
        return Err(Error::new(ErrorKind::Format, format!("cannot open '{name}'"), why));
    };
    let bytes = crate::graph::read_table(&*file, footer.header, HEADER, "its header").await?;
    let header = Header::parse(bytes.first_chunk().expect("a buffer of this length"), &name)?;
    let size = footer.disk_size();
    if size.div_ceil(header.block_size) > header.entries.into() {
        let why =
            format!("{} blocks of {} bytes are not enough for {size}", header.entries, header.block_size);
        return Err(Error::corrupt(&name, why));
    }
    if header.table.checked_add(header.table_len()).is_none_or(|end| end > file.size()) {
        return Err(Error::corrupt(&name, "its table of blocks is beyond the file's end"));
    }
    let (mut link, mut backing) = (None, None);
    if footer.kind == Kind::Differencing {
        let names = parent::names(&file, &header).await?;
        link = Some(BackingLink {
            name: names.first().cloned().unwrap_or_default(),
            format: Some(Format::Vhd),
            identity: Some(parent::identity(header.parent, header.parent_time)),
        });
        if !options.no_backing {
            let (found, image) = parent::open(&name, &names, &header, &*links).await?;
            (link, backing) = (Some(found), Some(image as NodeRef));
        }
    }
    let vhd = Vhd::new(file, footer, header, link);
    vhd.survey_end(read_only, last_is_right).await?;
    Ok(Rc::new(BlockImage::new(vhd, size, read_only, backing)))
}

async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let CreateRequest { output, size, options, backing, .. } = request;
    let doing = || format!("cannot create '{}'", output.name());
    let invalid = |why: &str| Error::new(ErrorKind::Invalid, doing(), why.to_owned());
    let exact = options.flag("force_size").unwrap_or(true);
    let size = match footer::rounded(size) {
        Some(rounded) if !exact && backing.is_none() => rounded,
        _ => size,
    };
    let by_geometry = !exact && footer::rounded(size) == Some(size);
    if size == 0 {
        return Err(invalid("a VHD disk is not empty"));
    }
    if options.text("subformat") == Some("fixed") {
        if backing.is_some() {
            return Err(invalid("a fixed image is not over another one"));
        }
        let footer = Footer::new(Kind::Fixed, size, by_geometry)?;
        let file = output.main().await?;
        file.write(size, IoData::copy_of(&footer.bytes())).await?;
        return Ok(Rc::new(BlockImage::new(Fixed::new(file, footer), size, false, None)));
    }
    let block_size = options.size("block_size")?.unwrap_or(2 << 20);
    if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
        return Err(invalid("block_size is a power of 2 from 4k to 256M"));
    }
    let entries = dynamic::entries_for(output.name(), size, block_size)?;
    let kind = if backing.is_some() { Kind::Differencing } else { Kind::Dynamic };
    let footer = Footer::new(kind, size, by_geometry)?;
    let mut header = Header::new(TABLE_AT, entries, block_size);
    let file = output.main().await?;
    if let Some(Backing { link, .. }) = &backing {
        (header.parent, header.parent_time) = parent::parse_identity(link)
            .ok_or_else(|| invalid("the image below is not a VHD image, and VHD can name no other"))?;
        parent::write_names(&file, &mut header, link).await?;
    }
    dynamic::write_free(&file, TABLE_AT, header.table_len()).await?;
    file.write(FOOTER as u64, IoData::copy_of(&header.bytes())).await?;
    let below = backing.as_ref().map(Backing::below);
    let vhd = Vhd::new(file.clone(), footer.clone(), header, backing.map(|b| b.link));
    vhd.write_last_footer().await?;
    // Last: what has no beginning is no image.
    file.write(0, IoData::copy_of(&footer.bytes())).await?;
    Ok(Rc::new(BlockImage::new(vhd, size, false, below)))
}

/// Where the table of a new image is: behind the footer's copy, the header and the parent's names.
const TABLE_AT: u64 = parent::NAMES.end;

const _: () = assert!(TABLE_AT.is_multiple_of(SECTOR));
