//! The header of a VDI file. Sources: VirtualBox's `VDICore.h`, QEMU's `block/vdi.c`; little endian.

use crate::format::guid::Guid;
use crate::{Error, ErrorKind};

/// Bytes of the header that are read and written: one sector, so that a change of it is never torn.
pub const LEN: usize = 512;
/// Where the signature is.
pub const SIGNATURE_AT: usize = 0x40;
/// The signature.
pub const SIGNATURE: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];
/// Table entry: the image below has the block; zeros if there is none.
pub const FREE: u32 = u32::MAX;
/// Table entry: the block reads as zeros.
pub const ZERO: u32 = u32::MAX - 1;
/// Blocks of one image at most: their table has 512 MiB.
const MAX_BLOCKS: u32 = 1 << 27;

/// What the image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dynamic,
    Static,
    Undo,
    Differencing,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dynamic => "dynamic",
            Kind::Static => "static",
            Kind::Undo => "undo",
            Kind::Differencing => "differencing",
        }
    }
}

/// A header that was checked.
#[derive(Clone, Debug)]
pub struct Header {
    /// As it was read; what is not below stays as it is.
    raw: [u8; LEN],
    pub kind: Kind,
    /// Bytes of the file where the table begins.
    pub table: u64,
    /// Bytes of the file where the blocks begin.
    pub data: u64,
    /// Bytes.
    pub disk_size: u64,
    /// Bytes.
    pub block_size: u64,
    /// Bytes before each block that are not the disk's.
    pub extra: u64,
    pub blocks: u32,
    /// Blocks that have space; it is taken in order.
    pub allocated: u32,
    pub uuid: Guid,
    /// Changes whenever the contents do.
    pub modified: Guid,
    pub parent: Guid,
    /// The parent's `modified` when this image was made.
    pub parent_modified: Guid,
}

fn le32(raw: &[u8; LEN], at: usize) -> u32 {
    u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn guid(raw: &[u8; LEN], at: usize) -> Guid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&raw[at..at + 16]);
    Guid(bytes)
}

/// True if a file that begins so is a VDI.
pub fn is_vdi(head: &[u8]) -> bool {
    head.get(SIGNATURE_AT..SIGNATURE_AT + 4) == Some(&SIGNATURE)
}

impl Header {
    /// Reads one of the file called `name`, which has `len` bytes.
    pub fn parse(raw: &[u8; LEN], name: &str, len: u64) -> Result<Self, Error> {
        let refuse = |kind, why: String| Err(Error::new(kind, format!("cannot open '{name}'"), why));
        let damaged = |why: String| Err(Error::corrupt(name, why));
        if !is_vdi(raw) {
            return refuse(ErrorKind::Format, "it is not a VDI image".into());
        }
        let (major, minor) = (le32(raw, 0x44) >> 16, le32(raw, 0x44) & 0xffff);
        if major != 1 {
            let why = format!("it is a VDI of version {major}.{minor}, and 1.x is what Plinth knows");
            return refuse(ErrorKind::Unsupported, why);
        }
        let kind = match le32(raw, 0x4c) {
            1 => Kind::Dynamic,
            2 => Kind::Static,
            3 => Kind::Undo,
            4 => Kind::Differencing,
            n => return damaged(format!("its type is {n}, and there are 1 to 4")),
        };
        let header = Self {
            kind,
            table: le32(raw, 0x154).into(),
            data: le32(raw, 0x158).into(),
            disk_size: u64::from(le32(raw, 0x174)) << 32 | u64::from(le32(raw, 0x170)),
            block_size: le32(raw, 0x178).into(),
            extra: le32(raw, 0x17c).into(),
            blocks: le32(raw, 0x180),
            allocated: le32(raw, 0x184),
            uuid: guid(raw, 0x188),
            modified: guid(raw, 0x198),
            parent: guid(raw, 0x1a8),
            parent_modified: guid(raw, 0x1b8),
            raw: *raw,
        };
        if le32(raw, 0x168) != 512 {
            return damaged(format!("its sectors have {} bytes, and 512 is what VDI has", le32(raw, 0x168)));
        }
        if !header.block_size.is_power_of_two() || !(4096..=256 << 20).contains(&header.block_size) {
            let why = format!(
                "its blocks have {} bytes, not a power of 2 from 4 KiB to 256 MiB",
                header.block_size
            );
            return damaged(why);
        }
        if !header.extra.is_multiple_of(512) || header.extra > 1 << 20 {
            return damaged(format!("there are {} bytes between its blocks", header.extra));
        }
        if header.blocks > MAX_BLOCKS {
            let why =
                format!("it has {} blocks, and Plinth opens images of {MAX_BLOCKS} at most", header.blocks);
            return refuse(ErrorKind::Limit, why);
        }
        if header.disk_size.div_ceil(header.block_size) > header.blocks.into() {
            let why = format!("{} blocks are not enough for {} bytes", header.blocks, header.disk_size);
            return damaged(why);
        }
        let table_end = header.table + u64::from(header.blocks) * 4;
        if header.table < LEN as u64
            || !(header.table | header.data).is_multiple_of(512)
            || table_end > header.data
        {
            let why = format!(
                "its table ({} blocks at byte {}) and its data (at byte {}) do not fit",
                header.blocks, header.table, header.data
            );
            return damaged(why);
        }
        if table_end > len {
            return damaged(format!("its table ends at byte {table_end}, and the file at byte {len}"));
        }
        if header.parent != Guid::NIL && kind == Kind::Static {
            return damaged("it is static and has a parent".into());
        }
        Ok(header)
    }

