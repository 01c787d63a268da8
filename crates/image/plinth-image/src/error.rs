//! The one error type of disk images.

use std::io;
use std::path::Path;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such file.
    NotFound,
    /// The file is not something a disk can be made from, or not in the format that was asked for.
    Format,
    /// Another process uses the image in a way that excludes this one.
    Busy,
    /// A request beyond the end.
    OutOfRange,
    /// The image, or the way it was opened, is read-only.
    ReadOnly,
    /// No space is left where the image lives.
    NoSpace,
    /// The host cannot do this to this file.
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
    /// What the host said about `doing` something to the image at `path`.
    pub(crate) fn host(doing: &str, path: &Path, source: io::Error) -> Self {
        use io::ErrorKind as K;
        let kind = match source.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
            K::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self { kind, context: format!("cannot {doing} '{}'", path.display()), source }
    }

    /// A refusal of our own.
    pub(crate) fn refused(kind: ErrorKind, doing: &str, path: &Path, why: impl Into<String>) -> Self {
        let context = format!("cannot {doing} '{}'", path.display());
        Self { kind, context, source: io::Error::other(why.into()) }
    }
}
