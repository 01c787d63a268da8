//! Guest RAM.
//!
//! RAM is `vm-memory`'s mapped collection with a tracker on every region, so that each write a device
//! makes through it is seen: pages that hold translated code tell the CPU engine (self-modifying code by
//! DMA), and a dirty log can be switched on. vCPU engines take raw host addresses from [`GuestRam::hva`]
//! and do their own tracking; nobody gets a `&[u8]` of guest RAM.

#![allow(unsafe_code)] // Raw host addresses of the mapping leave this crate for the CPU engines.

pub mod io;
mod tracker;

use std::sync::{Arc, Weak};

pub use tracker::{CodeWriteSink, PageTracker};
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegionBuilder;
pub use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend as GuestMemoryTrait, GuestMemoryRegion, VolatileSlice,
};
use vm_memory::{GuestMemoryMmap, GuestRegionMmap};

/// Bytes of a tracked page.
pub const PAGE_SIZE: u64 = 4096;

/// The collection that devices and `virtio-queue` work on.
pub type GuestMemory = GuestMemoryMmap<PageTracker>;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region's start or length is not a multiple of the page size, or its length is zero.
    #[error("RAM region at {gpa:#x} with {len:#x} bytes is not made of whole 4 KiB pages")]
    Unaligned {
        /// Guest physical start.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The host gave no memory.
    #[error("the host has no {len} bytes of memory for the guest: {source}")]
    Map {
        /// Length in bytes.
        len: u64,
        /// What mmap said.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// Regions overlap or are out of order.
    #[error("RAM regions overlap or are not in ascending order: {0}")]
    Layout(String),
}

/// A stretch of guest RAM as the CPU engines see it.
#[derive(Clone, Debug)]
pub struct RamRegion {
    /// Guest physical start.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    hva: usize,
    tracker: PageTracker,
}

/// All RAM of one guest. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemory>,
    regions: Arc<[RamRegion]>,
}

impl GuestRam {
    /// Maps RAM for `ranges` of (guest physical start, length), ascending, in bytes. Pages cost nothing
    /// until they are touched.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self, Error> {
        let mut regions = Vec::with_capacity(ranges.len());
        let mut maps = Vec::with_capacity(ranges.len());
        for &(gpa, len) in ranges {
            if gpa % PAGE_SIZE != 0 || len % PAGE_SIZE != 0 || len == 0 {
                return Err(Error::Unaligned { gpa, len });
            }
            let size = usize::try_from(len).map_err(|_| Error::Unaligned { gpa, len })?;
            let tracker = PageTracker::new(gpa, len);
            let map = MmapRegionBuilder::new_with_bitmap(size, tracker.clone())
                .with_mmap_prot(libc_prot())
                .with_mmap_flags(libc_flags())
                .build()
                .map_err(|source| Error::Map { len, source })?;
            advise_huge(map.as_ptr(), size);
            regions.push(RamRegion { gpa, len, hva: map.as_ptr() as usize, tracker });
            let region = GuestRegionMmap::new(map, GuestAddress(gpa))
                .ok_or_else(|| Error::Layout("a region wraps the address space".into()))?;
            maps.push(region);
        }
        let memory = GuestMemory::from_regions(maps).map_err(|e| Error::Layout(e.to_string()))?;
        Ok(Self { memory: Arc::new(memory), regions: regions.into() })
    }

    /// The collection for devices.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// All regions, ascending.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Bytes of RAM in total.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// The region that holds all of `gpa .. gpa + len`, if there is one.
    #[must_use]
    pub fn region(&self, gpa: u64, len: u64) -> Option<&RamRegion> {
        self.regions.iter().find(|r| {
            gpa.checked_sub(r.gpa).and_then(|off| off.checked_add(len)).is_some_and(|end| end <= r.len)
        })
    }

    /// Host address of `gpa` if `gpa .. gpa + len` is RAM. It stays valid as long as any clone of this
    /// value lives; the guest and its devices race on what it points to, so only volatile or atomic
    /// access is sound.
    #[must_use]
    pub fn hva(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        self.region(gpa, len).map(|r| (r.hva + (gpa - r.gpa) as usize) as *mut u8)
    }

    /// Gives the whole pages within `gpa .. gpa + len` back to the host. They read as zeros afterwards. Returns
    /// false if the range is not RAM or the host refuses.
    pub fn release(&self, gpa: u64, len: u64) -> bool {
        let Some(region) = self.region(gpa, len) else { return false };
        let from = (gpa - region.gpa).next_multiple_of(PAGE_SIZE);
        let to = (gpa - region.gpa + len) / PAGE_SIZE * PAGE_SIZE;
        let Some(bytes) = to.checked_sub(from).filter(|&b| b != 0) else { return true };
        let start = (region.hva + from as usize) as *mut libc::c_void;
        // SAFETY: the range is whole pages of the private anonymous mapping that this value keeps alive;
        // nothing but guest RAM is there, whose users expect its contents to change under them.
        let released = unsafe { libc::madvise(start, bytes as usize, libc::MADV_DONTNEED) } == 0;
        // The contents have changed, as if a device had written zeros.
        region.tracker.mark_dirty(from as usize, bytes as usize);
        released
    }

    /// Says that the page at `gpa` holds translated code, or no longer does. Returns what it was before.
    pub fn set_code(&self, gpa: u64, code: bool) -> bool {
        self.region(gpa, 1).is_some_and(|r| r.tracker.set_code(gpa - r.gpa, code))
    }

    /// True where the page at `gpa` holds translated code.
    #[must_use]
    pub fn is_code(&self, gpa: u64) -> bool {
        self.region(gpa, 1).is_some_and(|r| r.tracker.is_code(gpa - r.gpa))
    }

    /// Sets who is told when a device writes to a page that holds translated code. The first call wins.
    pub fn set_code_write_sink(&self, sink: &Weak<dyn CodeWriteSink>) {
        for r in self.regions.iter() {
            r.tracker.set_sink(Weak::clone(sink));
        }
    }
}

