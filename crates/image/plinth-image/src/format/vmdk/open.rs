//! Opening.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use async_lock::Mutex;

use super::descriptor::{self, Access, Descriptor, ExtentLine, Kind};
use super::header::{self, Geometry, Hosted};
use super::packed::PackedExtent;
use super::sparse::SparseExtent;
use super::{Data, Piece, Place, VmdkImage};
use crate::format::{BackingLink, Format, Image, Links, OpenRequest, Repair};
use crate::graph::{Io, IoBuf, Node, NodeInfo, NodeRef, read_table};
use crate::{Error, ErrorKind, SECTOR};

/// Opens a disk by its descriptor, or by its only extent.
pub fn open(request: OpenRequest) -> Io<'static, Rc<dyn Image>> {
    Box::pin(async move {
        let OpenRequest { file, links, options } = request;
        let read_only = options.read_only || file.info().read_only;
        let name = file.info().name.clone();
        let mut image = open_main(&name, file, &*links, read_only).await?;
        let link = image.link.borrow().clone();
        if !options.no_backing
            && let Some(link) = link
        {
            image.backing = Some(open_parent(&name, &*links, &link).await?);
        }
        image.frozen = image.pieces.iter().find_map(|p| p.data.sparse()?.frozen.borrow().clone());
        image.info.read_only = read_only || image.frozen.is_some();
        image.recover().await?;
        Ok(Rc::new(image) as Rc<dyn Image>)
    })
}

async fn open_parent(name: &str, links: &dyn Links, link: &BackingLink) -> Result<Rc<dyn Image>, Error> {
    let parent = links.open_backing(link).await?;
    let found = parent.describe().identity;
    if found != link.identity {
        let why = format!(
            "its parent '{}' was changed since: its content ID is {}, and was {}",
            link.name,
            found.as_deref().unwrap_or("none"),
            link.identity.as_deref().unwrap_or("none")
        );
        let advice = "what this disk shows over it would be wrong; open the parent that it was made over";
        return Err(Error::corrupt(name, format!("{why}; {advice}")));
    }
    Ok(parent)
}

async fn open_main(
    name: &str,
    file: NodeRef,
    links: &dyn Links,
    read_only: bool,
) -> Result<VmdkImage, Error> {
    let head = file.read(0, IoBuf::new(file.size().min(2048) as usize)).await?;
    if head.starts_with(b"KDMV") {
        return open_hosted(name, file, links, read_only, &head).await;
    }
    if !descriptor::probe(&head) {
        let (kind, data) = open_esx(file, &head).await?;
        let len = data.sparse().map_or(0, |s| s.geometry.borrow().capacity);
        let create_type = if kind == Kind::SeSparse { "seSparse" } else { "vmfsSparse" };
        let piece = Piece { start: 0, len: Cell::new(len), access: Access::ReadWrite, kind, data };
        return Ok(image(name, create_type.to_owned(), vec![piece], None));
    }
    if file.size() > descriptor::MAX_LEN {
        let why =
            format!("its description has {} bytes, and {} are the most", file.size(), descriptor::MAX_LEN);
        return Err(Error::new(ErrorKind::Limit, format!("cannot open '{name}'"), why));
    }
    let bytes = file.read(0, IoBuf::new(file.size() as usize)).await?;
    let text = Descriptor::new(name, &bytes)?;
    let place = Place {
        file,
        offset: 0,
        room: descriptor::MAX_LEN,
        text: RefCell::new(text),
        fresh: Cell::new(false),
    };
    open_described(name, place, links, read_only).await
}

