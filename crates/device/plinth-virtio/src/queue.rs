//! A virtqueue as a device works with it, and the descriptor chains in it.
//!
//! The split ring's layout and walk are `virtio-queue`'s. This module adds what a device needs on top: a
//! chain is walked once, into a checked list, so that nothing the guest changes afterwards matters; a walk
//! that ends early is an error instead of a short chain; several buffers can be used at once; and the
//! interrupt suppression of drivers without event indices is honoured.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use plinth_memory::{GuestMemory, GuestMemoryTrait, GuestRam, PageTracker};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, VolatileSlice};

use crate::Error;

/// The most descriptors a chain may have, indirect ones included: what one vectored call of the host takes.
const MAX_CHAIN: usize = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A buffer in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical start. The whole buffer is RAM.
    pub start: GuestAddress,
    /// Bytes; not zero.
    pub len: usize,
}

/// A descriptor chain: buffers the device reads, then buffers it writes. Made to be used again and again.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

fn total(segments: &[Segment]) -> usize {
    // The walk has shown that the sum fits in 32 bits.
    segments.iter().map(|s| s.len).sum()
}

/// The parts of `segments` that `skip .. skip + len` covers.
fn part(segments: &[Segment], mut skip: usize, mut len: usize) -> impl Iterator<Item = Segment> {
    segments.iter().filter_map(move |s| {
        let from = skip.min(s.len);
        skip -= from;
        let n = (s.len - from).min(len);
        len -= n;
        (n != 0).then(|| Segment { start: s.start.unchecked_add(from as u64), len: n })
    })
}

impl Chain {
    /// Index of its first descriptor, which names it in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> usize {
        total(&self.readable)
    }

    /// Bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> usize {
        total(&self.writable)
    }

    /// The buffers the device may write.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.writable
    }

    /// Copies from byte `skip` of the readable part; returns how many bytes there were.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn read(&self, memory: &GuestMemory, skip: usize, data: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        for s in part(&self.readable, skip, data.len()) {
            memory.read_slice(&mut data[done..done + s.len], s.start)?;
            done += s.len;
        }
        Ok(done)
    }

    /// Copies to byte `skip` of the writable part; returns for how many bytes there was room.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn write(&self, memory: &GuestMemory, skip: usize, data: &[u8]) -> Result<usize, Error> {
        let mut done = 0;
        for s in part(&self.writable, skip, data.len()) {
            memory.write_slice(&data[done..done + s.len], s.start)?;
            done += s.len;
        }
        Ok(done)
    }

    /// The readable bytes `skip .. skip + len` in place.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn readable_slices<'m>(
        &self,
        memory: &'m GuestMemory,
        skip: usize,
        len: usize,
    ) -> Result<Vec<VolatileSlice<'m, PageTracker>>, Error> {
        slices(memory, part(&self.readable, skip, len))
    }

    /// The writable bytes `skip .. skip + len` in place.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn writable_slices<'m>(
        &self,
        memory: &'m GuestMemory,
        skip: usize,
        len: usize,
    ) -> Result<Vec<VolatileSlice<'m, PageTracker>>, Error> {
        slices(memory, part(&self.writable, skip, len))
    }

    /// Walks the chain, reading each descriptor once.
    fn fill(&mut self, memory: &GuestMemory, walk: DescriptorChain<&GuestMemory>) -> Result<(), Error> {
        let head = walk.head_index();
        let broken = |reason| Error::Chain { head, reason };
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        // The walk just ends where it meets something broken: then the last descriptor promised another.
        let mut more = true;
        for d in walk {
            let segment = Segment { start: d.addr(), len: d.len() as usize };
            if !GuestMemoryTrait::check_range(memory, segment.start, segment.len) {
                return Err(broken("a buffer is outside RAM"));
            }
            if self.readable.len() + self.writable.len() == MAX_CHAIN {
                return Err(broken("it has more than 1024 descriptors"));
            }
            if !d.is_write_only() && !self.writable.is_empty() {
                return Err(broken("a readable buffer follows a writable one"));
            }
            if segment.len == 0 {
                return Err(broken("a buffer is empty"));
            }
            let list = if d.is_write_only() { &mut self.writable } else { &mut self.readable };
            list.push(segment);
            more = d.has_next();
        }
        if more {
            return Err(broken("it ends at a bad index, a bad indirect table or beyond its allowed length"));
        }
        Ok(())
    }
}

fn slices(
    memory: &GuestMemory,
    segments: impl Iterator<Item = Segment>,
) -> Result<Vec<VolatileSlice<'_, PageTracker>>, Error> {
    let mut out = Vec::with_capacity(segments.size_hint().1.unwrap_or(0).min(16));
    for s in segments {
        for slice in GuestMemoryTrait::get_slices(memory, s.start, s.len) {
            out.push(slice?);
        }
    }
    Ok(out)
}

/// Where the driver has put a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueSetup {
    /// Number of descriptors.
    pub size: u16,
    /// Enabled by the driver.
    pub ready: bool,
    /// Guest physical addresses of the descriptor table, the available and the used ring.
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

