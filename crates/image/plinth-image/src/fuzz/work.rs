//! What is done to an image, and what it should hold.

use std::rc::Rc;

use super::script::{Input, Step, script};
use super::seeds::Files;
use super::{READ, SECRET};
use crate::crypt::KeyCost;
use crate::format::{Format, Image, OpenOptions, OpenRequest, Progress, Repair, Snapshot, luks, qcow2};
use crate::graph::{IoBuf, IoData, MemoryNode, Node, is_zero};
use crate::{Error, ErrorKind};

/// What a sound image holds.
pub struct Model {
    /// The disk; `None` when something failed that may have changed it.
    disk: Option<MemoryNode>,
    snapshots: Vec<(&'static str, MemoryNode)>,
}

impl Model {
    pub fn new(disk: MemoryNode) -> Self {
        Self { disk: Some(disk), snapshots: Vec::new() }
    }
}

/// An image and what to do with it.
pub struct Work {
    pub format: Format,
    pub read_only: bool,
    pub no_backing: bool,
    pub files: Files,
    /// There is one if the image is sound.
    pub model: Option<Model>,
}

/// Errors that a sound image may give.
fn tolerable(e: &Error) -> bool {
    !matches!(e.kind, ErrorKind::Corrupt | ErrorKind::Io | ErrorKind::Format)
}

impl Work {
    async fn open(&self, for_check: bool) -> Result<Rc<dyn Image>, Error> {
        // Keys of honest images take longer, but that is no news.
        const COST: KeyCost = KeyCost { iterations: 40_000, memory: 2048, work: 16 << 10 };
        let options = OpenOptions {
            format: Some(self.format),
            read_only: self.read_only,
            secret: Some(SECRET.into()),
            no_backing: self.no_backing,
            for_check,
            ..OpenOptions::default()
        };
        let request = OpenRequest { file: self.files.main(), links: Rc::new(self.files.clone()), options };
        match self.format.driver() {
            _ if self.format == Format::Luks => luks::open_with(request, COST).await,
            _ if self.format == Format::Qcow2 => qcow2::open_with(request, COST).await,
            Some(driver) => (driver.open)(request).await,
            None => unreachable!("a format without a driver is not tested"),
        }
    }

    /// What a request gave: whether it did what it should. A sound image does not complain of itself.
    fn judge(&mut self, what: &str, result: Result<(), Error>) -> bool {
        let Err(e) = result else { return true };
        let Some(model) = &mut self.model else { return false };
        assert!(tolerable(&e), "a sound image fails to {what}: {e}");
        let refused =
            [ErrorKind::ReadOnly, ErrorKind::Unsupported, ErrorKind::OutOfRange, ErrorKind::Invalid];
        if !refused.contains(&e.kind) {
            model.disk = None;
        }
        false
    }

    pub async fn run(mut self, input: &mut Input<'_>) {
        let mut image = match self.open(false).await {
            Ok(image) => image,
            Err(e) => {
                assert!(self.model.is_none(), "a sound image is not opened: {e}");
                return self.mend().await;
            }
        };
        let _description = image.describe();
        // A sound one is looked at in the end.
        if self.model.is_none() {
            self.look(&*image).await;
        }
        for step in script(input, image.size()) {
            if matches!(step, Step::Reopen) {
                let closed = image.close().await;
                self.judge("close", closed);
                drop(image);
                image = match self.open(false).await {
                    Ok(image) => image,
                    Err(e) => {
                        assert!(self.model.is_none(), "a sound image is not opened again: {e}");
                        return;
                    }
                };
            } else {
                self.step(&*image, step).await;
            }
        }
        let closed = image.close().await;
        self.judge("close", closed);
        drop(image);
        if self.model.is_some() {
            match self.open(false).await {
                Ok(image) => self.look(&*image).await,
                Err(e) => panic!("a sound image is not opened any more: {e}"),
            }
        }
    }

    /// Mends what can only be opened for that.
    async fn mend(&self) {
        let Ok(image) = self.open(true).await else { return };
        let _report = image.check(Repair::All, &Progress::default()).await;
        let _closed = image.close().await;
    }

