//! The block table of a VHDX, its bitmaps, and how both are changed through the log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use async_lock::{Mutex, OnceCell};
use serde_json::{Map, json};

use super::header::{Header, MIB, Regions, SECTOR};
use super::log::{MAX_SECTORS, Writer};
use super::metadata::{Metadata, locator_of};
use crate::format::blocks::{Changes, Layout, Need, OnDrop, Place, Space};
use crate::format::guid::Guid;
use crate::format::table::{Block, TableCache};
use crate::format::{BackingLink, CheckReport, Description, Format, Progress, Repair};
use crate::graph::{IoData, NodeRef};
use crate::{Error, ErrorKind};

/// States of a block in the table (MS-VHDX, section 2.5.1.1).
pub const ZERO: u64 = 2;
pub const FULL: u64 = 6;
pub const PARTIAL: u64 = 7;
/// Bits of an entry that are the state.
pub const STATE: u64 = 7;
/// Bytes of tables and bitmaps that are kept in memory.
const CACHE: usize = 8 << 20;
const S: u64 = SECTOR as u64;

/// Sectors of metadata that were changed in memory, by where they belong.
pub type Touched = BTreeMap<u64, Rc<Block>>;

/// What is special about VHDX.
pub struct Vhdx {
    pub(super) file: NodeRef,
    pub(super) header: RefCell<Header>,
    /// Held while a header is written.
    heading: Mutex<()>,
    pub(super) regions: RefCell<Regions>,
    pub(super) metadata: RefCell<Metadata>,
    pub(super) tables: TableCache,
    log: Mutex<Option<Writer>>,
    /// Where the last thing in the file ends.
    pub(super) end: Cell<u64>,
    /// Space for blocks that turned out not to be used.
    pub(super) unused: RefCell<BTreeSet<u64>>,
    /// Blocks of bitmaps that are not in the table yet, by chunk.
    bitmaps: RefCell<BTreeMap<u64, u64>>,
    /// What is wrong with the table: nothing is written before it is repaired.
    pub(super) damage: RefCell<Option<String>>,
    begun: OnceCell<()>,
    pub(super) backing: RefCell<Option<BackingLink>>,
    /// The image was closed in good order before it was opened.
    pub(super) clean: bool,
    /// Nothing is written through this.
    pub(super) read_only: Cell<bool>,
    /// Gaps between blocks that were there already.
    pub(super) gaps_at_open: Cell<usize>,
    /// Bytes that the file has at least when changes of tables are logged: the end of what they refer to, which a
    /// flush has made durable. What others are just adding makes the file longer, but is not.
    durable: Cell<u64>,
}

impl Vhdx {
    pub fn new(file: NodeRef, header: Header, regions: Regions, metadata: Metadata, clean: bool) -> Self {
        let end =
            (header.log_at + u64::from(header.log_len)).max(regions.bat.end()).max(regions.metadata.end());
        Self {
            tables: TableCache::new(file.clone(), SECTOR, CACHE),
            durable: Cell::new(file.size()),
            file,
            header: RefCell::new(header),
            heading: Mutex::new(()),
            regions: RefCell::new(regions),
            metadata: RefCell::new(metadata),
            log: Mutex::new(None),
            end: Cell::new(end),
            unused: RefCell::default(),
            bitmaps: RefCell::default(),
            damage: RefCell::default(),
            begun: OnceCell::new(),
            backing: RefCell::default(),
            clean,
            read_only: Cell::new(false),
            gaps_at_open: Cell::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.file.info().name
    }

    /// Blocks of the disk that one block of bitmaps is for.
    pub(super) fn ratio(&self) -> u64 {
        let m = self.metadata.borrow();
        (m.logical << 23) / m.block_size
    }

    /// Where in the table a block's entry is.
    pub(super) fn index(&self, block: u64) -> u64 {
        block + block / self.ratio()
    }

    /// Where in the table the entry of a chunk's block of bitmaps is.
    pub(super) fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk * (self.ratio() + 1) + self.ratio()
    }

