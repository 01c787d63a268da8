//! Tables of an image that are too large to have in memory whole: blocks of them, loaded when they are needed.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use async_lock::Mutex;
use futures_util::future::{FutureExt, Shared, join_all};

use crate::graph::{IoData, NodeRef, read_table};
use crate::{Error, ErrorKind};

/// One block of a table. Who holds it keeps it in memory.
pub struct Block {
    offset: u64,
    /// Not a buffer for I/O: those are aligned, which takes up twice the memory.
    bytes: RefCell<Box<[u8]>>,
    /// Changed since it was last written.
    dirty: Cell<bool>,
    /// When it was last used, on the cache's clock.
    used: Cell<u64>,
}

impl Block {
    /// Where it is in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Looks at its bytes.
    pub fn with<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.bytes.borrow())
    }

    /// Changes its bytes; they are written by [`TableCache::write_dirty`].
    pub fn change<T>(&self, change: impl FnOnce(&mut [u8]) -> T) -> T {
        self.dirty.set(true);
        change(&mut self.bytes.borrow_mut())
    }

    /// True if it was changed since it was last written.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty.get()
    }

    /// Entry `index` of a table of big-endian words. Zero beyond the block's end.
    #[must_use]
    pub fn be64(&self, index: usize) -> u64 {
        let bytes = self.bytes.borrow();
        bytes.get(index * 8..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
    }

    /// Entry `index` of a table of little-endian words. Zero beyond the block's end.
    #[must_use]
    pub fn le64(&self, index: usize) -> u64 {
        let bytes = self.bytes.borrow();
        bytes.get(index * 8..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
    }

    /// Entry `index` of a table of little-endian half words. Zero beyond the block's end.
    #[must_use]
    pub fn le32(&self, index: usize) -> u32 {
        let bytes = self.bytes.borrow();
        bytes.get(index * 4..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
    }

    /// How many entries of `N` bytes are the same, from `index` on: of `most`, and to the block's end.
    #[must_use]
    pub fn alike<const N: usize>(&self, index: usize, most: u64) -> u64 {
        let bytes = self.bytes.borrow();
        let (entries, _) = bytes.as_chunks::<N>();
        let entries = entries.get(index..).unwrap_or(&[]);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        entries.iter().take(most).take_while(|&e| Some(e) == entries.first()).count() as u64
    }

    /// Sets an entry of a table whose entries have `entry`'s length.
    ///
    /// # Panics
    /// If it is beyond the block's end.
    pub fn set(&self, index: usize, entry: &[u8]) {
        let n = entry.len();
        self.change(|b| b[index * n..(index + 1) * n].copy_from_slice(entry));
    }
}

/// A failed load, for all who waited for it.
#[derive(Clone)]
struct Failed(Rc<Error>);

type Loading = Shared<Pin<Box<dyn Future<Output = Result<Rc<Block>, Failed>>>>>;

enum Entry {
    Here(Rc<Block>),
    Loading(Loading),
}

/// Blocks of tables of one file, by where they are.
///
/// Changed blocks stay until they are written, which happens only when the format says so: it knows the order.
/// Unchanged ones make room for others, the least recently used first.
pub struct TableCache {
    file: NodeRef,
    block: usize,
    /// Blocks to keep.
    capacity: usize,
    entries: Rc<RefCell<HashMap<u64, Entry>>>,
    clock: Cell<u64>,
    /// Where who goes on in order comes next.
    next: Cell<u64>,
    /// Counts what changes blocks in the file or makes them invalid.
    changes: Rc<Cell<u64>>,
    /// Held while blocks are written: two writes of one block must not overtake each other.
    writing: Mutex<()>,
}

impl TableCache {
    /// A cache for blocks of `block` bytes, of which about `capacity` bytes are kept.
    #[must_use]
    pub fn new(file: NodeRef, block: usize, capacity: usize) -> Self {
        let capacity = (capacity / block.max(1)).max(8);
        Self {
            file,
            block,
            capacity,
            entries: Rc::default(),
            clock: Cell::new(0),
            next: Cell::new(u64::MAX),
            changes: Rc::default(),
            writing: Mutex::new(()),
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block
    }

    fn changed(&self) {
        self.changes.set(self.changes.get() + 1);
    }

    fn touch(&self, block: &Block) {
        self.clock.set(self.clock.get() + 1);
        block.used.set(self.clock.get());
    }

    /// The block at `offset`, if it is in memory. It costs no I/O.
    #[must_use]
    pub fn get(&self, offset: u64) -> Option<Rc<Block>> {
        match self.entries.borrow().get(&offset) {
            Some(Entry::Here(block)) => {
                self.touch(block);
                Some(block.clone())
            }
            _ => None,
        }
    }

    /// The block at `offset`, from the file if need be. `what` is in the error if it lies beyond the file's end.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is not wholly inside of the file; the file's.
    pub async fn load(&self, offset: u64, what: &'static str) -> Result<Rc<Block>, Error> {
        self.load_row(offset, 1, what).await
    }

    /// The block at `offset`, and up to `count - 1` that follow it in the same table for who comes next.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub async fn load_row(&self, offset: u64, count: usize, what: &'static str) -> Result<Rc<Block>, Error> {
        if let Some(block) = self.get(offset) {
            return Ok(block);
        }
        let loading = {
            let mut entries = self.entries.borrow_mut();
            match entries.get(&offset) {
                Some(Entry::Loading(loading)) => loading.clone(),
                _ => {
                    let loading = self.start(offset, count, what);
                    entries.insert(offset, Entry::Loading(loading.clone()));
                    loading
                }
            }
        };
        let block = loading.await.map_err(|Failed(e)| Error {
            kind: e.kind,
            context: e.context.clone(),
            source: std::io::Error::other(e.source.to_string()),
        })?;
        self.touch(&block);
        self.make_room();
        Ok(block)
    }

    /// The block at `offset`, and for who goes through the table in order, those that follow it, up to `end` where the
    /// table ends.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub async fn load_ahead(&self, offset: u64, end: u64, what: &'static str) -> Result<Rc<Block>, Error> {
        /// Bytes that are read at once.
        const AHEAD: u64 = 64 << 10;
        if let Some(block) = self.get(offset) {
            return Ok(block);
        }
        let step = self.block as u64;
        let in_order = offset == self.next.get();
        let count = if in_order { (end.saturating_sub(offset).min(AHEAD) / step).max(1) } else { 1 };
        self.next.set(offset.saturating_add(count * step));
        self.load_row(offset, count as usize, what).await
    }

    fn start(&self, offset: u64, count: usize, what: &'static str) -> Loading {
        let (file, len, entries) = (self.file.clone(), self.block, self.entries.clone());
        let (changes, before) = (self.changes.clone(), self.changes.get());
        // What follows may be cut off by the file's end; the first block must be there.
        let there = (file.size().saturating_sub(offset) / len as u64).min(self.capacity as u64 / 2) as usize;
        let count = count.min(there).max(1);
        let now = self.clock.get();
        let load: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move {
            let mut result = read_table(&*file, offset, len * count, what).await;
            let mut entries = entries.borrow_mut();
            if count > 1
                && let Ok(bytes) = &mut result
            {
                let rest = bytes.split_off(len);
                // A table that changed while it was read may be an old one.
                let parts =
                    if changes.get() == before { rest.chunks_exact(len) } else { [].chunks_exact(len) };
                for (n, part) in parts.enumerate() {
                    let offset = offset + ((n + 1) * len) as u64;
                    entries.entry(offset).or_insert_with(|| {
                        Entry::Here(Rc::new(Block {
                            offset,
                            bytes: RefCell::new(part.into()),
                            dirty: Cell::new(false),
                            used: Cell::new(now),
                        }))
                    });
                }
                bytes.truncate(len);
            }
            // Somebody may have put a new block in its place meanwhile, which is the right one then.
            if let Some(Entry::Here(block)) = entries.get(&offset) {
                return Ok(block.clone());
            }
            match result {
                Ok(bytes) => {
                    let block = Rc::new(Block {
                        offset,
                        bytes: RefCell::new((&bytes[..]).into()),
                        dirty: Cell::new(false),
                        used: Cell::new(0),
                    });
                    entries.insert(offset, Entry::Here(block.clone()));
                    Ok(block)
                }
                Err(e) => {
                    entries.remove(&offset);
                    Err(Failed(Rc::new(e)))
                }
            }
        });
        load.shared()
    }

    /// A new block of zeros at `offset`, changed from the start. What was there before is not read.
    pub fn create(&self, offset: u64) -> Rc<Block> {
        self.changed();
        let block = Rc::new(Block {
            offset,
            bytes: RefCell::new(vec![0; self.block].into()),
            dirty: Cell::new(true),
            used: Cell::new(0),
        });
        self.touch(&block);
        self.entries.borrow_mut().insert(offset, Entry::Here(block.clone()));
        self.make_room();
        block
    }

    /// The block at `offset` is no table any more: it is forgotten, changed or not.
    pub fn forget(&self, offset: u64) {
        self.changed();
        self.entries.borrow_mut().remove(&offset);
    }

    /// Forgets everything, changed or not.
    pub fn clear(&self) {
        self.changed();
        self.entries.borrow_mut().clear();
    }

    /// Number of changed blocks.
    #[must_use]
    pub fn dirty(&self) -> usize {
        self.here(|b| b.is_dirty()).len()
    }

    /// True when changed blocks take up most of the room: the format should write them soon.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let n = self.entries.borrow().len();
        n > self.capacity / 2 && self.dirty() > self.capacity / 2
    }

    fn here(&self, want: impl Fn(&Block) -> bool) -> Vec<Rc<Block>> {
        let entries = self.entries.borrow();
        let here = entries.values().filter_map(|e| match e {
            Entry::Here(block) if want(block) => Some(block.clone()),
            _ => None,
        });
        here.collect()
    }

    /// Writes all blocks that are changed now, in any order. Durable only after a flush of the file.
    ///
    /// # Errors
    /// The file's; blocks that were not written are still changed.
    pub async fn write_dirty(&self) -> Result<(), Error> {
        self.write_some(|_| true).await
    }

    /// Writes those of the changed blocks that `want` takes.
    ///
    /// # Errors
    /// As for [`write_dirty`](Self::write_dirty).
    pub async fn write_some(&self, want: impl Fn(&Block) -> bool) -> Result<(), Error> {
        let _alone = self.writing.lock().await;
        self.write_blocks(self.stage(want)).await
    }

    /// The present contents of those of the changed blocks that `want` takes, to be written later by
    /// [`write_staged`](Self::write_staged). What changes after this moment is not among it.
    ///
    /// Blocks must not be staged again before that, or an older state could be written over a newer one.
    pub fn stage(&self, want: impl Fn(&Block) -> bool) -> Staged {
        let mut blocks = self.here(|b| b.is_dirty() && want(b));
        // Neighbours in the file one after the other.
        blocks.sort_by_key(|b| b.offset);
        if !blocks.is_empty() {
            self.changed();
        }
        let stage = |block: Rc<Block>| {
            let data = IoData::copy_of(&block.bytes.borrow());
            block.dirty.set(false);
            (Unwritten(Some(block)), data)
        };
        Staged(blocks.into_iter().map(stage).collect())
    }

    /// Writes staged contents, in any order. Durable only after a flush of the file.
    ///
    /// # Errors
    /// As for [`write_dirty`](Self::write_dirty).
    pub async fn write_staged(&self, staged: Staged) -> Result<(), Error> {
        let _alone = self.writing.lock().await;
        self.write_blocks(staged).await
    }

    async fn write_blocks(&self, staged: Staged) -> Result<(), Error> {
        const AT_ONCE: usize = 32;
        self.changed();
        let mut result = Ok(());
        let mut blocks = staged.0.into_iter();
        loop {
            let writes: Vec<_> = blocks
                .by_ref()
                .take(AT_ONCE)
                .map(|(mut unwritten, data)| async move {
                    if let Some(block) = &unwritten.0 {
                        self.file.write(block.offset, data).await?;
                    }
                    unwritten.0.take();
                    Ok(())
                })
                .collect();
            if writes.is_empty() {
                break;
            }
            for written in join_all(writes).await {
                result = result.and(written);
            }
        }
        self.make_room();
        result
    }

    /// Forgets unchanged blocks that nobody holds, until there is room.
    fn make_room(&self) {
        let mut entries = self.entries.borrow_mut();
        if entries.len() <= self.capacity {
            return;
        }
        let mut free: Vec<_> = entries
            .iter()
            .filter_map(|(&offset, e)| match e {
                Entry::Here(b) if !b.is_dirty() && Rc::strong_count(b) == 1 => Some((b.used.get(), offset)),
                _ => None,
            })
            .collect();
        // Some more than needed, so that it is not done at every load.
        let excess = entries.len() - self.capacity + self.capacity / 8;
        free.sort_unstable();
        for (_, offset) in free.into_iter().take(excess) {
            entries.remove(&offset);
        }
    }
}

