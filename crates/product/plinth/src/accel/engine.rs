//! Plinth's own CPU engine as an accelerator, and the guest instruction sets that it has front ends for.

use std::sync::Arc;

use plinth_engine::{Engine, Parts, Tier};
use plinth_isa_riscv::model::CACHE_BLOCK_BYTES;
use plinth_isa_riscv::{CpuModel as RiscvModel, Firmware, Paging, Riscv};
use plinth_machine::board::{CpuModel, CpuProperty};
use plinth_machine::isa::Isa;
use plinth_vm::{Accelerator, MachineContext, Vcpus};

use super::AccelOptions;
use crate::cli::CpuOption;

/// A front end for one machine.
struct GuestCpu {
    isa: Arc<dyn plinth_ir::Isa>,
    /// What the guest is told of it; `None`: the board's default.
    model: Option<CpuModel>,
}

/// A guest instruction set of the engine.
struct FrontEnd {
    /// Its name.
    isa: &'static str,
    /// Properties of its CPUs that `--cpu` sets.
    properties: &'static [&'static str],
    /// Makes it for a machine.
    make: fn(&MachineContext, &CpuOption) -> GuestCpu,
}

/// All front ends.
static FRONT_ENDS: [FrontEnd; 1] = [FrontEnd { isa: "riscv64", properties: &["v"], make: riscv64 }];

fn front_end(isa: &Isa) -> Option<&'static FrontEnd> {
    FRONT_ENDS.iter().find(|f| f.isa == isa.name)
}

/// The properties of CPUs of `isa` that `--cpu` sets.
pub fn cpu_properties(isa: &Isa) -> &'static [&'static str] {
    front_end(isa).map_or(&[], |f| f.properties)
}

/// The engine for guests of one instruction set.
pub struct EngineAccelerator {
    front_end: &'static FrontEnd,
    tier: Tier,
    options: AccelOptions,
}

impl EngineAccelerator {
    /// `None` where the engine has no front end for `isa`, or cannot translate for this host.
    pub fn new(isa: &Isa, tier: Tier, options: &AccelOptions) -> Option<Self> {
        if tier == Tier::Translate && plinth_codegen::Config::detect().is_err() {
            return None;
        }
        Some(Self { front_end: front_end(isa)?, tier, options: options.clone() })
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
        let GuestCpu { isa, model } = (self.front_end.make)(&machine, &self.options.cpu);
        let MachineContext { cpus, ram, bus, platform, timers, .. } = machine;
        let parts = Parts { isa, ram, bus, platform, timers };
        let engine = Engine::new(parts, self.tier).map_err(|e| e.to_string())?;
        if self.options.perf_map {
            engine.write_perf_map().map_err(|e| format!("cannot write a symbol map for perf: {e}"))?;
        }
        let vcpus = (0..cpus).map(|_| engine.add_vcpu()).collect::<Result<_, _>>();
        Ok(Vcpus { vcpus: vcpus.map_err(|e| e.to_string())?, model })
    }
}

fn riscv64(machine: &MachineContext, cpu: &CpuOption) -> GuestCpu {
    let firmware = if machine.builtin_firmware { Firmware::BuiltIn } else { Firmware::Guest };
    // Three levels of page tables are the fastest to walk and what most hardware of this kind has.
    let model = RiscvModel {
        paging: Paging::Sv39,
        aia: machine.board.name.ends_with("-aia"),
        vector: cpu.get("v").unwrap_or(true),
    };
    let text = |name: &str, value: &str| (name.to_owned(), CpuProperty::Text(value.to_owned()));
    let block = |name: &str| (name.to_owned(), CpuProperty::Cell(CACHE_BLOCK_BYTES));
    let extensions = model.extensions().into_iter().map(str::to_owned).collect();
    let properties = vec![
        text("riscv,isa", &model.isa_string()),
        text("riscv,isa-base", model.base()),
        ("riscv,isa-extensions".to_owned(), CpuProperty::Texts(extensions)),
        text("mmu-type", model.mmu_type()),
        block("riscv,cbom-block-size"),
        block("riscv,cboz-block-size"),
        block("riscv,cbop-block-size"),
    ];
    GuestCpu { isa: Arc::new(Riscv::new(model, firmware)), model: Some(CpuModel { properties }) }
}
