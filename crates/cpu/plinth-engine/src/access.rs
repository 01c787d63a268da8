//! Guest memory accesses beyond the fast path: TLB misses, devices, page crossings, translated pages.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use plinth_codegen::frame::tlb_index;
use plinth_ir::interp::Atomic;
use plinth_ir::{Access, AccessKind, Exception, Ty, eval_amo, extend};

use crate::core::{Core, ram_read, ram_write};
use crate::frame::field;

const PAGE: u64 = 4096;

/// Where a guest virtual address leads.
#[derive(Clone, Copy)]
struct Place {
    gpa: u64,
    /// Host address, if it is RAM.
    hva: Option<*mut u8>,
}

/// Compares and swaps `bytes` aligned bytes; returns what was there, zero-extended.
///
/// # Safety
/// `p` points to `bytes` (1, 2, 4, 8) aligned bytes of guest RAM.
unsafe fn ram_cas(p: *mut u8, bytes: u32, old: u64, new: u64) -> u64 {
    macro_rules! cas {
        ($a:ty, $t:ty) => {{
            // SAFETY: as the caller promises.
            let a = unsafe { <$a>::from_ptr(p.cast()) };
            match a.compare_exchange(old as $t, new as $t, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(v) | Err(v) => u64::from(v),
            }
        }};
    }
    match bytes {
        1 => cas!(AtomicU8, u8),
        2 => cas!(AtomicU16, u16),
        4 => cas!(AtomicU32, u32),
        _ => cas!(AtomicU64, u64),
    }
}

impl Core {
    fn place(&mut self, va: u64, kind: AccessKind) -> Result<Place, Exception> {
        let mmu = self.mode.data();
        let gpa = match self.tlb.find(mmu, va) {
            Some((_, true, e)) if kind == AccessKind::Write => e.gpa,
            Some((true, _, e)) if kind == AccessKind::Read => e.gpa,
            _ => self.translate(Access { va, kind, mmu })?.gpa,
        };
        let gpa = gpa | (va & (PAGE - 1));
        Ok(Place { gpa, hva: self.shared.ram.hva(gpa, 1) })
    }

    fn access(&self, va: u64, kind: AccessKind) -> Access {
        Access { va, kind, mmu: self.mode.data() }
    }

    /// As [`Core::read`], by way of the TLB's fast path.
    #[inline]
    pub fn fast_read(&mut self, va: u64, bytes: u32) -> Result<u64, Exception> {
        let mmu = self.mode.data();
        let e = field!(self.frame, tlb[mmu][tlb_index(va)]);
        let aligned = va & u64::from(bytes - 1) == 0;
        if aligned && e.read == (va & !(PAGE - 1)) | field!(self.frame, tokens[mmu]) {
            // SAFETY: the entry says that this page's RAM is there; the access is aligned and so inside it.
            return Ok(unsafe { ram_read(va.wrapping_add(e.addend) as *mut u8, bytes) });
        }
        self.read(va, bytes)
    }

    /// As [`Core::write`], by way of the TLB's fast path.
    #[inline]
    pub fn fast_write(&mut self, va: u64, bytes: u32, value: u64) -> Result<(), Exception> {
        let mmu = self.mode.data();
        let e = field!(self.frame, tlb[mmu][tlb_index(va)]);
        let aligned = va & u64::from(bytes - 1) == 0;
        if aligned && e.write == (va & !(PAGE - 1)) | field!(self.frame, tokens[mmu]) {
            // SAFETY: the entry says that this page's RAM may be written; the access is aligned and so inside it.
            unsafe { ram_write(va.wrapping_add(e.addend) as *mut u8, bytes, value) };
            return Ok(());
        }
        self.write(va, bytes, value)
    }

    /// Reads bytes of one page that the TLB has, the aligned words among them as such; else does nothing and
    /// says false.
    pub fn fast_read_bytes(&mut self, va: u64, data: &mut [u8]) -> bool {
        let mmu = self.mode.data();
        let e = field!(self.frame, tlb[mmu][tlb_index(va)]);
        let inside = (va & (PAGE - 1)) + data.len() as u64 <= PAGE;
        if !inside || e.read != (va & !(PAGE - 1)) | field!(self.frame, tokens[mmu]) {
            return false;
        }
        let mut from = va.wrapping_add(e.addend);
        let mut rest = data;
        while !rest.is_empty() {
            let bytes = if from.is_multiple_of(8) && rest.len() >= 8 { 8 } else { 1 };
            let (now, later) = rest.split_at_mut(bytes);
            // SAFETY: the entry says that this page's RAM is there; the access is aligned and inside it.
            let value = unsafe { ram_read(from as *mut u8, bytes as u32) };
            now.copy_from_slice(&value.to_le_bytes()[..bytes]);
            from += bytes as u64;
            rest = later;
        }
        true
    }

    /// Writes bytes of one page that the TLB has, likewise.
    pub fn fast_write_bytes(&mut self, va: u64, data: &[u8]) -> bool {
        let mmu = self.mode.data();
        let e = field!(self.frame, tlb[mmu][tlb_index(va)]);
        let inside = (va & (PAGE - 1)) + data.len() as u64 <= PAGE;
        if !inside || e.write != (va & !(PAGE - 1)) | field!(self.frame, tokens[mmu]) {
            return false;
        }
        let mut to = va.wrapping_add(e.addend);
        let mut rest = data;
        while !rest.is_empty() {
            let bytes = if to.is_multiple_of(8) && rest.len() >= 8 { 8 } else { 1 };
            let (now, later) = rest.split_at(bytes);
            let mut value = [0; 8];
            value[..bytes].copy_from_slice(now);
            // SAFETY: the entry says that this page's RAM may be written; the access is aligned and inside
            // it.
            unsafe { ram_write(to as *mut u8, bytes as u32, u64::from_le_bytes(value)) };
            to += bytes as u64;
            rest = later;
        }
        true
    }

