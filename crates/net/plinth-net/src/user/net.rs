//! What all parts of the user network share: the segment, the host's events, frames on their way out.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr,
    Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr,
};

use super::config::UserNetConfig;
use super::lan::Lan;
use super::reactor::{Reactor, Token};
use super::resolver::Resolvers;
use crate::{NetError, Offloads};

pub(super) const ETHERNET_HEADER: usize = 14;
pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
pub(super) const UDP_HEADER: usize = 8;
pub(super) const HOP_LIMIT: u8 = 64;
/// Proves that a packet has not been routed (RFC 4861, section 3.1).
pub(super) const LINK_HOP_LIMIT: u8 = 255;
/// Payload bytes of a packet that an ICMP error returns: as many as keep the error within the 576 bytes
/// that RFC 1812, section 4.3.2.3 allows.
const ICMP_QUOTE: usize = 548 - IPV4_HEADER;

/// Frames that wait for the guest to make buffers available. Only answers to the guest's own frames can
/// fill it: whatever comes from the host is fetched when there is room.
const OUTBOX_FRAMES: usize = 256;

/// Why a packet of the guest's could not be delivered, for either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    Port,
    Host,
    Net,
    Prohibited,
}

impl Unreachable {
    /// RFC 792, and RFC 1812, section 5.2.7.1.
    fn v4(self) -> Icmpv4DstUnreachable {
        match self {
            Self::Port => Icmpv4DstUnreachable::PortUnreachable,
            Self::Host => Icmpv4DstUnreachable::HostUnreachable,
            Self::Net => Icmpv4DstUnreachable::NetUnreachable,
            Self::Prohibited => Icmpv4DstUnreachable::CommProhibited,
        }
    }

    /// RFC 4443, section 3.1.
    fn v6(self) -> Icmpv6DstUnreachable {
        match self {
            Self::Port => Icmpv6DstUnreachable::PortUnreachable,
            Self::Host => Icmpv6DstUnreachable::AddrUnreachable,
            Self::Net => Icmpv6DstUnreachable::NoRoute,
            Self::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
        }
    }
}

pub(super) struct Net {
    pub(super) lan: Lan,
    pub(super) reactor: Reactor,
    pub(super) resolvers: Resolvers,
    pub(super) offloads: Offloads,
    /// The time of the current call into the network.
    pub(super) now: Instant,
    /// Sources that may have a frame for the guest, served in turn. Each is in it at most once.
    pub(super) ready: VecDeque<Token>,
    epoch: Instant,
    outbox: VecDeque<Vec<u8>>,
    next_ident: u16,
}

impl Net {
    pub(super) fn new(config: &UserNetConfig) -> Result<Self, NetError> {
        let now = Instant::now();
        Ok(Self {
            lan: Lan::new(config),
            reactor: Reactor::new()?,
            resolvers: Resolvers::new(config.resolvers.clone()),
            offloads: Offloads::NONE,
            now,
            ready: VecDeque::new(),
            epoch: now,
            outbox: VecDeque::new(),
            next_ident: 1,
        })
    }

