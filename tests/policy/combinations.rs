//! Every combination of what decides about a packet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::thread;

use serde_json::{Value, json};

use nftproxyd::config::DetectLocal;
use nftproxyd::model::{Event, Family, FrontendAt, FrontendKey, PerFamily, Protocol, TrafficPolicy};
use nftproxyd::ruleset::eval::{Origin, Outcome, Packet, Reached, Tracer};
use nftproxyd::ruleset::frontend::Action;
use nftproxyd::ruleset::names::{By, ChainName, Masquerade, Pick};
use nftproxyd::sync::Facts;

use crate::cluster::{self, Cluster, NODE, OUTER_INTERFACE, POD_INTERFACE};
use crate::coverage::{Pairs, missing, names};
use crate::rules::{self, Case, Detection, Endpoint, Frontend, Sort, Source, State};

const SORTS: [Sort; 7] = [
    Sort::ClusterIp,
    Sort::ExternalIp,
    Sort::FormerLoadBalancer,
    Sort::NodePort,
    Sort::LoadBalancer,
    Sort::RestrictedLoadBalancer,
    Sort::RestrictedEverywhere,
];
const FRONTENDS: [Frontend; 9] = [
    Frontend::ClusterIp,
    Frontend::ExternalIp,
    Frontend::LoadBalancerIp,
    Frontend::NodePort,
    Frontend::OtherPortOfClusterIp,
    Frontend::UnallocatedClusterIp,
    Frontend::OtherPortOutside,
    Frontend::OtherPortOfNode,
    Frontend::NodePortElsewhere,
];
const DETECTIONS: [Detection; 5] = [
    Detection::None,
    Detection::ClusterCidr,
    Detection::NodeCidr,
    Detection::BridgeInterface,
    Detection::InterfaceNamePrefix,
];
const SOURCES: [Source; 7] = [
    Source::Pod,
    Source::PodElsewhere,
    Source::LocalEndpoint,
    Source::RemoteEndpoint,
    Source::Node,
    Source::NodeOtherAddress,
    Source::Client,
];
const LOCAL_STATES: [State; 5] =
    [State::Absent, State::Ready, State::Terminating, State::NotReady, State::OnHostNetwork];
const REMOTE_STATES: [State; 4] = [State::Absent, State::Ready, State::Terminating, State::NotReady];
const NO_YES: [bool; 2] = [false, true];

/// The port of every Service, and one that none has.
const PORT: u16 = 80;
const OTHER_PORT: u16 = 81;
/// The port of every endpoint.
const TARGET_PORT: u16 = 8080;
/// The node port of the first Service.
const FIRST_NODE_PORT: u16 = 30_000;

/// Seconds that the Services with session affinity remember their clients.
const AFFINITY_SECONDS: u32 = 600;

/// So many mismatches are shown.
const SHOWN: usize = 20;

/// Ranges of addresses.
#[derive(Clone, Copy)]
enum Net {
    ClusterIps,
    LoadBalancerIps,
    ExternalIps,
    PodsHere,
    PodsElsewhere,
    Nodes,
    Clients,
}

impl Net {
    /// The nth address of the range.
    fn ip(self, family: Family, n: usize) -> IpAddr {
        let (v4, v6): ([u8; 4], [u16; 3]) = match self {
            Net::ClusterIps => ([172, 30, 0, 0], [0xfd30, 0, 0]),
            Net::LoadBalancerIps => ([198, 18, 0, 0], [0xfd18, 0, 0]),
            Net::ExternalIps => ([198, 19, 0, 0], [0xfd19, 0, 0]),
            Net::PodsHere => ([10, 1, 0, 0], [0xfd10, 1, 0]),
            Net::PodsElsewhere => ([10, 2, 0, 0], [0xfd10, 2, 0]),
            Net::Nodes => ([192, 0, 2, 0], [0x2001, 0xdb8, 2]),
            Net::Clients => ([203, 0, 113, 0], [0x2001, 0xdb8, 0x113]),
        };
        match family {
            Family::V4 => Ipv4Addr::from(u32::from_be_bytes(v4) + n as u32).into(),
            Family::V6 => {
                Ipv6Addr::from(u128::from(Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, 0)) + n as u128).into()
            }
        }
    }
}

