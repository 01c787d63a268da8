//! The privileged architecture: CSRs, traps, interrupts, address translation, memory protection, the timer.
//!
//! References such as "3.1.6" are to sections of The RISC-V Instruction Set Manual, Volume II: Privileged
//! Architecture, version 20240411.

pub mod access;
pub mod csr;
pub mod fence;
pub mod imsic;
pub mod interrupts;
pub mod mmu;
pub mod pmp;
pub mod state;
pub mod timer;
pub mod trap;
