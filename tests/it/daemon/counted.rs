//! Connections to frontends as the metrics have them, with packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use super::schedulers::{asked, bound, client, node, serve, udp, with_weights};
use super::{Node, ip, run_to_end, socket, yaml};
use crate::support::http;

const METRIC: &str = "nftproxyd_service_connections_total";
const ADDRESS: &str = "172.30.9.1";
const TO: &str = "172.30.9.1:53";

/// The connections to a frontend of shop/NAME that the metrics have; `None` without such a series.
fn counted(node: &Node, name: &str, frontend: &str) -> Option<u64> {
    let text = http::body(&node.world, (Ipv4Addr::LOCALHOST, 10249).into(), "/metrics").expect("it is served");
    let series = format!("{METRIC}{{namespace=\"shop\",service=\"{name}\",port=\"dns\",frontend=\"{frontend}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series))?;
    Some(value.parse().expect("a number"))
}

fn wait_counted(node: &mut Node, what: &str, wanted: impl Fn(Option<u64>) -> bool) {
    node.eventually(what, |node| {
        let found = counted(node, "a", &format!("udp {TO}"));
        if wanted(found) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// New flows to the frontend from clients of their own.
fn flows(node: &Node, first: u16, number: u16) {
    let to = socket(TO);
    asked(node, (first..first + number).map(|index| (client(false, index), to)));
}

/// Has the Service so many endpoints, and waits until its element says so.
fn endpoints(node: &mut Node, number: usize) {
    let weights = &["1", "1", "1"][..number];
    node.replace("a.yaml", &yaml(&with_weights("a", ADDRESS, "random", weights)));
    let slots = format!(": f000:{number}");
    node.eventually(&format!("{number} endpoints"), |node| {
        let map = node.nft(&["list", "map", "ip", "nftproxyd", "service-ips"]).unwrap_or_default();
        if map.lines().any(|line| line.contains(ADDRESS) && line.contains(&slots)) { Ok(()) } else { Err(map) }
    });
}

#[test]
fn each_connection_is_counted_once_whatever_becomes_of_the_element() {
    let Some(mut node) = node() else { return };
    node.table_owner = "off";
    serve(&node, false, 3);
    node.write("a.yaml", &yaml(&with_weights("a", ADDRESS, "random", &["1"])));
    let counting = json!({"nftables": {"countConnections": true}});
    node.start(&counting);
    wait_counted(&mut node, "none yet", |count| count.unwrap_or(0) == 0);
    flows(&node, 0, 100);
    wait_counted(&mut node, "100 flows", |count| count == Some(100));
    let listed = node.nft(&["list", "map", "ip", "nftproxyd", "service-ips"]).expect("it is there");
    assert!(listed.contains("counter packets 100 bytes "), "{listed}");

    // Nobody reads in between, and each is another element.
    let mut first = 100;
    for number in [2, 3, 1, 2, 1, 3] {
        endpoints(&mut node, number);
        flows(&node, first, 20);
        first += 20;
    }
    wait_counted(&mut node, "120 flows more", |count| count == Some(220));

    // A Service that goes and comes.
    node.remove("a.yaml");
    node.eventually("it is gone", |node| {
        let map = node.nft(&["list", "map", "ip", "nftproxyd", "service-ips"]).expect("it is there");
        if map.contains(ADDRESS) { Err(map) } else { Ok(()) }
    });
    wait_counted(&mut node, "it stays for a while", |count| count == Some(220));
    endpoints(&mut node, 2);
    flows(&node, first, 20);
    wait_counted(&mut node, "it goes on", |count| count == Some(240));

    // A table that somebody deletes is another one: what was counted since the last reading is lost, and no more.
    node.nft(&["delete", "table", "ip", "nftproxyd"]).expect("it can be deleted");
    endpoints(&mut node, 2);
    flows(&node, first + 20, 5);
    wait_counted(&mut node, "it is counted on", |count| count == Some(245));

    // Without, the table does not count, and there is nothing to show.
    node.stop();
    node.start(&json!({}));
    let listed = node.table("ip").expect("it is there");
    assert!(!listed.contains("counter"), "{listed}");
    flows(&node, first + 25, 5);
    assert_eq!(counted(&node, "a", &format!("udp {TO}")), None);

    // With it again.
    node.stop();
    node.start(&counting);
    flows(&node, first + 30, 5);
    wait_counted(&mut node, "the flows since the start", |count| count == Some(5));

    // A table that counts already is taken as it is, with its counters; they count from here on.
    node.stop();
    node.start(&counting);
    wait_counted(&mut node, "a process counts for itself", |count| count == Some(0));
    let listed = node.table("ip").expect("it is there");
    assert!(listed.contains("counter packets 5 bytes "), "{listed}");
    flows(&node, first + 35, 5);
    wait_counted(&mut node, "the flows since this start", |count| count == Some(5));
    node.stop();
}

/// Flows of one packet each begin all the time while the element is replaced.
#[test]
fn flows_that_begin_during_changes_are_counted() {
    let Some(mut node) = node() else { return };
    node.write("a.yaml", &yaml(&with_weights("a", ADDRESS, "random", &["1"])));
    node.start(&json!({"nftables": {"countConnections": true}}));
    let ends = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ends);
    let (sends, sent) = std::sync::mpsc::channel();
    let to: SocketAddr = socket(TO);
    node.world.run(move || {
        std::thread::spawn(move || {
            let mut sent = 0_u64;
            while !told.load(Ordering::Relaxed) && sent < 50_000 {
                let socket = bound(SocketAddr::new(client(false, sent as u16), 0)).expect("a socket");
                // Whether anybody listens there is no matter.
                sent += u64::from(socket.send_to(b"?", to).is_ok());
            }
            sends.send(sent)
        });
    });
    for round in 0..20 {
        endpoints(&mut node, 1 + round % 3);
    }
    ends.store(true, Ordering::Relaxed);
    let sent = sent.recv().expect("it ends");
    assert!(sent > 100, "{sent}");
    // A packet that is on its way through the rules at that moment may be too late for the last count of an element.
    let all_but = |count: Option<u64>| count.is_some_and(|count| count + 5 >= sent && count <= sent);
    wait_counted(&mut node, &format!("{sent} flows"), all_but);
    node.stop();
}

#[test]
fn node_ports_and_refused_connections_are_counted_too() {
    let Some(mut node) = node() else { return };
    serve(&node, false, 1);
    let mut service = udp("a", ADDRESS, &json!({}));
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["ports"][0]["nodePort"] = 30_053.into();
    let slice = with_weights("a", ADDRESS, "random", &["1"]).remove(1);
    let none = udp("b", "172.30.9.2", &json!({}));
    node.write("a.yaml", &yaml(&[service, slice, none]));
    node.start(&json!({"nftables": {"countConnections": true}}));
    let from: IpAddr = ip("10.77.9.9");
    asked(&node, (0..7).map(|_| (from, socket("192.0.2.10:30053"))));
    node.world.run(|| {
        for index in 0..3 {
            let socket = bound(SocketAddr::new(client(false, index), 0)).expect("a socket");
            assert!(socket.send_to(b"?", socket_of_none()).is_err(), "it is refused at once");
        }
    });
    node.eventually("both", |node| {
        let found = (counted(node, "a", "udp node port 30053 (IPv4)"), counted(node, "b", "udp 172.30.9.2:53"));
        if found == (Some(7), Some(3)) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    node.stop();
}

fn socket_of_none() -> SocketAddr {
    socket("172.30.9.2:53")
}

/// What `status --rate` says of shop/a, in words and as JSON, while flows go on.
fn rate(node: &Node) -> (String, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nftproxyd"));
    command.args(["status", "shop/a", "--rate", "-o", "json"]).stdout(Stdio::piped());
    let mut child = node.world.spawn(command).expect("it can be started");
    for round in 0.. {
        // Between the two looks at least one of them begins.
        flows(node, 1_000 + round, 1);
        if child.try_wait().expect("it can be asked").is_some() {
            break;
        }
        sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().expect("it ends");
    let json = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = run_to_end(node, true, &["status", "shop/a", "--rate"]).stdout;
    (text, json)
}

#[test]
fn status_takes_the_rate_from_counters_where_there_are_some() {
    let Some(mut node) = node() else { return };
    serve(&node, false, 1);
    node.write("a.yaml", &yaml(&with_weights("a", ADDRESS, "random", &["1"])));
    node.start(&json!({"nftables": {"countConnections": true}}));
    node.wait_for_log("it is served", |line| line.contains("in sync"));
    flows(&node, 0, 17);
    // What connection tracking forgets was counted.
    node.world.flush_conntrack().expect("they can be deleted");
    let status = run_to_end(&node, true, &["status", "shop/a", "-o", "json"]).stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["frontends"][0]["counted"], 17, "{status}");
    assert_eq!(status["frontends"][0]["endpoints"][0]["connections"], 0, "{status}");
    assert_eq!(status["newConnectionsFrom"], Value::Null, "nothing is new at a first look");
    let (text, json) = rate(&node);
    assert!(text.contains("\nrate      new connections are counted by counters of the frontends\n"), "{text}");
    assert!(text.contains("  CONNS  CONNS/S  ENDPOINT  "), "{text}");
    assert_eq!(json["newConnectionsFrom"], json!({"IPv4": "counters"}), "{json}");
    let new = json["frontends"][0]["newConnections"].as_u64().expect("a number");
    let counted = json["frontends"][0]["counted"].as_u64().expect("a number");
    assert!((1..=counted - 17).contains(&new), "{json}");

    // Without counters.
    node.stop();
    node.start(&json!({}));
    node.wait_for_log("it is served", |line| line.contains("in sync"));
    let (text, json) = rate(&node);
    assert!(text.contains("\nrate      new connections are counted in connection tracking\n"), "{text}");
    assert!(!text.contains("CONNS"), "{text}");
    assert_eq!(json["newConnectionsFrom"], json!({"IPv4": "conntrack"}), "{json}");
    let frontend = &json["frontends"][0];
    assert_eq!(frontend["counted"], Value::Null, "{json}");
    assert!(frontend["newConnections"].as_u64().is_some_and(|new| new > 0), "{json}");
    assert_eq!(frontend["newConnections"], frontend["endpoints"][0]["newConnections"], "{json}");
    node.stop();
}
