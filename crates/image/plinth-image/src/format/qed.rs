//! QED, the QEMU enhanced disk (QEMU, docs/interop/qed_spec.rst).
//!
//! **The order of writes.** Before the first cluster is allocated, the header says that the image needs a check.
//! Barrier. Clusters are taken at the file's end only, and an entry changes, in memory, when what it refers to is
//! written. A flush: barrier (for the data); changed parts of second tables, new ones as a whole; barrier, if the
//! first table changed too; changed parts of the first table; barrier. Closing flushes, and takes the mark in the
//! header back. After a power cut, all that tables refer to is there, and clusters that nothing refers to can be
//! there too: whoever opens the image for writing next sees the mark. QEMU checks it then; here, such clusters are cut
//! off at the file's end, and those before it are given to parts of the disk that have none.

mod write;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use async_lock::Mutex;
use futures_util::future::try_join_all;
use serde_json::json;

use super::table::TableCache;
use super::{
    BackingLink, CheckReport, Description, Driver, Format, Image, OpenRequest, OptionKind, OptionSpec,
    Progress, Repair,
};
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeLocks, check_range, check_write, joined,
    read_table,
};
use crate::{Error, ErrorKind, SECTOR};

/// QEMU enhanced disks.
pub static DRIVER: Driver = Driver {
    format: Format::Qed,
    probe: |sample| sample.head.starts_with(b"QED\0"),
    open: |request| Box::pin(open(request)),
    create: Some(|request| Box::pin(write::create(request))),
    options: &[
        OptionSpec {
            name: "cluster_size",
            kind: OptionKind::Size,
            help: "what is allocated at once: 4 KiB to 64 MiB (64k)",
        },
        OptionSpec {
            name: "table_size",
            kind: OptionKind::Number,
            help: "clusters of a table: 1, 2, 4, 8 or 16 (4)",
        },
    ],
};

const HEADER: usize = 64;
const HAS_BACKING: u64 = 1;
const NEED_CHECK: u64 = 2;
const BACKING_IS_RAW: u64 = 4;
/// Bytes of tables that are kept, and of one block of them.
const CACHE: usize = 4 << 20;
const BLOCK: u64 = 4096;
/// Bytes of the name of the image below at most.
const MAX_NAME: u32 = 1023;
/// Clusters that a check can remember: 1 TiB of data in clusters of 64 KiB.
const MAX_CHECKED: usize = 4 << 20;
/// Entries of tables that a check looks at: 1 TiB of disk in clusters of 64 KiB.
const MAX_ENTRIES: u64 = 1 << 24;
/// Bytes of a table at most. QEMU allows more, and nobody has ever used it.
const MAX_TABLE: u64 = 16 << 20;

struct QedImage {
    info: NodeInfo,
    file: NodeRef,
    cluster: u64,
    /// Bytes of a table.
    table: u64,
    l1: u64,
    size: Cell<u64>,
    /// Bytes of the header.
    header: u64,
    features: Cell<u64>,
    link: RefCell<Option<BackingLink>>,
    /// Where the link's name is.
    link_at: Cell<u64>,
    backing: RefCell<Option<NodeRef>>,
    tables: TableCache,
    /// Where the next cluster is taken.
    next: Cell<u64>,
    /// A cluster was taken and is not used: the mark stays.
    leaked: Cell<bool>,
    /// Such clusters, which the next writes take.
    spare: RefCell<Vec<u64>>,
    locks: RangeLocks,
    /// Parts of the disk that get their second table.
    table_locks: RangeLocks,
    flushing: Mutex<()>,
    marking: Mutex<()>,
}

/// What a cluster is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Not here: what the image below has.
    Below,
    Zero,
    At(u64),
}

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    Ok(Rc::new(open_image(request).await?))
}

