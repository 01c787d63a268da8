//! What single operations compute: the one definition of their semantics, for the interpreter, for constant
//! folding, and for tests of code generators.

use crate::op::{AmoOp, Code, Cond, Lane, Ty, VecOp};

/// `value` cut to the width of integer type `ty`, sign-extended to 64 bits if `signed`, else zero-extended.
#[inline(always)]
#[must_use]
pub const fn extend(ty: Ty, signed: bool, value: u64) -> u64 {
    match (ty, signed) {
        (Ty::I8, false) => value as u8 as u64,
        (Ty::I8, true) => value as i8 as u64,
        (Ty::I16 | Ty::F16, false) => value as u16 as u64,
        (Ty::I16 | Ty::F16, true) => value as i16 as u64,
        (Ty::I32 | Ty::F32, false) => value as u32 as u64,
        (Ty::I32 | Ty::F32, true) => value as i32 as u64,
        (Ty::I64 | Ty::F64 | Ty::V128, _) => value,
    }
}

/// `cond(a, b)` in type `ty`: i32 compares the low halves, every other type all 64 bits.
#[inline(always)]
#[must_use]
pub const fn eval_cond(cond: Cond, ty: Ty, a: u64, b: u64) -> bool {
    let (a, b) = match ty {
        Ty::I32 => (a as i32 as i64, b as i32 as i64),
        _ => (a as i64, b as i64),
    };
    // Sign extension keeps the order of unsigned numbers too.
    match cond {
        Cond::Eq => a == b,
        Cond::Ne => a != b,
        Cond::LtS => a < b,
        Cond::GeS => a >= b,
        Cond::LtU => (a as u64) < b as u64,
        Cond::GeU => a as u64 >= b as u64,
    }
}

macro_rules! eval_width {
    ($name:ident, $u:ident, $i:ident) => {
        #[inline(always)]
        fn $name(code: Code, cond: Option<Cond>, ty: Ty, a: u64, b: u64, c: u64) -> Option<u64> {
            const BITS: u32 = $u::BITS;
            let (x, y) = (a as $u, b as $u);
            let (sx, sy) = (x as $i, y as $i);
            // Shift counts are taken modulo the width by the wrapping and rotating functions.
            let n = b as u32 % BITS;
            let r = match code {
                Code::Mov => x,
                Code::Add => x.wrapping_add(y),
                Code::Sub => x.wrapping_sub(y),
                Code::ShlAdd => x.wrapping_shl(c as u32).wrapping_add(y),
                Code::And => x & y,
                Code::Or => x | y,
                Code::Xor => x ^ y,
                Code::AndNot => x & !y,
                Code::OrNot => x | !y,
                Code::XorNot => !(x ^ y),
                Code::Shl => x.wrapping_shl(n),
                Code::Shr => x.wrapping_shr(n),
                Code::Sar => sx.wrapping_shr(n) as $u,
                Code::Rotl => x.rotate_left(n),
                Code::Rotr => x.rotate_right(n),
                Code::Mul => x.wrapping_mul(y),
                Code::DivS if y == 0 => $u::MAX,
                Code::DivS => sx.wrapping_div(sy) as $u,
                Code::DivU => x.checked_div(y).unwrap_or($u::MAX),
                Code::RemS if y == 0 => x,
                Code::RemS => sx.wrapping_rem(sy) as $u,
                Code::RemU => x.checked_rem(y).unwrap_or(x),
                Code::MinS => sx.min(sy) as $u,
                Code::MinU => x.min(y),
                Code::MaxS => sx.max(sy) as $u,
                Code::MaxU => x.max(y),
                Code::SetCond => $u::from(eval_cond(cond?, ty, a, b)),
                Code::Clz => x.leading_zeros() as $u,
                Code::Ctz => x.trailing_zeros() as $u,
                Code::Popcnt => x.count_ones() as $u,
                Code::Bswap => x.swap_bytes(),
                Code::OrBytes => or_bytes(u64::from(x)) as $u,
                // Reversing all bits, then the bytes, leaves each byte in its place.
                Code::BitRev8 => x.reverse_bits().swap_bytes(),
                _ => return None,
            };
            Some(u64::from(r))
        }
    };
}

eval_width!(eval_32, u32, i32);
eval_width!(eval_64, u64, i64);

#[inline(always)]
const fn or_bytes(x: u64) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    // Bit 7 of each byte: the byte is not zero. No carry crosses bytes.
    let nonzero = (((x & LOW) + LOW) | x) & !LOW;
    (nonzero >> 7) * 0xff
}

