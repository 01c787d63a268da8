//! Packages of virtual machines: OVF (a folder with an envelope in XML and the files that it names) and OVA (the
//! same in a tar archive). Source: DMTF DSP0243, versions 1.1.1 and 2.1.1.
//!
//! A package comes from somebody else: nothing outside of its own folder or archive is opened, its envelope and
//! manifest are bounded, and a compressed file is unpacked up to a limit only.

mod machine;
mod manifest;
mod part;
mod write;
mod xml;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::format::{Image, OpenOptions, open_node};
use crate::graph::{FileNode, FileOptions, IoBuf, Node, NodeRef};
use crate::{Error, ErrorKind};
pub use machine::{Controller, ControllerKind, Disk, Firmware, MachineDescription, Nic, OperatingSystem};
pub use manifest::{Manifest, Verified};
use part::Parts;
pub use write::{Written, package_files, write_package};

/// Files of a package at most.
const MAX_FILES: usize = 4096;
/// Chunks of one file at most.
const MAX_CHUNKS: u64 = 10_000;

/// A file that the envelope names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageFile {
    /// What disks refer to it by.
    pub id: String,
    /// Its name in the package.
    pub name: String,
    /// Bytes, if the envelope says so.
    pub size: Option<u64>,
    /// It is compressed with gzip, besides what its format does.
    pub gzip: bool,
    /// It is in pieces of so many bytes: `name.000000000` and so on.
    pub chunk: Option<u64>,
}

/// Where the files are.
enum Place {
    Folder(PathBuf),
    /// The archive, and for each file where its bytes are.
    Archive {
        node: NodeRef,
        members: Vec<(String, u64, u64)>,
    },
}

/// An open package.
pub struct Package {
    name: String,
    place: Place,
    envelope_name: String,
    envelope: Vec<u8>,
    /// Its machines: one, or all of a collection.
    pub machines: Vec<MachineDescription>,
    /// The files that the envelope names.
    pub files: Vec<PackageFile>,
    /// Checksums of the files, if the package has them.
    pub manifest: Option<Manifest>,
    /// Sections of the envelope that are of no machine and not understood here, as they are.
    pub other: Vec<String>,
}

fn bad(name: &str, why: impl std::fmt::Display) -> Error {
    Error::corrupt(name, why)
}

/// Refuses names that would leave the package: it is flat, or has folders below its own.
fn check_member(name: &str) -> Result<(), String> {
    let parts = || name.split('/');
    if name.is_empty() || name.len() > 1024 || name.contains(['\\', '\0']) || name.starts_with('/') {
        return Err(format!("'{}' is not the name of a file in the package", name.escape_debug()));
    }
    if name.contains(':') || parts().any(|p| p.is_empty() || p == "." || p == "..") {
        return Err(format!("'{}' leaves the package, which is not followed", name.escape_debug()));
    }
    Ok(())
}

/// Undoes the percent-encoding of an address.
fn decode_href(href: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(href.len());
    let mut bytes = href.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16));
        let (high, low) = (digit(), digit());
        let code = high.zip(low).map(|(h, l)| (h * 16 + l) as u8);
        out.push(code.ok_or_else(|| format!("'{}' is not an address", href.escape_debug()))?);
    }
    String::from_utf8(out).map_err(|_| format!("'{}' is not UTF-8", href.escape_debug()))
}

