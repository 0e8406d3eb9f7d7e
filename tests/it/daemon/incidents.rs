//! Incidents that operators have: what becomes of the packet is seen first, and then `explain` has to name the cause, to end
//! with the status of it, and to say nothing of it where it is not so. What it says can be done is done.
//!
//! Here are those of Services, and of the tables that serve them. Not here: a full table of connections, as its limit is
//! that of the whole machine; `judge` has a unit test.

use serde_json::{Value, json};

use super::doctor::{sh, sysctls};
use super::{
    CLIENT, CLIENT_V6, NODE_IP, NODE_IP_V6, NODE_NAME, Node, OTHER_IP, echo_server, ip, run_to_end, slice, socket, web,
    write_everything, yaml,
};
use crate::support::objects::{endpoint_slice, service};
use crate::support::outcome::{Fate, Passed};
use crate::support::packet::{Protocol, Refusal};

/// What `explain` says of one packet.
pub(super) struct Explained {
    question: String,
    report: Value,
}

/// Asks about a packet, as programs do. The exit status is that of what becomes of it.
#[track_caller]
pub(super) fn explain(node: &Node, question: &str) -> Explained {
    let arguments: Vec<&str> = ["explain", "-o", "json"].into_iter().chain(question.split(' ')).collect();
    let ended = run_to_end(node, true, &arguments);
    let reports: Vec<Value> = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended:?}"));
    let [report] = &reports[..] else { panic!("one packet: {ended:?}") };
    let status = match report["verdict"].as_str() {
        Some("reached") => 0,
        Some("refused") => 3,
        Some("dropped") => 4,
        Some("not-ours") => 5,
        Some("unsure") => 6,
        Some("not-served") => 7,
        _ => panic!("{report:#}"),
    };
    assert_eq!(ended.status, Some(status), "{report:#}");
    Explained { question: question.to_owned(), report: report.clone() }
}

impl Explained {
    fn causes(&self, reason: &str) -> Vec<&Value> {
        let causes = self.report["causes"].as_array().expect("a list");
        causes.iter().filter(|cause| cause["reason"] == reason).collect()
    }

    /// A cause of this kind, of the packet or of all of its endpoints that have it. It decides, and the packet has that
    /// verdict.
    #[track_caller]
    fn decides(&self, reason: &str, verdict: &str, words: &[&str]) -> &Value {
        let causes = self.causes(reason);
        let Some(cause) = causes.first() else { panic!("{reason}: {:#}", self.report) };
        let of_packet = causes.iter().filter(|cause| cause["endpoint"].is_null()).count();
        assert!(of_packet <= 1, "{:#}", self.report);
        for cause in &causes {
            let decided = (&cause["effect"], &self.report["verdict"]);
            assert_eq!(decided, (&json!({"decides": verdict}), &json!(verdict)), "{:#}", self.report);
        }
        self.says(cause, words)
    }

    /// The one cause of this kind, which does not decide.
    #[track_caller]
    pub(super) fn notes(&self, reason: &str, words: &[&str]) -> &Value {
        let causes = self.causes(reason);
        let [cause] = &causes[..] else { panic!("{reason}: {:#}", self.report) };
        assert_eq!(cause["effect"], "note", "{:#}", self.report);
        self.says(cause, words)
    }

    #[track_caller]
    fn says<'a>(&self, cause: &'a Value, words: &[&str]) -> &'a Value {
        let text = format!("{} | {}", cause["what"].as_str().unwrap_or_default(), cause["endpoint"]);
        for word in words {
            assert!(text.contains(word), "{}: {word}: {text}", self.question);
        }
        cause
    }

    /// Nothing of this kind is said.
    #[track_caller]
    pub(super) fn is_silent(&self, reason: &str) {
        assert!(self.causes(reason).is_empty(), "{}: {reason}: {:#}", self.question, self.report);
    }

    pub(super) fn get(&self, field: &str) -> &Value {
        &self.report[field]
    }
}

