//! Incidents as in `incidents`, of what else is on the node: rules of others, its settings and routes, and pods.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::doctor::{sh, sysctls, try_sh};
use super::incidents::{config, explain, incident, is_dropped, is_refused, is_well, mend, started};
use super::{CLIENT, CLIENT_V6, NODE_IP, Node, ip, run_to_end, socket, web, write_everything, yaml};
use crate::netns::skip;
use crate::support::namespace::Namespace;
use crate::support::objects::service;
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

const TO: &str = "172.30.1.9:80";
const ONE: &str = "172.30.1.1:80";

fn asked(to: &str) -> String {
    format!("{CLIENT} {to}")
}

/// A table of somebody else with one chain.
#[track_caller]
fn stranger(node: &Node, name: &str, chain: &str) {
    let text = format!("table {name} {{\n chain stranger {{\n  type {chain}\n }}\n}}\n");
    node.world.nft(&["-f", "-"], &text).unwrap_or_else(|error| panic!("{text}: {error}"));
}

#[test]
fn rules_of_others_are_named() {
    let Some(mut node) = started() else { return };
    let all = ["foreign-rule", "foreign-rule-unclear", "translated-elsewhere", "kube-proxy-leftover"];
    is_well(&node, &asked(TO), &all);
    // Of one pod of three.
    let rule = "ip daddr 10.1.0.2 tcp dport 8080 drop";
    stranger(&node, "inet netpol", &format!("filter hook forward priority 0; {rule}"));
    node.wait_fate("it is the one of three", TO, |fate| *fate == Fate::Drop);
    node.wait_forward("or another", TO, &["10.1.0.1:8080", "10.1.0.3:8080"]);
    node.world.flush_conntrack().expect("connections can be forgotten");
    let drops = format!("inet netpol stranger (forward) drops it: rule 1: {rule}");
    incident(&node, &asked(TO), "foreign-rule", "dropped", &["10.1.0.2:8080", &drops]);
    let text = run_to_end(&node, true, &["explain", CLIENT, TO]).stdout;
    assert!(text.contains("\n=> DROPPED at 1 of 3 endpoints: 10.1.0.2:8080: inet netpol"), "{text}");
    let endpoints = explain(&node, &asked(TO)).get("endpoints").clone();
    let verdicts: Vec<&Value> = endpoints.as_array().into_iter().flatten().map(|it| &it["verdict"]).collect();
    assert_eq!(verdicts, ["reached", "dropped", "reached"], "{endpoints:#}");
    is_well(&node, &asked(ONE), &all);
    node.nft(&["delete table inet netpol"]).expect("it is there");
    is_well(&node, &asked(TO), &all);

    let cases = [
        ("inet", "filter hook forward priority 0; policy drop; tcp dport 22 accept", "dropped", "policy drop"),
        (
            "ip",
            "filter hook prerouting priority raw; ip daddr 172.30.1.1 drop",
            "dropped",
            "(prerouting) drops it: rule 1: ip daddr",
        ),
        (
            "inet",
            "filter hook forward priority 0; tcp dport 8080 reject with tcp reset",
            "refused",
            "(forward) refuses it: rule 1: tcp dport",
        ),
        (
            "ip",
            "filter hook postrouting priority 300; ip daddr 10.1.0.1 counter drop",
            "dropped",
            "(postrouting) drops it: rule 1: ip daddr",
        ),
    ];
    for (family, chain, verdict, words) in cases {
        let name = format!("{family} other");
        stranger(&node, &name, chain);
        match verdict {
            "refused" => is_refused(&mut node, ONE),
            _ => is_dropped(&mut node, ONE),
        }
        node.world.flush_conntrack().expect("connections can be forgotten");
        incident(&node, &asked(ONE), "foreign-rule", verdict, &[&format!("{name} stranger ("), words]);
        node.nft(&[&format!("delete table {name}")]).expect("it is there");
        is_well(&node, &asked(ONE), &all);
    }
    // What the node sends itself meets other chains.
    stranger(&node, "inet egress", "filter hook output priority 0; ip daddr 10.1.0.1 drop");
    assert_eq!(node.fate_from(ip(NODE_IP), Protocol::Tcp, ONE), Fate::Drop);
    node.world.flush_conntrack().expect("connections can be forgotten");
    incident(
        &node,
        ONE,
        "foreign-rule",
        "dropped",
        &["inet egress stranger (output) drops it: rule 1: ip daddr 10.1.0.1 drop"],
    );
    node.wait_forward("who comes from outside does not", ONE, &["10.1.0.1:8080"]);
    is_well(&node, &asked(ONE), &all);
    node.nft(&["delete table inet egress"]).expect("it is there");
    // An endpoint of the node itself is behind other hooks.
    let host = format!("{NODE_IP}:7070");
    node.write("host.yaml", &yaml(&web("host", "172.30.1.20", &[&host])));
    node.wait_forward("it is served", "172.30.1.20:80", &[&host]);
    is_well(&node, &asked("172.30.1.20:80"), &all);
    stranger(&node, "ip other", "filter hook input priority 0; tcp dport 7070 drop");
    is_dropped(&mut node, "172.30.1.20:80");
    node.world.flush_conntrack().expect("connections can be forgotten");
    let words = ["ip other stranger (input) drops it: rule 1: tcp dport 7070 drop", &host];
    incident(&node, &asked("172.30.1.20:80"), "foreign-rule", "dropped", &words);
    is_well(&node, &asked(ONE), &all);
    node.nft(&["delete table ip other"]).expect("it is there");
    is_well(&node, &asked("172.30.1.20:80"), &all);
    // Nobody can tell, and it is said which rule.
    let rule = "limit rate over 400/second drop";
    stranger(&node, "inet other", &format!("filter hook forward priority 0; {rule}"));
    node.world.flush_conntrack().expect("connections can be forgotten");
    incident(
        &node,
        &asked(ONE),
        "foreign-rule-unclear",
        "unsure",
        &["inet other stranger (forward) may drop it", rule],
    );
}

