use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::{
    Conditions, Endpoint, ObjectRef, PerFamily, Places, Protocol, RefKind, Reject, ServicePort, SlicePort,
    TrafficPolicy,
};
use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text).expect("a name")
}

fn port(number: u16) -> std::num::NonZeroU16 {
    std::num::NonZeroU16::new(number).expect("a port")
}

fn service(text: &str, version: i64) -> Service {
    Service {
        name: name(text),
        cluster_ips: PerFamily { v4: Some([172, 30, 0, 1].into()), v6: None },
        ports: [ServicePort { name: "".into(), protocol: Protocol::Tcp, port: port(80), node_port: None }].into(),
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
        created: version,
    }
}

fn slice(text: &str, service: &str, version: u8) -> Slice {
    let conditions = Conditions { ready: true, serving: true, terminating: false, local: false };
    Slice {
        name: name(text),
        service: name(service),
        family: Family::V4,
        ports: [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: port(8080) }].into(),
        weight: 1,
        endpoints: [Endpoint { address: [10, 180, 0, version].into(), conditions, hints: None }].into(),
        places: Default::default(),
    }
}

/// A slice with a UDP port and two endpoints, of which the version says how they are.
fn udp_slice(text: &str, service: &str, version: u8) -> Slice {
    let endpoint = |last: u8, serving: bool, terminating: bool| {
        let conditions = Conditions { ready: serving && !terminating, serving, terminating, local: last == 1 };
        Endpoint { address: [10, 180, 1, last].into(), conditions, hints: None }
    };
    let bit = |nth: u8| version & 1 << nth != 0;
    let endpoints = [endpoint(1, bit(0), bit(1)), endpoint(if bit(2) { 2 } else { 3 }, true, false)];
    let ports = [SlicePort { name: "".into(), protocol: Protocol::Udp, port: port(53) }].into();
    Slice { ports, endpoints: endpoints.into(), ..slice(text, service, 0) }
}

/// The UDP endpoints of a Service that serve.
fn udp_serving(store: &Store, service: &ObjectName) -> Vec<policy::Target> {
    let port = ServicePort { name: "".into(), protocol: Protocol::Udp, port: port(53), node_port: None };
    policy::serving(&port, Family::V4, store.slices(service))
}

fn cidr(text: &str, ranges: &[&str]) -> ServiceCidr {
    ServiceCidr { name: text.into(), cidrs: ranges.iter().map(|range| range.parse().expect("a CIDR")).collect() }
}

fn node(zone: Option<&str>, leaving: bool) -> Node {
    Node { zone: zone.map(Into::into), leaving, ..Node::default() }
}

fn services(texts: &[&str]) -> Changes {
    Changes { services: texts.iter().map(|text| name(text)).collect(), ..Changes::default() }
}

/// What an event changes, without what Services were before.
fn apply(store: &mut Store, event: Event) -> Changes {
    Changes { redefined: vec![], ..store.apply(event) }
}

fn list(store: &mut Store, kind: Kind, events: Vec<Event>) -> Changes {
    assert!(store.apply(Event::ListStarted(kind)).is_empty());
    for event in events {
        store.apply(event);
    }
    apply(store, Event::ListDone(kind))
}

#[test]
fn services_come_change_and_go() {
    let mut store = Store::default();
    assert_eq!(apply(&mut store, Event::Service(service("web", 1))), services(&["web"]));
    assert_eq!(apply(&mut store, Event::Service(service("web", 1))), services(&[]), "identical");
    assert_eq!(apply(&mut store, Event::Service(service("web", 2))), services(&["web"]));
    assert_eq!(store.service(&name("web")), Some(&service("web", 2)));
    assert_eq!(apply(&mut store, Event::Service(service("api", 1))), services(&["api"]));
    let all: BTreeSet<&str> = store.services().map(|service| service.name.name()).collect();
    assert_eq!(all, BTreeSet::from(["api", "web"]));
    assert_eq!(apply(&mut store, Event::ServiceGone(name("web"))), services(&["web"]));
    assert_eq!(apply(&mut store, Event::ServiceGone(name("web"))), services(&[]));
    assert_eq!(store.service(&name("web")), None);
}

