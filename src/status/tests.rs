//! From a kernel's tables and its connections to lines.

use super::*;
use crate::diff::{Operation, Transaction};
use crate::model::ObjectName;
use crate::nftables::in_memory::InMemoryKernel;
use crate::ruleset::backend::Backend;
use crate::ruleset::elements::{element_key, elements};
use crate::ruleset::frontend::Frontend;
use crate::ruleset::names::By;
use crate::ruleset::names::Masquerade;
use crate::ruleset::ranges::Range;
use crate::ruleset::slots::Slots;
use crate::ruleset::types::SetDef;

/// A key: an address with a port, or only the port.
fn key(at: &str) -> FrontendKey {
    let (at, port) = match at.parse::<SocketAddr>() {
        Ok(address) => (FrontendAt::Address(address.ip()), address.port()),
        Err(_) => (FrontendAt::NodePort(Family::V4), at.parse().expect("a port")),
    };
    FrontendKey { at, protocol: Protocol::Tcp, port: NonZeroU16::new(port).expect("a port") }
}

fn slots(endpoints: &[&str]) -> Slots {
    let backend = |text: &&str| {
        let address: SocketAddr = text.parse().expect("an address and a port");
        Backend { address: address.ip(), port: NonZeroU16::new(address.port()).expect("a port") }
    };
    endpoints.iter().map(backend).collect()
}

fn forward(endpoints: &[&str], affinity: Option<u32>) -> Action {
    let (policy, slots) = (TrafficPolicy::Cluster, slots(endpoints));
    Action::Forward { policy, masquerade: Masquerade::FromOutside, affinity, slots }
}

fn on_this_node(endpoints: &[&str]) -> Action {
    let (policy, slots) = (TrafficPolicy::Local, slots(endpoints));
    Action::Forward { policy, masquerade: Masquerade::FromOutside, affinity: None, slots }
}

fn split(cluster: &[&str], local: &[&str]) -> Action {
    Action::Split { affinity: None, cluster: slots(cluster), local: slots(local) }
}

fn frontend(name: &str, action: Action) -> Frontend {
    let (service, port_name) = name.split_once(':').unwrap_or((name, ""));
    let (namespace, name) = service.split_once('/').expect("a namespace");
    Frontend {
        service: ObjectName::new(namespace, name).expect("a name"),
        port_name: port_name.into(),
        action,
        allowed_sources: None,
    }
}

/// A kernel with these frontends in its IPv4 table.
fn kernel(frontends: &[(&str, Frontend)]) -> InMemoryKernel {
    let mut kernel = InMemoryKernel::new();
    let sets = SetName::ALL.into_iter().map(|set| Operation::AddSet(base::set(set)));
    let operations = [Operation::AddTable].into_iter().chain(sets).collect();
    kernel.commit(&Transaction { family: Family::V4, operations }).expect("a table can be made");
    for (at, frontend) in frontends {
        elements(&key(at), frontend).into_iter().for_each(|(set, element)| kernel.put(Family::V4, set, element));
    }
    kernel
}

/// What is said of a table after these connections: the address that the client used, and the endpoint.
fn table_of(kernel: &mut impl Kernel, connections: &[[&str; 2]]) -> Vec<FrontendStatus> {
    let mut frontends = Frontends::of(kernel, Family::V4).expect("a kernel in memory can be read");
    for [to, endpoint] in connections {
        frontends.count(&Flow::translated(Protocol::Tcp, ["203.0.113.7:4000", to, endpoint]), None);
    }
    let mut all: Vec<FrontendStatus> = frontends.0.into_values().collect();
    all.sort();
    all
}

