//! Random clusters in a small world, so that the same addresses, ports and names meet often, and an engine that is taken
//! through them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use arcstr::ArcStr;
use ipnet::IpNet;
use nftproxyd::config::{DetectLocal, NodePortAddresses};
use nftproxyd::model::{
    Conditions, Endpoint, Event, Family, Hints, Kind, Node, ObjectName, PerFamily, Protocol, Scheduler, Service,
    ServiceCidr, ServicePort, Slice, SlicePort, TrafficPolicy,
};
use nftproxyd::nftables::Kernel;
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::ruleset::kinds;
use nftproxyd::ruleset::names::{By, Pick, SetName, TableName};
use nftproxyd::ruleset::types::{Data, Element, Value};
use nftproxyd::sync::{Engine, Facts};
use proptest::prelude::*;
use proptest::sample::select;

/// The longest wait between two attempts, in every test.
pub(crate) const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// Pods are known by the ranges of the Node.
pub(crate) fn facts(node_ports: NodePortAddresses) -> Facts {
    Facts {
        table: TableName::NODE,
        detect_local: DetectLocal::NodeCidr,
        node_ports,
        masquerade_bit: 14,
        masquerade_all: false,
        node_ips: PerFamily::default(),
        scheduler: Scheduler::Random,
        hashes: true,
        counters: false,
        ping: false,
        longest_retry: LONGEST_RETRY,
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("a port")
}

pub(crate) fn name(name: &str) -> ObjectName {
    ObjectName::new("shop", name).expect("a name")
}

/// An IPv4 address or its counterpart: 10.96.0.1 and fd00:10:96::1.
pub(crate) fn address(family: Family, a: u8, b: u8, last: u8) -> IpAddr {
    match family {
        Family::V4 => ip(&format!("{a}.{b}.0.{last}")),
        Family::V6 => ip(&format!("fd00:{a}:{b}::{last}")),
    }
}

/// A Service with a cluster IP of IPv4 and nothing else; up to 60,000 of them.
pub(crate) fn plain_service(index: u16) -> Service {
    let [high, low] = index.to_be_bytes();
    Service {
        name: name(&format!("plain-{index:05}")),
        cluster_ips: PerFamily { v4: Some(ip(&format!("10.96.{high}.{low}"))), v6: None },
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: port(80), node_port: None }].into(),
        external_ips: [].into(),
        load_balancer_ips: [].into(),
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
        created: 0,
    }
}

/// An endpoint on another node, ready.
pub(crate) fn ready(address: IpAddr) -> Endpoint {
    let conditions = Conditions { ready: true, serving: true, terminating: false, local: false };
    Endpoint { address, conditions, hints: None }
}

/// A slice of a Service with these endpoints at port 8080, and for each port name and protocol that tests use.
pub(crate) fn slice_of(service: &ObjectName, family: Family, endpoints: Vec<Endpoint>) -> Slice {
    let ports = Protocol::ALL.map(|protocol| SlicePort { name: "http".into(), protocol, port: port(8080) });
    Slice {
        name: name(&format!("{}-{family}", service.name()).to_lowercase()),
        service: service.clone(),
        family,
        ports: ports.into(),
        weight: 1,
        endpoints: endpoints.into(),
        places: Default::default(),
    }
}

/// So many ready endpoints.
pub(crate) fn endpoints(family: Family, count: u8) -> Vec<Endpoint> {
    (1..=count).map(|last| ready(address(family, 10, 124, last))).collect()
}

