//! The supervisor's interrupt file for message-signalled interrupts, and the CSRs through which it is
//! reached: RISC-V Advanced Interrupt Architecture 1.0, chapters 2 and 3. Identities are 1 to 255; there are
//! no guest files. All numbers of major interrupt priorities read zero.

use plinth_ir::Cpu;

use crate::privileged::state::has_aia;
use crate::slots::{self, get, set};

/// Number of the supervisor's file in messages to a vCPU.
pub const FILE: u32 = 1;
/// Bits of `siselect` that can be written.
pub const SELECT_MASK: u64 = 0x1ff;

const IDENTITIES: u32 = 255;
const WORDS: u16 = 4;

/// Values of `siselect` (2.2, 3.8).
mod select {
    pub const PRIORITIES: std::ops::RangeInclusive<u64> = 0x30..=0x3f;
    pub const EIDELIVERY: u64 = 0x70;
    pub const EITHRESHOLD: u64 = 0x72;
    pub const EIP: u64 = 0x80;
    pub const EIE: u64 = 0xc0;
    pub const FILE: std::ops::RangeInclusive<u64> = 0x70..=0xff;
}

/// What a value of `siselect` reaches.
enum Selected {
    /// A slot, and its bits that can be written.
    Slot(u16, u64),
    /// A register that is zero.
    Zero,
}

/// What `siselect` reaches; `None`: nothing, an access is illegal.
fn selected(s: &[u64]) -> Option<Selected> {
    let number = get(s, slots::SISELECT);
    let is_array = select::PRIORITIES.contains(&number) || number >= select::EIP;
    if !number.is_multiple_of(2) && is_array {
        // With 64-bit registers, odd ones do not exist.
        return None;
    }
    let word = |first: u64, slot: u16| match u16::try_from((number - first) / 2) {
        // Identity 0 does not exist.
        Ok(0) => Selected::Slot(slot, !1),
        Ok(w) if w < WORDS => Selected::Slot(slot + w, !0),
        _ => Selected::Zero,
    };
    Some(match number {
        select::EIDELIVERY => Selected::Slot(slots::EIDELIVERY, 1),
        select::EITHRESHOLD => Selected::Slot(slots::EITHRESHOLD, 0xff),
        n if (select::EIE..=*select::FILE.end()).contains(&n) => word(select::EIE, slots::EIE0),
        n if (select::EIP..select::EIE).contains(&n) => word(select::EIP, slots::EIP0),
        n if select::FILE.contains(&n) || select::PRIORITIES.contains(&n) => Selected::Zero,
        _ => return None,
    })
}

/// Reads `sireg`; `None` if that is illegal.
#[must_use]
pub fn read_selected(s: &[u64]) -> Option<u64> {
    Some(match selected(s)? {
        Selected::Slot(slot, _) => get(s, slot),
        Selected::Zero => 0,
    })
}

/// Writes `sireg`; `None` if that is illegal.
pub fn write_selected(s: &mut [u64], value: u64) -> Option<()> {
    if let Selected::Slot(slot, mask) = selected(s)? {
        set(s, slot, value & mask);
    }
    Some(())
}

/// Takes messages that have arrived into the file.
pub fn receive(cpu: &mut Cpu<'_>) {
    if !has_aia(cpu.slots) {
        return;
    }
    for id in cpu.env.take_messages(FILE) {
        if (1..=IDENTITIES).contains(&id) {
            let slot = slots::EIP0 + (id / 64) as u16;
            set(cpu.slots, slot, get(cpu.slots, slot) | 1 << (id % 64));
        }
    }
}

/// `stopei`: the lowest identity that is pending, enabled and below the threshold, in bits 16 to 26 and as
/// its priority in bits 0 to 10 (3.10); 0 if there is none.
#[must_use]
pub fn top(s: &[u64]) -> u64 {
    let word = |w: u16| get(s, slots::EIP0 + w) & get(s, slots::EIE0 + w);
    let first = (0..WORDS).find(|&w| word(w) != 0);
    let Some(id) = first.map(|w| u64::from(w) * 64 + u64::from(word(w).trailing_zeros())) else { return 0 };
    let threshold = get(s, slots::EITHRESHOLD);
    if threshold != 0 && id >= threshold { 0 } else { id << 16 | id }
}

/// A write of `stopei`: what it shows is no longer pending.
pub fn claim(s: &mut [u64]) {
    let id = top(s) >> 16;
    let slot = slots::EIP0 + (id / 64) as u16;
    set(s, slot, get(s, slot) & !(1 << (id % 64)));
}

/// True if the file signals an external interrupt.
#[must_use]
pub fn is_pending(s: &[u64]) -> bool {
    get(s, slots::EIDELIVERY) == 1 && top(s) != 0
}

#[cfg(test)]
mod tests;
