//! The server: exports, and what it does with one connection.

mod handshake;
mod transmission;

use std::rc::Rc;
use std::sync::Arc;

use plinth_image::graph::NodeRef;
use rustls::ServerConfig;

use crate::Error;
use crate::stream::{Socket, plain};

/// What clients can open.
pub struct Export {
    /// Its name; clients that give none get the one without a name, or the only one.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// The disk.
    pub node: NodeRef,
    /// Refuse writes, though the disk could be written.
    pub read_only: bool,
    /// Bitmaps as metadata contexts: name, and ranges (first byte, length) that are dirty, in order.
    pub bitmaps: Vec<(String, Vec<(u64, u64)>)>,
}

impl Export {
    /// An export of a disk, without bitmaps.
    #[must_use]
    pub fn new(name: &str, node: NodeRef) -> Self {
        let read_only = node.info().read_only;
        Self { name: name.to_owned(), description: String::new(), node, read_only, bitmaps: Vec::new() }
    }
}

/// A server.
#[derive(Default)]
pub struct Server {
    exports: Vec<Rc<Export>>,
    /// TLS, which clients must use then.
    tls: Option<Arc<ServerConfig>>,
}

impl Server {
    /// A server of these exports.
    #[must_use]
    pub fn new(exports: Vec<Export>) -> Self {
        Self { exports: exports.into_iter().map(Rc::new).collect(), tls: None }
    }

    /// The same server, which has clients use TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<ServerConfig>) -> Self {
        self.tls = Some(tls);
        self
    }

    fn export(&self, name: &str) -> Option<Rc<Export>> {
        let exact = self.exports.iter().find(|e| e.name == name);
        let only = || self.exports.first().filter(|_| name.is_empty() && self.exports.len() == 1);
        exact.or_else(only).cloned()
    }

    /// Talks with one client until it is done.
    ///
    /// # Errors
    /// The connection failed, or the client did not follow the protocol.
    pub async fn serve(&self, socket: Socket) -> Result<(), Error> {
        let (reader, writer) = plain(socket);
        match handshake::run(self, reader, writer).await? {
            Some(session) => transmission::run(session).await,
            None => Ok(()),
        }
    }
}

/// What the handshake agreed on.
struct Session {
    reader: crate::stream::Reader,
    writer: crate::stream::Writer,
    export: Rc<Export>,
    structured: bool,
    extended: bool,
    contexts: Vec<Context>,
}

/// A metadata context, by its place in the client's list: its number is that place plus one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Context {
    Allocation,
    Depth,
    /// The export's bitmap with this number.
    Bitmap(usize),
}
