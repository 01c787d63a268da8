//! The goldfish real-time clock (`google,goldfish-rtc`): nanoseconds since 1970 with an alarm. Registers as
//! in Android's `GOLDFISH-VIRTUAL-HARDWARE.TXT`, section "Goldfish RTC device".

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use plinth_clock::{Clock, NEVER, Timer, Timers};
use plinth_device::{Device, IoOutcome, IrqLine, MmioDevice};

use crate::{OutputLine, le_value, lock, put_le};

const TIME_LOW: u64 = 0x00;
const TIME_HIGH: u64 = 0x04;
const ALARM_LOW: u64 = 0x08;
const ALARM_HIGH: u64 = 0x0c;
const IRQ_ENABLED: u64 = 0x10;
const CLEAR_ALARM: u64 = 0x14;
const ALARM_STATUS: u64 = 0x18;
const CLEAR_INTERRUPT: u64 = 0x1c;

#[derive(Default)]
struct State {
    /// What the guest's clock is ahead of the host's, modulo 2^64, in nanoseconds.
    ahead: u64,
    /// High half of the time at the last read of the low half.
    latched_high: u32,
    alarm: u64,
    armed: bool,
    irq_enabled: bool,
    pending: bool,
}

struct Core {
    irq: OutputLine,
    state: Mutex<State>,
}

/// The clock. It shows the host's wall-clock time, moved by what the guest has set.
pub struct GoldfishRtc {
    clock: Clock,
    timer: Timer,
    core: Arc<Core>,
}

fn host_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(0))
}

impl State {
    fn now(&self) -> u64 {
        host_ns().wrapping_add(self.ahead)
    }

    fn level(&self) -> bool {
        self.pending && self.irq_enabled
    }
}

fn with_low(value: u64, low: u64) -> u64 {
    value & !0xffff_ffff | low & 0xffff_ffff
}

fn with_high(value: u64, high: u64) -> u64 {
    value & 0xffff_ffff | high << 32
}

impl Core {
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut s = lock(&self.state);
        let r = change(&mut s);
        let changed = self.irq.decide(s.level());
        drop(s);
        if changed {
            self.irq.deliver();
        }
        r
    }

    fn alarm_due(&self) {
        self.update(|s| {
            if s.armed && s.now() >= s.alarm {
                s.armed = false;
                s.pending = true;
            }
        });
    }
}

impl GoldfishRtc {
    /// Bytes of its range.
    pub const SIZE: u64 = 0x1000;

    /// A clock that interrupts on `irq`.
    #[must_use]
    pub fn new(irq: IrqLine, timers: &Timers) -> Self {
        let core = Arc::new(Core { irq: OutputLine::new(irq), state: Mutex::default() });
        let in_timer = Arc::clone(&core);
        Self { clock: timers.clock(), timer: timers.timer(move || in_timer.alarm_due()), core }
    }

    /// Arms the host's timer for the alarm. One that is due already fires at once.
    fn arm(&self) {
        let (armed, left) = {
            let s = lock(&self.core.state);
            (s.armed, s.alarm.saturating_sub(s.now()))
        };
        self.timer.arm(if armed { self.clock.now_ns().saturating_add(left) } else { NEVER });
    }

    fn write_register(&self, offset: u64, value: u64) {
        let rearm = self.core.update(|s| match offset {
            TIME_LOW => {
                let now = s.now();
                s.ahead = s.ahead.wrapping_add(with_low(now, value).wrapping_sub(now));
                true
            }
            TIME_HIGH => {
                let now = s.now();
                s.ahead = s.ahead.wrapping_add(with_high(now, value).wrapping_sub(now));
                true
            }
            ALARM_LOW => {
                s.alarm = with_low(s.alarm, value);
                s.armed = true;
                true
            }
            ALARM_HIGH => {
                s.alarm = with_high(s.alarm, value);
                false
            }
            IRQ_ENABLED => {
                s.irq_enabled = value & 1 != 0;
                false
            }
            CLEAR_ALARM => {
                s.armed = false;
                true
            }
            CLEAR_INTERRUPT => {
                s.pending = false;
                false
            }
            _ => false,
        });
        if rearm {
            self.arm();
        }
    }
}

impl MmioDevice for GoldfishRtc {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        let mut s = lock(&self.core.state);
        let value = match offset {
            TIME_LOW => {
                let now = s.now();
                s.latched_high = (now >> 32) as u32;
                now & 0xffff_ffff
            }
            TIME_HIGH => u64::from(s.latched_high),
            ALARM_LOW => s.alarm & 0xffff_ffff,
            ALARM_HIGH => s.alarm >> 32,
            IRQ_ENABLED => u64::from(s.irq_enabled),
            ALARM_STATUS => u64::from(s.armed),
            _ => 0,
        };
        put_le(data, value);
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        self.write_register(offset, le_value(data) & 0xffff_ffff);
        IoOutcome::Done
    }
}

impl Device for GoldfishRtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn reset(&self) {
        // A real-time clock keeps its time through a reset.
        self.core.update(|s| *s = State { ahead: s.ahead, ..State::default() });
        self.arm();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::line::testing::Pins;

    fn read(d: &GoldfishRtc, offset: u64) -> u64 {
        let mut b = [0; 4];
        assert_eq!(d.read(offset, &mut b), IoOutcome::Done);
        u64::from(u32::from_le_bytes(b))
    }

    fn time(d: &GoldfishRtc) -> u64 {
        read(d, TIME_LOW) | read(d, TIME_HIGH) << 32
    }

    fn write(d: &GoldfishRtc, offset: u64, value: u64) {
        d.write(offset, &(value as u32).to_le_bytes());
    }

    #[test]
    fn the_time_is_the_hosts_until_the_guest_sets_it() {
        let timers = Timers::new(Clock::new()).unwrap();
        let pins = Arc::new(Pins::default());
        let d = GoldfishRtc::new(pins.line(11), &timers);
        assert!(time(&d).abs_diff(host_ns()) < 5_000_000_000);
        let new = 1_000_000_000_000_000_000u64;
        write(&d, TIME_HIGH, new >> 32);
        write(&d, TIME_LOW, new);
        let shown = time(&d);
        assert!(shown >= new && shown - new < 5_000_000_000, "{shown}");
        d.reset();
        assert!(time(&d).abs_diff(new) < 5_000_000_000);
    }

    #[test]
    fn an_alarm_interrupts_once_and_can_be_cleared() {
        let timers = Timers::new(Clock::new()).unwrap();
        let pins = Arc::new(Pins::default());
        let d = GoldfishRtc::new(pins.line(11), &timers);
        let at = time(&d) + 20_000_000;
        write(&d, ALARM_HIGH, at >> 32);
        write(&d, ALARM_LOW, at);
        write(&d, IRQ_ENABLED, 1);
        assert_eq!(read(&d, ALARM_STATUS), 1);
        let limit = Instant::now() + Duration::from_secs(10);
        while !pins.get(11) {
            assert!(Instant::now() < limit, "no alarm");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(time(&d) >= at);
        assert_eq!(read(&d, ALARM_STATUS), 0);
        write(&d, CLEAR_INTERRUPT, 1);
        assert!(!pins.get(11));
    }
}
