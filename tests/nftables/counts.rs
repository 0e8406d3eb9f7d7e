//! Frontends that count, with packets.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Instant;

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol};
use nftproxyd::nftables::{Kernel, LinuxKernel};
use nftproxyd::ruleset::base::{self, Frame, FrameFacts, NodePortScope};
use nftproxyd::ruleset::counted::FrontendCount;
use nftproxyd::ruleset::elements;
use nftproxyd::ruleset::extras::Extras;
use nftproxyd::ruleset::frontend::{Action, Frontend};
use nftproxyd::ruleset::names::{SetName, TableName};
use nftproxyd::ruleset::types::Element;

use crate::frame;
use crate::netns::{has, in_namespace, ip};

fn facts(family: Family, counters: bool) -> FrameFacts {
    FrameFacts {
        table: TableName::NODE,
        family,
        detector: None,
        mark: 1,
        masquerade_all: false,
        service_cidrs: Vec::new(),
        node_ports: NodePortScope::All,
        stray_cluster_ips: false,
        affinity: false,
        keeps_ports: false,
        counters,
        extras: Extras::NONE,
        node_ip: None,
    }
}

/// A table with nothing but its frame.
fn table(family: Family, counters: bool) -> Transaction {
    let Frame { sets, chains, elements } = base::frame(&facts(family, counters));
    let mut transaction = Transaction::new(family);
    let operations = &mut transaction.operations;
    operations.extend([Operation::AddTable, Operation::DeleteTable, Operation::AddTable]);
    operations.extend(sets.into_iter().map(Operation::AddSet));
    operations.extend(chains.iter().cloned().map(Operation::AddChain));
    operations.extend(chains.into_iter().filter(|chain| !chain.rules.is_empty()).map(Operation::AddRules));
    transaction.elements(Operation::AddElements, elements);
    transaction
}

/// The n-th cluster IP, UDP port 53.
fn key(family: Family, n: u32) -> FrontendKey {
    let nftproxyd::ruleset::types::Value::Address(address) = frame::address(family, 96, n) else {
        panic!("no address")
    };
    FrontendKey { at: FrontendAt::Address(address), protocol: Protocol::Udp, port: 53.try_into().expect("not 0") }
}

fn node_port(family: Family) -> FrontendKey {
    FrontendKey { at: FrontendAt::NodePort(family), ..key(family, 1) }
}

/// A frontend that refuses or drops: each packet is a first one.
fn elements_of(key: FrontendKey, action: Action) -> Vec<(SetName, Element)> {
    let service = ObjectName::new("shop", "dns").expect("a name");
    elements::elements(&key, &Frontend { service, port_name: "udp".into(), action, allowed_sources: None })
}

fn change(family: Family, gone: Vec<(SetName, Element)>, new: Vec<(SetName, Element)>) -> Transaction {
    let mut transaction = Transaction::new(family);
    transaction.elements(Operation::DeleteElements, gone);
    transaction.elements(Operation::AddElements, new);
    transaction
}

/// Sends so many packets from the node itself.
fn send(key: FrontendKey, packets: usize) {
    let (to, from) = match key.at {
        FrontendAt::Address(address) => (address, if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }),
        FrontendAt::NodePort(Family::V4) => ("10.125.0.1".parse().expect("an address"), "0.0.0.0:0"),
        FrontendAt::NodePort(Family::V6) => ("fd00:125::1".parse().expect("an address"), "[::]:0"),
    };
    let socket = UdpSocket::bind(from).expect("a socket");
    for _ in 0..packets {
        let refused = socket.send_to(&[0; 12], SocketAddr::new(to, key.port.get())).expect_err("it is not let go");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}

/// Everything is the node's own way.
fn prepare() {
    ip("link set lo up");
    for (address, range) in [("10.125.0.1/32", "10.0.0.0/8"), ("fd00:125::1/128", "fc00::/7")] {
        ip(&format!("address add {address} dev lo"));
        ip(&format!("route add {range} dev lo"));
    }
}

fn packets(counts: &[FrontendCount]) -> Vec<(FrontendKey, u64)> {
    let mut all: Vec<_> = counts.iter().map(|count| (count.key, count.packets)).collect();
    all.sort_unstable();
    all
}