#[test]
fn a_last_rule_of_iptables_that_rejects_is_named() {
    let Some(mut node) = started() else { return };
    for program in ["iptables-nft", "iptables-legacy"] {
        let made = try_sh(
            &node,
            &format!(
                "{program} -A FORWARD -s 198.18.0.0/15 -j ACCEPT && {program} -A FORWARD -d 198.18.0.0/15 -j ACCEPT && \
                 {program} -A FORWARD -j REJECT"
            ),
        );
        if !made.status.success() {
            skip(program, String::from_utf8_lossy(&made.stderr));
            continue;
        }
        is_refused(&mut node, ONE);
        let family = if program == "iptables-nft" { "ip" } else { program };
        let words = [
            &format!("{family} filter FORWARD (forward) refuses it: rule 3: ") as &str,
            if family == "ip" { "" } else { "-j REJECT" },
        ];
        incident(&node, &asked(ONE), "foreign-rule", "refused", &words);
        // The rules before it accept, and what comes back.
        let fate = node.fate_from(ip("198.18.0.1"), Protocol::Tcp, ONE);
        assert!(matches!(fate, Fate::Forward { .. }), "{program}: {fate:?}");
        is_well(&node, &format!("198.18.0.1 {ONE}"), &["foreign-rule"]);
        sh(&node, &format!("{program} -F FORWARD"));
        is_well(&node, &asked(ONE), &["foreign-rule", "foreign-rule-unclear"]);
    }
}

