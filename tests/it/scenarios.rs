//! The scenario runner itself: with rules made by hand, what is right passes and what is wrong is noticed.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http::{self, Answer};
use crate::support::judge::judge;
use crate::support::objects::{ObjectKey, endpoint_slice, service, with_defaults};
use crate::support::outcome::{Fate, Outcome, Passed};
use crate::support::packet::{Protocol, Refusal};
use crate::support::proxy::{HandMade, Proxy};
use crate::support::runner::{Patience, assert_passes, run};
use crate::support::scenario::{Check, Expect, Scenario, What, load_all, parse};
use crate::support::world::World;

const RULES: &str = include_str!("../../testdata/by-hand/cluster-ip.nft");
/// Long enough to notice what is wrong, not to wait until it becomes right.
const IMPATIENT: Patience =
    Patience { sync: Duration::from_millis(100), further_looks: [Duration::ZERO; 2], afterwards: Duration::ZERO };

fn scenario(text: &str) -> Scenario {
    parse(text).expect("it is a scenario").pop().expect("there is one")
}

#[expect(clippy::unnecessary_wraps, reason = "this is how the runner wants it")]
fn by_hand(_: &World) -> Result<Box<dyn Proxy>, String> {
    Ok(Box::new(HandMade::new(RULES)))
}

#[test]
fn a_scenario_passes_with_the_right_rules() {
    let all = load_all().expect("all scenarios can be read");
    assert_passes(&all["cluster-ip"], by_hand);
}

