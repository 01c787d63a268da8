//! Floating point against the IR's software floating point: values and flags.

mod common;

use common::{FLOAT0, LAYOUT, Oracle, RAM, Random, Vm};
use plinth_codegen::frame::exit;
use plinth_ir::{Block, BlockBuilder, Code, FloatOp, FpCond, Op, Round, Ty, Val, eval_float, flags};

const F64: [u64; 22] = [
    0x0000_0000_0000_0000,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0xbfe0_0000_0000_0000,
    0x3ff8_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_1234,
    0x7ff0_0000_0000_0001,
    0x0000_0000_0000_0001,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x41ef_ffff_fff0_0000,
    0x41f0_0000_0000_0000,
    0x43df_ffff_ffff_ffff,
    0x43e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0xc1e0_0000_0010_0000,
    0x3fd5_5555_5555_5555,
];

const F32: [u64; 20] = [
    0x0000_0000,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0xbf00_0000,
    0x3fc0_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_1234,
    0x7f80_0001,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4f80_0000,
    0x4f7f_ffff,
    0x5f00_0000,
    0xdf00_0000,
    0x3eaa_aaab,
];

fn value(random: &mut Random, ty: Ty) -> u64 {
    match (ty, random.below(3)) {
        (Ty::F64, 0) => random.next(),
        (Ty::F64, _) => random.pick(&F64),
        (Ty::F32, 0) => random.next() & 0xffff_ffff,
        (Ty::F32, _) => random.pick(&F32),
        (Ty::F16, _) => random.next() & 0xffff,
        _ => random.pick(&common::EDGES),
    }
}

const BOX32: u64 = 0xffff_ffff_0000_0000;
const BOX16: u64 = 0xffff_ffff_ffff_0000;

fn boxed(ty: Ty, v: u64) -> u64 {
    match ty {
        Ty::F32 => v | BOX32,
        Ty::F16 => v | BOX16,
        _ => v,
    }
}

/// All operations with float results or operands: (operation, types of its operands).
fn operations() -> Vec<(Op, Ty)> {
    let mut all = Vec::new();
    for ty in [Ty::F16, Ty::F32, Ty::F64] {
        let op = |code| BlockBuilder::op(code, ty);
        for &round in Round::ALL {
            let sub = round as u8;
            for code in [Code::FAdd, Code::FSub, Code::FMul, Code::FDiv, Code::FSqrt] {
                all.push((Op { sub, ..op(code) }, ty));
            }
            for signs in 0..4 {
                all.push((Op { sub, flags: signs, ..op(Code::FMulAdd) }, ty));
            }
            for fl in [0, flags::EXACT] {
                all.push((Op { sub, flags: fl, ..op(Code::FRound) }, ty));
            }
            for from in [Ty::F16, Ty::F32, Ty::F64] {
                all.push((Op { sub, aux: from as i32, ..op(Code::FCvtFF) }, from));
            }
            for int in [Ty::I32, Ty::I64] {
                for fl in [0, flags::SIGNED] {
                    let to_int = BlockBuilder::op(Code::FCvtFI, int);
                    all.push((Op { sub, flags: fl, aux: ty as i32, ..to_int }, ty));
                    all.push((Op { sub, flags: fl, aux: int as i32, ..op(Code::FCvtIF) }, int));
                }
            }
        }
        for code in [Code::FMin, Code::FMax, Code::FMinNan, Code::FMaxNan] {
            all.push((op(code), ty));
        }
        for &cond in FpCond::ALL {
            all.push((Op { sub: cond as u8, ..op(Code::FCmp) }, ty));
        }
    }
    all
}

/// One instruction as a RISC-V lifter makes it: unboxes narrow operands, boxes a narrow result.
fn instruction(b: &mut BlockBuilder<'_>, op: Op, from: Ty, operands: &[Val], dst: Val) {
    let mut vals = [Val::NONE; 3];
    for (v, &o) in vals.iter_mut().zip(operands) {
        *v = match from {
            Ty::F32 | Ty::F16 => {
                let t = b.temp();
                b.un(Code::NanUnbox, from, t, o);
                t
            }
            _ => o,
        };
    }
    let to_float = matches!(op.ty, Ty::F16 | Ty::F32) && op.code != Code::FCmp;
    let result = if to_float { b.temp() } else { dst };
    b.push(Op { dst: result, a: vals[0], b: vals[1], c: vals[2], ..op });
    if to_float {
        b.un(Code::NanBox, op.ty, dst, result);
    }
}