    /// A new one.
    pub fn new(kind: Kind, disk_size: u64, block_size: u64, blocks: u32, data: u64) -> Result<Self, Error> {
        let mut raw = [0; LEN];
        let text = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
        raw[..text.len()].copy_from_slice(text);
        raw[SIGNATURE_AT..SIGNATURE_AT + 4].copy_from_slice(&SIGNATURE);
        let mut put = |at: usize, v: u32| raw[at..at + 4].copy_from_slice(&v.to_le_bytes());
        put(0x44, 0x0001_0001);
        // Bytes of the header from here on.
        put(0x48, 0x190);
        put(0x168, 512);
        Ok(Self {
            raw,
            kind,
            table: TABLE_AT,
            data,
            disk_size,
            block_size,
            extra: 0,
            blocks,
            allocated: 0,
            uuid: Guid::random()?,
            modified: Guid::random()?,
            parent: Guid::NIL,
            parent_modified: Guid::NIL,
        })
    }

    /// As it is stored.
    pub fn bytes(&self) -> [u8; LEN] {
        let mut raw = self.raw;
        let mut put = |at: usize, v: u32| raw[at..at + 4].copy_from_slice(&v.to_le_bytes());
        put(
            0x4c,
            match self.kind {
                Kind::Dynamic => 1,
                Kind::Static => 2,
                Kind::Undo => 3,
                Kind::Differencing => 4,
            },
        );
        put(0x154, self.table as u32);
        put(0x158, self.data as u32);
        put(0x170, self.disk_size as u32);
        put(0x174, (self.disk_size >> 32) as u32);
        put(0x178, self.block_size as u32);
        put(0x17c, self.extra as u32);
        put(0x180, self.blocks);
        put(0x184, self.allocated);
        for (at, guid) in
            [(0x188, self.uuid), (0x198, self.modified), (0x1a8, self.parent), (0x1b8, self.parent_modified)]
        {
            raw[at..at + 16].copy_from_slice(&guid.0);
        }
        raw
    }

    /// Blocks that the file may have. While an image gets a larger table, it may have more than the disk.
    pub fn limit(&self) -> u32 {
        self.blocks.max(self.allocated.min(MAX_BLOCKS))
    }

    /// Bytes of the file from one block to the next.
    pub fn stride(&self) -> u64 {
        self.block_size + self.extra
    }

    /// Byte of the file where the data of the `n`th block in the file is.
    pub fn host(&self, n: u32) -> u64 {
        self.data + u64::from(n) * self.stride() + self.extra
    }

    /// Byte of the file where the first `n` blocks in the file end.
    pub fn end(&self, n: u32) -> u64 {
        self.data + u64::from(n) * self.stride()
    }
}

/// Where the table of a new image is, as VirtualBox has it.
pub const TABLE_AT: u64 = 1 << 20;
/// What the data of a new image begins at a multiple of.
pub const DATA_ALIGN: u64 = 1 << 20;

/// Blocks of a disk.
pub fn blocks_of(name: &str, disk_size: u64, block_size: u64) -> Result<u32, Error> {
    let blocks = disk_size.div_ceil(block_size);
    u32::try_from(blocks).ok().filter(|&b| b <= MAX_BLOCKS).ok_or_else(|| {
        let why = format!(
            "VDI images with blocks of {block_size} bytes have {} bytes at most; take larger blocks (block_size)",
            u64::from(MAX_BLOCKS) * block_size
        );
        Error::new(ErrorKind::Limit, format!("cannot make '{name}' {disk_size} bytes large"), why)
    })
}
