//! Virtio over PCI, modern only (Virtio 1.2, 4.1).

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use plinth_device::{Device, IoOutcome};
use plinth_memory::GuestRam;
use plinth_pci::{
    BarSpec, BarWidth, Capability, ConfigWindow, FunctionConfig, MsixSpec, PciFunction, PciIrq, WindowSpec,
};

use super::{Core, Half, RingPart};
use crate::interrupt::{Cause, Raise};
use crate::{DeviceKind, Interrupt, VirtioDevice};

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;

/// BAR 0 holds everything, one page and more for each structure.
const BAR: usize = 0;
const BAR_SIZE: u64 = 0x1_0000;
const COMMON: u64 = 0x0000;
const COMMON_SIZE: u64 = 0x40;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DEVICE_SIZE: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;
const NOTIFY_SIZE: u64 = 0x1000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;
const MSIX_TABLE: u32 = 0x8000;
const MSIX_PBA: u32 = 0xc000;
const NO_VECTOR: u16 = 0xffff;

/// Capability types (Virtio 1.2, 4.1.4).
mod cap {
    pub(super) const ID: u8 = 0x09;
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// Offsets in the common configuration structure (Virtio 1.2, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(super) const DEVICE_FEATURE: u64 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(super) const DRIVER_FEATURE: u64 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(super) const NUM_QUEUES: u64 = 0x12;
    pub(super) const DEVICE_STATUS: u64 = 0x14;
    pub(super) const CONFIG_GENERATION: u64 = 0x15;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
    pub(super) const END: u64 = 0x38;
}

/// Interrupts: MSI-X vectors as the driver assigned them, or the ISR register and INTx.
struct Vectors {
    pci: OnceLock<Arc<PciIrq>>,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    isr: Mutex<u8>,
}

impl Vectors {
    fn new(queues: usize) -> Self {
        Self {
            pci: OnceLock::new(),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: Mutex::new(0),
        }
    }

    /// Reading the ISR register acknowledges. INTx is set under the lock: a new interrupt and an
    /// acknowledgement must not pass each other.
    fn update_isr(&self, change: impl FnOnce(&mut u8)) {
        let mut isr = self.isr.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *isr != 0;
        change(&mut isr);
        if let Some(pci) = self.pci.get()
            && before != (*isr != 0)
        {
            pci.set_intx(*isr != 0);
        }
    }

    fn slot(&self, queue: u16) -> Option<&AtomicU16> {
        self.queues.get(usize::from(queue))
    }

    fn get(slot: Option<&AtomicU16>) -> u16 {
        slot.map_or(NO_VECTOR, |v| v.load(Ordering::SeqCst))
    }

    /// A vector that does not exist is not taken; the driver reads back that there is none.
    fn assign(&self, slot: Option<&AtomicU16>, vector: u16) {
        if let Some(slot) = slot {
            let exists = usize::from(vector) <= self.queues.len();
            slot.store(if exists { vector } else { NO_VECTOR }, Ordering::SeqCst);
        }
    }

    fn reset(&self) {
        for v in self.queues.iter().chain([&self.config]) {
            v.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.update_isr(|isr| *isr = 0);
    }
}

impl Raise for Arc<Vectors> {
    fn raise(&self, cause: Cause) {
        let Some(pci) = self.pci.get() else { return };
        if pci.msix_enabled() {
            let vector = match cause {
                Cause::Queue(q) => Vectors::get(self.slot(q)),
                Cause::Config => Vectors::get(Some(&self.config)),
            };
            if vector != NO_VECTOR {
                pci.trigger(vector);
            }
        } else {
            let bit = if matches!(cause, Cause::Queue(_)) { 1 } else { 2 };
            self.update_isr(|isr| *isr |= bit);
        }
    }
}

/// The registers of the function, shared with its capability that reaches them through configuration space.
struct Registers {
    vectors: Arc<Vectors>,
    core: Mutex<Core>,
}

impl Registers {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_common(&self, at: u64) -> (u64, usize) {
        let core = self.core();
        let queue = core.queue_select();
        let setup = core.queue().copied().unwrap_or_default();
        let (value, size) = match at {
            common::DEVICE_FEATURE_SELECT => (u64::from(core.device_feature_select()), 4),
            common::DEVICE_FEATURE => (u64::from(core.device_features()), 4),
            common::DRIVER_FEATURE_SELECT => (u64::from(core.driver_feature_select()), 4),
            common::DRIVER_FEATURE => (u64::from(core.driver_features()), 4),
            common::CONFIG_MSIX_VECTOR => (u64::from(Vectors::get(Some(&self.vectors.config))), 2),
            common::NUM_QUEUES => (u64::from(core.queue_count()), 2),
            common::DEVICE_STATUS => (u64::from(core.status()), 1),
            common::CONFIG_GENERATION => (u64::from(core.interrupt().generation() as u8), 1),
            common::QUEUE_SELECT => (u64::from(queue), 2),
            // The size of a queue that does not exist is 0.
            common::QUEUE_SIZE => (u64::from(setup.size), 2),
            common::QUEUE_MSIX_VECTOR => (u64::from(Vectors::get(self.vectors.slot(queue))), 2),
            common::QUEUE_ENABLE => (u64::from(setup.ready), 2),
            common::QUEUE_NOTIFY_OFF => (u64::from(queue), 2),
            common::QUEUE_DESC..common::QUEUE_DRIVER => (setup.descriptors, 8),
            common::QUEUE_DRIVER..common::QUEUE_DEVICE => (setup.available, 8),
            common::QUEUE_DEVICE..common::END => (setup.used, 8),
            _ => (0, 8),
        };
        // The high half of an address is read on its own.
        if size == 8 && at % 8 == 4 { (value >> 32, 4) } else { (value, size) }
    }

