//! Chains, read back from the bytes that make them.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::diff::{Operation, Transaction};
use crate::model::Protocol;
use crate::netlink::messages;
use crate::nftables::encode::{Encoder, encode};
use crate::nftables::uapi::msg;
use crate::ruleset::base::{self, Detector, FrameFacts, NodePortScope};
use crate::ruleset::extras::Extras;
use crate::ruleset::names::{By, Masquerade, Pick, SetName, TableName};
use crate::ruleset::types::{Selector, Statement, Verdict};
use crate::sys::Expression;

/// Reads the chains and rules of a batch, as if the kernel had sent it.
fn read(bytes: &[u8], family: Family) -> Vec<Result<Chain, Unread>> {
    let mut found = Found::default();
    for kind in [msg::NEWCHAIN, msg::NEWRULE] {
        for message in messages(bytes).map_while(Result::ok).filter(|message| message.nftables() == Some(kind)) {
            if kind == msg::NEWCHAIN { found.chain(&message) } else { found.rule(family, &message) }
        }
    }
    found.into_chains()
}

fn batch(family: Family, chains: &[Chain]) -> Vec<u8> {
    let add = |chain: &Chain| [Operation::AddChain(chain.clone()), Operation::AddRules(chain.clone())];
    let operations = chains.iter().flat_map(add).collect();
    let batch =
        encode(TableName::NODE, &Transaction { family, operations }, 1, false).expect("chains that can be encoded");
    batch.bytes().to_vec()
}

/// What is read of these chains if nothing is lost: the kernel gives no comments, and chains by name.
fn as_read(mut chains: Vec<Chain>) -> Vec<Result<Chain, Unread>> {
    chains.sort_by_key(|chain| chain.name.to_string());
    chains.iter_mut().flat_map(|chain| &mut chain.rules).for_each(|rule| rule.comment = None);
    chains.into_iter().map(Ok).collect()
}

fn net(family: Family) -> BoxedStrategy<IpNet> {
    let net = |address: IpAddr, length| IpNet::new(address, length).expect("a range").trunc();
    match family {
        Family::V4 => (any::<[u8; 4]>(), 0..=32_u8).prop_map(move |(bytes, length)| net(bytes.into(), length)).boxed(),
        Family::V6 => {
            (any::<[u8; 16]>(), 0..=128_u8).prop_map(move |(bytes, length)| net(bytes.into(), length)).boxed()
        }
    }
}

fn facts() -> impl Strategy<Value = FrameFacts> {
    select(Family::ALL.to_vec()).prop_flat_map(|family| {
        let detector = prop_oneof![
            net(family).prop_map(Detector::Source),
            "[a-z0-9.-]{1,15}".prop_map(|name| Detector::Interface(name.as_str().into())),
            "[a-z0-9.-]{1,15}".prop_map(|name| Detector::InterfacePrefix(name.as_str().into())),
        ];
        let flags = any::<[bool; 7]>();
        let scope = select(vec![NodePortScope::All, NodePortScope::Listed]);
        let cidrs = prop::collection::vec(net(family), 0..3);
        let node_ip = prop::option::of(net(family).prop_map(|net| net.addr()));
        (prop::option::of(detector), 0..32_u32, cidrs, scope, flags, node_ip).prop_map(
            move |(
                detector,
                bit,
                service_cidrs,
                node_ports,
                [masquerade_all, stray_cluster_ips, affinity, keeps_ports, counters, nodeport_ranges, ping],
                node_ip,
            )| {
                FrameFacts {
                    table: TableName::NODE,
                    family,
                    detector,
                    mark: 1 << bit,
                    masquerade_all,
                    service_cidrs,
                    node_ports,
                    stray_cluster_ips,
                    affinity,
                    keeps_ports,
                    counters,
                    extras: Extras { nodeport_ranges, ping },
                    node_ip,
                }
            },
        )
    })
}

/// Every chain that picks among so many slots.
fn picks(slots: u32) -> Vec<ChainName> {
    let mut all = Vec::new();
    let by = [By::Random, By::Source, By::SourceAndPort, By::Destination, By::Maglev, By::MaglevAndPort, By::Turn(7)];
    for by in by {
        for masquerade in [Masquerade::Never, Masquerade::FromOutside, Masquerade::Always] {
            for flags in 0..8 {
                let [nodeport, sticky, local] = [1, 2, 4].map(|bit| flags & bit != 0);
                all.push(ChainName::Pick(Pick { nodeport, masquerade, sticky, local, by, slots }));
            }
        }
    }
    all
}

