//! The block device, driven over each transport.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::driver::{ALL, BUFFERS, F_EVENT_IDX, F_INDIRECT, F_VERSION_1, Guest, Queue, RAM, RAM_SIZE, Via};
use plinth_device::{BlockBackend, BlockError, BlockErrorKind};
use plinth_memory::CodeWriteSink;
use plinth_virtio::{Blk, BlkConfig, Error};

const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const DISK: usize = 1 << 20;
const BAD: u64 = 0x8_0000;

#[derive(Default)]
struct Ram {
    bytes: Mutex<Vec<u8>>,
    flushes: AtomicUsize,
    discards: Mutex<Vec<(u64, u64)>>,
    read_only: bool,
}

impl BlockBackend for Ram {
    fn size(&self) -> u64 {
        DISK as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), BlockError> {
        if offset == BAD {
            let source = io::Error::other("bad sector");
            return Err(BlockError { kind: BlockErrorKind::Io, context: "reading".into(), source });
        }
        let bytes = self.bytes.lock().unwrap();
        let mut at = offset as usize;
        for b in bufs {
            let n = b.len();
            b.copy_from_slice(&bytes[at..at + n]);
            at += n;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), BlockError> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut at = offset as usize;
        for b in bufs {
            bytes[at..at + b.len()].copy_from_slice(b);
            at += b.len();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        self.discards.lock().unwrap().push((offset, len));
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), BlockError> {
        self.bytes.lock().unwrap()[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

fn disk() -> Arc<Ram> {
    Arc::new(Ram { bytes: Mutex::new((0..DISK).map(|i| (i / 512) as u8).collect()), ..Ram::default() })
}

struct Driver {
    guest: Guest,
    queues: Vec<Queue>,
}

/// Buffers that a request uses beside its data.
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x10_0000;

impl Driver {
    fn new(via: Via, disk: &Arc<Ram>, config: BlkConfig) -> Self {
        let blk = Blk::new(config, disk.clone()).unwrap();
        let guest = Guest::new(via, Guest::ram(), Box::new(blk));
        let mut driver = Self { guest, queues: Vec::new() };
        driver.start(F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES);
        driver
    }

    fn start(&mut self, features: u64) {
        assert!(self.guest.negotiate(features & self.guest.offered()));
        let queues = self.guest.read_config(34, 2) as u16;
        self.queues = (0..queues).map(|i| self.guest.queue(i, 128)).collect();
        self.guest.set_status(15);
        assert_eq!(self.guest.status(), 15);
    }

    fn header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&sector.to_le_bytes());
        self.guest.put(HEADER, &header);
        self.guest.put(STATUS, &[0xee]);
    }

    /// One request through queue `q`, with its interrupt; returns status and used length.
    fn request(&mut self, q: usize, kind: u32, sector: u64, data: &[(u64, u32, bool)]) -> (u8, u32) {
        self.header(kind, sector);
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend_from_slice(data);
        buffers.push((STATUS, 1, true));
        let queue = &mut self.queues[q];
        let head = if sector.is_multiple_of(2) { queue.add(&buffers) } else { queue.add_indirect(&buffers) };
        self.guest.notify(queue.index);
        self.guest.wait_interrupt(Some(queue.index));
        let (id, len) = queue.wait_used();
        assert_eq!(id, head);
        queue.set_used_event(queue.seen());
        (self.guest.get(STATUS, 1)[0], len)
    }
}

#[test]
fn reads_writes_and_the_rest_over_every_transport() {
    for via in ALL {
        let disk = disk();
        let config = BlkConfig { serial: "plinth-0".into(), ..BlkConfig::default() };
        let mut d = Driver::new(via, &disk, config);
        assert_eq!(d.guest.read_config(0, 8), DISK as u64 / 512);

        // A read scattered over three buffers.
        let data = [(DATA, 512, true), (DATA + 0x3000, 1024, true), (DATA + 0x1000, 512, true)];
        assert_eq!(d.request(0, 0, 4, &data), (0, 2049), "{via:?}");
        assert_eq!(d.guest.get(DATA, 512), [4; 512]);
        assert_eq!(d.guest.get(DATA + 0x3000, 1024)[512..], [6; 512]);
        assert_eq!(d.guest.get(DATA + 0x1000, 512), [7; 512]);

        // A gathered write, header and data in one buffer's worth of different pieces.
        d.guest.put(DATA, &[0xaa; 512]);
        d.guest.put(DATA + 0x2000, &[0xbb; 512]);
        assert_eq!(d.request(0, 1, 9, &[(DATA, 512, false), (DATA + 0x2000, 512, false)]), (0, 1));
        assert_eq!(disk.bytes.lock().unwrap()[9 * 512..11 * 512], [[0xaa; 512], [0xbb; 512]].concat());

        assert_eq!(d.request(0, 4, 0, &[]), (0, 1));
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);

        assert_eq!(d.request(0, 8, 0, &[(DATA, 20, true)]), (0, 21));
        assert_eq!(d.guest.get(DATA, 20), *b"plinth-0\0\0\0\0\0\0\0\0\0\0\0\0");

        // Two ranges: discard, then write zeroes with unmap.
        let range = |sector: u64, n: u32, flags: u32| {
            [&sector.to_le_bytes()[..], &n.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        d.guest.put(DATA, &[range(8, 8, 0), range(100, 1, 0)].concat());
        assert_eq!(d.request(0, 11, 0, &[(DATA, 32, false)]), (0, 1));
        assert_eq!(*disk.discards.lock().unwrap(), [(4096, 4096), (51200, 512)]);
        d.guest.put(DATA, &range(9, 2, 1));
        assert_eq!(d.request(0, 13, 0, &[(DATA, 16, false)]), (0, 1));
        assert_eq!(disk.bytes.lock().unwrap()[9 * 512..11 * 512], [0; 1024]);
        assert!(!d.guest.line_is_high());
    }
}

#[test]
fn wrong_requests_get_the_status_they_deserve() {
    let disk = disk();
    let mut d = Driver::new(Via::Mmio, &disk, BlkConfig::default());
    let last = DISK as u64 / 512;
    let sector = [(DATA, 512, true)];
    assert_eq!(d.request(0, 0, last, &sector), (1, 0), "beyond the end");
    assert_eq!(d.request(0, 0, u64::MAX, &sector), (1, 0), "an offset that overflows");
    assert_eq!(d.request(0, 0, last - 1, &[(DATA, 1024, true)]), (1, 0), "across the end");
    assert_eq!(d.request(0, 0, 0, &[(DATA, 100, true)]), (1, 0), "part of a sector");
    assert_eq!(d.request(0, 0, BAD / 512, &sector), (1, 0), "an error of the host's");
    assert_eq!(d.request(0, 77, 0, &[]), (2, 1), "an unknown request");
    let mut range = [0; 16];
    range[12] = 1;
    d.guest.put(DATA, &range);
    assert_eq!(d.request(0, 11, 0, &[(DATA, 16, false)]), (2, 1), "a discard with flags");
    range = [0xff; 16];
    range[12..].fill(0);
    d.guest.put(DATA, &range);
    assert_eq!(d.request(0, 13, 0, &[(DATA, 16, false)]), (1, 1), "zeroes beyond the end");
    assert_eq!(d.request(0, 0, 2, &sector), (0, 513), "and it still works");

    // Buffers that overlap are filled in order.
    assert_eq!(d.request(0, 0, 20, &[(DATA, 512, true), (DATA + 256, 512, true)]), (0, 1025));
    assert_eq!(d.guest.get(DATA, 768), [[20; 256], [21; 256], [21; 256]].concat());

    let read_only = Arc::new(Ram { read_only: true, bytes: Mutex::new(vec![0; DISK]), ..Ram::default() });
    let mut d = Driver::new(Via::Mmio, &read_only, BlkConfig::default());
    assert_ne!(d.guest.offered() & (1 << 5), 0);
    assert_eq!(d.request(0, 1, 0, &[(DATA, 512, false)]), (1, 1));
}

#[test]
fn broken_chains_need_a_reset_after_which_the_device_works_again() {
    for via in ALL {
        let disk = disk();
        let mut d = Driver::new(via, &disk, BlkConfig::default());
        type Break = fn(&mut Queue);
        let breaks: [(&str, Break); 9] = [
            ("an endless chain", |q| {
                let t = q.descriptors;
                q.raw_descriptor(t, 0, HEADER, 16, 1, 1);
                q.raw_descriptor(t, 1, HEADER, 16, 1, 0);
                q.publish(0);
            }),
            ("a next index beyond the table", |q| {
                q.raw_descriptor(q.descriptors, 0, HEADER, 16, 1, 500);
                q.publish(0);
            }),
            ("a head beyond the table", |q| q.publish(128)),
            ("more available than descriptors", |q| q.set_available_index(400)),
            ("a buffer outside RAM", |q| {
                q.add(&[(HEADER, 16, false), (RAM + RAM_SIZE - 256, 512, true), (STATUS, 1, true)]);
            }),
            ("a buffer at the end of the address space", |q| {
                q.add(&[(HEADER, 16, false), (u64::MAX - 10, 512, true), (STATUS, 1, true)]);
            }),
            ("a readable buffer after a writable one", |q| {
                q.add(&[(HEADER, 16, false), (STATUS, 1, true), (DATA, 512, false)]);
            }),
            ("an indirect table within an indirect table", |q| {
                q.raw_descriptor(DATA, 0, DATA, 16, 4, 0);
                q.raw_descriptor(q.descriptors, 0, DATA, 16, 4, 0);
                q.publish(0);
            }),
            ("no room for a status", |q| {
                q.add(&[(HEADER, 16, false)]);
            }),
        ];
        for (what, breakage) in breaks {
            d.header(0, 0);
            breakage(&mut d.queues[0]);
            d.guest.notify(0);
            d.guest.wait_needs_reset();
            d.start(F_VERSION_1 | F_EVENT_IDX);
            assert_eq!(d.request(0, 0, 2, &[(DATA, 512, true)]), (0, 513), "after {what}");
        }
    }
}

#[test]
fn many_requests_in_many_queues_are_all_done() {
    for via in [Via::Mmio, Via::PciMsix] {
        let disk = disk();
        let mut d = Driver::new(via, &disk, BlkConfig { queues: 4, ..BlkConfig::default() });
        for q in &mut d.queues {
            // No interrupts: this driver looks by itself.
            q.set_used_event(u16::MAX - 1);
            for i in 0..40_u64 {
                let at = DATA + (u64::from(q.index) * 40 + i) * 0x1000;
                let mut header = [0; 16];
                header[8..16].copy_from_slice(&(i * 8).to_le_bytes());
                d.guest.put(at + 0x800, &header);
                q.add(&[(at + 0x800, 16, false), (at, 512, true), (at + 0x900, 1, true)]);
                d.guest.notify(q.index);
            }
        }
        for q in &mut d.queues {
            for _ in 0..40 {
                let (_, len) = q.wait_used();
                assert_eq!(len, 513);
            }
            for i in 0..40_u64 {
                let at = DATA + (u64::from(q.index) * 40 + i) * 0x1000;
                assert_eq!(d.guest.get(at, 512), vec![(i * 8) as u8; 512]);
                assert_eq!(d.guest.get(at + 0x900, 1), [0]);
            }
        }
    }
}

#[test]
fn a_driver_without_event_indices_can_still_silence_interrupts() {
    let disk = disk();
    let mut d = Driver::new(Via::Mmio, &disk, BlkConfig::default());
    d.start(F_VERSION_1);
    assert_eq!(d.request(0, 0, 2, &[(DATA, 512, true)]), (0, 513));
    let before = d.guest.interrupt_count();
    d.queues[0].set_no_interrupt();
    d.header(0, 2);
    d.queues[0].add(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    d.guest.notify(0);
    d.queues[0].wait_used();
    // The worker considers an interrupt after the used index; a reset waits for it.
    d.guest.device().reset();
    assert_eq!(d.guest.interrupt_count(), before);
}

#[test]
fn a_reset_stops_everything_and_a_new_driver_finds_a_fresh_device() {
    for via in ALL {
        let disk = disk();
        let mut d = Driver::new(via, &disk, BlkConfig::default());
        for _ in 0..20 {
            d.header(0, 2);
            d.queues[0].add(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
            d.guest.notify(0);
            d.start(F_VERSION_1 | F_EVENT_IDX | F_INDIRECT);
            assert_eq!(d.request(0, 0, 3, &[(DATA, 512, true)]), (0, 513));
        }
    }
}

#[test]
fn features_are_negotiated_by_the_book() {
    for via in ALL {
        let blk = Blk::new(BlkConfig::default(), disk()).unwrap();
        let guest = Guest::new(via, Guest::ram(), Box::new(blk));
        assert_ne!(guest.offered() & F_VERSION_1, 0);
        assert!(!guest.negotiate(F_FLUSH), "a legacy driver");
        assert!(!guest.negotiate(F_VERSION_1 | 1 << 40), "a feature that was not offered");
        assert!(guest.negotiate(F_VERSION_1));
        // A ring outside RAM.
        let mut queue = guest.queue(0, 128);
        guest.negotiate(F_VERSION_1);
        queue.descriptors = 0x1000;
        guest.put_ring(&queue);
        guest.set_status(15);
        guest.wait_needs_reset();
    }
}

#[test]
fn a_read_into_translated_code_is_told() {
    struct Told(Mutex<Vec<u64>>);
    impl CodeWriteSink for Told {
        fn code_page_written(&self, gpa: u64) {
            self.0.lock().unwrap().push(gpa);
        }
    }
    let told = Arc::new(Told(Mutex::default()));
    let mut d = Driver::new(Via::Mmio, &disk(), BlkConfig::default());
    let sink: Arc<dyn CodeWriteSink> = told.clone();
    d.guest.ram.set_code_write_sink(&Arc::downgrade(&sink));
    d.guest.ram.set_code(DATA + 0x1000, true);
    d.request(0, 0, 0, &[(DATA, 4096, true)]);
    assert!(told.0.lock().unwrap().is_empty());
    d.request(0, 0, 0, &[(DATA, 8192, true)]);
    assert_eq!(*told.0.lock().unwrap(), [DATA + 0x1000]);
}

#[test]
fn absurd_configurations_are_refused() {
    for config in [
        BlkConfig { serial: "x".repeat(21), ..BlkConfig::default() },
        BlkConfig { queues: 0, ..BlkConfig::default() },
        BlkConfig { queue_size: 100, ..BlkConfig::default() },
        BlkConfig { physical_block: 1000, ..BlkConfig::default() },
    ] {
        assert!(matches!(Blk::new(config, disk()), Err(Error::Config { .. })));
    }
}