#[test]
fn what_is_counted_is_read_and_told_when_it_is_deleted() {
    if !has(&["ip"]) {
        return;
    }
    in_namespace(|| {
        prepare();
        for family in Family::ALL {
            let mut kernel = LinuxKernel::open().expect("a netlink socket");
            let (first, second, port) = (key(family, 1), key(family, 2), node_port(family));
            let two = || [elements_of(first, Action::Reject), elements_of(second, Action::Drop)].concat();
            let of_port = || elements_of(port, Action::Reject);
            assert_eq!(kernel.frontend_counts(family).expect("an answer"), [], "there is no table");

            kernel.commit(&table(family, true)).expect("a table that counts");
            kernel.commit(&change(family, Vec::new(), [two(), of_port()].concat())).expect("frontends");
            assert_eq!(
                packets(&kernel.frontend_counts(family).expect("an answer")),
                [(first, 0), (second, 0), (port, 0)],
            );
            send(first, 5);
            send(second, 3);
            send(port, 2);
            let counts = kernel.frontend_counts(family).expect("an answer");
            assert_eq!(packets(&counts), [(first, 5), (second, 3), (port, 2)]);
            // By key it is the same, also behind one that is not there.
            let keys = [key(family, 9), port, second];
            let of_these = kernel.frontend_counts_of(family, &keys).expect("an answer");
            assert_eq!(packets(&of_these), [(second, 3), (port, 2)]);
            assert!(of_these.iter().all(|count| counts.contains(count)));
            let of_first = counts.iter().find(|count| count.key == first).expect("it is there");
            assert_eq!((of_first.service.as_str(), &*of_first.port_name), ("shop/dns", "udp"));
            let header = if family == Family::V4 { 28 } else { 48 };
            assert_eq!(of_first.bytes, 5 * (header + 12));

            // What was counted is no difference; that it is counted is one.
            let mut others = |counters| {
                let frame = base::frame(&facts(family, counters));
                let snapshot = kernel.dump(family, &frame.sets, &frame.chains, &|_| None).expect("a dump");
                snapshot.other_sets.into_iter().collect::<Vec<_>>()
            };
            assert_eq!(others(true), []);
            assert_eq!(others(false), SetName::ENTRIES);
            for (set, element) in two() {
                let def = base::set(set);
                assert!(kernel.holds(family, &def, &element).expect("it can be asked for"));
                assert!(kernel.elements(family, &def).expect("they can be read").contains(&element));
            }

            let (told, gone) = mpsc::channel();
            kernel.tell_last_counts(move |counts, _| told.send(packets(&counts)).expect("the test listens"));
            // It leads elsewhere now: another element for the same key.
            let other = elements_of(first, Action::Drop);
            kernel.commit(&change(family, elements_of(first, Action::Reject), other)).expect("a change");
            assert_eq!(gone.try_recv(), Ok(vec![(first, 5)]));
            send(first, 1);
            assert_eq!(packets(&kernel.frontend_counts(family).expect("an answer"))[0], (first, 1));
            kernel.commit(&change(family, of_port(), Vec::new())).expect("a change");
            assert_eq!(gone.try_recv(), Ok(vec![(port, 2)]));

            // What the kernel refuses is not done.
            let twice = [elements_of(first, Action::Drop), elements_of(first, Action::Drop)].concat();
            kernel.commit(&change(family, twice, Vec::new())).expect_err("an element is deleted once");
            assert!(gone.try_recv().is_err());

            // More than are told one by one.
            let many: Vec<_> = (100..500).flat_map(|n| elements_of(key(family, n), Action::Drop)).collect();
            kernel.commit(&change(family, Vec::new(), many.clone())).expect("a change");
            assert!(gone.try_recv().is_err(), "nothing was deleted");
            send(key(family, 333), 4);
            kernel.commit(&change(family, many, Vec::new())).expect("a change");
            let counts = gone.try_recv().expect("they are gone");
            assert_eq!(counts.len(), 400);
            assert_eq!(counts.iter().filter(|(_, packets)| *packets > 0).collect::<Vec<_>>(), [&(key(family, 333), 4)]);

            // All with their table.
            kernel.commit(&table(family, false)).expect("a table that does not count");
            assert_eq!(gone.try_recv(), Ok(vec![(first, 1), (second, 3)]));
            kernel.commit(&change(family, Vec::new(), two())).expect("frontends");
            send(first, 1);
            assert_eq!(kernel.frontend_counts(family).expect("an answer"), []);
            assert_eq!(others_of(&mut kernel, family), SetName::ENTRIES);
            kernel.commit(&change(family, two(), Vec::new())).expect("a change");
            assert!(gone.try_recv().is_err(), "nothing was counted");
        }
    });
}

/// The sets that are not as a table is that counts.
fn others_of(kernel: &mut LinuxKernel, family: Family) -> Vec<SetName> {
    let frame = base::frame(&facts(family, true));
    let snapshot = kernel.dump(family, &frame.sets, &frame.chains, &|_| None).expect("a dump");
    snapshot.other_sets.into_iter().collect()
}

/// What a counter costs a first packet: packets of the node itself to one of 1,000 frontends, which drops them, by turns with a
/// table that counts and one that does not.
///
/// `kernel-vm --icount` and the like make instructions of the nanoseconds: an emulator whose clock counts instructions.
#[test]
#[ignore = "a measurement"]
fn measure_what_counting_costs() {
    const PACKETS: usize = 20_000;
    in_namespace(|| {
        prepare();
        let family = Family::V4;
        let mut kernel = LinuxKernel::open().expect("a netlink socket");
        let mut sums = [0.0, 0.0];
        for turn in 0..5 {
            for (counters, sum) in [false, true].into_iter().zip(&mut sums) {
                kernel.commit(&table(family, counters)).expect("a table");
                let all = (1..=1_000).flat_map(|n| elements_of(key(family, n), Action::Drop)).collect();
                kernel.commit(&change(family, Vec::new(), all)).expect("frontends");
                send(key(family, 500), PACKETS / 10);
                let begun = Instant::now();
                send(key(family, 500), PACKETS);
                let each = begun.elapsed().as_nanos() as f64 / PACKETS as f64;
                println!("turn {turn}: {} {each:.1} ns", if counters { "counted" } else { "plain  " });
                *sum += each;
            }
        }
        println!("plain {:.1}, counted {:.1}: {:+.1} ns", sums[0] / 5.0, sums[1] / 5.0, (sums[1] - sums[0]) / 5.0);
    });
}
