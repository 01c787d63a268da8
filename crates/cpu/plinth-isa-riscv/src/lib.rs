//! RISC-V: instruction table, lifter, privileged architecture.

pub mod compute;
pub mod decode;
pub mod disasm;
pub mod generate;
#[doc(hidden)]
pub mod harness;
pub mod helper;
pub mod isa;
pub mod lift;
pub mod mode;
pub mod model;
pub mod privileged;
mod sbi;
pub mod slots;
pub mod table;
pub mod vector;

pub use isa::{Firmware, Riscv};
pub use model::{CpuModel, Paging};
