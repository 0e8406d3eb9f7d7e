//! Node (`v1`) and ServiceCIDR (`networking.k8s.io/v1`).

use std::net::IpAddr;

use arcstr::ArcStr;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;

use super::fields::{cidrs, label, list};
use super::{Converted, Pool};
use crate::model::parse;
use crate::model::{Family, Node, PerFamily, Reject, ServiceCidr};

/// The zone that a Node is in.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Set by the cluster autoscaler shortly before it removes a node (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a Node; the caller sees to it that it is this node's.
pub fn node(object: &core::Node, pool: &mut Pool) -> Converted<Node, ArcStr> {
    let mut rejects = Vec::new();
    let spec = object.spec.as_ref();
    let (addresses, primary) = addresses(object, &mut rejects);
    let pod_cidrs = spec.map_or_else(Box::default, |spec| cidrs(list(&spec.pod_cidrs), "spec.podCIDRs", &mut rejects));
    let tainted = spec.is_some_and(|spec| list(&spec.taints).iter().any(|taint| taint.key == TO_BE_DELETED));
    let value = Node {
        zone: label(&object.metadata, ZONE_LABEL).filter(|zone| !zone.is_empty()).map(|zone| pool.share(zone)),
        addresses,
        primary,
        pod_cidrs,
        leaving: tainted || object.metadata.deletion_timestamp.is_some(),
    };
    named(object.metadata.name.as_deref(), |_| value, rejects)
}

/// The node IP of each family, the first InternalIP, or else the first ExternalIP; and which family came first.
fn addresses(object: &core::Node, rejects: &mut Vec<Reject>) -> (PerFamily<Option<IpAddr>>, Option<Family>) {
    let mut primary = None;
    let mut found = PerFamily::<Option<IpAddr>>::default();
    let addresses = object.status.as_ref().map(|status| list(&status.addresses)).unwrap_or_default();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (i, entry) in addresses.iter().enumerate().filter(|(_, entry)| entry.type_ == wanted) {
            match parse::address(&entry.address) {
                Ok(address) => {
                    found[Family::of(address)].get_or_insert(address);
                    primary.get_or_insert(Family::of(address));
                }
                Err(error) => {
                    rejects
                        .push(Reject::new(format!("status.addresses[{i}].address"), format_args!("{error}; skipped")));
                }
            }
        }
    }
    (found, primary)
}

/// Reads a ServiceCIDR.
pub fn service_cidr(object: &networking::ServiceCIDR) -> Converted<ServiceCidr, ArcStr> {
    let mut rejects = Vec::new();
    let texts = object.spec.as_ref().map(|spec| list(&spec.cidrs)).unwrap_or_default();
    let cidrs = cidrs(texts, "spec.cidrs", &mut rejects);
    named(object.metadata.name.as_deref(), |name| ServiceCidr { name, cidrs }, rejects)
}

/// The result for an object without a namespace: no value without a name.
fn named<T>(name: Option<&str>, value: impl FnOnce(ArcStr) -> T, mut rejects: Vec<Reject>) -> Converted<T, ArcStr> {
    match name.filter(|name| !name.is_empty()) {
        Some(name) => {
            let name: ArcStr = name.into();
            Converted { value: Some(value(ArcStr::clone(&name))), name: Some(name), rejects }
        }
        None => {
            let reject = Reject::new("metadata.name", "missing; the object is not used");
            rejects.insert(0, reject);
            Converted { name: None, value: None, rejects }
        }
    }
}
