//! Control flow: labels, branches, exits.

use std::mem::offset_of;

use plinth_ir::{Block, Cond, Op, Ty};

use super::cold::{Cold, ColdKind};
use super::{ExitState, Straddle, Translator, UNBOUND};
use crate::asm::{Alu, Cc, RAX, RCX, RDX, RSP, Rm, Size, frame, mem_index};
use crate::frame::{CODE_TLB_ENTRIES, CodeTlbEntry, Frame, JUMP_ENTRIES, JumpEntry};
use crate::thunks::field;

const _: () = assert!(size_of::<CodeTlbEntry>() == 16 && CODE_TLB_ENTRIES.is_power_of_two());
const _: () = assert!(size_of::<JumpEntry>() == 16 && JUMP_ENTRIES.is_power_of_two());

/// Length of jmp rel32 up to its field, and of jcc rel32.
const JMP_FIELD: usize = 1;
const JCC_FIELD: usize = 2;

/// True for an offset into the block's own page.
fn same_page(pc: i32) -> bool {
    (0..4096).contains(&pc)
}

impl Translator {
    pub(super) fn label(&mut self, id: u32, block: &Block) {
        self.state.end_insn();
        self.xmm.end_insn();
        self.xmm.drop_views();
        self.groups.close_all();
        self.state.addend_in_rcx = None;
        let Some(label) = self.labels.get_mut(id as usize) else { return };
        label.at = self.asm.pos() as u32;
        if label.loop_head {
            self.poll(block.labels[id as usize].pc);
        }
    }

    /// Leaves to `pc` (from the page base) if the engine wants attention.
    fn poll(&mut self, pc: i32) {
        self.asm.alu_imm(Alu::Cmp, false, Rm::M(frame(field::ATTENTION)), 0);
        let at = [self.jcc_cold(Cc::Ne), 0];
        self.cold.push(Cold { at, pc, ..Cold::new(ColdKind::Attention) });
    }

    pub(super) fn branch(&mut self, op: &Op, block: &Block) {
        let Some(cond) = Cond::from_u8(op.sub) else { return self.fail("an unknown condition") };
        let id = op.aux as u32;
        let pc = block.labels[id as usize].pc;
        let (a, b) = self.take2(op, block);
        let label = self.labels[id as usize];
        // A jump backward out of the block closes a loop as one inside does.
        let backward = !label.inside && pc <= self.insn as i32;
        if backward && !self.touched {
            // The instruction can be started over.
            self.poll(self.insn as i32);
        }
        let start = self.asm.pos();
        let cc = self.compare(cond, op.ty != Ty::I32, a, b, 0);
        if label.inside {
            if label.at == UNBOUND {
                let at = self.asm.jcc(cc);
                self.fixups.push((id, at as u32));
            } else {
                self.asm.jcc_back(cc, label.at as usize);
            }
        } else if !same_page(pc) || (backward && self.touched) {
            let poll = backward && self.touched;
            let at = [self.jcc_cold(cc), 0];
            self.cold.push(Cold { at, pc, ..Cold::new(ColdKind::Exit { poll }) });
        } else {
            // Room before the comparison, so that it stays next to the jump.
            let field = (self.asm.pos() + JCC_FIELD) % 8;
            self.asm.shift_up(start, if field > 4 { 8 - field } else { 0 });
            let site = self.asm.jcc(cc) as u32;
            self.exit_site(site, pc, None);
        }
    }

    pub(super) fn jump(&mut self, id: u32, block: &Block) {
        let label = self.labels[id as usize];
        let pc = block.labels[id as usize].pc;
        if label.inside {
            if label.at == UNBOUND {
                let at = self.asm.jmp();
                self.fixups.push((id, at as u32));
            } else {
                self.asm.jmp_back(label.at as usize);
            }
            return;
        }
        self.exit_to(pc, pc <= self.insn as i32);
    }

    /// Leaves the block to `pc` (from the page base) by a jump that can be linked.
    pub(super) fn exit_to(&mut self, pc: i32, poll: bool) {
        self.asm.reserve(64);
        if poll {
            self.poll(pc);
        }
        if same_page(pc) {
            self.asm.align_field(JMP_FIELD);
            let site = self.asm.jmp() as u32;
            self.exit_site(site, pc, None);
        } else {
            self.cross_page(pc);
        }
    }

    /// The jump at `site` can be linked; until then it goes to a stub.
    fn exit_site(&mut self, site: u32, pc: i32, literal: Option<u32>) {
        let exit = self.exits.len() as u32;
        self.exits.push(ExitState { site, stub: 0, pc, literal });
        self.cold.push(Cold { at: [site, 0], exit, pc, ..Cold::new(ColdKind::Link) });
    }

    /// Jumps to `pc` in another page, whose mapping is checked each time.
    fn cross_page(&mut self, pc: i32) {
        self.asm.reserve(256);
        let delta = pc & -4096;
        let mut at = [self.code_tlb(delta), 0];
        let literal = self.compare_page(u32::MAX);
        at[1] = self.jcc_cold(Cc::Ne);
        self.asm.store(Size::B8, frame(field::PC_PAGE), RAX);
        self.asm.align_field(JMP_FIELD);
        let site = self.asm.jmp() as u32;
        let exit = self.exits.len() as u32;
        self.exit_site(site, pc, Some(literal));
        self.cold.push(Cold { at, exit, pc, ..Cold::new(ColdKind::Miss) });
    }

