//! The header before each frame (Virtio 1.2, 5.1.6).

use plinth_device::{FrameMeta, Gso, NetCaps};

use super::feature;

/// Bytes of `struct virtio_net_hdr_v1`.
pub(crate) const HEADER: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Set beside the type if the segments carry ECN marks; segmentation keeps them.
const GSO_ECN: u8 = 0x80;

/// What may be left undone in a frame, as negotiated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offloads {
    features: u64,
}

impl Offloads {
    pub(crate) fn new(features: u64) -> Self {
        Self { features }
    }

    fn has(self, bits: u64) -> bool {
        self.features & bits == bits
    }

    pub(crate) fn mergeable(self) -> bool {
        self.has(feature::MRG_RXBUF)
    }

    /// What the backend is told.
    pub(crate) fn accepted(self) -> NetCaps {
        NetCaps {
            csum: self.has(feature::GUEST_CSUM),
            tso_from_guest: self.has(feature::CSUM)
                && self.features & (feature::HOST_TSO4 | feature::HOST_TSO6) != 0,
            tso_to_guest: self.has(feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6),
        }
    }

    /// What a frame of the guest's needs. `None` if the header contradicts the frame or the negotiation; the
    /// frame is dropped then.
    pub(crate) fn guest_frame(self, header: [u8; HEADER], frame: &[u8]) -> Option<FrameMeta> {
        let [flags, gso_type, _, _, size0, size1, start0, start1, offset0, offset1, ..] = header;
        let mut meta = FrameMeta::default();
        if flags & NEEDS_CSUM != 0 {
            let start = u16::from_le_bytes([start0, start1]);
            let offset = u16::from_le_bytes([offset0, offset1]);
            let end = usize::from(start) + usize::from(offset) + 2;
            if !self.has(feature::CSUM) || end > frame.len() {
                return None;
            }
            meta.partial_csum = Some((start, offset));
        }
        let v6 = match gso_type & !GSO_ECN {
            GSO_NONE => return Some(meta),
            GSO_TCPV4 if self.has(feature::HOST_TSO4) => false,
            GSO_TCPV6 if self.has(feature::HOST_TSO6) => true,
            _ => return None,
        };
        let size = u16::from_le_bytes([size0, size1]);
        let (tcp, _) = meta.partial_csum.filter(|_| size != 0)?;
        // The driver's header length is a hint that may cover payload (Virtio 1.2, 5.1.6.2); TCP's own tells.
        let data_offset = usize::from(frame.get(usize::from(tcp) + 12)? >> 4) * 4;
        let header_len = usize::from(tcp) + data_offset;
        if data_offset < 20 || header_len >= frame.len() {
            return None;
        }
        meta.gso = Some(Gso { v6, size, header_len: u16::try_from(header_len).ok()? });
        Some(meta)
    }

    /// The header of a frame for the guest that fills `buffers` chains. `None` if the guest has not agreed
    /// to finish what is left undone.
    pub(crate) fn header_for_guest(self, meta: FrameMeta, buffers: u16) -> Option<[u8; HEADER]> {
        let mut header = [0; HEADER];
        header[10..12].copy_from_slice(&buffers.to_le_bytes());
        if let Some((start, offset)) = meta.partial_csum {
            if !self.has(feature::GUEST_CSUM) {
                return None;
            }
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
        } else if meta.csum_valid && self.has(feature::GUEST_CSUM) {
            header[0] = DATA_VALID;
        }
        if let Some(gso) = meta.gso {
            let (kind, needed) =
                if gso.v6 { (GSO_TCPV6, feature::GUEST_TSO6) } else { (GSO_TCPV4, feature::GUEST_TSO4) };
            if !self.has(needed) {
                return None;
            }
            header[1] = kind;
            header[2..4].copy_from_slice(&gso.header_len.to_le_bytes());
            header[4..6].copy_from_slice(&gso.size.to_le_bytes());
        }
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSO: u64 = feature::CSUM | feature::HOST_TSO4 | feature::GUEST_CSUM | feature::GUEST_TSO4;

    fn tcp_frame(data_offset: u8) -> Vec<u8> {
        let mut frame = vec![0; 200];
        frame[34 + 12] = data_offset << 4;
        frame
    }

    fn tso_header() -> [u8; HEADER] {
        [NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 0xff, 0, 100, 0, 34, 0, 16, 0, 0, 0]
    }

    #[test]
    fn segmentation_takes_the_header_length_from_the_frame() {
        let meta = Offloads::new(TSO).guest_frame(tso_header(), &tcp_frame(8)).unwrap();
        assert_eq!(meta.partial_csum, Some((34, 16)));
        assert_eq!(meta.gso, Some(Gso { v6: false, size: 100, header_len: 34 + 32 }));
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let all = Offloads::new(TSO);
        assert!(Offloads::new(feature::CSUM).guest_frame(tso_header(), &tcp_frame(8)).is_none());
        assert!(
            Offloads::new(0).guest_frame([NEEDS_CSUM, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0; 60]).is_none()
        );
        assert!(all.guest_frame(tso_header(), &tcp_frame(4)).is_none(), "a TCP header of 16 bytes");
        assert!(all.guest_frame(tso_header(), &tcp_frame(8)[..51]).is_none(), "a checksum beyond the end");
        let mut header = tso_header();
        header[1] = GSO_TCPV6;
        assert!(all.guest_frame(header, &tcp_frame(8)).is_none(), "not negotiated");
        header = tso_header();
        header[4] = 0;
        assert!(all.guest_frame(header, &tcp_frame(8)).is_none(), "segments of no bytes");
        header = tso_header();
        header[0] = 0;
        assert!(all.guest_frame(header, &tcp_frame(8)).is_none(), "segmentation without a checksum");
    }

    #[test]
    fn the_guest_gets_only_what_it_agreed_to() {
        let gso = Some(Gso { v6: false, size: 1448, header_len: 66 });
        let meta = FrameMeta { partial_csum: Some((34, 16)), csum_valid: false, gso };
        let header = Offloads::new(TSO).header_for_guest(meta, 3).unwrap();
        assert_eq!(header, [NEEDS_CSUM, GSO_TCPV4, 66, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
        assert!(Offloads::new(feature::GUEST_CSUM).header_for_guest(meta, 1).is_none());
        let valid = FrameMeta { csum_valid: true, ..FrameMeta::default() };
        assert_eq!(Offloads::new(TSO).header_for_guest(valid, 1).unwrap()[0], DATA_VALID);
        assert_eq!(Offloads::new(0).header_for_guest(valid, 1).unwrap()[0], 0);
    }
}
