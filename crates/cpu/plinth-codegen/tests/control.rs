//! Control flow: exits and their links, indirect jumps, polls, straddling instructions, helpers, traps.

mod common;

use std::sync::atomic::Ordering;

use common::{FAULT, PAGE, Vm};
use plinth_codegen::Region;
use plinth_codegen::frame::exit;
use plinth_ir::{Block, BlockBuilder, Code, Cond, Ty, Val};

fn build(start: u32, f: impl FnOnce(&mut BlockBuilder<'_>)) -> Block {
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    f(&mut b);
    block.start = start;
    block.len = 4 * block.insns;
    block
}

/// Adds `n` to slot 0 at `pc`, then jumps to `to`.
fn add_and_jump(pc: u32, n: u64, to: i32) -> Block {
    build(pc, |b| {
        b.insn(pc, 4);
        let c = b.constant(n);
        b.bin(Code::Add, Ty::I64, Val::slot(0), Val::slot(0), c);
        b.insn(pc + 4, 4);
        let l = b.label(to);
        b.jmp(l);
    })
}

fn dispatch_at(pc: u32) -> Block {
    build(pc, |b| {
        b.insn(pc, 4);
        let c = b.constant(1000);
        b.bin(Code::Add, Ty::I64, Val::slot(0), Val::slot(0), c);
        b.exit(pc as i32 + 4);
    })
}

#[test]
fn direct_exits_link_and_unlink() {
    let mut vm = Vm::new();
    let from = vm.translate(&add_and_jump(0x100, 1, 0x200));
    let to = vm.translate(&dispatch_at(0x200));
    assert_eq!(from.exits.len(), 1);
    let site = from.exits[0];
    assert_eq!((site.pc, site.page_literal), (0x200, None));
    assert_eq!(vm.enter(from.code), exit::LINK);
    assert_eq!(vm.frame().pc, PAGE + 0x200);
    assert_eq!(vm.frame().site, site.site);
    assert!(vm.code.patch_jump(site.site, to.code));
    assert_eq!(vm.enter(from.code), exit::DISPATCH);
    assert_eq!(vm.frame().pc, PAGE + 0x204);
    assert_eq!(vm.slots()[0], 1002);
    assert!(vm.code.patch_jump(site.site, site.stub));
    assert_eq!(vm.enter(from.code), exit::LINK);
    assert_eq!(vm.frame().pc, PAGE + 0x200);
}

#[test]
fn conditional_exits_link() {
    let mut vm = Vm::new();
    // Different lengths before the jump, to meet every alignment of its field.
    for pad in 0..9 {
        let block = build(0x100, |b| {
            b.insn(0x100, 4);
            for i in 0..pad {
                b.bin(
                    Code::Add,
                    Ty::I32,
                    Val::slot(5),
                    Val::slot(5),
                    Val::slot(if i % 2 == 0 { 1 } else { 6 }),
                );
            }
            let l = b.label(0x180);
            b.br(Cond::LtS, Ty::I64, Val::slot(1), Val::slot(2), l);
            b.insn(0x104, 4);
            b.exit(0x108);
        });
        let region = vm.translate(&block);
        let to = vm.translate(&dispatch_at(0x180));
        let site = region.exits[0];
        assert!(site.site % 8 <= 4);
        (vm.slots()[0], vm.slots()[1], vm.slots()[2]) = (0, 5, 5);
        assert_eq!(vm.enter(region.code), exit::DISPATCH);
        assert_eq!(vm.frame().pc, PAGE + 0x108);
        vm.slots()[2] = 6;
        assert_eq!(vm.enter(region.code), exit::LINK);
        assert_eq!((vm.frame().pc, vm.frame().site), (PAGE + 0x180, site.site));
        assert!(vm.code.patch_jump(site.site, to.code));
        vm.slots()[1] = 5;
        assert_eq!(vm.enter(region.code), exit::DISPATCH);
        assert_eq!(vm.slots()[0], 1000);
    }
}

/// A jump to another page, and what is there.
fn cross_page(vm: &mut Vm, to: i32, conditional: bool) -> (Region, Region) {
    let block = build(0x100, |b| {
        b.insn(0x100, 4);
        let l = b.label(to);
        if conditional {
            b.br(Cond::Ne, Ty::I64, Val::slot(7), Val::slot(8), l);
            b.insn(0x104, 4);
            b.exit(0x108);
        } else {
            b.jmp(l);
        }
    });
    let region = vm.translate(&block);
    let target = vm.translate(&dispatch_at((to & 4095) as u32));
    (region, target)
}

#[test]
fn cross_page_exits_check_the_page() {
    for conditional in [false, true] {
        for to in [0x1010, -0x1000, 0x7f008, -0x7fff_f000] {
            let mut vm = Vm::new();
            (vm.slots()[7], vm.slots()[8]) = (1, 2);
            let (region, target) = cross_page(&mut vm, to, conditional);
            let site = region.exits[0];
            let literal = site.page_literal.expect("crosses pages");
            let va = PAGE.wrapping_add(to as i64 as u64);
            assert_eq!(site.pc, to);
            let unlinked = |vm: &mut Vm| {
                assert_eq!(vm.enter(region.code), exit::LINK);
                assert_eq!((vm.frame().pc, vm.frame().site), (va, site.site));
            };
            unlinked(&mut vm);
            vm.map_code(va, 0x80);
            unlinked(&mut vm);
            assert!(vm.code.patch_jump(site.site, target.code));
            assert!(vm.code.patch_literal(literal, 0x80));
            assert_eq!(vm.enter(region.code), exit::DISPATCH);
            assert_eq!(vm.frame().pc, va + 4);
            assert_eq!(vm.frame().pc_page, va & !4095);
            // Another page there, or none.
            vm.map_code(va, 0x81);
            unlinked(&mut vm);
            vm.map_code(va, 0x80);
            vm.frame().code_tokens = [3; 4];
            unlinked(&mut vm);
            vm.frame().code_tokens = [common::CODE_TOKEN; 4];
            // Unlinked between the check and the jump.
            assert!(vm.code.patch_jump(site.site, site.stub));
            unlinked(&mut vm);
            assert_eq!(vm.frame().pc_page, va & !4095);
        }
    }
}

#[test]
fn indirect_jumps_go_by_the_jump_cache() {
    for slot in [1, 14] {
        let mut vm = Vm::new();
        let block = build(0x100, |b| {
            b.insn(0x100, 4);
            b.jmp_ind(Val::slot(slot), 0);
        });
        let region = vm.translate(&block);
        let to = vm.translate(&dispatch_at(0x234));
        let va = 0xffff_ffff_8123_4234;
        vm.slots()[usize::from(slot)] = va;
        assert_eq!(vm.enter(region.code), exit::LOOKUP);
        assert_eq!(vm.frame().pc, va);
        vm.map_jump(va, to.code);
        assert_eq!(vm.enter(region.code), exit::DISPATCH);
        assert_eq!((vm.frame().pc, vm.frame().pc_page), (va + 4, va & !4095));
        vm.frame().jump_token ^= 1 << 40;
        assert_eq!(vm.enter(region.code), exit::LOOKUP);
        vm.frame().jump_token ^= 1 << 40;
        vm.frame().attention.store(1, Ordering::Relaxed);
        assert_eq!(vm.enter(region.code), exit::ATTENTION);
        assert_eq!(vm.frame().pc, va);
    }
}

#[test]
fn loops_run_and_poll() {
    let mut vm = Vm::new();
    let block = build(0x100, |b| {
        b.insn(0x100, 4);
        let c = b.constant(10_000);
        b.un(Code::Mov, Ty::I64, Val::slot(1), c);
        let top = b.label(0x104);
        b.bind(top);
        b.insn(0x104, 4);
        b.bin(Code::Add, Ty::I64, Val::slot(0), Val::slot(0), Val::slot(1));
        b.insn(0x108, 4);
        let one = b.constant(1);
        b.bin(Code::Sub, Ty::I64, Val::slot(1), Val::slot(1), one);
        b.insn(0x10c, 4);
        let zero = b.constant(0);
        b.br(Cond::Ne, Ty::I64, Val::slot(1), zero, top);
        b.insn(0x110, 4);
        b.exit(0x114);
    });
    let region = vm.translate(&block);
    let offsets: Vec<u32> = region.entries.iter().map(|e| e.0).collect();
    assert_eq!(offsets, [0x100, 0x104]);
    assert_eq!(vm.enter(region.code), exit::DISPATCH);
    assert_eq!(vm.slots()[0], 50_005_000);
    vm.frame().attention.store(1, Ordering::Relaxed);
    assert_eq!(vm.enter(region.code), exit::ATTENTION);
    assert_eq!(vm.frame().pc, PAGE + 0x104);
    assert_eq!(vm.slots()[1], 10_000);
    vm.frame().attention.store(0, Ordering::Relaxed);
    vm.slots()[1] = 3;
    assert_eq!(vm.enter(region.entries[1].1), exit::DISPATCH);
    assert_eq!(vm.slots()[0], 50_005_006);
}

#[test]
fn backward_exits_poll() {
    // A loop over two regions, linked both ways, is left when attention is wanted.
    for conditional in [false, true] {
        for touched in [false, true] {
            let mut vm = Vm::new();
            let first = vm.translate(&add_and_jump(0x100, 1, 0x200));
            let back = build(0x200, |b| {
                b.insn(0x200, 4);
                let one = b.constant(1);
                b.bin(Code::Add, Ty::I64, Val::slot(1), Val::slot(1), one);
                if !touched {
                    b.insn(0x204, 4);
                }
                let l = b.label(0x100);
                if conditional {
                    b.br(Cond::Eq, Ty::I64, Val::slot(9), Val::slot(9), l);
                }
                b.jmp(l);
            });
            let second = vm.translate(&back);
            let at = |r: &Region, i: usize| r.exits[i].site;
            assert!(vm.code.patch_jump(at(&first, 0), second.code));
            for e in &second.exits {
                assert!(vm.code.patch_jump(e.site, first.code));
            }
            vm.frame().attention.store(1, Ordering::Relaxed);
            assert_eq!(vm.enter(first.code), exit::ATTENTION);
            assert_eq!((vm.slots()[0], vm.slots()[1]), (1, 1));
            let expected = if conditional && !touched { 0x204 } else { 0x100 };
            assert_eq!(vm.frame().pc, PAGE + expected);
        }
    }
}

#[test]
fn forward_and_backward_labels() {
    let mut vm = Vm::new();
    let block = build(0, |b| {
        b.insn(0, 4);
        let (fwd, end, back) = (b.label(0x20), b.label(0x40), b.label(0x10));
        b.jmp(fwd);
        b.bind(back);
        b.insn(0x10, 4);
        let two = b.constant(2);
        b.bin(Code::Mul, Ty::I64, Val::slot(0), Val::slot(0), two);
        b.jmp(end);
        b.bind(fwd);
        b.insn(0x20, 4);
        let c = b.constant(21);
        b.un(Code::Mov, Ty::I64, Val::slot(0), c);
        b.insn(0x24, 4);
        b.br(Cond::Ne, Ty::I64, Val::slot(0), Val::slot(9), back);
        b.insn(0x28, 4);
        b.exit(0x28);
        b.bind(end);
        b.insn(0x40, 4);
        b.exit(0x44);
    });
    vm.slots()[9] = 1;
    assert_eq!(vm.run(&block), exit::DISPATCH);
    assert_eq!((vm.slots()[0], vm.frame().pc), (42, PAGE + 0x44));
}

#[test]
fn straddling_blocks_check_the_next_page() {
    let mut vm = Vm::new();
    let block = build(0xffe, |b| {
        b.insn(0xffe, 4);
        let one = b.constant(1);
        b.bin(Code::Add, Ty::I64, Val::slot(0), Val::slot(0), one);
        b.insn(0x1002, 0);
        b.exit(0x1002);
    });
    let region = vm.translate_straddling(&block, 0x55);
    let next = PAGE + 4096;
    for (page, token, expected) in [
        (0x55, common::CODE_TOKEN, exit::DISPATCH),
        (0x56, common::CODE_TOKEN, exit::LOOKUP),
        (0x55, 1, exit::LOOKUP),
    ] {
        vm.map_code(next, page);
        vm.frame().code_tokens = [token; 4];
        assert_eq!(vm.enter(region.code), expected);
        let pc = if expected == exit::DISPATCH { PAGE + 0x1002 } else { PAGE + 0xffe };
        assert_eq!(vm.frame().pc, pc);
    }
    assert_eq!(vm.slots()[0], 1);
}

#[test]
fn helpers_see_and_change_all_state() {
    let mut vm = Vm::new();
    vm.env.on_helper = |slots, id, args| {
        assert_eq!(id, 5);
        let sum = slots.iter().fold(0u64, |s, &v| s.wrapping_add(v));
        for s in slots.iter_mut() {
            *s += 1;
        }
        Some(sum ^ args[0] ^ args[1] ^ args[2])
    };
    let block = build(0x100, |b| {
        b.insn(0x123, 6);
        let (t, c, r) = (b.temp(), b.constant(0x1111_2222_3333_4444), b.temp());
        b.bin(Code::Add, Ty::I64, t, Val::slot(0), Val::slot(0));
        b.helper(5, r, &[t, c, Val::slot(15)]);
        b.bin(Code::Add, Ty::I64, Val::slot(7), r, t);
        b.exit(4);
    });
    let n = vm.slots().len() as u64;
    for i in 0..n {
        vm.slots()[i as usize] = i * i;
    }
    vm.slots()[0] = 17;
    let sum: u64 = vm.slots().iter().sum();
    assert_eq!(vm.run(&block), exit::DISPATCH);
    assert_eq!(vm.slots()[7], (sum ^ 34 ^ 0x1111_2222_3333_4444 ^ 225).wrapping_add(34));
    for i in 1..n {
        if i != 7 {
            assert_eq!(vm.slots()[i as usize], i * i + 1);
        }
    }
    assert_eq!(vm.env.last, (34, 5 | 0x123 << 16 | 6 << 32));
}

#[test]
fn helpers_can_leave() {
    let mut vm = Vm::new();
    vm.env.on_helper = |slots, _, _| {
        slots[2] = 9;
        None
    };
    let block = build(0x100, |b| {
        b.insn(0x100, 4);
        b.helper(1, Val::slot(3), &[]);
        b.un(Code::Mov, Ty::I64, Val::slot(4), Val::slot(2));
        b.exit(4);
    });
    assert_eq!(vm.run(&block), exit::DISPATCH);
    assert_eq!(vm.frame().pc, 0x7777);
    assert_eq!((vm.slots()[2], vm.slots()[3], vm.slots()[4]), (9, 0, 0));
}

#[test]
fn traps_raise() {
    let mut vm = Vm::new();
    let block = build(0x100, |b| {
        b.insn(0x104, 2);
        b.trap(-3, Val::slot(14));
    });
    vm.slots()[14] = 0xabc;
    assert_eq!(vm.run(&block), FAULT);
    assert_eq!(vm.frame().pc, PAGE + 0x104);
    assert_eq!(vm.env.last, (0xabc, 0xffff_fffd | 0x104 << 32 | 2 << 48));
}

#[test]
fn page_relative_addresses() {
    for dst in [0, 15] {
        for offset in [0, 0x7fff_f000, -0x8000_0000] {
            let mut vm = Vm::new();
            let block = build(0, |b| {
                b.insn(0, 4);
                b.pc_rel(Val::slot(dst), offset);
                b.exit(0);
            });
            vm.run(&block);
            assert_eq!(vm.slots()[usize::from(dst)], PAGE.wrapping_add(offset as i64 as u64));
        }
    }
}

#[test]
fn full_memory_is_an_error_and_reset_makes_room() {
    let mut vm = Vm::new();
    let block = dispatch_at(0);
    let first = vm.translate(&block);
    let error = loop {
        match vm.try_translate(&block) {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(matches!(error, plinth_codegen::CodegenError::Full));
    vm.code.reset();
    assert_eq!(vm.translate(&block).code, first.code);
    assert_eq!(vm.run(&block), exit::DISPATCH);
}

#[test]
fn patches_outside_are_refused() {
    let mut vm = Vm::new();
    let region = vm.translate(&add_and_jump(0, 1, 0x80));
    let site = region.exits[0].site;
    assert!(!vm.code.patch_jump(site, 0));
    assert!(!vm.code.patch_jump(0, region.code));
    // A field that straddles 8 bytes cannot be written at once.
    assert!(!vm.code.patch_jump((site & !7) + 5, region.code));
    assert!(!vm.code.patch_literal(vm.code.thunk_table().exit, 0));
    assert_eq!(vm.code.bytes(region.code, region.len).expect("in use").len(), region.len);
    assert_eq!(vm.code.bytes(region.code, 1 << 30), None);
}