/// A file that begins with the header of a hosted sparse extent.
async fn open_hosted(
    name: &str,
    file: NodeRef,
    links: &dyn Links,
    read_only: bool,
    head: &[u8],
) -> Result<VmdkImage, Error> {
    let header = Hosted::parse(name, head)?;
    let place = if header.descriptor == 0 || header.descriptor_len == 0 {
        None
    } else {
        let bytes = |n: u64| n.checked_mul(SECTOR).filter(|&b| b <= i64::MAX as u64);
        let room = bytes(header.descriptor_len).filter(|&r| r <= descriptor::MAX_LEN);
        let (Some(offset), Some(room)) = (bytes(header.descriptor), room) else {
            let why = format!("its description of {} sectors cannot be", header.descriptor_len);
            return Err(Error::corrupt(name, why));
        };
        let bytes = read_table(&*file, offset, room as usize, "its description").await?;
        let text = RefCell::new(Descriptor::new(name, &bytes)?);
        Some(Place { file: file.clone(), offset, room, text, fresh: Cell::new(false) })
    };
    if header.capacity == 0
        && let Some(place) = place
    {
        return open_described(name, place, links, read_only).await;
    }
    let data = hosted_data(file, header).await?;
    let len = data.sparse().map_or(0, |s| s.geometry.borrow().capacity);
    let packed = matches!(data, Data::Packed(_));
    let create_type = if packed { "streamOptimized" } else { "monolithicSparse" };
    let piece = Piece { start: 0, len: Cell::new(len), access: Access::ReadWrite, kind: Kind::Sparse, data };
    let image = image(name, create_type.to_owned(), vec![piece], place);
    find_parent(name, &image)?;
    Ok(image)
}

/// A disk of the extents that a descriptor names.
async fn open_described(
    name: &str,
    place: Place,
    links: &dyn Links,
    read_only: bool,
) -> Result<VmdkImage, Error> {
    let (lines, create_type) = {
        let text = place.text.borrow();
        (text.extents(name)?, text.get("createType").unwrap_or("custom").to_owned())
    };
    if lines.is_empty() {
        return Err(Error::corrupt(name, "its description names no extents"));
    }
    let mut pieces = Vec::with_capacity(lines.len());
    let mut start = 0;
    for line in &lines {
        let data = open_extent(name, line, links, read_only).await?;
        let len = line.sectors * SECTOR;
        if let Some(capacity) = data.sparse().map(|s| s.geometry.borrow().capacity)
            && capacity < len
        {
            let why = format!("its extent '{}' has {capacity} bytes, and {len} are said", line.file);
            return Err(Error::corrupt(name, why));
        }
        pieces.push(Piece { start, len: Cell::new(len), access: line.access, kind: line.kind, data });
        start += len;
    }
    let image = image(name, create_type, pieces, Some(place));
    find_parent(name, &image)?;
    Ok(image)
}

/// A disk of these pieces.
pub fn image(name: &str, create_type: String, pieces: Vec<Piece>, descriptor: Option<Place>) -> VmdkImage {
    let grain = pieces.iter().filter_map(|p| Some(p.data.sparse()?.grain())).max();
    let size = pieces.last().map_or(0, |p| p.start + p.len.get());
    let block = u32::try_from(grain.unwrap_or(4096)).unwrap_or(1 << 20);
    VmdkImage {
        info: NodeInfo { name: name.to_owned(), read_only: false, block },
        create_type,
        size: Cell::new(size),
        pieces,
        descriptor,
        backing: None,
        link: RefCell::default(),
        changed: Mutex::new(false),
        frozen: None,
    }
}

/// Notes the parent that a descriptor names.
pub fn find_parent(name: &str, image: &VmdkImage) -> Result<(), Error> {
    let Some(place) = &image.descriptor else { return Ok(()) };
    let text = place.text.borrow();
    text.cid(name)?;
    let Some(cid) = text.parent_cid(name)? else { return Ok(()) };
    let hint = text.get("parentFileNameHint").filter(|h| !h.is_empty());
    let hint = hint.ok_or_else(|| Error::corrupt(name, "it has a parent, but does not name it"))?;
    *image.link.borrow_mut() = Some(BackingLink {
        name: hint.to_owned(),
        format: Some(Format::Vmdk),
        identity: Some(format!("{cid:08x}")),
    });
    Ok(())
}

