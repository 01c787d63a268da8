//! Floating point.

use plinth_ir::{BlockBuilder, Code, Op, Ty, Val, flags};

use super::emit::Lifter;
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::slots;
use crate::table::{Sem, SignOp};

/// The constants of `fli.d` by number, but for the first, third-last (see [`constant`]) and last ones, which
/// depend on the format.
const CONSTANTS: [f64; 32] = [
    -1.0,
    f64::MIN_POSITIVE,
    1.0 / 65536.0,
    1.0 / 32768.0,
    1.0 / 256.0,
    1.0 / 128.0,
    0.0625,
    0.125,
    0.25,
    0.3125,
    0.375,
    0.4375,
    0.5,
    0.625,
    0.75,
    0.875,
    1.0,
    1.25,
    1.5,
    1.75,
    2.0,
    2.5,
    3.0,
    4.0,
    8.0,
    16.0,
    128.0,
    256.0,
    32768.0,
    65536.0,
    f64::INFINITY,
    f64::NAN,
];

/// Bits of constant `n` of `fli` for format `ty` (Zfa, table of immediates).
pub(crate) fn constant(ty: Ty, n: u8) -> u64 {
    let n = n & 31;
    let value = CONSTANTS[usize::from(n)];
    match (ty, n) {
        (Ty::F64, 31) => 0x7ff8_0000_0000_0000,
        (Ty::F64, _) => value.to_bits(),
        (Ty::F32, 1) => u64::from(f32::MIN_POSITIVE.to_bits()),
        (Ty::F32, 31) => 0x7fc0_0000,
        (Ty::F32, _) => u64::from((value as f32).to_bits()),
        (_, 1) => 0x0400,
        (_, 2) => 0x0100,
        (_, 3) => 0x0200,
        // 2^16 is beyond the format.
        (_, 29 | 30) => 0x7c00,
        (_, 31) => 0x7e00,
        _ => {
            let bits = value.to_bits();
            let exponent = (bits >> 52 & 0x7ff) + 15 - 1023;
            bits >> 63 << 15 | exponent << 10 | bits >> 42 & 0x3ff
        }
    }
}

/// The integer type with the width of float type `ty`.
const fn integer_of(ty: Ty) -> Ty {
    match ty {
        Ty::F16 => Ty::I16,
        Ty::F32 => Ty::I32,
        _ => Ty::I64,
    }
}

