//! What one Service wants in a family's table: its frontends, and what it shares with others.

use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::backend::Backend;
use super::frontend::{Action, Frontend, Shared};
use super::names::{Masquerade, Pick};
use super::ranges::{self, Range};
use super::slots::{self, Misfit, Seed, Shares, Slots, Spread};
use crate::model::policy::{Choice, Target};
use crate::model::{Family, FrontendAt, FrontendKey, Role, Scheduler, Service, ServicePort, TrafficPolicy};

/// Everything that one Service wants in one family's table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePart {
    /// Sorted by key, each key once.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// Sorted, each once.
    pub shared: Vec<Shared>,
    /// Endpoints of the port with the most of them for which there is no room: they are in no frontend.
    pub left_out: usize,
    /// What the Service asks for and does not get, of the first port that has to do without.
    pub misfit: Option<Misfit>,
}

/// What a Service's part of the ruleset depends on besides the Service, per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceFacts {
    /// How connections to a cluster IP are masqueraded: `FromOutside` where pods can be told apart, `Never` where they
    /// cannot, `Always` with `masqueradeAll`.
    pub cluster_ip_masquerade: Masquerade,
    /// This node's own address: if it is among the allowed source ranges, the load-balancer IPs are too, because a
    /// packet of the node may carry one as its source. So may one to an external IP, where ranges hold for those.
    pub node_ip: Option<IpAddr>,
    /// How endpoints are chosen where a Service does not say.
    pub scheduler: Scheduler,
    /// Whether the kernel can choose them by a hash.
    pub hashes: bool,
    /// Whether addresses answer pings where a Service does not say.
    pub ping: bool,
}