/// The packet has this verdict, for this reason, which programs and people are told with these words. Returns what can be
/// done about it.
#[track_caller]
pub(super) fn incident(node: &Node, question: &str, reason: &str, verdict: &str, words: &[&str]) -> String {
    let explained = explain(node, question);
    let cause = explained.decides(reason, verdict, words);
    let arguments: Vec<&str> = ["explain"].into_iter().chain(question.split(' ')).collect();
    let text = run_to_end(node, true, &arguments).stdout;
    let start = match verdict {
        "refused" => "REFUSED",
        "dropped" => "DROPPED",
        "not-ours" => "NOT OURS",
        "unsure" => "NOBODY CAN TELL",
        "not-served" => "REACHED, NOT ANSWERED",
        _ => panic!("{verdict}"),
    };
    let (_, result) = text.split_once("\n=> ").unwrap_or_else(|| panic!("{text}"));
    assert!(result.starts_with(start), "{start}: {text}");
    for word in words {
        assert!(result.contains(word), "{word}: {text}");
    }
    cause["fix"].as_str().unwrap_or_default().to_owned()
}

/// The packet comes to an endpoint, and none of these is said of it.
#[track_caller]
pub(super) fn is_well(node: &Node, question: &str, reasons: &[&str]) {
    // Packets that a test has sent are connections that nobody has answered.
    node.world.flush_conntrack().expect("connections can be forgotten");
    let explained = explain(node, question);
    reasons.iter().for_each(|reason| explained.is_silent(reason));
    assert_eq!(explained.get("verdict"), "reached", "{:#}", explained.report);
    assert!(explained.report["causes"].as_array().is_some_and(Vec::is_empty), "{:#}", explained.report);
}

/// Types what can be done, from where the command begins.
#[track_caller]
pub(super) fn mend(node: &Node, fix: &str, command: &str) {
    let (_, rest) = fix.split_once(command).unwrap_or_else(|| panic!("{command}: {fix}"));
    sh(node, &format!("{command}{}", rest.split(';').next().unwrap_or_default()));
}

pub(super) fn config() -> Value {
    // What the namespace cannot change is not asked for.
    json!({"clusterCIDR": "10.1.0.0/16,fd00:1::/64", "conntrack": {"maxPerCore": 0}, "nodePortAddresses": ["primary"]})
}

/// A node on which nothing is wrong, with tables that others can change.
pub(super) fn started() -> Option<Node> {
    let mut node = Node::unprotected()?;
    sysctls(&node);
    write_everything(&node);
    let three = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"];
    node.write("three.yaml", &yaml(&web("three", "172.30.1.9", &three)));
    node.start(&config());
    Some(node)
}

#[track_caller]
pub(super) fn is_refused(node: &mut Node, to: &str) {
    let fate = node.fate(Protocol::Tcp, to);
    assert!(matches!(fate, Fate::Reject(_)), "{to}: {fate:?}");
}

#[track_caller]
pub(super) fn is_dropped(node: &mut Node, to: &str) {
    let fate = node.fate(Protocol::Tcp, to);
    assert_eq!(fate, Fate::Drop, "{to}");
}

/// A slice of these endpoints that says of their pods that they are so.
fn slice_with(name: &str, endpoints: &[&str], conditions: &Value) -> Value {
    let mut slice = slice(name, endpoints);
    for (number, endpoint) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().enumerate() {
        endpoint["conditions"] = conditions.clone();
        endpoint["targetRef"] = json!({"kind": "Pod", "namespace": "shop", "name": format!("{name}-{number}")});
    }
    slice
}

