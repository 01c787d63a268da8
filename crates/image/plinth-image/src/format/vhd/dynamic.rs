//! Dynamic and differencing VHD images.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use async_lock::Mutex;
use serde_json::json;

use super::fixed::details;
use super::footer::{FOOTER, Footer, HEADER, Header, Kind, LARGEST_DYNAMIC, MAX_ENTRIES};
use super::parent;
use crate::format::blocks::{Changes, Layout, Need, OnDrop, Place, Space};
use crate::format::guid::Guid;
use crate::format::table::TableCache;
use crate::format::{BackingLink, CheckReport, Description, Format, Progress, Repair};
use crate::graph::{IoData, NodeRef};
use crate::{Error, ErrorKind, SECTOR};

/// Table entry: the block is nowhere.
pub const FREE: u32 = u32::MAX;
/// Bytes of tables and bitmaps that are kept in memory.
const CACHE: usize = 8 << 20;
/// Data of new blocks begins at a multiple of it.
const ALIGN: u64 = 4096;

/// What is special about them.
pub struct Vhd {
    pub(super) file: NodeRef,
    pub(super) footer: RefCell<Footer>,
    pub(super) header: RefCell<Header>,
    /// Sectors of the table and of bitmaps: nothing is known of what follows them.
    pub(super) tables: TableCache,
    /// Where the last block ends, and the footer belongs.
    pub(super) end: Cell<u64>,
    /// Held while the footer is written, or its place becomes a block's.
    moving: Mutex<()>,
    /// Blocks (where their bitmaps begin) that turned out not to be used.
    pub(super) unused: RefCell<Vec<u64>>,
    /// What is wrong with the table: nothing is written before it is repaired.
    pub(super) damage: RefCell<Option<String>>,
    /// Something was written.
    pub(super) begun: Cell<bool>,
    backing: RefCell<Option<BackingLink>>,
}

/// Entries of the table for a disk.
pub fn entries_for(name: &str, size: u64, block_size: u64) -> Result<u32, Error> {
    let entries = size.div_ceil(block_size);
    if size > LARGEST_DYNAMIC || entries > MAX_ENTRIES.into() {
        let most = LARGEST_DYNAMIC.min(u64::from(MAX_ENTRIES) * block_size);
        let why = format!("dynamic VHD disks with blocks of {block_size} bytes have {most} bytes at most");
        return Err(Error::new(ErrorKind::Limit, format!("cannot make '{name}' {size} bytes large"), why));
    }
    Ok(entries as u32)
}

/// Writes a table, or a part of it, that has nothing.
pub async fn write_free(file: &NodeRef, offset: u64, len: u64) -> Result<(), Error> {
    const AT_ONCE: u64 = 1 << 20;
    let free = IoData::copy_of(&vec![0xff; len.min(AT_ONCE) as usize]);
    let mut at = 0;
    while at < len {
        let n = (len - at).min(AT_ONCE);
        file.write(offset + at, free.slice(..n as usize)).await?;
        at += n;
    }
    Ok(())
}

