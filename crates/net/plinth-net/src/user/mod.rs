//! The user network: a guest's connections and datagrams, carried on by sockets of the host process.

mod config;
mod dhcp;
mod fragment;
mod icmp;
mod lan;
mod ndp;
mod net;
mod reactor;
mod resolver;
mod slab;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::process::{Resource, getrlimit};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, EthernetAddress, EthernetFrame,
    EthernetProtocol, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, UdpPacket,
};

pub use self::config::UserNetConfig;
use self::dhcp::DhcpServer;
use self::fragment::Reassembler;
use self::icmp::PingNat;
use self::ndp::Ndp;
use self::net::{ETHERNET_HEADER, IPV6_HEADER, Net, parse_ip};
use self::reactor::{Readiness, Token};
use self::tcp::TcpNat;
use self::udp::UdpNat;
use crate::{
    FrameMeta, NetBackend, NetCaps, NetError, Offloads, PortForward, RecvFrame, SendOutcome, Transport,
};

/// Start of the dynamic ports (RFC 6335, section 6).
const FIRST_EPHEMERAL_PORT: u16 = 49_152;
/// Most bytes that a datagram of the host carries.
const MAX_DATAGRAM: usize = 65_535;
/// Flows at a time, if the process may have twice as many descriptors.
const MAX_TCP_FLOWS: u64 = 1024;
const MAX_UDP_FLOWS: u64 = 512;

/// The two ends of a flow as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FlowKey {
    guest: SocketAddr,
    remote: SocketAddr,
}

impl FlowKey {
    /// The flow of a packet of the guest's.
    fn new(header: &IpRepr, src_port: u16, dst_port: u16) -> Self {
        Self {
            guest: SocketAddr::new(header.src_addr().into(), src_port),
            remote: SocketAddr::new(header.dst_addr().into(), dst_port),
        }
    }
}

/// A network in user space for one guest card: the guest reaches what the host process reaches, and is
/// reached through forwarded ports only. It needs no rights.
pub struct UserNet {
    net: Net,
    dhcp: DhcpServer,
    reassembler: Reassembler,
    tcp: TcpNat,
    udp: UdpNat,
    ping: PingNat,
    ndp: Ndp,
    forwards: Vec<(PortForward, SocketAddr)>,
    events: Vec<(Token, Readiness)>,
}

impl UserNet {
    /// Lays out the network and opens the forwarded ports.
    pub fn new(config: &UserNetConfig) -> Result<Self, NetError> {
        config.validate()?;
        let net = Net::new(config)?;
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let share = |limit: u64, part: u64| limit.min(descriptors / part).max(1) as usize;
        let mut tcp = TcpNat::new(share(MAX_TCP_FLOWS, 2));
        let mut udp = UdpNat::new(share(MAX_UDP_FLOWS, 4));
        let mut forwards = Vec::new();
        for forward in &config.forwards {
            let guest_addr = forward.guest_addr.unwrap_or(net.lan.default_guest);
            let guest = SocketAddr::new(guest_addr.into(), forward.guest_port);
            let addr = match forward.transport {
                Transport::Tcp => tcp.forward(&net, forward, guest)?,
                Transport::Udp => udp.forward(&net, forward, guest)?,
            };
            forwards.push((*forward, addr));
        }
        Ok(Self {
            dhcp: DhcpServer::new(config, &net),
            net,
            reassembler: Reassembler::default(),
            tcp,
            udp,
            ping: PingNat::new(),
            ndp: Ndp::default(),
            forwards,
            events: Vec::new(),
        })
    }

    /// The forwarded ports and where each listens, which tells the port that the host chose for port 0.
    pub fn forwards(&self) -> &[(PortForward, SocketAddr)] {
        &self.forwards
    }

    /// Lets the gateway's addresses stand for another address of the host's.
    pub(crate) fn set_host_addr(&mut self, addr: IpAddr) {
        self.net.lan.host_addr = addr;
        self.net.lan.host_addr6 = addr;
    }

    /// Drops all that depends on the guest's driver.
    fn restart(&mut self) {
        self.net.reset();
        self.dhcp.reset();
        self.reassembler.clear();
        self.tcp.reset(&mut self.net);
        self.udp.reset(&mut self.net);
        self.ping.reset(&mut self.net);
        self.ndp.reset(&mut self.net);
    }

