//! The copy engine: many requests in flight, holes not read, zeros not written.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, TryStreamExt};
use plinth_host::aio;

use super::plan::{Kind, Plan, Run};
use crate::format::{Image, Progress};
use crate::graph::{IoBuf, IoData, Node, is_zero};
use crate::{Error, ErrorKind, SECTOR};

/// How to copy.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// Bytes that are read at once; a power of two, at least 4096.
    pub piece: u64,
    /// Writes in flight, and half as many reads.
    pub in_flight: usize,
    /// Write in the disk's order, one after the other.
    pub in_order: bool,
    /// The target reads as zeros before, so zeros need not be written.
    pub target_is_zero: bool,
    /// Runs of zeros of at least so many bytes are not written as data. 0: everything is written as data.
    pub zero_run: u64,
    /// Granularity in which zeros are looked for, at least: a power of two.
    pub zero_grain: u64,
    /// Zeros are noted in the target where it has nothing, too, so that nothing that is put below it later shows.
    pub note_zeros: bool,
    /// Progress counts what is read or written as data, not the whole disk. What that is has to be found out first.
    pub progress_by_data: bool,
    /// Write compressed clusters.
    pub compress: bool,
    /// Only what the uppermost layers have, so many of them; what they do not have is left alone in the target.
    pub layers: Option<u32>,
    /// With `layers`: not a byte more than they have. For a source that is open without what is below it, where
    /// everything else reads as zeros; a target that is open over what is below it keeps the rest.
    pub exact: bool,
    /// Take zeros for what cannot be read.
    pub salvage: bool,
    /// Bytes of a second at most.
    pub rate: Option<u64>,
    /// Files of one file system may share the space of what they have in common, if it can do that: data is read, to
    /// find zeros, and not written then. Not where zeros are written as data, too.
    pub share: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            piece: 1 << 20,
            in_flight: 8,
            in_order: false,
            target_is_zero: false,
            zero_run: 32 << 10,
            zero_grain: GRAIN,
            note_zeros: false,
            progress_by_data: false,
            compress: false,
            layers: None,
            exact: false,
            salvage: false,
            rate: None,
            share: true,
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that were written as data.
    pub written: u64,
    /// Ranges (first byte, length) that could not be read, with [`CopyOptions::salvage`]; the first ones.
    pub unreadable: Vec<(u64, u64)>,
}

/// Granularity in which zeros are looked for, if nothing else is said.
const GRAIN: u64 = 4096;
/// Unreadable ranges that are reported.
const MAX_UNREADABLE: usize = 1000;

/// A step of writing, and the bytes of it that progress counts.
type Counted = (Step, u64);

/// A step of writing.
enum Step {
    Data(u64, IoData),
    Zero(u64, u64),
    Nothing(u64),
}

struct Copier<'a> {
    source: &'a dyn Node,
    target: &'a dyn Image,
    options: &'a CopyOptions,
    /// What is added to a byte's place in the source.
    shift: i128,
    /// Steps begin and end at multiples of it.
    align: u64,
    report: Rc<Cell<CopyReport>>,
    started: Instant,
    pace: Cell<u64>,
}

/// Copies `range` of `source` to byte `at` of `target`.
///
/// # Errors
/// The nodes'; [`ErrorKind::Unsupported`] if the target's format has no compression. Whatever is in flight then is
/// given up.
pub async fn copy(
    source: &dyn Node,
    range: Range<u64>,
    target: &dyn Image,
    at: u64,
    options: &CopyOptions,
    progress: &Progress,
) -> Result<CopyReport, Error> {
    let cluster = target.describe().cluster_size.filter(|c| c.is_power_of_two()).unwrap_or(GRAIN);
    let align = match options {
        CopyOptions { compress: true, .. } => cluster,
        CopyOptions { exact: true, .. } => SECTOR,
        // What is written of a cluster at once needs no second look at it.
        _ => cluster.clamp(GRAIN, 64 << 10),
    };
    let copier = Copier {
        source,
        target,
        options,
        shift: i128::from(at) - i128::from(range.start),
        align,
        report: Rc::default(),
        started: Instant::now(),
        pace: Cell::new(0),
    };
    let piece = options.piece.max(align);
    if options.progress_by_data {
        let plan = Plan::new(source, range.clone(), align, piece, options.layers).salvage(options.salvage);
        let mut total = 0;
        while let Some(run) = plan.next().await? {
            total += copier.counted(run);
        }
        progress.total.set(total);
    }
    let plan = Plan::new(source, range, align, piece, options.layers).salvage(options.salvage);
    let runs = stream::try_unfold(&plan, async |plan| Ok(plan.next().await?.map(|run| (run, plan))));
    let reads = options.in_flight.div_ceil(2);
    // Compressed clusters are small: there have to be enough of them for all CPUs.
    let writes = match (options.in_order, options.compress) {
        (true, _) => 1,
        (_, true) => (piece / align) as usize * 4,
        _ => options.in_flight,
    };
    runs.map_ok(|run| copier.read(run))
        .try_buffered(reads)
        .map_ok(|(run, data)| stream::iter(copier.counted_steps(run, data).into_iter().map(Ok)))
        .try_flatten()
        .map_ok(|step| copier.write(step, progress))
        .try_buffer_unordered(writes)
        .try_collect::<()>()
        .await?;
    let mut report = copier.report.take();
    // Requests are answered in any order.
    report.unreadable.sort_unstable();
    report.unreadable.dedup_by(|next, last| {
        let joins = last.0 + last.1 == next.0;
        if joins {
            last.1 += next.1;
        }
        joins
    });
    Ok(report)
}

