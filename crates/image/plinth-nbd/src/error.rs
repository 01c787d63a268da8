//! The one error type of network block devices.

use std::fmt::Display;
use std::io;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The other side could not be reached, or went away.
    Connection,
    /// The other side does not speak the protocol, or says what makes no sense.
    Protocol,
    /// The other side refuses: no such export, not without TLS.
    Refused,
    /// Certificates or keys are missing, or not valid.
    Tls,
    /// An address or option that makes no sense.
    Invalid,
}

/// A failed conversation.
#[derive(Debug, thiserror::Error)]
#[error("{context}: {source}")]
pub struct Error {
    /// Kind, to match on.
    pub kind: ErrorKind,
    /// What was being done.
    pub context: String,
    /// Why it failed.
    pub source: io::Error,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, doing: impl Into<String>, why: impl Display) -> Self {
        Self { kind, context: doing.into(), source: io::Error::other(why.to_string()) }
    }

    pub(crate) fn protocol(why: impl Display) -> Self {
        Self::new(ErrorKind::Protocol, "the other side does not follow the NBD protocol", why)
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self { kind: ErrorKind::Connection, context: "the connection failed".to_owned(), source }
    }
}
