//! What happens to a machine from inside and outside: events in the order they come.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use plinth_vcpu::SystemEvent;

/// Why a machine's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset, and the machine is not to reboot.
    Reset,
    /// The guest crashed; the text says how.
    Crash(String),
    /// [`VmHandle::stop`] was called.
    Stopped,
}

/// Something for the machine's main loop to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Guest(SystemEvent),
    Pause,
    Resume,
    Stop,
}

#[derive(Default)]
pub(crate) struct Events {
    queue: Mutex<VecDeque<Event>>,
    come: Condvar,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Of the guest's only the first counts until it is handled: a guest that goes on
    /// asking must not fill the host's memory.
    pub(crate) fn push(&self, event: Event) {
        let mut queue = self.lock();
        let repeated = match &event {
            Event::Guest(_) => queue.iter().any(|e| matches!(e, Event::Guest(_))),
            other => queue.back() == Some(other),
        };
        if !repeated {
            queue.push_back(event);
            self.come.notify_one();
        }
    }

    /// Waits for the next event.
    pub(crate) fn next(&self) -> Event {
        let mut queue = self.lock();
        loop {
            if let Some(event) = queue.pop_front() {
                return event;
            }
            queue = self.come.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Forgets what the guest asked for: it is being reset.
    pub(crate) fn forget_guest(&self) {
        self.lock().retain(|e| !matches!(e, Event::Guest(_)));
    }
}

/// Steers a machine from any thread; each call returns at once.
#[derive(Clone)]
pub struct VmHandle {
    pub(crate) events: Arc<Events>,
}

impl VmHandle {
    /// Stops the guest's CPUs until [`VmHandle::resume`]. The guest's clock goes on.
    pub fn pause(&self) {
        self.events.push(Event::Pause);
    }

    /// Lets a paused guest go on.
    pub fn resume(&self) {
        self.events.push(Event::Resume);
    }

    /// Ends the run, as if the power were cut.
    pub fn stop(&self) {
        self.events.push(Event::Stop);
    }
}
