//! Routes and interfaces, as rtnetlink has them (rtnetlink(7), include/uapi/linux/rtnetlink.h and if_link.h).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::netlink::{Builder, Bus, DUMP, REQUEST, Socket, attributes};

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
/// Length of `struct ifinfomsg`; the index is its third field.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// `IFLA_BR_NF_CALL_IPTABLES` and `IFLA_BR_NF_CALL_IP6TABLES`.
const BRIDGE_CALLS: [u16; 2] = [36, 37];
/// Length of `struct rtmsg`; the length of the destination and the type are its second and eighth byte.
const ROUTE_HEADER: usize = 12;
const ROUTE_TYPE: usize = 7;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
/// `RTN_*`.
const LOCAL: u8 = 2;
const REFUSING: [(u8, &str); 3] = [(6, "blackhole"), (7, "unreachable"), (8, "prohibit")];

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Link {
    pub(super) name: String,
    /// `bridge`, `veth` and the like; empty for hardware.
    pub(super) kind: String,
    /// The interface that it is a port of.
    pub(super) master: Option<u32>,
    /// Whether this bridge itself asks for packets of IPv4, and of IPv6, to be shown to the filters.
    pub(super) calls: [bool; 2],
}

/// What becomes of a packet of this node to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// It is sent by the interface of this index.
    By(u32),
    /// It is for the node itself.
    Local,
    /// It is sent nowhere, for this reason.
    Nowhere(String),
}

/// The interfaces of this network namespace, by index.
pub(super) fn links() -> io::Result<BTreeMap<u32, Link>> {
    let mut socket = Socket::open(Bus::Route)?;
    let request = Builder::message(RTM_GETLINK, REQUEST | DUMP, socket.next_sequence(), &[0; LINK_HEADER]).finish();
    let mut links = BTreeMap::new();
    socket.dump(&request, |message| links.extend(link(message.payload)))?;
    Ok(links)
}

fn link(payload: &[u8]) -> Option<(u32, Link)> {
    let index = number(payload.get(LINK_INDEX..)?)?;
    let mut link = Link::default();
    for (kind, value) in attributes(payload.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => link.name = string(value),
            IFLA_MASTER => link.master = number(value),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = string(value),
                        IFLA_INFO_DATA => {
                            let is_set = |wanted| attributes(value).any(|(kind, value)| kind == wanted && value == [1]);
                            link.calls = BRIDGE_CALLS.map(is_set);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((index, link))
}

/// Looks up the way of a packet of this node.
pub(super) fn route(to: IpAddr) -> io::Result<Route> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let (family, bytes) = match to {
        IpAddr::V4(ip) => (AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (AF_INET6, ip.octets().to_vec()),
    };
    let mut header = [0; ROUTE_HEADER];
    header[0] = family;
    header[1] = u8::try_from(bytes.len() * 8).unwrap_or(u8::MAX);
    let mut socket = Socket::open(Bus::Route)?;
    let request = Builder::message(RTM_GETROUTE, REQUEST | crate::netlink::ACK, socket.next_sequence(), &header)
        .attribute(RTA_DST, &bytes)
        .finish();
    let mut found = None;
    let asked = socket.dump(&request, |message| found = found.take().or_else(|| read_route(message.payload)));
    match asked.map_err(|error| (error.raw_os_error().map(Errno::from_raw), error)) {
        Ok(_) => found.ok_or_else(|| io::Error::other("no answer about a route")),
        Err((Some(Errno::ENETUNREACH), _)) => Ok(Route::Nowhere("no route".to_owned())),
        Err((Some(Errno::EHOSTUNREACH), _)) => Ok(Route::Nowhere("unreachable".to_owned())),
        Err((Some(Errno::EACCES), _)) => Ok(Route::Nowhere("prohibit".to_owned())),
        // What the kernel says of a route of type blackhole.
        Err((Some(Errno::EINVAL), _)) => Ok(Route::Nowhere("blackhole".to_owned())),
        Err((_, error)) => Err(error),
    }
}

fn read_route(payload: &[u8]) -> Option<Route> {
    let kind = *payload.get(ROUTE_TYPE)?;
    if kind == LOCAL {
        return Some(Route::Local);
    }
    if let Some((_, word)) = REFUSING.iter().find(|(refusing, _)| *refusing == kind) {
        return Some(Route::Nowhere((*word).to_owned()));
    }
    let by = attributes(payload.get(ROUTE_HEADER..)?).find(|(kind, _)| *kind == RTA_OIF);
    by.and_then(|(_, value)| number(value)).map(Route::By)
}

/// The addresses of all interfaces, loopback ones too, with their names.
pub(super) fn local_addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            Some((interface.interface_name, v4.or_else(|| address.as_sockaddr_in6().map(|it| it.ip().into()))?))
        })
        .collect())
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{in_network_namespace, run};

    #[test]
    fn the_kernel_is_asked_for_interfaces_and_routes() {
        in_network_namespace(|| {
            run(&["ip", "link", "add", "br7", "type", "bridge", "nf_call_iptables", "1"]);
            run(&["ip", "link", "add", "va", "type", "veth", "peer", "name", "vb"]);
            run(&["ip", "link", "set", "va", "master", "br7"]);
            run(&["ip", "link", "set", "br7", "up"]);
            run(&["ip", "addr", "add", "192.0.2.1/24", "dev", "br7"]);
            run(&["ip", "route", "add", "unreachable", "198.51.100.0/24"]);
            run(&["ip", "route", "add", "blackhole", "203.0.113.0/24"]);
            run(&["ip", "route", "add", "prohibit", "198.18.0.0/24"]);
            let links = links().expect("they can be listed");
            let named = |name: &str| links.iter().find(|(_, link)| link.name == name).expect("it is there");
            let (bridge, link) = named("br7");
            assert_eq!((link.kind.as_str(), link.master, link.calls), ("bridge", None, [true, false]));
            assert_eq!((named("va").1.kind.as_str(), named("va").1.master), ("veth", Some(*bridge)));
            assert_eq!(named("vb").1.master, None);
            let to = |text: &str| route(text.parse().expect("an address")).expect("it can be asked");
            assert_eq!(to("192.0.2.9"), Route::By(*bridge));
            assert_eq!(to("192.0.2.1"), Route::Local);
            for (address, word) in [
                ("10.96.0.1", "no route"),
                ("fd00::1", "no route"),
                ("198.51.100.1", "unreachable"),
                ("203.0.113.1", "blackhole"),
                ("198.18.0.1", "prohibit"),
            ] {
                assert_eq!(to(address), Route::Nowhere(word.to_owned()), "{address}");
            }
            let own = ("br7".to_owned(), "192.0.2.1".parse().expect("an address"));
            assert!(local_addresses().expect("they can be listed").contains(&own));
        });
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = link(&bytes);
            let _ = read_route(&bytes);
        }
    }
}
