//! Control and status registers: which there are, who may access them, what they hold.

use plinth_ir::{Cpu, HelperResult};

use crate::mode::privilege;
use crate::privileged::fence::FLUSH_ALL;
use crate::privileged::imsic;
use crate::privileged::interrupts::{self, irq};
use crate::privileged::mmu::satp;
use crate::privileged::state::{
    clear_bits, envcfg, fp_on, has_aia, misa_bit, mode_of, privilege_of, set_bits, status, vector_on,
};
use crate::privileged::trap::{cause, illegal, next};
use crate::privileged::{pmp, timer};
use crate::slots::{self, get, set};
use crate::vector::{Config, VLENB};

/// Numbers of CSRs (2.2).
#[allow(missing_docs)]
pub mod number {
    pub const FFLAGS: u16 = 0x001;
    pub const FRM: u16 = 0x002;
    pub const FCSR: u16 = 0x003;
    pub const VSTART: u16 = 0x008;
    pub const VXSAT: u16 = 0x009;
    pub const VXRM: u16 = 0x00a;
    pub const VCSR: u16 = 0x00f;
    pub const CYCLE: u16 = 0xc00;
    pub const TIME: u16 = 0xc01;
    pub const INSTRET: u16 = 0xc02;
    pub const HPMCOUNTER3: u16 = 0xc03;
    pub const HPMCOUNTER31: u16 = 0xc1f;
    pub const VL: u16 = 0xc20;
    pub const VTYPE: u16 = 0xc21;
    pub const VLENB: u16 = 0xc22;
    pub const SSTATUS: u16 = 0x100;
    pub const SIE: u16 = 0x104;
    pub const STVEC: u16 = 0x105;
    pub const SCOUNTEREN: u16 = 0x106;
    pub const SENVCFG: u16 = 0x10a;
    pub const SSCRATCH: u16 = 0x140;
    pub const SEPC: u16 = 0x141;
    pub const SCAUSE: u16 = 0x142;
    pub const STVAL: u16 = 0x143;
    pub const SIP: u16 = 0x144;
    pub const STIMECMP: u16 = 0x14d;
    pub const SISELECT: u16 = 0x150;
    pub const SIREG: u16 = 0x151;
    pub const STOPEI: u16 = 0x15c;
    pub const SATP: u16 = 0x180;
    pub const STOPI: u16 = 0xdb0;
    pub const MSTATUS: u16 = 0x300;
    pub const MISA: u16 = 0x301;
    pub const MEDELEG: u16 = 0x302;
    pub const MIDELEG: u16 = 0x303;
    pub const MIE: u16 = 0x304;
    pub const MTVEC: u16 = 0x305;
    pub const MCOUNTEREN: u16 = 0x306;
    pub const MENVCFG: u16 = 0x30a;
    pub const MCOUNTINHIBIT: u16 = 0x320;
    pub const MHPMEVENT3: u16 = 0x323;
    pub const MHPMEVENT31: u16 = 0x33f;
    pub const MSCRATCH: u16 = 0x340;
    pub const MEPC: u16 = 0x341;
    pub const MCAUSE: u16 = 0x342;
    pub const MTVAL: u16 = 0x343;
    pub const MIP: u16 = 0x344;
    pub const PMPCFG0: u16 = 0x3a0;
    pub const PMPCFG2: u16 = 0x3a2;
    pub const PMPADDR0: u16 = 0x3b0;
    pub const PMPADDR15: u16 = 0x3bf;
    pub const MSECCFG: u16 = 0x747;
    pub const TSELECT: u16 = 0x7a0;
    pub const TDATA1: u16 = 0x7a1;
    pub const TDATA2: u16 = 0x7a2;
    pub const TDATA3: u16 = 0x7a3;
    pub const TINFO: u16 = 0x7a4;
    pub const MCYCLE: u16 = 0xb00;
    pub const MINSTRET: u16 = 0xb02;
    pub const MHPMCOUNTER3: u16 = 0xb03;
    pub const MHPMCOUNTER31: u16 = 0xb1f;
    pub const MVENDORID: u16 = 0xf11;
    pub const MARCHID: u16 = 0xf12;
    pub const MIMPID: u16 = 0xf13;
    pub const MHARTID: u16 = 0xf14;
    pub const MCONFIGPTR: u16 = 0xf15;
}
use number as n;

