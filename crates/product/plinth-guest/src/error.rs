//! The error type of the crate.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = GuestError> = std::result::Result<T, E>;

/// Why a guest image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// Neither an argument nor the host's apt configuration names a Debian mirror.
    #[error(
        "no Debian mirror is known: the host's apt configuration has no Debian archive in it; \
         name one with --mirror URL (it ends in /debian for most mirrors)"
    )]
    NoMirror,
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The home and cache folders are unknown.
    #[error("no cache folder: set PLINTH_CACHE, XDG_CACHE_HOME or HOME to a writable folder")]
    NoCache,
    /// A download failed for good.
    #[error(
        "cannot download {url}: {reason}; check the network and the mirror (--mirror URL), \
         or build once with a network to fill the cache"
    )]
    Network {
        /// What was asked for.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The server answered, but not with the file.
    #[error("{url}: the server answered {status}; check the mirror, the suite and the architecture")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status code.
        status: u16,
    },
    /// A file is not what the signed index says it is.
    #[error(
        "{what} does not match its checksum (expected {expected}, found {found}); the mirror may be \
         in the middle of an update: try again or use another mirror"
    )]
    Integrity {
        /// The file.
        what: String,
        /// The SHA-256 or size promised.
        expected: String,
        /// The SHA-256 or size seen.
        found: String,
    },
    /// The signature of the archive's index is missing or wrong.
    #[error("the signature of {what} is not valid: {reason}")]
    Signature {
        /// The signed file.
        what: String,
        /// What the verifier said, and what to do.
        reason: String,
    },
    /// Data from the network or from a package does not follow its format.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// The file or field.
        what: String,
        /// What is wrong in it.
        reason: String,
    },
    /// A package was asked for that the suite does not have.
    #[error("there is no package \"{name}\" for {arch} in {suite}; check its name")]
    UnknownPackage {
        /// The package.
        name: String,
        /// The suite searched.
        suite: String,
        /// The architecture searched.
        arch: String,
    },
    /// A dependency has no candidate.
    #[error("package {package} depends on \"{dependency}\", which nothing in the suite satisfies")]
    Unsatisfied {
        /// Who depends.
        package: String,
        /// On what, as written.
        dependency: String,
    },
    /// Two packages of the closure cannot be installed together.
    #[error("packages {package} and {other} cannot be installed together; leave one of them out")]
    Conflict {
        /// One package.
        package: String,
        /// The other one.
        other: String,
    },
    /// The content does not fit in the image.
    #[error("the image is too small: {needed}; ask for a larger one with --size")]
    ImageFull {
        /// What ran out.
        needed: String,
    },
    /// The operating system refused a file operation.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done, in the form "reading".
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl GuestError {
    /// Shorthand for [`GuestError::Malformed`].
    pub(crate) fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), reason: reason.into() }
    }

    /// True for failures that a copy in the cache can stand in for.
    pub(crate) fn is_network(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Status { status: 500.., .. })
    }
}

/// Adds the file name to an I/O error.
pub(crate) trait AtPath<T> {
    /// `action` is a gerund: "reading", "creating".
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| GuestError::Io { action, path: path.to_owned(), source })
    }
}
