//! The host-target interface of bare test programs: a 64-bit word `tohost` in RAM that the host looks at
//! (RISC-V `riscv-isa-sim`, `fesvr`). 1 means passed, another odd value a failure's number; device 1
//! command 1 in the top bytes prints the low byte.

use std::sync::{Arc, OnceLock, Weak};

use plinth_clock::{Timer, Timers};
use plinth_memory::{Bytes, GuestAddress, GuestRam};
use plinth_vcpu::SystemEvent;

use crate::event::{Event, Events};
use crate::vm::Console;

const LOOK_NS: u64 = 1_000_000;

/// Looks at the word while it lives.
pub struct Htif {
    ram: GuestRam,
    word: GuestAddress,
    events: Arc<Events>,
    console: Console,
    clock: plinth_clock::Clock,
    timer: OnceLock<Timer>,
}

impl Htif {
    /// Starts to look at the word at `gpa`.
    pub fn start(
        gpa: u64,
        ram: &GuestRam,
        timers: &Timers,
        events: &Arc<Events>,
        console: &Console,
    ) -> Arc<Self> {
        let htif = Arc::new(Self {
            ram: ram.clone(),
            word: GuestAddress(gpa),
            events: Arc::clone(events),
            console: console.clone(),
            clock: timers.clock(),
            timer: OnceLock::new(),
        });
        let weak: Weak<Self> = Arc::downgrade(&htif);
        let timer = timers.timer(move || {
            if let Some(htif) = weak.upgrade() {
                htif.look();
            }
        });
        // In place before it is armed: the first look arms it again.
        htif.timer.get_or_init(|| timer).arm(timers.clock().now_ns() + LOOK_NS);
        htif
    }

    fn look(&self) {
        // A word outside RAM is never written.
        let value: u64 = self.ram.memory().read_obj(self.word).unwrap_or(0);
        match value {
            0 => {}
            1 => self.events.push(Event::Guest(SystemEvent::PowerOff)),
            v if v & 1 != 0 => {
                let why = format!("the test program reports failure {}", v >> 1);
                self.events.push(Event::Guest(SystemEvent::Crash(why)));
            }
            v if v >> 48 == 0x0101 => {
                self.console.write(&[v as u8]);
                // The write cannot fail where the read has not.
                let _ = self.ram.memory().write_obj(0u64, self.word);
            }
            _ => {}
        }
        if let Some(timer) = self.timer.get() {
            timer.arm(self.clock.now_ns() + LOOK_NS);
        }
    }
}
