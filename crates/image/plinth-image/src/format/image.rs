//! What an image can do besides holding bytes.

use std::cell::Cell;
use std::fmt::Display;

use super::{Format, Options};
use crate::graph::{Io, IoBuf, IoData, Node, NodeInfo, NodeRef};
use crate::{Error, ErrorKind};

/// A reference to the image below, as it is written in the image above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingLink {
    /// Path, relative to the image that names it, or as the user wrote it.
    pub name: String,
    /// Its format, if that is recorded.
    pub format: Option<Format>,
    /// What else formats record of their parent (VMDK's content ID, the unique IDs of VDI, VHD and VHDX), in the
    /// form that `describe` shows of the parent as `identity`.
    pub identity: Option<String>,
}

/// What is known of an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// Bytes of a cluster, or of whatever is allocated at once.
    pub cluster_size: Option<u64>,
    /// It is encrypted.
    pub encrypted: bool,
    /// Its clusters are compressed, all of them.
    pub compressed: bool,
    /// It was not closed in good order, and a check is due.
    pub dirty: bool,
    /// What was found and mended when it was opened, because it had not been closed in good order.
    pub mended: Vec<String>,
    /// The image below.
    pub backing: Option<BackingLink>,
    /// What is recorded as the format of the image below, where it is the name of none that Plinth has.
    pub unknown_backing_format: Option<String>,
    /// What images above record of this one to know it again.
    pub identity: Option<String>,
    /// What only this format has, under the names that QEMU's `format-specific` uses where it has them.
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// What errors about images below begin with whose recorded format is unknown; the format's name comes then.
pub const UNKNOWN_FORMAT: &str = "nobody knows the format that is recorded for it, and it is not guessed: ";

/// Refuses to open an image below whose recorded format is unknown.
pub(super) fn unknown_format(name: &str, format: &str) -> Error {
    let why = format!("{UNKNOWN_FORMAT}'{format}'");
    Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why)
}

impl Description {
    /// The image below, for who opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if what is recorded as its format is unknown: then it is not guessed either.
    pub fn backing_to_open(self) -> Result<Option<BackingLink>, Error> {
        let Some(format) = self.unknown_backing_format else { return Ok(self.backing) };
        let name = self.backing.map(|b| b.name).unwrap_or_default();
        Err(unknown_format(&name, &format))
    }
}

/// What a check may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    #[default]
    No,
    /// Space that nothing refers to is given back.
    Leaks,
    /// Everything that can be mended.
    All,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Contradictions that lose data or will.
    pub corruptions: u64,
    /// Pieces of space that nothing refers to.
    pub leaks: u64,
    /// What could not be checked.
    pub errors: u64,
    /// Mended ones of these.
    pub corruptions_fixed: u64,
    /// Leaks given back.
    pub leaks_fixed: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Clusters with data of their own.
    pub allocated_clusters: u64,
    /// Clusters that do not follow the one before them in the file.
    pub fragmented_clusters: u64,
    /// Compressed clusters.
    pub compressed_clusters: u64,
    /// Where the last used byte of the file is.
    pub image_end: u64,
    /// The findings, one line each; at most [`CheckReport::MESSAGES`] of them.
    pub messages: Vec<String>,
}

impl CheckReport {
    /// Findings that are kept as text.
    pub const MESSAGES: usize = 1000;

    /// Notes a finding.
    pub fn say(&mut self, message: impl Display) {
        if self.messages.len() < Self::MESSAGES {
            self.messages.push(message.to_string());
        }
    }

    /// Nothing is wrong that was not mended.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == self.corruptions_fixed && self.leaks == self.leaks_fixed && self.errors == 0
    }
}

/// Whoever is told of every step of an operation.
type Watcher = Box<dyn Fn(&Progress)>;

/// How far a long operation has come. Whoever runs it reads this between its steps, or is told of each.
#[derive(Default)]
pub struct Progress {
    /// Work in all; 0 until it is known.
    pub total: Cell<u64>,
    /// Work done.
    pub done: Cell<u64>,
    watcher: Option<Watcher>,
}

impl Progress {
    /// One that tells `watcher` of every step.
    pub fn watched(watcher: impl Fn(&Progress) + 'static) -> Self {
        Self { watcher: Some(Box::new(watcher)), ..Self::default() }
    }

    /// Some more is done.
    pub fn add(&self, n: u64) {
        self.done.set(self.done.get() + n);
        if let Some(watcher) = &self.watcher {
            watcher(self);
        }
    }
}

/// A snapshot inside of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique within the image.
    pub id: String,
    /// The user's name for it.
    pub name: String,
    /// Bytes of machine state that are kept with it.
    pub vm_state_size: u64,
    /// When it was made: seconds and nanoseconds since 1970, UTC.
    pub date: (u64, u32),
    /// Nanoseconds that the machine had run.
    pub vm_clock: u64,
    /// Instructions that the machine had run, if recorded.
    pub icount: Option<u64>,
    /// Bytes of the disk then.
    pub disk_size: u64,
}

