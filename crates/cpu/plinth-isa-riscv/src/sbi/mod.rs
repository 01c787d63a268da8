//! The Supervisor Binary Interface, version 2.0, built in: what a kernel finds below it when no firmware runs
//! in machine mode. Numbers of chapters are those of that specification.

mod base;
mod console;
mod hsm;
mod legacy;
mod remote;
mod system;

use std::sync::Arc;

use plinth_ir::Cpu;
use plinth_vcpu::VcpuControl;

use crate::privileged::timer;
use crate::slots::{self, get, set};

/// Why a call failed (3, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
enum Error {
    Failed = -1,
    NotSupported = -2,
    InvalidParam = -3,
    InvalidAddress = -5,
    AlreadyAvailable = -6,
}

/// What a call returns.
type Result = std::result::Result<u64, Error>;

/// How a call ends.
enum Outcome {
    /// With an error code in `a0` and a value in `a1`.
    Return(Result),
    /// With a value in `a0` alone: a legacy call.
    Legacy(u64),
    /// The registers and [`Cpu::pc`] are set.
    Redirected,
}

/// Extensions.
mod eid {
    pub const LEGACY_LAST: u64 = 0x0f;
    pub const BASE: u64 = 0x10;
    pub const TIME: u64 = 0x5449_4d45;
    pub const IPI: u64 = 0x73_5049;
    pub const RFENCE: u64 = 0x5246_4e43;
    pub const HSM: u64 = 0x48_534d;
    pub const SRST: u64 = 0x5352_5354;
    pub const DBCN: u64 = 0x4442_434e;
}

/// A call's registers.
struct Call {
    function: u64,
    args: [u64; 5],
}

/// Answers the environment call at [`Cpu::pc`].
pub fn call(cpu: &mut Cpu<'_>) {
    let register = |r: u8| get(cpu.slots, slots::x(r));
    let extension = register(17);
    let call =
        Call { function: register(16), args: [10, 11, 12, 13, 14].map(|r| get(cpu.slots, slots::x(r))) };
    let outcome = match extension {
        0..=eid::LEGACY_LAST => legacy::call(cpu, extension, &call),
        eid::BASE => Outcome::Return(base::call(&call)),
        eid::TIME => Outcome::Return(set_timer(cpu, &call)),
        eid::IPI => Outcome::Return(remote::ipi(cpu, &call)),
        eid::RFENCE => Outcome::Return(remote::fence(cpu, &call)),
        eid::HSM => hsm::call(cpu, &call),
        eid::SRST => Outcome::Return(system::reset(cpu, &call)),
        eid::DBCN => Outcome::Return(console::call(cpu, &call)),
        _ => Outcome::Return(Err(Error::NotSupported)),
    };
    match outcome {
        Outcome::Return(Ok(value)) => finish(cpu, 0, Some(value)),
        Outcome::Return(Err(error)) => finish(cpu, error as i64 as u64, Some(0)),
        Outcome::Legacy(value) => finish(cpu, value, None),
        Outcome::Redirected => {}
    }
}

/// Sets the results and goes on after the call.
fn finish(cpu: &mut Cpu<'_>, a0: u64, a1: Option<u64>) {
    set(cpu.slots, slots::x(10), a0);
    if let Some(a1) = a1 {
        set(cpu.slots, slots::x(11), a1);
    }
    cpu.pc = cpu.pc.wrapping_add(4);
}

/// True if there is an extension with this number.
fn is_extension(extension: u64) -> bool {
    use eid::{BASE, DBCN, HSM, IPI, RFENCE, SRST, TIME};
    legacy::is_extension(extension) || [BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN].contains(&extension)
}

/// `sbi_set_timer` (6.1).
fn set_timer(cpu: &mut Cpu<'_>, call: &Call) -> Result {
    if call.function != 0 {
        return Err(Error::NotSupported);
    }
    arm_timer(cpu, call.args[0]);
    Ok(0)
}

fn arm_timer(cpu: &mut Cpu<'_>, at: u64) {
    set(cpu.slots, slots::STIMECMP, at);
    timer::rearm(cpu);
}

/// Another hart, or this one.
enum Hart {
    This,
    Other(Arc<dyn VcpuControl>),
}

/// The harts in `mask`, whose bit 0 is hart `base`; a `base` of all ones means all harts (3, "hart mask").
fn harts(cpu: &Cpu<'_>, mask: u64, base: u64) -> std::result::Result<Vec<Hart>, Error> {
    let own = u64::from(cpu.env.index());
    // A list of all vCPUs costs more than a call to itself is worth.
    if base == own && mask == 1 || base == 0 && own < 64 && mask == 1 << own {
        return Ok(vec![Hart::This]);
    }
    let vcpus = cpu.env.platform().vcpus();
    let count = vcpus.len() as u64;
    let is_all = base == u64::MAX;
    let last = base.checked_add(63 - u64::from(mask.leading_zeros().min(63)));
    if !is_all && mask != 0 && last.is_none_or(|l| l >= count) {
        return Err(Error::InvalidParam);
    }
    let is_chosen = |i: u64| is_all || (i >= base && i - base < 64 && mask >> (i - base) & 1 != 0);
    let chosen = vcpus.into_iter().zip(0..).filter(|(_, i)| is_chosen(*i));
    Ok(chosen.map(|(v, i)| if i == own { Hart::This } else { Hart::Other(v) }).collect())
}

#[cfg(test)]
mod tests;
