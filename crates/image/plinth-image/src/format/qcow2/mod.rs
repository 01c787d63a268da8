//! qcow2, versions 2 and 3: QEMU's format (`docs/interop/qcow2.txt` in QEMU's sources, called "the specification").
//!
//! # The order of writes
//!
//! New data goes to clusters that nothing refers to. Tables change in memory only, until a commit (a flush of the
//! disk, or too many changes) writes them:
//!
//! 0. A mark of our own in the header (an extension without data, [`header::EXT_LEAKS`]), once for each time the
//!    image is open. Barrier.
//! 1. If there are new blocks of counts, or their table moved: all changed counts, and the table in its new place.
//!    Barrier.
//! 2. Changed counts, entries of the refcount table (or the header, if that table moved), and L2 tables that no L1
//!    table in the file refers to yet. Barrier, which covers the data too.
//! 3. Entries of L2 tables and of the L1 table, as they were when the commit began. Barrier.
//! 4. What is referred to no more becomes free: it was forgotten durably.
//!
//! So after a power cut every reference leads to something that is durable and counted. What may be left is clusters
//! that are counted but not referred to. The mark says so, and our next open for writing takes them back. QEMU keeps
//! extensions that it does not know, so it may open the image in between: the mark stays, and costs our next open a
//! check that finds nothing. Images with lazy refcounts have the format's own dirty bit instead of the mark, which
//! every implementation repairs; counts are then written when the image is closed.
//!
//! The file is made longer ahead of what is taken of it, before anything is written there. That space is not counted
//! and reads as zeros; closing cuts it off, and after a power cut it is taken like any other free space.
//!
//! Snapshots change counts and flags of the whole image: the dirty bit is set meanwhile (in version 2, which has
//! none, our mark stands for it), and the header, whose fields are in one sector, decides between the old state
//! and the new.

mod alloc;
mod amend;
mod bitmap;
mod bits;
mod check;
mod commit;
mod compress;
mod counter;
mod create;
mod crypt;
mod differences;
mod guard;
mod header;
mod map;
mod measure;
mod read;
mod rebuild;
mod refcount;
mod resize;
mod snapshot;
mod snapshot_table;
mod state;
mod write;
mod zero;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use async_lock::Mutex;
use serde_json::json;

pub use amend::OTHER_SIZE;
pub use create::{SMALL_FOR_EXTENDED, cluster_size};
pub use differences::NARROW_COUNTS;
use header::Header;
pub use header::NO_CRYPT_HEADER;
use map::{L1, View};
pub use measure::measure;
pub use snapshot_table::INCOMPLETE as INCOMPLETE_SNAPSHOT;

use super::table::{TableCache, table_len};
use super::{
    BackingLink, Bitmaps, CheckReport, Description, Driver, Format, Image, Links, OpenRequest, Options,
    Progress, Repair, Snapshots, unknown_format,
};
use crate::crypt::KeyCost;
use crate::graph::{
    Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, RangeLocks, check_range, check_write, read_table,
};
use crate::{Error, ErrorKind, SECTOR};

/// qcow2 images.
pub static DRIVER: Driver = Driver {
    format: Format::Qcow2,
    probe: |sample| header::is_qcow2(sample.head),
    open: |request| Box::pin(open_with(request, KeyCost::default())),
    create: Some(|request| Box::pin(create::create(request))),
    options: create::OPTIONS,
};

/// Bytes of L2 tables that are kept in memory.
const L2_CACHE: usize = 10 << 20;

/// Writes to the file: where, and what.
type Writes = Vec<(u64, IoData)>;

/// An open image's state, which its disk and the views of its snapshots share.
struct Core {
    info: NodeInfo,
    file: NodeRef,
    /// The external data file.
    data: Option<NodeRef>,
    backing: RefCell<Option<NodeRef>>,
    links: Rc<dyn Links>,
    header: RefCell<Header>,
    header_lock: Mutex<()>,
    /// A cluster is 2^`bits` bytes.
    bits: u32,
    cluster: u64,
    extended: bool,
    crypt: Option<crypt::Crypt>,
    guard: guard::Guard,
    size: Cell<u64>,
    l1: RefCell<L1>,
    l2: TableCache,
    refs: refcount::Refcounts,
    alloc: alloc::Alloc,
    commits: commit::Commits,
    /// Changes since the caches were last looked at.
    pressure: Cell<u32>,
    /// Ranges of the disk in use: reads and writes in place share theirs, changes of the mapping exclude others.
    locks: RangeLocks,
    /// L1 entries whose tables are being made.
    l1_locks: RangeLocks,
    /// The slice of the L2 tables that comes after the last one that was loaded.
    next_slice: Cell<u64>,
    /// The file with the data has holes in what is allocated; not known before somebody asks.
    sparse: Cell<Option<bool>>,
    unpacked: RefCell<compress::Unpacked>,
    snapshots: RefCell<Vec<snapshot_table::Entry>>,
    snapshot_damage: RefCell<snapshot_table::Damage>,
    snapshot_table_len: Cell<u64>,
    bitmaps: bitmap::State,
    /// What was mended when it was opened.
    mended: RefCell<Vec<String>>,
    closed: Cell<bool>,
}

