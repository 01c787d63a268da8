//! One connection: the guest's half ends at a [`Stack`], the host's at a socket; bytes move between.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpPacket;

use super::super::FlowKey;
use super::super::net::{ETHERNET_HEADER, Net};
use super::super::reactor::{Alarm, Readiness};
use super::stack::{Sent, Stack};

/// A host that takes none of the last bytes of a closed connection for this long will not.
const DRAIN_PATIENCE: Duration = Duration::from_secs(120);

pub(super) enum Phase {
    /// The host's half is being connected; the guest's SYN waits for the outcome.
    Connecting { syn: Vec<u8> },
    /// A connection from a forwarded port, until the guest's hardware address is known.
    Unresolved,
    /// Both halves exist.
    Open(Box<Stack>),
    /// The guest's half is finished in good order; the host has yet to take the last bytes.
    Draining { rest: Vec<u8>, taken: usize, deadline: Instant },
}

/// What is to become of a flow after it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Both halves are closed.
    Finished,
    /// One half broke; so must the other.
    Broken,
}

pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) host: TcpStream,
    pub(super) phase: Phase,
    pub(super) readable: bool,
    pub(super) writable: bool,
    hangup: bool,
    /// The host will send no more.
    host_finished: bool,
    /// The guest will send no more.
    guest_finished: bool,
    /// The host has been told that the guest will send no more.
    shut_down: bool,
    established: bool,
    /// It is in the queue of flows with frames for the guest.
    pub(super) queued: bool,
    /// It is in the list of flows to be looked at.
    pub(super) dirty: bool,
    pub(super) alarm: Alarm,
    pub(super) since: Instant,
}

impl Flow {
    pub(super) fn new(key: FlowKey, host: TcpStream, phase: Phase, now: Instant) -> Self {
        Self {
            key,
            host,
            phase,
            readable: false,
            writable: false,
            hangup: false,
            host_finished: false,
            guest_finished: false,
            shut_down: false,
            established: false,
            queued: false,
            dirty: false,
            alarm: Alarm::default(),
            since: now,
        }
    }

    pub(super) fn note(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
        self.hangup |= readiness.hangup;
    }

