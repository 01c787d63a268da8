//! The RISC-V Advanced Platform-Level Interrupt Controller (RISC-V Advanced Interrupt Architecture 1.0,
//! chapter 4), with a line of interrupt domains, each the only child of the one before, in direct and in
//! MSI mode.
//!
//! Messages go straight to the interrupt files that the configuration names by hart; the registers for
//! their addresses hold what is written and change nothing.

mod registers;
mod state;

use std::sync::{Arc, Mutex};

use plinth_device::{Device, IoOutcome, IrqLine, IrqSink, MmioDevice};
use plinth_vcpu::VcpuControl;

use crate::{OutputLine, le_value, lock, put_le};
use state::{Message, State};

/// Highest source number there can be.
const MAX_SOURCE: u32 = 1023;

/// What one interrupt domain leads to.
pub struct AplicDomainConfig {
    /// In direct mode: the external interrupt input of each hart.
    pub lines: Vec<IrqLine>,
    /// In MSI mode: the number of the interrupt file.
    pub file: u32,
}

/// How the controller is wired.
pub struct AplicConfig {
    /// Highest interrupt source; sources count from 1. At most 1023.
    pub sources: u32,
    /// The harts.
    pub harts: Vec<Arc<dyn VcpuControl>>,
    /// Domains, the root first.
    pub domains: Vec<AplicDomainConfig>,
}

struct Domain {
    lines: Vec<OutputLine>,
    file: u32,
}

/// The controller. Its inputs are an [`IrqSink`] with sources as lines; each domain is a device.
pub struct Aplic {
    sources: u32,
    harts: Vec<Arc<dyn VcpuControl>>,
    domains: Vec<Domain>,
    state: Mutex<State>,
}

impl Aplic {
    /// Makes the controller; all sources are inactive.
    #[must_use]
    pub fn new(config: AplicConfig) -> Arc<Self> {
        let AplicConfig { sources, harts, domains } = config;
        let sources = sources.min(MAX_SOURCE);
        let state = Mutex::new(State::new(sources, domains.len(), harts.len()));
        let domains = domains
            .into_iter()
            .map(|d| Domain { lines: d.lines.into_iter().map(OutputLine::new).collect(), file: d.file })
            .collect();
        Arc::new(Self { sources, harts, domains, state })
    }

    /// The registers of domain `index`, to be placed on the bus.
    #[must_use]
    pub fn domain(self: &Arc<Self>, index: usize) -> AplicDomain {
        AplicDomain { controller: Arc::clone(self), index }
    }

    /// Changes the state, then sends what has become due.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let r = change(&mut state);
        let mut messages = Vec::new();
        let mut changed = Vec::new();
        for (index, domain) in self.domains.iter().enumerate() {
            state.forward(index, &mut messages);
            for (hart, line) in domain.lines.iter().enumerate() {
                if line.decide(state.hart_level(index, hart)) {
                    changed.push(line);
                }
            }
        }
        drop(state);
        for line in changed {
            line.deliver();
        }
        for message in messages {
            self.send(&message);
        }
        r
    }

    fn send(&self, message: &Message) {
        let file = self.domains.get(message.domain).map(|d| d.file);
        if let (Some(hart), Some(file)) = (self.harts.get(message.hart), file)
            && message.id != 0
        {
            hart.deliver_message(file, message.id);
        }
    }
}

impl IrqSink for Aplic {
    fn set_irq(&self, line: u32, level: bool) {
        if (1..=self.sources).contains(&line) {
            self.update(|s| s.set_input(line, level));
        }
    }
}

/// One domain's registers.
pub struct AplicDomain {
    controller: Arc<Aplic>,
    index: usize,
}

impl AplicDomain {
    /// Bytes of its range for `harts` harts.
    #[must_use]
    pub const fn size(harts: u64) -> u64 {
        let bytes = registers::IDC + harts * registers::IDC_STRIDE;
        bytes.next_multiple_of(0x1000)
    }
}

impl MmioDevice for AplicDomain {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoOutcome {
        if data.len() != 4 || !offset.is_multiple_of(4) {
            return IoOutcome::Fault;
        }
        let value = self.controller.update(|s| s.read(self.index, offset));
        put_le(data, value.into());
        IoOutcome::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> IoOutcome {
        if data.len() != 4 || !offset.is_multiple_of(4) {
            return IoOutcome::Fault;
        }
        let value = le_value(data) as u32;
        if let Some(message) = self.controller.update(|s| s.write(self.index, offset, value)) {
            self.controller.send(&message);
        }
        IoOutcome::Done
    }
}

impl Device for AplicDomain {
    fn name(&self) -> &str {
        "aplic"
    }

    fn reset(&self) {
        self.controller.update(|s| s.reset(self.index));
    }
}

#[cfg(test)]
mod tests;
