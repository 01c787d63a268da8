//! What of a disk has to be read, found out before it is read.

use std::cell::Cell;
use std::ops::Range;

use crate::graph::{Extent, Node};
use crate::{Error, ErrorKind};

/// What is known of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has to be read.
    Data,
    /// It reads as zeros.
    Zero,
    /// The layers that count have nothing there.
    Absent,
}

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What is known.
    pub kind: Kind,
}

/// Cuts a disk into runs: data in pieces that are read at once, and what need not be read as long as it is.
pub struct Plan<'a> {
    source: &'a dyn Node,
    range: Range<u64>,
    at: Cell<u64>,
    /// Runs begin and end at multiples of it; where a block is partly data, all of it is.
    align: u64,
    piece: u64,
    /// Layers that count: what only deeper ones have is absent.
    layers: Option<u32>,
    /// What cannot be looked at is data: who reads it finds out what of it can be read.
    salvage: bool,
    /// The last answer of the source: from where to where what is alike.
    known: Cell<Option<(u64, u64, Kind)>>,
}

/// Holes shorter than this between data are read with it: one request more costs more.
const SMALL_HOLE: u64 = 32 << 10;

impl<'a> Plan<'a> {
    /// A plan for a range of `source`, which begins at a multiple of `align` (a power of two). `piece` is a multiple
    /// of it.
    pub fn new(source: &'a dyn Node, range: Range<u64>, align: u64, piece: u64, layers: Option<u32>) -> Self {
        let at = Cell::new(range.start);
        let (align, known) = (align.max(1), Cell::new(None));
        Self { source, range, at, align, piece, layers, salvage: false, known }
    }

    /// With `salvage`, goes on where the source cannot say what it holds.
    pub fn salvage(self, salvage: bool) -> Self {
        Self { salvage, ..self }
    }

    fn kind(&self, extent: &Extent) -> Kind {
        if self.layers.is_some_and(|n| extent.depth >= n || !extent.present) {
            Kind::Absent
        } else if extent.zero {
            Kind::Zero
        } else {
            Kind::Data
        }
    }

    /// The end of what is alike from `at` on, and what it is.
    async fn look(&self, at: u64) -> Result<(u64, Kind), Error> {
        if let Some((from, to, kind)) = self.known.get()
            && (from..to).contains(&at)
        {
            return Ok((to, kind));
        }
        let left = self.range.end - at;
        let extent = match self.source.status(at, left).await {
            Err(e) if self.salvage && e.kind == ErrorKind::Io => Extent::stored(left.min(self.piece), None),
            extent => extent?,
        };
        let (to, kind) = (at + extent.len.clamp(1, self.range.end - at), self.kind(&extent));
        self.known.set(Some((at, to, kind)));
        Ok((to, kind))
    }

    /// The next run; `None` at the end. One call at a time.
    pub async fn next(&self) -> Result<Option<Run>, Error> {
        let start = self.at.get();
        let end = self.range.end;
        if start >= end {
            return Ok(None);
        }
        let (mut to, kind) = self.look(start).await?;
        let relative = |x: u64| x - self.range.start;
        let run = if kind == Kind::Data
            || (to < end && relative(to) / self.align == relative(start) / self.align)
        {
            // Data up to the piece's border, over small holes.
            let border = (relative(start) / self.piece + 1)
                .saturating_mul(self.piece)
                .saturating_add(self.range.start)
                .min(end);
            let mut data_to = to;
            while to < border {
                let (next, kind) = self.look(to).await?;
                match kind {
                    Kind::Data => data_to = next,
                    Kind::Zero if next < data_to.saturating_add(SMALL_HOLE) => {}
                    _ => break,
                }
                to = next;
            }
            let rounded = relative(data_to).checked_next_multiple_of(self.align).unwrap_or(u64::MAX);
            let to = rounded.saturating_add(self.range.start).min(border);
            Run { offset: start, len: to - start, kind: Kind::Data }
        } else {
            while to < end {
                let (next, k) = self.look(to).await?;
                if k != kind {
                    break;
                }
                to = next;
            }
            // A block that is partly data is left to the next run.
            let to = if to < end { to - relative(to) % self.align } else { end };
            Run { offset: start, len: to - start, kind }
        };
        self.at.set(run.offset + run.len);
        Ok(Some(run))
    }
}
