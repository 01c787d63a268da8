//! Between the layers that do not know each other: image formats and networks as the host sides of devices.

mod block;
mod net;

pub use block::DiskBackend;
pub use net::CardBackend;