impl Copier<'_> {
    fn count(&self, change: impl FnOnce(&mut CopyReport)) {
        let mut report = self.report.take();
        change(&mut report);
        self.report.set(report);
    }

    async fn read(&self, run: Run) -> Result<(Run, Option<IoData>), Error> {
        if run.kind != Kind::Data {
            return Ok((run, None));
        }
        self.wait_for_turn(run.len).await;
        let buf = match self.source.read(run.offset, IoBuf::new(run.len as usize)).await {
            Ok(buf) => buf,
            Err(e) if !self.options.salvage || e.kind != ErrorKind::Io => return Err(e),
            Err(_) => self.salvage(run).await?,
        };
        self.count(|r| r.read += run.len);
        let data = buf.freeze();
        let share = self.options.share && self.options.zero_run > 0;
        Ok((run, Some(if share { data } else { data.without_origin() })))
    }

    /// Keeps to the rate, if there is one.
    async fn wait_for_turn(&self, len: u64) {
        let Some(rate) = self.options.rate.filter(|&r| r > 0) else { return };
        let due = Duration::from_secs_f64(self.pace.get() as f64 / rate as f64);
        self.pace.set(self.pace.get() + len);
        if let Some(early) = due.checked_sub(self.started.elapsed()) {
            aio::sleep(early).await;
        }
    }

    /// Reads sector by sector, with zeros for those that cannot be read.
    async fn salvage(&self, run: Run) -> Result<IoBuf, Error> {
        let mut all = IoBuf::zeroed(run.len as usize);
        for at in (0..run.len).step_by(SECTOR as usize) {
            let n = SECTOR.min(run.len - at);
            match self.source.read(run.offset + at, IoBuf::new(n as usize)).await {
                Ok(part) => all[at as usize..(at + n) as usize].copy_from_slice(&part),
                Err(e) if e.kind == ErrorKind::Io => self.count(|r| {
                    let place = run.offset + at;
                    let room = r.unreadable.len() < MAX_UNREADABLE;
                    match r.unreadable.last_mut() {
                        Some((from, len)) if *from + *len == place => *len += n,
                        _ if room => r.unreadable.push((place, n)),
                        _ => {}
                    }
                }),
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// Bytes of a run that progress counts.
    fn counted(&self, run: Run) -> u64 {
        let data = match run.kind {
            Kind::Data => true,
            Kind::Zero => self.options.zero_run == 0,
            Kind::Absent => false,
        };
        if data || !self.options.progress_by_data { run.len } else { 0 }
    }

    fn place(&self, offset: u64) -> u64 {
        (i128::from(offset) + self.shift) as u64
    }

    fn counted_steps(&self, run: Run, data: Option<IoData>) -> Vec<Counted> {
        let counts = self.counted(run) > 0;
        let len = |step: &Step| match step {
            Step::Data(_, data) => data.len() as u64,
            Step::Zero(_, len) | Step::Nothing(len) => *len,
        };
        let steps = self.steps(run, data).into_iter();
        steps
            .map(|s| {
                let n = if counts { len(&s) } else { 0 };
                (s, n)
            })
            .collect()
    }

    /// What to do about a run.
    fn steps(&self, run: Run, data: Option<IoData>) -> Vec<Step> {
        let at = self.place(run.offset);
        let Some(data) = data else {
            return match run.kind {
                Kind::Absent => vec![Step::Nothing(run.len)],
                _ if self.options.zero_run == 0 => self.written_zeros(at, run.len),
                _ => vec![Step::Zero(at, run.len)],
            };
        };
        if self.options.compress {
            let whole = |n: usize| n * self.align as usize..((n + 1) * self.align as usize).min(data.len());
            let clusters = (0..data.len().div_ceil(self.align as usize)).map(whole);
            return clusters
                .map(|r| {
                    let place = at + r.start as u64;
                    let part = data.slice(r);
                    if self.options.zero_run > 0 && is_zero(&part) {
                        Step::Zero(place, part.len() as u64)
                    } else {
                        Step::Data(place, part)
                    }
                })
                .collect();
        }
        if self.options.zero_run == 0 {
            return vec![Step::Data(at, data)];
        }
        let runs =
            zero_runs(&data, at, self.align.max(GRAIN).max(self.options.zero_grain), self.options.zero_run);
        runs.into_iter()
            .map(|(r, zero)| {
                let place = at + r.start as u64;
                if zero { Step::Zero(place, r.len() as u64) } else { Step::Data(place, data.slice(r)) }
            })
            .collect()
    }

    /// A hole that is to be written as data.
    fn written_zeros(&self, at: u64, len: u64) -> Vec<Step> {
        let most = if self.options.compress { self.align } else { self.options.piece };
        let zeros = IoBuf::zeroed(len.min(most) as usize).freeze();
        let step = zeros.len() as u64;
        (0..len.div_ceil(step))
            .map(|n| Step::Data(at + n * step, zeros.slice(..step.min(len - n * step) as usize)))
            .collect()
    }

    async fn write(&self, (step, counted): Counted, progress: &Progress) -> Result<(), Error> {
        match step {
            Step::Data(at, data) => {
                let len = data.len() as u64;
                if self.options.compress {
                    let Some(write) = self.target.write_compressed(at, data) else {
                        let doing = format!("cannot compress '{}'", self.target.info().name);
                        let why = format!("the format {} has no compression", self.target.format());
                        return Err(Error::new(ErrorKind::Unsupported, doing, why));
                    };
                    write.await?;
                } else {
                    self.target.write(at, data).await?;
                }
                self.count(|r| r.written += len);
            }
            Step::Zero(at, len) => {
                if !self.options.target_is_zero {
                    self.target.write_zeroes(at, len, true).await?;
                    if self.options.note_zeros {
                        // What has no place by now gets a note; the rest is zeros already.
                        self.target.write_zeroes(at, len, false).await?;
                    }
                }
            }
            Step::Nothing(_) => {}
        }
        if counted > 0 {
            progress.add(counted);
        }
        Ok(())
    }
}

/// Cuts bytes that belong at `at` into runs that are zeros and runs that are not, at multiples of `grain`. Zeros
/// shorter than `least` bytes belong to the data around them.
fn zero_runs(data: &[u8], at: u64, grain: u64, least: u64) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let mut start = 0;
    while start < data.len() {
        let len = (grain - (at + start as u64) % grain) as usize;
        let end = (start + len).min(data.len());
        let zero = is_zero(&data[start..end]);
        match runs.last_mut() {
            Some((last, z)) if *z == zero => last.end = end,
            _ => runs.push((start..end, zero)),
        }
        start = end;
    }
    if runs.len() == 1 {
        return runs;
    }
    let mut merged: Vec<(Range<usize>, bool)> = Vec::with_capacity(runs.len());
    for (range, zero) in runs {
        let zero = zero && range.len() as u64 >= least;
        match merged.last_mut() {
            Some((last, z)) if *z == zero => last.end = range.end,
            _ => merged.push((range, zero)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_zeros_stay_with_the_data_around_them() {
        let mut data = vec![0; 64 << 10];
        assert_eq!(zero_runs(&data, 0, 4096, 4096), [(0..65536, true)]);
        data[0] = 1;
        data[20_000] = 1;
        assert_eq!(zero_runs(&data, 0, 4096, 32 << 10), [(0..20480, false), (20480..65536, true)]);
        assert_eq!(
            zero_runs(&data, 0, 4096, 4096),
            [(0..4096, false), (4096..16384, true), (16384..20480, false), (20480..65536, true)]
        );
        // Runs begin at multiples in the target, not in the buffer.
        assert_eq!(zero_runs(&data[..8192], 512, 4096, 4096)[0], (0..3584, false));
    }
}