impl Package {
    /// Opens a package: an envelope (`.ovf`), or an archive (`.ova`).
    ///
    /// # Errors
    /// It cannot be read, or is no package.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let options = FileOptions { read_only: true, ..FileOptions::default() };
        let file = FileNode::open(path, &options)?;
        let head = file.read(0, IoBuf::new(file.size().min(512) as usize)).await?;
        let is_archive = head.get(257..262) == Some(b"ustar");
        let (place, envelope_name) = if is_archive {
            let members = members(path, &name)?;
            let first = members.iter().find(|m| m.0.to_ascii_lowercase().ends_with(".ovf"));
            let first = first.ok_or_else(|| bad(&name, "there is no envelope (.ovf) in it"))?.0.clone();
            (Place::Archive { node: Rc::new(file), members }, first)
        } else {
            let own = path.file_name().and_then(|n| n.to_str());
            let own = own.ok_or_else(|| bad(&name, "its name is not UTF-8"))?.to_owned();
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (Place::Folder(folder.to_owned()), own)
        };
        let mut package = Self {
            name,
            place,
            envelope_name,
            envelope: Vec::new(),
            machines: Vec::new(),
            files: Vec::new(),
            manifest: None,
            other: Vec::new(),
        };
        package.envelope = package.small(&package.envelope_name, xml::MAX_LEN as u64).await?;
        package.read_envelope()?;
        let stem = package.envelope_name.rsplit_once('.').map_or("", |s| s.0);
        let manifest = format!("{stem}.mf");
        match package.small(&manifest, manifest::MAX_LEN).await {
            Ok(bytes) => {
                package.manifest = Some(Manifest::parse(&bytes).map_err(|e| bad(&manifest, e))?);
            }
            Err(e) if e.kind == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(package)
    }

    fn read_envelope(&mut self) -> Result<(), Error> {
        let wrong = |why: String| bad(&self.envelope_name, why);
        let text = std::str::from_utf8(&self.envelope).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
        let text = text.trim_start_matches('\u{feff}');
        let root = xml::parse(text).map_err(wrong)?;
        if root.name != "Envelope" {
            return Err(wrong(format!("it is no envelope, but '{}'", root.name.escape_debug())));
        }
        let of = |version: &str| root.namespaces.iter().any(|n| n.ends_with(version));
        if !of("/ovf/envelope/1") && !of("/ovf/envelope/2") && !of("/ovf/envelope") {
            return Err(wrong("it is of no known version of OVF".to_owned()));
        }
        let mut files = Vec::new();
        for file in root.all("References").flat_map(|r| r.all("File")) {
            files.push(package_file(file).map_err(wrong)?);
            if files.len() > MAX_FILES {
                return Err(wrong(format!("it names more than {MAX_FILES} files")));
            }
        }
        let context = machine::Context { text, envelope: &root, files: &files };
        let (mut machines, mut other) = (Vec::new(), Vec::new());
        let mut todo: Vec<&xml::Element> = root.children.iter().rev().collect();
        while let Some(element) = todo.pop() {
            match element.name.as_str() {
                "VirtualSystem" => machines.push(context.machine(element).map_err(wrong)?),
                "VirtualSystemCollection" => todo.extend(element.children.iter().rev()),
                "References" | "DiskSection" | "NetworkSection" | "Info" | "Name" => {}
                _ => other.push(text.get(element.place.clone()).unwrap_or_default().to_owned()),
            }
        }
        if machines.is_empty() {
            return Err(wrong("there is no machine in it".to_owned()));
        }
        (self.files, self.machines, self.other) = (files, machines, other);
        Ok(())
    }

    /// A file as it is in the package.
    async fn member(&self, name: &str) -> Result<NodeRef, Error> {
        check_member(name).map_err(|why| {
            Error::new(ErrorKind::Denied, format!("cannot open a file of '{}'", self.name), why)
        })?;
        let missing = || {
            Error::new(
                ErrorKind::NotFound,
                format!("cannot open '{name}' of '{}'", self.name),
                "it is not there",
            )
        };
        match &self.place {
            Place::Archive { node, members } => {
                let (_, at, len) = members.iter().find(|m| m.0 == name).ok_or_else(missing)?;
                Ok(Rc::new(Parts::new(name, vec![(node.clone(), *at, *len)])))
            }
            Place::Folder(folder) => {
                let path = folder.join(name);
                let options = FileOptions { read_only: true, ..FileOptions::default() };
                let file = FileNode::open(&path, &options)?;
                // Neither is a link followed that leads out of it.
                let real = std::fs::canonicalize(folder).map_err(|e| Error::host("find", folder, e))?;
                if file.is_device() || !file.real_path()?.starts_with(&real) {
                    let why = "it is outside of the package's folder";
                    return Err(Error::new(ErrorKind::Denied, format!("cannot open '{name}'"), why));
                }
                Ok(Rc::new(file))
            }
        }
    }

