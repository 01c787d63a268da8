//! Timer and software interrupts of RISC-V harts in the layout of SiFive's CLINT (`sifive,clint0`), which
//! is also an ACLINT's MSWI at 0, MTIMER compare at 0x4000 and time at 0xbff8.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use plinth_clock::{Clock, NEVER, Timer, Timers};
use plinth_device::{Device, IoOutcome, IrqLine, MmioDevice};

use crate::{OutputLine, le_value, lock, put_le};

const MSIP: u64 = 0;
const MTIMECMP: u64 = 0x4000;
const MTIME: u64 = 0xbff8;

/// How the device is wired.
#[derive(Debug)]
pub struct AclintConfig {
    /// Ticks of MTIME in a second.
    pub timebase_hz: u64,
    /// Of each hart, by index: its software and its timer interrupt input. At most 4095.
    pub harts: Vec<(IrqLine, IrqLine)>,
}

struct Compare {
    hz: u64,
    clock: Clock,
    irq: OutputLine,
    /// The interrupt is high once the time has reached this.
    value: Mutex<u64>,
}

impl Compare {
    /// Sets the interrupt's level from the time; returns when to look again, in nanoseconds.
    fn evaluate(&self, new: Option<u64>) -> u64 {
        let mut value = lock(&self.value);
        if let Some(new) = new {
            *value = new;
        }
        let due = self.clock.ticks(self.hz) >= *value;
        let next = if due { NEVER } else { Clock::ns_of_ticks(*value, self.hz) };
        let changed = self.irq.decide(due);
        drop(value);
        if changed {
            self.irq.deliver();
        }
        next
    }
}

struct Hart {
    compare: Arc<Compare>,
    timer: Timer,
    software: OutputLine,
    msip: Mutex<bool>,
}

impl Hart {
    fn set_compare(&self, value: u64) {
        let next = self.compare.evaluate(Some(value));
        self.timer.arm(next);
    }

    fn set_msip(&self, level: bool) {
        let mut msip = lock(&self.msip);
        *msip = level;
        let changed = self.software.decide(level);
        drop(msip);
        if changed {
            self.software.deliver();
        }
    }
}

/// The device. MTIME counts the machine's clock and cannot be set, so that it agrees with the harts' `time`
/// register; writes to it are ignored.
pub struct Aclint {
    hz: u64,
    clock: Clock,
    harts: Vec<Hart>,
}

impl Aclint {
    /// Bytes of its range.
    pub const SIZE: u64 = 0x10000;

    /// Makes the device; every compare register starts at its highest value.
    #[must_use]
    pub fn new(config: AclintConfig, timers: &Timers) -> Self {
        let AclintConfig { timebase_hz: hz, harts } = config;
        let clock = timers.clock();
        let harts = harts
            .into_iter()
            .map(|(software, timer)| {
                let compare =
                    Arc::new(Compare { hz, clock, irq: OutputLine::new(timer), value: Mutex::new(NEVER) });
                let in_timer = Arc::clone(&compare);
                // A timer that fires too early by rounding finds the time not reached and would be lost:
                // the deadline is rounded up, and the clock is monotonic, so that cannot be.
                let timer = timers.timer(move || {
                    in_timer.evaluate(None);
                });
                Hart { compare, timer, software: OutputLine::new(software), msip: Mutex::new(false) }
            })
            .collect();
        Self { hz, clock, harts }
    }

    /// The hart whose register of `stride` bytes in the array `regs` holds `offset`, and the bits to shift.
    fn index(&self, offset: u64, regs: Range<u64>, stride: u64) -> Option<(&Hart, u64)> {
        let at = offset.checked_sub(regs.start).filter(|_| offset < regs.end)?;
        Some((self.harts.get(usize::try_from(at / stride).ok()?)?, at % stride * 8))
    }
}