/// Frontends of every kind, `count` times each: `count` Services, both families, the same numbers of endpoints in all.
pub(crate) fn of_every_kind(count: u16, affinity: Option<u32>) -> Cluster {
    let mut cluster = Cluster {
        node: Some(Node {
            zone: None,
            addresses: PerFamily::from_fn(|family| Some(address(family, 10, 125, 1))),
            primary: Some(Family::V4),
            pod_cidrs: [net("10.124.0.0/24"), net("fd00:10:124::/64")].into(),
            leaving: false,
        }),
        addresses: Family::ALL.map(|family| address(family, 10, 125, 1)).into(),
        ..Cluster::default()
    };
    let cidrs = [net("10.96.0.0/12"), net("fd00:10:96::/108")].into();
    cluster.cidrs.insert("services".into(), ServiceCidr { name: "services".into(), cidrs });
    for index in 0..count {
        let both = |v4: u8, v6: &str| {
            let [high, low] = index.to_be_bytes();
            vec![ip(&format!("{v4}.96.{high}.{low}")), ip(&format!("{v6}::{index:x}:1"))]
        };
        for kind in 0..6_u16 {
            let cluster_ips = both(10, &format!("fd00:10:96:{kind}"));
            let mut service = Service {
                name: name(&format!("kind-{kind}-{index:05}")),
                cluster_ips: PerFamily { v4: Some(cluster_ips[0]), v6: Some(cluster_ips[1]) },
                ..plain_service(index)
            };
            service.ports = Protocol::ALL
                .map(|protocol| ServicePort {
                    name: "http".into(),
                    protocol,
                    port: port(80 + kind),
                    node_port: (kind != 1).then(|| port(30_000 + 6 * index + kind)),
                })
                .into();
            let local = Endpoint {
                conditions: Conditions { ready: true, serving: true, terminating: false, local: true },
                ..ready(ip("10.124.0.1"))
            };
            let mut counts = 2;
            match kind {
                0 => {}
                1 => counts = 0,
                2 => {
                    service.load_balancer_ips = both(100, "fd00:192:2").into();
                    service.source_ranges = Some([net("10.1.0.0/16"), net("192.0.2.0/24"), net("fd00:1::/32")].into());
                }
                3 => {
                    service.external_ips = both(101, "fd00:192:3").into();
                    service.has_external_ips = PerFamily { v4: true, v6: true };
                    service.external_policy = TrafficPolicy::Local;
                }
                4 => {
                    service.load_balancer_ips = both(102, "fd00:192:4").into();
                    service.internal_policy = TrafficPolicy::Local;
                }
                _ => service.affinity = affinity,
            }
            for family in Family::ALL {
                let mut endpoints = endpoints(family, counts);
                if kind == 3 {
                    endpoints[0] = Endpoint { address: endpoints[0].address, ..local.clone() };
                }
                let slice = slice_of(&service.name, family, endpoints);
                cluster.slices.insert(slice.name.clone(), slice);
            }
            cluster.services.insert(service.name.clone(), service);
        }
    }
    cluster
}

/// The same cluster, whose Services ask for all that not every table has.
pub(crate) fn with_extras(mut cluster: Cluster) -> Cluster {
    for service in cluster.services.values_mut() {
        service.ranges_everywhere = service.source_ranges.is_some();
        service.ping = Some(true);
    }
    cluster
}

/// The cluster that the objects so far make up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) services: BTreeMap<ObjectName, Service>,
    pub(crate) slices: BTreeMap<ObjectName, Slice>,
    pub(crate) node: Option<Node>,
    pub(crate) cidrs: BTreeMap<ArcStr, ServiceCidr>,
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// Something that happens to a cluster.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Service(Service),
    ServiceGone(ObjectName),
    Slice(Slice),
    SliceGone(ObjectName),
    Node(Option<Node>),
    Cidr(ServiceCidr),
    CidrGone(ArcStr),
    /// The node's own addresses.
    Addresses(BTreeSet<IpAddr>),
    /// All objects of a kind come again, but for some that are gone: one in so many.
    Relist(Kind, usize),
    /// A list that breaks off after its first object.
    BrokenList(Kind),
    /// Somebody may have touched this table.
    Distrust(Family),
}

impl Cluster {
    /// The objects of a kind.
    fn list(&self, kind: Kind) -> Vec<Event> {
        match kind {
            Kind::Service => self.services.values().cloned().map(Event::Service).collect(),
            Kind::EndpointSlice => self.slices.values().cloned().map(Event::from).collect(),
            Kind::Node => self.node.iter().cloned().map(Event::Node).collect(),
            Kind::ServiceCidr => self.cidrs.values().cloned().map(Event::ServiceCidr).collect(),
        }
    }

    /// A new engine that has been told all of it.
    pub(crate) fn engine<K: Kernel>(&self, kernel: K, facts: Facts) -> Engine<K> {
        let mut engine = Engine::new(kernel, facts);
        engine.set_addresses(self.addresses.clone());
        for kind in Kind::ALL {
            engine.apply(Event::ListStarted(kind));
            self.list(kind).into_iter().for_each(|event| engine.apply(event));
            engine.apply(Event::ListDone(kind));
        }
        engine
    }

    /// What a table must hold, by an engine that starts with an empty kernel.
    pub(crate) fn expected(&self, facts: Facts) -> Engine<InMemoryKernel> {
        let mut engine = self.engine(InMemoryKernel::new(), facts);
        let report = engine.sync(Instant::now());
        assert_eq!((report.failures, report.error_text()), (0, String::new()));
        engine
    }

