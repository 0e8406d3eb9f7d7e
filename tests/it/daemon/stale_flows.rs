//! UDP flows of clients that go on sending, one source port each, packet by packet.

use std::fmt::Write as _;
use std::net::SocketAddr;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{CLIENT, Node, ip, node_object, socket, yaml};
use crate::support::objects::service;
use crate::support::outcome::{Kind, Outcome};
use crate::support::packet::Protocol;
use crate::support::world::{Look, Probe};

/// A cluster IP, an external IP and a node port of each family.
const FRONTENDS: [&str; 6] = [
    "172.30.1.53:53",
    "198.51.100.53:53",
    "192.0.2.10:30053",
    "[fd00:172:30::53]:53",
    "[2001:db8:ee::53]:53",
    "[2001:db8::10]:30053",
];
const CLIENT_V6: &str = "2001:db8:f::7";
/// So many packets show what becomes of a flow.
const PACKETS: usize = 10;

/// How an endpoint is: ready, serving, terminating.
type State = [bool; 3];
const READY: State = [true, true, false];
const UNREADY: State = [false, false, false];
const LEAVING: State = [false, true, true];
const LEFT: State = [false, false, true];
/// Some endpoints: the number of each, and how it is.
type Endpoints = &'static [(u8, State)];

/// A Service of UDP and TCP with its slices. Endpoints are numbers; `None`: no slices.
fn dns(endpoints: Option<&[(u8, State)]>) -> String {
    let ports = ["UDP", "TCP"].map(|protocol| {
        json!({"name": protocol.to_lowercase(), "port": 53, "targetPort": 53, "protocol": protocol, "nodePort": 30053})
    });
    let spec = json!({"type": "NodePort", "ports": ports, "ipFamilyPolicy": "RequireDualStack",
                      "externalIPs": ["198.51.100.53", "2001:db8:ee::53"]});
    let mut objects = vec![service("shop", "dns", &[ip("172.30.1.53"), ip("fd00:172:30::53")], &spec)];
    for family in ["IPv4", "IPv6"] {
        let Some(endpoints) = endpoints else { break };
        let endpoints = endpoints.iter().map(|(last, [ready, serving, terminating])| {
            json!({"addresses": [address(*last, family == "IPv4")], "nodeName": "elsewhere",
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        });
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "shop", "name": format!("dns-{}", family.to_lowercase()),
                         "labels": {"kubernetes.io/service-name": "dns"}},
            "ports": [{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<Value>>(),
        }));
    }
    yaml(&objects)
}

fn address(last: u8, v4: bool) -> String {
    if v4 { format!("10.1.0.{last}") } else { format!("fd00:1::{last}") }
}

/// Where a packet of the flow of this protocol through a frontend gets: the number of the endpoint; `None` if it is
/// refused. Anything else is an error.
fn packet(node: &mut Node, flow: Option<&str>, protocol: Protocol, frontend: &str) -> Result<Option<u8>, String> {
    let to = socket(frontend);
    let client = ip(if to.is_ipv4() { CLIENT } else { CLIENT_V6 });
    let probe = Probe { clients: vec![client], protocol, destination: to };
    let outcome = match flow {
        Some(flow) => node.world.probe_flow(&format!("{flow} {frontend}"), &probe, Look::PATIENT),
        None => {
            let mut outcome = Outcome::default();
            outcome.add(client, node.world.probe_once(&probe, Look::PATIENT.silence));
            outcome
        }
    };
    let number = |endpoint: &SocketAddr| (1..=9).find(|last| endpoint.ip() == ip(&address(*last, to.is_ipv4())));
    match outcome.kind() {
        Some(Kind::Forward) => outcome.endpoints().iter().find_map(number).map(Some).ok_or(outcome.to_string()),
        Some(Kind::Reject) => Ok(None),
        _ => Err(outcome.to_string()),
    }
}

