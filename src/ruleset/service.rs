//! What one Service wants in a family's table: its frontends, and what it shares with others.

use std::net::IpAddr;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::frontend::{Action, Backend, Frontend, Shared, Slots};
use super::names::{Masquerade, Pick};
use super::ranges::{self, Range};
use crate::model::policy::{Choice, Target};
use crate::model::{Family, FrontendKey, Role, Service, ServicePort, TrafficPolicy};

/// Everything that one Service wants in one family's table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePart {
    /// Sorted by key, each key once.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// Sorted, each once.
    pub shared: Vec<Shared>,
    /// Endpoints of the port with the most of them for which there is no room: they are in no frontend.
    pub left_out: usize,
}

/// What a Service's part of the ruleset depends on besides the Service, per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceFacts {
    /// How connections to a cluster IP are masqueraded: `FromOutside` where pods can be told apart, `Never` where they
    /// cannot, `Always` with `masqueradeAll`.
    pub cluster_ip_masquerade: Masquerade,
    /// This node's own address: if it is among the allowed source ranges, the load-balancer IPs are too, because a
    /// packet of the node may carry one as its source.
    pub node_ip: Option<IpAddr>,
}

/// The part of one Service in one family's table.
///
/// `owns` tells whether this port of the Service owns a frontend in this role (another Service may claim the same, or
/// itself in another role), `choose` which endpoints a port may use, `previous` what is installed for a key: slots are kept where they are as far as possible.
pub fn part<'a>(
    service: &Service,
    family: Family,
    facts: &ServiceFacts,
    owns: impl Fn(&FrontendKey, &ServicePort, Role) -> bool,
    choose: impl Fn(&ServicePort) -> Choice,
    previous: impl Fn(&FrontendKey) -> Option<&'a Frontend>,
) -> ServicePart {
    let Some(cluster_ip) = service.cluster_ips[family] else { return ServicePart::default() };
    let shared = vec![Shared::ClusterIp(cluster_ip)];
    let mut part = ServicePart { frontends: Vec::new(), shared, left_out: 0 };
    for port in &service.ports {
        let choice = choose(port);
        let most = choice.cluster.len().max(choice.local.len());
        part.left_out = part.left_out.max(most.saturating_sub(Pick::MOST_SLOTS as usize));
        for (key, role) in service.frontends(port, family).filter(|(key, role)| owns(key, port, *role)) {
            let (action, allowed_sources) = match role {
                Role::ClusterIp => (internal_action(service, &choice, facts), None),
                Role::LoadBalancerIp => (external_action(service, &choice), allowed_sources(service, family, facts)),
                Role::ExternalIp | Role::NodePort => (external_action(service, &choice), None),
            };
            let mut frontend =
                Frontend { service: service.name.clone(), port_name: port.name.clone(), action, allowed_sources };
            if let Some(installed) = previous(&key) {
                keep_slots(&mut frontend.action, &installed.action);
            }
            part.frontends.push((key, frontend));
        }
        let reachable = choice.cluster.iter().chain(&choice.local);
        let local = reachable.filter(|target| target.local).map(|target| target.address);
        part.shared.extend(local.flat_map(|address| [Shared::LocalEndpoint(address), Shared::Hairpin(address)]));
    }
    part.frontends.sort_by_key(|(key, _)| *key);
    part.shared.sort_unstable();
    part.shared.dedup();
    part
}

fn internal_action(service: &Service, choice: &Choice, facts: &ServiceFacts) -> Action {
    forward(choice, service.internal_policy, facts.cluster_ip_masquerade, service.affinity)
}

fn external_action(service: &Service, choice: &Choice) -> Action {
    match service.external_policy {
        TrafficPolicy::Local if choice.any && !choice.cluster.is_empty() => {
            Action::Split { affinity: service.affinity, cluster: slots(&choice.cluster), local: slots(&choice.local) }
        }
        TrafficPolicy::Local => forward(choice, TrafficPolicy::Local, Masquerade::Never, service.affinity),
        TrafficPolicy::Cluster => forward(choice, TrafficPolicy::Cluster, Masquerade::Always, service.affinity),
    }
}

fn forward(choice: &Choice, policy: TrafficPolicy, masquerade: Masquerade, affinity: Option<u32>) -> Action {
    let targets = match policy {
        TrafficPolicy::Cluster => &choice.cluster,
        TrafficPolicy::Local => &choice.local,
    };
    if !choice.any {
        Action::Reject
    } else if targets.is_empty() {
        Action::Drop
    } else {
        Action::Forward { policy, masquerade, affinity, slots: slots(targets) }
    }
}

fn slots(targets: &[Target]) -> Slots {
    targets.iter().take(Pick::MOST_SLOTS as usize).map(Backend::from).collect()
}

/// The ranges that may reach a load-balancer IP, maybe none; `None` where all sources may: nothing is said about it, or
/// about the other family only, or a `/0`.
fn allowed_sources(service: &Service, family: Family, facts: &ServiceFacts) -> Option<Box<[Range]>> {
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let ranges = service.source_ranges.as_ref()?;
    let nets: SmallVec<[IpNet; 8]> = ranges.iter().filter(|net| of_family(&net.network())).copied().collect();
    let only_of_the_other = nets.is_empty() && !ranges.is_empty();
    if only_of_the_other || nets.iter().any(|net| net.prefix_len() == 0) {
        return None;
    }
    let mut allowed: Vec<Range> = nets.iter().map(Range::of).collect();
    if facts.node_ip.is_some_and(|node_ip| nets.iter().any(|net| net.contains(&node_ip))) {
        allowed.extend(service.load_balancer_ips.iter().copied().filter(of_family).map(Range::single));
    }
    Some(ranges::merge(allowed).into())
}

