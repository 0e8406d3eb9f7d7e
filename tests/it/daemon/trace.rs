//! `nftproxyd trace`: what it says of packets is what becomes of them.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    CLIENT, CLIENT_V6, NODE_IP, Node, PATIENCE, ip, node_object, run_to_end, slice_of, socket, web, write_everything,
    yaml,
};
use crate::support::daemon::Daemon;
use crate::support::objects::service;
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;
use crate::support::world::{Look, Probe};

/// A pod elsewhere in the cluster.
const POD: &str = "10.1.0.77";

/// A trace that runs.
struct Trace(Daemon);

impl Trace {
    /// Starts one with these arguments, and waits until it traces.
    fn start(node: &Node, arguments: &str) -> Trace {
        let arguments: Vec<&str> = std::iter::once("trace").chain(arguments.split(' ')).collect();
        let trace = Daemon::start(&node.world, &arguments).expect("it can be started");
        let began = trace.wait_for_log(|line| line.contains("tracing for"), PATIENCE);
        began.unwrap_or_else(|log| panic!("{arguments:?}: {log}"));
        Trace(trace)
    }

    /// The objects of all connections, once there are so many.
    fn objects(&self, wanted: usize) -> Vec<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.0.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("{\"time\"")).collect();
            if lines.len() >= wanted {
                return lines.iter().map(|line| serde_json::from_str(line).expect("an object")).collect();
            }
            assert!(Instant::now() < end, "{wanted} connections: {log}");
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a line.
    fn line(&self, what: &str) -> String {
        let found = self.0.wait_for_log(|line| line.contains(what), PATIENCE);
        found.unwrap_or_else(|log| panic!("{what}: {log}"))
    }

    /// Ends it as an administrator does; its exit status, and all that it has written.
    fn stop(mut self) -> (i32, String) {
        self.0.signal(Signal::SIGINT).expect("it runs");
        self.wait_for_end()
    }

    fn wait_for_end(&mut self) -> (i32, String) {
        let end = Instant::now() + PATIENCE;
        while self.0.alive() {
            assert!(Instant::now() < end, "it does not end: {}", self.0.log());
            sleep(Duration::from_millis(5));
        }
        let status = self.0.terminate(PATIENCE).expect("it has ended");
        (status.code().expect("it has ended by itself"), self.0.log())
    }
}

/// The only connection that there was, of a trace of its own.
fn traced(node: &mut Node, arguments: &str, shoot: impl FnOnce(&mut Node)) -> (Value, i32) {
    let trace = Trace::start(node, &format!("-o json --seconds 60 {arguments}"));
    shoot(node);
    let mut objects = trace.objects(1);
    assert_eq!(objects.len(), 1, "{objects:#?}");
    let (status, log) = trace.stop();
    assert!(log.lines().last().is_some_and(|line| line.contains(&format!("\"exitStatus\":{status}"))), "{log}");
    (objects.remove(0), status)
}

fn started() -> Option<Node> {
    let mut node = Node::new()?;
    write_everything(&node);
    let dns = json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}]});
    node.write(
        "dns.yaml",
        &yaml(&[
            service("shop", "dns", &[ip("172.30.1.53")], &dns),
            slice_of("dns", ("dns", Protocol::Udp), &["10.1.0.53:5353"]),
        ]),
    );
    node.start(&json!({"clusterCIDR": "10.1.0.0/16,fd00:1::/64"}));
    Some(node)
}

/// What a report says is what has become of the packet.
fn assert_forwarded(report: &Value, fate: &Fate) {
    let Fate::Forward { endpoint, source, masqueraded } = fate else { panic!("{fate:?}") };
    let said: SocketAddr = report["endpoint"].as_str().expect("an endpoint").parse().expect("an address");
    assert_eq!(said, *endpoint, "{report:#}");
    if let Some(masqueraded) = masqueraded {
        assert_eq!(report["masqueraded"], *masqueraded, "{report:#}");
    }
    let left = if report["masqueraded"] == true { &report["masqueradedAs"] } else { &report["client"] };
    assert_eq!(left.as_str().map(|left| socket(left).ip()), Some(*source), "{report:#}");
    assert_eq!((&report["outcome"], &report["output"]), (&json!("left"), &json!("world0")), "{report:#}");
    assert_eq!((&report["by"], &report["behind"]), (&Value::Null, &Value::Null), "{report:#}");
}

