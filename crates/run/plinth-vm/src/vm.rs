//! A machine and its main loop.

use std::sync::{Arc, OnceLock};

use plinth_clock::Timers;
use plinth_device::CharBackend;
use plinth_machine::{BootSources, Machine};
use plinth_vcpu::SystemEvent;

use crate::event::{Event, Events};
use crate::htif::Htif;
use crate::thread::VcpuThreads;
use crate::{Error, Exit, VmHandle};

/// The firmware's console: the first serial line's host side, or nothing.
#[derive(Clone)]
pub(crate) struct Console(Option<Arc<dyn CharBackend>>);

impl Console {
    pub(crate) fn new(backend: Option<&Arc<dyn CharBackend>>) -> Self {
        Self(backend.cloned())
    }

    pub(crate) fn write(&self, data: &[u8]) -> usize {
        self.0.as_ref().map_or(data.len(), |b| b.write(data))
    }

    pub(crate) fn read(&self, data: &mut [u8]) -> usize {
        self.0.as_ref().map_or(0, |b| b.read(data))
    }
}

/// A machine that is ready to run. The vCPUs' threads end before its devices go.
pub struct Vm {
    pub(crate) threads: VcpuThreads,
    pub(crate) machine: Machine,
    pub(crate) boot: BootSources,
    pub(crate) reboot: bool,
    pub(crate) cpus: u32,
    pub(crate) events: Arc<Events>,
    pub(crate) console: Console,
    pub(crate) timers: Arc<Timers>,
    pub(crate) tohost: Option<u64>,
    pub(crate) htif: OnceLock<Arc<Htif>>,
}

impl Vm {
    /// The handle for other threads.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        VmHandle { events: Arc::clone(&self.events) }
    }

    /// Runs the guest until the run ends, then drops the machine.
    ///
    /// # Errors
    /// The guest rebooted and could not be loaded again.
    pub fn run(self) -> Result<Exit, Error> {
        if let Some(gpa) = self.tohost {
            let _ = self.htif.set(Htif::start(
                gpa,
                self.machine.ram(),
                &self.timers,
                &self.events,
                &self.console,
            ));
        }
        self.threads.run();
        loop {
            match self.events.next() {
                Event::Guest(SystemEvent::PowerOff) => return Ok(Exit::PowerOff),
                Event::Guest(SystemEvent::Crash(why)) => return Ok(Exit::Crash(why)),
                Event::Guest(SystemEvent::Reset) if !self.reboot => return Ok(Exit::Reset),
                Event::Guest(SystemEvent::Reset) => self.reset()?,
                Event::Pause => self.threads.park(),
                Event::Resume => self.threads.run(),
                Event::Stop => return Ok(Exit::Stopped),
            }
        }
    }

    fn reset(&self) -> Result<(), Error> {
        self.threads.park();
        self.machine.reset();
        let loaded = self.machine.load(&self.boot, self.cpus)?;
        self.events.forget_guest();
        self.threads.reset(loaded.starts);
        self.threads.run();
        Ok(())
    }
}
