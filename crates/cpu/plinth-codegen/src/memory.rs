//! Code memory: one piece of anonymous memory mapped twice, writable and executable, never both at one
//! address.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use plinth_ir::Layout;

use crate::CodegenError;
use crate::frame::{Frame, Runtime, ThunkTable};
use crate::thunks::{self, Thunks};

/// Enters translated code; see [`CodeMemory::enter`].
pub type EnterFn = unsafe extern "C" fn(*mut Frame, CodeAddress) -> u32;

/// Address of host code in the executable mapping.
pub type CodeAddress = u64;

/// Alignment of a piece of code, in bytes.
const ALIGN: usize = 16;

/// Bounded memory for host code, with the thunks at its start. Writing goes through the writable mapping by
/// `&mut self`; patching is atomic and may go on while other threads run the code.
pub struct CodeMemory {
    rw: *mut u8,
    rx: *const u8,
    size: usize,
    used: usize,
    base_used: usize,
    thunks: Thunks,
}

// SAFETY: the mappings belong to this value alone and are not tied to a thread. Shared access only patches
// aligned words atomically; everything else takes `&mut self`.
unsafe impl Send for CodeMemory {}
// SAFETY: as above.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    /// Maps `size` bytes (rounded up to pages; at least 64 KiB, at most 1 GiB) and writes the thunks for a guest with `layout`, which call
    /// `runtime`.
    ///
    /// # Errors
    /// [`CodegenError::Map`] if the host refuses, [`CodegenError::Full`] if `size` does not hold the thunks.
    pub fn new(size: usize, layout: &Layout, runtime: &Runtime) -> Result<Self, CodegenError> {
        // A jump reaches 2 GiB.
        let size = size.clamp(64 << 10, 1 << 30).next_multiple_of(4096);
        let (rw, rx) = map_twice(size).map_err(|source| CodegenError::Map { bytes: size, source })?;
        let mut memory = Self { rw, rx, size, used: 0, base_used: 0, thunks: Thunks::default() };
        let (code, thunks) = thunks::build(layout, runtime, rx as u64)?;
        memory.append(&code)?;
        memory.thunks = thunks;
        memory.base_used = memory.used;
        Ok(memory)
    }

    /// Bytes in use, thunks included.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.size - self.used
    }

    /// Drops all translated code. No thread may be in it, and none may have an address of it left.
    pub fn reset(&mut self) {
        self.used = self.base_used;
    }

    /// True if `address` is in translated code or a thunk.
    #[must_use]
    pub fn contains(&self, address: CodeAddress) -> bool {
        (self.rx as u64..self.rx as u64 + self.used as u64).contains(&address)
    }

    /// Addresses of the thunks, for [`Frame::thunks`].
    #[must_use]
    pub fn thunk_table(&self) -> ThunkTable {
        self.thunks.table
    }

    /// Internal thunks and constants.
    pub(crate) fn thunks(&self) -> &Thunks {
        &self.thunks
    }

    /// Where the next piece of code will be.
    pub(crate) fn next_address(&self) -> CodeAddress {
        self.rx as u64 + self.used as u64
    }

    /// Copies `code` in; returns its address, which is [`Self::next_address`] before the call.
    pub(crate) fn append(&mut self, code: &[u8]) -> Result<CodeAddress, CodegenError> {
        if code.len() > self.remaining() {
            return Err(CodegenError::Full);
        }
        let address = self.next_address();
        // SAFETY: `used + code.len()` is within the writable mapping, as just checked; nobody executes bytes
        // past `used`, and `&mut self` keeps other writers away.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.rw.add(self.used), code.len()) };
        self.used = (self.used + code.len()).next_multiple_of(ALIGN).min(self.size);
        Ok(address)
    }

    /// The bytes at `address`, for dumps and tests; none if they are not all in use.
    #[must_use]
    pub fn bytes(&self, address: CodeAddress, len: usize) -> Option<Vec<u8>> {
        let at = address.checked_sub(self.rx as u64)? as usize;
        let end = at.checked_add(len)?;
        if end > self.used {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`. Patching may go on meanwhile, so the
        // bytes are read volatile, one at a time.
        Some((at..end).map(|i| unsafe { ptr::read_volatile(self.rw.add(i)) }).collect())
    }

    /// Makes the jump whose rel32 field is at `site` go to `target`. Threads that run the code see the old
    /// or the new target. False if the arguments are not addresses of this memory.
    pub fn patch_jump(&self, site: CodeAddress, target: CodeAddress) -> bool {
        let rel = target.wrapping_sub(site + 4) as i64;
        match i32::try_from(rel) {
            Ok(rel) if self.contains(target) => self.patch(site, rel as u32),
            _ => false,
        }
    }

    /// Where the jump whose rel32 field is at `site` goes; none if that is no address of this memory.
    #[must_use]
    pub fn jump_target(&self, site: CodeAddress) -> Option<CodeAddress> {
        let offset = site.wrapping_sub(self.rx as u64) as usize;
        if offset >= self.used || offset % 8 > 4 || offset.saturating_add(4) > self.used {
            return None;
        }
        let word = self.rw.wrapping_add(offset & !7).cast::<AtomicU64>();
        // SAFETY: `word` is aligned and within the writable mapping (whose length is a multiple of 8).
        let word = unsafe { &*word }.load(Ordering::Relaxed);
        let rel = (word >> ((offset % 8) * 8)) as u32 as i32;
        Some((site + 4).wrapping_add_signed(rel.into()))
    }

    /// Sets the page number that a cross-page exit compares with ([`crate::ExitSite::page_literal`]).
    /// [`u32::MAX`] matches no page.
    pub fn patch_literal(&self, literal: CodeAddress, page: u32) -> bool {
        self.patch(literal, page)
    }

    fn patch(&self, at: CodeAddress, value: u32) -> bool {
        let offset = at.wrapping_sub(self.rx as u64) as usize;
        if offset < self.base_used || offset.saturating_add(4) > self.used {
            return false;
        }
        // A field that straddles 8 bytes would tear; the translator aligns those that are patched.
        if offset % 8 > 4 {
            return false;
        }
        let word = self.rw.wrapping_add(offset & !7).cast::<AtomicU64>();
        let shift = (offset % 8) * 8;
        let mask = u64::from(u32::MAX) << shift;
        // SAFETY: `word` is aligned and within the writable mapping (whose length is a multiple of 8).
        let word = unsafe { &*word };
        let mut old = word.load(Ordering::Relaxed);
        loop {
            let new = (old & !mask) | (u64::from(value) << shift);
            match word.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => old = now,
            }
        }
    }

    /// Runs translated code at `code` on the vCPU of `frame` until it is left. Returns the reason
    /// ([`crate::frame::exit`]).
    ///
    /// # Safety
    /// `frame` is valid and used by no other thread, except for its atomic fields; the memory below it is a
    /// stack big enough for the runtime functions; its slots, tokens and tables are consistent: every tag
    /// that translated code can match has an addend that makes the whole page accessible. `code` is the
    /// address of an entry of a region that [`crate::Translator`] put into this memory and that has not
    /// been dropped since.
    pub unsafe fn enter(&self, frame: *mut Frame, code: CodeAddress) -> u32 {
        // SAFETY: as the caller promises.
        unsafe { self.enter_fn()(frame, code) }
    }

    /// The function behind [`CodeMemory::enter`], with the same contract, valid as long as this memory: for a
    /// caller that shares the memory behind a lock and enters without it.
    #[must_use]
    pub fn enter_fn(&self) -> EnterFn {
        // SAFETY: the thunk was written by `thunks::build` with this signature.
        unsafe { std::mem::transmute::<*const (), EnterFn>(self.thunks.enter as *const ()) }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both mappings were made by `map_twice` with this size, and nothing points into them now.
        unsafe {
            libc::munmap(self.rw.cast(), self.size);
            libc::munmap(self.rx as *mut libc::c_void, self.size);
        }
    }
}

/// Maps `size` bytes of fresh memory twice: writable, and executable. The memory is anonymous, since `perf`
/// looks for the names of such code alone in its map files.
fn map_twice(size: usize) -> io::Result<(*mut u8, *const u8)> {
    let (rights, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address that the kernel chooses.
    let rw = unsafe { libc::mmap(ptr::null_mut(), size, rights, flags, -1, 0) };
    if rw == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: with an old size of 0, a shared mapping stays and the same memory is mapped once more (mremap(2)),
    // at an address that the kernel chooses.
    let rx = unsafe { libc::mremap(rw, 0, size, libc::MREMAP_MAYMOVE) };
    let is_mapped = rx != libc::MAP_FAILED;
    // SAFETY: the second mapping, to which nothing points yet.
    if is_mapped && unsafe { libc::mprotect(rx, size, libc::PROT_READ | libc::PROT_EXEC) } == 0 {
        return Ok((rw.cast(), rx.cast_const().cast()));
    }
    let error = io::Error::last_os_error();
    // SAFETY: what has been mapped here, with this size.
    unsafe {
        libc::munmap(rw, size);
        if is_mapped {
            libc::munmap(rx, size);
        }
    }
    Err(error)
}
