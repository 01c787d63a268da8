//! Creating. Nothing of it needs an order: a new image has no name until it is complete and durable.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::descriptor::{self, Access, Descriptor, ExtentLine, Kind, Parts};
use super::header::{self, Geometry, Hosted};
use super::open::{find_parent, hosted_data, image};
use super::packed::PackedExtent;
use super::resize::SPLIT;
use super::sparse::{MAX_DIRECTORY, SparseExtent};
use super::{Data, Piece, Place};
use crate::format::{Backing, CreateRequest, Format, Image, OptionKind, OptionSpec, Options, Output};
use crate::graph::{Io, IoBuf, IoData, NodeRef};
use crate::{Error, ErrorKind, SECTOR};

/// Options of `create`, which are QEMU's.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "subformat",
        kind: OptionKind::Choice(&[
            "monolithicSparse",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
            "streamOptimized",
        ]),
        help: "one file or several, with all bytes or with grains, or a compressed stream (monolithicSparse)",
    },
    OptionSpec {
        name: "adapter_type",
        kind: OptionKind::Choice(&["ide", "buslogic", "lsilogic", "legacyESX"]),
        help: "the disk's controller (ide)",
    },
    OptionSpec {
        name: "hwversion",
        kind: OptionKind::Text,
        help: "version of VMware's virtual hardware (4)",
    },
    OptionSpec { name: "compat6", kind: OptionKind::Flag, help: "the same as hwversion=6" },
    OptionSpec { name: "toolsversion", kind: OptionKind::Text, help: "version of VMware's guest tools" },
    OptionSpec {
        name: "zeroed_grain",
        kind: OptionKind::Flag,
        help: "grains of zeros are noted, not stored; some programs cannot read that",
    },
];

/// Sectors of an embedded description.
const DESCRIPTION: u64 = 20;

/// Refuses what cannot be within quotes, or would end a line.
pub fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("the name is empty".to_owned()),
        n if n.len() > 1023 => Err(format!("a name of {} bytes is too long", n.len())),
        n if n.contains(|c: char| c == '"' || c.is_control()) => {
            Err("quotes and control characters cannot be in it".to_owned())
        }
        _ => Ok(()),
    }
}

/// What the options say.
struct Wanted<'a> {
    subformat: &'a str,
    adapter: &'a str,
    hardware: &'a str,
    tools: &'a str,
    zero_grains: bool,
    parent: Option<(u32, &'a str)>,
}

impl<'a> Wanted<'a> {
    fn new(request: &'a CreateRequest<'_>) -> Result<Self, Error> {
        let options: &Options = request.options;
        let bad = |why: &str| {
            Error::new(ErrorKind::Invalid, format!("cannot create '{}'", request.output.name()), why)
        };
        if request.size == 0 {
            return Err(bad("a disk has at least one sector"));
        }
        let subformat = options.text("subformat").unwrap_or("monolithicSparse");
        let compat6 = options.flag("compat6").unwrap_or(false);
        if compat6 && options.text("hwversion").is_some() {
            return Err(bad("compat6 is the same as hwversion=6: give only one of them"));
        }
        let hardware = options.text("hwversion").unwrap_or(if compat6 { "6" } else { "4" });
        let tools = options.text("toolsversion").unwrap_or("2147483647");
        for text in [hardware, tools] {
            check_name(text).map_err(|why| bad(&why))?;
        }
        check_name(request.output.name()).map_err(|why| bad(&why))?;
        let zero_grains = options.flag("zeroed_grain").unwrap_or(false);
        let flat = subformat.ends_with("Flat");
        if flat && zero_grains {
            return Err(bad("a flat disk has no grains, so zeroed_grain means nothing"));
        }
        let mut parent = None;
        if let Some(Backing { link, .. }) = &request.backing {
            if flat || subformat == "streamOptimized" {
                return Err(bad("a disk of this subformat cannot have a parent"));
            }
            if link.format.is_some_and(|f| f != Format::Vmdk) {
                return Err(bad("the parent of a vmdk disk must be one itself"));
            }
            check_name(&link.name).map_err(|why| bad(&why))?;
            let cid = link.identity.as_deref().and_then(|i| u32::from_str_radix(i, 16).ok());
            parent = Some((cid.ok_or_else(|| bad("the parent's content ID is not known"))?, &*link.name));
        }
        let adapter = options.text("adapter_type").unwrap_or("ide");
        Ok(Self { subformat, adapter, hardware, tools, zero_grains, parent })
    }

