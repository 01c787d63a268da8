//! Loads, stores and atomics: the fast path, the ways into the slow path, faults.

mod common;

use common::{EDGES, FAULT, PAGE, RAM, RAM_BYTES, Random, TOKEN, Vm};
use plinth_codegen::frame::{TAG_SLOW, exit, tlb_index};
use plinth_ir::{AmoOp, Block, BlockBuilder, Code, Op, Ty, Val, eval_amo, extend, flags};

const TYPES: [Ty; 4] = [Ty::I8, Ty::I16, Ty::I32, Ty::I64];

fn block(f: impl FnOnce(&mut BlockBuilder<'_>)) -> Block {
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    b.insn(0x10, 4);
    f(&mut b);
    b.insn(0x14, 4);
    b.exit(0x18);
    block
}

#[test]
fn loads_of_all_kinds() {
    let mut random = Random(7);
    for ty in TYPES {
        for fl in [0, flags::SEXT] {
            for dst in [0, 1, 14] {
                for base in [0, 13] {
                    for mapped in [false, true] {
                        let mut vm = Vm::new();
                        if mapped {
                            vm.map_all();
                        }
                        let disp = [0, 8, -2048, 2047][random.below(4) as usize];
                        // Never across a page here.
                        let va = RAM + 8 * random.below(RAM_BYTES as u64 / 8);
                        vm.slots()[base] = va.wrapping_sub(disp as u64);
                        let b = block(|b| b.load(ty, fl, Val::slot(dst), Val::slot(base as u16), disp));
                        assert_eq!(vm.run(&b), exit::DISPATCH);
                        let raw = vm.env.read(va, ty.bytes()).expect("in RAM");
                        assert_eq!(vm.slots()[usize::from(dst)], extend(ty, fl != 0, raw));
                        assert_eq!(vm.env.calls[0], u32::from(!mapped), "{ty:?} {va:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn stores_of_all_kinds() {
    let mut random = Random(8);
    for ty in TYPES {
        for value in 0..4 {
            for mapped in [false, true] {
                let mut vm = Vm::new();
                if mapped {
                    vm.map_all();
                }
                let va = RAM + 8 * random.below(RAM_BYTES as u64 / 8);
                let v = random.pick(&EDGES);
                vm.slots()[2] = va.wrapping_add(5);
                vm.slots()[9] = 0;
                let mut expected = vm.env.ram.clone();
                let at = (va - RAM) as usize;
                expected[at..at + ty.bytes() as usize]
                    .copy_from_slice(&v.to_le_bytes()[..ty.bytes() as usize]);
                for slot in [5, 14] {
                    vm.slots()[slot] = v;
                }
                let b = block(|b| {
                    let val = match value {
                        0 => Val::slot(5),
                        1 => Val::slot(14),
                        2 => b.constant(v),
                        _ => {
                            let t = b.temp();
                            b.bin(Code::Add, Ty::I64, t, Val::slot(5), Val::slot(9));
                            t
                        }
                    };
                    b.store(ty, 0, Val::slot(2), -5, val);
                });
                assert_eq!(vm.run(&b), exit::DISPATCH);
                assert!(vm.env.ram == expected, "{ty:?} {value} {v:#x} at {va:#x}");
                assert_eq!(vm.env.calls[1], u32::from(!mapped));
            }
        }
    }
}

#[test]
fn addresses_from_temporaries_and_constants() {
    let mut vm = Vm::new();
    vm.map_all();
    vm.slots()[1] = RAM + 64;
    vm.slots()[2] = 8;
    let b = block(|b| {
        let (t, u) = (b.temp(), b.temp());
        b.bin(Code::Add, Ty::I64, t, Val::slot(1), Val::slot(2));
        b.bin(Code::Add, Ty::I64, u, Val::slot(2), Val::slot(2));
        b.load(Ty::I64, 0, Val::slot(3), t, 0);
        b.load(Ty::I64, 0, Val::slot(4), t, 8);
        b.store(Ty::I64, 0, t, 16, u);
        let c = b.constant(RAM + 4096);
        b.load(Ty::I32, 0, Val::slot(15), c, -4);
        // A value that is its own address, the base overwritten by the load.
        b.store(Ty::I64, 0, Val::slot(1), 64, Val::slot(1));
        b.load(Ty::I64, 0, Val::slot(1), Val::slot(1), 0);
    });
    let expected = [72, 80, 64].map(|o| vm.env.read(RAM + o, 8).expect("in RAM"));
    let last = vm.env.read(RAM + 4092, 4).expect("in RAM");
    assert_eq!(vm.run(&b), exit::DISPATCH);
    assert_eq!([vm.slots()[3], vm.slots()[4], vm.slots()[1]], expected);
    assert_eq!(vm.slots()[15], last);
    assert_eq!(vm.env.read(RAM + 88, 8), Some(16));
    assert_eq!(vm.env.read(RAM + 128, 8), Some(RAM + 64));
    assert_eq!(vm.env.calls, [0; 5]);
}

#[test]
fn accesses_across_pages_go_to_the_engine() {
    for ty in TYPES {
        for back in 1..u64::from(ty.bytes()) {
            let mut vm = Vm::new();
            vm.map_all();
            let va = RAM + 4096 - back;
            vm.slots()[1] = va;
            vm.slots()[2] = 0x1122_3344_5566_7788;
            let b = block(|b| {
                b.store(ty, 0, Val::slot(1), 0, Val::slot(2));
                b.load(ty, 0, Val::slot(3), Val::slot(1), 0);
            });
            vm.run(&b);
            assert_eq!(vm.slots()[3], extend(ty, false, 0x1122_3344_5566_7788));
            assert_eq!(vm.env.calls[..2], [1, 1]);
        }
    }
}

#[test]
fn entries_of_others_do_not_match() {
    let load = block(|b| b.load(Ty::I64, 0, Val::slot(3), Val::slot(1), 0));
    let store = block(|b| b.store(Ty::I64, 0, Val::slot(1), 0, Val::slot(2)));
    let spoil: [fn(&mut plinth_codegen::frame::TlbEntry); 5] = [
        |e| (e.read, e.write) = (e.read + 1, e.write + 1),
        |e| (e.read, e.write) = (e.read | TAG_SLOW, e.write | TAG_SLOW),
        |e| (e.read, e.write) = (e.read ^ 1 << 63, e.write ^ 1 << 63),
        |e| (e.read, e.write) = (0, 0),
        |e| (e.read, e.write) = (e.read + 4096, e.write + 4096),
    ];
    for f in spoil {
        let mut vm = Vm::new();
        vm.map_all();
        vm.slots()[1] = RAM + 8;
        vm.slots()[2] = 77;
        let mmu = vm.mode.data();
        f(&mut vm.frame().tlb[mmu][tlb_index(RAM)]);
        vm.run(&load);
        vm.run(&store);
        assert_eq!(vm.env.calls[..2], [1, 1]);
        assert_eq!(vm.env.read(RAM + 8, 8), Some(77));
    }
    // Another token, and a page that may only be read.
    let mut vm = Vm::new();
    vm.map(0, false);
    vm.slots()[1] = RAM + 8;
    vm.run(&load);
    vm.run(&store);
    assert_eq!(vm.env.calls[..2], [0, 1]);
    vm.frame().tokens = [TOKEN + 1; 4];
    vm.run(&load);
    assert_eq!(vm.env.calls[..2], [1, 1]);
}

#[test]
fn the_mode_selects_the_tlb() {
    let b = block(|b| b.load(Ty::I64, 0, Val::slot(3), Val::slot(1), 0));
    for key in 0..4 {
        let mut vm = Vm::new();
        vm.mode.key = key;
        vm.map_all();
        vm.slots()[1] = RAM + 16;
        vm.run(&b);
        assert_eq!(vm.env.calls[0], 0);
        vm.mode.key = key ^ 1;
        vm.run(&b);
        assert_eq!(vm.env.calls[0], 1);
    }
}

#[test]
fn faults_leave_with_precise_state() {
    for store in [false, true] {
        let mut vm = Vm::new();
        vm.map_all();
        let before: Vec<u64> = (0..vm.slots().len() as u64).map(|i| i * 11).collect();
        vm.slots().copy_from_slice(&before);
        vm.slots()[1] = RAM + RAM_BYTES as u64 - 4;
        let mut blk = Block::default();
        let mut b = BlockBuilder::new(&mut blk);
        b.insn(0x20, 2);
        let one = b.constant(1);
        b.bin(Code::Add, Ty::I64, Val::slot(4), Val::slot(4), one);
        b.insn(0x22, 2);
        if store {
            b.store(Ty::I64, 0, Val::slot(1), 0, Val::slot(2));
        } else {
            b.load(Ty::I64, 0, Val::slot(1), Val::slot(1), 0);
        }
        b.bin(Code::Add, Ty::I64, Val::slot(5), Val::slot(5), one);
        b.exit(0x24);
        assert_eq!(vm.run(&blk), FAULT);
        let mut expected = before;
        expected[1] = RAM + RAM_BYTES as u64 - 4;
        expected[4] += 1;
        assert_eq!(vm.slots(), expected);
        assert_eq!(vm.frame().pc, PAGE + 0x22);
        assert_eq!(vm.frame().leave, 0);
        let (va, desc) = vm.env.last;
        assert_eq!(va, RAM + RAM_BYTES as u64 - 4);
        assert_eq!((desc >> 16 & 0xffff, desc >> 48), (0x22, 2));
    }
}

#[test]
fn slow_loads_keep_temporaries() {
    let mut vm = Vm::new();
    vm.slots()[1] = RAM;
    vm.slots()[2] = 1000;
    let b = block(|b| {
        let (t, old) = (b.temp(), b.temp());
        let one = b.constant(1);
        b.bin(Code::Add, Ty::I64, t, Val::slot(2), one);
        b.un(Code::Mov, Ty::I64, old, Val::slot(1));
        b.load(Ty::I64, 0, Val::slot(1), Val::slot(1), 0);
        b.bin(Code::Add, Ty::I64, Val::slot(3), t, old);
    });
    vm.run(&b);
    assert_eq!(vm.slots()[3], 1001 + RAM);
}

fn atomic_op(code: Code, ty: Ty, sub: u8, fl: u8, dst: Val, bc: [Val; 2]) -> Op {
    Op { sub, flags: fl, dst, a: Val::slot(1), b: bc[0], c: bc[1], ..BlockBuilder::op(code, ty) }
}

#[test]
fn amo_operations() {
    let mut random = Random(9);
    for &amo in AmoOp::ALL {
        for ty in TYPES {
            for round in 0..20 {
                let mut vm = Vm::new();
                if round % 2 == 0 {
                    vm.map_all();
                }
                let fl = random.pick(&[0, flags::SEXT, flags::ALIGNED, flags::SEXT | flags::ALIGNED]);
                let (old, v) = (random.pick(&EDGES), random.pick(&EDGES));
                let va = RAM + 8 * random.below(100);
                vm.env.write(va, 8, old);
                vm.slots()[1] = va;
                vm.slots()[14] = v;
                vm.slots()[2] = v;
                let dst = random.pick(&[Val::slot(3), Val::slot(15), Val::slot(1), Val::slot(2), Val::NONE]);
                let blk = block(|b| {
                    let value = match random.below(4) {
                        0 => Val::slot(2),
                        1 => Val::slot(14),
                        2 => b.constant(v),
                        _ => {
                            let t = b.temp();
                            b.bin(Code::Or, Ty::I64, t, Val::slot(2), Val::slot(2));
                            t
                        }
                    };
                    b.push(atomic_op(Code::Amo, ty, amo as u8, fl, dst, [value, Val::NONE]));
                });
                assert_eq!(vm.run(&blk), exit::DISPATCH);
                let before = extend(ty, false, old);
                let keep = if ty == Ty::I64 { 0 } else { old & (u64::MAX << ty.bits()) };
                assert_eq!(
                    vm.env.read(va, 8),
                    Some(eval_amo(amo, ty, before, v) | keep),
                    "{amo:?} {ty:?} {old:#x} {v:#x}"
                );
                if let Some(slot) = dst.as_slot() {
                    assert_eq!(vm.slots()[usize::from(slot)], extend(ty, fl & flags::SEXT != 0, old));
                }
                assert_eq!(vm.env.calls[2], u32::from(round % 2 != 0));
            }
        }
    }
}

#[test]
fn compare_and_swap() {
    let mut random = Random(10);
    for ty in TYPES {
        for round in 0..200 {
            let mut vm = Vm::new();
            if round % 2 == 0 {
                vm.map_all();
            }
            let old = random.pick(&EDGES);
            let expect = if random.one_in(2) {
                old ^ 0xabcd_0000_0000_0000 & (u64::MAX << (ty.bits() - 1) << 1)
            } else {
                random.pick(&EDGES)
            };
            let new = random.pick(&EDGES);
            vm.env.write(RAM, 8, old);
            vm.slots()[1] = RAM;
            vm.slots()[2] = expect;
            vm.slots()[15] = new;
            let dst = random.pick(&[Val::slot(3), Val::slot(2), Val::slot(15)]);
            let blk = block(|b| {
                b.push(atomic_op(Code::Cas, ty, 0, flags::SEXT, dst, [Val::slot(2), Val::slot(15)]));
            });
            vm.run(&blk);
            let hit = extend(ty, false, old) == extend(ty, false, expect);
            let keep = if ty == Ty::I64 { 0 } else { old & (u64::MAX << ty.bits()) };
            let after = if hit { extend(ty, false, new) | keep } else { old };
            assert_eq!(vm.env.read(RAM, 8), Some(after), "{ty:?} {old:#x} {expect:#x} {new:#x}");
            assert_eq!(vm.slots()[dst.0 as usize], extend(ty, true, old));
        }
    }
}

#[test]
fn reservations() {
    let lr = |ty| {
        block(|b| {
            b.push(atomic_op(
                Code::LoadReserved,
                ty,
                0,
                flags::ALIGNED | flags::SEXT,
                Val::slot(3),
                [Val::NONE; 2],
            ))
        })
    };
    let sc = |ty| {
        block(|b| {
            b.push(atomic_op(Code::StoreCond, ty, 0, flags::ALIGNED, Val::slot(4), [Val::slot(2), Val::NONE]))
        })
    };
    for ty in [Ty::I32, Ty::I64] {
        for mapped in [false, true] {
            let mut vm = Vm::new();
            if mapped {
                vm.map_all();
            }
            let old = 0xfedc_ba98_8765_4321;
            vm.env.write(RAM + 8, 8, old);
            vm.slots()[1] = RAM + 8;
            vm.slots()[2] = 55;
            let before = vm.env.read(RAM + 8, 8);
            // Without a reservation.
            vm.run(&sc(ty));
            assert_eq!((vm.slots()[4], vm.env.read(RAM + 8, 8)), (1, before));
            // With one.
            vm.run(&lr(ty));
            assert_eq!(vm.slots()[3], extend(ty, true, old));
            vm.run(&sc(ty));
            assert_eq!((vm.slots()[4], vm.env.read(RAM + 8, ty.bytes())), (0, Some(55)));
            // It is gone.
            vm.slots()[2] = 56;
            vm.run(&sc(ty));
            assert_eq!((vm.slots()[4], vm.env.read(RAM + 8, ty.bytes())), (1, Some(55)));
            // At another address, and after somebody else's store.
            vm.run(&lr(ty));
            vm.slots()[1] = RAM + 16;
            vm.run(&sc(ty));
            assert_eq!(vm.slots()[4], 1);
            vm.slots()[1] = RAM + 8;
            vm.run(&lr(ty));
            vm.env.write(RAM + 8, 1, 99);
            vm.run(&sc(ty));
            assert_eq!((vm.slots()[4], vm.env.read(RAM + 8, 1)), (1, Some(99)));
            assert_eq!(vm.frame().reserved_va, u64::MAX);
            assert_eq!(vm.env.calls[2] == 0, mapped);
        }
    }
}

#[test]
fn misaligned_accesses_that_must_be_aligned() {
    for code in [Code::Amo, Code::LoadReserved, Code::StoreCond, Code::Cas] {
        let mut vm = Vm::new();
        vm.map_all();
        vm.slots()[1] = RAM + 4;
        let ram = vm.env.ram.clone();
        let blk = block(|b| {
            b.push(atomic_op(code, Ty::I64, 0, flags::ALIGNED, Val::slot(3), [Val::slot(2); 2]));
        });
        assert_eq!(vm.run(&blk), FAULT);
        assert_eq!(vm.frame().pc, PAGE + 0x10);
        assert!(vm.env.ram == ram);
    }
    let mut vm = Vm::new();
    vm.map_all();
    vm.slots()[1] = RAM + 2;
    let blk = block(|b| b.load(Ty::I32, flags::ALIGNED, Val::slot(3), Val::slot(1), 0));
    assert_eq!(vm.run(&blk), FAULT);
    vm.slots()[1] = RAM + 4;
    assert_eq!(vm.run(&blk), exit::DISPATCH);
    assert_eq!(vm.env.calls[0], 1);
}

#[test]
fn fences_change_nothing() {
    let mut vm = Vm::new();
    let before = vm.slots().to_vec();
    let blk = block(|b| {
        b.push(Op { aux: 1, ..BlockBuilder::op(Code::Fence, Ty::I64) });
        b.push(Op { aux: 0, ..BlockBuilder::op(Code::Fence, Ty::I64) });
    });
    assert_eq!(vm.run(&blk), exit::DISPATCH);
    assert_eq!(vm.slots(), before);
}

/// Loads and stores that share checks, with the base at every distance from the end of a page.
#[test]
fn groups_of_accesses() {
    for base in [1u16, 13] {
        for back in (0..100).step_by(4) {
            for maps in 0..4 {
                let mut vm = Vm::new();
                if maps & 1 != 0 {
                    vm.map(0, true);
                }
                if maps & 2 != 0 {
                    vm.map(1, true);
                }
                let va = RAM + 4096 - back;
                vm.slots()[usize::from(base)] = va;
                let read = |vm: &Vm, o: u64, n| vm.env.read(va + o, n).expect("in RAM");
                let expected =
                    [read(&vm, 16, 8), read(&vm, 0, 4), read(&vm, 60, 2), read(&vm, 24, 8), read(&vm, 8, 8)];
                let blk = block(|b| {
                    let s = Val::slot;
                    b.load(Ty::I64, 0, s(2), s(base), 16);
                    b.load(Ty::I32, 0, s(14), s(base), 0);
                    // Between them whatever takes rcx.
                    b.bin(Code::Rotl, Ty::I64, s(3), s(2), s(14));
                    b.load(Ty::I16, 0, s(4), s(base), 60);
                    b.store(Ty::I64, 0, s(base), 24, s(2));
                    b.load(Ty::I64, 0, s(5), s(base), 24);
                    b.store(Ty::I8, 0, s(base), 33, s(14));
                    b.load(Ty::I64, 0, s(base), s(base), 8);
                    // Off another address now.
                    let c = b.constant(RAM + 8192);
                    b.un(Code::Mov, Ty::I64, s(base), c);
                    b.load(Ty::I64, 0, s(6), s(base), 16);
                    b.store(Ty::I64, 0, s(base), 16, s(2));
                });
                let third = vm.env.read(RAM + 8192 + 16, 8).expect("in RAM");
                assert_eq!(vm.run(&blk), exit::DISPATCH);
                let s = vm.slots().to_vec();
                assert_eq!([s[2], s[14], s[4]], expected[..3]);
                assert_eq!(s[5], expected[0], "what was stored");
                assert_eq!(s[6], third);
                assert_eq!(vm.env.read(va + 24, 8), Some(expected[0]));
                assert_eq!(vm.env.read(va + 33, 1), Some(expected[1] & 0xff));
                assert_eq!(vm.env.read(RAM + 8192 + 16, 8), Some(expected[0]));
                if maps == 3 {
                    // Only what is itself across pages goes to the engine, and the third page.
                    let across = |o: u64, n: u64| (va + o) / 4096 != (va + o + n - 1) / 4096;
                    let loads = [(16, 8), (0, 4), (60, 2), (24, 8), (8, 8)];
                    let slow = loads.iter().filter(|&&(o, n)| across(o, n)).count() as u32;
                    assert_eq!(vm.env.calls[..2], [slow + 1, u32::from(across(24, 8)) + 1], "back {back}");
                }
            }
        }
    }
}
