//! Changing the size of a VDI.

use super::header::{FREE, Header, Kind, ZERO, blocks_of};
use super::{Error, Rc, TableCache, Vdi, table_block};
use crate::ErrorKind;
use crate::graph::{IoData, copy_within, read_table};

impl Vdi {
    /// Nothing is in flight.
    pub(super) async fn set_disk_size(&self, new: u64) -> Result<(), Error> {
        let header = self.header.borrow().clone();
        let blocks = blocks_of(self.name(), new, header.block_size)?;
        self.fill_holes(u64::MAX).await?;
        if blocks < header.blocks {
            // First the entries, then the blocks behind them, then the size: at any time the file is right.
            self.set_entries((u64::from(blocks)..header.blocks.into()).map(|b| (b, FREE))).await?;
            self.fill_holes(u64::MAX).await?;
            self.trim().await?;
        } else if u64::from(blocks) * 4 > header.data - header.table {
            self.move_table(blocks).await?;
        } else {
            self.extend_table(&header, blocks).await?;
        }
        let old = self.header.borrow().clone();
        {
            let mut header = self.header.borrow_mut();
            (header.disk_size, header.blocks) = (new, blocks);
        }
        let written = async {
            self.write_header().await?;
            self.file.flush().await
        };
        if let Err(e) = written.await {
            *self.header.borrow_mut() = old;
            return Err(e);
        }
        if header.kind == Kind::Static && blocks > header.blocks {
            self.fill_static(header.blocks..blocks).await?;
        }
        Ok(())
    }

    /// Makes the table's entries of blocks that are to come say that they have no space.
    async fn extend_table(&self, header: &Header, blocks: u32) -> Result<(), Error> {
        const AT_ONCE: u32 = 1 << 18;
        self.table.borrow().clear();
        for first in (header.blocks..blocks).step_by(AT_ONCE as usize) {
            let n = (blocks - first).min(AT_ONCE);
            let entries = IoData::copy_of(&vec![0xff; n as usize * 4]);
            self.file.write(header.table + u64::from(first) * 4, entries).await?;
        }
        self.file.flush().await
    }

    /// Blocks of a static image have their space from the start.
    async fn fill_static(&self, blocks: std::ops::Range<u32>) -> Result<(), Error> {
        let first = self.taken.get();
        let count = blocks.end - blocks.start;
        self.taken.set(first + count);
        self.trim().await?;
        self.file.flush().await?;
        self.set_entries(blocks.zip(first..).map(|(block, n)| (u64::from(block), n))).await
    }

    /// Puts a larger table where the first blocks are.
    async fn move_table(&self, blocks: u32) -> Result<(), Error> {
        let old = self.header.borrow().clone();
        let count = u32::try_from((u64::from(blocks) * 4).div_ceil(old.stride())).unwrap_or(u32::MAX);
        let mut new = old.clone();
        (new.table, new.data) = (old.data, old.end(count));
        if new.data > u32::MAX.into() {
            let doing = format!("cannot resize '{}'", self.name());
            return Err(Error::new(ErrorKind::Limit, doing, "its table would be too large"));
        }
        // The first blocks go to the end; it may be that there are fewer.
        let taken = self.taken.get();
        let first = count.min(taken);
        let to = |n: u32| taken.max(count) + n;
        for n in 0..first {
            copy_within(&*self.file, old.host(n), old.host(to(n)), old.block_size).await?;
        }
        let end = to(first);
        let len = self.file.size();
        if len < old.end(end) {
            self.file.write_zeroes(len, old.end(end) - len, true).await?;
        }
        self.file.flush().await?;
        // A table of where the blocks are now, in numbers from the new start: the old table still leads to the
        // old places, where everything but the first blocks' copies still is. So the new table cannot be where
        // the first blocks are before nothing leads there any more.
        self.header.borrow_mut().allocated = end;
        self.write_header().await?;
        self.file.flush().await?;
        let mut moved = Vec::new();
        self.each_entry(|block, entry| {
            if entry < first {
                moved.push((block, to(entry)));
            }
        })
        .await?;
        self.set_entries(moved.into_iter()).await?;
        self.write_moved(&old, &new, count, blocks).await?;
        new.allocated = end - count;
        new.blocks = blocks;
        let bytes = new.bytes();
        self.file.write(0, IoData::copy_of(&bytes)).await?;
        self.file.flush().await?;
        self.taken.set(new.allocated);
        *self.table.borrow_mut() =
            Rc::new(TableCache::new(self.file.clone(), table_block(&new), super::CACHE));
        *self.header.borrow_mut() = new;
        self.fill_holes(u64::MAX).await
    }

    /// Writes the new table: the old entries, counted from the new start, and free ones.
    async fn write_moved(&self, old: &Header, new: &Header, count: u32, blocks: u32) -> Result<(), Error> {
        // Everything that is no entry, up to the data, is free.
        let mut at = u64::from(old.blocks) * 4;
        let end = (new.data - new.table).max(u64::from(blocks) * 4);
        while at < end {
            let n = (end - at).min(1 << 20);
            self.file.write(new.table + at, IoData::copy_of(&vec![0xff; n as usize])).await?;
            at += n;
        }
        let len = u64::from(old.blocks) * 4;
        let mut at = 0;
        while at < len {
            let n = (len - at).min(1 << 20);
            let mut bytes =
                read_table(&*self.file, old.table + at, n as usize, "its table of blocks").await?;
            for word in bytes.as_chunks_mut::<4>().0 {
                let entry = u32::from_le_bytes(*word);
                if !matches!(entry, FREE | ZERO) {
                    *word = entry.wrapping_sub(count).to_le_bytes();
                }
            }
            self.file.write(new.table + at, bytes.freeze()).await?;
            at += n;
        }
        self.file.flush().await
    }
}
