//! Scalar floating point on the host's unit.
//!
//! The guest's MXCSR is live, so exceptions accumulate where the guest's flags are read from. What the host
//! computes differently (NaN results, out of range conversions, other rounding) goes to a stub or to the
//! engine's software. An f32 in a register keeps bits 32 to 63 set where that is free, which makes boxing
//! free: scalar instructions take those bits from their first operand.

use plinth_ir::{Block, Code, FloatOp, FpCond, Op, Round, Ty, Val, flags};

use super::Translator;
use super::cold::{Cold, ColdKind};
use super::int_special::{movq_from_xmm, movq_to_xmm};
use super::state::Opnd;
use super::xmm::{ANDPS, Kind, LOAD64, MOVAPS, ORPS, STORE64, View, XORPS};
use crate::asm::{Alu, Asm, Cc, P0, P66, PF2, PF3, RAX, RCX, Reg, Rm, Size, Vex, frame, mem_index, vex};
use crate::frame::{Frame, slot_offset};
use crate::thunks::Constant;

const SCRATCH_MXCSR: i32 = -8;

/// A scalar instruction of the 0F map for f32 or f64.
const fn scalar(wide: bool, op: u8) -> Vex {
    vex(if wide { PF2 } else { PF3 }, 1, false, op)
}

/// vucomiss, vucomisd.
const fn ucomis(wide: bool) -> Vex {
    vex(if wide { P66 } else { P0 }, 1, false, 0x2e)
}

/// No register.
const NONE: Reg = 0xff;

impl Translator {
    /// A floating point operation.
    pub(super) fn float(&mut self, op: &Op, ops: &[Op], block: &Block) -> usize {
        let mut op = *op;
        match op.code {
            Code::FpFlagsGet => self.flags_get(&op),
            Code::FpFlagsSet => self.flags_set(&op, block),
            Code::FCvtFI => {
                let used = self.fuse(&mut op, ops);
                if !self.float_to_int(&op, block) {
                    self.float_call(&op, block);
                }
                self.sext_result = false;
                return used;
            }
            _ if op.ty == Ty::F16 || self.state.is_dead(op.dst) => self.float_call(&op, block),
            Code::NanBox => self.nan_box(&op, block),
            Code::NanUnbox => self.nan_unbox(&op, block),
            Code::FCmp => self.float_compare(&op, block),
            Code::FMin | Code::FMax | Code::FMinNan | Code::FMaxNan => self.float_min_max(&op, block),
            Code::FCvtIF if self.int_to_float(&op, block) => {}
            Code::FCvtFF if op.aux != Ty::F16 as i32 => self.float_to_float(&op, block),
            Code::FAdd | Code::FSub | Code::FMul | Code::FDiv | Code::FSqrt | Code::FMulAdd
                if op.sub == Round::NearestEven as u8 =>
            {
                self.float_arithmetic(&op, block);
            }
            Code::FRound if op.sub != Round::NearestAway as u8 => self.float_arithmetic(&op, block),
            _ => self.float_call(&op, block),
        }
        1
    }

    fn describe_float(op: &Op) -> u64 {
        FloatOp::from(op).pack()
    }

    fn float_arithmetic(&mut self, op: &Op, block: &Block) {
        let wide = op.ty == Ty::F64;
        if op.code == Code::FMulAdd {
            return self.float_multiply_add(op, block);
        }
        let (a, boxed) = self.float_src(op.a, op.ty, block);
        let b = if op.b.is_none() { a } else { self.float_src(op.b, op.ty, block).0 };
        self.state.done(op.a);
        self.state.done(op.b);
        let d = self.xmm();
        if op.code == Code::FRound {
            // vroundss, vroundsd; bit 3 of the immediate: do not raise inexact.
            let mode = match Round::from_u8(op.sub) {
                Some(Round::NearestEven) => 0,
                Some(Round::Down) => 1,
                Some(Round::Up) => 2,
                _ => 3,
            };
            let quiet = if op.flags & flags::EXACT != 0 { 0 } else { 8 };
            let i = vex(P66, 3, false, if wide { 0x0b } else { 0x0a });
            self.asm.vex_imm(i, d, a, Rm::R(a), mode | quiet);
        } else {
            let opcode = match op.code {
                Code::FAdd => 0x58,
                Code::FSub => 0x5c,
                Code::FMul => 0x59,
                Code::FDiv => 0x5e,
                _ => 0x51,
            };
            self.asm.vex(scalar(wide, opcode), d, a, Rm::R(b));
        }
        self.fix_nan(d, wide);
        self.float_commit(op.dst, d, op.ty, boxed);
    }