    fn learn(&mut self, addr: impl Into<IpAddr>, mac: EthernetAddress) {
        if self.net.lan.learn(addr, mac) {
            self.tcp.on_neighbor(&mut self.net);
        }
    }

    fn on_arp(&mut self, payload: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(payload) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        if !source_hardware_addr.is_unicast() {
            return;
        }
        self.learn(source_protocol_addr, source_hardware_addr);
        if operation == ArpOperation::Request && self.net.lan.is_ours(target_protocol_addr) {
            self.net.send_arp(
                ArpOperation::Reply,
                target_protocol_addr,
                source_hardware_addr,
                source_protocol_addr,
            );
        }
    }

    fn on_ipv4(&mut self, source: EthernetAddress, payload: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(payload) else { return };
        let src = packet.src_addr();
        if packet.version() != 4 {
            return;
        }
        if !self.net.lan.is_guest(src) {
            // A guest without an address has one thing to ask for.
            if src.is_unspecified() && packet.next_header() == IpProtocol::Udp && packet.frag_offset() == 0 {
                self.on_dhcp(packet.dst_addr(), packet.payload());
            }
            return;
        }
        self.learn(src, source);
        if packet.more_frags() || packet.frag_offset() != 0 {
            if let Some(whole) = self.reassembler.add(&packet, self.net.now) {
                self.on_packet(&whole);
            }
        } else if let Some(exact) = payload.get(..usize::from(packet.total_len())) {
            self.on_packet(exact);
        }
    }

    /// Takes a datagram to the DHCP server or to all. False if it is something else.
    fn on_dhcp(&mut self, dst: Ipv4Addr, payload: &[u8]) -> bool {
        let to_server = dst.is_broadcast() || dst == self.net.lan.gateway || dst == self.net.lan.broadcast();
        match UdpPacket::new_checked(payload) {
            Ok(datagram)
                if to_server
                    && datagram.dst_port() == DHCP_SERVER_PORT
                    && datagram.src_port() == DHCP_CLIENT_PORT =>
            {
                self.dhcp.handle(&mut self.net, datagram.payload());
                self.tcp.on_neighbor(&mut self.net);
                true
            }
            _ => false,
        }
    }

    fn on_ipv6(&mut self, source: EthernetAddress, payload: &[u8]) {
        let Ok(packet) = Ipv6Packet::new_checked(payload) else { return };
        let src = packet.src_addr();
        // A guest without an address may look for a router, or whether an address is taken.
        if self.net.lan.is_guest(src) || (src.is_unspecified() && packet.next_header() == IpProtocol::Icmpv6)
        {
            self.learn(src, source);
            if let Some(exact) = payload.get(..IPV6_HEADER + usize::from(packet.payload_len())) {
                self.on_packet(exact);
            }
        }
    }

    /// A whole packet from a guest's address.
    fn on_packet(&mut self, bytes: &[u8]) {
        let Some((header, payload)) = parse_ip(bytes) else { return };
        match (header.next_header(), &header) {
            (IpProtocol::Tcp, _) => self.tcp.on_guest_packet(&mut self.net, bytes, &header, payload),
            (IpProtocol::Udp, IpRepr::Ipv4(ipv4)) if self.on_dhcp(ipv4.dst_addr, payload) => {}
            (IpProtocol::Udp, _) => self.udp.on_guest_packet(&mut self.net, &header, payload),
            (IpProtocol::Icmp, IpRepr::Ipv4(ipv4)) => {
                self.ping.on_guest_packet(&mut self.net, ipv4, payload);
            }
            (IpProtocol::Icmpv6, IpRepr::Ipv6(ipv6))
                if self.ndp.on_guest_packet(&mut self.net, ipv6, payload) => {}
            (IpProtocol::Icmpv6, IpRepr::Ipv6(ipv6)) => {
                self.ping.on_guest_packet6(&mut self.net, ipv6, payload);
            }
            _ => {}
        }
    }

    fn on_event(&mut self, token: Token, readiness: Readiness) {
        match token {
            Token::Tcp(id) => self.tcp.on_event(id, readiness),
            Token::Udp(id) => self.udp.on_event(&mut self.net, id, readiness),
            Token::Ping(id) => self.ping.on_event(&mut self.net, id, readiness),
            Token::Listener(index) => self.tcp.accept(&mut self.net, index as usize),
            Token::UdpPort(index) => self.udp.on_port_event(&mut self.net, index as usize),
            // The deadlines are looked at in any case.
            Token::Timer | Token::Unresolved | Token::Router => {}
        }
    }

