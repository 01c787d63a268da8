//! Extents of compressed grains, as a stream.
//!
//! A stream is written once, from start to end, and never sought in: grains in the order in which they come, each
//! behind a marker with its place; behind the grains of a table the table; at the end the directory, a footer (the
//! header again, which now knows where the directory is), and an end marker. Until the footer is there the file is
//! no image, so there is nothing that a crash could break.
//!
//! Grains are compressed on all CPUs at once, and appended in the order of the requests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use futures_util::future::{join, join_all};
use libdeflater::{CompressionLvl, Compressor, Decompressor};
use plinth_host::aio::offload;

use super::header::Hosted;
use super::sparse::{Below, Place, Run, SparseExtent};
use crate::graph::{IoBuf, IoData, RangeGuard, RangeLocks, is_zero, joined};
use crate::{Error, ErrorKind, SECTOR};

/// Kinds of markers ("Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents").
pub const TABLE: u32 = 1;
pub const DIRECTORY: u32 = 2;
pub const FOOTER: u32 = 3;

/// Bytes before a grain's data: its first sector, and how many bytes follow.
const MARKER: usize = 12;
/// What is appended is written in pieces of so many bytes.
const CHUNK: usize = 1 << 20;
/// Bytes of neighbouring grains that are read at once.
const READ_AT_ONCE: u64 = 2 << 20;
/// Unpacked grains that are kept for reads of less than a grain.
const KEPT: usize = 8;
/// Entries that are kept until their tables are written.
const MAX_PENDING: usize = 8192;
/// Of 1 to 12: a little less than the size that zlib gives at its usual level, in a third of its time.
const LEVEL: i32 = 5;

thread_local! {
    static COMPRESSOR: RefCell<Compressor> =
        RefCell::new(Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default()));
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// A grain as it is in the stream: marker, data, zeros up to a whole sector.
fn pack(sector: u64, data: &[u8]) -> Result<IoData, String> {
    COMPRESSOR.with_borrow_mut(|c| {
        let bound = c.zlib_compress_bound(data.len());
        let mut out = IoBuf::new((MARKER + bound).next_multiple_of(SECTOR as usize));
        let n = c.zlib_compress(data, &mut out[MARKER..]).map_err(|e| e.to_string())?;
        out[..8].copy_from_slice(&sector.to_le_bytes());
        out[8..MARKER].copy_from_slice(&(n as u32).to_le_bytes());
        let end = (MARKER + n).next_multiple_of(SECTOR as usize);
        out[MARKER + n..end].fill(0);
        out.truncate(end);
        Ok(out.freeze())
    })
}

/// Unpacks a grain into `out`; zeros behind what it has, which may be less than `out` but not than `least`.
fn unpack(markers: bool, sector: u64, packed: &[u8], out: &mut [u8], least: usize) -> Result<(), String> {
    let mut data = packed;
    if markers {
        let (head, rest) = packed.split_first_chunk::<MARKER>().ok_or("it has no marker")?;
        let place = head.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let len = head.last_chunk().map_or(0, |b| u32::from_le_bytes(*b)) as usize;
        if place != sector {
            return Err(format!("its marker says that it is of sector {place}"));
        }
        data = rest.get(..len).ok_or_else(|| format!("its {len} bytes are more than there are"))?;
    }
    let n = DECOMPRESSOR.with_borrow_mut(|d| d.zlib_decompress(data, out)).map_err(|e| e.to_string())?;
    if n < least {
        return Err(format!("it has {n} bytes only"));
    }
    out[n..].fill(0);
    Ok(())
}

/// What is being appended.
struct Writer {
    /// Whose turn it is to append.
    order: RangeLocks,
    tail: RefCell<IoBuf>,
    filled: Cell<usize>,
    /// Whole chunks on their way to the file.
    full: RefCell<Option<IoData>>,
    /// Bytes that are in the file.
    written: Cell<u64>,
    /// The table that grains were appended for last; it is the highest.
    highest: Cell<u64>,
    finished: Cell<bool>,
}

/// An extent of compressed grains.
pub struct PackedExtent {
    pub tables: SparseExtent,
    markers: bool,
    kept: RefCell<VecDeque<(u64, IoData)>>,
    writer: Option<Writer>,
}

impl PackedExtent {
    /// For reading.
    pub fn new(tables: SparseExtent, markers: bool) -> Self {
        Self { tables, markers, kept: RefCell::default(), writer: None }
    }

