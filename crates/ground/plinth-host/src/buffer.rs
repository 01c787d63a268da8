//! Memory for I/O: page-aligned, recycled, and owned, so that a request that the kernel works on can hold
//! its buffer until it is done, whatever becomes of who asked.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers begin at multiples of this many bytes, which `O_DIRECT` asks for at most.
pub const ALIGN: usize = 4096;
/// Bytes of free buffers that are kept for later: memory that was used before is several times faster than
/// memory that the host has to give first.
const KEPT: usize = 16 << 20;

#[derive(Default)]
struct Free {
    by_capacity: HashMap<usize, Vec<Memory>>,
    bytes: usize,
}

static FREE: Mutex<Option<Free>> = Mutex::new(None);

/// A block of initialized memory.
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: the block is owned; who may touch which part of it is the business of `IoBuf` and `IoData`.
unsafe impl Send for Memory {}
// SAFETY: as above; `Memory` itself has no method that reads or writes the block.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("a buffer is smaller than the address space")
    }

    /// A block with old contents, or zeros; whether it is known to be zeros.
    fn take(len: usize) -> (Self, bool) {
        // Few sizes, so that what one request leaves fits the next. Memory that nobody touches costs nothing.
        let capacity = len.max(ALIGN).next_power_of_two();
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(free) = free.as_mut()
            && let Some(memory) = free.by_capacity.get_mut(&capacity).and_then(Vec::pop)
        {
            free.bytes -= capacity;
            return (memory, false);
        }
        drop(free);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let start =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        (Self { start, capacity }, true)
    }
}

/// A block on its way back: kept for the next user, or freed.
struct Owner(Option<Memory>);

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(memory) = self.0.take() else { return };
        let mut guard = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = guard.get_or_insert_default();
        // Sizes that nobody asks for any more must not keep those in use from being kept.
        let mut gone = Vec::new();
        while free.bytes + memory.capacity > KEPT {
            let other =
                free.by_capacity.iter_mut().find(|(c, all)| **c != memory.capacity && !all.is_empty());
            let Some(old) = other.and_then(|(_, all)| all.pop()) else { break };
            free.bytes -= old.capacity;
            gone.push(old);
        }
        if free.bytes + memory.capacity <= KEPT {
            free.bytes += memory.capacity;
            free.by_capacity.entry(memory.capacity).or_default().push(memory);
        } else {
            gone.push(memory);
        }
        drop(guard);
        for memory in gone {
            // SAFETY: allocated in `Memory::take` with this layout, and nobody else has it.
            unsafe { dealloc(memory.start.as_ptr(), Memory::layout(memory.capacity)) };
        }
    }
}

/// Bytes that only the owner may touch: a part of a block, at a page boundary unless it was split off.
pub struct IoBuf {
    owner: Arc<Owner>,
    /// Start of the part. Parts of one block never overlap.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an `IoBuf` is the only way to its bytes, and holds the block that they are in.
unsafe impl Send for IoBuf {}
// SAFETY: a shared `IoBuf` can only be read.
unsafe impl Sync for IoBuf {}

impl IoBuf {
    /// `len` bytes with unspecified (but initialized) contents.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self::take(len).0
    }

    /// `len` zeros.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let (mut buf, zeros) = Self::take(len);
        if !zeros {
            buf.fill(0);
        }
        buf
    }

    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::new(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    fn take(len: usize) -> (Self, bool) {
        let (memory, zeros) = Memory::take(len);
        let start = memory.start;
        (Self { owner: Arc::new(Owner(Some(memory))), start, len }, zeros)
    }

    /// Splits at `at`: this buffer keeps what is before, and what is after is returned.
    ///
    /// # Panics
    /// If `at` is beyond the end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split at {at} of {} bytes", self.len);
        // SAFETY: within the part, or one past its end.
        let start = unsafe { self.start.add(at) };
        let rest = Self { owner: Arc::clone(&self.owner), start, len: self.len - at };
        self.len = at;
        rest
    }

    /// Undoes a split: `next` must be the part that follows this one.
    ///
    /// # Errors
    /// Gives both back if it is not.
    pub fn join(mut self, next: Self) -> Result<Self, (Self, Self)> {
        // SAFETY: one past the part's end.
        let end = unsafe { self.start.add(self.len) };
        if !Arc::ptr_eq(&self.owner, &next.owner) || end != next.start {
            return Err((self, next));
        }
        self.len += next.len;
        Ok(self)
    }

    /// Makes the buffer shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the bytes shared and unchangeable.
    #[must_use]
    pub fn freeze(self) -> IoData {
        IoData { owner: self.owner, start: self.start, len: self.len }
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialized memory that the block's owner keeps, and that only this part covers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuf({} bytes)", self.len)
    }
}

