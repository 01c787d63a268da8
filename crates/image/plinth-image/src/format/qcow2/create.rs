//! New images.

use std::rc::Rc;
use std::sync::Arc;

use super::header::{self, Compression, Header};
use super::map::{COPIED, Entry, L1, View, ZERO};
use super::{Core, Qcow2, refcount};
use crate::crypt::{Hash, KeyCost, SectorCipher};
use crate::format::luks::{self, inside::NewInside};
use crate::format::{
    Backing, CreateRequest, Image, NoLinks, OpenOptions, OpenRequest, OptionKind, OptionSpec, Options,
};
use crate::graph::{IoBuf, IoData, NodeRef};
use crate::{Error, ErrorKind};

/// Options of new images, by QEMU's names.
pub static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "cluster_size",
        kind: OptionKind::Size,
        help: "what is allocated at once: 512 bytes to 2 MiB (64k)",
    },
    OptionSpec {
        name: "compat",
        kind: OptionKind::Choice(&["0.10", "1.1", "v2", "v3"]),
        help: "version: 0.10 (v2) or 1.1 (v3, the default)",
    },
    OptionSpec {
        name: "compression_type",
        kind: OptionKind::Choice(&["zlib", "zstd"]),
        help: "how compressed clusters are compressed (zlib)",
    },
    OptionSpec { name: "data_file", kind: OptionKind::Text, help: "name of a file that gets the data" },
    OptionSpec {
        name: "data_file_raw",
        kind: OptionKind::Flag,
        help: "the data file is a raw image of the disk at all times",
    },
    OptionSpec {
        name: "encrypt.cipher-alg",
        kind: OptionKind::Choice(luks::CIPHERS),
        help: "cipher and bits of its key; aes-256 if not given",
    },
    OptionSpec {
        name: "encrypt.cipher-mode",
        kind: OptionKind::Choice(luks::MODES),
        help: "cipher mode; xts if not given",
    },
    OptionSpec {
        name: "encrypt.format",
        kind: OptionKind::Choice(&["luks", "aes"]),
        help: "encrypt the disk: luks, or aes, which is weak and for old programs",
    },
    OptionSpec {
        name: "encrypt.hash-alg",
        kind: OptionKind::Choice(Hash::NAMES),
        help: "hash that keys are made with; sha256 if not given",
    },
    OptionSpec {
        name: "encrypt.iter-time",
        kind: OptionKind::Number,
        help: "milliseconds that a try of a passphrase takes; 2000 if not given",
    },
    OptionSpec {
        name: "encrypt.ivgen-alg",
        kind: OptionKind::Choice(luks::IV_KINDS),
        help: "how sectors get their IVs; plain64 if not given",
    },
    OptionSpec {
        name: "encrypt.ivgen-hash-alg",
        kind: OptionKind::Choice(Hash::NAMES),
        help: "hash of essiv; sha256 if not given",
    },
    OptionSpec { name: "encryption", kind: OptionKind::Flag, help: "the same as encrypt.format=aes" },
    OptionSpec {
        name: "extended_l2",
        kind: OptionKind::Flag,
        help: "allocate subclusters, 32 in a cluster: faster small writes",
    },
    OptionSpec {
        name: "lazy_refcounts",
        kind: OptionKind::Flag,
        help: "write reference counts when the image is closed; repair them after a crash",
    },
    OptionSpec {
        name: "preallocation",
        kind: OptionKind::Choice(&["off", "metadata", "falloc", "full"]),
        help: "reserve space: off, metadata (tables only), falloc (quick), full (written)",
    },
    OptionSpec {
        name: "refcount_bits",
        kind: OptionKind::Number,
        help: "width of reference counts: 1, 2, 4 ... 64 bits (16)",
    },
];

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, "cannot create a qcow2 image", why)
}

/// What the options come to.
pub(super) struct Plan {
    pub header: Header,
    /// Entries of the L1 table.
    pub l1_entries: u64,
    pub preallocation: String,
    /// Options of the LUKS header, if there is to be one.
    pub luks: Option<Options>,
}

/// The method of encryption, and the options of its LUKS header.
fn encryption(options: &Options) -> Result<(u32, Option<Options>), Error> {
    let mut own = Options::default();
    for (name, value) in options.iter() {
        if let Some(name) = name.strip_prefix("encrypt.").filter(|n| !matches!(*n, "format" | "key-secret")) {
            own.set(name, value);
        }
    }
    let aes = options.flag("encryption") == Some(true);
    match options.text("encrypt.format") {
        Some("luks") if aes => Err(invalid("encryption=on is the same as encrypt.format=aes")),
        Some("luks") => Ok((header::CRYPT_LUKS, Some(own))),
        format => match own.iter().next() {
            Some((name, _)) => Err(invalid(format!("encrypt.{name} needs encrypt.format=luks"))),
            None if aes || format.is_some() => Ok((header::CRYPT_AES, None)),
            None => Ok((header::CRYPT_NONE, None)),
        },
    }
}

