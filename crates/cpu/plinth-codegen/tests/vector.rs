//! Vectors of 128 bits against the IR's definition.

mod common;

use common::{ALL_SLOTS, FAULT, Oracle, PAGE, RAM, RAM_BYTES, Random, VECTOR0, VECTORS, Vm};
use plinth_codegen::frame::exit;
use plinth_ir::{Block, BlockBuilder, Code, Lane, Op, Ty, Val, VecOp, eval_vec};

fn vector(i: u16) -> Val {
    Val::slot(VECTOR0 + 2 * i)
}

fn lanes(random: &mut Random) -> u64 {
    (0..8).fold(0, |v, _| v << 8 | random.pick(&[0, 1, 0x7f, 0x80, 0xff, random.0 & 0xff]))
}

#[test]
fn lane_operations() {
    let mut vm = Vm::new();
    let mut random = Random(30);
    for &vop in VecOp::ALL {
        for &lane in Lane::ALL {
            for round in 0..60 {
                let values: Vec<u64> = (0..4).map(|_| lanes(&mut random)).collect();
                let at = usize::from(VECTOR0);
                vm.slots()[at..at + 4].copy_from_slice(&values);
                let mut block = Block::default();
                let mut b = BlockBuilder::new(&mut block);
                b.insn(0, 4);
                let dst = round % 3;
                let op = BlockBuilder::op(Code::VBin, Ty::V128);
                let op = Op { sub: vop as u8, flags: lane as u8, a: vector(0), b: vector(1), ..op };
                if round % 2 == 0 {
                    b.push(Op { dst: vector(dst), ..op });
                } else {
                    let t = b.temp();
                    b.push(Op { dst: t, ..op });
                    // a | a, from a temporary.
                    b.push(Op { sub: VecOp::Or as u8, dst: vector(dst), a: t, b: t, ..op });
                }
                b.exit(4);
                assert_eq!(vm.run(&block), exit::DISPATCH);
                let expected = eval_vec(vop, lane, [values[0], values[1]], [values[2], values[3]]);
                let at = at + 2 * usize::from(dst);
                assert_eq!(vm.slots()[at..at + 2], expected, "{vop:?} {lane:?} {values:x?}");
                vm.code.reset();
            }
        }
    }
}

fn random_instruction(b: &mut BlockBuilder<'_>, random: &mut Random) {
    let v = |r: &mut Random| vector(r.below(VECTORS.into()) as u16);
    let int = |r: &mut Random| Val::slot([2, 3, 14][r.below(3) as usize]);
    let flags = random.below(4) as u8;
    let op = |code| Op { flags, ..BlockBuilder::op(code, Ty::V128) };
    let disp = random.below(2000) as i32;
    match random.below(9) {
        0 => b.load(Ty::V128, 0, v(random), Val::slot(1), disp),
        1 => b.store(Ty::V128, 0, Val::slot(1), disp, v(random)),
        2 => b.push(Op { dst: v(random), a: int(random), ..op(Code::VSplat) }),
        3 => {
            let aux = random.below(16) as i32 % (128 / (8 << flags));
            b.push(Op { dst: int(random), a: v(random), aux, ..op(Code::VExtract) });
        }
        4 => {
            let aux = random.below(16) as i32 % (128 / (8 << flags));
            b.push(Op { dst: v(random), a: v(random), b: int(random), aux, ..op(Code::VInsert) });
        }
        5 => {
            // Half of a vector as an integer.
            let half = Val::slot(VECTOR0 + random.below(u64::from(2 * VECTORS)) as u16);
            b.bin(Code::Add, Ty::I64, half, half, int(random));
        }
        6 => {
            // A vector that lives across a load, and whose lanes are taken then.
            let (t, u, x) = (b.temp(), b.temp(), b.temp());
            b.push(Op { dst: t, a: int(random), ..op(Code::VSplat) });
            b.load(Ty::V128, 0, u, Val::slot(1), disp);
            b.load(Ty::I64, 0, int(random), Val::slot(1), disp + 64);
            b.push(Op { sub: VecOp::Xor as u8, dst: v(random), a: t, b: u, ..op(Code::VBin) });
            b.push(Op { dst: x, a: u, ..op(Code::VExtract) });
            b.bin(Code::Add, Ty::I64, int(random), int(random), x);
        }
        _ => {
            let sub = random.below(VecOp::ALL.len() as u64) as u8;
            b.push(Op { sub, dst: v(random), a: v(random), b: v(random), ..op(Code::VBin) });
        }
    }
}

#[test]
fn random_sequences_agree_with_the_interpreter() {
    let mut random = Random(31);
    for round in 0..3000 {
        let mut vm = Vm::new();
        if round % 3 != 0 {
            vm.map_all();
        }
        for i in 0..usize::from(ALL_SLOTS) {
            vm.slots()[i] = random.next();
        }
        vm.slots()[1] = RAM + 4096 - 1000;
        let mut block = Block::default();
        let mut b = BlockBuilder::new(&mut block);
        for i in 0..30 {
            b.insn(4 * i, 4);
            random_instruction(&mut b, &mut random);
        }
        b.insn(160, 4);
        b.exit(164);
        let mut oracle = Oracle::new(vm.slots());
        oracle.run(&block);
        assert_eq!(vm.run(&block), exit::DISPATCH);
        assert_eq!(vm.slots(), &oracle.words[..usize::from(ALL_SLOTS)], "round {round}");
        assert!(vm.env.ram == oracle.env.ram, "round {round}");
    }
}

#[test]
fn vector_faults_are_precise() {
    for store in [false, true] {
        let mut vm = Vm::new();
        vm.map_all();
        vm.slots()[1] = RAM + RAM_BYTES as u64 - 8;
        let ram = vm.env.ram.clone();
        let before = vm.slots().to_vec();
        let mut block = Block::default();
        let mut b = BlockBuilder::new(&mut block);
        b.insn(0x30, 4);
        if store {
            b.store(Ty::V128, 0, Val::slot(1), 0, vector(0));
        } else {
            b.load(Ty::V128, 0, vector(0), Val::slot(1), 0);
        }
        b.exit(4);
        assert_eq!(vm.run(&block), FAULT);
        assert_eq!(vm.frame().pc, PAGE + 0x30);
        assert_eq!(vm.slots(), before);
        assert!(vm.env.ram == ram);
    }
}