/// The number in its range of an address that is neither of an endpoint nor of a Service.
const SPARE: usize = 0x8001;
const NODE_ADDRESS: usize = 1;
const OTHER_NODE_ADDRESS: usize = 99;

/// A Service with its endpoints: one here, one elsewhere.
#[derive(Debug, Clone, Copy)]
struct Subject {
    /// Among all Services, from 1.
    number: usize,
    sort: usize,
    internal_local: usize,
    external_local: usize,
    affinity: usize,
    protocol: usize,
    local: usize,
    remote: usize,
}

impl Subject {
    /// Every combination. Protocol and affinity take turns so that each of their values meets all combinations of any
    /// four of the others: no rule about who gets which endpoints asks for them.
    fn all() -> Vec<Subject> {
        let mut all = Vec::new();
        for sort in 0..SORTS.len() {
            for (internal_local, external_local) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                for local in 0..LOCAL_STATES.len() {
                    for remote in 0..REMOTE_STATES.len() {
                        let turn = sort + internal_local + external_local + local + remote;
                        all.push(Subject {
                            number: all.len() + 1,
                            sort,
                            internal_local,
                            external_local,
                            affinity: turn % NO_YES.len(),
                            protocol: turn % Protocol::ALL.len(),
                            local,
                            remote,
                        });
                    }
                }
            }
        }
        all
    }

    fn protocol(&self) -> Protocol {
        Protocol::ALL[self.protocol]
    }

    /// Two of three.
    fn asks_for_pings(&self) -> bool {
        !self.number.is_multiple_of(3)
    }

    fn node_port(&self) -> u16 {
        FIRST_NODE_PORT + self.number as u16
    }

    fn has(&self, frontend: Frontend) -> bool {
        let sort = SORTS[self.sort];
        match frontend {
            Frontend::ExternalIp => !matches!(sort, Sort::ClusterIp | Sort::FormerLoadBalancer),
            Frontend::LoadBalancerIp => sort == Sort::FormerLoadBalancer || is_load_balancer(sort),
            Frontend::NodePort | Frontend::NodePortElsewhere => !matches!(sort, Sort::ClusterIp | Sort::ExternalIp),
            Frontend::OtherPortOutside => sort != Sort::ClusterIp,
            _ => true,
        }
    }

    fn endpoints(&self, family: Family) -> Vec<Endpoint> {
        let states = [(LOCAL_STATES[self.local], true), (REMOTE_STATES[self.remote], false)];
        let present = states.into_iter().filter(|(state, _)| *state != State::Absent);
        present
            .map(|(state, local)| {
                let address = match (state, local) {
                    (State::OnHostNetwork, _) => Net::Nodes.ip(family, NODE_ADDRESS),
                    (_, true) => Net::PodsHere.ip(family, self.number),
                    (_, false) => Net::PodsElsewhere.ip(family, self.number),
                };
                Endpoint { at: SocketAddr::new(address, TARGET_PORT), state, local }
            })
            .collect()
    }

    /// The Service as the API has it.
    fn service(&self) -> Value {
        let sort = SORTS[self.sort];
        let both = |net: Net| Family::ALL.map(|family| net.ip(family, self.number).to_string());
        let policy = |local| if local == 1 { "Local" } else { "Cluster" };
        let mut object = json!({
            "kind": "Service",
            "metadata": {"namespace": "test", "name": format!("s{}", self.number)},
            "spec": {
                "type": match sort {
                    Sort::ClusterIp | Sort::ExternalIp | Sort::FormerLoadBalancer => "ClusterIP",
                    Sort::NodePort => "NodePort",
                    Sort::LoadBalancer | Sort::RestrictedLoadBalancer | Sort::RestrictedEverywhere => "LoadBalancer",
                },
                "clusterIP": both(Net::ClusterIps)[0], "clusterIPs": both(Net::ClusterIps),
                "ipFamilies": ["IPv4", "IPv6"],
                "internalTrafficPolicy": policy(self.internal_local),
                "externalTrafficPolicy": policy(self.external_local),
                "ports": [{"port": PORT, "protocol": self.protocol().name().to_uppercase()}],
            },
        });
        if self.affinity == 1 {
            object["spec"]["sessionAffinity"] = json!("ClientIP");
            object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}});
        }
        if self.has(Frontend::ExternalIp) {
            object["spec"]["externalIPs"] = json!(both(Net::ExternalIps));
        }
        if self.has(Frontend::NodePort) {
            object["spec"]["ports"][0]["nodePort"] = json!(self.node_port());
        }
        if self.has(Frontend::LoadBalancerIp) {
            let ingress = both(Net::LoadBalancerIps).map(|address| json!({"ip": address}));
            object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
        let mut annotations = json!({"nftproxyd.io/ping": if self.asks_for_pings() { "true" } else { "false" }});
        if sort == Sort::RestrictedEverywhere {
            annotations["nftproxyd.io/source-ranges-everywhere"] = json!("true");
        }
        object["metadata"]["annotations"] = annotations;
        if matches!(sort, Sort::RestrictedLoadBalancer | Sort::RestrictedEverywhere) {
            let nets = [(Net::Clients, "24", "48"), (Net::PodsHere, "16", "32")];
            let ranges = |(net, v4, v6): (Net, &str, &str)| {
                [format!("{}/{v4}", net.ip(Family::V4, 0)), format!("{}/{v6}", net.ip(Family::V6, 0))]
            };
            object["spec"]["loadBalancerSourceRanges"] = json!(nets.map(ranges).concat());
        }
        object
    }

    /// Its EndpointSlice of one family.
    fn slice(&self, family: Family) -> Value {
        let endpoint = |endpoint: Endpoint| {
            let ready = matches!(endpoint.state, State::Ready | State::OnHostNetwork);
            json!({
                "addresses": [endpoint.at.ip()],
                "nodeName": if endpoint.local { NODE } else { "n2" },
                "conditions": {
                    "ready": ready,
                    "serving": endpoint.state != State::NotReady,
                    "terminating": endpoint.state == State::Terminating,
                },
            })
        };
        json!({
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "test",
                "name": format!("s{}-{family}", self.number),
                "labels": {"kubernetes.io/service-name": format!("s{}", self.number)},
            },
            "addressType": family.to_string(),
            "ports": [{"name": "", "port": TARGET_PORT, "protocol": self.protocol().name().to_uppercase()}],
            "endpoints": self.endpoints(family).into_iter().map(endpoint).collect::<Vec<_>>(),
        })
    }

    /// Where a packet to one of its frontends goes.
    fn destination(&self, frontend: Frontend, family: Family) -> SocketAddr {
        let at = |net: Net, n, port| SocketAddr::new(net.ip(family, n), port);
        match frontend {
            Frontend::ClusterIp => at(Net::ClusterIps, self.number, PORT),
            Frontend::ExternalIp => at(Net::ExternalIps, self.number, PORT),
            Frontend::LoadBalancerIp => at(Net::LoadBalancerIps, self.number, PORT),
            Frontend::NodePort => at(Net::Nodes, NODE_ADDRESS, self.node_port()),
            Frontend::OtherPortOfClusterIp => at(Net::ClusterIps, self.number, OTHER_PORT),
            Frontend::UnallocatedClusterIp => at(Net::ClusterIps, SPARE, PORT),
            Frontend::OtherPortOutside if self.has(Frontend::LoadBalancerIp) => {
                at(Net::LoadBalancerIps, self.number, OTHER_PORT)
            }
            Frontend::OtherPortOutside => at(Net::ExternalIps, self.number, OTHER_PORT),
            Frontend::OtherPortOfNode => at(Net::Nodes, NODE_ADDRESS, 22),
            Frontend::NodePortElsewhere => at(Net::Nodes, OTHER_NODE_ADDRESS, self.node_port()),
        }
    }

    /// The source's address, if there is one of this sort.
    fn source(&self, source: Source, family: Family) -> Option<IpAddr> {
        Some(match source {
            Source::Pod => Net::PodsHere.ip(family, SPARE),
            Source::PodElsewhere => Net::PodsElsewhere.ip(family, SPARE),
            Source::LocalEndpoint if !has_own_address(LOCAL_STATES[self.local]) => return None,
            Source::LocalEndpoint => Net::PodsHere.ip(family, self.number),
            Source::RemoteEndpoint if !has_own_address(REMOTE_STATES[self.remote]) => return None,
            Source::RemoteEndpoint => Net::PodsElsewhere.ip(family, self.number),
            Source::Node => Net::Nodes.ip(family, NODE_ADDRESS),
            Source::NodeOtherAddress => Net::Nodes.ip(family, OTHER_NODE_ADDRESS),
            Source::Client => Net::Clients.ip(family, 5),
        })
    }
}

