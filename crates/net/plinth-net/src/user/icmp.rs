//! ICMP of both families: echo requests to the network's own addresses are answered here, those to the outside go through
//! the host's unprivileged ping sockets where the host allows them (`net.ipv4.ping_group_range`).

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpRepr, Ipv4Repr, Ipv6Repr};

use super::MAX_DATAGRAM;
use super::lan::Route;
use super::net::{Net, Unreachable};
use super::reactor::{Alarm, Readiness, Token};
use super::slab::{Slab, SlotId};
use super::udp::unreachable_reason;

/// RFC 5508, REQ-1: the timer of an ICMP query session must not expire in less than 60 s.
const IDLE: Duration = Duration::from_secs(60);
const MAX_FLOWS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    remote: IpAddr,
    ident: u16,
}

/// What an echo carries, in either family.
#[derive(Clone, Copy)]
struct Echo<'a> {
    seq_no: u16,
    data: &'a [u8],
}

struct Flow {
    key: Key,
    /// A ping socket: what it sends and receives are ICMP messages, of which the kernel owns the
    /// identifier.
    socket: UdpSocket,
    queued: bool,
    last_used: Instant,
    alarm: Alarm,
}

pub(super) struct PingNat {
    flows: Slab<Flow>,
    by_key: HashMap<Key, SlotId>,
    scratch: Box<[u8]>,
}

fn open_ping_socket(remote: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match remote {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = UdpSocket::from(socket_with(family, SocketType::DGRAM, flags, Some(protocol))?);
    socket.connect(SocketAddr::new(remote, 0))?;
    Ok(socket)
}

impl Key {
    /// The request as the kernel wants it, which fills in identifier and checksum.
    fn request(&self, Echo { seq_no, data }: Echo<'_>) -> Vec<u8> {
        let ident = self.ident;
        let caps = ChecksumCapabilities::ignored();
        match (self.guest, self.remote) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let request = Icmpv6Repr::EchoRequest { ident, seq_no, data };
                let mut message = vec![0; request.buffer_len()];
                request.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(&mut message[..]), &caps);
                message
            }
            _ => {
                let request = Icmpv4Repr::EchoRequest { ident, seq_no, data };
                let mut message = vec![0; request.buffer_len()];
                request.emit(&mut Icmpv4Packet::new_unchecked(&mut message[..]), &caps);
                message
            }
        }
    }

    /// Hands a reply to the guest.
    fn reply(&self, net: &mut Net, Echo { seq_no, data }: Echo<'_>) {
        let ident = self.ident;
        match (self.remote, self.guest) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                net.send_icmp(src, dst, &Icmpv4Repr::EchoReply { ident, seq_no, data });
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                net.send_icmp6(src, dst, &Icmpv6Repr::EchoReply { ident, seq_no, data });
            }
            _ => {}
        }
    }

    /// The reply that a message from the host's ping socket is, if it is one.
    fn parse_reply<'a>(&self, message: &'a [u8]) -> Option<Echo<'a>> {
        let caps = ChecksumCapabilities::ignored();
        match (self.remote, self.guest) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let packet = Icmpv6Packet::new_checked(message).ok()?;
                match Icmpv6Repr::parse(&src, &dst, &packet, &caps).ok()? {
                    Icmpv6Repr::EchoReply { seq_no, data, .. } => Some(Echo { seq_no, data }),
                    _ => None,
                }
            }
            _ => match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(message).ok()?, &caps).ok()? {
                Icmpv4Repr::EchoReply { seq_no, data, .. } => Some(Echo { seq_no, data }),
                _ => None,
            },
        }
    }
}

impl PingNat {
    pub(super) fn new() -> Self {
        Self { flows: Slab::new(MAX_FLOWS), by_key: HashMap::new(), scratch: vec![0; MAX_DATAGRAM].into() }
    }

    pub(super) fn reset(&mut self, net: &mut Net) {
        for id in self.flows.ids() {
            self.remove(net, id);
        }
    }

