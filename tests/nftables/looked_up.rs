//! Chains as they are, and elements by their keys.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::{Family, Protocol};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::nftables::{Kernel, LinuxKernel};
use nftproxyd::ruleset::base::{self, Detector, FrameFacts, NodePortScope};
use nftproxyd::ruleset::extras::Extras;
use nftproxyd::ruleset::names::{By, ChainName, Masquerade, Pick, SetName, TableName};
use nftproxyd::ruleset::types::{Chain, Data, Element, Key, Value, Verdict};

use crate::frame;
use crate::netns::{in_namespace, try_nft as nft};

fn open() -> LinuxKernel {
    LinuxKernel::open().expect("a netlink socket")
}

/// Two nodes that differ in everything.
fn facts(family: Family) -> [FrameFacts; 2] {
    let (pods, services) = match family {
        Family::V4 => ("10.124.0.0/14", "10.96.0.0/12"),
        Family::V6 => ("fd00:124::/48", "fd00:96::/108"),
    };
    let one = FrameFacts {
        table: TableName::NODE,
        family,
        detector: Some(Detector::Source(pods.parse().expect("a range"))),
        mark: 1 << 14,
        masquerade_all: false,
        service_cidrs: vec![services.parse().expect("a range")],
        node_ports: NodePortScope::All,
        stray_cluster_ips: true,
        affinity: true,
        keeps_ports: true,
        counters: false,
        extras: Extras::NONE,
        node_ip: None,
    };
    let other = FrameFacts {
        detector: Some(Detector::InterfacePrefix("veth".into())),
        mark: 1 << 31,
        service_cidrs: Vec::new(),
        node_ports: NodePortScope::Listed,
        stray_cluster_ips: false,
        affinity: false,
        keeps_ports: false,
        counters: true,
        extras: Extras::NONE,
        ..one.clone()
    };
    [one, other]
}

/// Chains of all sorts besides those that are always there.
fn demanded() -> Vec<ChainName> {
    let mut names = vec![ChainName::RememberFor(10_800)];
    for by in [By::Random, By::Source, By::SourceAndPort, By::Destination, By::MaglevAndPort, By::Turn(5)] {
        for (nodeport, masquerade, sticky, local) in
            [(false, Masquerade::FromOutside, true, false), (true, Masquerade::Always, false, true)]
        {
            names.push(ChainName::Pick(Pick { nodeport, masquerade, sticky, local, by, slots: 33 }));
        }
    }
    names
}

/// A table with these chains, and with all sets.
fn table(family: Family, chains: &[Chain]) -> Transaction {
    let sets = SetName::ALL.into_iter().map(|set| Operation::AddSet(base::set(set)));
    let all = chains.iter().cloned().map(Operation::AddChain);
    let rules = chains.iter().cloned().map(Operation::AddRules);
    let operations = [Operation::AddTable].into_iter().chain(sets).chain(all).chain(rules).collect();
    Transaction { family, operations }
}

/// As they are read.
fn without_comments(mut chains: Vec<Chain>) -> Vec<Chain> {
    chains.iter_mut().flat_map(|chain| &mut chain.rules).for_each(|rule| rule.comment = None);
    chains.sort_by_key(|chain| chain.name.to_string());
    chains
}

#[test]
fn chains_are_read_as_they_were_written() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut kernel = open();
            assert_eq!(kernel.chains(family).expect("an answer"), [], "there is no table");
            for facts in facts(family) {
                let chains = base::all_chains(demanded(), &facts);
                let start = Transaction { family, operations: vec![Operation::AddTable, Operation::DeleteTable] };
                kernel.commit(&start).expect("an empty kernel");
                kernel.commit(&table(family, &chains)).expect("the kernel takes it");
                let mut in_memory = InMemoryKernel::new();
                in_memory.commit(&table(family, &chains)).expect("the kernel in memory takes it");
                let expected: Vec<_> = without_comments(chains).into_iter().map(Ok).collect();
                assert_eq!(kernel.chains(family).expect("an answer"), expected);
                assert_eq!(in_memory.chains(family).expect("an answer"), expected);
            }
        }
    });
}

