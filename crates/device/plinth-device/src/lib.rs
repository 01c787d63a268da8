//! What every device stands on: the outcome of an access, the bus, interrupt lines, and the host-side
//! ends (block, network, console) that a device is given. No device lives here.

mod backend;
mod bus;

use std::fmt;
use std::sync::Arc;

pub use backend::{
    BlockBackend, BlockError, BlockErrorKind, CharBackend, FrameMeta, Gso, NetBackend, NetCaps, SendOutcome,
};
pub use bus::{Bus, BusError, Range};
pub use plinth_vcpu::{IrqSink, SystemEvent};

/// How an access to a device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOutcome {
    /// Done; a read has filled its buffer.
    Done,
    /// Refused: the guest sees an access fault.
    Fault,
}

/// Registers that a guest reaches by address. Several vCPUs call at once; a device locks its own state and
/// holds no lock while it calls out to memory, interrupt lines or a backend that can block.
pub trait MmioDevice: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the device's start. `offset + data.len()`
    /// is within the device's range; nothing else about it may be assumed.
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome;
    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset` from the device's start.
    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome;
}

/// What the machine does with every device, whatever bus it is on.
pub trait Device: Send + Sync {
    /// Name in messages, such as `virtio-blk`.
    fn name(&self) -> &str;
    /// Back to the state after power-on. Host-side ends stay connected.
    fn reset(&self);
}

/// One interrupt line of a device, wired to an input of an interrupt controller.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    line: u32,
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine").field("line", &self.line).finish_non_exhaustive()
    }
}

impl IrqLine {
    /// Wires a line to input `line` of `sink`.
    #[must_use]
    pub fn new(sink: Arc<dyn IrqSink>, line: u32) -> Self {
        Self { sink, line }
    }

    /// Sets the level.
    pub fn set(&self, level: bool) {
        self.sink.set_irq(self.line, level);
    }
}

/// Where message-signalled interrupts go.
pub trait MsiSink: Send + Sync {
    /// Writes `data` to the message address `address`, as a device on the bus would.
    fn send(&self, address: u64, data: u32);
}