impl Vhd {
    pub fn new(file: NodeRef, footer: Footer, header: Header, backing: Option<BackingLink>) -> Self {
        let names = header.locators().filter(|l| l.len > 0).map(|l| l.offset.saturating_add(l.len.into()));
        let end = (header.table + header.table_len())
            .max(footer.header + HEADER as u64)
            .max(names.filter(|&e| e <= file.size()).max().unwrap_or(0));
        Self {
            tables: TableCache::new(file.clone(), SECTOR as usize, CACHE),
            file,
            footer: RefCell::new(footer),
            header: RefCell::new(header),
            end: Cell::new(end.next_multiple_of(SECTOR)),
            moving: Mutex::new(()),
            unused: RefCell::default(),
            damage: RefCell::default(),
            begun: Cell::new(false),
            backing: RefCell::new(backing),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.file.info().name
    }

    /// Bytes of a block with its bitmap.
    pub(super) fn span(&self) -> u64 {
        let header = self.header.borrow();
        header.block_size + header.bitmap()
    }

    fn entry_at(&self, block: u64) -> (u64, usize) {
        let at = block * 4;
        (self.header.borrow().table + at / SECTOR * SECTOR, (at % SECTOR / 4) as usize)
    }

    fn decode(&self, block: u64, entry: u32) -> Result<Place, Error> {
        if entry == FREE {
            return Ok(Place::Absent);
        }
        let at = u64::from(entry) * SECTOR;
        // It may end behind the file's end, if its last sectors are not present.
        if at < FOOTER as u64 || at + self.header.borrow().bitmap() > self.file.size() {
            let why = format!("block {block} is said to be at byte {at}, where there is no room for it");
            return Err(Error::corrupt(self.name(), why));
        }
        Ok(Place::Partial(at + self.header.borrow().bitmap()))
    }

    /// Where the next block goes from `end` on, its bitmap first.
    pub(super) fn next_block(&self, end: u64) -> u64 {
        let bitmap = self.header.borrow().bitmap();
        (end + bitmap).next_multiple_of(ALIGN) - bitmap
    }

    /// Writes the footer behind the last block.
    pub(super) async fn write_last_footer(&self) -> Result<(), Error> {
        let _alone = self.moving.lock().await;
        let bytes = self.footer.borrow().bytes();
        self.file.write(self.end.get(), IoData::copy_of(&bytes)).await
    }

    /// Writes the footer's copy at the beginning.
    async fn write_first_footer(&self) -> Result<(), Error> {
        let bytes = self.footer.borrow().bytes();
        self.file.write(0, IoData::copy_of(&bytes)).await
    }

    pub(super) async fn write_header(&self) -> Result<(), Error> {
        let (at, bytes) = (self.footer.borrow().header, self.header.borrow().bytes());
        self.file.write(at, IoData::copy_of(&bytes)).await
    }

    /// Changes entries of the table, durably.
    pub(super) async fn set_entries(&self, entries: impl Iterator<Item = (u64, u32)>) -> Result<(), Error> {
        for (block, entry) in entries {
            let (offset, index) = self.entry_at(block);
            self.tables.load(offset, "its table of blocks").await?.set(index, &entry.to_be_bytes());
        }
        self.tables.write_dirty().await?;
        self.file.flush().await
    }

    /// Sets bits of a block's bitmap, in memory.
    async fn set_bits(&self, bitmap: u64, range: Range<u64>) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            // Sectors whose bits are in one sector of the bitmap.
            let per = SECTOR * 8;
            let to = (at / per * per + per).min(range.end);
            let bits = self.tables.load(bitmap + at / per * SECTOR, "a block's bitmap").await?;
            bits.change(|b| {
                for n in at % per..at % per + (to - at) {
                    b[(n / 8) as usize] |= 0x80 >> (n % 8);
                }
            });
            at = to;
        }
        Ok(())
    }

    /// Puts the table behind everything else, with room for more blocks.
    async fn grow_table(&self, entries: u32) -> Result<(), Error> {
        let mut header = self.header.borrow().clone();
        let old = header.clone();
        header.entries = entries;
        // Room up to the next multiple of a page, so that small steps do not move it each time.
        let len = header.table_len().next_multiple_of(ALIGN);
        let table = self.end.get().next_multiple_of(ALIGN);
        if header.table_len() > old.table_len() {
            header.table = table;
            self.end.set(table + len);
        }
        let old_len = u64::from(old.entries) * 4;
        let end = header.table + header.table_len();
        write_free(&self.file, header.table + old_len, end - header.table - old_len).await?;
        if header.table != old.table {
            crate::format::blocks::scan::copy_all(&self.file, old.table, header.table, old_len).await?;
        }
        self.write_last_footer().await?;
        self.file.flush().await?;
        self.tables.clear();
        *self.header.borrow_mut() = header;
        let written = async {
            self.write_header().await?;
            self.file.flush().await
        };
        if let Err(e) = written.await {
            *self.header.borrow_mut() = old;
            // It may have been written all the same, and then the old table would not be the one that counts.
            self.write_header().await?;
            self.file.flush().await?;
            return Err(e);
        }
        Ok(())
    }
}

