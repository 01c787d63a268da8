//! One expanding disk in one file.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use async_lock::Mutex;
use futures_util::future::join_all;
use serde_json::json;

use super::{CLOSED, HEADER, Header, IN_USE, SAME_PLACE, UNUSED_TAIL, WRONG_START, le32, le64, read_header};
use crate::format::{CheckReport, Description, Format, Image, Progress, Repair};
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeGuard, RangeLocks, check_range, check_write,
    copy_within, is_zero, read_table,
};
use crate::{Error, ErrorKind, SECTOR};

/// The BAT is written in blocks of this many bytes.
const BLOCK: usize = 4096;
/// Free clusters that are remembered.
const MAX_FREE: u64 = 1 << 20;

/// Space in the file, in clusters behind the data's start.
#[derive(Debug, Default)]
struct Space {
    /// Behind the last cluster that is named.
    end: u64,
    /// Clusters before that which nobody names. What they hold is unknown.
    free: BTreeSet<u64>,
    /// Byte of the file from which on nobody has written anything yet.
    fresh: u64,
    /// Clusters that are free when the BAT that forgets them is durable.
    freed: Vec<u64>,
}

/// An expanding disk.
pub struct ParallelsImage {
    info: NodeInfo,
    file: NodeRef,
    header: RefCell<Header>,
    /// The file's first bytes, header and BAT, up to the end of the BAT's last sector.
    meta: RefCell<Vec<u8>>,
    /// Changed blocks of it.
    dirty: RefCell<BTreeSet<usize>>,
    space: RefCell<Space>,
    /// The image was left marked by somebody else.
    found_in_use: Cell<bool>,
    /// We have marked it.
    marked: Cell<bool>,
    /// The BAT contradicts itself: nothing may be written before that is mended.
    damaged: Cell<bool>,
    locks: RangeLocks,
    /// Held while header or BAT are written.
    writing: Mutex<()>,
}

/// What one BAT entry says.
enum Place {
    Nowhere,
    At(u64),
}

/// The header and the table of clusters, in whole sectors. In pieces, and parts of it that are zeros are not touched:
/// the table of a large and empty disk takes up next to no memory.
async fn read_meta(file: &dyn Node, len: usize) -> Result<Vec<u8>, Error> {
    const AT_ONCE: usize = 1 << 20;
    if len as u64 > file.size() {
        let why = format!("the table of clusters ({len} bytes) is beyond the file's end at {}", file.size());
        return Err(Error::corrupt(&file.info().name, why));
    }
    let mut meta = vec![0; len.next_multiple_of(SECTOR as usize)];
    for (n, part) in meta[..len].chunks_mut(AT_ONCE).enumerate() {
        let at = (n * AT_ONCE) as u64;
        let bytes = read_table(file, at, part.len(), "the table of clusters").await?;
        for (part, bytes) in part.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK)) {
            if !is_zero(bytes) {
                part.copy_from_slice(bytes);
            }
        }
    }
    Ok(meta)
}

impl ParallelsImage {
    pub async fn open(file: NodeRef, read_only: bool) -> Result<Self, Error> {
        Self::open_with(file, read_only, false).await
    }

    /// `for_check`: where the data begins need not be right.
    pub async fn open_with(file: NodeRef, read_only: bool, for_check: bool) -> Result<Self, Error> {
        let header = read_header(&*file, for_check).await?;
        let len = HEADER + header.entries as usize * 4;
        let meta = read_meta(&*file, len).await?;
        let info = NodeInfo {
            name: file.info().name.clone(),
            read_only,
            block: file.info().block.max(SECTOR as u32),
        };
        let image = Self {
            info,
            file,
            found_in_use: Cell::new(header.in_use == IN_USE),
            header: RefCell::new(header),
            meta: RefCell::new(meta),
            dirty: RefCell::default(),
            space: RefCell::default(),
            marked: Cell::new(false),
            damaged: Cell::new(false),
            locks: RangeLocks::default(),
            writing: Mutex::new(()),
        };
        image.find_start();
        if !read_only {
            image.prepare().await?;
        }
        Ok(image)
    }