#[test]
fn what_is_served_is_told_with_its_endpoint_and_its_new_source() {
    let Some(mut node) = started() else { return };
    // From outside to a cluster IP; by a pod; UDP; IPv6; a node port; by the node itself.
    for (client, protocol, to, arguments, service) in [
        (CLIENT, Protocol::Tcp, "172.30.1.1:80", "172.30.1.1:80", "shop/web:http"),
        (POD, Protocol::Tcp, "172.30.1.1:80", "shop/web", "shop/web:http"),
        (CLIENT, Protocol::Udp, "172.30.1.53:53", "--proto udp shop/dns:dns", "shop/dns:dns"),
        (CLIENT_V6, Protocol::Tcp, "[fd00:172:30::1]:80", "2001:db8::/32 fd00:172:30::1", "shop/web-six:http"),
        (POD, Protocol::Tcp, "192.0.2.10:30080", "10.1.0.0/16 192.0.2.10:30080", "shop/balanced:http"),
        (POD, Protocol::Tcp, "192.0.2.10:30080", "shop/balanced:30080", "shop/balanced:http"),
        (NODE_IP, Protocol::Tcp, "172.30.1.1:80", "172.30.1.1", "shop/web:http"),
    ] {
        let mut fate = None;
        let (report, status) =
            traced(&mut node, arguments, |node| fate = Some(node.fate_from(ip(client), protocol, to)));
        let fate = fate.expect("it was sent");
        assert_forwarded(&report, &fate);
        assert_eq!((&report["service"], status), (&json!(service), 0), "{report:#}");
        assert_eq!(report["destination"].as_str().map(socket), Some(socket(to)), "{report:#}");
        let seen = report["client"].as_str().map(socket).expect("a client").ip();
        assert_eq!(seen, ip(client), "{report:#}");
        let input = if client == NODE_IP { Value::Null } else { json!("world0") };
        assert_eq!(report["input"], input, "{report:#}");
        if report["masqueraded"] == true {
            let source = report["masqueradedAs"].as_str().map(socket).expect("a source").ip();
            assert!(node.world.is_local(source), "{report:#}");
        }
    }
}

