//! Floating point on one element: what [`plinth_ir::softfloat`] does not have.

use plinth_ir::softfloat::{self, DZ, Env, F16, F32, F64, Float, NV, NX, OF};
use plinth_ir::{Code, Round, Ty, flags};

use super::sem::{Conversion, Number, Sign};
use crate::slots::LAYOUT;

/// The default NaN of floats with 1 << `eew` bits.
#[must_use]
pub fn default_nan(eew: i32) -> u64 {
    LAYOUT.default_nan[match eew {
        4 => 0,
        5 => 1,
        _ => 2,
    }]
}

/// The result of an operation that the host computes to nearest even, where that raises no flag but inexact:
/// it is a number between the smallest and the largest normal ones. `signs`: those of [`Code::FMulAdd`].
#[must_use]
pub fn on_host(code: Code, signs: u8, ty: Ty, operands: [u64; 3]) -> Option<u64> {
    macro_rules! compute {
        ($float:ty, $bits:ty) => {{
            let [a, b, c] = operands.map(|v| <$float>::from_bits(v as $bits));
            let value = match code {
                Code::FAdd => a + b,
                Code::FSub => a - b,
                Code::FMul => a * b,
                Code::FDiv => a / b,
                Code::FSqrt => a.sqrt(),
                Code::FMulAdd => {
                    let a = if signs & flags::NEG_PRODUCT != 0 { -a } else { a };
                    let c = if signs & flags::NEG_ADDEND != 0 { -c } else { c };
                    a.mul_add(b, c)
                }
                _ => return None,
            };
            // A tiny number may have been rounded up to the smallest one.
            let is_plain = value.is_finite() && value.abs() > <$float>::MIN_POSITIVE;
            is_plain.then(|| u64::from(value.to_bits()))
        }};
    }
    match ty {
        Ty::F32 => compute!(f32, u32),
        Ty::F64 => compute!(f64, u64),
        _ => None,
    }
}

/// Converts `a` of 1 << `from` bits to a number of 1 << `to` bits. `env` rounds, and has the default NaN of
/// the result.
pub fn convert(env: &mut Env, a: u64, to: (Number, i32), from: (Number, i32), how: Conversion) -> u64 {
    match how {
        Conversion::Dynamic => {}
        Conversion::ToZero | Conversion::ToOdd => env.round = Round::ToZero,
    }
    let value = match from {
        (Number::Float, 4) => from_float::<F16>(env, a, to),
        (Number::Float, 5) => from_float::<F32>(env, a, to),
        (Number::Float, _) => from_float::<F64>(env, a, to),
        (Number::Integer(sign), eew) => {
            let (bits, signed) = (1 << eew, sign == Sign::Signed);
            match to.1 {
                4 => softfloat::from_int::<F16>(env, a, bits, signed),
                5 => softfloat::from_int::<F32>(env, a, bits, signed),
                _ => softfloat::from_int::<F64>(env, a, bits, signed),
            }
        }
    };
    // The largest number, which an overflow gives, is odd.
    if how == Conversion::ToOdd && env.flags & NX != 0 { value | 1 } else { value }
}

fn from_float<S: Float>(env: &mut Env, a: u64, to: (Number, i32)) -> u64 {
    match to {
        (Number::Integer(sign), eew) => softfloat::to_int::<S>(env, a, 1 << eew, sign == Sign::Signed),
        (Number::Float, 4) => softfloat::convert::<S, F16>(env, a),
        (Number::Float, 5) => softfloat::convert::<S, F32>(env, a),
        (Number::Float, _) => softfloat::convert::<S, F64>(env, a),
    }
}

/// `vfrec7` or `vfrsqrt7` of `a` of 1 << `eew` bits.
pub fn estimate(env: &mut Env, a: u64, eew: i32, square_root: bool) -> u64 {
    match (eew, square_root) {
        (4, false) => reciprocal::<F16>(env, a),
        (5, false) => reciprocal::<F32>(env, a),
        (_, false) => reciprocal::<F64>(env, a),
        (4, true) => reciprocal_root::<F16>(env, a),
        (5, true) => reciprocal_root::<F32>(env, a),
        (_, true) => reciprocal_root::<F64>(env, a),
    }
}

/// Biased exponent and fraction of a finite number other than zero, as if exponents went on below 0.
fn normalized<F: Float>(a: u64) -> (i32, u64) {
    let exponent = (a >> F::FRAC) as i32 & F::EXP_MAX;
    let fraction = a & F::FRAC_MASK;
    if exponent != 0 {
        return (exponent, fraction);
    }
    let zeros = fraction.leading_zeros() - (64 - F::FRAC);
    (-(zeros as i32), fraction << (zeros + 1) & F::FRAC_MASK)
}

/// The seven bits after the point of 2 / x in the middle of the interval of `index`, of 128 in 1..2: the
/// table of `vfrec7` (13.9, 13.10).
const fn reciprocal_bits(index: u64) -> u64 {
    let x = 257 + 2 * index;
    (256 * (255 - 2 * index) + x) / (2 * x)
}

