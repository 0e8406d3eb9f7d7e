//! With the kernel's connection tracking, in a network namespace of the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::*;
use crate::conntrack::{Frontends, Rule, Worker, stale};
use crate::testing::{in_network_namespace, run};

/// `NLM_F_CREATE | NLM_F_EXCL`.
const CREATE: u16 = 0x600;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

fn create(socket: &mut Socket, flow: &Flow) {
    let family = Family::of(flow.original.source.ip());
    let header = family_header(family);
    let mut request = Builder::message(CT_NEW, REQUEST | ACK | CREATE, socket.next_sequence(), &header)
        .nested(CTA_TUPLE_ORIG, |tuple| with_tuple(tuple, flow.protocol, flow.original, None))
        .nested(CTA_TUPLE_REPLY, |tuple| with_tuple(tuple, flow.protocol, flow.reply, flow.zones.reply))
        .attribute(CTA_TIMEOUT, &600_u32.to_be_bytes());
    if flow.protocol == 6 {
        // TCP needs a state (CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE): 3 is established, 1 that a SYN was sent.
        let state = if flow.answered { 3 } else { 1 };
        request = request.nested(CTA_PROTOINFO, |info| info.nested(1, |tcp| tcp.attribute(1, &[state])));
    }
    if flow.answered {
        // Also `IPS_CONFIRMED`, which every entry in the table has.
        request = request.attribute(CTA_STATUS, &(SEEN_REPLY | 8).to_be_bytes());
    }
    if let Some(zone) = flow.zones.both {
        request = request.attribute(CTA_ZONE, &zone.to_be_bytes());
    }
    let request = request.finish();
    socket.execute(&request).unwrap_or_else(|error| panic!("cannot create {flow:?}: {error}"));
}

/// All entries of both families, without their ids.
fn list(conntrack: &mut Conntrack) -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        let seen = &mut |flow: &Flow| {
            flows.push(Flow { id: None, ..*flow });
            false
        };
        let swept = conntrack.delete_udp(family, seen).expect("a listing");
        assert_eq!((swept.deleted, swept.failed), (0, 0));
    }
    flows.sort_by_key(|flow| (flow.protocol, flow.original.source, flow.original.destination, flow.zones.both));
    flows
}

fn flow(client: &str, frontend: &str, endpoint: &str) -> Flow {
    Flow::translated(Protocol::Udp, [client, frontend, endpoint])
}

fn frontends(rules: impl IntoIterator<Item = (SocketAddr, Rule)>) -> Frontends {
    Frontends { by_address: rules.into_iter().collect(), ..Frontends::default() }
}

/// Entries that stay, and entries that are stale under `example_rules`.
fn examples() -> (Vec<Flow>, Vec<Flow>) {
    let (good, bad) = (flow("10.0.0.2:1001", "172.30.0.1:53", "10.1.0.1:53"), "10.1.0.9:53");
    let masqueraded = |flow: Flow| Flow {
        reply: Tuple { destination: SocketAddr::new(at("192.0.2.1:0").ip(), 61_000), ..flow.reply },
        ..flow
    };
    let tcp = |flow: Flow| Flow { protocol: 6, answered: true, ..flow };
    let in_zone = |flow: Flow| Flow { zones: Zones { both: Some(5), reply: None }, ..flow };
    let in_reply_zone = |flow: Flow| Flow { zones: Zones { both: None, reply: Some(6) }, ..flow };
    let stay = vec![
        good,
        in_zone(good),
        masqueraded(flow("10.0.0.2:1002", "172.30.0.1:53", "10.1.0.1:53")),
        tcp(flow("10.0.0.2:1003", "172.30.0.1:53", bad)),
        flow("10.0.0.2:1004", "172.30.0.1:54", bad),
        flow("10.0.0.2:1005", "172.30.0.2:53", bad),
        flow("10.0.0.2:1006", "172.30.0.3:53", "172.30.0.3:53"),
        flow("10.0.0.2:1007", "198.51.100.1:30053", "198.51.100.1:30053"),
        flow("[fd00::2]:1001", "[fd01::1]:53", "[fd02::1]:53"),
        tcp(flow("[fd00::2]:1002", "[fd01::1]:53", "[fd02::9]:53")),
        flow("[fd00::2]:1003", "[fd01::2]:53", "[fd02::9]:53"),
    ];
    let go = vec![
        flow("10.0.0.2:2001", "172.30.0.1:53", bad),
        in_zone(flow("10.0.0.2:2001", "172.30.0.1:53", bad)),
        in_reply_zone(flow("10.0.0.2:2000", "172.30.0.1:53", bad)),
        masqueraded(flow("10.0.0.2:2002", "172.30.0.1:53", bad)),
        flow("10.0.0.2:2003", "172.30.0.1:53", "172.30.0.1:53"),
        flow("10.0.0.2:2004", "172.30.0.3:53", "10.1.0.1:53"),
        flow("10.0.0.2:2005", "192.0.2.1:30053", bad),
        flow("[fd00::2]:2001", "[fd01::1]:53", "[fd02::9]:53"),
        flow("[fd00::2]:2002", "[fd01::1]:53", "[fd01::1]:53"),
        flow("[fd00::2]:2003", "[2001:db8::1]:30053", "[fd02::9]:53"),
    ];
    (stay, go)
}

