//! Floating point: F, D, Zfh, Zfa.

use plinth_ir::{Code, FpCond, Ty, flags};

use super::format::{
    F_TO_X, F_TO_X_EXACT, F2, F3, F3_EXACT, F4, FCMP, FLI, FLOAD, FSTORE, X_TO_F, X_TO_F_EXACT,
};
use super::{Ext, Row, Sem, SignOp, row};

/// The rows that every width has. `$fmt` is the width's number in bits 26 and 25, `$w` its letter in bits
/// 12 to 14 of a load.
macro_rules! width {
    ($ext:ident, $s:literal, $ty:expr, $fmt:literal, $load:literal) => {
        [
            row(concat!("fl", $load), Ext::$ext, 0x07 | WIDTH_OF_LOAD[$fmt] << 12, &FLOAD, Sem::FLoad($ty)),
            row(concat!("fs", $load), Ext::$ext, 0x27 | WIDTH_OF_LOAD[$fmt] << 12, &FSTORE, Sem::FStore($ty)),
            row(concat!("fadd.", $s), Ext::$ext, fp($fmt, 0x00, 0), &F3, Sem::FArith(Code::FAdd, $ty)),
            row(concat!("fsub.", $s), Ext::$ext, fp($fmt, 0x01, 0), &F3, Sem::FArith(Code::FSub, $ty)),
            row(concat!("fmul.", $s), Ext::$ext, fp($fmt, 0x02, 0), &F3, Sem::FArith(Code::FMul, $ty)),
            row(concat!("fdiv.", $s), Ext::$ext, fp($fmt, 0x03, 0), &F3, Sem::FArith(Code::FDiv, $ty)),
            row(concat!("fsqrt.", $s), Ext::$ext, fp($fmt, 0x0b, 0), &F2, Sem::FSqrt($ty)),
            row(concat!("fmadd.", $s), Ext::$ext, 0x43 | $fmt << 25, &F4, Sem::FMulAdd(0, $ty)),
            row(
                concat!("fmsub.", $s),
                Ext::$ext,
                0x47 | $fmt << 25,
                &F4,
                Sem::FMulAdd(flags::NEG_ADDEND, $ty),
            ),
            row(
                concat!("fnmsub.", $s),
                Ext::$ext,
                0x4b | $fmt << 25,
                &F4,
                Sem::FMulAdd(flags::NEG_PRODUCT, $ty),
            ),
            row(
                concat!("fnmadd.", $s),
                Ext::$ext,
                0x4f | $fmt << 25,
                &F4,
                Sem::FMulAdd(flags::NEG_PRODUCT | flags::NEG_ADDEND, $ty),
            ),
            row(
                concat!("fsgnj.", $s),
                Ext::$ext,
                fp3($fmt, 0x04, 0),
                &F3_EXACT,
                Sem::FSign(SignOp::Copy, $ty),
            ),
            row(
                concat!("fsgnjn.", $s),
                Ext::$ext,
                fp3($fmt, 0x04, 1),
                &F3_EXACT,
                Sem::FSign(SignOp::Negate, $ty),
            ),
            row(
                concat!("fsgnjx.", $s),
                Ext::$ext,
                fp3($fmt, 0x04, 2),
                &F3_EXACT,
                Sem::FSign(SignOp::Xor, $ty),
            ),
            row(concat!("fmin.", $s), Ext::$ext, fp3($fmt, 0x05, 0), &F3_EXACT, Sem::FExact(Code::FMin, $ty)),
            row(concat!("fmax.", $s), Ext::$ext, fp3($fmt, 0x05, 1), &F3_EXACT, Sem::FExact(Code::FMax, $ty)),
            row(concat!("feq.", $s), Ext::$ext, fp3($fmt, 0x14, 2), &FCMP, Sem::FCompare(FpCond::Eq, $ty)),
            row(concat!("flt.", $s), Ext::$ext, fp3($fmt, 0x14, 1), &FCMP, Sem::FCompare(FpCond::Lt, $ty)),
            row(concat!("fle.", $s), Ext::$ext, fp3($fmt, 0x14, 0), &FCMP, Sem::FCompare(FpCond::Le, $ty)),
            row(concat!("fclass.", $s), Ext::$ext, fp3($fmt, 0x1c, 1), &F_TO_X_EXACT, Sem::FClass($ty)),
            row(
                concat!("fcvt.w.", $s),
                Ext::$ext,
                fp($fmt, 0x18, 0),
                &F_TO_X,
                Sem::FToInt(Ty::I32, true, $ty),
            ),
            row(
                concat!("fcvt.wu.", $s),
                Ext::$ext,
                fp($fmt, 0x18, 1),
                &F_TO_X,
                Sem::FToInt(Ty::I32, false, $ty),
            ),
            row(
                concat!("fcvt.l.", $s),
                Ext::$ext,
                fp($fmt, 0x18, 2),
                &F_TO_X,
                Sem::FToInt(Ty::I64, true, $ty),
            ),
            row(
                concat!("fcvt.lu.", $s),
                Ext::$ext,
                fp($fmt, 0x18, 3),
                &F_TO_X,
                Sem::FToInt(Ty::I64, false, $ty),
            ),
            row(
                concat!("fcvt.", $s, ".w"),
                Ext::$ext,
                fp($fmt, 0x1a, 0),
                &X_TO_F,
                Sem::IntToF($ty, Ty::I32, true),
            ),
            row(
                concat!("fcvt.", $s, ".wu"),
                Ext::$ext,
                fp($fmt, 0x1a, 1),
                &X_TO_F,
                Sem::IntToF($ty, Ty::I32, false),
            ),
            row(
                concat!("fcvt.", $s, ".l"),
                Ext::$ext,
                fp($fmt, 0x1a, 2),
                &X_TO_F,
                Sem::IntToF($ty, Ty::I64, true),
            ),
            row(
                concat!("fcvt.", $s, ".lu"),
                Ext::$ext,
                fp($fmt, 0x1a, 3),
                &X_TO_F,
                Sem::IntToF($ty, Ty::I64, false),
            ),
            row(concat!("fmv.x.", $load), Ext::$ext, fp3($fmt, 0x1c, 0), &F_TO_X_EXACT, Sem::FMoveToInt($ty)),
            row(
                concat!("fmv.", $load, ".x"),
                Ext::$ext,
                fp3($fmt, 0x1e, 0),
                &X_TO_F_EXACT,
                Sem::FMoveFromInt($ty),
            ),
            row(concat!("fli.", $s), Ext::Zfa, fp3($fmt, 0x1e, 0) | 1 << 20, &FLI, Sem::FConst($ty)),
            row(
                concat!("fminm.", $s),
                Ext::Zfa,
                fp3($fmt, 0x05, 2),
                &F3_EXACT,
                Sem::FExact(Code::FMinNan, $ty),
            ),
            row(
                concat!("fmaxm.", $s),
                Ext::Zfa,
                fp3($fmt, 0x05, 3),
                &F3_EXACT,
                Sem::FExact(Code::FMaxNan, $ty),
            ),
            row(concat!("fround.", $s), Ext::Zfa, fp($fmt, 0x08, 4), &F2, Sem::FRound($ty, false)),
            row(concat!("froundnx.", $s), Ext::Zfa, fp($fmt, 0x08, 5), &F2, Sem::FRound($ty, true)),
            row(
                concat!("fleq.", $s),
                Ext::Zfa,
                fp3($fmt, 0x14, 4),
                &FCMP,
                Sem::FCompare(FpCond::LeQuiet, $ty),
            ),
            row(
                concat!("fltq.", $s),
                Ext::Zfa,
                fp3($fmt, 0x14, 5),
                &FCMP,
                Sem::FCompare(FpCond::LtQuiet, $ty),
            ),
        ]
    };
}

