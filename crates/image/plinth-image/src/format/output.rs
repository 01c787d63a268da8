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
        Ok(Self { folder: folder.to_owned(), name, cache, device, files, main })
    }

    fn make(&self, name: &str) -> Result<(NodeRef, (PathBuf, PathBuf)), Error> {
        let last = self.folder.join(name);
        let own = last.file_name().and_then(|n| n.to_str()).unwrap_or(name);
        let prefix = format!(".{own}.");
        let folder = last.parent().unwrap_or(&self.folder);
        // A free name; the file itself is made by `FileNode`, which locks it.
        for _ in 0..100 {
            let mut random = [0; 8];
            let failed = |e: rustix::io::Errno| Error::host("create", &last, e.into());
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
            let temporary = folder.join(format!("{prefix}{:016x}.tmp", u64::from_ne_bytes(random)));
            match FileNode::create(&temporary, self.cache) {
                Ok(node) => return Ok((Rc::new(node), (temporary, last))),
                Err(e) if e.kind == ErrorKind::Exists => {}
                Err(e) => return Err(e),
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
        let failed = |e| Error::host("synchronize", &self.folder, e);
        File::open(&self.folder).and_then(|f| f.sync_all()).map_err(failed)
    }
}

impl Drop for OutputFiles {
    fn drop(&mut self) {
        for (temporary, _) in self.files.borrow().iter().chain(self.main.borrow().iter()) {
            // Those that have their names already are not there any more.
            let _ = std::fs::remove_file(temporary);
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
            let (node, paths) = self.make(&self.name)?;
            *self.main.borrow_mut() = Some(paths);
            Ok(node)
        })
    }

    fn sibling<'a>(&'a self, name: &'a str) -> Io<'a, NodeRef> {
        Box::pin(async move {
            let (node, paths) = self.make(name)?;
            self.files.borrow_mut().push(paths);
            Ok(node)
        })
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
