//! Packet endpoints: what a guest's network card is plugged into.
//!
//! A card sees a [`NetBackend`]: it hands in and fetches Ethernet frames, with what the bytes do not say in
//! a [`FrameMeta`], and sleeps on one descriptor. Backends have no threads and never block: they run in the
//! card's own worker. The only backend so far is [`UserNet`].
//!
//! # The user network
//!
//! [`UserNet`] gives a guest a network without any rights on the host. It plays everybody on the guest's
//! segment (gateway, name server, DHCP server) and carries on what the guest says with sockets of the
//! host process:
//!
//! - **TCP** connections end here. The guest's half is a socket of smoltcp, the host's half a nonblocking
//!   socket. A SYN of the guest first makes the host's half connect; only if that succeeds is it answered,
//!   so refusals, unreachable hosts and silence reach the guest as such. Each half closes, stalls and
//!   breaks as the other does.
//! - **UDP** flows have a connected host socket each, with an idle timeout; the longest silent one makes
//!   room for a new one.
//! - **Echo requests** to the outside use unprivileged ping sockets; where the host forbids these, the
//!   guest is told that they are prohibited.
//! - **Name queries**, over UDP and TCP, to the network's name server go to the host's, in turn.
//! - **Forwarded ports** ([`PortForward`]) are listeners of the host. A connection that arrives before the
//!   guest is up waits for it.
//! - The gateway's address stands for the host's loopback.
//! - **IPv6** has its addresses from router advertisements, which offer a way to the outside only if the
//!   host has one. Fragments and extension headers are not carried, nor frames larger than the MTU to the
//!   guest. Forwarded ports lead to the guest's IPv4 address.
//!
//! ## Moving bytes
//!
//! The guest pulls. A socket of the host that became readable is only put into a queue of ready flows;
//! bytes are read when the card has a buffer for them: from the kernel straight into the ring of the flow's
//! smoltcp socket, and from there, headers in front, into the caller's buffer. What is not pulled stays
//! in the kernel, so a guest that has no buffers slows down the sender and costs no memory. In the other
//! direction, the guest's segments go to the ring and from there to the kernel; the ring's free space is the
//! window that the guest sees.
//!
//! A guest that takes TSO frames gets TCP segments of up to 64 KiB with their checksum left open, which
//! makes the cost per byte that of two copies. Such frames from the guest are taken likewise.
//!
//! smoltcp looks through all sockets of an interface for each packet. Here each flow has an interface of
//! its own, found by a hash table; that makes the cost of a packet independent of the number of flows.
//!
//! ## Waking
//!
//! [`NetBackend::poll_fd`] is an epoll descriptor over all host sockets, edge-triggered, and one timer,
//! set to the earliest deadline of any flow. An idle network does not wake.
//!
//! ## A hostile guest
//!
//! Every table is bounded (flows, fragments, neighbors, leases, queued frames), buffers shrink as flows
//! get more, and the number of host sockets stays below what the process may open. Packets must come from
//! an address of the guest's network; destinations that Linux would take for its own loopback are dropped.
//! Checksums of the guest's packets are not verified: nothing between its memory and ours corrupts them.
//! TCP segments pass a check before they reach smoltcp, whose assertions a segment outside the window
//! could trip.

mod backend;
mod error;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod user;

pub use backend::{
    FrameChecksum, FrameMeta, Gso, GsoKind, MAX_FRAME, NetBackend, NetCaps, Offloads, RecvFrame, SendOutcome,
};
pub use error::NetError;
pub use forward::{ForwardParseError, PortForward, Transport};
pub use user::{UserNet, UserNetConfig};