    /// For writing behind the `written` bytes that the file has.
    pub fn writer(tables: SparseExtent, written: u64) -> Self {
        let writer = Writer {
            order: RangeLocks::default(),
            tail: RefCell::new(IoBuf::new(CHUNK)),
            filled: Cell::new(0),
            full: RefCell::default(),
            written: Cell::new(written),
            highest: Cell::new(0),
            finished: Cell::new(false),
        };
        *tables.frozen.borrow_mut() = None;
        Self { tables, markers: true, kept: RefCell::default(), writer: Some(writer) }
    }

    pub async fn read(&self, at: u64, mut buf: IoBuf, below: Below<'_>) -> Result<IoBuf, Error> {
        if let Some(w) = &self.writer {
            let _turn = w.order.lock(0..1, true).await;
            self.drain(w).await?;
        }
        let grain = self.tables.grain();
        if !at.is_multiple_of(grain) || (buf.len() as u64) < grain {
            let (n, skip) = (at / grain, (at % grain) as usize);
            if skip + buf.len() <= grain as usize {
                let whole = self.one(n, below).await?;
                let len = buf.len();
                buf.copy_from_slice(&whole[skip..skip + len]);
                return Ok(buf);
            }
        }
        let mut runs = self.tables.runs(at, buf.len() as u64).await?;
        let mut parts = Vec::with_capacity(runs.len());
        let mut rest = buf;
        while !runs.is_empty() {
            let (n, span) = self.group(&runs);
            let group: Vec<Run> = runs.drain(..n).collect();
            let len: u64 = group.iter().map(|r| r.len).sum();
            let next = rest.split_off(len as usize);
            parts.push(self.read_group(group, span, std::mem::replace(&mut rest, next), below));
        }
        Ok(joined(join_all(parts).await.into_iter().collect::<Result<_, _>>()?))
    }

    /// Bytes that a grain can have in the file, with its marker.
    fn bound(&self, start: u64) -> u64 {
        let grain = self.tables.grain();
        (grain + grain / 8 + 1024).min(self.tables.file.size().saturating_sub(start))
    }

    /// How many of the first runs follow each other in the file, and how many bytes they take there at most.
    fn group(&self, runs: &[Run]) -> (usize, u64) {
        let Place::At(start) = runs[0].place else { return (1, 0) };
        let (mut n, mut last) = (1, start);
        while let Some(Run { place: Place::At(next), .. }) = runs.get(n)
            && *next > last
            && next - last <= self.bound(last)
            && next - start < READ_AT_ONCE
        {
            (n, last) = (n + 1, *next);
        }
        (n, last - start + self.bound(last))
    }

    async fn read_group(
        &self,
        runs: Vec<Run>,
        span: u64,
        mut buf: IoBuf,
        below: Below<'_>,
    ) -> Result<IoBuf, Error> {
        let first = runs[0];
        let Place::At(start) = first.place else {
            if first.place == Place::None {
                return below.read(first.at, buf).await;
            }
            buf.fill(0);
            return Ok(buf);
        };
        let packed = self.tables.file.read(start, IoBuf::new(span as usize)).await?.freeze();
        let mut jobs = Vec::with_capacity(runs.len());
        let mut rest = buf;
        for run in runs {
            let next = rest.split_off(run.len as usize);
            let out = std::mem::replace(&mut rest, next);
            let Place::At(at) = run.place else { unreachable!("groups of more than one are of grains") };
            jobs.push(self.unpack(run, packed.slice((at - start) as usize..), out));
        }
        Ok(joined(join_all(jobs).await.into_iter().collect::<Result<_, _>>()?))
    }

    async fn unpack(&self, run: Run, packed: IoData, out: IoBuf) -> Result<IoBuf, Error> {
        let (grain, capacity) = {
            let g = self.tables.geometry.borrow();
            (g.grain, g.capacity)
        };
        let number = run.at / grain;
        let least = grain.min(capacity - number * grain) as usize;
        let (sector, skip, markers) = (number * (grain / SECTOR), (run.at % grain) as usize, self.markers);
        let result = offload(move || {
            let mut out = out;
            if out.len() == grain as usize {
                return unpack(markers, sector, &packed, &mut out, least).map(|()| out);
            }
            let mut whole = IoBuf::new(grain as usize);
            unpack(markers, sector, &packed, &mut whole, least)?;
            let len = out.len();
            out.copy_from_slice(&whole[skip..skip + len]);
            Ok(out)
        });
        result.await.map_err(|why| {
            Error::corrupt(self.tables.name(), format!("grain {number} cannot be unpacked: {why}"))
        })
    }

