//! TCP: the guest's connections end here and are continued by sockets of the host.
//!
//! A connection is accepted from the guest only once the host's half is connected, so that the guest
//! sees a refusal as one. The windows that both sides announce are bound to buffers of fixed size, which
//! makes each side wait for the other.

mod flow;
mod stack;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use self::flow::{Flow, Phase, Verdict};
use self::stack::{Sent, Stack, StackConfig};
use super::FlowKey;
use super::lan::Route;
use super::net::{ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER, Net, ethertype, parse_ip};
use super::reactor::{Alarm, Readiness, Token};
use super::slab::{Slab, SlotId};
use super::udp::{free_key, request_neighbor, unreachable_reason};
use crate::{FrameChecksum, FrameMeta, Gso, GsoKind, NetError, PortForward, RecvFrame};

/// How long a connection from a forwarded port waits for a guest that is not there yet.
const GUEST_PATIENCE: Duration = Duration::from_secs(60);
const ARP_INTERVAL: Duration = Duration::from_secs(1);
/// When to try again to accept if the host has no descriptors or the table no room.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Shortest time after which a flow is looked at again that wanted it at once.
const MIN_DELAY: Duration = Duration::from_millis(10);
/// Offset of the checksum in a TCP header (RFC 9293, section 3.1).
const TCP_CHECKSUM: u16 = 16;
/// Room for a packet without payload: what a stack answers with at once.
const REPLY_ROOM: usize = 128;

/// Buffer bytes of a new flow, towards the host and towards the guest, while fewer than so many exist.
/// Together they bound the memory of a full table to 88 MiB, of which only what is used is resident.
const BUFFERS: [(usize, usize, usize); 3] =
    [(32, 512 << 10, 512 << 10), (128, 128 << 10, 256 << 10), (usize::MAX, 32 << 10, 64 << 10)];

struct Listener {
    socket: TcpListener,
    guest: SocketAddr,
    alarm: Alarm,
}

pub(super) struct TcpNat {
    flows: Slab<Flow>,
    by_key: HashMap<FlowKey, SlotId>,
    /// Flows to be looked at in the next [`process`](Self::process).
    dirty: Vec<SlotId>,
    unresolved: Vec<SlotId>,
    unresolved_alarm: Alarm,
    listeners: Vec<Listener>,
}

fn connect_nonblocking(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let stream = TcpStream::from(socket);
    tune(&stream)?;
    Ok(stream)
}

/// The guest has already decided what makes a segment, and a silent peer is to be noticed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

