//! Against the host's floating point unit where the host can tell, against exact integer arithmetic on f16
//! where it cannot.

use super::*;
use crate::op::{FpCond, Round};

/// xorshift64*; reproducible.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Bits of a number that is likely to be at some edge.
    fn float<F: Float>(&mut self) -> u64 {
        let r = self.next();
        let edges = [
            0,
            1,
            2,
            F::FRAC_MASK,
            F::FRAC_MASK + 1,
            F::FRAC_MASK + 2,
            F::INF - 1,
            F::INF - 2,
            F::INF,
            F::INF + 1,
            F::INF + F::QUIET,
            F::INF >> 1 << 1,
            (F::BIAS as u64) << F::FRAC,
            F::MASK >> 1,
        ];
        let sign = F::zero(r & 1 != 0);
        match (r >> 1) % 8 {
            0 => sign | edges[(r >> 8) as usize % edges.len()],
            // Near one another in exponent, few bits set: exact results, ties and cancellation.
            1 | 2 => {
                let exp = (F::BIAS as u64).wrapping_add((r >> 8) % 9).wrapping_sub(4);
                let frac = self.next() & self.next() & self.next() & F::FRAC_MASK;
                sign | exp << F::FRAC | frac
            }
            3 => sign | (self.next() & F::FRAC_MASK),
            4 => {
                let exp = (F::BIAS as u64) + (r >> 8) % 70;
                sign | exp.min(F::EXP_MAX as u64) << F::FRAC | (self.next() & F::FRAC_MASK)
            }
            _ => self.next() & F::MASK,
        }
    }
}

const NAN32: u64 = 0x7fc0_0000;
const NAN64: u64 = 0x7ff8_0000_0000_0000;
const ROUNDS: u32 = 300_000;

/// Host results with all NaNs made the default one. By their bits: which NaN a result is does not matter to
/// the compiler, so it may drop a choice between two floats that is made by `is_nan`.
fn canon32(v: f32) -> u64 {
    let bits = u64::from(v.to_bits());
    if bits & 0x7fff_ffff > 0x7f80_0000 { NAN32 } else { bits }
}

fn canon64(v: f64) -> u64 {
    let bits = v.to_bits();
    if bits & (u64::MAX >> 1) > 0x7ff0 << 48 { NAN64 } else { bits }
}

macro_rules! against_host {
    ($name:ident, $f:ty, $host:ty, $bits:ty, $nan:ident, $canon:ident) => {
        #[test]
        fn $name() {
            let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
            for _ in 0..ROUNDS {
                let (a, b, c) = (rng.float::<$f>(), rng.float::<$f>(), rng.float::<$f>());
                let host = |v: u64| <$host>::from_bits(v as $bits);
                let (x, y, z) = (host(a), host(b), host(c));
                let mut env = Env::new(Round::NearestEven, $nan);
                assert_eq!(add::<$f>(&mut env, a, b), $canon(x + y), "{a:#x} + {b:#x}");
                assert_eq!(sub::<$f>(&mut env, a, b), $canon(x - y), "{a:#x} - {b:#x}");
                assert_eq!(mul::<$f>(&mut env, a, b), $canon(x * y), "{a:#x} * {b:#x}");
                assert_eq!(div::<$f>(&mut env, a, b), $canon(x / y), "{a:#x} / {b:#x}");
                assert_eq!(sqrt::<$f>(&mut env, a), $canon(x.sqrt()), "sqrt {a:#x}");
                assert_eq!(
                    fused_multiply_add::<$f>(&mut env, a, b, c),
                    $canon(x.mul_add(y, z)),
                    "{a:#x} * {b:#x} + {c:#x}"
                );
                for (cond, want) in [
                    (FpCond::Eq, x == y),
                    (FpCond::Lt, x < y),
                    (FpCond::Le, x <= y),
                    (FpCond::LtQuiet, x < y),
                    (FpCond::LeQuiet, x <= y),
                ] {
                    assert_eq!(compare::<$f>(&mut env, cond, a, b), want, "{cond:?} {a:#x} {b:#x}");
                }
                for (round, want) in [
                    (Round::NearestEven, x.round_ties_even()),
                    (Round::ToZero, x.trunc()),
                    (Round::Down, x.floor()),
                    (Round::Up, x.ceil()),
                    (Round::NearestAway, x.round()),
                ] {
                    let mut env = Env::new(round, $nan);
                    let got = round_to_integral::<$f>(&mut env, a, true);
                    assert_eq!(got, $canon(want), "{round:?} {a:#x}");
                    let inexact = want != x && !x.is_nan();
                    assert_eq!(env.flags & NX != 0, inexact, "{round:?} {a:#x}");
                }
                // Casts of the host language truncate and saturate, and NaN gives zero.
                let mut env = Env::new(Round::ToZero, $nan);
                let nan = x.is_nan();
                let or = |v: u64, max: u64| if nan { max } else { v };
                assert_eq!(to_int::<$f>(&mut env, a, 64, true), or(x as i64 as u64, i64::MAX as u64));
                assert_eq!(to_int::<$f>(&mut env, a, 64, false), or(x as u64, u64::MAX));
                assert_eq!(to_int::<$f>(&mut env, a, 32, true), or(u64::from(x as i32 as u32), 0x7fff_ffff));
                assert_eq!(to_int::<$f>(&mut env, a, 32, false), or(u64::from(x as u32), 0xffff_ffff));
                let mut env = Env::new(Round::NearestEven, $nan);
                let n = rng.next() >> (rng.next() % 64);
                assert_eq!(from_int::<$f>(&mut env, n, 64, true), $canon(n as i64 as $host), "{n:#x}");
                assert_eq!(from_int::<$f>(&mut env, n, 64, false), $canon(n as $host), "{n:#x}");
                assert_eq!(from_int::<$f>(&mut env, n, 32, true), $canon(n as i32 as $host), "{n:#x}");
                assert_eq!(from_int::<$f>(&mut env, n, 32, false), $canon(n as u32 as $host), "{n:#x}");
            }
        }
    };
}