/// The same for 2 / sqrt(x): 64 intervals in 2..4, then as many in 1..2.
const ROOTS: [u8; 128] = [
    52, 51, 50, 48, 47, 46, 44, 43, 42, 41, 40, 39, 38, 36, 35, 34, 33, 32, 31, 30, 30, 29, 28, 27, 26, 25,
    24, 23, 23, 22, 21, 20, 19, 19, 18, 17, 16, 16, 15, 14, 14, 13, 12, 12, 11, 10, 10, 9, 9, 8, 7, 7, 6, 6,
    5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 127, 125, 123, 121, 119, 118, 116, 114, 113, 111, 109, 108, 106, 105, 103,
    102, 100, 99, 97, 96, 95, 93, 92, 91, 90, 88, 87, 86, 85, 84, 83, 82, 80, 79, 78, 77, 76, 75, 74, 73, 72,
    71, 70, 70, 69, 68, 67, 66, 65, 64, 63, 63, 62, 61, 60, 59, 59, 58, 57, 56, 56, 55, 54, 53,
];

fn reciprocal<F: Float>(env: &mut Env, a: u64) -> u64 {
    let a = a & F::MASK;
    let negative = F::is_negative(a);
    let magnitude = a & !F::SIGN;
    if F::is_nan(a) {
        if F::is_signalling(a) {
            env.flags |= NV;
        }
        return env.default_nan;
    }
    if magnitude == F::INF {
        return F::zero(negative);
    }
    if magnitude == 0 {
        env.flags |= DZ;
        return F::inf(negative);
    }
    let (exponent, fraction) = normalized::<F>(a);
    if exponent < -1 {
        // Beyond the largest number.
        env.flags |= NX | OF;
        let to_max = match env.round {
            Round::ToZero => true,
            Round::Down => !negative,
            Round::Up => negative,
            Round::NearestEven | Round::NearestAway => false,
        };
        return F::inf(negative) - u64::from(to_max);
    }
    let out = reciprocal_bits(fraction >> (F::FRAC - 7)) << (F::FRAC - 7);
    let exponent = 2 * F::BIAS - 1 - exponent;
    let bits = match exponent {
        0 => out >> 1 | 1 << (F::FRAC - 1),
        -1 => out >> 2 | 1 << (F::FRAC - 2),
        _ => (exponent as u64) << F::FRAC | out,
    };
    F::zero(negative) | bits
}

fn reciprocal_root<F: Float>(env: &mut Env, a: u64) -> u64 {
    let a = a & F::MASK;
    let negative = F::is_negative(a);
    if F::is_nan(a) {
        if F::is_signalling(a) {
            env.flags |= NV;
        }
        return env.default_nan;
    }
    if a & !F::SIGN == 0 {
        env.flags |= DZ;
        return F::inf(negative);
    }
    if negative {
        env.flags |= NV;
        return env.default_nan;
    }
    if a == F::INF {
        return 0;
    }
    let (exponent, fraction) = normalized::<F>(a);
    let index = (exponent as u64 & 1) << 6 | fraction >> (F::FRAC - 6);
    let out = u64::from(ROOTS[index as usize & 127]) << (F::FRAC - 7);
    let exponent = (3 * F::BIAS - 1 - exponent) / 2;
    (exponent as u64) << F::FRAC | out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_the_nearest_to_the_middles() {
        for index in 0..128u64 {
            let x = 1.0 + (index as f64 + 0.5) / 128.0;
            assert_eq!(reciprocal_bits(index), ((2.0 / x - 1.0) * 128.0).round() as u64, "{index}");
            let x = (1.0 + ((index & 63) as f64 + 0.5) / 64.0) * if index < 64 { 2.0 } else { 1.0 };
            let exact = (2.0 / f64::sqrt(x) - 1.0) * 128.0;
            assert_eq!(u64::from(ROOTS[index as usize]), exact.round() as u64, "{index}");
        }
    }

    #[test]
    fn estimates() {
        let e = |a: f32, root| {
            let mut env = Env::new(Round::NearestEven, default_nan(5));
            (f32::from_bits(estimate(&mut env, u64::from(a.to_bits()), 5, root) as u32), env.flags)
        };
        assert_eq!(e(1.0, false), (0.996_093_75, 0));
        assert_eq!(e(-4.0, false), (-0.249_023_44, 0));
        assert_eq!(e(0.0, false), (f32::INFINITY, DZ));
        assert_eq!(e(f32::INFINITY, false), (0.0, 0));
        assert_eq!(e(1e-45, false), (f32::INFINITY, NX | OF));
        assert_eq!(e(4.0, true).0, 0.498_046_88);
        assert_eq!(e(-1.0, true).1, NV);
        assert!(e(f32::NAN, true).0.is_nan());
    }
}
