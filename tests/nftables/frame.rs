//! Tables of the shapes that the proxy uses: every kind of set, statement and element.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::{Family, Protocol};
use nftproxyd::ruleset::backend::Backend;
use nftproxyd::ruleset::kept::Kept;
use nftproxyd::ruleset::names::{By, ChainName, Masquerade, Pick, SetName};
use nftproxyd::ruleset::read::Remembered;
use nftproxyd::ruleset::types::{
    Chain, Data, DataDef, Element, Hook, HookPoint, Rule, Selector, SetDef, Statement, Value, Verdict,
};

const SLOT: Selector = Selector::RandomSlot { modulus: 2, offset: 0 };

/// All sets. Some are of types that ours had once: they can still be written.
pub(crate) fn sets() -> Vec<SetDef> {
    use Selector::{
        DestinationAddress as Daddr, DestinationPort as Port, HeaderProtocol, L4Proto, SourceAddress as Saddr,
    };
    let set = |name, key: &[Selector], data| SetDef {
        name,
        key: key.to_vec(),
        data,
        interval: false,
        dynamic: false,
        size: None,
        counter: false,
    };
    let endpoint = || DataDef::Values(vec![Daddr, Port]);
    SetName::ALL
        .into_iter()
        .map(|name| match name {
            SetName::ServiceIps
            | SetName::AfterSourceRanges
            | SetName::ClusterPolicy
            | SetName::LocalPolicy
            | SetName::AffinityTimeouts => {
                SetDef { counter: name.is_entry(), ..set(name, &[Daddr, L4Proto, Port], DataDef::Verdict) }
            }
            SetName::ServiceNodeports
            | SetName::NodeportAfterSourceRanges
            | SetName::NodeportClusterPolicy
            | SetName::NodeportLocalPolicy
            | SetName::NodeportAffinityTimeouts => {
                SetDef { counter: name.is_entry(), ..set(name, &[L4Proto, Port], DataDef::Verdict) }
            }
            SetName::Endpoints => set(name, &[Daddr, L4Proto, Port, SLOT], endpoint()),
            SetName::NodeportEndpoints => set(name, &[L4Proto, Port, SLOT], endpoint()),
            SetName::AllowedSources => {
                SetDef { interval: true, ..set(name, &[Daddr, HeaderProtocol, Port, Saddr], DataDef::None) }
            }
            SetName::NodeportAllowedSources => {
                SetDef { interval: true, ..set(name, &[HeaderProtocol, Port, Saddr], DataDef::None) }
            }
            SetName::Affinity => {
                let affinity = set(name, &[Saddr, Daddr, L4Proto, Port], endpoint());
                SetDef { dynamic: true, size: Some(262_144), ..affinity }
            }
            SetName::Dispatch | SetName::DispatchLast | SetName::DispatchAffinity => {
                SetDef { size: Some(4_096), ..set(name, &[Selector::Priority], DataDef::Verdict) }
            }
            SetName::LocalEndpoints => SetDef { size: Some(65_536), ..set(name, &[Saddr], DataDef::None) },
            SetName::NodeportIps | SetName::ClusterIps | SetName::PingIps => set(name, &[Daddr], DataDef::None),
            SetName::Hairpin => set(name, &[Saddr, Daddr], DataDef::None),
            SetName::KeptPorts => set(name, &[Daddr, L4Proto, Port], DataDef::None),
            SetName::NodeportKeptPorts => set(name, &[L4Proto, Port], DataDef::None),
        })
        .collect()
}

/// The name of a plain `pick-N`.
pub(crate) fn pick(slots: u32) -> Pick {
    let (masquerade, by) = (Masquerade::Never, By::Random);
    Pick { nodeport: false, masquerade, sticky: false, local: false, by, slots }
}