#[test]
fn what_kube_proxy_has_left_is_named_and_cleaned() {
    let Some(mut node) = started() else { return };
    let all = ["kube-proxy-leftover", "translated-elsewhere", "foreign-rule"];
    let clean = |node: &mut Node, words: &[&str]| {
        let Fate::Forward { endpoint, .. } = node.fate(Protocol::Tcp, ONE) else { panic!("{words:?}") };
        assert_eq!(endpoint, socket("10.1.0.9:9090"), "{words:?}");
        let fix = incident(node, &asked(ONE), "kube-proxy-leftover", "not-ours", words);
        assert_eq!(fix, "stop kube-proxy, then: nftproxyd cleanup --kube-proxy");
        let cleaned = run_to_end(node, true, &["cleanup", "--kube-proxy"]);
        assert_eq!(cleaned.status, Some(0), "{cleaned:?}");
        // It has taken our tables, too.
        node.kill();
        node.start(&config());
        node.wait_forward("it is ours", ONE, &["10.1.0.1:8080"]);
        is_well(node, &asked(ONE), &all);
    };
    is_well(&node, &asked(ONE), &all);
    let table = "table ip kube-proxy {\n chain services {\n  ip daddr 172.30.1.1 tcp dport 80 dnat to 10.1.0.9:9090\n }\n \
                 chain nat-prerouting {\n  type nat hook prerouting priority dstnat;\n  jump services\n }\n}\n";
    node.world.nft(&["-f", "-"], table).expect("a table");
    clean(
        &mut node,
        &["ip kube-proxy nat-prerouting (prerouting) translates it before nftproxyd can", "10.1.0.9:9090"],
    );
    for program in ["iptables-nft", "iptables-legacy"] {
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                     -A KUBE-SERVICES -d 172.30.1.1/32 -p tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA\n\
                     -A KUBE-SVC-AAAAAAAAAAAAAAAA -p tcp -j DNAT --to-destination 10.1.0.9:9090\nCOMMIT\n";
        std::fs::write(node.file("rules"), rules).expect("a file can be written");
        let made = try_sh(&node, &format!("{program}-restore --noflush {}", node.file("rules").display()));
        if !made.status.success() {
            skip(program, String::from_utf8_lossy(&made.stderr));
            continue;
        }
        let family = if program == "iptables-nft" { "ip" } else { program };
        let words = format!("{family} nat PREROUTING (prerouting) translates it before nftproxyd can");
        clean(&mut node, &[&words, "KUBE-SVC-AAAAAAAAAAAAAAAA"]);
    }
}

#[test]
fn settings_and_routes_of_the_node_are_named() {
    let Some(mut node) = started() else { return };
    let all = ["not-forwarded", "reverse-path", "no-route-to-endpoint", "no-route-to-service"];
    for setting in ["net.ipv4.ip_forward", "net.ipv4.conf.world0.forwarding"] {
        is_well(&node, &asked(ONE), &all);
        sh(&node, &format!("sysctl -q -w {setting}=0"));
        node.wait_fate(setting, ONE, |fate| !matches!(fate, Fate::Forward { .. }));
        node.world.flush_conntrack().expect("connections can be forgotten");
        let words = [&format!("packets are not forwarded ({setting} = 0)") as &str];
        let fix = incident(&node, &asked(ONE), "not-forwarded", "dropped", &words);
        // What the node sends itself goes on.
        let fate = node.fate_from(ip(NODE_IP), Protocol::Tcp, ONE);
        assert!(matches!(fate, Fate::Forward { .. }), "{fate:?}");
        is_well(&node, ONE, &all);
        mend(&node, &fix, "sysctl -w");
        node.wait_forward(setting, ONE, &["10.1.0.1:8080"]);
    }
    is_well(&node, &asked(ONE), &all);
    let six = "[fd00:172:30::1]:80";
    let asked_six = format!("{CLIENT_V6} {six}");
    sh(&node, "sysctl -q -w net.ipv6.conf.all.forwarding=0");
    node.wait_fate("not forwarded", six, |fate| !matches!(fate, Fate::Forward { .. }));
    node.world.flush_conntrack().expect("connections can be forgotten");
    let words = ["packets are not forwarded (net.ipv6.conf.all.forwarding = 0)"];
    let fix = incident(&node, &asked_six, "not-forwarded", "dropped", &words);
    mend(&node, &fix, "sysctl -w");
    node.wait_forward("forwarded", six, &["[fd00:1::1]:8080", "[fd00:1::2]:8080"]);
    is_well(&node, &asked_six, &all);

    // The way back of the client is another interface than that by which it comes.
    sh(&node, "ip route add 203.0.113.0/24 dev alt0");
    node.wait_forward("nobody minds", ONE, &["10.1.0.1:8080"]);
    let by_world = format!("{} --arriving-by world0", asked(ONE));
    is_well(&node, &by_world, &all);
    sh(&node, "sysctl -q -w net.ipv4.conf.world0.rp_filter=1");
    is_dropped(&mut node, ONE);
    node.world.flush_conntrack().expect("connections can be forgotten");
    let words = ["the kernel drops packets of 203.0.113.7 for their source (net.ipv4.conf.world0.rp_filter = 1)"];
    let fix = incident(&node, &by_world, "reverse-path", "dropped", &words);
    is_well(&node, &asked(ONE), &all);
    mend(&node, &fix, "sysctl -w");
    node.wait_forward("any way back will do", ONE, &["10.1.0.1:8080"]);
    is_well(&node, &by_world, &all);
    sh(&node, "ip route del 203.0.113.0/24 dev alt0; sysctl -q -w net.ipv4.conf.world0.rp_filter=0");

    // One endpoint of three has no route.
    sh(&node, "ip route add unreachable 10.1.0.3/32");
    node.wait_fate("it is the one of three", TO, |fate| !matches!(fate, Fate::Forward { .. }));
    node.world.flush_conntrack().expect("connections can be forgotten");
    let words = ["this node has no route to it (unreachable)", "10.1.0.3:8080"];
    incident(&node, &asked(TO), "no-route-to-endpoint", "dropped", &words);
    is_well(&node, &asked(ONE), &all);
    sh(&node, "ip route del unreachable 10.1.0.3/32");
    is_well(&node, &asked(TO), &all);
}

