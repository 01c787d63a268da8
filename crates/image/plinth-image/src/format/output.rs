//! Where new images are written.
//!
//! A new image gets its names only when it is complete: until then it is in temporary files beside them, so that
//! whatever happens, a name holds the old file or the whole new one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::graph::{Cache, FileNode, FileOptions, Io, MemoryNode, NodeRef};
use crate::{Error, ErrorKind};

/// Makes the files of one image.
pub trait Output {
    /// The name that the image's main file will have, without its folder.
    fn name(&self) -> &str;
    /// Makes the main file, empty. Once.
    ///
    /// # Errors
    /// It cannot be created.
    fn main(&self) -> Io<'_, NodeRef>;
    /// Makes another file, empty, which will have this name: a path as seen from the main one's folder.
    ///
    /// # Errors
    /// It cannot be created.
    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef>;
    /// True if the files get a folder of their own, in which they stay together.
    fn has_folder(&self) -> bool {
        false
    }
    /// Makes the file that a LUKS image's header is to have of its own, empty. `None`: it has none.
    ///
    /// # Errors
    /// It cannot be created.
    fn header(&self) -> Option<Io<'_, NodeRef>> {
        None
    }
}

/// New files on the host.
pub struct OutputFiles {
    folder: PathBuf,
    name: String,
    cache: Cache,
    /// A device is written in place: it cannot be replaced.
    device: Option<PathBuf>,
    /// Temporary and final paths, the main file last once it is there.
    files: RefCell<Vec<(PathBuf, PathBuf)>>,
    main: RefCell<Option<(PathBuf, PathBuf)>>,
    /// The file for a LUKS header.
    header: Option<PathBuf>,
    /// What `folder` becomes, if it is one for this image alone.
    whole: Option<PathBuf>,
}

impl OutputFiles {
    /// Files for an image at `path`; what is there stays until [`finish`](Self::finish), a block device is
    /// written in place.
    ///
    /// # Errors
    /// The path is not one for a file.
    pub fn new(path: &Path, cache: Cache) -> Result<Self, Error> {
        use std::os::unix::fs::FileTypeExt;
        let refused = |why: &str| {
            Error::new(ErrorKind::Invalid, format!("cannot create '{}'", path.display()), why.to_owned())
        };
        let name = path.file_name().ok_or_else(|| refused("it is not the path of a file"))?;
        let name = name.to_str().ok_or_else(|| refused("its name is not UTF-8"))?.to_owned();
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut device = None;
        if let Ok(meta) = std::fs::metadata(path) {
            if meta.is_dir() {
                return Err(refused("it is a folder"));
            }
            if meta.file_type().is_block_device() {
                device = Some(path.to_owned());
            } else if !meta.is_file() {
                return Err(refused("it is neither a regular file nor a block device"));
            } else {
                // Somebody's disk in use must not be replaced under their feet.
                FileNode::open(path, &FileOptions::default())?;
            }
        }
        let (files, main) = (RefCell::default(), RefCell::default());
        Ok(Self { folder: folder.to_owned(), name, cache, device, files, main, header: None, whole: None })
    }

    /// Files for an image that is a folder, with `name` as the main file in it. A folder that is there stays until
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// The path is not one for a folder.
    pub fn in_folder(path: &Path, name: &str, cache: Cache) -> Result<Self, Error> {
        let refused = |why: &str| {
            Error::new(ErrorKind::Invalid, format!("cannot create '{}'", path.display()), why.to_owned())
        };
        let own = path.file_name().ok_or_else(|| refused("it is not the path of a folder"))?;
        if std::fs::metadata(path).is_ok_and(|m| !m.is_dir()) {
            return Err(refused("it is not a folder"));
        }
        let failed = |e: rustix::io::Errno| Error::host("create", path, e.into());
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
        let temporary = format!(".{}.{:016x}.tmp", own.to_string_lossy(), u64::from_ne_bytes(random));
        let folder = path.with_file_name(temporary);
        std::fs::create_dir(&folder).map_err(|e| Error::host("create", path, e))?;
        let (files, main) = (RefCell::default(), RefCell::default());
        let whole = Some(path.to_owned());
        Ok(Self { folder, name: name.to_owned(), cache, device: None, files, main, header: None, whole })
    }

