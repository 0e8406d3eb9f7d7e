//! What users choose a scheduler for, by packets: turns, weights, the same endpoint for a client on every node.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{Node, echo_server, echoes, ip, run_to_end, slice_of, socket, web, yaml};
use crate::support::objects::service;
use crate::support::packet::Protocol;

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(10);

/// A node in which every address of these ranges is its own: clients and endpoints.
pub(super) fn node() -> Option<Node> {
    let node = Node::new()?;
    for range in ["10.77.0.0/16", "10.78.0.0/24", "fd77::/64", "fd78::/64"] {
        let family = if range.contains(':') { "-6" } else { "-4" };
        node.ip(&format!("{family} route add local {range} dev lo"));
    }
    Some(node)
}

/// The address of a client, as long as there are no more than 60,000.
pub(super) fn client(v6: bool, index: u16) -> IpAddr {
    let [high, low] = (index + 257).to_be_bytes();
    if v6 { Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, index + 1).into() } else { Ipv4Addr::new(10, 77, high, low).into() }
}

/// An endpoint.
fn endpoint(v6: bool, index: u8) -> SocketAddr {
    let address: IpAddr = if v6 {
        Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, u16::from(index) + 1).into()
    } else {
        Ipv4Addr::new(10, 78, 0, index + 1).into()
    };
    SocketAddr::new(address, 7777)
}

/// A socket of an address that is in a range of the node.
pub(super) fn bound(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    match at {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// Endpoints that answer with their number, and with the port that they see of the client.
pub(super) fn serve(node: &Node, v6: bool, endpoints: u8) {
    for index in 0..endpoints {
        node.world.run(move || {
            let server = bound(endpoint(v6, index)).expect("an endpoint can listen");
            std::thread::spawn(move || {
                while let Ok((_, from)) = server.recv_from(&mut [0; 8]) {
                    let [high, low] = from.port().to_be_bytes();
                    let _ = server.send_to(&[index, high, low], from);
                }
            });
        });
    }
}

/// What a client's new flow reaches, and whether the endpoint sees its port. It asks once.
fn ask(from: SocketAddr, to: SocketAddr) -> (u8, bool) {
    ask_up_to(1, from, to)
}

/// The same, asking again where no answer comes.
fn ask_up_to(times: u32, from: SocketAddr, to: SocketAddr) -> (u8, bool) {
    let socket = bound(from).expect("a client has a socket");
    socket.connect(to).expect("there is a route");
    socket.set_read_timeout(Some(ANSWER / times)).expect("a time-out");
    let mut answer = [0; 3];
    let mut asked = 0;
    let read = loop {
        socket.send(b"?").unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        asked += 1;
        match socket.recv(&mut answer) {
            Ok(read) => break read,
            Err(error) if asked < times && error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{from} to {to}, asked {asked} times: {error}"),
        }
    };
    assert_eq!(read, 3);
    let port = socket.local_addr().expect("it is bound").port();
    (answer[0], port.to_be_bytes() == answer[1..])
}

/// What these clients' new flows reach, one after the other.
pub(super) fn asked(node: &Node, flows: impl IntoIterator<Item = (IpAddr, SocketAddr)>) -> Vec<u8> {
    asked_up_to(1, node, flows)
}

/// The same while endpoints go. The flow of an endpoint that has gone is deleted, and if its answer was on the way then,
/// that is lost: a client of UDP asks again.
fn asked_during_a_change(node: &Node, flows: impl IntoIterator<Item = (IpAddr, SocketAddr)>) -> Vec<u8> {
    asked_up_to(20, node, flows)
}

fn asked_up_to(times: u32, node: &Node, flows: impl IntoIterator<Item = (IpAddr, SocketAddr)>) -> Vec<u8> {
    let flows: Vec<_> = flows.into_iter().collect();
    let ask = move |(from, to)| ask_up_to(times, SocketAddr::new(from, 0), to).0;
    node.world.run(move || flows.into_iter().map(ask).collect())
}

/// A connection of a client to a frontend of echo servers that has been used once.
pub(super) fn connected(node: &Node, from: u16, to: SocketAddr) -> TcpStream {
    let from = SocketAddr::new(client(false, from), 0);
    let mut stream: TcpStream = node.world.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&from.into()).expect("an address of the node");
        socket.connect(&to.into()).expect("it is served");
        socket.into()
    });
    stream.set_read_timeout(Some(ANSWER)).expect("a time-out");
    echoes(&mut stream, "hello").expect("an echo");
    stream
}

