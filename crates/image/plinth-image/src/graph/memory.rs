//! A file in memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use super::{Extent, Io, IoBuf, IoData, Node, NodeInfo};
use crate::{Error, ErrorKind};

const PAGE: u64 = 4096;

/// A sparse file in memory: like a file of the host, it reads as zeros beyond its end, and writes make it longer.
/// Its clones share the pages that neither has changed since.
#[derive(Clone, Debug)]
pub struct MemoryNode {
    info: NodeInfo,
    size: Cell<u64>,
    pages: RefCell<BTreeMap<u64, Rc<[u8; PAGE as usize]>>>,
    /// Bytes that it may have, so that a program's mistake does not fill the host's memory.
    limit: u64,
}

impl MemoryNode {
    /// An empty file.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let info = NodeInfo { name: name.to_owned(), read_only: false, block: 1 };
        Self { info, size: Cell::new(0), pages: RefCell::default(), limit: u64::MAX }
    }

    /// A file with contents.
    #[must_use]
    pub fn with(name: &str, bytes: &[u8]) -> Self {
        let node = Self::new(name);
        node.put(0, bytes);
        node
    }

    /// The same file, of which pages for `limit` bytes at most may be kept.
    #[must_use]
    pub fn limited(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// The same file, refusing writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.info.read_only = true;
        self
    }

    /// Everything, for files that are small.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        let mut all = vec![0; self.size.get() as usize];
        self.get(0, &mut all);
        all
    }

    /// Writes everything to a file of the host, which becomes sparse as this is.
    ///
    /// # Errors
    /// As for writing a file.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        for (&n, page) in self.pages.borrow().iter() {
            let end = (n * PAGE + PAGE).min(self.size.get());
            if end > n * PAGE {
                file.write_all_at(&page[..(end - n * PAGE) as usize], n * PAGE)?;
            }
        }
        file.set_len(self.size.get())
    }

    /// Copies out; zeros beyond the end.
    pub fn get(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let end = offset.saturating_add(out.len() as u64);
        let pages = self.pages.borrow();
        for (&n, page) in pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let (from, to) = ((n * PAGE).max(offset), (n * PAGE).saturating_add(PAGE).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - n * PAGE) as usize..(to - n * PAGE) as usize]);
        }
    }

    /// Copies in.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut pages = self.pages.borrow_mut();
        let mut at = offset;
        while at < end {
            let n = at / PAGE;
            let to = ((n + 1) * PAGE).min(end);
            let page = Rc::make_mut(pages.entry(n).or_insert_with(|| Rc::new([0; PAGE as usize])));
            page[(at - n * PAGE) as usize..(to - n * PAGE) as usize]
                .copy_from_slice(&bytes[(at - offset) as usize..(to - offset) as usize]);
            at = to;
        }
        self.size.set(self.size.get().max(end));
    }

    /// Makes a range zero, within the file.
    pub fn clear(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size.get());
        if offset >= end {
            return;
        }
        let mut pages = self.pages.borrow_mut();
        let inside: Vec<_> = pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(&n, _)| n).collect();
        for n in inside {
            let (from, to) = ((n * PAGE).max(offset), ((n + 1) * PAGE).min(end));
            if to - from == PAGE {
                pages.remove(&n);
            } else if let Some(page) = pages.get_mut(&n) {
                Rc::make_mut(page)[(from - n * PAGE) as usize..(to - n * PAGE) as usize].fill(0);
            }
        }
    }

    /// Changes the size.
    pub fn set_size(&self, size: u64) {
        if size < self.size.get() {
            self.clear(size, u64::MAX);
        }
        self.size.set(size);
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Error> {
        let doing = || format!("cannot write to '{}'", self.info.name);
        if self.info.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, doing(), "it is open for reading only"));
        }
        let used = self.pages.borrow().len() as u64 * PAGE;
        if offset.checked_add(len).is_none_or(|e| e > i64::MAX as u64)
            || used.saturating_add(len) > self.limit
        {
            return Err(Error::new(ErrorKind::NoSpace, doing(), "a file in memory cannot be so large"));
        }
        Ok(())
    }
}

impl Node for MemoryNode {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        self.get(offset, &mut buf);
        Box::pin(async { Ok(buf) })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        let result = self.check(offset, data.len() as u64).map(|()| self.put(offset, &data));
        Box::pin(async { result })
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Io<'_, ()> {
        let result = self.check(offset, 0).and_then(|()| {
            let end = offset.checked_add(len).filter(|&e| e <= i64::MAX as u64).ok_or_else(|| {
                Error::new(ErrorKind::OutOfRange, format!("cannot write to '{}'", self.info.name), "too far")
            })?;
            self.clear(offset, len);
            self.size.set(self.size.get().max(end));
            Ok(())
        });
        Box::pin(async { result })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        let result = self.check(offset, 0).map(|()| self.clear(offset, len));
        Box::pin(async { result })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        let end = offset.saturating_add(len).min(self.size.get());
        let extent = if offset >= end {
            Extent::hole(len)
        } else {
            let pages = self.pages.borrow();
            let first = offset / PAGE;
            let present = pages.contains_key(&first);
            let mut last = first + 1;
            while last * PAGE < end && pages.contains_key(&last) == present && last - first < 4096 {
                last += 1;
            }
            let n = (last * PAGE).min(end) - offset;
            if present { Extent::stored(n, Some(offset)) } else { Extent::hole(n) }
        };
        Box::pin(async { Ok(extent) })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        let result = self.check(0, 0).map(|()| self.set_size(size));
        Box::pin(async { result })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn is_open_ended(&self) -> bool {
        true
    }
}
