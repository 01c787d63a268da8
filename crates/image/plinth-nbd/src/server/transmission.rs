//! Requests and replies (proto.md, "Transmission").

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use futures_util::task::AtomicWaker;
use futures_util::{StreamExt, stream};
use plinth_host::buffer::{IoBuf, IoData};
use plinth_image::ErrorKind;
use plinth_image::graph::{Extent, is_zero};

use super::{Context, Export, Session};
use crate::Error;
use crate::stream::{Reader, Writer};
use crate::wire::*;

/// Requests of one client at once.
const IN_FLIGHT: usize = 256;
/// Bytes that the requests of one client may have in memory.
const MEMORY: u64 = 40 << 20;
/// Extents of one reply at most.
const EXTENTS: usize = 4096;
/// Reads as long as this are looked at for holes first.
const SPARSE: u64 = 64 << 10;

/// Memory that requests hold. One side waits for some to be given back: the reader.
#[derive(Default)]
struct Budget {
    used: Cell<u64>,
    freed: AtomicWaker,
}

impl Budget {
    async fn take(&self, bytes: u64) {
        poll_fn(|cx| {
            self.freed.register(cx.waker());
            // A request that alone is too much is served alone.
            if self.used.get() == 0 || self.used.get() + bytes <= MEMORY {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        self.used.set(self.used.get() + bytes);
    }

    fn give_back(&self, bytes: u64) {
        self.used.set(self.used.get() - bytes);
        self.freed.wake();
    }
}

/// A request with its data.
struct Job {
    request: Request,
    data: IoData,
    /// What it holds of the budget.
    memory: u64,
    /// It is refused before it is looked at.
    refused: Option<Refusal>,
}

struct Refusal {
    code: u32,
    why: String,
}

fn refusal<T>(code: u32, why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, why: why.into() })
}

impl From<plinth_image::Error> for Refusal {
    fn from(e: plinth_image::Error) -> Self {
        let code = match e.kind {
            ErrorKind::NoSpace => ENOSPC,
            ErrorKind::ReadOnly => EPERM,
            ErrorKind::OutOfRange | ErrorKind::Invalid => EINVAL,
            ErrorKind::Unsupported => ENOTSUP,
            _ => EIO,
        };
        Self { code, why: e.to_string() }
    }
}

pub async fn run(session: Session) -> Result<(), Error> {
    let Session { reader, writer, export, structured, extended, contexts } = session;
    let budget = Budget::default();
    let connection = Connection { export: &export, writer: &writer, structured, extended, contexts };
    let end = Cell::new(Ok(()));
    let requests = stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match next(&mut reader, &budget, extended).await {
            Ok(Some(job)) => Some((job, Some(reader))),
            Ok(None) => None,
            Err(e) => {
                end.set(Err(e));
                None
            }
        }
    });
    requests
        .for_each_concurrent(IN_FLIGHT, |job| {
            let (connection, budget) = (&connection, &budget);
            async move {
                let memory = job.memory;
                // If it cannot be sent, the reader finds out that the connection is gone.
                let _ = connection.serve(job).await;
                budget.give_back(memory);
            }
        })
        .await;
    writer.close().await;
    end.into_inner()
}

/// The next request; `None` when the client is done.
async fn next(reader: &mut Reader, budget: &Budget, extended: bool) -> Result<Option<Job>, Error> {
    if reader.at_end().await? {
        return Ok(None);
    }
    let request = if extended {
        Request::parse(&reader.array::<EXTENDED_REQUEST_LEN>().await?, true)
    } else {
        Request::parse(&reader.array::<REQUEST_LEN>().await?, false)
    };
    let request = request.ok_or_else(|| Error::protocol("a request does not begin with its mark"))?;
    if request.command == CMD_DISC {
        return Ok(None);
    }
    let too_long = request.len > u64::from(MAX_PAYLOAD);
    let has_data = request.command == CMD_WRITE || (extended && request.flags & CMD_FLAG_PAYLOAD_LEN != 0);
    if has_data && too_long {
        // Its data would have to be read to find the next request.
        return Err(Error::protocol(format!("a write of {} bytes", request.len)));
    }
    let with_buffer = (request.command == CMD_READ && !too_long) || has_data;
    let memory = if with_buffer { request.len } else { 0 };
    budget.take(memory).await;
    let mut refused = None;
    if request.command == CMD_READ && too_long {
        refused = Some(Refusal { code: EINVAL, why: format!("a read of {} bytes is too long", request.len) });
    }
    if has_data && request.command != CMD_WRITE {
        refused = Some(Refusal { code: EINVAL, why: "only writes have data".to_owned() });
    }
    let data = if has_data {
        reader.fill_buf(IoBuf::new(request.len as usize)).await?.freeze()
    } else {
        IoBuf::new(0).freeze()
    };
    Ok(Some(Job { request, data, memory, refused }))
}

