//! The boundary between a network card and what it is plugged into.

use std::os::fd::BorrowedFd;

/// Largest frame that crosses the boundary, in bytes: an Ethernet header (14) and an IP packet of the
/// largest size its 16-bit length field can tell (65,535).
pub const MAX_FRAME: usize = 14 + 65_535;

/// How far the checksum of a frame's TCP or UDP payload has been computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameChecksum {
    /// The checksum field is final. The receiver may verify it.
    #[default]
    Complete,
    /// The checksum field holds the sum of the pseudo-header only. Whoever needs the final value sums
    /// the frame from `start` to its end and stores the complement at `start + offset`.
    /// virtio: `VIRTIO_NET_HDR_F_NEEDS_CSUM` (virtio 1.2, section 5.1.6).
    Partial {
        /// Where summing starts, in bytes from the start of the Ethernet header.
        start: u16,
        /// Where the checksum field is, in bytes from `start`.
        offset: u16,
    },
    /// The receiver need not verify; the field itself may be wrong.
    /// virtio: `VIRTIO_NET_HDR_F_DATA_VALID`.
    Verified,
}

/// Which protocol a frame that is larger than the MTU is to be cut up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// A frame that stands for several: it carries one header and the payload of many segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The protocol that segments it.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last.
    pub segment_size: u16,
    /// Bytes of all headers, Ethernet to TCP with its options. A hint: a receiver parses for itself.
    pub header_len: u16,
}

/// What the bytes of a frame do not say. The neutral form of `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameMeta {
    /// State of the transport checksum.
    pub checksum: FrameChecksum,
    /// Present when the frame is to be segmented. Its checksum is then [`FrameChecksum::Partial`].
    pub gso: Option<Gso>,
}

/// Offloads in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may come with [`FrameChecksum::Partial`] or [`FrameChecksum::Verified`].
    pub checksum: bool,
    /// Frames may be TCP over IPv4 of up to [`MAX_FRAME`] bytes. Needs `checksum`.
    pub tso4: bool,
    /// Frames may be TCP over IPv6 of up to [`MAX_FRAME`] bytes. Needs `checksum`.
    pub tso6: bool,
}

impl Offloads {
    /// No offload: finished frames no larger than the MTU allows.
    pub const NONE: Self = Self { checksum: false, tso4: false, tso6: false };

    /// What both sides have.
    pub fn intersect(self, other: Self) -> Self {
        let checksum = self.checksum && other.checksum;
        Self {
            checksum,
            tso4: checksum && self.tso4 && other.tso4,
            tso6: checksum && self.tso6 && other.tso6,
        }
    }
}

/// What a backend can do. Fixed for the life of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetCaps {
    /// Largest IP packet of an unsegmented frame, in bytes (virtio: the `mtu` configuration field).
    pub mtu: u16,
    /// What [`NetBackend::send`] accepts (virtio: `VIRTIO_NET_F_CSUM`, `VIRTIO_NET_F_HOST_TSO4/6`).
    pub from_guest: Offloads,
    /// What [`NetBackend::recv`] could yield, once [`NetBackend::set_offloads`] said that the guest
    /// understands it (virtio: `VIRTIO_NET_F_GUEST_CSUM`, `VIRTIO_NET_F_GUEST_TSO4/6`).
    pub to_guest: Offloads,
}

/// What became of a frame given to [`NetBackend::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum SendOutcome {
    /// The backend is done with the frame: it is on its way, or was dropped as any network may drop.
    Taken,
    /// No room now. Keep the frame and offer it again after the next [`NetBackend::process`].
    Busy,
}

/// A frame that [`NetBackend::recv`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvFrame {
    /// Bytes written, from the Ethernet header on.
    pub len: usize,
    /// What the bytes do not say.
    pub meta: FrameMeta,
}

/// The other end of a guest's network card. Frames are Ethernet without the frame check sequence.
///
/// A backend has no thread of its own: it runs in the card's worker thread, which sleeps in one `epoll`
/// on its queues' event descriptors and on [`poll_fd`](Self::poll_fd). On each wake-up, for whatever
/// reason, the worker does, in this order:
///
/// 1. [`send`](Self::send) each frame that the guest has queued, until there are none or the outcome is
///    [`SendOutcome::Busy`];
/// 2. [`process`](Self::process), once;
/// 3. [`recv`](Self::recv) into the guest's buffers until it yields nothing or the guest has no buffer
///    left. Frames not fetched stay with the backend, which then stops reading from the network.
///
/// No method blocks.
pub trait NetBackend: Send {
    /// What this backend can do.
    fn caps(&self) -> NetCaps;

    /// Tells which offloads the guest's driver accepts on frames to it, on each feature negotiation.
    /// Before the first call none are. Offloads that [`caps`](Self::caps) does not have are ignored.
    fn set_offloads(&mut self, to_guest: Offloads);

    /// The card was reset: frames on their way to the guest are dropped, offloads are off.
    fn reset(&mut self);

    /// One frame from the guest. Its bytes and `meta` are not trusted.
    fn send(&mut self, frame: &[u8], meta: &FrameMeta) -> SendOutcome;

    /// Writes one frame for the guest to the start of `buf`; `None` when none is waiting. `buf` holds at
    /// least [`MAX_FRAME`] bytes if a TSO offload is on, or else 14 bytes and the MTU of
    /// [`caps`](Self::caps); a frame for which it is too short is lost.
    fn recv(&mut self, buf: &mut [u8]) -> Option<RecvFrame>;

    /// Becomes readable when [`process`](Self::process) has something to do: an event on one of the
    /// backend's sockets, or a deadline. Only to be polled, level-triggered.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Does what is due: moves bytes between the guest's flows and the host's sockets, runs timers.
    fn process(&mut self);
}
