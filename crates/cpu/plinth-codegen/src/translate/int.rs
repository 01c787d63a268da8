//! Integer operations: moves, arithmetic, logic, shifts, comparisons.

use plinth_ir::{Block, Code, Cond, Op, Ty, Val};

use super::Translator;
use super::state::Opnd;
use crate::asm::{Alu, Cc, Mem, Reg, Rm, Shift, Size, frame, mem, mem_index};
use crate::frame::slot_offset;
use crate::thunks::field;

/// An immediate of an instruction with operands of 8 (`wide`) or 4 bytes, if `c` can be one.
pub(super) fn imm32(c: u64, wide: bool) -> Option<i32> {
    if wide { i32::try_from(c as i64).ok() } else { Some(c as i32) }
}

/// The condition code of `cond`, and the one with operands exchanged.
fn condition_codes(cond: Cond) -> (Cc, Cc) {
    match cond {
        Cond::Eq => (Cc::E, Cc::E),
        Cond::Ne => (Cc::Ne, Cc::Ne),
        Cond::LtS => (Cc::L, Cc::G),
        Cond::GeS => (Cc::Ge, Cc::Le),
        Cond::LtU => (Cc::B, Cc::A),
        Cond::GeU => (Cc::Ae, Cc::Be),
    }
}

impl Translator {
    /// An operation from [`Code::Mov`] to [`Code::BitRev8`].
    #[inline]
    pub(super) fn integer(&mut self, op: &Op, block: &Block) {
        if self.state.is_dead(op.dst) {
            self.state.done(op.a);
            self.state.done(op.b);
            self.state.done(op.c);
            return;
        }
        let wide = op.ty != Ty::I32;
        match op.code {
            Code::Mov => self.mov(op, block, wide),
            Code::Add | Code::Sub | Code::And | Code::Or | Code::Xor => self.arithmetic(op, block, wide),
            Code::ShlAdd => self.shl_add(op, block, wide),
            Code::AndNot => self.and_not(op, block, wide),
            Code::OrNot | Code::XorNot => self.or_xor_not(op, block, wide),
            Code::Shl => self.shift(op, block, wide, Shift::Shl),
            Code::Shr => self.shift(op, block, wide, Shift::Shr),
            Code::Sar => self.shift(op, block, wide, Shift::Sar),
            Code::Rotl | Code::Rotr => self.rotate(op, block, wide),
            Code::Mul => self.multiply(op, block, wide),
            Code::MulHiS | Code::MulHiU | Code::MulHiSU => self.multiply_high(op, block),
            Code::DivS | Code::DivU | Code::RemS | Code::RemU => self.divide(op, block, wide),
            Code::MinS | Code::MinU | Code::MaxS | Code::MaxU => self.min_max(op, block, wide),
            Code::SetCond => self.set_cond(op, block, wide),
            Code::Select => self.select(op, block),
            Code::Sext8 => self.extend(op, block, Size::B1, true),
            Code::Sext16 => self.extend(op, block, Size::B2, true),
            Code::Sext32 => self.extend(op, block, Size::B4, true),
            Code::Zext8 => self.extend(op, block, Size::B1, false),
            Code::Zext16 => self.extend(op, block, Size::B2, false),
            Code::Zext32 => self.extend(op, block, Size::B4, false),
            Code::Clz => self.count(op, block, wide, 0xbd),
            Code::Ctz => self.count(op, block, wide, 0xbc),
            Code::Popcnt => self.count(op, block, wide, 0xb8),
            Code::Bswap => self.bswap(op, block, wide),
            Code::OrBytes => self.or_bytes(op, block, wide),
            Code::BitRev8 => self.bit_rev8(op, block, wide),
            _ => self.fail("not an integer operation"),
        }
    }

    /// Both operands, read and done with.
    #[inline]
    pub(super) fn take2(&mut self, op: &Op, block: &Block) -> (Opnd, Opnd) {
        let a = self.src(op.a, block);
        let b = self.src(op.b, block);
        self.state.done(op.a);
        self.state.done(op.b);
        (a, b)
    }

    #[inline]
    pub(super) fn take1(&mut self, op: &Op, block: &Block) -> Opnd {
        let a = self.src(op.a, block);
        self.state.done(op.a);
        a
    }

