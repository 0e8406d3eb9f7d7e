//! What stands between this node and the API server. This process goes past it; nobody else does.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use arcstr::ArcStr;
use ipnet::IpNet;

use crate::model::claims::Claims;
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol, Role, ServiceCidr};

/// An object that has the address of the API server, or of the proxy before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A Service that others are led to.
    Service {
        /// Its name.
        service: ObjectName,
        /// The field that has the address.
        field: &'static str,
        /// The address and port.
        server: SocketAddr,
    },
    /// A ServiceCIDR in whose ranges the tables drop what is no Service's.
    Range {
        /// Its name.
        object: ArcStr,
        /// The range, as the object has it.
        range: IpNet,
        /// The addresses in it; not empty.
        servers: BTreeSet<IpAddr>,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Service { service, field, server } => write!(
                f,
                "Service {service}: {field}: {server} is the address of the API server: nftproxyd reaches it past the \
                 Service, but all others on this node come to the Service's endpoints: unless that is meant, take the \
                 address out"
            ),
            Obstacle::Range { object, range, servers } => {
                let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "ServiceCIDR {object}: spec.cidrs: {range} holds the address of the API server: {}; nftproxyd still \
                     reaches it, but connections of others on this node to it are dropped: use a range of which the API \
                     server is no part",
                    servers.join(", ")
                )
            }
        }
    }
}

/// All obstacles before these servers, sorted. A few look-ups for each server, however many Services there are. `local` are
/// the node's addresses, which no range keeps anybody from, and `nodeport_ips` those of them that accept node ports.
pub(super) fn obstacles<'a>(
    servers: &BTreeSet<SocketAddr>,
    claims: &Claims,
    ranges: impl Iterator<Item = &'a ServiceCidr>,
    local: &BTreeSet<IpAddr>,
    nodeport_ips: impl Fn() -> BTreeSet<IpAddr>,
) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for server in servers {
        let Some(port) = NonZeroU16::new(server.port()) else { continue };
        let key = |at| FrontendKey { at, protocol: Protocol::Tcp, port };
        let by_address = claims.owner(&key(FrontendAt::Address(server.ip())));
        let by_node_port = || {
            let owner = claims.owner(&key(FrontendAt::NodePort(Family::of(server.ip()))))?;
            nodeport_ips().contains(&server.ip()).then_some(owner)
        };
        // The API server's own Service leads to the API server.
        let owner = by_address.or_else(by_node_port).filter(|owner| owner.service.as_str() != "default/kubernetes");
        if let Some(owner) = owner {
            let field = match owner.role {
                Role::ClusterIp => "spec.clusterIPs",
                Role::LoadBalancerIp => "status.loadBalancer.ingress",
                Role::ExternalIp => "spec.externalIPs",
                Role::NodePort => "spec.ports: nodePort",
            };
            found.push(Obstacle::Service { service: owner.service.clone(), field, server: *server });
        }
    }
    for object in ranges {
        for range in &object.cidrs {
            let inside = servers.iter().map(SocketAddr::ip).filter(|server| range.contains(server));
            let servers: BTreeSet<IpAddr> = inside.filter(|server| !local.contains(server)).collect();
            if !servers.is_empty() {
                found.push(Obstacle::Range { object: object.name.clone(), range: *range, servers });
            }
        }
    }
    found.sort_unstable();
    found
}
