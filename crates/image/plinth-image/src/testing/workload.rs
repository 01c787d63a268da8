//! Random work on a disk, with a shadow that knows what each sector may hold.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Random;
use crate::SECTOR;
use crate::graph::{IoBuf, IoData, Node, is_zero};

/// A sector's contents: zeros, or a stamp that is unique to the write.
type Stamp = u64;

/// One value that a sector was given.
#[derive(Clone, Debug)]
struct Value {
    stamp: Stamp,
    /// When the request was submitted and completed, on the caller's clock; `None`: not, or it failed.
    submitted: usize,
    completed: Option<usize>,
}

/// What every sector of a disk may hold.
#[derive(Debug, Default)]
pub struct Shadow {
    /// Values since the last flush that is known to be complete, oldest first. A sector that is not here holds
    /// what `below` says.
    sectors: RefCell<HashMap<u64, Vec<Value>>>,
    /// Contents of the disk before any write, by sector; others are zeros.
    pub below: HashMap<u64, Vec<u8>>,
    /// Flushes: when submitted, when complete.
    flushes: RefCell<Vec<(usize, usize)>>,
    /// Requests that failed.
    failed: Cell<u64>,
}

fn fill(sector: u64, stamp: Stamp, out: &mut [u8]) {
    if stamp == 0 {
        out.fill(0);
        return;
    }
    for (n, word) in out.chunks_mut(16).enumerate() {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(stamp ^ (n as u64) << 56).to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// True if [`fill`] gives these bytes.
fn holds(sector: u64, stamp: Stamp, bytes: &[u8]) -> bool {
    if stamp == 0 {
        return is_zero(bytes);
    }
    let mut want = [0; SECTOR as usize];
    let want = &mut want[..bytes.len()];
    // The first words tell most that differ.
    fill(sector, stamp, &mut want[..16]);
    want[..16] == bytes[..16] && {
        fill(sector, stamp, want);
        want == bytes
    }
}

impl Shadow {
    fn note(&self, sector: u64, stamp: Stamp, submitted: usize) -> usize {
        let mut sectors = self.sectors.borrow_mut();
        let values = sectors.entry(sector).or_default();
        values.push(Value { stamp, submitted, completed: None });
        values.len() - 1
    }

    fn complete(&self, sector: u64, index: usize, now: usize) {
        if let Some(v) = self.sectors.borrow_mut().get_mut(&sector).and_then(|v| v.get_mut(index)) {
            v.completed = Some(now);
        }
    }

    fn is(&self, sector: u64, stamp: Option<Stamp>, bytes: &[u8]) -> bool {
        match stamp {
            Some(stamp) => holds(sector, stamp, bytes),
            None => match self.below.get(&sector) {
                Some(below) => below == bytes,
                None => is_zero(bytes),
            },
        }
    }

    /// True if a sector may hold `bytes` now: the last value that was completed, or one that failed since.
    fn allows(&self, sector: u64, bytes: &[u8]) -> bool {
        self.allows_at(sector, bytes, None)
    }

    /// When the last flush was submitted that was complete at time `cut`.
    fn safe_at(&self, cut: usize) -> Option<usize> {
        self.flushes.borrow().iter().filter(|f| f.1 <= cut).map(|f| f.0).max()
    }

    /// With a power cut at the second time of `cut`: the last value that a flush covered, which was submitted at
    /// the first, or any that was submitted later.
    fn allows_at(&self, sector: u64, bytes: &[u8], cut: Option<(Option<usize>, usize)>) -> bool {
        let sectors = self.sectors.borrow();
        let values = sectors.get(&sector).map_or(&[][..], Vec::as_slice);
        let covered = |v: &Value| match cut {
            Some((safe, _)) => v.completed.is_some_and(|c| safe.is_some_and(|s| c <= s)),
            None => v.completed.is_some(),
        };
        let last = values.iter().rposition(covered);
        let later = &values[last.map_or(0, |n| n + 1)..];
        let begun = |v: &Value| cut.is_none_or(|(_, cut)| v.submitted <= cut);
        self.is(sector, last.map(|n| values[n].stamp), bytes)
            || later.iter().any(|v| begun(v) && self.is(sector, Some(v.stamp), bytes))
    }

    /// Notes that `work` makes all of a disk zeros, of `size` bytes.
    ///
    /// # Errors
    /// The work's: the disk then holds what it held, or zeros.
    pub async fn empty<E>(
        &self,
        size: u64,
        now: &dyn Fn() -> usize,
        work: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let submitted = now();
        let notes: Vec<_> = (0..size / SECTOR).map(|s| (s, self.note(s, 0, submitted))).collect();
        work.await?;
        for (sector, index) in notes {
            self.complete(sector, index, now());
        }
        Ok(())
    }

    /// Requests that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.get()
    }

    /// Reads the whole disk and compares; with `cut`, with what is legal after a power cut then.
    ///
    /// # Errors
    /// What is wrong where; the first one.
    pub async fn verify(&self, disk: &dyn Node, cut: Option<usize>) -> Result<(), String> {
        const AT_ONCE: u64 = 1 << 20;
        let mut at = 0;
        let cut = cut.map(|cut| (self.safe_at(cut), cut));
        while at < disk.size() {
            let n = AT_ONCE.min(disk.size() - at);
            let data = disk.read(at, IoBuf::new(n as usize)).await.map_err(|e| e.to_string())?;
            for (i, bytes) in data.chunks(SECTOR as usize).enumerate() {
                let sector = at / SECTOR + i as u64;
                if !self.allows_at(sector, bytes, cut) {
                    let values = self.sectors.borrow().get(&sector).cloned();
                    return Err(format!(
                        "sector {sector} holds {:02x?}..., not one of {values:x?}",
                        &bytes[..16]
                    ));
                }
            }
            at += n;
        }
        Ok(())
    }
}

/// Random requests.
#[derive(Clone, Debug)]
pub struct Workload {
    /// All follows from it.
    pub seed: u64,
    /// Requests.
    pub requests: usize,
    /// In flight at once.
    pub depth: usize,
    /// Bytes that most requests fit into and are placed at multiples of: the format's cluster.
    pub cluster: u64,
    /// Flushes among the requests: one in so many.
    pub flush_one_in: u64,
    /// Errors are expected; each leaves old or new contents.
    pub may_fail: bool,
}

enum Kind {
    Write,
    Zero { unmap: bool },
    Discard,
    Read,
    Flush,
}

impl Workload {
    /// Work of so many requests.
    #[must_use]
    pub fn new(seed: u64, requests: usize) -> Self {
        Self { seed, requests, depth: 8, cluster: 65536, flush_one_in: 12, may_fail: false }
    }

    fn range(&self, random: &mut Random, size: u64) -> (u64, u64) {
        let sectors = size / SECTOR;
        let cluster = (self.cluster / SECTOR).max(1);
        // Half of the work is in a small part of the disk, so that clusters are hit again.
        let span = if random.one_in(2) { sectors.min(cluster * 16) } else { sectors };
        let (start, len) = match random.below(4) {
            0 => (random.below(span) / cluster * cluster, cluster * (1 + random.below(3))),
            1 => (random.below(span), 1 + random.below(4)),
            _ => (random.below(span), 1 + random.below(cluster + cluster / 2)),
        };
        (start, len.min(sectors - start))
    }

    /// Does it all, and checks every read. `now` is the caller's clock, which never goes back.
    ///
    /// # Errors
    /// What is wrong: contents, or an error where none may be.
    pub async fn run(&self, disk: &dyn Node, shadow: &Shadow, now: &dyn Fn() -> usize) -> Result<(), String> {
        let mut random = Random::new(self.seed);
        // Ranges of requests in flight, which do not overlap, so that every sector's contents are known.
        let busy: RefCell<Vec<(u64, u64)>> = RefCell::default();
        let mut running = FuturesUnordered::new();
        for n in 0..self.requests {
            while running.len() >= self.depth {
                running.next().await.unwrap_or(Ok(()))?;
            }
            let kind = match random.below(100) {
                _ if random.one_in(self.flush_one_in) => Kind::Flush,
                0..60 => Kind::Write,
                60..75 => Kind::Zero { unmap: random.one_in(2) },
                75..82 => Kind::Discard,
                _ => Kind::Read,
            };
            let (start, len) = loop {
                let (start, len) = self.range(&mut random, disk.size());
                if len > 0 && !busy.borrow().iter().any(|&(s, l)| start < s + l && s < start + len) {
                    break (start, len);
                }
                if !running.is_empty() {
                    running.next().await.unwrap_or(Ok(()))?;
                }
            };
            busy.borrow_mut().push((start, len));
            let stamp = (n as u64 + 1) << 16 | (self.seed & 0xffff);
            let busy = &busy;
            running.push(async move {
                let result = self.one(disk, shadow, now, &kind, start, len, stamp).await;
                busy.borrow_mut().retain(|&r| r != (start, len));
                result
            });
        }
        while let Some(result) = running.next().await {
            result?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "one request's parts")]
    async fn one(
        &self,
        disk: &dyn Node,
        shadow: &Shadow,
        now: &dyn Fn() -> usize,
        kind: &Kind,
        start: u64,
        len: u64,
        stamp: Stamp,
    ) -> Result<(), String> {
        let (offset, bytes) = (start * SECTOR, len * SECTOR);
        let submitted = now();
        let (stamp, result) = match kind {
            Kind::Read => match disk.read(offset, IoBuf::new(bytes as usize)).await {
                Ok(data) => {
                    for (i, chunk) in data.chunks(SECTOR as usize).enumerate() {
                        if !shadow.allows(start + i as u64, chunk) {
                            return Err(format!(
                                "sector {} reads {:02x?}...",
                                start + i as u64,
                                &chunk[..16]
                            ));
                        }
                    }
                    return Ok(());
                }
                Err(e) => (None, Err(e)),
            },
            Kind::Flush => {
                let result = disk.flush().await;
                if result.is_ok() {
                    shadow.flushes.borrow_mut().push((submitted, now()));
                }
                (None, result)
            }
            // What a discard leaves is old or zeros, so it is noted as zeros that never were completed.
            Kind::Discard | Kind::Write | Kind::Zero { .. } => {
                let stamp = if matches!(kind, Kind::Write) { stamp } else { 0 };
                let notes: Vec<_> =
                    (start..start + len).map(|s| (s, shadow.note(s, stamp, submitted))).collect();
                let result = match kind {
                    Kind::Discard => disk.discard(offset, bytes).await,
                    Kind::Zero { unmap } => disk.write_zeroes(offset, bytes, *unmap).await,
                    _ => {
                        let mut data = IoBuf::new(bytes as usize);
                        for (i, chunk) in data.chunks_mut(SECTOR as usize).enumerate() {
                            fill(start + i as u64, stamp, chunk);
                        }
                        disk.write(offset, IoData::from(data)).await
                    }
                };
                let complete = result.is_ok() && !matches!(kind, Kind::Discard);
                (Some(notes).filter(|_| complete), result)
            }
        };
        if let Some(notes) = stamp {
            for (sector, index) in notes {
                shadow.complete(sector, index, now());
            }
        }
        match result {
            Err(e) if !self.may_fail => Err(format!("a request failed: {e}")),
            Err(_) => {
                shadow.failed.set(shadow.failed.get() + 1);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
