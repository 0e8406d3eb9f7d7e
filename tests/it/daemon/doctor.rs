//! What the doctor says of a node in which something is really so, and that it says nothing of one that is well.

use std::io::ErrorKind;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use super::api::{apply, node_with_api, start};
use super::{NODE_NAME, Node, node_object, run_to_end, socket, web, write_everything, yaml};
use crate::netns::skip;
use crate::support::objects::service_cidr;
use crate::support::outcome::Fate;

/// A finding, as JSON has it.
#[derive(Debug, serde::Deserialize)]
struct Finding {
    subject: String,
    grade: String,
    what: String,
    proof: Vec<String>,
    fix: String,
}

/// A report.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    grade: String,
    exit_status: i32,
    findings: Vec<Finding>,
}

impl Report {
    /// What is said about a subject, but for what is well.
    fn about(&self, subject: &str) -> Vec<&Finding> {
        self.findings.iter().filter(|finding| finding.subject == subject && finding.grade != "ok").collect()
    }

    /// The one finding about a subject, which has this grade and these words in what it says and shows.
    #[track_caller]
    fn one(&self, subject: &str, grade: &str, words: &[&str]) -> &Finding {
        let about = self.about(subject);
        let [finding] = &about[..] else { panic!("{subject}: {self:#?}") };
        let text = format!("{} | {}", finding.what, finding.proof.join(" | "));
        assert_eq!(finding.grade, grade, "{text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        finding
    }

    /// Nothing is to be done.
    #[track_caller]
    fn is_well(&self) {
        let bad: Vec<_> = self.findings.iter().filter(|it| !["ok", "note"].contains(&it.grade.as_str())).collect();
        assert!(bad.is_empty() && self.exit_status == 0, "{bad:#?}");
    }
}

fn doctor(node: &Node) -> Report {
    let ended = run_to_end(node, true, &["doctor", "-o", "json"]);
    let report: Report = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    assert_eq!(ended.status, Some(report.exit_status), "{}", ended.stdout);
    let expected = match report.grade.as_str() {
        "ok" | "note" => 0,
        "wrong" => 1,
        "check" => 3,
        "unread" => 4,
        other => panic!("{other}"),
    };
    assert_eq!(report.exit_status, expected, "{}", ended.stdout);
    report
}

/// Runs a line of a shell in the node.
pub(super) fn try_sh(node: &Node, line: &str) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    node.world.run(move || command.output()).expect("there is a shell")
}