    async fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let node = self.member(name).await?;
        if node.size() > limit {
            let why = format!("it has {} bytes, and {limit} are the most", node.size());
            return Err(Error::new(ErrorKind::Limit, format!("cannot read '{name}'"), why));
        }
        Ok(node.read(0, IoBuf::new(node.size() as usize)).await?.to_vec())
    }

    /// A file with its chunks put together, still compressed if it is.
    async fn whole(&self, file: &PackageFile) -> Result<NodeRef, Error> {
        let Some(chunk) = file.chunk else { return self.member(&file.name).await };
        let mut parts = Vec::new();
        for n in 0..MAX_CHUNKS {
            match self.member(&format!("{}.{n:09}", file.name)).await {
                Ok(node) => {
                    let len = node.size();
                    parts.push((node, 0, len));
                    // Only the last may be shorter.
                    if len < chunk {
                        break;
                    }
                }
                Err(e) if e.kind == ErrorKind::NotFound && n > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(Rc::new(Parts::new(&file.name, parts)))
    }

    /// A file as it was before it was packed. `limit`: bytes that a compressed file may have at most.
    ///
    /// # Errors
    /// It is not there, is larger than the limit, or not what the envelope says.
    pub async fn open_file(&self, name: &str, limit: u64) -> Result<NodeRef, Error> {
        let file = self.files.iter().find(|f| f.name == name);
        let Some(file) = file else { return self.member(name).await };
        let node = self.whole(file).await?;
        if let Some(size) = file.size
            && size != node.size()
        {
            let why = format!("it has {} bytes, and the envelope says {size}", node.size());
            return Err(bad(name, why));
        }
        if file.gzip { part::unzip(name, node, limit).await } else { Ok(node) }
    }

    /// True if a file's name says that it is a package.
    #[must_use]
    pub fn is_name(path: &Path) -> bool {
        let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        ending.eq_ignore_ascii_case("ova") || ending.eq_ignore_ascii_case("ovf")
    }

    /// The disk that `name` means among those of all machines: its file, with or without the ending, its ID, or its
    /// number beginning at 1. Without a name, the only one.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if there is no such disk; [`Invalid`](ErrorKind::Invalid) if one of several has to
    /// be named. Both say what there is.
    pub fn find_disk(&self, name: Option<&str>) -> Result<&Disk, Error> {
        let disks: Vec<&Disk> = self.machines.iter().flat_map(|m| &m.disks).collect();
        let has = || {
            let names: Vec<_> = disks.iter().map(|d| d.file.as_ref().unwrap_or(&d.id).as_str()).collect();
            if names.is_empty() {
                "it has no disks".to_owned()
            } else {
                format!("it has {}", names.join(", "))
            }
        };
        let doing = |what: &str| format!("cannot open {what} of '{}'", self.name);
        let Some(name) = name else {
            return match disks[..] {
                [one] => Ok(one),
                [] => Err(Error::new(ErrorKind::NotFound, doing("a disk"), has())),
                _ => Err(Error::new(
                    ErrorKind::Invalid,
                    doing("the disk"),
                    format!("one has to be named: {}", has()),
                )),
            };
        };
        let is = |d: &&&Disk| {
            let file = d.file.as_deref();
            let stem = file.and_then(|f| f.rsplit_once('.')).map(|f| f.0);
            d.id == name || file == Some(name) || stem == Some(name)
        };
        let number = name.parse::<usize>().ok().and_then(|n| disks.get(n.checked_sub(1)?));
        let found = disks.iter().find(is).or(number).copied();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, doing(&format!("the disk '{name}'")), has()))
    }

    /// Opens a disk for reading; `None` if it is empty.
    ///
    /// # Errors
    /// As for [`open_file`](Self::open_file), and the format's; [`Unsupported`](ErrorKind::Unsupported) for a disk that
    /// is over another one of the package.
    pub async fn open_disk(&self, disk: &Disk) -> Result<Option<Rc<dyn Image>>, Error> {
        let Some(file) = &disk.file else { return Ok(None) };
        if disk.parent.as_deref().is_some_and(|p| !p.is_empty()) {
            let why = "it has only what differs from another disk of the package, which is not supported";
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("cannot open '{file}' of '{}'", self.name),
                why,
            ));
        }
        // What a format can need beyond the disk's own bytes.
        let limit = disk.capacity.saturating_add(disk.capacity / 8).saturating_add(64 << 20);
        let node = self.open_file(file, limit).await?;
        // A disk of a package needs nothing but itself: no links are followed.
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        Ok(Some(open_node(node, &options).await?.image))
    }
}

