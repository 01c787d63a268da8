//! Making and changing QED images.

use std::collections::HashSet;
use std::rc::Rc;

use super::{
    BACKING_IS_RAW, BLOCK, HAS_BACKING, HEADER, MAX_NAME, MAX_TABLE, NEED_CHECK, Place, QedImage, open_image,
};
use crate::format::below::hidden_below;
use crate::format::blocks::OnDrop;
use crate::format::table::Block;
use crate::format::{
    BackingLink, CheckReport, CreateRequest, Format, Image, Links, NoLinks, OpenOptions, OpenRequest,
    Progress,
};
use crate::graph::{IoBuf, IoData, write_zero_bytes};
use crate::{Error, ErrorKind, SECTOR};

/// Where a link's name can be: the one that is not in use gets the new one.
const NAME_AT: [u64; 2] = [HEADER as u64, 2048];

impl QedImage {
    async fn put(&self, table: u64, index: u64, value: u64) -> Result<(), Error> {
        let at = table + index * 8;
        let block = self.tables.load(at - at % BLOCK, "a table").await?;
        block.set((at % BLOCK / 8) as usize, &value.to_le_bytes());
        Ok(())
    }

    /// A field of the header, in the file.
    async fn put_header(&self, at: u64, value: u64) -> Result<(), Error> {
        self.file.write(at, IoData::copy_of(&value.to_le_bytes())).await?;
        self.file.flush().await
    }

    /// Says in the header, durably, whether the image needs a check.
    pub async fn mark(&self, needed: bool) -> Result<(), Error> {
        let features = self.features.get();
        let wanted = if needed { features | NEED_CHECK } else { features & !NEED_CHECK };
        if features == wanted {
            return Ok(());
        }
        let _alone = self.marking.lock().await;
        if self.features.get() != wanted {
            self.put_header(16, wanted).await?;
            self.features.set(wanted);
        }
        Ok(())
    }

    /// Makes durable what was complete before.
    pub async fn commit(&self) -> Result<(), Error> {
        let _alone = self.flushing.lock().await;
        let first = |b: &Block| (self.l1..self.l1 + self.table).contains(&b.offset());
        let second = self.tables.stage(|b| !first(b));
        let first = self.tables.stage(first);
        self.file.flush().await?;
        if second.is_empty() && first.is_empty() {
            return Ok(());
        }
        self.tables.write_staged(second).await?;
        if !first.is_empty() {
            self.file.flush().await?;
            self.tables.write_staged(first).await?;
        }
        self.file.flush().await
    }

    /// Takes bytes at the file's end, which are not in it yet.
    async fn allocate(&self, len: u64) -> Result<u64, Error> {
        self.mark(true).await?;
        let at = self.next.get();
        let end = at.checked_add(len).filter(|&e| e <= i64::MAX as u64);
        let end = end.ok_or_else(|| {
            Error::new(
                ErrorKind::NoSpace,
                format!("cannot write to '{}'", self.info.name),
                "its file is full",
            )
        })?;
        self.next.set(end);
        Ok(at)
    }

    /// A cluster for data: one that a write has taken and failed with, or one at the file's end.
    async fn take_cluster(&self) -> Result<u64, Error> {
        let spare = self.spare.borrow_mut().pop();
        match spare {
            Some(at) => Ok(at),
            None => self.allocate(self.cluster).await,
        }
    }

    /// What a write has taken may be lost when nobody waits for it any more.
    fn lost_if_dropped(&self) -> OnDrop<impl FnMut()> {
        OnDrop(|| self.leaked.set(true))
    }

    /// Space that was taken and that nothing refers to. What is not taken again is used up by the next open.
    fn keep_spare(&self, at: u64, len: u64) {
        self.leaked.set(true);
        self.spare.borrow_mut().extend((at..at + len).step_by(self.cluster as usize));
    }

    /// The second table for a part of the disk, made if there is none.
    async fn second_for_change(&self, index: u64) -> Result<u64, Error> {
        let table = self.second(index).await?;
        if table != 0 {
            return Ok(table);
        }
        let _alone = self.table_locks.lock(index..index + 1, true).await;
        let table = self.second(index).await?;
        if table != 0 {
            return Ok(table);
        }
        let lost = self.lost_if_dropped();
        let at = self.allocate(self.table).await?;
        // From now on the file reaches so far, which the tables' reader checks.
        if let Err(e) = self.file.write_zeroes(at, self.table, true).await {
            self.keep_spare(at, self.table);
            return Err(e);
        }
        let blocks = || (at..at + self.table).step_by(BLOCK as usize);
        for block in blocks() {
            self.tables.create(block);
        }
        if let Err(e) = self.put(self.l1, index, at).await {
            blocks().for_each(|block| self.tables.forget(block));
            self.keep_spare(at, self.table);
            return Err(e);
        }
        std::mem::forget(lost);
        Ok(at)
    }

