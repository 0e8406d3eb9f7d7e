use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::super::{FrontendAt, Protocol, ServicePort, TrafficPolicy};
use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text).expect("a name")
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("a port")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(text: &str, port: u16) -> FrontendKey {
    FrontendKey { at: FrontendAt::Address(address(text)), protocol: Protocol::Tcp, port: number(port) }
}

fn node_port(family: Family, port: u16) -> FrontendKey {
    FrontendKey { at: FrontendAt::NodePort(family), protocol: Protocol::Tcp, port: number(port) }
}

fn port(name: &str, port: u16, node_port: u16) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: number(port),
        node_port: NonZeroU16::new(node_port),
    }
}

fn service(text: &str, created: i64, cluster_ip: &str, ports: &[ServicePort]) -> Service {
    let cluster_ip = address(cluster_ip);
    let family = Family::of(cluster_ip);
    Service {
        name: name(text),
        cluster_ips: PerFamily::from_fn(|of| (of == family).then_some(cluster_ip)),
        ports: ports.into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        has_external_ips: PerFamily::default(),
        source_ranges: None,
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
        created,
    }
}

fn with(mut service: Service, external: &[&str], load_balancer: &[&str]) -> Service {
    service.external_ips = external.iter().map(|text| address(text)).collect();
    service.load_balancer_ips = load_balancer.iter().map(|text| address(text)).collect();
    service
}

/// Claims, and the Services that they were told of.
#[derive(Default)]
struct Known {
    claims: Claims,
    services: BTreeMap<ObjectName, Service>,
}

impl Known {
    fn update(&mut self, name: &ObjectName, service: Option<&Service>) -> Updated {
        let before = match service {
            Some(service) => self.services.insert(name.clone(), service.clone()),
            None => self.services.remove(name),
        };
        self.claims.update(name, before.as_ref(), service)
    }

    fn set_service_cidrs(&mut self, cidrs: PerFamily<Vec<IpNet>>) {
        self.claims.set_service_cidrs(cidrs, self.services.values());
    }
}

impl std::ops::Deref for Known {
    type Target = Claims;

    fn deref(&self) -> &Claims {
        &self.claims
    }
}

fn put(claims: &mut Known, service: &Service) -> Updated {
    claims.update(&service.name, Some(service))
}

fn owner(claims: &Claims, key: FrontendKey) -> Option<(String, Role)> {
    claims.owner(&key).map(|owner| (format!("{}:{}", owner.service.name(), owner.port), owner.role))
}

fn owned(by: &str, role: Role) -> Option<(String, Role)> {
    Some((by.to_owned(), role))
}

#[test]
fn a_service_owns_all_its_frontends() {
    let mut claims = Known::default();
    let mut web = with(
        service("web", 1, "172.30.0.1", &[port("http", 80, 30080), port("https", 443, 0)]),
        &["203.0.113.1", "fd00::9"],
        &["203.0.113.2"],
    );
    assert_eq!(put(&mut claims, &web), Updated::default());
    let expected = [
        (at("172.30.0.1", 80), "web:http", Role::ClusterIp),
        (at("172.30.0.1", 443), "web:https", Role::ClusterIp),
        (at("203.0.113.1", 80), "web:http", Role::ExternalIp),
        (at("203.0.113.2", 443), "web:https", Role::LoadBalancerIp),
        (node_port(Family::V4, 30080), "web:http", Role::NodePort),
    ];
    for (key, by, role) in expected {
        assert_eq!(owner(&claims, key), owned(by, role), "{key}");
    }
    for key in [at("fd00::9", 80), node_port(Family::V6, 30080), at("172.30.0.1", 81), at("172.30.0.1", 30080)] {
        assert_eq!(owner(&claims, key), None, "{key}: no cluster IP of the family, or no such port");
    }
    web.cluster_ips.v6 = Some(address("fd00::1"));
    assert_eq!(put(&mut claims, &web), Updated::default());
    assert_eq!(owner(&claims, at("fd00::9", 80)), owned("web:http", Role::ExternalIp));
    assert_eq!(owner(&claims, node_port(Family::V6, 30080)), owned("web:http", Role::NodePort));
    assert_eq!(claims.update(&web.name, None), Updated::default());
    assert!(claims.keys.is_empty() && claims.contested.is_empty());
}

