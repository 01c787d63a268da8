//! The fixed parts at the beginning of a VHDX: identifier, headers and region tables (MS-VHDX, sections 2.2.1 to
//! 2.2.3); little endian.

use crate::format::guid::Guid;
use crate::graph::{IoBuf, IoData, NodeRef};
use crate::{Error, ErrorKind};

/// Everything begins at a multiple of it.
pub const MIB: u64 = 1 << 20;
/// Bytes of a header, and of what the log writes at once.
pub const SECTOR: usize = 4096;
/// What the file begins with.
pub const SIGNATURE: &[u8; 8] = b"vhdxfile";
/// Where the two headers are.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two region tables are.
pub const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table.
pub const REGION_TABLE: usize = 64 << 10;
/// Bytes of a log that Plinth looks through.
const MAX_LOG: u32 = 64 << 20;

const BAT: Guid =
    Guid([0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
const METADATA: Guid =
    Guid([0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);

/// `N` bytes at `at`; zeros beyond the end.
pub fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

/// CRC-32C of `bytes` with its own field, at byte 4, as zero.
pub fn checksum(bytes: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..4]), &[0; 4]);
    crc32c::crc32c_append(sum, &bytes[8..])
}

/// Writes the checksum into its field.
pub fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// One of the two headers.
#[derive(Clone, Debug)]
pub struct Header {
    pub sequence: u64,
    /// Changes when a file is first written after it was opened.
    pub file_write: Guid,
    /// Changes when what the disk holds first does.
    pub data_write: Guid,
    /// Of the log's entries that count; nil if it is empty.
    pub log: Guid,
    pub log_len: u32,
    pub log_at: u64,
    /// Which of the two it is.
    slot: usize,
}

impl Header {
    fn parse(bytes: &[u8], slot: usize) -> Option<Self> {
        let valid = bytes.starts_with(b"head") && checksum(bytes) == le32(bytes, 4) && le16(bytes, 66) == 1;
        valid.then(|| Self {
            sequence: le64(bytes, 8),
            file_write: Guid(take(bytes, 16)),
            data_write: Guid(take(bytes, 32)),
            log: Guid(take(bytes, 48)),
            log_len: le32(bytes, 68),
            log_at: le64(bytes, 72),
            slot,
        })
    }

    /// A first one.
    pub fn new(log_at: u64, log_len: u32) -> Result<Self, Error> {
        let (file_write, data_write) = (Guid::random()?, Guid::random()?);
        Ok(Self { sequence: 0, file_write, data_write, log: Guid::NIL, log_len, log_at, slot: 1 })
    }

    /// The one of the two that counts: the valid one with the higher sequence number.
    pub async fn read(file: &NodeRef) -> Result<Self, Error> {
        let name = &file.info().name;
        let mut best: Option<Self> = None;
        for (slot, at) in HEADERS.into_iter().enumerate() {
            let bytes = file.read(at, IoBuf::new(SECTOR)).await?;
            if let Some(header) = Self::parse(&bytes, slot)
                && best.as_ref().is_none_or(|b| b.sequence < header.sequence)
            {
                best = Some(header);
            }
        }
        let header = best.ok_or_else(|| Error::corrupt(name, "neither of its two headers is valid"))?;
        let aligned = header.log_at.is_multiple_of(MIB) && u64::from(header.log_len).is_multiple_of(MIB);
        if !aligned || header.log_at < MIB || header.log_len == 0 || header.log_at > i64::MAX as u64 {
            let why = format!("its log would have {} bytes at byte {}", header.log_len, header.log_at);
            return Err(Error::corrupt(name, why));
        }
        if header.log_len > MAX_LOG {
            let why = format!("its log has {} bytes, and Plinth reads {MAX_LOG} at most", header.log_len);
            return Err(Error::new(ErrorKind::Limit, format!("cannot open '{name}'"), why));
        }
        Ok(header)
    }

