//! What a virtio device is to its transport.

use plinth_memory::GuestRam;

use crate::{Error, Interrupt, VirtQueue};

/// A kind of device (Virtual I/O Device 1.2, chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Network card.
    Net,
    /// Block device.
    Block,
    /// Console.
    Console,
    /// Entropy source.
    Rng,
    /// Memory balloon.
    Balloon,
}

impl DeviceKind {
    /// Virtio device ID.
    #[must_use]
    pub fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Balloon => 5,
        }
    }

    /// Name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "virtio-net",
            Self::Block => "virtio-blk",
            Self::Console => "virtio-console",
            Self::Rng => "virtio-rng",
            Self::Balloon => "virtio-balloon",
        }
    }
}

/// What a device starts to work with once the driver has set `DRIVER_OK`.
pub struct Activation {
    /// The features that driver and device agreed on.
    pub features: u64,
    /// By queue index; `None` where the driver has not enabled the queue.
    pub queues: Vec<Option<VirtQueue>>,
    /// How the device interrupts.
    pub interrupt: Interrupt,
    /// The guest's RAM.
    pub ram: GuestRam,
}

/// A virtio device without its transport. The transport negotiates features, checks and hands over queues
/// and calls one method at a time.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;
    /// Feature bits of the device type that it offers. The transport adds those of the ring and the
    /// transport itself.
    fn features(&self) -> u64;
    /// The maximum size of each queue, a power of two up to 32,768. The number of queues is fixed.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Reads the device's configuration structure; bytes beyond its end are zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// Writes to the configuration structure; what cannot be written is ignored.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Starts. Queues and threads are the device's until [`VirtioDevice::reset`].
    ///
    /// # Errors
    /// The transport shows the guest a device that needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<(), Error>;
    /// The driver has made buffers available in `queue`. Called on the vCPU's thread: what takes long
    /// belongs on a thread of the device's own.
    fn queue_notify(&mut self, queue: u16);
    /// Stops: returns when no thread of the device touches queues or guest RAM any more. It can be activated
    /// again. Called in any state.
    fn reset(&mut self);
}

/// Copies the part of `config` at `offset` to `data`, and zeros beyond its end.
pub(crate) fn read_config_bytes(config: &[u8], offset: usize, data: &mut [u8]) {
    for (i, out) in data.iter_mut().enumerate() {
        *out = offset.checked_add(i).and_then(|at| config.get(at)).copied().unwrap_or(0);
    }
}
