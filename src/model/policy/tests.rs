use arcstr::ArcStr;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Conditions, Hints, ObjectName, PerFamily, Protocol, SlicePort};
use super::*;

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false, local: false };
const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true, local: false };
const NEITHER: Conditions = Conditions { ready: false, serving: false, terminating: false, local: false };

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("a port")
}

fn object_name(name: &str) -> ObjectName {
    ObjectName::new("shop", name).expect("a name")
}

fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 180, 0, last]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
    }
}

/// A Service with cluster IPs of both families and nothing else.
fn service(internal_policy: TrafficPolicy, external_policy: TrafficPolicy) -> Service {
    Service {
        name: object_name("web"),
        cluster_ips: PerFamily::from_fn(|family| Some(address(family, 200))),
        ports: [ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: number(80), node_port: None }].into(),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        has_external_ips: PerFamily::default(),
        source_ranges: None,
        ranges_everywhere: false,
        internal_policy,
        external_policy,
        affinity: None,
        scheduler: None,
        maglev_size: None,
        ping: None,
        accounting: false,
        reset_connections: false,
        health_check_node_port: None,
        created: 0,
    }
}

fn endpoint(family: Family, last: u8, local: bool, conditions: Conditions) -> Endpoint {
    Endpoint { address: address(family, last), conditions: Conditions { local, ..conditions }, hints: None }
}

fn slice(name: &str, family: Family, ports: &[(&str, Protocol, u16)], endpoints: &[Endpoint]) -> Slice {
    let port = |(name, protocol, port): &(&str, Protocol, u16)| SlicePort {
        name: ArcStr::from(*name),
        protocol: *protocol,
        port: number(*port),
    };
    Slice {
        name: object_name(name),
        service: object_name("web"),
        family,
        ports: ports.iter().map(port).collect(),
        weight: 1,
        endpoints: endpoints.into(),
        places: Default::default(),
    }
}

const P: &[(&str, Protocol, u16)] = &[("p", Protocol::Tcp, 8080)];

/// How a Service is reachable from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reachable {
    Not,
    NodePort,
    LoadBalancerIp,
    ExternalIp,
    /// An external IP that a feature gate hides.
    GatedExternalIp,
    /// An external IP and a load-balancer IP, but of the other family.
    InTheOtherFamily,
}

impl Reachable {
    const ALL: [Reachable; 6] = [
        Reachable::Not,
        Reachable::NodePort,
        Reachable::LoadBalancerIp,
        Reachable::ExternalIp,
        Reachable::GatedExternalIp,
        Reachable::InTheOtherFamily,
    ];

    fn put(self, service: &mut Service, family: Family) {
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        match self {
            Reachable::Not => {}
            Reachable::NodePort => service.ports[0].node_port = Some(number(30080)),
            Reachable::LoadBalancerIp => service.load_balancer_ips = [address(family, 201)].into(),
            Reachable::ExternalIp => {
                service.external_ips = [address(family, 202)].into();
                service.has_external_ips[family] = true;
            }
            Reachable::GatedExternalIp => service.has_external_ips[family] = true,
            Reachable::InTheOtherFamily => {
                service.external_ips = [address(other, 202)].into();
                service.has_external_ips[other] = true;
                service.load_balancer_ips = [address(other, 201)].into();
            }
        }
    }
}

