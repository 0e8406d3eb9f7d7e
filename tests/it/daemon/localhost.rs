//! Node ports on 127.0.0.1 and ::1, with real sockets.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;
use std::io::{self, ErrorKind, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use super::{NODE_IP, Node, ip, run_to_end, slice_of, yaml};
use crate::support::daemon::Daemon;
use crate::support::http;
use crate::support::namespace::Namespace;
use crate::support::objects::service;
use crate::support::packet::Protocol;

/// Where node ports are served in a family.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(10);

/// A node with endpoints of its own, whose address is known.
fn node() -> Option<Node> {
    let node = Node::new()?;
    for range in ["10.78.0.0/24", "fd78::/64"] {
        let family = if range.contains(':') { "-6" } else { "-4" };
        node.ip(&format!("{family} route add local {range} dev lo"));
    }
    node.write("node.yaml", &yaml(&[super::node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    Some(node)
}

/// An address and a port.
fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn endpoint(v6: bool, index: u8) -> SocketAddr {
    if v6 { at(&format!("fd78::{}", index + 1), 7777) } else { at(&format!("10.78.0.{}", index + 1), 7777) }
}

/// A Service of one port with a node port, with endpoints of this family.
fn exposed(name: &str, v6: bool, number: u16, protocol: Protocol, endpoints: &[SocketAddr]) -> Vec<Value> {
    let host = number % 100;
    let cluster_ip = if v6 { format!("fd00:172:30::{host}") } else { format!("172.30.8.{host}") };
    let name_of_protocol = match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    let port = json!({"name": "p", "port": 80, "targetPort": 7777, "nodePort": number, "protocol": name_of_protocol});
    let spec = json!({"type": "NodePort", "ports": [port]});
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let service = service("shop", name, &[ip(&cluster_ip)], &spec);
    let slice = (!endpoints.is_empty()).then(|| slice_of(name, ("p", protocol), &endpoints));
    [service].into_iter().chain(slice).collect()
}

/// Has something done for each connection to an address of the node, on a thread each.
fn listen(node: &Node, at: SocketAddr, each: impl Fn(TcpStream) + Clone + Send + 'static) {
    listen_by(node, socket2::Protocol::TCP, at, each);
}

fn listen_by(
    node: &Node,
    protocol: socket2::Protocol,
    at: SocketAddr,
    each: impl Fn(TcpStream) + Clone + Send + 'static,
) {
    node.world.run(move || {
        let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, Some(protocol));
        let socket = socket.expect("a socket");
        match at {
            SocketAddr::V4(_) => socket.set_freebind_v4(true),
            SocketAddr::V6(_) => socket.set_freebind_v6(true),
        }
        .expect("it can be set");
        socket.bind(&at.into()).expect("nobody else is there");
        socket.listen(64).expect("it listens");
        let listener = TcpListener::from(socket);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let each = each.clone();
                std::thread::spawn(move || each(stream));
            }
        });
    });
}

/// Says where it is, listens to the end, and answers with the number and hash of all bytes.
fn sums_up(mut stream: TcpStream) {
    let (mut count, mut hasher, mut bytes) = (0_u64, DefaultHasher::new(), vec![0; 1 << 16]);
    let address = stream.local_addr().expect("it has one").to_string();
    if stream.write_all(format!("{address}\n").as_bytes()).is_err() {
        return;
    }
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => {
                count += length as u64;
                hasher.write(&bytes[..length]);
            }
            Err(_) => return,
        }
    }
    let _ = stream.write_all(format!("{count} {:x}\n", hasher.finish()).as_bytes());
}

/// A client in the node.
fn connect(node: &Node, to: SocketAddr) -> io::Result<TcpStream> {
    node.world.run(move || {
        let stream = TcpStream::connect_timeout(&to, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(stream)
    })
}

/// Whether a connection ends by a reset, as soon as it is there or later.
fn is_reset(node: &Node, to: SocketAddr) -> bool {
    let read = connect(node, to).and_then(|mut stream| stream.read(&mut [0]));
    read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// The endpoint that a connection reaches.
fn reached(node: &Node, to: SocketAddr) -> io::Result<SocketAddr> {
    let mut stream = connect(node, to)?;
    let line = line(&mut stream)?;
    line.parse().map_err(|_| io::Error::other(format!("{line:?}")))
}

/// A line, without its end.
fn line(stream: &mut TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte)? {
            1 if byte != *b"\n" => text.extend(byte),
            _ => return Ok(String::from_utf8_lossy(&text).into_owned()),
        }
    }
}

