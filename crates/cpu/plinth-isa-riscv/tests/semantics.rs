//! What each instruction computes, against expressions in Rust; on the reference interpreter.

mod common;

use common::{Hart, Stop, USER};
use plinth_isa_riscv::generate::{Rng, by_name, encode};
use plinth_isa_riscv::helper::HelperId;
use plinth_isa_riscv::mode::RiscvMode;
use plinth_isa_riscv::slots;
use plinth_isa_riscv::table::format::Reg;
use plinth_isa_riscv::table::{Ext, Sem, rows};

const BASE: u64 = 0x8000_0000;
/// Where data is.
const DATA: u64 = BASE + 0x1000;

const EDGES: [u64; 22] = [
    0,
    1,
    2,
    3,
    31,
    32,
    33,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_8000_0000,
    u64::MAX,
];

/// Edge cases and some of everything else.
fn values() -> Vec<u64> {
    let mut rng = Rng::new(3);
    EDGES.into_iter().chain((0..8).map(|_| rng.next())).collect()
}

fn encoded(name: &str, rd: u8, rs1: u8, rs2: u8, imm: i32) -> u32 {
    let row = by_name(name).unwrap_or_else(|| panic!("no {name}"));
    encode(row, rd, rs1, rs2, imm).unwrap_or_else(|| panic!("{name} cannot be encoded"))
}

/// A hart with `words` as code, followed by an illegal instruction.
fn hart(words: &[u32]) -> Hart {
    let mut memory = vec![0; 0x3000];
    let mut at = 0;
    for word in words {
        let len = if word & 3 == 3 { 4 } else { 2 };
        memory[at..at + len].copy_from_slice(&word.to_le_bytes()[..len]);
        at += len;
    }
    Hart::new(BASE, memory)
}

/// Runs the code up to the illegal instruction behind it.
fn finish(h: &mut Hart, words: &[u32]) {
    let len: u64 = words.iter().map(|w| if w & 3 == 3 { 4 } else { 2 }).sum();
    assert_eq!(h.run(10_000), Stop::Exception(2, 0), "at {:#x}", h.pc);
    assert_eq!(h.pc, BASE + len);
}

/// Checks `name rd, rs1, rs2` for all pairs of values and some ways for registers to be the same.
fn binary(name: &str, expected: impl Fn(u64, u64) -> u64) {
    let three = encoded(name, 10, 11, 12, 0);
    let same = encoded(name, 11, 11, 11, 0);
    let (zero1, zero2) = (encoded(name, 13, 0, 12, 0), encoded(name, 14, 11, 0, 0));
    for a in values() {
        for b in values() {
            let mut h = hart(&[three]);
            h.set_xs(&[(11, a), (12, b)]);
            finish(&mut h, &[three]);
            assert_eq!(h.x(10), expected(a, b), "{name} {a:#x} {b:#x}");
            assert_eq!((h.x(11), h.x(12)), (a, b));
        }
        let words = [zero1, zero2, same];
        let mut h = hart(&words);
        h.set_xs(&[(11, a), (12, a)]);
        finish(&mut h, &words);
        assert_eq!(h.x(13), expected(0, a), "{name} x0 {a:#x}");
        assert_eq!(h.x(14), expected(a, 0), "{name} {a:#x} x0");
        assert_eq!(h.x(11), expected(a, a), "{name} {a:#x} {a:#x}");
    }
}

/// Checks `name rd, rs1, imm` on variable and on known operands.
fn immediate(name: &str, imms: &[i32], expected: impl Fn(u64, i32) -> u64) {
    for &imm in imms {
        let word = encoded(name, 10, 11, 0, imm);
        let on_zero = encoded(name, 12, 0, 0, imm);
        let li = encoded("addi", 13, 0, 0, -1234);
        let on_known = encoded(name, 13, 13, 0, imm);
        for a in values() {
            let words = [word, on_zero, li, on_known];
            let mut h = hart(&words);
            h.set_x(11, a);
            finish(&mut h, &words);
            assert_eq!(h.x(10), expected(a, imm), "{name} {a:#x} {imm}");
            assert_eq!(h.x(12), expected(0, imm), "{name} x0 {imm}");
            assert_eq!(h.x(13), expected(-1234i64 as u64, imm), "{name} -1234 {imm}");
        }
    }
}

