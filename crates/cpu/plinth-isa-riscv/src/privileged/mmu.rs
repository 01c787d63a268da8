//! Address translation: Sv39, Sv48, Sv57 (10.3 to 10.6), Svnapot, Svadu or Svade.

use plinth_ir::{Access, AccessKind, AddressSpace, CpuEnv, Exception, Translation};

use crate::mode::{mmu, privilege};
use crate::privileged::pmp;
use crate::privileged::state::{envcfg, feature, status};
use crate::privileged::trap::cause;
use crate::slots::{self, get};

const PAGE_SHIFT: u32 = 12;
const PAGE: u64 = 1 << PAGE_SHIFT;
const PPN_MASK: u64 = (1 << 44) - 1;

/// Fields of a page table entry (10.4.1).
mod pte {
    pub const V: u64 = 1;
    pub const R: u64 = 1 << 1;
    pub const W: u64 = 1 << 2;
    pub const X: u64 = 1 << 3;
    pub const U: u64 = 1 << 4;
    pub const G: u64 = 1 << 5;
    pub const A: u64 = 1 << 6;
    pub const D: u64 = 1 << 7;
    /// Reserved, and the memory type of Svpbmt, which is not there.
    pub const RESERVED: u64 = 0x7f << 54 | 3 << 61;
    /// Naturally aligned power of two (Svnapot).
    pub const N: u64 = 1 << 63;
    pub const PPN_SHIFT: u32 = 10;
}

/// How often a walk is begun anew because another hart changed the entry in between.
const MAX_RETRIES: u32 = 256;

/// `satp` (10.1.11).
pub mod satp {
    use super::{PPN_MASK, feature, get, slots};

    /// Lowest bit of the mode.
    pub const MODE_SHIFT: u32 = 60;
    /// Lowest bit of the address space's number.
    pub const ASID_SHIFT: u32 = 44;
    const SV39: u64 = 8;
    const SV48: u64 = 9;
    const SV57: u64 = 10;

    /// Page table levels that `satp` asks for; 0: addresses are physical.
    #[must_use]
    pub fn levels(satp: u64) -> u32 {
        match satp >> MODE_SHIFT {
            SV39 => 3,
            SV48 => 4,
            SV57 => 5,
            _ => 0,
        }
    }

    /// What `satp` becomes when `value` is written. A mode that is not there leaves it as it is.
    #[must_use]
    pub fn legal(s: &[u64], value: u64) -> u64 {
        let features = get(s, slots::FEATURES);
        let is_there = match value >> MODE_SHIFT {
            0 => return 0,
            SV39 => true,
            SV48 => features & feature::SV48 != 0,
            SV57 => features & feature::SV57 != 0,
            _ => false,
        };
        if is_there { value } else { get(s, slots::SATP) }
    }

    /// Physical address of the root page table.
    #[must_use]
    pub fn root(satp: u64) -> u64 {
        (satp & PPN_MASK) << super::PAGE_SHIFT
    }
}

/// Identifies the address space of set `set`. The memory protection is not part of it: changing that flushes.
#[must_use]
pub fn address_space(s: &[u64], set: usize) -> AddressSpace {
    const MACHINE: u32 = 1;
    if set as u32 == mmu::MACHINE {
        return AddressSpace { regime: MACHINE, space: 0, asid: 0 };
    }
    let satp = get(s, slots::SATP);
    let mxr = u32::from(get(s, slots::MSTATUS) & status::MXR != 0);
    let space = satp & ((1 << satp::MODE_SHIFT) - 1);
    AddressSpace { regime: satp::levels(satp) << 2 | mxr << 1, space, asid: space >> satp::ASID_SHIFT }
}

/// The exception for an access that the memory or its protection refuses.
#[must_use]
pub fn access_fault(access: Access) -> Exception {
    let code = match access.kind {
        AccessKind::Fetch => cause::FETCH_ACCESS,
        AccessKind::Read => cause::LOAD_ACCESS,
        AccessKind::Write => cause::STORE_ACCESS,
    };
    Exception { code, value: access.va }
}

/// The exception for an access that must be aligned.
#[must_use]
pub fn misaligned(access: Access) -> Exception {
    let code = match access.kind {
        AccessKind::Fetch => cause::FETCH_MISALIGNED,
        AccessKind::Read => cause::LOAD_MISALIGNED,
        AccessKind::Write => cause::STORE_MISALIGNED,
    };
    Exception { code, value: access.va }
}

fn page_fault(access: Access) -> Exception {
    let code = match access.kind {
        AccessKind::Fetch => cause::FETCH_PAGE,
        AccessKind::Read => cause::LOAD_PAGE,
        AccessKind::Write => cause::STORE_PAGE,
    };
    Exception { code, value: access.va }
}

/// Translates `access`.
///
/// # Errors
/// A page fault, or an access fault where the protection forbids the access or the walk.
pub fn translate(s: &[u64], env: &mut dyn CpuEnv, access: Access) -> Result<Translation, Exception> {
    let own = match access.mmu as u32 {
        mmu::MACHINE => privilege::MACHINE,
        mmu::USER => privilege::USER,
        _ => privilege::SUPERVISOR,
    };
    let satp = get(s, slots::SATP);
    let levels = satp::levels(satp);
    let mapped = if own == privilege::MACHINE || levels == 0 {
        let (read, write, fetch, global) = (true, true, true, true);
        Translation { gpa: access.va, page_size: 1 << 30, read, write, fetch, global }
    } else {
        Walk { s, env, access, own, levels }.run(satp::root(satp))?
    };
    protect(s, access, own, mapped)
}