impl TcpNat {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            flows: Slab::new(limit),
            by_key: HashMap::new(),
            dirty: Vec::new(),
            unresolved: Vec::new(),
            unresolved_alarm: Alarm::default(),
            listeners: Vec::new(),
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
            let socket = TcpListener::bind(forward.host)?;
            socket.set_nonblocking(true)?;
            net.reactor.watch(&socket, Token::Listener(self.listeners.len() as u32))?;
            let addr = socket.local_addr()?;
            Ok((socket, addr))
        };
        let (socket, addr) = open().map_err(|source| NetError::Listen {
            addr: forward.host,
            forward: forward.to_string(),
            source,
        })?;
        self.listeners.push(Listener { socket, guest, alarm: Alarm::default() });
        Ok(addr)
    }

    /// Breaks the guest's connections. Forwarded ports stay open, and who waits there for the guest goes on
    /// waiting.
    pub(super) fn reset(&mut self, net: &mut Net) {
        for id in self.flows.ids() {
            if self.flows.get_mut(id).is_some_and(|flow| !matches!(flow.phase, Phase::Unresolved)) {
                self.remove(net, id, Verdict::Broken);
            }
        }
    }

    /// A TCP packet of the guest's; `packet` is the whole IP packet.
    pub(super) fn on_guest_packet(&mut self, net: &mut Net, packet: &[u8], header: &IpRepr, segment: &[u8]) {
        let Ok(tcp) = TcpPacket::new_checked(segment) else { return };
        let key = FlowKey::new(header, tcp.src_port(), tcp.dst_port());
        let starts = tcp.syn() && !tcp.ack() && !tcp.rst();
        if starts
            && let Some(&id) = self.by_key.get(&key)
            && self.flows.get_mut(id).is_some_and(Flow::is_stale)
        {
            self.remove(net, id, Verdict::Broken);
        }
        let Some(&id) = self.by_key.get(&key) else {
            if starts {
                self.open(net, key, packet, header, segment);
            } else if !tcp.rst() {
                send_reset(net, header, &tcp);
            }
            return;
        };
        let Some(flow) = self.flows.get_mut(id) else { return };
        match &mut flow.phase {
            Phase::Connecting { .. } if tcp.rst() => self.remove(net, id, Verdict::Broken),
            // A guest that starts anew has another initial sequence number.
            Phase::Connecting { syn } if tcp.syn() => *syn = packet.to_vec(),
            Phase::Connecting { .. } | Phase::Unresolved | Phase::Draining { .. } => {}
            Phase::Open(_) => {
                let mut frame = vec![0; ETHERNET_HEADER + REPLY_ROOM];
                if let Some(sent) = flow.on_guest_packet(net, packet, &tcp, &mut frame[ETHERNET_HEADER..]) {
                    push_reply(net, key, frame, &sent);
                }
                self.mark(id);
            }
        }
    }

    fn open(&mut self, net: &mut Net, key: FlowKey, packet: &[u8], header: &IpRepr, segment: &[u8]) {
        let target = match net.lan.route(key.remote) {
            Route::Discard => return,
            Route::Unreachable => None,
            Route::Host(target) => Some(target),
            Route::Resolver => net.resolvers.server(0, net.now),
        };
        let result = match target {
            _ if self.flows.is_full() => Err(ErrorKind::ConnectionRefused.into()),
            Some(target) => connect_nonblocking(target),
            None if net.lan.is_ours(key.remote.ip()) => Err(ErrorKind::ConnectionRefused.into()),
            None => Err(ErrorKind::HostUnreachable.into()),
        };
        match result {
            Ok(host) => {
                self.insert(net, key, host, Phase::Connecting { syn: packet.to_vec() });
            }
            Err(error) => refuse(net, header, segment, &error),
        }
    }

    fn insert(&mut self, net: &mut Net, key: FlowKey, host: TcpStream, phase: Phase) -> Option<SlotId> {
        let flow = Flow::new(key, host, phase, net.now);
        let id = self.flows.insert_with(|_| flow)?;
        let flow = self.flows.get_mut(id)?;
        if net.reactor.watch(&flow.host, Token::Tcp(id)).is_err() {
            self.flows.remove(id);
            return None;
        }
        self.by_key.insert(key, id);
        Some(id)
    }

    fn remove(&mut self, net: &mut Net, id: SlotId, verdict: Verdict) {
        let Some(mut flow) = self.flows.remove(id) else { return };
        net.reactor.disarm(&mut flow.alarm, Token::Tcp(id));
        self.by_key.remove(&flow.key);
        if verdict == Verdict::Broken {
            // Closing then resets the host's connection, as the guest's was. Best effort.
            let _ = sockopt::set_socket_linger(&flow.host, Some(Duration::ZERO));
        }
    }

    fn mark(&mut self, id: SlotId) {
        if let Some(flow) = self.flows.get_mut(id)
            && !flow.dirty
        {
            flow.dirty = true;
            self.dirty.push(id);
        }
    }

    pub(super) fn on_event(&mut self, id: SlotId, readiness: Readiness) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.note(readiness);
            self.mark(id);
        }
    }

    pub(super) fn on_alarm(&mut self, id: SlotId) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.alarm.fired();
            self.mark(id);
        }
    }

    /// Accepts connections to a forwarded port as long as there is room.
    pub(super) fn accept(&mut self, net: &mut Net, index: usize) {
        loop {
            let Some(listener) = self.listeners.get_mut(index) else { return };
            let guest = listener.guest;
            let accepted = if self.flows.is_full() {
                Err(ErrorKind::StorageFull.into())
            } else {
                listener.socket.accept()
            };
            match accepted {
                Ok((host, peer)) => self.accepted(net, guest, host, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(_) => {
                    let token = Token::Listener(index as u32);
                    let at = net.now + ACCEPT_RETRY;
                    return net.reactor.arm(&mut listener.alarm, token, at, net.now);
                }
            }
        }
    }

    pub(super) fn on_listener_alarm(&mut self, net: &mut Net, index: usize) {
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.alarm.fired();
            self.accept(net, index);
        }
    }

    fn accepted(&mut self, net: &mut Net, guest: SocketAddr, host: TcpStream, peer: SocketAddr) {
        if host.set_nonblocking(true).and_then(|()| tune(&host)).is_err() {
            return;
        }
        let visible = net.lan.visible_peer(peer);
        let is_free = |key: &FlowKey| !self.by_key.contains_key(key);
        let Some(key) = free_key(guest, visible, net.lan.gateway, is_free) else { return };
        let Some(id) = self.insert(net, key, host, Phase::Unresolved) else { return };
        if net.lan.neighbor(guest.ip()).is_some() {
            self.call_guest(net, id);
        } else {
            request_neighbor(net, guest.ip());
            self.unresolved.push(id);
            let at = net.now + ARP_INTERVAL;
            net.reactor.arm(&mut self.unresolved_alarm, Token::Unresolved, at, net.now);
        }
    }

    /// Starts the guest's half of a connection that came to a forwarded port.
    fn call_guest(&mut self, net: &mut Net, id: SlotId) {
        let live = self.flows.len();
        let Some(flow) = self.flows.get_mut(id) else { return };
        let config = stack_config(net, None, live);
        match Stack::connect(flow.key.remote, flow.key.guest, &config, net.stack_now()) {
            Some(stack) => {
                flow.phase = Phase::Open(Box::new(stack));
                self.mark(id);
            }
            None => self.remove(net, id, Verdict::Broken),
        }
    }

    /// A guest has shown its hardware address.
    pub(super) fn on_neighbor(&mut self, net: &mut Net) {
        for id in std::mem::take(&mut self.unresolved) {
            match self.flows.get_mut(id) {
                Some(flow) if net.lan.neighbor(flow.key.guest.ip()).is_some() => self.call_guest(net, id),
                Some(_) => self.unresolved.push(id),
                None => {}
            }
        }
    }

    /// Asks again for guests that have not shown up, and gives up on those that never will.
    pub(super) fn on_unresolved_alarm(&mut self, net: &mut Net) {
        self.unresolved_alarm.fired();
        let mut asked = Vec::new();
        for id in std::mem::take(&mut self.unresolved) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            let guest = flow.key.guest.ip();
            if net.now.saturating_duration_since(flow.since) >= GUEST_PATIENCE {
                self.remove(net, id, Verdict::Broken);
                continue;
            }
            if !asked.contains(&guest) {
                request_neighbor(net, guest);
                asked.push(guest);
            }
            self.unresolved.push(id);
        }
        if !self.unresolved.is_empty() {
            let at = net.now + ARP_INTERVAL;
            net.reactor.arm(&mut self.unresolved_alarm, Token::Unresolved, at, net.now);
        }
    }

    /// Looks at each flow to which something happened.
    pub(super) fn process(&mut self, net: &mut Net) {
        // A flow that got connected is appended once more.
        let mut index = 0;
        while let Some(&id) = self.dirty.get(index) {
            index += 1;
            self.advance(net, id);
        }
        self.dirty.clear();
    }

    fn advance(&mut self, net: &mut Net, id: SlotId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.dirty = false;
        if matches!(flow.phase, Phase::Connecting { .. }) {
            if !flow.writable {
                return;
            }
            return self.connected(net, id);
        }
        match flow.push_to_host(net.now) {
            Verdict::Keep => {
                if !matches!(flow.phase, Phase::Open(_)) {
                    self.rearm(net, id);
                } else if !flow.queued {
                    flow.queued = true;
                    net.ready.push_back(Token::Tcp(id));
                }
            }
            verdict => self.remove(net, id, verdict),
        }
    }

    /// The host's half is connected, or has failed to.
    fn connected(&mut self, net: &mut Net, id: SlotId) {
        let live = self.flows.len();
        let Some(flow) = self.flows.get_mut(id) else { return };
        let result = flow.connect_result();
        let Phase::Connecting { syn } = &mut flow.phase else { return };
        let syn = std::mem::take(syn);
        let Some((header, payload)) = parse_ip(&syn) else { return };
        if let Err(error) = result {
            refuse(net, &header, payload, &error);
            return self.remove(net, id, Verdict::Broken);
        }
        let Ok(segment) = TcpPacket::new_checked(payload) else { return };
        let config = stack_config(net, max_segment_size(&header, payload), live);
        let Some(stack) = Stack::listen(flow.key.remote, &config, net.stack_now()) else {
            return self.remove(net, id, Verdict::Broken);
        };
        flow.phase = Phase::Open(Box::new(stack));
        let mut frame = vec![0; ETHERNET_HEADER + REPLY_ROOM];
        if let Some(sent) = flow.on_guest_packet(net, &syn, &segment, &mut frame[ETHERNET_HEADER..]) {
            push_reply(net, flow.key, frame, &sent);
        }
        self.mark(id);
    }

    /// Writes one frame of the flow for the guest; `None` when it has none for now.
    pub(super) fn pull(&mut self, net: &mut Net, id: SlotId, buf: &mut [u8]) -> Option<RecvFrame> {
        let flow = self.flows.get_mut(id)?;
        if let Some(sent) = flow.pull(net, buf) {
            return finish_frame(net, flow.key, buf, &sent);
        }
        flow.queued = false;
        match flow.settle(net.now) {
            Verdict::Keep => self.rearm(net, id),
            verdict => self.remove(net, id, verdict),
        }
        None
    }

    fn rearm(&mut self, net: &mut Net, id: SlotId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let at = match &mut flow.phase {
            Phase::Connecting { .. } | Phase::Unresolved => None,
            Phase::Open(stack) => stack.poll_at(net.stack_now()).map(|at| net.host_time(at)),
            Phase::Draining { deadline, .. } => Some(*deadline),
        };
        if let Some(at) = at {
            net.reactor.arm(&mut flow.alarm, Token::Tcp(id), at.max(net.now + MIN_DELAY), net.now);
        }
    }
}

