//! What becomes of packets: every kind of frontend, source and fact, in both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nftproxyd::model::{Family, Protocol};
use nftproxyd::ruleset::Ruleset;
use nftproxyd::ruleset::base::{Detector, FrameFacts, NodePortScope};
use nftproxyd::ruleset::eval::{EvalError, Origin, Outcome, Packet, Reached, Tracer};
use nftproxyd::ruleset::names::{ChainName, SetName};
use nftproxyd::ruleset::types::{Data, Element, HookPoint, Key, Selector, Statement, Value, Verdict};

use super::sample::{self, endpoint, ip};
use Protocol::{Sctp, Tcp, Udp};

/// The endpoint on this node, and the other.
const HERE: &str = "10.124.0.10";
const THERE: &str = "10.124.1.11";
/// Sources: a pod that is no endpoint, the node, its second address, and two clients outside.
const POD: &str = "10.124.0.99";
const NODE: &str = "10.125.0.1";
const NODE2: &str = "10.125.0.2";
const OUTSIDE: &str = "203.0.113.9";
const ALLOWED: &str = "203.0.113.4";

#[derive(Debug, Clone, Copy)]
enum Expect {
    /// Both endpoints, and whether masqueraded.
    Both(bool),
    /// Only the endpoint here.
    Here(bool),
    Reject,
    Drop,
    Pass,
}
use Expect::{Both, Drop, Here, Pass, Reject};

impl Expect {
    fn outcome(self, family: Family) -> Outcome {
        let forward = |addresses: &[&str], masqueraded| {
            let reached = |address: &&str| Reached { endpoint: endpoint(family, address), masqueraded };
            Outcome::Forward(addresses.iter().map(reached).collect())
        };
        match self {
            Both(masqueraded) => forward(&[HERE, THERE], masqueraded),
            Here(masqueraded) => forward(&[HERE], masqueraded),
            Reject => Outcome::Reject,
            Drop => Outcome::Drop,
            Pass => Outcome::Pass,
        }
    }
}

fn packet(family: Family, source: &str, protocol: Protocol, destination: &str, port: u16) -> Packet {
    let source = ip(family, source);
    let local = sample::local_addresses(family).contains(&source);
    let origin = if local { Origin::Node } else { Origin::Arrives(None) };
    Packet { source, destination: ip(family, destination), protocol, port, origin }
}

fn check(facts: impl Fn(Family) -> FrameFacts, cases: &[(&str, Protocol, &str, u16, Expect)]) {
    for family in Family::ALL {
        let ruleset = sample::ruleset(&facts(family));
        let local = sample::local_addresses(family);
        let tracer = Tracer::new(&ruleset, &local).unwrap();
        for (source, protocol, destination, port, expect) in cases {
            let trace = tracer.trace(&packet(family, source, *protocol, destination, *port)).unwrap();
            assert_eq!(
                trace.outcome,
                expect.outcome(family),
                "{family} {protocol} {source} -> {destination}:{port}\n{trace}"
            );
        }
    }
}

