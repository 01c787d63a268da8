//! What the xmm registers hold. Float and vector slots are written through to memory at once, so a register
//! is only ever a copy: nothing has to be saved at exits, and a fault finds the state in place. Copies are
//! kept within straight-line code.

use plinth_ir::{Block, Ty, Val};

use super::Translator;
use super::int_special::{movq_from_xmm, movq_to_xmm};
use super::state::{Loc, Opnd, Temp};
use crate::asm::{Alu, Cc, Mem, P0, PF2, PF3, RAX, Reg, Rm, Size, Vex, frame, vex};
use crate::frame::slot_offset;
use crate::thunks::Constant;

/// Registers from this one up keep values; those below are scratch.
const FIRST: Reg = 2;
const COUNT: usize = 16;
/// So many in use by one instruction are many.
const SCARCE: u32 = 8;

/// xmm `reg` = memory (vmovsd), and the other way.
pub(super) const LOAD64: Vex = vex(PF2, 1, false, 0x10);
pub(super) const STORE64: Vex = vex(PF2, 1, false, 0x11);
/// The same for 32 bits (vmovss).
pub(super) const LOAD32: Vex = vex(PF3, 1, false, 0x10);
pub(super) const STORE32: Vex = vex(PF3, 1, false, 0x11);
pub(super) const XORPS: Vex = vex(P0, 1, false, 0x57);
pub(super) const ORPS: Vex = vex(P0, 1, false, 0x56);
pub(super) const ANDPS: Vex = vex(P0, 1, false, 0x54);
pub(super) const MOVAPS: Vex = vex(P0, 1, false, 0x28);

/// What a register has of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// Its 64 bits.
    Full,
    /// The f32 in it, as [`plinth_ir::Code::NanUnbox`] gives it.
    Unboxed,
    /// Both: it is a properly boxed f32.
    Both,
    /// It and the next slot: a vector.
    Vector,
}

/// What a value in an xmm register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An f32. Bits 32 to 63 are all ones if `boxed`, else anything.
    F32 { boxed: bool },
    /// 64 bits.
    F64,
    /// 128 bits.
    V128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    Slot(u16, View),
}

/// A copy to be made anew after a slow path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reload {
    reg: Reg,
    slot: u16,
    view: View,
}

/// See the module's text.
pub(super) struct XmmState {
    holds: [Holds; COUNT],
    /// Registers with a slot's copy.
    live: u16,
    /// Registers that the current instruction uses.
    busy: u16,
    /// Temporaries of the current instruction that were put into registers.
    temps: Vec<u16>,
    /// Where the search for a victim goes on.
    next: Reg,
    pub reloads: Vec<Reload>,
}

impl XmmState {
    pub(super) fn new() -> Self {
        Self {
            holds: [Holds::Nothing; COUNT],
            live: 0,
            busy: 0,
            temps: Vec::new(),
            next: FIRST,
            reloads: Vec::new(),
        }
    }

    pub(super) fn start(&mut self) {
        self.drop_views();
        self.end_insn();
        self.reloads.clear();
    }

    /// Forgets all copies: control comes from elsewhere, or somebody else wrote slots.
    #[inline]
    pub(super) fn drop_views(&mut self) {
        if self.live != 0 {
            self.holds = [Holds::Nothing; COUNT];
            self.live = 0;
        }
    }

    #[inline]
    pub(super) fn end_insn(&mut self) {
        self.busy = 0;
        self.temps.clear();
    }

    /// `slot` has changed in memory.
    #[inline]
    pub(super) fn slot_changed(&mut self, slot: u16) {
        if self.live == 0 {
            return;
        }
        for r in 0..COUNT {
            let Holds::Slot(s, view) = self.holds[r] else { continue };
            if s == slot || (view == View::Vector && s + 1 == slot) {
                self.holds[r] = Holds::Nothing;
                self.live &= !(1 << r);
            }
        }
    }

    pub(super) fn find(&mut self, slot: u16, want: impl Fn(View) -> bool) -> Option<(Reg, View)> {
        if self.live == 0 {
            return None;
        }
        let found = (0..COUNT).find_map(|r| match self.holds[r] {
            Holds::Slot(s, view) if s == slot && want(view) => Some((r as Reg, view)),
            _ => None,
        })?;
        self.busy |= 1 << found.0;
        Some(found)
    }

    pub(super) fn set_view(&mut self, r: Reg, slot: u16, view: View) {
        self.holds[usize::from(r)] = Holds::Slot(slot, view);
        self.live |= 1 << r;
    }

    /// All copies there are, for a slow path.
    pub(super) fn snapshot(&mut self) -> (u32, u32) {
        let from = self.reloads.len() as u32;
        if self.live != 0 {
            for (r, holds) in self.holds.iter().enumerate() {
                if let Holds::Slot(slot, view) = *holds {
                    self.reloads.push(Reload { reg: r as Reg, slot, view });
                }
            }
        }
        (from, self.reloads.len() as u32)
    }
}

