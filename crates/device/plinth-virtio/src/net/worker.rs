//! The card's two queues and the thread that moves frames between them and the backend.

use std::collections::VecDeque;
use std::time::Instant;

use plinth_device::{FrameMeta, NetBackend, SendOutcome};

use super::Offloads;
use super::header::HEADER;
use crate::queue::Chain;
use crate::worker::{Doorbell, Poller, Stop};
use crate::{Error, Interrupt, VirtQueue};

/// The largest frame: 64 KiB of IP and an Ethernet header, and what [`NetBackend::recv`] asks for.
const MAX_FRAME: usize = 65_550;
/// An Ethernet header.
const MIN_FRAME: usize = 14;
/// Frames moved one way before the other way is looked at.
const BATCH: usize = 64;
/// Bytes delivered before the guest is told, though more follow: it can work on these meanwhile.
const BYTES_AN_INTERRUPT: usize = 64 << 10;

/// Guest to network.
struct Transmit {
    queue: VirtQueue,
    chain: Chain,
    frame: Vec<u8>,
    /// The frame in `frame`, from `chain`, is still to be sent: the backend was full.
    waiting: Option<(usize, FrameMeta)>,
}

/// Network to guest.
struct Receive {
    queue: VirtQueue,
    /// Buffers taken from the queue and not filled yet, oldest first.
    buffers: VecDeque<Chain>,
    /// Chains to be used again.
    spare: Vec<Chain>,
    frame: Vec<u8>,
    /// The frame in `frame` waits for more buffers.
    waiting: Option<(usize, FrameMeta)>,
    used: Vec<(u16, u32)>,
}

/// The queues of a card with its backend.
pub(crate) struct NetQueues {
    rx: Option<Receive>,
    tx: Option<Transmit>,
    backend: Box<dyn NetBackend>,
    offloads: Offloads,
    interrupt: Interrupt,
}

impl NetQueues {
    pub(crate) fn new(
        rx: Option<VirtQueue>,
        tx: Option<VirtQueue>,
        mut backend: Box<dyn NetBackend>,
        features: u64,
        interrupt: Interrupt,
    ) -> Self {
        let offloads = Offloads::new(features);
        backend.set_offloads(offloads.accepted());
        let rx = rx.map(|queue| Receive {
            queue,
            buffers: VecDeque::new(),
            spare: Vec::new(),
            frame: vec![0; MAX_FRAME],
            waiting: None,
            used: Vec::new(),
        });
        let tx = tx.map(|queue| Transmit {
            queue,
            chain: Chain::default(),
            frame: vec![0; MAX_FRAME],
            waiting: None,
        });
        Self { rx, tx, backend, offloads, interrupt }
    }

    /// Moves frames until told to stop, and gives the backend back. If the driver breaks a queue, the backend
    /// is still served, so that its connections end properly, and its frames are dropped.
    pub(crate) fn run(mut self, doorbell: &Doorbell, stop: &Stop) -> Box<dyn NetBackend> {
        let _guard = self.interrupt.fail_on_panic(super::NAME);
        while !stop.is_set() {
            if let Err(e) = self.serve(doorbell, stop) {
                self.interrupt.fail(&e);
                if self.rx.take().is_none() && self.tx.take().is_none() {
                    // Not the queues, then: the host has no way to wait.
                    break;
                }
                self.tx = None;
            }
        }
        self.backend
    }

    fn serve(&mut self, doorbell: &Doorbell, stop: &Stop) -> Result<(), Error> {
        let host = |source| Error::Host { device: super::NAME, source };
        let mut poller = Poller::new(doorbell, Some(self.backend.poll_fd())).map_err(host)?;
        while !stop.is_set() {
            let due = self.backend.process(Instant::now());
            if self.move_frames()? || self.arm()? {
                continue;
            }
            // While the guest has no room, a backend with frames for it would wake this thread for ever.
            let stuck = self.rx.as_ref().is_none_or(|rx| rx.waiting.is_some());
            poller.set_edge_triggered(stuck).map_err(host)?;
            let timeout = due.map(|t| t.saturating_duration_since(Instant::now()));
            if poller.wait(timeout).map_err(host)? {
                doorbell.wait();
            }
            self.disarm()?;
        }
        Ok(())
    }

    /// Moves a batch each way. Returns true if there may be more to move.
    pub(crate) fn move_frames(&mut self) -> Result<bool, Error> {
        let sent = match &mut self.tx {
            Some(tx) => tx.send_batch(self.backend.as_mut(), self.offloads, &self.interrupt)?,
            None => false,
        };
        let received = match &mut self.rx {
            Some(rx) => rx.fill_batch(self.backend.as_mut(), self.offloads, &self.interrupt)?,
            None => false,
        };
        Ok(sent || received)
    }

    /// Asks the guest for notifications that matter. Returns true if there is work already.
    fn arm(&mut self) -> Result<bool, Error> {
        let mut work = false;
        // With the backend full, its descriptor says when to go on.
        if let Some(tx) = self.tx.as_mut().filter(|tx| tx.waiting.is_none()) {
            work |= tx.queue.enable_kicks()?;
        }
        // New buffers matter only to a frame that waits for them.
        if let Some(rx) = self.rx.as_mut().filter(|rx| rx.waiting.is_some()) {
            work |= rx.queue.enable_kicks()?;
        }
        Ok(work)
    }

