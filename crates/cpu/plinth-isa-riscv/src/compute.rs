//! Helpers that only compute: what the IR has no operation for.

use plinth_ir::{Cpu, HelperResult};

fn carryless(a: u64, b: u64) -> u128 {
    (0..64).filter(|i| b >> i & 1 != 0).fold(0, |sum, i| sum ^ u128::from(a) << i)
}

/// `clmul`: bits 0 to 63 of the carry-less product of `a` and `b` (Zbc).
pub fn clmul(_: &mut Cpu<'_>, a: u64, b: u64, _: u64) -> HelperResult {
    HelperResult::Next(carryless(a, b) as u64)
}

/// `clmulh`: bits 64 to 127.
pub fn clmulh(_: &mut Cpu<'_>, a: u64, b: u64, _: u64) -> HelperResult {
    HelperResult::Next((carryless(a, b) >> 64) as u64)
}

/// `clmulr`: bits 63 to 126.
pub fn clmulr(_: &mut Cpu<'_>, a: u64, b: u64, _: u64) -> HelperResult {
    HelperResult::Next((carryless(a, b) >> 63) as u64)
}

/// The class of a float, as [`fclass`] gives it.
pub(crate) fn class_of(bits: u64, exponent_bits: u64, fraction_bits: u64) -> u64 {
    let negative = bits >> (exponent_bits + fraction_bits) & 1 != 0;
    let exponent_max = (1 << exponent_bits) - 1;
    let exponent = bits >> fraction_bits & exponent_max;
    let fraction = bits & ((1 << fraction_bits) - 1);
    let class = match (exponent, fraction) {
        (0, 0) => 3,
        (0, _) => 2,
        (e, 0) if e == exponent_max => 0,
        (e, f) if e == exponent_max => return 1 << (8 + (f >> (fraction_bits - 1) & 1)),
        _ => 1,
    };
    1 << if negative { class } else { 7 - class }
}

/// `fclass`: the class of float `bits` as a mask with one bit set (unprivileged specification, chapter F).
/// `exponent_bits` and `fraction_bits` are those of an IEEE 754 format of at most 64 bits.
pub fn fclass(_: &mut Cpu<'_>, bits: u64, exponent_bits: u64, fraction_bits: u64) -> HelperResult {
    HelperResult::Next(class_of(bits, exponent_bits & 15, fraction_bits.clamp(1, 52)))
}

/// `fcvtmod.w.d` (Zfa): converts double `bits` toward zero and keeps the low 32 bits of the result, sign-
/// extended. Returns it and the flags to accumulate.
fn double_to_i32_modular(bits: u64) -> (u64, u8) {
    const INVALID: u8 = 0x10;
    const INEXACT: u8 = 1;
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023;
    let fraction = bits & ((1 << 52) - 1);
    if exponent == 1024 {
        return (0, INVALID);
    }
    if exponent < 0 {
        let zero = bits << 1 == 0;
        return (0, if zero { 0 } else { INEXACT });
    }
    let significand = fraction | 1 << 52;
    let (magnitude, lost) = match exponent {
        0..=52 => (significand >> (52 - exponent), significand << 12 << exponent != 0),
        53..=83 => (significand << (exponent - 52), false),
        _ => (0, false),
    };
    let negative = bits >> 63 != 0;
    let low = if negative { magnitude.wrapping_neg() } else { magnitude } as i32;
    let in_range = exponent < 31 || (negative && exponent == 31 && magnitude == 1 << 31);
    let flags = match (in_range, lost) {
        (false, _) => INVALID,
        (true, true) => INEXACT,
        (true, false) => 0,
    };
    (i64::from(low) as u64, flags)
}

/// `fcvtmod`: `fcvtmod.w.d`.
pub fn fcvtmod(cpu: &mut Cpu<'_>, bits: u64, _: u64, _: u64) -> HelperResult {
    let (value, flags) = double_to_i32_modular(bits);
    let flags = cpu.env.fp_flags() | flags;
    cpu.env.set_fp_flags(flags);
    HelperResult::Next(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carryless_products() {
        assert_eq!(carryless(3, 3), 5);
        assert_eq!(carryless(u64::MAX, 2), u128::from(u64::MAX) << 1);
        assert_eq!(carryless(1 << 63, 1 << 63), 1 << 126);
    }

    #[test]
    fn classes() {
        let d = |x: f64| class_of(x.to_bits(), 11, 52);
        assert_eq!(d(f64::NEG_INFINITY), 1 << 0);
        assert_eq!(d(-1.5), 1 << 1);
        assert_eq!(d(-5e-324), 1 << 2);
        assert_eq!(d(-0.0), 1 << 3);
        assert_eq!(d(0.0), 1 << 4);
        assert_eq!(d(5e-324), 1 << 5);
        assert_eq!(d(1.0), 1 << 6);
        assert_eq!(d(f64::INFINITY), 1 << 7);
        assert_eq!(class_of(0x7f80_0001, 8, 23), 1 << 8);
        assert_eq!(class_of(0xffc0_0000, 8, 23), 1 << 9);
        assert_eq!(class_of(0x7c01, 5, 10), 1 << 8);
        assert_eq!(class_of(0x3c00, 5, 10), 1 << 6);
    }

    #[test]
    fn modular_conversion() {
        let c = |x: f64| double_to_i32_modular(x.to_bits());
        assert_eq!(c(0.0), (0, 0));
        assert_eq!(c(-0.0), (0, 0));
        assert_eq!(c(0.5), (0, 1));
        assert_eq!(c(-1.0), (u64::MAX, 0));
        assert_eq!(c(-1.25), (u64::MAX, 1));
        assert_eq!(c(2_147_483_647.0), (0x7fff_ffff, 0));
        assert_eq!(c(2_147_483_648.0), (0xffff_ffff_8000_0000, 0x10));
        assert_eq!(c(-2_147_483_648.0), (0xffff_ffff_8000_0000, 0));
        assert_eq!(c(4_294_967_297.0), (1, 0x10));
        assert_eq!(c(4_294_967_297.5), (1, 0x10));
        assert_eq!(c(2f64.powi(84)), (0, 0x10));
        assert_eq!(c(2f64.powi(83) + 2f64.powi(31)), (0xffff_ffff_8000_0000, 0x10));
        assert_eq!(c(f64::NAN), (0, 0x10));
        assert_eq!(c(f64::INFINITY), (0, 0x10));
    }
}
