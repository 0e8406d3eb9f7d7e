//! Somebody else changes our table; and the table by netlink is the one that nft makes of the text.

use std::collections::BTreeMap;
use std::time::Instant;

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::Family;
use nftproxyd::netlink::{Kernel, Netlink};
use nftproxyd::ruleset::text;
use nftproxyd::sync::Engine;

use crate::support::cluster::{Cluster, facts, of_every_kind};
use crate::support::namespace::Namespace;
use crate::support::nft::{assert_same, nft, table};

fn synced(cluster: &Cluster) -> Engine<Netlink> {
    let kernel = Netlink::open().expect("a netlink socket");
    let mut engine = cluster.engine(kernel, facts(NodePortAddresses::Primary));
    let report = engine.sync(Instant::now());
    assert_eq!((report.failures, report.error_text()), (0, String::new()));
    engine
}

fn both() -> [BTreeMap<String, Vec<String>>; 2] {
    Family::ALL.map(|family| table(text::family(family)))
}

#[track_caller]
fn same(is: &[BTreeMap<String, Vec<String>>; 2], expected: &[BTreeMap<String, Vec<String>>; 2], what: &str) {
    is.iter().zip(expected).for_each(|(is, expected)| assert_same(is, expected, what));
}

fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if let Some(namespace) = Namespace::for_test() {
        namespace.run(test);
    }
}

