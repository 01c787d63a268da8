//! Virtio over MMIO, version 2 (Virtio 1.2, 4.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plinth_device::{Device, IoOutcome, IrqLine, MmioDevice};
use plinth_memory::GuestRam;

use super::{Core, Half, RingPart};
use crate::interrupt::{Cause, Raise};
use crate::{Interrupt, VirtioDevice};

/// Bytes of guest physical address space that a virtio-mmio device takes.
pub const MMIO_SIZE: u64 = 0x1000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// `PLTH`: who made the device. Drivers do not look at it.
const VENDOR: u32 = u32::from_le_bytes(*b"PLTH");
const CONFIG: u64 = 0x100;

/// Register offsets (Virtio 1.2, table 4.1).
mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(super) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(super) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
}

/// The interrupt status register and the line it drives.
struct Line {
    pending: Mutex<u32>,
    irq: IrqLine,
}

impl Line {
    /// The line is set under the lock: a new interrupt and an acknowledgement must not pass each other.
    fn update(&self, change: impl FnOnce(&mut u32)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *pending != 0;
        change(&mut pending);
        if before != (*pending != 0) {
            self.irq.set(*pending != 0);
        }
    }

    fn pending(&self) -> u32 {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Raise for Arc<Line> {
    fn raise(&self, cause: Cause) {
        let bit = if matches!(cause, Cause::Queue(_)) { 1 } else { 2 };
        self.update(|pending| *pending |= bit);
    }
}

/// A virtio device behind MMIO registers and one interrupt line.
pub struct VirtioMmio {
    name: &'static str,
    line: Arc<Line>,
    core: Mutex<Core>,
}

impl VirtioMmio {
    /// Puts `device`, which works on `ram`, behind registers of [`MMIO_SIZE`] bytes and interrupts on `irq`.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, ram: GuestRam, irq: IrqLine) -> Arc<Self> {
        let line = Arc::new(Line { pending: Mutex::new(0), irq });
        let interrupt = Interrupt::new(Box::new(Arc::clone(&line)));
        let core = Core::new(device, ram, interrupt);
        Arc::new(Self { name: core.kind().name(), line, core: Mutex::new(core) })
    }

    /// Why the device needs, or last needed, a reset by its driver.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.core().interrupt().failure()
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == register::INTERRUPT_STATUS {
            return self.line.pending();
        }
        let core = self.core();
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => u32::from(core.kind().id()),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => core.device_features(),
            register::QUEUE_NUM_MAX => u32::from(core.max_queue_size()),
            register::QUEUE_READY => u32::from(core.queue().is_some_and(|q| q.ready)),
            register::STATUS => u32::from(core.status()),
            // No shared memory regions: length and base are all ones.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => core.interrupt().generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == register::INTERRUPT_ACK {
            self.line.update(|pending| *pending &= !value);
            return;
        }
        let mut core = self.core();
        match offset {
            register::DEVICE_FEATURES_SEL => core.set_device_feature_select(value),
            register::DRIVER_FEATURES => core.set_driver_features(value),
            register::DRIVER_FEATURES_SEL => core.set_driver_feature_select(value),
            register::QUEUE_SEL => core.set_queue_select(u16::try_from(value).unwrap_or(u16::MAX)),
            register::QUEUE_NUM => core.set_queue_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => core.set_queue_ready(value & 1 != 0),
            register::QUEUE_NOTIFY => core.notify(u16::try_from(value).unwrap_or(u16::MAX)),
            register::STATUS => {
                if core.set_status(value as u8) {
                    self.line.update(|pending| *pending = 0);
                }
            }
            _ => {
                let half = if offset.is_multiple_of(8) { Half::Low } else { Half::High };
                match offset & !7 {
                    register::QUEUE_DESC => core.set_queue_address(RingPart::Descriptors, half, value),
                    register::QUEUE_DRIVER => core.set_queue_address(RingPart::Available, half, value),
                    register::QUEUE_DEVICE => core.set_queue_address(RingPart::Used, half, value),
                    _ => {}
                }
            }
        }
    }
}

impl MmioDevice for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.core().read_config(at as usize, data);
        } else if let (Ok(word), true) = (<&mut [u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            *word = self.read_register(offset).to_le_bytes();
        } else {
            // Registers are accessed as aligned 32-bit words only.
            return IoOutcome::Fault;
        }
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.core().write_config(at as usize, data);
        } else if let (Ok(word), true) = (<[u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(word));
        } else {
            return IoOutcome::Fault;
        }
        IoOutcome::Done
    }
}

impl Device for VirtioMmio {
    fn name(&self) -> &str {
        self.name
    }

    fn reset(&self) {
        let mut core = self.core();
        core.reset();
        self.line.update(|pending| *pending = 0);
    }
}
