//! What is asked for by key is what is read among all, also of damaged tables.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::{Frontends, accepting};
use super::*;
use crate::diff::{Operation, Transaction};
use crate::model::{ObjectName, TrafficPolicy};
use crate::nftables::in_memory::InMemoryKernel;
use crate::ruleset::backend::Backend;
use crate::ruleset::base;
use crate::ruleset::elements::{elements, nodeport_ip_element};
use crate::ruleset::frontend::{Action, Frontend};
use crate::ruleset::names::{By, Masquerade, SetName};
use crate::ruleset::ranges::Range;
use crate::ruleset::slots::Slots;
use crate::ruleset::types::{Element, SetDef};
use crate::testing::replayed;

const ADDRESSES: [&str; 5] = ["10.96.0.1", "10.96.0.2", "192.0.2.9", "fd00::1", "fd00::2"];
const NODE: &str = "192.0.2.1";
const PORTS: [u16; 3] = [80, 443, 30080];
const SERVICES: [&str; 5] = ["a/web", "a/web:http", "a/webs", "b/web", "c/other"];

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("a namespace");
    ObjectName::new(namespace, name).expect("a name")
}

fn key() -> impl Strategy<Value = FrontendKey> {
    let at = prop_oneof![
        4 => select(&ADDRESSES[..]).prop_map(|text| FrontendAt::Address(address(text))),
        1 => select(&Family::ALL[..]).prop_map(FrontendAt::NodePort),
    ];
    let protocol = select(&[Protocol::Tcp, Protocol::Udp][..]);
    (at, protocol, select(&PORTS[..])).prop_map(|(at, protocol, port)| FrontendKey {
        at,
        protocol,
        port: NonZeroU16::new(port).expect("not 0"),
    })
}

/// A frontend, whose endpoints are of the family that its key has.
fn frontend(family: Family) -> impl Strategy<Value = Frontend> {
    let backend = move |last: u8| {
        let ip = match family {
            Family::V4 => IpAddr::from([10, 1, 0, last]),
            Family::V6 => address(&format!("fd01::{last}")),
        };
        Backend { address: ip, port: NonZeroU16::new(8080).expect("not 0") }
    };
    let slots = move |least| {
        let by = select(&[By::Random, By::Turn(9), By::Maglev][..]);
        (prop::collection::vec(1..5u8, least..5), by).prop_map(move |(all, by)| {
            let mut slots: Slots = all.into_iter().map(backend).collect();
            slots.by = if slots.len() > 1 { by } else { By::Random };
            slots
        })
    };
    let affinity = prop::option::of(Just(10_800));
    let action = prop_oneof![
        Just(Action::Reject),
        Just(Action::Drop),
        (slots(1), affinity.clone()).prop_map(|(slots, affinity)| {
            let (policy, masquerade) = (TrafficPolicy::Cluster, Masquerade::FromOutside);
            Action::Forward { policy, masquerade, affinity, slots }
        }),
        (slots(1), slots(0), affinity).prop_map(|(cluster, local, affinity)| Action::Split {
            affinity,
            cluster,
            local
        }),
    ];
    let ranges = prop::option::weighted(0.2, prop::collection::btree_set(1..9u8, 0..3));
    (select(&SERVICES[..]), action, ranges).prop_map(move |(service, action, ranges)| {
        let (service, port_name) = service.split_once(':').unwrap_or((service, ""));
        let range = |last| Range::single(backend(last).address);
        let allowed_sources = ranges.map(|ranges| ranges.into_iter().map(range).collect());
        Frontend { service: name(service), port_name: port_name.into(), action, allowed_sources }
    })
}

fn cluster() -> impl Strategy<Value = BTreeMap<FrontendKey, Frontend>> {
    let one = key().prop_flat_map(|key| (Just(key), frontend(key.family())));
    prop::collection::vec(one, 0..12).prop_map(|all| all.into_iter().collect())
}

