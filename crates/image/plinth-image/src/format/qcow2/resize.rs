//! Another size of the disk.

use super::Core;
use super::alloc::Freed;
use super::header;
use super::map::{Entry, OFFSET};
use crate::format::below::hidden_below;
use crate::graph::{IoBuf, IoData};
use crate::{Error, ErrorKind, SECTOR};

impl Core {
    fn cannot_resize(&self, kind: ErrorKind, why: &str) -> Error {
        Error::new(kind, format!("cannot resize '{}'", self.info.name), why)
    }

    /// Changes the size; the caller holds the whole disk alone.
    pub async fn resize(&self, size: u64) -> Result<(), Error> {
        self.begin_change(0, 0).await?;
        let old = self.size.get();
        if !size.is_multiple_of(SECTOR) || size > i64::MAX as u64 {
            return Err(self.cannot_resize(ErrorKind::Invalid, "a size is a multiple of 512 bytes"));
        }
        if size == old {
            return Ok(());
        }
        if !self.v3() && !self.snapshots.borrow().is_empty() {
            let why = "Can't resize a v2 image which has snapshots";
            return Err(self.cannot_resize(ErrorKind::Unsupported, why));
        }
        self.load_bitmaps_to_resize().await?;
        // Machine state of a snapshot that was never made must not become a part of the disk.
        self.drop_state().await?;
        if size < old {
            self.shrink(old, size).await?;
        }
        self.reach(size).await?;
        let hidden = hidden_below(self.backing.borrow().as_ref(), old, size);
        let raw = self.header.borrow().autoclear & header::DATA_FILE_RAW != 0;
        if let Some(data) = &self.data
            && (raw || data.size() < size)
        {
            data.resize(size).await?;
        }
        if size > old {
            // Other programs leave there what a larger disk once had.
            let edge = old.next_multiple_of(self.cluster).min(size);
            if old < edge && !self.is_known_zero(old, edge).await? {
                self.write_locked(old, IoBuf::zeroed((edge - old) as usize).freeze()).await?;
            }
            // What the image below has there was out of sight.
            if let Some(len) = hidden {
                self.zero_new(old, old + len).await?;
            }
            if raw {
                self.preallocate(old, size, "metadata").await?;
            }
        }
        self.commit_with(true).await?;
        self.change_header(|h| h.size = size).await?;
        self.file.flush().await?;
        self.size.set(size);
        self.resize_bitmaps().await?;
        if size < old {
            self.trim().await?;
        }
        Ok(())
    }

    /// Makes the L1 table long enough for a disk of `size` bytes.
    async fn reach(&self, size: u64) -> Result<(), Error> {
        self.reach_entries(size.div_ceil(self.l2_entries() << self.bits)).await
    }

    /// Makes the L1 table have as many entries.
    pub async fn reach_entries(&self, need: u64) -> Result<(), Error> {
        let have = self.l1.borrow().entries.len() as u64;
        if need <= have {
            return Ok(());
        }
        if need * 8 > header::MAX_L1 {
            let why = format!("the L1 table would be too long with clusters of {} bytes", self.cluster);
            return Err(self.cannot_resize(ErrorKind::Limit, &why));
        }
        let mut entries = self.l1.borrow().entries.clone();
        entries.resize(need as usize, 0);
        self.move_l1(entries, |_| {}).await
    }

    /// Puts the active L1 table, with these entries, at a new place. `also` changes other fields of the header in
    /// the same moment.
    pub async fn move_l1(
        &self,
        entries: Vec<u64>,
        also: impl FnOnce(&mut header::Header),
    ) -> Result<(), Error> {
        let len = entries.len() as u64 * 8;
        let space = self.allocate_row(len.div_ceil(self.cluster)).await?;
        let (offset, clusters) = (space.offset, space.clusters);
        let mut bytes = IoBuf::zeroed((clusters << self.bits) as usize);
        for (to, entry) in bytes.chunks_exact_mut(8).zip(&entries) {
            to.copy_from_slice(&entry.to_be_bytes());
        }
        if let Err(e) = self.file.write(offset, IoData::from(bytes)).await {
            space.give_back();
            return Err(e);
        }
        if let Err(e) = self.commit_with(true).await {
            space.give_back();
            return Err(e);
        }
        let old = (self.l1.borrow().offset, self.l1.borrow().entries.len() as u64 * 8);
        let count = entries.len() as u32;
        let changed = self.change_header(|h| {
            h.l1_offset = offset;
            h.l1_size = count;
            also(h);
        });
        // If it fails, either table may be the one in the file: the new one stays counted.
        changed.await?;
        self.file.flush().await?;
        space.keep();
        self.replace_l1(entries, offset);
        self.guard.forget();
        let clusters = old.1.div_ceil(self.cluster);
        if clusters > 0 {
            self.alloc.pending.borrow_mut().push(Freed::table(old.0 >> self.bits, clusters));
            self.changed();
        }
        Ok(())
    }

    /// New bytes read as zeros, whatever is below.
    async fn zero_new(&self, from: u64, to: u64) -> Result<(), Error> {
        let first = from.next_multiple_of(self.cluster).min(to);
        if from < first {
            self.write_locked(from, IoBuf::zeroed((first - from) as usize).freeze()).await?;
        }
        let mut at = first;
        while at < to {
            let n = (to - at).min(self.cluster);
            if self.v3() {
                let old = self.entries(at >> self.bits, (to - at).div_ceil(self.cluster)).await?;
                let zeros = match self.extended {
                    true => Entry { word: 0, bitmap: 0xffff_ffff << 32 },
                    false => Entry { word: super::map::ZERO, bitmap: 0 },
                };
                self.set_entries(at >> self.bits, &vec![zeros; old.len()], false).await?;
                at += (old.len() as u64) << self.bits;
            } else {
                self.write_locked(at, IoBuf::zeroed(n as usize).freeze()).await?;
                at += n;
            }
        }
        Ok(())
    }

    /// Forgets what is behind `size`.
    async fn shrink(&self, old: u64, size: u64) -> Result<(), Error> {
        let first = size.div_ceil(self.cluster);
        let edge = (first << self.bits).min(old);
        // The rest of the last cluster comes to light again if the disk grows.
        if size < edge && !self.is_known_zero(size, edge).await? {
            self.write_locked(size, IoBuf::zeroed((edge - size) as usize).freeze()).await?;
        }
        let last = old.div_ceil(self.cluster);
        let mut at = first;
        while at < last {
            if self.l1_entry(super::map::View::Active, at / self.l2_entries()) & OFFSET == 0 {
                at = (at / self.l2_entries() + 1) * self.l2_entries();
                continue;
            }
            let entries = self.entries(at, last - at).await?;
            if entries.iter().any(|e| *e != Entry::default()) {
                self.set_entries(at, &vec![Entry::default(); entries.len()], true).await?;
            }
            at += entries.len() as u64;
        }
        self.commit().await?;
        // Tables that have no entries any more. Snapshots' machine state may lie behind the disk.
        let (from, to) = (first.div_ceil(self.l2_entries()), last.div_ceil(self.l2_entries()));
        for index in from..to {
            let entry = self.l1_entry(super::map::View::Active, index);
            if let Some(table) = self.l2_offset(entry)? {
                self.l1.borrow_mut().set(index as usize, 0);
                self.alloc.pending.borrow_mut().push(Freed::table(table >> self.bits, 1));
                self.changed();
            }
        }
        self.commit().await
    }
}