    /// Gives the folder its name; one that had it goes away.
    fn rename_folder(&self, path: &Path) -> Result<(), Error> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let failed = |e: std::io::Error| Error::host("rename a folder to", path, e);
        if path.exists() {
            renameat_with(CWD, &self.folder, CWD, path, RenameFlags::EXCHANGE)
                .map_err(|e| failed(e.into()))?;
            std::fs::remove_dir_all(&self.folder).map_err(|e| Error::host("remove the old", path, e))?;
        } else {
            std::fs::rename(&self.folder, path).map_err(failed)?;
        }
        sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }

    /// Has the header of a LUKS image written to a file of its own.
    #[must_use]
    pub fn with_header(mut self, path: &Path) -> Self {
        self.header = Some(path.to_owned());
        self
    }

    fn make(&self, last: PathBuf) -> Result<(NodeRef, (PathBuf, PathBuf)), Error> {
        let name = last.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let prefix = format!(".{name}.");
        // A free name; the file itself is made by `FileNode`, which locks it.
        for _ in 0..100 {
            let mut random = [0; 8];
            let failed = |e: rustix::io::Errno| Error::host("create", &last, e.into());
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
            let temporary = last.with_file_name(format!("{prefix}{:016x}.tmp", u64::from_ne_bytes(random)));
            match FileNode::create(&temporary, self.cache) {
                Ok(node) => {
                    // Where it is one of several in a folder, that is what the user has named.
                    let node = node.called(self.whole.as_deref().unwrap_or(&last));
                    return Ok((Rc::new(node), (temporary, last)));
                }
                Err(e) if e.kind == ErrorKind::Exists => {}
                Err(e) if e.kind == ErrorKind::NotFound => {
                    let folder = last.parent().unwrap_or(Path::new("."));
                    let why = format!("there is no folder '{}'", folder.display());
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("cannot create '{}'", last.display()),
                        why,
                    ));
                }
                Err(e) => return Err(Error { context: format!("cannot create '{}'", last.display()), ..e }),
            }
        }
        Err(Error::new(
            ErrorKind::Exists,
            format!("cannot create '{}'", last.display()),
            "no free temporary name",
        ))
    }

    /// Gives the files their names, after they are durable. The image must have been flushed or closed.
    ///
    /// # Errors
    /// The files cannot be synchronized or renamed; those that were not renamed are removed.
    pub fn finish(self) -> Result<(), Error> {
        let mut all = std::mem::take(&mut *self.files.borrow_mut());
        all.extend(self.main.borrow_mut().take());
        // Given back for `Drop` in case of an error.
        *self.files.borrow_mut() = all.clone();
        for (temporary, last) in &all {
            let failed = |e| Error::host("write", last, e);
            File::open(temporary).and_then(|f| f.sync_all()).map_err(failed)?;
        }
        for (temporary, last) in &all {
            std::fs::rename(temporary, last).map_err(|e| Error::host("rename a file to", last, e))?;
        }
        self.files.borrow_mut().clear();
        if let Some(header) = &self.header {
            sync_folder(header.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        }
        sync_folder(&self.folder)?;
        self.whole.as_ref().map_or(Ok(()), |path| self.rename_folder(path))
    }
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::host("synchronize", folder, e))
}

impl Drop for OutputFiles {
    fn drop(&mut self) {
        for (temporary, _) in self.files.borrow().iter().chain(self.main.borrow().iter()) {
            // Those that have their names already are not there any more.
            let _ = std::fs::remove_file(temporary);
        }
        if self.whole.is_some() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

impl Output for OutputFiles {
    fn name(&self) -> &str {
        &self.name
    }

    fn main(&self) -> Io<'_, NodeRef> {
        Box::pin(async move {
            if let Some(device) = &self.device {
                let options = FileOptions { cache: self.cache, ..FileOptions::default() };
                return Ok(Rc::new(FileNode::open(device, &options)?) as NodeRef);
            }
            let (node, paths) = self.make(self.folder.join(&self.name))?;
            *self.main.borrow_mut() = Some(paths);
            Ok(node)
        })
    }

    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef> {
        Box::pin(async move {
            let (node, paths) = self.make(self.folder.join(name))?;
            self.files.borrow_mut().push(paths);
            Ok(node)
        })
    }

    fn has_folder(&self) -> bool {
        self.whole.is_some()
    }

    fn header(&self) -> Option<Io<'_, NodeRef>> {
        let path = self.header.clone()?;
        Some(Box::pin(async move {
            let (node, paths) = self.make(path)?;
            self.files.borrow_mut().push(paths);
            Ok(node)
        }))
    }
}

/// New files in memory, for tests.
#[derive(Default)]
pub struct MemoryOutput {
    name: String,
    files: RefCell<BTreeMap<String, Rc<MemoryNode>>>,
}

impl MemoryOutput {
    /// No files yet; the main one will have this name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), files: RefCell::default() }
    }

    /// A file that was made.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<Rc<MemoryNode>> {
        self.files.borrow().get(name).cloned()
    }

    /// All files and their names.
    #[must_use]
    pub fn files(&self) -> Vec<(String, Rc<MemoryNode>)> {
        self.files.borrow().iter().map(|(name, node)| (name.clone(), node.clone())).collect()
    }
}

impl Output for MemoryOutput {
    fn name(&self) -> &str {
        &self.name
    }

    fn main(&self) -> Io<'_, NodeRef> {
        self.sibling(&self.name)
    }

    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef> {
        Box::pin(async move {
            let node = Rc::new(MemoryNode::new(name));
            self.files.borrow_mut().insert(name.to_owned(), node.clone());
            Ok(node as NodeRef)
        })
    }
}
