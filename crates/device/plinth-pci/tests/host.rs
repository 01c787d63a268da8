//! The host bridge as a guest meets it: through the machine's bus.

use std::sync::{Arc, Mutex};

use plinth_device::{Bus, Device, IoOutcome, IrqLine, IrqSink, MsiSink, Range};
use plinth_pci::{
    BarSpec, BarWidth, Capability, ConfigWindow, FunctionConfig, MsixSpec, PciError, PciFunction, PciHost,
    PciHostConfig, PciIrq, WindowSpec,
};
use plinth_vcpu::PhysicalBus;

const ECAM: u64 = 0x3000_0000;
const MMIO: u64 = 0x4000_0000;
const HIGH: u64 = 0x4_0000_0000;

#[derive(Default)]
struct Wires {
    levels: Mutex<[bool; 4]>,
    messages: Mutex<Vec<(u64, u32)>>,
}

impl IrqSink for Wires {
    fn set_irq(&self, line: u32, level: bool) {
        self.levels.lock().unwrap()[line as usize] = level;
    }
}

impl MsiSink for Wires {
    fn send(&self, address: u64, data: u32) {
        self.messages.lock().unwrap().push((address, data));
    }
}

/// Echoes BAR number and offset; its capability's window echoes the body's first byte.
#[derive(Default)]
struct Echo {
    irq: Mutex<Option<Arc<PciIrq>>>,
    resets: Mutex<u32>,
}

impl Echo {
    fn irq(&self) -> Arc<PciIrq> {
        self.irq.lock().unwrap().clone().unwrap()
    }
}

struct Window;
impl ConfigWindow for Window {
    fn read(&self, body: &[u8], offset: usize, data: &mut [u8]) {
        data.fill(body[0] + offset as u8);
    }
    fn write(&self, _body: &[u8], _offset: usize, _data: &[u8]) {}
}

impl Device for Echo {
    fn name(&self) -> &str {
        "echo"
    }
    fn reset(&self) {
        *self.resets.lock().unwrap() += 1;
    }
}

impl PciFunction for Echo {
    fn config(&self) -> FunctionConfig {
        FunctionConfig {
            vendor_id: 0x1af4,
            device_id: 0x1042,
            revision: 1,
            class: 0x01_0000,
            subsystem_vendor_id: 0x1af4,
            subsystem_id: 0x1100,
            bars: vec![
                BarSpec { index: 0, size: 0x4000, width: BarWidth::Bits64, prefetchable: false },
                BarSpec { index: 2, size: 0x1000, width: BarWidth::Bits32, prefetchable: false },
            ],
            capabilities: vec![Capability {
                id: 9,
                body: vec![0x20, 0, 0, 0, 0, 0],
                writable: vec![0x0f],
                window: Some(WindowSpec { range: 2..6, handler: Arc::new(Window) }),
            }],
            msix: Some(MsixSpec { vectors: 2, bar: 0, table_offset: 0x2000, pba_offset: 0x3000 }),
            intx: true,
            express: true,
        }
    }

    fn connect(&self, irq: Arc<PciIrq>) {
        *self.irq.lock().unwrap() = Some(irq);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) -> IoOutcome {
        data.fill(offset as u8 + bar as u8);
        IoOutcome::Done
    }

    fn bar_write(&self, _bar: usize, _offset: u64, _data: &[u8]) -> IoOutcome {
        IoOutcome::Done
    }
}

struct Guest {
    bus: Arc<Bus>,
    host: Arc<PciHost>,
    wires: Arc<Wires>,
    a: Arc<Echo>,
    b: Arc<Echo>,
}

impl Guest {
    fn new(msi: bool) -> Self {
        let bus = Arc::new(Bus::new());
        let wires = Arc::new(Wires::default());
        let intx = std::array::from_fn(|pin| IrqLine::new(wires.clone(), pin as u32));
        let config = PciHostConfig {
            ecam: Range { start: ECAM, len: 0x1000_0000 },
            windows: vec![Range { start: MMIO, len: 0x10_0000 }, Range { start: HIGH, len: 0x10_0000 }],
        };
        let sink = msi.then(|| wires.clone() as Arc<dyn MsiSink>);
        let host = PciHost::new(config, &bus, sink, intx).unwrap();
        let (a, b) = (Arc::new(Echo::default()), Arc::new(Echo::default()));
        host.add(1, a.clone()).unwrap();
        host.add(5, b.clone()).unwrap();
        Self { bus, host, wires, a, b }
    }

