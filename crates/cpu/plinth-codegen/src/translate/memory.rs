//! Guest memory accesses: the software TLB's fast path, and atomics on host memory.
//!
//! The fast path compares one word: the page of the access's last byte, with the address space's token in
//! the low bits, against the tag of the entry that the page of its first byte selects. So an access across
//! pages mismatches like any other that needs the engine. See [`crate::frame::tlb_index`].

use std::mem::offset_of;

use plinth_ir::{AmoOp, Block, Code, Op, Ty, flags};

use super::Translator;
use super::cold::{Cold, ColdKind};
use super::group::Access;
use super::state::Opnd;
use super::xmm::{LOAD32, LOAD64, STORE32, STORE64, View};
use crate::asm::{Alu, Cc, Mem, RAX, RCX, RDX, Reg, Rm, Size, frame, mem, mem_index};
use crate::frame::{Frame, TLB_ENTRIES, TlbEntry, mem_desc};
use crate::thunks::TLB_MASK;

const _: () = assert!(size_of::<TlbEntry>() == 32 && TLB_ENTRIES == 4096);

/// What a TLB check leaves for an atomic operation.
struct Checked {
    va: Reg,
    /// rel32 fields of jumps to the stub; 0 for none.
    at: [u32; 2],
}

pub(super) fn size_of_type(ty: Ty) -> Option<Size> {
    match ty.bytes() {
        1 => Some(Size::B1),
        2 => Some(Size::B2),
        4 => Some(Size::B4),
        8 => Some(Size::B8),
        _ => None,
    }
}

impl Translator {
    fn tlb(&self, field: usize) -> i32 {
        let entry = offset_of!(Frame, tlb) + self.mode.data() * TLB_ENTRIES * size_of::<TlbEntry>();
        (entry + field) as i32
    }

    /// Computes the address of `op` into a register: its base's own, or rax. Afterwards no temporary is in
    /// a scratch register.
    pub(super) fn address(&mut self, op: &Op, block: &Block) -> Reg {
        let mut base = self.src(op.a, block);
        // A dying temporary is used where it is; all others leave the scratch registers.
        match base {
            Opnd::Reg(r) if op.a.as_temp().is_some() && r <= RDX => {
                if self.state.used_once(op.a) {
                    self.claim(!(1 << r));
                } else {
                    self.claim_all();
                    base = self.src(op.a, block);
                }
            }
            _ => self.claim_all(),
        }
        self.spill_xmm();
        self.state.done(op.a);
        let disp = op.aux;
        match base {
            Opnd::Reg(r) if disp == 0 && r > RDX => return r,
            Opnd::Reg(r) if disp == 0 => self.asm.copy(RAX, r),
            Opnd::Reg(r) => self.asm.lea(true, RAX, mem(r, disp)),
            Opnd::Imm(c) => self.asm.mov_imm(RAX, c.wrapping_add(i64::from(disp) as u64)),
            Opnd::Mem(m) => {
                self.asm.mov_load(true, RAX, m);
                if disp != 0 {
                    self.asm.alu_imm(Alu::Add, true, Rm::R(RAX), disp);
                }
            }
        }
        RAX
    }

    /// Checks that the access of `bytes` at `va` is to a page that the TLB has. Then rcx is the entry's
    /// offset. Gives the rel32 fields of jumps to the slow path; 0 for none.
    pub(super) fn check(&mut self, va: Reg, bytes: u32, write: bool, aligned: bool) -> [u32; 2] {
        let mut at = [0; 2];
        self.state.addend_in_rcx = None;
        if aligned && bytes > 1 {
            self.asm.test_byte(va, (bytes - 1) as u8);
            at[1] = self.jcc_cold(Cc::Ne);
        }
        let tag = self.tlb(if write { offset_of!(TlbEntry, write) } else { offset_of!(TlbEntry, read) });
        let token = offset_of!(Frame, tokens) as i32 + 8 * self.mode.data() as i32;
        let a = &mut self.asm;
        a.rorx(true, RCX, Rm::R(va), 7);
        a.rorx(true, RDX, Rm::R(va), 19);
        a.alu(Alu::Xor, Size::B4, RCX, Rm::R(RDX));
        a.alu_imm(Alu::And, false, Rm::R(RCX), TLB_MASK);
        if bytes > 1 && !aligned {
            a.lea(true, RDX, mem(va, bytes as i32 - 1));
        } else {
            a.copy(RDX, va);
        }
        a.alu_imm(Alu::And, true, Rm::R(RDX), -4096);
        a.alu(Alu::Or, Size::B8, RDX, Rm::M(frame(token)));
        a.alu(Alu::Cmp, Size::B8, RDX, Rm::M(mem_index(crate::asm::RSP, RCX, 0, tag)));
        at[0] = self.jcc_cold(Cc::Ne);
        at
    }

