//! cloop: disks compressed for live CDs, version 2 (zlib). For reading.
//!
//! 128 bytes of shell script, the block size, the number of blocks, and where each block begins, all big-endian
//! (cloop's `compressed_loop.h`).

use std::rc::Rc;

use super::chunks::{ChunkCache, Codec, MAX_CHUNK, Packed};
use super::{CheckReport, Description, Driver, Format, Image, OpenRequest, Progress, Repair};
use crate::graph::{Extent, Io, IoBuf, NodeInfo, NodeRef, ReadNode, check_range, read_table};
use crate::{Error, SECTOR};

/// Compressed loop devices.
pub static DRIVER: Driver = Driver {
    format: Format::Cloop,
    probe: |sample| sample.head.starts_with(MARK),
    open: |request| Box::pin(open(request)),
    create: None,
    options: &[],
};

const MARK: &[u8] = b"#!/bin/sh\n#V2.0 Format\n";
const HEADER: usize = 136;
/// Bytes of the table of blocks at most: 8 for each of usually 64 KiB.
const MAX_TABLE: u64 = 32 << 20;

struct CloopImage {
    info: NodeInfo,
    file: NodeRef,
    block: u64,
    /// Where blocks begin, and the last one ends.
    offsets: Vec<u64>,
    cache: ChunkCache,
}

async fn open(request: OpenRequest) -> Result<Rc<dyn Image>, Error> {
    let file = request.file;
    let name = file.info().name.clone();
    let head = read_table(&*file, 0, HEADER, "the header").await?;
    let word = |at: usize| head[at..].first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
    let (block, count) = (u64::from(word(128)), u64::from(word(132)));
    if block == 0 || block > MAX_CHUNK || !block.is_multiple_of(SECTOR) {
        return Err(Error::corrupt(&name, format!("its blocks have {block} bytes")));
    }
    let table = (count + 1) * 8;
    if table > MAX_TABLE {
        return Err(Error::corrupt(&name, format!("it says that it has {count} blocks")));
    }
    let bytes = read_table(&*file, HEADER as u64, table as usize, "the table of blocks").await?;
    let offsets: Vec<u64> = bytes.as_chunks().0.iter().map(|b| u64::from_be_bytes(*b)).collect();
    let data = HEADER as u64 + table;
    for (n, pair) in offsets.windows(2).enumerate() {
        // Nothing that zlib makes of a block is much larger than it.
        if pair[0] < data || pair[1] < pair[0] || pair[1] - pair[0] > 2 * block + 4096 {
            let why = format!("block {n} is said to go from {} to {}", pair[0], pair[1]);
            return Err(Error::corrupt(&name, why));
        }
    }
    let info = NodeInfo { name, read_only: true, block: SECTOR as u32 };
    Ok(Rc::new(CloopImage { info, file, block, offsets, cache: ChunkCache::default() }))
}

impl CloopImage {
    fn packed(&self, n: u64) -> Option<Packed> {
        let pair = self.offsets.get(n as usize..)?.first_chunk::<2>()?;
        Some(Packed { codec: Codec::Zlib, offset: pair[0], len: pair[1] - pair[0], size: self.block })
    }
}

impl ReadNode for CloopImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        (self.offsets.len() as u64 - 1) * self.block
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            let mut done = 0;
            while done < buf.len() {
                let (n, within) = ((offset + done as u64) / self.block, (offset + done as u64) % self.block);
                let chunk = self.cache.chunk(&*self.file, n, &|n| self.packed(n)).await?;
                let len = (chunk.len() - within as usize).min(buf.len() - done);
                buf[done..done + len].copy_from_slice(&chunk[within as usize..within as usize + len]);
                done += len;
            }
            Ok(buf)
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            Ok(Extent { compressed: true, ..Extent::stored(len, None) })
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(self.file.close())
    }
}

impl Image for CloopImage {
    fn format(&self) -> Format {
        Format::Cloop
    }

    fn describe(&self) -> Description {
        Description { cluster_size: Some(self.block), compressed: true, ..Description::default() }
    }

    fn backing(&self) -> Option<NodeRef> {
        None
    }

    fn check<'a>(&'a self, _repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            let blocks = self.offsets.len() as u64 - 1;
            progress.total.set(blocks);
            let mut report = CheckReport {
                total_clusters: blocks,
                allocated_clusters: blocks,
                compressed_clusters: blocks,
                image_end: self.offsets.last().copied().unwrap_or(0),
                ..CheckReport::default()
            };
            for n in 0..blocks {
                if let Err(e) = self.cache.chunk(&*self.file, n, &|n| self.packed(n)).await {
                    if e.kind != crate::ErrorKind::Corrupt {
                        return Err(e);
                    }
                    report.corruptions += 1;
                    report.say(&e.source);
                }
                progress.add(1);
            }
            Ok(report)
        })
    }
}