struct Connection<'a> {
    export: &'a Export,
    writer: &'a Writer,
    structured: bool,
    extended: bool,
    contexts: Vec<Context>,
}

/// One chunk of a structured reply, before its header.
struct Chunk {
    kind: u16,
    head: Vec<u8>,
    data: Option<IoData>,
}

impl Connection<'_> {
    async fn serve(&self, job: Job) -> io::Result<()> {
        let request = job.request;
        let result = match job.refused {
            Some(refused) => Err(refused),
            None => self.perform(&request, job.data).await,
        };
        if self.structured {
            let chunks = result.unwrap_or_else(|e| {
                // At most what the protocol lets a text be.
                let why = e.why.as_bytes();
                let why = &why[..why.len().min(MAX_NAME)];
                let head = [&e.code.to_be_bytes()[..], &(why.len() as u16).to_be_bytes(), why].concat();
                vec![Chunk { kind: REPLY_ERROR, head, data: None }]
            });
            let offset = self.extended.then_some(request.offset);
            return self.writer.send(structured_reply(request.cookie, offset, chunks)).await;
        }
        let (code, chunks) = match result {
            Ok(chunks) => (0, chunks),
            Err(e) => (e.code, Vec::new()),
        };
        let mut head = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
        head.extend(code.to_be_bytes());
        head.extend(request.cookie.to_be_bytes());
        let data = chunks.into_iter().filter_map(|c| c.data);
        self.writer.send(std::iter::once(IoData::copy_of(&head)).chain(data)).await
    }

    async fn perform(&self, request: &Request, data: IoData) -> Result<Vec<Chunk>, Refusal> {
        let node = &self.export.node;
        let (offset, len) = (request.offset, request.len);
        let inside = offset.checked_add(len).is_some_and(|end| end <= node.size());
        let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if writes && self.export.read_only {
            return refusal(EPERM, "the export is read-only");
        }
        if !inside && request.command != CMD_FLUSH {
            let code = if writes { ENOSPC } else { EINVAL };
            return refusal(code, format!("{len} bytes at {offset} are beyond the end at {}", node.size()));
        }
        match request.command {
            CMD_READ => return self.read(request).await,
            CMD_BLOCK_STATUS => return self.block_status(request).await,
            CMD_WRITE => node.write(offset, data).await?,
            CMD_TRIM => node.discard(offset, len).await?,
            CMD_WRITE_ZEROES => {
                node.write_zeroes(offset, len, request.flags & CMD_FLAG_NO_HOLE == 0).await?;
            }
            CMD_FLUSH => node.flush().await?,
            // Reading ahead for somebody who does not say for how long is the host's business.
            CMD_CACHE => {}
            other => return refusal(EINVAL, format!("there is no command {other}")),
        }
        if writes && request.flags & CMD_FLAG_FUA != 0 {
            node.flush().await?;
        }
        Ok(vec![Chunk { kind: REPLY_NONE, head: Vec::new(), data: None }])
    }

    async fn read(&self, request: &Request) -> Result<Vec<Chunk>, Refusal> {
        let node = &self.export.node;
        let (offset, len) = (request.offset, request.len);
        if len == 0 && self.structured {
            // A chunk of data has at least one byte.
            return Ok(vec![Chunk { kind: REPLY_NONE, head: Vec::new(), data: None }]);
        }
        let whole = !self.structured || request.flags & CMD_FLAG_DF != 0 || len < SPARSE;
        if whole {
            let data = node.read(offset, IoBuf::new(len as usize)).await?;
            let head = offset.to_be_bytes().to_vec();
            return Ok(vec![Chunk { kind: REPLY_OFFSET_DATA, head, data: Some(data.freeze()) }]);
        }
        let mut chunks = Vec::new();
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let extent = node.status(at, end - at).await?;
            let n = extent.len.min(end - at);
            if n == 0 {
                return refusal(EIO, "the disk does not know what it holds");
            }
            // Many small pieces are not worth it: the last one is read whole.
            if extent.zero && chunks.len() < 64 {
                let head = [&at.to_be_bytes()[..], &(n as u32).to_be_bytes()].concat();
                chunks.push(Chunk { kind: REPLY_OFFSET_HOLE, head, data: None });
                at += n;
                continue;
            }
            let n = if chunks.len() < 64 { n } else { end - at };
            let data = node.read(at, IoBuf::new(n as usize)).await?;
            let head = at.to_be_bytes().to_vec();
            if is_zero(&data) {
                let head = [&head[..], &(n as u32).to_be_bytes()].concat();
                chunks.push(Chunk { kind: REPLY_OFFSET_HOLE, head, data: None });
            } else {
                chunks.push(Chunk { kind: REPLY_OFFSET_DATA, head, data: Some(data.freeze()) });
            }
            at += n;
        }
        Ok(chunks)
    }

    async fn block_status(&self, request: &Request) -> Result<Vec<Chunk>, Refusal> {
        if self.contexts.is_empty() {
            return refusal(EINVAL, "no metadata context was agreed on");
        }
        if request.len == 0 {
            return refusal(EINVAL, "a block status of no bytes");
        }
        let mut chunks = Vec::new();
        for (n, context) in self.contexts.iter().enumerate() {
            let mut head = (n as u32 + 1).to_be_bytes().to_vec();
            let extents = self.extents(request, context).await?;
            if self.extended {
                head.extend((extents.len() as u32).to_be_bytes());
            }
            for (len, flags) in extents {
                if self.extended {
                    head.extend(len.to_be_bytes());
                    head.extend(u64::from(flags).to_be_bytes());
                } else {
                    // No longer than the request, which had 32 bits for it.
                    head.extend((len as u32).to_be_bytes());
                    head.extend(flags.to_be_bytes());
                }
            }
            let kind = if self.extended { REPLY_BLOCK_STATUS_EXT } else { REPLY_BLOCK_STATUS };
            chunks.push(Chunk { kind, head, data: None });
        }
        Ok(chunks)
    }

    /// Lengths and flags of the extents of a range, from its start; perhaps not up to its end.
    async fn extents(&self, request: &Request, context: &Context) -> Result<Vec<(u64, u32)>, Refusal> {
        let limit = if request.flags & CMD_FLAG_REQ_ONE != 0 { 1 } else { EXTENTS };
        let end = request.offset + request.len;
        let mut out: Vec<(u64, u32)> = Vec::new();
        let mut at = request.offset;
        while at < end {
            let (n, flags) = match context {
                Context::Bitmap(n) => dirty(&self.export.bitmaps[*n].1, at, end),
                Context::Allocation | Context::Depth => {
                    let extent = self.export.node.status(at, end - at).await?;
                    (extent.len.min(end - at), flags_of(&extent, context))
                }
            };
            if n == 0 {
                return refusal(EIO, "the disk does not know what it holds");
            }
            let full = out.len() == limit;
            match out.last_mut() {
                Some(last) if last.1 == flags => last.0 += n,
                _ if full => break,
                _ => out.push((n, flags)),
            }
            at += n;
        }
        Ok(out)
    }
}

