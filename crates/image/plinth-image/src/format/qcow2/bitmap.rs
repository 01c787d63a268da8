//! Bitmaps of changed blocks (qcow2 specification, "Bitmaps").
//!
//! While an image is open and was written to, its enabled bitmaps are in memory, and marked as in use in the file:
//! after a crash their contents mean nothing, and everybody knows that. They are written when the image is closed.

use std::cell::{Cell, RefCell};

use async_lock::Mutex;
use serde_json::json;

use super::alloc::Freed;
use super::bits::Bits;
use super::header::{self, Header};
use super::map::OFFSET;
use super::{Core, Qcow2};
use crate::format::{Bitmap, Bitmaps};
use crate::graph::{Io, IoBuf, IoData, Node, check_write, read_table};
use crate::{Error, ErrorKind};

const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
/// Dirty tracking bitmap, the only type there is.
const DIRTY_TRACKING: u8 = 1;
/// Bytes of an entry of the directory before its variable parts.
const FIXED: usize = 24;
/// Bytes of a bitmap, of its table in memory, and of the directory, at most. The first is QEMU's limit.
const MAX_BYTES: u64 = 512 << 20;
const MAX_TABLE: u64 = 32 << 20;
const MAX_DIRECTORY: u64 = 16 << 20;
const MAX_NAME: usize = 1023;
/// QEMU's limits of a block's size, as powers of two.
const GRANULARITY: std::ops::RangeInclusive<u8> = 9..=31;
#[derive(Clone, Debug)]
struct Stored {
    name: String,
    granularity: u8,
    flags: u32,
    kind: u8,
    extra: Vec<u8>,
    table: u64,
    entries: u32,
    /// In memory.
    bits: Option<Bits>,
    /// Marked as in use by us, so the contents in memory are valid.
    ours: bool,
}