#[track_caller]
pub(super) fn sh(node: &Node, line: &str) {
    let output = try_sh(node, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Types a fix, from where the command begins.
#[track_caller]
fn mend(node: &Node, finding: &Finding, command: &str) {
    let (_, rest) = finding.fix.split_once(command).unwrap_or_else(|| panic!("{command}: {finding:?}"));
    let line = format!("{command}{}", rest.split(';').next().unwrap_or_default());
    sh(node, &line);
}

/// A node that is as nodes are.
fn healthy(config: &Value) -> Option<Node> {
    let mut node = Node::new()?;
    sysctls(&node);
    write_everything(&node);
    node.start(config);
    Some(node)
}

pub(super) fn sysctls(node: &Node) {
    sh(node, "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
}

fn config() -> Value {
    // What the namespace cannot change is not asked for.
    json!({"clusterCIDR": "10.1.0.0/16,fd00:1::/64", "conntrack": {"maxPerCore": 0}})
}

/// Docker's rules beside it, old and new, and chains of firewalls that let Services through.
#[test]
fn a_healthy_node_is_told_so() {
    let Some(mut node) = healthy(&config()) else { return };
    let report = doctor(&node);
    report.is_well();
    let mut subjects: Vec<&str> = report.findings.iter().map(|finding| finding.subject.as_str()).collect();
    subjects.dedup();
    assert_eq!(subjects[..3], ["daemon", "api-server", "tables"], "{report:#?}");
    let daemon = &report.findings[0].what;
    assert!(daemon.starts_with("the daemon runs: nftproxyd ") && daemon.ends_with(" s, healthy, ready"), "{daemon}");
    for subject in ["kernel", "forwarding", "connections", "pod-range", "node-ports", "raw", "route-localnet"] {
        assert!(subjects.contains(&subject), "{subject}: {report:#?}");
    }

    for program in ["iptables-nft", "iptables-legacy"] {
        if !try_sh(&node, &format!("{program} -t raw -S && {program} -S")).status.success() {
            skip(program, "it does not work here");
            continue;
        }
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/kube-proxy/docker.rules");
        sh(&node, &format!("{program}-restore {rules}"));
        sh(&node, &format!("{program} -I DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT"));
        // Docker 28 keeps others from containers, and a DNS cache of the node has the address of a Service.
        sh(&node, &format!("{program} -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP"));
        sh(&node, "ip addr replace 172.30.1.1/32 dev lo");
        sh(&node, &format!("{program} -t raw -A PREROUTING -d 172.30.1.1/32 -p tcp -m tcp --dport 80 -j NOTRACK"));
        let cache = node.world.run(|| std::net::TcpListener::bind(socket("172.30.1.1:80"))).expect("it is the node's");
        let report = doctor(&node);
        report.is_well();
        assert!(report.about("service-addresses").is_empty(), "{report:#?}");
        sh(&node, &format!("{program} -t raw -D PREROUTING -d 172.30.1.1/32 -p tcp -m tcp --dport 80 -j NOTRACK"));
        let report = doctor(&node);
        assert!(report.about("service-addresses").iter().any(|finding| finding.grade == "check"), "{report:#?}");
        sh(&node, &format!("{program} -t raw -A PREROUTING -d 172.30.1.1/32 -p tcp -m tcp --dport 80 -j NOTRACK"));
        drop(cache);
        sh(&node, "ip addr del 172.30.1.1/32 dev lo");
        doctor(&node).one("raw", "check", &["PREROUTING", "172.30.1.1:80 (tcp) is Service shop/web"]);
        sh(&node, &format!("{program} -t raw -F; {program} -F; {program} -P FORWARD ACCEPT"));
    }
    // As flannel opens a host that drops, and a firewall for what comes to the host itself.
    sh(&node, "iptables-nft -P FORWARD DROP; iptables-nft -N FLANNEL-FWD; iptables-nft -A FORWARD -j FLANNEL-FWD");
    sh(
        &node,
        "iptables-nft -A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT; iptables-nft -A FLANNEL-FWD -d 10.1.0.0/16 -j ACCEPT",
    );
    let report = doctor(&node);
    report.is_well();
    let accepts = |finding: &Finding| {
        finding
            .what
            .contains("FORWARD drops what no rule accepts, at hook forward, but it accepts packets to pods before")
    };
    assert!(report.findings.iter().any(accepts), "{report:#?}");
    sh(&node, "iptables-nft -F FLANNEL-FWD");
    doctor(&node).one("firewall", "check", &["FORWARD drops what no rule accepts"]);
    sh(&node, "iptables-nft -P FORWARD ACCEPT; iptables-nft -P INPUT DROP; iptables-nft -A INPUT -i lo -j ACCEPT");
    doctor(&node).is_well();
    // People read the same.
    let text = run_to_end(&node, true, &["doctor"]);
    assert_eq!(text.status, Some(0), "{}", text.stdout);
    assert!(text.stdout.ends_with("=> nothing is wrong (exit status 0)\n"), "{}", text.stdout);
    node.stop();
}

#[test]
fn without_daemon_and_tables_nothing_is_well() {
    let Some(mut node) = healthy(&config()) else { return };
    node.stop();
    let report = doctor(&node);
    assert_eq!((report.grade.as_str(), report.exit_status), ("check", 3), "{report:#?}");
    report.one("daemon", "check", &["no daemon says how it is", "what is in the kernel goes on working"]);
    report.one("api-server", "unread", &["only the daemon knows"]);
    assert_eq!(report.about("tables").len(), 0, "{report:#?}");
    let cleaned = run_to_end(&node, true, &["cleanup"]);
    assert_eq!(cleaned.status, Some(0), "{cleaned:?}");
    let report = doctor(&node);
    assert_eq!((report.grade.as_str(), report.exit_status), ("wrong", 1), "{report:#?}");
    let missing: Vec<&str> = report.about("tables").iter().map(|finding| finding.what.as_str()).collect();
    let expected = [
        "table ip nftproxyd is not there: no Service of IPv4 is served",
        "table ip6 nftproxyd is not there: no Service of IPv6 is served",
    ];
    assert_eq!(missing, expected);
    // Who may not look is told so, not that all is well.
    let ended = run_to_end(&node, false, &["doctor", "-o", "json"]);
    let report: Report = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(ended.status != Some(0) && report.about("tables")[0].grade == "unread", "{report:#?}");
}

/// Each damage by itself, while no daemon mends it, and with one that cannot tell what it depends on.
#[test]
fn damaged_tables_are_named() {
    let Some(node) = Node::unprotected() else { return };
    let mut node = node;
    sysctls(&node);
    write_everything(&node);
    node.start(&config());
    node.stop();
    let damages = [
        ("add table ip nftproxyd { flags dormant; }", "ip", "wrong", "it is dormant"),
        ("flush chain ip nftproxyd services", "ip", "wrong", "without the rules that they must have: services"),
        ("flush chain ip6 nftproxyd nat-prerouting", "ip6", "wrong", "must have: nat-prerouting"),
        ("insert rule ip nftproxyd nat-output accept", "ip", "wrong", "chains with other rules: nat-output"),
        ("add rule ip6 nftproxyd reject-it accept", "ip6", "wrong", "chains with other rules: reject-it"),
        ("delete chain ip nftproxyd nat-input", "ip", "wrong", "missing chains: nat-input"),
        (
            "delete chain ip6 nftproxyd nat-prerouting; add chain ip6 nftproxyd nat-prerouting \
             { type nat hook prerouting priority 7; }",
            "ip6",
            "wrong",
            "another hook or priority: nat-prerouting",
        ),
        ("flush map ip nftproxyd dispatch", "ip", "wrong", "map dispatch lacks"),
        ("add chain ip nftproxyd mine", "ip", "check", "not of nftproxyd: chain mine"),
    ];
    for (damage, family, grade, words) in damages {
        for line in damage.split("; add ") {
            let line = if line.starts_with("chain ") { format!("add {line}") } else { line.to_owned() };
            node.nft(&[&line]).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let report = doctor(&node);
        report.one("tables", grade, &[&format!("table {family} nftproxyd"), words]);
        let status = run_to_end(&node, true, &["status"]).stdout;
        assert!(status.contains(&format!("\ntable     {family} nftproxyd: DAMAGED: ")), "{damage}: {status}");
        node.start(&config());
        node.stop();
        assert_eq!(doctor(&node).about("tables").len(), 0, "it is mended: {damage}");
    }
}

#[test]
fn settings_of_interfaces_are_named() {
    let Some(mut node) = healthy(&config()) else { return };
    let (v4, v6) =
        (("172.30.1.1:80", ["10.1.0.1:8080"]), ("[fd00:172:30::1]:80", ["[fd00:1::1]:8080", "[fd00:1::2]:8080"]));
    sh(&node, "sysctl -q -w net.ipv4.conf.world0.forwarding=0");
    node.wait_fate("they are not", v4.0, |fate| !matches!(fate, Fate::Forward { .. }));
    let report = doctor(&node);
    let words = ["come in by world0 are not forwarded", "net.ipv4.conf.world0.forwarding = 0"];
    mend(&node, report.one("forwarding", "check", &words), "sysctl -w");
    node.wait_forward("they are", v4.0, &v4.1);
    // With IPv6 that of an interface has no such effect.
    sh(&node, "sysctl -q -w net.ipv6.conf.world0.forwarding=0");
    node.wait_forward("they still are", v6.0, &v6.1);
    doctor(&node).is_well();
    sh(&node, "sysctl -q -w net.ipv6.conf.all.forwarding=0");
    let report = doctor(&node);
    let finding = report.one("forwarding", "check", &["IPv6 packets are not forwarded"]);
    mend(&node, finding, "sysctl -w");

    sh(&node, "sysctl -q -w net.ipv4.conf.all.route_localnet=1");
    let report = doctor(&node);
    let finding = report.one("route-localnet", "check", &["what listens on 127.0.0.1", "all.route_localnet = 1"]);
    mend(&node, finding, "sysctl -w");
    doctor(&node).is_well();
    node.stop();
}

#[test]
fn a_missing_route_to_cluster_ips_is_named() {
    let Some(mut node) = healthy(&config()) else { return };
    let connect = |node: &Node| {
        let to = ["172.30.1.1:80", "[fd00:172:30::1]:80"].map(socket);
        let connect = |to| std::net::TcpStream::connect_timeout(&to, Duration::from_millis(50)).map(drop);
        node.world.run(move || to.map(|to| connect(to).expect_err("nobody answers").kind()))
    };
    assert_eq!(connect(&node), [ErrorKind::TimedOut; 2]);
    sh(&node, "ip route del default; ip -6 route del default");
    assert_eq!(connect(&node), [ErrorKind::NetworkUnreachable; 2]);
    let report = doctor(&node);
    let about = report.about("route");
    assert_eq!(about.len(), 2, "{report:#?}");
    for (finding, words) in about.iter().zip(["cluster IPs in 172.30.", "cluster IPs in fd00:172:30:"]) {
        assert!(finding.grade == "check" && finding.what.contains(words), "{finding:?}");
        assert!(finding.proof[0].contains("route get") && finding.proof[0].ends_with(": no route"), "{finding:?}");
    }
    mend(&node, about[0], "ip route add");
    mend(&node, about[1], "ip -6 route add");
    // The endpoints are reached by the default route.
    sh(&node, "ip route add 10.1.0.0/16 dev world0; ip -6 route add fd00:1::/64 dev world0");
    assert_eq!(connect(&node), [ErrorKind::TimedOut; 2]);
    doctor(&node).is_well();
    sh(&node, "ip route replace unreachable 172.30.0.0/16");
    doctor(&node).one("route", "check", &["ip route get 172.30.", ": unreachable"]);
    node.stop();
}

#[test]
fn who_listens_where_a_service_is_is_named() {
    let Some(mut node) = healthy(
        &json!({"clusterCIDR": "10.1.0.0/16", "nodePortAddresses": ["primary"], "conntrack": {"maxPerCore": 0}}),
    ) else {
        return;
    };
    let listen = |at: &'static str| {
        node.world.run(move || std::net::TcpListener::bind(socket(at))).unwrap_or_else(|error| panic!("{at}: {error}"))
    };
    for silent in ["127.0.0.1:30080", "192.0.2.77:30080", "0.0.0.0:30081", "[::1]:30080"] {
        let listener = listen(silent);
        assert_eq!(doctor(&node).about("node-ports").len(), 0, "{silent}");
        drop(listener);
    }
    // Which it is, chance decides: while another test starts a program, there is a copy of every open socket.
    let this = "and process ";
    for named in ["192.0.2.10:30080", "0.0.0.0:30080", "[::]:30080"] {
        let listener = listen(named);
        let words = ["node port 30080/tcp is Service shop/balanced", this, &format!("tcp {named} listens")];
        doctor(&node).one("node-ports", "check", &words);
        drop(listener);
    }
    // An address of the node's own that is a Service's: what listens there is hidden, and otherwise it may be meant so.
    let mut own = web("own", "172.30.1.6", &["10.1.0.1:8080"]);
    own[0]["spec"]["externalIPs"] = json!(["192.0.2.10"]);
    node.write("own.yaml", &yaml(&own));
    node.eventually("it is served", |node| match node.nft(&["list", "map", "ip", "nftproxyd", "service-ips"]) {
        Ok(map) if map.contains("192.0.2.10") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let report = doctor(&node);
    report.one("service-addresses", "note", &["tcp 192.0.2.10:80 is Service shop/own"]);
    report.is_well();
    let listener =
        node.world.run(|| std::net::TcpListener::bind(socket("192.0.2.10:80"))).expect("nobody else is there");
    let report = doctor(&node);
    let about = report.about("service-addresses");
    assert!(about.iter().any(|finding| finding.grade == "check" && finding.what.contains(this)), "{about:#?}");
    drop(listener);
    node.stop();
}

#[test]
fn rules_that_are_ahead_of_ours_are_named() {
    let Some(mut node) = healthy(&config()) else { return };
    let cases = [
        ("iptables-nft -t raw -A PREROUTING -d 172.30.0.0/16 -j NOTRACK", "PREROUTING", "out of connection tracking"),
        ("iptables-nft -t raw -A PREROUTING -j DROP", "PREROUTING", "drops connections to Services"),
        ("iptables-nft -t raw -A OUTPUT -d 172.30.0.0/16 -j CT --notrack", "OUTPUT", "of this node to Services out of"),
        (
            "iptables-nft -t raw -A PREROUTING -p tcp -m tcp --dport 30000:32767 -j DROP",
            "PREROUTING",
            "node port 30080",
        ),
        ("iptables-legacy -t raw -A PREROUTING -d 172.30.1.1/32 -j NOTRACK", "iptables-legacy", "-d 172.30.1.1/32"),
        ("ip6tables-nft -t raw -A PREROUTING -d fd00:172:30::/48 -j NOTRACK", "ip6 raw", "[fd00:172:30::"),
        (
            "nft 'table inet own { chain early { type filter hook prerouting priority raw; ip daddr 172.30.0.0/16 \
             counter notrack; }; }'",
            "chain inet own early",
            "notrack",
        ),
        (
            "nft 'table netdev other { }; table ip own { chain early { type filter hook output priority mangle; \
             ip daddr 172.30.0.0/16 drop; }; }'",
            "chain ip own early",
            "drop",
        ),
    ];
    for (line, place, words) in cases {
        if line.contains("legacy") && !try_sh(&node, "iptables-legacy -t raw -S").status.success() {
            skip("iptables-legacy", "it does not work here");
            continue;
        }
        sh(&node, line);
        let report = doctor(&node);
        let finding = report.one("raw", "check", &[place, words, "is Service shop/"]);
        let is_of_all =
            line.contains("PREROUTING") && (line.contains("172.30.") || line.ends_with("PREROUTING -j DROP"));
        if is_of_all {
            node.wait_fate(line, "172.30.1.1:80", |fate| !matches!(fate, Fate::Forward { .. }));
        }
        let (_, command) = finding.fix.split_once("if it is not meant so: ").expect("a command");
        sh(&node, command);
        assert_eq!(doctor(&node).about("raw").len(), 0, "{line}: {command}");
        node.wait_forward(command, "172.30.1.1:80", &["10.1.0.1:8080"]);
    }
    // Of no Service, or nobody can tell.
    for line in [
        "iptables-nft -t raw -A PREROUTING -d 198.18.0.0/15 -j NOTRACK",
        "iptables-nft -t raw -A PREROUTING -i eth7 -j DROP",
        "iptables-nft -t raw -A PREROUTING -d 172.30.0.0/16 -p sctp -j DROP",
        "iptables-nft -t raw -A PREROUTING -p tcp -m tcp --dport 8472 -j NOTRACK",
    ] {
        sh(&node, line);
    }
    doctor(&node).is_well();
    node.stop();
}

#[test]
fn pods_outside_of_cluster_cidr_are_named() {
    let config = json!({"clusterCIDR": "10.99.0.0/16,fd00:1::/48", "conntrack": {"maxPerCore": 0}});
    let Some(mut node) = healthy(&config) else { return };
    let words = ["spec.podCIDRs of the Node: 10.1.0.0/16; clusterCIDR: 10.99.0.0/16"];
    doctor(&node).one("pod-range", "check", &words);
    node.replace("node.yaml", &yaml(&[node_object(&["10.99.1.0/24", "fd00:1::/64"])]));
    node.eventually("it is heard of", |node| match doctor(node).about("pod-range").len() {
        0 => Ok(()),
        some => Err(format!("{some} findings")),
    });
    node.stop();
}

/// What refuses at the end of a chain that accepts by its policy, with its text.
#[test]
fn a_last_rule_that_refuses_is_named_with_its_text() {
    let Some(mut node) = healthy(&config()) else { return };
    let rejects = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited";
    let rejects_v6 = "-A FORWARD -j REJECT --reject-with icmp6-adm-prohibited";
    for (program, rule, place, text) in [
        ("iptables-nft", rejects, "chain ip filter FORWARD, rule 2: ", "reject"),
        ("ip6tables-nft", rejects_v6, "chain ip6 filter FORWARD, rule 2: ", "reject"),
        ("iptables-legacy", rejects, "chain FORWARD of table filter of iptables-legacy, rule 2: ", rejects),
        ("ip6tables-legacy", rejects_v6, "chain FORWARD of table filter of ip6tables-legacy, rule 2: ", rejects_v6),
    ] {
        if !try_sh(&node, &format!("{program} -S")).status.success() {
            skip(program, "it does not work here");
            continue;
        }
        sh(&node, &format!("{program} -A FORWARD -i lo -j ACCEPT; {program} {rule}"));
        let report = doctor(&node);
        let finding = report.one("firewall", "check", &["drops or refuses all that comes to it", place]);
        assert!(finding.proof[0].to_lowercase().contains(&text.to_lowercase()), "{finding:?}");
        let command = if program.contains("legacy") { program } else { program.trim_end_matches("-nft") };
        mend(&node, finding, &format!("{command} -I FORWARD"));
        doctor(&node).is_well();
        sh(&node, &format!("{program} -F"));
    }
    node.nft(&["add table inet fw; add chain inet fw f { type filter hook forward priority 5; }; add rule inet fw f counter drop"])
        .expect("it can be made");
    let report = doctor(&node);
    let finding = report.one("firewall", "check", &["chain inet fw f", "rule 1: counter packets 0 bytes 0 drop"]);
    mend(&node, finding, "nft insert rule");
    doctor(&node).is_well();
    node.stop();
}

/// Two pods behind a bridge, whose neighbours' answers come past the translation.
#[test]
fn a_bridge_of_pods_that_is_not_seen_is_named() {
    let Some(mut node) = healthy(&config()) else { return };
    sh(&node, "ip link add cni7 type bridge; ip link set cni7 up; ip addr add 10.1.0.1/16 dev cni7");
    sh(&node, "ip link add pod1 type veth peer name pod1p; ip link set pod1 master cni7 up; ip link set pod1p up");
    let loaded = std::path::Path::new("/proc/sys/net/bridge").exists();
    if !loaded {
        let report = doctor(&node);
        let finding = report.one("bridges", "check", &["ports of bridge cni7", "br_netfilter is not loaded"]);
        assert!(finding.fix.starts_with("modprobe br_netfilter && "), "{finding:?}");
        return node.stop();
    }
    sh(&node, "sysctl -q -w net.bridge.bridge-nf-call-iptables=0");
    let report = doctor(&node);
    let finding = report.one("bridges", "check", &["ports of bridge cni7", "bridge-nf-call-iptables = 0"]);
    mend(&node, finding, "sysctl -w");
    doctor(&node).is_well();
    // A bridge itself can ask for it.
    sh(&node, "sysctl -q -w net.bridge.bridge-nf-call-iptables=0; ip link set cni7 type bridge nf_call_iptables 1");
    doctor(&node).is_well();
    // One without pods is nobody's business.
    sh(&node, "ip link set cni7 type bridge nf_call_iptables 0; ip addr del 10.1.0.1/16 dev cni7");
    doctor(&node).is_well();
    node.stop();
}

/// A health check whose port somebody has: the doctor and the status say so, and it is served once the port is free,
/// though nothing changes in the cluster.
#[test]
fn a_busy_health_check_port_is_named_and_tried_again() {
    let Some(mut node) = Node::new() else { return };
    sysctls(&node);
    write_everything(&node);
    let mut balanced = web("checked", "172.30.1.7", &["10.1.0.1:8080"]);
    balanced[0]["spec"]["type"] = json!("LoadBalancer");
    balanced[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced[0]["spec"]["healthCheckNodePort"] = json!(31999);
    node.write("checked.yaml", &yaml(&balanced));
    let busy =
        node.world.run(|| std::net::TcpListener::bind(socket("192.0.2.10:31999"))).expect("nobody else is there");
    node.start(&config());
    let failing = |node: &Node| {
        let status = run_to_end(node, true, &["status", "-o", "json"]).stdout;
        let status: Value = serde_json::from_str(&status).expect("JSON");
        status["daemon"]["failingHealthChecks"].clone()
    };
    node.eventually("it is said", |node| match failing(node) {
        said if said["shop/checked"].as_str().is_some_and(|why| why.contains(":31999: Address already in use")) => {
            Ok(())
        }
        other => Err(other.to_string()),
    });
    let words = ["Service shop/checked cannot be served", ":31999: Address already in use"];
    doctor(&node).one("health-checks", "check", &words);
    let status = run_to_end(&node, true, &["status"]).stdout;
    assert!(status.contains("\nchecks    NOT SERVED: shop/checked ("), "{status}");
    drop(busy);
    node.eventually("it is served", |node| match failing(node) {
        said if said == json!({}) => Ok(()),
        other => Err(other.to_string()),
    });
    doctor(&node).is_well();
    node.stop();
}

/// At a start everything is said once: a warning for each finding, and one Event on the Node.
#[test]
fn a_start_says_once_what_is_wrong() {
    let Some((mut node, api)) = node_with_api() else { return };
    let this = || json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}});
    apply(&api, &[service_cidr(), this()]);
    sysctls(&node);
    sh(&node, "sysctl -q -w net.ipv4.ip_forward=0 net.ipv4.conf.all.route_localnet=1");
    let found = |api: &crate::api::Api| {
        let events = api.events().into_iter().filter(|event| event["reason"] == "FoundByDoctor");
        events.collect::<Vec<_>>()
    };
    start(&mut node);
    node.wait_for_log("the gravest first", |line| {
        line.contains("WARN")
            && line.contains("doctor: IPv4 packets are not forwarded; seen: net.ipv4.ip_forward = 0; fix: sysctl -w")
    });
    node.wait_for_log("others too", |line| {
        line.contains("WARN") && line.contains("doctor: addresses of 127.0.0.0/8 are routed")
    });
    node.eventually("an Event", |_| match &found(&api)[..] {
        [event] => {
            let note = event["note"].as_str().unwrap_or_default();
            assert!(note.contains("IPv4 packets are not forwarded; ") && note.contains("1 wrong, "), "{event}");
            assert_eq!((&event["regarding"]["kind"], &event["type"]), (&json!("Node"), &json!("Warning")), "{event}");
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });
    let log = node.log();
    node.stop();
    assert_eq!(log.matches("doctor: IPv4 packets are not forwarded").count(), 1, "{log}");
    assert_eq!(found(&api).len(), 1);

    // Where nothing is wrong, there is a word in the log and no Event.
    sh(&node, "sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=0");
    start(&mut node);
    node.wait_for_log("it has looked", |line| line.contains("doctor: "));
    let log = node.log();
    let about: Vec<&str> = log.lines().filter(|line| line.contains("doctor: ")).collect();
    assert!(about.len() == 1 && about[0].contains("INFO"), "{about:?}");
    node.stop();
    assert_eq!(found(&api).len(), 1);
}

#[test]
fn flags_of_the_daemon_are_taken_and_few_are_shown() {
    let Some(node) = Node::new() else { return };
    let help = run_to_end(&node, true, &["doctor", "--help"]).stdout;
    let options: Vec<&str> = help
        .lines()
        .filter(|line| line.trim_start_matches("  ").starts_with(['-', ' ']) && line.contains("--"))
        .collect();
    assert_eq!(options.len(), 6, "five and --help: {help}");
    for word in ["--config", "--output", "--metrics-bind-address", "--conntrack-min", "WRONG", "unread"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let flags =
        ["doctor", "--cluster-cidr=10.0.0.0/8", "--proxy-mode", "nftables", "--hostname-override", NODE_NAME, "-v2"];
    assert_eq!(run_to_end(&node, true, &flags).status, Some(1), "no table is there");
    assert_eq!(run_to_end(&node, true, &["doctor", "--no-such-flag"]).status, Some(2));
    assert_eq!(run_to_end(&node, true, &["doctor", "-o", "yaml"]).status, Some(2));
}