    /// Makes the change, here and in an engine.
    pub(crate) fn change<K: Kernel>(&mut self, engine: &mut Engine<K>, change: Change) {
        match change {
            Change::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                engine.apply(Event::Service(service));
            }
            Change::ServiceGone(name) => {
                self.services.remove(&name);
                engine.apply(Event::ServiceGone(name));
            }
            Change::Slice(slice) => {
                self.slices.insert(slice.name.clone(), slice.clone());
                engine.apply(Event::from(slice));
            }
            Change::SliceGone(name) => {
                self.slices.remove(&name);
                engine.apply(Event::SliceGone(name));
            }
            Change::Node(node) => {
                self.node.clone_from(&node);
                engine.apply(node.map_or(Event::NodeGone, Event::Node));
            }
            Change::Cidr(cidr) => {
                self.cidrs.insert(cidr.name.clone(), cidr.clone());
                engine.apply(Event::ServiceCidr(cidr));
            }
            Change::CidrGone(name) => {
                self.cidrs.remove(&name);
                engine.apply(Event::ServiceCidrGone(name));
            }
            Change::Addresses(addresses) => {
                self.addresses.clone_from(&addresses);
                engine.set_addresses(addresses);
            }
            Change::Relist(kind, gone) => {
                let mut count = 0;
                let mut stays = || {
                    count += 1;
                    count % gone != 0
                };
                match kind {
                    Kind::Service => self.services.retain(|_, _| stays()),
                    Kind::EndpointSlice => self.slices.retain(|_, _| stays()),
                    Kind::Node => self.node = self.node.take().filter(|_| stays()),
                    Kind::ServiceCidr => self.cidrs.retain(|_, _| stays()),
                }
                engine.apply(Event::ListStarted(kind));
                self.list(kind).into_iter().for_each(|event| engine.apply(event));
                engine.apply(Event::ListDone(kind));
            }
            Change::BrokenList(kind) => {
                engine.apply(Event::ListStarted(kind));
                self.list(kind).into_iter().take(1).for_each(|event| engine.apply(event));
            }
            Change::Distrust(family) => engine.distrust(family),
        }
    }
}

/// The elements of a table without the numbers of slots and of counters: the key of each frontend with its endpoints, each
/// with how often it is there, and everything else as it is. Fails where the slots of a frontend have gaps.
pub(crate) fn without_slots(elements: &[(SetName, Element)]) -> BTreeMap<(SetName, Element), usize> {
    let mut slots: BTreeMap<(SetName, Vec<Value>, bool), Vec<u32>> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for (set, element) in elements {
        let mut element = element.clone();
        if let Some(kind) = kinds::Kind::of_data(&element.data) {
            element.data = match kind {
                kinds::Kind::Pick(pick) => kinds::Kind::Pick(without_counter(pick)).data(),
                other => other.data(),
            };
        }
        let mut of_slot = false;
        if let (Some(Value::Slot(slot)), Data::Values(_)) = (element.key.last().copied(), &element.data) {
            let local = slot >= Pick::LOCAL_OFFSET;
            let first = if local { Pick::LOCAL_OFFSET } else { 0 };
            element.key.pop();
            slots.entry((*set, element.key.to_vec(), local)).or_default().push(slot - first);
            element.key.push(Value::Slot(first));
            of_slot = true;
        }
        let times = out.entry((*set, element.clone())).or_default();
        *times += 1;
        assert!(of_slot || *times == 1, "{set}: {element:?} is there twice");
    }
    for (frontend, mut numbers) in slots {
        numbers.sort_unstable();
        let all: Vec<u32> = (0..).take(numbers.len()).collect();
        assert_eq!(numbers, all, "the slots of {frontend:?}");
    }
    out
}

/// The same chain, whichever counter it takes turns by.
pub(crate) fn without_counter(pick: Pick) -> Pick {
    match pick.by {
        By::Turn(_) => Pick { by: By::Turn(0), ..pick },
        _ => pick,
    }
}

// --- random values ---------------------------------------------------------------------------------------------------

const SERVICES: [&str; 6] = ["api", "cart", "db", "mail", "stock", "web"];
const SLICES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
const PORT_NAMES: [&str; 3] = ["", "dns", "http"];

fn families() -> impl Strategy<Value = PerFamily<bool>> {
    prop_oneof![
        3 => Just(PerFamily { v4: true, v6: true }),
        2 => Just(PerFamily { v4: true, v6: false }),
        1 => Just(PerFamily { v4: false, v6: true }),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local])
}