/// A server of UDP that answers with where it is and what it was asked.
fn answers(node: &Node, at: SocketAddr) -> JoinHandle<()> {
    node.world.run(move || {
        let server = super::schedulers::bound(at).expect("nobody else is there");
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while let Ok((length, from)) = server.recv_from(&mut bytes) {
                if bytes[..length] == *b"end" {
                    return;
                }
                let _ = server.send_to(&bytes[..length], from);
            }
        })
    })
}

fn client(node: &Node, to: SocketAddr) -> UdpSocket {
    node.world.run(move || {
        let any = if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(to).expect("there is a route");
        socket.set_read_timeout(Some(ANSWER)).expect("it can be set");
        socket
    })
}

/// The values of a metric, by its labels.
fn metric(node: &Node, name: &str) -> Vec<(String, f64)> {
    let text = http::body(&node.world, (Ipv4Addr::LOCALHOST, 10249).into(), "/metrics").expect("it is served");
    let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    lines.map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number"))).collect()
}

fn value(node: &Node, name: &str, labels: &str) -> f64 {
    let all = metric(node, name);
    let found = all.iter().find(|(found, _)| found == labels);
    found.unwrap_or_else(|| panic!("{name}{labels}: {all:?}")).1
}

fn wait_for_listeners(node: &mut Node, v4: f64, v6: f64) {
    node.eventually("listeners", |node| {
        let of = |family| {
            let labels = format!("{{ip_family=\"{family}\"}}");
            value(node, "kubeproxy_nftables_localhost_nodeport_listeners", &labels)
        };
        let found = (of("IPv4"), of("IPv6"));
        if found == (v4, v6) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

fn on() -> Value {
    json!({"iptables": {"localhostNodePorts": true}})
}

#[test]
fn connections_reach_endpoints_in_both_families_and_end_one_side_at_a_time() {
    let Some(mut node) = node() else { return };
    for (v6, number) in [(false, 30080), (true, 30081)] {
        listen(&node, endpoint(v6, 0), sums_up);
        let objects = exposed(&format!("web{number}"), v6, number, Protocol::Tcp, &[endpoint(v6, 0)]);
        node.write(&format!("{number}.yaml"), &yaml(&objects));
    }
    node.start(&on());
    wait_for_listeners(&mut node, 1.0, 1.0);
    for (v6, number) in [(false, 30080), (true, 30081)] {
        let mut stream = connect(&node, at(LOOPBACK[usize::from(v6)], number)).expect("it is served");
        assert_eq!(line(&mut stream).expect("it says where it is"), endpoint(v6, 0).to_string());
        // 100 MB, of which no two pieces are alike.
        let (mut hasher, mut count, mut piece) = (DefaultHasher::new(), 0_u64, vec![0_u8; 100_000]);
        for round in 0..1_000_u32 {
            for (index, byte) in piece.iter_mut().enumerate() {
                *byte = (index as u32).wrapping_mul(round | 1).to_le_bytes()[1];
            }
            hasher.write(&piece);
            count += piece.len() as u64;
            stream.write_all(&piece).expect("it is taken");
        }
        // The other side has to hear of the end of this one to answer.
        stream.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(line(&mut stream).expect("it answers"), format!("{count} {:x}", hasher.finish()));
        assert_eq!(stream.read(&mut [0]).expect("its end comes too"), 0);
    }
    let bytes = |direction| {
        let labels = format!("{{direction=\"{direction}\",protocol=\"tcp\"}}");
        value(&node, "nftproxyd_localhost_nodeport_bytes_total", &labels)
    };
    assert_eq!(bytes("original"), 200_000_000.0);
    assert!(bytes("reply") > 60.0, "{}", bytes("reply"));
    assert_eq!(value(&node, "nftproxyd_localhost_nodeport_connections_total", "{protocol=\"tcp\"}"), 2.0);
    let explained = run_to_end(&node, true, &["explain", "127.0.0.1:30080"]).stdout;
    let daemon = format!("process {} (nftproxyd) serves on 127.0.0.1", node.daemon().id());
    assert!(explained.contains(&daemon) && !explained.contains("not served"), "{explained}");
    node.stop();
}

#[test]
fn datagrams_go_there_and_back_whole() {
    let Some(mut node) = node() else { return };
    for (v6, number) in [(false, 30053), (true, 30054)] {
        answers(&node, endpoint(v6, 0));
        let objects = exposed(&format!("dns{number}"), v6, number, Protocol::Udp, &[endpoint(v6, 0)]);
        node.write(&format!("{number}.yaml"), &yaml(&objects));
    }
    node.start(&on());
    wait_for_listeners(&mut node, 1.0, 1.0);
    for (v6, number) in [(false, 30053), (true, 30054)] {
        let to = at(LOOPBACK[usize::from(v6)], number);
        let clients = [client(&node, to), client(&node, to)];
        for length in [0, 1, 1_500, 65_507] {
            for (index, client) in clients.iter().enumerate() {
                let question: Vec<u8> = (0..length).map(|byte| (byte * (index + 3)) as u8).collect();
                client.send(&question).expect("it is sent");
                let mut answer = vec![0; 1 << 16];
                let read = client.recv(&mut answer).unwrap_or_else(|error| panic!("{to} {length}: {error}"));
                assert!(answer[..read] == question, "{to} {length} {read}");
            }
        }
    }
    assert_eq!(value(&node, "nftproxyd_localhost_nodeport_connections_total", "{protocol=\"udp\"}"), 4.0);
    node.stop();
}

#[test]
fn it_is_off_until_the_file_says_otherwise_and_follows_it_and_the_services() {
    let Some(mut node) = node() else { return };
    listen(&node, endpoint(false, 0), sums_up);
    listen(&node, endpoint(true, 0), sums_up);
    node.write("a.yaml", &yaml(&exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)])));
    node.write("b.yaml", &yaml(&exposed("b", true, 30081, Protocol::Tcp, &[endpoint(true, 0)])));
    let (v4, v6) = (at("127.0.0.1", 30080), at("::1", 30081));
    let is_refused =
        |node: &Node, to| connect(node, to).err().map(|error| error.kind()) == Some(ErrorKind::ConnectionRefused);
    // All addresses of the node, and no other.
    node.start(&json!({"nodePortAddresses": ["0.0.0.0/0", "::/0"]}));
    assert_eq!(reached(&node, at(NODE_IP, 30080)).expect("it is served"), endpoint(false, 0));
    assert!(is_refused(&node, v4) && is_refused(&node, v6));

    // One family.
    node.write_config(&json!({"nodePortAddresses": ["127.0.0.0/8", NODE_IP.to_owned() + "/32"]}));
    wait_for_listeners(&mut node, 1.0, 0.0);
    assert_eq!(reached(&node, v4).expect("it is served"), endpoint(false, 0));
    assert!(is_refused(&node, v6));
    // Both, where no address of the node is left: by way of the cluster IP.
    node.write_config(&json!({"nodePortAddresses": ["localhost"]}));
    wait_for_listeners(&mut node, 1.0, 1.0);
    node.eventually("no other address", |node| match connect(node, at(NODE_IP, 30080)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(reached(&node, v4).expect("it is served"), endpoint(false, 0));
    assert_eq!(reached(&node, v6).expect("it is served"), endpoint(true, 0));

    // A Service goes, and a connection stays.
    let mut open = connect(&node, v6).expect("it is served");
    line(&mut open).expect("it says where it is");
    node.remove("b.yaml");
    wait_for_listeners(&mut node, 1.0, 0.0);
    assert!(is_refused(&node, v6));
    open.write_all(b"hello").expect("it is open");
    open.shutdown(Shutdown::Write).expect("it is open");
    assert!(line(&mut open).expect("it is open").starts_with("5 "));
    // It has another port.
    node.replace("a.yaml", &yaml(&exposed("a", false, 30090, Protocol::Tcp, &[endpoint(false, 0)])));
    node.eventually("the other port", |node| match reached(node, at("127.0.0.1", 30090)) {
        Ok(_) if is_refused(node, v4) => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // Off again.
    node.write_config(&json!({}));
    wait_for_listeners(&mut node, 0.0, 0.0);
    assert!(is_refused(&node, at("127.0.0.1", 30090)));
    assert!(!node.log().contains("to be started again"), "{}", node.log());
    node.stop();
}

/// Makes a socket say goodbye by a reset when it is closed.
fn will_reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("it can be set");
}

#[test]
fn a_reset_is_passed_on_both_ways() {
    let Some(mut node) = node() else { return };
    let (sender, heard) = channel();
    listen(&node, endpoint(false, 0), move |mut stream: TcpStream| {
        stream.set_read_timeout(Some(ANSWER)).expect("it can be set");
        match line(&mut stream).as_deref() {
            Ok("reset") => {
                stream.write_all(b"last words\n").expect("it is open");
                std::thread::sleep(Duration::from_millis(100));
                will_reset(&stream);
            }
            _ => drop(sender.send(stream.read(&mut [0]).map_err(|error| error.kind()))),
        }
    });
    node.write("a.yaml", &yaml(&exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)])));
    node.start(&on());
    wait_for_listeners(&mut node, 1.0, 0.0);
    let to = at("127.0.0.1", 30080);
    let mut stream = connect(&node, to).expect("it is served");
    stream.write_all(b"reset\n").expect("it is open");
    assert_eq!(line(&mut stream).expect("it comes first"), "last words");
    assert_eq!(stream.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));

    let mut stream = connect(&node, to).expect("it is served");
    stream.write_all(b"wait\n").expect("it is open");
    will_reset(&stream);
    drop(stream);
    assert_eq!(heard.recv_timeout(ANSWER).expect("it hears"), Err(ErrorKind::ConnectionReset));

    // An end is none.
    let mut stream = connect(&node, to).expect("it is served");
    stream.write_all(b"wait\n").expect("it is open");
    drop(stream);
    assert_eq!(heard.recv_timeout(ANSWER).expect("it hears"), Ok(0));
    node.stop();
}

