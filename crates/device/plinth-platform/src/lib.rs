//! Platform devices: what a board has besides its buses. Each is one module with its constructor, its
//! configuration and its state; none knows the board it sits on.

mod aclint;
mod aplic;
#[doc(hidden)]
pub mod fuzz;
mod imsic;
mod line;
mod plic;
mod rtc;
mod test_device;
mod uart;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use aclint::{Aclint, AclintConfig};
pub use aplic::{Aplic, AplicConfig, AplicDomain, AplicDomainConfig};
pub use imsic::ImsicPages;
pub use line::OutputLine;
pub use plic::{Plic, PlicConfig};
pub use rtc::GoldfishRtc;
pub use test_device::{EventSink, TestDevice};
pub use uart::Uart;

/// Takes a device's lock. A panic elsewhere while it was held leaves register values that a guest could
/// have written itself, so the state is used as it is.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Value of a little-endian access of at most 8 bytes.
fn le_value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b))
}

/// Fills a little-endian access of at most 8 bytes; higher bytes read as zero.
fn put_le(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (i, d) in data.iter_mut().enumerate() {
        *d = bytes.get(i).copied().unwrap_or(0);
    }
}