impl Layout for Vhd {
    const FORMAT: Format = Format::Vhd;
    const HAS_ZERO: bool = false;

    fn file(&self) -> &NodeRef {
        &self.file
    }

    fn block_size(&self) -> u64 {
        self.header.borrow().block_size
    }

    fn sector(&self) -> Option<u64> {
        Some(SECTOR)
    }

    fn cached(&self, block: u64) -> Option<Result<Place, Error>> {
        let (offset, index) = self.entry_at(block);
        let entry = self.tables.get(offset)?.le32(index).swap_bytes();
        Some(self.decode(block, entry))
    }

    fn alike(&self, block: u64, most: u64) -> u64 {
        let (offset, index) = self.entry_at(block);
        self.tables.get(offset).map_or(0, |t| t.alike::<4>(index, most))
    }

    async fn place(&self, block: u64) -> Result<Place, Error> {
        let (offset, index) = self.entry_at(block);
        let end = {
            let header = self.header.borrow();
            header.table + header.table_len()
        };
        let table = self.tables.load_ahead(offset, end, "its table of blocks").await?;
        let entry = table.le32(index).swap_bytes();
        self.decode(block, entry)
    }

    async fn present(&self, _block: u64, place: u64, sectors: Range<u64>) -> Result<Vec<bool>, Error> {
        let bitmap = place - self.header.borrow().bitmap();
        let per = SECTOR * 8;
        let mut marks = Vec::with_capacity((sectors.end - sectors.start) as usize);
        let mut at = sectors.start;
        while at < sectors.end {
            let to = (at / per * per + per).min(sectors.end);
            let bits = self.tables.load(bitmap + at / per * SECTOR, "a block's bitmap").await?;
            bits.with(|b| {
                let range = at % per..at % per + (to - at);
                marks.extend(range.map(|n| b[(n / 8) as usize] & 0x80 >> (n % 8) != 0));
            });
            at = to;
        }
        Ok(marks)
    }

    async fn allocate(&self, _block: u64, _need: Need) -> Result<Space, Error> {
        let (span, bitmap) = (self.span(), self.header.borrow().bitmap());
        let again = self.unused.borrow_mut().pop();
        let all_present = self.footer.borrow().kind == Kind::Dynamic;
        let space = |at: u64| Space { place: Place::Partial(at + bitmap), all_present };
        // The footer may be on its way to where the block will be.
        let _alone = self.moving.lock().await;
        let before = self.end.get();
        let at = again.unwrap_or_else(|| self.next_block(before));
        if again.is_none() {
            if at / SECTOR >= FREE.into() {
                let doing = format!("cannot write to '{}'", self.name());
                return Err(Error::new(ErrorKind::Limit, doing, "a VHD file has 2 TiB at most"));
            }
            self.end.set(at + span);
        }
        let from = if again.is_some() { at } else { before };
        for sector in (at..at + bitmap).step_by(SECTOR as usize) {
            self.tables.forget(sector);
        }
        let unused = OnDrop(|| self.unused.borrow_mut().push(at));
        self.file.write_zeroes(from, at + span - from, true).await?;
        std::mem::forget(unused);
        Ok(space(at))
    }

    fn give_back(&self, space: Space) {
        if let Place::Partial(place) = space.place {
            self.unused.borrow_mut().push(place - self.header.borrow().bitmap());
        }
    }

    async fn begin(&self) -> Result<(), Error> {
        if let Some(why) = &*self.damage.borrow() {
            let doing = format!("cannot write to '{}'", self.name());
            let why = format!("{why}; it must be repaired first (plinth disk check --repair all)");
            return Err(Error::new(ErrorKind::Corrupt, doing, why));
        }
        self.begun.set(true);
        Ok(())
    }

    async fn prepare(&self, _changes: &Changes) -> Result<(), Error> {
        self.write_last_footer().await
    }