#[test]
fn what_the_tables_do_with_connections_of_the_node_they_do_with_these() {
    let Some(mut node) = node() else { return };
    let all = [0, 1, 2].map(|index| endpoint(false, index));
    all.into_iter().for_each(|endpoint| listen(&node, endpoint, sums_up));
    let of = |name, number, endpoints: &[SocketAddr], more: Value| {
        let mut objects = exposed(name, false, number, Protocol::Tcp, endpoints);
        crate::support::objects::merge(&mut objects[0], &more);
        yaml(&objects)
    };
    node.write("sticky.yaml", &of("sticky", 30001, &all, json!({"spec": {"sessionAffinity": "ClientIP"}})));
    node.write("local.yaml", &of("local", 30002, &all[..1], json!({"spec": {"externalTrafficPolicy": "Local"}})));
    node.write("empty.yaml", &of("empty", 30003, &[], json!({})));
    let rr = json!({"metadata": {"annotations": {"nftproxyd.io/scheduler": "rr"}}});
    node.write("turns.yaml", &of("turns", 30004, &all, rr));
    node.start(&on());
    wait_for_listeners(&mut node, 4.0, 0.0);
    let times = |node: &Node, number, times| -> Vec<SocketAddr> {
        (0..times).map(|_| reached(node, at("127.0.0.1", number)).expect("it is served")).collect()
    };
    let sticky = times(&node, 30001, 12);
    assert!(sticky.iter().all(|endpoint| *endpoint == sticky[0]), "{sticky:?}");
    assert_eq!(reached(&node, at(NODE_IP, 30001)).expect("it is served"), sticky[0], "the node is one client");
    // No endpoint is on the node. For who is there all serve, as through the node's address.
    assert_eq!(reached(&node, at(NODE_IP, 30002)).expect("it is served"), all[0]);
    assert_eq!(times(&node, 30002, 2), [all[0]; 2]);
    let turns = times(&node, 30004, 9);
    assert!(all.iter().all(|wanted| turns.iter().filter(|found| *found == wanted).count() == 3), "{turns:?}");

    // Nobody is there: at once.
    let start = Instant::now();
    assert!(is_reset(&node, at("127.0.0.1", 30003)));
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    let tcp = |name: &str| value(&node, &format!("nftproxyd_localhost_nodeport_{name}_total"), "{protocol=\"tcp\"}");
    assert_eq!((tcp("refused"), tcp("retries")), (1.0, 0.0));
    node.stop();
}

