//! Entry points for fuzzing: rings and requests made from bytes, served without threads.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use plinth_device::{
    BlockBackend, BlockError, FrameMeta, IoOutcome, IrqLine, IrqSink, MmioDevice, NetBackend, NetCaps,
    SendOutcome,
};
use plinth_memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::blk::{BlkQueue, Disk};
use crate::interrupt::{Cause, Raise};
use crate::net::NetQueues;
use crate::queue::QueueSetup;
use crate::worker::Stop;
use crate::{Balloon, BalloonConfig, Chain, Interrupt, Rng, VirtQueue, VirtioDevice, VirtioMmio};

const LOW: (u64, u64) = (0x8000_0000, 0x1_0000);
/// Right behind the first region, so that buffers can cross from one into the other.
const NEXT: (u64, u64) = (0x8001_0000, 0x4000);
const APART: (u64, u64) = (0x9000_0000, 0x4000);

const DESCRIPTORS: u64 = LOW.0;
const AVAILABLE: u64 = LOW.0 + 0x2000;
const USED: u64 = LOW.0 + 0x3000;
const INDIRECT: u64 = LOW.0 + 0x4000;
const PAYLOAD: u64 = LOW.0 + 0x5000;

const MAX_SIZE: u16 = 256;

/// Hands out the input; zeros after its end.
struct Input<'d>(&'d [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Descriptor `index` of a table. Left alone they are chains of four, two to read and two to write; one
    /// value in eight or so breaks that.
    fn descriptor(&mut self, index: u16) -> [u8; 16] {
        const NEXT_FLAG: u8 = 1;
        const WRITE: u8 = 2;
        const INDIRECT_FLAG: u8 = 4;
        let (at, shape, place, size) = (self.half(), self.byte(), self.byte(), self.byte());
        let regular = match index % 4 {
            0 | 1 => NEXT_FLAG,
            2 => NEXT_FLAG | WRITE,
            _ => WRITE,
        };
        let (flags, next) = match shape {
            0..0xf0 => (regular, index + 1),
            0xf0..0xf8 => (INDIRECT_FLAG, 0),
            _ => (shape & 7, at % 64),
        };
        let address = match place {
            0..0x40 => PAYLOAD + u64::from(at % 0x7000),
            0x40..0xf0 => PAYLOAD + 16 * u64::from(at % 0x100),
            0xf0..0xf8 => APART.0 + u64::from(at % 0x3000),
            0xf8..0xfd => NEXT.0 - u64::from(at % 64),
            0xfd => u64::MAX - u64::from(at),
            _ => u64::from(at) << 20,
        };
        let len = match size {
            0..0x40 if index.is_multiple_of(4) => 12,
            0x40..0xc0 if index.is_multiple_of(4) => 16,
            0..0x40 => 512,
            0x40..0xa0 => 1,
            0xa0..0xc0 => 1024,
            0xc0..0xf8 => u32::from(at % 1600),
            0xf8..0xfe => u32::from(at),
            _ => u32::from(at) << 16,
        };
        let (address, len) =
            if flags & INDIRECT_FLAG != 0 { (INDIRECT, 16 * (len % 24)) } else { (address, len) };
        let mut d = [0; 16];
        d[0..8].copy_from_slice(&address.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12] = flags;
        d[14..16].copy_from_slice(&next.to_le_bytes());
        d
    }
}

struct Quiet;
impl Raise for Quiet {
    fn raise(&self, _cause: Cause) {}
}

fn memory() -> GuestRam {
    GuestRam::new(&[LOW, NEXT, APART]).expect("the host has 96 KiB")
}