impl Stored {
    fn usable(&self) -> bool {
        let strange = self.kind != DIRTY_TRACKING
            || !GRANULARITY.contains(&self.granularity)
            || (!self.extra.is_empty() && self.flags & EXTRA_COMPATIBLE == 0);
        !strange && (self.flags & IN_USE == 0 || self.ours)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.table.to_be_bytes());
        out.extend(self.entries.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend([self.kind, self.granularity]);
        out.extend((self.name.len() as u16).to_be_bytes());
        out.extend((self.extra.len() as u32).to_be_bytes());
        out.extend(&self.extra);
        out.extend(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// An image's bitmaps.
#[derive(Default)]
pub struct State {
    list: RefCell<Vec<Stored>>,
    /// Where the directory is, and its bytes.
    directory: Cell<(u64, u64)>,
    /// Enabled ones are in memory and marked.
    prepared: Cell<bool>,
    lock: Mutex<()>,
    /// Space of bitmaps that the present directory still names.
    frees: RefCell<Vec<Freed>>,
}

impl State {
    /// Where the directory is, and its bytes.
    pub fn directory(&self) -> (u64, u64) {
        self.directory.get()
    }

    /// Reads the directory, if there is a valid one.
    pub async fn read(file: &dyn Node, header: &Header) -> Result<Self, Error> {
        let state = Self::default();
        let name = &file.info().name;
        let extension = header.extension(header::EXT_BITMAPS);
        let Some(data) = extension.filter(|_| header.autoclear & header::BITMAPS != 0) else {
            return Ok(state);
        };
        let (count, len, at) = (header::be32(data, 0), header::be64(data, 8), header::be64(data, 16));
        if data.len() < 24 || len > MAX_DIRECTORY || at % header.cluster_size() != 0 || count > 65535 {
            return Err(Error::corrupt(name, "its bitmap directory makes no sense"));
        }
        let bytes = read_table(file, at, len as usize, "the bitmap directory").await?;
        let mut rest = &bytes[..];
        for _ in 0..count {
            let stored = Self::parse(&mut rest);
            state.list.borrow_mut().push(stored.ok_or_else(|| {
                Error::corrupt(name, "its bitmap directory ends within an entry, or an entry makes no sense")
            })?);
        }
        state.directory.set((at, len));
        Ok(state)
    }

    fn parse(rest: &mut &[u8]) -> Option<Stored> {
        let fixed = rest.get(..FIXED)?;
        let name_len = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let extra_len = header::be32(fixed, 20) as usize;
        let whole = FIXED.checked_add(extra_len)?.checked_add(name_len)?;
        let all = rest.get(..whole)?;
        let name = String::from_utf8(all[FIXED + extra_len..].to_vec()).ok()?;
        if name.is_empty() || name_len > MAX_NAME || fixed[17] > 63 {
            return None;
        }
        let stored = Stored {
            name,
            granularity: fixed[17],
            flags: header::be32(fixed, 12),
            kind: fixed[16],
            extra: all[FIXED..FIXED + extra_len].to_vec(),
            table: header::be64(fixed, 0),
            entries: header::be32(fixed, 8),
            bits: None,
            ours: false,
        };
        *rest = rest.get(whole.next_multiple_of(8)..).unwrap_or_default();
        Some(stored)
    }

    pub fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// As QEMU shows them.
    pub fn describe(&self) -> Vec<serde_json::Value> {
        let one = |b: &Stored| {
            let mut flags = Vec::new();
            if b.flags & IN_USE != 0 && !b.ours {
                flags.push("in-use");
            }
            if b.flags & AUTO != 0 {
                flags.push("auto");
            }
            json!({"flags": flags, "name": b.name, "granularity": 1u64 << b.granularity.min(62)})
        };
        self.list.borrow().iter().map(one).collect()
    }
}

impl Core {
    fn bitmap_error(&self, name: &str, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("cannot use the bitmap '{name}' of '{}'", self.info.name), why)
    }

    fn find_bitmap(&self, name: &str) -> Result<usize, Error> {
        let at = self.bitmaps.list.borrow().iter().position(|b| b.name == name);
        at.ok_or_else(|| self.bitmap_error(name, ErrorKind::NotFound, "there is none of this name"))
    }

    fn bit_count(&self, granularity: u8) -> u64 {
        self.size.get().div_ceil(1 << granularity)
    }

    /// Entries of the table of a bitmap of this granularity.
    fn table_entries(&self, granularity: u8) -> u64 {
        self.bit_count(granularity).div_ceil(8).div_ceil(self.cluster)
    }

    async fn bitmap_table(&self, bitmap: &Stored) -> Result<Vec<u64>, Error> {
        let len = u64::from(bitmap.entries) * 8;
        if len > MAX_TABLE || !bitmap.table.is_multiple_of(self.cluster) {
            let why = format!("the table of the bitmap '{}' makes no sense", bitmap.name);
            return Err(Error::corrupt(&self.info.name, why));
        }
        let bytes = read_table(&*self.file, bitmap.table, len as usize, "the table of a bitmap").await?;
        Ok(bytes.chunks_exact(8).map(|c| header::be64(c, 0)).collect())
    }

    /// What the bitmaps take up in the file: places and bytes.
    pub async fn bitmap_space(&self) -> Result<Vec<(u64, u64)>, Error> {
        let mut space = Vec::new();
        let list = self.bitmaps.list.borrow().clone();
        let (at, len) = self.bitmaps.directory.get();
        if len > 0 {
            space.push((at, len));
        }
        for bitmap in &list {
            if bitmap.entries > 0 {
                space.push((bitmap.table, u64::from(bitmap.entries) * 8));
            }
            for entry in self.bitmap_table(bitmap).await? {
                if entry & OFFSET != 0 {
                    space.push((entry & OFFSET, self.cluster));
                }
            }
        }
        Ok(space)
    }

    /// Brings the bits of a bitmap into memory.
    async fn load_bits(&self, index: usize) -> Result<(), Error> {
        let bitmap = self.bitmaps.list.borrow()[index].clone();
        if bitmap.bits.is_some() {
            return Ok(());
        }
        if !bitmap.usable() {
            let why = "it was not stored in good order, or is of an unknown kind; it can only be removed";
            return Err(self.bitmap_error(&bitmap.name, ErrorKind::Corrupt, why));
        }
        let entries = self.table_entries(bitmap.granularity);
        let too_large =
            || self.bitmap_error(&bitmap.name, ErrorKind::Limit, "it is too large to have in memory");
        if self.bit_count(bitmap.granularity) / 8 > MAX_BYTES {
            return Err(too_large());
        }
        if u64::from(bitmap.entries) != entries {
            return Err(self.bitmap_error(
                &bitmap.name,
                ErrorKind::Corrupt,
                "its size is not that of the disk",
            ));
        }
        let mut bits = Bits::default();
        for (n, entry) in self.bitmap_table(&bitmap).await?.into_iter().enumerate() {
            let first = n as u64 * self.cluster;
            match (entry & OFFSET, entry & 1) {
                (0, 0) => {}
                (0, _) => {
                    let end = self.bit_count(bitmap.granularity).min((first + self.cluster) * 8);
                    bits.set(first * 8, end);
                }
                (offset, _) => {
                    let bytes =
                        read_table(&*self.file, offset, self.cluster as usize, "a part of a bitmap").await?;
                    bits.put(first, &bytes);
                    if bits.is_full() {
                        return Err(too_large());
                    }
                }
            }
        }
        self.bitmaps.list.borrow_mut()[index].bits = Some(bits);
        Ok(())
    }

    /// Writes the bits of a bitmap to new space, and gives back the old.
    async fn store_bits(&self, index: usize) -> Result<(), Error> {
        let bitmap = self.bitmaps.list.borrow()[index].clone();
        let Some(bits) = &bitmap.bits else { return Ok(()) };
        let old = self.bitmap_table(&bitmap).await?;
        let count = self.table_entries(bitmap.granularity);
        let total = self.bit_count(bitmap.granularity);
        let mut table = IoBuf::zeroed((count.max(1) * 8) as usize);
        for n in 0..count {
            if bits.is_clear(n * self.cluster, self.cluster) {
                continue;
            }
            let mut bytes = IoBuf::new(self.cluster as usize);
            bits.copy(n * self.cluster, &mut bytes);
            let used = total.saturating_sub(n * self.cluster * 8).min(self.cluster * 8);
            let ones = bytes[..(used / 8) as usize].iter().all(|&b| b == 0xff)
                && (used.is_multiple_of(8) || bytes[(used / 8) as usize] == (1 << (used % 8)) - 1);
            let entry = if crate::graph::is_zero(&bytes) {
                0
            } else if ones {
                1
            } else {
                let space = self.allocate(1).await?;
                let offset = space.offset;
                if let Err(e) = self.file.write(offset, bytes.freeze()).await {
                    space.give_back();
                    return Err(e);
                }
                space.keep();
                offset
            };
            table[(n * 8) as usize..(n * 8 + 8) as usize].copy_from_slice(&entry.to_be_bytes());
        }
        let space = self.allocate_row((count * 8).div_ceil(self.cluster).max(1)).await?;
        let offset = space.offset;
        space.keep();
        self.file.write(offset, table.freeze()).await?;
        self.free_bitmap(&bitmap, &old);
        let mut list = self.bitmaps.list.borrow_mut();
        (list[index].table, list[index].entries) = (offset, count as u32);
        Ok(())
    }

    /// What a bitmap had is free when the directory that names it is gone, which is before the next commit ends.
    fn free_bitmap(&self, bitmap: &Stored, table: &[u64]) {
        let mut pending = self.bitmaps.frees.borrow_mut();
        for entry in table {
            if entry & OFFSET != 0 {
                pending.push(Freed::data((entry & OFFSET) >> self.bits, 1));
            }
        }
        if bitmap.table != 0 {
            let clusters = (u64::from(bitmap.entries) * 8).div_ceil(self.cluster).max(1);
            pending.push(Freed::data(bitmap.table >> self.bits, clusters));
        }
    }

    /// Writes a new directory, and makes it the valid one.
    async fn write_directory(&self) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let count = self.bitmaps.list.borrow().len();
        self.bitmaps.list.borrow().iter().for_each(|b| b.encode(&mut bytes));
        if bytes.len() as u64 > MAX_DIRECTORY || count > 65535 {
            let doing = format!("cannot write the bitmaps of '{}'", self.info.name);
            return Err(Error::new(ErrorKind::Limit, doing, "there are too many of them"));
        }
        let mut offset = 0;
        if count > 0 {
            let space = self.allocate_row((bytes.len() as u64).div_ceil(self.cluster)).await?;
            offset = space.offset;
            space.keep();
            self.file.write(offset, IoData::copy_of(&bytes)).await?;
        }
        self.changed();
        self.commit_with(true).await?;
        // Meanwhile there are none: the extension may be in another sector than the bit that vouches for it.
        if self.header.borrow().autoclear & header::BITMAPS != 0 {
            self.change_header(|h| h.autoclear &= !header::BITMAPS).await?;
            self.file.flush().await?;
        }
        let mut data = Vec::with_capacity(24);
        data.extend((count as u32).to_be_bytes());
        data.extend([0; 4]);
        data.extend((bytes.len() as u64).to_be_bytes());
        data.extend(offset.to_be_bytes());
        self.rewrite_header(|h| h.set_extension(header::EXT_BITMAPS, Some(data).filter(|_| count > 0)))
            .await?;
        if count > 0 {
            self.change_header(|h| h.autoclear |= header::BITMAPS).await?;
        }
        self.file.flush().await?;
        let (old, len) = self.bitmaps.directory.replace((offset, bytes.len() as u64));
        let mut pending = std::mem::take(&mut *self.bitmaps.frees.borrow_mut());
        if len > 0 {
            pending.push(Freed::data(old >> self.bits, len.div_ceil(self.cluster)));
        }
        self.alloc.pending.borrow_mut().append(&mut pending);
        self.changed();
        Ok(())
    }

    /// Before the first change of the disk: enabled bitmaps are loaded, and marked as in use.
    async fn prepare_bitmaps(&self) -> Result<(), Error> {
        let _alone = self.bitmaps.lock.lock().await;
        if self.bitmaps.prepared.get() {
            return Ok(());
        }
        let count = self.bitmaps.list.borrow().len();
        let mut some = false;
        for index in 0..count {
            let (usable, auto) = {
                let list = self.bitmaps.list.borrow();
                (list[index].usable(), list[index].flags & AUTO != 0)
            };
            if usable && auto {
                self.load_bits(index).await?;
                some = true;
            }
        }
        if some {
            let mut bytes = Vec::new();
            let mut list = self.bitmaps.list.borrow().clone();
            for bitmap in list.iter_mut().filter(|b| b.bits.is_some()) {
                (bitmap.flags, bitmap.ours) = (bitmap.flags | IN_USE, true);
            }
            list.iter().for_each(|b| b.encode(&mut bytes));
            // Only flags differ, each within one sector.
            self.file.write(self.bitmaps.directory.get().0, IoData::copy_of(&bytes)).await?;
            self.file.flush().await?;
            *self.bitmaps.list.borrow_mut() = list;
        }
        self.bitmaps.prepared.set(true);
        Ok(())
    }

    /// Notes in the enabled bitmaps that a range changes.
    pub async fn record_change(&self, offset: u64, len: u64) -> Result<(), Error> {
        if self.bitmaps.list.borrow().is_empty() || len == 0 {
            return Ok(());
        }
        if !self.bitmaps.prepared.get() {
            self.prepare_bitmaps().await?;
        }
        for bitmap in self.bitmaps.list.borrow_mut().iter_mut().filter(|b| b.flags & AUTO != 0) {
            let granularity = bitmap.granularity;
            if let Some(bits) = &mut bitmap.bits {
                bits.set(offset >> granularity, (offset + len).div_ceil(1 << granularity));
            }
        }
        Ok(())
    }

    /// Writes the bitmaps that are in memory, and takes the marks back.
    pub async fn store_bitmaps(&self) -> Result<(), Error> {
        let _alone = self.bitmaps.lock.lock().await;
        let ours: Vec<_> = {
            let list = self.bitmaps.list.borrow();
            (0..list.len()).filter(|&n| list[n].ours).collect()
        };
        if ours.is_empty() {
            return Ok(());
        }
        for &index in &ours {
            self.store_bits(index).await?;
        }
        for &index in &ours {
            let bitmap = &mut self.bitmaps.list.borrow_mut()[index];
            (bitmap.flags, bitmap.ours) = (bitmap.flags & !IN_USE, false);
        }
        let written = self.write_directory().await;
        if written.is_err() {
            for &index in &ours {
                let bitmap = &mut self.bitmaps.list.borrow_mut()[index];
                (bitmap.flags, bitmap.ours) = (bitmap.flags | IN_USE, true);
            }
            return written;
        }
        self.bitmaps.list.borrow_mut().iter_mut().for_each(|b| b.bits = None);
        self.bitmaps.prepared.set(false);
        Ok(())
    }

    /// A resize needs all bitmaps in memory.
    pub async fn load_bitmaps_to_resize(&self) -> Result<(), Error> {
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        self.prepare_bitmaps().await?;
        let count = self.bitmaps.list.borrow().len();
        for index in 0..count {
            self.load_bits(index).await?;
        }
        Ok(())
    }

    /// After a resize: tables of bitmaps have the new length. New bits are not set, as QEMU has it.
    pub async fn resize_bitmaps(&self) -> Result<(), Error> {
        let count = self.bitmaps.list.borrow().len();
        if count == 0 {
            return Ok(());
        }
        for index in 0..count {
            let total = self.bit_count(self.bitmaps.list.borrow()[index].granularity);
            if let Some(bits) = &mut self.bitmaps.list.borrow_mut()[index].bits {
                bits.truncate(total);
            }
            self.store_bits(index).await?;
        }
        for bitmap in self.bitmaps.list.borrow_mut().iter_mut().filter(|b| !b.ours) {
            bitmap.bits = None;
        }
        self.write_directory().await?;
        self.commit_with(true).await
    }

    /// Enables a bitmap or disables it; its bits stay where they are.
    async fn flag_bitmap(&self, name: &str, flag: u32) -> Result<(), Error> {
        let _alone = self.bitmaps.lock.lock().await;
        let index = self.find_bitmap(name)?;
        let (old, ours, usable) = {
            let list = self.bitmaps.list.borrow();
            (list[index].flags, list[index].ours, list[index].usable())
        };
        if !usable {
            return self.load_bits(index).await;
        }
        self.bitmaps.list.borrow_mut()[index].flags = old & !AUTO | flag;
        if ours {
            return Ok(());
        }
        self.bitmaps.prepared.set(false);
        if let Err(e) = self.write_directory().await {
            self.bitmaps.list.borrow_mut()[index].flags = old;
            return Err(e);
        }
        self.commit_with(true).await
    }

    /// Changes one bitmap, in memory if it is there anyway, else in the file.
    async fn change_bitmap(&self, name: &str, change: impl FnOnce(&mut Stored)) -> Result<(), Error> {
        let _alone = self.bitmaps.lock.lock().await;
        let index = self.find_bitmap(name)?;
        self.load_bits(index).await?;
        let ours = {
            let mut list = self.bitmaps.list.borrow_mut();
            change(&mut list[index]);
            list[index].ours
        };
        if ours {
            return Ok(());
        }
        self.store_bits(index).await?;
        self.bitmaps.list.borrow_mut()[index].bits = None;
        self.bitmaps.prepared.set(false);
        self.write_directory().await?;
        self.commit_with(true).await
    }
}

impl Bitmaps for Qcow2 {
    fn list(&self) -> Vec<Bitmap> {
        let list = self.core.bitmaps.list.borrow();
        let one = |b: &Stored| Bitmap {
            name: b.name.clone(),
            granularity: 1 << b.granularity.min(62),
            enabled: b.flags & AUTO != 0,
            in_use: b.flags & IN_USE != 0 && !b.ours,
        };
        list.iter().map(one).collect()
    }