    fn write_common(&self, at: u64, value: u64, len: usize) {
        let mut core = self.core();
        let queue = core.queue_select();
        match (at, len) {
            (common::DEVICE_FEATURE_SELECT, 4) => core.set_device_feature_select(value as u32),
            (common::DRIVER_FEATURE_SELECT, 4) => core.set_driver_feature_select(value as u32),
            (common::DRIVER_FEATURE, 4) => core.set_driver_features(value as u32),
            (common::CONFIG_MSIX_VECTOR, 2) => {
                self.vectors.assign(Some(&self.vectors.config), value as u16);
            }
            (common::DEVICE_STATUS, 1) => self.set_status(&mut core, value as u8),
            (common::QUEUE_SELECT, 2) => core.set_queue_select(value as u16),
            (common::QUEUE_SIZE, 2) => core.set_queue_size(value as u16),
            (common::QUEUE_MSIX_VECTOR, 2) => self.vectors.assign(self.vectors.slot(queue), value as u16),
            // A driver cannot disable a queue this way; only a reset does.
            (common::QUEUE_ENABLE, 2) if value == 1 => core.set_queue_ready(true),
            (common::QUEUE_DESC..common::END, 4 | 8) => {
                let part = match at & !7 {
                    common::QUEUE_DESC => RingPart::Descriptors,
                    common::QUEUE_DRIVER => RingPart::Available,
                    _ => RingPart::Used,
                };
                match (at % 8, len) {
                    (0, 8) => {
                        core.set_queue_address(part, Half::Low, value as u32);
                        core.set_queue_address(part, Half::High, (value >> 32) as u32);
                    }
                    (0, _) => core.set_queue_address(part, Half::Low, value as u32),
                    (4, 4) => core.set_queue_address(part, Half::High, value as u32),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn set_status(&self, core: &mut Core, value: u8) {
        if core.set_status(value) {
            self.vectors.reset();
        }
    }

    /// Reads in BAR 0; what is not a register reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..COMMON_SIZE => {
                let (value, size) = self.read_common(offset);
                // An access wider than the field does not reach the next one.
                let n = data.len().min(size);
                data[..n].copy_from_slice(&value.to_le_bytes()[..n]);
            }
            ISR => self.vectors.update_isr(|isr| {
                if let Some(first) = data.first_mut() {
                    *first = std::mem::take(isr);
                }
            }),
            DEVICE..NOTIFY => self.core().read_config((offset - DEVICE) as usize, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..COMMON_SIZE => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                self.write_common(offset, u64::from_le_bytes(value), data.len());
            }
            DEVICE..NOTIFY => self.core().write_config((offset - DEVICE) as usize, data),
            // The address tells the queue; the value repeats it.
            NOTIFY..NOTIFY_END => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER);
                self.core().notify(queue as u16);
            }
            _ => {}
        }
    }

    fn reset(&self) {
        let mut core = self.core();
        core.reset();
        self.vectors.reset();
    }
}

const NOTIFY_END: u64 = NOTIFY + NOTIFY_SIZE;

/// `VIRTIO_PCI_CAP_PCI_CFG`: a driver that cannot map the BAR reaches it through this capability.
struct ConfigAccess(Arc<Registers>);