/// `mvendorid`: no commercial implementation.
pub const VENDOR_ID: u64 = 0;
/// `marchid`: not an allocated one.
pub const ARCH_ID: u64 = 0;
/// `mimpid`: major and minor version.
pub const IMPL_ID: u64 = 0x0001_0000;

/// Counters there are: `cycle`, `time`, `instret`.
const COUNTERS: u64 = 7;
/// Counters that can be stopped.
const INHIBITABLE: u64 = 5;
/// Index of `cycle` among the counters.
const COUNTER_CYCLE: u16 = 0;
/// Index of `instret` among the counters.
const COUNTER_INSTRET: u16 = 2;
/// No instruction is at this address.
const NOWHERE: u64 = 1;

/// What a write changed beyond the register.
#[derive(Clone, Copy, Default)]
struct Effect {
    /// The mode or an address space: the rest of the block is no longer valid.
    context: bool,
    /// Which interrupts can be taken.
    interrupts: bool,
}

const NO_EFFECT: Effect = Effect { context: false, interrupts: false };
const CONTEXT: Effect = Effect { context: true, interrupts: false };
const INTERRUPTS: Effect = Effect { context: false, interrupts: true };

/// The helper `csr`: a CSR instruction, given its bits.
pub fn csr(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    match execute(cpu, insn as u32) {
        None => illegal(insn),
        Some(e) if e.context || (e.interrupts && interrupts::deliverable(cpu.slots, cpu.env)) => next(cpu),
        Some(_) => HelperResult::Next(0),
    }
}

/// Performs a CSR instruction; `None` if it is illegal.
fn execute(cpu: &mut Cpu<'_>, insn: u32) -> Option<Effect> {
    const WRITE: u32 = 1;
    const SET: u32 = 2;
    const CLEAR: u32 = 3;
    let number = (insn >> 20) as u16;
    let rd = (insn >> 7 & 31) as u8;
    let source = (insn >> 15 & 31) as u8;
    let is_immediate = insn >> 14 & 1 != 0;
    let operand = match source {
        0 => 0,
        _ if is_immediate => u64::from(source),
        _ => get(cpu.slots, slots::x(source)),
    };
    let operation = insn >> 12 & 3;
    let writes = operation == WRITE || source != 0;
    let is_read_only = number >> 10 == 3;
    if u32::from(number >> 8 & 3) > privilege_of(cpu.slots) || (writes && is_read_only) {
        return None;
    }
    let old = read(cpu, number)?;
    let (value, touched) = match operation {
        WRITE => (operand, u64::MAX),
        SET => (old | operand, operand),
        CLEAR => (old & !operand, operand),
        _ => return None,
    };
    let effect = if writes { write(cpu, number, value, touched)? } else { NO_EFFECT };
    if rd != 0 {
        set(cpu.slots, slots::x(rd), old);
    }
    Some(effect)
}

/// Reads CSR `number`; `None` if it is absent, or not accessible in the current state. Whether the privilege
/// in the number suffices is the caller's to check.
fn read(cpu: &mut Cpu<'_>, number: u16) -> Option<u64> {
    let s = &*cpu.slots;
    Some(match number {
        n::FFLAGS..=n::FCSR => return read_float(cpu, number),
        n::VSTART..=n::VCSR | n::VL..=n::VLENB => return read_vector(s, number),
        n::CYCLE..=n::HPMCOUNTER31 => {
            is_counter_enabled(s, number - n::CYCLE).then(|| counter(cpu, number - n::CYCLE))?
        }
        n::SSTATUS => read_status(s) & (status::SUPERVISOR | status::UXL | status::SD),
        n::SIE => get(s, slots::MIE) & get(s, slots::MIDELEG),
        n::STVEC => get(s, slots::STVEC),
        n::SCOUNTEREN => get(s, slots::SCOUNTEREN),
        n::SENVCFG => get(s, slots::SENVCFG),
        n::SSCRATCH => get(s, slots::SSCRATCH),
        n::SEPC => get(s, slots::SEPC),
        n::SCAUSE => get(s, slots::SCAUSE),
        n::STVAL => get(s, slots::STVAL),
        n::SIP => {
            imsic::receive(cpu);
            interrupts::pending(cpu.slots, cpu.env) & get(cpu.slots, slots::MIDELEG)
        }
        n::STIMECMP => is_stimecmp_accessible(s).then(|| get(s, slots::STIMECMP))?,
        n::SATP => {
            let trapped =
                privilege_of(s) == privilege::SUPERVISOR && get(s, slots::MSTATUS) & status::TVM != 0;
            (!trapped).then(|| get(s, slots::SATP))?
        }
        n::SISELECT | n::SIREG | n::STOPEI | n::STOPI => return read_aia(cpu, number),
        _ => return read_machine(cpu, number),
    })
}

