use super::registers::{IDC, IDC_STRIDE};
use super::*;
use crate::imsic::testing::Hart;
use crate::line::testing::Pins;

const ENABLE: u32 = 1 << 8;
const MSI: u32 = 1 << 2;
const LEVEL: u32 = 6;
const EDGE: u32 = 4;

struct Rig {
    aplic: Arc<Aplic>,
    harts: Vec<Arc<Hart>>,
    pins: Arc<Pins>,
}

/// Two harts; domain d drives pins 8 d + hart, and file 1 - d.
fn rig(domains: u32) -> Rig {
    let pins = Arc::new(Pins::default());
    let harts: Vec<_> = (0..2).map(|_| Arc::new(Hart::default())).collect();
    let aplic = Aplic::new(AplicConfig {
        sources: 96,
        harts: harts.iter().map(|h| h.clone() as Arc<dyn VcpuControl>).collect(),
        domains: (0..domains)
            .map(|d| AplicDomainConfig { lines: (0..2).map(|h| pins.line(d * 8 + h)).collect(), file: 1 - d })
            .collect(),
    });
    Rig { aplic, harts, pins }
}

impl Rig {
    fn write(&self, domain: usize, offset: u64, value: u32) {
        assert_eq!(self.aplic.domain(domain).write(offset, &value.to_le_bytes()), IoOutcome::Done);
    }
    fn read(&self, domain: usize, offset: u64) -> u32 {
        let mut b = [0; 4];
        assert_eq!(self.aplic.domain(domain).read(offset, &mut b), IoOutcome::Done);
        u32::from_le_bytes(b)
    }
    fn source(&self, domain: usize, source: u64, mode: u32, target: u32) {
        self.write(domain, source * 4, mode);
        self.write(domain, 0x3000 + source * 4, target);
        self.write(domain, 0x1edc, source as u32);
    }
}

#[test]
fn a_level_source_sends_one_message_a_rise() {
    let r = rig(1);
    r.write(0, 0, ENABLE | MSI);
    assert_eq!(r.read(0, 0), 0x8000_0000 | ENABLE | MSI);
    r.source(0, 10, LEVEL, 1 << 18 | 42);
    r.aplic.set_irq(10, true);
    r.aplic.set_irq(10, true);
    assert_eq!(r.harts[1].take(), [(1, 42)]);
    // A driver that finds the level still high asks again, as Linux does at the end of an interrupt.
    r.write(0, 0x2000, 10);
    assert_eq!(r.harts[1].take(), [(1, 42)]);
    r.aplic.set_irq(10, false);
    r.write(0, 0x2000, 10);
    assert!(r.harts[1].take().is_empty());
}

#[test]
fn an_edge_waits_for_its_enable() {
    let r = rig(1);
    r.write(0, 0, ENABLE | MSI);
    r.source(0, 33, EDGE, 7);
    r.write(0, 0x1fdc, 33);
    r.aplic.set_irq(33, true);
    r.aplic.set_irq(33, false);
    assert_eq!(r.read(0, 0x1c04), 2);
    assert!(r.harts[0].take().is_empty());
    r.write(0, 0x1e04, 2);
    assert_eq!(r.harts[0].take(), [(1, 7)]);
    assert_eq!(r.read(0, 0x1c04), 0);
    r.write(0, 0x3000, 1 << 18 | 9);
    assert_eq!(r.harts[1].take(), [(1, 9)]);
}

#[test]
fn direct_mode_claims_by_priority() {
    let r = rig(1);
    r.write(0, 0, ENABLE);
    r.source(0, 5, LEVEL, 3);
    r.source(0, 9, EDGE, 2);
    r.aplic.set_irq(5, true);
    r.aplic.set_irq(9, true);
    assert!(!r.pins.get(0));
    r.write(0, IDC, 1);
    assert!(r.pins.get(0) && !r.pins.get(1));
    assert_eq!(r.read(0, IDC + 0x18), 9 << 16 | 2);
    assert_eq!(r.read(0, IDC + 0x1c), 9 << 16 | 2);
    assert_eq!(r.read(0, IDC + 0x1c), 5 << 16 | 3, "a level stays until its device lets go");
    assert!(r.pins.get(0));
    r.write(0, IDC + 8, 3);
    assert!(!r.pins.get(0), "priority 3 is not above threshold 3");
    r.write(0, IDC + 8, 0);
    r.aplic.set_irq(5, false);
    assert!(!r.pins.get(0));
    r.write(0, IDC + IDC_STRIDE, 1);
    r.write(0, IDC + IDC_STRIDE + 4, 1);
    assert!(r.pins.get(1));
    assert_eq!(r.read(0, IDC + IDC_STRIDE + 0x1c), 0);
    assert!(!r.pins.get(1), "a claim of nothing takes the forced interrupt back");
}

#[test]
fn only_delegated_sources_reach_the_child() {
    let r = rig(2);
    r.write(1, 0, ENABLE | MSI);
    r.source(1, 4, LEVEL, 11);
    assert_eq!(r.read(1, 16), 0);
    r.write(0, 16, 1 << 10);
    r.source(1, 4, LEVEL, 11);
    assert_eq!((r.read(0, 16), r.read(1, 16)), (1 << 10, LEVEL));
    r.aplic.set_irq(4, true);
    assert_eq!(r.harts[0].take(), [(0, 11)]);
    r.write(0, 16, 0);
    assert_eq!(r.read(1, 16), 0);
    r.aplic.set_irq(4, false);
    r.aplic.set_irq(4, true);
    assert!(r.harts[0].take().is_empty());
    r.write(1, 16, 1 << 10);
    assert_eq!(r.read(1, 16), 0, "the last domain has no child");
}

#[test]
fn any_access_is_safe() {
    let r = rig(2);
    for domain in 0..2 {
        for offset in (0..AplicDomain::size(2)).step_by(4) {
            r.write(domain, offset, !0);
            r.read(domain, offset);
        }
    }
    assert_eq!(r.aplic.domain(0).read(1, &mut [0; 4]), IoOutcome::Fault);
    assert_eq!(r.aplic.domain(0).read(0, &mut [0; 8]), IoOutcome::Fault);
    r.aplic.set_irq(u32::MAX, true);
    r.aplic.domain(0).reset();
    r.aplic.domain(1).reset();
    assert_eq!(r.read(0, 0), 0x8000_0000);
    assert!(!r.pins.get(0) && !r.pins.get(8));
}