#[test]
fn outcomes() {
    check(
        sample::facts,
        &[
            // Cluster IP: masqueraded for all but pods.
            (POD, Tcp, "10.96.0.1", 80, Both(false)),
            (NODE, Tcp, "10.96.0.1", 80, Both(true)),
            (OUTSIDE, Tcp, "10.96.0.1", 80, Both(true)),
            (POD, Udp, "10.96.0.6", 53, Here(false)),
            (OUTSIDE, Sctp, "10.96.0.6", 99, Here(true)),
            (POD, Tcp, "10.96.0.5", 80, Here(false)),
            (NODE, Tcp, "10.96.0.5", 80, Here(true)),
            (POD, Tcp, "10.96.0.2", 80, Reject),
            (POD, Tcp, "10.96.0.3", 80, Drop),
            (NODE, Tcp, "10.96.0.3", 80, Drop),
            // A port that the cluster IP does not have, and an address that nobody has.
            (POD, Tcp, "10.96.0.1", 81, Reject),
            (POD, Udp, "10.96.0.1", 80, Reject),
            (NODE, Sctp, "10.96.0.3", 80, Reject),
            (POD, Tcp, "10.96.7.7", 80, Drop),
            (NODE, Udp, "10.96.7.7", 80, Drop),
            // Session affinity of clients that are not known yet.
            (POD, Tcp, "10.96.0.4", 80, Both(false)),
            (OUTSIDE, Tcp, "10.96.0.4", 80, Both(true)),
            (OUTSIDE, Tcp, NODE, 30082, Both(true)),
            // Load-balancer IPs.
            (OUTSIDE, Tcp, "192.0.2.4", 80, Both(true)),
            (POD, Tcp, "192.0.2.4", 80, Both(true)),
            (NODE, Tcp, "192.0.2.4", 80, Both(true)),
            (OUTSIDE, Tcp, "192.0.2.4", 81, Pass),
            (OUTSIDE, Tcp, "192.0.2.5", 80, Drop),
            (POD, Tcp, "192.0.2.5", 80, Drop),
            (ALLOWED, Tcp, "192.0.2.5", 80, Both(true)),
            ("203.0.113.3", Tcp, "192.0.2.5", 80, Both(true)),
            ("203.0.113.6", Tcp, "192.0.2.5", 80, Both(true)),
            ("203.0.113.7", Tcp, "192.0.2.5", 80, Drop),
            (NODE, Tcp, "192.0.2.5", 80, Both(true)),
            (OUTSIDE, Tcp, "192.0.2.8", 80, Drop),
            (POD, Tcp, "192.0.2.8", 80, Drop),
            (ALLOWED, Tcp, "192.0.2.8", 80, Here(false)),
            (OUTSIDE, Tcp, "192.0.2.6", 80, Here(false)),
            (POD, Tcp, "192.0.2.6", 80, Both(false)),
            (NODE, Tcp, "192.0.2.6", 80, Both(true)),
            (OUTSIDE, Tcp, "192.0.2.7", 80, Drop),
            (POD, Tcp, "192.0.2.7", 80, Both(false)),
            (NODE, Tcp, "192.0.2.7", 80, Both(true)),
            // Node ports, on the listed address only.
            (OUTSIDE, Tcp, NODE, 30080, Both(true)),
            (POD, Tcp, NODE, 30080, Both(true)),
            (NODE2, Tcp, NODE, 30080, Both(true)),
            (OUTSIDE, Udp, NODE, 30080, Pass),
            (OUTSIDE, Tcp, NODE, 22, Pass),
            (OUTSIDE, Tcp, NODE2, 30080, Pass),
            (OUTSIDE, Tcp, NODE, 30081, Here(false)),
            (POD, Tcp, NODE, 30081, Both(false)),
            (NODE2, Tcp, NODE, 30081, Both(true)),
            (OUTSIDE, Tcp, NODE, 30083, Drop),
            (POD, Tcp, NODE, 30083, Both(false)),
            (NODE2, Tcp, NODE, 30083, Both(true)),
            // Nobody's business.
            (POD, Tcp, OUTSIDE, 443, Pass),
            (OUTSIDE, Tcp, THERE, 8080, Pass),
        ],
    );
}

#[test]
fn no_detection() {
    check(
        |family| FrameFacts { detector: None, ..sample::facts(family) },
        &[
            (POD, Tcp, "10.96.0.1", 80, Both(false)),
            (NODE, Tcp, "10.96.0.1", 80, Both(false)),
            (OUTSIDE, Tcp, "10.96.0.1", 80, Both(false)),
            (OUTSIDE, Tcp, "192.0.2.4", 80, Both(true)),
            (POD, Tcp, "192.0.2.6", 80, Here(false)),
            (NODE, Tcp, "192.0.2.6", 80, Both(true)),
            (POD, Tcp, "192.0.2.7", 80, Drop),
            (POD, Tcp, NODE, 30083, Drop),
        ],
    );
}

#[test]
fn masquerade_all() {
    for detected in [true, false] {
        check(
            |family| {
                let facts = sample::facts(family);
                FrameFacts {
                    detector: facts.detector.filter(|_| detected),
                    masquerade_all: true,
                    ..sample::facts(family)
                }
            },
            &[
                (POD, Tcp, "10.96.0.1", 80, Both(true)),
                (NODE, Tcp, "10.96.0.4", 80, Both(true)),
                (OUTSIDE, Tcp, "192.0.2.6", 80, Here(false)),
            ],
        );
    }
}