/// Contents of changed blocks as they were at one moment. Blocks of it that are not written are changed again.
#[derive(Default)]
pub struct Staged(Vec<(Unwritten, IoData)>);

impl Staged {
    /// True if there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Marks a block as changed again when its write fails or is given up.
struct Unwritten(Option<Rc<Block>>);

impl Drop for Unwritten {
    fn drop(&mut self) {
        if let Some(block) = &self.0 {
            block.dirty.set(true);
        }
    }
}

/// A table whose size an image states, if it is one that an honest image can have.
///
/// # Errors
/// [`ErrorKind::Limit`] if `entries` of `entry` bytes are more than `limit` bytes.
pub fn table_len(name: &str, what: &str, entries: u64, entry: u64, limit: u64) -> Result<usize, Error> {
    let len = entries.checked_mul(entry).filter(|&l| l <= limit).and_then(|l| usize::try_from(l).ok());
    len.ok_or_else(|| {
        let why =
            format!("its {what} would have {entries} entries, and {} are the most", limit / entry.max(1));
        Error::new(ErrorKind::Limit, format!("cannot open '{name}'"), why)
    })
}

#[cfg(test)]
mod tests {
    use futures_util::join;
    use plinth_host::aio::block_on;

    use super::*;
    use crate::graph::{MemoryNode, Node};
    use crate::testing::World;

