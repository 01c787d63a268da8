//! The parts of the RISC-V Advanced Interrupt Architecture outside the CPUs (Devicetree bindings
//! `riscv,imsics` and `riscv,aplic`).

use std::sync::Arc;

use plinth_platform::{Aplic, AplicConfig, AplicDomainConfig, ImsicPages};

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::boards::cpu_interrupts;
use crate::tree::Tree;

/// The pages of the CPUs' interrupt files of one privilege level; where PCI functions send messages.
pub struct ImsicPart {
    /// Number of the interrupt file.
    pub file: u32,
    /// Highest interrupt identity that a file has.
    pub ids: u32,
}

impl Part for ImsicPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let pages = ImsicPages::new(self.file, machine.vcpus.clone());
        machine.set_message_parent(site.name);
        machine.place(site, site.range()?, Arc::new(pages))
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        let mut pages = site.range()?;
        pages.len = ImsicPages::size(machine.vcpus.len() as u64);
        tree.node(&site.node_name()?, |t| {
            t.text("compatible", "riscv,imsics")?;
            t.reg(&[pages])?;
            t.label(site.name)?;
            t.flag("interrupt-controller")?;
            t.cells("#interrupt-cells", &[0])?;
            t.flag("msi-controller")?;
            t.cells("#msi-cells", &[0])?;
            t.cells("riscv,num-ids", &[self.ids])?;
            let cells = cpu_interrupts(t, machine.vcpus.len(), machine.board.pins.external);
            t.cells("interrupts-extended", &cells)
        })
    }
}

/// The interrupt controller for wired interrupts, which turns them into messages.
pub struct AplicPart {
    /// Number of the interrupt file that its messages go to.
    pub file: u32,
    /// Label of that file's pages.
    pub imsic: &'static str,
}

impl Part for AplicPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let external = machine.board.pins.external.first();
        let external = *external.ok_or(Error::Board { site: site.name, what: "an external interrupt" })?;
        let lines = (0..machine.vcpus.len())
            .map(|cpu| machine.cpu_line(site, cpu, external))
            .collect::<Result<_, Error>>()?;
        let aplic = Aplic::new(AplicConfig {
            sources: machine.board.interrupt_lines,
            harts: machine.vcpus.clone(),
            domains: vec![AplicDomainConfig { lines, file: self.file }],
        });
        machine.set_interrupts(aplic.clone());
        machine.place(site, site.range()?, Arc::new(aplic.domain(0)))
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        let parent = tree.handle(self.imsic);
        tree.node(&site.node_name()?, |t| {
            t.text("compatible", "riscv,aplic")?;
            t.reg(site.reg)?;
            t.label(site.name)?;
            t.flag("interrupt-controller")?;
            t.cells("#interrupt-cells", &[2])?;
            t.cells("#address-cells", &[0])?;
            t.cells("riscv,num-sources", &[machine.board.interrupt_lines])?;
            t.cells("msi-parent", &[parent])
        })
    }
}
