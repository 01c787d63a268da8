//! A file on a web server, for reading.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use async_lock::Semaphore;
use plinth_host::aio;
use ureq::Agent;
use ureq::http::{HeaderMap, StatusCode, header};

use super::{Extent, Io, IoBuf, NodeInfo, ReadNode, check_range};
use crate::{Error, ErrorKind};

/// Requests to the server at once.
const IN_FLIGHT: usize = 8;
/// How often a request is sent before its failure counts.
const TRIES: u32 = 3;
/// Bytes after which a request that was cut short does not count.
const ENOUGH: usize = 4 << 10;

/// A file that is read in ranges over HTTP or HTTPS. It must stay the same as long as it is open, which is checked
/// if the server tells versions of files (`ETag`).
///
/// Every read is a request: put an [`OverlayNode`](super::OverlayNode) that keeps reads over it.
pub struct HttpNode {
    info: NodeInfo,
    url: Arc<str>,
    agent: Agent,
    size: u64,
    /// The version that the server told.
    etag: Option<String>,
    slots: Semaphore,
}

fn failed(url: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("cannot read '{url}'"), why)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// First byte, last byte and size of `bytes FIRST-LAST/SIZE` (RFC 9110, section 14.4).
fn content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, size.parse().ok()?))
}

impl HttpNode {
    /// True if a text is an address that this node can open.
    #[must_use]
    pub fn is_address(text: &str) -> bool {
        text.starts_with("http://") || text.starts_with("https://")
    }

    /// Asks the server about a file.
    ///
    /// # Errors
    /// It cannot be reached, does not have the file, or cannot send parts of it.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let config = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(Duration::from_secs(300)))
            .http_status_as_error(false);
        let agent = Agent::new_with_config(config.build());
        let url: Arc<str> = url.into();
        let (a, u) = (agent.clone(), url.clone());
        // One byte rather than the headers alone: some servers answer only this truthfully.
        let answer = aio::blocking(move || get(&a, &u, 0, 1, None)).await;
        let (headers, status, _) = answer.map_err(|e| failed(&url, e))?;
        let size = match status {
            StatusCode::PARTIAL_CONTENT => {
                text(&headers, header::CONTENT_RANGE).and_then(content_range).map(|r| r.2)
            }
            // An empty file has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE => Some(0),
            StatusCode::OK => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("cannot read '{url}'"),
                    "the server cannot send parts of it: download it whole",
                ));
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("cannot read '{url}'"),
                    format!("the server says {status}"),
                ));
            }
            _ => return Err(failed(&url, format!("the server says {status}"))),
        };
        let size = size
            .filter(|&s| s <= i64::MAX as u64)
            .ok_or_else(|| failed(&url, "the server does not say how large it is"))?;
        // Weak ones do not promise the same bytes.
        let etag = text(&headers, header::ETAG).filter(|e| !e.starts_with("W/")).map(str::to_owned);
        let info = NodeInfo { name: url.to_string(), read_only: true, block: 1 };
        Ok(Self { info, url, agent, size, etag, slots: Semaphore::new(IN_FLIGHT) })
    }

    async fn fetch(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Error> {
        let _slot = self.slots.acquire().await;
        let mut tries = 0;
        let mut done = 0;
        while done < buf.len() {
            let (agent, url, etag, at) = (self.agent.clone(), self.url.clone(), self.etag.clone(), done);
            let (n, result, back) = aio::blocking(move || {
                let (n, result) =
                    read_range(&agent, &url, offset + at as u64, &mut buf[at..], etag.as_deref());
                (n, result, buf)
            })
            .await;
            buf = back;
            // A connection that breaks is taken up where it broke.
            // One that breaks again and again after a few bytes would take forever.
            tries = if n >= ENOUGH { 0 } else { tries + 1 };
            done += n;
            match result {
                Ok(()) => break,
                Err(why) if tries == TRIES => {
                    return Err(failed(&self.url, format!("{} bytes at {offset}: {why}", buf.len())));
                }
                Err(_) => aio::sleep(Duration::from_millis(100 << tries)).await,
            }
        }
        Ok(buf)
    }
}

type Answer = (HeaderMap, StatusCode, ureq::Body);

fn get(agent: &Agent, url: &str, offset: u64, len: u64, etag: Option<&str>) -> Result<Answer, String> {
    let mut request = agent.get(url).header(header::RANGE, format!("bytes={offset}-{}", offset + len - 1));
    if let Some(etag) = etag {
        request = request.header(header::IF_MATCH, etag);
    }
    let response = request.call().map_err(|e| e.to_string())?;
    let (parts, body) = response.into_parts();
    Ok((parts.headers, parts.status, body))
}

