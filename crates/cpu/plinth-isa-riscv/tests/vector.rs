//! Vector instructions, with results from the specification (Volume I, "V" standard extension). Each program
//! runs with what is done in line, with that in the way of a kernel, and with the helper alone.

mod common;

use common::{Hart, Stop};
use plinth_ir::HelperResult;
use plinth_isa_riscv::decode::Decoder;
use plinth_isa_riscv::generate::{by_name, encode};
use plinth_isa_riscv::mode::Unit;
use plinth_isa_riscv::table::Sem;
use plinth_isa_riscv::vector::Config;
use plinth_isa_riscv::{slots, vector};

const BASE: u64 = 0x8000_0000;
const DATA: u64 = BASE + 0x1000;
const END: u64 = BASE + 0x3000;
/// Mask bit of instructions: 1 is unmasked.
const VM: u32 = 1 << 25;

const E8: i32 = 0;
const E16: i32 = 1 << 3;
const E32: i32 = 2 << 3;
const E64: i32 = 3 << 3;
const M1: i32 = 0;
const M2: i32 = 1;
const M8: i32 = 3;
const MF2: i32 = 7;
const MF8: i32 = 5;

fn masked(name: &str, rd: u8, rs2: u8, rs1: u8, imm: i32) -> u32 {
    let row = by_name(name).unwrap_or_else(|| panic!("{name}"));
    encode(row, rd, rs1, rs2, imm).unwrap_or_else(|| panic!("{name} {rd} {rs2} {rs1} {imm}"))
}

/// `name vd, vs2, vs1` (or rs1), unmasked.
fn v(name: &str, rd: u8, rs2: u8, rs1: u8) -> u32 {
    masked(name, rd, rs2, rs1, 0) | VM
}

fn vi(name: &str, rd: u8, rs2: u8, imm: i32) -> u32 {
    masked(name, rd, rs2, 0, imm) | VM
}

/// `vsetivli x0, avl, vtype`.
fn set(avl: u32, vtype: i32) -> u32 {
    masked("vsetivli", 0, 0, 0, vtype) | avl << 15
}

/// `vsetvli x1, x0, vtype`: all elements.
fn set_max(vtype: i32) -> u32 {
    masked("vsetvli", 1, 0, 0, vtype)
}

fn put(h: &mut Hart, r: u8, bytes: &[u8]) {
    for (k, chunk) in bytes.chunks(8).enumerate() {
        let slot = slots::v(r) + k as u16;
        let mut word = h.slot(slot).to_le_bytes();
        word[..chunk.len()].copy_from_slice(chunk);
        *h.slot(slot) = u64::from_le_bytes(word);
    }
}

fn put16(h: &mut Hart, r: u8, lanes: &[u16]) {
    put(h, r, &lanes.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>());
}

fn put32(h: &mut Hart, r: u8, lanes: &[u32]) {
    put(h, r, &lanes.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>());
}

fn put64(h: &mut Hart, r: u8, lanes: &[u64]) {
    put(h, r, &lanes.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>());
}

fn putf(h: &mut Hart, r: u8, lanes: &[f32]) {
    put32(h, r, &lanes.iter().map(|l| l.to_bits()).collect::<Vec<_>>());
}

fn bytes(h: &mut Hart, r: u8, n: usize) -> Vec<u8> {
    (0..n.div_ceil(8) as u16).flat_map(|k| h.slot(slots::v(r) + k).to_le_bytes()).take(n).collect()
}

fn lanes16(h: &mut Hart, r: u8) -> Vec<u16> {
    bytes(h, r, 16).chunks(2).map(|c| u16::from_le_bytes(c.try_into().unwrap())).collect()
}

