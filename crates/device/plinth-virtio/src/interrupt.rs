//! How a device interrupts its driver, whatever the transport.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::Error;

/// Why a device interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Buffers of this queue were used.
    Queue(u16),
    /// The configuration or the device status changed.
    Config,
}

/// A transport's way to interrupt. Called from any thread.
pub(crate) trait Raise: Send + Sync {
    fn raise(&self, cause: Cause);
}

struct Inner {
    raise: Box<dyn Raise>,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// A device's way to interrupt its driver. Cheap to clone.
#[derive(Clone)]
pub struct Interrupt(Arc<Inner>);

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt").field("needs_reset", &self.0.needs_reset).finish_non_exhaustive()
    }
}

impl Interrupt {
    pub(crate) fn new(raise: Box<dyn Raise>) -> Self {
        Self(Arc::new(Inner {
            raise,
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            failure: Mutex::default(),
        }))
    }

    /// Buffers of `queue` were used. To be called where [`crate::VirtQueue::needs_interrupt`] says so.
    pub fn queue_used(&self, queue: u16) {
        self.0.raise.raise(Cause::Queue(queue));
    }

    /// The device's configuration structure has changed.
    pub fn config_changed(&self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.0.raise.raise(Cause::Config);
    }

    /// The device cannot go on until the driver resets it (Virtio 1.2, 2.1.2, DEVICE_NEEDS_RESET).
    pub fn fail(&self, error: &Error) {
        *self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        self.0.needs_reset.store(true, Ordering::SeqCst);
        self.0.raise.raise(Cause::Config);
    }

    /// Fails the device if the thread that holds the guard panics, so that the driver learns of it.
    pub(crate) fn fail_on_panic(&self, device: &'static str) -> PanicGuard {
        PanicGuard { interrupt: self.clone(), device }
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    pub(crate) fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// Why the device needs, or last needed, a reset.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn clear_failure(&self) {
        self.0.needs_reset.store(false, Ordering::SeqCst);
    }
}

/// See [`Interrupt::fail_on_panic`].
pub(crate) struct PanicGuard {
    interrupt: Interrupt,
    device: &'static str,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.interrupt.fail(&Error::Lost(self.device));
        }
    }
}