#[test]
fn slices_come_before_or_after_their_service_and_move() {
    let mut store = Store::default();
    assert_eq!(apply(&mut store, Event::from(slice("web-2", "web", 2))), services(&["web"]));
    assert_eq!(apply(&mut store, Event::Service(service("web", 1))), services(&["web"]));
    assert_eq!(apply(&mut store, Event::from(slice("web-1", "web", 1))), services(&["web"]));
    assert_eq!(store.slices(&name("web")), [slice("web-1", "web", 1), slice("web-2", "web", 2)], "sorted by name");
    assert_eq!(apply(&mut store, Event::from(slice("web-1", "web", 1))), services(&[]), "identical");
    assert_eq!(apply(&mut store, Event::ServiceGone(name("web"))), services(&["web"]));
    assert_eq!(store.slices(&name("web")).len(), 2, "slices stay without their Service");
    assert_eq!(apply(&mut store, Event::from(slice("web-1", "api", 1))), services(&["api", "web"]));
    assert_eq!(store.slices(&name("web")), [slice("web-2", "web", 2)]);
    assert_eq!(store.slices(&name("api")), [slice("web-1", "api", 1)]);
    assert_eq!(apply(&mut store, Event::SliceGone(name("web-1"))), services(&["api"]));
    assert_eq!(apply(&mut store, Event::SliceGone(name("web-1"))), services(&[]));
    assert_eq!(apply(&mut store, Event::SliceGone(name("web-2"))), services(&["web"]));
    assert!(store.groups.is_empty() && store.slices.is_empty(), "nothing is left behind");
}

#[test]
fn other_names_of_pods_and_nodes_change_nothing_and_are_known() {
    let on =
        |node: &str, pod| Slice { places: Places::new([(Some(pod), Some(node.into()))]), ..slice("web-1", "web", 1) };
    let mut store = Store::default();
    assert_eq!(apply(&mut store, Event::from(on("n1", "web-a"))), services(&["web"]));
    assert_eq!(store.apply(Event::from(on("n2", "web-b"))), Changes::default());
    assert_eq!(store.slices(&name("web")), [on("n2", "web-b")]);
    assert!(
        !list(&mut store, Kind::EndpointSlice, vec![Event::from(on("n3", "web-c"))]).services.contains(&name("web"))
    );
    assert_eq!(store.slices(&name("web")), [on("n3", "web-c")], "it has come with the list");
}

#[test]
fn changes_of_serving_udp_endpoints_are_told() {
    let mut store = Store::default();
    let mut told = |event| -> Vec<String> {
        let serving = store.apply(event).udp_serving;
        serving.iter().map(|(service, family)| format!("{service} {family}")).collect()
    };
    let (web, api) = ("shop/web IPv4", "shop/api IPv4");
    let none: [&str; 0] = [];
    assert_eq!(told(Event::from(slice("web-1", "web", 1))), none, "TCP");
    assert_eq!(told(Event::from(slice("web-1", "web", 2))), none);
    assert_eq!(told(Event::from(udp_slice("web-1", "web", 0b001))), [web], "it is UDP now");
    assert_eq!(told(Event::Service(service("web", 1))), none);
    assert_eq!(told(Event::from(udp_slice("web-1", "web", 0b001))), none, "identical");
    let mut elsewhere = udp_slice("web-1", "web", 0b001);
    elsewhere.endpoints[0].conditions.local = false;
    elsewhere.endpoints[1].conditions.ready = false;
    assert_eq!(told(Event::from(elsewhere)), none, "neither where they are nor whether they are ready counts");
    assert_eq!(told(Event::from(udp_slice("web-1", "web", 0b000))), [web], "one does not serve any more");
    assert_eq!(told(Event::from(udp_slice("web-1", "api", 0b000))), [api, web], "it is another Service's");
    assert_eq!(told(Event::ServiceGone(name("api"))), none);
    assert_eq!(told(Event::SliceGone(name("web-1"))), [api]);
    assert_eq!(told(Event::SliceGone(name("web-1"))), none);
    told(Event::from(udp_slice("api-1", "api", 0b001)));
    told(Event::from(slice("web-1", "web", 1)));
    told(Event::ListStarted(Kind::EndpointSlice));
    assert_eq!(told(Event::ListDone(Kind::EndpointSlice)), [api], "both slices are gone");
}

