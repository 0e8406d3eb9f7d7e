//! Clients of endpoints that are gone, with real connections: a client on another machine, one on the node, and pods.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{NODE_IP, NODE_IP_V6, NODE_NAME, Node, PATIENCE, ip, node_object, run_to_end, socket, yaml};
use crate::netns::{nft, set_sysctl};
use crate::support::http;
use crate::support::namespace::Namespace;
use crate::support::objects::{service, service_cidr};

/// How long a client waits that is to wait in vain: longer than an endpoint has to be away. A packet is repeated three times within it.
const IN_VAIN: Duration = Duration::from_secs(3);
/// How long a client waits that is to get an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// What says that connections were reset.
const RESET: &str = "connections to endpoints that are gone are reset";

type State = [bool; 3];
const READY: State = [true, true, false];
const UNREADY: State = [false, false, false];
const LEFT: State = [false, false, true];

/// A node between a client and pods. Each pod answers with its number.
struct Net {
    node: Node,
    client: Arc<Namespace>,
    pods: Arc<Namespace>,
}

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Client,
    Node,
    /// The pod of this number, in IPv4.
    Pod(u8),
}

impl Net {
    /// `None` where tests cannot have nodes.
    fn new() -> Option<Net> {
        let node = Node::new()?;
        let further = || Arc::new(Namespace::further().expect("a node can be made, and so can this"));
        let net = Net { node, client: further(), pods: further() };
        for (name, namespace, node_ips, ips) in [
            (
                "client",
                &net.client,
                ["198.18.1.254/24", "fd00:18:1::fe/64"],
                ["198.18.1.1/24", "fd00:18:1::1/64"].as_slice(),
            ),
            (
                "pods",
                &net.pods,
                ["10.1.9.254/24", "fd00:1:9::fe/64"],
                &["10.1.9.1/24", "10.1.9.2/24", "fd00:1:9::1/64", "fd00:1:9::2/64"],
            ),
        ] {
            net.node.ip(&format!("link add {name} type veth peer name eth0 netns {}", namespace.id()));
            net.node.ip(&format!("link set {name} up"));
            node_ips
                .iter()
                .for_each(|address| net.node.ip(&format!("addr add {address} dev {name}{}", nodad(address))));
            // Without one, the node asks no neighbour on behalf of others.
            net.node.ip(&format!("addr add fe80::fe/64 dev {name} nodad"));
            let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
            lines.extend(ips.iter().map(|address| format!("addr add {address} dev eth0{}", nodad(address))));
            lines.extend(node_ips.iter().map(|address| {
                let (gateway, _) = address.split_once('/').expect("a prefix");
                let family = if gateway.contains(':') { "-6" } else { "-4" };
                format!("{family} route add default via {gateway}")
            }));
            namespace.run(move || {
                for device in ["all", "eth0"] {
                    set_sysctl(&format!("ipv6/conf/{device}/disable_ipv6"), "0").expect("it is ours");
                }
                for line in lines {
                    let status = Command::new("ip").args(line.split(' ')).status().expect("ip is installed");
                    assert!(status.success(), "ip {line}");
                }
                answer_with_numbers();
            });
        }
        net.node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
        net.node.write("cidr.yaml", &yaml(&[service_cidr()]));
        Some(net)
    }

    /// Packets to this pod are lost from now on.
    fn kill(&self, pod: u8) {
        self.pods.run(move || {
            let rules = format!(
                "add table inet dead; add chain inet dead input {{ type filter hook input priority 0; }}; \
                 add rule inet dead input ip daddr 10.1.9.{pod} drop; add rule inet dead input ip6 daddr fd00:1:9::{pod} drop"
            );
            nft(&["-f", "-"], &rules);
        });
    }