    async fn set_place(&self, cluster: u64, value: u64) -> Result<(), Error> {
        let entries = self.table / 8;
        let table = self.second_for_change(cluster / entries).await?;
        self.put(table, cluster % entries, value).await?;
        if self.tables.is_crowded() {
            self.commit().await?;
        }
        Ok(())
    }

    /// The clusters of a range, in bytes.
    fn clusters(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        offset - offset % self.cluster..(offset + len).next_multiple_of(self.cluster)
    }

    pub async fn write_data(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let len = data.len() as u64;
        let clusters = self.clusters(offset, len);
        {
            let _shared = self.locks.lock(clusters.clone(), false).await;
            if self.write_in_place(offset, &data).await? {
                return Ok(());
            }
        }
        let _alone = self.locks.lock(clusters, true).await;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let row = self.new_row(at, len - done).await?;
            let n = row.max((self.cluster - at % self.cluster).min(len - done));
            let part = data.slice(done as usize..(done + n) as usize);
            match row {
                0 => self.write_cluster(at, part).await?,
                _ => self.write_row(at, part).await?,
            }
            done += n;
        }
        Ok(())
    }

    /// Bytes, from `offset` on, of whole clusters that have no place yet and can have one at the file's end.
    async fn new_row(&self, offset: u64, len: u64) -> Result<u64, Error> {
        let mut row = 0;
        if offset.is_multiple_of(self.cluster) && self.spare.borrow().is_empty() {
            while row + self.cluster <= len {
                if let Place::At(_) = self.place((offset + row) / self.cluster).await? {
                    break;
                }
                row += self.cluster;
            }
        }
        Ok(row)
    }

    /// Writes whole clusters that have no place, in a row; the caller has them alone.
    async fn write_row(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let count = data.len() as u64 / self.cluster;
        let lost = self.lost_if_dropped();
        let at = self.allocate(data.len() as u64).await?;
        let clusters = (0..count).map(|n| (offset / self.cluster + n, at + n * self.cluster));
        let write = async {
            self.file.write(at, data).await?;
            for (cluster, place) in clusters.clone() {
                self.set_place(cluster, place).await?;
            }
            Ok(())
        };
        let written = write.await;
        if written.is_err() {
            for (cluster, place) in clusters {
                self.keep_unless_placed(cluster, place).await;
            }
        }
        std::mem::forget(lost);
        written
    }

    /// After a failure: a cluster of the file that was for one of the disk is kept for others, unless that has it.
    async fn keep_unless_placed(&self, cluster: u64, at: u64) {
        match self.place(cluster).await {
            Ok(Place::At(now)) if now == at => {}
            Ok(_) => self.keep_spare(at, self.cluster),
            // Nobody knows.
            Err(_) => self.leaked.set(true),
        }
    }

    async fn write_in_place(&self, offset: u64, data: &IoData) -> Result<bool, Error> {
        let len = data.len() as u64;
        let mut parts = Vec::new();
        let mut done = 0;
        while done < len {
            let (place, n) = self.run(offset + done, len - done).await?;
            let Place::At(at) = place else { return Ok(false) };
            parts.push((at, data.slice(done as usize..(done + n) as usize)));
            done += n;
        }
        for (at, part) in parts {
            self.file.write(at, part).await?;
        }
        Ok(true)
    }

    /// Writes a part of one cluster; the caller has it alone.
    async fn write_cluster(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let within = offset % self.cluster;
        let start = offset - within;
        let place = self.place(start / self.cluster).await?;
        if let Place::At(at) = place {
            return self.file.write(at + within, data).await;
        }
        let lost = self.lost_if_dropped();
        let at = self.take_cluster().await?;
        let fill = async {
            let whole = data.len() as u64 == self.cluster;
            let backing = self.backing.borrow().clone();
            let bare = place == Place::Zero || backing.is_none_or(|b| b.size() <= start);
            if whole {
                return self.file.write(at, data).await;
            }
            // What is not written reads as zeros.
            self.file.write_zeroes(at, self.cluster, true).await?;
            if !bare {
                let end = within + data.len() as u64;
                let inside = self.cluster.min(self.size.get() - start);
                for (from, to) in [(0, within), (end, inside.max(end))] {
                    if from < to {
                        let below = self.read_below(start + from, IoBuf::new((to - from) as usize)).await?;
                        self.file.write(at + from, below.freeze()).await?;
                    }
                }
            }
            self.file.write(at + within, data).await
        };
        let filled = match fill.await {
            Ok(()) => self.set_place(start / self.cluster, at).await,
            Err(e) => Err(e),
        };
        if filled.is_err() {
            self.keep_unless_placed(start / self.cluster, at).await;
        }
        std::mem::forget(lost);
        filled
    }

    pub async fn zero_data(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        if len == 0 {
            return Ok(());
        }
        let _alone = self.locks.lock(self.clusters(offset, len), true).await;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let within = at % self.cluster;
            let n = (self.cluster - within).min(end - at);
            let whole = within == 0 && (n == self.cluster || at + n == self.size.get());
            let place = self.place(at / self.cluster).await?;
            let backing = self.backing.borrow().clone();
            let bare = backing.is_none_or(|b| b.size() <= at - within);
            match place {
                Place::Zero => {}
                Place::Below if bare && unmap => {}
                Place::At(host) => self.file.write_zeroes(host + within, n, unmap).await?,
                Place::Below if whole => self.set_place(at / self.cluster, 1).await?,
                Place::Below => self.write_cluster(at, IoBuf::zeroed(n as usize).freeze()).await?,
            }
            at += n;
        }
        Ok(())
    }

    pub async fn grow(&self, size: u64) -> Result<(), Error> {
        let old = self.size.get();
        let doing = || format!("cannot resize '{}'", self.info.name);
        if size < old {
            return Err(Error::new(ErrorKind::Unsupported, doing(), "the format cannot make a disk smaller"));
        }
        let entries = u128::from(self.table / 8);
        if u128::from(size) > entries * entries * u128::from(self.cluster) || !size.is_multiple_of(SECTOR) {
            return Err(Error::new(ErrorKind::Invalid, doing(), "its tables cannot hold so much"));
        }
        let _alone = self.locks.lock(old..u64::MAX, true).await;
        // What is below must not come to light: its notes are there before the size is.
        let last = old + hidden_below(self.backing.borrow().as_ref(), old, size).unwrap_or(0);
        let mut at = old;
        while at < last {
            let within = at % self.cluster;
            let n = (self.cluster - within).min(last - at);
            match self.place(at / self.cluster).await? {
                Place::At(host) => write_zero_bytes(&*self.file, host + within, n).await?,
                Place::Below if within == 0 => self.set_place(at / self.cluster, 1).await?,
                Place::Below => {
                    self.write_cluster(at, IoBuf::zeroed(n as usize).freeze()).await?;
                }
                Place::Zero => {}
            }
            at += n;
        }
        self.commit().await?;
        self.put_header(48, size).await?;
        self.size.set(size);
        Ok(())
    }

    /// Mends what a power cut left.
    pub async fn recover(&self) -> Result<(), Error> {
        let mut report = CheckReport::default();
        let used = self.check_tables(&Progress::default(), &mut report).await?;
        if report.corruptions + report.errors > 0 {
            let why = format!("it was not closed, and cannot be mended: {}", report.messages.join("; "));
            return Err(self.corrupt(why));
        }
        self.use_up(&used, report.image_end).await
    }

    /// Ends the file at `end`, gives clusters before it that are not `used` to parts of the disk that have none, and
    /// takes the mark back. For each cluster that a power cut lost there is such a part: the one it was for.
    pub async fn use_up(&self, used: &HashSet<u64>, end: u64) -> Result<(), Error> {
        self.commit().await?;
        self.spare.take();
        if end < self.file.size() {
            self.file.resize(end).await?;
            self.file.flush().await?;
        }
        self.next.set(end.max(self.file.size()).next_multiple_of(self.cluster));
        let mut guest = 0;
        for hole in (self.header / self.cluster..end / self.cluster).filter(|n| !used.contains(n)) {
            self.mark(true).await?;
            let at = hole * self.cluster;
            while guest * self.cluster < self.size.get() {
                let start = guest * self.cluster;
                let place = self.place(guest).await?;
                guest += 1;
                if let Place::At(_) = place {
                    continue;
                }
                let backing = self.backing.borrow().clone();
                if place == Place::Below && backing.is_some_and(|b| b.size() > start) {
                    let below = self.read_below(start, IoBuf::new(self.cluster as usize)).await?;
                    self.file.write(at, below.freeze()).await?;
                } else {
                    self.file.write_zeroes(at, self.cluster, true).await?;
                }
                self.set_place(guest - 1, at).await?;
                break;
            }
        }
        self.commit().await?;
        self.leaked.set(false);
        self.mark(false).await
    }

    /// Writes another link: its name beside the old one, then the one sector that says where it is.
    pub async fn write_link(&self, link: Option<&BackingLink>) -> Result<(), Error> {
        self.commit().await?;
        let mut features = self.features.get() & !(HAS_BACKING | BACKING_IS_RAW);
        let (mut at, mut len) = (0, 0);
        if let Some(link) = link {
            let doing = || format!("cannot change the backing image of '{}'", self.info.name);
            if link.name.is_empty() || link.name.len() > MAX_NAME as usize {
                let why = format!("its name may have {MAX_NAME} bytes");
                return Err(Error::new(ErrorKind::Invalid, doing(), why));
            }
            features |= HAS_BACKING;
            features |= if link.format == Some(Format::Raw) { BACKING_IS_RAW } else { 0 };
            len = link.name.len() as u64;
            let free = NAME_AT.into_iter().find(|&n| {
                let used = self.link_at.get();
                n + len <= self.header && (n + len <= used || used + u64::from(MAX_NAME) <= n)
            });
            at = free
                .ok_or_else(|| Error::new(ErrorKind::NoSpace, doing(), "its header has no place for it"))?;
            self.file.write(at, IoData::copy_of(link.name.as_bytes())).await?;
            self.file.flush().await?;
        }
        let mut head = self.file.read(0, IoBuf::new(HEADER)).await?;
        head[16..24].copy_from_slice(&features.to_le_bytes());
        head[56..60].copy_from_slice(&(at as u32).to_le_bytes());
        head[60..64].copy_from_slice(&(len as u32).to_le_bytes());
        self.file.write(0, head.freeze()).await?;
        self.file.flush().await?;
        self.features.set(features);
        self.link_at.set(at);
        self.link.replace(link.cloned());
        Ok(())
    }
}