/// Chains with every kind of statement; each is created before it is referred to.
pub(crate) fn chains(family: Family) -> Vec<Chain> {
    use Selector::{DestinationAddress as Daddr, DestinationPort as Port, L4Proto};
    let frontend = || vec![Daddr, L4Proto, Port];
    let original = || vec![Selector::OriginalDestination, L4Proto, Selector::OriginalPort];
    let (pods, services): (IpNet, IpNet) = match family {
        Family::V4 => (net("10.124.0.0/16"), net("10.96.0.0/12")),
        Family::V6 => (net("fd00:124::/48"), net("fd00:96::/108")),
    };
    let rule = |statements: &[Statement]| Rule { statements: statements.to_vec(), comment: None };
    let chain = |name, rules: Vec<Rule>| Chain { name, hook: None, rules };
    let base = |name, hook, priority, rules| Chain { name, hook: Some(Hook { hook, priority }), rules };
    let goto = |chain| Statement::Verdict(Verdict::Goto(chain));
    let jump = |chain| Statement::Verdict(Verdict::Jump(chain));
    let outside = |chain| {
        vec![
            rule(&[Statement::SourceIn { net: pods, negated: true }, Statement::SetMark(0x4000)]),
            rule(&[goto(chain)]),
        ]
    };
    let picked = |slots, offset| Selector::RandomSlot { modulus: slots, offset };
    let remember = |protocol| {
        rule(&[
            Statement::L4ProtoIs(protocol),
            Statement::Update {
                map: SetName::Affinity,
                key: vec![Selector::OriginalSource, Selector::OriginalDestination, L4Proto, Selector::OriginalPort],
                timeout: 10_800,
                data: vec![Daddr, Port],
            },
        ])
    };
    let sticky = Pick { sticky: true, ..pick(2) };
    vec![
        chain(
            ChainName::RejectIt,
            vec![rule(&[Statement::L4ProtoIs(Protocol::Tcp), Statement::RejectTcp]), rule(&[Statement::Reject])],
        ),
        chain(
            ChainName::Pick(pick(2)),
            vec![rule(&[Statement::DnatMap {
                key: vec![Daddr, L4Proto, Port, picked(2, 0)],
                map: SetName::Endpoints,
            }])],
        ),
        chain(
            ChainName::Pick(Pick { local: true, ..pick(3) }),
            vec![rule(&[Statement::DnatMap {
                key: vec![Daddr, L4Proto, Port, picked(3, Pick::LOCAL_OFFSET)],
                map: SetName::Endpoints,
            }])],
        ),
        chain(
            ChainName::Pick(Pick { nodeport: true, ..pick(2) }),
            vec![rule(&[Statement::DnatMap {
                key: vec![L4Proto, Port, picked(2, 0)],
                map: SetName::NodeportEndpoints,
            }])],
        ),
        chain(
            ChainName::Pick(sticky),
            vec![
                rule(&[Statement::DnatMap {
                    key: vec![Selector::SourceAddress, Daddr, L4Proto, Port],
                    map: SetName::Affinity,
                }]),
                rule(&[goto(ChainName::Pick(pick(2)))]),
            ],
        ),
        chain(
            ChainName::Pick(Pick { masquerade: Masquerade::FromOutside, ..pick(2) }),
            outside(ChainName::Pick(pick(2))),
        ),
        chain(
            ChainName::Pick(Pick { masquerade: Masquerade::Always, ..pick(2) }),
            vec![rule(&[Statement::SetMark(0x4000), goto(ChainName::Pick(pick(2)))])],
        ),
        chain(ChainName::RememberFor(10_800), vec![remember(Protocol::Tcp), remember(Protocol::Udp)]),
        chain(
            ChainName::Remember,
            vec![rule(&[Statement::VerdictMap { key: original(), map: SetName::AffinityTimeouts }])],
        ),
        chain(
            ChainName::SourceRanges,
            vec![
                rule(&[
                    Statement::InSet {
                        key: vec![Daddr, Selector::HeaderProtocol, Port, Selector::SourceAddress],
                        set: SetName::AllowedSources,
                        negated: true,
                    },
                    Statement::Verdict(Verdict::Drop),
                ]),
                rule(&[Statement::VerdictMap { key: frontend(), map: SetName::AfterSourceRanges }]),
            ],
        ),
        chain(
            ChainName::ExternalLocal,
            vec![
                rule(&[
                    Statement::SourceIn { net: pods, negated: false },
                    Statement::VerdictMap { key: frontend(), map: SetName::ClusterPolicy },
                ]),
                rule(&[Statement::SourceIsLocal, Statement::SetMark(0x4000)]),
                rule(&[
                    Statement::InputInterface { name: "cni0".into(), prefix: false, negated: false },
                    Statement::SetMark(0x4000),
                ]),
                rule(&[
                    Statement::InputInterface { name: "veth".into(), prefix: true, negated: true },
                    Statement::Verdict(Verdict::Drop),
                ]),
                rule(&[Statement::VerdictMap { key: frontend(), map: SetName::LocalPolicy }]),
            ],
        ),
        chain(
            ChainName::Unserved,
            vec![
                Rule {
                    statements: vec![
                        Statement::InSet { key: vec![Daddr], set: SetName::ClusterIps, negated: false },
                        goto(ChainName::RejectIt),
                    ],
                    comment: Some("a port that the ClusterIP does not have"),
                },
                rule(&[Statement::DestinationIsLocal { negated: true }, Statement::Verdict(Verdict::Drop)]),
            ],
        ),
        chain(
            ChainName::Services,
            vec![
                rule(&[Statement::VerdictMap { key: frontend(), map: SetName::ServiceIps }]),
                rule(&[Statement::DestinationIn { net: services, negated: false }, jump(ChainName::Unserved)]),
                rule(&[
                    Statement::DestinationIsLocal { negated: false },
                    Statement::InSet { key: vec![Daddr], set: SetName::NodeportIps, negated: false },
                    Statement::VerdictMap { key: vec![L4Proto, Port], map: SetName::ServiceNodeports },
                ]),
            ],
        ),
        chain(
            ChainName::MasqueradeMarked,
            vec![rule(&[Statement::ClearMark(0x4000), Statement::Masquerade { keep_port: false }])],
        ),
        base(ChainName::NatPrerouting, HookPoint::Prerouting, -100, vec![rule(&[jump(ChainName::Services)])]),
        base(ChainName::NatOutput, HookPoint::Output, -100, vec![rule(&[jump(ChainName::Services)])]),
        base(
            ChainName::NatInput,
            HookPoint::Input,
            99,
            vec![rule(&[Statement::StatusDnat, jump(ChainName::Remember)])],
        ),
        base(
            ChainName::NatPostrouting,
            HookPoint::Postrouting,
            99,
            vec![
                rule(&[Statement::MarkHas(0x4000), jump(ChainName::MasqueradeMarked)]),
                rule(&[
                    Statement::InSet {
                        key: vec![Selector::SourceAddress, Daddr],
                        set: SetName::Hairpin,
                        negated: false,
                    },
                    Statement::Masquerade { keep_port: false },
                ]),
            ],
        ),
    ]
}