/// Lays out a ring in `ram` as the input says, with the payload behind it. `None` if the queue is refused.
fn ring(ram: &GuestRam, input: &mut Input<'_>) -> Option<VirtQueue> {
    let memory = ram.memory();
    let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).expect("within RAM");
    let shape = input.byte();
    let size = if shape & 0x0f == 0 { 1 } else { 32 << (shape % 4) };
    for i in 0..48 {
        put(DESCRIPTORS + 16 * u64::from(i), &input.descriptor(i));
    }
    for i in 0..24 {
        put(INDIRECT + 16 * u64::from(i), &input.descriptor(i));
    }
    let heads = u16::from(input.byte() % 32);
    put(AVAILABLE, &u16::from(shape & 0x10 != 0).to_le_bytes());
    put(AVAILABLE + 2, &heads.to_le_bytes());
    for i in 0..u64::from(heads) {
        let head = input.byte();
        let head = if head < 0xfc { 4 * (head % 8) } else { head };
        put(AVAILABLE + 4 + 2 * i, &u16::from(head).to_le_bytes());
    }
    // Headers of requests that mean something, and anything after them.
    for i in 0..0x100 {
        let mut header = [0; 16];
        (header[0], header[1]) = (input.byte() % 14, u8::from(input.byte() < 32));
        header[4] = input.byte();
        header[8] = input.byte() % 80;
        put(PAYLOAD + 16 * i, &header);
    }
    let payload = &input.0[..input.0.len().min(0x7000)];
    put(PAYLOAD + 0x1000, payload);
    let setup = QueueSetup { size, ready: true, descriptors: DESCRIPTORS, available: AVAILABLE, used: USED };
    VirtQueue::new(0, MAX_SIZE, &setup, shape & 0x20 != 0, ram).ok()
}

/// Walks all chains of a ring.
pub fn fuzz_virtqueue(data: &[u8]) {
    let ram = memory();
    let Some(mut queue) = ring(&ram, &mut Input(data)) else { return };
    let mut chain = Chain::default();
    let mut popped = 0;
    while let Ok(true) = queue.pop(&mut chain) {
        popped += 1;
        assert!(popped <= queue.size(), "more chains than descriptors");
        for s in chain.writable() {
            assert!(s.len != 0 && memory_has(&ram, s.start.0, s.len as u64), "{s:x?} is not RAM");
        }
        let mut bytes = [0; 64];
        let n = chain.read(ram.memory(), 3, &mut bytes).expect("a checked chain");
        assert_eq!(n, chain.readable_len().saturating_sub(3).min(64));
        let n = chain.write(ram.memory(), 5, &bytes).expect("a checked chain");
        assert_eq!(n, chain.writable_len().saturating_sub(5).min(64));
        if queue.add_used(chain.head(), n).is_err() {
            break;
        }
    }
    // What the driver left in the ring may make these fail, but nothing more.
    let _ = queue.needs_interrupt();
    let _ = queue.enable_kicks();
}

/// Whether all bytes are RAM, regions that touch taken together.
fn memory_has(ram: &GuestRam, gpa: u64, len: u64) -> bool {
    let end = gpa.checked_add(len);
    end.is_some_and(|end| (gpa >= LOW.0 && end <= NEXT.0 + NEXT.1) || ram.region(gpa, len).is_some())
}

/// A small disk in memory.
struct MemoryDisk(Mutex<Vec<u8>>);

