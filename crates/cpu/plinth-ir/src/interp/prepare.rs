//! From a block to its prepared form.

use super::micro::{Entry, Micro, MicroCode, Program, Rare, memory_imm};
use super::{Atomic, MemAccess, SLOTS, Site, WORDS};
use crate::block::{Block, Label};
use crate::isa::Layout;
use crate::op::{AmoOp, Code, Cond, Lane, Op, Ty, Val, VecOp, flags};
use crate::softfloat::FloatOp;

/// Always zero.
pub(super) const ZERO: u16 = WORDS as u16 - 1;
/// Takes results that nobody wants.
const SINK: u16 = WORDS as u16 - 3;
/// Constants as operands of operations without room for an immediate.
const CONSTS: [u16; 3] = [WORDS as u16 - 6, WORDS as u16 - 5, WORDS as u16 - 4];
const TEMPS_END: u16 = CONSTS[0];

/// Why a block cannot be prepared. The verifier reports all but the last in more detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// An operand is missing, or names what does not exist.
    #[error("operation {0}: an operand does not exist")]
    Operand(usize),
    /// Opcode, type and sub-operation do not go together.
    #[error("operation {0} does not exist")]
    Operation(usize),
    /// A branch to a label that does not exist or is not where the block says.
    #[error("operation {0}: bad label")]
    Label(usize),
    /// Control runs off the end.
    #[error("the last operation does not leave the block")]
    End,
    /// More temporaries between two markers than there are words.
    #[error("operation {0}: too many temporaries in one instruction")]
    Temps(usize),
}

struct Preparer<'a> {
    block: &'a Block,
    at: usize,
    site: Site,
    micros: Vec<Micro>,
    rare: Vec<Rare>,
    /// Word of each temporary, and the stretch between two markers that it lives in.
    temps: Vec<(u32, u16)>,
    stretch: u32,
    next_temp: u16,
    /// Branches, whose immediate is a label yet.
    fixups: Vec<u32>,
}

impl Program {
    /// Prepares `block` of an ISA with this `layout`.
    ///
    /// # Errors
    /// The block is malformed, or needs too much room.
    pub fn new(block: &Block, layout: &Layout) -> Result<Self, PrepareError> {
        if !block.ops.last().is_some_and(|op| op.code.leaves()) {
            return Err(PrepareError::End);
        }
        let mut p = Preparer {
            block,
            at: 0,
            site: Site::default(),
            micros: Vec::with_capacity(block.ops.len()),
            rare: Vec::new(),
            temps: vec![(0, 0); usize::from(block.temps)],
            stretch: 1,
            next_temp: SLOTS as u16,
            fixups: Vec::new(),
        };
        // Micro-operation at which each label stands.
        let mut bound = vec![None; block.labels.len()];
        for (at, op) in block.ops.iter().enumerate() {
            p.at = at;
            if op.code == Code::Label {
                let label = block.labels.get(op.aux as usize).ok_or(PrepareError::Label(at))?;
                if label.op != Some(at as u32) {
                    return Err(PrepareError::Label(at));
                }
                bound[op.aux as usize] = Some(p.micros.len() as u32);
                p.forget_temps();
            } else {
                p.op(op)?;
            }
        }
        p.finish(bound, layout.default_nan)
    }
}