/// Creates an image.
pub async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let CreateRequest { output, size, options, backing, .. } = request;
    let refused =
        |why: String| Error::new(ErrorKind::Invalid, format!("cannot create '{}'", output.name()), why);
    let cluster = options.size("cluster_size")?.unwrap_or(64 << 10);
    if !cluster.is_power_of_two() || !(1 << 12..=1 << 26).contains(&cluster) {
        let why = "QED cluster size must be within range [4096, 67108864] and power of 2";
        return Err(refused(why.to_owned()));
    }
    let clusters = options.number("table_size")?.unwrap_or(4);
    if !clusters.is_power_of_two() || clusters > 16 || clusters * cluster > MAX_TABLE {
        return Err(refused("QED table size must be within range [1, 16] and power of 2".to_owned()));
    }
    let table = clusters * cluster;
    let entries = u128::from(table / 8);
    if u128::from(size) > entries * entries * u128::from(cluster) {
        return Err(refused(
            "QED image size must be a non-zero multiple of cluster size and less than the tables can hold"
                .to_owned(),
        ));
    }
    let file = output.main().await?;
    let mut head = IoBuf::zeroed(cluster as usize);
    head[..4].copy_from_slice(b"QED\0");
    for (at, word) in [(4, cluster), (8, clusters), (12, 1)] {
        head[at..at + 4].copy_from_slice(&(word as u32).to_le_bytes());
    }
    for (at, long) in [(40, cluster), (48, size)] {
        head[at..at + 8].copy_from_slice(&long.to_le_bytes());
    }
    file.write_zeroes(0, cluster + table, true).await?;
    file.write(0, head.freeze()).await?;
    file.flush().await?;
    let links: Rc<dyn Links> = Rc::new(NoLinks);
    let options = OpenOptions { no_backing: true, ..OpenOptions::default() };
    let image = open_image(OpenRequest { file, links, options }).await?;
    if let Some(backing) = &backing {
        image.write_link(Some(&backing.link)).await?;
        image.backing.replace(Some(backing.below()));
    }
    Ok(Rc::new(image))
}