fn stack_config(net: &Net, guest_mss: Option<u16>, live: usize) -> StackConfig {
    let buffers = BUFFERS.iter().find(|buffers| live <= buffers.0).unwrap_or(&BUFFERS[BUFFERS.len() - 1]);
    StackConfig {
        mtu: net.lan.mtu,
        offloads: net.offloads,
        guest_mss,
        rx_buffer: buffers.1,
        tx_buffer: buffers.2,
        seed: random_seed(),
    }
}

/// Unpredictable to guests other than the one whose connection it is for, and there are none: a failure
/// of the host's generator is of no consequence.
fn random_seed() -> u64 {
    let mut seed = [0; 8];
    let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(seed)
}

fn max_segment_size(header: &IpRepr, segment: &[u8]) -> Option<u16> {
    let packet = TcpPacket::new_checked(segment).ok()?;
    let caps = ChecksumCapabilities::ignored();
    TcpRepr::parse(&packet, &header.src_addr(), &header.dst_addr(), &caps).ok()?.max_seg_size
}

/// Tells the guest that its connection cannot be made, by the error that its socket would have got.
fn refuse(net: &mut Net, header: &IpRepr, segment: &[u8], error: &io::Error) {
    match unreachable_reason(error) {
        Some(reason) if error.kind() != ErrorKind::ConnectionRefused => {
            net.send_unreachable(header, segment, reason);
        }
        // The host has given up after long silence: so will the guest.
        None if error.kind() == ErrorKind::TimedOut => {}
        _ => {
            if let Ok(tcp) = TcpPacket::new_checked(segment) {
                send_reset(net, header, &tcp);
            }
        }
    }
}