/// The value of an integer operation, by the rules of [`Code`]; `sub` and the operands are the fields of
/// [`crate::Op`], except that `c` is `aux` for [`Code::ShlAdd`]. `None` if `code` is not an integer operation
/// or not one of type `ty`.
#[inline(always)]
#[must_use]
pub fn eval_int(code: Code, ty: Ty, sub: u8, a: u64, b: u64, c: u64) -> Option<u64> {
    let cond = Cond::from_u8(sub);
    if ty == Ty::I32 {
        return eval_32(code, cond, ty, a, b, c);
    }
    if ty != Ty::I64 {
        return None;
    }
    Some(match code {
        Code::MulHiS => ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64,
        Code::MulHiU => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        // Fits: |a| <= 2^63 and b < 2^64.
        Code::MulHiSU => ((i128::from(a as i64) * i128::from(b)) >> 64) as u64,
        Code::Select => {
            if c != 0 {
                a
            } else {
                b
            }
        }
        Code::Sext8 => extend(Ty::I8, true, a),
        Code::Sext16 => extend(Ty::I16, true, a),
        Code::Sext32 => extend(Ty::I32, true, a),
        Code::Zext8 => extend(Ty::I8, false, a),
        Code::Zext16 => extend(Ty::I16, false, a),
        Code::Zext32 => extend(Ty::I32, false, a),
        _ => return eval_64(code, cond, ty, a, b, c),
    })
}

/// What an atomic memory operation of integer type `ty` leaves in memory: `op(old, operand)`, zero-extended.
#[inline]
#[must_use]
pub fn eval_amo(op: AmoOp, ty: Ty, old: u64, operand: u64) -> u64 {
    let signed = |v| extend(ty, true, v) as i64;
    let unsigned = |v| extend(ty, false, v);
    let r = match op {
        AmoOp::Swap => operand,
        AmoOp::Add => old.wrapping_add(operand),
        AmoOp::And => old & operand,
        AmoOp::Or => old | operand,
        AmoOp::Xor => old ^ operand,
        AmoOp::MinS => signed(old).min(signed(operand)) as u64,
        AmoOp::MaxS => signed(old).max(signed(operand)) as u64,
        AmoOp::MinU => unsigned(old).min(unsigned(operand)),
        AmoOp::MaxU => unsigned(old).max(unsigned(operand)),
    };
    unsigned(r)
}

impl Lane {
    /// Bits of a lane.
    #[must_use]
    pub const fn bits(self) -> u32 {
        8 << self as u32
    }

    /// Lanes in a vector of 128 bits.
    #[must_use]
    pub const fn count(self) -> u32 {
        128 / self.bits()
    }

    const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    const fn signed(self, v: u64) -> i64 {
        let n = 64 - self.bits();
        ((v << n) as i64) >> n
    }
}

/// `VecOp(a, b)` lane by lane. A vector is its low and its high half; comparisons set all bits of a lane.
#[must_use]
pub fn eval_vec(op: VecOp, lane: Lane, a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    let mut out = [0; 2];
    for i in 0..lane.count() {
        let (x, y) = (vec_extract(lane, i, a), vec_extract(lane, i, b));
        let (sx, sy) = (lane.signed(x), lane.signed(y));
        let all = |v: bool| if v { u64::MAX } else { 0 };
        let r = match op {
            VecOp::And => x & y,
            VecOp::Or => x | y,
            VecOp::Xor => x ^ y,
            VecOp::AndNot => x & !y,
            VecOp::Add => x.wrapping_add(y),
            VecOp::Sub => x.wrapping_sub(y),
            VecOp::Mul => x.wrapping_mul(y),
            VecOp::CmpEq => all(x == y),
            VecOp::CmpGtS => all(sx > sy),
            VecOp::MinS => sx.min(sy) as u64,
            VecOp::MinU => x.min(y),
            VecOp::MaxS => sx.max(sy) as u64,
            VecOp::MaxU => x.max(y),
        };
        out = vec_insert(lane, i, out, r);
    }
    out
}

/// `value` in every lane.
#[must_use]
pub fn vec_splat(lane: Lane, value: u64) -> [u64; 2] {
    // A one in each lane, times the value.
    let half = (u64::MAX / lane.mask()).wrapping_mul(value & lane.mask());
    [half, half]
}

/// Lane `index` (taken modulo the lanes there are), zero-extended.
#[must_use]
pub fn vec_extract(lane: Lane, index: u32, v: [u64; 2]) -> u64 {
    let bit = (index % lane.count()) * lane.bits();
    (v[(bit / 64) as usize] >> (bit % 64)) & lane.mask()
}

/// `v` with lane `index` (taken modulo the lanes there are) replaced by `value`.
#[must_use]
pub fn vec_insert(lane: Lane, index: u32, mut v: [u64; 2], value: u64) -> [u64; 2] {
    let bit = (index % lane.count()) * lane.bits();
    let half = &mut v[(bit / 64) as usize];
    *half = (*half & !(lane.mask() << (bit % 64))) | ((value & lane.mask()) << (bit % 64));
    v
}
