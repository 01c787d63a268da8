//! A guest's driver side: virtqueues in RAM, and devices reached over MMIO or PCI.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use plinth_device::{Bus, Device, IrqLine, IrqSink, MmioDevice, MsiSink, Range};
use plinth_memory::{Bytes, GuestAddress, GuestRam};
use plinth_pci::{PciHost, PciHostConfig};
use plinth_vcpu::PhysicalBus;
use plinth_virtio::{MMIO_SIZE, VirtioDevice, VirtioMmio, VirtioPci};

pub const RAM: u64 = 0x8000_0000;
pub const RAM_SIZE: u64 = 8 << 20;
/// Where tests put their buffers; the queues are below.
pub const BUFFERS: u64 = RAM + 0x10_0000;

pub const F_INDIRECT: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_VERSION_1: u64 = 1 << 32;

const MMIO: u64 = 0x1000_0000;
const ECAM: u64 = 0x3000_0000;
const WINDOW: u64 = 0x4000_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts interrupts: rising edges of each line, and messages by their data.
#[derive(Default)]
pub struct Interrupts {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    levels: [bool; 8],
    edges: u32,
    messages: Vec<u32>,
}

impl IrqSink for Interrupts {
    fn set_irq(&self, line: u32, level: bool) {
        let mut s = self.state.lock().unwrap();
        let before = std::mem::replace(&mut s.levels[line as usize], level);
        s.edges += u32::from(level && !before);
        self.changed.notify_all();
    }
}

impl MsiSink for Interrupts {
    fn send(&self, address: u64, data: u32) {
        assert_eq!(address, 0x2800_0000);
        self.state.lock().unwrap().messages.push(data);
        self.changed.notify_all();
    }
}

/// How a device is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Mmio,
    PciMsix,
    PciIntx,
}

pub const ALL: [Via; 3] = [Via::Mmio, Via::PciMsix, Via::PciIntx];

/// A guest with one device.
pub struct Guest {
    pub ram: GuestRam,
    pub interrupts: Arc<Interrupts>,
    via: Via,
    bus: Arc<Bus>,
    bar: u64,
    device: Arc<dyn Device>,
    /// Kept: the bus does not own the bridge's functions otherwise.
    _host: Option<Arc<PciHost>>,
    next_queue: Mutex<u64>,
}

impl Guest {
    pub fn new(via: Via, ram: GuestRam, device: Box<dyn VirtioDevice>) -> Self {
        let bus = Arc::new(Bus::new());
        let interrupts = Arc::new(Interrupts::default());
        let line = |n| IrqLine::new(interrupts.clone(), n);
        let (device, host): (Arc<dyn Device>, _) = if via == Via::Mmio {
            let device = VirtioMmio::new(device, ram.clone(), line(4));
            bus.insert(Range { start: MMIO, len: MMIO_SIZE }, device.clone() as Arc<dyn MmioDevice>).unwrap();
            (device, None)
        } else {
            let config = PciHostConfig {
                ecam: Range { start: ECAM, len: 0x10_0000 },
                windows: vec![Range { start: WINDOW, len: 0x100_0000 }],
            };
            let msi = (via == Via::PciMsix).then(|| interrupts.clone() as Arc<dyn MsiSink>);
            let host = PciHost::new(config, &bus, msi, [line(0), line(1), line(2), line(3)]).unwrap();
            let device = VirtioPci::new(device, ram.clone());
            host.add(3, device.clone()).unwrap();
            (device, Some(host))
        };
        let guest = Self {
            ram,
            interrupts,
            via,
            bus,
            bar: WINDOW,
            device,
            _host: host,
            next_queue: Mutex::new(RAM + 0x1000),
        };
        if via != Via::Mmio {
            guest.set_up_pci();
        }
        guest
    }

    pub fn ram() -> GuestRam {
        GuestRam::new(&[(RAM, RAM_SIZE)]).unwrap()
    }

    fn read(&self, gpa: u64, len: usize) -> u64 {
        let mut b = [0; 8];
        self.bus.read(gpa, &mut b[..len]).unwrap();
        u64::from_le_bytes(b)
    }