    /// If xmm `d` is NaN, it becomes the default NaN.
    fn fix_nan(&mut self, d: Reg, wide: bool) {
        self.asm.vex(ucomis(wide), d, 0, Rm::R(d));
        let at = [self.jcc_cold(Cc::P), 0];
        let resume = self.asm.pos() as u32;
        let x = [d, NONE, NONE, NONE];
        self.cold.push(Cold { at, resume, x, ..Cold::new(ColdKind::FixNan { wide }) });
    }

    /// A stub that does `op` on xmm registers in software, with the result in `d`.
    fn in_software(&mut self, op: &Op, at: u32, resume: usize, x: [Reg; 4]) {
        let kind = ColdKind::Float { wide: op.ty == Ty::F64 };
        let desc = Self::describe_float(op);
        self.cold.push(Cold { at: [at, 0], resume: resume as u32, desc, x, ..Cold::new(kind) });
    }

    fn float_multiply_add(&mut self, op: &Op, block: &Block) {
        let wide = op.ty == Ty::F64;
        self.claim_all();
        let (a, boxed) = self.float_src(op.a, op.ty, block);
        let (b, _) = self.float_src(op.b, op.ty, block);
        let (c, _) = self.float_src(op.c, op.ty, block);
        for v in [op.a, op.b, op.c] {
            self.state.done(v);
        }
        let d = self.xmm();
        self.asm.vex(MOVAPS, d, 0, Rm::R(a));
        let opcode = match op.flags & (flags::NEG_PRODUCT | flags::NEG_ADDEND) {
            0 => 0xa9,
            flags::NEG_ADDEND => 0xab,
            flags::NEG_PRODUCT => 0xad,
            _ => 0xaf,
        };
        self.asm.vex(vex(P66, 2, wide, opcode), d, b, Rm::R(c));
        self.asm.vex(ucomis(wide), d, 0, Rm::R(d));
        // Hosts do not raise invalid for infinity * 0 + quiet NaN.
        let at = self.jcc_cold(Cc::P);
        let resume = self.asm.pos();
        self.in_software(op, at, resume, [d, a, b, c]);
        self.float_commit(op.dst, d, op.ty, boxed);
    }

    fn float_min_max(&mut self, op: &Op, block: &Block) {
        let wide = op.ty == Ty::F64;
        let min = matches!(op.code, Code::FMin | Code::FMinNan);
        self.claim_all();
        let (a, boxed_a) = self.float_src(op.a, op.ty, block);
        let (b, boxed_b) = self.float_src(op.b, op.ty, block);
        self.state.done(op.a);
        self.state.done(op.b);
        let d = self.xmm();
        self.asm.vex(ucomis(wide), a, 0, Rm::R(b));
        let nan = self.jcc_cold(Cc::P);
        let equal = self.jcc_cold(Cc::E);
        self.asm.vex(scalar(wide, if min { 0x5d } else { 0x5f }), d, a, Rm::R(b));
        let resume = self.asm.pos();
        self.in_software(op, nan, resume, [d, a, b, NONE]);
        // Equal numbers have equal bits, but for zeros: the sign of either, or of both.
        let kind = ColdKind::Equal { min };
        let x = [d, a, b, NONE];
        self.cold.push(Cold { at: [equal, 0], resume: resume as u32, x, ..Cold::new(kind) });
        self.float_commit(op.dst, d, op.ty, boxed_a && boxed_b);
    }

