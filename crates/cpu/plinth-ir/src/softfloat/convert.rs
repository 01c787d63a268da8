//! Conversions, comparisons, minimum and maximum.

use std::cmp::Ordering;

use super::arith::round_magnitude;
use super::format::{Finite, Float, Unpacked, round_pack, unpack};
use super::{Env, NV, NX};
use crate::op::FpCond;

/// Converts from format `S` to format `D`.
#[must_use]
pub fn convert<S: Float, D: Float>(env: &mut Env, a: u64) -> u64 {
    match unpack::<S>(a) {
        Unpacked::Nan { signalling } => {
            if signalling {
                env.flags |= NV;
            }
            env.default_nan
        }
        Unpacked::Zero { negative } => D::zero(negative),
        Unpacked::Inf { negative } => D::inf(negative),
        Unpacked::Finite(x) => round_pack::<D>(env, x),
    }
}

/// Converts to an integer of `bits` (32 or 64) bits, zero-extended. Saturates and raises invalid out of
/// range; a NaN gives the maximum.
#[must_use]
pub fn to_int<F: Float>(env: &mut Env, a: u64, bits: u32, signed: bool) -> u64 {
    let mask = u64::MAX >> (64 - bits);
    let max = if signed { mask >> 1 } else { mask };
    // Magnitude of the minimum.
    let min = if signed { max + 1 } else { 0 };
    let x = match unpack::<F>(a) {
        Unpacked::Zero { .. } => return 0,
        Unpacked::Finite(x) => x,
        Unpacked::Inf { negative: true } => {
            env.flags |= NV;
            return min;
        }
        Unpacked::Inf { negative: false } | Unpacked::Nan { .. } => {
            env.flags |= NV;
            return max;
        }
    };
    let limit = if x.negative { min } else { max };
    let (magnitude, inexact) = if x.exp > 63 { (u64::MAX, false) } else { round_magnitude(env.round, x) };
    if x.exp > 63 || magnitude > limit {
        env.flags |= NV;
        return limit;
    }
    if inexact {
        env.flags |= NX;
    }
    if x.negative { magnitude.wrapping_neg() & mask } else { magnitude }
}

/// Converts from an integer of `bits` (32 or 64) bits; higher bits of `a` are ignored.
#[must_use]
pub fn from_int<F: Float>(env: &mut Env, a: u64, bits: u32, signed: bool) -> u64 {
    let up = 64 - bits;
    let value = if signed { (((a << up) as i64) >> up) as u64 } else { (a << up) >> up };
    let negative = signed && (value as i64) < 0;
    let magnitude = if negative { value.wrapping_neg() } else { value };
    if magnitude == 0 {
        return 0;
    }
    let shift = magnitude.leading_zeros();
    round_pack::<F>(env, Finite { negative, exp: 63 - shift as i32, sig: magnitude << shift })
}

/// Order of numbers that are not NaN; zeros are equal.
fn order<F: Float>(a: u64, b: u64) -> Ordering {
    let key = |v: u64| {
        let magnitude = (v & (F::SIGN - 1)) as i64;
        if F::is_negative(v) { -magnitude } else { magnitude }
    };
    key(a).cmp(&key(b))
}

/// `cond(a, b)`.
#[must_use]
pub fn compare<F: Float>(env: &mut Env, cond: FpCond, a: u64, b: u64) -> bool {
    if F::is_nan(a) || F::is_nan(b) {
        let signals = matches!(cond, FpCond::Lt | FpCond::Le);
        if signals || F::is_signalling(a) || F::is_signalling(b) {
            env.flags |= NV;
        }
        return false;
    }
    let order = order::<F>(a, b);
    match cond {
        FpCond::Eq => order.is_eq(),
        FpCond::Lt | FpCond::LtQuiet => order.is_lt(),
        FpCond::Le | FpCond::LeQuiet => order.is_le(),
    }
}

/// The operand that is `want` compared with the other one. If one is a NaN: a NaN if `nan_wins`, else the other.
fn pick<F: Float>(env: &mut Env, a: u64, b: u64, want: Ordering, nan_wins: bool) -> u64 {
    let (a, b) = (a & F::MASK, b & F::MASK);
    if F::is_signalling(a) || F::is_signalling(b) {
        env.flags |= NV;
    }
    match (F::is_nan(a), F::is_nan(b)) {
        (true, true) => return env.default_nan,
        (true, false) => return if nan_wins { env.default_nan } else { b },
        (false, true) => return if nan_wins { env.default_nan } else { a },
        (false, false) => {}
    }
    // Zeros differ here: the negative one is less.
    let order = order::<F>(a, b).then_with(|| F::is_negative(b).cmp(&F::is_negative(a)));
    if order == want { a } else { b }
}

/// IEEE 754-2019 `minimumNumber`.
#[must_use]
pub fn min<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    pick::<F>(env, a, b, Ordering::Less, false)
}

/// IEEE 754-2019 `maximumNumber`.
#[must_use]
pub fn max<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    pick::<F>(env, a, b, Ordering::Greater, false)
}

/// IEEE 754-2019 `minimum`.
#[must_use]
pub fn min_nan<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    pick::<F>(env, a, b, Ordering::Less, true)
}

/// IEEE 754-2019 `maximum`.
#[must_use]
pub fn max_nan<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    pick::<F>(env, a, b, Ordering::Greater, true)
}