fn counts(reached: &[u8]) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    reached.iter().for_each(|endpoint| *counts.entry(*endpoint).or_default() += 1);
    counts
}

/// No endpoint has got two connections more than another.
fn assert_turns(reached: &[u8], endpoints: usize, what: &str) {
    let counts = counts(reached);
    let (least, most) = (counts.values().min(), counts.values().max());
    let apart = most.zip(least).map(|(most, least)| most - least);
    assert!(counts.len() == endpoints.min(reached.len()) && apart <= Some(1), "{what}: {counts:?}");
}

/// A Service of UDP port 53 with these annotations.
pub(super) fn udp(name: &str, cluster_ip: &str, annotations: &Value) -> Value {
    let port = json!({"name": "dns", "port": 53, "targetPort": 7777, "protocol": "UDP"});
    let mut service = service("shop", name, &[ip(cluster_ip)], &json!({"ports": [port]}));
    service["metadata"]["annotations"] = annotations.clone();
    service
}

/// A slice of endpoints with a weight.
fn weighted(service: &str, number: usize, endpoints: &[SocketAddr], weight: &str) -> Value {
    let texts: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut slice = slice_of(service, ("dns", Protocol::Udp), &texts);
    slice["metadata"]["name"] = format!("{service}-{number}").into();
    slice["metadata"]["annotations"] = json!({"nftproxyd.io/weight": weight});
    slice
}

/// A Service with one slice of endpoints for each weight.
pub(super) fn with_weights(name: &str, cluster_ip: &str, scheduler: &str, weights: &[&str]) -> Vec<Value> {
    let v6 = cluster_ip.contains(':');
    let mut objects = vec![udp(name, cluster_ip, &json!({"nftproxyd.io/scheduler": scheduler}))];
    objects.extend(
        (0..).zip(weights).map(|(index, weight)| weighted(name, usize::from(index), &[endpoint(v6, index)], weight)),
    );
    objects
}

#[test]
fn turns_are_strict_however_many_services_take_some() {
    const SERVICES: u16 = 51;
    let Some(mut node) = node() else { return };
    serve(&node, false, 3);
    let cluster_ip = |index: u16| format!("172.30.9.{}", index + 1);
    let rr = |index| with_weights(&format!("s{index}"), &cluster_ip(index), "rr", &["1", "1", "1"]);
    node.write("services.yaml", &yaml(&(0..SERVICES).flat_map(rr).collect::<Vec<_>>()));
    node.start(&json!({}));
    let to = |index| socket(&format!("{}:53", cluster_ip(index)));

    let alone = asked(&node, (0..10_000).map(|index| (client(false, index), to(0))));
    assert_turns(&alone, 3, "one");
    let two = asked(&node, (0..2_000).map(|index| (client(false, 10_000 + index), to(1 + index % 2))));
    for which in 0..2 {
        let of_one: Vec<u8> = two.iter().copied().skip(which).step_by(2).collect();
        assert_turns(&of_one, 3, "two in turn");
    }
    // In any order: numbers of a small generator.
    let mut state = 1_u32;
    let order: Vec<u16> = (0..10_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as u16 % SERVICES
        })
        .collect();
    let all = asked(&node, (0..).zip(&order).map(|(index, which)| (client(false, 20_000 + index), to(*which))));
    for service in 0..SERVICES {
        let of_one: Vec<u8> =
            all.iter().zip(&order).filter(|(_, which)| **which == service).map(|(reached, _)| *reached).collect();
        assert!(of_one.len() > 100, "{}", of_one.len());
        assert_turns(&of_one, 3, &format!("service {service} of {SERVICES}"));
    }
    node.stop();
}

