//! Connections whose first packet comes to the endpoint, and whose answer, or what is sent next, does not pass this node: a
//! real client and a real server see it first, and then `explain` has to name the cause. Beside each stands a rule that is
//! nearly the same and harms nothing, of which nothing may be said.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::json;

use super::doctor::{sh, try_sh};
use super::incidents::{explain, incident, is_well, mend, started};
use super::{NODE_IP, Node, echo_server, ip, run_to_end, slice_of, socket, web, yaml};
use crate::netns::skip;
use crate::support::namespace::Namespace;
use crate::support::objects::service;
use crate::support::packet::Protocol;

const ECHO: &str = "172.30.1.30:80";
/// Its endpoint is on the node itself.
const HOST: &str = "172.30.1.31:80";
const UDP: &str = "172.30.1.32:53";
/// Whom cluster IPs are masqueraded for, and a pod, for which they are not.
const OUTSIDE: &str = "198.18.5.1";
const POD: &str = "10.1.8.1";
/// What a packet of each needs that passes, and what one is waited for that does not.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(150);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Outside,
    Pod,
    Node,
}

/// How far a connection comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// Data is echoed.
    Back,
    /// It is opened, and no data comes back.
    Opened,
    /// There is no answer.
    Nowhere,
}

struct Net {
    node: Node,
    outside: Namespace,
    pod: Namespace,
    _server: Namespace,
}

/// A neighbour of the node behind a device of its own.
fn neighbour(node: &Node, device: &str, address: &str) -> Namespace {
    let neighbour = Namespace::further().expect("a node can be made, and so can this");
    let (gateway, _) = address.rsplit_once('.').expect("of IPv4");
    let id = neighbour.id();
    sh(
        node,
        &format!(
            "ip link add {device} type veth peer name eth0 netns {id}; ip addr add {gateway}.254/24 dev {device}; \
             ip link set {device} up"
        ),
    );
    let lines = format!(
        "ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {gateway}.254; \
         ping -c 1 -W 5 {gateway}.254 >/dev/null 2>&1 || true"
    );
    let run = move || std::process::Command::new("sh").args(["-c", &lines]).status().expect("there is a shell");
    assert!(neighbour.run(run).success());
    neighbour
}

impl Net {
    fn new() -> Option<Net> {
        let node = started()?;
        let server = neighbour(&node, "sv0", "10.1.9.1");
        let (outside, pod) = (neighbour(&node, "cl0", OUTSIDE), neighbour(&node, "pc0", POD));
        server.run(|| {
            let listener = TcpListener::bind("10.1.9.1:7777").expect("nobody else is there");
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut &stream, &mut &stream);
                    });
                }
            });
            let socket = UdpSocket::bind("10.1.9.1:5353").expect("nobody else is there");
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                    let _ = socket.send_to(&bytes[..length], from);
                }
            });
        });
        echo_server(&node, socket(&format!("{NODE_IP}:7070")));
        let port = json!({"name": "dns", "port": 53, "protocol": "UDP"});
        let objects = [
            web("echo", "172.30.1.30", &["10.1.9.1:7777"]),
            web("host", "172.30.1.31", &[&format!("{NODE_IP}:7070")]),
            vec![
                service("shop", "dns", &[ip("172.30.1.32")], &json!({"ports": [port]})),
                slice_of("dns", ("dns", Protocol::Udp), &["10.1.9.1:5353"]),
            ],
        ];
        node.write("answers.yaml", &yaml(&objects.concat()));
        let mut net = Net { node, outside, pod, _server: server };
        for from in [From::Outside, From::Pod, From::Node] {
            for to in [ECHO, HOST, UDP] {
                let mut comes = Comes::Nowhere;
                let end = std::time::Instant::now() + super::PATIENCE;
                while comes != Comes::Back && std::time::Instant::now() < end {
                    comes = net.tries(from, to, Duration::from_millis(500));
                }
                assert_eq!(comes, Comes::Back, "{from:?} {to} without rules");
            }
        }
        Some(net)
    }

    /// How far a connection comes.
    fn tries(&mut self, from: From, to: &'static str, patience: Duration) -> Comes {
        let attempt = move || {
            if to == UDP {
                let client = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
                client.set_read_timeout(Some(patience)).expect("it can be set");
                client.connect(socket(to)).expect("a route is there");
                // Each of two is answered.
                for nth in 0..2 {
                    let is_back = client.send(b"?").is_ok() && client.recv(&mut [0; 8]).is_ok();
                    match (is_back, nth) {
                        (true, _) => {}
                        (false, 0) => return Comes::Nowhere,
                        (false, _) => return Comes::Opened,
                    }
                }
                return Comes::Back;
            }
            let Ok(mut stream) = TcpStream::connect_timeout(&socket(to), patience) else { return Comes::Nowhere };
            stream.set_read_timeout(Some(patience)).expect("it can be set");
            let is_back = stream.write_all(b"?").is_ok() && stream.read_exact(&mut [0; 1]).is_ok();
            if is_back { Comes::Back } else { Comes::Opened }
        };
        match from {
            From::Outside => self.outside.run(attempt),
            From::Pod => self.pod.run(attempt),
            From::Node => self.node.world.run(attempt),
        }
    }

    /// All comes back, and `explain` has nothing to say.
    #[track_caller]
    fn harms_nothing(&mut self, from: From, to: &'static str, rules: &str) {
        assert_eq!(self.tries(from, to, PATIENCE), Comes::Back, "{from:?} {to}: {rules}");
        is_well(&self.node, &question(from, to), &["answer-lost", "later-packet-lost"]);
    }

    /// It comes so far, for this reason.
    #[track_caller]
    fn is_lost(&mut self, from: From, to: &'static str, (comes, reason): (Comes, &str), words: &[&str]) -> String {
        assert_eq!(self.tries(from, to, GLANCE), comes, "{from:?} {to}: {words:?}");
        self.node.world.flush_conntrack().expect("connections can be forgotten");
        let verdict = if reason == "later-packet-lost" { "dropped" } else { "not-served" };
        incident(&self.node, &question(from, to), reason, verdict, words)
    }
}

