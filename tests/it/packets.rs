//! The packet harness itself: every outcome is recognised, with rules made by hand.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::support::outcome::{Fate, Kind, Masquerade, Outcome, Passed};
use crate::support::packet::{FirstPacket, Protocol, Refusal, Sighting, crc32c, internet_checksum};
use crate::support::world::{Interface, Look, Probe, World};

/// Each rule once; [`to_v6`] makes the same for IPv6 of it.
const RULES: &str = "
table ip by-hand {
    chain prerouting { type nat hook prerouting priority dstnat;
        ip daddr 172.30.0.1 tcp dport 80 dnat ip addr . port to numgen random mod 3 map {
            0: 10.1.0.1 . 8080, 1: 10.1.0.2 . 8080, 2: 10.1.0.3 . 8080 }
        ip daddr 172.30.0.1 udp dport 53 dnat to 10.1.0.1:5353
        ip daddr 172.30.0.1 sctp dport 9 mark set 1 dnat to 10.1.0.1:99
        ip daddr 172.30.0.2 tcp dport 80 dnat to 192.0.2.10:8080
        ip daddr 172.30.0.3 tcp dport 80 mark set 1 dnat to 10.1.0.1:8080
        ip daddr 172.30.0.4 tcp dport 80 numgen inc mod 2 0 mark set 1
        ip daddr 172.30.0.4 tcp dport 80 dnat to 10.1.0.1:8080
    }
    chain output { type nat hook output priority -100;
        ip daddr 172.30.0.3 tcp dport 80 mark set 1 dnat to 10.1.0.1:8080
        ip daddr 172.30.0.1 udp dport 53 dnat to 10.1.0.1:5353
        ip daddr 192.0.2.10 tcp dport 3000 dnat to 10.1.0.1:8080
        ip daddr 172.30.0.2 tcp dport 80 dnat to 192.0.2.10:8080
    }
    chain postrouting { type nat hook postrouting priority srcnat;
        mark 1 masquerade fully-random
        ip daddr 172.30.0.78 snat to 192.0.2.77
    }
    chain refuse {
        ip daddr 172.30.0.9 udp dport 1 reject
        ip daddr 172.30.0.9 sctp dport 1 reject
        ip daddr 172.30.0.9 tcp dport 1 reject with tcp reset
        ip daddr 172.30.0.9 tcp dport 2 reject
        ip daddr 172.30.0.9 drop
        ip daddr 192.0.2.10 tcp dport 4444 reject
    }
    chain forward { type filter hook forward priority filter; jump refuse; }
    chain input { type filter hook input priority filter; jump refuse; }
    chain output-filter { type filter hook output priority filter; jump refuse; }
}
";

const CLIENT: &str = "203.0.113.7";
const NODE: &str = "192.0.2.10";
const NODE_OTHER: &str = "192.0.2.77";