#[test]
fn every_node_address() {
    check(
        |family| FrameFacts { node_ports: NodePortScope::All, ..sample::facts(family) },
        &[
            (OUTSIDE, Tcp, NODE, 30080, Both(true)),
            (OUTSIDE, Tcp, NODE2, 30080, Both(true)),
            (OUTSIDE, Tcp, THERE, 30080, Pass),
            (OUTSIDE, Tcp, "10.125.0.3", 30080, Pass),
        ],
    );
    for (family, loopback) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
        let facts = FrameFacts { node_ports: NodePortScope::All, ..sample::facts(family) };
        let (ruleset, local) = (sample::ruleset(&facts), sample::local_addresses(family));
        let address: IpAddr = loopback.parse().unwrap();
        let packet = Packet { source: address, destination: address, protocol: Tcp, port: 30080, origin: Origin::Node };
        assert_eq!(Tracer::new(&ruleset, &local).unwrap().trace(&packet).unwrap().outcome, Outcome::Pass);
    }
}

#[test]
fn service_ranges() {
    // None: nothing is dropped; a cluster IP outside of all of them is known by its address.
    let cases = [
        (vec!["10.96.0.0/16"], false, Reject, Drop),
        (vec!["10.96.0.0/16"], true, Reject, Drop),
        (vec!["10.97.0.0/16", "10.98.0.0/16"], true, Reject, Pass),
        (vec![], true, Reject, Pass),
        (vec![], false, Pass, Pass),
    ];
    for (cidrs, stray, wrong_port, unallocated) in cases {
        check(
            |family| FrameFacts {
                service_cidrs: cidrs.iter().map(|cidr| sample::net(family, cidr)).collect(),
                stray_cluster_ips: stray,
                ..sample::facts(family)
            },
            &[(POD, Tcp, "10.96.0.1", 81, wrong_port), (POD, Tcp, "10.96.7.7", 80, unallocated)],
        );
    }
}

/// No Service, and no range of cluster IPs, stands between the proxy and the API server, wherever that is.
#[test]
fn the_proxys_own_connections_pass_by() {
    for family in Family::ALL {
        let (ruleset, local) = (sample::ruleset(&sample::facts(family)), sample::local_addresses(family));
        let tracer = Tracer::new(&ruleset, &local).unwrap();
        for (destination, port) in
            [("10.96.0.1", 80), ("10.96.0.1", 81), ("10.96.7.7", 80), ("192.0.2.6", 80), (NODE, 30080)]
        {
            let of_others = packet(family, NODE, Tcp, destination, port);
            assert_ne!(tracer.trace(&of_others).unwrap().outcome, Outcome::Pass, "{destination}:{port}");
            let own = Packet { origin: Origin::Proxy, ..of_others };
            let trace = tracer.trace(&own).unwrap();
            assert_eq!(trace.outcome, Outcome::Pass, "{destination}:{port}\n{trace}");
            assert_eq!(trace.steps, [], "it meets no rule that matches");
        }
    }
}

/// An endpoint that reaches itself through the Service has to be masqueraded, whatever else holds.
#[test]
fn hairpin() {
    for family in Family::ALL {
        let (ruleset, local) = (sample::ruleset(&sample::facts(family)), sample::local_addresses(family));
        let tracer = Tracer::new(&ruleset, &local).unwrap();
        for (source, destination, here) in [
            (HERE, "10.96.0.1", true),
            (THERE, "10.96.0.1", false),
            (HERE, "192.0.2.6", true),
            (POD, "10.96.0.1", false),
        ] {
            let trace = tracer.trace(&packet(family, source, Tcp, destination, 80)).unwrap();
            let expected = Outcome::Forward(BTreeSet::from([
                Reached { endpoint: endpoint(family, HERE), masqueraded: here },
                Reached { endpoint: endpoint(family, THERE), masqueraded: false },
            ]));
            assert_eq!(trace.outcome, expected, "{source} -> {destination}\n{trace}");
        }
    }
}

/// What is delivered to the node itself keeps its source; what the node sends to itself does not.
#[test]
fn endpoint_on_the_node() {
    for family in Family::ALL {
        let (ruleset, local) = (sample::ruleset(&sample::facts(family)), sample::local_addresses(family));
        let tracer = Tracer::new(&ruleset, &local).unwrap();
        for (source, masqueraded) in [(OUTSIDE, false), (POD, false), (NODE2, true)] {
            let trace = tracer.trace(&packet(family, source, Tcp, "10.96.0.7", 443)).unwrap();
            let reached = Reached { endpoint: endpoint(family, NODE), masqueraded };
            assert_eq!(trace.outcome, Outcome::Forward(BTreeSet::from([reached])), "{source}\n{trace}");
            let hook = if masqueraded { HookPoint::Postrouting } else { HookPoint::Input };
            assert_eq!(trace.steps.last().map(|step| step.hook), Some(hook), "{trace}");
        }
    }
}

