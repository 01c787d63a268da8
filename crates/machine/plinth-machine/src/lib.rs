//! Machines: boards as data, the device tree made from the same data, and the loaders of kernels and
//! firmware.
//!
//! A board ([`board::Board`]) is a table; [`Machine::new`] builds what it says on buses and vCPUs that the
//! caller brings, and [`Machine::load`] puts a guest into its RAM.

mod assembly;
pub mod board;
pub mod boards;
mod boot;
mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod isa;
mod load;
mod parts;
mod tree;

pub use assembly::{Assembly, BoardDevice, Machine, MakeDevice, Resources};
pub use boot::{BootEntry, BootFile, BootSources, Loaded};
pub use error::Error;
pub use load::{Compression, ImageHeader, Kind, identify};
pub use tree::Tree;
