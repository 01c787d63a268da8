//! The text that describes a disk: its kind, its extents, its parent.
//!
//! Source: VMware, "Virtual Disk Format 5.0", section "The Descriptor". It is a file of its own, or lies within the
//! first extent. Whoever made the image wrote it, so its length and the number of its extents are bounded.

use std::fmt::Write as _;

use crate::Error;

/// Bytes of a descriptor at most.
pub const MAX_LEN: u64 = 1 << 20;
/// Extents of a disk at most: 8 TiB in pieces of 2 GiB.
pub const MAX_EXTENTS: usize = 4096;
/// The content ID that stands for "no parent".
pub const NO_PARENT: u32 = u32::MAX;

/// What may be done with an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All.
    ReadWrite,
    /// Reading.
    ReadOnly,
    /// Nothing.
    None,
}

/// How an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The bytes are the disk's, from some offset of the file.
    Flat,
    /// The same, on ESXi.
    Vmfs,
    /// Grains, with or without compression.
    Sparse,
    /// Grains of ESXi's redo logs (COWD).
    VmfsSparse,
    /// Grains of 4 KiB, of later ESXi.
    SeSparse,
    /// Nothing is stored: zeros.
    Zero,
}

impl Kind {
    const ALL: [(Kind, &'static str); 6] = [
        (Kind::Flat, "FLAT"),
        (Kind::Vmfs, "VMFS"),
        (Kind::Sparse, "SPARSE"),
        (Kind::VmfsSparse, "VMFSSPARSE"),
        (Kind::SeSparse, "SESPARSE"),
        (Kind::Zero, "ZERO"),
    ];

    /// Its name in descriptors.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|k| k.0 == self).expect("all are in the table").1
    }
}

/// One extent, as the descriptor has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentLine {
    pub access: Access,
    pub sectors: u64,
    pub kind: Kind,
    /// File; empty for zeros.
    pub file: String,
    /// Sector of the file where a flat extent begins.
    pub offset: u64,
}

/// A descriptor that was read.
#[derive(Clone, Debug)]
pub struct Descriptor {
    text: String,
    /// It is not UTF-8; each byte is taken for one character, and written as one.
    bytes_are_chars: bool,
}

/// `key = "value"` of one line.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    let value = value.strip_prefix('"').map_or(value, |v| v.strip_suffix('"').unwrap_or(v));
    Some((key.trim(), value))
}

