//! Floating point instructions against the host's arithmetic, and their flags.

mod common;

use common::{Hart, Stop};
use plinth_isa_riscv::generate::{Rng, by_name, encode};

const BASE: u64 = 0x8000_0000;
const NAN_D: u64 = 0x7ff8_0000_0000_0000;
const NAN_S: u64 = 0xffff_ffff_7fc0_0000;
const NAN_H: u64 = 0xffff_ffff_ffff_7e00;
const NX: u8 = 1;
const UF: u8 = 2;
const OF: u8 = 4;
const DZ: u8 = 8;
const NV: u8 = 16;

fn word(name: &str, rd: u8, rs1: u8, rs2: u8) -> u32 {
    encode(by_name(name).unwrap(), rd, rs1, rs2, 0).unwrap_or_else(|| panic!("{name}"))
}

fn boxed(v: f32) -> u64 {
    u64::from(v.to_bits()) | 0xffff_ffff_0000_0000
}

/// Runs one instruction with f11, f12, f13 and x11 set; returns f10, x10 and the flags.
fn one(word: u32, f: [u64; 3], x: u64) -> (u64, u64, u8) {
    let mut memory = vec![0; 0x100];
    memory[..4].copy_from_slice(&word.to_le_bytes());
    let mut h = Hart::new(BASE, memory);
    for (r, value) in (11..).zip(f) {
        h.set_f(r, value);
    }
    h.set_x(11, x);
    assert_eq!((h.run(1), h.pc), (Stop::Exception(2, 0), BASE + 4));
    (h.f(10), h.x(10), h.fp_flags)
}

fn doubles() -> Vec<f64> {
    let mut rng = Rng::new(4);
    let mut out = vec![
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.1,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        2_147_483_647.5,
        -9.3e18,
        1e300,
    ];
    out.extend(
        (0..20).map(|_| f64::from_bits(rng.next() & 0x800f_ffff_ffff_ffff | (1000 + rng.next() % 50) << 52)),
    );
    out
}

/// The bits of a result, NaNs being the default one.
fn bits_d(v: f64) -> u64 {
    // By its bits: the compiler may drop a choice between NaNs that is made by `is_nan`.
    let bits = v.to_bits();
    if bits & (u64::MAX >> 1) > 0x7ff0 << 48 { NAN_D } else { bits }
}

fn bits_s(v: f32) -> u64 {
    if v.to_bits() & 0x7fff_ffff > 0x7f80_0000 { NAN_S } else { boxed(v) }
}

#[test]
fn arithmetic_has_the_hosts_results() {
    for a in doubles() {
        for b in doubles() {
            let (sa, sb) = (a as f32, b as f32);
            let d: [(&str, f64); 4] =
                [("fadd.d", a + b), ("fsub.d", a - b), ("fmul.d", a * b), ("fdiv.d", a / b)];
            let s: [(&str, f32); 4] =
                [("fadd.s", sa + sb), ("fsub.s", sa - sb), ("fmul.s", sa * sb), ("fdiv.s", sa / sb)];
            for (name, expected) in d {
                let (f, ..) = one(word(name, 10, 11, 12), [a.to_bits(), b.to_bits(), 0], 0);
                assert_eq!(f, bits_d(expected), "{name} {a} {b}");
            }
            for (name, expected) in s {
                let (f, ..) = one(word(name, 10, 11, 12), [boxed(sa), boxed(sb), 0], 0);
                assert_eq!(f, bits_s(expected), "{name} {sa} {sb}");
            }
            for c in [0.0, -3.25, f64::INFINITY] {
                let f3 = [a.to_bits(), b.to_bits(), c.to_bits()];
                let rs3 = 13 << 27;
                assert_eq!(one(word("fmadd.d", 10, 11, 12) | rs3, f3, 0).0, bits_d(a.mul_add(b, c)));
                assert_eq!(one(word("fmsub.d", 10, 11, 12) | rs3, f3, 0).0, bits_d(a.mul_add(b, -c)));
                assert_eq!(one(word("fnmsub.d", 10, 11, 12) | rs3, f3, 0).0, bits_d((-a).mul_add(b, c)));
                assert_eq!(one(word("fnmadd.d", 10, 11, 12) | rs3, f3, 0).0, bits_d((-a).mul_add(b, -c)));
            }
            for (name, expected) in [("feq.d", a == b), ("flt.d", a < b), ("fle.d", a <= b)] {
                let (_, x, flags) = one(word(name, 10, 11, 12), [a.to_bits(), b.to_bits(), 0], 0);
                let quiet = name == "feq.d" || !(a.is_nan() || b.is_nan());
                assert_eq!((x, flags), (u64::from(expected), if quiet { 0 } else { NV }), "{name} {a} {b}");
            }
            for (name, expected) in [("fltq.d", a < b), ("fleq.d", a <= b)] {
                let (_, x, flags) = one(word(name, 10, 11, 12), [a.to_bits(), b.to_bits(), 0], 0);
                assert_eq!((x, flags), (u64::from(expected), 0), "{name} {a} {b}");
            }
        }
        assert_eq!(one(word("fsqrt.d", 10, 11, 0), [a.to_bits(), 0, 0], 0).0, bits_d(a.sqrt()));
        assert_eq!(one(word("fcvt.s.d", 10, 11, 0), [a.to_bits(), 0, 0], 0).0, bits_s(a as f32));
        let single = a as f32;
        assert_eq!(one(word("fcvt.d.s", 10, 11, 0), [boxed(single), 0, 0], 0).0, bits_d(f64::from(single)));
    }
}

