//! Ways on which it is easy to be wrong about a packet: what becomes of it is compared with what `explain` says.

use serde_json::Value;

use super::doctor::sh;
use super::incidents::{explain, started};
use super::{CLIENT, NODE_IP, Node, ip, web, yaml};
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

const ONE: &str = "172.30.1.1:80";
/// Its endpoint is on the node itself.
const HOST: &str = "172.30.1.20:80";

/// Who sends the packet.
#[derive(Debug, Clone, Copy)]
enum From {
    Outside,
    Node,
}

/// What the packet did, in the words of a verdict.
fn fate(node: &mut Node, from: From, to: &str) -> &'static str {
    let client = ip(match from {
        From::Outside => CLIENT,
        From::Node => NODE_IP,
    });
    match node.fate_from(client, Protocol::Tcp, to) {
        Fate::Forward { .. } => "reached",
        Fate::Reject(_) => "refused",
        Fate::Drop => "dropped",
        Fate::Pass(_) => "not-ours",
    }
}

/// What `explain` says, and all of it.
fn said(node: &Node, from: From, to: &str) -> (String, Value) {
    node.world.flush_conntrack().expect("connections can be forgotten");
    let asked = match from {
        From::Outside => format!("{CLIENT} {to}"),
        From::Node => format!("{NODE_IP} {to}"),
    };
    let explanation = explain(node, &asked);
    let verdict = explanation.get("verdict").as_str().unwrap_or_default().to_owned();
    (verdict, explanation.get("causes").clone())
}

/// Rules of others in nft's words, whose packet it is, and what becomes of it; `None` where nobody can tell.
const CASES: &[(&str, From, &str, Option<&str>)] = &[
    // What the node sends is routed before any chain sees it, and is not looked at anew where it is translated.
    (
        "table inet other { chain c { type filter hook output priority 0; policy drop; oifname \"world0\" accept; } }",
        From::Node,
        ONE,
        Some("reached"),
    ),
    (
        "table inet other { chain c { type filter hook output priority -150; oifname \"world0\" ip daddr 172.30.1.1 drop; } }",
        From::Node,
        ONE,
        Some("dropped"),
    ),
    (
        "table ip other { chain c { type filter hook output priority 0; oifname \"lo\" drop; } }",
        From::Node,
        ONE,
        Some("reached"),
    ),
    // To an endpoint on the node it goes by loopback, and comes in again.
    (
        "table ip other { chain c { type filter hook postrouting priority 0; oifname \"lo\" tcp dport 7070 drop; } }",
        From::Node,
        HOST,
        Some("dropped"),
    ),
    (
        "table ip other { chain c { type filter hook prerouting priority -300; iifname \"lo\" tcp dport 7070 drop; } }",
        From::Node,
        HOST,
        Some("dropped"),
    ),
    (
        "table netdev other { chain c { type filter hook ingress device \"lo\" priority 0; tcp dport 7070 drop; } }",
        From::Node,
        HOST,
        Some("dropped"),
    ),
    (
        "table ip other { chain c { type filter hook input priority 0; iifname \"lo\" drop; } }",
        From::Outside,
        HOST,
        Some("reached"),
    ),
    // A mark that routes depend on.
    (
        "table ip other { chain c { type filter hook prerouting priority -150; ip saddr 203.0.113.7 meta mark set 0x77; } }",
        From::Outside,
        ONE,
        Some("dropped"),
    ),
    (
        "table ip other { chain c { type route hook output priority -150; ip daddr 172.30.1.1 meta mark set 0x77; } }",
        From::Node,
        ONE,
        Some("dropped"),
    ),
    (
        "table ip other { chain c { type filter hook prerouting priority -150; ip saddr 198.51.100.1 meta mark set 0x77; } }",
        From::Outside,
        ONE,
        Some("reached"),
    ),
    // What is written into a packet is not followed, and so said.
    (
        "table ip other { chain c { type filter hook prerouting priority -300; ip daddr 172.30.1.1 ip daddr set 172.30.1.99; } }",
        From::Outside,
        ONE,
        None,
    ),
    (
        "table ip other { chain c { type filter hook forward priority 0; tcp dport 8080 tcp dport set 9; } }",
        From::Outside,
        ONE,
        None,
    ),
];

#[test]
fn what_is_said_of_ways_is_what_becomes_of_packets() {
    let Some(mut node) = started() else { return };
    node.write("host.yaml", &yaml(&web("host", "172.30.1.20", &[&format!("{NODE_IP}:7070")])));
    node.wait_forward("it is served", HOST, &[&format!("{NODE_IP}:7070")]);
    sh(&node, "ip rule add fwmark 0x77/0xff lookup 77 && ip route add blackhole default table 77");
    for from in [From::Outside, From::Node] {
        for to in [ONE, HOST] {
            assert_eq!((fate(&mut node, from, to), said(&node, from, to).0.as_str()), ("reached", "reached"), "{to}");
        }
    }
    for (rules, from, to, wanted) in CASES {
        let text = rules.replace("} }", "}\n}\n");
        node.world.nft(&["-f", "-"], &text).unwrap_or_else(|error| panic!("{rules}: {error}"));
        let fate = fate(&mut node, *from, to);
        let (verdict, causes) = said(&node, *from, to);
        match wanted {
            Some(wanted) => assert_eq!((fate, verdict.as_str()), (*wanted, *wanted), "{rules} {from:?} {causes:#}"),
            None => assert_eq!(verdict, "unsure", "{rules} {from:?} {fate} {causes:#}"),
        }
        let table: Vec<&str> = rules.split(' ').take(3).collect();
        node.nft(&[&format!("delete {}", table.join(" "))]).expect("it is there");
    }
}
