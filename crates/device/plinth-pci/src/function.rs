//! What a PCI function tells the host bridge about itself, and how it is called.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use plinth_device::{Device, IoOutcome};

use crate::PciIrq;

/// A single-function PCI device. [`Device::reset`] brings back the state after power-on; the host bridge
/// resets the configuration space around it.
pub trait PciFunction: Device {
    /// What the function looks like. Asked once, when it is added; it never changes.
    fn config(&self) -> FunctionConfig;
    /// Gives the function its way to interrupt. Called once, before any access.
    fn connect(&self, irq: Arc<PciIrq>);
    /// Reads 1, 2, 4 or 8 bytes at `offset` into the memory of BAR `bar`, MSI-X structures excepted.
    /// `offset + data.len()` is within the BAR; nothing else about it may be assumed.
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) -> IoOutcome;
    /// Writes, as [`PciFunction::bar_read`] reads.
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> IoOutcome;
}

/// The fixed look of a function (PCI Local Bus Specification 3.0, section 6.1).
#[derive(Clone, Debug, Default)]
pub struct FunctionConfig {
    /// Vendor ID.
    pub vendor_id: u16,
    /// Device ID.
    pub device_id: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and programming interface, as 0xBBSSPP.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor_id: u16,
    /// Subsystem ID.
    pub subsystem_id: u16,
    /// Memory the function decodes.
    pub bars: Vec<BarSpec>,
    /// Capabilities beside PCI Express and MSI-X, which the host bridge adds.
    pub capabilities: Vec<Capability>,
    /// MSI-X, if the function can use it.
    pub msix: Option<MsixSpec>,
    /// True if the function has an interrupt pin (INTA#).
    pub intx: bool,
    /// False for a host bridge, which has no PCI Express capability of its own here.
    pub express: bool,
}

/// Address width of a memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarWidth {
    /// One register; below 4 GiB.
    Bits32,
    /// Two registers, the second at the next index.
    Bits64,
}

/// One memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// Index of its (first) register, 0 to 5.
    pub index: usize,
    /// Bytes; a power of two, at least 4096 so that no two functions share a page.
    pub size: u64,
    /// Address width.
    pub width: BarWidth,
    /// True if reads have no side effects.
    pub prefetchable: bool,
}

/// Where a function's MSI-X structures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixSpec {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// BAR index of both structures.
    pub bar: usize,
    /// Byte offset of the table; a multiple of 8. The table takes 16 bytes a vector.
    pub table_offset: u32,
    /// Byte offset of the pending-bit array; a multiple of 8.
    pub pba_offset: u32,
}

/// One entry of the capability list.
#[derive(Clone, Debug)]
pub struct Capability {
    /// Capability ID.
    pub id: u8,
    /// The bytes after the ID and the next pointer.
    pub body: Vec<u8>,
    /// Which bits of `body` the guest can write; missing bytes are read-only.
    pub writable: Vec<u8>,
    /// A part that is not memory but leads elsewhere.
    pub window: Option<WindowSpec>,
}

/// The part of a capability that a [`ConfigWindow`] answers.
#[derive(Clone)]
pub struct WindowSpec {
    /// Bytes of the capability's body.
    pub range: Range<usize>,
    /// Who answers.
    pub handler: Arc<dyn ConfigWindow>,
}

impl fmt::Debug for WindowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowSpec").field("range", &self.range).finish_non_exhaustive()
    }
}

/// Answers accesses to a part of a capability, such as virtio's BAR access through configuration space.
/// No lock is held during a call.
pub trait ConfigWindow: Send + Sync {
    /// Reads at `offset` into the window; `body` is the capability's body as the guest has programmed it.
    fn read(&self, body: &[u8], offset: usize, data: &mut [u8]);
    /// Writes at `offset` into the window.
    fn write(&self, body: &[u8], offset: usize, data: &[u8]);
}
