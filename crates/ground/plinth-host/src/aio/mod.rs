//! Asynchronous I/O for one thread: futures that io_uring completes, or a pool of threads where the host has no
//! io_uring.
//!
//! [`block_on`] runs a future on the calling thread. The operations of this module must be awaited inside of it.
//! A future that is dropped leaves its operation to finish by itself; buffers belong to operations until then.
//!
//! ```
//! use plinth_host::{aio, buffer::IoBuf};
//! use std::{fs::File, sync::Arc};
//!
//! # fn main() -> std::io::Result<()> {
//! let file = Arc::new(File::open("/proc/self/cmdline")?);
//! let (n, buf) = aio::block_on(aio::read(&file, 0, IoBuf::new(4096)));
//! assert!(buf[..n?].contains(&0));
//! # Ok(())
//! # }
//! ```

mod op;
mod pool;
mod reactor;
mod ring;

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

pub use op::Descriptor;
use op::{Op, Request};
pub use reactor::{Backend, block_on, block_on_with, spawn};

use crate::buffer::{IoBuf, IoData};

fn result(code: i32) -> io::Result<usize> {
    usize::try_from(code).map_err(|_| io::Error::from_raw_os_error(-code))
}

fn unit(code: i32) -> io::Result<()> {
    result(code).map(drop)
}

/// Reads from byte `offset` into `buf`: how many bytes, which can be fewer than fit, and the buffer.
pub async fn read<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    offset: u64,
    mut buf: IoBuf,
) -> (io::Result<usize>, IoBuf) {
    buf.forget_origin();
    let (code, op) = Request::new(Op::Read { fd: file.clone(), offset, buf }).await;
    let Op::Read { buf, .. } = op else { unreachable!("an operation keeps its kind") };
    (result(code), buf)
}

/// Writes `data` at byte `offset`: how many bytes, which can be fewer than there are.
///
/// # Errors
/// As pwrite(2).
pub async fn write<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    offset: u64,
    data: IoData,
) -> io::Result<usize> {
    result(Request::new(Op::Write { fd: file.clone(), offset, data }).await.0)
}

/// Makes a file's data durable, and what of its metadata is needed to read it.
///
/// # Errors
/// As fdatasync(2).
pub async fn sync_data<F: AsFd + Send + Sync + 'static>(file: &Arc<F>) -> io::Result<()> {
    unit(Request::new(Op::SyncData { fd: file.clone() }).await.0)
}

/// fallocate(2) with `mode` (its `FALLOC_FL` bits).
///
/// # Errors
/// As fallocate(2).
pub async fn allocate<F: AsFd + Send + Sync + 'static>(
    file: &Arc<F>,
    mode: i32,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    unit(Request::new(Op::Allocate { fd: file.clone(), mode, offset, len }).await.0)
}

/// Receives from a socket or pipe: how many bytes, zero at its end, and the buffer.
pub async fn receive<F: AsFd + Send + Sync + 'static>(
    socket: &Arc<F>,
    mut buf: IoBuf,
) -> (io::Result<usize>, IoBuf) {
    buf.forget_origin();
    let (code, op) = Request::new(Op::Receive { fd: socket.clone(), buf }).await;
    let Op::Receive { buf, .. } = op else { unreachable!("an operation keeps its kind") };
    (result(code), buf)
}

/// Sends all of `parts`, in order, to a socket.
///
/// # Errors
/// As sendmsg(2); some of the bytes may have been sent.
pub async fn send_all<F: AsFd + Send + Sync + 'static>(
    socket: &Arc<F>,
    mut parts: Vec<IoData>,
) -> io::Result<()> {
    /// Vectors of one call at most (Linux, `UIO_MAXIOV`).
    const MAX_PARTS: usize = 1024;
    parts.retain(|p| !p.is_empty());
    let mut rest = parts.into_iter().collect::<std::collections::VecDeque<_>>();
    while !rest.is_empty() {
        let now: Vec<_> = rest.iter().take(MAX_PARTS).cloned().collect();
        let mut sent = result(Request::new(Op::Send { fd: socket.clone(), parts: now }).await.0)?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = rest.front_mut() {
            if sent < first.len() {
                *first = first.slice(sent..);
                break;
            }
            sent -= first.len();
            rest.pop_front();
        }
    }
    Ok(())
}

/// Waits until a descriptor can be read from (or accepted on) without waiting.
///
/// # Errors
/// As poll(2).
pub async fn readable<F: AsFd + Send + Sync + 'static>(fd: &Arc<F>) -> io::Result<()> {
    unit(Request::new(Op::Readable { fd: fd.clone() }).await.0)
}

/// Waits.
pub async fn sleep(time: Duration) {
    Request::new(Op::Sleep { time }).await;
}

/// Runs `work`, which may wait long, on a thread of its own.
///
/// # Panics
/// If `work` panics.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    elsewhere(work, |task| drop(std::thread::spawn(task)))
}

/// Runs `work` on one of the process's worker threads, of which there is one for each CPU.
///
/// # Panics
/// If `work` panics.
pub fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    elsewhere(work, rayon::spawn)
}

/// Runs `work` by `start`, or here if this thread does everything itself.
fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
    start: impl FnOnce(Box<dyn FnOnce() + Send>),
) -> impl Future<Output = T> {
    let (sender, receiver) = futures_channel::oneshot::channel();
    let task: Box<dyn FnOnce() + Send> = Box::new(move || {
        // Nobody waits any more if this fails.
        let _ = sender.send(work());
    });
    if reactor::is_inline() {
        task()
    } else {
        start(task)
    }
    async { receiver.await.expect("work on another thread does not panic") }
}
