//! Images that are a table of blocks: VDI, VHD and VHDX.
//!
//! All three say for each block of the disk where in the file it is, or that it is nowhere; two of them have
//! bitmaps besides that say which sectors of a block are there. What is the same for all is here, and a [`Layout`]
//! has what differs: where the tables are and how they are changed.
//!
//! # Order of writes
//! A new block gets space, then its data is written, and the change of the table is only noted ([`Changes`]).
//! [`flush`](crate::graph::Node::flush) takes the notes and, with one barrier after each step,
//! 1. lets the layout write what tables will depend on ([`Layout::prepare`]), beside all the data that was
//!    written before;
//! 2. lets the layout change the tables ([`Layout::apply`]).
//!
//! So a power cut at any point leaves tables that refer only to what was durable before them, and changes of one
//! flush are independent of each other. A block that reads as zeros before it is allocated gets space that
//! reads as zeros, so its table entry may become durable before its data. A block whose old contents come from
//! the image below is noted only after its data is complete; with bitmaps, its sectors are.
//!
//! Space is never given back to the format while an image is open: what is discarded becomes a hole of the file.
//! So nothing is ever used twice. Space that was taken and never noted, because a write failed or power was cut,
//! is at the end of the file (or is used again), and goes away at the next open.

mod changes;
mod io;
mod node;
pub(super) mod scan;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use async_lock::{Mutex, RwLock};

pub use changes::Changes;

use super::{BackingLink, CheckReport, Description, Format, Image, Progress, Repair};
use crate::graph::{NodeInfo, NodeRef, RangeLocks};
use crate::{Error, ErrorKind};

/// Where a block of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The image below has it; zeros if there is none.
    Absent,
    /// It reads as zeros.
    Zero,
    /// All of it is at this byte of the file.
    Full(u64),
    /// The sectors that the block's bitmap names are at this byte of the file, each in its place; others are as in
    /// `Absent`.
    Partial(u64),
}

/// Space for a block.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Its place once it is noted: `Full`, or `Partial` with an empty bitmap.
    pub place: Place,
    /// All of its sectors are present at once, in a format with bitmaps.
    pub all_present: bool,
}

/// What a write is going to do to a block that has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Some of it is written, and the rest reads as zeros.
    OverZeros,
    /// Some of it is written, and the rest is the image's below.
    OverBacking,
    /// All of it is written.
    Whole,
}

/// What differs between formats of blocks.
pub trait Layout: 'static {
    /// Which.
    const FORMAT: Format;
    /// The table can say of a block that it reads as zeros, whatever the image below has.
    const HAS_ZERO: bool;

    /// The file.
    fn file(&self) -> &NodeRef;
    /// Bytes of a block.
    fn block_size(&self) -> u64;
    /// Bytes of what one bit of a block's bitmap stands for. `None`: this image has no bitmaps.
    fn sector(&self) -> Option<u64>;
    /// What the table in the file says, if that takes no I/O.
    fn cached(&self, block: u64) -> Option<Result<Place, Error>>;
    /// How many blocks have the same entry of the table in the file, from `block` on and of `most`: as far as that
    /// takes no I/O and is quickly seen. There may be more.
    fn alike(&self, block: u64, most: u64) -> u64;
    /// What the table in the file says.
    async fn place(&self, block: u64) -> Result<Place, Error>;
    /// Which sectors of a block in a `Partial` place are present, by the bitmap in the file.
    async fn present(&self, block: u64, place: u64, sectors: Range<u64>) -> Result<Vec<bool>, Error>;
    /// Finds space for a block, which reads as zeros. It is not noted yet.
    async fn allocate(&self, block: u64, need: Need) -> Result<Space, Error>;
    /// The space is not used after all, and may have contents.
    fn give_back(&self, space: Space);
    /// Called before anything is changed, every time.
    async fn begin(&self) -> Result<(), Error>;
    /// Writes what must be durable before the tables say what `changes` says. The caller flushes the file.
    async fn prepare(&self, changes: &Changes) -> Result<(), Error>;
    /// Makes the tables say it, durably.
    async fn apply(&self, changes: &Changes) -> Result<(), Error>;
    /// Makes the file one of an image that was closed in good order. Nothing is in flight, all is applied.
    async fn close(&self) -> Result<(), Error>;
    /// Changes the size. Nothing is in flight, all is applied.
    async fn resize(&self, old: u64, new: u64) -> Result<(), Error>;
    /// As for [`Image::check`]. Nothing is in flight, all is applied.
    async fn check(&self, size: u64, repair: Repair, progress: &Progress) -> Result<CheckReport, Error>;
    /// As for [`Image::describe`].
    fn describe(&self) -> Description;
    /// As for [`Image::set_backing`]. Nothing is in flight, all is applied.
    async fn set_backing(&self, link: Option<&BackingLink>) -> Result<(), Error>;
}

