//! A file or block device of the host.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plinth_host::{aio, page_cache, reflink};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::lock::{self, Lock};
use super::{Extent, Io, IoBuf, IoData, Node, NodeInfo, RangeLocks, check_write, write_zero_bytes};
use crate::{Error, ErrorKind};

/// Requests past the page cache begin and end at multiples of it, and so does their memory.
const DIRECT_BLOCK: u64 = 4096;

/// Whether the host's page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// It is.
    #[default]
    Cached,
    /// Requests go to the disk itself (`O_DIRECT`), if the file system can do that.
    Direct,
    /// For what is read once: what is in it is used, and large reads of what is not go to the disk itself, and leave
    /// it as it is. That takes less of the CPU and does not push out what others need. Files open for writing have
    /// it as with `Cached`.
    ///
    /// What is read knows where it was ([`IoData::origin`]) unless others may write the file meanwhile, and who writes
    /// it to another file of the same file system shares its space there, where that can be had.
    Spared,
}

/// Bytes of a read that is large, for [`Cache::Spared`]: smaller ones gain from what the host reads ahead, which is then
/// what larger ones find in the cache.
const LARGE: usize = 16 << 10;
/// Bytes in a row that two files share, at least: fewer are written sooner than their place is noted. Places are
/// multiples of [`DIRECT_BLOCK`].
const SHARED: usize = 32 << 10;

/// How to open a file.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// Refuse writes, and let others read along.
    pub read_only: bool,
    /// The page cache.
    pub cache: Cache,
    /// Do not lock the file, and go on if somebody else has locked it.
    pub share: bool,
}

/// A file. Reads beyond its end give zeros, and writes beyond it make it longer.
///
/// It is locked while it lives, so that neither Plinth nor QEMU opens it in a way that excludes the other.
#[derive(Debug)]
pub struct FileNode {
    info: NodeInfo,
    path: PathBuf,
    file: Arc<File>,
    size: Cell<u64>,
    /// Where the file may already end, by writes under way: cutting it shorter would undo them.
    reach: Cell<u64>,
    device: bool,
    direct: bool,
    /// The same file past the page cache, with [`Cache::Spared`].
    past: RefCell<Option<Arc<File>>>,
    /// What is read of it knows where it was.
    traced: bool,
    /// Writes under way, with `direct`: one that is not aligned reads, changes and writes whole blocks.
    writes: RangeLocks,
    /// Operations that this file's system does not have, found out by trying.
    lacks_zero: Cell<bool>,
    lacks_hole: Cell<bool>,
    lacks_share: Cell<bool>,
}

impl Drop for FileNode {
    fn drop(&mut self) {
        // Not while a request is under way that nobody waits for any more.
        if Arc::strong_count(&self.file) == 1 {
            lock::release(&self.file);
        }
    }
}

