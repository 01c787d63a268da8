//! Reference counts of the file's clusters (qcow2 specification, "Host cluster management").

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use crate::Error;
use crate::format::table::{Block, TableCache};
use crate::graph::NodeRef;

/// Bytes of tables that are loaded at once.
pub const SLICE: u64 = 4096;
/// Bytes of refcounts that are kept in memory.
const CACHE: usize = 4 << 20;
/// Entries of the refcount table in one sector, which is what is written at once.
pub const SECTOR_ENTRIES: usize = 64;

const OFFSET: u64 = !0x1ff;

/// The counts of one image.
pub struct Refcounts {
    name: String,
    cluster_bits: u32,
    order: Cell<u32>,
    /// Where the blocks of counts are; as long as the clusters that the table takes up.
    pub table: RefCell<Vec<u64>>,
    pub cache: TableCache,
    /// Changed sectors of the table.
    pub dirty: RefCell<BTreeSet<usize>>,
    /// Blocks that the table in the file does not have yet.
    pub new_blocks: RefCell<HashSet<u64>>,
}

/// One count in a block, whose width is 2^`order` bits.
pub fn get(bytes: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..3 => {
            let per_byte = 8 >> order;
            let bits = 1 << order;
            u64::from(bytes[index / per_byte] >> (index % per_byte * bits)) & ((1 << bits) - 1)
        }
        _ => {
            let n = 1 << (order - 3);
            bytes[index * n..(index + 1) * n].iter().fold(0, |v, &b| v << 8 | u64::from(b))
        }
    }
}

/// Changes one count; `value` must fit.
pub fn set(bytes: &mut [u8], order: u32, index: usize, value: u64) {
    match order {
        0..3 => {
            let per_byte = 8 >> order;
            let bits = 1 << order;
            let shift = index % per_byte * bits;
            let byte = &mut bytes[index / per_byte];
            *byte = *byte & !((((1u16 << bits) - 1) as u8) << shift) | (value as u8) << shift;
        }
        _ => {
            let n = 1 << (order - 3);
            bytes[index * n..(index + 1) * n].copy_from_slice(&value.to_be_bytes()[8 - n..]);
        }
    }
}

/// The greatest count of a width.
pub fn max(order: u32) -> u64 {
    u64::MAX >> (64 - (1u32 << order))
}

impl Refcounts {
    pub fn new(file: NodeRef, name: &str, cluster_bits: u32, order: u32, table: Vec<u64>) -> Self {
        let slice = SLICE.min(1 << cluster_bits) as usize;
        Self {
            name: name.to_owned(),
            cluster_bits,
            order: Cell::new(order),
            table: RefCell::new(table),
            cache: TableCache::new(file, slice, CACHE),
            dirty: RefCell::default(),
            new_blocks: RefCell::default(),
        }
    }

    pub fn order(&self) -> u32 {
        self.order.get()
    }

    /// Everything anew, after the counts were rebuilt in another place.
    pub fn replace(&self, order: u32, table: Vec<u64>) {
        self.order.set(order);
        self.cache.clear();
        self.dirty.borrow_mut().clear();
        self.new_blocks.borrow_mut().clear();
        *self.table.borrow_mut() = table;
    }

    /// Clusters that one block counts.
    pub fn per_block(&self) -> u64 {
        8 << self.cluster_bits >> self.order.get()
    }

    /// Clusters that one slice of a block counts.
    pub fn per_slice(&self) -> u64 {
        (self.cache.block_size() as u64 * 8) >> self.order.get()
    }

    /// Clusters that the table has room for.
    pub fn covered(&self) -> u64 {
        (self.table.borrow().len() as u64).saturating_mul(self.per_block())
    }

    /// Where the block with the count of `cluster` is; `None` if there is none, and the count is 0.
    pub fn block_offset(&self, cluster: u64) -> Result<Option<u64>, Error> {
        let index = cluster / self.per_block();
        let entry = self.table.borrow().get(index as usize).map_or(0, |e| e & OFFSET);
        if entry & ((1 << self.cluster_bits) - 1) != 0 {
            return Err(Error::corrupt(&self.name, format!("a refcount block cannot be at {entry:#x}")));
        }
        Ok(Some(entry).filter(|&e| e != 0))
    }

    /// Notes where a new block is.
    pub fn set_block(&self, index: usize, offset: u64) {
        self.table.borrow_mut()[index] = offset;
        self.dirty.borrow_mut().insert(index / SECTOR_ENTRIES);
        self.new_blocks.borrow_mut().insert(offset);
    }

    /// Where in a block's slices the count of a cluster is: the slice's offset in the block, and the index in it.
    pub fn place(&self, cluster: u64) -> (u64, usize) {
        let index = cluster % self.per_block();
        let per = self.per_slice();
        (index / per * self.cache.block_size() as u64, (index % per) as usize)
    }

    /// The slice with the count of `cluster`, and the count's index in it.
    pub async fn slice(&self, cluster: u64) -> Result<Option<(Rc<Block>, usize)>, Error> {
        let Some(block) = self.block_offset(cluster)? else { return Ok(None) };
        let (slice, index) = self.place(cluster);
        let slice = self.cache.load(block + slice, "a refcount block").await?;
        Ok(Some((slice, index)))
    }

    pub async fn get(&self, cluster: u64) -> Result<u64, Error> {
        let order = self.order.get();
        Ok(self.slice(cluster).await?.map_or(0, |(slice, index)| slice.with(|b| get(b, order, index))))
    }

    /// Sets the count of a cluster whose block exists.
    pub async fn set(&self, cluster: u64, value: u64) -> Result<(), Error> {
        let order = self.order.get();
        let Some((slice, index)) = self.slice(cluster).await? else {
            return Err(Error::corrupt(&self.name, format!("cluster {cluster} has no refcount block")));
        };
        slice.change(|b| set(b, order, index, value));
        Ok(())
    }

    /// One more reference to a cluster that is in use. False if the width of counts does not allow it.
    pub async fn add(&self, cluster: u64) -> Result<bool, Error> {
        let order = self.order.get();
        let Some((slice, index)) = self.slice(cluster).await? else {
            return Err(Error::corrupt(&self.name, format!("cluster {cluster} is in use but not counted")));
        };
        let old = slice.with(|b| get(b, order, index));
        if old == max(order) {
            return Ok(false);
        }
        slice.change(|b| set(b, order, index, old + 1));
        Ok(true)
    }

    /// One reference less; what is left. A count that is 0 already, in a damaged image, stays.
    pub async fn drop_one(&self, cluster: u64) -> Result<u64, Error> {
        let order = self.order.get();
        let Some((slice, index)) = self.slice(cluster).await? else { return Ok(0) };
        let old = slice.with(|b| get(b, order, index));
        if old == 0 {
            return Ok(0);
        }
        slice.change(|b| set(b, order, index, old - 1));
        Ok(old - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width() {
        let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for order in 0..=6 {
            let mut bytes = vec![0; 128];
            let n = (128 * 8) >> order;
            for i in 0..n {
                set(&mut bytes, order, i, value(i) & max(order));
            }
            for i in 0..n {
                assert_eq!(get(&bytes, order, i), value(i) & max(order));
            }
        }
        let mut bytes = [0; 2];
        set(&mut bytes, 1, 2, 3);
        set(&mut bytes, 0, 9, 1);
        assert_eq!(bytes, [0x30, 2]);
    }
}
