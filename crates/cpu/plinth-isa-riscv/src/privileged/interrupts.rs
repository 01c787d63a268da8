//! Interrupts: what is pending, what of it can be taken, and waiting for it.
//!
//! The vCPU's interrupt inputs are numbered as the bits of `mip`. SSIP and SEIP are both inputs and bits
//! that software sets; the guest sees their union. Clearing SSIP clears its input as well: another hart
//! sets that input once and leaves it to the guest.

use plinth_ir::{Cpu, CpuEnv, HelperResult};

use crate::mode::privilege;
use crate::privileged::state::{privilege_of, status};
use crate::privileged::{imsic, timer, trap};
use crate::slots::{self, get};

/// Bits of `mip` and `mie` (3.1.9).
pub mod irq {
    /// Number of the supervisor software interrupt.
    pub const SSI_PIN: u32 = 1;
    /// Supervisor software interrupt.
    pub const SSI: u64 = 1 << SSI_PIN;
    /// Machine software interrupt.
    pub const MSI: u64 = 1 << 3;
    /// Supervisor timer interrupt.
    pub const STI: u64 = 1 << 5;
    /// Machine timer interrupt.
    pub const MTI: u64 = 1 << 7;
    /// Supervisor external interrupt.
    pub const SEI: u64 = 1 << 9;
    /// Machine external interrupt.
    pub const MEI: u64 = 1 << 11;
    /// Those of supervisor mode: what can be delegated.
    pub const SUPERVISOR: u64 = SSI | STI | SEI;
    /// Those there are.
    pub const ALL: u64 = SUPERVISOR | MSI | MTI | MEI;
}

/// Interrupt inputs that count; the timer of supervisor mode has none.
const INPUTS: u64 = irq::ALL & !irq::STI;

/// Interrupts by priority, highest first (3.1.9).
const PRIORITY: [u32; 6] = [11, 3, 7, 9, 1, 5];

/// `mip`, without a look at the clock or at messages: a `stimecmp` that passed unnoticed is not in it.
fn noticed(s: &[u64], env: &dyn CpuEnv) -> u64 {
    get(s, slots::MIP) | (env.pins() & INPUTS) | if imsic::is_pending(s) { irq::SEI } else { 0 }
}

/// `mip`.
#[must_use]
pub fn pending(s: &[u64], env: &dyn CpuEnv) -> u64 {
    let due = if timer::is_due(s, env) { irq::STI } else { 0 };
    noticed(s, env) | due
}

/// Of the interrupts in `pending`, those that would be taken now: first those to machine mode, else those
/// to supervisor mode, with the privilege they go to.
fn takable(s: &[u64], pending: u64) -> Option<(u64, u32)> {
    let ready = pending & get(s, slots::MIE);
    if ready == 0 {
        return None;
    }
    let (own, mstatus) = (privilege_of(s), get(s, slots::MSTATUS));
    let delegated = get(s, slots::MIDELEG);
    let machine = ready & !delegated;
    if machine != 0 && (own < privilege::MACHINE || mstatus & status::MIE != 0) {
        return Some((machine, privilege::MACHINE));
    }
    let supervisor = ready & delegated;
    let enabled = own < privilege::SUPERVISOR || (own == privilege::SUPERVISOR && mstatus & status::SIE != 0);
    (supervisor != 0 && enabled).then_some((supervisor, privilege::SUPERVISOR))
}

/// True if an interrupt would be taken now. A `stimecmp` that passed but was not noticed yet does not count:
/// the engine looks at interrupts when that deadline comes.
#[must_use]
pub fn deliverable(s: &[u64], env: &dyn CpuEnv) -> bool {
    takable(s, noticed(s, env)).is_some()
}

/// Takes the most urgent interrupt, if one can be taken.
pub fn take(cpu: &mut Cpu<'_>) -> bool {
    // Whether or not it can be taken now: from here on it is known to be pending.
    if cpu.env.deadline_passed() {
        timer::refresh(cpu);
    }
    imsic::receive(cpu);
    let Some((ready, to)) = takable(cpu.slots, noticed(cpu.slots, cpu.env)) else { return false };
    let Some(&number) = PRIORITY.iter().find(|&&n| ready >> n & 1 != 0) else { return false };
    trap::enter_interrupt(cpu, number, to);
    true
}

/// `stopi`: the number of the most urgent interrupt that is pending and enabled for supervisor mode, in bits
/// 16 to 27, and its priority, which is always 1 (AIA specification, 5.4.2); 0 if there is none.
#[must_use]
pub fn top_for_supervisor(s: &[u64], env: &dyn CpuEnv) -> u64 {
    let ready = pending(s, env) & get(s, slots::MIE) & get(s, slots::MIDELEG);
    PRIORITY.iter().find(|&&n| ready >> n & 1 != 0).map_or(0, |&n| u64::from(n) << 16 | 1)
}

/// True if a wait for interrupts ends: one is pending and enabled in `mie`, whatever else masks it (3.3.3).
#[must_use]
pub fn wakes(cpu: &mut Cpu<'_>) -> bool {
    imsic::receive(cpu);
    let (s, env) = (&*cpu.slots, &*cpu.env);
    let enabled = get(s, slots::MIE);
    noticed(s, env) & enabled != 0 || (enabled & irq::STI != 0 && timer::is_due(s, env))
}

/// The helper `wfi` (3.3.3).
pub fn wfi(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    let own = privilege_of(cpu.slots);
    let refused = own == privilege::SUPERVISOR && get(cpu.slots, slots::MSTATUS) & status::TW != 0;
    if own == privilege::USER || refused {
        return trap::illegal(insn);
    }
    if !wakes(cpu) {
        cpu.env.wait_for_interrupt();
    }
    trap::next(cpu)
}

/// The helper `wrs`: `wrs.nto` and `wrs.sto` may end for any reason (Zawrs). They give the host's core to
/// others, perhaps to the vCPU that is waited for.
pub fn wrs(_: &mut Cpu<'_>, _: u64, _: u64, _: u64) -> HelperResult {
    std::thread::yield_now();
    HelperResult::Next(0)
}

#[cfg(test)]
mod tests;