    /// Reads here and there; all of a small sound image. Checks it.
    async fn look(&mut self, image: &dyn Image) {
        const ALL: u64 = 64 << 10;
        let size = image.size();
        let disk = self.model.as_ref().and_then(|m| m.disk.as_ref());
        if let Some(disk) = disk {
            assert_eq!(disk.size(), size, "the disk's size");
        }
        let places = if disk.is_some() && size <= ALL {
            vec![(0, size)]
        } else {
            [0, size / 3, size.saturating_sub(READ) / 512 * 512].map(|at| (at, (at + READ).min(size))).into()
        };
        for (mut at, end) in places {
            let mut extents = 0;
            while at < end && extents < 16 {
                extents += 1;
                let (known, len) = match image.status(at, end - at).await {
                    Ok(extent) => {
                        assert!(
                            extent.len > 0 && extent.len <= end - at,
                            "an extent of {} bytes",
                            extent.len
                        );
                        (extent.zero, extent.len)
                    }
                    Err(_) => (false, (end - at).min(4096)),
                };
                // What is known to be zeros need not be read where nobody knows better.
                if !known || disk.is_some() {
                    let read = image.read(at, IoBuf::new(len as usize)).await;
                    if let Some(disk) = disk {
                        let read = read.unwrap_or_else(|e| panic!("a sound image is not read: {e}"));
                        assert!(!known || is_zero(&read), "zeros at {at} are none");
                        same(disk, at, &read);
                    }
                }
                at += len;
            }
        }
        let report = image.check(Repair::No, &Progress::default()).await;
        if self.model.is_some() && !self.read_only {
            match report {
                Ok(report) => assert!(report.is_clean(), "{report:?}"),
                Err(e) => assert!(tolerable(&e), "a sound image is not checked: {e}"),
            }
        }
    }

    async fn step(&mut self, image: &dyn Image, step: Step) {
        let size = image.size();
        let fits = |at: u64, len: u64| at <= size && len <= size - at;
        match step {
            Step::Write { at, len, .. } | Step::Zero { at, len, .. } | Step::Discard { at, len }
                if !fits(at, len) => {}
            Step::Write { at, len, byte } => {
                let data: Vec<u8> = (0..len).map(|n| byte ^ (n / 512) as u8).collect();
                let result = image.write(at, IoData::copy_of(&data)).await;
                self.wrote("write", result, at, &data);
            }
            Step::Packed { at, byte } => {
                let cluster = image.describe().cluster_size.unwrap_or(4096).min(65536);
                let at = at / cluster * cluster;
                if at < size
                    && let data = vec![byte; cluster.min(size - at) as usize]
                    && let Some(write) = image.write_compressed(at, IoData::copy_of(&data))
                {
                    let result = write.await;
                    self.wrote("write compressed data", result, at, &data);
                }
            }
            Step::Zero { at, len, unmap } => {
                let result = image.write_zeroes(at, len, unmap).await;
                self.wrote("write zeros", result, at, &vec![0; len as usize]);
            }
            Step::Discard { at, len } => {
                let result = image.discard(at, len).await;
                if self.judge("discard", result)
                    && let Some(disk) = self.model.as_ref().and_then(|m| m.disk.as_ref())
                {
                    let now = image.read(at, IoBuf::new(len as usize)).await;
                    let now = now.unwrap_or_else(|e| panic!("a sound image is not read: {e}"));
                    let mut old = vec![0; len as usize];
                    disk.get(at, &mut old);
                    assert!(now.iter().zip(&old).all(|(&n, &o)| n == o || n == 0), "discarded at {at}");
                    disk.put(at, &now);
                }
            }
            Step::Read { at, len } => {
                if fits(at, len) {
                    let read = image.read(at, IoBuf::new(len as usize)).await;
                    if let Some(disk) = self.model.as_ref().and_then(|m| m.disk.as_ref()) {
                        same(disk, at, &read.unwrap_or_else(|e| panic!("a sound image is not read: {e}")));
                    }
                }
            }
            Step::Flush => drop(image.flush().await),
            Step::Check(how) => {
                let repair = [Repair::No, Repair::Leaks, Repair::All][usize::from(how % 3)];
                let report = image.check(repair, &Progress::default()).await;
                if self.model.is_some() && !self.read_only {
                    assert!(report.as_ref().map_or_else(tolerable, |r| r.is_clean()), "{report:?}");
                }
            }
            Step::Resize(to) => {
                let result = image.resize(to).await;
                if self.judge("resize", result)
                    && let Some(disk) = self.model.as_ref().and_then(|m| m.disk.as_ref())
                {
                    disk.set_size(image.size());
                }
            }
            Step::Snapshot(how) => self.snapshot(image, how).await,
            Step::Bitmap(how) => bitmap(image, how, self.model.is_some()).await,
            Step::Unlink => {
                if image.set_backing(None).await.is_ok()
                    && let Some(model) = &mut self.model
                {
                    // Snapshots showed what was below, too.
                    model.disk = None;
                    model.snapshots.clear();
                }
            }
            Step::Reopen => unreachable!("the caller does it"),
        }
    }