#[test]
fn endpoints_that_do_not_answer_are_passed_by() {
    let Some(mut node) = node() else { return };
    let [dead, dead_too, alive, silent] = [0, 1, 2, 3].map(|index| endpoint(false, index));
    listen(&node, alive, sums_up);
    listen(&node, silent, sums_up);
    let drops =
        "table ip silence { chain in { type filter hook input priority 0; ip daddr 10.78.0.4 tcp flags syn drop; }; }";
    node.world.nft(&["-f", "-"], drops).expect("nft takes it");
    let of = |name, number, endpoints: &[SocketAddr]| {
        let mut objects = exposed(name, false, number, Protocol::Tcp, endpoints);
        objects[0]["metadata"]["annotations"]["nftproxyd.io/scheduler"] = json!("rr");
        yaml(&objects)
    };
    node.write("refused.yaml", &of("refused", 30001, &[dead, dead_too, alive]));
    node.write("silent.yaml", &of("silent", 30002, &[silent, alive]));
    node.write("dead.yaml", &of("dead", 30003, &[dead, dead_too]));
    node.start(&on());
    wait_for_listeners(&mut node, 3.0, 0.0);
    let tcp = |node: &Node, name: &str| {
        value(node, &format!("nftproxyd_localhost_nodeport_{name}_total"), "{protocol=\"tcp\"}")
    };
    // By turns, two of three connections meet one that refuses.
    for _ in 0..9 {
        assert_eq!(reached(&node, at("127.0.0.1", 30001)).expect("one is there"), alive);
    }
    assert!(tcp(&node, "retries") >= 6.0, "{}", tcp(&node, "retries"));
    let before = tcp(&node, "retries");
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(reached(&node, at("127.0.0.1", 30002)).expect("one is there"), alive);
    }
    assert_eq!(tcp(&node, "retries") - before, 2.0, "which one was tried is known");
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(tcp(&node, "refused"), 0.0);

    assert!(is_reset(&node, at("127.0.0.1", 30003)));
    assert_eq!(tcp(&node, "refused"), 1.0);
    node.stop();
}

