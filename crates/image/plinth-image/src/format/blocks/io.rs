//! Requests to images of blocks.

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{BlockImage, Layout, Need, Place, Space};
use crate::Error;
use crate::graph::{Extent, IoBuf, IoData, Node, check_range};

/// Parts of one request that are in flight at once.
const PARTS: usize = 16;

/// Where a part of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// At this byte of the file.
    File(u64),
    /// An explicit note of zeros.
    Zero,
    /// Nothing here: this byte of the image below, if it goes so far.
    Below(u64),
}

#[derive(Clone, Copy, Debug)]
struct Part {
    len: u64,
    source: Source,
}

impl Part {
    /// True if `next` follows, and one request can do both.
    fn joins(&self, next: &Source) -> bool {
        match (self.source, *next) {
            (Source::File(a), Source::File(b)) | (Source::Below(a), Source::Below(b)) => a + self.len == b,
            (a, b) => a == b,
        }
    }
}

/// A piece of a request within one block.
#[derive(Clone, Copy, Debug)]
struct Piece {
    block: u64,
    /// Byte of the block.
    at: u64,
    /// Byte of the request.
    from: u64,
    len: u64,
}

fn push(parts: &mut Vec<Part>, len: u64, source: Source) {
    match parts.last_mut() {
        Some(last) if last.joins(&source) => last.len += len,
        _ => parts.push(Part { len, source }),
    }
}

