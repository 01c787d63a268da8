//! Images of blocks as nodes and images.

use std::rc::Rc;

use super::{BackingLink, BlockImage, CheckReport, Description, Format, Image, Layout, Progress, Repair};
use crate::format::below::hidden_below;
use crate::graph::{Extent, Io, IoBuf, IoData, Node, NodeInfo, NodeRef};
use crate::{Error, ErrorKind, SECTOR};

impl<L: Layout> Node for BlockImage<L> {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(self.do_read(offset, buf))
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(self.do_write(offset, data))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(self.do_zero(offset, len, unmap))
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(self.do_discard(offset, len))
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(self.commit())
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(self.do_status(offset, len))
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            self.refuse_unless_writable("resize")?;
            if !size.is_multiple_of(SECTOR) || size == 0 {
                let doing = format!("cannot resize '{}' to {size} bytes", self.info.name);
                return Err(Error::new(ErrorKind::Invalid, doing, "a size is a multiple of 512 bytes"));
            }
            let alone = self.gate.write().await;
            self.layout.begin().await?;
            self.commit().await?;
            let old = self.size.get();
            if size > old {
                // The end of the last block may have something that could not be seen.
                self.clear_tail(old, size).await?;
            }
            if size != old {
                self.layout.resize(old, size).await?;
                self.size.set(size);
            }
            drop(alone);
            match hidden_below(self.backing.as_ref(), old, size) {
                Some(len) => self.write_zeroes(old, len, true).await,
                None => Ok(()),
            }
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            let _alone = self.gate.write().await;
            self.commit().await?;
            if !self.info.read_only {
                self.layout.close().await?;
                self.layout.file().flush().await?;
            }
            self.layout.file().close().await?;
            match &self.backing {
                Some(backing) => backing.close().await,
                None => Ok(()),
            }
        })
    }
}

impl<L: Layout> BlockImage<L> {
    /// Makes the bytes of the last block that come into sight read as zeros.
    async fn clear_tail(&self, old: u64, new: u64) -> Result<(), Error> {
        use super::Place;
        let size = self.layout.block_size();
        let block = old / size;
        let len = (new - old).min(size - old % size);
        if old.is_multiple_of(size) {
            return Ok(());
        }
        if let Place::Full(host) | Place::Partial(host) = self.lookup(block).await? {
            self.layout.file().write_zeroes(host + old % size, len, true).await?;
            self.layout.file().flush().await?;
        }
        Ok(())
    }
}

impl<L: Layout> Image for BlockImage<L> {
    fn format(&self) -> Format {
        L::FORMAT
    }

    fn describe(&self) -> Description {
        self.layout.describe()
    }

    fn backing(&self) -> Option<NodeRef> {
        self.backing.clone().map(|b| b as Rc<dyn Node>)
    }

    fn check<'a>(&'a self, repair: Repair, progress: &'a Progress) -> Io<'a, CheckReport> {
        Box::pin(async move {
            if repair != Repair::No {
                self.refuse_unless_writable("repair")?;
            }
            let _alone = self.gate.write().await;
            self.commit().await?;
            self.layout.check(self.size.get(), repair, progress).await
        })
    }

    fn set_backing<'a>(&'a self, link: Option<&'a BackingLink>) -> Io<'a, ()> {
        Box::pin(async move {
            self.refuse_unless_writable("change the backing image of")?;
            let _alone = self.gate.write().await;
            self.layout.begin().await?;
            self.commit().await?;
            self.layout.set_backing(link).await
        })
    }
}
