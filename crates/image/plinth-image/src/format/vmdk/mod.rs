//! VMware's disks: one file or several, in all of their kinds.
//!
//! A [descriptor] says of which extents the disk is made. An extent holds the bytes as they are, in
//! [grains](sparse), or in compressed grains ([packed]). Source: VMware, "Virtual Disk Format 5.0".
//!
//! Files that a descriptor names are opened by [`Links`](super::Links) alone, which has the policy.
//!
//! # Order of writes
//!
//! A child knows its parent's state by a content ID. The first write of a session gives the image a new one, in
//! place (at most eight bytes within one sector), and makes it durable before any data changes: a child then never
//! takes changed data for what it was made over. The order within extents is [theirs](sparse).

mod check;
mod create;
mod descriptor;
mod header;
mod open;
mod packed;
mod resize;
mod sparse;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use async_lock::Mutex;
use futures_util::future::join_all;

use super::image::unsupported;
use super::{BackingLink, CheckReport, Description, Driver, Format, Image, Progress, Repair};
use crate::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, check_range, joined};
use crate::{Error, ErrorKind};
pub use descriptor::BAD_EXTENT;
use descriptor::{Access, Descriptor};
use packed::PackedExtent;
pub use sparse::CUT_SHORT;
use sparse::{Below, SparseExtent};

/// How the error of a directory that is too large begins.
pub const LARGE_DIRECTORY: &str = "its grain directory would have";

/// VMware's disks.
pub static DRIVER: Driver = Driver {
    format: Format::Vmdk,
    probe: |sample| {
        sample.head.starts_with(b"KDMV") || sample.head.starts_with(b"COWD") || descriptor::probe(sample.head)
    },
    open: open::open,
    create: Some(create::create),
    options: create::OPTIONS,
};

/// Where an extent's bytes are.
enum Data {
    /// As they are, from this byte of the file.
    Flat { file: NodeRef, offset: u64 },
    /// Nowhere.
    Zero,
    /// In grains.
    Sparse(Box<SparseExtent>),
    /// In compressed grains.
    Packed(Box<PackedExtent>),
}

impl Data {
    fn file(&self) -> Option<&NodeRef> {
        match self {
            Data::Flat { file, .. } => Some(file),
            Data::Zero => None,
            Data::Sparse(e) => Some(&e.file),
            Data::Packed(e) => Some(&e.tables.file),
        }
    }

    fn sparse(&self) -> Option<&SparseExtent> {
        match self {
            Data::Sparse(e) => Some(e),
            Data::Packed(e) => Some(&e.tables),
            _ => None,
        }
    }
}

/// One extent's place in the disk, in bytes.
struct Piece {
    start: u64,
    len: Cell<u64>,
    access: Access,
    kind: descriptor::Kind,
    data: Data,
}

/// Where the descriptor is.
struct Place {
    file: NodeRef,
    offset: u64,
    /// Bytes that it may have.
    room: u64,
    text: RefCell<Descriptor>,
    /// It was written, and nobody has flushed the file since.
    fresh: Cell<bool>,
}

impl Place {
    /// Writes the text anew, with zeros behind it.
    async fn write(&self, text: Descriptor) -> Result<(), Error> {
        let bytes = text.to_bytes();
        if bytes.len() as u64 > self.room {
            let doing = format!("cannot change the description of '{}'", self.file.info().name);
            let why = format!("it would have {} bytes, and there is room for {}", bytes.len(), self.room);
            return Err(Error::new(ErrorKind::NoSpace, doing, why));
        }
        let old = self.text.borrow().to_bytes().len();
        let mut data = IoBuf::zeroed(if self.offset == 0 { bytes.len() } else { bytes.len().max(old) });
        data[..bytes.len()].copy_from_slice(&bytes);
        self.file.write(self.offset, data.freeze()).await?;
        if self.offset == 0 {
            self.file.resize(bytes.len() as u64).await?;
        }
        self.file.flush().await?;
        *self.text.borrow_mut() = text;
        Ok(())
    }
}

