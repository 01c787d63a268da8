//! A request queue and the thread that serves it.

use std::hint;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Disk;
use crate::queue::Chain;
use crate::worker::{Doorbell, Stop};
use crate::{Error, Interrupt, VirtQueue};

/// The guest is told of completions after so many requests or bytes, though more requests wait: it
/// can work on what is done while the rest is done.
const REQUESTS_AN_INTERRUPT: usize = 16;
const BYTES_AN_INTERRUPT: usize = 256 << 10;

/// A request queue with what it needs to be served.
pub(crate) struct BlkQueue {
    queue: VirtQueue,
    disk: Arc<Disk>,
    interrupt: Interrupt,
    chain: Chain,
}

impl BlkQueue {
    pub(crate) fn new(queue: VirtQueue, disk: Arc<Disk>, interrupt: Interrupt) -> Self {
        Self { queue, disk, interrupt, chain: Chain::default() }
    }

    /// Serves until told to stop, or until the driver breaks the queue.
    pub(crate) fn run(mut self, doorbell: &Doorbell, poll: Duration, stop: &Stop) {
        if let Err(e) = self.serve(doorbell, poll, stop) {
            self.interrupt.fail(&e);
        }
    }

    fn serve(&mut self, doorbell: &Doorbell, poll: Duration, stop: &Stop) -> Result<(), Error> {
        let mut watch = Watch::new(poll);
        while !stop.is_set() {
            self.queue.disable_kicks()?;
            self.drain(stop)?;
            if watch.sees(|| self.queue.has_available(), stop)? || self.queue.enable_kicks()? {
                continue;
            }
            let asleep = Instant::now();
            doorbell.wait();
            watch.slept(asleep.elapsed());
        }
        Ok(())
    }

    /// Serves all requests there are. No reset waits for more than the request in hand.
    pub(crate) fn drain(&mut self, stop: &Stop) -> Result<(), Error> {
        let (mut requests, mut bytes) = (0, 0);
        while !stop.is_set() && self.queue.pop(&mut self.chain)? {
            let (written, moved) = self.disk.serve(self.queue.memory(), &self.chain)?;
            self.queue.add_used(self.chain.head(), written)?;
            requests += 1;
            bytes += moved;
            if requests >= REQUESTS_AN_INTERRUPT || bytes >= BYTES_AN_INTERRUPT {
                self.signal()?;
                (requests, bytes) = (0, 0);
            }
        }
        self.signal()
    }

    fn signal(&mut self) -> Result<(), Error> {
        if self.queue.needs_interrupt()? {
            self.interrupt.queue_used(self.queue.index());
        }
        Ok(())
    }
}

/// Watches the ring for a while before the thread sleeps: a wake-up costs more than a small request. How
/// long follows the guest: a quick one is awaited, a slow one is not.
struct Watch {
    longest: Duration,
    window: Duration,
}

impl Watch {
    /// Where a window starts to grow.
    const SHORTEST: Duration = Duration::from_micros(4);

    fn new(longest: Duration) -> Self {
        Self { longest, window: Duration::ZERO }
    }

    /// Watches until `available`, for at most the window.
    fn sees(&self, available: impl Fn() -> Result<bool, Error>, stop: &Stop) -> Result<bool, Error> {
        if self.window.is_zero() {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < self.window && !stop.is_set() {
            for _ in 0..16 {
                if available()? {
                    return Ok(true);
                }
                hint::spin_loop();
            }
        }
        Ok(false)
    }

    /// The thread was asleep for `time`: a bit more watching would have seen the request, or not.
    fn slept(&mut self, time: Duration) {
        self.window = if self.window + time <= self.longest {
            (self.window * 2).max(Self::SHORTEST).min(self.longest)
        } else {
            self.window / 2
        };
        if self.window < Self::SHORTEST {
            self.window = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_the_guest() {
        let us = Duration::from_micros;
        let mut watch = Watch::new(us(50));
        watch.slept(us(20));
        watch.slept(us(20));
        watch.slept(us(20));
        assert_eq!(watch.window, us(16));
        assert!(watch.sees(|| Ok(true), &Stop::default()).unwrap());
        watch.slept(us(1000));
        watch.slept(us(1000));
        assert_eq!(watch.window, us(4));
        watch.slept(us(1000));
        assert_eq!(watch.window, Duration::ZERO);
        assert!(!watch.sees(|| panic!("a closed window looks"), &Stop::default()).unwrap());
    }
}
