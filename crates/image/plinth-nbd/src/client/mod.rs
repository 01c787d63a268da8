//! The client: an export of a server as a node.
//!
//! **A connection that breaks** is made again where [`Options::reconnect`] gives time for it. Reads and questions are
//! asked once more then. A change that was on its way may have been made, may still be made by the server's end of the
//! old connection, or not at all: it fails, and who asked for it knows best whether it may be repeated. What was
//! written and not yet flushed may be lost with a server that was started anew, so the next flush fails once.

mod handshake;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_lock::{Mutex, RwLock};
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use plinth_host::aio;
use plinth_host::buffer::{IoBuf, IoData};
use plinth_image::graph::{Extent, Io, Node, NodeInfo, check_range, check_write};
use rustls::ClientConfig;

use crate::stream::{Reader, Socket, Writer, plain};
use crate::uri::{Address, Uri};
use crate::wire::*;
use crate::{Error, ErrorKind};
use handshake::{Agreed, Handshake};

/// Reads of fewer bytes are answered as a whole.
const FEW: u64 = 64 << 10;

/// How to connect.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What TLS needs, if the address asks for it.
    pub tls: Option<Arc<ClientConfig>>,
    /// Refuse writes, whatever the server allows.
    pub read_only: bool,
    /// A bitmap of the server (`qemu:dirty-bitmap:NAME`), or another metadata context, to ask for along with what
    /// is allocated.
    pub bitmap: Option<String>,
    /// How long to try to connect again when the connection breaks, from the moment on when it is needed.
    pub reconnect: Duration,
}

type Reply = Result<Answer, plinth_image::Error>;

#[derive(Default)]
struct Answer {
    buf: Option<IoBuf>,
    /// Extents by context: length and flags.
    extents: HashMap<u32, Vec<(u64, u64)>>,
}

struct Pending {
    /// First byte that a read asked for.
    offset: u64,
    answer: Answer,
    error: Option<(u32, String)>,
    sender: oneshot::Sender<Reply>,
}

/// One connection.
struct Shared {
    name: String,
    agreed: Agreed,
    writer: Writer,
    pending: RefCell<HashMap<u64, Pending>>,
    /// Why the connection ended.
    broken: RefCell<Option<String>>,
    /// Changes were made that no flush followed yet.
    unflushed: Cell<bool>,
}

/// An export of a server.
pub struct NbdNode {
    info: NodeInfo,
    uri: Uri,
    options: Options,
    agreed: Agreed,
    shared: RefCell<Rc<Shared>>,
    /// Held while the connection is made again.
    connecting: Mutex<()>,
    /// Changes were lost, perhaps, and nobody was told yet.
    lost: Cell<bool>,
    /// No more connections: it was closed, or has not come back in time.
    ended: RefCell<Option<String>>,
    next_cookie: Cell<u64>,
    /// Held alone by writes of less than the server's smallest block, which read, change and write.
    patching: RwLock<()>,
    bitmap: Option<u32>,
}

/// How long a host may take to answer.
const CONNECT: Duration = Duration::from_secs(30);
/// Between two tries to connect again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