/// Reads a CSR of the advanced interrupt architecture.
fn read_aia(cpu: &mut Cpu<'_>, number: u16) -> Option<u64> {
    if !has_aia(cpu.slots) {
        return None;
    }
    imsic::receive(cpu);
    match number {
        n::SISELECT => Some(get(cpu.slots, slots::SISELECT)),
        n::SIREG => imsic::read_selected(cpu.slots),
        n::STOPEI => Some(imsic::top(cpu.slots)),
        _ => Some(interrupts::top_for_supervisor(cpu.slots, cpu.env)),
    }
}

/// Reads a CSR of machine mode.
fn read_machine(cpu: &mut Cpu<'_>, number: u16) -> Option<u64> {
    let s = &*cpu.slots;
    Some(match number {
        n::MSTATUS => read_status(s),
        n::MISA => get(s, slots::MISA),
        n::MEDELEG => get(s, slots::MEDELEG),
        n::MIDELEG => get(s, slots::MIDELEG),
        n::MIE => get(s, slots::MIE),
        n::MTVEC => get(s, slots::MTVEC),
        n::MCOUNTEREN => get(s, slots::MCOUNTEREN),
        n::MENVCFG => get(s, slots::MENVCFG),
        n::MCOUNTINHIBIT => get(s, slots::MCOUNTINHIBIT),
        n::MSCRATCH => get(s, slots::MSCRATCH),
        n::MEPC => get(s, slots::MEPC),
        n::MCAUSE => get(s, slots::MCAUSE),
        n::MTVAL => get(s, slots::MTVAL),
        n::MIP => {
            imsic::receive(cpu);
            interrupts::pending(cpu.slots, cpu.env)
        }
        n::PMPCFG0 => get(s, slots::PMPCFG0),
        n::PMPCFG2 => get(s, slots::PMPCFG2),
        n::PMPADDR0..=n::PMPADDR15 => pmp::read_address(s, usize::from(number - n::PMPADDR0)),
        n::MCYCLE => counter(cpu, COUNTER_CYCLE),
        n::MINSTRET => read_minstret(cpu),
        n::MHARTID => get(s, slots::MHARTID),
        n::MVENDORID => VENDOR_ID,
        n::MARCHID => ARCH_ID,
        n::MIMPID => IMPL_ID,
        // Counters that never count, no triggers, no configuration structure, no security features.
        n::MHPMEVENT3..=n::MHPMEVENT31 | n::MHPMCOUNTER3..=n::MHPMCOUNTER31 => 0,
        n::TSELECT..=n::TDATA3 | n::MCONFIGPTR | n::MSECCFG => 0,
        // The selected trigger does not exist.
        n::TINFO => 1,
        _ => return None,
    })
}

