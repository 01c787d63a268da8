//! The metadata of a VHDX: what kind of disk it is, and its parent (MS-VHDX, section 2.6).

use super::header::{MIB, Region, le16, le32, le64, take};
use crate::format::BackingLink;
use crate::format::guid::Guid;
use crate::graph::{IoBuf, NodeRef, read_table};
use crate::{Error, ErrorKind};

/// Bytes of the table, and where the first item may be.
const TABLE: usize = 64 << 10;
const PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
const SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
const PAGE_83: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
const LOGICAL: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
const PHYSICAL: &str = "cda348c7-445d-4471-9cc9-e9885251c556";
const PARENT: &str = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
/// The only kind of locator that there is.
const VHDX_LOCATOR: &str = "b04aefb7-d19e-4a81-b789-25b8e9445913";
/// Largest disk.
pub const MAX_SIZE: u64 = 64 << 40;
/// Bytes of a parent locator at most.
const MAX_LOCATOR: usize = MIB as usize - TABLE;

/// What the metadata says.
#[derive(Clone, Debug)]
pub struct Metadata {
    pub block_size: u64,
    /// The image is fixed: blocks keep their space.
    pub keep: bool,
    pub has_parent: bool,
    pub size: u64,
    pub logical: u64,
    pub physical: u64,
    /// The disk's own ID, which copies of the image share.
    pub disk_id: Guid,
    /// The parent locator's keys and values.
    pub parent: Vec<(String, String)>,
    /// Where in the file the size is.
    pub size_at: u64,
}

fn utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c)).collect();
    String::from_utf16_lossy(&units)
}