/// An open qcow2 image.
struct Qcow2 {
    core: Rc<Core>,
    /// Views of snapshots, by the snapshots' IDs.
    views: RefCell<Vec<(String, Weak<snapshot::SnapshotView>)>>,
}

impl Qcow2 {
    fn new(core: Core) -> Self {
        Self { core: Rc::new(core), views: RefCell::default() }
    }
}

/// Opens an image; the keys of its encryption may cost that much.
pub(crate) async fn open_with(request: OpenRequest, mut cost: KeyCost) -> Result<Rc<dyn Image>, Error> {
    let core = Core::open(&request, &mut cost).await?;
    if let Err(e) = core.make_ready().await {
        // A check says what is wrong, and may be able to mend it.
        if !request.options.for_check || e.kind != ErrorKind::Corrupt {
            return Err(e);
        }
        core.guard.broken.set(true);
    }
    Ok(Rc::new(Qcow2::new(core)))
}

impl Core {
    async fn open(request: &OpenRequest, cost: &mut KeyCost) -> Result<Self, Error> {
        let file = request.file.clone();
        let name = file.info().name.clone();
        let first = file.read(0, IoBuf::new(file.size().min(header::USUAL_LEN) as usize)).await?;
        // The first cluster has all extensions; how long it is stands in the first sector.
        let bits = header::be32(&first, 20);
        let len = if header::CLUSTER_BITS.contains(&bits) { file.size().min(1 << bits) } else { 0 };
        let all = len <= first.len() as u64 || header::ends_within(&first);
        let head = if all { first } else { file.read(0, IoBuf::new(len as usize)).await? };
        let header = Header::parse(&name, &head)?;
        let read_only = request.options.read_only || file.info().read_only;
        let l1_len = table_len(&name, "L1 table", u64::from(header.l1_size), 8, header::MAX_L1)?;
        let l1 = read_table(&*file, header.l1_offset, l1_len, "the L1 table").await?;
        let words = |bytes: &[u8]| bytes.chunks_exact(8).map(|c| header::be64(c, 0)).collect::<Vec<_>>();
        let reftable_len = (u64::from(header.reftable_clusters) * header.cluster_size()) as usize;
        let reftable = read_table(&*file, header.reftable_offset, reftable_len, "the refcount table").await?;
        let data = match header.has_data_file() {
            false => None,
            true => Some(Self::open_data(request, &header, &name, read_only).await?),
        };
        let snapshots = snapshot_table::read(&*file, &header).await?;
        if let Some(why) = snapshots.damage.refusal().filter(|_| !request.options.for_check) {
            return Err(Error::corrupt(&name, why));
        }
        let crypt = crypt::Crypt::open(&file, &header, request.options.secret.as_deref(), cost).await?;
        let backing = Self::open_backing(request, &header).await?;
        let cluster = header.cluster_size();
        let slice = refcount::SLICE.min(cluster) as usize;
        let refs = refcount::Refcounts::new(
            file.clone(),
            &name,
            header.cluster_bits,
            header.refcount_order,
            words(&reftable),
        );
        let alloc = alloc::Alloc::default();
        alloc.high.set(file.size());
        alloc.reach.set(file.size());
        let bitmaps = bitmap::State::read(&*file, &header).await?;
        let block = file.info().block.max(SECTOR as u32);
        Ok(Self {
            info: NodeInfo { name, read_only, block },
            l2: TableCache::new(file.clone(), slice, L2_CACHE),
            file,
            data,
            backing: RefCell::new(backing),
            links: request.links.clone(),
            header_lock: Mutex::new(()),
            bits: header.cluster_bits,
            cluster,
            extended: header.extended_l2(),
            crypt,
            guard: guard::Guard::default(),
            size: Cell::new(header.size - header.size % SECTOR),
            l1: RefCell::new(L1 { entries: words(&l1), offset: header.l1_offset, dirty: Default::default() }),
            refs,
            alloc,
            commits: commit::Commits::default(),
            pressure: Cell::new(0),
            locks: RangeLocks::default(),
            l1_locks: RangeLocks::default(),
            next_slice: Cell::new(0),
            sparse: Cell::default(),
            unpacked: RefCell::default(),
            snapshot_table_len: Cell::new(snapshots.len),
            snapshot_damage: RefCell::new(snapshots.damage),
            snapshots: RefCell::new(snapshots.entries),
            bitmaps,
            mended: RefCell::default(),
            closed: Cell::new(false),
            header: RefCell::new(header),
        })
    }

