//! Virtual servers of IPVS (include/uapi/linux/ip_vs.h), by generic netlink.
//!
//! kube-proxy's own clean-up empties all of IPVS. Here the servers of others (keepalived) stay: kube-proxy's are on
//! the addresses of its device, or on a node port that it has noted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::libc::{AF_INET, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use super::{NET, Outcome, Remaining, device};
use crate::netlink::{ACK, Builder, Bus, DUMP, REQUEST, Socket, attributes};

/// `GENL_ID_CTRL`.
const CONTROLLER: u16 = 0x10;
/// `CTRL_CMD_GETFAMILY`, in a `struct genlmsghdr` with its version.
const GET_FAMILY: [u8; 4] = [3, 1, 0, 0];
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `IPVS_CMD_DEL_SERVICE` and `IPVS_CMD_GET_SERVICE`, with their version.
const DELETE_SERVICE: [u8; 4] = [3, 1, 0, 0];
const GET_SERVICE: [u8; 4] = [4, 1, 0, 0];
const SERVICE: u16 = 1;
const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;

/// A virtual server; those of firewall marks are none of kube-proxy's and are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Server {
    family: u16,
    protocol: u16,
    address: [u8; 16],
    port: u16,
}

/// Removes kube-proxy's virtual servers.
pub(super) fn remove(root: &Path, node_ports: &BTreeSet<(u16, u16)>, outcome: &mut Outcome) {
    // Asking the kernel for it would make it load IPVS.
    if !root.join(NET).join("ip_vs").exists() {
        return;
    }
    let result = find_and_delete(node_ports, outcome);
    if let Err(error) = result {
        let what = format!("virtual servers of IPVS: {error}");
        outcome.remains.push(Remaining { what, fix: "if nothing else uses IPVS: ipvsadm --clear".to_owned() });
    }
}

fn find_and_delete(node_ports: &BTreeSet<(u16, u16)>, outcome: &mut Outcome) -> io::Result<()> {
    let addresses: BTreeSet<Vec<u8>> = device::addresses()?.into_iter().collect();
    let mut socket = Socket::open(Bus::Generic)?;
    let family = family(&mut socket)?;
    let (ours, foreign): (Vec<Server>, Vec<Server>) =
        list(&mut socket, family)?.into_iter().partition(|server| server.is_of_kube_proxy(&addresses, node_ports));
    let mut deleted = 0;
    for server in &ours {
        match delete(&mut socket, family, server) {
            Ok(()) => deleted += 1,
            Err(error) => outcome.note(format!("virtual server {}", server.shown()), Err(error), server.fix()),
        }
    }
    if deleted > 0 {
        outcome.removed.push(format!("{deleted} virtual servers of IPVS"));
    }
    if deleted > 0 && !foreign.is_empty() {
        let shown = foreign.iter().take(5).map(Server::shown).collect::<Vec<_>>().join(", ");
        let what = format!("{} virtual servers of IPVS that are none of kube-proxy's: {shown}", foreign.len());
        let fix = foreign.iter().take(5).map(Server::fix).collect::<Vec<_>>().join("; ");
        outcome.remains.push(Remaining { what, fix: format!("if nobody needs them: {fix}") });
    }
    Ok(())
}

fn family(socket: &mut Socket) -> io::Result<u16> {
    let request = Builder::message(CONTROLLER, REQUEST | ACK, socket.next_sequence(), &GET_FAMILY)
        .attribute(FAMILY_NAME, b"IPVS\0")
        .finish();
    let mut found = None;
    socket.dump(&request, |message| {
        let mut parts = attributes(message.payload.get(GET_FAMILY.len()..).unwrap_or_default());
        found = parts.find(|(kind, _)| *kind == FAMILY_ID).and_then(|(_, id)| number(id)).or(found);
    })?;
    found.ok_or_else(|| io::Error::other("the kernel does not say how to ask for them"))
}

fn list(socket: &mut Socket, family: u16) -> io::Result<Vec<Server>> {
    let request = Builder::message(family, REQUEST | DUMP, socket.next_sequence(), &GET_SERVICE).finish();
    let mut found = Vec::new();
    socket.dump(&request, |message| {
        let parts = attributes(message.payload.get(GET_SERVICE.len()..).unwrap_or_default());
        found.extend(parts.filter(|(kind, _)| *kind == SERVICE).filter_map(|(_, service)| Server::read(service)));
    })?;
    Ok(found)
}

