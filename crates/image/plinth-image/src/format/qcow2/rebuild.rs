//! Counts written anew.

use std::collections::BTreeSet;

use super::counter::{CHUNK, Counter};
use super::{Core, header, refcount};
use crate::format::Progress;
use crate::graph::{IoBuf, IoData};
use crate::{Error, ErrorKind};

impl Core {
    /// Writes the refcount structures anew, behind everything else, with counts of a width of 2^`order` bits. What
    /// the old ones take up is counted still, and nothing refers to it: a check gives it back.
    pub async fn rebuild_counts(&self, order: u32, progress: &Progress) -> Result<(), Error> {
        let mut check = self.new_check();
        check.first_pass = false;
        check.collect(false, progress).await?;
        check.keep_counts();
        let mut counter = std::mem::replace(&mut check.counter, Counter::new(0));
        drop(check);
        let refused = |kind, why: &str| {
            Err(Error::new(kind, format!("cannot count the clusters of '{}' anew", self.info.name), why))
        };
        if counter.limit != u64::MAX {
            return refused(ErrorKind::Limit, "the file has too many clusters for that");
        }
        let per = (8 << self.bits) >> order;
        let first = counter.end.max(self.file.size().div_ceil(self.cluster));
        // Blocks for what is used, and for the new structures themselves.
        let mut blocks = BTreeSet::new();
        for (&number, chunk) in &counter.chunks {
            let mut last = None;
            for (i, &n) in chunk.iter().enumerate().filter(|n| *n.1 != 0) {
                let cluster = number * CHUNK + i as u64;
                if last.replace(cluster / per) != Some(cluster / per) {
                    blocks.insert(cluster / per);
                }
                if u64::from(n) > refcount::max(order).min(254) && counter.get(cluster) > refcount::max(order)
                {
                    let why = "a cluster has more references than such counts can say";
                    return refused(ErrorKind::Invalid, why);
                }
            }
        }
        let mut table = 1;
        loop {
            let end = first + table + blocks.len() as u64;
            let own = first / per..=(end - 1) / per;
            let missing: Vec<_> = own.filter(|b| !blocks.contains(b)).collect();
            let last = blocks.last().max(missing.last());
            let entries = last.map_or(1, |b| b + 1);
            let need = (entries * 8).div_ceil(self.cluster);
            if missing.is_empty() && need <= table {
                break;
            }
            if need > header::MAX_REFTABLE >> self.bits {
                return refused(ErrorKind::Limit, "its refcount table would be too large");
            }
            blocks.extend(missing);
            table = table.max(need);
        }
        let end = first + table + blocks.len() as u64;
        counter.add_row(first, end - first, 1);
        let mut entries = vec![0u64; ((table << self.bits) / 8) as usize];
        for (n, &block) in blocks.iter().enumerate() {
            let offset = (first + n as u64) << self.bits;
            let mut bytes = IoBuf::zeroed(self.cluster as usize);
            let mut i = 0;
            while i < per {
                let c = block * per + i;
                let n = (per - i).min(CHUNK - c % CHUNK);
                for (k, _) in counter
                    .row(c)
                    .into_iter()
                    .flat_map(|r| r[..n as usize].iter().enumerate().filter(|r| *r.1 != 0))
                {
                    refcount::set(&mut bytes, order, i as usize + k, counter.get(c + k as u64));
                }
                i += n;
            }
            self.file.write(offset, bytes.freeze()).await?;
            entries[block as usize] = offset;
        }
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
        let table_at = (first + blocks.len() as u64) << self.bits;
        self.file.write(table_at, IoData::copy_of(&bytes)).await?;
        self.file.flush().await?;
        self.change_header(|h| {
            h.reftable_offset = table_at;
            h.reftable_clusters = table as u32;
            h.refcount_order = order;
        })
        .await?;
        self.file.flush().await?;
        self.refs.replace(order, entries);
        self.guard.forget();
        self.alloc.high.set(self.alloc.high.get().max(end << self.bits));
        self.alloc.cursor.set(0);
        self.alloc.packing.set(None);
        Ok(())
    }
}
