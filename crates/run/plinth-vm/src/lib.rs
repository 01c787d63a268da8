//! The life of one virtual machine: made by a [`VmBuilder`], run by [`Vm::run`] until the guest powers off,
//! steered by a [`VmHandle`] meanwhile. What runs the guest's instructions is an [`Accelerator`].

mod accel;
mod builder;
mod event;
mod htif;
mod thread;
mod vm;

pub use accel::{Accelerator, MachineContext, Vcpus};
pub use builder::VmBuilder;
pub use event::{Exit, VmHandle};
pub use vm::Vm;

/// Why a machine could not be made or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no memory for the guest's RAM.
    #[error(transparent)]
    Memory(#[from] plinth_memory::Error),
    /// The board, its devices, or what the guest boots from.
    #[error(transparent)]
    Machine(#[from] plinth_machine::Error),
    /// The host gave no thread.
    #[error("the host gives no thread for {what}: {source}")]
    Thread {
        /// What it was for.
        what: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// The accelerator cannot make vCPUs.
    #[error("cannot make vCPUs with '{accelerator}': {why}")]
    Vcpus {
        /// The accelerator.
        accelerator: String,
        /// Why.
        why: String,
    },
}
