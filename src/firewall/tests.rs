//! The way past tables that are not a kernel's.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::packet::{End, Hook, Named, Packet, Passage, State, Turn, Verdict};
use super::rule::{Action, Comparison, Field, Gives, Rule, Step};
use super::tables::{Base, Table, meet};
use super::view::{Element, World};
use crate::leftovers::legacy;

/// A kernel with one set of ports, and one map of them.
struct Still;

impl World for Still {
    fn element(&self, _: &str, _: &str, set: &str, key: &[u8]) -> io::Result<Option<Element>> {
        let element = |verdict| Element { verdict, data: Vec::new(), is_limited: set == "limited" };
        match (set, key) {
            ("gone", _) => Err(io::ErrorKind::NotFound.into()),
            ("verdicts", [0, 80]) => Ok(Some(element(Some(Action::Drop)))),
            (_, [0, 80]) => Ok(Some(element(None))),
            _ => Ok(None),
        }
    }

    fn key_length(&self, _: &str, _: &str, set: &str) -> Option<usize> {
        (set != "nowhere").then_some(2)
    }

    fn address_type(&self, address: IpAddr) -> io::Result<u8> {
        if address.is_loopback() { Ok(2) } else { Ok(1) }
    }

    fn device_to(&self, _: IpAddr, _: u32, _: Option<u32>) -> io::Result<Option<u32>> {
        Ok(Some(2))
    }

