//! The one-pass translator.
//!
//! The guest's state is in its home (pinned registers, or slots of the frame) at every [`Code::Insn`], so
//! labels and exits need no code to make it so. Temporaries live between two markers; where one is, is
//! tracked in [`state::State`]. What is rarely executed goes to [`cold`] stubs after the region's body.

mod cold;
mod control;
mod float;
mod group;
mod int;
mod int_special;
mod memory;
mod state;
mod vector;
mod xmm;

use plinth_ir::{Block, Code, Layout, Mode, Op, SlotClass, Ty, Val};

use crate::asm::{Asm, Cc};
use crate::frame::SLOTS;
use crate::memory::{CodeAddress, CodeMemory};
use crate::thunks::{self, Thunks};
use crate::{CodegenError, Config};
use cold::Cold;
use group::Groups;
use state::{NO_PIN, State};
use xmm::XmmState;

/// A piece of host code for a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub code: CodeAddress,
    /// Length in bytes.
    pub len: usize,
    /// Where it can be entered with the guest's state in place: byte offset from the guest page's base, and
    /// host address. The first is the start of the region; the others are its labels.
    pub entries: Vec<(u32, CodeAddress)>,
    /// Its direct exits.
    pub exits: Vec<ExitSite>,
}

/// A direct jump out of a region, which the engine can link to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitSite {
    /// Address of the jump's rel32 field: for [`CodeMemory::patch_jump`]; it identifies the exit in
    /// [`crate::frame::Frame::site`].
    pub site: CodeAddress,
    /// Where the jump goes while it is not linked.
    pub stub: CodeAddress,
    /// Byte offset of the target from the base of the region's guest page.
    pub pc: i32,
    /// Of an exit to another page: address of the literal with the guest physical page number that the
    /// target page must have for the link to be taken. It must be set after the jump, and set to
    /// [`u32::MAX`] before the jump is unlinked.
    pub page_literal: Option<CodeAddress>,
}

/// What a block depends on besides its own page, when its only instruction straddles into the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Straddle {
    /// Guest physical page number (address / 4096) that the next page must have.
    pub page: u32,
}

const UNBOUND: u32 = u32::MAX;

/// A label while code is made.
#[derive(Clone, Copy)]
struct LabelState {
    /// Offset of its code, or [`UNBOUND`].
    at: u32,
    /// A branch from behind goes to it.
    loop_head: bool,
    /// It stands in the block.
    inside: bool,
}

/// An exit while code is made; all are offsets into the code.
#[derive(Clone, Copy)]
struct ExitState {
    site: u32,
    stub: u32,
    pc: i32,
    literal: Option<u32>,
}

/// Translates blocks of one guest ISA. It keeps nothing between blocks but its buffers; each thread that
/// translates has its own.
pub struct Translator {
    asm: Asm,
    state: State,
    xmm: XmmState,
    groups: Groups,
    thunks: Thunks,
    mode: Mode,
    labels: Vec<LabelState>,
    /// (label, offset of a rel32 to it).
    fixups: Vec<(u32, u32)>,
    cold: Vec<Cold>,
    exits: Vec<ExitState>,
    /// Offset from the page base of the current instruction, and its length.
    insn: u32,
    insn_len: u8,
    /// The current instruction has changed the guest's state, so it cannot be started over.
    touched: bool,
    /// The result of the current operation is sign-extended from 32 bits.
    sext_result: bool,
    error: Option<&'static str>,
}