fn question(from: From, to: &str) -> String {
    match from {
        From::Outside => format!("{OUTSIDE} {to}"),
        From::Pod => format!("{POD} {to}"),
        From::Node => to.to_owned(),
    }
}

const ANSWER: (Comes, &str) = (Comes::Nowhere, "answer-lost");
const LATER: (Comes, &str) = (Comes::Opened, "later-packet-lost");
const LATER_ANSWER: (Comes, &str) = (Comes::Opened, "answer-lost");

struct Case {
    /// Where a chain of others is, in nft's words.
    hook: &'static str,
    /// Rules that harm.
    rules: &'static str,
    /// Others that are nearly the same, and do not.
    instead: &'static str,
    from: &'static [From],
    to: &'static str,
    lost: (Comes, &'static str),
    words: &'static str,
}

const ALL: &[From] = &[From::Outside, From::Pod, From::Node];
const FORWARDED: &[From] = &[From::Outside, From::Pod];

const CASES: &[Case] = &[
    // Connections of which only the beginning is accepted.
    Case {
        hook: "forward priority 0; policy drop",
        rules: "ct state new tcp dport 7777 accept",
        instead: "ct state established,related accept; ct state new tcp dport 7777 accept",
        from: FORWARDED,
        to: ECHO,
        lost: ANSWER,
        words: "inet other c (forward) drops the answer: chain inet other c: policy drop",
    },
    Case {
        hook: "forward priority 0; policy drop",
        rules: "ct state new udp dport 5353 accept",
        instead: "ct state established,related accept; ct state new udp dport 5353 accept",
        from: FORWARDED,
        to: UDP,
        lost: ANSWER,
        words: "(forward) drops the answer: chain inet other c: policy drop",
    },
    Case {
        hook: "forward priority 0",
        rules: "ct state != new drop",
        instead: "ct state invalid drop",
        from: FORWARDED,
        to: ECHO,
        lost: ANSWER,
        words: "(forward) drops the answer: rule 1: ct state != new drop",
    },
    Case {
        hook: "input priority 0; policy drop",
        rules: "iifname \"lo\" accept; ct state new accept",
        instead: "iifname \"lo\" accept; ct state new,established accept",
        from: &[From::Node],
        to: ECHO,
        lost: ANSWER,
        words: "(input) drops the answer: chain inet other c: policy drop",
    },
    Case {
        hook: "output priority 0; policy drop",
        rules: "oifname \"lo\" accept; ct state new accept",
        instead: "oifname \"lo\" accept; ct state { new, established } accept",
        from: FORWARDED,
        to: HOST,
        lost: ANSWER,
        words: "(output) drops the answer: chain inet other c: policy drop",
    },
    // Answers by their source, which is the endpoint until it leaves.
    Case {
        hook: "forward priority 0",
        rules: "ip saddr 10.1.9.1 tcp sport 7777 reject",
        instead: "ip saddr 172.30.1.30 drop; ip daddr 10.1.9.254 drop",
        from: FORWARDED,
        to: ECHO,
        lost: ANSWER,
        words: "(forward) refuses the answer: rule 1: ip saddr 10.1.9.1 tcp sport 7777 reject",
    },
    Case {
        hook: "input priority 0",
        rules: "ip saddr 10.1.9.1 drop",
        instead: "ip saddr 172.30.1.30 drop",
        from: &[From::Node],
        to: ECHO,
        lost: ANSWER,
        words: "(input) drops the answer: rule 1: ip saddr 10.1.9.1 drop",
    },
    Case {
        hook: "postrouting priority 101",
        rules: "ip saddr 172.30.1.30 drop",
        instead: "ip saddr 10.1.9.1 drop",
        from: FORWARDED,
        to: ECHO,
        lost: ANSWER,
        words: "(postrouting) drops the answer: rule 1: ip saddr 172.30.1.30 drop",
    },
    Case {
        hook: "postrouting priority 0",
        rules: "ip saddr 10.1.9.1 udp sport 5353 drop",
        instead: "ip saddr 172.30.1.32 drop",
        from: FORWARDED,
        to: UDP,
        lost: ANSWER,
        words: "(postrouting) drops the answer: rule 1: ip saddr 10.1.9.1 udp sport 5353 drop",
    },
    // Where it goes to, which is the node as long as it is masqueraded.
    Case {
        hook: "prerouting priority -300",
        rules: "ip saddr 10.1.9.1 ip daddr 10.1.9.254 drop",
        instead: "ip saddr 10.1.9.1 ip daddr 198.18.5.1 drop",
        from: &[From::Outside],
        to: ECHO,
        lost: ANSWER,
        words: "(prerouting) drops the answer: rule 1: ip saddr 10.1.9.1 ip daddr 10.1.9.254 drop",
    },
    Case {
        hook: "prerouting priority -300",
        rules: "ip saddr 10.1.9.1 ip daddr 10.1.8.1 drop",
        instead: "ip saddr 10.1.9.1 ip daddr 10.1.9.254 drop",
        from: &[From::Pod],
        to: ECHO,
        lost: ANSWER,
        words: "(prerouting) drops the answer: rule 1: ip saddr 10.1.9.1 ip daddr 10.1.8.1 drop",
    },
    Case {
        hook: "forward priority 0",
        rules: "ct reply ip daddr 10.1.9.254 ct direction reply drop",
        instead: "ct original ip saddr 10.1.9.1 drop; ct reply ip saddr 172.30.1.30 drop; ct direction reply ct reply ip daddr 198.18.5.1 drop",
        from: &[From::Outside],
        to: ECHO,
        lost: ANSWER,
        words: "(forward) drops the answer: rule 1: ct reply ip daddr 10.1.9.254",
    },
    // By way of loopback, it has all of its translation as it comes in again.
    Case {
        hook: "input priority 0",
        rules: "iifname \"lo\" ct direction reply ip saddr 172.30.1.31 drop",
        instead: "iifname \"lo\" ct direction reply tcp sport 7070 drop",
        from: &[From::Node],
        to: HOST,
        lost: ANSWER,
        words: "(input) drops the answer: rule 1: iifname \"lo\" ct direction reply ip saddr 172.30.1.31",
    },
    // Nobody translates it.
    Case {
        hook: "prerouting priority -300",
        rules: "ip saddr 10.1.9.1 notrack",
        instead: "ip saddr 10.1.9.2 notrack",
        from: ALL,
        to: ECHO,
        lost: ANSWER,
        words: "(prerouting) has the answer not tracked, so that nobody translates it: rule 1: ip saddr 10.1.9.1 notrack",
    },
    Case {
        hook: "prerouting priority -300",
        rules: "iifname \"sv0\" ct zone set 7",
        instead: "ct zone set 7",
        from: FORWARDED,
        to: ECHO,
        lost: ANSWER,
        words: "a rule has the answer looked up in another zone of connection tracking",
    },
    // What is sent next.
    Case {
        hook: "forward priority 0",
        rules: "ct state established ct direction original drop",
        instead: "ct state new ct direction reply drop",
        from: FORWARDED,
        to: ECHO,
        lost: LATER,
        words: "(forward) drops what the client sends after the answer: rule 1: ct state established",
    },
    Case {
        hook: "forward priority 0",
        rules: "udp dport 5353 ct state established drop",
        instead: "ct direction original udp dport 53 ct state established drop",
        from: FORWARDED,
        to: UDP,
        lost: LATER,
        words: "(forward) drops what the client sends after the answer: rule 1: udp dport 5353",
    },
    Case {
        hook: "output priority 0",
        rules: "tcp dport 7777 ct state established drop",
        instead: "tcp dport 80 ct state established drop",
        from: &[From::Node],
        to: ECHO,
        lost: LATER,
        words: "(output) drops what the client sends after the answer: rule 1: tcp dport 7777",
    },
    Case {
        hook: "input priority 0",
        rules: "tcp dport 7070 tcp flags & (syn | ack) == ack drop",
        instead: "tcp dport 80 tcp flags & (syn | ack) == ack drop",
        from: FORWARDED,
        to: HOST,
        lost: LATER,
        words: "(input) drops what the client sends after the answer: rule 1: tcp dport 7070",
    },
    Case {
        hook: "forward priority 0",
        rules: "ct direction reply tcp sport 7777 tcp flags & (syn | ack) == ack drop",
        instead: "ct direction reply tcp sport 7777 tcp flags & (syn | rst) == syn | rst drop",
        from: FORWARDED,
        to: ECHO,
        lost: LATER_ANSWER,
        words: "(forward) drops what the endpoint sends after its first answer: rule 1: ct direction reply tcp sport 7777",
    },
];

#[test]
fn lost_answers_and_later_packets_are_named() {
    let Some(mut net) = Net::new() else { return };
    let load = |net: &Net, hook: &str, rules: &str| {
        let (rules, kind) = (rules.replace("; ", "\n"), "type filter hook");
        let text = format!("table inet other {{\nchain c {{\n{kind} {hook};\n{rules}\n}}\n}}\n");
        net.node.world.nft(&["-f", "-"], &text).unwrap_or_else(|error| panic!("{text}: {error}"));
    };
    let unload = |net: &Net| net.node.nft(&["delete table inet other"]).expect("it is there");
    for Case { hook, rules, instead, from, to, lost, words } in CASES {
        for from in *from {
            load(&net, hook, rules);
            net.is_lost(*from, to, *lost, &[words]);
            unload(&net);
            load(&net, hook, instead);
            net.harms_nothing(*from, to, instead);
            unload(&net);
        }
    }
    // Who does not wait for an answer of this endpoint is not told.
    load(&net, "forward priority 0; policy drop", "ct state new tcp dport 7777 accept");
    net.harms_nothing(From::Outside, HOST, "of what is forwarded alone");
    net.harms_nothing(From::Node, ECHO, "of what is forwarded alone");
    // People have it among the places, and what can be done.
    let text = run_to_end(&net.node, true, &["explain", OUTSIDE, ECHO]).stdout;
    assert!(
        text.contains(" answer      inet other c (forward): DROPS it: chain inet other c: policy drop\n"),
        "{text}"
    );
    assert!(text.contains("fix: have a rule ahead of it: ct state established,related accept"), "{text}");
    unload(&net);
    // Nobody can tell, and it is said of which packet.
    load(&net, "forward priority 0", "ip saddr 10.1.9.1 limit rate over 400/second drop");
    let words = ["inet other c (forward) may drop the answer, which cannot be told (it has a limit)"];
    incident(&net.node, &question(From::Outside, ECHO), "foreign-rule-unclear", "unsure", &words);
    let said = explain(&net.node, &question(From::Outside, ECHO));
    assert_eq!(said.get("causes").as_array().map(Vec::len), Some(1), "{:#}", said.get("causes"));
    unload(&net);
    load(&net, "prerouting priority -300", "iifname \"sv0\" ct zone set numgen random mod 2");
    incident(&net.node, &question(From::Outside, ECHO), "unread", "unsure", &["zone of connection tracking"]);
}

#[test]
fn rules_of_iptables_that_lose_answers_are_named() {
    let Some(mut net) = Net::new() else { return };
    for program in ["iptables-nft", "iptables-legacy"] {
        let family = if program == "iptables-nft" { "ip" } else { program };
        let made = try_sh(&net.node, &format!("{program} -A FORWARD -m conntrack --ctstate NEW -j ACCEPT"));
        if !made.status.success() {
            skip(program, String::from_utf8_lossy(&made.stderr));
            continue;
        }
        sh(&net.node, &format!("{program} -A FORWARD -j DROP"));
        for (from, to) in [(From::Outside, ECHO), (From::Pod, ECHO), (From::Pod, UDP)] {
            let words = format!("{family} filter FORWARD (forward) drops the answer: rule 2");
            net.is_lost(from, to, ANSWER, &[&words]);
        }
        sh(&net.node, &format!("{program} -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"));
        net.harms_nothing(From::Outside, ECHO, program);
        net.harms_nothing(From::Pod, UDP, program);
        sh(&net.node, &format!("{program} -F FORWARD; {program} -P FORWARD DROP"));
        sh(&net.node, &format!("{program} -A FORWARD -i cl0 -j ACCEPT"));
        let words = format!("{family} filter FORWARD (forward) drops the answer: ");
        net.is_lost(From::Outside, ECHO, ANSWER, &[&words, "policy"]);
        sh(&net.node, &format!("{program} -F FORWARD; {program} -P FORWARD ACCEPT"));

        sh(&net.node, &format!("{program} -A INPUT -i sv0 -m conntrack ! --ctstate NEW -j DROP"));
        let words = format!("{family} filter INPUT (input) drops the answer: rule 1");
        net.is_lost(From::Node, ECHO, ANSWER, &[&words]);
        net.harms_nothing(From::Outside, ECHO, program);
        sh(&net.node, &format!("{program} -F INPUT"));
        sh(&net.node, &format!("{program} -A OUTPUT -p tcp ! --syn -d 10.1.9.1 -j DROP"));
        let words = format!("{family} filter OUTPUT (output) drops what the client sends after the answer: rule 1");
        net.is_lost(From::Node, ECHO, LATER, &[&words]);
        sh(&net.node, &format!("{program} -F OUTPUT"));
        sh(&net.node, &format!("{program} -t raw -A PREROUTING -i sv0 -j CT --zone 7"));
        net.is_lost(From::Outside, ECHO, ANSWER, &["another zone of connection tracking"]);
        sh(&net.node, &format!("{program} -t raw -A PREROUTING -i cl0 -j CT --zone 7"));
        net.harms_nothing(From::Outside, ECHO, program);
        sh(&net.node, &format!("{program} -t raw -F PREROUTING"));
        net.harms_nothing(From::Node, ECHO, program);
    }
}

#[test]
fn settings_and_routes_that_lose_answers_are_named() {
    let Some(mut net) = Net::new() else { return };
    // The client's device forwards, and that of the endpoint does not.
    sh(&net.node, "sysctl -q -w net.ipv4.conf.sv0.forwarding=0");
    let words = ["the answer is not forwarded (net.ipv4.conf.sv0.forwarding = 0)"];
    let fix = net.is_lost(From::Outside, ECHO, ANSWER, &words);
    net.harms_nothing(From::Node, ECHO, "it is not forwarded");
    net.harms_nothing(From::Outside, HOST, "it has no part in it");
    mend(&net.node, &fix, "sysctl -w");
    net.harms_nothing(From::Outside, ECHO, "it is forwarded");
    // Routes by where it comes from.
    sh(&net.node, "ip route add unreachable default table 88; ip rule add iif sv0 lookup 88 pref 100");
    net.is_lost(From::Outside, ECHO, ANSWER, &["the answer has no route to 198.18.5.1"]);
    net.harms_nothing(From::Outside, HOST, "it has no part in it");
    sh(&net.node, "ip rule del pref 100");
    net.harms_nothing(From::Outside, ECHO, "it has a route");
    // A mark of the connection that only what follows its first packet is routed by.
    sh(&net.node, "ip rule add fwmark 0x77/0xff lookup 88 pref 100");
    let text = "table inet other {\nchain c {\ntype filter hook prerouting priority -150;\nct state new ct mark set 0x77\n\
                ct direction reply meta mark set ct mark\n}\n}\n";
    net.node.world.nft(&["-f", "-"], text).expect("a table");
    net.is_lost(From::Outside, ECHO, ANSWER, &["the answer has no route to 198.18.5.1"]);
    sh(&net.node, "ip rule del pref 100");
    net.harms_nothing(From::Outside, ECHO, "nobody asks for marks");
}
