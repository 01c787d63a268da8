//! The log of a VHDX: copies of sectors of metadata that are about to be written in their places (MS-VHDX, section
//! 2.3).

use std::collections::{BTreeMap, HashMap};

use super::header::{Header, MIB, SECTOR, checksum, le32, le64, seal, take};
use crate::Error;
use crate::format::guid::Guid;
use crate::graph::{IoBuf, IoData, NodeRef, read_table};

const S: u64 = SECTOR as u64;
/// Bytes of an entry's header and of a descriptor.
const ENTRY: usize = 64;
const DESCRIPTOR: usize = 32;
/// Sectors that one entry of ours has at most: their descriptors are in one sector, and the entry does not
/// take more than half of the smallest log, so that the one before is still there when it is torn.
pub const MAX_SECTORS: usize = (SECTOR - ENTRY) / DESCRIPTOR;

/// What the log's entries that count want to be written, in order.
#[derive(Default)]
pub struct Replay {
    /// Ranges of zeros: first byte, length. Sectors lie over them.
    pub zeros: Vec<(u64, u64)>,
    /// Sectors by where they belong.
    pub sectors: BTreeMap<u64, IoData>,
    /// Bytes that the file has at least.
    pub file_len: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    sequence: u64,
    len: u64,
    tail: u64,
    flushed: u64,
    last: u64,
    descriptors: usize,
}

struct Log {
    bytes: Vec<u8>,
    guid: Guid,
    /// Bytes that may still be summed up: honest entries do not overlap.
    budget: u64,
}

/// Sectors that descriptors take up.
fn descriptor_sectors(count: usize) -> usize {
    (ENTRY + count * DESCRIPTOR).div_ceil(SECTOR)
}

impl Log {
    /// Bytes that may go around the end.
    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let at = (at % self.bytes.len() as u64) as usize;
        let first = len.min(self.bytes.len() - at);
        let mut out = self.bytes[at..at + first].to_vec();
        out.extend_from_slice(&self.bytes[..len - first]);
        out
    }

    fn entry(&mut self, at: u64) -> Option<Entry> {
        let head = self.get(at, ENTRY);
        if !head.starts_with(b"loge") || head[32..48] != self.guid.0 {
            return None;
        }
        let len = u64::from(le32(&head, 8));
        let entry = Entry {
            sequence: le64(&head, 16),
            len,
            tail: le32(&head, 12).into(),
            flushed: le64(&head, 48),
            last: le64(&head, 56),
            descriptors: le32(&head, 24) as usize,
        };
        let size = self.bytes.len() as u64;
        let fits = len.is_multiple_of(S)
            && len > 0
            && len <= size
            && entry.tail.is_multiple_of(S)
            && entry.tail < size;
        if !fits || entry.sequence == 0 || descriptor_sectors(entry.descriptors) as u64 * S > len {
            return None;
        }
        self.budget = self.budget.checked_sub(len)?;
        let bytes = self.get(at, len as usize);
        (checksum(&bytes) == le32(&head, 4) && self.is_whole(&entry, &bytes)).then_some(entry)
    }

    /// Every descriptor and sector belongs to this entry.
    fn is_whole(&self, entry: &Entry, bytes: &[u8]) -> bool {
        let mut data = descriptor_sectors(entry.descriptors) * SECTOR;
        for d in bytes[ENTRY..].chunks(DESCRIPTOR).take(entry.descriptors) {
            let aligned = le64(d, 16).is_multiple_of(S) && le64(d, 16) <= i64::MAX as u64;
            if le64(d, 24) != entry.sequence || !aligned {
                return false;
            }
            if d.starts_with(b"desc") {
                let Some(sector) = bytes.get(data..data + SECTOR) else { return false };
                let sequence = u64::from(le32(sector, 4)) << 32 | u64::from(le32(sector, SECTOR - 4));
                if !sector.starts_with(b"data") || sequence != entry.sequence {
                    return false;
                }
                data += SECTOR;
            } else if !d.starts_with(b"zero") || !le64(d, 8).is_multiple_of(S) {
                return false;
            }
        }
        true
    }

    fn replay(&self, at: u64, entry: &Entry, replay: &mut Replay) {
        let bytes = self.get(at, entry.len as usize);
        let mut data = descriptor_sectors(entry.descriptors) * SECTOR;
        for d in bytes[ENTRY..].chunks(DESCRIPTOR).take(entry.descriptors) {
            let to = le64(d, 16);
            if d.starts_with(b"desc") {
                let mut sector = IoBuf::copy_of(&bytes[data..data + SECTOR]);
                sector[..8].copy_from_slice(&d[8..16]);
                sector[SECTOR - 4..].copy_from_slice(&d[4..8]);
                replay.sectors.insert(to, sector.freeze());
                data += SECTOR;
            } else {
                let len = le64(d, 8).min(i64::MAX as u64 - to);
                let inside: Vec<u64> = replay.sectors.range(to..to + len).map(|s| *s.0).collect();
                inside.into_iter().for_each(|s| _ = replay.sectors.remove(&s));
                replay.zeros.push((to, len));
            }
        }
        replay.file_len = replay.file_len.max(entry.last);
    }
}