#[test]
fn pods_by_interface() {
    let cases = [
        (Detector::Interface("cni0".into()), "cni0", true),
        (Detector::Interface("cni0".into()), "cni01", false),
        (Detector::InterfacePrefix("cni".into()), "cni01", true),
        (Detector::InterfacePrefix("cni".into()), "eth0", false),
    ];
    for family in Family::ALL {
        for (detector, interface, is_pod) in &cases {
            let facts = FrameFacts { detector: Some(detector.clone()), ..sample::facts(family) };
            let (ruleset, local) = (sample::ruleset(&facts), sample::local_addresses(family));
            let tracer = Tracer::new(&ruleset, &local).unwrap();
            let arrives = |destination| Packet {
                origin: Origin::Arrives(Some((*interface).into())),
                ..packet(family, OUTSIDE, Tcp, destination, 80)
            };
            let cluster = tracer.trace(&arrives("10.96.0.1")).unwrap();
            assert_eq!(cluster.outcome, Both(!is_pod).outcome(family), "{detector:?} {interface}");
            let external = if *is_pod { Both(false) } else { Here(false) };
            let local_policy = tracer.trace(&arrives("192.0.2.6")).unwrap();
            assert_eq!(local_policy.outcome, external.outcome(family), "{detector:?} {interface}");
            // What the node sends came in by no interface.
            let own = tracer.trace(&packet(family, NODE, Tcp, "10.96.0.1", 80)).unwrap();
            assert_eq!(own.outcome, Both(true).outcome(family));
            let unknown = tracer.trace(&packet(family, POD, Tcp, "10.96.0.1", 80)).unwrap_err();
            assert!(matches!(unknown, EvalError::Interface(..)), "{unknown}");
        }
    }
}

#[test]
fn remembered_clients() {
    for family in Family::ALL {
        let mut ruleset = sample::ruleset(&sample::facts(family));
        for (frontend, port) in [("10.96.0.4", 80), (NODE, 30082)] {
            let key = [
                Value::Address(ip(family, OUTSIDE)),
                Value::Address(ip(family, frontend)),
                Value::Protocol(Tcp),
                Value::Port(port),
            ];
            let data = [Value::Address(ip(family, HERE)), Value::Port(8080)];
            elements(&mut ruleset, SetName::Affinity).push(Element {
                key: Key::from_slice(&key),
                key_end: None,
                data: Data::Values(data.into()),
                comment: None,
            });
        }
        let local = sample::local_addresses(family);
        let tracer = Tracer::new(&ruleset, &local).unwrap();
        for (source, frontend, port, expected) in [
            (OUTSIDE, "10.96.0.4", 80, Here(true)),
            (ALLOWED, "10.96.0.4", 80, Both(true)),
            (OUTSIDE, NODE, 30082, Here(true)),
            (POD, NODE, 30082, Both(true)),
        ] {
            let trace = tracer.trace(&packet(family, source, Tcp, frontend, port)).unwrap();
            assert_eq!(trace.outcome, expected.outcome(family), "{trace}");
            let remembers = trace.steps.iter().any(|step| step.chain == ChainName::RememberFor(10_800));
            assert!(remembers, "{trace}");
        }
    }
}

/// What takes turns may reach each endpoint; what is hashed, the one that the kernel would choose.
#[test]
fn slots_are_followed_as_they_are_chosen() {
    for family in Family::ALL {
        let (ruleset, local) = (sample::ruleset(&sample::facts(family)), sample::local_addresses(family));
        let tracer = Tracer::new(&ruleset, &local).unwrap();
        let endpoints = |client: &str, to: &str, port| match tracer
            .trace(&packet(family, client, Tcp, to, port))
            .unwrap()
            .outcome
        {
            Outcome::Forward(reached) => reached.iter().map(|it| it.endpoint).collect::<BTreeSet<_>>(),
            other => panic!("{to}:{port}: {other}"),
        };
        for to in ["10.96.0.8", "192.0.2.9"] {
            assert_eq!(endpoints(OUTSIDE, to, 80).len(), 2, "{to}");
        }
        assert_eq!(endpoints(OUTSIDE, "10.125.0.1", 30085).len(), 2, "the client's port is not known");
        assert_eq!(endpoints(OUTSIDE, "10.96.0.9", 81).len(), 1, "by the destination");
        let of_clients: BTreeSet<SocketAddr> = (1..20)
            .flat_map(|last| {
                let of_one = endpoints(&format!("203.0.113.{last}"), "10.96.0.9", 80);
                assert_eq!(of_one.len(), 1, "{of_one:?}");
                of_one
            })
            .collect();
        assert_eq!(of_clients.len(), 2, "clients are spread");
    }
}

