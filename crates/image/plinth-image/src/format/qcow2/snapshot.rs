//! Snapshots inside of an image (qcow2 specification, "Snapshots").

use std::rc::Rc;

use super::alloc::Freed;
use super::header;
use super::map::{COMPRESSED, COPIED, View};
use super::snapshot_table::Entry;
use super::{Core, Qcow2};
use crate::format::{Repair, Snapshot, Snapshots};
use crate::graph::{Extent, Io, IoBuf, IoData, NodeInfo, NodeRef, ReadNode, check_range, check_write};
use crate::{Error, ErrorKind, SECTOR};

impl Core {
    fn find_snapshot(&self, id_or_name: &str) -> Result<usize, Error> {
        let snapshots = self.snapshots.borrow();
        let by = |f: &dyn Fn(&Snapshot) -> &str| snapshots.iter().position(|s| f(&s.info) == id_or_name);
        by(&|s| &s.id).or_else(|| by(&|s| &s.name)).ok_or_else(|| {
            let doing = format!("cannot find the snapshot '{id_or_name}' in '{}'", self.info.name);
            Error::new(ErrorKind::NotFound, doing, "there is none with this ID or name")
        })
    }

    fn refuse_data_file(&self) -> Result<(), Error> {
        if self.data.is_none() {
            return Ok(());
        }
        let doing = format!("cannot use snapshots in '{}'", self.info.name);
        Err(Error::new(
            ErrorKind::Unsupported,
            doing,
            "its data is in another file, which keeps one state only",
        ))
    }

    /// Does something to the counts and flags of the whole image. Until it is done, they are marked as not to be
    /// trusted; if it fails, they are made right again.
    async fn in_doubt(&self, work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        self.begin_change(0, 0).await?;
        self.changed();
        self.commit_with(true).await?;
        if self.v3() {
            self.change_header(|h| h.incompatible |= header::DIRTY).await?;
            self.file.flush().await?;
        }
        let done = async {
            work.await?;
            self.changed();
            self.commit_with(true).await
        };
        let result = done.await;
        self.unpacked.borrow_mut().clear();
        if result.is_err() {
            // What is in memory may contradict what is in the file. Damage that was there before stays; when this is
            // done, no count is lower than it has to be, and that is all that the dirty bit is about.
            self.mend_itself(Repair::All).await?;
        }
        if self.header.borrow().incompatible & header::DIRTY != 0 && !self.keeps_dirty() {
            self.change_header(|h| h.incompatible &= !header::DIRTY).await?;
            self.file.flush().await?;
        }
        result
    }

    /// Lazy counts: the dirty bit is there until the image is closed.
    fn keeps_dirty(&self) -> bool {
        self.header.borrow().compatible & header::LAZY_REFCOUNTS != 0
    }

    /// Clusters of the file that an L1 table's L2 tables refer to, and the L2 tables, given to `each` one L2
    /// table after the other.
    pub async fn adjust(&self, l1: &[u64], more: bool) -> Result<(), Error> {
        let slice = self.l2.block_size() as u64;
        for &entry in l1 {
            let Some(table) = self.l2_offset(entry)? else { continue };
            let mut runs: Vec<Freed> = Vec::new();
            for at in (0..self.cluster).step_by(slice as usize) {
                let block = self.l2.load(table + at, "an L2 table").await?;
                block.with(|bytes| {
                    for i in 0..bytes.len() / self.entry_size() as usize {
                        let entry = self.read_entry(bytes, i);
                        let (first, count) = if entry.word & COMPRESSED != 0 {
                            let (offset, len) = self.compressed(entry);
                            let first = offset >> self.bits;
                            // As a check counts: not behind the file's end.
                            let end = (offset + len).min(self.file.size().next_multiple_of(self.cluster));
                            (first, ((end.max(offset + 1) - 1) >> self.bits) - first + 1)
                        } else {
                            match self.host(entry) {
                                Some(host) => (host >> self.bits, 1),
                                None => continue,
                            }
                        };
                        match runs.last_mut() {
                            Some(r) if r.cluster + r.count == first => r.count += count,
                            _ => runs.push(Freed { punch: true, ..Freed::data(first, count) }),
                        }
                    }
                });
            }
            runs.push(Freed::table(table >> self.bits, 1));
            if !more {
                self.free(&runs).await?;
                continue;
            }
            for run in runs {
                for cluster in run.cluster..run.cluster + run.count {
                    if !self.refs.add(cluster).await? {
                        let why = format!(
                            "a cluster would have more references than {} bits can count",
                            self.header.borrow().refcount_bits()
                        );
                        let doing = format!("cannot keep a snapshot in '{}'", self.info.name);
                        return Err(Error::new(ErrorKind::Unsupported, doing, why));
                    }
                }
            }
            self.relieve().await?;
        }
        Ok(())
    }

