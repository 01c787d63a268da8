//! The host's events and deadlines behind one descriptor.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::slab::SlotId;
use crate::NetError;

/// Who an event or a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The deadline timer itself.
    Timer,
    /// The listener of a forwarded TCP port, by its position.
    Listener(u32),
    /// The socket of a forwarded UDP port, by its position.
    UdpPort(u32),
    Tcp(SlotId),
    Udp(SlotId),
    Ping(SlotId),
    /// TCP flows that wait for the guest to show its hardware address.
    Unresolved,
    /// The router's advertisements.
    Router,
}

impl Token {
    fn to_bits(self) -> u64 {
        let (kind, value) = match self {
            Self::Timer => (0, 0),
            Self::Listener(index) => (1, u64::from(index)),
            Self::UdpPort(index) => (2, u64::from(index)),
            Self::Tcp(id) => (3, id.to_bits()),
            Self::Udp(id) => (4, id.to_bits()),
            Self::Ping(id) => (5, id.to_bits()),
            Self::Unresolved => (6, 0),
            Self::Router => (7, 0),
        };
        kind << 56 | value
    }

    fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits >> 56 {
            0 => Self::Timer,
            1 => Self::Listener(bits as u32),
            2 => Self::UdpPort(bits as u32),
            3 => Self::Tcp(SlotId::from_bits(bits)),
            4 => Self::Udp(SlotId::from_bits(bits)),
            5 => Self::Ping(SlotId::from_bits(bits)),
            6 => Self::Unresolved,
            7 => Self::Router,
            _ => return None,
        })
    }
}

/// What happened on a socket since it was last reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer will send no more, or the socket failed: reads reach an end without a further event.
    pub(super) hangup: bool,
}

/// An owner's claim to be woken, of which there is one at a time. A deadline that moves back (each segment
/// restarts a retransmission timer) costs nothing: the claim stays, and when it fires the owner makes the
/// next one. An owner that goes away must [`disarm`](Reactor::disarm) its alarm.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    armed: Option<Instant>,
}

impl Alarm {
    /// To be called when the owner is woken, before it arms the alarm anew.
    pub(super) fn fired(&mut self) {
        self.armed = None;
    }
}

pub(super) struct Reactor {
    epoll: OwnedFd,
    timer: OwnedFd,
    deadlines: BTreeSet<(Instant, u64)>,
    programmed: Option<Instant>,
}

const EVENTS_PER_WAIT: usize = 128;

impl Reactor {
    pub(super) fn new() -> Result<Self, NetError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(NetError::host("create an epoll"))?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(NetError::host("create a timer"))?;
        epoll::add(&epoll, &timer, EventData::new_u64(Token::Timer.to_bits()), EventFlags::IN)
            .map_err(NetError::host("watch a timer"))?;
        Ok(Self { epoll, timer, deadlines: BTreeSet::new(), programmed: None })
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Reports readiness edges of `fd` to `token` until `fd` is closed.
    pub(super) fn watch(&self, fd: impl AsFd, token: Token) -> rustix::io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, EventData::new_u64(token.to_bits()), flags)
    }

    /// Appends what happened since the last call; never blocks. Edges beyond [`EVENTS_PER_WAIT`] stay with
    /// the kernel, and the descriptor stays readable for them.
    pub(super) fn poll(&self, out: &mut Vec<(Token, Readiness)>) {
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_PER_WAIT];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // The call can fail only with EINTR, after which the descriptor is still readable.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], Some(&now)) else { return };
        for event in events.iter() {
            let (flags, data) = (event.flags, event.data);
            let Some(token) = Token::from_bits(data.u64()) else { continue };
            let failed = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            let hangup = failed || flags.contains(EventFlags::RDHUP);
            out.push((
                token,
                Readiness {
                    readable: hangup || flags.contains(EventFlags::IN),
                    writable: failed || flags.contains(EventFlags::OUT),
                    hangup,
                },
            ));
        }
    }

    /// Wakes `token` at `at`, or earlier if an earlier wish of the same alarm is pending.
    pub(super) fn arm(&mut self, alarm: &mut Alarm, token: Token, at: Instant, now: Instant) {
        if alarm.armed.is_some_and(|armed| armed <= at) {
            return;
        }
        self.disarm(alarm, token);
        alarm.armed = Some(at);
        self.deadlines.insert((at, token.to_bits()));
        if self.programmed.is_none_or(|programmed| at < programmed) {
            self.program(Some(at), now);
        }
    }

    /// Takes back a claim that has not fired. The timer may still wake the network once, for nothing.
    pub(super) fn disarm(&mut self, alarm: &mut Alarm, token: Token) {
        if let Some(at) = alarm.armed.take() {
            self.deadlines.remove(&(at, token.to_bits()));
        }
    }

    /// The next owner whose deadline has passed.
    pub(super) fn next_expired(&mut self, now: Instant) -> Option<Token> {
        let &(at, bits) = self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.deadlines.remove(&(at, bits));
        Token::from_bits(bits)
    }

    /// Moves the timer on to the earliest deadline left, once those that passed are handled.
    pub(super) fn settle_timer(&mut self, now: Instant) {
        if self.programmed.is_some_and(|programmed| programmed <= now) {
            let next = self.deadlines.first().map(|&(at, _)| at);
            self.program(next, now);
        }
    }

    fn program(&mut self, at: Option<Instant>, now: Instant) {
        // Zero would disarm the timer, and a deadline that has passed is due at once.
        let delay = at.map_or((0, 0), |at| {
            let delay = at.saturating_duration_since(now);
            (delay.as_secs() as i64, i64::from(delay.subsec_nanos().max(1)))
        });
        let spec = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: delay.0, tv_nsec: delay.1 },
        };
        // Setting a valid relative time on a timer descriptor cannot fail; if it did, the next event
        // would bring the deadlines up to date. Setting it also makes the descriptor unreadable.
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).is_ok() {
            self.programmed = at;
        }
    }
}