/// An open disk.
pub struct VmdkImage {
    info: NodeInfo,
    create_type: String,
    size: Cell<u64>,
    pieces: Vec<Piece>,
    descriptor: Option<Place>,
    backing: Option<NodeRef>,
    link: RefCell<Option<BackingLink>>,
    /// True when the content ID was changed.
    changed: Mutex<bool>,
    /// Why it can only be read, if the image itself is the reason.
    frozen: Option<String>,
}

fn random() -> Result<u32, Error> {
    let mut bytes = [0; 4];
    let failed = |e: rustix::io::Errno| Error::from_host("make a content ID for", "a disk", e.into());
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// A part of a request that lies in one piece: the piece, the byte within it, and how many.
type Part<'a> = (&'a Piece, u64, u64);

impl VmdkImage {
    /// The piece that has a byte, and the byte within it.
    fn piece(&self, offset: u64) -> (&Piece, u64) {
        let n = self.pieces.partition_point(|p| p.start <= offset).max(1) - 1;
        let piece = &self.pieces[n];
        (piece, offset - piece.start)
    }

    fn parts(&self, offset: u64, len: u64) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < len {
            let (piece, at) = self.piece(offset + done);
            let n = (piece.len.get() - at).min(len - done);
            parts.push((piece, at, n));
            done += n;
        }
        parts
    }

    fn below(&self, piece: &Piece) -> Below<'_> {
        let node = self.backing.as_deref().map(|b| b as &dyn Node);
        Below { node, base: piece.start }
    }

    fn refuse(&self, doing: &str, why: &str) -> Error {
        Error::new(ErrorKind::ReadOnly, format!("cannot {doing} '{}'", self.info.name), why)
    }

    async fn read_piece(&self, (piece, at, _): Part<'_>, mut buf: IoBuf) -> Result<IoBuf, Error> {
        if piece.access == Access::None {
            let why = format!("the extent at byte {} is marked as not accessible", piece.start);
            return Err(Error::new(ErrorKind::Denied, format!("cannot read '{}'", self.info.name), why));
        }
        match &piece.data {
            Data::Flat { file, offset } => file.read(offset + at, buf).await,
            Data::Zero => {
                buf.fill(0);
                Ok(buf)
            }
            Data::Sparse(e) => e.read(at, buf, self.below(piece)).await,
            Data::Packed(e) => e.read(at, buf, self.below(piece)).await,
        }
    }

    /// What must be before anything is written.
    async fn begin_write(&self, offset: u64, len: u64) -> Result<(), Error> {
        if let Some(why) = &self.frozen {
            return Err(self.refuse("write to", why));
        }
        crate::graph::check_write(self, offset, len)?;
        for (piece, ..) in self.parts(offset, len) {
            if piece.access != Access::ReadWrite || matches!(piece.data, Data::Zero) {
                let why = format!("the extent at byte {} is not for writing", piece.start);
                return Err(self.refuse("write to", &why));
            }
        }
        let Some(place) = &self.descriptor else { return Ok(()) };
        let mut changed = self.changed.lock().await;
        if *changed {
            return Ok(());
        }
        let (text, found, old) = {
            let text = place.text.borrow();
            (text.clone(), text.place("CID"), text.cid(&self.info.name)?)
        };
        match found {
            Some((at, digits @ 1..=8)) => {
                // As many digits as before, so that nothing else moves.
                let mask = u32::MAX >> (32 - 4 * digits);
                let mut cid = random()? & mask;
                while cid == old || cid >= u32::MAX - 1 {
                    cid = random()? & mask;
                }
                let digits = format!("{cid:0digits$x}");
                place.file.write(place.offset + at as u64, IoData::copy_of(digits.as_bytes())).await?;
                place.file.flush().await?;
                place.text.borrow_mut().set("CID", Some(&format!("CID={digits}")), "version");
            }
            _ => {
                let mut text = text;
                text.set("CID", Some(&format!("CID={:08x}", random()? >> 1)), "version");
                place.write(text).await?;
            }
        }
        *changed = true;
        Ok(())
    }

    async fn write_piece(&self, (piece, at, _): Part<'_>, data: IoData) -> Result<(), Error> {
        match &piece.data {
            Data::Flat { file, offset } => file.write(offset + at, data).await,
            Data::Zero => unreachable!("refused before"),
            Data::Sparse(e) => e.write(at, data, self.below(piece)).await,
            Data::Packed(e) => e.write(at, data).await,
        }
    }

    /// All files of the disk, each once.
    fn files(&self) -> Vec<&NodeRef> {
        let mut files: Vec<&NodeRef> = self.pieces.iter().filter_map(|p| p.data.file()).collect();
        if let Some(place) = &self.descriptor
            && !files.iter().any(|f| Rc::ptr_eq(f, &place.file))
        {
            files.push(&place.file);
        }
        files
    }
}