#[test]
fn a_table_for_people() {
    let mut ranges = frontend("b/ranges", Action::Reject);
    ranges.allowed_sources = Some([Range::single([192, 0, 2, 99].into())].into());
    let here_and_there = ["10.1.0.1:8080", "10.2.0.1:8080"];
    let mut weighted = forward(&["10.1.0.1:8080", "10.2.0.1:8080", "10.1.0.1:8080"], None);
    weighted.slots_mut().for_each(|(_, slots)| slots.by = By::Turn(9));
    let mut kernel = kernel(&[
        ("10.96.0.1:80", frontend("a/web:http", forward(&["10.1.0.2:8080", "10.1.0.1:8080"], Some(10800)))),
        ("30080", frontend("a/web:http", forward(&["10.1.0.1:8080"], None))),
        ("10.96.0.2:80", frontend("a/empty", Action::Reject)),
        ("10.96.0.3:80", frontend("a/elsewhere", Action::Drop)),
        ("10.96.0.4:80", frontend("a/here", on_this_node(&["10.1.0.1:8080"]))),
        ("192.0.2.6:80", frontend("b/local", split(&here_and_there, &["10.1.0.1:8080"]))),
        ("192.0.2.7:80", frontend("b/nowhere", split(&["10.2.0.1:8080"], &[]))),
        ("192.0.2.8:80", ranges),
        ("192.0.2.9:80", frontend("b/turns", weighted)),
    ]);
    let all = table_of(
        &mut kernel,
        &[
            ["10.96.0.1:80", "10.1.0.1:8080"],
            ["10.96.0.1:80", "10.1.0.1:8080"],
            ["10.96.0.1:80", "10.1.0.9:8080"],
            ["192.0.2.10:30080", "10.1.0.1:8080"],
            // To the same port of another host, and to another port.
            ["198.51.100.1:30080", "198.51.100.1:30080"],
            ["10.96.0.1:81", "10.1.0.1:8080"],
        ],
    );
    let expected = "\
SERVICE      FRONTEND            POLICY           SCHEDULER  AFFINITY  ENDPOINT                 SHARE   CONNECTIONS  UNANSWERED
a/elsewhere  tcp 10.96.0.3:80    dropped          -          -         -                        -       -            -
a/empty      tcp 10.96.0.2:80    refused          -          -         -                        -       -            -
a/here       tcp 10.96.0.4:80    Local            -          -         10.1.0.1:8080            100.0%  0            0
a/web:http   tcp *:30080 (IPv4)  Cluster          -          -         10.1.0.1:8080            100.0%  1            1
a/web:http   tcp 10.96.0.1:80    Cluster          random     10800s    10.1.0.1:8080            50.0%   2            2
                                                                       10.1.0.2:8080            50.0%   0            0
                                                                       10.1.0.9:8080 (removed)  -       1            1
b/local      tcp 192.0.2.6:80    Local            random     -         10.1.0.1:8080            50.0%   0            0
                                                                       10.2.0.1:8080            50.0%   0            0
b/nowhere    tcp 192.0.2.7:80    dropped outside  -          -         10.2.0.1:8080            100.0%  0            0
b/ranges     tcp 192.0.2.8:80    refused, ranges  -          -         -                        -       -            -
b/turns      tcp 192.0.2.9:80    Cluster          rr         -         10.1.0.1:8080            66.7%   0            0
                                                                       10.2.0.1:8080            33.3%   0            0
";
    let picture = |frontends| Picture { frontends, ..Picture::default() };
    assert_eq!(table(&picture(all.clone())), expected);
    let json = serde_json::to_value(&all[4]).expect("it can be written");
    assert_eq!(json["endpoints"][0]["connections"], 2);
    assert_eq!((&json["policy"], &json["affinitySeconds"]), (&"Cluster".into(), &10800.into()));
    assert_eq!(json["damaged"], false);
    assert_eq!(table(&picture(vec![])).lines().count(), 1);
}

/// The policies and the damage that are said of a table.
fn said(kernel: &mut impl Kernel) -> Vec<(String, Policy, bool)> {
    let all = table_of(kernel, &[]);
    all.into_iter().map(|frontend| (frontend.service, frontend.policy, frontend.damaged)).collect()
}