#[test]
fn clients_of_udp_are_forgotten_when_they_are_silent_or_refused_or_too_many() {
    let Some(mut node) = node() else { return };
    let server = answers(&node, endpoint(false, 0));
    node.write("a.yaml", &yaml(&exposed("a", false, 30053, Protocol::Udp, &[endpoint(false, 0)])));
    let mut config = on();
    config["conntrack"] = json!({"udpTimeout": "1s"});
    node.start(&config);
    wait_for_listeners(&mut node, 1.0, 0.0);
    let to = at("127.0.0.1", 30053);
    let udp = |node: &Node, name: &str| {
        value(node, &format!("nftproxyd_localhost_nodeport_{name}_total"), "{protocol=\"udp\"}")
    };
    let ask = |client: &UdpSocket| -> io::Result<usize> {
        client.send(b"?")?;
        client.recv(&mut [0; 9])
    };
    let one = client(&node, to);
    for _ in 0..3 {
        ask(&one).expect("it is answered");
    }
    assert_eq!(udp(&node, "connections"), 1.0);
    std::thread::sleep(Duration::from_millis(1_300));
    ask(&one).expect("it is answered");
    assert_eq!(udp(&node, "connections"), 2.0, "it was forgotten");

    // The server goes, and comes back.
    one.send(b"end").expect("it is sent");
    server.join().expect("it ends");
    one.set_read_timeout(Some(Duration::from_millis(100))).expect("it can be set");
    node.eventually("it is refused", |node| {
        let _ = ask(&one);
        if udp(node, "refused") > 0.0 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    answers(&node, endpoint(false, 0));
    node.eventually("it is served anew", |_| ask(&one).map(drop).map_err(|error| error.to_string()));

    // A hundred more than are remembered, one of which is heard of again and again.
    let before = udp(&node, "connections");
    let clients: Vec<UdpSocket> = (0..1_124).map(|_| client(&node, to)).collect();
    for client in &clients {
        ask(&one).expect("it is answered");
        ask(client).expect("it is answered");
    }
    assert_eq!(udp(&node, "connections") - before, 1_124.0);
    assert!(value(&node, "nftproxyd_localhost_nodeport_evicted_total", "") <= 101.0);
    let evicted = value(&node, "nftproxyd_localhost_nodeport_evicted_total", "");
    let silent = udp(&node, "connections") - 1_024.0 - evicted;
    assert!(evicted > 0.0 || silent > 0.0, "no more than 1,024 are remembered");
    let open = value(&node, "process_open_fds", "");
    assert!(open < 1_124.0, "{open}");
    node.stop();
}

#[test]
fn a_port_that_somebody_has_is_said_once_and_tried_again() {
    let Some((mut node, api)) = super::api::node_with_api() else { return };
    node.ip("-4 route add local 10.78.0.0/24 dev lo");
    listen(&node, endpoint(false, 0), sums_up);
    let busy = node.world.run(|| TcpListener::bind("127.0.0.1:30080").expect("it is free"));
    super::api::apply(&api, &exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)]));
    super::api::apply(&api, &exposed("b", false, 30081, Protocol::Tcp, &[endpoint(false, 0)]));
    let kubeconfig = node.file("kubeconfig");
    let mut config = on();
    config["clientConnection"] = json!({"kubeconfig": kubeconfig});
    let config = format!("--config={}", node.write_config(&config).display());
    node.spawn_with(&[config.as_ref(), "--hostname-override=node-0".as_ref()]);
    let words = |line: &str| {
        line.contains("WARN")
            && line.contains("shop/a:p: cannot listen on tcp 127.0.0.1:30080: Address already in use")
            && line.contains(&format!("(process {} (", std::process::id()))
    };
    node.wait_for_log("it is said", words);
    wait_for_listeners(&mut node, 1.0, 0.0);
    assert!(reached(&node, at("127.0.0.1", 30081)).is_ok(), "others are served");
    let failures = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total";
    node.eventually("it is tried again", |node| match value(node, failures, "{ip_family=\"IPv4\"}") {
        times if times >= 2.0 => Ok(()),
        times => Err(times.to_string()),
    });
    node.eventually("an Event", |_| {
        let events = api.events();
        let found: Vec<&Value> = events.iter().filter(|event| event["reason"] == "FailedToListenOnLocalhost").collect();
        match found[..] {
            [event] if event["regarding"]["name"] == "a" => Ok(()),
            _ => Err(format!("{found:?}")),
        }
    });
    drop(busy);
    wait_for_listeners(&mut node, 2.0, 0.0);
    node.wait_for_log("it is over", |line| line.contains("shop/a:p: tcp 127.0.0.1:30080 is listened on now"));
    assert!(reached(&node, at("127.0.0.1", 30080)).is_ok());
    assert_eq!(node.log().lines().filter(|line| words(line)).count(), 1);
    node.stop();
}

