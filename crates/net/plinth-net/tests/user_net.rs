//! The user network as a guest sees it, against real sockets of the host.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{DNS, GATEWAY, GATEWAY6, GUEST_IP, GUEST_MAC, Guest, TSO, pattern};
use plinth_net::{NetBackend, NetError, Offloads, UserNetConfig};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{dhcpv4, icmp, tcp, udp};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr,
    IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, NdiscRepr, UdpPacket,
    UdpRepr,
};

fn listen() -> (TcpListener, u16) {
    listen_at(Ipv4Addr::LOCALHOST.into())
}

fn listen_at(host: IpAddr) -> (TcpListener, u16) {
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn add_udp(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 1 << 16]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    guest.sockets.get_mut::<udp::Socket>(handle).bind(port).unwrap();
    handle
}

/// Runs the guest until the host's socket has a datagram.
fn host_recv(guest: &mut Guest, socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    socket.set_nonblocking(true).unwrap();
    let mut buf = [0; 8192];
    let mut result = None;
    guest.until("datagram", |_| {
        result = socket.recv_from(&mut buf).ok();
        result.is_some()
    });
    let (len, from) = result.unwrap();
    (buf[..len].to_vec(), from)
}

/// Sends a datagram and returns the first that comes back.
fn exchange(
    guest: &mut Guest,
    handle: SocketHandle,
    to: (Ipv4Address, u16),
    data: &[u8],
) -> (Vec<u8>, String) {
    guest.sockets.get_mut::<udp::Socket>(handle).send_slice(data, to).unwrap();
    guest.until("reply", |guest| guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    let (data, meta) = guest.sockets.get_mut::<udp::Socket>(handle).recv().unwrap();
    (data.to_vec(), meta.endpoint.to_string())
}

/// Reads `len` bytes of the pattern in the guest.
fn download(guest: &mut Guest, handle: SocketHandle, len: usize) {
    let mut got = 0;
    guest.until("whole download", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            got += socket
                .recv(|data| {
                    for (offset, &byte) in data.iter().enumerate() {
                        assert_eq!(byte, pattern(got + offset), "at {}", got + offset);
                    }
                    (data.len(), data.len())
                })
                .unwrap();
        }
        got >= len
    });
    assert_eq!(got, len);
}

/// Writes bytes `start..end` of the pattern in the guest.
fn upload(guest: &mut Guest, handle: SocketHandle, start: usize, end: usize) {
    let mut sent = start;
    guest.until("whole upload", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_send() && sent < end {
            sent += socket
                .send(|room| {
                    let count = room.len().min(end - sent);
                    for (offset, byte) in room[..count].iter_mut().enumerate() {
                        *byte = pattern(sent + offset);
                    }
                    (count, count)
                })
                .unwrap();
        }
        sent == end
    });
}

fn write_pattern(stream: &mut TcpStream, len: usize) {
    let data: Vec<u8> = (0..len).map(pattern).collect();
    stream.write_all(&data).unwrap();
}

fn read_pattern(stream: &mut TcpStream, len: usize) {
    let mut data = vec![0; len];
    stream.read_exact(&mut data).unwrap();
    assert!(data.iter().enumerate().all(|(index, &byte)| byte == pattern(index)));
}

#[test]
fn dhcp_configures_the_guest() {
    let config = UserNetConfig { search_domains: Some(vec!["test.example".into()]), ..Default::default() };
    let mut guest = Guest::unconfigured(&config, Offloads::NONE);
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut lease = None;
    guest.until("lease", |guest| {
        if let Some(dhcpv4::Event::Configured(config)) =
            guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll()
        {
            lease = Some((config.address, config.router, config.dns_servers.to_vec(), config.server.address));
        }
        lease.is_some()
    });
    let (address, router, dns, server) = lease.unwrap();
    assert_eq!((address.address(), address.prefix_len()), (GUEST_IP, 24));
    assert_eq!((router, dns, server), (Some(GATEWAY), vec![DNS], GATEWAY));
}

