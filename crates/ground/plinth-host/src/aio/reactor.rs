//! What runs a thread's futures and completes their operations.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use slab::Slab;

use super::op::Op;
use super::pool::{Pool, perform};
use super::ring::Ring;
use crate::event::Event;

/// Who does a thread's I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's io_uring if there is one, else threads.
    Auto,
    /// io_uring.
    Ring,
    /// Threads that block.
    Threads,
    /// The calling thread itself, which does each operation at once, and what else would be another thread's
    /// work: for runs that must be cheap and the same every time. Nothing may wait for anything else.
    Inline,
}

pub type Key = usize;

/// What became of an operation.
pub enum Entry {
    /// With the ring, the operation stays here while the kernel works on it. It must not move, because the
    /// kernel has addresses of it.
    Running {
        waker: Option<Waker>,
        op: Option<Box<Op>>,
    },
    Done {
        code: i32,
        op: Box<Op>,
    },
}

enum Driver {
    /// So many short reads are done on the spot: a process that looks at a file and ends has no use for a ring.
    Few(u32),
    Ring(Box<Ring>),
    Pool(Pool),
    Inline,
}

/// Reads that are done on the spot, and bytes of each.
const FEW: u32 = 16;
const SHORT: usize = 64 << 10;

impl Driver {
    fn best(event: &Arc<Event>) -> Self {
        let ring = Ring::new(event.clone());
        ring.map_or_else(|_| Self::Pool(Pool::new(event.clone())), |r| Self::Ring(Box::new(r)))
    }

    /// True if `op` is done by the thread that asks for it. What is to do it else is made ready.
    fn does_at_once(&mut self, op: &Op, event: &Arc<Event>) -> bool {
        match self {
            Self::Inline => true,
            Self::Few(left) => {
                if *left > 0 && matches!(op, Op::Read { buf, .. } if buf.len() <= SHORT) {
                    *left -= 1;
                    return true;
                }
                *self = Self::best(event);
                false
            }
            Self::Ring(_) | Self::Pool(_) => false,
        }
    }
}

struct Reactor {
    entries: Slab<Entry>,
    driver: Driver,
}

/// Wakes the thread of a [`block_on`].
struct Unpark {
    woken: AtomicBool,
    thread: std::thread::ThreadId,
    event: Arc<Event>,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) && std::thread::current().id() != self.thread {
            self.event.signal();
        }
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Local {
    reactor: RefCell<Reactor>,
    unpark: Arc<Unpark>,
    /// Tasks that were spawned since the running ones were last polled.
    spawned: RefCell<Vec<Task>>,
}

thread_local! {
    static LOCAL: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

fn local() -> Rc<Local> {
    LOCAL.with(|l| l.borrow().clone()).expect("asynchronous I/O happens inside of block_on")
}

impl Local {
    fn new(backend: Backend) -> Rc<Self> {
        let event = Arc::new(Event::new().expect("the host has eventfd"));
        let driver = match backend {
            Backend::Auto => Driver::Few(FEW),
            Backend::Ring => Driver::Ring(Box::new(Ring::new(event.clone()).expect("the host has io_uring"))),
            Backend::Threads => Driver::Pool(Pool::new(event.clone())),
            Backend::Inline => Driver::Inline,
        };
        let unpark =
            Arc::new(Unpark { woken: AtomicBool::new(true), thread: std::thread::current().id(), event });
        let reactor = RefCell::new(Reactor { entries: Slab::new(), driver });
        Rc::new(Self { reactor, unpark, spawned: RefCell::default() })
    }

    /// Hands in what was prepared, takes what is done; with `wait`, sleeps until there is something.
    fn turn(&self, wait: bool) {
        let mut reactor = self.reactor.borrow_mut();
        let Reactor { entries, driver } = &mut *reactor;
        let mut wakers = Vec::new();
        let mut done =
            |key: Key, code: i32, moved: Option<Box<Op>>| complete(entries, key, code, moved, &mut wakers);
        if wait && matches!(driver, Driver::Few(_)) {
            // It waits for another thread.
            *driver = Driver::best(&self.unpark.event);
        }
        match driver {
            Driver::Few(_) => {}
            Driver::Ring(ring) => ring.turn(wait, &mut done),
            Driver::Pool(pool) => pool.turn(wait, &mut done),
            Driver::Inline => assert!(!wait, "everything waits, and nothing is under way"),
        }
        drop(reactor);
        // Outside of the borrow, because a waker may run anything.
        wakers.into_iter().for_each(Waker::wake);
    }
}

fn complete(entries: &mut Slab<Entry>, key: Key, code: i32, moved: Option<Box<Op>>, wakers: &mut Vec<Waker>) {
    let Some(entry) = entries.get_mut(key) else { return };
    let Entry::Running { waker, op } = entry else { return };
    let op = moved.or_else(|| op.take());
    match (waker.take(), op) {
        (Some(waker), Some(op)) => {
            *entry = Entry::Done { code, op };
            wakers.push(waker);
        }
        // Nobody waits any more.
        _ => drop(entries.remove(key)),
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // The kernel may still write to buffers that the entries own.
        let running = |r: &Reactor| {
            matches!(r.driver, Driver::Ring(_))
                && r.entries.iter().any(|(_, e)| matches!(e, Entry::Running { .. }))
        };
        while running(self.reactor.get_mut()) {
            self.turn(true);
        }
    }
}

/// Lets a future run beside the one that [`block_on`] runs. It is dropped when that one ends.
///
/// # Panics
/// Outside of `block_on`.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    let local = local();
    local.spawned.borrow_mut().push(Box::pin(task));
    // It is polled soon, whoever polls now.
    local.unpark.wake_by_ref();
}