fn unary(name: &str, expected: impl Fn(u64) -> u64) {
    let word = encoded(name, 10, 11, 0, 0);
    for a in values() {
        let mut h = hart(&[word]);
        h.set_x(11, a);
        finish(&mut h, &[word]);
        assert_eq!(h.x(10), expected(a), "{name} {a:#x}");
    }
}

fn sext(v: u32) -> u64 {
    i64::from(v as i32) as u64
}

#[test]
fn base_arithmetic() {
    binary("add", |a, b| a.wrapping_add(b));
    binary("sub", |a, b| a.wrapping_sub(b));
    binary("sll", |a, b| a << (b & 63));
    binary("srl", |a, b| a >> (b & 63));
    binary("sra", |a, b| (a as i64 >> (b & 63)) as u64);
    binary("slt", |a, b| u64::from((a as i64) < b as i64));
    binary("sltu", |a, b| u64::from(a < b));
    binary("and", |a, b| a & b);
    binary("or", |a, b| a | b);
    binary("xor", |a, b| a ^ b);
    binary("addw", |a, b| sext((a as u32).wrapping_add(b as u32)));
    binary("subw", |a, b| sext((a as u32).wrapping_sub(b as u32)));
    binary("sllw", |a, b| sext((a as u32) << (b & 31)));
    binary("srlw", |a, b| sext(a as u32 >> (b & 31)));
    binary("sraw", |a, b| (i64::from(a as i32 >> (b & 31))) as u64);
    let imms = [0, 1, -1, 5, 2047, -2048];
    let s = |i: i32| i64::from(i) as u64;
    immediate("addi", &imms, |a, i| a.wrapping_add(s(i)));
    immediate("addiw", &imms, |a, i| sext((a as u32).wrapping_add(i as u32)));
    immediate("slti", &imms, |a, i| u64::from((a as i64) < i64::from(i)));
    immediate("sltiu", &imms, |a, i| u64::from(a < s(i)));
    immediate("andi", &imms, |a, i| a & s(i));
    immediate("ori", &[0, 5, -1, 2047], |a, i| a | s(i));
    immediate("xori", &imms, |a, i| a ^ s(i));
    let shifts = [0, 1, 31, 32, 63];
    immediate("slli", &shifts, |a, i| a << i);
    immediate("srli", &shifts, |a, i| a >> i);
    immediate("srai", &shifts, |a, i| (a as i64 >> i) as u64);
    let shifts = [0, 1, 16, 31];
    immediate("slliw", &shifts, |a, i| sext((a as u32) << i));
    immediate("srliw", &shifts, |a, i| sext(a as u32 >> i));
    immediate("sraiw", &shifts, |a, i| i64::from(a as i32 >> i) as u64);
}

#[test]
fn multiplication_and_division() {
    binary("mul", |a, b| a.wrapping_mul(b));
    binary("mulh", |a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64);
    binary("mulhu", |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    binary("mulhsu", |a, b| ((i128::from(a as i64) * i128::from(b)) >> 64) as u64);
    binary("div", |a, b| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 });
    binary("divu", |a, b| a.checked_div(b).unwrap_or(u64::MAX));
    binary("rem", |a, b| if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 });
    binary("remu", |a, b| a.checked_rem(b).unwrap_or(a));
    binary("mulw", |a, b| sext((a as u32).wrapping_mul(b as u32)));
    binary("divw", |a, b| match b as i32 {
        0 => u64::MAX,
        d => sext((a as i32).wrapping_div(d) as u32),
    });
    binary("divuw", |a, b| sext((a as u32).checked_div(b as u32).unwrap_or(u32::MAX)));
    binary("remw", |a, b| match b as i32 {
        0 => sext(a as u32),
        d => sext((a as i32).wrapping_rem(d) as u32),
    });
    binary("remuw", |a, b| sext((a as u32).checked_rem(b as u32).unwrap_or(a as u32)));
}

