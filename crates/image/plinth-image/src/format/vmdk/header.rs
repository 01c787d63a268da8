//! Headers of extents that have tables.
//!
//! Sources: VMware, "Virtual Disk Format 5.0", sections "Hosted Sparse Extents", "ESX Server Sparse Extents" and
//! "Stream-Optimized Compressed Sparse Extents"; for seSparse, which VMware has not described, the field order of
//! QEMU's and libyal's documentation.

use super::sparse::MAX_DIRECTORY;
use crate::format::table::table_len;
use crate::{Error, ErrorKind, SECTOR};

/// Flags of hosted sparse extents.
pub const NEWLINES: u32 = 1;
pub const REDUNDANT: u32 = 1 << 1;
pub const ZERO_GRAINS: u32 = 1 << 2;
pub const COMPRESSED: u32 = 1 << 16;
pub const MARKERS: u32 = 1 << 17;
/// The directory's place is in a footer, at the file's end.
pub const AT_END: u64 = u64::MAX;
/// Entries of a grain table of a hosted sparse extent.
pub const ENTRIES: u32 = 512;
/// Grains of 64 KiB.
pub const GRAIN_SECTORS: u64 = 128;

fn le32(b: &[u8], at: usize) -> u32 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn le64(b: &[u8], at: usize) -> u64 {
    b.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

/// The header of a hosted sparse extent ("KDMV"). Offsets and sizes are in sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosted {
    pub version: u32,
    pub flags: u32,
    pub capacity: u64,
    pub grain: u64,
    pub descriptor: u64,
    pub descriptor_len: u64,
    pub entries: u32,
    pub redundant: u64,
    pub directory: u64,
    pub overhead: u64,
    pub unclean: bool,
    pub compression: u16,
}

impl Hosted {
    /// Where the mark of use is within the header.
    pub const UNCLEAN_AT: usize = 72;

    /// Reads a sector.
    ///
    /// # Errors
    /// It is not such a header, or says what cannot be.
    pub fn parse(name: &str, b: &[u8]) -> Result<Self, Error> {
        if b.get(..4) != Some(b"KDMV") || b.len() < 512 {
            return Err(Error::corrupt(name, "the header of the extent has no mark"));
        }
        let h = Self {
            version: le32(b, 4),
            flags: le32(b, 8),
            capacity: le64(b, 12),
            grain: le64(b, 20),
            descriptor: le64(b, 28),
            descriptor_len: le64(b, 36),
            entries: le32(b, 44),
            redundant: le64(b, 48),
            directory: le64(b, 56),
            overhead: le64(b, 64),
            unclean: b[Self::UNCLEAN_AT] != 0,
            compression: u16::from_le_bytes([b[77], b[78]]),
        };
        if !(1..=3).contains(&h.version) {
            let why = format!("its version is {}, and Plinth knows 1 to 3", h.version);
            return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
        }
        // A file that was sent as text is broken in ways that nobody can mend. But where more is wrong, its line ends
        // are the least of it.
        let text = h.flags & NEWLINES != 0 && b[73..77] != *b"\n \r\n";
        if text && h.capacity != 0 {
            h.check(name)?;
        }
        if text {
            return Err(Error::corrupt(name, "line ends in it were changed, as by a transfer as text"));
        }
        if h.compression > 1 || (h.compression == 1) != (h.flags & COMPRESSED != 0) {
            // QEMU goes by the algorithm alone, and so do we where the flag is missing.
            if h.compression != 1 {
                let why = format!("its compression algorithm {} is not known", h.compression);
                return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
            }
        }
        Ok(h)
    }

