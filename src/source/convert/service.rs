//! Service (`v1`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use arcstr::ArcStr;
use k8s_openapi::api::core::v1 as core;

use super::fields::{address, cidrs, list, object_name, port_name, port_number, protocol, sorted_set};
use super::{Converted, Options, Pool, spread};
use crate::model::parse::{self, shown};
use crate::model::{Family, PerFamily, Protocol, Reject, Service, ServicePort, TrafficPolicy};

/// A Service with this label belongs to the proxy of this name, and to none without a name.
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// The API server's upper bound of it: a day.
const LONGEST_AFFINITY_SECONDS: u32 = 86_400;

/// Reads a Service.
pub fn service(object: &core::Service, options: &Options, pool: &mut Pool) -> Converted<Service> {
    let name = match object_name(&object.metadata) {
        Ok(name) => name,
        Err(reject) => return Converted { name: None, value: None, rejects: vec![reject] },
    };
    let mut rejects = Vec::new();
    let Some(spec) = proxied_spec(object, options, &mut rejects) else {
        return Converted { name: Some(name), value: None, rejects };
    };

    let cluster_ips = cluster_ips(spec, &mut rejects);
    let kind = service_type(spec, &mut rejects);
    let external_ips = external_ips(spec, &mut rejects);
    let has_external_ips = PerFamily::from_fn(|family| external_ips.iter().any(|ip| Family::of(*ip) == family));
    let internal_policy =
        traffic_policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy", &mut rejects);
    let external_policy =
        match traffic_policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", &mut rejects) {
            // The API server's ExternallyAccessible(): entries count here, even bad ones of any family.
            TrafficPolicy::Local if kind == Type::ClusterIp && list(&spec.external_ips).is_empty() => {
                TrafficPolicy::Cluster
            }
            policy => policy,
        };
    let mut value = Service {
        name: name.clone(),
        cluster_ips,
        ports: ports(spec, &mut rejects, pool),
        external_ips: if options.allow_external_ips { external_ips } else { Box::default() },
        load_balancer_ips: load_balancer_ips(object, &mut rejects),
        has_external_ips,
        source_ranges: None,
        ranges_everywhere: spread::ranges_everywhere(&object.metadata, &mut rejects),
        internal_policy,
        external_policy,
        affinity: affinity(spec, &mut rejects),
        scheduler: spread::scheduler(&object.metadata, &mut rejects),
        maglev_size: spread::maglev_size(&object.metadata, &mut rejects).and_then(NonZeroU16::new),
        ping: spread::ping(&object.metadata, &mut rejects),
        accounting: spread::accounting(&object.metadata, &mut rejects),
        reset_connections: spread::reset_connections(&object.metadata, &mut rejects),
        health_check_node_port: (kind == Type::LoadBalancer && external_policy == TrafficPolicy::Local)
            .then(|| health_check_node_port(spec, &mut rejects))
            .flatten(),
        created: object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
    };
    value.source_ranges = source_ranges(spec, &value, &mut rejects);
    let usable = Family::ALL.iter().any(|family| value.cluster_ips[*family].is_some()) && !value.ports.is_empty();
    Converted { name: Some(name), value: usable.then_some(value), rejects }
}

/// The spec of a Service that is for this proxy: not headless, not ExternalName, not another proxy's.
fn proxied_spec<'a>(
    object: &'a core::Service,
    options: &Options,
    rejects: &mut Vec<Reject>,
) -> Option<&'a core::ServiceSpec> {
    if !options.serves(&object.metadata) {
        return None;
    }
    let spec = object.spec.as_ref();
    if spec.is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName")) {
        return None;
    }
    match spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default() {
        "None" => None,
        // An API server always fills it in; somebody who writes manifests may not know.
        "" => {
            rejects.push(Reject::new("spec.clusterIP", "missing; the Service is not proxied"));
            None
        }
        _ => spec,
    }
}

/// `spec.type`, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

fn service_type(spec: &core::ServiceSpec, rejects: &mut Vec<Reject>) -> Type {
    match spec.type_.as_deref().unwrap_or_default() {
        "" | "ClusterIP" => Type::ClusterIp,
        "NodePort" => Type::NodePort,
        "LoadBalancer" => Type::LoadBalancer,
        other => {
            rejects
                .push(Reject::new("spec.type", format_args!("{} is not a type; treated as ClusterIP", shown(other))));
            Type::ClusterIp
        }
    }
}

