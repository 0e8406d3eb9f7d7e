//! Counting, with entries as the kernel lists them, and with the kernel's own in a network namespace of the test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::balance::{Balance, Rule, Shares, keep};
use crate::conntrack::period;
use crate::model::{FrontendAt, FrontendKey, Seen};
use crate::netlink::{Message, messages};
use crate::testing::{in_network_namespace, run};

/// `NLM_F_CREATE | NLM_F_EXCL`.
const CREATE: u16 = 0x600;
const CTA_TIMEOUT: u16 = 7;
const CTA_NAT_DST: u16 = 13;

/// `ESTABLISHED` of TCP.
const ESTABLISHED: u8 = 3;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

fn frontend(protocol: Protocol, address: &str) -> FrontendKey {
    let address = at(address);
    let port = NonZeroU16::new(address.port()).expect("a port");
    let of = if address.ip().is_unspecified() {
        FrontendAt::NodePort(Family::of(address.ip()))
    } else {
        FrontendAt::Address(address.ip())
    };
    FrontendKey { at: of, protocol, port }
}

/// An entry: protocol, client, frontend, endpoint, and the state of its protocol.
type Entry<'a> = (Protocol, &'a str, &'a str, &'a str, Option<u8>);

fn state_of(message: Builder, protocol: Protocol, state: Option<u8>) -> Builder {
    // CTA_PROTOINFO_TCP or CTA_PROTOINFO_SCTP, and the state, which is the first in either.
    let nest = if protocol == Protocol::Tcp { 1 } else { 3 };
    match state {
        Some(state) => message.nested(CTA_PROTOINFO, |info| {
            info.nested(nest, |info| {
                let info = info.attribute(1, &[state]);
                // The tags of the two sides, which SCTP wants to have.
                let is_sctp = protocol == Protocol::Sctp;
                if is_sctp { info.attribute(2, &1_u32.to_be_bytes()).attribute(3, &2_u32.to_be_bytes()) } else { info }
            })
        }),
        None => message,
    }
}

/// Puts an entry into the kernel's table.
fn create(socket: &mut Socket, (protocol, client, frontend, endpoint, state): Entry<'_>) {
    let (original, endpoint) = (Tuple { source: at(client), destination: at(frontend) }, at(endpoint));
    let untranslated = Tuple { source: original.destination, destination: original.source };
    let header = family_header(Family::of(endpoint.ip()));
    let number = protocol.number();
    let request = Builder::message(CT_NEW, REQUEST | ACK | CREATE, socket.next_sequence(), &header)
        .nested(CTA_TUPLE_ORIG, |tuple| with_tuple(tuple, number, original, None))
        .nested(CTA_TUPLE_REPLY, |tuple| with_tuple(tuple, number, untranslated, None))
        .attribute(CTA_TIMEOUT, &600_u32.to_be_bytes());
    let mut request = state_of(request, protocol, state);
    if endpoint != original.destination {
        request = request.nested(CTA_NAT_DST, |nat| {
            // CTA_NAT_V4_MINIP, CTA_NAT_V6_MINIP; CTA_NAT_PROTO with CTA_PROTONAT_PORT_MIN.
            let nat = match endpoint.ip() {
                IpAddr::V4(ip) => nat.attribute(1, &ip.octets()),
                IpAddr::V6(ip) => nat.attribute(4, &ip.octets()),
            };
            nat.nested(3, |proto| proto.attribute(1, &endpoint.port().to_be_bytes()))
        });
    }
    let request = request.finish();
    socket.execute(&request).unwrap_or_else(|error| panic!("cannot create {protocol} {client} {frontend}: {error}"));
}

fn of(open: &Open, port: usize, endpoint: &str) -> (u32, u32) {
    let endpoint = at(endpoint);
    let Seen { open, new } = open.of(port, (endpoint.ip(), NonZeroU16::new(endpoint.port()).expect("a port")));
    (open, new)
}

/// Whether the kernel compares the status of what it lists: Linux 5.15 and later.
fn compares_status() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(15))
}