    /// Finds out which clusters are free, and cuts off what a crash has left.
    async fn prepare(&self) -> Result<(), Error> {
        self.refuse_needed_extensions().await?;
        let mut report = CheckReport::default();
        let bad = self.survey(&mut report);
        self.damaged.set(!bad.is_empty() || self.header.borrow().misplaced);
        if self.found_in_use.get() && !self.damaged.get() {
            let end = self.end_of_data();
            if self.file.size() > end && self.header.borrow().extension == 0 {
                self.file.resize(end).await?;
            }
        }
        Ok(())
    }

    /// Extensions that must not be ignored forbid to change the image; all others are dropped by the first change.
    async fn refuse_needed_extensions(&self) -> Result<(), Error> {
        const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
        const BITMAP: u64 = 0x2038_5fae_252c_b34a;
        const NECESSARY: u64 = 1;
        let Header { extension, cluster, .. } = *self.header.borrow();
        if extension == 0 {
            return Ok(());
        }
        // Extensions are few and small; what lies behind the first part is not looked at.
        let len = cluster.min(1 << 20).min(self.file.size().saturating_sub(extension)) as usize;
        let bytes = read_table(&*self.file, extension, len.max(24), "the format extension").await?;
        let mut at = 24;
        while le64(&bytes, 0) == MAGIC && at + 24 <= bytes.len() {
            let (kind, flags) = (le64(&bytes, at), le64(&bytes, at + 8));
            if kind == 0 {
                break;
            }
            if kind != BITMAP && flags & NECESSARY != 0 {
                let doing = format!("cannot open '{}' for writing", self.info.name);
                let why = format!("it has an extension that Plinth does not know ({kind:#x})");
                return Err(Error::new(ErrorKind::Unsupported, doing, why));
            }
            at += 24 + (le32(&bytes, at + 16) as usize).next_multiple_of(8);
        }
        Ok(())
    }

    /// The file below.
    pub fn file(&self) -> &NodeRef {
        &self.file
    }

    fn entry(&self, index: u64) -> u32 {
        le32(&self.meta.borrow(), HEADER + index as usize * 4)
    }

    fn set_entry(&self, index: u64, value: u32) {
        let at = HEADER + index as usize * 4;
        self.meta.borrow_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self.dirty.borrow_mut().insert(at / BLOCK);
    }

    fn cluster(&self) -> u64 {
        self.header.borrow().cluster
    }

    /// Where a cluster of the disk is in the file.
    fn place(&self, index: u64) -> Result<Place, Error> {
        let header = self.header.borrow();
        match u64::from(self.entry(index)) * header.unit() {
            0 => Ok(Place::Nowhere),
            at if at >= header.data && at < self.file.size() => Ok(Place::At(at)),
            at => {
                let why = format!("cluster {index} is said to be at {at}, where no data is");
                Err(Error::corrupt(&self.info.name, why))
            }
        }
    }

    /// Byte of the file of the `n`th cluster behind the data's start.
    fn offset_of(&self, n: u64) -> u64 {
        let header = self.header.borrow();
        header.data + n * header.cluster
    }

    fn number_of(&self, offset: u64) -> u64 {
        let header = self.header.borrow();
        (offset - header.data) / header.cluster
    }

    fn end_of_data(&self) -> u64 {
        self.offset_of(self.space.borrow().end)
    }

    /// Looks at the whole BAT: notes what is wrong, and which clusters are free. Entries that are wrong are returned;
    /// of those that name the same cluster, all but the first.
    fn survey(&self, report: &mut CheckReport) -> Vec<u32> {
        let header = self.header.borrow().clone();
        let file = self.file.size();
        let (mut bad, mut used) = (Vec::new(), Vec::new());
        let mut last = None;
        for index in 0..header.entries {
            let at = u64::from(self.entry(index)) * header.unit();
            if at == 0 {
                continue;
            }
            report.allocated_clusters += 1;
            if last.is_some_and(|l: u64| l.wrapping_add(header.cluster) != at) {
                report.fragmented_clusters += 1;
            }
            last = Some(at);
            let why = if at < header.data {
                "in front of the data"
            } else if at.saturating_add(header.cluster) > file {
                "beyond the file's end"
            } else if !(at - header.data).is_multiple_of(header.cluster) {
                "between clusters"
            } else {
                // An entry has 32 bits, and so has the number of a cluster.
                used.push((((at - header.data) / header.cluster) as u32, index as u32));
                continue;
            };
            report.corruptions += 1;
            report.say(format_args!("cluster {index} is said to be at {at}, {why}"));
            bad.push(index as u32);
        }
        used.sort_unstable();
        for pair in used.windows(2) {
            if pair[0].0 == pair[1].0 {
                report.corruptions += 1;
                report.say(format_args!("clusters {} and {} {SAME_PLACE}", pair[0].1, pair[1].1));
                bad.push(pair[1].1);
            }
        }
        report.total_clusters = header.size.div_ceil(header.cluster);
        let end = used.last().map_or(0, |u| u64::from(u.0) + 1);
        let mut space = Space { end, fresh: file, ..Space::default() };
        let mut next = 0;
        for n in used.iter().map(|u| u64::from(u.0)) {
            // Holes that are not remembered are not lost: they are only not used this time.
            let room = MAX_FREE - space.free.len() as u64;
            space.free.extend(next..n.min(next + room).max(next));
            next = n + 1;
        }
        report.image_end = header.data + space.end * header.cluster;
        self.space.replace(space);
        bad
    }