#[test]
fn connections_wait_while_there_are_no_descriptors() {
    let Some(mut node) = node() else { return };
    listen(&node, endpoint(false, 0), sums_up);
    node.write("a.yaml", &yaml(&exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)])));
    node.start(&on());
    wait_for_listeners(&mut node, 1.0, 0.0);
    let to = at("127.0.0.1", 30080);
    let open = value(&node, "process_open_fds", "") as u32;
    node.daemon().limit_descriptors(open + 10).expect("it can be limited");
    let mut clients: Vec<TcpStream> = (0..20).map(|_| connect(&node, to).expect("it is let wait")).collect();
    node.wait_for_log("it is said", |line| line.contains("connections to node ports on localhost have to wait"));
    // A second of waiting is none of work.
    let used = |node: &Node| procfs_cpu(node.daemon.as_ref().expect("it runs").id());
    let before = used(&node);
    std::thread::sleep(Duration::from_secs(1));
    assert!(used(&node) - before < 0.3, "{} s", used(&node) - before);
    node.daemon().limit_descriptors(10_000).expect("it can be raised");
    for stream in &mut clients {
        assert_eq!(line(stream).expect("its turn comes"), endpoint(false, 0).to_string());
    }
    let said = node.log().matches("have to wait").count();
    assert_eq!(said, 1, "{}", node.log());
    node.stop();
}

/// Seconds of processors that a process has used.
fn procfs_cpu(id: u32) -> f64 {
    let stat = procfs::process::Process::new(id.cast_signed()).and_then(|process| process.stat()).expect("it runs");
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

#[test]
fn sctp_is_served_where_the_kernel_has_it_and_else_is_one_line() {
    let Some(mut node) = node() else { return };
    let sctp = socket2::Protocol::from(132);
    let open = move || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, Some(sctp));
    let has = node.world.run(move || open().is_ok());
    listen(&node, endpoint(false, 0), sums_up);
    for (name, number, protocol) in
        [("a", 30001, Protocol::Sctp), ("b", 30002, Protocol::Sctp), ("c", 30003, Protocol::Tcp)]
    {
        node.write(&format!("{name}.yaml"), &yaml(&exposed(name, false, number, protocol, &[endpoint(false, 0)])));
    }
    if has {
        listen_by(&node, sctp, endpoint(false, 0), |mut stream: TcpStream| {
            let mut bytes = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut bytes) {
                let _ = stream.write_all(&bytes[..length]);
            }
        });
    }
    node.start(&on());
    wait_for_listeners(&mut node, if has { 3.0 } else { 1.0 }, 0.0);
    assert!(reached(&node, at("127.0.0.1", 30003)).is_ok(), "TCP is served");
    let lines = |node: &Node| node.log().matches("node ports of sctp are not served on 127.0.0.1: ").count();
    if has {
        let answer = node.world.run(move || {
            let socket = open().expect("it was possible before");
            socket.set_read_timeout(Some(ANSWER)).expect("it can be set");
            socket.connect(&at("127.0.0.1", 30001).into()).expect("it is served");
            let mut stream = TcpStream::from(socket);
            stream.write_all(b"hello").expect("it is open");
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).map(|()| answer)
        });
        assert_eq!(answer.expect("it is answered"), *b"hello");
    }
    assert_eq!(lines(&node), usize::from(!has), "{}", node.log());
    node.stop();
}