#[test]
fn operations_agree_with_software() {
    let mut random = Random(20);
    let mut vm = Vm::new();
    let mut inline = 0;
    for (op, from) in operations() {
        let n = op.code.operands() as usize;
        let int_result = matches!(op.code, Code::FCmp | Code::FCvtFI);
        let int_source = matches!(from, Ty::I32 | Ty::I64);
        for round in 0..150 {
            let values: Vec<u64> = (0..n).map(|_| value(&mut random, from)).collect();
            let slots: Vec<u16> =
                (0..n as u16).map(|i| if int_source { [0, 14][round % 2] } else { FLOAT0 + i }).collect();
            for (&s, &v) in slots.iter().zip(&values) {
                vm.slots()[usize::from(s)] = boxed(from, v);
            }
            let dst = if int_result { [1u16, 15][round / 2 % 2] } else { FLOAT0 + (round % 5) as u16 };
            let mut block = Block::default();
            let mut b = BlockBuilder::new(&mut block);
            b.insn(0, 4);
            let operands: Vec<Val> = slots.iter().map(|&s| Val::slot(s)).collect();
            instruction(&mut b, op, from, &operands, Val::slot(dst));
            b.exit(4);
            let before = random.below(32) as u8;
            vm.frame().fp_flags = u64::from(before);
            vm.frame().guest_mxcsr = common::MXCSR;
            vm.env.calls = [0; 5];
            assert_eq!(vm.run(&block), exit::DISPATCH);
            let v = |i: usize| values.get(i).copied().unwrap_or(0);
            let (expected, raised) = eval_float(FloatOp::from(&op), v(0), v(1), v(2), &LAYOUT.default_nan);
            let expected = if int_result { expected } else { boxed(op.ty, expected) };
            let got = vm.slots()[usize::from(dst)];
            assert_eq!(got, expected, "{op:?} of {values:x?}: {got:#x}, not {expected:#x}");
            let sticky = guest_flags(&mut vm);
            assert_eq!(sticky, before | raised, "flags of {op:?} of {values:x?}");
            inline += u32::from(vm.env.calls[4] == 0);
            vm.code.reset();
        }
    }
    assert!(inline > 10_000, "the host's unit does most of it: {inline}");
}

/// The flags as a guest reads them.
fn guest_flags(vm: &mut Vm) -> u8 {
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    b.insn(0, 4);
    b.push(Op { dst: Val::slot(12), ..BlockBuilder::op(Code::FpFlagsGet, Ty::I64) });
    b.exit(4);
    let keep = vm.slots()[12];
    vm.run(&block);
    std::mem::replace(&mut vm.slots()[12], keep) as u8
}

#[test]
fn flags_are_set_and_read() {
    let mut vm = Vm::new();
    for set in 0..64 {
        vm.frame().guest_mxcsr = common::MXCSR | 0x3f;
        vm.frame().fp_flags = 0x1f;
        let mut block = Block::default();
        let mut b = BlockBuilder::new(&mut block);
        b.insn(0, 4);
        b.push(Op { a: Val::slot(14), ..BlockBuilder::op(Code::FpFlagsSet, Ty::I64) });
        b.exit(4);
        vm.slots()[14] = set;
        vm.run(&block);
        assert_eq!(u64::from(guest_flags(&mut vm)), set & 31);
        assert_eq!(vm.frame().guest_mxcsr & !0x3f, common::MXCSR);
        vm.code.reset();
    }
}

#[test]
fn boxes_are_checked() {
    for ty in [Ty::F16, Ty::F32] {
        for high in [0, BOX32 << 1, BOX32, BOX16, u64::MAX << 33] {
            for dst in [0, 15, FLOAT0 + 1] {
                let mut vm = Vm::new();
                let v = high | 0x3f80;
                vm.slots()[usize::from(FLOAT0)] = v;
                let mut block = Block::default();
                let mut b = BlockBuilder::new(&mut block);
                b.insn(0, 4);
                let (t, u) = (b.temp(), b.temp());
                b.un(Code::NanUnbox, ty, t, Val::slot(FLOAT0));
                b.un(Code::NanUnbox, ty, u, Val::slot(FLOAT0));
                b.un(Code::NanBox, ty, Val::slot(dst), t);
                b.bin(Code::Add, Ty::I64, Val::slot(1), u, t);
                b.exit(4);
                vm.run(&block);
                let op = FloatOp::from(&BlockBuilder::op(Code::NanUnbox, ty));
                let plain = eval_float(op, v, 0, 0, &LAYOUT.default_nan).0;
                assert_eq!(vm.slots()[1], 2 * plain, "{ty:?} {high:#x}");
                assert_eq!(vm.slots()[usize::from(dst)], boxed(ty, plain), "{ty:?} {high:#x} {dst}");
            }
        }
    }
}

