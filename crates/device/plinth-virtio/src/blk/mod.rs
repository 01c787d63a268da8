//! Virtio block device (Virtio 1.2, 5.2).

mod request;
mod worker;

use std::sync::Arc;

use plinth_device::BlockBackend;

pub(crate) use request::Disk;
use request::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
pub(crate) use worker::BlkQueue;

use crate::device::read_config_bytes;
use crate::worker::{Doorbell, Worker};
use crate::{Activation, DeviceKind, Error, VirtioDevice};

const NAME: &str = "virtio-blk";

/// Feature bits (Virtio 1.2, 5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// The most queues: more than there are vCPUs is of no use.
const MAX_QUEUES: u16 = 64;
/// The most data descriptors of a request.
const MAX_SEGMENTS: u16 = 254;

/// How a block device looks to its guest.
#[derive(Clone, Debug)]
pub struct BlkConfig {
    /// Shown as `/dev/disk/by-id`; up to 20 bytes.
    pub serial: String,
    /// Request queues, each with a thread of its own: 1 to 64, best one a vCPU.
    pub queues: u16,
    /// Descriptors a queue; a power of two from 4 to 1,024.
    pub queue_size: u16,
    /// Bytes of the smallest write that needs no read first; a power of two from 512 to 64 KiB.
    pub physical_block: u32,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self { serial: String::new(), queues: 1, queue_size: 256, physical_block: 4096 }
    }
}

/// A block device on a [`BlockBackend`].
pub struct Blk {
    // Fixed.
    config: BlkConfig,
    features: u64,
    space: [u8; 60],
    // Of the host.
    disk: Arc<Disk>,
    // Of an activation.
    workers: Vec<Option<Worker<()>>>,
}

impl Blk {
    /// Makes a block device that shows `backend`'s contents.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn new(config: BlkConfig, backend: Arc<dyn BlockBackend>) -> Result<Self, Error> {
        let wrong = |reason: String| Err(Error::Config { device: NAME, reason });
        if config.serial.len() > request::ID_BYTES {
            return wrong(format!("the serial number {:?} is longer than 20 bytes", config.serial));
        }
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return wrong(format!("{} queues; there can be 1 to {MAX_QUEUES}", config.queues));
        }
        if !config.queue_size.is_power_of_two() || !(4..=1024).contains(&config.queue_size) {
            return wrong(format!("a queue of {} descriptors", config.queue_size));
        }
        if !config.physical_block.is_power_of_two() || !(512..=65536).contains(&config.physical_block) {
            return wrong(format!("a physical block of {} bytes", config.physical_block));
        }
        let mut features =
            feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY | feature::MQ;
        if backend.read_only() {
            features |= feature::RO;
        } else {
            features |= feature::DISCARD | feature::WRITE_ZEROES;
        }
        let space = config_space(&config, backend.size());
        let disk = Arc::new(Disk::new(backend, &config.serial));
        Ok(Self { config, features, space, disk, workers: Vec::new() })
    }
}

/// `struct virtio_blk_config` (Virtio 1.2, 5.2.4).
fn config_space(config: &BlkConfig, size: u64) -> [u8; 60] {
    let mut space = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(size / SECTOR).to_le_bytes());
    let segments = u32::from(MAX_SEGMENTS.min(config.queue_size - 2));
    put(12, &segments.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(24, &[(config.physical_block.trailing_zeros() - SECTOR.trailing_zeros()) as u8]);
    let blocks = config.physical_block / SECTOR as u32;
    put(26, &(blocks as u16).to_le_bytes());
    put(34, &config.queues.to_le_bytes());
    // Discard: sectors and ranges a request, alignment in sectors. Write zeroes the same, and may unmap.
    put(36, &MAX_RANGE_SECTORS.to_le_bytes());
    put(40, &(MAX_RANGES as u32).to_le_bytes());
    put(44, &blocks.to_le_bytes());
    put(48, &MAX_RANGE_SECTORS.to_le_bytes());
    put(52, &(MAX_RANGES as u32).to_le_bytes());
    put(56, &[1]);
    space
}

impl VirtioDevice for Blk {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.config.queue_size; usize::from(self.config.queues)]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.space, offset, data);
    }

    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), Error> {
        for queue in activation.queues {
            let Some(queue) = queue else {
                self.workers.push(None);
                continue;
            };
            let host = |source| Error::Host { device: NAME, source };
            let doorbell = Arc::new(Doorbell::new().map_err(host)?);
            let name = format!("{NAME}-{}", queue.index());
            let worker = BlkQueue::new(queue, Arc::clone(&self.disk), activation.interrupt.clone());
            let bell = Arc::clone(&doorbell);
            let thread = Worker::spawn(name, doorbell, move |stop| worker.run(&bell, &stop));
            self.workers.push(Some(thread.map_err(host)?));
        }
        Ok(())
    }

    fn queue_notify(&mut self, queue: u16) {
        if let Some(Some(worker)) = self.workers.get(usize::from(queue)) {
            worker.ring();
        }
    }

    fn reset(&mut self) {
        for worker in self.workers.drain(..).flatten() {
            worker.stop();
        }
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.reset();
    }
}
