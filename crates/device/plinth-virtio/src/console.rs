//! Virtio console with one port (Virtio 1.2, 5.3).

use std::sync::Arc;
use std::time::Duration;

use plinth_device::CharBackend;

use crate::device::read_config_bytes;
use crate::queue::Chain;
use crate::worker::{Doorbell, Poller, Stop, Worker};
use crate::{Activation, DeviceKind, Error, Interrupt, VirtQueue, VirtioDevice};

const NAME: &str = "virtio-console";

/// Feature bits (Virtio 1.2, 5.3.3).
mod feature {
    pub(super) const SIZE: u64 = 1 << 0;
    pub(super) const EMERG_WRITE: u64 = 1 << 2;
}

/// Offset of `emerg_wr` in the configuration structure.
const EMERG_WRITE: usize = 8;
/// Bytes moved at a time.
const PIECE: usize = 4096;
/// A backend that is full says nothing when it has room again; this is how soon it is asked.
const RETRY: Duration = Duration::from_millis(5);

/// How a console looks to its guest.
#[derive(Clone, Debug)]
pub struct ConsoleConfig {
    /// Columns and rows, if they are known.
    pub size: Option<(u16, u16)>,
    /// Descriptors a queue; a power of two up to 1,024.
    pub queue_size: u16,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { size: None, queue_size: 64 }
    }
}

/// A console on a [`CharBackend`].
pub struct Console {
    // Fixed.
    config: ConsoleConfig,
    // Of the host.
    backend: Arc<dyn CharBackend>,
    doorbell: Arc<Doorbell>,
    // Of an activation.
    worker: Option<Worker<()>>,
}

impl Console {
    /// Makes a console that writes to and reads from `backend`, whose input callback it takes.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Host`].
    pub fn new(config: ConsoleConfig, backend: Arc<dyn CharBackend>) -> Result<Self, Error> {
        if !config.queue_size.is_power_of_two() || config.queue_size > 1024 {
            let reason = format!("a queue of {} descriptors", config.queue_size);
            return Err(Error::Config { device: NAME, reason });
        }
        let doorbell = Arc::new(Doorbell::new().map_err(host)?);
        let bell = Arc::clone(&doorbell);
        backend.on_input(Box::new(move || bell.ring()));
        Ok(Self { config, backend, doorbell, worker: None })
    }
}

fn host(source: std::io::Error) -> Error {
    Error::Host { device: NAME, source }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        feature::EMERG_WRITE | if self.config.size.is_some() { feature::SIZE } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.config.queue_size; 2]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let (columns, rows) = self.config.size.unwrap_or_default();
        let mut space = [0; 12];
        space[0..2].copy_from_slice(&columns.to_le_bytes());
        space[2..4].copy_from_slice(&rows.to_le_bytes());
        space[4..8].copy_from_slice(&1_u32.to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (EMERG_WRITE, Some(byte)) = (offset, data.first()) {
            // For a guest that has no other way left; what a full backend does not take is lost.
            self.backend.write(&[*byte]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), Error> {
        let mut queues = activation.queues.into_iter();
        let (rx, tx) = (queues.next().flatten(), queues.next().flatten());
        let port = Port {
            rx,
            tx,
            backend: Arc::clone(&self.backend),
            interrupt: activation.interrupt,
            output: Output::default(),
            input: Input::default(),
        };
        let bell = Arc::clone(&self.doorbell);
        let worker = Worker::spawn(NAME.into(), Arc::clone(&bell), move |stop| port.run(&bell, &stop));
        self.worker = Some(worker.map_err(host)?);
        Ok(())
    }

    fn queue_notify(&mut self, _queue: u16) {
        self.doorbell.ring();
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reset();
    }
}

/// The chain being written to the backend.
#[derive(Default)]
struct Output {
    chain: Chain,
    /// Bytes of it that were taken; `None` while there is no chain.
    done: Option<usize>,
}

/// Bytes read from the backend that have no buffer of the guest's yet.
#[derive(Default)]
struct Input {
    chain: Chain,
    bytes: Vec<u8>,
}

struct Port {
    rx: Option<VirtQueue>,
    tx: Option<VirtQueue>,
    backend: Arc<dyn CharBackend>,
    interrupt: Interrupt,
    output: Output,
    input: Input,
}

impl Port {
    fn run(mut self, doorbell: &Doorbell, stop: &Stop) {
        let _guard = self.interrupt.fail_on_panic(NAME);
        if let Err(e) = self.serve(doorbell, stop) {
            self.interrupt.fail(&e);
        }
    }

    fn serve(&mut self, doorbell: &Doorbell, stop: &Stop) -> Result<(), Error> {
        let poller = Poller::new(doorbell, None).map_err(host)?;
        while !stop.is_set() {
            self.transmit()?;
            self.receive()?;
            let mut work = false;
            if let Some(tx) = self.tx.as_mut().filter(|_| self.output.done.is_none()) {
                work |= tx.enable_kicks()?;
            }
            if let Some(rx) = self.rx.as_mut().filter(|_| !self.input.bytes.is_empty()) {
                work |= rx.enable_kicks()?;
            }
            let timeout = self.output.done.map(|_| RETRY);
            if !work && poller.wait(timeout).map_err(host)? {
                doorbell.wait();
            }
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), Error> {
        let Some(tx) = &mut self.tx else { return Ok(()) };
        let mut piece = [0; PIECE];
        loop {
            let done = match self.output.done {
                Some(done) => done,
                None if tx.pop(&mut self.output.chain)? => 0,
                None => break,
            };
            let n = self.output.chain.read(tx.memory(), done, &mut piece)?;
            if n == 0 {
                self.output.done = None;
                tx.add_used(self.output.chain.head(), 0)?;
                continue;
            }
            let taken = self.backend.write(&piece[..n]).min(n);
            self.output.done = Some(done + taken);
            if taken < n {
                break;
            }
        }
        signal(tx, &self.interrupt)
    }

    fn receive(&mut self) -> Result<(), Error> {
        let Some(rx) = &mut self.rx else { return Ok(()) };
        loop {
            if self.input.bytes.is_empty() {
                self.input.bytes.resize(PIECE, 0);
                let n = self.backend.read(&mut self.input.bytes);
                self.input.bytes.truncate(n);
            }
            if self.input.bytes.is_empty() || !rx.pop(&mut self.input.chain)? {
                break;
            }
            let n = self.input.chain.write(rx.memory(), 0, &self.input.bytes)?;
            self.input.bytes.drain(..n);
            rx.add_used(self.input.chain.head(), n)?;
        }
        signal(rx, &self.interrupt)
    }
}

fn signal(queue: &mut VirtQueue, interrupt: &Interrupt) -> Result<(), Error> {
    if queue.needs_interrupt()? {
        interrupt.queue_used(queue.index());
    }
    Ok(())
}