/// Narrows a translation to what the physical memory protection allows.
fn protect(s: &[u64], access: Access, own: u32, t: Translation) -> Result<Translation, Exception> {
    let (allowed, uniform) = pmp::check(s, t.gpa, t.page_size, own);
    let t = Translation {
        page_size: if uniform { t.page_size } else { PAGE },
        read: t.read && allowed.read,
        write: t.write && allowed.write,
        fetch: t.fetch && allowed.fetch,
        ..t
    };
    let is_allowed = match access.kind {
        AccessKind::Read => t.read,
        AccessKind::Write => t.write,
        AccessKind::Fetch => t.fetch,
    };
    if is_allowed { Ok(t) } else { Err(access_fault(access)) }
}

/// A walk of the page tables (10.3.2).
struct Walk<'a> {
    s: &'a [u64],
    env: &'a mut dyn CpuEnv,
    access: Access,
    own: u32,
    levels: u32,
}

impl Walk<'_> {
    fn run(&mut self, root: u64) -> Result<Translation, Exception> {
        let va = self.access.va;
        let unused_bits = 64 - (PAGE_SHIFT + 9 * self.levels);
        let canonical = ((va << unused_bits) as i64 >> unused_bits) as u64;
        if canonical != va {
            return Err(page_fault(self.access));
        }
        for _ in 0..MAX_RETRIES {
            if let Some(t) = self.attempt(root)? {
                return Ok(t);
            }
        }
        Err(page_fault(self.access))
    }

    /// One walk; `None` if an entry changed under it.
    fn attempt(&mut self, root: u64) -> Result<Option<Translation>, Exception> {
        let mut table = root;
        let mut global = false;
        for level in (0..self.levels).rev() {
            let index = self.access.va >> (PAGE_SHIFT + 9 * level) & 0x1ff;
            let at = table + index * 8;
            let entry = self.read_entry(at)?;
            if entry & pte::V == 0 || entry & pte::RESERVED != 0 || entry & (pte::R | pte::W) == pte::W {
                return Err(page_fault(self.access));
            }
            global |= entry & pte::G != 0;
            if entry & (pte::R | pte::X) != 0 {
                return self.leaf(at, entry, level, global);
            }
            if entry & (pte::D | pte::A | pte::U | pte::N) != 0 {
                return Err(page_fault(self.access));
            }
            table = (entry >> pte::PPN_SHIFT & PPN_MASK) << PAGE_SHIFT;
        }
        Err(page_fault(self.access))
    }

    /// Reads the entry at physical address `at`, as supervisor mode may.
    fn read_entry(&mut self, at: u64) -> Result<u64, Exception> {
        let (allowed, _) = pmp::check(self.s, at, PAGE, privilege::SUPERVISOR);
        if !allowed.read {
            return Err(access_fault(self.access));
        }
        self.env.read_phys(at, 8).map_err(|_| access_fault(self.access))
    }

    fn leaf(
        &mut self,
        at: u64,
        entry: u64,
        level: u32,
        global: bool,
    ) -> Result<Option<Translation>, Exception> {
        let fault = Err(page_fault(self.access));
        let kind = self.access.kind;
        let size_shift = PAGE_SHIFT + 9 * level;
        let mut page_size = 1u64 << size_shift;
        let mut base = (entry >> pte::PPN_SHIFT & PPN_MASK) << PAGE_SHIFT;
        if entry & pte::N != 0 {
            // The only size is 64 KiB, encoded as 8 in the low bits of the page number (13).
            if level != 0 || base >> PAGE_SHIFT & 0xf != 8 {
                return fault;
            }
            page_size = 16 * PAGE;
            base &= !(page_size - 1);
        }
        if base & (page_size - 1) != 0 {
            return fault;
        }
        let (read, write, fetch) = self.permissions(entry);
        let is_allowed = match kind {
            AccessKind::Read => read,
            AccessKind::Write => write,
            AccessKind::Fetch => fetch,
        };
        if !is_allowed {
            return fault;
        }
        let needed = pte::A | if kind == AccessKind::Write { pte::D } else { 0 };
        if entry & needed != needed {
            if get(self.s, slots::MENVCFG) & envcfg::ADUE == 0 {
                return fault;
            }
            if !self.update_entry(at, entry, entry | needed)? {
                return Ok(None);
            }
        }
        let gpa = base | self.access.va & (page_size - 1);
        let is_dirty = (entry | needed) & pte::D != 0;
        Ok(Some(Translation { gpa, page_size, read, write: write && is_dirty, fetch, global }))
    }

    /// Loads, stores and fetches that leaf `entry` allows.
    fn permissions(&self, entry: u64) -> (bool, bool, bool) {
        let is_user_page = entry & pte::U != 0;
        let (data, fetch) = if self.own == privilege::USER {
            (is_user_page, is_user_page)
        } else {
            let sum = self.access.mmu as u32 == mmu::SUPERVISOR_SUM;
            (!is_user_page || sum, !is_user_page)
        };
        let mxr = get(self.s, slots::MSTATUS) & status::MXR != 0;
        let readable = entry & pte::R != 0 || (mxr && entry & pte::X != 0);
        (data && readable, data && entry & pte::W != 0, fetch && entry & pte::X != 0)
    }

    /// Replaces `old` by `new` at `at`; false if it is no longer `old`.
    fn update_entry(&mut self, at: u64, old: u64, new: u64) -> Result<bool, Exception> {
        let (allowed, _) = pmp::check(self.s, at, PAGE, privilege::SUPERVISOR);
        if !allowed.write {
            return Err(access_fault(self.access));
        }
        let was = self.env.cas_phys(at, old, new).map_err(|_| access_fault(self.access))?;
        Ok(was == old)
    }
}

#[cfg(test)]
mod tests;