impl Translator {
    /// A free register for a value of the current instruction.
    pub(super) fn xmm(&mut self) -> Reg {
        let x = &mut self.xmm;
        let start = x.next;
        let mut victim = None;
        for i in 0..(COUNT as Reg - FIRST) {
            let r = FIRST + (start - FIRST + i) % (COUNT as Reg - FIRST);
            if x.busy >> r & 1 != 0 {
                continue;
            }
            if x.live >> r & 1 == 0 {
                victim = Some(r);
                break;
            }
            victim = victim.or(Some(r));
        }
        let Some(r) = victim else {
            self.fail("more floating point values than registers");
            return FIRST;
        };
        x.next = if r as usize + 1 == COUNT { FIRST } else { r + 1 };
        x.holds[usize::from(r)] = Holds::Nothing;
        x.live &= !(1 << r);
        x.busy |= 1 << r;
        r
    }

    /// Frees the registers of the current instruction's temporaries that are not used any more, if registers
    /// become scarce. Between operations only.
    #[inline]
    pub(super) fn free_xmm(&mut self) {
        if self.xmm.busy.count_ones() < SCARCE {
            return;
        }
        let (mut busy, temps) = (0, &self.state.temps);
        self.xmm.temps.retain(|&t| match temps[usize::from(t)] {
            Temp { loc: Loc::Xmm(r, _), uses: 1.. } => {
                busy |= 1 << r;
                true
            }
            _ => false,
        });
        self.xmm.busy = busy;
    }

    /// Temporary `dst` is in xmm `r`.
    pub(super) fn own_xmm(&mut self, dst: Val, r: Reg, kind: Kind) {
        let Some(t) = dst.as_temp() else { return };
        match self.state.temps.get_mut(usize::from(t)) {
            Some(temp) => {
                temp.loc = Loc::Xmm(r, kind);
                self.xmm.temps.push(t);
            }
            None => self.fail("a temporary that does not exist"),
        }
    }

    /// Moves temporaries out of xmm registers into spill cells.
    #[inline]
    pub(super) fn spill_xmm(&mut self) {
        if self.xmm.temps.is_empty() {
            return;
        }
        let temps = std::mem::take(&mut self.xmm.temps);
        for &t in &temps {
            self.spill_xmm_temp(t);
        }
        self.xmm.temps = temps;
        self.xmm.temps.clear();
    }

    fn spill_xmm_temp(&mut self, t: u16) {
        let temp = self.state.temps[usize::from(t)];
        let Loc::Xmm(r, kind) = temp.loc else { return };
        if temp.uses == 0 {
            return;
        }
        if kind == Kind::V128 {
            let Some(cell) = self.spill_pair() else { return };
            self.asm.movups_store(super::state::spill_cell(cell), r);
            self.state.temps[usize::from(t)].loc = Loc::SpillPair(cell);
            return;
        }
        let Some((cell, to)) = self.spill_cell() else { return };
        match kind {
            Kind::F32 { .. } => {
                self.asm.store_imm(Size::B8, to, 0);
                self.asm.vex(STORE32, r, 0, Rm::M(to));
            }
            _ => self.asm.vex(STORE64, r, 0, Rm::M(to)),
        }
        self.state.temps[usize::from(t)].loc = Loc::Spill(cell);
    }

    /// Temporary `t`, which is in xmm `r`, for an integer operation.
    pub(super) fn xmm_to_integer(&mut self, t: u16, r: Reg, kind: Kind) -> Opnd {
        if kind == Kind::V128 {
            self.fail("a vector as an integer");
            return Opnd::Imm(0);
        }
        match self.state.free_scratch(0) {
            Some(g) => {
                self.asm.vex(movq_from_xmm(kind == Kind::F64), r, 0, Rm::R(g));
                self.own(g, t);
                Opnd::Reg(g)
            }
            None => {
                self.spill_xmm_temp(t);
                match self.state.temps[usize::from(t)].loc {
                    Loc::Spill(cell) => Opnd::Mem(super::state::spill_cell(cell)),
                    _ => Opnd::Imm(0),
                }
            }
        }
    }

    /// GPR `g` = `v`, wherever it is; an f32's upper bits are zero.
    pub(super) fn load_value(&mut self, g: Reg, v: Val, block: &Block) {
        if let Some(Loc::Xmm(r, kind)) = self.state.loc(v) {
            self.asm.vex(movq_from_xmm(kind == Kind::F64), r, 0, Rm::R(g));
        } else {
            let from = self.src(v, block);
            self.load_opnd(g, from, true);
        }
    }

