//! Comparing two disks.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use plinth_host::aio;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

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
/// Bytes that one thread reads from the page cache and compares, step by step. Fewer than `FEW` are not worth another
/// thread.
const CACHED_PIECE: u64 = 1 << 20;
const STEP: usize = 64 << 10;
const FEW: u64 = 64 << 10;
const IN_FLIGHT: usize = 6;

/// A run of both disks.
#[derive(Clone, Copy)]
struct Pair {
    at: u64,
    len: u64,
    a: Kind,
    b: Kind,
    /// Where the bytes are in the disks' files, if they may be read there.
    host: [Option<u64>; 2],
}

struct Walk<'a> {
    a: &'a dyn Node,
    b: &'a dyn Node,
    at: Cell<u64>,
    /// Where what is known of each ends, and what it is.
    known: Cell<[(u64, Option<Extent>); 2]>,
    strict: bool,
    end: u64,
    files: [Option<Arc<File>>; 2],
    /// What is read is not in the page cache: more requests at once are worth more than fewer copies.
    cold: Cell<bool>,
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
            let found = node.status(at, node.size().min(self.end) - at).await;
            found.map_err(|e| unreadable(at, node, e))?
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
        let host = |n: usize, extent: &Extent, to: u64| match kind(extent) {
            Kind::Data if self.files[n].is_some() && extent.depth == 0 && !extent.compressed => {
                extent.host.map(|h| h + (at - (to - extent.len)))
            }
            _ => None,
        };
        let host = [host(0, &a, a_to), host(1, &b, b_to)];
        let (a, b) = (kind(&a), kind(&b));
        let mut to = a_to.min(b_to).min(self.end);
        let known = |kind: Kind, host: Option<u64>| kind != Kind::Data || host.is_some();
        let cached = !self.cold.get() && known(a, host[0]) && known(b, host[1]);
        if (a, b) != (Kind::Zero, Kind::Zero) {
            let piece = if cached { CACHED_PIECE } else { PIECE };
            to = to.min((at / piece + 1) * piece);
        }
        self.at.set(to);
        let host = if cached && to - at >= FEW { host } else { [None; 2] };
        Ok(Some(Found::Pair(Pair { at, len: to - at, a, b, host })))
    }

    async fn differ(&self, pair: Pair) -> Result<Option<u64>, Error> {
        if pair.host == [None; 2] {
            return differ(self.a, self.b, pair).await;
        }
        let side = |n: usize| Some((self.files[n].clone()?, pair.host[n]?));
        let (sides, len) = ([side(0), side(1)], pair.len as usize);
        match aio::offload(move || compare_files(&sides, len)).await {
            Ok((found, cold)) => {
                self.cold.set(self.cold.get() || cold);
                Ok(found.map(|n| pair.at + n))
            }
            Err((n, e)) => Err(Error::from_host("read", &[self.a, self.b][n].info().name, e)),
        }
    }
}

/// In QEMU's words, which scripts look for.
fn unreadable(at: u64, node: &dyn Node, e: Error) -> Error {
    Error { context: format!("Error while reading offset {at} of {}", node.info().name), ..e }
}

async fn bytes(node: &dyn Node, pair: &Pair, kind: Kind) -> Result<Option<IoBuf>, Error> {
    match kind {
        Kind::Data => {
            let read = node.read(pair.at, IoBuf::new(pair.len as usize)).await;
            read.map(Some).map_err(|e| unreadable(pair.at, node, e))
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
        (Some(x), None) | (None, Some(x)) => first_not_zero(&x),
        (None, None) => None,
    };
    Ok(found.map(|n| pair.at + n as u64))
}

/// Reads what the page cache has; true if some of it had to be read from the disk. Behind the file's end are zeros.
fn read_cached(file: &File, mut offset: u64, mut buf: &mut [u8]) -> io::Result<bool> {
    let mut cold = false;
    while !buf.is_empty() {
        let n = match preadv2(file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            // Not in the cache, or a file system that does not know the flag.
            Err(e) => {
                cold |= e == Errno::AGAIN;
                match file.read_at(buf, offset) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    n => n?,
                }
            }
        };
        if n == 0 {
            buf.fill(0);
            break;
        }
        offset += n as u64;
        buf = &mut buf[n..];
    }
    Ok(cold)
}

type Side = Option<(Arc<File>, u64)>;

/// Where two ranges of files differ first, one of which may be zeros instead, and if they were not in the page cache.
/// Errors are with the number of the side.
fn compare_files(sides: &[Side; 2], len: usize) -> Result<(Option<u64>, bool), (usize, io::Error)> {
    let mut bufs = [IoBuf::new(STEP.min(len)), IoBuf::new(STEP.min(len))];
    let (mut cold, mut at) = (false, 0);
    while at < len {
        let n = STEP.min(len - at);
        for (i, (side, buf)) in sides.iter().zip(&mut bufs).enumerate() {
            if let Some((file, offset)) = side {
                cold |= read_cached(file, offset + at as u64, &mut buf[..n]).map_err(|e| (i, e))?;
            }
        }
        let [a, b] = &bufs;
        let found = match sides {
            [Some(_), Some(_)] => first_difference(&a[..n], &b[..n]),
            [Some(_), None] => first_not_zero(&a[..n]),
            _ => first_not_zero(&b[..n]),
        };
        if let Some(found) = found {
            return Ok((Some((at + found) as u64), cold));
        }
        at += n;
    }
    Ok((None, cold))
}

fn first_not_zero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) { None } else { bytes.iter().position(|&b| b != 0) }
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
    let walk = Walk {
        a,
        b,
        at: Cell::new(0),
        known: Cell::default(),
        strict: options.strict,
        end,
        files: [a.host_file(), b.host_file()],
        cold: Cell::new(false),
    };
    let walk = &walk;
    let runs = stream::try_unfold(walk, async |walk| Ok(walk.next().await?.map(|found| (found, walk))));
    let results = runs
        .map_ok(async move |found| match found {
            Found::Allocation(at) => Ok(Some(Difference::Allocation(at))),
            Found::Pair(pair) => {
                let difference = walk.differ(pair).await?;
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