async fn open_image(request: OpenRequest) -> Result<QedImage, Error> {
    let OpenRequest { file, links, options } = request;
    let name = file.info().name.clone();
    let corrupt = |why: String| Error::corrupt(&name, why);
    let b = read_table(&*file, 0, HEADER, "the header").await?;
    let word = |at: usize| b[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
    let long = |at: usize| b[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let (cluster, clusters, header) = (u64::from(word(4)), u64::from(word(8)), u64::from(word(12)));
    let (features, l1, size) = (long(16), long(40), long(48));
    if !cluster.is_power_of_two() || !(1 << 12..=1 << 26).contains(&cluster) {
        return Err(corrupt(format!("its clusters have {cluster} bytes")));
    }
    if !clusters.is_power_of_two() || clusters > 16 || clusters * cluster > MAX_TABLE {
        return Err(corrupt(format!("its tables have {clusters} clusters")));
    }
    if features & !(HAS_BACKING | NEED_CHECK | BACKING_IS_RAW) != 0 {
        let why = format!("it has features that Plinth does not know ({features:#x})");
        return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
    }
    let table = clusters * cluster;
    let entries = u128::from(table / 8);
    if !size.is_multiple_of(SECTOR)
        || size > i64::MAX as u64
        || u128::from(size) > entries * entries * u128::from(cluster)
    {
        return Err(corrupt(format!("its tables cannot hold a disk of {size} bytes")));
    }
    if !l1.is_multiple_of(cluster) || l1 == 0 || l1.checked_add(table).is_none_or(|end| end > file.size()) {
        return Err(corrupt(format!("its first table is said to be at {l1}")));
    }
    let mut link = None;
    if features & HAS_BACKING != 0 {
        let (at, len) = (u64::from(word(56)), word(60));
        if len == 0 || len > MAX_NAME || at + u64::from(len) > header.saturating_mul(cluster) {
            return Err(corrupt("the name of the image below is not in the header".to_owned()));
        }
        let bytes = read_table(&*file, at, len as usize, "the name of the image below").await?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| corrupt("the name of the image below is not UTF-8".to_owned()))?;
        let format = (features & BACKING_IS_RAW != 0).then_some(Format::Raw);
        link = Some(BackingLink { name: text.to_owned(), format, identity: None });
    }
    let backing = match &link {
        Some(link) if !options.no_backing => Some(links.open_backing(link).await? as NodeRef),
        _ => None,
    };
    let read_only = options.read_only || file.info().read_only;
    let info = NodeInfo { name: name.clone(), read_only, block: SECTOR as u32 };
    let tables = TableCache::new(file.clone(), BLOCK as usize, CACHE);
    let end = file.size().checked_next_multiple_of(cluster).filter(|&e| e <= i64::MAX as u64);
    let end = end.ok_or_else(|| corrupt("the file is too long".to_owned()))?;
    let image = QedImage {
        info,
        file,
        cluster,
        table,
        l1,
        size: Cell::new(size),
        header: header.saturating_mul(cluster),
        features: Cell::new(features),
        link: RefCell::new(link),
        link_at: Cell::new(u64::from(word(56))),
        backing: RefCell::new(backing),
        tables,
        next: Cell::new(end),
        leaked: Cell::new(false),
        spare: RefCell::default(),
        locks: RangeLocks::default(),
        table_locks: RangeLocks::default(),
        flushing: Mutex::new(()),
        marking: Mutex::new(()),
    };
    if !read_only && features & NEED_CHECK != 0 {
        image.recover().await?;
    }
    Ok(image)
}

impl QedImage {
    async fn entry(&self, table: u64, index: u64, what: &'static str) -> Result<u64, Error> {
        let at = table + index * 8;
        let block = self.tables.load(at - at % BLOCK, what).await?;
        Ok(block.le64((at % BLOCK / 8) as usize))
    }

    fn corrupt(&self, why: String) -> Error {
        Error::corrupt(&self.info.name, why)
    }

    /// The second table for a part of the disk; 0 if there is none.
    async fn second(&self, index: u64) -> Result<u64, Error> {
        let l2 = self.entry(self.l1, index, "the first table").await?;
        if !l2.is_multiple_of(self.cluster) || l2.checked_add(self.table).is_none_or(|e| e > self.file.size())
        {
            return Err(self.corrupt(format!("its second table {index} is said to be at {l2}")));
        }
        Ok(l2)
    }

    async fn place(&self, cluster: u64) -> Result<Place, Error> {
        let entries = self.table / 8;
        let l2 = self.second(cluster / entries).await?;
        if l2 == 0 {
            return Ok(Place::Below);
        }
        match self.entry(l2, cluster % entries, "a second table").await? {
            0 => Ok(Place::Below),
            1 => Ok(Place::Zero),
            at if at.is_multiple_of(self.cluster) && at < self.file.size() => Ok(Place::At(at)),
            at => Err(self.corrupt(format!("cluster {cluster} is said to be at {at}"))),
        }
    }

    /// Where a cluster is, and how many from it on, of `most`, are quickly seen to be as it is where it is nowhere.
    async fn places(&self, cluster: u64, most: u64) -> Result<(Place, u64), Error> {
        let entries = self.table / 8;
        let place = self.place(cluster).await?;
        if matches!(place, Place::At(_)) {
            return Ok((place, 1));
        }
        // The entry that decides: that of the first table where there is no second one.
        let index = cluster / entries;
        let (table, index, each) = match self.second(index).await? {
            0 => (self.l1, index, entries),
            l2 => (l2, cluster % entries, 1),
        };
        let at = table + index * 8;
        let block = self.tables.load(at - at % BLOCK, "a table").await?;
        let alike = block.alike::<8>((at % BLOCK / 8) as usize, most.div_ceil(each) + 1);
        Ok((place, (alike.max(1) * each - cluster % each).min(most)))
    }

    /// A long run from `offset` that is in one place.
    async fn run(&self, offset: u64, len: u64) -> Result<(Place, u64), Error> {
        /// Looks at tables at most, so that those of a large disk are not read in one go.
        const STEPS: usize = 1024;
        let within = offset % self.cluster;
        let clusters = |n: u64| (within + len - n).div_ceil(self.cluster);
        let (first, count) = self.places(offset / self.cluster, clusters(0)).await?;
        let first = match first {
            Place::At(at) => Place::At(at + within),
            other => other,
        };
        let mut n = count.saturating_mul(self.cluster).saturating_sub(within).min(len);
        for _ in 1..STEPS {
            if n == len {
                break;
            }
            let (next, count) = self.places((offset + n) / self.cluster, clusters(n)).await?;
            let follows = match (first, next) {
                (Place::At(at), Place::At(next)) => at + n == next,
                (first, next) => first == next,
            };
            if !follows {
                break;
            }
            n += count.saturating_mul(self.cluster).min(len - n);
        }
        Ok((first, n))
    }

    /// Reads what the image below has; zeros behind its end.
    async fn read_below(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let backing = self.backing.borrow().clone();
        let there = backing.as_ref().map_or(0, |b| b.size().saturating_sub(offset)).min(buf.len() as u64);
        let Some(below) = backing.filter(|_| there > 0) else {
            buf.fill(0);
            return Ok(buf);
        };
        if there == buf.len() as u64 {
            return below.read(offset, buf).await;
        }
        let part = below.read(offset, IoBuf::new(there as usize)).await?;
        buf[..there as usize].copy_from_slice(&part);
        buf[there as usize..].fill(0);
        Ok(buf)
    }

    async fn read_run(&self, place: Place, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        match place {
            Place::At(at) => self.file.read(at, buf).await,
            Place::Below => self.read_below(offset, buf).await,
            Place::Zero => {
                buf.fill(0);
                Ok(buf)
            }
        }
    }

    /// Notes a cluster of the file as used; false if it was already.
    fn claim(&self, used: &mut HashSet<u64>, at: u64, len: u64) -> bool {
        let mut free = true;
        for n in at / self.cluster..(at + len) / self.cluster {
            free &= used.insert(n);
        }
        free
    }

    /// Checks the tables; the clusters of the file that are used.
    async fn check_tables(
        &self,
        progress: &Progress,
        report: &mut CheckReport,
    ) -> Result<HashSet<u64>, Error> {
        let entries = self.table / 8;
        report.total_clusters = self.size.get().div_ceil(self.cluster);
        report.image_end = self.header.max(self.l1 + self.table);
        let tables = report.total_clusters.div_ceil(entries);
        progress.total.set(tables);
        let mut used = HashSet::new();
        self.claim(&mut used, self.l1, self.table);
        let mut looked = 0;
        for n in 0..tables {
            progress.add(1);
            let l2 = match self.second(n).await {
                Ok(0) => continue,
                Ok(l2) => l2,
                Err(e) if e.kind == ErrorKind::Corrupt => {
                    report.corruptions += 1;
                    report.say(&e.source);
                    continue;
                }
                Err(e) => return Err(e),
            };
            report.image_end = report.image_end.max(l2 + self.table);
            if !self.claim(&mut used, l2, self.table) {
                report.corruptions += 1;
                report.say(format_args!("the second table {n} at {l2} shares its place with something else"));
                // Its clusters were looked at already, or mean nothing.
                continue;
            }
            let mut last = 0;
            for index in (n * entries)..((n + 1) * entries).min(report.total_clusters) {
                match self.place(index).await {
                    Ok(Place::At(at)) => {
                        report.allocated_clusters += 1;
                        report.fragmented_clusters += u64::from(last != 0 && last + self.cluster != at);
                        report.image_end = report.image_end.max(at + self.cluster);
                        last = at;
                        if !self.claim(&mut used, at, self.cluster) {
                            report.corruptions += 1;
                            report.say(format_args!(
                                "cluster {index} at {at} shares its place with something else"
                            ));
                        }
                    }
                    Ok(_) => {}
                    Err(e) if e.kind == ErrorKind::Corrupt => {
                        report.corruptions += 1;
                        report.say(&e.source);
                    }
                    Err(e) => return Err(e),
                }
                looked += 1;
                if used.len() > MAX_CHECKED || looked > MAX_ENTRIES {
                    report.errors += 1;
                    report.say("it has more clusters than can be checked");
                    return Ok(used);
                }
            }
        }
        let clusters = self.file.size() / self.cluster;
        // The header is one, and what follows it is not known to be used or not.
        report.leaks = clusters.saturating_sub(1 + used.iter().filter(|&&n| n < clusters).count() as u64);
        Ok(used)
    }
}

impl Node for QedImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let len = buf.len() as u64;
            check_range(self, "read", offset, len)?;
            let _shared = self.locks.lock(offset..offset + len, false).await;
            let mut done = 0;
            let mut parts = Vec::new();
            while done < len {
                let (place, n) = self.run(offset + done, len - done).await?;
                let rest = buf.split_off(n as usize);
                parts.push(self.read_run(place, offset + done, std::mem::replace(&mut buf, rest)));
                done += n;
            }
            Ok(joined(try_join_all(parts).await?))
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            self.write_data(offset, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            self.zero_data(offset, len, unmap).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        // The format cannot give a cluster back.
        Box::pin(async move { check_write(self, offset, len) })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move { if self.info.read_only { Ok(()) } else { self.commit().await } })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            if len == 0 {
                return Ok(Extent::hole(0));
            }
            let (place, n) = self.run(offset, len).await?;
            let backing = self.backing.borrow().clone();
            match (place, &backing) {
                (Place::At(at), _) => Ok(Extent::stored(n, Some(at))),
                (Place::Zero, _) => Ok(Extent::zeros(n)),
                (Place::Below, None) => Ok(Extent::hole(n)),
                (Place::Below, Some(below)) if offset >= below.size() => {
                    Ok(Extent { depth: 1, ..Extent::hole(n) })
                }
                (Place::Below, Some(below)) => {
                    let extent = below.status(offset, n.min(below.size() - offset)).await?;
                    Ok(Extent { depth: extent.depth + 1, ..extent })
                }
            }
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            self.grow(size).await
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if !self.info.read_only {
                let _alone = self.locks.lock(0..u64::MAX, true).await;
                self.commit().await?;
                if !self.leaked.get() {
                    self.mark(false).await?;
                }
            }
            let below = self.backing.borrow().clone();
            if let Some(below) = below {
                below.close().await?;
            }
            self.file.close().await
        })
    }
}

impl Image for QedImage {
    fn format(&self) -> Format {
        Format::Qed
    }

    fn describe(&self) -> Description {
        let mut details = serde_json::Map::new();
        details.insert("table-size".into(), json!(self.table / self.cluster));
        Description {
            cluster_size: Some(self.cluster),
            dirty: self.features.get() & NEED_CHECK != 0,
            backing: self.link.borrow().clone(),
            details,
            ..Description::default()
        }
    }

    fn backing(&self) -> Option<NodeRef> {
        self.backing.borrow().clone()
    }

    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            if repair != Repair::No {
                check_write(self, 0, 0)?;
            }
            let _alone = self.locks.lock(0..u64::MAX, true).await;
            let mut report = CheckReport::default();
            let used = self.check_tables(progress, &mut report).await?;
            if repair != Repair::No && report.corruptions + report.errors == 0 {
                self.use_up(&used, report.image_end).await?;
                report.leaks_fixed = report.leaks;
            }
            Ok(report)
        })
    }

    fn set_backing<'a>(&'a self, link: Option<&'a BackingLink>) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.locks.lock(0..u64::MAX, true).await;
            self.write_link(link).await
        })
    }
}