    /// Marks the image as in use, once, before anything changes.
    async fn mark(&self) -> Result<(), Error> {
        if self.damaged.get() {
            let doing = format!("cannot write to '{}'", self.info.name);
            return Err(Error::new(
                ErrorKind::Corrupt,
                doing,
                "its table of clusters is damaged: repair it first",
            ));
        }
        if self.marked.get() {
            return Ok(());
        }
        let _alone = self.writing.lock().await;
        if self.marked.get() {
            return Ok(());
        }
        self.write_mark(IN_USE).await?;
        self.header.borrow_mut().extension = 0;
        self.marked.set(true);
        Ok(())
    }

    /// Writes the header's sector with this mark, and without an extension, which a change makes wrong.
    async fn write_mark(&self, mark: u32) -> Result<(), Error> {
        let sector = {
            let mut meta = self.meta.borrow_mut();
            meta[44..48].copy_from_slice(&mark.to_le_bytes());
            meta[56..64].fill(0);
            // The entries in the header's sector must be those on disk: only a flush writes new ones.
            IoData::copy_of(&meta[..HEADER])
        };
        self.file.write(0, sector).await?;
        self.file.flush().await
    }

    /// Space for one cluster, which reads as zeros. Its number, which is lost unless something names it.
    async fn allocate(&self) -> Result<u64, Error> {
        let (n, fresh) = {
            let mut space = self.space.borrow_mut();
            match space.free.pop_first() {
                Some(n) => (n, false),
                None => {
                    space.end += 1;
                    (space.end - 1, true)
                }
            }
        };
        let (at, cluster) = (self.offset_of(n), self.cluster());
        let name_limit = u64::from(u32::MAX) * self.header.borrow().unit();
        let result = if at > name_limit {
            let doing = format!("cannot write to '{}'", self.info.name);
            Err(Error::new(ErrorKind::NoSpace, doing, "the format cannot name clusters that far away"))
        } else if fresh && at >= self.space.borrow().fresh {
            // New space at the file's end reads as zeros.
            let end = self.file.size();
            match (at + cluster).checked_sub(end.max(at)) {
                Some(n) if n > 0 => self.file.write_zeroes(end.max(at), n, true).await,
                _ => Ok(()),
            }
        } else {
            self.file.write_zeroes(at, cluster, false).await
        };
        match result {
            Ok(()) => Ok(n),
            Err(e) => {
                self.space.borrow_mut().free.insert(n);
                Err(e)
            }
        }
    }

    fn name_cluster(&self, index: u64, n: u64) {
        let unit = self.header.borrow().unit();
        self.set_entry(index, (self.offset_of(n) / unit) as u32);
    }

    /// Writes within one cluster of the disk.
    async fn write_in(&self, index: u64, within: u64, data: IoData) -> Result<(), Error> {
        let cluster = self.cluster();
        let range = index * cluster..(index + 1) * cluster;
        {
            let _shared = self.locks.lock(range.clone(), false).await;
            if let Place::At(at) = self.place(index)? {
                return self.file.write(at + within, data).await;
            }
        }
        let _alone = self.locks.lock(range, true).await;
        if let Place::At(at) = self.place(index)? {
            return self.file.write(at + within, data).await;
        }
        self.mark().await?;
        let n = self.allocate().await?;
        if let Err(e) = self.file.write(self.offset_of(n) + within, data).await {
            self.space.borrow_mut().free.insert(n);
            return Err(e);
        }
        self.name_cluster(index, n);
        Ok(())
    }

