//! The guest's network segment: addresses, where packets lead, and who was seen on it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::EthernetAddress;

use super::config::UserNetConfig;

const DNS_PORT: u16 = 53;
/// Guests behind one card whose hardware addresses are remembered (a guest may bridge its own guests).
const MAX_NEIGHBORS: usize = 256;

/// The gateway's link-local address, from which alone a router may advertise itself (RFC 4861, section 4.2).
pub(super) const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// The IPv6 side of the segment.
#[derive(Clone, Copy)]
pub(super) struct Lan6 {
    pub(super) prefix: Ipv6Addr,
    pub(super) gateway: Ipv6Addr,
    pub(super) dns: Ipv6Addr,
}

impl Lan6 {
    fn new(prefix: Ipv6Addr) -> Self {
        let host = |number: u128| Ipv6Addr::from_bits(prefix.to_bits() | number);
        Self { prefix, gateway: host(2), dns: host(3) }
    }

    fn contains(&self, addr: Ipv6Addr) -> bool {
        addr.to_bits() >> 64 == self.prefix.to_bits() >> 64
    }
}

/// Where a packet of the guest leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To this host and port.
    Host(SocketAddr),
    /// To whichever name server the host uses.
    Resolver,
    /// Nowhere, and the guest may know.
    Unreachable,
    /// Nowhere; such a packet is not answered (RFC 1122, section 3.2.2).
    Discard,
}

pub(super) struct Lan {
    network: u32,
    mask: u32,
    pub(super) gateway: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
    pub(super) v6: Option<Lan6>,
    pub(super) default_guest: Ipv4Addr,
    /// The hardware address of gateway and name server.
    pub(super) mac: EthernetAddress,
    pub(super) mtu: u16,
    host_loopback: bool,
    /// The host's own addresses that the gateway's two stand for.
    pub(super) host_addr: IpAddr,
    pub(super) host_addr6: IpAddr,
    pub(super) outside: bool,
    neighbors: HashMap<IpAddr, EthernetAddress>,
    /// The neighbors in the order of their arrival, so that the oldest makes room.
    arrivals: VecDeque<IpAddr>,
}

impl Lan {
    pub(super) fn new(config: &UserNetConfig) -> Self {
        let [a, b, c, d] = config.gateway.octets();
        Self {
            network: config.network.to_bits(),
            mask: u32::MAX << (32 - u32::from(config.prefix_len)),
            gateway: config.gateway,
            dns: config.dns,
            v6: config.network6.map(Lan6::new),
            default_guest: config.first_lease,
            // Locally administered and unicast; the address makes it unique on the segment.
            mac: EthernetAddress([0x52, 0x55, a, b, c, d]),
            mtu: config.mtu,
            host_loopback: config.host_loopback,
            host_addr: Ipv4Addr::LOCALHOST.into(),
            host_addr6: Ipv6Addr::LOCALHOST.into(),
            outside: config.outside,
            neighbors: HashMap::new(),
            arrivals: VecDeque::new(),
        }
    }