/// The decision once more, written from the rules and not from the code: each list is built endpoint by endpoint.
fn naive(internal_local: bool, external_local: bool, external: bool, slices: &[Slice], zone: &str) -> Choice {
    let mut by_name: Vec<&Slice> = slices.iter().collect();
    by_name.sort_by_key(|slice| slice.name.as_str());
    let mut all: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for slice in by_name {
        for port in &slice.ports {
            for endpoint in &slice.endpoints {
                let key = (endpoint.address, port.port.get());
                let worth = |it: &Endpoint| {
                    let Conditions { ready, serving, terminating, .. } = it.conditions;
                    4 * u8::from(!terminating) + 2 * u8::from(ready) + u8::from(serving)
                };
                let better = |before: &Endpoint| match worth(endpoint).cmp(&worth(before)) {
                    std::cmp::Ordering::Equal => !endpoint.conditions.terminating,
                    order => order.is_gt(),
                };
                if &*port.name == "p" && all.get(&key).is_none_or(|before| better(before)) {
                    all.insert(key, endpoint);
                }
            }
        }
    }
    let ready: Vec<&Endpoint> = all.values().copied().filter(|endpoint| endpoint.conditions.ready).collect();
    let names_zone = |endpoint: &Endpoint| match &endpoint.hints {
        Some(hints) => !zone.is_empty() && hints.zones.iter().any(|name| &**name == zone),
        None => false,
    };
    let names_node = |endpoint: &Endpoint| matches!(&endpoint.hints, Some(hints) if hints.for_this_node);
    let (mut node_hints, mut zone_hints, mut our_node, mut our_zone) = (0, 0, 0, 0);
    for endpoint in &ready {
        node_hints += usize::from(matches!(&endpoint.hints, Some(hints) if hints.for_nodes));
        zone_hints += usize::from(matches!(&endpoint.hints, Some(hints) if !hints.zones.is_empty()));
        our_node += usize::from(names_node(endpoint));
        our_zone += usize::from(names_zone(endpoint));
    }
    let by_node = node_hints == ready.len() && our_node > 0;
    let by_zone = !by_node && zone_hints == ready.len() && our_zone > 0;

    let mut choice = Choice::default();
    let target = |key: &(IpAddr, u16), endpoint: &Endpoint| Target {
        address: key.0,
        port: number(key.1),
        local: endpoint.conditions.local,
        weight: 1,
    };
    if !internal_local || external {
        for (key, endpoint) in &all {
            let allowed = (!by_node || names_node(endpoint)) && (!by_zone || names_zone(endpoint));
            if endpoint.conditions.ready && allowed {
                choice.cluster.push(target(key, endpoint));
            }
        }
        if choice.cluster.is_empty() {
            for (key, endpoint) in &all {
                if endpoint.conditions.serving && endpoint.conditions.terminating {
                    choice.cluster.push(target(key, endpoint));
                }
            }
        }
    }
    let uses_local = internal_local || (external_local && external);
    if uses_local {
        let here: Vec<_> = all.iter().filter(|(_, endpoint)| endpoint.conditions.local).collect();
        let ready_here = here.iter().any(|(_, endpoint)| endpoint.conditions.ready);
        for (key, endpoint) in here {
            let Conditions { ready, serving, terminating, .. } = endpoint.conditions;
            if if ready_here { ready } else { serving && terminating } {
                choice.local.push(target(key, endpoint));
            }
        }
        choice.any = all.values().any(|endpoint| {
            let Conditions { ready, serving, terminating, .. } = endpoint.conditions;
            ready || (serving && terminating)
        });
    }
    choice.any |= !choice.cluster.is_empty();
    choice
}

/// Every state that an endpoint's conditions can be in.
fn every_condition() -> impl Iterator<Item = Conditions> + Clone {
    (0..8).map(|bits| Conditions {
        ready: bits & 1 != 0,
        serving: bits & 2 != 0,
        terminating: bits & 4 != 0,
        local: false,
    })
}

