//! A Debian package file (deb(5)): its control files and its data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::ar;
use crate::control::{Stanza, stanzas};
use crate::error::{AtPath, GuestError, Result};
use crate::package::is_package_name;
use crate::tree::{Meta, NAME_LIMIT, PATH_LIMIT, check_path};

/// All control files of one package together.
const CONTROL_LIMIT: u64 = 64 << 20;
/// `xz -9` needs 65 MiB to unpack; what asks for more is not a package.
const XZ_MEMORY_LIMIT: u64 = 256 << 20;
/// Twice what `zstd --ultra -22` uses, as a power of two.
const ZSTD_WINDOW_LOG: u32 = 28;

/// What an entry of the data archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file of that many bytes.
    File(u64),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A hard link to a path of the archive.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An entry of the data archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path without `./` before and `/` behind it; empty for the root.
    pub path: Vec<u8>,
    /// Owner, permissions, time.
    pub meta: Meta,
    /// What it is.
    pub kind: EntryKind,
}

/// The control part of a package.
#[derive(Debug, Clone, Default)]
pub struct Control {
    /// The stanza of the file `control`.
    pub stanza: Stanza,
    /// The other files: scripts, `conffiles`, `md5sums`, ... with their modes.
    pub files: BTreeMap<String, (Vec<u8>, u16)>,
}

/// Reads a package: first the control part, then `visit` for every entry of the data in its order, with
/// a reader of its content.
pub fn read(path: &Path, visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<()>) -> Result<Control> {
    let file = File::open(path).at("opening", path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    read_from(BufReader::with_capacity(256 * 1024, file), visit).map_err(|error| match error {
        GuestError::Malformed { what, reason } => {
            GuestError::malformed(format!("the package {name} ({what})"), reason)
        }
        error => error,
    })
}

fn read_from(input: impl Read, visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<()>) -> Result<Control> {
    let mut archive = ar::Archive::open(input)?;
    let mut control = None;
    while let Some(member) = archive.next_member()? {
        if let Some(suffix) = member.name.strip_prefix("control.tar") {
            control = Some(read_control(unpacker(suffix, archive.content())?)?);
        } else if let Some(suffix) = member.name.strip_prefix("data.tar") {
            let control = control.ok_or_else(|| malformed("its data stand before its control files"))?;
            read_data(unpacker(suffix, archive.content())?, visit)?;
            return Ok(control);
        } else if member.name == "debian-binary" {
            let mut version = String::new();
            archive.content().take(16).read_to_string(&mut version).map_err(|e| malformed(e.to_string()))?;
            if !version.starts_with("2.") {
                return Err(malformed("its format is newer than version 2"));
            }
        } else if !member.name.starts_with('_') {
            return Err(malformed("it has an unknown member"));
        }
    }
    Err(malformed("it has no data"))
}

fn unpacker<'a>(suffix: &str, input: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    Ok(match suffix {
        "" => Box::new(input),
        ".gz" => Box::new(flate2::read::GzDecoder::new(input)),
        ".xz" => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0)
                .map_err(|e| malformed(e.to_string()))?;
            Box::new(liblzma::read::XzDecoder::new_stream(input, stream))
        }
        ".zst" => {
            let mut decoder = zstd::Decoder::new(input).map_err(|e| malformed(e.to_string()))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|e| malformed(e.to_string()))?;
            Box::new(decoder)
        }
        _ => return Err(malformed(format!("its compression \"{suffix}\" is unknown"))),
    })
}

fn read_control(input: impl Read) -> Result<Control> {
    let mut control = Control::default();
    let mut left = CONTROL_LIMIT;
    walk(input, &mut |entry, content| {
        let EntryKind::File(size) = entry.kind else { return Ok(()) };
        left = left.checked_sub(size).ok_or_else(|| malformed("its control files are too large"))?;
        let name = String::from_utf8(entry.path).map_err(|_| malformed("a control file has an odd name"))?;
        if name.contains('/') {
            return Err(malformed("a control file is in a folder"));
        }
        let mut bytes = Vec::new();
        content.take(size).read_to_end(&mut bytes).map_err(|e| malformed(e.to_string()))?;
        if name == "control" {
            let text = String::from_utf8_lossy(&bytes);
            control.stanza = stanzas(&text).next().unwrap_or_default();
        } else {
            control.files.insert(name, (bytes, entry.meta.mode));
        }
        Ok(())
    })?;
    // The name becomes part of file names.
    if !control.stanza.get("Package").is_some_and(is_package_name) {
        return Err(malformed("its control file names no package"));
    }
    Ok(control)
}