    pub(super) fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask)
    }

    pub(super) fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | !self.mask)
    }

    fn contains(&self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & self.mask == self.network
    }

    /// Whether the network itself answers at this address.
    pub(super) fn is_ours(&self, addr: impl Into<IpAddr>) -> bool {
        match (addr.into(), &self.v6) {
            (IpAddr::V4(addr), _) => addr == self.gateway || addr == self.dns,
            (IpAddr::V6(addr), Some(v6)) => addr == v6.gateway || addr == v6.dns || addr == ROUTER,
            (IpAddr::V6(_), None) => false,
        }
    }

    /// Whether a guest may send from this address.
    pub(super) fn is_guest(&self, addr: impl Into<IpAddr>) -> bool {
        let addr = addr.into();
        let on_segment = match (addr, &self.v6) {
            (IpAddr::V4(addr), _) => {
                let host = addr.to_bits() & !self.mask;
                self.contains(addr) && host != 0 && host != !self.mask
            }
            (IpAddr::V6(addr), Some(v6)) => v6.contains(addr) || addr.is_unicast_link_local(),
            (IpAddr::V6(_), None) => false,
        };
        on_segment && !self.is_ours(addr)
    }

    pub(super) fn route(&self, dst: SocketAddr) -> Route {
        if dst.port() == 0 {
            return Route::Discard;
        }
        match dst.ip() {
            IpAddr::V4(addr) => self.route4(addr, dst),
            IpAddr::V6(addr) => self.route6(addr, dst),
        }
    }

    fn route4(&self, addr: Ipv4Addr, dst: SocketAddr) -> Route {
        let first = addr.octets()[0];
        if first == 0 || first >= 224 || addr.is_loopback() || addr == self.broadcast() {
            // Besides what may not be on a wire at all, Linux takes 0.0.0.0 for its own loopback.
            Route::Discard
        } else if addr == self.gateway && self.host_loopback {
            Route::Host(SocketAddr::new(self.host_addr, dst.port()))
        } else if addr == self.dns && dst.port() == DNS_PORT && self.outside {
            Route::Resolver
        } else if self.contains(addr) || !self.outside {
            Route::Unreachable
        } else {
            Route::Host(dst)
        }
    }

    fn route6(&self, addr: Ipv6Addr, dst: SocketAddr) -> Route {
        // Addresses that hold one of IPv4 (RFC 4291, section 2.5.5), among them the unspecified and the
        // loopback address, could lead around the rules for IPv4.
        let holds_ipv4 = addr.segments()[..5] == [0; 5];
        match &self.v6 {
            Some(v6) if !holds_ipv4 && !addr.is_multicast() && !addr.is_unicast_link_local() => {
                if addr == v6.gateway && self.host_loopback {
                    Route::Host(SocketAddr::new(self.host_addr6, dst.port()))
                } else if addr == v6.dns && dst.port() == DNS_PORT && self.outside {
                    Route::Resolver
                } else if v6.contains(addr) || !self.outside {
                    Route::Unreachable
                } else {
                    Route::Host(dst)
                }
            }
            _ => Route::Discard,
        }
    }

    /// The source address that the guest sees for a peer of the host: the peer's own, unless that would
    /// not find its way back from the guest.
    pub(super) fn visible_peer(&self, peer: SocketAddr) -> SocketAddr {
        let back = match peer.ip().to_canonical() {
            IpAddr::V4(addr) => SocketAddr::new(addr.into(), peer.port()),
            IpAddr::V6(_) => return SocketAddr::new(self.gateway.into(), peer.port()),
        };
        match self.route(back) {
            Route::Host(host) if host == back => back,
            _ => SocketAddr::new(self.gateway.into(), peer.port()),
        }
    }

    /// Takes note that `addr` is at `mac`. True if the guest at `addr` was unknown or has moved.
    pub(super) fn learn(&mut self, addr: impl Into<IpAddr>, mac: EthernetAddress) -> bool {
        let addr = addr.into();
        if !self.is_guest(addr) || !mac.is_unicast() || mac == self.mac {
            return false;
        }
        match self.neighbors.insert(addr, mac) {
            Some(known) => known != mac,
            None => {
                if self.arrivals.len() == MAX_NEIGHBORS
                    && let Some(oldest) = self.arrivals.pop_front()
                {
                    self.neighbors.remove(&oldest);
                }
                self.arrivals.push_back(addr);
                true
            }
        }
    }

    pub(super) fn neighbor(&self, addr: IpAddr) -> Option<EthernetAddress> {
        self.neighbors.get(&addr).copied()
    }

    pub(super) fn forget_neighbors(&mut self) {
        self.neighbors.clear();
        self.arrivals.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn routes() {
        let lan = Lan::new(&UserNetConfig::default());
        assert_eq!(lan.route(addr("10.0.2.2:80")), Route::Host(addr("127.0.0.1:80")));
        assert_eq!(lan.route(addr("10.0.2.3:53")), Route::Resolver);
        assert_eq!(lan.route(addr("10.0.2.3:54")), Route::Unreachable);
        assert_eq!(lan.route(addr("10.0.2.99:54")), Route::Unreachable);
        assert_eq!(lan.route(addr("192.0.2.1:54")), Route::Host(addr("192.0.2.1:54")));
        for martian in
            ["127.0.0.1:1", "0.0.0.0:1", "10.0.2.255:1", "224.0.0.1:1", "192.0.2.1:0", "255.255.255.255:9"]
        {
            assert_eq!(lan.route(addr(martian)), Route::Discard, "{martian}");
        }
        assert_eq!(lan.route(addr("[fec0::2]:80")), Route::Host(addr("[::1]:80")));
        assert_eq!(lan.route(addr("[fec0::3]:53")), Route::Resolver);
        assert_eq!(lan.route(addr("[fec0::4]:53")), Route::Unreachable);
        assert_eq!(lan.route(addr("[2001:db8::1]:9")), Route::Host(addr("[2001:db8::1]:9")));
        for martian in
            ["[::1]:1", "[::]:1", "[::ffff:127.0.0.1]:1", "[::127.0.0.1]:1", "[ff02::1]:1", "[fe80::2]:1"]
        {
            assert_eq!(lan.route(addr(martian)), Route::Discard, "{martian}");
        }
        let old = Lan::new(&UserNetConfig { network6: None, ..Default::default() });
        assert_eq!(old.route(addr("[2001:db8::1]:9")), Route::Discard);
        let closed = Lan::new(&UserNetConfig { outside: false, ..Default::default() });
        assert_eq!(closed.route(addr("192.0.2.1:54")), Route::Unreachable);
        assert_eq!(closed.route(addr("10.0.2.3:53")), Route::Unreachable);
        assert_eq!(closed.route(addr("10.0.2.2:80")), Route::Host(addr("127.0.0.1:80")));
        let private = Lan::new(&UserNetConfig { host_loopback: false, ..Default::default() });
        assert_eq!(private.route(addr("10.0.2.2:80")), Route::Unreachable);
    }

    #[test]
    fn peers_keep_an_address_that_leads_back() {
        let lan = Lan::new(&UserNetConfig::default());
        assert_eq!(lan.visible_peer(addr("192.0.2.1:9")), addr("192.0.2.1:9"));
        assert_eq!(lan.visible_peer(addr("[::ffff:192.0.2.1]:9")), addr("192.0.2.1:9"));
        for hidden in ["127.0.0.1:9", "10.0.2.15:9", "[::1]:9"] {
            assert_eq!(lan.visible_peer(addr(hidden)), addr("10.0.2.2:9"));
        }
    }

    #[test]
    fn neighbors_are_guests_and_bounded() {
        let mut lan = Lan::new(&UserNetConfig::in_network(Ipv4Addr::new(10, 1, 0, 0), 16));
        let mac = EthernetAddress([2, 0, 0, 0, 0, 1]);
        assert!(!lan.learn(lan.gateway, mac));
        assert!(!lan.learn(Ipv4Addr::new(10, 1, 0, 15), EthernetAddress::BROADCAST));
        let guest = |number: usize| Ipv4Addr::from_bits(lan.network + 100 + number as u32);
        let guests: Vec<_> = (0..=MAX_NEIGHBORS).map(guest).collect();
        for &guest in &guests {
            assert!(lan.learn(guest, mac));
            assert!(!lan.learn(guest, mac));
        }
        assert_eq!(lan.neighbor(guests[0].into()), None);
        assert_eq!(lan.neighbor(guests[MAX_NEIGHBORS].into()), Some(mac));
        assert_eq!(lan.neighbors.len(), MAX_NEIGHBORS);
    }
}
