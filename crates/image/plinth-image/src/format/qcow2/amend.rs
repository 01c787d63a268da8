//! Changes of an image's options.

use super::Core;
use super::alloc::Freed;
use super::create::OPTIONS;
use super::guard::Kind as Guarded;
use super::header::{self, Header};
use super::map::{COMPRESSED, COPIED, Entry, ZERO};
use crate::format::luks::inside::Inside;
use crate::format::{BackingLink, Format, Options, Progress};
use crate::graph::NodeRef;
use crate::{Error, ErrorKind};

/// References that wait to be taken back at most, when tables are written out.
const MAX_PENDING: usize = 1 << 16;

/// Why an image whose disk had another size at some snapshot does not become version 2, which knows one size only.
pub const OTHER_SIZE: &str = "a snapshot has another size than the disk";

/// The name of a format that QEMU knows it by.
pub fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.name(),
    }
}

/// The options that change passphrases, under the names that LUKS has for them, and the other ones.
fn key_options(options: &Options) -> (Option<Options>, Options) {
    let mut rest = options.clone();
    let mut keys = Options::default();
    for (name, value) in options.iter() {
        if let Some(key) = name.strip_prefix("encrypt.").filter(|k| Inside::is_key_option(k)) {
            keys.set(key, value);
            rest.remove(name);
        }
    }
    (Some(keys).filter(|k| k.iter().next().is_some()), rest)
}

