//! Instructions that compute element by element, and reductions.

use plinth_ir::softfloat::{Env, NX};
use plinth_ir::{Code, FloatOp, FpCond, Round, Ty, eval_float, flags};

use super::Unit;
use super::float::{convert, default_nan, estimate, on_host};
use super::integer::{Fixed, compare, low, signed};
use super::sem::{Compare, Conversion, FloatForm, Form, Integer, Number, Sign};
use crate::compute::class_of;
use crate::slots::{self, LAYOUT, get, set};
use crate::table::SignOp;

/// `value` of `from` bits extended to `to` bits.
fn extended(value: u64, from: u32, to: u32, sign: Sign) -> u64 {
    match sign {
        Sign::Unsigned => low(value, from),
        Sign::Signed => low(signed(value, from) as u64, to),
    }
}

/// The type of floats with 1 << `eew` bits.
const fn float_type(eew: i32) -> Ty {
    match eew {
        4 => Ty::F16,
        5 => Ty::F32,
        _ => Ty::F64,
    }
}

/// Floating point operations of one instruction, and the flags they raise.
struct Floats {
    round: Round,
    flags: u8,
    /// The host may compute: it rounds as is wanted, and that a result is inexact is known already.
    on_host: bool,
}

impl Floats {
    fn op(&mut self, code: Code, flags: u8, ty: Ty, operands: [u64; 3]) -> u64 {
        if self.on_host
            && let Some(value) = on_host(code, flags, ty, operands)
        {
            return value;
        }
        let sub = self.round as u8;
        self.eval(FloatOp { code, ty, sub, flags, aux: 0 }, operands)
    }

    fn eval(&mut self, op: FloatOp, [a, b, c]: [u64; 3]) -> u64 {
        let (value, flags) = eval_float(op, a, b, c, &LAYOUT.default_nan);
        self.flags |= flags;
        value
    }

    /// `a`, a float of 1 << `eew` bits, as one of twice as many.
    fn widen(&mut self, a: u64, eew: i32) -> u64 {
        let op = FloatOp {
            code: Code::FCvtFF,
            ty: float_type(eew + 1),
            sub: 0,
            flags: 0,
            aux: float_type(eew) as u8,
        };
        self.eval(op, [a, 0, 0])
    }
}

impl Unit<'_, '_> {
    fn fixed(&self) -> Fixed {
        Fixed { round: get(self.cpu.slots, slots::VXRM), saturated: false }
    }

    fn fixed_done(&mut self, fixed: Fixed) {
        if fixed.saturated {
            set(self.cpu.slots, slots::VXSAT, 1);
        }
    }

    fn floats(&mut self) -> Floats {
        let round = self.round().unwrap_or(Round::NearestEven);
        let on_host = round == Round::NearestEven && self.cpu.env.fp_flags() & NX != 0;
        Floats { round, flags: 0, on_host }
    }

    fn floats_done(&mut self, raised: u8) {
        if raised != 0 {
            let all = self.cpu.env.fp_flags() | raised;
            self.cpu.env.set_fp_flags(all);
        }
    }

    /// Operand b of element `i`: cut to SEW.
    fn b(&self, scalar: Option<u64>, i: u64) -> u64 {
        match scalar {
            Some(value) => low(value, self.bits()),
            None => self.get(self.vs1(), i, self.width()),
        }
    }

    pub(super) fn integer(&mut self, op: Integer, form: Form) {
        let (vd, vs2, scalar) = (self.vd(), self.vs2(), self.scalar());
        let (bits, width) = (self.bits(), self.width());
        let mut fixed = self.fixed();
        for i in self.elements() {
            if !self.is_active(i) {
                continue;
            }
            let b = self.b(scalar, i);
            let (wide_bits, wide) = (bits * 2, width + 1);
            match form {
                Form::Same => {
                    let (a, d) = (self.get(vs2, i, width), self.get(vd, i, width));
                    let value = fixed.integer(op, a, b, d, bits);
                    self.set(vd, i, width, value);
                }
                Form::Widen(sign_a, sign_b) => {
                    let a = extended(self.get(vs2, i, width), bits, wide_bits, sign_a);
                    let b = extended(b, bits, wide_bits, sign_b);
                    let d = self.get(vd, i, wide);
                    let value = fixed.integer(op, a, b, d, wide_bits);
                    self.set(vd, i, wide, value);
                }
                Form::WidenRight(sign) => {
                    let a = self.get(vs2, i, wide);
                    let b = extended(b, bits, wide_bits, sign);
                    let value = fixed.integer(op, a, b, 0, wide_bits);
                    self.set(vd, i, wide, value);
                }
                Form::Narrow => {
                    let a = self.get(vs2, i, wide);
                    let value = fixed.integer(op, a, b, 0, wide_bits);
                    self.set(vd, i, width, value);
                }
            }
        }
        self.fixed_done(fixed);
    }