impl Node for VmdkImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let len = buf.len() as u64;
            check_range(self, "read", offset, len)?;
            let parts = self.parts(offset, len);
            if let [part] = parts[..] {
                return self.read_piece(part, buf).await;
            }
            let mut rest = buf;
            let mut jobs = Vec::with_capacity(parts.len());
            for part in parts {
                let next = rest.split_off(part.2 as usize);
                jobs.push(self.read_piece(part, std::mem::replace(&mut rest, next)));
            }
            jobs_done(join_all(jobs).await)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            let len = data.len() as u64;
            self.begin_write(offset, len).await?;
            let mut jobs = Vec::new();
            let mut done = 0;
            for part in self.parts(offset, len) {
                jobs.push(self.write_piece(part, data.slice(done..done + part.2 as usize)));
                done += part.2 as usize;
            }
            join_all(jobs).await.into_iter().collect()
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            self.begin_write(offset, len).await?;
            for (piece, at, n) in self.parts(offset, len) {
                match &piece.data {
                    Data::Flat { file, offset } => file.write_zeroes(offset + at, n, unmap).await?,
                    Data::Zero => {}
                    Data::Sparse(e) => e.write_zeroes(at, n, unmap, self.below(piece)).await?,
                    Data::Packed(e) => e.write_zeroes(at, n).await?,
                }
            }
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            self.begin_write(offset, len).await?;
            for (piece, at, n) in self.parts(offset, len) {
                match &piece.data {
                    Data::Flat { file, offset } => file.discard(offset + at, n).await?,
                    Data::Sparse(e) => e.discard(at, n).await?,
                    Data::Zero | Data::Packed(_) => {}
                }
            }
            Ok(())
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if self.info.read_only {
                return Ok(());
            }
            let jobs = self.pieces.iter().map(|piece| async move {
                match &piece.data {
                    Data::Flat { file, .. } => file.flush().await,
                    Data::Zero => Ok(()),
                    Data::Sparse(e) => e.flush().await,
                    Data::Packed(e) => e.flush().await,
                }
            });
            join_all(jobs).await.into_iter().collect::<Result<(), Error>>()?;
            match &self.descriptor {
                Some(place) if place.fresh.get() => {
                    place.file.flush().await?;
                    place.fresh.set(false);
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            if len == 0 {
                return Ok(Extent::hole(0));
            }
            let (piece, at) = self.piece(offset);
            let n = (piece.len.get() - at).min(len);
            let e = match &piece.data {
                Data::Flat { file, offset } => {
                    let e = file.status(offset + at, n).await?;
                    Extent { present: true, host: Some(offset + at), ..e }
                }
                Data::Zero => Extent::zeros(n),
                Data::Sparse(e) => e.status(at, n, self.below(piece)).await?,
                Data::Packed(e) => e.tables.status(at, n, self.below(piece)).await?,
            };
            Ok(e)
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(self.resize_to(size))
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if !self.info.read_only {
                for piece in &self.pieces {
                    match &piece.data {
                        Data::Flat { file, .. } => file.flush().await?,
                        Data::Zero => {}
                        Data::Sparse(e) => e.close().await?,
                        Data::Packed(e) => e.finish().await?,
                    }
                }
            }
            for file in self.files() {
                file.close().await?;
            }
            match &self.backing {
                Some(backing) => backing.close().await,
                None => Ok(()),
            }
        })
    }
}

fn jobs_done(results: Vec<Result<IoBuf, Error>>) -> Result<IoBuf, Error> {
    Ok(joined(results.into_iter().collect::<Result<_, _>>()?))
}

