//! Instructions to IR.
//!
//! [`lift`] works in three passes over a region. The scan decodes from the start up to where no known branch
//! leads further; reachability finds which of the instructions control can get to from the first one; the
//! last pass emits those. Only branch targets get labels.

mod control;
mod csr;
mod emit;
mod float;
mod integer;
mod memory;
#[cfg(test)]
mod tests;
mod vector;

use plinth_ir::{Block, LiftError, LiftRequest};

use self::emit::Lifter;
use crate::decode::{Decoded, Decoder, Flow};
use crate::mode::RiscvMode;

const PAGE: i32 = 4096;
/// Bounds the temporaries of a block, of which an instruction takes at most 12.
const MAX_INSNS: usize = 1024;
/// After an unconditional jump the scan goes on if a branch target is at most so many bytes further on.
const MAX_GAP: i32 = 256;

/// A set of instruction addresses in the page.
#[derive(Clone, PartialEq, Eq)]
struct Targets {
    bits: [u64; 32],
}

impl Targets {
    const fn new() -> Self {
        Self { bits: [0; 32] }
    }

    /// Adds `offset` from the page base, if it is inside the page. Says whether it is new.
    fn insert(&mut self, offset: i32) -> bool {
        if !(0..PAGE).contains(&offset) {
            return false;
        }
        let (word, bit) = (offset as usize / 128, offset as u32 / 2 % 64);
        let new = self.bits[word] >> bit & 1 == 0;
        self.bits[word] |= 1 << bit;
        new
    }

    fn contains(&self, offset: i32) -> bool {
        (0..PAGE).contains(&offset) && self.bits[offset as usize / 128] >> (offset as u32 / 2 % 64) & 1 != 0
    }

    /// The first one at or after `from`.
    fn first_from(&self, from: i32) -> Option<i32> {
        if !(0..PAGE).contains(&from) {
            return None;
        }
        let (mut word, bit) = (from as usize / 128, from as u32 / 2 % 64);
        let mut bits = self.bits[word] >> bit << bit;
        while bits == 0 {
            word += 1;
            bits = *self.bits.get(word)?;
        }
        Some((word as u32 * 128 + bits.trailing_zeros() * 2) as i32)
    }
}

/// The instructions of a region, and its branch targets.
struct Region {
    insns: Vec<Decoded>,
    targets: Targets,
}

/// Decodes the instructions of the region.
fn scan(request: &LiftRequest<'_>) -> Result<Region, LiftError> {
    let decoder = Decoder::new();
    let start = request.start as i32;
    let max = (request.max_insns as usize).clamp(1, MAX_INSNS);
    let mut insns = Vec::with_capacity(max.min(64));
    let mut targets = Targets::new();
    let mut gaps = false;
    let mut at = start;
    while insns.len() < max && at < PAGE {
        let code = request.code.get((at - start) as usize..).unwrap_or_default();
        let Some(d) = decoder.decode_bytes(code) else {
            break;
        };
        let next = at + i32::from(d.len);
        if next > PAGE && !insns.is_empty() {
            break;
        }
        insns.push(d);
        if matches!(d.flow, Flow::Branch | Flow::Jump) {
            targets.insert(at + d.imm);
        }
        at = next;
        if matches!(d.flow, Flow::Jump | Flow::Leave) {
            if targets.first_from(at).is_none_or(|t| t > at + MAX_GAP) {
                break;
            }
            gaps = true;
        }
    }
    if insns.is_empty() {
        return Err(LiftError::NeedNextPage);
    }
    if gaps {
        targets = reachable_targets(&insns, start);
    }
    Ok(Region { insns, targets })
}

/// The targets of those branches that control can get to from the first instruction, at `start`.
fn reachable_targets(insns: &[Decoded], start: i32) -> Targets {
    let mut targets = Targets::new();
    loop {
        let mut again = false;
        let mut at = start;
        let mut live = true;
        for d in insns {
            live |= targets.contains(at);
            if live {
                if matches!(d.flow, Flow::Branch | Flow::Jump) {
                    let target = at + d.imm;
                    // Code before this place may come alive by a branch back.
                    again |= targets.insert(target) && target <= at;
                }
                live = matches!(d.flow, Flow::Next | Flow::Branch);
            }
            at += i32::from(d.len);
        }
        if !again {
            return targets;
        }
    }
}

/// Lifts a region: see [`plinth_ir::Isa::lift`].
///
/// # Errors
/// [`LiftError::NeedNextPage`] if the code ends inside the first instruction.
pub fn lift(request: &LiftRequest<'_>, out: &mut Block) -> Result<(), LiftError> {
    let Region { insns, targets } = scan(request)?;
    let start = request.start as i32;
    let mut lifter = Lifter::new(RiscvMode::of(request.mode), out);
    let mut at = start;
    let mut live = true;
    let mut end = start;
    for d in &insns {
        let len = i32::from(d.len);
        if targets.contains(at) {
            lifter.label(at);
            live = true;
        }
        if live {
            lifter.begin(at, d);
            live = lifter.insn(d);
            end = at + len;
        }
        at += len;
    }
    if live {
        lifter.goto(end);
    }
    out.start = request.start;
    out.len = (end - start) as u32;
    Ok(())
}

/// The constant number `n` of `fli.d`, as bits.
#[must_use]
pub(crate) fn float_constant(n: u8) -> u64 {
    float::constant(plinth_ir::Ty::F64, n)
}
