//! The translating CPU engine: runs any guest ISA that implements [`plinth_ir::Isa`], by translation to host
//! code or by interpretation of the IR.
//!
//! - `control`: a vCPU as other threads see it: interrupt inputs, requests, sleep.
//! - `core`: a vCPU's state, and what its ISA's functions can ask of it.
//! - `tlb`, `access`: the software MMU, and memory accesses beyond its fast path.
//! - `code`: all translations, by guest physical address; linking and invalidation.
//! - `recent`: the translations that one vCPU has used lately.
//! - `runtime`: what translated code and the interpreter call.
//! - `vcpu`: a vCPU's thread: look, find code, run.

#![allow(unsafe_code)] // Raw addresses of guest RAM and of frames; entry into translated code.

mod access;
mod code;
mod control;
mod core;
mod frame;
mod recent;
mod runtime;
mod shared;
mod tlb;
mod vcpu;

use std::sync::{Arc, PoisonError};

use plinth_clock::Timers;
use plinth_codegen::{CodeMemory, CodegenError, Config, Translator};
use plinth_ir::Isa;
use plinth_memory::{CodeWriteSink, GuestRam};
use plinth_vcpu::{PhysicalBus, Platform, Vcpu};

use crate::code::CodeCache;
use crate::shared::Shared;
pub use crate::shared::Tier;
use crate::vcpu::EngineVcpu;

/// Bytes of code memory: enough for all of a busy guest's hot code; when it is full, all is translated anew.
const CODE_MEMORY: usize = 128 << 20;

/// Why the engine, or a vCPU of it, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No code can be generated on this host.
    #[error("cannot translate on this host: {0}")]
    Codegen(#[from] CodegenError),
    /// The host refused memory for a vCPU.
    #[error("the host has no memory for a vCPU's state: {0}")]
    Memory(#[from] std::io::Error),
}

/// What a machine gives to its engine.
pub struct Parts {
    /// The guest ISA.
    pub isa: Arc<dyn Isa>,
    /// Guest RAM.
    pub ram: GuestRam,
    /// Everything else at guest physical addresses.
    pub bus: Arc<dyn PhysicalBus>,
    /// Services for firmware built into the ISA.
    pub platform: Arc<dyn Platform>,
    /// The machine's timers and clock.
    pub timers: Arc<Timers>,
}

/// The engine of one machine. Its vCPUs share translations.
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// An engine without vCPUs.
    ///
    /// # Errors
    /// [`Error::Codegen`]: this host cannot run translated code; [`Tier::Interpret`] needs nothing of it.
    pub fn new(parts: Parts, tier: Tier) -> Result<Self, Error> {
        Self::with_code_memory(parts, tier, CODE_MEMORY)
    }

    /// An engine without vCPUs whose translations take `bytes` bytes at the most, within what host code can
    /// reach; when they are full, all is translated anew.
    ///
    /// # Errors
    /// See [`Engine::new`].
    pub fn with_code_memory(parts: Parts, tier: Tier, bytes: usize) -> Result<Self, Error> {
        let memory = match tier {
            Tier::Translate => Some(CodeMemory::new(bytes, parts.isa.layout(), &runtime::RUNTIME)?),
            Tier::Interpret => None,
        };
        let shared = Arc::new(Shared::new(parts, tier, CodeCache::new(memory, bytes)));
        let sink: Arc<dyn CodeWriteSink> = Arc::<Shared>::clone(&shared);
        shared.ram.set_code_write_sink(&Arc::downgrade(&sink));
        Ok(Self { shared })
    }

    /// Writes a map of translated code to where `perf` looks for it: `perf-PID.map` in the folder for
    /// temporary files. Symbols are guest virtual addresses.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn write_perf_map(&self) -> std::io::Result<()> {
        self.shared.open_perf_map()
    }

    /// Adds the next vCPU, off.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn add_vcpu(&self) -> Result<Box<dyn Vcpu>, Error> {
        let translator = match self.shared.tier {
            Tier::Translate => Some(Translator::new(self.shared.isa.layout(), Config::detect()?)?),
            Tier::Interpret => None,
        };
        let index = self.shared.controls().len() as u32;
        let vcpu = EngineVcpu::new(index, Arc::clone(&self.shared), translator)?;
        self.shared.vcpus.write().unwrap_or_else(PoisonError::into_inner).push(vcpu.shared_control());
        Ok(Box::new(vcpu))
    }
}
