//! Threads of devices, and what wakes them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// Wakes one thread. Ringing costs a system call only if the thread has not been woken since it last
/// answered.
pub(crate) struct Doorbell {
    rung: AtomicBool,
    event: EventFd,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { rung: AtomicBool::new(false), event: EventFd::new(EFD_CLOEXEC)? })
    }

    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            // A blocking counter that is 0 or 1 takes another 1 at once; there is no other way to fail.
            let _ = self.event.write(1);
        }
    }

    /// Waits until it is rung, and answers: whatever was made available before a ring is seen after this.
    pub(crate) fn wait(&self) {
        let _ = self.event.read();
        // A read-modify-write, so that it reads from the ring and sees what came before it.
        self.rung.swap(false, Ordering::SeqCst);
    }

    /// Readable while it is rung and not answered.
    pub(crate) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// Tells a thread to end.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A thread that sleeps on a doorbell and gives back a `T` when it ends.
pub(crate) struct Worker<T> {
    thread: JoinHandle<T>,
    stop: Stop,
    doorbell: Arc<Doorbell>,
}

impl<T: Send + 'static> Worker<T> {
    pub(crate) fn spawn(
        name: String,
        doorbell: Arc<Doorbell>,
        body: impl FnOnce(Stop) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Stop::default();
        let theirs = stop.clone();
        let thread = Builder::new().name(name).spawn(move || body(theirs))?;
        Ok(Self { thread, stop, doorbell })
    }

    pub(crate) fn ring(&self) {
        self.doorbell.ring();
    }

    /// Ends the thread and waits for it. `None` if it panicked.
    pub(crate) fn stop(self) -> Option<T> {
        self.stop.0.store(true, Ordering::SeqCst);
        self.doorbell.ring();
        self.thread.join().ok()
    }
}

/// Waits for a doorbell and, if wanted, one more descriptor.
pub(crate) struct Poller {
    epoll: Epoll,
    other: Option<(RawFd, EventSet)>,
}

const DOORBELL: u64 = 0;
const OTHER: u64 = 1;

impl Poller {
    pub(crate) fn new(doorbell: &Doorbell, other: Option<RawFd>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let add = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        add(doorbell.fd(), DOORBELL)?;
        if let Some(fd) = other {
            add(fd, OTHER)?;
        }
        Ok(Self { epoll, other: other.map(|fd| (fd, EventSet::IN)) })
    }

    /// Sets whether the other descriptor wakes as long as it is readable, or once each time it becomes so.
    pub(crate) fn set_edge_triggered(&mut self, edge: bool) -> io::Result<()> {
        let wanted = if edge { EventSet::IN | EventSet::EDGE_TRIGGERED } else { EventSet::IN };
        match &mut self.other {
            Some((fd, set)) if *set != wanted => {
                self.epoll.ctl(ControlOperation::Modify, *fd, EpollEvent::new(wanted, OTHER))?;
                *set = wanted;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Sleeps until something is there or `timeout` has passed, rounded up to milliseconds. Returns true
    /// if it is the doorbell, which must be answered.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let ms = timeout.map_or(-1, |t| i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        let mut events = [EpollEvent::default(); 2];
        match self.epoll.wait(ms, &mut events) {
            Ok(n) => Ok(events.iter().take(n).any(|e| e.data() == DOORBELL)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(e) => Err(e),
        }
    }
}
