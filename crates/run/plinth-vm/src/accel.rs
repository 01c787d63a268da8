//! What makes vCPUs.

use std::sync::Arc;

use plinth_clock::Clock;
use plinth_machine::board::CpuModel;
use plinth_memory::GuestRam;
use plinth_vcpu::{PhysicalBus, Platform, Vcpu};

/// What a vCPU is made with.
#[derive(Clone)]
pub struct VcpuContext {
    /// Its index in the machine.
    pub index: u32,
    /// vCPUs in the machine.
    pub count: u32,
    /// Guest RAM.
    pub ram: GuestRam,
    /// All other guest physical addresses.
    pub bus: Arc<dyn PhysicalBus>,
    /// Services for firmware that is built into the vCPU.
    pub platform: Arc<dyn Platform>,
    /// The machine's clock.
    pub clock: Clock,
    /// Ticks a second of the vCPU's time counter.
    pub timebase_hz: u64,
    /// No firmware is given: the vCPU serves the guest's firmware calls itself.
    pub builtin_firmware: bool,
}

/// A way to run guest instructions.
pub trait Accelerator: Send + Sync {
    /// Name, as users give it.
    fn name(&self) -> &str;
    /// What the guest is told of its CPUs; `None`: the board's default.
    fn cpu_model(&self) -> Option<CpuModel>;
    /// Makes a vCPU, off.
    ///
    /// # Errors
    /// Why it cannot.
    fn create_vcpu(&self, context: VcpuContext) -> Result<Box<dyn Vcpu>, String>;
}
