//! 16550A UARTs.

use std::sync::Arc;

use plinth_device::CharBackend;
use plinth_platform::Uart;

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::tree::Tree;

/// A line that nothing is connected to.
struct Unconnected;

impl CharBackend for Unconnected {
    fn write(&self, data: &[u8]) -> usize {
        data.len()
    }

    fn read(&self, _data: &mut [u8]) -> usize {
        0
    }

    fn on_input(&self, _notify: Box<dyn Fn() + Send + Sync>) {}
}

/// A 16550A with byte registers. It is there for the guest whether or not the host has a side for it.
pub struct UartPart {
    /// Input clock, in Hz; what the guest computes its divisor from.
    pub clock_hz: u32,
}

impl Part for UartPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let backend = machine.take_serial().unwrap_or_else(|| Arc::new(Unconnected));
        let irq = machine.irq_line(site, site.irq()?)?;
        let uart = Uart::new(backend, irq, &machine.timers);
        machine.place(site, site.range()?, Arc::new(uart))
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        tree.node(&site.node_name()?, |t| {
            t.text("compatible", "ns16550a")?;
            t.reg(site.reg)?;
            t.cells("clock-frequency", &[self.clock_hz])?;
            t.interrupts(machine.board.interrupt_controller, site.irqs)
        })
    }
}
