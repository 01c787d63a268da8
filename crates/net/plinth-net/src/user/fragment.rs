//! Reassembly of the guest's fragmented IPv4 packets (RFC 791, section 3.2; RFC 815), within bounds.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr};

use super::net::IPV4_HEADER;

/// Packets in reassembly at a time; the oldest makes room.
const MAX_PACKETS: usize = 16;
/// Pieces that one packet may be in at a time. In order, as senders send them, they are one.
const MAX_PIECES: usize = 32;
/// RFC 1122, section 3.3.2 suggests 60 to 120 s for a network with delays; this one has none.
const LIFETIME: Duration = Duration::from_secs(15);
const MAX_PAYLOAD: usize = 65_535 - IPV4_HEADER;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: IpProtocol,
    ident: u16,
}

struct Partial {
    key: Key,
    since: Instant,
    data: Vec<u8>,
    /// What has arrived, as ranges in order that neither overlap nor touch.
    pieces: Vec<(usize, usize)>,
    /// Bytes of the whole, once the last fragment told.
    total: Option<usize>,
}

enum Step {
    Incomplete,
    Complete,
    /// The fragments contradict each other; the packet cannot be trusted any more.
    Broken,
}

impl Partial {
    /// Adds the range, joined with its neighbors. False if it overlaps another (RFC 5722 has the reasons
    /// not to accept that) or leaves too many holes.
    fn add_range(&mut self, start: usize, end: usize) -> bool {
        let at = self.pieces.partition_point(|piece| piece.1 < start);
        let overlaps = |piece: &(usize, usize)| start < piece.1 && piece.0 < end;
        let Some(next) = self.pieces.get(at).copied() else {
            self.pieces.push((start, end));
            return self.pieces.len() <= MAX_PIECES;
        };
        if overlaps(&next) || self.pieces.get(at + 1).is_some_and(overlaps) {
            return false;
        }
        if next.1 == start {
            self.pieces[at].1 = end;
            if self.pieces.get(at + 1).is_some_and(|piece| piece.0 == end) {
                self.pieces[at].1 = self.pieces.remove(at + 1).1;
            }
        } else if next.0 == end {
            self.pieces[at].0 = start;
        } else {
            self.pieces.insert(at, (start, end));
        }
        self.pieces.len() <= MAX_PIECES
    }

    fn add(&mut self, offset: usize, payload: &[u8], last: bool) -> Step {
        let end = offset + payload.len();
        let unaligned = !last && !payload.len().is_multiple_of(8);
        if payload.is_empty() || unaligned || end > MAX_PAYLOAD {
            return Step::Broken;
        }
        let known_end = self.pieces.last().map_or(0, |piece| piece.1);
        match self.total {
            Some(total) if end > total || last => return Step::Broken,
            None if last && known_end > end => return Step::Broken,
            None if last => self.total = Some(end),
            _ => {}
        }
        if !self.add_range(offset, end) {
            return Step::Broken;
        }
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[offset..end].copy_from_slice(payload);
        match (self.total, &self.pieces[..]) {
            (Some(total), &[(0, end)]) if end == total => Step::Complete,
            _ => Step::Incomplete,
        }
    }
}

#[derive(Default)]
pub(super) struct Reassembler {
    /// In order of arrival.
    partials: Vec<Partial>,
}

impl Reassembler {
    pub(super) fn clear(&mut self) {
        self.partials.clear();
    }

