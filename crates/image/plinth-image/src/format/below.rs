//! The image below one that is being made.

use std::rc::Rc;

use super::BackingLink;
use crate::graph::{Extent, Io, IoBuf, NodeInfo, NodeRef, ReadNode};
use crate::{Error, ErrorKind};

/// The image below a new one.
#[derive(Clone)]
pub struct Backing {
    /// What the new image says of it.
    pub link: BackingLink,
    /// It, open. Without it nothing can be read from the new image, nor be written in parts of clusters, until the
    /// new image is opened again.
    pub node: Option<NodeRef>,
}

impl From<BackingLink> for Backing {
    fn from(link: BackingLink) -> Self {
        Self { link, node: None }
    }
}

impl Backing {
    /// What the new image reads through to.
    #[must_use]
    pub fn below(&self) -> NodeRef {
        self.node.clone().unwrap_or_else(|| Rc::new(Unopened::new(&self.link)))
    }
}

/// Bytes behind `old` that an image which grows to `new` must cover with zeros, because what is below has something
/// there. `None` if there are none.
pub fn hidden_below(below: Option<&NodeRef>, old: u64, new: u64) -> Option<u64> {
    below?.size().min(new).checked_sub(old).filter(|&len| len > 0)
}

/// An image below that nobody has opened: it has contents, but they cannot be had.
struct Unopened {
    info: NodeInfo,
}

impl Unopened {
    fn new(link: &BackingLink) -> Self {
        let info = NodeInfo { name: link.name.clone(), read_only: true, block: 512 };
        Self { info }
    }
}

impl ReadNode for Unopened {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        i64::MAX as u64
    }

    fn read(&self, _offset: u64, _buf: IoBuf) -> Io<'_, IoBuf> {
        let doing = format!("cannot read '{}', the image below a new one", self.info.name);
        let why = "it was not open when the new image was made: open the new image again";
        Box::pin(async move { Err(Error::new(ErrorKind::Unsupported, doing, why)) })
    }

    fn status(&self, _offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move { Ok(Extent::stored(len, None)) })
    }
}