impl ConfigAccess {
    /// Where in BAR 0 the driver points to, and how many bytes: its three fields in the capability.
    fn target(body: &[u8]) -> Option<(u64, usize)> {
        let word = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (bar, offset, len) = (*body.get(2)?, word(6)?, word(10)? as usize);
        let fits = usize::from(bar) == BAR
            && matches!(len, 1 | 2 | 4)
            && (offset as usize).is_multiple_of(len)
            && u64::from(offset) + len as u64 <= u64::from(MSIX_TABLE);
        fits.then_some((u64::from(offset), len))
    }
}

impl ConfigWindow for ConfigAccess {
    fn read(&self, body: &[u8], offset: usize, data: &mut [u8]) {
        data.fill(0);
        if let (Some((at, len)), 0) = (Self::target(body), offset) {
            let n = len.min(data.len());
            self.0.read(at, &mut data[..n]);
        }
    }

    fn write(&self, body: &[u8], offset: usize, data: &[u8]) {
        if let (Some((at, len)), 0) = (Self::target(body), offset)
            && let Some(value) = data.get(..len)
        {
            self.0.write(at, value);
        }
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    kind: DeviceKind,
    queues: u16,
    registers: Arc<Registers>,
}

impl VirtioPci {
    /// Makes a PCI function of `device`, which works on `ram`. It goes into a slot of a
    /// [`plinth_pci::PciHost`].
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Arc<Self> {
        let vectors = Arc::new(Vectors::new(device.queue_sizes().len()));
        let interrupt = Interrupt::new(Box::new(Arc::clone(&vectors)));
        let core = Core::new(device, ram, interrupt);
        let (kind, queues) = (core.kind(), core.queue_count());
        let registers = Arc::new(Registers { vectors, core: Mutex::new(core) });
        Arc::new(Self { kind, queues, registers })
    }

    /// Why the device needs, or last needed, a reset by its driver.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.registers.core().interrupt().failure()
    }

    fn capabilities(&self) -> Vec<Capability> {
        let capability = |kind: u8, offset: u64, len: u64, extra: &[u8]| {
            let mut body = vec![(16 + extra.len()) as u8, kind, BAR as u8, 0, 0, 0];
            body.extend_from_slice(&(offset as u32).to_le_bytes());
            body.extend_from_slice(&(len as u32).to_le_bytes());
            body.extend_from_slice(extra);
            Capability { id: cap::ID, body, writable: Vec::new(), window: None }
        };
        let mut access = capability(cap::PCI, 0, 0, &[0; 4]);
        access.writable = vec![0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let handler = Arc::new(ConfigAccess(Arc::clone(&self.registers)));
        access.window = Some(WindowSpec { range: 14..18, handler });
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        vec![
            capability(cap::COMMON, COMMON, COMMON_SIZE, &[]),
            capability(cap::ISR, ISR, 1, &[]),
            capability(cap::DEVICE, DEVICE, DEVICE_SIZE, &[]),
            capability(cap::NOTIFY, NOTIFY, NOTIFY_SIZE, &multiplier),
            access,
        ]
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn reset(&self) {
        self.registers.reset();
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> FunctionConfig {
        let class = match self.kind {
            DeviceKind::Net => 0x02_0000,
            DeviceKind::Block => 0x01_0000,
            DeviceKind::Console => 0x07_8000,
            DeviceKind::Rng | DeviceKind::Balloon => 0x00_ff00,
        };
        FunctionConfig {
            vendor_id: VENDOR,
            device_id: DEVICE_BASE + self.kind.id(),
            revision: 1,
            class,
            subsystem_vendor_id: VENDOR,
            subsystem_id: SUBSYSTEM,
            bars: vec![BarSpec { index: BAR, size: BAR_SIZE, width: BarWidth::Bits64, prefetchable: false }],
            capabilities: self.capabilities(),
            msix: Some(MsixSpec {
                vectors: self.queues + 1,
                bar: BAR,
                table_offset: MSIX_TABLE,
                pba_offset: MSIX_PBA,
            }),
            intx: true,
            express: true,
        }
    }

    fn connect(&self, irq: Arc<PciIrq>) {
        // The host bridge connects a function once.
        let _ = self.registers.vectors.pci.set(irq);
    }

    fn bar_read(&self, _bar: usize, offset: u64, data: &mut [u8]) -> IoOutcome {
        self.registers.read(offset, data);
        IoOutcome::Done
    }

    fn bar_write(&self, _bar: usize, offset: u64, data: &[u8]) -> IoOutcome {
        self.registers.write(offset, data);
        IoOutcome::Done
    }
}