    /// Refuses a geometry that no honest extent has.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, name: &str) -> Result<(), Error> {
        // A grain of a compressed extent is unpacked in memory.
        let most = if self.compression == 1 { 4096 } else { 1 << 21 };
        if !self.grain.is_power_of_two() || self.grain > most {
            let why = format!("its grains have {} sectors, which must be a power of two", self.grain);
            return Err(Error::corrupt(name, format!("{why} of at most {most}")));
        }
        // Of what is wrong, the directory's size says the most.
        let count = self.capacity.div_ceil(self.grain).div_ceil(self.entries.clamp(1, ENTRIES).into());
        table_len(name, "grain directory", count, 4, MAX_DIRECTORY)?;
        if self.entries == 0 || self.entries > ENTRIES || !self.entries.is_multiple_of(128) {
            let why = format!("its grain tables have {} entries, not 512", self.entries);
            return Err(Error::corrupt(name, why));
        }
        if self.capacity == 0 || self.capacity > i64::MAX as u64 / SECTOR {
            return Err(Error::corrupt(name, format!("its {} sectors cannot be", self.capacity)));
        }
        Ok(())
    }

    /// The sector.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; 512];
        b[..4].copy_from_slice(b"KDMV");
        b[4..8].copy_from_slice(&self.version.to_le_bytes());
        b[8..12].copy_from_slice(&self.flags.to_le_bytes());
        let words = [(12, self.capacity), (20, self.grain), (28, self.descriptor), (36, self.descriptor_len)];
        for (at, word) in words {
            b[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        b[44..48].copy_from_slice(&self.entries.to_le_bytes());
        for (at, word) in [(48, self.redundant), (56, self.directory), (64, self.overhead)] {
            b[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        b[Self::UNCLEAN_AT] = self.unclean.into();
        b[73..77].copy_from_slice(b"\n \r\n");
        b[77..79].copy_from_slice(&self.compression.to_le_bytes());
        b
    }
}

/// How the tables of an extent are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Words of four bytes: sectors of the file; 1 means zeros if the extent has that.
    Hosted { zero_grains: bool },
    /// Words of eight bytes, with what they are in the upper four bits. Sectors: first grain table, first grain.
    SeSparse { tables: u64, grains: u64 },
}

/// The geometry of any extent with tables; in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub tables: Tables,
    pub capacity: u64,
    pub grain: u64,
    /// Entries of a table.
    pub entries: u64,
    pub directory: u64,
    pub redundant: Option<u64>,
    /// Grains lie behind this.
    pub overhead: u64,
    /// It was not closed.
    pub unclean: bool,
}

impl Geometry {
    /// Bytes of a table's entry.
    pub fn entry(&self) -> u64 {
        match self.tables {
            Tables::Hosted { .. } => 4,
            Tables::SeSparse { .. } => 8,
        }
    }

    /// Bytes of the disk that one table is for.
    pub fn span(&self) -> u64 {
        self.grain * self.entries
    }

    /// Of a hosted sparse extent.
    ///
    /// # Errors
    /// What is wrong in the header.
    pub fn hosted(name: &str, h: &Hosted) -> Result<Self, Error> {
        h.check(name)?;
        let bytes = |sectors: u64, what: &str| {
            sectors.checked_mul(SECTOR).filter(|&b| b <= i64::MAX as u64).ok_or_else(|| {
                Error::corrupt(name, format!("its {what} would be at sector {sectors}, beyond any file"))
            })
        };
        let redundant = (h.flags & REDUNDANT != 0 && h.redundant != 0).then_some(h.redundant);
        Ok(Self {
            tables: Tables::Hosted { zero_grains: h.flags & ZERO_GRAINS != 0 },
            capacity: h.capacity * SECTOR,
            grain: h.grain * SECTOR,
            entries: h.entries.into(),
            directory: bytes(h.directory, "grain directory")?,
            redundant: redundant.map(|r| bytes(r, "redundant grain directory")).transpose()?,
            overhead: bytes(h.overhead, "first grain")?,
            unclean: h.unclean,
        })
    }

    /// Of an ESXi redo log ("COWD").
    ///
    /// # Errors
    /// It is not such a header, or says what cannot be.
    pub fn cowd(name: &str, b: &[u8]) -> Result<Self, Error> {
        if b.get(..4) != Some(b"COWD") || b.len() < 2048 {
            return Err(Error::corrupt(name, "the header of the extent has no mark"));
        }
        if le32(b, 4) != 1 {
            let why = format!("its version is {}, and Plinth knows 1", le32(b, 4));
            return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
        }
        let (capacity, grain) = (u64::from(le32(b, 12)), u64::from(le32(b, 16)));
        if !grain.is_power_of_two() || grain > 1 << 21 || capacity == 0 {
            let why = format!("{capacity} sectors in grains of {grain} cannot be");
            return Err(Error::corrupt(name, why));
        }
        Ok(Self {
            tables: Tables::Hosted { zero_grains: false },
            capacity: capacity * SECTOR,
            grain: grain * SECTOR,
            entries: 4096,
            directory: u64::from(le32(b, 20)) * SECTOR,
            redundant: None,
            overhead: 2048,
            unclean: le32(b, 1648) != 0,
        })
    }

