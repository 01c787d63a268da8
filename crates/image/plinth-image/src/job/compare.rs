//! Comparing two disks.

use std::cell::Cell;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::plan::Kind;
use crate::Error;
use crate::format::Progress;
use crate::graph::{Extent, IoBuf, Node, is_zero};

/// How to compare.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompareOptions {
    /// Different sizes, or what is stored and what is not, are a difference too.
    pub strict: bool,
}

/// The first thing in which disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The byte.
    Content(u64),
    /// What is stored at this byte and what is not.
    Allocation(u64),
    /// Their sizes.
    Size,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompareReport {
    /// The first difference.
    pub difference: Option<Difference>,
    /// The sizes differ, and were not compared strictly: what only one disk has must be zeros.
    pub sizes_differ: bool,
}

/// Bytes that are compared at once: they fit a CPU's cache.
const PIECE: u64 = 128 << 10;
const IN_FLIGHT: usize = 6;

/// A run of both disks.
#[derive(Clone, Copy)]
struct Pair {
    at: u64,
    len: u64,
    a: Kind,
    b: Kind,
}

struct Walk<'a> {
    a: &'a dyn Node,
    b: &'a dyn Node,
    at: Cell<u64>,
    /// Where what is known of each ends, and what it is.
    known: Cell<[(u64, Option<Extent>); 2]>,
    strict: bool,
    end: u64,
}

enum Found {
    Pair(Pair),
    Allocation(u64),
}

fn kind(extent: &Extent) -> Kind {
    if extent.zero || !extent.present { Kind::Zero } else { Kind::Data }
}

impl Walk<'_> {
    /// What is known of disk `n` at the present place; beyond its end there are zeros.
    async fn look(&self, n: usize) -> Result<(u64, Extent), Error> {
        let at = self.at.get();
        let node = [self.a, self.b][n];
        let mut known = self.known.take();
        if let (to, Some(extent)) = &known[n]
            && at < *to
        {
            let found = (*to, extent.clone());
            self.known.set(known);
            return Ok(found);
        }
        self.known.set(known);
        let extent = if at >= node.size() {
            Extent::hole(self.end - at)
        } else {
            node.status(at, node.size().min(self.end) - at).await?
        };
        let to = at + extent.len.max(1);
        known = self.known.take();
        known[n] = (to, Some(extent.clone()));
        self.known.set(known);
        Ok((to, extent))
    }

    async fn next(&self) -> Result<Option<Found>, Error> {
        let at = self.at.get();
        if at >= self.end {
            return Ok(None);
        }
        let (a_to, a) = self.look(0).await?;
        let (b_to, b) = self.look(1).await?;
        let alike = (a.data, a.zero, a.present) == (b.data, b.zero, b.present);
        if self.strict && !alike {
            return Ok(Some(Found::Allocation(at)));
        }
        let (a, b) = (kind(&a), kind(&b));
        let mut to = a_to.min(b_to).min(self.end);
        if (a, b) != (Kind::Zero, Kind::Zero) {
            to = to.min((at / PIECE + 1) * PIECE);
        }
        self.at.set(to);
        Ok(Some(Found::Pair(Pair { at, len: to - at, a, b })))
    }
}

async fn bytes(node: &dyn Node, pair: &Pair, kind: Kind) -> Result<Option<IoBuf>, Error> {
    match kind {
        Kind::Data => {
            let failed = |e| Error { context: format!("Error while reading offset {} of {}", pair.at, node.info().name), ..e };
            node.read(pair.at, IoBuf::new(pair.len as usize)).await.map(Some).map_err(failed)
        }
        _ => Ok(None),
    }
}

/// The first byte in which two pieces differ.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(x, y)| x != y)
}

async fn differ(a: &dyn Node, b: &dyn Node, pair: Pair) -> Result<Option<u64>, Error> {
    let (x, y) = futures_util::future::try_join(bytes(a, &pair, pair.a), bytes(b, &pair, pair.b)).await?;
    let found = match (x, y) {
        (Some(x), Some(y)) => first_difference(&x, &y),
        (Some(x), None) | (None, Some(x)) => {
            if is_zero(&x) {
                None
            } else {
                x.iter().position(|&b| b != 0)
            }
        }
        (None, None) => None,
    };
    Ok(found.map(|n| pair.at + n as u64))
}

/// Compares two disks, up to the first difference.
///
/// # Errors
/// The nodes'.
pub async fn compare(
    a: &dyn Node,
    b: &dyn Node,
    options: CompareOptions,
    progress: &Progress,
) -> Result<CompareReport, Error> {
    let sizes_differ = a.size() != b.size();
    if sizes_differ && options.strict {
        return Ok(CompareReport { difference: Some(Difference::Size), sizes_differ });
    }
    let end = a.size().max(b.size());
    progress.total.set(end);
    let walk = Walk { a, b, at: Cell::new(0), known: Cell::default(), strict: options.strict, end };
    let runs = stream::try_unfold(&walk, async |walk| Ok(walk.next().await?.map(|found| (found, walk))));
    let results = runs
        .map_ok(async |found| match found {
            Found::Allocation(at) => Ok(Some(Difference::Allocation(at))),
            Found::Pair(pair) => {
                let difference = differ(a, b, pair).await?;
                progress.add(pair.len);
                Ok(difference.map(Difference::Content))
            }
        })
        .try_buffered(IN_FLIGHT);
    let mut results = std::pin::pin!(results);
    while let Some(result) = results.next().await {
        if let Some(difference) = result? {
            return Ok(CompareReport { difference: Some(difference), sizes_differ });
        }
    }
    Ok(CompareReport { difference: None, sizes_differ })
}