    fn index(&self, device: &str) -> Option<u32> {
        (device == "eth0").then_some(2)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// From a client to 10.1.0.9:8080, which was 10.96.0.1:80.
fn packet(hook: Hook) -> Packet {
    Packet {
        hook,
        turn: Turn::First,
        source: ip("192.0.2.7"),
        source_port: None,
        source_behind: End { address: Some(ip("192.0.2.7")), port: None },
        destination: ip("10.1.0.9"),
        destination_port: Some(8080),
        protocol: 6,
        input: Some("eth0".to_owned()),
        output: None,
        mark: Some(0),
        connection_mark: Some(0),
        state: State::New,
        dnat: true,
        snat: None,
        destination_ahead: End { address: Some(ip("10.96.0.1")), port: Some(80) },
        translated_by: None,
    }
}

fn told(_: &Table, at: &(String, Option<usize>)) -> Named {
    let text = at.1.map_or_else(|| "policy".to_owned(), |nth| format!("{} {nth}", at.0));
    Named { chain: at.0.clone(), nth: at.1, text }
}

fn passage(tables: &[Table], packet: &Packet) -> Passage {
    meet(tables, &Still, packet, told)
}

/// Verdicts in few words.
fn words(passage: &Passage) -> Vec<String> {
    let of = |verdict: &Verdict| match verdict {
        Verdict::Passes => "passes".to_owned(),
        Verdict::Drops(rule) | Verdict::DropsByPolicy(rule) => format!("drops {}", rule.text),
        Verdict::Rejects(rule) => format!("rejects {}", rule.text),
        Verdict::MayDrop { rule, .. } => format!("may drop {}", rule.text),
        Verdict::NatElsewhere(rule) => format!("translates {}", rule.text),
        Verdict::NoTrack(rule) => format!("untracks {}", rule.text),
        Verdict::Takes { rule, .. } => format!("takes {}", rule.text),
        Verdict::CannotTell { rule, .. } => {
            format!("unknown {}", rule.as_ref().map_or("", |rule| rule.text.as_str())).trim_end().to_owned()
        }
    };
    passage.met.iter().map(|met| of(&met.verdict)).collect()
}

fn saved(name: &str, text: &str) -> Table {
    let listed = legacy::Table { program: "iptables-legacy", name: name.to_owned(), saved: Ok(text.to_owned()) };
    super::legacy::table(&listed).expect("it can be read")
}

/// What a table `filter` with these rules does to the packet at hook `forward`.
fn forward(policy: &str, rules: &[&str]) -> String {
    let chains = format!(":FORWARD {policy} [0:0]\n:MINE - [0:0]\n:OTHER - [0:0]\n");
    let rules: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
    words(&passage(&[saved("filter", &(chains + &rules))], &packet(Hook::Forward))).join(", ")
}

#[test]
fn a_verdict_is_sure_where_all_comes_to_the_same() {
    let limit = "-m limit --limit 5/min";
    let doubtful = |target: &str| format!("FORWARD {limit} -j {target}");
    let (drop, accept, jump) = (doubtful("DROP"), doubtful("ACCEPT"), doubtful("MINE"));
    let cases: &[(&str, &[&str], &str)] = &[
        ("ACCEPT", &[], "passes"),
        ("DROP", &[], "drops policy"),
        ("DROP", &["FORWARD -d 10.1.0.0/16 -j ACCEPT"], "passes"),
        ("DROP", &["FORWARD ! -d 10.1.0.0/16 -j ACCEPT"], "drops policy"),
        ("ACCEPT", &["FORWARD -p udp -j DROP", "FORWARD -p tcp -m tcp --dport 8080 -j DROP"], "drops FORWARD 1"),
        ("ACCEPT", &["FORWARD -p tcp -m tcp --dport 80 -j DROP"], "passes"),
        ("ACCEPT", &["FORWARD -j REJECT --reject-with icmp-port-unreachable"], "rejects FORWARD 0"),
        // What nobody can tell.
        ("ACCEPT", &[&drop], "may drop FORWARD 0"),
        ("DROP", &[&drop], "drops policy"),
        ("DROP", &[&accept], "may drop policy"),
        ("ACCEPT", &[&accept], "passes"),
        ("ACCEPT", &[&accept, "FORWARD -j DROP"], "may drop FORWARD 1"),
        ("ACCEPT", &["FORWARD -p udp -m limit --limit 5/min -j DROP"], "passes"),
        ("ACCEPT", &["FORWARD -p tcp -m tcp --sport 1:1024 -j DROP"], "may drop FORWARD 0"),
        ("ACCEPT", &["FORWARD -j NFQUEUE --queue-num 1"], "takes FORWARD 0"),
        ("ACCEPT", &["FORWARD -j SOMETHING --of mine"], "unknown FORWARD 0"),
        // Chains that are led to.
        ("ACCEPT", &["FORWARD -j MINE", "MINE -j DROP"], "drops MINE 0"),
        ("ACCEPT", &["FORWARD -j MINE", "MINE -j RETURN", "MINE -j DROP"], "passes"),
        ("DROP", &["FORWARD -g MINE", "FORWARD -j ACCEPT"], "drops policy"),
        ("DROP", &["FORWARD -j MINE", "FORWARD -j ACCEPT"], "passes"),
        ("ACCEPT", &["FORWARD -j MINE", "MINE -g OTHER", "MINE -j DROP", "OTHER -p udp -j DROP"], "passes"),
        ("ACCEPT", &[&jump, "MINE -j DROP"], "may drop MINE 0"),
        ("ACCEPT", &[&jump, "MINE -j DROP", "FORWARD -j REJECT"], "rejects FORWARD 1"),
        ("ACCEPT", &["FORWARD -j MINE", "MINE -j OTHER", "OTHER -j MINE"], "unknown OTHER 0"),
        // Marks that were set on the way, and those that may have been.
        (
            "ACCEPT",
            &["FORWARD -j MARK --set-xmark 0x5/0xff", "FORWARD -m mark --mark 0x1/0x3 -j DROP"],
            "drops FORWARD 1",
        ),
        (
            "ACCEPT",
            &[
                "FORWARD -m limit --limit 5/min -j MINE",
                "MINE -j MARK --set-xmark 0x1/0x1",
                "FORWARD -m mark --mark 0x1/0x1 -j DROP",
            ],
            "may drop FORWARD 1",
        ),
        (
            "ACCEPT",
            &[
                "FORWARD -m limit --limit 5/min -j MINE",
                "MINE -j MARK --set-xmark 0x1/0x1",
                "FORWARD -m mark --mark 0x2/0x2 -j DROP",
            ],
            "passes",
        ),
        // Of the connection.
        ("DROP", &["FORWARD -m conntrack --ctstate DNAT -j ACCEPT"], "passes"),
        ("DROP", &["FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], "drops policy"),
        ("DROP", &["FORWARD -p tcp -m conntrack --ctorigdst 10.96.0.1 --ctorigdstport 80 -j ACCEPT"], "passes"),
        ("ACCEPT", &["FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"], "drops FORWARD 0"),
        ("ACCEPT", &["FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"], "passes"),
        ("ACCEPT", &["FORWARD -m addrtype --dst-type LOCAL -j DROP"], "passes"),
        ("ACCEPT", &["FORWARD -f -j DROP"], "passes"),
    ];
    for (policy, rules, expected) in cases {
        assert_eq!(forward(policy, rules), *expected, "{policy} {rules:?}");
    }
}

#[test]
fn ways_that_are_too_many_end() {
    // Each chain leads to the next by two rules that nobody can tell: 2^14 ways.
    let mut text = ":FORWARD ACCEPT [0:0]\n".to_owned();
    let names: Vec<String> = (0..14).map(|nth| format!("C{nth}")).collect();
    names.iter().for_each(|name| text += &format!(":{name} - [0:0]\n"));
    let froms = std::iter::once("FORWARD").chain(names.iter().map(String::as_str));
    for (from, to) in froms.zip(&names) {
        for _ in 0..3 {
            text += &format!("-A {from} -m limit --limit 1/s -j {to}\n");
        }
    }
    let begun = std::time::Instant::now();
    let found = words(&passage(&[saved("filter", &text)], &packet(Hook::Forward)));
    assert!(found[0].starts_with("unknown"), "{found:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20));
}

#[test]
fn tracking_and_translation_have_their_places() {
    let raw = |rule: &str| saved("raw", &format!(":PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\n"));
    let mangle = |rule: &str| saved("mangle", &format!(":PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\n"));
    let nat = |rule: &str| saved("nat", &format!(":PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\n"));
    let arriving = packet(Hook::Prerouting);
    let of = |tables: &[Table], packet: &Packet| words(&passage(tables, packet));
    // Ahead of translation it is for the virtual address, and has no connection yet.
    assert_eq!(of(&[raw("-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DROP")], &arriving), ["drops PREROUTING 0"]);
    assert_eq!(of(&[raw("-d 10.1.0.9/32 -j DROP")], &arriving), ["passes"]);
    assert_eq!(of(&[raw("-m conntrack --ctstate NEW -j DROP")], &arriving), ["passes"]);
    assert_eq!(of(&[mangle("-m conntrack --ctstate NEW -j DROP")], &arriving), ["drops PREROUTING 0"]);
    assert_eq!(of(&[mangle("-m conntrack --ctstate DNAT -j DROP")], &arriving), ["passes"]);
    // What is not tracked comes to no chain that translates.
    let untracked = passage(&[nat("-j DNAT --to 192.0.2.9"), raw("-j CT --notrack")], &arriving);
    assert_eq!((words(&untracked), untracked.tracked), (vec!["untracks PREROUTING 0".to_owned()], Some(false)));
    let doubtful = passage(&[raw("-m limit --limit 1/s -j CT --notrack"), nat("-j DNAT --to 192.0.2.9")], &arriving);
    assert_eq!((words(&doubtful), doubtful.tracked), (vec!["unknown PREROUTING 0".to_owned(); 2], None));
    // Behind ours nobody translates.
    assert_eq!(of(&[nat("-j DNAT --to 192.0.2.9")], &arriving), ["translates PREROUTING 0"]);
    let by_us = Packet { translated_by: Some(-101), ..arriving.clone() };
    assert!(of(&[nat("-j DNAT --to 192.0.2.9")], &by_us).is_empty());
    // What comes back by way of loopback has had its translation.
    let back = Packet { input: Some("lo".to_owned()), ..arriving };
    assert!(of(&[nat("-j DNAT --to 192.0.2.9")], &back).is_empty());
    assert_eq!(of(&[raw("-d 10.1.0.9/32 -j DROP")], &back), ["drops PREROUTING 0"]);
    // The other family has tables of its own.
    let virtual_ip = End { address: Some(ip("fd00::1")), port: Some(80) };
    let of_v6 = Packet { source: ip("fd00::7"), destination: ip("fd00::9"), destination_ahead: virtual_ip, ..back };
    assert!(of(&[raw("-j DROP")], &of_v6).is_empty());
}

/// A table of nftables with a chain at hook `forward`.
fn of_nftables(steps: Vec<Step>) -> Table {
    let base = Base {
        chain: "f".to_owned(),
        hook: Hook::Forward,
        priority: 0,
        translates: false,
        drops: false,
        devices: Vec::new(),
        age: 1,
    };
    let chains = BTreeMap::from([("f".to_owned(), vec![Rule { steps }])]);
    Table { family: "inet", name: "t".to_owned(), bases: vec![base], chains, saved: None }
}

#[test]
fn sets_are_asked_for_what_is_known() {
    let port = |original: bool| match original {
        true => Field::Ct { key: 12, reply: false },
        false => Field::Payload { base: 2, offset: 0, length: 2 },
    };
    let of = |set: &str, known: bool, inverted: bool, gives: Gives| {
        let look_up = Step::LookUp { from: 16, set: set.to_owned(), inverted, gives };
        let steps = vec![Step::Load { to: 16, field: port(known) }, look_up, Step::Do(Action::Drop)];
        words(&passage(&[of_nftables(steps)], &packet(Hook::Forward))).join(", ")
    };
    let in_set = |set, known, inverted| of(set, known, inverted, Gives::Nothing);
    assert_eq!(in_set("ports", true, false), "drops f 0");
    assert_eq!(in_set("ports", true, true), "passes");
    // The source port, which is not known; a set that is not there, or cannot be asked; an element with a limit.
    for (set, known) in [("ports", false), ("nowhere", true), ("gone", true), ("limited", true)] {
        assert_eq!(in_set(set, known, false), "may drop f 0", "{set}");
    }
    assert_eq!(of("verdicts", true, false, Gives::Verdict), "drops f 0");
    assert_eq!(of("verdicts", false, false, Gives::Verdict), "unknown f 0");
    assert_eq!(of("ports", true, false, Gives::Data { to: 32 }), "drops f 0");
}

#[test]
fn what_is_compared_is_as_far_as_it_is_known() {
    let of = |field: Field, by: Comparison, data: &[u8]| {
        let compare = Step::Compare { from: 16, by, data: data.to_vec() };
        let steps = vec![Step::Load { to: 16, field }, compare, Step::Do(Action::Drop)];
        words(&passage(&[of_nftables(steps)], &packet(Hook::Forward))).join(", ")
    };
    use Comparison::{Equal, Unequal};
    let header = |offset, length| Field::Payload { base: 1, offset, length };
    for (field, by, data, expected) in [
        (header(16, 4), Equal, &[10, 1, 0, 9][..], "drops f 0"),
        (header(16, 4), Unequal, &[10, 1, 0, 9], "passes"),
        (header(8, 1), Equal, &[64], "may drop f 0"),
        (header(9, 1), Equal, &[17], "passes"),
        // Beyond what is known of the packet.
        (header(19, 9), Equal, &[0; 9], "may drop f 0"),
        (Field::Meta(4), Equal, &2_u32.to_ne_bytes(), "drops f 0"),
        (Field::Meta(20), Equal, &[0; 4], "may drop f 0"),
        (Field::Ct { key: 2, reply: false }, Equal, &0_u32.to_ne_bytes(), "passes"),
        (Field::Ct { key: 2, reply: false }, Unequal, &0_u32.to_ne_bytes(), "drops f 0"),
        // The way back of the source is by eth0.
        (Field::Fib { result: 1, flags: 1 | 8 | 32 }, Equal, &[0], "passes"),
        (Field::Fib { result: 1, flags: 1 | 8 | 32 }, Equal, &[1], "drops f 0"),
        (Field::Fib { result: 2, flags: 2 }, Equal, &[1], "may drop f 0"),
        (Field::Fib { result: 3, flags: 2 }, Equal, &2_u32.to_ne_bytes(), "passes"),
    ] {
        assert_eq!(of(field, by, data), expected, "{field:?} {by:?} {data:?}");
    }
}
