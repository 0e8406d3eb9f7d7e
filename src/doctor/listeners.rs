//! Processes of this node that listen where Services are served: whoever comes to the port from outside comes to the
//! Service, and not to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::served::{Frontend, Served};
use super::{Finding, Subject};
use crate::listening::{Listener, list, processes};
use crate::model::{Family, PerFamily};
use crate::printable::printable;

/// What there is to say about those who listen, where something is served; what is served at the node's addresses without a
/// listener too. `everywhere` is whether all addresses of a family accept node ports.
pub(super) fn judge(root: &Path, served: &PerFamily<Served>, everywhere: impl Fn(Family) -> bool) -> Vec<Finding> {
    let listening = match list(root) {
        Ok(listening) => listening,
        Err(error) => {
            let what = format!("nobody can tell who listens on node ports: {error}");
            return vec![Finding::unread(Subject::NodePorts, what, "ss -ltnup")];
        }
    };
    let mut found = Vec::new();
    for family in Family::ALL {
        found.extend(hidden(&listening, &served[family], family, everywhere(family)));
    }
    let inodes = found.iter().map(|(_, listener)| listener.inode).collect();
    let processes = if found.is_empty() { BTreeMap::new() } else { processes(root, &inodes) };
    let mut findings: Vec<Finding> =
        found.into_iter().map(|(frontend, listener)| say(&frontend, listener, &processes)).collect();
    if findings.is_empty() && Family::ALL.into_iter().any(|family| !served[family].node_ports.is_empty()) {
        findings.push(Finding::ok(Subject::NodePorts, "nobody listens on a port of the node that is a Service's"));
    }
    findings
}

/// Each listener that a frontend stands before.
fn hidden<'a>(
    listening: &'a [Listener],
    served: &Served,
    family: Family,
    everywhere: bool,
) -> Vec<(Frontend, &'a Listener)> {
    let mut found = Vec::new();
    let accepts = |listener: &Listener| {
        let address = listener.at.ip();
        let is_of_family = Family::of(address) == family && !address.is_loopback();
        listener.is_everywhere(family) || is_of_family && (everywhere || served.node_port_ips.contains(&address))
    };
    for frontend in &served.node_ports {
        let it = |listener: &&Listener| {
            listener.protocol == frontend.protocol && listener.at.port() == frontend.port && accepts(listener)
        };
        found.extend(listening.iter().find(it).map(|listener| (frontend.clone(), listener)));
    }
    for frontend in &served.own {
        let Some(address) = frontend.address else { continue };
        let it =
            |listener: &&Listener| listener.protocol == frontend.protocol && listener.hears(address, frontend.port);
        found.extend(listening.iter().find(it).map(|listener| (frontend.clone(), listener)));
    }
    found
}

fn say(frontend: &Frontend, listener: &Listener, processes: &BTreeMap<u64, String>) -> Finding {
    let Frontend { address, protocol, port, service } = frontend;
    let who = processes.get(&listener.inode).map_or("a process that may not be looked at", String::as_str);
    let (subject, what, fix) = match address {
        None => (
            Subject::NodePorts,
            format!("node port {port}/{}", protocol.name()),
            "end it, or give the Service another nodePort; keep ip_local_reserved_ports and programs out of the range of node \
             ports",
        ),
        Some(address) => (
            Subject::ServiceAddresses,
            format!("{} ({}), an address of the node's own,", SocketAddr::new(*address, *port), protocol.name()),
            "end it, or take the address out of the Service's externalIPs or of its load balancer's",
        ),
    };
    Finding::check(
        subject,
        format!(
            "{what} is Service {}'s, and {who} listens there: others come to the Service, and never to it",
            printable(service)
        ),
        fix,
    )
    .proof(format!("{} {} listens, {who}", protocol.name(), listener.at))
}