    /// Entries that the table has for a disk of `size` bytes.
    pub(super) fn entries(&self, size: u64) -> u64 {
        let (block_size, has_parent) = {
            let m = self.metadata.borrow();
            (m.block_size, m.has_parent)
        };
        let blocks = size.div_ceil(block_size);
        if has_parent {
            blocks.div_ceil(self.ratio()) * (self.ratio() + 1)
        } else {
            blocks + (blocks.max(1) - 1) / self.ratio()
        }
    }

    /// The sector of the table with an entry, and the entry's number in it.
    fn entry_at(&self, index: u64) -> (u64, usize) {
        (self.regions.borrow().bat.at + index * 8 / S * S, (index * 8 % S / 8) as usize)
    }

    async fn entry(&self, index: u64) -> Result<u64, Error> {
        let (offset, index) = self.entry_at(index);
        let end = self.regions.borrow().bat.end();
        Ok(self.tables.load_ahead(offset, end, "its table of blocks").await?.le64(index))
    }

    /// Byte of the file that an entry has, if there can be something.
    fn host(&self, entry: u64, what: &str, n: u64) -> Result<u64, Error> {
        let at = (entry >> 20) * MIB;
        if at < MIB || at >= self.file.size() {
            let why =
                format!("{what} {n} is said to be at byte {at} of a file of {} bytes", self.file.size());
            return Err(Error::corrupt(self.name(), why));
        }
        Ok(at)
    }

    fn decode(&self, block: u64, entry: u64) -> Result<Place, Error> {
        match entry & STATE {
            0 => Ok(Place::Absent),
            // Nothing is promised of what was there; it must not be the parent's.
            1..=3 => Ok(Place::Zero),
            FULL => Ok(Place::Full(self.host(entry, "block", block)?)),
            PARTIAL if self.metadata.borrow().has_parent => {
                Ok(Place::Partial(self.host(entry, "block", block)?))
            }
            state => Err(Error::corrupt(self.name(), format!("block {block} has the state {state}"))),
        }
    }

