//! ICMP: echo requests to the network's own addresses are answered here, those to the outside go through
//! the host's unprivileged ping sockets where the host allows them (`net.ipv4.ping_group_range`).

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Ipv4Repr};

use super::MAX_DATAGRAM;
use super::lan::Route;
use super::net::Net;
use super::reactor::{Alarm, Readiness, Token};
use super::slab::{Slab, SlotId};
use super::udp::unreachable_reason;

/// RFC 5508, REQ-1: the timer of an ICMP query session must not expire in less than 60 s.
const IDLE: Duration = Duration::from_secs(60);
const MAX_FLOWS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: Ipv4Addr,
    remote: Ipv4Addr,
    ident: u16,
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

fn open_ping_socket(remote: Ipv4Addr) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::ICMP))?;
    let socket = UdpSocket::from(socket);
    socket.connect(SocketAddr::new(remote.into(), 0))?;
    Ok(socket)
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
        let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) = Icmpv4Repr::parse(&packet, &caps) else {
            return;
        };
        let remote = header.dst_addr;
        if net.lan.is_ours(remote) {
            let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
            return net.send_icmp(remote, header.src_addr, &reply);
        }
        // Any port will do: only the address is looked at.
        let result = match net.lan.route(SocketAddr::new(remote.into(), 1)) {
            Route::Host(_) => {
                self.send_to_host(net, Key { guest: header.src_addr, remote, ident }, seq_no, data)
            }
            Route::Unreachable | Route::Resolver => Err(Some(Icmpv4DstUnreachable::HostUnreachable)),
            Route::Discard => return,
        };
        if let Err(Some(reason)) = result {
            net.send_unreachable(net.lan.gateway, header, payload, reason);
        }
    }

    fn send_to_host(
        &mut self,
        net: &mut Net,
        key: Key,
        seq_no: u16,
        data: &[u8],
    ) -> Result<(), Option<Icmpv4DstUnreachable>> {
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => self.open(net, key)?,
        };
        let flow = self.flows.get_mut(id).ok_or(None)?;
        flow.last_used = net.now;
        let request = Icmpv4Repr::EchoRequest { ident: key.ident, seq_no, data };
        let mut message = vec![0; request.buffer_len()];
        request.emit(&mut Icmpv4Packet::new_unchecked(&mut message[..]), &ChecksumCapabilities::default());
        flow.socket.send(&message).map(drop).map_err(|error| unreachable_reason(&error))
    }

    fn open(&mut self, net: &mut Net, key: Key) -> Result<SlotId, Option<Icmpv4DstUnreachable>> {
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
                let caps = ChecksumCapabilities::ignored();
                if let Ok(packet) = Icmpv4Packet::new_checked(&self.scratch[..len])
                    && let Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) = Icmpv4Repr::parse(&packet, &caps)
                {
                    let Key { guest, remote, ident } = flow.key;
                    net.send_icmp(remote, guest, &Icmpv4Repr::EchoReply { ident, seq_no, data });
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