#[test]
fn who_drops_is_named_with_the_rule() {
    let Some(mut node) = started() else { return };
    let table = |chain: &str| format!("table inet netpol {{\n chain stranger {{\n  {chain}\n }}\n}}\n");
    let mut case = |chain: &str, outcome: &str, rule: &str, endpoint: bool| {
        node.world.nft(&["-f", "-"], &table(chain)).expect("a table");
        let to = "172.30.1.1:80";
        let (report, status) = traced(&mut node, to, |node| {
            let fate = node.fate(Protocol::Tcp, to);
            assert!(!matches!(fate, Fate::Forward { .. }), "{chain}: {fate:?}");
        });
        node.nft(&["delete", "table", "inet", "netpol"]).expect("it is there");
        assert_eq!((&report["outcome"], status), (&json!(outcome), 3), "{chain}: {report:#}");
        let by = &report["by"];
        let place = ["family", "table", "chain", "rule"].map(|key| by[key].as_str().unwrap_or_default());
        assert_eq!(place, ["inet", "netpol", "stranger", rule], "{report:#}");
        assert_eq!(report["service"], "shop/web:http");
        assert_eq!(report["endpoint"], if endpoint { json!("10.1.0.1:8080") } else { Value::Null }, "{report:#}");
        // Whether it would be masqueraded nobody can tell yet.
        let told = chain.contains("postrouting");
        assert_eq!(report["masqueraded"].is_null(), !told, "{chain}: {report:#}");
    };
    let rule = "ip daddr 10.1.0.1 tcp dport 8080 drop";
    case(&format!("type filter hook forward priority 0; {rule}"), "dropped", rule, true);
    case("type filter hook forward priority 0; policy drop; tcp dport 81 accept", "dropped", "policy drop", true);
    let rule = "tcp dport 8080 reject with tcp reset";
    case(&format!("type filter hook forward priority 0; {rule}"), "rejected", rule, true);
    // Before it is tracked, and after it was masqueraded.
    let rule = "ip daddr 172.30.1.1 drop";
    case(&format!("type filter hook prerouting priority raw; {rule}"), "dropped", rule, false);
    case(&format!("type filter hook prerouting priority -2147483648; {rule}"), "dropped", rule, false);
    let rule = "ip daddr 10.1.0.1 drop comment \"no way\"";
    case(&format!("type filter hook postrouting priority 300; {rule}"), "dropped", rule, true);

    // In a chain that is jumped to, and as text.
    let nested = "table ip fw {\n chain deny {\n  counter drop\n }\n chain forward {\n  type filter hook forward priority 10;\n  \
                  tcp dport 8080 jump deny\n }\n}\n";
    node.world.nft(&["-f", "-"], nested).expect("a table");
    let trace = Trace::start(&node, "--seconds 60 203.0.113.0/24 shop/web:http");
    node.fate(Protocol::Tcp, "172.30.1.1:80");
    let line = trace.line("dropped by");
    assert!(
        line.starts_with("    dropped by ip fw deny: counter packets 1 bytes") && line.ends_with(" drop"),
        "{line}"
    );
    let line = trace.line("-> 172.30.1.1:80 tcp   shop/web:http -> 10.1.0.1:8080");
    assert!(line.contains(" 203.0.113.7:"), "{line}");
    let (status, log) = trace.stop();
    assert!(log.ends_with("=> 1 connection: 1 dropped; 1 by ip fw deny (exit status 3)"), "{log}");
    assert_eq!(status, 3);
}

#[test]
fn our_own_refusals_have_reasons() {
    let Some(mut node) = started() else { return };
    for (client, to, arguments, outcome, note) in [
        (CLIENT, "172.30.1.4:80", "shop/empty", "rejected", "the Service has no endpoint"),
        (CLIENT, "172.30.1.1:81", "172.30.1.1", "rejected", "the Service of this address has no such port"),
        (CLIENT, "172.30.9.9:80", "172.30.9.9:80", "dropped", "a cluster IP that no Service has"),
        (
            "198.18.0.1",
            "198.51.100.3:80",
            "198.51.100.3",
            "dropped",
            "the client is in none of loadBalancerSourceRanges",
        ),
        (
            CLIENT,
            "192.0.2.10:30080",
            "192.0.2.10",
            "dropped",
            "the traffic policy is Local, and the Service has no endpoint on this node",
        ),
    ] {
        let (report, status) = traced(&mut node, arguments, |node| {
            let fate = node.fate_from(ip(client), Protocol::Tcp, to);
            let wanted =
                if outcome == "rejected" { matches!(fate, Fate::Reject(..)) } else { matches!(fate, Fate::Drop) };
            assert!(wanted, "{to}: {fate:?}");
        });
        assert_eq!((&report["outcome"], status), (&json!(outcome), 3), "{report:#}");
        assert_eq!((&report["notes"], &report["by"]["table"]), (&json!([note]), &json!("nftproxyd")), "{report:#}");
        assert_eq!(report["endpoint"], Value::Null, "{report:#}");
    }
}

