//! What a daemon knows of the frontends that the kernel has: pods, nodes, weights, and why something is not served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::{AskError, EndpointState, EndpointStatus, Filter, FrontendStatus, Policy, ask_services};
use crate::metrics::services::{Direction, EndpointFacts, PortFacts, Query, ServiceFacts};
use crate::model::ObjectName;

/// So many Services are asked for one by one; of more, all are.
const MOST_ASKED: usize = 16;

/// Asks the daemon whose metrics port has this address about the Services of these frontends, and those that the filter
/// names.
///
/// # Errors
/// See [`AskError`].
pub async fn ask_known(
    metrics: SocketAddr,
    filter: &Filter,
    frontends: &[FrontendStatus],
) -> Result<Vec<ServiceFacts>, AskError> {
    let name = |frontend: &FrontendStatus| {
        let (namespace, name) = service_of(frontend).split_once('/')?;
        ObjectName::new(namespace, name)
    };
    let mut names: BTreeSet<ObjectName> = frontends.iter().filter_map(name).collect();
    if let Filter::Service(service, _) = filter {
        names.insert(service.clone());
    }
    if names.len() > MOST_ASKED {
        return ask_services(metrics, &Query::All).await;
    }
    let mut all = Vec::new();
    for name in names {
        all.extend(ask_services(metrics, &Query::Name(name)).await?);
    }
    Ok(all)
}

/// What the daemon knows of the Service that the filter names; `None` where it names none, and where nobody says.
pub async fn ask_named(metrics: SocketAddr, filter: &Filter) -> Option<ServiceFacts> {
    let Filter::Service(service, _) = filter else { return None };
    ask_services(metrics, &Query::Name(service.clone())).await.ok()?.pop()
}

/// The name of a frontend's Service, without that of its port.
fn service_of(frontend: &FrontendStatus) -> &str {
    frontend.service.split_once(':').map_or(&*frontend.service, |(service, _)| service)
}

/// Adds to frontends what is known of their Services.
pub fn add_known(frontends: &mut [FrontendStatus], services: &[ServiceFacts]) {
    let services: BTreeMap<&str, &ServiceFacts> = services.iter().map(|facts| (&*facts.name, facts)).collect();
    for frontend in frontends {
        let Some(facts) = services.get(service_of(frontend)) else { continue };
        let name = frontend.service.split_once(':').map_or("", |(_, port)| port);
        let port = facts.ports.iter().find(|port| port.name == name && port.protocol == frontend.protocol);
        if let Some(port) = port {
            add_to(frontend, facts, port);
        }
    }
}

fn add_to(frontend: &mut FrontendStatus, facts: &ServiceFacts, port: &PortFacts) {
    frontend.configured_scheduler = Some(facts.scheduler.clone());
    frontend.unserved = unserved(frontend, facts, port);
    let of_port = |it: &&EndpointFacts| {
        let family = if it.address.is_ipv4() { "IPv4" } else { "IPv6" };
        it.port_name == port.name && it.protocol == port.protocol && family == frontend.family
    };
    let mut known: BTreeMap<SocketAddr, &EndpointFacts> = BTreeMap::new();
    for endpoint in facts.endpoints.iter().filter(of_port) {
        let at = SocketAddr::new(endpoint.address, endpoint.port);
        let kept = known.entry(at).or_insert(endpoint);
        // An address may have passed from a pod that ends to another one.
        if state(kept) != EndpointState::Ready {
            *kept = endpoint;
        }
    }
    for endpoint in &mut frontend.endpoints {
        if let Some(facts) = known.remove(&endpoint.address) {
            know(endpoint, facts);
        }
    }
    // Those that are left serve, only not here, or they do not serve: then people look for them.
    let idle = known.into_iter().filter(|(_, facts)| state(facts) != EndpointState::Ready);
    let idle: Vec<EndpointStatus> = idle
        .map(|(address, facts)| {
            let mut endpoint = EndpointStatus::new(address, 0, 0);
            know(&mut endpoint, facts);
            endpoint
        })
        .collect();
    if !idle.is_empty() {
        frontend.endpoints.extend(idle);
        frontend.endpoints.sort_by_key(|endpoint| endpoint.address);
    }
}

fn know(endpoint: &mut EndpointStatus, facts: &EndpointFacts) {
    endpoint.pod = facts.pod.clone();
    endpoint.node = facts.node.clone();
    endpoint.weight = Some(facts.weight);
    endpoint.state = Some(state(facts));
}

fn state(facts: &EndpointFacts) -> EndpointState {
    match (facts.ready, facts.terminating) {
        (true, _) => EndpointState::Ready,
        (false, true) => EndpointState::Terminating,
        (false, false) => EndpointState::NotReady,
    }
}

/// Why a frontend is not served: only where what the kernel does with its connections is what the daemon gives a reason for.
fn unserved(frontend: &FrontendStatus, facts: &ServiceFacts, port: &PortFacts) -> Option<String> {
    let fate = match frontend.policy {
        Policy::Refused => "refused",
        Policy::Dropped | Policy::DroppedOutside => "dropped",
        Policy::Cluster | Policy::Local | Policy::Unknown => return None,
    };
    let is_cluster_ip = frontend.address.is_some_and(|address| facts.cluster_ips.contains(&address));
    let from = if is_cluster_ip { Direction::Inside } else { Direction::Outside };
    let reason = port.unserved.iter().find(|it| it.family == frontend.family && it.from == from && it.fate == fate);
    reason.map(|reason| reason.why.clone())
}
