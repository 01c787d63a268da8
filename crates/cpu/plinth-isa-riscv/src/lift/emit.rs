//! The lifter's state and what all instructions are built from.

use plinth_ir::{Block, BlockBuilder, Code, Cond, Op, Round, Ty, Val};

use super::vector::VectorState;
use crate::decode::Decoded;
use crate::helper::HelperId;
use crate::mode::{RiscvMode, Unit};
use crate::slots;
use crate::table::Sem;

/// `mstatus.FS`, all ones for Dirty.
const FS_DIRTY: u64 = 3 << 13;
/// Exception: illegal instruction.
const ILLEGAL: i32 = 2;

/// What an integer register is known to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// This.
    Const(u64),
    /// Page base + this.
    PcRel(i32),
}

/// Lifts the instructions of one block.
pub(super) struct Lifter<'b> {
    pub b: BlockBuilder<'b>,
    pub mode: RiscvMode,
    /// Offset of the current instruction from the page base.
    pub pc: i32,
    /// Offset of the next one.
    pub next: i32,
    /// Since the last label; bit n of `is_known` says that `known[n]` counts.
    known: [Known; 32],
    is_known: u32,
    /// `FpCheck` has been called since the last label or change of `mstatus`.
    fp_checked: bool,
    /// `mstatus.FS` has been set to Dirty since then.
    fp_dirty: bool,
    /// What is known of the vector unit.
    pub vector: VectorState,
}

impl<'b> Lifter<'b> {
    pub fn new(mode: RiscvMode, block: &'b mut Block) -> Self {
        Self {
            b: BlockBuilder::new(block),
            mode,
            pc: 0,
            next: 0,
            known: [Known::Const(0); 32],
            is_known: 0,
            fp_checked: false,
            fp_dirty: false,
            vector: VectorState::default(),
        }
    }

    /// A branch target at offset `at`: control comes from elsewhere.
    pub fn label(&mut self, at: i32) {
        let label = self.b.label(at);
        self.b.bind(label);
        self.is_known = 0;
        self.status_changed();
    }

    /// Starts instruction `d` at offset `at`.
    pub fn begin(&mut self, at: i32, d: &Decoded) {
        self.b.insn(at as u32, d.len);
        self.pc = at;
        self.next = at + i32::from(d.len);
    }

    /// Goes to offset `to`.
    pub fn goto(&mut self, to: i32) {
        let label = self.b.label(to);
        self.b.jmp(label);
    }

    /// `mstatus` may have changed.
    pub fn status_changed(&mut self) {
        self.fp_checked = false;
        self.fp_dirty = false;
        self.vector.status_changed();
    }

    /// Lifts `d`. Returns false if control never goes on to the next instruction.
    pub fn insn(&mut self, d: &Decoded) -> bool {
        let Some(row) = d.row else {
            return self.illegal(d);
        };
        if row.is_float() {
            return self.float(d, row.sem);
        }
        match row.sem {
            Sem::Lui
            | Sem::Auipc
            | Sem::Jal
            | Sem::Jalr
            | Sem::Branch(_)
            | Sem::Ecall
            | Sem::Ebreak
            | Sem::System(_)
            | Sem::SystemEnd(_)
            | Sem::TlbFence
            | Sem::FenceI => self.control(d, row.sem),
            Sem::Csr(op) => self.csr(d, op),
            Sem::Vector(sem) => self.vector(d, sem),
            Sem::Load(..)
            | Sem::Store(_)
            | Sem::LoadReserved(_)
            | Sem::StoreCond(_)
            | Sem::Amo(..)
            | Sem::AmoCas(_)
            | Sem::AmoCasPair
            | Sem::Fence
            | Sem::FenceTso
            | Sem::CacheBlock(_)
            | Sem::CacheZero => self.memory(d, row.sem),
            sem => {
                // Nothing that is computed into x0 can be seen.
                if d.rd != 0 {
                    self.integer(d, sem);
                }
                true
            }
        }
    }

