//! Making an image, and filling it with what others hold.

use std::rc::Rc;

use super::{Concat, CopyOptions, CopyReport, copy};
use crate::format::{Backing, CreateRequest, Format, Image, Options, Output, Progress};
use crate::graph::NodeRef;
use crate::{Error, ErrorKind, SECTOR};

/// Creates an image of any format.
///
/// # Errors
/// [`ErrorKind::Unsupported`] if Plinth cannot create the format; [`ErrorKind::Invalid`] for options that it does
/// not have; the format's own.
pub async fn create(
    output: &dyn Output,
    format: Format,
    size: u64,
    options: &Options,
    backing: Option<Backing>,
    secret: Option<&[u8]>,
) -> Result<Rc<dyn Image>, Error> {
    let doing = || format!("cannot create '{}'", output.name());
    let Some(driver) = format.driver() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            doing(),
            format!("Plinth does not have the format {format} yet"),
        ));
    };
    let Some(create) = driver.create else {
        return Err(Error::new(ErrorKind::Unsupported, doing(), format!("the format {format} is only read")));
    };
    options.check(driver.options)?;
    let size = size
        .checked_next_multiple_of(SECTOR)
        .filter(|&s| s <= i64::MAX as u64)
        .ok_or_else(|| Error::new(ErrorKind::Limit, doing(), format!("no disk has {size} bytes")))?;
    create(CreateRequest { output, size, options, backing, secret }).await
}

/// True if a new image without one below reads as zeros. One of LUKS reads as noise.
///
/// # Errors
/// The image's.
pub async fn starts_as_zeros(image: &dyn Image) -> Result<bool, Error> {
    Ok(!image.describe().encrypted || image.size() == 0 || image.status(0, 1).await?.zero)
}

/// What to convert, and to what.
pub struct ConvertRequest<'a> {
    /// Disks, one behind the other.
    pub sources: Vec<NodeRef>,
    /// The new image's format.
    pub format: Format,
    /// Its options.
    pub options: &'a Options,
    /// The image below the new one, which has to be open. Only what the first [`CopyOptions::layers`] layers of the source have is copied
    /// then.
    pub backing: Option<Backing>,
    /// The passphrase, if it is to be encrypted.
    pub secret: Option<&'a [u8]>,
    /// How to copy.
    pub copy: CopyOptions,
}

/// Makes an image with the contents of other disks. It is complete and closed then, and waits for
/// [`OutputFiles::finish`](crate::format::OutputFiles::finish).
///
/// # Errors
/// As for [`create`] and [`copy`].
pub async fn convert(
    request: ConvertRequest<'_>,
    output: &dyn Output,
    progress: &Progress,
) -> Result<CopyReport, Error> {
    let source: NodeRef = match <[NodeRef; 1]>::try_from(request.sources) {
        Ok([one]) => one,
        Err(several) => Rc::new(Concat::new(several)?),
    };
    let size = source.size();
    progress.total.set(size);
    // Space that is reserved for the new image would be given away.
    let share = request.copy.share && !request.options.reserves_space();
    let over = request.backing.is_some();
    let target =
        create(output, request.format, size, request.options, request.backing, request.secret).await?;
    // What is new reads as zeros, unless there is something below.
    let target_is_zero = !over && starts_as_zeros(&*target).await?;
    let options = CopyOptions { target_is_zero, share, ..request.copy };
    let report = copy(&*source, 0..size, &*target, 0, &options, progress).await?;
    target.close().await?;
    Ok(report)
}
