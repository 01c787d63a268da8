//! VDI, the format of VirtualBox: dynamic, static and differencing images.
//!
//! A header, a table with four bytes for each block of the disk, and the blocks in the order in which they were first
//! written. Other programs take the next block's place from the number of blocks in the header, so the blocks in the
//! file must be exactly the first so many, and the number must be right.
//!
//! # Order of writes
//! Within one flush (see [`blocks`](super::blocks)): the data of new blocks and the header with their number; a
//! barrier; the table; a barrier. A cut in between leaves a number that is too large: whoever appends then does
//! not overwrite anything. When the image is opened for writing, the number is set right, blocks of the file that
//! the table does not name are filled with the last ones (copy, barrier, table, barrier), and the file is cut off
//! behind its last block.
//!
//! A larger table than there is room for takes the place of the first blocks, which are copied to the end before.
//! The new table is complete and durable when the header, one sector, is written that says where it is.

mod check;
mod header;
mod parent;
mod resize;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use async_lock::{Mutex, OnceCell};
use serde_json::{Map, json};

use super::blocks::{BlockImage, Changes, Layout, Need, OnDrop, Place, Space};
use super::guid::Guid;
use super::table::TableCache;
use super::{
    Backing, BackingLink, CheckReport, CreateRequest, Description, Driver, Format, Image, OpenRequest,
    OptionKind, OptionSpec, Progress, Repair,
};
use crate::graph::{IoBuf, IoData, NodeRef, lengthen};
use crate::{Error, ErrorKind, SECTOR};
use header::{FREE, Header, Kind, LEN, ZERO};

/// VDI images.
pub static DRIVER: Driver = Driver {
    format: Format::Vdi,
    probe: |sample| header::is_vdi(sample.head),
    open: |request| Box::pin(open(request)),
    create: Some(|request| Box::pin(create(request))),
    options: &[
        OptionSpec { name: "static", kind: OptionKind::Flag, help: "give all blocks their space now" },
        OptionSpec {
            name: "preallocation",
            kind: OptionKind::Choice(&["off", "metadata", "falloc", "full"]),
            help: "off, metadata (as static), falloc (space reserved too), full (written)",
        },
        OptionSpec {
            name: "block_size",
            kind: OptionKind::Size,
            help: "bytes allocated at once, a power of 2 from 4k to 256M (1M; others are for Plinth and VirtualBox)",
        },
    ],
};

/// Bytes of the table that are kept in memory.
const CACHE: usize = 8 << 20;

/// What is special about VDI.
struct Vdi {
    file: NodeRef,
    header: RefCell<Header>,
    /// Held while the header is written.
    writing: Mutex<()>,
    table: RefCell<Rc<TableCache>>,
    /// Blocks in the file, used or being filled.
    taken: Cell<u32>,
    /// Those of them that turned out not to be used.
    unused: RefCell<BTreeSet<u32>>,
    /// Byte of the file behind which nothing was written but blocks that are `taken`: what is not taken there yet is
    /// zeros.
    zeros_from: Cell<u64>,
    /// Held while the file becomes longer.
    growing: Mutex<()>,
    /// What is wrong with the table: nothing is written before it is repaired.
    damage: RefCell<Option<String>>,
    begun: OnceCell<()>,
    backing: RefCell<Option<BackingLink>>,
}

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    let OpenRequest { file, links, options } = request;
    let header = read_header(&file).await?;
    let mut link = None;
    let mut backing = None;
    if header.parent != Guid::NIL {
        let found = parent::find(&file.info().name, &header, &*links).await;
        link = Some(match options.no_backing {
            true => found.unwrap_or_else(|_| parent::link(String::new(), &header)),
            false => {
                let found = found?;
                backing = Some(links.open_backing(&found).await? as NodeRef);
                found
            }
        });
    }
    let size = header.disk_size.next_multiple_of(SECTOR);
    let vdi = Vdi::new(file, header, link);
    let read_only = options.read_only || vdi.file.info().read_only;
    if !read_only {
        vdi.tidy().await?;
    }
    Ok(Rc::new(BlockImage::new(vdi, size, read_only, backing)))
}

