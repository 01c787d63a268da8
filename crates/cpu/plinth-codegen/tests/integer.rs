//! Every integer operation, with operands of every kind in every place, against the IR's definition.

mod common;

use common::{EDGES, Random, Vm};
use plinth_codegen::frame::exit;
use plinth_ir::{Block, BlockBuilder, Code, Cond, Op, Ty, Val, eval_cond, eval_int};

/// Where an operand or result is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// A pinned slot, or one in memory.
    Slot(u16),
    Temp,
    Constant,
}

const SOURCES: [Place; 5] = [Place::Slot(0), Place::Slot(1), Place::Slot(14), Place::Temp, Place::Constant];
const RESULTS: [Place; 5] = [Place::Slot(0), Place::Slot(1), Place::Slot(14), Place::Slot(15), Place::Temp];

/// The operand's value for `place` in `b`.
fn operand(b: &mut BlockBuilder<'_>, place: Place, value: u64) -> Val {
    match place {
        Place::Slot(s) => Val::slot(s),
        Place::Constant => b.constant(value),
        Place::Temp => {
            // Not a mere copy of a constant: that would be folded.
            let t = b.temp();
            let (s, zero) = (Val::slot(9), b.constant(value));
            b.bin(Code::Add, Ty::I64, t, s, zero);
            t
        }
    }
}

struct Case {
    code: Code,
    ty: Ty,
    sub: u8,
    aux: i32,
    operands: usize,
}