#[test]
fn bit_manipulation() {
    for n in 1..=3u32 {
        binary(&format!("sh{n}add"), |a, b| (a << n).wrapping_add(b));
        binary(&format!("sh{n}add.uw"), |a, b| (u64::from(a as u32) << n).wrapping_add(b));
    }
    binary("add.uw", |a, b| u64::from(a as u32).wrapping_add(b));
    immediate("slli.uw", &[0, 1, 32, 63], |a, i| u64::from(a as u32) << i);
    binary("andn", |a, b| a & !b);
    binary("orn", |a, b| a | !b);
    binary("xnor", |a, b| !(a ^ b));
    binary("min", |a, b| (a as i64).min(b as i64) as u64);
    binary("max", |a, b| (a as i64).max(b as i64) as u64);
    binary("minu", u64::min);
    binary("maxu", u64::max);
    binary("rol", |a, b| a.rotate_left((b & 63) as u32));
    binary("ror", |a, b| a.rotate_right((b & 63) as u32));
    binary("rolw", |a, b| sext((a as u32).rotate_left((b & 31) as u32)));
    binary("rorw", |a, b| sext((a as u32).rotate_right((b & 31) as u32)));
    immediate("rori", &[0, 1, 33, 63], |a, i| a.rotate_right(i as u32));
    immediate("roriw", &[0, 1, 31], |a, i| sext((a as u32).rotate_right(i as u32)));
    unary("clz", |a| u64::from(a.leading_zeros()));
    unary("ctz", |a| u64::from(a.trailing_zeros()));
    unary("cpop", |a| u64::from(a.count_ones()));
    unary("clzw", |a| u64::from((a as u32).leading_zeros()));
    unary("ctzw", |a| u64::from((a as u32).trailing_zeros()));
    unary("cpopw", |a| u64::from((a as u32).count_ones()));
    unary("sext.b", |a| a as i8 as u64);
    unary("sext.h", |a| a as i16 as u64);
    unary("zext.h", |a| u64::from(a as u16));
    unary("rev8", u64::swap_bytes);
    unary("orc.b", |a| u64::from_le_bytes(a.to_le_bytes().map(|b| if b == 0 { 0 } else { 0xff })));
    binary("bclr", |a, b| a & !(1 << (b & 63)));
    binary("bset", |a, b| a | 1 << (b & 63));
    binary("binv", |a, b| a ^ 1 << (b & 63));
    binary("bext", |a, b| a >> (b & 63) & 1);
    let bits = [0, 1, 31, 32, 63];
    immediate("bclri", &bits, |a, i| a & !(1 << i));
    immediate("bseti", &bits, |a, i| a | 1 << i);
    immediate("binvi", &bits, |a, i| a ^ 1 << i);
    immediate("bexti", &bits, |a, i| a >> i & 1);
    binary("czero.eqz", |a, b| if b == 0 { 0 } else { a });
    binary("czero.nez", |a, b| if b != 0 { 0 } else { a });
    let carryless = |a: u64, b: u64| {
        (0..64).fold(0u128, |sum, i| if a >> i & 1 != 0 { sum ^ u128::from(b) << i } else { sum })
    };
    binary("clmul", |a, b| carryless(a, b) as u64);
    binary("clmulh", |a, b| (carryless(a, b) >> 64) as u64);
    binary("clmulr", |a, b| (carryless(a, b) >> 63) as u64);
}

