//! Each device driven over MMIO and PCI as a guest's driver does it.

mod balloon;
mod blk;
mod console;
mod driver;
mod net;
mod pci;
mod rng;