fn delete(socket: &mut Socket, family: u16, server: &Server) -> io::Result<()> {
    let request = Builder::message(family, REQUEST | ACK, socket.next_sequence(), &DELETE_SERVICE)
        .nested(SERVICE, |service| {
            service
                .attribute(SERVICE_FAMILY, &server.family.to_ne_bytes())
                .attribute(SERVICE_PROTOCOL, &server.protocol.to_ne_bytes())
                .attribute(SERVICE_ADDRESS, &server.address)
                .attribute(SERVICE_PORT, &server.port.to_be_bytes())
        })
        .finish();
    socket.execute(&request)
}

fn number(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

impl Server {
    fn read(service: &[u8]) -> Option<Server> {
        let parts: BTreeMap<u16, &[u8]> = attributes(service).collect();
        let part = |kind| parts.get(&kind).copied();
        let mut address = [0; 16];
        let found = part(SERVICE_ADDRESS)?;
        let length = found.len().min(address.len());
        address[..length].copy_from_slice(&found[..length]);
        Some(Server {
            family: number(part(SERVICE_FAMILY)?)?,
            protocol: number(part(SERVICE_PROTOCOL)?)?,
            address,
            port: u16::from_be_bytes(*part(SERVICE_PORT)?.first_chunk()?),
        })
    }

    fn is_of_kube_proxy(&self, addresses: &BTreeSet<Vec<u8>>, node_ports: &BTreeSet<(u16, u16)>) -> bool {
        let address = if self.is_v4() { &self.address[..4] } else { &self.address[..] };
        addresses.contains(address) || node_ports.contains(&(self.protocol, self.port))
    }

    fn is_v4(&self) -> bool {
        i32::from(self.family) == AF_INET
    }

    fn at(&self) -> SocketAddr {
        let [a, b, c, d, ..] = self.address;
        let address = if self.is_v4() {
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::from(Ipv6Addr::from(self.address))
        };
        SocketAddr::new(address, self.port)
    }

    fn shown(&self) -> String {
        let protocol = match i32::from(self.protocol) {
            IPPROTO_TCP => "tcp",
            IPPROTO_UDP => "udp",
            IPPROTO_SCTP => "sctp",
            _ => "protocol?",
        };
        format!("{protocol} {}", self.at())
    }

    /// The command that deletes it.
    fn fix(&self) -> String {
        let option = match i32::from(self.protocol) {
            IPPROTO_UDP => "-u",
            IPPROTO_SCTP => "--sctp-service",
            _ => "-t",
        };
        format!("ipvsadm -D {option} {}", self.at())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str, protocol: i32, port: u16) -> Server {
        let mut bytes = [0; 16];
        let family = match address.parse().expect("an address") {
            IpAddr::V4(v4) => {
                bytes[..4].copy_from_slice(&v4.octets());
                AF_INET
            }
            IpAddr::V6(v6) => {
                bytes = v6.octets();
                nix::libc::AF_INET6
            }
        };
        let short = |number: i32| u16::try_from(number).expect("small");
        Server { family: short(family), protocol: short(protocol), address: bytes, port }
    }

    #[test]
    fn servers_of_others_are_told_from_kube_proxys() {
        let addresses = BTreeSet::from([vec![10, 96, 0, 1], Ipv6Addr::from(5_u128).octets().to_vec()]);
        let node_ports = BTreeSet::from([(6, 30080)]);
        let cases = [
            (server("10.96.0.1", IPPROTO_TCP, 443), true, "tcp 10.96.0.1:443", "ipvsadm -D -t 10.96.0.1:443"),
            (server("::5", IPPROTO_UDP, 53), true, "udp [::5]:53", "ipvsadm -D -u [::5]:53"),
            (server("192.0.2.1", IPPROTO_TCP, 30080), true, "tcp 192.0.2.1:30080", "ipvsadm -D -t 192.0.2.1:30080"),
            (server("192.0.2.1", IPPROTO_UDP, 30080), false, "udp 192.0.2.1:30080", "ipvsadm -D -u 192.0.2.1:30080"),
            (server("192.0.2.1", IPPROTO_TCP, 80), false, "tcp 192.0.2.1:80", "ipvsadm -D -t 192.0.2.1:80"),
        ];
        for (server, expected, shown, fix) in cases {
            assert_eq!(server.is_of_kube_proxy(&addresses, &node_ports), expected, "{shown}");
            assert_eq!((server.shown().as_str(), server.fix().as_str()), (shown, fix));
        }
    }
}