#[test]
fn a_damaged_frontend_is_said_to_be_damaged() {
    let whole = [
        ("10.96.0.1:80", frontend("a/web", forward(&["10.1.0.1:8080", "10.1.0.2:8080"], None))),
        ("10.96.0.2:80", frontend("b/other", Action::Drop)),
    ];
    let web = key("10.96.0.1:80");
    let said = |damage: &dyn Fn(&mut InMemoryKernel)| {
        let mut kernel = kernel(&whole);
        damage(&mut kernel);
        said(&mut kernel)
    };
    let other = ("b/other".to_owned(), Policy::Dropped, false);
    let line = |service: &str, policy, damaged| (service.to_owned(), policy, damaged);
    assert_eq!(said(&|_| {}), [line("a/web", Policy::Cluster, false), other.clone()]);
    let slot = |kernel: &mut InMemoryKernel| {
        let (set, element) = elements(&web, &whole[0].1)[1].clone();
        assert_eq!(set, SetName::Endpoints);
        assert!(kernel.remove(Family::V4, set, &element.key));
    };
    assert_eq!(said(&slot), [line("a/web", Policy::Cluster, true), other.clone()], "a slot is missing");
    let entry = |kernel: &mut InMemoryKernel| {
        assert!(kernel.remove(Family::V4, SetName::ServiceIps, &element_key(&web)));
    };
    assert_eq!(said(&entry), [line("?", Policy::Unknown, true), other], "nothing leads to it");
}

#[test]
fn a_change_between_two_sets_is_no_damage() {
    let at = key("10.96.0.1:80");
    let two = frontend("a/web", forward(&["10.1.0.1:8080", "10.1.0.2:8080"], None));
    // The entry was read before a change, the endpoints after it.
    let torn: Vec<_> = elements(&at, &two).into_iter().skip(1).collect();
    for disturbed in [0, 1, ATTEMPTS - 1, ATTEMPTS, 1_000] {
        let mut looks = 0;
        let read = Frontends::settled(|| {
            let mut contents = Contents::new(Family::V4);
            let elements = if looks < disturbed { torn.clone() } else { elements(&at, &two) };
            elements.into_iter().for_each(|(set, element)| contents.element(set, element));
            looks += 1;
            Ok((contents, looks > disturbed))
        });
        let frontends = read.expect("it can be read").0;
        let (web, settles) = (&frontends[&at], disturbed < ATTEMPTS);
        assert_eq!((web.policy, web.endpoints.len()), (Policy::Cluster, if settles { 2 } else { 1 }));
        assert!(!web.damaged, "after {disturbed} changes");
        assert_eq!(looks, (disturbed + 1).min(ATTEMPTS));
    }
    // If nothing has been changed it is the table, unless the kernel left something out once.
    for (left_out, damaged) in [(2, true), (1, false)] {
        let mut looks = 0;
        let read = Frontends::settled(|| {
            let mut contents = Contents::new(Family::V4);
            let elements = if looks < left_out { torn.clone() } else { elements(&at, &two) };
            elements.into_iter().for_each(|(set, element)| contents.element(set, element));
            looks += 1;
            Ok((contents, true))
        });
        assert_eq!(read.expect("it can be read").0[&at].damaged, damaged);
        assert_eq!(looks, 2);
    }
}