    /// After a check for a write: checks for a read as well.
    pub(super) fn check_read(&mut self) -> u32 {
        let tag = self.tlb(offset_of!(TlbEntry, read));
        self.asm.alu(Alu::Cmp, Size::B8, RDX, Rm::M(mem_index(crate::asm::RSP, RCX, 0, tag)));
        self.jcc_cold(Cc::Ne)
    }

    /// After a check: rcx = the page's host address less its guest address.
    pub(super) fn addend(&mut self) {
        let addend = self.tlb(offset_of!(TlbEntry, addend));
        self.asm.mov_load(true, RCX, mem_index(crate::asm::RSP, RCX, 0, addend));
    }

    pub(super) fn describe(&self, op: &Op) -> u64 {
        mem_desc(op.ty as u8, op.flags, self.insn, op.code as u8, op.sub, self.insn_len)
    }

    /// Gives how many operations were done.
    pub(super) fn load(&mut self, op: &Op, ops: &[Op], block: &Block) -> usize {
        let Some(size) = size_of_type(op.ty) else {
            self.fail("a load of no integer");
            return 1;
        };
        if let Some(used) = self.float_load(op, ops, block) {
            return used;
        }
        if let Some(slot) = op.dst.as_slot() {
            self.before_write(slot, 0);
        }
        let access = self.access(ops, block, false);
        // The destination changes only when the access has succeeded.
        let d = op.dst.as_slot().and_then(|s| self.state.pin(s)).unwrap_or(RAX);
        let signed = op.flags & flags::SEXT != 0;
        self.asm.load_extend(size, signed, d, Rm::M(access.host()));
        let cold = self.access_stub(op, &access, ColdKind::Load);
        self.cold.push(Cold { result: d, ..cold });
        self.commit(op.dst, d);
        1
    }

    /// A load that ends in a float slot, maybe boxed by the next operation: goes to an xmm register.
    fn float_load(&mut self, op: &Op, ops: &[Op], block: &Block) -> Option<usize> {
        let boxed = op.ty == Ty::I32;
        let dst = if boxed {
            let next = ops.get(1).filter(|n| n.code == Code::NanBox && n.ty == Ty::F32)?;
            if next.a != op.dst || !self.state.used_once(op.dst) {
                return None;
            }
            next.dst
        } else if op.ty == Ty::I64 {
            op.dst
        } else {
            return None;
        };
        let slot = dst.as_slot().filter(|&s| self.state.is_float(s))?;
        self.before_write(slot, 0);
        let access = self.access(ops, block, false);
        let x = self.xmm();
        self.asm.vex(if boxed { LOAD32 } else { LOAD64 }, x, 0, Rm::M(access.host()));
        let cold = self.access_stub(op, &access, ColdKind::Load);
        self.cold.push(Cold { x: [x, 0, 0, 0], ..cold });
        if boxed {
            self.box_to_slot(slot, x, false);
            return Some(2);
        }
        self.float_commit(dst, x, Ty::F64, false);
        Some(1)
    }

    /// The stub of an access that has just been emitted.
    fn access_stub(&mut self, op: &Op, access: &Access, kind: ColdKind) -> Cold {
        Cold {
            at: access.at,
            resume: self.asm.pos() as u32,
            va: access.base,
            disp: access.disp,
            group: access.group,
            ty: op.ty,
            desc: self.describe(op),
            reloads: self.xmm.snapshot(),
            ..Cold::new(kind)
        }
    }

