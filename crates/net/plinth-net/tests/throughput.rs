//! How fast bytes move: `cargo test --release -p plinth-net --test throughput -- --ignored --nocapture`.

#![allow(clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use common::{GATEWAY, Guest, TSO};
use plinth_net::{FrameMeta, NetBackend, Offloads, UserNetConfig};

const LEN: usize = 1 << 30;

fn report(what: &str, len: usize, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {:.2} Gbit/s", len as f64 * 8e-9 / seconds);
}

/// The guest's own stack works on the same thread, as a guest on one vCPU competes with its card.
fn download(name: &str, offloads: Offloads, len: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let data = vec![0x5a; 1 << 18];
        for _ in 0..len / data.len() {
            stream.write_all(&data).unwrap();
        }
    });
    let mut guest = Guest::new(&UserNetConfig::default(), offloads);
    guest.checked = false;
    let handle = guest.connect((GATEWAY, port), 4000);
    let mut got = 0;
    let start = Instant::now();
    guest.until("end", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            got += socket.recv(|data| (data.len(), data.len())).unwrap();
        }
        got >= len
    });
    report(name, len, start);
    server.join().unwrap();
}

fn upload(name: &str, offloads: Offloads, len: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut data = vec![0; 1 << 18];
        while stream.read(&mut data).unwrap() > 0 {}
    });
    let mut guest = Guest::new(&UserNetConfig::default(), offloads);
    guest.checked = false;
    let handle = guest.connect((GATEWAY, port), 4000);
    let mut sent = 0;
    let start = Instant::now();
    guest.until("end", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_send() && sent < len {
            sent += socket.send(|room| (room.len().min(len - sent), room.len().min(len - sent))).unwrap();
        }
        if sent == len {
            socket.close();
        }
        server.is_finished()
    });
    report(name, len, start);
    server.join().unwrap();
}

#[test]
#[ignore = "a benchmark"]
fn throughput() {
    download("download, TSO", TSO, LEN);
    download("download, no offload", Offloads::NONE, LEN / 16);
    upload("upload, TSO", TSO, LEN);
    upload("upload, no offload", Offloads::NONE, LEN / 16);

    // What one small frame costs: an ARP request and its answer.
    let mut guest = Guest::new(&UserNetConfig::default(), TSO);
    let mut request = vec![0; 42];
    request[..6].fill(0xff);
    request[6..12].copy_from_slice(&common::GUEST_MAC);
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&common::GUEST_MAC);
    request[28..32].copy_from_slice(&[10, 0, 2, 15]);
    request[38..42].copy_from_slice(&[10, 0, 2, 2]);
    let mut buf = vec![0; 2048];
    let rounds = 1_000_000;
    let start = Instant::now();
    for _ in 0..rounds {
        let _ = guest.net.send(&request, &FrameMeta::default());
        guest.net.process();
        assert!(guest.net.recv(&mut buf).is_some());
    }
    println!("small exchange: {:.0} ns", start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
}
