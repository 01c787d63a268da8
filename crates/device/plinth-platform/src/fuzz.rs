//! Entry point for fuzzing the devices' registers.

use std::sync::Arc;

use plinth_clock::{Clock, Timers};
use plinth_device::{CharBackend, Device, IrqLine, IrqSink, MmioDevice};

use crate::{Aclint, AclintConfig, GoldfishRtc, Plic, PlicConfig, TestDevice, Uart};

/// vCPU inputs: only those that are wired may be driven.
struct Pins;

impl IrqSink for Pins {
    fn set_irq(&self, line: u32, _level: bool) {
        assert!(line < 8);
    }
}

/// A host side that takes some bytes and has some.
struct Host;

impl CharBackend for Host {
    fn write(&self, data: &[u8]) -> usize {
        data.len() / 2
    }
    fn read(&self, data: &mut [u8]) -> usize {
        data.fill(0x55);
        data.len()
    }
    fn on_input(&self, _notify: Box<dyn Fn() + Send + Sync>) {}
}

trait Both: MmioDevice + Device {}
impl<T: MmioDevice + Device> Both for T {}

/// Treats `data` as accesses of 8 bytes: device, size and direction, offset, value.
pub fn fuzz_platform(data: &[u8]) {
    let Ok(timers) = Timers::new(Clock::new()) else { return };
    let pins: Arc<dyn IrqSink> = Arc::new(Pins);
    let pin = |line| IrqLine::new(Arc::clone(&pins), line);
    let plic = Arc::new(Plic::new(PlicConfig { sources: 95, contexts: (0..4).map(pin).collect() }));
    let source = |line| IrqLine::new(plic.clone(), line);
    let aclint = AclintConfig { timebase_hz: 10_000_000, harts: vec![(pin(4), pin(5)), (pin(6), pin(7))] };
    let devices: [(u64, Arc<dyn Both>); 5] = [
        (0x60_0000, plic.clone()),
        (Aclint::SIZE, Arc::new(Aclint::new(aclint, &timers))),
        (Uart::SIZE, Arc::new(Uart::new(Arc::new(Host), source(10), &timers))),
        (GoldfishRtc::SIZE, Arc::new(GoldfishRtc::new(source(11), &timers))),
        (TestDevice::SIZE, Arc::new(TestDevice::new(Arc::new(|_| ())))),
    ];
    for access in data.chunks_exact(8) {
        let [device, how, a, b, c, d, e, f] = *access else { continue };
        let Some((size, device)) = devices.get(usize::from(device) % 8) else { continue };
        let len = 1usize << (how & 3);
        // A few low bits matter most; the rest reaches far registers.
        let offset = (u64::from(u32::from_le_bytes([a, b, c, 0])) >> (how >> 4)) % (size - len as u64 + 1);
        let value = [d, e, f, d, e, f, d, e];
        match how & 0xc {
            0 => {
                let mut out = [0; 8];
                device.read(offset, &mut out[..len]);
            }
            4 | 8 => {
                device.write(offset, &value[..len]);
            }
            _ if how == 0xff => device.reset(),
            _ => plic.set_irq(u32::from(d), e & 1 != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_accesses_never_panic() {
        let mut random = 7u64;
        let accesses: Vec<u8> = (0..400_000)
            .map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 40) as u8
            })
            .collect();
        super::fuzz_platform(&accesses);
    }
}
