//! Opening an image of any format.

use std::path::Path;
use std::rc::Rc;

use super::links::{FileId, FileLinks};
use super::{Format, Image, Links, NoLinks, OpenRequest, Sample, Trust, probe};
use crate::graph::{Cache, FileNode, FileOptions, IoBuf, Node, NodeRef};
use crate::{Error, ErrorKind};

/// How to open an image.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// Its format, if the user says so. Without it, the contents decide.
    pub format: Option<Format>,
    /// Refuse writes, and let others read along.
    pub read_only: bool,
    /// The host's page cache, for all of the image's files.
    pub cache: Cache,
    /// Do not lock the files, and go on if somebody else has locked them.
    pub share: bool,
    /// What the image may open.
    pub trust: Trust,
    /// The passphrase of an encrypted image.
    pub secret: Option<Rc<[u8]>>,
    /// Leave the image below closed: what is not in this one reads as zeros.
    pub no_backing: bool,
    /// To be checked: damage that a check tells of and can mend does not keep it from being opened.
    pub for_check: bool,
    /// The LUKS header of the image, where it is in a file of its own. An image that has one is a LUKS image.
    pub header: Option<NodeRef>,
}

/// An open image.
pub struct Opened {
    /// The image.
    pub image: Rc<dyn Image>,
    /// Its contents decided on the format, nobody said it.
    pub probed: bool,
}

/// Bytes of a file's start and end that a format is known by.
const HEAD: u64 = 2048;
const TAIL: u64 = 1024;

/// Opens the image in the file at `path`.
///
/// # Errors
/// The file's, the format's; [`ErrorKind::Denied`] if it needs files that it may not have.
pub async fn open(path: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let file = FileOptions { read_only: options.read_only, cache: options.cache, share: options.share };
    // A bundle is opened by the name of its folder.
    let descriptor = path.join(super::parallels::DESCRIPTOR);
    let path = if descriptor.is_file() { &descriptor } else { path };
    let file = FileNode::open(path, &file)?;
    open_file(file, options, Vec::new()).await
}

/// Opens an image whose bytes are in any node. It can name no other files.
///
/// # Errors
/// The format's.
pub async fn open_node(file: NodeRef, options: &OpenOptions) -> Result<Opened, Error> {
    open_with(file, Rc::new(NoLinks), options).await
}

async fn open_file(file: FileNode, options: &OpenOptions, mut chain: Vec<FileId>) -> Result<Opened, Error> {
    chain.push(file.id()?);
    let links = FileLinks { path: file.path().to_owned(), options: options.clone(), chain };
    open_with(Rc::new(file), Rc::new(links), options).await
}

/// Opens the image below another one, for reading.
pub(super) async fn open_linked(
    file: FileNode,
    format: Option<Format>,
    above: &FileLinks,
) -> Result<Rc<dyn Image>, Error> {
    let mut options =
        OpenOptions { format, read_only: true, header: None, for_check: false, ..above.options.clone() };
    // Nobody has said what it is. If its contents, which a guest may have written, make it an image that names
    // further files, only those are opened that the user has allowed.
    options.trust.nothing |= format.is_none() && options.trust.allowed.is_empty();
    Ok(open_file(file, &options, above.chain.clone()).await?.image)
}

/// Opens an image whose bytes are in any node; `links` opens what it names.
///
/// # Errors
/// The format's; those of `links`.
pub async fn open_linked_node(
    file: NodeRef,
    links: Rc<dyn Links>,
    options: &OpenOptions,
) -> Result<Opened, Error> {
    open_with(file, links, options).await
}

/// The links of an image in the file at `path`, opened in the same way as [`open`] does it.
///
/// # Errors
/// The file's.
pub fn file_links(path: &Path, options: &OpenOptions) -> Result<Rc<dyn Links>, Error> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).map_err(|e| Error::host("open", path, e))?;
    let chain = vec![(meta.dev(), meta.ino())];
    Ok(Rc::new(FileLinks { path: path.to_owned(), options: options.clone(), chain }))
}

async fn open_with(file: NodeRef, links: Rc<dyn Links>, options: &OpenOptions) -> Result<Opened, Error> {
    let format = match options.format {
        Some(format) => format,
        // Its own bytes are noise.
        None if options.header.is_some() => Format::Luks,
        None => probe_node(&*file).await?,
    };
    if options.header.is_some() && format != Format::Luks {
        let why = format!("an image of the format {format} has no header in a file of its own");
        return Err(Error::new(ErrorKind::Invalid, format!("cannot open '{}'", file.info().name), why));
    }
    let Some(driver) = format.driver() else {
        let doing = format!("cannot open '{}'", file.info().name);
        return Err(Error::new(
            ErrorKind::Unsupported,
            doing,
            format!("Plinth cannot read the format {format} yet"),
        ));
    };
    let request = OpenRequest { file, links, options: options.clone() };
    Ok(Opened {
        image: (driver.open)(request).await?,
        probed: options.format.is_none() && options.header.is_none(),
    })
}

/// The format of what a node holds, by its contents.
///
/// # Errors
/// The node's; its contents are something that is no disk, such as a compressed file.
pub async fn probe_node(file: &dyn Node) -> Result<Format, Error> {
    let len = file.size();
    let name = file.info().name.clone();
    let head = file.read(0, IoBuf::new(len.min(HEAD) as usize)).await?;
    let tail_at = len - len.min(TAIL);
    let tail = file.read(tail_at, IoBuf::new((len - tail_at) as usize)).await?;
    let format = probe(&Sample { head: &head, tail: &tail, len, name: &name });
    if format == Format::Raw
        && let Some(kind) = crate::probe::not_a_disk(&head)
    {
        let why = format!("its contents are {kind}: unpack it first, or say that it is raw if it is a disk");
        return Err(Error::new(ErrorKind::Format, format!("cannot open '{name}'"), why));
    }
    Ok(format)
}
