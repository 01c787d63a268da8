//! The goldfish real-time clock.

use std::sync::Arc;

use plinth_platform::GoldfishRtc;

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::tree::Tree;

/// A goldfish real-time clock with its alarm.
pub struct RtcPart;

impl Part for RtcPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let irq = machine.irq_line(site, site.irq()?)?;
        let rtc = GoldfishRtc::new(irq, &machine.timers);
        machine.place(site, site.range()?, Arc::new(rtc))
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        tree.node(&site.node_name()?, |t| {
            t.text("compatible", "google,goldfish-rtc")?;
            t.reg(site.reg)?;
            t.interrupts(machine.board.interrupt_controller, site.irqs)
        })
    }
}