    fn wrote(&mut self, what: &str, result: Result<(), Error>, at: u64, data: &[u8]) {
        if self.judge(what, result)
            && let Some(disk) = self.model.as_ref().and_then(|m| m.disk.as_ref())
        {
            disk.put(at, data);
        }
    }

    async fn snapshot(&mut self, image: &dyn Image, how: u8) {
        let Some(snapshots) = image.snapshots() else { return };
        let name = ["s", "t", "u"][usize::from(how & 3).min(2)];
        let is_there = snapshots.list().iter().any(|s| s.name == name);
        match how >> 2 & 3 {
            0 if !is_there || self.model.is_none() => {
                let template =
                    Snapshot { name: name.to_owned(), date: (1, 2), vm_clock: 3, ..Snapshot::default() };
                let result = snapshots.create(&template).await.map(drop);
                if self.judge("take a snapshot", result)
                    && let Some(model) = &mut self.model
                    && let Some(disk) = &model.disk
                {
                    model.snapshots.push((name, disk.clone()));
                }
            }
            1 => {
                let result = snapshots.apply(name).await;
                let done = result.is_ok();
                if is_there {
                    self.judge("apply a snapshot", result);
                }
                if let Some(model) = self.model.as_mut().filter(|_| done) {
                    let kept = model.snapshots.iter().find(|s| s.0 == name);
                    model.disk = kept.map(|s| s.1.clone());
                }
            }
            2 => {
                let result = snapshots.delete(name).await;
                let done = result.is_ok();
                if is_there {
                    self.judge("delete a snapshot", result);
                }
                if let Some(model) = self.model.as_mut().filter(|_| done) {
                    model.snapshots.retain(|s| s.0 != name);
                }
            }
            _ => {
                let Ok(view) = snapshots.view(name).await else { return };
                let read = view.read(0, IoBuf::new(view.size().min(READ) as usize)).await;
                let kept = self.model.iter().flat_map(|m| &m.snapshots).find(|s| s.0 == name);
                if let Some((_, disk)) = kept {
                    same(disk, 0, &read.unwrap_or_else(|e| panic!("a sound snapshot is not read: {e}")));
                }
            }
        }
    }
}

/// Fails unless the disk has these bytes there.
fn same(disk: &MemoryNode, at: u64, bytes: &[u8]) {
    let mut want = vec![0; bytes.len()];
    disk.get(at, &mut want);
    if bytes == want {
        return;
    }
    let wrong = bytes.iter().zip(&want).position(|(a, b)| a != b);
    if let Some(n) = wrong {
        panic!("byte {} is {:#x}, not {:#x}", at + n as u64, bytes[n], want[n]);
    }
}

async fn bitmap(image: &dyn Image, how: u8, sound: bool) {
    let Some(bitmaps) = image.bitmaps() else { return };
    let name = ["b", "c"][usize::from(how & 1)];
    let size = image.size();
    let result = match how >> 1 & 7 {
        0 => bitmaps.add(name, Some(512 << (how >> 5)), how & 16 != 0).await,
        1 => bitmaps.remove(name).await,
        2 => bitmaps.clear(name).await,
        3 => bitmaps.enable(name, how & 16 != 0).await,
        4 => bitmaps.set(name, &[(size / 4 / 512 * 512, 4096.min(size / 2))]).await,
        _ => bitmaps.ranges(name).await.map(drop),
    };
    if let Err(e) = result {
        assert!(!sound || tolerable(&e), "a bitmap of a sound image: {e}");
    }
}
