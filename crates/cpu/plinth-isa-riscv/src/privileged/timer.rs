//! `time` and `stimecmp` (Sstc).
//!
//! While `menvcfg.STCE` is set, the STIP bit of [`slots::MIP`] says that `stimecmp` was seen to have passed.
//! Since `time` never goes back, that holds until `stimecmp` is written, and spares reading the clock.

use plinth_ir::{Cpu, CpuEnv};

use crate::privileged::interrupts::irq;
use crate::privileged::state::{clear_bits, envcfg, set_bits};
use crate::slots::{self, get};

/// Nanoseconds of a tick of `time`.
pub const TICK_NS: u64 = 100;
/// Ticks of `time` in a second: the device tree's `timebase-frequency`.
pub const TIMEBASE_HZ: u32 = 10_000_000;

/// `time`: ticks.
#[must_use]
pub fn time(env: &dyn CpuEnv) -> u64 {
    env.now_ns() / TICK_NS
}

/// True if `stimecmp` drives STIP.
#[must_use]
pub fn is_enabled(s: &[u64]) -> bool {
    get(s, slots::MENVCFG) & envcfg::STCE != 0
}

/// True if `stimecmp` drives STIP and has passed.
#[must_use]
pub fn is_due(s: &[u64], env: &dyn CpuEnv) -> bool {
    let at = get(s, slots::STIMECMP);
    is_enabled(s) && at != u64::MAX && (get(s, slots::MIP) & irq::STI != 0 || time(env) >= at)
}

/// Notes whether `stimecmp` has passed.
pub fn refresh(cpu: &mut Cpu<'_>) {
    if is_due(cpu.slots, cpu.env) {
        set_bits(cpu.slots, slots::MIP, irq::STI);
    }
}

/// Follows a change of `stimecmp` or `menvcfg.STCE`.
pub fn rearm(cpu: &mut Cpu<'_>) {
    clear_bits(cpu.slots, slots::MIP, irq::STI);
    let enabled = is_enabled(cpu.slots);
    let at = if enabled { get(cpu.slots, slots::STIMECMP) } else { u64::MAX };
    cpu.env.set_deadline(at.saturating_mul(TICK_NS));
    refresh(cpu);
}
