//! Our messages are those that nft 1.0.6 sends for the same text.
//!
//! `testdata/wire/CASE.txt` holds the text and the messages that nft made of it, four bytes a line as `nft --debug=mnl`
//! prints them. One test compares our bytes with the file; another one, which needs root, runs nft again and compares
//! the file. `WIRE_UPDATE=1` rewrites the files.
//!
//! Not compared: the flags of messages (nft does not print them), sequence numbers, the order of messages and of
//! attributes beside each other (lists are compared in order), the operation of `bitwise` where it is the default (nft
//! names it in one of two cases), and the numbers by which nft's messages refer to sets of
//! the same batch, in addition to the name.
//!
//! What is different on purpose is in `differences`.

mod differences;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

use super::encode::{Batch, Encoder, TABLE_COMMENT};
use super::request::NftablesMessage as _;
use super::uapi::{self, msg};
use crate::diff::Operation;
use crate::model::{Family, Protocol};
use crate::netlink::{Attributes, Message, messages};
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{By, ChainName, Masquerade, Pick, SetName, TableName};
use crate::ruleset::types::{
    Chain, Data, DataDef, Element, Hashed, Hook, HookPoint, Key, Rule, Selector, SetDef, Statement, Value, Verdict,
};
use crate::sys::{Bytes, Comparison, Expression, PayloadBase, Register};
use crate::testing::in_network_namespace;
use crate::testing::netns::nft;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// What nft is given, and what we make.
struct Case {
    name: String,
    /// Loaded before, in a transaction that does not count.
    setup: String,
    text: String,
    batch: Batch,
}

fn case(family: Family, name: &str, text: &str, operations: Vec<Operation>) -> Case {
    case_after(family, name, "", text, operations)
}

fn case_after(family: Family, name: &str, setup: &str, text: &str, operations: Vec<Operation>) -> Case {
    let (ip, nexthdr, address, ping, suffix) = match family {
        Family::V4 => ("ip", "ip protocol", "ipv4_addr", "icmp type echo-request", ""),
        Family::V6 => ("ip6", "ip6 nexthdr", "ipv6_addr", "icmpv6 type echo-request", "-ip6"),
    };
    let fill = |text: &str| {
        let text = text.replace("$NEXTHDR", nexthdr).replace("$ADDR", address).replace("$PING", ping);
        text.replace("$IP", ip).replace("$VIP", &addresses(family).0)
    };
    let mut encoder = Encoder::new(family, TableName::NODE.as_str(), 0);
    for (position, operation) in operations.iter().enumerate() {
        encoder.operation(position, operation).expect("operations that can be encoded");
    }
    Case { name: format!("{name}{suffix}"), setup: fill(setup), text: fill(text), batch: encoder.finish() }
}

fn addresses(family: Family) -> (String, Value) {
    let text = match family {
        Family::V4 => "10.96.0.1",
        Family::V6 => "fd00:96::1",
    };
    (text.to_owned(), Value::Address(text.parse().expect("an address")))
}

fn set(name: SetName, key: &[Selector], data: DataDef) -> SetDef {
    SetDef { name, key: key.to_vec(), data, interval: false, dynamic: false, size: None, counter: false }
}

/// What maps to kinds hold.
fn kinds() -> DataDef {
    DataDef::Values(vec![Selector::Priority])
}

fn rules(name: ChainName, statements: &[&[Statement]]) -> Chain {
    let rule = |statements: &&[Statement]| Rule { statements: statements.to_vec(), comment: None };
    Chain { name, hook: None, rules: statements.iter().map(rule).collect() }
}

const SLOT: Selector = Selector::RandomSlot { modulus: 2, offset: 0 };

fn cases() -> Vec<Case> {
    let mut all = vec![raw_expressions()];
    for family in Family::ALL {
        all.extend([
            sets(family),
            single_keys(family),
            chains(family),
            statements(family),
            lookups(family),
            elements(family),
        ]);
        all.extend(deletions(family));
    }
    all.push(addresses_in(Family::V4, &["10.0.0.0/8", "10.96.0.0/12", "10.1.2.0/24", "10.0.0.1/32", "0.0.0.0/0"]));
    all.push(addresses_in(Family::V6, &["fd00::/16", "fd00:96::/108", "fd00::/61", "fd00::1/128", "::/0"]));
    all.push(remember());
    all
}

