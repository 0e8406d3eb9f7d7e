//! Tables of legacy iptables as its own program prints them (iptables-save(8)). Pure.

use super::packet::Hook;
use super::rule::{Action, Marked, Net, Ports, Rule, Step, Test, XmarkBy};
use super::tables::{Base, Table};
use super::xt;
use crate::leftovers::legacy::{self, words};

/// The chains at hooks, with their priorities by table (`NF_IP_PRI_*`).
const HOOKS: [(&str, Hook); 5] = [
    ("PREROUTING", Hook::Prerouting),
    ("INPUT", Hook::Input),
    ("FORWARD", Hook::Forward),
    ("OUTPUT", Hook::Output),
    ("POSTROUTING", Hook::Postrouting),
];

/// Matches whose options are understood, at least some of them.
const MATCHES: [&str; 9] = ["tcp", "udp", "comment", "mark", "connmark", "conntrack", "state", "multiport", "addrtype"];

/// Reads what was printed of a table; `None` where nothing could be.
pub(super) fn table(listed: &legacy::Table) -> Option<Table> {
    let saved = listed.saved.as_ref().ok()?;
    let name = listed.name.clone();
    let mut table = Table {
        family: listed.program,
        name,
        bases: Vec::new(),
        chains: Default::default(),
        saved: Some(saved.clone()),
    };
    for line in saved.lines() {
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (Some(name), Some(policy)) = (words.next(), words.next()) else { continue };
            table.chains.entry(name.to_owned()).or_default();
            let hook = HOOKS.iter().find(|(chain, _)| *chain == name && policy != "-").map(|(_, hook)| *hook);
            table.bases.extend(hook.and_then(|hook| {
                Some(Base {
                    chain: name.to_owned(),
                    hook,
                    priority: priority(&table.name, hook)?,
                    translates: table.name == "nat",
                    drops: policy == "DROP",
                    devices: Vec::new(),
                    age: 0,
                })
            }));
        }
    }
    for line in saved.lines() {
        if let Some(line) = line.strip_prefix("-A ") {
            let words = words(line);
            let Some((from, words)) = words.split_first() else { continue };
            let is_chain = |name: &str| table.chains.contains_key(name);
            let rule = rule(words, &is_chain);
            table.chains.entry((*from).to_owned()).or_default().push(rule);
        }
    }
    Some(table)
}

fn priority(table: &str, hook: Hook) -> Option<i32> {
    Some(match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        ("filter", _) => 0,
        ("security", _) => 50,
        _ => return None,
    })
}

/// What the words after the name of its chain say of a rule.
fn rule(words: &[&str], is_chain: &dyn Fn(&str) -> bool) -> Rule {
    let mut steps = Vec::new();
    let (mut rest, mut inverted, mut module) = (words, false, "");
    while let Some((word, behind)) = rest.split_first() {
        rest = behind;
        let value = behind.first().copied().unwrap_or_default();
        // Most options have one value.
        let mut taken = 1;
        let test = match *word {
            "!" => {
                inverted = true;
                continue;
            }
            "-m" => {
                module = value;
                rest = behind.get(1..).unwrap_or_default();
                if !MATCHES.contains(&module) {
                    steps.push(Step::May(format!("it has the match {module} of iptables")));
                    // All that follows is about it.
                    let own = |word: &&str| !["-m", "-j", "-g"].contains(word);
                    let length = rest.iter().take_while(|word| own(word)).count();
                    rest = rest.get(length..).unwrap_or_default();
                }
                continue;
            }
            "-j" | "-g" => {
                steps.extend(target(value, *word == "-g", behind.get(1..).unwrap_or_default(), is_chain));
                break;
            }
            "-f" => {
                taken = 0;
                Some(Test::IsFragment)
            }
            "--comment" => {
                rest = behind.get(1..).unwrap_or_default();
                continue;
            }
            "--ctdir" if value == "REPLY" => {
                inverted = true;
                Some(Test::IsOriginal)
            }
            "--tcp-flags" => {
                taken = 2;
                tcp_flags(value, behind.get(1).copied().unwrap_or_default())
            }
            option => condition(option, value, module),
        };
        rest = behind.get(taken..).unwrap_or_default();
        steps.push(match test {
            Some(test) => Step::Is { test, inverted },
            None => Step::May(format!("it has the condition {word} {value}")),
        });
        inverted = false;
    }
    Rule { steps }
}