#[test]
fn echo_reaches_the_gateway_through_arp() {
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = guest.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    for remote in [GATEWAY, DNS] {
        let socket = guest.sockets.get_mut::<icmp::Socket>(handle);
        if !socket.is_open() {
            socket.bind(icmp::Endpoint::Ident(0x22)).unwrap();
        }
        let request = Icmpv4Repr::EchoRequest { ident: 0x22, seq_no: 1, data: b"are you there" };
        let room = socket.send(request.buffer_len(), remote.into()).unwrap();
        request.emit(&mut Icmpv4Packet::new_unchecked(room), &caps);
        guest.until("echo reply", |guest| guest.sockets.get_mut::<icmp::Socket>(handle).can_recv());
        let (data, from) = guest.sockets.get_mut::<icmp::Socket>(handle).recv().unwrap();
        assert_eq!(from, IpAddress::from(remote));
        let reply = Icmpv4Repr::parse(&Icmpv4Packet::new_checked(data).unwrap(), &caps).unwrap();
        assert_eq!(reply, Icmpv4Repr::EchoReply { ident: 0x22, seq_no: 1, data: b"are you there" });
    }
}

#[test]
fn name_queries_go_to_the_hosts_servers_in_turn() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolvers = vec![silent.local_addr().unwrap(), server.local_addr().unwrap()];
    let config = UserNetConfig { resolvers: Some(resolvers), ..Default::default() };
    let mut guest = Guest::new(&config, Offloads::NONE);
    let handle = add_udp(&mut guest, 5353);
    let query = |guest: &mut Guest| {
        guest.sockets.get_mut::<udp::Socket>(handle).send_slice(b"query", (DNS, 53)).unwrap();
    };
    query(&mut guest);
    assert_eq!(host_recv(&mut guest, &silent).0, b"query");
    guest.idle(Duration::from_millis(2100));
    query(&mut guest);
    let (data, flow) = host_recv(&mut guest, &server);
    assert_eq!(data, b"query");
    server.send_to(b"answer", flow).unwrap();
    guest.until("answer", |guest| guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    let (data, meta) = guest.sockets.get_mut::<udp::Socket>(handle).recv().unwrap();
    assert_eq!((data, meta.endpoint.to_string()), (&b"answer"[..], "10.0.2.3:53".to_owned()));
}

#[test]
fn names_can_be_asked_over_tcp() {
    let (listener, port) = listen();
    let resolvers = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    let config = UserNetConfig { resolvers: Some(resolvers), ..Default::default() };
    let mut guest = Guest::new(&config, Offloads::NONE);
    let handle = guest.connect((DNS, 53), 4000);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    listener.accept().unwrap();
}

#[test]
fn udp_echo_and_refusal() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = thread::spawn(move || {
        let mut buf = [0; 2048];
        for _ in 0..3 {
            let (len, from) = server.recv_from(&mut buf).unwrap();
            server.send_to(&buf[..len], from).unwrap();
        }
    });
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);
    let handle = add_udp(&mut guest, 4000);
    for text in [&b"one"[..], b"two", &[3; 1400]] {
        let (data, from) = exchange(&mut guest, handle, (GATEWAY, port), text);
        assert_eq!((&data[..], from), (text, format!("10.0.2.2:{port}")));
    }
    echo.join().unwrap();

    // Nobody is there any more, of which the guest learns by ICMP.
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let errors = guest.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let bound = smoltcp::wire::IpListenEndpoint { addr: None, port: 4000 };
    guest.sockets.get_mut::<icmp::Socket>(errors).bind(icmp::Endpoint::Udp(bound)).unwrap();
    guest.sockets.get_mut::<udp::Socket>(handle).send_slice(b"lost", (GATEWAY, port)).unwrap();
    guest.until("refusal", |guest| guest.sockets.get_mut::<icmp::Socket>(errors).can_recv());
    let (data, _) = guest.sockets.get_mut::<icmp::Socket>(errors).recv().unwrap();
    assert_eq!(data[..2], [3, 3], "destination unreachable, port unreachable");
}