/// A random float instruction.
fn random_instruction(b: &mut BlockBuilder<'_>, random: &mut Random, all: &[(Op, Ty)]) {
    let fslot = |r: &mut Random| Val::slot(FLOAT0 + r.below(6) as u16);
    let islot = |r: &mut Random| Val::slot([2, 3, 14][r.below(3) as usize]);
    // Slot 1 points into the RAM.
    let disp = 4 * if random.one_in(4) { random.below(500) } else { random.below(30) } as i32;
    match random.below(12) {
        0 => b.load(Ty::I64, 0, fslot(random), Val::slot(1), disp),
        1 => {
            let t = b.temp();
            b.load(Ty::I32, 0, t, Val::slot(1), disp);
            b.un(Code::NanBox, Ty::F32, fslot(random), t);
        }
        2 => b.store(Ty::I64, 0, Val::slot(1), disp, fslot(random)),
        3 => b.store(Ty::I32, 0, Val::slot(1), disp, fslot(random)),
        4 => b.un(Code::Mov, Ty::I64, fslot(random), fslot(random)),
        5 => b.un(Code::Mov, Ty::I64, fslot(random), islot(random)),
        6 => {
            let sign = b.constant(1 << 63);
            b.bin(Code::Xor, Ty::I64, fslot(random), fslot(random), sign);
        }
        7 => {
            let (t, u) = (b.temp(), b.temp());
            let mask = b.constant(0x7fff_ffff);
            b.un(Code::NanUnbox, Ty::F32, t, fslot(random));
            b.bin(Code::And, Ty::I64, u, t, mask);
            b.un(Code::NanBox, Ty::F32, fslot(random), u);
        }
        _ => {
            let (op, from) = random.pick(all);
            let int_result = matches!(op.code, Code::FCmp | Code::FCvtFI);
            let int_source = matches!(from, Ty::I32 | Ty::I64);
            let operands: Vec<Val> = (0..op.code.operands())
                .map(|_| if int_source { islot(random) } else { fslot(random) })
                .collect();
            let dst = if int_result { islot(random) } else { fslot(random) };
            instruction(b, op, from, &operands, dst);
        }
    }
}

#[test]
fn random_sequences_agree_with_the_interpreter() {
    let mut random = Random(21);
    let all: Vec<_> = operations()
        .into_iter()
        .filter(|(op, from)| op.ty != Ty::F16 && *from != Ty::F16 && op.aux != Ty::F16 as i32)
        .collect();
    for round in 0..4000 {
        let mut vm = Vm::new();
        if round % 3 != 0 {
            vm.map_all();
        } else {
            vm.map(1, false);
        }
        for i in 0..8 {
            let ty = random.pick(&[Ty::F32, Ty::F64]);
            vm.slots()[usize::from(FLOAT0) + i] = boxed(ty, value(&mut random, ty));
        }
        vm.slots()[1] = RAM + 4096 - random.pick(&[1000, 60]);
        vm.slots()[2] = random.next();
        vm.slots()[3] = random.pick(&common::EDGES);
        let mut block = Block::default();
        let mut b = BlockBuilder::new(&mut block);
        for i in 0..40 {
            b.insn(4 * i, 4);
            random_instruction(&mut b, &mut random, &all);
            if random.one_in(20) {
                b.insn(4 * i, 4);
                b.helper(0, Val::slot(5), &[Val::slot(2), Val::slot(14)]);
            }
        }
        b.insn(160, 4);
        b.exit(164);
        let mut oracle = Oracle::new(vm.slots());
        oracle.run(&block);
        assert_eq!(vm.run(&block), exit::DISPATCH);
        let n = usize::from(common::ALL_SLOTS);
        assert_eq!(vm.slots(), &oracle.words[..n], "round {round}");
        assert!(vm.env.ram == oracle.env.ram, "round {round}");
        assert_eq!(guest_flags(&mut vm), oracle.fp_flags, "round {round}");
    }
}
