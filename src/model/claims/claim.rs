//! What one Service claims, and the order of claims on the same key.

use std::cmp::Ordering;

use arcstr::ArcStr;

use super::super::{Family, FrontendAt, FrontendKey, ObjectName, Service};

/// As what a service port has a key. The order decides where one service port has the same key twice: a load-balancer
/// IP comes before an external IP, because source ranges concern only the former and must not be passed by.
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

/// A claim of one service port on a key (which is kept beside it, as is the protocol).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) service: ObjectName,
    /// The name of the port.
    pub(super) port: ArcStr,
    pub(super) role: Role,
    /// [`Service::created`].
    created: i64,
}

impl Claim {
    /// The smallest wins.
    fn rank(&self) -> impl Ord + '_ {
        (self.role != Role::ClusterIp, self.created, &self.service, &self.port, self.role)
    }
}

impl Ord for Claim {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Claim {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// All claims of a Service, sorted by key, then by rank.
pub(super) fn claims_of(service: &Service) -> Vec<(FrontendKey, Claim)> {
    let mut claims = Vec::new();
    for port in &service.ports {
        let mut claim = |at, number, role| {
            let key = FrontendKey { at, protocol: port.protocol, port: number };
            let claim = Claim {
                service: service.name.clone(),
                port: ArcStr::clone(&port.name),
                role,
                created: service.created,
            };
            claims.push((key, claim));
        };
        for family in Family::ALL {
            let Some(cluster_ip) = service.cluster_ips[family] else {
                // Without a cluster IP nothing of the Service is proxied in this family.
                continue;
            };
            claim(FrontendAt::Address(cluster_ip), port.port, Role::ClusterIp);
            let outside =
                [(&service.load_balancer_ips, Role::LoadBalancerIp), (&service.external_ips, Role::ExternalIp)];
            for (addresses, role) in outside {
                for address in addresses.iter().filter(|address| Family::of(**address) == family) {
                    claim(FrontendAt::Address(*address), port.port, role);
                }
            }
            if let Some(node_port) = port.node_port {
                claim(FrontendAt::NodePort(family), node_port, Role::NodePort);
            }
        }
    }
    claims.sort_unstable();
    claims
}
