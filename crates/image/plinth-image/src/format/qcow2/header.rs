//! The header: its fields, its extensions, and the name of the image below (qcow2 specification, "Header").

use crate::{Error, ErrorKind};

/// Bytes that every version 2 header has, and version 3 headers at least.
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// What we write: up to the compression type, padded.
const OUR_LEN: u32 = 112;

const MAGIC: u32 = 0x5146_49fb;

/// Sizes of clusters: 512 bytes to 2 MiB, the most that QEMU opens.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Bytes of an L1 table at most (QEMU's limit).
pub const MAX_L1: u64 = 32 << 20;
/// Bytes of a refcount table at most (QEMU's limit).
pub const MAX_REFTABLE: u64 = 8 << 20;
/// Bytes of the name of an image below at most.
pub const MAX_BACKING: usize = 1023;

/// What is wrong with an encrypted image that lacks that header extension.
pub const NO_CRYPT_HEADER: &str = "it does not say where the header of its encryption is";

pub const EXT_END: u32 = 0;
pub const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
pub const EXT_FEATURES: u32 = 0x6803_f857;
pub const EXT_BITMAPS: u32 = 0x2385_2875;
pub const EXT_CRYPT: u32 = 0x0537_be77;
pub const EXT_DATA_FILE: u32 = 0x4441_5441;
/// Ours ("PLNT"): while it is there, clusters may be counted that nothing refers to, because a writer did not
/// close the image. It has no data. Others keep what they do not know, so it stays until we come back.
pub const EXT_LEAKS: u32 = 0x504c_4e54;

/// Incompatible features.
pub const DIRTY: u64 = 1;
pub const CORRUPT: u64 = 1 << 1;
pub const DATA_FILE: u64 = 1 << 2;
pub const COMPRESSION: u64 = 1 << 3;
pub const EXTENDED_L2: u64 = 1 << 4;
const KNOWN_INCOMPATIBLE: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
/// Compatible features.
pub const LAZY_REFCOUNTS: u64 = 1;
/// Features that a writer who does not know them clears.
pub const BITMAPS: u64 = 1;
pub const DATA_FILE_RAW: u64 = 1 << 1;

/// Kind, bit and name of each feature, as they stand in the table for those who do not know them.
const FEATURES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// Encryption of an image.
pub const CRYPT_NONE: u32 = 0;
pub const CRYPT_AES: u32 = 1;
pub const CRYPT_LUKS: u32 = 2;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a header (RFC 1951).
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl Compression {
    pub fn name(self) -> &'static str {
        match self {
            Compression::Zlib => "zlib",
            Compression::Zstd => "zstd",
        }
    }
}

/// A header extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    pub kind: u32,
    pub data: Vec<u8>,
}

/// The header of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Bytes of the disk.
    pub size: u64,
    pub crypt: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression: Compression,
    /// Bytes of the header, and what is in it after the fields that we know.
    pub length: u32,
    pub rest: Vec<u8>,
    pub backing: Option<String>,
    /// In their order, without the end mark and [`EXT_LEAKS`].
    pub extensions: Vec<Extension>,
    /// [`EXT_LEAKS`] is there.
    pub leaks: bool,
}

pub fn be32(b: &[u8], at: usize) -> u32 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
}

pub fn be64(b: &[u8], at: usize) -> u64 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
}

/// True if a file begins with it.
pub fn is_qcow2(head: &[u8]) -> bool {
    // Version 1 is another format.
    be32(head, 0) == MAGIC && be32(head, 4) >= 2
}

/// Bytes at an image's begin that usually say everything.
pub const USUAL_LEN: u64 = 4096;

/// True if `first`, the first bytes of an image, has its extensions and the name of the image below to their ends.
pub fn ends_within(first: &[u8]) -> bool {
    if first.len() < V3_LEN {
        return false;
    }
    let name = (be64(first, 8), u64::from(be32(first, 16)));
    if name.0.checked_add(name.1).is_none_or(|end| end > first.len() as u64) {
        return false;
    }
    let mut at = if be32(first, 4) == 2 { V2_LEN } else { be32(first, 100) as usize };
    while at.checked_add(8).is_some_and(|next| next <= first.len()) {
        let (kind, len) = (be32(first, at), be32(first, at + 4) as usize);
        if kind == EXT_END || at as u64 >= name.0 && name.0 != 0 {
            return true;
        }
        at += 8 + len.next_multiple_of(8);
    }
    false
}

