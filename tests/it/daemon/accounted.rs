//! What connections to each endpoint had, as the metrics have it, with packets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::schedulers::{asked, client, node, serve, with_weights};
use super::{Node, run_to_end, socket, yaml};
use crate::netns::set_sysctl;
use crate::support::http;

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