    pub(super) fn store(&mut self, op: &Op, ops: &[Op], block: &Block) {
        let Some(size) = size_of_type(op.ty) else { return self.fail("a store of no integer") };
        let access = self.access(ops, block, true);
        let value = self.src(op.b, block);
        self.state.done(op.b);
        let to = access.host();
        let view = op.b.as_slot().filter(|_| matches!(size, Size::B4 | Size::B8));
        let view = view.and_then(|s| self.xmm.find(s, |v| matches!(v, View::Full | View::Both)));
        match value {
            _ if let Some((x, _)) = view => {
                let i = if size == Size::B8 { STORE64 } else { STORE32 };
                self.asm.vex(i, x, 0, Rm::M(to));
            }
            Opnd::Imm(c) if size != Size::B8 || i32::try_from(c as i64).is_ok() => {
                self.asm.store_imm(size, to, c as i32);
            }
            _ => {
                let r = match value {
                    Opnd::Reg(r) => r,
                    _ => {
                        self.load_opnd(RDX, value, true);
                        RDX
                    }
                };
                self.asm.store(size, to, r);
            }
        }
        self.touched = true;
        let cold = self.access_stub(op, &access, ColdKind::Store);
        self.cold.push(Cold { b: value, ..cold });
    }

    /// The common start of atomics: checks for a write. Then the host address is in rcx.
    fn atomic_start(&mut self, op: &Op, block: &Block, write: bool) -> Checked {
        let va = self.address(op, block);
        let at = self.check(va, op.ty.bytes(), write, op.flags & flags::ALIGNED != 0);
        self.addend();
        self.asm.alu(Alu::Add, Size::B8, RCX, Rm::R(va));
        self.touched = true;
        Checked { va, at }
    }

    /// The common end of atomics: the result is in rax.
    fn atomic_end(&mut self, op: &Op, checked: &Checked, b: Opnd, c: Opnd, raw: bool) {
        if !raw && let Some(size) = size_of_type(op.ty) {
            let signed = op.flags & flags::SEXT != 0;
            if size != Size::B8 {
                self.asm.load_extend(size, signed, RAX, Rm::R(RAX));
            }
        }
        self.cold.push(Cold {
            at: checked.at,
            resume: self.asm.pos() as u32,
            va: checked.va,
            desc: self.describe(op),
            b,
            c,
            result: RAX,
            reloads: self.xmm.snapshot(),
            ..Cold::new(ColdKind::Atomic)
        });
        if op.dst.is_none() {
            return;
        }
        self.finish_in(op, RAX);
    }

    pub(super) fn amo(&mut self, op: &Op, block: &Block) {
        let (Some(size), Some(kind)) = (size_of_type(op.ty), AmoOp::from_u8(op.sub)) else {
            return self.fail("an unknown atomic operation");
        };
        let checked = self.atomic_start(op, block, true);
        let b = self.src(op.b, block);
        self.state.done(op.b);
        let host = mem(RCX, 0);
        match kind {
            AmoOp::Swap => {
                self.load_opnd(RAX, b, true);
                self.asm.xchg(size, host, RAX);
            }
            AmoOp::Add => {
                self.load_opnd(RAX, b, true);
                self.asm.lock_xadd(size, host, RAX);
            }
            _ => self.amo_loop(size, kind, b, host),
        }
        self.atomic_end(op, &checked, b, Opnd::Imm(0), false);
    }

    /// Reads, computes, compares and swaps until it succeeds.
    fn amo_loop(&mut self, size: Size, kind: AmoOp, b: Opnd, host: Mem) {
        self.asm.load_extend(size, false, RAX, Rm::M(host));
        let again = self.asm.pos();
        self.load_opnd(RDX, b, true);
        let pick = |t: &mut Self, cc: Cc| {
            t.asm.alu(Alu::Cmp, size, RAX, Rm::R(RDX));
            t.asm.cmov(cc, true, RDX, Rm::R(RAX));
        };
        match kind {
            AmoOp::And => self.asm.alu(Alu::And, Size::B8, RDX, Rm::R(RAX)),
            AmoOp::Or => self.asm.alu(Alu::Or, Size::B8, RDX, Rm::R(RAX)),
            AmoOp::Xor => self.asm.alu(Alu::Xor, Size::B8, RDX, Rm::R(RAX)),
            AmoOp::MinS => pick(self, Cc::L),
            AmoOp::MaxS => pick(self, Cc::G),
            AmoOp::MinU => pick(self, Cc::B),
            AmoOp::MaxU => pick(self, Cc::A),
            AmoOp::Swap | AmoOp::Add => {}
        }
        self.asm.lock_cmpxchg(size, host, RDX);
        self.asm.jcc_back(Cc::Ne, again);
    }