#[test]
fn trace_reads_well() {
    let (ruleset, local) = (sample::ruleset(&sample::facts(Family::V4)), sample::local_addresses(Family::V4));
    let trace =
        Tracer::new(&ruleset, &local).unwrap().trace(&packet(Family::V4, OUTSIDE, Tcp, "10.96.0.1", 80)).unwrap();
    let expected = "\
prerouting:
  nat-prerouting: meta priority set ip daddr . meta l4proto . th dport map @service-ips meta priority vmap @dispatch
    found 10.96.0.1 . tcp . 80 comment \"default/web:http\" : f010:2, f010:2 : goto cluster-pick-2
  cluster-pick-2: ip saddr != 10.124.0.0/16 meta mark set meta mark | 0x00004000
  cluster-pick-2: meta priority set none dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
    found 10.124.0.10:8080, 10.124.1.11:8080
postrouting:
  nat-postrouting: meta mark & 0x00004000 != 0x00000000 jump masquerade-marked
  masquerade-marked: ct status dnat jump remember
  masquerade-marked: meta mark set meta mark & 0xffffbfff
  masquerade-marked: masquerade fully-random
=> forward to 10.124.0.10:8080 (masqueraded), 10.124.1.11:8080 (masqueraded)";
    assert_eq!(trace.to_string(), expected);
}

fn elements(ruleset: &mut Ruleset, name: SetName) -> &mut Vec<Element> {
    &mut ruleset.sets.iter_mut().find(|(def, _)| def.name == name).unwrap().1
}

/// What it cannot know, it does not guess.
#[test]
fn what_makes_no_sense_is_an_error() {
    type Damage = fn(&mut Ruleset);
    let cases: &[(&str, Damage)] = &[
        ("chain cluster-pick-2 is not there", |it| {
            it.chains.retain(|chain| chain.name.to_string() != "cluster-pick-2");
        }),
        ("the set is not there", |it| it.sets.retain(|(def, _)| def.name != SetName::Endpoints)),
        ("set hairpin is there twice", |it| {
            let hairpin = it.sets.iter().find(|(def, _)| def.name == SetName::Hairpin).unwrap().clone();
            it.sets.push(hairpin);
        }),
        ("chain services is there twice", |it| {
            let services = it.chains.iter().find(|chain| chain.name == ChainName::Services).unwrap().clone();
            it.chains.push(services);
        }),
        ("map service-ips, element 10.96.0.1 . tcp . 80 is there twice", |it| {
            let elements = elements(it, SetName::ServiceIps);
            elements.push(elements[0].clone());
        }),
        ("does not fit its type", |it| elements(it, SetName::ServiceIps)[0].data = Data::None),
        ("does not fit its type", |it| elements(it, SetName::ServiceIps)[0].key.truncate(2)),
        ("does not fit its type", |it| {
            let element = &mut elements(it, SetName::Hairpin)[0];
            element.key_end = Some(element.key.clone());
        }),
        ("does not fit its type", |it| {
            elements(it, SetName::ClusterIps)[0].key[0] = Value::Address(ip(Family::V6, "10.96.0.1"));
        }),
        ("the set is of another type", |it| {
            damage(it, ChainName::NatPrerouting, |rule| {
                *rule = vec![Statement::VerdictMap { key: vec![Selector::DestinationAddress], map: SetName::Dispatch }];
            });
        }),
        ("a random slot is of use for translation only", |it| {
            damage(it, ChainName::NatPrerouting, |rule| {
                let slot = Selector::RandomSlot { modulus: 2, offset: 0 };
                let key = vec![Selector::DestinationAddress, Selector::L4Proto, Selector::DestinationPort, slot];
                let def = it_def(SetName::Endpoints);
                assert_eq!(def.key, key);
                rule[0] = Statement::InSet { key, set: SetName::Hairpin, negated: false };
            });
            it.sets.retain(|(def, _)| def.name != SetName::Hairpin);
            let def = nftproxyd::ruleset::types::SetDef {
                name: SetName::Hairpin,
                data: nftproxyd::ruleset::types::DataDef::None,
                ..it_def(SetName::Endpoints)
            };
            it.sets.push((def, vec![]));
        }),
        ("the statement cannot be used here", |it| {
            damage(it, ChainName::NatPrerouting, |rule| *rule = vec![Statement::Masquerade { keep_port: false }]);
        }),
        ("a statement follows one that ends the rule", |it| {
            damage(it, ChainName::NatPrerouting, |rule| rule.insert(0, Statement::Verdict(Verdict::Drop)));
        }),
        ("is reached by more than", |it| {
            damage(it, ChainName::NatPrerouting, |rule| {
                *rule = vec![Statement::Verdict(Verdict::Goto(ChainName::NatPrerouting))];
            });
        }),
        ("leaves with the priority", |it| {
            let pick = it.chains.iter_mut().find(|chain| chain.name.to_string() == "cluster-pick-2").unwrap();
            pick.rules.last_mut().unwrap().statements.remove(0);
        }),
        ("slots are missing", |it| {
            elements(it, SetName::Endpoints).retain(|element| {
                element.key[0] != Value::Address(ip(Family::V4, "10.96.0.1")) || element.key[3] == Value::Slot(0)
            });
        }),
    ];
    let local = sample::local_addresses(Family::V4);
    let web = packet(Family::V4, POD, Tcp, "10.96.0.1", 80);
    for (message, damage) in cases {
        let mut ruleset = sample::ruleset(&sample::facts(Family::V4));
        damage(&mut ruleset);
        let error = Tracer::new(&ruleset, &local).and_then(|tracer| tracer.trace(&web)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}, not {message}");
    }
    let ruleset = sample::ruleset(&sample::facts(Family::V4));
    let foreign = Tracer::new(&ruleset, &local).unwrap().trace(&packet(Family::V6, POD, Tcp, "10.96.0.1", 80));
    assert!(matches!(foreign, Err(EvalError::Family(..))), "{foreign:?}");
}

