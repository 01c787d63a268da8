//! Port forwards as users write them: `2222:22`, `127.0.0.1:8080:80/tcp`, `[::1]:5353:10.0.2.15:53/udp`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The transport that a port forward carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host that leads to a port of the guest.
///
/// Written `[HOST_ADDRESS:]HOST_PORT:[GUEST_ADDRESS:]GUEST_PORT[/tcp|/udp]`. Without a host address the
/// port is open to programs on the host only (127.0.0.1); `0.0.0.0:` opens it to the host's network.
/// IPv6 addresses stand in brackets. Host port 0 lets the host choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortForward {
    /// The transport, TCP when not given.
    pub transport: Transport,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's address; `None` is the address of the first DHCP lease.
    pub guest_addr: Option<Ipv4Addr>,
    /// The guest's port, never 0.
    pub guest_port: u16,
}

/// Why a port forward could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "port forward '{input}': {reason}; write [HOST_ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp], such as 2222:22"
)]
pub struct ForwardParseError {
    input: String,
    reason: String,
}

/// Splits at colons that are not within brackets; the brackets themselves are dropped.
fn split_fields(text: &str) -> Result<Vec<&str>, String> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, tail) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (addr, tail) = inner.split_once(']').ok_or("a '[' without its ']'")?;
                match tail.strip_prefix(':') {
                    Some(tail) => (addr, Some(tail)),
                    None if tail.is_empty() => (addr, None),
                    None => return Err(format!("'{tail}' after ']'")),
                }
            }
            None => match rest.split_once(':') {
                Some((field, tail)) => (field, Some(tail)),
                None => (rest, None),
            },
        };
        fields.push(field);
        match tail {
            Some(tail) => rest = tail,
            None => return Ok(fields),
        }
    }
}

fn parse_port(text: &str, whose: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("'{text}' is no {whose} port (a number up to 65535)"))
}

fn parse_addr<A: FromStr>(text: &str, whose: &str, family: &str) -> Result<A, String> {
    text.parse().map_err(|_| format!("'{text}' is no {whose} address ({family})"))
}

fn parse(text: &str) -> Result<PortForward, String> {
    let (ports, transport) = match text.rsplit_once('/') {
        None => (text, Transport::Tcp),
        Some((ports, "tcp")) => (ports, Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some((_, other)) => return Err(format!("unknown transport '{other}'")),
    };
    let fields = split_fields(ports)?;
    let host_addr = |text| parse_addr::<IpAddr>(text, "host", "IPv4, or IPv6 in brackets");
    let guest_addr = |text| parse_addr::<Ipv4Addr>(text, "guest", "IPv4");
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (host_ip, host_port, guest_ip, guest_port) = match fields[..] {
        [host_port, guest_port] => (localhost, host_port, None, guest_port),
        // `a:b:c` has one address; a port never has a dot, and an IPv6 address always has a colon.
        [host_port, guest_ip, guest_port] if guest_ip.contains('.') => {
            (localhost, host_port, Some(guest_addr(guest_ip)?), guest_port)
        }
        [host_ip, host_port, guest_port] => (host_addr(host_ip)?, host_port, None, guest_port),
        [host_ip, host_port, guest_ip, guest_port] => {
            (host_addr(host_ip)?, host_port, Some(guest_addr(guest_ip)?), guest_port)
        }
        [_] => return Err("the guest's port is missing".into()),
        _ => return Err("too many colons".into()),
    };
    let host = SocketAddr::new(host_ip, parse_port(host_port, "host")?);
    let guest_port = match parse_port(guest_port, "guest")? {
        0 => return Err("the guest's port cannot be 0".into()),
        port => port,
    };
    Ok(PortForward { transport, host, guest_addr: guest_ip, guest_port })
}

impl FromStr for PortForward {
    type Err = ForwardParseError;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        parse(input).map_err(|reason| ForwardParseError { input: input.into(), reason })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.host)?;
        if let Some(addr) = self.guest_addr {
            write!(f, "{addr}:")?;
        }
        write!(f, "{}/{}", self.guest_port, self.transport)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(text: &str) -> PortForward {
        text.parse().unwrap()
    }

    #[test]
    fn forms() {
        let ssh = forward("2222:22");
        assert_eq!(ssh.host, "127.0.0.1:2222".parse().unwrap());
        assert_eq!((ssh.guest_addr, ssh.guest_port, ssh.transport), (None, 22, Transport::Tcp));

        let web = forward("0.0.0.0:8080:80/tcp");
        assert_eq!((web.host, web.guest_port), ("0.0.0.0:8080".parse().unwrap(), 80));

        let dns = forward("[::1]:5353:10.0.2.16:53/udp");
        assert_eq!(dns.host, "[::1]:5353".parse().unwrap());
        assert_eq!((dns.guest_addr, dns.guest_port), (Some(Ipv4Addr::new(10, 0, 2, 16)), 53));
        assert_eq!(dns.transport, Transport::Udp);

        let other = forward("2222:10.0.2.16:22");
        assert_eq!((other.host.port(), other.guest_addr), (2222, Some(Ipv4Addr::new(10, 0, 2, 16))));
    }

    #[test]
    fn display_parses_back() {
        for text in ["2222:22", "[::1]:1:2/udp", "0.0.0.0:0:10.0.2.15:9"] {
            assert_eq!(forward(&forward(text).to_string()), forward(text));
        }
    }

    #[test]
    fn errors_name_the_culprit() {
        for (text, culprit) in [
            ("", "guest's port is missing"),
            ("22", "guest's port is missing"),
            ("70000:22", "'70000' is no host port"),
            ("22:http", "'http' is no guest port"),
            ("22:0", "cannot be 0"),
            ("22:23/sctp", "unknown transport 'sctp'"),
            ("localhost:22:23", "'localhost' is no host address"),
            ("[::1:22:23", "without its ']'"),
            ("[::1]22:23", "after ']'"),
            ("1:2:3:4:5", "too many colons"),
            ("127.0.0.1:1:::2", "too many colons"),
        ] {
            let error = text.parse::<PortForward>().unwrap_err().to_string();
            assert!(error.contains(culprit), "{text}: {error}");
        }
    }
}