/// Writes `value` to CSR `number`, of which only the bits of `touched` are meant to change (that matters for
/// bits that others change too). `None` if it is absent. [`read`] has succeeded before.
fn write(cpu: &mut Cpu<'_>, number: u16, value: u64, touched: u64) -> Option<Effect> {
    let s = &mut *cpu.slots;
    match number {
        n::FFLAGS..=n::FCSR => return Some(write_float(cpu, number, value)),
        n::VSTART..=n::VCSR => return write_vector(s, number, value),
        n::SSTATUS => return Some(write_status(s, value, status::SUPERVISOR)),
        n::SIE => {
            let delegated = get(s, slots::MIDELEG);
            set(s, slots::MIE, get(s, slots::MIE) & !delegated | value & delegated);
            return Some(INTERRUPTS);
        }
        n::STVEC => set(s, slots::STVEC, value & !2),
        n::SCOUNTEREN => set(s, slots::SCOUNTEREN, value & COUNTERS),
        n::SENVCFG => return Some(write_envcfg(s, slots::SENVCFG, value, envcfg::SUPERVISOR)),
        n::SSCRATCH => set(s, slots::SSCRATCH, value),
        n::SEPC => set(s, slots::SEPC, value & !1),
        n::SCAUSE => set(s, slots::SCAUSE, value),
        n::STVAL => set(s, slots::STVAL, value),
        n::SIP => {
            let delegated = get(s, slots::MIDELEG);
            write_pending(cpu, value, touched & irq::SSI & delegated);
            return Some(INTERRUPTS);
        }
        n::STIMECMP => {
            set(s, slots::STIMECMP, value);
            timer::rearm(cpu);
            return Some(INTERRUPTS);
        }
        n::SATP => {
            let new = satp::legal(s, value);
            let changed = new != get(s, slots::SATP);
            set(s, slots::SATP, new);
            return Some(if changed { CONTEXT } else { NO_EFFECT });
        }
        n::SISELECT => set(s, slots::SISELECT, value & imsic::SELECT_MASK),
        n::SIREG => {
            imsic::write_selected(s, value)?;
            return Some(INTERRUPTS);
        }
        n::STOPEI => imsic::claim(s),
        _ => return write_machine(cpu, number, value, touched),
    }
    Some(NO_EFFECT)
}

/// Writes a CSR of machine mode.
fn write_machine(cpu: &mut Cpu<'_>, number: u16, value: u64, touched: u64) -> Option<Effect> {
    let s = &mut *cpu.slots;
    match number {
        n::MSTATUS => return Some(write_status(s, value, status::MACHINE)),
        n::MEDELEG => set(s, slots::MEDELEG, value & cause::DELEGABLE),
        n::MIDELEG => {
            set(s, slots::MIDELEG, value & irq::SUPERVISOR);
            return Some(INTERRUPTS);
        }
        n::MIE => {
            set(s, slots::MIE, value & irq::ALL);
            return Some(INTERRUPTS);
        }
        n::MTVEC => set(s, slots::MTVEC, value & !2),
        n::MCOUNTEREN => set(s, slots::MCOUNTEREN, value & COUNTERS),
        n::MENVCFG => {
            let was_enabled = timer::is_enabled(s);
            let effect = write_envcfg(s, slots::MENVCFG, value, envcfg::MACHINE);
            if timer::is_enabled(s) != was_enabled {
                timer::rearm(cpu);
            }
            return Some(Effect { interrupts: true, ..effect });
        }
        n::MCOUNTINHIBIT => write_inhibit(cpu, value & INHIBITABLE),
        n::MSCRATCH => set(s, slots::MSCRATCH, value),
        n::MEPC => set(s, slots::MEPC, value & !1),
        n::MCAUSE => set(s, slots::MCAUSE, value),
        n::MTVAL => set(s, slots::MTVAL, value),
        n::MIP => {
            let timer_bit = if timer::is_enabled(s) { 0 } else { irq::STI };
            write_pending(cpu, value, touched & (irq::SSI | irq::SEI | timer_bit));
            return Some(INTERRUPTS);
        }
        n::PMPCFG0 | n::PMPCFG2 => {
            pmp::write_config(s, if number == n::PMPCFG0 { slots::PMPCFG0 } else { slots::PMPCFG2 }, value);
            cpu.env.flush_tlb(FLUSH_ALL);
            return Some(CONTEXT);
        }
        n::PMPADDR0..=n::PMPADDR15 => {
            pmp::write_address(s, usize::from(number - n::PMPADDR0), value);
            cpu.env.flush_tlb(FLUSH_ALL);
            return Some(CONTEXT);
        }
        n::MCYCLE => write_counter(cpu, COUNTER_CYCLE, value),
        n::MINSTRET => {
            write_counter(cpu, COUNTER_INSTRET, value);
            set(cpu.slots, slots::MINSTRET_WRITTEN, value);
            set(cpu.slots, slots::MINSTRET_READER, cpu.pc.wrapping_add(4));
        }
        n::MISA | n::MSECCFG | n::TSELECT..=n::TINFO => {}
        n::MHPMEVENT3..=n::MHPMEVENT31 | n::MHPMCOUNTER3..=n::MHPMCOUNTER31 => {}
        _ => return None,
    }
    Some(NO_EFFECT)
}