/// A kernel with these, but for the table of one family.
fn kernel(elements: &[(Family, SetName, Element)], gone: Option<Family>, counter: bool) -> InMemoryKernel {
    let mut kernel = InMemoryKernel::new();
    for family in Family::ALL.into_iter().filter(|family| gone != Some(*family)) {
        let define = |set: SetName| Operation::AddSet(SetDef { counter: counter && set.is_entry(), ..base::set(set) });
        let operations = [Operation::AddTable].into_iter().chain(SetName::ALL.into_iter().map(define)).collect();
        kernel.commit(&Transaction { family, operations }).expect("a table can be made");
        let of_family = elements.iter().filter(|(of, ..)| *of == family);
        of_family.for_each(|(_, set, element)| kernel.put(family, *set, element.clone()));
    }
    kernel
}

/// What the daemon would say of a Service, and more: it has every address, and each port of them.
fn facts(service: &ObjectName) -> ServiceFacts {
    let port = |protocol: &str, port: u16| serde_json::json!({"name": "", "protocol": protocol, "port": port, "nodePort": port});
    let ports: Vec<_> = ["tcp", "udp"].iter().flat_map(|protocol| PORTS.map(|it| port(protocol, it))).collect();
    let facts = serde_json::json!({
        "name": service.as_str(), "ports": ports, "clusterIPs": ADDRESSES, "externalIPs": [], "loadBalancerIPs": [],
        "sourceRanges": null, "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
        "affinitySeconds": null, "scheduler": "rr", "healthCheckNodePort": null, "slices": 1, "endpoints": [],
    });
    serde_json::from_value(facts).expect("facts")
}

fn filters() -> Vec<Filter> {
    let at = |text: &&str| PORTS.map(|port| Filter::At(SocketAddr::new(address(text), port)));
    let service = |text: &&str| {
        let (service, port) = text.split_once(':').unwrap_or((text, ""));
        [None, Some(port.to_owned())].map(|port| Filter::Service(name(service), port))
    };
    let mut all: Vec<Filter> = ADDRESSES.iter().chain([&NODE, &"192.0.2.2"]).flat_map(at).collect();
    all.extend(SERVICES.iter().chain([&"z/none"]).flat_map(service));
    all.extend(PORTS.map(|port| Filter::NodePort(NonZeroU16::new(port).expect("not 0"))));
    all
}

/// Compares both ways of reading; says how many frontends were asked for by key.
fn compare(kernel: &mut InMemoryKernel, family: Family, filter: &Filter, named: Option<&ServiceFacts>) -> usize {
    let addresses = accepting(kernel, family).expect("an answer");
    let node_ports = NodePortsStatus { everywhere: Some(false), addresses };
    let all = Frontends::among_all(kernel, family, filter, &node_ports).expect("an answer").0;
    let Some(found) = by_key(kernel, family, filter, &node_ports, named).expect("an answer") else {
        // There is none, or one is damaged: all are read, then.
        assert!(all.is_empty() || all.values().any(|frontend| frontend.damaged), "{filter:?}: {all:?}");
        return 0;
    };
    for (key, frontend) in &all {
        match found.get(key) {
            Some(found) => assert_eq!(found, frontend, "{filter:?}"),
            None => assert_eq!((&*frontend.service, frontend.damaged), ("?", true), "{filter:?}"),
        }
    }
    assert!(found.keys().all(|key| all.contains_key(key)), "{filter:?}: {found:?}");
    let keys: Vec<FrontendKey> = found.keys().copied().collect();
    let few = kernel.frontend_counts_of(family, &keys).expect("an answer");
    let every = kernel.frontend_counts(family).expect("an answer");
    if !found.is_empty() {
        assert_eq!(few.is_empty(), every.is_empty(), "{filter:?}");
    }
    assert!(every.iter().filter(|count| found.contains_key(&count.key)).all(|count| few.contains(count)), "{filter:?}");
    found.len()
}

