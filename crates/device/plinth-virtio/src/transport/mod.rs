//! What both transports share: feature negotiation, the device status and queue set-up.

pub(crate) mod mmio;
pub(crate) mod pci;

use plinth_memory::GuestRam;

use crate::queue::QueueSetup;
use crate::{Activation, DeviceKind, Error, Interrupt, VirtQueue, VirtioDevice};

/// `VIRTIO_F_INDIRECT_DESC`.
const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub(crate) const F_VERSION_1: u64 = 1 << 32;

/// Device status bits (Virtio 1.2, 2.1).
mod status {
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    pub(super) const NEEDS_RESET: u8 = 64;
    /// What a driver may set: ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK and FAILED.
    pub(super) const DRIVERS: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;
}

/// What the guest has programmed, gone at a reset.
#[derive(Default)]
struct Registers {
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl Registers {
    fn new(max_sizes: &[u16]) -> Self {
        let queues = max_sizes.iter().map(|&size| QueueSetup { size, ..QueueSetup::default() }).collect();
        Self { queues, ..Self::default() }
    }
}

/// Which address of a queue.
#[derive(Clone, Copy)]
pub(crate) enum RingPart {
    Descriptors,
    Available,
    Used,
}

/// Half of a 64-bit register.
#[derive(Clone, Copy)]
pub(crate) enum Half {
    Low,
    High,
}

/// A device and the transport-independent registers in front of it.
pub(crate) struct Core {
    kind: DeviceKind,
    offered: u64,
    max_sizes: Vec<u16>,
    ram: GuestRam,
    interrupt: Interrupt,
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    active: bool,
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, part: Half, half: u32) {
    *value = match part {
        Half::Low => (*value & !0xffff_ffff) | u64::from(half),
        Half::High => (*value & 0xffff_ffff) | (u64::from(half) << 32),
    };
}

impl Core {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, ram: GuestRam, interrupt: Interrupt) -> Self {
        let max_sizes = device.queue_sizes();
        Self {
            kind: device.kind(),
            offered: device.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC,
            registers: Registers::new(&max_sizes),
            max_sizes,
            ram,
            interrupt,
            device,
            active: false,
        }
    }

    pub(crate) fn kind(&self) -> DeviceKind {
        self.kind
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    pub(crate) fn queue_count(&self) -> u16 {
        self.max_sizes.len() as u16
    }

    pub(crate) fn device_feature_select(&self) -> u32 {
        self.registers.device_feature_select
    }

    pub(crate) fn set_device_feature_select(&mut self, select: u32) {
        self.registers.device_feature_select = select;
    }

    pub(crate) fn device_features(&self) -> u32 {
        half(self.offered, self.registers.device_feature_select)
    }

    pub(crate) fn driver_feature_select(&self) -> u32 {
        self.registers.driver_feature_select
    }

    pub(crate) fn set_driver_feature_select(&mut self, select: u32) {
        self.registers.driver_feature_select = select;
    }

    pub(crate) fn driver_features(&self) -> u32 {
        half(self.registers.driver_features, self.registers.driver_feature_select)
    }

    pub(crate) fn set_driver_features(&mut self, value: u32) {
        let part = match self.registers.driver_feature_select {
            0 => Half::Low,
            1 => Half::High,
            _ => return,
        };
        if self.registers.status & status::FEATURES_OK == 0 {
            set_half(&mut self.registers.driver_features, part, value);
        }
    }

    pub(crate) fn queue_select(&self) -> u16 {
        self.registers.queue_select
    }

    pub(crate) fn set_queue_select(&mut self, queue: u16) {
        self.registers.queue_select = queue;
    }

    /// The selected queue as it is set up; `None` if there is no such queue.
    pub(crate) fn queue(&self) -> Option<&QueueSetup> {
        self.registers.queues.get(usize::from(self.registers.queue_select))
    }

    pub(crate) fn max_queue_size(&self) -> u16 {
        self.max_sizes.get(usize::from(self.registers.queue_select)).copied().unwrap_or(0)
    }

    /// The selected queue, if it may still be changed.
    fn queue_mut(&mut self) -> Option<&mut QueueSetup> {
        if self.registers.status & status::DRIVER_OK != 0 {
            return None;
        }
        self.registers.queues.get_mut(usize::from(self.registers.queue_select))
    }

    pub(crate) fn set_queue_size(&mut self, size: u16) {
        if let Some(q) = self.queue_mut().filter(|q| !q.ready) {
            q.size = size;
        }
    }

    pub(crate) fn set_queue_ready(&mut self, ready: bool) {
        if let Some(q) = self.queue_mut() {
            q.ready = ready;
        }
    }

    pub(crate) fn set_queue_address(&mut self, part: RingPart, half: Half, value: u32) {
        if let Some(q) = self.queue_mut().filter(|q| !q.ready) {
            let address = match part {
                RingPart::Descriptors => &mut q.descriptors,
                RingPart::Available => &mut q.available,
                RingPart::Used => &mut q.used,
            };
            set_half(address, half, value);
        }
    }

    pub(crate) fn status(&self) -> u8 {
        let needs_reset = if self.interrupt.needs_reset() { status::NEEDS_RESET } else { 0 };
        self.registers.status | needs_reset
    }

    /// Writes the device status. Returns true if it was a reset.
    pub(crate) fn set_status(&mut self, value: u8) -> bool {
        if value == 0 {
            self.reset();
            return true;
        }
        let mut added = value & status::DRIVERS & !self.registers.status;
        if added & status::FEATURES_OK != 0 && !self.features_acceptable() {
            added &= !status::FEATURES_OK;
        }
        self.registers.status |= added;
        if added & status::DRIVER_OK != 0 && self.registers.status & status::FEATURES_OK != 0 {
            match self.activate() {
                Ok(()) => self.active = true,
                Err(e) => self.interrupt.fail(&e),
            }
        }
        false
    }

    /// Legacy drivers, and those that accept what was not offered, are refused.
    fn features_acceptable(&self) -> bool {
        let f = self.registers.driver_features;
        f & !self.offered == 0 && f & F_VERSION_1 != 0
    }

    fn activate(&mut self) -> Result<(), Error> {
        let features = self.registers.driver_features;
        let mut queues = Vec::with_capacity(self.max_sizes.len());
        for (index, (setup, &max)) in self.registers.queues.iter().zip(&self.max_sizes).enumerate() {
            queues.push(if setup.ready {
                let event_idx = features & F_EVENT_IDX != 0;
                Some(VirtQueue::new(index as u16, max, setup, event_idx, &self.ram)?)
            } else {
                None
            });
        }
        self.device.activate(Activation {
            features,
            queues,
            interrupt: self.interrupt.clone(),
            ram: self.ram.clone(),
        })
    }

    pub(crate) fn notify(&mut self, queue: u16) {
        if self.active && usize::from(queue) < self.max_sizes.len() {
            self.device.queue_notify(queue);
        }
    }

    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    pub(crate) fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// Back to power-on. No thread of the device interrupts afterwards.
    pub(crate) fn reset(&mut self) {
        self.device.reset();
        self.active = false;
        self.registers = Registers::new(&self.max_sizes);
        self.interrupt.clear_failure();
    }
}