#[test]
fn compressed_instructions_compute_as_their_long_forms() {
    let check = |name: &str, imm: i32, uses_rs2: bool, expected: &dyn Fn(u64, u64) -> u64| {
        let row = by_name(name).unwrap();
        let rs2 = if uses_rs2 { 9 } else { 0 };
        let word = encode(row, 8, row.format.rs1.extract(row.bits | 8 << 7 & !row.mask), rs2, imm)
            .or_else(|| encode(row, 8, 8, rs2, imm))
            .or_else(|| encode(row, 8, 0, rs2, imm))
            .unwrap_or_else(|| panic!("{name}"));
        for a in values() {
            for b in [0, 7, u64::MAX] {
                let mut h = hart(&[word]);
                h.set_xs(&[(8, a), (9, b)]);
                finish(&mut h, &[word]);
                assert_eq!(h.x(8), expected(a, b), "{name} {a:#x} {b:#x} {imm}");
            }
        }
    };
    for imm in [1, -1, 31, -32] {
        check("c.addi", imm, false, &|a, _| a.wrapping_add(i64::from(imm) as u64));
        check("c.addiw", imm, false, &|a, _| sext((a as u32).wrapping_add(imm as u32)));
        check("c.andi", imm, false, &|a, _| a & i64::from(imm) as u64);
        check("c.li", imm, false, &|_, _| i64::from(imm) as u64);
        check("c.lui", imm << 12, false, &|_, _| i64::from(imm << 12) as u64);
    }
    for imm in [1, 32, 63] {
        check("c.slli", imm, false, &|a, _| a << imm);
        check("c.srli", imm, false, &|a, _| a >> imm);
        check("c.srai", imm, false, &|a, _| (a as i64 >> imm) as u64);
    }
    check("c.mv", 0, true, &|_, b| b);
    check("c.add", 0, true, &|a, b| a.wrapping_add(b));
    check("c.sub", 0, true, &|a, b| a.wrapping_sub(b));
    check("c.and", 0, true, &|a, b| a & b);
    check("c.or", 0, true, &|a, b| a | b);
    check("c.xor", 0, true, &|a, b| a ^ b);
    check("c.addw", 0, true, &|a, b| sext((a as u32).wrapping_add(b as u32)));
    check("c.subw", 0, true, &|a, b| sext((a as u32).wrapping_sub(b as u32)));
    check("c.mul", 0, true, &|a, b| a.wrapping_mul(b));
    check("c.not", 0, false, &|a, _| !a);
    check("c.zext.b", 0, false, &|a, _| a & 0xff);
    check("c.sext.b", 0, false, &|a, _| a as i8 as u64);
    check("c.zext.h", 0, false, &|a, _| a & 0xffff);
    check("c.sext.h", 0, false, &|a, _| a as i16 as u64);
    check("c.zext.w", 0, false, &|a, _| a & 0xffff_ffff);
    let words = [encoded("c.addi4spn", 8, 2, 0, 1020), encoded("c.addi16sp", 2, 2, 0, -512)];
    let mut h = hart(&words);
    h.set_x(2, 0x1000);
    finish(&mut h, &words);
    assert_eq!((h.x(8), h.x(2)), (0x13fc, 0xe00));
}

#[test]
fn control_flow() {
    for (name, taken) in [
        ("beq", (|a, b| a == b) as fn(u64, u64) -> bool),
        ("bne", |a, b| a != b),
        ("blt", |a, b| (a as i64) < b as i64),
        ("bge", |a, b| a as i64 >= b as i64),
        ("bltu", |a, b| a < b),
        ("bgeu", |a, b| a >= b),
    ] {
        let words = [encoded(name, 0, 10, 11, 8), encoded("addi", 12, 0, 0, 1)];
        for a in values() {
            for b in values() {
                let mut h = hart(&words);
                h.set_xs(&[(10, a), (11, b)]);
                finish(&mut h, &words);
                assert_eq!(h.x(12) == 0, taken(a, b), "{name} {a:#x} {b:#x}");
            }
        }
    }
    // A call, a return, a jump through a register that is the link too, and bit 0 of a target.
    let words = [
        encoded("jal", 1, 0, 0, 12),
        encoded("auipc", 5, 0, 0, 0),
        encoded("jalr", 5, 5, 0, 17), // to the end
        encoded("addi", 10, 0, 0, 7),
        encoded("jalr", 0, 1, 0, 0),
    ];
    let mut h = hart(&words);
    assert_eq!(h.run(100), Stop::Exception(2, 0));
    assert_eq!(h.pc, BASE + 20);
    assert_eq!((h.x(1), h.x(5), h.x(10)), (BASE + 4, BASE + 12, 7));
    let words = [encoded("jalr", 11, 11, 0, -4), encoded("c.nop", 0, 0, 0, 0)];
    let mut h = hart(&words);
    h.set_x(11, BASE + 0x107);
    assert_eq!(h.run(1), Stop::Limit);
    assert_eq!((h.pc, h.x(11)), (BASE + 0x102, BASE + 4));
    for (name, code) in [("ecall", 8), ("ebreak", 3), ("c.ebreak", 3)] {
        let mut h = hart(&[encoded(name, 0, 0, 0, 0)]);
        let value = if code == 3 { BASE } else { 0 };
        assert_eq!((h.run(1), h.pc), (Stop::Exception(code, value), BASE));
    }
    for (name, id) in [("wfi", HelperId::Wfi), ("mret", HelperId::Mret), ("sret", HelperId::Sret)] {
        let word = encoded(name, 0, 0, 0, 0);
        assert_eq!(hart(&[word]).run(1), Stop::Helper(id, [u64::from(word), 0, 0]));
    }
}

