//! A network endpoint as the host side of a network card.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use plinth_device as device;
use plinth_net as net;

/// The other end of a guest's network card.
pub struct CardBackend<N>(pub N);

fn meta_to_net(meta: &device::FrameMeta) -> net::FrameMeta {
    let checksum = match (meta.partial_csum, meta.csum_valid) {
        (Some((start, offset)), _) => net::FrameChecksum::Partial { start, offset },
        (None, true) => net::FrameChecksum::Verified,
        (None, false) => net::FrameChecksum::Complete,
    };
    let gso = meta.gso.map(|g| net::Gso {
        kind: if g.v6 { net::GsoKind::TcpV6 } else { net::GsoKind::TcpV4 },
        segment_size: g.size,
        header_len: g.header_len,
    });
    net::FrameMeta { checksum, gso }
}

fn meta_to_device(meta: &net::FrameMeta) -> device::FrameMeta {
    let (partial_csum, csum_valid) = match meta.checksum {
        net::FrameChecksum::Partial { start, offset } => (Some((start, offset)), false),
        net::FrameChecksum::Verified => (None, true),
        net::FrameChecksum::Complete => (None, false),
    };
    let gso = meta.gso.map(|g| device::Gso {
        v6: g.kind == net::GsoKind::TcpV6,
        size: g.segment_size,
        header_len: g.header_len,
    });
    device::FrameMeta { partial_csum, csum_valid, gso }
}

impl<N: net::NetBackend> device::NetBackend for CardBackend<N> {
    fn caps(&self) -> device::NetCaps {
        let caps = self.0.caps();
        // The card has one switch for both versions of IP. A network that segments IPv4 only carries no
        // IPv6 at all: it drops such frames, large or not.
        device::NetCaps {
            csum: caps.from_guest.checksum && caps.to_guest.checksum,
            tso_from_guest: caps.from_guest.tso4,
            tso_to_guest: caps.to_guest.tso4,
        }
    }

    fn set_offloads(&mut self, accepted: device::NetCaps) {
        // Called when the guest's driver starts: what the one before it left behind is gone.
        self.0.reset();
        let tso = accepted.csum && accepted.tso_to_guest;
        self.0.set_offloads(net::Offloads { checksum: accepted.csum, tso4: tso, tso6: tso });
    }

    fn send(&mut self, frame: &[u8], meta: device::FrameMeta) -> device::SendOutcome {
        match self.0.send(frame, &meta_to_net(&meta)) {
            net::SendOutcome::Taken => device::SendOutcome::Taken,
            net::SendOutcome::Busy => device::SendOutcome::Full,
        }
    }

    fn recv(&mut self, buf: &mut [u8]) -> Option<(usize, device::FrameMeta)> {
        let frame = self.0.recv(buf)?;
        Some((frame.len, meta_to_device(&frame.meta)))
    }

    fn poll_fd(&self) -> RawFd {
        self.0.poll_fd().as_raw_fd()
    }

    fn process(&mut self, _now: Instant) -> Option<Instant> {
        // Its deadlines make its descriptor readable.
        self.0.process();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_meta_survives_both_ways() {
        let partial = Some((34, 16));
        let gso = Some(device::Gso { v6: true, size: 1440, header_len: 74 });
        for meta in [
            device::FrameMeta::default(),
            device::FrameMeta { csum_valid: true, ..Default::default() },
            device::FrameMeta { partial_csum: partial, csum_valid: false, gso },
        ] {
            assert_eq!(meta_to_device(&meta_to_net(&meta)), meta);
        }
    }
}
