//! Putting a machine together from its board's table.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use plinth_clock::Timers;
use plinth_device::{Bus, CharBackend, Device, IrqLine, IrqSink, MmioDevice, MsiSink, Range};
use plinth_memory::GuestRam;
use plinth_pci::PciFunction;
use plinth_platform::EventSink;
use plinth_vcpu::{PhysicalBus, VcpuControl};

use crate::Error;
use crate::board::{Board, CpuModel, Site};
use crate::tree::Tree;

/// A device on an address, under the machine's reset.
pub trait BoardDevice: MmioDevice + Device {}

impl<T: MmioDevice + Device> BoardDevice for T {}

/// Makes a device once its interrupt line is known; an error says why it could not.
pub type MakeDevice = Box<dyn FnOnce(IrqLine) -> Result<Arc<dyn BoardDevice>, String> + Send>;

/// What a machine is made from, besides its board.
pub struct Resources {
    /// RAM, one region at the board's start.
    pub ram: GuestRam,
    /// The address map that the vCPUs already use; empty.
    pub bus: Arc<Bus>,
    /// Its timer thread.
    pub timers: Arc<Timers>,
    /// Its vCPUs by index.
    pub vcpus: Vec<Arc<dyn VcpuControl>>,
    /// What the guest is told of its CPUs; `None`: the board's default.
    pub cpu: Option<CpuModel>,
    /// Where machine-wide events go.
    pub events: EventSink,
    /// Host sides of the serial lines, for the board's UARTs in order; the rest are connected to nothing.
    pub serials: Vec<Arc<dyn CharBackend>>,
    /// PCI functions, in the order of their slots.
    pub pci: Vec<Arc<dyn PciFunction>>,
    /// Virtio devices on the memory-mapped transport, in the order of the board's places.
    pub virtio_mmio: Vec<MakeDevice>,
}

/// Messages as writes on the bus, which is what they are.
struct BusMessages {
    /// Weak, for the bus holds the devices that hold this.
    bus: Weak<Bus>,
}

impl MsiSink for BusMessages {
    fn send(&self, address: u64, data: u32) {
        if let Some(bus) = self.bus.upgrade() {
            // A message to where nothing takes it is lost, as on a real bus.
            let _ = bus.write(address, &data.to_le_bytes());
        }
    }
}

/// A machine while its parts are made.
pub struct Assembly {
    /// The board.
    pub board: &'static Board,
    /// RAM.
    pub ram: GuestRam,
    /// The address map.
    pub bus: Arc<Bus>,
    /// The timer thread.
    pub timers: Arc<Timers>,
    /// vCPUs by index.
    pub vcpus: Vec<Arc<dyn VcpuControl>>,
    /// What the guest is told of its CPUs.
    pub cpu: CpuModel,
    /// Where machine-wide events go.
    pub events: EventSink,
    serials: VecDeque<Arc<dyn CharBackend>>,
    pci: Vec<Arc<dyn PciFunction>>,
    mmio: VecDeque<MakeDevice>,
    interrupts: Option<Arc<dyn IrqSink>>,
    /// Label of the node that takes messages.
    message_parent: Option<&'static str>,
    devices: Vec<Arc<dyn Device>>,
    /// First address of each site that was built.
    built: Vec<u64>,
}

impl Assembly {
    /// Input `line` of the vCPU `cpu`.
    ///
    /// # Errors
    /// There is no such vCPU.
    pub fn cpu_line(&self, site: &Site, cpu: usize, line: u32) -> Result<IrqLine, Error> {
        let control = self.vcpus.get(cpu).ok_or(Error::Board { site: site.name, what: "a CPU" })?;
        let sink: Arc<dyn IrqSink> = control.clone();
        Ok(IrqLine::new(sink, line))
    }

    /// Line `line` of the board's interrupt controller.
    ///
    /// # Errors
    /// No interrupt controller has been built yet.
    pub fn irq_line(&self, site: &Site, line: u32) -> Result<IrqLine, Error> {
        let sink = self.interrupts.as_ref().ok_or(Error::Board { site: site.name, what: "a controller" })?;
        Ok(IrqLine::new(Arc::clone(sink), line))
    }

    /// Makes `sink` the board's interrupt controller.
    pub fn set_interrupts(&mut self, sink: Arc<dyn IrqSink>) {
        self.interrupts = Some(sink);
    }

    /// Makes the part with this label the one that takes message-signalled interrupts.
    pub fn set_message_parent(&mut self, label: &'static str) {
        self.message_parent = Some(label);
    }

