//! What one Service claims, and the order of claims on the same key.

use std::cmp::Ordering;

use arcstr::ArcStr;

use super::super::{Family, FrontendKey, ObjectName, Role, Service};

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
        for (key, role) in Family::ALL.into_iter().flat_map(|family| service.frontends(port, family)) {
            let claim = Claim {
                service: service.name.clone(),
                port: ArcStr::clone(&port.name),
                role,
                created: service.created,
            };
            claims.push((key, claim));
        }
    }
    claims.sort_unstable();
    claims
}
