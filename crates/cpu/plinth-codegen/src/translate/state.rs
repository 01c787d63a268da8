//! Where values are while code is made.

use plinth_ir::{Block, Val};

use super::Translator;
use super::xmm::Kind;
use crate::asm::{Mem, RAX, RCX, RDX, Reg, Rm, Size, frame};
use crate::frame::{Frame, SPILLS, slot_offset};

/// Marks a slot that no register holds.
pub(super) const NO_PIN: u8 = 0xff;

const NO_TEMP: u16 = u16::MAX;

/// Scratch registers, by index. rcx comes last since it is wanted for shift counts.
const SCRATCH: [Reg; 3] = [RAX, RDX, RCX];

/// Where a temporary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loc {
    /// Nowhere: not yet defined, or its last use is past.
    None,
    /// A known value.
    Const(u64),
    /// The value that this slot still has.
    Slot(u16),
    /// A scratch register.
    Reg(Reg),
    /// A spill cell of the frame.
    Spill(u8),
    /// A spill cell and the next one: a vector.
    SpillPair(u8),
    /// An xmm register.
    Xmm(Reg, Kind),
}

/// A temporary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Temp {
    pub loc: Loc,
    /// Uses to come.
    pub uses: u16,
}

/// An operand, ready to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opnd {
    Reg(Reg),
    Mem(Mem),
    Imm(u64),
}

impl Opnd {
    /// The operand as what most instructions take; immediates have none.
    pub(super) fn rm(self) -> Option<Rm> {
        match self {
            Opnd::Reg(r) => Some(Rm::R(r)),
            Opnd::Mem(m) => Some(Rm::M(m)),
            Opnd::Imm(_) => None,
        }
    }

    pub(super) fn is_reg(self, r: Reg) -> bool {
        self == Opnd::Reg(r)
    }

    /// A bit for its register.
    pub(super) fn mask(self) -> u16 {
        match self {
            Opnd::Reg(r) => 1 << r,
            _ => 0,
        }
    }
}

/// See the module's text.
pub(super) struct State {
    /// Register of each slot, or [`NO_PIN`].
    pins: Vec<u8>,
    /// Slots that hold floats.
    floats: Vec<bool>,
    pub temps: Vec<Temp>,
    /// What each scratch register holds, by the order of [`SCRATCH`].
    owner: [u16; 3],
    /// Temporaries that are [`Loc::Slot`].
    aliases: Vec<u16>,
    /// Free spill cells.
    free_spills: u64,
    /// Cells that are free from the next operation on: the current one may still read them.
    freed: u64,
    /// rcx is the content of this cell: the addend of an access group, or 0.
    pub addend_in_rcx: Option<u8>,
}

const _: () = assert!(SPILLS == 64);

/// Spill cells from this one on are for access groups.
pub(super) const FIRST_GROUP_CELL: u8 = 56;
/// The other cells.
const ALL_SPILLS: u64 = (1 << FIRST_GROUP_CELL) - 1;

pub(super) fn spill_cell(cell: u8) -> Mem {
    frame(std::mem::offset_of!(Frame, spills) as i32 + i32::from(cell) * 8)
}

fn scratch_index(r: Reg) -> Option<usize> {
    SCRATCH.iter().position(|&s| s == r)
}

impl State {
    pub(super) fn new(pins: Vec<u8>, floats: Vec<bool>) -> Self {
        Self {
            pins,
            floats,
            temps: Vec::new(),
            owner: [NO_TEMP; 3],
            aliases: Vec::new(),
            free_spills: ALL_SPILLS,
            freed: 0,
            addend_in_rcx: None,
        }
    }

    /// Starts a block.
    pub(super) fn start(&mut self, temps: usize) {
        self.temps.clear();
        self.temps.resize(temps, Temp { loc: Loc::None, uses: 0 });
        self.addend_in_rcx = None;
        self.end_insn();
    }

    /// No temporary lives on.
    #[inline]
    pub(super) fn end_insn(&mut self) {
        self.owner = [NO_TEMP; 3];
        self.aliases.clear();
        self.free_spills = ALL_SPILLS;
        self.freed = 0;
    }

