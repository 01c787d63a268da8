//! Integer operations that need particular registers or several instructions: rotates, wide products,
//! division, bit counts and permutations.

use plinth_ir::{Block, Code, Op};

use super::Translator;
use super::cold::{Cold, ColdKind};
use super::state::Opnd;
use crate::asm::{Alu, Cc, P66, RAX, RCX, RDX, Rm, Shift, Size, Vex, mem, vex};

const ALL: u16 = 1 << RAX | 1 << RCX | 1 << RDX;

const VPXOR: Vex = vex(P66, 1, false, 0xef);
const VPCMPEQB: Vex = vex(P66, 1, false, 0x74);

/// xmm `reg` = `rm` (vmovq, vmovd).
pub(super) const fn movq_to_xmm(wide: bool) -> Vex {
    vex(P66, 1, wide, 0x6e)
}

/// `rm` = xmm `reg`.
pub(super) const fn movq_from_xmm(wide: bool) -> Vex {
    vex(P66, 1, wide, 0x7e)
}

impl Translator {
    pub(super) fn rotate(&mut self, op: &Op, block: &Block, wide: bool) {
        let width: u64 = if wide { 64 } else { 32 };
        let left = op.code == Code::Rotl;
        if let Opnd::Imm(c) = self.src(op.b, block) {
            let (a, _) = self.take2(op, block);
            let right = if left { c.wrapping_neg() % width } else { c % width };
            let d = self.dst_reg(op.dst, a.mask());
            match a.rm() {
                Some(rm) => self.asm.rorx(wide, d, rm, right as u8),
                None => {
                    self.load_opnd(d, a, wide);
                    self.asm.rorx(wide, d, Rm::R(d), right as u8);
                }
            }
            return self.commit(op.dst, d);
        }
        self.claim(1 << RCX);
        let (a, b) = self.take2(op, block);
        let d = self.dst_reg_apart(op.dst, 1 << RCX | b.mask(), a.mask());
        self.load_opnd(RCX, b, wide);
        self.load_opnd(d, a, wide);
        self.asm.shift_cl(if left { Shift::Rol } else { Shift::Ror }, wide, d);
        self.commit(op.dst, d);
    }

    pub(super) fn multiply(&mut self, op: &Op, block: &Block, wide: bool) {
        let (a, b) = self.take2(op, block);
        let inputs = a.mask() | b.mask();
        let d = self.dst_reg(op.dst, inputs);
        let (a, b) = if matches!(a, Opnd::Imm(_)) { (b, a) } else { (a, b) };
        let (a, b) = if b.is_reg(d) { (b, a) } else { (a, b) };
        match (b, a.rm()) {
            (Opnd::Imm(c), Some(rm)) if super::int::imm32(c, wide).is_some() => {
                self.asm.imul_imm(wide, d, rm, c as i32);
            }
            _ => {
                let b = match b {
                    Opnd::Imm(_) => Opnd::Reg(self.in_reg(b, inputs | 1 << d, wide)),
                    other => other,
                };
                if !a.is_reg(d) {
                    self.load_opnd(d, a, wide);
                }
                if let Some(rm) = b.rm() {
                    self.asm.imul(wide, d, rm);
                }
            }
        }
        self.commit(op.dst, d);
    }

    pub(super) fn multiply_high(&mut self, op: &Op, block: &Block) {
        self.claim_all();
        let (a, b) = self.take2(op, block);
        let b = match b {
            Opnd::Imm(_) => {
                self.load_opnd(RCX, b, true);
                Opnd::Reg(RCX)
            }
            other => other,
        };
        let Some(rm) = b.rm() else { return };
        let result = match op.code {
            Code::MulHiS => {
                self.load_opnd(RAX, a, true);
                self.asm.imul_wide(rm);
                RDX
            }
            Code::MulHiU => {
                self.load_opnd(RDX, a, true);
                self.asm.mulx_high(RAX, rm);
                RAX
            }
            _ => {
                // Signed times unsigned: unsigned, less b if a is negative.
                self.load_opnd(RDX, a, true);
                self.asm.mulx_high(RAX, rm);
                self.asm.shift_imm(Shift::Sar, true, RDX, 63);
                self.asm.alu(Alu::And, Size::B8, RDX, rm);
                self.asm.alu(Alu::Sub, Size::B8, RAX, Rm::R(RDX));
                RAX
            }
        };
        self.finish_in(op, result);
    }

    /// The result is in scratch register `r`: puts it into `dst`.
    pub(super) fn finish_in(&mut self, op: &Op, r: crate::asm::Reg) {
        if let Some(slot) = op.dst.as_slot() {
            self.before_write(slot, 1 << r);
        }
        self.commit(op.dst, r);
    }