/// What others do, as nft commands. `F` stands for the family, `IP` for a cluster IP of a Service with a port 80 of two
/// endpoints, `FREE` for an address that nobody has.
const CHANGES: [(&str, &str); 24] = [
    ("an element is deleted", "delete element F nftproxyd service-ips { IP . tcp . 80 }"),
    ("an endpoint is deleted", "delete element F nftproxyd endpoints { IP . tcp . 80 . 0 }"),
    ("a cluster IP is deleted", "delete element F nftproxyd cluster-ips { IP }"),
    (
        "an element has another verdict",
        "delete element F nftproxyd service-ips { IP . tcp . 80 }
add element F nftproxyd service-ips { IP . tcp . 80 : drop }",
    ),
    (
        "an element has another comment",
        "delete element F nftproxyd service-ips { IP . tcp . 80 }
add element F nftproxyd service-ips { IP . tcp . 80 comment \"mine\" : goto cluster-pick-2 }",
    ),
    (
        "an element has a verdict that we never write",
        "delete element F nftproxyd service-ips { IP . tcp . 80 }
add element F nftproxyd service-ips { IP . tcp . 80 : accept }",
    ),
    ("an element is added", "add element F nftproxyd service-ips { FREE . tcp . 80 : drop }"),
    ("an element without a port is added", "add element F nftproxyd service-ips { FREE . tcp . 0 : drop }"),
    ("an element of another protocol is added", "add element F nftproxyd service-ips { FREE . icmp . 80 : drop }"),
    ("an endpoint is added", "add element F nftproxyd endpoints { IP . tcp . 80 . 7 : FREE . 99 }"),
    ("a cluster IP is added", "add element F nftproxyd cluster-ips { FREE }"),
    ("a source is added", "add element F nftproxyd allowed-sources { IP . tcp . 80 . FREE }"),
    ("a hairpin is added", "add element F nftproxyd hairpin { FREE . IP }"),
    ("a node port is added", "add element F nftproxyd service-nodeports { tcp . 1 : accept }"),
    ("a rule is added", "add rule F nftproxyd services counter accept"),
    ("a rule is put first", "insert rule F nftproxyd nat-prerouting accept"),
    ("a rule is added to a chain made on demand", "add rule F nftproxyd pick-2 accept"),
    ("a chain is flushed", "flush chain F nftproxyd services"),
    (
        "a chain is deleted",
        "flush chain F nftproxyd nat-input
delete chain F nftproxyd nat-input",
    ),
    (
        "a chain is added",
        "add chain F nftproxyd theirs
add rule F nftproxyd theirs accept
add rule F nftproxyd services jump theirs",
    ),
    (
        "chains that refer to each other are added",
        "add chain F nftproxyd b
add chain F nftproxyd a
add rule F nftproxyd b jump a
add chain F nftproxyd c
add rule F nftproxyd a jump c
add element F nftproxyd service-ips { FREE . tcp . 81 : goto b }",
    ),
    ("a set is added", "add set F nftproxyd theirs { type inet_service; elements = { 80 }; }"),
    ("an object is added", "add counter F nftproxyd theirs"),
    ("the table is deleted", "delete table F nftproxyd"),
];

#[test]
fn what_others_change_is_put_right() {
    in_namespace(|| {
        nft(
            &["-f", "-"],
            "table inet other { set s { type inet_service; elements = { 80, 443 }; }; chain c { tcp dport @s accept; }; }",
        );
        let other = nft(&["list", "table", "inet", "other"], "");
        let mut engine = synced(&of_every_kind(2, Some(60)));
        let before = both();
        for (what, commands) in CHANGES {
            for (family, ip, free) in
                [(Family::V4, "10.96.0.0", "10.99.0.1"), (Family::V6, "fd00:10:96:0::0:1", "fd00:99::1")]
            {
                let word = text::family(family);
                let commands = commands.replace("F nftproxyd", &format!("{word} nftproxyd"));
                nft(&["-f", "-"], &commands.replace("IP", ip).replace("FREE", free));
                let changed = nft(&["list", "tables"], "").contains(&format!("{word} nftproxyd")).then(|| table(word));
                let index = usize::from(family == Family::V6);
                if what != "an object is added" {
                    assert_ne!(changed.as_ref(), Some(&before[index]), "{what}: the change is visible");
                }
                engine.distrust(family);
                let report = engine.sync(Instant::now());
                assert_eq!((report.failures, report.error_text()), (0, String::new()), "{what}");
                assert!(report.operations > 0, "{what}");
                same(&both(), &before, &format!("{what}, {family}"));
                assert!(!nft(&["list", "ruleset"], "").contains("counter theirs"), "{what}");
                engine.distrust(family);
                assert_eq!(engine.sync(Instant::now()).operations, 0, "{what}: once is enough");
            }
        }
        assert_eq!(nft(&["list", "table", "inet", "other"], ""), other);

        nft(&["flush", "ruleset"], "");
        Family::ALL.into_iter().for_each(|family| engine.distrust(family));
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        same(&both(), &before, "afterwards");
        assert!(!nft(&["list", "tables"], "").contains("other"), "what was not ours stays away");
    });
}

#[test]
fn a_change_that_is_not_known_is_noticed_when_it_is_in_the_way() {
    in_namespace(|| {
        let cluster = of_every_kind(2, Some(60));
        let mut engine = synced(&cluster);
        let before = both();
        // Nobody tells the engine.
        nft(&["delete", "table", "ip", "nftproxyd"], "");
        nft(&["delete", "table", "ip6", "nftproxyd"], "");
        let service = cluster.services.values().next().expect("a Service");
        engine.apply(nftproxyd::model::Event::ServiceGone(service.name.clone()));
        engine.sync(Instant::now());
        engine.apply(nftproxyd::model::Event::Service(service.clone()));
        let report = engine.sync(Instant::now());
        assert_eq!((report.failures, report.error_text()), (0, String::new()));
        same(&both(), &before, "afterwards");
    });
}

#[test]
fn a_restart_sends_nothing_or_only_the_difference() {
    in_namespace(|| {
        let mut cluster = of_every_kind(3, Some(60));
        synced(&cluster);
        let before = both();
        let mut engine = cluster.engine(Netlink::open().expect("a socket"), facts(NodePortAddresses::Primary));
        assert_eq!(engine.sync(Instant::now()).transactions, 0, "nothing has changed");
        same(&both(), &before, "afterwards");

        // One endpoint less for a Service with a cluster IP and a node port in three protocols.
        let slice = cluster.slices.values_mut().next().expect("a slice");
        assert_eq!((slice.service.name(), slice.family), ("kind-0-00000", Family::V4));
        slice.endpoints = slice.endpoints[..1].into();
        let mut engine = cluster.engine(Netlink::open().expect("a socket"), facts(NodePortAddresses::Primary));
        let report = engine.sync(Instant::now());
        // Each frontend: two verdicts, one slot; and two chains with two rules each.
        assert_eq!((report.transactions, report.operations), (1, 6 * 3 + 2 + 4));
    });
}

/// IPv6 without session affinity: nft before 1.1.1 aborts when it reads an update of a map with keys that long, though it
/// lists them well (see `nftproxyd::ruleset::text`).
#[test]
fn nft_makes_the_same_table_of_the_text() {
    in_namespace(|| {
        for (family, affinity) in [(Family::V4, Some(60)), (Family::V4, None), (Family::V6, None)] {
            let mut engine = synced(&of_every_kind(2, affinity));
            let word = text::family(family);
            let by_netlink = table(word);
            assert!(by_netlink.len() > 30, "{by_netlink:#?}");
            let script = text::ruleset(&engine.ruleset(family));
            nft(&["flush", "ruleset"], "");
            nft(&["-f", "-"], &script);
            assert_same(&table(word), &by_netlink, family);
            // And the engine takes it for its own.
            engine.distrust(family);
            let ruleset = engine.ruleset(family);
            let sets: Vec<_> = ruleset.sets.iter().map(|(def, _)| def.clone()).collect();
            let snapshot = engine.kernel().dump(family, &sets, &ruleset.chains, &|_| None).expect("a dump");
            assert_eq!((snapshot.sets.len(), snapshot.chains.len()), (sets.len(), ruleset.chains.len()));
            nft(&["flush", "ruleset"], "");
        }
    });
}
