//! Formats, unpacking, rounding and packing.

use super::{Env, NX, OF, UF};
use crate::op::Round;

/// A binary interchange format of at most 64 bits, all parameters derived from two.
pub trait Float: Copy {
    /// Bits of the exponent field.
    const EXP: u32;
    /// Bits of the fraction field.
    const FRAC: u32;

    /// Largest value of the exponent field: infinities and NaNs.
    const EXP_MAX: i32 = (1 << Self::EXP) - 1;
    /// Bias of the exponent.
    const BIAS: i32 = Self::EXP_MAX >> 1;
    /// The fraction's bits.
    const FRAC_MASK: u64 = (1 << Self::FRAC) - 1;
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::EXP + Self::FRAC);
    /// All bits.
    const MASK: u64 = Self::SIGN | (Self::SIGN - 1);
    /// Positive infinity.
    const INF: u64 = (Self::EXP_MAX as u64) << Self::FRAC;
    /// The bit that tells quiet from signalling NaNs.
    const QUIET: u64 = 1 << (Self::FRAC - 1);

    /// Zero of this sign.
    #[must_use]
    fn zero(negative: bool) -> u64 {
        if negative { Self::SIGN } else { 0 }
    }

    /// Infinity of this sign.
    #[must_use]
    fn inf(negative: bool) -> u64 {
        Self::INF | Self::zero(negative)
    }

    /// A NaN of any kind.
    #[must_use]
    fn is_nan(bits: u64) -> bool {
        bits & (Self::SIGN - 1) > Self::INF
    }

    /// A signalling NaN.
    #[must_use]
    fn is_signalling(bits: u64) -> bool {
        Self::is_nan(bits) && bits & Self::QUIET == 0
    }

    /// The sign bit is set.
    #[must_use]
    fn is_negative(bits: u64) -> bool {
        bits & Self::SIGN != 0
    }
}

/// IEEE binary16.
#[derive(Clone, Copy, Debug)]
pub struct F16;
/// IEEE binary32.
#[derive(Clone, Copy, Debug)]
pub struct F32;
/// IEEE binary64.
#[derive(Clone, Copy, Debug)]
pub struct F64;

impl Float for F16 {
    const EXP: u32 = 5;
    const FRAC: u32 = 10;
}
impl Float for F32 {
    const EXP: u32 = 8;
    const FRAC: u32 = 23;
}
impl Float for F64 {
    const EXP: u32 = 11;
    const FRAC: u32 = 52;
}

/// A finite number other than zero: `sig / 2^63 * 2^exp`, with bit 63 of `sig` set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finite {
    pub negative: bool,
    pub exp: i32,
    pub sig: u64,
}

/// What bits stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unpacked {
    Zero { negative: bool },
    Finite(Finite),
    Inf { negative: bool },
    Nan { signalling: bool },
}

/// Takes `bits` apart; bits above the format are ignored.
pub(super) fn unpack<F: Float>(bits: u64) -> Unpacked {
    let negative = F::is_negative(bits);
    let field = ((bits >> F::FRAC) as i32) & F::EXP_MAX;
    let frac = bits & F::FRAC_MASK;
    if field == F::EXP_MAX {
        return match frac {
            0 => Unpacked::Inf { negative },
            _ => Unpacked::Nan { signalling: frac & F::QUIET == 0 },
        };
    }
    if field == 0 {
        if frac == 0 {
            return Unpacked::Zero { negative };
        }
        let shift = frac.leading_zeros();
        // The fraction's top bit weighs 2^(1 - BIAS - 1).
        let exp = 1 - F::BIAS - (shift as i32 - (63 - F::FRAC as i32));
        return Unpacked::Finite(Finite { negative, exp, sig: frac << shift });
    }
    let sig = (frac << (63 - F::FRAC)) | 1 << 63;
    Unpacked::Finite(Finite { negative, exp: field - F::BIAS, sig })
}

/// `x >> n`, with the lowest bit set if any one bit was shifted out.
pub(super) fn shift_right_jam(x: u64, n: u32) -> u64 {
    match n {
        0 => x,
        1..64 => (x >> n) | u64::from(x << (64 - n) != 0),
        _ => u64::from(x != 0),
    }
}

/// As [`shift_right_jam`] for 128 bits.
pub(super) fn shift_right_jam_128(x: u128, n: u32) -> u128 {
    match n {
        0 => x,
        1..128 => (x >> n) | u128::from(x << (128 - n) != 0),
        _ => u128::from(x != 0),
    }
}

/// True if a magnitude whose last kept bit is `odd` must be incremented, where `rest` is what is cut off and
/// `half` is half of the last kept bit.
pub(super) fn rounds_away(round: Round, negative: bool, odd: bool, rest: u64, half: u64) -> bool {
    match round {
        Round::NearestEven => rest > half || (rest == half && odd),
        Round::ToZero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
        Round::NearestAway => rest >= half,
    }
}

/// Cuts the lowest `drop` (1..=63) bits of `sig` by the rounding mode; also tells if that was inexact.
fn round_off(round: Round, negative: bool, sig: u64, drop: u32) -> (u64, bool) {
    let rest = sig & ((1 << drop) - 1);
    let kept = sig >> drop;
    let up = rounds_away(round, negative, kept & 1 != 0, rest, 1 << (drop - 1));
    (kept + u64::from(up), rest != 0)
}

/// Rounds to format `F`. `x.sig` has bit 63 set; its lowest bit also stands for all bits below it.
pub(super) fn round_pack<F: Float>(env: &mut Env, x: Finite) -> u64 {
    let drop = 63 - F::FRAC;
    let sign = F::zero(x.negative);
    let field = x.exp + F::BIAS;
    if field >= 1 {
        let (kept, inexact) = round_off(env.round, x.negative, x.sig, drop);
        // A carry out of the significand moves into the exponent field and leaves a fraction of zero.
        let field = field + (kept >> (F::FRAC + 1)) as i32;
        if field >= F::EXP_MAX {
            return overflow::<F>(env, x.negative);
        }
        if inexact {
            env.flags |= NX;
        }
        return sign | (field as u64) << F::FRAC | (kept & F::FRAC_MASK);
    }
    let shifted = shift_right_jam(x.sig, (1 - field) as u32);
    let (kept, inexact) = round_off(env.round, x.negative, shifted, drop);
    if inexact {
        env.flags |= NX;
        // Not tiny if rounding with unbounded exponent reaches the smallest normal number.
        let (unbounded, _) = round_off(env.round, x.negative, x.sig, drop);
        let reaches_normal = field == 0 && unbounded >> (F::FRAC + 1) != 0;
        if !reaches_normal {
            env.flags |= UF;
        }
    }
    // A carry into bit FRAC gives the smallest normal number.
    sign | kept
}

fn overflow<F: Float>(env: &mut Env, negative: bool) -> u64 {
    env.flags |= OF | NX;
    let to_inf = match env.round {
        Round::NearestEven | Round::NearestAway => true,
        Round::ToZero => false,
        Round::Down => negative,
        Round::Up => !negative,
    };
    // The largest finite number precedes infinity.
    F::inf(negative) - u64::from(!to_inf)
}