/// Why there are no subclusters.
pub const SMALL_FOR_EXTENDED: &str = "extended L2 entries need clusters of 16 KiB or more";

/// Bytes of a cluster.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub fn cluster_size(options: &Options) -> Result<u64, Error> {
    let cluster = options.size("cluster_size")?.unwrap_or(65536);
    if !cluster.is_power_of_two() || !header::CLUSTER_BITS.contains(&cluster.trailing_zeros()) {
        // In QEMU's words, which scripts look for; so are the next two.
        return Err(invalid("Cluster size must be a power of two between 512 and 2048k"));
    }
    Ok(cluster)
}

pub(super) fn plan(size: u64, options: &Options) -> Result<Plan, Error> {
    let cluster = cluster_size(options)?;
    let bits = cluster.trailing_zeros();
    let version = if matches!(options.text("compat"), Some("0.10" | "v2")) { 2 } else { 3 };
    let refcount_bits = options.number("refcount_bits")?.unwrap_or(16);
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return Err(invalid("Refcount width must be a power of two and may not exceed 64 bits"));
    }
    let flag = |name: &str| options.flag(name).unwrap_or(false);
    let zstd = options.text("compression_type") == Some("zstd");
    let data_file = options.text("data_file");
    let extended = flag("extended_l2");
    let mut needs_v3 = vec![];
    for (name, wanted) in [
        ("compression_type=zstd", zstd),
        ("data_file", data_file.is_some()),
        ("extended_l2", extended),
        ("lazy_refcounts", flag("lazy_refcounts")),
        ("refcount_bits", refcount_bits != 16),
    ] {
        if wanted && version < 3 {
            needs_v3.push(name);
        }
    }
    if !needs_v3.is_empty() {
        return Err(invalid(format!("{} needs compat=1.1", needs_v3.join(", "))));
    }
    if extended && bits < 14 {
        return Err(invalid(SMALL_FOR_EXTENDED));
    }
    if flag("data_file_raw") && data_file.is_none() {
        return Err(invalid("data_file_raw needs data_file"));
    }
    let (crypt, luks) = encryption(options)?;
    if crypt != header::CRYPT_NONE && flag("data_file_raw") {
        return Err(invalid("a raw data file cannot be encrypted"));
    }
    let mut header = Header {
        version,
        cluster_bits: bits,
        size,
        crypt,
        l1_size: 0,
        l1_offset: 0,
        reftable_offset: 0,
        reftable_clusters: 0,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: if flag("lazy_refcounts") { header::LAZY_REFCOUNTS } else { 0 },
        autoclear: if flag("data_file_raw") { header::DATA_FILE_RAW } else { 0 },
        refcount_order: refcount_bits.trailing_zeros(),
        compression: if zstd { Compression::Zstd } else { Compression::Zlib },
        length: if version >= 3 { 112 } else { 72 },
        rest: Vec::new(),
        backing: None,
        extensions: Vec::new(),
        leaks: false,
    };
    for (bit, wanted) in [
        (header::DATA_FILE, data_file.is_some()),
        (header::COMPRESSION, zstd),
        (header::EXTENDED_L2, extended),
    ] {
        header.incompatible |= if wanted { bit } else { 0 };
    }
    if version >= 3 {
        header.set_extension(header::EXT_FEATURES, Some(Header::feature_table()));
    }
    let l1_entries = size.div_ceil(header.l2_span());
    if l1_entries * 8 > header::MAX_L1 {
        return Err(invalid("The image size is too large (try using a larger cluster size)"));
    }
    let preallocation = options.text("preallocation").unwrap_or("off");
    let raw_needs = flag("data_file_raw") && preallocation == "off";
    let preallocation = if raw_needs { "metadata" } else { preallocation }.to_owned();
    if crypt != header::CRYPT_NONE && version < 3 && preallocation != "off" {
        // There is no note for space that reads as zeros and is noise.
        return Err(invalid("preallocation of an encrypted image needs compat=1.1"));
    }
    Ok(Plan { header, l1_entries, preallocation, luks })
}

/// Clusters that the counts of `clusters` other clusters take, with those of the counts themselves: blocks, and
/// their table.
pub(super) fn count_clusters(clusters: u64, bits: u32, order: u32) -> (u64, u64) {
    let (cluster, per) = (1u64 << bits, (8u64 << bits) >> order);
    let (mut blocks, mut table) = (1, 1);
    loop {
        let need = (clusters + blocks + table).div_ceil(per);
        let need_table = (need * 8).div_ceil(cluster);
        if need <= blocks && need_table <= table {
            return (blocks, table);
        }
        (blocks, table) = (blocks.max(need), table.max(need_table));
    }
}