impl Core {
    /// Replaces what the header says of the image below, and opens it.
    pub async fn set_backing(&self, link: Option<&BackingLink>) -> Result<(), Error> {
        let doing = || format!("cannot change the image below '{}'", self.info.name);
        if let Some(link) = link {
            if link.name.len() > header::MAX_BACKING {
                return Err(Error::new(ErrorKind::Invalid, doing(), "its name is longer than 1023 bytes"));
            }
            if self.header.borrow().autoclear & header::DATA_FILE_RAW != 0 {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    doing(),
                    "a raw data file cannot be over another image",
                ));
            }
        }
        self.changed();
        self.commit_with(true).await?;
        let backing = match link {
            // An image that is not there, or may not be opened, can be named nevertheless.
            Some(link) => self.links.open_backing(link).await.ok().map(|image| image as NodeRef),
            None => None,
        };
        self.rewrite_header(|h| {
            h.backing = link.map(|l| l.name.clone());
            let format = link.and_then(|l| l.format).map(|f| qemu_name(f).as_bytes().to_vec());
            h.set_extension(header::EXT_BACKING_FORMAT, format);
        })
        .await?;
        let old = self.backing.replace(backing);
        match old {
            Some(old) => old.close().await,
            None => Ok(()),
        }
    }

    /// Changes options of the format.
    pub async fn amend(&self, options: &Options, progress: &Progress) -> Result<(), Error> {
        let (keys, options) = &key_options(options);
        options.check(OPTIONS)?;
        let doing = || format!("cannot change options of '{}'", self.info.name);
        let header = self.header.borrow().clone();
        let lazy = options.flag("lazy_refcounts");
        let raw = options.flag("data_file_raw");
        let bits = options.number("refcount_bits")?.unwrap_or(header.refcount_bits().into());
        let version = match options.text("compat") {
            Some("0.10" | "v2") => 2,
            Some(_) => 3,
            None => header.version,
        };
        for (name, value) in options.iter() {
            let same = match name {
                "cluster_size" => options.size(name)? == Some(self.cluster),
                "compression_type" => value == header.compression.name(),
                "extended_l2" => options.flag(name) == Some(header.extended_l2()),
                "preallocation" => value == "off",
                "data_file" => header.has_data_file(),
                "data_file_raw" => header.has_data_file() || raw == Some(false),
                name => !name.starts_with("encrypt"),
            };
            if !same {
                let why = format!("'{name}' stays what it is; convert the image instead");
                return Err(Error::new(ErrorKind::Unsupported, doing(), why));
            }
        }
        if raw == Some(true) && header.autoclear & header::DATA_FILE_RAW == 0 {
            let why = "'data_file_raw' cannot be set later; convert the image instead";
            return Err(Error::new(ErrorKind::Unsupported, doing(), why));
        }
        if !bits.is_power_of_two() || bits > 64 {
            let why = format!("reference counts of {bits} bits: 1, 2, 4, 8, 16, 32 or 64");
            return Err(Error::new(ErrorKind::Invalid, doing(), why));
        }
        if version == 2 && (bits != 16 || lazy == Some(true)) {
            let why = "refcount_bits and lazy_refcounts need compat=1.1";
            return Err(Error::new(ErrorKind::Invalid, doing(), why));
        }
        self.begin_change(0, 0).await?;
        if let Some(keys) = keys {
            let Some(crypt) = &self.crypt else {
                return Err(Error::new(ErrorKind::Unsupported, doing(), "it is not encrypted"));
            };
            crypt.change_keys(&self.file, keys).await?;
        }
        self.changed();
        self.commit_with(true).await?;
        if version > header.version {
            self.upgrade().await?;
        }
        if bits != u64::from(header.refcount_bits()) {
            self.rebuild_counts(bits.trailing_zeros(), &Progress::default()).await?;
            // The old counts' space is what nothing refers to now.
            self.check_all(crate::format::Repair::Leaks, &Progress::default()).await?;
        }
        if let Some(lazy) = lazy.filter(|_| version >= 3) {
            self.set_lazy(lazy).await?;
        }
        if let Some(name) = options.text("data_file") {
            let name = Some(name.as_bytes().to_vec()).filter(|n| !n.is_empty());
            self.rewrite_header(|h| h.set_extension(header::EXT_DATA_FILE, name)).await?;
        }
        if raw == Some(false) {
            self.change_header(|h| h.autoclear &= !header::DATA_FILE_RAW).await?;
        }
        if version < header.version {
            self.downgrade(progress).await?;
        }
        self.file.flush().await
    }

    async fn set_lazy(&self, lazy: bool) -> Result<(), Error> {
        // With all counts written, either way of marking the image is right.
        self.settle().await?;
        self.unmark().await?;
        self.change_header(|h| {
            h.compatible &= !header::LAZY_REFCOUNTS;
            h.compatible |= if lazy { header::LAZY_REFCOUNTS } else { 0 };
        })
        .await
    }

    async fn upgrade(&self) -> Result<(), Error> {
        self.settle().await?;
        self.unmark().await?;
        let snapshots = self.snapshots.borrow().clone();
        if !snapshots.is_empty() {
            // Version 3 wants their sizes in the table.
            self.switch_snapshots(snapshots).await?;
        }
        self.rewrite_header(|h| {
            h.version = 3;
            h.length = 112;
            h.set_extension(header::EXT_FEATURES, Some(Header::feature_table()));
        })
        .await
    }

    async fn downgrade(&self, progress: &Progress) -> Result<(), Error> {
        let doing = || format!("cannot make '{}' version 2", self.info.name);
        let refused = |why: &str| Err(Error::new(ErrorKind::Unsupported, doing(), why));
        let header = self.header.borrow().clone();
        if header.incompatible & !(header::DIRTY | header::CORRUPT) != 0 {
            return refused("it uses features of version 3; convert it instead");
        }
        if header.refcount_order != 4 {
            return refused("its reference counts do not have 16 bits: change refcount_bits too");
        }
        if !self.bitmaps.is_empty() {
            return refused("it has bitmaps");
        }
        if self.snapshots.borrow().iter().any(|s| s.info.disk_size != self.size.get()) {
            return refused(OTHER_SIZE);
        }
        self.set_lazy(false).await?;
        self.write_out_zeros(progress).await?;
        // What was given back by that, too: without a mark nobody would look for it.
        self.settle().await?;
        self.unmark().await?;
        self.rewrite_header(|h| {
            h.version = 2;
            h.length = 72;
            (h.incompatible, h.compatible, h.autoclear) = (0, 0, 0);
            h.rest.clear();
            h.set_extension(header::EXT_FEATURES, None);
        })
        .await
    }

    /// Notes of zeros become zeros in all tables, those of snapshots too: nothing, or data where there is an image
    /// below. Tables change where they are, so that whoever shares one has it in common still; a cluster that one
    /// refers to then is counted as often as the table itself.
    async fn write_out_zeros(&self, progress: &Progress) -> Result<(), Error> {
        let active = self.l1.borrow().entries.clone();
        let snapshots: Vec<_> = self.snapshots.borrow().iter().map(|s| (s.l1_offset, s.l1_size)).collect();
        let tables: u64 = snapshots.iter().map(|s| u64::from(s.1)).sum();
        progress.total.set(active.len() as u64 + tables);
        for (index, entry) in (0..).zip(active) {
            self.write_out_table(entry, index, true).await?;
            progress.add(1);
        }
        for (offset, size) in snapshots {
            for (index, entry) in (0..).zip(self.read_l1(offset, size).await?) {
                self.write_out_table(entry, index, false).await?;
                progress.add(1);
            }
        }
        Ok(())
    }

    /// The same in one table; `index` is that of its entry in the L1 table.
    async fn write_out_table(&self, entry: u64, index: u64, active: bool) -> Result<(), Error> {
        let Some(table) = self.l2_offset(entry)? else { return Ok(()) };
        let cluster = table >> self.bits;
        if !matches!(self.kind_of(cluster), None | Some(Guarded::L2)) || self.row_at(cluster).is_some() {
            return Err(self.damaged("an L2 table would be over another table", cluster).await);
        }
        let times = self.refs.get(cluster).await?;
        // The disk and its snapshots can have it, each once.
        if times == 0 || times > u64::from(u16::MAX) + 1 {
            let why = format!("the L2 table at {table:#x} has the count {times}, which cannot be: check it");
            return Err(Error::corrupt(&self.info.name, why));
        }
        let step = self.l2.block_size() as u64;
        for at in (0..self.cluster).step_by(step as usize) {
            let block = self.l2.load(table + at, "an L2 table").await?;
            let noted = |e: &Entry| e.word & COMPRESSED == 0 && e.word & ZERO != 0;
            let old: Vec<(usize, Entry)> = block.with(|b| {
                let all = (0..b.len() / self.entry_size() as usize).map(|i| (i, self.read_entry(b, i)));
                all.filter(|(_, e)| noted(e)).collect()
            });
            for (i, old) in old {
                let guest = index * self.l2_entries() + at / self.entry_size() + i as u64;
                let new = self.written_out(old, guest << self.bits, times, active).await?;
                // It may have gone from the cache meanwhile.
                let block = self.l2.load(table + at, "an L2 table").await?;
                block.change(|b| self.write_entry(b, i, new));
                self.changed();
                // Not before, as a commit would give it away while the file still refers to it.
                if let Some(host) = self.host(old).filter(|h| self.host(new) != Some(*h)) {
                    let freed = Freed::data(host >> self.bits, 1);
                    self.alloc.pending.borrow_mut().extend((0..times).map(|_| freed));
                }
                if self.alloc.pending.borrow().len() > MAX_PENDING {
                    self.commit().await?;
                }
            }
            self.relieve().await?;
        }
        Ok(())
    }

    /// What a note of zeros at `guest`, in a table that is referred to so many times, becomes.
    async fn written_out(&self, old: Entry, guest: u64, times: u64, active: bool) -> Result<Entry, Error> {
        let host = self.host(old);
        if host.is_some_and(|h| !h.is_multiple_of(self.cluster)) {
            let why = format!("the L2 entry {:#x} at {guest:#x} makes no sense", old.word);
            return Err(Error::corrupt(&self.info.name, why));
        }
        let bare = self.backing.borrow().as_ref().is_none_or(|b| b.size() <= guest);
        let flag = if active && times == 1 { COPIED } else { 0 };
        // As many references as the table has: all of them are this entry.
        if let Some(host) = host.filter(|_| !bare)
            && self.refs.get(host >> self.bits).await? == times
        {
            self.zero_host(guest, host, self.cluster, false).await?;
            return Ok(Entry { word: host | flag, bitmap: 0 });
        }
        let mut new = Entry::default();
        if !bare {
            let space = self.allocate(1).await?;
            let fresh = space.fresh && self.crypt.is_none();
            if !fresh && let Err(e) = self.zero_host(guest, space.offset, self.cluster, false).await {
                space.give_back();
                return Err(e);
            }
            self.refs.set(space.offset >> self.bits, times).await?;
            new.word = space.offset | flag;
            space.keep();
        }
        self.guard_free(&[old], &[new]).await?;
        Ok(new)
    }
}