    /// An ICMP message of the guest's.
    pub(super) fn on_guest_packet(&mut self, net: &mut Net, header: &Ipv4Repr, payload: &[u8]) {
        let Ok(packet) = Icmpv4Packet::new_checked(payload) else { return };
        let caps = ChecksumCapabilities::ignored();
        if let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) = Icmpv4Repr::parse(&packet, &caps) {
            let key = Key { guest: header.src_addr.into(), remote: header.dst_addr.into(), ident };
            self.on_request(net, key, &IpRepr::Ipv4(*header), payload, Echo { seq_no, data });
        }
    }

    /// An ICMPv6 message of the guest's that is not about neighbors.
    pub(super) fn on_guest_packet6(&mut self, net: &mut Net, header: &Ipv6Repr, payload: &[u8]) {
        let Ok(packet) = Icmpv6Packet::new_checked(payload) else { return };
        let caps = ChecksumCapabilities::ignored();
        if let Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data }) =
            Icmpv6Repr::parse(&header.src_addr, &header.dst_addr, &packet, &caps)
        {
            let key = Key { guest: header.src_addr.into(), remote: header.dst_addr.into(), ident };
            self.on_request(net, key, &IpRepr::Ipv6(*header), payload, Echo { seq_no, data });
        }
    }

    fn on_request(&mut self, net: &mut Net, key: Key, header: &IpRepr, payload: &[u8], echo: Echo<'_>) {
        if net.lan.is_ours(key.remote) {
            return key.reply(net, echo);
        }
        // Any port will do: only the address is looked at.
        let result = match net.lan.route(SocketAddr::new(key.remote, 1)) {
            Route::Host(_) => self.send_to_host(net, key, echo),
            Route::Unreachable | Route::Resolver => Err(Some(Unreachable::Host)),
            Route::Discard => return,
        };
        if let Err(Some(reason)) = result {
            net.send_unreachable(header, payload, reason);
        }
    }

    fn send_to_host(&mut self, net: &mut Net, key: Key, echo: Echo<'_>) -> Result<(), Option<Unreachable>> {
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => self.open(net, key)?,
        };
        let flow = self.flows.get_mut(id).ok_or(None)?;
        flow.last_used = net.now;
        flow.socket.send(&key.request(echo)).map(drop).map_err(|error| unreachable_reason(&error))
    }

    fn open(&mut self, net: &mut Net, key: Key) -> Result<SlotId, Option<Unreachable>> {
        if self.flows.is_full()
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.last_used).map(|(id, _)| id)
        {
            self.remove(net, oldest);
        }
        let socket = open_ping_socket(key.remote).map_err(|error| unreachable_reason(&error))?;
        let last_used = net.now;
        let flow = Flow { key, socket, queued: false, last_used, alarm: Alarm::default() };
        let id = self.flows.insert_with(|_| flow).ok_or(None)?;
        let flow = self.flows.get_mut(id).ok_or(None)?;
        if net.reactor.watch(&flow.socket, Token::Ping(id)).is_err() {
            self.flows.remove(id);
            return Err(None);
        }
        net.reactor.arm(&mut flow.alarm, Token::Ping(id), last_used + IDLE, net.now);
        self.by_key.insert(key, id);
        Ok(id)
    }

    fn remove(&mut self, net: &mut Net, id: SlotId) {
        if let Some(mut flow) = self.flows.remove(id) {
            net.reactor.disarm(&mut flow.alarm, Token::Ping(id));
            self.by_key.remove(&flow.key);
        }
    }

    pub(super) fn on_event(&mut self, net: &mut Net, id: SlotId, readiness: Readiness) {
        if let Some(flow) = self.flows.get_mut(id)
            && readiness.readable
            && !flow.queued
        {
            flow.queued = true;
            net.ready.push_back(Token::Ping(id));
        }
    }

    pub(super) fn on_alarm(&mut self, net: &mut Net, id: SlotId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.alarm.fired();
        let deadline = flow.last_used + IDLE;
        if deadline <= net.now {
            self.remove(net, id);
        } else {
            net.reactor.arm(&mut flow.alarm, Token::Ping(id), deadline, net.now);
        }
    }

    /// Fetches one reply for the guest. False when there are no more for now.
    pub(super) fn pull(&mut self, net: &mut Net, id: SlotId) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        match flow.socket.recv(&mut self.scratch) {
            Ok(len) => {
                let key = flow.key;
                if let Some(echo) = key.parse_reply(&self.scratch[..len]) {
                    key.reply(net, echo);
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(_) => {
                flow.queued = false;
                false
            }
        }
    }
}