    async fn create_snapshot(&self, template: &Snapshot) -> Result<Snapshot, Error> {
        self.refuse_data_file()?;
        let largest = self.snapshots.borrow().iter().filter_map(|s| s.info.id.parse::<u64>().ok()).max();
        let id = largest.unwrap_or(0).saturating_add(1).to_string();
        let info = Snapshot { id, disk_size: self.size.get(), ..template.clone() };
        if info.name.len() > usize::from(u16::MAX) {
            let doing = format!("cannot keep a snapshot in '{}'", self.info.name);
            return Err(Error::new(ErrorKind::Invalid, doing, "its name is too long"));
        }
        let made = info.clone();
        self.in_doubt(async move {
            let entries: Vec<u64> = self.l1.borrow().entries.iter().map(|e| e & !COPIED).collect();
            let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
            let space = self.allocate_row((bytes.len() as u64).div_ceil(self.cluster).max(1)).await?;
            let l1_offset = space.offset;
            space.keep();
            self.file.write(l1_offset, IoData::copy_of(&bytes)).await?;
            self.adjust(&entries, true).await?;
            self.mend_flags(true, None).await?;
            let mut all = self.snapshots.borrow().clone();
            all.push(Entry::new(l1_offset, entries.len() as u32, made));
            self.switch_snapshots(all).await?;
            self.drop_state().await
        })
        .await?;
        Ok(info)
    }

    async fn delete_snapshot(&self, id_or_name: &str) -> Result<(), Error> {
        self.refuse_data_file()?;
        let index = self.find_snapshot(id_or_name)?;
        let snapshot = self.snapshots.borrow()[index].clone();
        let entries = self.read_l1(snapshot.l1_offset, snapshot.l1_size).await?;
        self.in_doubt(async {
            let mut all = self.snapshots.borrow().clone();
            all.remove(index);
            self.switch_snapshots(all).await?;
            self.adjust(&entries, false).await?;
            let clusters = (u64::from(snapshot.l1_size) * 8).div_ceil(self.cluster).max(1);
            self.free(&[Freed::table(snapshot.l1_offset >> self.bits, clusters)]).await?;
            self.mend_flags(true, None).await.map(drop)
        })
        .await
    }

    async fn apply_snapshot(&self, id_or_name: &str) -> Result<(), Error> {
        self.refuse_data_file()?;
        let index = self.find_snapshot(id_or_name)?;
        let snapshot = self.snapshots.borrow()[index].clone();
        let mut new = self.read_l1(snapshot.l1_offset, snapshot.l1_size).await?;
        let size = snapshot.info.disk_size;
        if size != self.size.get() && !self.bitmaps.is_empty() {
            let doing = format!("cannot go back to a snapshot of '{}'", self.info.name);
            return Err(Error::new(ErrorKind::Unsupported, doing, "its size differs, and there are bitmaps"));
        }
        let need = size.div_ceil(self.l2_entries() << self.bits);
        if size > i64::MAX as u64 || !size.is_multiple_of(SECTOR) || need * 8 > header::MAX_L1 {
            return Err(Error::corrupt(&self.info.name, "the snapshot's size makes no sense"));
        }
        new.iter_mut().for_each(|e| *e &= !COPIED);
        new.resize(new.len().max(need as usize), 0);
        self.begin_change(0, self.size.get()).await?;
        self.in_doubt(async {
            self.adjust(&new, true).await?;
            let old = self.l1.borrow().entries.clone();
            self.move_l1(new, |h| h.size = size).await?;
            self.size.set(size);
            self.adjust(&old, false).await?;
            self.mend_flags(true, None).await.map(drop)
        })
        .await
    }
}