impl Preparer<'_> {
    fn word(&self, v: Val) -> Option<u16> {
        match v.as_slot() {
            Some(i) => (usize::from(i) < SLOTS).then_some(i),
            None => {
                let (stretch, word) = *self.temps.get(usize::from(v.as_temp()?))?;
                (stretch == self.stretch).then_some(word)
            }
        }
    }

    /// Temporaries do not outlive markers and labels: their words are free again.
    fn forget_temps(&mut self) {
        self.next_temp = SLOTS as u16;
        self.stretch += 1;
    }

    /// The word of operand number `n`, after an operation that sets it, if it is a constant.
    fn operand(&mut self, v: Val, n: usize) -> Result<u16, PrepareError> {
        if v.as_const().is_none() {
            return self.word(v).ok_or(PrepareError::Operand(self.at));
        }
        match self.block.const_of(v).ok_or(PrepareError::Operand(self.at))? {
            0 => Ok(ZERO),
            imm => {
                self.push(MicroCode::Const, CONSTS[n], ZERO, ZERO, imm);
                Ok(CONSTS[n])
            }
        }
    }

    /// An operand that may be absent.
    fn optional(&mut self, v: Val, n: usize) -> Result<u16, PrepareError> {
        if v.is_none() { Ok(ZERO) } else { self.operand(v, n) }
    }

    /// A vector operand: the word of its low half.
    fn vector(&mut self, v: Val) -> Result<u16, PrepareError> {
        let word = self.word(v).filter(|&w| usize::from(w) != SLOTS - 1);
        word.ok_or(PrepareError::Operand(self.at))
    }

    /// The word of a result of `words` words.
    fn dst(&mut self, v: Val, words: u16) -> Result<u16, PrepareError> {
        if v.as_slot().is_some() {
            return if words == 2 {
                self.vector(v)
            } else {
                self.word(v).ok_or(PrepareError::Operand(self.at))
            };
        }
        let temp = v.as_temp().and_then(|i| self.temps.get_mut(usize::from(i)));
        let temp = temp.ok_or(PrepareError::Operand(self.at))?;
        if self.next_temp + words > TEMPS_END {
            return Err(PrepareError::Temps(self.at));
        }
        let word = self.next_temp;
        *temp = (self.stretch, word);
        self.next_temp += words;
        Ok(word)
    }

    fn push(&mut self, code: MicroCode, dst: u16, a: u16, b: u16, imm: u64) {
        self.micros.push(Micro { code, dst, a, b, imm });
    }

    fn push_rare(&mut self, rare: Rare, dst: u16, a: u16, b: u16) {
        self.push(MicroCode::Rare, dst, a, b, self.rare.len() as u64);
        self.rare.push(rare);
    }

    fn access(&self, op: &Op) -> MemAccess {
        MemAccess { ty: op.ty, flags: op.flags, site: self.site }
    }

    fn op(&mut self, op: &Op) -> Result<(), PrepareError> {
        let bad = PrepareError::Operation(self.at);
        match op.code {
            Code::Insn => {
                self.site = Site { offset: op.aux as u16, len: op.sub };
                self.forget_temps();
            }
            Code::Label => {}
            Code::Br => {
                let code = Cond::from_u8(op.sub).and_then(|c| MicroCode::branch(c, op.ty)).ok_or(bad)?;
                let (a, b) = (self.operand(op.a, 0)?, self.operand(op.b, 1)?);
                self.branch(code, a, b, op.aux);
            }
            Code::Jmp => self.branch(MicroCode::Jmp, ZERO, ZERO, op.aux),
            Code::JmpInd => {
                let a = self.operand(op.a, 0)?;
                self.push(MicroCode::JmpInd, SINK, a, ZERO, u64::from(op.flags));
            }
            Code::Exit => self.push(MicroCode::Exit, SINK, ZERO, ZERO, op.aux as u64),
            Code::Helper => {
                let (a, b, c) = (self.optional(op.a, 0)?, self.optional(op.b, 1)?, self.optional(op.c, 2)?);
                let dst = if op.dst.is_none() { SINK } else { self.dst(op.dst, 1)? };
                let index = u32::try_from(op.aux).map_err(|_| bad)?;
                self.push_rare(Rare::Helper { index, c, site: self.site }, dst, a, b);
            }
            Code::Trap => {
                let a = self.optional(op.a, 0)?;
                self.push_rare(Rare::Trap { exception: op.aux, site: self.site }, SINK, a, ZERO);
            }
            Code::PcRel => {
                let dst = self.dst(op.dst, 1)?;
                self.push(MicroCode::PcRel, dst, ZERO, ZERO, op.aux as u64);
            }
            code if code.is_memory() => self.memory(op)?,
            code if code.is_float() => self.float(op)?,
            code if code.is_vector() => self.vector_op(op)?,
            _ => self.integer(op)?,
        }
        Ok(())
    }

    fn branch(&mut self, code: MicroCode, a: u16, b: u16, label: i32) {
        self.fixups.push(self.micros.len() as u32);
        self.push(code, SINK, a, b, u64::from(label as u32));
    }

    fn integer(&mut self, op: &Op) -> Result<(), PrepareError> {
        let bad = PrepareError::Operation(self.at);
        if !matches!(op.ty, Ty::I32 | Ty::I64) {
            return Err(bad);
        }
        if let (Code::Mov, Some(value)) = (op.code, self.block.const_of(op.a)) {
            let value = if op.ty == Ty::I32 { u64::from(value as u32) } else { value };
            let dst = self.dst(op.dst, 1)?;
            self.push(MicroCode::Const, dst, ZERO, ZERO, value);
            return Ok(());
        }
        if let Some(code) = MicroCode::unary(op.code, op.ty) {
            let a = self.operand(op.a, 0)?;
            let dst = self.dst(op.dst, 1)?;
            self.push(code, dst, a, ZERO, 0);
            return Ok(());
        }
        if let Some((rr, ri)) = MicroCode::binary(op.code, op.ty, Cond::from_u8(op.sub)) {
            let a = self.operand(op.a, 0)?;
            match self.block.const_of(op.b) {
                Some(imm) => {
                    let dst = self.dst(op.dst, 1)?;
                    self.push(ri, dst, a, ZERO, imm);
                }
                None => {
                    let b = self.operand(op.b, 1)?;
                    let dst = self.dst(op.dst, 1)?;
                    self.push(rr, dst, a, b, 0);
                }
            }
            return Ok(());
        }
        let a = self.operand(op.a, 0)?;
        let b = if op.code.operands() > 1 { self.operand(op.b, 1)? } else { ZERO };
        let c = if op.code.operands() > 2 { self.operand(op.c, 2)? } else { ZERO };
        crate::eval_int(op.code, op.ty, op.sub, 0, 0, 0).ok_or(bad)?;
        let rare = match op.code {
            Code::ShlAdd if (1..=3).contains(&op.aux) => Rare::ShlAdd { ty: op.ty, shift: op.aux as u64 },
            Code::ShlAdd => return Err(bad),
            code => Rare::Int { code, ty: op.ty, sub: op.sub, c },
        };
        let dst = self.dst(op.dst, 1)?;
        self.push_rare(rare, dst, a, b);
        Ok(())
    }

    fn memory(&mut self, op: &Op) -> Result<(), PrepareError> {
        let bad = PrepareError::Operation(self.at);
        let disp = op.aux as u64;
        match op.code {
            Code::Fence => {
                self.push_rare(Rare::Fence { full: op.aux & 1 != 0 }, SINK, ZERO, ZERO);
                return Ok(());
            }
            Code::Load if op.ty == Ty::V128 => {
                let a = self.operand(op.a, 0)?;
                let dst = self.dst(op.dst, 2)?;
                self.push_rare(Rare::LoadV { disp, access: self.access(op) }, dst, a, ZERO);
                return Ok(());
            }
            Code::Store if op.ty == Ty::V128 => {
                let (a, b) = (self.operand(op.a, 0)?, self.vector(op.b)?);
                self.push_rare(Rare::StoreV { disp, access: self.access(op) }, SINK, a, b);
                return Ok(());
            }
            _ => {}
        }
        let a = self.operand(op.a, 0)?;
        let imm = memory_imm(op.aux, op.flags, self.site);
        let atomic = match op.code {
            Code::Load => {
                let code = MicroCode::load(op.ty, op.flags & flags::SEXT != 0).ok_or(bad)?;
                let dst = self.dst(op.dst, 1)?;
                self.push(code, dst, a, ZERO, imm);
                return Ok(());
            }
            Code::Store => {
                let b = self.operand(op.b, 1)?;
                self.push(MicroCode::store(op.ty).ok_or(bad)?, SINK, a, b, imm);
                return Ok(());
            }
            Code::Amo => Atomic::Amo(AmoOp::from_u8(op.sub).ok_or(bad)?),
            Code::Cas => Atomic::Cas,
            Code::LoadReserved => Atomic::LoadReserved,
            _ => Atomic::StoreCond,
        };
        MicroCode::store(op.ty).ok_or(bad)?;
        let b = if op.code == Code::LoadReserved { ZERO } else { self.operand(op.b, 1)? };
        let c = if op.code == Code::Cas { self.operand(op.c, 2)? } else { ZERO };
        let dst = self.dst(op.dst, 1)?;
        self.push_rare(Rare::Atomic { atomic, access: self.access(op), c }, dst, a, b);
        Ok(())
    }

    fn float(&mut self, op: &Op) -> Result<(), PrepareError> {
        match op.code {
            Code::FpFlagsGet => {
                let dst = self.dst(op.dst, 1)?;
                self.push_rare(Rare::FlagsGet, dst, ZERO, ZERO);
            }
            Code::FpFlagsSet => {
                let a = self.operand(op.a, 0)?;
                self.push_rare(Rare::FlagsSet, SINK, a, ZERO);
            }
            _ => {
                let a = self.operand(op.a, 0)?;
                let b = if op.code.operands() > 1 { self.operand(op.b, 1)? } else { ZERO };
                let c = if op.code.operands() > 2 { self.operand(op.c, 2)? } else { ZERO };
                let dst = self.dst(op.dst, 1)?;
                self.push_rare(Rare::Float { op: FloatOp::from(op), c }, dst, a, b);
            }
        }
        Ok(())
    }

    fn vector_op(&mut self, op: &Op) -> Result<(), PrepareError> {
        let bad = PrepareError::Operation(self.at);
        let lane = Lane::from_u8(op.flags).ok_or(bad)?;
        let index = u32::try_from(op.aux).ok().filter(|&i| i < lane.count());
        match op.code {
            Code::VBin => {
                let (a, b) = (self.vector(op.a)?, self.vector(op.b)?);
                let dst = self.dst(op.dst, 2)?;
                self.push_rare(Rare::VBin { op: VecOp::from_u8(op.sub).ok_or(bad)?, lane }, dst, a, b);
            }
            Code::VSplat => {
                let a = self.operand(op.a, 0)?;
                let dst = self.dst(op.dst, 2)?;
                self.push_rare(Rare::VSplat { lane }, dst, a, ZERO);
            }
            Code::VExtract => {
                let a = self.vector(op.a)?;
                let dst = self.dst(op.dst, 1)?;
                self.push_rare(Rare::VExtract { lane, index: index.ok_or(bad)? }, dst, a, ZERO);
            }
            _ => {
                let (a, b) = (self.vector(op.a)?, self.operand(op.b, 1)?);
                let dst = self.dst(op.dst, 2)?;
                self.push_rare(Rare::VInsert { lane, index: index.ok_or(bad)? }, dst, a, b);
            }
        }
        Ok(())
    }

    /// Resolves branches. Targets outside the block become operations that leave, after the last one.
    fn finish(mut self, mut bound: Vec<Option<u32>>, default_nan: [u64; 3]) -> Result<Program, PrepareError> {
        let mut entries: Vec<(i32, Entry)> = vec![(self.block.start as i32, Program::START)];
        let inside = self.block.labels.iter().zip(&bound).filter(|(label, _)| label.pc != Label::LOCAL);
        entries.extend(inside.filter_map(|(label, at)| Some((label.pc, Entry((*at)?)))));
        // A label at the start is the same place, though after a marker's micro-operations: prefer the label.
        entries.reverse();
        entries.sort_by_key(|e| e.0);
        entries.dedup_by_key(|e| e.0);
        for i in std::mem::take(&mut self.fixups) {
            let number = self.micros[i as usize].imm as usize;
            let label = self.block.labels.get(number).ok_or(PrepareError::Label(self.at))?;
            if label.op.is_some() && bound[number].is_none() {
                return Err(PrepareError::Label(self.at));
            }
            let target = *bound[number].get_or_insert(self.micros.len() as u32);
            if target == self.micros.len() as u32 {
                self.push(MicroCode::Direct, SINK, ZERO, ZERO, label.pc as u64);
            }
            self.micros[i as usize].imm = u64::from(target) | u64::from(label.pc as u32) << 32;
        }
        Ok(Program { micros: self.micros, rare: self.rare, entries, default_nan })
    }
}