#[test]
fn node_and_zone() {
    let mut store = Store::default();
    let changes = |node, all_services| Changes { node, all_services, ..Changes::default() };
    assert_eq!(apply(&mut store, Event::Node(node(None, false))), changes(true, false), "no zone, as before");
    assert_eq!(apply(&mut store, Event::Node(node(Some("a"), false))), changes(true, true));
    assert_eq!(apply(&mut store, Event::Node(node(Some("a"), false))), changes(false, false));
    assert_eq!(apply(&mut store, Event::Node(node(Some("a"), true))), changes(true, false));
    assert_eq!((store.zone(), store.node()), (Some("a"), Some(&node(Some("a"), true))));
    assert_eq!(apply(&mut store, Event::NodeGone), changes(true, true));
    assert_eq!(apply(&mut store, Event::NodeGone), changes(false, false));
    assert_eq!((store.zone(), store.node()), (None, None));
}

#[test]
fn service_cidrs_are_merged() {
    let mut store = Store::default();
    let changed = Changes { service_cidrs: true, ..Changes::default() };
    assert_eq!(
        apply(&mut store, Event::ServiceCidr(cidr("b", &["172.30.0.0/16", "fd00::/108", "10.96.0.0/12"]))),
        changed
    );
    assert_eq!(apply(&mut store, Event::ServiceCidr(cidr("a", &["172.30.5.0/24", "172.31.0.0/16"]))), changed);
    assert!(store.apply(Event::ServiceCidr(cidr("a", &["172.30.5.0/24", "172.31.0.0/16"]))).is_empty());
    let texts = |store: &Store, family| -> Vec<String> {
        store.service_cidrs(family).iter().map(ToString::to_string).collect()
    };
    assert_eq!(texts(&store, Family::V4), ["10.96.0.0/12", "172.30.0.0/15"]);
    assert_eq!(texts(&store, Family::V6), ["fd00::/108"]);
    assert_eq!(apply(&mut store, Event::ServiceCidrGone("b".into())), changed);
    assert!(store.apply(Event::ServiceCidrGone("b".into())).is_empty());
    assert_eq!(texts(&store, Family::V4), ["172.30.5.0/24", "172.31.0.0/16"]);
}

#[test]
fn complete_when_every_kind_was_listed() {
    let mut store = Store::default();
    assert_eq!(store.awaited(), Kind::ALL);
    store.apply(Event::ListStarted(Kind::Node));
    assert_eq!(store.awaited(), Kind::ALL, "a list that has begun is not done");
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        assert!(!store.complete());
        let last = i + 1 == Kind::ALL.len();
        assert_eq!(list(&mut store, kind, vec![]), Changes { ready: last, ..Changes::default() });
        assert_eq!(store.awaited(), Kind::ALL[i + 1..]);
    }
    assert!(store.complete());
    assert!(list(&mut store, Kind::Service, vec![]).is_empty(), "ready only once");
    store.apply(Event::ListStarted(Kind::Service));
    assert!(store.complete(), "a relist does not take it back");
}

#[test]
fn what_a_list_lacks_is_gone() {
    let mut store = Store::default();
    let events = |texts: &[&str]| texts.iter().map(|text| Event::Service(service(text, 1))).collect();
    list(&mut store, Kind::Service, events(&["a", "b", "c"]));
    store.apply(Event::Service(service("d", 1)));
    list(&mut store, Kind::EndpointSlice, vec![Event::from(slice("a-1", "a", 1)), Event::from(slice("x-1", "x", 1))]);
    assert_eq!(list(&mut store, Kind::Service, events(&["b", "d"])), services(&["a", "c"]));
    assert_eq!(store.slices(&name("a")).len(), 1, "only Services were listed");
    assert_eq!(list(&mut store, Kind::EndpointSlice, vec![]), services(&["a", "x"]));

    // A list that breaks off takes nothing away, and what came with it must come again.
    store.apply(Event::ListStarted(Kind::Service));
    assert!(store.apply(Event::Service(service("b", 1))).is_empty());
    assert!(store.service(&name("d")).is_some());
    assert_eq!(list(&mut store, Kind::Service, events(&["d"])), services(&["b"]));

    // Whatever came after the list is part of what the next list may lack.
    store.apply(Event::Node(node(Some("a"), false)));
    let changes = list(&mut store, Kind::Node, vec![]);
    assert_eq!(changes, Changes { node: true, all_services: true, ..Changes::default() });
    assert!(list(&mut store, Kind::Node, vec![Event::Node(node(None, false))]).is_empty());
    assert!(store.node().is_some());
    list(&mut store, Kind::ServiceCidr, vec![Event::ServiceCidr(cidr("a", &["10.96.0.0/12"]))]);
    let changes = list(&mut store, Kind::ServiceCidr, vec![]);
    assert_eq!(changes, Changes { service_cidrs: true, ..Changes::default() });
}