#[test]
fn deliberately_wrong_expectations_are_noticed() {
    let scenario = scenario(
        "
        scenario: wrong
        description: Every second packet fares as it must.
        node: {name: worker-a, ips: [192.0.2.10, '2001:db8:a::10']}
        packets:
        - {name: right 1, from: 10.200.1.40, to: 172.30.8.1, port: 80, expect: {forward: ['10.200.1.11:80']}}
        - {name: wrong 1, from: 10.200.1.40, to: 172.30.8.1, port: 80, expect: {forward: ['10.200.1.12:80']}}
        - {name: right 2, from: 10.200.1.40, to: 172.30.8.99, port: 80, expect: drop}
        - {name: wrong 2, from: 10.200.1.40, to: 172.30.8.99, port: 80, expect: pass}
        - {name: right 3, flow: a, from: 10.200.1.40, to: 172.30.8.1, port: 443, expect: reject}
        - {name: wrong 3, flow: a, from: 10.200.1.40, to: 172.30.8.1, port: 443, expect: drop}
        - {name: right 4, http: 192.0.2.10, port: 31790, expect: refused}
        - {name: wrong 4, http: 192.0.2.10, port: 31790, expect: 200}
        steps:
        - name: later
          packets:
          - {name: right 5, from: '2001:db8:f::7', to: 'fd00:200::1', port: 80, proto: sctp, expect: pass}
          - {name: wrong 5, from: '2001:db8:f::7', to: 'fd00:200::1', port: 80, proto: sctp, expect: reject}
        ",
    );
    let Some(report) = run(&scenario, IMPATIENT, by_hand) else { return };
    let expected = [
        "wrong 1 [tcp 10.200.1.40 -> 172.30.8.1:80]: expected forward to 10.200.1.12:80, got forward to 10.200.1.11:80",
        "wrong 2 [tcp 10.200.1.40 -> 172.30.8.99:80]: expected pass, got drop",
        "wrong 3 [tcp 10.200.1.40 -> 172.30.8.1:443]: expected drop, got reject (tcp reset)",
        "wrong 4 [GET http://192.0.2.10:31790/]: expected Status(200), got Refused",
        "later: wrong 5 [sctp 2001:db8:f::7 -> [fd00:200::1]:80]: expected reject, got pass (out)",
    ];
    assert_eq!(report.failures, expected);
    assert_eq!(report.checked, 10);
    let shown = report.to_string();
    for part in ["FAIL wrong 1", "rules made by hand", "goto dns-named"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
}

/// Runs, and does nothing; or does not even run.
struct Idle(bool);

impl Proxy for Idle {
    fn start(&mut self, _: &World, _: &Value) -> Result<(), String> {
        Ok(())
    }
    fn apply(&mut self, _: &World, _: &Value) -> Result<(), String> {
        Ok(())
    }
    fn delete(&mut self, _: &World, _: &ObjectKey) -> Result<(), String> {
        Ok(())
    }
    fn alive(&mut self) -> bool {
        self.0
    }
    fn log(&self) -> String {
        "idle".to_owned()
    }
    fn stop(&mut self) -> Result<(), String> {
        Err("it failed".to_owned())
    }
}

#[test]
fn a_proxy_that_does_nothing_is_noticed() {
    let text = "{scenario: idle, description: x, node: {name: worker-a, ips: [192.0.2.10, '2001:db8:a::10']}}";
    for (alive, why) in [
        (true, "at the beginning: not in sync after 100ms: IPv4 and IPv6"),
        (false, "at the beginning: the proxy has ended"),
    ] {
        let Some(report) = run(&scenario(text), IMPATIENT, |_| Ok(Box::new(Idle(alive)))) else { return };
        assert_eq!(report.failures, [why, "it failed"]);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn expectation(text: &str) -> Expect {
    let text = format!(
        "{{scenario: x, description: x, node: {{name: x, ips: []}}, \
         packets: [{{from: 192.0.2.1, to: 192.0.2.2, port: 1, expect: {text}}}]}}"
    );
    match scenario(&text).packets.pop() {
        Some(Check { what: What::Packet { expect, .. }, .. }) => expect,
        other => panic!("not a packet: {other:?}"),
    }
}

#[test]
fn outcomes_are_judged() {
    let forward = |endpoint: &str, source: &str, masqueraded| Fate::Forward {
        endpoint: endpoint.parse().expect("an endpoint"),
        source: ip(source),
        masqueraded,
    };
    let plain = |endpoint: &str| forward(endpoint, "203.0.113.1", Some(false));
    let masqueraded = |endpoint: &str| forward(endpoint, "192.0.2.10", Some(true));
    let unknown = |endpoint: &str| forward(endpoint, "192.0.2.10", None);
    let two = "forward: ['10.0.0.1:80', '10.0.0.2:80']";
    let cases: Vec<(Vec<Fate>, String, bool)> = vec![
        (vec![Fate::Drop; 3], "drop".to_owned(), true),
        (vec![Fate::Drop; 3], "reject".to_owned(), false),
        (vec![Fate::Drop, Fate::Pass(Passed::Out)], "drop".to_owned(), false),
        (vec![Fate::Drop, plain("10.0.0.1:80")], "drop".to_owned(), false),
        (vec![Fate::Drop, plain("10.0.0.1:80")], "{forward: ['10.0.0.1:80']}".to_owned(), false),
        (vec![Fate::Reject(Refusal::TcpReset), Fate::Reject(Refusal::Prohibited)], "reject".to_owned(), true),
        (vec![Fate::Pass(Passed::Out), Fate::Pass(Passed::Delivered)], "pass".to_owned(), true),
        (vec![plain("10.0.0.1:80"), plain("10.0.0.2:80")], format!("{{{two}}}"), true),
        (vec![plain("10.0.0.1:80")], format!("{{{two}}}"), false),
        (vec![plain("10.0.0.1:80"), plain("10.0.0.2:80"), plain("10.0.0.3:80")], format!("{{{two}}}"), false),
        (vec![plain("10.0.0.1:80"), plain("10.0.0.2:81")], format!("{{{two}}}"), false),
        (vec![Fate::Pass(Passed::Out)], format!("{{{two}}}"), false),
        // Masquerading: all, none, some, at times, and where it would not show.
        (vec![masqueraded("10.0.0.1:80"), masqueraded("10.0.0.2:80")], format!("{{{two}, masq: true}}"), true),
        (vec![masqueraded("10.0.0.1:80"), masqueraded("10.0.0.2:80")], format!("{{{two}, masq: false}}"), false),
        (vec![masqueraded("10.0.0.1:80"), plain("10.0.0.2:80")], format!("{{{two}, masq: true}}"), false),
        (vec![masqueraded("10.0.0.1:80"), plain("10.0.0.2:80")], format!("{{{two}, masq: ['10.0.0.1:80']}}"), true),
        (vec![masqueraded("10.0.0.1:80"), plain("10.0.0.2:80")], format!("{{{two}, masq: ['10.0.0.2:80']}}"), false),
        (
            vec![masqueraded("10.0.0.1:80"), plain("10.0.0.1:80")],
            "{forward: ['10.0.0.1:80'], masq: true}".to_owned(),
            false,
        ),
        (
            vec![masqueraded("10.0.0.1:80"), plain("10.0.0.1:80")],
            "{forward: ['10.0.0.1:80'], masq: false}".to_owned(),
            false,
        ),
        (vec![unknown("10.0.0.1:80")], "{forward: ['10.0.0.1:80'], masq: true}".to_owned(), true),
        (vec![unknown("10.0.0.1:80")], "{forward: ['10.0.0.1:80'], masq: false}".to_owned(), true),
        // Ports that are the same, or not, by chance.
        (
            [vec![unknown("10.0.0.1:80")], vec![masqueraded("10.0.0.1:80"); 23]].concat(),
            "{forward: ['10.0.0.1:80'], masq: false}".to_owned(),
            false,
        ),
        (
            [vec![unknown("10.0.0.1:80"); 23], vec![masqueraded("10.0.0.1:80")]].concat(),
            "{forward: ['10.0.0.1:80'], masq: false}".to_owned(),
            true,
        ),
        (vec![masqueraded("10.0.0.1:80")], "{forward: ['10.0.0.1:80'], source: 192.0.2.10}".to_owned(), true),
        (vec![masqueraded("10.0.0.1:80")], "{forward: ['10.0.0.1:80'], source: 192.0.2.77}".to_owned(), false),
        // One client, so it may reach one endpoint only; and only one of those that are listed.
        (vec![plain("10.0.0.2:80"), plain("10.0.0.2:80")], format!("{{{two}, sticky: true}}"), true),
        (vec![plain("10.0.0.1:80"), plain("10.0.0.2:80")], format!("{{{two}, sticky: true}}"), false),
        (vec![plain("10.0.0.3:80")], format!("{{{two}, sticky: true}}"), false),
    ];
    for (fates, expect, right) in cases {
        let mut outcome = Outcome::default();
        fates.into_iter().for_each(|fate| outcome.add(ip("203.0.113.1"), fate));
        assert_eq!(judge(&expectation(&expect), &outcome).is_ok(), right, "{expect}: {outcome}");
    }
}

#[test]
fn mistakes_in_scenarios_are_errors() {
    let head = "scenario: x\ndescription: x\nnode: {name: x, ips: [192.0.2.10]}\n";
    for (rest, says) in [
        ("packet: []", "packet"),
        ("packets: [{from: 192.0.2.1, to: 192.0.2.2, port: 1}]", "expect"),
        ("packets: [{from: 192.0.2.1, to: 192.0.2.2, port: 1, expect: accept}]", "expect"),
        ("packets: [{from: 192.0.2.1, to: 192.0.2.2, port: 1, expect: {forwards: []}}]", "expect"),
        ("packets: [{from: 192.0.2.1, to: 192.0.2.2, port: 1, expect: {forward: ['192.0.2.3']}}]", "expect"),
        ("packets: [{from: 192.0.2.1, to: 'fd00::1', port: 1, expect: drop}]", "one family"),
        ("packets: [{from: [], to: 'fd00::1', port: 1, expect: drop}]", "one family"),
        ("packets: [{to: 192.0.2.2, port: 1, expect: drop}]", "either"),
        ("packets: [{http: 192.0.2.2, to: 192.0.2.2, port: 1, expect: 200}]", "either"),
        ("packets: [{http: 192.0.2.2, port: 1, expect: drop}]", "expect"),
        ("packets: [{from: 192.0.2.1, to: 192.0.2.2, port: 65536, expect: drop}]", "65536"),
        ("packets: [{from: 192.0.2.1, proto: icmp, to: 192.0.2.2, port: 1, expect: drop}]", "icmp"),
        ("steps: [{name: x, wipe: []}]", "wipe"),
    ] {
        let error = parse(&format!("{head}{rest}\n")).expect_err(rest);
        assert!(error.contains(says), "{rest}: {error}");
    }
}

#[test]
fn defaults_are_those_of_an_api_server() {
    let port = json!({"port": 80, "protocol": "TCP", "targetPort": 80});
    let cases = [
        (
            json!({"clusterIP": "172.30.0.1", "ports": [{"port": 80}]}),
            json!({
                "type": "ClusterIP", "clusterIP": "172.30.0.1", "clusterIPs": ["172.30.0.1"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                "ports": [port]
            }),
        ),
        (
            json!({"type": "LoadBalancer", "clusterIPs": ["fd00::1", "10.0.0.1"], "sessionAffinity": "ClientIP"}),
            json!({
                "type": "LoadBalancer", "clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"],
                "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack",
                "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": true, "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}
            }),
        ),
        (
            json!({"clusterIP": "None", "internalTrafficPolicy": "Local"}),
            json!({
                "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Local", "sessionAffinity": "None"
            }),
        ),
        (
            json!({"type": "ExternalName", "externalName": "example.org"}),
            json!({"type": "ExternalName", "externalName": "example.org", "sessionAffinity": "None"}),
        ),
    ];
    for (spec, expected) in cases {
        let object = with_defaults(&json!({"kind": "Service", "metadata": {"name": "x"}, "spec": spec}));
        assert_eq!(object["spec"], expected);
        assert_eq!(object["metadata"]["namespace"], "default");
        assert_eq!(with_defaults(&object), object, "nothing is left to fill in");
    }
    let vip = with_defaults(&json!({
        "kind": "Service", "metadata": {"name": "x"},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}]}}
    }));
    let ingress = &vip["status"]["loadBalancer"]["ingress"];
    assert_eq!(
        *ingress,
        json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"hostname": "lb"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}])
    );
}