fn lanes32(h: &mut Hart, r: u8) -> Vec<u32> {
    bytes(h, r, 16).chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

fn lanes64(h: &mut Hart, r: u8) -> Vec<u64> {
    bytes(h, r, 16).chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

fn lanesf(h: &mut Hart, r: u8) -> Vec<f32> {
    lanes32(h, r).into_iter().map(f32::from_bits).collect()
}

fn config(h: &mut Hart) -> Config {
    Config(*h.slot(slots::VCONFIG))
}

/// Ways to run vector instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In line where it can be.
    Inline,
    /// The same, in code that asks whether the unit is on.
    Kernel,
    /// With the helper alone.
    Helper,
}
use Way::{Helper, Inline, Kernel};

fn start(way: Way, words: &[u32], setup: impl Fn(&mut Hart)) -> Hart {
    let mut memory = vec![0; (END - BASE) as usize];
    for (i, word) in words.iter().enumerate() {
        memory[4 * i..][..4].copy_from_slice(&word.to_le_bytes());
    }
    for (i, byte) in memory[(DATA - BASE) as usize..].iter_mut().enumerate() {
        *byte = i as u8;
    }
    let mut h = Hart::new(BASE, memory);
    h.mode.vector = if way == Kernel { Unit::Check } else { Unit::On };
    setup(&mut h);
    h
}

/// Goes on until something stops the hart.
fn go(way: Way, h: &mut Hart) -> Stop {
    if way != Helper {
        return h.run(1000);
    }
    h.max_insns = 1;
    loop {
        let word = u32::from_le_bytes(h.bytes(h.pc, 4).unwrap().try_into().unwrap());
        let is_vector = Decoder::new().decode(word).row.is_some_and(|row| matches!(row.sem, Sem::Vector(_)));
        let stop = if is_vector {
            match h.call(vector::execute, [word.into(), 0, 0]) {
                HelperResult::Next(_) => {
                    h.pc += 4;
                    continue;
                }
                HelperResult::Raise(e) => Stop::Exception(e.code as i32, e.value),
                HelperResult::Jump => panic!("vector instructions do not jump"),
            }
        } else {
            h.run(1)
        };
        if stop != Stop::Limit {
            return stop;
        }
    }
}

/// Runs `words` in all ways, which must leave the same state, up to the illegal instruction behind them.
fn run(words: &[u32], setup: impl Fn(&mut Hart)) -> Hart {
    let [inline, kernel, helper] = [Inline, Kernel, Helper].map(|way| {
        let mut h = start(way, words, &setup);
        assert_eq!(go(way, &mut h), Stop::Exception(2, 0), "at {:#x}", h.pc - BASE);
        assert_eq!(h.pc, BASE + 4 * words.len() as u64);
        // It is part of the mode, and only helpers look at the slot.
        *h.slot(slots::FRM) = 0;
        h
    });
    for other in [inline, kernel] {
        assert!(
            other.words[1..slots::COUNT] == helper.words[1..slots::COUNT] && other.memory == helper.memory
        );
        assert_eq!(other.fp_flags, helper.fp_flags);
    }
    helper
}

/// The instruction behind `before` is illegal.
fn refused(before: &[u32], word: u32) {
    refused_with(before, word, |_| {});
}

fn refused_with(before: &[u32], word: u32, setup: impl Fn(&mut Hart)) {
    for way in [Inline, Kernel, Helper] {
        let words: Vec<_> = before.iter().copied().chain([word]).collect();
        let mut h = start(way, &words, &setup);
        assert_eq!(go(way, &mut h), Stop::Exception(2, word.into()), "{word:#x}");
        assert_eq!(h.pc, BASE + 4 * before.len() as u64);
    }
}

#[test]
fn types_and_lengths() {
    let length = |rd: u8, rs1: u8, avl: u64, vtype: i32| {
        let mut h = run(&[masked("vsetvli", rd, 0, rs1, vtype)], |h| {
            h.set_x(5, avl);
            *h.slot(slots::VCONFIG) = Config::new(0, 7).0;
        });
        let c = config(&mut h);
        if rd != 0 {
            assert_eq!(h.x(rd), c.vl());
        }
        (c.vl(), c.vtype())
    };
    assert_eq!(length(6, 5, 3, E32 | M1), (3, 0x10));
    assert_eq!(length(6, 5, 100, E32 | M1), (4, 0x10));
    assert_eq!(length(5, 5, 100, E8 | M8), (100, 3));
    assert_eq!(length(5, 5, u64::MAX, E8 | M8), (128, 3));
    assert_eq!(length(6, 0, 0, E64 | M2 | 0xc0), (4, 0xd9));
    assert_eq!(length(0, 0, 0, E8 | M1), (7, 0), "vl is kept");
    assert_eq!(length(0, 0, 0, E16 | MF2), (4, 0xf));
    assert_eq!(length(6, 0, 0, E8 | MF8), (2, 5));
    for reserved in [E16 | MF8, E64 | MF2, E8 | 4, 4 << 3, 0x100, 0x400] {
        assert_eq!(length(6, 5, 3, reserved), (0, 1 << 63), "{reserved:#x}");
    }
    let mut h = run(&[masked("vsetvl", 6, 7, 5, 0)], |h| h.set_xs(&[(5, 9), (7, 0x10)]));
    assert_eq!((h.x(6), config(&mut h).vtype()), (4, 0x10));
    let mut h = run(&[masked("vsetvl", 6, 7, 5, 0)], |h| h.set_xs(&[(5, 9), (7, 1 << 40)]));
    assert_eq!((h.x(6), config(&mut h)), (0, Config::ILLEGAL));
    let mut h = run(&[set(31, E8 | M2)], |h| *h.slot(slots::VCONFIG) = Config::new(0, 0).with_vstart(5).0);
    assert_eq!((config(&mut h).vl(), config(&mut h).vstart()), (31, 0));
}

#[test]
fn masked_and_tail_elements_keep_their_values() {
    let setup = |h: &mut Hart| {
        put32(h, 1, &[1, 2, 3, 4]);
        put32(h, 2, &[10, 20, 30, 40]);
        put32(h, 3, &[9, 9, 9, 9]);
        put(h, 0, &[0b1101]);
        h.set_x(5, 100);
    };
    let mut h = run(&[set(4, E32), v("vadd.vv", 3, 1, 2)], setup);
    assert_eq!(lanes32(&mut h, 3), [11, 22, 33, 44]);
    let mut h = run(&[set(3, E32), v("vadd.vv", 3, 1, 2)], setup);
    assert_eq!(lanes32(&mut h, 3), [11, 22, 33, 9]);
    let mut h = run(&[set(3, E32), masked("vadd.vx", 3, 1, 5, 0)], setup);
    assert_eq!(lanes32(&mut h, 3), [101, 9, 103, 9]);
    let mut h = run(&[set(0, E32), v("vadd.vv", 3, 1, 2)], setup);
    assert_eq!(lanes32(&mut h, 3), [9; 4]);
    // From element 2 on.
    let start_at_2 = masked("csrrwi", 0, 0, 0, 8) | 2 << 15;
    let mut h = run(&[set(4, E32), start_at_2, v("vadd.vv", 3, 1, 2)], setup);
    assert_eq!((lanes32(&mut h, 3), config(&mut h).vstart()), (vec![9, 9, 33, 44], 0));
    // Half a register.
    let mut h = run(&[set_max(E32 | MF2), v("vsub.vv", 3, 2, 1)], setup);
    assert_eq!(lanes32(&mut h, 3), [9, 18, 9, 9]);
    let mut h = run(&[set_max(E16 | MF2), vi("vadd.vi", 3, 1, -1)], setup);
    assert_eq!(lanes32(&mut h, 3), [0xffff_0000, 0xffff_0001, 9, 9]);
    // The unit becomes dirty.
    assert_eq!(*run(&[set(4, E32)], |h| *h.slot(slots::MSTATUS) = 1 << 9).slot(slots::MSTATUS), 3 << 9);
}

#[test]
fn integer_arithmetic() {
    let setup = |h: &mut Hart| {
        put32(h, 8, &[7, 0x8000_0000, 0xffff_ffff, 100]);
        put32(h, 10, &[3, 0xffff_ffff, 0, 7]);
        put32(h, 12, &[1, 2, 3, 4]);
        h.set_x(5, 0xffff_ffff_ffff_fffe);
    };
    let result = |name: &str| lanes32(&mut run(&[set(4, E32), v(name, 12, 8, 10)], setup), 12);
    assert_eq!(result("vadd.vv"), [10, 0x7fff_ffff, 0xffff_ffff, 107]);
    assert_eq!(result("vsub.vv"), [4, 0x8000_0001, 0xffff_ffff, 93]);
    assert_eq!(result("vmul.vv"), [21, 0x8000_0000, 0, 700]);
    assert_eq!(result("vmulh.vv"), [0, 0, 0, 0]);
    assert_eq!(result("vmulhu.vv"), [0, 0x7fff_ffff, 0, 0]);
    assert_eq!(result("vmulhsu.vv"), [0, 0x8000_0000, 0, 0]);
    assert_eq!(result("vdiv.vv"), [2, 0x8000_0000, 0xffff_ffff, 14]);
    assert_eq!(result("vdivu.vv"), [2, 0, 0xffff_ffff, 14]);
    assert_eq!(result("vrem.vv"), [1, 0, 0xffff_ffff, 2]);
    assert_eq!(result("vremu.vv"), [1, 0x8000_0000, 0xffff_ffff, 2]);
    assert_eq!(result("vmin.vv"), [3, 0x8000_0000, 0xffff_ffff, 7]);
    assert_eq!(result("vmaxu.vv"), [7, 0xffff_ffff, 0xffff_ffff, 100]);
    assert_eq!(result("vsll.vv"), [56, 0, 0xffff_ffff, 12800]);
    assert_eq!(result("vsra.vv"), [0, 0xffff_ffff, 0xffff_ffff, 0]);
    // vd is a source: vs1 is v10, vs2 v8.
    assert_eq!(result("vmacc.vv"), [22, 0x8000_0002, 3, 704]);
    assert_eq!(result("vnmsac.vv"), [(-20i32) as u32, 0x8000_0002, 3, (-696i32) as u32]);
    assert_eq!(result("vmadd.vv"), [10, 0x7fff_fffe, 0xffff_ffff, 128]);
    assert_eq!(result("vnmsub.vv"), [4, 0x8000_0002, 0xffff_ffff, 72]);
    let mut h = run(&[set(4, E32), v("vrsub.vx", 12, 8, 5), vi("vsrl.vi", 13, 8, 4)], setup);
    assert_eq!(lanes32(&mut h, 12), [(-9i32) as u32, 0x7fff_fffe, 0xffff_ffff, (-102i32) as u32]);
    assert_eq!(lanes32(&mut h, 13), [0, 0x0800_0000, 0x0fff_ffff, 6]);
    // Eight registers.
    let mut h = run(&[set_max(E8 | M8), vi("vadd.vi", 8, 16, 1)], |h| {
        put(h, 16, &(0..128).collect::<Vec<u8>>());
    });
    assert_eq!(bytes(&mut h, 8, 128), (1..129).collect::<Vec<u8>>());
}

#[test]
fn widening_and_narrowing() {
    let setup = |h: &mut Hart| {
        put16(h, 8, &[0xffff, 2, 0x8000, 300, 5, 6, 7, 8]);
        put16(h, 10, &[1, 0xffff, 0x8000, 300, 1, 1, 1, 1]);
        put32(h, 12, &[100, 200, 300, 400]);
    };
    let wide = |name: &str| lanes32(&mut run(&[set(4, E16), v(name, 12, 8, 10)], setup), 12);
    assert_eq!(wide("vwaddu.vv"), [0x1_0000, 0x1_0001, 0x1_0000, 600]);
    assert_eq!(wide("vwadd.vv"), [0, 1, 0xffff_0000, 600]);
    assert_eq!(wide("vwsubu.vv"), [0xfffe, 0xffff_0003, 0, 0]);
    assert_eq!(wide("vwmul.vv"), [0xffff_ffff, 0xffff_fffe, 0x4000_0000, 90000]);
    assert_eq!(wide("vwmulsu.vv"), [0xffff_ffff, 0x0001_fffe, 0xc000_0000, 90000]);
    assert_eq!(wide("vwmaccu.vv"), [0xffff + 100, 0x1_fffe + 200, 0x4000_0000 + 300, 90400]);
    let mut h = run(&[set(4, E16), v("vwadd.wv", 14, 12, 8)], setup);
    assert_eq!(lanes32(&mut h, 14), [99, 202, 0xffff_812c, 700]);
    let mut h = run(&[set(4, E16), vi("vnsrl.wi", 14, 12, 2)], setup);
    assert_eq!(lanes16(&mut h, 14)[..4], [25, 50, 75, 100]);
    let mut h = run(&[set(4, E32), v("vzext.vf2", 14, 8, 0), v("vsext.vf4", 15, 8, 0)], setup);
    assert_eq!(lanes32(&mut h, 14), [0xffff, 2, 0x8000, 300]);
    assert_eq!(lanes32(&mut h, 15), [0xffff_ffff, 0xffff_ffff, 2, 0]);
}

#[test]
fn fixed_point() {
    let setup = |h: &mut Hart| {
        put16(h, 8, &[0x7fff, 0x8000, 5, 0xffff]);
        put16(h, 9, &[1, 0x8000, 2, 1]);
        put32(h, 12, &[0x1_2345, 0x7fff_ffff, 0xffff_8000, 24]);
    };
    let run_with = |vxrm: u32, word: u32| {
        let rounding = masked("csrrwi", 0, 0, 0, 10) | vxrm << 15;
        let mut h = run(&[set(4, E16), rounding, word], setup);
        (lanes16(&mut h, 14)[..4].to_vec(), *h.slot(slots::VXSAT))
    };
    assert_eq!(run_with(0, v("vsadd.vv", 14, 8, 9)), (vec![0x7fff, 0x8000, 7, 0], 1));
    assert_eq!(run_with(0, v("vsaddu.vv", 14, 8, 9)), (vec![0x8000, 0xffff, 7, 0xffff], 1));
    assert_eq!(run_with(0, v("vssubu.vv", 14, 9, 8)), (vec![0, 0, 0, 0], 1));
    assert_eq!(run_with(0, v("vsmul.vv", 14, 8, 9)), (vec![1, 0x7fff, 0, 0], 1));
    assert_eq!(run_with(0, v("vaaddu.vv", 14, 8, 9)), (vec![0x4000, 0x8000, 4, 0x8000], 0));
    assert_eq!(run_with(2, v("vaaddu.vv", 14, 8, 9)).0, [0x4000, 0x8000, 3, 0x8000]);
    assert_eq!(run_with(1, v("vaadd.vv", 14, 8, 9)).0, [0x4000, 0x8000, 4, 0]);
    assert_eq!(run_with(3, vi("vssrl.vi", 14, 8, 1)).0, [0x3fff, 0x4000, 3, 0x7fff]);
    assert_eq!(run_with(0, vi("vssra.vi", 14, 8, 1)).0, [0x4000, 0xc000, 3, 0]);
    assert_eq!(run_with(0, vi("vnclip.wi", 14, 12, 0)), (vec![0x7fff, 0x7fff, 0x8000, 24], 1));
    assert_eq!(run_with(0, vi("vnclipu.wi", 14, 12, 4)), (vec![0x1234, 0xffff, 0xffff, 2], 1));
}

#[test]
fn carries_and_comparisons() {
    let setup = |h: &mut Hart| {
        put(h, 0, &[0b0101]);
        put32(h, 8, &[0xffff_ffff, 0xffff_ffff, 5, 7]);
        put32(h, 9, &[0, 0, 5, 8]);
        put(h, 10, &[0xff]);
        h.set_x(5, 5);
    };
    let mut h = run(&[set(4, E32), masked("vadc.vvm", 10, 8, 9, 0), masked("vsbc.vvm", 11, 8, 9, 0)], setup);
    assert_eq!(lanes32(&mut h, 10), [0, 0xffff_ffff, 11, 15]);
    assert_eq!(lanes32(&mut h, 11), [0xffff_fffe, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]);
    let mask = |words: &[u32]| {
        let words: Vec<_> = [set(4, E32)].iter().chain(words).copied().collect();
        bytes(&mut run(&words, setup), 10, 1)[0]
    };
    assert_eq!(mask(&[masked("vmadc.vvm", 10, 8, 9, 0)]), 0xf1);
    assert_eq!(mask(&[masked("vmadc.vv", 10, 8, 9, 0)]), 0xf0);
    assert_eq!(mask(&[masked("vmsbc.vvm", 10, 8, 9, 0)]), 0xfc);
    assert_eq!(mask(&[v("vmseq.vx", 10, 8, 5)]), 0xf4);
    assert_eq!(mask(&[v("vmsltu.vv", 10, 8, 9)]), 0xf8);
    assert_eq!(mask(&[v("vmslt.vv", 10, 8, 9)]), 0xfb);
    assert_eq!(mask(&[vi("vmsgtu.vi", 10, 8, 6)]), 0xfb);
    assert_eq!(mask(&[masked("vmsne.vv", 10, 8, 9, 0)]), 0xfb);
    // Bytes, 32 at once.
    let text: Vec<u8> = b"vectors of bytes, and no more.\0.".to_vec();
    let words = [
        set_max(E8 | M2),
        vi("vmseq.vi", 4, 8, 0),
        v("vfirst.m", 6, 4, 0),
        vi("vmsne.vi", 5, 8, 0),
        v("vcpop.m", 7, 5, 0),
    ];
    let h = run(&words, |h| put(h, 8, &text));
    assert_eq!((h.x(6), h.x(7)), (30, 31));
}

#[test]
fn masks() {
    let setup = |h: &mut Hart| {
        put(h, 0, &[0b1111_0011]);
        put(h, 8, &[0b1010_1000]);
        put(h, 9, &[0b1100_0001]);
        put(h, 10, &[0xff, 0xff]);
    };
    let result = |word: u32| bytes(&mut run(&[set(8, E16), word], setup), 10, 2);
    for (name, expected) in [
        ("vmand.mm", 0b1000_0000),
        ("vmnand.mm", 0b0111_1111),
        ("vmandn.mm", 0b0010_1000),
        ("vmor.mm", 0b1110_1001),
        ("vmnor.mm", 0b0001_0110),
        ("vmorn.mm", 0b1011_1110),
        ("vmxor.mm", 0b0110_1001),
        ("vmxnor.mm", 0b1001_0110),
    ] {
        assert_eq!(result(masked(name, 10, 8, 9, 0)), [expected, 0xff], "{name}");
    }
    assert_eq!(result(v("vmsbf.m", 10, 8, 0)), [0b0000_0111, 0xff]);
    assert_eq!(result(v("vmsif.m", 10, 8, 0)), [0b0000_1111, 0xff]);
    assert_eq!(result(v("vmsof.m", 10, 8, 0)), [0b0000_1000, 0xff]);
    // The first active one is bit 5; inactive bits keep their values.
    assert_eq!(result(masked("vmsof.m", 10, 8, 0, 0)), [0b0010_1100, 0xff]);
    let words = [set(8, E16), v("vcpop.m", 5, 8, 0), masked("vcpop.m", 6, 8, 0, 0), v("vfirst.m", 7, 8, 0)];
    let h = run(&words, setup);
    assert_eq!((h.x(5), h.x(6), h.x(7)), (3, 2, 3));
    let h = run(&[set(3, E16), v("vfirst.m", 7, 8, 0)], setup);
    assert_eq!(h.x(7), u64::MAX);
    let mut h = run(&[set(8, E16), v("viota.m", 12, 8, 0), masked("vid.v", 13, 0, 0, 0)], setup);
    assert_eq!(lanes16(&mut h, 12), [0, 0, 0, 0, 1, 1, 2, 2]);
    assert_eq!(lanes16(&mut h, 13), [0, 1, 0, 0, 4, 5, 6, 7]);
}

#[test]
fn reductions() {
    let setup = |h: &mut Hart| {
        put(h, 0, &[0b0111]);
        put32(h, 8, &[1, 0xffff_fffe, 3, 0x8000_0000]);
        put64(h, 9, &[1000, 0]);
        put64(h, 10, &[0x5555_5555_5555_5555, 0x6666]);
    };
    let sum = |word: u32| lanes64(&mut run(&[set(4, E32), word], setup), 10);
    assert_eq!(sum(v("vredsum.vs", 10, 8, 9)), [0x5555_5555_8000_03ea, 0x6666]);
    assert_eq!(sum(masked("vredsum.vs", 10, 8, 9, 0)), [0x5555_5555_0000_03ea, 0x6666]);
    assert_eq!(sum(v("vredmin.vs", 10, 8, 9))[0], 0x5555_5555_8000_0000);
    assert_eq!(sum(v("vredmaxu.vs", 10, 8, 9))[0], 0x5555_5555_ffff_fffe);
    assert_eq!(sum(v("vwredsum.vs", 10, 8, 9))[0], (1002i64 - 0x8000_0000) as u64);
    assert_eq!(sum(v("vwredsumu.vs", 10, 8, 9))[0], 1002 + 0x1_8000_0000);
    let mut h = run(&[set(0, E32), v("vredsum.vs", 10, 8, 9)], setup);
    assert_eq!(lanes64(&mut h, 10)[0], 0x5555_5555_5555_5555);
}

#[test]
fn permutations() {
    let setup = |h: &mut Hart| {
        put(h, 0, &[0b0110]);
        put32(h, 8, &[10, 11, 12, 13]);
        put32(h, 9, &[3, 0, 9, 1]);
        put16(h, 11, &[2, 2, 100, 0]);
        put32(h, 10, &[90, 91, 92, 93]);
        h.set_x(5, 77);
        h.set_x(6, u64::MAX);
        h.set_x(7, 1);
    };
    let result = |word: u32| lanes32(&mut run(&[set(4, E32), word], setup), 10);
    assert_eq!(result(v("vslideup.vx", 10, 8, 7)), [90, 10, 11, 12]);
    assert_eq!(result(vi("vslidedown.vi", 10, 8, 3)), [13, 0, 0, 0]);
    assert_eq!(result(v("vslidedown.vx", 10, 8, 6)), [0; 4]);
    assert_eq!(result(v("vslideup.vx", 10, 8, 6)), [90, 91, 92, 93]);
    assert_eq!(result(v("vslide1up.vx", 10, 8, 5)), [77, 10, 11, 12]);
    assert_eq!(result(masked("vslide1down.vx", 10, 8, 5, 0)), [90, 12, 13, 93]);
    assert_eq!(result(v("vrgather.vv", 10, 8, 9)), [13, 10, 0, 11]);
    assert_eq!(result(v("vrgatherei16.vv", 10, 8, 11)), [12, 12, 0, 10]);
    assert_eq!(result(v("vrgather.vx", 10, 8, 7)), [11; 4]);
    assert_eq!(result(v("vrgather.vx", 10, 8, 6)), [0; 4]);
    assert_eq!(result(masked("vcompress.vm", 10, 8, 0, 0)), [11, 12, 92, 93]);
    assert_eq!(result(masked("vmerge.vxm", 10, 8, 5, 0)), [10, 77, 77, 13]);
    assert_eq!(result(masked("vmv.v.v", 10, 0, 8, 0)), [10, 11, 12, 13]);
    assert_eq!(result(masked("vmv.v.i", 10, 0, 0, -2)), [0xffff_fffe; 4]);
    assert_eq!(result(masked("vmv.s.x", 10, 0, 5, 0)), [77, 91, 92, 93]);
    let mut h = run(&[set(1, E32), masked("vmv2r.v", 12, 8, 0, 0), masked("vmv.x.s", 5, 8, 0, 0)], setup);
    assert_eq!(
        (lanes32(&mut h, 12), lanes32(&mut h, 13), h.x(5)),
        (vec![10, 11, 12, 13], vec![3, 0, 9, 1], 10)
    );
    // Elements of vs2 that are past vl, but not past VLMAX.
    assert_eq!(lanes32(&mut run(&[set(2, E32), vi("vslidedown.vi", 10, 8, 2)], setup), 10), [12, 13, 92, 93]);
}

#[test]
fn floating_point() {
    let setup = |h: &mut Hart| {
        put(h, 0, &[0b0011]);
        putf(h, 8, &[1.5, -2.0, f32::INFINITY, 1e30]);
        putf(h, 9, &[0.25, 3.0, f32::NEG_INFINITY, 1e30]);
        putf(h, 10, &[1.0, 1.0, 1.0, 1.0]);
        h.set_f(5, 0xffff_ffff_0000_0000 | u64::from(2f32.to_bits()));
        h.set_f(6, u64::from(2f32.to_bits()));
    };
    let nan = 0x7fc0_0000;
    let result = |word: u32| {
        let mut h = run(&[set(4, E32), word], setup);
        (lanes32(&mut h, 10), h.fp_flags)
    };
    let bits = |lanes: [f32; 4]| lanes.map(f32::to_bits).to_vec();
    let (sum, flags) = result(v("vfadd.vv", 10, 8, 9));
    assert_eq!((sum, flags), (vec![1.75f32.to_bits(), 1f32.to_bits(), nan, 2e30f32.to_bits()], 0x10));
    assert_eq!(result(v("vfmul.vv", 10, 8, 9)), (bits([0.375, -6.0, f32::NEG_INFINITY, f32::INFINITY]), 5));
    assert_eq!(result(v("vfsub.vf", 10, 8, 5)).0, bits([-0.5, -4.0, f32::INFINITY, 1e30]));
    assert_eq!(result(v("vfrsub.vf", 10, 8, 5)).0, bits([0.5, 4.0, f32::NEG_INFINITY, -1e30]));
    // A scalar that is not boxed is a NaN.
    assert_eq!(result(v("vfadd.vf", 10, 8, 6)).0, [nan; 4]);
    assert_eq!(result(masked("vfmacc.vv", 10, 8, 9, 0)).0, bits([1.375, -5.0, 1.0, 1.0]));
    assert_eq!(result(masked("vfnmsub.vf", 10, 8, 5, 0)).0, bits([-0.5, -4.0, 1.0, 1.0]));
    assert_eq!(result(v("vfmin.vv", 10, 8, 9)).0, bits([0.25, -2.0, f32::NEG_INFINITY, 1e30]));
    assert_eq!(result(v("vfsgnjn.vv", 10, 8, 9)).0, bits([-1.5, -2.0, f32::INFINITY, -1e30]));
    assert_eq!(result(v("vfclass.v", 10, 8, 0)).0, [1 << 6, 1 << 1, 1 << 7, 1 << 6]);
    assert_eq!(
        result(v("vfcvt.x.f.v", 10, 8, 0)),
        (vec![2, (-2i32) as u32, i32::MAX as u32, i32::MAX as u32], 0x11)
    );
    assert_eq!(result(v("vfcvt.rtz.xu.f.v", 10, 8, 0)), (vec![1, 0, u32::MAX, u32::MAX], 0x11));
    assert_eq!(result(v("vfsqrt.v", 10, 9, 0)).0[0], 0.5f32.to_bits());
    assert_eq!(result(v("vfrec7.v", 10, 9, 0)).0[..2], [3.984375f32.to_bits(), 0.33203125f32.to_bits()]);
    assert_eq!(result(v("vfredosum.vs", 10, 8, 10)).0[0], f32::INFINITY.to_bits());
    assert_eq!(result(masked("vfredusum.vs", 10, 8, 10, 0)).0[0], 0.5f32.to_bits());
    let (mask, flags) = result(v("vmflt.vf", 10, 8, 6));
    assert_eq!((mask[0] & 15, flags), (0, 0x10));
    assert_eq!(result(v("vmfge.vf", 10, 8, 5)).0[0] & 15, 0b1100);
    assert_eq!(result(masked("vfmv.v.f", 10, 0, 5, 0)).0, bits([2.0; 4]));

    // Widening to doubles and back, to odd.
    let words = [set(2, E32), v("vfwadd.vv", 12, 8, 9), v("vfwcvt.f.f.v", 14, 8, 0)];
    let mut h = run(&words, setup);
    assert_eq!(lanes64(&mut h, 12), [1.75f64.to_bits(), 1f64.to_bits()]);
    assert_eq!(lanes64(&mut h, 14), [1.5f64.to_bits(), (-2f64).to_bits()]);
    let words = [set(2, E32), v("vfncvt.f.f.w", 10, 12, 0), v("vfncvt.rod.f.f.w", 11, 12, 0)];
    let mut h = run(&words, |h| put64(h, 12, &[(1.0 + 2f64.powi(-40)).to_bits(), 1e300f64.to_bits()]));
    assert_eq!(lanes32(&mut h, 10)[..2], [0x3f80_0000, 0x7f80_0000]);
    assert_eq!(lanes32(&mut h, 11)[..2], [0x3f80_0001, 0x7f7f_ffff]);
    // Doubles and halves.
    let mut h = run(&[set(2, E64), v("vfadd.vv", 10, 8, 9)], |h| {
        put64(h, 8, &[1f64.to_bits(), 2f64.to_bits()]);
        put64(h, 9, &[0.5f64.to_bits(), 0.25f64.to_bits()]);
    });
    assert_eq!(lanes64(&mut h, 10), [1.5f64.to_bits(), 2.25f64.to_bits()]);
    let mut h = run(&[set(2, E16), v("vfadd.vv", 10, 8, 8)], |h| put16(h, 8, &[0x3c00, 0x7bff]));
    assert_eq!((lanes16(&mut h, 10)[..2].to_vec(), h.fp_flags), (vec![0x4000, 0x7c00], 5));
    // The first element to and from a register.
    let mut h = run(&[set(4, E32), masked("vfmv.f.s", 7, 8, 0, 0), masked("vfmv.s.f", 10, 0, 5, 0)], setup);
    assert_eq!(h.f(7), 0xffff_ffff_0000_0000 | u64::from(1.5f32.to_bits()));
    assert_eq!(lanesf(&mut h, 10), [2.0, 1.0, 1.0, 1.0]);
    assert_eq!(*h.slot(slots::MSTATUS) >> 13 & 3, 3);
}

#[test]
fn rounding_modes_count() {
    for (frm, expected) in
        [(0, 0x3f80_0000), (1, 0x3f80_0000), (2, 0x3f80_0000), (3, 0x3f80_0001), (4, 0x3f80_0000)]
    {
        let mut h = run(&[set(4, E32), v("vfadd.vv", 10, 8, 9)], |h| {
            h.mode.frm = frm;
            putf(h, 8, &[1.0; 4]);
            putf(h, 9, &[1e-20; 4]);
        });
        assert_eq!(lanes32(&mut h, 10), [expected; 4], "{frm}");
    }
    refused_with(&[set(4, E32)], v("vfadd.vv", 10, 8, 9), |h| h.mode.frm = 5);
    refused_with(&[set(4, E32)], v("vfsgnj.vv", 10, 8, 9), |h| h.mode.frm = 7);
}

#[test]
fn loads_and_stores() {
    let setup = |h: &mut Hart| {
        h.set_xs(&[(5, DATA + 1), (6, 3), (7, u64::MAX - 1), (8, DATA + 0x800)]);
        put(h, 0, &[0b1010_0101]);
        put(h, 9, &[4, 0, 200, 9]);
        for r in 16..24 {
            put(h, r, &[0xee; 16]);
        }
    };
    let load = |avl: u32, vtype: i32, word: u32| run(&[set(avl, vtype), word], setup);
    assert_eq!(bytes(&mut load(16, E8, v("vle8.v", 16, 0, 5)), 16, 16), (1..17).collect::<Vec<u8>>());
    assert_eq!(bytes(&mut load(3, E8, v("vle8.v", 16, 0, 5)), 16, 5), [1, 2, 3, 0xee, 0xee]);
    let mut h = load(8, E8, masked("vle8.v", 16, 0, 5, 0));
    assert_eq!(bytes(&mut h, 16, 9), [1, 0xee, 3, 0xee, 0xee, 6, 0xee, 8, 0xee]);
    // EEW and SEW differ: 16 elements of 32 bits fill four registers.
    assert_eq!(bytes(&mut load(16, E8, v("vle32.v", 16, 0, 5)), 16, 64), (1..65).collect::<Vec<u8>>());
    assert_eq!(bytes(&mut load(4, E8, v("vlse8.v", 16, 6, 5)), 16, 5), [1, 4, 7, 10, 0xee]);
    assert_eq!(bytes(&mut load(2, E16, v("vlse16.v", 16, 7, 8)), 16, 5), [0, 1, 254, 255, 0xee]);
    assert_eq!(bytes(&mut load(3, E8, v("vlse8.v", 16, 0, 5)), 16, 4), [1, 1, 1, 0xee]);
    assert_eq!(bytes(&mut load(4, E8, v("vluxei8.v", 16, 9, 5)), 16, 5), [5, 1, 201, 10, 0xee]);
    // Two fields of two elements.
    let mut h = load(2, E16, v("vle16.v", 16, 0, 5) | 1 << 29);
    assert_eq!(
        (bytes(&mut h, 16, 5), bytes(&mut h, 17, 5)),
        (vec![1, 2, 5, 6, 0xee], vec![3, 4, 7, 8, 0xee])
    );
    let mut h = load(11, E8, masked("vlm.v", 16, 0, 5, 0));
    assert_eq!(bytes(&mut h, 16, 3), [1, 2, 0xee]);
    let mut h = run(&[masked("vl2re16.v", 16, 0, 5, 0)], |h| {
        setup(h);
        *h.slot(slots::VCONFIG) = Config::ILLEGAL.0;
    });
    assert_eq!(bytes(&mut h, 16, 32), (1..33).collect::<Vec<u8>>());

    let stored = |avl: u32, vtype: i32, word: u32, n: usize| {
        let mut h = load(avl, vtype, word);
        h.bytes(DATA + 1, n).unwrap().to_vec()
    };
    assert_eq!(stored(3, E8, v("vse8.v", 16, 0, 5), 4), [0xee, 0xee, 0xee, 4]);
    assert_eq!(stored(8, E8, masked("vse8.v", 16, 0, 5, 0), 8), [0xee, 2, 0xee, 4, 5, 0xee, 7, 0xee]);
    assert_eq!(stored(16, E8, v("vse8.v", 16, 0, 5), 17)[14..], [0xee, 0xee, 17]);
    assert_eq!(stored(3, E8, v("vsse8.v", 16, 6, 5), 8), [0xee, 2, 3, 0xee, 5, 6, 0xee, 8]);
    assert_eq!(stored(2, E8, v("vsoxei8.v", 16, 9, 5), 6), [0xee, 2, 3, 4, 0xee, 6]);
    assert_eq!(stored(1, E8, masked("vs1r.v", 16, 0, 5, 0), 17)[15..], [0xee, 17]);
}

#[test]
fn faults_stop_at_their_element() {
    let words = [set(8, E16), v("vle16.v", 16, 0, 5), v("vse16.v", 16, 0, 6)];
    let mut h = start(Helper, &words, |h| {
        put(h, 16, &[0xee; 16]);
        h.set_xs(&[(5, END - 6), (6, DATA)]);
    });
    // The first three elements are there.
    assert_eq!(go(Helper, &mut h), Stop::Exception(5, END));
    assert_eq!((h.pc, config(&mut h).vstart(), config(&mut h).vl()), (BASE + 4, 3, 8));
    assert_eq!(bytes(&mut h, 16, 8), [0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff, 0xee, 0xee]);
    // From there on it goes on: elements 0 to 2 are not loaded again.
    h.set_x(5, DATA);
    go(Helper, &mut h);
    assert_eq!(config(&mut h).vstart(), 0);
    assert_eq!(bytes(&mut h, 16, 8), [0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff, 6, 7]);
    // Stores, and in line: the exception is the same, and what has been done may be done again.
    for way in [Inline, Kernel, Helper] {
        let mut h = start(way, &[set_max(E16), v("vse16.v", 16, 0, 5)], |h| {
            put(h, 16, &[0xee; 16]);
            h.set_x(5, END - 6);
        });
        let Stop::Exception(7, _) = go(way, &mut h) else { panic!("no fault") };
        assert_eq!(h.pc, BASE + 4);
        h.memory.extend([0; 16]);
        go(way, &mut h);
        assert_eq!(h.bytes(END - 6, 16).unwrap(), [0xee; 16]);
        assert_eq!(config(&mut h).vstart(), 0);
    }
    // A segment that faults in its second field stops at the segment.
    let mut h = start(Helper, &[set(4, E16), v("vle16.v", 16, 0, 5) | 1 << 29], |h| h.set_x(5, END - 6));
    assert_eq!(go(Helper, &mut h), Stop::Exception(5, END));
    assert_eq!(config(&mut h).vstart(), 1);
}

#[test]
fn only_the_first_element_faults() {
    let words = [set(16, E8), v("vle8ff.v", 16, 0, 5), v("vadd.vv", 17, 16, 16)];
    let mut h = run(&words, |h| {
        put(h, 16, &[0xee; 16]);
        h.set_x(5, END - 5);
    });
    assert_eq!((config(&mut h).vl(), config(&mut h).vstart()), (5, 0));
    assert_eq!(bytes(&mut h, 16, 6), [0xfb, 0xfc, 0xfd, 0xfe, 0xff, 0xee]);
    assert_eq!(bytes(&mut h, 17, 6), [0xf6, 0xf8, 0xfa, 0xfc, 0xfe, 0]);
    let mut h = run(&words[..2], |h| h.set_x(5, END - 16));
    assert_eq!((config(&mut h).vl(), bytes(&mut h, 16, 1)[0]), (16, 0xf0));
    for way in [Inline, Kernel, Helper] {
        let mut h = start(way, &words, |h| h.set_x(5, END));
        assert_eq!(go(way, &mut h), Stop::Exception(5, END));
        assert_eq!((h.pc, config(&mut h).vl()), (BASE + 4, 16));
    }
}

#[test]
fn reserved_instructions_are_illegal() {
    // No type is set, the unit is off.
    refused_with(&[], v("vadd.vv", 8, 9, 10), |h| *h.slot(slots::VCONFIG) = Config::ILLEGAL.0);
    refused_with(&[], masked("vmv1r.v", 8, 9, 0, 0), |h| *h.slot(slots::VCONFIG) = Config::ILLEGAL.0);
    for word in [set(4, E32), v("vadd.vv", 8, 9, 10), v("vle8.v", 8, 0, 5), masked("vmv1r.v", 8, 9, 0, 0)] {
        refused_with(&[], word, |h| {
            if h.mode.vector == Unit::On {
                h.mode.vector = Unit::Off;
            }
            *h.slot(slots::MSTATUS) = 0;
        });
    }
    refused_with(&[set(4, E32)], v("vfadd.vv", 8, 9, 10), |h| {
        h.mode.fp = Unit::Off;
        *h.slot(slots::MSTATUS) = 3 << 9;
    });
    // Groups are aligned, and fit.
    refused(&[set(4, E32 | M2)], v("vadd.vv", 8, 9, 10));
    refused(&[set(4, E32 | M8)], v("vwadd.vv", 8, 16, 24));
    refused(&[set(2, E64)], v("vwadd.vv", 8, 9, 10));
    refused(&[set(4, E8 | M8)], v("vle16.v", 8, 0, 5));
    refused(&[set(4, E32 | M2)], v("vle32.v", 8, 0, 5) | 4 << 29);
    refused(&[set(4, E32)], v("vle32.v", 30, 0, 5) | 3 << 29);
    refused(&[], masked("vl4re8.v", 6, 0, 5, 0));
    // What is written does not overlap the mask, or sources of other widths.
    refused(&[set(4, E32)], masked("vadd.vv", 0, 8, 9, 0));
    refused(&[set(4, E32)], v("vwadd.vv", 8, 8, 9));
    refused(&[set(4, E32)], v("vnsrl.wv", 9, 8, 10));
    refused(&[set(4, E32)], v("vslideup.vx", 8, 8, 5));
    refused(&[set(4, E32)], v("vrgather.vv", 8, 9, 8));
    refused(&[set(4, E32)], v("vmsbf.m", 8, 8, 0));
    refused(&[set(4, E32)], masked("vcompress.vm", 8, 9, 8, 0));
    refused(&[set(4, E32)], masked("vadd.vv", 8, 0, 9, 0));
    // Widths.
    refused(&[set(4, E16)], v("vzext.vf4", 8, 9, 0));
    refused(&[set(4, E8)], v("vfadd.vv", 8, 9, 10));
    refused(&[set(4, E8)], v("vfwcvt.f.f.v", 8, 10, 0));
    // Those that do not start in the middle.
    let start_at_1 = masked("csrrwi", 0, 0, 0, 8) | 1 << 15;
    for word in
        [v("vredsum.vs", 8, 9, 10), v("viota.m", 8, 9, 0), v("vcpop.m", 8, 9, 0), v("vfredosum.vs", 8, 9, 10)]
    {
        refused(&[set(4, E32), start_at_1], word);
    }
}

#[test]
fn csrs() {
    let read = |csr: i32| masked("csrrs", 6, 0, 0, csr);
    let value = |before: &[u32], csr: i32| {
        let words: Vec<_> = before.iter().copied().chain([read(csr)]).collect();
        run(&words, |_| {}).x(6)
    };
    let write = |csr: i32, value: u32| masked("csrrwi", 0, 0, 0, csr) | value << 15;
    assert_eq!(value(&[set(5, E8 | 0xc0)], 0xc20), 5);
    assert_eq!(value(&[set(5, E8 | 0xc0)], 0xc21), 0xc0);
    assert_eq!(value(&[], 0xc22), 16);
    assert_eq!(value(&[write(8, 31)], 8), 31);
    assert_eq!(value(&[write(10, 2), write(9, 1)], 15), 5);
    assert_eq!(value(&[write(15, 6)], 10), 3);
    assert_eq!(value(&[write(15, 7), masked("csrrci", 0, 0, 0, 9) | 1 << 15], 15), 6);
}