/// True if the calling thread does everything itself.
pub fn is_inline() -> bool {
    LOCAL.with(|l| l.borrow().as_ref().is_some_and(|l| matches!(l.reactor.borrow().driver, Driver::Inline)))
}

pub fn submit(op: Op, waker: Waker) -> Key {
    let local = local();
    let mut reactor = local.reactor.borrow_mut();
    let Reactor { entries, driver } = &mut *reactor;
    let slot = entries.vacant_entry();
    let key = slot.key();
    let mut op = Box::new(op);
    if driver.does_at_once(&op, &local.unpark.event) {
        let code = perform(&mut op);
        slot.insert(Entry::Done { code, op });
        drop(reactor);
        waker.wake();
        return key;
    }
    match driver {
        Driver::Ring(ring) => {
            ring.start(key, &op);
            slot.insert(Entry::Running { waker: Some(waker), op: Some(op) });
        }
        Driver::Pool(pool) => {
            slot.insert(Entry::Running { waker: Some(waker), op: None });
            pool.start(key, op);
        }
        Driver::Few(_) | Driver::Inline => unreachable!("they do everything at once"),
    }
    key
}

pub fn take(key: Key, new_waker: &Waker) -> Option<(i32, Op)> {
    let local = local();
    let mut reactor = local.reactor.borrow_mut();
    match &mut reactor.entries[key] {
        Entry::Running { waker, .. } => {
            if !waker.as_ref().is_some_and(|w| w.will_wake(new_waker)) {
                *waker = Some(new_waker.clone());
            }
            None
        }
        Entry::Done { .. } => match reactor.entries.remove(key) {
            Entry::Done { code, op } => Some((code, *op)),
            Entry::Running { .. } => unreachable!("matched above"),
        },
    }
}

/// The operation's future was dropped.
pub fn abandon(key: Key) {
    // During the thread's end the reactor may be gone, and has waited for its operations then.
    let Ok(Some(local)) = LOCAL.try_with(|l| l.borrow().clone()) else { return };
    let mut reactor = local.reactor.borrow_mut();
    let Reactor { entries, driver } = &mut *reactor;
    match entries.get_mut(key) {
        Some(Entry::Running { waker, op }) => {
            *waker = None;
            if let (Driver::Ring(ring), Some(op)) = (driver, op)
                && op.may_wait_forever()
            {
                ring.cancel(key);
            }
        }
        Some(Entry::Done { .. }) => drop(entries.remove(key)),
        None => {}
    }
}

/// Runs a future to its end on this thread, with its I/O done by the best backend of the host.
///
/// # Panics
/// Inside of another `block_on`.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    block_on_with(Backend::Auto, future)
}

/// Runs a future to its end on this thread.
///
/// # Panics
/// Inside of another `block_on`; if the host lacks the backend.
pub fn block_on_with<T>(backend: Backend, future: impl Future<Output = T>) -> T {
    /// Takes the reactor away again, even when the future panics.
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            let local = LOCAL.with(|l| l.borrow_mut().take());
            drop(local);
        }
    }

    let local = Local::new(backend);
    LOCAL.with(|l| {
        assert!(l.borrow().is_none(), "block_on inside of block_on");
        *l.borrow_mut() = Some(local.clone());
    });
    let _leave = Leave;
    let waker = Waker::from(local.unpark.clone());
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    let mut tasks = FuturesUnordered::new();
    loop {
        if local.unpark.woken.swap(false, Ordering::AcqRel) {
            if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                return value;
            }
            tasks.extend(local.spawned.take());
            while let Poll::Ready(Some(())) = tasks.poll_next_unpin(&mut cx) {
                tasks.extend(local.spawned.take());
            }
        }
        local.turn(!local.unpark.woken.load(Ordering::Acquire));
    }
}
