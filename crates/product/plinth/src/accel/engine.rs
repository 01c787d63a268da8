//! Plinth's own CPU engine as an accelerator, and the guest instruction sets that it has front ends for.

use std::sync::Arc;

use plinth_engine::{Engine, Parts, Tier};
use plinth_machine::board::CpuModel;
use plinth_machine::isa::Isa;
use plinth_vm::{Accelerator, MachineContext, Vcpus};

/// A front end for one machine.
pub struct GuestCpu {
    /// The front end.
    pub isa: Arc<dyn plinth_ir::Isa>,
    /// What the guest is told of it; `None`: the board's default.
    pub model: Option<CpuModel>,
}

/// A guest instruction set of the engine.
struct FrontEnd {
    /// Its name.
    isa: &'static str,
    /// Makes it for a machine.
    make: fn(&MachineContext) -> GuestCpu,
}

/// All front ends.
static FRONT_ENDS: [FrontEnd; 1] = [FrontEnd { isa: "riscv64", make: super::riscv64::make }];

/// The engine for guests of one instruction set.
pub struct EngineAccelerator {
    front_end: &'static FrontEnd,
    tier: Tier,
}

impl EngineAccelerator {
    /// `None` where the engine has no front end for `isa`, or cannot translate for this host.
    pub fn new(isa: &Isa, tier: Tier) -> Option<Self> {
        if tier == Tier::Translate && plinth_codegen::Config::detect().is_err() {
            return None;
        }
        let front_end = FRONT_ENDS.iter().find(|f| f.isa == isa.name)?;
        Some(Self { front_end, tier })
    }
}

impl Accelerator for EngineAccelerator {
    fn name(&self) -> &str {
        match self.tier {
            Tier::Translate => "engine",
            Tier::Interpret => "interp",
        }
    }

    fn create_vcpus(&self, machine: MachineContext) -> Result<Vcpus, String> {
        let GuestCpu { isa, model } = (self.front_end.make)(&machine);
        let MachineContext { cpus, ram, bus, platform, timers, .. } = machine;
        let parts = Parts { isa, ram, bus, platform, timers };
        let engine = Engine::new(parts, self.tier).map_err(|e| e.to_string())?;
        let vcpus = (0..cpus).map(|_| engine.add_vcpu()).collect::<Result<_, _>>();
        Ok(Vcpus { vcpus: vcpus.map_err(|e| e.to_string())?, model })
    }
}
