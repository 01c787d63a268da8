//! The memory balloon.

use std::sync::{Arc, Mutex};

use plinth_virtio::{Balloon, BalloonConfig, BalloonStat, PageReclaim};

use crate::driver::{ALL, BUFFERS, F_EVENT_IDX, F_VERSION_1, Guest, RAM, Via};

const F_STATS: u64 = 1 << 1;
const F_REPORTING: u64 = 1 << 5;

#[derive(Default)]
struct Released(Mutex<Vec<(u64, u64)>>);

impl PageReclaim for Released {
    fn release(&self, gpa: u64, len: u64) {
        self.0.lock().unwrap().push((gpa, len));
    }
}

#[test]
fn pages_are_given_back_by_balloon_and_by_report() {
    for via in ALL {
        let released = Arc::new(Released::default());
        let (balloon, handle) = Balloon::new(BalloonConfig::default(), released.clone());
        let guest = Guest::new(via, Guest::ram(), Box::new(balloon));
        assert!(guest.negotiate(F_VERSION_1 | F_EVENT_IDX | F_REPORTING));
        let (mut inflate, mut deflate) = (guest.queue(0, 16), guest.queue(1, 16));
        // Without the statistics feature its queue does not exist, and the next one takes its place.
        let mut report = guest.queue(2, 16);
        guest.set_status(15);

        handle.set_target(1 << 20);
        guest.wait_interrupt(None);
        assert_eq!(guest.read_config(0, 4), 256);

        let page = (RAM >> 12) as u32;
        let numbers = [page + 300, page + 302, page + 301, page + 400];
        guest.put(BUFFERS, &numbers.map(u32::to_le_bytes).concat());
        inflate.add(&[(BUFFERS, 16, false)]);
        guest.notify(0);
        guest.wait_interrupt(Some(0));
        assert_eq!(inflate.used(), Some((0, 0)));
        let at = |n: u64| RAM + n * 4096;
        assert_eq!(*released.0.lock().unwrap(), [(at(300), 3 * 4096), (at(400), 4096)]);
        guest.write_config(4, 4, 4);
        assert_eq!(handle.actual(), 4 * 4096);

        deflate.add(&[(BUFFERS, 16, false)]);
        guest.notify(1);
        assert_eq!(deflate.used(), Some((0, 0)));

        released.0.lock().unwrap().clear();
        report.add(&[(at(512), 0x20_0000, true), (at(256), 0x1000, true)]);
        guest.notify(2);
        assert_eq!(report.used(), Some((0, 0)));
        assert_eq!(*released.0.lock().unwrap(), [(at(512), 0x20_0000), (at(256), 4096)]);
    }
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let (balloon, handle) = Balloon::new(BalloonConfig::default(), Arc::new(Released::default()));
    let guest = Guest::new(Via::Mmio, Guest::ram(), Box::new(balloon));
    handle.request_stats();
    assert!(guest.negotiate(F_VERSION_1 | F_EVENT_IDX | F_STATS));
    let mut stats = guest.queue(2, 16);
    guest.set_status(15);
    for round in 0..3_u64 {
        let stat = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        guest.put(BUFFERS, &[stat(4, 1000 + round), stat(5, 2000)].concat());
        stats.add(&[(BUFFERS, 20, false)]);
        assert_eq!(stats.avail_event(), round as u16);
        guest.notify(2);
        assert_eq!(stats.used(), None, "the buffer stays with the device");
        assert_eq!(
            handle.stats(),
            [BalloonStat { tag: 4, value: 1000 + round }, BalloonStat { tag: 5, value: 2000 }]
        );
        stats.set_used_event(round as u16);
        handle.request_stats();
        guest.wait_interrupt(Some(2));
        assert!(stats.used().is_some());
    }
}

#[test]
fn real_pages_are_released_and_a_greedy_request_is_refused() {
    let ram = Guest::ram();
    let (balloon, _) = Balloon::new(BalloonConfig::default(), Arc::new(ram.clone()));
    let guest = Guest::new(Via::Mmio, ram, Box::new(balloon));
    assert!(guest.negotiate(F_VERSION_1));
    let mut inflate = guest.queue(0, 16);
    guest.set_status(15);
    guest.put(RAM + 0x20_0000, &[7; 8192]);
    // The page, one that is no RAM, and the last there can be.
    let numbers = [((RAM + 0x20_0000) >> 12) as u32, 5, u32::MAX];
    guest.put(BUFFERS, &numbers.map(u32::to_le_bytes).concat());
    inflate.add(&[(BUFFERS, 12, false)]);
    guest.notify(0);
    assert_eq!(inflate.used(), Some((0, 0)));
    assert_eq!(guest.get(RAM + 0x20_0000, 4096), [0; 4096]);
    assert_eq!(guest.get(RAM + 0x20_1000, 4096), [7; 4096]);

    inflate.add(&[(BUFFERS, 1 << 20, false)]);
    guest.notify(0);
    guest.wait_needs_reset();
}