    fn float_compare(&mut self, op: &Op, block: &Block) {
        let wide = op.ty == Ty::F64;
        let (a, _) = self.float_src(op.a, op.ty, block);
        let (b, _) = self.float_src(op.b, op.ty, block);
        self.state.done(op.a);
        self.state.done(op.b);
        let predicate = match FpCond::from_u8(op.sub) {
            Some(FpCond::Eq) => 0x00,
            Some(FpCond::Lt) => 0x01,
            Some(FpCond::Le) => 0x02,
            Some(FpCond::LtQuiet) => 0x11,
            Some(FpCond::LeQuiet) => 0x12,
            None => return self.fail("an unknown comparison"),
        };
        self.asm.vex_imm(scalar(wide, 0xc2), 0, a, Rm::R(b), predicate);
        let d = self.dst_reg(op.dst, 0);
        self.asm.vex(movq_from_xmm(false), 0, 0, Rm::R(d));
        self.asm.alu_imm(Alu::And, false, Rm::R(d), 1);
        self.commit(op.dst, d);
    }

    fn float_to_float(&mut self, op: &Op, block: &Block) {
        let from = if op.aux == Ty::F64 as i32 { Ty::F64 } else { Ty::F32 };
        if op.sub != Round::NearestEven as u8 && op.ty == Ty::F32 {
            return self.float_call(op, block);
        }
        let (a, _) = self.float_src(op.a, from, block);
        self.state.done(op.a);
        let d = self.xmm();
        if from == op.ty {
            self.asm.vex(MOVAPS, d, 0, Rm::R(a));
        } else {
            self.asm.vex(scalar(from == Ty::F64, 0x5a), d, a, Rm::R(a));
        }
        self.fix_nan(d, op.ty == Ty::F64);
        self.float_commit(op.dst, d, op.ty, false);
    }

    /// Integer to float; false if software must.
    fn int_to_float(&mut self, op: &Op, block: &Block) -> bool {
        let wide = op.ty == Ty::F64;
        let long = op.aux == Ty::I64 as i32;
        let signed = op.flags & flags::SIGNED != 0;
        let exact = wide && !long;
        if !exact && op.sub != Round::NearestEven as u8 || long && !signed {
            return false;
        }
        let a = self.take1(op, block);
        let d = self.xmm();
        // A 32-bit unsigned integer is a positive 64-bit one.
        let (a, long) = if long || signed {
            (a, long)
        } else {
            let g = self.scratch(a.mask());
            self.load_opnd(g, a, false);
            (Opnd::Reg(g), true)
        };
        let rm = match a.rm() {
            Some(rm) => rm,
            None => {
                let g = self.scratch(0);
                self.load_opnd(g, a, true);
                Rm::R(g)
            }
        };
        self.asm.vex(XORPS, d, d, Rm::R(d));
        self.asm.vex(Vex { w: long, ..scalar(wide, 0x2a) }, d, d, rm);
        self.float_commit(op.dst, d, op.ty, false);
        true
    }