#[test]
fn a_node_without_a_route_to_cluster_ips_is_told_so() {
    let Some(mut node) = started() else { return };
    let connect = |node: &Node, to: &str| {
        let to = socket(to);
        let connect = move || TcpStream::connect_timeout(&to, Duration::from_millis(50)).map(drop);
        node.world.run(move || connect().expect_err("nobody answers").kind())
    };
    for (to, endpoint, ip_command, range) in
        [(ONE, "10.1.0.0/16", "ip", "172.30.0.0/16"), ("[fd00:172:30::1]:80", "fd00:1::/64", "ip -6", "fd00:172:30:")]
    {
        assert_eq!(connect(&node, to), std::io::ErrorKind::TimedOut);
        is_well(&node, to, &["no-route-to-service"]);
        sh(&node, &format!("{ip_command} route add {endpoint} dev world0; {ip_command} route del default"));
        assert_eq!(connect(&node, to), std::io::ErrorKind::NetworkUnreachable);
        let address = socket(to).ip().to_string();
        let words = [&format!("this node has no route to {address} (no route): connect fails at once") as &str];
        let fix = incident(&node, to, "no-route-to-service", "refused", &words);
        assert!(fix.contains(range) && fix.ends_with(" dev world0"), "{fix}");
        mend(&node, &fix, &format!("{ip_command} route add"));
        assert_eq!(connect(&node, to), std::io::ErrorKind::TimedOut);
        is_well(&node, to, &["no-route-to-service"]);
    }
    // A client that the node does not know a way back to.
    let lost = asked(ONE);
    assert!(matches!(node.fate(Protocol::Tcp, ONE), Fate::Forward { .. }));
    node.world.flush_conntrack().expect("connections can be forgotten");
    incident(&node, &lost, "interface-unknown", "unsure", &["this node has no route back to 203.0.113.7"]);
    sh(&node, "ip route add default dev world0");
    is_well(&node, &lost, &["interface-unknown", "reverse-path"]);
}

