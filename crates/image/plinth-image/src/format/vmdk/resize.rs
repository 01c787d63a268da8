//! Changing the size. It is the last extent that grows or shrinks.
//!
//! Growing: the new, larger directories are written behind everything and made durable; then the header, which is one
//! sector, says the new capacity and where the directories are. Shrinking: the entries of what goes away become zero
//! and durable first, so that growing again shows zeros. The description follows the header; where a cut falls
//! between them, the header of the only extent is what counts.

use super::sparse::{LOOK_AHEAD, MAX_DIRECTORY, SparseExtent};
use super::{Data, VmdkImage};
use crate::format::Format;
use crate::format::Repair;
use crate::format::below::hidden_below;
use crate::format::image::unsupported;
use crate::graph::{IoBuf, Node};
use crate::{Error, ErrorKind, SECTOR};

/// Bytes of one piece of a disk that is split into pieces.
pub const SPLIT: u64 = 2 << 30;

impl VmdkImage {
    /// Changes the size of the disk.
    pub(super) async fn resize_to(&self, size: u64) -> Result<(), Error> {
        if let Some(why) = &self.frozen {
            return Err(self.refuse("resize", why));
        }
        crate::graph::check_write(self, 0, 0)?;
        let number = self.pieces.len() - 1;
        let piece = &self.pieces[number];
        let refuse =
            |kind, why: &str| Err(Error::new(kind, format!("cannot resize '{}'", self.info.name), why));
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return refuse(ErrorKind::Invalid, "the size must be a multiple of 512 bytes, and not 0");
        }
        let old = self.size.get();
        if size == old {
            return Ok(());
        }
        if size <= piece.start {
            return refuse(
                ErrorKind::Unsupported,
                "whole extents would go away; convert it to a smaller disk",
            );
        }
        let len = size - piece.start;
        if self.create_type.starts_with("twoGb") && len > SPLIT {
            return refuse(
                ErrorKind::Unsupported,
                "its last file is full, and no file can be added; convert it",
            );
        }
        self.begin_write(piece.start, 0).await?;
        match &piece.data {
            Data::Flat { file, offset } => file.resize(offset + len).await?,
            Data::Sparse(e) => e.resize(len).await?,
            Data::Zero | Data::Packed(_) => return Err(unsupported(&self.info, Format::Vmdk, "resize")),
        }
        piece.len.set(len);
        self.size.set(size);
        if let Some(place) = &self.descriptor {
            let mut text = place.text.borrow().clone();
            text.set_extent(&self.info.name, number, len / SECTOR);
            let heads = text.get("ddb.geometry.heads").and_then(|h| h.parse::<u64>().ok());
            let per_cylinder = text.get("ddb.geometry.sectors").and_then(|s| s.parse::<u64>().ok());
            if let Some(sectors) =
                heads.zip(per_cylinder).and_then(|(h, s)| h.checked_mul(s)).filter(|&n| n > 0)
            {
                let line = format!("ddb.geometry.cylinders = \"{}\"", size / SECTOR / sectors);
                text.set("ddb.geometry.cylinders", Some(&line), "");
            }
            place.write(text).await?;
        }
        match hidden_below(self.backing.as_ref(), old, size) {
            Some(len) => self.write_zeroes(old, len, true).await,
            None => Ok(()),
        }
    }
}

impl SparseExtent {
    async fn resize(&self, len: u64) -> Result<(), Error> {
        self.flush().await?;
        let (grain, span, old) = {
            let g = self.geometry.borrow();
            (g.grain, g.span(), g.capacity)
        };
        if len < old {
            self.forget_behind(len, old, grain, span).await?;
        }
        let count = len.div_ceil(span);
        let had = self.directory.borrow().len() as u64;
        let Some(mut header) = self.header.borrow().clone() else {
            return Err(unsupported(self.file.info(), Format::Vmdk, "resize"));
        };
        if count > had {
            super::super::table::table_len(self.name(), "grain directory", count, 4, MAX_DIRECTORY)?;
            self.begin().await?;
            let (directory, redundant) = self.place_directories(count, grain).await?;
            for (at, words) in
                [(Some(directory), Some(&self.directory)), (redundant, self.redundant.as_ref())]
            {
                let (Some(at), Some(words)) = (at, words) else { continue };
                let mut words = words.borrow().clone();
                words.resize(count as usize, 0);
                let mut buf = IoBuf::zeroed((count * 4).next_multiple_of(SECTOR) as usize);
                for (to, word) in buf.chunks_mut(4).zip(&words) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
                self.file.write(at, buf.freeze()).await?;
            }
            self.file.flush().await?;
            header.directory = directory / SECTOR;
            header.redundant = redundant.map_or(header.redundant, |r| r / SECTOR);
        }
        header.capacity = len / SECTOR;
        // Everything else in the sector stays as it is.
        let mut sector = self.file.read(0, IoBuf::new(SECTOR as usize)).await?;
        for (at, word) in [(12, header.capacity), (48, header.redundant), (56, header.directory)] {
            sector[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        self.file.write(0, sector.freeze()).await?;
        self.file.flush().await?;
        {
            let mut g = self.geometry.borrow_mut();
            g.capacity = len;
            g.directory = header.directory * SECTOR;
            g.redundant = g.redundant.map(|_| header.redundant * SECTOR);
        }
        *self.header.borrow_mut() = Some(header);
        for words in [Some(&self.directory), self.redundant.as_ref()].into_iter().flatten() {
            words.borrow_mut().resize(count as usize, 0);
        }
        // What is not used any more at the end goes back to the file system.
        super::check::check_extent(self, Repair::Leaks, false).await.map(drop)
    }

    /// Where larger directories go. What grew before has them in space of its own, one in each half of it, and they
    /// stay there while they fit: what they have beyond their old end means nothing to the old header.
    async fn place_directories(&self, count: u64, grain: u64) -> Result<(u64, Option<u64>), Error> {
        let bytes = (count * 4).next_multiple_of(SECTOR);
        let (now, second, overhead) = {
            let g = self.geometry.borrow();
            (g.directory, g.redundant.filter(|_| self.redundant.is_some()), g.overhead)
        };
        let own = now >= overhead && now.is_multiple_of(grain);
        if own && second.is_none_or(|s| s == now + grain / 2) && bytes <= grain / 2 {
            return Ok((now, second));
        }
        let space = (2 * bytes).next_multiple_of(grain);
        let at = self.allocate(space / grain).await?;
        Ok((at, second.map(|_| at + space / 2)))
    }

    /// Makes the grains between `len` and `old` unallocated.
    async fn forget_behind(&self, len: u64, old: u64, grain: u64, span: u64) -> Result<(), Error> {
        self.begin().await?;
        let below = super::Below::NOTHING;
        // A grain that stays in part is cleared in part.
        let whole = len.next_multiple_of(grain).min(old);
        if len < whole {
            self.write_zeroes(len, whole - len, true, below).await?;
        }
        let mut pos = whole;
        while pos < old {
            let end = old.min((pos / span + 1) * span).min(pos + LOOK_AHEAD * grain);
            let run = self.run(pos, end - pos).await?;
            if run.place != super::sparse::Place::None {
                let grains = pos / grain..(pos + run.len).div_ceil(grain);
                self.pending.borrow_mut().extend(grains.map(|n| (n, 0)));
                // Many tables, or one that is many times in the directory, are not all kept in memory.
                self.relieve().await?;
            }
            pos += run.len;
        }
        self.flush().await
    }
}