impl Image for VmdkImage {
    fn format(&self) -> Format {
        Format::Vmdk
    }

    fn describe(&self) -> Description {
        let text = self.descriptor.as_ref().map(|p| p.text.borrow());
        let cid = text.as_ref().and_then(|t| t.cid(&self.info.name).ok());
        let parent = text.as_ref().and_then(|t| t.parent_cid(&self.info.name).ok().flatten());
        let mut details = serde_json::Map::new();
        details.insert("cid".into(), cid.unwrap_or(0).into());
        details.insert("parent-cid".into(), parent.unwrap_or(descriptor::NO_PARENT).into());
        details.insert("create-type".into(), self.create_type.clone().into());
        let extents = self.pieces.iter().map(|piece| {
            let mut e = serde_json::Map::new();
            let name = piece.data.file().map_or("", |f| f.info().name.as_str());
            e.insert("filename".into(), name.into());
            e.insert("format".into(), piece.kind.name().into());
            e.insert("virtual-size".into(), piece.len.get().into());
            if let Some(sparse) = piece.data.sparse() {
                e.insert("cluster-size".into(), sparse.grain().into());
                e.insert("compressed".into(), sparse.packed.into());
            }
            serde_json::Value::Object(e)
        });
        details.insert("extents".into(), extents.collect::<Vec<_>>().into());
        if let Some(why) = &self.frozen {
            details.insert("read-only-because".into(), why.clone().into());
        }
        let sparse = || self.pieces.iter().filter_map(|p| p.data.sparse());
        Description {
            cluster_size: sparse().next().map(SparseExtent::grain),
            compressed: sparse().next().is_some() && sparse().all(|s| s.packed),
            dirty: sparse().any(|s| s.geometry.borrow().unclean),
            backing: self.link.borrow().clone(),
            identity: cid.map(|c| format!("{c:08x}")),
            details,
            ..Description::default()
        }
    }

    fn data_files(&self) -> Vec<(u64, String)> {
        let name = |p: &Piece| p.data.file().map_or("", |f| f.info().name.as_str()).to_owned();
        self.pieces.iter().map(|p| (p.start, name(p))).collect()
    }

    fn backing(&self) -> Option<NodeRef> {
        self.backing.clone().map(|b| b as NodeRef)
    }

    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(self.check_all(repair, progress))
    }

    fn write_compressed(&self, offset: u64, data: IoData) -> Option<Io<'_, ()>> {
        let packed = |p: &Piece| matches!(&p.data, Data::Packed(_));
        self.pieces.iter().all(packed).then(|| self.write(offset, data))
    }

    fn set_backing<'a>(&'a self, link: Option<&'a BackingLink>) -> Io<'a, ()> {
        Box::pin(async move {
            if let Some(why) = &self.frozen {
                return Err(self.refuse("change the parent of", why));
            }
            crate::graph::check_write(self, 0, 0)?;
            let sparse = self.pieces.iter().all(|p| matches!(p.data, Data::Sparse(_)));
            let Some(place) = self.descriptor.as_ref().filter(|_| sparse) else {
                return Err(unsupported(self.info(), Format::Vmdk, "change the parent of"));
            };
            let mut text = place.text.borrow().clone();
            match link {
                None => {
                    text.set("parentCID", Some("parentCID=ffffffff"), "CID");
                    text.set("parentFileNameHint", None, "");
                }
                Some(link) => {
                    let invalid = |why: &str| {
                        let doing = format!("cannot change the parent of '{}'", self.info.name);
                        Error::new(ErrorKind::Invalid, doing, why)
                    };
                    let cid = link.identity.as_deref().and_then(|i| u32::from_str_radix(i, 16).ok());
                    let cid = cid.ok_or_else(|| invalid("the content ID of the new parent is not known"))?;
                    create::check_name(&link.name).map_err(|why| invalid(&why))?;
                    text.set("parentCID", Some(&format!("parentCID={cid:08x}")), "CID");
                    let hint = format!("parentFileNameHint=\"{}\"", link.name);
                    text.set("parentFileNameHint", Some(&hint), "createType");
                }
            }
            place.write(text).await?;
            *self.link.borrow_mut() = link.cloned();
            Ok(())
        })
    }
}