/// What is served at addresses of the node's own, where nobody listens: it may well be meant so.
pub(super) fn own_addresses(served: &PerFamily<Served>) -> Option<Finding> {
    let all: Vec<&Frontend> = Family::ALL.into_iter().flat_map(|family| &served[family].own).collect();
    let first = all.iter().take(4).filter_map(|frontend| {
        let at = SocketAddr::new(frontend.address?, frontend.port);
        Some(format!("{} {at} is Service {}'s", frontend.protocol.name(), printable(&frontend.service)))
    });
    let finding = Finding::note(
        Subject::ServiceAddresses,
        format!(
            "{} ports at addresses of the node's own are Services': nothing on the node can be reached there",
            all.len()
        ),
        "where a load balancer of the cluster gives out the nodes' addresses (ServiceLB of k3s, externalIPs), it is meant so",
    );
    (!all.is_empty()).then(|| first.fold(finding, Finding::proof))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leftovers::NET;
    use crate::model::Protocol;

    fn listener(protocol: Protocol, at: &str) -> Listener {
        Listener { protocol, at: at.parse().expect("an address and a port"), inode: 7 }
    }

    fn frontend(address: Option<&str>, protocol: Protocol, port: u16) -> Frontend {
        let address = address.map(|address| address.parse().expect("an address"));
        Frontend { address, protocol, port, service: "shop/web:http".to_owned() }
    }

    #[test]
    fn who_is_hidden_is_found_and_nobody_else() {
        use Protocol::{Tcp, Udp};
        let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().expect("an address")).collect();
        let of_v4 = |own: Vec<Frontend>| Served {
            node_ports: vec![frontend(None, Tcp, 30080), frontend(None, Udp, 30053)],
            node_port_ips: ips(&["192.0.2.1"]),
            own,
            ..Served::default()
        };
        let cases: &[(&str, Protocol, Family, bool, usize)] = &[
            ("0.0.0.0:30080", Tcp, Family::V4, false, 1),
            ("0.0.0.0:30080", Tcp, Family::V4, true, 1),
            ("[::]:30080", Tcp, Family::V4, false, 1),
            ("[::]:30080", Tcp, Family::V6, false, 1),
            ("0.0.0.0:30080", Tcp, Family::V6, true, 0),
            ("192.0.2.1:30080", Tcp, Family::V4, false, 1),
            ("192.0.2.2:30080", Tcp, Family::V4, false, 0),
            ("192.0.2.2:30080", Tcp, Family::V4, true, 1),
            ("127.0.0.1:30080", Tcp, Family::V4, true, 0),
            ("[::1]:30080", Tcp, Family::V6, true, 0),
            ("0.0.0.0:30080", Udp, Family::V4, true, 0),
            ("0.0.0.0:30053", Udp, Family::V4, true, 1),
            ("0.0.0.0:30081", Tcp, Family::V4, true, 0),
            // Of the address of the node that is a Service's.
            ("0.0.0.0:22", Tcp, Family::V4, false, 1),
            ("192.0.2.9:22", Tcp, Family::V4, false, 1),
            ("192.0.2.1:22", Tcp, Family::V4, false, 0),
        ];
        for (at, protocol, family, everywhere, expected) in cases {
            let own = if at.ends_with(":22") { vec![frontend(Some("192.0.2.9"), Tcp, 22)] } else { Vec::new() };
            let listening = [listener(*protocol, at)];
            let found = hidden(&listening, &of_v4(own), *family, *everywhere);
            assert_eq!(found.len(), *expected, "{at} {protocol:?} {family} {everywhere}: {found:?}");
        }
    }

    #[test]
    fn files_that_cannot_be_read_are_said_to_be() {
        let root = tempfile::tempdir().expect("a folder");
        let served = PerFamily::default();
        let findings = judge(root.path(), &served, |_| true);
        assert_eq!(findings[0].grade, crate::doctor::Grade::Unread);
        let net = root.path().join(NET);
        std::fs::create_dir_all(&net).expect("a folder");
        for name in ["tcp", "udp"] {
            std::fs::write(net.join(name), "header\n").expect("a file");
        }
        assert_eq!(judge(root.path(), &served, |_| true), [], "a host without IPv6");
        std::fs::write(net.join("udp"), "header\nnonsense\n").expect("a file");
        assert_eq!(judge(root.path(), &served, |_| true)[0].grade, crate::doctor::Grade::Unread);
    }
}