/// Each row: two Services that want 203.0.113.1:80, and which of them gets it, whoever comes first.
#[test]
fn who_wins() {
    let http = || [port("http", 80, 0)];
    let external = |text, created| {
        let cluster_ip = if text == "a" { "172.30.0.1" } else { "172.30.0.2" };
        with(service(text, created, cluster_ip, &http()), &["203.0.113.1"], &[])
    };
    let balanced = |text, created| with(service(text, created, "172.30.0.8", &http()), &[], &["203.0.113.1"]);
    let rows = [
        (
            external("a", 2),
            service("b", 3, "203.0.113.1", &http()),
            "b:http",
            "a cluster IP wins over an older Service",
        ),
        (external("a", 2), external("b", 1), "b:http", "the older"),
        (external("a", 2), balanced("b", 1), "b:http", "the older, whatever the role"),
        (balanced("b", 1), external("a", 1), "a:http", "the name"),
        (external("a", i64::MAX), external("b", 5), "b:http", "without a time of creation: last"),
    ];
    for (a, b, winner, why) in rows {
        for (first, second) in [(&a, &b), (&b, &a)] {
            let mut claims = Known::default();
            assert_eq!(put(&mut claims, first), Updated::default());
            let updated = put(&mut claims, second);
            let takes = winner.starts_with(second.name.name());
            let others = if takes { vec![first.name.clone()] } else { vec![] };
            assert_eq!(updated.others, others, "{why}");
            assert_eq!(updated.clashes, claims.clashes(), "{why}");
            assert_eq!(updated.clashes.len(), 1, "{why}");
            let key = at("203.0.113.1", 80);
            assert_eq!(owner(&claims, key).map(|(by, _)| by).as_deref(), Some(winner), "{why}");
            assert_eq!(put(&mut claims, second), Updated::default(), "told once");

            let (winner, loser) = if takes { (second, first) } else { (first, second) };
            let updated = claims.update(&winner.name, None);
            assert_eq!(updated, Updated { others: vec![loser.name.clone()], clashes: vec![] }, "{why}");
            assert!(claims.clashes().is_empty());
            assert_eq!(claims.owner(&key).map(|owner| owner.service), Some(&loser.name));
        }
    }
}

#[test]
fn one_service_that_wants_a_key_twice() {
    let mut claims = Known::default();
    let key = at("203.0.113.1", 80);
    let http = [port("http", 80, 0)];
    let both = with(service("web", 1, "172.30.0.1", &http), &["203.0.113.1"], &["203.0.113.1"]);
    assert_eq!(put(&mut claims, &both), Updated::default(), "not worth a word");
    assert_eq!(owner(&claims, key), owned("web:http", Role::LoadBalancerIp));
    let own = with(service("web", 1, "203.0.113.1", &http), &["203.0.113.1"], &[]);
    assert_eq!(put(&mut claims, &own), Updated::default());
    assert_eq!(owner(&claims, key), owned("web:http", Role::ClusterIp));
    let two_ports = service("web", 1, "203.0.113.1", &[port("b", 80, 0), port("a", 80, 0)]);
    let updated = put(&mut claims, &two_ports);
    assert_eq!(owner(&claims, key), owned("web:a", Role::ClusterIp));
    let texts: Vec<String> = updated.clashes.iter().map(ToString::to_string).collect();
    let expected = "tcp 203.0.113.1:80 is claimed by more than one Service port: shop/web:a has it, not shop/web:b";
    assert_eq!(texts, [expected]);
}

#[test]
fn a_crowd_is_named_in_part() {
    let mut claims = Known::default();
    let mut last = Updated::default();
    for i in 0..20 {
        let http = [port("", 80, 0)];
        last = put(
            &mut claims,
            &with(service(&format!("s{i:02}"), 1, &format!("172.30.0.{i}"), &http), &["203.0.113.1"], &[]),
        );
    }
    assert_eq!(last.clashes.len(), 1);
    let clash = &last.clashes[0];
    assert_eq!((clash.owner.to_string(), clash.losers.len(), clash.more), ("shop/s00".to_owned(), Clash::NAMED, 11));
    let text = clash.to_string();
    assert!(text.contains("shop/s00 has it, not shop/s01, ") && text.ends_with(", shop/s08 and 11 more"), "{text}");
}

