//! Entry point for fuzzing configuration space and BAR placement.

use std::sync::{Arc, Mutex, PoisonError};

use plinth_device::{Bus, Device, IoOutcome, IrqLine, IrqSink, MmioDevice, MsiSink, Range};
use plinth_vcpu::PhysicalBus;

use crate::{
    BarSpec, BarWidth, Capability, FunctionConfig, MsixSpec, PciFunction, PciHost, PciHostConfig, PciIrq,
};

const ECAM: Range = Range { start: 0x3000_0000, len: 0x10_0000 };
const WINDOW: Range = Range { start: 0x4000_0000, len: 0x100_0000 };
const HIGH_WINDOW: Range = Range { start: 0x4_0000_0000, len: 0x1_0000_0000 };
/// A device that no BAR may displace.
const BYSTANDER: Range = Range { start: 0x4010_0000, len: 0x1000 };

struct Sink;
impl IrqSink for Sink {
    fn set_irq(&self, line: u32, _level: bool) {
        assert!(line < 4);
    }
}
impl MsiSink for Sink {
    fn send(&self, _address: u64, _data: u32) {}
}

struct Bystander;
impl MmioDevice for Bystander {
    fn read(&self, _offset: u64, data: &mut [u8]) -> IoOutcome {
        data.fill(0x5a);
        IoOutcome::Done
    }
    fn write(&self, _offset: u64, _data: &[u8]) -> IoOutcome {
        IoOutcome::Fault
    }
}

#[derive(Default)]
struct Function {
    irq: Mutex<Option<Arc<PciIrq>>>,
}

impl Device for Function {
    fn name(&self) -> &str {
        "fuzzed"
    }
    fn reset(&self) {}
}

impl PciFunction for Function {
    fn config(&self) -> FunctionConfig {
        FunctionConfig {
            bars: vec![
                BarSpec { index: 0, size: 0x2000, width: BarWidth::Bits32, prefetchable: false },
                BarSpec { index: 2, size: 0x10_0000, width: BarWidth::Bits64, prefetchable: true },
            ],
            capabilities: vec![Capability {
                id: 9,
                body: vec![0; 14],
                writable: vec![0xff; 7],
                window: None,
            }],
            msix: Some(MsixSpec { vectors: 3, bar: 0, table_offset: 0x1000, pba_offset: 0x1800 }),
            intx: true,
            express: true,
            ..FunctionConfig::default()
        }
    }

    fn connect(&self, irq: Arc<PciIrq>) {
        *self.irq.lock().unwrap_or_else(PoisonError::into_inner) = Some(irq);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) -> IoOutcome {
        let size = if bar == 0 { 0x2000 } else { 0x10_0000 };
        assert!(offset + data.len() as u64 <= size, "an access beyond the BAR");
        IoOutcome::Done
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> IoOutcome {
        // Any write makes the function interrupt in every way it has.
        let irq = self.irq.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(irq) = irq {
            irq.trigger(u16::from(data[0]));
            irq.set_intx(offset & 4 != 0);
        }
        self.bar_read(bar, offset, &mut [0; 8][..data.len()])
    }
}

/// Drives a bridge with two functions through accesses taken from `data`, eight bytes each, and panics if
/// an invariant breaks.
pub fn fuzz_pci_config(data: &[u8]) {
    let bus = Arc::new(Bus::new());
    bus.insert(BYSTANDER, Arc::new(Bystander)).expect("an empty bus");
    let sink: Arc<dyn IrqSink> = Arc::new(Sink);
    let intx = std::array::from_fn(|pin| IrqLine::new(Arc::clone(&sink), pin as u32));
    let config = PciHostConfig { ecam: ECAM, windows: vec![WINDOW, HIGH_WINDOW] };
    let host = PciHost::new(config, &bus, Some(Arc::new(Sink)), intx).expect("a free range");
    for slot in [1, 2] {
        host.add(slot, Arc::new(Function::default())).expect("a free slot");
    }
    for step in data.chunks_exact(8) {
        let value = &step[4..8];
        let at = u64::from(u16::from_le_bytes([step[1], step[2]]));
        let len = 1 << (step[3] % 4);
        // Refused accesses are part of what is tried.
        let _ = match step[0] % 8 {
            0 => bus.write(WINDOW.start + 0x100 * at, &value[..len.min(4)]),
            1 => bus.read(WINDOW.start + 0x100 * at, &mut [0; 8][..len]),
            2 => bus.read(ECAM.start + at * 4, &mut [0; 8][..len]),
            3 if step[3] == 0xff => {
                host.reset();
                Ok(())
            }
            3 => bus.write(ECAM.start + at, &value[..len.min(4)]),
            // Most steps go to the first registers of the two functions.
            slot => {
                let space = ECAM.start + u64::from(slot / 2 - 1) * 0x8000;
                bus.write(space + at % 0x100, &value[..len.min(4)])
            }
        };
    }
    let mut seen = [0; 4];
    assert!(bus.read(BYSTANDER.start, &mut seen).is_ok() && seen == [0x5a; 4], "a BAR took another's place");
    host.reset();
    assert!(bus.read(WINDOW.start, &mut seen).is_err(), "a BAR outlived the reset");
}
