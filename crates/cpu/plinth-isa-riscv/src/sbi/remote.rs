//! Interrupts and fences for other harts: IPI (7) and RFENCE (8).

use plinth_ir::Cpu;
use plinth_vcpu::{TlbFlush, VcpuPower};

use super::{Call, Error, Hart, Result, harts};
use crate::privileged::fence::FLUSH_ALL;
use crate::privileged::interrupts::irq;

const PAGE: u64 = 4096;

/// `sbi_send_ipi`.
pub(super) fn ipi(cpu: &mut Cpu<'_>, call: &Call) -> Result {
    if call.function != 0 {
        return Err(Error::NotSupported);
    }
    for hart in harts(cpu, call.args[0], call.args[1])? {
        match hart {
            Hart::This => cpu.env.set_pin(irq::SSI_PIN, true),
            Hart::Other(vcpu) => {
                // A hart that is started later must not find an old interrupt.
                if vcpu.power() == VcpuPower::On {
                    vcpu.set_irq(irq::SSI_PIN, true);
                }
            }
        }
    }
    Ok(0)
}

/// `sbi_remote_fence_i`, `sbi_remote_sfence_vma`, `sbi_remote_sfence_vma_asid`.
pub(super) fn fence(cpu: &mut Cpu<'_>, call: &Call) -> Result {
    const FENCE_I: u64 = 0;
    const SFENCE_VMA: u64 = 1;
    const SFENCE_VMA_ASID: u64 = 2;
    let [mask, base, start, size, asid] = call.args;
    let flush = match call.function {
        // An empty range: the target passes a point where it looks at nothing old.
        FENCE_I => TlbFlush { range: Some((0, 0)), asid: None },
        SFENCE_VMA => TlbFlush { range: range(start, size), ..FLUSH_ALL },
        SFENCE_VMA_ASID => TlbFlush { range: range(start, size), asid: Some(asid & 0xffff) },
        _ => return Err(Error::NotSupported),
    };
    for hart in harts(cpu, mask, base)? {
        match hart {
            Hart::This if call.function == FENCE_I => cpu.env.flush_code(),
            Hart::This => cpu.env.flush_tlb(flush),
            Hart::Other(vcpu) => {
                // One that is off starts with nothing cached.
                if vcpu.power() == VcpuPower::On {
                    vcpu.flush_tlb(flush);
                }
            }
        }
    }
    Ok(0)
}

/// The pages of a range of addresses; `None` is all (8, "start_addr and size").
fn range(start: u64, size: u64) -> Option<(u64, u64)> {
    if size == u64::MAX || (start == 0 && size == 0) {
        return None;
    }
    let first = start & !(PAGE - 1);
    let len = (start - first).checked_add(size)?.checked_next_multiple_of(PAGE)?;
    // A range that wraps around is all, too.
    first.checked_add(len.saturating_sub(1))?;
    Some((first, len))
}
