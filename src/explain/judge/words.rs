//! What a packet is sent to, in words.

use super::super::facts::{Does, Facts, Table, Way};
use crate::metrics::services::{EndpointFacts, ServiceFacts};
use crate::model::Role;
use crate::status::{FrontendStatus, Policy};

/// `2 endpoints`.
pub(super) fn count(number: usize, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// `2 endpoints have`.
pub(super) fn has(number: usize, what: &str) -> String {
    format!("{} {}", count(number, what), if number == 1 { "has" } else { "have" })
}

/// A way.
pub(super) fn route(way: &Way) -> String {
    match way {
        Way::By(interface, _) => format!("by {interface}"),
        Way::Local => "this node".to_owned(),
        Way::Nowhere(why) => format!("NO WAY ({why})"),
        Way::NotForwarded(setting, _) => format!("NOT FORWARDED ({setting})"),
        Way::ReversePath(setting, _) => format!("DROPPED FOR ITS SOURCE ({setting})"),
    }
}

/// What a chain of somebody else does.
pub(super) fn does(does: &Does) -> String {
    match does {
        Does::Passes => "lets it pass".to_owned(),
        Does::Drops(rule) => format!("DROPS it: {rule}"),
        Does::Rejects(rule) => format!("REFUSES it: {rule}"),
        Does::MayDrop(rule, why) => format!("may drop it, which cannot be told ({why}): {rule}"),
        Does::Translates(rule) => format!("TRANSLATES it: {rule}"),
        Does::Takes(rule, to) => format!("GIVES it to {to}: {rule}"),
        Does::NotTracked(rule) => format!("keeps it from being tracked: {rule}"),
    }
}

/// As what the Service has the destination; `None` where only a daemon could tell.
pub(super) fn role(facts: &Facts) -> Option<Role> {
    let frontend = facts.frontend.as_ref()?;
    let Some(address) = frontend.address else { return Some(Role::NodePort) };
    let service = facts.service.as_ref()?;
    let is_in = |list: &[std::net::IpAddr]| list.contains(&address);
    if is_in(&service.cluster_ips) {
        Some(Role::ClusterIp)
    } else if is_in(&service.load_balancer_ips) {
        Some(Role::LoadBalancerIp)
    } else {
        is_in(&service.external_ips).then_some(Role::ExternalIp)
    }
}

/// Whether it is something else than a cluster IP.
pub(super) fn is_external(facts: &Facts) -> bool {
    role(facts).map_or(!facts.is_cluster_ip, |role| role != Role::ClusterIp)
}

/// What the packet is sent to.
pub(super) fn what(facts: &Facts) -> String {
    let Some(frontend) = &facts.frontend else {
        return match (&facts.node_port, &facts.local_at) {
            (Some(node_port), _) => format!("not a frontend (the node port is that of {})", node_port.service),
            (None, Some(interface)) => format!("an address of this node ({interface})"),
            (None, None) if facts.in_service_cidr.is_some() => "an address in a range of cluster IPs".to_owned(),
            (None, None) if matches!(facts.table, Table::Absent | Table::Dormant) => {
                "an address that no table tells anything of".to_owned()
            }
            (None, None) => "no address of a Service".to_owned(),
        };
    };
    let external = is_external(facts);
    let kind = match role(facts) {
        Some(Role::ClusterIp) => "cluster IP",
        Some(Role::LoadBalancerIp) => "load-balancer IP",
        Some(Role::ExternalIp) => "external IP",
        Some(Role::NodePort) => "node port",
        None if external => "external or load-balancer IP",
        None => "cluster IP",
    };
    let policy = match &facts.service {
        Some(service) if external => format!("externalTrafficPolicy {}", service.external_traffic_policy),
        Some(service) => format!("internalTrafficPolicy {}", service.internal_traffic_policy),
        None => match frontend.policy {
            Policy::Cluster => "to any endpoint",
            Policy::Local => "from outside to endpoints of this node",
            Policy::DroppedOutside => "nobody from outside, as this node has no endpoint",
            Policy::Refused => "no endpoint",
            Policy::Dropped => "no endpoint on this node",
            Policy::Unknown => "damaged",
        }
        .to_owned(),
    };
    format!("{kind}, {policy}")
}

/// What else decides.
pub(super) fn facts(facts: &Facts) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    let Some(frontend) = &facts.frontend else { return all };
    if frontend.source_ranges {
        let ranges: Vec<String> = frontend.allowed_sources.clone().unwrap_or_default();
        all.push((
            "source ranges",
            if ranges.is_empty() { "none of this family".to_owned() } else { ranges.join(", ") },
        ));
    }
    if let Some(scheduler) = scheduler(facts, frontend) {
        all.push(("scheduler", scheduler));
    }
    if let Some(seconds) = frontend.affinity_seconds {
        let client = match facts.remembered {
            Some(remembered) => {
                format!("this client at {}, for {} s still", remembered.endpoint, remembered.seconds_left)
            }
            None if facts.table == Table::OfManifests => String::new(),
            None => "this client is not remembered".to_owned(),
        };
        let client = if client.is_empty() { client } else { format!("; {client}") };
        all.push(("affinity", format!("ClientIP, {seconds} s{client}")));
    }
    if frontend.address.is_none() {
        let accepting: Vec<String> = facts.accepting.iter().map(ToString::to_string).collect();
        all.push(("node ports on", if accepting.is_empty() { "no address".to_owned() } else { accepting.join(", ") }));
    }
    if facts.node.as_ref().is_some_and(|node| node.not_probed) {
        let protocol = facts.asked.protocol;
        let why = match protocol {
            "udp" => "an endpoint answers only what it understands, and any other datagram may do harm",
            _ => "it takes an implementation of this protocol, which --probe has not",
        };
        all.push(("answers", format!("not asked for, as {protocol} cannot be probed: {why}")));
    }
    if nobody_has_tried(facts) {
        all.push(("answers", "not known, as nobody is connected; --probe tries".to_owned()));
    }
    all
}

