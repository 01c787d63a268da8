//! Physical memory protection (3.7): 16 entries.
//!
//! The granule is a page (G = 10), so that an entry never covers a part of one: NA4 cannot be selected, and
//! the low address bits read as the specification says for coarse granules.

use crate::mode::privilege;
use crate::privileged::state::has_sbi;
use crate::slots::{self, get, set};

/// Entries.
pub const ENTRIES: usize = 16;

/// log2 of the granule divided by 4.
const GRAIN: u32 = 10;
/// `pmpaddr` bits: those of a 56-bit address without the low 2.
const ADDRESS_MASK: u64 = (1 << 54) - 1;

/// Fields of a configuration byte.
mod cfg {
    pub const R: u8 = 1;
    pub const W: u8 = 2;
    pub const X: u8 = 4;
    pub const A: u8 = 3 << 3;
    pub const TOR: u8 = 1 << 3;
    pub const NA4: u8 = 2 << 3;
    pub const NAPOT: u8 = 3 << 3;
    pub const L: u8 = 1 << 7;
}

/// What accesses are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Fetches.
    pub fetch: bool,
}

impl Allowed {
    const ALL: Self = Self { read: true, write: true, fetch: true };
    const NONE: Self = Self { read: false, write: false, fetch: false };
}

fn config(s: &[u64], entry: usize) -> u8 {
    let word = get(s, if entry < 8 { slots::PMPCFG0 } else { slots::PMPCFG2 });
    word.to_le_bytes()[entry % 8]
}

fn raw_address(s: &[u64], entry: usize) -> u64 {
    get(s, slots::PMPADDR0 + (entry % ENTRIES) as u16)
}

/// The addresses that an entry matches, the end excluded; `None` if it is off or matches nothing.
fn region(s: &[u64], entry: usize) -> Option<(u64, u64)> {
    let tor_bound = |i: usize| (raw_address(s, i) & !((1 << GRAIN) - 1)) << 2;
    match config(s, entry) & cfg::A {
        cfg::TOR => {
            let start = if entry == 0 { 0 } else { tor_bound(entry - 1) };
            let end = tor_bound(entry);
            (start < end).then_some((start, end))
        }
        cfg::NAPOT => {
            let address = raw_address(s, entry) | ((1 << (GRAIN - 1)) - 1);
            // Up to 54 ones: the largest region has 2^57 bytes.
            let ones = address.trailing_ones();
            let start = (address & !((1 << (ones + 1)) - 1)) << 2;
            Some((start, start + (1 << (ones + 3))))
        }
        _ => None,
    }
}

/// What `privilege` may do to the page that `gpa` is in, and whether the same entry (or none) decides for all
/// of the `size` bytes (a power of two) around it.
#[must_use]
pub fn check(s: &[u64], gpa: u64, size: u64, own: u32) -> (Allowed, bool) {
    if has_sbi(s) {
        return (Allowed::ALL, true);
    }
    let start = gpa & !(size - 1);
    let end = start.saturating_add(size);
    let mut uniform = true;
    for entry in 0..ENTRIES {
        let Some((low, high)) = region(s, entry) else { continue };
        if (low..high).contains(&gpa) {
            uniform &= low <= start && end <= high;
            return (entry_allows(config(s, entry), own), uniform);
        }
        uniform &= high <= start || end <= low;
    }
    (if own == privilege::MACHINE { Allowed::ALL } else { Allowed::NONE }, uniform)
}

fn entry_allows(config: u8, own: u32) -> Allowed {
    if own == privilege::MACHINE && config & cfg::L == 0 {
        return Allowed::ALL;
    }
    Allowed { read: config & cfg::R != 0, write: config & cfg::W != 0, fetch: config & cfg::X != 0 }
}

/// Reads `pmpaddr` of `entry`, below [`ENTRIES`].
#[must_use]
pub fn read_address(s: &[u64], entry: usize) -> u64 {
    let address = raw_address(s, entry);
    if config(s, entry) & cfg::NA4 != 0 {
        address | ((1 << (GRAIN - 1)) - 1)
    } else {
        address & !((1 << GRAIN) - 1)
    }
}

/// Writes `pmpaddr` of `entry`, below [`ENTRIES`], unless it is locked (3.7.1.2).
pub fn write_address(s: &mut [u64], entry: usize, value: u64) {
    let next = if entry + 1 < ENTRIES { config(s, entry + 1) } else { 0 };
    let is_locked_bound = next & cfg::L != 0 && next & cfg::A == cfg::TOR;
    if config(s, entry) & cfg::L == 0 && !is_locked_bound {
        set(s, slots::PMPADDR0 + (entry % ENTRIES) as u16, value & ADDRESS_MASK);
    }
}

/// What `pmpcfg` slot `slot` becomes when `value` is written to it: locked bytes stay, fields are legalized.
pub fn write_config(s: &mut [u64], slot: u16, value: u64) {
    let mut bytes = get(s, slot).to_le_bytes();
    for (old, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
        if *old & cfg::L == 0 {
            *old = legal_config(*old, new);
        }
    }
    set(s, slot, u64::from_le_bytes(bytes));
}

fn legal_config(old: u8, new: u8) -> u8 {
    let mode = if new & cfg::A == cfg::NA4 { old & cfg::A } else { new & cfg::A };
    // Write without read is reserved.
    let rwx = if new & (cfg::R | cfg::W) == cfg::W { new & cfg::X } else { new & (cfg::R | cfg::W | cfg::X) };
    new & cfg::L | mode | rwx
}

#[cfg(test)]
mod tests;
