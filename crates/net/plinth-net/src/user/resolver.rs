//! The host's name servers, as resolv.conf(5) lists them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const PATH: &str = "/etc/resolv.conf";
const DNS_PORT: u16 = 53;
/// resolv.conf(5) names this bound as `MAXNS`.
const MAX_SERVERS: usize = 3;
/// How long one reading of the file is trusted: hosts move between networks.
const FRESH: Duration = Duration::from_secs(5);

#[derive(Debug, Default, PartialEq, Eq)]
struct ResolvConf {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
}

fn parse(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") if conf.servers.len() < MAX_SERVERS => {
                // A scoped link-local address does not parse and is skipped.
                if let Some(Ok(addr)) = words.next().map(str::parse::<IpAddr>) {
                    conf.servers.push(SocketAddr::new(addr, DNS_PORT));
                }
            }
            Some("search" | "domain") => conf.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    conf
}

pub(super) struct Resolvers {
    fixed: Option<Vec<SocketAddr>>,
    conf: ResolvConf,
    read_at: Option<Instant>,
}

impl Resolvers {
    pub(super) fn new(fixed: Option<Vec<SocketAddr>>) -> Self {
        Self { fixed, conf: ResolvConf::default(), read_at: None }
    }

    fn refresh(&mut self, now: Instant) {
        if self.read_at.is_some_and(|at| now.saturating_duration_since(at) < FRESH) {
            return;
        }
        self.read_at = Some(now);
        self.conf = std::fs::read_to_string(PATH).map(|text| parse(&text)).unwrap_or_default();
        if self.conf.servers.is_empty() {
            // resolv.conf(5): "the default is to use the name server on the local machine".
            self.conf.servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT));
        }
    }

    /// The server to ask at the given attempt, counted from 0; attempts go around the list.
    pub(super) fn server(&mut self, attempt: usize, now: Instant) -> Option<SocketAddr> {
        if self.fixed.is_none() {
            self.refresh(now);
        }
        let servers = self.fixed.as_ref().unwrap_or(&self.conf.servers);
        servers.get(attempt.checked_rem(servers.len())?).copied()
    }

    /// The domains that the host searches.
    pub(super) fn search(&mut self, now: Instant) -> &[String] {
        self.refresh(now);
        &self.conf.search
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let conf = parse(
            "# comment\n; another\ndomain old.example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n\
             nameserver ::1 trailing\nsearch a.example  b.example\nnameserver\noptions edns0\n",
        );
        assert_eq!(conf.servers, ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(parse("").servers, []);
    }

    #[test]
    fn attempts_go_around() {
        let servers: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()];
        let mut resolvers = Resolvers::new(Some(servers.clone()));
        let now = Instant::now();
        assert_eq!(resolvers.server(3, now), Some(servers[1]));
        assert_eq!(Resolvers::new(Some(vec![])).server(0, now), None);
    }
}