#[test]
fn one_frontend_is_seen_as_among_all() {
    let two = ["10.1.0.1:8080", "10.2.0.1:8080"];
    let mut ranges = frontend("b/ranges", forward(&two, None));
    let range = |address: [u8; 4]| Range::single(address.into());
    ranges.allowed_sources = Some([range([192, 0, 2, 97]), range([192, 0, 2, 99])].into());
    let mut local_ranges = frontend("b/local-ranges", split(&two, &["10.1.0.1:8080"]));
    local_ranges.allowed_sources = Some([range([192, 0, 2, 98])].into());
    let mut turns = frontend("b/turns", forward(&[two[0], two[1], two[0]], None));
    turns.action.slots_mut().for_each(|(_, slots)| slots.by = By::Turn(9));
    let mut hashed = frontend("b/hashed", split(&two, &two));
    hashed.action.slots_mut().for_each(|(_, slots)| slots.by = By::Maglev);
    let all = [
        ("10.96.0.1:80", frontend("a/web:http", forward(&two, Some(10800)))),
        ("10.96.0.1:81", frontend("a/web:https", forward(&two[..1], None))),
        ("30080", frontend("a/web:http", split(&two, &[]))),
        ("30081", hashed),
        ("10.96.0.2:80", frontend("a/empty", Action::Reject)),
        ("10.96.0.3:80", frontend("a/webs", Action::Drop)),
        ("10.96.0.4:80", frontend("a/here", on_this_node(&two[..1]))),
        ("192.0.2.8:80", ranges),
        ("192.0.2.9:80", local_ranges),
        ("192.0.2.10:80", turns),
    ];
    let mut whole = kernel(&all);
    for (at, frontend) in &all {
        let seen = look_at(&mut whole, &key(at)).expect("it can be read").expect("it is there");
        assert_eq!(seen, Found { frontend: Some(frontend.clone()), damaged: false }, "{at}");
    }
    assert_eq!(look_at(&mut whole, &key("10.96.0.9:80")).expect("it can be read"), None);
    let keys = |service: &str, port: Option<&str>| {
        let (namespace, name) = service.split_once('/').expect("a namespace");
        let name = ObjectName::new(namespace, name).expect("a name");
        of_service(&mut kernel(&all), Family::V4, &name, port).expect("it can be read")
    };
    assert_eq!(keys("a/web", None), ["10.96.0.1:80", "10.96.0.1:81", "30080"].map(key));
    assert_eq!(keys("a/web", Some("http")), ["10.96.0.1:80", "30080"].map(key));
    assert_eq!(keys("a/web", Some("")), []);
    assert_eq!(keys("a/empty", Some("")), [key("10.96.0.2:80")]);
    assert_eq!(keys("a/we", None), []);

    // Whatever is taken away or put there, one is seen as among all.
    for (at, frontend) in &all {
        for (set, element) in elements(&key(at), frontend) {
            let mut damaged = kernel(&all);
            assert!(damaged.remove(Family::V4, set, &element.key));
            let seen = look_at(&mut damaged, &key(at)).expect("it can be read");
            let among_all = Frontends::of(&mut damaged, Family::V4).expect("it can be read").0.remove(&key(at));
            let one = seen.as_ref().map(|seen| super::frontend(&key(at), seen));
            let leads_there = matches!(set, SetName::ServiceIps | SetName::ServiceNodeports);
            if leads_there && one.is_none() {
                // What is left is to be found by nothing that a packet could have.
                assert!(among_all.is_none_or(|frontend| frontend.damaged), "{at} without {set}");
                continue;
            }
            assert_eq!(one, among_all, "{at} without {set}");
            // With fewer ranges it would be one as well.
            let tells = set != SetName::AllowedSources;
            assert_eq!(one.is_none_or(|frontend| frontend.damaged), tells, "{at} without {set}");
        }
    }
    let more = elements(&key("10.96.0.1:80"), &frontend("a/web:http", forward(&[two[0]; 4], None)));
    for (set, element) in more.into_iter().filter(|(set, _)| *set == SetName::Endpoints).skip(2) {
        whole.put(Family::V4, set, element);
    }
    let seen = look_at(&mut whole, &key("10.96.0.1:80")).expect("it can be read").expect("it is there");
    assert!(seen.damaged, "it has more slots than are picked from");
}

#[test]
fn a_node_port_has_no_connections_of_addresses() {
    let endpoint = ["10.1.0.1:8080"];
    let all = [
        ("30080", frontend("a/web", forward(&endpoint, None))),
        ("10.96.0.1:30080", frontend("a/other", forward(&endpoint, None))),
    ];
    let flow = |to| Flow::translated(Protocol::Tcp, ["203.0.113.7:4000", to, endpoint[0]]);
    let mut flows = vec![flow("192.0.2.1:30080"), flow("10.96.0.1:30080"), flow("192.0.2.2:30080")];
    one::without_others(&mut kernel(&all), &key("30080"), &mut flows).expect("it can be read");
    assert_eq!(flows, [flow("192.0.2.1:30080"), flow("192.0.2.2:30080")]);
}

