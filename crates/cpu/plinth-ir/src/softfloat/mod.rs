//! IEEE 754 binary floating point on integers: bit-exact, with every rounding mode and flag, on any host.
//!
//! Tininess is detected after rounding (as RISC-V and x86 do). A NaN result is always the default NaN of
//! the caller. The rules are those of IEEE 754-2019, clauses 4 to 7. Functions take and give bits of their
//! format; bits above the format are ignored.

mod arith;
mod convert;
mod eval;
mod format;

pub use eval::{FloatOp, eval_float};
pub use format::{F16, F32, F64, Float};

use crate::op::Round;

/// Invalid operation.
pub const NV: u8 = 1 << 4;
/// Division by zero.
pub const DZ: u8 = 1 << 3;
/// Overflow.
pub const OF: u8 = 1 << 2;
/// Underflow.
pub const UF: u8 = 1 << 1;
/// Inexact.
pub const NX: u8 = 1;

/// The surroundings of an operation: what it obeys and where it leaves its flags.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    /// Rounding mode.
    pub round: Round,
    /// Bits of the default NaN of the result's format.
    pub default_nan: u64,
    /// Flags raised: [`NV`] to [`NX`].
    pub flags: u8,
}

impl Env {
    /// No flags raised.
    #[must_use]
    pub const fn new(round: Round, default_nan: u64) -> Self {
        Self { round, default_nan, flags: 0 }
    }

    fn invalid(&mut self) -> u64 {
        self.flags |= NV;
        self.default_nan
    }
}

pub use arith::{add, div, fused_multiply_add, sqrt, sub};
pub use arith::{mul, round_to_integral};
pub use convert::{compare, convert, from_int, max, max_nan, min, min_nan, to_int};

#[cfg(test)]
mod tests;