    /// A connection that has had an answer, and from which pod.
    fn open(&self, from: From, to: &str) -> io::Result<(TcpStream, u8)> {
        let to = socket(to);
        let connect = move |local: Option<IpAddr>| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(local) = local {
                socket.bind(&SocketAddr::new(local, 0).into())?;
            }
            socket.connect_timeout(&to.into(), ANSWER)?;
            io::Result::Ok(TcpStream::from(socket))
        };
        let mut stream = match from {
            From::Client => self.client.run(move || connect(None)),
            From::Node => self.node.world.run(move || connect(None)),
            From::Pod(number) => self.pods.run(move || connect(Some(ip(&format!("10.1.9.{number}"))))),
        }?;
        stream.set_nodelay(true)?;
        let number = asks(&mut stream, ANSWER)?;
        Ok((stream, number))
    }

    /// A connection to this pod.
    fn open_to(&mut self, from: From, to: &str, pod: u8) -> TcpStream {
        let mut opened = None;
        let end = Instant::now() + PATIENCE;
        while opened.is_none() {
            match self.open(from, to) {
                Ok((stream, number)) if number == pod => opened = Some(stream),
                other => assert!(Instant::now() < end, "{from:?} to {to}: {other:?}\n{}", self.node.log()),
            }
        }
        opened.expect("it is opened")
    }

    /// The value of a metric.
    fn metric(&self, name: &str) -> f64 {
        let at = SocketAddr::new(ip("127.0.0.1"), 10249);
        let text = http::body(&self.node.world, at, "/metrics").expect("it is served");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
    }

    /// How many connections have been reset, as the metrics have it, by family.
    fn counted(&self) -> [f64; 2] {
        ["IPv4", "IPv6"]
            .map(|family| self.metric(&format!("nftproxyd_connections_reset_total{{ip_family=\"{family}\"}}")))
    }

    /// Waits until as many have been reset, or more.
    fn wait_for_resets(&self, wanted: [f64; 2]) {
        let end = Instant::now() + PATIENCE;
        while self.counted().into_iter().zip(wanted).any(|(counted, wanted)| counted < wanted) {
            assert!(Instant::now() < end, "{:?}\n{}", self.counted(), self.node.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many changes of EndpointSlices the daemon has heard of.
    fn changes(&self) -> f64 {
        self.metric("kubeproxy_sync_proxy_rules_endpoint_changes_total")
    }

    /// Waits until it has heard of as many, and the rules are as they should be.
    fn wait_for_changes(&mut self, wanted: f64) {
        let end = Instant::now() + PATIENCE;
        while self.changes() < wanted || self.metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending") > 0.0 {
            assert!(Instant::now() < end, "{}", self.node.log());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// A server in this namespace that answers each read with the last part of the address that the client has reached.
fn answer_with_numbers() {
    let listener = TcpListener::bind("[::]:7777").expect("nobody else is there");
    let answer = |mut stream: TcpStream| {
        let number = match stream.local_addr().map(|at| at.ip().to_canonical()) {
            Ok(IpAddr::V4(address)) => address.octets()[3],
            Ok(IpAddr::V6(address)) => address.octets()[15],
            Err(_) => 0,
        };
        while let Ok(1..) = stream.read(&mut [0; 64]) {
            if stream.write_all(&[number]).is_err() {
                return;
            }
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
}

/// Sends something and waits for the answer.
fn asks(stream: &mut TcpStream, patience: Duration) -> io::Result<u8> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"?")?;
    let mut number = [0];
    stream.read_exact(&mut number)?;
    Ok(number[0])
}

fn is_reset(result: &io::Result<u8>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn waits(result: &io::Result<u8>) -> bool {
    result.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

/// A client that is reset, by its next packet and at once.
fn assert_reset(stream: &mut TcpStream, what: &str, node: &Node) {
    let began = Instant::now();
    let result = asks(stream, ANSWER);
    let took = began.elapsed();
    assert!(is_reset(&result), "{what}: {result:?} after {took:?}\n{}", node.log());
    assert!(took < Duration::from_secs(5), "{what}: {took:?}");
}

/// Clients that ask all the time. What they get wrong ends it.
struct Busy {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<usize, String>>>,
}

impl Busy {
    fn start(clients: Vec<(TcpStream, u8)>) -> Busy {
        let over = Arc::new(AtomicBool::new(false));
        let client = |(mut stream, pod): (TcpStream, u8)| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    match asks(&mut stream, ANSWER) {
                        Ok(number) if number == pod => asked += 1,
                        other => return Err(format!("{other:?} instead of {pod} after {asked}")),
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(asked)
            })
        };
        let clients = clients.into_iter().map(client).collect();
        Busy { over, clients }
    }

    fn stop(self, node: &Node) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            let asked = client.join().expect("no panic").unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
            assert!(asked > 0);
        }
    }
}

/// A Service with cluster IPs 172.30.1.NUMBER and fd00:172:30::NUMBER and node port 30000 + NUMBER, that asks or does not.
fn web(name: &str, number: u8, asks: bool, spec: &Value) -> Value {
    let port = json!({"name": "http", "port": 80, "targetPort": 7777, "nodePort": 30_000 + u32::from(number)});
    let mut whole = json!({"type": "NodePort", "ports": [port]});
    crate::support::objects::merge(&mut whole, spec);
    let ips = [ip(&format!("172.30.1.{number}")), ip(&format!("fd00:172:30::{number:x}"))];
    let mut object = service("shop", name, &ips, &whole);
    if asks {
        object["metadata"]["annotations"] = json!({"nftproxyd.io/reset-connections": "true"});
    }
    object
}

/// Its slices: pods on other nodes, each in a state, in both families.
fn slices(name: &str, pods: &[(u8, State)]) -> Vec<Value> {
    let pods: Vec<(String, String, State, &str)> = pods
        .iter()
        .map(|(pod, state)| (format!("10.1.9.{pod}"), format!("fd00:1:9::{pod}"), *state, "elsewhere"))
        .collect();
    slices_of(name, &pods)
}

fn slices_of(name: &str, endpoints: &[(String, String, State, &str)]) -> Vec<Value> {
    let of = |family: &str| {
        let endpoints = endpoints.iter().map(|(v4, v6, [ready, serving, terminating], node)| {
            json!({"addresses": [if family == "IPv4" { v4 } else { v6 }], "nodeName": node,
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "shop", "name": format!("{name}-{}", family.to_lowercase()),
                         "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "http", "port": 7777, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<Value>>(),
        })
    };
    ["IPv4", "IPv6"].map(of).into()
}

/// The ways to a Service of this number.
fn ways(number: u8) -> [(From, String); 6] {
    [
        (From::Client, format!("172.30.1.{number}:80")),
        (From::Client, format!("[fd00:172:30::{number:x}]:80")),
        (From::Client, format!("{NODE_IP}:{}", 30_000 + u32::from(number))),
        (From::Client, format!("[{NODE_IP_V6}]:{}", 30_000 + u32::from(number))),
        (From::Node, format!("172.30.1.{number}:80")),
        (From::Node, format!("[fd00:172:30::{number:x}]:80")),
    ]
}

#[test]
fn clients_of_an_endpoint_that_is_gone_are_reset_and_no_others() {
    let Some(mut net) = Net::new() else { return };
    let services = [
        ("asks", 1, true, json!({})),
        ("sticky", 2, true, json!({"sessionAffinity": "ClientIP"})),
        ("last", 3, true, json!({})),
        ("silent", 4, false, json!({})),
    ];
    let objects: Vec<Value> =
        services.iter().map(|(name, number, asks, spec)| web(name, *number, *asks, spec)).collect();
    net.node.write("services.yaml", &yaml(&objects));
    let list = |net: &Net, pods: &[(u8, State)]| {
        for (name, ..) in &services {
            // The last one has no other.
            let pods = if *name == "last" { &pods[..pods.len().min(1)] } else { pods };
            let pods: Vec<(u8, State)> = pods.iter().copied().filter(|(pod, _)| *name != "last" || *pod == 1).collect();
            net.node.replace(&format!("{name}.yaml"), &yaml(&slices(name, &pods)));
        }
    };
    list(&net, &[(1, READY)]);
    net.node.start(&json!({}));
    let mut olds: Vec<(u8, String, TcpStream)> = Vec::new();
    for (_, number, ..) in &services {
        for (from, to) in ways(*number) {
            let stream = net.open_to(from, &to, 1);
            olds.push((*number, format!("{from:?} to {to}"), stream));
        }
    }
    // One that is over counts for nothing.
    drop(net.open_to(From::Client, "172.30.1.1:80", 1));
    list(&net, &[(1, READY), (2, READY)]);
    let mut others = Vec::new();
    for (_, number, ..) in services.iter().filter(|(name, ..)| !["sticky", "last"].contains(name)) {
        for (from, to) in ways(*number) {
            others.push((net.open_to(from, &to, 2), 2));
        }
    }
    let busy = Busy::start(others);

    // One that is there, in whatever state, keeps its clients.
    for state in [UNREADY, LEFT] {
        let before = net.changes();
        list(&net, &[(1, state), (2, READY)]);
        net.wait_for_changes(before + 2.0 * services.len() as f64);
        for (_, what, stream) in &mut olds {
            for _ in 0..3 {
                let result = asks(stream, ANSWER);
                assert_eq!(result.as_ref().ok(), Some(&1), "{what}, {state:?}: {result:?}\n{}", net.node.log());
            }
        }
    }
    assert!(!net.node.log().contains(RESET), "{}", net.node.log());

    net.kill(1);
    list(&net, &[(2, READY)]);
    net.wait_for_resets([9.0, 9.0]);
    for (number, what, stream) in &mut olds {
        match number {
            // Who is early is sent where it was sent before, until the kernel has forgotten that.
            2 => assert_reset_in_time(stream, what, &net.node),
            4 => {
                let result = asks(stream, IN_VAIN);
                assert!(waits(&result), "{what}: {result:?}: nobody asks for it");
            }
            _ => assert_reset(stream, what, &net.node),
        }
    }
    for (from, to) in ways(1).into_iter().chain(ways(2)) {
        net.open_to(from, &to, 2);
    }
    busy.stop(&net.node);
    let log = net.node.log();
    assert!(
        ["IPv4", "IPv6"].iter().all(|family| log.lines().any(|line| line.contains(RESET) && line.contains(family)))
    );
    // Those of three Services; of those with affinity a client that was too early may count twice.
    let counted = net.counted();
    assert!(counted.iter().all(|count| (9.0..=15.0).contains(count)), "{counted:?}\n{}", net.node.log());
    net.node.stop();
}

#[test]
fn an_endpoint_that_is_moved_between_slices_keeps_its_clients() {
    let Some(mut net) = Net::new() else { return };
    net.node.write("asks.yaml", &yaml(&[web("asks", 1, true, &json!({}))]));
    let list = |net: &Net, pods: &[(u8, State)]| net.node.replace("slices.yaml", &yaml(&slices("asks", pods)));
    list(&net, &[(1, READY), (2, READY)]);
    net.node.start(&json!({}));
    let clients = ways(1).into_iter().map(|(from, to)| (net.open_to(from, &to, 1), 1)).collect();
    let busy = Busy::start(clients);
    let mut before = net.changes();
    for pods in [&[(2, READY)][..], &[(1, READY), (2, READY)]] {
        list(&net, pods);
        net.wait_for_changes(before + 2.0);
        before = net.changes();
    }
    // Longer than an endpoint has to be away.
    thread::sleep(IN_VAIN * 2);
    busy.stop(&net.node);
    assert!(!net.node.log().contains(RESET), "{}", net.node.log());

    let mut clients: Vec<TcpStream> = ways(1).into_iter().map(|(from, to)| net.open_to(from, &to, 1)).collect();
    list(&net, &[(2, READY)]);
    net.wait_for_resets([3.0, 3.0]);
    clients.iter_mut().for_each(|stream| assert_reset(stream, "it is away for good", &net.node));
    net.node.stop();
}

/// Whether the kernel of the node picks up connections in the middle.
fn loose(net: &Net, value: &'static str) {
    net.node.world.run(move || set_sysctl("netfilter/nf_conntrack_tcp_loose", value)).expect("it is ours");
}

#[test]
fn a_start_finds_what_has_gone_unseen_and_leaves_alone_what_nobody_would_reset() {
    let Some(mut net) = Net::new() else { return };
    net.node
        .write("asks.yaml", &yaml(&[vec![web("asks", 1, true, &json!({}))], slices("asks", &[(1, READY)])].concat()));
    net.node.start(&json!({}));
    let mut olds: Vec<(String, TcpStream)> =
        ways(1).map(|(from, to)| (format!("{from:?} to {to}"), net.open_to(from, &to, 1))).into();
    net.node.kill();
    net.kill(1);
    net.node
        .replace("asks.yaml", &yaml(&[vec![web("asks", 1, true, &json!({}))], slices("asks", &[(2, READY)])].concat()));
    loose(&net, "0");
    net.node.start(&json!({}));
    let said = net.node.wait_for_log("it is said", |line| line.contains("nf_conntrack_tcp_loose is 0"));
    assert!(said.contains("open connections to endpoints that are gone are not reset"), "{said}");
    for (from, to) in ways(1) {
        net.open_to(from, &to, 2);
    }
    for (what, stream) in &mut olds {
        let result = asks(stream, Duration::from_millis(300));
        assert!(waits(&result), "{what}: {result:?}");
    }
    assert_eq!(net.counted(), [0.0, 0.0]);
    let doctor = run_to_end(&net.node, true, &["doctor", "-o", "json"]).stdout;
    assert!(doctor.contains("net.netfilter.nf_conntrack_tcp_loose = 0"), "{doctor}");
    net.node.stop();

    loose(&net, "1");
    net.node.start(&json!({}));
    net.wait_for_resets([3.0, 3.0]);
    for (what, stream) in &mut olds {
        // What it has sent in vain is repeated, later and later.
        assert_reset(stream, what, &net.node);
    }
    assert_eq!(net.counted(), [3.0, 3.0]);
    let doctor = run_to_end(&net.node, true, &["doctor", "-o", "json"]).stdout;
    assert!(!doctor.contains("nf_conntrack_tcp_loose"), "{doctor}");
    net.node.stop();
}

/// All ask by the configuration. Neighbours: a Service that goes, a policy that drops, a pod that meets itself.
#[test]
fn what_becomes_of_connections_where_there_is_nobody_to_reset_them() {
    let Some(mut net) = Net::new() else { return };
    let local = json!({"externalTrafficPolicy": "Local"});
    let on = |pod: u8, node| (format!("10.1.9.{pod}"), format!("fd00:1:9::{pod}"), READY, node);
    let write = |net: &Net, name: &str, number: u8, spec: &Value, endpoints: &[(String, String, State, &str)]| {
        let objects = [vec![web(name, number, false, spec)], slices_of(name, endpoints)].concat();
        net.node.replace(&format!("{name}.yaml"), &yaml(&objects));
    };
    let client = ("198.18.1.1".to_owned(), "fd00:18:1::1".to_owned(), READY, "elsewhere");
    write(&net, "goes", 1, &json!({}), &[on(1, "elsewhere")]);
    write(&net, "local", 2, &local, &[on(1, NODE_NAME), on(2, "elsewhere")]);
    write(&net, "hairpin", 3, &json!({}), &[client]);
    net.node.start(&json!({"nftables": {"resetConnections": true}}));
    let mut goes = net.open_to(From::Client, "172.30.1.1:80", 1);
    let mut dropped = net.open_to(From::Client, &format!("{NODE_IP}:30002"), 1);
    let mut hairpin = net.open_to(From::Pod(2), "172.30.1.3:80", 1);

    // Its pod lives, and its address answers nobody: what was open goes on.
    net.node.remove("goes.yaml");
    net.node.wait_fate("the Service is gone", "172.30.1.1:80", |fate| {
        !matches!(fate, crate::support::outcome::Fate::Forward { .. })
    });
    for _ in 0..3 {
        assert_eq!(asks(&mut goes, ANSWER).expect("it goes on"), 1, "{}", net.node.log());
    }

    // The pod itself is the only one that is left: it gets its own packet, from the node.
    write(&net, "hairpin", 3, &json!({}), &[on(2, NODE_NAME)]);
    net.node.wait_for_log("it is done", |line| line.contains(RESET));
    assert_reset(&mut hairpin, "a pod that meets itself", &net.node);

    // Nobody on this node may answer, so the rules drop; whoever comes may.
    let before = net.counted();
    net.kill(1);
    write(&net, "local", 2, &local, &[on(2, "elsewhere")]);
    net.wait_for_resets([before[0] + 1.0, before[1]]);
    let result = asks(&mut dropped, Duration::from_millis(300));
    assert!(waits(&result), "{result:?}");
    write(&net, "local", 2, &local, &[on(2, NODE_NAME)]);
    assert_reset_in_time(&mut dropped, "there is an endpoint on the node again", &net.node);
    net.node.stop();
}

/// A client that has been waiting: its packet is repeated at some time.
fn assert_reset_in_time(stream: &mut TcpStream, what: &str, node: &Node) {
    let result = asks(stream, ANSWER);
    assert!(is_reset(&result), "{what}: {result:?}\n{}", node.log());
}
