//! What an image may open: files that are named inside of it.
//!
//! The names come from whoever made the image, which may be a guest or an attacker, so by default an image can
//! only have what lies in its own folder. The user can allow more by path. Addresses, descriptions of nodes and
//! devices are never followed.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::open::{OpenOptions, open_linked};
use super::{BackingLink, Image};
use crate::graph::{FileNode, FileOptions, Io, NodeRef};
use crate::{Error, ErrorKind};

/// Why an image names another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The image below.
    Backing,
    /// A file with a part of the image's own data.
    Data,
}

/// What may be opened because an image names it.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Files, and folders with all that is below, besides the image's own folder.
    pub allowed: Vec<PathBuf>,
    /// Nothing at all, not even in the image's own folder.
    pub nothing: bool,
}

/// Opens what one image names.
pub trait Links {
    /// Opens a file of the image's own data (an extent, an external data file).
    ///
    /// # Errors
    /// [`ErrorKind::Denied`]; as for opening a file.
    fn open_file<'a>(&'a self, name: &'a str, read_only: bool) -> Io<'a, NodeRef>;
    /// Opens the image below, for reading.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`]; as for opening an image.
    fn open_backing<'a>(&'a self, link: &'a BackingLink) -> Io<'a, Rc<dyn Image>>;
    /// Names of files that may be the image below, for a format that knows it by an ID alone: those that end in
    /// `suffix` beside the image, and those that the user has allowed. Not all links can list them.
    fn candidates(&self, _suffix: &str) -> Vec<String> {
        Vec::new()
    }
}

/// No links at all.
#[derive(Clone, Copy, Debug)]
pub struct NoLinks;

impl Links for NoLinks {
    fn open_file<'a>(&'a self, name: &'a str, _read_only: bool) -> Io<'a, NodeRef> {
        Box::pin(async move { Err(denied(name, "links are not followed here")) })
    }

    fn open_backing<'a>(&'a self, link: &'a BackingLink) -> Io<'a, Rc<dyn Image>> {
        Box::pin(async move { Err(denied(&link.name, "links are not followed here")) })
    }
}

fn denied(name: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Denied, format!("the image names '{name}', which is not opened"), why)
}

/// True for what QEMU would take for the address of something else than a file: `nbd:...`, `json:{...}`.
fn is_address(name: &str) -> bool {
    let prefix = name.split_once(':').map(|(p, _)| p);
    prefix.is_some_and(|p| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.' | b'_'))
    })
}

/// Identity of an open file: device and inode.
pub type FileId = (u64, u64);

/// Links of an image in a file.
pub struct FileLinks {
    /// The image's own file.
    pub path: PathBuf,
    /// How the image itself was opened.
    pub options: OpenOptions,
    /// The files of the images above and of this one: a chain must not come back to one of them.
    pub chain: Vec<FileId>,
}

/// Files of a folder that are looked at to find the image below.
const MAX_CANDIDATES: usize = 4096;
/// Images above each other at most.
const MAX_CHAIN: usize = 256;

/// The real path of the image that the one at `path` names as the one below it, if it may be opened.
///
/// # Errors
/// [`ErrorKind::Denied`]; as for realpath(3).
pub fn backing_path(path: &Path, name: &str, trust: &Trust) -> Result<PathBuf, Error> {
    let options = OpenOptions { trust: trust.clone(), ..OpenOptions::default() };
    FileLinks { path: path.to_owned(), options, chain: Vec::new() }.resolve(name)
}

impl FileLinks {
    /// The real path of what `name` means, if it may be opened.
    fn resolve(&self, name: &str) -> Result<PathBuf, Error> {
        if name.is_empty() {
            return Err(denied(
                name,
                "it has no name there, and is not among the files beside the one above it",
            ));
        }
        if is_address(name) {
            return Err(denied(name, "it is an address, and images may only name files"));
        }
        let trust = &self.options.trust;
        if trust.nothing {
            return Err(denied(name, "links are not followed"));
        }
        let failed = |e| Error::from_host("open", name, e);
        let own = std::fs::canonicalize(&self.path).map_err(failed)?;
        let folder = own.parent().unwrap_or(Path::new("/"));
        // The folder as the user wrote it, which can be reached by a link, is where relative names begin.
        let base = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let path = base.join(name);
        let real = std::fs::canonicalize(&path)
            .or_else(|_| std::fs::canonicalize(folder.join(name)))
            .map_err(|e| Error::from_host("open", &path.display().to_string(), e))?;
        let in_allowed = |a: &PathBuf| std::fs::canonicalize(a).is_ok_and(|a| real.starts_with(a));
        if real.starts_with(folder) || trust.allowed.iter().any(in_allowed) {
            return Ok(real);
        }
        let why = format!(
            "it is outside of the image's folder, and an image from somebody else could name any file that way; \
             if you trust it, allow it with --allow-backing '{}'",
            real.display()
        );
        Err(denied(name, why))
    }