fn aligned(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

impl MmioDevice for Aclint {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        if !aligned(offset, data.len()) {
            return IoOutcome::Fault;
        }
        let value = if (MTIME..MTIME + 8).contains(&offset) {
            self.clock.ticks(self.hz) >> ((offset - MTIME) * 8)
        } else if let Some((hart, shift)) = self.index(offset, MTIMECMP..MTIME, 8) {
            *lock(&hart.compare.value) >> shift
        } else if let Some((hart, _)) = self.index(offset, MSIP..MTIMECMP, 4) {
            u64::from(*lock(&hart.msip))
        } else {
            0
        };
        put_le(data, value);
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if !aligned(offset, data.len()) {
            return IoOutcome::Fault;
        }
        let value = le_value(data);
        if let Some((hart, shift)) = self.index(offset, MTIMECMP..MTIME, 8) {
            let mask = if data.len() == 8 { u64::MAX } else { 0xffff_ffff << shift };
            let old = *lock(&hart.compare.value);
            hart.set_compare(old & !mask | value << shift & mask);
        } else if let Some((hart, _)) = self.index(offset, MSIP..MTIMECMP, 4) {
            hart.set_msip(value & 1 != 0);
        }
        IoOutcome::Done
    }
}

impl Device for Aclint {
    fn name(&self) -> &str {
        "aclint"
    }

    fn reset(&self) {
        for h in &self.harts {
            h.set_compare(NEVER);
            h.set_msip(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::line::testing::Pins;

    fn device(timers: &Timers, pins: &Arc<Pins>) -> Aclint {
        let harts = (0..2).map(|h| (pins.line(h * 8 + 3), pins.line(h * 8 + 7))).collect();
        Aclint::new(AclintConfig { timebase_hz: 10_000_000, harts }, timers)
    }

    fn read<const N: usize>(d: &Aclint, offset: u64) -> u64 {
        let mut b = [0; N];
        assert_eq!(d.read(offset, &mut b), IoOutcome::Done);
        le_value(&b)
    }

    #[test]
    fn software_interrupts_reach_their_hart() {
        let timers = Timers::new(Clock::new()).unwrap();
        let pins = Arc::new(Pins::default());
        let d = device(&timers, &pins);
        d.write(4, &0xffff_ffffu32.to_le_bytes());
        assert!(pins.get(11) && !pins.get(3));
        assert_eq!(read::<4>(&d, 4), 1);
        d.write(8, &1u32.to_le_bytes());
        assert_eq!(read::<4>(&d, 8), 0, "there is no third hart");
        d.reset();
        assert!(!pins.get(11));
    }

    #[test]
    fn the_timer_interrupt_follows_compare() {
        let timers = Timers::new(Clock::new()).unwrap();
        let pins = Arc::new(Pins::default());
        let d = device(&timers, &pins);
        assert_eq!(read::<8>(&d, MTIMECMP + 8), u64::MAX);
        d.write(MTIMECMP + 8, &0u64.to_le_bytes());
        assert!(pins.get(15) && !pins.get(7));
        let soon = read::<8>(&d, MTIME) + 200_000;
        d.write(MTIMECMP + 8, &(soon as u32).to_le_bytes());
        d.write(MTIMECMP + 12, &((soon >> 32) as u32).to_le_bytes());
        assert_eq!(read::<8>(&d, MTIMECMP + 8), soon);
        let limit = Instant::now() + Duration::from_secs(10);
        while !pins.get(15) {
            assert!(Instant::now() < limit, "no timer interrupt");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(read::<8>(&d, MTIME) >= soon);
    }

    #[test]
    fn odd_accesses_fault() {
        let timers = Timers::new(Clock::new()).unwrap();
        let d = device(&timers, &Arc::new(Pins::default()));
        assert_eq!(d.read(MTIME, &mut [0; 2]), IoOutcome::Fault);
        assert_eq!(d.write(MTIMECMP + 4, &[0; 8]), IoOutcome::Fault);
        assert_eq!(d.read(0xfff8 + 4, &mut [0; 4]), IoOutcome::Done);
    }
}
