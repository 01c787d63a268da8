//! A guest without a guest: a TCP/IP stack plugged into a backend the way a network card is.

// Each test binary uses its part of it.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use plinth_net::{
    FrameChecksum, FrameMeta, GsoKind, MAX_FRAME, NetBackend, Offloads, SendOutcome, UserNet, UserNetConfig,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address, Ipv6Address};

pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const GUEST_IP: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
pub const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
pub const DNS: Ipv4Address = Ipv4Address::new(10, 0, 2, 3);

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

pub const TSO: Offloads = Offloads { checksum: true, tso4: true, tso6: true };

pub const GUEST_IP6: Ipv6Address = Ipv6Address::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);
pub const GATEWAY6: Ipv6Address = Ipv6Address::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);

/// The queues of a card.
pub struct Nic {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    mtu: usize,
    offloads: Offloads,
    /// Frames that the card does not take: what a guest without buffers looks like.
    pub stalled: bool,
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Nic {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Rx(frame), Tx(&mut self.tx)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        (self.tx.len() < 64).then_some(Tx(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + ETHERNET;
        if self.offloads.checksum {
            caps.checksum.tcp = Checksum::None;
        }
        if self.offloads.tso4 {
            caps.segmentation.tcpv4 = std::num::NonZeroUsize::new(MAX_FRAME);
        }
        caps
    }
}

pub struct Guest {
    pub net: UserNet,
    pub nic: Nic,
    pub iface: Interface,
    pub sockets: SocketSet<'static>,
    /// Frames for the guest that came with a segment size.
    pub gso_frames: usize,
    /// Times that the backend's descriptor ended a wait.
    pub wakes: usize,
    epoch: Instant,
    buf: Vec<u8>,
    /// Whether to check each frame as a careful driver would.
    pub checked: bool,
}

impl Guest {
    /// A guest whose address is set by hand.
    pub fn new(config: &UserNetConfig, offloads: Offloads) -> Self {
        let mut guest = Self::unconfigured(config, offloads);
        guest.configure();
        guest
    }

    pub fn unconfigured(config: &UserNetConfig, offloads: Offloads) -> Self {
        let mut net = UserNet::new(config).unwrap();
        net.set_offloads(offloads);
        let mtu = usize::from(config.mtu);
        let mut nic = Nic { rx: VecDeque::new(), tx: VecDeque::new(), mtu, offloads, stalled: false };
        let mut iface_config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        iface_config.random_seed = 7;
        let epoch = Instant::now();
        let iface = Interface::new(iface_config, &mut nic, smoltcp::time::Instant::ZERO);
        let sockets = SocketSet::new(Vec::new());
        let buf = vec![0; MAX_FRAME];
        Self { net, nic, iface, sockets, gso_frames: 0, wakes: 0, epoch, buf, checked: true }
    }

    pub fn configure(&mut self) {
        self.iface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(GUEST_IP.into(), 24)).unwrap();
            addrs.push(IpCidr::new(GUEST_IP6.into(), 64)).unwrap();
        });
        self.iface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        self.iface.routes_mut().add_default_ipv6_route(GATEWAY6).unwrap();
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.epoch.elapsed().as_micros() as i64)
    }

    /// One round of a card's worker and of the guest.
    pub fn step(&mut self, patience: Duration) {
        let now = self.now();
        let changed =
            self.iface.poll(now, &mut self.nic, &mut self.sockets) == PollResult::SocketStateChanged;
        while let Some(frame) = self.nic.tx.pop_front() {
            assert_eq!(self.net.send(&frame, &FrameMeta::default()), SendOutcome::Taken);
        }
        self.net.process();
        let mut busy = changed;
        while !self.nic.stalled && self.nic.rx.len() < 64 {
            let Some(frame) = self.net.recv(&mut self.buf) else { break };
            if self.checked {
                self.check(&self.buf[..frame.len], &frame.meta);
            }
            self.gso_frames += usize::from(frame.meta.gso.is_some());
            self.nic.rx.push_back(self.buf[..frame.len].to_vec());
            busy = true;
        }
        if !busy {
            let delay = self
                .iface
                .poll_delay(now, &self.sockets)
                .map_or(patience, |delay| patience.min(Duration::from_micros(delay.total_micros())));
            self.wait(delay);
        }
    }

    /// Waits for the backend; true if it wants attention.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let fd = self.net.poll_fd();
        let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0;
        self.wakes += usize::from(ready);
        ready
    }

    /// Frame length and metadata must agree with each other and with the headers.
    fn check(&self, frame: &[u8], meta: &FrameMeta) {
        let packet = &frame[ETHERNET..];
        let (header, total, protocol) = match frame[12..14] {
            [0x08, 0x00] => {
                assert_eq!(sum(&packet[..IPV4], 0), 0xffff, "IPv4 header checksum");
                if packet[6] & 0x3f != 0 || packet[7] != 0 {
                    return;
                }
                (IPV4, usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet[9])
            }
            [0x86, 0xdd] => (IPV6, IPV6 + usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet[6]),
            _ => return assert_eq!(*meta, FrameMeta::default()),
        };
        assert_eq!(packet.len(), total);
        // Source and destination end the header of either family. ICMP has no pseudo-header, ICMPv6 has.
        let addresses = if header == IPV4 { 12..IPV4 } else { 8..IPV6 };
        let pseudo = match protocol {
            1 => 0,
            _ => sum(&packet[addresses], u32::from(protocol) + (total - header) as u32),
        };
        let payload = &packet[header..];
        match meta.checksum {
            FrameChecksum::Complete => assert_eq!(sum(payload, pseudo.into()), 0xffff, "checksum"),
            FrameChecksum::Partial { start, offset } => {
                assert!(self.nic.offloads.checksum);
                assert_eq!(usize::from(start), ETHERNET + header);
                let at = usize::from(offset);
                assert_eq!(u16::from_be_bytes([payload[at], payload[at + 1]]), pseudo, "partial checksum");
            }
            FrameChecksum::Verified => panic!("the user network knows no such frame"),
        }
        match meta.gso {
            None => assert!(total <= self.nic.mtu),
            Some(gso) => {
                assert!(self.nic.offloads.tso4 && header == IPV4 && gso.kind == GsoKind::TcpV4);
                let headers = header + usize::from(payload[12] >> 4) * 4;
                assert_eq!(usize::from(gso.header_len), ETHERNET + headers);
                assert_eq!(usize::from(gso.segment_size), self.nic.mtu - headers);
            }
        }
    }

    /// Runs until `done`, and fails if that takes unreasonably long.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "no {what} after a minute");
            self.step(Duration::from_millis(50));
        }
    }

    /// Runs for a while.
    pub fn idle(&mut self, duration: Duration) {
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            self.step(deadline.saturating_duration_since(Instant::now()));
        }
    }

    pub fn add_tcp(&mut self, buffer: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Starts a connection; it is not established yet.
    pub fn connect<A: Into<IpAddress>>(&mut self, remote: (A, u16), local_port: u16) -> SocketHandle {
        let handle = self.add_tcp(1 << 18);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.iface.context(), remote, local_port).unwrap();
        handle
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Hands a frame to the backend, past the guest's stack, and returns what it answers.
    pub fn raw(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(self.net.send(frame, &FrameMeta::default()), SendOutcome::Taken);
        self.net.process();
        let mut frames = Vec::new();
        while let Some(frame) = self.net.recv(&mut self.buf) {
            frames.push(self.buf[..frame.len].to_vec());
        }
        frames
    }
}

/// The Internet checksum (RFC 1071) without the final complement.
fn sum(data: &[u8], start: u32) -> u16 {
    let mut sum = u64::from(start);
    for pair in data.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Byte `index` of a stream in which a lost, doubled or swapped segment shows.
pub fn pattern(index: usize) -> u8 {
    (index ^ (index >> 8) ^ (index >> 16)) as u8
}