#[test]
fn what_is_asked_for_is_found() {
    let mut kernel = kernel(&[
        ("10.96.0.1:80", frontend("a/web:http", forward(&["10.1.0.1:8080"], None))),
        ("10.96.0.1:81", frontend("a/web:admin", Action::Reject)),
        ("30080", frontend("a/web:http", forward(&["10.1.0.1:8080"], None))),
        ("10.96.0.2:80", frontend("a/webshop", Action::Reject)),
        ("10.96.0.3:80", frontend("b/web:http", Action::Drop)),
    ]);
    let node = IpAddr::from([192, 0, 2, 10]);
    let (set, element) = crate::ruleset::elements::nodeport_ip_element(node);
    kernel.put(Family::V4, set, element);
    let mut found = |text: &str| -> Vec<String> {
        let filter = Filter::parse(text).expect(text);
        let addresses = accepting(&mut kernel, Family::V4).expect("it can be read");
        let node_ports = NodePortsStatus { everywhere: Some(false), addresses };
        let all = Frontends::among_all(&mut kernel, Family::V4, &filter, &node_ports).expect("it can be read").0;
        all.values().map(|frontend| format!("{} {}", frontend.service, show::at(frontend))).collect()
    };
    let (http, admin) = ("a/web:http tcp 10.96.0.1:80", "a/web:admin tcp 10.96.0.1:81");
    let node_port = "a/web:http tcp *:30080 (IPv4)";
    assert_eq!(found("a").len(), 4);
    assert_eq!(found("a/web"), [http, admin, node_port]);
    assert_eq!(found("a/web:http"), [http, node_port]);
    assert_eq!(found("10.96.0.1"), [http, admin]);
    assert_eq!(found("10.96.0.1:81"), [admin]);
    assert_eq!((found("*:30080"), found("192.0.2.10:30080")), (vec![node_port.to_owned()], vec![node_port.to_owned()]));
    assert_eq!(found("192.0.2.10"), [node_port]);
    for none in ["c", "a/we", "a/web:x", "10.96.0.9", "10.96.0.1:82", "192.0.2.11:30080", "192.0.2.10:80", "*:80"] {
        assert_eq!(found(none), [""; 0], "{none}");
    }
}