fn it_def(name: SetName) -> nftproxyd::ruleset::types::SetDef {
    nftproxyd::ruleset::base::set(name)
}

fn damage(ruleset: &mut Ruleset, chain: ChainName, change: impl Fn(&mut Vec<Statement>)) {
    let chain = ruleset.chains.iter_mut().find(|it| it.name == chain).unwrap();
    change(&mut chain.rules[0].statements);
}

/// Pings are answered by the node where the address is in the set, and nobody else's packet is concerned.
#[test]
fn pings() {
    for family in Family::ALL {
        let facts = super::golden::extra_facts(family);
        let ruleset = sample::ruleset(&facts);
        let local = sample::local_addresses(family);
        let tracer = Tracer::new(&ruleset, &local).expect("the sample is sound");
        let ping = |tracer: &Tracer<'_>, source: &str, destination: &str| {
            let packet = packet(family, source, Udp, destination, 0);
            tracer.ping(packet.source, packet.destination, packet.origin).expect("it can be followed").outcome
        };
        let node = Reached { endpoint: SocketAddr::new(ip(family, NODE), 0), masqueraded: false };
        for source in [POD, NODE, OUTSIDE] {
            for destination in ["10.96.0.1", "192.0.2.4"] {
                assert_eq!(
                    ping(&tracer, source, destination),
                    Outcome::Forward([node].into()),
                    "{source} to {destination}"
                );
            }
            // Cluster IPs that are not in the set, one that nobody has, and what is none of ours.
            assert_eq!(ping(&tracer, source, "10.96.0.2"), Outcome::Reject);
            assert_eq!(ping(&tracer, source, "10.96.0.99"), Outcome::Drop);
            assert_eq!(ping(&tracer, source, "192.0.2.5"), Outcome::Pass);
            assert_eq!(ping(&tracer, source, NODE), Outcome::Pass);
        }
        // Nobody answers where the node's address is not known, or nobody has asked for it.
        for facts in [FrameFacts { node_ip: None, ..facts }, sample::facts(family)] {
            let ruleset = sample::ruleset(&facts);
            let tracer = Tracer::new(&ruleset, &local).expect("the sample is sound");
            assert_eq!(ping(&tracer, POD, "10.96.0.1"), Outcome::Reject);
        }
    }
}