#[test]
fn weights_are_met_in_a_smooth_order() {
    let Some(mut node) = node() else { return };
    serve(&node, false, 4);
    serve(&node, true, 3);
    node.write("a.yaml", &yaml(&with_weights("smooth", "172.30.9.1", "wrr", &["5", "1", "1"])));
    node.write("b.yaml", &yaml(&with_weights("uneven", "172.30.9.2", "wrr", &["100", "37", "11", "0"])));
    node.write("c.yaml", &yaml(&with_weights("chance", "172.30.9.3", "random", &["3", "1", "0"])));
    node.write("d.yaml", &yaml(&with_weights("six", "fd00:172:30::9:1", "wrr", &["2", "1", "0"])));
    node.start(&json!({}));
    let many = |to: &str, from: u16, number: u16| {
        let to = socket(to);
        asked(&node, (from..from + number).map(|index| (client(to.is_ipv6(), index), to)))
    };

    let smooth = many("172.30.9.1:53", 0, 21);
    let letters: String = smooth.iter().map(|endpoint| char::from(b'a' + endpoint)).collect();
    assert_eq!(letters, "aabacaa".repeat(3));

    let share =
        |counts: &BTreeMap<u8, usize>, endpoint, all: f64| counts.get(&endpoint).map_or(0.0, |it| *it as f64 / all);
    let uneven = counts(&many("172.30.9.2:53", 100, 10_000));
    for (endpoint, weight) in [(0, 100.0), (1, 37.0), (2, 11.0), (3, 0.0)] {
        let share = share(&uneven, endpoint, 10_000.0);
        assert!((share - weight / 148.0).abs() <= 0.5 / 64.0, "{endpoint}: {share}, {uneven:?}");
    }
    let chance = counts(&many("172.30.9.3:53", 20_000, 4_000));
    // Six standard deviations.
    assert!((share(&chance, 0, 4_000.0) - 0.75).abs() < 0.041 && !chance.contains_key(&2), "{chance:?}");
    assert_eq!(counts(&many("[fd00:172:30::9:1]:53", 0, 3_000)), [(0, 2_000), (1, 1_000)].into());
    node.stop();
}

/// A change touches no flow that there is, and all flows that begin afterwards.
#[test]
fn what_is_drained_keeps_its_flows_and_gets_no_more() {
    let Some(mut node) = node() else { return };
    serve(&node, false, 2);
    node.write("a.yaml", &yaml(&with_weights("a", "172.30.9.1", "rr", &["1", "1"])));
    node.start(&json!({}));
    let to = socket("172.30.9.1:53");
    let old: Vec<UdpSocket> = node.world.run(move || {
        let open = |index| {
            let socket = bound(SocketAddr::new(client(false, index), 0)).expect("a socket");
            socket.connect(to).expect("a route");
            socket.set_read_timeout(Some(ANSWER)).expect("a time-out");
            socket
        };
        (0..10).map(open).collect()
    });
    let again = |socket: &UdpSocket| {
        let mut answer = [0; 3];
        socket.send(b"?").expect("it is sent");
        socket.recv(&mut answer).expect("it is answered");
        answer[0]
    };
    let before: Vec<u8> = old.iter().map(again).collect();
    assert_turns(&before, 2, "before");

    let mut round = 0;
    let mut changes = |node: &mut Node, weights: [&str; 2], scheduler: &str, wanted: &[u8]| {
        node.replace("a.yaml", &yaml(&with_weights("a", "172.30.9.1", scheduler, &weights)));
        node.eventually(&format!("{weights:?} {scheduler}"), |node| {
            round += 1;
            let first = 1_000 + round * 10;
            let flows = (first..first + 10).map(|index| (client(false, index), to));
            let reached = counts(&asked_during_a_change(node, flows));
            let found: Vec<u8> = reached.keys().copied().collect();
            if found == wanted { Ok(()) } else { Err(format!("{reached:?}")) }
        });
        assert_eq!(
            old.iter().map(again).collect::<Vec<u8>>(),
            before,
            "flows that there were: {weights:?} {scheduler}"
        );
    };
    changes(&mut node, ["0", "1"], "rr", &[1]);
    changes(&mut node, ["0", "0"], "rr", &[0, 1]);
    changes(&mut node, ["1", "0"], "lc", &[0]);
    changes(&mut node, ["1", "0"], "mh", &[0]);
    changes(&mut node, ["3", "1"], "random", &[0, 1]);
    changes(&mut node, ["1", "0"], "wrr", &[0]);
    node.stop();
}