    /// Float `v` of type `ty` (f32, f64) in an xmm register, and whether it is a boxed f32.
    pub(super) fn float_src(&mut self, v: Val, ty: Ty, block: &Block) -> (Reg, bool) {
        if let Some(slot) = v.as_slot()
            && self.state.pin(slot).is_none()
        {
            return (self.float_slot(slot, ty), false);
        }
        if let Some(Loc::Xmm(r, kind)) = self.state.loc(v) {
            return (r, kind == Kind::F32 { boxed: true });
        }
        let r = self.xmm();
        match self.src(v, block) {
            Opnd::Reg(g) => self.asm.vex(movq_to_xmm(true), r, 0, Rm::R(g)),
            Opnd::Mem(m) => self.asm.vex(LOAD64, r, 0, Rm::M(m)),
            Opnd::Imm(0) => self.asm.vex(XORPS, r, r, Rm::R(r)),
            Opnd::Imm(c) => {
                let g = self.scratch(0);
                self.asm.mov_imm(g, c);
                self.asm.vex(movq_to_xmm(true), r, 0, Rm::R(g));
            }
        }
        (r, false)
    }

    fn float_slot(&mut self, slot: u16, ty: Ty) -> Reg {
        if let Some((r, _)) = self.xmm.find(slot, |v| matches!(v, View::Full | View::Both)) {
            return r;
        }
        let r = self.xmm();
        let from = self.slot_mem(slot);
        self.asm.vex(LOAD64, r, 0, Rm::M(from));
        if ty == Ty::F64 {
            self.xmm.set_view(r, slot, View::Full);
        }
        r
    }

    /// The memory of a slot that no register holds.
    pub(super) fn slot_mem(&mut self, slot: u16) -> Mem {
        match self.slot_opnd(slot) {
            Opnd::Mem(m) => m,
            _ => frame(slot_offset(0)),
        }
    }

    /// A floating point result of type `ty` is in xmm `r`: puts it into `dst`.
    pub(super) fn float_commit(&mut self, dst: Val, r: Reg, ty: Ty, boxed: bool) {
        let wide = ty == Ty::F64;
        let Some(slot) = dst.as_slot() else {
            let kind = if wide { Kind::F64 } else { Kind::F32 { boxed } };
            return self.own_xmm(dst, r, kind);
        };
        self.before_write(slot, 0);
        if let Some(pin) = self.state.pin(slot) {
            self.touched = true;
            self.groups.slot_changed(slot);
            return self.asm.vex(movq_from_xmm(wide), r, 0, Rm::R(pin));
        }
        let to = self.slot_mem(slot);
        if wide {
            self.asm.vex(STORE64, r, 0, Rm::M(to));
        } else {
            self.asm.store_imm(Size::B8, to, 0);
            self.asm.vex(STORE32, r, 0, Rm::M(to));
        }
        self.slot_written(slot);
        if wide {
            self.xmm.set_view(r, slot, View::Full);
        }
    }

    /// Float slot `slot` = the f32 in xmm `r`, boxed.
    pub(super) fn box_to_slot(&mut self, slot: u16, r: Reg, boxed: bool) {
        self.before_write(slot, 0);
        let mut r = r;
        if !boxed {
            let to = self.xmm();
            let ones = self.asm.absolute(self.thunks.constant(Constant::Box32));
            self.asm.vex(ORPS, to, r, Rm::M(ones));
            r = to;
        }
        let to = self.slot_mem(slot);
        self.asm.vex(STORE64, r, 0, Rm::M(to));
        self.slot_written(slot);
        self.xmm.set_view(r, slot, View::Both);
    }

    /// Makes the copies of `range` anew, in a stub.
    pub(super) fn reload_views(&mut self, range: (u32, u32)) {
        for i in range.0..range.1 {
            let Reload { reg, slot, view } = self.xmm.reloads[i as usize];
            self.asm.reserve(128);
            let from = self.slot_mem(slot);
            match view {
                View::Vector => self.asm.movups_load(reg, from),
                View::Full | View::Both => self.asm.vex(LOAD64, reg, 0, Rm::M(from)),
                View::Unboxed => {
                    self.asm.vex(LOAD64, reg, 0, Rm::M(from));
                    let high = frame(slot_offset(slot) + 4);
                    self.asm.alu_imm(Alu::Cmp, false, Rm::M(high), -1);
                    let proper = self.asm.jcc_short(Cc::E);
                    let nan = self.asm.absolute(self.thunks.constant(Constant::Nan32));
                    self.asm.vex(LOAD64, reg, 0, Rm::M(nan));
                    self.asm.bind_short(proper);
                }
            }
        }
    }

    /// xmm 0 = `value`, by way of rax.
    pub(super) fn xmm0_constant(&mut self, value: u64) {
        self.asm.mov_imm(RAX, value);
        self.asm.vex(movq_to_xmm(true), 0, 0, Rm::R(RAX));
    }
}
