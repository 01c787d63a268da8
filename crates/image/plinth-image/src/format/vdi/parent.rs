//! The image below a VDI: known by its UUID alone, no name is stored.

use super::header::{Header, LEN};
use crate::format::guid::Guid;
use crate::format::{BackingLink, Format, Links};
use crate::graph::IoBuf;
use crate::{Error, ErrorKind};

/// What images above record of one, as text: its UUID, and the UUID of its contents.
pub fn identity(uuid: Guid, modified: Guid) -> String {
    if modified == Guid::NIL { uuid.to_string() } else { format!("{uuid}/{modified}") }
}

/// The UUIDs that a link has of a VDI image.
pub fn parse_identity(link: &BackingLink) -> Option<(Guid, Guid)> {
    let text = link.identity.as_deref()?;
    let (uuid, modified) = text.split_once('/').unwrap_or((text, ""));
    let modified = if modified.is_empty() { Guid::NIL } else { Guid::parse(modified)? };
    Some((Guid::parse(uuid)?, modified))
}

/// The link to the image below, with its name, or without one if that is not known.
pub fn link(name: String, header: &Header) -> BackingLink {
    let identity = Some(identity(header.parent, header.parent_modified));
    BackingLink { name, format: Some(Format::Vdi), identity }
}

/// Finds the image below among the files beside this one, and those that the user has allowed.
pub async fn find(name: &str, header: &Header, links: &dyn Links) -> Result<BackingLink, Error> {
    let doing = || format!("cannot open the image below '{name}'");
    // One that has the right UUID but not the contents that were below this image.
    let mut changed = None;
    for candidate in links.candidates(".vdi") {
        // Whatever cannot be opened or is no VDI is not the one.
        let Ok(file) = links.open_file(&candidate, true).await else { continue };
        let Ok(bytes) = file.read(0, IoBuf::new(LEN)).await else { continue };
        let Some(raw) = bytes.first_chunk() else { continue };
        let Ok(other) = Header::parse(raw, &candidate, file.size()) else { continue };
        drop(file);
        if other.uuid != header.parent {
            continue;
        }
        if header.parent_modified != Guid::NIL && other.modified != header.parent_modified {
            changed = Some(candidate);
            continue;
        }
        return Ok(link(candidate, header));
    }
    if let Some(changed) = changed {
        let why = format!(
            "'{changed}' has been written to since this image was made over it (its modification UUID is not {}), \
             so what is not in this image has been lost or changed",
            header.parent_modified
        );
        return Err(Error::new(ErrorKind::Corrupt, doing(), why));
    }
    let why = format!(
        "it is the VDI image with the UUID {{{}}}, which is not among the files that end in .vdi beside it; \
         put it there, or name it or its folder with --allow-backing",
        header.parent
    );
    Err(Error::new(ErrorKind::NotFound, doing(), why))
}