/// A chain with every statement that there is, in forms that the frame has none of.
fn odd_chain() -> Chain {
    let rule = |statements: &[Statement]| Rule { statements: statements.to_vec(), comment: None };
    let everything = vec![Selector::OriginalSource, Selector::HeaderProtocol, Selector::ReplyPort, Selector::Priority];
    let map = SetName::LocalPolicy;
    let rules = vec![
        rule(&[Statement::L4ProtoIs(Protocol::Sctp), Statement::RejectTcp]),
        rule(&[Statement::DestinationIsLocal { negated: false }, Statement::Verdict(Verdict::Drop)]),
        rule(&[Statement::InSet { key: everything.clone(), set: map, negated: true }]),
        rule(&[Statement::VerdictMap { key: everything.clone(), map }]),
        rule(&[Statement::PriorityFromMap { key: everything.clone(), map }, Statement::Reject]),
        rule(&[
            Statement::Update { map, key: everything.clone(), timeout: 5, data: vec![Selector::ReplySource] },
            Statement::Priority { value: 7, negated: false },
        ]),
        rule(&[Statement::Masquerade { keep_port: true }]),
        rule(&[]),
        rule(&[Statement::Verdict(Verdict::Jump(ChainName::RejectIt))]),
    ];
    Chain { name: ChainName::Services, hook: None, rules }
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    #[test]
    fn every_chain_is_read_back(facts in facts(), slots in 1..=Pick::MOST_SLOTS, seconds in 1..100_000_u32) {
        let names = picks(slots).into_iter().chain([ChainName::RememberFor(seconds)]);
        let chains = base::all_chains(names, &facts);
        prop_assert!(chains.len() > 7 * 3 * 8);
        prop_assert_eq!(read(&batch(facts.family, &chains), facts.family), as_read(chains));
    }

    #[test]
    fn damaged_rules_are_harmless(
        facts in facts(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let chains = base::all_chains(picks(3), &facts);
        let mut bytes = batch(facts.family, &chains);
        for (index, byte) in damage {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        for family in Family::ALL {
            read(&bytes, family);
            read(&bytes[..cut.index(bytes.len())], family);
        }
    }

    #[test]
    fn a_damaged_rule_is_never_read_as_it_was(
        facts in facts(),
        place in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let (family, frame) = (facts.family, base::frame(&facts));
        let services = frame.chains.into_iter().filter(|chain| chain.name == ChainName::NatPostrouting).collect::<Vec<_>>();
        let whole = batch(family, &services);
        // Past the length of the attribute that holds the expressions: what is in it is what the rule does.
        let last = messages(&whole).map_while(Result::ok).filter(|it| it.nftables() == Some(msg::NEWRULE)).last();
        let expressions = find(last.expect("a rule").attributes(), uapi::NFTA_RULE_EXPRESSIONS).expect("it has some");
        let start = expressions.value.as_ptr() as usize - whole.as_ptr() as usize;
        let mut bytes = whole.clone();
        let at = start + place.index(expressions.value.len());
        bytes[at] ^= flip;
        let again = read(&bytes, family);
        let same = again == as_read(services);
        // What pads, the flags of attributes, and a register's second name change nothing.
        let says_nothing = same && (!is_meant(&whole, at) || is_other_name(whole[at], bytes[at]));
        prop_assert!(!same || says_nothing, "byte {at} was ignored");
    }

    #[test]
    fn random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for family in Family::ALL {
            for kind in [msg::NEWCHAIN, msg::NEWRULE] {
                let kind = uapi::SUBSYSTEM | kind;
                let message = Message { kind, flags: 0, sequence: 0, port: 0, payload: &bytes };
                let mut found = Found::default();
                found.chain(&message);
                found.rule(family, &message);
                expressions(crate::netlink::Attributes::new(&bytes, 0));
            }
        }
    }
}

/// Whether both are numbers of one register: `NFT_REG_1` to `NFT_REG_4` are each the first of four of 4 bytes.
fn is_other_name(one: u8, other: u8) -> bool {
    let of_four_bytes = |register: u8| 4 + 4 * register;
    let names = |a, b| (1..=4).contains(&a) && b == of_four_bytes(a);
    names(one, other) || names(other, one)
}

/// Whether a byte is a part of an attribute's value that holds no others, or of its type.
fn is_meant(bytes: &[u8], at: usize) -> bool {
    fn within(attributes: crate::netlink::Attributes<'_>, base: usize, at: usize) -> bool {
        attributes.map_while(Result::ok).any(|attribute| {
            let start = attribute.value.as_ptr() as usize - base;
            let inside = (start..start + attribute.value.len()).contains(&at);
            inside && if attribute.nested { within(attribute.attributes(), base, at) } else { true }
        })
    }
    messages(bytes).map_while(Result::ok).any(|message| within(message.attributes(), bytes.as_ptr() as usize, at))
}

#[test]
fn every_statement_is_read_back() {
    for family in Family::ALL {
        let chains = vec![odd_chain()];
        assert_eq!(read(&batch(family, &chains), family), as_read(chains));
    }
}

#[test]
fn what_is_not_understood_is_named() {
    let family = Family::V4;
    let mut encoder = Encoder::new(family, "nftproxyd", 0);
    let hook = |hook| Some(Hook { hook, priority: -7 });
    encoder.add_chain(0, "nat-output", hook(HookPoint::Output));
    encoder.add_chain(0, "strange\n", None);
    encoder.add_chain(0, "services", None);
    encoder.add_chain(0, "unserved", None);
    let drop = || Expression::Verdict { code: uapi::NF_DROP, chain: None };
    let accept = || Expression::Verdict { code: uapi::NF_ACCEPT, chain: None };
    encoder.add_rule(0, 0, c"services", None, &[drop()]);
    encoder.add_rule(0, 1, c"services", None, &[Expression::Counter { packets: 0, bytes: 0 }, drop()]);
    encoder.add_rule(0, 2, c"services", None, &[accept()]);
    let to = |name: &std::ffi::CStr| Expression::Verdict { code: uapi::NFT_GOTO, chain: Some(name.into()) };
    encoder.add_rule(0, 0, c"unserved", None, &[to(c"services")]);
    encoder.add_rule(0, 0, c"unserved", Some("a comment"), &[Expression::Masquerade { flags: 1 << 3 }]);
    let chains = read(encoder.finish().bytes(), family);
    let said: Vec<String> = chains
        .iter()
        .map(|chain| match chain {
            Ok(chain) => format!("{} {:?}", chain.name, chain.hook.map(|hook| hook.priority)),
            Err(unread) => {
                assert!(unread.to_string().contains(&*printable(unread.chain())));
                unread.to_string()
            }
        })
        .collect();
    let expected = [
        "nat-output Some(-7)",
        "chain services, rule 2: expression 1 (counter) is not understood",
        "chain strange\\n is none of nftproxyd's",
        "chain unserved, rule 2: expression 1 (masq) is not understood",
    ];
    assert_eq!(said, expected);
}

#[test]
fn a_chain_that_is_attached_otherwise_is_none_of_ours() {
    let chain = |kind: &[u8], hook: u32, priority: i32, policy: u32| {
        let text = |text: &[u8]| [text, &[0]].concat();
        let bytes = crate::netlink::Builder::message(uapi::SUBSYSTEM | msg::NEWCHAIN, 0, 0, &[2, 0, 0, 0])
            .attribute(uapi::NFTA_CHAIN_NAME, &text(b"nat-input"))
            .nested(uapi::NFTA_CHAIN_HOOK, |attached| {
                let attached = attached.attribute(uapi::NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
                attached.attribute(uapi::NFTA_HOOK_PRIORITY, &priority.to_be_bytes())
            })
            .attribute(uapi::NFTA_CHAIN_POLICY, &policy.to_be_bytes())
            .attribute(uapi::NFTA_CHAIN_TYPE, &text(kind))
            .finish();
        let mut chains = read(&bytes, Family::V4);
        chains.pop().expect("it is there").map(|chain| chain.hook).map_err(|unread| unread.to_string())
    };
    let input = Some(Hook { hook: HookPoint::Input, priority: -5 });
    assert_eq!(chain(b"nat", 1, -5, uapi::NF_ACCEPT), Ok(input));
    let refused = [
        (chain(b"filter", 1, 99, uapi::NF_ACCEPT), "its type is filter, not nat"),
        (chain(b"nat", 2, 99, uapi::NF_ACCEPT), "its hook is none of type nat"),
        (chain(b"nat", 1, 99, uapi::NF_DROP), "its policy is not accept"),
    ];
    for (chain, why) in refused {
        assert_eq!(chain, Err(format!("chain nat-input: {why}")));
    }
}