fn read_status(s: &[u64]) -> u64 {
    let mstatus = get(s, slots::MSTATUS);
    let is_dirty = mstatus & status::FS == status::FS || mstatus & status::VS == status::VS;
    mstatus | if is_dirty { status::SD } else { 0 }
}

/// Writes the fields `mask` of `mstatus`.
fn write_status(s: &mut [u64], value: u64, mask: u64) -> Effect {
    const RESERVED_MPP: u64 = 2 << status::MPP_SHIFT;
    let mut mask = mask;
    if value & status::MPP == RESERVED_MPP {
        mask &= !status::MPP;
    }
    if get(s, slots::MISA) & misa_bit(b'V') == 0 {
        mask &= !status::VS;
    }
    let old = get(s, slots::MSTATUS);
    let new = old & !mask | value & mask;
    let changed = old ^ new;
    let interrupts = changed & new & (status::SIE | status::MIE) != 0;
    if changed & !(status::SIE | status::MIE | status::SPIE | status::SPP) == 0 {
        set(s, slots::MSTATUS, new);
        return Effect { context: false, interrupts };
    }
    let mode = mode_of(s);
    set(s, slots::MSTATUS, new);
    Effect { context: changed & status::MXR != 0 || mode_of(s) != mode, interrupts }
}

fn write_envcfg(s: &mut [u64], slot: u16, value: u64, mask: u64) -> Effect {
    let mask = if value & envcfg::CBIE == envcfg::CBIE_RESERVED { mask & !envcfg::CBIE } else { mask };
    let mode = mode_of(s);
    set(s, slot, get(s, slot) & !mask | value & mask);
    Effect { context: mode_of(s) != mode, interrupts: false }
}

/// Writes the bits `mask` of the software's part of `mip`.
fn write_pending(cpu: &mut Cpu<'_>, value: u64, mask: u64) {
    set_bits(cpu.slots, slots::MIP, value & mask);
    clear_bits(cpu.slots, slots::MIP, !value & mask);
    if !value & mask & irq::SSI != 0 {
        cpu.env.set_pin(irq::SSI_PIN, false);
    }
}

fn is_stimecmp_accessible(s: &[u64]) -> bool {
    const TIME: u64 = 2;
    privilege_of(s) == privilege::MACHINE || (timer::is_enabled(s) && get(s, slots::MCOUNTEREN) & TIME != 0)
}

/// True if counter `index` can be read at the current privilege (3.1.11, 10.1.5).
fn is_counter_enabled(s: &[u64], index: u16) -> bool {
    let granted = match privilege_of(s) {
        privilege::MACHINE => u64::MAX,
        privilege::SUPERVISOR => get(s, slots::MCOUNTEREN),
        _ => get(s, slots::MCOUNTEREN) & get(s, slots::SCOUNTEREN),
    };
    granted >> (index & 63) & 1 != 0
}

/// The running count behind counter `index` (0 or 2), and the slot of what the guest added to it. `cycle`
/// runs at 1 GHz.
fn counter_base(cpu: &Cpu<'_>, index: u16) -> (u64, u16) {
    if index == COUNTER_CYCLE {
        (cpu.env.now_ns(), slots::MCYCLE_OFFSET)
    } else {
        (cpu.env.instret(), slots::MINSTRET_OFFSET)
    }
}