fn read_data(input: impl Read, visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<()>) -> Result<()> {
    walk(input, visit)
}

/// Walks a tar archive (GNU, ustar and pax forms) and checks what it says.
fn walk(input: impl Read, visit: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<()>) -> Result<()> {
    let broken = |e: std::io::Error| malformed(e.to_string());
    let mut archive = tar::Archive::new(input);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = clean_path(&entry.path_bytes())?;
        let header = entry.header();
        let id = |value: std::io::Result<u64>| {
            value.ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| malformed("an owner is no number"))
        };
        let device = || -> Result<(u32, u32)> {
            let number = |value: std::io::Result<Option<u32>>| {
                value.ok().flatten().ok_or_else(|| malformed("a device has no number"))
            };
            let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
            // What Linux's dev_t holds.
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(malformed("a device number is too large"));
            }
            Ok((major, minor))
        };
        let mtime = header.mtime().map_err(broken)?;
        let meta = Meta {
            mode: u16::try_from(header.mode().map_err(broken)? & 0o7777).unwrap_or_default(),
            uid: id(header.uid())?,
            gid: id(header.gid())?,
            mtime: i64::try_from(mtime).unwrap_or(i64::MAX),
        };
        let link = || -> Result<Vec<u8>> {
            let target = entry.link_name_bytes().ok_or_else(|| malformed("a link has no target"))?;
            if target.is_empty() || target.len() > PATH_LIMIT || target.contains(&0) {
                return Err(malformed("a link's target is not a path"));
            }
            Ok(target.into_owned())
        };
        let kind = match header.entry_type() {
            tar::EntryType::Directory => EntryKind::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous => EntryKind::File(entry.size()),
            tar::EntryType::Symlink => EntryKind::Symlink(link()?),
            tar::EntryType::Link => EntryKind::HardLink(clean_path(&link()?)?),
            tar::EntryType::Char => device().map(|(major, minor)| EntryKind::CharDevice(major, minor))?,
            tar::EntryType::Block => device().map(|(major, minor)| EntryKind::BlockDevice(major, minor))?,
            tar::EntryType::Fifo => EntryKind::Fifo,
            tar::EntryType::XGlobalHeader => continue,
            _ => return Err(malformed("it has an entry of an unknown kind")),
        };
        visit(Entry { path, meta, kind }, &mut entry)?;
    }
    Ok(())
}