fn sets(family: Family) -> Case {
    use Selector::{
        DestinationAddress as Daddr, DestinationPort as Port, HeaderProtocol, L4Proto, OriginalDestination,
        OriginalPort, OriginalSource, SourceAddress as Saddr,
    };
    let text = "table $IP nftproxyd {
    comment \"Kubernetes Services; written by nftproxyd\"
    map service-ips { type $ADDR . inet_proto . inet_service : verdict; }
    map service-nodeports { type inet_proto . inet_service : verdict; }
    map endpoints { typeof $IP daddr . meta l4proto . th dport . numgen random mod 2 : $IP daddr . th dport; }
    set allowed-sources { typeof $IP daddr . $NEXTHDR . th dport . $IP saddr; flags interval; }
    map affinity { typeof $IP saddr . $IP daddr . meta l4proto . th dport : $IP daddr . th dport; size 262144; flags dynamic,timeout; }
    map cluster-policy { type $ADDR . inet_proto . inet_service : classid; }
    map nodeport-cluster-policy { type inet_proto . inet_service : classid; }
    map nodeport-local-policy { type inet_proto . inet_service : classid; counter; }
    map dispatch { type classid : verdict; size 4096; }
    map local-policy { type $ADDR . $ADDR : verdict; }
    set cluster-ips { typeof $IP daddr; }
    set hairpin { typeof $IP saddr . $IP daddr; }
}
";
    let endpoint = || DataDef::Values(vec![Daddr, Port]);
    let _ = OriginalPort;
    let sets = [
        set(SetName::ServiceIps, &[Daddr, L4Proto, Port], DataDef::Verdict),
        set(SetName::ServiceNodeports, &[L4Proto, Port], DataDef::Verdict),
        set(SetName::Endpoints, &[Daddr, L4Proto, Port, SLOT], endpoint()),
        SetDef { interval: true, ..set(SetName::AllowedSources, &[Daddr, HeaderProtocol, Port, Saddr], DataDef::None) },
        SetDef {
            dynamic: true,
            size: Some(262_144),
            ..set(SetName::Affinity, &[Saddr, Daddr, L4Proto, Port], endpoint())
        },
        set(SetName::ClusterPolicy, &[Daddr, L4Proto, Port], kinds()),
        set(SetName::NodeportClusterPolicy, &[L4Proto, Port], kinds()),
        SetDef { counter: true, ..set(SetName::NodeportLocalPolicy, &[L4Proto, Port], kinds()) },
        SetDef { size: Some(4_096), ..set(SetName::Dispatch, &[Selector::Priority], DataDef::Verdict) },
        set(SetName::LocalPolicy, &[OriginalSource, OriginalDestination], DataDef::Verdict),
        set(SetName::ClusterIps, &[Daddr], DataDef::None),
        set(SetName::Hairpin, &[Saddr, Daddr], DataDef::None),
    ];
    let operations = std::iter::once(Operation::AddTable).chain(sets.into_iter().map(Operation::AddSet));
    case(family, "sets", text, operations.collect())
}

fn single_keys(family: Family) -> Case {
    let text = "add set $IP nftproxyd hairpin { typeof $IP saddr; }
add set $IP nftproxyd cluster-ips { typeof $NEXTHDR; }
add set $IP nftproxyd nodeport-ips { typeof th dport; }
add set $IP nftproxyd allowed-sources { typeof meta l4proto; }
add map $IP nftproxyd endpoints { typeof numgen random mod 2 : $IP daddr . th dport; }
add map $IP nftproxyd nodeport-endpoints { typeof $IP daddr : $IP daddr; }
";
    let endpoint = DataDef::Values(vec![Selector::DestinationAddress, Selector::DestinationPort]);
    let operations = vec![
        Operation::AddSet(set(SetName::Hairpin, &[Selector::SourceAddress], DataDef::None)),
        Operation::AddSet(set(SetName::ClusterIps, &[Selector::HeaderProtocol], DataDef::None)),
        Operation::AddSet(set(SetName::NodeportIps, &[Selector::DestinationPort], DataDef::None)),
        Operation::AddSet(set(SetName::AllowedSources, &[Selector::L4Proto], DataDef::None)),
        Operation::AddSet(set(SetName::Endpoints, &[SLOT], endpoint)),
        Operation::AddSet(set(
            SetName::NodeportEndpoints,
            &[Selector::DestinationAddress],
            DataDef::Values(vec![Selector::DestinationAddress]),
        )),
    ];
    case_after(family, "single-keys", "table $IP nftproxyd { }\n", text, operations)
}