    /// Float to integer; false if software must.
    fn float_to_int(&mut self, op: &Op, block: &Block) -> bool {
        let signed = op.flags & flags::SIGNED != 0;
        let from = match op.aux {
            x if x == Ty::F64 as i32 => Ty::F64,
            x if x == Ty::F32 as i32 => Ty::F32,
            _ => return false,
        };
        let truncate = op.sub == Round::ToZero as u8;
        if !(truncate || (signed && op.sub == Round::NearestEven as u8)) {
            return false;
        }
        let (wide, long) = (from == Ty::F64, op.ty == Ty::I64);
        self.claim_all();
        let (a, _) = self.float_src(op.a, from, block);
        self.state.done(op.a);
        let mut at = [0; 2];
        if !signed {
            // In range: nothing that the conversion raises but inexact. The limit is 2^32 or 2^63.
            let limit = match (wide, long) {
                (true, false) => 0x41f0_0000_0000_0000,
                (true, true) => 0x43e0_0000_0000_0000,
                (false, false) => 0x4f80_0000,
                (false, true) => 0x5f00_0000,
            };
            self.asm.vex(XORPS, 0, 0, Rm::R(0));
            self.asm.vex(ucomis(wide), a, 0, Rm::R(0));
            at[0] = self.jcc_cold(Cc::B);
            self.xmm0_constant(limit);
            self.asm.vex(ucomis(wide), a, 0, Rm::R(0));
            at[1] = self.jcc_cold(Cc::Ae);
        }
        let convert = scalar(wide, if truncate { 0x2c } else { 0x2d });
        self.asm.vex(Vex { w: long || !signed, ..convert }, RAX, 0, Rm::R(a));
        if signed {
            // The one value that says "out of range" overflows.
            self.asm.alu_imm(Alu::Cmp, long, Rm::R(RAX), 1);
            at[0] = self.jcc_cold(Cc::O);
        }
        let kind = ColdKind::FloatToInt { wide };
        let x = [NONE, a, NONE, NONE];
        let (desc, resume) = (Self::describe_float(op), self.asm.pos() as u32);
        self.cold.push(Cold { at, resume, desc, x, ..Cold::new(kind) });
        if op.dst.is_none() || self.state.is_dead(op.dst) {
            return true;
        }
        self.finish_in(op, RAX);
        true
    }

    fn nan_box(&mut self, op: &Op, block: &Block) {
        if let Some(slot) = op.dst.as_slot()
            && self.state.pin(slot).is_none()
        {
            let (r, boxed) = self.float_src(op.a, Ty::F32, block);
            self.state.done(op.a);
            return self.box_to_slot(slot, r, boxed);
        }
        let a = self.take1(op, block);
        let d = self.dst_reg_apart(op.dst, a.mask(), 0);
        self.asm.mov_imm(d, 0xffff_ffff_0000_0000);
        match a {
            Opnd::Imm(c) => self.asm.mov_imm(d, c | 0xffff_ffff_0000_0000),
            _ => {
                if let Some(rm) = a.rm() {
                    self.asm.alu(Alu::Or, Size::B8, d, rm);
                }
            }
        }
        self.commit(op.dst, d);
    }

    fn nan_unbox(&mut self, op: &Op, block: &Block) {
        let slot = match op.a.as_slot() {
            Some(slot) if self.state.pin(slot).is_none() && op.dst.as_temp().is_some() => slot,
            _ => return self.float_call(op, block),
        };
        if let Some((r, _)) = self.xmm.find(slot, |v| matches!(v, View::Unboxed | View::Both)) {
            return self.own_xmm(op.dst, r, Kind::F32 { boxed: true });
        }
        let r = self.xmm();
        let from = self.slot_mem(slot);
        self.asm.vex(LOAD64, r, 0, Rm::M(from));
        self.asm.alu_imm(Alu::Cmp, false, Rm::M(frame(slot_offset(slot) + 4)), -1);
        let at = [self.jcc_cold(Cc::Ne), 0];
        let resume = self.asm.pos() as u32;
        let x = [r, NONE, NONE, NONE];
        self.cold.push(Cold { at, resume, x, ..Cold::new(ColdKind::FixNan { wide: false }) });
        self.xmm.set_view(r, slot, View::Unboxed);
        self.own_xmm(op.dst, r, Kind::F32 { boxed: true });
    }

    fn flags_get(&mut self, op: &Op) {
        self.claim_all();
        self.asm.stmxcsr(frame(SCRATCH_MXCSR));
        self.asm.mov_load(false, RAX, frame(SCRATCH_MXCSR));
        self.asm.alu_imm(Alu::And, false, Rm::R(RAX), 0x3f);
        let table = self.asm.absolute(self.thunks.constant(Constant::FlagsFromHost));
        self.asm.lea(true, RCX, table);
        self.asm.load_extend(Size::B1, false, RAX, Rm::M(mem_index(RCX, RAX, 0, 0)));
        self.asm.alu(Alu::Or, Size::B8, RAX, Rm::M(frame(std::mem::offset_of!(Frame, fp_flags) as i32)));
        self.finish_in(op, RAX);
    }

