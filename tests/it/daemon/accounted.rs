//! What connections to each endpoint had, as the metrics have it, with packets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;

use serde_json::{Value, json};

use super::schedulers::{asked, client, connected, node, serve, with_weights};
use super::{Node, echo_server, echoes, ip, run_to_end, slice_of, socket, yaml};
use crate::netns::{has, set_sysctl};
use crate::support::http;
use crate::support::objects::service;
use crate::support::packet::Protocol;

/// The series of nftproxyd_endpoint_NAME, by their labels.
fn series(node: &Node, name: &str) -> BTreeMap<String, u64> {
    let text = http::body(&node.world, (Ipv4Addr::LOCALHOST, 10249).into(), "/metrics").expect("it is served");
    let prefix = format!("nftproxyd_endpoint_{name}{{");
    let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once("} "));
    lines.map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number"))).collect()
}

fn labels(service: &str, endpoint: u8) -> String {
    format!("namespace=\"shop\",service=\"{service}\",port=\"dns\",endpoint=\"10.78.0.{}:7777\"", endpoint + 1)
}

fn is_counted(node: &Node) -> String {
    node.world.run(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct").expect("it can be read"))
}

/// So many flows to 172.30.9.LAST:53, all of which end then.
fn flows(node: &Node, last: u8, first: u16, number: u16) {
    let to = socket(&format!("172.30.9.{last}:53"));
    asked(node, (first..first + number).map(|index| (client(false, index), to)));
    node.world.flush_conntrack().expect("they can be deleted");
}

#[test]
fn connections_are_accounted_for_by_endpoint_where_a_service_asks_for_it() {
    let Some(mut node) = node() else { return };
    serve(&node, false, 2);
    // Some distributions have counted all along.
    node.world.run(|| set_sysctl("netfilter/nf_conntrack_acct", "0")).expect("it can be set");
    let service = |name: &str, last: u8, accounting: Option<&str>| {
        let mut objects = with_weights(name, &format!("172.30.9.{last}"), "rr", &["1", "1"]);
        if let Some(accounting) = accounting {
            objects[0]["metadata"]["annotations"]["nftproxyd.io/accounting"] = accounting.into();
        }
        yaml(&objects)
    };
    node.write("a.yaml", &service("a", 1, None));
    node.write("b.yaml", &service("b", 2, Some("false")));
    node.start(&json!({}));
    flows(&node, 1, 0, 4);
    assert_eq!(series(&node, "connections_total"), BTreeMap::new());
    assert_eq!(is_counted(&node), "0\n", "nobody has asked for it");

    node.replace("a.yaml", &service("a", 1, Some("true")));
    node.wait_for_log("it begins", |line| line.contains("connections are accounted for by endpoint"));
    node.eventually("the kernel counts", |node| match is_counted(node) {
        counts if counts == "1\n" => Ok(()),
        other => Err(other),
    });
    flows(&node, 2, 100, 10);
    // In turns: five each, a question of 1 byte and an answer of 3, each with 28 bytes of headers.
    flows(&node, 1, 200, 10);
    node.eventually("ten connections", |node| {
        let found = series(node, "connections_total");
        if found == [(labels("a", 0), 5), (labels("a", 1), 5)].into() { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let directions = |value: [u64; 2]| -> BTreeMap<String, u64> {
        let of = |endpoint| {
            let each = ["original", "reply"].into_iter().zip(value);
            each.map(move |(direction, value)| (format!("{},direction=\"{direction}\"", labels("a", endpoint)), value))
        };
        of(0).chain(of(1)).collect()
    };
    assert_eq!(series(&node, "packets_total"), directions([5, 5]));
    assert_eq!(series(&node, "bytes_total"), directions([5 * 29, 5 * 31]));
    let status = |what: &str| -> Value {
        serde_json::from_str(&run_to_end(&node, true, &["status", what, "-o", "json"]).stdout).expect("JSON")
    };
    let json = status("shop/a");
    let totals = json!({"ended": 5, "packetsIn": 5, "packetsOut": 5, "bytesIn": 5 * 29, "bytesOut": 5 * 31});
    let endpoints = &json["frontends"][0]["endpoints"];
    assert_eq!([&endpoints[0]["totals"], &endpoints[1]["totals"]], [&totals, &totals], "{json}");
    let json = status("shop/b");
    assert_eq!(json["frontends"][0]["endpoints"][0]["totals"], Value::Null, "it asks for none: {json}");
    let text = run_to_end(&node, true, &["status", "shop/a"]).stdout;
    assert!(text.contains("  ENDED  INPKTS  OUTPKTS  INBYTES  OUTBYTES\n"), "{text}");

    // Nobody asks any more.
    node.replace("a.yaml", &service("a", 1, None));
    node.wait_for_log("it ends", |line| line.contains("connections are not accounted for any more"));
    flows(&node, 1, 300, 2);
    assert_eq!(series(&node, "connections_total").values().sum::<u64>(), 10);

    // All are asked for, whatever they say.
    node.stop();
    node.start(&json!({"nftables": {"accounting": true}}));
    node.wait_for_log("it begins", |line| line.contains("connections are accounted for by endpoint"));
    node.eventually("both", |node| {
        flows(node, 1, 400, 2);
        flows(node, 2, 500, 2);
        let found = series(node, "connections_total");
        if found.len() == 4 { Ok(()) } else { Err(format!("{found:?}")) }
    });
    node.stop();
}

const BEGINS: &str = "connections are accounted for by endpoint";

/// Ports of a Service that leads to echo servers, and to answers of UDP.
fn http(port: u16) -> Value {
    json!({"name": format!("http-{port}"), "port": port, "targetPort": 8080})
}

fn dns() -> Value {
    json!({"name": "dns", "port": 53, "targetPort": 7777, "protocol": "UDP"})
}

/// A Service that is accounted for at 172.30.9.LAST, with these endpoints of its ports `http-80` and `dns`.
fn accounted(name: &str, last: u8, ports: &[Value], endpoints: &[&str]) -> Vec<Value> {
    let spec = json!({"type": "NodePort", "ports": ports});
    let mut service = service("shop", name, &[ip(&format!("172.30.9.{last}"))], &spec);
    service["metadata"]["annotations"] = json!({"nftproxyd.io/accounting": "true", "nftproxyd.io/scheduler": "rr"});
    let slice = |port: &str, protocol, number: u16| {
        let texts: Vec<String> = endpoints.iter().map(|endpoint| format!("{endpoint}:{number}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut slice = slice_of(name, (port, protocol), &texts);
        slice["metadata"]["name"] = format!("{name}-{port}").into();
        slice
    };
    vec![service, slice("http-80", Protocol::Tcp, 8080), slice("dns", Protocol::Udp, 7777)]
}

/// What the kernel has counted of all TCP connections to the echo servers, once so many have been closed by both sides: packets
/// and bytes, there and back.
fn counted_once_closed(node: &mut Node, number: usize) -> [u64; 4] {
    let mut counted = [0; 4];
    node.eventually("they are closed", |node| {
        let mut command = Command::new("conntrack");
        command.args(["-L", "-p", "tcp", "--reply-port-src", "8080"]);
        let output = node.world.run(move || command.output()).expect("it is there");
        let list = String::from_utf8_lossy(&output.stdout).into_owned();
        let closed: Vec<&str> = list.lines().filter(|line| line.contains(" TIME_WAIT ")).collect();
        if closed.len() != number || list.lines().count() != number {
            return Err(list);
        }
        let sum = |name: &str, direction: usize| -> u64 {
            let values = closed.iter().map(|line| {
                let values: Vec<&str> = line.split(' ').filter_map(|word| word.strip_prefix(name)).collect();
                values[direction].parse::<u64>().expect("a number")
            });
            values.sum()
        };
        counted = [sum("packets=", 0), sum("packets=", 1), sum("bytes=", 0), sum("bytes=", 1)];
        Ok(())
    });
    counted
}

/// Waits until the map of the Services' addresses is as wanted.
fn wait_served(node: &mut Node, what: &str, wanted: impl Fn(&str) -> bool) {
    node.eventually(what, |node| {
        let map = node.nft(&["list", "map", "ip", "nftproxyd", "service-ips"]).map_err(|error| error.to_string())?;
        if wanted(&map) { Ok(()) } else { Err(map) }
    });
}

/// Waits until the series of connections are as wanted, by Service, port and the last number of the endpoint's address.
fn wait_ended(node: &mut Node, wanted: &[(&str, &str, u8, u64)]) {
    let series_of = |&(service, port, endpoint, count): &(&str, &str, u8, u64)| {
        let number = if port == "dns" { 7777 } else { 8080 };
        let endpoint = format!("10.78.0.{endpoint}:{number}");
        (format!("namespace=\"shop\",service=\"{service}\",port=\"{port}\",endpoint=\"{endpoint}\""), count)
    };
    let wanted: BTreeMap<String, u64> = wanted.iter().map(series_of).collect();
    node.eventually("all have ended", |node| {
        let found = series(node, "connections_total");
        if found == wanted { Ok(()) } else { Err(format!("{found:#?}")) }
    });
}

/// A node that accounts for these, with an echo server at each of two endpoints, at which also UDP is answered.
fn node_with(objects: &[Value]) -> Option<Node> {
    let mut node = node()?;
    serve(&node, false, 2);
    for at in ["10.78.0.1:8080", "10.78.0.2:8080"] {
        echo_server(&node, socket(at));
    }
    node.write("services.yaml", &yaml(objects));
    node.start(&json!({}));
    node.wait_for_log("it begins", |line| line.contains(BEGINS));
    node.eventually("the kernel counts", |node| match is_counted(node) {
        counts if counts == "1\n" => Ok(()),
        other => Err(other),
    });
    Some(node)
}

#[test]
fn connections_that_end_after_their_service_has_gone_are_accounted_for() {
    if !has(&["conntrack"]) {
        return;
    }
    let mut port = http(80);
    port["nodePort"] = 30_080.into();
    let Some(mut node) = node_with(&accounted("a", 1, &[port, dns()], &["10.78.0.1", "10.78.0.2"])) else { return };
    let to =
        ["172.30.9.1:80", "172.30.9.1:80", "172.30.9.1:80", "172.30.9.1:80", "192.0.2.10:30080", "192.0.2.10:30080"];
    let mut streams: Vec<TcpStream> = (0..).zip(to).map(|(from, to)| connected(&node, from, socket(to))).collect();
    let [answered] = asked(&node, [(client(false, 100), socket("172.30.9.1:53"))])[..] else { panic!("one flow") };
    assert_eq!(series(&node, "connections_total"), BTreeMap::new(), "all are open");

    node.remove("services.yaml");
    wait_served(&mut node, "the Service is gone", |map| !map.contains("172.30.9.1"));
    // The daemon itself ends flows of UDP that lead nowhere any more; the others go on.
    wait_ended(&mut node, &[("a", "dns", answered + 1, 1)]);
    streams.iter_mut().for_each(|stream| echoes(stream, "still here").expect("an echo"));
    drop(streams);
    let counted = counted_once_closed(&mut node, 6);
    node.world.flush_conntrack().expect("they can be deleted");
    wait_ended(&mut node, &[("a", "dns", answered + 1, 1), ("a", "http-80", 1, 3), ("a", "http-80", 2, 3)]);
    let sum = |name: &str, direction: &str| -> u64 {
        let all = series(&node, name);
        let series = all.iter().filter(|(labels, _)| labels.ends_with(&format!("direction=\"{direction}\"")));
        series.map(|(_, value)| *value).sum()
    };
    let found = ["packets", "bytes"].map(|name| ["original", "reply"].map(|it| sum(&format!("{name}_total"), it)));
    let [packets, packets_back, bytes, bytes_back] = counted;
    // Each connection has at least three packets to begin, one with text twice, and one to end, on both sides together more.
    assert!(packets >= 6 * 5 && bytes_back > 6 * 15, "{counted:?}");
    assert_eq!(found, [[packets + 1, packets_back + 1], [bytes + 29, bytes_back + 31]]);
    let log = node.log();
    assert_eq!((log.matches(BEGINS).count(), log.contains("not accounted for any more")), (1, false), "{log}");
    node.stop();
}

#[test]
fn whose_a_connection_is_when_its_service_has_changed_meanwhile() {
    if !has(&["conntrack"]) {
        return;
    }
    let both = [http(80), dns()];
    let without = |mut objects: Vec<Value>, annotation: &str| {
        let annotations = objects[0]["metadata"]["annotations"].as_object_mut().expect("there are some");
        annotations.remove(annotation).expect("it is there");
        objects
    };
    let [one, two] = [["10.78.0.1"], ["10.78.0.2"]];
    let before = [
        accounted("loses-a-port", 11, &both, &one),
        accounted("old-name", 12, &both, &one),
        accounted("loses-an-endpoint", 13, &both, &one),
        accounted("is-not-accounted-for", 14, &both, &one),
        accounted("gives-its-address-away", 15, &both, &one),
        accounted("goes-and-comes", 16, &both, &one),
    ];
    let Some(mut node) = node_with(&before.concat()) else { return };
    let to = |last: u16| socket(&format!("172.30.9.{last}:80"));
    let streams: Vec<TcpStream> = (11..=16).map(|last| connected(&node, last, to(last))).collect();
    let [lost, _, _, _, _, comes] = before;

    let after = [
        accounted("loses-a-port", 11, &[http(81), dns()], &one),
        accounted("new-name", 12, &both, &one),
        accounted("loses-an-endpoint", 13, &both, &two),
        without(accounted("is-not-accounted-for", 14, &[http(80), http(81), dns()], &one), "nftproxyd.io/accounting"),
        without(accounted("gets-an-address", 15, &both, &two), "nftproxyd.io/accounting"),
    ];
    node.replace("services.yaml", &yaml(&after.concat()));
    let has = |map: &str, last: u8, port: u16, comment: &str| {
        let key = format!("172.30.9.{last} . tcp . {port} ");
        map.lines().any(|line| line.contains(&key) && line.contains(comment))
    };
    wait_served(&mut node, "all have changed", |map| {
        !has(map, 11, 80, "")
            && has(map, 11, 81, "loses-a-port")
            && has(map, 12, 80, "new-name")
            && has(map, 14, 81, "is-not-accounted-for")
            && has(map, 15, 80, "gets-an-address")
            && !map.contains("172.30.9.16 ")
    });
    let again = [&after.concat()[..], &comes].concat();
    node.replace("services.yaml", &yaml(&again));
    wait_served(&mut node, "it comes again", |map| has(map, 16, 80, "goes-and-comes"));
    drop(streams);
    counted_once_closed(&mut node, 6);
    node.world.flush_conntrack().expect("they can be deleted");
    let ended = [
        ("loses-a-port", "http-80", 1, 1),
        ("new-name", "http-80", 1, 1),
        ("loses-an-endpoint", "http-80", 1, 1),
        ("goes-and-comes", "http-80", 1, 1),
    ];
    wait_ended(&mut node, &ended);

    // Once accounting is over for one, it is over also for what was gone before.
    let stream = connected(&node, 17, to(16));
    node.replace("services.yaml", &yaml(&lost));
    wait_served(&mut node, "it is gone", |map| has(map, 11, 80, "loses-a-port") && !map.contains("172.30.9.16 "));
    let off = without(accounted("goes-and-comes", 16, &[http(82)], &one), "nftproxyd.io/accounting");
    node.replace("services.yaml", &yaml(&[&lost[..], &off].concat()));
    wait_served(&mut node, "it is another", |map| has(map, 16, 82, "goes-and-comes"));
    drop([stream, connected(&node, 18, to(11))]);
    counted_once_closed(&mut node, 2);
    node.world.flush_conntrack().expect("they can be deleted");
    // What the kernel has told before this end has been read.
    drop(connected(&node, 19, to(11)));
    counted_once_closed(&mut node, 1);
    node.world.flush_conntrack().expect("they can be deleted");
    let mut ended = ended;
    ended[0].3 = 3;
    wait_ended(&mut node, &ended);
    node.stop();
}