#[test]
fn what_others_have_put_there_is_named() {
    in_namespace(|| {
        let family = Family::V4;
        let mut kernel = open();
        let chains = base::frame(&facts(family)[0]).chains;
        kernel.commit(&table(family, &chains)).expect("the kernel takes it");
        let changes = "
            add chain ip nftproxyd others { type filter hook forward priority 0; policy drop; }
            insert rule ip nftproxyd services ip saddr 192.0.2.7 counter drop
            add rule ip nftproxyd unserved tcp dport 80 accept
            insert rule ip nftproxyd reject-it ip saddr 192.0.2.0/24 drop
            add chain ip nftproxyd nat-input { type nat hook input priority 99; policy drop; }
        ";
        nft(&["-f", "-"], changes).expect("anybody may do that");
        let read = kernel.chains(family).expect("an answer");
        let unread: Vec<String> =
            read.iter().filter_map(|chain| chain.as_ref().err()).map(ToString::to_string).collect();
        let expected = [
            "chain nat-input: its policy is not accept",
            "chain others is none of nftproxyd's",
            "chain services, rule 1: expression 3 (counter) is not understood",
            "chain unserved, rule 3: expression 3 (payload) is not understood",
        ];
        assert_eq!(unread, expected);
        // A rule of such statements as ours is one that can be followed, whoever has written it.
        let whole: Vec<&Chain> = read.iter().flatten().collect();
        assert_eq!(whole.len(), chains.len() - 3);
        let changed = whole.iter().find(|chain| chain.name == ChainName::RejectIt).expect("it can be read");
        assert_eq!(changed.rules.len(), 3);
    });
}

/// The keys of elements; of ranges the first, the last and one between them, and two that are in none.
fn keys(elements: &[Element]) -> (Vec<Key>, Vec<Key>) {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for element in elements {
        there.push(element.key.clone());
        if let Some(end) = &element.key_end {
            there.push(end.clone());
            let Some((Value::Address(first), Value::Address(last))) =
                element.key.last().copied().zip(end.last().copied())
            else {
                panic!("a range of addresses")
            };
            let beside = |address: IpAddr, by: i32| match address {
                IpAddr::V4(it) => IpAddr::V4(it.to_bits().wrapping_add_signed(by).into()),
                IpAddr::V6(it) => IpAddr::V6(it.to_bits().wrapping_add_signed(by.into()).into()),
            };
            let with = |address| {
                let mut key = element.key.clone();
                *key.last_mut().expect("it has parts") = Value::Address(address);
                key
            };
            if first != last {
                there.push(with(beside(first, 1)));
            }
            missing.extend([with(beside(first, -1)), with(beside(last, 1))]);
        }
    }
    (there, missing)
}

#[test]
fn elements_are_found_by_their_keys() {
    in_namespace(|| {
        for family in Family::ALL {
            let (mut kernel, mut in_memory) = (open(), InMemoryKernel::new());
            assert_eq!(
                kernel
                    .find(family, &base::set(SetName::ClusterIps), &[Key::from_slice(&[frame::address(family, 9, 9)])])
                    .expect("an answer"),
                [None],
                "there is no table"
            );
            kernel.commit(&frame::whole(family)).expect("a commit");
            in_memory.commit(&frame::whole(family)).expect("a commit");
            let sets = frame::sets();
            let mut ranges = 0;
            for (name, elements) in frame::elements(family) {
                let set = sets.iter().find(|set| set.name == name).expect("it is made");
                let (there, missing) = keys(&elements);
                for (keys, is_there) in [(&there, true), (&missing, false)] {
                    let found = kernel.find(family, set, keys).expect("an answer");
                    assert_eq!(found, in_memory.find(family, set, keys).expect("an answer"), "{name}");
                    assert!(found.iter().all(|found| found.is_some() == is_there), "{name}");
                }
                let found = kernel.find(family, set, &there).expect("an answer");
                assert!(found.iter().flatten().zip(&there).all(|(element, key)| element.matches(key)), "{name}");
                // Those that are missing leave the others in their places.
                let mixed: Vec<Key> = missing.iter().chain(&there).cloned().collect();
                let found = kernel.find(family, set, &mixed).expect("an answer");
                let expected = mixed.iter().map(|key| elements.iter().find(|it| it.matches(key)).cloned());
                assert_eq!(found, expected.collect::<Vec<_>>());
                ranges += missing.len();
            }
            assert!(ranges > 0, "there are ranges");
        }
    });
}