/// The same text with IPv6 addresses.
fn to_v6(text: &str) -> String {
    [
        ("ip daddr", "ip6 daddr"),
        ("table ip ", "table ip6 "),
        ("dnat ip ", "dnat ip6 "),
        ("10.1.0.1:", "[fd00:1::1]:"),
        ("192.0.2.10:", "[2001:db8::10]:"),
        ("10.1.0.", "fd00:1::"),
        ("172.30.0.", "fd00:172:30::"),
        ("192.0.2.", "2001:db8::"),
        ("203.0.113.", "2001:db8:f::"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn node() -> Option<World> {
    World::new(&[ip(NODE), ip(NODE_OTHER), ip(&to_v6(NODE)), ip(&to_v6(NODE_OTHER))], &[])
}

fn node_with_rules() -> Option<World> {
    let world = node()?;
    world.nft(&["-f", "-"], RULES).expect("the rules for IPv4 load");
    world.nft(&["-f", "-"], &to_v6(RULES)).expect("the rules for IPv6 load");
    Some(world)
}

/// Source, destination, port, protocol.
type Sent = (&'static str, &'static str, u16, Protocol);

fn probe((client, to, port, protocol): Sent, v6: bool) -> Probe {
    let address = |text| if v6 { ip(&to_v6(text)) } else { ip(text) };
    Probe { clients: vec![address(client)], protocol, destination: SocketAddr::new(address(to), port) }
}

#[test]
fn every_outcome_is_recognised() {
    use Masquerade::{Mixed, No, Unknown, Yes};
    use Protocol::{Sctp, Tcp, Udp};
    let forwards: &[(Sent, &[&str], Masquerade)] = &[
        ((CLIENT, "172.30.0.1", 80, Tcp), &["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"], No),
        ((CLIENT, "172.30.0.1", 53, Udp), &["10.1.0.1:5353"], No),
        ((CLIENT, "172.30.0.1", 9, Sctp), &["10.1.0.1:99"], Yes),
        ((CLIENT, "172.30.0.2", 80, Tcp), &["192.0.2.10:8080"], No),
        ((CLIENT, "172.30.0.3", 80, Tcp), &["10.1.0.1:8080"], Yes),
        ((CLIENT, "172.30.0.4", 80, Tcp), &["10.1.0.1:8080"], Mixed),
        ((NODE_OTHER, "172.30.0.3", 80, Tcp), &["10.1.0.1:8080"], Yes),
        ((NODE, "172.30.0.3", 80, Tcp), &["10.1.0.1:8080"], Yes),
        ((NODE_OTHER, "172.30.0.1", 53, Udp), &["10.1.0.1:5353"], No),
        // Masquerading would give the address that the packet has already.
        ((NODE, "172.30.0.2", 80, Tcp), &["192.0.2.10:8080"], Unknown),
        ((NODE, NODE, 3000, Tcp), &["10.1.0.1:8080"], Unknown),
    ];
    let others: &[(Sent, Kind)] = &[
        ((CLIENT, "172.30.0.9", 1, Udp), Kind::Reject),
        ((CLIENT, "172.30.0.9", 1, Sctp), Kind::Reject),
        ((CLIENT, "172.30.0.9", 1, Tcp), Kind::Reject),
        ((CLIENT, "172.30.0.9", 2, Tcp), Kind::Reject),
        ((CLIENT, NODE, 4444, Tcp), Kind::Reject),
        ((NODE, "172.30.0.9", 1, Udp), Kind::Reject),
        ((NODE, "172.30.0.9", 1, Tcp), Kind::Reject),
        ((NODE, "172.30.0.9", 1, Sctp), Kind::Reject),
        ((NODE, "172.30.0.9", 2, Tcp), Kind::Reject),
        ((CLIENT, "172.30.0.9", 3, Tcp), Kind::Drop),
        ((CLIENT, "172.30.0.9", 3, Sctp), Kind::Drop),
        ((NODE, "172.30.0.9", 3, Udp), Kind::Drop),
        ((CLIENT, NODE, 22, Tcp), Kind::Pass),
        ((CLIENT, NODE, 22, Udp), Kind::Pass),
        ((CLIENT, NODE, 22, Sctp), Kind::Pass),
        ((CLIENT, NODE_OTHER, 22, Tcp), Kind::Pass),
        ((NODE, NODE, 22, Tcp), Kind::Pass),
        ((NODE, NODE, 22, Udp), Kind::Pass),
        ((NODE, NODE_OTHER, 22, Sctp), Kind::Pass),
        ((CLIENT, "172.30.0.77", 1, Tcp), Kind::Pass),
        ((NODE, "172.30.0.77", 1, Udp), Kind::Pass),
        ((CLIENT, "172.30.0.77", 5, Sctp), Kind::Pass),
    ];

    let begin = Instant::now();
    let Some(mut world) = node_with_rules() else { return };
    let made = begin.elapsed();
    let (begin, mut packets, mut wrong) = (Instant::now(), 0, Vec::new());
    // What looks wrong is looked at again, so that a machine that is busy is not a mistake.
    let mut check = |sent: Sent, v6: bool, endpoints: usize, right: &dyn Fn(&Outcome) -> bool| {
        for look in [Look::QUICK, Look::PATIENT] {
            let outcome = world.probe(&probe(sent, v6), endpoints, look);
            packets += outcome.packets();
            if right(&outcome) {
                return;
            } else if look == Look::PATIENT {
                wrong.push(format!("{sent:?} v6={v6}: got {outcome}"));
            }
        }
    };
    for v6 in [false, true] {
        for (sent, endpoints, masquerade) in forwards {
            let endpoints: BTreeSet<SocketAddr> =
                endpoints.iter().map(|text| if v6 { endpoint_to_v6(endpoint(text)) } else { endpoint(text) }).collect();
            check(*sent, v6, endpoints.len(), &|outcome| {
                outcome.kind() == Some(Kind::Forward)
                    && outcome.endpoints() == endpoints
                    && endpoints.iter().all(|endpoint| outcome.masquerade(endpoint) == *masquerade)
            });
        }
        for (sent, kind) in others {
            check(*sent, v6, 2, &|outcome| outcome.kind() == Some(*kind));
        }
    }
    println!("set-up {made:.2?}, {packets} packets in {:.2?}", begin.elapsed());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn endpoint_to_v6(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(ip(&to_v6(&endpoint.ip().to_string())), endpoint.port())
}

#[test]
fn it_is_told_how_a_packet_was_refused_and_where_it_passed() {
    use Protocol::{Sctp, Tcp, Udp};
    let Some(mut world) = node_with_rules() else { return };
    let cases: &[(Sent, Fate)] = &[
        ((CLIENT, "172.30.0.9", 1, Tcp), Fate::Reject(Refusal::TcpReset)),
        ((CLIENT, "172.30.0.9", 2, Tcp), Fate::Reject(Refusal::PortUnreachable)),
        ((CLIENT, "172.30.0.9", 1, Udp), Fate::Reject(Refusal::PortUnreachable)),
        ((NODE, "172.30.0.9", 1, Sctp), Fate::Reject(Refusal::PortUnreachable)),
        ((CLIENT, NODE, 22, Tcp), Fate::Pass(Passed::Delivered)),
        ((CLIENT, "172.30.0.77", 22, Udp), Fate::Pass(Passed::Out)),
        ((CLIENT, "172.30.0.78", 22, Udp), Fate::Pass(Passed::SourceChanged)),
        ((CLIENT, "172.30.0.9", 3, Tcp), Fate::Drop),
    ];
    for v6 in [false, true] {
        for (sent, fate) in cases {
            let got = world.probe_once(&probe(*sent, v6), Look::PATIENT.silence);
            assert_eq!(got, *fate, "{sent:?} v6={v6}");
        }
    }
}

#[test]
fn a_packet_that_is_left_alone_is_the_same_when_it_comes_out() {
    let Some(mut world) = node() else { return };
    for v6 in [false, true] {
        for protocol in Protocol::ALL {
            let probe = probe(("203.0.113.7", "198.51.100.1", 80, protocol), false);
            let probe = if v6 {
                Probe { clients: vec![ip("2001:db8:f::7")], destination: endpoint("[2001:db8:e::1]:80"), ..probe }
            } else {
                probe
            };
            let outcome = world.probe(&probe, 2, Look::QUICK);
            assert_eq!((outcome.kind(), outcome.packets()), (Some(Kind::Pass), 3), "{protocol} v6={v6}: {outcome}");
        }
    }
}

#[test]
fn packets_come_and_go_by_the_interface_of_their_network() {
    let cidrs: Vec<IpNet> = ["10.200.1.0/24", "fd00:200::/64"].map(|cidr| cidr.parse().expect("a network")).into();
    let pods = Interface { name: "podnet7".to_owned(), ips: vec![ip("10.200.1.1"), ip("fd00:200::1")], cidrs };
    let Some(mut world) = World::new(&[ip(NODE), ip("2001:db8::10")], &[pods]) else { return };
    let rules = "
        table inet by-hand {
            chain prerouting { type nat hook prerouting priority dstnat;
                iifname podnet7 tcp dport 80 dnat ip to 198.51.100.1:8080
                iifname world0 tcp dport 80 dnat ip to 10.200.1.9:8080
                iifname podnet7 tcp dport 81 dnat ip6 to [2001:db8:e::1]:8080
                iifname world0 tcp dport 81 dnat ip6 to [fd00:200::9]:8080
            }
            chain output { type nat hook output priority -100;
                tcp dport 90 dnat ip to 10.200.1.9:8080
            }
            chain postrouting { type nat hook postrouting priority srcnat;
                ip daddr 10.200.1.9 masquerade
                ip6 daddr fd00:200::9 masquerade
            }
        }";
    world.nft(&["-f", "-"], rules).expect("the rules load");
    for (client, to, expected, source, masqueraded) in [
        ("10.200.1.40", "172.30.0.1:80", "198.51.100.1:8080", "10.200.1.40", Some(false)),
        ("203.0.113.7", "172.30.0.1:80", "10.200.1.9:8080", "10.200.1.1", Some(true)),
        ("fd00:200::40", "[fd00:172:30::1]:81", "[2001:db8:e::1]:8080", "fd00:200::40", Some(false)),
        ("2001:db8:f::7", "[fd00:172:30::1]:81", "[fd00:200::9]:8080", "fd00:200::1", Some(true)),
        // The address that masquerading picks towards the pods.
        ("10.200.1.1", "172.30.0.1:90", "10.200.1.9:8080", "10.200.1.1", None),
        ("192.0.2.10", "172.30.0.1:90", "10.200.1.9:8080", "10.200.1.1", Some(true)),
    ] {
        let probe = Probe { clients: vec![ip(client)], protocol: Protocol::Tcp, destination: endpoint(to) };
        let fate = world.probe_once(&probe, Look::PATIENT.silence);
        assert_eq!(
            fate,
            Fate::Forward { endpoint: endpoint(expected), source: ip(source), masqueraded },
            "{client} {to}"
        );
    }
}

#[test]
fn a_flow_is_one_connection_until_connections_are_forgotten() {
    let Some(mut world) = node() else { return };
    let rules = |to: &str| {
        format!(
            "table ip by-hand {{}}\ndelete table ip by-hand\ntable ip by-hand {{\n\
             chain prerouting {{ type nat hook prerouting priority dstnat\n udp dport 53 dnat to {to}\n}}\n}}\n"
        )
    };
    let probe = |client: &str| Probe {
        clients: vec![ip(client)],
        protocol: Protocol::Udp,
        destination: endpoint("172.30.0.1:53"),
    };
    let reached =
        |world: &mut World, name: &str| world.probe_flow(name, &probe(CLIENT), Look::PATIENT).endpoints().pop_first();
    world.nft(&["-f", "-"], &rules("10.1.0.1:5353")).expect("the rules load");
    assert_eq!(reached(&mut world, "a"), Some(endpoint("10.1.0.1:5353")));
    world.nft(&["-f", "-"], &rules("10.1.0.2:5353")).expect("the rules load");
    assert_eq!(reached(&mut world, "a"), Some(endpoint("10.1.0.1:5353")), "the flow stays");
    assert_eq!(reached(&mut world, "b"), Some(endpoint("10.1.0.2:5353")), "another flow does not");
    world.flush_conntrack().expect("connections can be forgotten");
    assert_eq!(reached(&mut world, "a"), Some(endpoint("10.1.0.2:5353")), "the flow begins anew");
}

#[test]
fn it_is_told_whether_clients_stick_to_their_endpoints() {
    let Some(mut world) = node() else { return };
    let rules = "
        table ip by-hand {
            chain prerouting { type nat hook prerouting priority dstnat;
                tcp dport 80 dnat ip to jhash ip saddr mod 2 map { 0: 10.1.0.1, 1: 10.1.0.2 }
                tcp dport 81 dnat ip to numgen random mod 2 map { 0: 10.1.0.1, 1: 10.1.0.2 }
            }
        }";
    world.nft(&["-f", "-"], rules).expect("the rules load");
    let clients: Vec<IpAddr> = (1..=30).map(|n| IpAddr::from([203, 0, 113, n])).collect();
    for (to, sticky) in [("172.30.0.1:80", true), ("172.30.0.1:81", false)] {
        let probe = Probe { clients: clients.clone(), protocol: Protocol::Tcp, destination: endpoint(to) };
        let outcome = world.probe(&probe, 2, Look::QUICK);
        assert_eq!((outcome.sticky(), outcome.endpoints().len()), (sticky, 2), "{to}: {outcome}");
        assert_eq!(outcome.packets(), 90, "three packets of each client");
    }
}

#[test]
fn a_node_is_made_fast_and_leaves_nothing_behind() {
    let begin = Instant::now();
    let Some(mut world) = node() else { return };
    let made = begin.elapsed();
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut child = world.spawn(command).expect("sleep starts");
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).expect("it is there");
    let inside = world.run(move || namespace("thread-self"));
    assert_eq!(namespace(&child.id().to_string()), inside, "a child of the node lives in the node");
    assert_ne!(namespace("thread-self"), inside, "the test itself does not");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    let fate = world.probe_once(&probe((CLIENT, "172.30.0.1", 80, Protocol::Tcp), false), Look::PATIENT.silence);
    assert_eq!(fate, Fate::Pass(Passed::Out), "no rule of the machine is seen");
    println!("set-up {made:.2?}");
    // Generous for the sake of a machine that is busy; 0.02 s are usual.
    assert!(made < Duration::from_secs(10), "{made:?}");
}

#[test]
fn checksums_are_right() {
    // RFC 1071, section 3; the header of a packet as printed by tcpdump; RFC 3720, appendix B.4.
    assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
        0x00, 0xc7,
    ];
    assert_eq!(internet_checksum(&header), 0xb861);
    assert_eq!(internet_checksum(&[0xff]), 0x00ff, "an odd byte is the high one");
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

#[test]
fn packets_are_read_as_they_are_written() {
    for (source, destination) in [("203.0.113.7:20000", "172.30.0.1:80"), ("[2001:db8::7]:20000", "[fd00::1]:80")] {
        for protocol in Protocol::ALL {
            let (source, destination) = (endpoint(source), endpoint(destination));
            let packet = FirstPacket { source, destination, protocol, marker: 0x0102_0304 }.to_bytes();
            let sighting = Sighting::of_packet(&packet);
            assert_eq!(sighting, Some(Sighting::First { marker: 0x0102_0304, source, destination }), "{protocol}");
            // Whatever is cut off, there is no panic; and where the marker itself is cut off, nothing is seen.
            for length in 0..packet.len() {
                let sighting = Sighting::of_packet(&packet[..length]);
                assert!(sighting.is_none_or(|sighting| sighting.marker() == 0x0102_0304), "{protocol} {length}");
            }
        }
    }
}