    /// Parts of a range by cluster: index, byte in it, bytes.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64, u64)> + use<> {
        let cluster = self.cluster();
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            let n = (cluster - at % cluster).min(end - at);
            let part = (n > 0).then_some((at / cluster, at % cluster, n));
            at += n;
            part
        })
    }

    /// The longest run from `offset` that is in a row in the file, or nowhere: where, and how long.
    pub fn run(&self, offset: u64, len: u64) -> Result<(Option<u64>, u64), Error> {
        let mut run: Option<(Option<u64>, u64)> = None;
        for (index, within, n) in self.parts(offset, len) {
            let at = match self.place(index)? {
                Place::Nowhere => None,
                Place::At(at) => Some(at + within),
            };
            run = match run {
                None => Some((at, n)),
                Some((start, so_far)) if start.map(|s| s + so_far) == at => Some((start, so_far + n)),
                Some(done) => return Ok(done),
            };
        }
        Ok(run.unwrap_or((None, len)))
    }

    async fn lock_all(&self, offset: u64, len: u64, exclusive: bool) -> RangeGuard {
        self.locks.lock(offset..offset + len, exclusive).await
    }

    /// Gives back whole clusters of the disk. The caller holds them alone.
    async fn free(&self, index: u64) -> Result<(), Error> {
        if let Place::At(at) = self.place(index)? {
            self.mark().await?;
            self.set_entry(index, 0);
            let n = self.number_of(at);
            self.space.borrow_mut().freed.push(n);
        }
        Ok(())
    }

    /// Makes everything durable, the BAT last. See the module's text.
    async fn flush_all(&self) -> Result<(), Error> {
        let _alone = self.writing.lock().await;
        let blocks = std::mem::take(&mut *self.dirty.borrow_mut());
        let freed = std::mem::take(&mut self.space.borrow_mut().freed);
        let result = self.write_blocks(&blocks).await;
        match &result {
            Ok(()) => self.space.borrow_mut().free.extend(freed),
            Err(_) => {
                self.dirty.borrow_mut().extend(blocks);
                self.space.borrow_mut().freed.extend(freed);
            }
        }
        result
    }

    async fn write_blocks(&self, blocks: &BTreeSet<usize>) -> Result<(), Error> {
        // As they are now: entries that come later name data that this flush may not cover.
        let copies: Vec<_> = {
            let meta = self.meta.borrow();
            let copy = |&n: &usize| {
                (n * BLOCK, IoData::copy_of(&meta[n * BLOCK..((n + 1) * BLOCK).min(meta.len())]))
            };
            blocks.iter().map(copy).collect()
        };
        self.file.flush().await?;
        if copies.is_empty() {
            return Ok(());
        }
        for (at, data) in copies {
            self.file.write(at as u64, data).await?;
        }
        self.file.flush().await
    }

    /// Whether the disk has whole clusters from `offset` on, and which.
    fn whole(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let cluster = self.cluster();
        let end = offset + len;
        // The disk's last cluster may be only partly there.
        let last = if end == self.size() { end.div_ceil(cluster) } else { end / cluster };
        offset.div_ceil(cluster)..last.max(offset.div_ceil(cluster))
    }

    async fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        let whole = if unmap { self.whole(offset, len) } else { 0..0 };
        for (index, within, n) in self.parts(offset, len) {
            let cluster = self.cluster();
            let _alone = self.lock_all(index * cluster, cluster, true).await;
            if whole.contains(&index) {
                self.free(index).await?;
            } else if let Place::At(at) = self.place(index)? {
                self.file.write_zeroes(at + within, n, false).await?;
            }
        }
        Ok(())
    }

    /// Makes zero what clusters hold behind the disk's end, which is about to move.
    async fn clear_behind(&self, header: &Header) -> Result<(), Error> {
        let within = header.size % header.cluster;
        if within > 0
            && let Place::At(at) = self.place(header.size / header.cluster)?
        {
            self.file.write_zeroes(at + within, header.cluster - within, false).await?;
        }
        for index in header.size.div_ceil(header.cluster)..header.entries {
            self.free(index).await?;
        }
        Ok(())
    }

    /// Gives the second of two disk clusters that are in the same place a copy of its own.
    async fn part_duplicate(&self, index: u64) -> Result<(), Error> {
        let Place::At(from) = self.place(index)? else { return Ok(()) };
        let n = self.allocate().await?;
        copy_within(&*self.file, from, self.offset_of(n), self.cluster()).await?;
        self.name_cluster(index, n);
        Ok(())
    }

    async fn mend(&self, bad: &[u32], report: &mut CheckReport) -> Result<(), Error> {
        let file = self.file.size();
        self.damaged.set(false);
        self.mark().await?;
        for index in bad.iter().map(|&n| u64::from(n)) {
            let at = u64::from(self.entry(index)) * self.header.borrow().unit();
            let header = self.header.borrow().clone();
            let lies = at < header.data
                || at.saturating_add(header.cluster) > file
                || !(at - header.data).is_multiple_of(header.cluster);
            if lies {
                self.set_entry(index, 0);
            } else {
                self.part_duplicate(index).await?;
            }
            report.corruptions_fixed += 1;
        }
        self.flush_all().await
    }

    /// Takes the first place that the entries fit to for where the data begins. In the newer form all of them do.
    fn find_start(&self) {
        let Header { extended, misplaced, entries, data, cluster, .. } = *self.header.borrow();
        if !misplaced || extended {
            return;
        }
        let unit = self.header.borrow().unit();
        let places = (0..entries).map(|n| u64::from(self.entry(n)) * unit).filter(|&at| at >= data);
        if let Some(first) = places.min() {
            self.header.borrow_mut().data = data + (first - data) % cluster;
        }
    }

    /// Writes where the data begins. `whole`: nothing else is wrong.
    async fn mend_start(&self, whole: bool) -> Result<(), Error> {
        let _alone = self.writing.lock().await;
        let sector = {
            let mut meta = self.meta.borrow_mut();
            let sectors = (self.header.borrow().data / SECTOR) as u32;
            meta[48..52].copy_from_slice(&sectors.to_le_bytes());
            IoData::copy_of(&meta[..HEADER])
        };
        self.file.write(0, sector).await?;
        self.file.flush().await?;
        self.header.borrow_mut().misplaced = false;
        self.damaged.set(!whole);
        Ok(())
    }
}