    /// `dst` = `a`.
    fn mov(&mut self, op: &Op, block: &Block, wide: bool) {
        if wide && !self.sext_result && self.alias(op.dst, op.a, block) {
            self.state.done(op.a);
            return;
        }
        if wide && !self.sext_result && self.float_move(op.dst, op.a) {
            return;
        }
        let a = self.take1(op, block);
        self.move_to(op.dst, a, wide);
    }

    /// `dst` = `a`, in the way that the operation's type and a sign extension after it ask for.
    fn move_to(&mut self, dst: Val, a: Opnd, wide: bool) {
        let d = self.dst_reg(dst, a.mask());
        if self.sext_result {
            self.sext_result = false;
            match a.rm() {
                Some(rm) => self.asm.load_extend(Size::B4, true, d, rm),
                None => {
                    let Opnd::Imm(c) = a else { return };
                    self.asm.mov_imm(d, c as i32 as u64);
                }
            }
        } else if let (Opnd::Imm(c), Some(slot)) = (a, dst.as_slot())
            && self.state.pin(slot).is_none()
            && let Some(imm) = imm32(if wide { c } else { c & 0xffff_ffff }, true)
        {
            self.asm.store_imm(Size::B8, frame(slot_offset(slot)), imm);
            self.slot_written(slot);
            return;
        } else {
            self.load_opnd(d, a, wide);
        }
        self.commit(dst, d);
    }

    fn arithmetic(&mut self, op: &Op, block: &Block, wide: bool) {
        let alu = match op.code {
            Code::Add => Alu::Add,
            Code::Sub => Alu::Sub,
            Code::And => Alu::And,
            Code::Or => Alu::Or,
            _ => Alu::Xor,
        };
        let (mut a, mut b) = self.take2(op, block);
        if let (Opnd::Imm(x), Opnd::Imm(y)) = (a, b) {
            let value = match alu {
                Alu::Add => x.wrapping_add(y),
                Alu::Sub => x.wrapping_sub(y),
                Alu::And => x & y,
                Alu::Or => x | y,
                _ => x ^ y,
            };
            return self.move_to(op.dst, Opnd::Imm(value), wide);
        }
        if alu != Alu::Sub && matches!(a, Opnd::Imm(_)) {
            (a, b) = (b, a);
        }
        if let Opnd::Imm(c) = b {
            let c = if wide { c } else { c & 0xffff_ffff };
            if c == 0 && alu != Alu::And {
                return self.move_to(op.dst, a, wide);
            }
            if alu == Alu::And && self.and_mask(op.dst, a, c) {
                return;
            }
        }
        if let Some((slot, m)) = self.in_place(op.dst, a, b.mask(), wide) {
            match b {
                Opnd::Reg(r) => self.asm.alu_store(alu, Size::B8, m, r),
                Opnd::Imm(c) if imm32(c, true).is_some() => {
                    self.asm.alu_imm(alu, true, Rm::M(m), c as i32);
                }
                _ => return self.arithmetic_to(op.dst, alu, wide, a, b),
            }
            self.slot_written(slot);
            return;
        }
        self.arithmetic_to(op.dst, alu, wide, a, b);
    }

    /// The slot in memory that is both `dst` and `a`, if the operation can be done there.
    fn in_place(&mut self, dst: Val, a: Opnd, inputs: u16, wide: bool) -> Option<(u16, Mem)> {
        let slot = dst.as_slot()?;
        let Opnd::Mem(m) = a else { return None };
        if !wide || self.sext_result || self.state.pin(slot).is_some() || m != frame(slot_offset(slot)) {
            return None;
        }
        self.before_write(slot, inputs);
        Some((slot, m))
    }

    /// `dst` = `a` & `mask` for masks that extensions do.
    fn and_mask(&mut self, dst: Val, a: Opnd, mask: u64) -> bool {
        let size = match mask {
            0xff => Size::B1,
            0xffff => Size::B2,
            0xffff_ffff => Size::B4,
            _ => return false,
        };
        let Some(rm) = a.rm() else { return false };
        let d = self.dst_reg(dst, a.mask());
        self.asm.load_extend(size, false, d, rm);
        self.commit(dst, d);
        true
    }

    fn arithmetic_to(&mut self, dst: Val, alu: Alu, wide: bool, a: Opnd, b: Opnd) {
        let inputs = a.mask() | b.mask();
        let d = self.dst_reg(dst, inputs);
        self.alu_into(alu, wide, d, a, b);
        self.commit(dst, d);
    }