#[test]
fn what_no_rule_drops_is_lost_between_two_hooks() {
    let Some(mut node) = started() else { return };
    node.ip("route add unreachable 10.1.0.1/32");
    let lost = |node: &mut Node, behind: &str, note: &str| {
        let (report, status) = traced(node, "shop/web", |node| {
            node.fate(Protocol::Tcp, "172.30.1.1:80");
        });
        assert_eq!((&report["outcome"], status), (&json!("lost"), 3), "{report:#}");
        assert_eq!((&report["behind"], &report["by"]), (&json!(behind), &Value::Null), "{report:#}");
        assert!(report["notes"][0].as_str().is_some_and(|text| text.contains(note)), "{report:#}");
        assert_eq!(report["endpoint"], "10.1.0.1:8080", "{report:#}");
    };
    lost(&mut node, "prerouting-last", "no route");
    node.ip("route del unreachable 10.1.0.1/32");
    node.world.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/forwarding", "0").expect("it is ours"));
    lost(&mut node, "prerouting-last", "forwarding is off");
}

#[test]
fn what_is_not_of_nftables_or_of_nftproxyd_is_told_too() {
    let Some(mut node) = started() else { return };
    let to = "172.30.1.1:80";
    let shoot = |node: &mut Node| {
        node.fate(Protocol::Tcp, to);
    };
    let table = |name: &str, rules: &str| format!("table ip {name} {{\n chain c {{\n  type {rules}\n }}\n}}\n");

    // Somebody else translates it first.
    let nat =
        table("other", "nat hook prerouting priority -150; ip daddr 172.30.1.1 tcp dport 80 dnat to 10.1.0.9:9090");
    node.world.nft(&["-f", "-"], &nat).expect("a table");
    let (report, status) = traced(&mut node, to, shoot);
    assert_eq!((&report["endpoint"], status), (&json!("10.1.0.9:9090"), 0), "{report:#}");
    assert_eq!(report["endpointBy"], "ip other c", "{report:#}");
    node.nft(&["delete", "table", "ip", "other"]).expect("it is there");

    // Rules of both kinds of iptables: those of one are rules of nftables.
    for (tool, outcome) in [("iptables-nft", "rejected"), ("iptables-legacy", "lost")] {
        let rule = |action: &'static str| {
            let mut command = std::process::Command::new(tool);
            command.args([action, "FORWARD", "-p", "tcp", "--dport", "8080", "-j", "REJECT"]);
            node.world.run(move || command.output())
        };
        let made = rule("-A").expect("it can be started");
        if !made.status.success() {
            crate::netns::skip(tool, String::from_utf8_lossy(&made.stderr));
            continue;
        }
        let (report, status) = traced(&mut node, to, shoot);
        assert_eq!((&report["outcome"], status), (&json!(outcome), 3), "{tool}: {report:#}");
        assert_eq!(report["endpoint"], "10.1.0.1:8080", "{tool}: {report:#}");
        if outcome == "rejected" {
            assert_eq!((&report["by"]["table"], &report["by"]["chain"]), (&json!("filter"), &json!("FORWARD")));
        } else {
            assert_eq!(report["behind"], "forward-first", "{report:#}");
        }
        let mut command = std::process::Command::new(tool);
        command.args(["-F", "FORWARD"]);
        assert!(node.world.run(move || command.status()).expect("it can be started").success());
    }
}

#[test]
fn connections_that_are_not_new_are_told_so() {
    let Some(mut node) = started() else { return };
    let raw = "table ip raw {\n chain prerouting {\n  type filter hook prerouting priority raw;\n  ip daddr 172.30.1.53 notrack\n }\n}\n";
    node.world.nft(&["-f", "-"], raw).expect("a table");
    let to = "172.30.1.53:53";
    let (report, _) = traced(&mut node, to, |node| {
        node.fate(Protocol::Udp, to);
    });
    assert_eq!(report["endpoint"], Value::Null, "{report:#}");
    let note = report["notes"][0].as_str().expect("a note");
    assert!(note.contains("notrack") || note.contains("not tracked"), "{report:#}");
    node.nft(&["delete", "table", "ip", "raw"]).expect("it is there");

    let probe = Probe { clients: vec![ip(CLIENT)], protocol: Protocol::Udp, destination: socket(to) };
    let look = Look::QUICK;
    assert_eq!(node.world.probe_flow("open", &probe, look).endpoints().len(), 1);
    let (report, status) = traced(&mut node, to, |node| {
        node.world.probe_flow("open", &probe, look);
    });
    assert_eq!((&report["endpoint"], &report["outcome"], status), (&json!("10.1.0.53:5353"), &json!("left"), 0));
    assert!(report["notes"][0].as_str().is_some_and(|note| note.contains("open before")), "{report:#}");
}

