//! EndpointSlices as the proxy sees them.

use std::net::IpAddr;
use std::num::NonZeroU16;

use arcstr::ArcStr;

use super::{Family, ObjectName, Places, Protocol};

/// An EndpointSlice (`discovery.k8s.io/v1`) of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service it belongs to: its namespace and the label `kubernetes.io/service-name`.
    pub service: ObjectName,
    /// `addressType`; `FQDN` slices are not kept.
    pub family: Family,
    /// Ports that have a name and a number.
    pub ports: Box<[SlicePort]>,
    /// The weight of each of its endpoints, by an annotation, else 1. 0: they get no new connections.
    pub weight: u16,
    /// Endpoints that have an address of `family`.
    pub endpoints: Box<[Endpoint]>,
    /// Which pods they are, and on which nodes.
    pub places: Places,
}

impl Slice {
    /// Whether another version of it says the same but for the names of pods and nodes, on which nothing depends.
    pub fn serves_as(&self, other: &Slice) -> bool {
        let Slice { name, service, family, ports, weight, endpoints, places: _ } = self;
        (name, service, family) == (&other.name, &other.service, &other.family)
            && (ports, weight, endpoints) == (&other.ports, &other.weight, &other.endpoints)
    }
}

/// One port of a slice: every endpoint of the slice serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// Joined with [`super::ServicePort::name`].
    pub name: ArcStr,
    /// Protocol.
    pub protocol: Protocol,
    /// The port that the endpoints listen on.
    pub port: NonZeroU16,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`, the only one that is used.
    pub address: IpAddr,
    /// `conditions`, with the defaults of the API filled in, and locality.
    pub conditions: Conditions,
    /// `hints`, where there are any.
    pub hints: Option<Box<Hints>>,
}

/// State of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// `conditions.ready`, absent = true.
    pub ready: bool,
    /// `conditions.serving`, absent = true.
    pub serving: bool,
    /// `conditions.terminating`, absent = false.
    pub terminating: bool,
    /// `nodeName` is this node.
    pub local: bool,
}

/// Topology hints of an endpoint (KEP-2433, KEP-4444).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Box<[ArcStr]>,
    /// Whether there are node hints (`hints.forNodes`) at all.
    pub for_nodes: bool,
    /// Whether one of them names this node.
    pub for_this_node: bool,
}