const HASHED: [(&str, &str); 4] =
    [("sh", "172.30.9.1"), ("mh", "172.30.9.2"), ("sh", "fd00:172:30::9:1"), ("mh", "fd00:172:30::9:2")];

/// The Services of [`HASHED`] with these endpoints.
fn hashed(endpoints: &[u8]) -> String {
    let objects = (0..).zip(HASHED).flat_map(|(index, (scheduler, cluster_ip))| {
        let name = format!("h{index}");
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|it| endpoint(cluster_ip.contains(':'), *it)).collect();
        let annotations = json!({"nftproxyd.io/scheduler": scheduler});
        [udp(&name, cluster_ip, &annotations), weighted(&name, 1, &endpoints, "1")]
    });
    yaml(&objects.collect::<Vec<_>>())
}

/// The flows of these clients to each of [`HASHED`].
fn flows(clients: Range<u16>) -> [Vec<(IpAddr, SocketAddr)>; 4] {
    HASHED.map(|(_, cluster_ip)| {
        let to = SocketAddr::new(ip(cluster_ip), 53);
        clients.clone().map(|index| (client(to.is_ipv6(), index), to)).collect()
    })
}

/// What clients get of each of [`HASHED`].
fn choices(node: &Node, clients: u16) -> Vec<Vec<u8>> {
    flows(0..clients).map(|flows| asked(node, flows)).into()
}

/// The same while endpoints go, of other clients: one that happened to get the same port again would be on a flow of
/// before, which goes on where it went.
fn choices_during_a_change(node: &Node, clients: u16) -> Vec<Vec<u8>> {
    const OTHERS: u16 = 20_000;
    flows(OTHERS..OTHERS + clients).map(|flows| asked_during_a_change(node, flows)).into()
}

/// No client got another endpoint.
fn assert_same(found: &[Vec<u8>], wanted: &[Vec<u8>], what: &str) {
    for ((found, wanted), (scheduler, cluster_ip)) in found.iter().zip(wanted).zip(HASHED) {
        let clients = found.iter().zip(wanted).enumerate();
        let others: Vec<_> = clients.filter(|(_, (found, wanted))| found != wanted).collect();
        assert!(others.is_empty() && found.len() <= wanted.len(), "{what}: {scheduler} {cluster_ip}: {others:?}");
    }
}

#[test]
fn a_client_gets_the_same_endpoint_on_every_node_and_after_a_restart() {
    const CLIENTS: u16 = 10_000;
    let Some(mut one) = node() else { return };
    for v6 in [false, true] {
        serve(&one, v6, 11);
    }
    let all: Vec<u8> = (0..10).collect();
    one.write("hashed.yaml", &hashed(&all));
    one.start(&json!({}));
    let first = choices(&one, CLIENTS);
    for (reached, (scheduler, cluster_ip)) in first.iter().zip(HASHED) {
        let counts = counts(reached);
        let fair = counts.values().all(|count| (600..1_400).contains(count));
        assert!(counts.len() == 10 && fair, "{scheduler} {cluster_ip}: {counts:?}");
    }
    assert_same(&choices(&one, 500), &first, "from another port");

    // Another node, that saw some endpoints first, others later and some go, and was started anew.
    let Some(mut other) = node() else { return };
    for v6 in [false, true] {
        serve(&other, v6, 11);
    }
    other.write("hashed.yaml", &hashed(&[9, 3, 10]));
    other.start(&json!({}));
    other.replace("hashed.yaml", &hashed(&[7, 10, 0, 9, 5, 4, 3]));
    other.eventually("seven endpoints", |node| {
        let reached = counts(&choices_during_a_change(node, 50)[0]);
        if reached.contains_key(&7) { Ok(()) } else { Err(format!("{reached:?}")) }
    });
    other.stop();
    other.replace("hashed.yaml", &hashed(&[4, 8, 1, 9, 0, 7, 2, 6, 5, 3]));
    other.start(&json!({}));
    assert_same(&choices(&other, CLIENTS), &first, "two nodes");

    // One goes, and one comes: few clients of the others change their endpoint with Maglev.
    for (endpoints, changed) in [(&all[1..], 0), (&(0..11).collect::<Vec<u8>>()[..], 10)] {
        one.replace("hashed.yaml", &hashed(endpoints));
        let mut after = Vec::new();
        one.eventually(&format!("{endpoints:?}"), |node| {
            let few = choices_during_a_change(node, 200);
            let right = few.iter().all(|reached| reached.contains(&changed) == endpoints.contains(&changed));
            if right { Ok(()) } else { Err("other endpoints".to_owned()) }
        });
        for (index, reached) in choices(&one, CLIENTS).into_iter().enumerate() {
            let others: Vec<_> = first[index].iter().zip(&reached).filter(|(was, _)| **was != changed).collect();
            let moved = others.iter().filter(|(was, is)| was != is && **is != changed).count();
            after.push(moved as f64 / others.len() as f64);
        }
        for (moved, (scheduler, cluster_ip)) in after.iter().zip(HASHED) {
            assert!(scheduler != "mh" || *moved <= 0.03, "{scheduler} {cluster_ip} {endpoints:?}: {moved}");
        }
    }
    one.stop();
    other.stop();
}

