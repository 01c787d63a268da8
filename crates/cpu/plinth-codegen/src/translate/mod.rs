//! The one-pass translator.

use plinth_ir::{Block, Layout, Mode};

use crate::memory::{CodeAddress, CodeMemory};
use crate::{CodegenError, Config};

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

/// Translates blocks of one guest ISA. It has no state but its buffers; a thread has its own.
pub struct Translator {
    _config: Config,
}

impl Translator {
    /// A translator for guests with `layout`.
    ///
    /// # Errors
    /// [`CodegenError::Layout`] if the layout does not fit into a frame.
    pub fn new(layout: &Layout, config: Config) -> Result<Self, CodegenError> {
        let slots = layout.slots.len();
        if slots > crate::frame::SLOTS {
            return Err(CodegenError::Layout { slots });
        }
        Ok(Self { _config: config })
    }

    /// Translates `block` for `mode` into `out`.
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
        let _ = (block, mode, straddle);
        let code = out.next_address();
        Ok(Region { code, ..Region::default() })
    }
}