#[test]
fn pods_that_the_configuration_does_not_know_are_named() {
    let Some(mut node) = Node::unprotected() else { return };
    sysctls(&node);
    write_everything(&node);
    let mut wrong = config();
    wrong["clusterCIDR"] = json!("10.99.0.0/16,fd00:1::/64");
    node.start(&wrong);
    let pod = "10.1.0.77";
    let question = format!("{pod} {ONE}");
    let Fate::Forward { source, .. } = node.fate_from(ip(pod), Protocol::Tcp, ONE) else { panic!("it is served") };
    assert_eq!(source, ip(NODE_IP));
    node.world.flush_conntrack().expect("connections can be forgotten");
    let said = explain(&node, &question);
    let words = ["10.1.0.77 is a pod (it is in podCIDRs 10.1.0.0/16 of this Node)", "pods have 10.99.0.0/16"];
    said.notes("pod-masqueraded", &words);
    assert_eq!((said.get("verdict"), &said.get("endpoints")[0]["sees"]), (&json!("reached"), &json!(NODE_IP)));
    let text = run_to_end(&node, true, &["explain", pod, ONE]).stdout;
    assert!(text.contains("\nnote: 10.1.0.77 is a pod") && text.contains("\n   fix: set clusterCIDR to"), "{text}");
    // Others are masqueraded as they have to be.
    is_well(&node, &asked(ONE), &["pod-masqueraded"]);
    node.stop();
    node.start(&config());
    let Fate::Forward { source, .. } = node.fate_from(ip(pod), Protocol::Tcp, ONE) else { panic!("it is served") };
    assert_eq!(source, ip(pod));
    is_well(&node, &question, &["pod-masqueraded"]);
    assert_eq!(explain(&node, &question).get("endpoints")[0]["sees"], Value::Null);
}

/// Pods of a node behind its bridge `cni7`: 10.1.9.1, .2 and so on.
fn pods<const COUNT: usize>(node: &Node) -> [Namespace; COUNT] {
    sh(node, "ip link add cni7 type bridge; ip link set cni7 up; ip addr add 10.1.9.254/24 dev cni7");
    std::array::from_fn(|number| {
        let pod = Namespace::further().expect("a node can be made, and so can this");
        let (id, number) = (pod.id(), number + 1);
        sh(
            node,
            &format!(
                "ip link add pod{number} type veth peer name eth0 netns {id}; ip link set pod{number} master cni7 up"
            ),
        );
        let lines = format!(
            "ip link set eth0 up; ip addr add 10.1.9.{number}/24 dev eth0; ip route add default via 10.1.9.254"
        );
        let run = move || std::process::Command::new("sh").args(["-c", &lines]).status().expect("there is a shell");
        assert!(pod.run(run).success());
        pod
    })
}

/// Takes connections in a pod, as long as the test runs.
fn listen(pod: &Namespace, at: &'static str) {
    pod.run(move || {
        let listener = TcpListener::bind(at).expect("nobody else is there");
        std::thread::spawn(move || listener.incoming().map_while(Result::ok).collect::<Vec<_>>());
    });
}

