//! Numbers of the protocol, under its own names without the prefix `NBD_`.

#![allow(dead_code, reason = "the numbers of the protocol are listed whole")]

pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub const REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub const FLAG_NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
pub const REP_FLAG_ERROR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_FLAG_ERROR | 1;
pub const REP_ERR_POLICY: u32 = REP_FLAG_ERROR | 2;
pub const REP_ERR_INVALID: u32 = REP_FLAG_ERROR | 3;
pub const REP_ERR_TLS_REQD: u32 = REP_FLAG_ERROR | 5;
pub const REP_ERR_UNKNOWN: u32 = REP_FLAG_ERROR | 6;
pub const REP_ERR_TOO_BIG: u32 = REP_FLAG_ERROR | 9;
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_FLAG_ERROR | 10;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub const SEND_HAS_FLAGS: u16 = 1;
pub const SEND_READ_ONLY: u16 = 1 << 1;
pub const SEND_FLUSH: u16 = 1 << 2;
pub const SEND_FUA: u16 = 1 << 3;
pub const SEND_TRIM: u16 = 1 << 5;
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const SEND_DF: u16 = 1 << 7;
pub const SEND_CAN_MULTI_CONN: u16 = 1 << 8;
pub const SEND_CACHE: u16 = 1 << 10;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const CMD_FLAG_FUA: u16 = 1;
pub const CMD_FLAG_NO_HOLE: u16 = 2;
pub const CMD_FLAG_DF: u16 = 4;
pub const CMD_FLAG_REQ_ONE: u16 = 8;
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

pub const REPLY_FLAG_DONE: u16 = 1;
pub const REPLY_NONE: u16 = 0;
pub const REPLY_OFFSET_DATA: u16 = 1;
pub const REPLY_OFFSET_HOLE: u16 = 2;
pub const REPLY_BLOCK_STATUS: u16 = 5;
pub const REPLY_BLOCK_STATUS_EXT: u16 = 6;
pub const REPLY_ERROR: u16 = 1 << 15 | 1;
pub const REPLY_ERROR_OFFSET: u16 = 1 << 15 | 2;
pub const REPLY_ERROR_BIT: u16 = 1 << 15;

pub const STATE_HOLE: u32 = 1;
pub const STATE_ZERO: u32 = 2;
pub const STATE_DIRTY: u32 = 1;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ENOTSUP: u32 = 95;

/// Bytes of one read or write at most, as other servers have it.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Bytes of one option at most.
pub const MAX_OPTION: u32 = 64 << 10;
/// Bytes of a name at most.
pub const MAX_NAME: usize = 4096;

pub const BASE_ALLOCATION: &str = "base:allocation";
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
/// The metadata context that says how many layers down data is: 1 for the export's own.
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// Reads big-endian numbers and texts off the front of bytes.
pub struct Parser<'a>(pub &'a [u8]);

impl<'a> Parser<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A text with its length before it.
    pub fn text(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        if len > MAX_NAME {
            return None;
        }
        std::str::from_utf8(self.take(len)?).ok()
    }
}

/// A request as it comes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    /// Without extended headers, of 32 bits.
    pub len: u64,
}

/// Bytes of a request without its data.
pub const REQUEST_LEN: usize = 28;
/// The same, with extended headers.
pub const EXTENDED_REQUEST_LEN: usize = 32;

impl Request {
    /// `None` if these are not a request.
    pub fn parse(bytes: &[u8], extended: bool) -> Option<Self> {
        let mut p = Parser(bytes);
        if p.u32()? != if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return None;
        }
        let (flags, command, cookie, offset) = (p.u16()?, p.u16()?, p.u64()?, p.u64()?);
        let len = if extended { p.u64()? } else { p.u32()?.into() };
        Some(Self { flags, command, cookie, offset, len })
    }

    /// The bytes; `extended`: with a length of 64 bits.
    pub fn bytes(&self, extended: bool) -> Vec<u8> {
        let mut b = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC }.to_be_bytes().to_vec();
        b.extend(self.flags.to_be_bytes());
        b.extend(self.command.to_be_bytes());
        b.extend(self.cookie.to_be_bytes());
        b.extend(self.offset.to_be_bytes());
        if extended {
            b.extend(self.len.to_be_bytes());
        } else {
            // Whoever asks keeps to it.
            b.extend(u32::try_from(self.len).unwrap_or(u32::MAX).to_be_bytes());
        }
        b
    }
}
