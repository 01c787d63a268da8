//! Many requests of one kind, and how long they take.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::graph::{IoBuf, Node};
use crate::{Error, ErrorKind};

/// What to do.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Requests.
    pub count: u64,
    /// Requests in flight.
    pub depth: usize,
    /// Bytes of each.
    pub size: u32,
    /// Bytes from one request's start to the next's; at the disk's end it begins anew.
    pub step: u64,
    /// First byte of the first.
    pub offset: u64,
    /// Write these bytes, not read.
    pub write: Option<u8>,
    /// Writes between flushes; 0: none.
    pub flush_every: u64,
    /// A flush does not wait for the requests in flight.
    pub no_drain: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            count: 75_000,
            depth: 64,
            size: 4096,
            step: 4096,
            offset: 0,
            write: None,
            flush_every: 0,
            no_drain: false,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BenchReport {
    /// From the first request's start to the last one's end.
    pub time: Duration,
    /// Requests, without flushes.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Runs the requests.
///
/// # Errors
/// The node's; [`ErrorKind::Invalid`] if a request does not fit the disk.
pub async fn bench(node: &dyn Node, options: &BenchOptions) -> Result<BenchReport, Error> {
    let refused = |why: String| {
        Error::new(ErrorKind::Invalid, format!("cannot measure the speed of '{}'", node.info().name), why)
    };
    let len = u64::from(options.size);
    if len == 0 || options.depth == 0 {
        return Err(refused("requests have a size, and there is at least one in flight".into()));
    }
    let fits = options.offset.checked_add(len).is_some_and(|end| end <= node.size());
    if !fits {
        return Err(refused(format!("{len} bytes at {} are beyond its end", options.offset)));
    }
    let last = node.size() - len;
    let step = if options.step == 0 { len } else { options.step };
    let mut at = options.offset;
    let places = std::iter::repeat_with(|| {
        let here = at;
        at = at.checked_add(step).filter(|&n| n <= last).unwrap_or(0);
        here
    });
    let data = options.write.map(|pattern| {
        let mut buf = IoBuf::new(options.size as usize);
        buf.fill(pattern);
        buf.freeze()
    });
    let request = async |place: u64| match &data {
        Some(data) => node.write(place, data.clone()).await,
        None => node.read(place, IoBuf::new(options.size as usize)).await.map(drop),
    };
    let start = Instant::now();
    let mut places = places.take(usize::try_from(options.count).unwrap_or(usize::MAX));
    if options.flush_every == 0 {
        stream::iter(places).map(request).buffer_unordered(options.depth).try_collect::<()>().await?;
    } else {
        let mut left = options.count;
        while left > 0 {
            let group = left.min(options.flush_every);
            let group_places: Vec<_> = places.by_ref().take(group as usize).collect();
            stream::iter(group_places)
                .map(request)
                .buffer_unordered(options.depth)
                .try_collect::<()>()
                .await?;
            node.flush().await?;
            left -= group;
        }
    }
    Ok(BenchReport { time: start.elapsed(), count: options.count, bytes: options.count.saturating_mul(len) })
}