impl Translator {
    /// A translator for guests with `layout`.
    ///
    /// # Errors
    /// [`CodegenError::Layout`] if the layout does not fit into a frame.
    pub fn new(layout: &Layout, _config: Config) -> Result<Self, CodegenError> {
        let slots = layout.slots.len();
        if slots > SLOTS {
            return Err(CodegenError::Layout { slots });
        }
        let mut pins = vec![NO_PIN; slots];
        for (reg, slot) in thunks::pins(layout) {
            pins[usize::from(slot)] = reg;
        }
        let floats = layout.slots.iter().zip(&pins);
        let floats = floats.map(|(s, &pin)| s.class == SlotClass::Float && pin == NO_PIN).collect();
        Ok(Self {
            asm: Asm::new(),
            state: State::new(pins, floats),
            xmm: XmmState::new(),
            groups: Groups::default(),
            thunks: Thunks::default(),
            mode: Mode::default(),
            labels: Vec::new(),
            fixups: Vec::new(),
            cold: Vec::new(),
            exits: Vec::new(),
            insn: 0,
            insn_len: 0,
            touched: false,
            sext_result: false,
            error: None,
        })
    }

    /// Translates `block` for `mode` into `out`. A block whose only instruction straddles its page has a
    /// `straddle`, which is checked whenever the region is entered; on a mismatch it is left with
    /// [`crate::frame::exit::LOOKUP`] at its start.
    ///
    /// # Errors
    /// [`CodegenError::Full`] if `out` has no room, [`CodegenError::Block`] if the block is beyond what the
    /// translator can do.
    pub fn translate(
        &mut self,
        block: &Block,
        mode: Mode,
        straddle: Option<Straddle>,
        out: &mut CodeMemory,
    ) -> Result<Region, CodegenError> {
        self.thunks = *out.thunks();
        self.mode = mode;
        self.prepare(block, out.next_address())?;
        if let Some(straddle) = straddle {
            self.check_straddle(block.start, straddle);
        }
        let ops = block.ops.as_slice();
        let mut at = 0;
        while at < ops.len() {
            at += self.operation(block, &ops[at..]);
        }
        let ends = [Code::Jmp, Code::JmpInd, Code::Exit, Code::Trap];
        if !ops.last().is_some_and(|op| ends.contains(&op.code)) {
            self.fail("control runs off the end");
        }
        self.emit_cold();
        if let Some(what) = self.error.take() {
            return Err(CodegenError::Block(what));
        }
        self.finish(block, out)
    }

    /// Resets the state, counts uses of temporaries, finds loop heads.
    fn prepare(&mut self, block: &Block, base: u64) -> Result<(), CodegenError> {
        self.asm.start(base);
        self.fixups.clear();
        self.cold.clear();
        self.exits.clear();
        self.error = None;
        self.sext_result = false;
        self.insn = block.start;
        self.insn_len = 0;
        self.touched = false;
        let unbound = LabelState { at: UNBOUND, loop_head: false, inside: false };
        self.labels.clear();
        self.labels.extend(block.labels.iter().map(|l| LabelState { inside: l.op.is_some(), ..unbound }));
        self.state.start(usize::from(block.temps));
        self.xmm.start();
        self.groups.close_all();
        let temps = &mut self.state.temps;
        let mut count = |v: Val| {
            if let Some(t) = v.as_temp()
                && let Some(t) = temps.get_mut(usize::from(t))
            {
                t.uses += 1;
            }
        };
        for (i, op) in block.ops.iter().enumerate() {
            count(op.a);
            count(op.b);
            count(op.c);
            if matches!(op.code, Code::Br | Code::Jmp | Code::Label) {
                let id = op.aux as usize;
                let Some(label) = block.labels.get(id) else {
                    return Err(CodegenError::Block("a label that does not exist"));
                };
                if op.code != Code::Label && label.op.is_some_and(|at| at as usize <= i) {
                    self.labels[id].loop_head = true;
                }
            }
        }
        Ok(())
    }

