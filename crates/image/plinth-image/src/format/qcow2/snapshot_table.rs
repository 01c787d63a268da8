//! The table of the snapshots inside of an image (qcow2 specification, "Snapshots").

use super::Core;
use super::alloc::Freed;
use super::header::{self, Header};
use crate::format::Snapshot;
use crate::graph::{IoBuf, IoData, Node, read_table};
use crate::{Error, ErrorKind};

/// Bytes of the table at most (QEMU's limit).
const MAX_TABLE: u64 = 64 << 20;
/// Bytes of an entry before its variable parts.
const FIXED: usize = 40;
/// Bytes of an entry's additional data that are known: sizes, and the instruction count.
const EXTRA: usize = 24;
/// Bytes of additional data that version 3 demands.
const EXTRA_V3: usize = 16;
/// Bytes of additional data at most (QEMU's limit).
const MAX_EXTRA: usize = 1024;

/// One snapshot, as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub l1_offset: u64,
    pub l1_size: u32,
    pub info: Snapshot,
    /// The ID and the name, where they are not UTF-8.
    raw: Option<Box<(Vec<u8>, Vec<u8>)>>,
    /// Additional data behind what we know.
    extra: Vec<u8>,
}

impl Entry {
    /// A snapshot with an L1 table at `l1_offset` that has `l1_size` entries.
    pub fn new(l1_offset: u64, l1_size: u32, info: Snapshot) -> Self {
        Self { l1_offset, l1_size, info, raw: None, extra: Vec::new() }
    }

    fn names(&self) -> (&[u8], &[u8]) {
        match &self.raw {
            Some(raw) => (&raw.0, &raw.1),
            None => (self.info.id.as_bytes(), self.info.name.as_bytes()),
        }
    }
}

/// What is wrong with a table in a way that a repair can mend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Entries of an image of version 3 without their sizes; a table that is read all the same.
    incomplete: Vec<usize>,
    /// Entries with more additional data than is allowed, and how much.
    long: Vec<(usize, usize)>,
    /// Entries behind the longest table that is allowed.
    behind: u32,
}

impl Damage {
    /// Why such an image is not opened.
    pub fn refusal(&self) -> Option<String> {
        let mend = "`plinth disk check --repair all` removes";
        match self.long.first() {
            Some((n, len)) => Some(format!(
                "entry {n} of its snapshot table has {len} bytes of additional data ({MAX_EXTRA} at most); {mend} what is \
                 too much"
            )),
            None if self.behind > 0 => Some(format!(
                "its snapshot table is too long ({} MiB at most); {mend} the {} snapshots that are behind it",
                MAX_TABLE >> 20,
                self.behind
            )),
            None => None,
        }
    }

    /// What a check says, one line for each contradiction.
    pub fn findings(&self) -> Vec<String> {
        let incomplete = self.incomplete.iter().map(|n| format!("{INCOMPLETE} {n}"));
        let long = self.long.iter().map(|(n, len)| {
            format!("entry {n} of the snapshot table has {len} bytes of additional data, and {MAX_EXTRA} are allowed")
        });
        let behind = format!("the snapshot table is too long: {} snapshots are behind it", self.behind);
        incomplete.chain(long).chain((self.behind > 0).then_some(behind)).collect()
    }
}

/// How the finding of an entry begins that lacks what version 3 demands.
pub const INCOMPLETE: &str = "the sizes are missing in the snapshot table's entry";

/// A snapshot table, as the file has it.
pub struct Table {
    pub entries: Vec<Entry>,
    /// Bytes in the file.
    pub len: u64,
    pub damage: Damage,
}