    /// The next operation begins.
    #[inline]
    pub(super) fn begin_op(&mut self) {
        self.free_spills |= self.freed;
        self.freed = 0;
    }

    /// The register that `slot` lives in.
    #[inline]
    pub(super) fn pin(&self, slot: u16) -> Option<Reg> {
        self.pins.get(usize::from(slot)).copied().filter(|&r| r != NO_PIN)
    }

    /// `slot` holds a float, in memory.
    #[inline]
    pub(super) fn is_float(&self, slot: u16) -> bool {
        self.floats.get(usize::from(slot)).copied().unwrap_or(false)
    }

    /// Where temporary `v` is.
    pub(super) fn loc(&self, v: Val) -> Option<Loc> {
        self.temp(v).map(|t| t.loc)
    }

    fn slot_exists(&self, slot: u16) -> bool {
        usize::from(slot) < self.pins.len()
    }

    fn temp(&self, v: Val) -> Option<Temp> {
        self.temps.get(usize::from(v.as_temp()?)).copied()
    }

    /// `v` is a temporary with one use to come.
    #[inline]
    pub(super) fn used_once(&self, v: Val) -> bool {
        self.temp(v).is_some_and(|t| t.uses == 1)
    }

    /// `v` is a temporary that nothing uses.
    #[inline]
    pub(super) fn is_dead(&self, v: Val) -> bool {
        self.temp(v).is_some_and(|t| t.uses == 0)
    }

    /// Takes a scratch register that nobody owns, not in `avoid`.
    pub(super) fn free_scratch(&mut self, avoid: u16) -> Option<Reg> {
        let free = |&i: &usize| self.owner[i] == NO_TEMP && avoid >> SCRATCH[i] & 1 == 0;
        let r = (0..3).find(free).map(|i| SCRATCH[i])?;
        if r == RCX {
            self.addend_in_rcx = None;
        }
        Some(r)
    }

    /// One use of `v` is done; after the last its place is free.
    #[inline]
    pub(super) fn done(&mut self, v: Val) {
        let Some(index) = v.as_temp() else { return };
        let Some(t) = self.temps.get_mut(usize::from(index)) else { return };
        t.uses = t.uses.saturating_sub(1);
        if t.uses == 0 {
            match t.loc {
                Loc::Reg(r) => {
                    if let Some(i) = scratch_index(r) {
                        self.owner[i] = NO_TEMP;
                    }
                }
                Loc::Spill(cell) => self.freed |= 1 << cell,
                Loc::SpillPair(cell) => self.freed |= 3 << cell,
                _ => {}
            }
            t.loc = Loc::None;
        }
    }
}

impl Translator {
    /// Where `v` can be read.
    #[inline]
    pub(super) fn src(&mut self, v: Val, block: &Block) -> Opnd {
        if let Some(slot) = v.as_slot() {
            return self.slot_opnd(slot);
        }
        if let Some(i) = v.as_temp() {
            return match self.state.temps.get(usize::from(i)).map(|t| t.loc) {
                Some(Loc::Const(c)) => Opnd::Imm(c),
                Some(Loc::Slot(slot)) => self.slot_opnd(slot),
                Some(Loc::Reg(r)) => Opnd::Reg(r),
                Some(Loc::Spill(cell)) => Opnd::Mem(spill_cell(cell)),
                Some(Loc::Xmm(r, kind)) => self.xmm_to_integer(i, r, kind),
                Some(Loc::None | Loc::SpillPair(_)) | None => {
                    self.fail("a temporary without a value");
                    Opnd::Imm(0)
                }
            };
        }
        if v.is_none() {
            return Opnd::Imm(0);
        }
        match block.const_of(v) {
            Some(c) => Opnd::Imm(c),
            None => {
                self.fail("a constant that does not exist");
                Opnd::Imm(0)
            }
        }
    }

    #[inline]
    pub(super) fn slot_opnd(&mut self, slot: u16) -> Opnd {
        match self.state.pin(slot) {
            Some(r) => Opnd::Reg(r),
            None => {
                if !self.state.slot_exists(slot) {
                    self.fail("a slot that does not exist");
                    return Opnd::Imm(0);
                }
                Opnd::Mem(frame(slot_offset(slot)))
            }
        }
    }

