//! A Service as the proxy sees it.

use std::net::IpAddr;
use std::num::NonZeroU16;

use arcstr::ArcStr;
use ipnet::IpNet;

use super::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol, Scheduler};

/// Which endpoints traffic of one kind may reach (`internalTrafficPolicy`, `externalTrafficPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Those on this node only.
    Local,
}

/// A Service that is to be proxied: it has a cluster IP of at least one family and at least one port.
///
/// Everything that depends on `spec.type` has been decided by the conversion, so the type itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// The cluster IP of each family; a family without one is not proxied at all.
    pub cluster_ips: PerFamily<Option<IpAddr>>,
    /// The ports, in the order of the object; (name, protocol) is unique.
    pub ports: Box<[ServicePort]>,
    /// `spec.externalIPs`, of both families, sorted, without duplicates. Empty where the feature gate
    /// `AllowServiceExternalIPs` is off.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` `VIP` or unset, of both families, sorted, without duplicates.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Whether the Service has an external IP of the family, counted before the feature gate (it makes the Service
    /// externally reachable in the sense of the traffic policies).
    pub has_external_ips: PerFamily<bool>,
    /// `spec.loadBalancerSourceRanges`, if there are any: valid ones of both families, host bits masked, sorted, without
    /// duplicates. Without any, nobody may connect. A family that is absent beside the other is open to all, and so is one
    /// that holds a `/0`.
    pub source_ranges: Option<Box<[IpNet]>>,
    /// Whether those hold for external IPs and node ports, too, by an annotation.
    pub ranges_everywhere: bool,
    /// `spec.internalTrafficPolicy`: concerns the cluster IP.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`, where the type lets it count: concerns node ports, external and load-balancer IPs.
    pub external_policy: TrafficPolicy,
    /// Session affinity by client IP: seconds (1..=86400) since the last new connection of a client.
    pub affinity: Option<u32>,
    /// How endpoints are chosen, by an annotation; `None`: as configured for all.
    pub scheduler: Option<Scheduler>,
    /// The slots of its Maglev tables, by an annotation: one of [`MAGLEV_SIZES`](super::scheduler::MAGLEV_SIZES). `None`: by
    /// the number of endpoints.
    pub maglev_size: Option<NonZeroU16>,
    /// Whether its addresses answer pings, by an annotation; `None`: as configured for all.
    pub ping: Option<bool>,
    /// Whether its connections are accounted for by endpoint, by an annotation.
    pub accounting: bool,
    /// Whether its connections to endpoints that are gone are reset, by an annotation.
    pub reset_connections: bool,
    /// `spec.healthCheckNodePort` of a LoadBalancer Service with external policy Local.
    pub health_check_node_port: Option<NonZeroU16>,
    /// `metadata.creationTimestamp` in seconds since 1970; the older of two Services that claim the same address and
    /// port gets it. `i64::MAX` where the object has none.
    pub created: i64,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The name that joins it with the ports of EndpointSlices; may be empty.
    pub name: ArcStr,
    /// Protocol.
    pub protocol: Protocol,
    /// The port of cluster, external and load-balancer IPs.
    pub port: NonZeroU16,
    /// The port of the node's own addresses, if any. Served whatever the type of the Service.
    pub node_port: Option<NonZeroU16>,
}

/// As what a service port has a frontend. The order decides where one service port has the same address twice: a
/// load-balancer IP comes before an external IP, because source ranges may concern only the former and must not be passed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancerIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

impl Service {
    /// All frontends of one of its ports in a family; none without a cluster IP of the family. Another Service port may
    /// ask for the same ones: see [`Claims`](super::claims::Claims).
    pub fn frontends(&self, port: &ServicePort, family: Family) -> impl Iterator<Item = (FrontendKey, Role)> {
        let (protocol, number, node_port) = (port.protocol, port.port, port.node_port);
        let of_family = move |address: &&IpAddr| Family::of(**address) == family;
        self.cluster_ips[family].into_iter().flat_map(move |cluster_ip| {
            let at = |role| move |address| (FrontendAt::Address(address), number, role);
            let load_balancer = self.load_balancer_ips.iter().filter(of_family).copied().map(at(Role::LoadBalancerIp));
            let external = self.external_ips.iter().filter(of_family).copied().map(at(Role::ExternalIp));
            let node_port = node_port.map(|number| (FrontendAt::NodePort(family), number, Role::NodePort));
            let all = std::iter::once(at(Role::ClusterIp)(cluster_ip)).chain(load_balancer).chain(external);
            all.chain(node_port).map(move |(at, port, role)| (FrontendKey { at, protocol, port }, role))
        })
    }
}