/// `funct3` of loads and stores by format number.
const WIDTH_OF_LOAD: [u32; 3] = [2, 3, 1];

/// An OP-FP instruction: format, `funct5`, and the number in the place of rs2 where that selects.
const fn fp(fmt: u32, funct5: u32, rs2: u32) -> u32 {
    0x53 | fmt << 25 | funct5 << 27 | rs2 << 20
}

/// An OP-FP instruction with `funct3` in the place of the rounding mode.
const fn fp3(fmt: u32, funct5: u32, funct3: u32) -> u32 {
    0x53 | fmt << 25 | funct5 << 27 | funct3 << 12
}

const SINGLE: [Row; 37] = width!(F, "s", Ty::F32, 0, "w");
const DOUBLE: [Row; 37] = width!(D, "d", Ty::F64, 1, "d");
const HALF: [Row; 37] = width!(Zfh, "h", Ty::F16, 2, "h");

const OTHERS: [Row; 7] = [
    row("fcvt.s.d", Ext::D, fp(0, 0x08, 1), &F2, Sem::FToF(Ty::F32, Ty::F64)),
    row("fcvt.d.s", Ext::D, fp(1, 0x08, 0), &F2, Sem::FToF(Ty::F64, Ty::F32)),
    row("fcvt.s.h", Ext::Zfh, fp(0, 0x08, 2), &F2, Sem::FToF(Ty::F32, Ty::F16)),
    row("fcvt.h.s", Ext::Zfh, fp(2, 0x08, 0), &F2, Sem::FToF(Ty::F16, Ty::F32)),
    row("fcvt.d.h", Ext::Zfh, fp(1, 0x08, 2), &F2, Sem::FToF(Ty::F64, Ty::F16)),
    row("fcvt.h.d", Ext::Zfh, fp(2, 0x08, 1), &F2, Sem::FToF(Ty::F16, Ty::F64)),
    row("fcvtmod.w.d", Ext::Zfa, fp3(1, 0x18, 1) | 8 << 20, &F_TO_X_EXACT, Sem::FModular),
];

const COUNT: usize = 3 * SINGLE.len() + OTHERS.len();

const fn all() -> [Row; COUNT] {
    let mut out = [OTHERS[0]; COUNT];
    let groups: [&[Row]; 4] = [&SINGLE, &DOUBLE, &HALF, &OTHERS];
    let (mut group, mut n) = (0, 0);
    while group < groups.len() {
        let mut i = 0;
        while i < groups[group].len() {
            out[n] = groups[group][i];
            n += 1;
            i += 1;
        }
        group += 1;
    }
    out
}

pub(super) static ROWS: &[Row] = &all();
