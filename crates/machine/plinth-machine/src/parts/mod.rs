//! Kinds of parts that boards are made of: how each is built from its line of the table and described to
//! the guest. A new kind is a new module here and lines in the boards that have it.

mod aclint;
mod aia;
mod pcie;
mod plic;
mod rtc;
mod test_device;
mod uart;
mod virtio_mmio;

pub use aclint::AclintPart;
pub use aia::{AplicPart, ImsicPart};
pub use pcie::PciePart;
pub use plic::PlicPart;
pub use rtc::RtcPart;
pub use test_device::TestPart;
pub use uart::UartPart;
pub use virtio_mmio::VirtioMmioPart;
