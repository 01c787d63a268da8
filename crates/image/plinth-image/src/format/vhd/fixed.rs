//! Fixed VHD images: the disk, and a footer behind it.

use std::cell::RefCell;
use std::ops::Range;

use serde_json::{Map, json};

use super::footer::{FOOTER, Footer};
use super::parent::identity;
use crate::format::blocks::{Changes, Layout, Need, Place, Space};
use crate::format::image::unsupported;
use crate::format::{BackingLink, CheckReport, Description, Format, Progress, Repair};
use crate::graph::{IoData, NodeRef};
use crate::{Error, SECTOR};

/// One block that is all there.
const BLOCK: u64 = 1 << 62;

/// What is special about them.
pub struct Fixed {
    file: NodeRef,
    footer: RefCell<Footer>,
}

impl Fixed {
    pub fn new(file: NodeRef, footer: Footer) -> Self {
        Self { file, footer: RefCell::new(footer) }
    }
}

/// What is shown of every VHD.
pub fn details(footer: &Footer) -> Map<String, serde_json::Value> {
    let mut details = Map::new();
    details.insert("subformat".into(), json!(footer.kind.name()));
    details.insert("uuid".into(), json!(footer.uuid.to_string()));
    details.insert("creator-app".into(), json!(String::from_utf8_lossy(&footer.creator()).trim_end()));
    details
}

impl Layout for Fixed {
    const FORMAT: Format = Format::Vhd;
    const HAS_ZERO: bool = false;

    fn file(&self) -> &NodeRef {
        &self.file
    }

    fn block_size(&self) -> u64 {
        BLOCK
    }

    fn sector(&self) -> Option<u64> {
        None
    }

    fn cached(&self, _block: u64) -> Option<Result<Place, Error>> {
        Some(Ok(Place::Full(0)))
    }

    fn alike(&self, _block: u64, _most: u64) -> u64 {
        0
    }

    async fn place(&self, _block: u64) -> Result<Place, Error> {
        Ok(Place::Full(0))
    }

    async fn present(&self, _block: u64, _place: u64, sectors: Range<u64>) -> Result<Vec<bool>, Error> {
        Ok(vec![true; (sectors.end - sectors.start) as usize])
    }

    async fn allocate(&self, _block: u64, _need: Need) -> Result<Space, Error> {
        Ok(Space { place: Place::Full(0), all_present: true })
    }

    fn give_back(&self, _space: Space) {}

    async fn begin(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn prepare(&self, _changes: &Changes) -> Result<(), Error> {
        Ok(())
    }

    async fn apply(&self, _changes: &Changes) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The new footer is durable before anything is done about the old one. In between, the file's end decides.
    async fn resize(&self, old: u64, new: u64) -> Result<(), Error> {
        let mut footer = self.footer.borrow().clone();
        footer.resize(new);
        // The old one may be behind the disk's end, if that is by geometry.
        let before = self.file.size();
        self.file.write(new, IoData::copy_of(&footer.bytes())).await?;
        self.file.flush().await?;
        if new + (FOOTER as u64) < before {
            self.file.resize(new + FOOTER as u64).await?;
        } else {
            let end = before.min(new);
            self.file.write_zeroes(old, end.saturating_sub(old), true).await?;
        }
        self.file.flush().await?;
        *self.footer.borrow_mut() = footer;
        Ok(())
    }

    async fn check(&self, size: u64, _repair: Repair, _progress: &Progress) -> Result<CheckReport, Error> {
        // An image that could be opened has its footer where it belongs.
        Ok(CheckReport { image_end: size.next_multiple_of(SECTOR) + FOOTER as u64, ..CheckReport::default() })
    }

    fn describe(&self) -> Description {
        let footer = self.footer.borrow();
        Description {
            identity: Some(identity(footer.uuid, footer.time())),
            details: details(&footer),
            ..Description::default()
        }
    }

    async fn set_backing(&self, _link: Option<&BackingLink>) -> Result<(), Error> {
        let file: &dyn crate::graph::Node = &*self.file;
        Err(unsupported(file.info(), Format::Vhd, "change the backing image of"))
    }
}