#[test]
fn flags_accumulate() {
    let d = f64::to_bits;
    for (name, a, b, flags) in [
        ("fadd.d", 1.0, 1.0, 0),
        ("fadd.d", 1.0, 1e-30, NX),
        ("fadd.d", f64::INFINITY, f64::NEG_INFINITY, NV),
        ("fdiv.d", 1.0, 0.0, DZ),
        ("fdiv.d", 0.0, 0.0, NV),
        ("fmul.d", f64::MAX, 2.0, OF | NX),
        ("fmul.d", f64::MIN_POSITIVE, 0.3, UF | NX),
        ("fmin.d", f64::NAN, 1.0, 0),
    ] {
        assert_eq!(one(word(name, 10, 11, 12), [d(a), d(b), 0], 0).2, flags, "{name} {a} {b}");
    }
    let signalling = 0x7ff0_0000_0000_0001;
    assert_eq!(one(word("fmin.d", 10, 11, 12), [signalling, d(1.0), 0], 0), (d(1.0), 0, NV));
    assert_eq!(one(word("fminm.d", 10, 11, 12), [NAN_D, d(1.0), 0], 0), (NAN_D, 0, 0));
    assert_eq!(one(word("fmax.d", 10, 11, 12), [d(-0.0), d(0.0), 0], 0), (0, 0, 0));
    assert_eq!(one(word("fmin.d", 10, 11, 12), [d(0.0), d(-0.0), 0], 0), (d(-0.0), 0, 0));
    assert_eq!(one(word("feq.d", 10, 11, 12), [signalling, d(1.0), 0], 0), (0, 0, NV));
}

#[test]
fn single_and_half_precision_need_boxes() {
    let one_s = boxed(1.0);
    // Without its box a single is the default NaN.
    assert_eq!(one(word("fadd.s", 10, 11, 12), [0x3f80_0000, one_s, 0], 0).0, NAN_S);
    assert_eq!(one(word("fsgnj.s", 10, 11, 12), [0x3f80_0000, one_s, 0], 0).0, NAN_S);
    assert_eq!(one(word("fsgnjn.s", 10, 11, 11), [one_s, 0, 0], 0).0, boxed(-1.0));
    assert_eq!(one(word("fsgnjx.s", 10, 11, 12), [boxed(-2.0), boxed(-1.0), 0], 0).0, boxed(2.0));
    assert_eq!(
        one(word("fsgnj.d", 10, 11, 12), [2f64.to_bits(), (-1f64).to_bits(), 0], 0).0,
        (-2f64).to_bits()
    );
    assert_eq!(one(word("fsgnjx.d", 10, 11, 11), [(-2f64).to_bits(), 0, 0], 0).0, 2f64.to_bits());
    // Moves do not look at the box.
    assert_eq!(one(word("fmv.x.w", 10, 11, 0), [0x1234_5678_8765_4321, 0, 0], 0).1, 0xffff_ffff_8765_4321);
    assert_eq!(one(word("fmv.x.h", 10, 11, 0), [0x8765, 0, 0], 0).1, 0xffff_ffff_ffff_8765);
    assert_eq!(one(word("fmv.w.x", 10, 11, 0), [0; 3], 0x1_2345_6789).0, 0xffff_ffff_2345_6789);
    assert_eq!(one(word("fmv.h.x", 10, 11, 0), [0; 3], 0x1_2345).0, 0xffff_ffff_ffff_2345);
    assert_eq!(one(word("fmv.x.d", 10, 11, 0), [77, 0, 0], 0).1, 77);
    let half = |bits: u64| bits | 0xffff_ffff_ffff_0000;
    assert_eq!(one(word("fadd.h", 10, 11, 12), [half(0x3c00), half(0x4000), 0], 0).0, half(0x4200));
    assert_eq!(one(word("fadd.h", 10, 11, 12), [0x3c00, half(0x4000), 0], 0).0, NAN_H);
    assert_eq!(one(word("fcvt.s.h", 10, 11, 0), [half(0x3e00), 0, 0], 0).0, boxed(1.5));
    assert_eq!(one(word("fcvt.h.s", 10, 11, 0), [boxed(65520.0), 0, 0], 0), (half(0x7c00), 0, OF | NX));
    assert_eq!(one(word("fcvt.h.d", 10, 11, 0), [0.5f64.to_bits(), 0, 0], 0).0, half(0x3800));
}

