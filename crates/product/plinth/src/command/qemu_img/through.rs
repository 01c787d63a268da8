//! Another node as an image, without a change to what it says of itself.

use std::rc::Rc;

use plinth_image::format::{CheckReport, Description, Format, Image, Progress, Repair};
use plinth_image::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef};
use plinth_image::{Error, ErrorKind};

/// The node.
pub struct Through {
    /// What all requests go to.
    pub node: NodeRef,
    /// The image that this is over.
    pub image: Option<Rc<dyn Image>>,
}

impl Node for Through {
    fn info(&self) -> &NodeInfo {
        self.node.info()
    }

    fn size(&self) -> u64 {
        self.node.size()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        self.node.read(offset, buf)
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        self.node.write(offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        self.node.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        self.node.discard(offset, len)
    }

    fn flush(&self) -> Io<'_, ()> {
        self.node.flush()
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        self.node.status(offset, len)
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        self.node.resize(size)
    }

    fn close(&self) -> Io<'_, ()> {
        self.node.close()
    }

    fn is_open_ended(&self) -> bool {
        self.node.is_open_ended()
    }
}

impl Image for Through {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn describe(&self) -> Description {
        let backing = self.image.as_ref().and_then(|i| i.describe().backing);
        Description { backing, ..Description::default() }
    }

    fn backing(&self) -> Option<NodeRef> {
        self.image.as_ref().and_then(|i| i.backing())
    }

    fn check<'a>(&'a self, _repair: Repair, _progress: &'a Progress) -> Io<'a, CheckReport> {
        let doing = format!("cannot check '{}'", self.info().name);
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, doing, "it has no format")) })
    }
}
