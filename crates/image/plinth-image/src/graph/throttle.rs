//! A limit on how much a disk may do.

use std::cell::Cell;
use std::time::{Duration, Instant};

use plinth_host::aio;

use super::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef};

/// What is allowed, on average; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes read and written in a second.
    pub bytes: Option<u64>,
    /// Requests in a second.
    pub requests: Option<u64>,
}

/// Requests go through at a limited rate, those of the last tenth of a second at once.
pub struct ThrottleNode {
    below: NodeRef,
    limits: Limits,
    /// When what was let through so far is used up, by bytes and by requests.
    paid: [Cell<Instant>; 2],
}

/// Time whose share may be used at once.
const BURST: Duration = Duration::from_millis(100);

impl ThrottleNode {
    /// `below` with limits.
    #[must_use]
    pub fn new(below: NodeRef, limits: Limits) -> Self {
        let now = Instant::now();
        Self { below, limits, paid: [Cell::new(now), Cell::new(now)] }
    }

    /// Waits until a request for `bytes` may go on.
    async fn pay(&self, bytes: u64) {
        let now = Instant::now();
        let mut wait = Duration::ZERO;
        for (paid, limit, amount) in
            [(&self.paid[0], self.limits.bytes, bytes), (&self.paid[1], self.limits.requests, 1)]
        {
            let Some(limit) = limit else { continue };
            let cost = Duration::from_secs_f64(amount as f64 / limit.max(1) as f64);
            let from = paid.get().max(now.checked_sub(BURST).unwrap_or(now));
            // Who comes first pays first: the next one waits for this one's share too.
            paid.set(from + cost);
            wait = wait.max((from + cost).saturating_duration_since(now).saturating_sub(BURST));
        }
        if !wait.is_zero() {
            aio::sleep(wait).await;
        }
    }
}

impl Node for ThrottleNode {
    fn info(&self) -> &NodeInfo {
        self.below.info()
    }

    fn size(&self) -> u64 {
        self.below.size()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            self.pay(buf.len() as u64).await;
            self.below.read(offset, buf).await
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            self.pay(data.len() as u64).await;
            self.below.write(offset, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            // No data moves.
            self.pay(0).await;
            self.below.write_zeroes(offset, len, unmap).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            self.pay(0).await;
            self.below.discard(offset, len).await
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        self.below.flush()
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        self.below.status(offset, len)
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        self.below.resize(size)
    }

    fn close(&self) -> Io<'_, ()> {
        self.below.close()
    }

    fn is_open_ended(&self) -> bool {
        self.below.is_open_ended()
    }
}
