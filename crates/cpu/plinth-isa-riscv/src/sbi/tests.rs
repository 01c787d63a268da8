use std::sync::atomic::Ordering;

use plinth_ir::{CpuEnv, Isa};
use plinth_vcpu::{StartState, SystemEvent, TlbFlush};

use super::eid;
use crate::Firmware;
use crate::harness::{Hart, RAM_BASE, RAM_BYTES};
use crate::privileged::interrupts::irq;
use crate::privileged::state::status;
use crate::slots;

const ALL: u64 = u64::MAX;

fn hart() -> Hart {
    Hart::new(Firmware::BuiltIn)
}

fn irqs(h: &Hart, index: usize) -> Vec<(u32, bool)> {
    h.env.platform.vcpus[index].irqs.lock().unwrap().clone()
}

/// A flush's range and address space.
type Flush = (Option<(u64, u64)>, Option<u64>);

fn flushes(h: &Hart, index: usize) -> Vec<Flush> {
    h.env.platform.vcpus[index].flushes.lock().unwrap().iter().map(|f| (f.range, f.asid)).collect()
}

#[test]
fn a_kernel_starts_in_supervisor_mode() {
    let h = hart();
    let mut state = vec![0; slots::COUNT];
    let start = StartState {
        pc: 0x8020_0000,
        registers: vec![("a0", 3), ("a1", 0x8700_0000), ("x5", 1), ("zero", 9)],
    };
    assert_eq!(h.isa.reset(&mut state, 3, &start), 0x8020_0000);
    let get = |slot: u16| state[usize::from(slot)];
    assert_eq!([0, 5, 10, 11].map(|r| get(slots::x(r))), [0, 1, 3, 0x8700_0000]);
    assert_eq!((get(slots::PRIVILEGE), get(slots::MHARTID)), (1, 3));
    assert_eq!((get(slots::SATP), get(slots::MSTATUS)), (0, status::XL));
    let guest = Hart::new(Firmware::Guest);
    assert_eq!((guest.get(slots::PRIVILEGE), guest.get(slots::MEDELEG)), (3, 0));
}

#[test]
fn base_tells_what_there_is() {
    let mut h = hart();
    let extensions =
        [eid::BASE, eid::TIME, eid::IPI, eid::RFENCE, eid::HSM, eid::SRST, eid::DBCN, 0, 1, 2, 3, 8];
    for extension in extensions {
        assert_eq!(h.sbi(eid::BASE, 3, &[extension]), (0, 1), "{extension:#x}");
    }
    for extension in [4, 5, 6, 7, 9, 0x50_4d55, 0x5355_5350] {
        assert_eq!(h.sbi(eid::BASE, 3, &[extension]), (0, 0), "{extension:#x}");
    }
    assert_eq!(h.sbi(0x50_4d55, 0, &[]), (-2, 0));
    for extension in [eid::BASE, eid::TIME, eid::IPI, eid::RFENCE, eid::HSM, eid::SRST, eid::DBCN] {
        assert_eq!(h.sbi(extension, 99, &[]), (-2, 0), "{extension:#x}");
    }
}

#[test]
fn the_timer_is_set() {
    let mut h = hart();
    h.set(slots::MIE, irq::STI);
    h.set(slots::MSTATUS, status::SIE);
    assert_eq!(h.sbi(eid::TIME, 0, &[100]), (0, 0));
    assert_eq!(h.env.deadline, 10_000);
    assert!(!h.take_interrupt());
    h.env.now = 10_000;
    assert!(h.take_interrupt());
    h.set(slots::PRIVILEGE, 1);
    assert_eq!(h.sbi(0, 0, &[200]).0, 0);
    assert_eq!(h.env.deadline, 20_000);
}