#[test]
fn open_connections_are_counted_by_endpoint() {
    for filter in [true, false] {
        in_network_namespace(move || {
            let mut conntrack = Conntrack::open().expect("sockets");
            conntrack.filter = filter;
            let (tcp, udp, sctp) = (Protocol::Tcp, Protocol::Udp, Protocol::Sctp);
            let (vip, one, two) = ("172.30.0.1:80", "10.1.0.1:8080", "10.1.0.2:8080");
            let entries: [Entry<'_>; 15] = [
                (tcp, "10.0.0.2:1001", vip, one, Some(ESTABLISHED)),
                (tcp, "10.0.0.2:1002", vip, one, Some(1)),
                (tcp, "10.0.0.2:1003", vip, one, Some(2)),
                (tcp, "10.0.0.2:1004", vip, two, Some(ESTABLISHED)),
                // Closed by one side, or by both.
                (tcp, "10.0.0.2:1005", vip, two, Some(4)),
                (tcp, "10.0.0.2:1006", vip, two, Some(5)),
                (tcp, "10.0.0.2:1007", vip, two, Some(7)),
                // Through a node port, on any address; to the same endpoint for another Service; for none of ours.
                (tcp, "10.0.0.2:1008", "192.0.2.1:30080", one, Some(ESTABLISHED)),
                (tcp, "10.0.0.2:1009", "172.30.0.2:80", one, Some(ESTABLISHED)),
                (tcp, "10.0.0.2:1010", "172.30.0.3:80", one, Some(ESTABLISHED)),
                // Not translated.
                (tcp, "10.0.0.2:1011", vip, vip, Some(ESTABLISHED)),
                (udp, "10.0.0.2:1012", vip, one, None),
                (udp, "10.0.0.2:1013", "172.30.0.1:53", "10.1.0.1:5353", None),
                (tcp, "[fd00::2]:1001", "[fd01::1]:80", "[fd02::1]:8080", Some(ESTABLISHED)),
                (udp, "[fd00::2]:1002", "[fd01::1]:53", "[fd02::1]:5353", None),
            ];
            entries.into_iter().for_each(|entry| create(&mut conntrack.delete, entry));
            let http =
                [(frontend(tcp, vip), 0), (frontend(tcp, "0.0.0.0:30080"), 0), (frontend(tcp, "172.30.0.2:80"), 1)];
            let counted = Counted::new(http);
            let mut open = Open::default();
            let look = conntrack.count(&counted, &mut open).expect("a look");
            assert!(!look.incomplete && look.took > Duration::ZERO, "{look:?}");
            // The kernel was asked for what is translated, of TCP, or was not asked.
            let lists = |look: Look, chosen, all| {
                assert!(look.listed == if filter { chosen } else { all } || filter && !compares_status(), "{look:?}");
            };
            lists(look, 10, 13);
            assert_eq!((of(&open, 0, one), of(&open, 0, two), of(&open, 1, one)), ((4, 4), (1, 1), (1, 1)));
            assert_eq!(open.len(), 6);

            // Without frontends nothing is listed.
            let look = conntrack.count(&Counted::default(), &mut Open::default()).expect("nothing to do");
            assert_eq!(look, Look::default());

            // With frontends of another protocol and family, all are listed. What was there is not new.
            create(&mut conntrack.delete, (tcp, "10.0.0.2:1099", vip, two, Some(ESTABLISHED)));
            let dns = [
                (frontend(udp, "172.30.0.1:53"), 2),
                (frontend(udp, "[fd01::1]:53"), 2),
                (frontend(tcp, "[fd01::1]:80"), 0),
            ];
            let counted = Counted::new(http.into_iter().chain(dns));
            let look = conntrack.count(&counted, &mut open).expect("a look");
            lists(look, 15, 16);
            assert_eq!((of(&open, 0, one), of(&open, 0, two), of(&open, 2, "10.1.0.1:5353")), ((4, 0), (2, 1), (1, 1)));
            assert_eq!((of(&open, 0, "[fd02::1]:8080"), of(&open, 2, "[fd02::1]:5353")), ((1, 1), (1, 1)));

            assert_eq!(conntrack.filter, filter);

            // One protocol of both families: the kernel lists all that is translated.
            let counted = Counted::new(http.into_iter().chain([dns[2]]));
            let look = conntrack.count(&counted, &mut open).expect("a look");
            lists(look, 15, 16);
            assert_eq!(open.len(), 8);
            assert_eq!((of(&open, 0, two), of(&open, 0, "[fd02::1]:8080")), ((2, 0), (1, 0)));

            // The other family alone.
            let counted = Counted::new(dns.into_iter().skip(1));
            let look = conntrack.count(&counted, &mut open).expect("a look");
            assert_eq!((look.listed, of(&open, 0, "[fd02::1]:8080"), of(&open, 0, one)), (2, (1, 0), (0, 0)));

            let counted = Counted::new([(frontend(sctp, "172.30.0.9:9"), 0)]);
            for (port, state) in [(1, 4), (2, 2), (3, 1), (4, 5), (5, 7)] {
                let client = format!("10.0.0.9:{port}");
                create(&mut conntrack.delete, (sctp, &client, "172.30.0.9:9", "10.1.0.9:9", Some(state)));
            }
            let mut open = Open::default();
            conntrack.count(&counted, &mut open).expect("a look");
            assert_eq!(of(&open, 0, "10.1.0.9:9"), (2, 2));
        });
    }
}

