//! Changes of an image's options.

use super::Core;
use super::create::OPTIONS;
use super::header::{self, Header};
use super::map::{COMPRESSED, COPIED, Entry, OFFSET, View, ZERO};
use crate::format::luks::inside::Inside;
use crate::format::{BackingLink, Format, Options, Progress};
use crate::graph::{IoBuf, NodeRef};
use crate::{Error, ErrorKind};

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
    pub async fn amend(&self, options: &Options) -> Result<(), Error> {
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
            self.downgrade().await?;
        }
        self.file.flush().await
    }

    async fn set_lazy(&self, lazy: bool) -> Result<(), Error> {
        // With all counts written, either way of marking the image is right.
        self.unmark().await?;
        self.change_header(|h| {
            h.compatible &= !header::LAZY_REFCOUNTS;
            h.compatible |= if lazy { header::LAZY_REFCOUNTS } else { 0 };
        })
        .await
    }

    async fn upgrade(&self) -> Result<(), Error> {
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

    async fn downgrade(&self) -> Result<(), Error> {
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
            return refused("a snapshot has another size than the disk");
        }
        let snapshots = self.snapshots.borrow().clone();
        for snapshot in snapshots {
            if self.notes_zeros(&self.read_l1(snapshot.l1_offset, snapshot.l1_size).await?).await? {
                return refused(
                    "a snapshot has notes of zeros, which version 2 does not know; delete it first",
                );
            }
        }
        self.set_lazy(false).await?;
        self.write_out_zeros().await?;
        self.changed();
        self.commit_with(true).await?;
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

    /// True if the tables of a snapshot have notes of zeros.
    async fn notes_zeros(&self, l1: &[u64]) -> Result<bool, Error> {
        let per = self.l2.block_size() as u64 / self.entry_size();
        let tables = (0..).zip(l1).filter(|t| *t.1 & OFFSET != 0);
        for (index, _) in tables {
            for cluster in (index * self.l2_entries()..(index + 1) * self.l2_entries()).step_by(per as usize)
            {
                let Some((block, _)) = self.slice(View::Table(l1), cluster).await? else { continue };
                let noted = |entry: Entry| entry.word & COMPRESSED == 0 && entry.word & ZERO != 0;
                if block.with(|b| (0..per as usize).any(|n| noted(self.read_entry(b, n)))) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Notes of zeros become zeros: nothing, or data where there is an image below.
    async fn write_out_zeros(&self) -> Result<(), Error> {
        let clusters = self.size.get().div_ceil(self.cluster);
        let mut at = 0;
        while at < clusters {
            let old = self.entries(at, clusters - at).await?;
            for (n, entry) in old.iter().enumerate() {
                if entry.word & COMPRESSED != 0 || entry.word & ZERO == 0 {
                    continue;
                }
                let cluster = at + n as u64;
                let start = cluster << self.bits;
                let bare = self.backing.borrow().as_ref().is_none_or(|b| b.size() <= start);
                match self.host(*entry) {
                    Some(host) if entry.word & COPIED != 0 && !bare => {
                        self.zero_host(start, host, self.cluster, false).await?;
                        let entry = Entry { word: entry.word & !ZERO, bitmap: 0 };
                        self.set_entries(cluster, &[entry], false).await?;
                    }
                    _ if bare => self.set_entries(cluster, &[Entry::default()], false).await?,
                    _ => {
                        let len = self.cluster.min(self.size.get() - start);
                        self.write_locked(start, IoBuf::zeroed(len as usize).freeze()).await?;
                    }
                }
            }
            at += old.len() as u64;
        }
        Ok(())
    }
}
