//! A block of operations and the builder that lifters use.

use crate::op::{Code, Cond, Op, Ty, Val};

/// Index of a label of a block.
pub type LabelId = u32;

/// A branch target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Byte offset of the target from the block's page base; outside 0..4096 it is in another page, or
    /// [`Label::LOCAL`].
    pub pc: i32,
    /// Index of its [`Code::Label`] operation; `None`: the target is outside the block.
    pub op: Option<u32>,
}

impl Label {
    /// `pc` of a label inside an instruction, which no guest address names. Branches to it go forward.
    pub const LOCAL: i32 = i32::MIN;
}

/// Operations for a contiguous stretch of guest code in one page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Operations in order. Control never runs off the end.
    pub ops: Vec<Op>,
    /// Constants.
    pub consts: Vec<u64>,
    /// Labels.
    pub labels: Vec<Label>,
    /// How many temporaries there are.
    pub temps: u16,
    /// Byte offset of the first instruction from the page base.
    pub start: u32,
    /// Bytes of guest code covered; `start + len` exceeds 4096 only if the last instruction straddles.
    pub len: u32,
    /// Guest instructions covered.
    pub insns: u32,
}

impl Block {
    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.consts.clear();
        self.labels.clear();
        self.temps = 0;
        self.start = 0;
        self.len = 0;
        self.insns = 0;
    }

    /// The constant that `v` names.
    #[inline]
    #[must_use]
    pub fn const_of(&self, v: Val) -> Option<u64> {
        v.as_const().and_then(|i| self.consts.get(usize::from(i)).copied())
    }
}

/// Appends operations to a block.
pub struct BlockBuilder<'a> {
    /// The block being built.
    pub block: &'a mut Block,
}

impl<'a> BlockBuilder<'a> {
    /// Starts on an empty `block`.
    pub fn new(block: &'a mut Block) -> Self {
        block.clear();
        Self { block }
    }

    /// A fresh temporary.
    pub fn temp(&mut self) -> Val {
        let v = Val::temp(self.block.temps);
        self.block.temps += 1;
        v
    }

    /// The constant `value`.
    pub fn constant(&mut self, value: u64) -> Val {
        // Recent constants repeat (0, 1, -1); an old one is not worth the search.
        let from = self.block.consts.len().saturating_sub(8);
        let found = self.block.consts[from..].iter().position(|&c| c == value).map(|i| from + i);
        let index = found.unwrap_or_else(|| {
            self.block.consts.push(value);
            self.block.consts.len() - 1
        });
        Val::constant(index as u16)
    }

    /// Appends `op`.
    pub fn push(&mut self, op: Op) {
        self.block.ops.push(op);
    }

    /// Marks the start of an instruction of `len` bytes at `offset` from the page base.
    pub fn insn(&mut self, offset: u32, len: u8) {
        let op = Op { sub: len, aux: offset as i32, ..Self::op(Code::Insn, Ty::I64) };
        self.push(op);
        self.block.insns += 1;
    }

    /// An operation with no operands, to be filled in.
    #[must_use]
    pub const fn op(code: Code, ty: Ty) -> Op {
        Op { code, ty, sub: 0, flags: 0, dst: Val::NONE, a: Val::NONE, b: Val::NONE, c: Val::NONE, aux: 0 }
    }

    /// `dst` = `code`(`a`, `b`).
    pub fn bin(&mut self, code: Code, ty: Ty, dst: Val, a: Val, b: Val) {
        self.push(Op { dst, a, b, ..Self::op(code, ty) });
    }

    /// `dst` = `code`(`a`).
    pub fn un(&mut self, code: Code, ty: Ty, dst: Val, a: Val) {
        self.push(Op { dst, a, ..Self::op(code, ty) });
    }

    /// `dst` = memory at `base` + `disp`.
    pub fn load(&mut self, ty: Ty, flags: u8, dst: Val, base: Val, disp: i32) {
        self.push(Op { flags, dst, a: base, aux: disp, ..Self::op(Code::Load, ty) });
    }

    /// memory at `base` + `disp` = `value`.
    pub fn store(&mut self, ty: Ty, flags: u8, base: Val, disp: i32, value: Val) {
        self.push(Op { flags, a: base, b: value, aux: disp, ..Self::op(Code::Store, ty) });
    }

    /// A label for the guest code at `pc` from the page base, outside the block until it is bound. There is
    /// one label for each target.
    pub fn label(&mut self, pc: i32) -> LabelId {
        let found = self.block.labels.iter().position(|l| l.pc == pc);
        let index = found.unwrap_or_else(|| {
            self.block.labels.push(Label { pc, op: None });
            self.block.labels.len() - 1
        });
        index as LabelId
    }

    /// A label inside the current instruction, to be bound after all branches to it.
    pub fn local_label(&mut self) -> LabelId {
        self.block.labels.push(Label { pc: Label::LOCAL, op: None });
        self.block.labels.len() as LabelId - 1
    }

    /// Binds `label` here.
    pub fn bind(&mut self, label: LabelId) {
        let at = self.block.ops.len() as u32;
        self.block.labels[label as usize].op = Some(at);
        self.push(Op { aux: label as i32, ..Self::op(Code::Label, Ty::I64) });
    }

    /// Branches to `label` if `cond(a, b)`.
    pub fn br(&mut self, cond: Cond, ty: Ty, a: Val, b: Val, label: LabelId) {
        self.push(Op { sub: cond as u8, a, b, aux: label as i32, ..Self::op(Code::Br, ty) });
    }

    /// Goes to `label`.
    pub fn jmp(&mut self, label: LabelId) {
        self.push(Op { aux: label as i32, ..Self::op(Code::Jmp, Ty::I64) });
    }

    /// Goes to the guest address in `target`.
    pub fn jmp_ind(&mut self, target: Val, flags: u8) {
        self.push(Op { flags, a: target, ..Self::op(Code::JmpInd, Ty::I64) });
    }

    /// Leaves through the dispatcher to `offset` from the page base.
    pub fn exit(&mut self, offset: i32) {
        self.push(Op { aux: offset, ..Self::op(Code::Exit, Ty::I64) });
    }

    /// Raises `exception` with `value`.
    pub fn trap(&mut self, exception: i32, value: Val) {
        self.push(Op { a: value, aux: exception, ..Self::op(Code::Trap, Ty::I64) });
    }

    /// `dst` = helper `index` of up to three operands.
    pub fn helper(&mut self, index: u32, dst: Val, args: &[Val]) {
        let arg = |i: usize| args.get(i).copied().unwrap_or(Val::NONE);
        let op =
            Op { dst, a: arg(0), b: arg(1), c: arg(2), aux: index as i32, ..Self::op(Code::Helper, Ty::I64) };
        self.push(op);
    }

    /// `dst` = page base + `offset`.
    pub fn pc_rel(&mut self, dst: Val, offset: i32) {
        self.push(Op { dst, aux: offset, ..Self::op(Code::PcRel, Ty::I64) });
    }
}
