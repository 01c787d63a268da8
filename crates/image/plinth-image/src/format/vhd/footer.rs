//! The footer and the header of a VHD, and where it names its parent. Source: Microsoft's "Virtual Hard Disk Image
//! Format Specification", version 1.0; big endian.

use crate::format::guid::Guid;
use crate::{Error, ErrorKind, SECTOR};

/// Bytes of a footer.
pub const FOOTER: usize = 512;
/// Bytes of the header of a dynamic or differencing image.
pub const HEADER: usize = 1024;
const COOKIE: &[u8; 8] = b"conectix";
/// Cylinders, heads and sectors that geometry can say at most; larger disks say this.
const LARGEST: (u16, u8, u8) = (65535, 16, 255);
/// Bytes of the largest dynamic disk: the table's entries are sectors of the file in 32 bits.
pub const LARGEST_DYNAMIC: u64 = 2040 << 30;
/// Seconds from 1970 to the beginning of VHD's time, the year 2000.
const EPOCH: u64 = 946_684_800;

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        }
    }
}

/// A footer, which is also at the beginning of images that are not fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// As it was read; what is not below stays as it is.
    raw: [u8; FOOTER],
    pub kind: Kind,
    /// Where the header is.
    pub header: u64,
    pub current_size: u64,
    pub uuid: Guid,
}

/// The header of an image that is not fixed.
#[derive(Clone, Debug)]
pub struct Header {
    raw: [u8; HEADER],
    /// Byte of the file where the table begins.
    pub table: u64,
    pub entries: u32,
    /// Bytes.
    pub block_size: u64,
    pub parent: Guid,
    /// Seconds since 2000.
    pub parent_time: u32,
}

/// A place in the file where the parent is named.
#[derive(Clone, Copy, Debug)]
pub struct Locator {
    /// How the name is written.
    pub code: [u8; 4],
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn be64(b: &[u8], at: usize) -> u64 {
    u64::from(be32(b, at)) << 32 | u64::from(be32(b, at + 4))
}

fn guid(b: &[u8], at: usize) -> Guid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&b[at..at + 16]);
    Guid::from_text_order(bytes)
}

/// The checksum that is at `at` of `bytes`: the complement of the sum of all other bytes.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |b: &[u8]| b.iter().fold(0u32, |sum, &b| sum.wrapping_add(b.into()));
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

/// True if `bytes` begin as a footer does.
pub fn is_footer(bytes: &[u8]) -> bool {
    bytes.starts_with(COOKIE)
}

/// Cylinders, heads and sectors of a disk (the specification's appendix, "CHS calculation").
pub fn geometry(size: u64) -> (u16, u8, u8) {
    let max = u64::from(LARGEST.0) * u64::from(LARGEST.1) * u64::from(LARGEST.2);
    let total = size / SECTOR;
    if total >= max {
        return LARGEST;
    }
    if total > 65535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let mut sectors = 17;
    let mut tracks = total / sectors;
    let mut heads = tracks.div_ceil(1024);
    heads = heads.max(4);
    if tracks >= heads * 1024 || heads > 16 {
        (sectors, heads) = (31, 16);
        tracks = total / sectors;
    }
    if tracks >= heads * 1024 {
        (sectors, heads) = (63, 16);
        tracks = total / sectors;
    }
    ((tracks / heads) as u16, heads as u8, sectors as u8)
}

/// Bytes that a geometry says.
pub fn geometry_size((cylinders, heads, sectors): (u16, u8, u8)) -> u64 {
    u64::from(cylinders) * u64::from(heads) * u64::from(sectors) * SECTOR
}

/// The smallest size that a geometry can say exactly and is no smaller; `None` if it is too large for one.
pub fn rounded(size: u64) -> Option<u64> {
    let mut wish = size;
    // Geometries get finer than a hundred sectors for small disks and than two thousand for large ones.
    for _ in 0..100_000 {
        let geometry = geometry(wish);
        if geometry == LARGEST {
            return None;
        }
        if geometry_size(geometry) >= size {
            return Some(geometry_size(geometry));
        }
        wish += SECTOR;
    }
    None
}

