//! RISC-V: instruction table, lifter, privileged architecture.

pub mod compute;
pub mod helper;
pub mod mode;
pub mod slots;
