use plinth_ir::{Exception, HelperResult};

use super::{irq, wakes, wfi};
use crate::Firmware;
use crate::harness::Hart;
use crate::mode::privilege::{MACHINE, SUPERVISOR, USER};
use crate::privileged::csr::number as n;
use crate::privileged::state::{envcfg, status};
use crate::slots;

const M_BASE: u64 = 0x8000_1000;
const S_BASE: u64 = 0x8000_2000;

/// A hart with all interrupts enabled in `mie` and those of supervisor mode delegated; vectored.
fn hart(privilege: u32) -> Hart {
    let mut h = Hart::new(Firmware::Guest);
    h.set(slots::PRIVILEGE, u64::from(privilege));
    h.set(slots::MTVEC, M_BASE | 1);
    h.set(slots::STVEC, S_BASE | 1);
    h.set(slots::MIE, irq::ALL);
    h.set(slots::MIDELEG, irq::SUPERVISOR);
    h
}

#[test]
fn the_most_urgent_comes_first() {
    let mut h = hart(USER);
    h.env.pins = irq::ALL;
    h.set(slots::MIP, irq::STI);
    let mut order = Vec::new();
    for _ in 0..6 {
        h.set(slots::PRIVILEGE, 0);
        assert!(h.take_interrupt());
        let to_machine = h.get(slots::PRIVILEGE) == 3;
        let slot = if to_machine { slots::MCAUSE } else { slots::SCAUSE };
        let number = h.get(slot) & !(1 << 63);
        assert_eq!(h.get(slot) >> 63, 1);
        assert_eq!(h.pc, if to_machine { M_BASE } else { S_BASE } + 4 * number);
        order.push(number);
        h.env.pins &= !(1 << number);
        h.set(slots::MIP, h.get(slots::MIP) & !(1 << number));
    }
    assert_eq!(order, [11, 3, 7, 9, 1, 5]);
    h.set(slots::PRIVILEGE, 0);
    assert!(!h.take_interrupt());
}

#[test]
fn enables_count_only_at_their_own_level() {
    // (privilege, mstatus, pins, goes to)
    let cases = [
        (USER, 0, irq::SEI, Some(1)),
        (USER, 0, irq::MEI, Some(3)),
        (SUPERVISOR, 0, irq::SEI, None),
        (SUPERVISOR, status::SIE, irq::SEI, Some(1)),
        (SUPERVISOR, 0, irq::MEI, Some(3)),
        (MACHINE, status::SIE, irq::SEI, None),
        (MACHINE, status::SIE, irq::MEI, None),
        (MACHINE, status::MIE | status::SIE, irq::SEI, None),
        (MACHINE, status::MIE, irq::MEI, Some(3)),
        (SUPERVISOR, status::SIE, irq::SEI | irq::MTI, Some(3)),
    ];
    for (privilege, mstatus, pins, expected) in cases {
        let mut h = hart(privilege);
        h.set(slots::MSTATUS, mstatus);
        h.env.pins = pins;
        let taken = h.take_interrupt().then(|| h.get(slots::PRIVILEGE));
        assert_eq!(taken, expected, "{privilege} {mstatus:#x} {pins:#x}");
    }
    // Without delegation, supervisor interrupts go to machine mode.
    let mut h = hart(MACHINE);
    h.set(slots::MSTATUS, status::MIE);
    h.set(slots::MIDELEG, 0);
    h.env.pins = irq::SEI;
    assert!(h.take_interrupt());
    assert_eq!(h.get(slots::MCAUSE), 1 << 63 | 9);
    // What `mie` masks is not taken.
    let mut h = hart(USER);
    h.set(slots::MIE, !irq::SEI & irq::ALL);
    h.env.pins = irq::SEI;
    assert!(!h.take_interrupt());
}

#[test]
fn software_bits_and_inputs_are_joined() {
    let mut h = hart(MACHINE);
    h.set(slots::MIE, 0);
    h.env.pins = irq::SEI;
    // The software's part of SEIP is not the input.
    assert_eq!(h.csr(6, n::MIP, 5, 2), HelperResult::Next(0));
    assert_eq!(h.x(5), irq::SEI);
    assert_eq!(h.get(slots::MIP), irq::SSI);
    assert_eq!(h.write_read(n::MIP, u64::MAX), Ok(irq::SUPERVISOR));
    h.env.pins = 0;
    assert_eq!(h.write_read(n::MIP, 0), Ok(0));
    assert_eq!(h.read(n::SIP), Ok(0));
    h.env.pins = irq::MEI | irq::SSI;
    assert_eq!(h.read(n::SIP), Ok(irq::SSI), "sip shows what is delegated");
}