    fn write(&self, gpa: u64, len: usize, value: u64) {
        self.bus.write(gpa, &value.to_le_bytes()[..len]).unwrap();
    }

    fn cfg(&self, at: u64) -> u64 {
        ECAM + 3 * 0x8000 + at
    }

    /// Finds the structures through the capabilities, as a driver does, and checks where they are.
    fn set_up_pci(&self) {
        self.write(self.cfg(0x10), 4, self.bar);
        self.write(self.cfg(0x14), 4, 0);
        self.write(self.cfg(4), 2, 6);
        let mut found = Vec::new();
        let mut at = self.read(self.cfg(0x34), 1);
        while at != 0 {
            if self.read(self.cfg(at), 1) == 9 {
                let kind = self.read(self.cfg(at + 3), 1);
                found.push((kind, self.read(self.cfg(at + 8), 4)));
            }
            if self.read(self.cfg(at), 1) == 0x11 {
                self.write(self.cfg(at + 2), 2, 0x8000);
            }
            at = self.read(self.cfg(at + 1), 1);
        }
        assert_eq!(found, [(1, 0), (3, 0x1000), (4, 0x2000), (2, 0x3000), (5, 0)]);
    }

    /// Where the capability of type `kind` is in configuration space.
    fn capability(&self, kind: u64) -> u64 {
        let mut at = self.read(self.cfg(0x34), 1);
        while self.read(self.cfg(at), 1) != 9 || self.read(self.cfg(at + 3), 1) != kind {
            at = self.read(self.cfg(at + 1), 1);
            assert_ne!(at, 0, "no capability of type {kind}");
        }
        at
    }

    fn aim(&self, offset: u64, len: usize) -> u64 {
        let at = self.capability(5);
        self.write(self.cfg(at + 4), 1, 0);
        self.write(self.cfg(at + 8), 4, offset);
        self.write(self.cfg(at + 12), 4, len as u64);
        self.cfg(at + 16)
    }

    /// Reads the BAR through configuration space.
    pub fn read_through_config(&self, offset: u64, len: usize) -> u64 {
        let data = self.aim(offset, len);
        self.read(data, 4)
    }

    /// Writes the BAR through configuration space.
    pub fn write_through_config(&self, offset: u64, len: usize, value: u64) {
        let data = self.aim(offset, len);
        self.write(data, 4, value);
    }

    fn common(&self, at: u64) -> u64 {
        self.bar + at
    }

    pub fn status(&self) -> u8 {
        match self.via {
            Via::Mmio => self.read(MMIO + 0x70, 4) as u8,
            _ => self.read(self.common(0x14), 1) as u8,
        }
    }

    pub fn set_status(&self, value: u8) {
        match self.via {
            Via::Mmio => self.write(MMIO + 0x70, 4, value.into()),
            _ => self.write(self.common(0x14), 1, value.into()),
        }
    }

    pub fn offered(&self) -> u64 {
        let half = |select| match self.via {
            Via::Mmio => {
                self.write(MMIO + 0x14, 4, select);
                self.read(MMIO + 0x10, 4)
            }
            _ => {
                self.write(self.common(0), 4, select);
                self.read(self.common(4), 4)
            }
        };
        half(0) | (half(1) << 32)
    }

