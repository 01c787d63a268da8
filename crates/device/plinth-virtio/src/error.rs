//! The crate's error.

use std::io;

use vm_memory::GuestMemoryError;

/// Why a virtio device cannot be made, or cannot go on. The second is nearly always the guest's doing and
/// is shown to it as a device that needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that no device can have.
    #[error("the configuration of {device} is wrong: {reason}")]
    Config {
        /// Which device.
        device: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The ring itself is unusable.
    #[error("the driver's ring is broken: {0}")]
    Ring(virtio_queue::Error),
    /// A descriptor chain is unusable.
    #[error("the driver's descriptor chain at {head} is broken: {reason}")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// A guest address is not RAM.
    #[error("the driver gave an address outside RAM: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The host gave no thread or no event counter.
    #[error("the host has no thread or event for {device}: {source}")]
    Host {
        /// Which device.
        device: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The device's thread panicked: a defect in the device or its host side.
    #[error("the thread of {0} failed")]
    Lost(&'static str),
}

impl From<virtio_queue::Error> for Error {
    fn from(e: virtio_queue::Error) -> Self {
        Self::Ring(e)
    }
}