fn flags_of(extent: &Extent, context: &Context) -> u32 {
    if *context == Context::Depth {
        return if extent.present { extent.depth + 1 } else { 0 };
    }
    let hole = if extent.data { 0 } else { STATE_HOLE };
    let zero = if extent.zero { STATE_ZERO } else { 0 };
    hole | zero
}

/// The first extent of a bitmap from `at`: how long, and if it is dirty.
fn dirty(ranges: &[(u64, u64)], at: u64, end: u64) -> (u64, u32) {
    let next = ranges.partition_point(|(start, len)| start + len <= at);
    match ranges.get(next) {
        Some(&(start, len)) if start <= at => ((start + len).min(end) - at, STATE_DIRTY),
        Some(&(start, _)) => (start.min(end) - at, 0),
        None => (end - at, 0),
    }
}

/// `offset`: that of the request, with extended headers.
fn structured_reply(cookie: u64, offset: Option<u64>, chunks: Vec<Chunk>) -> Vec<IoData> {
    let last = chunks.len().saturating_sub(1);
    let mut out = Vec::with_capacity(chunks.len() * 2);
    for (n, chunk) in chunks.into_iter().enumerate() {
        let flags = if n == last { REPLY_FLAG_DONE } else { 0 };
        let len = chunk.head.len() + chunk.data.as_ref().map_or(0, |d| d.len());
        let magic = if offset.is_some() { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let mut head = magic.to_be_bytes().to_vec();
        head.extend(flags.to_be_bytes());
        head.extend(chunk.kind.to_be_bytes());
        head.extend(cookie.to_be_bytes());
        match offset {
            Some(offset) => {
                head.extend(offset.to_be_bytes());
                head.extend((len as u64).to_be_bytes());
            }
            None => head.extend((len as u32).to_be_bytes()),
        }
        head.extend(chunk.head);
        out.push(IoData::copy_of(&head));
        out.extend(chunk.data);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_cut_at_requests() {
        let ranges = [(100, 50), (200, 100)];
        assert_eq!(dirty(&ranges, 0, 1000), (100, 0));
        assert_eq!(dirty(&ranges, 0, 50), (50, 0));
        assert_eq!(dirty(&ranges, 100, 120), (20, STATE_DIRTY));
        assert_eq!(dirty(&ranges, 149, 1000), (1, STATE_DIRTY));
        assert_eq!(dirty(&ranges, 150, 1000), (50, 0));
        assert_eq!(dirty(&ranges, 300, 1000), (700, 0));
    }
}