#[test]
fn a_straddling_instruction_runs() {
    let mut h = hart(&[]);
    let word = encoded("lui", 10, 0, 0, 0x7_5000);
    h.memory[0xffe..0x1002].copy_from_slice(&word.to_le_bytes());
    h.pc = BASE + 0xffe;
    assert_eq!(h.run(2), Stop::Exception(2, 0));
    assert_eq!((h.pc, h.x(10)), (BASE + 0x1002, 0x7_5000));
}

#[test]
fn loads_and_stores() {
    let pattern = 0x8182_8384_f5f6_f7f8u64;
    for (name, expected) in [
        ("lb", 0xf8u8 as i8 as u64),
        ("lbu", 0xf8),
        ("lh", 0xf7f8u16 as i16 as u64),
        ("lhu", 0xf7f8),
        ("lw", 0xffff_ffff_f5f6_f7f8),
        ("lwu", 0xf5f6_f7f8),
        ("ld", pattern),
    ] {
        for disp in [-2048, -1, 0, 3, 2047] {
            let word = encoded(name, 10, 11, 0, disp);
            let mut h = hart(&[word]);
            let at = DATA + 0x800;
            h.bytes(at, 8).unwrap().copy_from_slice(&pattern.to_le_bytes());
            h.set_x(11, at.wrapping_sub(i64::from(disp) as u64));
            finish(&mut h, &[word]);
            assert_eq!(h.x(10), expected, "{name}");
        }
        // The fault leaves the register.
        let mut h = hart(&[encoded(name, 11, 11, 0, 0)]);
        h.set_x(11, 0x10);
        assert_eq!((h.run(1), h.x(11)), (Stop::Exception(5, 0x10), 0x10));
    }
    for (name, len) in [("sb", 1), ("sh", 2), ("sw", 4), ("sd", 8)] {
        let word = encoded(name, 0, 11, 12, -9);
        let mut h = hart(&[word]);
        h.set_xs(&[(11, DATA + 9 + 3), (12, pattern)]);
        h.bytes(DATA, 16).unwrap().fill(0x11);
        finish(&mut h, &[word]);
        let mut expected = [0x11; 16];
        expected[3..3 + len].copy_from_slice(&pattern.to_le_bytes()[..len]);
        assert_eq!(h.bytes(DATA, 16).unwrap(), expected, "{name}");
        let mut h = hart(&[word]);
        assert_eq!(h.run(1), Stop::Exception(7, -9i64 as u64));
    }
    let word = encoded("cbo.zero", 0, 11, 0, 0);
    let mut h = hart(&[word]);
    h.set_x(11, DATA + 0x47);
    h.bytes(DATA, 256).unwrap().fill(0xaa);
    finish(&mut h, &[word]);
    let zeros: Vec<_> = h.bytes(DATA, 256).unwrap().iter().enumerate().filter(|b| *b.1 == 0).collect();
    assert_eq!((zeros.len(), zeros[0].0), (64, 64));
}

#[test]
fn atomics() {
    type Operation = fn(u64, u64) -> u64;
    let operations: [(&str, Operation, Operation); 9] = [
        ("amoswap", |_, b| b, |_, b| b),
        ("amoadd", u64::wrapping_add, |a, b| u64::from((a as u32).wrapping_add(b as u32))),
        ("amoand", |a, b| a & b, |a, b| a & b),
        ("amoor", |a, b| a | b, |a, b| a | b),
        ("amoxor", |a, b| a ^ b, |a, b| a ^ b),
        ("amomin", |a, b| (a as i64).min(b as i64) as u64, |a, b| (a as i32).min(b as i32) as u64),
        ("amomax", |a, b| (a as i64).max(b as i64) as u64, |a, b| (a as i32).max(b as i32) as u64),
        ("amominu", u64::min, |a, b| u64::from((a as u32).min(b as u32))),
        ("amomaxu", u64::max, |a, b| u64::from((a as u32).max(b as u32))),
    ];
    for (name, wide, narrow) in operations {
        for (suffix, bits) in [(".w", 32), (".d", 64)] {
            let word = encoded(&format!("{name}{suffix}"), 10, 11, 12, 0);
            for a in values() {
                for b in values() {
                    let mut h = hart(&[word]);
                    h.bytes(DATA, 8).unwrap().copy_from_slice(&a.to_le_bytes());
                    h.set_xs(&[(11, DATA), (12, b)]);
                    finish(&mut h, &[word]);
                    let memory = u64::from_le_bytes(h.bytes(DATA, 8).unwrap().try_into().unwrap());
                    let (old, new) = if bits == 64 {
                        (a, wide(a, b))
                    } else {
                        (sext(a as u32), a >> 32 << 32 | narrow(a, b) & 0xffff_ffff)
                    };
                    assert_eq!((h.x(10), memory), (old, new), "{name}{suffix} {a:#x} {b:#x}");
                }
            }
            let mut h = hart(&[word]);
            h.set_x(11, DATA + 2);
            assert_eq!(h.run(1), Stop::Exception(6, DATA + 2), "{name} must be aligned");
        }
    }
}

