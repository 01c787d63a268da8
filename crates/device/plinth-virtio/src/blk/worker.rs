//! A request queue and the thread that serves it.

use std::sync::Arc;

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
    pub(crate) fn run(mut self, doorbell: &Doorbell, stop: &Stop) {
        let _guard = self.interrupt.fail_on_panic(super::NAME);
        if let Err(e) = self.serve(doorbell, stop) {
            self.interrupt.fail(&e);
        }
    }

    fn serve(&mut self, doorbell: &Doorbell, stop: &Stop) -> Result<(), Error> {
        while !stop.is_set() {
            self.queue.disable_kicks()?;
            self.drain(stop)?;
            // Sleeping at once beats watching the ring for the next request: a wake-up costs a few
            // microseconds, and the guest's vCPU wants the host's core meanwhile.
            if !self.queue.enable_kicks()? {
                doorbell.wait();
            }
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
