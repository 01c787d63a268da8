//! UDP: each of the guest's flows has a connected socket of the host, so that the host filters replies
//! and reports refusals; forwarded ports have one bound socket each.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::wire::{ArpOperation, EthernetAddress, IpProtocol, IpRepr, UdpPacket};

use super::lan::Route;
use super::net::{HOP_LIMIT, Net, UDP_HEADER, Unreachable, udp_payload};
use super::reactor::{Alarm, Readiness, Token};
use super::slab::{Slab, SlotId};
use super::{FIRST_EPHEMERAL_PORT, FlowKey, MAX_DATAGRAM};
use crate::{NetError, PortForward};

/// RFC 4787, REQ-5: a mapping must not expire in less than two minutes.
const IDLE: Duration = Duration::from_secs(120);
/// Name queries are answered soon or not at all (RFC 4787, REQ-5 a exempts well-known ports).
const DNS_IDLE: Duration = Duration::from_secs(20);
/// A name server that has not answered for this long is passed over at the guest's next query.
const DNS_PATIENCE: Duration = Duration::from_secs(2);

/// The asking of name servers in turn.
#[derive(Default)]
struct DnsTurn {
    attempt: usize,
    unanswered: Option<Instant>,
}

enum Via {
    /// A socket of the flow's own, connected to the peer. Of name queries also whose turn it is.
    Own { socket: UdpSocket, dns: Option<DnsTurn> },
    /// A forwarded port's socket.
    Port { index: usize, peer: SocketAddr },
}

struct Flow {
    key: FlowKey,
    via: Via,
    queued: bool,
    last_used: Instant,
    alarm: Alarm,
}

impl Flow {
    fn lifetime(&self) -> Duration {
        match &self.via {
            Via::Own { dns: Some(_), .. } => DNS_IDLE,
            _ => IDLE,
        }
    }
}

struct Port {
    socket: UdpSocket,
    guest: SocketAddr,
    queued: bool,
}

pub(super) struct UdpNat {
    flows: Slab<Flow>,
    by_key: HashMap<FlowKey, SlotId>,
    by_peer: HashMap<(usize, SocketAddr), SlotId>,
    ports: Vec<Port>,
    scratch: Box<[u8]>,
}

fn open_connected(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    Ok(socket)
}

/// What to tell the guest about an error of the host's network, if it is one that the guest caused.
pub(super) fn unreachable_reason(error: &io::Error) -> Option<Unreachable> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(Unreachable::Port),
        ErrorKind::HostUnreachable => Some(Unreachable::Host),
        ErrorKind::NetworkUnreachable => Some(Unreachable::Net),
        ErrorKind::PermissionDenied => Some(Unreachable::Prohibited),
        _ => None,
    }
}

