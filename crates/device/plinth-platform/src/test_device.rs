//! The test finisher of SiFive boards (`sifive,test1`, used as `syscon` by poweroff and reboot nodes):
//! one 32-bit register whose low half says what happens and whose high half is a code.

use std::sync::Arc;

use plinth_device::{Device, IoOutcome, MmioDevice, SystemEvent};

use crate::{le_value, put_le};

const FAIL: u64 = 0x3333;
const PASS: u64 = 0x5555;
const RESET: u64 = 0x7777;

/// Who is told of machine-wide events. Must return at once.
pub type EventSink = Arc<dyn Fn(SystemEvent) + Send + Sync>;

/// The poweroff and reset register. 4 KiB of addresses; only offset 0 does something.
pub struct TestDevice {
    events: EventSink,
}

impl TestDevice {
    /// Bytes of its range.
    pub const SIZE: u64 = 0x1000;
    /// What the guest writes to power off.
    pub const POWER_OFF: u32 = PASS as u32;
    /// What the guest writes to reset.
    pub const REBOOT: u32 = RESET as u32;

    /// A device that reports to `events`.
    #[must_use]
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl MmioDevice for TestDevice {
    fn read(&self, _offset: u64, data: &mut [u8]) -> IoOutcome {
        put_le(data, 0);
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        let value = le_value(data);
        let code = value >> 16 & 0xffff;
        match (offset, value & 0xffff) {
            (0, PASS) => (self.events)(SystemEvent::PowerOff),
            (0, RESET) => (self.events)(SystemEvent::Reset),
            (0, FAIL) => (self.events)(SystemEvent::Crash(format!(
                "the guest reported failure {code} to its test device"
            ))),
            _ => {}
        }
        IoOutcome::Done
    }
}

impl Device for TestDevice {
    fn name(&self) -> &str {
        "test"
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn the_three_values_are_events_and_nothing_else_is() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let to = seen.clone();
        let d = TestDevice::new(Arc::new(move |e| to.lock().unwrap().push(e)));
        for (offset, value) in [(0, 1u32), (4, 0x5555), (0, 0x5555), (0, 0x7777), (0, 0x0007_3333)] {
            d.write(offset, &value.to_le_bytes());
        }
        let seen = seen.lock().unwrap();
        assert_eq!(seen[..2], [SystemEvent::PowerOff, SystemEvent::Reset]);
        assert!(matches!(&seen[2..], [SystemEvent::Crash(why)] if why.contains("failure 7 ")));
    }
}
