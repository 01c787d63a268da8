//! Network block devices (the NBD protocol, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>):
//! a [server](server) that exports any [`Node`](plinth_image::graph::Node), and a [client](client) that is one.
//!
//! Both speak the fixed newstyle handshake, structured replies, block status with metadata contexts, and TLS.

pub mod client;
mod error;
pub mod server;
pub mod stream;
pub mod tls;
pub mod uri;
mod wire;

pub use error::{Error, ErrorKind};
pub use wire::ALLOCATION_DEPTH;

#[doc(hidden)]
pub mod fuzz;