async fn open_extent(
    name: &str,
    line: &ExtentLine,
    links: &dyn Links,
    read_only: bool,
) -> Result<Data, Error> {
    if line.kind == Kind::Zero || line.access == Access::None {
        return Ok(Data::Zero);
    }
    let file = links.open_file(&line.file, read_only || line.access == Access::ReadOnly).await?;
    match line.kind {
        Kind::Flat | Kind::Vmfs => Ok(Data::Flat { file, offset: line.offset * SECTOR }),
        _ => {
            let head = file.read(0, IoBuf::new(file.size().min(2048) as usize)).await?;
            if head.starts_with(b"KDMV") {
                let header = Hosted::parse(&file.info().name, &head)?;
                if header.capacity == 0 {
                    let why = format!("its extent '{}' is a description again", line.file);
                    return Err(Error::corrupt(name, why));
                }
                return hosted_data(file, header).await;
            }
            Ok(open_esx(file, &head).await?.1)
        }
    }
}

/// An extent with grains, by its header.
pub async fn hosted_data(file: NodeRef, header: Hosted) -> Result<Data, Error> {
    let name = file.info().name.clone();
    if header.compression == 0 {
        let geometry = Geometry::hosted(&name, &header)?;
        return Ok(Data::Sparse(Box::new(SparseExtent::open(file, geometry, Some(header)).await?)));
    }
    let header = if header.directory == header::AT_END { footer(&*file).await? } else { header };
    let geometry = Geometry::hosted(&name, &header)?;
    let markers = header.flags & header::MARKERS != 0;
    let tables = SparseExtent::open(file, geometry, Some(header)).await?;
    Ok(Data::Packed(Box::new(PackedExtent::new(tables, markers))))
}

/// The footer of a stream: before the last sector, which marks the end, and behind its own marker.
async fn footer(file: &dyn Node) -> Result<Hosted, Error> {
    let name = &file.info().name;
    let missing = |why: &str| Error::corrupt(name, format!("{why}: the file was not written to its end"));
    let len = file.size() / SECTOR * SECTOR;
    let at = len.checked_sub(3 * SECTOR).ok_or_else(|| missing("there is no footer"))?;
    let end = read_table(file, at, 3 * SECTOR as usize, "the footer").await?;
    let word = |at: usize| end[at..at + 4].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    let empty = end[1024..1036].iter().all(|&b| b == 0);
    if word(8) != 0 || word(12) != super::packed::FOOTER || !empty || word(1036) != 0 {
        return Err(missing("there is no footer"));
    }
    let header = Hosted::parse(name, &end[512..1024])?;
    if header.directory == header::AT_END || header.compression != 1 {
        return Err(missing("the footer does not say where the grain directory is"));
    }
    Ok(header)
}

/// An extent of ESXi's kinds.
async fn open_esx(file: NodeRef, head: &[u8]) -> Result<(Kind, Data), Error> {
    let name = file.info().name.clone();
    let (kind, geometry) = if head.starts_with(b"COWD") {
        (Kind::VmfsSparse, Geometry::cowd(&name, head)?)
    } else if head.starts_with(&0xcafe_babe_u64.to_le_bytes()) {
        let (geometry, volatile) = Geometry::sesparse(&name, head)?;
        let sector = read_table(&*file, volatile, SECTOR as usize, "the volatile header").await?;
        Geometry::sesparse_journal(&name, &sector)?;
        (Kind::SeSparse, geometry)
    } else {
        let why = "it begins with no mark of a VMDK extent or description";
        return Err(Error::new(ErrorKind::Format, format!("cannot open '{name}' as vmdk"), why));
    };
    Ok((kind, Data::Sparse(Box::new(SparseExtent::open(file, geometry, None).await?))))
}

impl VmdkImage {
    /// Mends what a crash left, if the image is open for writing.
    async fn recover(&self) -> Result<(), Error> {
        if self.info.read_only {
            return Ok(());
        }
        for piece in &self.pieces {
            if let Data::Sparse(e) = &piece.data
                && e.geometry.borrow().unclean
            {
                let report = super::check::check_extent(e, Repair::Leaks, true).await?;
                if report.corruptions == report.corruptions_fixed && report.errors == 0 {
                    e.write_mark(false).await?;
                    e.geometry.borrow_mut().unclean = false;
                }
            }
        }
        Ok(())
    }
}
