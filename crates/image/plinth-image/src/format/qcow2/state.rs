//! Machine state, which snapshots keep behind the end of the disk: in the first clusters that an L2 table describes
//! none of whose entries are the disk's (QEMU's `vm_state_offset`).

use super::Core;
use super::header;
use super::map::{Entry, Kind, View};
use crate::graph::{IoBuf, IoData};
use crate::{Error, ErrorKind};

impl Core {
    /// Bytes that one L2 table describes.
    fn span(&self) -> u64 {
        self.l2_entries() << self.bits
    }

    /// The first byte of machine state behind a disk of `size` bytes.
    fn state_at(&self, size: u64) -> Option<u64> {
        size.checked_next_multiple_of(self.span()).filter(|&at| at <= i64::MAX as u64)
    }

    fn no_room(&self) -> Error {
        let doing = format!("cannot keep machine state in '{}'", self.info.name);
        Error::new(ErrorKind::Limit, doing, "it would be too far behind the disk: larger clusters help")
    }

    /// Writes machine state for the next snapshot; the caller holds the whole disk alone.
    pub async fn write_state(&self, offset: u64, data: IoData) -> Result<(), Error> {
        self.check_key()?;
        self.begin_change(0, 0).await?;
        let start = self.state_at(self.size.get()).and_then(|at| at.checked_add(offset));
        let end = start.and_then(|s| s.checked_add(data.len() as u64)).filter(|&e| e <= i64::MAX as u64);
        let (Some(start), Some(end)) = (start, end) else { return Err(self.no_room()) };
        let (need, have) = (end.div_ceil(self.span()), self.l1.borrow().entries.len() as u64);
        if need * 8 > header::MAX_L1 {
            return Err(self.no_room());
        }
        if need > have {
            // State comes in many pieces: the table is not made anew for each.
            self.reach_entries((need * 3 / 2).min(header::MAX_L1 / 8)).await?;
        }
        let mut at = start;
        while at < end {
            let whole = end - end % self.cluster;
            let edge = (at / self.cluster + 1) << self.bits;
            let to = if at.is_multiple_of(self.cluster) && whole > at { whole } else { edge.min(end) };
            let part = data.slice((at - start) as usize..(to - start) as usize);
            let cluster = at >> self.bits;
            if !(part.len() as u64).is_multiple_of(self.cluster)
                && self.entries(cluster, 1).await?[0] == Entry::default()
            {
                // What the image below has so far behind the disk is no state.
                let mut all = IoBuf::zeroed(self.cluster as usize);
                all[(at % self.cluster) as usize..][..part.len()].copy_from_slice(&part);
                self.write_locked(cluster << self.bits, all.freeze()).await?;
            } else {
                self.write_locked(at, part).await?;
            }
            at = to;
        }
        Ok(())
    }

    /// Reads machine state from the tables of a snapshot of a disk of `size` bytes.
    pub async fn read_state(
        &self,
        table: &[u64],
        size: u64,
        offset: u64,
        buf: IoBuf,
    ) -> Result<IoBuf, Error> {
        let Some(mut at) = self.state_at(size).and_then(|at| at.checked_add(offset)) else {
            return Err(self.no_room());
        };
        let (mut rest, mut parts) = (buf, Vec::new());
        while !rest.is_empty() {
            let run = self.lookup(View::Table(table), at, rest.len() as u64).await?;
            let after = rest.split_off(run.len as usize);
            if run.kind == Kind::Unallocated {
                rest.fill(0);
            } else {
                rest = self.read_view(View::Table(table), at, rest).await?;
            }
            parts.push(rest);
            rest = after;
            at += run.len;
        }
        Ok(crate::graph::joined(parts))
    }

    /// Forgets the machine state of the disk; what snapshots have of it stays. The caller holds the disk alone.
    pub async fn drop_state(&self) -> Result<(), Error> {
        let first = self.size.get().div_ceil(self.span()) as usize;
        let state: Vec<u64> = self.l1.borrow().entries.get(first..).unwrap_or_default().to_vec();
        if state.iter().all(|&e| e == 0) {
            return Ok(());
        }
        for (n, _) in state.iter().enumerate().filter(|(_, e)| **e != 0) {
            self.l1.borrow_mut().set(first + n, 0);
        }
        self.changed();
        // References are given up when no table in the file has them.
        self.commit_with(true).await?;
        self.adjust(&state, false).await
    }
}