    /// A scratch register for use within the current operation, outside the `avoid` mask. What lived there
    /// is spilled.
    pub(super) fn scratch(&mut self, avoid: u16) -> Reg {
        if let Some(r) = self.state.free_scratch(avoid) {
            return r;
        }
        for r in SCRATCH {
            if avoid >> r & 1 == 0 {
                self.evict(r);
                return r;
            }
        }
        self.fail("more operands than scratch registers");
        RAX
    }

    /// Spills what lives in scratch register `r`.
    pub(super) fn evict(&mut self, r: Reg) {
        let Some(i) = scratch_index(r) else { return };
        if r == RCX {
            self.state.addend_in_rcx = None;
        }
        let owner = std::mem::replace(&mut self.state.owner[i], NO_TEMP);
        if owner == NO_TEMP {
            return;
        }
        let Some(cell) = self.spill_to() else { return };
        self.asm.store(Size::B8, spill_cell(cell), r);
        self.state.temps[usize::from(owner)].loc = Loc::Spill(cell);
    }

    /// A spill cell and its memory.
    pub(super) fn spill_cell(&mut self) -> Option<(u8, Mem)> {
        self.spill_to().map(|cell| (cell, spill_cell(cell)))
    }

    /// Two neighbouring spill cells.
    pub(super) fn spill_pair(&mut self) -> Option<u8> {
        let free = self.state.free_spills;
        let cell = (free & free >> 1).trailing_zeros();
        if cell >= 63 {
            self.fail("more live temporaries than spill cells");
            return None;
        }
        self.state.free_spills &= !(3 << cell);
        Some(cell as u8)
    }

    fn spill_to(&mut self) -> Option<u8> {
        let cell = self.state.free_spills.trailing_zeros();
        if cell >= 64 {
            self.fail("more live temporaries than spill cells");
            return None;
        }
        self.state.free_spills &= !(1 << cell);
        Some(cell as u8)
    }

    /// Spills what lives in the scratch registers of `mask`.
    pub(super) fn claim(&mut self, mask: u16) {
        for r in SCRATCH {
            if mask >> r & 1 != 0 {
                self.evict(r);
            }
        }
    }

    /// Spills all scratch registers.
    #[inline]
    pub(super) fn claim_all(&mut self) {
        self.claim(1 << RAX | 1 << RCX | 1 << RDX);
    }

    /// `slot` is about to change: temporaries that stand for its old value get a place of their own. The
    /// registers of `avoid` are in use.
    pub(super) fn before_write(&mut self, slot: u16, avoid: u16) {
        let mut i = 0;
        while i < self.state.aliases.len() {
            let t = self.state.aliases[i];
            let temp = self.state.temps[usize::from(t)];
            if temp.loc != Loc::Slot(slot) {
                i += 1;
                continue;
            }
            self.state.aliases.swap_remove(i);
            let r = self.scratch(avoid);
            let from = self.slot_opnd(slot);
            self.load_opnd(r, from, true);
            self.own(r, t);
        }
    }

    /// All slots are about to change.
    pub(super) fn before_helper(&mut self) {
        while let Some(t) = self.state.aliases.pop() {
            if let Loc::Slot(slot) = self.state.temps[usize::from(t)].loc {
                let from = self.slot_opnd(slot);
                let r = match from {
                    Opnd::Reg(r) => r,
                    _ => {
                        let r = self.scratch(0);
                        self.load_opnd(r, from, true);
                        r
                    }
                };
                if let Some(cell) = self.spill_to() {
                    self.asm.store(Size::B8, spill_cell(cell), r);
                    self.state.temps[usize::from(t)].loc = Loc::Spill(cell);
                }
            }
        }
        self.claim_all();
        self.spill_xmm();
        self.xmm.drop_views();
        self.groups.close_all();
    }

    pub(super) fn own(&mut self, r: Reg, temp: u16) {
        if let Some(i) = scratch_index(r) {
            self.state.owner[i] = temp;
            self.state.temps[usize::from(temp)].loc = Loc::Reg(r);
        }
    }