/// Connections as they are in a cluster, from the first packet to the last.
#[test]
fn connections_are_open_from_the_first_packet_until_one_side_closes() {
    in_network_namespace(|| {
        let server = TcpListener::bind("127.0.0.1:0").expect("free");
        let endpoint = server.local_addr().expect("it has one").to_string();
        run(&["ip", "route", "add", "local", "172.30.0.1", "dev", "lo"]);
        let rules = format!(
            "table ip t {{\n chain out {{ type nat hook output priority -100; ip daddr 172.30.0.1 tcp dport 80 dnat to {endpoint}; }}\n}}\n"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), rules).expect("writable");
        run(&["nft", "-f", file.path().to_str().expect("a plain path")]);
        let counted = Counted::new([(frontend(Protocol::Tcp, "172.30.0.1:80"), 0)]);
        let (mut conntrack, mut open) = (Conntrack::open().expect("sockets"), Open::default());
        let mut look = || {
            conntrack.count(&counted, &mut open).expect("a look");
            of(&open, 0, &endpoint)
        };
        assert_eq!(look(), (0, 0));
        let connect = || {
            let mut client = TcpStream::connect("172.30.0.1:80").expect("connected");
            let (mut other, _) = server.accept().expect("accepted");
            client.write_all(b"1").expect("sent");
            other.read_exact(&mut [0]).expect("received");
            (client, other)
        };
        let (first, second) = (connect(), connect());
        assert_eq!(look(), (2, 2));
        let third = connect();
        assert_eq!(look(), (3, 1));
        // A busy machine handles what a socket sends when it is closed a little later.
        let mut wait_for = |open| {
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                let (is_open, new) = look();
                assert_eq!(new, 0, "nobody connects");
                if is_open == open {
                    return;
                }
                assert!(Instant::now() < end, "{is_open} instead of {open} are open");
            }
        };
        drop(first);
        wait_for(2);
        drop((second, third));
        wait_for(0);
        // They are in the table still.
        let mut entries = 0;
        Conntrack::open().expect("sockets").each(Family::V4, &mut |_| entries += 1).expect("a listing");
        assert_eq!(entries, 3);
    });
}

