//! Clients that stay: open UDP sockets, and session affinity.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::{NODE_IP, Node, OTHER_IP, ip, node_object, slice, slice_of, socket, web, yaml};
use crate::support::objects::service;
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;
use crate::support::world::{Probe, World};

/// A UDP server in the node that answers every datagram with its name.
struct UdpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    fn start(world: &World, at: &str, name: &'static str) -> UdpServer {
        let at = socket(at);
        let server = world.run(move || UdpSocket::bind(at)).expect("the address is the node's");
        server.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket has timeouts");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, client)) = server.recv_from(&mut bytes) {
                    // A client that cannot be reached asks again.
                    let _ = server.send_to(name.as_bytes(), client);
                }
            }
        });
        UdpServer { stop, thread: Some(thread) }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An open socket of a client in the node, with the frontend that it talks to.
struct UdpClient {
    socket: UdpSocket,
    frontend: &'static str,
}

impl UdpClient {
    fn open(world: &World, frontend: &'static str) -> UdpClient {
        let to: SocketAddr = socket(frontend);
        let socket = world.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            io::Result::Ok(socket)
        });
        let socket = socket.expect("a socket can be opened");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket has timeouts");
        UdpClient { socket, frontend }
    }

    /// Who answers now.
    fn ask(&self) -> io::Result<String> {
        // Answers and errors that came late belong to earlier questions.
        self.socket.set_nonblocking(true)?;
        let mut bytes = [0; 64];
        while !matches!(self.socket.recv(&mut bytes), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {}
        self.socket.set_nonblocking(false)?;
        self.socket.send(b"who?")?;
        let length = self.socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }
}

/// Who is to answer.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Server(&'static str),
    Nobody,
}

fn wait_for_server(node: &mut Node, clients: &[UdpClient], what: &str, wanted: Expected) {
    for client in clients {
        node.eventually(&format!("{what}, {}", client.frontend), |node| {
            // Who opens a socket now must fare the same; it takes part from then on only in this question.
            let newcomer = UdpClient::open(&node.world, client.frontend).ask();
            let answer = client.ask();
            if answer.is_ok() != newcomer.is_ok() {
                return Err(format!("{answer:?}, and {newcomer:?} for a new socket"));
            }
            match (answer, wanted) {
                (Ok(name), Expected::Server(wanted)) if name == wanted => Ok(()),
                (Err(_), Expected::Nobody) => Ok(()),
                (answer, _) => Err(format!("{answer:?} instead of {wanted:?}")),
            }
        });
    }
}

const SERVER_A: &str = "192.0.2.10:5301";
const SERVER_B: &str = "192.0.2.77:5302";

fn dns() -> Value {
    let port = json!({"name": "q", "port": 53, "targetPort": "q", "protocol": "UDP", "nodePort": 30053});
    let spec = json!({"type": "NodePort", "externalIPs": ["198.51.100.53"], "ports": [port]});
    service("shop", "dns", &[ip("172.30.1.53")], &spec)
}

fn dns_slice(endpoints: &[&str]) -> Value {
    slice_of("dns", ("q", Protocol::Udp), endpoints)
}

#[test]
fn open_udp_sockets_reach_a_right_server_after_every_change() {
    assert!(SERVER_A.starts_with(NODE_IP) && SERVER_B.starts_with(OTHER_IP), "servers are in the node");
    let Some(mut node) = Node::new() else { return };
    let _servers = [UdpServer::start(&node.world, SERVER_A, "a"), UdpServer::start(&node.world, SERVER_B, "b")];
    let clients = ["172.30.1.53:53", "198.51.100.53:53", "192.0.2.10:30053"]
        .map(|frontend| UdpClient::open(&node.world, frontend));
    let mut empty = dns_slice(&[SERVER_A]);
    empty["endpoints"] = json!([]);
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.start(&json!({}));
    wait_for_server(&mut node, &clients, "there is no Service", Expected::Nobody);
    let steps: &[(&str, &[Value], Expected)] = &[
        ("the Service comes", &[dns(), dns_slice(&[SERVER_A])], Expected::Server("a")),
        ("its endpoint is replaced", &[dns(), dns_slice(&[SERVER_B])], Expected::Server("b")),
        ("scaled to zero", &[dns(), empty], Expected::Nobody),
        ("and back", &[dns(), dns_slice(&[SERVER_A])], Expected::Server("a")),
        ("its slice goes", &[dns()], Expected::Nobody),
        ("and comes back", &[dns(), dns_slice(&[SERVER_B])], Expected::Server("b")),
        ("the Service goes", &[], Expected::Nobody),
        ("and comes back", &[dns(), dns_slice(&[SERVER_A])], Expected::Server("a")),
        ("at last it goes", &[], Expected::Nobody),
    ];
    for round in 0..2 {
        for (what, objects, wanted) in steps {
            if objects.is_empty() {
                node.remove("dns.yaml");
            } else {
                node.replace("dns.yaml", &yaml(objects));
            }
            wait_for_server(&mut node, &clients, &format!("round {round}: {what}"), *wanted);
        }
    }
    node.stop();
}