/// A condition with one value.
fn condition(option: &str, value: &str, module: &str) -> Option<Test> {
    Some(match option {
        "-s" => Test::Source(net(value)?),
        "-d" => Test::Destination(net(value)?),
        "-p" => Test::Protocol(protocol(value)?),
        "-i" => interface(value, Test::Input),
        "-o" => interface(value, Test::Output),
        "--sport" => Test::SourcePorts(vec![range(value)?]),
        "--dport" => Test::DestinationPorts(vec![range(value)?]),
        "--sports" => Test::SourcePorts(list(value)?),
        "--dports" => Test::DestinationPorts(list(value)?),
        "--ports" => Test::EitherPorts(list(value)?),
        "--ctstate" | "--state" => Test::States(legacy::states(value)?),
        "--ctorigsrc" => Test::OriginalSource(net(value)?),
        "--ctorigdst" => Test::OriginalDestination(net(value)?),
        "--ctorigsrcport" => Test::OriginalSourcePorts(vec![range(value)?]),
        "--ctorigdstport" => Test::OriginalDestinationPorts(vec![range(value)?]),
        "--ctproto" => Test::ConnectionProtocol(protocol(value)?),
        "--ctdir" if value == "ORIGINAL" => Test::IsOriginal,
        "--mark" => {
            let of = if module == "connmark" { Marked::Connection } else { Marked::Packet };
            let (value, mask) = masked(value)?;
            Test::Mark(of, value, mask)
        }
        "--src-type" => Test::SourceType(types(value)?),
        "--dst-type" => Test::DestinationType(types(value)?),
        _ => return None,
    })
}

/// What a rule does at its end; `rest` are the options of its target.
fn target(name: &str, goes: bool, rest: &[&str], is_chain: &dyn Fn(&str) -> bool) -> Vec<Step> {
    let of = |option: &str| rest.windows(2).find(|pair| pair[0] == option).map(|pair| pair[1]);
    if is_chain(name) {
        let name = name.to_owned();
        return vec![Step::Do(if goes { Action::Goto(name) } else { Action::Jump(name) })];
    }
    let steps = match name {
        "MARK" => of("--set-xmark")
            .and_then(masked)
            .map(|(value, mask)| vec![Step::Xmark { of: Marked::Packet, mask, by: XmarkBy::Value(value) }]),
        "CONNMARK" => {
            let masks = of("--nfmask").and_then(number).zip(of("--ctmask").and_then(number));
            if rest.contains(&"--save-mark") {
                masks.map(|(of_packet, mask)| {
                    vec![Step::Xmark { of: Marked::Connection, mask, by: XmarkBy::Other(of_packet) }]
                })
            } else if rest.contains(&"--restore-mark") {
                masks.map(|(mask, of_connection)| {
                    vec![Step::Xmark { of: Marked::Packet, mask, by: XmarkBy::Other(of_connection) }]
                })
            } else {
                of("--set-xmark")
                    .and_then(masked)
                    .map(|(value, mask)| vec![Step::Xmark { of: Marked::Connection, mask, by: XmarkBy::Value(value) }])
            }
        }
        "CT" if rest.contains(&"--notrack") => Some(vec![Step::NoTrack]),
        "CT" => ["--zone", "--zone-orig", "--zone-reply"]
            .iter()
            .find_map(|option| of(option).map(|value| (option, value)))
            .map(|(option, value)| xt::zone(value.parse().ok().filter(|_| *option == "--zone")))
            .or(Some(Vec::new())),
        _ => Some(xt::named(name)),
    };
    let unknown = || vec![Step::Do(Action::Unknown(format!("it has the target {name} of iptables")))];
    steps.unwrap_or_else(unknown)
}

/// An address, with the length of its prefix, a mask, or neither.
fn net(text: &str) -> Option<Net> {
    let (address, mask) = text.split_once('/').unwrap_or((text, ""));
    let bytes = |text: &str| {
        let address: std::net::IpAddr = text.parse().ok()?;
        Some(match address {
            std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
            std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
        })
    };
    let value = bytes(address)?;
    let mask = match mask.parse::<usize>() {
        _ if mask.is_empty() => vec![u8::MAX; value.len()],
        Ok(length) => (0..value.len()).map(|nth| prefix(length.saturating_sub(nth * 8))).collect(),
        Err(_) => bytes(mask)?,
    };
    let value = value.iter().zip(&mask).map(|(value, mask)| value & mask).collect();
    Some(Net { value, mask })
}

/// A byte with so many bits set.
fn prefix(bits: usize) -> u8 {
    if bits >= 8 { u8::MAX } else { !(u8::MAX >> bits) }
}

fn interface(name: &str, test: impl Fn(String, bool) -> Test) -> Test {
    match name.strip_suffix('+') {
        Some(stem) => test(stem.to_owned(), false),
        None => test(name.to_owned(), true),
    }
}

fn protocol(name: &str) -> Option<u8> {
    Some(match name {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "ipv6-icmp" => 58,
        "esp" => 50,
        "ah" => 51,
        "sctp" => 132,
        "udplite" => 136,
        "dccp" => 33,
        number => number.parse().ok()?,
    })
}

/// One port or the first and the last of several.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str, missing: u16| if text.is_empty() { Some(missing) } else { text.parse().ok() };
    Some((port(first, 0)?, port(last, u16::MAX)?))
}

fn list(text: &str) -> Option<Ports> {
    text.split(',').map(range).collect()
}

fn number(text: &str) -> Option<u32> {
    text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
}

