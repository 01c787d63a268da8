//! What makes vCPUs.

use std::sync::Arc;

use plinth_clock::Timers;
use plinth_machine::board::{Board, CpuModel};
use plinth_memory::GuestRam;
use plinth_vcpu::{PhysicalBus, Platform, Vcpu};

/// The machine that vCPUs are made for.
pub struct MachineContext {
    /// Its board.
    pub board: &'static Board,
    /// vCPUs to make.
    pub cpus: u32,
    /// Guest RAM.
    pub ram: GuestRam,
    /// All other guest physical addresses.
    pub bus: Arc<dyn PhysicalBus>,
    /// Services for firmware that is built into the vCPUs.
    pub platform: Arc<dyn Platform>,
    /// The machine's timers and clock.
    pub timers: Arc<Timers>,
    /// No firmware is given: the vCPUs serve the guest's firmware calls themselves.
    pub builtin_firmware: bool,
}

/// vCPUs that were made.
pub struct Vcpus {
    /// By index, all off.
    pub vcpus: Vec<Box<dyn Vcpu>>,
    /// What the guest is told of them; `None`: the board's default.
    pub model: Option<CpuModel>,
}

/// A way to run guest instructions.
pub trait Accelerator: Send + Sync {
    /// Name, as users give it.
    fn name(&self) -> &str;
    /// Makes the vCPUs of a machine.
    ///
    /// # Errors
    /// Why it cannot.
    fn create_vcpus(&self, machine: MachineContext) -> Result<Vcpus, String>;
}