#[test]
fn a_udp_endpoint_replaced_while_no_daemon_ran_is_left_at_the_start() {
    let Some(mut node) = Node::new() else { return };
    let _servers = [UdpServer::start(&node.world, SERVER_A, "a"), UdpServer::start(&node.world, SERVER_B, "b")];
    let clients = ["172.30.1.53:53", "192.0.2.10:30053"].map(|frontend| UdpClient::open(&node.world, frontend));
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("dns.yaml", &yaml(&[dns(), dns_slice(&[SERVER_A])]));
    node.start(&json!({}));
    wait_for_server(&mut node, &clients, "the first endpoint", Expected::Server("a"));
    node.kill();
    wait_for_server(&mut node, &clients, "without a daemon", Expected::Server("a"));
    node.write("dns.yaml", &yaml(&[dns(), dns_slice(&[SERVER_B])]));
    node.start(&json!({}));
    wait_for_server(&mut node, &clients, "the endpoint after the start", Expected::Server("b"));
    node.stop();
}

const STICKY: &str = "172.30.1.2:80";

/// Where the connections of each client to a frontend go.
fn endpoints_of(node: &mut Node, clients: &[IpAddr], frontend: &str) -> BTreeMap<IpAddr, SocketAddr> {
    let mut found = BTreeMap::new();
    for client in clients {
        let probe = Probe { clients: vec![*client], protocol: Protocol::Tcp, destination: socket(frontend) };
        node.eventually(&format!("{client} is forwarded"), |node| match node.world.probe_once(&probe, super::LOOK) {
            Fate::Forward { endpoint, .. } => {
                found.insert(*client, endpoint);
                Ok(())
            }
            fate => Err(format!("{fate:?}")),
        });
    }
    found
}

#[test]
fn session_affinity_survives_the_daemon() {
    let Some(mut node) = Node::new() else { return };
    const ENDPOINTS: [&str; 4] = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080", "10.1.0.4:8080"];
    let mut objects = web("sticky", "172.30.1.2", &ENDPOINTS);
    objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    node.write("service.yaml", &yaml(&objects[..1]));
    node.write("slice.yaml", &yaml(&objects[1..]));
    node.start(&json!({}));
    let clients: Vec<IpAddr> = (1..=8).map(|nth| ip(&format!("203.0.113.{nth}"))).collect();
    node.wait_forward("the Service", STICKY, &ENDPOINTS);
    let before = endpoints_of(&mut node, &clients, STICKY);
    for killed in [false, true] {
        if killed {
            node.kill();
        } else {
            node.stop();
        }
        assert_eq!(endpoints_of(&mut node, &clients, STICKY), before, "without the daemon");
        node.start(&json!({}));
        assert_eq!(endpoints_of(&mut node, &clients, STICKY), before, "after a start, killed: {killed}");
    }
    // One goes while no daemon runs: its clients go elsewhere, the others stay.
    node.stop();
    let gone = before[&clients[0]];
    let left: Vec<&str> = ENDPOINTS.into_iter().filter(|endpoint| socket(endpoint) != gone).collect();
    node.write("slice.yaml", &yaml(&[slice("sticky", &left)]));
    node.start(&json!({}));
    node.eventually("nobody is sent to the endpoint that is gone", |node| {
        let after = endpoints_of(node, &clients, STICKY);
        for (client, endpoint) in &after {
            if *endpoint == gone || (before[client] != gone && before[client] != *endpoint) {
                return Err(format!("{client}: {} before, {endpoint} after", before[client]));
            }
        }
        Ok(())
    });
    let after = endpoints_of(&mut node, &clients, STICKY);
    assert_eq!(endpoints_of(&mut node, &clients, STICKY), after, "and there they stay");
    node.stop();
}

/// A policy for clients outside takes nothing from pods: those remembered with an endpoint elsewhere stay there.
#[test]
fn pods_keep_their_endpoints_when_only_local_ones_are_for_outside() {
    const ENDPOINTS: [&str; 4] = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080", "10.1.0.4:8080"];
    const BALANCER: &str = "198.51.100.3:80";
    let Some(mut node) = Node::new() else { return };
    let objects = |policy: &str| {
        let mut objects = web("sticky", "172.30.1.2", &ENDPOINTS);
        let fields = json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "externalTrafficPolicy": policy});
        crate::support::objects::merge(&mut objects[0]["spec"], &fields);
        objects[0]["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.3"}]);
        yaml(&objects)
    };
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16"])]));
    node.write("service.yaml", &objects("Cluster"));
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    let clients = |net: &str| -> Vec<IpAddr> { (1..=8).map(|nth| ip(&format!("{net}.{nth}"))).collect() };
    let (pods, outside) = (clients("10.1.5"), clients("203.0.113"));
    let remembered = |node: &Node, clients: &str| {
        let map = node.nft(&["list", "map", "ip", "nftproxyd", "affinity"]).expect("it is there");
        map.matches(&format!("{clients}.")).count()
    };
    node.wait_forward("the balancer", BALANCER, &ENDPOINTS);
    let before = endpoints_of(&mut node, &pods, BALANCER);
    endpoints_of(&mut node, &outside, BALANCER);
    node.replace("service.yaml", &objects("Local"));
    node.eventually("clients outside are forgotten", |node| match remembered(node, "203.0.113") {
        0 => Ok(()),
        clients => Err(format!("{clients} are remembered")),
    });
    assert_eq!(remembered(&node, "10.1.5"), 8);
    node.wait_fate("no endpoint on the node", BALANCER, |fate| *fate == Fate::Drop);
    assert_eq!(endpoints_of(&mut node, &pods, BALANCER), before);
    node.stop();
}
