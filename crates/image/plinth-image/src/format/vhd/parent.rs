//! The image below a VHD: named several times, and known by its unique ID.

use std::rc::Rc;

use super::footer::{Header, Locator};
use crate::format::guid::Guid;
use crate::format::{BackingLink, Format, Image, Links};
use crate::graph::{IoData, NodeRef, read_table};
use crate::{Error, ErrorKind};

/// Bytes of a name at most.
const MAX_NAME: u32 = 4096;

/// What images above record of one, as text: its unique ID, and when it was made (seconds since 2000).
pub fn identity(uuid: Guid, time: u32) -> String {
    format!("{uuid}/{time}")
}

/// What a link has of a VHD image.
pub fn parse_identity(link: &BackingLink) -> Option<(Guid, u32)> {
    let text = link.identity.as_deref()?;
    let (uuid, time) = text.split_once('/').unwrap_or((text, "0"));
    Some((Guid::parse(uuid)?, time.parse().ok()?))
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c));
    let units: Vec<u16> = units.take_while(|&u| u != 0).collect();
    String::from_utf16_lossy(&units)
}

/// A path of Windows, as one from the image's folder: a drive means nothing here, so then only the name counts.
pub fn from_windows(path: &str) -> String {
    let path = path.replace('\\', "/");
    let is_relative = !path.starts_with('/') && path.as_bytes().get(1) != Some(&b':');
    if is_relative { path } else { path.rsplit('/').next().unwrap_or_default().to_owned() }
}

fn from_url(url: &str) -> Option<String> {
    let path = url.trim_end_matches('\0').strip_prefix("file://")?;
    let path = path.strip_prefix("localhost").unwrap_or(path);
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(b) = rest.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let digit = |d: Option<u8>| char::from(d?).to_digit(16);
        bytes.push((digit(rest.next())? << 4 | digit(rest.next())?) as u8);
    }
    String::from_utf8(bytes).ok().filter(|p| !p.is_empty())
}

/// The names of the image below, the best first.
pub async fn names(file: &NodeRef, header: &Header) -> Result<Vec<String>, Error> {
    let mut names: [Vec<String>; 3] = Default::default();
    for locator in header.locators() {
        let rank = match &locator.code {
            b"W2ru" => 0,
            b"MacX" => 1,
            b"W2ku" => 2,
            // Nothing, or names in a code page that nobody knows.
            _ => continue,
        };
        if locator.len == 0 || locator.len > MAX_NAME {
            continue;
        }
        let bytes =
            read_table(&**file, locator.offset, locator.len as usize, "the name of its parent").await?;
        names[rank].extend(match rank {
            1 => std::str::from_utf8(&bytes).ok().and_then(from_url),
            _ => Some(from_windows(&utf16(&bytes))),
        });
    }
    let mut names: Vec<_> = names.into_iter().flatten().collect();
    names.push(from_windows(&header.parent_name()));
    // The name alone, for images that were moved together with their parents.
    let alone: Vec<_> = names
        .iter()
        .filter_map(|n| n.rsplit('/').next())
        .filter(|n| !n.is_empty())
        .map(str::to_owned)
        .collect();
    for name in alone {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.retain(|n| !n.is_empty());
    Ok(names)
}

/// Opens the image below.
pub async fn open(
    name: &str,
    names: &[String],
    header: &Header,
    links: &dyn Links,
) -> Result<(BackingLink, Rc<dyn Image>), Error> {
    let mut problem: Option<Error> = None;
    for candidate in names {
        let link = BackingLink {
            name: candidate.clone(),
            format: Some(Format::Vhd),
            identity: Some(identity(header.parent, header.parent_time)),
        };
        let e = match links.open_backing(&link).await {
            Ok(image) => {
                let found = image.describe().identity;
                let uuid = found.as_deref().and_then(|i| Guid::parse(i.split_once('/').map_or(i, |s| s.0)));
                if uuid == Some(header.parent) {
                    return Ok((link, image));
                }
                let why = format!(
                    "'{candidate}' is another one: its unique ID is {}, and that of the image below is {}",
                    uuid.unwrap_or(Guid::NIL),
                    header.parent
                );
                Error::new(ErrorKind::Corrupt, format!("cannot open the image below '{name}'"), why)
            }
            Err(e) => e,
        };
        // What says more than that a file is missing is what the user needs to know.
        if problem.as_ref().is_none_or(|p| p.kind == ErrorKind::NotFound) {
            problem = Some(e);
        }
    }
    Err(match problem {
        Some(e) if e.kind == ErrorKind::NotFound => {
            let why = format!(
                "it has the unique ID {} and is none of: {}; put it there, or name its folder with --allow-backing",
                header.parent,
                names.join(", ")
            );
            Error::new(ErrorKind::NotFound, format!("cannot open the image below '{name}'"), why)
        }
        Some(e) => e,
        None => Error::corrupt(name, "it is a difference from another image, and does not name it"),
    })
}

/// Bytes before the table for names of the parent, and where they are.
pub const NAMES: std::ops::Range<u64> = 2048..4096;

/// Writes the names of a link where a new image has room for them, and puts them into the header.
pub async fn write_names(file: &NodeRef, header: &mut Header, link: &BackingLink) -> Result<(), Error> {
    let doing = || format!("cannot name '{}' as the image below '{}'", link.name, file.info().name);
    let windows = link.name.replace('/', "\\");
    let absolute = link.name.starts_with('/');
    let path = if absolute { windows } else { format!(".\\{windows}") };
    let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
    if bytes.len() as u64 > NAMES.end - NAMES.start {
        return Err(Error::new(ErrorKind::Limit, doing(), "the name is too long"));
    }
    // A locator of a system with such paths; Windows could not use one of ours.
    let code = if absolute { *b"W2ku" } else { *b"W2ru" };
    let locator = Locator { code, offset: NAMES.start, len: bytes.len() as u32 };
    let mut padded = vec![0; (NAMES.end - NAMES.start) as usize];
    padded[..bytes.len()].copy_from_slice(&bytes);
    file.write(NAMES.start, IoData::copy_of(&padded)).await?;
    header.set_parent(link.name.rsplit('/').next().unwrap_or_default(), &[locator]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_systems() {
        assert_eq!(from_windows(".\\parent.vhd"), "./parent.vhd");
        assert_eq!(from_windows("..\\a\\b.vhd"), "../a/b.vhd");
        assert_eq!(from_windows("C:\\Projects\\b.vhd"), "b.vhd");
        assert_eq!(from_windows("\\\\server\\share\\b.vhd"), "b.vhd");
        assert_eq!(from_url("file://localhost/Users/a%20b/c.vhd").as_deref(), Some("/Users/a b/c.vhd"));
        assert_eq!(from_url("file:///%"), None);
    }
}
