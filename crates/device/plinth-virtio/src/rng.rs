//! Virtio entropy device (Virtio 1.2, 5.4).

use crate::queue::Chain;
use crate::{Activation, DeviceKind, Error, Interrupt, VirtQueue, VirtioDevice};

const NAME: &str = "virtio-rng";
const QUEUE_SIZE: u16 = 16;
/// The most bytes of one buffer that are filled; the device may fill less than there is room for.
const MOST: usize = 1024;

struct Active {
    queue: VirtQueue,
    interrupt: Interrupt,
}

/// A source of the host's random numbers. It answers on the vCPU's thread: a buffer takes microseconds.
#[derive(Default)]
pub struct Rng {
    chain: Chain,
    // Of an activation.
    active: Option<Active>,
}

impl Rng {
    /// Makes an entropy device.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn serve(&mut self) -> Result<(), Error> {
        let Some(Active { queue, interrupt }) = &mut self.active else { return Ok(()) };
        let mut bytes = [0; MOST];
        loop {
            while queue.pop(&mut self.chain)? {
                let n = self.chain.writable_len().min(MOST);
                getrandom::fill(&mut bytes[..n])
                    .map_err(|e| Error::Host { device: NAME, source: std::io::Error::other(e) })?;
                self.chain.write(queue.memory(), 0, &bytes[..n])?;
                queue.add_used(self.chain.head(), n)?;
            }
            if !queue.enable_kicks()? {
                break;
            }
        }
        if queue.needs_interrupt()? {
            interrupt.queue_used(queue.index());
        }
        Ok(())
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), Error> {
        let queue = activation.queues.into_iter().next().flatten();
        self.active = queue.map(|queue| Active { queue, interrupt: activation.interrupt });
        Ok(())
    }

    fn queue_notify(&mut self, _queue: u16) {
        if let Err(e) = self.serve()
            && let Some(active) = self.active.take()
        {
            active.interrupt.fail(&e);
        }
    }

    fn reset(&mut self) {
        self.active = None;
    }
}