/// Elements for all sets but the dynamic one.
pub(crate) fn elements(family: Family) -> Vec<(SetName, Vec<Element>)> {
    let vip = |n| address(family, 96, n);
    let pod = |n| address(family, 124, n);
    let tcp = Value::Protocol(Protocol::Tcp);
    let plain = |key: &[Value], data| Element { key: key.into(), key_end: None, data, comment: None };
    let goto = |chain| Data::Verdict(Verdict::Goto(chain));
    let endpoint = |n| Data::Values([pod(n), Value::Port(8080)].as_slice().into());
    let commented = |mut element: Element, comment: &str| {
        element.comment = Some(comment.into());
        element
    };
    let pick_2 = || goto(ChainName::Pick(pick(2)));
    let first = [vip(1), tcp, Value::Port(80)];
    let nodeport = [Value::Protocol(Protocol::Udp), Value::Port(30_080)];
    vec![
        (
            SetName::ServiceIps,
            vec![
                commented(plain(&first, pick_2()), "default/web:http"),
                plain(&[vip(2), tcp, Value::Port(80)], goto(ChainName::RejectIt)),
                commented(plain(&[vip(3), tcp, Value::Port(80)], Data::Verdict(Verdict::Drop)), &"long".repeat(32)),
                plain(&[vip(4), Value::Protocol(Protocol::Sctp), Value::Port(65_535)], goto(ChainName::SourceRanges)),
            ],
        ),
        (SetName::ServiceNodeports, vec![commented(plain(&nodeport, pick_2()), "default/web:http")]),
        (
            SetName::Endpoints,
            (0..3).map(|slot| plain(&[first[0], first[1], first[2], Value::Slot(slot)], endpoint(slot))).collect(),
        ),
        (
            SetName::NodeportEndpoints,
            (0..3).map(|slot| plain(&[nodeport[0], nodeport[1], Value::Slot(slot)], endpoint(slot))).collect(),
        ),
        (
            SetName::AllowedSources,
            vec![Element {
                key_end: Some([first[0], first[1], first[2], address(family, 125, 0xffff)].as_slice().into()),
                ..plain(&[first[0], first[1], first[2], address(family, 125, 0)], Data::None)
            }],
        ),
        (SetName::AfterSourceRanges, vec![plain(&first, pick_2())]),
        (SetName::ClusterPolicy, vec![plain(&first, pick_2())]),
        (SetName::LocalPolicy, vec![plain(&first, Data::Verdict(Verdict::Drop))]),
        (SetName::AffinityTimeouts, vec![plain(&first, goto(ChainName::RememberFor(10_800)))]),
        (SetName::NodeportIps, vec![plain(&[address(family, 125, 1)], Data::None)]),
        (SetName::ClusterIps, (1..5).map(|n| plain(&[vip(n)], Data::None)).collect()),
        (SetName::Hairpin, vec![plain(&[pod(1), pod(1)], Data::None), plain(&[pod(2), pod(2)], Data::None)]),
    ]
}