/// How many bytes came, and what went wrong if these are not all.
fn read_range(
    agent: &Agent,
    url: &str,
    offset: u64,
    buf: &mut [u8],
    etag: Option<&str>,
) -> (usize, Result<(), String>) {
    let (headers, status, mut body) = match get(agent, url, offset, buf.len() as u64, etag) {
        Ok(answer) => answer,
        Err(e) => return (0, Err(e)),
    };
    if status == StatusCode::PRECONDITION_FAILED {
        return (0, Err("the file was changed on the server".to_owned()));
    }
    let range = text(&headers, header::CONTENT_RANGE).and_then(content_range);
    let right =
        range.is_some_and(|(first, last, _)| first == offset && last == offset + buf.len() as u64 - 1);
    if status != StatusCode::PARTIAL_CONTENT {
        return (0, Err(format!("the server says {status}")));
    }
    if !right {
        let what = text(&headers, header::CONTENT_RANGE).unwrap_or("no range");
        return (0, Err(format!("the server sends something else ({what})")));
    }
    let mut reader = body.as_reader();
    let mut done = 0;
    while done < buf.len() {
        match reader.read(&mut buf[done..]) {
            Ok(0) => return (done, Err("the server sent less than it said".to_owned())),
            Ok(n) => done += n,
            Err(e) => return (done, Err(e.to_string())),
        }
    }
    (done, Ok(()))
}

impl ReadNode for HttpNode {
    fn info(&self) -> &NodeInfo {
        &self.info
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Io<'_, IoBuf> {
        Box::pin(async move {
            check_range(self, "read", offset, buf.len() as u64)?;
            if buf.is_empty() { Ok(buf) } else { self.fetch(offset, buf).await }
        })
    }

    fn status(&self, offset: u64, len: u64) -> Io<'_, Extent> {
        Box::pin(async move {
            check_range(self, "look at", offset, len)?;
            Ok(Extent::stored(len, Some(offset)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::rc::Rc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use plinth_host::aio::block_on;

    use super::*;
    use crate::graph::Node;
    use crate::graph::{Keep, MemoryNode, OverlayNode};

    /// Answers requests on one connection from `data`.
    fn answer(socket: TcpStream, data: &[u8], requests: &AtomicUsize) {
        let mut input = BufReader::new(socket.try_clone().unwrap());
        let mut output = socket;
        loop {
            let (mut range, mut line, mut lines) = (None, String::new(), 0);
            while input.read_line(&mut line).unwrap_or(0) > 0 && line != "\r\n" {
                if let Some(r) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    let (a, b) = r.trim().split_once('-').unwrap();
                    range = Some((a.parse::<usize>().unwrap(), b.parse::<usize>().unwrap()));
                }
                lines += 1;
                line.clear();
            }
            if lines == 0 {
                return;
            }
            let (first, last) = range.unwrap();
            // Every third answer is cut short.
            let n = requests.fetch_add(1, Ordering::Relaxed);
            let part = &data[first..=last];
            let sent = if n % 3 == 2 { &part[..part.len() / 2] } else { part };
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nETag: \"1\"\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n",
                part.len(),
                data.len()
            );
            output.write_all(head.as_bytes()).unwrap();
            output.write_all(sent).unwrap();
            if sent.len() != part.len() {
                return;
            }
        }
    }

    #[test]
    fn ranges_are_read_again_when_they_come_short_and_only_once_through_a_cache() {
        let data: Arc<[u8]> = (0..1_000_000u32).map(|n| (n * 7) as u8).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/disk.raw", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let (served, counted) = (data.clone(), requests.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (data, requests) = (served.clone(), counted.clone());
                std::thread::spawn(move || answer(socket, &data, &requests));
            }
        });
        block_on(async {
            let node = HttpNode::open(&url).await.unwrap();
            assert_eq!(Node::size(&node), 1_000_000);
            let store = Rc::new(MemoryNode::new("cache"));
            let cache = OverlayNode::new(Rc::new(node), store, Keep::Reads, 64 << 10).unwrap();
            for _ in 0..2 {
                let reads = (0..100).map(|n| cache.read(n * 9_000, IoBuf::new(5_000)));
                for (n, read) in join_all(reads).await.into_iter().enumerate() {
                    assert_eq!(&*read.unwrap(), &data[n * 9_000..][..5_000]);
                }
            }
            // 14 clusters, and some in parts.
            assert!((15..60).contains(&requests.load(Ordering::Relaxed)), "{requests:?}");
        });
    }

    #[test]
    fn a_server_that_sends_a_few_bytes_each_time_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/disk.raw", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for mut socket in listener.incoming().map_while(Result::ok) {
                let mut input = BufReader::new(socket.try_clone().unwrap());
                let mut line = String::new();
                let mut range = String::new();
                while input.read_line(&mut line).unwrap_or(0) > 0 && line != "\r\n" {
                    if let Some(r) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                        r.trim().clone_into(&mut range);
                    }
                    line.clear();
                }
                let head = "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: 1\r\n";
                let _ = write!(socket, "{head}Content-Range: bytes {range}/1000000\r\n\r\nx");
            }
        });
        block_on(async {
            let node = HttpNode::open(&url).await.unwrap();
            let e = Node::read(&node, 0, IoBuf::new(500_000)).await.unwrap_err();
            assert!(e.to_string().contains("500000 bytes at 0"), "{e}");
        });
    }

    #[test]
    fn ranges_of_answers() {
        assert_eq!(content_range("bytes 0-0/1000"), Some((0, 0, 1000)));
        for bad in ["bytes 0-0/*", "0-0/1", "bytes 1/2", ""] {
            assert_eq!(content_range(bad), None);
        }
    }
}