/// Bytes that nobody changes any more; a clone shares them.
#[derive(Clone)]
pub struct IoData {
    owner: Arc<Owner>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are never written while an `IoData` covers them.
unsafe impl Send for IoData {}
// SAFETY: as above.
unsafe impl Sync for IoData {}

impl IoData {
    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        IoBuf::copy_of(bytes).freeze()
    }

    /// A part of it, without a copy.
    ///
    /// # Panics
    /// If the range is beyond the end.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(&n) => n,
            Bound::Excluded(&n) => n + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&n) => n + 1,
            Bound::Excluded(&n) => n,
            Bound::Unbounded => self.len,
        };
        assert!(start <= end && end <= self.len, "part {start}..{end} of {} bytes", self.len);
        // SAFETY: within the part, or one past its end.
        Self { owner: Arc::clone(&self.owner), start: unsafe { self.start.add(start) }, len: end - start }
    }

    /// The bytes as a buffer again, if nobody else has any part of their block.
    ///
    /// # Errors
    /// Gives itself back if somebody has.
    pub fn try_into_buf(mut self) -> Result<IoBuf, Self> {
        if Arc::get_mut(&mut self.owner).is_none() {
            return Err(self);
        }
        Ok(IoBuf { owner: self.owner, start: self.start, len: self.len })
    }

    /// The bytes as a buffer: these if nobody else has them, else a copy.
    #[must_use]
    pub fn into_buf(self) -> IoBuf {
        self.try_into_buf().unwrap_or_else(|data| IoBuf::copy_of(&data))
    }
}

impl Deref for IoData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: initialized memory that the block's owner keeps, and that nobody writes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl From<IoBuf> for IoData {
    fn from(buf: IoBuf) -> Self {
        buf.freeze()
    }
}

impl std::fmt::Debug for IoData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoData({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_apart_and_join_again() {
        let mut a = IoBuf::zeroed(10_000);
        assert_eq!(a.as_ptr() as usize % ALIGN, 0);
        let mut b = a.split_off(4096);
        let c = b.split_off(100);
        a.fill(1);
        b.fill(2);
        assert!(c.iter().all(|&x| x == 0));
        let (b, c) = match a.join(c) {
            Err((a, c)) => (a.join(b).unwrap(), c),
            Ok(_) => panic!("c does not follow a"),
        };
        let all = b.join(c).unwrap();
        assert_eq!((all.len(), all[4095], all[4096], all[4196]), (10_000, 1, 2, 0));
    }

    #[test]
    fn shared_bytes_become_a_buffer_when_nobody_else_has_them() {
        let data = IoData::copy_of(b"abcdef");
        let part = data.slice(2..4);
        assert_eq!(&*part, b"cd");
        let data = data.try_into_buf().unwrap_err();
        drop(data);
        assert_eq!(&*part.try_into_buf().unwrap(), b"cd");
        // A buffer of another size is given back for one that is in use.
        let sizes = [KEPT / 2, KEPT / 4, KEPT / 8];
        for _ in 0..3 {
            drop(sizes.map(IoBuf::new));
            drop([IoBuf::new(KEPT / 2), IoBuf::new(KEPT / 2)]);
        }
        assert!(FREE.lock().unwrap().as_ref().is_some_and(|f| f.bytes <= KEPT));
        // A buffer that was used before is zeroed where zeros were asked for.
        drop(IoBuf::copy_of(&[7; 5000]));
        assert!(IoBuf::zeroed(5000).iter().all(|&x| x == 0));
    }
}