    /// Reads 16 bytes.
    pub fn read_v128(&mut self, va: u64) -> Result<[u64; 2], Exception> {
        Ok([self.read(va, 8)?, self.read(va.wrapping_add(8), 8)?])
    }

    /// Writes 16 bytes, or none.
    pub fn write_v128(&mut self, va: u64, value: [u64; 2]) -> Result<(), Exception> {
        // Both pages must allow it before the first byte changes; that of the first byte is looked at first.
        let last = va.wrapping_add(15);
        self.place(va, AccessKind::Write)?;
        if (va ^ last) & !(PAGE - 1) != 0 {
            self.place(last & !(PAGE - 1), AccessKind::Write)?;
        }
        self.write(va, 8, value[0])?;
        self.write(va.wrapping_add(8), 8, value[1])
    }

    /// Reads `bytes` (1, 2, 4 or 8) bytes at `va`.
    pub fn read(&mut self, va: u64, bytes: u32) -> Result<u64, Exception> {
        if (va & (PAGE - 1)) + u64::from(bytes) > PAGE || (bytes > 1 && va & u64::from(bytes - 1) != 0) {
            let mut v = 0;
            for i in 0..bytes {
                v |= self.read(va.wrapping_add(i.into()), 1)? << (i * 8);
            }
            return Ok(v);
        }
        let place = self.place(va, AccessKind::Read)?;
        if let Some(p) = place.hva {
            // SAFETY: RAM of that page, aligned as checked.
            return Ok(unsafe { ram_read(p, bytes) });
        }
        let mut data = [0; 8];
        match self.shared.bus.read(place.gpa, &mut data[..bytes as usize]) {
            Ok(()) => Ok(u64::from_le_bytes(data)),
            Err(_) => Err(self.shared.isa.access_fault(self.access(va, AccessKind::Read))),
        }
    }

    /// Writes the low `bytes` (1, 2, 4 or 8) bytes of `value` at `va`.
    pub fn write(&mut self, va: u64, bytes: u32, value: u64) -> Result<(), Exception> {
        if (va & (PAGE - 1)) + u64::from(bytes) > PAGE || (bytes > 1 && va & u64::from(bytes - 1) != 0) {
            // Both pages must allow it before the first byte changes.
            self.place(va.wrapping_add(u64::from(bytes) - 1), AccessKind::Write)?;
            for i in 0..bytes {
                self.write(va.wrapping_add(i.into()), 1, value >> (i * 8) & 0xff)?;
            }
            return Ok(());
        }
        let place = self.place(va, AccessKind::Write)?;
        if let Some(p) = place.hva {
            // SAFETY: RAM of that page, aligned as checked.
            unsafe { ram_write(p, bytes, value) };
            self.written(va, place.gpa, bytes);
            return Ok(());
        }
        match self.shared.bus.write(place.gpa, &value.to_le_bytes()[..bytes as usize]) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.shared.isa.access_fault(self.access(va, AccessKind::Write))),
        }
    }

    /// RAM was written by the guest itself: translated code in it is dropped.
    fn written(&mut self, va: u64, gpa: u64, bytes: u32) {
        if !self.shared.ram.is_code(gpa) {
            return;
        }
        let dropped = self.shared.code_written(gpa, bytes.into());
        self.code_changed(&dropped);
        if !self.shared.ram.is_code(gpa) {
            // The page's last code is gone: stores are fast again.
            let access = self.access(va, AccessKind::Write);
            let _ = self.translate(access);
        }
    }

    /// An atomic operation; returns what its destination gets, zero-extended.
    pub fn atomic(&mut self, va: u64, op: Atomic, ty: Ty, b: u64, c: u64) -> Result<u64, Exception> {
        let bytes = ty.bytes().min(8);
        let kind = if op == Atomic::LoadReserved { AccessKind::Read } else { AccessKind::Write };
        if va & u64::from(bytes - 1) != 0 {
            return Err(self.shared.isa.misaligned(self.access(va, kind)));
        }
        if op == Atomic::StoreCond {
            let reserved = std::mem::replace(&mut field!(self.frame, reserved_va), u64::MAX);
            if reserved != va {
                return Ok(1);
            }
        }
        let place = self.place(va, kind)?;
        let Some(p) = place.hva else {
            return Err(self.shared.isa.access_fault(self.access(va, kind)));
        };
        let narrow = |v: u64| extend(ty, false, v);
        // SAFETY: RAM of that page, aligned as checked; so for all accesses below.
        let old = unsafe { ram_read(p, bytes) };
        let result = match op {
            Atomic::LoadReserved => {
                field!(self.frame, reserved_va) = va;
                field!(self.frame, reserved_value) = old;
                return Ok(old);
            }
            Atomic::StoreCond => {
                let expected = narrow(field!(self.frame, reserved_value));
                // SAFETY: see above.
                u64::from(unsafe { ram_cas(p, bytes, expected, narrow(b)) } != expected)
            }
            // SAFETY: see above.
            Atomic::Cas => unsafe { ram_cas(p, bytes, narrow(b), narrow(c)) },
            Atomic::Amo(amo) => {
                let mut old = old;
                loop {
                    // SAFETY: see above.
                    let seen = unsafe { ram_cas(p, bytes, old, eval_amo(amo, ty, old, b)) };
                    if seen == old {
                        break old;
                    }
                    old = seen;
                }
            }
        };
        self.written(va, place.gpa, bytes);
        Ok(result)
    }
}