impl Lifter<'_> {
    /// A floating point instruction.
    pub fn float(&mut self, d: &Decoded, sem: Sem) -> bool {
        let writes = !matches!(sem, Sem::FStore(_) | Sem::FMoveToInt(_) | Sem::FClass(_));
        let rounds = matches!(
            sem,
            Sem::FArith(..)
                | Sem::FSqrt(_)
                | Sem::FMulAdd(..)
                | Sem::FToF(..)
                | Sem::FToInt(..)
                | Sem::IntToF(..)
                | Sem::FRound(..)
        );
        let Some(round) = (if rounds { self.round(d).map(|r| r as u8) } else { Some(0) }) else {
            return self.illegal(d);
        };
        if !self.use_float(d, writes) {
            return false;
        }
        match sem {
            Sem::FLoad(ty) => self.float_load(d, ty),
            Sem::FStore(ty) => {
                let base = self.x(d.rs1);
                self.b.store(integer_of(ty), 0, base, d.imm, Val::slot(slots::f(d.rs2)));
            }
            Sem::FArith(code, ty) | Sem::FExact(code, ty) => {
                let (a, b) = (self.f(d.rs1, ty), self.f(d.rs2, ty));
                self.float_result(d, Op { sub: round, a, b, ..BlockBuilder::op(code, ty) });
            }
            Sem::FSqrt(ty) => {
                let a = self.f(d.rs1, ty);
                self.float_result(d, Op { sub: round, a, ..BlockBuilder::op(Code::FSqrt, ty) });
            }
            Sem::FMulAdd(signs, ty) => {
                let (a, b, c) = (self.f(d.rs1, ty), self.f(d.rs2, ty), self.f(d.rs3(), ty));
                let op = BlockBuilder::op(Code::FMulAdd, ty);
                self.float_result(d, Op { sub: round, flags: signs, a, b, c, ..op });
            }
            Sem::FSign(op, ty) => self.float_sign(d, op, ty),
            Sem::FCompare(cond, ty) => {
                let (a, b) = (self.f(d.rs1, ty), self.f(d.rs2, ty));
                let dst = self.dst(d.rd);
                self.b.push(Op { sub: cond as u8, dst, a, b, ..BlockBuilder::op(Code::FCmp, ty) });
            }
            Sem::FToF(to, from) => {
                let a = self.f(d.rs1, from);
                let op = BlockBuilder::op(Code::FCvtFF, to);
                self.float_result(d, Op { sub: round, a, aux: from as i32, ..op });
            }
            Sem::FRound(ty, exact) => {
                let a = self.f(d.rs1, ty);
                let flags = if exact { flags::EXACT } else { 0 };
                self.float_result(d, Op { sub: round, flags, a, ..BlockBuilder::op(Code::FRound, ty) });
            }
            Sem::FConst(ty) => {
                let value = self.constant(constant(ty, d.imm as u8));
                self.set_f(d.rd, ty, value);
            }
            _ => self.float_and_integer(d, sem, round),
        }
        true
    }

    /// Conversions and moves between floating point and integer registers.
    fn float_and_integer(&mut self, d: &Decoded, sem: Sem, round: u8) {
        let signed_flag = |signed| if signed { flags::SIGNED } else { 0 };
        match sem {
            Sem::FToInt(to, signed, from) => {
                let a = self.f(d.rs1, from);
                let dst = if to == Ty::I32 { self.b.temp() } else { self.dst(d.rd) };
                let op = BlockBuilder::op(Code::FCvtFI, to);
                self.b.push(Op { sub: round, flags: signed_flag(signed), dst, a, aux: from as i32, ..op });
                if to == Ty::I32 {
                    let rd = self.dst(d.rd);
                    self.b.un(Code::Sext32, Ty::I64, rd, dst);
                }
            }
            Sem::IntToF(to, from, signed) => {
                let a = self.x(d.rs1);
                let op = BlockBuilder::op(Code::FCvtIF, to);
                let op = Op { sub: round, flags: signed_flag(signed), a, aux: from as i32, ..op };
                self.float_result(d, op);
            }
            Sem::FClass(ty) => {
                let a = self.f(d.rs1, ty);
                let (exponent, fraction) = match ty {
                    Ty::F16 => (5, 10),
                    Ty::F32 => (8, 23),
                    _ => (11, 52),
                };
                let (exponent, fraction) = (self.constant(exponent), self.constant(fraction));
                let dst = self.dst(d.rd);
                self.b.helper(HelperId::Fclass as u32, dst, &[a, exponent, fraction]);
            }
            Sem::FMoveToInt(ty) => {
                let code = match ty {
                    Ty::F16 => Code::Sext16,
                    Ty::F32 => Code::Sext32,
                    _ => Code::Mov,
                };
                let dst = self.dst(d.rd);
                self.b.un(code, Ty::I64, dst, Val::slot(slots::f(d.rs1)));
            }
            Sem::FMoveFromInt(ty) => {
                let a = self.x(d.rs1);
                self.set_f(d.rd, ty, a);
            }
            // FModular: all others are lifted elsewhere.
            _ => {
                let a = self.f(d.rs1, Ty::F64);
                let dst = self.dst(d.rd);
                self.b.helper(HelperId::Fcvtmod as u32, dst, &[a]);
            }
        }
    }

    /// Register `r` as a float of type `ty`.
    pub(super) fn f(&mut self, r: u8, ty: Ty) -> Val {
        let slot = Val::slot(slots::f(r));
        if ty == Ty::F64 { slot } else { self.un(Code::NanUnbox, ty, slot) }
    }

    /// Register `r` = float `value` of type `ty`, whose bits above the width do not matter.
    fn set_f(&mut self, r: u8, ty: Ty, value: Val) {
        let (code, ty) = if ty == Ty::F64 { (Code::Mov, Ty::I64) } else { (Code::NanBox, ty) };
        self.b.un(code, ty, Val::slot(slots::f(r)), value);
    }

    /// rd = the result of `op`.
    fn float_result(&mut self, d: &Decoded, mut op: Op) {
        if op.ty == Ty::F64 {
            op.dst = Val::slot(slots::f(d.rd));
            self.b.push(op);
        } else {
            op.dst = self.b.temp();
            self.b.push(op);
            self.set_f(d.rd, op.ty, op.dst);
        }
    }

    fn float_load(&mut self, d: &Decoded, ty: Ty) {
        let base = self.x(d.rs1);
        if ty == Ty::F64 {
            self.b.load(Ty::I64, 0, Val::slot(slots::f(d.rd)), base, d.imm);
        } else {
            let t = self.b.temp();
            self.b.load(integer_of(ty), 0, t, base, d.imm);
            self.set_f(d.rd, ty, t);
        }
    }

    fn float_sign(&mut self, d: &Decoded, op: SignOp, ty: Ty) {
        let sign = 1u64 << (ty.bits() - 1);
        let a = self.f(d.rs1, ty);
        let same = d.rs1 == d.rs2;
        let (code, mask) = match (op, same) {
            (SignOp::Copy, true) => return self.set_f(d.rd, ty, a),
            (SignOp::Negate, true) => (Code::Xor, sign),
            (SignOp::Xor, true) => (Code::And, sign - 1),
            (_, false) => {
                let b = self.f(d.rs2, ty);
                let mask = self.constant(sign);
                let mut s = self.bin(Code::And, Ty::I64, b, mask);
                if op == SignOp::Negate {
                    s = self.bin(Code::Xor, Ty::I64, s, mask);
                }
                let value = if op == SignOp::Xor {
                    self.bin(Code::Xor, Ty::I64, a, s)
                } else {
                    let rest = self.constant(sign - 1);
                    let magnitude = self.bin(Code::And, Ty::I64, a, rest);
                    self.bin(Code::Or, Ty::I64, magnitude, s)
                };
                return self.set_f(d.rd, ty, value);
            }
        };
        let mask = self.constant(mask);
        if ty == Ty::F64 {
            self.b.bin(code, Ty::I64, Val::slot(slots::f(d.rd)), a, mask);
        } else {
            let value = self.bin(code, Ty::I64, a, mask);
            self.set_f(d.rd, ty, value);
        }
    }
}