/// Names and weights that are none: one line each, and the Service goes on.
#[test]
fn what_cannot_be_used_is_named_and_endpoints_are_chosen_at_random() {
    let Some(mut node) = node() else { return };
    serve(&node, false, 3);
    node.write("a.yaml", &yaml(&with_weights("a", "172.30.9.1", "lblc", &["1", "70000", "2"])));
    let router = json!({
        "kube-router.io/service.scheduler": "sh", "kube-router.io/service.schedflags": "sh-fallback,sh-port",
        "service.cilium.io/lb-algorithm": "random",
    });
    let all: Vec<SocketAddr> = (0..3).map(|index| endpoint(false, index)).collect();
    node.write("b.yaml", &yaml(&[udp("b", "172.30.9.2", &router), weighted("b", 1, &all, "1")]));
    let cilium = json!({"service.cilium.io/lb-algorithm": "maglev", "nftproxyd.io/maglev-table-size": "251"});
    node.write("c.yaml", &yaml(&[udp("c", "172.30.9.3", &cilium), weighted("c", 1, &all, "1")]));
    node.start(&json!({"nftables": {"scheduler": "rr"}}));
    let log = node.log();
    for line in [
        "Service shop/a: metadata.annotations[nftproxyd.io/scheduler]: \"lblc\" is not a scheduler; there are random, rr, wrr, \
         sh, sh-port, dh, mh, mh-port, lc, wlc, sed, nq (lc comes closest); endpoints are chosen at random",
        "EndpointSlice shop/a-1: metadata.annotations[nftproxyd.io/weight]: \"70000\" is not a weight from 0 to 65535; its \
         endpoints have 1",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{line}\n{log}");
    }
    let reached = counts(&asked(&node, (0..400).map(|index| (client(false, index), socket("172.30.9.1:53")))));
    assert!(reached.len() == 3 && reached[&2] > reached[&0], "at random, by weights: {reached:?}");
    let kinds = node.nft(&["list", "map", "ip", "nftproxyd", "service-ips"]).expect("it can be listed");
    for (name, kind) in [("a", "f000:4"), ("b", "f008:3"), ("c", "f044:fb")] {
        assert!(kinds.contains(&format!("comment \"shop/{name}:dns\" : {kind}")), "{name}: {kinds}");
    }
    node.stop();
}