    fn note_state(&mut self) {
        let Phase::Open(stack) = &mut self.phase else { return };
        let state = stack.socket().state();
        if matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait) {
            self.guest_finished = true;
        }
        if !self.established && matches!(state, State::Established | State::CloseWait) {
            self.established = true;
            stack.set_established();
        }
    }

    /// Whether the guest's SYN, without an acknowledgment, starts a connection of its own rather than
    /// repeats itself: a guest that has restarted does not know of this one.
    pub(super) fn is_stale(&mut self) -> bool {
        match &mut self.phase {
            Phase::Open(stack) => !matches!(stack.socket().state(), State::Listen | State::SynReceived),
            // The host has yet to take the last bytes; the guest will repeat its SYN.
            Phase::Draining { .. } | Phase::Connecting { .. } | Phase::Unresolved => false,
        }
    }

    /// A packet of the guest's for this flow.
    pub(super) fn on_guest_packet(
        &mut self,
        net: &Net,
        packet: &[u8],
        segment: &TcpPacket<&[u8]>,
        reply: &mut [u8],
    ) -> Option<Sent> {
        let Phase::Open(stack) = &mut self.phase else { return None };
        if !stack.admits(segment) {
            return None;
        }
        let sent = stack.ingress(packet, reply, net.stack_now());
        self.note_state();
        sent
    }

    /// Moves what the guest has sent to the host, as far as the host takes it.
    pub(super) fn push_to_host(&mut self, now: Instant) -> Verdict {
        match &mut self.phase {
            Phase::Connecting { .. } | Phase::Unresolved => Verdict::Keep,
            Phase::Open(stack) => {
                let socket = stack.socket();
                while self.writable && socket.can_recv() {
                    let mut host = &self.host;
                    let result = socket.recv(|data| match host.write(data) {
                        Ok(count) => (count, Ok(())),
                        Err(error) => (0, Err(error)),
                    });
                    match result {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                        Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                        Ok(Err(_)) => {
                            // The host's half is gone. The guest is to see a reset.
                            socket.abort();
                            return Verdict::Keep;
                        }
                        // Before the handshake is complete, what came with the SYN stays put.
                        Err(_) => return Verdict::Keep,
                    }
                }
                if self.guest_finished && !self.shut_down && !socket.can_recv() {
                    self.shut_down = true;
                    // Fails only if the host's half is gone, which reading from it will show.
                    let _ = self.host.shutdown(Shutdown::Write);
                }
                Verdict::Keep
            }
            Phase::Draining { rest, taken, deadline } => {
                while self.writable && *taken < rest.len() {
                    match self.host.write(&rest[*taken..]) {
                        Ok(count) => {
                            *taken += count;
                            *deadline = now + DRAIN_PATIENCE;
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return Verdict::Broken,
                    }
                }
                match (*taken < rest.len(), now < *deadline) {
                    (false, _) => Verdict::Finished,
                    (true, true) => Verdict::Keep,
                    (true, false) => Verdict::Broken,
                }
            }
        }
    }

    /// Reads from the host into the stack's buffer, once. True if the stack has something new to send.
    fn fill(&mut self) -> bool {
        let Phase::Open(stack) = &mut self.phase else { return false };
        let socket = stack.socket();
        let capacity = socket.send_capacity();
        // Reading little by little as the guest acknowledges would make for small segments.
        if !self.readable || !socket.may_send() || capacity - socket.send_queue() < capacity / 8 {
            return false;
        }
        let mut host = &self.host;
        let mut full = false;
        let result = socket.send(|room| {
            let outcome = if room.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { host.read(room) };
            full = outcome.as_ref().is_ok_and(|&count| count == room.len());
            (*outcome.as_ref().unwrap_or(&0), outcome)
        });
        match result {
            Ok(Ok(0)) => {
                self.host_finished = true;
                self.readable = false;
                socket.close();
                true
            }
            Ok(Ok(_)) => {
                // Less than asked for means that there is no more; a later arrival is a new event. The
                // end of the stream has no event of its own once a hangup was reported.
                self.readable = full || self.hangup;
                true
            }
            Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                false
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => true,
            Ok(Err(_)) => {
                self.readable = false;
                socket.abort();
                true
            }
            Err(_) => false,
        }
    }

    /// Writes the next frame's IP packet for the guest into `buf`, behind room for the Ethernet header.
    pub(super) fn pull(&mut self, net: &Net, buf: &mut [u8]) -> Option<Sent> {
        let now = net.stack_now();
        let room = buf.get_mut(ETHERNET_HEADER..)?;
        loop {
            let Phase::Open(stack) = &mut self.phase else { return None };
            if let Some(sent) = stack.egress(room, now) {
                return Some(sent);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// What is next for a flow that has nothing to send: it may be over.
    pub(super) fn settle(&mut self, now: Instant) -> Verdict {
        self.note_state();
        let Phase::Open(stack) = &mut self.phase else { return Verdict::Keep };
        let socket = stack.socket();
        match socket.state() {
            // Both ends are in one process: no stray segment can turn up that TIME-WAIT is there for.
            State::Closed | State::TimeWait => {}
            // A SYN that the stack did not take, or a handshake that the guest reset.
            State::Listen => return Verdict::Broken,
            _ => return Verdict::Keep,
        }
        if !(self.guest_finished && self.host_finished) {
            return Verdict::Broken;
        }
        if !socket.can_recv() {
            return Verdict::Finished;
        }
        let mut rest = vec![0; socket.recv_queue()];
        // The queue is at least that long.
        let taken = socket.recv_slice(&mut rest).unwrap_or(0);
        rest.truncate(taken);
        self.phase = Phase::Draining { rest, taken: 0, deadline: now + DRAIN_PATIENCE };
        self.push_to_host(now)
    }

    /// The outcome of connecting the host's half.
    pub(super) fn connect_result(&self) -> io::Result<()> {
        match rustix::net::sockopt::socket_error(&self.host)? {
            Ok(()) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
