//! The DHCP server (RFC 2131, RFC 2132): a few leases, kept until the card is reset.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    IpProtocol,
};

use super::config::{LEASES, UserNetConfig};
use super::net::{Net, udp_payload};

/// The `op` field of a client's message (RFC 2131, section 2).
const BOOT_REQUEST: u8 = 1;
const MAGIC_COOKIE: u32 = 0x6382_5363;
const LEASE_SECONDS: u32 = 86_400;

/// Option codes of RFC 2132 that the library has no names for, and the search list of RFC 3397.
mod option {
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN_NAME: u8 = 15;
    pub(super) const INTERFACE_MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER_IDENTIFIER: u8 = 54;
    pub(super) const CLIENT_IDENTIFIER: u8 = 61;
    pub(super) const DOMAIN_SEARCH: u8 = 119;
}

/// The size of a BOOTP message (RFC 951, section 3), below which old clients take nothing.
const MIN_MESSAGE: usize = 300;
/// The longest option of RFC 2132.
const MAX_OPTION: usize = 255;

/// The options of a client's message that matter here.
#[derive(Default)]
struct Request<'a> {
    kind: Option<DhcpMessageType>,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    /// To be returned as it came (RFC 6842).
    client_id: Option<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn add(&mut self, kind: u8, data: &'a [u8]) {
        let addr = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
        match (kind, data) {
            (option::MESSAGE_TYPE, &[kind]) => self.kind = Some(DhcpMessageType::from(kind)),
            (option::REQUESTED_ADDRESS, _) => self.requested = addr(),
            (option::SERVER_IDENTIFIER, _) => self.server = addr(),
            (option::CLIENT_IDENTIFIER, _) => self.client_id = Some(data),
            _ => {}
        }
    }
}

pub(super) struct DhcpServer {
    pool: Vec<Ipv4Addr>,
    leases: BTreeMap<Ipv4Addr, EthernetAddress>,
    hostname: Option<String>,
    search: Option<Vec<String>>,
}

impl DhcpServer {
    pub(super) fn new(config: &UserNetConfig, net: &Net) -> Self {
        let first = config.first_lease.to_bits();
        Self {
            pool: (first..first.saturating_add(LEASES))
                .map(Ipv4Addr::from_bits)
                .filter(|&addr| net.lan.is_guest(addr))
                .collect(),
            leases: BTreeMap::new(),
            hostname: config.hostname.clone(),
            search: config.search_domains.clone(),
        }
    }

    /// Forgets the leases: a guest that starts anew may have another hardware address.
    pub(super) fn reset(&mut self) {
        self.leases.clear();
    }

    fn lease_of(&self, mac: EthernetAddress) -> Option<Ipv4Addr> {
        self.leases.iter().find(|(_, holder)| **holder == mac).map(|(&addr, _)| addr)
    }

    /// The address to offer: the client's own, or the one it wishes if that is free, or the first free.
    fn choose(&self, mac: EthernetAddress, wish: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let free = |addr: &Ipv4Addr| !self.leases.contains_key(addr);
        self.lease_of(mac)
            .or_else(|| wish.filter(|addr| self.pool.contains(addr) && free(addr)))
            .or_else(|| self.pool.iter().copied().find(free))
    }

