//! A graph as a disk of a running machine: it lives on a thread of its own.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_util::StreamExt;
use plinth_host::aio;

use super::{Disk, total};
use crate::format::{Format, OpenOptions, Trust};
use crate::graph::{IoBuf, IoData, NodeInfo, NodeRef, check_range, check_write};
use crate::{Error, ErrorKind};

/// Requests in flight at once; more wait.
const IN_FLIGHT: usize = 128;

enum Work {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: IoData },
    Flush,
    Discard { offset: u64, len: u64 },
    Zero { offset: u64, len: u64, unmap: bool },
}

/// What a request answers: the buffer of a read.
type Reply = Result<Option<IoBuf>, Error>;

struct Job {
    work: Work,
    reply: SyncSender<Reply>,
}

/// An image of any format. It is closed in good order when it is dropped.
pub struct GraphDisk {
    /// Taken at the end, which ends the thread.
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
    name: String,
    size: u64,
    read_only: bool,
    format: Format,
}

struct Opened {
    name: String,
    size: u64,
    read_only: bool,
    format: Format,
}

impl GraphDisk {
    /// Opens the image at `path`; without `format`, its contents decide.
    ///
    /// # Errors
    /// As for [`open`](crate::format::open()); no thread can be started.
    pub fn open(path: &Path, format: Option<Format>, read_only: bool, trust: Trust) -> Result<Self, Error> {
        let (jobs, queue) = unbounded();
        let (told, opened) = sync_channel(1);
        let path_of_thread = path.to_owned();
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
            aio::block_on(async {
                let options = OpenOptions { format, read_only, trust, ..OpenOptions::default() };
                match crate::format::open(&path_of_thread, &options).await {
                    Ok(o) => {
                        let (info, size, format) = (o.image.info().clone(), o.image.size(), o.image.format());
                        let NodeInfo { name, read_only, .. } = info;
                        // Whoever opens waits for it.
                        let _ = told.send(Ok(Opened { name, size, read_only, format }));
                        serve(o.image, queue).await;
                    }
                    Err(e) => drop(told.send(Err(e))),
                }
            });
        });
        let thread = thread.map_err(|e| Error::host("start a thread for", path, e))?;
        let ended = || Error::refused(ErrorKind::Io, "open", path, "its thread ended");
        let Opened { name, size, read_only, format } = opened.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), name, size, read_only, format })
    }

    /// The image's format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    fn ask(&self, work: Work) -> Reply {
        let ended = || Error::new(ErrorKind::Io, format!("cannot use '{}'", self.name), "its thread ended");
        let (reply, answer) = sync_channel(1);
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        jobs.unbounded_send(Job { work, reply }).map_err(|_| ended())?;
        answer.recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Drop for GraphDisk {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, that has been printed.
            let _ = thread.join();
        }
    }
}

async fn serve(node: NodeRef, queue: UnboundedReceiver<Job>) {
    let serve_one = |job: Job| {
        let node = &node;
        async move {
            let result = perform(node, job.work).await;
            // Who asked waits for it.
            let _ = job.reply.send(result);
        }
    };
    queue.for_each_concurrent(IN_FLIGHT, serve_one).await;
    if let Err(e) = node.close().await {
        // Nobody is left to return it to; what the guest flushed was reported then.
        tracing::error!("cannot close '{}' in good order: {e}", node.info().name);
    }
}

async fn perform(node: &NodeRef, work: Work) -> Reply {
    match work {
        Work::Read { offset, len } => {
            check_range(&**node, "read", offset, len as u64)?;
            Ok(Some(node.read(offset, IoBuf::new(len)).await?))
        }
        Work::Write { offset, data } => {
            check_write(&**node, offset, data.len() as u64)?;
            node.write(offset, data).await.map(|()| None)
        }
        Work::Flush => node.flush().await.map(|()| None),
        Work::Discard { offset, len } => node.discard(offset, len).await.map(|()| None),
        Work::Zero { offset, len, unmap } => node.write_zeroes(offset, len, unmap).await.map(|()| None),
    }
}

impl Disk for GraphDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), Error> {
        let len = total(bufs.iter().map(|b| b.len()));
        let len = usize::try_from(len).map_err(|_| {
            Error::new(
                ErrorKind::OutOfRange,
                format!("cannot read '{}'", self.name),
                "the request is too long",
            )
        })?;
        let data = self.ask(Work::Read { offset, len })?;
        let mut data = data.as_deref().unwrap_or_default();
        for buf in bufs {
            let (now, rest) = data.split_at(buf.len().min(data.len()));
            buf[..now.len()].copy_from_slice(now);
            data = rest;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> Result<(), Error> {
        let len = total(bufs.iter().map(|b| b.len()));
        let mut data = IoBuf::new(usize::try_from(len).unwrap_or(0));
        let mut at = 0;
        for buf in bufs {
            data[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        self.ask(Work::Write { offset, data: data.freeze() }).map(drop)
    }

    fn flush(&self) -> Result<(), Error> {
        self.ask(Work::Flush).map(drop)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.ask(Work::Discard { offset, len }).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Error> {
        self.ask(Work::Zero { offset, len, unmap }).map(drop)
    }
}
