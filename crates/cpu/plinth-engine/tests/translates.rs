//! Blocks that the code generator refuses are interpreted, which is slow: it refuses none that the lifter
//! makes.

use plinth_codegen::frame::{Frame, Runtime};
use plinth_codegen::{CodeMemory, Config, Translator};
use plinth_ir::{Block, LiftRequest, Mode};
use plinth_isa_riscv::generate::{Generator, Options};
use plinth_isa_riscv::mode::{RiscvMode, Unit, mmu, privilege};
use plinth_isa_riscv::table::Ext;
use plinth_isa_riscv::{lift, slots};

extern "C" fn load(_: *mut Frame, _: u64, _: u64) -> u64 {
    0
}
extern "C" fn store(_: *mut Frame, _: u64, _: u64, _: u64) {}
extern "C" fn three(_: *mut Frame, _: u64, _: u64, _: u64, _: u64) -> u64 {
    0
}
extern "C" fn trap(_: *mut Frame, _: u64, _: u64) {}

#[test]
fn every_block_of_vector_instructions_is_translated() {
    let runtime = Runtime { load, store, atomic: three, helper: three, float: three, trap };
    let mut memory = CodeMemory::new(64 << 20, &slots::LAYOUT, &runtime).unwrap();
    let mut translator = Translator::new(&slots::LAYOUT, Config::detect().unwrap()).unwrap();
    let mode = RiscvMode {
        mmu: mmu::USER,
        privilege: privilege::USER,
        fp: Unit::On,
        vector: Unit::Check,
        ..RiscvMode::default()
    };
    let mode = Mode { key: mode.key(), fetch: 0 };
    let mut block = Block::default();
    for seed in 0..300 {
        let options = Options { exts: vec![Ext::V, Ext::F, Ext::I], keep: 0, skip: |_, _| false };
        let code = Generator::new(seed, &options).sequence(100);
        let request = LiftRequest { mode, start: 0, code: &code, max_insns: 128 };
        lift::lift(&request, &mut block).unwrap();
        if let Err(e) = translator.translate(&block, mode, None, &mut memory) {
            panic!("seed {seed}: {e}");
        }
    }
}