/// What the log of a file that was not closed wants; `None` if there is nothing.
pub async fn find(file: &NodeRef, header: &Header) -> Result<Option<Replay>, Error> {
    if header.log == Guid::NIL {
        return Ok(None);
    }
    let bytes = read_table(&**file, header.log_at, header.log_len as usize, "its log").await?.to_vec();
    let size = bytes.len() as u64;
    let mut log = Log { bytes, guid: header.log, budget: size * 4 };
    let entries: HashMap<u64, Entry> =
        (0..size).step_by(SECTOR).filter_map(|at| Some((at, log.entry(at)?))).collect();
    let mut heads: Vec<_> = entries.iter().map(|(&at, e)| (e.sequence, at)).collect();
    heads.sort_unstable_by(|a, b| b.cmp(a));
    // The newest whose sequence is whole. A torn one is not among the entries, so few are tried.
    for (_, head) in heads.into_iter().take(256) {
        let mut chain = Vec::new();
        let (mut at, end) = (entries[&head].tail, entries[&head]);
        while let Some(entry) = entries.get(&at) {
            let follows = |&(_, last): &(u64, Entry)| last.sequence.checked_add(1) == Some(entry.sequence);
            if !chain.last().is_none_or(follows) || entry.sequence > end.sequence {
                break;
            }
            chain.push((at, *entry));
            if at == head {
                let len = file.size();
                if len < end.flushed {
                    let why =
                        format!("the file has {len} bytes, and had {} when it was last written", end.flushed);
                    return Err(Error::corrupt(&file.info().name, why));
                }
                let mut replay = Replay::default();
                chain.iter().for_each(|(at, entry)| log.replay(*at, entry, &mut replay));
                return Ok(Some(replay));
            }
            at = (at + entry.len) % size;
        }
    }
    // Nothing was completely written since the log was begun.
    Ok(None)
}

impl Replay {
    /// Writes it all in its place, durably.
    pub async fn apply(&self, file: &NodeRef) -> Result<(), Error> {
        for &(at, len) in &self.zeros {
            file.write_zeroes(at, len, true).await?;
        }
        for (&at, sector) in &self.sectors {
            file.write(at, sector.clone()).await?;
        }
        if file.size() < self.file_len && self.file_len <= i64::MAX as u64 {
            file.write_zeroes(self.file_len - 1, 1, true).await?;
        }
        file.flush().await
    }
}

/// Where in the log the next entry goes, and its number.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    pub guid: Guid,
    at: u64,
    sequence: u64,
}

impl Writer {
    /// An empty log.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { guid: Guid::random()?, at: 0, sequence: 1 })
    }

    /// Writes an entry that counts alone: what was logged before must be durable in its place. `durable` are bytes
    /// of the file that a crash leaves there, `file_len` those that it should have. Not flushed.
    pub async fn write(
        &mut self,
        file: &NodeRef,
        header: &Header,
        sectors: &[(u64, IoData)],
        durable: u64,
        file_len: u64,
    ) -> Result<(), Error> {
        let len = (1 + sectors.len()) * SECTOR;
        let mut entry = IoBuf::zeroed(len);
        entry[..4].copy_from_slice(b"loge");
        entry[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&(self.at as u32).to_le_bytes());
        entry[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        entry[24..28].copy_from_slice(&(sectors.len() as u32).to_le_bytes());
        entry[32..48].copy_from_slice(&self.guid.0);
        entry[48..56].copy_from_slice(&(durable / MIB * MIB).to_le_bytes());
        entry[56..64].copy_from_slice(&(file_len / MIB * MIB).to_le_bytes());
        for (n, (to, bytes)) in sectors.iter().enumerate() {
            let d = &mut entry[ENTRY + n * DESCRIPTOR..ENTRY + (n + 1) * DESCRIPTOR];
            d[..4].copy_from_slice(b"desc");
            d[4..8].copy_from_slice(&take::<4>(bytes, SECTOR - 4));
            d[8..16].copy_from_slice(&take::<8>(bytes, 0));
            d[16..24].copy_from_slice(&to.to_le_bytes());
            d[24..32].copy_from_slice(&self.sequence.to_le_bytes());
            let s = &mut entry[(1 + n) * SECTOR..(2 + n) * SECTOR];
            s.copy_from_slice(bytes);
            s[..4].copy_from_slice(b"data");
            s[4..8].copy_from_slice(&((self.sequence >> 32) as u32).to_le_bytes());
            s[SECTOR - 4..].copy_from_slice(&(self.sequence as u32).to_le_bytes());
        }
        seal(&mut entry);
        let entry = entry.freeze();
        let first = (len as u64).min(u64::from(header.log_len) - self.at);
        file.write(header.log_at + self.at, entry.slice(..first as usize)).await?;
        if first < len as u64 {
            file.write(header.log_at, entry.slice(first as usize..)).await?;
        }
        self.at = (self.at + len as u64) % u64::from(header.log_len);
        self.sequence += 1;
        Ok(())
    }
}