impl Case {
    fn name(&self) -> String {
        format!("{:?}.{:?}.{}.{}", self.code, self.ty, self.sub, self.aux)
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for &code in Code::ALL {
        if !(Code::Mov as u8..=Code::BitRev8 as u8).contains(&(code as u8)) {
            continue;
        }
        for ty in [Ty::I32, Ty::I64] {
            if eval_int(code, ty, 0, 0, 0, 0).is_none() {
                continue;
            }
            let subs = if code == Code::SetCond { Cond::ALL.len() as u8 } else { 1 };
            let auxes = if code == Code::ShlAdd { 1..4 } else { 0..1 };
            for sub in 0..subs {
                for aux in auxes.clone() {
                    let operands = code.operands() as usize;
                    all.push(Case { code, ty, sub, aux, operands });
                }
            }
        }
    }
    all
}

/// Runs one case; gives what ended up in the result's place, and what should have.
fn check(vm: &mut Vm, case: &Case, places: [Place; 3], result: Place, values: [u64; 3], sext: bool) {
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    b.insn(0, 4);
    let mut slots = vm.slots().to_vec();
    slots[9] = 0;
    let mut actual = [0; 3];
    let mut vals = [Val::NONE; 3];
    for i in 0..case.operands {
        if let Place::Slot(s) = places[i] {
            slots[usize::from(s)] = values[i];
        }
    }
    for i in 0..case.operands {
        vals[i] = operand(&mut b, places[i], values[i]);
        actual[i] = match places[i] {
            Place::Slot(s) => slots[usize::from(s)],
            _ => values[i],
        };
    }
    let dst = match result {
        Place::Slot(s) => Val::slot(s),
        _ => b.temp(),
    };
    let first = if sext { b.temp() } else { dst };
    let op = Op {
        sub: case.sub,
        aux: case.aux,
        dst: first,
        a: vals[0],
        b: vals[1],
        c: vals[2],
        ..BlockBuilder::op(case.code, case.ty)
    };
    b.push(op);
    if sext {
        b.un(Code::Sext32, Ty::I64, dst, first);
    }
    if result == Place::Temp {
        // Also with a live neighbour, so that the result is not simply forwarded.
        b.bin(Code::Add, Ty::I64, Val::slot(15), dst, Val::slot(9));
        b.bin(Code::Xor, Ty::I64, Val::slot(14), dst, Val::slot(9));
    }
    b.exit(4);
    vm.slots().copy_from_slice(&slots);
    assert_eq!(vm.run(&block), exit::DISPATCH);
    let c = if case.code == Code::ShlAdd { case.aux as u64 } else { actual[2] };
    let mut expected = eval_int(case.code, case.ty, case.sub, actual[0], actual[1], c).expect("defined");
    if sext {
        expected = expected as i32 as u64;
    }
    let changed: &[usize] = match result {
        Place::Slot(s) => &[usize::from(s)],
        _ => &[14, 15],
    };
    for &i in changed {
        slots[i] = expected;
    }
    let got = vm.slots().to_vec();
    assert_eq!(
        got,
        slots,
        "{} of {actual:x?} at {places:?} to {result:?} (sext {sext}); expected {expected:#x}",
        case.name()
    );
    vm.code.reset();
}

#[test]
fn all_operations_in_all_places() {
    let mut vm = Vm::new();
    let mut random = Random(1);
    for case in cases() {
        let places =
            |n: usize| -> &'static [Place] { if n < case.operands { &SOURCES } else { &SOURCES[..1] } };
        for &a in places(0) {
            for &b in places(1) {
                for &c in places(2) {
                    for result in RESULTS {
                        let values = [0; 3].map(|_| random.pick(&EDGES));
                        check(&mut vm, &case, [a, b, c], result, values, random.one_in(4));
                    }
                }
            }
        }
    }
}

#[test]
fn all_operations_on_all_edges() {
    let mut vm = Vm::new();
    let mut random = Random(2);
    for case in cases() {
        for a in EDGES {
            for b in EDGES {
                let c = random.pick(&EDGES);
                let places = [0; 3].map(|_| random.pick(&SOURCES));
                let result = random.pick(&RESULTS);
                check(&mut vm, &case, places, result, [a, b, c], random.one_in(8));
                if case.operands < 2 {
                    break;
                }
            }
        }
    }
}

#[test]
fn branches_on_all_conditions() {
    let mut vm = Vm::new();
    let mut random = Random(3);
    for &cond in Cond::ALL {
        for ty in [Ty::I32, Ty::I64] {
            for x in EDGES {
                for y in EDGES {
                    let (pa, pb) = (random.pick(&SOURCES), random.pick(&SOURCES));
                    let mut block = Block::default();
                    let mut b = BlockBuilder::new(&mut block);
                    b.insn(0, 4);
                    let mut values = [x, y];
                    if let (Place::Slot(s), Place::Slot(t)) = (pa, pb)
                        && s == t
                    {
                        values[0] = y;
                    }
                    vm.slots()[9] = 0;
                    for (p, v) in [pa, pb].into_iter().zip(values) {
                        if let Place::Slot(s) = p {
                            vm.slots()[usize::from(s)] = v;
                        }
                    }
                    let va = operand(&mut b, pa, values[0]);
                    let vb = operand(&mut b, pb, values[1]);
                    let (inside, taken) = (random.one_in(2), b.label(16));
                    b.br(cond, ty, va, vb, taken);
                    b.insn(4, 4);
                    b.exit(8);
                    if inside {
                        b.bind(taken);
                        b.insn(16, 4);
                        b.exit(16);
                    }
                    let reason = vm.run(&block);
                    let expected = eval_cond(cond, ty, values[0], values[1]);
                    let pc = vm.frame().pc - common::PAGE;
                    assert_eq!(pc == 16, expected, "{cond:?} {ty:?} {values:x?} {pa:?} {pb:?}");
                    assert_eq!(reason, if expected && !inside { exit::LINK } else { exit::DISPATCH });
                    vm.code.reset();
                }
            }
        }
    }
}

#[test]
fn old_values_survive_their_slots() {
    // Temporaries that stand for a slot keep its value when the slot changes: pinned and in memory.
    for slot in [2, 14] {
        let mut vm = Vm::new();
        let mut block = Block::default();
        let mut b = BlockBuilder::new(&mut block);
        b.insn(0, 4);
        let (s, t, u) = (Val::slot(slot), b.temp(), b.temp());
        let one = b.constant(1);
        b.un(Code::Mov, Ty::I64, t, s);
        b.un(Code::Mov, Ty::I64, u, t);
        b.bin(Code::Add, Ty::I64, s, s, one);
        b.helper(3, Val::slot(5), &[t]);
        b.bin(Code::Add, Ty::I64, Val::slot(6), t, u);
        b.exit(4);
        vm.slots()[usize::from(slot)] = 40;
        vm.run(&block);
        assert_eq!(vm.slots()[6], 80);
        assert_eq!(vm.slots()[5], 120);
        assert_eq!(vm.slots()[usize::from(slot)], if slot == 14 { 41 ^ 40 } else { 41 });
    }
}

#[test]
fn more_temporaries_than_registers() {
    let mut vm = Vm::new();
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    b.insn(0, 4);
    let temps: Vec<Val> = (0..40).map(|_| b.temp()).collect();
    for (i, &t) in temps.iter().enumerate() {
        let c = b.constant(i as u64);
        b.bin(Code::Add, Ty::I64, t, Val::slot(0), c);
    }
    b.un(Code::Mov, Ty::I64, Val::slot(1), temps[0]);
    for &t in &temps[1..] {
        b.bin(Code::Add, Ty::I64, Val::slot(1), Val::slot(1), t);
    }
    b.exit(4);
    vm.slots()[0] = 1000;
    vm.run(&block);
    assert_eq!(vm.slots()[1], 40 * 1000 + (0..40).sum::<u64>());
}

#[test]
fn malformed_blocks_are_refused() {
    let mut vm = Vm::new();
    let build = |f: &dyn Fn(&mut BlockBuilder<'_>)| {
        let mut block = Block::default();
        let mut b = BlockBuilder::new(&mut block);
        b.insn(0, 4);
        f(&mut b);
        block
    };
    let bad = [
        build(&|b| b.un(Code::Mov, Ty::I64, Val::slot(0), Val::slot(1))),
        build(&|b| {
            b.bin(Code::Add, Ty::I64, Val::slot(0), Val::temp(7), Val::slot(1));
            b.exit(0);
        }),
        build(&|b| {
            b.bin(Code::Add, Ty::I64, Val::slot(0), Val::slot(900), Val::slot(1));
            b.exit(0);
        }),
        build(&|b| {
            b.bin(Code::Add, Ty::I64, Val::slot(0), Val::constant(9), Val::slot(1));
            b.exit(0);
        }),
        build(&|b| b.push(Op { aux: 5, ..BlockBuilder::op(Code::Jmp, Ty::I64) })),
        build(&|b| {
            let over: Vec<Val> = (0..80).map(|_| b.temp()).collect();
            for &t in &over {
                b.bin(Code::Add, Ty::I64, t, Val::slot(0), Val::slot(1));
            }
            for &t in &over {
                b.bin(Code::Add, Ty::I64, Val::slot(0), Val::slot(0), t);
            }
            b.exit(0);
        }),
    ];
    for block in &bad {
        assert!(vm.try_translate(block).is_err(), "{block:?}");
    }
}

#[test]
fn an_operand_in_memory_outlives_an_eviction() {
    // The last use of a spilled temporary in an operation that needs a register which others live in.
    let mut vm = Vm::new();
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    b.insn(0, 4);
    let t: Vec<Val> = (0..4).map(|_| b.temp()).collect();
    let c = b.constant(1 << 32);
    b.bin(Code::Rotr, Ty::I32, t[0], Val::slot(8), Val::slot(14));
    b.bin(Code::MulHiU, Ty::I64, t[1], t[0], c);
    b.bin(Code::Rotl, Ty::I64, t[2], t[0], t[1]);
    b.bin(Code::Rotr, Ty::I64, Val::slot(15), c, t[0]);
    b.bin(Code::Sub, Ty::I64, t[3], t[1], t[2]);
    b.un(Code::Mov, Ty::I64, Val::slot(3), t[3]);
    b.exit(4);
    (vm.slots()[8], vm.slots()[14]) = (0x0500_0000, 24);
    vm.run(&block);
    assert_eq!(vm.slots()[15], 1 << 27);
    assert_eq!(vm.slots()[3], 0u64.wrapping_sub(5));
}