#[test]
fn no_endpoint_is_not_the_same_as_none_ready() {
    let Some(mut node) = started() else { return };
    let (from, to) = (CLIENT, "172.30.1.4:80");
    let question = format!("{from} {to}");
    let both = ["no-endpoints", "endpoints-not-ready"];
    is_refused(&mut node, to);
    let fix = incident(&node, &question, "no-endpoints", "refused", &["there is no EndpointSlice of this Service"]);
    assert!(fix.starts_with("kubectl get endpointslices -n shop -l kubernetes.io/service-name=empty;"), "{fix}");
    explain(&node, &question).is_silent("endpoints-not-ready");
    is_well(&node, &format!("{from} 172.30.1.1:80"), &both);

    // Each is what the Service has instead of the one before, and refused all the time.
    let mut empty = slice("empty", &["10.1.0.9:8080"]);
    empty["endpoints"] = json!([]);
    let not_ready = json!({"ready": false, "serving": false, "terminating": false});
    let terminating = json!({"ready": false, "serving": false, "terminating": true});
    let cases = [
        (empty, "no-endpoints", "its 1 EndpointSlice has no endpoint"),
        (
            super::slice_of("empty", ("https", Protocol::Tcp), &["10.1.0.9:8443"]),
            "no-endpoints",
            "no EndpointSlice has a port of this name and protocol; 1 endpoint of other ports",
        ),
        (
            slice_with("empty", &["10.1.0.8:8080", "10.1.0.9:8080"], &not_ready),
            "endpoints-not-ready",
            "0 of 2 endpoints ready: 10.1.0.8:8080 (empty-0) not ready, 10.1.0.9:8080 (empty-1) not ready",
        ),
        (
            slice_with("empty", &["10.1.0.8:8080"], &terminating),
            "endpoints-not-ready",
            "0 of 1 endpoint ready: 10.1.0.8:8080 (empty-0) terminating, not serving",
        ),
    ];
    for (slice, reason, words) in cases {
        node.replace("slice.yaml", &yaml(&[slice]));
        node.eventually(words, |node| {
            let said = explain(node, &question);
            let is_so = |cause: &&Value| cause["what"].as_str().is_some_and(|what| what.contains(words));
            if said.causes(reason).iter().any(is_so) { Ok(()) } else { Err(said.report.to_string()) }
        });
        is_refused(&mut node, to);
        incident(&node, &question, reason, "refused", &[words]);
    }
    node.replace("slice.yaml", &yaml(&[slice("empty", &["10.1.0.9:8080"])]));
    node.wait_forward("it is ready", to, &["10.1.0.9:8080"]);
    is_well(&node, &question, &both);
}