/// Addresses outside: each may be an external IP of one Service and a load-balancer IP of another.
fn outside() -> impl Strategy<Value = Box<[IpAddr]>> {
    let all = Family::ALL.into_iter().flat_map(|family| (1..=2).map(move |last| address(family, 192, 0, last)));
    // One that can be a cluster IP too.
    let all: Vec<IpAddr> = all.chain([address(Family::V4, 10, 96, 1)]).collect();
    prop_oneof![
        2 => Just(Vec::new()),
        3 => prop::sample::subsequence(all, 1..=3),
    ]
    .prop_map(|mut addresses| {
        addresses.sort_unstable();
        addresses.into()
    })
}

fn source_ranges() -> impl Strategy<Value = Option<Box<[IpNet]>>> {
    let all: Vec<IpNet> = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.125.0.0/16",
        "192.0.0.0/23",
        "203.0.113.7/32",
        "fd00:10:125::/48",
        "fd00:192::/32",
    ]
    .map(net)
    .to_vec();
    prop_oneof![
        2 => Just(None),
        2 => prop::sample::subsequence(all, 0..=4).prop_map(Some),
    ]
    .prop_map(|ranges| {
        ranges.map(|mut ranges| {
            ranges.sort_unstable();
            ranges.into()
        })
    })
}

fn service_ports() -> impl Strategy<Value = Box<[ServicePort]>> {
    let one = (select(&PORT_NAMES[..]), protocol(), 80u16..83, prop::option::of(30000u16..30003));
    prop::collection::vec(one, 1..4).prop_map(|ports| {
        let mut seen = BTreeSet::new();
        let ports = ports.into_iter().filter(|(name, protocol, ..)| seen.insert((*name, *protocol)));
        let ports = ports.map(|(name, protocol, number, node_port)| ServicePort {
            name: name.into(),
            protocol,
            port: port(number),
            node_port: node_port.map(port),
        });
        ports.collect()
    })
}

/// A Service of any kind.
pub(crate) fn service() -> impl Strategy<Value = Service> {
    let ranges = (source_ranges(), any::<bool>());
    let addresses = (families(), 1u8..8, outside(), outside(), ranges);
    let schedulers: Vec<_> = Scheduler::ALL.into_iter().map(|(scheduler, _)| scheduler).collect();
    let scheduler = prop::option::of(select(schedulers));
    let ping = prop::option::of(any::<bool>());
    let rest = (policy(), policy(), select(vec![None, None, Some(60), Some(10_800)]), (scheduler, ping), 0i64..3);
    (select(&SERVICES[..]), service_ports(), addresses, rest).prop_map(
        |(service, ports, (families, last, external_ips, load_balancer_ips, ranges), rest)| {
            let (internal_policy, external_policy, affinity, (scheduler, ping), created) = rest;
            let (source_ranges, ranges_everywhere) = ranges;
            // The last is outside of all ranges.
            let cluster_ip = |family| address(family, 10, if last == 7 { 99 } else { 96 }, last);
            let has = |family| external_ips.iter().any(|ip| Family::of(*ip) == family);
            Service {
                name: name(service),
                cluster_ips: PerFamily::from_fn(|family| families[family].then(|| cluster_ip(family))),
                ports,
                has_external_ips: PerFamily::from_fn(has),
                external_ips,
                load_balancer_ips,
                source_ranges,
                ranges_everywhere,
                internal_policy,
                external_policy,
                affinity,
                scheduler,
                maglev_size: NonZeroU16::new(251),
                ping,
                accounting: false,
                reset_connections: false,
                health_check_node_port: None,
                created,
            }
        },
    )
}

fn hints() -> impl Strategy<Value = Option<Box<Hints>>> {
    let zones = prop::sample::subsequence(vec!["a", "b"], 0..=2);
    let hints = (zones, any::<bool>(), any::<bool>()).prop_map(|(zones, for_nodes, here)| {
        let zones = zones.into_iter().map(ArcStr::from).collect();
        Box::new(Hints { zones, for_nodes, for_this_node: for_nodes && here })
    });
    prop_oneof![3 => Just(None), 1 => hints.prop_map(Some)]
}

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let conditions = prop_oneof![
        6 => Just((true, true, false)),
        1 => Just((false, true, true)),
        1 => Just((false, false, true)),
        1 => Just((false, false, false)),
    ];
    (1u8..8, conditions, any::<bool>(), hints()).prop_map(move |(last, (ready, serving, terminating), local, hints)| {
        Endpoint {
            address: address(family, 10, 124, last),
            conditions: Conditions { ready, serving, terminating, local },
            hints,
        }
    })
}

