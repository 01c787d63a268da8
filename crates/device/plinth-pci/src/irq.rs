//! A function's interrupts: INTx with the swizzle onto four lines, or MSI-X.

use std::sync::{Arc, Mutex, PoisonError};

use plinth_device::IrqLine;

use crate::config::Control;
use crate::msix::{Message, Msix};

/// The four interrupt lines of the host bridge, shared by all slots. A line is high while any slot holds it.
pub(crate) struct IntxLines {
    lines: [IrqLine; 4],
    /// For each line, one bit a slot.
    held: Mutex<[u32; 4]>,
}

impl IntxLines {
    pub(crate) fn new(lines: [IrqLine; 4]) -> Self {
        Self { lines, held: Mutex::new([0; 4]) }
    }

    /// INTA# of slot `slot`. The line is set under the lock: two slots must not pass each other between
    /// the decision and the wire.
    fn set(&self, slot: u8, level: bool) {
        let line = usize::from(slot % 4);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held[line];
        let bit = 1 << (slot & 31);
        held[line] = if level { before | bit } else { before & !bit };
        if (before != 0) != (held[line] != 0) {
            self.lines[line].set(held[line] != 0);
        }
    }
}

#[derive(Default)]
struct Pin {
    asserted: bool,
    disabled: bool,
}

/// How a function interrupts.
pub struct PciIrq {
    slot: u8,
    lines: Arc<IntxLines>,
    pub(crate) msix: Option<Msix>,
    pin: Mutex<Pin>,
}

impl PciIrq {
    pub(crate) fn new(slot: u8, lines: Arc<IntxLines>, msix: Option<Msix>) -> Self {
        Self { slot, lines, msix, pin: Mutex::default() }
    }

    /// True while the guest has MSI-X switched on: the function signals vectors then and leaves INTx alone.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        self.msix.as_ref().is_some_and(Msix::enabled)
    }

    /// Signals MSI-X `vector`. A masked one stays pending; one that does not exist is ignored.
    pub fn trigger(&self, vector: u16) {
        if let Some(msix) = &self.msix {
            msix.trigger(vector);
        }
    }

    /// Sets the level of INTA#, active high here.
    pub fn set_intx(&self, level: bool) {
        self.update_pin(|pin| pin.asserted = level);
    }

    fn update_pin(&self, change: impl FnOnce(&mut Pin)) {
        let mut pin = self.pin.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut pin);
        self.lines.set(self.slot, pin.asserted && !pin.disabled);
    }

    pub(crate) fn intx_asserted(&self) -> bool {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner).asserted
    }

    /// Takes new control bits and returns the messages that they set free, for [`PciIrq::send`].
    #[must_use]
    pub(crate) fn set_control(&self, control: Control) -> Vec<Message> {
        // A function that has MSI-X on must not use its pin (PCI 3.0, 6.8.2.3).
        self.update_pin(|pin| pin.disabled = control.intx_disabled || control.msix_enabled);
        self.msix.as_ref().map_or_else(Vec::new, |msix| {
            msix.set_control(control.msix_enabled, control.msix_masked, control.bus_master)
        })
    }

    pub(crate) fn send(&self, messages: Vec<Message>) {
        if let Some(msix) = &self.msix {
            msix.send(messages);
        }
    }

    pub(crate) fn reset(&self) {
        self.update_pin(|pin| *pin = Pin::default());
        if let Some(msix) = &self.msix {
            msix.reset();
        }
    }
}