    /// Of a seSparse extent, whose first sector is `b`; and where the sector is that changes.
    ///
    /// # Errors
    /// It is not such a header, or says what cannot be.
    pub fn sesparse(name: &str, b: &[u8]) -> Result<(Self, u64), Error> {
        const MAGIC: u64 = 0xcafe_babe;
        const VERSION: u64 = 0x2_0000_0001;
        if b.len() < 512 || le64(b, 0) != MAGIC {
            return Err(Error::corrupt(name, "the header of the extent has no mark"));
        }
        let unsupported =
            |why: String| Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
        if le64(b, 8) != VERSION {
            return unsupported(format!("its version {:#x} is not known", le64(b, 8)));
        }
        let (capacity, grain, table) = (le64(b, 16), le64(b, 24), le64(b, 32));
        if le64(b, 40) != 0 {
            return unsupported(format!("its flags {:#x} are not known", le64(b, 40)));
        }
        if grain != 8 || table != 64 {
            return unsupported(format!(
                "it has grains of {grain} and tables of {table} sectors, not 8 and 64"
            ));
        }
        let at = |field: usize| {
            let sectors = le64(b, field);
            sectors.checked_mul(SECTOR).filter(|&n| n <= i64::MAX as u64).map(|_| sectors).ok_or_else(|| {
                Error::corrupt(name, format!("it has something at sector {sectors}, beyond any file"))
            })
        };
        let (volatile, directory) = (at(80)?, at(128)?);
        let (tables, grains) = (at(144)?, at(192)?);
        if capacity == 0 || capacity > i64::MAX as u64 / SECTOR {
            return Err(Error::corrupt(name, format!("its {capacity} sectors cannot be")));
        }
        let g = Self {
            tables: Tables::SeSparse { tables, grains },
            capacity: capacity * SECTOR,
            grain: grain * SECTOR,
            entries: table * SECTOR / 8,
            directory: directory * SECTOR,
            redundant: None,
            overhead: 0,
            unclean: false,
        };
        Ok((g, volatile * SECTOR))
    }

    /// Refuses a seSparse extent whose journal has to be replayed, by its volatile header.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] then; [`ErrorKind::Corrupt`] if it is not such a header.
    pub fn sesparse_journal(name: &str, b: &[u8]) -> Result<(), Error> {
        const MAGIC: u64 = 0xcafe_cafe;
        if b.len() < 512 || le64(b, 0) != MAGIC {
            return Err(Error::corrupt(name, "the volatile header of the extent has no mark"));
        }
        if le64(b, 24) != 0 {
            let why = "it was not closed, and its journal holds changes that only ESXi can replay: let ESXi open it";
            return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_was_written() {
        let h = Hosted {
            version: 1,
            flags: NEWLINES | REDUNDANT,
            capacity: 8192,
            grain: 128,
            descriptor: 1,
            descriptor_len: 20,
            entries: 512,
            redundant: 21,
            directory: 26,
            overhead: 128,
            unclean: true,
            compression: 0,
        };
        let mut b = h.encode();
        assert_eq!(Hosted::parse("x", &b).unwrap(), h);
        let g = Geometry::hosted("x", &h).unwrap();
        assert_eq!((g.capacity, g.grain, g.redundant, g.span()), (4 << 20, 65536, Some(21 * 512), 32 << 20));
        b[75] = b'\n';
        assert_eq!(Hosted::parse("x", &b).unwrap_err().kind, ErrorKind::Corrupt);
        for (grain, entries, capacity) in
            [(3, 512, 1), (0, 512, 1), (1 << 40, 512, 1), (8, 0, 1), (8, 512, u64::MAX)]
        {
            assert!(Hosted { grain, entries, capacity, ..h.clone() }.check("x").is_err());
        }
    }
}