    pub(super) fn cas(&mut self, op: &Op, block: &Block) {
        let Some(size) = size_of_type(op.ty) else { return self.fail("an unknown atomic operation") };
        let checked = self.atomic_start(op, block, true);
        let b = self.src(op.b, block);
        let c = self.src(op.c, block);
        self.state.done(op.b);
        self.state.done(op.c);
        self.load_opnd(RAX, b, true);
        self.load_opnd(RDX, c, true);
        self.asm.lock_cmpxchg(size, mem(RCX, 0), RDX);
        self.atomic_end(op, &checked, b, c, false);
    }

    pub(super) fn load_reserved(&mut self, op: &Op, block: &Block) {
        let Some(size) = size_of_type(op.ty) else { return self.fail("an unknown atomic operation") };
        let checked = self.atomic_start(op, block, false);
        self.asm.store(Size::B8, frame(offset_of!(Frame, reserved_va) as i32), checked.va);
        self.asm.load_extend(size, false, RAX, Rm::M(mem(RCX, 0)));
        self.asm.store(Size::B8, frame(offset_of!(Frame, reserved_value) as i32), RAX);
        self.atomic_end(op, &checked, Opnd::Imm(0), Opnd::Imm(0), false);
    }

    pub(super) fn store_cond(&mut self, op: &Op, block: &Block) {
        let Some(size) = size_of_type(op.ty) else { return self.fail("an unknown atomic operation") };
        let reserved = frame(offset_of!(Frame, reserved_va) as i32);
        let checked = self.atomic_start(op, block, true);
        let b = self.src(op.b, block);
        self.state.done(op.b);
        // A register, for the comparison in flags that survive.
        self.asm.alu_store(Alu::Cmp, Size::B8, reserved, checked.va);
        let fail = self.asm.jcc(Cc::Ne);
        self.asm.mov_load(true, RAX, frame(offset_of!(Frame, reserved_value) as i32));
        let value = match b {
            Opnd::Reg(r) => r,
            _ => {
                self.load_opnd(RDX, b, true);
                RDX
            }
        };
        self.asm.lock_cmpxchg(size, mem(RCX, 0), value);
        // Both ways come here with the flag telling the outcome.
        self.asm.bind(fail);
        self.asm.setcc(Cc::Ne, RAX);
        self.asm.load_extend(Size::B1, false, RAX, Rm::R(RAX));
        self.asm.store_imm(Size::B8, reserved, -1);
        self.atomic_end(op, &checked, b, Opnd::Imm(0), true);
    }

    pub(super) fn fence(&mut self, op: &Op) {
        if op.aux & 1 != 0 {
            // Below the frame nobody else has this line; cheaper than mfence.
            self.asm.lock_or_zero(frame(-8));
        }
    }

    /// Calls the thunk of [`Code::Helper`]s or of floating point operations.
    pub(super) fn call_described(&mut self, op: &Op, block: &Block, desc: u64, thunk: u64) {
        self.claim_all();
        self.asm.mov_imm(RAX, desc);
        self.asm.store(Size::B8, frame(crate::thunks::DESC_AT), RAX);
        for (r, arg) in [RAX, RDX, RCX].into_iter().zip([op.a, op.b, op.c]) {
            self.load_value(r, arg, block);
        }
        for v in [op.a, op.b, op.c] {
            self.state.done(v);
        }
        self.asm.call_to(thunk);
    }

    pub(super) fn helper(&mut self, op: &Op, block: &Block) {
        self.before_helper();
        self.touched = true;
        let id = op.aux as u64 & 0xffff | u64::from(self.insn) << 16 | u64::from(self.insn_len) << 32;
        self.call_described(op, block, id, self.thunks.table.helper);
        if !op.dst.is_none() {
            self.finish_in(op, RAX);
        }
    }

    /// An operation that the engine's software floating point does.
    pub(super) fn float_call(&mut self, op: &Op, block: &Block) {
        debug_assert!(op.code as u8 >= Code::FAdd as u8);
        let desc = u64::from(u32::from_le_bytes([op.code as u8, op.ty as u8, op.sub, op.flags]))
            | u64::from(op.aux as u32) << 32;
        self.call_described(op, block, desc, self.thunks.table.float);
        if !op.dst.is_none() {
            self.finish_in(op, RAX);
        }
    }
}
