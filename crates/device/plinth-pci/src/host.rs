//! The host bridge: ECAM, the slots of bus 0, and where their BARs are on the machine's bus.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use plinth_device::{Bus, BusError, Device, IoOutcome, IrqLine, MmioDevice, MsiSink, Range};

use crate::config::{ConfigSpace, Control};
use crate::irq::IntxLines;
use crate::msix::Msix;
use crate::{BarSpec, FunctionConfig, MsixSpec, PciFunction, PciIrq};

const SLOTS: usize = 32;
/// ECAM: 4 KiB a function, 8 functions a device, 32 devices a bus (PCI Express 4.0, 7.2.2).
const FUNCTION_SPACE: u64 = 1 << 12;
const DEVICE_SPACE: u64 = 1 << 15;
const BUS_SPACE: u64 = 1 << 20;

/// Why a function could not be added.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// There is no such slot.
    #[error("PCI slot {0} does not exist; a bus has slots 1 to 31, slot 0 is the host bridge")]
    NoSlot(u8),
    /// Another function is there.
    #[error("PCI slot {0} is taken")]
    SlotTaken(u8),
    /// A BAR that configuration space cannot show.
    #[error("BAR {0:?} has a bad index, size or width, or overlaps another")]
    BadBar(BarSpec),
    /// MSI-X structures that configuration space cannot show.
    #[error("MSI-X structures {0:?} have a bad count, BAR or offset")]
    BadMsix(MsixSpec),
    /// The capability list does not fit into 256 bytes.
    #[error("the capabilities do not fit into configuration space")]
    CapabilitiesTooLong,
    /// The ECAM range is taken or absurd.
    #[error("ECAM cannot be put on the bus: {0}")]
    Ecam(#[from] BusError),
}

/// Where the host bridge is.
#[derive(Clone, Debug)]
pub struct PciHostConfig {
    /// Guest physical range of the configuration space, 1 MiB a bus. Only bus 0 has devices.
    pub ecam: Range,
    /// Guest physical ranges that BARs may be placed in; PCI addresses equal guest physical ones.
    pub windows: Vec<Range>,
}

/// A BAR's memory as the machine's bus sees it.
struct BarRegion {
    function: Arc<dyn PciFunction>,
    irq: Arc<PciIrq>,
    bar: usize,
}

impl MmioDevice for BarRegion {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        match &self.irq.msix {
            Some(msix) if msix.claims(self.bar, offset) => msix.read(offset, data),
            _ => return self.function.bar_read(self.bar, offset, data),
        }
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        match &self.irq.msix {
            Some(msix) if msix.claims(self.bar, offset) => msix.write(offset, data),
            _ => return self.function.bar_write(self.bar, offset, data),
        }
        IoOutcome::Done
    }
}

struct Slot {
    function: Arc<dyn PciFunction>,
    irq: Arc<PciIrq>,
    config: ConfigSpace,
    /// By BAR index: where it is on the bus now.
    mapped: [Option<u64>; 6],
}

impl Slot {
    /// Where each BAR wants to be.
    fn wanted(&self, windows: &[Range]) -> [Option<Range>; 6] {
        let mut wanted = [None; 6];
        if self.config.control().memory {
            for (bar, start) in self.config.bars() {
                let range = Range { start, len: bar.size };
                if windows.iter().any(|w| contains(*w, range)) {
                    wanted[bar.index] = Some(range);
                }
            }
        }
        wanted
    }
}

fn contains(outer: Range, inner: Range) -> bool {
    inner
        .start
        .checked_sub(outer.start)
        .and_then(|at| at.checked_add(inner.len))
        .is_some_and(|end| end <= outer.len)
}

type Slots = [Option<Slot>; SLOTS];

/// A PCI Express host bridge with one bus. Slot 0 shows the bridge itself.
pub struct PciHost {
    windows: Vec<Range>,
    /// Weak, for the bus holds the bridge.
    bus: Weak<Bus>,
    msi: Option<Arc<dyn MsiSink>>,
    lines: Arc<IntxLines>,
    slots: Mutex<Slots>,
}

impl PciHost {
    /// Makes a bridge and puts its ECAM on `bus`. Without `msi` functions have INTx only: slot `s` drives
    /// `intx[s % 4]`.
    ///
    /// # Errors
    /// [`PciError::Ecam`].
    pub fn new(
        config: PciHostConfig,
        bus: &Arc<Bus>,
        msi: Option<Arc<dyn MsiSink>>,
        intx: [IrqLine; 4],
    ) -> Result<Arc<Self>, PciError> {
        let host = Arc::new(Self {
            windows: config.windows,
            bus: Arc::downgrade(bus),
            msi,
            lines: Arc::new(IntxLines::new(intx)),
            slots: Mutex::new(std::array::from_fn(|_| None)),
        });
        host.put(0, Arc::new(Bridge))?;
        let ecam: Arc<dyn MmioDevice> = Arc::clone(&host) as _;
        bus.insert(config.ecam, ecam)?;
        Ok(host)
    }

    /// Puts `function` into slot `slot`, 1 to 31.
    ///
    /// # Errors
    /// [`PciError`]; the bus is unchanged.
    pub fn add(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        if slot == 0 || usize::from(slot) >= SLOTS {
            return Err(PciError::NoSlot(slot));
        }
        self.put(slot, function)
    }