#[test]
fn endpoints_that_do_not_answer_are_named() {
    let Some(mut node) = started() else { return };
    let [pod] = pods::<1>(&node);
    listen(&pod, "10.1.9.1:7777");
    let services =
        [web("right", "172.30.1.21", &["10.1.9.1:7777"]), web("wrong", "172.30.1.22", &["10.1.9.1:9999"])].concat();
    node.write("pods.yaml", &yaml(&services));
    let reason = "endpoint-does-not-answer";
    let connect = |node: &Node, to: &str| {
        let to: SocketAddr = socket(to);
        node.world.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|error| error.kind()))
    };
    let (right, wrong) = ("172.30.1.21:80", "172.30.1.22:80");
    let mut open = None;
    node.eventually("it is served", |node| match connect(node, right) {
        Ok(stream) => {
            open = Some(stream);
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    });
    // Nobody has connected yet: as far as is known, it is well. Somebody who tries knows better.
    is_well(&node, wrong, &[reason]);
    let probed = format!("--probe {wrong}");
    let fix = incident(
        &node,
        &probed,
        reason,
        "not-served",
        &["10.1.9.1:9999", "it does not answer this node (Connection refused"],
    );
    assert!(fix.contains("targetPort"), "{fix}");
    is_well(&node, &format!("--probe {right}"), &[reason]);
    assert_eq!(connect(&node, wrong).expect_err("nobody listens"), std::io::ErrorKind::ConnectionRefused);
    // The kernel forgets a connection at once that was refused: who does not try knows nothing of it.
    let said = explain(&node, wrong);
    said.is_silent(reason);
    assert_eq!(said.get("facts"), &json!([["answers", "not known, as nobody is connected; --probe tries"]]));
    assert_eq!(explain(&node, &probed).get("facts"), &json!([]));
    open = connect(&node, right).ok();
    let said = explain(&node, right);
    assert!(open.is_some() && said.get("verdict") == "reached", "{:#}", said.get("causes"));
    assert!(said.get("endpoints")[0]["answered"].as_u64() >= Some(1), "{:#}", said.get("endpoints"));
    said.is_silent(reason);

    // Who does not answer at all.
    node.world.flush_conntrack().expect("connections can be forgotten");
    for _ in 0..2 {
        assert!(matches!(node.fate(Protocol::Tcp, ONE), Fate::Forward { .. }));
    }
    let words = ["10.1.0.1:8080", "it has answered none of 2 connections"];
    incident(&node, &asked(ONE), reason, "not-served", &words);
    // As with UDP, of which no more can be known.
    let port = json!({"name": "dns", "port": 53, "protocol": "UDP"});
    let dns = service("shop", "dns", &[ip("172.30.1.24")], &json!({"ports": [port]}));
    node.write("dns.yaml", &yaml(&[dns, super::slice_of("dns", ("dns", Protocol::Udp), &["10.1.0.53:5353"])]));
    node.eventually("it is served", |node| match node.fate(Protocol::Udp, "172.30.1.24:53") {
        Fate::Forward { .. } => Ok(()),
        fate => Err(format!("{fate:?}")),
    });
    let words = ["10.1.0.53:5353", "it has answered none of "];
    incident(&node, &asked("172.30.1.24:53"), reason, "not-served", &words);
    is_well(&node, &asked("172.30.1.24:53"), &[reason]);
    // It has to listen where the Service says.
    listen(&pod, "10.1.9.1:9999");
    node.world.flush_conntrack().expect("connections can be forgotten");
    connect(&node, wrong).expect("somebody listens");
    let said = explain(&node, &probed);
    said.is_silent(reason);
    assert_eq!(said.get("verdict"), "reached");
}

#[test]
fn a_bridge_whose_answers_are_not_seen_is_named() {
    let Some(mut node) = started() else { return };
    if !std::path::Path::new("/proc/sys/net/bridge").exists() {
        return skip("br_netfilter", "it is not there");
    }
    let [client, server] = pods::<2>(&node);
    listen(&server, "10.1.9.2:7777");
    node.write("pods.yaml", &yaml(&web("near", "172.30.1.23", &["10.1.9.2:7777"])));
    let (to, question) = ("172.30.1.23:80", "10.1.9.1 172.30.1.23:80");
    let connect = || {
        let connect = || TcpStream::connect_timeout(&socket("172.30.1.23:80"), Duration::from_millis(900)).map(drop);
        client.run(connect).map_err(|error| error.to_string())
    };
    sh(&node, "sysctl -q -w net.bridge.bridge-nf-call-iptables=1");
    node.eventually("it is served", |_| connect());
    is_well(&node, question, &["bridge"]);
    sh(&node, "sysctl -q -w net.bridge.bridge-nf-call-iptables=0");
    connect().expect_err("the answer is not translated back");
    node.world.flush_conntrack().expect("connections can be forgotten");
    let words = ["client and endpoint are behind bridge cni7, whose answers pass connection tracking by"];
    let fix = incident(&node, question, "bridge", "dropped", &words);
    // Who is not behind it does not mind.
    is_well(&node, &asked(to), &["bridge"]);
    mend(&node, &fix, "sysctl -w");
    connect().expect("it is translated back");
    is_well(&node, question, &["bridge"]);
}