pub async fn create(request: CreateRequest<'_>) -> Result<Rc<dyn Image>, Error> {
    let mut plan = plan(request.size, request.options)?;
    let header = &mut plan.header;
    if let Some(Backing { link, .. }) = &request.backing {
        if header.autoclear & header::DATA_FILE_RAW != 0 {
            return Err(invalid("a raw data file cannot be over another image"));
        }
        if link.name.len() > header::MAX_BACKING {
            return Err(invalid("the name of the image below is longer than 1023 bytes"));
        }
        if plan.preallocation != "off" && !header.extended_l2() {
            return Err(invalid("preallocation of an image over another one needs extended_l2"));
        }
        header.backing = Some(link.name.clone());
        if let Some(format) = link.format {
            let name = super::amend::qemu_name(format);
            header.set_extension(header::EXT_BACKING_FORMAT, Some(name.as_bytes().to_vec()));
        }
    }
    let mut data = None;
    if let Some(name) = request.options.text("data_file") {
        header.set_extension(header::EXT_DATA_FILE, Some(name.as_bytes().to_vec()));
        let node = request.output.sibling(name).await?;
        node.write_zeroes(0, request.size, true).await?;
        data = Some(node);
    }
    let name = request.output.name();
    let bits = header.cluster_bits;
    let cluster = header.cluster_size();
    let l1_clusters = (plan.l1_entries * 8).div_ceil(cluster);
    // The header, the refcount table, a block of counts and the L1 table, as QEMU lays them out.
    let secret = request.secret.filter(|s| !s.is_empty());
    if header.crypt != header::CRYPT_NONE && secret.is_none() {
        let doing = format!("cannot create '{name}'");
        return Err(Error::new(ErrorKind::Key, doing, "an encrypted image needs a passphrase"));
    }
    let luks = match &plan.luks {
        Some(options) => Some(NewInside::new(options).await?),
        None => None,
    };
    let luks_clusters = luks.as_ref().map_or(0, |l| l.header_len().div_ceil(cluster));
    let (blocks, table) = count_clusters(1 + l1_clusters + luks_clusters, bits, header.refcount_order);
    header.reftable_offset = cluster;
    header.reftable_clusters = table as u32;
    header.l1_offset = (1 + table + blocks) << bits;
    header.l1_size = plan.l1_entries as u32;
    let luks_at = header.l1_offset + (l1_clusters << bits);
    if let Some(luks) = &luks {
        let place = [luks_at.to_be_bytes(), luks.header_len().to_be_bytes()].concat();
        header.set_extension(header::EXT_CRYPT, Some(place));
    }
    let head = header.encode(name)?;
    let file = request.output.main().await?;
    let used = 1 + table + blocks + l1_clusters + luks_clusters;
    let per = (8u64 << bits) >> header.refcount_order;
    let mut entries = vec![0u64; ((table << bits) / 8) as usize];
    for n in 0..blocks {
        let mut block = IoBuf::zeroed(cluster as usize);
        for i in 0..per.min(used.saturating_sub(n * per)) {
            refcount::set(&mut block, header.refcount_order, i as usize, 1);
        }
        let offset = (1 + table + n) << bits;
        entries[n as usize] = offset;
        file.write(offset, block.freeze()).await?;
    }
    let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
    file.write(cluster, IoData::copy_of(&bytes)).await?;
    file.write_zeroes(header.l1_offset, plan.l1_entries * 8, true).await?;
    let mut first = vec![0; cluster as usize];
    first[..head.len()].copy_from_slice(&head);
    let mut cipher = None;
    if let (Some(luks), Some(secret)) = (luks, secret) {
        cipher = Some(luks.write(&*file, luks_at, secret).await?);
        // The last cluster is all in the file.
        file.write_zeroes(luks_at + (luks_clusters << bits) - 1, 1, true).await?;
    } else if header.crypt == header::CRYPT_AES {
        cipher = secret.map(|s| Arc::new(SectorCipher::qcow_aes(s)));
    }
    file.write(0, IoData::copy_of(&first)).await?;
    // The images and files that it names are there when it has its own name.
    let open = OpenRequest {
        file,
        links: Rc::new(NewData(data)),
        options: OpenOptions { no_backing: true, ..OpenOptions::default() },
    };
    let mut core = Core::open(&open, &mut KeyCost::default()).await?;
    if let (Some(crypt), Some(cipher)) = (&mut core.crypt, cipher) {
        crypt.unlock(cipher);
    }
    core.backing.replace(request.backing.as_ref().map(Backing::below));
    core.make_ready().await?;
    if plan.preallocation != "off" {
        core.preallocate(0, request.size, &plan.preallocation).await?;
    }
    Ok(Rc::new(Qcow2::new(core)))
}

/// The data file of an image that is being made.
struct NewData(Option<NodeRef>);

