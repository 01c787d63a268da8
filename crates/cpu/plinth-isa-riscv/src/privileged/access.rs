//! Memory accesses that the IR has no operation for: compare-and-swap of a pair, and cache blocks.

use plinth_ir::{Access, AccessKind, Cpu, Exception, HelperResult};

use crate::privileged::mmu;
use crate::privileged::state::mode_of;
use crate::privileged::trap::cause;
use crate::slots::{self, get, set};

/// The helper `amocas_q` (Zacas): `amocas.q` on the 16 bytes at `va`. A pair is an even register, for the low
/// half, and the next one; `x0` stands for a pair of zeros.
pub fn amocas_q(cpu: &mut Cpu<'_>, insn: u64, va: u64, _: u64) -> HelperResult {
    let (rd, rs2) = ((insn >> 7 & 31) as u8, (insn >> 20 & 31) as u8);
    let pair = |s: &[u64], r: u8| match r {
        0 => [0, 0],
        r => [get(s, slots::x(r)), get(s, slots::x((r + 1) & 31))],
    };
    let access = Access { va, kind: AccessKind::Write, mmu: mode_of(cpu.slots).data() };
    if !va.is_multiple_of(16) {
        return HelperResult::Raise(mmu::misaligned(access));
    }
    let gpa = match mmu::translate(cpu.slots, cpu.env, access) {
        // Pages are aligned to their size, and `gpa` may be that of the page.
        Ok(t) => t.gpa & !4095 | va & 4095,
        Err(e) => return HelperResult::Raise(e),
    };
    let (old, new) = (pair(cpu.slots, rd), pair(cpu.slots, rs2));
    let Ok(found) = cpu.env.cas_pair_phys(gpa, old, new) else {
        return HelperResult::Raise(mmu::access_fault(access));
    };
    if rd != 0 {
        set(cpu.slots, slots::x(rd), found[0]);
        set(cpu.slots, slots::x((rd + 1) & 31), found[1]);
    }
    HelperResult::Next(0)
}

/// The helper `cache_block` (Zicbom): `cbo.clean`, `cbo.flush` and `cbo.inval` at `va`. Caches are coherent, so
/// only the check of the address is left: a block may be managed where it may be read, and where not, the
/// exception is that of a store.
pub fn cache_block(cpu: &mut Cpu<'_>, va: u64, _: u64, _: u64) -> HelperResult {
    let access = Access { va, kind: AccessKind::Read, mmu: mode_of(cpu.slots).data() };
    match mmu::translate(cpu.slots, cpu.env, access) {
        Ok(_) => HelperResult::Next(0),
        Err(Exception { code, value }) => {
            let code = match code {
                cause::LOAD_PAGE => cause::STORE_PAGE,
                cause::LOAD_ACCESS => cause::STORE_ACCESS,
                other => other,
            };
            HelperResult::Raise(Exception { code, value })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Firmware;
    use crate::harness::{Hart, RAM_BASE};
    use crate::mode::privilege;

    /// In supervisor mode without memory protection set up, all is forbidden.
    #[test]
    fn faults_are_those_of_stores() {
        let mut h = Hart::new(Firmware::Guest);
        let mut run = |machine: bool, at: u64, f: fn(&mut Cpu<'_>, u64) -> HelperResult| {
            let privilege = if machine { privilege::MACHINE } else { privilege::SUPERVISOR };
            h.set(slots::PRIVILEGE, privilege.into());
            f(&mut Cpu { slots: &mut h.slots, pc: 0, insn_len: 4, env: &mut h.env }, at)
        };
        let block = |cpu: &mut Cpu<'_>, at| cache_block(cpu, at, 0, 0);
        let pair = |cpu: &mut Cpu<'_>, at| amocas_q(cpu, 0, at, 0);
        let raise = |code| HelperResult::Raise(Exception { code, value: RAM_BASE });
        assert_eq!(run(true, RAM_BASE, block), HelperResult::Next(0));
        assert_eq!(run(true, RAM_BASE, pair), HelperResult::Next(0));
        assert_eq!(run(false, RAM_BASE, block), raise(cause::STORE_ACCESS));
        assert_eq!(run(false, RAM_BASE, pair), raise(cause::STORE_ACCESS));
        let no_ram = HelperResult::Raise(Exception { code: cause::STORE_ACCESS, value: 0x100 });
        assert_eq!(run(true, 0x100, pair), no_ram);
        let odd = HelperResult::Raise(Exception { code: cause::STORE_MISALIGNED, value: RAM_BASE + 8 });
        assert_eq!(run(true, RAM_BASE + 8, pair), odd);
    }
}
