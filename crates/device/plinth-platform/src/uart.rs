//! The 16550A UART over a character stream, as `ns16550a` with byte registers (National Semiconductor
//! PC16550D data sheet, section 8).
//!
//! There is no baud rate: a byte leaves when the host takes it. When the host does not, the byte stays in
//! the transmit FIFO and is offered again by a timer, so nothing is lost. Bytes for the guest wait at the
//! backend until the receive FIFO has room. A character time is zero, so the character timeout is due as
//! soon as fewer bytes than the trigger level wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock};

use plinth_clock::{Clock, NEVER, Timer, Timers};
use plinth_device::{CharBackend, Device, IoOutcome, IrqLine, MmioDevice};

use crate::{OutputLine, lock, put_le};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1;
const IER_EMPTY: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM: u8 = 0x00;
const IIR_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO: u8 = 0xc0;

const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RX: u8 = 2;
const FCR_CLEAR_TX: u8 = 4;

const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;

const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_THR_EMPTY: u8 = 0x20;
const LSR_ALL_EMPTY: u8 = 0x40;

/// CTS, DSR and DCD are always there.
const MSR_CONNECTED: u8 = 0xb0;

const FIFO: usize = 16;
/// How soon a byte that the host did not take is offered again, in nanoseconds.
const RETRY_NS: u64 = 1_000_000;

#[derive(Default)]
struct State {
    divisor: [u8; 2],
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    overrun: bool,
    msr_delta: u8,
    /// The interrupt for an empty transmitter waits.
    empty_pending: bool,
    rx: VecDeque<u8>,
    tx: VecDeque<u8>,
}

impl State {
    fn power_on() -> Self {
        Self { divisor: [12, 0], ..Self::default() }
    }

    fn fifo_depth(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if self.fcr & FCR_ENABLE == 0 { 1 } else { [1, 4, 8, 14][usize::from(self.fcr >> 6)] }
    }

    /// The interrupt of highest priority, as IIR bits 0 to 3.
    fn cause(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            IIR_LINE
        } else if self.ier & IER_RECEIVED != 0 && self.rx.len() >= self.trigger() {
            IIR_RECEIVED
        } else if self.ier & IER_RECEIVED != 0 && !self.rx.is_empty() {
            IIR_TIMEOUT
        } else if self.ier & IER_EMPTY != 0 && self.empty_pending {
            IIR_EMPTY
        } else if self.ier & IER_MODEM != 0 && self.msr_delta != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        (self.mcr & 2) << 3 | (self.mcr & 1) << 5 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
    }

    fn set_mcr(&mut self, value: u8) {
        let before = self.modem_status();
        self.mcr = value & 0x1f;
        let after = self.modem_status();
        // RI reports its falling edge only.
        self.msr_delta |= (before ^ after) >> 4 & 0x0b | (before & !after) >> 4 & 0x04;
    }

    fn set_fcr(&mut self, value: u8) {
        let toggled = (value ^ self.fcr) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RX != 0 {
            self.rx.clear();
            self.overrun = false;
        }
        // What was accepted from the guest still goes out: a real transmitter would have sent it by now.
        if toggled || value & FCR_CLEAR_TX != 0 {
            self.empty_pending = self.tx.is_empty();
        }
        self.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
    }
}

struct Core {
    backend: Arc<dyn CharBackend>,
    clock: Clock,
    irq: OutputLine,
    state: Mutex<State>,
    /// Set right after construction.
    retry: OnceLock<Timer>,
}

impl Core {
    /// Changes the state, moves bytes, then sets the interrupt.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut s = lock(&self.state);
        let r = change(&mut s);
        self.transmit(&mut s);
        self.receive(&mut s);
        let stuck = !s.tx.is_empty();
        let changed = self.irq.decide(s.cause() != IIR_NONE);
        drop(s);
        if changed {
            self.irq.deliver();
        }
        if stuck
            && let Some(t) = self.retry.get()
            && t.deadline() == NEVER
        {
            t.arm(self.clock.now_ns().saturating_add(RETRY_NS));
        }
        r
    }

    fn transmit(&self, s: &mut State) {
        if s.tx.is_empty() {
            return;
        }
        let taken = self.backend.write(s.tx.make_contiguous()).min(s.tx.len());
        s.tx.drain(..taken);
        if s.tx.is_empty() {
            s.empty_pending = true;
        }
    }

    fn receive(&self, s: &mut State) {
        if s.mcr & MCR_LOOP != 0 || !s.rx.is_empty() {
            return;
        }
        let mut buf = [0; FIFO];
        let room = s.fifo_depth();
        let n = self.backend.read(&mut buf[..room]).min(room);
        s.rx.extend(&buf[..n]);
    }
}

/// The UART. 256 bytes of addresses; only the first 8 are registers.
pub struct Uart {
    core: Arc<Core>,
}

