//! Giving back space that holds nothing but zeros.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::plan::{Kind, Plan};
use crate::Error;
use crate::format::Progress;
use crate::graph::{IoBuf, Node, is_zero};

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// Bytes of zeros whose space was given back.
    pub punched: u64,
}

const PIECE: u64 = 1 << 20;
const IN_FLIGHT: usize = 8;

/// Makes holes of the zeros of a disk, in blocks of `grain` bytes (a power of two up to 1 MiB). The disk reads the
/// same at every moment.
///
/// # Errors
/// The node's.
pub async fn punch_zeros(node: &dyn Node, grain: u64, progress: &Progress) -> Result<CompactReport, Error> {
    progress.total.set(node.size());
    let plan = Plan::new(node, 0..node.size(), grain, PIECE, None);
    let runs =
        stream::try_unfold(&plan, async |plan| Ok::<_, Error>(plan.next().await?.map(|run| (run, plan))));
    let results = runs.map_ok(async |run| {
        let mut punched = 0;
        if run.kind == Kind::Data {
            let buf = node.read(run.offset, IoBuf::new(run.len as usize)).await?;
            let mut start = None;
            for at in (0..=run.len).step_by(grain as usize) {
                let zero = at < run.len && is_zero(&buf[at as usize..(at + grain).min(run.len) as usize]);
                match (zero, start) {
                    (true, None) => start = Some(at),
                    (false, Some(from)) => {
                        let to = at.min(run.len);
                        node.write_zeroes(run.offset + from, to - from, true).await?;
                        punched += to - from;
                        start = None;
                    }
                    _ => {}
                }
            }
            if let Some(from) = start {
                node.write_zeroes(run.offset + from, run.len - from, true).await?;
                punched += run.len - from;
            }
        }
        progress.add(run.len);
        Ok::<_, Error>(punched)
    });
    let mut report = CompactReport::default();
    let mut results = std::pin::pin!(results.try_buffer_unordered(IN_FLIGHT));
    while let Some(punched) = results.next().await {
        report.punched += punched?;
    }
    Ok(report)
}