impl Node for ParallelsImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.header.borrow().size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let len = buf.len() as u64;
            check_range(self, "read", offset, len)?;
            // Nobody gives the clusters away meanwhile.
            let _shared = self.lock_all(offset, len, false).await;
            let (at, n) = self.run(offset, len)?;
            if n == len {
                return match at {
                    Some(at) => self.file.read(at, buf).await,
                    None => {
                        buf.fill(0);
                        Ok(buf)
                    }
                };
            }
            let mut done = 0;
            while done < len {
                let (at, n) = self.run(offset + done, len - done)?;
                let out = done as usize..(done + n) as usize;
                match at {
                    Some(at) => {
                        let part = self.file.read(at, IoBuf::new(n as usize)).await?;
                        buf[out].copy_from_slice(&part);
                    }
                    None => buf[out].fill(0),
                }
                done += n;
            }
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            let len = data.len() as u64;
            check_write(self, offset, len)?;
            if self.damaged.get() {
                return self.mark().await;
            }
            {
                let _shared = self.lock_all(offset, len, false).await;
                if let (Some(at), n) = self.run(offset, len)?
                    && n == len
                {
                    return self.file.write(at, data).await;
                }
            }
            let parts = self.parts(offset, len).map(|(index, within, n)| {
                let at = (index * self.cluster() + within - offset) as usize;
                self.write_in(index, within, data.slice(at..at + n as usize))
            });
            // All are waited for, also if one fails: none is left half-done.
            join_all(parts).await.into_iter().collect()
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            if self.damaged.get() {
                return self.mark().await;
            }
            self.zero(offset, len, unmap).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            if self.damaged.get() {
                return self.mark().await;
            }
            let whole = self.whole(offset, len);
            for index in whole {
                let cluster = self.cluster();
                let _alone = self.lock_all(index * cluster, cluster, true).await;
                self.free(index).await?;
            }
            Ok(())
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move { if self.info.read_only { Ok(()) } else { self.flush_all().await } })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let (at, n) = self.run(offset, len)?;
            Ok(if at.is_some() { Extent::stored(n, at) } else { Extent::hole(n) })
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let old = self.header.borrow().clone();
            let refused = |kind, why: &str| {
                Error::new(kind, format!("cannot resize '{}'", self.info.name), why.to_owned())
            };
            if !size.is_multiple_of(SECTOR) {
                return Err(refused(ErrorKind::Invalid, "the size is not a multiple of 512"));
            }
            if size < old.size {
                return Err(refused(ErrorKind::Unsupported, "a Parallels disk cannot be made smaller"));
            }
            let entries = size.div_ceil(old.cluster).max(old.entries);
            let end = (HEADER as u64 + entries * 4).next_multiple_of(SECTOR);
            if entries > u64::from(u32::MAX)
                || end > old.data
                || (!old.extended && size / SECTOR > u64::from(u32::MAX))
            {
                return Err(refused(
                    ErrorKind::Unsupported,
                    "its table of clusters has no room to grow: convert it",
                ));
            }
            self.mark().await?;
            self.clear_behind(&old).await?;
            self.flush_all().await?;
            let _alone = self.writing.lock().await;
            let (from, sector) = {
                let mut meta = self.meta.borrow_mut();
                let from = HEADER + old.entries as usize * 4;
                meta.resize(end as usize, 0);
                meta[from..].fill(0);
                meta[32..36].copy_from_slice(&(entries as u32).to_le_bytes());
                meta[36..44].copy_from_slice(&(size / SECTOR).to_le_bytes());
                (from as u64, IoData::copy_of(&meta[..HEADER]))
            };
            self.file.write_zeroes(from, end - from, false).await?;
            self.file.flush().await?;
            self.file.write(0, sector).await?;
            self.file.flush().await?;
            let mut header = self.header.borrow_mut();
            (header.entries, header.size) = (entries, size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if !self.info.read_only {
                self.flush_all().await?;
                let extension = self.header.borrow().extension;
                if (self.marked.get() || self.found_in_use.get()) && !self.damaged.get() && extension == 0 {
                    let mut report = CheckReport::default();
                    self.survey(&mut report);
                    let _alone = self.writing.lock().await;
                    if self.file.size() > report.image_end {
                        self.file.resize(report.image_end).await?;
                    }
                    self.write_mark(CLOSED).await?;
                    self.marked.set(false);
                    self.found_in_use.set(false);
                }
            }
            self.file.close().await
        })
    }
}