#[test]
fn clearing_ssip_clears_its_input_and_nothing_else_does() {
    let mut h = Hart::new(Firmware::BuiltIn);
    h.env.pins = irq::SSI | irq::SEI;
    h.csr(7, n::SIP, 0, 1);
    assert_eq!(h.env.pins & irq::SSI, irq::SSI, "another bit was meant");
    h.csr(6, n::SIP, 0, 2);
    assert_eq!(h.read(n::SIP), Ok(irq::SSI | irq::SEI));
    h.csr(7, n::SIP, 0, 2);
    assert_eq!((h.env.pins, h.get(slots::MIP)), (irq::SEI, 0));
    // Supervisor mode cannot touch the others.
    h.write(n::SIP, u64::MAX);
    assert_eq!(h.get(slots::MIP), irq::SSI);
}

#[test]
fn an_interrupt_that_becomes_deliverable_ends_the_block() {
    let mut h = Hart::new(Firmware::BuiltIn);
    h.env.pins = irq::SEI;
    assert_eq!(h.write(n::SIE, irq::SEI), HelperResult::Next(0));
    assert_eq!(h.csr(6, n::SSTATUS, 0, 2), HelperResult::Jump);
    assert!(h.take_interrupt());
    assert_eq!(h.csr(6, n::SSTATUS, 0, 2), HelperResult::Jump);
    h.env.pins = 0;
    h.write(n::SSTATUS, 0);
    assert_eq!(h.csr(6, n::SSTATUS, 0, 2), HelperResult::Next(0));
}

#[test]
fn the_timer_interrupts_when_its_time_has_come() {
    let mut h = Hart::new(Firmware::BuiltIn);
    h.set(slots::MSTATUS, status::SIE);
    h.set(slots::MIE, irq::STI);
    h.write(n::STIMECMP, 10);
    assert_eq!(h.env.deadline, 1000);
    h.env.now = 999;
    assert!(!h.take_interrupt() && !wakes(&mut h.cpu()));
    h.env.now = 1000;
    assert!(wakes(&mut h.cpu()));
    assert!(h.take_interrupt());
    assert_eq!(h.get(slots::SCAUSE), 1 << 63 | 5);
    // Taken or not, it is pending until the comparison changes.
    assert_eq!(h.read(n::SIP), Ok(irq::STI));
    h.write(n::STIMECMP, 20);
    assert_eq!(h.read(n::SIP), Ok(0));
    // In the past: at once.
    h.set(slots::MSTATUS, status::SIE);
    assert_eq!(h.write(n::STIMECMP, 10), HelperResult::Jump);
    assert!(h.take_interrupt());
    // A deadline that comes while interrupts are off is noticed when they are turned on.
    h.write(n::STIMECMP, 30);
    h.set(slots::MSTATUS, 0);
    h.env.now = 3000;
    assert!(!h.take_interrupt());
    assert_eq!(h.csr(6, n::SSTATUS, 0, 2), HelperResult::Jump);
    assert!(h.take_interrupt());
    // Without STCE the bit is machine mode's.
    let mut h = hart(MACHINE);
    h.set(slots::STIMECMP, 0);
    assert_eq!(h.read(n::MIP), Ok(0));
    assert_eq!(h.write_read(n::MIP, irq::STI), Ok(irq::STI));
    assert_eq!(h.write_read(n::MENVCFG, envcfg::STCE), Ok(envcfg::STCE));
    assert_eq!(h.read(n::MIP), Ok(irq::STI), "stimecmp is 0");
    h.write(n::STIMECMP, u64::MAX);
    assert_eq!(h.read(n::MIP), Ok(0));
}

#[test]
fn wfi_waits_unless_there_is_a_reason_not_to() {
    const ILLEGAL: HelperResult = HelperResult::Raise(Exception { code: 2, value: 0x1050_0073 });
    let run = |h: &mut Hart| h.helper(wfi, 0x1050_0073, 0, 0);
    let mut h = hart(SUPERVISOR);
    let start = h.pc;
    assert_eq!(run(&mut h), HelperResult::Jump);
    assert_eq!((h.pc, h.env.waits), (start + 4, 1));
    // A pending interrupt counts even if it cannot be taken.
    h.env.pins = irq::SEI;
    assert_eq!(run(&mut h), HelperResult::Jump);
    assert_eq!(h.env.waits, 1);
    h.set(slots::MSTATUS, status::TW);
    assert_eq!(run(&mut h), ILLEGAL);
    h.set(slots::PRIVILEGE, 3);
    assert_eq!(run(&mut h), HelperResult::Jump);
    h.set(slots::PRIVILEGE, 0);
    h.set(slots::MSTATUS, 0);
    assert_eq!(run(&mut h), ILLEGAL);
}
