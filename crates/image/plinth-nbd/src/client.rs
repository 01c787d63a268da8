//! The client: an export of a server as a node.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use async_lock::RwLock;
use futures_channel::oneshot;
use plinth_host::aio;
use plinth_host::buffer::{IoBuf, IoData};
use plinth_image::graph::{Extent, Io, Node, NodeInfo, check_range, check_write};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::stream::{Reader, Socket, Writer, plain, upgrade};
use crate::uri::{Address, Uri};
use crate::wire::*;
use crate::{Error, ErrorKind};

/// How to connect.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What TLS needs, if the address asks for it.
    pub tls: Option<Arc<ClientConfig>>,
    /// Refuse writes, whatever the server allows.
    pub read_only: bool,
    /// A bitmap of the server (`qemu:dirty-bitmap:NAME`) to ask for along with what is allocated.
    pub bitmap: Option<String>,
}

/// What the handshake found out.
#[derive(Debug, Default)]
struct Agreed {
    size: u64,
    flags: u16,
    min_block: u32,
    max_payload: u32,
    structured: bool,
    /// Numbers of metadata contexts, by name.
    contexts: HashMap<String, u32>,
}

type Reply = Result<Answer, plinth_image::Error>;

#[derive(Default)]
struct Answer {
    buf: Option<IoBuf>,
    /// Extents by context: length and flags.
    extents: HashMap<u32, Vec<(u32, u32)>>,
}

struct Pending {
    /// First byte that a read asked for.
    offset: u64,
    answer: Answer,
    error: Option<(u32, String)>,
    sender: oneshot::Sender<Reply>,
}

struct Shared {
    name: String,
    agreed: Agreed,
    writer: Writer,
    pending: RefCell<HashMap<u64, Pending>>,
    /// Why the connection ended.
    broken: RefCell<Option<String>>,
}

/// An export of a server.
pub struct NbdNode {
    info: NodeInfo,
    shared: Rc<Shared>,
    next_cookie: Cell<u64>,
    /// Held alone by writes of less than the server's smallest block, which read, change and write.
    patching: RwLock<()>,
    bitmap: Option<u32>,
}

fn connect(address: &Address) -> std::io::Result<Socket> {
    Ok(match address {
        Address::Tcp(host, port) => TcpStream::connect((host.as_str(), *port))?.into(),
        Address::Unix(path) => UnixStream::connect(path)?.into(),
    })
}

/// Connects to a server and opens an export. Must be called within [`aio::block_on`].
///
/// # Errors
/// The server cannot be reached, refuses, or does not speak the protocol.
pub async fn open(uri: &Uri, options: &Options) -> Result<NbdNode, Error> {
    let address = uri.address.clone();
    let socket = aio::blocking(move || connect(&address)).await.map_err(|source| Error {
        kind: ErrorKind::Connection,
        context: format!("cannot connect to '{uri}'"),
        source,
    })?;
    open_on(socket, uri, options).await
}

/// Opens an export over a connection that is there.
pub(crate) async fn open_on(socket: Socket, uri: &Uri, options: &Options) -> Result<NbdNode, Error> {
    let failed = |e: Error| Error { context: format!("cannot open '{uri}': {}", e.context), ..e };
    let (reader, writer) = plain(socket);
    let mut handshake = Handshake { reader, writer, agreed: Agreed::default() };
    handshake.hello().await.map_err(failed)?;
    if uri.tls {
        handshake = handshake.start_tls(uri, options).await.map_err(failed)?;
    }
    handshake.choose(&uri.export, options).await.map_err(failed)?;
    let Handshake { reader, writer, agreed } = handshake;
    let info = NodeInfo {
        name: uri.to_string(),
        read_only: options.read_only || agreed.flags & SEND_READ_ONLY != 0,
        block: agreed.min_block.max(1),
    };
    let bitmap = options.bitmap.as_ref().and_then(|b| agreed.contexts.get(b)).copied();
    let (pending, broken) = (RefCell::default(), RefCell::default());
    let shared = Rc::new(Shared { name: info.name.clone(), agreed, writer, pending, broken });
    let receiver = shared.clone();
    aio::spawn(async move { receiver.receive_all(reader).await });
    Ok(NbdNode { info, shared, next_cookie: Cell::new(1), patching: RwLock::new(()), bitmap })
}