    fn read(&self, gpa: u64) -> Option<u32> {
        let mut b = [0; 4];
        self.bus.read(gpa, &mut b).ok().map(|()| u32::from_le_bytes(b))
    }

    fn write(&self, gpa: u64, value: u32) {
        self.bus.write(gpa, &value.to_le_bytes()).unwrap();
    }

    fn cfg(&self, slot: u64, at: u64) -> u32 {
        self.read(ECAM + slot * 0x8000 + at).unwrap()
    }

    fn set_cfg(&self, slot: u64, at: u64, value: u32) {
        self.write(ECAM + slot * 0x8000 + at, value);
    }

    fn find_cap(&self, slot: u64, id: u32) -> Option<u64> {
        let mut at = self.cfg(slot, 0x34) & 0xff;
        while at != 0 {
            let head = self.cfg(slot, at.into());
            if head & 0xff == id {
                return Some(at.into());
            }
            at = (head >> 8) & 0xff;
        }
        None
    }
}

#[test]
fn identity_and_absent_functions_read_as_the_specification_says() {
    let g = Guest::new(true);
    assert_eq!(g.cfg(0, 8) >> 16, 0x0600, "slot 0 is the host bridge");
    assert_eq!(g.cfg(1, 0), 0x1042_1af4);
    assert_eq!(g.cfg(1, 8), 0x0100_0001);
    assert_eq!(g.cfg(1, 0x2c), 0x1100_1af4);
    assert_eq!(g.cfg(1, 0x3c) >> 8, 1);
    assert_eq!(g.cfg(2, 0), !0, "an empty slot");
    assert_eq!(g.read(ECAM + 0x8000 + 0x1000), Some(!0), "function 1");
    assert_eq!(g.read(ECAM + 0x10_0000), Some(!0), "bus 1");
    assert_eq!(g.cfg(1, 0x100), 0, "no extended capabilities");
    let express = g.find_cap(1, 0x10).unwrap();
    assert_eq!(g.cfg(1, express) >> 16, 0x0092);
    g.set_cfg(1, 0, 0);
    assert_eq!(g.cfg(1, 0), 0x1042_1af4, "read-only");
}

#[test]
fn bars_are_sized_moved_and_bounded_by_the_windows() {
    let g = Guest::new(true);
    assert_eq!(g.cfg(1, 0x10), 4);
    g.set_cfg(1, 0x10, !0);
    g.set_cfg(1, 0x14, !0);
    g.set_cfg(1, 0x18, !0);
    assert_eq!([g.cfg(1, 0x10), g.cfg(1, 0x14), g.cfg(1, 0x18)], [0xffff_c004, !0, 0xffff_f000]);
    assert_eq!(g.cfg(1, 0x1c), 0);

    g.set_cfg(1, 0x10, MMIO as u32);
    g.set_cfg(1, 0x14, 0);
    g.set_cfg(1, 0x18, MMIO as u32 + 0x8000);
    assert_eq!(g.read(MMIO + 8), None, "memory decoding is off");
    g.set_cfg(1, 4, 2);
    assert_eq!(g.read(MMIO + 8), Some(0x0808_0808));
    assert_eq!(g.read(MMIO + 0x8008), Some(0x0a0a_0a0a));

    // Moved with decoding on, half by half, through a place outside the windows.
    g.set_cfg(1, 0x14, (HIGH >> 32) as u32);
    assert_eq!(g.read(MMIO + 8), None);
    g.set_cfg(1, 0x10, 0x4000);
    assert_eq!(g.read(HIGH + 0x4008), Some(0x0808_0808));
    assert_eq!(g.read(HIGH + 8), None);

    // Outside every window, and across a window's end.
    for start in [0x8000_0000, ECAM as u32, (MMIO + 0x10_0000 - 0x800) as u32, 0] {
        g.set_cfg(1, 0x18, start);
        assert_eq!(g.read(MMIO + 0x8008), None);
    }
    g.set_cfg(1, 4, 0);
    assert_eq!(g.read(HIGH + 0x4008), None);
}

#[test]
fn an_overlapping_bar_waits_until_the_place_is_free() {
    let g = Guest::new(true);
    for slot in [1, 5] {
        g.set_cfg(slot, 0x10, MMIO as u32);
        g.set_cfg(slot, 0x18, MMIO as u32 + 0x8000);
        g.set_cfg(slot, 4, 2);
    }
    assert_eq!(g.read(MMIO + 8), Some(0x0808_0808));
    g.set_cfg(1, 4, 0);
    assert_eq!(g.read(MMIO + 8), Some(0x0808_0808), "slot 5 took over");
    g.set_cfg(5, 4, 0);
    assert_eq!(g.read(MMIO + 8), None);
}

