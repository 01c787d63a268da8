//! Memory for I/O: page-aligned, recycled, and owned, so that a request that the kernel works on can hold
//! its buffer until it is done, whatever becomes of who asked.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::fs::File;
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

/// Bytes of a buffer in a row, and where they were read.
#[derive(Clone, Debug)]
pub struct Part {
    /// Bytes.
    pub len: usize,
    /// The file and the byte of it that the first one is; `None` if that is not known.
    pub from: Option<(Arc<File>, u64)>,
}

/// Where the bytes of a buffer were read: parts that make up all of it, or nothing if nothing is known.
#[derive(Clone, Default)]
struct Origin(Vec<Part>);

impl Origin {
    /// Adds a part behind the others; one that goes on where the last one ends becomes one with it.
    fn push(&mut self, part: Part) {
        if part.len == 0 {
            return;
        }
        if let Some(last) = self.0.last_mut() {
            let goes_on = match (&last.from, &part.from) {
                (Some((a, at)), Some((b, next))) => Arc::ptr_eq(a, b) && at + last.len as u64 == *next,
                (None, None) => true,
                _ => false,
            };
            if goes_on {
                last.len += part.len;
                return;
            }
        }
        self.0.push(part);
    }

    /// The origin of some of the bytes.
    fn slice(&self, start: usize, end: usize) -> Self {
        let mut some = Self::default();
        let mut at = 0;
        for part in &self.0 {
            let (from, to) = (at.max(start), (at + part.len).min(end));
            if from < to {
                let skip = (from - at) as u64;
                let from_file = part.from.as_ref().map(|(file, offset)| (Arc::clone(file), offset + skip));
                some.push(Part { len: to - from, from: from_file });
            }
            at += part.len;
        }
        some
    }

    /// What is known of `len` bytes, and then of `next_len` others.
    fn join(mut self, len: usize, next: Self, next_len: usize) -> Self {
        if self.0.is_empty() && next.0.is_empty() {
            return self;
        }
        if self.0.is_empty() {
            self.push(Part { len, from: None });
        }
        if next.0.is_empty() {
            self.push(Part { len: next_len, from: None });
        }
        next.0.into_iter().for_each(|part| self.push(part));
        self
    }
}

/// Bytes that only the owner may touch: a part of a block, at a page boundary unless it was split off.
///
/// A buffer can know where its bytes were read ([`IoBuf::set_origin`]), and forgets it when they are touched.
pub struct IoBuf {
    owner: Arc<Owner>,
    /// Start of the part. Parts of one block never overlap.
    start: NonNull<u8>,
    len: usize,
    origin: Origin,
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
        let owner = Arc::new(Owner(Some(memory)));
        (Self { owner, start, len, origin: Origin::default() }, zeros)
    }

    /// Notes that all bytes are those of `file` from byte `offset` on, which nobody may change as long as it matters.
    pub fn set_origin(&mut self, file: &Arc<File>, offset: u64) {
        self.origin = Origin::default();
        self.origin.push(Part { len: self.len, from: Some((Arc::clone(file), offset)) });
    }

    /// Takes back what [`set_origin`](Self::set_origin) noted: for who changes the bytes past [`DerefMut`].
    pub(crate) fn forget_origin(&mut self) {
        self.origin = Origin::default();
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
        let origin = self.origin.slice(at, self.len);
        let rest = Self { owner: Arc::clone(&self.owner), start, len: self.len - at, origin };
        self.truncate(at);
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
        self.origin = self.origin.join(self.len, next.origin, next.len);
        self.len += next.len;
        Ok(self)
    }

    /// Makes the buffer shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.origin = self.origin.slice(0, self.len);
    }

    /// Makes the bytes shared and unchangeable.
    #[must_use]
    pub fn freeze(self) -> IoData {
        IoData { owner: self.owner, start: self.start, len: self.len, origin: self.origin }
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
        self.forget_origin();
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
    origin: Origin,
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
        let first = unsafe { self.start.add(start) };
        let origin = self.origin.slice(start, end);
        Self { owner: Arc::clone(&self.owner), start: first, len: end - start, origin }
    }

    /// Where the bytes were read: parts that make up all of it, or none if nothing is known.
    #[must_use]
    pub fn origin(&self) -> &[Part] {
        &self.origin.0
    }

    /// The same bytes, which may be from anywhere.
    #[must_use]
    pub fn without_origin(mut self) -> Self {
        self.origin = Origin::default();
        self
    }

    /// The bytes as a buffer again, if nobody else has any part of their block.
    ///
    /// # Errors
    /// Gives itself back if somebody has.
    pub fn try_into_buf(mut self) -> Result<IoBuf, Self> {
        if Arc::get_mut(&mut self.owner).is_none() {
            return Err(self);
        }
        Ok(IoBuf { owner: self.owner, start: self.start, len: self.len, origin: self.origin })
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
    fn untouched_bytes_know_where_they_were_read() {
        let file = Arc::new(File::open("/dev/null").unwrap());
        let known = |data: &IoData| -> Vec<_> {
            data.origin().iter().map(|p| (p.len, p.from.as_ref().map(|(_, at)| *at))).collect()
        };
        let mut a = IoBuf::new(10_000);
        let mut b = a.split_off(4000);
        let mut c = b.split_off(1000);
        a.set_origin(&file, 50_000);
        b.set_origin(&file, 54_000);
        c.set_origin(&file, 0);
        let tail = c.split_off(4500);
        c[0] = 1;
        let all = a.join(b).unwrap().join(c).unwrap().join(tail).unwrap().freeze();
        assert_eq!(known(&all), [(5000, Some(50_000)), (4500, None), (500, Some(4500))]);
        assert_eq!(known(&all.slice(100..5001)), [(4900, Some(50_100)), (1, None)]);
        assert_eq!(known(&all.slice(9999..)), [(1, Some(4999))]);
        assert_eq!(known(&all.clone().without_origin()), []);
        let mut buf = all.try_into_buf().unwrap();
        buf.truncate(4000);
        let data = buf.freeze();
        assert_eq!(known(&data), [(4000, Some(50_000))]);
        let mut buf = data.into_buf();
        buf[7] = 7;
        assert_eq!(known(&buf.freeze()), []);
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