    fn open(&self, name: &str, read_only: bool) -> Result<FileNode, Error> {
        let path = self.resolve(name)?;
        let options = FileOptions { read_only, cache: self.options.cache, share: self.options.share };
        let file = FileNode::open(&path, &options)?;
        if file.is_device() {
            return Err(denied(name, "it is a device"));
        }
        // Whatever happened to the names meanwhile, the file that was opened is the one that was allowed.
        if file.real_path()? != path {
            return Err(denied(name, "the file was moved while it was being opened"));
        }
        if self.chain.contains(&file.id()?) {
            let why = "the chain of images comes back to a file that is already part of it";
            return Err(Error::corrupt(&self.path.display().to_string(), why));
        }
        if self.chain.len() >= MAX_CHAIN {
            let why = format!("there are more than {MAX_CHAIN} images above each other");
            return Err(Error::new(ErrorKind::Limit, format!("cannot open '{name}'"), why));
        }
        Ok(file)
    }
}

impl Links for FileLinks {
    fn open_file<'a>(&'a self, name: &'a str, read_only: bool) -> Io<'a, NodeRef> {
        Box::pin(async move { Ok(Rc::new(self.open(name, read_only)?) as NodeRef) })
    }

    fn open_backing<'a>(&'a self, link: &'a BackingLink) -> Io<'a, Rc<dyn Image>> {
        Box::pin(async move {
            let file = self.open(&link.name, true)?;
            open_linked(file, link.format, self).await
        })
    }

    fn candidates(&self, suffix: &str) -> Vec<String> {
        let trust = &self.options.trust;
        if trust.nothing {
            return Vec::new();
        }
        let own = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut paths = Vec::new();
        for place in std::iter::once(own).chain(trust.allowed.iter().map(PathBuf::as_path)) {
            match std::fs::read_dir(place) {
                Ok(folder) => paths.extend(folder.take(MAX_CANDIDATES).flatten().map(|e| e.path())),
                Err(_) => paths.push(place.to_owned()),
            }
        }
        // Absolute, so that they mean the same wherever the names in the image begin.
        let names = paths.iter().filter_map(|p| std::fs::canonicalize(p).ok()).filter(|p| p.is_file());
        let names = names.filter_map(|p| p.to_str().map(str::to_owned));
        names.filter(|n| n.to_lowercase().ends_with(suffix)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known() {
        for name in ["nbd:unix:/x", "json:{}", "http://a/b", "nbd+unix:///x", "file:x"] {
            assert!(is_address(name), "{name}");
        }
        for name in ["disk.raw", "./a:b", "/a/b:c", "dir/x"] {
            assert!(!is_address(name), "{name}");
        }
    }

    #[test]
    fn only_the_images_own_folder_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        for file in [inside.join("image"), inside.join("sub/base"), outside.join("secret")] {
            std::fs::write(file, [0; 512]).unwrap();
        }
        std::os::unix::fs::symlink(outside.join("secret"), inside.join("link")).unwrap();
        let links = |trust: Trust| FileLinks {
            path: inside.join("image"),
            options: OpenOptions { trust, ..OpenOptions::default() },
            chain: Vec::new(),
        };
        let kind = |trust: Trust, name: &str| links(trust).resolve(name).err().map(|e| e.kind);
        let none = Trust::default();
        assert_eq!(kind(none.clone(), "sub/base"), None);
        assert_eq!(kind(none.clone(), inside.join("sub/base").to_str().unwrap()), None);
        for name in ["../out/secret", "link", "/etc/hostname", "json:{}", "/dev/null", ""] {
            assert_eq!(kind(none.clone(), name), Some(ErrorKind::Denied), "{name}");
        }
        assert_eq!(kind(none, "absent"), Some(ErrorKind::NotFound));
        let trust = Trust { allowed: vec![outside.join("secret")], nothing: false };
        assert_eq!(kind(trust.clone(), "link"), None);
        assert_eq!(kind(trust, "/etc/hostname"), Some(ErrorKind::Denied));
        assert_eq!(kind(Trust { nothing: true, ..Trust::default() }, "sub/base"), Some(ErrorKind::Denied));
    }
}