impl Footer {
    /// Reads one, of 512 or 511 bytes, if it is one and its checksum is right.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if !is_footer(bytes) || bytes.len() < FOOTER - 1 {
            return None;
        }
        let mut raw = [0; FOOTER];
        let len = bytes.len().min(FOOTER);
        raw[..len].copy_from_slice(&bytes[..len]);
        if be32(&raw, 64) != checksum(&raw, 64) || be32(&raw, 12) >> 16 != 1 {
            return None;
        }
        let kind = match be32(&raw, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            _ => return None,
        };
        Some(Self { raw, kind, header: be64(&raw, 16), current_size: be64(&raw, 48), uuid: guid(&raw, 68) })
    }

    /// A new one; with `by_geometry`, Virtual PC's way to say the size.
    pub fn new(kind: Kind, size: u64, by_geometry: bool) -> Result<Self, Error> {
        let mut raw = [0; FOOTER];
        raw[..8].copy_from_slice(COOKIE);
        raw[8..12].copy_from_slice(&2u32.to_be_bytes());
        raw[12..16].copy_from_slice(&0x0001_0000u32.to_be_bytes());
        raw[24..28].copy_from_slice(&now().to_be_bytes());
        // The creator says to other programs which size counts.
        raw[28..32].copy_from_slice(if by_geometry { b"vpc " } else { b"win " });
        raw[32..36].copy_from_slice(&0x000a_0000u32.to_be_bytes());
        raw[36..40].copy_from_slice(b"Wi2k");
        raw[40..48].copy_from_slice(&size.to_be_bytes());
        let header = if kind == Kind::Fixed { u64::MAX } else { FOOTER as u64 };
        let mut footer = Self { raw, kind, header, current_size: size, uuid: Guid::random()? };
        footer.set_geometry(geometry(size));
        Ok(footer)
    }

    fn set_geometry(&mut self, (cylinders, heads, sectors): (u16, u8, u8)) {
        self.raw[56..58].copy_from_slice(&cylinders.to_be_bytes());
        self.raw[58..60].copy_from_slice(&[heads, sectors]);
    }

    /// As it is stored.
    pub fn bytes(&self) -> [u8; FOOTER] {
        let mut raw = self.raw;
        raw[16..24].copy_from_slice(&self.header.to_be_bytes());
        raw[48..56].copy_from_slice(&self.current_size.to_be_bytes());
        let kind: u32 = match self.kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        raw[60..64].copy_from_slice(&kind.to_be_bytes());
        raw[68..84].copy_from_slice(&self.uuid.text_order());
        let sum = checksum(&raw, 64);
        raw[64..68].copy_from_slice(&sum.to_be_bytes());
        raw
    }

    /// The program that made the image.
    pub fn creator(&self) -> [u8; 4] {
        [self.raw[28], self.raw[29], self.raw[30], self.raw[31]]
    }

    /// Seconds since 2000 when the image was made.
    pub fn time(&self) -> u32 {
        be32(&self.raw, 24)
    }

    /// Bytes of the disk. Virtual PC, and what imitates it, goes by the geometry; others by the current size, and
    /// so does everybody for disks that are too large for a geometry.
    pub fn disk_size(&self) -> u64 {
        const BY_GEOMETRY: [&[u8; 4]; 3] = [b"vpc ", b"vs  ", b"qemu"];
        let geometry = (u16::from_be_bytes([self.raw[56], self.raw[57]]), self.raw[58], self.raw[59]);
        let known = BY_GEOMETRY.iter().any(|c| **c == self.creator());
        if known && geometry != LARGEST && geometry_size(geometry) > 0 {
            return geometry_size(geometry);
        }
        self.current_size / SECTOR * SECTOR
    }

    /// Another size, which counts whatever the geometry says.
    pub fn resize(&mut self, size: u64) {
        self.current_size = size;
        self.set_geometry(geometry(size));
        if self.disk_size() != size {
            self.raw[28..32].copy_from_slice(b"win ");
        }
    }
}

fn now() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs().saturating_sub(EPOCH) as u32)
}

/// Where locators are in the header, and how long each is.
const LOCATORS: std::ops::Range<usize> = 576..768;
const LOCATOR: usize = 24;
/// Where the parent's name is in the header.
const NAME: std::ops::Range<usize> = 64..576;

impl Header {
    /// Reads one.
    pub fn parse(raw: &[u8; HEADER], name: &str) -> Result<Self, Error> {
        if !raw.starts_with(b"cxsparse") {
            return Err(Error::corrupt(name, "its header is not where the footer says"));
        }
        if be32(raw, 36) != checksum(raw, 36) {
            return Err(Error::corrupt(name, "the header's checksum is wrong"));
        }
        let header = Self {
            table: be64(raw, 16),
            entries: be32(raw, 28),
            block_size: be32(raw, 32).into(),
            parent: guid(raw, 40),
            parent_time: be32(raw, 56),
            raw: *raw,
        };
        if !header.block_size.is_power_of_two() || !(4096..=256 << 20).contains(&header.block_size) {
            let why = format!(
                "its blocks have {} bytes, not a power of 2 from 4 KiB to 256 MiB",
                header.block_size
            );
            return Err(Error::corrupt(name, why));
        }
        if header.entries > MAX_ENTRIES {
            let why =
                format!("it has {} blocks, and Plinth opens images of {MAX_ENTRIES} at most", header.entries);
            return Err(Error::new(ErrorKind::Limit, format!("cannot open '{name}'"), why));
        }
        if header.table < FOOTER as u64
            || !header.table.is_multiple_of(SECTOR)
            || header.table > i64::MAX as u64
        {
            return Err(Error::corrupt(name, format!("its table would be at byte {}", header.table)));
        }
        Ok(header)
    }