/// A value and its mask.
fn masked(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// A bit for each `RTN_*`.
fn types(text: &str) -> Option<u16> {
    const NAMES: [&str; 12] = [
        "UNSPEC",
        "UNICAST",
        "LOCAL",
        "BROADCAST",
        "ANYCAST",
        "MULTICAST",
        "BLACKHOLE",
        "UNREACHABLE",
        "PROHIBIT",
        "THROW",
        "NAT",
        "XRESOLVE",
    ];
    let bit = |name: &str| NAMES.iter().position(|known| *known == name).map(|at| 1 << at);
    text.split(',').try_fold(0, |all, name| Some(all | bit(name)?))
}

/// Which flags are looked at, and which of them are set.
fn tcp_flags(mask: &str, set: &str) -> Option<Test> {
    let flags = |list: &str| {
        let bit = |name: &str| {
            Some(match name {
                "FIN" => 1,
                "SYN" => 2,
                "RST" => 4,
                "PSH" => 8,
                "ACK" => 16,
                "URG" => 32,
                "NONE" => 0,
                "ALL" => 63,
                _ => return None,
            })
        };
        list.split(',').try_fold(0, |all, name| Some(all | bit(name)?))
    };
    Some(Test::TcpFlags(flags(set)?, flags(mask)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Rule {
        let words = words(line);
        rule(&words, &|chain| chain == "MINE")
    }

    fn is(test: Test) -> Step {
        Step::Is { test, inverted: false }
    }

    #[test]
    fn rules_are_read_as_they_are_printed() {
        let line = "! -s 10.0.0.0/8 -d 10.1.0.1/32 -i eth+ ! -o lo -p udp -m udp ! --sport 7 --dport 5:8 -m comment \
                    --comment \"-j DROP\" -m conntrack ! --ctstate NEW,DNAT -m mark --mark 0x1/0x1 -m addrtype --dst-type \
                    LOCAL,BROADCAST -m multiport --dports 1,2:3 -j DROP";
        let net = |text: &str| super::net(text).expect("a network");
        let not = |test| Step::Is { test, inverted: true };
        let expected = vec![
            not(Test::Source(Net { value: vec![10, 0, 0, 0], mask: vec![255, 0, 0, 0] })),
            is(Test::Destination(net("10.1.0.1"))),
            is(Test::Input("eth".to_owned(), false)),
            not(Test::Output("lo".to_owned(), true)),
            is(Test::Protocol(17)),
            not(Test::SourcePorts(vec![(7, 7)])),
            is(Test::DestinationPorts(vec![(5, 8)])),
            not(Test::States(8 | 1 << 7)),
            is(Test::Mark(Marked::Packet, 1, 1)),
            is(Test::DestinationType(4 | 8)),
            is(Test::DestinationPorts(vec![(1, 1), (2, 3)])),
            Step::Do(Action::Drop),
        ];
        assert_eq!(read(line).steps, expected);
        let xmark = |of, mask, by| vec![Step::Xmark { of, mask, by }];
        for (line, expected) in [
            ("-j MINE", vec![Step::Do(Action::Jump("MINE".to_owned()))]),
            ("-g MINE", vec![Step::Do(Action::Goto("MINE".to_owned()))]),
            ("-j REJECT --reject-with icmp-port-unreachable", vec![Step::Do(Action::Reject)]),
            ("-j CT --notrack", vec![Step::NoTrack]),
            ("-j CT --helper ftp", vec![]),
            (
                "-j CT --zone 1",
                vec![Step::Put { to: 16, data: 1_u16.to_ne_bytes().to_vec() }, Step::Zone { from: Some(16) }],
            ),
            ("-j CT --zone-reply 1", vec![Step::Zone { from: None }]),
            ("-j LOG --log-prefix \"-j DROP\"", vec![]),
            ("-j MARK --set-xmark 0x7/0xff", xmark(Marked::Packet, 0xff, XmarkBy::Value(7))),
            (
                "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xf0",
                xmark(Marked::Packet, 0xff, XmarkBy::Other(0xf0)),
            ),
            (
                "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit 5/min --limit-burst 5 -j ACCEPT",
                vec![
                    is(Test::Protocol(6)),
                    is(Test::TcpFlags(2, 0x17)),
                    Step::May("it has the match limit of iptables".to_owned()),
                    Step::Do(Action::Accept),
                ],
            ),
        ] {
            assert_eq!(read(line).steps, expected, "{line}");
        }
        for unknown in ["-j NOBODY", "-m conntrack --ctstatus CONFIRMED", "-p nobody", "-s nobody"] {
            let steps = read(unknown).steps;
            assert!(matches!(steps[..], [Step::May(_) | Step::Do(Action::Unknown(_))]), "{unknown}: {steps:?}");
        }
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_text_can_be_read(text in "([-!:a-zA-Z0-9/,. \"\\\\]{0,12}( (-s|-j|-m|--mark|--dport|--tcp-flags|-d) )?){0,6}") {
            let _ = read(&text);
            let saved = Ok(format!(":FORWARD DROP [0:0]\n-A FORWARD {text}\n-A {text}\n:{text}\n"));
            let listed = legacy::Table { program: "iptables-legacy", name: "filter".to_owned(), saved };
            let read = table(&listed).expect("it can be read");
            prop_assert!(!read.bases.is_empty());
        }
    }
}