    /// Answers a client's message, which came in a datagram to the server port.
    pub(super) fn handle(&mut self, net: &mut Net, message: &[u8]) {
        let Ok(packet) = DhcpPacket::new_checked(message) else { return };
        let mac = packet.client_hardware_address();
        if message.first() != Some(&BOOT_REQUEST)
            || packet.hardware_len() != 6
            || packet.magic_number() != MAGIC_COOKIE
            || !mac.is_unicast()
        {
            return;
        }
        let mut request = Request::default();
        for entry in packet.options() {
            request.add(entry.kind, entry.data);
        }
        if request.server.is_some_and(|server| server != net.lan.gateway) {
            return;
        }
        let client_ip = packet.client_ip();
        let (kind, addr) = match request.kind {
            Some(DhcpMessageType::Discover) => match self.choose(mac, request.requested) {
                Some(addr) => (DhcpMessageType::Offer, addr),
                None => return,
            },
            Some(DhcpMessageType::Request) => {
                let wish = request.requested.unwrap_or(client_ip);
                if self.choose(mac, Some(wish)) == Some(wish) {
                    self.leases.insert(wish, mac);
                    net.lan.learn(wish, mac);
                    (DhcpMessageType::Ack, wish)
                } else {
                    (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED)
                }
            }
            // The client has an address and wants the rest (RFC 2131, section 3.4).
            Some(DhcpMessageType::Inform) => (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
            Some(DhcpMessageType::Release) => {
                if self.lease_of(mac) == Some(client_ip) {
                    self.leases.remove(&client_ip);
                }
                return;
            }
            _ => return,
        };
        self.reply(net, &packet, &request, kind, addr);
    }

    fn reply(
        &self,
        net: &mut Net,
        packet: &DhcpPacket<&[u8]>,
        request: &Request<'_>,
        message_type: DhcpMessageType,
        your_ip: Ipv4Addr,
    ) {
        let granted = message_type != DhcpMessageType::Nak;
        let leased = granted && !your_ip.is_unspecified();
        let search = match &self.search {
            Some(search) => search.clone(),
            None => net.resolvers.search(net.now).to_vec(),
        };
        let mtu = net.lan.mtu.to_be_bytes();
        let broadcast = net.lan.broadcast().octets();
        let search_list = encode_search_list(&search);
        let mut extra = Vec::new();
        let mut add = |kind, data| extra.push(DhcpOption { kind, data });
        if let Some(id) = request.client_id {
            add(option::CLIENT_IDENTIFIER, id);
        }
        if granted {
            add(option::BROADCAST, &broadcast[..]);
            add(option::INTERFACE_MTU, &mtu[..]);
            if let Some(name) = &self.hostname {
                add(option::HOST_NAME, name.as_bytes());
            }
            if let Some(domain) = search.first().filter(|domain| domain.len() <= MAX_OPTION) {
                add(option::DOMAIN_NAME, domain.as_bytes());
            }
            if !search_list.is_empty() {
                add(option::DOMAIN_SEARCH, &search_list);
            }
        }
        let mac = packet.client_hardware_address();
        let repr = DhcpRepr {
            message_type,
            transaction_id: packet.transaction_id(),
            secs: 0,
            client_hardware_address: mac,
            client_ip: if granted { packet.client_ip() } else { Ipv4Addr::UNSPECIFIED },
            your_ip,
            server_ip: net.lan.gateway,
            router: granted.then_some(net.lan.gateway),
            subnet_mask: granted.then_some(net.lan.mask()),
            relay_agent_ip: packet.relay_agent_ip(),
            broadcast: packet.flags().contains(smoltcp::wire::DhcpFlags::BROADCAST),
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(net.lan.gateway),
            parameter_request_list: None,
            dns_servers: granted.then(|| [net.lan.dns].into_iter().collect()),
            max_size: None,
            lease_duration: leased.then_some(LEASE_SECONDS),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &extra,
        };
        let mut message = vec![0; repr.buffer_len().max(MIN_MESSAGE)];
        if repr.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).is_err() {
            return;
        }
        // RFC 2131, section 4.1: to the address the client has, else to the one it is about to have,
        // unless it cannot take unicast yet; a refusal always to all.
        let (dst, dst_mac) = if granted && !repr.client_ip.is_unspecified() {
            (repr.client_ip, mac)
        } else if leased && !repr.broadcast {
            (your_ip, mac)
        } else {
            (Ipv4Addr::BROADCAST, EthernetAddress::BROADCAST)
        };
        let from = SocketAddr::new(net.lan.gateway.into(), DHCP_SERVER_PORT);
        let to = SocketAddr::new(dst.into(), DHCP_CLIENT_PORT);
        if let Some(payload) = udp_payload(from, to, &message) {
            net.send_ipv4_to(dst_mac, net.lan.gateway, dst, IpProtocol::Udp, &payload);
        }
    }
}

/// The domains in DNS form without compression (RFC 3397, section 2), as many as fit one option.
fn encode_search_list(domains: &[String]) -> Vec<u8> {
    let mut list = Vec::new();
    for domain in domains {
        let mut encoded = Vec::new();
        for label in domain.split('.').filter(|label| !label.is_empty()) {
            encoded.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
            encoded.extend_from_slice(label.as_bytes());
        }
        encoded.push(0);
        let labels_fit = domain.split('.').all(|label| label.len() <= 63);
        if encoded.len() > 1 && labels_fit && list.len() + encoded.len() <= MAX_OPTION {
            list.extend(encoded);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_list_is_dns_encoded_and_bounded() {
        let domains = ["a.example".to_owned(), String::new(), "x".repeat(64), "b".to_owned()];
        assert_eq!(encode_search_list(&domains), b"\x01a\x07example\0\x01b\0");
        let many: Vec<_> = (0..100).map(|number| format!("domain{number}.example")).collect();
        assert!(encode_search_list(&many).len() <= MAX_OPTION);
    }
}