fn chains(family: Family) -> Case {
    let text = "add chain $IP nftproxyd services
add chain $IP nftproxyd nat-prerouting { type nat hook prerouting priority dstnat; policy accept; }
add chain $IP nftproxyd nat-input { type nat hook input priority 99; policy accept; }
add chain $IP nftproxyd nat-output { type nat hook output priority -100; policy accept; }
add chain $IP nftproxyd nat-postrouting { type nat hook postrouting priority 99; policy accept; }
";
    let chain = |name, hook: Option<(HookPoint, i32)>| {
        let hook = hook.map(|(hook, priority)| Hook { hook, priority });
        Operation::AddChain(Chain { name, hook, rules: Vec::new() })
    };
    let operations = vec![
        chain(ChainName::Services, None),
        chain(ChainName::NatPrerouting, Some((HookPoint::Prerouting, -100))),
        chain(ChainName::NatInput, Some((HookPoint::Input, 99))),
        chain(ChainName::NatOutput, Some((HookPoint::Output, -100))),
        chain(ChainName::NatPostrouting, Some((HookPoint::Postrouting, 99))),
    ];
    case_after(family, "chains", "table $IP nftproxyd { }\n", text, operations)
}

fn statements(family: Family) -> Case {
    let (_, vip) = addresses(family);
    let Value::Address(vip) = vip else { panic!("{vip:?}") };
    let rows: Vec<(&str, Vec<Statement>)> = vec![
        ("iifname \"cni0\" drop", vec![interface("cni0", false, false), drop()]),
        ("iifname != \"veth*\" drop", vec![interface("veth", true, true), drop()]),
        ("iifname \"abcdefghijklmno\" drop", vec![interface("abcdefghijklmno", false, false), drop()]),
        ("iifname \"abcdefghijklmn*\" drop", vec![interface("abcdefghijklmn", true, false), drop()]),
        ("meta l4proto tcp reject with tcp reset", vec![Statement::L4ProtoIs(Protocol::Tcp), Statement::RejectTcp]),
        ("meta l4proto sctp drop", vec![Statement::L4ProtoIs(Protocol::Sctp), drop()]),
        ("reject", vec![Statement::Reject]),
        ("$PING dnat to $VIP", vec![Statement::EchoRequest, Statement::DnatTo(vip)]),
        ("fib saddr type local drop", vec![Statement::SourceIsLocal, drop()]),
        ("fib daddr type local drop", vec![Statement::DestinationIsLocal { negated: false }, drop()]),
        ("fib daddr type != local drop", vec![Statement::DestinationIsLocal { negated: true }, drop()]),
        ("ct direction original drop", vec![Statement::DirectionOriginal, drop()]),
        ("ct status dnat goto services", vec![Statement::StatusDnat, goto(ChainName::Services)]),
        ("meta priority 6e66:7078 drop", vec![Statement::Priority { value: 0x6e66_7078, negated: false }, drop()]),
        ("meta priority != 1:2 drop", vec![Statement::Priority { value: 0x1_0002, negated: true }, drop()]),
        ("meta priority set none", vec![Statement::SetPriority(0)]),
        ("meta priority set f010:a", vec![Statement::SetPriority(0xf010_000a)]),
        (
            "meta mark & 0x4000 != 0 jump services",
            vec![Statement::MarkHas(0x4000), Statement::Verdict(Verdict::Jump(ChainName::Services))],
        ),
        ("meta mark set meta mark | 0x4000", vec![Statement::SetMark(0x4000)]),
        (
            "meta mark set meta mark & 0xffffbfff masquerade fully-random",
            vec![Statement::ClearMark(0x4000), Statement::Masquerade { keep_port: false }],
        ),
    ];
    let mut text: String = rows.iter().fold(String::new(), |mut text, (rule, _)| {
        writeln!(text, "add rule $IP nftproxyd unserved {rule}").expect("a text");
        text
    });
    text.push_str("add rule $IP nftproxyd unserved drop comment \"not allocated\"\n");
    let mut chain = rules(ChainName::Unserved, &rows.iter().map(|(_, s)| s.as_slice()).collect::<Vec<_>>());
    chain.rules.push(Rule { statements: vec![drop()], comment: Some("not allocated") });
    let setup = "table $IP nftproxyd { chain services { }; chain unserved { }; }\n";
    case_after(family, "statements", setup, &text, vec![Operation::AddRules(chain)])
}

fn interface(name: &str, prefix: bool, negated: bool) -> Statement {
    Statement::InputInterface { name: name.into(), prefix, negated }
}

fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}

fn goto(chain: ChainName) -> Statement {
    Statement::Verdict(Verdict::Goto(chain))
}

fn addresses_in(family: Family, nets: &[&str]) -> Case {
    let mut text = String::new();
    let mut chain = rules(ChainName::Unserved, &[]);
    for net in nets {
        let parsed = net.parse().expect("a network");
        for (word, negated) in [("", false), ("!= ", true)] {
            writeln!(text, "add rule $IP nftproxyd unserved $IP saddr {word}{net} drop").expect("a text");
            writeln!(text, "add rule $IP nftproxyd unserved $IP daddr {word}{net} drop").expect("a text");
            for statement in
                [Statement::SourceIn { net: parsed, negated }, Statement::DestinationIn { net: parsed, negated }]
            {
                chain.rules.push(Rule { statements: vec![statement, drop()], comment: None });
            }
        }
    }
    let setup = "table $IP nftproxyd { chain unserved { }; }\n";
    case_after(family, "networks", setup, &text, vec![Operation::AddRules(chain)])
}

