//! The network card.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use plinth_device::{FrameMeta, Gso, NetBackend, NetCaps, SendOutcome};
use plinth_virtio::{Error, Net, NetConfig};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::{ALL, BUFFERS, F_EVENT_IDX, F_VERSION_1, Guest, Queue, Via, wait_until};

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

type Frame = (Vec<u8>, FrameMeta);

#[derive(Default)]
struct Shared {
    sent: Vec<Frame>,
    arriving: VecDeque<Frame>,
    offloads: NetCaps,
    full: bool,
    calls: u32,
}

struct Cable {
    shared: Arc<Mutex<Shared>>,
    event: Arc<EventFd>,
}

/// The network's end of the card.
struct Peer {
    shared: Arc<Mutex<Shared>>,
    event: Arc<EventFd>,
}

impl Peer {
    fn arrive(&self, frame: &[u8], meta: FrameMeta) {
        self.shared.lock().unwrap().arriving.push_back((frame.to_vec(), meta));
        self.event.write(1).unwrap();
    }
}

impl NetBackend for Cable {
    fn caps(&self) -> NetCaps {
        NetCaps { csum: true, tso_from_guest: true, tso_to_guest: true }
    }

    fn set_offloads(&mut self, accepted: NetCaps) {
        self.shared.lock().unwrap().offloads = accepted;
    }

    fn send(&mut self, frame: &[u8], meta: FrameMeta) -> SendOutcome {
        let mut s = self.shared.lock().unwrap();
        s.calls += 1;
        if s.full {
            return SendOutcome::Full;
        }
        s.sent.push((frame.to_vec(), meta));
        SendOutcome::Taken
    }

    fn recv(&mut self, buf: &mut [u8]) -> Option<(usize, FrameMeta)> {
        let mut s = self.shared.lock().unwrap();
        let (frame, meta) = s.arriving.pop_front()?;
        if s.arriving.is_empty() {
            let _ = self.event.read();
        }
        buf[..frame.len()].copy_from_slice(&frame);
        Some((frame.len(), meta))
    }

    fn poll_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn process(&mut self, now: Instant) -> Option<Instant> {
        self.shared.lock().unwrap().calls += 1;
        Some(now + Duration::from_secs(3600))
    }
}

fn card() -> (Net, Peer) {
    let shared = Arc::new(Mutex::new(Shared::default()));
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let cable = Cable { shared: Arc::clone(&shared), event: Arc::clone(&event) };
    (
        Net::new(NetConfig { mtu: Some(1500), ..NetConfig::new(MAC) }, Box::new(cable)).unwrap(),
        Peer { shared, event },
    )
}

fn start(via: Via, features: u64) -> (Guest, Peer, Queue, Queue) {
    let (net, peer) = card();
    let guest = Guest::new(via, Guest::ram(), Box::new(net));
    let (rx, tx) = restart(&guest, features);
    (guest, peer, rx, tx)
}