#[test]
fn stray_cluster_ips() {
    let mut claims = Known::default();
    let stray = |claims: &Claims| Family::ALL.map(|family| claims.stray(family));
    assert_eq!(stray(&claims), [false, false], "no Services");
    let web = service("web", 1, "172.30.0.1", &[port("", 80, 0)]);
    put(&mut claims, &web);
    assert_eq!(stray(&claims), [true, false], "no ServiceCIDRs");
    let range = |text: &str| PerFamily { v4: vec![text.parse().expect("a CIDR")], v6: vec![] };
    claims.set_service_cidrs(range("172.30.0.0/16"));
    assert_eq!(stray(&claims), [false, false]);
    put(&mut claims, &service("web", 1, "172.31.0.1", &[port("", 80, 0)]));
    assert_eq!(stray(&claims), [true, false]);
    put(&mut claims, &service("web", 1, "fd00::1", &[port("", 80, 0)]));
    assert_eq!(stray(&claims), [false, true]);
    claims.update(&web.name, None);
    assert_eq!(stray(&claims), [false, false]);
}

#[test]
fn claims_stay_small() {
    assert!(size_of::<FrontendKey>() <= 20);
    assert!(size_of::<SmallVec<[Claim; 1]>>() <= 40);
    let mut claims = Known::default();
    let http = [port("", 80, 0)];
    let one = with(service("a", 1, "172.30.0.1", &http), &["203.0.113.1"], &[]);
    put(&mut claims, &one);
    put(&mut claims, &with(service("b", 1, "172.30.0.2", &http), &["203.0.113.1"], &[]));
    assert!(claims.keys[&at("203.0.113.1", 80)].spilled());
    claims.update(&name("b"), None);
    #[expect(clippy::disallowed_methods, reason = "no order is seen")]
    let spilled = claims.keys.values().any(|claims| claims.spilled());
    assert!(!spilled, "back in place after a clash");
}

const ADDRESSES: [&str; 4] = ["172.30.0.1", "172.30.0.2", "fd00::1", "203.0.113.1"];

fn any_service() -> impl Strategy<Value = Service> {
    let some = || prop::sample::subsequence(ADDRESSES.to_vec(), 0..=2);
    let ports = prop::sample::subsequence(
        vec![port("a", 80, 0), port("b", 80, 30080), port("c", 81, 30080), port("d", 81, 30081)],
        1..=3,
    );
    let cluster_ips = (prop::sample::select(vec![None, Some(0), Some(1), Some(3)]), any::<bool>());
    (prop::sample::select(vec!["w", "x", "y", "z"]), 0i64..2, cluster_ips, ports, some(), some()).prop_map(
        |(text, created, (v4, v6), ports, external, load_balancer)| {
            let service = with(service(text, created, "172.30.0.1", &ports), &external, &load_balancer);
            let cluster_ips =
                PerFamily { v4: v4.map(|index: usize| address(ADDRESSES[index])), v6: v6.then(|| address("fd00::1")) };
            Service { cluster_ips, ..service }
        },
    )
}

/// Not a cluster IP, created, Service, port, role.
type Rank = (bool, i64, String, String, Role);

