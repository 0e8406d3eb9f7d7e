//! EndpointSlice (`discovery.k8s.io/v1`).

use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as discovery;

use super::fields::{address, label, list, object_name, port_name, port_number, protocol};
use super::{Converted, Options, Pool, spread};
use crate::model::parse::{self, shown};
use crate::model::{Conditions, Endpoint, Family, Hints, ObjectName, Places, Reject, Slice, SlicePort};

/// Slices of headless Services carry it; they are for DNS alone.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The name of the Service that a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// The annotation that says when what the slice tells has happened.
pub const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// When what the slice tells has happened (RFC 3339), if it says so.
pub(super) fn last_change(object: &discovery::EndpointSlice, rejects: &mut Vec<Reject>) -> Option<SystemTime> {
    let text = object.metadata.annotations.as_ref()?.get(LAST_CHANGE)?;
    let time = text.parse::<Timestamp>().ok();
    if time.is_none() {
        let reason = format!("{} is not a time; how long the change took is not measured", shown(text));
        rejects.push(Reject::new(format!("metadata.annotations[{LAST_CHANGE}]"), reason));
    }
    time.map(SystemTime::from)
}

/// Reads an EndpointSlice. One without a Service, or of a headless one, gives no value.
pub fn slice(object: &discovery::EndpointSlice, options: &Options, pool: &mut Pool) -> Converted<Slice> {
    let name = match object_name(&object.metadata) {
        Ok(name) => name,
        Err(reject) => return Converted { name: None, value: None, rejects: vec![reject] },
    };
    let mut rejects = Vec::new();
    let value = value(object, &name, options, &mut rejects, pool);
    Converted { name: Some(name), value, rejects }
}

fn value(
    object: &discovery::EndpointSlice,
    name: &ObjectName,
    options: &Options,
    rejects: &mut Vec<Reject>,
    pool: &mut Pool,
) -> Option<Slice> {
    let service = used_by(object, name, rejects)?;
    let family = family(object, rejects)?;
    let ports = ports(object, rejects, pool);
    let mut endpoints = Vec::new();
    let mut names = Vec::new();
    for (i, object) in list(&object.endpoints).iter().enumerate() {
        if let Some(endpoint) = endpoint(i, object, family, options, rejects, pool) {
            endpoints.push(endpoint);
            names.push((pod(object), object.node_name.as_deref().filter(is_name).map(|node| pool.share(node))));
        }
    }
    let weight = spread::weight(&object.metadata, rejects);
    let (endpoints, places) = (endpoints.into(), Places::new(names));
    Some(Slice { name: name.clone(), service, family, ports, weight, endpoints, places })
}

/// The name of the pod that an endpoint is.
fn pod(object: &discovery::Endpoint) -> Option<&str> {
    let target = object.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    target.name.as_deref().filter(is_name)
}

/// Whether a text can be shown as a name. What cannot is left out without a word: nothing depends on it.
fn is_name(text: &&str) -> bool {
    ObjectName::is_part(text)
}

/// The Service that the slice belongs to, if it is to be used at all.
fn used_by(object: &discovery::EndpointSlice, name: &ObjectName, rejects: &mut Vec<Reject>) -> Option<ObjectName> {
    if label(&object.metadata, HEADLESS_LABEL).is_some() {
        return None;
    }
    let service = label(&object.metadata, SERVICE_NAME_LABEL).filter(|service| !service.is_empty())?;
    let joined = ObjectName::new(name.namespace(), service);
    if joined.is_none() {
        let reason = format_args!("{} is not the name of a Service; the slice is not used", shown(service));
        rejects.push(Reject::new(format!("metadata.labels[{SERVICE_NAME_LABEL}]"), reason));
    }
    joined
}

fn family(object: &discovery::EndpointSlice, rejects: &mut Vec<Reject>) -> Option<Family> {
    let family = Family::ALL.into_iter().find(|family| family.to_string() == object.address_type);
    if family.is_none() {
        let reason = format_args!("{} is not IPv4 or IPv6; the slice is not used", shown(&object.address_type));
        rejects.push(Reject::new("addressType", reason));
    }
    family
}

fn ports(object: &discovery::EndpointSlice, rejects: &mut Vec<Reject>, pool: &mut Pool) -> Box<[SlicePort]> {
    let mut ports = Vec::new();
    for (i, object) in list(&object.ports).iter().enumerate() {
        let mut reject = |field: &str, problem: &str| {
            rejects.push(Reject::new(format!("ports[{i}].{field}"), format_args!("{problem}; the port is skipped")));
        };
        // As the API server fills it in.
        let name = match port_name(object.name.as_deref().unwrap_or_default()) {
            Ok(name) => name,
            Err(error) => {
                reject("name", &error);
                continue;
            }
        };
        let Some(number) = object.port else {
            reject("port", "missing, and \"all ports\" cannot be served");
            continue;
        };
        let Some(port) = port_number(number) else {
            reject("port", &format!("{number} is not from 1 to 65535"));
            continue;
        };
        match protocol(object.protocol.as_deref()) {
            Ok(protocol) => ports.push(SlicePort { name: pool.share(name), protocol, port }),
            Err(error) => reject("protocol", &error),
        }
    }
    ports.into()
}

fn endpoint(
    i: usize,
    object: &discovery::Endpoint,
    family: Family,
    options: &Options,
    rejects: &mut Vec<Reject>,
    pool: &mut Pool,
) -> Option<Endpoint> {
    let found = match object.addresses.first() {
        None => Err("empty".to_owned()),
        Some(text) => match address(text, parse::special) {
            Ok(address) if Family::of(address) == family => Ok(address),
            // An IPv4-mapped address in an IPv6 slice ends here: no IPv6 rule could hold it.
            Ok(address) => Err(format!("{} is {}, the slice is {family}", shown(text), Family::of(address))),
            Err(error) => Err(error),
        },
    };
    let address = match found {
        Ok(address) => address,
        Err(problem) => {
            let first = if object.addresses.is_empty() { "" } else { "[0]" };
            let reason = format_args!("{problem}; the endpoint is skipped");
            rejects.push(Reject::new(format!("endpoints[{i}].addresses{first}"), reason));
            return None;
        }
    };
    let local = object.node_name.as_deref() == Some(&options.node_name);
    let given = object.conditions.as_ref();
    // A missing `serving` is true whatever `ready` says: that is how kube-proxy reads it.
    let conditions = Conditions {
        ready: given.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: given.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: given.and_then(|conditions| conditions.terminating).unwrap_or(false),
        local,
    };
    Some(Endpoint { address, conditions, hints: hints(object, options, pool) })
}

fn hints(object: &discovery::Endpoint, options: &Options, pool: &mut Pool) -> Option<Box<Hints>> {
    let hints = object.hints.as_ref()?;
    let nodes = list(&hints.for_nodes);
    let mut zones: Vec<&str> = list(&hints.for_zones).iter().map(|zone| zone.name.as_str()).collect();
    zones.sort_unstable();
    zones.dedup();
    (!zones.is_empty() || !nodes.is_empty()).then(|| {
        Box::new(Hints {
            zones: zones.into_iter().map(|zone| pool.share(zone)).collect(),
            for_nodes: !nodes.is_empty(),
            for_this_node: nodes.iter().any(|node| node.name == options.node_name),
        })
    })
}
