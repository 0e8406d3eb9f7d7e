//! From model values to what is told of them.

use ipnet::IpNet;

use super::{Direction, EndpointFacts, LostFacts, PortFacts, ServiceFacts, UnservedFacts};
use crate::model::claims::Claims;
use crate::model::policy::{self, Choice, DROPPED_BECAUSE, Target, refused_because};
use crate::model::{Family, Scheduler, Service, ServicePort, ServicePortName, Slice, TrafficPolicy};

/// What the meaning of Services depends on besides themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Node<'a> {
    /// The zone of this node.
    pub zone: Option<&'a str>,
    /// How endpoints are chosen where a Service does not say.
    pub scheduler: Scheduler,
}

impl ServiceFacts {
    /// What there is to say of a Service; `slices` are its own. Costs what it and they are.
    pub fn new(service: &Service, slices: &[Slice], node: Node<'_>) -> ServiceFacts {
        let policy = |policy: TrafficPolicy| {
            match policy {
                TrafficPolicy::Cluster => "Cluster",
                TrafficPolicy::Local => "Local",
            }
            .to_owned()
        };
        ServiceFacts {
            name: service.name.to_string(),
            ports: service.ports.iter().map(|port| port_facts(service, port, slices, node)).collect(),
            cluster_ips: Family::ALL.into_iter().filter_map(|family| service.cluster_ips[family]).collect(),
            external_ips: service.external_ips.to_vec(),
            load_balancer_ips: service.load_balancer_ips.to_vec(),
            source_ranges: service.source_ranges.as_deref().map(<[IpNet]>::to_vec),
            internal_traffic_policy: policy(service.internal_policy),
            external_traffic_policy: policy(service.external_policy),
            affinity_seconds: service.affinity,
            scheduler: service.scheduler.unwrap_or(node.scheduler).name().to_owned(),
            health_check_node_port: service.health_check_node_port.map(|port| port.get()),
            slices: slices.len(),
            endpoints: slices.iter().flat_map(endpoints).collect(),
        }
    }

    /// Adds which of its addresses another Service has.
    pub fn with_claims(mut self, service: &Service, claims: &Claims) -> ServiceFacts {
        for (port, facts) in service.ports.iter().zip(&mut self.ports) {
            let keys = Family::ALL.into_iter().flat_map(|family| service.frontends(port, family)).map(|(key, _)| key);
            facts.lost = keys
                .filter_map(|key| {
                    let owner = claims.owner(&key).filter(|owner| *owner.service != service.name)?;
                    let (service, port) = (owner.service.clone(), owner.port.into());
                    let owner = ServicePortName { service, port, protocol: key.protocol };
                    Some(LostFacts { frontend: key.to_string(), owner: owner.to_string() })
                })
                .collect();
        }
        self
    }
}

fn port_facts(service: &Service, port: &ServicePort, slices: &[Slice], node: Node<'_>) -> PortFacts {
    let mut unserved = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| service.cluster_ips[*family].is_some()) {
        let choice = policy::choose(service, port, family, slices, node.zone);
        let mut look = |from: Direction, policy: TrafficPolicy| {
            if let Some((fate, why)) = unserved_because(&choice, policy, port, family, slices) {
                unserved.push(UnservedFacts { family: family.to_string(), from, fate: fate.to_owned(), why });
            }
        };
        look(Direction::Inside, service.internal_policy);
        if policy::external(service, port, family) {
            look(Direction::Outside, service.external_policy);
        }
    }
    PortFacts {
        name: port.name.to_string(),
        protocol: port.protocol.to_string(),
        port: port.port.get(),
        node_port: port.node_port.map(|port| port.get()),
        unserved,
        lost: Vec::new(),
    }
}

/// What becomes of connections under a policy, and why, if they lead nowhere.
fn unserved_because(
    choice: &Choice,
    policy: TrafficPolicy,
    port: &ServicePort,
    family: Family,
    slices: &[Slice],
) -> Option<(&'static str, String)> {
    let targets: &[Target] = match policy {
        TrafficPolicy::Cluster => &choice.cluster,
        TrafficPolicy::Local => &choice.local,
    };
    if !choice.any {
        return Some(("refused", refused_because(slices, family, &port.name, port.protocol)));
    }
    targets.is_empty().then(|| ("dropped", DROPPED_BECAUSE.to_owned()))
}

fn endpoints(slice: &Slice) -> impl Iterator<Item = EndpointFacts> {
    slice.ports.iter().flat_map(move |port| {
        slice.endpoints.iter().zip(slice.places.iter()).map(move |(endpoint, place)| {
            let hints = endpoint.hints.as_deref();
            EndpointFacts {
                port_name: port.name.to_string(),
                protocol: port.protocol.to_string(),
                address: endpoint.address,
                port: port.port.get(),
                pod: place.pod,
                node: place.node.map(ToString::to_string),
                ready: endpoint.conditions.ready,
                serving: endpoint.conditions.serving,
                terminating: endpoint.conditions.terminating,
                local: endpoint.conditions.local,
                weight: slice.weight,
                zones: hints.into_iter().flat_map(|hints| &hints.zones).map(ToString::to_string).collect(),
                for_this_node: hints.filter(|hints| hints.for_nodes).map(|hints| hints.for_this_node),
            }
        })
    })
}