impl Image for ParallelsImage {
    fn format(&self) -> Format {
        Format::Parallels
    }

    fn describe(&self) -> Description {
        let header = self.header.borrow();
        let mut details = serde_json::Map::new();
        details.insert("extended".into(), json!(header.extended));
        details.insert("data-offset".into(), json!(header.data));
        Description {
            cluster_size: Some(header.cluster),
            dirty: self.found_in_use.get() || self.damaged.get(),
            details,
            ..Description::default()
        }
    }

    fn backing(&self) -> Option<NodeRef> {
        None
    }

    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            let mut report = CheckReport::default();
            progress.total.set(1);
            let _alone = self.lock_all(0, u64::MAX, true).await;
            if !self.info.read_only {
                self.flush_all().await?;
            }
            let bad = self.survey(&mut report);
            if self.header.borrow().misplaced {
                report.corruptions += 1;
                report.say(WRONG_START);
                if repair == Repair::All {
                    check_write(self, 0, 0)?;
                    self.mend_start(bad.is_empty()).await?;
                    report.corruptions_fixed += 1;
                }
            }
            let header = self.header.borrow().clone();
            if self.found_in_use.get() && self.info.read_only {
                report.corruptions += 1;
                report.say("it was not closed in good order");
            }
            if !bad.is_empty() && repair == Repair::All {
                check_write(self, 0, 0)?;
                self.mend(&bad, &mut report).await?;
                report.image_end = self.end_of_data();
            }
            // An extension's clusters are not in the BAT.
            let tail = self.file.size().saturating_sub(report.image_end);
            // What was given back while the image is open is used again, or goes when it is closed.
            let in_hand = self.marked.get() && repair == Repair::No;
            if tail > 0 && header.extension == 0 && !in_hand {
                report.leaks += tail.div_ceil(header.cluster);
                report.say(format_args!("{tail} {UNUSED_TAIL}"));
                if repair != Repair::No {
                    check_write(self, 0, 0)?;
                    self.file.resize(report.image_end).await?;
                    report.leaks_fixed = report.leaks;
                }
            }
            progress.add(1);
            Ok(report)
        })
    }
}
