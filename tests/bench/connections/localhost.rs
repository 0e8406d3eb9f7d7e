//! Node ports by 127.0.0.1, which the daemon serves itself, beside the same by the node's address, which the kernel serves.
//!
//! The client is on the node. A connection counts when the backend has accepted it; what goes through one when the backend
//! has read it, on a thread of its own.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::synthetic;
use super::network::{NODE, Network};
use super::rules::{Cluster, Rules};

/// The node port of [`objects`].
const PORT: u16 = 30_080;
/// Bytes of a turn.
const MUCH: usize = 256 << 20;
/// Connections of a turn.
const MANY: u32 = 200;
/// How long the daemon may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Service with a node port.
fn objects() -> [Value; 2] {
    let mut service = synthetic::service(0);
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(PORT);
    [service, synthetic::slice(0, 1)]
}

/// Measures in so many rounds, and prints what it finds.
pub(crate) fn measure(program: PathBuf, rounds: usize) {
    let network = Network::new(false);
    let rules = Rules::Localhost(program);
    let cluster = Cluster { services: 1, endpoints: 1, schedulers: Vec::new(), knows_pods: true };
    let running = rules.start(&network, &cluster);
    objects().into_iter().for_each(|object| running.apply(object));
    let [by_node, by_localhost] = [IpAddr::V4(NODE), Ipv4Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, PORT));
    for to in [by_node, by_localhost] {
        let end = Instant::now() + PATIENCE;
        while !is_reached(&network, to) {
            if Instant::now() > end {
                return println!("node ports on localhost are not measured: {to} is not reached");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    let (mut connections, mut bytes) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let order = if round % 2 == 0 { [by_node, by_localhost] } else { [by_localhost, by_node] };
        let of = |turn: fn(&Network, SocketAddr) -> f64| {
            let mut taken = order.map(|to| (to == by_localhost, turn(&network, to)));
            taken.sort_by_key(|(is_localhost, _)| *is_localhost);
            taken.map(|(_, taken)| taken)
        };
        connections.push(of(connect));
        bytes.push(of(send));
        network.forget_connections();
    }
    println!("\n| node port, {rounds} rounds | by the node's address | by 127.0.0.1 | ratio |\n|---|---|---|---|");
    for (what, unit, turns) in [("new connections/s", 1.0, connections), ("one connection, MB/s", 1e6, bytes)] {
        let ratio = median(turns.iter().map(|[node, localhost]| localhost / node));
        let [node, localhost] = [0, 1].map(|which| median(turns.iter().map(|turn| turn[which])) / unit);
        println!("| {what} | {node:.0} | {localhost:.0} | {ratio:.2} |");
    }
}

fn is_reached(network: &Network, to: SocketAddr) -> bool {
    network.enter_node();
    let Ok(client) = TcpStream::connect_timeout(&to, Duration::from_millis(200)) else { return false };
    network.pods.set_nonblocking(true).expect("a setting of sockets");
    let end = Instant::now() + Duration::from_secs(2);
    let mut accepted = network.pods.accept();
    while accepted.is_err() && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
        accepted = network.pods.accept();
    }
    network.pods.set_nonblocking(false).expect("a setting of sockets");
    drop(client);
    accepted.is_ok()
}

/// Connections a second.
fn connect(network: &Network, to: SocketAddr) -> f64 {
    network.enter_node();
    let start = Instant::now();
    for _ in 0..MANY {
        let client = TcpStream::connect(to).expect("it is served");
        let (server, _) = network.pods.accept().expect("it arrives");
        // No end waits for the other.
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("an option of sockets");
        drop((client, server));
    }
    f64::from(MANY) / start.elapsed().as_secs_f64()
}

/// Bytes a second.
fn send(network: &Network, to: SocketAddr) -> f64 {
    network.enter_node();
    let mut client = TcpStream::connect(to).expect("it is served");
    let (mut server, _) = network.pods.accept().expect("it arrives");
    let piece = vec![7; 256 << 10];
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 256 << 10];
            let mut left = MUCH;
            while left > 0 {
                left -= server.read(&mut buffer).expect("it is open");
            }
        });
        for _ in 0..MUCH / piece.len() {
            client.write_all(&piece).expect("it is open");
        }
    });
    MUCH as f64 / start.elapsed().as_secs_f64()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