fn package_file(file: &xml::Element) -> Result<PackageFile, String> {
    let href = file.attribute("href").ok_or("a file has no name")?;
    let name = decode_href(href)?;
    check_member(&name)?;
    let number = |key: &str| {
        let parse = |v: &str| v.parse::<u64>().map_err(|_| format!("'{}' is not a size", v.escape_debug()));
        file.attribute(key).filter(|v| !v.is_empty()).map(parse).transpose()
    };
    let gzip = match file.attribute("compression").unwrap_or_default() {
        "" | "identity" => false,
        "gzip" => true,
        other => return Err(format!("the compression '{}' is not known", other.escape_debug())),
    };
    let id = file.attribute("id").unwrap_or_default().to_owned();
    let chunk = number("chunkSize")?;
    if chunk == Some(0) {
        return Err("a file is in chunks of no bytes".to_owned());
    }
    Ok(PackageFile { id, name, size: number("size")?, gzip, chunk })
}

/// The regular files of a tar archive: name, where the bytes are, how many.
fn members(path: &Path, name: &str) -> Result<Vec<(String, u64, u64)>, Error> {
    let failed = |e: io::Error| bad(name, format!("it is not a tar archive: {e}"));
    let file = File::open(path).map_err(|e| Error::host("open", path, e))?;
    let len = file.metadata().map_err(|e| Error::host("open", path, e))?.len();
    let mut archive = tar::Archive::new(file);
    let mut members = Vec::new();
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let member = entry.path().map_err(failed)?.to_str().map(str::to_owned);
        let member = member.ok_or_else(|| bad(name, "a name in it is not UTF-8"))?;
        let member = member.strip_prefix("./").map_or(member.clone(), str::to_owned);
        let (at, size) = (entry.raw_file_position(), entry.size());
        if at.checked_add(size).is_none_or(|end| end > len) {
            return Err(bad(name, format!("'{}' ends behind the archive", member.escape_debug())));
        }
        if members.len() >= MAX_FILES {
            return Err(bad(name, format!("it has more than {MAX_FILES} files")));
        }
        members.push((member, at, size));
    }
    Ok(members)
}

/// Reads an envelope from anywhere, for tests of hostile ones.
///
/// # Errors
/// What is wrong with it.
#[doc(hidden)]
pub fn parse_envelope(bytes: &[u8]) -> Result<Vec<MachineDescription>, Error> {
    let mut package = Package {
        name: "envelope".to_owned(),
        place: Place::Folder(PathBuf::new()),
        envelope_name: "envelope".to_owned(),
        envelope: bytes.to_vec(),
        machines: Vec::new(),
        files: Vec::new(),
        manifest: None,
        other: Vec::new(),
    };
    package.read_envelope()?;
    Ok(package.machines)
}
