//! The host-side ends a device is given. The device layer knows no image format and no host network; the
//! product crate adapts those to these traits.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

/// What kind of thing went wrong with a block request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockErrorKind {
    /// The request is beyond the end, or not of whole sectors.
    OutOfRange,
    /// The disk, or the operation on it, is read-only.
    ReadOnly,
    /// No space is left where the image lives.
    NoSpace,
    /// Not something this disk can do.
    Unsupported,
    /// The host's I/O failed.
    Io,
}

/// A failed block request.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {source}")]
pub struct BlockError {
    /// Kind, to match on.
    pub kind: BlockErrorKind,
    /// What was being done, to which image, where.
    pub context: String,
    /// What the host said.
    pub source: io::Error,
}

/// A disk's contents. Called from several threads at once; each call may block.
pub trait BlockBackend: Send + Sync {
    /// Bytes; a multiple of 512.
    fn size(&self) -> u64;
    /// True if writes are refused.
    fn read_only(&self) -> bool;
    /// Fills all buffers, in order, from byte `offset`.
    ///
    /// # Errors
    /// Nothing can be said of the buffers' contents then.
    fn read_at(&self, offset: u64, bufs: &mut [io::IoSliceMut<'_>]) -> Result<(), BlockError>;
    /// Writes all buffers, in order, from byte `offset`.
    ///
    /// # Errors
    /// Some of the bytes may have been written.
    fn write_at(&self, offset: u64, bufs: &[io::IoSlice<'_>]) -> Result<(), BlockError>;
    /// Makes every completed write durable.
    ///
    /// # Errors
    /// Nothing can be said of the durability of earlier writes then.
    fn flush(&self) -> Result<(), BlockError>;
    /// The range's contents no longer matter; later reads give anything.
    ///
    /// # Errors
    /// As for a write.
    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError>;
    /// The range reads as zeros; with `unmap` its space may be given back.
    ///
    /// # Errors
    /// As for a write.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), BlockError>;
}

/// A character stream's host side: a serial line, a console. Never blocks.
pub trait CharBackend: Send + Sync {
    /// Takes bytes from the guest; returns how many were taken.
    fn write(&self, data: &[u8]) -> usize;
    /// Gives bytes to the guest that wait; returns how many.
    fn read(&self, data: &mut [u8]) -> usize;
    /// Calls `notify` whenever new bytes wait to be read. It is called from any thread.
    fn on_input(&self, notify: Box<dyn Fn() + Send + Sync>);
}

/// What is still to be done to a frame that crosses between a guest and the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameMeta {
    /// The layer-4 checksum is partial: (start of the checksummed part, offset of the field from there).
    pub partial_csum: Option<(u16, u16)>,
    /// The checksum has been verified, or need not be.
    pub csum_valid: bool,
    /// The frame is larger than the link's MTU and is to be cut.
    pub gso: Option<Gso>,
}

/// Segmentation left to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// TCP over IPv6 rather than IPv4.
    pub v6: bool,
    /// Payload bytes of each segment.
    pub size: u16,
    /// Bytes of all headers before the payload.
    pub header_len: u16,
}

/// What a network backend can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCaps {
    /// Takes and gives frames whose layer-4 checksum is partial.
    pub csum: bool,
    /// Takes TCP frames of up to 64 KiB from the guest.
    pub tso_from_guest: bool,
    /// Gives TCP frames of up to 64 KiB to the guest.
    pub tso_to_guest: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// Taken, or dropped as a network may.
    Taken,
    /// The backend is full: offer it again after its descriptor became readable.
    Full,
}

/// The other end of a guest's network card. Lives on the device's worker thread; nothing blocks.
pub trait NetBackend: Send {
    /// What it can do.
    fn caps(&self) -> NetCaps;
    /// Tells which of the capabilities the guest has accepted.
    fn set_offloads(&mut self, accepted: NetCaps);
    /// Guest to network: one Ethernet frame without FCS, header first.
    fn send(&mut self, frame: &[u8], meta: FrameMeta) -> SendOutcome;
    /// Network to guest: writes one frame into `buf` (at least 65,550 bytes); its length, or `None`.
    fn recv(&mut self, buf: &mut [u8]) -> Option<(usize, FrameMeta)>;
    /// A descriptor that becomes readable when [`NetBackend::process`] has work.
    fn poll_fd(&self) -> RawFd;
    /// Does what is due. Returns when it wants to be called again at the latest.
    fn process(&mut self, now: Instant) -> Option<Instant>;
}