fn is_load_balancer(sort: Sort) -> bool {
    matches!(sort, Sort::LoadBalancer | Sort::RestrictedLoadBalancer | Sort::RestrictedEverywhere)
}

fn has_own_address(state: State) -> bool {
    !matches!(state, State::Absent | State::OnHostNetwork)
}

fn configuration(detection: Detection, masquerade_all: bool) -> Facts {
    let detect_local = match detection {
        Detection::None => DetectLocal::ClusterCidr(PerFamily::default()),
        Detection::ClusterCidr => cluster::facts().detect_local,
        Detection::NodeCidr => DetectLocal::NodeCidr,
        Detection::BridgeInterface => DetectLocal::BridgeInterface(POD_INTERFACE.into()),
        Detection::InterfaceNamePrefix => DetectLocal::InterfaceNamePrefix(POD_INTERFACE[..2].into()),
    };
    Facts { detect_local, masquerade_all, ..cluster::facts() }
}

fn origin(source: Source) -> Origin {
    match source {
        Source::Node | Source::NodeOtherAddress => Origin::Node,
        Source::Pod | Source::LocalEndpoint => Origin::Arrives(Some(POD_INTERFACE.into())),
        Source::PodElsewhere | Source::RemoteEndpoint | Source::Client => Origin::Arrives(Some(OUTER_INTERFACE.into())),
    }
}