impl MemoryDisk {
    fn bytes(&self, offset: u64, len: u64) -> (MutexGuard<'_, Vec<u8>>, std::ops::Range<usize>) {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset.checked_add(len).expect("a checked range");
        assert!(end <= bytes.len() as u64, "a request beyond the disk's end");
        (bytes, offset as usize..end as usize)
    }
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), BlockError> {
        let mut at = offset;
        for buf in bufs {
            let (bytes, range) = self.bytes(at, buf.len() as u64);
            buf.copy_from_slice(&bytes[range]);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), BlockError> {
        let mut at = offset;
        for buf in bufs {
            let (mut bytes, range) = self.bytes(at, buf.len() as u64);
            bytes[range].copy_from_slice(buf);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), BlockError> {
        let (mut bytes, range) = self.bytes(offset, len);
        bytes[range].fill(0);
        Ok(())
    }
}

/// Serves a ring of block requests.
pub fn fuzz_blk(data: &[u8]) {
    let ram = memory();
    let Some(queue) = ring(&ram, &mut Input(data)) else { return };
    let disk = Disk::new(Arc::new(MemoryDisk(Mutex::new(vec![7; 0x8000]))), "fuzz");
    let mut queue = BlkQueue::new(queue, Arc::new(disk), Interrupt::new(Box::new(Quiet)));
    // A broken ring is an error; anything else would be a panic.
    let _ = queue.drain(&Stop::default());
}

/// Sends every frame back to the guest.
struct Echo(VecDeque<(Vec<u8>, FrameMeta)>);

impl NetBackend for Echo {
    fn caps(&self) -> NetCaps {
        NetCaps { csum: true, tso_from_guest: true, tso_to_guest: true }
    }

    fn set_offloads(&mut self, _accepted: NetCaps) {}

    fn send(&mut self, frame: &[u8], meta: FrameMeta) -> SendOutcome {
        if let Some((start, offset)) = meta.partial_csum {
            assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
        }
        if let Some(gso) = meta.gso {
            assert!(gso.size != 0 && usize::from(gso.header_len) < frame.len());
        }
        if self.0.len() == 8 {
            return SendOutcome::Full;
        }
        self.0.push_back((frame.to_vec(), meta));
        SendOutcome::Taken
    }

    fn recv(&mut self, buf: &mut [u8]) -> Option<(usize, FrameMeta)> {
        let (frame, meta) = self.0.pop_front()?;
        buf[..frame.len()].copy_from_slice(&frame);
        Some((frame.len(), meta))
    }

    fn poll_fd(&self) -> RawFd {
        -1
    }

    fn process(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
}

/// Moves the frames of a ring to an echoing network and back into another ring.
pub fn fuzz_net(data: &[u8]) {
    let (Some((&features, data)), (tx_ram, rx_ram)) = (data.split_first(), (memory(), memory())) else {
        return;
    };
    let (first, second) = data.split_at(data.len() / 2);
    let (Some(tx), Some(rx)) = (ring(&tx_ram, &mut Input(first)), ring(&rx_ram, &mut Input(second))) else {
        return;
    };
    let all = u64::from(features & 3) | 0x1980 | (u64::from(features & 4) << 13);
    let irq = Interrupt::new(Box::new(Quiet));
    let mut net = NetQueues::new(Some(rx), Some(tx), Box::new(Echo(VecDeque::new())), all, irq);
    let mut rounds = 0;
    while let Ok(true) = net.move_frames() {
        rounds += 1;
        assert!(rounds <= 2 * MAX_SIZE, "frames without end");
    }
}

struct NoLine;
impl IrqSink for NoLine {
    fn set_irq(&self, _line: u32, _level: bool) {}
}

/// Drives the registers of an entropy device or a balloon behind MMIO, rings included.
pub fn fuzz_transport(data: &[u8]) {
    let mut input = Input(data);
    let ram = memory();
    let shape = input.byte();
    let device: Box<dyn VirtioDevice> = if shape & 1 == 0 {
        Box::new(Rng::new())
    } else {
        Box::new(Balloon::new(BalloonConfig::default(), Arc::new(ram.clone())).0)
    };
    let device = VirtioMmio::new(device, ram.clone(), IrqLine::new(Arc::new(NoLine), 0));
    if shape & 2 != 0 {
        // A driver's usual way up to a running queue, so that the rest of the input finds one.
        for (offset, value) in [
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x70, 11),
            (0x38, 16),
            (0x80, DESCRIPTORS as u32),
            (0x90, AVAILABLE as u32),
            (0xa0, USED as u32),
            (0x44, 1),
            (0x70, 15),
        ] {
            assert_eq!(device.write(offset, &u32::to_le_bytes(value)), IoOutcome::Done);
        }
    }
    while !input.0.is_empty() {
        let (step, offset) = (input.byte(), u64::from(input.byte()) * 4);
        let word = [input.byte(), input.byte(), input.byte(), input.byte()];
        // Refused accesses are part of what is tried.
        let _ = match step % 8 {
            0 => device.read(offset, &mut [0; 8][..1 << (word[0] % 4)]),
            1 => device.write(offset, &word[..1 << (word[0] % 3)]),
            2 => device.write(0x50, &[word[0] % 4, 0, 0, 0]),
            3 => {
                let at = GuestAddress(DESCRIPTORS + 16 * u64::from(word[0] % 16));
                ram.memory().write_slice(&input.descriptor(u16::from(word[1])), at).expect("within RAM");
                IoOutcome::Done
            }
            4 => {
                let at = GuestAddress(AVAILABLE + 2 * u64::from(word[0] % 20));
                ram.memory().write_obj(u16::from(word[1] % 32), at).expect("within RAM");
                IoOutcome::Done
            }
            5 => device.write(0x20 + (offset & 0x9c), &word),
            _ => device.write(offset & 0xff, &word),
        };
    }
}