#[test]
fn neighbours_cannot_reach_it() {
    let Some(mut node) = node() else { return };
    let neighbour = Namespace::further().expect("a node can be made, and so can this");
    listen(&node, endpoint(false, 0), sums_up);
    answers(&node, endpoint(false, 1));
    node.write("a.yaml", &yaml(&exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)])));
    node.write("b.yaml", &yaml(&exposed("b", false, 30053, Protocol::Udp, &[endpoint(false, 1)])));
    node.ip(&format!("link add wire type veth peer name eth0 netns {}", neighbour.id()));
    node.ip("link set wire up");
    node.ip("addr add 198.18.1.254/24 dev wire");
    neighbour.run(|| {
        // Its own loopback gives way, so that what it sends to 127.0.0.1 goes over the wire, to the node's device.
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("it is ours");
        for line in [
            "link set eth0 up",
            "addr add 198.18.1.1/24 dev eth0",
            "route add default via 198.18.1.254",
            "addr del 127.0.0.1/8 dev lo",
            "route add 127.0.0.0/8 via 198.18.1.254 dev eth0",
        ] {
            let status = std::process::Command::new("ip").args(line.split(' ')).status().expect("ip is installed");
            assert!(status.success(), "ip {line}");
        }
    });
    let counts = "table netdev wire { chain in { type filter hook ingress device wire priority 0; \
                  ip daddr 127.0.0.1 tcp dport 30080 counter; ip daddr 127.0.0.1 udp dport 30053 counter; }; }";
    node.world.nft(&["-f", "-"], counts).expect("nft takes it");
    let mut config = on();
    config["nodePortAddresses"] = json!(["198.18.1.0/24"]);
    node.start(&config);
    wait_for_listeners(&mut node, 2.0, 0.0);
    assert!(reached(&node, at("127.0.0.1", 30080)).is_ok(), "who is on the node does");
    let tries = |to: &'static str| {
        neighbour.run(move || {
            let stream = TcpStream::connect_timeout(&at(to, 30080), Duration::from_secs(2));
            let socket = UdpSocket::bind("198.18.1.1:0").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("it can be set");
            let answer = socket.send_to(b"?", at(to, 30053)).and_then(|_| socket.recv(&mut [0; 9]));
            (stream.map(drop).map_err(|error| error.kind()), answer.map_err(|error| error.kind()))
        })
    };
    assert_eq!(tries("198.18.1.254"), (Ok(()), Ok(1)), "by the node's address it does");
    let (tcp, udp) = tries("127.0.0.1");
    assert_eq!(tcp, Err(ErrorKind::TimedOut));
    assert!(matches!(udp, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{udp:?}");
    let counted = node.nft(&["list", "table", "netdev", "wire"]).expect("it can be listed");
    assert!(!counted.contains("packets 0 "), "it was on the wire: {counted}");
    node.stop();
}

/// What stands in for systemd: it keeps the sockets that it is sent, by name.
struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
    kept: BTreeMap<String, OwnedFd>,
}

impl Manager {
    fn new(node: &Node) -> Manager {
        let path = node.file("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(ANSWER)).expect("it can be set");
        Manager { path, socket, kept: BTreeMap::new() }
    }

    /// Hears one message, and does what it says.
    fn hear(&mut self) -> String {
        let mut bytes = [0; 4_096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut rights, RecvFlags::CMSG_CLOEXEC);
        let length = received.expect("it has something to say").bytes;
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).map(str::to_owned);
        let sockets = rights.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets.collect::<Vec<_>>()),
            _ => None,
        });
        let socket = sockets.flatten().next();
        if text.lines().any(|line| line == "FDSTORE=1") {
            self.kept.insert(name.expect("it has a name"), socket.expect("it is sent"));
        } else if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.kept.remove(&name.expect("it has a name"));
        }
        text
    }

    fn hear_until(&mut self, wanted: impl Fn(&Manager) -> bool) {
        while !wanted(self) {
            self.hear();
        }
    }

    /// Starts the daemon with a socket that was kept, if one was, under this name.
    fn start(&self, node: &mut Node, config: &Value, kept: Option<(&str, &str)>) {
        let (config, folder) = (node.write_config(config), node.folder());
        let arguments =
            ["run".as_ref(), "--manifests".as_ref(), folder.as_os_str(), "--config".as_ref(), config.as_os_str()];
        let kept = kept.map(|(name, of)| (name, self.kept[of].try_clone().expect("it can be")));
        let daemon = Daemon::start_managed(&node.world, &self.path, kept, &arguments);
        node.daemon = Some(daemon.expect("the daemon can be started"));
        node.wait_for_log("in sync", |line| line.contains(" in sync services="));
    }
}