#[test]
fn policies_that_want_an_endpoint_on_this_node_are_named() {
    let Some(mut node) = started() else { return };
    let mut inside = web("inside", "172.30.1.5", &["10.1.0.5:8080"]);
    inside[0]["spec"]["internalTrafficPolicy"] = json!("Local");
    let mut six = web("balanced-six", "fd00:172:30::3", &["[fd00:1::3]:8080"]);
    six[0]["spec"]["type"] = json!("LoadBalancer");
    six[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    six[0]["spec"]["ports"][0]["nodePort"] = json!(30081);
    six[0]["status"]["loadBalancer"]["ingress"] = json!([{"ip": "2001:db8:100::3"}]);
    node.write("local.yaml", &yaml(&[inside, six].concat()));
    node.wait_fate("it is known", "172.30.1.5:80", |fate| *fate == Fate::Drop);
    let all = ["external-traffic-policy", "internal-traffic-policy", "source-ranges"];
    let cases = [
        (CLIENT, "172.30.1.5:80", "internal-traffic-policy", "10.1.0.5:8080 on elsewhere"),
        (CLIENT, "198.51.100.3:80", "external-traffic-policy", "10.1.0.1:8080 on elsewhere"),
        (CLIENT, "192.0.2.10:30080", "external-traffic-policy", "10.1.0.1:8080 on elsewhere"),
        (CLIENT_V6, "[2001:db8:100::3]:80", "external-traffic-policy", "[fd00:1::3]:8080 on elsewhere"),
    ];
    let fates = |node: &mut Node| cases.map(|(from, to, ..)| node.fate_from(ip(from), Protocol::Tcp, to));
    node.eventually("all are known", |node| match fates(node) {
        fates if fates.iter().all(|fate| *fate == Fate::Drop) => Ok(()),
        fates => Err(format!("{fates:?}")),
    });
    for (from, to, reason, elsewhere) in cases {
        let policy = if reason.starts_with('i') { "internalTrafficPolicy" } else { "externalTrafficPolicy" };
        let question = format!("{from} {to}");
        let what = format!("{policy} is Local, and this node has no endpoint that is ready; elsewhere: {elsewhere}");
        let fix = incident(&node, &question, reason, "dropped", &[&what]);
        let is_node_port = to.ends_with(":30080");
        assert_eq!(fix == "connect to a node that has an endpoint", is_node_port, "{to}: {fix}");
        all.iter().filter(|other| **other != reason).for_each(|other| explain(&node, &question).is_silent(other));
    }
    // The node itself, and pods, have the Service by all endpoints.
    for from in [NODE_IP_V6, "fd00:1::77"] {
        let to = "[2001:db8:100::3]:80";
        let fate = node.fate_from(ip(from), Protocol::Tcp, to);
        assert!(matches!(fate, Fate::Forward { .. }), "{from}: {fate:?}");
        is_well(&node, &format!("{from} {to}"), &all);
    }
    let slice = |name: &str, endpoint: &str| {
        let name = (format!("{name}-here"), name);
        endpoint_slice("shop", &name.0, name.1, ("http", Protocol::Tcp), &[(socket(endpoint), NODE_NAME)])
    };
    let here = [
        slice("inside", "10.1.0.6:8080"),
        slice("balanced", "10.1.0.6:8080"),
        slice("balanced-six", "[fd00:1::6]:8080"),
    ];
    node.write("here.yaml", &yaml(&here));
    node.eventually("all are served", |node| match fates(node) {
        fates if fates.iter().all(|fate| matches!(fate, Fate::Forward { .. })) => Ok(()),
        fates => Err(format!("{fates:?}")),
    });
    for (from, to, ..) in cases {
        is_well(&node, &format!("{from} {to}"), &all);
    }
}

#[test]
fn clients_outside_of_the_source_ranges_are_told_so() {
    let Some(mut node) = started() else { return };
    let here =
        endpoint_slice("shop", "b", "balanced", ("http", Protocol::Tcp), &[(socket("10.1.0.6:8080"), NODE_NAME)]);
    node.write("here.yaml", &yaml(&[here]));
    node.wait_forward("it is served", "198.51.100.3:80", &["10.1.0.6:8080"]);
    let (from, to) = ("198.18.0.1", "198.51.100.3:80");
    assert_eq!(node.fate_from(ip(from), Protocol::Tcp, to), Fate::Drop);
    let words = "198.18.0.1 is in none of loadBalancerSourceRanges (203.0.113.0/24)";
    incident(&node, &format!("{from} {to}"), "source-ranges", "dropped", &[words]);
    explain(&node, &format!("{from} {to}")).is_silent("external-traffic-policy");
    is_well(&node, &format!("{CLIENT} {to}"), &["source-ranges"]);
    // They are of the load balancer alone.
    is_well(&node, &format!("{from} 192.0.2.10:30080"), &["source-ranges"]);

    // They bind the node, too, and no other family.
    assert_eq!(node.fate_from(ip(NODE_IP), Protocol::Tcp, to), Fate::Drop);
    let words = "192.0.2.10 is in none of loadBalancerSourceRanges (203.0.113.0/24)";
    incident(&node, to, "source-ranges", "dropped", &[words]);
    let mut six = web("only-six", "172.30.1.6", &["10.1.0.1:8080"]);
    six[0]["spec"]["type"] = json!("LoadBalancer");
    six[0]["spec"]["ports"][0]["nodePort"] = json!(30082);
    six[0]["spec"]["loadBalancerSourceRanges"] = json!(["2001:db8::/32"]);
    six[0]["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.6"}]);
    node.write("six.yaml", &yaml(&six));
    node.wait_forward("it is served", "198.51.100.6:80", &["10.1.0.1:8080"]);
    is_well(&node, &format!("{CLIENT} 198.51.100.6:80"), &["source-ranges"]);
    // The table has what is needed to tell.
    node.kill();
    let said = explain(&node, &format!("{from} {to}"));
    said.decides("source-ranges", "dropped", &["198.18.0.1 is in none of loadBalancerSourceRanges (203.0.113.0/24)"]);
    said.notes("daemon-down", &["nobody changes what the kernel has"]);
}

