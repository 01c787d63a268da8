//! Random blocks on translated code and on the reference interpreter: the same state, memory and exit.

mod common;

use common::{ALL_SLOTS, EDGES, FAULT, INTS, Oracle, PAGE, RAM, RAM_BYTES, Random, Vm};
use plinth_codegen::frame::exit;
use plinth_ir::interp::Next;
use plinth_ir::{AmoOp, Block, BlockBuilder, Code, Cond, LabelId, Op, Ty, Val, eval_int, flags};

/// Instructions of a block, 4 bytes each.
const INSNS: u32 = 24;
/// Slots 1 and 13 stay pointers into the RAM, slot 8 counts loops.
const DESTINATIONS: [u16; 12] = [0, 2, 3, 4, 5, 6, 7, 9, 11, 12, 14, 15];

struct Maker<'a, 'b> {
    b: BlockBuilder<'a>,
    random: &'b mut Random,
    /// Temporaries of the instruction.
    temps: Vec<Val>,
    integer: &'b [(Code, Ty)],
}

impl Maker<'_, '_> {
    fn operand(&mut self) -> Val {
        match self.random.below(8) {
            0 => {
                let c = self.random.pick(&EDGES);
                self.b.constant(c)
            }
            1 => self.b.constant(self.random.0 & 0xfff),
            2..=4 if !self.temps.is_empty() => self.random.pick(&self.temps),
            _ => Val::slot(self.random.below(INTS.into()) as u16),
        }
    }

    fn destination(&mut self) -> Val {
        if self.random.one_in(3) { self.b.temp() } else { Val::slot(self.random.pick(&DESTINATIONS)) }
    }

    fn integer(&mut self) {
        let (code, ty) = self.random.pick(self.integer);
        let n = code.operands();
        let (a, b, c) = (self.operand(), self.operand(), self.operand());
        let dst = self.destination();
        let pick = |i: u32, v: Val| if i < n { v } else { Val::NONE };
        self.b.push(Op {
            sub: self.random.below(6) as u8,
            aux: if code == Code::ShlAdd { 1 + self.random.below(3) as i32 } else { 0 },
            dst,
            a,
            b: pick(1, b),
            c: pick(2, c),
            ..BlockBuilder::op(code, ty)
        });
        if dst.as_temp().is_some() {
            self.temps.push(dst);
        }
        if self.random.one_in(3) && dst.as_temp().is_some() {
            let code = self.random.pick(&[Code::Sext32, Code::Mov, Code::Zext32]);
            let to = self.random.pick(&DESTINATIONS);
            self.b.un(code, Ty::I64, Val::slot(to), dst);
        }
    }

    fn memory(&mut self) {
        let ty = self.random.pick(&[Ty::I8, Ty::I16, Ty::I32, Ty::I64]);
        let base = Val::slot(self.random.pick(&[1, 13]));
        // Mostly close together, so that accesses form groups.
        let disp = match self.random.below(4) {
            0 => self.random.below(5000) as i32 - 500,
            _ => self.random.below(150) as i32 - 20,
        };
        let fl = self.random.pick(&[0, flags::SEXT]);
        match self.random.below(8) {
            0..=3 => {
                let dst = self.destination();
                self.b.load(ty, fl, dst, base, disp);
                if dst.as_temp().is_some() {
                    self.temps.push(dst);
                }
            }
            4..=6 => {
                let value = self.operand();
                self.b.store(ty, 0, base, disp, value);
            }
            _ => self.atomic(base, fl),
        }
    }

    fn atomic(&mut self, base: Val, fl: u8) {
        let ty = self.random.pick(&[Ty::I8, Ty::I16, Ty::I32, Ty::I64]);
        let code = self.random.pick(&[Code::Amo, Code::Cas, Code::LoadReserved, Code::StoreCond]);
        let (b, c) = (self.operand(), self.operand());
        let dst = Val::slot(self.random.pick(&DESTINATIONS));
        let n = code.operands();
        self.b.push(Op {
            sub: self.random.below(AmoOp::ALL.len() as u64) as u8,
            flags: if code == Code::StoreCond { 0 } else { fl },
            dst,
            a: base,
            b: if n > 1 { b } else { Val::NONE },
            c: if n > 2 { c } else { Val::NONE },
            ..BlockBuilder::op(code, ty)
        });
    }

    /// A branch to one of `labels`; those behind only while slot 8 counts down.
    fn branch(&mut self, at: u32, labels: &[LabelId]) {
        let i = self.random.below(labels.len() as u64) as u32;
        if i <= at {
            let (one, zero) = (self.b.constant(1), self.b.constant(0));
            self.b.bin(Code::Sub, Ty::I64, Val::slot(8), Val::slot(8), one);
            self.b.br(Cond::GeS, Ty::I64, Val::slot(8), zero, labels[i as usize]);
        } else {
            let cond = self.random.pick(Cond::ALL);
            let ty = self.random.pick(&[Ty::I32, Ty::I64]);
            let (a, b) = (self.operand(), self.operand());
            self.b.br(cond, ty, a, b, labels[i as usize]);
        }
    }