    fn descriptor(&self, size: u64, extents: &[ExtentLine]) -> Result<Descriptor, Error> {
        // The two highest are for "no parent" and for disks that were never written.
        let cid = super::random()? >> 1;
        Ok(Descriptor::from_text(descriptor::write(&Parts {
            cid,
            parent: self.parent,
            create_type: self.subformat,
            extents,
            hardware: self.hardware,
            adapter: self.adapter,
            tools: self.tools,
            size,
        })))
    }

    /// The header of an extent of `size` bytes.
    fn header(&self, size: u64, described: bool) -> Hosted {
        let stream = self.subformat == "streamOptimized";
        let tables = size.div_ceil(header::GRAIN_SECTORS * SECTOR * u64::from(header::ENTRIES));
        let directory = (tables * 4).div_ceil(SECTOR);
        let set = directory + tables * (u64::from(header::ENTRIES) * 4 / SECTOR);
        let start = 1 + if described { DESCRIPTION } else { 0 };
        let mut flags = header::NEWLINES;
        flags |= if stream { header::COMPRESSED | header::MARKERS } else { header::REDUNDANT };
        flags |= if self.zero_grains { header::ZERO_GRAINS } else { 0 };
        let end = if stream { start } else { start + 2 * set };
        Hosted {
            version: match self.zero_grains {
                _ if stream => 3,
                true => 2,
                false => 1,
            },
            flags,
            capacity: size / SECTOR,
            grain: header::GRAIN_SECTORS,
            descriptor: u64::from(described),
            descriptor_len: if described { DESCRIPTION } else { 0 },
            entries: header::ENTRIES,
            redundant: if stream { 0 } else { start },
            directory: if stream { header::AT_END } else { start + set },
            overhead: end.next_multiple_of(header::GRAIN_SECTORS),
            unclean: false,
            compression: stream.into(),
        }
    }
}

/// Creates a disk.
pub fn create<'a>(request: CreateRequest<'a>) -> Io<'a, Rc<dyn Image>> {
    Box::pin(async move {
        let wanted = Wanted::new(&request)?;
        let below = request.backing.as_ref().map(Backing::below);
        let (output, size) = (request.output, request.size);
        let flat = wanted.subformat.ends_with("Flat");
        let mut image =
            if wanted.subformat.starts_with("monolithicSparse") || wanted.subformat == "streamOptimized" {
                one_file(output, size, &wanted).await?
            } else {
                let piece = if wanted.subformat.starts_with("twoGb") { SPLIT } else { size };
                several_files(output, size, piece, flat, &wanted).await?
            };
        find_parent(output.name(), &image)?;
        image.backing = below;
        // A new disk has a new content ID already.
        *image.changed.get_mut() = true;
        Ok(Rc::new(image) as Rc<dyn Image>)
    })
}

async fn one_file(output: &dyn Output, size: u64, wanted: &Wanted<'_>) -> Result<super::VmdkImage, Error> {
    let file = output.main().await?;
    let line = ExtentLine {
        access: Access::ReadWrite,
        sectors: size / SECTOR,
        kind: Kind::Sparse,
        file: output.name().to_owned(),
        offset: 0,
    };
    let text = wanted.descriptor(size, &[line])?;
    let header = wanted.header(size, true);
    let name = file.info().name.clone();
    let data = if header.compression != 0 {
        let mut start = IoBuf::zeroed((header.overhead * SECTOR) as usize);
        start[..SECTOR as usize].copy_from_slice(&header.encode());
        let bytes = text.to_bytes();
        start[SECTOR as usize..][..bytes.len()].copy_from_slice(&bytes);
        file.write(0, start.freeze()).await?;
        // Its place is not known before the end.
        let known = Hosted { directory: 0, ..header.clone() };
        let geometry = Geometry::hosted(&name, &known)?;
        let tables = geometry.capacity.div_ceil(geometry.span());
        super::super::table::table_len(&name, "grain directory", tables, 4, MAX_DIRECTORY)?;
        let written = header.overhead * SECTOR;
        let tables = SparseExtent::with(file.clone(), geometry, Some(header), vec![0; tables as usize]);
        Data::Packed(Box::new(PackedExtent::writer(tables, written)))
    } else {
        let data = sparse_extent(file.clone(), header).await?;
        file.write(SECTOR, IoData::copy_of(&text.to_bytes())).await?;
        data
    };
    let room = DESCRIPTION * SECTOR;
    let place = Place { file, offset: SECTOR, room, text: RefCell::new(text), fresh: Cell::new(true) };
    let piece = Piece { start: 0, len: Cell::new(size), access: Access::ReadWrite, kind: Kind::Sparse, data };
    Ok(image(&name, wanted.subformat.to_owned(), vec![piece], Some(place)))
}

