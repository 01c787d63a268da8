//! The pieces of host code that every region shares: how translated code is entered and left, and how it
//! calls the engine's [`Runtime`]. They are written for a layout, whose hottest slots live in registers.
//!
//! Inside translated code `rsp` is the [`Frame`], rax, rcx and rdx are scratch, and the other registers hold
//! the first slots of [`Layout::hot`]. A call thunk takes its arguments in scratch registers:
//!
//! | thunk | rax | rdx | rcx | \[rsp - 16\] |
//! |---|---|---|---|---|
//! | load | address | | description | |
//! | store | address | value | description | |
//! | atomic | address | b | c | description |
//! | helper, float | a | b | c | description |
//! | trap | value | | description | |

use std::mem::offset_of;

use plinth_ir::Layout;

use crate::CodegenError;
use crate::asm::{
    Alu, Asm, Cc, R8, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Reg, Rm, Shift, Size,
    frame, mem, mem_index,
};
use crate::frame::{Frame, MMUS, Runtime, SLOTS, TLB_ENTRIES, ThunkTable, TlbEntry, exit, slot_offset};

/// Registers that hold slots, for the hottest slot first. Those that cost a byte more as a base come last.
pub(crate) const PINNED: [Reg; 12] = [RBX, RSI, RDI, R8, 9, 10, 11, R14, R15, RBP, R12, R13];

/// Where a call thunk finds its description, from the frame. Below `rsp`, but in the red zone, which signal
/// handlers spare.
pub(crate) const DESC_AT: i32 = -16;

/// Mask of a byte offset into a data TLB.
pub(crate) const TLB_MASK: i32 = ((TLB_ENTRIES - 1) * size_of::<TlbEntry>()) as i32;

/// Registers that a System V callee preserves.
const SAVED: [Reg; 6] = [RBP, RBX, R12, R13, R14, R15];

/// Byte offsets of the frame's fields.
pub(crate) mod field {
    use super::{Frame, offset_of};
    pub(crate) const ATTENTION: i32 = offset_of!(Frame, attention) as i32;
    pub(crate) const LEAVE: i32 = offset_of!(Frame, leave) as i32;
    pub(crate) const PC: i32 = offset_of!(Frame, pc) as i32;
    pub(crate) const PC_PAGE: i32 = offset_of!(Frame, pc_page) as i32;
    pub(crate) const SITE: i32 = offset_of!(Frame, site) as i32;
    pub(crate) const HOST_RSP: i32 = offset_of!(Frame, host_rsp) as i32;
    pub(crate) const GUEST_MXCSR: i32 = offset_of!(Frame, guest_mxcsr) as i32;
    pub(crate) const VECTOR: i32 = offset_of!(Frame, vector) as i32;
    pub(crate) const HOST_MXCSR: i32 = offset_of!(Frame, host_mxcsr) as i32;
}

/// Addresses of the thunks and of shared constants.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Thunks {
    pub table: ThunkTable,
    /// `extern "C" fn(*mut Frame, code) -> u32`.
    pub enter: u64,
    /// Leaves with [`exit::LINK`]; eax: offset of the target from the page base, rcx: site.
    pub link: u64,
    /// Leaves with [`exit::ATTENTION`]; eax: offset from the page base.
    pub attention: u64,
    /// Leaves with [`exit::DISPATCH`]; eax: offset from the page base.
    pub dispatch: u64,
    /// Leaves with [`exit::LOOKUP`]; eax: offset from the page base.
    pub lookup: u64,
    /// Leaves with [`exit::ATTENTION`]; rax: guest address.
    pub attention_at: u64,
    /// Leaves with [`exit::LOOKUP`]; rax: guest address.
    pub lookup_at: u64,
    /// TLB checks, by set of translations and whether for a write: of the access at rax, of edx + 1 bytes. The
    /// zero flag says that it can be done; then rcx is the addend. rax stays.
    pub check: [[u64; 2]; MMUS],
    /// 16-byte constants: see [`Constant`].
    pub constants: u64,
}