#[test]
fn connections_that_come_while_there_is_no_daemon_are_served_by_the_next() {
    const NAME: &str = "tcp4-30080";
    let Some(mut node) = node() else { return };
    listen(&node, endpoint(false, 0), sums_up);
    node.write("a.yaml", &yaml(&exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)])));
    let mut manager = Manager::new(&node);
    manager.start(&mut node, &on(), None);
    manager.hear_until(|manager| manager.kept.contains_key(NAME));
    let to = at("127.0.0.1", 30080);
    assert!(reached(&node, to).is_ok());

    node.kill();
    let mut waiting: Vec<TcpStream> = (0..3).map(|_| connect(&node, to).expect("it waits")).collect();
    manager.start(&mut node, &on(), Some((NAME, NAME)));
    for stream in &mut waiting {
        assert_eq!(line(stream).expect("its turn comes"), endpoint(false, 0).to_string());
    }
    assert!(node.log().contains("1 sockets of node ports on localhost have stayed open"), "{}", node.log());
    assert!(reached(&node, to).is_ok());

    // Somebody else is what the name does not say.
    node.kill();
    manager.start(&mut node, &on(), Some(("tcp4-30081", NAME)));
    node.wait_for_log("it is said", |line| {
        line.contains("the service manager has kept as tcp4-30081 what is not that")
    });

    // The Service has gone meanwhile. The manager may take its time to forget it: nobody can connect all the same.
    node.kill();
    node.remove("a.yaml");
    manager.start(&mut node, &on(), Some((NAME, NAME)));
    node.eventually("nobody listens", |node| match connect(node, to) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{other:?}")),
    });
    manager.hear_until(|manager| !manager.kept.contains_key(NAME));

    // Off: nothing is kept.
    node.write("a.yaml", &yaml(&exposed("a", false, 30080, Protocol::Tcp, &[endpoint(false, 0)])));
    manager.hear_until(|manager| manager.kept.contains_key(NAME));
    node.write_config(&json!({}));
    manager.hear_until(|manager| !manager.kept.contains_key(NAME));
    node.stop();
}

/// Of 5,000 node ports in both families.
#[test]
#[ignore = "a measurement"]
fn what_ten_thousand_sockets_take() {
    let Some(mut node) = node() else { return };
    let mut objects = Vec::new();
    for number in 0..5_000_u16 {
        let [high, low] = number.to_be_bytes();
        let ips = [ip(&format!("172.30.{high}.{low}")), ip(&format!("fd00:172:30::{:x}", number + 1))];
        let port = json!({"name": "p", "port": 80, "targetPort": 7777, "nodePort": 20_000 + number});
        let name = format!("web{number}");
        objects.push(service("shop", &name, &ips, &json!({"type": "NodePort", "ports": [port]})));
        for v6 in [false, true] {
            let mut slice = slice_of(&name, ("p", Protocol::Tcp), &[&endpoint(v6, 0).to_string()]);
            slice["metadata"]["name"] = json!(format!("{name}-{v6}"));
            objects.push(slice);
        }
    }
    node.write("all.yaml", &yaml(&objects));
    node.start(&json!({}));
    let look = |node: &Node| {
        let resident = node.daemon.as_ref().expect("it runs").resident_memory().expect("it runs");
        (resident / 1024, value(node, "process_open_fds", ""))
    };
    std::thread::sleep(Duration::from_secs(3));
    let before = look(&node);
    let start = Instant::now();
    node.write_config(&on());
    wait_for_listeners(&mut node, 5_000.0, 5_000.0);
    let took = start.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    let cpu = procfs_cpu(node.daemon().id());
    std::thread::sleep(Duration::from_secs(3));
    let idle = procfs_cpu(node.daemon().id()) - cpu;
    println!("KiB and descriptors: off {before:?}, on {:?} after {took:?}; idle {idle} s in 3 s", look(&node));
    node.stop();
}