    #[test]
    fn blocks_are_loaded_once_kept_while_changed_and_written_on_request() {
        block_on(async {
            let world = World::new(1);
            let file = world.add("t", MemoryNode::new("t"));
            for n in 0..100u64 {
                file.memory.put(n * 512, &[n as u8; 512]);
            }
            let cache = TableCache::new(file.clone(), 512, 8 * 512);
            let before = world.requests();
            let (a, b) = join!(cache.load(512, "a table"), cache.load(512, "a table"));
            assert!(Rc::ptr_eq(&a.unwrap(), &b.unwrap()));
            assert_eq!(world.requests(), before + 1);
            cache.load(1024, "a table").await.unwrap().set(1, &7u64.to_be_bytes());
            cache.create(100 * 512).set(0, &9u32.to_le_bytes());
            for n in 3..60 {
                assert_eq!(cache.load(n * 512, "a table").await.unwrap().with(|b| b[0]), n as u8);
            }
            assert_eq!((cache.dirty(), file.size()), (2, 51_200));
            assert!(cache.get(512).is_none());
            assert_eq!(cache.get(1024).unwrap().be64(1), 7);
            world.fail_after(Some(1));
            cache.write_dirty().await.unwrap_err();
            assert_eq!(cache.dirty(), 1);
            world.fail_after(None);
            cache.write_dirty().await.unwrap();
            assert_eq!((cache.dirty(), file.size()), (0, 51_712));
            let mut word = [0; 8];
            file.memory.get(1032, &mut word);
            assert_eq!(word, 7u64.to_be_bytes());
            assert_eq!(cache.load(1 << 40, "a table").await.err().unwrap().kind, ErrorKind::Corrupt);
        });
    }

    #[test]
    fn who_goes_on_in_order_gets_the_rest_of_the_table_and_no_more() {
        block_on(async {
            let world = World::new(1);
            let file = world.add("t", MemoryNode::new("t"));
            for n in 0..100u64 {
                file.memory.put(n * 512, &[n as u8; 512]);
            }
            let cache = TableCache::new(file.clone(), 512, 1 << 20);
            let before = world.requests();
            for n in 10..50 {
                let block = cache.load_ahead(n * 512, 50 * 512, "a table").await.unwrap();
                assert_eq!(block.alike::<4>(3, u64::MAX), 125);
                assert_eq!((block.alike::<4>(3, 2), block.alike::<8>(64, 5)), (2, 0));
            }
            assert_eq!(world.requests(), before + 2);
            assert!(cache.get(50 * 512).is_none());
            cache.load_ahead(80 * 512, 100 * 512, "a table").await.unwrap();
            assert!(cache.get(81 * 512).is_none());
        });
    }
}
