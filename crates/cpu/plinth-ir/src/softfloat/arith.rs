//! Arithmetic.

use super::format::{
    Finite, Float, Unpacked, round_pack, rounds_away, shift_right_jam, shift_right_jam_128, unpack,
};
use super::{DZ, Env, NV, NX};
use crate::op::Round;

use Unpacked::{Inf, Nan, Zero};

/// The result for operands of which one at least is a NaN.
fn nan_of<F: Float>(env: &mut Env, operands: &[u64]) -> u64 {
    if operands.iter().any(|&v| F::is_signalling(v)) {
        env.flags |= NV;
    }
    env.default_nan
}

/// Zero as the exact sum of numbers of opposite signs.
fn cancelled<F: Float>(env: &Env) -> u64 {
    F::zero(env.round == Round::Down)
}

/// `a` + `b`.
#[must_use]
pub fn add<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Nan { .. }, _) | (_, Nan { .. }) => nan_of::<F>(env, &[a, b]),
        (Inf { negative: x }, Inf { negative: y }) if x != y => env.invalid(),
        (Inf { .. }, _) => a & F::MASK,
        (_, Inf { .. }) => b & F::MASK,
        (Zero { negative: x }, Zero { negative: y }) if x != y => cancelled::<F>(env),
        (_, Zero { .. }) => a & F::MASK,
        (Zero { .. }, _) => b & F::MASK,
        (Unpacked::Finite(x), Unpacked::Finite(y)) => add_finite::<F>(env, x, y),
    }
}

/// `a` - `b`.
#[must_use]
pub fn sub<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    // The sign of a NaN does not matter.
    add::<F>(env, a, b ^ F::SIGN)
}

fn add_finite<F: Float>(env: &mut Env, x: Finite, y: Finite) -> u64 {
    let (big, small) = if (x.exp, x.sig) >= (y.exp, y.sig) { (x, y) } else { (y, x) };
    // One bit of room for the carry; at least 10 bits below the significand keep rounding exact.
    let (p, q) = (big.sig >> 1, shift_right_jam(small.sig >> 1, big.exp.abs_diff(small.exp)));
    let sum = if big.negative == small.negative { p + q } else { p - q };
    if sum == 0 {
        return cancelled::<F>(env);
    }
    let shift = sum.leading_zeros();
    let exp = big.exp + 1 - shift as i32;
    round_pack::<F>(env, Finite { negative: big.negative, exp, sig: sum << shift })
}

/// `a` * `b`.
#[must_use]
pub fn mul<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    let negative = F::is_negative(a) != F::is_negative(b);
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Nan { .. }, _) | (_, Nan { .. }) => nan_of::<F>(env, &[a, b]),
        (Inf { .. }, Zero { .. }) | (Zero { .. }, Inf { .. }) => env.invalid(),
        (Inf { .. }, _) | (_, Inf { .. }) => F::inf(negative),
        (Zero { .. }, _) | (_, Zero { .. }) => F::zero(negative),
        (Unpacked::Finite(x), Unpacked::Finite(y)) => {
            let (exp, product) = multiply(x, y);
            round_pack::<F>(env, narrow(negative, exp, product))
        }
    }
}

/// The exact product as `product / 2^127 * 2^exp`, with bit 127 set.
fn multiply(x: Finite, y: Finite) -> (i32, u128) {
    let product = u128::from(x.sig) * u128::from(y.sig);
    let shift = product.leading_zeros();
    (x.exp + y.exp + 1 - shift as i32, product << shift)
}

/// `wide / 2^127 * 2^exp` with the lower half folded into the lowest bit.
fn narrow(negative: bool, exp: i32, wide: u128) -> Finite {
    Finite { negative, exp, sig: (wide >> 64) as u64 | u64::from(wide as u64 != 0) }
}

/// `a` / `b`.
#[must_use]
pub fn div<F: Float>(env: &mut Env, a: u64, b: u64) -> u64 {
    let negative = F::is_negative(a) != F::is_negative(b);
    match (unpack::<F>(a), unpack::<F>(b)) {
        (Nan { .. }, _) | (_, Nan { .. }) => nan_of::<F>(env, &[a, b]),
        (Inf { .. }, Inf { .. }) | (Zero { .. }, Zero { .. }) => env.invalid(),
        (Inf { .. }, _) => F::inf(negative),
        (Zero { .. }, _) | (_, Inf { .. }) => F::zero(negative),
        (_, Zero { .. }) => {
            env.flags |= DZ;
            F::inf(negative)
        }
        (Unpacked::Finite(x), Unpacked::Finite(y)) => {
            // The quotient's bit 63 is set either way.
            let below = x.sig < y.sig;
            let dividend = u128::from(x.sig) << if below { 64 } else { 63 };
            let divisor = u128::from(y.sig);
            let sig = (dividend / divisor) as u64 | u64::from(!dividend.is_multiple_of(divisor));
            round_pack::<F>(env, Finite { negative, exp: x.exp - y.exp - i32::from(below), sig })
        }
    }
}