fn lookups(family: Family) -> Case {
    use Selector::{DestinationAddress as Daddr, DestinationPort as Port, L4Proto, SourceAddress as Saddr};
    // All in one transaction: nft 1.0.6 cannot use `allowed-sources` when it has read it back from the kernel.
    let text = "table $IP nftproxyd {
    map service-ips { type $ADDR . inet_proto . inet_service : verdict; }
    map endpoints { typeof $IP daddr . meta l4proto . th dport . numgen random mod 2 : $IP daddr . th dport; }
    map nodeport-endpoints { typeof meta l4proto . th dport . numgen random mod 2 : $IP daddr . th dport; }
    set allowed-sources { typeof $IP daddr . $NEXTHDR . th dport . $IP saddr; flags interval; }
    set cluster-ips { typeof $IP daddr; }
    set hairpin { typeof $IP saddr . $IP daddr; }
    set kept-ports { typeof $IP daddr . meta l4proto . th dport; }
    map cluster-policy { type $ADDR . inet_proto . inet_service : classid; }
    map dispatch { type classid : verdict; size 4096; }
    chain services {
        meta priority set $IP daddr . meta l4proto . th dport map @cluster-policy meta priority vmap @dispatch
        meta l4proto udp meta priority set ct original $IP daddr . meta l4proto . ct original proto-dst map @cluster-policy meta priority vmap @dispatch
        $IP daddr . meta l4proto . th dport vmap @service-ips
        meta l4proto tcp ct original $IP daddr . meta l4proto . ct original proto-dst vmap @service-ips
        $IP daddr @cluster-ips drop
        $IP saddr . $IP daddr @hairpin masquerade fully-random
        $IP daddr . $NEXTHDR . th dport . $IP saddr != @allowed-sources drop
        dnat $IP to $IP daddr . meta l4proto . th dport . numgen random mod 7 map @endpoints
        dnat $IP to meta l4proto . th dport . numgen random mod 1 offset 65536 map @nodeport-endpoints
        dnat $IP to $IP daddr . meta l4proto . th dport . numgen inc mod 5 offset 65536 map @endpoints
        dnat $IP to meta l4proto . th dport . numgen inc mod 5 map @nodeport-endpoints
        dnat $IP to $IP daddr . meta l4proto . th dport . jhash $IP saddr mod 4093 seed 0x6e667078 map @endpoints
        dnat $IP to $IP daddr . meta l4proto . th dport . jhash $IP saddr . th sport mod 3 seed 0x6e667078 offset 65536 map @endpoints
        dnat $IP to meta l4proto . th dport . jhash $IP saddr . th sport mod 3 seed 0x6e667078 map @nodeport-endpoints
        dnat $IP to meta l4proto . th dport . jhash $IP daddr mod 2 seed 0x6e667078 offset 65536 map @nodeport-endpoints
        meta l4proto udp ct original $IP daddr . meta l4proto . ct original proto-dst @kept-ports masquerade
    }
}
";
    let slots = Selector::RandomSlot { modulus: 2, offset: 0 };
    let endpoint = || DataDef::Values(vec![Daddr, Port]);
    let allowed = set(SetName::AllowedSources, &[Daddr, Selector::HeaderProtocol, Port, Saddr], DataDef::None);
    let mut operations: Vec<Operation> = vec![
        Operation::AddSet(set(SetName::ServiceIps, &[Daddr, L4Proto, Port], DataDef::Verdict)),
        Operation::AddSet(set(SetName::Endpoints, &[Daddr, L4Proto, Port, slots], endpoint())),
        Operation::AddSet(set(SetName::NodeportEndpoints, &[L4Proto, Port, slots], endpoint())),
        Operation::AddSet(SetDef { interval: true, ..allowed }),
        Operation::AddSet(set(SetName::ClusterIps, &[Daddr], DataDef::None)),
        Operation::AddSet(set(SetName::Hairpin, &[Saddr, Daddr], DataDef::None)),
        Operation::AddSet(set(SetName::KeptPorts, &[Daddr, L4Proto, Port], DataDef::None)),
        Operation::AddSet(set(SetName::ClusterPolicy, &[Daddr, L4Proto, Port], kinds())),
        Operation::AddSet(SetDef {
            size: Some(4_096),
            ..set(SetName::Dispatch, &[Selector::Priority], DataDef::Verdict)
        }),
    ];
    let from = |key: &[Selector]| Statement::PriorityFromMap { key: key.to_vec(), map: SetName::ClusterPolicy };
    let dispatch = || Statement::VerdictMap { key: vec![Selector::Priority], map: SetName::Dispatch };
    let vmap = |key: &[Selector]| Statement::VerdictMap { key: key.to_vec(), map: SetName::ServiceIps };
    let within = |key: &[Selector], set, negated| Statement::InSet { key: key.to_vec(), set, negated };
    let slot = |modulus, offset| Selector::RandomSlot { modulus, offset };
    let next = |modulus, offset| Selector::NextSlot { modulus, offset };
    let hashed = |of, modulus, offset| Selector::HashedSlot { of, modulus, offset };
    let to = |slot| Statement::DnatMap { key: vec![Daddr, L4Proto, Port, slot], map: SetName::Endpoints };
    let to_node_port = |slot| Statement::DnatMap { key: vec![L4Proto, Port, slot], map: SetName::NodeportEndpoints };
    let chain = rules(
        ChainName::Services,
        &[
            &[from(&[Daddr, L4Proto, Port]), dispatch()],
            &[
                Statement::L4ProtoIs(Protocol::Udp),
                from(&[Selector::OriginalDestination, L4Proto, Selector::OriginalPort]),
                dispatch(),
            ],
            &[vmap(&[Daddr, L4Proto, Port])],
            &[
                Statement::L4ProtoIs(Protocol::Tcp),
                vmap(&[Selector::OriginalDestination, L4Proto, Selector::OriginalPort]),
            ],
            &[within(&[Daddr], SetName::ClusterIps, false), drop()],
            &[within(&[Saddr, Daddr], SetName::Hairpin, false), Statement::Masquerade { keep_port: false }],
            &[within(&[Daddr, Selector::HeaderProtocol, Port, Saddr], SetName::AllowedSources, true), drop()],
            &[to(slot(7, 0))],
            &[to_node_port(slot(1, 65_536))],
            &[to(next(5, 65_536))],
            &[to_node_port(next(5, 0))],
            &[to(hashed(Hashed::Source, 4_093, 0))],
            &[to(hashed(Hashed::SourceAndPort, 3, 65_536))],
            &[to_node_port(hashed(Hashed::SourceAndPort, 3, 0))],
            &[to_node_port(hashed(Hashed::Destination, 2, 65_536))],
            &[
                Statement::L4ProtoIs(Protocol::Udp),
                within(&[Selector::OriginalDestination, L4Proto, Selector::OriginalPort], SetName::KeptPorts, false),
                Statement::Masquerade { keep_port: true },
            ],
        ],
    );
    operations.extend([Operation::AddChain(chain.clone()), Operation::AddRules(chain)]);
    operations.insert(0, Operation::AddTable);
    let text = text.replace("proxyd {\n", &format!("proxyd {{\n    comment \"{TABLE_COMMENT}\"\n"));
    case(family, "lookups", &text, operations)
}

