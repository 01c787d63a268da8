//! The one error type of disk images.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such file, snapshot or bitmap.
    NotFound,
    /// It is there already.
    Exists,
    /// The file is not something a disk can be made from, or not in the format that was asked for.
    Format,
    /// The image's own tables contradict each other or its format.
    Corrupt,
    /// The image names another file that it may not open.
    Denied,
    /// It asks for more memory, time or space than an honest image needs.
    Limit,
    /// An option, name or number that makes no sense here.
    Invalid,
    /// A passphrase or key is missing or wrong.
    Key,
    /// Another process uses the image in a way that excludes this one.
    Busy,
    /// A request beyond the end.
    OutOfRange,
    /// The image, or the way it was opened, is read-only.
    ReadOnly,
    /// No space is left where the image lives.
    NoSpace,
    /// The host or the format cannot do this, or Plinth cannot do it to this format.
    Unsupported,
    /// The host's I/O failed.
    Io,
}

/// A failed operation on a disk image.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {source}")]
pub struct Error {
    /// Kind, to match on.
    pub kind: ErrorKind,
    /// What was being done, to which image.
    pub context: String,
    /// Why it failed.
    pub source: io::Error,
}

impl Error {
    /// `doing` (such as "cannot open 'a.qcow2'") failed because of `why`.
    #[must_use]
    pub fn new(kind: ErrorKind, doing: impl Into<String>, why: impl Display) -> Self {
        Self { kind, context: doing.into(), source: io::Error::other(why.to_string()) }
    }

    /// The image called `name` contradicts itself or its format.
    #[must_use]
    pub fn corrupt(name: &str, why: impl Display) -> Self {
        Self::new(ErrorKind::Corrupt, format!("'{name}' is damaged"), why)
    }

    /// What the host said when it was `doing` something to the file called `name`.
    #[must_use]
    pub fn from_host(doing: &str, name: &str, source: io::Error) -> Self {
        use io::ErrorKind as K;
        let kind = match source.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::AlreadyExists => ErrorKind::Exists,
            K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            K::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self { kind, context: format!("cannot {doing} '{name}'"), source }
    }

    /// What the host said about `doing` something to the image at `path`.
    pub(crate) fn host(doing: &str, path: &Path, source: io::Error) -> Self {
        Self::from_host(doing, &path.display().to_string(), source)
    }

    /// A refusal of our own.
    pub(crate) fn refused(kind: ErrorKind, doing: &str, path: &Path, why: impl Into<String>) -> Self {
        Self::new(kind, format!("cannot {doing} '{}'", path.display()), why.into())
    }
}
