//! Host I/O straight into and out of guest RAM, without a copy.
//!
//! Rust's I/O takes `IoSlice`s, which on Unix are `iovec`s that can also be read as `[u8]`. This module is
//! the one place that makes them of guest RAM. Two things keep that sound in practice: the slices live only
//! as long as one call, which hands them to the kernel or copies through them and trusts nothing that it
//! reads back, and no two mutable ones overlap. A guest that touches the buffer meanwhile, against its
//! driver's interest, sees or causes torn data there, and nothing else: guest code is not compiled by us
//! and RAM is no Rust object.

use std::io::{IoSlice, IoSliceMut};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::Bitmap;

use crate::PageTracker;

type Slice<'a> = VolatileSlice<'a, PageTracker>;

/// Lets `io` fill `slices` and then tells the tracker about all of them, whether `io` failed or not.
/// `None`, without a call, if two slices overlap: such a guest must be served through a buffer.
pub fn fill_slices<R>(slices: &[Slice<'_>], io: impl FnOnce(&mut [IoSliceMut<'_>]) -> R) -> Option<R> {
    if overlap(slices) {
        return None;
    }
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut vecs: Vec<IoSliceMut<'_>> = guards
        .iter()
        .map(|g| {
            // SAFETY: the guard keeps `len` mapped bytes at the pointer; `overlap` has shown that no other
            // slice of this call has any of them. For what the guest does meanwhile see the module's text.
            IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(g.as_ptr(), g.len()) })
        })
        .collect();
    let result = io(&mut vecs);
    drop(vecs);
    for s in slices {
        s.bitmap().mark_dirty(0, s.len());
    }
    Some(result)
}

/// Lets `io` read from `slices`.
pub fn drain_slices<R>(slices: &[Slice<'_>], io: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard).collect();
    let vecs: Vec<IoSlice<'_>> = guards
        .iter()
        .map(|g| {
            // SAFETY: the guard keeps `len` mapped bytes at the pointer, and this call only reads them. For
            // what the guest does meanwhile see the module's text.
            IoSlice::new(unsafe { std::slice::from_raw_parts(g.as_ptr(), g.len()) })
        })
        .collect();
    io(&vecs)
}

fn overlap(slices: &[Slice<'_>]) -> bool {
    let range = |s: &Slice<'_>| {
        let start = s.ptr_guard().as_ptr() as usize;
        (start, start + s.len())
    };
    // Nearly always the slices ascend already.
    if slices.windows(2).all(|w| range(&w[0]).1 <= range(&w[1]).0) {
        return false;
    }
    let mut ranges: Vec<_> = slices.iter().map(range).collect();
    ranges.sort_unstable();
    ranges.windows(2).any(|w| w[0].1 > w[1].0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GuestAddress, GuestMemoryTrait, GuestRam};
    use vm_memory::Bytes;

    #[test]
    fn slices_are_filled_and_drained_in_place_and_overlap_is_refused() {
        let ram = GuestRam::new(&[(0, 0x4000)]).unwrap();
        let slice = |at, len| GuestMemoryTrait::get_slice(&**ram.memory(), GuestAddress(at), len).unwrap();
        let apart = [slice(0x3000, 4), slice(0x1000, 4)];
        let filled = fill_slices(&apart, |vecs| {
            for (i, v) in vecs.iter_mut().enumerate() {
                v.fill(i as u8 + 1);
            }
        });
        assert_eq!(filled, Some(()));
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(0x3000)).unwrap(), 0x0101_0101);
        let drained = drain_slices(&apart, |vecs| vecs.iter().map(|v| v.to_vec()).collect::<Vec<_>>());
        assert_eq!(drained, [[1; 4], [2; 4]]);
        assert!(fill_slices(&[slice(0x1002, 4), slice(0x1000, 4)], |_| ()).is_none());
        assert!(fill_slices(&[slice(0x1000, 4), slice(0x1003, 4)], |_| ()).is_none());
    }
}