#[test]
fn rejects_change_no_service() {
    let reject = Reject::new("spec", "bad");
    let object = ObjectRef { kind: RefKind::Api(Kind::Service), name: "shop/web".into() };
    let mut store = Store::default();
    assert!(store.apply(Event::Rejects { object: object.clone(), rejects: vec![reject.clone()] }).is_empty());
    assert_eq!(store.faults().of(&object), [reject]);
}

/// The sizes that decide how much memory a cluster takes. A Service with one port, one slice and names of 20 bytes
/// takes about 530 bytes: 270 for its group with the Service and the slice in it, 80 for the names, 100 for ports, and
/// 70 for the places in the two tables; and 32 more for each endpoint, with some 15 for the names of its pod and node.
#[test]
fn values_stay_small() {
    assert!(size_of::<Endpoint>() <= 32);
    assert!(size_of::<Slice>() <= 88);
    assert!(size_of::<SlicePort>() <= 16);
    assert!(size_of::<Group>() <= 248, "{}", size_of::<Group>());
    assert!(size_of::<Filed>() <= 24);

    let mut store = Store::default();
    store.apply(Event::from(slice("web-1", "web", 1)));
    store.apply(Event::Service(service("web", 1)));
    let group = store.groups.get(&name("web")).expect("a group");
    let filed = store.slices.get(&name("web-1")).expect("a slice");
    let texts = [&group.service.as_ref().expect("a Service").0.name, &group.slices[0].service, &filed.service];
    for text in texts {
        assert_eq!(text.as_str().as_ptr(), group.name.as_str().as_ptr(), "one text for all");
    }
    assert_eq!(filed.name.as_str().as_ptr(), group.slices[0].name.as_str().as_ptr());
    assert!(!group.slices.spilled());
}

