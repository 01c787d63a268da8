//! One TCP endpoint towards the guest: an interface of the TCP/IP library with a single socket.
//!
//! The library looks for a packet's socket, and for sockets with something to send, one by one. With an
//! interface for each flow both are one step, however many flows there are; which flow a packet belongs
//! to is looked up in a hash table before.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint, TcpPacket, TcpSeqNumber,
};

use crate::Offloads;

/// The guest must complete the handshake within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// A guest that has not answered for this long is gone. Generous, since a machine may be paused.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(7200);
/// How often an idle guest is asked whether it still knows the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(600);

/// Bytes of the headers that the library emits, which have no options.
const TCP_HEADER: usize = 20;
const IPV4_HEADERS: usize = 20 + TCP_HEADER;
const IPV6_HEADERS: usize = 40 + TCP_HEADER;
/// What IPv4's length field can tell.
const MAX_PACKET: usize = 65_535;

/// Layout of a new endpoint.
pub(super) struct StackConfig {
    /// Largest IP packet that the guest takes unsegmented, in bytes.
    pub(super) mtu: u16,
    /// What the guest's driver accepts.
    pub(super) offloads: Offloads,
    /// Largest segment payload that the guest takes, if it has told, in bytes.
    pub(super) guest_mss: Option<u16>,
    /// Bytes that wait for the host.
    pub(super) rx_buffer: usize,
    /// Bytes that wait for the guest or its acknowledgment.
    pub(super) tx_buffer: usize,
    /// For the initial sequence number.
    pub(super) seed: u64,
}

/// An IP packet that an endpoint has written.
pub(super) struct Sent {
    pub(super) len: usize,
    /// Payload bytes of each segment, if the packet is to be segmented.
    pub(super) segment_size: Option<u16>,
}

pub(super) struct Stack {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    caps: DeviceCapabilities,
    /// The sequence number after the last for which the receive buffer has room, once one is told to the
    /// guest.
    receive_edge: Option<TcpSeqNumber>,
}

fn capabilities(config: &StackConfig) -> DeviceCapabilities {
    let mut caps = DeviceCapabilities::default();
    caps.medium = Medium::Ip;
    caps.max_transmission_unit = usize::from(config.mtu);
    // Nothing between the guest's memory and ours corrupts packets, so none is verified.
    caps.checksum.ipv4 = Checksum::Tx;
    caps.checksum.tcp = if config.offloads.checksum { Checksum::None } else { Checksum::Tx };
    if config.offloads.tso4 {
        // A whole number of segments, so that the guest's network does not see a runt in each.
        let own_mss = usize::from(config.mtu) - IPV4_HEADERS;
        let mss = config.guest_mss.map_or(own_mss, |mss| own_mss.min(usize::from(mss))).max(1);
        let payload = (MAX_PACKET - IPV4_HEADERS) / mss * mss;
        caps.segmentation.tcpv4 = NonZeroUsize::new(payload + IPV4_HEADERS);
    }
    caps
}