    fn put(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let look = function.config();
        let msix = look.msix.zip(self.msi.clone()).map(|(spec, sink)| Msix::new(spec, sink));
        let config = ConfigSpace::new(&look, msix.is_some())?;
        let irq = Arc::new(PciIrq::new(slot, Arc::clone(&self.lines), msix));
        let mut slots = self.slots();
        let place = slots.get_mut(usize::from(slot)).ok_or(PciError::NoSlot(slot))?;
        if place.is_some() {
            return Err(PciError::SlotTaken(slot));
        }
        function.connect(Arc::clone(&irq));
        *place = Some(Slot { function, irq, config, mapped: [None; 6] });
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the bus in line with all BARs: what must go goes first, then what has a place and finds it
    /// free comes. A BAR that lost to another gets its place when the other leaves.
    fn place_bars(&self, slots: &mut Slots) {
        let Some(bus) = self.bus.upgrade() else { return };
        let wanted: Vec<_> =
            slots.iter().map(|s| s.as_ref().map_or([None; 6], |s| s.wanted(&self.windows))).collect();
        for (slot, wanted) in slots.iter_mut().zip(&wanted) {
            let Some(slot) = slot else { continue };
            for (mapped, wanted) in slot.mapped.iter_mut().zip(wanted) {
                if let Some(start) = *mapped
                    && wanted.is_none_or(|w| w.start != start)
                {
                    bus.remove(start);
                    *mapped = None;
                }
            }
        }
        for (slot, wanted) in slots.iter_mut().zip(&wanted) {
            let Some(slot) = slot else { continue };
            for (bar, wanted) in wanted.iter().enumerate() {
                if let (None, Some(range)) = (slot.mapped[bar], *wanted) {
                    let region =
                        BarRegion { function: Arc::clone(&slot.function), irq: Arc::clone(&slot.irq), bar };
                    if bus.insert(range, Arc::new(region)).is_ok() {
                        slot.mapped[bar] = Some(range.start);
                    }
                }
            }
        }
    }

    fn config_read(&self, slot: usize, at: usize, data: &mut [u8]) {
        let slots = self.slots();
        let Some(Some(slot)) = slots.get(slot) else {
            data.fill(0xff);
            return;
        };
        if let Some(access) = slot.config.window(at, data.len()) {
            drop(slots);
            access.handler.read(&access.body, access.offset, data);
        } else {
            slot.config.read(at, data, slot.irq.intx_asserted());
        }
    }

    fn config_write(&self, slot: usize, at: usize, data: &[u8]) {
        let mut slots = self.slots();
        let Some(Some(slot)) = slots.get_mut(slot) else { return };
        if let Some(access) = slot.config.window(at, data.len()) {
            drop(slots);
            access.handler.write(&access.body, access.offset, data);
            return;
        }
        let before = (slot.config.control(), placement(&slot.config));
        slot.config.write(at, data);
        let after = (slot.config.control(), placement(&slot.config));
        if before == after {
            return;
        }
        let irq = Arc::clone(&slot.irq);
        // The control bits change under the lock, so that two vCPUs cannot leave an old state behind.
        let messages = irq.set_control(after.0);
        if before.0.memory || after.0.memory {
            self.place_bars(&mut slots);
        }
        drop(slots);
        irq.send(messages);
    }
}

fn placement(config: &ConfigSpace) -> [u64; 6] {
    let mut starts = [0; 6];
    for (bar, start) in config.bars() {
        starts[bar.index] = start;
    }
    starts
}

/// The slot and register that an ECAM access means; `None` where there is no function.
fn decode(offset: u64, len: usize) -> Option<(usize, usize)> {
    let register = offset % FUNCTION_SPACE;
    let (bus, device) = (offset / BUS_SPACE, offset % BUS_SPACE / DEVICE_SPACE);
    let function = offset % DEVICE_SPACE / FUNCTION_SPACE;
    let aligned = len.is_power_of_two() && len <= 8 && register.is_multiple_of(len as u64);
    (bus == 0 && function == 0 && aligned).then_some((device as usize, register as usize))
}

impl MmioDevice for PciHost {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        match decode(offset, data.len()) {
            Some((slot, at)) => self.config_read(slot, at, data),
            None => data.fill(0xff),
        }
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if let Some((slot, at)) = decode(offset, data.len()) {
            self.config_write(slot, at, data);
        }
        IoOutcome::Done
    }
}

impl Device for PciHost {
    fn name(&self) -> &str {
        "pci-host"
    }

    /// Resets all functions too; their BARs leave the bus.
    fn reset(&self) {
        let mut slots = self.slots();
        for slot in slots.iter_mut().flatten() {
            slot.config.reset();
            // Nothing is set free: MSI-X is off after a reset.
            let _none = slot.irq.set_control(Control::default());
        }
        self.place_bars(&mut slots);
        let functions: Vec<_> =
            slots.iter().flatten().map(|s| (Arc::clone(&s.function), Arc::clone(&s.irq))).collect();
        drop(slots);
        for (function, irq) in functions {
            function.reset();
            irq.reset();
        }
    }
}

/// What slot 0 shows: a host bridge without registers of its own.
struct Bridge;

impl Device for Bridge {
    fn name(&self) -> &str {
        "pci-host-bridge"
    }

    fn reset(&self) {}
}

impl PciFunction for Bridge {
    fn config(&self) -> FunctionConfig {
        FunctionConfig { vendor_id: 0x1b36, device_id: 0x0008, class: 0x06_0000, ..FunctionConfig::default() }
    }

    fn connect(&self, _irq: Arc<PciIrq>) {}

    fn bar_read(&self, _bar: usize, _offset: u64, _data: &mut [u8]) -> IoOutcome {
        IoOutcome::Fault
    }

    fn bar_write(&self, _bar: usize, _offset: u64, _data: &[u8]) -> IoOutcome {
        IoOutcome::Fault
    }
}