    /// A whole grain, from memory if it was read lately.
    async fn one(&self, number: u64, below: Below<'_>) -> Result<IoData, Error> {
        if let Some((_, data)) = self.kept.borrow().iter().find(|k| k.0 == number) {
            return Ok(data.clone());
        }
        let grain = self.tables.grain();
        let len = grain.min(self.tables.geometry.borrow().capacity - number * grain);
        let run = self.tables.run(number * grain, len).await?;
        let span = match run.place {
            Place::At(at) => self.bound(at),
            _ => 0,
        };
        let data = self.read_group(vec![run], span, IoBuf::new(len as usize), below).await?.freeze();
        if span == 0 {
            return Ok(data);
        }
        let mut kept = self.kept.borrow_mut();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((number, data.clone()));
        Ok(data)
    }

    fn open_writer(&self) -> Result<&Writer, Error> {
        self.writer.as_ref().filter(|w| !w.finished.get()).ok_or_else(|| self.refuse("it is complete"))
    }

    fn refuse(&self, why: &str) -> Error {
        let doing = format!("cannot write to '{}'", self.tables.name());
        let why = format!("a stream-optimized image is written once, from start to end, and {why}");
        Error::new(ErrorKind::ReadOnly, doing, why)
    }

    pub async fn write(&self, at: u64, data: IoData) -> Result<(), Error> {
        let w = self.open_writer()?;
        let (grain, capacity) = {
            let g = self.tables.geometry.borrow();
            (g.grain, g.capacity)
        };
        let mut jobs = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let pos = at + done as u64;
            let n = ((grain - pos % grain) as usize).min(data.len() - done);
            let part = data.slice(done..done + n);
            let whole = if n as u64 == grain {
                part
            } else {
                // What else is in the grain reads as zeros, and must not be written any more.
                let mut buf = IoBuf::zeroed(grain.min(capacity - pos / grain * grain) as usize);
                let skip = (pos % grain) as usize;
                buf[skip..skip + n].copy_from_slice(&part);
                buf.freeze()
            };
            jobs.push(self.write_grain(w, pos / grain, whole));
            done += n;
        }
        join_all(jobs).await.into_iter().collect()
    }

    async fn write_grain(&self, w: &Writer, number: u64, data: IoData) -> Result<(), Error> {
        let grain = self.tables.grain();
        let zero = is_zero(&data);
        let sector = number * (grain / SECTOR);
        // The turn is taken now, so that grains come in the order of the requests, whichever is packed first.
        let turn = w.order.lock(0..1, true);
        let packed = async {
            if zero {
                return Ok(None);
            }
            offload(move || {
                let mut full = data;
                if (full.len() as u64) < grain {
                    let mut buf = IoBuf::zeroed(grain as usize);
                    buf[..full.len()].copy_from_slice(&full);
                    full = buf.freeze();
                }
                pack(sector, &full)
            })
            .await
            .map(Some)
        };
        let (turn, packed) = join(turn, packed).await;
        let failed = |why: String| {
            Error::new(ErrorKind::Io, format!("cannot compress for '{}'", self.tables.name()), why)
        };
        let packed = packed.map_err(failed)?;
        let entries = self.tables.geometry.borrow().entries;
        let table = number / entries;
        if table > w.highest.get() {
            self.write_tables(w, &turn).await?;
            w.highest.set(table);
        }
        if self.tables.table_at(table).is_some() {
            self.drain(w).await?;
        }
        let run = self.tables.run(number * grain, 1).await?;
        if run.place != Place::None {
            return Err(self.refuse(&format!("byte {} was written before", number * grain)));
        }
        let Some(packed) = packed else { return Ok(()) };
        let at = self.append(w, &packed).await?;
        self.tables.pending.borrow_mut().insert(number, self.sector(at)?);
        if self.tables.pending.borrow().len() > MAX_PENDING {
            self.write_tables(w, &turn).await?;
        }
        Ok(())
    }

    fn sector(&self, at: u64) -> Result<u32, Error> {
        u32::try_from(at / SECTOR).map_err(|_| {
            let doing = format!("cannot write to '{}'", self.tables.name());
            Error::new(ErrorKind::NoSpace, doing, "an extent can hold 2 TiB at most")
        })
    }

    /// Puts bytes at the end: where they are.
    async fn append(&self, w: &Writer, bytes: &[u8]) -> Result<u64, Error> {
        if w.full.borrow().is_some() || w.filled.get() + bytes.len() > w.tail.borrow().len() {
            self.drain(w).await?;
            if bytes.len() > w.tail.borrow().len() {
                *w.tail.borrow_mut() = IoBuf::new(bytes.len());
            }
        }
        let at = w.filled.get();
        w.tail.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        w.filled.set(at + bytes.len());
        let end = w.written.get() + w.filled.get() as u64;
        self.tables.reserved.set(end);
        Ok(end - bytes.len() as u64)
    }

    /// Writes what was appended. It is tried again the next time if it fails.
    async fn drain(&self, w: &Writer) -> Result<(), Error> {
        loop {
            let full = w.full.borrow().clone();
            if let Some(data) = full {
                let len = data.len() as u64;
                self.tables.file.write(w.written.get(), data).await?;
                w.written.set(w.written.get() + len);
                *w.full.borrow_mut() = None;
            }
            let filled = w.filled.replace(0);
            if filled == 0 {
                return Ok(());
            }
            let mut tail = w.tail.replace(IoBuf::new(CHUNK));
            tail.truncate(filled);
            *w.full.borrow_mut() = Some(tail.freeze());
        }
    }

    fn marker(kind: u32, sectors: u64) -> Vec<u8> {
        let mut m = vec![0; SECTOR as usize];
        m[..8].copy_from_slice(&sectors.to_le_bytes());
        m[12..16].copy_from_slice(&kind.to_le_bytes());
        m
    }

    /// Appends all tables that have entries which are not written.
    async fn write_tables(&self, w: &Writer, _turn: &RangeGuard) -> Result<(), Error> {
        let entries = self.tables.geometry.borrow().entries;
        loop {
            let first = self.tables.pending.borrow().keys().next().copied();
            let Some(first) = first else { return Ok(()) };
            let table = first / entries;
            let mut bytes = vec![0; SECTOR as usize + entries as usize * 4];
            if let Some(old) = self.tables.table_at(table) {
                // Grains came back to a table that was written.
                self.drain(w).await?;
                let old = self.tables.tables.load(old, "a grain table").await?;
                old.with(|b| bytes[SECTOR as usize..].copy_from_slice(b));
            }
            bytes[..SECTOR as usize].copy_from_slice(&Self::marker(TABLE, entries * 4 / SECTOR));
            for (&grain, &sector) in
                self.tables.pending.borrow().range(table * entries..(table + 1) * entries)
            {
                let at = SECTOR as usize + (grain % entries) as usize * 4;
                bytes[at..at + 4].copy_from_slice(&sector.to_le_bytes());
            }
            let at = self.append(w, &bytes).await? + SECTOR;
            self.tables.directory.borrow_mut()[table as usize] = self.sector(at)?;
            self.tables.pending.borrow_mut().retain(|g, _| g / entries != table);
        }
    }

    /// Zeros can only be where nothing was written.
    pub async fn write_zeroes(&self, at: u64, len: u64) -> Result<(), Error> {
        let w = self.open_writer()?;
        let _turn = w.order.lock(0..1, true).await;
        self.drain(w).await?;
        let mut pos = at;
        while pos < at + len {
            let run = self.tables.run(pos, at + len - pos).await?;
            if matches!(run.place, Place::At(_)) {
                return Err(self.refuse(&format!("byte {pos} was written before")));
            }
            pos += run.len;
        }
        Ok(())
    }

    pub async fn flush(&self) -> Result<(), Error> {
        if let Some(w) = &self.writer {
            let _turn = w.order.lock(0..1, true).await;
            self.drain(w).await?;
            self.tables.file.flush().await?;
        }
        Ok(())
    }

    /// Completes the stream: tables, directory, footer, end.
    pub async fn finish(&self) -> Result<(), Error> {
        let Some(w) = self.writer.as_ref().filter(|w| !w.finished.get()) else { return Ok(()) };
        let turn = w.order.lock(0..1, true).await;
        self.write_tables(w, &turn).await?;
        let mut directory: Vec<u8> =
            self.tables.directory.borrow().iter().flat_map(|word| word.to_le_bytes()).collect();
        directory.resize(directory.len().next_multiple_of(SECTOR as usize), 0);
        self.append(w, &Self::marker(DIRECTORY, directory.len() as u64 / SECTOR)).await?;
        let at = self.append(w, &directory).await?;
        let Some(header) = self.tables.header.borrow().clone() else {
            unreachable!("what is created has a header")
        };
        self.append(w, &Self::marker(FOOTER, 1)).await?;
        self.append(w, &Hosted { directory: at / SECTOR, ..header }.encode()).await?;
        self.append(w, &[0; SECTOR as usize]).await?;
        self.drain(w).await?;
        self.tables.file.flush().await?;
        w.finished.set(true);
        Ok(())
    }
}