    /// The current time on the TCP/IP library's scale.
    pub(super) fn stack_now(&self) -> smoltcp::time::Instant {
        let elapsed = self.now.saturating_duration_since(self.epoch);
        smoltcp::time::Instant::from_micros(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX))
    }

    /// A time on the library's scale as the host's. The past becomes the present.
    pub(super) fn host_time(&self, at: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.epoch.checked_add(Duration::from_micros(micros)).unwrap_or(self.now).max(self.now)
    }

    pub(super) fn reset(&mut self) {
        self.outbox.clear();
        self.ready.clear();
        self.lan.forget_neighbors();
        self.offloads = Offloads::NONE;
    }

    pub(super) fn pop_frame(&mut self) -> Option<Vec<u8>> {
        self.outbox.pop_front()
    }

    /// Queues a finished frame, or drops it when the guest does not fetch its frames.
    pub(super) fn push_frame(&mut self, frame: Vec<u8>) {
        if self.outbox.len() < OUTBOX_FRAMES {
            self.outbox.push_back(frame);
        }
    }

    /// Writes an Ethernet header for a frame of ours to the start of `buf`.
    pub(super) fn emit_ethernet(&self, buf: &mut [u8], dst: EthernetAddress, ethertype: EthernetProtocol) {
        let mut frame = EthernetFrame::new_unchecked(buf);
        frame.set_src_addr(self.lan.mac);
        frame.set_dst_addr(dst);
        frame.set_ethertype(ethertype);
    }

    pub(super) fn send_arp(
        &mut self,
        operation: ArpOperation,
        source: Ipv4Addr,
        target_mac: EthernetAddress,
        target: Ipv4Addr,
    ) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: self.lan.mac,
            source_protocol_addr: source,
            target_hardware_addr: target_mac,
            target_protocol_addr: target,
        };
        let mut frame = vec![0; ETHERNET_HEADER + repr.buffer_len()];
        let dst = if operation == ArpOperation::Request { EthernetAddress::BROADCAST } else { target_mac };
        self.emit_ethernet(&mut frame, dst, EthernetProtocol::Arp);
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER..]));
        self.push_frame(frame);
    }

    /// Sends an IPv4 packet to a guest, in fragments if need be. Without a known hardware address, or
    /// with more payload than IPv4 can carry, it is dropped.
    pub(super) fn send_ipv4(
        &mut self,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        next_header: IpProtocol,
        payload: &[u8],
    ) {
        if let Some(mac) = self.lan.neighbor(dst.into()) {
            self.send_ipv4_to(mac, src, dst, next_header, payload);
        }
    }

    pub(super) fn send_ipv4_to(
        &mut self,
        mac: EthernetAddress,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        next_header: IpProtocol,
        payload: &[u8],
    ) {
        let room = usize::from(self.lan.mtu) - IPV4_HEADER;
        if payload.len() > usize::from(u16::MAX) - IPV4_HEADER {
            return;
        }
        // All fragments but the last carry a multiple of 8 bytes (RFC 791, section 3.2).
        let chunk_size = if payload.len() <= room { room } else { room & !7 };
        let ident = self.next_ident;
        self.next_ident = ident.wrapping_add(1);
        let mut offset = 0;
        loop {
            let chunk = &payload[offset..payload.len().min(offset + chunk_size)];
            let more = offset + chunk.len() < payload.len();
            let mut frame = vec![0; ETHERNET_HEADER + IPV4_HEADER + chunk.len()];
            self.emit_ethernet(&mut frame, mac, EthernetProtocol::Ipv4);
            let mut packet = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_HEADER..]);
            let repr = Ipv4Repr {
                src_addr: src,
                dst_addr: dst,
                next_header,
                payload_len: chunk.len(),
                hop_limit: HOP_LIMIT,
            };
            repr.emit(&mut packet, &ChecksumCapabilities::ignored());
            packet.set_ident(ident);
            packet.set_dont_frag(false);
            packet.set_more_frags(more);
            packet.set_frag_offset(offset as u16);
            packet.fill_checksum();
            packet.payload_mut().copy_from_slice(chunk);
            self.push_frame(frame);
            offset += chunk.len();
            if !more {
                return;
            }
        }
    }

    /// Sends an IPv6 packet to a guest. Without a known hardware address, or if it is larger than the MTU,
    /// it is dropped.
    pub(super) fn send_ipv6(
        &mut self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        next_header: IpProtocol,
        payload: &[u8],
    ) {
        if let Some(mac) = self.lan.neighbor(dst.into()) {
            self.send_ipv6_to(mac, src, dst, (next_header, HOP_LIMIT), payload);
        }
    }

    pub(super) fn send_ipv6_to(
        &mut self,
        mac: EthernetAddress,
        src_addr: Ipv6Addr,
        dst_addr: Ipv6Addr,
        (next_header, hop_limit): (IpProtocol, u8),
        payload: &[u8],
    ) {
        if IPV6_HEADER + payload.len() > usize::from(self.lan.mtu) {
            return;
        }
        let mut frame = vec![0; ETHERNET_HEADER + IPV6_HEADER + payload.len()];
        self.emit_ethernet(&mut frame, mac, EthernetProtocol::Ipv6);
        let mut packet = Ipv6Packet::new_unchecked(&mut frame[ETHERNET_HEADER..]);
        let repr = Ipv6Repr { src_addr, dst_addr, next_header, payload_len: payload.len(), hop_limit };
        repr.emit(&mut packet);
        packet.payload_mut().copy_from_slice(payload);
        self.push_frame(frame);
    }

    /// Sends a packet to a guest. Addresses of different families have no way to each other.
    pub(super) fn send_ip(&mut self, src: IpAddr, dst: IpAddr, next_header: IpProtocol, payload: &[u8]) {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.send_ipv4(src, dst, next_header, payload),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.send_ipv6(src, dst, next_header, payload),
            _ => {}
        }
    }

    pub(super) fn send_udp(&mut self, src: SocketAddr, dst: SocketAddr, data: &[u8]) {
        if src.is_ipv4() == dst.is_ipv4()
            && let Some(payload) = udp_payload(src, dst, data)
        {
            self.send_ip(src.ip(), dst.ip(), IpProtocol::Udp, &payload);
        }
    }

    pub(super) fn send_icmp(&mut self, src: Ipv4Addr, dst: Ipv4Addr, repr: &Icmpv4Repr<'_>) {
        let mut payload = vec![0; repr.buffer_len()];
        repr.emit(&mut Icmpv4Packet::new_unchecked(&mut payload[..]), &ChecksumCapabilities::default());
        self.send_ipv4(src, dst, IpProtocol::Icmp, &payload);
    }

    pub(super) fn send_icmp6(&mut self, src: Ipv6Addr, dst: Ipv6Addr, repr: &Icmpv6Repr<'_>) {
        let mut payload = vec![0; repr.buffer_len()];
        let caps = ChecksumCapabilities::default();
        repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(&mut payload[..]), &caps);
        self.send_ipv6(src, dst, IpProtocol::Icmpv6, &payload);
    }

    /// Tells a guest that its packet could not be delivered: who says so is the destination if that is
    /// ours, or else the gateway.
    pub(super) fn send_unreachable(&mut self, header: &IpRepr, payload: &[u8], reason: Unreachable) {
        let data = &payload[..payload.len().min(ICMP_QUOTE)];
        let ours = self.lan.is_ours(header.dst_addr());
        match *header {
            IpRepr::Ipv4(header) => {
                let from = if ours { header.dst_addr } else { self.lan.gateway };
                let repr = Icmpv4Repr::DstUnreachable { reason: reason.v4(), header, data };
                self.send_icmp(from, header.src_addr, &repr);
            }
            IpRepr::Ipv6(header) => {
                let Some(v6) = self.lan.v6 else { return };
                let from = if ours { header.dst_addr } else { v6.gateway };
                let repr = Icmpv6Repr::DstUnreachable { reason: reason.v6(), header, data };
                self.send_icmp6(from, header.src_addr, &repr);
            }
        }
    }
}