    /// `d` = `a` op `b`. The operands' registers stay, except `d`.
    pub(super) fn alu_into(&mut self, alu: Alu, wide: bool, d: Reg, a: Opnd, b: Opnd) {
        let (a, b) = if alu != Alu::Sub && b.is_reg(d) && !a.is_reg(d) { (b, a) } else { (a, b) };
        if b.is_reg(d) && !a.is_reg(d) {
            // d = a - d.
            self.asm.neg(wide, d);
            return self.alu_step(Alu::Add, wide, d, a, 0);
        }
        if let Opnd::Reg(ra) = a
            && ra != d
        {
            match (alu, b) {
                (Alu::Add, Opnd::Reg(rb)) => return self.asm.lea(wide, d, mem_index(ra, rb, 0, 0)),
                (Alu::Add, Opnd::Imm(c)) => {
                    if let Some(c) = imm32(c, wide) {
                        return self.asm.lea(wide, d, mem(ra, c));
                    }
                }
                (Alu::Sub, Opnd::Imm(c)) => {
                    if let Some(c) = imm32(c.wrapping_neg(), wide) {
                        return self.asm.lea(wide, d, mem(ra, c));
                    }
                }
                _ => {}
            }
        }
        // A constant that no immediate holds goes to the destination first where that is free.
        if let Opnd::Imm(c) = b
            && imm32(c, wide).is_none()
            && !a.is_reg(d)
            && alu != Alu::Sub
        {
            self.asm.mov_imm(d, c);
            return self.alu_step(alu, wide, d, a, 0);
        }
        if !a.is_reg(d) {
            self.load_opnd(d, a, wide);
        }
        self.alu_step(alu, wide, d, b, a.mask());
    }

    /// `d` = `d` op `b`.
    fn alu_step(&mut self, alu: Alu, wide: bool, d: Reg, b: Opnd, avoid: u16) {
        match b {
            Opnd::Imm(c) => match imm32(c, wide) {
                Some(c) if alu == Alu::And && c >= 0 => self.asm.alu_imm(alu, false, Rm::R(d), c),
                Some(c) => self.asm.alu_imm(alu, wide, Rm::R(d), c),
                None => {
                    let t = self.scratch(avoid | 1 << d);
                    self.asm.mov_imm(t, c);
                    self.asm.alu(alu, Size::wide(wide), d, Rm::R(t));
                }
            },
            Opnd::Reg(r) => self.asm.alu(alu, Size::wide(wide), d, Rm::R(r)),
            Opnd::Mem(m) => self.asm.alu(alu, Size::wide(wide), d, Rm::M(m)),
        }
    }

    fn shl_add(&mut self, op: &Op, block: &Block, wide: bool) {
        let (a, b) = self.take2(op, block);
        let inputs = a.mask() | b.mask();
        let d = self.dst_reg(op.dst, inputs);
        let ra = self.in_reg(a, inputs | 1 << d, wide);
        let scale = (op.aux & 3) as u8;
        match b {
            Opnd::Reg(rb) => self.asm.lea(wide, d, mem_index(rb, ra, scale, 0)),
            _ => {
                let rb = self.in_reg(b, inputs | 1 << ra, wide);
                self.asm.lea(wide, d, mem_index(rb, ra, scale, 0));
            }
        }
        self.commit(op.dst, d);
    }

    /// `dst` = `a` & !`b`.
    fn and_not(&mut self, op: &Op, block: &Block, wide: bool) {
        let (a, b) = self.take2(op, block);
        let inputs = a.mask() | b.mask();
        let d = self.dst_reg(op.dst, inputs);
        if let Opnd::Imm(c) = b {
            self.alu_into(Alu::And, wide, d, a, Opnd::Imm(!c));
        } else {
            let rb = self.in_reg(b, inputs, wide);
            let a = match a {
                Opnd::Imm(_) => Opnd::Reg(self.in_reg(a, inputs | 1 << rb, wide)),
                other => other,
            };
            if let Some(rm) = a.rm() {
                self.asm.andn(wide, d, rb, rm);
            }
        }
        self.commit(op.dst, d);
    }