    fn instruction(&mut self, at: u32, labels: &[LabelId]) {
        self.temps.clear();
        match self.random.below(18) {
            0..=5 => {
                for _ in 0..1 + self.random.below(6) {
                    self.integer();
                }
            }
            6..=12 => {
                if self.random.one_in(2) {
                    self.integer();
                }
                self.memory();
                if self.random.one_in(3) {
                    self.integer();
                }
            }
            13 => {
                if self.random.one_in(3) {
                    self.integer();
                }
                let args = [self.operand(), self.operand(), self.operand()];
                let dst = self.destination();
                let n = self.random.below(4) as usize;
                self.b.helper(7, dst, &args[..n]);
                if dst.as_temp().is_some() {
                    self.temps.push(dst);
                }
                if self.random.one_in(2) {
                    self.integer();
                }
            }
            14 => {
                let dst = Val::slot(self.random.pick(&DESTINATIONS));
                let offset = self.random.next() as i32 >> 4;
                self.b.pc_rel(dst, offset);
            }
            _ => self.branch(at, labels),
        }
    }

    fn end(&mut self) {
        match self.random.below(5) {
            0 => self.b.exit(0x80),
            1 => {
                let target = self.operand();
                self.b.jmp_ind(target, 0);
            }
            2 => {
                let value = self.operand();
                self.b.trap(13, value);
            }
            _ => {
                let to = self.random.pick(&[0x800, 0x2010, -0x3000]);
                let label = self.b.label(to);
                self.b.jmp(label);
            }
        }
    }
}

fn make(random: &mut Random, integer: &[(Code, Ty)]) -> Block {
    let mut block = Block::default();
    let mut m = Maker { b: BlockBuilder::new(&mut block), random, temps: Vec::new(), integer };
    // Some labels stay unbound: exits.
    let bound = |r: &mut Random| !r.one_in(6);
    let labels: Vec<LabelId> = (0..INSNS).map(|i| m.b.label(4 * i as i32)).collect();
    let inside: Vec<bool> = labels.iter().map(|_| bound(m.random)).collect();
    for i in 0..INSNS {
        if inside[i as usize] {
            m.b.bind(labels[i as usize]);
        }
        m.b.insn(4 * i, 4);
        m.instruction(i, &labels);
    }
    m.b.insn(4 * INSNS, 4);
    m.temps.clear();
    m.end();
    block
}

fn run_one(random: &mut Random, integer: &[(Code, Ty)], round: u32) {
    let block = make(random, integer);
    let mut vm = Vm::new();
    match round % 3 {
        0 => vm.map_all(),
        1 => {
            vm.map(0, true);
            vm.map(1, false);
        }
        _ => {}
    }
    for i in 0..usize::from(ALL_SLOTS) {
        vm.slots()[i] = if random.one_in(2) { random.pick(&EDGES) } else { random.next() };
    }
    // Often just before the end of a page.
    vm.slots()[1] = RAM + random.pick(&[600, 4096 - 120, 2 * 4096 - 60]) + random.below(100);
    // Now and then out of the RAM.
    vm.slots()[13] = RAM + random.below(RAM_BYTES as u64 - 4000);
    vm.slots()[8] = 30;
    let mut oracle = Oracle::new(vm.slots());
    let reason = vm.run(&block);
    let next = oracle.run(&block);
    let pc = vm.frame().pc;
    let relative = |off: i32| PAGE.wrapping_add(off as i64 as u64);
    let expected = match next {
        Next::Direct { pc_off } => (exit::LINK, relative(pc_off)),
        Next::Indirect { pc, .. } => (exit::LOOKUP, pc),
        Next::Exit { pc_off } => (exit::DISPATCH, relative(pc_off)),
        Next::Stop { site, .. } => (FAULT, PAGE + u64::from(site.offset)),
        Next::Attention { .. } => panic!("nobody asked"),
    };
    assert_eq!((reason, pc), expected, "round {round}: {block:#?}");
    assert_eq!(vm.slots(), &oracle.words[..usize::from(ALL_SLOTS)], "round {round}: {block:#?}");
    assert!(vm.env.ram == oracle.env.ram, "round {round}: {block:#?}");
    assert_eq!(vm.frame().reserved_va, oracle.reserved.0, "round {round}");
}

fn integer_operations() -> Vec<(Code, Ty)> {
    let codes = Code::ALL.iter().filter(|&&c| (Code::Mov as u8..=Code::BitRev8 as u8).contains(&(c as u8)));
    codes
        .flat_map(|&c| [Ty::I32, Ty::I64].map(|ty| (c, ty)))
        .filter(|&(c, ty)| eval_int(c, ty, 0, 0, 0, 0).is_some())
        .collect()
}

#[test]
fn random_blocks_agree_with_the_interpreter() {
    let integer = integer_operations();
    let mut random = Random(40);
    for round in 0..5000 {
        run_one(&mut random, &integer, round);
    }
}

/// The same for as long as one likes: seeds from the environment.
#[test]
#[ignore = "long; PLINTH_SEED and PLINTH_ROUNDS choose"]
fn many_random_blocks() {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let integer = integer_operations();
    let mut random = Random(number("PLINTH_SEED").unwrap_or(1));
    for round in 0..number("PLINTH_ROUNDS").unwrap_or(200_000) {
        run_one(&mut random, &integer, round as u32);
    }
}