/// IPv4 only: nft 1.0.6 aborts over the IPv6 rule.
fn remember() -> Case {
    let setup = "table ip nftproxyd {
    map affinity { typeof ip saddr . ip daddr . meta l4proto . th dport : ip daddr . th dport; size 262144; flags dynamic,timeout; }
    chain remember-10800 { }
}
";
    let text = "add rule ip nftproxyd remember-10800 meta l4proto tcp update @affinity { ct original ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 3h : ip daddr . tcp dport }\n";
    let update = Statement::Update {
        map: SetName::Affinity,
        key: vec![Selector::OriginalSource, Selector::OriginalDestination, Selector::L4Proto, Selector::OriginalPort],
        timeout: 10_800,
        data: vec![Selector::DestinationAddress, Selector::DestinationPort],
    };
    let chain = rules(ChainName::RememberFor(10_800), &[&[Statement::L4ProtoIs(Protocol::Tcp), update]]);
    case_after(Family::V4, "remember", setup, text, vec![Operation::AddRules(chain)])
}

const ELEMENT_SETUP: &str = "table $IP nftproxyd {
    map service-ips { type $ADDR . inet_proto . inet_service : verdict; }
    map endpoints { typeof $IP daddr . meta l4proto . th dport . numgen random mod 2 : $IP daddr . th dport; }
    set allowed-sources { typeof $IP daddr . $NEXTHDR . th dport . $IP saddr; flags interval; }
    set cluster-ips { typeof $IP daddr; }
    map cluster-policy { type $ADDR . inet_proto . inet_service : classid; }
    map dispatch { type classid : verdict; size 4096; }
    chain services { }
    chain masq-pick-2 { }
}
";