    /// `dst` = `a` | !`b`, or !(`a` ^ `b`).
    fn or_xor_not(&mut self, op: &Op, block: &Block, wide: bool) {
        let (a, b) = self.take2(op, block);
        let alu = if op.code == Code::OrNot { Alu::Or } else { Alu::Xor };
        let d = self.dst_reg_apart(op.dst, a.mask(), b.mask());
        if let Opnd::Imm(c) = b {
            self.asm.mov_imm(d, if wide { !c } else { !c & 0xffff_ffff });
        } else {
            self.load_opnd(d, b, wide);
            self.asm.not(wide, d);
        }
        self.alu_step(alu, wide, d, a, b.mask());
        self.commit(op.dst, d);
    }

    fn shift(&mut self, op: &Op, block: &Block, wide: bool, shift: Shift) {
        let (a, b) = self.take2(op, block);
        let inputs = a.mask() | b.mask();
        let width: u64 = if wide { 64 } else { 32 };
        let d = self.dst_reg(op.dst, inputs);
        if let Opnd::Imm(c) = b {
            let count = (c % width) as u8;
            if count == 0 {
                self.load_opnd(d, a, wide);
            } else if let (Opnd::Reg(ra), Shift::Shl, 1) = (a, shift, count)
                && ra != d
            {
                self.asm.lea(wide, d, mem_index(ra, ra, 0, 0));
            } else {
                if !a.is_reg(d) {
                    self.load_opnd(d, a, wide);
                }
                self.asm.shift_imm(shift, wide, d, count);
            }
        } else {
            let count = self.in_reg(b, inputs, wide);
            let a = match a {
                Opnd::Imm(_) => Opnd::Reg(self.in_reg(a, inputs | 1 << count, wide)),
                other => other,
            };
            if let Some(rm) = a.rm() {
                self.asm.shift_var(shift, wide, d, rm, count);
            }
        }
        self.commit(op.dst, d);
    }

    fn min_max(&mut self, op: &Op, block: &Block, wide: bool) {
        let (a, b) = self.take2(op, block);
        let inputs = a.mask() | b.mask();
        let d = self.dst_reg(op.dst, inputs);
        // The condition under which the other operand replaces `d`.
        let cc = match op.code {
            Code::MinS => Cc::G,
            Code::MinU => Cc::A,
            Code::MaxS => Cc::L,
            _ => Cc::B,
        };
        let (a, b) = if b.is_reg(d) { (b, a) } else { (a, b) };
        let other = match b {
            Opnd::Imm(_) => Opnd::Reg(self.in_reg(b, inputs | 1 << d, wide)),
            other => other,
        };
        self.load_opnd(d, a, wide);
        if let Some(rm) = other.rm() {
            self.asm.alu(Alu::Cmp, Size::wide(wide), d, rm);
            self.asm.cmov(cc, wide, d, rm);
        }
        self.commit(op.dst, d);
    }

    /// Compares; gives the code under which `cond(a, b)` is true. Clobbers no operand and uses scratch
    /// registers outside `avoid` only.
    pub(super) fn compare(&mut self, cond: Cond, wide: bool, a: Opnd, b: Opnd, avoid: u16) -> Cc {
        let (cc, swapped) = condition_codes(cond);
        let avoid = avoid | a.mask() | b.mask();
        let (a, b, cc) = match (a, b) {
            (Opnd::Imm(_), Opnd::Imm(_)) => (Opnd::Reg(self.in_reg(a, avoid, wide)), b, cc),
            (Opnd::Imm(_), _) => (b, a, swapped),
            _ => (a, b, cc),
        };
        let avoid = avoid | a.mask();
        let size = Size::wide(wide);
        match (a, b) {
            (_, Opnd::Imm(c)) => match (imm32(c, wide), a) {
                (Some(0), Opnd::Reg(r)) => self.asm.test(wide, r, r),
                (Some(c), _) => {
                    if let Some(rm) = a.rm() {
                        self.asm.alu_imm(Alu::Cmp, wide, rm, c);
                    }
                }
                (None, Opnd::Reg(r)) => {
                    let t = self.in_reg(b, avoid, wide);
                    self.asm.alu(Alu::Cmp, size, r, Rm::R(t));
                }
                (None, _) => {
                    let t = self.in_reg(b, avoid, wide);
                    if let Opnd::Mem(m) = a {
                        self.asm.alu_store(Alu::Cmp, size, m, t);
                    }
                }
            },
            (Opnd::Reg(r), _) => {
                if let Some(rm) = b.rm() {
                    self.asm.alu(Alu::Cmp, size, r, rm);
                }
            }
            (Opnd::Mem(m), Opnd::Reg(r)) => self.asm.alu_store(Alu::Cmp, size, m, r),
            _ => {
                let r = self.in_reg(a, avoid, wide);
                if let Some(rm) = b.rm() {
                    self.asm.alu(Alu::Cmp, size, r, rm);
                }
            }
        }
        cc
    }