/// The whole table.
pub(crate) fn whole(family: Family) -> Transaction {
    let mut operations = vec![Operation::AddTable];
    operations.extend(sets().into_iter().map(Operation::AddSet));
    operations.extend(chains(family).into_iter().map(Operation::AddChain));
    operations.extend(chains(family).into_iter().map(Operation::AddRules));
    operations.extend(elements(family).into_iter().map(|(set, elements)| Operation::AddElements(set, elements)));
    Transaction { family, operations }
}

/// A client that the kernel remembers.
pub(crate) fn client(family: Family, nth: u16) -> Kept {
    let ip = |net, host| match address(family, net, host) {
        Value::Address(address) => address,
        other => panic!("{other:?}"),
    };
    let port = NonZeroU16::MIN;
    let backend = Backend { address: ip(124, 1), port };
    let (client, destination) = (ip(20, nth.into()), ip(96, 1));
    let hour = Duration::from_secs(3_600);
    let client = Remembered { client, destination, protocol: Protocol::Tcp, port, backend };
    Kept { client, timeout: hour, expires: hour }
}

/// An address: 10.NET.x.y or fd00:NET::xxxx.
pub(crate) fn address(family: Family, net: u8, host: u32) -> Value {
    let address: IpAddr = match family {
        Family::V4 => {
            let [_, x, y, z] = host.to_be_bytes();
            [10, net.wrapping_add(x), y, z].into()
        }
        Family::V6 => {
            let net = u16::from_str_radix(&net.to_string(), 16).unwrap_or_default();
            [0xfd00, net, 0, 0, 0, 0, (host >> 16) as u16, host as u16].into()
        }
    };
    Value::Address(address)
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// An element of `service-ips`: port 80 of the n-th address.
pub(crate) fn service(family: Family, n: u32, verdict: Verdict) -> Element {
    let key = [address(family, 96, n), Value::Protocol(Protocol::Tcp), Value::Port(80)];
    Element { key: key.as_slice().into(), key_end: None, data: Data::Verdict(verdict), comment: None }
}
