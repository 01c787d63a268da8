//! An interrupt output that several threads drive.

use std::sync::atomic::{AtomicU64, Ordering};

use plinth_device::IrqLine;

/// A device's interrupt output. The level is decided under the device's lock ([`OutputLine::decide`]) and
/// delivered after the lock is gone ([`OutputLine::deliver`]); whatever the order in which threads get
/// there, the last level that is delivered is the last one decided.
#[derive(Debug)]
pub struct OutputLine {
    line: IrqLine,
    /// Count of decisions, then the level in bit 0.
    decided: AtomicU64,
}

impl OutputLine {
    /// An output that drives `line`; low.
    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        Self { line, decided: AtomicU64::new(0) }
    }

    /// Notes the new level; call it with the device's lock held. Returns true if [`Self::deliver`] must
    /// be called once the lock is released.
    #[must_use]
    pub fn decide(&self, level: bool) -> bool {
        let old = self.decided.load(Ordering::Relaxed);
        if (old & 1 != 0) == level {
            return false;
        }
        self.decided.store((old & !1).wrapping_add(2) | u64::from(level), Ordering::Release);
        true
    }

    /// Drives the line to the last level decided.
    pub fn deliver(&self) {
        loop {
            let decided = self.decided.load(Ordering::Acquire);
            self.line.set(decided & 1 != 0);
            // A decision made meanwhile may have been delivered before the one above: repeat it.
            if self.decided.load(Ordering::Acquire) == decided {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use plinth_device::{IrqLine, IrqSink};

    /// Interrupt inputs that remember their levels.
    #[derive(Default)]
    pub struct Pins([AtomicBool; 32]);

    impl IrqSink for Pins {
        fn set_irq(&self, line: u32, level: bool) {
            self.0[line as usize].store(level, Ordering::SeqCst);
        }
    }

    impl Pins {
        pub fn get(&self, line: u32) -> bool {
            self.0[line as usize].load(Ordering::SeqCst)
        }

        pub fn line(self: &Arc<Self>, line: u32) -> IrqLine {
            IrqLine::new(self.clone(), line)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::testing::Pins;
    use super::*;

    #[test]
    fn the_last_decision_is_what_stays_on_the_line() {
        let pins = Arc::new(Pins::default());
        let out = Arc::new(OutputLine::new(pins.line(3)));
        let level = Arc::new(Mutex::new(false));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let (out, level) = (out.clone(), level.clone());
                std::thread::spawn(move || {
                    for i in 0..5000 {
                        let changed = {
                            let mut l = level.lock().unwrap();
                            *l = (i + t) % 3 == 0;
                            out.decide(*l)
                        };
                        if changed {
                            out.deliver();
                        }
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        assert_eq!(pins.get(3), *level.lock().unwrap());
    }
}
