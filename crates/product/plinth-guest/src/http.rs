//! The HTTP client: blocking, with time limits, retries and a bound on what a server may send.

use std::io::{Read, Write};
use std::time::Duration;

use crate::error::{GuestError, Result};

/// Attempts for a file that nothing can stand in for.
pub const PATIENT: u32 = 4;
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const RESPONSE_LIMIT: Duration = Duration::from_secs(30);
/// The slowest transfer that is still worth waiting for.
const SLOWEST_BYTES_PER_SECOND: u64 = 20_000;

/// Fetches files.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
}

/// Where the bytes of a download go. `restart` drops what an attempt that failed has written.
pub trait Sink {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// A new attempt begins.
    fn restart(&mut self) -> Result<()>;
}

impl Sink for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|e| GuestError::Invalid(e.to_string()))
    }

    fn restart(&mut self) -> Result<()> {
        self.clear();
        Ok(())
    }
}

/// What went wrong in one attempt, and whether another one could help.
enum Failure {
    Again(GuestError),
    Final(GuestError),
}

impl Client {
    /// `proxy` is the address of a proxy for every request.
    pub fn new(proxy: Option<&str>) -> Result<Self> {
        let proxy = proxy
            .map(|uri| {
                ureq::Proxy::new(uri)
                    .map_err(|e| GuestError::Invalid(format!("the proxy \"{uri}\" cannot be used: {e}")))
            })
            .transpose()?;
        let tls = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build();
        let agent = ureq::Agent::config_builder()
            .proxy(proxy)
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(RESPONSE_LIMIT))
            .user_agent(concat!("plinth/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self { agent })
    }

    /// Fetches `url` of at most `limit` bytes into `sink`, with so many attempts if the network fails.
    pub fn get(&self, url: &str, limit: u64, attempts: u32, sink: &mut dyn Sink) -> Result<()> {
        let mut wait = Duration::from_millis(300);
        let mut attempt = 1;
        loop {
            sink.restart()?;
            match self.attempt(url, limit, sink) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error)) if attempt >= attempts => return Err(error),
                Err(Failure::Again(_)) => {}
            }
            std::thread::sleep(wait);
            wait *= 3;
            attempt += 1;
        }
    }

    fn attempt(&self, url: &str, limit: u64, sink: &mut dyn Sink) -> Result<(), Failure> {
        let network = |reason: String| GuestError::Network { url: url.to_owned(), reason };
        let body_limit = Duration::from_secs(60 + limit / SLOWEST_BYTES_PER_SECOND);
        let mut response =
            self.agent.get(url).config().timeout_recv_body(Some(body_limit)).build().call().map_err(|e| {
                match e {
                    // Neither comes right by itself; a machine without a network should not wait.
                    ureq::Error::HostNotFound | ureq::Error::BadUri(_) => {
                        Failure::Final(network(e.to_string()))
                    }
                    e => Failure::Again(network(e.to_string())),
                }
            })?;
        match response.status().as_u16() {
            200 => {}
            status @ (408 | 429 | 500..) => {
                return Err(Failure::Again(GuestError::Status { url: url.to_owned(), status }));
            }
            status => return Err(Failure::Final(GuestError::Status { url: url.to_owned(), status })),
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 64 * 1024];
        let mut total = 0;
        loop {
            let n = body.read(&mut buffer).map_err(|e| Failure::Again(network(e.to_string())))?;
            if n == 0 {
                return Ok(());
            }
            total += n as u64;
            if total > limit {
                return Err(Failure::Final(GuestError::malformed(url, "it is larger than it should be")));
            }
            sink.write(&buffer[..n]).map_err(Failure::Final)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    /// Answers one connection after the other with the texts.
    fn server(answers: Vec<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|l| !l.is_empty())) {}
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        url
    }

    fn get(answers: Vec<&'static str>, limit: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        Client::new(None)?.get(&server(answers), limit, PATIENT, &mut out)?;
        Ok(out)
    }

    #[test]
    fn fetches_and_retries() {
        let busy = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let short = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhe";
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
        assert_eq!(get(vec![busy, short, good], 10).unwrap(), b"hello");
    }

    #[test]
    fn refusals() {
        let missing = "HTTP/1.1 404 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert!(matches!(get(vec![missing], 10), Err(GuestError::Status { status: 404, .. })));
        let good = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
        assert!(matches!(get(vec![good], 4), Err(GuestError::Malformed { .. })));
    }
}