/// An image of blocks.
pub struct BlockImage<L> {
    info: NodeInfo,
    size: Cell<u64>,
    backing: Option<NodeRef>,
    layout: L,
    /// Not yet in the tables.
    pending: RefCell<Changes>,
    /// On their way into the tables.
    committing: RefCell<Rc<Changes>>,
    commit: Mutex<()>,
    /// Held shared by every request, and alone by what moves things.
    gate: RwLock<()>,
    /// Blocks that get a place.
    allocating: RangeLocks,
    /// Writes under way, where sectors must be written whole.
    edges: RangeLocks,
}

impl<L: Layout> BlockImage<L> {
    /// An image whose file is open.
    pub fn new(layout: L, size: u64, read_only: bool, backing: Option<NodeRef>) -> Self {
        let file = layout.file().info();
        let info = NodeInfo { read_only: read_only || file.read_only, ..file.clone() };
        Self {
            info,
            size: Cell::new(size),
            backing,
            layout,
            pending: RefCell::default(),
            committing: RefCell::default(),
            commit: Mutex::new(()),
            gate: RwLock::new(()),
            allocating: RangeLocks::default(),
            edges: RangeLocks::default(),
        }
    }

    /// Bytes of the image below that this one can see.
    fn backed(&self) -> u64 {
        self.backing.as_ref().map_or(0, |b| b.size())
    }

    /// A place that is not in the tables yet.
    fn noted(&self, block: u64) -> Option<Place> {
        let pending = self.pending.borrow().places.get(&block).copied();
        pending.or_else(|| self.committing.borrow().places.get(&block).copied())
    }

    /// How many blocks are nowhere, or are zeros, from `block` on and of `most`: the first one, and others that need no
    /// look-up of their own. What is only noted counts for itself.
    fn alike(&self, block: u64, most: u64) -> u64 {
        let next = |changes: &Changes| changes.places.range(block..).next().map_or(u64::MAX, |(&b, _)| b);
        let noted = next(&self.pending.borrow()).min(next(&self.committing.borrow()));
        self.layout.alike(block, most.min(noted - block)).max(1)
    }

    async fn lookup(&self, block: u64) -> Result<Place, Error> {
        if let Some(place) = self.noted(block) {
            return Ok(place);
        }
        if let Some(place) = self.layout.cached(block) {
            return place;
        }
        let place = self.layout.place(block).await?;
        // It may have got a place while the table was read.
        Ok(self.noted(block).unwrap_or(place))
    }

    /// Which sectors of a block are present.
    async fn present(&self, block: u64, place: u64, sectors: Range<u64>) -> Result<Vec<bool>, Error> {
        let first = sectors.start;
        let mark = |marks: &mut [bool]| {
            for changes in [&*self.committing.borrow(), &*self.pending.borrow()] {
                if let Some(ranges) = changes.sectors.get(&block) {
                    ranges.mark(first, marks);
                }
            }
        };
        let mut noted = vec![false; (sectors.end - first) as usize];
        mark(&mut noted);
        if noted.iter().all(|&p| p) {
            return Ok(noted);
        }
        let mut marks = self.layout.present(block, place, sectors).await?;
        // Before and after: notes go into the bitmap while it is read.
        marks.iter_mut().zip(&noted).for_each(|(m, &n)| *m |= n);
        mark(&mut marks);
        Ok(marks)
    }

    /// Makes everything durable that is complete, and puts all notes into the tables.
    async fn commit(&self) -> Result<(), Error> {
        if self.info.read_only {
            return Ok(());
        }
        let _alone = self.commit.lock().await;
        let changes = Rc::new(self.pending.take());
        if changes.is_empty() {
            return self.layout.file().flush().await;
        }
        *self.committing.borrow_mut() = changes.clone();
        let unfinished = Unfinished(self);
        self.layout.prepare(&changes).await?;
        self.layout.file().flush().await?;
        self.layout.apply(&changes).await?;
        std::mem::forget(unfinished);
        *self.committing.borrow_mut() = Rc::default();
        Ok(())
    }

    /// Keeps the notes from filling the memory.
    async fn commit_if_many(&self) -> Result<(), Error> {
        if self.pending.borrow().are_many() { self.commit().await } else { Ok(()) }
    }

    fn refuse_unless_writable(&self, doing: &str) -> Result<(), Error> {
        if !self.info.read_only {
            return Ok(());
        }
        let doing = format!("cannot {doing} '{}'", self.info.name);
        Err(Error::new(ErrorKind::ReadOnly, doing, "it is open for reading only"))
    }
}

/// Takes the notes back when a commit fails or is given up.
struct Unfinished<'a, L: Layout>(&'a BlockImage<L>);

impl<L: Layout> Drop for Unfinished<'_, L> {
    fn drop(&mut self) {
        let changes = self.0.committing.take();
        self.0.pending.borrow_mut().merge_older(&changes);
    }
}

/// Does something when it is dropped.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