/// A client that is masqueraded keeps its port where a hash of it has to find the endpoint again, and loses it elsewhere.
#[test]
fn clients_that_are_hashed_keep_their_port() {
    let Some(mut node) = node() else { return };
    for v6 in [false, true] {
        serve(&node, v6, 2);
    }
    // No client is a pod.
    node.write("node.yaml", &yaml(&[super::node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    let schedulers = [("sh", 1_u8), ("mh-port", 2), ("rr", 3), ("random", 4), ("dh", 5)];
    let objects = schedulers.into_iter().flat_map(|(scheduler, last)| {
        let of = move |v6| if v6 { format!("fd00:172:30::9:{last}") } else { format!("172.30.9.{last}") };
        [false, true].into_iter().flat_map(move |v6| {
            let mut objects = with_weights(&format!("{scheduler}-{v6}"), &of(v6), scheduler, &["1", "1"]);
            objects[0]["spec"]["type"] = "NodePort".into();
            objects[0]["spec"]["ports"][0]["nodePort"] = (30_100 + u16::from(last) + if v6 { 50 } else { 0 }).into();
            objects
        })
    });
    node.write("services.yaml", &yaml(&objects.collect::<Vec<_>>()));
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    // No two clients have the same port: behind one address, the second would have to give it up.
    let mut port = 20_000;
    for (scheduler, last) in schedulers {
        let keeps = ["sh", "mh-port"].contains(&scheduler);
        for to in [
            format!("172.30.9.{last}:53"),
            format!("192.0.2.10:{}", 30_100 + u16::from(last)),
            format!("[fd00:172:30::9:{last}]:53"),
            format!("[2001:db8::10]:{}", 30_150 + u16::from(last)),
        ] {
            let to = socket(&to);
            let from = move |index| SocketAddr::new(client(to.is_ipv6(), index), port + index);
            let kept: Vec<bool> = node.world.run(move || (0..20).map(|index| ask(from(index), to).1).collect());
            port += 20;
            let kept = kept.into_iter().filter(|kept| *kept).count();
            assert!(if keeps { kept == 20 } else { kept < 5 }, "{scheduler} {to}: {kept} of 20 kept their port");
        }
    }
    node.stop();
}

/// Who has many connections gets none until the others have as many.
#[test]
fn the_next_connections_go_where_the_fewest_are_open() {
    const FIRST: usize = 30;
    let Some(mut node) = node() else { return };
    let at = |index: u8| SocketAddr::new(endpoint(false, index).ip(), 8080);
    (0..3).for_each(|index| echo_server(&node, at(index)));
    let with = |endpoints: &[u8]| {
        let texts: Vec<String> = endpoints.iter().map(|index| at(*index).to_string()).collect();
        let mut objects = web("lc", "172.30.9.1", &texts.iter().map(String::as_str).collect::<Vec<_>>());
        objects[0]["metadata"]["annotations"] = json!({"nftproxyd.io/scheduler": "lc"});
        yaml(&objects)
    };
    node.write("lc.yaml", &with(&[0]));
    node.start(&json!({}));
    let connect = |node: &Node, from: u16| connected(node, from, socket("172.30.9.1:80"));
    // Nobody has closed any of them.
    let open = |node: &Node| {
        let list = run_to_end(node, true, &["status", "--output=json"]);
        let status: Value = serde_json::from_str(&list.stdout).unwrap_or_else(|error| panic!("{error}: {list:?}"));
        let frontend = &status["frontends"][0];
        let endpoints = frontend["endpoints"].as_array().expect("endpoints").iter();
        endpoints.map(|it| it["connections"].as_u64().expect("a number")).collect::<Vec<u64>>()
    };
    let mut streams: Vec<TcpStream> = (0..FIRST as u16).map(|index| connect(&node, index)).collect();
    node.replace("lc.yaml", &with(&[0, 1, 2]));
    // One after the other, so that they are counted in between: turns alone would give everybody 20 of these.
    for index in 0..60 {
        streams.push(connect(&node, 1_000 + index));
        std::thread::sleep(Duration::from_millis(150));
    }
    let counts = open(&node);
    assert!(counts.iter().sum::<u64>() == 90 && counts[0] <= FIRST as u64 + 12, "{counts:?}\n{}", node.log());
    let listed = node.nft(&["list", "chains", "ip"]).expect("it can be listed");
    assert!(listed.contains("rr-32-0"), "{listed}");
    for stream in &mut streams {
        echoes(stream, "still here").expect("the connection lives");
    }
    node.stop();
}