    /// Translates the first operation of `ops`; gives how many were.
    #[inline]
    fn operation(&mut self, block: &Block, ops: &[Op]) -> usize {
        self.asm.reserve(512);
        self.state.begin_op();
        self.free_xmm();
        let mut op = ops[0];
        match op.code {
            Code::Insn => {
                self.state.end_insn();
                self.xmm.end_insn();
                self.insn = op.aux as u32 & 0xffff;
                self.insn_len = op.sub;
                self.touched = false;
            }
            Code::Label => self.label(op.aux as u32, block),
            Code::Br => self.branch(&op, block),
            Code::Jmp => self.jump(op.aux as u32, block),
            Code::JmpInd => self.jump_indirect(&op, block),
            Code::Exit => self.exit_dispatch(op.aux),
            Code::Helper => self.helper(&op, block),
            Code::Trap => self.trap(&op, block),
            Code::PcRel => self.pc_rel(&op),
            code if (Code::Mov..=Code::BitRev8).contains_code(code) => {
                let used = self.fuse(&mut op, ops);
                self.integer(&op, block);
                self.sext_result = false;
                return used;
            }
            Code::Load if op.ty != Ty::V128 => return self.load(&op, ops, block),
            Code::Store if op.ty != Ty::V128 => self.store(&op, ops, block),
            Code::Amo => self.amo(&op, block),
            Code::Cas => self.cas(&op, block),
            Code::LoadReserved => self.load_reserved(&op, block),
            Code::StoreCond => self.store_cond(&op, block),
            Code::Fence => self.fence(&op),
            Code::Load | Code::Store | Code::VBin | Code::VSplat | Code::VExtract | Code::VInsert => {
                self.vector(&op, block);
            }
            _ => return self.float(&op, ops, block),
        }
        1
    }

    /// If the result of `op` is only moved or sign-extended by the next operation, does both at once.
    /// Gives how many operations `op` now stands for.
    #[inline]
    fn fuse(&mut self, op: &mut Op, ops: &[Op]) -> usize {
        let Some(next) = ops.get(1) else { return 1 };
        if next.a != op.dst || !self.state.used_once(op.dst) {
            return 1;
        }
        match next.code {
            Code::Sext32 => self.sext_result = true,
            Code::Mov if next.ty == op.ty => {}
            Code::Zext32 if op.ty == Ty::I32 => {}
            _ => return 1,
        }
        op.dst = next.dst;
        2
    }

    fn finish(&mut self, block: &Block, out: &mut CodeMemory) -> Result<Region, CodegenError> {
        for &(label, at) in &self.fixups {
            let target = self.labels[label as usize].at;
            if target == UNBOUND {
                return Err(CodegenError::Block("a label that is bound nowhere"));
            }
            self.asm.set_rel32(at as usize, target as usize);
        }
        let code = out.append(self.asm.code())?;
        let mut entries = Vec::with_capacity(1 + self.labels.len());
        entries.push((block.start, code));
        for (label, info) in self.labels.iter().zip(&block.labels) {
            if label.at != UNBOUND && (0..4096).contains(&info.pc) {
                entries.push((info.pc as u32, code + u64::from(label.at)));
            }
        }
        let exits = self.exits.iter().map(|e| ExitSite {
            site: code + u64::from(e.site),
            stub: code + u64::from(e.stub),
            pc: e.pc,
            page_literal: e.literal.map(|l| code + u64::from(l)),
        });
        Ok(Region { code, len: self.asm.code().len(), entries, exits: exits.collect() })
    }

    /// Gives the block up.
    #[cold]
    fn fail(&mut self, what: &'static str) {
        self.error = Some(what);
    }

    /// A jump to a cold stub if `cc`; its place, for [`Cold::at`].
    #[inline]
    fn jcc_cold(&mut self, cc: Cc) -> u32 {
        self.asm.jcc(cc) as u32
    }
}

/// Ranges of opcodes.
trait ContainsCode {
    fn contains_code(&self, code: Code) -> bool;
}

impl ContainsCode for std::ops::RangeInclusive<Code> {
    #[inline]
    fn contains_code(&self, code: Code) -> bool {
        (*self.start() as u8..=*self.end() as u8).contains(&(code as u8))
    }
}