#[test]
fn addresses_without_a_service_are_told_apart() {
    let Some(mut node) = started() else { return };
    is_dropped(&mut node, "172.30.9.9:80");
    let words = ["no Service has 172.30.9.9, which is in 172.30.0.0/16: an address that is not given out"];
    incident(&node, &format!("{CLIENT} 172.30.9.9:80"), "free-cluster-ip", "dropped", &words);
    let fate = node.fate(Protocol::Tcp, "[fd00:172:30::9:9]:80");
    assert_eq!(fate, Fate::Drop);
    let words = ["no Service has fd00:172:30::9:9, which is in fd00:172:30::/"];
    incident(&node, &format!("{CLIENT_V6} [fd00:172:30::9:9]:80"), "free-cluster-ip", "dropped", &words);

    for (from, to, protocol, words) in [
        (
            CLIENT,
            "172.30.1.1:81",
            Protocol::Tcp,
            "no Service has 172.30.1.1:81 tcp; 172.30.1.1: 80 tcp (shop/web:http)",
        ),
        (
            CLIENT,
            "172.30.1.1:80",
            Protocol::Udp,
            "no Service has 172.30.1.1:80 udp; 172.30.1.1: 80 tcp (shop/web:http)",
        ),
        (CLIENT_V6, "[fd00:172:30::1]:443", Protocol::Tcp, "fd00:172:30::1: 80 tcp (shop/web-six:http)"),
    ] {
        let fate = node.fate_from(ip(from), protocol, to);
        assert!(matches!(fate, Fate::Reject(_)), "{to}: {fate:?}");
        incident(&node, &format!("--proto {protocol} {from} {to}"), "no-such-port", "refused", &[words]);
    }
    // Elsewhere, and here.
    assert_eq!(node.fate(Protocol::Tcp, "198.51.100.77:80"), Fate::Pass(Passed::Out));
    incident(&node, &format!("{CLIENT} 198.51.100.77:80"), "no-service", "not-ours", &["no Service has 198.51.100.77"]);
    let here = "192.0.2.10:8081";
    assert_eq!(node.fate(Protocol::Tcp, here), Fate::Pass(Passed::Delivered));
    let words = ["192.0.2.10 is an address of this node (world0), and nobody listens on tcp 8081"];
    incident(&node, &format!("{CLIENT} {here}"), "local-address", "not-ours", &words);
    echo_server(&node, socket(here));
    let said = explain(&node, &format!("{CLIENT} {here}"));
    said.decides("local-address", "not-ours", &["192.0.2.10 is an address of this node (world0)"]);
    said.notes("listener", &["listens on 192.0.2.10:8081, and answers there"]);
    for to in ["172.30.1.1:80", "172.30.1.9:80"] {
        is_well(&node, &format!("{CLIENT} {to}"), &["no-such-port", "free-cluster-ip", "no-service", "local-address"]);
    }
}

#[test]
fn where_node_ports_are_served_is_said() {
    let Some(mut node) = started() else { return };
    let mut open = web("open", "172.30.1.7", &["10.1.0.1:8080"]);
    open[0]["spec"]["type"] = json!("NodePort");
    open[0]["spec"]["ports"][0]["nodePort"] = json!(30090);
    // The same number for another protocol is another node port.
    let port = json!({"name": "dns", "port": 53, "nodePort": 30090, "protocol": "UDP"});
    let mut dns = vec![service("shop", "dns", &[ip("172.30.1.8")], &json!({"type": "NodePort", "ports": [port]}))];
    dns.push(super::slice_of("dns", ("dns", Protocol::Udp), &["10.1.0.53:53"]));
    node.write("open.yaml", &yaml(&[open, dns].concat()));
    node.wait_forward("it is served", "192.0.2.10:30090", &["10.1.0.1:8080"]);
    is_well(&node, &format!("--proto tcp {CLIENT} {NODE_IP}:30090"), &["node-port-address", "listener"]);
    is_well(&node, &format!("--proto udp {CLIENT} {NODE_IP}:30090"), &["node-port-address", "listener"]);

    let other = format!("{OTHER_IP}:30090");
    assert_eq!(node.fate(Protocol::Tcp, &other), Fate::Pass(Passed::Delivered));
    let words = "30090 of shop/open:http is a node port, and those are served on 192.0.2.10 only (nodePortAddresses)";
    let question = format!("--proto tcp {CLIENT} {other}");
    let fix = incident(&node, &question, "node-port-address", "not-ours", &[words]);
    assert_eq!(fix, "connect to 192.0.2.10:30090");
    assert!(matches!(node.fate(Protocol::Tcp, "192.0.2.10:30090"), Fate::Forward { .. }));

    let refused =
        node.world.run(|| std::net::TcpStream::connect("127.0.0.1:30090").expect_err("nobody is there").kind());
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    let words = "30090 of shop/open:http is a node port, and those are not served on loopback addresses";
    let fix = incident(&node, "--proto tcp 127.0.0.1:30090", "node-port-address", "not-ours", &[words]);
    assert_eq!(fix, "connect to 192.0.2.10:30090");

    // Who listens there is hidden, and answers where it is not.
    echo_server(&node, socket("0.0.0.0:30090"));
    assert!(matches!(node.fate(Protocol::Tcp, "192.0.2.10:30090"), Fate::Forward { .. }));
    node.world.flush_conntrack().expect("connections can be forgotten");
    let said = explain(&node, &format!("--proto tcp {CLIENT} {NODE_IP}:30090"));
    said.notes("listener", &["listens on 192.0.2.10:30090, which the Service hides"]);
    assert_eq!(said.get("verdict"), "reached");
    let answered = node.world.run(|| std::net::TcpStream::connect("127.0.0.1:30090").map(drop));
    answered.expect("the process answers");
    let said = explain(&node, "--proto tcp 127.0.0.1:30090");
    said.decides("node-port-address", "not-ours", &[words]);
    said.notes("listener", &["listens on 127.0.0.1:30090, and answers there"]);
}