#[test]
fn next_hops_that_nobody_answers_for_are_named() {
    let Some(mut node) = started() else { return };
    let [pod] = pods::<1>(&node);
    listen(&pod, "10.1.9.1:7777");
    // Nobody has 10.1.9.7, nor the router to 10.1.77.0/24.
    sh(&node, "ip route add 10.1.77.0/24 via 10.1.9.8");
    let services = [
        web("there", "172.30.1.31", &["10.1.9.1:7777"]),
        web("gone", "172.30.1.32", &["10.1.9.7:7777"]),
        web("behind", "172.30.1.33", &["10.1.77.1:7777"]),
    ];
    node.write("pods.yaml", &yaml(&services.concat()));
    let connect = |node: &Node, to: &str| {
        let to: SocketAddr = socket(to);
        node.world.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(4)).map_err(|error| error.kind()))
    };
    let (there, gone, behind) = ("172.30.1.31:80", "172.30.1.32:80", "172.30.1.33:80");
    node.eventually("it is served", |node| connect(node, there).map(drop).map_err(|error| error.to_string()));
    let reason = "neighbour-does-not-answer";
    // Nobody has been asked for yet.
    [there, gone, behind].iter().for_each(|to| is_well(&node, to, &[reason]));
    for (to, words) in [
        (gone, ["10.1.9.7:7777", "nobody answers ARP for 10.1.9.7 on cni7 (FAILED)"]),
        (behind, ["10.1.77.1:7777", "nobody answers ARP for 10.1.9.8 on cni7 (FAILED), the router on the way"]),
    ] {
        let error = connect(&node, to).expect_err("nobody is there");
        assert_eq!(error, std::io::ErrorKind::HostUnreachable, "{to}");
        node.world.flush_conntrack().expect("connections can be forgotten");
        let fix = incident(&node, to, reason, "not-served", &words);
        assert!(fix.starts_with("ip neigh show 10.1.9."), "{fix}");
    }
    is_well(&node, there, &[reason]);
    // Somebody comes, and is asked for again.
    pod.run(|| {
        let add = ["addr", "add", "10.1.9.7/24", "dev", "eth0"];
        assert!(std::process::Command::new("ip").args(add).status().expect("ip is there").success());
    });
    listen(&pod, "10.1.9.7:7777");
    connect(&node, gone).expect("somebody is there");
    is_well(&node, gone, &[reason]);
}

#[test]
fn what_cannot_be_probed_is_said_and_no_datagram_is_sent() {
    let Some(mut node) = started() else { return };
    let port = json!({"name": "dns", "port": 53, "protocol": "UDP"});
    let dns = service("shop", "dns", &[ip("172.30.1.24")], &json!({"ports": [port]}));
    node.write("dns.yaml", &yaml(&[dns, super::slice_of("dns", ("dns", Protocol::Udp), &["10.1.0.53:5353"])]));
    let question = "--proto=udp 172.30.1.24:53";
    node.eventually("it is served", |node| match explain(node, question).get("service") {
        Value::Null => Err("it is not there".to_owned()),
        _ => Ok(()),
    });
    let asked = explain(&node, question);
    let said = explain(&node, &format!("--probe {question}"));
    let answers = said.get("facts")[0].clone();
    assert_eq!(answers[0], "answers", "{answers}");
    assert!(
        answers[1].as_str().is_some_and(|it| it.contains("as udp cannot be probed: an endpoint answers")),
        "{answers}"
    );
    assert_eq!((said.get("verdict"), said.get("causes")), (asked.get("verdict"), asked.get("causes")));
    assert_eq!(said.get("endpoints")[0]["unanswered"], 0, "nothing was sent");
    let text = run_to_end(&node, true, &["explain", "--probe", "--proto=udp", "172.30.1.24:53"]).stdout;
    assert!(text.lines().any(|line| line.contains("not asked for, as udp cannot be probed: ")), "{text}");
}