/// What the test has seen.
struct Seen {
    pairs: Pairs,
    chains: BTreeSet<ChainName>,
    actions: BTreeSet<&'static str>,
    outcomes: BTreeSet<&'static str>,
    packets: usize,
    /// Pings that were not to be answered, and those that were.
    pings: [usize; 2],
    /// The first mismatches in words, and how many there are.
    shown: Vec<String>,
    mismatches: usize,
}

impl Seen {
    fn new() -> Seen {
        let dimensions = vec![
            names("type", &SORTS),
            names("internal Local", &NO_YES),
            names("external Local", &NO_YES),
            names("affinity", &NO_YES),
            names("protocol", &Protocol::ALL),
            names("here", &LOCAL_STATES),
            names("elsewhere", &REMOTE_STATES),
            names("detection", &DETECTIONS),
            names("masquerade all", &NO_YES),
            names("family", &Family::ALL),
            names("to", &FRONTENDS),
            names("from", &SOURCES),
        ];
        Seen {
            pairs: Pairs::new(dimensions),
            chains: BTreeSet::new(),
            actions: BTreeSet::new(),
            outcomes: BTreeSet::new(),
            packets: 0,
            pings: [0; 2],
            shown: Vec::new(),
            mismatches: 0,
        }
    }

    /// What becomes of a ping of the same address from the same source.
    fn ping(&mut self, tracer: &Tracer<'_>, subject: &Subject, case: &Case<'_>, packet: &Packet) {
        let fate = match case.frontend {
            Frontend::ClusterIp => Outcome::Reject,
            Frontend::ExternalIp | Frontend::LoadBalancerIp => Outcome::Pass,
            _ => return,
        };
        let answers = subject.asks_for_pings() && rules::answers_ping(case);
        let node = SocketAddr::new(Net::Nodes.ip(Family::of(packet.source), NODE_ADDRESS), 0);
        // From its own address it reaches itself, as an endpoint in its network does (of which the cluster has some).
        let reached = Reached { endpoint: node, masqueraded: packet.source == node.ip() };
        let expected = if answers { Outcome::Forward([reached].into()) } else { fate };
        let trace = match tracer.ping(packet.source, packet.destination, packet.origin.clone()) {
            Ok(trace) => trace,
            Err(error) => panic!("ping {packet:?}: {error}\n{case:?}"),
        };
        self.pings[usize::from(answers)] += 1;
        if trace.outcome != expected {
            self.mismatches += 1;
            if self.shown.len() < SHOWN {
                self.shown.push(format!("ping: expected {expected} for {case:?}, {subject:?}\n{trace}\n"));
            }
        }
    }