/// What is visible of a Service.
fn view(store: &Store, service: &ObjectName) -> (Option<Service>, Vec<Slice>) {
    (store.service(service).cloned(), store.slices(service).to_vec())
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn any_event() -> impl Strategy<Value = Event> {
    let any_name = || prop::sample::select(&NAMES[..]);
    let ranges = prop::sample::subsequence(vec!["10.96.0.0/16", "10.97.0.0/16", "fd00::/108"], 0..=3);
    let zone = prop::sample::select(vec![None, Some("a"), Some("b")]);
    prop_oneof![
        6 => (any_name(), 0i64..2).prop_map(|(text, version)| Event::Service(service(text, version))),
        3 => any_name().prop_map(|text| Event::ServiceGone(name(text))),
        8 => (any_name(), any_name(), 0u8..2).prop_map(|(text, of, version)| Event::from(slice(text, of, version))),
        8 => (any_name(), any_name(), 0u8..8).prop_map(|(text, of, version)| Event::from(udp_slice(text, of, version))),
        3 => any_name().prop_map(|text| Event::SliceGone(name(text))),
        2 => (zone, any::<bool>()).prop_map(|(zone, leaving)| Event::Node(node(zone, leaving))),
        1 => Just(Event::NodeGone),
        2 => (any_name(), ranges).prop_map(|(text, ranges)| Event::ServiceCidr(cidr(text, &ranges))),
        1 => any_name().prop_map(|text| Event::ServiceCidrGone(text.into())),
        2 => prop::sample::select(&Kind::ALL[..]).prop_map(Event::ListStarted),
        3 => prop::sample::select(&Kind::ALL[..]).prop_map(Event::ListDone),
    ]
}

/// What there must be after some events: the last version of each object, and who came since the last list began.
#[derive(Default)]
struct Expected {
    objects: BTreeMap<(Kind, String), Event>,
    listed: BTreeSet<(Kind, String)>,
}

impl Expected {
    fn apply(&mut self, event: &Event) {
        let key = match event {
            Event::Service(Service { name, .. }) | Event::ServiceGone(name) => (Kind::Service, name.to_string()),
            Event::Slice { slice: Slice { name, .. }, .. } | Event::SliceGone(name) => {
                (Kind::EndpointSlice, name.to_string())
            }
            Event::Node(_) | Event::NodeGone => (Kind::Node, String::new()),
            Event::ServiceCidr(ServiceCidr { name, .. }) | Event::ServiceCidrGone(name) => {
                (Kind::ServiceCidr, name.to_string())
            }
            Event::ListStarted(kind) => {
                self.listed.retain(|(of, _)| of != kind);
                return;
            }
            Event::ListDone(kind) => {
                self.objects.retain(|key, _| key.0 != *kind || self.listed.contains(key));
                return;
            }
            Event::Rejects { .. } => return,
        };
        match event {
            Event::ServiceGone(_) | Event::SliceGone(_) | Event::NodeGone | Event::ServiceCidrGone(_) => {
                self.objects.remove(&key);
            }
            _ => {
                self.listed.insert(key.clone());
                self.objects.insert(key, event.clone());
            }
        }
    }
}

fn assert_same(a: &Store, b: &Store) {
    for text in NAMES {
        assert_eq!(view(a, &name(text)), view(b, &name(text)), "{text}");
    }
    assert_eq!(a.node(), b.node());
    for family in Family::ALL {
        assert_eq!(a.service_cidrs(family), b.service_cidrs(family));
    }
    let groups = |store: &Store| -> BTreeSet<ObjectName> {
        store.groups.iter_unordered().map(|group| group.name.clone()).collect()
    };
    let slices = |store: &Store| -> BTreeMap<ObjectName, ObjectName> {
        store.slices.iter_unordered().map(|filed| (filed.name.clone(), filed.service.clone())).collect()
    };
    assert_eq!(groups(a), groups(b), "no empty groups");
    assert_eq!(slices(a), slices(b));
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::with_cases(1_000), file!()))]

    /// Whatever happened, the store is as if only the last version of each object had come, in any order; and every
    /// event reports exactly what is different after it.
    #[test]
    fn only_the_last_version_of_each_object_counts(
        events in prop::collection::vec(any_event(), 0..60),
        seed in any::<u64>(),
    ) {
        let mut store = Store::default();
        let mut expected = Expected::default();
        for event in events {
            let before = NAMES.map(|text| view(&store, &name(text)));
            let serving = NAMES.map(|text| udp_serving(&store, &name(text)));
            let (node, zone) = (store.node().cloned(), store.zone().map(str::to_owned));
            let ranges = Family::ALL.map(|family| store.service_cidrs(family));
            expected.apply(&event);
            let changes = store.apply(event.clone());

            let redefined: Vec<(ObjectName, Option<Service>)> = NAMES
                .into_iter()
                .zip(&before)
                .filter(|(text, (service, _))| view(&store, &name(text)).0 != *service)
                .map(|(text, (service, _))| (name(text), service.clone()))
                .collect();
            prop_assert_eq!(&changes.redefined, &redefined, "{:?}", event);
            let different: Vec<ObjectName> = NAMES
                .into_iter()
                .zip(before)
                .filter(|(text, before)| view(&store, &name(text)) != *before)
                .map(|(text, _)| name(text))
                .collect();
            prop_assert_eq!(&changes.services, &different, "{:?}", event);
            for (text, before) in NAMES.into_iter().zip(serving) {
                let told = changes.udp_serving.contains(&(name(text), Family::V4));
                prop_assert!(told || udp_serving(&store, &name(text)) == before, "{:?}", event);
                prop_assert!(!told || different.contains(&name(text)), "{:?}", event);
            }
            prop_assert_eq!(changes.node, store.node() != node.as_ref());
            prop_assert_eq!(changes.all_services, store.zone() != zone.as_deref());
            // Two objects may say the same, so a change need not be visible; a visible one must be reported.
            let visible = Family::ALL.map(|family| store.service_cidrs(family)) != ranges;
            prop_assert!(changes.service_cidrs || !visible);
        }
        let mut objects: Vec<Event> = expected.objects.into_values().collect();
        // Some order that depends on the seed.
        objects.sort_by_key(|event| {
            format!("{event:?}").bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).rotate_left(7) ^ u64::from(byte))
        });
        let mut fresh = Store::default();
        for object in objects {
            fresh.apply(object);
        }
        assert_same(&store, &fresh);
    }
}