#[test]
fn conversions_saturate() {
    let d = f64::to_bits;
    let rtz = 1 << 12;
    for a in doubles() {
        let f = [d(a), 0, 0];
        // The host saturates as RISC-V does, but for NaN.
        let nan = a.is_nan();
        let w = if nan { i32::MAX } else { a as i32 };
        let wu = if nan { u32::MAX } else { a as u32 };
        let l = if nan { i64::MAX } else { a as i64 };
        let lu = if nan { u64::MAX } else { a as u64 };
        assert_eq!(one(word("fcvt.w.d", 10, 11, 0) | rtz, f, 0).1, i64::from(w) as u64, "{a}");
        assert_eq!(one(word("fcvt.wu.d", 10, 11, 0) | rtz, f, 0).1, i64::from(wu as i32) as u64, "{a}");
        assert_eq!(one(word("fcvt.l.d", 10, 11, 0) | rtz, f, 0).1, l as u64, "{a}");
        assert_eq!(one(word("fcvt.lu.d", 10, 11, 0) | rtz, f, 0).1, lu, "{a}");
    }
    assert_eq!(one(word("fcvt.wu.d", 10, 11, 0) | rtz, [d(-1.0), 0, 0], 0), (0, 0, NV));
    assert_eq!(one(word("fcvt.wu.d", 10, 11, 0) | rtz, [d(-0.5), 0, 0], 0), (0, 0, NX));
    assert_eq!(one(word("fcvt.w.d", 10, 11, 0) | 3 << 12, [d(1.2), 0, 0], 0), (0, 2, NX));
    for x in [0, 1, u64::MAX, 0x8000_0000, 0x7fff_ffff_ffff_ffff, 0xffff_ffff_8000_0001] {
        assert_eq!(one(word("fcvt.d.w", 10, 11, 0), [0; 3], x).0, d(f64::from(x as i32)));
        assert_eq!(one(word("fcvt.d.wu", 10, 11, 0), [0; 3], x).0, d(f64::from(x as u32)));
        assert_eq!(one(word("fcvt.d.l", 10, 11, 0), [0; 3], x).0, d(x as i64 as f64));
        assert_eq!(one(word("fcvt.d.lu", 10, 11, 0), [0; 3], x).0, d(x as f64));
        assert_eq!(one(word("fcvt.s.l", 10, 11, 0), [0; 3], x).0, boxed(x as i64 as f32));
        assert_eq!(one(word("fcvt.s.lu", 10, 11, 0), [0; 3], x).0, boxed(x as f32));
    }
    assert_eq!(one(word("fcvtmod.w.d", 10, 11, 0), [d(4_294_967_298.5), 0, 0], 0), (0, 2, NV));
}

type Rounding = (u32, fn(f64) -> f64);