fn elements(family: Family) -> Case {
    let text =
        "add element $IP nftproxyd service-ips { $VIP . tcp . 80 comment \"default/web:http\" : goto masq-pick-2 }
add element $IP nftproxyd service-ips { $VIP . udp . 53 : drop, $VIP . sctp . 65535 : goto services }
add element $IP nftproxyd endpoints { $VIP . tcp . 80 . 65537 : $VIP . 8080 }
add element $IP nftproxyd cluster-ips { $VIP }
add element $IP nftproxyd cluster-policy { $VIP . tcp . 80 : f020:2 }
add element $IP nftproxyd dispatch { f020:2 : goto masq-pick-2 }
";
    let (masquerade, by) = (Masquerade::Always, By::Random);
    let masq = Pick { nodeport: false, masquerade, sticky: false, local: false, by, slots: 2 };
    let (_, vip) = addresses(family);
    let frontend = |protocol, port| [vip, Value::Protocol(protocol), Value::Port(port)];
    let web = frontend(Protocol::Tcp, 80);
    let endpoint = Data::Values([vip, Value::Port(8080)].as_slice().into());
    let verdict = Data::Verdict;
    let operations = vec![
        Operation::AddElements(
            SetName::ServiceIps,
            vec![Element {
                comment: Some("default/web:http".into()),
                ..element(&web, verdict(Verdict::Goto(ChainName::Pick(masq))))
            }],
        ),
        Operation::AddElements(
            SetName::ServiceIps,
            vec![
                element(&frontend(Protocol::Udp, 53), verdict(Verdict::Drop)),
                element(&frontend(Protocol::Sctp, 65_535), verdict(Verdict::Goto(ChainName::Services))),
            ],
        ),
        Operation::AddElements(
            SetName::Endpoints,
            vec![element(&[web[0], web[1], web[2], Value::Slot(65_537)], endpoint)],
        ),
        Operation::AddElements(SetName::ClusterIps, vec![element(&[vip], Data::None)]),
        Operation::AddElements(SetName::ClusterPolicy, vec![element(&web, Kind::Pick(masq).data())]),
        Operation::AddElements(
            SetName::Dispatch,
            vec![element(&[Value::Class(Kind::Pick(masq).class())], verdict(Kind::Pick(masq).verdict()))],
        ),
    ];
    case_after(family, "elements", ELEMENT_SETUP, text, operations)
}

fn element(key: &[Value], data: Data) -> Element {
    Element { key: Key::from_slice(key), key_end: None, data, comment: None }
}

fn deletions(family: Family) -> Vec<Case> {
    let (_, vip) = addresses(family);
    let range = match family {
        Family::V4 => ("10.125.0.0/16", "10.125.0.0", "10.125.255.255"),
        Family::V6 => ("fd00:125::/112", "fd00:125::", "fd00:125::ffff"),
    };
    let key = |source: &str| {
        let source = Value::Address(source.parse().expect("an address"));
        Key::from_slice(&[vip, Value::Protocol(Protocol::Tcp), Value::Port(80), source])
    };
    let interval = Element { key_end: Some(key(range.2)), ..element(&key(range.1), Data::None) };
    let there = format!("{{ $VIP . tcp . 80 . {} }}", range.0);
    let setup = format!(
        "{ELEMENT_SETUP}add element $IP nftproxyd cluster-ips {{ $VIP }}
add element $IP nftproxyd allowed-sources {there}\n"
    );
    let add = format!("add element $IP nftproxyd allowed-sources {there}\n");
    let delete = format!(
        "delete element $IP nftproxyd cluster-ips {{ $VIP }}
delete element $IP nftproxyd allowed-sources {there}
flush chain $IP nftproxyd services
delete set $IP nftproxyd cluster-ips
delete chain $IP nftproxyd services
"
    );
    let in_set = |elements| (SetName::AllowedSources, elements);
    let (name, elements) = in_set(vec![interval.clone()]);
    let delete_all = vec![
        Operation::DeleteElements(SetName::ClusterIps, vec![element(&[vip], Data::None)]),
        Operation::DeleteElements(SetName::AllowedSources, vec![interval]),
        Operation::FlushChain(ChainName::Services),
        Operation::DeleteForeignSet("cluster-ips".to_owned()),
        Operation::DeleteForeignChain("services".to_owned()),
    ];
    vec![
        case_after(family, "intervals", ELEMENT_SETUP, &add, vec![Operation::AddElements(name, elements)]),
        case_after(family, "deletions", &setup, &delete, delete_all),
        case_after(
            family,
            "delete-table",
            "table $IP nftproxyd { }\n",
            "delete table $IP nftproxyd\n",
            vec![Operation::DeleteTable],
        ),
    ]
}