#[test]
fn reservations_and_compare_and_swap() {
    for (suffix, mask) in [(".w", 0xffff_ffff), (".d", u64::MAX)] {
        let lr = encoded(&format!("lr{suffix}"), 10, 11, 0, 0);
        let sc = encoded(&format!("sc{suffix}"), 12, 11, 13, 0);
        let words = [sc, encoded("addi", 14, 12, 0, 0), lr, sc];
        let mut h = hart(&words);
        h.bytes(DATA, 8).unwrap().fill(0x99);
        h.set_xs(&[(11, DATA), (13, 0x1234_5678_9abc_def0)]);
        finish(&mut h, &words);
        let memory = u64::from_le_bytes(h.bytes(DATA, 8).unwrap().try_into().unwrap());
        assert_eq!((h.x(14), h.x(12)), (1, 0));
        assert_eq!(memory & mask, 0x1234_5678_9abc_def0 & mask);
        let old = if suffix == ".w" { sext(0x9999_9999) } else { 0x9999_9999_9999_9999 };
        assert_eq!(h.x(10), old);
        let mut h = hart(&[lr]);
        h.set_x(11, DATA + 1);
        assert_eq!(h.run(1), Stop::Exception(4, DATA + 1));

        let cas = encoded(&format!("amocas{suffix}"), 10, 11, 13, 0);
        for (compare, equal) in [(old, true), (old ^ 1, false)] {
            let mut h = hart(&[cas]);
            h.bytes(DATA, 8).unwrap().fill(0x99);
            h.set_xs(&[(10, compare), (11, DATA), (13, 5)]);
            finish(&mut h, &[cas]);
            let memory = u64::from_le_bytes(h.bytes(DATA, 8).unwrap().try_into().unwrap());
            let kept = 0x9999_9999_9999_9999;
            assert_eq!(h.x(10), old);
            assert_eq!(memory, if equal { kept & !mask | 5 } else { kept });
        }
    }
}

/// `amocas.q a0, a2, (a4)`: memory, registers, alignment, and `x0` for zeros.
#[test]
fn compare_and_swap_of_pairs() {
    let memory = |h: &mut Hart| -> [u64; 2] {
        let bytes = h.bytes(DATA, 16).unwrap().to_vec();
        [0, 8].map(|i| u64::from_le_bytes(bytes[i..i + 8].try_into().unwrap()))
    };
    let cas = encoded("amocas.q", 10, 14, 12, 0);
    for (compare, equal) in [([1, 2], true), ([1, 3], false), ([0, 2], false)] {
        let mut h = hart(&[cas]);
        h.bytes(DATA, 16).unwrap().copy_from_slice(&(2u128 << 64 | 1).to_le_bytes());
        h.set_xs(&[(10, compare[0]), (11, compare[1]), (12, 5), (13, 6), (14, DATA)]);
        finish(&mut h, &[cas]);
        assert_eq!([h.x(10), h.x(11)], [1, 2]);
        assert_eq!(memory(&mut h), if equal { [5, 6] } else { [1, 2] });
    }
    let zeros = encoded("amocas.q", 0, 14, 0, 0);
    let mut h = hart(&[zeros]);
    h.set_xs(&[(1, 7), (14, DATA)]);
    h.bytes(DATA, 16).unwrap().fill(0);
    finish(&mut h, &[zeros]);
    assert_eq!((h.x(1), memory(&mut h)), (7, [0, 0]));
    for (at, code) in [(DATA + 8, 6), (0x10, 7)] {
        let mut h = hart(&[cas]);
        h.set_x(14, at);
        assert_eq!(h.run(1), Stop::Exception(code, at));
    }
}