#[test]
fn every_combination_is_as_the_rules_say() {
    let policies = [TrafficPolicy::Cluster, TrafficPolicy::Local];
    let states = || every_condition().map(Some).chain([None]);
    let mut combinations = 0;
    let mut seen = BTreeMap::new();
    for family in Family::ALL {
        for reachable in Reachable::ALL {
            for (internal, external_policy) in policies.iter().flat_map(|a| policies.iter().map(move |b| (*a, *b))) {
                for affinity in [None, Some(10_800)] {
                    let mut service = service(internal, external_policy);
                    service.affinity = affinity;
                    reachable.put(&mut service, family);
                    for (local, remote) in states().flat_map(|a| states().map(move |b| (a, b))) {
                        let endpoints: Vec<Endpoint> = [(local, 1, true), (remote, 2, false)]
                            .into_iter()
                            .filter_map(|(state, last, local)| Some(endpoint(family, last, local, state?)))
                            .collect();
                        let slices = [slice("a", family, P, &endpoints)];
                        let got = choose(&service, &service.ports[0], family, &slices, Some("a"));
                        let reached = !matches!(reachable, Reachable::Not | Reachable::InTheOtherFamily);
                        let is_local = |policy| policy == TrafficPolicy::Local;
                        let expected = naive(is_local(internal), is_local(external_policy), reached, &slices, "a");
                        let case = format!("{family} {reachable:?} {internal:?} {external_policy:?} {endpoints:?}");
                        assert_eq!(got, expected, "{case}");
                        *seen.entry((got.cluster.len(), got.local.len(), got.any)).or_insert(0) += 1;
                        combinations += 1;
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 2 * 6 * 4 * 2 * 81);
    // The combinations are not trivial: every outcome that one local and one remote endpoint allow was met.
    let outcomes: Vec<_> = seen.into_keys().collect();
    let expected = [(0, 0, false), (0, 0, true), (0, 1, true), (1, 0, true), (1, 1, true), (2, 0, true), (2, 1, true)];
    assert_eq!(outcomes, expected);
}

/// The decision table: iTP, external, eTP, state of a (local) and b (remote), C, L, any.
#[test]
fn decision_table() {
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    let (r, st, x) = (READY, TERMINATING, NEITHER);
    let table = [
        (cluster, false, cluster, r, r, "ab", "", true),
        (cluster, false, cluster, st, r, "b", "", true),
        (cluster, false, cluster, st, st, "ab", "", true),
        (cluster, false, cluster, x, x, "", "", false),
        (cluster, false, local, r, r, "ab", "", true),
        (local, false, cluster, r, r, "", "a", true),
        (local, false, cluster, st, r, "", "a", true),
        (local, false, cluster, x, r, "", "", true),
        (local, false, cluster, x, x, "", "", false),
        (local, true, cluster, r, r, "ab", "a", true),
        (cluster, true, local, r, r, "ab", "a", true),
        (cluster, true, local, st, r, "b", "a", true),
        (cluster, true, local, x, st, "b", "", true),
        (local, true, local, x, r, "b", "", true),
    ];
    for family in Family::ALL {
        for (row, (internal, external, external_policy, a, b, c, l, any)) in table.into_iter().enumerate() {
            let mut service = service(internal, external_policy);
            if external {
                Reachable::NodePort.put(&mut service, family);
            }
            let endpoints = [endpoint(family, 1, true, a), endpoint(family, 2, false, b)];
            let got = choose(&service, &service.ports[0], family, &[slice("s", family, P, &endpoints)], None);
            let letters = |targets: &[Target]| -> String {
                targets.iter().map(|target| if target.local { 'a' } else { 'b' }).collect()
            };
            let got = (letters(&got.cluster), letters(&got.local), got.any);
            assert_eq!(got, (c.to_owned(), l.to_owned(), any), "row {row}, {family}");
        }
    }
}

/// A Service with a node port, policies Cluster and eTP as given, and the last octets of C and L.
fn chosen(external_policy: TrafficPolicy, slices: &[Slice]) -> (Vec<u8>, Vec<u8>, bool) {
    let mut service = service(TrafficPolicy::Cluster, external_policy);
    Reachable::LoadBalancerIp.put(&mut service, Family::V4);
    let choice = choose(&service, &service.ports[0], Family::V4, slices, Some("a"));
    let last = |targets: &[Target]| {
        targets.iter().map(|target| if let IpAddr::V4(v4) = target.address { v4.octets()[3] } else { 0 }).collect()
    };
    (last(&choice.cluster), last(&choice.local), choice.any)
}

/// Vectors 9 to 15 and 31: what is left of them here is which list holds whom.
#[test]
fn local_policy_vectors() {
    let e1 = endpoint(Family::V4, 1, true, READY);
    let e2 = endpoint(Family::V4, 2, false, READY);
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    // 9: iTP Local, e2 only: dropped.
    let internal = service(local, cluster);
    let only_e2 = [slice("s", Family::V4, P, std::slice::from_ref(&e2))];
    let choice = choose(&internal, &internal.ports[0], Family::V4, &only_e2, Some("a"));
    assert_eq!(choice, Choice { cluster: vec![], local: vec![], any: true });
    // 10 to 12: eTP Local, e2 only: nothing for the outside, e2 for pods and the node.
    assert_eq!(chosen(local, &only_e2), (vec![2], vec![], true));
    // 13 and 15: eTP Local: e1 for the outside.
    let both = [slice("s", Family::V4, P, &[e1.clone(), e2.clone()])];
    assert_eq!(chosen(local, &both), (vec![1, 2], vec![1], true));
    // 14: eTP Cluster.
    assert_eq!(chosen(cluster, &both), (vec![1, 2], vec![], true));
    // 31: e1 terminating, e2 ready, eTP Local.
    let terminating = endpoint(Family::V4, 1, true, TERMINATING);
    assert_eq!(chosen(local, &[slice("s", Family::V4, P, &[terminating, e2])]), (vec![2], vec![1], true));
}

/// An endpoint with hints: `zones`, and whether node hints name this node.
fn hinted(last: u8, conditions: Conditions, zones: &[&str], node: Option<bool>) -> Endpoint {
    let hints = Hints {
        zones: zones.iter().map(|zone| ArcStr::from(*zone)).collect(),
        for_nodes: node.is_some(),
        for_this_node: node == Some(true),
    };
    let hints = (hints != Hints::default()).then(|| Box::new(hints));
    Endpoint { hints, ..endpoint(Family::V4, last, last == 1, conditions) }
}

/// Vectors 24 to 30.
#[test]
fn topology_vectors() {
    let unready = NEITHER;
    let vectors: [(u8, [Endpoint; 2], &[u8]); 8] = [
        (24, [hinted(1, READY, &["a"], None), hinted(2, READY, &["b"], None)], &[1]),
        (25, [hinted(1, READY, &["a"], None), hinted(2, READY, &[], None)], &[1, 2]),
        (26, [hinted(1, READY, &["b"], None), hinted(2, READY, &["c"], None)], &[1, 2]),
        (27, [hinted(1, unready, &["a"], None), hinted(2, READY, &["b"], None)], &[2]),
        (28, [hinted(1, READY, &["a"], Some(true)), hinted(2, READY, &["a"], Some(false))], &[1]),
        (29, [hinted(1, READY, &["a"], Some(false)), hinted(2, READY, &["b"], Some(false))], &[1]),
        // A node hint on one alone does not count; neither do the hints of one that is not ready.
        (0, [hinted(1, READY, &[], Some(true)), hinted(2, READY, &[], None)], &[1, 2]),
        (0, [hinted(1, READY, &["a"], None), hinted(2, unready, &[], None)], &[1]),
    ];
    for (vector, endpoints, expected) in vectors {
        let got = chosen(TrafficPolicy::Cluster, &[slice("s", Family::V4, P, &endpoints)]);
        assert_eq!(got, (expected.to_vec(), vec![], true), "vector {vector}: {endpoints:?}");
    }
    let crossed = [hinted(1, READY, &["b"], None), hinted(2, READY, &["a"], None)];
    let got = chosen(TrafficPolicy::Local, &[slice("s", Family::V4, P, &crossed)]);
    assert_eq!(got, (vec![2], vec![1], true), "vector 30");

    let plain = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    let zoned = [slice("s", Family::V4, P, &[hinted(1, READY, &["a"], None), hinted(2, READY, &[""], None)])];
    for no_zone in [None, Some("")] {
        let choice = choose(&plain, &plain.ports[0], Family::V4, &zoned, no_zone);
        assert_eq!(choice.cluster.len(), 2, "a node without a zone takes all");
    }
    // The terminating fallback ignores topology.
    let leaving = [hinted(1, TERMINATING, &["b"], None), hinted(2, TERMINATING, &["a"], None)];
    assert_eq!(chosen(TrafficPolicy::Cluster, &[slice("s", Family::V4, P, &leaving)]).0, [1, 2]);
}

/// Vectors 32 and 33, and what else joins slices.
#[test]
fn several_slices() {
    let ready = endpoint(Family::V4, 1, true, READY);
    let leaving = endpoint(Family::V4, 1, false, TERMINATING);
    for (a, b) in [(&ready, &leaving), (&leaving, &ready)] {
        let slices =
            ["a", "b"].map(|name| slice(name, Family::V4, P, std::slice::from_ref(if name == "a" { a } else { b })));
        let (cluster, local, _) = chosen(TrafficPolicy::Local, &slices);
        assert_eq!((cluster, local), (vec![1], vec![1]), "vector 32: the ready, local copy");
    }
    // Two that do not terminate: the ready one, whichever slice it is in.
    let unready = endpoint(Family::V4, 1, false, NEITHER);
    for (a, b) in [(&ready, &unready), (&unready, &ready)] {
        let slices = [("a", a), ("b", b)].map(|(name, it)| slice(name, Family::V4, P, std::slice::from_ref(it)));
        let (cluster, local, _) = chosen(TrafficPolicy::Local, &slices);
        assert_eq!((cluster, local), (vec![1], vec![1]), "the ready, local copy");
    }
    // Two that terminate: the one that serves.
    let gone = endpoint(Family::V4, 1, false, Conditions { terminating: true, ..NEITHER });
    for (a, b) in [(&gone, &leaving), (&leaving, &gone)] {
        let slices = [("a", a), ("b", b)].map(|(name, it)| slice(name, Family::V4, P, std::slice::from_ref(it)));
        assert_eq!(chosen(TrafficPolicy::Cluster, &slices).0, [1], "the serving copy");
    }
    let service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    let port = &service.ports[0];
    let ports = |slices: &[Slice]| -> Vec<u16> {
        choose(&service, port, Family::V4, slices, None).cluster.iter().map(|target| target.port.get()).collect()
    };
    let one = std::slice::from_ref(&ready);
    let other_port = slice("b", Family::V4, &[("p", Protocol::Tcp, 80)], one);
    assert_eq!(ports(&[slice("a", Family::V4, P, one), other_port]), [80, 8080], "vector 33");
    let unrelated = [
        slice("a", Family::V4, &[("q", Protocol::Tcp, 1), ("p", Protocol::Udp, 2), ("p", Protocol::Tcp, 3)], one),
        slice("b", Family::V6, P, &[endpoint(Family::V6, 1, true, READY)]),
    ];
    assert_eq!(ports(&unrelated), [3], "joined by family, port name and protocol");
    assert_eq!(choose(&service, port, Family::V4, &[], None), Choice::default());

    // Two copies that both run: the slice whose name comes last, whatever the order of arrival.
    let copies = [("a", true), ("b", false)]
        .map(|(name, local)| slice(name, Family::V4, P, &[endpoint(Family::V4, 1, local, READY)]));
    let [a, b] = copies;
    for slices in [[a.clone(), b.clone()], [b, a]] {
        let choice = choose(&service, port, Family::V4, &slices, None);
        assert_eq!(choice.cluster.iter().map(|target| target.local).collect::<Vec<_>>(), [false]);
    }
}

#[test]
fn serving_endpoints_ignore_policies_and_readiness() {
    let service = service(TrafficPolicy::Local, TrafficPolicy::Local);
    let endpoints: Vec<Endpoint> =
        (1..).zip(every_condition()).map(|(last, state)| endpoint(Family::V4, last, false, state)).collect();
    let slices = [slice("s", Family::V4, P, &endpoints)];
    let got: Vec<IpAddr> =
        serving(&service.ports[0], Family::V4, &slices).iter().map(|target| target.address).collect();
    let expected: Vec<IpAddr> =
        endpoints.iter().filter(|endpoint| endpoint.conditions.serving).map(|endpoint| endpoint.address).collect();
    assert_eq!((got.len(), got), (4, expected));
}

#[test]
fn endpoints_are_listed_whatever_their_state() {
    let service = service(TrafficPolicy::Local, TrafficPolicy::Local);
    let endpoints: Vec<Endpoint> =
        (1..).zip(every_condition()).map(|(last, state)| endpoint(Family::V4, last, false, state)).collect();
    let slices = [slice("s", Family::V4, P, &endpoints)];
    let of = |family| listed(&service.ports[0], family, &slices).iter().map(|it| it.address).collect::<Vec<IpAddr>>();
    assert_eq!(of(Family::V4), endpoints.iter().map(|endpoint| endpoint.address).collect::<Vec<_>>());
    assert!(of(Family::V6).is_empty());
}

/// Vectors 39 and 40.
#[test]
fn health_check_weight() {
    let two_ports = &[("http", Protocol::Tcp, 80), ("https", Protocol::Tcp, 443)];
    let local = |last, conditions| endpoint(Family::V4, last, true, conditions);
    let both = [slice("a", Family::V4, two_ports, &[local(1, READY)]), slice("b", Family::V4, P, &[local(1, READY)])];
    assert_eq!(ready_on_this_node(Family::V4, &both), 1);
    assert_eq!(ready_on_this_node(Family::V6, &both), 0);
    let others = [local(1, TERMINATING), local(2, READY), local(3, READY), endpoint(Family::V4, 4, false, READY)];
    assert_eq!(ready_on_this_node(Family::V4, &[slice("a", Family::V4, P, &others)]), 2);
    assert_eq!(ready_on_this_node(Family::V4, &[slice("a", Family::V4, &[], &others)]), 0);
}

#[test]
fn many_endpoints_do_not_take_quadratic_time() {
    let service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
    let slices: Vec<Slice> = (0..500u16)
        .map(|n| {
            let endpoints: Vec<Endpoint> = (0..100u8)
                .map(|last| {
                    let [high, low] = n.to_be_bytes();
                    let address = IpAddr::from([10, high, low, last]);
                    Endpoint { address, ..hinted(1, READY, &["a"], Some(true)) }
                })
                .collect();
            slice(&format!("s{n}"), Family::V4, P, &endpoints)
        })
        .collect();
    // 50,000 endpoints: a comparison of all pairs would take minutes in a debug build.
    assert_eq!(choose(&service, &service.ports[0], Family::V4, &slices, Some("a")).cluster.len(), 50_000);
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let zones = prop::sample::subsequence(vec!["a", "b"], 0..=2);
    let node = prop::option::of(any::<bool>());
    // Mostly ready, or topology would rarely matter.
    let state = prop_oneof![
        3 => Just(READY),
        1 => Just(TERMINATING),
        1 => prop::sample::select(every_condition().collect::<Vec<_>>()),
    ];
    (1u8..6, any::<bool>(), state, zones, node).prop_map(|(last, local, state, zones, node)| {
        let endpoint = hinted(last, state, &zones, node);
        Endpoint { conditions: Conditions { local, ..endpoint.conditions }, ..endpoint }
    })
}

fn any_slices() -> impl Strategy<Value = Vec<Slice>> {
    let ports = prop::sample::subsequence(
        vec![("p", Protocol::Tcp, 80), ("p", Protocol::Tcp, 8080), ("q", Protocol::Tcp, 80)],
        1..=3,
    );
    let contents = prop::collection::vec((ports, prop::collection::vec(any_endpoint(), 0..4)), 0..4);
    contents.prop_flat_map(|contents| {
        let slices: Vec<Slice> = contents
            .iter()
            .enumerate()
            .map(|(i, (ports, endpoints))| slice(&format!("s{i}"), Family::V4, ports, endpoints))
            .collect();
        Just(slices).prop_shuffle()
    })
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::with_cases(2_000), file!()))]

    #[test]
    fn hints_and_copies_are_as_the_rules_say(
        slices in any_slices(),
        reachable in prop::sample::select(Reachable::ALL.to_vec()),
        (internal_local, external_local) in any::<(bool, bool)>(),
        zone in prop::sample::select(vec!["", "a", "c"]),
    ) {
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let mut service = service(policy(internal_local), policy(external_local));
        reachable.put(&mut service, Family::V4);
        let reached = !matches!(reachable, Reachable::Not | Reachable::InTheOtherFamily);
        let got = choose(&service, &service.ports[0], Family::V4, &slices, Some(zone));
        prop_assert_eq!(&got, &naive(internal_local, external_local, reached, &slices, zone));
        for list in [&got.cluster, &got.local] {
            let keys: Vec<_> = list.iter().map(|target| (target.address, target.port)).collect();
            prop_assert!(keys.is_sorted_by(|a, b| a < b), "sorted, each once: {:?}", keys);
        }
    }
}