#[test]
fn download_of_100_mb() {
    const LEN: usize = 100_000_000;
    for offloads in [TSO, Offloads { tso4: false, tso6: false, ..TSO }, Offloads::NONE] {
        let len = if offloads == TSO { LEN } else { LEN / 10 };
        let (listener, port) = listen();
        let server = thread::spawn(move || write_pattern(&mut listener.accept().unwrap().0, len));
        let mut guest = Guest::new(&UserNetConfig::default(), offloads);
        let handle = guest.connect((GATEWAY, port), 4000);
        download(&mut guest, handle, len);
        server.join().unwrap();
        guest.until("end of stream", |guest| !guest.tcp(handle).may_recv());
        assert_eq!(guest.gso_frames > 0, offloads.tso4);
    }
}

#[test]
fn upload_of_100_mb() {
    const LEN: usize = 100_000_000;
    for offloads in [TSO, Offloads::NONE] {
        let len = if offloads == TSO { LEN } else { LEN / 10 };
        let (listener, port) = listen();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            read_pattern(&mut stream, len);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        });
        let mut guest = Guest::new(&UserNetConfig::default(), offloads);
        let handle = guest.connect((GATEWAY, port), 4000);
        guest.until("connection", |guest| guest.tcp(handle).may_send());
        upload(&mut guest, handle, 0, len);
        guest.tcp(handle).close();
        guest.until("end of connection", |_| server.is_finished());
        server.join().unwrap();
    }
}

#[test]
fn refusal_is_a_reset() {
    let (listener, port) = listen();
    drop(listener);
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    for remote in [(GATEWAY, port), (DNS, 80)] {
        let mut elapsed = Duration::MAX;
        // The guest's first attempt may wait for its ARP.
        for local_port in [4000, 4001] {
            let start = Instant::now();
            let handle = guest.connect(remote, local_port);
            guest.until("reset", |guest| guest.tcp(handle).state() == tcp::State::Closed);
            elapsed = start.elapsed();
        }
        assert!(elapsed < Duration::from_millis(500), "a refusal does not wait for a retransmission");
    }
}

#[test]
fn each_half_closes_on_its_own() {
    let (listener, port) = listen();
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);

    // The guest closes first and still hears the host.
    let handle = guest.connect((GATEWAY, port), 4000);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let mut host = listener.accept().unwrap().0;
    guest.tcp(handle).send_slice(b"request").unwrap();
    guest.tcp(handle).close();
    let reader = thread::spawn(move || {
        let mut request = Vec::new();
        host.read_to_end(&mut request).unwrap();
        assert_eq!(request, b"request");
        host.write_all(b"response").unwrap();
    });
    guest.until("response", |guest| guest.tcp(handle).recv_queue() == 8);
    reader.join().unwrap();
    guest.until("end", |guest| guest.tcp(handle).state() == tcp::State::TimeWait);

    // The host closes first and still hears the guest.
    let handle = guest.connect((GATEWAY, port), 4001);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let mut host = listener.accept().unwrap().0;
    host.shutdown(Shutdown::Write).unwrap();
    guest.until("end of host's half", |guest| guest.tcp(handle).state() == tcp::State::CloseWait);
    guest.tcp(handle).send_slice(b"late").unwrap();
    guest.tcp(handle).close();
    let reader = thread::spawn(move || {
        let mut late = Vec::new();
        host.read_to_end(&mut late).unwrap();
        assert_eq!(late, b"late");
    });
    guest.until("last words", |_| reader.is_finished());
    reader.join().unwrap();
    guest.until("end", |guest| guest.tcp(handle).state() == tcp::State::Closed);
}

#[test]
fn resets_pass_in_both_directions() {
    let (listener, port) = listen();
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);
    let handle = guest.connect((GATEWAY, port), 4000);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let mut host = listener.accept().unwrap().0;
    guest.tcp(handle).abort();
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let reader = thread::spawn(move || host.read(&mut [0]).unwrap_err().kind());
    guest.until("reset", |_| reader.is_finished());
    assert_eq!(reader.join().unwrap(), ErrorKind::ConnectionReset);

    let handle = guest.connect((GATEWAY, port), 4001);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let host = listener.accept().unwrap().0;
    rustix::net::sockopt::set_socket_linger(&host, Some(Duration::ZERO)).unwrap();
    drop(host);
    guest.until("reset", |guest| guest.tcp(handle).state() == tcp::State::Closed);
}