impl FileNode {
    /// Opens and locks a file.
    ///
    /// # Errors
    /// It cannot be opened, is neither a file nor a block device, or is in use.
    pub fn open(path: &Path, options: &FileOptions) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |e| Error::from_host("open", &name, e);
        let open = |direct: bool| {
            let flags = if direct { OFlags::DIRECT.bits() as i32 } else { 0 };
            // Not blocking: a pipe in the image's place must not hold us. It changes nothing for files.
            let flags = flags | OFlags::NONBLOCK.bits() as i32;
            File::options().read(true).write(!options.read_only).custom_flags(flags).open(path)
        };
        let (file, direct) = match options.cache {
            Cache::Direct => match open(true) {
                Ok(file) => (file, true),
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    (open(false).map_err(failed)?, false)
                }
                Err(e) => return Err(failed(e)),
            },
            Cache::Cached | Cache::Spared => (open(false).map_err(failed)?, false),
        };
        let node = Self::new(path, file, direct, options)?;
        if options.cache == Cache::Spared && options.read_only {
            // Where this cannot be had, the cache does it all.
            let own = format!("/proc/self/fd/{}", node.file.as_raw_fd());
            let flags = (OFlags::DIRECT | OFlags::NONBLOCK).bits() as i32;
            let past = File::options().read(true).custom_flags(flags).open(own);
            *node.past.borrow_mut() = past.ok().map(Arc::new);
        }
        Ok(node)
    }

    /// Creates a file, which must not exist, and locks it.
    ///
    /// # Errors
    /// It exists, or cannot be created.
    pub fn create(path: &Path, cache: Cache) -> Result<Self, Error> {
        let name = path.display().to_string();
        File::options()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| Error::from_host("create", &name, e))?;
        Self::open(path, &FileOptions { cache, ..FileOptions::default() })
    }

    /// The same, under the name that its user knows: for a file whose own name is temporary.
    #[must_use]
    pub fn called(mut self, name: &Path) -> Self {
        self.info.name = name.display().to_string();
        self
    }

    fn new(path: &Path, file: File, direct: bool, options: &FileOptions) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |e| Error::from_host("open", &name, e);
        let refused = |kind, why| Error::new(kind, format!("cannot open '{name}'"), why);
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(refused(ErrorKind::Invalid, "it is neither a regular file nor a block device"));
        }
        if !options.share && lock::take(&file, options.read_only).map_err(failed)? == Lock::Busy {
            return Err(refused(ErrorKind::Busy, "another process is using it"));
        }
        // Block devices have no length in their metadata.
        let size = (&file).seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self {
            info: NodeInfo {
                name,
                read_only: options.read_only,
                block: if direct { DIRECT_BLOCK as u32 } else { 1 },
            },
            path: path.to_owned(),
            file: Arc::new(file),
            size: Cell::new(size),
            reach: Cell::new(size),
            device: kind.is_block_device(),
            direct,
            past: RefCell::default(),
            traced: options.cache == Cache::Spared && options.read_only && !options.share && kind.is_file(),
            writes: RangeLocks::default(),
            lacks_zero: Cell::new(false),
            lacks_hole: Cell::new(false),
            // Whoever has reserved a device's space has all of it.
            lacks_share: Cell::new(kind.is_block_device()),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True if it is a block device, whose size cannot change.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Where the open file really is now, without links.
    ///
    /// # Errors
    /// As readlink(2).
    pub fn real_path(&self) -> Result<PathBuf, Error> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(|e| self.failed("find", e))
    }

    /// Device and inode.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn id(&self) -> Result<(u64, u64), Error> {
        use std::os::unix::fs::MetadataExt;
        let meta = self.file.metadata().map_err(|e| self.failed("look at", e))?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Bytes that it takes up on its file system; what is sparse takes none.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn allocated(&self) -> Result<u64, Error> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata().map_err(|e| self.failed("look at", e))?.blocks() * 512)
    }

    fn failed(&self, doing: &str, e: impl Into<io::Error>) -> Error {
        Error::from_host(doing, &self.info.name, e.into())
    }

    fn aligned(&self, offset: u64, memory: &[u8]) -> bool {
        !self.direct || (offset | memory.len() as u64 | memory.as_ptr() as u64).is_multiple_of(DIRECT_BLOCK)
    }

    /// The file to read from past the page cache, if that is how this range is to be read.
    fn past(&self, offset: u64, len: usize) -> Option<Arc<File>> {
        if len < LARGE {
            return None;
        }
        let past = self.past.borrow().clone()?;
        match page_cache::cached(self.file.as_fd(), offset, len as u64) {
            Ok(cached) => (cached.all < len as u64 / 2 && cached.unwritten == 0).then_some(past),
            // Not to be known here.
            Err(_) => {
                *self.past.borrow_mut() = None;
                None
            }
        }
    }

    /// Reads past the page cache; gives the buffer back where that does not work.
    async fn read_past(&self, past: &Arc<File>, offset: u64, buf: IoBuf) -> Result<IoBuf, IoBuf> {
        let skip = (offset % DIRECT_BLOCK) as usize;
        let len = buf.len();
        let whole = (skip + len).next_multiple_of(DIRECT_BLOCK as usize);
        let aligned = whole == len && (buf.as_ptr() as u64).is_multiple_of(DIRECT_BLOCK);
        let (mut out, blocks) = if aligned { (None, buf) } else { (Some(buf), IoBuf::new(whole)) };
        let (n, blocks) = aio::read(past, offset - skip as u64, blocks).await;
        if n.is_err() {
            // Opened and not read: not again.
            *self.past.borrow_mut() = None;
        }
        let enough = n.is_ok_and(|n| n >= skip + len);
        if let Some(out) = out.as_mut().filter(|_| enough) {
            out.copy_from_slice(&blocks[skip..skip + len]);
        }
        let buf = out.unwrap_or(blocks);
        if enough { Ok(buf) } else { Err(buf) }
    }

    /// Reads what there is; zeros behind the file's end.
    async fn read_plain(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, Error> {
        let inside = offset.saturating_add(buf.len() as u64) <= self.size.get();
        let mut buf = self.read_bytes(offset, buf).await?;
        if self.traced && inside {
            buf.set_origin(&self.file, offset);
        }
        Ok(buf)
    }

    async fn read_bytes(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        if let Some(past) = self.past(offset, buf.len()) {
            match self.read_past(&past, offset, buf).await {
                Ok(buf) => return Ok(buf),
                // The file's end, or an error, which the cache has then too.
                Err(back) => buf = back,
            }
        }
        let (n, back) = aio::read(&self.file, offset, buf).await;
        buf = back;
        let mut done = match n {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(self.failed("read", e)),
        };
        // The rest of a short read is rare, so a copy does no harm.
        while done < buf.len() {
            let at = offset + done as u64;
            if at >= self.size.get() {
                buf[done..].fill(0);
                break;
            }
            let want = if self.direct {
                (buf.len() - done).next_multiple_of(DIRECT_BLOCK as usize)
            } else {
                buf.len() - done
            };
            let (n, part) = aio::read(&self.file, at, IoBuf::new(want)).await;
            match n {
                // The file is shorter than it was.
                Ok(0) => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(n) => {
                    let n = n.min(buf.len() - done);
                    buf[done..done + n].copy_from_slice(&part[..n]);
                    done += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("read", e)),
            }
        }
        Ok(buf)
    }

    async fn write_plain(&self, offset: u64, data: IoData) -> Result<(), Error> {
        if data.origin().is_empty() || self.lacks_share.get() {
            return self.write_bytes(offset, data).await;
        }
        let mut at = 0;
        // What is to be written before the next part that is shared.
        let mut from = 0;
        for part in data.origin() {
            let (place, len) = (offset + at as u64, part.len);
            if let Some((file, origin)) = part.from.as_ref().filter(|_| len >= SHARED)
                && (place | origin | len as u64).is_multiple_of(DIRECT_BLOCK)
                && self.share(file, *origin, len as u64, place)
            {
                if from < at {
                    self.write_bytes(offset + from as u64, data.slice(from..at)).await?;
                }
                from = at + len;
            }
            at += len;
        }
        if from < at {
            self.write_bytes(offset + from as u64, data.slice(from..at)).await?;
        }
        Ok(())
    }

    /// Takes over space of another file; false if that cannot be done, and the bytes have to be written.
    fn share(&self, source: &File, from: u64, len: u64, to: u64) -> bool {
        if self.lacks_share.get() {
            return false;
        }
        self.reach.set(self.reach.get().max(to + len));
        // Here, not on another thread: a note in the file system's tables takes less time than to hand it over.
        let done = reflink::share(source.as_fd(), from, len, self.file.as_fd(), to);
        // Whatever is wrong now, writing works or says what is.
        self.lacks_share.set(done.is_err());
        done.is_ok()
    }

    async fn write_bytes(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let mut done = 0;
        self.reach.set(self.reach.get().max(offset + data.len() as u64));
        while done < data.len() {
            match aio::write(&self.file, offset + done as u64, data.slice(done..)).await {
                Ok(0) => return Err(self.failed("write to", io::ErrorKind::WriteZero)),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed("write to", e)),
            }
        }
        Ok(())
    }

    /// A read of whole blocks around a range: where the range begins in them.
    async fn read_blocks(&self, offset: u64, len: usize) -> Result<(IoBuf, usize), Error> {
        let start = offset - offset % DIRECT_BLOCK;
        let end = (offset + len as u64).next_multiple_of(DIRECT_BLOCK);
        let buf = self.read_plain(start, IoBuf::new((end - start) as usize)).await?;
        Ok((buf, (offset - start) as usize))
    }

    async fn write_unaligned(&self, offset: u64, data: IoData) -> Result<(), Error> {
        let start = offset - offset % DIRECT_BLOCK;
        let end = (offset + data.len() as u64).next_multiple_of(DIRECT_BLOCK);
        // Whole blocks reach further than what is written. Where that is behind the file's end, it is cut off
        // again, and nothing may be written there meanwhile.
        let (_alone, cut) = loop {
            let cut = end > self.size.get() && !self.device;
            let guard = self.writes.lock(start..if cut { u64::MAX } else { end }, true).await;
            if cut || self.device || end <= self.size.get() {
                break (guard, cut);
            }
        };
        let (mut blocks, at) = self.read_blocks(offset, data.len()).await?;
        blocks[at..at + data.len()].copy_from_slice(&data);
        self.write_plain(start, blocks.freeze()).await?;
        self.size.set(self.size.get().max(offset + data.len() as u64));
        if cut && end > self.size.get() {
            self.set_size(self.size.get())?;
        }
        Ok(())
    }

    /// fallocate(2); false if the file system does not have this mode.
    async fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<bool, Error> {
        match aio::allocate(&self.file, mode.bits() as i32, offset, len).await {
            Ok(()) => Ok(true),
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
                _ => Err(self.failed("allocate space in", e)),
            },
        }
    }

    async fn punch(&self, offset: u64, len: u64) -> Result<bool, Error> {
        if self.lacks_hole.get() {
            return Ok(false);
        }
        let done = self.allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len).await?;
        self.lacks_hole.set(!done);
        Ok(done)
    }

    async fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        let old = self.size.get();
        let end = offset + len;
        // Beyond the end there is nothing to change but the size, unless the space is wanted.
        if end > old && unmap && !self.device {
            if end > self.reach.get() {
                self.set_size(end)?;
            }
            self.size.set(end);
        }
        let inside = if unmap && !self.device { end.min(old) } else { end };
        if offset >= inside {
            return Ok(());
        }
        let len = inside - offset;
        if unmap && self.punch(offset, len).await? {
            return Ok(());
        }
        if !self.lacks_zero.get() {
            if self.allocate(FallocateFlags::ZERO_RANGE, offset, len).await? {
                self.size.set(self.size.get().max(inside));
                self.reach.set(self.reach.get().max(inside));
                return Ok(());
            }
            self.lacks_zero.set(true);
        }
        write_zero_bytes(self, offset, len).await
    }

    fn set_size(&self, size: u64) -> Result<(), Error> {
        rustix::fs::ftruncate(&*self.file, size).map_err(|e| self.failed("resize", e))?;
        self.size.set(size);
        self.reach.set(size);
        Ok(())
    }
}