    /// Takes in a fragment of which `check_len` holds. Yields the whole packet, with a plain header, once
    /// it is complete.
    pub(super) fn add(&mut self, packet: &Ipv4Packet<&[u8]>, now: Instant) -> Option<Vec<u8>> {
        self.partials.retain(|partial| now.saturating_duration_since(partial.since) < LIFETIME);
        let key = Key {
            src: packet.src_addr(),
            dst: packet.dst_addr(),
            protocol: packet.next_header(),
            ident: packet.ident(),
        };
        let index = self.partials.iter().position(|partial| partial.key == key).unwrap_or_else(|| {
            if self.partials.len() == MAX_PACKETS {
                self.partials.remove(0);
            }
            let partial = Partial { key, since: now, data: Vec::new(), pieces: Vec::new(), total: None };
            self.partials.push(partial);
            self.partials.len() - 1
        });
        let partial = &mut self.partials[index];
        match partial.add(usize::from(packet.frag_offset()), packet.payload(), !packet.more_frags()) {
            Step::Incomplete => None,
            Step::Broken => {
                self.partials.remove(index);
                None
            }
            Step::Complete => {
                let Partial { data, key, .. } = self.partials.remove(index);
                let mut whole = vec![0; IPV4_HEADER + data.len()];
                let repr = Ipv4Repr {
                    src_addr: key.src,
                    dst_addr: key.dst,
                    next_header: key.protocol,
                    payload_len: data.len(),
                    hop_limit: packet.hop_limit(),
                };
                repr.emit(&mut Ipv4Packet::new_unchecked(&mut whole[..]), &ChecksumCapabilities::default());
                whole[IPV4_HEADER..].copy_from_slice(&data);
                Some(whole)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(ident: u16, offset: usize, payload: &[u8], more: bool) -> Vec<u8> {
        let mut bytes = vec![0; IPV4_HEADER + payload.len()];
        let repr = Ipv4Repr {
            src_addr: Ipv4Addr::new(10, 0, 2, 15),
            dst_addr: Ipv4Addr::new(10, 0, 2, 2),
            next_header: IpProtocol::Udp,
            payload_len: payload.len(),
            hop_limit: 64,
        };
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        packet.set_ident(ident);
        packet.set_more_frags(more);
        packet.set_frag_offset(offset as u16);
        packet.payload_mut().copy_from_slice(payload);
        bytes
    }

    fn feed(reassembler: &mut Reassembler, bytes: &[u8]) -> Option<Vec<u8>> {
        reassembler.add(&Ipv4Packet::new_checked(bytes).unwrap(), Instant::now())
    }

    #[test]
    fn any_order_gives_the_whole() {
        let data: Vec<u8> = (0..40).collect();
        let parts = [(0, 8, true), (8, 24, true), (24, 32, true), (32, 40, false)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
            let mut reassembler = Reassembler::default();
            let mut whole = None;
            for (step, index) in order.into_iter().enumerate() {
                let (start, end, more) = parts[index];
                whole = feed(&mut reassembler, &fragment(7, start, &data[start..end], more));
                assert_eq!(whole.is_some(), step == 3, "{order:?}");
            }
            let whole = whole.unwrap();
            let packet = Ipv4Packet::new_checked(&whole[..]).unwrap();
            assert_eq!(packet.payload(), data);
            assert!(packet.verify_checksum() && !packet.more_frags());
        }
    }

    #[test]
    fn contradictions_drop_the_packet() {
        let cases: [&[(usize, usize, bool)]; 6] = [
            &[(0, 16, true), (8, 8, false)],          // overlap
            &[(0, 16, true), (0, 16, true)],          // overlap in full
            &[(0, 7, true), (8, 8, false)],           // not a multiple of 8
            &[(16, 8, false), (24, 8, true)],         // beyond the end
            &[(24, 8, true), (8, 8, false)],          // an end before what is known
            &[(65_528, 8, false), (0, 65_512, true)], // longer than a packet can be
        ];
        for case in cases {
            let mut reassembler = Reassembler::default();
            for &(offset, len, more) in case {
                assert!(feed(&mut reassembler, &fragment(1, offset, &vec![0; len], more)).is_none());
            }
            assert!(reassembler.partials.iter().all(|partial| partial.pieces.len() < 2), "{case:?}");
        }
    }

    #[test]
    fn bounds() {
        let mut reassembler = Reassembler::default();
        for ident in 0..200 {
            feed(&mut reassembler, &fragment(ident, 8, &[0; 8], true));
        }
        assert_eq!(reassembler.partials.len(), MAX_PACKETS);
        let mut reassembler = Reassembler::default();
        for hole in 0..MAX_PIECES {
            feed(&mut reassembler, &fragment(1, 16 * hole, &[0; 8], true));
        }
        assert_eq!(reassembler.partials.len(), 1);
        feed(&mut reassembler, &fragment(1, 16 * MAX_PIECES, &[0; 8], true));
        assert_eq!(reassembler.partials.len(), 0);
    }
}