#[test]
fn a_client_is_found_with_its_times() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut kernel = open();
            kernel.commit(&frame::whole(family)).expect("a commit");
            let kept = frame::client(family, 77);
            let operations = vec![Operation::Remember(vec![kept])];
            kernel.commit(&Transaction { family, operations }).expect("there is room");
            let key = kept.element().key;
            let found = kernel.client(family, &key).expect("an answer").expect("it is remembered");
            assert_eq!((found.client, found.timeout), (kept.client, kept.timeout));
            assert!(found.expires <= kept.expires, "{found:?}");
            assert!(found.expires + Duration::from_secs(60) > kept.expires, "{found:?}");
            let mut other = key.clone();
            other[3] = Value::Port(2);
            assert_eq!(kernel.client(family, &other).expect("an answer"), None);
            let element = kernel.find(family, &base::set(SetName::Affinity), &[key]).expect("an answer");
            assert_eq!(element, [Some(kept.element())]);
        }
    });
}

/// The most that Maglev has: all slots of one frontend.
#[test]
fn thousands_of_slots_are_found_at_once() {
    const SLOTS: u32 = 4_093;
    in_namespace(|| {
        let family = Family::V4;
        let mut kernel = open();
        let set = base::set(SetName::Endpoints);
        let element = |slot: u32| {
            let mut key = frame::service(family, 1, Verdict::Drop).key;
            key.push(Value::Slot(slot));
            let data = Data::Values([frame::address(family, 124, slot), Value::Port(8080)].into_iter().collect());
            Element { key, key_end: None, data, comment: None }
        };
        let all: Vec<Element> = (0..SLOTS).map(element).collect();
        let operations = vec![
            Operation::AddTable,
            Operation::AddSet(set.clone()),
            Operation::AddElements(SetName::Endpoints, all.clone()),
        ];
        kernel.commit(&Transaction { family, operations }).expect("there is room");
        let keys: Vec<Key> = all.iter().map(|element| element.key.clone()).collect();
        let start = Instant::now();
        let found = kernel.find(family, &set, &keys).expect("an answer");
        let took = start.elapsed();
        println!("{SLOTS} slots in {took:?}");
        assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), all);
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
}

#[test]
fn what_means_nothing_is_not_taken_for_nothing() {
    in_namespace(|| {
        let family = Family::V4;
        let mut kernel = open();
        let chains = base::frame(&facts(family)[0]).chains;
        kernel.commit(&table(family, &chains)).expect("the kernel takes it");
        let key = |set| -> Vec<Value> {
            let [address, source] = [1, 2].map(|n| frame::address(family, 96, n));
            let protocol_and_port = [Value::Protocol(Protocol::Tcp), Value::Port(80)];
            match set {
                SetName::Dispatch => vec![Value::Class(0xf001_0001)],
                SetName::ClusterIps => vec![address],
                SetName::ServiceIps => [&[address], &protocol_and_port[..]].concat(),
                _ => [&[address], &protocol_and_port[..], &[source]].concat(),
            }
        };
        let cases = [
            (SetName::Dispatch, "f001:1 : accept", "dispatch, element 0x"),
            // Those that stand for all keys that there are not.
            (SetName::AllowedSources, "*", "allowed-sources, element *"),
            (SetName::ClusterIps, "*", "cluster-ips, element *"),
            (SetName::ServiceIps, "* : f800:1", "service-ips, element *"),
        ];
        for (set, element, named) in cases {
            let mut find = || {
                let found = kernel.find(family, &base::set(set), &[key(set).into()]);
                found.map_err(|error| error.to_string())
            };
            assert_eq!(find(), Ok(vec![None]), "{set}");
            nft(&["-f", "-"], &format!("add element ip nftproxyd {set} {{ {element} }}")).expect("anybody may do that");
            let strange = find();
            assert!(strange.as_ref().is_err_and(|error| error.contains(named)), "{set}: {strange:?}");
        }
    });
}