/// All parts together, as the daemon uses them: count, balance, arrange slots.
#[test]
fn an_endpoint_with_more_connections_gets_none_until_the_others_have_as_many() {
    in_network_namespace(|| {
        let server = TcpListener::bind("0.0.0.0:0").expect("free");
        let port = server.local_addr().expect("it has one").port();
        run(&["ip", "route", "add", "local", "172.30.0.1", "dev", "lo"]);
        let endpoints = [1, 2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));
        let install = |slots: &[Ipv4Addr]| {
            let map: Vec<String> =
                slots.iter().enumerate().map(|(slot, address)| format!("{slot} : {address}")).collect();
            let dnat = format!("dnat to numgen inc mod {} map {{ {} }}", slots.len(), map.join(", "));
            let rules = format!(
                "table ip t\ndelete table ip t\ntable ip t {{\n chain out {{ type nat hook output priority -100; ip daddr 172.30.0.1 {dnat}; }}\n}}\n"
            );
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), rules).expect("writable");
            run(&["nft", "-f", file.path().to_str().expect("a plain path")]);
        };
        let mut slots = vec![endpoints[0]];
        install(&slots);
        let number = NonZeroU16::new(port).expect("a port");
        let counted = Counted::new([(frontend(Protocol::Tcp, &format!("172.30.0.1:{port}")), 0)]);
        let (mut conntrack, mut open) = (Conntrack::open().expect("sockets"), Open::default());
        let mut balance = Balance::default();
        let mut connections = Vec::new();
        let mut rounds = Vec::new();
        for _ in 0..4 {
            for _ in 0..30 {
                let client = TcpStream::connect(("172.30.0.1", port)).expect("connected");
                connections.push((client, server.accept().expect("accepted")));
            }
            // The first look says nothing of how long connections last.
            for _ in 0..2 {
                conntrack.count(&counted, &mut open).expect("a look");
                let seen = endpoints.map(|address| open.of(0, (address.into(), number)));
                let weighted = endpoints.map(|address| (address, 1));
                if let Shares::Slots(counts) = balance.look(Duration::from_secs(1), &weighted, &seen, Rule::Lc) {
                    let wanted: Vec<(Ipv4Addr, u32)> = endpoints.into_iter().zip(counts).collect();
                    slots = keep(&slots, &wanted);
                }
                if rounds.len() < connections.len() / 30 {
                    rounds.push(seen.map(|seen| seen.open));
                }
            }
            install(&slots);
        }
        assert_eq!(rounds[0], [30, 0, 0]);
        assert_eq!(rounds[1], [30, 15, 15]);
        for (round, each) in [(&rounds[2], 30), (&rounds[3], 40)] {
            assert!(round.iter().all(|open| open.abs_diff(each) <= 2), "{rounds:?}");
        }
    });
}

/// An entry as the kernel lists it.
fn listed((protocol, client, frontend, endpoint, state): Entry<'_>, status: u32) -> Vec<u8> {
    let number = protocol.number();
    let original = Tuple { source: at(client), destination: at(frontend) };
    let reply = Tuple { source: at(endpoint), destination: at(client) };
    let message = Builder::message(CT_NEW, 0, 1, &family_header(Family::of(at(client).ip())))
        .nested(CTA_TUPLE_ORIG, |nest| with_tuple(nest, number, original, None))
        .nested(CTA_TUPLE_REPLY, |nest| with_tuple(nest, number, reply, None))
        .attribute(CTA_STATUS, &status.to_be_bytes());
    state_of(message, protocol, state).attribute(CTA_ID, &[0, 0, 1, 2]).finish()
}

const V4: Entry<'_> = (Protocol::Tcp, "10.0.0.2:4000", "172.30.0.1:80", "10.1.0.1:8080", Some(ESTABLISHED));
const V6: Entry<'_> = (Protocol::Sctp, "[fd00::2]:4000", "[fd01::1]:80", "[fd02::1]:8080", Some(4));

fn example() -> Counted {
    Counted::new([(frontend(Protocol::Tcp, "172.30.0.1:80"), 3), (frontend(Protocol::Sctp, "[fd01::1]:80"), 4)])
}

fn read(entry: Entry<'_>, status: u32) -> Option<(usize, SocketAddr, u32)> {
    let bytes = listed(entry, status);
    connection(Message::first(&bytes).expect("one message").payload, &example())
}