    fn set_cond(&mut self, op: &Op, block: &Block, wide: bool) {
        let (a, b) = self.take2(op, block);
        let inputs = a.mask() | b.mask();
        let d = self.dst_reg(op.dst, inputs);
        let Some(cond) = Cond::from_u8(op.sub) else { return self.fail("an unknown condition") };
        let apart = inputs >> d & 1 == 0;
        if apart {
            self.asm.zero(d);
        }
        let cc = self.compare(cond, wide, a, b, 1 << d);
        self.asm.setcc(cc, d);
        if !apart {
            self.asm.load_extend(Size::B1, false, d, Rm::R(d));
        }
        self.commit(op.dst, d);
    }

    /// `dst` = `c` != 0 ? `a` : `b`.
    fn select(&mut self, op: &Op, block: &Block) {
        let a = self.src(op.a, block);
        let b = self.src(op.b, block);
        let c = self.src(op.c, block);
        for v in [op.a, op.b, op.c] {
            self.state.done(v);
        }
        if let Opnd::Imm(c) = c {
            return self.move_to(op.dst, if c != 0 { a } else { b }, true);
        }
        let inputs = a.mask() | b.mask() | c.mask();
        // `d` gets `first` before `other` is read.
        let pinned = op.dst.as_slot().and_then(|s| self.state.pin(s));
        let (mut first, mut other, mut cc) = (b, a, Cc::Ne);
        let occupied = pinned.is_some_and(|d| a.is_reg(d));
        let constant = matches!(a, Opnd::Imm(_)) && !pinned.is_some_and(|d| b.is_reg(d));
        if occupied || (constant && !matches!(b, Opnd::Imm(_))) {
            (first, other, cc) = (a, b, Cc::E);
        }
        let d = if pinned.is_some() {
            self.dst_reg(op.dst, inputs)
        } else {
            self.dst_reg_apart(op.dst, other.mask() | c.mask(), inputs)
        };
        let busy = inputs | 1 << d;
        let other = match other {
            Opnd::Imm(_) => Opnd::Reg(self.in_reg(other, busy, true)),
            o => o,
        };
        match c {
            Opnd::Reg(r) => self.asm.test(true, r, r),
            Opnd::Mem(m) => self.asm.alu_imm(Alu::Cmp, true, Rm::M(m), 0),
            Opnd::Imm(_) => {}
        }
        self.load_opnd(d, first, true);
        if let Some(rm) = other.rm() {
            self.asm.cmov(cc, true, d, rm);
        }
        self.commit(op.dst, d);
    }

    fn extend(&mut self, op: &Op, block: &Block, size: Size, signed: bool) {
        let a = self.take1(op, block);
        let d = self.dst_reg(op.dst, a.mask());
        match (a.rm(), a) {
            (Some(rm), _) => self.asm.load_extend(size, signed, d, rm),
            (None, Opnd::Imm(c)) => {
                let value = match (size, signed) {
                    (Size::B1, false) => c & 0xff,
                    (Size::B2, false) => c & 0xffff,
                    (Size::B1, true) => c as i8 as u64,
                    (Size::B2, true) => c as i16 as u64,
                    (_, false) => c & 0xffff_ffff,
                    (_, true) => c as i32 as u64,
                };
                self.asm.mov_imm(d, value);
            }
            _ => {}
        }
        self.commit(op.dst, d);
    }

    /// `dst` = page base + `aux`.
    pub(super) fn pc_rel(&mut self, op: &Op) {
        let d = self.dst_reg(op.dst, 0);
        self.asm.mov_load(true, d, frame(field::PC_PAGE));
        if op.aux != 0 {
            self.asm.alu_imm(Alu::Add, true, Rm::R(d), op.aux);
        }
        self.commit(op.dst, d);
    }

    /// A slot in memory got a value other than by [`Self::commit`].
    pub(super) fn slot_written(&mut self, slot: u16) {
        self.touched = true;
        self.groups.slot_changed(slot);
        self.xmm.slot_changed(slot);
    }
}