    fn add(&mut self, other: Seen) {
        self.pairs.add(&other.pairs);
        self.chains.extend(other.chains);
        self.actions.extend(other.actions);
        self.outcomes.extend(other.outcomes);
        self.packets += other.packets;
        self.pings = std::array::from_fn(|at| self.pings[at] + other.pings[at]);
        self.mismatches += other.mismatches;
        self.shown.extend(other.shown);
        self.shown.truncate(SHOWN);
    }

    /// Notes what is installed for a Service's frontends.
    fn note_actions(&mut self, cluster: &Cluster, subject: &Subject, family: Family) {
        for frontend in [Frontend::ClusterIp, Frontend::ExternalIp, Frontend::LoadBalancerIp, Frontend::NodePort] {
            let destination = subject.destination(frontend, family);
            let at = match frontend {
                Frontend::NodePort => FrontendAt::NodePort(family),
                _ => FrontendAt::Address(destination.ip()),
            };
            let port = NonZeroU16::new(destination.port()).expect("not zero");
            let key = FrontendKey { at, protocol: subject.protocol(), port };
            let Some(installed) = cluster.engine.installed(family).frontend(&key) else { continue };
            self.actions.insert(match &installed.action {
                Action::Reject => "Reject",
                Action::Drop => "Drop",
                Action::Forward { policy: TrafficPolicy::Cluster, affinity: None, .. } => "Forward",
                Action::Forward { policy: TrafficPolicy::Cluster, affinity: Some(_), .. } => "Forward with affinity",
                Action::Forward { policy: TrafficPolicy::Local, affinity: None, .. } => "Forward on this node",
                Action::Forward { policy: TrafficPolicy::Local, affinity: Some(_), .. } => {
                    "Forward on this node with affinity"
                }
                Action::Split { local, .. } if local.is_empty() => "Split with nothing local",
                Action::Split { affinity: None, .. } => "Split",
                Action::Split { affinity: Some(_), .. } => "Split with affinity",
            });
            if installed.allowed_sources.is_some() {
                let of_node_port = frontend == Frontend::NodePort;
                self.actions.insert(if of_node_port { "allowed sources of a node port" } else { "allowed sources" });
            }
        }
    }
}

