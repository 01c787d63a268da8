//! Packet endpoints: what a guest's network card is plugged into.

mod backend;

pub use backend::{
    FrameChecksum, FrameMeta, Gso, GsoKind, MAX_FRAME, NetBackend, NetCaps, Offloads, RecvFrame, SendOutcome,
};
