//! A node, a client and a host of backends, as three network namespaces.
//!
//! ```text
//! client, all of 172.31.0.0/16 ---- node ---- backend, all of 10.128.0.0/9
//!        172.30.1.2     172.30.1.1       172.30.2.1      172.30.2.2
//! ```
//!
//! The namespaces have no names: they are gone with the last process in them. Nothing outside of them is touched.

use std::io;
use std::net::Ipv4Addr;

use crate::netns::{Namespace, ip, set_sysctl};

/// The node's own address, by which the Node object knows it.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 1);

/// What the node's kernel is told. Without the second, a client that is refused often would hear of it only at times.
const NODE_SETTINGS: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// The namespaces, connected.
pub(crate) struct Network {
    pub(crate) node: Namespace,
    pub(crate) client: Namespace,
    pub(crate) backend: Namespace,
}

impl Network {
    /// # Errors
    /// Those of [`Namespace::new`].
    pub(crate) fn new() -> io::Result<Network> {
        let network = Network { node: Namespace::new()?, client: Namespace::new()?, backend: Namespace::new()? };
        network.node.join("client", &network.client, "eth0");
        network.node.join("backend", &network.backend, "eth0");
        network.node.run(|| {
            for (device, subnet) in [("client", 1), ("backend", 2)] {
                ip(&format!("address add 172.30.{subnet}.1/24 dev {device}"));
                ip(&format!("link set {device} up"));
            }
            ip("route add 172.31.0.0/16 via 172.30.1.2");
            // To all pods. What is for nobody goes there as well, and is dropped: a node knows a way for every packet,
            // and where it does not, packets end before those rules that refuse them.
            ip("route add default via 172.30.2.2");
            for (setting, value) in NODE_SETTINGS {
                set_sysctl(setting, value).unwrap_or_else(|error| panic!("{error}"));
            }
        });
        for (namespace, subnet) in [(&network.client, 1), (&network.backend, 2)] {
            namespace.run(|| {
                ip(&format!("address add 172.30.{subnet}.2/24 dev eth0"));
                ip("link set eth0 up");
                ip(&format!("route add default via 172.30.{subnet}.1"));
            });
        }
        // Every address of a pod is the backend's own, and the client has many.
        network.backend.run(|| ip("route add local 10.128.0.0/9 dev lo"));
        network.client.run(|| ip("route add local 172.31.0.0/16 dev lo"));
        Ok(network)
    }
}