/// The daemon forgets clients of what is gone: nobody does when it is gone itself.
#[test]
fn a_client_that_is_remembered_at_an_endpoint_that_is_gone_is_told_so() {
    let Some(mut node) = started() else { return };
    let to = "172.30.1.2:80";
    let question = format!("{CLIENT} {to}");
    let Fate::Forward { endpoint, .. } = node.fate(Protocol::Tcp, to) else { panic!("it is served") };
    is_well(&node, &question, &["remembered-endpoint-gone"]);
    let facts = explain(&node, &question).get("facts").to_string();
    assert!(facts.contains(&format!("this client at {endpoint}, for 10")), "{facts}");
    node.kill();
    let (key, other) = ("172.30.1.2 . tcp . 80", "10.1.0.7:8080");
    for slot in 0..2 {
        node.nft(&[&format!("delete element ip nftproxyd endpoints {{ {key} . {slot} }}")]).expect("it is there");
        let element = format!("{key} . {slot} : 10.1.0.7 . 8080");
        node.nft(&[&format!("add element ip nftproxyd endpoints {{ {element} }}")]).expect("it is taken");
    }
    // Who is new goes to the one that there is.
    let new = "203.0.113.8";
    let Fate::Forward { endpoint: others, .. } = node.fate_from(ip(new), Protocol::Tcp, to) else { panic!("{new}") };
    assert_eq!(others, socket(other));
    node.world.flush_conntrack().expect("connections can be forgotten");
    explain(&node, &format!("{new} {to}")).is_silent("remembered-endpoint-gone");
    let at = |node: &mut Node| match node.fate(Protocol::Tcp, to) {
        Fate::Forward { endpoint, .. } => endpoint,
        fate => panic!("{fate:?}"),
    };
    assert_eq!(at(&mut node), endpoint);
    node.world.flush_conntrack().expect("connections can be forgotten");
    let words = [&format!("the client is remembered at {endpoint} for 10") as &str, "which the Service does not have"];
    let fix = incident(&node, &question, "remembered-endpoint-gone", "not-served", &words);
    mend(&node, &fix, "nft delete element");
    let said = explain(&node, &question);
    said.is_silent("remembered-endpoint-gone");
    assert_eq!(said.get("verdict"), "reached");
    assert_eq!(at(&mut node), socket(other));
}

