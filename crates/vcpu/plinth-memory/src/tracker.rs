//! Per-page flags of a RAM region, behind `vm-memory`'s bitmap hook.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

const CODE: u8 = 1;
const PAGE_SHIFT: u32 = 12;

/// Who is told when a device writes to a page of translated code.
pub trait CodeWriteSink: Send + Sync {
    /// A device wrote into the page at guest physical address `gpa` (page-aligned). Called on the device's
    /// thread, after the write; must not block.
    fn code_page_written(&self, gpa: u64);
}

struct Region {
    gpa: u64,
    flags: Box<[AtomicU8]>,
    sink: OnceLock<Weak<dyn CodeWriteSink>>,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("gpa", &self.gpa).field("pages", &self.flags.len()).finish()
    }
}

/// The tracker of one RAM region, or of a part of it that begins `base` bytes into it.
#[derive(Clone, Debug, Default)]
pub struct PageTracker {
    region: Option<Arc<Region>>,
    base: usize,
}

impl PageTracker {
    pub(crate) fn new(gpa: u64, len: u64) -> Self {
        let flags = (0..len >> PAGE_SHIFT).map(|_| AtomicU8::new(0)).collect();
        Self { region: Some(Arc::new(Region { gpa, flags, sink: OnceLock::new() })), base: 0 }
    }

    pub(crate) fn set_sink(&self, sink: Weak<dyn CodeWriteSink>) {
        if let Some(r) = &self.region {
            // The first sink wins: one machine has one CPU engine.
            let _ = r.sink.set(sink);
        }
    }

    fn flag(&self, offset: u64) -> Option<&AtomicU8> {
        self.region.as_ref()?.flags.get((offset >> PAGE_SHIFT) as usize)
    }

    pub(crate) fn set_code(&self, offset: u64, code: bool) -> bool {
        let Some(f) = self.flag(offset) else { return false };
        let old =
            if code { f.fetch_or(CODE, Ordering::SeqCst) } else { f.fetch_and(!CODE, Ordering::SeqCst) };
        old & CODE != 0
    }

    pub(crate) fn is_code(&self, offset: u64) -> bool {
        self.flag(offset).is_some_and(|f| f.load(Ordering::SeqCst) & CODE != 0)
    }
}

impl WithBitmapSlice<'_> for PageTracker {
    type S = PageTracker;
}

impl BitmapSlice for PageTracker {}

impl Bitmap for PageTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(region) = &self.region else { return };
        let Some(last) = len.checked_sub(1).and_then(|l| (self.base + offset).checked_add(l)) else { return };
        let first = (self.base + offset) >> PAGE_SHIFT;
        let Some(pages) = region.flags.get(first..=(last >> PAGE_SHIFT)) else { return };
        for (i, flag) in pages.iter().enumerate() {
            if flag.load(Ordering::SeqCst) & CODE != 0
                && let Some(sink) = region.sink.get().and_then(Weak::upgrade)
            {
                sink.code_page_written(region.gpa + (((first + i) as u64) << PAGE_SHIFT));
            }
        }
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { region: self.region.clone(), base: self.base + offset }
    }
}

impl NewBitmap for PageTracker {
    fn with_len(len: usize) -> Self {
        Self::new(0, len as u64)
    }
}
