//! Virtio network card (Virtio 1.2, 5.1).

mod header;
mod worker;

use std::sync::Arc;

use plinth_device::{NetBackend, NetCaps};

pub(crate) use header::Offloads;
pub(crate) use worker::NetQueues;

use crate::device::read_config_bytes;
use crate::worker::{Doorbell, Worker};
use crate::{Activation, DeviceKind, Error, VirtioDevice};

const NAME: &str = "virtio-net";
const RX: usize = 0;
const TX: usize = 1;

/// Feature bits (Virtio 1.2, 5.1.3).
pub(crate) mod feature {
    pub(crate) const CSUM: u64 = 1 << 0;
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    pub(crate) const MTU: u64 = 1 << 3;
    pub(crate) const MAC: u64 = 1 << 5;
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    pub(crate) const STATUS: u64 = 1 << 16;
}

/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;

/// How a network card looks to its guest.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The card's address; not a group address.
    pub mac: [u8; 6],
    /// The network's MTU in bytes, if the guest is to be told.
    pub mtu: Option<u16>,
    /// Descriptors a queue; a power of two from 4 to 1,024.
    pub queue_size: u16,
}

impl NetConfig {
    /// A card with address `mac` and defaults for everything else.
    #[must_use]
    pub fn new(mac: [u8; 6]) -> Self {
        Self { mac, mtu: None, queue_size: 512 }
    }
}

/// A network card on a [`NetBackend`].
pub struct Net {
    // Fixed.
    config: NetConfig,
    features: u64,
    space: [u8; 12],
    // Of the host: here while no worker has it.
    backend: Option<Box<dyn NetBackend>>,
    // Of an activation.
    worker: Option<Worker<Box<dyn NetBackend>>>,
}

impl Net {
    /// Makes a network card whose cable ends in `backend`.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn new(config: NetConfig, backend: Box<dyn NetBackend>) -> Result<Self, Error> {
        let wrong = |reason: String| Err(Error::Config { device: NAME, reason });
        if config.mac[0] & 1 != 0 {
            return wrong(format!("{:02x?} is a group address", config.mac));
        }
        if !config.queue_size.is_power_of_two() || !(4..=1024).contains(&config.queue_size) {
            return wrong(format!("a queue of {} descriptors", config.queue_size));
        }
        if config.mtu.is_some_and(|mtu| mtu < 68) {
            return wrong("the MTU is below the 68 bytes of IPv4".into());
        }
        let features = offered(backend.caps(), config.mtu.is_some());
        let mut space = [0; 12];
        space[0..6].copy_from_slice(&config.mac);
        space[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&1_u16.to_le_bytes());
        space[10..12].copy_from_slice(&config.mtu.unwrap_or(0).to_le_bytes());
        Ok(Self { config, features, space, backend: Some(backend), worker: None })
    }
}

fn offered(caps: NetCaps, mtu: bool) -> u64 {
    let mut features = feature::MAC | feature::STATUS | feature::MRG_RXBUF;
    let mut offer = |when: bool, bits: u64| features |= if when { bits } else { 0 };
    offer(mtu, feature::MTU);
    offer(caps.csum, feature::CSUM | feature::GUEST_CSUM);
    // Segmentation stands on partial checksums.
    offer(caps.csum && caps.tso_from_guest, feature::HOST_TSO4 | feature::HOST_TSO6);
    offer(caps.csum && caps.tso_to_guest, feature::GUEST_TSO4 | feature::GUEST_TSO6);
    features
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.config.queue_size; 2]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.space, offset, data);
    }

    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), Error> {
        let host = |source| Error::Host { device: NAME, source };
        let doorbell = Arc::new(Doorbell::new().map_err(host)?);
        let backend = self.backend.take().ok_or(Error::Lost(NAME))?;
        let mut queues = activation.queues.into_iter();
        let (rx, tx) = (queues.next().flatten(), queues.next().flatten());
        let io = NetQueues::new(rx, tx, backend, activation.features, activation.interrupt);
        let bell = Arc::clone(&doorbell);
        let worker = Worker::spawn(NAME.into(), doorbell, move |stop| io.run(&bell, &stop));
        self.worker = Some(worker.map_err(host)?);
        Ok(())
    }

    fn queue_notify(&mut self, queue: u16) {
        if let (Some(worker), RX | TX) = (&self.worker, usize::from(queue)) {
            worker.ring();
        }
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.backend = worker.stop();
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}