fn example_rules() -> Frontends {
    Frontends {
        by_address: BTreeMap::from([
            (at("172.30.0.1:53"), Rule::endpoints([at("10.1.0.1:53"), at("10.1.0.2:53")])),
            (at("172.30.0.3:53"), Rule::Gone),
            (at("[fd01::1]:53"), Rule::endpoints([at("[fd02::1]:53")])),
        ]),
        by_node_port: BTreeMap::from([
            ((Family::V4, 30053), Rule::endpoints([at("10.1.0.1:53")])),
            ((Family::V6, 30053), Rule::endpoints([at("[fd02::1]:53")])),
        ]),
        node_port_addresses: Arc::new(BTreeSet::from(
            ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().expect("an IP")),
        )),
        ..Frontends::default()
    }
}

#[test]
fn exactly_the_stale_entries_are_deleted() {
    for filter in [true, false] {
        in_network_namespace(move || {
            let (stay, go) = examples();
            let mut conntrack = Conntrack::open().expect("sockets");
            for flow in stay.iter().chain(&go) {
                create(&mut conntrack.delete, flow);
            }
            let rules = example_rules();
            conntrack.filter = filter;
            let mut tcp = 0;
            let mut deleted = 0;
            for family in Family::ALL {
                let swept = conntrack
                    .delete_udp(family, &mut |flow| {
                        tcp += usize::from(flow.protocol == 6);
                        stale(flow, &rules)
                    })
                    .expect("a pass");
                assert_eq!((swept.failed, swept.incomplete), (0, false));
                deleted += swept.deleted;
            }
            assert_eq!(deleted, go.len());
            // The kernel was asked for UDP alone, and knows how to do that (Linux >= 5.8); or was not asked.
            assert_eq!(tcp, if conntrack.filter { 0 } else { 2 });
            assert_eq!(conntrack.filter, filter);

            conntrack.filter = false;
            let mut expected = stay;
            expected
                .sort_by_key(|flow| (flow.protocol, flow.original.source, flow.original.destination, flow.zones.both));
            assert_eq!(list(&mut conntrack), expected);
        });
    }
}

#[test]
fn what_has_no_answer_is_listed_and_deleted() {
    for filter in [true, false] {
        in_network_namespace(move || {
            let mut conntrack = Conntrack::open().expect("sockets");
            conntrack.filter = filter;
            let tcp = |port: u16, to: &str, answered| {
                let flow = flow(&format!("10.0.0.2:{port}"), "172.30.0.1:80", to);
                Flow { protocol: 6, answered, ..flow }
            };
            let stay = [
                tcp(1, "172.30.0.1:80", true),
                tcp(2, "10.1.0.1:80", true),
                flow("10.0.0.2:3", "10.0.0.9:1", "10.0.0.9:1"),
            ];
            let go = [tcp(4, "172.30.0.1:80", false), tcp(5, "172.30.0.1:80", false)];
            stay.iter().chain(&go).for_each(|flow| create(&mut conntrack.delete, flow));
            let stranded = &mut |flow: &Flow| flow.protocol == 6 && !flow.answered;
            let swept = conntrack.delete_unanswered(Family::V4, stranded).expect("a pass");
            assert_eq!((swept.deleted, swept.failed, swept.incomplete), (2, 0, false));
            // A kernel that cannot choose gives all.
            assert!(swept.seen == 5 || filter && swept.seen == 3, "{swept:?}");
            conntrack.filter = false;
            let mut left = list(&mut conntrack);
            left.sort_by_key(|flow| flow.original.source);
            assert_eq!(left, stay);
        });
    }
}

#[test]
fn an_entry_that_took_the_place_of_a_stale_one_stays() {
    // Many times: now and then the kernel puts the new entry where the old one was, with the same id.
    in_network_namespace(|| {
        (0..50).for_each(|_| replace_while_deleting());
    });
}

