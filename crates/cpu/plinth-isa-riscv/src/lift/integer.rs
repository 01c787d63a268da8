//! Integer computation.

use plinth_ir::{BlockBuilder, Code, Cond, Op, Ty, Val, eval_int};

use super::emit::{Known, Lifter};
use crate::decode::Decoded;
use crate::table::Sem;

impl Lifter<'_> {
    /// An instruction that only computes an integer register, which is not `x0`.
    pub fn integer(&mut self, d: &Decoded, sem: Sem) {
        match sem {
            Sem::Alu(Code::Add) if d.rs1 == 0 => self.move_register(d.rd, d.rs2),
            Sem::Alu(Code::Add) if d.rs2 == 0 => self.move_register(d.rd, d.rs1),
            Sem::Alu(code) => {
                let (a, b) = (self.x(d.rs1), self.x(d.rs2));
                let dst = self.dst(d.rd);
                self.b.bin(code, Ty::I64, dst, a, b);
            }
            Sem::AluW(code) => {
                let (a, b) = (self.x(d.rs1), self.x(d.rs2));
                let t = self.bin(code, Ty::I32, a, b);
                self.extend_to(d.rd, t);
            }
            Sem::AluImm(code) => self.alu_imm(d, code, Ty::I64),
            Sem::AluImmW(code) => self.alu_imm(d, code, Ty::I32),
            Sem::Unary(code) => self.unary(d, code, Ty::I64),
            Sem::UnaryW(code) => self.unary(d, code, Ty::I32),
            Sem::Set(cond) => {
                let (a, b) = (self.x(d.rs1), self.x(d.rs2));
                let dst = self.dst(d.rd);
                self.set_cond(cond, dst, a, b);
            }
            Sem::SetImm(cond) => {
                let (a, b) = (self.x(d.rs1), self.imm(d));
                let dst = self.dst(d.rd);
                self.set_cond(cond, dst, a, b);
            }
            Sem::ShAdd(n) => {
                let a = self.x(d.rs1);
                self.shift_add(d, a, n);
            }
            Sem::ShAddUw(n) => {
                let a = self.x(d.rs1);
                let a = self.un(Code::Zext32, Ty::I64, a);
                self.shift_add(d, a, n);
            }
            Sem::SlliUw => {
                let (a, n) = (self.x(d.rs1), self.imm(d));
                let a = self.un(Code::Zext32, Ty::I64, a);
                let dst = self.dst(d.rd);
                self.b.bin(Code::Shl, Ty::I64, dst, a, n);
            }
            Sem::Bit(_) | Sem::BitImm(_) | Sem::BitGet | Sem::BitGetImm => self.bit(d, sem),
            Sem::CondZero(cond) => self.cond_zero(d, cond),
            Sem::Compute(helper) => {
                let (a, b) = (self.x(d.rs1), self.x(d.rs2));
                let dst = self.dst(d.rd);
                self.b.helper(helper as u32, dst, &[a, b]);
            }
            Sem::Zero => self.set_known(d.rd, Known::Const(0)),
            // Hints have no destination; everything else is lifted elsewhere.
            _ => {}
        }
    }

    fn move_register(&mut self, rd: u8, rs: u8) {
        if let Some(known) = self.known(rs) {
            self.set_known(rd, known);
        } else {
            let a = self.x(rs);
            let dst = self.dst(rd);
            self.b.un(Code::Mov, Ty::I64, dst, a);
        }
    }

    /// rd = the sign-extended low half of `t`.
    fn extend_to(&mut self, rd: u8, t: Val) {
        let dst = self.dst(rd);
        self.b.un(Code::Sext32, Ty::I64, dst, t);
    }

    fn unary(&mut self, d: &Decoded, code: Code, ty: Ty) {
        let a = self.x(d.rs1);
        let dst = self.dst(d.rd);
        self.b.un(code, ty, dst, a);
    }

    /// rd = code(rs1, immediate), sign-extended if `ty` is i32.
    fn alu_imm(&mut self, d: &Decoded, code: Code, ty: Ty) {
        let imm = i64::from(d.imm) as u64;
        match self.known(d.rs1) {
            Some(Known::Const(a)) => {
                if let Some(value) = eval_int(code, ty, 0, a, imm, 0) {
                    let value = if ty == Ty::I32 { i64::from(value as i32) as u64 } else { value };
                    return self.set_known(d.rd, Known::Const(value));
                }
            }
            Some(Known::PcRel(offset)) if code == Code::Add && ty == Ty::I64 => {
                if let Some(offset) = offset.checked_add(d.imm) {
                    return self.set_known(d.rd, Known::PcRel(offset));
                }
            }
            _ => {}
        }
        let a = self.x(d.rs1);
        let nothing = imm == 0 && code == Code::Add;
        match ty {
            Ty::I32 if nothing => self.extend_to(d.rd, a),
            Ty::I32 => {
                let imm = self.constant(imm);
                let t = self.bin(code, Ty::I32, a, imm);
                self.extend_to(d.rd, t);
            }
            _ if nothing => self.unary(d, Code::Mov, Ty::I64),
            _ => {
                let imm = self.constant(imm);
                let dst = self.dst(d.rd);
                self.b.bin(code, Ty::I64, dst, a, imm);
            }
        }
    }

    /// rd = (a << n) + rs2.
    fn shift_add(&mut self, d: &Decoded, a: Val, n: u8) {
        let b = self.x(d.rs2);
        let dst = self.dst(d.rd);
        if n == 0 {
            self.b.bin(Code::Add, Ty::I64, dst, a, b);
        } else {
            self.b.push(Op { dst, a, b, aux: i32::from(n), ..BlockBuilder::op(Code::ShlAdd, Ty::I64) });
        }
    }

    fn bit(&mut self, d: &Decoded, sem: Sem) {
        let a = self.x(d.rs1);
        let one = self.constant(1);
        match sem {
            Sem::Bit(code) => {
                let n = self.x(d.rs2);
                let mask = self.bin(Code::Shl, Ty::I64, one, n);
                let dst = self.dst(d.rd);
                self.b.bin(code, Ty::I64, dst, a, mask);
            }
            Sem::BitImm(code) => {
                let bit = 1u64 << (d.imm & 63);
                // Clearing is a plain "and" with a constant.
                let (code, mask) = if code == Code::AndNot { (Code::And, !bit) } else { (code, bit) };
                let mask = self.constant(mask);
                let dst = self.dst(d.rd);
                self.b.bin(code, Ty::I64, dst, a, mask);
            }
            _ => {
                let n = if sem == Sem::BitGet { self.x(d.rs2) } else { self.imm(d) };
                let t = self.bin(Code::Shr, Ty::I64, a, n);
                let dst = self.dst(d.rd);
                self.b.bin(Code::And, Ty::I64, dst, t, one);
            }
        }
    }

    /// rd = 0 if cond(rs2, 0), else rs1.
    fn cond_zero(&mut self, d: &Decoded, cond: Cond) {
        let (value, zero, c) = (self.x(d.rs1), self.constant(0), self.x(d.rs2));
        let (a, b) = if cond == Cond::Eq { (value, zero) } else { (zero, value) };
        let dst = self.dst(d.rd);
        self.b.push(Op { dst, a, b, c, ..BlockBuilder::op(Code::Select, Ty::I64) });
    }
}
