//! Integer and fixed-point arithmetic on one element.

use super::sem::{Compare, Integer};

/// The fixed-point state.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// `vxrm`: to nearest up, to nearest even, down, to odd.
    pub round: u64,
    /// A result was saturated.
    pub saturated: bool,
}

/// `value`'s low `bits` bits.
#[must_use]
pub const fn low(value: u64, bits: u32) -> u64 {
    value & (u64::MAX >> (64 - bits))
}

/// `value`'s low `bits` bits as a signed number.
#[must_use]
pub const fn signed(value: u64, bits: u32) -> i64 {
    let up = 64 - bits;
    (value << up) as i64 >> up
}

/// `value` >> `by`, rounded (3.8). `by` is below 64.
fn round_off(value: i128, by: u32, mode: u64) -> i128 {
    if by == 0 {
        return value;
    }
    let half = value >> (by - 1) & 1;
    let below = value & ((1 << (by - 1)) - 1) != 0;
    let odd = value >> by & 1;
    let increment = match mode {
        0 => half,
        1 => half & i128::from(below || odd != 0),
        2 => 0,
        _ => i128::from(odd == 0 && (half != 0 || below)),
    };
    (value >> by) + increment
}

impl Fixed {
    /// `value` within the limits.
    fn saturate(&mut self, value: i128, min: i128, max: i128) -> u64 {
        self.saturated |= value < min || value > max;
        value.clamp(min, max) as u64
    }

    fn saturate_signed(&mut self, value: i128, bits: u32) -> u64 {
        self.saturate(value, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    }

    fn saturate_unsigned(&mut self, value: i128, bits: u32) -> u64 {
        self.saturate(value, 0, (1 << bits) - 1)
    }

    /// `op`(`a`, `b`) in `bits` bits, with `d`, what the destination holds. Bits of the operands above the
    /// width must be zero, those of the result count for nothing.
    pub fn integer(&mut self, op: Integer, a: u64, b: u64, d: u64, bits: u32) -> u64 {
        let (sa, sb) = (signed(a, bits), signed(b, bits));
        let (wa, wb) = (i128::from(sa), i128::from(sb));
        let (ua, ub) = (i128::from(a), i128::from(b));
        let shift = b as u32 & (bits - 1);
        match op {
            Integer::Add => a.wrapping_add(b),
            Integer::Sub => a.wrapping_sub(b),
            Integer::SubReverse => b.wrapping_sub(a),
            Integer::MinU => a.min(b),
            Integer::Min => sa.min(sb) as u64,
            Integer::MaxU => a.max(b),
            Integer::Max => sa.max(sb) as u64,
            Integer::And => a & b,
            Integer::Or => a | b,
            Integer::Xor => a ^ b,
            Integer::Shl => a << shift,
            Integer::Shr => a >> shift,
            Integer::Sar => (sa >> shift) as u64,
            Integer::SatAddU => self.saturate_unsigned(ua + ub, bits),
            Integer::SatAdd => self.saturate_signed(wa + wb, bits),
            Integer::SatSubU => self.saturate_unsigned(ua - ub, bits),
            Integer::SatSub => self.saturate_signed(wa - wb, bits),
            Integer::SatMul => self.saturate_signed(round_off(wa * wb, bits - 1, self.round), bits),
            Integer::AverageAddU => round_off(ua + ub, 1, self.round) as u64,
            Integer::AverageAdd => round_off(wa + wb, 1, self.round) as u64,
            Integer::AverageSubU => round_off(ua - ub, 1, self.round) as u64,
            Integer::AverageSub => round_off(wa - wb, 1, self.round) as u64,
            Integer::RoundShr => round_off(ua, shift, self.round) as u64,
            Integer::RoundSar => round_off(wa, shift, self.round) as u64,
            Integer::ClipU => self.saturate_unsigned(round_off(ua, shift, self.round), bits / 2),
            Integer::Clip => self.saturate_signed(round_off(wa, shift, self.round), bits / 2),
            Integer::DivU => a.checked_div(b).unwrap_or(u64::MAX),
            Integer::Div if b == 0 => u64::MAX,
            Integer::Div => sa.wrapping_div(sb) as u64,
            Integer::RemU => a.checked_rem(b).unwrap_or(a),
            Integer::Rem if b == 0 => a,
            Integer::Rem => sa.wrapping_rem(sb) as u64,
            Integer::Mul => a.wrapping_mul(b),
            Integer::MulHighU => ((u128::from(a) * u128::from(b)) >> bits) as u64,
            Integer::MulHigh => ((wa * wb) >> bits) as u64,
            Integer::MulHighSU => ((wa * ub) >> bits) as u64,
            Integer::MulAdd => b.wrapping_mul(d).wrapping_add(a),
            Integer::MulSub => a.wrapping_sub(b.wrapping_mul(d)),
            Integer::Accumulate => d.wrapping_add(b.wrapping_mul(a)),
            Integer::Decumulate => d.wrapping_sub(b.wrapping_mul(a)),
        }
    }
}

/// `a` compared with `b`, both of `bits` bits.
#[must_use]
pub fn compare(op: Compare, a: u64, b: u64, bits: u32) -> bool {
    let (sa, sb) = (signed(a, bits), signed(b, bits));
    match op {
        Compare::Eq => a == b,
        Compare::Ne => a != b,
        Compare::LtU => a < b,
        Compare::Lt => sa < sb,
        Compare::LeU => a <= b,
        Compare::Le => sa <= sb,
        Compare::GtU => a > b,
        Compare::Gt => sa > sb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_modes() {
        // 2.25, 2.5, 2.75, 3.5 and -2.5 by each mode.
        for (value, expected) in [
            (9, [2, 2, 2, 3]),
            (10, [3, 2, 2, 3]),
            (11, [3, 3, 2, 3]),
            (14, [4, 4, 3, 3]),
            (-10, [-2, -2, -3, -3]),
        ] {
            for (mode, expected) in expected.into_iter().enumerate() {
                assert_eq!(round_off(value, 2, mode as u64), expected, "{value} mode {mode}");
            }
        }
    }

    #[test]
    fn saturation() {
        let mut f = Fixed { round: 0, saturated: false };
        assert_eq!(f.integer(Integer::SatAdd, 0x7f, 0, 0, 8), 0x7f);
        assert!(!f.saturated);
        assert_eq!(low(f.integer(Integer::SatAdd, 0x80, 0xff, 0, 8), 8), 0x80);
        assert!(f.saturated);
        let mut f = Fixed { round: 0, saturated: false };
        let min = 1 << 63;
        assert_eq!(f.integer(Integer::SatMul, min, min, 0, 64), (1 << 63) - 1);
        assert!(f.saturated);
        assert_eq!(low(f.integer(Integer::Div, 0x80, 0xff, 0, 8), 8), 0x80);
        assert_eq!(low(f.integer(Integer::Rem, min, u64::MAX, 0, 64), 64), 0);
    }
}