impl Stack {
    fn new(local: IpAddress, config: &StackConfig, now: Instant) -> Self {
        let caps = capabilities(config);
        let mut iface_config = Config::new(HardwareAddress::Ip);
        iface_config.random_seed = config.seed;
        let mut link = Link { caps: &caps, rx: None, tx: &mut [], sent: None };
        let mut iface = Interface::new(iface_config, &mut link, now);
        let bits = if matches!(local, IpAddress::Ipv4(_)) { 32 } else { 128 };
        iface.update_ip_addrs(|addrs| {
            // There is room for an address: it is the only one.
            let _ = addrs.push(IpCidr::new(local, bits));
        });
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; config.rx_buffer]),
            SocketBuffer::new(vec![0; config.tx_buffer]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(HANDSHAKE_TIMEOUT));
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self { iface, sockets, handle, caps, receive_edge: None }
    }

    /// An endpoint that awaits the guest's SYN to `local`, which is unicast. `None` if the address is none
    /// that a connection can have.
    pub(super) fn listen(local: SocketAddr, config: &StackConfig, now: Instant) -> Option<Self> {
        let addr = IpAddress::from(local.ip());
        let mut stack = Self::new(addr, config, now);
        let endpoint = IpListenEndpoint { addr: Some(addr), port: local.port() };
        stack.socket().listen(endpoint).ok()?;
        Some(stack)
    }

    /// An endpoint at `local`, which is unicast, that connects to the guest at `remote`.
    pub(super) fn connect(
        local: SocketAddr,
        remote: SocketAddr,
        config: &StackConfig,
        now: Instant,
    ) -> Option<Self> {
        let addr = IpAddress::from(local.ip());
        let mut stack = Self::new(addr, config, now);
        let endpoint = IpEndpoint { addr: remote.ip().into(), port: remote.port() };
        let socket = stack.sockets.get_mut::<Socket<'static>>(stack.handle);
        socket.connect(stack.iface.context(), endpoint, (addr, local.port())).ok()?;
        Some(stack)
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// To be called when the handshake is complete.
    pub(super) fn set_established(&mut self) {
        let socket = self.socket();
        socket.set_timeout(Some(SILENCE_TIMEOUT));
        socket.set_keep_alive(Some(KEEP_ALIVE));
    }

    /// Whether a segment may reach the library, which trusts its peer in places: a segment that goes
    /// beyond the window, or a SYN that crosses ours, would trip its assertions. No guest has a reason
    /// for either.
    pub(super) fn admits(&mut self, segment: &TcpPacket<&[u8]>) -> bool {
        let state = self.socket().state();
        if segment.syn() {
            return if segment.ack() { state == State::SynSent } else { state == State::Listen };
        }
        let payload = segment.payload().len();
        payload == 0 || self.receive_edge.is_some_and(|edge| segment.seq_number() + payload <= edge)
    }

    /// Takes an IP packet from the guest, which [`admits`](Self::admits) its segment; writes the immediate
    /// answer, if there is one, into `reply`.
    pub(super) fn ingress(&mut self, packet: &[u8], reply: &mut [u8], now: Instant) -> Option<Sent> {
        let mut link = Link { caps: &self.caps, rx: Some(packet), tx: &mut *reply, sent: None };
        self.iface.poll_ingress_single(now, &mut link, &mut self.sockets);
        let sent = link.sent?;
        self.note_window(reply);
        Some(sent)
    }

    /// Takes note of the room that a packet of ours, at the start of `packet`, has promised. The buffer's
    /// room, not the packet's window: that is rounded, and scaled or not.
    fn note_window(&mut self, packet: &[u8]) {
        let header_len =
            if packet.first().is_some_and(|byte| byte >> 4 == 4) { IPV4_HEADERS } else { IPV6_HEADERS }
                - TCP_HEADER;
        let Some(Ok(segment)) = packet.get(header_len..).map(TcpPacket::new_checked) else { return };
        if segment.ack() {
            let socket = self.socket();
            let edge = segment.ack_number() + (socket.recv_capacity() - socket.recv_queue());
            if self.receive_edge.is_none_or(|known| known < edge) {
                self.receive_edge = Some(edge);
            }
        }
    }

    /// Writes the next IP packet for the guest into `buf`; `None` when there is nothing to send now.
    pub(super) fn egress(&mut self, buf: &mut [u8], now: Instant) -> Option<Sent> {
        let mut link = Link { caps: &self.caps, rx: None, tx: &mut *buf, sent: None };
        self.iface.poll_egress(now, &mut link, &mut self.sockets);
        let sent = link.sent?;
        self.note_window(buf);
        Some(sent)
    }

    /// When [`egress`](Self::egress) is to be called even if nothing happens.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.iface.poll_at(now, &self.sockets)
    }
}

/// The library's view of the wire during one call: at most one packet in each direction.
struct Link<'a> {
    caps: &'a DeviceCapabilities,
    rx: Option<&'a [u8]>,
    tx: &'a mut [u8],
    sent: Option<Sent>,
}

struct RxPacket<'a>(&'a [u8]);

impl RxToken for RxPacket<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct TxSlot<'a> {
    buf: &'a mut [u8],
    sent: &'a mut Option<Sent>,
    segment_size: Option<u16>,
}

impl TxToken for TxSlot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self.buf.get_mut(..len) {
            Some(buf) => {
                *self.sent = Some(Sent { len, segment_size: self.segment_size });
                f(buf)
            }
            // The library insists on a place to write to; what does not fit is lost.
            None => f(&mut vec![0; len]),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size.map(Into::into);
    }
}

impl Device for Link<'_> {
    type RxToken<'b>
        = RxPacket<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = TxSlot<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(RxPacket<'_>, TxSlot<'_>)> {
        let packet = self.rx.take()?;
        Some((RxPacket(packet), TxSlot { buf: self.tx, sent: &mut self.sent, segment_size: None }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxSlot<'_>> {
        if self.sent.is_some() {
            return None;
        }
        Some(TxSlot { buf: self.tx, sent: &mut self.sent, segment_size: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.caps.clone()
    }
}