/// Writes an extent's header and directories; its tables are zeros.
async fn sparse_extent(file: NodeRef, header: Hosted) -> Result<Data, Error> {
    let name = file.info().name.clone();
    let tables = (header.capacity).div_ceil(header.grain * u64::from(header.entries));
    super::super::table::table_len(&name, "grain directory", tables, 4, MAX_DIRECTORY)?;
    let sectors = (tables * 4).div_ceil(SECTOR);
    let end = header.overhead * SECTOR;
    file.write_zeroes(0, end, true).await?;
    for start in [header.redundant, header.directory] {
        let mut directory = IoBuf::zeroed((sectors * SECTOR) as usize);
        for (n, word) in directory.chunks_mut(4).take(tables as usize).enumerate() {
            let at = start + sectors + n as u64 * (u64::from(header.entries) * 4 / SECTOR);
            let at = u32::try_from(at).map_err(|_| {
                let why = "its tables alone would have more than 2 TiB";
                Error::new(ErrorKind::Limit, format!("cannot create '{name}'"), why)
            })?;
            word.copy_from_slice(&at.to_le_bytes());
        }
        file.write(start * SECTOR, directory.freeze()).await?;
    }
    file.write(0, IoData::copy_of(&header.encode())).await?;
    hosted_data(file, header).await
}

async fn several_files(
    output: &dyn Output,
    size: u64,
    piece_size: u64,
    flat: bool,
    wanted: &Wanted<'_>,
) -> Result<super::VmdkImage, Error> {
    let (stem, extension) = match output.name().rsplit_once('.') {
        Some((stem, extension)) => (stem, format!(".{extension}")),
        None => (output.name(), String::new()),
    };
    let main = output.main().await?;
    let (mut pieces, mut lines) = (Vec::new(), Vec::new());
    let mut start = 0;
    while start < size {
        let len = piece_size.min(size - start);
        let number = pieces.len() + 1;
        let file_name = match (piece_size == size && wanted.subformat == "monolithicFlat", flat) {
            (true, _) => format!("{stem}-flat{extension}"),
            (_, true) => format!("{stem}-f{number:03}{extension}"),
            (_, false) => format!("{stem}-s{number:03}{extension}"),
        };
        let file = output.sibling(&file_name).await?;
        let kind = if flat { Kind::Flat } else { Kind::Sparse };
        let data = if flat {
            file.write_zeroes(0, len, true).await?;
            Data::Flat { file, offset: 0 }
        } else {
            sparse_extent(file, wanted.header(len, false)).await?
        };
        lines.push(ExtentLine {
            access: Access::ReadWrite,
            sectors: len / SECTOR,
            kind,
            file: file_name,
            offset: 0,
        });
        pieces.push(Piece { start, len: Cell::new(len), access: Access::ReadWrite, kind, data });
        start += len;
    }
    let text = wanted.descriptor(size, &lines)?;
    let bytes = text.to_bytes();
    if bytes.len() as u64 > descriptor::MAX_LEN || lines.len() > descriptor::MAX_EXTENTS {
        let why =
            format!("it would have {} files, and {} are the most", lines.len(), descriptor::MAX_EXTENTS);
        return Err(Error::new(ErrorKind::Limit, format!("cannot create '{}'", output.name()), why));
    }
    main.write(0, IoData::copy_of(&bytes)).await?;
    let name = main.info().name.clone();
    let place = Place {
        file: main,
        offset: 0,
        room: descriptor::MAX_LEN,
        text: RefCell::new(text),
        fresh: Cell::new(true),
    };
    Ok(image(&name, wanted.subformat.to_owned(), pieces, Some(place)))
}