#[test]
fn ipis_reach_the_harts_in_the_mask() {
    let mut h = hart();
    assert_eq!(h.sbi(eid::IPI, 0, &[0b11, 0]), (0, 0));
    assert_eq!(h.env.pins, irq::SSI);
    assert_eq!(irqs(&h, 1), [(1, true)]);
    h.env.pins = 0;
    // Hart 2 is off: it must not find an interrupt when it starts.
    assert_eq!(h.sbi(eid::IPI, 0, &[0b11, 1]), (0, 0));
    assert_eq!((h.env.pins, irqs(&h, 1).len(), irqs(&h, 2).len()), (0, 2, 0));
    assert_eq!(h.sbi(eid::IPI, 0, &[0, ALL]), (0, 0));
    assert_eq!((h.env.pins, irqs(&h, 1).len()), (irq::SSI, 3));
    for (mask, base) in [(1, 4), (0b1_0000, 0), (ALL, 0), (1, ALL - 1), (2, 3)] {
        assert_eq!(h.sbi(eid::IPI, 0, &[mask, base]), (-3, 0), "{mask:#x} {base:#x}");
    }
    assert_eq!(h.sbi(eid::IPI, 0, &[0, 77]), (0, 0), "nobody");
}

#[test]
fn remote_fences_cover_their_pages() {
    let mut h = hart();
    h.sbi(eid::RFENCE, 1, &[0b11, 0, 0x1234, 0x1000]);
    h.sbi(eid::RFENCE, 1, &[0b11, 0, 0, 0]);
    h.sbi(eid::RFENCE, 1, &[0b11, 0, 0x1000, ALL]);
    h.sbi(eid::RFENCE, 1, &[0b11, 0, ALL - 10, 100]);
    h.sbi(eid::RFENCE, 2, &[0b11, 0, 0x8000, 0x2000, 0x1_0005]);
    let expected = [
        (Some((0x1000, 0x2000)), None),
        (None, None),
        (None, None),
        (None, None),
        (Some((0x8000, 0x2000)), Some(5)),
    ];
    assert_eq!(flushes(&h, 1), expected);
    let own: Vec<_> = h.env.flushes.iter().map(|f: &TlbFlush| (f.range, f.asid)).collect();
    assert_eq!(own, expected);
    assert_eq!(h.sbi(eid::RFENCE, 0, &[0b11, 0]), (0, 0));
    assert_eq!(h.env.code_flushes, 1);
    assert_eq!(flushes(&h, 1).last(), Some(&(Some((0, 0)), None)));
    assert!(flushes(&h, 2).is_empty());
}

#[test]
fn harts_start_stop_and_report() {
    let mut h = hart();
    assert_eq!([0, 1, 2, 4].map(|i| h.sbi(eid::HSM, 2, &[i])), [(0, 0), (0, 0), (0, 1), (-3, 0)]);
    assert_eq!(h.sbi(eid::HSM, 0, &[2, RAM_BASE + 0x100, 77]), (0, 0));
    let vcpu = &h.env.platform.vcpus[2];
    assert!(vcpu.is_on.load(Ordering::Relaxed));
    let expected = StartState { pc: RAM_BASE + 0x100, registers: vec![("a0", 2), ("a1", 77)] };
    assert_eq!(*vcpu.started.lock().unwrap(), Some(expected));
    assert_eq!(h.sbi(eid::HSM, 0, &[2, RAM_BASE, 0]), (-6, 0));
    assert_eq!(h.sbi(eid::HSM, 0, &[9, RAM_BASE, 0]), (-3, 0));
    assert_eq!(h.sbi(eid::HSM, 0, &[3, 0x1000, 0]), (-5, 0));
    assert_eq!(h.sbi(eid::HSM, 0, &[3, RAM_BASE + 1, 0]), (-5, 0));
    h.sbi(eid::HSM, 1, &[]);
    assert!(h.env.is_off);
}

