//! The tests' memory.

use crate::eval::{eval_amo, extend};
use crate::interp::Atomic;
use crate::op::{Ty, flags};

/// Its first guest virtual address.
pub const MEMORY_BASE: u64 = 0x10000;
/// Its size: two pages, all other addresses fault.
pub const MEMORY_BYTES: usize = 0x2000;

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No memory at this address.
    Unmapped(u64),
    /// The address is not aligned and the access asks for that ([`flags::ALIGNED`]; atomic ones always do).
    Misaligned(u64),
}

/// Memory with a reservation, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The bytes from [`MEMORY_BASE`].
    pub bytes: Vec<u8>,
    /// The reserved address.
    pub reserved: Option<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { bytes: vec![0; MEMORY_BYTES], reserved: None }
    }
}

impl Memory {
    fn at(&mut self, va: u64, bytes: u32, aligned: bool) -> Result<&mut [u8], Fault> {
        if aligned && !va.is_multiple_of(u64::from(bytes)) {
            return Err(Fault::Misaligned(va));
        }
        let start = va.wrapping_sub(MEMORY_BASE);
        let end = start.checked_add(u64::from(bytes)).filter(|&e| e <= MEMORY_BYTES as u64);
        end.map(|end| &mut self.bytes[start as usize..end as usize]).ok_or(Fault::Unmapped(va))
    }

    /// Loads `ty` (at most 128 bits), zero-extended; `access` are [`flags`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn load(&mut self, va: u64, ty: Ty, access: u8) -> Result<u128, Fault> {
        let from = self.at(va, ty.bytes(), access & flags::ALIGNED != 0)?;
        let mut bytes = [0; 16];
        bytes[..from.len()].copy_from_slice(from);
        Ok(u128::from_le_bytes(bytes))
    }

    /// Stores the low bits of `value`.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn store(&mut self, va: u64, ty: Ty, access: u8, value: u128) -> Result<(), Fault> {
        let to = self.at(va, ty.bytes(), access & flags::ALIGNED != 0)?;
        to.copy_from_slice(&value.to_le_bytes()[..to.len()]);
        Ok(())
    }

    /// An atomic operation; the value is zero-extended.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn atomic(&mut self, va: u64, atomic: Atomic, ty: Ty, b: u64, c: u64) -> Result<u64, Fault> {
        let old = self.load(va, ty, flags::ALIGNED)? as u64;
        let new = match atomic {
            Atomic::Amo(op) => eval_amo(op, ty, old, b),
            Atomic::Cas => {
                if old == extend(ty, false, b) {
                    c
                } else {
                    old
                }
            }
            Atomic::LoadReserved => {
                self.reserved = Some(va);
                return Ok(old);
            }
            Atomic::StoreCond => {
                if self.reserved.take() != Some(va) {
                    return Ok(1);
                }
                b
            }
        };
        self.store(va, ty, flags::ALIGNED, u128::from(new))?;
        Ok(if atomic == Atomic::StoreCond { 0 } else { old })
    }

    /// The first word that differs from `other`'s: its address, the value here and the value there.
    pub(super) fn difference(&self, other: &Self) -> Option<(u64, u64, u64)> {
        let words = self.bytes.chunks_exact(8).zip(other.bytes.chunks_exact(8)).enumerate();
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
        let mut differing = words.filter(|(_, (x, y))| x != y);
        differing.next().map(|(i, (x, y))| (MEMORY_BASE + 8 * i as u64, word(x), word(y)))
    }
}
