//! The vCPU and machine-memory traits.