impl Metadata {
    pub async fn read(file: &NodeRef, region: Region) -> Result<Self, Error> {
        let name = &file.info().name;
        let damaged = |why: String| Error::corrupt(name, why);
        let table = read_table(&**file, region.at, TABLE, "its metadata table").await?;
        let count = usize::from(le16(&table, 10));
        if !table.starts_with(b"metadata") || count > 2047 {
            return Err(damaged("its metadata table is not valid".into()));
        }
        let mut m = Self {
            block_size: 0,
            keep: false,
            has_parent: false,
            size: 0,
            logical: 0,
            physical: 4096,
            disk_id: Guid::NIL,
            parent: Vec::new(),
            size_at: 0,
        };
        for entry in table[32..].chunks(32).take(count) {
            let (at, len, flags) = (u64::from(le32(entry, 16)), le32(entry, 20) as usize, le32(entry, 24));
            let id = Guid(take(entry, 0)).to_string();
            let known = matches!(&*id, PARAMETERS | SIZE | PAGE_83 | LOGICAL | PHYSICAL | PARENT);
            if !known && flags & 4 != 0 {
                let why = format!("it needs a part of the format that Plinth does not know ({id})");
                return Err(Error::new(ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
            }
            if !known || flags & 1 != 0 {
                continue;
            }
            if at < TABLE as u64 || at + len as u64 > region.len || len > MAX_LOCATOR {
                return Err(damaged(format!("its metadata has {len} bytes at byte {at}")));
            }
            let item = read_table(&**file, region.at + at, len, "its metadata").await?;
            match &*id {
                PARAMETERS => {
                    m.block_size = le32(&item, 0).into();
                    (m.keep, m.has_parent) = (le32(&item, 4) & 1 != 0, le32(&item, 4) & 2 != 0);
                }
                SIZE => (m.size, m.size_at) = (le64(&item, 0), region.at + at),
                PAGE_83 => m.disk_id = Guid(take(&item, 0)),
                LOGICAL => m.logical = le32(&item, 0).into(),
                PHYSICAL => m.physical = le32(&item, 0).into(),
                _ => {
                    m.parent = parse_locator(&item)
                        .ok_or_else(|| damaged("it names its parent in a way that is not valid".into()))?
                }
            }
        }
        m.check().map_err(damaged)?;
        Ok(m)
    }

    fn check(&self) -> Result<(), String> {
        if !self.block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&self.block_size) {
            return Err(format!(
                "its blocks have {} bytes, not a power of 2 from 1 to 256 MiB",
                self.block_size
            ));
        }
        if !matches!(self.logical, 512 | 4096) || !matches!(self.physical, 512 | 4096) {
            return Err(format!("its sectors have {} and {} bytes", self.logical, self.physical));
        }
        if self.size > MAX_SIZE || !self.size.is_multiple_of(self.logical) || self.size == 0 {
            return Err(format!("its disk has {} bytes", self.size));
        }
        if self.has_parent && self.parent.is_empty() {
            return Err("it has a parent, and does not name it".into());
        }
        Ok(())
    }

    /// The whole region of a new image, without the empty rest.
    pub fn bytes(&self) -> IoBuf {
        let locator = locator_bytes(&self.parent);
        let mut bytes = IoBuf::zeroed((TABLE + 4096 + locator.len()).next_multiple_of(4096));
        bytes[..8].copy_from_slice(b"metadata");
        let flags = u32::from(self.keep) | u32::from(self.has_parent) << 1;
        let parameters = [(self.block_size as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items: Vec<(&str, usize, Vec<u8>, u32)> = vec![
            (PARAMETERS, 0, parameters, 4),
            (SIZE, 8, self.size.to_le_bytes().to_vec(), 6),
            (PAGE_83, 16, self.disk_id.0.to_vec(), 6),
            (LOGICAL, 32, (self.logical as u32).to_le_bytes().to_vec(), 6),
            (PHYSICAL, 36, (self.physical as u32).to_le_bytes().to_vec(), 6),
        ];
        if self.has_parent {
            items.push((PARENT, 4096, locator, 4));
        }
        bytes[10..12].copy_from_slice(&(items.len() as u16).to_le_bytes());
        for (n, (id, at, item, flags)) in items.into_iter().enumerate() {
            let entry = 32 + n * 32;
            let id = Guid::parse(id).unwrap_or(Guid::NIL);
            bytes[entry..entry + 16].copy_from_slice(&id.0);
            bytes[entry + 16..entry + 20].copy_from_slice(&((TABLE + at) as u32).to_le_bytes());
            bytes[entry + 20..entry + 24].copy_from_slice(&(item.len() as u32).to_le_bytes());
            bytes[entry + 24..entry + 28].copy_from_slice(&flags.to_le_bytes());
            bytes[TABLE + at..TABLE + at + item.len()].copy_from_slice(&item);
        }
        bytes
    }

    /// A value of the parent locator.
    pub fn parent_value(&self, key: &str) -> Option<&str> {
        self.parent.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

fn parse_locator(item: &[u8]) -> Option<Vec<(String, String)>> {
    if Guid(take(item, 0)).to_string() != VHDX_LOCATOR {
        return None;
    }
    let mut pairs = Vec::new();
    for entry in item.get(20..)?.chunks(12).take(le16(item, 18).into()) {
        if entry.len() < 12 {
            return None;
        }
        let text = |at: u32, len: u16| Some(utf16(item.get(at as usize..at as usize + usize::from(len))?));
        pairs.push((text(le32(entry, 0), le16(entry, 8))?, text(le32(entry, 4), le16(entry, 10))?));
        if pairs.len() > 64 {
            return None;
        }
    }
    Some(pairs)
}

fn locator_bytes(pairs: &[(String, String)]) -> Vec<u8> {
    let mut bytes = Guid::parse(VHDX_LOCATOR).unwrap_or(Guid::NIL).0.to_vec();
    bytes.extend(0u16.to_le_bytes());
    bytes.extend((pairs.len() as u16).to_le_bytes());
    let mut at = (20 + pairs.len() * 12) as u32;
    let mut texts = Vec::new();
    for (key, value) in pairs {
        let encode = |t: &str| t.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (key, value) = (encode(key), encode(value));
        bytes.extend(at.to_le_bytes());
        bytes.extend((at + key.len() as u32).to_le_bytes());
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend((value.len() as u16).to_le_bytes());
        at += (key.len() + value.len()) as u32;
        texts.extend(key);
        texts.extend(value);
    }
    bytes.extend(texts);
    bytes
}

/// The locator of a link; `None` if it is to no VHDX image.
pub fn locator_of(link: &BackingLink) -> Option<Vec<(String, String)>> {
    let linkage = Guid::parse(link.identity.as_deref()?)?;
    let windows = link.name.replace('/', "\\");
    let path = if link.name.starts_with('/') {
        ("absolute_win32_path".to_owned(), windows)
    } else {
        ("relative_path".to_owned(), format!(".\\{windows}"))
    };
    // Lengths are 16 bits.
    (path.1.len() < 16_000).then(|| vec![("parent_linkage".to_owned(), format!("{{{linkage}}}")), path])
}