/// The part of one Service in one family's table.
///
/// `owns` tells whether this port of the Service owns a frontend in this role (another Service may claim the same, or
/// itself in another role), `choose` which endpoints a port may use, `shares` how many slots each gets where connections are
/// counted, `previous` what is installed for a key: slots are kept where they are as far as possible. Which counter a frontend
/// takes turns by is not decided here.
pub fn part<'a>(
    service: &Service,
    family: Family,
    facts: &ServiceFacts,
    owns: impl Fn(&FrontendKey, &ServicePort, Role) -> bool,
    choose: impl Fn(&ServicePort) -> Choice,
    shares: impl Fn(&ServicePort) -> Option<&'a Shares>,
    previous: impl Fn(&FrontendKey) -> Option<&'a Frontend>,
) -> ServicePart {
    let Some(cluster_ip) = service.cluster_ips[family] else { return ServicePart::default() };
    let shared = vec![Shared::ClusterIp(cluster_ip)];
    let mut part = ServicePart { shared, ..ServicePart::default() };
    let scheduler = match service.scheduler.unwrap_or(facts.scheduler) {
        wanted if wanted.hashes() && !facts.hashes => {
            part.misfit = Some(Misfit::Unhashed(wanted));
            Scheduler::Random
        }
        wanted => wanted,
    };
    let pings = service.ping.unwrap_or(facts.ping);
    for port in &service.ports {
        let choice = choose(port);
        let most = choice.cluster.len().max(choice.local.len());
        part.left_out = part.left_out.max(most.saturating_sub(Pick::MOST_SLOTS as usize));
        let seed = Seed { service: &service.name, port: &port.name, protocol: port.protocol };
        let shares = if scheduler.counts() { shares(port) } else { None };
        let sticky = service.affinity.is_some();
        let spread = Spread { scheduler, maglev_size: service.maglev_size.map(NonZeroU16::get), seed, shares, sticky };
        for (key, role) in service.frontends(port, family).filter(|(key, role)| owns(key, port, *role)) {
            let mut spreading = Spreading { spread: &spread, installed: previous(&key), misfit: None };
            let (action, allowed_sources) = match role {
                Role::ClusterIp => (internal_action(service, &choice, facts, &mut spreading), None),
                Role::LoadBalancerIp | Role::ExternalIp | Role::NodePort => {
                    let guarded = role == Role::LoadBalancerIp || service.ranges_everywhere;
                    let allowed = guarded.then(|| allowed_sources(service, family, facts)).flatten();
                    (external_action(service, &choice, &mut spreading), allowed)
                }
            };
            part.misfit = part.misfit.or(spreading.misfit);
            // Where a client outside would get an endpoint. Who may not come learns nothing; whether he may is asked by port.
            if let FrontendAt::Address(address) = key.at
                && pings
                && allowed_sources.is_none()
                && !action.outside().is_empty()
            {
                part.shared.push(Shared::Ping(address));
            }
            let (service, port_name) = (service.name.clone(), port.name.clone());
            part.frontends.push((key, Frontend { service, port_name, action, allowed_sources }));
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

/// Puts the endpoints of a frontend into slots.
struct Spreading<'a> {
    spread: &'a Spread<'a>,
    installed: Option<&'a Frontend>,
    misfit: Option<Misfit>,
}

impl Spreading<'_> {
    fn slots(&mut self, targets: &[Target], local: bool) -> Slots {
        // Of one policy: slots of another one have nothing in common with these. Where there is but one, its slots do.
        let of_action = self.installed.map(|frontend| &frontend.action);
        let installed: &[Backend] = match of_action {
            Some(Action::Forward { slots, .. }) => slots,
            Some(Action::Split { cluster, local: of_node, .. }) => {
                if local {
                    of_node
                } else {
                    cluster
                }
            }
            Some(Action::Reject | Action::Drop) | None => &[],
        };
        let (slots, misfit) = slots::slots(targets, self.spread, installed);
        self.misfit = self.misfit.or(misfit);
        slots
    }
}

fn internal_action(service: &Service, choice: &Choice, facts: &ServiceFacts, spreading: &mut Spreading<'_>) -> Action {
    forward(choice, service.internal_policy, facts.cluster_ip_masquerade, service.affinity, spreading)
}

fn external_action(service: &Service, choice: &Choice, spreading: &mut Spreading<'_>) -> Action {
    let affinity = service.affinity;
    match service.external_policy {
        TrafficPolicy::Local if choice.any && !choice.cluster.is_empty() => Action::Split {
            affinity,
            cluster: spreading.slots(&choice.cluster, false),
            local: spreading.slots(&choice.local, true),
        },
        TrafficPolicy::Local => forward(choice, TrafficPolicy::Local, Masquerade::Never, affinity, spreading),
        TrafficPolicy::Cluster => forward(choice, TrafficPolicy::Cluster, Masquerade::Always, affinity, spreading),
    }
}

fn forward(
    choice: &Choice,
    policy: TrafficPolicy,
    masquerade: Masquerade,
    affinity: Option<u32>,
    spreading: &mut Spreading<'_>,
) -> Action {
    let (targets, local) = match policy {
        TrafficPolicy::Cluster => (&choice.cluster, false),
        TrafficPolicy::Local => (&choice.local, true),
    };
    if !choice.any {
        Action::Reject
    } else if targets.is_empty() {
        Action::Drop
    } else {
        Action::Forward { policy, masquerade, affinity, slots: spreading.slots(targets, local) }
    }
}

/// The ranges that may reach a load-balancer IP, or all that is reached from outside, maybe none; `None` where all sources may:
/// nothing is said about it, or about the other family only, or a `/0`.
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
        if service.ranges_everywhere {
            allowed.extend(service.external_ips.iter().copied().filter(of_family).map(Range::single));
        }
    }
    Some(ranges::merge(allowed).into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::claims::{Claims, Owner};
    use crate::model::{ObjectName, PerFamily, Protocol};
    use crate::ruleset::names::By;

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
            ranges_everywhere: false,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            scheduler: None,
            maglev_size: None,
            ping: None,
            accounting: false,
            reset_connections: false,
            health_check_node_port: None,
            created: 1,
        }
    }

    const FACTS: ServiceFacts = ServiceFacts {
        cluster_ip_masquerade: Masquerade::FromOutside,
        node_ip: None,
        scheduler: Scheduler::Random,
        hashes: true,
        ping: false,
    };

    fn wanted(service: &Service, claims: &Claims, family: Family) -> ServicePart {
        let owns = |key: &FrontendKey, port: &ServicePort, role| {
            claims.owner(key) == Some(Owner { service: &service.name, port: &port.name, role })
        };
        part(service, family, &FACTS, owns, |_| Choice::default(), |_| None, |_| None)
    }

    #[test]
    fn where_the_kernel_has_no_hashes_endpoints_are_chosen_at_random() {
        let mut service = web();
        let target =
            |last| Target { address: [10, 180, 0, last].into(), port: NonZeroU16::MIN, local: false, weight: 1 };
        let choice = || Choice { cluster: vec![target(1), target(2)], local: Vec::new(), any: true };
        let of = |service: &Service, hashes| {
            let facts = ServiceFacts { hashes, ..FACTS };
            let part = part(service, Family::V4, &facts, |_, _, _| true, |_| choice(), |_| None, |_| None);
            let by: Vec<_> = part.frontends.iter().flat_map(|(_, it)| it.action.slots()).map(|(_, it)| it.by).collect();
            (by[0], part.misfit)
        };
        service.scheduler = Some(Scheduler::DestinationHash);
        assert_eq!(of(&service, true), (By::Destination, None));
        assert_eq!(of(&service, false), (By::Random, Some(Misfit::Unhashed(Scheduler::DestinationHash))));
        service.scheduler = Some(Scheduler::RoundRobin);
        assert_eq!(of(&service, false), (By::Turn(0), None));
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
    fn addresses_answer_pings_where_clients_outside_get_an_endpoint() {
        let target =
            |last, local| Target { address: [10, 180, 0, last].into(), port: NonZeroU16::MIN, local, weight: 1 };
        let here = Choice { cluster: vec![target(1, true)], local: vec![target(1, true)], any: true };
        let elsewhere = Choice { cluster: vec![target(2, false)], local: vec![], any: true };
        let asks = Service { ping: Some(true), source_ranges: None, ..web() };
        let answer = |service: &Service, ping, choice: &Choice| {
            let facts = ServiceFacts { ping, ..FACTS };
            let part = part(service, Family::V4, &facts, |_, _, _| true, |_| choice.clone(), |_| None, |_| None);
            let pinged = |shared: &Shared| match shared {
                Shared::Ping(address) => Some(address.to_string()),
                _ => None,
            };
            part.shared.iter().filter_map(pinged).collect::<Vec<_>>()
        };
        let all = ["10.96.0.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"];
        assert_eq!(answer(&asks, false, &here), all, "each once");
        assert_eq!(answer(&asks, false, &Choice::default()), [""; 0]);
        // As configured, where it does not say.
        let silent = Service { ping: None, ..asks.clone() };
        assert_eq!((answer(&silent, false, &here), answer(&silent, true, &here).len()), (vec![], 4));
        assert_eq!(answer(&Service { ping: Some(false), ..silent }, true, &here), [""; 0]);
        // By policy: this node has none for those outside, or none at all.
        let external = Service { external_policy: TrafficPolicy::Local, ..asks.clone() };
        assert_eq!(
            (answer(&external, false, &elsewhere), answer(&external, false, &here).len()),
            (vec![all[0].to_owned()], 4)
        );
        let internal = Service { internal_policy: TrafficPolicy::Local, ..asks.clone() };
        assert_eq!(answer(&internal, false, &elsewhere), all[1..]);
        // An address that only some may reach answers nobody.
        let external_ips = [address("192.0.2.1")].into();
        let guarded = Service { source_ranges: web().source_ranges, external_ips, ..asks };
        assert_eq!(answer(&guarded, false, &here), all[..2]);
        assert_eq!(answer(&Service { ranges_everywhere: true, ..guarded }, false, &here), all[..1]);
    }

    #[test]
    fn source_ranges_hold_for_all_but_the_cluster_ip_where_they_are_to() {
        let service = Service { ranges_everywhere: true, ..web() };
        let mut claims = Claims::default();
        claims.update(&service.name, None, Some(&service));
        let part = wanted(&service, &claims, Family::V4);
        for (key, frontend) in &part.frontends {
            let is_cluster_ip = key.at == FrontendAt::Address(address("10.96.0.1"));
            assert_eq!(frontend.allowed_sources.is_some(), !is_cluster_ip, "{key}");
        }
        // The ranges are of IPv4.
        let part = wanted(&service, &claims, Family::V6);
        assert!(part.frontends.iter().all(|(_, frontend)| frontend.allowed_sources.is_none()));

        // What the node may send from, if it may send.
        let allowed = |service: &Service, node_ip: &str| {
            let facts = ServiceFacts { node_ip: Some(address(node_ip)), ..FACTS };
            let ranges = allowed_sources(service, Family::V4, &facts).expect("some are allowed");
            ranges.iter().map(|range| range.first.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(allowed(&service, "198.51.100.1"), ["203.0.113.0"]);
        assert_eq!(
            allowed(&service, "203.0.113.1"),
            ["192.0.2.1", "203.0.113.0"],
            "192.0.2.1 to 192.0.2.3 are one range"
        );
        assert_eq!(allowed(&web(), "203.0.113.1"), ["192.0.2.2", "203.0.113.0"]);
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
