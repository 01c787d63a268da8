//! How large an image would be.

use crate::format::{Format, Options, luks, qcow2};
use crate::graph::Node;
use crate::{Error, ErrorKind, SECTOR};

/// Bytes that an image's file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// With the contents that it was measured for.
    pub required: u64,
    /// When all of the disk is written.
    pub fully_allocated: u64,
}

/// What the new image would hold.
pub enum Contents<'a> {
    /// Nothing yet, in so many bytes.
    Size(u64),
    /// What a disk holds.
    Disk(&'a dyn Node),
}

fn refused(format: Format, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("cannot measure an image of the format {format}"), why)
}

/// Bytes that the file of a new image needs.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for formats other than raw, qcow2 and LUKS; [`ErrorKind::Invalid`] options; the disk's.
pub async fn measure(format: Format, options: &Options, contents: Contents<'_>) -> Result<Measured, Error> {
    let size = match contents {
        Contents::Size(size) => size,
        Contents::Disk(disk) => disk.size(),
    };
    let size = size
        .checked_next_multiple_of(SECTOR)
        .filter(|&s| s <= i64::MAX as u64)
        .ok_or_else(|| refused(format, format!("no disk has {size} bytes")))?;
    let (required, fully_allocated) = match format {
        Format::Raw => (size, size),
        Format::Qcow2 => {
            let grain = qcow2::cluster_size(options)?;
            let used = match &contents {
                Contents::Size(_) => 0,
                // What the new backing image has in common with the disk is not known.
                _ if options.text("backing_file").is_some() => size,
                Contents::Disk(disk) => used(*disk, grain).await?,
            };
            qcow2::measure(size, used, options)?
        }
        Format::Luks => {
            let all = luks::header_len(options)?.checked_add(size);
            let all = all.ok_or_else(|| refused(format, format!("no disk has {size} bytes")))?;
            (all, all)
        }
        _ => {
            let doing = format!("cannot measure an image of the format {format}");
            return Err(Error::new(
                ErrorKind::Unsupported,
                doing,
                "only raw, qcow2 and LUKS images can be measured",
            ));
        }
    };
    Ok(Measured { required, fully_allocated })
}

/// Bytes in whole blocks of `grain` bytes, whatever parts of them a disk has data in.
async fn used(disk: &dyn Node, grain: u64) -> Result<u64, Error> {
    let (mut at, mut blocks, mut counted) = (0, 0, 0);
    while at < disk.size() {
        let extent = disk.status(at, disk.size() - at).await?;
        let end = at + extent.len.max(1);
        if extent.present && !extent.zero {
            let (first, last) = ((at / grain).max(counted), end.div_ceil(grain));
            blocks += last.saturating_sub(first);
            counted = last.max(counted);
        }
        at = end;
    }
    Ok(blocks.saturating_mul(grain))
}