impl Uart {
    /// Bytes of its range.
    pub const SIZE: u64 = 0x100;

    /// A UART between the guest and `backend` that interrupts on `irq`.
    #[must_use]
    pub fn new(backend: Arc<dyn CharBackend>, irq: IrqLine, timers: &Timers) -> Self {
        let core = Arc::new(Core {
            backend: Arc::clone(&backend),
            clock: timers.clock(),
            irq: OutputLine::new(irq),
            state: Mutex::new(State::power_on()),
            retry: OnceLock::new(),
        });
        // Both callbacks hold the core weakly: they must not keep the device alive.
        let weak = Arc::downgrade(&core);
        let again = move || {
            if let Some(core) = weak.upgrade() {
                core.update(|_| ());
            }
        };
        let _ = core.retry.set(timers.timer(again.clone()));
        backend.on_input(Box::new(again));
        Self { core }
    }

    fn read_register(&self, offset: u64) -> u8 {
        self.core.update(|s| match offset {
            DATA if s.lcr & LCR_DLAB != 0 => s.divisor[0],
            DATA => s.rx.pop_front().unwrap_or(0),
            IER if s.lcr & LCR_DLAB != 0 => s.divisor[1],
            IER => s.ier,
            IIR_FCR => {
                let cause = s.cause();
                if cause == IIR_EMPTY {
                    s.empty_pending = false;
                }
                cause | if s.fcr & FCR_ENABLE != 0 { IIR_FIFO } else { 0 }
            }
            LCR => s.lcr,
            MCR => s.mcr,
            LSR => {
                let mut v = if s.tx.is_empty() { LSR_THR_EMPTY | LSR_ALL_EMPTY } else { 0 };
                v |= if s.rx.is_empty() { 0 } else { LSR_READY };
                v |= if std::mem::take(&mut s.overrun) { LSR_OVERRUN } else { 0 };
                v
            }
            MSR => s.modem_status() | std::mem::take(&mut s.msr_delta),
            SCR => s.scr,
            _ => 0,
        })
    }

    fn write_register(&self, offset: u64, value: u8) {
        self.core.update(|s| match offset {
            DATA if s.lcr & LCR_DLAB != 0 => s.divisor[0] = value,
            DATA if s.mcr & MCR_LOOP != 0 => {
                s.empty_pending = true;
                if s.rx.len() < s.fifo_depth() {
                    s.rx.push_back(value);
                } else {
                    s.overrun = true;
                }
            }
            DATA => {
                s.empty_pending = false;
                // A guest that does not look at LSR overwrites what waits, as on the real thing.
                if s.tx.len() >= s.fifo_depth() {
                    s.tx.pop_back();
                }
                s.tx.push_back(value);
            }
            IER if s.lcr & LCR_DLAB != 0 => s.divisor[1] = value,
            IER => {
                let new = value & 0x0f & !s.ier;
                s.ier = value & 0x0f;
                if new & IER_EMPTY != 0 && s.tx.is_empty() {
                    s.empty_pending = true;
                }
            }
            IIR_FCR => s.set_fcr(value),
            LCR => s.lcr = value,
            MCR => s.set_mcr(value),
            SCR => s.scr = value,
            _ => {}
        });
    }
}

impl MmioDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        put_le(data, self.read_register(offset).into());
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if let Some(&value) = data.first() {
            self.write_register(offset, value);
        }
        IoOutcome::Done
    }
}

impl Device for Uart {
    fn name(&self) -> &str {
        "uart"
    }