    /// A new one.
    pub fn new(table: u64, entries: u32, block_size: u64) -> Self {
        let mut raw = [0; HEADER];
        raw[..8].copy_from_slice(b"cxsparse");
        raw[8..16].fill(0xff);
        raw[24..28].copy_from_slice(&0x0001_0000u32.to_be_bytes());
        Self { raw, table, entries, block_size, parent: Guid::NIL, parent_time: 0 }
    }

    /// As it is stored.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut raw = self.raw;
        raw[16..24].copy_from_slice(&self.table.to_be_bytes());
        raw[28..32].copy_from_slice(&self.entries.to_be_bytes());
        raw[32..36].copy_from_slice(&(self.block_size as u32).to_be_bytes());
        raw[40..56].copy_from_slice(&self.parent.text_order());
        raw[56..60].copy_from_slice(&self.parent_time.to_be_bytes());
        let sum = checksum(&raw, 36);
        raw[36..40].copy_from_slice(&sum.to_be_bytes());
        raw
    }

    /// Bytes of the bitmap before each block.
    pub fn bitmap(&self) -> u64 {
        (self.block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Bytes of the table, with what belongs to its last sector.
    pub fn table_len(&self) -> u64 {
        (u64::from(self.entries) * 4).next_multiple_of(SECTOR)
    }

    /// Where the parent is named.
    pub fn locators(&self) -> impl Iterator<Item = Locator> {
        self.raw[LOCATORS].chunks(LOCATOR).map(|l| Locator {
            code: [l[0], l[1], l[2], l[3]],
            offset: be64(l, 16),
            len: be32(l, 8),
        })
    }

    /// The parent's name in the header itself.
    pub fn parent_name(&self) -> String {
        let units = self.raw[NAME].chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]]));
        let units: Vec<u16> = units.take_while(|&u| u != 0).collect();
        String::from_utf16_lossy(&units)
    }

    /// Names the parent: in the header, and by locators whose names are written elsewhere.
    pub fn set_parent(&mut self, name: &str, locators: &[Locator]) {
        self.raw[NAME].fill(0);
        self.raw[LOCATORS].fill(0);
        for (out, unit) in self.raw[NAME].chunks_mut(2).zip(name.encode_utf16().take(255)) {
            out.copy_from_slice(&unit.to_be_bytes());
        }
        for (out, locator) in self.raw[LOCATORS].chunks_mut(LOCATOR).zip(locators) {
            out[..4].copy_from_slice(&locator.code);
            // Microsoft's own programs have bytes here, where the specification says sectors.
            let space = u64::from(locator.len).next_multiple_of(SECTOR) as u32;
            out[4..8].copy_from_slice(&space.to_be_bytes());
            out[8..12].copy_from_slice(&locator.len.to_be_bytes());
            out[16..24].copy_from_slice(&locator.offset.to_be_bytes());
        }
    }
}

/// Blocks of one image at most.
pub const MAX_ENTRIES: u32 = 1 << 23;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_what_virtual_pc_makes_of_a_size() {
        // From images that Virtual PC and Hyper-V made.
        assert_eq!(geometry(0x0040_0000), (120, 4, 17));
        assert_eq!(geometry(0x0001_9800), (3, 4, 17));
        // Rounded down, as the specification has it.
        assert_eq!(geometry(127 << 30), (65278, 16, 255));
        assert_eq!(geometry(3 << 40), LARGEST);
        for size in [512, 1 << 20, 10 << 20, 5 << 30, 100 << 30] {
            let rounded = rounded(size).unwrap();
            assert!(rounded >= size && geometry_size(geometry(rounded)) == rounded);
        }
    }

    #[test]
    fn footers_read_back() {
        let footer = Footer::new(Kind::Dynamic, 1 << 30, false).unwrap();
        assert_eq!(Footer::parse(&footer.bytes()).unwrap().bytes(), footer.bytes());
        assert_eq!(footer.disk_size(), 1 << 30);
        // The last byte is always zero, and old images lack it.
        assert!(Footer::parse(&footer.bytes()[..511]).is_some());
        let mut bad = footer.bytes();
        bad[50] ^= 1;
        assert!(Footer::parse(&bad).is_none());
    }
}