    fn disarm(&mut self) -> Result<(), Error> {
        if let Some(tx) = &mut self.tx {
            tx.queue.disable_kicks()?;
        }
        if let Some(rx) = &mut self.rx {
            rx.queue.disable_kicks()?;
        }
        Ok(())
    }
}

fn signal(queue: &mut VirtQueue, interrupt: &Interrupt) -> Result<(), Error> {
    if queue.needs_interrupt()? {
        interrupt.queue_used(queue.index());
    }
    Ok(())
}

impl Transmit {
    fn send_batch(
        &mut self,
        backend: &mut dyn NetBackend,
        offloads: Offloads,
        interrupt: &Interrupt,
    ) -> Result<bool, Error> {
        let mut sent = 0;
        while sent < BATCH {
            let frame = match self.waiting.take() {
                Some(frame) => Some(frame),
                None if !self.queue.pop(&mut self.chain)? => break,
                None => self.load(offloads)?,
            };
            if let Some((len, meta)) = frame
                && backend.send(&self.frame[..len], meta) == SendOutcome::Full
            {
                self.waiting = Some((len, meta));
                break;
            }
            self.queue.add_used(self.chain.head(), 0)?;
            sent += 1;
        }
        signal(&mut self.queue, interrupt)?;
        Ok(sent != 0)
    }

    /// Copies the frame out of the guest. `None` if it is to be dropped.
    fn load(&mut self, offloads: Offloads) -> Result<Option<(usize, FrameMeta)>, Error> {
        let mut header = [0; HEADER];
        let memory = self.queue.memory();
        if self.chain.read(memory, 0, &mut header)? < HEADER {
            return Err(Error::Chain { head: self.chain.head(), reason: "a frame has no header" });
        }
        let len = self.chain.readable_len() - HEADER;
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Ok(None);
        }
        self.chain.read(memory, HEADER, &mut self.frame[..len])?;
        Ok(offloads.guest_frame(header, &self.frame[..len]).map(|meta| (len, meta)))
    }
}

impl Receive {
    fn fill_batch(
        &mut self,
        backend: &mut dyn NetBackend,
        offloads: Offloads,
        interrupt: &Interrupt,
    ) -> Result<bool, Error> {
        let (mut received, mut bytes) = (0, 0);
        while received < BATCH {
            let Some((len, meta)) = self.waiting.take().or_else(|| backend.recv(&mut self.frame)) else {
                break;
            };
            // A backend cannot have written more than the buffer.
            let len = len.min(self.frame.len());
            if !self.deliver(len, meta, offloads)? {
                self.waiting = Some((len, meta));
                break;
            }
            received += 1;
            bytes += len;
            if bytes >= BYTES_AN_INTERRUPT {
                signal(&mut self.queue, interrupt)?;
                bytes = 0;
            }
        }
        signal(&mut self.queue, interrupt)?;
        Ok(received != 0)
    }

    /// Puts the frame into the guest's buffers, or drops it where it can never fit. Returns false if the
    /// guest has too few buffers now.
    fn deliver(&mut self, len: usize, meta: FrameMeta, offloads: Offloads) -> Result<bool, Error> {
        let total = HEADER + len;
        let Some(count) = self.gather(total, offloads.mergeable())? else { return Ok(false) };
        let room: usize = self.buffers.iter().take(count).map(Chain::writable_len).sum();
        let header = offloads.header_for_guest(meta, count as u16).filter(|_| room >= total);
        let Some(header) = header else {
            // The buffers stay for the next frame.
            return Ok(true);
        };
        self.used.clear();
        let memory = self.queue.memory();
        let mut done = 0;
        for chain in self.buffers.drain(..count) {
            let n = chain.writable_len().min(total - done);
            let skip = if done == 0 { HEADER } else { 0 };
            if done == 0 && chain.write(memory, 0, &header)? < HEADER {
                return Err(Error::Chain {
                    head: chain.head(),
                    reason: "a receive buffer has no room for a header",
                });
            }
            let start = done.max(HEADER) - HEADER;
            chain.write(memory, skip, &self.frame[start..start + n - skip])?;
            self.used.push((chain.head(), n as u32));
            self.spare.push(chain);
            done += n;
        }
        self.queue.add_used_together(&self.used)?;
        Ok(true)
    }

    /// Takes buffers from the queue until they hold `total` bytes together, or, without merging, until there
    /// is one. Returns how many of them it takes; `None` if the guest must give more first.
    fn gather(&mut self, total: usize, mergeable: bool) -> Result<Option<usize>, Error> {
        let mut room = 0;
        let mut count = 0;
        loop {
            if count != 0 && (room >= total || !mergeable) {
                return Ok(Some(count));
            }
            if count == self.buffers.len() {
                // All the descriptors there are hold less than one frame: it can never fit.
                if count >= usize::from(self.queue.size()) {
                    return Ok(Some(count));
                }
                let mut chain = self.spare.pop().unwrap_or_default();
                if !self.queue.pop(&mut chain)? {
                    self.spare.push(chain);
                    return Ok(None);
                }
                self.buffers.push_back(chain);
            }
            room += self.buffers.get(count).map_or(0, Chain::writable_len);
            count += 1;
        }
    }
}