/// Expressions that no statement of ours makes.
fn raw_expressions() -> Case {
    let first = Register::FIRST;
    let second = first.after(16);
    let port = Expression::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg: first };
    let bytes = Bytes::from_slice;
    let address = |offset, dreg| Expression::Payload { base: PayloadBase::Network, offset, len: 4, dreg };
    let mark = |sreg| Expression::MetaSet { key: uapi::meta::MARK, sreg };
    let rules: Vec<(&str, Vec<Expression>)> = vec![
        (
            "th dport != 1-100 drop",
            vec![
                port,
                Expression::Range {
                    sreg: first,
                    comparison: Comparison::NotEqual,
                    from: bytes(&[0, 1]),
                    to: bytes(&[0, 100]),
                },
                Expression::Verdict { code: uapi::NF_DROP, chain: None },
            ],
        ),
        (
            "meta mark set jhash ip saddr . ip daddr mod 5 seed 0x1234 offset 3",
            vec![
                address(12, second),
                address(16, second.after(4)),
                Expression::Hash { sreg: second, dreg: first, len: 8, modulus: 5, seed: Some(0x1234), offset: 3 },
                mark(first),
            ],
        ),
        (
            "meta mark set jhash ip saddr mod 5",
            vec![
                address(12, second),
                Expression::Hash { sreg: second, dreg: first, len: 4, modulus: 5, seed: None, offset: 0 },
                mark(first),
            ],
        ),
        ("counter packets 5 bytes 6", vec![Expression::Counter { packets: 5, bytes: 6 }]),
        (
            "meta mark set 0x1234",
            vec![Expression::Immediate { dreg: first, data: bytes(&0x1234_u32.to_ne_bytes()) }, mark(first)],
        ),
    ];
    let mut encoder = Encoder::new(Family::V4, TableName::NODE.as_str(), 0);
    let mut text = String::new();
    for (index, (rule, expressions)) in rules.iter().enumerate() {
        writeln!(text, "add rule ip nftproxyd services {rule}").expect("a text");
        encoder.add_rule(0, index, c"services", None, expressions);
    }
    let setup = "table ip nftproxyd { chain services { }; }\n".to_owned();
    Case { name: "expressions".to_owned(), setup, text, batch: encoder.finish() }
}

/// A message without what may differ: type, family and attributes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Plain {
    kind: u16,
    family: u8,
    attributes: Vec<Tree>,
}

/// An attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Tree {
    Leaf(u16, Vec<u8>),
    Nest(u16, Vec<Tree>),
}

fn plain(message: &Message<'_>) -> Plain {
    let kind = message.nftables().expect("a message of nftables");
    let mut attributes = trees(message.attributes());
    // NFTA_SET_ID of sets, NFTA_SET_ELEM_LIST_SET_ID of elements.
    let id = match kind {
        msg::NEWSET => Some(uapi::NFTA_SET_ID),
        msg::NEWSETELEM | msg::DELSETELEM => Some(4),
        _ => None,
    };
    attributes.retain(|tree| !matches!(tree, Tree::Leaf(kind, _) if Some(*kind) == id));
    attributes.sort();
    Plain { kind, family: message.family().expect("a family"), attributes }
}

fn trees(attributes: Attributes<'_>) -> Vec<Tree> {
    let mut trees: Vec<Tree> = attributes
        .map(|attribute| attribute.expect("well-formed attributes"))
        .map(|attribute| match attribute.nested {
            true => Tree::Nest(attribute.kind, trees_of_nest(attribute.attributes())),
            false => Tree::Leaf(attribute.kind, attribute.value.to_vec()),
        })
        .collect();
    // By type only, and stable: lists keep their order.
    trees.sort_by_key(|tree| match tree {
        Tree::Leaf(kind, _) | Tree::Nest(kind, _) => *kind,
    });
    trees
}

fn trees_of_nest(attributes: Attributes<'_>) -> Vec<Tree> {
    let mut trees = trees(attributes);
    // NFTA_LOOKUP_SET_ID is 4, NFTA_DYNSET_SET_ID is 2, NFTA_BITWISE_OP is 6.
    if let [Tree::Leaf(1, name), Tree::Nest(2, data)] = trees.as_mut_slice() {
        let id = match name.as_slice() {
            b"lookup\0" => Some(4),
            b"dynset\0" => Some(2),
            b"bitwise\0" if data.contains(&Tree::Leaf(6, vec![0; 4])) => Some(6),
            _ => None,
        };
        data.retain(|tree| !matches!(tree, Tree::Leaf(kind, _) if Some(*kind) == id));
    }
    trees
}

/// The messages between begin and end. Rules and elements keep their order, the rest is sorted by type.
fn plain_messages(bytes: &[u8]) -> Vec<Plain> {
    let mut all: Vec<Plain> = messages(bytes)
        .map(|message| message.expect("well-formed messages"))
        .filter(|message| message.nftables().is_some())
        .map(|message| plain(&message))
        .collect();
    all.sort_by_key(|message| message.kind);
    all
}