async fn read_header(file: &NodeRef) -> Result<Header, Error> {
    let bytes = file.read(0, IoBuf::new(LEN)).await?;
    let raw = bytes.first_chunk().expect("a buffer of this length");
    Header::parse(raw, &file.info().name, file.size())
}

async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let CreateRequest { output, size, options, backing, .. } = request;
    let name = output.name();
    let invalid =
        |why: &str| Error::new(ErrorKind::Invalid, format!("cannot create '{name}'"), why.to_owned());
    let block_size = options.size("block_size")?.unwrap_or(1 << 20);
    if !block_size.is_power_of_two() || !(4096..=256 << 20).contains(&block_size) {
        return Err(invalid("block_size is a power of 2 from 4k to 256M"));
    }
    let preallocation = options.text("preallocation").unwrap_or("off");
    let fixed = options.flag("static").unwrap_or(false) || preallocation != "off";
    let kind = match (&backing, fixed) {
        (Some(_), true) => return Err(invalid("an image over another one is not static")),
        (Some(_), false) => Kind::Differencing,
        (None, true) => Kind::Static,
        (None, false) => Kind::Dynamic,
    };
    let blocks = header::blocks_of(name, size, block_size)?;
    let data = (header::TABLE_AT + u64::from(blocks) * 4).next_multiple_of(header::DATA_ALIGN);
    let mut header = Header::new(kind, size, block_size, blocks, data)?;
    if let Some(backing) = &backing {
        (header.parent, header.parent_modified) = parent::parse_identity(&backing.link)
            .ok_or_else(|| invalid("the image below is not a VDI image, and VDI can name no other"))?;
    }
    if kind == Kind::Static {
        header.allocated = blocks;
    }
    let file = output.main().await?;
    let end = header.end(header.allocated);
    match preallocation {
        "full" => crate::graph::write_zero_bytes(&*file, data, end - data).await?,
        "falloc" => file.write_zeroes(data, end - data, false).await?,
        _ => file.write_zeroes(end - 1, 1, true).await?,
    }
    write_new_table(&file, &header, kind == Kind::Static).await?;
    // Last: what has no header is no image.
    file.write(0, IoData::copy_of(&header.bytes())).await?;
    let below = backing.as_ref().map(Backing::below);
    let vdi = Vdi::new(file, header, backing.map(|b| b.link));
    vdi.zeros_from.set(vdi.file.size());
    Ok(Rc::new(BlockImage::new(vdi, size, false, below)))
}

async fn write_new_table(file: &NodeRef, header: &Header, all: bool) -> Result<(), Error> {
    const AT_ONCE: u32 = 1 << 18;
    let entries = ((header.data - header.table) / 4) as u32;
    for first in (0..entries).step_by(AT_ONCE as usize) {
        let some = first..entries.min(first.saturating_add(AT_ONCE));
        let entry = |n| if all && n < header.blocks { n } else { FREE };
        let bytes: Vec<u8> = some.flat_map(|n| entry(n).to_le_bytes()).collect();
        file.write(header.table + u64::from(first) * 4, IoData::copy_of(&bytes)).await?;
    }
    Ok(())
}

/// Bytes of the table that are loaded at once: no more than belongs to the table.
fn table_block(header: &Header) -> usize {
    if (header.data - header.table).is_multiple_of(4096) { 4096 } else { 512 }
}

impl Vdi {
    fn new(file: NodeRef, header: Header, backing: Option<BackingLink>) -> Self {
        let table = TableCache::new(file.clone(), table_block(&header), CACHE);
        Self {
            file,
            taken: Cell::new(header.allocated),
            header: RefCell::new(header),
            writing: Mutex::new(()),
            table: RefCell::new(Rc::new(table)),
            unused: RefCell::default(),
            zeros_from: Cell::new(u64::MAX),
            growing: Mutex::new(()),
            damage: RefCell::default(),
            begun: OnceCell::new(),
            backing: RefCell::new(backing),
        }
    }

    fn name(&self) -> &str {
        &self.file.info().name
    }

    /// Writes the header as it is now.
    async fn write_header(&self) -> Result<(), Error> {
        let _alone = self.writing.lock().await;
        let bytes = self.header.borrow().bytes();
        self.file.write(0, IoData::copy_of(&bytes)).await
    }