#[test]
fn it_works_without_a_daemon_and_says_what_it_cannot_do() {
    let Some(mut node) = started() else { return };
    node.kill();
    let (report, status) = traced(&mut node, "shop/web", |node| {
        node.fate(Protocol::Tcp, "172.30.1.1:80");
    });
    assert_eq!((&report["endpoint"], status), (&json!("10.1.0.1:8080"), 0), "{report:#}");

    let failed = |arguments: &[&str], root: bool, status: i32, words: &str| {
        let ended = run_to_end(&node, root, arguments);
        assert_eq!(ended.status, Some(status), "{arguments:?}: {ended:?}");
        assert!((ended.stdout.clone() + &ended.stderr).contains(words), "{arguments:?}: {ended:?}");
    };
    failed(&["trace", "shop/none"], true, 1, "serves no shop/none here");
    failed(&["trace", "shop/web:https"], true, 1, "serves no shop/web:https here");
    failed(&["trace", "--proto", "udp", "shop/web"], true, 1, "over udp");
    failed(&["trace", "fd00::1", "172.30.1.1"], true, 1, "not of the same family");
    failed(&["trace", "172.30.1.1"], false, 1, "no permission");
    failed(&["trace", "web"], true, 2, "NAMESPACE/NAME");
    failed(&["trace"], true, 2, "<TO>");
    for wrong in ["*:99999", "*:0", "a/b/c"] {
        failed(&["status", wrong], true, 2, "is none of NAMESPACE");
    }
    failed(&["trace", "--seconds", "1", "172.30.1.1"], true, 4, "=> no connection came (exit status 4)");
    assert!(!node.nft(&["list", "tables"]).expect("a list").contains("trace"), "nothing is left");
}

#[test]
fn a_service_that_comes_meanwhile_is_known_by_its_name() {
    let Some(mut node) = started() else { return };
    let trace = Trace::start(&node, "-o json --seconds 600 172.30.1.77");
    node.write("late.yaml", &yaml(&web("late", "172.30.1.77", &["10.1.0.7:8080"])));
    node.wait_forward("it is served", "172.30.1.77:80", &["10.1.0.7:8080"]);
    node.eventually("it has a name", |node| {
        let before = trace.objects(0).len();
        node.fate(Protocol::Tcp, "172.30.1.77:80");
        sleep(Duration::from_millis(100));
        match trace.objects(before).last() {
            Some(last) if last["service"] == "shop/late:http" => Ok(()),
            last => Err(format!("{last:?}")),
        }
    });
    node.remove("late.yaml");
    node.wait_fate("it is gone", "172.30.1.77:80", |fate| matches!(fate, Fate::Drop));
    sleep(Duration::from_secs(1));
    let before = trace.objects(0).len();
    node.fate(Protocol::Tcp, "172.30.1.77:80");
    let last = trace.objects(before + 1).pop().expect("one more");
    assert_eq!((&last["service"], &last["outcome"]), (&Value::Null, &json!("dropped")), "{last:#}");
}