struct Handshake {
    reader: Reader,
    writer: Writer,
    agreed: Agreed,
}

impl Handshake {
    async fn hello(&mut self) -> Result<(), Error> {
        let magic = u64::from_be_bytes(self.reader.array().await?);
        let version = u64::from_be_bytes(self.reader.array().await?);
        if magic != MAGIC || version != IHAVEOPT {
            return Err(Error::protocol(
                "it does not greet as an NBD server does (the oldstyle handshake is not supported)",
            ));
        }
        let flags = u16::from_be_bytes(self.reader.array().await?);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(Error::protocol("it has only the old handshake that was not fixed"));
        }
        let flags = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        Ok(self.writer.send([IoData::copy_of(&flags.to_be_bytes())]).await?)
    }

    async fn send(&self, option: u32, data: &[u8]) -> Result<(), Error> {
        let mut message = IHAVEOPT.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        Ok(self.writer.send([IoData::copy_of(&message)]).await?)
    }

    /// The next reply to an option: its kind and data.
    async fn reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), Error> {
        let magic = u64::from_be_bytes(self.reader.array().await?);
        let about = u32::from_be_bytes(self.reader.array().await?);
        let kind = u32::from_be_bytes(self.reader.array().await?);
        let len = u32::from_be_bytes(self.reader.array().await?);
        if magic != REP_MAGIC || about != option || len > MAX_OPTION {
            return Err(Error::protocol("a reply to an option makes no sense"));
        }
        Ok((kind, self.reader.take(len as usize).await?))
    }

    async fn start_tls(mut self, uri: &Uri, options: &Options) -> Result<Self, Error> {
        let tls = |why: String| Error::new(ErrorKind::Tls, "TLS cannot be used", why);
        let config =
            options.tls.clone().ok_or_else(|| tls("no certificate of an authority was given".to_owned()))?;
        let host = match &uri.address {
            Address::Tcp(host, _) => host.clone(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let name = ServerName::try_from(host).map_err(|e| tls(e.to_string()))?;
        self.send(OPT_STARTTLS, &[]).await?;
        let (kind, why) = self.reply(OPT_STARTTLS).await?;
        if kind != REP_ACK {
            return Err(refused(kind, &why, "the server does not begin TLS"));
        }
        let connection = rustls::ClientConnection::new(config, name).map_err(|e| tls(e.to_string()))?;
        let (reader, writer) =
            upgrade(self.reader, self.writer, connection.into()).await.map_err(|source| Error {
                kind: ErrorKind::Tls,
                context: "TLS with the server failed".to_owned(),
                source,
            })?;
        Ok(Self { reader, writer, ..self })
    }

    async fn choose(&mut self, export: &str, options: &Options) -> Result<(), Error> {
        self.send(OPT_STRUCTURED_REPLY, &[]).await?;
        self.agreed.structured = self.reply(OPT_STRUCTURED_REPLY).await?.0 == REP_ACK;
        let named = |rest: &[u8]| [&(export.len() as u32).to_be_bytes(), export.as_bytes(), rest].concat();
        if self.agreed.structured {
            let wanted: Vec<&str> =
                std::iter::once(BASE_ALLOCATION).chain(options.bitmap.as_deref()).collect();
            let mut data = (wanted.len() as u32).to_be_bytes().to_vec();
            for query in wanted {
                data.extend((query.len() as u32).to_be_bytes());
                data.extend(query.bytes());
            }
            self.send(OPT_SET_META_CONTEXT, &named(&data)).await?;
            loop {
                let (kind, data) = self.reply(OPT_SET_META_CONTEXT).await?;
                if kind != REP_META_CONTEXT {
                    break;
                }
                let mut p = Parser(&data);
                if let (Some(id), Ok(name)) = (p.u32(), String::from_utf8(p.0.to_vec()))
                    && self.agreed.contexts.len() < 16
                {
                    self.agreed.contexts.insert(name, id);
                }
            }
        }
        let ask = [&1u16.to_be_bytes()[..], &INFO_BLOCK_SIZE.to_be_bytes()].concat();
        self.send(OPT_GO, &named(&ask)).await?;
        let mut seen = false;
        loop {
            let (kind, data) = self.reply(OPT_GO).await?;
            match kind {
                REP_INFO => seen |= self.info(&data)?,
                REP_ACK if seen => return Ok(()),
                REP_ACK => return Err(Error::protocol("it does not say how large the export is")),
                REP_ERR_UNSUP => return self.choose_old(export).await,
                REP_ERR_TLS_REQD => {
                    return Err(refused(kind, &data, "it needs TLS: use an address that begins with nbds:"));
                }
                _ => return Err(refused(kind, &data, "it does not open the export")),
            }
        }
    }

    /// True if it told the size.
    fn info(&mut self, data: &[u8]) -> Result<bool, Error> {
        let mut p = Parser(data);
        match p.u16() {
            Some(INFO_EXPORT) => {
                let short = || Error::protocol("what it says of the export is too short");
                let size = p.u64().ok_or_else(short)?;
                self.set_size(size, p.u16().ok_or_else(short)?)?;
                Ok(true)
            }
            Some(INFO_BLOCK_SIZE) => {
                if let (Some(min), Some(_), Some(max)) = (p.u32(), p.u32(), p.u32()) {
                    if !min.is_power_of_two() || min > 1 << 16 || max < min {
                        return Err(Error::protocol(format!("blocks of {min} to {max} bytes")));
                    }
                    (self.agreed.min_block, self.agreed.max_payload) = (min, max);
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn set_size(&mut self, size: u64, flags: u16) -> Result<(), Error> {
        if size > i64::MAX as u64 {
            return Err(Error::protocol(format!("an export of {size} bytes")));
        }
        (self.agreed.size, self.agreed.flags) = (size, flags);
        Ok(())
    }

    /// For servers that do not know the newer way. They hang up when they refuse.
    async fn choose_old(&mut self, export: &str) -> Result<(), Error> {
        self.send(OPT_EXPORT_NAME, export.as_bytes()).await?;
        let size = u64::from_be_bytes(self.reader.array().await?);
        let flags = u16::from_be_bytes(self.reader.array().await?);
        self.set_size(size, flags)
    }
}

fn refused(kind: u32, why: &[u8], what: &str) -> Error {
    let why = String::from_utf8_lossy(why);
    let why = match kind {
        REP_ERR_UNKNOWN if why.is_empty() => "there is no such export".to_owned(),
        _ if why.is_empty() => format!("it answers with error {:#x}", kind & !REP_FLAG_ERROR),
        // From a stranger: without what could steer a terminal.
        _ => why.chars().filter(|c| !c.is_control()).collect(),
    };
    Error::new(ErrorKind::Refused, what, why)
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
    let why = if why.is_empty() { format!("error {code}") } else { why };
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
        // Their senders are dropped, which tells who waits.
        self.pending.borrow_mut().clear();
    }

    async fn receive_one(&self, reader: &mut Reader) -> Result<(), Error> {
        let magic = u32::from_be_bytes(reader.array().await?);
        match magic {
            SIMPLE_REPLY_MAGIC => {
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
            STRUCTURED_REPLY_MAGIC if self.agreed.structured => self.chunk(reader).await,
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
        let len = u32::from_be_bytes(reader.array().await?);
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

impl NbdNode {
    async fn ask(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: Option<IoData>,
        buf: Option<IoBuf>,
    ) -> Reply {
        let shared = &self.shared;
        if shared.broken.borrow().is_some() {
            return Err(shared.gone());
        }
        let cookie = self.next_cookie.get();
        self.next_cookie.set(cookie + 1);
        let (sender, receiver) = oneshot::channel();
        let answer = Answer { buf, ..Answer::default() };
        shared.pending.borrow_mut().insert(cookie, Pending { offset, answer, error: None, sender });
        let request = Request { flags, command, cookie, offset, len };
        let head = IoData::copy_of(&request.bytes());
        if let Err(e) = shared.writer.send(std::iter::once(head).chain(data)).await {
            shared.broken.borrow_mut().get_or_insert(e.to_string());
            shared.pending.borrow_mut().remove(&cookie);
            return Err(shared.gone());
        }
        receiver.await.unwrap_or_else(|_| Err(shared.gone()))
    }

    /// Bytes of one read or write.
    fn most(&self) -> u64 {
        let max = self.shared.agreed.max_payload;
        let max = if max == 0 { MAX_PAYLOAD } else { max.min(MAX_PAYLOAD) };
        u64::from(max / self.info.block * self.info.block)
    }

    fn has(&self, flag: u16) -> bool {
        self.shared.agreed.flags & flag != 0
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        (offset | len).is_multiple_of(u64::from(self.info.block))
    }

    async fn read_aligned(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, plinth_image::Error> {
        let most = self.most() as usize;
        if buf.len() <= most {
            let len = buf.len() as u32;
            let answer = self.ask(CMD_READ, 0, offset, len, None, Some(buf)).await?;
            return answer.buf.ok_or_else(|| self.shared.gone());
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
            self.ask(CMD_WRITE, 0, offset + done as u64, n as u32, Some(part), None).await?;
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
        /// As servers may refuse more, and a multiple of any block.
        const PIECE: u64 = 1 << 30;
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PIECE);
            self.ask(command, flags, offset + done, n as u32, None, None).await?;
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
        let Some(context) = self.bitmap else { return Ok(None) };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < self.size() {
            let n = (self.size() - at).min(1 << 30);
            let answer = self.ask(CMD_BLOCK_STATUS, 0, at, n as u32, None, None).await?;
            let extents = answer.extents.get(&context).filter(|e| e.iter().any(|e| e.0 > 0));
            let extents =
                extents.ok_or_else(|| image_error(&self.info.name, EIO, "no answer about the bitmap"))?;
            for &(len, flags) in extents {
                let len = u64::from(len).min(self.size() - at);
                if flags & STATE_DIRTY != 0 && len > 0 {
                    match ranges.last_mut() {
                        Some(last) if last.0 + last.1 == at => last.1 += len,
                        _ => ranges.push((at, len)),
                    }
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
        self.shared.agreed.size
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
            let Some(&context) = self.shared.agreed.contexts.get(BASE_ALLOCATION) else {
                return Ok(Extent::stored(len, None));
            };
            let (start, around) = self.blocks(offset, len.min(1 << 30));
            if around == 0 {
                return Ok(Extent::hole(0));
            }
            let answer =
                self.ask(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, start, around as u32, None, None).await?;
            let extent = answer.extents.get(&context).and_then(|e| e.first());
            let Some(&(n, flags)) = extent else {
                return Err(image_error(&self.info.name, EIO, "no answer about what is allocated"));
            };
            let n = (start + u64::from(n)).saturating_sub(offset).min(len);
            if n == 0 {
                return Err(image_error(&self.info.name, EIO, "an answer about no bytes"));
            }
            let zero = flags & STATE_ZERO != 0;
            Ok(Extent { zero, data: flags & STATE_HOLE == 0, ..Extent::stored(n, None) })
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
            let cookie = self.next_cookie.get();
            let request = Request { flags: 0, command: CMD_DISC, cookie, offset: 0, len: 0 };
            // The server may be gone already, and everything is durable.
            let _ = self.shared.writer.send([IoData::copy_of(&request.bytes())]).await;
            self.shared.writer.close().await;
            Ok(())
        })
    }
}

impl Drop for NbdNode {
    fn drop(&mut self) {
        // Ends the task that receives.
        self.shared.writer.hang_up();
    }
}
