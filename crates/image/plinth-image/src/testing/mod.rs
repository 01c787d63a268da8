//! What the tests of all formats share: files that misbehave on purpose, power cuts, and random work whose outcome
//! is known sector by sector. All of it is deterministic for a seed.

mod crash;
mod fault;
pub mod samples;
mod sim;
mod workload;

pub use crash::{CrashTest, Cut, Cuts, Subject};
pub use fault::{FaultCount, FaultTest, Faults};
pub use sim::{Record, SimNode, SimOutput, World};
pub use workload::{Shadow, Workload};

/// A small random generator (xorshift64*), the same on every host.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers that follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// A number below `n`, or 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
