//! Accesses that share one TLB check.
//!
//! Within straight-line code, loads and stores off the same unchanged slot with displacements close together
//! form a group. The first of them checks that all of the group's bytes are in one page that the TLB has,
//! and leaves the page's addend in a cell of the frame; if they are not, the cell is 0. The others only look
//! whether it is. A stub then checks for them alone, as it does for the first one.
//!
//! An addend stays good until the next label or helper: translations are only ever changed by helpers, or
//! from outside at places where code polls for attention.

use plinth_ir::{Block, Code, Op, Ty, Val, flags};

use super::Translator;
use super::cold::{Cold, ColdKind};
use super::memory::size_of_type;
use super::state::{FIRST_GROUP_CELL, Opnd, spill_cell};
use super::xmm::{LOAD32, LOAD64};
use crate::asm::{Alu, Cc, Mem, RAX, RCX, RDX, Reg, Rm, Size, mem, mem_index};

/// Groups at a time.
const GROUPS: usize = 8;
/// Bytes that a group spans at most: the wider, the more often it is across pages.
const SPAN: i32 = 256;
/// How far the search for members goes.
const LOOKAHEAD: usize = 40;

#[derive(Clone, Copy)]
struct Group {
    base: Val,
    /// It has loads, and stores.
    read: bool,
    write: bool,
    /// Displacements: the first byte's, and the one after the last.
    lo: i32,
    hi: i32,
}

/// The groups that are open.
#[derive(Default)]
pub(super) struct Groups {
    open: [Option<Group>; GROUPS],
    any: bool,
    next: usize,
}

impl Groups {
    #[inline]
    pub(super) fn close_all(&mut self) {
        if self.any {
            self.open = [None; GROUPS];
            self.any = false;
        }
    }

    /// `slot` changes: accesses off it have other addresses.
    #[inline]
    pub(super) fn slot_changed(&mut self, slot: u16) {
        if self.any {
            for g in &mut self.open {
                if g.is_some_and(|g| g.base == Val::slot(slot)) {
                    *g = None;
                }
            }
        }
    }

    fn find(&self, op: &Op, write: bool) -> Option<u8> {
        let (lo, hi) = (op.aux, op.aux.checked_add(op.ty.bytes() as i32)?);
        let allows = |g: &Group| if write { g.write } else { g.read };
        let fits = |g: &Group| g.base == op.a && allows(g) && g.lo <= lo && hi <= g.hi;
        let i = self.open.iter().position(|g| g.as_ref().is_some_and(fits))?;
        Some(FIRST_GROUP_CELL + i as u8)
    }

    fn add(&mut self, group: Group) -> u8 {
        let i = self.open.iter().position(Option::is_none).unwrap_or(self.next);
        self.next = (i + 1) % GROUPS;
        self.open[i] = Some(group);
        self.any = true;
        FIRST_GROUP_CELL + i as u8
    }
}

/// An access whose check has been emitted.
#[derive(Clone, Copy)]
pub(super) struct Access {
    /// The address is `base` + `disp`; the host's is that plus rcx.
    pub base: Reg,
    pub disp: i32,
    /// rel32 fields of jumps to the stub; 0 for none.
    pub at: [u32; 2],
    /// The group's cell, and whether this is its first access.
    pub group: Option<(u8, bool)>,
}

impl Access {
    pub(super) fn host(&self) -> Mem {
        mem_index(RCX, self.base, 0, self.disp)
    }
}

/// The group of `ops`' first access and others that may join it; `None` if none may.
fn members(ops: &[Op], write: bool) -> Option<Group> {
    let first = ops.first()?;
    if first.dst == first.a && !write {
        return None;
    }
    let hi = first.aux.checked_add(first.ty.bytes() as i32)?;
    let mut group = Group { base: first.a, read: !write, write, lo: first.aux, hi };
    let mut found = false;
    let mut certain = true;
    for op in ops.iter().skip(1).take(LOOKAHEAD) {
        let (loads, stores) = (op.code == Code::Load, op.code == Code::Store);
        // An access of the other kind makes the check stricter, so it must be sure to happen.
        let joins = certain || (loads && group.read) || (stores && group.write);
        if (loads || stores)
            && joins
            && op.a == first.a
            && op.ty != Ty::V128
            && op.flags & flags::ALIGNED == 0
        {
            let lo = group.lo.min(op.aux);
            let hi = group.hi.max(op.aux.saturating_add(op.ty.bytes() as i32));
            if hi.saturating_sub(lo) <= SPAN {
                let (read, write) = (group.read || loads, group.write || stores);
                group = Group { read, write, lo, hi, ..group };
                found = true;
            }
        }
        certain &= op.code != Code::Br;
        if matches!(op.code, Code::Label | Code::Helper) || op.code.leaves() || op.dst == first.a {
            break;
        }
    }
    found.then_some(group)
}