/// Reads the snapshot table.
pub async fn read(file: &dyn Node, header: &Header) -> Result<Table, Error> {
    let what = "the snapshot table";
    let mut at = header.snapshots_offset;
    let mut table = Table { entries: Vec::new(), len: 0, damage: Damage::default() };
    // Bytes of the entries without what is too much of them.
    let (mut kept, mut skipped) = (0, 0);
    for n in 0..header.snapshots {
        let fixed = read_table(file, at, FIXED, what).await?;
        let len16 = |at: usize| usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let (id_len, name_len, extra_len) = (len16(12), len16(14), header::be32(&fixed, 36) as usize);
        let known = extra_len.min(MAX_EXTRA);
        kept += ((FIXED + known + id_len + name_len) as u64).next_multiple_of(8);
        // Nobody finds entries again behind so much that cannot be true.
        skipped += (extra_len - known) as u64;
        if kept > MAX_TABLE || skipped > MAX_TABLE {
            table.damage.behind = header.snapshots - n;
            break;
        }
        if extra_len > MAX_EXTRA {
            table.damage.long.push((n as usize, extra_len));
        } else if extra_len < EXTRA_V3 && header.version >= 3 {
            table.damage.incomplete.push(n as usize);
        }
        let extra = read_table(file, at + FIXED as u64, known, what).await?;
        let names = at + (FIXED + extra_len) as u64;
        let len = id_len + name_len;
        let names = match (extra_len > MAX_EXTRA).then(|| file.size().saturating_sub(names)) {
            // Nobody knows where they really are, and they may be beyond the file's end.
            Some(there) if there < len as u64 => IoBuf::zeroed(len),
            _ => read_table(file, names, len, what).await?,
        };
        // Whoever reads the table looks whether it can be so long: the rest of the image is good without it.
        let l1_size = header::be32(&fixed, 8);
        let (id, name) = names.split_at(id_len);
        let raw = std::str::from_utf8(id).and(std::str::from_utf8(name)).is_err();
        let vm_state = if known >= 8 { header::be64(&extra, 0) } else { header::be32(&fixed, 32).into() };
        let icount = (known >= EXTRA).then(|| header::be64(&extra, 16)).filter(|&i| i != u64::MAX);
        table.entries.push(Entry {
            l1_offset: header::be64(&fixed, 0),
            l1_size,
            info: Snapshot {
                id: text(id),
                name: text(name),
                vm_state_size: vm_state,
                date: (header::be32(&fixed, 16).into(), header::be32(&fixed, 20)),
                vm_clock: header::be64(&fixed, 24),
                icount,
                disk_size: if known >= EXTRA_V3 { header::be64(&extra, 8) } else { header.size },
            },
            raw: raw.then(|| Box::new((id.to_vec(), name.to_vec()))),
            extra: extra.get(EXTRA..).unwrap_or_default().to_vec(),
        });
        at += ((FIXED + extra_len + id_len + name_len) as u64).next_multiple_of(8);
    }
    // Nothing of it is behind the file's end, whatever its last entry says.
    table.len = at.min(file.size()).saturating_sub(header.snapshots_offset);
    Ok(table)
}

/// Text with as many bytes as it has in the file.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|&b| if b.is_ascii() { b.into() } else { '?' }).collect(),
    }
}

fn encode(snapshots: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for s in snapshots {
        let i = &s.info;
        let (id, name) = s.names();
        out.extend(s.l1_offset.to_be_bytes());
        out.extend(s.l1_size.to_be_bytes());
        out.extend((id.len() as u16).to_be_bytes());
        out.extend((name.len() as u16).to_be_bytes());
        out.extend((i.date.0 as u32).to_be_bytes());
        out.extend(i.date.1.to_be_bytes());
        out.extend(i.vm_clock.to_be_bytes());
        out.extend(u32::try_from(i.vm_state_size).unwrap_or(0).to_be_bytes());
        out.extend(((EXTRA + s.extra.len()) as u32).to_be_bytes());
        out.extend(i.vm_state_size.to_be_bytes());
        out.extend(i.disk_size.to_be_bytes());
        out.extend(i.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend(&s.extra);
        out.extend(id);
        out.extend(name);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

impl Core {
    /// Writes another snapshot table, and makes it the valid one.
    pub async fn switch_snapshots(&self, snapshots: Vec<Entry>) -> Result<(), Error> {
        let bytes = encode(&snapshots);
        if bytes.len() as u64 > MAX_TABLE {
            let doing = format!("cannot write the snapshot table of '{}'", self.info.name);
            return Err(Error::new(ErrorKind::Limit, doing, "there are too many snapshots"));
        }
        let mut offset = 0;
        if !bytes.is_empty() {
            let space = self.allocate_row((bytes.len() as u64).div_ceil(self.cluster)).await?;
            offset = space.offset;
            if let Err(e) = self.file.write(offset, IoData::copy_of(&bytes)).await {
                space.give_back();
                return Err(e);
            }
            // If anything fails from here on, all is counted anew.
            space.keep();
        }
        self.commit_with(true).await?;
        let old = (self.header.borrow().snapshots_offset, self.snapshot_table_len.get());
        let count = snapshots.len() as u32;
        self.change_header(|h| {
            h.snapshots = count;
            h.snapshots_offset = offset;
        })
        .await?;
        *self.snapshots.borrow_mut() = snapshots;
        self.guard.forget();
        self.snapshot_table_len.set(bytes.len() as u64);
        self.file.flush().await?;
        if old.1 > 0 {
            let clusters = old.1.div_ceil(self.cluster);
            self.alloc.pending.borrow_mut().push(Freed::table(old.0 >> self.bits, clusters));
        }
        Ok(())
    }

    /// Writes the table anew, without what is too much and with what was missing.
    pub async fn mend_snapshots(&self) -> Result<(), Error> {
        let all = self.snapshots.borrow().clone();
        self.switch_snapshots(all).await?;
        *self.snapshot_damage.borrow_mut() = Damage::default();
        self.changed();
        self.commit_with(true).await
    }
}
