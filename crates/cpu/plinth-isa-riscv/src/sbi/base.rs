//! The base extension (4).

use super::{Call, Error, Result, is_extension};
use crate::privileged::csr;

const SPEC_VERSION: u64 = 2 << 24;
/// Not an allocated number.
const IMPL_ID: u64 = 0x504c_4e54;

pub(super) fn call(call: &Call) -> Result {
    match call.function {
        0 => Ok(SPEC_VERSION),
        1 => Ok(IMPL_ID),
        2 => Ok(csr::IMPL_ID),
        3 => Ok(u64::from(is_extension(call.args[0]))),
        4 => Ok(csr::VENDOR_ID),
        5 => Ok(csr::ARCH_ID),
        6 => Ok(csr::IMPL_ID),
        _ => Err(Error::NotSupported),
    }
}
