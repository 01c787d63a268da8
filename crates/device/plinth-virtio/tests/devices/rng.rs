//! The entropy device.

use plinth_virtio::Rng;

use crate::driver::{ALL, BUFFERS, F_EVENT_IDX, F_VERSION_1, Guest, Via};

#[test]
fn it_fills_buffers_with_different_bytes() {
    for via in ALL {
        let guest = Guest::new(via, Guest::ram(), Box::new(Rng::new()));
        assert!(guest.negotiate(F_VERSION_1 | F_EVENT_IDX));
        let mut queue = guest.queue(0, 16);
        guest.set_status(15);
        let mut bytes = Vec::new();
        for i in 0..40 {
            guest.put(BUFFERS, &[0; 64]);
            queue.set_used_event(i);
            let head = queue.add(&[(BUFFERS, 32, true), (BUFFERS + 32, 32, true)]);
            assert_eq!(queue.avail_event(), i, "the device asks for the next notification");
            guest.notify(0);
            guest.wait_interrupt(Some(0));
            assert_eq!(queue.used(), Some((head, 64)));
            bytes.push(guest.get(BUFFERS, 64));
        }
        bytes.sort();
        bytes.dedup();
        assert_eq!(bytes.len(), 40);
    }
}

#[test]
fn a_huge_buffer_is_filled_in_part() {
    let guest = Guest::new(Via::Mmio, Guest::ram(), Box::new(Rng::new()));
    assert!(guest.negotiate(F_VERSION_1));
    let mut queue = guest.queue(0, 16);
    guest.set_status(15);
    queue.add(&[(BUFFERS, 1 << 20, true)]);
    guest.notify(0);
    assert_eq!(queue.used(), Some((0, 1024)));
    assert_eq!(guest.get(BUFFERS + 1024, 64), [0; 64]);
}