/// A slice of any Service.
pub(crate) fn slice() -> impl Strategy<Value = Slice> {
    let ports = prop::collection::vec((select(&PORT_NAMES[..]), protocol(), 8080u16..8082), 1..4);
    let family = select(&Family::ALL[..]);
    let endpoints = family.prop_flat_map(|family| (Just(family), prop::collection::vec(endpoint(family), 0..6)));
    let weight = select(&[1, 1, 0, 3, 700][..]);
    (select(&SLICES[..]), select(&SERVICES[..]), ports, weight, endpoints).prop_map(
        |(slice, service, ports, weight, (family, endpoints))| {
            let ports = ports.into_iter();
            let ports =
                ports.map(|(name, protocol, number)| SlicePort { name: name.into(), protocol, port: port(number) });
            Slice {
                name: name(slice),
                service: name(service),
                family,
                ports: ports.collect(),
                weight,
                endpoints: endpoints.into(),
                places: Default::default(),
            }
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    let zone = select(vec![None, Some("a"), Some("b")]);
    let addresses = PerFamily::from_fn(|family| {
        vec![None, Some(1), Some(2)]
            .into_iter()
            .map(move |l| l.map(|last| address(family, 10, 125, last)))
            .collect::<Vec<_>>()
    });
    let pod_cidrs = select(vec![
        vec![],
        vec!["10.124.0.0/24", "fd00:10:124::/64"],
        vec!["10.124.0.0/16"],
        vec!["fd00:10:124::/48"],
    ]);
    (zone, select(addresses.v4), select(addresses.v6), pod_cidrs).prop_map(|(zone, v4, v6, pod_cidrs)| Node {
        zone: zone.map(ArcStr::from),
        addresses: PerFamily { v4, v6 },
        primary: v4.or(v6).map(Family::of),
        pod_cidrs: pod_cidrs.into_iter().map(net).collect(),
        leaving: false,
    })
}

fn cidr() -> impl Strategy<Value = ServiceCidr> {
    let cidrs = prop::sample::subsequence(vec!["10.96.0.0/16", "10.97.0.0/24", "fd00:10:96::/108"], 0..=3);
    (select(vec!["first", "second"]), cidrs)
        .prop_map(|(name, cidrs)| ServiceCidr { name: name.into(), cidrs: cidrs.into_iter().map(net).collect() })
}

fn node_addresses() -> impl Strategy<Value = BTreeSet<IpAddr>> {
    let all = Family::ALL.into_iter().flat_map(|family| (1..=3).map(move |last| address(family, 10, 125, last)));
    prop::sample::subsequence(all.chain([ip("127.0.0.1"), ip("::1")]).collect::<Vec<_>>(), 0..=8)
        .prop_map(BTreeSet::from_iter)
}

/// Any change.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        12 => service().prop_map(Change::Service),
        4 => select(&SERVICES[..]).prop_map(|service| Change::ServiceGone(name(service))),
        16 => slice().prop_map(Change::Slice),
        4 => select(&SLICES[..]).prop_map(|slice| Change::SliceGone(name(slice))),
        2 => prop::option::weighted(0.8, node()).prop_map(Change::Node),
        1 => cidr().prop_map(Change::Cidr),
        1 => select(vec!["first", "second"]).prop_map(|name| Change::CidrGone(name.into())),
        2 => node_addresses().prop_map(Change::Addresses),
        2 => (select(&Kind::ALL[..]), 2usize..5).prop_map(|(kind, gone)| Change::Relist(kind, gone)),
        1 => select(&Kind::ALL[..]).prop_map(Change::BrokenList),
        1 => select(&Family::ALL[..]).prop_map(Change::Distrust),
    ]
}

/// A cluster to begin with: some of everything.
pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    let objects = (prop::collection::vec(service(), 0..6), prop::collection::vec(slice(), 0..9));
    (objects, prop::option::of(node()), cidr(), node_addresses()).prop_map(
        |((services, slices), node, cidr, addresses)| Cluster {
            services: services.into_iter().map(|service| (service.name.clone(), service)).collect(),
            slices: slices.into_iter().map(|slice| (slice.name.clone(), slice)).collect(),
            node,
            cidrs: BTreeMap::from([(cidr.name.clone(), cidr)]),
            addresses,
        },
    )
}

/// Which addresses accept node ports.
pub(crate) fn node_ports() -> impl Strategy<Value = NodePortAddresses> {
    prop_oneof![
        Just(NodePortAddresses::Primary),
        Just(NodePortAddresses::All),
        Just(NodePortAddresses::Cidrs(vec![net("10.125.0.0/31"), net("fd00:10:125::/127")])),
    ]
}