const ACTIONS: [&str; 11] = [
    "Reject",
    "Drop",
    "Forward",
    "Forward with affinity",
    "Forward on this node",
    "Forward on this node with affinity",
    "Split",
    "Split with affinity",
    "Split with nothing local",
    "allowed sources",
    "allowed sources of a node port",
];
const OUTCOMES: [&str; 4] = ["forward", "reject", "drop", "pass"];

/// Every packet of one configuration.
fn run(subjects: &[Subject], events: &[Event], detection: usize, masquerade_all: usize) -> Seen {
    let mut seen = Seen::new();
    let addresses: Vec<IpAddr> = Family::ALL
        .iter()
        .flat_map(|family| [NODE_ADDRESS, OTHER_NODE_ADDRESS].map(|n| Net::Nodes.ip(*family, n)))
        .collect();
    let facts = configuration(DETECTIONS[detection], masquerade_all == 1);
    let mut cluster = Cluster::new(facts, &addresses);
    cluster.apply(&cluster::node(&["192.0.2.1", "2001:db8:2::1"], &["10.1.0.0/16", "fd10:1::/32"], ""));
    cluster.apply(&cluster::service_cidr("kubernetes", &["172.30.0.0/16", "fd30::/112"]));
    if masquerade_all == 1 {
        // A range that holds the node's addresses, by mistake, changes nothing about them.
        cluster.apply(&cluster::service_cidr("overlapping", &["192.0.2.0/24", "2001:db8:2::/64"]));
    }
    events.iter().for_each(|event| cluster.engine.apply(event.clone()));
    cluster.sync();
    let local = addresses.iter().copied().collect();
    for family in Family::ALL {
        let ruleset = cluster.engine.ruleset(family);
        let tracer = Tracer::new(&ruleset, &local).expect("the ruleset is sound");
        for subject in subjects {
            seen.note_actions(&cluster, subject, family);
            let endpoints = subject.endpoints(family);
            // Those that nobody serves take turns: their fate depends on nothing but the frontend.
            let turn = subject.number + subject.number / FRONTENDS.len();
            let is_next = |(at, frontend): &(usize, Frontend)| {
                *at < 4 || (subject.affinity + turn) % 5 == *at - 4 && subject.has(*frontend)
            };
            let frontends = FRONTENDS.into_iter().enumerate();
            for (to, frontend) in frontends.filter(|(_, frontend)| subject.has(*frontend)).filter(is_next) {
                for (from, source) in SOURCES.into_iter().enumerate() {
                    let Some(address) = subject.source(source, family) else { continue };
                    let destination = subject.destination(frontend, family);
                    let packet = Packet {
                        source: address,
                        destination: destination.ip(),
                        protocol: subject.protocol(),
                        port: destination.port(),
                        origin: origin(source),
                    };
                    let case = Case {
                        sort: SORTS[subject.sort],
                        internal_local: subject.internal_local == 1,
                        external_local: subject.external_local == 1,
                        endpoints: &endpoints,
                        detection: DETECTIONS[detection],
                        masquerade_all: masquerade_all == 1,
                        frontend,
                        source,
                        from: address,
                    };
                    let expected = rules::outcome(&case);
                    seen.ping(&tracer, subject, &case, &packet);
                    seen.packets += 1;
                    seen.pairs.meet(&[
                        subject.sort,
                        subject.internal_local,
                        subject.external_local,
                        subject.affinity,
                        subject.protocol,
                        subject.local,
                        subject.remote,
                        detection,
                        masquerade_all,
                        usize::from(family == Family::V6),
                        to,
                        from,
                    ]);
                    let trace = match tracer.trace(&packet) {
                        Ok(trace) => trace,
                        Err(error) => panic!("{packet:?}: {error}\n{case:?}"),
                    };
                    seen.chains.extend(trace.steps.iter().map(|step| any_size(step.chain)));
                    seen.outcomes.insert(match trace.outcome {
                        Outcome::Forward(_) => "forward",
                        Outcome::Reject => "reject",
                        Outcome::Drop => "drop",
                        Outcome::Pass => "pass",
                    });
                    if trace.outcome != expected {
                        seen.mismatches += 1;
                        if seen.shown.len() < SHOWN {
                            seen.shown.push(format!("expected {expected} for {case:?}, {subject:?}\n{trace}\n"));
                        }
                    }
                }
            }
        }
    }
    seen
}