#[test]
fn neither_side_can_make_us_buffer_without_bound() {
    const LIMIT: usize = 64 << 20;
    // A guest that takes nothing stops the host's writer.
    let (listener, port) = listen();
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);
    let handle = guest.connect((GATEWAY, port), 4000);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let mut host = listener.accept().unwrap().0;
    let written = Arc::new(AtomicUsize::new(0));
    let writer = thread::spawn({
        let written = written.clone();
        move || {
            let data: Vec<u8> = (0..LIMIT).map(pattern).collect();
            for chunk in data.chunks(1 << 16) {
                host.write_all(chunk).unwrap();
                written.fetch_add(chunk.len(), Ordering::Relaxed);
            }
        }
    });
    guest.nic.stalled = true;
    guest.idle(Duration::from_millis(500));
    let before = written.load(Ordering::Relaxed);
    let wakes = guest.wakes;
    guest.idle(Duration::from_millis(500));
    assert_eq!(written.load(Ordering::Relaxed), before);
    assert!(before < LIMIT / 2, "{before} bytes went somewhere");
    assert!(guest.wakes - wakes < 5, "{} wake-ups while nothing can move", guest.wakes - wakes);
    guest.nic.stalled = false;
    download(&mut guest, handle, LIMIT);
    writer.join().unwrap();

    // A host that takes nothing stops the guest; what was sent arrives, even after the guest has gone.
    let handle = guest.connect((GATEWAY, port), 4001);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let mut host = listener.accept().unwrap().0;
    host.shutdown(Shutdown::Write).unwrap();
    let mut sent = 0;
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        let socket = guest.tcp(handle);
        while socket.can_send() {
            let data: Vec<u8> = (sent..sent + 4096).map(pattern).collect();
            sent += socket.send_slice(&data).unwrap();
        }
        guest.step(Duration::from_millis(20));
    }
    assert!(sent < LIMIT, "{sent} bytes went somewhere");
    guest.tcp(handle).close();
    let (done, when_done) = mpsc::channel();
    thread::spawn(move || {
        read_pattern(&mut host, sent);
        done.send(host.read(&mut [0]).unwrap()).unwrap();
    });
    guest.until("rest", |_| when_done.try_recv().is_ok_and(|rest| rest == 0));
}

#[test]
fn an_idle_network_sleeps() {
    let (listener, port) = listen();
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);
    let handle = guest.connect((GATEWAY, port), 4000);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let _host = listener.accept().unwrap().0;
    let udp = add_udp(&mut guest, 4001);
    guest.sockets.get_mut::<udp::Socket>(udp).send_slice(b"x", (GATEWAY, 1)).unwrap();
    // Retransmission timers armed by the handshake run out once.
    guest.idle(Duration::from_millis(1500));
    let wakes = guest.wakes;
    guest.idle(Duration::from_millis(1500));
    assert_eq!(guest.wakes, wakes);
}

