//! The riscv64 front end of the engine, and what a device tree says of its CPUs (Devicetree binding
//! `riscv/cpus.yaml`, `riscv/extensions.yaml`).

use std::sync::Arc;

use plinth_isa_riscv::{CpuModel as Model, Firmware, Riscv, model};
use plinth_machine::board::{CpuModel, CpuProperty};
use plinth_vm::MachineContext;

use super::engine::GuestCpu;

/// Makes the front end for a machine.
pub fn make(machine: &MachineContext) -> GuestCpu {
    let firmware = if machine.builtin_firmware { Firmware::BuiltIn } else { Firmware::Guest };
    let model = Model::default();
    GuestCpu { model: Some(describe(&model)), isa: Arc::new(Riscv::new(model, firmware)) }
}

fn describe(model: &Model) -> CpuModel {
    let text = |s: &str| CpuProperty::Text(s.to_owned());
    let extensions = model.extensions().into_iter().map(str::to_owned).collect();
    let block = CpuProperty::Cell(model::CACHE_BLOCK_BYTES);
    let properties = [
        ("riscv,isa", text(&model.isa_string())),
        ("riscv,isa-base", text(model.base())),
        ("riscv,isa-extensions", CpuProperty::Texts(extensions)),
        ("mmu-type", text(model.mmu_type())),
        ("riscv,cbom-block-size", block.clone()),
        ("riscv,cbop-block-size", block.clone()),
        ("riscv,cboz-block-size", block),
    ];
    CpuModel { properties: properties.map(|(name, value)| (name.to_owned(), value)).into() }
}
