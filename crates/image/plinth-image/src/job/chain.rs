//! Moving contents between an image and the one below it.

use futures_util::stream::{self, TryStreamExt};

use super::plan::{Kind, Plan};
use super::{CopyOptions, CopyReport, copy};
use crate::format::image::unsupported;
use crate::format::{Image, Progress};
use crate::graph::{IoBuf, IoData, Node, is_zero, write_zero_bytes};
use crate::{Error, SECTOR};

/// Writes what an image itself has into the image below it, `base`, which becomes longer if it has to. `top` is open
/// without what is below. It is not changed: it reads the same over the changed base, also when it is
/// [made empty](Image::make_empty) then.
///
/// # Errors
/// The images'.
pub async fn commit(top: &dyn Image, base: &dyn Image, progress: &Progress) -> Result<CopyReport, Error> {
    progress.total.set(top.size());
    if base.size() < top.size() {
        base.resize(top.size()).await?;
    }
    let options = CopyOptions { layers: Some(1), exact: true, ..CopyOptions::default() };
    let report = copy(top, 0..top.size(), base, 0, &options, progress).await?;
    base.flush().await?;
    Ok(report)
}

const PIECE: u64 = 1 << 20;
const IN_FLIGHT: usize = 8;

/// Copies into `top`, which is open over its old base, whatever `new` does not have in the same way, so that `top`
/// reads the same over `new`. The link is not changed. Bytes behind the end of `new`, and all of them without one,
/// read as zeros. With `compress`, whole clusters are written compressed.
///
/// # Errors
/// The images'; [`Unsupported`](crate::ErrorKind::Unsupported) if `top` is to compress and its format cannot.
pub async fn rebase_safe(
    top: &dyn Image,
    new: Option<&dyn Node>,
    compress: bool,
    progress: &Progress,
) -> Result<CopyReport, Error> {
    progress.total.set(top.size());
    let described = top.describe();
    // Parts of clusters that are allocated on their own (qcow2's subclusters) need no more than they are.
    let parts = if !compress && described.details.get("extended-l2") == Some(&true.into()) { 32 } else { 1 };
    let cluster = described.cluster_size.filter(|c| c.is_power_of_two()).map(|c| c / parts);
    let grain = cluster.filter(|&c| compress || c <= PIECE).unwrap_or(SECTOR);
    let piece = PIECE.max(if compress { grain } else { 0 });
    // What this image has itself stays as it is; everything else is looked at.
    let plan = Plan::new(top, 0..top.size(), SECTOR, piece, Some(1));
    let runs = stream::try_unfold(&plan, async |plan| {
        let Some(run) = plan.next().await? else { return Ok(None) };
        Ok::<_, Error>(Some((run, plan)))
    });
    let mut report = CopyReport::default();
    let mut pending = std::pin::pin!(runs);
    while let Some(run) = pending.try_next().await? {
        if run.kind != Kind::Absent {
            progress.add(run.len);
            continue;
        }
        let end = run.offset + run.len;
        let pieces = (run.offset / piece..end.div_ceil(piece)).map(|n| {
            let from = (n * piece).max(run.offset);
            Ok((from, ((n + 1) * piece).min(end)))
        });
        let copied = stream::iter(pieces)
            .map_ok(async |(from, to)| {
                let keeper = Keeper { top, new, grain, compress };
                let written = keeper.keep(from, to).await?;
                progress.add(to - from);
                Ok::<_, Error>(((to - from), written))
            })
            .try_buffer_unordered(IN_FLIGHT)
            .try_fold((0, 0), async |sum, (read, written)| Ok((sum.0 + read, sum.1 + written)))
            .await?;
        report.read += copied.0;
        report.written += copied.1;
    }
    top.flush().await?;
    Ok(report)
}

/// Makes `top` itself have zeros. Where nothing is below it now, what it does not have reads as zeros, and it need
/// not note any: they are written as data there.
async fn keep_zeros(top: &dyn Image, offset: u64, len: u64) -> Result<(), Error> {
    top.write_zeroes(offset, len, false).await?;
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let extent = top.status(at, end - at).await?;
        if !extent.present || extent.depth > 0 {
            write_zero_bytes(top, at, extent.len).await?;
        }
        at += extent.len.max(1);
    }
    Ok(())
}

/// Writes to `top` what it reads, where `new` reads something else.
struct Keeper<'a> {
    top: &'a dyn Image,
    new: Option<&'a dyn Node>,
    grain: u64,
    compress: bool,
}

impl Keeper<'_> {
    async fn keep(&self, from: u64, to: u64) -> Result<u64, Error> {
        let known_zero = async |node: &dyn Node| {
            let mut at = from;
            let end = to.min(node.size());
            while at < end {
                let extent = node.status(at, end - at).await?;
                if !extent.zero && extent.present {
                    return Ok::<_, Error>(false);
                }
                at += extent.len.max(1);
            }
            Ok(true)
        };
        let new_zero = match self.new {
            Some(node) => known_zero(node).await?,
            None => true,
        };
        if new_zero && known_zero(self.top).await? {
            return Ok(0);
        }
        let old = self.top.read(from, IoBuf::new((to - from) as usize)).await?.freeze();
        let mut below = IoBuf::zeroed(old.len());
        if let Some(node) = self.new
            && !new_zero
        {
            let inside = to.min(node.size()).saturating_sub(from) as usize;
            let part = node.read(from, IoBuf::new(inside)).await?;
            below[..inside].copy_from_slice(&part);
        }
        let mut written = 0;
        let mut start: Option<usize> = None;
        let mut at = 0;
        while at <= old.len() {
            let place = from + at as u64;
            let next = (at + (self.grain - place % self.grain) as usize).min(old.len());
            let differs = at < old.len() && old[at..next] != below[at..next];
            match (differs, start) {
                (true, None) => start = Some(at),
                (false, Some(s)) => {
                    self.write(from + s as u64, old.slice(s..at)).await?;
                    written += (at - s) as u64;
                    start = None;
                }
                _ => {}
            }
            if at == old.len() {
                break;
            }
            at = next;
        }
        Ok(written)
    }

    async fn write(&self, mut at: u64, mut data: IoData) -> Result<(), Error> {
        if is_zero(&data) {
            return keep_zeros(self.top, at, data.len() as u64).await;
        }
        if !self.compress {
            return self.top.write(at, data).await;
        }
        while !data.is_empty() {
            let n = (self.grain - at % self.grain).min(data.len() as u64);
            let rest = data.slice(n as usize..);
            data = data.slice(..n as usize);
            let whole = n == self.grain || (at.is_multiple_of(self.grain) && at + n == self.top.size());
            if is_zero(&data) {
                keep_zeros(self.top, at, n).await?;
            } else if whole {
                let packed = self.top.write_compressed(at, data);
                packed.ok_or_else(|| unsupported(self.top.info(), self.top.format(), "compress in"))?.await?;
            } else {
                // Something of its cluster is in the image already.
                self.top.write(at, data).await?;
            }
            (at, data) = (at + n, rest);
        }
        Ok(())
    }
}