/// A virtqueue in use by a device.
pub struct VirtQueue {
    index: u16,
    ram: GuestRam,
    memory: Arc<GuestMemory>,
    ring: Queue,
    /// The used index when the driver was last considered for an interrupt.
    considered: Wrapping<u16>,
}

impl VirtQueue {
    /// Takes over a queue as the driver set it up.
    pub(crate) fn new(
        index: u16,
        max_size: u16,
        setup: &QueueSetup,
        event_idx: bool,
        ram: &GuestRam,
    ) -> Result<Self, Error> {
        let mut ring = Queue::new(max_size)?;
        ring.try_set_size(setup.size)?;
        ring.try_set_desc_table_address(GuestAddress(setup.descriptors))?;
        ring.try_set_avail_ring_address(GuestAddress(setup.available))?;
        ring.try_set_used_ring_address(GuestAddress(setup.used))?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        let memory = Arc::clone(ram.memory());
        // `virtio-queue` takes an available ring at address 0 for one that was never set.
        if setup.available == 0 || !ring.is_valid(&*memory) {
            return Err(Error::Ring(virtio_queue::Error::QueueNotReady));
        }
        Ok(Self { index, ram: ram.clone(), memory, ring, considered: Wrapping(0) })
    }

    /// Its index in the device.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The RAM its buffers are in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The RAM its buffers are in, with its regions.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Takes the next available chain into `chain`. Returns false if there is none.
    ///
    /// # Errors
    /// The driver has broken the rules; the queue is of no use until it is reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, Error> {
        if !self.has_available()? {
            return Ok(false);
        }
        let walk = self.ring.iter(&*self.memory)?.next();
        let walk = walk.ok_or(Error::Ring(virtio_queue::Error::InvalidAvailRingIndex))?;
        chain.fill(&self.memory, walk)?;
        Ok(true)
    }

    /// True if the driver has made a chain available that was not taken yet.
    ///
    /// # Errors
    /// As for [`VirtQueue::pop`].
    pub fn has_available(&self) -> Result<bool, Error> {
        Ok(self.ring.avail_idx(&*self.memory, Ordering::Acquire)?.0 != self.ring.next_avail())
    }

    /// Gives a chain back to the driver, `len` bytes of its writable part written.
    ///
    /// # Errors
    /// As for [`VirtQueue::pop`].
    pub fn add_used(&mut self, head: u16, len: usize) -> Result<(), Error> {
        Ok(self.ring.add_used(&*self.memory, head, u32::try_from(len).unwrap_or(u32::MAX))?)
    }

    /// Gives several chains back so that the driver sees all of them or none: (head, bytes written) each. At
    /// most as many as the queue has descriptors.
    ///
    /// # Errors
    /// As for [`VirtQueue::pop`].
    pub fn add_used_together(&mut self, chains: &[(u16, u32)]) -> Result<(), Error> {
        const HEADER: u64 = 4;
        const ELEMENT: u64 = 8;
        let Some((&(last, last_len), before)) = chains.split_last() else { return Ok(()) };
        // All elements but the last are written beyond the published index, which the last one then moves.
        for &(head, len) in before {
            let slot = u64::from(self.ring.next_used() % self.ring.size());
            let at = self.ring.used_ring() + HEADER + slot * ELEMENT;
            let element = (u64::from(len) << 32) | u64::from(head);
            self.memory.write_obj(element.to_le(), GuestAddress(at))?;
            self.ring.set_next_used(self.ring.next_used().wrapping_add(1));
        }
        Ok(self.ring.add_used(&*self.memory, last, last_len)?)
    }

    /// True if the driver wants an interrupt for what was used since the last call.
    ///
    /// # Errors
    /// As for [`VirtQueue::pop`].
    pub fn needs_interrupt(&mut self) -> Result<bool, Error> {
        let used = Wrapping(self.ring.next_used());
        let before = std::mem::replace(&mut self.considered, used);
        if used == before {
            return Ok(false);
        }
        // The used index must be out before the driver's wish is read (Virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        let ring = self.ring.avail_ring();
        if self.ring.event_idx_enabled() {
            let at = GuestAddress(ring + 4 + 2 * u64::from(self.ring.size()));
            let event = Wrapping(u16::from_le(self.memory.load::<u16>(at, Ordering::Relaxed)?));
            Ok(used - event - Wrapping(1) < used - before)
        } else {
            let flags = u16::from_le(self.memory.load::<u16>(GuestAddress(ring), Ordering::Relaxed)?);
            Ok(flags & AVAIL_NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver to notify the device of the next available buffer. Returns true if there is one
    /// already, for which no notification may come.
    ///
    /// # Errors
    /// As for [`VirtQueue::pop`].
    pub fn enable_kicks(&mut self) -> Result<bool, Error> {
        Ok(self.ring.enable_notification(&*self.memory)?)
    }

    /// Tells the driver that notifications are not needed now.
    ///
    /// # Errors
    /// As for [`VirtQueue::pop`].
    pub fn disable_kicks(&mut self) -> Result<(), Error> {
        Ok(self.ring.disable_notification(&*self.memory)?)
    }
}