#[test]
fn a_hart_suspends() {
    let mut h = hart();
    let start = h.pc;
    assert_eq!(h.sbi(eid::HSM, 3, &[0, 0, 0]), (0, 0));
    assert_eq!((h.env.waits, h.pc), (1, start + 4));
    h.set(slots::SATP, 8 << 60);
    h.set(slots::MSTATUS, status::SIE | status::XL);
    h.sbi(eid::HSM, 3, &[0x8000_0000, RAM_BASE + 0x40, 5]);
    assert_eq!((h.env.waits, h.pc, h.x(10), h.x(11)), (2, RAM_BASE + 0x40, 0, 5));
    assert_eq!((h.get(slots::SATP), h.get(slots::MSTATUS)), (0, status::XL));
    assert_eq!(h.sbi(eid::HSM, 3, &[0x8000_0000, 1, 5]), (-5, 0));
    assert_eq!(h.sbi(eid::HSM, 3, &[0x1000_0000, 0, 0]), (-2, 0));
    assert_eq!(h.sbi(eid::HSM, 3, &[1, 0, 0]), (-3, 0));
}

#[test]
fn the_machine_hears_of_shutdown_and_reset() {
    let cases = [
        (0, 0, Ok(SystemEvent::PowerOff)),
        (1, 0, Ok(SystemEvent::Reset)),
        (2, 1, Ok(SystemEvent::Reset)),
        (0, 1, Ok(SystemEvent::Crash("the guest shut down: system failure".into()))),
        (3, 0, Err(-3)),
        (0, 2, Err(-3)),
        (0xf000_0000, 0, Err(-2)),
    ];
    for (kind, reason, expected) in cases {
        let mut h = hart();
        let result = h.sbi(eid::SRST, 0, &[kind, reason]);
        let events = h.env.platform.events.lock().unwrap().clone();
        match expected {
            Ok(event) => assert_eq!((events, h.env.is_off), (vec![event], true)),
            Err(code) => assert_eq!((result.0, events.len(), h.env.is_off), (code, 0, false)),
        }
    }
    let mut h = hart();
    h.sbi(8, 0, &[]);
    assert_eq!(*h.env.platform.events.lock().unwrap(), [SystemEvent::PowerOff]);
}

#[test]
fn the_console_moves_bytes_of_ram() {
    let mut h = hart();
    for (i, byte) in b"hello".iter().enumerate() {
        h.env.write_phys(RAM_BASE + 0x101 + i as u64, 1, u64::from(*byte)).unwrap();
    }
    assert_eq!(h.sbi(eid::DBCN, 0, &[5, RAM_BASE + 0x101, 0]), (0, 5));
    assert_eq!(h.sbi(eid::DBCN, 2, &[u64::from(b'!')]), (0, 0));
    h.sbi(1, 0, &[u64::from(b'\n')]);
    assert_eq!(*h.env.platform.written.lock().unwrap(), b"hello!\n");
    // Bounded, and only RAM.
    assert_eq!(h.sbi(eid::DBCN, 0, &[ALL, RAM_BASE, 0]), (0, 1024));
    assert_eq!(h.sbi(eid::DBCN, 0, &[5, 0x1000, 0]), (-3, 0));
    assert_eq!(h.sbi(eid::DBCN, 0, &[5, RAM_BASE, 1]), (-3, 0));
    assert_eq!(h.sbi(eid::DBCN, 0, &[5, RAM_BASE + RAM_BYTES as u64 - 2, 0]), (-3, 0));
    *h.env.platform.input.lock().unwrap() = b"abc".to_vec();
    assert_eq!(h.sbi(eid::DBCN, 1, &[9, ALL - 3, 0]), (-3, 0));
    assert_eq!(h.sbi(eid::DBCN, 1, &[2, RAM_BASE + 0x203, 0]), (0, 2));
    assert_eq!(h.env.read_phys(RAM_BASE + 0x203, 1).unwrap(), u64::from(b'a'));
    assert_eq!(h.env.read_phys(RAM_BASE + 0x204, 1).unwrap(), u64::from(b'b'));
    assert_eq!(h.sbi(2, 0, &[]).0, i64::from(b'c'));
    assert_eq!(h.sbi(2, 0, &[]).0, -1);
    assert_eq!(h.sbi(eid::DBCN, 1, &[2, RAM_BASE, 0]), (0, 0));
}
