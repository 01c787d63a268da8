//! Entry point for fuzzers of the user network. Not part of the API.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::{
    FrameChecksum, FrameMeta, Gso, GsoKind, MAX_FRAME, NetBackend, Offloads, PortForward, SendOutcome,
    Transport, UserNet, UserNetConfig,
};

/// A loopback address of the fuzzer's own, so that no frame reaches a server of the host by its port.
const HOST: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
/// The frames of one input, at most.
const MAX_FRAMES: usize = 256;
const ETHERNET_HEADER: usize = 14;

/// Where the protocol and its header are in a frame whose IP header has no options.
fn transport(frame: &[u8]) -> Option<(u8, usize)> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some((*frame.get(23)?, ETHERNET_HEADER + 20)),
        [0x86, 0xdd] => Some((*frame.get(20)?, ETHERNET_HEADER + 40)),
        _ => None,
    }
}

/// A network that leads to nothing but two servers of its own.
struct Harness {
    net: UserNet,
    listener: TcpListener,
    streams: Vec<TcpStream>,
    /// Holds the port on which datagrams are taken.
    _udp: UdpSocket,
    tcp_port: u16,
    udp_port: u16,
    buf: Vec<u8>,
}

impl Harness {
    fn new(offloads: Offloads) -> std::io::Result<Self> {
        let listener = TcpListener::bind((HOST, 0))?;
        listener.set_nonblocking(true)?;
        let udp = UdpSocket::bind((HOST, 0))?;
        udp.set_nonblocking(true)?;
        let config = UserNetConfig {
            outside: false,
            forwards: vec![PortForward {
                transport: Transport::Tcp,
                host: SocketAddr::from((HOST, 0)),
                guest_addr: None,
                guest_port: 22,
            }],
            resolvers: Some(vec![SocketAddr::from((HOST, 9))]),
            search_domains: Some(vec!["fuzz.example".into()]),
            ..Default::default()
        };
        let mut net = UserNet::new(&config).map_err(std::io::Error::other)?;
        net.set_host_addr(HOST.into());
        net.set_offloads(offloads);
        let tcp_port = listener.local_addr()?.port();
        let udp_port = udp.local_addr()?.port();
        Ok(Self {
            net,
            listener,
            streams: Vec::new(),
            _udp: udp,
            tcp_port,
            udp_port,
            buf: vec![0; MAX_FRAME],
        })
    }

    /// Leads TCP and UDP packets to low ports to the servers: a fuzzer does not guess theirs.
    fn aim(&self, frame: &mut [u8]) {
        let Some((protocol, header)) = transport(frame) else { return };
        let Some(field) = frame.get_mut(header + 2..header + 4) else { return };
        let port = match protocol {
            6 => self.tcp_port,
            17 if field[1] != 67 => self.udp_port,
            _ => return,
        };
        if field[0] < 0x80 {
            field.copy_from_slice(&port.to_be_bytes());
        }
    }

    /// Hands in a frame and lets `see` look at each frame that comes out.
    fn exchange(&mut self, frame: &mut [u8], meta: &FrameMeta, mut see: impl FnMut(&[u8])) {
        self.aim(frame);
        assert_eq!(self.net.send(frame, meta), SendOutcome::Taken);
        self.net.process();
        while let Some(frame) = self.net.recv(&mut self.buf) {
            see(&self.buf[..frame.len]);
        }
    }

    /// Servers and clients that talk, echo and hang up.
    fn serve(&mut self) {
        if self.streams.len() < 4
            && let Ok(mut stream) = TcpStream::connect(self.net.forwards()[0].1)
            && stream.set_nonblocking(true).is_ok()
        {
            let _ = stream.write(&[1; 3000]);
            self.streams.push(stream);
        }
        if let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.streams.push(stream);
        }
        let mut data = [0; 512];
        for stream in &mut self.streams {
            if let Ok(len) = stream.read(&mut data) {
                let _ = stream.write(&data[..len]);
            }
        }
        if self.streams.len() > 8 {
            self.streams.remove(0);
        }
    }
}

fn meta_from(byte: u8) -> FrameMeta {
    let checksum = match byte & 3 {
        0 => FrameChecksum::Complete,
        1 => FrameChecksum::Verified,
        _ => FrameChecksum::Partial { start: u16::from(byte), offset: u16::MAX - u16::from(byte) },
    };
    let gso = Gso { kind: GsoKind::TcpV4, segment_size: u16::from(byte >> 4), header_len: u16::from(byte) };
    FrameMeta { checksum, gso: (byte & 4 != 0).then_some(gso) }
}