/// Waits until the UDP flows through all frontends get there, and so do [`PACKETS`] more of each from then on.
fn wait_for_flows(node: &mut Node, flow: &str, wanted: Option<u8>, what: &str) {
    for frontend in FRONTENDS {
        node.eventually(&format!("{what}: a new flow through {frontend}"), |node| {
            let got = packet(node, None, Protocol::Udp, frontend);
            if got == Ok(wanted) { Ok(()) } else { Err(format!("{got:?} instead of {wanted:?}")) }
        });
        node.eventually(&format!("{what}: the flow through {frontend}"), |node| {
            let got = packet(node, Some(flow), Protocol::Udp, frontend);
            if got == Ok(wanted) { Ok(()) } else { Err(format!("{got:?} instead of {wanted:?}")) }
        });
        assert_stays(node, flow, Protocol::Udp, frontend, wanted, what);
    }
}

fn assert_stays(node: &mut Node, flow: &str, protocol: Protocol, frontend: &str, wanted: Option<u8>, what: &str) {
    for nth in 0..PACKETS {
        let got = packet(node, Some(flow), protocol, frontend);
        assert_eq!(got, Ok(wanted), "{what}: packet {nth} of {protocol:?} through {frontend}\n{}", node.log());
    }
}

fn node_with(endpoints: &[(u8, State)]) -> Option<Node> {
    started(Node::new()?, endpoints)
}

fn started(mut node: Node, endpoints: &[(u8, State)]) -> Option<Node> {
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("dns.yaml", &dns(Some(endpoints)));
    node.start(&json!({}));
    Some(node)
}

#[test]
fn udp_flows_leave_an_endpoint_that_ended_beside_its_successor() {
    let Some(mut node) = node_with(&[(1, READY)]) else { return };
    wait_for_flows(&mut node, "old", Some(1), "the first endpoint");
    for frontend in FRONTENDS {
        assert_stays(&mut node, "old", Protocol::Tcp, frontend, Some(1), "the first endpoint");
    }
    // The way the first goes: it is there and does not serve, or it is not there.
    let rounds: [(u8, u8, Endpoints); 2] = [(1, 2, &[(1, LEFT), (2, READY)]), (2, 3, &[(3, READY)])];
    for (from, to, last) in rounds {
        let what = format!("from {from} to {to}");
        node.replace("dns.yaml", &dns(Some(&[(from, LEAVING), (to, READY)])));
        for frontend in FRONTENDS {
            node.eventually(&format!("{what}: new flows through {frontend}"), |node| {
                let got = packet(node, None, Protocol::Udp, frontend);
                if got == Ok(Some(to)) { Ok(()) } else { Err(format!("{got:?}")) }
            });
            assert_stays(&mut node, "old", Protocol::Udp, frontend, Some(from), &format!("{what}: it still serves"));
        }
        let rules = node.tables().expect("both tables are there");
        node.replace("dns.yaml", &dns(Some(last)));
        wait_for_flows(&mut node, "old", Some(to), &what);
        assert_eq!(node.tables().expect("both tables are there"), rules, "{what}: the rules were right before");
    }
    // What a TCP client sent goes where it went: its peer tells it, or its own patience.
    for frontend in FRONTENDS {
        assert_stays(&mut node, "old", Protocol::Tcp, frontend, Some(1), "a TCP flow");
    }
    node.stop();
}

#[test]
fn udp_flows_do_not_go_on_to_the_last_endpoint_when_it_has_gone() {
    let Some(mut node) = node_with(&[(1, READY)]) else { return };
    wait_for_flows(&mut node, "old", Some(1), "there is an endpoint");
    for frontend in FRONTENDS {
        assert_stays(&mut node, "old", Protocol::Tcp, frontend, Some(1), "there is an endpoint");
    }
    let ways: [(&str, Option<Endpoints>); 4] = [
        ("unready", Some(&[(1, UNREADY)])),
        ("terminating and not serving", Some(&[(1, LEFT)])),
        ("an empty list", Some(&[])),
        ("no slice", None),
    ];
    for (what, endpoints) in ways {
        node.replace("dns.yaml", &dns(endpoints));
        wait_for_flows(&mut node, "old", None, what);
        node.replace("dns.yaml", &dns(Some(&[(1, READY)])));
        wait_for_flows(&mut node, "old", Some(1), &format!("{what}, and back"));
    }
    node.replace("dns.yaml", &dns(None));
    wait_for_flows(&mut node, "old", None, "at last");
    for frontend in FRONTENDS {
        assert_stays(&mut node, "old", Protocol::Tcp, frontend, Some(1), "a TCP flow");
    }
    node.stop();
}