    /// rax = the page at `delta` from the current one, rcx = the offset of its entry in the code TLB. Gives
    /// the jump that is taken if the entry is of another page.
    fn code_tlb(&mut self, delta: i32) -> u32 {
        let fetch = usize::from(self.mode.fetch & 3);
        let table = offset_of!(Frame, code_tlb) + fetch * CODE_TLB_ENTRIES * size_of::<CodeTlbEntry>();
        let token = offset_of!(Frame, code_tokens) + fetch * 8;
        let a = &mut self.asm;
        a.mov_load(true, RAX, frame(field::PC_PAGE));
        a.alu_imm(Alu::Add, true, Rm::R(RAX), delta);
        a.rorx(false, RCX, Rm::R(RAX), 8);
        a.alu_imm(Alu::And, false, Rm::R(RCX), ((CODE_TLB_ENTRIES - 1) * size_of::<CodeTlbEntry>()) as i32);
        a.mov_load(true, RDX, frame(token as i32));
        a.alu(Alu::Or, Size::B8, RDX, Rm::R(RAX));
        let tag = (table + offset_of!(CodeTlbEntry, tag)) as i32;
        a.alu(Alu::Cmp, Size::B8, RDX, Rm::M(mem_index(RSP, RCX, 0, tag)));
        self.jcc_cold(Cc::Ne)
    }

    /// Compares the page number of the entry at rcx with a literal that can be patched; gives its place.
    fn compare_page(&mut self, page: u32) -> u32 {
        let fetch = usize::from(self.mode.fetch & 3);
        let table = offset_of!(Frame, code_tlb) + fetch * CODE_TLB_ENTRIES * size_of::<CodeTlbEntry>();
        let number = (table + offset_of!(CodeTlbEntry, page)) as i32;
        // Opcode, ModRM, SIB and a long displacement come before the literal.
        self.asm.align_field(7);
        self.asm.cmp_mem_literal(mem_index(RSP, RCX, 0, number), page);
        self.asm.pos() as u32 - 4
    }

    /// At the region's start: the next page must be the one that the block was lifted from.
    pub(super) fn check_straddle(&mut self, start: u32, straddle: Straddle) {
        self.asm.reserve(256);
        let first = self.code_tlb(4096);
        self.compare_page(straddle.page);
        let at = [first, self.jcc_cold(Cc::Ne)];
        self.cold.push(Cold { at, pc: start as i32, ..Cold::new(ColdKind::Lookup) });
    }

    pub(super) fn jump_indirect(&mut self, op: &Op, block: &Block) {
        let target = self.take1(op, block);
        self.load_opnd(RAX, target, true);
        let jumps = offset_of!(Frame, jumps);
        let a = &mut self.asm;
        a.alu_imm(Alu::Cmp, false, Rm::M(frame(field::ATTENTION)), 0);
        let attention = a.jcc(Cc::Ne);
        // The address without its lowest bit selects an entry of 16 bytes.
        a.rorx(false, RCX, Rm::R(RAX), 29);
        a.alu_imm(Alu::And, false, Rm::R(RCX), ((JUMP_ENTRIES - 1) * size_of::<JumpEntry>()) as i32);
        a.mov_load(true, RDX, frame(offset_of!(Frame, jump_token) as i32));
        a.alu(Alu::Xor, Size::B8, RDX, Rm::R(RAX));
        let key = (jumps + offset_of!(JumpEntry, key)) as i32;
        a.alu(Alu::Cmp, Size::B8, RDX, Rm::M(mem_index(RSP, RCX, 0, key)));
        let miss = a.jcc(Cc::Ne);
        a.alu_imm(Alu::And, true, Rm::R(RAX), -4096);
        a.store(Size::B8, frame(field::PC_PAGE), RAX);
        let host = (jumps + offset_of!(JumpEntry, host)) as i32;
        a.jmp_rm(Rm::M(mem_index(RSP, RCX, 0, host)));
        a.set_rel_to(attention, self.thunks.attention_at);
        a.set_rel_to(miss, self.thunks.lookup_at);
    }

    /// Leaves to `pc` (from the page base) through the dispatcher.
    pub(super) fn exit_dispatch(&mut self, pc: i32) {
        self.asm.reserve(64);
        self.asm.mov_imm(RAX, u64::from(pc as u32));
        self.asm.jmp_to(self.thunks.dispatch);
    }

    pub(super) fn trap(&mut self, op: &Op, block: &Block) {
        let value = self.take1(op, block);
        self.load_opnd(RAX, value, true);
        let code = u64::from(op.aux as u32) | u64::from(self.insn) << 32 | u64::from(self.insn_len) << 48;
        self.asm.mov_imm(RCX, code);
        self.asm.call_to(self.thunks.table.trap);
    }
}
