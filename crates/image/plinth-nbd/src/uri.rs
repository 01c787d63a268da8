//! Addresses of exports (the NBD URI specification,
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).

use std::path::PathBuf;
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// The port of the protocol.
pub const PORT: u16 = 10809;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
}

/// `nbd://host:port/export`, `nbd+unix:///export?socket=path`; with TLS `nbds://` and `nbds+unix://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub address: Address,
    /// The export's name; empty for the default one.
    pub export: String,
    /// TLS is wanted.
    pub tls: bool,
}

impl Uri {
    /// True if a text is meant to be one.
    #[must_use]
    pub fn looks_like(text: &str) -> bool {
        ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"].iter().any(|p| text.starts_with(p))
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(out).ok()
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| {
            Error::new(ErrorKind::Invalid, format!("'{text}' is not the address of an export"), why)
        };
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| bad("it begins with nbd:// or nbd+unix://"))?;
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            _ => return Err(bad("it begins with nbd://, nbds://, nbd+unix:// or nbds+unix://")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export =
            decode(path).ok_or_else(|| bad("the export's name is not UTF-8, or a % is not an escape"))?;
        if unix {
            let socket = query.split('&').find_map(|q| q.strip_prefix("socket="));
            let socket = socket.and_then(decode).filter(|s| !s.is_empty());
            let socket = socket.ok_or_else(|| bad("it needs ?socket=PATH"))?;
            return Ok(Self { address: Address::Unix(socket.into()), export, tls });
        }
        let authority = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
        let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => authority.rsplit_once(':').map_or((authority, None), |(h, p)| (h, Some(p))),
        };
        let port =
            port.map_or(Ok(PORT), str::parse).map_err(|_| bad("the port is not a number below 65536"))?;
        let host = if host.is_empty() { "localhost" } else { host };
        Ok(Self { address: Address::Tcp(host.to_owned(), port), export, tls })
    }
}

impl std::fmt::Display for Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = if self.tls { "s" } else { "" };
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd{s}://[{host}]:{port}/{}", self.export)
            }
            Address::Tcp(host, port) => write!(f, "nbd{s}://{host}:{port}/{}", self.export),
            Address::Unix(path) => write!(f, "nbd{s}+unix:///{}?socket={}", self.export, path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |h: &str, p| Address::Tcp(h.to_owned(), p);
        for (text, address, export, tls) in [
            ("nbd://host", tcp("host", 10809), "", false),
            ("nbds://host:1234/a%20b/c", tcp("host", 1234), "a b/c", true),
            ("nbd://[::1]:99/x", tcp("::1", 99), "x", false),
            ("nbd://", tcp("localhost", 10809), "", false),
            ("nbd+unix:///disk?socket=/tmp/a%2Cb", Address::Unix("/tmp/a,b".into()), "disk", false),
        ] {
            let uri: Uri = text.parse().unwrap();
            assert_eq!(uri, Uri { address, export: export.to_owned(), tls }, "{text}");
        }
        for bad in ["http://x", "nbd://h:70000", "nbd+unix:///x", "nbd://h/%zz", "nbd"] {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
    }
}