against_host!(f32_to_nearest_equals_host, F32, f32, u32, NAN32, canon32);
against_host!(f64_to_nearest_equals_host, F64, f64, u64, NAN64, canon64);

#[test]
fn conversions_between_formats_equal_host() {
    let mut rng = Rng(7);
    for _ in 0..ROUNDS {
        let mut env = Env::new(Round::NearestEven, NAN64);
        let a = rng.float::<F32>();
        assert_eq!(convert::<F32, F64>(&mut env, a), canon64(f64::from(f32::from_bits(a as u32))));
        let mut env = Env::new(Round::NearestEven, NAN32);
        let b = rng.float::<F64>();
        assert_eq!(convert::<F64, F32>(&mut env, b), canon32(f64::from_bits(b) as f32));
    }
    // Every f16 survives the way through both wider formats.
    for a in (0..0x1_0000).filter(|&a| !F16::is_nan(a)) {
        let mut env = Env::new(Round::NearestEven, 0);
        let wide = convert::<F16, F32>(&mut env, a);
        let wider = convert::<F32, F64>(&mut env, wide);
        assert_eq!(convert::<F64, F16>(&mut env, wider), a);
        assert_eq!(convert::<F32, F16>(&mut env, wide), a);
        assert_eq!(env.flags, 0);
    }
}

/// An f16 other than infinity and NaN, times 2^24: an integer of at most 40 bits.
fn scaled(a: u64) -> i128 {
    let (field, frac) = ((a >> 10) & 31, i128::from(a & 0x3ff));
    let magnitude = if field == 0 { frac } else { (frac | 0x400) << (field - 1) };
    if a & 0x8000 != 0 { -magnitude } else { magnitude }
}

