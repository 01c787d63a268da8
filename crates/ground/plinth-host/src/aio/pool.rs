//! Threads that do blocking system calls, for hosts without io_uring.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::op::{MAX_TRANSFER, Op};
use super::reactor::Key;
use crate::event::Event;

/// File operations at once.
const WORKERS: usize = 16;

type Work = (Key, Box<Op>);

#[derive(Default)]
struct Finished(Mutex<Vec<(Key, i32, Box<Op>)>>);

impl Finished {
    fn put(&self, done: (Key, i32, Box<Op>), event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        event.signal();
    }
}

pub struct Pool {
    work: Sender<Work>,
    queue: Arc<Mutex<Receiver<Work>>>,
    finished: Arc<Finished>,
    event: Arc<Event>,
    workers: usize,
}

impl Pool {
    pub fn new(event: Arc<Event>) -> Self {
        let (work, queue) = channel();
        Self { work, queue: Arc::new(Mutex::new(queue)), finished: Arc::default(), event, workers: 0 }
    }

    /// Gives an operation to a thread.
    pub fn start(&mut self, key: Key, op: Box<Op>) {
        let (finished, event) = (self.finished.clone(), self.event.clone());
        if op.may_wait_forever() {
            std::thread::spawn(move || run((key, op), &finished, &event));
            return;
        }
        if self.workers < WORKERS {
            self.workers += 1;
            let queue = self.queue.clone();
            std::thread::spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    run(work, &finished, &event);
                }
            });
        }
        self.work.send((key, op)).expect("the pool has the queue's other end");
    }

    pub fn turn(&mut self, wait: bool, done: &mut dyn FnMut(Key, i32, Option<Box<Op>>)) {
        let take = || std::mem::take(&mut *self.finished.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all = take();
        if all.is_empty() && wait {
            self.event.wait();
            all = take();
        }
        for (key, code, op) in all {
            done(key, code, Some(op));
        }
    }
}

fn run((key, mut op): Work, finished: &Finished, event: &Event) {
    let code = perform(&mut op);
    finished.put((key, code, op), event);
}

/// Does an operation on this thread: its result code.
pub fn perform(op: &mut Op) -> i32 {
    loop {
        let code = perform_once(op);
        if code >= 0 {
            return code.min(i32::MAX as isize) as i32;
        }
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        if errno != libc::EINTR {
            return -errno;
        }
    }
}

fn perform_once(op: &mut Op) -> isize {
    let fd = op.raw_fd();
    match op {
        Op::Read { offset, buf, .. } => {
            let len = buf.len().min(MAX_TRANSFER);
            // SAFETY: the buffer is the operation's own.
            unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), len, *offset as libc::off_t) }
        }
        Op::Write { offset, data, .. } => {
            let len = data.len().min(MAX_TRANSFER);
            // SAFETY: the data is the operation's own.
            unsafe { libc::pwrite(fd, data.as_ptr().cast(), len, *offset as libc::off_t) }
        }
        // SAFETY: the operation keeps the file open.
        Op::SyncData { .. } => unsafe { libc::fdatasync(fd) as isize },
        Op::Allocate { mode, offset, len, .. } => {
            // SAFETY: the operation keeps the file open.
            unsafe { libc::fallocate(fd, *mode, *offset as libc::off_t, *len as libc::off_t) as isize }
        }
        Op::Receive { buf, .. } => {
            // SAFETY: the buffer is the operation's own.
            unsafe { libc::read(fd, buf.as_mut_ptr().cast(), buf.len().min(MAX_TRANSFER)) }
        }
        Op::Send { parts, .. } => {
            let vectors: Vec<_> = parts
                .iter()
                .map(|p| libc::iovec { iov_base: p.as_ptr().cast_mut().cast(), iov_len: p.len() })
                .collect();
            // SAFETY: all zeros is a valid header, and its vectors point to the operation's own data.
            unsafe {
                let mut header: libc::msghdr = std::mem::zeroed();
                header.msg_iov = vectors.as_ptr().cast_mut();
                header.msg_iovlen = vectors.len() as _;
                libc::sendmsg(fd, &raw const header, libc::MSG_NOSIGNAL)
            }
        }
        Op::Readable { .. } => {
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, ours.
            unsafe { libc::poll(&raw mut poll, 1, -1) as isize }
        }
        Op::Sleep { time } => {
            std::thread::sleep(*time);
            0
        }
    }
}