fn replace_while_deleting() {
    let mut conntrack = Conntrack::open().expect("sockets");
    let mut other = Socket::open(Bus::Netfilter).expect("a socket");
    let old = flow("10.0.0.2:2001", "172.30.0.1:53", "10.1.0.9:53");
    let new = Flow { reply: flow("10.0.0.2:2001", "172.30.0.1:53", "10.1.0.1:53").reply, ..old };
    create(&mut other, &old);
    let replace = &mut |seen: &Flow| {
        let request = delete_request(seen, other.next_sequence());
        other.execute(&request).expect("the entry is there");
        create(&mut other, &new);
        true
    };
    let swept = conntrack.delete_udp(Family::V4, replace).expect("a pass");
    assert_eq!((swept.seen, swept.deleted, swept.failed), (1, 0, 0));
    assert_eq!(list(&mut conntrack), [new]);
    let swept = conntrack.delete_udp(Family::V4, &mut |_| true).expect("a pass");
    assert_eq!((swept.seen, swept.deleted, swept.failed), (1, 1, 0));
}

#[test]
fn large_tables_are_passed_over_completely() {
    in_network_namespace(|| {
        let mut conntrack = Conntrack::open().expect("sockets");
        let rules = frontends([(at("172.30.0.1:53"), Rule::endpoints([at("10.1.0.1:53")]))]);
        for port in 1..=5000 {
            let endpoint = if port % 2 == 0 { "10.1.0.1:53" } else { "10.1.0.9:53" };
            create(&mut conntrack.delete, &flow(&format!("10.0.0.2:{port}"), "172.30.0.1:53", endpoint));
        }
        let start = std::time::Instant::now();
        let swept = conntrack.delete_udp(Family::V4, &mut |flow| stale(flow, &rules)).expect("a pass");
        eprintln!("{swept:?} in {:?}", start.elapsed());
        assert_eq!((swept.deleted, swept.failed), (2500, 0));
        let left = list(&mut conntrack);
        assert_eq!(left.len(), 2500);
        assert!(left.iter().all(|flow| flow.reply.source == at("10.1.0.1:53")));
    });
}

/// Traffic as it is in a cluster: a client with one socket, whose endpoint goes away.
#[test]
fn a_client_reaches_the_new_endpoint_with_its_old_socket() {
    in_network_namespace(|| {
        for (family, any, frontend, old, new) in [
            ("ip", "0.0.0.0:0", "172.30.0.1:53", "127.0.0.1:5301", "127.0.0.1:5302"),
            ("ip6", "[::]:0", "[fd01::1]:53", "[::1]:5301", "[::1]:5302"),
        ] {
            let frontend = at(frontend);
            // A route takes effect at once, an IPv6 address a moment later.
            let version = if family == "ip" { "-4" } else { "-6" };
            run(&["ip", version, "route", "add", "local", &frontend.ip().to_string(), "dev", "lo"]);
            let rules = |endpoint: &str| {
                let ip = frontend.ip();
                format!(
                    "table {family} t\ndelete table {family} t\ntable {family} t {{\n\
                     chain out {{ type nat hook output priority -100; {family} daddr {ip} udp dport 53 dnat to {endpoint}; }}\n}}"
                )
            };
            let load = |endpoint: &str| {
                let file = tempfile::NamedTempFile::new().expect("a file");
                std::fs::write(file.path(), rules(endpoint)).expect("writable");
                run(&["nft", "-f", file.path().to_str().expect("a plain path")]);
            };
            let receives = |server: &UdpSocket| {
                server.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
                server.recv(&mut [0; 16]).is_ok()
            };
            let (old_server, new_server) = (UdpSocket::bind(old).expect("free"), UdpSocket::bind(new).expect("free"));
            let client = UdpSocket::bind(any).expect("free");

            load(old);
            client.send_to(b"1", frontend).expect("sent");
            assert!(receives(&old_server));
            load(new);
            client.send_to(b"2", frontend).expect("sent");
            assert!(receives(&old_server), "without a clean-up the old endpoint keeps the flow");

            let (report, passes) = mpsc::channel();
            let worker = Worker::spawn(
                Conntrack::open().expect("sockets"),
                || true,
                move |pass| {
                    let deleted = Family::ALL.iter().filter_map(|family| pass.families[*family].as_ref());
                    let _ = report.send(deleted.map(|swept| swept.as_ref().expect("a pass").deleted).sum::<usize>());
                },
            )
            .expect("a thread");
            worker.clean(frontends([(frontend, Rule::endpoints([at(new)]))]));
            assert_eq!(passes.recv_timeout(Duration::from_secs(20)), Ok(1));
            client.send_to(b"3", frontend).expect("sent");
            assert!(receives(&new_server), "{family}");
            // The second pass finds nothing more.
            assert_eq!(passes.recv_timeout(Duration::from_secs(20)), Ok(0));
        }
    });
}