    /// Writes the next one, in the place of the one that does not count, durably.
    pub async fn write_next(&self, file: &NodeRef) -> Result<Self, Error> {
        let sequence = self.sequence.checked_add(1).ok_or_else(|| {
            let why = "its header has the last sequence number that there is: convert it to a new image";
            Error::corrupt(&file.info().name, why)
        })?;
        let next = Self { sequence, slot: 1 - self.slot, ..self.clone() };
        let mut bytes = IoBuf::zeroed(SECTOR);
        bytes[..4].copy_from_slice(b"head");
        bytes[8..16].copy_from_slice(&next.sequence.to_le_bytes());
        for (at, guid) in [(16, next.file_write), (32, next.data_write), (48, next.log)] {
            bytes[at..at + 16].copy_from_slice(&guid.0);
        }
        bytes[66..68].copy_from_slice(&1u16.to_le_bytes());
        bytes[68..72].copy_from_slice(&next.log_len.to_le_bytes());
        bytes[72..80].copy_from_slice(&next.log_at.to_le_bytes());
        seal(&mut bytes);
        file.write(HEADERS[next.slot], bytes.freeze()).await?;
        file.flush().await?;
        Ok(next)
    }
}

/// A part of the file with a purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub at: u64,
    pub len: u64,
}

impl Region {
    pub fn end(&self) -> u64 {
        self.at + self.len
    }
}

/// Both regions that there must be, and the bytes of the table that says where they are.
pub struct Regions {
    pub bat: Region,
    pub metadata: Region,
    bytes: Vec<u8>,
}

impl Regions {
    /// Reads the first valid table.
    pub async fn read(file: &NodeRef) -> Result<Self, Error> {
        let name = &file.info().name;
        for at in REGIONS {
            let bytes = file.read(at, IoBuf::new(REGION_TABLE)).await?;
            if bytes.starts_with(b"regi") && checksum(&bytes) == le32(&bytes, 4) {
                return Self::parse(&bytes, name);
            }
        }
        Err(Error::corrupt(name, "neither of its two region tables is valid"))
    }

    fn parse(bytes: &[u8], name: &str) -> Result<Self, Error> {
        let count = le32(bytes, 8) as usize;
        if count > 2047 {
            return Err(Error::corrupt(name, format!("its region table has {count} entries")));
        }
        let (mut bat, mut metadata) = (None, None);
        for entry in bytes[16..].chunks(32).take(count) {
            let region = Region { at: le64(entry, 16), len: le32(entry, 24).into() };
            let slot = match Guid(take(entry, 0)) {
                BAT => &mut bat,
                METADATA => &mut metadata,
                other if le32(entry, 28) & 1 != 0 => {
                    let why = format!("it needs a part of the format that Plinth does not know ({other})");
                    return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
                }
                _ => continue,
            };
            let aligned = region.at.is_multiple_of(MIB) && region.len.is_multiple_of(MIB);
            if !aligned || region.at < MIB || region.len == 0 || region.at > 1 << 60 || slot.is_some() {
                let why = format!("a region of {} bytes would be at byte {}", region.len, region.at);
                return Err(Error::corrupt(name, why));
            }
            *slot = Some(region);
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) if bat.end() <= metadata.at || metadata.end() <= bat.at => {
                Ok(Self { bat, metadata, bytes: bytes.to_vec() })
            }
            _ => Err(Error::corrupt(name, "its block table and its metadata are missing or overlap")),
        }
    }

    /// A new table.
    pub fn new(bat: Region, metadata: Region) -> Self {
        let mut bytes = vec![0; REGION_TABLE];
        bytes[..4].copy_from_slice(b"regi");
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        for (n, (guid, region)) in [(BAT, bat), (METADATA, metadata)].into_iter().enumerate() {
            let entry = &mut bytes[16 + n * 32..48 + n * 32];
            entry[..16].copy_from_slice(&guid.0);
            entry[16..24].copy_from_slice(&region.at.to_le_bytes());
            entry[24..28].copy_from_slice(&(region.len as u32).to_le_bytes());
            entry[28..32].copy_from_slice(&1u32.to_le_bytes());
        }
        seal(&mut bytes);
        Self { bat, metadata, bytes }
    }

    /// The table with the block table elsewhere.
    pub fn with_bat(&self, bat: Region) -> Self {
        let mut bytes = self.bytes.clone();
        for entry in bytes[16..].chunks_mut(32) {
            if entry[..16] == BAT.0 {
                entry[16..24].copy_from_slice(&bat.at.to_le_bytes());
                entry[24..28].copy_from_slice(&(bat.len as u32).to_le_bytes());
            }
        }
        seal(&mut bytes);
        Self { bat, metadata: self.metadata, bytes }
    }

    /// As it is stored.
    pub fn bytes(&self) -> IoData {
        IoData::copy_of(&self.bytes)
    }
}