/// Sends new connections to another endpoint than the daemon wants, or to the right one again.
fn redirect(node: &Node, from: u8, to: u8) {
    let mut script = String::new();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let cluster_ips = if v4 { ["172.30.1.53", "198.51.100.53"] } else { ["fd00:172:30::53", "2001:db8:ee::53"] };
        let of_addresses = cluster_ips.map(|address| ("endpoints", format!("{address} . udp . 53 . 0")));
        for (map, key) in of_addresses.into_iter().chain([("nodeport-endpoints", "udp . 30053 . 0".to_owned())]) {
            let [from, to] = [from, to].map(|last| address(last, v4));
            writeln!(script, "delete element {family} nftproxyd {map} {{ {key} : {from} . 53 }}").expect("it is text");
            writeln!(script, "add element {family} nftproxyd {map} {{ {key} : {to} . 53 }}").expect("it is text");
        }
    }
    node.world.nft(&["-f", "-"], &script).expect("anybody may change the table");
}

/// As after a daemon that was killed when the kernel had the new rules, and flows had not been looked at yet.
#[test]
fn udp_flows_that_nobody_cleaned_up_are_cleaned_up_at_the_next_start() {
    let Some(mut node) = Node::unprotected().and_then(|node| started(node, &[(1, READY)])) else { return };
    node.kill();
    redirect(&node, 1, 9);
    for frontend in FRONTENDS {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let wanted = if protocol == Protocol::Udp { 9 } else { 1 };
            assert_stays(&mut node, "old", protocol, frontend, Some(wanted), "no daemon");
        }
    }
    redirect(&node, 9, 1);
    for frontend in FRONTENDS {
        assert_stays(&mut node, "old", Protocol::Udp, frontend, Some(9), "rules alone move no flow");
        assert_stays(&mut node, "good", Protocol::Udp, frontend, Some(1), "a flow that is right");
    }
    node.start(&json!({}));
    let line = node.wait_for_log("in sync", |line| line.contains(" in sync services="));
    assert!(line.contains("operations=0 "), "{line}");
    wait_for_flows(&mut node, "old", Some(1), "after the start");
    for frontend in FRONTENDS {
        assert_stays(&mut node, "good", Protocol::Udp, frontend, Some(1), "a flow that was right");
        assert_stays(&mut node, "old", Protocol::Tcp, frontend, Some(1), "a TCP flow");
    }
    node.stop();
}

#[test]
fn udp_flows_that_began_without_rules_are_served_after_the_repair() {
    let Some(mut node) = Node::unprotected().and_then(|node| started(node, &[(1, READY)])) else { return };
    // The second look after the start is over: it is not the one that is to find them.
    node.eventually("the looks after the start", |node| {
        let log = node.log();
        let looks =
            |family| log.lines().filter(|line| line.contains("stale UDP flows") && line.contains(family)).count();
        let looks = ["IPv4", "IPv6"].map(looks);
        if looks.iter().all(|looks| *looks >= 2) { Ok(()) } else { Err(format!("{looks:?}")) }
    });
    // The daemon is kept from repairing until flows have begun.
    node.daemon().signal(Signal::SIGSTOP).expect("the daemon runs");
    for family in ["ip", "ip6"] {
        node.nft(&["flush", "chain", family, "nftproxyd", "nat-prerouting"]).expect("anybody may change the table");
    }
    for frontend in FRONTENDS {
        let to = socket(frontend);
        let client = ip(if to.is_ipv4() { CLIENT } else { CLIENT_V6 });
        let probe = Probe { clients: vec![client], protocol: Protocol::Udp, destination: to };
        let outcome = node.world.probe_flow(&format!("old {frontend}"), &probe, Look::PATIENT);
        assert_eq!(outcome.kind(), Some(Kind::Pass), "{frontend}: {outcome}");
    }
    node.daemon().signal(Signal::SIGCONT).expect("the daemon is there");
    wait_for_flows(&mut node, "old", Some(1), "after the repair");
    node.stop();
}
