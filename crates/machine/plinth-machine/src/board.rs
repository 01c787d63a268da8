//! What a board is: a table of parts with their addresses and interrupts, and the few facts about the CPUs
//! and the boot that only the board knows. [`crate::Machine`] interprets it.

use plinth_device::Range;
use plinth_vcpu::StartState;

use crate::assembly::Assembly;
use crate::isa::Isa;
use crate::tree::Tree;
use crate::{BootEntry, Error};

/// A kind of part: how it is made from its place in the table, and how it is described to the guest.
pub trait Part: Sync {
    /// Makes the device and puts it on the machine's buses.
    ///
    /// # Errors
    /// The part could not be made, or its address is taken.
    fn build(&self, site: &Site, machine: &mut Assembly) -> Result<(), Error>;

    /// Writes its device tree node, inside the node of the board's simple bus.
    ///
    /// # Errors
    /// The tree writer refused.
    fn describe(&self, site: &Site, machine: &Assembly, tree: &mut Tree) -> Result<(), Error>;

    /// Writes nodes that it needs at the tree's root.
    ///
    /// # Errors
    /// The tree writer refused.
    fn describe_root(&self, _site: &Site, _tree: &mut Tree) -> Result<(), Error> {
        Ok(())
    }
}

/// One line of a board's table.
pub struct Site {
    /// What is there.
    pub part: &'static dyn Part,
    /// Name of its node, without the address; also its label.
    pub name: &'static str,
    /// Its address ranges, in the part's order.
    pub reg: &'static [Range],
    /// Its lines at the board's interrupt controller, in the part's order.
    pub irqs: &'static [u32],
}

impl Site {
    /// Its first range.
    ///
    /// # Errors
    /// The table has none.
    pub fn range(&self) -> Result<Range, Error> {
        self.reg.first().copied().ok_or(Error::Board { site: self.name, what: "an address range" })
    }

    /// Its first interrupt line.
    ///
    /// # Errors
    /// The table has none.
    pub fn irq(&self) -> Result<u32, Error> {
        self.irqs.first().copied().ok_or(Error::Board { site: self.name, what: "an interrupt" })
    }

    /// Name of its node, with the address.
    ///
    /// # Errors
    /// The table has no address.
    pub fn node_name(&self) -> Result<String, Error> {
        Ok(format!("{}@{:x}", self.name, self.range()?.start))
    }
}

/// Inputs of a vCPU as the board wires them.
#[derive(Clone, Copy, Debug)]
pub struct CpuPins {
    /// External interrupts, one for each privilege level that the interrupt controller serves.
    pub external: &'static [u32],
    /// Software interrupt of the core-local interruptor.
    pub software: u32,
    /// Timer interrupt of the core-local interruptor.
    pub timer: u32,
}

/// What the CPUs of a machine are, for the guest to read. Filled by whoever makes the vCPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuModel {
    /// Device tree properties of each CPU node, in order.
    pub properties: Vec<(String, CpuProperty)>,
}

/// A value of a CPU's device tree property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuProperty {
    /// One string.
    Text(String),
    /// Several strings.
    Texts(Vec<String>),
    /// One cell.
    Cell(u32),
}

/// A board. All fields are data or small functions of the board's own module.
pub struct Board {
    /// Name, as users give it.
    pub name: &'static str,
    /// `compatible` of the root node.
    pub compatible: &'static str,
    /// Instruction set of its CPUs.
    pub isa: &'static Isa,
    /// Where RAM starts.
    pub ram_start: u64,
    /// Bytes of RAM at most.
    pub ram_max: u64,
    /// CPUs at most.
    pub max_cpus: u32,
    /// Ticks a second of the CPUs' time counter.
    pub timebase_hz: u64,
    /// Inputs of each vCPU.
    pub pins: CpuPins,
    /// Label of the interrupt controller that `irqs` of the sites mean.
    pub interrupt_controller: &'static str,
    /// The extra cell of its interrupt specifiers.
    pub interrupt_trigger: Option<u32>,
    /// Lines of that interrupt controller, from 1.
    pub interrupt_lines: u32,
    /// Path of the standard console's node.
    pub stdout_path: &'static str,
    /// The board has what firmware needs; otherwise only that which is built into the vCPUs.
    pub takes_firmware: bool,
    /// The table. A part comes after those it needs; the interrupt controller is first.
    pub sites: &'static [Site],
    /// Writes the `cpus` node.
    pub describe_cpus: fn(&Assembly, &mut Tree) -> Result<(), Error>,
    /// The CPUs' device tree properties where nobody knows better.
    pub default_cpu: fn() -> CpuModel,
    /// What each vCPU starts with; `None` waits to be started by the guest.
    pub start: fn(&BootEntry, u32) -> Option<StartState>,
    /// What a firmware image of this board may want to be told of the next stage, as bytes in RAM.
    pub next_stage: fn(next: u64) -> Vec<u8>,
}

impl Board {
    /// Checks a machine's size against the board's limits: `memory` in bytes.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn check(&self, memory: u64, cpus: u32) -> Result<(), Error> {
        let limits = [("CPUs", self.max_cpus.into(), cpus.into()), ("bytes of memory", self.ram_max, memory)];
        match limits.into_iter().find(|(_, max, asked)| asked > max) {
            Some((what, max, asked)) => Err(Error::TooMany { board: self.name, what, max, asked }),
            None => Ok(()),
        }
    }
}