#[test]
fn builders_make_whole_objects() {
    let web = service("shop", "web", &[ip("172.30.0.1"), ip("fd00::1")], &json!({"ports": [{"port": 80}]}));
    assert_eq!(web["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(web["spec"]["ports"][0]["targetPort"], 80);
    assert_eq!(with_defaults(&web), web);
    let endpoint: SocketAddr = "10.0.0.1:8080".parse().expect("an endpoint");
    let slice = endpoint_slice("shop", "web-1", "web", ("http", Protocol::Sctp), &[(endpoint, "worker-a")]);
    assert_eq!(slice["ports"], json!([{"name": "http", "port": 8080, "protocol": "SCTP"}]));
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(with_defaults(&slice), slice);
    let key = ObjectKey { kind: "EndpointSlice".to_owned(), namespace: "shop".to_owned(), name: "web-1".to_owned() };
    assert_eq!(ObjectKey::of(&slice), key);
}

#[test]
fn requests_are_made_on_the_node() {
    let Some(world) = World::new(&[ip("192.0.2.10")], &[]) else { return };
    let server: SocketAddr = "192.0.2.10:10256".parse().expect("an address");
    assert_eq!(http::get(&world, server, "/"), Answer::Refused);
    // A thread that the node's thread starts lives in the node as well.
    let serving = world.run(move || {
        let listener = TcpListener::bind(server).expect("the address is the node's");
        std::thread::spawn(move || {
            for answer in ["HTTP/1.1 200 OK\r\n\r\n{}", "HTTP/1.0 503 Service Unavailable\r\n\r\n", "hello\r\n"] {
                let (mut stream, _) = listener.accept().expect("somebody asks");
                let mut request = [0; 1024];
                let mut length = 0;
                while !request[..length].ends_with(b"\r\n\r\n") {
                    length += stream.read(&mut request[length..]).expect("a request");
                }
                stream.write_all(answer.as_bytes()).expect("an answer is taken");
            }
        })
    });
    assert_eq!(http::get(&world, server, "/healthz"), Answer::Status(200));
    assert_eq!(http::get(&world, server, "/healthz"), Answer::Status(503));
    let odd = http::get(&world, server, "/healthz");
    assert!(matches!(&odd, Answer::Failed(why) if why.contains("hello")), "{odd:?}");
    serving.join().expect("all requests came");
}

#[test]
fn a_daemon_is_watched_and_ended() {
    const LONG: Duration = Duration::from_secs(30);
    let Some(world) = World::new(&[ip("192.0.2.10")], &[]) else { return };
    let script = "trap 'echo ending; exit 0' TERM; echo ready >&2; while :; do sleep 0.02; done";
    let start =
        |world: &World, script: &str| Daemon::start_program(world, "sh", &["-c", script]).expect("sh can be started");

    let mut daemon = start(&world, script);
    assert_eq!(daemon.wait_for_log(|line| line.starts_with("rea"), LONG).expect("it is in the log"), "ready");
    daemon.wait_for_log(|line| line == "never", Duration::from_millis(20)).expect_err("it is not in the log");
    assert!(daemon.resident_memory().expect("it runs") > 100_000, "less than any process has");
    assert!(daemon.alive());
    assert!(daemon.terminate(LONG).expect("it ends").success());
    assert_eq!(daemon.log().lines().collect::<Vec<_>>().len(), 2, "{}", daemon.log());
    assert!(!daemon.alive());

    let mut stubborn = start(&world, "trap '' TERM; echo ready; while :; do sleep 0.02; done");
    stubborn.wait_for_log(|line| line == "ready", LONG).expect("it is in the log");
    stubborn.terminate(Duration::from_millis(50)).expect_err("it does not end by itself");
    assert!(!stubborn.alive(), "it was killed");

    let mut crashing = start(&world, "echo ready; while :; do sleep 0.02; done");
    crashing.wait_for_log(|line| line == "ready", LONG).expect("it is in the log");
    crashing.signal(Signal::SIGABRT).expect("it runs");
    assert!(!crashing.terminate(LONG).expect("it has ended").success());

    let mut orphan = start(&world, script);
    orphan.wait_for_log(|line| line == "ready", LONG).expect("it is in the log");
    drop(world);
    let end = Instant::now() + LONG;
    while orphan.alive() {
        assert!(Instant::now() < end, "it outlives its node");
        std::thread::sleep(Duration::from_millis(2));
    }
}
