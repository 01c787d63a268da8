//! Connections: sockets, with TLS or without.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;

use plinth_host::aio;
use plinth_host::buffer::{IoBuf, IoData};
use rustls::Connection;

/// A connected socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<UnixStream> for Socket {
    fn from(s: UnixStream) -> Self {
        Self(s.into())
    }
}

impl From<TcpStream> for Socket {
    fn from(s: TcpStream) -> Self {
        // Replies must not wait for more to send. It works without, only slower.
        let _ = s.set_nodelay(true);
        Self(s.into())
    }
}

impl Socket {
    /// Ends both directions; who waits on the socket is woken.
    pub fn shutdown(&self) {
        // It fails only if the other side was quicker.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// Where connections come from.
#[derive(Clone, Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(Arc<UnixListener>),
    /// A TCP port.
    Tcp(Arc<TcpListener>),
}

impl Listener {
    /// Waits for a connection.
    ///
    /// # Errors
    /// As accept(2).
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            let accepted = match self {
                Listener::Unix(l) => {
                    l.set_nonblocking(true)?;
                    aio::readable(l).await?;
                    l.accept().map(|(s, _)| s.set_nonblocking(false).map(|()| Socket::from(s)))
                }
                Listener::Tcp(l) => {
                    l.set_nonblocking(true)?;
                    aio::readable(l).await?;
                    l.accept().map(|(s, _)| s.set_nonblocking(false).map(|()| Socket::from(s)))
                }
            };
            match accepted {
                Ok(socket) => return socket,
                // It went away again, or somebody else took it.
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// TLS state that both directions share.
type Tls = Rc<RefCell<Connection>>;

/// The receiving side.
pub struct Reader {
    socket: Arc<Socket>,
    tls: Option<Tls>,
    /// Bytes that were received and not taken: `start..end` of the buffer.
    buf: IoBuf,
    start: usize,
    end: usize,
    /// With TLS: what was received and not decrypted, `.1..` of it.
    sealed: (Vec<u8>, usize),
}

/// Bytes that are received at once.
const RECEIVE: usize = 128 << 10;

fn end_of_stream() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other side closed the connection")
}

impl Reader {
    /// Receives some bytes into the free part of the buffer; zero at the stream's end.
    async fn fill(&mut self) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if let Some(tls) = self.tls.clone() {
            let n = self.decrypt(&tls).await?;
            self.end += n;
            return Ok(n);
        }
        let mut head = std::mem::replace(&mut self.buf, IoBuf::new(0));
        let tail = head.split_off(self.end);
        let (n, tail) = aio::receive(&self.socket, tail).await;
        self.buf = head.join(tail).unwrap_or_else(|(head, _)| head);
        let n = n?;
        self.end += n;
        Ok(n)
    }

    /// Decrypts what was received: some bytes of text into the buffer's free part, zero at the stream's end;
    /// `None` if more must be received first.
    fn unseal(&mut self, tls: &Tls) -> io::Result<Option<usize>> {
        let mut state = tls.borrow_mut();
        loop {
            match state.reader().read(&mut self.buf[self.end..]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(Some),
            }
            let (sealed, at) = &mut self.sealed;
            if *at == sealed.len() {
                return Ok(None);
            }
            // It takes what fits, and what it has decrypted must be read before it takes more.
            let mut rest = &sealed[*at..];
            *at += state.read_tls(&mut rest)?;
            state.process_new_packets().map_err(io::Error::other)?;
        }
    }

    async fn decrypt(&mut self, tls: &Tls) -> io::Result<usize> {
        loop {
            if let Some(n) = self.unseal(tls)? {
                return Ok(n);
            }
            let (n, bytes) = aio::receive(&self.socket, IoBuf::new(RECEIVE)).await;
            match n? {
                0 => return Err(end_of_stream()),
                n => self.sealed = (bytes[..n].to_vec(), 0),
            }
        }
    }

    /// True if the other side has closed the connection and nothing is left.
    ///
    /// # Errors
    /// The socket's.
    pub async fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.start == self.end && self.fill().await? == 0)
    }

    /// Takes `n` bytes, which must be few.
    ///
    /// # Errors
    /// The socket's; [`io::ErrorKind::UnexpectedEof`].
    pub async fn take(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(n);
        while out.len() < n {
            if self.start == self.end && self.fill().await? == 0 {
                return Err(end_of_stream());
            }
            let some = (n - out.len()).min(self.end - self.start);
            out.extend_from_slice(&self.buf[self.start..self.start + some]);
            self.start += some;
        }
        Ok(out)
    }

    /// Takes exactly `N` bytes.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub async fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        while self.end - self.start < N {
            if self.fill().await? == 0 {
                return Err(end_of_stream());
            }
        }
        let mut out = [0; N];
        out.copy_from_slice(&self.buf[self.start..self.start + N]);
        self.start += N;
        Ok(out)
    }

    /// Fills a buffer, the bulk of it without a copy.
    ///
    /// # Errors
    /// As for [`take`](Self::take).
    pub async fn fill_buf(&mut self, mut buf: IoBuf) -> io::Result<IoBuf> {
        let mut done = (self.end - self.start).min(buf.len());
        buf[..done].copy_from_slice(&self.buf[self.start..self.start + done]);
        self.start += done;
        while done < buf.len() {
            if self.tls.is_some() {
                if self.fill().await? == 0 {
                    return Err(end_of_stream());
                }
                let n = (self.end - self.start).min(buf.len() - done);
                buf[done..done + n].copy_from_slice(&self.buf[self.start..self.start + n]);
                self.start += n;
                done += n;
            } else {
                let tail = buf.split_off(done);
                let (n, tail) = aio::receive(&self.socket, tail).await;
                buf = buf.join(tail).unwrap_or_else(|(head, _)| head);
                match n? {
                    0 => return Err(end_of_stream()),
                    n => done += n,
                }
            }
        }
        Ok(buf)
    }
}