impl UdpNat {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            flows: Slab::new(limit),
            by_key: HashMap::new(),
            by_peer: HashMap::new(),
            ports: Vec::new(),
            scratch: vec![0; MAX_DATAGRAM].into(),
        }
    }

    /// Opens a forwarded port; the result is where the host listens.
    pub(super) fn forward(
        &mut self,
        net: &Net,
        forward: &PortForward,
        guest: SocketAddr,
    ) -> Result<SocketAddr, NetError> {
        let open = || {
            let socket = UdpSocket::bind(forward.host)?;
            socket.set_nonblocking(true)?;
            net.reactor.watch(&socket, Token::UdpPort(self.ports.len() as u32))?;
            let addr = socket.local_addr()?;
            Ok((socket, addr))
        };
        let (socket, addr) = open().map_err(|source| NetError::Listen {
            addr: forward.host,
            forward: forward.to_string(),
            source,
        })?;
        self.ports.push(Port { socket, guest, queued: false });
        Ok(addr)
    }

    /// Forgets the guest's flows; forwarded ports stay open.
    pub(super) fn reset(&mut self, net: &mut Net) {
        for id in self.flows.ids() {
            self.remove(net, id);
        }
        for index in 0..self.ports.len() {
            self.ports[index].queued = false;
            // Its socket may hold datagrams of which the event has been reported.
            self.on_port_event(net, index);
        }
    }

    /// A datagram of the guest's.
    pub(super) fn on_guest_packet(&mut self, net: &mut Net, header: &IpRepr, payload: &[u8]) {
        let Ok(datagram) = UdpPacket::new_checked(payload) else { return };
        let key = FlowKey::new(header, datagram.src_port(), datagram.dst_port());
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => match self.open(net, key) {
                Ok(Some(id)) => id,
                Ok(None) => return,
                Err(reason) => return net.send_unreachable(header, payload, reason),
            },
        };
        if let Some(reason) = self.send_to_host(net, id, datagram.payload()) {
            net.send_unreachable(header, payload, reason);
        }
    }

    fn open(&mut self, net: &mut Net, key: FlowKey) -> Result<Option<SlotId>, Unreachable> {
        let (target, dns) = match net.lan.route(key.remote) {
            Route::Discard => return Ok(None),
            Route::Unreachable if net.lan.is_ours(key.remote.ip()) => {
                return Err(Unreachable::Port);
            }
            Route::Unreachable => return Err(Unreachable::Host),
            Route::Host(target) => (target, None),
            Route::Resolver => match net.resolvers.server(0, net.now) {
                Some(server) => (server, Some(DnsTurn::default())),
                None => return Err(Unreachable::Port),
            },
        };
        self.make_room(net);
        match open_connected(target) {
            Ok(socket) => Ok(self.insert(net, key, Via::Own { socket, dns })),
            // Out of descriptors, say: the datagram is lost, which UDP allows.
            Err(error) => unreachable_reason(&error).map_or(Ok(None), Err),
        }
    }

    fn insert(&mut self, net: &mut Net, key: FlowKey, via: Via) -> Option<SlotId> {
        let flow = Flow { key, via, queued: false, last_used: net.now, alarm: Alarm::default() };
        let id = self.flows.insert_with(|_| flow)?;
        let flow = self.flows.get_mut(id)?;
        match &flow.via {
            Via::Own { socket, .. } => {
                if net.reactor.watch(socket, Token::Udp(id)).is_err() {
                    self.flows.remove(id);
                    return None;
                }
            }
            Via::Port { index, peer } => {
                self.by_peer.insert((*index, *peer), id);
            }
        }
        let deadline = net.now + flow.lifetime();
        net.reactor.arm(&mut flow.alarm, Token::Udp(id), deadline, net.now);
        self.by_key.insert(key, id);
        Some(id)
    }

    fn remove(&mut self, net: &mut Net, id: SlotId) {
        if let Some(mut flow) = self.flows.remove(id) {
            net.reactor.disarm(&mut flow.alarm, Token::Udp(id));
            self.by_key.remove(&flow.key);
            if let Via::Port { index, peer } = flow.via {
                self.by_peer.remove(&(index, peer));
            }
        }
    }

    /// A full table loses the flow that has been silent for longest.
    fn make_room(&mut self, net: &mut Net) {
        if self.flows.is_full() {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last_used).map(|(id, _)| id);
            if let Some(id) = oldest {
                self.remove(net, id);
            }
        }
    }

    fn send_to_host(&mut self, net: &mut Net, id: SlotId, data: &[u8]) -> Option<Unreachable> {
        let flow = self.flows.get_mut(id)?;
        flow.last_used = net.now;
        let result = match &mut flow.via {
            Via::Own { socket, dns } => {
                if let Some(turn) = dns {
                    let waiting = turn.unanswered.get_or_insert(net.now);
                    if net.now.saturating_duration_since(*waiting) > DNS_PATIENCE {
                        next_server(net, socket, turn);
                        turn.unanswered = Some(net.now);
                    }
                }
                match socket.send(data) {
                    // The refusal of an earlier datagram; this one has not been tried yet.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => socket.send(data),
                    result => result,
                }
            }
            Via::Port { index, peer } => match self.ports.get(*index) {
                Some(port) => port.socket.send_to(data, *peer),
                None => return None,
            },
        };
        result.err().as_ref().and_then(unreachable_reason)
    }

    pub(super) fn on_event(&mut self, net: &mut Net, id: SlotId, readiness: Readiness) {
        if let Some(flow) = self.flows.get_mut(id)
            && readiness.readable
            && !flow.queued
        {
            flow.queued = true;
            net.ready.push_back(Token::Udp(id));
        }
    }

    pub(super) fn on_port_event(&mut self, net: &mut Net, index: usize) {
        if let Some(port) = self.ports.get_mut(index)
            && !port.queued
        {
            port.queued = true;
            net.ready.push_back(Token::UdpPort(index as u32));
        }
    }

    pub(super) fn on_alarm(&mut self, net: &mut Net, id: SlotId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.alarm.fired();
        let deadline = flow.last_used + flow.lifetime();
        if deadline <= net.now {
            self.remove(net, id);
        } else {
            net.reactor.arm(&mut flow.alarm, Token::Udp(id), deadline, net.now);
        }
    }

    /// Fetches one datagram for the guest. False when there are no more for now.
    pub(super) fn pull(&mut self, net: &mut Net, id: SlotId) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        let Via::Own { socket, dns } = &mut flow.via else { return false };
        match socket.recv(&mut self.scratch) {
            Ok(len) => {
                flow.last_used = net.now;
                if let Some(turn) = dns {
                    turn.unanswered = None;
                }
                net.send_udp(flow.key.remote, flow.key.guest, &self.scratch[..len]);
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error) => {
                if let Some(reason) = unreachable_reason(&error) {
                    if let Some(turn) = dns {
                        next_server(net, socket, turn);
                    }
                    report_unreachable(net, flow.key, reason);
                    return true;
                }
                flow.queued = false;
                false
            }
        }
    }

    /// Fetches one datagram that came to a forwarded port. False when there are no more for now.
    pub(super) fn pull_port(&mut self, net: &mut Net, index: usize) -> bool {
        let Some(port) = self.ports.get_mut(index) else { return false };
        match port.socket.recv_from(&mut self.scratch) {
            Ok((len, peer)) => {
                let guest = port.guest;
                if let Some(remote) = self.peer_flow(net, index, guest, peer) {
                    request_neighbor(net, guest.ip());
                    net.send_udp(remote, guest, &self.scratch[..len]);
                }
                true
            }
            // On an unconnected socket these are no errors of the socket itself.
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionRefused) => {
                true
            }
            Err(_) => {
                port.queued = false;
                false
            }
        }
    }

    /// The address by which the guest knows the peer of a forwarded port.
    fn peer_flow(
        &mut self,
        net: &mut Net,
        index: usize,
        guest: SocketAddr,
        peer: SocketAddr,
    ) -> Option<SocketAddr> {
        if let Some(&id) = self.by_peer.get(&(index, peer)) {
            let flow = self.flows.get_mut(id)?;
            flow.last_used = net.now;
            return Some(flow.key.remote);
        }
        self.make_room(net);
        let key = free_key(guest, net.lan.visible_peer(peer), net.lan.gateway, |key| {
            !self.by_key.contains_key(key)
        })?;
        self.insert(net, key, Via::Port { index, peer })?;
        Some(key.remote)
    }
}

