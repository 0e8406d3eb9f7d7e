//! What the daemon knows of a Service, on the metrics port, as JSON: the server writes it, `nftproxyd status` and `explain`
//! read it. The tables do not tell it: names of pods and nodes, conditions of endpoints, policies, and why a port is not
//! served. [`ServiceFacts::new`] makes the same of objects from manifests.

mod answer;
mod facts;
mod page;
mod query;

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{Family, FrontendAt, FrontendKey, Protocol};

pub use self::answer::{Answer, Ask, answer};
pub use self::facts::Node;
pub use self::page::{AskOwner, Services};
pub use self::query::Query;

/// Where it is served on the metrics port: `?name=NAMESPACE/NAME`, `?address=IP`, perhaps with `&port=N` and
/// `&protocol=udp`, or `?nodePort=N`; without any of them, all Services. The answer is a list of [`ServiceFacts`], sorted by
/// name; an empty one where there is none.
pub const PATH: &str = "/nftproxyd/services";

/// A Service, its ports and its endpoints, as the objects in the API have them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFacts {
    /// `namespace/name`.
    pub name: String,
    /// Its ports, in the order of the object.
    pub ports: Vec<PortFacts>,
    /// `spec.clusterIPs`, at most one of each family.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, sorted; none where they are not allowed.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<IpAddr>,
    /// Those of `status.loadBalancer.ingress` that the node serves, sorted.
    #[serde(rename = "loadBalancerIPs")]
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: who may connect to the load-balancer IPs. `None`: everybody; empty: nobody.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: String,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
    /// How the endpoint of a new connection is chosen, by its own annotation or as configured for all: a name of IPVS.
    pub scheduler: String,
    /// `spec.healthCheckNodePort`, where it counts.
    pub health_check_node_port: Option<u16>,
    /// How many EndpointSlices it has.
    pub slices: usize,
    /// Each endpoint of each slice at each of the slice's ports, in the order of the slices' names.
    pub endpoints: Vec<EndpointFacts>,
}

impl ServiceFacts {
    /// All frontends of a family that it can have, each with its port, in the order of the ports: those at its addresses,
    /// then the node port. Another Service may have one of them.
    pub fn frontends(&self, family: Family) -> impl Iterator<Item = (FrontendKey, &PortFacts)> {
        let addresses = [&self.cluster_ips, &self.external_ips, &self.load_balancer_ips].into_iter().flatten();
        let of_family = addresses.filter(move |ip| Family::of(**ip) == family);
        let places: Vec<FrontendAt> = of_family.map(|ip| FrontendAt::Address(*ip)).collect();
        self.ports.iter().flat_map(move |facts| {
            let protocol = Protocol::from_name(&facts.protocol);
            let by_address = places.iter().map(|at| (*at, facts.port));
            let by_port = facts.node_port.map(|port| (FrontendAt::NodePort(family), port));
            let all: Vec<_> = by_address.chain(by_port).collect();
            all.into_iter().filter_map(move |(at, port)| {
                Some((FrontendKey { at, protocol: protocol?, port: NonZeroU16::new(port)? }, facts))
            })
        })
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortFacts {
    /// Its name; may be empty.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The port of its addresses.
    pub port: u16,
    /// The port of the node's own addresses.
    pub node_port: Option<u16>,
    /// Which of its connections lead nowhere, and why.
    #[serde(default)]
    pub unserved: Vec<UnservedFacts>,
    /// Which of its addresses another Service has.
    #[serde(default)]
    pub lost: Vec<LostFacts>,
}

/// Connections to a port of a Service that lead nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnservedFacts {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Which of them.
    pub from: Direction,
    /// What becomes of them: `refused` or `dropped`.
    pub fate: String,
    /// Why, in words.
    pub why: String,
}

/// How a connection reaches a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// By its cluster IP.
    Inside,
    /// By an external IP, a load-balancer IP or a node port, from outside of the cluster. From inside it may be served.
    Outside,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

/// An address and port that a Service asks for and another one has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LostFacts {
    /// In words: `tcp 192.0.2.1:80`, `tcp node port 30080 (IPv4)`.
    pub frontend: String,
    /// Who has it: `namespace/name:port`.
    pub owner: String,
}

/// An endpoint at one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointFacts {
    /// The name of the port, as it joins it with a port of the Service.
    pub port_name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Its address.
    pub address: IpAddr,
    /// The port that it listens on.
    pub port: u16,
    /// The name of its pod, which is in the namespace of the Service; `None` if it is no pod, or the slice does not say.
    pub pod: Option<String>,
    /// The name of its node.
    pub node: Option<String>,
    /// `conditions.ready`, absent = true.
    pub ready: bool,
    /// `conditions.serving`, absent = true.
    pub serving: bool,
    /// `conditions.terminating`, absent = false.
    pub terminating: bool,
    /// Whether it is on this node.
    pub local: bool,
    /// The weight of its slice, by an annotation, else 1. 0: no new connections.
    pub weight: u16,
    /// `hints.forZones[].name`.
    pub zones: Vec<String>,
    /// Whether `hints.forNodes` names this node; `None` without such hints.
    pub for_this_node: Option<bool>,
}

#[cfg(test)]
mod tests;