/// Every row but those that stop runs, and writes no register but its destination.
#[test]
fn every_row_runs() {
    let mut rng = Rng::new(17);
    let mut ran = 0;
    for row in rows() {
        let stops = matches!(
            row.sem,
            Sem::Ecall
                | Sem::Ebreak
                | Sem::System(_)
                | Sem::SystemEnd(_)
                | Sem::TlbFence
                | Sem::Csr(_)
                | Sem::Jalr
                // Legal with few operands: the vector tests run them.
                | Sem::Vector(_)
        );
        if stops || row.ext == Ext::Priv {
            continue;
        }
        for _ in 0..20 {
            let mut bits =
                row.bits | rng.next() as u32 & !row.mask & if row.bytes() == 2 { 0xffff } else { !0 };
            if row.format.text.ends_with('m') {
                bits |= 7 << 12;
            }
            let jumps = matches!(row.sem, Sem::Jal | Sem::Branch(_));
            let no_base = row.format.rs1 != Reg::Fixed(0) && row.format.rs1.extract(bits) == 0;
            if !row.matches(bits) || jumps || no_base {
                continue;
            }
            let mut h = hart(&[bits]);
            for r in 1..32 {
                h.set_x(r, DATA + 0x400 + 64 * u64::from(r));
            }
            let before = h.words.clone();
            finish(&mut h, &[bits]);
            ran += 1;
            let changed: Vec<_> =
                (0..128u16).filter(|&s| before[usize::from(s)] != h.words[usize::from(s)]).collect();
            let rd = row.format.rd.extract(bits);
            let pair = row.sem == Sem::AmoCasPair && rd != 0;
            assert!(
                changed
                    .iter()
                    .all(|&s| s == slots::x(rd) || s == slots::f(rd) || pair && s == slots::x(rd + 1)),
                "{}: {changed:?}",
                row.name
            );
            assert!(!changed.contains(&slots::X0));
        }
    }
    assert!(ran > 3000);
}

#[test]
fn plain_csrs_store() {
    let mode = RiscvMode { privilege: 1, mmu: 1, ..USER };
    let run = |words: &[u32], set: &dyn Fn(&mut Hart)| {
        let mut h = hart(words);
        h.mode = mode;
        set(&mut h);
        finish(&mut h, words);
        h
    };
    // csrrw a0, sscratch, a0: a swap.
    let h = run(&[encoded("csrrw", 10, 10, 0, 0x140)], &|h| {
        h.set_x(10, 1);
        *h.slot(slots::SSCRATCH) = 2;
    });
    assert_eq!((h.x(10), h.words[usize::from(slots::SSCRATCH)]), (2, 1));
    let h = run(&[encoded("csrrs", 10, 11, 0, 0x141)], &|h| {
        h.set_x(11, 0xf1);
        *h.slot(slots::SEPC) = 0x100;
    });
    assert_eq!((h.x(10), h.words[usize::from(slots::SEPC)]), (0x100, 0x1f0));
    let h = run(&[encoded("csrrc", 11, 11, 0, 0x142)], &|h| {
        h.set_x(11, 0xf);
        *h.slot(slots::SCAUSE) = 0x3a;
    });
    assert_eq!((h.x(11), h.words[usize::from(slots::SCAUSE)]), (0x3a, 0x30));
    // csrrci a0, sstatus, 2 with FS Dirty, and bits that sstatus does not show.
    let word = encoded("csrrci", 10, 0, 0, 0x100) | 2 << 15;
    for (status, shown) in [
        (0x6002 | 1 << 7, 0x8000_0000_0000_6002),
        (0x2002, 0x2002),
        (0x4000_0602, 0x8000_0000_0000_0602),
        (0xa_0000_1888, 0x2_0000_0000),
    ] {
        let h = run(&[word], &|h| *h.slot(slots::MSTATUS) = status);
        assert_eq!(h.x(10), shown, "{status:#x}");
        assert_eq!(h.words[usize::from(slots::MSTATUS)], status & !2);
    }
    // Flags: read, set, clear, write.
    let words = [
        encoded("csrrw", 10, 11, 0, 1),
        encoded("csrrs", 12, 13, 0, 1),
        encoded("csrrci", 14, 0, 0, 1) | 1 << 15,
        encoded("csrrs", 15, 0, 0, 3),
    ];
    let h = run(&words, &|h| {
        h.fp_flags = 9;
        h.mode.frm = 2;
        h.set_xs(&[(11, 0xffe3), (13, 4)]);
    });
    assert_eq!((h.x(10), h.x(12), h.x(14), h.x(15)), (9, 3, 7, 0x46));
}
