//! Node and ServiceCIDR as the proxy sees them.

use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;

use super::{Family, PerFamily};

/// This node's Node object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`; missing and empty are the same.
    pub zone: Option<ArcStr>,
    /// The node IP of each family: of `status.addresses`, first `InternalIP`, then `ExternalIP`.
    pub addresses: PerFamily<Option<IpAddr>>,
    /// The family of the first of these addresses, in the order of the object.
    pub primary: Option<Family>,
    /// `spec.podCIDRs`, in the order of the object.
    pub pod_cidrs: Box<[IpNet]>,
    /// Whether it is being deleted or about to be: a deletion timestamp, or the taint
    /// `ToBeDeletedByClusterAutoscaler`. Concerns `/healthz` only.
    pub leaving: bool,
}

/// A ServiceCIDR object (`networking.k8s.io/v1`): ranges whose unallocated addresses are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name` (the object has no namespace).
    pub name: ArcStr,
    /// `spec.cidrs`.
    pub cidrs: Box<[IpNet]>,
}
