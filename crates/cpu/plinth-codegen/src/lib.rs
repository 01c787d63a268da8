//! From IR to x86-64 host code: code memory, the thunks between translated code and the engine, and the
//! one-pass translator (tier 1).
//!
//! The host must have what x86-64-v3 has (AVX2, BMI2, FMA, LZCNT); see [`Config::detect`]. The reference
//! interpreter serves all other hosts.

#![allow(unsafe_code)] // Maps, writes and calls machine code.

mod asm;
pub mod frame;
mod memory;
mod thunks;
mod translate;

pub use memory::{CodeAddress, CodeMemory, EnterFn};
pub use translate::{ExitSite, Region, Straddle, Translator};

use std::io;

/// Says that the host CPU has what translated code uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config(());

impl Config {
    /// Looks at the host CPU.
    ///
    /// # Errors
    /// [`CodegenError::Host`] if it is older than x86-64-v3.
    pub fn detect() -> Result<Self, CodegenError> {
        let v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        if v3 { Ok(Self(())) } else { Err(CodegenError::Host) }
    }
}

/// Why code could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CodegenError {
    /// The host CPU lacks something that translated code needs.
    #[error("the host CPU is older than x86-64-v3 (AVX2, BMI2, FMA, LZCNT)")]
    Host,
    /// The code memory could not be mapped.
    #[error("cannot map {bytes} bytes of code memory: {source}")]
    Map {
        /// Size asked for.
        bytes: usize,
        /// Reason.
        source: io::Error,
    },
    /// The layout has more slots than a frame.
    #[error("the guest's state has {slots} slots; a frame has room for {}", frame::SLOTS)]
    Layout {
        /// How many.
        slots: usize,
    },
    /// No room is left: the engine drops translations ([`CodeMemory::reset`]) and tries again.
    #[error("the code memory is full")]
    Full,
    /// The block cannot be translated: it is malformed, or one guest instruction needs more temporaries at
    /// a time than there is room to spill. The interpreter can run it.
    #[error("the block cannot be translated: {0}")]
    Block(&'static str),
}
