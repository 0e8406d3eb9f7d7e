//! Interfaces, as rtnetlink has them (rtnetlink(7), include/uapi/linux/if_link.h).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::netlink::{Builder, Bus, DUMP, REQUEST, Socket, attributes};

const RTM_GETLINK: u16 = 18;
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

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// `bridge`, `veth` and the like; empty for hardware.
    pub kind: String,
    /// The interface that it is a port of.
    pub master: Option<u32>,
    /// Whether this bridge itself asks for packets of IPv4, and of IPv6, to be shown to the filters.
    pub calls: [bool; 2],
}

/// The interfaces of this network namespace, by index.
pub fn links() -> io::Result<BTreeMap<u32, Link>> {
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

/// The addresses of all interfaces, loopback ones too, with their names.
pub fn local_addresses() -> io::Result<Vec<(String, IpAddr)>> {
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
    fn the_kernel_is_asked_for_interfaces() {
        in_network_namespace(|| {
            run(&["ip", "link", "add", "br7", "type", "bridge", "nf_call_iptables", "1"]);
            run(&["ip", "link", "add", "va", "type", "veth", "peer", "name", "vb"]);
            run(&["ip", "link", "set", "va", "master", "br7"]);
            run(&["ip", "link", "set", "br7", "up"]);
            run(&["ip", "addr", "add", "192.0.2.1/24", "dev", "br7"]);
            let links = links().expect("they can be listed");
            let named = |name: &str| links.iter().find(|(_, link)| link.name == name).expect("it is there");
            let (bridge, link) = named("br7");
            assert_eq!((link.kind.as_str(), link.master, link.calls), ("bridge", None, [true, false]));
            assert_eq!((named("va").1.kind.as_str(), named("va").1.master), ("veth", Some(*bridge)));
            assert_eq!(named("vb").1.master, None);
            let own = ("br7".to_owned(), "192.0.2.1".parse().expect("an address"));
            assert!(local_addresses().expect("they can be listed").contains(&own));
        });
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = link(&bytes);
        }
    }
}
