//! The memory of a vCPU's frame, with the stack of its helpers below it.

use std::io;
use std::ptr::{NonNull, addr_of, addr_of_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use plinth_codegen::frame::{Frame, SLOTS};
use plinth_ir::interp::WORDS;

/// Bytes of stack for helpers that translated code calls.
const STACK: usize = 1 << 20;
const GUARD: usize = 4096;

/// Owns the mapping: a guard page, the helpers' stack, the frame. Pages cost nothing until touched.
pub struct FrameMap {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory. The vCPU's thread alone touches it, but for `attention`, which is atomic.
unsafe impl Send for FrameMap {}
// SAFETY: as above.
unsafe impl Sync for FrameMap {}

impl FrameMap {
    /// Maps an empty frame.
    ///
    /// # Errors
    /// The host has no memory.
    pub fn new() -> io::Result<Self> {
        let len = (GUARD + STACK + size_of::<Frame>()).next_multiple_of(4096);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the first page of the mapping just made.
        unsafe { libc::mprotect(p, GUARD, libc::PROT_NONE) };
        let base = NonNull::new(p.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, len })
    }

    pub fn frame(&self) -> FramePtr {
        // SAFETY: within the mapping, and 64-byte aligned since GUARD + STACK is a multiple of a page.
        FramePtr(unsafe { self.base.as_ptr().add(GUARD + STACK).cast::<Frame>() })
    }

    /// Asks translated code to leave soon. Any thread.
    pub fn attention(&self) -> &AtomicU32 {
        // SAFETY: valid for the mapping's life, and atomic.
        unsafe { &*addr_of!((*self.frame().0).attention) }
    }
}

impl Drop for FrameMap {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; nothing refers to it after its owner is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A frame by address. Fields are reached one at a time, so that no `&mut Frame` overlaps what translated
/// code or another borrow of a different field uses.
#[derive(Clone, Copy)]
pub struct FramePtr(pub *mut Frame);

// SAFETY: used by the vCPU's own thread alone once it runs.
unsafe impl Send for FramePtr {}

/// Reads or writes one field of the frame.
macro_rules! field {
    ($f:expr, $($path:tt)+) => {
        // SAFETY: the frame's mapping outlives the vCPU, its fields are valid for any bits, and the borrow
        // ends with the expression.
        *unsafe { &mut *std::ptr::addr_of_mut!((*$f.0).$($path)+) }
    };
}
pub(crate) use field;

impl FramePtr {
    /// All slots.
    pub fn slots<'a>(self) -> &'a mut [u64] {
        // SAFETY: in bounds; callers keep one such borrow at a time, on the vCPU's thread.
        unsafe { std::slice::from_raw_parts_mut(addr_of_mut!((*self.0).slots).cast::<u64>(), SLOTS) }
    }

    /// All slots, and the interpreter's scratch room.
    pub fn words<'a>(self) -> &'a mut [u64; WORDS] {
        // SAFETY: in bounds; callers keep one such borrow at a time, on the vCPU's thread.
        unsafe { &mut *addr_of_mut!((*self.0).slots) }
    }

    /// True if somebody wants the vCPU's attention.
    pub fn wants_attention(self) -> bool {
        // SAFETY: atomic field of a live mapping.
        unsafe { &*addr_of!((*self.0).attention) }.load(Ordering::Relaxed) != 0
    }
}