fn connect(address: &Address, time: Duration) -> std::io::Result<Socket> {
    match address {
        Address::Tcp(host, port) => {
            let mut last = std::io::ErrorKind::NotFound.into();
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, time) {
                    Ok(stream) => return Ok(stream.into()),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
        Address::Unix(path) => Ok(UnixStream::connect(path)?.into()),
    }
}

/// Connects to a server and opens an export. Must be called within [`aio::block_on`].
///
/// # Errors
/// The server cannot be reached, refuses, or does not speak the protocol.
pub async fn open(uri: &Uri, options: &Options) -> Result<NbdNode, Error> {
    let socket = dial(uri, CONNECT).await?;
    open_on(socket, uri, options).await
}

/// Opens an export over a connection that is there.
pub(crate) async fn open_on(socket: Socket, uri: &Uri, options: &Options) -> Result<NbdNode, Error> {
    let shared = establish(socket, uri, options).await?;
    let agreed = shared.agreed.clone();
    let info = NodeInfo {
        name: uri.to_string(),
        read_only: options.read_only || agreed.flags & SEND_READ_ONLY != 0,
        block: agreed.min_block.max(1),
    };
    let bitmap = options.bitmap.as_ref().and_then(|b| agreed.contexts.get(b)).copied();
    Ok(NbdNode {
        info,
        uri: uri.clone(),
        options: options.clone(),
        agreed,
        shared: RefCell::new(shared),
        connecting: Mutex::new(()),
        lost: Cell::new(false),
        ended: RefCell::default(),
        next_cookie: Cell::new(1),
        patching: RwLock::new(()),
        bitmap,
    })
}

async fn dial(uri: &Uri, time: Duration) -> Result<Socket, Error> {
    let address = uri.address.clone();
    aio::blocking(move || connect(&address, time)).await.map_err(|source| Error {
        kind: ErrorKind::Connection,
        context: format!("cannot connect to '{uri}'"),
        source,
    })
}

/// Shakes hands, and receives from the connection from then on.
async fn establish(socket: Socket, uri: &Uri, options: &Options) -> Result<Rc<Shared>, Error> {
    let failed = |e: Error| Error { context: format!("cannot open '{uri}': {}", e.context), ..e };
    let (reader, writer) = plain(socket);
    let mut handshake = Handshake { reader, writer, agreed: Agreed::default() };
    handshake.hello().await.map_err(failed)?;
    if uri.tls {
        handshake = handshake.start_tls(uri, options).await.map_err(failed)?;
    }
    handshake.choose(&uri.export, options).await.map_err(failed)?;
    let Handshake { reader, writer, agreed } = handshake;
    let (pending, broken) = (RefCell::default(), RefCell::default());
    let unflushed = Cell::new(false);
    let shared = Rc::new(Shared { name: uri.to_string(), agreed, writer, pending, broken, unflushed });
    let receiver = shared.clone();
    aio::spawn(async move { receiver.receive_all(reader).await });
    Ok(shared)
}

fn image_error(name: &str, code: u32, why: &str) -> plinth_image::Error {
    use plinth_image::ErrorKind as K;
    let (kind, what) = match code {
        EPERM => (K::ReadOnly, "the server does not permit it"),
        ENOSPC => (K::NoSpace, "the server has no space left"),
        EINVAL => (K::Invalid, "the server takes the request for invalid"),
        ENOTSUP => (K::Unsupported, "the server cannot do it"),
        _ => (K::Io, "the server's I/O failed"),
    };
    let why: String = why.chars().filter(|c| !c.is_control()).collect();
    // The protocol's numbers are those of Linux.
    let number =
        || i32::try_from(code).map_or(String::new(), |n| std::io::Error::from_raw_os_error(n).to_string());
    let why = if why.is_empty() { number() } else { why };
    plinth_image::Error::new(kind, format!("cannot use '{name}': {what}"), why)
}

impl Shared {
    fn gone(&self) -> plinth_image::Error {
        let why = self.broken.borrow().clone().unwrap_or_else(|| "it was closed".to_owned());
        let doing = format!("the connection to '{}' is gone", self.name);
        plinth_image::Error::new(plinth_image::ErrorKind::Io, doing, why)
    }

    /// Receives replies until the connection ends.
    async fn receive_all(&self, mut reader: Reader) {
        let why = loop {
            match self.receive_one(&mut reader).await {
                Ok(()) => {}
                Err(e) => break e.to_string(),
            }
        };
        *self.broken.borrow_mut() = Some(why);
        // What the server still does for it is not waited for.
        self.writer.hang_up();
        // Their senders are dropped, which tells who waits.
        self.pending.borrow_mut().clear();
    }

    async fn receive_one(&self, reader: &mut Reader) -> Result<(), Error> {
        let magic = u32::from_be_bytes(reader.array().await?);
        match magic {
            SIMPLE_REPLY_MAGIC if !self.agreed.extended => {
                let code = u32::from_be_bytes(reader.array().await?);
                let cookie = u64::from_be_bytes(reader.array().await?);
                let mut pending = self.take(cookie)?;
                if code != 0 {
                    pending.error = Some((code, String::new()));
                } else if let Some(buf) = pending.answer.buf.take() {
                    pending.answer.buf = Some(reader.fill_buf(buf).await?);
                }
                self.finish(pending);
                Ok(())
            }
            STRUCTURED_REPLY_MAGIC if self.agreed.structured && !self.agreed.extended => {
                self.chunk(reader).await
            }
            EXTENDED_REPLY_MAGIC if self.agreed.extended => self.chunk(reader).await,
            _ => Err(Error::protocol("a reply does not begin with its mark")),
        }
    }

    fn take(&self, cookie: u64) -> Result<Pending, Error> {
        let pending = self.pending.borrow_mut().remove(&cookie);
        pending.ok_or_else(|| Error::protocol("a reply to what was not asked"))
    }

    fn finish(&self, pending: Pending) {
        let result = match pending.error {
            Some((code, why)) => Err(image_error(&self.name, code, &why)),
            None => Ok(pending.answer),
        };
        // Nobody waits any more if this fails.
        let _ = pending.sender.send(result);
    }

    async fn chunk(&self, reader: &mut Reader) -> Result<(), Error> {
        let flags = u16::from_be_bytes(reader.array().await?);
        let kind = u16::from_be_bytes(reader.array().await?);
        let cookie = u64::from_be_bytes(reader.array().await?);
        let len = if self.agreed.extended {
            let _offset: [u8; 8] = reader.array().await?;
            let len = u64::from_be_bytes(reader.array().await?);
            u32::try_from(len).map_err(|_| Error::protocol(format!("a reply of {len} bytes")))?
        } else {
            u32::from_be_bytes(reader.array().await?)
        };
        let mut pending = self.take(cookie)?;
        match kind {
            REPLY_NONE if len == 0 => {}
            REPLY_OFFSET_DATA if len >= 8 => {
                let offset = u64::from_be_bytes(reader.array().await?);
                let n = (len - 8) as usize;
                let (mut head, at) = part(&mut pending, offset, n)?;
                let mut middle = head.split_off(at);
                let tail = middle.split_off(n);
                let middle = reader.fill_buf(middle).await?;
                pending.answer.buf = Some(joined(head, middle, tail));
            }
            REPLY_OFFSET_HOLE if len == 12 => {
                let offset = u64::from_be_bytes(reader.array().await?);
                let n = u32::from_be_bytes(reader.array().await?) as usize;
                let (mut buf, at) = part(&mut pending, offset, n)?;
                buf[at..at + n].fill(0);
                pending.answer.buf = Some(buf);
            }
            REPLY_BLOCK_STATUS if (12..=4 + 8 * (1 << 17)).contains(&len) => {
                let data = reader.take(len as usize).await?;
                let mut p = Parser(&data);
                let id = p.u32().unwrap_or_default();
                let mut extents = Vec::new();
                while let (Some(len), Some(flags)) = (p.u32(), p.u32()) {
                    extents.push((len.into(), flags.into()));
                }
                pending.answer.extents.insert(id, extents);
            }
            REPLY_BLOCK_STATUS_EXT if self.agreed.extended && (24..=8 + 16 * (1 << 17)).contains(&len) => {
                let data = reader.take(len as usize).await?;
                let mut p = Parser(&data);
                let (id, _count) = (p.u32().unwrap_or_default(), p.u32());
                let mut extents = Vec::new();
                while let (Some(len), Some(flags)) = (p.u64(), p.u64()) {
                    extents.push((len, flags));
                }
                pending.answer.extents.insert(id, extents);
            }
            _ if kind & REPLY_ERROR_BIT != 0 && len <= MAX_OPTION => {
                let data = reader.take(len as usize).await?;
                let mut p = Parser(&data);
                let code = p.u32().unwrap_or(EIO).max(1);
                let n = p.u16().unwrap_or_default() as usize;
                let why = p.take(n).map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default();
                pending.error = Some((code, why));
            }
            _ => return Err(Error::protocol(format!("a reply of kind {kind} with {len} bytes"))),
        }
        if flags & REPLY_FLAG_DONE != 0 {
            self.finish(pending);
        } else {
            self.pending.borrow_mut().insert(cookie, pending);
        }
        Ok(())
    }
}

/// A read's buffer, and where in it `n` bytes from byte `offset` of the export belong.
fn part(pending: &mut Pending, offset: u64, n: usize) -> Result<(IoBuf, usize), Error> {
    let wrong = || Error::protocol("a reply has bytes that were not asked for");
    let buf = pending.answer.buf.take().ok_or_else(wrong)?;
    let at = offset.checked_sub(pending.offset).and_then(|a| usize::try_from(a).ok()).ok_or_else(wrong)?;
    if at.checked_add(n).is_none_or(|end| end > buf.len()) {
        return Err(wrong());
    }
    Ok((buf, at))
}

fn joined(head: IoBuf, middle: IoBuf, tail: IoBuf) -> IoBuf {
    let whole = head.join(middle).and_then(|b| b.join(tail));
    whole.unwrap_or_else(|_| unreachable!("the parts come from one buffer"))
}

/// What became of a request.
enum Outcome {
    Done(Reply),
    /// The connection broke before anything of it was sent, and has to be made again.
    NotSent,
    /// The connection broke; the server may have done it.
    Unknown(plinth_image::Error),
}

fn changes(command: u16) -> bool {
    matches!(command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES)
}

impl NbdNode {
    /// The connection, which is made anew if it is broken.
    async fn connection(&self) -> Result<Rc<Shared>, plinth_image::Error> {
        let working = || {
            let now = self.shared.borrow().clone();
            let works = now.broken.borrow().is_none();
            works.then_some(now)
        };
        let ended = |why: &str| {
            let doing = format!("cannot use '{}'", self.info.name);
            plinth_image::Error::new(plinth_image::ErrorKind::Io, doing, why)
        };
        if let Some(why) = &*self.ended.borrow() {
            return Err(ended(why));
        }
        if let Some(now) = working() {
            return Ok(now);
        }
        let _alone = self.connecting.lock().await;
        // Somebody else may have done it meanwhile, or have tried.
        if let Some(now) = working() {
            return Ok(now);
        }
        if let Some(why) = &*self.ended.borrow() {
            return Err(ended(why));
        }
        let old = self.shared.borrow().clone();
        let limit = self.options.reconnect;
        if limit.is_zero() {
            return Err(old.gone());
        }
        if old.unflushed.take() {
            self.lost.set(true);
        }
        let begin = Instant::now();
        let mut pause = PAUSES.0;
        let why = loop {
            let left = limit.saturating_sub(begin.elapsed()).max(PAUSES.0);
            let trying = pin!(async {
                let socket = dial(&self.uri, left).await?;
                establish(socket, &self.uri, &self.options).await
            });
            let last = match select(trying, pin!(aio::sleep(left))).await {
                Either::Left((Ok(new), _)) if new.agreed == self.agreed => {
                    *self.shared.borrow_mut() = new.clone();
                    return Ok(new);
                }
                Either::Left((Ok(new), _)) => {
                    new.writer.hang_up();
                    break "the connection broke, and the server's export is another one now: its size or what it \
                           can do has changed"
                        .to_owned();
                }
                Either::Left((Err(e), _)) => e.to_string(),
                Either::Right(_) => "the server does not answer".to_owned(),
            };
            if begin.elapsed() + pause >= limit {
                let broken = old.broken.borrow().clone().unwrap_or_default();
                break format!(
                    "the connection broke ({broken}), and could not be made again within {} s: {last}",
                    limit.as_secs()
                );
            }
            aio::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        };
        *self.ended.borrow_mut() = Some(why.clone());
        Err(ended(&why))
    }

    /// Asks the server, again if that does no harm.
    async fn ask(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
        data: Option<IoData>,
        mut buf: Option<IoBuf>,
    ) -> Reply {
        let buf_len = buf.as_ref().map(|b| b.len());
        loop {
            let shared = self.connection().await?;
            if command == CMD_FLUSH && self.lost.take() {
                let doing = format!("cannot flush '{}'", self.info.name);
                let why = "the connection broke before what was written had been flushed, so some of it may be lost";
                return Err(plinth_image::Error::new(plinth_image::ErrorKind::Io, doing, why));
            }
            let buf = buf.take().or_else(|| buf_len.map(IoBuf::new));
            match self.ask_once(&shared, command, flags, offset, len, data.clone(), buf).await {
                Outcome::Done(reply) => {
                    if reply.is_ok() && changes(command) {
                        shared.unflushed.set(true);
                    }
                    return reply;
                }
                Outcome::NotSent => {}
                Outcome::Unknown(e) if self.options.reconnect.is_zero() => return Err(e),
                Outcome::Unknown(_) if matches!(command, CMD_READ | CMD_BLOCK_STATUS) => {}
                Outcome::Unknown(e) => {
                    // A change that was on its way is not safe before it is made again.
                    return Err(e);
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "these are the fields of a request")]
    async fn ask_once(
        &self,
        shared: &Rc<Shared>,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
        data: Option<IoData>,
        buf: Option<IoBuf>,
    ) -> Outcome {
        if shared.broken.borrow().is_some() {
            return Outcome::NotSent;
        }
        // A flush vouches for what was answered before it was sent.
        let unflushed = command == CMD_FLUSH && shared.unflushed.take();
        let cookie = self.next_cookie.get();
        self.next_cookie.set(cookie + 1);
        let (sender, receiver) = oneshot::channel();
        let answer = Answer { buf, ..Answer::default() };
        shared.pending.borrow_mut().insert(cookie, Pending { offset, answer, error: None, sender });
        let extended = shared.agreed.extended;
        let payload = if extended && command == CMD_WRITE { CMD_FLAG_PAYLOAD_LEN } else { 0 };
        let request = Request { flags: flags | payload, command, cookie, offset, len };
        let head = IoData::copy_of(&request.bytes(extended));
        let sent = shared.writer.send(std::iter::once(head).chain(data)).await;
        if let Err(e) = sent {
            shared.broken.borrow_mut().get_or_insert(e.to_string());
            shared.pending.borrow_mut().remove(&cookie);
            shared.unflushed.set(shared.unflushed.get() || unflushed);
            return Outcome::Unknown(shared.gone());
        }
        let reply = receiver.await;
        if unflushed && !matches!(reply, Ok(Ok(_))) {
            shared.unflushed.set(true);
        }
        match reply {
            Ok(reply) => Outcome::Done(reply),
            Err(_) => Outcome::Unknown(shared.gone()),
        }
    }

    /// Bytes of a request that moves no data: without extended headers, as servers may refuse more, and a multiple
    /// of any block.
    fn longest(&self) -> u64 {
        if self.agreed.extended { 1 << 62 } else { 1 << 30 }
    }

    /// Bytes of one read or write.
    fn most(&self) -> u64 {
        let max = self.agreed.max_payload;
        let max = if max == 0 { MAX_PAYLOAD } else { max.min(MAX_PAYLOAD) };
        u64::from(max / self.info.block * self.info.block)
    }

    fn has(&self, flag: u16) -> bool {
        self.agreed.flags & flag != 0
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(u64::from(self.info.block))
    }

    async fn read_aligned(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, plinth_image::Error> {
        let most = self.most() as usize;
        if buf.len() <= most {
            let len = buf.len() as u64;
            // A server need not look for holes in what is short.
            let whole = self.agreed.structured && self.has(SEND_DF) && len < FEW;
            let flags = if whole { CMD_FLAG_DF } else { 0 };
            let answer = self.ask(CMD_READ, flags, offset, len, None, Some(buf)).await?;
            return answer.buf.ok_or_else(|| image_error(&self.info.name, EIO, "an answer without data"));
        }
        let tail = buf.split_off(most);
        let head = Box::pin(self.read_aligned(offset, buf)).await?;
        let tail = Box::pin(self.read_aligned(offset + most as u64, tail)).await?;
        Ok(head.join(tail).unwrap_or_else(|_| unreachable!("the parts come from one buffer")))
    }

    async fn write_aligned(&self, offset: u64, data: IoData) -> Result<(), plinth_image::Error> {
        let most = self.most() as usize;
        let mut done = 0;
        while done < data.len() {
            let n = (data.len() - done).min(most);
            let part = data.slice(done..done + n);
            self.ask(CMD_WRITE, 0, offset + done as u64, n as u64, Some(part), None).await?;
            done += n;
        }
        Ok(())
    }

    /// The whole blocks around a range.
    fn blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        let block = u64::from(self.info.block);
        let start = offset / block * block;
        (start, (offset + len).next_multiple_of(block).min(self.size()) - start)
    }

    async fn patch(&self, offset: u64, data: &[u8]) -> Result<(), plinth_image::Error> {
        let _alone = self.patching.write().await;
        let (start, len) = self.blocks(offset, data.len() as u64);
        let mut blocks = self.read_aligned(start, IoBuf::new(len as usize)).await?;
        let at = (offset - start) as usize;
        blocks[at..at + data.len()].copy_from_slice(data);
        self.write_aligned(start, blocks.freeze()).await
    }

    /// Asks in pieces that fit the length of a request.
    async fn ranges(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Result<(), plinth_image::Error> {
        let mut done = 0;
        while done < len {
            let n = (len - done).min(self.longest());
            self.ask(command, flags, offset + done, n, None, None).await?;
            done += n;
        }
        Ok(())
    }

    /// Ranges (first byte, length) that are dirty in the bitmap that was asked for at [`open`]; `None` if the
    /// server does not have it.
    ///
    /// # Errors
    /// The server's.
    pub async fn dirty(&self) -> Result<Option<Vec<(u64, u64)>>, plinth_image::Error> {
        let dirty = |m: &&(u64, u64, u64)| m.2 & u64::from(STATE_DIRTY) != 0;
        Ok(self.marks().await?.map(|all| all.iter().filter(dirty).map(|m| (m.0, m.1)).collect()))
    }

    /// What the server says in the metadata context that was asked for at [`open`]: ranges (first byte, length,
    /// flags) without gaps; `None` if the server does not have it.
    ///
    /// # Errors
    /// The server's.
    pub async fn marks(&self) -> Result<Option<Vec<(u64, u64, u64)>>, plinth_image::Error> {
        let Some(context) = self.bitmap else { return Ok(None) };
        let mut ranges: Vec<(u64, u64, u64)> = Vec::new();
        let mut at = 0;
        while at < self.size() {
            let n = (self.size() - at).min(self.longest());
            let answer = self.ask(CMD_BLOCK_STATUS, 0, at, n, None, None).await?;
            let extents = answer.extents.get(&context).filter(|e| e.iter().any(|e| e.0 > 0));
            let extents =
                extents.ok_or_else(|| image_error(&self.info.name, EIO, "no answer about the bitmap"))?;
            for &(len, flags) in extents {
                let len = len.min(self.size() - at);
                match ranges.last_mut() {
                    _ if len == 0 => {}
                    Some(last) if last.2 == flags => last.1 += len,
                    _ => ranges.push((at, len, flags)),
                }
                at += len;
            }
        }
        Ok(Some(ranges))
    }
}

impl Node for NbdNode {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.agreed.size
    }

    fn read(&self, offset: u64, mut buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            let len = buf.len() as u64;
            check_range(self, "read", offset, len)?;
            if len == 0 || self.is_aligned(offset, len) {
                return if len == 0 { Ok(buf) } else { self.read_aligned(offset, buf).await };
            }
            let (start, around) = self.blocks(offset, len);
            let blocks = self.read_aligned(start, IoBuf::new(around as usize)).await?;
            let at = (offset - start) as usize;
            buf.copy_from_slice(&blocks[at..at + len as usize]);
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, data.len() as u64)?;
            if !self.is_aligned(offset, data.len() as u64) {
                return self.patch(offset, &data).await;
            }
            let _shared = self.patching.read().await;
            self.write_aligned(offset, data).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            if !self.has(SEND_WRITE_ZEROES) || !self.is_aligned(offset, len) {
                return plinth_image::graph::write_zero_bytes(self, offset, len).await;
            }
            let _shared = self.patching.read().await;
            let flags = if unmap { 0 } else { CMD_FLAG_NO_HOLE };
            self.ranges(CMD_WRITE_ZEROES, flags, offset, len).await
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Io<'_, ()> {
        Box::pin(async move {
            check_write(self, offset, len)?;
            if !self.has(SEND_TRIM) {
                return Ok(());
            }
            // Only whole blocks: what is around them still matters.
            let block = u64::from(self.info.block);
            let (start, end) = (offset.next_multiple_of(block), (offset + len) / block * block);
            if start < end { self.ranges(CMD_TRIM, 0, start, end - start).await } else { Ok(()) }
        })
    }

    fn flush(&self) -> Io<'_, ()> {
        Box::pin(async move {
            if !self.has(SEND_FLUSH) || self.info.read_only {
                return Ok(());
            }
            self.ask(CMD_FLUSH, 0, 0, 0, None, None).await.map(drop)
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            let Some(&context) = self.agreed.contexts.get(BASE_ALLOCATION) else {
                return Ok(Extent::stored(len, None));
            };
            let (start, around) = self.blocks(offset, len.min(self.longest()));
            if around == 0 {
                return Ok(Extent::hole(0));
            }
            let answer = self.ask(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, start, around, None, None).await?;
            let extent = answer.extents.get(&context).and_then(|e| e.first());
            let Some(&(n, flags)) = extent else {
                return Err(image_error(&self.info.name, EIO, "no answer about what is allocated"));
            };
            let n = start.saturating_add(n).saturating_sub(offset).min(len);
            if n == 0 {
                return Err(image_error(&self.info.name, EIO, "an answer about no bytes"));
            }
            let zero = flags & u64::from(STATE_ZERO) != 0;
            Ok(Extent { zero, data: flags & u64::from(STATE_HOLE) == 0, ..Extent::stored(n, None) })
        })
    }

    fn resize(&self, size: u64) -> Io<'_, ()> {
        Box::pin(async move {
            if size == self.size() {
                return Ok(());
            }
            let doing = format!("cannot resize '{}'", self.info.name);
            Err(plinth_image::Error::new(
                plinth_image::ErrorKind::Unsupported,
                doing,
                "an export has the size that it has",
            ))
        })
    }

    fn close(&self) -> Io<'_, ()> {
        Box::pin(async move {
            self.flush().await?;
            *self.ended.borrow_mut() = Some("it was closed".to_owned());
            let shared = self.shared.borrow().clone();
            let cookie = self.next_cookie.get();
            let request = Request { flags: 0, command: CMD_DISC, cookie, offset: 0, len: 0 };
            // The server may be gone already, and everything is durable.
            let bytes = request.bytes(shared.agreed.extended);
            let _ = shared.writer.send([IoData::copy_of(&bytes)]).await;
            shared.writer.close().await;
            Ok(())
        })
    }
}

impl Drop for NbdNode {
    fn drop(&mut self) {
        // Ends the task that receives.
        self.shared.borrow().writer.hang_up();
    }
}