#[test]
fn what_the_daemon_knows_is_added() {
    let mut ranges = frontend("b/ranges", Action::Reject);
    ranges.allowed_sources =
        Some([Range::of(&"203.0.113.0/24".parse().expect("a range")), Range::single([192, 0, 2, 99].into())].into());
    let mut weighted = forward(&["10.1.0.1:8080", "10.2.0.1:8080"], None);
    weighted.slots_mut().for_each(|(_, slots)| slots.by = By::Turn(9));
    let mut kernel = kernel(&[
        ("10.96.0.1:80", frontend("a/web:http", weighted)),
        ("192.0.2.8:80", ranges),
        ("10.96.0.3:80", frontend("c/else", Action::Drop)),
    ]);
    let mut all = table_of(&mut kernel, &[["10.96.0.1:80", "10.2.0.1:8080"]]);
    let endpoint = |address: &str, pod: &str, ready: bool, terminating: bool| {
        serde_json::json!({
            "portName": "http", "protocol": "tcp", "address": address, "port": 8080, "pod": pod, "node": "n1",
            "ready": ready, "serving": ready, "terminating": terminating, "local": true, "weight": 3, "zones": [],
            "forThisNode": null,
        })
    };
    let service = |name: &str, port: &str, address: &str, unserved: serde_json::Value| {
        serde_json::json!({
            "name": name,
            "ports": [{"name": port, "protocol": "tcp", "port": 80, "nodePort": null, "unserved": unserved,
                       "lost": [{"frontend": "tcp 192.0.2.1:80", "owner": "z/first"}]}],
            "clusterIPs": [address], "externalIPs": [], "loadBalancerIPs": ["192.0.2.8"], "sourceRanges": null,
            "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "affinitySeconds": null,
            "scheduler": "wlc", "healthCheckNodePort": null, "slices": 1, "endpoints": [],
        })
    };
    let why = |from: &str, fate: &str, why: &str| serde_json::json!({"family": "IPv4", "from": from, "fate": fate, "why": why});
    let mut web = service("a/web", "http", "10.96.0.1", serde_json::json!([]));
    web["endpoints"] = serde_json::json!([
        // The address of a pod that ends has another one by now.
        endpoint("10.1.0.1", "old", false, true),
        endpoint("10.1.0.1", "web-1", true, false),
        endpoint("10.1.0.9", "web-9", false, false),
    ]);
    web["ports"][0]["lost"] = serde_json::json!([]);
    let reasons = serde_json::json!([why("inside", "refused", "not this"), why("outside", "refused", "none is ready")]);
    let ranges = service("b/ranges", "", "10.96.0.2", reasons);
    // The daemon knows of a change that the tables do not have yet: its reason is not theirs.
    let other = service("c/else", "", "10.96.0.3", serde_json::json!([why("inside", "refused", "another")]));
    let facts: Vec<crate::metrics::services::ServiceFacts> =
        serde_json::from_value(serde_json::json!([web, ranges, other])).expect("facts");
    add_known(&mut all, &facts);
    let expected = "\
SERVICE     FRONTEND          POLICY           SCHEDULER  AFFINITY  ENDPOINT                  POD    NODE  WEIGHT  SHARE  CONNECTIONS  UNANSWERED
a/web:http  tcp 10.96.0.1:80  Cluster          wlc        -         10.1.0.1:8080             web-1  n1    3       50.0%  0            0
                                                                    10.1.0.9:8080 (not ready)  web-9  n1    3       -      0            0
                                                                    10.2.0.1:8080             -      -     -       50.0%  1            1
b/ranges    tcp 192.0.2.8:80  refused, ranges  -          -         -                         -      -     -       -      -            -
c/else      tcp 10.96.0.3:80  dropped          -          -         -                         -      -     -       -      -            -
";
    // Of the port of this name only, and of an address that it has.
    let accounted = |port: &str, endpoint: &str, ended: u64| {
        serde_json::json!({"service": "a/web", "port": port, "endpoint": endpoint, "ended": ended,
            "packetsIn": 30, "packetsOut": 20, "bytesIn": 3_000, "bytesOut": 50_000})
    };
    let sums = serde_json::json!([
        accounted("http", "10.2.0.1:8080", 7),
        accounted("admin", "10.1.0.1:8080", 8),
        accounted("http", "10.3.0.1:8080", 9),
    ]);
    let sums: Vec<crate::metrics::endpoints::EndpointTotals> = serde_json::from_value(sums).expect("totals");
    let mut with_totals = all.clone();
    add_accounted(&mut with_totals, &sums);
    let text = table(&Picture { frontends: with_totals, ..Picture::default() });
    let tail = |line: usize| -> Vec<&str> {
        let mut cells: Vec<&str> =
            text.lines().nth(line).unwrap_or_default().split_whitespace().rev().take(5).collect();
        cells.reverse();
        cells
    };
    assert_eq!(tail(0), ["ENDED", "INPKTS", "OUTPKTS", "INBYTES", "OUTBYTES"], "{text}");
    assert_eq!((tail(1), tail(2)), (vec!["-"; 5], vec!["-"; 5]), "{text}");
    assert_eq!(tail(3), ["7", "30", "20", "3000", "50000"], "{text}");
    let picture = Picture { frontends: all.clone(), ..Picture::default() };
    let squeezed =
        |text: &str| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert_eq!(squeezed(&table(&picture)), squeezed(expected));
    let expected = "\
b/ranges: tcp 192.0.2.1:80 belongs to z/first
c/else: tcp 192.0.2.1:80 belongs to z/first
b/ranges tcp 192.0.2.8:80: refused: none is ready
b/ranges tcp 192.0.2.8:80: only from 192.0.2.99/32, 203.0.113.0/24
";
    assert_eq!(notes(&all, &facts, 9), expected);
    assert!(notes(&all, &facts, 1).ends_with("\nand 3 more such lines: ask for a Service or a namespace\n"));
    let total = "total: 3 Services, 3 frontends (1 refused, 1 dropped), 2 endpoints, \
                 1 connection (1 unanswered)\n";
    assert_eq!(totals(&picture), total);
}