#[test]
fn nothing_that_traces_is_left_however_it_ends() {
    let Some(mut node) = started() else { return };
    let tables = |node: &Node| {
        let list = node.nft(&["list", "tables"]).expect("a list");
        list.lines().filter(|line| line.contains("nftproxyd-trace-")).count()
    };
    let mut killed = Trace::start(&node, "--seconds 600 shop/web");
    let other = Trace::start(&node, "-o json --seconds 600 172.30.1.1:80");
    assert_eq!(tables(&node), 2);
    node.fate(Protocol::Tcp, "172.30.1.1:80");
    killed.line("left by world0");
    assert_eq!(other.objects(1)[0]["endpoint"], "10.1.0.1:8080");
    // The owner is gone with its socket; the other goes on.
    killed.0.kill();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("there is one");
    let mut numbers = kernel.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) >= (Some(5), Some(12)) {
        assert_eq!(tables(&node), 1);
    }
    node.fate(Protocol::Tcp, "172.30.1.1:80");
    assert_eq!(other.objects(2).len(), 2);
    let (status, log) = other.stop();
    assert_eq!(status, 0, "{log}");
    assert_eq!(tables(&node), 0);

    // As many as were asked for, and no more.
    let mut counted = Trace::start(&node, "-o json --seconds 600 --count 2 shop/web");
    for _ in 0..4 {
        node.fate(Protocol::Tcp, "172.30.1.1:80");
    }
    let (status, log) = counted.wait_for_end();
    assert_eq!((status, log.matches("{\"time\"").count()), (0, 2), "{log}");
    assert_eq!(tables(&node), 0);
}

#[test]
fn a_flood_makes_no_more_messages_than_the_limit() {
    let Some(mut node) = started() else { return };
    let trace = Trace::start(&node, "-o json --seconds 600 --count 10000 172.30.1.1:80");
    let probe = Probe { clients: vec![ip(CLIENT)], protocol: Protocol::Tcp, destination: socket("172.30.1.1:80") };
    let look = Look { packets_per_endpoint: 1000, silence: Duration::from_millis(20) };
    let began = Instant::now();
    // Twice as many, as there might be two endpoints.
    const SENT: usize = 2000;
    node.world.probe(&probe, 1, look);
    let seconds = began.elapsed().as_secs_f64();
    assert!(trace.objects(25).len() >= 25);
    let (status, log) = trace.stop();
    let seen = log.matches("{\"time\"").count();
    // 25 at once, and 25 more each second; the clock of the kernel's limit is not ours.
    let most = 25.0 + 25.0 * (seconds + 1.0);
    assert!(seen >= 25 && (seen as f64) <= most, "{seen} in {seconds} s");
    assert!(seen < 1000, "{seen} in {seconds} s: it was no flood");
    // What was not looked at is no secret.
    let last: Value = serde_json::from_str(log.lines().last().expect("a summary")).expect("an object");
    assert_eq!((&last["summary"]["messagesLost"], status), (&json!(false), 4), "{last:#}");
    assert_eq!(last["summary"]["overLimit"], json!(SENT - seen), "{last:#}");
}

#[test]
fn the_node_itself_is_reached_by_lo() {
    let Some(mut node) = started() else { return };
    let port = json!({"name": "http", "port": 80, "targetPort": 7070});
    let endpoint = format!("{NODE_IP}:7070");
    node.write(
        "host.yaml",
        &yaml(&[
            service("shop", "host", &[ip("172.30.1.99")], &json!({"ports": [port]})),
            slice_of("host", ("http", Protocol::Tcp), &[&endpoint]),
            node_object(&["10.1.0.0/16", "fd00:1::/64"]),
        ]),
    );
    node.remove("node.yaml");
    super::echo_server(&node, socket(&endpoint));
    node.eventually("it is served", |node| {
        let connected = node.world.run(|| std::net::TcpStream::connect(socket("172.30.1.99:80")).map(drop));
        connected.map_err(|error| error.to_string())
    });
    let (report, status) = traced(&mut node, "shop/host", |node| {
        node.world.run(|| drop(std::net::TcpStream::connect(socket("172.30.1.99:80"))));
    });
    assert_eq!((&report["outcome"], status), (&json!("delivered"), 0), "{report:#}");
    assert_eq!(report["endpoint"], endpoint.as_str(), "{report:#}");
}
