//! Snapshots inside of an image (qcow2 specification, "Snapshots").

use std::rc::Rc;

use super::alloc::Freed;
use super::header::{self, Header};
use super::map::{COMPRESSED, COPIED, View};
use super::{Core, Qcow2};
use crate::format::{Repair, Snapshot, Snapshots};
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, ReadNode, check_range, check_write, read_table,
};
use crate::{Error, ErrorKind, SECTOR};

/// Bytes of the snapshot table at most (QEMU's limit).
const MAX_TABLE: u64 = 64 << 20;
/// Bytes of an entry before its variable parts.
const FIXED: usize = 40;
/// Bytes of an entry's additional data that are known: sizes, and the instruction count.
const EXTRA: usize = 24;

/// One snapshot, as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub l1_offset: u64,
    pub l1_size: u32,
    pub info: Snapshot,
    /// Additional data behind what we know, and how much of the known there was.
    extra: Vec<u8>,
}

/// Reads the snapshot table; the snapshots, and the table's bytes.
pub async fn read_table_of(file: &dyn Node, header: &Header) -> Result<(Vec<Entry>, u64), Error> {
    let name = &file.info().name;
    let mut at = header.snapshots_offset;
    let mut snapshots = Vec::new();
    let what = "the snapshot table";
    for _ in 0..header.snapshots {
        let fixed = read_table(file, at, FIXED, what).await?;
        let len16 = |at: usize| usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let (id_len, name_len, extra_len) = (len16(12), len16(14), header::be32(&fixed, 36) as usize);
        let whole = FIXED + extra_len.min(1 << 20) + id_len + name_len;
        if extra_len > 1024 || at - header.snapshots_offset + whole as u64 > MAX_TABLE {
            return Err(Error::corrupt(name, "its snapshot table is too long"));
        }
        let all = read_table(file, at, whole, what).await?;
        let extra = &all[FIXED..FIXED + extra_len];
        let text = |from: usize, len: usize| String::from_utf8_lossy(&all[from..from + len]).into_owned();
        let l1_size = header::be32(&all, 8);
        if u64::from(l1_size) * 8 > header::MAX_L1 {
            return Err(Error::corrupt(name, "the L1 table of a snapshot is too long"));
        }
        let vm_state = if extra_len >= 8 { header::be64(extra, 0) } else { header::be32(&all, 32).into() };
        let icount = (extra_len >= EXTRA).then(|| header::be64(extra, 16)).filter(|&i| i != u64::MAX);
        snapshots.push(Entry {
            l1_offset: header::be64(&all, 0),
            l1_size,
            info: Snapshot {
                id: text(FIXED + extra_len, id_len),
                name: text(FIXED + extra_len + id_len, name_len),
                vm_state_size: vm_state,
                date: (header::be32(&all, 16).into(), header::be32(&all, 20)),
                vm_clock: header::be64(&all, 24),
                icount,
                disk_size: if extra_len >= 16 { header::be64(extra, 8) } else { header.size },
            },
            extra: extra.get(EXTRA..).unwrap_or_default().to_vec(),
        });
        at += (whole as u64).next_multiple_of(8);
    }
    Ok((snapshots, at - header.snapshots_offset))
}

fn encode(snapshots: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for s in snapshots {
        let i = &s.info;
        out.extend(s.l1_offset.to_be_bytes());
        out.extend(s.l1_size.to_be_bytes());
        out.extend((i.id.len() as u16).to_be_bytes());
        out.extend((i.name.len() as u16).to_be_bytes());
        out.extend((i.date.0 as u32).to_be_bytes());
        out.extend(i.date.1.to_be_bytes());
        out.extend(i.vm_clock.to_be_bytes());
        out.extend(u32::try_from(i.vm_state_size).unwrap_or(0).to_be_bytes());
        out.extend(((EXTRA + s.extra.len()) as u32).to_be_bytes());
        out.extend(i.vm_state_size.to_be_bytes());
        out.extend(i.disk_size.to_be_bytes());
        out.extend(i.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend(&s.extra);
        out.extend(i.id.as_bytes());
        out.extend(i.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

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
            // What is in memory may contradict what is in the file.
            let report = self.mend_itself(Repair::All).await?;
            if !report.is_clean() {
                let why = format!("it could not be mended: {}", report.messages.join("; "));
                return Err(Error::corrupt(&self.info.name, why));
            }
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

    /// Writes another snapshot table, and makes it the valid one.
    pub async fn switch_snapshots(&self, snapshots: Vec<Entry>) -> Result<(), Error> {
        let bytes = encode(&snapshots);
        if bytes.len() as u64 > MAX_TABLE {
            let doing = format!("cannot write the snapshot table of '{}'", self.info.name);
            return Err(Error::new(ErrorKind::Limit, doing, "there are too many snapshots"));
        }
        let mut offset = 0;
        if !bytes.is_empty() {
            let space = self.allocate_row((bytes.len() as u64).div_ceil(self.cluster)).await?;
            offset = space.offset;
            if let Err(e) = self.file.write(offset, IoData::copy_of(&bytes)).await {
                space.give_back();
                return Err(e);
            }
            // If anything fails from here on, all is counted anew.
            space.keep();
        }
        self.commit_with(true).await?;
        let old = (self.header.borrow().snapshots_offset, self.snapshot_table_len.get());
        let count = snapshots.len() as u32;
        self.change_header(|h| {
            h.snapshots = count;
            h.snapshots_offset = offset;
        })
        .await?;
        *self.snapshots.borrow_mut() = snapshots;
        self.guard.forget();
        self.snapshot_table_len.set(bytes.len() as u64);
        self.file.flush().await?;
        if old.1 > 0 {
            let clusters = old.1.div_ceil(self.cluster);
            self.alloc.pending.borrow_mut().push(Freed::table(old.0 >> self.bits, clusters));
        }
        Ok(())
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
            all.push(Entry { l1_offset, l1_size: entries.len() as u32, info: made, extra: Vec::new() });
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