    /// Makes the file reach to `end`, and further. What nobody takes is cut off at the end ([`trim`](Self::trim)), and
    /// what is written there waits for this.
    async fn lengthen(&self, end: u64) -> Result<(), Error> {
        /// Bytes at most.
        const AHEAD: u64 = 32 << 20;
        let _alone = self.growing.lock().await;
        let ahead = {
            let header = self.header.borrow();
            let most = header.end(header.blocks);
            (end / 4).clamp(header.stride(), AHEAD.max(header.stride())).min(most.saturating_sub(end))
        };
        match end > self.file.size() {
            true => lengthen(&*self.file, end, ahead).await,
            false => Ok(()),
        }
    }

    /// Where a block's entry is: the table's block, and the number of the entry in it.
    fn entry_at(&self, block: u64) -> (u64, usize) {
        let size = self.table.borrow().block_size() as u64;
        let at = block * 4;
        (self.header.borrow().table + at / size * size, (at % size / 4) as usize)
    }

    fn decode(&self, block: u64, entry: u32) -> Result<Place, Error> {
        let header = self.header.borrow();
        match entry {
            FREE => Ok(Place::Absent),
            ZERO => Ok(Place::Zero),
            n if n < header.limit() => Ok(Place::Full(header.host(n))),
            n => {
                let why = format!("block {block} is said to be the file's {n}th of {}", header.blocks);
                Err(Error::corrupt(self.name(), why))
            }
        }
    }

    /// Changes entries of the table, durably.
    async fn set_entries(&self, entries: impl Iterator<Item = (u64, u32)>) -> Result<(), Error> {
        let table = self.table.borrow().clone();
        for (block, entry) in entries {
            let (offset, index) = self.entry_at(block);
            table.load(offset, "its table of blocks").await?.set(index, &entry.to_le_bytes());
        }
        table.write_dirty().await?;
        self.file.flush().await
    }
}

impl Layout for Vdi {
    const FORMAT: Format = Format::Vdi;
    const HAS_ZERO: bool = true;

    fn file(&self) -> &NodeRef {
        &self.file
    }

    fn block_size(&self) -> u64 {
        self.header.borrow().block_size
    }

    fn sector(&self) -> Option<u64> {
        None
    }

    fn cached(&self, block: u64) -> Option<Result<Place, Error>> {
        let (offset, index) = self.entry_at(block);
        let entry = self.table.borrow().get(offset)?.le32(index);
        Some(self.decode(block, entry))
    }

    fn alike(&self, block: u64, most: u64) -> u64 {
        let (offset, index) = self.entry_at(block);
        self.table.borrow().get(offset).map_or(0, |t| t.alike::<4>(index, most))
    }

    async fn place(&self, block: u64) -> Result<Place, Error> {
        let (offset, index) = self.entry_at(block);
        let end = {
            let header = self.header.borrow();
            header.table + u64::from(header.blocks) * 4
        };
        let table = self.table.borrow().clone();
        let entry = table.load_ahead(offset, end, "its table of blocks").await?.le32(index);
        self.decode(block, entry)
    }

    async fn present(&self, _block: u64, _place: u64, sectors: Range<u64>) -> Result<Vec<bool>, Error> {
        Ok(vec![true; (sectors.end - sectors.start) as usize])
    }

    async fn allocate(&self, _block: u64, need: Need) -> Result<Space, Error> {
        let again = self.unused.borrow_mut().pop_first();
        let n = match again {
            Some(n) => n,
            None => {
                let n = self.taken.get();
                if n >= self.header.borrow().blocks {
                    return Err(Error::corrupt(
                        self.name(),
                        "it has more blocks in the file than in its table",
                    ));
                }
                self.taken.set(n + 1);
                n
            }
        };
        let (host, start, stride) = {
            let header = self.header.borrow();
            (header.host(n), header.end(n), header.stride())
        };
        let space = Space { place: Place::Full(host), all_present: true };
        let unused = OnDrop(|| self.give_back(space));
        if again.is_none() && start >= self.zeros_from.get() {
            self.lengthen(start + stride).await?;
        } else if again.is_some() || need != Need::Whole {
            // The file's end moves behind the block, and whatever was there becomes zeros.
            self.file.write_zeroes(start, stride, true).await?;
        }
        std::mem::forget(unused);
        Ok(space)
    }

