//! The console.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use plinth_device::CharBackend;
use plinth_virtio::{Console, ConsoleConfig};

use crate::driver::{ALL, BUFFERS, F_EVENT_IDX, F_VERSION_1, Guest, Via, wait_until};

type Notify = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Terminal {
    shown: Mutex<Vec<u8>>,
    typed: Mutex<VecDeque<u8>>,
    notify: Mutex<Option<Notify>>,
    /// Takes only so many bytes at a time, and nothing every other time.
    slow: bool,
    turn: Mutex<bool>,
}

impl Terminal {
    fn type_text(&self, text: &[u8]) {
        self.typed.lock().unwrap().extend(text);
        (self.notify.lock().unwrap().as_ref().unwrap())();
    }
}

impl CharBackend for Terminal {
    fn write(&self, data: &[u8]) -> usize {
        let mut n = data.len();
        if self.slow {
            let mut turn = self.turn.lock().unwrap();
            *turn = !*turn;
            n = if *turn { n.min(5) } else { 0 };
        }
        self.shown.lock().unwrap().extend(&data[..n]);
        n
    }

    fn read(&self, data: &mut [u8]) -> usize {
        let mut typed = self.typed.lock().unwrap();
        let n = typed.len().min(data.len());
        data.iter_mut().zip(typed.drain(..n)).for_each(|(to, from)| *to = from);
        n
    }

    fn on_input(&self, notify: Notify) {
        *self.notify.lock().unwrap() = Some(notify);
    }
}

#[test]
fn text_goes_both_ways() {
    for via in ALL {
        for slow in [false, true] {
            let terminal = Arc::new(Terminal { slow, ..Terminal::default() });
            let config = ConsoleConfig { size: Some((132, 43)), ..ConsoleConfig::default() };
            let console = Console::new(config, terminal.clone()).unwrap();
            let guest = Guest::new(via, Guest::ram(), Box::new(console));
            terminal.type_text(b"early ");
            // Twice: a driver may come again.
            for round in 0..2 {
                assert!(guest.negotiate(F_VERSION_1 | F_EVENT_IDX | 1));
                assert_eq!((guest.read_config(0, 2), guest.read_config(2, 2)), (132, 43));
                let (mut rx, mut tx) = (guest.queue(0, 16), guest.queue(1, 16));
                guest.set_status(15);
                guest.put(BUFFERS, b"hello, console");
                tx.add(&[(BUFFERS, 5, false), (BUFFERS + 5, 9, false)]);
                guest.notify(1);
                guest.wait_interrupt(Some(1));
                assert_eq!(tx.used(), Some((0, 0)));
                assert_eq!(std::mem::take(&mut *terminal.shown.lock().unwrap()), b"hello, console");

                let text: &[u8] = if round == 0 { b"early " } else { b"later " };
                if round == 1 {
                    terminal.type_text(text);
                }
                rx.add(&[(BUFFERS, 4, true)]);
                rx.add(&[(BUFFERS + 4, 4, true)]);
                guest.notify(0);
                assert_eq!((rx.wait_used(), rx.wait_used()), ((0, 4), (1, 2)));
                assert_eq!(guest.get(BUFFERS, 6), text);
            }
        }
    }
}

#[test]
fn input_waits_for_buffers_and_emergency_output_needs_no_driver() {
    let terminal = Arc::new(Terminal::default());
    let console = Console::new(ConsoleConfig::default(), terminal.clone()).unwrap();
    let guest = Guest::new(Via::Mmio, Guest::ram(), Box::new(console));
    guest.write_config(8, 4, u64::from(b'!'));
    assert_eq!(*terminal.shown.lock().unwrap(), b"!");
    assert!(guest.negotiate(F_VERSION_1));
    let mut rx = guest.queue(0, 16);
    guest.set_status(15);
    terminal.type_text(b"abc");
    wait_until("the input to be fetched", || terminal.typed.lock().unwrap().is_empty());
    rx.add(&[(BUFFERS, 16, true)]);
    guest.notify(0);
    guest.wait_interrupt(Some(0));
    assert_eq!(rx.used(), Some((0, 3)));
}

#[test]
fn a_device_that_panics_says_that_it_needs_a_reset() {
    struct Defect;
    impl CharBackend for Defect {
        fn write(&self, _data: &[u8]) -> usize {
            panic!("a defect, on purpose");
        }
        fn read(&self, _data: &mut [u8]) -> usize {
            0
        }
        fn on_input(&self, _notify: Notify) {}
    }

    let console = Console::new(ConsoleConfig::default(), Arc::new(Defect)).unwrap();
    let guest = Guest::new(Via::PciMsix, Guest::ram(), Box::new(console));
    assert!(guest.negotiate(F_VERSION_1));
    let mut tx = guest.queue(1, 16);
    guest.set_status(15);
    tx.add(&[(BUFFERS, 4, false)]);
    guest.notify(1);
    guest.wait_needs_reset();
}
