//! RISC-V as a guest ISA of the engine.

use plinth_ir::{
    Access, AddressSpace, Block, Cpu, CpuEnv, Exception, Helper, HelperFn, Isa, Layout, LiftError,
    LiftRequest, Mode, Translation,
};
use plinth_vcpu::{Register, StartState};

use crate::helper::HelperId;
use crate::mode::privilege;
use crate::model::CpuModel;
use crate::privileged::interrupts::{self, irq};
use crate::privileged::state::{envcfg, feature, mode_of, status, vector_on};
use crate::privileged::trap::cause;
use crate::privileged::{access, csr, fence, mmu, trap};
use crate::slots::{self, set};
use crate::{compute, disasm, lift, vector};

/// What a hart starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Firmware {
    /// The SBI is built in: a hart starts in supervisor mode, and what it needs of machine mode is done for
    /// it.
    BuiltIn,
    /// The guest brings its firmware: a hart starts in machine mode.
    Guest,
}

/// 64-bit RISC-V.
#[derive(Clone, Debug)]
pub struct Riscv {
    model: CpuModel,
    firmware: Firmware,
}

const fn function_of(id: HelperId) -> HelperFn {
    match id {
        HelperId::Csr => csr::csr,
        HelperId::Sret => trap::sret,
        HelperId::Mret => trap::mret,
        HelperId::Wfi => interrupts::wfi,
        HelperId::Wrs => interrupts::wrs,
        HelperId::SfenceVma => fence::sfence_vma,
        HelperId::SfenceOrder => fence::sfence_order,
        HelperId::FenceI => fence::fence_i,
        HelperId::FpCheck => fence::fp_check,
        HelperId::AmocasQ => access::amocas_q,
        HelperId::CacheBlock => access::cache_block,
        HelperId::Vector => vector::execute,
        HelperId::Clmul => compute::clmul,
        HelperId::Clmulh => compute::clmulh,
        HelperId::Clmulr => compute::clmulr,
        HelperId::Fclass => compute::fclass,
        HelperId::Fcvtmod => compute::fcvtmod,
    }
}

const fn helpers() -> [Helper; HelperId::ALL.len()] {
    let mut all = [Helper { name: "", function: csr::csr }; HelperId::ALL.len()];
    let mut i = 0;
    while i < all.len() {
        let id = HelperId::ALL[i];
        all[i] = Helper { name: id.name(), function: function_of(id) };
        i += 1;
    }
    all
}

static HELPERS: [Helper; HelperId::ALL.len()] = helpers();

impl Riscv {
    /// Harts of `model` that start with `firmware`.
    #[must_use]
    pub const fn new(model: CpuModel, firmware: Firmware) -> Self {
        Self { model, firmware }
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &CpuModel {
        &self.model
    }
}

/// The state in which firmware hands a hart to a kernel: everything that supervisor mode can handle goes
/// there, and everything that machine mode can grant is granted.
fn enter_supervisor(s: &mut [u64]) {
    set(s, slots::PRIVILEGE, u64::from(privilege::SUPERVISOR));
    set(s, slots::MEDELEG, cause::DELEGABLE & !(1 << cause::ECALL_SUPERVISOR));
    set(s, slots::MIDELEG, irq::SUPERVISOR);
    set(s, slots::MCOUNTEREN, 7);
    set(s, slots::SCOUNTEREN, 7);
    set(s, slots::MENVCFG, envcfg::MACHINE);
}

/// The slot of the register that `name` means: an ABI name or `x` or `f` and a number, or half of a vector
/// register.
fn register_slot(name: &str) -> Option<u16> {
    let numbered = |prefix: char| name.strip_prefix(prefix)?.parse::<u8>().ok().filter(|&n| n < 32);
    let named = |names: &[&str]| names.iter().position(|n| *n == name).map(|i| i as u8);
    let x = numbered('x').or_else(|| named(&slots::X_NAMES)).map(slots::x);
    let f = || numbered('f').or_else(|| named(&slots::F_NAMES)).map(slots::f);
    x.or_else(f).or_else(|| named(&slots::V_NAMES).map(|half| slots::V0 + u16::from(half)))
}

impl Isa for Riscv {
    fn name(&self) -> &'static str {
        "riscv64"
    }

    fn layout(&self) -> &Layout {
        &slots::LAYOUT
    }

    fn helpers(&self) -> &[Helper] {
        &HELPERS
    }

    fn lift(&self, request: &LiftRequest<'_>, out: &mut Block) -> Result<(), LiftError> {
        lift::lift(request, out)
    }

    fn disassemble(&self, code: &[u8], pc: u64) -> (String, u32) {
        disasm::disassemble(code, pc)
    }

    fn reset(&self, slots: &mut [u64], index: u32, start: &StartState) -> u64 {
        let s = slots;
        s.fill(0);
        let built_in = if self.firmware == Firmware::BuiltIn { feature::SBI } else { 0 };
        // What the model has of the AIA is supervisor mode's: firmware of the guest's own would need machine
        // mode's part.
        let without = if built_in == 0 { feature::AIA } else { 0 };
        set(s, slots::FEATURES, self.model.features() & !without | built_in);
        set(s, slots::MISA, self.model.misa());
        set(s, slots::MHARTID, u64::from(index));
        set(s, slots::MSTATUS, status::XL);
        vector::Config::ILLEGAL.put(s);
        set(s, slots::STIMECMP, u64::MAX);
        set(s, slots::PRIVILEGE, u64::from(privilege::MACHINE));
        if self.firmware == Firmware::BuiltIn {
            enter_supervisor(s);
        }
        for (name, value) in &start.registers {
            if let Some(slot) = register_slot(name).filter(|&slot| slot != slots::X0) {
                set(s, slot, *value);
            }
        }
        start.pc
    }

    fn mode(&self, slots: &[u64]) -> Mode {
        mode_of(slots)
    }

    fn address_space(&self, slots: &[u64], mmu: usize) -> AddressSpace {
        mmu::address_space(slots, mmu)
    }

    fn translate(
        &self,
        slots: &[u64],
        env: &mut dyn CpuEnv,
        access: Access,
    ) -> Result<Translation, Exception> {
        mmu::translate(slots, env, access)
    }

    fn access_fault(&self, access: Access) -> Exception {
        mmu::access_fault(access)
    }

    fn misaligned(&self, access: Access) -> Exception {
        mmu::misaligned(access)
    }

    fn raise(&self, cpu: &mut Cpu<'_>, exception: Exception) {
        trap::raise(cpu, exception);
    }

    fn take_interrupt(&self, cpu: &mut Cpu<'_>) -> bool {
        interrupts::take(cpu)
    }

    fn wakes(&self, slots: &mut [u64], env: &mut dyn CpuEnv) -> bool {
        interrupts::wakes(&mut Cpu { slots, pc: 0, insn_len: 0, env })
    }

    fn registers(&self, slots: &[u64], pc: u64) -> Vec<Register> {
        const FIRST_CONTROL: usize = slots::PRIVILEGE as usize;
        let vectors = slots::V0 as usize..FIRST_CONTROL;
        let shown = slots::LAYOUT.slots.iter().zip(slots).enumerate();
        let with_vectors = vector_on(slots);
        let shown = shown.filter(|(i, _)| with_vectors || !vectors.contains(i));
        let mut all = vec![Register { name: "pc".into(), value: pc }];
        all.extend(shown.map(|(_, (info, value))| Register { name: info.name.into(), value: *value }));
        all
    }
}
