//! The router and the neighbors of the IPv6 side: neighbor discovery (RFC 4861), stateless addresses (RFC
//! 4862), and the name server's address in the router's advertisements (RFC 8106).

use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Repr, NdiscNeighborFlags,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use super::lan::{Lan6, ROUTER};
use super::net::{HOP_LIMIT, LINK_HOP_LIMIT, Net};
use super::reactor::{Alarm, Token};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
/// How long the guest believes in its router, and how often it is told again (RFC 4861, section 6.2.1).
const ROUTER_LIFETIME: Duration = Duration::from_secs(9000);
const ADVERTISEMENT_INTERVAL: Duration = Duration::from_secs(1800);
/// RFC 4861, section 4.6.2: all bits mean for ever.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Any address of the world outside: the way there is looked up, nothing is sent.
const SOMEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

#[derive(Default)]
pub(super) struct Ndp {
    alarm: Alarm,
}

impl Ndp {
    pub(super) fn reset(&mut self, net: &mut Net) {
        net.reactor.disarm(&mut self.alarm, Token::Router);
    }

    /// An ICMPv6 message of the guest's. False if it is not about neighbors.
    pub(super) fn on_guest_packet(&mut self, net: &mut Net, header: &Ipv6Repr, payload: &[u8]) -> bool {
        let (Some(v6), Ok(packet)) = (net.lan.v6, Icmpv6Packet::new_checked(payload)) else { return false };
        let caps = ChecksumCapabilities::ignored();
        let Ok(Icmpv6Repr::Ndisc(message)) =
            Icmpv6Repr::parse(&header.src_addr, &header.dst_addr, &packet, &caps)
        else {
            return false;
        };
        if header.hop_limit != LINK_HOP_LIMIT {
            return true;
        }
        match message {
            NdiscRepr::RouterSolicit { .. } => self.advertise(net, &v6),
            NdiscRepr::NeighborSolicit { target_addr, .. } if net.lan.is_ours(target_addr) => {
                advertise_neighbor(net, header.src_addr, target_addr);
            }
            _ => {}
        }
        true
    }

    pub(super) fn on_alarm(&mut self, net: &mut Net) {
        self.alarm.fired();
        if let Some(v6) = net.lan.v6 {
            self.advertise(net, &v6);
        }
    }

    /// Tells all what the network is. It is a way to the outside only if the host has one.
    fn advertise(&mut self, net: &mut Net, v6: &Lan6) {
        let leads_outside = net.lan.outside
            && UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
                .is_ok_and(|socket| socket.connect((SOMEWHERE, 1)).is_ok());
        let message = NdiscRepr::RouterAdvert {
            hop_limit: HOP_LIMIT,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: smoltcp_duration(if leads_outside { ROUTER_LIFETIME } else { Duration::ZERO }),
            reachable_time: smoltcp_duration(Duration::ZERO),
            retrans_time: smoltcp_duration(Duration::ZERO),
            lladdr: Some(net.lan.mac.into()),
            mtu: Some(net.lan.mtu.into()),
            prefix_info: Some(NdiscPrefixInformation {
                prefix_len: 64,
                flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
                valid_lifetime: smoltcp_duration(FOR_EVER),
                preferred_lifetime: smoltcp_duration(FOR_EVER),
                prefix: v6.prefix,
            }),
        };
        let mut options = Vec::new();
        if net.lan.outside {
            // Recursive DNS server option: type, length in 8 bytes, reserved, lifetime, address.
            options.extend([25, 3, 0, 0]);
            options.extend(u32::MAX.to_be_bytes());
            options.extend(v6.dns.octets());
        }
        send(net, ALL_NODES_MAC, ROUTER, ALL_NODES, message, &options);
        let at = net.now + ADVERTISEMENT_INTERVAL;
        net.reactor.arm(&mut self.alarm, Token::Router, at, net.now);
    }
}

fn smoltcp_duration(duration: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_secs(duration.as_secs())
}

/// Answers who has one of our addresses.
fn advertise_neighbor(net: &mut Net, asker: Ipv6Addr, target_addr: Ipv6Addr) {
    let mut flags = NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::ROUTER;
    let (mac, dst) = match net.lan.neighbor(asker.into()) {
        Some(mac) => {
            flags |= NdiscNeighborFlags::SOLICITED;
            (mac, asker)
        }
        // One that wants the address for itself and so has none yet.
        None => (ALL_NODES_MAC, ALL_NODES),
    };
    let message = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr: Some(net.lan.mac.into()) };
    send(net, mac, target_addr, dst, message, &[]);
}

/// Sends a message with more options than the library knows behind those that it does.
fn send(
    net: &mut Net,
    mac: EthernetAddress,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    message: NdiscRepr<'_>,
    options: &[u8],
) {
    let repr = Icmpv6Repr::Ndisc(message);
    let mut payload = vec![0; repr.buffer_len()];
    let caps = ChecksumCapabilities::ignored();
    repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(&mut payload[..]), &caps);
    payload.extend(options);
    Icmpv6Packet::new_unchecked(&mut payload[..]).fill_checksum(&src, &dst);
    net.send_ipv6_to(mac, src, dst, (IpProtocol::Icmpv6, LINK_HOP_LIMIT), &payload);
}
