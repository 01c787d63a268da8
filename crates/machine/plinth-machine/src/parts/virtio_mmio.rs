//! A place for a virtio device on the memory-mapped transport (Devicetree binding `virtio,mmio`).

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::tree::Tree;

/// One such place. Built where a device is left for it.
pub struct VirtioMmioPart;

impl Part for VirtioMmioPart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let Some(make) = machine.take_mmio() else { return Ok(()) };
        let irq = machine.irq_line(site, site.irq()?)?;
        let device = make(irq).map_err(|why| Error::Device { site: site.name.to_owned(), why })?;
        machine.place(site, site.range()?, device)
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        tree.node(&site.node_name()?, |t| {
            t.text("compatible", "virtio,mmio")?;
            t.reg(site.reg)?;
            t.flag("dma-coherent")?;
            t.interrupts(machine.board.interrupt_controller, site.irqs)
        })
    }
}
