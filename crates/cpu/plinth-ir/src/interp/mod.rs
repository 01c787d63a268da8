//! The reference interpreter: the oracle for code generators, and the portable engine.
//!
//! A [`Block`](crate::Block) is prepared once into a [`Program`]: operands become indices into one array of
//! words that holds the guest's slots and the temporaries, constants become immediates, labels become
//! indices of operations, and instruction markers vanish. [`run`] then executes it on a [`Machine`].

mod micro;
mod prepare;
mod run;

pub use micro::{Entry, Program};
pub use prepare::PrepareError;
pub use run::run;

use crate::op::{AmoOp, Ty};

/// Slots of guest state that there is room for: the first words of a machine.
pub const SLOTS: usize = 1024;
/// Words of a machine: its slots, then scratch space of the interpreter, whose content means nothing between
/// two runs.
pub const WORDS: usize = 2048;

/// The guest instruction that an operation belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Its byte offset from the block's page base.
    pub offset: u16,
    /// Its length in bytes.
    pub len: u8,
}

/// A memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemAccess {
    /// Width.
    pub ty: Ty,
    /// Bits of [`crate::flags`]. Extension is the interpreter's business, the rest the machine's.
    pub flags: u8,
    /// Where it comes from.
    pub site: Site,
}

/// An atomic memory operation on `b` and `c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    /// Memory = op(old, `b`) ([`crate::eval_amo`]); gives the old value.
    Amo(AmoOp),
    /// If memory equals `b` (in the width of the access), memory = `c`; gives the old value.
    Cas,
    /// Reserves the address; gives the value.
    LoadReserved,
    /// If the reservation holds, memory = `b` and gives 0; else gives 1.
    StoreCond,
}

/// What a block runs on. Values that are narrower than 64 bits are given and expected zero-extended.
pub trait Machine {
    /// Why a block stopped: an exception was raised, a helper redirected.
    type Stop;

    /// The guest's slots, from 0, and scratch space.
    fn words(&mut self) -> &mut [u64; WORDS];
    /// Loads from guest virtual address `va`.
    ///
    /// # Errors
    /// The access raised an exception.
    fn load(&mut self, va: u64, access: MemAccess) -> Result<u64, Self::Stop>;
    /// Stores; bits of `value` above the width are to be ignored.
    ///
    /// # Errors
    /// The access raised an exception.
    fn store(&mut self, va: u64, value: u64, access: MemAccess) -> Result<(), Self::Stop>;
    /// Loads 128 bits: the low and the high half.
    ///
    /// # Errors
    /// The access raised an exception.
    fn load_v128(&mut self, va: u64, access: MemAccess) -> Result<[u64; 2], Self::Stop>;
    /// Stores 128 bits.
    ///
    /// # Errors
    /// The access raised an exception.
    fn store_v128(&mut self, va: u64, value: [u64; 2], access: MemAccess) -> Result<(), Self::Stop>;
    /// An atomic operation; bits of `b` and `c` above the width are to be ignored.
    ///
    /// # Errors
    /// The access raised an exception.
    fn atomic(
        &mut self,
        va: u64,
        atomic: Atomic,
        access: MemAccess,
        b: u64,
        c: u64,
    ) -> Result<u64, Self::Stop>;
    /// Calls helper `index`.
    ///
    /// # Errors
    /// It raised an exception or left the block.
    fn helper(&mut self, index: u32, site: Site, args: [u64; 3]) -> Result<u64, Self::Stop>;
    /// Raises an exception.
    fn trap(&mut self, exception: i32, value: u64, site: Site) -> Self::Stop;
    /// True if the block is to be left at the next backward branch.
    fn attention(&self) -> bool;
    /// The accumulated floating point flags (see [`crate::Code::FpFlagsGet`]).
    fn fp_flags(&mut self) -> u8;
    /// Sets them.
    fn set_fp_flags(&mut self, flags: u8);
}

/// Where control goes after a block. Offsets are from the page base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<S> {
    /// A jump to a target known when the block was made.
    Direct {
        /// Offset of the target.
        pc_off: i32,
    },
    /// A jump to a computed address.
    Indirect {
        /// Guest virtual address.
        pc: u64,
        /// [`crate::flags::CALL`], [`crate::flags::RET`].
        flags: u8,
    },
    /// On to the dispatcher: the mode may have changed.
    Exit {
        /// Offset of the target.
        pc_off: i32,
    },
    /// [`Machine::attention`] was set at a backward branch; all state is that of the target.
    Attention {
        /// Offset of the target.
        pc_off: i32,
    },
    /// The machine stopped it; state is that before the instruction at `site`, but for the slots that it
    /// had already assigned.
    Stop {
        /// The machine's reason.
        stop: S,
        /// The instruction.
        site: Site,
    },
}