    /// Label of the part that takes message-signalled interrupts, if there is one.
    #[must_use]
    pub fn message_parent(&self) -> Option<&'static str> {
        self.message_parent
    }

    /// Where devices send message-signalled interrupts, if the board takes them.
    #[must_use]
    pub fn message_sink(&self) -> Option<Arc<dyn MsiSink>> {
        self.message_parent?;
        Some(Arc::new(BusMessages { bus: Arc::downgrade(&self.bus) }))
    }

    /// The next host side of a serial line.
    pub fn take_serial(&mut self) -> Option<Arc<dyn CharBackend>> {
        self.serials.pop_front()
    }

    /// All PCI functions that have no slot yet.
    pub fn take_pci(&mut self) -> Vec<Arc<dyn PciFunction>> {
        std::mem::take(&mut self.pci)
    }

    /// The maker of the next virtio device on the memory-mapped transport.
    pub fn take_mmio(&mut self) -> Option<MakeDevice> {
        self.mmio.pop_front()
    }

    /// Puts a device on the bus at `range` and under the machine's reset.
    ///
    /// # Errors
    /// The addresses are taken.
    pub fn place(&mut self, site: &Site, range: Range, device: Arc<dyn BoardDevice>) -> Result<(), Error> {
        self.bus
            .insert(range, device.clone())
            .map_err(|source| Error::Bus { site: site.name.to_owned(), source })?;
        self.devices.push(device);
        self.note(site);
        Ok(())
    }

    /// Puts a device that is on no address under the machine's reset.
    pub fn own(&mut self, device: Arc<dyn Device>) {
        self.devices.push(device);
    }

    /// Says that `site` is there, so that it is described to the guest.
    pub fn note(&mut self, site: &Site) {
        self.built.extend(site.reg.first().map(|r| r.start));
    }

    fn is_built(&self, site: &Site) -> bool {
        site.reg.first().is_some_and(|r| self.built.contains(&r.start))
    }
}

/// A machine: its board, its RAM, its devices. vCPUs belong to whoever runs it.
pub struct Machine {
    assembly: Assembly,
}

impl Machine {
    /// Makes all parts of the board's table, in its order.
    ///
    /// # Errors
    /// A limit of the board is exceeded, or a part could not be made.
    pub fn new(board: &'static Board, resources: Resources) -> Result<Self, Error> {
        let Resources { ram, bus, timers, vcpus, cpu, events, serials, pci, virtio_mmio } = resources;
        board.check(ram.size(), u32::try_from(vcpus.len()).unwrap_or(u32::MAX))?;
        let mut assembly = Assembly {
            board,
            ram,
            bus,
            timers,
            vcpus,
            cpu: cpu.unwrap_or_else(board.default_cpu),
            events,
            serials: serials.into(),
            pci,
            mmio: virtio_mmio.into(),
            interrupts: None,
            message_parent: None,
            devices: Vec::new(),
            built: Vec::new(),
        };
        for site in board.sites {
            site.part.build(site, &mut assembly)?;
        }
        if !assembly.serials.is_empty() {
            return Err(Error::NoSlot("serial line"));
        }
        if !assembly.mmio.is_empty() {
            return Err(Error::NoSlot("place for a virtio-mmio device"));
        }
        if !assembly.pci.is_empty() {
            return Err(Error::NoSlot("PCI slot"));
        }
        Ok(Self { assembly })
    }

    /// The board.
    #[must_use]
    pub fn board(&self) -> &'static Board {
        self.assembly.board
    }

    /// RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.assembly.ram
    }

    /// All devices back to their state after power-on. No vCPU may run.
    pub fn reset(&self) {
        for d in &self.assembly.devices {
            d.reset();
        }
    }

    /// The device tree, with what `chosen` puts into the node of that name.
    ///
    /// # Errors
    /// The tree writer refused.
    pub fn device_tree(&self, chosen: impl FnOnce(&mut Tree) -> Result<(), Error>) -> Result<Vec<u8>, Error> {
        let Assembly { board, ram, .. } = &self.assembly;
        let mut tree = Tree::new(board.interrupt_trigger)?;
        let sites = || board.sites.iter().filter(|s| self.assembly.is_built(s));
        tree.node("", |t| {
            t.text("compatible", board.compatible)?;
            t.text("model", board.compatible)?;
            t.cells("#address-cells", &[2])?;
            t.cells("#size-cells", &[2])?;
            t.node("chosen", |t| {
                t.text("stdout-path", board.stdout_path)?;
                chosen(t)
            })?;
            for r in ram.regions() {
                t.node(&format!("memory@{:x}", r.gpa), |t| {
                    t.text("device_type", "memory")?;
                    t.reg(&[Range { start: r.gpa, len: r.len }])
                })?;
            }
            (board.describe_cpus)(&self.assembly, t)?;
            for site in sites() {
                site.part.describe_root(site, t)?;
            }
            t.node("soc", |t| {
                t.text("compatible", "simple-bus")?;
                t.cells("#address-cells", &[2])?;
                t.cells("#size-cells", &[2])?;
                t.flag("ranges")?;
                for site in sites() {
                    site.part.describe(site, &self.assembly, t)?;
                }
                Ok(())
            })
        })?;
        tree.finish()
    }
}

impl Drop for Machine {
    /// The bus is shared with the vCPUs, which devices reach through their interrupt lines: taking the
    /// devices off it opens that circle.
    fn drop(&mut self) {
        self.reset();
        for &start in &self.assembly.built {
            self.assembly.bus.remove(start);
        }
    }
}