/// The cluster IP of each family. `spec.ipFamilies` says which of `spec.clusterIPs` is whose; objects from before
/// dual-stack have only `spec.clusterIP`.
fn cluster_ips(spec: &core::ServiceSpec, rejects: &mut Vec<Reject>) -> PerFamily<Option<IpAddr>> {
    let mut found = PerFamily::default();
    let families = list(&spec.ip_families);
    if families.is_empty() || list(&spec.cluster_ips).is_empty() {
        match address(spec.cluster_ip.as_deref().unwrap_or_default(), parse::nowhere) {
            Ok(address) => found[Family::of(address)] = Some(address),
            Err(error) => {
                rejects.push(Reject::new("spec.clusterIP", format_args!("{error}; the Service is not proxied")));
            }
        }
        return found;
    }
    let mut seen = PerFamily::<bool>::default();
    for (i, (family, text)) in families.iter().zip(list(&spec.cluster_ips)).enumerate() {
        let Some(family) = Family::ALL.into_iter().find(|known| known.to_string() == *family) else {
            let reason = format_args!("{} is not IPv4 or IPv6; skipped", shown(family));
            rejects.push(Reject::new(format!("spec.ipFamilies[{i}]"), reason));
            continue;
        };
        let field = || format!("spec.clusterIPs[{i}]");
        if std::mem::replace(&mut seen[family], true) {
            rejects.push(Reject::new(field(), format_args!("a second cluster IP of {family}; skipped")));
            continue;
        }
        match address(text, parse::nowhere) {
            Ok(address) if Family::of(address) == family => found[family] = Some(address),
            Ok(address) => rejects.push(Reject::new(
                field(),
                format_args!("{address} is not of {family}, as spec.ipFamilies[{i}] says; not proxied in {family}"),
            )),
            Err(error) => rejects.push(Reject::new(field(), format_args!("{error}; not proxied in {family}"))),
        }
    }
    found
}

fn ports(spec: &core::ServiceSpec, rejects: &mut Vec<Reject>, pool: &mut Pool) -> Box<[ServicePort]> {
    let mut seen: BTreeSet<(ArcStr, Protocol)> = BTreeSet::new();
    let mut ports = Vec::new();
    if list(&spec.ports).is_empty() {
        rejects.push(Reject::new("spec.ports", "missing; the Service is not proxied"));
    }
    for (i, object) in list(&spec.ports).iter().enumerate() {
        let Some(port) = port_number(object.port) else {
            let reason = format_args!("{} is not from 1 to 65535; the port is skipped", object.port);
            rejects.push(Reject::new(format!("spec.ports[{i}].port"), reason));
            continue;
        };
        let protocol = match protocol(object.protocol.as_deref()) {
            Ok(protocol) => protocol,
            Err(error) => {
                rejects.push(Reject::new(
                    format!("spec.ports[{i}].protocol"),
                    format_args!("{error}; the port is skipped"),
                ));
                continue;
            }
        };
        let node_port = match object.node_port.unwrap_or(0) {
            0 => None,
            number => port_number(number).or_else(|| {
                let reason = format_args!("{number} is not from 1 to 65535; the port has no node port");
                rejects.push(Reject::new(format!("spec.ports[{i}].nodePort"), reason));
                None
            }),
        };
        let name = match port_name(object.name.as_deref().unwrap_or_default()) {
            Ok(name) => pool.share(name),
            Err(error) => {
                let reason = format_args!("{error}; the port is skipped");
                rejects.push(Reject::new(format!("spec.ports[{i}].name"), reason));
                continue;
            }
        };
        if !seen.insert((ArcStr::clone(&name), protocol)) {
            let reason = format_args!("a second {protocol} port of the name {}; skipped", shown(&name));
            rejects.push(Reject::new(format!("spec.ports[{i}].name"), reason));
            continue;
        }
        ports.push(ServicePort { name, protocol, port, node_port });
    }
    ports.into()
}

/// All valid external IPs, whatever the feature gate says.
fn external_ips(spec: &core::ServiceSpec, rejects: &mut Vec<Reject>) -> Box<[IpAddr]> {
    let mut addresses = Vec::new();
    for (i, text) in list(&spec.external_ips).iter().enumerate() {
        match address(text, parse::special) {
            Ok(address) => addresses.push(address),
            // Blank entries are common in old objects and mean nothing.
            Err(_) if text.trim().is_empty() => {}
            Err(error) => rejects.push(Reject::new(format!("spec.externalIPs[{i}]"), format_args!("{error}; skipped"))),
        }
    }
    sorted_set(addresses)
}