#[test]
fn forwarded_tcp_port_waits_for_the_guest() {
    let config = UserNetConfig { forwards: vec!["0:22".parse().unwrap()], ..Default::default() };
    let mut guest = Guest::unconfigured(&config, TSO);
    let addr = guest.net.forwards()[0].1;
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"world");
    });
    // The client is there before the guest's driver has started the card, and before it has an address.
    guest.idle(Duration::from_millis(200));
    guest.net.reset();
    guest.net.set_offloads(TSO);
    guest.configure();
    let handle = guest.add_tcp(1 << 16);
    guest.tcp(handle).listen(22).unwrap();
    guest.until("hello", |guest| guest.tcp(handle).recv_queue() == 5);
    let remote = guest.tcp(handle).remote_endpoint().unwrap();
    assert_eq!(remote.addr, IpAddress::from(GATEWAY), "the host's loopback appears as the gateway");
    guest.tcp(handle).send_slice(b"world").unwrap();
    guest.until("reply", |_| client.is_finished());
    client.join().unwrap();

    // A port without a server in the guest.
    let config = UserNetConfig { forwards: vec!["0:23".parse().unwrap()], ..Default::default() };
    let mut guest = Guest::new(&config, TSO);
    let addr = guest.net.forwards()[0].1;
    let client = thread::spawn(move || TcpStream::connect(addr).unwrap().read(&mut [0]).unwrap_err().kind());
    guest.until("refusal", |_| client.is_finished());
    assert_eq!(client.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn forwarded_udp_port() {
    let config = UserNetConfig { forwards: vec!["0:53/udp".parse().unwrap()], ..Default::default() };
    let mut guest = Guest::new(&config, TSO);
    let addr = guest.net.forwards()[0].1;
    let server = add_udp(&mut guest, 53);
    let clients: Vec<UdpSocket> = (0..2).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (round, client) in clients.iter().chain(&clients).enumerate() {
        // The first datagram may find the guest's hardware address unknown.
        guest.until("query", |guest| {
            client.send_to(b"query", addr).unwrap();
            guest.idle(Duration::from_millis(20));
            guest.sockets.get_mut::<udp::Socket>(server).can_recv()
        });
        let socket = guest.sockets.get_mut::<udp::Socket>(server);
        let mut peer = None;
        while let Ok((_, meta)) = socket.recv() {
            peer = Some(meta.endpoint);
        }
        socket.send_slice(format!("answer {round}").as_bytes(), peer.unwrap()).unwrap();
        let (answer, from) = host_recv(&mut guest, client);
        assert_eq!((answer, from), (format!("answer {round}").into_bytes(), addr));
    }
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let (_listener, port) = listen();
    let config =
        UserNetConfig { forwards: vec![format!("{port}:22").parse().unwrap()], ..Default::default() };
    let Err(error) = plinth_net::UserNet::new(&config) else { panic!("two listeners on one port") };
    assert!(matches!(error, NetError::Listen { .. }));
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
}

#[test]
fn a_reset_card_forgets_its_flows() {
    let (listener, port) = listen();
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);
    let handle = guest.connect((GATEWAY, port), 4000);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
    let mut host = listener.accept().unwrap().0;
    guest.net.reset();
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // The network goes on working for the next driver.
    guest.net.set_offloads(TSO);
    let handle = guest.connect((GATEWAY, port), 4001);
    guest.until("connection", |guest| guest.tcp(handle).may_send());
}

#[test]
fn an_isolated_guest_reaches_nothing() {
    let (listener, port) = listen();
    listener.set_nonblocking(true).unwrap();
    let config = UserNetConfig { outside: false, host_loopback: false, ..Default::default() };
    let mut guest = Guest::new(&config, Offloads::NONE);
    let handle = guest.connect((GATEWAY, port), 4000);
    guest.until("reset", |guest| guest.tcp(handle).state() == tcp::State::Closed);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// Whether this host has IPv6 at all: build machines often lack it.
fn host_has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[test]
fn ipv6_connections() {
    if !host_has_ipv6() {
        return;
    }
    const LEN: usize = 20_000_000;
    for offloads in [TSO, Offloads::NONE] {
        let (listener, port) = listen_at(Ipv6Addr::LOCALHOST.into());
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            write_pattern(&mut stream, LEN);
            read_pattern(&mut stream, LEN);
        });
        let mut guest = Guest::new(&UserNetConfig::default(), offloads);
        let handle = guest.connect((GATEWAY6, port), 4000);
        download(&mut guest, handle, LEN);
        upload(&mut guest, handle, 0, LEN);
        guest.until("end", |_| server.is_finished());
        server.join().unwrap();

        let handle = guest.connect((GATEWAY6, port), 4001);
        guest.until("reset", |guest| guest.tcp(handle).state() == tcp::State::Closed);
    }
}