/// Arranges the slots of a new action as the installed one has them, as far as its endpoints are still wanted.
fn keep_slots(action: &mut Action, installed: &Action) {
    let (cluster, local) = match installed {
        Action::Forward { slots, .. } => (slots, None),
        Action::Split { cluster, local, .. } => (cluster, Some(local)),
        Action::Reject | Action::Drop => return,
    };
    match action {
        Action::Forward { slots, .. } => *slots = arrange(cluster, slots),
        Action::Split { cluster: wanted_cluster, local: wanted_local, .. } => {
            *wanted_cluster = arrange(cluster, wanted_cluster);
            if let Some(local) = local {
                *wanted_local = arrange(local, wanted_local);
            }
        }
        Action::Reject | Action::Drop => {}
    }
}

/// Puts the wanted endpoints into slots so that as few slots as possible differ from the installed ones: an endpoint that
/// stays keeps its slot; one beyond the new count moves into a gap; new ones fill what is left. So removing one of N
/// changes two slots, whatever N. `wanted` must be sorted; the cost is O(N log N).
pub fn arrange(installed: &[Backend], wanted: &[Backend]) -> Slots {
    let mut slots: Vec<Option<Backend>> = vec![None; wanted.len()];
    let mut placed = vec![false; wanted.len()];
    let mut moving = Vec::new();
    for (slot, backend) in installed.iter().enumerate() {
        let Ok(index) = wanted.binary_search(backend) else { continue };
        if std::mem::replace(&mut placed[index], true) {
            continue;
        }
        match slots.get_mut(slot) {
            Some(free) => *free = Some(*backend),
            None => moving.push(*backend),
        }
    }
    let new = wanted.iter().zip(&placed).filter(|(_, placed)| !**placed).map(|(backend, _)| *backend);
    let mut rest = moving.into_iter().chain(new);
    slots.into_iter().map(|slot| slot.or_else(|| rest.next()).expect("as many endpoints as slots")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU16;

    use super::*;
    use crate::model::claims::{Claims, Owner};
    use crate::model::{FrontendAt, ObjectName, PerFamily, Protocol};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A Service with two ports, of which the second has a node port, in both families.
    fn web() -> Service {
        let port = |name: &str, port, node_port| ServicePort {
            name: name.into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(port).expect("a port"),
            node_port: NonZeroU16::new(node_port),
        };
        Service {
            name: ObjectName::new("shop", "web").expect("a name"),
            cluster_ips: PerFamily { v4: Some(address("10.96.0.1")), v6: Some(address("fd00::1")) },
            ports: [port("http", 80, 0), port("https", 443, 30443)].into(),
            external_ips: ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(address).into(),
            load_balancer_ips: ["192.0.2.2", "192.0.2.3"].map(address).into(),
            has_external_ips: PerFamily::default(),
            source_ranges: Some(["203.0.113.0/24".parse().expect("a range")].into()),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            created: 1,
        }
    }

    const FACTS: ServiceFacts = ServiceFacts { cluster_ip_masquerade: Masquerade::FromOutside, node_ip: None };

    fn wanted(service: &Service, claims: &Claims, family: Family) -> ServicePart {
        let owns = |key: &FrontendKey, port: &ServicePort, role| {
            claims.owner(key) == Some(Owner { service: &service.name, port: &port.name, role })
        };
        part(service, family, &FACTS, owns, |_| Choice::default(), |_| None)
    }

    #[test]
    fn a_service_gets_every_frontend_that_it_owns_once() {
        let mut claims = Claims::default();
        let web = web();
        claims.update(&web.name, None, Some(&web));
        for family in Family::ALL {
            let part = wanted(&web, &claims, family);
            let mut expected: BTreeMap<FrontendKey, &str> = BTreeMap::new();
            for port in &web.ports {
                for (key, _) in web.frontends(port, family) {
                    expected.insert(key, &port.name);
                }
            }
            assert_eq!(expected.len(), if family == Family::V4 { 9 } else { 5 });
            let got: Vec<_> = part.frontends.iter().map(|(key, frontend)| (*key, &*frontend.port_name)).collect();
            assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
            for (key, frontend) in &part.frontends {
                // 192.0.2.2 is an external IP, too: as such it would be open to all.
                let balanced = ["192.0.2.2", "192.0.2.3"].map(address);
                let guarded = matches!(key.at, FrontendAt::Address(address) if balanced.contains(&address));
                assert_eq!(frontend.allowed_sources.is_some(), guarded, "{key}");
            }
        }
    }

    #[test]
    fn what_another_service_owns_is_left_to_it() {
        let web = web();
        let older = Service {
            name: ObjectName::new("shop", "older").expect("a name"),
            cluster_ips: PerFamily { v4: Some(address("10.96.0.2")), v6: None },
            load_balancer_ips: Box::default(),
            created: 0,
            ..web.clone()
        };
        let mut claims = Claims::default();
        claims.update(&web.name, None, Some(&web));
        claims.update(&older.name, None, Some(&older));
        let keys = |service| {
            let part = wanted(service, &claims, Family::V4);
            part.frontends.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>()
        };
        let own = ["tcp 10.96.0.1:80", "tcp 10.96.0.1:443", "tcp 192.0.2.3:80", "tcp 192.0.2.3:443"];
        assert_eq!(keys(&web), own, "its node port and the external IPs are the older one's");
        assert_eq!(keys(&older).len(), 7);
    }
}