/// The header and the payload of an unfragmented IP packet of either family, without extension headers.
pub(super) fn parse_ip(bytes: &[u8]) -> Option<(IpRepr, &[u8])> {
    if bytes.first()? >> 4 == 4 {
        let packet = Ipv4Packet::new_checked(bytes).ok()?;
        let header = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?;
        Some((IpRepr::Ipv4(header), packet.payload()))
    } else {
        let packet = Ipv6Packet::new_checked(bytes).ok()?;
        let header = Ipv6Repr::parse(&packet).ok()?;
        Some((IpRepr::Ipv6(header), packet.payload()))
    }
}

pub(super) fn ethertype(addr: IpAddr) -> EthernetProtocol {
    match addr {
        IpAddr::V4(_) => EthernetProtocol::Ipv4,
        IpAddr::V6(_) => EthernetProtocol::Ipv6,
    }
}

/// A UDP header and its data with the checksum in place; `None` if it is too long for a datagram.
pub(super) fn udp_payload(src: SocketAddr, dst: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    let len = UDP_HEADER + data.len();
    if len > usize::from(u16::MAX) {
        return None;
    }
    let mut payload = vec![0; len];
    let repr = UdpRepr { src_port: src.port(), dst_port: dst.port() };
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut payload[..]),
        &IpAddress::from(src.ip()),
        &IpAddress::from(dst.ip()),
        data.len(),
        |room| room.copy_from_slice(data),
        &ChecksumCapabilities::default(),
    );
    Some(payload)
}