#[test]
fn ipv6_datagrams() {
    if !host_has_ipv6() {
        return;
    }
    let server = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    let handle = add_udp(&mut guest, 4000);
    guest.sockets.get_mut::<udp::Socket>(handle).send_slice(b"six", (GATEWAY6, port)).unwrap();
    let (data, flow) = host_recv(&mut guest, &server);
    server.send_to(&data, flow).unwrap();
    guest.until("echo", |guest| guest.sockets.get_mut::<udp::Socket>(handle).can_recv());
    let (data, meta) = guest.sockets.get_mut::<udp::Socket>(handle).recv().unwrap();
    assert_eq!((data, meta.endpoint.addr), (&b"six"[..], IpAddress::from(GATEWAY6)));
}

/// The frame of one ICMPv6 message from the guest.
fn frame6(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, message: &Icmpv6Repr<'_>) -> Vec<u8> {
    let mut frame = vec![0; 54 + message.buffer_len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(EthernetAddress(GUEST_MAC));
    ethernet.set_dst_addr(EthernetAddress([0x33, 0x33, 0, 0, 0, 2]));
    ethernet.set_ethertype(EthernetProtocol::Ipv6);
    let mut packet = Ipv6Packet::new_unchecked(ethernet.payload_mut());
    let (next_header, payload_len) = (IpProtocol::Icmpv6, message.buffer_len());
    let repr = Ipv6Repr { src_addr: src, dst_addr: dst, next_header, payload_len, hop_limit };
    repr.emit(&mut packet);
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    message.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(packet.payload_mut()), &caps);
    frame
}

#[test]
fn the_router_advertises_the_network() {
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    let link_local: Ipv6Addr = "fe80::1234".parse().unwrap();
    let all_routers = "ff02::2".parse().unwrap();
    let solicit = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    assert!(guest.raw(&frame6(link_local, all_routers, 64, &solicit)).is_empty(), "it came from afar");
    let answers = guest.raw(&frame6(link_local, all_routers, 255, &solicit));
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0][..6], [0x33, 0x33, 0, 0, 0, 1]);
    let packet = Ipv6Packet::new_checked(&answers[0][14..]).unwrap();
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    assert!(src.is_unicast_link_local() && packet.hop_limit() == 255);
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    let Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { prefix_info: Some(prefix), mtu, .. })) =
        Icmpv6Repr::parse(&src, &dst, &icmp, &caps)
    else {
        panic!("no advertisement: {icmp:?}");
    };
    assert_eq!((prefix.prefix, prefix.prefix_len, mtu), ("fec0::".parse().unwrap(), 64, Some(1500)));
    let dns: Ipv6Addr = "fec0::3".parse().unwrap();
    assert!(packet.payload().ends_with(&dns.octets()), "the name server comes last");

    // An echo from the same guest, whose hardware address is known by now.
    let echo = Icmpv6Repr::EchoRequest { ident: 1, seq_no: 2, data: b"ping" };
    let answers = guest.raw(&frame6(link_local, src, 64, &echo));
    let packet = Ipv6Packet::new_checked(&answers[0][14..]).unwrap();
    let icmp = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let reply = Icmpv6Repr::parse(&packet.src_addr(), &packet.dst_addr(), &icmp, &caps).unwrap();
    assert_eq!(reply, Icmpv6Repr::EchoReply { ident: 1, seq_no: 2, data: b"ping" });

    let config = UserNetConfig { network6: None, ..Default::default() };
    let mut guest = Guest::new(&config, Offloads::NONE);
    assert!(guest.raw(&frame6(link_local, all_routers, 255, &solicit)).is_empty());
}