/// `./usr/bin/` to `usr/bin`; refuses what leads elsewhere.
fn clean_path(path: &[u8]) -> Result<Vec<u8>> {
    check_path(path)?;
    if path.starts_with(b"/") {
        return Err(malformed("it has an absolute path in it"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for name in path.split(|c| *c == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if name.len() > NAME_LIMIT {
            return Err(malformed("a name in it is too long"));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(name);
    }
    Ok(clean)
}

fn malformed(reason: impl Into<String>) -> GuestError {
    GuestError::malformed("deb", reason)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;
    use crate::ar::tests::archive;

    /// A tar archive of regular files, and of links where the content begins with `->`.
    pub(crate) fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            // The name is written raw: the builder would refuse what we want to see refused.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_mode(0o640);
            header.set_uid(3);
            header.set_gid(4);
            header.set_mtime(5);
            if let Some(target) = content.strip_prefix("->") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name(target).unwrap();
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, &b""[..]).unwrap();
            } else {
                header.set_entry_type(if path.ends_with('/') {
                    tar::EntryType::Directory
                } else {
                    tar::EntryType::Regular
                });
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const CONTROL: &str = "Package: a-b\nVersion: 1\nArchitecture: all\n";

    /// A package with these data files.
    pub(crate) fn deb(control: &[(&str, &str)], data: &[(&str, &str)]) -> Vec<u8> {
        let zst = zstd::encode_all(&tarball(control)[..], 1).unwrap();
        archive(&[
            ("debian-binary", b"2.0\n"),
            ("control.tar.zst", &zst),
            ("data.tar.xz", &xz(&tarball(data))),
        ])
    }

    type Listed = Vec<(Entry, Vec<u8>)>;

    fn list(bytes: &[u8]) -> Result<(Control, Listed)> {
        let mut entries = Vec::new();
        let control = read_from(bytes, &mut |entry, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(|e| malformed(e.to_string()))?;
            entries.push((entry, bytes));
            Ok(())
        })?;
        Ok((control, entries))
    }

    #[test]
    fn reads_a_package() {
        let bytes = deb(
            &[("./", ""), ("./control", CONTROL), ("./postinst", "#!/bin/sh\n")],
            &[("./", ""), ("./usr/", ""), ("./usr/a", "hello"), ("./usr/b", "->../../etc")],
        );
        let (control, entries) = list(&bytes).unwrap();
        assert_eq!(control.stanza.get("Package"), Some("a-b"));
        assert_eq!(control.files["postinst"].0, b"#!/bin/sh\n");
        assert_eq!(entries[0].0.path, b"");
        assert_eq!(entries[2].0.path, b"usr/a");
        assert_eq!(entries[2].0.meta, Meta { mode: 0o640, uid: 3, gid: 4, mtime: 5 });
        assert_eq!(entries[2].1, b"hello");
        assert_eq!(entries[3].0.kind, EntryKind::Symlink(b"../../etc".to_vec()));
    }

    #[test]
    fn hostile_paths_are_refused() {
        for path in ["../evil", "/etc/passwd", "./a/../../b", "usr/.."] {
            let bytes = deb(&[("control", CONTROL)], &[(path, "x")]);
            assert!(matches!(list(&bytes), Err(GuestError::Malformed { .. })), "{path}");
        }
        assert!(list(&deb(&[("x/control", CONTROL)], &[])).is_err());
        assert!(list(&deb(&[("conffiles", "")], &[])).is_err());
        assert!(list(&deb(&[("control", "Package: ../x\n")], &[])).is_err());
    }

    #[test]
    fn truncations_and_damage_never_panic() {
        let bytes = deb(&[("control", CONTROL)], &[("usr/a", "hello"), ("usr/b", "world")]);
        let whole = list(&bytes).unwrap().1.len();
        for len in (0..bytes.len() - 1).step_by(3) {
            assert!(list(&bytes[..len]).map_or(true, |(_, entries)| entries.len() <= whole));
        }
        for i in (0..bytes.len()).step_by(2) {
            let mut bad = bytes.clone();
            bad[i] ^= 0x55;
            let _ = list(&bad);
        }
        // The archive inside, without a checksum around it.
        let tar = tarball(&[("usr/a", "hello"), ("usr/b", "->x")]);
        for i in 0..tar.len().min(1536) {
            for value in [0, 0x2f, 0x37, 0x80, 0xff] {
                let mut bad = tar.clone();
                bad[i] = value;
                let _ = walk(&bad[..], &mut |_, _| Ok(()));
            }
        }
    }

    #[test]
    fn a_file_cannot_be_longer_than_its_archive() {
        let mut tar = tarball(&[("usr/a", "hello")]);
        tar[124..136].copy_from_slice(b"77777777777\0");
        let sum: u32 = tar[..512]
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let result = walk(&tar[..], &mut |entry, content| {
            let EntryKind::File(size) = entry.kind else { return Ok(()) };
            let copied = std::io::copy(&mut content.take(size), &mut std::io::sink())
                .map_err(|e| malformed(e.to_string()))?;
            assert!(copied < size);
            Err(malformed("cut short"))
        });
        assert!(result.is_err());
    }
}
