//! Traps: entering them and returning from them.

use plinth_ir::{Cpu, Exception, HelperResult};

use crate::mode::privilege;
use crate::privileged::state::{has_sbi, mpp, privilege_of, status};
use crate::sbi;
use crate::slots::{self, get, set};

/// Exception codes (3.1.15).
pub mod cause {
    /// Instruction address misaligned.
    pub const FETCH_MISALIGNED: u32 = 0;
    /// Instruction access fault.
    pub const FETCH_ACCESS: u32 = 1;
    /// Illegal instruction.
    pub const ILLEGAL: u32 = 2;
    /// Breakpoint.
    pub const BREAKPOINT: u32 = 3;
    /// Load address misaligned.
    pub const LOAD_MISALIGNED: u32 = 4;
    /// Load access fault.
    pub const LOAD_ACCESS: u32 = 5;
    /// Store or AMO address misaligned.
    pub const STORE_MISALIGNED: u32 = 6;
    /// Store or AMO access fault.
    pub const STORE_ACCESS: u32 = 7;
    /// Environment call from user mode; from the privilege that is added.
    pub const ECALL_USER: u32 = 8;
    /// Environment call from supervisor mode.
    pub const ECALL_SUPERVISOR: u32 = 9;
    /// Environment call from machine mode.
    pub const ECALL_MACHINE: u32 = 11;
    /// Instruction page fault.
    pub const FETCH_PAGE: u32 = 12;
    /// Load page fault.
    pub const LOAD_PAGE: u32 = 13;
    /// Store or AMO page fault.
    pub const STORE_PAGE: u32 = 15;
    /// What can be delegated to supervisor mode.
    pub const DELEGABLE: u64 = 0x3ff | 1 << FETCH_PAGE | 1 << LOAD_PAGE | 1 << STORE_PAGE;
}

const INTERRUPT: u64 = 1 << 63;

/// The end of a helper: the instruction is illegal.
#[must_use]
pub fn illegal(insn: u64) -> HelperResult {
    HelperResult::Raise(Exception { code: cause::ILLEGAL, value: insn })
}

/// The end of a helper: goes on after this (4-byte) instruction, through the dispatcher.
pub fn next(cpu: &mut Cpu<'_>) -> HelperResult {
    cpu.pc = cpu.pc.wrapping_add(4);
    HelperResult::Jump
}

/// Takes exception `e` at [`Cpu::pc`], or lets the built-in SBI answer it.
pub fn raise(cpu: &mut Cpu<'_>, e: Exception) {
    let own = privilege_of(cpu.slots);
    let delegated = e.code < 64 && get(cpu.slots, slots::MEDELEG) >> e.code & 1 != 0;
    if has_sbi(cpu.slots) && e.code == cause::ECALL_SUPERVISOR {
        sbi::call(cpu);
        return;
    }
    let to = if own <= privilege::SUPERVISOR && (delegated || has_sbi(cpu.slots)) {
        privilege::SUPERVISOR
    } else {
        privilege::MACHINE
    };
    enter(cpu, u64::from(e.code), e.value, to);
}

/// Takes interrupt `number` to privilege `to`.
pub fn enter_interrupt(cpu: &mut Cpu<'_>, number: u32, to: u32) {
    enter(cpu, INTERRUPT | u64::from(number), 0, to);
}

/// Saves the state for privilege `to` and goes to its handler (3.1.6.1, 3.1.7).
fn enter(cpu: &mut Cpu<'_>, cause: u64, value: u64, to: u32) {
    let s = &mut *cpu.slots;
    let from = privilege_of(s);
    let mut mstatus = get(s, slots::MSTATUS);
    let vector = if to == privilege::MACHINE {
        let enabled = mstatus & status::MIE != 0;
        mstatus &= !(status::MIE | status::MPIE | status::MPP);
        mstatus |= if enabled { status::MPIE } else { 0 } | u64::from(from) << status::MPP_SHIFT;
        set(s, slots::MEPC, cpu.pc);
        set(s, slots::MCAUSE, cause);
        set(s, slots::MTVAL, value);
        get(s, slots::MTVEC)
    } else {
        let enabled = mstatus & status::SIE != 0;
        mstatus &= !(status::SIE | status::SPIE | status::SPP);
        mstatus |= if enabled { status::SPIE } else { 0 };
        mstatus |= if from == privilege::SUPERVISOR { status::SPP } else { 0 };
        set(s, slots::SEPC, cpu.pc);
        set(s, slots::SCAUSE, cause);
        set(s, slots::STVAL, value);
        get(s, slots::STVEC)
    };
    set(s, slots::MSTATUS, mstatus);
    set(s, slots::PRIVILEGE, u64::from(to));
    let base = vector & !3;
    let vectored = vector & 1 != 0 && cause & INTERRUPT != 0;
    cpu.pc = if vectored { base.wrapping_add(4 * (cause & !INTERRUPT)) } else { base };
}

/// The helper `mret` (3.3.2).
pub fn mret(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    let s = &mut *cpu.slots;
    if privilege_of(s) != privilege::MACHINE {
        return illegal(insn);
    }
    let to = mpp(s);
    let mut mstatus = get(s, slots::MSTATUS);
    let enabled = mstatus & status::MPIE != 0;
    mstatus &= !(status::MIE | status::MPP);
    mstatus |= status::MPIE | if enabled { status::MIE } else { 0 };
    if to != privilege::MACHINE {
        mstatus &= !status::MPRV;
    }
    set(s, slots::MSTATUS, mstatus);
    set(s, slots::PRIVILEGE, u64::from(to));
    cpu.pc = get(s, slots::MEPC);
    HelperResult::Jump
}

/// The helper `sret` (3.3.2).
pub fn sret(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    let s = &mut *cpu.slots;
    let mut mstatus = get(s, slots::MSTATUS);
    let own = privilege_of(s);
    if own == privilege::USER || (own == privilege::SUPERVISOR && mstatus & status::TSR != 0) {
        return illegal(insn);
    }
    let to = if mstatus & status::SPP != 0 { privilege::SUPERVISOR } else { privilege::USER };
    let enabled = mstatus & status::SPIE != 0;
    mstatus &= !(status::SIE | status::SPP | status::MPRV);
    mstatus |= status::SPIE | if enabled { status::SIE } else { 0 };
    set(s, slots::MSTATUS, mstatus);
    set(s, slots::PRIVILEGE, u64::from(to));
    cpu.pc = get(s, slots::SEPC);
    HelperResult::Jump
}

#[cfg(test)]
mod tests;