    fn add<'a>(&'a self, name: &'a str, granularity: Option<u64>, enabled: bool) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let core = &self.core;
            let _still = core.locks.lock(0..u64::MAX, true).await;
            let _alone = core.bitmaps.lock.lock().await;
            if core.find_bitmap(name).is_ok() {
                return Err(core.bitmap_error(name, ErrorKind::Exists, "there is one of this name already"));
            }
            if name.is_empty() || name.len() > MAX_NAME {
                let why = "a name has 1 to 1023 bytes";
                return Err(core.bitmap_error(name, ErrorKind::Invalid, why));
            }
            let granularity = granularity.unwrap_or(core.cluster.clamp(4096, 65536));
            let bits = granularity.trailing_zeros() as u8;
            if !granularity.is_power_of_two() || !GRANULARITY.contains(&bits) {
                let why = "a granularity is a power of two from 512 bytes to 2 GiB";
                return Err(core.bitmap_error(name, ErrorKind::Invalid, why));
            }
            if core.bit_count(bits) / 8 > MAX_BYTES {
                let why = "it would be too large: a larger granularity helps";
                return Err(core.bitmap_error(name, ErrorKind::Limit, why));
            }
            core.begin_change(0, 0).await?;
            let index = core.bitmaps.list.borrow().len();
            core.bitmaps.list.borrow_mut().push(Stored {
                name: name.to_owned(),
                granularity: bits,
                flags: if enabled { AUTO } else { 0 },
                kind: DIRTY_TRACKING,
                extra: Vec::new(),
                table: 0,
                entries: 0,
                bits: Some(Bits::default()),
                ours: false,
            });
            let stored = async {
                core.store_bits(index).await?;
                core.bitmaps.list.borrow_mut()[index].bits = None;
                // The next write marks it, if it is enabled.
                core.bitmaps.prepared.set(false);
                core.write_directory().await?;
                core.commit_with(true).await
            };
            let stored = stored.await;
            if stored.is_err() {
                core.bitmaps.list.borrow_mut().truncate(index);
            }
            stored
        })
    }

    fn remove<'a>(&'a self, name: &'a str) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let core = &self.core;
            let _still = core.locks.lock(0..u64::MAX, true).await;
            let _alone = core.bitmaps.lock.lock().await;
            let index = core.find_bitmap(name)?;
            let bitmap = core.bitmaps.list.borrow()[index].clone();
            let table = core.bitmap_table(&bitmap).await?;
            core.bitmaps.list.borrow_mut().remove(index);
            core.free_bitmap(&bitmap, &table);
            if let Err(e) = core.write_directory().await {
                core.bitmaps.frees.borrow_mut().clear();
                core.bitmaps.list.borrow_mut().insert(index, bitmap);
                return Err(e);
            }
            core.commit_with(true).await
        })
    }

    fn clear<'a>(&'a self, name: &'a str) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _still = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.change_bitmap(name, |b| b.bits = Some(Bits::default())).await
        })
    }

    fn enable<'a>(&'a self, name: &'a str, enabled: bool) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _still = self.core.locks.lock(0..u64::MAX, true).await;
            let flag = if enabled { AUTO } else { 0 };
            self.core.flag_bitmap(name, flag).await
        })
    }

    fn ranges<'a>(&'a self, name: &'a str) -> Io<'a, Vec<(u64, u64)>> {
        Box::pin(async move {
            let core = &self.core;
            let _alone = core.bitmaps.lock.lock().await;
            let index = core.find_bitmap(name)?;
            core.load_bits(index).await?;
            let mut list = core.bitmaps.list.borrow_mut();
            let (bitmap, size) = (&mut list[index], core.size.get());
            let bits = match bitmap.ours {
                true => bitmap.bits.clone(),
                false => bitmap.bits.take(),
            };
            let shift = bitmap.granularity;
            let Some(ranges) = bits.unwrap_or_default().ranges(core.bit_count(shift)) else {
                let why = "too many ranges are marked in it";
                return Err(core.bitmap_error(name, ErrorKind::Limit, why));
            };
            let bytes =
                |(first, len): (u64, u64)| (first << shift, (len << shift).min(size - (first << shift)));
            Ok(ranges.into_iter().map(bytes).collect())
        })
    }

    fn set<'a>(&'a self, name: &'a str, ranges: &'a [(u64, u64)]) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let size = self.core.size.get();
            let _still = self.core.locks.lock(0..u64::MAX, true).await;
            let set = |b: &mut Stored| {
                let granularity = b.granularity;
                if let Some(bits) = &mut b.bits {
                    for &(offset, len) in ranges {
                        let end = offset.saturating_add(len).min(size);
                        bits.set(offset >> granularity, end.div_ceil(1 << granularity));
                    }
                }
            };
            self.core.change_bitmap(name, set).await
        })
    }
}
