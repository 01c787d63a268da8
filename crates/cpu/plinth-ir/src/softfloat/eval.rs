//! Evaluation of the IR's floating point operations.

use super::{Env, F16, F32, F64, Float, arith, convert};
use crate::op::{Code, FpCond, Op, Round, Ty, flags};

/// What of an [`Op`] a floating point operation needs. Meaning of the fields: [`Code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatOp {
    /// Opcode.
    pub code: Code,
    /// Type of the result (of the operands, for a comparison).
    pub ty: Ty,
    /// A [`Round`] or an [`FpCond`].
    pub sub: u8,
    /// Bits of [`flags`].
    pub flags: u8,
    /// The other type of a conversion.
    pub aux: u8,
}

impl From<&Op> for FloatOp {
    fn from(op: &Op) -> Self {
        Self { code: op.code, ty: op.ty, sub: op.sub, flags: op.flags, aux: op.aux as u8 }
    }
}

impl FloatOp {
    /// As a number of 40 bits: code, type, sub, flags, aux from the lowest byte up.
    #[must_use]
    pub const fn pack(self) -> u64 {
        u64::from_le_bytes([self.code as u8, self.ty as u8, self.sub, self.flags, self.aux, 0, 0, 0])
    }

    /// From what [`FloatOp::pack`] gave; higher bits are ignored. `None` if it is not an operation.
    #[must_use]
    pub fn unpack(packed: u64) -> Option<Self> {
        let [code, ty, sub, flags, aux, ..] = packed.to_le_bytes();
        Some(Self { code: Code::from_u8(code)?, ty: Ty::from_u8(ty)?, sub, flags, aux })
    }
}

/// Index of a float type's default NaN in [`crate::Layout::default_nan`].
const fn nan_index(ty: Ty) -> usize {
    match ty {
        Ty::F16 => 0,
        Ty::F32 => 1,
        _ => 2,
    }
}

/// Value and raised flags of a floating point operation; flags are numbered as for [`Code::FpFlagsGet`].
/// `default_nan` is the layout's. An operation that the verifier does not accept gives the default NaN.
#[must_use]
pub fn eval_float(op: FloatOp, a: u64, b: u64, c: u64, default_nan: &[u64; 3]) -> (u64, u8) {
    let round = Round::from_u8(op.sub).unwrap_or(Round::NearestEven);
    let mut env = Env::new(round, default_nan[nan_index(op.ty)]);
    let other = Ty::from_u8(op.aux).unwrap_or(Ty::I8);
    let value = match op.code {
        Code::FCvtFI => match other {
            Ty::F16 => to_int::<F16>(&mut env, op, a),
            Ty::F32 => to_int::<F32>(&mut env, op, a),
            _ => to_int::<F64>(&mut env, op, a),
        },
        Code::FCvtFF => match op.ty {
            Ty::F16 => convert_to::<F16>(&mut env, other, a),
            Ty::F32 => convert_to::<F32>(&mut env, other, a),
            _ => convert_to::<F64>(&mut env, other, a),
        },
        _ => match op.ty {
            Ty::F16 => eval::<F16>(&mut env, op, a, b, c),
            Ty::F32 => eval::<F32>(&mut env, op, a, b, c),
            _ => eval::<F64>(&mut env, op, a, b, c),
        },
    };
    (value, env.flags)
}

fn to_int<F: Float>(env: &mut Env, op: FloatOp, a: u64) -> u64 {
    let bits = if op.ty == Ty::I32 { 32 } else { 64 };
    convert::to_int::<F>(env, a, bits, op.flags & flags::SIGNED != 0)
}

fn convert_to<D: Float>(env: &mut Env, from: Ty, a: u64) -> u64 {
    match from {
        Ty::F16 => convert::convert::<F16, D>(env, a),
        Ty::F32 => convert::convert::<F32, D>(env, a),
        _ => convert::convert::<F64, D>(env, a),
    }
}

fn eval<F: Float>(env: &mut Env, op: FloatOp, a: u64, b: u64, c: u64) -> u64 {
    let sign_if = |flag: u8| if op.flags & flag != 0 { F::SIGN } else { 0 };
    match op.code {
        Code::FAdd => arith::add::<F>(env, a, b),
        Code::FSub => arith::sub::<F>(env, a, b),
        Code::FMul => arith::mul::<F>(env, a, b),
        Code::FDiv => arith::div::<F>(env, a, b),
        Code::FSqrt => arith::sqrt::<F>(env, a),
        Code::FMulAdd => {
            let (product, addend) = (sign_if(flags::NEG_PRODUCT), sign_if(flags::NEG_ADDEND));
            arith::fused_multiply_add::<F>(env, a ^ product, b, c ^ addend)
        }
        Code::FMin => convert::min::<F>(env, a, b),
        Code::FMax => convert::max::<F>(env, a, b),
        Code::FMinNan => convert::min_nan::<F>(env, a, b),
        Code::FMaxNan => convert::max_nan::<F>(env, a, b),
        Code::FCmp => {
            let cond = FpCond::from_u8(op.sub).unwrap_or(FpCond::Eq);
            u64::from(convert::compare::<F>(env, cond, a, b))
        }
        Code::FCvtIF => {
            let bits = if op.aux == Ty::I32 as u8 { 32 } else { 64 };
            convert::from_int::<F>(env, a, bits, op.flags & flags::SIGNED != 0)
        }
        Code::FRound => arith::round_to_integral::<F>(env, a, op.flags & flags::EXACT != 0),
        Code::NanBox => a | !F::MASK,
        Code::NanUnbox if a & !F::MASK == !F::MASK => a & F::MASK,
        _ => env.default_nan,
    }
}
