//! The guest's clock and its timers.
//!
//! [`Clock`] counts nanoseconds since the machine was started. [`Timers`] is one thread that calls back at
//! deadlines; arming a timer later than the thread's next wake-up costs no system call, which is what a
//! guest's periodic tick does most of the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// Nanoseconds since the machine was started. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(NEVER)
    }

    /// Ticks of a counter with `hz` ticks a second at nanosecond `ns`.
    #[must_use]
    pub fn ticks_at(ns: u64, hz: u64) -> u64 {
        (u128::from(ns) * u128::from(hz) / 1_000_000_000) as u64
    }

    /// Now, in ticks of a counter with `hz` ticks a second.
    #[must_use]
    pub fn ticks(&self, hz: u64) -> u64 {
        Self::ticks_at(self.now_ns(), hz)
    }

    /// First nanosecond at which a counter with `hz` ticks a second has reached `ticks`; [`NEVER`] where
    /// that is beyond the clock's range.
    #[must_use]
    pub fn ns_of_ticks(ticks: u64, hz: u64) -> u64 {
        let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(hz.max(1)));
        u64::try_from(ns).unwrap_or(NEVER)
    }

    /// The host's instant of nanosecond `ns`; `None` for [`NEVER`] and what the host cannot express.
    #[must_use]
    pub fn instant(&self, ns: u64) -> Option<Instant> {
        (ns != NEVER).then(|| self.start.checked_add(Duration::from_nanos(ns))).flatten()
    }
}

type Callback = Box<dyn Fn() + Send + Sync>;

struct Entry {
    deadline: AtomicU64,
    callback: Callback,
}

#[derive(Default)]
struct State {
    entries: Vec<Arc<Entry>>,
    stop: bool,
}

struct Shared {
    clock: Clock,
    state: Mutex<State>,
    wake: Condvar,
    /// When the thread wakes next by itself.
    sleeping_until: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The timer thread of a machine. Dropping it stops the thread.
pub struct Timers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// One timer. Dropping it removes it.
pub struct Timer {
    shared: Arc<Shared>,
    entry: Arc<Entry>,
}

impl Timers {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host refused a thread.
    pub fn new(clock: Clock) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            clock,
            state: Mutex::default(),
            wake: Condvar::new(),
            sleeping_until: AtomicU64::new(NEVER),
        });
        let in_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("timers".into()).spawn(move || run(&in_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The clock that deadlines are counted in.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// A new timer, not armed. `callback` runs on the timer thread and must not block.
    #[must_use]
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let entry = Arc::new(Entry { deadline: AtomicU64::new(NEVER), callback: Box::new(callback) });
        self.shared.lock().entries.push(Arc::clone(&entry));
        Timer { shared: Arc::clone(&self.shared), entry }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(t) = self.thread.take()
            && t.thread().id() != std::thread::current().id()
        {
            // A panic in a callback has been reported by the panic hook already.
            let _ = t.join();
        }
    }
}

impl Timer {
    /// Calls back once at `deadline_ns` of the clock ([`NEVER`]: not at all), in place of what was armed.
    pub fn arm(&self, deadline_ns: u64) {
        self.entry.deadline.store(deadline_ns, Ordering::SeqCst);
        if deadline_ns < self.shared.sleeping_until.load(Ordering::SeqCst) {
            // Under the lock, so that the thread is not between reading the deadlines and sleeping.
            let _state = self.shared.lock();
            self.shared.wake.notify_one();
        }
    }

    /// The deadline that is armed, or [`NEVER`].
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.entry.deadline.load(Ordering::SeqCst)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.lock().entries.retain(|e| !Arc::ptr_eq(e, &self.entry));
    }
}

fn run(shared: &Shared) {
    let mut due: Vec<Arc<Entry>> = Vec::new();
    loop {
        let mut state = shared.lock();
        // From here on a deadline that is armed earlier than what the loop below finds takes the lock.
        shared.sleeping_until.store(NEVER, Ordering::SeqCst);
        loop {
            if state.stop {
                return;
            }
            let now = shared.clock.now_ns();
            let mut next = NEVER;
            for e in &state.entries {
                let d = e.deadline.load(Ordering::SeqCst);
                if d <= now {
                    if e.deadline.compare_exchange(d, NEVER, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        due.push(Arc::clone(e));
                    } else {
                        next = now;
                    }
                } else {
                    next = next.min(d);
                }
            }
            if !due.is_empty() {
                break;
            }
            shared.sleeping_until.store(next, Ordering::SeqCst);
            let missed = state.entries.iter().any(|e| e.deadline.load(Ordering::SeqCst) < next);
            if missed {
                continue;
            }
            state = match shared.clock.instant(next) {
                None => shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    shared.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        drop(state);
        for e in due.drain(..) {
            (e.callback)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn timers_fire_in_order_and_an_earlier_one_wakes_the_thread() {
        let timers = Timers::new(Clock::new()).unwrap();
        let (tx, rx) = mpsc::channel();
        let tx2 = tx.clone();
        let late = timers.timer(move || tx.send("late").unwrap());
        let early = timers.timer(move || tx2.send("early").unwrap());
        let now = timers.clock().now_ns();
        late.arm(now + 60_000_000);
        early.arm(now + 5_000_000);
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), "early");
        assert_eq!(rx.recv_timeout(Duration::from_secs(5)).unwrap(), "late");
        assert_eq!(late.deadline(), NEVER);
    }

    #[test]
    fn ticks_and_nanoseconds_agree() {
        for ticks in [0, 1, 7, 10_000_001, u64::MAX / 1000] {
            let ns = Clock::ns_of_ticks(ticks, 10_000_000);
            assert!(Clock::ticks_at(ns, 10_000_000) >= ticks);
            assert!(ns == 0 || Clock::ticks_at(ns - 1, 10_000_000) < ticks);
        }
        assert_eq!(Clock::ns_of_ticks(u64::MAX, 10_000_000), NEVER);
    }
}