/// A chain, whatever the number of endpoints or seconds that it is for.
fn any_size(chain: ChainName) -> ChainName {
    match chain {
        ChainName::Pick(pick) => ChainName::Pick(Pick { slots: 1, ..pick }),
        ChainName::RememberFor(_) => ChainName::RememberFor(1),
        fixed => fixed,
    }
}

/// Every chain that a packet can pass.
fn all_chains() -> Vec<ChainName> {
    let mut chains = vec![ChainName::RememberFor(1)];
    chains.extend(ChainName::FIXED.into_iter().chain(ChainName::EXTRA));
    for nodeport in NO_YES {
        for sticky in NO_YES {
            for local in NO_YES {
                for masquerade in [Masquerade::Never, Masquerade::FromOutside, Masquerade::Always] {
                    // Of node ports, local slots keep the client's address, and none asks where a packet comes from.
                    let exists =
                        !nodeport || masquerade == Masquerade::Never || (masquerade == Masquerade::Always && !local);
                    if exists {
                        let by = By::Random;
                        chains.push(ChainName::Pick(Pick { nodeport, masquerade, sticky, local, by, slots: 1 }));
                    }
                }
            }
        }
    }
    chains
}

/// Pairs that no cluster can hold.
fn impossible(one: &str, other: &str) -> bool {
    let pair = |value: &str, others: &[&str]| {
        (one == value && others.contains(&other)) || (other == value && others.contains(&one))
    };
    pair("type ClusterIp", &["to ExternalIp", "to LoadBalancerIp", "to NodePort", "to OtherPortOutside"])
        || pair("type ClusterIp", &["to NodePortElsewhere"])
        || pair("type ExternalIp", &["to LoadBalancerIp", "to NodePort", "to NodePortElsewhere"])
        || pair("type FormerLoadBalancer", &["to ExternalIp"])
        || pair("type NodePort", &["to LoadBalancerIp"])
        || pair("from LocalEndpoint", &["here Absent", "here OnHostNetwork"])
        || pair("from RemoteEndpoint", &["elsewhere Absent"])
}

#[test]
fn every_combination() {
    let subjects = Subject::all();
    let converter = cluster::converter(true);
    let objects =
        subjects.iter().flat_map(|subject| [subject.service(), subject.slice(Family::V4), subject.slice(Family::V6)]);
    let events: Vec<Event> = objects.flat_map(|object| cluster::events(&converter, &object)).collect();
    let mut seen = Seen::new();
    thread::scope(|scope| {
        let mut parts = Vec::new();
        for detection in 0..DETECTIONS.len() {
            for masquerade_all in 0..NO_YES.len() {
                let (subjects, events) = (&subjects, &events);
                parts.push(scope.spawn(move || run(subjects, events, detection, masquerade_all)));
            }
        }
        for part in parts {
            seen.add(part.join().expect("no configuration fails"));
        }
    });
    println!("{} packets to {} Services, {} mismatches", seen.packets, subjects.len(), seen.mismatches);
    println!("{:?} pings", seen.pings);
    assert!(seen.pings.iter().all(|count| *count > 1_000));
    assert_eq!(seen.mismatches, 0, "the first ones:\n{}", seen.shown.join("\n"));

    let mut gaps = seen.pairs.gaps(impossible);
    gaps.extend(missing(all_chains(), &seen.chains));
    gaps.extend(missing(ACTIONS, &seen.actions));
    gaps.extend(missing(OUTCOMES, &seen.outcomes));
    assert!(gaps.is_empty(), "this test does not try everything:\n{}", gaps.join("\n"));
}