    async fn open_data(
        request: &OpenRequest,
        header: &Header,
        name: &str,
        read_only: bool,
    ) -> Result<NodeRef, Error> {
        let link = header.extension(header::EXT_DATA_FILE).and_then(|d| std::str::from_utf8(d).ok());
        // Without a name it may be given nevertheless, by whoever opens the image.
        let opened = request.links.open_file(link.unwrap_or_default(), read_only).await;
        if link.is_none() && opened.is_err() {
            let why = "its data is in another file, and it does not say in which";
            return Err(Error::new(ErrorKind::NotFound, format!("cannot open '{name}'"), why));
        }
        opened
    }

    async fn open_backing(request: &OpenRequest, header: &Header) -> Result<Option<NodeRef>, Error> {
        // What is not opened may be of a format that nobody knows.
        if request.options.no_backing {
            return Ok(None);
        }
        match header.backing_link()? {
            Some(link) => Ok(Some(request.links.open_backing(&link).await?)),
            None => Ok(None),
        }
    }

    /// Mends what a crash left, if the image is open for writing.
    async fn make_ready(&self) -> Result<(), Error> {
        if self.info.read_only {
            return Ok(());
        }
        let header = self.header.borrow().clone();
        let dirty = header.incompatible & header::DIRTY != 0;
        self.commits.marked.set(dirty || header.leaks);
        if header.incompatible & header::CORRUPT != 0 {
            return Ok(());
        }
        // Open for a check; nothing is written before that has mended it.
        if let Some(why) = self.snapshot_damage.borrow().refusal() {
            return Err(Error::corrupt(&self.info.name, why));
        }
        let unknown = header.autoclear & !(header::BITMAPS | header::DATA_FILE_RAW);
        let stale_bitmaps =
            header.autoclear & header::BITMAPS == 0 && header.extension(header::EXT_BITMAPS).is_some();
        if unknown != 0 {
            self.change_header(|h| h.autoclear &= header::BITMAPS | header::DATA_FILE_RAW).await?;
        }
        if stale_bitmaps {
            // Somebody wrote who does not know them; their space is taken back below.
            self.rewrite_header(|h| h.set_extension(header::EXT_BITMAPS, None)).await?;
        }
        if !dirty && !header.leaks && !stale_bitmaps {
            return Ok(());
        }
        let all = dirty || !self.v3();
        let repair = if all { Repair::All } else { Repair::Leaks };
        let report = self.mend_itself(repair).await?;
        if dirty {
            self.mended.replace(report.messages.clone());
        }
        if all && !report.is_clean() {
            let why = format!("it was not closed, and cannot be mended: {}", report.messages.join("; "));
            return Err(Error::corrupt(&self.info.name, why));
        }
        self.file.flush().await?;
        // What is in use and counted as free would be cut off.
        if report.is_clean() { self.trim().await } else { Ok(()) }
    }

    /// True for version 3, which has notes of zeros and feature bits.
    fn v3(&self) -> bool {
        self.header.borrow().version >= 3
    }

    async fn close(&self) -> Result<(), Error> {
        if !self.info.read_only && !self.closed.get() {
            let _alone = self.locks.lock(0..u64::MAX, true).await;
            self.store_bitmaps().await?;
            let lost = std::mem::take(&mut *self.alloc.lost.borrow_mut());
            self.alloc.pending.borrow_mut().extend(lost);
            if self.commits.marked.get() || self.commits.changed.get() {
                self.settle().await?;
            }
            self.shorten().await;
            if self.alloc.pending.borrow().is_empty() {
                self.unmark().await?;
            }
            self.closed.set(true);
        }
        if let Some(data) = &self.data {
            data.close().await?;
        }
        let backing = self.backing.borrow().clone();
        if let Some(backing) = backing {
            backing.close().await?;
        }
        self.file.close().await
    }
}

impl Header {
    /// What the header says of the image below.
    fn backing_link(&self) -> Result<Option<BackingLink>, Error> {
        let Some(name) = &self.backing else { return Ok(None) };
        let format =
            self.extension(header::EXT_BACKING_FORMAT).map(|f| String::from_utf8_lossy(f).into_owned());
        let known = |f: String| f.parse().map_err(|_| unknown_format(name, &f));
        let format = format.filter(|f| !f.is_empty()).map(known).transpose()?;
        Ok(Some(BackingLink { name: name.clone(), format, identity: None }))
    }
}

