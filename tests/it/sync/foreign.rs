//! Somebody else changes our table; and the table by netlink is the one that nft makes of the text.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::Family;
use nftproxyd::nftables::{Kernel, LinuxKernel, table_flag};
use nftproxyd::ruleset::names::SetName;
use nftproxyd::ruleset::types::{DataDef, Selector};
use nftproxyd::ruleset::{base, text};
use nftproxyd::sync::Engine;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::cluster::{Cluster, facts, of_every_kind, with_extras};
use crate::support::namespace::Namespace;
use crate::support::nft::{assert_same, nft, table};

fn synced(cluster: &Cluster) -> Engine<LinuxKernel> {
    let kernel = LinuxKernel::open().expect("a netlink socket");
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
const CHANGES: [(&str, &str); 43] = [
    ("an element is deleted", "delete element F nftproxyd service-ips { IP . tcp . 80 }"),
    ("an endpoint is deleted", "delete element F nftproxyd endpoints { IP . tcp . 80 . 0 }"),
    ("a cluster IP is deleted", "delete element F nftproxyd cluster-ips { IP }"),
    (
        "an element has another kind",
        "delete element F nftproxyd service-ips { IP . tcp . 80 }
add element F nftproxyd service-ips { IP . tcp . 80 : f800:1 }",
    ),
    (
        "an element has another comment",
        "delete element F nftproxyd service-ips { IP . tcp . 80 }
add element F nftproxyd service-ips { IP . tcp . 80 comment \"mine\" : f010:2 }",
    ),
    (
        "an element has a kind that we never write",
        "delete element F nftproxyd service-ips { IP . tcp . 80 }
add element F nftproxyd service-ips { IP . tcp . 80 : 1:2 }",
    ),
    ("a kind leads nowhere", "delete element F nftproxyd dispatch { f010:2 }"),
    (
        "a kind leads elsewhere",
        "delete element F nftproxyd dispatch { f010:2 }
add element F nftproxyd dispatch { f010:2 : goto reject-it }",
    ),
    ("a kind that we never write leads somewhere", "add element F nftproxyd dispatch-last { 1:2 : drop }"),
    (
        "a chain that is always there is deleted",
        "delete element F nftproxyd dispatch { f020:f }
delete element F nftproxyd dispatch-last { f020:f }
flush chain F nftproxyd masq-pick-15
delete chain F nftproxyd masq-pick-15",
    ),
    ("an element is added", "add element F nftproxyd service-ips { FREE . tcp . 80 : f800:1 }"),
    ("an element without a port is added", "add element F nftproxyd service-ips { FREE . tcp . 0 : f800:1 }"),
    ("an element of another protocol is added", "add element F nftproxyd service-ips { FREE . icmp . 80 : f800:1 }"),
    ("an endpoint is added", "add element F nftproxyd endpoints { IP . tcp . 80 . 7 : FREE . 99 }"),
    ("a cluster IP is added", "add element F nftproxyd cluster-ips { FREE }"),
    ("a source is added", "add element F nftproxyd allowed-sources { IP . tcp . 80 . FREE }"),
    ("a source of node ports is added", "add element F nftproxyd nodeport-allowed-sources { tcp . 30002 . FREE }"),
    ("the sources of node ports are deleted", "flush set F nftproxyd nodeport-allowed-sources"),
    (
        "what follows for a node port is deleted",
        "delete element F nftproxyd nodeport-after-source-ranges { tcp . 30002 }",
    ),
    (
        "what follows for a node port is another kind",
        "delete element F nftproxyd nodeport-after-source-ranges { tcp . 30002 }
add element F nftproxyd nodeport-after-source-ranges { tcp . 30002 : f800:1 }",
    ),
    ("an address that answers pings is added", "add element F nftproxyd ping-ips { FREE }"),
    ("an address that answers pings is deleted", "delete element F nftproxyd ping-ips { IP }"),
    ("a rule that answers all pings is added", "insert rule F nftproxyd services meta l4proto { 1, 58 } accept"),
    ("a chain that not every table has is flushed", "flush chain F nftproxyd nodeport-source-ranges"),
    (
        "sets and chains that not every table has are deleted",
        "delete element F nftproxyd dispatch { f800:7, f800:8 }
flush chain F nftproxyd nodeport-source-ranges
flush chain F nftproxyd nodeport-source-ranges-local
delete chain F nftproxyd nodeport-source-ranges
delete chain F nftproxyd nodeport-source-ranges-local
delete set F nftproxyd nodeport-allowed-sources
delete map F nftproxyd nodeport-after-source-ranges",
    ),
    ("a local endpoint is added", "add element F nftproxyd local-endpoints { FREE }"),
    ("a hairpin is added", "add element F nftproxyd hairpin { FREE . IP }"),
    ("a node port is added", "add element F nftproxyd service-nodeports { tcp . 1 : 1:2 }"),
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
add element F nftproxyd dispatch { 1:2 : goto b }",
    ),
    ("a set is added", "add set F nftproxyd theirs { type inet_service; elements = { 80 }; }"),
    ("an object is added", "add counter F nftproxyd theirs"),
    ("the table is deleted", "delete table F nftproxyd"),
    ("the table is made dormant", "add table F nftproxyd { flags dormant; }"),
    (
        "the table is made dormant twice",
        "add table F nftproxyd { flags dormant; }
add table F nftproxyd { flags dormant; }",
    ),
    (
        "the table is made dormant and its rules are flushed",
        "add table F nftproxyd { flags dormant; }
flush table F nftproxyd",
    ),
    (
        "the table is made dormant and loses a base chain",
        "add table F nftproxyd { flags dormant; }
flush chain F nftproxyd nat-input
delete chain F nftproxyd nat-input",
    ),
    (
        "the table is made anew, dormant and empty",
        "delete table F nftproxyd
add table F nftproxyd { flags dormant; }",
    ),
];

#[test]
fn what_others_change_is_put_right() {
    in_namespace(|| {
        nft(
            &["-f", "-"],
            "table inet other { set s { type inet_service; elements = { 80, 443 }; }; chain c { tcp dport @s accept; }; }",
        );
        let other = nft(&["list", "table", "inet", "other"], "");
        let mut engine = synced(&with_extras(of_every_kind(2, Some(60))));
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

/// Flags that cannot be cleared: those of a program that owns the table, and what such a one can leave behind.
#[test]
fn a_table_with_an_owner_is_left_alone_and_an_orphan_is_replaced() {
    use table_flag::{DORMANT, OWNER, PERSIST};
    in_namespace(|| {
        let mut engine = synced(&of_every_kind(2, Some(60)));
        let before = both();
        let mut persistent = 0;
        for (family, flags) in Family::ALL.into_iter().flat_map(|family| {
            [(family, OWNER), (family, OWNER | DORMANT), (family, OWNER | PERSIST), (family, OWNER | PERSIST | DORMANT)]
        }) {
            let what = format!("{family}, flags {flags:#x}");
            nft(&["delete", "table", text::family(family), "nftproxyd"], "");
            engine.distrust(family);
            let owner = match table_of_another(family, flags) {
                Ok(owner) => owner,
                // Before Linux 6.9.
                Err(error) if flags & PERSIST != 0 => {
                    writeln!(io::stderr(), "skipped: no tables that persist: {error}").expect("a standard error");
                    assert_eq!(engine.sync(Instant::now()).failures, 0);
                    continue;
                }
                Err(error) => panic!("{what}: {error}"),
            };
            let now = Instant::now();
            let report = engine.sync(now);
            assert!(
                !engine.standing(family).is_in_line() && report.error_text().contains("belongs to netlink port"),
                "{what}: {report:?}"
            );
            assert!(engine.is_family_behind(family), "{what}");
            drop(owner);
            // A program that another test starts just then has the socket, too, for a moment.
            let mut at = now + Duration::from_secs(60);
            let report = loop {
                let report = engine.sync(at);
                if !report.error_text().contains("belongs to") || now.elapsed() > Duration::from_secs(30) {
                    break report;
                }
                at += Duration::from_secs(60);
            };
            assert_eq!((report.failures, report.error_text()), (0, String::new()), "{what}");
            same(&both(), &before, &what);
            engine.distrust(family);
            assert_eq!(engine.sync(Instant::now()).operations, 0, "{what}: once is enough");
            persistent += usize::from(flags & PERSIST != 0);
        }
        writeln!(io::stderr(), "{persistent} of 4 tables outlived their owner").expect("a standard error");
    });
}

/// Makes our table with these flags, as the program does that holds the socket.
fn table_of_another(family: Family, flags: u32) -> io::Result<Socket> {
    const NETLINK_NETFILTER: i32 = 12;
    const NEWTABLE: u16 = 10 << 8;
    const REQUEST_ACK_CREATE: u16 = 1 | 4 | 0x400;
    let message = |kind: u16, message_flags: u16, family: u8, resource: u16, attributes: &[u8]| {
        let length = u32::try_from(20 + attributes.len()).expect("a short message");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), message_flags.to_ne_bytes()].concat());
        bytes.extend([0; 8]); // sequence, port
        bytes.extend([family, 0]);
        bytes.extend(resource.to_be_bytes());
        bytes.extend(attributes);
        bytes
    };
    let nfproto = if family == Family::V4 { 2 } else { 10 };
    let mut attributes = [14_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat();
    attributes.extend(b"nftproxyd\0\0\0");
    attributes.extend([8_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat());
    attributes.extend(flags.to_be_bytes());
    let batch = [
        message(16, 1, 0, 10, &[]),
        message(NEWTABLE, REQUEST_ACK_CREATE, nfproto, 0, &attributes),
        message(17, 1, 0, 10, &[]),
    ];
    let socket = Socket::new(Domain::from(16), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.send(&batch.concat())?;
    let mut answer = [0; 20];
    (&socket).read_exact(&mut answer)?;
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(socket),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
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
        let report = engine.sync(Instant::now());
        assert!(report.error_text().contains("somebody else has changed nftables"), "{}", report.error_text());
        engine.apply(nftproxyd::model::Event::Service(service.clone()));
        assert!(!engine.is_in_line());
        let report = engine.sync(engine.wake_at().expect("another attempt") + Duration::from_millis(500));
        assert!(engine.is_in_line());
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
        let mut engine = cluster.engine(LinuxKernel::open().expect("a socket"), facts(NodePortAddresses::Primary));
        assert_eq!(engine.sync(Instant::now()).transactions, 0, "nothing has changed");
        same(&both(), &before, "afterwards");

        // One endpoint less for a Service with a cluster IP and a node port in three protocols.
        let slice = cluster.slices.values_mut().next().expect("a slice");
        assert_eq!((slice.service.name(), slice.family), ("kind-0-00000", Family::V4));
        slice.endpoints = slice.endpoints[..1].into();
        let mut engine = cluster.engine(LinuxKernel::open().expect("a socket"), facts(NodePortAddresses::Primary));
        let report = engine.sync(Instant::now());
        // Each frontend: two kinds, one slot; and the chain for node ports, with its two rules and two verdicts.
        assert_eq!((report.transactions, report.operations), (1, 6 * 3 + 1 + 2 + 2));
    });
}

/// IPv6 without session affinity: nft before 1.1.0 aborts when it reads an update of a map with keys that long, though it
/// lists them well (see `nftproxyd::ruleset::text`).
#[test]
fn nft_makes_the_same_table_of_the_text() {
    in_namespace(|| {
        for (family, affinity) in [(Family::V4, Some(60)), (Family::V4, None), (Family::V6, None)] {
            let mut engine = synced(&with_extras(of_every_kind(2, affinity)));
            let word = text::family(family);
            let by_netlink = table(word);
            assert!(by_netlink.len() > 30, "{by_netlink:#?}");
            let script = text::ruleset(&engine.ruleset(family));
            nft(&["flush", "ruleset"], "");
            nft(&["-f", "-"], &script);
            assert_same(&table(word), &by_netlink, family);
            // The engine finds it right, but for the maps in which it keeps something for the sake of older nft.
            let ruleset = engine.ruleset(family);
            let sets: Vec<_> = ruleset.sets.iter().map(|(def, _)| def.clone()).collect();
            let snapshot = engine.kernel().dump(family, &sets, &ruleset.chains, &|_| None).expect("a dump");
            assert_eq!(snapshot.sets.len() + snapshot.other_sets.len(), sets.len(), "{snapshot:?}");
            assert_eq!(snapshot.chains.len(), ruleset.chains.len(), "{snapshot:?}");
            let of_slots = [SetName::Endpoints, SetName::NodeportEndpoints];
            assert!(of_slots.iter().all(|name| snapshot.other_sets.contains(name)), "{snapshot:?}");
            let named = |data: DataDef| data == DataDef::Verdict || data == DataDef::Values(vec![Selector::Priority]);
            let may_differ = |name: &SetName| of_slots.contains(name) || named(base::set(*name).data);
            assert!(snapshot.other_sets.iter().all(may_differ), "{snapshot:?}");
            engine.distrust(family);
            engine.sync(Instant::now());
            let snapshot = engine.kernel().dump(family, &sets, &ruleset.chains, &|_| None).expect("a dump");
            assert_eq!(snapshot.other_sets, BTreeSet::new());
            assert_same(&table(word), &by_netlink, format!("{family}, replaced"));
            nft(&["flush", "ruleset"], "");
        }
    });
}