#[test]
fn what_is_asked_for_by_key_is_what_is_read_among_all() {
    let config = ProptestConfig { cases: 100, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(replayed(config, file!()));
    let damage = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<Index>(), 1..6)];
    let gone = prop::option::weighted(0.2, select(&Family::ALL[..]));
    let by_key = std::cell::Cell::new(0);
    let compare = |(cluster, damage, gone, counter): (BTreeMap<_, _>, Vec<Index>, Option<Family>, bool)| {
        let mut all: Vec<(Family, SetName, Element)> = Vec::new();
        for (key, frontend) in &cluster {
            let of_one = elements(key, frontend).into_iter();
            all.extend(of_one.map(|(set, element)| (FrontendKey::family(key), set, element)));
        }
        for index in damage {
            if !all.is_empty() {
                all.swap_remove(index.index(all.len()));
            }
        }
        let (set, element) = nodeport_ip_element(address(NODE));
        all.push((Family::V4, set, element));
        let mut kernel = kernel(&all, gone, counter);
        for (nth, key) in cluster.keys().enumerate() {
            kernel.packets_find(key, 3 + nth as u64);
        }
        for family in Family::ALL {
            for filter in filters().iter().filter(|filter| filter.concerns(family)) {
                let named = match filter {
                    Filter::Service(service, _) => Some(facts(service)),
                    _ => None,
                };
                let found = [None, named.as_ref()].map(|named| compare(&mut kernel, family, filter, named));
                by_key.set(by_key.get() + found[0]);
                assert_eq!(found[0], found[1], "{filter:?}");
            }
        }
        Ok(())
    };
    runner.run(&(cluster(), damage, gone, any::<bool>()), compare).expect("every cluster");
    assert!(by_key.get() > 300, "{} were asked for", by_key.get());
}

#[test]
fn many_are_read_as_a_whole() {
    let service = name("a/web");
    let one = |port| {
        let (at, port) = (FrontendAt::Address(address(ADDRESSES[0])), NonZeroU16::new(port).expect("not 0"));
        let key = FrontendKey { at, protocol: Protocol::Tcp, port };
        let frontend =
            Frontend { service: service.clone(), port_name: "".into(), action: Action::Drop, allowed_sources: None };
        elements(&key, &frontend).into_iter().map(|(set, element)| (Family::V4, set, element))
    };
    for (ports, is_by_key) in [(32, true), (33, false)] {
        let all: Vec<_> = (1..=ports).flat_map(one).collect();
        let (mut kernel, filter) = (kernel(&all, None, false), Filter::Service(service.clone(), None));
        let found = by_key(&mut kernel, Family::V4, &filter, &NodePortsStatus::default(), None).expect("an answer");
        assert_eq!(found.map(|found| found.len()), is_by_key.then_some(32));
    }
}

#[test]
fn a_daemon_is_believed_only_while_its_table_holds_what_it_says() {
    let said: Daemon = serde_json::from_value(serde_json::json!({
        "version": "1", "healthy": true, "nodeEligible": true, "serviceChangesPending": 0, "endpointChangesPending": 0,
        "families": {"IPv4": {
            "standing": "InLine", "reason": null, "syncedSecondsAgo": 1, "lagSeconds": 0, "refusedServices": 0, "repairs": 0,
            "frame": {"pods": null, "mark": 1, "masqueradeAll": false, "serviceCidrs": [], "nodePortsEverywhere": true,
                      "strayClusterIps": false, "affinity": false, "keepsPorts": false, "counters": false},
        }},
    }))
    .expect("what a daemon says");
    let facts = facts(&name("a/web"));
    let is_certain = |said: &Daemon| certain(Some(said), Family::V4, Some(&facts)).is_some();
    assert!(is_certain(&said));
    assert!(certain(None, Family::V4, Some(&facts)).is_none());
    assert!(certain(Some(&said), Family::V6, Some(&facts)).is_none());
    let other = |change: &dyn Fn(&mut Daemon)| {
        let mut said = said.clone();
        change(&mut said);
        is_certain(&said)
    };
    fn v4(said: &mut Daemon) -> &mut crate::metrics::daemon::FamilyState {
        said.families.get_mut("IPv4").expect("it is there")
    }
    assert!(!other(&|said| v4(said).standing = Standing::Behind));
    assert!(!other(&|said| v4(said).refused_services = 1));
    assert!(!other(&|said| v4(said).lag_seconds = 1));
    assert!(!other(&|said| v4(said).frame = None));
    assert!(!other(&|said| said.service_changes_pending = 1));
}
