//! A vCPU as other threads see it: interrupt inputs, requests, sleep and wake-up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use plinth_vcpu::{IrqSink, StartState, TlbFlush, VcpuControl, VcpuPower};

use crate::code::Dropped;
use crate::frame::FrameMap;

/// What a vCPU is asked to do before it runs another guest instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Forget translations.
    Flush(TlbFlush),
    /// Stores to this guest physical page must come to the slow path.
    ProtectPage(u64),
    /// Forget where these translations are.
    DropCode(Arc<[Dropped]>),
    /// Forget where any translation is.
    DropAllCode,
}

/// So many requests may wait; further translations to forget are not told one by one.
const WAITING: usize = 64;

struct State {
    requests: Vec<Request>,
    /// Requests accepted so far, and how many of those are done.
    queued: u64,
    done: u64,
    /// The vCPU runs no guest code and looks at requests before it does.
    outside: bool,
    power: VcpuPower,
    start: Option<StartState>,
    messages: Vec<(u32, u32)>,
    sleeping: bool,
}

impl State {
    fn push(&mut self, request: Request) {
        let request = match request {
            // A vCPU may sleep while devices write for long.
            Request::DropCode(_) if self.requests.len() >= WAITING => Request::DropAllCode,
            other => other,
        };
        if !self.requests.contains(&request) {
            self.requests.push(request);
        }
    }
}