#[test]
fn rounding_to_integral_values() {
    let modes: [Rounding; 5] =
        [(0, f64::round_ties_even), (1, f64::trunc), (2, f64::floor), (3, f64::ceil), (4, f64::round)];
    for a in doubles().into_iter().chain([0.5, 1.5, -2.5, 1e17, -0.2, 4_503_599_627_370_495.5]) {
        for (rm, round) in modes {
            let expected = round(a);
            let inexact = if expected == a || a.is_nan() { 0 } else { NX };
            let f = [a.to_bits(), 0, 0];
            let (value, _, flags) = one(word("fround.d", 10, 11, 0) | rm << 12, f, 0);
            assert_eq!((value, flags), (bits_d(expected), 0), "{a} {rm}");
            let (value, _, flags) = one(word("froundnx.d", 10, 11, 0) | rm << 12, f, 0);
            assert_eq!((value, flags), (bits_d(expected), inexact), "{a} {rm}");
            let single = a as f32;
            let expected = round(f64::from(single)) as f32;
            let (value, _, flags) = one(word("fround.s", 10, 11, 0) | rm << 12, [boxed(single), 0, 0], 0);
            assert_eq!((value, flags), (bits_s(expected), 0), "{single} {rm}");
        }
    }
}

#[test]
fn constants_and_classes() {
    let fli = |name: &str, n: u32| one(word(name, 10, 0, 0) | n << 15, [0; 3], 0).0;
    for (n, value) in [(0, -1.0), (2, 1.52587890625e-5), (9, 0.3125), (16, 1.0), (22, 3.0), (29, 65536.0)] {
        assert_eq!(fli("fli.d", n), f64::to_bits(value));
        assert_eq!(fli("fli.s", n), boxed(value as f32));
    }
    assert_eq!((fli("fli.d", 1), fli("fli.s", 1)), (f64::MIN_POSITIVE.to_bits(), boxed(f32::MIN_POSITIVE)));
    assert_eq!((fli("fli.d", 31), fli("fli.s", 31), fli("fli.h", 31)), (NAN_D, NAN_S, NAN_H));
    let half = |bits: u64| bits | 0xffff_ffff_ffff_0000;
    for (n, bits) in [
        (0, 0xbc00),
        (1, 0x400),
        (2, 0x100),
        (3, 0x200),
        (4, 0x1c00),
        (9, 0x3500),
        (28, 0x7800),
        (29, 0x7c00),
        (30, 0x7c00),
    ] {
        assert_eq!(fli("fli.h", n), half(bits), "{n}");
    }
    for (value, class) in [
        (f64::NEG_INFINITY, 0),
        (-1.0, 1),
        (-0.0, 3),
        (0.0, 4),
        (5e-324, 5),
        (f64::INFINITY, 7),
        (f64::NAN, 9),
    ] {
        assert_eq!(one(word("fclass.d", 10, 11, 0), [value.to_bits(), 0, 0], 0).1, 1 << class);
    }
    assert_eq!(one(word("fclass.s", 10, 11, 0), [1f64.to_bits(), 0, 0], 0).1, 1 << 9);
    assert_eq!(one(word("fclass.h", 10, 11, 0), [half(0x8001), 0, 0], 0).1, 1 << 2);
}

#[test]
fn loads_and_stores_move_bits() {
    let run = |words: &[u32]| {
        let mut memory = vec![0; 0x200];
        for (at, w) in words.iter().enumerate() {
            memory[at * 4..at * 4 + 4].copy_from_slice(&w.to_le_bytes());
        }
        memory[0x100..0x108].copy_from_slice(&0x1122_3344_5566_7788u64.to_le_bytes());
        let mut h = Hart::new(BASE, memory);
        h.set_x(11, BASE + 0x100);
        h.set_f(12, 0x8877_6655_4433_2211);
        assert_eq!(h.run(1), Stop::Exception(2, 0));
        (h.f(10), u64::from_le_bytes(h.bytes(BASE + 0x100, 8).unwrap().try_into().unwrap()))
    };
    assert_eq!(run(&[word("fld", 10, 11, 0)]).0, 0x1122_3344_5566_7788);
    assert_eq!(run(&[word("flw", 10, 11, 0)]).0, 0xffff_ffff_5566_7788);
    assert_eq!(run(&[word("flh", 10, 11, 0)]).0, 0xffff_ffff_ffff_7788);
    assert_eq!(run(&[word("fsd", 0, 11, 12)]).1, 0x8877_6655_4433_2211);
    assert_eq!(run(&[word("fsw", 0, 11, 12)]).1, 0x1122_3344_4433_2211);
    assert_eq!(run(&[word("fsh", 0, 11, 12)]).1, 0x1122_3344_5566_2211);
}
