use std::io;
use std::net::SocketAddr;

/// What can go wrong while a network is set up. A running network has no errors: what it cannot deliver
/// it drops or refuses towards the guest, as networks do.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The configuration contradicts itself.
    #[error("user network: {0}")]
    Config(String),
    /// A port forward's host side could not be opened.
    #[error("cannot listen on {addr} for the port forward {forward}: {source}")]
    Listen {
        /// The address on the host.
        addr: SocketAddr,
        /// The forward, as the user writes it.
        forward: String,
        /// The host's reason.
        source: io::Error,
    },
    /// A host resource that every network needs is not to be had.
    #[error("user network: cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        source: io::Error,
    },
}

impl NetError {
    pub(crate) fn host(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Host { what, source: errno.into() }
    }
}