    async fn apply(&self, changes: &Changes) -> Result<(), Error> {
        let bitmap = self.header.borrow().bitmap();
        for (&block, ranges) in &changes.sectors {
            let place = match changes.places.get(&block) {
                Some(&place) => place,
                None => self.place(block).await?,
            };
            let Place::Partial(place) = place else { continue };
            for range in ranges.iter() {
                self.set_bits(place - bitmap, range).await?;
            }
        }
        let entries = changes.places.iter().filter_map(|(&block, &place)| match place {
            Place::Partial(place) => Some((block, ((place - bitmap) / SECTOR) as u32)),
            _ => None,
        });
        self.set_entries(entries).await
    }

    async fn close(&self) -> Result<(), Error> {
        if self.damage.borrow().is_some() || !self.begun.get() {
            return Ok(());
        }
        self.tidy(u64::MAX).await
    }

    async fn resize(&self, _old: u64, new: u64) -> Result<(), Error> {
        let block_size = self.block_size();
        let entries = entries_for(self.name(), new, block_size)?;
        let before = self.header.borrow().entries;
        if entries > before {
            self.grow_table(entries).await?;
        }
        let old = self.footer.borrow().clone();
        self.footer.borrow_mut().resize(new);
        let written = async {
            self.write_last_footer().await?;
            self.file.flush().await?;
            self.write_first_footer().await?;
            self.file.flush().await
        };
        if let Err(e) = written.await {
            *self.footer.borrow_mut() = old;
            return Err(e);
        }
        if entries < before {
            self.set_entries((entries.into()..u64::from(before)).map(|b| (b, FREE))).await?;
            self.header.borrow_mut().entries = entries;
            self.tables.clear();
            self.write_header().await?;
            self.file.flush().await?;
        }
        if entries != before {
            // The space where the table was, or blocks are no more.
            self.tidy(u64::MAX).await?;
        }
        Ok(())
    }

    async fn check(&self, size: u64, repair: Repair, progress: &Progress) -> Result<CheckReport, Error> {
        self.check_table(size, repair, progress).await
    }

    fn describe(&self) -> Description {
        let (footer, header) = (self.footer.borrow(), self.header.borrow());
        let mut details = details(&footer);
        if footer.kind == Kind::Differencing {
            details.insert("parent-uuid".into(), json!(header.parent.to_string()));
            details.insert("parent-timestamp".into(), json!(header.parent_time));
        }
        Description {
            cluster_size: Some(header.block_size),
            dirty: self.damage.borrow().is_some(),
            backing: self.backing.borrow().clone(),
            identity: Some(parent::identity(footer.uuid, footer.time())),
            details,
            ..Description::default()
        }
    }

    async fn set_backing(&self, link: Option<&BackingLink>) -> Result<(), Error> {
        let doing = || format!("cannot change the backing image of '{}'", self.name());
        let mut header = self.header.borrow().clone();
        match link {
            None => {
                (header.parent, header.parent_time) = (Guid::NIL, 0);
                header.set_parent("", &[]);
            }
            Some(link) => {
                (header.parent, header.parent_time) = parent::parse_identity(link).ok_or_else(|| {
                    let why = "the new one is not a VHD image, and VHD can name no other";
                    Error::new(ErrorKind::Invalid, doing(), why)
                })?;
                // Where our own images have room for names; in others, something may be there.
                if header.table != parent::NAMES.end || self.footer.borrow().header != FOOTER as u64 {
                    let why = "there is no room for the name in an image that another program made";
                    return Err(Error::new(ErrorKind::Unsupported, doing(), why));
                }
                parent::write_names(&self.file, &mut header, link).await?;
                self.file.flush().await?;
            }
        }
        let kind = if link.is_some() { Kind::Differencing } else { Kind::Dynamic };
        *self.header.borrow_mut() = header;
        self.footer.borrow_mut().kind = kind;
        self.write_header().await?;
        self.write_last_footer().await?;
        self.file.flush().await?;
        self.write_first_footer().await?;
        self.file.flush().await?;
        *self.backing.borrow_mut() = link.cloned();
        Ok(())
    }
}
