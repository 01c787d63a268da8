//! Making a machine.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use plinth_clock::{Clock, Timers};
use plinth_device::{Bus, CharBackend};
use plinth_machine::board::Board;
use plinth_machine::{BootSources, Machine, MakeDevice, Resources};
use plinth_memory::GuestRam;
use plinth_pci::PciFunction;
use plinth_vcpu::{Platform, SystemEvent, VcpuControl};

use crate::event::{Event, Events};
use crate::thread::VcpuThreads;
use crate::vm::{Console, Vm};
use crate::{Accelerator, Error, MachineContext, Vcpus};

/// What the vCPUs' built-in firmware sees of the machine.
pub(crate) struct Services {
    events: Arc<Events>,
    console: Console,
    /// Weak, for a vCPU may hold these services.
    vcpus: RwLock<Vec<Weak<dyn VcpuControl>>>,
}

impl Platform for Services {
    fn console_write(&self, data: &[u8]) -> usize {
        self.console.write(data)
    }

    fn console_read(&self, data: &mut [u8]) -> usize {
        self.console.read(data)
    }

    fn system_event(&self, event: SystemEvent) {
        self.events.push(Event::Guest(event));
    }

    fn vcpus(&self) -> Vec<Arc<dyn VcpuControl>> {
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        vcpus.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Collects what a machine is made of. Devices that need guest RAM or timers take them from here.
pub struct VmBuilder {
    board: &'static Board,
    cpus: u32,
    ram: GuestRam,
    timers: Arc<Timers>,
    serials: Vec<Arc<dyn CharBackend>>,
    pci: Vec<Arc<dyn PciFunction>>,
    virtio_mmio: Vec<MakeDevice>,
    boot: BootSources,
    reboot: bool,
}

impl VmBuilder {
    /// A machine on `board` with `memory` bytes of RAM (rounded up to 4 KiB) and `cpus` vCPUs.
    ///
    /// # Errors
    /// The board does not take that much; the host has no memory or no thread.
    pub fn new(board: &'static Board, memory: u64, cpus: u32) -> Result<Self, Error> {
        board.check(memory, cpus)?;
        let ram = GuestRam::new(&[(board.ram_start, memory.next_multiple_of(plinth_memory::PAGE_SIZE))])?;
        let timers = Timers::new(Clock::new())
            .map_err(|source| Error::Thread { what: "timers".to_owned(), source })?;
        Ok(Self {
            board,
            cpus,
            ram,
            timers: Arc::new(timers),
            serials: Vec::new(),
            pci: Vec::new(),
            virtio_mmio: Vec::new(),
            boot: BootSources::default(),
            reboot: true,
        })
    }

    /// Guest RAM, for devices.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The machine's timers, for devices.
    #[must_use]
    pub fn timers(&self) -> &Arc<Timers> {
        &self.timers
    }

    /// Connects the next serial line. The first is also the firmware's console.
    pub fn serial(&mut self, backend: Arc<dyn CharBackend>) -> &mut Self {
        self.serials.push(backend);
        self
    }

    /// Puts a PCI function into the next slot.
    pub fn pci(&mut self, function: Arc<dyn PciFunction>) -> &mut Self {
        self.pci.push(function);
        self
    }

    /// Puts a virtio device into the board's next place for the memory-mapped transport.
    pub fn virtio_mmio(&mut self, make: MakeDevice) -> &mut Self {
        self.virtio_mmio.push(make);
        self
    }

    /// What the guest boots from.
    pub fn boot(&mut self, sources: BootSources) -> &mut Self {
        self.boot = sources;
        self
    }

    /// Whether a reset that the guest asks for reboots it (which is the default) or ends the run.
    pub fn reboot(&mut self, reboot: bool) -> &mut Self {
        self.reboot = reboot;
        self
    }

    /// Makes the machine, with vCPUs from `accelerator`, and loads the guest. Nothing runs yet.
    ///
    /// # Errors
    /// Some part could not be made, or the guest not be loaded.
    pub fn build(self, accelerator: &dyn Accelerator) -> Result<Vm, Error> {
        let Self { board, cpus, ram, timers, serials, pci, virtio_mmio, boot, reboot } = self;
        let events = Arc::new(Events::default());
        let console = Console::new(serials.first());
        let services = Arc::new(Services {
            events: Arc::clone(&events),
            console: console.clone(),
            vcpus: RwLock::default(),
        });
        let bus = Arc::new(Bus::new());
        let context = MachineContext {
            board,
            cpus,
            ram: ram.clone(),
            bus: bus.clone(),
            platform: services.clone(),
            timers: Arc::clone(&timers),
            builtin_firmware: boot.firmware.is_none(),
        };
        let Vcpus { vcpus, model } = accelerator
            .create_vcpus(context)
            .map_err(|why| Error::Vcpus { accelerator: accelerator.name().to_owned(), why })?;
        let controls: Vec<_> = vcpus.iter().map(|v| v.control()).collect();
        *services.vcpus.write().unwrap_or_else(PoisonError::into_inner) =
            controls.iter().map(Arc::downgrade).collect();
        let to = Arc::clone(&events);
        let resources = Resources {
            ram,
            bus,
            timers: Arc::clone(&timers),
            vcpus: controls,
            cpu: model,
            events: Arc::new(move |event| to.push(Event::Guest(event))),
            serials,
            pci,
            virtio_mmio,
        };
        let machine = Machine::new(board, resources)?;
        let loaded = machine.load(&boot, cpus)?;
        let threads = VcpuThreads::spawn(vcpus, &events)?;
        threads.reset(loaded.starts);
        Ok(Vm {
            threads,
            machine,
            boot,
            reboot,
            cpus,
            events,
            console,
            timers,
            tohost: loaded.tohost,
            htif: OnceLock::new(),
        })
    }
}
