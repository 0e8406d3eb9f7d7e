//! What is in a packet's priority between two look-ups is nobody else's business, and packets find their way while the kinds
//! of their Services change.

use std::net::IpAddr;

use serde_json::json;

use super::readers::write_more;
use super::take_over::{Clients, connect, node_with_echo};
use super::{
    CLIENT, CLIENT_V6, NODE_IP, NODE_IP_V6, NODE_NAME, Node, OTHER_IP, echo_server, echoes, ip, socket, web, yaml,
};
use crate::support::objects::{endpoint_slice, service};
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

/// Counts the translated packets, and those of them that have a priority, on every hook behind ours. Those that are sent to
/// the node itself come in on one and go out on the other.
const LOOK: &str = "table inet look {
    counter translated { }
    counter marked { }
    chain seen { ct status dnat counter name translated; ct status dnat meta priority != none counter name marked; }
    chain forward { type filter hook forward priority 300; jump seen; }
    chain input { type filter hook input priority 300; jump seen; }
    chain output { type filter hook output priority 300; jump seen; }
    chain postrouting { type filter hook postrouting priority 300; jump seen; }
}
";

/// How many packets a counter has seen.
fn packets(node: &Node, counter: &str) -> u32 {
    let listed = node.nft(&["list", "counter", "inet", "look", counter]).expect("the counter is there");
    let count = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no number: {listed}"))
}

/// By every kind of frontend, in both families, what is forwarded, what the node sends, and what it gets itself.
#[test]
fn nobody_sees_the_number_of_a_kind() {
    let Some(mut node) = Node::new() else { return };
    write_more(&node);
    // Endpoints in the node.
    node.write("here.yaml", &yaml(&web("here", "172.30.3.1", &[&format!("{NODE_IP}:8080")])));
    node.write("here-six.yaml", &yaml(&web("here-six", "fd00:172:30::3:1", &[&format!("[{NODE_IP_V6}]:8080")])));
    // Only some sources, and only endpoints on this node.
    let mut ranged = service(
        "shop",
        "ranged",
        &[ip("172.30.3.2"), ip("fd00:172:30::3:2")],
        &json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:113::/48"],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        }),
    );
    ranged["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.33"}, {"ip": "2001:db8:e::33"}]);
    let ranged_slice = |name, endpoint| {
        endpoint_slice("shop", name, "ranged", ("http", Protocol::Tcp), &[(socket(endpoint), NODE_NAME)])
    };
    let slices = [ranged_slice("ranged-4", "10.1.0.1:8080"), ranged_slice("ranged-6", "[fd00:1::1]:8080")];
    node.write("ranged.yaml", &yaml(&[[ranged].as_slice(), &slices].concat()));
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    node.world.nft(&["-f", "-"], LOOK).expect("another table can be made");
    let frontends = [
        // A cluster IP, one with affinity, load-balancer IPs of policies Cluster and Local with source ranges, node ports.
        ("172.30.1.1:80", "[fd00:172:30::1]:80"),
        ("172.30.2.1:80", "[fd00:172:30::2:1]:80"),
        ("198.51.100.21:80", "[2001:db8:e::21]:80"),
        ("198.51.100.22:80", "[2001:db8:e::22]:80"),
        ("198.51.100.33:80", "[2001:db8:e::33]:80"),
        ("192.0.2.10:30180", "[2001:db8::10]:30180"),
        ("192.0.2.10:30280", "[2001:db8::10]:30280"),
        ("172.30.3.1:80", "[fd00:172:30::3:1]:80"),
        // Node ports with source ranges, of both policies.
        ("192.0.2.10:30680", "[2001:db8::10]:30680"),
        ("192.0.2.10:30780", "[2001:db8::10]:30780"),
    ];
    let clients: [[IpAddr; 2]; 4] =
        [[CLIENT, CLIENT_V6], ["203.0.113.8", "2001:db8:c::7"], ["10.1.0.99", "fd00:1::99"], [NODE_IP, NODE_IP_V6]]
            .map(|both| both.map(ip));
    for (v4, v6) in frontends {
        for (family, to) in [v4, v6].into_iter().enumerate() {
            let before = packets(&node, "translated");
            for client in clients {
                // Some are dropped, as their sources are not allowed.
                let fate = node.fate_from(client[family], Protocol::Tcp, to);
                assert_eq!(packets(&node, "marked"), 0, "{} to {to}: {fate:?}", client[family]);
            }
            let more = packets(&node, "translated") - before;
            assert!(more > 0, "nobody got to {to}");
        }
    }
    // Affinity is remembered on a hook before those that look.
    assert!(!matches!(node.fate(Protocol::Tcp, "172.30.2.1:80"), Fate::Drop));
    node.stop();
}

/// Not one of many connections is lost while a Service has now two, now three endpoints.
#[test]
fn connections_find_their_endpoints_while_kinds_change() {
    let Some(mut node) = node_with_echo() else { return };
    node.ip("address add 192.0.2.78/32 dev lo");
    let endpoints = [format!("{NODE_IP}:7777"), format!("{OTHER_IP}:7777"), "192.0.2.78:7777".to_owned()];
    endpoints[1..].iter().for_each(|at| echo_server(&node, socket(at)));
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    node.start(&json!({}));
    let mut stream = connect(&node);
    let clients = Clients::start(&node);
    for round in 0..30 {
        for (count, kind) in [(2, "f000:2"), (3, "f000:3")] {
            node.replace("echo.yaml", &yaml(&web("echo", "172.30.1.7", &endpoints[..count])));
            node.eventually(&format!("round {round}, {count} endpoints"), |node| {
                let found =
                    node.nft(&["get", "element", "ip", "nftproxyd", "service-ips", "{ 172.30.1.7 . tcp . 80 }"]);
                let found = found.map_err(|error| error.to_string())?;
                if found.contains(&format!(": {kind} }}")) { Ok(()) } else { Err(found) }
            });
        }
    }
    let served = clients.stop();
    assert!(served > 60, "{served} connections are too few to say anything");
    echoes(&mut stream, "afterwards").expect("the connection lives");
    node.stop();
}