/// Whether nothing tells that an endpoint answers, and an attempt would. The kernel forgets those that were refused.
fn nobody_has_tried(facts: &Facts) -> bool {
    let mut endpoints = facts.node.iter().flat_map(|node| node.to_endpoints.values()).peekable();
    facts.asked.protocol == "tcp"
        && endpoints.peek().is_some()
        && endpoints.all(|to| to.probe.is_none() && to.answered == 0 && to.unanswered == 0)
}

fn scheduler(facts: &Facts, frontend: &FrontendStatus) -> Option<String> {
    let by_table = frontend.scheduler?;
    Some(match &facts.service {
        Some(service) if service.scheduler != by_table => {
            format!("{} (in table {}: {by_table})", service.scheduler, facts.table_name())
        }
        _ => by_table.to_owned(),
    })
}

/// What else Services have at the address.
pub(super) fn neighbours(facts: &Facts) -> String {
    if facts.neighbours.is_empty() {
        return "no port".to_owned();
    }
    let one = |(port, protocol, service): &(u16, &'static str, String)| format!("{port} {protocol} ({service})");
    facts.neighbours.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The endpoints of the Service port, ready or not.
pub(super) fn candidates<'a>(facts: &Facts, service: &'a ServiceFacts) -> Vec<&'a EndpointFacts> {
    let port = facts.frontend.as_ref().map(|frontend| frontend.service.rsplit_once(':').map_or("", |(_, port)| port));
    let is_v4 = facts.asked.to.is_ipv4();
    let of_port = |endpoint: &&EndpointFacts| {
        Some(&*endpoint.port_name) == port
            && endpoint.protocol == facts.asked.protocol
            && endpoint.address.is_ipv4() == is_v4
    };
    service.endpoints.iter().filter(of_port).collect()
}