    fn give_back(&self, space: Space) {
        if let Place::Full(host) = space.place {
            let header = self.header.borrow();
            let n = (host - header.extra - header.data) / header.stride();
            self.unused.borrow_mut().insert(n as u32);
        }
    }

    async fn begin(&self) -> Result<(), Error> {
        if let Some(why) = &*self.damage.borrow() {
            let doing = format!("cannot write to '{}'", self.name());
            let why = format!("{why}; it must be repaired first (plinth disk check --repair all)");
            return Err(Error::new(ErrorKind::Corrupt, doing, why));
        }
        // Images above this one see that it is not as it was.
        let begin = async {
            self.header.borrow_mut().modified = Guid::random()?;
            self.write_header().await
        };
        self.begun.get_or_try_init(|| begin).await.copied()
    }

    async fn prepare(&self, _changes: &Changes) -> Result<(), Error> {
        let taken = self.taken.get();
        if self.header.borrow().allocated == taken {
            return Ok(());
        }
        self.header.borrow_mut().allocated = taken;
        self.write_header().await
    }

    async fn apply(&self, changes: &Changes) -> Result<(), Error> {
        let header = self.header.borrow().clone();
        let entries = changes.places.iter().filter_map(|(&block, &place)| match place {
            Place::Full(host) => {
                Some((block, ((host - header.extra - header.data) / header.stride()) as u32))
            }
            Place::Zero => Some((block, ZERO)),
            Place::Absent | Place::Partial(_) => None,
        });
        self.set_entries(entries).await
    }

    async fn close(&self) -> Result<(), Error> {
        if self.damage.borrow().is_some() || self.begun.get().is_none() {
            return Ok(());
        }
        self.fill_holes(u64::MAX).await?;
        self.trim().await
    }

    async fn resize(&self, _old: u64, new: u64) -> Result<(), Error> {
        self.set_disk_size(new).await
    }

    async fn check(&self, size: u64, repair: Repair, progress: &Progress) -> Result<CheckReport, Error> {
        self.check_table(size, repair, progress).await
    }

    fn describe(&self) -> Description {
        let header = self.header.borrow();
        let mut details = Map::new();
        details.insert("image-type".into(), json!(header.kind.name()));
        details.insert("uuid".into(), json!(header.uuid.to_string()));
        details.insert("modification-uuid".into(), json!(header.modified.to_string()));
        if header.parent != Guid::NIL {
            details.insert("parent-uuid".into(), json!(header.parent.to_string()));
            details.insert("parent-modification-uuid".into(), json!(header.parent_modified.to_string()));
        }
        Description {
            dirty: self.damage.borrow().is_some(),
            cluster_size: Some(header.block_size),
            backing: self.backing.borrow().clone(),
            identity: Some(parent::identity(header.uuid, header.modified)),
            details,
            ..Description::default()
        }
    }

    async fn set_backing(&self, link: Option<&BackingLink>) -> Result<(), Error> {
        let (parent, modified) = match link {
            None => (Guid::NIL, Guid::NIL),
            Some(link) => parent::parse_identity(link).ok_or_else(|| {
                let doing = format!("cannot change the backing image of '{}'", self.name());
                let why = "the new one is not a VDI image, and VDI can name no other";
                Error::new(ErrorKind::Invalid, doing, why)
            })?,
        };
        {
            let mut header = self.header.borrow_mut();
            header.kind = match (header.kind, link) {
                (Kind::Static, Some(_)) | (_, Some(_)) => Kind::Differencing,
                (Kind::Differencing | Kind::Undo, None) => Kind::Dynamic,
                (kind, None) => kind,
            };
            (header.parent, header.parent_modified) = (parent, modified);
        }
        self.write_header().await?;
        self.file.flush().await?;
        *self.backing.borrow_mut() = link.cloned();
        Ok(())
    }
}
