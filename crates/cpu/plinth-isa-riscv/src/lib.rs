//! RISC-V: instruction table, lifter, privileged architecture.