/// Rounds the rational `n / d` (in units of 2^-24; `d` > 0) to f16 by trying: an oracle that shares nothing
/// with the implementation. `sign` is that of a zero.
fn round_rational(round: Round, n: i128, d: i128, sign: bool) -> (u64, u8) {
    let negative = n < 0 || (n == 0 && sign);
    let n = n.abs();
    // The largest finite magnitude that does not exceed n / d, by bisection: magnitudes are ordered as bits.
    let largest = |limit: u64, value: &dyn Fn(u64) -> i128| {
        let (mut low, mut high) = (0, limit);
        while low < high {
            let mid = (low + high).div_ceil(2);
            if value(mid) * d <= n { low = mid } else { high = mid - 1 }
        }
        low
    };
    // Values of magnitudes as if the exponent had no upper end: 0x7c00 is 2^16.
    let value = |bits: u64| match bits {
        0..0x7c00 => scaled(bits),
        _ => 1 << 40,
    };
    let low = largest(0x7c00, &value);
    let exact = value(low) * d == n;
    if low == 0x7c00 {
        return overflowed(round, negative);
    }
    let high = low + 1;
    let (below, above) = (n - value(low) * d, value(high) * d - n);
    let nearest_low = below < above || (below == above && (low & 1 == 0));
    let up = !exact
        && match round {
            Round::NearestEven => !nearest_low,
            Round::NearestAway => below >= above,
            Round::ToZero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
    let bits = if up { high } else { low };
    if bits == 0x7c00 {
        return overflowed(round, negative);
    }
    let mut flags = if exact { 0 } else { NX };
    // Tiny after rounding: with 11 bits and any exponent, it stays below 2^-14. Just below that, the last
    // place is half of the subnormals', 2^-25.
    if !exact && low < 0x400 {
        let halves = 2 * n;
        let whole = halves / d;
        let rest = halves % d;
        let away = match round {
            Round::NearestEven => 2 * rest > d || (2 * rest == d && whole & 1 != 0),
            Round::NearestAway => 2 * rest >= d,
            Round::ToZero => false,
            Round::Down => negative && rest != 0,
            Round::Up => !negative && rest != 0,
        };
        if whole + i128::from(away) < 2 << 10 {
            flags |= UF;
        }
    }
    (bits | if negative { 0x8000 } else { 0 }, flags)
}

fn overflowed(round: Round, negative: bool) -> (u64, u8) {
    let sign = if negative { 0x8000 } else { 0 };
    let finite = match round {
        Round::ToZero => true,
        Round::Down => !negative,
        Round::Up => negative,
        Round::NearestEven | Round::NearestAway => false,
    };
    (sign | if finite { 0x7bff } else { 0x7c00 }, OF | NX)
}

/// f16 operands: all of the interesting ones, and a sample of the rest.
fn finite_f16() -> impl Iterator<Item = u64> {
    (0..0x1_0000u64).filter(|&a| {
        let (field, frac) = ((a >> 10) & 31, a & 0x3ff);
        field < 31
            && (frac % 341 < 2 || frac >= 0x3fe || frac == 0x200)
            && (field < 4 || field % 3 == 0 || field > 27)
    })
}

#[test]
fn f16_equals_exact_arithmetic_in_all_roundings() {
    for &round in Round::ALL {
        let check = |got: u64, env: Env, want: (u64, u8), what: &str, a: u64, b: u64| {
            assert_eq!((got, env.flags), want, "{round:?} {what} {a:#06x} {b:#06x}");
        };
        for a in finite_f16() {
            for b in finite_f16() {
                let (x, y) = (scaled(a), scaled(b));
                let signs_differ = (a ^ b) & 0x8000 != 0;
                let zero_sum = if signs_differ { round == Round::Down } else { a & 0x8000 != 0 };
                // Numbers that cancel give a zero by the rounding mode.
                let zero_sum = if x != 0 { round == Round::Down } else { zero_sum };
                let mut env = Env::new(round, 0x7e00);
                let got = add::<F16>(&mut env, a, b);
                check(got, env, round_rational(round, x + y, 1, zero_sum), "+", a, b);
                let mut env = Env::new(round, 0x7e00);
                let got = mul::<F16>(&mut env, a, b);
                check(got, env, round_rational(round, x * y, 1 << 24, signs_differ), "*", a, b);
                if y != 0 {
                    let mut env = Env::new(round, 0x7e00);
                    let got = div::<F16>(&mut env, a, b);
                    let n = (x << 24) * y.signum();
                    check(got, env, round_rational(round, n, y.abs(), signs_differ), "/", a, b);
                }
            }
        }
    }
}

#[test]
fn f16_fused_multiply_add_equals_exact_arithmetic() {
    let mut rng = Rng(3);
    for i in 0..400_000 {
        let round = Round::ALL[i % Round::ALL.len()];
        let [a, b, c] = [(); 3].map(|()| {
            loop {
                let v = rng.float::<F16>();
                if v & F16::INF != F16::INF {
                    break v;
                }
            }
        });
        let (product, addend) = (scaled(a) * scaled(b), scaled(c) << 24);
        let product_sign = (a ^ b) & 0x8000 != 0;
        let addend_sign = c & 0x8000 != 0;
        let zero = if product_sign == addend_sign { addend_sign } else { round == Round::Down };
        let mut env = Env::new(round, 0x7e00);
        let got = fused_multiply_add::<F16>(&mut env, a, b, c);
        let want = round_rational(round, product + addend, 1 << 24, zero);
        assert_eq!((got, env.flags), want, "{round:?} {a:#x} * {b:#x} + {c:#x}");
    }
}

#[test]
fn f16_square_roots_bracket_the_exact_one() {
    for a in (1..0x7c00u64).filter(|&a| a != 0) {
        let x = scaled(a);
        for &round in Round::ALL {
            let mut env = Env::new(round, 0x7e00);
            let got = sqrt::<F16>(&mut env, a);
            let r = scaled(got);
            // root^2 against the radicand, both in units of 2^-48.
            let exact = r * r == x << 24;
            assert_eq!(env.flags, if exact { 0 } else { NX });
            let (down, up) = (scaled(got - 1), scaled(got + 1));
            // Twice the midpoints to the neighbours, squared.
            let (mid_down, mid_up) = ((r + down) * (r + down), (r + up) * (r + up));
            let fits = match round {
                Round::ToZero | Round::Down => r * r <= x << 24 && up * up > x << 24,
                Round::Up => r * r >= x << 24 && down * down < x << 24,
                Round::NearestEven | Round::NearestAway => mid_down <= x << 26 && mid_up >= x << 26,
            };
            assert!(fits, "{round:?} sqrt {a:#x} = {got:#x}");
        }
    }
}

#[test]
fn f16_to_integer_equals_exact_arithmetic() {
    for a in (0..0x1_0000u64).filter(|a| a & 0x7c00 != 0x7c00) {
        let x = scaled(a);
        for &round in Round::ALL {
            let (floor, rest) = (x >> 24, x & 0xff_ffff);
            let half = 0x80_0000;
            let up = match round {
                Round::NearestEven => rest > half || (rest == half && floor & 1 != 0),
                Round::NearestAway => rest > half || (rest == half && x > 0),
                Round::ToZero => rest != 0 && x < 0,
                Round::Down => false,
                Round::Up => rest != 0,
            };
            let rounded = floor + i128::from(up);
            let mut env = Env::new(round, 0);
            assert_eq!(to_int::<F16>(&mut env, a, 64, true) as i64, rounded as i64, "{round:?} {a:#x}");
            assert_eq!(env.flags, if rest != 0 { NX } else { 0 });
            let mut env = Env::new(round, 0);
            let unsigned = to_int::<F16>(&mut env, a, 32, false);
            assert_eq!(unsigned, rounded.max(0) as u64);
            let want = if rounded < 0 { NV } else { if rest != 0 { NX } else { 0 } };
            assert_eq!(env.flags, want, "{round:?} {a:#x}");
        }
    }
}

/// Flags of f32 and f64 arithmetic, which f16 has shown to be right, agree with what is exact: `x` rounds to
/// `F` without a flag exactly if the result is exact, seen through the wider format.
#[test]
fn f32_flags_follow_from_f64() {
    let mut rng = Rng(11);
    for i in 0..ROUNDS {
        let round = Round::ALL[i as usize % Round::ALL.len()];
        let (a, b) = (rng.float::<F32>(), rng.float::<F32>());
        let mut wide = Env::new(round, NAN64);
        let (x, y) = (convert::<F32, F64>(&mut wide, a), convert::<F32, F64>(&mut wide, b));
        // A product of two f32 is exact in f64.
        let product = mul::<F64>(&mut wide, x, y);
        wide.default_nan = NAN32;
        let want = convert::<F64, F32>(&mut wide, product);
        let mut env = Env::new(round, NAN32);
        let got = mul::<F32>(&mut env, a, b);
        assert_eq!((got, env.flags), (want, wide.flags), "{round:?} {a:#x} * {b:#x}");
    }
}

#[test]
fn special_operands() {
    const SNAN: u64 = 0x7f80_0001;
    const QNAN: u64 = 0xffc0_1234;
    const INF: u64 = 0x7f80_0000;
    const ONE: u64 = 0x3f80_0000;
    type Binary = fn(&mut Env, u64, u64) -> u64;
    let cases: &[(Binary, u64, u64, u64, u8)] = &[
        (add::<F32>, SNAN, ONE, NAN32, NV),
        (add::<F32>, QNAN, ONE, NAN32, 0),
        (add::<F32>, INF, INF | F32::SIGN, NAN32, NV),
        (sub::<F32>, INF, INF, NAN32, NV),
        (sub::<F32>, ONE, ONE, 0, 0),
        (mul::<F32>, INF, 0, NAN32, NV),
        (mul::<F32>, INF, ONE | F32::SIGN, INF | F32::SIGN, 0),
        (div::<F32>, ONE, F32::SIGN, INF | F32::SIGN, DZ),
        (div::<F32>, 0, 0, NAN32, NV),
        (div::<F32>, INF, INF, NAN32, NV),
        (div::<F32>, INF, 0, INF, 0),
        (div::<F32>, ONE, INF | F32::SIGN, F32::SIGN, 0),
        (min::<F32>, SNAN, ONE, ONE, NV),
        (min::<F32>, QNAN, ONE, ONE, 0),
        (min::<F32>, QNAN, SNAN, NAN32, NV),
        (min::<F32>, 0, F32::SIGN, F32::SIGN, 0),
        (max::<F32>, F32::SIGN, 0, 0, 0),
        (max::<F32>, ONE, QNAN, ONE, 0),
        (min_nan::<F32>, ONE, QNAN, NAN32, 0),
        (max_nan::<F32>, SNAN, ONE, NAN32, NV),
        (max_nan::<F32>, ONE, INF, INF, 0),
        (min_nan::<F32>, ONE, INF | F32::SIGN, INF | F32::SIGN, 0),
    ];
    for (i, &(f, a, b, want, flags)) in cases.iter().enumerate() {
        let mut env = Env::new(Round::NearestEven, NAN32);
        assert_eq!((f(&mut env, a, b), env.flags), (want, flags), "case {i}");
    }
    let mut env = Env::new(Round::NearestEven, NAN32);
    assert_eq!(sqrt::<F32>(&mut env, ONE | F32::SIGN), NAN32);
    assert_eq!(env.flags, NV);
    let mut env = Env::new(Round::NearestEven, NAN32);
    assert_eq!(sqrt::<F32>(&mut env, F32::SIGN), F32::SIGN);
    // Infinity times zero is invalid even with a quiet NaN to add.
    assert_eq!(fused_multiply_add::<F32>(&mut env, INF, 0, QNAN), NAN32);
    assert_eq!(env.flags, NV);
    for (cond, a, flags) in [
        (FpCond::Eq, QNAN, 0),
        (FpCond::Eq, SNAN, NV),
        (FpCond::Lt, QNAN, NV),
        (FpCond::Le, QNAN, NV),
        (FpCond::LtQuiet, QNAN, 0),
        (FpCond::LeQuiet, SNAN, NV),
    ] {
        let mut env = Env::new(Round::NearestEven, NAN32);
        assert!(!compare::<F32>(&mut env, cond, a, ONE));
        assert_eq!(env.flags, flags, "{cond:?} {a:#x}");
    }
    for (a, signed, want) in [
        (0x4f00_0000, true, 0x7fff_ffff), // 2^31
        (0xcf00_0001, true, 0x8000_0000),
        (NAN32, true, 0x7fff_ffff),
        (NAN32, false, 0xffff_ffff),
        (0xbf80_0000, false, 0), // -1
        (INF | F32::SIGN, false, 0),
        (INF | F32::SIGN, true, 0x8000_0000),
    ] {
        let mut env = Env::new(Round::NearestEven, 0);
        assert_eq!(to_int::<F32>(&mut env, a, 32, signed), want, "{a:#x}");
        assert_eq!(env.flags, NV, "{a:#x}");
    }
    let mut env = Env::new(Round::NearestEven, 0);
    assert_eq!(to_int::<F32>(&mut env, 0xcf00_0000, 32, true), 0x8000_0000);
    assert_eq!(env.flags, 0, "-2^31 fits");
}