/// Snapshots inside of an image.
pub trait Snapshots {
    /// All, in the image's order.
    fn list(&self) -> Vec<Snapshot>;
    /// Keeps the disk's present contents, and the machine state that was written; `template` gives all but the ID,
    /// which is chosen.
    ///
    /// # Errors
    /// As for a write.
    fn create<'a>(&'a self, template: &'a Snapshot) -> Io<'a, Snapshot>;
    /// Makes the disk's contents those of the snapshot with this ID or name.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a write.
    fn apply<'a>(&'a self, id_or_name: &'a str) -> Io<'a, ()>;
    /// Forgets a snapshot.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a write.
    fn delete<'a>(&'a self, id_or_name: &'a str) -> Io<'a, ()>;
    /// Writes machine state, whose byte `offset` is first, for the next snapshot that is made. It goes with a change
    /// of the disk's size.
    ///
    /// # Errors
    /// As for a write; [`Limit`](crate::ErrorKind::Limit) if there is no room.
    fn write_state(&self, offset: u64, data: IoData) -> Io<'_, ()>;
    /// Reads machine state of a snapshot from byte `offset` of it on.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`OutOfRange`](crate::ErrorKind::OutOfRange); as for a read.
    fn read_state<'a>(&'a self, id_or_name: &'a str, offset: u64, buf: IoBuf) -> Io<'a, IoBuf>;
    /// A read-only view of the disk as it was, machine state not included.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a read.
    fn view<'a>(&'a self, id_or_name: &'a str) -> Io<'a, NodeRef>;
}

/// A bitmap of changed blocks inside of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Unique within the image.
    pub name: String,
    /// Bytes that one bit stands for.
    pub granularity: u64,
    /// Writes are recorded in it.
    pub enabled: bool,
    /// It was not stored in good order, and its contents mean nothing.
    pub in_use: bool,
}

/// Bitmaps inside of an image.
pub trait Bitmaps {
    /// All, in the image's order.
    fn list(&self) -> Vec<Bitmap>;
    /// Adds an empty one.
    ///
    /// # Errors
    /// [`Exists`](crate::ErrorKind::Exists), [`Invalid`](crate::ErrorKind::Invalid); as for a write.
    fn add<'a>(&'a self, name: &'a str, granularity: Option<u64>, enabled: bool) -> Io<'a, ()>;
    /// Removes one.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a write.
    fn remove<'a>(&'a self, name: &'a str) -> Io<'a, ()>;
    /// Clears one.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a write.
    fn clear<'a>(&'a self, name: &'a str) -> Io<'a, ()>;
    /// Records writes, or stops to.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a write.
    fn enable<'a>(&'a self, name: &'a str, enabled: bool) -> Io<'a, ()>;
    /// Ranges (first byte, length) whose bits are set, in order.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); it is `in_use`.
    fn ranges<'a>(&'a self, name: &'a str) -> Io<'a, Vec<(u64, u64)>>;
    /// Sets the bits of ranges.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); as for a write.
    fn set<'a>(&'a self, name: &'a str, ranges: &'a [(u64, u64)]) -> Io<'a, ()>;
}

/// An open image: a disk, and what its format can do.
pub trait Image: Node {
    /// Its format.
    fn format(&self) -> Format;
    /// What is known of it.
    fn describe(&self) -> Description;
    /// The files that hold the disk's bytes, if that is not only the image's own: from which byte of the disk on, and
    /// the name. `host` of an [`Extent`](crate::graph::Extent) is a place in the one that has the byte.
    fn data_files(&self) -> Vec<(u64, String)> {
        Vec::new()
    }
    /// The image below, open.
    fn backing(&self) -> Option<NodeRef>;
    /// Checks the image's tables, and mends what `repair` says.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the format has nothing to check; the tables cannot be read.
    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport>;
    /// Writes a whole cluster (or the disk's last part) compressed. `None`: the format has no compression.
    fn write_compressed(&self, _offset: u64, _data: IoData) -> Option<Io<'_, ()>> {
        None
    }
    /// Replaces what is written about the image below; no data is changed.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the format has no such thing; as for a write.
    fn set_backing<'a>(&'a self, _link: Option<&'a BackingLink>) -> Io<'a, ()> {
        let error = unsupported(self.info(), self.format(), "change the backing image of");
        Box::pin(async { Err(error) })
    }
    /// Gives a range that has nothing yet its space. `how`: `metadata` (a place in the file), `falloc` (reserved) or
    /// `full` (written).
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the format cannot do it; as for a write.
    fn preallocate<'a>(&'a self, _offset: u64, _len: u64, _how: &'a str) -> Io<'a, ()> {
        let error = unsupported(self.info(), self.format(), "reserve space in");
        Box::pin(async { Err(error) })
    }
    /// Changes options of the format.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported), [`Invalid`](crate::ErrorKind::Invalid); as for a write.
    fn amend<'a>(&'a self, _options: &'a Options, _progress: &'a Progress) -> Io<'a, ()> {
        let error = unsupported(self.info(), self.format(), "change options of");
        Box::pin(async { Err(error) })
    }
    /// Forgets all that the disk has in this image itself: it reads as the image below then. Snapshots stay.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if the format cannot do it; as for a write.
    fn make_empty(&self) -> Io<'_, ()> {
        let error = unsupported(self.info(), self.format(), "empty");
        Box::pin(async { Err(error) })
    }
    /// Snapshots inside, if the format has them.
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        None
    }
    /// Bitmaps inside, if the format has them.
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        None
    }
}

/// The answer of a format that cannot do what was asked.
#[must_use]
pub fn unsupported(image: &NodeInfo, format: Format, doing: &str) -> Error {
    let why = format!("the format {format} cannot do it");
    Error::new(crate::ErrorKind::Unsupported, format!("cannot {doing} '{}'", image.name), why)
}