/// A flow from `remote` to the guest that does not clash with another: if it does, the gateway stands in
/// for the remote with a port of its own.
pub(super) fn free_key(
    guest: SocketAddr,
    remote: SocketAddr,
    gateway: Ipv4Addr,
    is_free: impl Fn(&FlowKey) -> bool,
) -> Option<FlowKey> {
    let stand_ins = (FIRST_EPHEMERAL_PORT..=u16::MAX).map(|port| SocketAddr::new(gateway.into(), port));
    std::iter::once(remote).chain(stand_ins).map(|remote| FlowKey { guest, remote }).find(is_free)
}

fn next_server(net: &mut Net, socket: &UdpSocket, turn: &mut DnsTurn) {
    turn.attempt += 1;
    if let Some(server) = net.resolvers.server(turn.attempt, net.now) {
        // A server of the other address family cannot be reached from this socket; a later turn or the
        // guest's next flow gets around it.
        let _ = socket.connect(server);
    }
}

/// Asks who has the guest's address unless that is known.
pub(super) fn request_neighbor(net: &mut Net, guest: IpAddr) {
    if let IpAddr::V4(addr) = guest
        && net.lan.neighbor(guest).is_none()
    {
        net.send_arp(ArpOperation::Request, net.lan.gateway, EthernetAddress([0; 6]), addr);
    }
}

/// Reports an error that arrived after the datagram that caused it: of that, only the ports are known.
fn report_unreachable(net: &mut Net, key: FlowKey, reason: Unreachable) {
    let (src, dst) = (key.guest.ip().into(), key.remote.ip().into());
    let header = IpRepr::new(src, dst, IpProtocol::Udp, UDP_HEADER, HOP_LIMIT);
    if let Some(quote) = udp_payload(key.guest, key.remote, &[]) {
        net.send_unreachable(&header, &quote, reason);
    }
}
