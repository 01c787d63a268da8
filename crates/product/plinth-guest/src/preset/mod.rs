//! What maintainer scripts would do that the host can do faster: every one of these takes the emulated
//! CPU seconds to minutes, and the host a moment. The results are the same files.

mod certs;
mod hwdb;
mod units;

pub use certs::certificates;
pub use hwdb::hardware_database;
pub use units::enable_units;