    /// Resets the device and accepts `features` beside those of every driver. Returns whether the device
    /// agreed.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        *self.next_queue.lock().unwrap() = RAM + 0x1000;
        self.set_status(3);
        let (select, value) = match self.via {
            Via::Mmio => (MMIO + 0x24, MMIO + 0x20),
            _ => (self.common(8), self.common(0xc)),
        };
        for (i, half) in [features & 0xffff_ffff, features >> 32].into_iter().enumerate() {
            self.write(select, 4, i as u64);
            self.write(value, 4, half);
        }
        self.set_status(11);
        if self.via == Via::PciMsix {
            self.write(self.common(0x10), 2, 0);
            self.set_vector(0, 99);
        }
        self.status() & 8 != 0
    }

    fn set_vector(&self, vector: u64, data: u64) {
        let entry = self.bar + 0x8000 + 16 * vector;
        self.write(entry, 8, 0x2800_0000);
        self.write(entry + 8, 4, data);
        self.write(entry + 12, 4, 0);
    }

    /// Puts queue `index` with `size` descriptors into RAM and enables it.
    pub fn queue(&self, index: u16, size: u16) -> Queue {
        let mut next = self.next_queue.lock().unwrap();
        let queue = Queue {
            ram: self.ram.clone(),
            index,
            size,
            descriptors: *next,
            available: *next + 0x4000,
            used: *next + 0x5000,
            seen: 0,
            free: 0,
            tables: *next + 0x8000,
        };
        *next += 0x1_8000;
        self.ram.memory().write_slice(&vec![0; 0x1_8000], GuestAddress(queue.descriptors)).unwrap();
        self.put_ring(&queue);
        queue
    }

    /// Tells the device where `queue` is and enables it.
    pub fn put_ring(&self, queue: &Queue) {
        let (index, size) = (queue.index, queue.size);
        let addresses = [queue.descriptors, queue.available, queue.used];
        if self.via == Via::Mmio {
            self.write(MMIO + 0x30, 4, index.into());
            assert!(self.read(MMIO + 0x34, 4) >= size.into());
            self.write(MMIO + 0x38, 4, size.into());
            for (i, address) in addresses.into_iter().enumerate() {
                self.write(MMIO + 0x80 + 0x10 * i as u64, 4, address & 0xffff_ffff);
                self.write(MMIO + 0x84 + 0x10 * i as u64, 4, address >> 32);
            }
            self.write(MMIO + 0x44, 4, 1);
        } else {
            self.write(self.common(0x16), 2, index.into());
            assert!(self.read(self.common(0x18), 2) >= size.into());
            self.write(self.common(0x18), 2, size.into());
            for (i, address) in addresses.into_iter().enumerate() {
                self.write(self.common(0x20 + 8 * i as u64), 4, address & 0xffff_ffff);
                self.write(self.common(0x24 + 8 * i as u64), 4, address >> 32);
            }
            if self.via == Via::PciMsix {
                let vector = u64::from(index) + 1;
                self.write(self.common(0x1a), 2, vector);
                assert_eq!(self.read(self.common(0x1a), 2), vector);
                self.set_vector(vector, 100 + u64::from(index));
            }
            self.write(self.common(0x1c), 2, 1);
        }
    }

    pub fn notify(&self, queue: u16) {
        match self.via {
            Via::Mmio => self.write(MMIO + 0x50, 4, queue.into()),
            _ => self.write(self.bar + 0x3000 + 4 * u64::from(queue), 2, queue.into()),
        }
    }

    pub fn read_config(&self, at: u64, len: usize) -> u64 {
        match self.via {
            Via::Mmio => self.read(MMIO + 0x100 + at, len),
            _ => self.read(self.bar + 0x2000 + at, len),
        }
    }

    pub fn write_config(&self, at: u64, len: usize, value: u64) {
        match self.via {
            Via::Mmio => self.write(MMIO + 0x100 + at, len, value),
            _ => self.write(self.bar + 0x2000 + at, len, value),
        }
    }

    /// Waits for an interrupt of `queue`, or of the configuration, and acknowledges it.
    pub fn wait_interrupt(&self, queue: Option<u16>) {
        let deadline = Instant::now() + PATIENCE;
        let mut s = self.interrupts.state.lock().unwrap();
        let data = queue.map_or(99, |q| 100 + u32::from(q));
        while !s.levels.contains(&true) && !s.messages.contains(&data) {
            assert!(Instant::now() < deadline, "no interrupt");
            s = self.interrupts.changed.wait_timeout(s, Duration::from_millis(100)).unwrap().0;
        }
        s.messages.retain(|&m| m != data);
        drop(s);
        let bit = if queue.is_some() { 1 } else { 2 };
        match self.via {
            Via::Mmio => {
                let status = self.read(MMIO + 0x60, 4);
                assert_ne!(status & bit, 0);
                self.write(MMIO + 0x64, 4, status);
            }
            Via::PciIntx => assert_ne!(self.read(self.bar + 0x1000, 1) & bit, 0),
            Via::PciMsix => {}
        }
    }

    /// Interrupts of any kind so far.
    pub fn interrupt_count(&self) -> u32 {
        let s = self.interrupts.state.lock().unwrap();
        s.edges + s.messages.len() as u32
    }

    pub fn line_is_high(&self) -> bool {
        self.interrupts.state.lock().unwrap().levels.contains(&true)
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_needs_reset(&self) {
        wait_until("the device to need a reset", || self.status() & 64 != 0);
        self.wait_interrupt(None);
    }

    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub fn get(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A buffer: address, length and whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// The driver's side of a split virtqueue.
pub struct Queue {
    ram: GuestRam,
    pub index: u16,
    size: u16,
    pub descriptors: u64,
    pub available: u64,
    used: u64,
    seen: u16,
    free: u16,
    tables: u64,
}

impl Queue {
    fn load(&self, gpa: u64) -> u16 {
        let order = std::sync::atomic::Ordering::Acquire;
        self.ram.memory().load(GuestAddress(gpa), order).unwrap()
    }

    fn store(&self, gpa: u64, value: u16) {
        let order = std::sync::atomic::Ordering::SeqCst;
        self.ram.memory().store(value, GuestAddress(gpa), order).unwrap();
    }

    fn descriptor(&self, table: u64, i: u16, buffer: Buffer, next: Option<u16>) {
        let (address, len, write) = buffer;
        let flags = u16::from(next.is_some()) | (u16::from(write) << 1);
        self.raw_descriptor(table, i, address, len, flags, next.unwrap_or(0));
    }

    pub fn raw_descriptor(&self, table: u64, i: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut d = [0; 16];
        d[0..8].copy_from_slice(&address.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&flags.to_le_bytes());
        d[14..16].copy_from_slice(&next.to_le_bytes());
        self.ram.memory().write_slice(&d, GuestAddress(table + 16 * u64::from(i))).unwrap();
    }

    /// Makes a chain of `buffers` available; returns its head. Descriptors are handed out round and round:
    /// a test must not have more in flight than there are.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let n = buffers.len() as u16;
        let head = self.free;
        for (i, &b) in buffers.iter().enumerate() {
            let at = (head + i as u16) % self.size;
            let next = (i as u16 + 1 < n).then_some((at + 1) % self.size);
            self.descriptor(self.descriptors, at, b, next);
        }
        self.free = (head + n) % self.size;
        self.publish(head);
        head
    }

    /// The same through an indirect table.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.free;
        let table = self.tables + u64::from(head) * 0x100;
        for (i, &b) in buffers.iter().enumerate() {
            let next = (i + 1 < buffers.len()).then_some(i as u16 + 1);
            self.descriptor(table, i as u16, b, next);
        }
        self.raw_descriptor(self.descriptors, head, table, 16 * buffers.len() as u32, 4, 0);
        self.free = (head + 1) % self.size;
        self.publish(head);
        head
    }

    pub fn publish(&mut self, head: u16) {
        let idx = self.load(self.available + 2);
        self.store(self.available + 4 + 2 * u64::from(idx % self.size), head);
        self.store(self.available + 2, idx.wrapping_add(1));
    }

    /// Chains seen to be used, as a ring index.
    pub fn seen(&self) -> u16 {
        self.seen
    }

    pub fn set_available_index(&self, idx: u16) {
        self.store(self.available + 2, idx);
    }

    /// `used_event`: interrupt when the used index passes it.
    pub fn set_used_event(&self, idx: u16) {
        self.store(self.available + 4 + 2 * u64::from(self.size), idx);
    }

    /// The device's `avail_event`.
    pub fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    pub fn set_no_interrupt(&self) {
        self.store(self.available, 1);
    }

    /// The next used chain: (head, length).
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used + 2) == self.seen {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let element: u64 = self.ram.memory().read_obj(GuestAddress(at)).unwrap();
        Some((element as u16, (element >> 32) as u32))
    }

    pub fn wait_used(&mut self) -> (u16, u32) {
        let mut got = None;
        wait_until("a used buffer", || {
            got = self.used();
            got.is_some()
        });
        got.unwrap()
    }
}