#[test]
fn which_addresses_accept_node_ports_is_said() {
    let mut kernel = kernel(&[("30080", frontend("a/web", forward(&["10.1.0.1:8080"], None)))]);
    let all = table_of(&mut kernel, &[]);
    let said = |everywhere, addresses: &[IpAddr]| {
        let status = NodePortsStatus { everywhere, addresses: addresses.to_vec() };
        node_ports_text(&all, &[("IPv4".to_owned(), status.clone()), ("IPv6".to_owned(), status)].into())
    };
    let one = [IpAddr::from([192, 0, 2, 1])];
    assert_eq!(said(Some(false), &one), "nodeports IPv4: at 192.0.2.1\n");
    assert_eq!(said(Some(true), &[]), "nodeports IPv4: at all addresses of the node but loopback\n");
    assert_eq!(said(Some(false), &[]), "nodeports IPv4: at NO address of the node (nodePortAddresses)\n");
    assert!(said(None, &[]).contains("only the daemon can tell"));
}

#[test]
fn a_frame_is_sorted_and_fits() {
    let mut kernel = kernel(&[
        ("10.96.0.1:80", frontend("a/few", forward(&["10.1.0.1:8080"], None))),
        ("10.96.0.2:80", frontend("b/many", forward(&["10.1.0.2:8080"], None))),
        ("10.96.0.3:80", frontend("c/none", Action::Reject)),
    ]);
    let mut frontends = Frontends::of(&mut kernel, Family::V4).expect("it can be read");
    let (mut seen, start) = (Seen::default(), Instant::now());
    let mut look = |frontends: &mut Frontends, at, flows: &[(&str, &str, &str)]| {
        let since = seen.begin(start + Duration::from_secs(at));
        for (client, to, endpoint) in flows {
            frontends.count(&Flow::translated(Protocol::Tcp, [client, to, endpoint]), Some(&mut seen));
        }
        since
    };
    let (few, many) = (("10.96.0.1:80", "10.1.0.1:8080"), ("10.96.0.2:80", "10.1.0.2:8080"));
    let flow = |client, (to, endpoint)| (client, to, endpoint);
    let old = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"].map(|client| flow(client, many));
    assert_eq!(look(&mut frontends, 0, &old), None);
    let mut frontends = Frontends::of(&mut kernel, Family::V4).expect("it can be read");
    let with_new = [old.to_vec(), vec![flow("192.0.2.1:4", few)]].concat();
    let since = look(&mut frontends, 2, &with_new);
    assert_eq!(frontends.finish(Vec::new(), Some(&mut seen), true), Some(NewFrom::Conntrack));
    let new_from = [("IPv4".to_owned(), NewFrom::Conntrack)].into();
    let picture = Picture { frontends: frontends.0.into_values().collect(), since, new_from, ..Picture::default() };
    let frame = |order, size| frame_text(&picture, &View { head: "daemon    well\n", order, changes: &[], size });
    let names = |order| -> Vec<String> {
        let text = frame(order, None);
        let rows = text.lines().skip_while(|line| !line.starts_with("NEW/S")).skip(1);
        rows.map(|row| row.split_whitespace().nth(4).unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names(Order::Rate), ["a/few", "b/many", "c/none"]);
    assert_eq!(names(Order::Connections), ["b/many", "a/few", "c/none"]);
    assert_eq!(names(Order::Name), ["a/few", "b/many", "c/none"]);
    let text = frame(Order::Rate, None);
    assert!(text.contains("\n0.5    1            1           1          a/few "), "half a connection a second: {text}");
    assert!(text.contains("4 connections (4 unanswered), 0.5 new a second\n"), "{text}");
    assert!(text.contains("; new connections are counted in connection tracking\n"), "{text}");
    for (width, height) in [(200, 50), (40, 10), (10, 4), (1, 1)] {
        let text = frame(Order::Rate, Some((width, height)));
        assert!(text.lines().count() <= height, "{height}: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= width), "{width}: {text}");
        assert!(height < 10 || text.lines().any(|line| line.contains("q quit")), "{text}");
    }
}

#[test]
fn frontends_that_count_say_it_themselves() {
    let mut kernel = InMemoryKernel::new();
    let counting = |set: SetName| SetDef { counter: set.is_entry(), ..base::set(set) };
    let sets = SetName::ALL.into_iter().map(|set| Operation::AddSet(counting(set)));
    let operations = [Operation::AddTable].into_iter().chain(sets).collect();
    kernel.commit(&Transaction { family: Family::V4, operations }).expect("a table can be made");
    let all = [
        ("10.96.0.1:80", frontend("a/web", forward(&["10.1.0.1:8080"], None))),
        ("10.96.0.2:80", frontend("b/none", Action::Reject)),
    ];
    for (at, frontend) in &all {
        elements(&key(at), frontend).into_iter().for_each(|(set, element)| kernel.put(Family::V4, set, element));
    }
    let (mut seen, start) = (Seen::default(), Instant::now());
    let mut look = |kernel: &mut InMemoryKernel, at| {
        let mut frontends = Frontends::of(kernel, Family::V4).expect("it can be read");
        let since = seen.begin(start + Duration::from_secs(at));
        // Connection tracking has one more each time, which the counters do not know.
        let client = format!("192.0.2.1:{}", 1_000 + at);
        let flow = Flow::translated(Protocol::Tcp, [&client, "10.96.0.1:80", "10.1.0.1:8080"]);
        frontends.count(&flow, Some(&mut seen));
        let counts = kernel.frontend_counts(Family::V4).expect("they can be read");
        let new_from = frontends.finish(counts, Some(&mut seen), since.is_some());
        let new_from = new_from.map(|new_from| ("IPv4".to_owned(), new_from)).into_iter().collect();
        Picture { frontends: frontends.0.into_values().collect(), since, new_from, ..Picture::default() }
    };
    assert!(kernel.packets_find(&key("10.96.0.1:80"), 40));
    let first = look(&mut kernel, 0);
    let said =
        |picture: &Picture| -> Vec<_> { picture.frontends.iter().map(|it| (it.counted, it.new_connections)).collect() };
    assert_eq!(said(&first), [(Some(40), None), (Some(0), None)]);
    assert!(kernel.packets_find(&key("10.96.0.1:80"), 5) && kernel.packets_find(&key("10.96.0.2:80"), 3));
    let second = look(&mut kernel, 2);
    assert_eq!(said(&second), [(Some(45), Some(5)), (Some(3), Some(3))]);
    assert_eq!(second.frontends[0].endpoints[0].new_connections, Some(1), "it has no counter");
    let squeezed =
        |text: &str| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert_eq!(
        squeezed(&table(&second)),
        [
            "SERVICE FRONTEND POLICY SCHEDULER AFFINITY CONNS CONNS/S ENDPOINT SHARE CONNECTIONS UNANSWERED NEW/S",
            "a/web tcp 10.96.0.1:80 Cluster - - 45 2.5 10.1.0.1:8080 100.0% 1 1 0.5",
            "b/none tcp 10.96.0.2:80 refused - - 3 1.5 - - - - -",
        ]
    );
    assert!(totals(&second).ends_with(", 4.0 new a second\n"), "{}", totals(&second));
    let frame = frame_text(&second, &View { head: "", order: Order::Rate, changes: &[], size: None });
    let frame = squeezed(&frame);
    assert_eq!(
        frame[0],
        "sorted by new connections a second; new connections are counted by counters of the frontends"
    );
    assert_eq!(
        frame[3..5],
        ["NEW/S CONNS CONNECTIONS UNANSWERED ENDPOINTS SERVICE FRONTEND", "2.5 45 1 1 1 a/web tcp 10.96.0.1:80"]
    );
    let json = serde_json::to_value(&second.new_from).expect("it can be written");
    assert_eq!(json, serde_json::json!({"IPv4": "counters"}));
    let mut mixed = second.new_from.clone();
    mixed.insert("IPv6".to_owned(), NewFrom::Conntrack);
    let mixed = new_from_text(&Picture { new_from: mixed, ..Picture::default() });
    assert_eq!(mixed, "by counters of the frontends (IPv4), in connection tracking (IPv6)");
}
