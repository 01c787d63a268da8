//! Tables must not be overwritten, whatever a damaged image says: an L2 entry that leads to one would have data
//! written there, and counts that say that it is free would have it given away.
//!
//! What is known without reading anything is guarded: the header, the L1 and L2 tables in use, snapshots' L1 tables,
//! the refcount table and its blocks, the snapshot table, the directory of bitmaps, the LUKS header. It is what QEMU
//! calls `overlap-check=cached`. Who comes upon one marks the image as damaged, and nothing is written until a check
//! has mended it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::alloc::Freed;
use super::map::{COMPRESSED, Entry, OFFSET};
use super::{Core, header};
use crate::Error;

/// Tables of one cluster each that are remembered at most, which take 18 MiB. Images of small clusters with more are
/// guarded in part.
const MOST: usize = (1 << 20) / 8 * 7;

/// What a cluster of the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    L2,
    RefcountBlock,
    SnapshotL1,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::L2 => "an L2 table",
            Kind::RefcountBlock => "a refcount block",
            Kind::SnapshotL1 => "the L1 table of a snapshot",
        }
    }
}

/// What is guarded.
#[derive(Default)]
pub struct Guard {
    /// Scattered tables, by their clusters; `None` until they are asked for.
    tables: RefCell<Option<HashMap<u64, Kind>>>,
    /// Damage was found.
    pub broken: Cell<bool>,
}

impl Guard {
    /// A new table.
    pub fn add(&self, cluster: u64, kind: Kind) {
        if let Some(tables) = &mut *self.tables.borrow_mut() {
            tables.insert(cluster, kind);
        }
    }

    /// The cluster is free.
    pub fn remove(&self, cluster: u64) {
        if let Some(tables) = &mut *self.tables.borrow_mut() {
            tables.remove(&cluster);
        }
    }

    /// Tables have changed in ways that are not followed.
    pub fn forget(&self) {
        *self.tables.borrow_mut() = None;
    }
}

impl Core {
    fn scattered_tables(&self) -> HashMap<u64, Kind> {
        let used = |entries: &[u64]| entries.iter().filter(|&&e| e != 0).count();
        let most = used(&self.l1.borrow().entries) + used(&self.refs.table.borrow());
        // Room from the beginning: a map that grows is there twice for a moment.
        let mut tables = HashMap::with_capacity(most.min(MOST));
        let mut add = |offset: u64, clusters: u64, kind: Kind| {
            for n in 0..clusters {
                if offset != 0 && tables.len() < MOST {
                    tables.insert((offset >> self.bits) + n, kind);
                }
            }
        };
        for snapshot in self.snapshots.borrow().iter() {
            let len = (u64::from(snapshot.l1_size) * 8).min(header::MAX_L1);
            let clusters = len.div_ceil(self.cluster);
            add(snapshot.l1_offset, clusters, Kind::SnapshotL1);
        }
        for entry in &self.l1.borrow().entries {
            add(entry & OFFSET, 1, Kind::L2);
        }
        // These last: an L1 entry that leads to one is wrong.
        for entry in &*self.refs.table.borrow() {
            add(entry & !0x1ff, 1, Kind::RefcountBlock);
        }
        tables
    }

    /// The table in a cluster, if it is one of those in a row: what it is, and the cluster behind it.
    pub fn row_at(&self, cluster: u64) -> Option<(&'static str, u64)> {
        if cluster == 0 {
            return Some(("the header", 1));
        }
        let header = self.header.borrow();
        let l1_len = self.l1.borrow().entries.len() as u64 * 8;
        let (crypt, crypt_len) = header.crypt_area().unwrap_or_default();
        let (moved, clusters) = self.alloc.table_at.get().unwrap_or_default();
        let (bitmaps, bitmaps_len) = self.bitmaps.directory();
        let rows = [
            ("the L1 table", header.l1_offset, l1_len),
            ("the refcount table", header.reftable_offset, u64::from(header.reftable_clusters) << self.bits),
            ("the refcount table", moved, u64::from(clusters) << self.bits),
            ("the snapshot table", header.snapshots_offset, self.snapshot_table_len.get()),
            ("the directory of bitmaps", bitmaps, bitmaps_len),
            ("the encryption header", crypt, crypt_len),
        ];
        let inside = |&(what, offset, len): &(&'static str, u64, u64)| {
            let (first, end) = (offset >> self.bits, offset.saturating_add(len).div_ceil(self.cluster));
            (first..end).contains(&cluster).then_some((what, end))
        };
        rows.iter().find_map(inside)
    }

    /// What table is in a cluster, if it is one.
    fn table_in(&self, cluster: u64) -> Option<&'static str> {
        if let Some((what, _)) = self.row_at(cluster) {
            return Some(what);
        }
        self.kind_of(cluster).map(Kind::name)
    }

    /// What scattered table is in a cluster, if it is one.
    pub fn kind_of(&self, cluster: u64) -> Option<Kind> {
        let mut tables = self.guard.tables.borrow_mut();
        tables.get_or_insert_with(|| self.scattered_tables()).get(&cluster).copied()
    }

    /// Refuses to write data over tables.
    pub async fn guard(&self, host: u64, len: u64) -> Result<(), Error> {
        if self.data.is_some() || len == 0 {
            return Ok(());
        }
        for cluster in host >> self.bits..=(host + len - 1) >> self.bits {
            if let Some(what) = self.table_in(cluster) {
                return Err(self.damaged(&format!("writing there would overwrite {what}"), cluster).await);
            }
        }
        Ok(())
    }

    /// Refuses to take away references that keep tables from being given away.
    pub async fn guard_free(&self, old: &[Entry], new: &[Entry]) -> Result<(), Error> {
        if self.data.is_some() {
            return Ok(());
        }
        for (old, new) in old.iter().zip(new) {
            let (first, count) = if old.word & COMPRESSED != 0 {
                let (offset, len) = self.compressed(*old);
                (offset >> self.bits, ((offset + len - 1) >> self.bits) - (offset >> self.bits) + 1)
            } else {
                match self.host(*old) {
                    Some(host) if self.host(*new) != Some(host) => (host >> self.bits, 1),
                    _ => continue,
                }
            };
            self.guard_freed(&Freed::data(first, count)).await?;
        }
        Ok(())
    }

    async fn guard_freed(&self, freed: &Freed) -> Result<(), Error> {
        for cluster in freed.cluster..freed.cluster + freed.count {
            if let Some(what) = self.table_in(cluster)
                // A mended image counts both.
                && self.refs.get(cluster).await? <= 1
            {
                return Err(self.damaged(&format!("taking it back would free {what}"), cluster).await);
            }
        }
        Ok(())
    }

    /// Marks the image as damaged, and says why.
    pub async fn damaged(&self, why: &str, cluster: u64) -> Error {
        self.guard.broken.set(true);
        if self.v3() && self.header.borrow().incompatible & header::CORRUPT == 0 {
            let mark = async {
                self.change_header(|h| h.incompatible |= header::CORRUPT).await?;
                self.file.flush().await
            };
            // The mark is for later. Nothing is written now in any case.
            let _ = mark.await;
        }
        let why = format!(
            "the tables say that data is at {:#x}, but {why}: the image is marked as damaged; mend it with a check",
            cluster << self.bits
        );
        Error::corrupt(&self.info.name, why)
    }
}