/// Constants that translated code reads, by their place after [`Thunks::constants`] in units of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Constant {
    /// The default NaN of f32, boxed.
    Nan32,
    /// The default NaN of f64.
    Nan64,
    /// What makes an f32 a boxed one.
    Box32,
    /// 64 bytes: the IR's floating point flags by the low six bits of MXCSR.
    FlagsFromHost = 3,
    /// 32 bytes: MXCSR's flags by the IR's.
    FlagsToHost = 7,
}

impl Thunks {
    pub(crate) fn constant(&self, c: Constant) -> u64 {
        self.constants + 16 * c as u64
    }
}

/// The slots that live in registers.
pub(crate) fn pins(layout: &Layout) -> impl Iterator<Item = (Reg, u16)> + '_ {
    let slots = layout.slots.len().min(SLOTS);
    let hot = layout.hot.iter().copied().filter(move |&s| usize::from(s) < slots);
    PINNED.into_iter().zip(hot)
}

struct Builder<'a> {
    asm: Asm,
    pins: Vec<(Reg, u16)>,
    runtime: &'a Runtime,
    thunks: Thunks,
}

/// The thunks' code for the address `base`.
pub(crate) fn build(
    layout: &Layout,
    runtime: &Runtime,
    base: u64,
) -> Result<(Vec<u8>, Thunks), CodegenError> {
    if layout.slots.len() > SLOTS {
        return Err(CodegenError::Layout { slots: layout.slots.len() });
    }
    let mut asm = Asm::new();
    asm.start(base);
    let mut b = Builder { asm, pins: pins(layout).collect(), runtime, thunks: Thunks::default() };
    b.constants(layout);
    b.enter();
    let leave = b.exits();
    b.calls(leave);
    b.checks();
    Ok((b.asm.code().to_vec(), b.thunks))
}

/// The IR's flags for MXCSR's.
fn flags_from_host(mxcsr: u8) -> u8 {
    let bit = |from: u8, to: u8| (mxcsr >> from & 1) << to;
    bit(0, 4) | bit(2, 3) | bit(3, 2) | bit(4, 1) | bit(5, 0)
}

/// MXCSR's flags for the IR's.
fn flags_to_host(flags: u8) -> u8 {
    let bit = |from: u8, to: u8| (flags >> from & 1) << to;
    bit(4, 0) | bit(3, 2) | bit(2, 3) | bit(1, 4) | bit(0, 5)
}