    /// The carry in of element `i`.
    fn carry_in(&self, i: u64) -> u64 {
        u64::from(self.is_masked() && self.bit(0, i))
    }

    pub(super) fn carry(&mut self, subtract: bool) {
        let (vd, vs2, width, scalar) = (self.vd(), self.vs2(), self.width(), self.scalar());
        for i in self.elements() {
            let (a, b, carry) = (self.get(vs2, i, width), self.b(scalar, i), self.carry_in(i));
            let value = if subtract {
                a.wrapping_sub(b).wrapping_sub(carry)
            } else {
                a.wrapping_add(b).wrapping_add(carry)
            };
            self.set(vd, i, width, value);
        }
    }

    pub(super) fn carry_out(&mut self, subtract: bool) {
        let (vd, vs2, width, scalar) = (self.vd(), self.vs2(), self.width(), self.scalar());
        for i in self.elements() {
            let (a, b, carry) = (self.get(vs2, i, width), self.b(scalar, i), self.carry_in(i));
            let (a, b) = (i128::from(a), i128::from(b) + i128::from(carry));
            let out = if subtract { a < b } else { (a + b) >> self.bits() != 0 };
            self.set_bit(vd, i, out);
        }
    }

    pub(super) fn compare(&mut self, op: Compare) {
        let (vd, vs2, width, scalar) = (self.vd(), self.vs2(), self.width(), self.scalar());
        for i in self.elements() {
            if self.is_active(i) {
                let holds = compare(op, self.get(vs2, i, width), self.b(scalar, i), self.bits());
                self.set_bit(vd, i, holds);
            }
        }
    }

    pub(super) fn reduce(&mut self, op: Integer, sign: Option<Sign>) {
        if self.config.vl() == 0 {
            return;
        }
        let (bits, width) = (self.bits(), self.width());
        let (to_bits, to_width) = if sign.is_some() { (bits * 2, width + 1) } else { (bits, width) };
        let mut fixed = self.fixed();
        let mut sum = self.get(self.vs1(), 0, to_width);
        for i in self.elements() {
            if self.is_active(i) {
                let a = self.get(self.vs2(), i, width);
                let a = sign.map_or(a, |sign| extended(a, bits, to_bits, sign));
                sum = low(fixed.integer(op, sum, a, 0, to_bits), to_bits);
            }
        }
        self.set(self.vd(), 0, to_width, sum);
    }

    pub(super) fn extend(&mut self, by: u8, sign: Sign) {
        let (bits, width, by) = (self.bits(), self.width(), u32::from(by));
        for i in self.elements() {
            if self.is_active(i) {
                let a = self.get(self.vs2(), i, width - by);
                self.set(self.vd(), i, width, extended(a, bits >> by, bits, sign));
            }
        }
    }

    pub(super) fn float(&mut self, code: Code, form: FloatForm) {
        let (vd, vs2, scalar) = (self.vd(), self.vs2(), self.scalar());
        let (width, eew) = (self.width(), self.config.sew());
        let mut floats = self.floats();
        for i in self.elements() {
            if !self.is_active(i) {
                continue;
            }
            let b = self.b(scalar, i);
            let is_wide = matches!(form, FloatForm::Widen | FloatForm::WidenRight);
            if !is_wide {
                let a = self.get(vs2, i, width);
                let (a, b) = if form == FloatForm::Reverse { (b, a) } else { (a, b) };
                let value = floats.op(code, 0, float_type(eew), [a, b, 0]);
                self.set(vd, i, width, value);
                continue;
            }
            let a = if form == FloatForm::Widen {
                floats.widen(self.get(vs2, i, width), eew)
            } else {
                self.get(vs2, i, width + 1)
            };
            let b = floats.widen(b, eew);
            let value = floats.op(code, 0, float_type(eew + 1), [a, b, 0]);
            self.set(vd, i, width + 1, value);
        }
        self.floats_done(floats.flags);
    }

    pub(super) fn mul_add(
        &mut self,
        negate_product: bool,
        negate_addend: bool,
        addend_is_vd: bool,
        wide: bool,
    ) {
        let (vd, vs2, scalar) = (self.vd(), self.vs2(), self.scalar());
        let (width, eew) = (self.width(), self.config.sew());
        let (to_width, to) = if wide { (width + 1, eew + 1) } else { (width, eew) };
        let signs = if negate_product { flags::NEG_PRODUCT } else { 0 }
            | if negate_addend { flags::NEG_ADDEND } else { 0 };
        let mut floats = self.floats();
        for i in self.elements() {
            if !self.is_active(i) {
                continue;
            }
            let (mut a, mut b) = (self.get(vs2, i, width), self.b(scalar, i));
            let d = self.get(vd, i, to_width);
            if wide {
                (a, b) = (floats.widen(a, eew), floats.widen(b, eew));
            }
            let operands = if addend_is_vd { [b, a, d] } else { [b, d, a] };
            let value = floats.op(Code::FMulAdd, signs, float_type(to), operands);
            self.set(vd, i, to_width, value);
        }
        self.floats_done(floats.flags);
    }