impl Translator {
    /// Emits the check of the integer or float access `ops[0]`. Afterwards rcx is the addend, and rax and rdx
    /// are free, but for [`Access::base`].
    pub(super) fn access(&mut self, ops: &[Op], block: &Block, write: bool) -> Access {
        let op = &ops[0];
        let aligned = op.flags & flags::ALIGNED != 0;
        if op.a.as_slot().is_some() && !aligned {
            if let Some(cell) = self.groups.find(op, write) {
                return self.member(op, cell, block);
            }
            if let Some(group) = members(ops, write) {
                return self.first_member(op, group, block);
            }
        }
        let base = self.address(op, block);
        let at = self.check(base, op.ty.bytes(), write, aligned);
        self.addend();
        Access { base, disp: 0, at, group: None }
    }

    fn group_base(&mut self, op: &Op, block: &Block) -> Reg {
        self.claim(1 << RAX | 1 << RDX);
        self.spill_xmm();
        match self.src(op.a, block) {
            Opnd::Reg(r) => r,
            other => {
                self.load_opnd(RAX, other, true);
                RAX
            }
        }
    }

    fn member(&mut self, op: &Op, cell: u8, block: &Block) -> Access {
        let base = self.group_base(op, block);
        if self.state.addend_in_rcx != Some(cell) {
            self.claim(1 << RCX);
            self.asm.mov_load(true, RCX, spill_cell(cell));
            self.state.addend_in_rcx = Some(cell);
        }
        self.asm.test(true, RCX, RCX);
        let at = [self.jcc_cold(Cc::E), 0];
        Access { base, disp: op.aux, at, group: Some((cell, false)) }
    }

    fn first_member(&mut self, op: &Op, group: Group, block: &Block) -> Access {
        let mut base = self.group_base(op, block);
        self.claim(1 << RCX);
        let mut disp = op.aux;
        let mut low = base;
        if base == RAX {
            if group.lo != 0 {
                self.asm.alu_imm(Alu::Add, true, Rm::R(RAX), group.lo);
            }
            disp -= group.lo;
        } else if group.lo != 0 {
            self.asm.lea(true, RAX, mem(base, group.lo));
            low = RAX;
        }
        let mut at = self.check(low, (group.hi - group.lo) as u32, group.write, false);
        if group.read && group.write {
            at[1] = self.check_read();
        }
        self.addend();
        let cell = self.groups.add(group);
        self.asm.store(Size::B8, spill_cell(cell), RCX);
        self.state.addend_in_rcx = Some(cell);
        if base == RAX {
            base = low;
        }
        Access { base, disp, at, group: Some((cell, true)) }
    }

    /// The start of the stub of a group's access, whose group is across pages or not in the TLB: checks for it
    /// alone, and does it if it can. Gives the jump that is taken if it cannot; then rax is the address.
    pub(super) fn group_stub(&mut self, cold: &Cold) -> u32 {
        let Some((cell, first)) = cold.group else { return 0 };
        if first {
            self.asm.store_imm(Size::B8, spill_cell(cell), 0);
        }
        if cold.disp != 0 {
            self.asm.lea(true, RAX, mem(cold.va, cold.disp));
        } else {
            self.asm.copy(RAX, cold.va);
        }
        let write = cold.kind == ColdKind::Store;
        self.asm.mov_imm(RDX, u64::from(cold.ty.bytes()) - 1);
        self.asm.call_to(self.thunks.check[self.mode.data()][usize::from(write)]);
        let miss = self.jcc_cold(Cc::Ne);
        let host = mem_index(RCX, RAX, 0, 0);
        let size = size_of_type(cold.ty).unwrap_or(Size::B8);
        if write {
            self.load_opnd(RDX, cold.b, true);
            self.asm.store(size, host, RDX);
        } else if cold.x[0] != 0 {
            self.asm.vex(if size == Size::B8 { LOAD64 } else { LOAD32 }, cold.x[0], 0, Rm::M(host));
        } else {
            let signed = (cold.desc >> 8) as u8 & flags::SEXT != 0;
            self.asm.load_extend(size, signed, cold.result, Rm::M(host));
        }
        self.asm.zero(RCX);
        self.asm.jmp_back(cold.resume as usize);
        miss
    }
}
