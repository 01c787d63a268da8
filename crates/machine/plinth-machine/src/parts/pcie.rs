//! The PCI Express host bridge (Devicetree binding `pci-host-ecam-generic`; IEEE 1275 PCI bus binding).

use plinth_device::Range;
use plinth_pci::{PciHost, PciHostConfig};

use crate::Error;
use crate::assembly::Assembly;
use crate::board::{Part, Site};
use crate::tree::Tree;

/// Cell 0 of a PCI address: 32-bit memory, not prefetchable.
const SPACE_32: u32 = 0x0200_0000;
/// Cell 0 of a PCI address: 64-bit memory, prefetchable.
const SPACE_64: u32 = 0x4300_0000;
/// Slots of one bus.
const SLOTS: u8 = 32;

/// A host bridge. Its ranges are ECAM and the 32-bit memory window; the 64-bit window comes after RAM. Its
/// interrupts are the four INTx lines. There is no window for ports: no function here has any.
pub struct PciePart {
    /// Bytes of the 64-bit memory window, and its alignment.
    pub high_window: u64,
}

impl PciePart {
    fn windows(&self, site: &Site, machine: &Assembly) -> Result<(Range, Range, Range), Error> {
        let [ecam, low] = site.reg else {
            return Err(Error::Board { site: site.name, what: "two address ranges" });
        };
        let ram_end = machine.ram.regions().last().map_or(0, |r| r.gpa + r.len);
        let start = ram_end.next_multiple_of(self.high_window);
        Ok((*ecam, *low, Range { start, len: self.high_window }))
    }
}

fn two_cells(v: u64) -> [u32; 2] {
    [(v >> 32) as u32, v as u32]
}

impl Part for PciePart {
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error> {
        let (ecam, low, high) = self.windows(site, machine)?;
        let mut lines = Vec::with_capacity(4);
        for &irq in site.irqs {
            lines.push(machine.irq_line(site, irq)?);
        }
        let lines =
            lines.try_into().map_err(|_| Error::Board { site: site.name, what: "four interrupts" })?;
        let failed = |why: String| Error::Device { site: site.name.to_owned(), why };
        let config = PciHostConfig { ecam, windows: vec![low, high] };
        let host = PciHost::new(config, &machine.bus, machine.message_sink(), lines)
            .map_err(|e| failed(e.to_string()))?;
        let mut slots = 1..SLOTS;
        for function in machine.take_pci() {
            let slot = slots.next().ok_or(Error::NoSlot("PCI slot"))?;
            host.add(slot, function).map_err(|e| failed(e.to_string()))?;
        }
        machine.own(host);
        machine.note(site);
        Ok(())
    }

    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error> {
        let (ecam, low, high) = self.windows(site, machine)?;
        let controller = tree.handle(machine.board.interrupt_controller);
        tree.node(&site.node_name()?, |t| {
            t.text("compatible", "pci-host-ecam-generic")?;
            t.text("device_type", "pci")?;
            t.reg(&[ecam])?;
            t.cells("#address-cells", &[3])?;
            t.cells("#size-cells", &[2])?;
            t.cells("#interrupt-cells", &[1])?;
            t.cells("linux,pci-domain", &[0])?;
            t.cells("bus-range", &[0, (ecam.len >> 20).saturating_sub(1) as u32])?;
            t.flag("dma-coherent")?;
            let ranges: Vec<u32> = [(SPACE_32, low), (SPACE_64, high)]
                .into_iter()
                .flat_map(|(space, r)| {
                    let at = two_cells(r.start);
                    std::iter::once(space).chain(at).chain(at).chain(two_cells(r.len))
                })
                .collect();
            t.cells("ranges", &ranges)?;
            // Slot and pin are rotated over the four lines (PCI-to-PCI Bridge Architecture 1.2, 9.1).
            t.cells("interrupt-map-mask", &[0x1800, 0, 0, 7])?;
            let mut map = Vec::new();
            for slot in 0..4u32 {
                for pin in 0..4u32 {
                    let Some(&irq) = site.irqs.get(((slot + pin) % 4) as usize) else { continue };
                    map.extend([slot << 11, 0, 0, pin + 1, controller]);
                    map.extend(t.interrupt(irq));
                }
            }
            t.cells("interrupt-map", &map)?;
            if let Some(parent) = machine.message_parent() {
                let parent = t.handle(parent);
                t.cells("msi-parent", &[parent])?;
            }
            Ok(())
        })
    }
}