/// Answers a segment that belongs to no connection (RFC 9293, section 3.10.7.1).
fn send_reset(net: &mut Net, header: &IpRepr, tcp: &TcpPacket<&[u8]>) {
    let (seq_number, ack_number) = if tcp.ack() {
        (tcp.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(tcp.seq_number() + tcp.segment_len()))
    };
    let reset = TcpRepr {
        src_port: tcp.dst_port(),
        dst_port: tcp.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut segment = vec![0; reset.buffer_len()];
    reset.emit(
        &mut TcpPacket::new_unchecked(&mut segment[..]),
        &header.dst_addr(),
        &header.src_addr(),
        &ChecksumCapabilities::default(),
    );
    net.send_ip(header.dst_addr().into(), header.src_addr().into(), IpProtocol::Tcp, &segment);
}

/// Queues a stack's immediate answer, whose checksum is made complete first: queued frames are.
fn push_reply(net: &mut Net, key: FlowKey, mut frame: Vec<u8>, sent: &Sent) {
    let Some(mac) = net.lan.neighbor(key.guest.ip()) else { return };
    frame.truncate(ETHERNET_HEADER + sent.len);
    net.emit_ethernet(&mut frame, mac, ethertype(key.guest.ip()));
    if let Some(segment) = frame.get_mut(segment_start(key)..)
        && TcpPacket::new_checked(&*segment).is_ok()
    {
        TcpPacket::new_unchecked(segment).fill_checksum(&key.remote.ip().into(), &key.guest.ip().into());
        net.push_frame(frame);
    }
}

/// Where the TCP header starts in a frame that a stack wrote: it emits no options or extension headers.
fn segment_start(key: FlowKey) -> usize {
    ETHERNET_HEADER + if key.guest.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// Puts the Ethernet header in front of a packet that a stack wrote to `buf`, and the sum of the
/// pseudo-header into its checksum field if the guest completes checksums.
fn finish_frame(net: &Net, key: FlowKey, buf: &mut [u8], sent: &Sent) -> Option<RecvFrame> {
    let mac = net.lan.neighbor(key.guest.ip())?;
    net.emit_ethernet(buf, mac, ethertype(key.guest.ip()));
    let len = ETHERNET_HEADER + sent.len;
    let mut meta = FrameMeta::default();
    if net.offloads.checksum {
        let start = segment_start(key);
        let segment = buf.get_mut(start..len)?;
        let (src, dst) = (key.remote.ip().into(), key.guest.ip().into());
        let pseudo =
            smoltcp::wire::checksum::pseudo_header(&src, &dst, IpProtocol::Tcp, segment.len() as u32);
        let mut tcp = TcpPacket::new_unchecked(segment);
        tcp.set_checksum(pseudo);
        let header_len = start as u16 + u16::from(tcp.header_len());
        meta.checksum = FrameChecksum::Partial { start: start as u16, offset: TCP_CHECKSUM };
        let kind = GsoKind::TcpV4;
        meta.gso = sent.segment_size.map(|segment_size| Gso { kind, segment_size, header_len });
    }
    Some(RecvFrame { len, meta })
}