impl Builder<'_> {
    /// Begins a thunk.
    fn label(&mut self) -> u64 {
        self.asm.reserve(1024);
        self.asm.align16();
        self.asm.address()
    }

    fn constants(&mut self, layout: &Layout) {
        self.thunks.constants = self.label();
        let [_, nan32, nan64] = layout.default_nan;
        let boxed = 0xffff_ffff_0000_0000;
        let pairs = [(nan32 | boxed, 0), (nan64, 0), (boxed, 0)];
        for (low, high) in pairs {
            self.asm.data(low);
            self.asm.data(high);
        }
        let from: Vec<u8> = (0..64).map(flags_from_host).collect();
        let to: Vec<u8> = (0..32).map(flags_to_host).collect();
        for chunk in from.chunks_exact(8).chain(to.chunks_exact(8)) {
            let word = chunk.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b));
            self.asm.data(word);
        }
    }

    /// Copies the pinned registers to their slots, with `rsp` = frame - `below`.
    fn spill(&mut self, below: i32) {
        for &(r, slot) in &self.pins {
            self.asm.store(Size::B8, frame(below + slot_offset(slot)), r);
        }
        self.asm.stmxcsr(frame(below + field::GUEST_MXCSR));
    }

    fn reload(&mut self, below: i32) {
        self.asm.ldmxcsr(frame(below + field::GUEST_MXCSR));
        for &(r, slot) in &self.pins {
            self.asm.mov_load(true, r, frame(below + slot_offset(slot)));
        }
    }

    fn enter(&mut self) {
        self.thunks.enter = self.label();
        let a = &mut self.asm;
        for r in SAVED {
            a.push(r);
        }
        a.store(Size::B8, mem(RDI, field::HOST_RSP), RSP);
        a.copy(RSP, RDI);
        a.copy(RAX, RSI);
        a.stmxcsr(frame(field::HOST_MXCSR));
        self.reload(0);
        self.asm.jmp_rm(Rm::R(RAX));
    }

    /// The ways out. Gives the address of the one that takes eax as the reason, with everything spilled.
    fn exits(&mut self) -> u64 {
        self.thunks.table.exit = self.label();
        self.spill(0);
        let leave = self.asm.address();
        let a = &mut self.asm;
        a.ldmxcsr(frame(field::HOST_MXCSR));
        a.mov_load(true, RSP, frame(field::HOST_RSP));
        for r in SAVED.into_iter().rev() {
            a.pop(r);
        }
        a.ret();

        self.thunks.link = self.label();
        self.asm.store(Size::B8, frame(field::SITE), RCX);
        self.leave_with(exit::LINK, true);
        self.thunks.attention = self.label();
        self.leave_with(exit::ATTENTION, true);
        self.thunks.dispatch = self.label();
        self.leave_with(exit::DISPATCH, true);
        self.thunks.lookup = self.label();
        self.leave_with(exit::LOOKUP, true);
        self.thunks.attention_at = self.label();
        self.leave_with(exit::ATTENTION, false);
        self.thunks.lookup_at = self.label();
        self.leave_with(exit::LOOKUP, false);
        leave
    }

    /// Leaves for `reason` to rax, or to eax from the page base if `relative`.
    fn leave_with(&mut self, reason: u32, relative: bool) {
        let a = &mut self.asm;
        if relative {
            a.load_extend(Size::B4, true, RAX, Rm::R(RAX));
            a.alu(Alu::Add, Size::B8, RAX, frame(field::PC_PAGE).into());
        }
        a.store(Size::B8, frame(field::PC), RAX);
        a.mov_imm(RAX, u64::from(reason));
        a.jmp_to(self.thunks.table.exit);
    }

    fn calls(&mut self, leave: u64) {
        let runtime = *self.runtime;
        self.thunks.table.load = self.label();
        self.call(runtime.load as usize as u64, &[(RSI, RAX), (RDX, RCX)], false);
        self.finish_call(leave);

        self.thunks.table.store = self.label();
        self.call(runtime.store as usize as u64, &[(RSI, RAX), (R8, RDX), (RDX, RCX), (RCX, R8)], false);
        self.finish_call(leave);

        self.thunks.table.atomic = self.label();
        let moves = [(RSI, RAX), (R8, RCX), (RCX, RDX)];
        self.call_described(runtime.atomic as usize as u64, &moves, RDX, false);
        self.finish_call(leave);

        let moves = [(R8, RCX), (RCX, RDX), (RDX, RAX)];
        self.thunks.table.helper = self.label();
        self.call_described(runtime.helper as usize as u64, &moves, RSI, false);
        self.finish_call(leave);
        self.thunks.table.float = self.label();
        self.call_described(runtime.float as usize as u64, &moves, RSI, true);
        self.finish_call(leave);

        self.thunks.table.trap = self.label();
        self.call(runtime.trap as usize as u64, &[(RSI, RCX), (RDX, RAX)], false);
        self.leave_now(leave);
    }

    fn checks(&mut self) {
        for mmu in 0..MMUS {
            for (write, tag) in
                [offset_of!(TlbEntry, read), offset_of!(TlbEntry, write)].into_iter().enumerate()
            {
                self.thunks.check[mmu][write] = self.label();
                // Past the return address.
                let tlb = 8 + (offset_of!(Frame, tlb) + mmu * size_of::<[TlbEntry; TLB_ENTRIES]>()) as i32;
                let entry = |field: usize| Rm::M(mem_index(RSP, RCX, 0, tlb + field as i32));
                let a = &mut self.asm;
                a.lea(true, RDX, mem_index(RAX, RDX, 0, 0));
                a.alu_imm(Alu::And, true, Rm::R(RDX), -4096);
                a.alu(Alu::Or, Size::B8, RDX, Rm::M(frame(8 + (offset_of!(Frame, tokens) + 8 * mmu) as i32)));
                // (va >> 12 ^ va >> 24), times the size of an entry.
                a.rorx(true, RCX, Rm::R(RAX), 12);
                a.alu(Alu::Xor, Size::B8, RCX, Rm::R(RAX));
                a.shift_imm(Shift::Shr, true, RCX, 7);
                a.alu_imm(Alu::And, false, Rm::R(RCX), TLB_MASK);
                a.alu(Alu::Cmp, Size::B8, RDX, entry(tag));
                a.load_extend(Size::B8, false, RCX, entry(offset_of!(TlbEntry, addend)));
                a.ret();
            }
        }
    }

    /// Calls `function` after `moves` of (to, from); keeps all xmm registers if `keep_xmm`.
    fn call(&mut self, function: u64, moves: &[(Reg, Reg)], keep_xmm: bool) {
        self.spill(8);
        self.call_spilled(function, moves, keep_xmm);
    }

    /// As [`Self::call`], with the description in register `desc`.
    fn call_described(&mut self, function: u64, moves: &[(Reg, Reg)], desc: Reg, keep_xmm: bool) {
        self.spill(8);
        // The moves do not read `desc`'s register after this one only if it is loaded last.
        for &(to, from) in moves {
            self.asm.copy(to, from);
        }
        self.asm.mov_load(true, desc, frame(8 + DESC_AT));
        self.call_spilled(function, &[], keep_xmm);
    }

    fn call_spilled(&mut self, function: u64, moves: &[(Reg, Reg)], keep_xmm: bool) {
        const XMM_BYTES: i32 = 16 * 16;
        let a = &mut self.asm;
        for &(to, from) in moves {
            a.copy(to, from);
        }
        a.lea(true, RDI, frame(8));
        // The frame is 64-byte aligned; the return address took 8.
        let room = if keep_xmm { XMM_BYTES + 8 } else { 8 };
        a.alu_imm(Alu::Sub, true, Rm::R(RSP), room);
        if keep_xmm {
            a.reserve(1024);
            for x in 0..16 {
                a.movups_store(frame(i32::from(x) * 16), x);
            }
        }
        a.mov_imm(RAX, function);
        a.call_reg(RAX);
        if keep_xmm {
            for x in 0..16 {
                a.movups_load(x, frame(i32::from(x) * 16));
            }
        }
        a.alu_imm(Alu::Add, true, Rm::R(RSP), room);
    }

    /// After a call: leaves if the engine asked for it, else goes back to the caller.
    fn finish_call(&mut self, leave: u64) {
        self.asm.reserve(1024);
        self.asm.alu_imm(Alu::Cmp, false, Rm::M(frame(8 + field::LEAVE)), 0);
        let stay = self.asm.jcc_short(Cc::E);
        self.leave_now(leave);
        self.asm.bind_short(stay);
        self.reload(8);
        self.asm.ret();
    }

    fn leave_now(&mut self, leave: u64) {
        let a = &mut self.asm;
        a.mov_load(false, RAX, frame(8 + field::LEAVE));
        a.store_imm(Size::B4, frame(8 + field::LEAVE), 0);
        a.lea(true, RSP, frame(8));
        a.jmp_to(leave);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_tables_are_inverse() {
        for f in 0..32 {
            assert_eq!(flags_from_host(flags_to_host(f)), f);
        }
        // The host's denormal flag has no counterpart.
        assert_eq!(flags_from_host(2), 0);
        assert_eq!(flags_from_host(1), 0x10);
        assert_eq!(flags_from_host(0x20), 1);
    }
}