impl<L: Layout> BlockImage<L> {
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<L> {
        let size = self.layout.block_size();
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            let block = at / size;
            // The last block may reach beyond what a number can say.
            let to = (block + 1).checked_mul(size).map_or(end, |e| e.min(end));
            let piece = Piece { block, at: at - block * size, from: at - offset, len: to - at };
            at = to;
            (piece.len > 0).then_some(piece)
        })
    }

    /// Where the parts of a range are; with `first`, only the first of them matters.
    async fn parts(&self, offset: u64, len: u64, first: bool) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        let (mut below, end) = (offset, offset + len);
        while let Some(piece) = self.pieces(below, end - below).next() {
            let mut len = piece.len;
            match self.lookup(piece.block).await? {
                place @ (Place::Absent | Place::Zero) => {
                    let size = self.layout.block_size();
                    let n = self.alike(piece.block, end.div_ceil(size) - piece.block);
                    len = (piece.block + n).checked_mul(size).map_or(end, |e| e.min(end)) - below;
                    let zero = place == Place::Zero;
                    push(&mut parts, len, if zero { Source::Zero } else { Source::Below(below) });
                }
                Place::Full(host) => push(&mut parts, piece.len, Source::File(host + piece.at)),
                Place::Partial(host) => {
                    let sector = self.layout.sector().unwrap_or(crate::SECTOR);
                    let sectors = piece.at / sector..(piece.at + piece.len).div_ceil(sector);
                    let mut at = piece.at;
                    for (n, present) in (sectors.start..).zip(self.present(piece.block, host, sectors).await?)
                    {
                        let to = ((n + 1) * sector).min(piece.at + piece.len);
                        let source = if present {
                            Source::File(host + at)
                        } else {
                            Source::Below(below + at - piece.at)
                        };
                        push(&mut parts, to - at, source);
                        at = to;
                    }
                }
            }
            if first && parts.len() > 1 {
                break;
            }
            below += len;
        }
        Ok(parts)
    }

    async fn read_part(&self, part: Part, mut buf: IoBuf) -> Result<IoBuf, Error> {
        match part.source {
            Source::File(host) => self.layout.file().read(host, buf).await,
            Source::Zero => {
                buf.fill(0);
                Ok(buf)
            }
            Source::Below(at) => {
                let inside = self.backed().saturating_sub(at).min(part.len) as usize;
                let rest = buf.split_off(inside);
                buf = match &self.backing {
                    Some(backing) if inside > 0 => backing.read(at, buf).await?,
                    _ => buf,
                };
                Ok(join(buf, rest, |rest| rest.fill(0)))
            }
        }
    }

    /// Reads without looking at the gate.
    async fn read_through(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let parts = self.parts(offset, buf.len() as u64, false).await?;
        if let [part] = parts[..] {
            return self.read_part(part, buf).await;
        }
        let mut whole = Vec::with_capacity(parts.len());
        for part in parts {
            let rest = buf.split_off(part.len as usize);
            whole.push((part, std::mem::replace(&mut buf, rest)));
        }
        let reads = stream::iter(whole).map(|(part, buf)| self.read_part(part, buf)).buffered(PARTS);
        // What is left of the buffer is empty, and begins where the last part ends.
        let bufs: Vec<_> = reads.try_collect().await?;
        Ok(bufs.into_iter().rev().fold(buf, |rest, part| join(part, rest, |_| {})))
    }

    pub(super) async fn do_read(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, Error> {
        check_range(self, "read", offset, buf.len() as u64)?;
        let _shared = self.gate.read().await;
        self.read_through(offset, buf).await
    }

    /// The first part of a range.
    pub(super) async fn do_status(&self, offset: u64, len: u64) -> Result<Extent, Error> {
        check_range(self, "look at", offset, len)?;
        let _shared = self.gate.read().await;
        let Some(part) = self.parts(offset, len, true).await?.first().copied() else {
            return Ok(Extent::hole(0));
        };
        match part.source {
            Source::Zero => Ok(Extent::zeros(part.len)),
            Source::File(host) => {
                let below = self.layout.file().status(host, part.len).await?;
                let len = below.len.clamp(1, part.len);
                Ok(Extent { host: Some(host), present: true, depth: 0, ..below.of(len) })
            }
            Source::Below(at) => match &self.backing {
                Some(backing) if at < backing.size() => {
                    let below = backing.status(at, part.len.min(backing.size() - at)).await?;
                    // Where the bytes are in another file is not this layer's to say, but the layer's of `depth`.
                    Ok(Extent { depth: below.depth + 1, ..below })
                }
                Some(_) => Ok(Extent { depth: 1, ..Extent::hole(part.len) }),
                None => Ok(Extent::hole(part.len)),
            },
        }
    }

    fn need(&self, piece: &Piece, place: Place) -> Need {
        let size = self.layout.block_size();
        if piece.len == size {
            Need::Whole
        } else if place == Place::Absent
            && (self.layout.sector().is_some() || piece.block * size < self.backed())
        {
            Need::OverBacking
        } else {
            Need::OverZeros
        }
    }

    /// Writes to a block without a place, which nobody else gives one meanwhile.
    async fn write_new(&self, piece: &Piece, place: Place, data: &IoData) -> Result<(), Error> {
        let need = self.need(piece, place);
        let space = self.layout.allocate(piece.block, need).await?;
        let mut unused = Unused { image: self, space: Some(space) };
        let file = self.layout.file();
        let data = data.slice(piece.from as usize..(piece.from + piece.len) as usize);
        let note = |unused: &mut Unused<'_, L>| {
            unused.space = None;
            self.note(piece.block, space);
        };
        match space.place {
            // Old contents stay visible until all of the new ones are there.
            Place::Full(host)
                if place == Place::Absent && self.backed() > piece.block * self.layout.block_size() =>
            {
                match need {
                    Need::OverBacking => self.fill(piece, host, &data).await?,
                    _ => file.write(host + piece.at, data).await?,
                }
                note(&mut unused);
            }
            Place::Full(host) => {
                note(&mut unused);
                file.write(host + piece.at, data).await?;
            }
            Place::Partial(host) => {
                note(&mut unused);
                file.write(host + piece.at, data).await?;
                self.note_sectors(piece);
            }
            Place::Absent | Place::Zero => unreachable!("space has a place"),
        }
        Ok(())
    }

    /// Writes a whole block: the piece, and around it what is below.
    async fn fill(&self, piece: &Piece, host: u64, data: &[u8]) -> Result<(), Error> {
        let size = self.layout.block_size();
        let start = piece.block * size;
        // In steps, for blocks may be large.
        const AT_ONCE: u64 = 1 << 20;
        let mut at = 0;
        while at < size {
            let n = (size - at).min(AT_ONCE);
            let part = Part { len: n, source: Source::Below(start + at) };
            let (from, to) = (piece.at.max(at), (piece.at + piece.len).min(at + n));
            let mut buf = if from == at && to == at + n {
                IoBuf::new(n as usize)
            } else {
                self.read_part(part, IoBuf::new(n as usize)).await?
            };
            if from < to {
                buf[(from - at) as usize..(to - at) as usize]
                    .copy_from_slice(&data[(from - piece.at) as usize..(to - piece.at) as usize]);
            }
            self.layout.file().write(host + at, buf.freeze()).await?;
            at += n;
        }
        Ok(())
    }

    fn note(&self, block: u64, space: Space) {
        let mut pending = self.pending.borrow_mut();
        pending.places.insert(block, space.place);
        if space.all_present
            && let Some(sector) = self.layout.sector()
        {
            pending.add_sectors(block, 0..self.layout.block_size() / sector);
        }
    }

    fn note_sectors(&self, piece: &Piece) {
        if let Some(sector) = self.layout.sector() {
            let range = piece.at / sector..(piece.at + piece.len).div_ceil(sector);
            self.pending.borrow_mut().add_sectors(piece.block, range);
        }
    }

    /// Does `piece` if its block has no place yet, else says where it is.
    async fn write_if_new(&self, piece: &Piece, data: &IoData) -> Result<Option<Place>, Error> {
        let place = self.lookup(piece.block).await?;
        if matches!(place, Place::Full(_) | Place::Partial(_)) {
            return Ok(Some(place));
        }
        let _alone = self.allocating.lock(piece.block..piece.block + 1, true).await;
        match self.lookup(piece.block).await? {
            place @ (Place::Absent | Place::Zero) => {
                self.write_new(piece, place, data).await?;
                Ok(None)
            }
            place => Ok(Some(place)),
        }
    }

    /// Space for a whole run of blocks at once: what follows in the file is written as one.
    async fn write_pieces(&self, offset: u64, data: &IoData) -> Result<(), Error> {
        let pieces: Vec<_> = self.pieces(offset, data.len() as u64).collect();
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        let mut partial = Vec::new();
        let mut new = Vec::new();
        for piece in &pieces {
            let host = match self.lookup(piece.block).await? {
                Place::Full(host) => host + piece.at,
                Place::Partial(host) => {
                    partial.push(piece);
                    host + piece.at
                }
                Place::Absent | Place::Zero => match self.place_at_once(piece).await? {
                    Some(Place::Full(host)) => host,
                    _ => {
                        new.push(piece);
                        continue;
                    }
                },
            };
            match runs.last_mut() {
                Some((at, from, len)) if *at + *len == host && *from + *len == piece.from => {
                    *len += piece.len
                }
                _ => runs.push((host, piece.from, piece.len)),
            }
        }
        let file = self.layout.file();
        let write = |(host, from, len): (u64, u64, u64)| {
            file.write(host, data.slice(from as usize..(from + len) as usize))
        };
        let writes = stream::iter(runs).map(write).buffer_unordered(PARTS).try_collect::<()>();
        let news = stream::iter(new).map(|piece| self.write_late(piece, data)).buffer_unordered(PARTS);
        futures_util::try_join!(writes, news.try_collect::<()>())?;
        for piece in partial {
            self.note_sectors(piece);
        }
        Ok(())
    }

    async fn write_late(&self, piece: &Piece, data: &IoData) -> Result<(), Error> {
        let (host, partial) = match self.write_if_new(piece, data).await? {
            None => return Ok(()),
            Some(Place::Full(host)) => (host, false),
            Some(Place::Partial(host)) => (host, true),
            Some(Place::Absent | Place::Zero) => unreachable!("it has a place"),
        };
        let data = data.slice(piece.from as usize..(piece.from + piece.len) as usize);
        self.layout.file().write(host + piece.at, data).await?;
        if partial {
            self.note_sectors(piece);
        }
        Ok(())
    }

    /// Gives a whole block that reads as zeros its space before its data is there, so that it can be written
    /// together with its neighbours.
    async fn place_at_once(&self, piece: &Piece) -> Result<Option<Place>, Error> {
        let size = self.layout.block_size();
        if piece.len != size || self.layout.sector().is_some() || piece.block * size < self.backed() {
            return Ok(None);
        }
        let _alone = self.allocating.lock(piece.block..piece.block + 1, true).await;
        match self.lookup(piece.block).await? {
            Place::Absent | Place::Zero => {
                let space = self.layout.allocate(piece.block, Need::Whole).await?;
                self.note(piece.block, space);
                Ok(Some(space.place))
            }
            place => Ok(Some(place)),
        }
    }

    /// Splits a write where sectors must be written whole: the sectors around are read first.
    pub(super) async fn do_write(&self, offset: u64, data: IoData) -> Result<(), Error> {
        crate::graph::check_write(self, offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.commit_if_many().await?;
        let _shared = self.gate.read().await;
        self.layout.begin().await?;
        let Some(sector) = self.layout.sector() else { return self.write_pieces(offset, &data).await };
        let end = offset + data.len() as u64;
        let whole =
            (offset | end).is_multiple_of(sector) || (offset.is_multiple_of(sector) && end == self.size());
        let (start, stop) = (offset - offset % sector, end.next_multiple_of(sector).min(self.size()));
        let _edges = self.edges.lock(start..stop, !whole).await;
        if whole {
            return self.write_pieces(offset, &data).await;
        }
        let mut buf = self.read_through(start, IoBuf::new((stop - start) as usize)).await?;
        buf[(offset - start) as usize..(end - start) as usize].copy_from_slice(&data);
        self.write_pieces(start, &buf.freeze()).await
    }

    pub(super) async fn do_zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        crate::graph::check_write(self, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let Some(sector) = self.layout.sector() else { return self.zero_pieces(offset, len, unmap).await };
        // Pieces of sectors are written, for the rest of the sector may be below.
        let end = offset + len;
        let start = offset.next_multiple_of(sector).min(end);
        let stop = if end == self.size() { end } else { (end - end % sector).max(start) };
        for (from, to) in [(offset, start), (stop, end)] {
            if from < to {
                self.do_write(from, IoBuf::zeroed((to - from) as usize).freeze()).await?;
            }
        }
        if start < stop { self.zero_pieces(start, stop - start, unmap).await } else { Ok(()) }
    }

    async fn zero_pieces(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.commit_if_many().await?;
        let _shared = self.gate.read().await;
        self.layout.begin().await?;
        let _edges = match self.layout.sector() {
            Some(_) => Some(self.edges.lock(offset..offset + len, false).await),
            None => None,
        };
        let zeros = self.pieces(offset, len).map(|piece| self.zero_piece(piece, unmap));
        stream::iter(zeros).buffer_unordered(PARTS).try_collect::<()>().await
    }

    async fn zero_piece(&self, piece: Piece, unmap: bool) -> Result<(), Error> {
        let file = self.layout.file();
        let mut place = self.lookup(piece.block).await?;
        if place == Place::Absent && piece.block * self.layout.block_size() < self.backed() {
            place = self.zero_absent(&piece).await?;
        }
        match place {
            // Zeros already.
            Place::Absent | Place::Zero => Ok(()),
            Place::Full(host) => file.write_zeroes(host + piece.at, piece.len, unmap).await,
            Place::Partial(host) => {
                file.write_zeroes(host + piece.at, piece.len, unmap).await?;
                self.note_sectors(&piece);
                Ok(())
            }
        }
    }

    /// Makes zeros over what is below: where it is to be written after that, if it is not done.
    async fn zero_absent(&self, piece: &Piece) -> Result<Place, Error> {
        let _alone = self.allocating.lock(piece.block..piece.block + 1, true).await;
        let place = self.lookup(piece.block).await?;
        if place != Place::Absent {
            return Ok(place);
        }
        let size = self.layout.block_size();
        let whole = piece.len == size || (piece.at == 0 && piece.block * size + piece.len == self.size());
        if whole && L::HAS_ZERO {
            self.pending.borrow_mut().places.insert(piece.block, Place::Zero);
            return Ok(Place::Zero);
        }
        let space = self.layout.allocate(piece.block, self.need(piece, place)).await?;
        let mut unused = Unused { image: self, space: Some(space) };
        match space.place {
            Place::Partial(_) => {
                unused.space = None;
                self.note(piece.block, space);
                // New space reads as zeros.
                self.note_sectors(piece);
            }
            Place::Full(host) => {
                self.fill(piece, host, &IoBuf::zeroed(piece.len as usize)).await?;
                unused.space = None;
                self.note(piece.block, space);
            }
            Place::Absent | Place::Zero => {}
        }
        // Done, as a block of zeros would be.
        Ok(Place::Zero)
    }

    pub(super) async fn do_discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        crate::graph::check_write(self, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let _shared = self.gate.read().await;
        self.layout.begin().await?;
        // A discard of a piece of a sector would not do harm, but has no use either.
        let parts = self.parts(offset, len, false).await?;
        let file = self.layout.file();
        let discards = parts.into_iter().filter_map(|part| match part.source {
            Source::File(host) => Some(file.discard(host, part.len)),
            Source::Zero | Source::Below(_) => None,
        });
        stream::iter(discards).buffer_unordered(PARTS).try_collect::<()>().await
    }
}

/// Space that is given back unless it is noted.
struct Unused<'a, L: Layout> {
    image: &'a BlockImage<L>,
    space: Option<Space>,
}

impl<L: Layout> Drop for Unused<'_, L> {
    fn drop(&mut self) {
        if let Some(space) = self.space.take() {
            self.image.layout.give_back(space);
        }
    }
}

/// Joins two parts of one buffer again after `change` to the second; copies if a node gave another buffer back.
fn join(first: IoBuf, mut rest: IoBuf, change: impl FnOnce(&mut IoBuf)) -> IoBuf {
    change(&mut rest);
    first.join(rest).unwrap_or_else(|(first, rest)| {
        let mut whole = IoBuf::new(first.len() + rest.len());
        whole[..first.len()].copy_from_slice(&first);
        whole[first.len()..].copy_from_slice(&rest);
        whole
    })
}

impl Extent {
    /// The first `len` bytes of it.
    fn of(&self, len: u64) -> Self {
        Self { len, ..self.clone() }
    }
}