const fn libc_prot() -> i32 {
    libc::PROT_READ | libc::PROT_WRITE
}

const fn libc_flags() -> i32 {
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE
}

/// Asks for huge pages: the guest's accesses pay the host's TLB misses too. A refusal changes nothing but speed.
fn advise_huge(ptr: *mut u8, len: usize) {
    // SAFETY: the range is the mapping just made, and MADV_HUGEPAGE does not change its contents.
    unsafe { libc::madvise(ptr.cast(), len, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Seen(Mutex<Vec<u64>>);
    impl CodeWriteSink for Seen {
        fn code_page_written(&self, gpa: u64) {
            self.0.lock().unwrap().push(gpa);
        }
    }

    #[test]
    fn released_pages_read_as_zeros_and_their_neighbours_stay() {
        let ram = GuestRam::new(&[(0x8000_0000, 0x10000)]).unwrap();
        for page in 0..16 {
            ram.memory().write_obj(7u32, GuestAddress(0x8000_0000 + page * PAGE_SIZE)).unwrap();
        }
        assert!(ram.release(0x8000_1800, 0x2000));
        assert!(ram.release(0x8000_8001, 8));
        assert!(!ram.release(0x8000_f000, 0x2000));
        let kept: Vec<u32> = (0..16)
            .map(|page| ram.memory().read_obj(GuestAddress(0x8000_0000 + page * PAGE_SIZE)).unwrap())
            .collect();
        assert_eq!(kept, [7, 7, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    }

    #[test]
    fn a_device_write_to_a_code_page_is_told() {
        let ram = GuestRam::new(&[(0x8000_0000, 0x10000)]).unwrap();
        let seen = Arc::new(Seen(Mutex::default()));
        let sink: Arc<dyn CodeWriteSink> = seen.clone();
        ram.set_code_write_sink(&Arc::downgrade(&sink));
        ram.memory().write_obj(7u32, GuestAddress(0x8000_2000)).unwrap();
        assert!(seen.0.lock().unwrap().is_empty());
        ram.set_code(0x8000_2000, true);
        ram.memory().write_slice(&[1; 0x1800], GuestAddress(0x8000_1000)).unwrap();
        assert_eq!(*seen.0.lock().unwrap(), [0x8000_2000]);
        assert!(ram.hva(0x8000_f000, 0x1001).is_none());
        assert!(ram.hva(u64::MAX, 8).is_none());
    }
}