impl Descriptor {
    /// Takes the bytes up to the first NUL.
    ///
    /// # Errors
    /// [`Limit`](crate::ErrorKind::Limit) if they are too many.
    pub fn new(name: &str, bytes: &[u8]) -> Result<Self, Error> {
        let bytes = bytes.split(|&b| b == 0).next().unwrap_or_default();
        if bytes.len() as u64 > MAX_LEN {
            let why = format!("its description has {} bytes, and {MAX_LEN} are the most", bytes.len());
            return Err(Error::new(crate::ErrorKind::Limit, format!("cannot open '{name}'"), why));
        }
        let (text, bytes_are_chars) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), false),
            Err(_) => (bytes.iter().map(|&b| char::from(b)).collect(), true),
        };
        Ok(Self { text, bytes_are_chars })
    }

    /// A new one.
    pub fn from_text(text: String) -> Self {
        Self { text, bytes_are_chars: false }
    }

    /// As it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.bytes_are_chars {
            self.text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect()
        } else {
            self.text.clone().into_bytes()
        }
    }

    /// The value of the first line with this key, whatever its case.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text.lines().filter_map(assignment).find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|a| a.1)
    }

    /// Sets the value of a key; a new one comes behind the line of `after`. `None` takes the line away.
    pub fn set(&mut self, key: &str, value: Option<&str>, after: &str) {
        let is = |line: &str, key: &str| assignment(line).is_some_and(|(k, _)| k.eq_ignore_ascii_case(key));
        let mut out = String::with_capacity(self.text.len() + 64);
        let mut found = self.text.lines().any(|l| is(l, key));
        for line in self.text.split_inclusive('\n') {
            let end = if line.ends_with("\r\n") { "\r\n" } else { "\n" };
            if is(line, key) {
                if let Some(value) = value {
                    out.push_str(value);
                    out.push_str(end);
                }
                continue;
            }
            out.push_str(line);
            if let Some(value) = value
                && !found
                && is(line, after)
            {
                out.push_str(value);
                out.push_str(end);
                found = true;
            }
        }
        self.text = out;
    }

    fn hex(&self, name: &str, key: &str) -> Result<Option<u32>, Error> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let number = u32::from_str_radix(text.trim_start_matches("0x"), 16);
        number.map(Some).map_err(|_| Error::corrupt(name, format!("its {key} '{text}' is not a content ID")))
    }

    /// The content ID; 0 if there is none.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if it is not one.
    pub fn cid(&self, name: &str) -> Result<u32, Error> {
        Ok(self.hex(name, "CID")?.unwrap_or(0))
    }

    /// The content ID that the parent had, if there is a parent.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if it is not one.
    pub fn parent_cid(&self, name: &str) -> Result<Option<u32>, Error> {
        Ok(self.hex(name, "parentCID")?.filter(|&c| c != NO_PARENT))
    }

    /// Where the value of `key` is in the stored bytes, and its length.
    pub fn place(&self, key: &str) -> Option<(usize, usize)> {
        let mut at = 0;
        for line in self.text.split_inclusive('\n') {
            if let Some((k, value)) = assignment(line)
                && k.eq_ignore_ascii_case(key)
            {
                let within = value.as_ptr() as usize - line.as_ptr() as usize;
                let chars = |s: &str| if self.bytes_are_chars { s.chars().count() } else { s.len() };
                return Some((at + chars(&line[..within]), chars(value)));
            }
            at += if self.bytes_are_chars { line.chars().count() } else { line.len() };
        }
        None
    }

    /// All extents, in the disk's order.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) for a line that is not right,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for kinds that Plinth does not have,
    /// [`Limit`](crate::ErrorKind::Limit) for too many.
    pub fn extents(&self, name: &str) -> Result<Vec<ExtentLine>, Error> {
        let mut extents = Vec::new();
        let mut total = 0u64;
        for line in self.text.lines() {
            let Some(extent) = extent_line(name, line)? else { continue };
            if extents.len() == MAX_EXTENTS {
                let why = format!("it has more than {MAX_EXTENTS} extents");
                return Err(Error::new(crate::ErrorKind::Limit, format!("cannot open '{name}'"), why));
            }
            total = total
                .checked_add(extent.sectors)
                .filter(|&t| t <= i64::MAX as u64 / crate::SECTOR)
                .ok_or_else(|| Error::corrupt(name, "its extents are larger together than any disk"))?;
            extents.push(extent);
        }
        Ok(extents)
    }

    /// Changes the size of the extent with this number.
    pub fn set_extent(&mut self, name: &str, number: usize, sectors: u64) {
        let mut out = String::with_capacity(self.text.len() + 16);
        let mut seen = 0;
        for line in self.text.split_inclusive('\n') {
            match extent_line(name, line) {
                Ok(Some(_)) => {
                    if seen == number {
                        let mut rest = line;
                        let access = word(&mut rest);
                        word(&mut rest);
                        let _ = write!(out, "{access} {sectors}{rest}");
                    } else {
                        out.push_str(line);
                    }
                    seen += 1;
                }
                _ => out.push_str(line),
            }
        }
        self.text = out;
    }
}

/// Takes the next word off a line.
fn word<'a>(rest: &mut &'a str) -> &'a str {
    let text = rest.trim_start_matches([' ', '\t']);
    let (word, after) = text.split_at(text.find([' ', '\t']).unwrap_or(text.len()));
    *rest = after;
    word
}