impl Node for FileNode {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            if self.aligned(offset, &buf) {
                return self.read_plain(offset, buf).await;
            }
            let (blocks, at) = self.read_blocks(offset, buf.len()).await?;
            let len = buf.len();
            buf.copy_from_slice(&blocks[at..at + len]);
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            if data.is_empty() {
                return Ok(());
            }
            let end = offset.checked_add(data.len() as u64).filter(|&e| e <= i64::MAX as u64);
            let limit = if self.device { self.size.get() } else { u64::MAX };
            if self.info.read_only || end.is_none_or(|e| e > limit) {
                return check_write(self, offset, data.len() as u64);
            }
            let end = offset + data.len() as u64;
            if !self.direct {
                self.write_plain(offset, data).await?;
                self.size.set(self.size.get().max(end));
                return Ok(());
            }
            if !self.aligned(offset, &data) {
                let blocks = (offset | data.len() as u64).is_multiple_of(DIRECT_BLOCK);
                if !blocks {
                    return self.write_unaligned(offset, data).await;
                }
            }
            let _shared = self.writes.lock(offset..end, false).await;
            // Only the memory is in the wrong place.
            let data = if self.aligned(offset, &data) { data } else { IoData::copy_of(&data) };
            self.write_plain(offset, data).await?;
            self.size.set(self.size.get().max(end));
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            if len == 0 {
                return Ok(());
            }
            let end = offset.checked_add(len).filter(|&e| e <= i64::MAX as u64);
            let limit = if self.device { self.size.get() } else { u64::MAX };
            if self.info.read_only || end.is_none_or(|e| e > limit) {
                return check_write(self, offset, len);
            }
            self.zero(offset, len, unmap).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            let end = self.size.get().min(offset.saturating_add(len));
            if offset >= end {
                return Ok(());
            }
            check_write(self, offset, end - offset)?;
            // A file system that cannot give space back keeps it.
            self.punch(offset, end - offset).await.map(drop)
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if self.info.read_only {
                return Ok(());
            }
            aio::sync_data(&self.file).await.map_err(|e| self.failed("flush", e))
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            let size = self.size.get();
            if offset >= size || len == 0 {
                return Ok(Extent::hole(len));
            }
            let inside = len.min(size - offset);
            match rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Data(offset)) {
                Ok(data) if data > offset => Ok(Extent::hole(inside.min(data - offset))),
                Ok(_) => {
                    let hole =
                        rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Hole(offset)).unwrap_or(size);
                    let n = inside.min(hole.saturating_sub(offset)).max(1);
                    Ok(Extent::stored(n, Some(offset)))
                }
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => Ok(Extent::hole(inside)),
                // Not known on this file system.
                Err(_) => Ok(Extent::stored(inside, Some(offset))),
            }
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            if size == self.size.get() {
                return Ok(());
            }
            // Nothing is under way that would be cut, or make the file longer again.
            let _alone = self.writes.lock(0..u64::MAX, true).await;
            if self.device {
                let doing = format!("cannot resize '{}'", self.info.name);
                return Err(Error::new(ErrorKind::Unsupported, doing, "a device has the size that it has"));
            }
            self.set_size(size)
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn host_file(&self) -> Option<Arc<File>> {
        // Past the page cache, memory has to be aligned.
        (!self.direct).then(|| self.file.clone())
    }

    fn is_open_ended(&self) -> bool {
        true
    }

    fn is_sparse(&self) -> bool {
        let nine_tenths = self.size.get() / 10 * 9;
        !self.device && self.allocated().is_ok_and(|a| a < nine_tenths)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use plinth_host::aio::block_on;

    use super::*;

    #[test]
    fn both_caches_read_what_was_written_at_any_offset() {
        let dir = tempfile::tempdir().unwrap();
        for cache in [Cache::Cached, Cache::Direct, Cache::Spared] {
            let path = dir.path().join(format!("{cache:?}"));
            block_on(async {
                let node = FileNode::create(&path, cache).unwrap();
                node.write(10_000, IoData::copy_of(b"hello")).await.unwrap();
                assert_eq!(node.size(), 10_005);
                assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_005);
                assert_eq!(&*node.read(9_998, IoBuf::new(9)).await.unwrap(), b"\0\0hello\0\0");
                // Neighbours in one block at once do not undo each other.
                let writes = (0..200).map(|i| node.write(i * 100, IoData::copy_of(&[i as u8 + 1; 100])));
                assert!(join_all(writes).await.into_iter().all(|r| r.is_ok()));
                let all = node.read(0, IoBuf::new(20_000)).await.unwrap();
                assert!(all.chunks(100).enumerate().all(|(i, c)| c.iter().all(|&b| b == i as u8 + 1)));
                node.write_zeroes(4096, 8192, true).await.unwrap();
                node.write_zeroes(30_000, 10_000, true).await.unwrap();
                assert_eq!(node.size(), 40_000);
                let all = node.read(4090, IoBuf::new(8200)).await.unwrap();
                assert_eq!((all[5], all[6], all[8197], all[8198]), (41, 0, 0, 123));
                node.flush().await.unwrap();
                node.resize(4096).await.unwrap();
                assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
                let e = FileNode::open(&path, &FileOptions::default()).unwrap_err();
                assert_eq!(e.kind, ErrorKind::Busy);
            });
        }
    }

    #[test]
    fn large_reads_leave_the_page_cache_as_it_is() {
        const SIZE: usize = (3 << 20) + 700;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let all: Vec<u8> = (0..SIZE).map(|n| (n / 256 * 7 + n) as u8).collect();
        std::fs::write(&path, &all).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let options = FileOptions { read_only: true, cache: Cache::Spared, ..FileOptions::default() };
        let node = FileNode::open(&path, &options).unwrap();
        let cached = || page_cache::cached(file.as_fd(), 0, SIZE as u64).map(|c| c.all);
        block_on(async {
            let spares = node.past.borrow().is_some() && cached().is_ok_and(|n| n == 0);
            for (at, len) in [(0, 1 << 20), (513, 1 << 20), (1 << 20, 200_001), (SIZE - LARGE, LARGE)] {
                let read = node.read(at as u64, IoBuf::new(len)).await.unwrap();
                assert!(read[..] == all[at..at + len], "{len} bytes at {at}");
            }
            if spares {
                assert_eq!(cached().unwrap(), 0);
            }
            // Behind the end are zeros; what is in the cache is taken from there.
            let read = node.read(SIZE as u64 - 600_000, IoBuf::new(1 << 20)).await.unwrap();
            assert!(read[..600_000] == all[SIZE - 600_000..] && super::super::is_zero(&read[600_000..]));
            node.read(0, IoBuf::new(4096)).await.unwrap();
            std::fs::write(&path, vec![9; SIZE]).unwrap();
            assert!(node.read(0, IoBuf::new(1 << 20)).await.unwrap().iter().all(|&b| b == 9));
        });
    }

    #[test]
    fn what_was_read_is_written_elsewhere_whether_it_can_be_shared_or_not() {
        const SIZE: usize = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let all: Vec<u8> = (0..SIZE + 100).map(|n| (n / 256 * 7 + n) as u8).collect();
        std::fs::write(&from, &all).unwrap();
        let open = |share| {
            let options = FileOptions { read_only: true, cache: Cache::Spared, share };
            FileNode::open(&from, &options).unwrap()
        };
        block_on(async {
            let read =
                async |node: &FileNode, at, len| node.read(at, IoBuf::new(len)).await.unwrap().freeze();
            let (source, live) = (open(false), open(true));
            assert_eq!(read(&source, 512, 70_000).await.origin().len(), 1);
            // Nothing that is written meanwhile, and nothing behind the file's end.
            assert!(read(&live, 0, 65536).await.origin().is_empty());
            assert!(read(&source, SIZE as u64, 65536).await.origin().is_empty());
            let target = FileNode::create(&to, Cache::Direct).unwrap();
            // In blocks, in odd places, and together with other bytes.
            target.write(8192, read(&source, 4096, 512 << 10).await).await.unwrap();
            target.write(1 << 20, read(&source, 512, 512 << 10).await).await.unwrap();
            let mut whole = IoBuf::new(256 << 10);
            let (mut middle, tail) = {
                let mut rest = whole.split_off(64 << 10);
                let tail = rest.split_off(128 << 10);
                (rest, tail)
            };
            middle.fill(9);
            let (head, tail) = (source.read(0, whole).await.unwrap(), source.read(0, tail).await.unwrap());
            let mixed = super::super::joined(vec![head, middle, tail]).freeze();
            assert_eq!(mixed.origin().len(), 3);
            target.write(2 << 20, mixed).await.unwrap();
            target.flush().await.unwrap();
            assert_eq!(target.size(), (2 << 20) + (256 << 10));
        });
        let written = std::fs::read(&to).unwrap();
        assert!(written[..8192].iter().all(|&b| b == 0));
        assert!(written[8192..8192 + (512 << 10)] == all[4096..4096 + (512 << 10)]);
        assert!(written[1 << 20..3 << 19] == all[512..512 + (512 << 10)]);
        let mixed = &written[2 << 20..];
        assert!(mixed[..64 << 10] == all[..64 << 10] && mixed[192 << 10..] == all[..64 << 10]);
        assert!(mixed[64 << 10..192 << 10].iter().all(|&b| b == 9));
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        let e = FileNode::open("/dev/null".as_ref(), &FileOptions::default()).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Invalid);
        let e = FileNode::open("/no/such/file".as_ref(), &FileOptions::default()).unwrap_err();
        assert_eq!(e.kind, ErrorKind::NotFound);
    }
}