    pub(super) fn sign_inject(&mut self, op: SignOp) {
        let (vd, vs2, width, scalar) = (self.vd(), self.vs2(), self.width(), self.scalar());
        let sign = 1 << (self.bits() - 1);
        for i in self.elements() {
            if self.is_active(i) {
                let (a, b) = (self.get(vs2, i, width), self.b(scalar, i));
                let from = match op {
                    SignOp::Copy => b,
                    SignOp::Negate => !b,
                    SignOp::Xor => a ^ b,
                };
                self.set(vd, i, width, a & !sign | from & sign);
            }
        }
    }

    pub(super) fn float_compare(&mut self, cond: FpCond, swap: bool, not: bool) {
        let (vd, vs2, width, scalar) = (self.vd(), self.vs2(), self.width(), self.scalar());
        let ty = float_type(self.config.sew());
        let mut floats = self.floats();
        for i in self.elements() {
            if self.is_active(i) {
                let (a, b) = (self.get(vs2, i, width), self.b(scalar, i));
                let (a, b) = if swap { (b, a) } else { (a, b) };
                let op = FloatOp { code: Code::FCmp, ty, sub: cond as u8, flags: 0, aux: 0 };
                let holds = floats.eval(op, [a, b, 0]) != 0;
                self.set_bit(vd, i, holds != not);
            }
        }
        self.floats_done(floats.flags);
    }

    pub(super) fn float_reduce(&mut self, code: Code, wide: bool) {
        if self.config.vl() == 0 {
            return;
        }
        let (width, eew) = (self.width(), self.config.sew());
        let (to_width, to) = if wide { (width + 1, eew + 1) } else { (width, eew) };
        let mut floats = self.floats();
        let mut sum = self.get(self.vs1(), 0, to_width);
        for i in self.elements() {
            if self.is_active(i) {
                let mut a = self.get(self.vs2(), i, width);
                if wide {
                    a = floats.widen(a, eew);
                }
                sum = floats.op(code, 0, float_type(to), [sum, a, 0]);
            }
        }
        self.set(self.vd(), 0, to_width, sum);
        self.floats_done(floats.flags);
    }

    /// vd = f(a), a of `from` and vd of `to` as binary logarithms of bits.
    fn map_float(&mut self, to: i32, from: i32, mut f: impl FnMut(&mut Env, u64) -> u64) {
        let round = self.round().unwrap_or(Round::NearestEven);
        let mut raised = 0;
        for i in self.elements() {
            if self.is_active(i) {
                let mut env = Env::new(round, default_nan(to));
                let a = self.get(self.vs2(), i, from as u32 - 3);
                let value = f(&mut env, a);
                raised |= env.flags;
                self.set(self.vd(), i, to as u32 - 3, value);
            }
        }
        self.floats_done(raised);
    }

    pub(super) fn convert(&mut self, to: Number, from: Number, form: FloatForm, how: Conversion) {
        let sew = self.config.sew();
        let (to_eew, from_eew) = match form {
            FloatForm::Widen => (sew + 1, sew),
            FloatForm::Narrow => (sew, sew + 1),
            _ => (sew, sew),
        };
        self.map_float(to_eew, from_eew, |env, a| convert(env, a, (to, to_eew), (from, from_eew), how));
    }

    pub(super) fn square_root(&mut self) {
        let sew = self.config.sew();
        let ty = float_type(sew);
        let mut floats = self.floats();
        for i in self.elements() {
            if self.is_active(i) {
                let a = self.get(self.vs2(), i, self.width());
                let value = floats.op(Code::FSqrt, 0, ty, [a, 0, 0]);
                self.set(self.vd(), i, self.width(), value);
            }
        }
        self.floats_done(floats.flags);
    }

    pub(super) fn estimate(&mut self, square_root: bool) {
        let sew = self.config.sew();
        self.map_float(sew, sew, |env, a| estimate(env, a, sew, square_root));
    }

    pub(super) fn classify(&mut self) {
        let sew = self.config.sew();
        let (exponent, fraction) = match sew {
            4 => (5, 10),
            5 => (8, 23),
            _ => (11, 52),
        };
        self.map_float(sew, sew, |_, a| class_of(a, exponent, fraction));
    }
}
