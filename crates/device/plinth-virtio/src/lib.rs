//! Virtio 1.x devices (block, network, console, entropy, balloon) and their transports (MMIO, PCI).
//!
//! A device implements [`VirtioDevice`]; feature negotiation, queue set-up and interrupts are the
//! transport's, so every device works on both:
//!
//! ```
//! use std::sync::Arc;
//! use plinth_device::{IrqLine, IrqSink, MmioDevice};
//! use plinth_memory::GuestRam;
//! use plinth_pci::PciFunction;
//! use plinth_virtio::{Balloon, BalloonConfig, Rng, VirtioMmio, VirtioPci};
//!
//! struct Wires;
//! impl IrqSink for Wires {
//!     fn set_irq(&self, _line: u32, _level: bool) {}
//! }
//!
//! let ram = GuestRam::new(&[(0x8000_0000, 1 << 20)]).unwrap();
//! let irq = IrqLine::new(Arc::new(Wires), 8);
//! // `bus.insert(Range { start, len: MMIO_SIZE }, rng)`
//! let rng: Arc<dyn MmioDevice> = VirtioMmio::new(Box::new(Rng::new()), ram.clone(), irq);
//! // `pci_host.add(slot, balloon)`
//! let (balloon, handle) = Balloon::new(BalloonConfig::default(), Arc::new(ram.clone()));
//! let balloon: Arc<dyn PciFunction> = VirtioPci::new(Box::new(balloon), ram);
//! handle.set_target(64 << 20);
//! ```
//!
//! The others are made alike: [`Blk::new`] with a [`BlkConfig`] and a `BlockBackend`, [`Net::new`] with a
//! [`NetConfig`] and a `NetBackend`, [`Console::new`] with a [`ConsoleConfig`] and a `CharBackend`.
//!
//! The guest is hostile: every chain is walked once into a checked list ([`Chain`]); what breaks the rules
//! makes the device need a reset, which the guest sees in the device status and a configuration interrupt.

mod balloon;
mod blk;
mod console;
mod device;
mod error;
mod fuzz;
mod interrupt;
mod net;
mod queue;
mod rng;
mod transport;
mod worker;

pub use balloon::{Balloon, BalloonConfig, BalloonHandle, BalloonStat, PageReclaim};
pub use blk::{Blk, BlkConfig};
pub use console::{Console, ConsoleConfig};
pub use device::{Activation, DeviceKind, VirtioDevice};
pub use error::Error;
#[doc(hidden)]
pub use fuzz::{fuzz_blk, fuzz_net, fuzz_transport, fuzz_virtqueue};
pub use interrupt::Interrupt;
pub use net::{Net, NetConfig};
pub use queue::{Chain, Segment, VirtQueue};
pub use rng::Rng;
pub use transport::mmio::{MMIO_SIZE, VirtioMmio};
pub use transport::pci::VirtioPci;