/// Addresses of load balancers whose packets arrive with that address as their destination (KEP-1860, `ipMode: VIP`).
fn load_balancer_ips(object: &core::Service, rejects: &mut Vec<Reject>) -> Box<[IpAddr]> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut addresses = Vec::new();
    for (i, ingress) in status.map(|status| list(&status.ingress)).unwrap_or_default().iter().enumerate() {
        let field = |name: &str| format!("status.loadBalancer.ingress[{i}].{name}");
        let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("VIP") => match address(text, parse::nowhere) {
                Ok(address) => addresses.push(address),
                Err(error) => rejects.push(Reject::new(field("ip"), format_args!("{error}; skipped"))),
            },
            Some("Proxy") => {}
            Some(other) => {
                rejects
                    .push(Reject::new(field("ipMode"), format_args!("{} is not VIP or Proxy; skipped", shown(other))));
            }
        }
    }
    sorted_set(addresses)
}

/// Who may connect to the load-balancer IPs, or to all that is reached from outside: nobody, where nothing of what is said
/// about it can be used. Ranges of one family say nothing about the other, as with kube-proxy; that may not have been meant so.
fn source_ranges(
    spec: &core::ServiceSpec,
    service: &Service,
    rejects: &mut Vec<Reject>,
) -> Option<Box<[ipnet::IpNet]>> {
    const FIELD: &str = "spec.loadBalancerSourceRanges";
    let everywhere = service.ranges_everywhere;
    let texts = list(&spec.load_balancer_source_ranges);
    if texts.is_empty() {
        if everywhere {
            let reason = format_args!("without effect: there is no {FIELD}");
            rejects.push(Reject::new(spread::field(spread::RANGES_EVERYWHERE), reason));
        }
        return None;
    }
    let guarded = if everywhere { "load-balancer IPs, external IPs and node ports" } else { "load-balancer IPs" };
    // White space around a source range has always been accepted, unlike around addresses.
    let trimmed: Vec<String> = texts.iter().map(|text| text.trim().to_owned()).collect();
    let ranges = sorted_set(cidrs(&trimmed, FIELD, rejects).into_vec());
    if ranges.is_empty() {
        rejects.push(Reject::new(FIELD, format_args!("no range is left: nobody may connect to the {guarded}")));
        return Some(ranges);
    }
    for family in Family::ALL {
        let of_family = |address: &IpAddr| Family::of(*address) == family;
        let has_ip = service.load_balancer_ips.iter().any(of_family);
        let is_exposed = |port: &ServicePort| port.node_port.is_some() || service.external_ips.iter().any(of_family);
        let has_more = service.cluster_ips[family].is_some() && service.ports.iter().any(is_exposed);
        if (has_ip || everywhere && has_more) && !ranges.iter().any(|range| Family::of(range.addr()) == family) {
            let reason = format_args!("no range is {family}: {guarded} of that family are open to all");
            rejects.push(Reject::new(FIELD, reason));
        }
    }
    Some(ranges)
}

fn traffic_policy(value: Option<&str>, field: &str, rejects: &mut Vec<Reject>) -> TrafficPolicy {
    match value.unwrap_or_default() {
        "" | "Cluster" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            rejects
                .push(Reject::new(field, format_args!("{} is not Cluster or Local; treated as Cluster", shown(other))));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &core::ServiceSpec, rejects: &mut Vec<Reject>) -> Option<u32> {
    match spec.session_affinity.as_deref().unwrap_or_default() {
        "" | "None" => return None,
        "ClientIP" => {}
        other => {
            let reason = format_args!("{} is not None or ClientIP; treated as None", shown(other));
            rejects.push(Reject::new("spec.sessionAffinity", reason));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let problem = match config.and_then(|config| config.timeout_seconds) {
        None => "missing".to_owned(),
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds @ 1..=LONGEST_AFFINITY_SECONDS) => return Some(seconds),
            _ => format!("{seconds} is not from 1 to {LONGEST_AFFINITY_SECONDS}"),
        },
    };
    let reason = format_args!("{problem}; the default of {DEFAULT_AFFINITY_SECONDS} is used");
    rejects.push(Reject::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason));
    Some(DEFAULT_AFFINITY_SECONDS)
}

fn health_check_node_port(spec: &core::ServiceSpec, rejects: &mut Vec<Reject>) -> Option<NonZeroU16> {
    let number = spec.health_check_node_port.unwrap_or(0);
    let port = port_number(number);
    if port.is_none() {
        let problem = if number == 0 { "missing".to_owned() } else { format!("{number} is not from 1 to 65535") };
        let reason = format_args!("{problem}; a load balancer cannot ask whether this node has endpoints");
        rejects.push(Reject::new("spec.healthCheckNodePort", reason));
    }
    port
}