/// The owner of each key, and all its service ports in the order in which they would own it: worked out at once from
/// all Services.
fn from_scratch(services: &BTreeMap<ObjectName, Service>) -> BTreeMap<FrontendKey, Vec<(String, Role)>> {
    let mut keys: BTreeMap<FrontendKey, Vec<Rank>> = BTreeMap::new();
    for service in services.values() {
        for port in &service.ports {
            let mut claim = |at, number, role| {
                let key = FrontendKey { at, protocol: port.protocol, port: number };
                let rank =
                    (role != Role::ClusterIp, service.created, service.name.to_string(), port.name.to_string(), role);
                keys.entry(key).or_default().push(rank);
            };
            let addresses =
                service.cluster_ips.v4.iter().chain(&service.cluster_ips.v6).map(|ip| (ip, Role::ClusterIp));
            let addresses = addresses
                .chain(service.external_ips.iter().map(|ip| (ip, Role::ExternalIp)))
                .chain(service.load_balancer_ips.iter().map(|ip| (ip, Role::LoadBalancerIp)));
            for (address, role) in addresses {
                if service.cluster_ips[Family::of(*address)].is_some() {
                    claim(FrontendAt::Address(*address), port.port, role);
                }
            }
            for family in Family::ALL {
                if let (Some(_), Some(node_port)) = (service.cluster_ips[family], port.node_port) {
                    claim(FrontendAt::NodePort(family), node_port, Role::NodePort);
                }
            }
        }
    }
    keys.into_iter()
        .map(|(key, mut ranks)| {
            ranks.sort();
            (key, ranks.into_iter().map(|(_, _, service, port, role)| (format!("{service}:{port}"), role)).collect())
        })
        .collect()
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::with_cases(1_000), file!()))]

    #[test]
    fn updates_one_by_one_are_as_good_as_from_scratch(
        updates in prop::collection::vec((any_service(), any::<bool>(), any::<bool>()), 1..30),
    ) {
        let mut claims = Known::default();
        let mut services = BTreeMap::new();
        let mut before = from_scratch(&services);
        let ranges = |inside: bool| PerFamily {
            v4: if inside { vec!["172.30.0.0/16".parse().expect("a CIDR")] } else { vec![] },
            v6: if inside { vec!["fd00::/108".parse().expect("a CIDR")] } else { vec![] },
        };
        let mut inside_now = false;
        for (service, there, inside) in updates {
            let name = service.name.clone();
            if there {
                services.insert(name.clone(), service);
            } else {
                services.remove(&name);
            }
            let updated = claims.update(&name, services.get(&name));
            let now = from_scratch(&services);

            let owners = |keys: &BTreeMap<FrontendKey, Vec<(String, Role)>>, key: &FrontendKey| {
                keys.get(key).map(|claims| claims[0].clone())
            };
            for key in before.keys().chain(now.keys()) {
                let got = claims.owner(key).map(|owner| (format!("{}:{}", owner.service, owner.port), owner.role));
                prop_assert_eq!(got, owners(&now, key), "{}", key);
            }
            prop_assert_eq!(claims.keys.len(), now.len(), "no key without a claim");

            let mut others: Vec<ObjectName> = before
                .keys()
                .chain(now.keys())
                .filter(|key| owners(&before, key) != owners(&now, key))
                .flat_map(|key| [owners(&before, key), owners(&now, key)])
                .flatten()
                .map(|(owner, _)| owner.split_once(':').expect("a port").0.to_owned())
                .filter(|owner| *owner != name.as_str())
                .map(|owner| ObjectName::new("shop", owner.split_once('/').expect("a namespace").1).expect("a name"))
                .collect();
            others.sort();
            others.dedup();
            prop_assert_eq!(&updated.others, &others);

            let clashes: Vec<(FrontendKey, Vec<String>)> = now
                .iter()
                .map(|(key, claims)| {
                    let mut ports: Vec<String> = Vec::new();
                    for (port, _) in claims {
                        if !ports.contains(port) {
                            ports.push(port.clone());
                        }
                    }
                    (*key, ports)
                })
                .filter(|(_, ports)| ports.len() > 1)
                .collect();
            prop_assert_eq!(claims.contested.len(), clashes.len(), "nothing is left behind");
            let got = claims.clashes();
            let got: Vec<(FrontendKey, Vec<String>)> = got
                .iter()
                .map(|clash| {
                    let all = std::iter::once(&clash.owner).chain(&clash.losers);
                    (clash.key, all.map(|name| format!("{}:{}", name.service, name.port)).collect())
                })
                .collect();
            // The test's crowds are small enough to be named in full, but for the largest.
            let cut = |(key, mut ports): (FrontendKey, Vec<String>)| {
                ports.truncate(Clash::NAMED + 1);
                (key, ports)
            };
            prop_assert_eq!(got, clashes.into_iter().map(cut).collect::<Vec<_>>());
            prop_assert!(claims.update(&name, services.get(&name)) == Updated::default(), "nothing new");

            // First as counted along the way, then as counted anew for other ranges.
            for recount in [false, true] {
                if recount {
                    claims.set_service_cidrs(ranges(inside));
                    inside_now = inside;
                }
                for family in Family::ALL {
                    let outside = |ip: IpAddr| !ranges(inside_now)[family].iter().any(|range| range.contains(&ip));
                    let stray = services.values().any(|service| service.cluster_ips[family].is_some_and(outside));
                    prop_assert_eq!(claims.stray(family), stray);
                }
            }
            before = now;
        }
    }
}