    /// Where a chunk's block of bitmaps is, if there is one.
    async fn bitmap(&self, chunk: u64) -> Result<Option<u64>, Error> {
        if let Some(&at) = self.bitmaps.borrow().get(&chunk) {
            return Ok(Some(at));
        }
        let entry = self.entry(self.bitmap_index(chunk)).await?;
        if entry & STATE == FULL {
            self.host(entry, "the bitmap of chunk", chunk).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Space at the end of the file, which reads as zeros.
    async fn take(&self, len: u64) -> Result<u64, Error> {
        let at = self.end.get().next_multiple_of(MIB);
        self.end.set(at + len);
        self.file.write_zeroes(at, len, true).await?;
        Ok(at)
    }

    /// Writes the next header with these changes, durably.
    async fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<(), Error> {
        let _alone = self.heading.lock().await;
        let mut next = self.header.borrow().clone();
        change(&mut next);
        let written = next.write_next(&self.file).await?;
        *self.header.borrow_mut() = written;
        Ok(())
    }

    /// Changes bytes of metadata in memory.
    pub(super) async fn patch(&self, touched: &mut Touched, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < bytes.len() {
            let from = (at + done as u64) % S;
            let n = (bytes.len() - done).min((S - from) as usize);
            let sector = at + done as u64 - from;
            let block = self.tables.load(sector, "its metadata").await?;
            block.change(|b| b[from as usize..from as usize + n].copy_from_slice(&bytes[done..done + n]));
            touched.insert(sector, block);
            done += n;
        }
        Ok(())
    }

    pub(super) async fn set_entry(&self, touched: &mut Touched, index: u64, entry: u64) -> Result<(), Error> {
        let (offset, n) = self.entry_at(index);
        let block = self.tables.load(offset, "its table of blocks").await?;
        block.set(n, &entry.to_le_bytes());
        touched.insert(offset, block);
        Ok(())
    }

    /// Writes what was changed, first to the log. What it depends on, and what was logged before, is durable in its
    /// place; after this, the changes are.
    pub(super) async fn write_logged(&self, touched: Touched) -> Result<(), Error> {
        let mut log = self.log.lock().await;
        let all: Vec<_> = touched.into_values().collect();
        for (round, some) in all.chunks(MAX_SECTORS).enumerate() {
            if round > 0 {
                self.file.flush().await?;
            }
            let begins = log.is_none();
            let mut writer = match *log {
                Some(writer) => writer,
                None => Writer::new()?,
            };
            let sectors: Vec<_> = some.iter().map(|b| (b.offset(), b.with(IoData::copy_of))).collect();
            let header = self.header.borrow().clone();
            let len = self.file.size();
            writer.write(&self.file, &header, &sectors, self.durable.get().min(len), len).await?;
            self.file.flush().await?;
            if begins {
                // Only now is there something in the log.
                self.update_header(|h| h.log = writer.guid).await?;
            }
            *log = Some(writer);
            let offsets: BTreeSet<u64> = some.iter().map(|b| b.offset()).collect();
            self.tables.write_some(|b| offsets.contains(&b.offset())).await?;
        }
        Ok(())
    }

    /// Sets bits of sectors, in memory.
    async fn set_bits(&self, touched: &mut Touched, block: u64, range: Range<u64>) -> Result<(), Error> {
        let (chunk, base) = self.bits_of(block);
        let Some(bitmap) = self.bitmap(chunk).await? else {
            return Err(Error::corrupt(self.name(), format!("there is no bitmap for block {block}")));
        };
        let mut at = base + range.start;
        let end = base + range.end;
        while at < end {
            let per = S * 8;
            let to = (at / per * per + per).min(end);
            let sector = self.tables.load(bitmap + at / per * S, "a bitmap").await?;
            sector.change(|b| {
                (at % per..at % per + (to - at)).for_each(|n| b[(n / 8) as usize] |= 1 << (n % 8))
            });
            touched.insert(sector.offset(), sector);
            at = to;
        }
        Ok(())
    }

    /// A block's chunk, and the number of its first bit in the chunk's bitmaps.
    fn bits_of(&self, block: u64) -> (u64, u64) {
        let m = self.metadata.borrow();
        let ratio = (m.logical << 23) / m.block_size;
        (block / ratio, block % ratio * (m.block_size / m.logical))
    }

    /// What the log had is in its place: the log is empty.
    pub(super) async fn empty_log(&self) -> Result<(), Error> {
        self.file.flush().await?;
        let mut log = self.log.lock().await;
        if self.header.borrow().log != Guid::NIL {
            self.update_header(|h| h.log = Guid::NIL).await?;
        }
        *log = None;
        Ok(())
    }
}

impl Layout for Vhdx {
    const FORMAT: Format = Format::Vhdx;
    const HAS_ZERO: bool = true;

    fn file(&self) -> &NodeRef {
        &self.file
    }

    fn block_size(&self) -> u64 {
        self.metadata.borrow().block_size
    }

    fn sector(&self) -> Option<u64> {
        let m = self.metadata.borrow();
        m.has_parent.then_some(m.logical)
    }

    fn cached(&self, block: u64) -> Option<Result<Place, Error>> {
        let (offset, index) = self.entry_at(self.index(block));
        let entry = self.tables.get(offset)?.le64(index);
        Some(self.decode(block, entry))
    }

    fn alike(&self, block: u64, most: u64) -> u64 {
        // The next entry that stands for no block is a bitmap's.
        let most = most.min(self.ratio() - block % self.ratio());
        let (offset, index) = self.entry_at(self.index(block));
        self.tables.get(offset).map_or(0, |t| t.alike::<8>(index, most))
    }

    async fn place(&self, block: u64) -> Result<Place, Error> {
        self.decode(block, self.entry(self.index(block)).await?)
    }

    async fn present(&self, block: u64, _place: u64, sectors: Range<u64>) -> Result<Vec<bool>, Error> {
        let (chunk, base) = self.bits_of(block);
        let Some(bitmap) = self.bitmap(chunk).await? else {
            return Ok(vec![false; (sectors.end - sectors.start) as usize]);
        };
        let mut marks = Vec::with_capacity((sectors.end - sectors.start) as usize);
        let (mut at, end) = (base + sectors.start, base + sectors.end);
        while at < end {
            let per = S * 8;
            let to = (at / per * per + per).min(end);
            let bits = self.tables.load(bitmap + at / per * S, "a bitmap").await?;
            bits.with(|b| {
                let range = at % per..at % per + (to - at);
                marks.extend(range.map(|n| b[(n / 8) as usize] & 1 << (n % 8) != 0));
            });
            at = to;
        }
        Ok(marks)
    }

    async fn allocate(&self, block: u64, need: Need) -> Result<Space, Error> {
        let size = self.block_size();
        let entry = self.entry(self.index(block)).await?;
        // What was zeros must not become the parent's.
        let partial = self.metadata.borrow().has_parent && need == Need::OverBacking;
        let space = |at| Space {
            place: if partial { Place::Partial(at) } else { Place::Full(at) },
            all_present: false,
        };
        // A block may have kept its space when it became zeros.
        let kept = Some((entry >> 20) * MIB).filter(|&at| at >= MIB && matches!(entry & STATE, 1..=3));
        let again = kept.or_else(|| self.unused.borrow_mut().pop_first());
        let Some(at) = again else {
            let at = self.end.get().next_multiple_of(MIB);
            let unused = OnDrop(|| _ = self.unused.borrow_mut().insert(at));
            self.take(size).await?;
            std::mem::forget(unused);
            return Ok(space(at));
        };
        let unused = OnDrop(|| {
            if kept.is_none() {
                self.unused.borrow_mut().insert(at);
            }
        });
        self.file.write_zeroes(at, size, true).await?;
        std::mem::forget(unused);
        Ok(space(at))
    }

    fn give_back(&self, space: Space) {
        if let Place::Full(at) | Place::Partial(at) = space.place {
            self.unused.borrow_mut().insert(at);
        }
    }

    async fn begin(&self) -> Result<(), Error> {
        if let Some(why) = &*self.damage.borrow() {
            let doing = format!("cannot write to '{}'", self.name());
            let why = format!("{why}; it must be repaired first (plinth disk check --repair all)");
            return Err(Error::new(ErrorKind::Corrupt, doing, why));
        }
        let begin = async {
            let (file_write, data_write) = (Guid::random()?, Guid::random()?);
            self.update_header(|h| (h.file_write, h.data_write) = (file_write, data_write)).await
        };
        self.begun.get_or_try_init(|| begin).await.copied()
    }

    async fn prepare(&self, changes: &Changes) -> Result<(), Error> {
        for &block in changes.sectors.keys() {
            let chunk = self.bits_of(block).0;
            if self.bitmap(chunk).await?.is_none() {
                let at = self.take(MIB).await?;
                self.bitmaps.borrow_mut().insert(chunk, at);
            }
        }
        let size = self.block_size();
        let ends = changes.places.values().filter_map(|place| match place {
            Place::Full(at) | Place::Partial(at) => Some(at + size),
            _ => None,
        });
        let bitmaps = self.bitmaps.borrow().values().map(|at| at + MIB).max();
        self.durable.set(ends.chain(bitmaps).fold(self.durable.get().min(self.file.size()), u64::max));
        Ok(())
    }

    async fn apply(&self, changes: &Changes) -> Result<(), Error> {
        let mut touched = Touched::new();
        for (&block, ranges) in &changes.sectors {
            // A block that became whole or zeros meanwhile needs no bits.
            let place = changes.places.get(&block).copied();
            if !matches!(place.map_or(self.place(block).await, Ok)?, Place::Partial(_)) {
                continue;
            }
            for range in ranges.iter() {
                self.set_bits(&mut touched, block, range).await?;
            }
        }
        let chunks = self.bitmaps.borrow().clone();
        for (&chunk, &at) in &chunks {
            self.set_entry(&mut touched, self.bitmap_index(chunk), at | FULL).await?;
        }
        for (&block, &place) in &changes.places {
            let entry = match place {
                Place::Full(at) => at | FULL,
                Place::Partial(at) => at | PARTIAL,
                Place::Zero => ZERO,
                Place::Absent => continue,
            };
            self.set_entry(&mut touched, self.index(block), entry).await?;
        }
        self.write_logged(touched).await?;
        self.bitmaps.borrow_mut().retain(|chunk, _| !chunks.contains_key(chunk));
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        if self.damage.borrow().is_some() || self.begun.get().is_none() {
            return Ok(());
        }
        self.tidy_ours().await?;
        self.empty_log().await
    }

    async fn resize(&self, old: u64, new: u64) -> Result<(), Error> {
        self.set_disk_size(old, new).await
    }

    async fn check(&self, size: u64, repair: Repair, progress: &Progress) -> Result<CheckReport, Error> {
        self.check_table(size, repair, progress).await
    }

    fn describe(&self) -> Description {
        let (m, header) = (self.metadata.borrow(), self.header.borrow());
        let kind = match (m.has_parent, m.keep) {
            (true, _) => "differencing",
            (false, true) => "fixed",
            (false, false) => "dynamic",
        };
        let mut details = Map::new();
        details.insert("subformat".into(), json!(kind));
        details.insert("log-size".into(), json!(header.log_len));
        details.insert("logical-sector-size".into(), json!(m.logical));
        details.insert("physical-sector-size".into(), json!(m.physical));
        details.insert("disk-id".into(), json!(m.disk_id.to_string()));
        details.insert("data-write-guid".into(), json!(header.data_write.to_string()));
        if m.has_parent {
            let parent: Map<_, _> = m.parent.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            details.insert("parent-locator".into(), parent.into());
        }
        Description {
            cluster_size: Some(m.block_size),
            dirty: self.damage.borrow().is_some(),
            backing: self.backing.borrow().clone(),
            identity: Some(header.data_write.to_string()),
            details,
            ..Description::default()
        }
    }

    async fn set_backing(&self, link: Option<&BackingLink>) -> Result<(), Error> {
        let doing = || format!("cannot change the backing image of '{}'", self.name());
        let unsupported = |why| Err(Error::new(ErrorKind::Unsupported, doing(), why));
        if !self.metadata.borrow().has_parent {
            return unsupported(
                "it has none, and its table has no place for bitmaps: make a new image over the other",
            );
        }
        let Some(link) = link else {
            return unsupported(
                "its table has blocks that are only partly present: convert it to a new image",
            );
        };
        let Some(parent) = locator_of(link) else {
            let why = "the new one is not a VHDX image, and VHDX can name no other";
            return Err(Error::new(ErrorKind::Invalid, doing(), why));
        };
        let mut metadata = self.metadata.borrow().clone();
        metadata.parent = parent;
        let bytes = metadata.bytes();
        let region = self.regions.borrow().metadata;
        let too_long = bytes.len() as u64 > region.len || bytes.len() / SECTOR > MAX_SECTORS;
        if too_long {
            return unsupported("the name is too long");
        }
        // All of the metadata anew, at once, as a new image has it.
        let mut touched = Touched::new();
        self.patch(&mut touched, region.at, &bytes).await?;
        self.write_logged(touched).await?;
        *self.metadata.borrow_mut() = Metadata::read(&self.file, region).await?;
        *self.backing.borrow_mut() = Some(link.clone());
        Ok(())
    }
}