/// Shared between a vCPU and everybody else.
pub struct Control {
    index: u32,
    frame: Arc<FrameMap>,
    pins: AtomicU64,
    kicked: AtomicBool,
    deadline_passed: AtomicBool,
    has_messages: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// What a vCPU finds when it looks.
#[derive(Debug, Default)]
pub struct Found {
    pub requests: Vec<Request>,
    pub kicked: bool,
    pub power_off: bool,
    pub start: Option<StartState>,
}

impl Control {
    pub fn new(index: u32, frame: Arc<FrameMap>) -> Self {
        Self {
            index,
            frame,
            pins: AtomicU64::new(0),
            kicked: AtomicBool::new(false),
            deadline_passed: AtomicBool::new(false),
            has_messages: AtomicBool::new(false),
            state: Mutex::new(State {
                requests: Vec::new(),
                queued: 0,
                done: 0,
                outside: true,
                power: VcpuPower::Off,
                start: None,
                messages: Vec::new(),
                sleeping: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want_attention(&self) {
        self.frame.attention().store(1, Ordering::SeqCst);
    }

    /// Wakes it if it sleeps, and has it look at its state soon.
    fn notify(&self) {
        self.want_attention();
        // Under the lock, so that the vCPU is not between its last look and its sleep.
        if self.lock().sleeping {
            self.changed.notify_all();
        }
    }

    pub fn pins(&self) -> u64 {
        self.pins.load(Ordering::SeqCst)
    }

    /// The vCPU's deadline has come. Timer thread.
    pub fn deadline(&self) {
        self.deadline_passed.store(true, Ordering::SeqCst);
        self.notify();
    }

    /// Whether the deadline has come since it was set.
    pub fn deadline_passed(&self) -> bool {
        self.deadline_passed.load(Ordering::SeqCst)
    }

    /// A new deadline is about to be armed, or has come already.
    pub fn set_deadline_passed(&self, passed: bool) {
        self.deadline_passed.store(passed, Ordering::SeqCst);
    }

    pub fn take_messages(&self, file: u32) -> Vec<u32> {
        if !self.has_messages.load(Ordering::SeqCst) {
            return Vec::new();
        }
        let mut s = self.lock();
        self.has_messages.store(false, Ordering::SeqCst);
        let (mine, rest) = s.messages.drain(..).partition(|m| m.0 == file);
        s.messages = rest;
        self.has_messages.fetch_or(!s.messages.is_empty(), Ordering::SeqCst);
        let mine: Vec<(u32, u32)> = mine;
        mine.into_iter().map(|m| m.1).collect()
    }

    /// The vCPU's own thread looks at everything that was asked of it, and is inside guest code from now on.
    pub fn look(&self) -> Found {
        self.frame.attention().store(0, Ordering::SeqCst);
        let mut s = self.lock();
        s.outside = false;
        let requests = std::mem::take(&mut s.requests);
        Found {
            requests,
            kicked: self.kicked.swap(false, Ordering::SeqCst),
            power_off: s.power == VcpuPower::Off,
            start: s.start.take(),
        }
    }

    /// What [`Control::look`] gave has been done.
    pub fn done(&self) {
        let mut s = self.lock();
        if s.requests.is_empty() {
            s.done = s.queued;
        }
        drop(s);
        self.changed.notify_all();
    }

    /// The vCPU's thread leaves guest code until the next [`Control::look`].
    pub fn set_outside(&self) {
        self.lock().outside = true;
        self.changed.notify_all();
    }

    /// Waits until the vCPU runs no guest code.
    pub fn wait_outside(&self) {
        let mut s = self.lock();
        while !s.outside {
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sleeps until something is asked, an input is high, or `until`.
    pub fn sleep(&self, until: Option<Instant>, awake: impl Fn() -> bool) {
        let mut s = self.lock();
        s.outside = true;
        self.changed.notify_all();
        s.sleeping = true;
        while self.frame.attention().load(Ordering::SeqCst) == 0 && !awake() {
            s = match until {
                None => self.changed.wait(s).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let now = Instant::now();
                    if now >= at {
                        break;
                    }
                    self.changed.wait_timeout(s, at - now).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        s.sleeping = false;
    }

    /// Switches the vCPU off or on. Own thread, or before it runs.
    pub fn set_power(&self, power: VcpuPower) {
        self.lock().power = power;
    }

    /// Queues `request` without waiting.
    pub fn post(&self, request: Request) {
        let mut s = self.lock();
        s.push(request);
        s.queued += 1;
        drop(s);
        self.notify();
    }

    /// Queues `request` and returns when the vCPU has done it or will before its next guest instruction.
    /// `caller` is the vCPU on whose thread this runs, if any: it counts as outside meanwhile, so that two
    /// vCPUs that ask each other do not wait for ever. Its own requests stay queued for its next look.
    pub fn request_and_wait(&self, request: Request, caller: Option<&Control>) {
        let wait = || {
            let mut s = self.lock();
            s.push(request);
            s.queued += 1;
            let ticket = s.queued;
            self.want_attention();
            while s.done < ticket && !s.outside {
                s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
            }
        };
        match caller {
            Some(c) => c.outside_while(wait),
            None => wait(),
        }
    }

    /// Runs `f`, which waits for others, with the vCPU of this thread outside.
    pub fn outside_while(&self, f: impl FnOnce()) {
        self.set_outside();
        f();
        // It must look, and so be inside again, before it runs guest code.
        self.want_attention();
    }
}

thread_local! {
    static CURRENT: std::cell::RefCell<Option<Arc<Control>>> = const { std::cell::RefCell::new(None) };
}

/// Names the vCPU that this thread runs.
pub fn set_current(control: &Arc<Control>) {
    CURRENT.with(|c| *c.borrow_mut() = Some(Arc::clone(control)));
}

/// The vCPU that this thread runs, if it runs one.
pub fn current() -> Option<Arc<Control>> {
    CURRENT.with(|c| c.borrow().clone())
}

impl IrqSink for Control {
    fn set_irq(&self, line: u32, level: bool) {
        let bit = 1u64 << (line & 63);
        if level {
            if self.pins.fetch_or(bit, Ordering::SeqCst) & bit == 0 {
                self.notify();
            }
        } else {
            self.pins.fetch_and(!bit, Ordering::SeqCst);
        }
    }
}

impl VcpuControl for Control {
    fn index(&self) -> u32 {
        self.index
    }

    fn deliver_message(&self, file: u32, id: u32) {
        let mut s = self.lock();
        if !s.messages.contains(&(file, id)) {
            s.messages.push((file, id));
        }
        self.has_messages.store(true, Ordering::SeqCst);
        drop(s);
        self.notify();
    }

    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.notify();
    }

    fn start(&self, state: StartState) -> bool {
        let mut s = self.lock();
        if s.power == VcpuPower::On || s.start.is_some() {
            return false;
        }
        s.start = Some(state);
        drop(s);
        self.notify();
        true
    }

    fn power(&self) -> VcpuPower {
        let s = self.lock();
        if s.start.is_some() { VcpuPower::On } else { s.power }
    }

    fn flush_tlb(&self, flush: TlbFlush) {
        let caller = current();
        if caller.as_ref().is_some_and(|c| std::ptr::eq(Arc::as_ptr(c), self)) {
            // Its own thread: done at its next look, which comes before its next instruction can rely on it.
            self.post(Request::Flush(flush));
            return;
        }
        self.request_and_wait(Request::Flush(flush), caller.as_deref());
    }
}