#[test]
fn msix_goes_through_the_table_in_the_bar() {
    let g = Guest::new(true);
    g.set_cfg(1, 0x10, MMIO as u32);
    g.set_cfg(1, 4, 6);
    let cap = g.find_cap(1, 0x11).unwrap();
    assert_eq!(g.cfg(1, cap) >> 16, 1, "two vectors");
    assert_eq!([g.cfg(1, cap + 4), g.cfg(1, cap + 8)], [0x2000, 0x3000]);
    assert!(!g.a.irq().msix_enabled());
    g.set_cfg(1, cap, 0x8000_0000);
    assert!(g.a.irq().msix_enabled());
    assert_eq!(g.read(MMIO + 0x201c), Some(1), "masked after reset");
    g.write(MMIO + 0x2010, 0x2800_0000);
    g.write(MMIO + 0x2018, 9);
    g.a.irq().trigger(1);
    assert_eq!(g.read(MMIO + 0x3000), Some(2));
    g.write(MMIO + 0x201c, 0);
    assert_eq!(*g.wires.messages.lock().unwrap(), [(0x2800_0000, 9)]);
    g.a.irq().set_intx(true);
    assert_eq!(*g.wires.levels.lock().unwrap(), [false; 4], "no INTx while MSI-X is on");

    let without = Guest::new(false);
    assert_eq!(without.find_cap(1, 0x11), None);
}

#[test]
fn intx_is_swizzled_shared_and_can_be_disabled() {
    let g = Guest::new(true);
    let level = || g.wires.levels.lock().unwrap()[1];
    g.a.irq().set_intx(true);
    g.b.irq().set_intx(true);
    assert_eq!(*g.wires.levels.lock().unwrap(), [false, true, false, false]);
    assert_eq!(g.cfg(1, 4) >> 16 & 8, 8, "interrupt status");
    g.a.irq().set_intx(false);
    assert!(level(), "slot 5 still holds the shared line");
    g.set_cfg(5, 4, 1 << 10);
    assert!(!level());
    assert_eq!(g.cfg(5, 4) >> 16 & 8, 8, "the status bit ignores the disable bit");
    g.set_cfg(5, 4, 0);
    assert!(level());
    g.host.reset();
    assert!(!level());
}

#[test]
fn a_reset_puts_everything_back() {
    let g = Guest::new(true);
    g.set_cfg(1, 0x10, MMIO as u32);
    g.set_cfg(1, 4, 6);
    let cap = g.find_cap(1, 0x11).unwrap();
    g.set_cfg(1, cap, 0x8000_0000);
    g.host.reset();
    assert_eq!(g.read(MMIO), None);
    assert_eq!(g.cfg(1, 4) & 0xffff, 0);
    assert_eq!(g.cfg(1, 0x10), 4);
    assert!(!g.a.irq().msix_enabled());
    assert_eq!((*g.a.resets.lock().unwrap(), *g.b.resets.lock().unwrap()), (1, 1));
}

#[test]
fn a_capability_window_is_answered_by_its_function() {
    let g = Guest::new(true);
    let cap = g.find_cap(1, 9).unwrap();
    let mut b = [0; 1];
    g.bus.write(ECAM + 0x8000 + cap + 2, &[0xff]).unwrap();
    g.bus.read(ECAM + 0x8000 + cap + 2, &mut b).unwrap();
    assert_eq!(b, [0x2f], "only the writable bits changed");
    assert_eq!(g.cfg(1, cap + 4), 0x2f2f_2f2f);
}

#[test]
fn wrong_functions_are_refused() {
    let g = Guest::new(true);
    let new = || Arc::new(Echo::default());
    assert!(matches!(g.host.add(1, new()), Err(PciError::SlotTaken(1))));
    assert!(matches!(g.host.add(0, new()), Err(PciError::NoSlot(0))));
    assert!(matches!(g.host.add(32, new()), Err(PciError::NoSlot(32))));
}

#[test]
fn random_accesses_break_no_invariant() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let data: Vec<u8> = (0..400_000)
        .map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        })
        .collect();
    for chunk in data.chunks(8000) {
        plinth_pci::fuzz_pci_config(chunk);
    }
}