impl Header {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        // As QEMU reads them, the last one of a kind counts.
        self.extensions.iter().rev().find(|e| e.kind == kind).map(|e| &e.data[..])
    }

    /// Adds or replaces an extension, or removes it.
    pub fn set_extension(&mut self, kind: u32, data: Option<Vec<u8>>) {
        // There is one of a kind afterwards, at the first one's place.
        let mut found = false;
        self.extensions.retain(|e| e.kind != kind || !std::mem::replace(&mut found, true));
        let at = self.extensions.iter().position(|e| e.kind == kind);
        match (at, data) {
            (Some(at), Some(data)) => self.extensions[at].data = data,
            (Some(at), None) => _ = self.extensions.remove(at),
            (None, Some(data)) => {
                // The order in which QEMU writes them; what it does not know stays behind those.
                const FIRST: [u32; 3] = [EXT_BACKING_FORMAT, EXT_DATA_FILE, EXT_CRYPT];
                let rank = |k: u32| FIRST.iter().position(|&f| f == k).unwrap_or(FIRST.len());
                let at = self.extensions.partition_point(|e| rank(e.kind) <= rank(kind));
                self.extensions.insert(at, Extension { kind, data });
            }
            (None, None) => {}
        }
    }

    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    pub fn has_data_file(&self) -> bool {
        self.incompatible & DATA_FILE != 0
    }

    pub fn extended_l2(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    /// Where the LUKS header is, and how long.
    pub fn crypt_area(&self) -> Option<(u64, u64)> {
        let data = self.extension(EXT_CRYPT).filter(|d| d.len() == 16)?;
        Some((be64(data, 0), be64(data, 8)))
    }

    /// Bytes of an L2 entry.
    pub fn entry_size(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// Bytes of the disk that one L2 table describes.
    pub fn l2_span(&self) -> u64 {
        self.cluster_size() / self.entry_size() * self.cluster_size()
    }

    /// Reads what the first cluster of an image says. `head` is that cluster, or the whole file if it is shorter.
    pub fn parse(name: &str, head: &[u8]) -> Result<Self, Error> {
        let corrupt = |why: &str| Error::corrupt(name, why);
        let unsupported =
            |why: String| Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why);
        if !is_qcow2(head) {
            let why = "it does not begin like a qcow2 image";
            return Err(Error::new(ErrorKind::Format, format!("cannot open '{name}'"), why));
        }
        if head.len() < V2_LEN {
            return Err(corrupt("the file ends within the header"));
        }
        let version = be32(head, 4);
        if version > 3 {
            return Err(unsupported(format!("its version is {version}, and 2 and 3 are known")));
        }
        let cluster_bits = be32(head, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            let why = format!("its clusters would have 2^{cluster_bits} bytes; 2^9 to 2^21 can be");
            return Err(unsupported(why));
        }
        let mut header = Self {
            version,
            cluster_bits,
            size: be64(head, 24),
            crypt: be32(head, 32),
            l1_size: be32(head, 36),
            l1_offset: be64(head, 40),
            reftable_offset: be64(head, 48),
            reftable_clusters: be32(head, 56),
            snapshots: be32(head, 60),
            snapshots_offset: be64(head, 64),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Zlib,
            length: V2_LEN as u32,
            rest: Vec::new(),
            backing: None,
            extensions: Vec::new(),
            leaks: false,
        };
        if version == 3 {
            header.parse_v3(name, head)?;
        }
        let (backing_at, backing_len) = (be64(head, 8), be32(head, 16) as usize);
        let area_end = match backing_at {
            0 => head.len().min(header.cluster_size() as usize),
            at if at < u64::from(header.length) || at >= header.cluster_size() => {
                return Err(corrupt("the name of the image below is not in the first cluster"));
            }
            at => (at as usize).min(head.len()),
        };
        header.parse_extensions(name, head, area_end)?;
        let unknown = header.incompatible & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            // In QEMU's words, which scripts look for.
            let why = format!("Unsupported qcow2 feature(s): {}", header.feature_names(0, unknown));
            return Err(unsupported(why));
        }
        if backing_at != 0 {
            let bytes = (backing_at as usize).checked_add(backing_len).and_then(|end| {
                head.get(backing_at as usize..end.min(header.cluster_size() as usize))
                    .filter(|b| b.len() == backing_len)
            });
            let bytes = bytes.filter(|b| b.len() <= MAX_BACKING).ok_or_else(|| {
                corrupt("the name of the image below is longer than 1023 bytes or than the first cluster")
            })?;
            let text = String::from_utf8(bytes.to_vec());
            let text =
                text.map_err(|_| unsupported("the name of the image below is not UTF-8".to_owned()))?;
            header.backing = Some(text).filter(|t| !t.is_empty());
        }
        header.check_fields(name)?;
        Ok(header)
    }

    fn parse_v3(&mut self, name: &str, head: &[u8]) -> Result<(), Error> {
        let corrupt = |why: String| Error::corrupt(name, why);
        if head.len() < V3_LEN {
            return Err(corrupt("the file ends within the header".to_owned()));
        }
        self.incompatible = be64(head, 72);
        self.compatible = be64(head, 80);
        self.autoclear = be64(head, 88);
        self.refcount_order = be32(head, 96);
        self.length = be32(head, 100);
        let length = self.length as usize;
        if length < V3_LEN || length as u64 > self.cluster_size() || length > head.len() {
            return Err(corrupt(format!("its header would have {length} bytes")));
        }
        if self.refcount_order > 6 {
            return Err(corrupt(format!("its refcounts would have 2^{} bits", self.refcount_order)));
        }
        let kind = if length > V3_LEN { head[V3_LEN] } else { 0 };
        self.compression = match (kind, self.incompatible & COMPRESSION != 0) {
            (0, false) => Compression::Zlib,
            (1, true) => Compression::Zstd,
            (0, true) | (_, false) => {
                return Err(corrupt(
                    "its feature bits and its compression type contradict each other".to_owned(),
                ));
            }
            (kind, true) => {
                let why = format!("its compression type is {kind}, and 0 (zlib) and 1 (zstd) are known");
                return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
            }
        };
        self.rest = head.get(V3_LEN + 1..length).unwrap_or_default().to_vec();
        Ok(())
    }

    fn parse_extensions(&mut self, name: &str, head: &[u8], end: usize) -> Result<(), Error> {
        let mut at = self.length as usize;
        while at + 8 <= end {
            let (kind, len) = (be32(head, at), be32(head, at + 4) as usize);
            if kind == EXT_END {
                break;
            }
            let data = (at + 8).checked_add(len).filter(|&e| e <= end).map(|e| &head[at + 8..e]);
            let data = data.ok_or_else(|| {
                Error::corrupt(name, format!("the header extension {kind:#x} is longer than there is room"))
            })?;
            if kind == EXT_LEAKS {
                self.leaks = true;
            } else {
                self.extensions.push(Extension { kind, data: data.to_vec() });
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }

    fn check_fields(&self, name: &str) -> Result<(), Error> {
        let corrupt = |why: String| Err(Error::corrupt(name, why));
        let cluster = self.cluster_size();
        let tables = [
            ("L1 table", self.l1_offset, self.l1_size != 0),
            ("refcount table", self.reftable_offset, true),
            ("snapshot table", self.snapshots_offset, self.snapshots != 0),
        ];
        for (what, offset, used) in tables {
            if used && (offset % cluster != 0 || offset > i64::MAX as u64) {
                return corrupt(format!("its {what} cannot be at {offset:#x}"));
            }
        }
        if self.size > i64::MAX as u64 {
            return corrupt(format!("its disk would have {} bytes", self.size));
        }
        let limit = |what: &str, len: u64, most: u64| {
            let why = format!("its {what} would have {len} bytes, and {most} are the most");
            Err(Error::new(ErrorKind::Limit, format!("cannot open '{name}'"), why))
        };
        if u64::from(self.l1_size) * 8 > MAX_L1 {
            return limit("L1 table", u64::from(self.l1_size) * 8, MAX_L1);
        }
        let reftable = u64::from(self.reftable_clusters) * cluster;
        if reftable > MAX_REFTABLE {
            return limit("refcount table", reftable, MAX_REFTABLE);
        }
        if self.size.div_ceil(self.l2_span()) > u64::from(self.l1_size) {
            let too_big = self.size.div_ceil(self.l2_span()) > MAX_L1 / 8;
            return corrupt(if too_big { "Image is too big" } else { "L1 table is too small" }.to_owned());
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return corrupt("its clusters are too small for extended L2 entries".to_owned());
        }
        let aligned = |&(at, len): &(u64, u64)| at != 0 && at % cluster == 0 && at.checked_add(len).is_some();
        match self.crypt {
            CRYPT_NONE | CRYPT_AES => {}
            CRYPT_LUKS if self.crypt_area().as_ref().is_some_and(aligned) => {}
            CRYPT_LUKS => return corrupt(NO_CRYPT_HEADER.to_owned()),
            other => {
                let why = format!("it is encrypted by method {other}; 1 (AES) and 2 (LUKS) are known");
                return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
            }
        }
        if self.crypt != CRYPT_NONE && self.has_data_file() && self.autoclear & DATA_FILE_RAW != 0 {
            return corrupt("it says that its data file is raw, and that it is encrypted".to_owned());
        }
        if self.snapshots > 65536 {
            return corrupt(format!("it would have {} snapshots", self.snapshots));
        }
        Ok(())
    }

    /// Names of the features of `bits`, out of the image's own table or by number.
    fn feature_names(&self, kind: u8, bits: u64) -> String {
        let table = self.extension(EXT_FEATURES).unwrap_or_default();
        let mut unnamed = bits;
        let mut names = Vec::new();
        // The last name may be cut off.
        for entry in table.chunks(48).filter(|e| e.len() > 2 && e[0] == kind && e[1] < 64) {
            let bit = 1 << entry[1];
            let text = entry[2..].split(|&b| b == 0).next().unwrap_or_default();
            // It goes to a terminal.
            let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
            if unnamed & bit != 0 && !text.is_empty() {
                unnamed &= !bit;
                names.push(text);
            }
        }
        if unnamed != 0 {
            names.push(format!("Unknown incompatible feature: {unnamed:x}"));
        }
        names.join(", ")
    }

    /// The table that names features for those who do not know them.
    pub fn feature_table() -> Vec<u8> {
        let mut table = Vec::with_capacity(FEATURES.len() * 48);
        for (kind, bit, name) in FEATURES {
            table.extend([kind, bit]);
            table.extend(name.as_bytes());
            table.resize(table.len().next_multiple_of(48), 0);
        }
        table
    }

    /// The first bytes of the first cluster. If there is no room for all, the table of feature names is left out.
    pub fn encode(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut b = Vec::with_capacity(1024);
        for field in [MAGIC, self.version] {
            b.extend(field.to_be_bytes());
        }
        b.extend([0; 12]);
        b.extend(self.cluster_bits.to_be_bytes());
        b.extend(self.size.to_be_bytes());
        b.extend(self.crypt.to_be_bytes());
        b.extend(self.l1_size.to_be_bytes());
        b.extend(self.l1_offset.to_be_bytes());
        b.extend(self.reftable_offset.to_be_bytes());
        b.extend(self.reftable_clusters.to_be_bytes());
        b.extend(self.snapshots.to_be_bytes());
        b.extend(self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            for field in [self.incompatible, self.compatible, self.autoclear] {
                b.extend(field.to_be_bytes());
            }
            b.extend(self.refcount_order.to_be_bytes());
            let length = self.length.max(OUR_LEN);
            b.extend(length.to_be_bytes());
            b.push(u8::from(self.compression == Compression::Zstd));
            b.extend(&self.rest);
            b.resize(length as usize, 0);
        }
        for extension in &self.extensions {
            b.extend(extension.kind.to_be_bytes());
            b.extend((extension.data.len() as u32).to_be_bytes());
            b.extend(&extension.data);
            b.resize(b.len().next_multiple_of(8), 0);
        }
        if self.leaks {
            b.extend(EXT_LEAKS.to_be_bytes());
            b.extend([0; 4]);
        }
        b.extend([0; 8]);
        if let Some(backing) = &self.backing {
            let at = b.len() as u64;
            b[8..16].copy_from_slice(&at.to_be_bytes());
            b[16..20].copy_from_slice(&(backing.len() as u32).to_be_bytes());
            b.extend(backing.as_bytes());
        }
        // There should be room for [`EXT_LEAKS`] too.
        let crowded = (b.len() + 8) as u64 > self.cluster_size();
        if crowded && self.extension(EXT_FEATURES).is_some() {
            let mut smaller = self.clone();
            smaller.set_extension(EXT_FEATURES, None);
            return smaller.encode(name);
        }
        if b.len() as u64 > self.cluster_size() {
            let why = format!(
                "the header with the names of other files takes {} bytes, more than a cluster of {}: use shorter \
                 names or larger clusters",
                b.len(),
                self.cluster_size()
            );
            return Err(Error::new(ErrorKind::Invalid, format!("cannot write the header of '{name}'"), why));
        }
        Ok(b)
    }
}