    /// Division. The hardware faults on what the IR defines, so those cases go to a stub; so do operands of
    /// 64-bit operations that fit into 32 bits, which many hosts divide much faster.
    pub(super) fn divide(&mut self, op: &Op, block: &Block, wide: bool) {
        self.claim_all();
        let (a, b) = self.take2(op, block);
        let signed = matches!(op.code, Code::DivS | Code::RemS);
        let quotient = matches!(op.code, Code::DivS | Code::DivU);
        self.load_opnd(RAX, a, wide);
        self.load_opnd(RCX, b, wide);
        // -1 and 0 are special for signed division, 0 for unsigned.
        if signed {
            self.asm.lea(wide, RDX, mem(RCX, 1));
            self.asm.alu_imm(Alu::Cmp, wide, Rm::R(RDX), 1);
        } else {
            self.asm.test(wide, RCX, RCX);
        }
        let special = self.jcc_cold(if signed { Cc::Be } else { Cc::E });
        let narrow = wide.then(|| {
            self.asm.mov_rr(true, RDX, RAX);
            self.asm.alu(Alu::Or, Size::B8, RDX, Rm::R(RCX));
            self.asm.shift_imm(Shift::Shr, true, RDX, 32);
            self.jcc_cold(Cc::E)
        });
        if signed {
            self.asm.cqo(wide);
        } else {
            self.asm.zero(RDX);
        }
        self.asm.div(signed, wide, RCX);
        // Stubs come back with both results in place.
        let resume = self.asm.pos() as u32;
        let kind = ColdKind::Divide { signed, wide };
        self.cold.push(Cold { at: [special, narrow.unwrap_or(0)], resume, ..Cold::new(kind) });
        self.finish_in(op, if quotient { RAX } else { RDX });
    }

    pub(super) fn count(&mut self, op: &Op, block: &Block, wide: bool, opcode: u8) {
        let a = self.take1(op, block);
        let d = self.dst_reg(op.dst, a.mask());
        let rm = match a.rm() {
            Some(rm) => rm,
            None => {
                self.load_opnd(d, a, wide);
                Rm::R(d)
            }
        };
        self.asm.count(opcode, wide, d, rm);
        self.commit(op.dst, d);
    }

    pub(super) fn bswap(&mut self, op: &Op, block: &Block, wide: bool) {
        let a = self.take1(op, block);
        let d = self.dst_reg(op.dst, a.mask());
        self.load_opnd(d, a, wide);
        self.asm.bswap(wide, d);
        self.commit(op.dst, d);
    }

    /// Every byte that is not zero becomes 0xff: compares bytes with zero, twice.
    pub(super) fn or_bytes(&mut self, op: &Op, block: &Block, wide: bool) {
        let a = self.take1(op, block);
        let d = self.dst_reg(op.dst, a.mask());
        let from = self.in_reg(a, 0, wide);
        self.asm.vex(movq_to_xmm(wide), 0, 0, Rm::R(from));
        self.asm.vex(VPXOR, 1, 1, Rm::R(1));
        self.asm.vex(VPCMPEQB, 0, 0, Rm::R(1));
        self.asm.vex(VPCMPEQB, 0, 0, Rm::R(1));
        self.asm.vex(movq_from_xmm(wide), 0, 0, Rm::R(d));
        self.commit(op.dst, d);
    }

    /// Exchanges neighbouring bits, pairs and nibbles of every byte.
    pub(super) fn bit_rev8(&mut self, op: &Op, block: &Block, wide: bool) {
        self.claim(ALL);
        let a = self.take1(op, block);
        self.load_opnd(RAX, a, wide);
        let steps: [(u8, u64); 3] =
            [(1, 0x5555_5555_5555_5555), (2, 0x3333_3333_3333_3333), (4, 0x0f0f_0f0f_0f0f_0f0f)];
        for (by, mask) in steps {
            self.asm.mov_imm(RCX, mask);
            self.asm.mov_rr(true, RDX, RAX);
            self.asm.shift_imm(Shift::Shr, true, RDX, by);
            self.asm.alu(Alu::And, Size::B8, RDX, Rm::R(RCX));
            self.asm.alu(Alu::And, Size::B8, RAX, Rm::R(RCX));
            self.asm.shift_imm(Shift::Shl, true, RAX, by);
            self.asm.alu(Alu::Or, Size::B8, RAX, Rm::R(RDX));
        }
        self.finish_in(op, RAX);
    }
}
