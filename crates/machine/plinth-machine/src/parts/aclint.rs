//! Core-local timer and software interrupts.

use std::sync::Arc;

use plinth_platform::{Aclint, AclintConfig};

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::boards::cpu_interrupts;
use crate::tree::Tree;

/// A CLINT.
pub struct AclintPart {
    /// Values of `compatible`.
    pub compatible: &'static [&'static str],
}

impl Part for AclintPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let pins = machine.board.pins;
        let harts = (0..machine.vcpus.len())
            .map(|cpu| {
                let software = machine.cpu_line(site, cpu, pins.software)?;
                Ok((software, machine.cpu_line(site, cpu, pins.timer)?))
            })
            .collect::<Result<_, Error>>()?;
        let config = AclintConfig { timebase_hz: machine.board.timebase_hz, harts };
        let device = Aclint::new(config, &machine.timers);
        machine.place(site, site.range()?, Arc::new(device))
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        let pins = machine.board.pins;
        tree.node(&site.node_name()?, |t| {
            t.texts("compatible", self.compatible)?;
            t.reg(site.reg)?;
            let cells = cpu_interrupts(t, machine.vcpus.len(), &[pins.software, pins.timer]);
            t.cells("interrupts-extended", &cells)
        })
    }
}
