//! The platform-level interrupt controller.

use std::sync::Arc;

use plinth_platform::{Plic, PlicConfig};

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::boards::cpu_interrupts;
use crate::tree::Tree;

/// A PLIC with a context for each external interrupt input of each CPU.
pub struct PlicPart {
    /// Values of `compatible`.
    pub compatible: &'static [&'static str],
}

impl Part for PlicPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let pins = machine.board.pins;
        let contexts = (0..machine.vcpus.len())
            .flat_map(|cpu| pins.external.iter().map(move |&line| (cpu, line)))
            .map(|(cpu, line)| machine.cpu_line(site, cpu, line))
            .collect::<Result<_, Error>>()?;
        let plic = Arc::new(Plic::new(PlicConfig { sources: machine.board.interrupt_lines, contexts }));
        machine.set_interrupts(plic.clone());
        machine.place(site, site.range()?, plic)
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        let board = machine.board;
        tree.node(&site.node_name()?, |t| {
            t.texts("compatible", self.compatible)?;
            t.reg(site.reg)?;
            t.label(site.name)?;
            t.flag("interrupt-controller")?;
            t.cells("#interrupt-cells", &[1])?;
            t.cells("#address-cells", &[0])?;
            t.cells("riscv,ndev", &[board.interrupt_lines])?;
            let cells = cpu_interrupts(t, machine.vcpus.len(), board.pins.external);
            t.cells("interrupts-extended", &cells)
        })
    }
}