impl Core {
    /// Takes an empty mapping in place of the active one, in the way of a snapshot that is applied.
    pub async fn make_empty(&self) -> Result<(), Error> {
        if self.data.is_some() {
            let why = "its data is in another file, which has all of the disk";
            let doing = format!("cannot empty '{}'", self.info.name);
            return Err(Error::new(ErrorKind::Unsupported, doing, why));
        }
        self.begin_change(0, self.size.get()).await?;
        self.in_doubt(async {
            let old = self.l1.borrow().entries.clone();
            self.move_l1(vec![0; old.len()], |_| {}).await?;
            self.adjust(&old, false).await?;
            self.mend_flags(true, None).await.map(drop)
        })
        .await
    }
}

impl Snapshots for Qcow2 {
    fn write_state(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            self.core.refuse_data_file()?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.write_state(offset, data).await
        })
    }

    fn read_state<'a>(&'a self, id_or_name: &'a str, offset: u64, buf: IoBuf) -> Io<'a, IoBuf> {
        Box::pin(async move {
            self.core.refuse_data_file()?;
            let index = self.core.find_snapshot(id_or_name)?;
            let snapshot = self.core.snapshots.borrow()[index].clone();
            let end = offset.checked_add(buf.len() as u64);
            if end.is_none_or(|end| end > snapshot.info.vm_state_size) {
                let why = format!("there are {} bytes of machine state", snapshot.info.vm_state_size);
                let doing = format!("cannot read the snapshot '{id_or_name}' of '{}'", self.core.info.name);
                return Err(Error::new(ErrorKind::OutOfRange, doing, why));
            }
            let _shared = self.core.locks.lock(0..u64::MAX, false).await;
            let table = self.core.read_l1(snapshot.l1_offset, snapshot.l1_size).await?;
            self.core.read_state(&table, snapshot.info.disk_size, offset, buf).await
        })
    }

    fn list(&self) -> Vec<Snapshot> {
        self.core.snapshots.borrow().iter().map(|s| s.info.clone()).collect()
    }

    fn create<'a>(&'a self, template: &'a Snapshot) -> Io<'a, Snapshot> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.create_snapshot(template).await
        })
    }

    fn apply<'a>(&'a self, id_or_name: &'a str) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.apply_snapshot(id_or_name).await
        })
    }

    fn delete<'a>(&'a self, id_or_name: &'a str) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            let index = self.core.find_snapshot(id_or_name)?;
            let id = self.core.snapshots.borrow()[index].info.id.clone();
            if self.views.borrow().iter().any(|v| v.0 == id && v.1.strong_count() > 0) {
                let doing = format!("cannot delete the snapshot '{id_or_name}'");
                return Err(Error::new(ErrorKind::Busy, doing, "somebody reads it"));
            }
            self.core.delete_snapshot(id_or_name).await
        })
    }

    fn view<'a>(&'a self, id_or_name: &'a str) -> Io<'a, NodeRef> {
        Box::pin(async move {
            self.core.refuse_data_file()?;
            let index = self.core.find_snapshot(id_or_name)?;
            let snapshot = self.core.snapshots.borrow()[index].clone();
            let table = self.core.read_l1(snapshot.l1_offset, snapshot.l1_size).await?;
            let name = format!("{} (snapshot {})", self.core.info.name, snapshot.info.id);
            let info = NodeInfo { name, read_only: true, ..self.core.info.clone() };
            let size = snapshot.info.disk_size - snapshot.info.disk_size % SECTOR;
            let view = Rc::new(SnapshotView { core: self.core.clone(), info, table, size });
            let mut views = self.views.borrow_mut();
            views.retain(|v| v.1.strong_count() > 0);
            views.push((snapshot.info.id, Rc::downgrade(&view)));
            Ok(view as NodeRef)
        })
    }
}

/// The disk as it was when a snapshot was made.
pub struct SnapshotView {
    core: Rc<Core>,
    info: NodeInfo,
    table: Vec<u64>,
    size: u64,
}

impl ReadNode for SnapshotView {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            self.core.read_view(View::Table(&self.table), offset, buf).await
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            self.core.status_view(View::Table(&self.table), offset, len).await
        })
    }
}
