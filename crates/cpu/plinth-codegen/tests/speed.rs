//! How fast code is made and how fast it runs. Run with `--release -- --ignored --nocapture`.

mod common;

use std::time::Instant;

use common::{FLOAT0, RAM, Vm};
use plinth_codegen::frame::exit;
use plinth_ir::{Block, BlockBuilder, Code, Cond, Ty, Val};

/// What compilers emit: the common instructions of a 64-bit RISC guest in about their usual proportions.
fn typical() -> Block {
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    let s = Val::slot;
    for i in 0..16u32 {
        let at = 32 * i;
        b.insn(at, 4);
        let c = b.constant(u64::from(i) * 8 + 8);
        b.bin(Code::Add, Ty::I64, s(2), s(1), c);
        b.insn(at + 4, 4);
        b.load(Ty::I64, 0, s(3), s(1), 16);
        b.insn(at + 8, 4);
        let t = b.temp();
        b.bin(Code::Add, Ty::I32, t, s(3), s(4));
        b.un(Code::Sext32, Ty::I64, s(4), t);
        b.insn(at + 12, 4);
        b.store(Ty::I64, 0, s(1), 24, s(4));
        b.insn(at + 16, 4);
        let n = b.constant(12);
        b.bin(Code::Shl, Ty::I64, s(5), s(4), n);
        b.insn(at + 20, 4);
        b.un(Code::Mov, Ty::I64, s(6), s(5));
        b.insn(at + 24, 4);
        b.load(Ty::I32, 1, s(7), s(14), -8);
        b.insn(at + 28, 4);
        let l = b.label(0x800 + 32 * i as i32);
        b.br(Cond::Eq, Ty::I64, s(7), s(0), l);
    }
    b.insn(512, 4);
    let l = b.label(0x1000);
    b.jmp(l);
    block
}

#[test]
#[ignore = "a measurement"]
fn translation() {
    let mut vm = Vm::new();
    let block = typical();
    let mut best = f64::MAX;
    let mut bytes = 0;
    for _ in 0..200 {
        vm.code.reset();
        let start = Instant::now();
        for _ in 0..100 {
            bytes = vm.translate(&block).len;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / 100.0 / f64::from(block.insns));
    }
    println!("{best:.1} ns and {:.1} bytes per guest instruction", bytes as f64 / f64::from(block.insns));
}

/// Runs `block` with slot 8 = `n` and prints nanoseconds per round.
fn measure(name: &str, vm: &mut Vm, block: &Block, n: u64) {
    let region = vm.translate(block);
    let mut best = f64::MAX;
    for _ in 0..300 {
        vm.slots()[8] = n;
        let start = Instant::now();
        assert_eq!(vm.enter(region.code), exit::DISPATCH);
        best = best.min(start.elapsed().as_nanos() as f64 / n as f64);
    }
    println!("{name}: {best:.2} ns per round");
}

fn counted_loop(f: impl FnOnce(&mut BlockBuilder<'_>)) -> Block {
    let mut block = Block::default();
    let mut b = BlockBuilder::new(&mut block);
    let top = b.label(0);
    b.bind(top);
    b.insn(0, 4);
    f(&mut b);
    b.insn(0x100, 4);
    let (one, zero) = (b.constant(1), b.constant(0));
    b.bin(Code::Sub, Ty::I64, Val::slot(8), Val::slot(8), one);
    b.insn(0x104, 4);
    b.br(Cond::Ne, Ty::I64, Val::slot(8), zero, top);
    b.insn(0x108, 4);
    b.exit(0x10c);
    block
}

#[test]
#[ignore = "a measurement"]
fn execution() {
    const N: u64 = 20_000;
    let mut vm = Vm::new();
    vm.map_all();
    vm.slots()[1] = RAM;
    let s = Val::slot;
    measure("empty loop", &mut vm, &counted_loop(|_| {}), N);
    let loads =
        counted_loop(|b| (0..8).for_each(|i| b.load(Ty::I64, 0, s(2 + i % 6), s(1), 8 * i32::from(i))));
    measure("8 loads", &mut vm, &loads, N);
    let stores = counted_loop(|b| (0..8).for_each(|i| b.store(Ty::I64, 0, s(1), 8 * i, s(2))));
    measure("8 stores", &mut vm, &stores, N);
    // A chain of loads: each gives the next address.
    vm.env.write(RAM + 64, 8, RAM + 64);
    vm.slots()[9] = RAM + 64;
    let chase = counted_loop(|b| (0..8).for_each(|_| b.load(Ty::I64, 0, s(9), s(9), 0)));
    measure("8 dependent loads", &mut vm, &chase, N);
    let float = counted_loop(|b| {
        for i in 0..4 {
            let op = BlockBuilder::op(Code::FMulAdd, Ty::F64);
            let f = |n: u16| s(FLOAT0 + n);
            b.push(plinth_ir::Op { dst: f(i), a: f(i), b: f(6), c: f(7), ..op });
        }
    });
    measure("4 fused multiply-adds", &mut vm, &float, N);
}
