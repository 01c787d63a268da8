//! What the user network looks like to the guest.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{NetError, PortForward};

/// Smallest MTU that IPv4 permits for whole datagrams (RFC 791, section 3.2).
const MIN_MTU: u16 = 576;

/// Smallest MTU that IPv6 permits (RFC 8200, section 5).
const MIN_MTU6: u16 = 1280;
/// Longest name that a DHCP option or a DNS label sequence holds.
const MAX_NAME: usize = 253;

/// How a [`UserNet`](crate::UserNet) is laid out. The default is the network that guests know from
/// QEMU: 10.0.2.0/24, gateway 10.0.2.2, name server 10.0.2.3, first lease 10.0.2.15, and fec0::/64.
#[derive(Clone, Debug)]
pub struct UserNetConfig {
    /// The network's address.
    pub network: Ipv4Addr,
    /// Bits of `network` that all its addresses share: 8 to 28.
    pub prefix_len: u8,
    /// The gateway's address, which also stands for the host's loopback.
    pub gateway: Ipv4Addr,
    /// The name server's address.
    pub dns: Ipv4Addr,
    /// The first address that DHCP leases; the 16 from it on are leased.
    pub first_lease: Ipv4Addr,
    /// The IPv6 network, of which the last 64 bits are zero; `None` is a network without IPv6. The gateway
    /// is number 2 in it and the name server number 3.
    pub network6: Option<Ipv6Addr>,
    /// Largest IP packet on the network, in bytes.
    pub mtu: u16,
    /// The host name that DHCP gives to the guest.
    pub hostname: Option<String>,
    /// Domains to search for names without a dot; `None` takes the host's.
    pub search_domains: Option<Vec<String>>,
    /// Servers that answer the guest's name queries; `None` takes those of the host's resolv.conf and
    /// follows its changes.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<PortForward>,
    /// Whether the gateway's address reaches servers on the host's loopback.
    pub host_loopback: bool,
    /// Whether the guest reaches the world outside, name servers included. Without this and
    /// `host_loopback`, only forwarded ports connect it to anything.
    pub outside: bool,
}

impl Default for UserNetConfig {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 0, 2, 0),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            first_lease: Ipv4Addr::new(10, 0, 2, 15),
            network6: Some(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0)),
            mtu: 1500,
            hostname: None,
            search_domains: None,
            resolvers: None,
            forwards: Vec::new(),
            host_loopback: true,
            outside: true,
        }
    }
}

/// Addresses that DHCP leases, counted from the first.
pub(super) const LEASES: u32 = 16;

impl UserNetConfig {
    /// The default layout in another network: gateway, name server and first lease keep their numbers
    /// (2, 3 and 15) within it.
    pub fn in_network(network: Ipv4Addr, prefix_len: u8) -> Self {
        let host = |number| Ipv4Addr::from_bits(network.to_bits().wrapping_add(number));
        Self {
            network,
            prefix_len,
            gateway: host(2),
            dns: host(3),
            // The smallest network has 16 addresses, of which 15 is the broadcast address.
            first_lease: host(if prefix_len > 27 { 4 } else { 15 }),
            ..Self::default()
        }
    }

    pub(super) fn validate(&self) -> Result<(), NetError> {
        let fail = |message: String| Err(NetError::Config(message));
        if !(8..=28).contains(&self.prefix_len) {
            return fail(format!("prefix length {} is not within 8 to 28", self.prefix_len));
        }
        let mask = u32::MAX << (32 - u32::from(self.prefix_len));
        if self.network.to_bits() & !mask != 0 {
            return fail(format!("{}/{} has host bits set", self.network, self.prefix_len));
        }
        if self.network.is_loopback() || self.network.is_multicast() || self.network.octets()[0] == 0 {
            return fail(format!("{} cannot be a guest's network", self.network));
        }
        let named = [("gateway", self.gateway), ("name server", self.dns), ("first lease", self.first_lease)];
        for (index, (name, addr)) in named.iter().enumerate() {
            let host_bits = addr.to_bits() & !mask;
            if addr.to_bits() & mask != self.network.to_bits() || host_bits == 0 || host_bits == !mask {
                let network = format!("{}/{}", self.network, self.prefix_len);
                return fail(format!("the {name}'s address {addr} is no host address of {network}"));
            }
            if let Some((other, _)) = named[..index].iter().find(|(_, earlier)| earlier == addr) {
                return fail(format!("{addr} is the address of both the {other} and the {name}"));
            }
        }
        if let Some(network) = self.network6
            && (network.to_bits() as u64 != 0
                || network.is_unspecified()
                || network.is_multicast()
                || network.is_unicast_link_local())
        {
            return fail(format!("{network} cannot be a guest's /64 network"));
        }
        if self.network6.is_some() && self.mtu < MIN_MTU6 {
            return fail(format!("an MTU of {} is below {MIN_MTU6}, IPv6's smallest", self.mtu));
        }
        if self.mtu < MIN_MTU {
            return fail(format!("an MTU of {} is below {MIN_MTU}, IPv4's smallest", self.mtu));
        }
        for name in self.hostname.iter().chain(self.search_domains.iter().flatten()) {
            let valid = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            };
            if name.len() > MAX_NAME || !name.split('.').all(valid) {
                return fail(format!("'{name}' is no host or domain name"));
            }
        }
        if self.resolvers.as_ref().is_some_and(Vec::is_empty) {
            return fail("the list of name servers is empty".into());
        }
        for forward in &self.forwards {
            if let Some(addr) = forward.guest_addr
                && (addr.to_bits() & mask != self.network.to_bits()
                    || [self.gateway, self.dns].contains(&addr))
            {
                return fail(format!("the port forward {forward} does not lead to a guest's address"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        UserNetConfig::default().validate().unwrap();
        let small = UserNetConfig::in_network(Ipv4Addr::new(192, 168, 7, 16), 28);
        small.validate().unwrap();
        assert_eq!(small.gateway, Ipv4Addr::new(192, 168, 7, 18));
    }

    #[test]
    fn contradictions_are_named() {
        let base = UserNetConfig::default;
        let cases = [
            (UserNetConfig { prefix_len: 31, ..base() }, "prefix length 31"),
            (UserNetConfig { network: Ipv4Addr::new(10, 0, 2, 1), ..base() }, "host bits"),
            (UserNetConfig { gateway: Ipv4Addr::new(10, 0, 3, 2), ..base() }, "gateway's address 10.0.3.2"),
            (UserNetConfig { dns: Ipv4Addr::new(10, 0, 2, 255), ..base() }, "no host address"),
            (UserNetConfig { dns: Ipv4Addr::new(10, 0, 2, 2), ..base() }, "both the gateway and"),
            (UserNetConfig { mtu: 1000, ..base() }, "MTU of 1000 is below 1280"),
            (UserNetConfig { mtu: 500, network6: None, ..base() }, "MTU of 500 is below 576"),
            (UserNetConfig { network6: Some(Ipv6Addr::LOCALHOST), ..base() }, "::1 cannot be"),
            (UserNetConfig { network6: Some("fe80::".parse().unwrap()), ..base() }, "fe80:: cannot be"),
            (UserNetConfig { hostname: Some("a b".into()), ..base() }, "'a b'"),
            (UserNetConfig { resolvers: Some(vec![]), ..base() }, "is empty"),
            (
                UserNetConfig { forwards: vec!["1:10.0.3.9:2".parse().unwrap()], ..base() },
                "does not lead to a guest",
            ),
        ];
        for (config, culprit) in cases {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(culprit), "{error}");
        }
    }
}