#[test]
fn a_node_without_its_daemon_and_one_without_tables_are_told_apart() {
    let Some(mut node) = started() else { return };
    let (to, six) = ("172.30.1.1:80", "[fd00:172:30::1]:80");
    let question = format!("{CLIENT} {to}");
    let all = ["daemon-down", "no-table", "damaged-table"];
    is_well(&node, &question, &all);
    node.kill();
    node.wait_forward("the kernel goes on", to, &["10.1.0.1:8080"]);
    node.world.flush_conntrack().expect("connections can be forgotten");
    let said = explain(&node, &question);
    said.notes("daemon-down", &["no daemon answers, so nobody changes what the kernel has: ", "Connection refused"]);
    assert_eq!(said.get("verdict"), "reached");
    ["no-table", "damaged-table"].iter().for_each(|reason| said.is_silent(reason));

    // Switched off, and that of the other family is not.
    node.nft(&["add table ip nftproxyd { flags dormant; }"]).expect("nobody owns it");
    assert_eq!(node.fate(Protocol::Tcp, to), Fate::Pass(Passed::Out));
    incident(&node, &question, "no-table", "not-ours", &["table ip nftproxyd is switched off (dormant)"]);
    node.wait_fate("it is served", six, |fate| matches!(fate, Fate::Forward { .. }));
    explain(&node, &format!("{CLIENT_V6} {six}")).is_silent("no-table");
    node.nft(&["delete table ip nftproxyd"]).expect("nobody owns it");
    assert_eq!(node.fate(Protocol::Tcp, to), Fate::Pass(Passed::Out));
    let words = ["table ip nftproxyd is not there: no Service is served on this node"];
    let fix = incident(&node, &question, "no-table", "not-ours", &words);
    assert_eq!(fix, "start nftproxyd");
    let ended = run_to_end(&node, true, &["explain", CLIENT, "shop/web"]);
    assert!(
        ended.stderr.contains("nothing in table ip nftproxyd is of Service shop/web (the daemon could tell more"),
        "{ended:?}"
    );
    let gone = "table ip nftproxyd is not there: nothing is served in IPv4, and nobody tells what would be";
    assert!(ended.stderr.contains(gone), "{ended:?}");
    // Of a Service that is served in the other family, it is said beside that, unless the client can have none of this one.
    for (client, is_said) in [(None, true), (Some(CLIENT_V6), false)] {
        let arguments: Vec<&str> = ["explain"].into_iter().chain(client).chain(["shop/web-six"]).collect();
        let text = run_to_end(&node, true, &arguments).stdout;
        assert!(text.contains(six), "{client:?}: {text}");
        assert_eq!(text.contains(&format!("note: {gone}")), is_said, "{client:?}: {text}");
    }
    node.start(&config());
    assert!(matches!(node.fate(Protocol::Tcp, to), Fate::Forward { .. }));
    is_well(&node, &question, &all);
    node.kill();

    // What somebody has changed by hand, each with what becomes of the packet then.
    let pass = Fate::Pass(Passed::Out);
    let cases = [
        ("flush chain ip nftproxyd nat-prerouting", pass.clone(), "not-ours", "must have: nat-prerouting"),
        ("delete chain ip nftproxyd nat-prerouting", pass.clone(), "not-ours", "missing chains: nat-prerouting"),
        ("flush map ip nftproxyd dispatch", Fate::Reject(Refusal::TcpReset), "refused", "map dispatch lacks"),
        (
            "flush map ip nftproxyd endpoints",
            Fate::Pass(Passed::SourceChanged),
            "not-ours",
            "elements of shop/web:http",
        ),
        ("flush chain ip nftproxyd cluster-pick-1", pass.clone(), "unsure", "must have: cluster-pick-1"),
        ("insert rule ip nftproxyd nat-prerouting accept", pass, "unsure", "chain nat-prerouting, rule 1"),
    ];
    for (damage, fate, verdict, words) in cases {
        node.nft(&[damage]).unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert_eq!(node.fate(Protocol::Tcp, to), fate, "{damage}");
        let said = explain(&node, &question);
        said.decides("damaged-table", verdict, &["table ip nftproxyd is not as it has to be", words]);
        for reason in ["no-service", "no-such-port", "no-endpoints", "internal-traffic-policy"] {
            said.is_silent(reason);
        }
        node.start(&config());
        is_well(&node, &question, &all);
        node.kill();
    }
    // What does not concern it is said all the same.
    node.nft(&["flush chain ip nftproxyd reject-it"]).expect("nobody owns it");
    node.wait_forward("it is served", to, &["10.1.0.1:8080"]);
    node.world.flush_conntrack().expect("connections can be forgotten");
    let said = explain(&node, &question);
    said.notes("damaged-table", &["must have: reject-it"]);
    assert_eq!(said.get("verdict"), "reached");
}