    fn reset(&self) {
        self.core.update(|s| {
            // What the guest sent before the reset still goes out.
            let tx = std::mem::take(&mut s.tx);
            *s = State { tx, ..State::power_on() };
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::line::testing::Pins;

    /// A host side with limited room.
    #[derive(Default)]
    struct Host {
        output: Mutex<Vec<u8>>,
        room: Mutex<usize>,
        input: Mutex<VecDeque<u8>>,
        notify: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    }

    impl CharBackend for Host {
        fn write(&self, data: &[u8]) -> usize {
            let mut room = self.room.lock().unwrap();
            let n = data.len().min(*room);
            *room -= n;
            self.output.lock().unwrap().extend(&data[..n]);
            n
        }
        fn read(&self, data: &mut [u8]) -> usize {
            let mut input = self.input.lock().unwrap();
            let n = data.len().min(input.len());
            for (d, b) in data.iter_mut().zip(input.drain(..n)) {
                *d = b;
            }
            n
        }
        fn on_input(&self, notify: Box<dyn Fn() + Send + Sync>) {
            *self.notify.lock().unwrap() = Some(notify);
        }
    }

    impl Host {
        fn type_in(&self, bytes: &[u8]) {
            self.input.lock().unwrap().extend(bytes);
            self.notify.lock().unwrap().as_ref().unwrap()();
        }
    }

    struct Rig {
        uart: Uart,
        host: Arc<Host>,
        pins: Arc<Pins>,
        _timers: Timers,
    }

    impl Rig {
        fn new(room: usize) -> Self {
            let timers = Timers::new(Clock::new()).unwrap();
            let pins = Arc::new(Pins::default());
            let host = Arc::new(Host { room: Mutex::new(room), ..Host::default() });
            let uart = Uart::new(host.clone(), pins.line(10), &timers);
            Self { uart, host, pins, _timers: timers }
        }
        fn get(&self, offset: u64) -> u8 {
            let mut b = [0];
            self.uart.read(offset, &mut b);
            b[0]
        }
        fn set(&self, offset: u64, value: u8) {
            self.uart.write(offset, &[value]);
        }
        fn irq(&self) -> bool {
            self.pins.get(10)
        }
    }

    #[test]
    fn the_empty_interrupt_follows_linux_transmit_path() {
        let r = Rig::new(usize::MAX);
        r.set(IIR_FCR, FCR_ENABLE);
        assert!(!r.irq());
        r.set(IER, IER_EMPTY);
        assert!(r.irq());
        assert_eq!(r.get(IIR_FCR), IIR_FIFO | IIR_EMPTY);
        assert!(!r.irq(), "reading IIR takes it back");
        assert_eq!(r.get(IIR_FCR), IIR_FIFO | IIR_NONE);
        for b in b"hello" {
            assert_eq!(r.get(LSR) & LSR_THR_EMPTY, LSR_THR_EMPTY);
            r.set(DATA, *b);
        }
        assert!(r.irq());
        assert_eq!(*r.host.output.lock().unwrap(), b"hello");
    }

    #[test]
    fn output_that_the_host_cannot_take_is_kept() {
        let r = Rig::new(3);
        r.set(IIR_FCR, FCR_ENABLE);
        for b in b"abcdef" {
            r.set(DATA, *b);
        }
        assert_eq!(r.get(LSR) & (LSR_THR_EMPTY | LSR_ALL_EMPTY), 0);
        *r.host.room.lock().unwrap() = 100;
        let limit = Instant::now() + Duration::from_secs(10);
        while r.host.output.lock().unwrap().len() < 6 {
            assert!(Instant::now() < limit, "no retry");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(*r.host.output.lock().unwrap(), b"abcdef");
        assert_eq!(r.get(LSR) & LSR_THR_EMPTY, LSR_THR_EMPTY);
    }

    #[test]
    fn input_flows_through_the_fifo_without_loss() {
        let r = Rig::new(0);
        r.set(IIR_FCR, FCR_ENABLE | 0xc0);
        r.set(IER, IER_RECEIVED);
        let text: Vec<u8> = (0..100).collect();
        r.host.type_in(&text);
        assert_eq!(r.get(IIR_FCR) & 0xf, IIR_RECEIVED);
        let mut got = Vec::new();
        while r.get(LSR) & LSR_READY != 0 {
            assert!(r.irq());
            got.push(r.get(DATA));
        }
        assert_eq!(got, text);
        assert!(!r.irq());
        r.host.type_in(b"x");
        assert_eq!(r.get(IIR_FCR) & 0xf, IIR_TIMEOUT);
    }

    #[test]
    fn loopback_passes_the_probe_of_linux() {
        let r = Rig::new(0);
        r.set(MCR, MCR_LOOP | 0x0a);
        assert_eq!(r.get(MSR) & 0xf0, 0x90);
        r.set(DATA, b'z');
        assert_eq!(r.get(LSR) & LSR_READY, LSR_READY);
        assert_eq!(r.get(DATA), b'z');
        r.set(DATA, 1);
        r.set(DATA, 2);
        assert_eq!(r.get(LSR) & LSR_OVERRUN, LSR_OVERRUN);
        assert_eq!(r.get(LSR) & LSR_OVERRUN, 0);
    }

    #[test]
    fn divisor_and_scratch_hold_their_values() {
        let r = Rig::new(0);
        r.set(SCR, 0x5a);
        r.set(LCR, LCR_DLAB | 3);
        r.set(DATA, 0x34);
        r.set(IER, 0x12);
        assert_eq!((r.get(DATA), r.get(IER)), (0x34, 0x12));
        r.set(LCR, 3);
        assert_eq!((r.get(IER), r.get(SCR), r.get(LCR)), (0, 0x5a, 3));
        r.uart.reset();
        assert_eq!((r.get(LCR), r.get(SCR)), (0, 0));
        let mut wide = [0xff; 8];
        assert_eq!(r.uart.read(LSR, &mut wide), IoOutcome::Done);
        assert_eq!(wide[1..], [0; 7]);
    }
}