impl Node for Qcow2 {
    fn info(&self) -> &NodeInfo {
        &self.core.info
    }

    fn size(&self) -> u64 {
        self.core.size.get()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let len = buf.len() as u64;
            check_range(self, "read", offset, len)?;
            let _shared = self.core.locks.lock(offset..offset + len, false).await;
            self.core.read_view(View::Active, offset, buf).await
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            self.core.write_data(offset, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            self.core.zero_data(offset, len, unmap).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            self.core.discard_data(offset, len).await
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if self.core.info.read_only {
                return Ok(());
            }
            self.core.commit().await
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let _shared = self.core.locks.lock(offset..offset + len, false).await;
            self.core.status_view(View::Active, offset, len).await
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.resize(size).await
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(self.core.close())
    }

    fn host_file(&self) -> Option<Arc<File>> {
        // What is encrypted is not there as it is read.
        let plain = self.core.header.borrow().crypt == header::CRYPT_NONE;
        plain.then(|| self.core.data_node().host_file()).flatten()
    }
}

impl Image for Qcow2 {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn describe(&self) -> Description {
        let header = self.core.header.borrow();
        let mut details = serde_json::Map::new();
        let mut put = |name: &str, value| _ = details.insert(name.to_owned(), value);
        put("compat", json!(if header.version >= 3 { "1.1" } else { "0.10" }));
        put("compression-type", json!(header.compression.name()));
        put("refcount-bits", json!(header.refcount_bits()));
        if header.version >= 3 {
            put("lazy-refcounts", json!(header.compatible & header::LAZY_REFCOUNTS != 0));
            put("corrupt", json!(header.incompatible & header::CORRUPT != 0));
            put("extended-l2", json!(header.extended_l2()));
            let bitmaps = self.core.bitmaps.describe();
            if !bitmaps.is_empty() {
                put("bitmaps", json!(bitmaps));
            }
        }
        if let Some(crypt) = &self.core.crypt {
            put("encrypt", crypt.describe().into());
        }
        if header.has_data_file() {
            if let Some(name) = header.extension(header::EXT_DATA_FILE) {
                put("data-file", json!(String::from_utf8_lossy(name)));
            }
            put("data-file-raw", json!(header.autoclear & header::DATA_FILE_RAW != 0));
        }
        let (mut backing, mut unknown) = (header.backing_link().ok().flatten(), None);
        if backing.is_none() {
            // Its format is one that nobody knows.
            let format = header.extension(header::EXT_BACKING_FORMAT);
            unknown = format.map(|f| String::from_utf8_lossy(f).into_owned());
            backing = header.backing.clone().map(|name| BackingLink { name, format: None, identity: None });
        }
        Description {
            cluster_size: Some(self.core.cluster),
            encrypted: header.crypt != header::CRYPT_NONE,
            dirty: header.incompatible & header::DIRTY != 0,
            mended: self.core.mended.borrow().clone(),
            unknown_backing_format: unknown.filter(|_| backing.is_some()),
            backing,
            details,
            ..Description::default()
        }
    }

    fn backing(&self) -> Option<NodeRef> {
        self.core.backing.borrow().clone().map(|b| b as NodeRef)
    }

    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            if repair != Repair::No {
                check_write(self, 0, 0)?;
            }
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            let report = self.core.check_all(repair, progress).await?;
            if repair != Repair::No {
                self.core.file.flush().await?;
                // What is in use and counted as free would be cut off.
                if report.is_clean() {
                    self.core.trim().await?;
                }
            }
            Ok(report)
        })
    }

    fn write_compressed(&self, offset: u64, data: IoData) -> Option<Io<'_, ()>> {
        Some(Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            self.core.write_packed(offset, data).await
        }))
    }

    fn set_backing<'a>(&'a self, link: Option<&'a BackingLink>) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.set_backing(link).await
        })
    }

    fn preallocate<'a>(&'a self, offset: u64, len: u64, how: &'a str) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.begin_change(offset, len).await?;
            self.core.preallocate(offset, offset + len, how).await
        })
    }

    fn amend<'a>(&'a self, options: &'a Options, progress: &'a Progress) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.amend(options, progress).await
        })
    }

    fn make_empty(&self) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            let _alone = self.core.locks.lock(0..u64::MAX, true).await;
            self.core.make_empty().await
        })
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        self.core.v3().then_some(self)
    }
}
