//! Moving contents between an image and the one below it.

use futures_util::stream::{self, TryStreamExt};

use super::plan::{Kind, Plan};
use super::{CopyOptions, CopyReport, copy};
use crate::format::{Image, Progress};
use crate::graph::{IoBuf, Node, is_zero, write_zero_bytes};
use crate::{Error, SECTOR};

/// Writes what an image itself has into the image below it, `base`, which becomes longer if it has to. `top` is open
/// without what is below. It is not changed: it reads the same over the changed base.
///
/// # Errors
/// The images'.
pub async fn commit(top: &dyn Image, base: &dyn Image, progress: &Progress) -> Result<CopyReport, Error> {
    progress.total.set(top.size());
    if base.size() < top.size() {
        base.resize(top.size()).await?;
    }
    let options = CopyOptions { layers: Some(1), ..CopyOptions::default() };
    let report = copy(top, 0..top.size(), base, 0, &options, progress).await?;
    base.flush().await?;
    Ok(report)
}

const PIECE: u64 = 1 << 20;
const IN_FLIGHT: usize = 8;

/// Copies into `top`, which is open over its old base, whatever `new` does not have in the same way, so that `top`
/// reads the same over `new`. The link is not changed. Bytes behind the end of `new`, and all of them without one,
/// read as zeros.
///
/// # Errors
/// The images'.
pub async fn rebase_safe(
    top: &dyn Image,
    new: Option<&dyn Node>,
    progress: &Progress,
) -> Result<CopyReport, Error> {
    progress.total.set(top.size());
    let grain = top.describe().cluster_size.filter(|c| c.is_power_of_two() && *c <= PIECE).unwrap_or(SECTOR);
    // What this image has itself stays as it is; everything else is looked at.
    let plan = Plan::new(top, 0..top.size(), SECTOR, PIECE, Some(1));
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
        let pieces = (run.offset / PIECE..end.div_ceil(PIECE)).map(|n| {
            let from = (n * PIECE).max(run.offset);
            Ok((from, ((n + 1) * PIECE).min(end)))
        });
        let copied = stream::iter(pieces)
            .map_ok(async |(from, to)| {
                let written = keep(top, new, from, to, grain).await?;
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
    top.write_zeroes(offset, len, true).await?;
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

/// Writes to `top` what it reads in a range, where `new` reads something else.
async fn keep(top: &dyn Image, new: Option<&dyn Node>, from: u64, to: u64, grain: u64) -> Result<u64, Error> {
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
    let new_zero = match new {
        Some(node) => known_zero(node).await?,
        None => true,
    };
    if new_zero && known_zero(top).await? {
        return Ok(0);
    }
    let old = top.read(from, IoBuf::new((to - from) as usize)).await?.freeze();
    let mut below = IoBuf::zeroed(old.len());
    if let Some(node) = new
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
        let next = (at + (grain - place % grain) as usize).min(old.len());
        let differs = at < old.len() && old[at..next] != below[at..next];
        match (differs, start) {
            (true, None) => start = Some(at),
            (false, Some(s)) => {
                let part = old.slice(s..at);
                let place = from + s as u64;
                if is_zero(&part) {
                    keep_zeros(top, place, part.len() as u64).await?;
                } else {
                    top.write(place, part).await?;
                }
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
