//! Stubs for what is rarely executed, after a region's body.

use plinth_ir::Ty;

use super::Translator;
use super::int_special::movq_to_xmm;
use super::state::Opnd;
use crate::asm::{Cc, RAX, RCX, RDX, Reg, Rm, Size, frame};
use crate::thunks::{DESC_AT, field};

/// What a stub does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColdKind {
    /// Loads through the engine.
    Load,
    /// Stores through the engine.
    Store,
    /// An atomic operation through the engine.
    Atomic,
    /// The cases of a division that the hardware does not do.
    Divide { signed: bool, wide: bool },
    /// Puts the default NaN into the register.
    FixNan { wide: bool },
    /// The minimum or maximum of equal numbers.
    Equal { min: bool },
    /// A floating point operation in software.
    Float { wide: bool },
    /// The same, with an integer result.
    FloatToInt { wide: bool },
    /// Leaves for attention to `pc`.
    Attention,
    /// Leaves to look `pc` up.
    Lookup,
    /// An exit's jump while it is not linked.
    Link,
    /// An exit's way out if the target page is not the expected one.
    Miss,
    /// A taken branch out of the block.
    Exit { poll: bool },
}

/// A stub to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cold {
    pub kind: ColdKind,
    /// Places of the rel32 fields that lead here; 0 for none.
    pub at: [u32; 2],
    /// Where to go on in the body.
    pub resume: u32,
    /// Where the guest address is, if not in rax.
    pub va: Reg,
    /// What to add to it.
    pub disp: i32,
    /// The access belongs to a group: its cell, and whether it is the first.
    pub group: Option<(u8, bool)>,
    /// Type of the access.
    pub ty: Ty,
    /// For the engine.
    pub desc: u64,
    pub b: Opnd,
    pub c: Opnd,
    /// Where the result belongs.
    pub result: Reg,
    /// Offset from the page base.
    pub pc: i32,
    /// Which exit.
    pub exit: u32,
    /// xmm registers: result and operands. Of a memory access: a scalar one at 0, or a vector at 1.
    pub x: [Reg; 4],
    /// Copies of slots in xmm registers that a call destroys: a range of [`super::xmm::XmmState::reloads`].
    pub reloads: (u32, u32),
}

impl Cold {
    pub(super) fn new(kind: ColdKind) -> Self {
        let none = Opnd::Imm(0);
        Self {
            kind,
            at: [0; 2],
            resume: 0,
            va: RAX,
            disp: 0,
            group: None,
            ty: Ty::I64,
            desc: 0,
            b: none,
            c: none,
            result: RAX,
            pc: 0,
            exit: 0,
            x: [0; 4],
            reloads: (0, 0),
        }
    }
}

impl Translator {
    /// Writes all stubs. Stubs may ask for more stubs.
    pub(super) fn emit_cold(&mut self) {
        let mut next = 0;
        while next < self.cold.len() {
            let cold = self.cold[next];
            next += 1;
            self.asm.reserve(512);
            if let ColdKind::Divide { signed, wide } = cold.kind {
                self.divide_stub(&cold, signed, wide);
                continue;
            }
            for at in cold.at {
                if at != 0 {
                    self.asm.bind(at as usize);
                }
            }
            match cold.kind {
                ColdKind::Load | ColdKind::Store | ColdKind::Atomic => self.memory_stub(&cold),
                ColdKind::Attention => self.leave_stub(cold.pc, self.thunks.attention),
                ColdKind::Lookup => self.leave_stub(cold.pc, self.thunks.lookup),
                ColdKind::Link | ColdKind::Miss => self.link_stub(&cold),
                ColdKind::Exit { poll } => self.exit_to(cold.pc, poll),
                _ => self.float_stub(&cold),
            }
        }
    }

    fn memory_stub(&mut self, cold: &Cold) {
        let table = self.thunks.table;
        let mut va = cold.va;
        if cold.group.is_some() {
            let miss = self.group_stub(cold);
            self.asm.bind(miss as usize);
            va = RAX;
        }
        let [x, vector, ..] = cold.x;
        match cold.kind {
            ColdKind::Load => {
                self.asm.copy(RAX, va);
                self.asm.mov_imm(RCX, cold.desc);
                self.asm.call_to(table.load);
                if vector != 0 {
                    self.asm.movups_load(vector, frame(field::VECTOR));
                } else if x != 0 {
                    self.asm.vex(movq_to_xmm(true), x, 0, Rm::R(RAX));
                } else {
                    self.asm.copy(cold.result, RAX);
                }
            }
            ColdKind::Store => {
                if vector != 0 {
                    self.asm.movups_store(frame(field::VECTOR), vector);
                }
                self.load_opnd(RDX, cold.b, true);
                self.asm.copy(RAX, va);
                self.asm.mov_imm(RCX, cold.desc);
                self.asm.call_to(table.store);
            }
            _ => {
                self.asm.mov_imm(RDX, cold.desc);
                self.asm.store(Size::B8, frame(DESC_AT), RDX);
                self.load_opnd(RDX, cold.b, true);
                self.load_opnd(RCX, cold.c, true);
                self.asm.copy(RAX, va);
                self.asm.call_to(table.atomic);
            }
        }
        self.reload_views(cold.reloads);
        if cold.group.is_some() {
            // What follows takes rcx for the group's addend.
            self.asm.zero(RCX);
        }
        self.asm.jmp_back(cold.resume as usize);
    }

    fn leave_stub(&mut self, pc: i32, thunk: u64) {
        self.asm.mov_imm(RAX, u64::from(pc as u32));
        self.asm.jmp_to(thunk);
    }

    /// Leaves for a link. Past a check of the target page, the page base is the target's already.
    fn link_stub(&mut self, cold: &Cold) {
        let exit = &mut self.exits[cold.exit as usize];
        let mut pc = cold.pc;
        if cold.kind == ColdKind::Link {
            exit.stub = self.asm.pos() as u32;
            if exit.literal.is_some() {
                pc &= 4095;
            }
        }
        let site = self.asm.absolute_offset(exit.site);
        self.asm.lea(true, RCX, site);
        self.leave_stub(pc, self.thunks.link);
    }

    /// `special`: a zero divisor or -1 in rcx; `narrow`: both operands below 2^32.
    fn divide_stub(&mut self, cold: &Cold, signed: bool, wide: bool) {
        let [special, narrow] = cold.at;
        self.asm.bind(special as usize);
        if signed {
            self.asm.test(wide, RCX, RCX);
            let zero = self.asm.jcc_short(Cc::E);
            self.asm.neg(wide, RAX);
            self.asm.zero(RDX);
            self.asm.jmp_back(cold.resume as usize);
            self.asm.bind_short(zero);
        }
        self.asm.mov_rr(wide, RDX, RAX);
        self.asm.mov_imm(RAX, if wide { u64::MAX } else { 0xffff_ffff });
        self.asm.jmp_back(cold.resume as usize);
        if narrow != 0 {
            self.asm.bind(narrow as usize);
            self.asm.zero(RDX);
            self.asm.div(false, false, RCX);
            self.asm.jmp_back(cold.resume as usize);
        }
    }
}