/// The sending side. Messages go out whole and in order, several at once if they have gathered.
pub struct Writer {
    socket: Arc<Socket>,
    tls: Option<Tls>,
    queue: RefCell<VecDeque<IoData>>,
    sending: Cell<bool>,
    failed: Cell<bool>,
}

impl Writer {
    /// Sends one message, made of `parts`. It may return before all is sent if another sender is at it, which
    /// sends this one too.
    ///
    /// # Errors
    /// The socket's, now or of an earlier message.
    pub async fn send(&self, parts: impl IntoIterator<Item = IoData>) -> io::Result<()> {
        self.queue.borrow_mut().extend(parts);
        if self.failed.get() {
            return Err(end_of_stream());
        }
        if self.sending.replace(true) {
            return Ok(());
        }
        let result = self.drain().await;
        self.sending.set(false);
        if result.is_err() {
            self.failed.set(true);
            self.socket.shutdown();
        }
        result
    }

    async fn drain(&self) -> io::Result<()> {
        /// Bytes that are encrypted at once.
        const AT_ONCE: usize = 256 << 10;
        loop {
            let parts: Vec<_> = self.queue.borrow_mut().drain(..).collect();
            if parts.is_empty() {
                return Ok(());
            }
            let Some(tls) = &self.tls else {
                aio::send_all(&self.socket, parts).await?;
                continue;
            };
            for part in &parts {
                for piece in part.chunks(AT_ONCE) {
                    tls.borrow_mut().writer().write_all(piece)?;
                    flush_tls(&self.socket, tls).await?;
                }
            }
        }
    }

    /// Ends the connection without a word.
    pub fn hang_up(&self) {
        self.socket.shutdown();
    }

    /// Ends the connection.
    pub async fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.borrow_mut().send_close_notify();
            // The other side may be gone already.
            let _ = flush_tls(&self.socket, tls).await;
        }
        self.socket.shutdown();
    }
}

async fn flush_tls(socket: &Arc<Socket>, tls: &Tls) -> io::Result<()> {
    let mut bytes = Vec::new();
    while tls.borrow().wants_write() {
        tls.borrow_mut().write_tls(&mut bytes)?;
    }
    if bytes.is_empty() {
        return Ok(());
    }
    aio::send_all(socket, vec![IoData::copy_of(&bytes)]).await
}

/// Both sides of a socket.
#[must_use]
pub fn plain(socket: Socket) -> (Reader, Writer) {
    let socket = Arc::new(socket);
    let reader = Reader {
        socket: socket.clone(),
        tls: None,
        buf: IoBuf::new(RECEIVE),
        start: 0,
        end: 0,
        sealed: (Vec::new(), 0),
    };
    let writer = Writer {
        socket,
        tls: None,
        queue: RefCell::default(),
        sending: Cell::new(false),
        failed: Cell::new(false),
    };
    (reader, writer)
}

/// Puts TLS over a connection.
///
/// # Errors
/// The handshake fails; bytes came before it that should have come within.
pub async fn upgrade(reader: Reader, writer: Writer, mut tls: Connection) -> io::Result<(Reader, Writer)> {
    if reader.start != reader.end {
        return Err(io::Error::other("the other side sent more before TLS began"));
    }
    // What is written is sent at once, in pieces.
    tls.set_buffer_limit(None);
    let tls = Rc::new(RefCell::new(tls));
    let socket = writer.socket.clone();
    while tls.borrow().is_handshaking() {
        flush_tls(&socket, &tls).await?;
        if !tls.borrow().is_handshaking() {
            break;
        }
        let (n, bytes) = aio::receive(&socket, IoBuf::new(RECEIVE)).await;
        let n = n?;
        if n == 0 {
            return Err(end_of_stream());
        }
        let mut rest = &bytes[..n];
        let mut failure = None;
        while !rest.is_empty() && failure.is_none() {
            let mut tls = tls.borrow_mut();
            tls.read_tls(&mut rest)?;
            failure = tls.process_new_packets().err();
        }
        if let Some(e) = failure {
            // The other side is told why.
            let _ = flush_tls(&socket, &tls).await;
            return Err(io::Error::other(e));
        }
    }
    flush_tls(&socket, &tls).await?;
    Ok((Reader { tls: Some(tls.clone()), ..reader }, Writer { tls: Some(tls), ..writer }))
}