    fn flags_set(&mut self, op: &Op, block: &Block) {
        self.claim_all();
        let a = self.take1(op, block);
        self.load_opnd(RAX, a, false);
        self.asm.alu_imm(Alu::And, false, Rm::R(RAX), 0x1f);
        let table = self.asm.absolute(self.thunks.constant(Constant::FlagsToHost));
        self.asm.lea(true, RCX, table);
        self.asm.load_extend(Size::B1, false, RAX, Rm::M(mem_index(RCX, RAX, 0, 0)));
        self.asm.stmxcsr(frame(SCRATCH_MXCSR));
        self.asm.alu_imm(Alu::And, false, Rm::M(frame(SCRATCH_MXCSR)), !0x3f);
        self.asm.alu_store(Alu::Or, Size::B4, frame(SCRATCH_MXCSR), RAX);
        self.asm.ldmxcsr(frame(SCRATCH_MXCSR));
        self.asm.store_imm(Size::B8, frame(std::mem::offset_of!(Frame, fp_flags) as i32), 0);
        self.touched = true;
    }

    /// `dst` = `a`, both float slots in memory; false if they are not.
    pub(super) fn float_move(&mut self, dst: Val, a: Val) -> bool {
        let (Some(to), Some(from)) = (dst.as_slot(), a.as_slot()) else { return false };
        if !self.state.is_float(to) || !self.state.is_float(from) {
            return false;
        }
        let found = self.xmm.find(from, |v| matches!(v, View::Full | View::Both));
        let (r, view) = match found {
            Some(f) => f,
            None => {
                let r = self.xmm();
                let m = self.slot_mem(from);
                self.asm.vex(LOAD64, r, 0, Rm::M(m));
                (r, View::Full)
            }
        };
        self.before_write(to, 0);
        let m = self.slot_mem(to);
        self.asm.vex(STORE64, r, 0, Rm::M(m));
        if to != from {
            self.slot_written(to);
            self.xmm.set_view(r, to, view);
        }
        true
    }

    /// Stubs of floating point operations.
    pub(super) fn float_stub(&mut self, cold: &Cold) {
        let [d, a, b, c] = cold.x;
        match cold.kind {
            ColdKind::FixNan { wide } => {
                let nan = if wide { Constant::Nan64 } else { Constant::Nan32 };
                let nan = self.asm.absolute(self.thunks.constant(nan));
                self.asm.vex(LOAD64, d, 0, Rm::M(nan));
            }
            ColdKind::Equal { min } => {
                self.asm.vex(if min { ORPS } else { ANDPS }, d, a, Rm::R(b));
            }
            ColdKind::Float { wide } => {
                self.software_stub(cold.desc, wide, [a, b, c]);
                if !wide {
                    self.asm.mov_imm(RCX, 0xffff_ffff_0000_0000);
                    self.asm.alu(Alu::Or, Size::B8, RAX, Rm::R(RCX));
                }
                self.asm.vex(movq_to_xmm(true), d, 0, Rm::R(RAX));
            }
            ColdKind::FloatToInt { wide } => self.software_stub(cold.desc, wide, [a, b, c]),
            _ => {}
        }
        self.asm.jmp_back(cold.resume as usize);
    }

    /// rax = the operation on xmm registers, by the engine. It keeps all xmm registers.
    fn software_stub(&mut self, desc: u64, wide: bool, x: [Reg; 3]) {
        let put = |asm: &mut Asm, g: Reg, x: Reg| {
            if x != NONE {
                asm.vex(movq_from_xmm(wide), x, 0, Rm::R(g));
            }
        };
        self.asm.mov_imm(RAX, desc);
        self.asm.store(Size::B8, frame(crate::thunks::DESC_AT), RAX);
        for (g, x) in [RAX, crate::asm::RDX, RCX].into_iter().zip(x) {
            put(&mut self.asm, g, x);
        }
        self.asm.call_to(self.thunks.table.float);
    }
}
