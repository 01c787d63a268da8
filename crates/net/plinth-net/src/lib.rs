//! Packet endpoints: what a guest's network card is plugged into.

mod backend;
mod error;
mod forward;
mod user;

pub use backend::{
    FrameChecksum, FrameMeta, Gso, GsoKind, MAX_FRAME, NetBackend, NetCaps, Offloads, RecvFrame, SendOutcome,
};
pub use error::NetError;
pub use forward::{ForwardParseError, PortForward, Transport};
pub use user::{UserNet, UserNetConfig};
