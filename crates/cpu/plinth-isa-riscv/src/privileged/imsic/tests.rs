use plinth_ir::HelperResult;

use super::FILE;
use crate::harness::Hart;
use crate::privileged::csr::number as n;
use crate::privileged::interrupts::{irq, wakes};
use crate::privileged::state::{feature, status};
use crate::{Firmware, slots};

fn hart() -> Hart {
    let mut h = Hart::new(Firmware::BuiltIn);
    h.set(slots::FEATURES, h.get(slots::FEATURES) | feature::AIA);
    h
}

fn write(h: &mut Hart, select: u64, value: u64) -> HelperResult {
    h.write(n::SISELECT, select);
    h.write(n::SIREG, value)
}

fn read(h: &mut Hart, select: u64) -> Option<u64> {
    h.write(n::SISELECT, select);
    h.read(n::SIREG).ok()
}

/// Deliver everything, with identities 0 to 255 enabled.
fn enable(h: &mut Hart) {
    write(h, 0x70, 1);
    for select in [0xc0, 0xc2, 0xc4, 0xc6] {
        write(h, select, u64::MAX);
    }
}

#[test]
fn registers_are_selected() {
    let mut h = hart();
    for (select, expected) in [
        (0x70, Some(1)),
        (0x72, Some(0xff)),
        (0x71, Some(0)),
        (0x7f, Some(0)),
        (0x80, Some(!1)),
        (0x86, Some(!0)),
        (0x88, Some(0)),
        (0xbe, Some(0)),
        (0xc0, Some(!1)),
        (0xc6, Some(!0)),
        (0xfe, Some(0)),
        (0x30, Some(0)),
        (0x3e, Some(0)),
        (0x31, None),
        (0x81, None),
        (0xff, None),
        (0x00, None),
        (0x40, None),
        (0x100, None),
    ] {
        let written = write(&mut h, select, u64::MAX);
        assert_eq!(matches!(written, HelperResult::Raise(_)), expected.is_none(), "{select:#x}");
        assert_eq!(read(&mut h, select), expected, "{select:#x}");
    }
    h.set(slots::FEATURES, feature::SBI);
    for number in [n::SISELECT, n::SIREG, n::STOPEI, n::STOPI] {
        assert!(h.read(number).is_err());
    }
}

#[test]
fn messages_interrupt_in_order_and_are_claimed() {
    let mut h = hart();
    enable(&mut h);
    h.set(slots::MIE, irq::SEI);
    h.set(slots::MSTATUS, status::SIE);
    assert!(!h.take_interrupt() && !wakes(&mut h.cpu()));
    h.env.messages = vec![(FILE, 200), (FILE, 3), (FILE + 1, 2), (FILE, 0), (FILE, 256), (FILE, u32::MAX)];
    assert!(wakes(&mut h.cpu()));
    assert!(h.take_interrupt());
    assert_eq!(h.env.messages, [(FILE + 1, 2)]);
    assert_eq!(h.read(n::STOPI), Ok(9 << 16 | 1));
    assert_eq!(h.read(n::STOPEI), Ok(3 << 16 | 3));
    assert_eq!(h.csr(1, n::STOPEI, 5, 0), HelperResult::Next(0));
    assert_eq!(h.x(5), 3 << 16 | 3);
    assert_eq!(h.read(n::SIP), Ok(irq::SEI));
    h.csr(1, n::STOPEI, 5, 0);
    assert_eq!(h.x(5), 200 << 16 | 200);
    assert_eq!([n::STOPEI, n::STOPI, n::SIP].map(|c| h.read(c)), [Ok(0); 3]);
    // A claim of nothing changes nothing.
    h.write(n::STOPEI, 0);
    assert_eq!((h.read(n::STOPEI), read(&mut h, 0x80)), (Ok(0), Some(0)));
}

#[test]
fn thresholds_enables_and_delivery_hold_interrupts_back() {
    let mut h = hart();
    enable(&mut h);
    h.env.messages = vec![(FILE, 5)];
    write(&mut h, 0x72, 5);
    assert_eq!((h.read(n::STOPEI), h.read(n::SIP)), (Ok(0), Ok(0)));
    write(&mut h, 0x72, 6);
    assert_eq!((h.read(n::STOPEI), h.read(n::SIP)), (Ok(5 << 16 | 5), Ok(irq::SEI)));
    write(&mut h, 0x70, 0);
    assert_eq!((h.read(n::STOPEI), h.read(n::SIP)), (Ok(5 << 16 | 5), Ok(0)));
    write(&mut h, 0xc0, !(1 << 5));
    assert_eq!(h.read(n::STOPEI), Ok(0));
    assert_eq!(read(&mut h, 0x80), Some(1 << 5), "it stays pending");
    // Enabling it makes it deliverable, and ends the block.
    h.set(slots::MIE, irq::SEI);
    h.set(slots::MSTATUS, status::SIE);
    write(&mut h, 0x70, 1);
    assert_eq!(write(&mut h, 0xc0, 1 << 5), HelperResult::Jump);
}