/// Square root of `a`.
#[must_use]
pub fn sqrt<F: Float>(env: &mut Env, a: u64) -> u64 {
    match unpack::<F>(a) {
        Nan { .. } => nan_of::<F>(env, &[a]),
        Zero { .. } | Inf { negative: false } => a & F::MASK,
        Inf { negative: true } => env.invalid(),
        Unpacked::Finite(x) if x.negative => env.invalid(),
        Unpacked::Finite(x) => {
            // An even exponent, and a radicand whose root has bit 63 set.
            let radicand = u128::from(x.sig) << if x.exp & 1 == 0 { 63 } else { 64 };
            let root = radicand.isqrt();
            let sig = root as u64 | u64::from(root * root != radicand);
            round_pack::<F>(env, Finite { negative: false, exp: x.exp >> 1, sig })
        }
    }
}

/// `a` * `b` + `c` with one rounding. Negate operands by their sign bits.
#[must_use]
pub fn fused_multiply_add<F: Float>(env: &mut Env, a: u64, b: u64, c: u64) -> u64 {
    let negative = F::is_negative(a) != F::is_negative(b);
    let (x, y, z) = (unpack::<F>(a), unpack::<F>(b), unpack::<F>(c));
    match (x, y) {
        // Invalid even if the addend is a quiet NaN: so RISC-V (F, fused multiply-add) and Arm; x86 is silent.
        (Inf { .. }, Zero { .. }) | (Zero { .. }, Inf { .. }) => return env.invalid(),
        (Nan { .. }, _) | (_, Nan { .. }) => return nan_of::<F>(env, &[a, b, c]),
        _ => {}
    }
    if let Nan { .. } = z {
        return nan_of::<F>(env, &[c]);
    }
    match (x, y, z) {
        (Inf { .. }, _, Inf { negative: n }) | (_, Inf { .. }, Inf { negative: n }) if n != negative => {
            env.invalid()
        }
        (Inf { .. }, ..) | (_, Inf { .. }, _) => F::inf(negative),
        (_, _, Inf { .. }) => c & F::MASK,
        (Zero { .. }, _, Zero { negative: n }) | (_, Zero { .. }, Zero { negative: n }) => {
            if n == negative {
                F::zero(n)
            } else {
                cancelled::<F>(env)
            }
        }
        (Zero { .. }, ..) | (_, Zero { .. }, _) => c & F::MASK,
        (Unpacked::Finite(x), Unpacked::Finite(y), Zero { .. }) => {
            let (exp, product) = multiply(x, y);
            round_pack::<F>(env, narrow(negative, exp, product))
        }
        (Unpacked::Finite(x), Unpacked::Finite(y), Unpacked::Finite(z)) => {
            let (exp, product) = multiply(x, y);
            add_wide::<F>(env, (negative, exp, product), (z.negative, z.exp, u128::from(z.sig) << 64))
        }
        // NaNs have been dealt with.
        (Nan { .. }, ..) | (_, Nan { .. }, _) | (.., Nan { .. }) => env.default_nan,
    }
}

/// Adds numbers of 128 bits (sign, exponent, significand with bit 127 set).
fn add_wide<F: Float>(env: &mut Env, x: (bool, i32, u128), y: (bool, i32, u128)) -> u64 {
    let (big, small) = if (x.1, x.2) >= (y.1, y.2) { (x, y) } else { (y, x) };
    // A product has at most 106 bits, so the low bits are zero and nothing is lost where bits cancel.
    let (p, q) = (big.2 >> 1, shift_right_jam_128(small.2 >> 1, big.1.abs_diff(small.1)));
    let sum = if big.0 == small.0 { p + q } else { p - q };
    if sum == 0 {
        return cancelled::<F>(env);
    }
    let shift = sum.leading_zeros();
    round_pack::<F>(env, narrow(big.0, big.1 + 1 - shift as i32, sum << shift))
}

/// Rounds to an integral value of the same format. Raises inexact only if `exact`.
#[must_use]
pub fn round_to_integral<F: Float>(env: &mut Env, a: u64, exact: bool) -> u64 {
    let x = match unpack::<F>(a) {
        Nan { .. } => return nan_of::<F>(env, &[a]),
        Zero { .. } | Inf { .. } => return a & F::MASK,
        Unpacked::Finite(x) => x,
    };
    if x.exp >= F::FRAC as i32 {
        return a & F::MASK;
    }
    let (magnitude, inexact) = round_magnitude(env.round, x);
    if inexact && exact {
        env.flags |= NX;
    }
    if magnitude == 0 {
        return F::zero(x.negative);
    }
    // At most FRAC + 1 bits, so this is exact.
    let shift = magnitude.leading_zeros();
    round_pack::<F>(env, Finite { negative: x.negative, exp: 63 - shift as i32, sig: magnitude << shift })
}

/// The magnitude of `x` (below 2^64) rounded to an integer, and whether that was inexact.
pub(super) fn round_magnitude(round: Round, x: Finite) -> (u64, bool) {
    let integer_shift = 63 - x.exp;
    if integer_shift <= 0 {
        return (x.sig, false);
    }
    // Split into integer and a fraction of 64 bits.
    let (kept, rest) = match integer_shift as u32 {
        n @ 1..64 => (x.sig >> n, x.sig << (64 - n)),
        64 => (0, x.sig),
        _ => (0, 1),
    };
    let up = rounds_away(round, x.negative, kept & 1 != 0, rest, 1 << 63);
    (kept + u64::from(up), rest != 0)
}
