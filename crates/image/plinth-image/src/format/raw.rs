//! Raw images: the file's bytes are the disk's.

use std::cell::Cell;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use super::image::unsupported;
use super::{
    CheckReport, CreateRequest, Description, Driver, Format, Image, OpenRequest, OptionKind, OptionSpec,
    Progress, Repair,
};
use crate::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef, check_range, check_write, is_zero};
use crate::{Error, SECTOR};

/// Raw images.
pub static DRIVER: Driver = Driver {
    format: Format::Raw,
    // They have no mark; whatever no other format claims is taken for raw.
    probe: |_| false,
    open,
    create: Some(create),
    options: &[OptionSpec {
        name: "preallocation",
        kind: OptionKind::Choice(&["off", "falloc", "full"]),
        help: "reserve the space: off, falloc (quick), full (written)",
    }],
};

/// A disk whose bytes are a node's.
///
/// A file that ends within a sector is padded: the last sector's missing bytes read as zeros, and a write to them
/// makes the file longer. What cannot become longer, as an export, takes nothing but zeros there.
pub struct RawImage {
    info: NodeInfo,
    file: NodeRef,
    size: Cell<u64>,
}

fn open(request: OpenRequest) -> Io<'static, Rc<dyn Image>> {
    Box::pin(
        async move { Ok(Rc::new(RawImage::new(request.file, request.options.read_only)) as Rc<dyn Image>) },
    )
}

fn create<'a>(request: CreateRequest<'a>) -> Io<'a, Rc<dyn Image>> {
    Box::pin(async move {
        if request.backing.is_some() {
            let why = "a raw image has no place to write it down";
            let doing = format!("cannot create '{}' over another image", request.output.name());
            return Err(Error::new(crate::ErrorKind::Unsupported, doing, why));
        }
        let file = request.output.main().await?;
        match request.options.text("preallocation") {
            Some("full") => crate::graph::write_zero_bytes(&*file, 0, request.size).await?,
            Some("falloc") => file.write_zeroes(0, request.size, false).await?,
            _ => file.write_zeroes(0, request.size, true).await?,
        }
        Ok(Rc::new(RawImage::new(file, false)) as Rc<dyn Image>)
    })
}

impl RawImage {
    /// A disk of what `file` holds.
    #[must_use]
    pub fn new(file: NodeRef, read_only: bool) -> Self {
        let len = file.size();
        let size = len.checked_next_multiple_of(SECTOR).unwrap_or(len - len % SECTOR);
        let info = NodeInfo { read_only: read_only || file.info().read_only, ..file.info().clone() };
        Self { info, file, size: Cell::new(size) }
    }

    /// How much of a range the node below has, where that is not all, and the rest is not its business.
    fn cut(&self, offset: u64, len: u64) -> Option<u64> {
        let inside = self.file.size().saturating_sub(offset).min(len);
        (inside < len && !self.file.is_open_ended()).then_some(inside)
    }
}

impl Node for RawImage {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        let len = buf.len() as u64;
        match (check_range(self, "read", offset, len), self.cut(offset, len)) {
            (Err(e), _) => Box::pin(async { Err(e) }),
            (Ok(()), None) => self.file.read(offset, buf),
            (Ok(()), Some(inside)) => Box::pin(async move {
                let mut buf = buf;
                let (there, padding) = buf.split_at_mut(inside as usize);
                if inside > 0 {
                    there.copy_from_slice(&self.file.read(offset, IoBuf::new(inside as usize)).await?);
                }
                padding.fill(0);
                Ok(buf)
            }),
        }
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        match check_write(self, offset, data.len() as u64) {
            Ok(()) => match self.cut(offset, data.len() as u64) {
                Some(inside) if is_zero(&data[inside as usize..]) => {
                    self.file.write(offset, data.slice(..inside as usize))
                }
                _ => self.file.write(offset, data),
            },
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        match check_write(self, offset, len) {
            Ok(()) => self.file.write_zeroes(offset, self.cut(offset, len).unwrap_or(len), unmap),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        match check_write(self, offset, len) {
            Ok(()) => self.file.discard(offset, self.cut(offset, len).unwrap_or(len)),
            Err(e) => Box::pin(async { Err(e) }),
        }
    }

    fn flush(&self) -> Io<'_, ()> {
        self.file.flush()
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let mut extent = match self.cut(offset, len) {
                None => self.file.status(offset, len).await?,
                Some(0) => Extent::zeros(len),
                Some(inside) => self.file.status(offset, inside).await?,
            };
            // Past the page cache there are only whole blocks: the last sector is as its stored part.
            let whole = self.info.block > 1;
            if whole && offset < self.file.size() && offset + extent.len == self.file.size() {
                extent.len = len.min(self.size.get() - offset);
            }
            // Every byte of a raw disk is there, holes too.
            Ok(Extent { present: true, host: Some(offset), ..extent })
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, 0, 0)?;
            self.file.resize(size).await?;
            self.size.set(size);
            Ok(())
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            self.file.flush().await?;
            self.file.close().await
        })
    }

    fn host_file(&self) -> Option<Arc<File>> {
        self.file.host_file()
    }
}

impl Image for RawImage {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn describe(&self) -> Description {
        Description::default()
    }

    fn backing(&self) -> Option<NodeRef> {
        None
    }

    fn preallocate<'a>(&'a self, offset: u64, len: u64, how: &'a str) -> Io<'a, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            match how {
                "full" => crate::graph::write_zero_bytes(&*self.file, offset, len).await,
                "falloc" => self.file.write_zeroes(offset, len, false).await,
                _ => Err(unsupported(self.info(), Format::Raw, "reserve space by metadata in")),
            }
        })
    }

    fn check<'a>(&'a self, _repair: Repair, _progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move { Err(unsupported(self.info(), Format::Raw, "check")) })
    }
}