impl crate::format::Links for NewData {
    fn open_file<'a>(&'a self, name: &'a str, read_only: bool) -> crate::graph::Io<'a, NodeRef> {
        match &self.0 {
            Some(node) => {
                let node = node.clone();
                Box::pin(async move { Ok(node) })
            }
            None => NoLinks.open_file(name, read_only),
        }
    }

    fn open_backing<'a>(
        &'a self,
        link: &'a crate::format::BackingLink,
    ) -> crate::graph::Io<'a, Rc<dyn Image>> {
        NoLinks.open_backing(link)
    }
}

impl Core {
    /// Gives all of a range a place in the file that reads as zeros. `how`: `metadata`, `falloc` or `full`.
    pub async fn preallocate(&self, from: u64, to: u64, how: &str) -> Result<(), Error> {
        /// Clusters at once.
        const AT_ONCE: u64 = 1 << 14;
        if self.crypt.is_some() && !self.v3() {
            // There is no note for space that reads as zeros and is noise.
            let doing = format!("cannot reserve space in '{}'", self.info.name);
            return Err(Error::new(
                ErrorKind::Unsupported,
                doing,
                "encrypted images need compat=1.1 for that",
            ));
        }
        let mut at = from >> self.bits;
        let last = to.div_ceil(self.cluster);
        let fill = async |node: &NodeRef, offset: u64, len: u64| match how {
            "full" => crate::graph::write_zero_bytes(&**node, offset, len).await,
            "falloc" => node.write_zeroes(offset, len, false).await,
            // What is behind the file's end must be inside of it.
            _ => node.write_zeroes(offset, len, true).await,
        };
        if let Some(data) = &self.data {
            let whole = to.max(data.size());
            fill(data, from, whole - from).await?;
        }
        let within = from % self.cluster;
        if within != 0 && self.data.is_none() && self.crypt.is_none() {
            // The rest of a cluster that is there: its space may not be. (What is encrypted was written whole.)
            let entry = self.entries(at, 1).await?[0];
            if let Some(host) = self.host(entry).filter(|_| entry.word & COPIED != 0) {
                fill(&self.file, host + within, (self.cluster - within).min(to - from)).await?;
            }
        }
        while at < last {
            let old = self.entries(at, (last - at).min(AT_ONCE)).await?;
            // Notes of zeros stay, and get a place too.
            let bare = |e: &&Entry| self.host(**e).is_none() && e.word & !ZERO == 0 && e.bitmap as u32 == 0;
            let free = old.iter().take_while(bare).count();
            if free == 0 {
                at += old.iter().take_while(|e| !bare(e)).count() as u64;
                continue;
            }
            let all = |host: u64, count: u64| {
                // Over another image, a place is all that they get.
                let below = self.header.borrow().backing.is_some();
                let bitmap = match self.extended && !below {
                    // Noise is not what it shall read as.
                    true if self.crypt.is_some() => 0xffff_ffff << 32,
                    true => 0xffff_ffff,
                    false => 0,
                };
                let word = COPIED | if self.crypt.is_some() && !self.extended { ZERO } else { 0 };
                let entry = |n: u64| {
                    let old = old[n as usize];
                    let bitmap = if old.bitmap == 0 { bitmap } else { old.bitmap };
                    Entry { word: (host + (n << self.bits)) | word | old.word & ZERO, bitmap }
                };
                (0..count).map(entry).collect::<Vec<_>>()
            };
            if self.data.is_some() {
                self.set_entries(at, &all(at << self.bits, free as u64), false).await?;
                at += free as u64;
                continue;
            }
            self.preallocate_table(at / self.l2_entries(), how).await?;
            let space = self.allocate(free as u64).await?;
            let count = space.clusters;
            if let Err(e) = fill(&self.file, space.offset, count << self.bits).await {
                space.give_back();
                return Err(e);
            }
            self.set_entries(at, &all(space.offset, count), false).await?;
            space.keep();
            at += count;
        }
        Ok(())
    }

    /// Makes an L2 table if there is none. Its space must be there as that of the data: it is written, because one
    /// piece of the file that is written and another that is only reserved are more for the file system to remember.
    async fn preallocate_table(&self, index: u64, how: &str) -> Result<(), Error> {
        let before = self.l1_entry(View::Active, index);
        let table = self.table_for_change(index).await?;
        // Nothing of a new one is in the file yet.
        match before == 0 && matches!(how, "falloc" | "full") {
            true => crate::graph::write_zero_bytes(&*self.file, table, self.cluster).await,
            false => Ok(()),
        }
    }

    /// The active L1 table anew, at another place.
    pub fn replace_l1(&self, entries: Vec<u64>, offset: u64) {
        *self.l1.borrow_mut() = L1 { entries, offset, dirty: Default::default() };
    }
}