#[test]
fn what_is_needed_of_an_entry_is_read() {
    assert_eq!(read(V4, TRANSLATED | 8), Some((3, at("10.1.0.1:8080"), 0x102)));
    assert_eq!(read(V6, TRANSLATED | 8), Some((4, at("[fd02::1]:8080"), 0x102)));
    assert_eq!(read(V4, 8), None);
    assert_eq!(read((Protocol::Udp, V4.1, V4.2, V4.3, None), TRANSLATED), None);
    // Forwarded by hardware: the kernel does not list a state.
    assert_eq!(read((V4.0, V4.1, V4.2, V4.3, None), TRANSLATED), Some((3, at("10.1.0.1:8080"), 0x102)));
    for (entry, open) in [(V4, [1, 2, 3].as_slice()), (V6, &[2, 3, 4, 8])] {
        for state in 0..12 {
            let entry = (entry.0, entry.1, entry.2, entry.3, Some(state));
            assert_eq!(read(entry, TRANSLATED).is_some(), open.contains(&state), "{entry:?}");
        }
    }
}

#[test]
fn reading_allocates_nothing() {
    let (counted, bytes) = (example(), listed(V4, TRANSLATED));
    let payload = Message::first(&bytes).expect("one message").payload;
    let mut open = Open::default();
    let mut look = || {
        open.begin();
        let (port, endpoint, id) = connection(payload, &counted).expect("it is counted");
        (0..100).for_each(|more| open.add(port, endpoint, id + more));
        open.end();
    };
    // The first look makes room.
    look();
    assert_eq!(allocation_counter::measure(look).count_total, 0);
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    #[test]
    fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = connection(&bytes, &example());
    }

    #[test]
    fn damaged_entries_can_be_read(at in 0_usize..300, with: u8, length in 0_usize..300) {
        for entry in [V4, V6] {
            let mut bytes = listed(entry, TRANSLATED);
            let at = at % bytes.len();
            bytes[at] = with;
            for message in messages(&bytes).flatten() {
                let _ = connection(message.payload, &example());
                let _ = connection(&message.payload[..length.min(message.payload.len())], &example());
            }
        }
    }
}

