//! One operation and all that it needs until it is done.

use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::reactor::{self, Key};
use crate::buffer::{IoBuf, IoData};

/// A file or socket that operations keep open.
pub trait Descriptor: AsFd + Send + Sync {}

impl<T: AsFd + Send + Sync> Descriptor for T {}

pub type Fd = Arc<dyn Descriptor>;

/// What to do. It owns its buffers and keeps its file open.
pub enum Op {
    Read { fd: Fd, offset: u64, buf: IoBuf },
    Write { fd: Fd, offset: u64, data: IoData },
    SyncData { fd: Fd },
    Allocate { fd: Fd, mode: i32, offset: u64, len: u64 },
    Receive { fd: Fd, buf: IoBuf },
    Send { fd: Fd, parts: Vec<IoData> },
    Readable { fd: Fd },
    Sleep { time: Duration },
}

impl Op {
    /// True if it can take as long as somebody else likes.
    pub fn may_wait_forever(&self) -> bool {
        matches!(self, Op::Receive { .. } | Op::Send { .. } | Op::Readable { .. } | Op::Sleep { .. })
    }

    pub fn raw_fd(&self) -> RawFd {
        match self {
            Op::Read { fd, .. }
            | Op::Write { fd, .. }
            | Op::SyncData { fd }
            | Op::Allocate { fd, .. }
            | Op::Receive { fd, .. }
            | Op::Send { fd, .. }
            | Op::Readable { fd } => fd.as_fd().as_raw_fd(),
            Op::Sleep { .. } => -1,
        }
    }
}

/// Part of one operation at most: what a length of 32 bits can say, in whole pages.
pub const MAX_TRANSFER: usize = 1 << 30;

/// An operation under way: its result code (negative: an error number) and itself.
pub struct Request {
    state: State,
}

enum State {
    New(Op),
    Submitted(Key),
    Done,
}

impl Request {
    pub fn new(op: Op) -> Self {
        Self { state: State::New(op) }
    }
}

impl Future for Request {
    type Output = (i32, Op);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::New(op) => {
                self.state = State::Submitted(reactor::submit(op, cx.waker().clone()));
                Poll::Pending
            }
            State::Submitted(key) => match reactor::take(key, cx.waker()) {
                Some(done) => Poll::Ready(done),
                None => {
                    self.state = State::Submitted(key);
                    Poll::Pending
                }
            },
            State::Done => panic!("an operation is awaited once"),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let State::Submitted(key) = self.state {
            reactor::abandon(key);
        }
    }
}