    /// The instruction is undefined here.
    pub fn illegal(&mut self, d: &Decoded) -> bool {
        let bits = self.b.constant(u64::from(d.bits));
        self.b.trap(ILLEGAL, bits);
        false
    }

    /// The constant `value`.
    pub fn constant(&mut self, value: u64) -> Val {
        self.b.constant(value)
    }

    /// The immediate of `d`, sign-extended.
    pub fn imm(&mut self, d: &Decoded) -> Val {
        self.b.constant(i64::from(d.imm) as u64)
    }

    /// Integer register `r` as a source.
    pub fn x(&mut self, r: u8) -> Val {
        if r == 0 { self.b.constant(0) } else { Val::slot(slots::x(r)) }
    }

    /// Integer register `r` as a destination.
    pub fn dst(&mut self, r: u8) -> Val {
        if r == 0 {
            return self.b.temp();
        }
        self.forget(r);
        Val::slot(slots::x(r))
    }

    /// Nothing is known of register `r` any more.
    pub fn forget(&mut self, r: u8) {
        self.is_known &= !(1 << (r & 31));
    }

    /// What is known of register `r`.
    pub fn known(&self, r: u8) -> Option<Known> {
        let r = r & 31;
        if r == 0 {
            return Some(Known::Const(0));
        }
        (self.is_known >> r & 1 != 0).then(|| self.known[usize::from(r)])
    }

    /// Sets register `r` to something known.
    pub fn set_known(&mut self, r: u8, known: Known) {
        if r == 0 {
            return;
        }
        let dst = Val::slot(slots::x(r));
        match known {
            Known::Const(value) => {
                let value = self.b.constant(value);
                self.b.un(Code::Mov, Ty::I64, dst, value);
            }
            Known::PcRel(offset) => self.b.pc_rel(dst, offset),
        }
        self.is_known |= 1 << (r & 31);
        self.known[usize::from(r & 31)] = known;
    }

    /// A temporary = code.ty(a, b).
    pub fn bin(&mut self, code: Code, ty: Ty, a: Val, b: Val) -> Val {
        let t = self.b.temp();
        self.b.bin(code, ty, t, a, b);
        t
    }

    /// A temporary = code.ty(a).
    pub fn un(&mut self, code: Code, ty: Ty, a: Val) -> Val {
        let t = self.b.temp();
        self.b.un(code, ty, t, a);
        t
    }

    /// dst = cond(a, b).
    pub fn set_cond(&mut self, cond: Cond, dst: Val, a: Val, b: Val) {
        self.b.push(Op { sub: cond as u8, dst, a, b, ..BlockBuilder::op(Code::SetCond, Ty::I64) });
    }

    /// Calls a helper for its effects, with the instruction as its first argument.
    pub fn system_helper(&mut self, id: HelperId, d: &Decoded) {
        let bits = self.b.constant(u64::from(d.bits));
        self.b.helper(id as u32, Val::NONE, &[bits]);
    }

    /// Floating point is about to be used; `writes`: and its state changed. Returns false if that is
    /// illegal, which has been emitted then.
    pub fn use_float(&mut self, d: &Decoded, writes: bool) -> bool {
        match self.mode.fp {
            Unit::Off => return self.illegal(d),
            Unit::Check if !self.fp_checked => {
                self.system_helper(HelperId::FpCheck, d);
                self.fp_checked = true;
            }
            Unit::Check | Unit::On => {}
        }
        if writes && !self.fp_dirty {
            let status = Val::slot(slots::MSTATUS);
            let dirty = self.b.constant(FS_DIRTY);
            self.b.bin(Code::Or, Ty::I64, status, status, dirty);
            self.fp_dirty = true;
        }
        true
    }

    /// The static rounding mode of `d`; `None` if it is reserved.
    pub fn round(&self, d: &Decoded) -> Option<Round> {
        let rm = if d.rm() == 7 { self.mode.frm } else { d.rm() };
        Round::from_u8(rm as u8)
    }
}