/// The words of nft's debug output, from the batch's begin to its end.
fn read_debug(output: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut inside = false;
    let mut length = 0_u32;
    for line in output.lines() {
        let line = strip_colours(line);
        let Some((cells, _)) =
            line.strip_prefix('|').and_then(|line| line.rsplit_once("|\t|").or(line.rsplit_once("|	|")))
        else {
            continue;
        };
        let words: Vec<&str> = cells.split('|').map(str::trim).collect();
        if line.contains("message length") {
            length = words[0].parse().expect("a length");
        } else if line.contains("|  type | flags  |") {
            let kind: u16 = words[0].parse().expect("a type");
            inside = if kind == 16 { true } else { inside && kind != 17 };
            if inside {
                bytes.extend(length.to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend([0; 2 + 4 + 4]);
            }
        } else if !inside || line.contains("sequence number") || line.contains("port ID") {
        } else if line.contains("|len |flags| type|") {
            let (length, kind): (u16, u16) = (words[0].parse().expect("a length"), words[2].parse().expect("a type"));
            let nested = if words[1].starts_with('N') { NESTED } else { 0 };
            bytes.extend(length.to_ne_bytes());
            bytes.extend((kind | nested).to_ne_bytes());
        } else if line.contains("extra header") || line.contains("data") {
            bytes.extend(words[0].split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")));
        }
    }
    bytes
}

fn strip_colours(line: &str) -> String {
    let mut parts = line.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, text)| text));
    }
    plain
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/wire").join(format!("{name}.txt"))
}

/// The file of a case: nft's input as comments, then the bytes.
fn render(case: &Case, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (title, input) in [("after", &case.setup), ("nft -f", &case.text)] {
        if !input.is_empty() {
            writeln!(text, "# {title}:").expect("a text");
            input.lines().for_each(|line| writeln!(text, "#   {line}").expect("a text"));
        }
    }
    for message in messages(bytes) {
        let message = message.expect("well-formed messages");
        writeln!(text, "\n# message of type {}", message.kind & 0xff).expect("a text");
        let length = 16 + message.payload.len();
        let start = message.payload.as_ptr() as usize - bytes.as_ptr() as usize - 16;
        for word in bytes[start..start + length].chunks(4) {
            let hex: Vec<String> = word.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{}", hex.join(" ")).expect("a text");
        }
    }
    text
}

fn read_recorded(name: &str) -> (String, Vec<u8>) {
    let text = fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{}: {error}", path(name).display()));
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let bytes =
        lines.flat_map(|line| line.split(' ')).map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect();
    (text, bytes)
}

#[test]
fn our_bytes_are_those_of_nft() {
    let mut found = (0, 0);
    for case in cases() {
        let (_, recorded) = read_recorded(&case.name);
        let (ours, slots) = differences::with_nfts_slots(plain_messages(case.batch.bytes()));
        let (theirs, maps) = differences::with_our_named_types(plain_messages(&recorded));
        found = (found.0 + slots, found.1 + maps);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{}", case.name);
        }
        assert_eq!(ours.len(), theirs.len(), "{}: number of messages", case.name);
        assert!(!ours.is_empty(), "{}", case.name);
    }
    // In both families: one key with a slot in `sets`, one in `single-keys`, two in `lookups`; three maps to verdicts and
    // three to kinds in `sets`, one of each in `lookups`.
    assert_eq!(found, (2 * 4, 2 * 8), "the types of slots, and of maps, that differ from nft's");
}

#[test]
fn no_recording_is_left_over() {
    let mut names: BTreeMap<String, bool> = BTreeMap::new();
    for case in cases() {
        assert!(names.insert(format!("{}.txt", case.name), true).is_none(), "{} twice", case.name);
    }
    for entry in fs::read_dir(path("x").parent().expect("a folder")).expect("the recordings") {
        let name = entry.expect("a recording").file_name().into_string().expect("a name");
        assert!(names.contains_key(&name), "{name} belongs to no case");
    }
}

#[test]
fn the_recordings_are_what_nft_sends() {
    in_network_namespace(|| {
        for case in cases() {
            nft(&["flush", "ruleset"], "");
            nft(&["-f", "-"], &case.setup);
            let output = nft(&["--debug=mnl", "-f", "-"], &case.text);
            let text = render(&case, &read_debug(&output));
            if env::var_os("WIRE_UPDATE").is_some() {
                fs::write(path(&case.name), text).expect("a file that can be written");
            } else {
                assert_eq!(
                    text,
                    read_recorded(&case.name).0,
                    "{}: run with WIRE_UPDATE=1 and look at the change",
                    case.name
                );
            }
        }
    });
}
