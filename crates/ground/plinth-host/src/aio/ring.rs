//! io_uring (io_uring(7)).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::{CancelBuilder, Fd, FsyncFlags, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::op::{MAX_TRANSFER, Op};
use super::reactor::Key;
use crate::event::Event;

/// Operations that the queue to the kernel has room for.
const ENTRIES: u32 = 256;
/// So many operations are handed in while others are still being prepared, so that a device has work early.
const EARLY: usize = 16;
/// Turns for which fewer operations may wait for others.
const PATIENCE: u32 = 2;
/// Bytes of a read that another thread of the kernel is worth.
const MANY: usize = 128 << 10;
/// `user_data` of the wait for wakes from other threads, and of cancellations.
const EVENT: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

pub struct Ring {
    ring: IoUring,
    event: Arc<Event>,
    /// By an operation's key: what the kernel reads of it besides its buffers, as long as it runs.
    extra: Vec<Option<Extra>>,
    /// Turns since the kernel was last called.
    quiet: u32,
}

#[expect(dead_code, reason = "only the kernel reads it")]
enum Extra {
    Vectors(Box<[libc::iovec]>, Box<libc::msghdr>),
    Time(Box<Timespec>),
}

impl Ring {
    pub fn new(event: Arc<Event>) -> io::Result<Self> {
        // One thread submits, and takes completions when it comes to them: it need not be interrupted for each one
        // (Linux 6.1).
        let ring = IoUring::builder()
            .setup_clamp()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)
            .or_else(|_| IoUring::builder().setup_clamp().build(ENTRIES))?;
        if !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut new = Self { ring, event, extra: Vec::new(), quiet: 0 };
        new.watch_event();
        Ok(new)
    }

    fn watch_event(&mut self) {
        let poll = opcode::PollAdd::new(Fd(self.event.raw()), libc::POLLIN as u32).build().user_data(EVENT);
        // SAFETY: the event is open as long as the ring.
        unsafe { self.push(&poll) };
    }

    /// # Safety
    /// What the entry points to must live and stay in place until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: the kernel empties it.
            self.enter(0);
        }
    }

    /// Hands in what was prepared, and waits for `want` completions.
    fn enter(&mut self, want: usize) {
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            Err(e) => panic!("io_uring_enter failed: {e}"),
        }
    }

    /// Prepares an operation. The caller keeps `op` in place until it is complete.
    pub fn start(&mut self, key: Key, op: &Op) {
        let fd = Fd(op.raw_fd());
        let len = |n: usize| n.min(MAX_TRANSFER) as u32;
        let entry = match op {
            Op::Read { offset, buf, .. } => {
                let entry =
                    opcode::Read::new(fd, buf.as_ptr().cast_mut(), len(buf.len())).offset(*offset).build();
                // What is in the page cache is copied at once, by the thread that asks. Where it is much, the
                // kernel's own threads copy it, on all CPUs.
                if buf.len() >= MANY { entry.flags(squeue::Flags::ASYNC) } else { entry }
            }
            Op::Write { offset, data, .. } => {
                opcode::Write::new(fd, data.as_ptr(), len(data.len())).offset(*offset).build()
            }
            Op::SyncData { .. } => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Op::Allocate { mode, offset, len, .. } => {
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(*mode).build()
            }
            // Not `recv`, because pipes are read too.
            Op::Receive { buf, .. } => {
                opcode::Read::new(fd, buf.as_ptr().cast_mut(), len(buf.len())).offset(u64::MAX).build()
            }
            Op::Send { parts, .. } => {
                let mut vectors: Box<[_]> = parts
                    .iter()
                    .map(|p| libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() })
                    .collect();
                // SAFETY: all zeros is a valid header: no address, no vectors, no control data.
                let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
                header.msg_iov = vectors.as_mut_ptr();
                header.msg_iovlen = vectors.len() as _;
                let entry =
                    opcode::SendMsg::new(fd, &raw const *header).flags(libc::MSG_NOSIGNAL as u32).build();
                self.keep(key, Extra::Vectors(vectors, header));
                entry
            }
            Op::Readable { .. } => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
            Op::Sleep { time } => {
                let time = Box::new(Timespec::from(*time));
                let entry = opcode::Timeout::new(&raw const *time).build();
                self.keep(key, Extra::Time(time));
                entry
            }
        };
        // SAFETY: the operation owns its buffers and file, `extra` has the rest, and both stay in place in
        // their boxes until the completion is taken.
        unsafe { self.push(&entry.user_data(key as u64)) };
        if self.ring.submission().len() >= EARLY {
            self.enter(0);
        }
    }

    fn keep(&mut self, key: Key, extra: Extra) {
        if key >= self.extra.len() {
            self.extra.resize_with(key + 1, || None);
        }
        self.extra[key] = Some(extra);
    }

    /// Asks the kernel to give an operation up; it completes in either case.
    pub fn cancel(&mut self, key: Key) {
        let cancel =
            opcode::AsyncCancel2::new(CancelBuilder::user_data(key as u64)).build().user_data(CANCEL);
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&cancel) };
    }

    pub fn turn(&mut self, wait: bool, done: &mut dyn FnMut(Key, i32, Option<Box<Op>>)) {
        let want = usize::from(wait && self.ring.completion().is_empty());
        let queue = self.ring.submission();
        // A few operations can go along with the next wait, which comes soon as a rule.
        let later = queue.len() < EARLY && self.quiet < PATIENCE;
        let due = !(queue.is_empty() || later) || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if want > 0 || due {
            self.quiet = 0;
            self.enter(want);
        } else {
            self.quiet += 1;
        }
        let mut woken = false;
        let completions: Vec<cqueue::Entry> = self.ring.completion().collect();
        for entry in completions {
            match entry.user_data() {
                EVENT => woken = true,
                CANCEL => {}
                key => {
                    let key = key as Key;
                    if let Some(extra) = self.extra.get_mut(key) {
                        *extra = None;
                    }
                    done(key, entry.result(), None);
                }
            }
        }
        if woken {
            self.event.clear();
            self.watch_event();
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({})", self.ring.as_raw_fd())
    }
}
