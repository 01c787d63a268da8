//! Control flow and the instructions that leave the block.

use plinth_ir::{Code, Ty, Val, flags};

use super::emit::{Known, Lifter};
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::table::Sem;

/// Exception: breakpoint.
const BREAKPOINT: i32 = 3;
/// Exception: environment call from user mode; those of the other privileges follow.
const ENVIRONMENT_CALL: i32 = 8;

/// The registers that hold return addresses by convention (unprivileged specification, table of return
/// address stack hints): ra and t0.
const fn is_link(r: u8) -> bool {
    r == 1 || r == 5
}

/// What a jump through `rs1` with link to `rd` is.
fn jump_hints(rd: u8, rs1: u8) -> u8 {
    let call = if is_link(rd) { flags::CALL } else { 0 };
    let ret = if is_link(rs1) && rs1 != rd { flags::RET } else { 0 };
    call | ret
}

impl Lifter<'_> {
    /// An instruction that sets a register from the pc or changes the flow of control.
    pub fn control(&mut self, d: &Decoded, sem: Sem) -> bool {
        match sem {
            Sem::Lui => {
                self.set_known(d.rd, Known::Const(i64::from(d.imm) as u64));
                true
            }
            Sem::Auipc => {
                // Cannot overflow: the immediate's low 12 bits are zero.
                self.set_known(d.rd, Known::PcRel(self.pc.wrapping_add(d.imm)));
                true
            }
            Sem::Branch(cond) => {
                let (a, b) = (self.x(d.rs1), self.x(d.rs2));
                let label = self.b.label(self.pc + d.imm);
                self.b.br(cond, Ty::I64, a, b, label);
                true
            }
            Sem::Jal => {
                self.link(d.rd);
                self.goto(self.pc + d.imm);
                false
            }
            Sem::Jalr => {
                self.jump_to_register(d);
                false
            }
            Sem::Ecall => {
                self.b.trap(ENVIRONMENT_CALL + self.mode.privilege as i32, Val::NONE);
                false
            }
            Sem::Ebreak => {
                let pc = self.b.temp();
                self.b.pc_rel(pc, self.pc);
                self.b.trap(BREAKPOINT, pc);
                false
            }
            Sem::System(id) => {
                self.system_helper(id, d);
                true
            }
            Sem::SystemEnd(id) => {
                self.system_helper(id, d);
                self.b.exit(self.next);
                false
            }
            Sem::TlbFence => {
                let (va, asid) = (self.x(d.rs1), self.x(d.rs2));
                let bits = self.constant(u64::from(d.bits));
                self.b.helper(HelperId::SfenceVma as u32, Val::NONE, &[bits, va, asid]);
                self.b.exit(self.next);
                false
            }
            // FenceI: all others are lifted elsewhere.
            _ => {
                self.b.helper(HelperId::FenceI as u32, Val::NONE, &[]);
                self.b.exit(self.next);
                false
            }
        }
    }

    /// rd = address of the next instruction.
    fn link(&mut self, rd: u8) {
        self.set_known(rd, Known::PcRel(self.next));
    }

    fn jump_to_register(&mut self, d: &Decoded) {
        if let Some(Known::PcRel(base)) = self.known(d.rs1)
            && let Some(target) = base.checked_add(d.imm)
        {
            self.link(d.rd);
            return self.goto(target & !1);
        }
        let base = self.x(d.rs1);
        let mut target = base;
        if d.imm != 0 {
            let imm = self.imm(d);
            target = self.bin(Code::Add, Ty::I64, base, imm);
        }
        let even = self.constant(!1);
        let target = self.bin(Code::And, Ty::I64, target, even);
        self.link(d.rd);
        self.b.jmp_ind(target, jump_hints(d.rd, d.rs1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_follow_the_table() {
        assert_eq!(jump_hints(0, 10), 0);
        assert_eq!(jump_hints(0, 1), flags::RET);
        assert_eq!(jump_hints(1, 10), flags::CALL);
        assert_eq!(jump_hints(1, 1), flags::CALL);
        assert_eq!(jump_hints(1, 5), flags::CALL | flags::RET);
    }
}