/// Reads `RW 4192256 SPARSE "disk-s001.vmdk"`; `None` for lines of other kinds.
fn extent_line(name: &str, line: &str) -> Result<Option<ExtentLine>, Error> {
    let line = line.trim();
    let bad = |why: &str| Error::corrupt(name, format!("{BAD_EXTENT} '{}' {why}", short(line)));
    let mut rest = line;
    let access = match word(&mut rest) {
        "RW" => Access::ReadWrite,
        "RDONLY" => Access::ReadOnly,
        "NOACCESS" => Access::None,
        _ => return Ok(None),
    };
    let sectors = word(&mut rest).parse::<u64>().ok();
    let sectors = sectors.ok_or_else(|| bad("the size is not a number"))?;
    let kind = word(&mut rest);
    let Some(&(kind, _)) = Kind::ALL.iter().find(|k| k.1 == kind) else {
        let why = match kind {
            "VMFSRDM" | "VMFSRAW" => "it stands for a physical device, which only ESXi can reach".to_owned(),
            _ => format!("there is no kind of extent '{}'", short(kind)),
        };
        return Err(Error::new(crate::ErrorKind::Unsupported, format!("cannot open '{name}'"), why));
    };
    if sectors == 0 {
        return Err(bad("the size is zero"));
    }
    let rest = rest.trim();
    if kind == Kind::Zero {
        return Ok(Some(ExtentLine { access, sectors, kind, file: String::new(), offset: 0 }));
    }
    let file = rest.strip_prefix('"').and_then(|r| r.split_once('"'));
    let (file, rest) = file.ok_or_else(|| bad("there is no file name in quotes"))?;
    let offset = rest.split_whitespace().next().map(|w| w.parse::<u64>().ok());
    let offset = match (kind, offset) {
        (Kind::Vmfs, Some(Some(1..))) => return Err(bad("there is an offset, which its kind does not have")),
        (_, Some(Some(offset))) if offset <= i64::MAX as u64 / crate::SECTOR => offset,
        (Kind::Flat, None) => return Err(bad("the offset is missing")),
        (_, None) => 0,
        _ => return Err(bad("the offset is not a number that can be right")),
    };
    Ok(Some(ExtentLine { access, sectors, kind, file: file.to_owned(), offset }))
}

/// How errors about the line of an extent begin; the line comes then, in single quotes.
pub const BAD_EXTENT: &str = "of the extent";

/// As much of a hostile text as an error may have.
fn short(text: &str) -> String {
    text.chars().take(80).filter(|c| !c.is_control()).collect()
}

/// True if a file that begins with `head` is a descriptor: after comments and empty lines comes its version.
pub fn probe(head: &[u8]) -> bool {
    for line in head.split(|&b| b == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            if line.starts_with(b"# Disk DescriptorFile") {
                return true;
            }
            continue;
        }
        return matches!(line, b"version=1" | b"version=2" | b"version=3");
    }
    false
}

/// What a new descriptor says.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    pub cid: u32,
    /// The parent's content ID and its name.
    pub parent: Option<(u32, &'a str)>,
    pub create_type: &'a str,
    pub extents: &'a [ExtentLine],
    pub hardware: &'a str,
    pub adapter: &'a str,
    pub tools: &'a str,
    /// Bytes of the disk.
    pub size: u64,
}