fn restart(guest: &Guest, features: u64) -> (Queue, Queue) {
    assert!(guest.negotiate(F_VERSION_1 | F_EVENT_IDX | features));
    let queues = (guest.queue(0, 64), guest.queue(1, 64));
    guest.set_status(15);
    queues
}

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn frames_go_both_ways_over_every_transport() {
    for via in ALL {
        let (guest, peer, mut rx, mut tx) = start(via, F_MAC | F_MRG_RXBUF);
        assert_eq!(guest.read_config(0, 8).to_le_bytes(), [0x52, 0x54, 0, 1, 2, 3, 1, 0]);
        assert_eq!(guest.read_config(10, 2), 1500);
        // Twice: the backend survives a reset.
        for _ in 0..2 {
            let frame = sample(1000);
            guest.put(BUFFERS, &[0; 12]);
            guest.put(BUFFERS + 0x1000, &frame);
            tx.add(&[(BUFFERS, 12, false), (BUFFERS + 0x1000, 600, false), (BUFFERS + 0x1258, 400, false)]);
            guest.notify(1);
            guest.wait_interrupt(Some(1));
            assert_eq!(tx.used(), Some((0, 0)));
            assert_eq!(peer.shared.lock().unwrap().sent.pop(), Some((frame.clone(), FrameMeta::default())));

            rx.add(&[(BUFFERS + 0x4000, 1526, true)]);
            guest.notify(0);
            peer.arrive(&frame, FrameMeta::default());
            guest.wait_interrupt(Some(0));
            assert_eq!(rx.used(), Some((0, 1012)));
            assert_eq!(guest.get(BUFFERS + 0x4000, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(guest.get(BUFFERS + 0x400c, 1000), frame);
            (rx, tx) = restart(&guest, F_MAC | F_MRG_RXBUF);
        }
    }
}

#[test]
fn a_large_frame_is_spread_over_merged_buffers() {
    let offloads = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_CSUM | F_HOST_TSO4;
    let (guest, peer, mut rx, mut tx) = start(Via::PciMsix, F_MRG_RXBUF | offloads);
    wait_until("the offloads", || {
        peer.shared.lock().unwrap().offloads
            == NetCaps { csum: true, tso_from_guest: true, tso_to_guest: true }
    });
    let frame = sample(9000);
    let gso = Some(Gso { v6: false, size: 1448, header_len: 66 });
    let meta = FrameMeta { partial_csum: Some((34, 16)), csum_valid: false, gso };
    // The frame comes first and waits; two buffers are not enough for it.
    peer.arrive(&frame, meta);
    // Another one keeps the backend's descriptor readable meanwhile.
    peer.arrive(&sample(64), FrameMeta::default());
    for i in 0..2 {
        rx.add(&[(BUFFERS + i * 0x1000, 4096, true)]);
    }
    guest.notify(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rx.used(), None, "no part of a frame is seen before all of it");
    let before = peer.shared.lock().unwrap().calls;
    std::thread::sleep(Duration::from_millis(50));
    assert!(peer.shared.lock().unwrap().calls < before + 3, "a card without buffers must not spin");
    rx.add(&[(BUFFERS + 0x2000, 4096, true)]);
    guest.notify(0);
    guest.wait_interrupt(Some(0));
    rx.add(&[(BUFFERS + 0x3000, 4096, true)]);
    guest.notify(0);
    wait_until("the second frame", || guest.get(BUFFERS + 0x3000, 76)[12..] == sample(64));
    let lens: Vec<_> = std::iter::from_fn(|| rx.used()).collect();
    assert_eq!(lens, [(0, 4096), (1, 4096), (2, 820), (3, 76)]);
    assert_eq!(guest.get(BUFFERS, 12), [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
    assert_eq!(guest.get(BUFFERS + 12, 9000), frame);

    // And one the other way, with a TCP header of 20 bytes at 34.
    let mut frame = sample(4000);
    frame[34 + 12] = 5 << 4;
    guest.put(BUFFERS, &[1, 1, 200, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    guest.put(BUFFERS + 12, &frame);
    tx.add(&[(BUFFERS, 4012, false)]);
    guest.notify(1);
    tx.wait_used();
    let sent = peer.shared.lock().unwrap().sent.pop().unwrap();
    assert_eq!(sent.0, frame);
    assert_eq!(sent.1.partial_csum, Some((34, 16)));
    assert_eq!(sent.1.gso, Some(Gso { v6: false, size: 1448, header_len: 54 }));
}

#[test]
fn without_merging_a_frame_too_large_is_dropped() {
    let (guest, peer, mut rx, _tx) = start(Via::Mmio, 0);
    rx.add(&[(BUFFERS, 512, true)]);
    guest.notify(0);
    peer.arrive(&sample(600), FrameMeta::default());
    peer.arrive(&sample(500), FrameMeta::default());
    assert_eq!(rx.wait_used(), (0, 512));
    assert_eq!(guest.get(BUFFERS + 12, 500), sample(500));
}

#[test]
fn a_full_backend_holds_the_queue_until_it_has_room() {
    let (guest, peer, _rx, mut tx) = start(Via::Mmio, 0);
    peer.shared.lock().unwrap().full = true;
    guest.put(BUFFERS, &[0; 12]);
    guest.put(BUFFERS + 12, &sample(100));
    for _ in 0..3 {
        tx.add(&[(BUFFERS, 112, false)]);
    }
    guest.notify(1);
    wait_until("a refused frame", || peer.shared.lock().unwrap().calls > 2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(tx.used(), None);
    assert!(peer.shared.lock().unwrap().calls < 20, "a full backend must not be asked all the time");
    peer.shared.lock().unwrap().full = false;
    peer.event.write(1).unwrap();
    for i in 0..3 {
        assert_eq!(tx.wait_used(), (i, 0));
    }
    assert_eq!(peer.shared.lock().unwrap().sent.len(), 3);
}

#[test]
fn bad_frames_are_dropped_and_bad_chains_stop_the_card() {
    let (guest, peer, _rx, mut tx) = start(Via::Mmio, F_CSUM);
    guest.put(BUFFERS, &[0; 12]);
    tx.add(&[(BUFFERS, 20, false)]);
    // A checksum beyond the frame.
    guest.put(BUFFERS + 0x1000, &[1, 0, 0, 0, 0, 0, 90, 0, 16, 0, 0, 0]);
    tx.add(&[(BUFFERS + 0x1000, 112, false)]);
    tx.add(&[(BUFFERS, 12 + 100_000, false)]);
    guest.notify(1);
    for i in 0..3 {
        assert_eq!(tx.wait_used(), (i, 0));
    }
    assert!(peer.shared.lock().unwrap().sent.is_empty());
    tx.add(&[(BUFFERS, 11, false)]);
    guest.notify(1);
    guest.wait_needs_reset();
    let (_rx, mut tx) = restart(&guest, F_CSUM);
    tx.add(&[(BUFFERS, 112, false)]);
    guest.notify(1);
    tx.wait_used();
    assert_eq!(peer.shared.lock().unwrap().sent.len(), 1);

    // A receive buffer without room for the header.
    let (mut rx, _tx) = restart(&guest, F_MRG_RXBUF);
    rx.add(&[(BUFFERS, 8, true)]);
    rx.add(&[(BUFFERS, 1500, true)]);
    guest.notify(0);
    peer.arrive(&sample(100), FrameMeta::default());
    guest.wait_needs_reset();
}

#[test]
fn absurd_configurations_are_refused() {
    let net = |config| {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Net::new(config, Box::new(Cable { shared, event }))
    };
    for config in [
        NetConfig::new([1, 0, 0, 0, 0, 0]),
        NetConfig { mtu: Some(60), ..NetConfig::new(MAC) },
        NetConfig { queue_size: 3, ..NetConfig::new(MAC) },
    ] {
        assert!(matches!(net(config), Err(Error::Config { .. })));
    }
}