/// Feeds a network with the frames in `data`: a byte for the offloads, then for each frame a byte for its
/// metadata, two for its length (little-endian) and its bytes.
pub fn fuzz_frames(data: &[u8]) {
    let Some((&flags, mut rest)) = data.split_first() else { return };
    let offloads = Offloads { checksum: flags & 1 != 0, tso4: flags & 2 != 0, tso6: flags & 4 != 0 };
    // Without sockets there is nothing to fuzz.
    let Ok(mut harness) = Harness::new(offloads) else { return };
    for _ in 0..MAX_FRAMES {
        let [meta, low, high, tail @ ..] = rest else { return };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (frame, tail) = tail.split_at(len);
        harness.exchange(&mut frame.to_vec(), &meta_from(*meta), |_| ());
        harness.serve();
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet,
        Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
        NdiscRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
    };

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 15);
    const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
    const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
    const FRAMES: usize = 100_000;

    /// xorshift64*: the same frames in each run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
        }

        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound as u64) as usize
        }
    }

    fn ethernet(ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 14 + payload.len()];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        frame.set_src_addr(MAC);
        frame.set_dst_addr(EthernetAddress::BROADCAST);
        frame.set_ethertype(ethertype);
        frame.payload_mut().copy_from_slice(payload);
        bytes
    }

    fn ipv4(src_addr: Ipv4Addr, dst_addr: Ipv4Addr, next_header: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + payload.len()];
        let repr = Ipv4Repr { src_addr, dst_addr, next_header, payload_len: payload.len(), hop_limit: 64 };
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        packet.payload_mut().copy_from_slice(payload);
        ethernet(EthernetProtocol::Ipv4, &bytes)
    }

    fn udp(src: Ipv4Addr, dst: Ipv4Addr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 8 + data.len()];
        UdpRepr { src_port: ports.0, dst_port: ports.1 }.emit(
            &mut UdpPacket::new_unchecked(&mut bytes[..]),
            &src.into(),
            &dst.into(),
            data.len(),
            |room| room.copy_from_slice(data),
            &ChecksumCapabilities::default(),
        );
        ipv4(src, dst, IpProtocol::Udp, &bytes)
    }

    fn dhcp(random: &mut Random) -> Vec<u8> {
        let mut message = vec![0; 300];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[28..34].copy_from_slice(MAC.as_bytes());
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        let kind = [1, 3, 4, 7, 8][random.below(5)];
        message[240..].copy_from_slice(&[&[53, 1, kind, 50, 4, 10, 0, 2, 15, 255][..], &[0; 50]].concat());
        udp(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, (68, 67), &message)
    }

    /// A segment that fits the connection whose last segment from the network was `seen`.
    fn tcp(random: &mut Random, seen: Option<&[u8]>) -> Vec<u8> {
        let six = seen.map_or(random.below(2) == 0, |frame| frame[12] == 0x86);
        let seen = seen.and_then(|frame| TcpPacket::new_checked(frame.get(transport(frame)?.1..)?).ok());
        let data = [7; 600];
        let called = seen.as_ref().is_some_and(|seen| seen.syn() && !seen.ack());
        let control = match random.below(12) {
            0..6 if called => TcpControl::Syn,
            0..3 => TcpControl::Syn,
            3 => TcpControl::Rst,
            4..6 => TcpControl::Fin,
            _ => TcpControl::Psh,
        };
        let ack = seen.as_ref().filter(|_| called || control != TcpControl::Syn);
        let repr = TcpRepr {
            src_port: ack.map_or(4000 + random.below(8) as u16, |seen| seen.dst_port()),
            dst_port: ack.map_or(0, |seen| seen.src_port()),
            control,
            seq_number: ack.filter(|seen| seen.ack()).map_or(TcpSeqNumber(1), |seen| seen.ack_number()),
            ack_number: ack
                .filter(|_| random.below(16) != 0)
                .map(|seen| seen.seq_number() + seen.segment_len()),
            window_len: random.below(65536) as u16,
            window_scale: (control == TcpControl::Syn).then_some(random.below(20) as u8),
            max_seg_size: (control == TcpControl::Syn).then_some(random.below(2000) as u16),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: if control == TcpControl::Syn { &[] } else { &data[..random.below(600)] },
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(
            &mut TcpPacket::new_unchecked(&mut bytes[..]),
            &GUEST.into(),
            &GATEWAY.into(),
            &ChecksumCapabilities::ignored(),
        );
        if six { ipv6(IpProtocol::Tcp, &bytes) } else { ipv4(GUEST, GATEWAY, IpProtocol::Tcp, &bytes) }
    }

    fn ipv6(next_header: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40 + payload.len()];
        let repr = Ipv6Repr {
            src_addr: GUEST6,
            dst_addr: GATEWAY6,
            next_header,
            payload_len: payload.len(),
            hop_limit: 255,
        };
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes[..]);
        repr.emit(&mut packet);
        packet.payload_mut().copy_from_slice(payload);
        ethernet(EthernetProtocol::Ipv6, &bytes)
    }

    fn icmp6(random: &mut Random) -> Vec<u8> {
        let lladdr = Some(MAC.into());
        let repr = match random.below(4) {
            0 => Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr }),
            1 => Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: GATEWAY6, lladdr }),
            2 => Icmpv6Repr::EchoRequest { ident: 1, seq_no: 2, data: &[5; 64] },
            _ => Icmpv6Repr::EchoReply { ident: 1, seq_no: 2, data: &[5; 64] },
        };
        let mut bytes = vec![0; repr.buffer_len()];
        let mut packet = Icmpv6Packet::new_unchecked(&mut bytes[..]);
        repr.emit(&GUEST6, &GATEWAY6, &mut packet, &ChecksumCapabilities::default());
        ipv6(IpProtocol::Icmpv6, &bytes)
    }

    fn arp() -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: MAC,
            source_protocol_addr: GUEST,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: GATEWAY,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        ethernet(EthernetProtocol::Arp, &bytes)
    }

    fn echo() -> Vec<u8> {
        let repr = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 2, data: &[5; 64] };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
        ipv4(GUEST, GATEWAY, IpProtocol::Icmp, &bytes)
    }

    fn fragment(random: &mut Random) -> Vec<u8> {
        let mut frame = udp(GUEST, GATEWAY, (4000, 1), &[9; 256]);
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
        packet.set_ident(random.below(4) as u16);
        packet.set_frag_offset(264 * random.below(8) as u16);
        packet.set_more_frags(random.below(4) != 0);
        frame
    }

    fn mutate(random: &mut Random, frame: &mut Vec<u8>) {
        for _ in 0..random.below(4) {
            let at = random.below(frame.len());
            frame[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => frame[at] ^ 1 << random.below(8),
                _ => random.next() as u8,
            };
        }
        match random.below(16) {
            0 => frame.truncate(random.below(frame.len()) + 1),
            1 => frame.extend(std::iter::repeat_n(0xa5, random.below(64))),
            _ => {}
        }
    }

    #[test]
    fn no_frame_panics() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut replies = 0;
        for round in 0..4u8 {
            let offloads = Offloads { checksum: round & 1 != 0, tso4: round & 2 != 0, tso6: false };
            let mut harness = Harness::new(offloads).unwrap();
            let mut seen: Option<Vec<u8>> = None;
            for number in 0..FRAMES / 4 {
                let mut frame = match random.below(12) {
                    0 => arp(),
                    1 => dhcp(&mut random),
                    2 => echo(),
                    3 => udp(GUEST, GATEWAY, (4000, 1), b"datagram"),
                    4 => fragment(&mut random),
                    5 => icmp6(&mut random),
                    6 => (0..1 + random.below(200)).map(|_| random.next() as u8).collect(),
                    _ => tcp(&mut random, seen.as_deref()),
                };
                if random.below(4) != 0 {
                    mutate(&mut random, &mut frame);
                }
                let meta = meta_from(random.next() as u8);
                harness.exchange(&mut frame, &meta, |frame| {
                    replies += 1;
                    if transport(frame).is_some_and(|(protocol, _)| protocol == 6) {
                        seen = Some(frame.to_vec());
                    }
                });
                if number % 8 == 0 {
                    harness.serve();
                }
                if number % 10_000 == 9_999 {
                    harness.net.reset();
                    harness.net.set_offloads(offloads);
                }
            }
        }
        assert!(replies > FRAMES / 10, "only {replies} replies: the frames do not get far");
    }

    #[test]
    fn entry_point_takes_any_input() {
        fuzz_frames(&[]);
        fuzz_frames(&[7, 1, 255, 255, 0]);
        let frame = arp();
        let mut input = vec![3, 0, frame.len() as u8, 0];
        input.extend(frame);
        fuzz_frames(&input);
    }
}
