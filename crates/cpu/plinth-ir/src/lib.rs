//! The intermediate representation of the CPU engine, and the contract of a guest ISA.
//!
//! A [`Block`] is a linear list of 16-byte [`Op`]s over [`Val`]s: guest state slots, temporaries and
//! constants. It covers a contiguous stretch of guest code inside one page (a *region*), with labels for
//! the branch targets inside it. Slots are assigned in program order, so that the architectural state is
//! exact at every [`Code::Insn`] marker; temporaries live between two markers only and are defined once.
//! No opcode knows a guest ISA: what an ISA has of its own is a helper function or a slot.
//!
//! Integers live in 64-bit containers. An operation of type `i32` reads the low 32 bits of its operands and
//! gives a zero-extended result; loads say how they extend. Floating point values are their bits, in the low
//! part of a container, zero above.

mod block;
mod eval;
#[doc(hidden)]
pub mod filetest;
pub mod interp;
mod isa;
mod op;
pub mod softfloat;
mod spec;
pub mod text;
mod verify;

pub use block::{Block, BlockBuilder, Label, LabelId};
pub use eval::{eval_amo, eval_cond, eval_int, eval_vec, extend, vec_extract, vec_insert, vec_splat};
pub use isa::{
    Access, AccessKind, AddressSpace, Cpu, CpuEnv, Exception, Helper, HelperFn, HelperResult, Isa, Layout,
    LiftError, LiftRequest, Mode, PhysFault, SlotClass, SlotInfo, Translation,
};
pub use op::{AmoOp, Code, Cond, FpCond, Lane, Op, Round, Ty, Val, VecOp, flags};
pub use softfloat::{FloatOp, eval_float};
pub use verify::{VerifyError, verify};
