//! Fences of address translation and of fetches, and the checks of floating point and vector state.

use plinth_ir::{Cpu, HelperResult};
use plinth_vcpu::TlbFlush;

use crate::mode::privilege;
use crate::privileged::state::{fp_on, privilege_of, status};
use crate::privileged::trap::{illegal, next};
use crate::slots::{self, get};

/// Everything.
pub const FLUSH_ALL: TlbFlush = TlbFlush { range: None, asid: None };

const PAGE: u64 = 4096;

/// The helper `sfence_vma` (10.2.1, 14): `va` and `asid` count if `insn`'s register fields are not `x0`.
pub fn sfence_vma(cpu: &mut Cpu<'_>, insn: u64, va: u64, asid: u64) -> HelperResult {
    let own = privilege_of(cpu.slots);
    let refused = own == privilege::SUPERVISOR && get(cpu.slots, slots::MSTATUS) & status::TVM != 0;
    if own == privilege::USER || refused {
        return illegal(insn);
    }
    let one_page = insn >> 15 & 31 != 0;
    let one_space = insn >> 20 & 31 != 0;
    cpu.env.flush_tlb(TlbFlush {
        range: one_page.then_some((va & !(PAGE - 1), PAGE)),
        asid: one_space.then_some(asid & 0xffff),
    });
    next(cpu)
}

/// The helper `sfence_order`: `sfence.w.inval` and `sfence.inval.ir` order nothing, since `sinval.vma` is done
/// at once (Svinval).
pub fn sfence_order(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    if privilege_of(cpu.slots) == privilege::USER { illegal(insn) } else { HelperResult::Next(0) }
}

/// The helper `fence_i`.
pub fn fence_i(cpu: &mut Cpu<'_>, _: u64, _: u64, _: u64) -> HelperResult {
    cpu.env.flush_code();
    next(cpu)
}

/// The helper `fp_check`.
pub fn fp_check(cpu: &mut Cpu<'_>, insn: u64, _: u64, _: u64) -> HelperResult {
    if fp_on(cpu.slots) { HelperResult::Next(0) } else { illegal(insn) }
}
