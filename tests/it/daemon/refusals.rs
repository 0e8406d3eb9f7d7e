//! Refusals, on their way back.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::{Node, ip, node_object, service_cidr, socket, web, yaml};
use crate::support::objects::service;
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

/// What nobody serves: a Service without endpoints, and a port that a cluster IP does not have.
const REFUSED: [[&str; 2]; 2] = [["172.30.1.4:80", "172.30.1.1:81"], ["[fd00:172:30::4]:80", "[fd00:172:30::1]:81"]];
/// Addresses of the node among the cluster IPs: one that is a Service's, as a DNS cache has it, and one that is nobody's.
const OWN: [[&str; 2]; 2] = [["172.30.1.1", "172.30.9.9"], ["fd00:172:30::1", "fd00:172:30::99"]];

/// How a connection or a datagram of this client ends.
fn refusal(node: &Node, protocol: Protocol, client: &str, to: &str) -> Option<ErrorKind> {
    let (client, to) = (SocketAddr::new(ip(client), 0), socket(to));
    let patience = Duration::from_secs(5);
    let ask = move || -> io::Result<()> {
        if protocol == Protocol::Udp {
            let socket = UdpSocket::bind(client)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(patience))?;
            // The sender on the node itself hears at once that its packet is not sent, and why when it asks for the answer.
            let _ = socket.send(b"?");
            return socket.recv(&mut [0]).map(drop);
        }
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(SocketProtocol::TCP))?;
        socket.bind(&client.into())?;
        socket.connect_timeout(&to.into(), patience)
    };
    node.world.run(ask).err().map(|error| error.kind())
}

#[test]
fn refusals_reach_clients_whose_address_is_among_the_cluster_ips() {
    let Some(mut node) = Node::new() else { return };
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    node.write("cidr.yaml", &yaml(&[service_cidr()]));
    let empty =
        |name: &str, cluster_ip| vec![service("shop", name, &[ip(cluster_ip)], &json!({"ports": [{"port": 80}]}))];
    let objects = [
        web("web", "172.30.1.1", &["10.1.0.1:8080"]),
        web("web-six", "fd00:172:30::1", &["[fd00:1::1]:8080"]),
        empty("empty", "172.30.1.4"),
        empty("empty-six", "fd00:172:30::4"),
    ];
    node.write("services.yaml", &yaml(&objects.concat()));
    OWN[0].iter().for_each(|own| node.ip(&format!("addr add {own}/32 dev lo")));
    OWN[1].iter().for_each(|own| node.ip(&format!("addr add {own}/128 dev lo nodad")));
    node.start(&json!({}));
    for (own, refused) in OWN.iter().zip(REFUSED) {
        for (client, to) in own.iter().flat_map(|client| refused.map(|to| (client, to))) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let ended = refusal(&node, protocol, client, to);
                assert_eq!(ended, Some(ErrorKind::ConnectionRefused), "{protocol:?} from {client} to {to}");
            }
        }
    }
    // From another node that has such an address.
    for (client, refused) in ["172.30.9.8", "fd00:172:30::98"].into_iter().zip(REFUSED) {
        for (protocol, to) in refused.iter().flat_map(|to| [(Protocol::Tcp, to), (Protocol::Udp, to)]) {
            node.eventually(&format!("{protocol:?} from {client} to {to}"), |node| {
                match node.fate_from(ip(client), protocol, to) {
                    Fate::Reject(_) => Ok(()),
                    fate => Err(format!("{fate:?}")),
                }
            });
        }
    }
    // First packets are judged as ever.
    node.wait_fate("nobody's", "172.30.9.7:80", |fate| matches!(fate, Fate::Drop));
    node.stop();
}