    /// `r` = `from`, the low 32 bits zero-extended if not `wide`. Leaves the flags alone.
    #[inline]
    pub(super) fn load_opnd(&mut self, r: Reg, from: Opnd, wide: bool) {
        match from {
            Opnd::Reg(s) => {
                if s != r || !wide {
                    self.asm.mov_rr(wide, r, s);
                }
            }
            Opnd::Mem(m) => self.asm.mov_load(wide, r, m),
            Opnd::Imm(c) => self.asm.mov_imm(r, if wide { c } else { c & 0xffff_ffff }),
        }
    }

    /// `from` in a register: its own, or a scratch register outside `avoid` that it is loaded to.
    pub(super) fn in_reg(&mut self, from: Opnd, avoid: u16, wide: bool) -> Reg {
        match from {
            Opnd::Reg(r) => r,
            _ => {
                let r = self.scratch(avoid);
                self.load_opnd(r, from, wide);
                r
            }
        }
    }

    /// The register to compute `dst` in. Operands in `inputs` are read until then, and may be overwritten
    /// by writing the result.
    #[inline]
    pub(super) fn dst_reg(&mut self, dst: Val, inputs: u16) -> Reg {
        if let Some(slot) = dst.as_slot() {
            if !self.state.aliases.is_empty() {
                self.before_write(slot, inputs);
            }
            if let Some(r) = self.state.pin(slot) {
                return r;
            }
        }
        // An operand whose last use this was may lend its register.
        self.scratch(0)
    }

    /// The register to compute `dst` in, different from those in `avoid`; those of `inputs` may be
    /// overwritten by writing it.
    pub(super) fn dst_reg_apart(&mut self, dst: Val, avoid: u16, inputs: u16) -> Reg {
        let pinned = dst.as_slot().and_then(|s| self.state.pin(s));
        if let Some(slot) = dst.as_slot()
            && !self.state.aliases.is_empty()
        {
            self.before_write(slot, avoid | inputs);
        }
        match pinned {
            Some(r) if avoid >> r & 1 == 0 => r,
            _ => self.scratch(avoid),
        }
    }

    /// The result of the operation is in `r`: puts it into `dst`. `r` must come from [`Self::dst_reg`], or
    /// be a scratch register.
    #[inline]
    pub(super) fn commit(&mut self, dst: Val, r: Reg) {
        if self.sext_result {
            self.asm.load_extend(Size::B4, true, r, Rm::R(r));
        }
        if let Some(slot) = dst.as_slot() {
            self.touched = true;
            self.groups.slot_changed(slot);
            match self.state.pin(slot) {
                Some(pin) => self.asm.copy(pin, r),
                None if self.state.slot_exists(slot) => {
                    self.asm.store(Size::B8, frame(slot_offset(slot)), r);
                    self.xmm.slot_changed(slot);
                }
                None => self.fail("a slot that does not exist"),
            }
        } else if let Some(t) = dst.as_temp() {
            if usize::from(t) >= self.state.temps.len() {
                self.fail("a temporary that does not exist");
            } else if !self.state.is_dead(dst) {
                self.own(r, t);
            }
        }
    }

    /// Makes temporary `dst` stand for what `from` is, if that needs no code.
    pub(super) fn alias(&mut self, dst: Val, from: Val, block: &Block) -> bool {
        let Some(t) = dst.as_temp() else { return false };
        if usize::from(t) >= self.state.temps.len() {
            return false;
        }
        let loc = if let Some(slot) = from.as_slot() {
            Loc::Slot(slot)
        } else if let Some(c) = block.const_of(from) {
            Loc::Const(c)
        } else if let Some(of) = self.state.temp(from) {
            match of.loc {
                Loc::Const(_) | Loc::Slot(_) => of.loc,
                _ => return false,
            }
        } else {
            return false;
        };
        if let Loc::Slot(_) = loc {
            self.state.aliases.push(t);
        }
        self.state.temps[usize::from(t)].loc = loc;
        true
    }
}