    fn on_deadline(&mut self, token: Token) {
        match token {
            Token::Tcp(id) => self.tcp.on_alarm(id),
            Token::Udp(id) => self.udp.on_alarm(&mut self.net, id),
            Token::Ping(id) => self.ping.on_alarm(&mut self.net, id),
            Token::Listener(index) => self.tcp.on_listener_alarm(&mut self.net, index as usize),
            Token::Unresolved => self.tcp.on_unresolved_alarm(&mut self.net),
            Token::Router => self.ndp.on_alarm(&mut self.net),
            Token::Timer | Token::UdpPort(_) => {}
        }
    }
}

impl NetBackend for UserNet {
    fn caps(&self) -> NetCaps {
        let from_guest = Offloads { checksum: true, tso4: true, tso6: true };
        // smoltcp (0.14) drops IPv6 packets that are larger than the MTU even when they are to be segmented.
        let to_guest = Offloads { tso6: false, ..from_guest };
        NetCaps { mtu: self.net.lan.mtu, from_guest, to_guest }
    }

    fn set_offloads(&mut self, to_guest: Offloads) {
        self.net.now = Instant::now();
        let offloads = to_guest.intersect(self.caps().to_guest);
        if offloads != self.net.offloads {
            // A connection's packets are sized by what held when it was made.
            self.restart();
            self.net.offloads = offloads;
        }
    }

    fn reset(&mut self) {
        self.net.now = Instant::now();
        self.restart();
    }

    fn send(&mut self, frame: &[u8], _meta: &FrameMeta) -> SendOutcome {
        self.net.now = Instant::now();
        // What the metadata tells is of no interest here: checksums are not verified, and a packet of many
        // segments is as good as any.
        if let Ok(ethernet) = EthernetFrame::new_checked(frame) {
            let (source, dst) = (ethernet.src_addr(), ethernet.dst_addr());
            if source.is_unicast() && (dst == self.net.lan.mac || !dst.is_unicast()) {
                match ethernet.ethertype() {
                    EthernetProtocol::Arp => self.on_arp(ethernet.payload()),
                    EthernetProtocol::Ipv4 => self.on_ipv4(source, ethernet.payload()),
                    EthernetProtocol::Ipv6 => self.on_ipv6(source, ethernet.payload()),
                    EthernetProtocol::Unknown(_) => {}
                }
            }
        }
        SendOutcome::Taken
    }

    fn recv(&mut self, buf: &mut [u8]) -> Option<RecvFrame> {
        self.net.now = Instant::now();
        loop {
            while let Some(frame) = self.net.pop_frame() {
                if let Some(room) = buf.get_mut(..frame.len()) {
                    room.copy_from_slice(&frame);
                    return Some(RecvFrame { len: frame.len(), meta: FrameMeta::default() });
                }
            }
            let token = self.net.ready.pop_front()?;
            let more = match token {
                Token::Tcp(id) => {
                    if let Some(frame) = self.tcp.pull(&mut self.net, id, buf) {
                        self.net.ready.push_back(token);
                        return Some(frame);
                    }
                    false
                }
                Token::Udp(id) => self.udp.pull(&mut self.net, id),
                Token::UdpPort(index) => self.udp.pull_port(&mut self.net, index as usize),
                Token::Ping(id) => self.ping.pull(&mut self.net, id),
                Token::Timer | Token::Listener(_) | Token::Unresolved | Token::Router => false,
            };
            if more {
                self.net.ready.push_back(token);
            }
        }
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.net.reactor.poll_fd()
    }

    fn process(&mut self) {
        self.net.now = Instant::now();
        let mut events = std::mem::take(&mut self.events);
        self.net.reactor.poll(&mut events);
        for (token, readiness) in events.drain(..) {
            self.on_event(token, readiness);
        }
        self.events = events;
        while let Some(token) = self.net.reactor.next_expired(self.net.now) {
            self.on_deadline(token);
        }
        self.tcp.process(&mut self.net);
        self.net.reactor.settle_timer(self.net.now);
    }
}

// `ETHERNET_HEADER` is what the trait promises callers about the size of a frame.
const _: () = assert!(ETHERNET_HEADER + u16::MAX as usize == crate::MAX_FRAME);