/// `cargo test --release --lib conntrack::netlink::open::tests::cost -- --ignored --nocapture`
#[test]
#[ignore = "prints what counting costs, and takes a minute"]
fn cost() {
    in_network_namespace(|| {
        let mut conntrack = Conntrack::open().expect("sockets");
        // A hundred Services with ten endpoints each; as many other entries as of theirs, half of them translated.
        let vip = |service: usize| format!("172.30.{}.{}:80", service / 200, service % 200 + 1);
        let counted = Counted::new((0..100).map(|service| (frontend(Protocol::Tcp, &vip(service)), service)));
        let mut made = 0;
        println!(
            "| open | entries | asked for | listed | ms a look | us an entry | period, s |\n|{}",
            "---|".repeat(7)
        );
        for size in [1_000, 10_000, 100_000] {
            let start = Instant::now();
            for index in made..size {
                let client = |third: usize| {
                    format!("10.{third}.{}.{}:{}", index / 250 % 250, index % 250, 1024 + index / 62_500)
                };
                let endpoint = format!("10.100.{}.{}:8080", index % 100, index / 100 % 10 + 1);
                create(&mut conntrack.delete, (Protocol::Tcp, &client(0), &vip(index % 100), &endpoint, Some(3)));
                let other = if index % 2 == 0 { "10.200.0.1:53" } else { "172.31.0.1:53" };
                create(&mut conntrack.delete, (Protocol::Udp, &client(1), "172.31.0.1:53", other, None));
            }
            made = size;
            eprintln!("{} us for each that is made", start.elapsed().as_micros() / size as u128 / 2);
            for (name, filter, counted) in [
                ("everything", false, counted.clone()),
                ("translated", true, counted_with_udp(&counted, &vip)),
                ("translated, TCP", true, counted.clone()),
            ] {
                let mut open = Open::default();
                conntrack.filter = filter;
                let mut took: Vec<Look> =
                    (0..9).map(|_| conntrack.count(&counted, &mut open).expect("a look")).collect();
                assert!(open.len() + 10 > size, "{}", open.len());
                took.sort_by_key(|look| look.took);
                let (least, middle) = (took[0].took, took[4]);
                #[expect(clippy::cast_precision_loss, reason = "they are few")]
                let each = middle.took.as_secs_f64() * 1e6 / middle.listed as f64;
                println!(
                    "| {size} | {} | {name} | {} | {:.2} (min {:.2}) | {each:.2} | {:.1} |",
                    size * 2,
                    middle.listed,
                    middle.took.as_secs_f64() * 1e3,
                    least.as_secs_f64() * 1e3,
                    period(middle.took).as_secs_f64()
                );
            }
        }
        let flush = |socket: &mut Socket| {
            let header = family_header(Family::V4);
            let request = Builder::message(CT_DELETE, REQUEST | ACK, socket.next_sequence(), &header).finish();
            socket.execute(&request).expect("all are deleted");
        };
        flush(&mut conntrack.delete);
        println!("\n| 10,000 entries made and deleted | us each | of it our reading |\n|{}", "---|".repeat(3));
        for (name, groups) in [("nobody listens", 0), ("DESTROY", 1 << 2), ("NEW and DESTROY", 1 | 1 << 2)] {
            let mut events = Socket::subscribe(Bus::Netfilter, groups).expect("a socket");
            events.raise_receive_queue(64 << 20);
            let (mut open, start) = (Open::default(), processor_time());
            for index in 0..10_000 {
                let client = format!("10.0.{}.{}:1024", index / 250, index % 250);
                create(&mut conntrack.delete, (Protocol::Tcp, &client, &vip(index % 100), "10.100.0.1:8080", Some(3)));
            }
            flush(&mut conntrack.delete);
            let made = processor_time();
            let mut told = 0;
            while let Ok(bytes) = events.receive() {
                for message in messages(bytes).flatten() {
                    told += 1;
                    if let Some((port, endpoint, id)) = connection(message.payload, &counted) {
                        open.add(port, endpoint, id);
                    }
                }
            }
            let us = |from: Duration, to: Duration| (to - from).as_secs_f64() * 1e6 / 10_000.0;
            println!(
                "| {name}: {told} events | {:.2} | {:.2} |",
                us(start, processor_time()),
                us(made, processor_time())
            );
        }
        // Closed ones stay for two minutes, and cannot be left out by the kernel.
        println!("\n| closed (TIME_WAIT), 1,000 open | ms a look | us an entry | period, s |\n|{}", "---|".repeat(4));
        let mut made = 0;
        for size in [0, 10_000, 100_000] {
            for index in made..size + 1_000 {
                let client = format!("10.0.{}.{}:{}", index / 250 % 250, index % 250, 1024 + index / 62_500);
                let state = if index < 1_000 { ESTABLISHED } else { 7 };
                create(
                    &mut conntrack.delete,
                    (Protocol::Tcp, &client, &vip(index % 100), "10.100.0.1:8080", Some(state)),
                );
            }
            made = size + 1_000;
            let mut open = Open::default();
            let mut took: Vec<Look> = (0..9).map(|_| conntrack.count(&counted, &mut open).expect("a look")).collect();
            took.sort_by_key(|look| look.took);
            let (listed, took) = (took[4].listed, took[4].took);
            assert_eq!((listed, open.len()), (made, 1_000));
            #[expect(clippy::cast_precision_loss, reason = "they are few")]
            let each = took.as_secs_f64() * 1e6 / listed as f64;
            println!("| {size} | {:.2} | {each:.2} | {:.1} |", took.as_secs_f64() * 1e3, period(took).as_secs_f64());
        }
    });
}

/// The same, and one more of UDP, so that both protocols are listed.
fn counted_with_udp(_: &Counted, vip: &dyn Fn(usize) -> String) -> Counted {
    let tcp = (0..100).map(|service| (frontend(Protocol::Tcp, &vip(service)), service));
    Counted::new(tcp.chain([(frontend(Protocol::Udp, "172.30.9.9:1"), 100)]))
}