/// The text of a new descriptor.
pub fn write(parts: &Parts<'_>) -> String {
    let mut text = String::new();
    let (parent, hint) = match parts.parent {
        Some((cid, name)) => (cid, format!("parentFileNameHint=\"{name}\"\n")),
        None => (NO_PARENT, String::new()),
    };
    let _ = write!(
        text,
        "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent:08x}\ncreateType=\"{}\"\n{hint}\n\
         # Extent description\n",
        parts.cid, parts.create_type
    );
    for e in parts.extents {
        let offset = if e.kind == Kind::Flat { format!(" {}", e.offset) } else { String::new() };
        let _ = writeln!(text, "RW {} {} \"{}\"{offset}", e.sectors, e.kind.name(), e.file);
    }
    // What BIOSes make of disks: 16 heads on IDE, 255 on SCSI.
    let heads = if parts.adapter == "ide" { 16 } else { 255 };
    let cylinders = parts.size / (63 * heads * crate::SECTOR);
    let _ = write!(
        text,
        "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"{}\"\n\
         ddb.toolsVersion = \"{}\"\n",
        parts.hardware, parts.adapter, parts.tools
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=1a2b3c4d\r\nparentCID=ffffffff\nisNativeSnapshot=\"no\"\n\
        createType=\"custom\"\n\nRW 63 FLAT \"a b-flat.vmdk\" 7\nRW  100 SPARSE \"s.vmdk\"\nNOACCESS 5 ZERO\n\
        RDONLY 9 VMFS \"v.vmdk\"\n#DDB\nddb.adapterType = \"lsilogic\"\n";

    #[test]
    fn it_is_read_and_changed() {
        let mut d = Descriptor::new("x", TEXT.as_bytes()).unwrap();
        assert_eq!((d.cid("x").unwrap(), d.parent_cid("x").unwrap()), (0x1a2b_3c4d, None));
        assert_eq!((d.get("CREATETYPE"), d.get("ddb.adaptertype")), (Some("custom"), Some("lsilogic")));
        let (at, len) = d.place("cid").unwrap();
        assert_eq!(&d.to_bytes()[at..at + len], b"1a2b3c4d");
        let e = d.extents("x").unwrap();
        assert_eq!((e.len(), e[0].file.as_str(), e[0].offset), (4, "a b-flat.vmdk", 7));
        assert_eq!((e[2].access, e[2].kind, e[2].sectors), (Access::None, Kind::Zero, 5));
        assert_eq!(e[3].access, Access::ReadOnly);
        d.set_extent("x", 0, 64);
        d.set("parentFileNameHint", Some("parentFileNameHint=\"p.vmdk\""), "createType");
        d.set("parentCID", Some("parentCID=00000007"), "CID");
        d.set_extent("x", 1, 7);
        assert_eq!(d.extents("x").unwrap()[1], ExtentLine { sectors: 7, ..e[1].clone() });
        assert_eq!((d.extents("x").unwrap()[0].sectors, d.parent_cid("x").unwrap()), (64, Some(7)));
        assert_eq!(d.get("parentfilenamehint"), Some("p.vmdk"));
        d.set("parentFileNameHint", None, "");
        assert_eq!(d.get("parentfilenamehint"), None);
    }

    #[test]
    fn bytes_that_are_not_utf8_stay() {
        let d = Descriptor::new("x", b"version=1\nparentFileNameHint=\"\xe4.vmdk\"\nCID=1\n").unwrap();
        assert_eq!(d.get("parentFileNameHint"), Some("\u{e4}.vmdk"));
        let (at, len) = d.place("CID").unwrap();
        assert_eq!(&d.to_bytes()[at..at + len], b"1");
        assert!(d.to_bytes().contains(&0xe4));
    }

    #[test]
    fn wrong_extents_are_refused() {
        for line in [
            "RW x FLAT \"a\" 0",
            "RW 0 SPARSE \"a\"",
            "RW 1 FLAT \"a\"",
            "RW 1 FLAT \"a\" -1",
            "RW 1 FLAT a 0",
            "RW 1 VMFSRDM \"a\"",
            "RW 9223372036854775807 SPARSE \"a\"",
            "RW 1",
            "RW",
        ] {
            assert!(Descriptor::new("x", line.as_bytes()).unwrap().extents("x").is_err(), "{line}");
        }
        let many = "RW 1 ZERO\n".repeat(MAX_EXTENTS + 1);
        assert!(Descriptor::new("x", many.as_bytes()).unwrap().extents("x").is_err());
    }

    #[test]
    fn files_are_known_by_their_beginning() {
        assert!(probe(TEXT.as_bytes()) && probe(b"# a comment\n\nversion=1\n"));
        assert!(!probe(b"") && !probe(b"version=9\n") && !probe(b"\x7fELF"));
    }
}