fn is_inhibited(s: &[u64], index: u16) -> bool {
    get(s, slots::MCOUNTINHIBIT) >> (index & 63) & 1 != 0
}

/// Value of counter `index`. A stopped counter's value is in its slot.
fn counter(cpu: &Cpu<'_>, index: u16) -> u64 {
    match index {
        0 | 2 => {
            let (base, slot) = counter_base(cpu, index);
            let offset = get(cpu.slots, slot);
            if is_inhibited(cpu.slots, index) { offset } else { base.wrapping_add(offset) }
        }
        1 => timer::time(cpu.env),
        _ => 0,
    }
}

/// `minstret`. The instruction after a write must find what was written (Volume II, 3.1.10, "mcycle and
/// minstret"), however much the engine's count has grown meanwhile; from there on it counts.
fn read_minstret(cpu: &mut Cpu<'_>) -> u64 {
    let is_reader = get(cpu.slots, slots::MINSTRET_READER) == cpu.pc;
    set(cpu.slots, slots::MINSTRET_READER, NOWHERE);
    if is_reader {
        let written = get(cpu.slots, slots::MINSTRET_WRITTEN);
        write_counter(cpu, COUNTER_INSTRET, written);
        return written;
    }
    counter(cpu, COUNTER_INSTRET)
}

fn write_counter(cpu: &mut Cpu<'_>, index: u16, value: u64) {
    let (base, slot) = counter_base(cpu, index);
    let stored = if is_inhibited(cpu.slots, index) { value } else { value.wrapping_sub(base) };
    set(cpu.slots, slot, stored);
}

fn write_inhibit(cpu: &mut Cpu<'_>, value: u64) {
    let values = [0, 2].map(|i| (i, counter(cpu, i)));
    set(cpu.slots, slots::MCOUNTINHIBIT, value);
    for (index, value) in values {
        write_counter(cpu, index, value);
    }
}

fn read_float(cpu: &mut Cpu<'_>, number: u16) -> Option<u64> {
    if !fp_on(cpu.slots) {
        return None;
    }
    let flags = u64::from(cpu.env.fp_flags() & 31);
    let frm = get(cpu.slots, slots::FRM);
    Some(match number {
        n::FFLAGS => flags,
        n::FRM => frm,
        _ => frm << 5 | flags,
    })
}

fn write_float(cpu: &mut Cpu<'_>, number: u16, value: u64) -> Effect {
    let old = get(cpu.slots, slots::FRM);
    let (flags, frm) = match number {
        n::FFLAGS => (Some(value), old),
        n::FRM => (None, value & 7),
        _ => (Some(value), value >> 5 & 7),
    };
    if let Some(flags) = flags {
        cpu.env.set_fp_flags((flags & 31) as u8);
    }
    set(cpu.slots, slots::FRM, frm);
    set_bits(cpu.slots, slots::MSTATUS, status::FS);
    if frm == old { NO_EFFECT } else { CONTEXT }
}

fn read_vector(s: &[u64], number: u16) -> Option<u64> {
    if !vector_on(s) {
        return None;
    }
    Some(match number {
        n::VSTART => Config::of(s).vstart(),
        n::VXSAT => get(s, slots::VXSAT),
        n::VXRM => get(s, slots::VXRM),
        n::VCSR => get(s, slots::VXRM) << 1 | get(s, slots::VXSAT),
        n::VL => Config::of(s).vl(),
        n::VTYPE => Config::of(s).vtype(),
        n::VLENB => VLENB,
        _ => return None,
    })
}

fn write_vector(s: &mut [u64], number: u16, value: u64) -> Option<Effect> {
    match number {
        n::VSTART => Config::of(s).with_vstart(value).put(s),
        n::VXSAT => set(s, slots::VXSAT, value & 1),
        n::VXRM => set(s, slots::VXRM, value & 3),
        n::VCSR => {
            set(s, slots::VXSAT, value & 1);
            set(s, slots::VXRM, value >> 1 & 3);
        }
        _ => return None,
    }
    set_bits(s, slots::MSTATUS, status::VS);
    Some(NO_EFFECT)
}

#[cfg(test)]
mod tests;