/// The frame of one IPv4 packet from the guest.
fn frame(dst: Ipv4Address, next_header: IpProtocol, payload: &[u8], fragment: (u16, bool)) -> Vec<u8> {
    let mut frame = vec![0; 34 + payload.len()];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
    ethernet.set_src_addr(EthernetAddress(GUEST_MAC));
    ethernet.set_dst_addr(EthernetAddress([0x52, 0x55, 10, 0, 2, 2]));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    let payload_len = payload.len();
    let repr = Ipv4Repr { src_addr: GUEST_IP, dst_addr: dst, next_header, payload_len, hop_limit: 64 };
    repr.emit(&mut packet, &smoltcp::phy::ChecksumCapabilities::default());
    packet.set_frag_offset(fragment.0);
    packet.set_more_frags(fragment.1);
    packet.fill_checksum();
    packet.payload_mut().copy_from_slice(payload);
    frame
}

fn datagram(port: u16, data: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; 8 + data.len()];
    UdpRepr { src_port: 4000, dst_port: port }.emit(
        &mut UdpPacket::new_unchecked(&mut payload[..]),
        &GUEST_IP.into(),
        &GATEWAY.into(),
        data.len(),
        |room| room.copy_from_slice(data),
        &smoltcp::phy::ChecksumCapabilities::default(),
    );
    payload
}

#[test]
fn datagrams_larger_than_the_mtu_come_in_fragments() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let data: Vec<u8> = (0..4000).map(pattern).collect();
    let payload = datagram(port, &data);
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    for start in [1480, 0, 2960] {
        let end = payload.len().min(start + 1480);
        let fragment = (start as u16, end < payload.len());
        assert!(guest.raw(&frame(GATEWAY, IpProtocol::Udp, &payload[start..end], fragment)).is_empty());
    }
    let mut buf = [0; 8192];
    let (len, flow) = server.recv_from(&mut buf).unwrap();
    assert_eq!(buf[..len], data);

    server.send_to(&data, flow).unwrap();
    assert!(guest.wait(Duration::from_secs(10)));
    let mut whole = vec![0; payload.len()];
    let frames = guest.raw(&[]);
    assert_eq!(frames.len(), 3);
    for frame in frames {
        let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
        assert!(packet.verify_checksum() && packet.total_len() <= 1500);
        let offset = usize::from(packet.frag_offset());
        whole[offset..offset + packet.payload().len()].copy_from_slice(packet.payload());
    }
    let udp = UdpPacket::new_checked(&whole[..]).unwrap();
    assert!(udp.verify_checksum(&GATEWAY.into(), &GUEST_IP.into()));
    assert_eq!(udp.payload(), data);
}

#[test]
fn echo_to_the_outside_works_or_is_prohibited() {
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    let request = Icmpv4Repr::EchoRequest { ident: 9, seq_no: 1, data: b"ping" };
    let mut payload = vec![0; request.buffer_len()];
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    request.emit(&mut Icmpv4Packet::new_unchecked(&mut payload[..]), &caps);
    // An address of documentation, whose network may be unknown to the host: RFC 5737.
    let remote = Ipv4Address::new(192, 0, 2, 1);
    let answers = guest.raw(&frame(remote, IpProtocol::Icmp, &payload, (0, false)));
    let allowed = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        Some(rustix::net::ipproto::ICMP),
    );
    if allowed.is_err() {
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0][34..36], [3, 13], "communication administratively prohibited");
    }
}

#[test]
fn martians_are_not_answered() {
    let (listener, port) = listen();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(&UserNetConfig::default(), Offloads::NONE);
    let mut syn = vec![0; 20];
    let mut tcp = smoltcp::wire::TcpPacket::new_unchecked(&mut syn[..]);
    tcp.set_src_port(4000);
    tcp.set_dst_port(port);
    tcp.set_header_len(20);
    tcp.set_syn(true);
    for dst in ["127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.2.255", "224.0.0.251"] {
        let bytes = frame(dst.parse().unwrap(), IpProtocol::Tcp, &syn, (0, false));
        assert!(guest.raw(&bytes).is_empty(), "{dst}");
        // Nor from a guest that claims to be somebody else.
        let mut forged = frame(GATEWAY, IpProtocol::Tcp, &syn, (0, false));
        forged[26..30].copy_from_slice(&dst.parse::<Ipv4Address>().unwrap().octets());
        assert!(guest.raw(&forged).is_empty(), "{dst}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}
