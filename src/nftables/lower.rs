//! From a rule's statements to the expressions that nft 1.0.6 makes of the same text. The kernel would accept other
//! shapes, but nft could not list them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::numbers::{c_name, protocol_family, verdict};
use super::uapi;
use crate::model::Family;
use crate::ruleset::hash::HASH_SEED;
use crate::ruleset::types::{Hashed, Rule, Selector, Statement};
use crate::sys::{Bytes, Comparison, Expression, Lookup, PayloadBase, Register, RejectWith};

/// The number of bytes that a part of a key has: those that count, without the padding to 4.
pub(super) fn length(family: Family, expr: Selector) -> usize {
    match expr {
        Selector::SourceAddress
        | Selector::DestinationAddress
        | Selector::OriginalSource
        | Selector::OriginalDestination
        | Selector::ReplySource => address_length(family),
        Selector::L4Proto | Selector::HeaderProtocol => 1,
        Selector::DestinationPort | Selector::OriginalPort | Selector::ReplyPort => 2,
        Selector::Priority | Selector::RandomSlot { .. } | Selector::NextSlot { .. } | Selector::HashedSlot { .. } => 4,
    }
}

/// The expressions of a rule.
pub(super) fn lower_rule(family: Family, rule: &Rule) -> Vec<Expression> {
    rule.statements.iter().flat_map(|statement| lower(family, statement)).collect()
}

/// The expressions of one statement. Every statement begins anew with the first register.
pub(super) fn lower(family: Family, statement: &Statement) -> Vec<Expression> {
    let first = Register::FIRST;
    match statement {
        Statement::SourceIn { net, negated } => address_in(family, true, net, *negated),
        Statement::DestinationIn { net, negated } => address_in(family, false, net, *negated),
        Statement::InputInterface { name, prefix, negated } => {
            let mut data = Bytes::from_slice(name.as_bytes());
            if !prefix {
                data.resize(uapi::IFNAMSIZ, 0);
            }
            vec![
                Expression::MetaLoad { key: uapi::meta::IIFNAME, dreg: first },
                Expression::Cmp { sreg: first, comparison: equal_unless(*negated), data },
            ]
        }
        Statement::L4ProtoIs(protocol) => vec![
            Expression::MetaLoad { key: uapi::meta::L4PROTO, dreg: first },
            compare(first, Comparison::Equal, &[protocol.number()]),
        ],
        Statement::EchoRequest => {
            let (protocol, kind) = uapi::ECHO_REQUEST[usize::from(family == Family::V6)];
            vec![
                Expression::MetaLoad { key: uapi::meta::L4PROTO, dreg: first },
                compare(first, Comparison::Equal, &[protocol]),
                Expression::Payload { base: PayloadBase::Transport, offset: 0, len: 1, dreg: first },
                compare(first, Comparison::Equal, &[kind]),
            ]
        }
        Statement::SourceIsLocal => address_is_local(false, false),
        Statement::DestinationIsLocal { negated } => address_is_local(true, *negated),
        Statement::StatusDnat => {
            has_bits(Expression::Ct { key: uapi::ct::STATUS, direction: None, dreg: first }, uapi::IPS_DST_NAT)
        }
        Statement::DirectionOriginal => vec![
            Expression::Ct { key: uapi::ct::DIRECTION, direction: None, dreg: first },
            compare(first, Comparison::Equal, &[uapi::ct::ORIGINAL]),
        ],
        Statement::Priority { value, negated } => vec![
            Expression::MetaLoad { key: uapi::meta::PRIORITY, dreg: first },
            compare(first, equal_unless(*negated), &value.to_ne_bytes()),
        ],
        Statement::SetPriority(value) => vec![
            Expression::Immediate { dreg: first, data: Bytes::from_slice(&value.to_ne_bytes()) },
            Expression::MetaSet { key: uapi::meta::PRIORITY, sreg: first },
        ],
        Statement::PriorityFromMap { key, map } => {
            let lookup = Expression::Lookup { set: c_name(map.as_str()), sreg: first, lookup: Lookup::Data(first) };
            let mut expressions = load_and(family, key, lookup);
            expressions.push(Expression::MetaSet { key: uapi::meta::PRIORITY, sreg: first });
            expressions
        }
        Statement::MarkHas(bits) => has_bits(Expression::MetaLoad { key: uapi::meta::MARK, dreg: first }, *bits),
        Statement::SetMark(bits) => change_mark(!bits, *bits),
        Statement::ClearMark(bits) => change_mark(!bits, 0),
        Statement::InSet { key, set, negated } => {
            let lookup = if *negated { Lookup::NotIn } else { Lookup::In };
            load_and(family, key, Expression::Lookup { set: c_name(set.as_str()), sreg: first, lookup })
        }
        Statement::VerdictMap { key, map } => load_and(
            family,
            key,
            Expression::Lookup { set: c_name(map.as_str()), sreg: first, lookup: Lookup::Verdict },
        ),
        Statement::DnatMap { key, map } => {
            let lookup = Expression::Lookup { set: c_name(map.as_str()), sreg: first, lookup: Lookup::Data(first) };
            let mut expressions = load_and(family, key, lookup);
            let port = Some(first.after(address_length(family)));
            expressions.push(Expression::Dnat { family: protocol_family(family), address: first, port });
            expressions
        }
        Statement::DnatTo(address) => {
            let data = match address {
                IpAddr::V4(address) => Bytes::from_slice(&address.octets()),
                IpAddr::V6(address) => Bytes::from_slice(&address.octets()),
            };
            vec![
                Expression::Immediate { dreg: first, data },
                Expression::Dnat { family: protocol_family(family), address: first, port: None },
            ]
        }
        Statement::Update { map, key, timeout, data } => {
            // nft 1.0.6 keeps 16 bytes for the key, which is right for IPv4 and aborts for IPv6. So IPv6 cannot be
            // compared with nft's bytecode; the data goes after the key in both families.
            let mut expressions = Vec::with_capacity(key.len() + data.len() + 1);
            let data_register = load(family, key, first, &mut expressions);
            load(family, data, data_register, &mut expressions);
            let timeout_ms = u64::from(*timeout) * 1000;
            expressions.push(Expression::Update {
                set: c_name(map.as_str()),
                key: first,
                data: data_register,
                timeout_ms,
            });
            expressions
        }
        Statement::Masquerade { keep_port } => {
            vec![Expression::Masquerade { flags: if *keep_port { 0 } else { uapi::NAT_RANDOM_FULLY } }]
        }
        Statement::RejectTcp => vec![Expression::Reject(RejectWith::TcpReset)],
        // ICMP_PORT_UNREACH and ICMPV6_PORT_UNREACH.
        Statement::Reject => vec![Expression::Reject(RejectWith::Icmp(match family {
            Family::V4 => 3,
            Family::V6 => 4,
        }))],
        Statement::Verdict(decision) => {
            let (code, chain) = verdict(*decision);
            vec![Expression::Verdict { code, chain }]
        }
    }
}

fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// Where an address is in the IP header.
pub(super) fn address_offset(family: Family, source: bool) -> u32 {
    match (family, source) {
        (Family::V4, true) => 12,
        (Family::V4, false) => 16,
        (Family::V6, true) => 8,
        (Family::V6, false) => 24,
    }
}

fn equal_unless(negated: bool) -> Comparison {
    if negated { Comparison::NotEqual } else { Comparison::Equal }
}

fn compare(sreg: Register, comparison: Comparison, data: &[u8]) -> Expression {
    Expression::Cmp { sreg, comparison, data: Bytes::from_slice(data) }
}

/// A prefix of whole bytes is compared by loading only those; any other needs a mask.
fn address_in(family: Family, source: bool, net: &IpNet, negated: bool) -> Vec<Expression> {
    let network: Bytes = match net.network() {
        IpAddr::V4(address) => Bytes::from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::from_slice(&address.octets()),
    };
    let mask: Bytes = match net.netmask() {
        IpAddr::V4(mask) => Bytes::from_slice(&mask.octets()),
        IpAddr::V6(mask) => Bytes::from_slice(&mask.octets()),
    };
    let first = Register::FIRST;
    let offset = address_offset(family, source);
    let load = |len: usize| Expression::Payload { base: PayloadBase::Network, offset, len: len as u32, dreg: first };
    let bits = usize::from(net.prefix_len());
    if bits > 0 && bits.is_multiple_of(8) {
        let data = &network[..bits / 8];
        return vec![load(data.len()), compare(first, equal_unless(negated), data)];
    }
    let xor = Bytes::from_elem(0, mask.len());
    vec![
        load(network.len()),
        Expression::Bitwise { sreg: first, dreg: first, mask, xor },
        compare(first, equal_unless(negated), &network),
    ]
}

fn address_is_local(destination: bool, negated: bool) -> Vec<Expression> {
    let first = Register::FIRST;
    vec![
        Expression::FibType { destination, dreg: first },
        compare(first, equal_unless(negated), &uapi::RTN_LOCAL.to_ne_bytes()),
    ]
}

fn has_bits(load: Expression, bits: u32) -> Vec<Expression> {
    let first = Register::FIRST;
    vec![load, mask_and_flip(bits, 0), compare(first, Comparison::NotEqual, &[0; 4])]
}

fn change_mark(mask: u32, xor: u32) -> Vec<Expression> {
    let first = Register::FIRST;
    vec![
        Expression::MetaLoad { key: uapi::meta::MARK, dreg: first },
        mask_and_flip(mask, xor),
        Expression::MetaSet { key: uapi::meta::MARK, sreg: first },
    ]
}

fn mask_and_flip(mask: u32, xor: u32) -> Expression {
    Expression::Bitwise {
        sreg: Register::FIRST,
        dreg: Register::FIRST,
        mask: Bytes::from_slice(&mask.to_ne_bytes()),
        xor: Bytes::from_slice(&xor.to_ne_bytes()),
    }
}

fn load_and(family: Family, key: &[Selector], then: Expression) -> Vec<Expression> {
    let mut expressions = Vec::with_capacity(key.len() + 2);
    load(family, key, Register::FIRST, &mut expressions);
    expressions.push(then);
    expressions
}

/// Loads a concatenation, each part on a whole number of 4-byte registers. Returns the next free register.
fn load(family: Family, key: &[Selector], from: Register, out: &mut Vec<Expression>) -> Register {
    key.iter().fold(from, |dreg, expr| {
        if let Selector::HashedSlot { of, modulus, offset } = *expr {
            // Where nft has it: beyond the key, of which this is the last part, and 16 bytes more.
            let sreg = dreg.after(4 + 16);
            let (address, with_port) = match of {
                Hashed::Source => (Selector::SourceAddress, false),
                Hashed::SourceAndPort => (Selector::SourceAddress, true),
                Hashed::Destination => (Selector::DestinationAddress, false),
            };
            out.push(load_one(family, address, sreg));
            let mut len = length(family, address);
            if with_port {
                let (base, dreg) = (PayloadBase::Transport, sreg.after(len));
                out.push(Expression::Payload { base, offset: 0, len: 2, dreg });
                len += 4;
            }
            let (len, seed) = (len as u32, Some(HASH_SEED));
            out.push(Expression::Hash { sreg, dreg, len, modulus, seed, offset });
        } else {
            out.push(load_one(family, *expr, dreg));
        }
        dreg.after(length(family, *expr))
    })
}

/// The expression that loads a value into a register; slots by a hash take several.
pub(super) fn load_one(family: Family, expr: Selector, dreg: Register) -> Expression {
    let payload = |base, offset| Expression::Payload { base, offset, len: length(family, expr) as u32, dreg };
    let original = |key| Expression::Ct { key, direction: Some(uapi::ct::ORIGINAL), dreg };
    let reply = |key| Expression::Ct { key, direction: Some(uapi::ct::REPLY), dreg };
    match expr {
        Selector::SourceAddress => payload(PayloadBase::Network, address_offset(family, true)),
        Selector::DestinationAddress => payload(PayloadBase::Network, address_offset(family, false)),
        Selector::L4Proto => Expression::MetaLoad { key: uapi::meta::L4PROTO, dreg },
        Selector::HeaderProtocol => payload(PayloadBase::Network, if family == Family::V4 { 9 } else { 6 }),
        Selector::DestinationPort => payload(PayloadBase::Transport, 2),
        Selector::Priority => Expression::MetaLoad { key: uapi::meta::PRIORITY, dreg },
        Selector::RandomSlot { modulus, offset } => Expression::Number { dreg, random: true, modulus, offset },
        Selector::NextSlot { modulus, offset } => Expression::Number { dreg, random: false, modulus, offset },
        // Of several expressions: see `load`.
        Selector::HashedSlot { .. } => unreachable!("hashed slots are loaded by `load`"),
        Selector::OriginalSource => original(if family == Family::V4 { uapi::ct::SRC_IP } else { uapi::ct::SRC_IP6 }),
        Selector::OriginalDestination => {
            original(if family == Family::V4 { uapi::ct::DST_IP } else { uapi::ct::DST_IP6 })
        }
        Selector::OriginalPort => original(uapi::ct::PROTO_DST),
        Selector::ReplySource => reply(if family == Family::V4 { uapi::ct::SRC_IP } else { uapi::ct::SRC_IP6 }),
        Selector::ReplyPort => reply(uapi::ct::PROTO_SRC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::names::SetName;

    /// nft 1.0.6 cannot make this rule for IPv6 at all, so there are no bytes to compare with.
    #[test]
    fn the_data_of_an_update_follows_its_key() {
        let statement = Statement::Update {
            map: SetName::Affinity,
            key: vec![
                Selector::OriginalSource,
                Selector::OriginalDestination,
                Selector::L4Proto,
                Selector::OriginalPort,
            ],
            timeout: 60,
            data: vec![Selector::DestinationAddress, Selector::DestinationPort],
        };
        // The numbers of the registers that the parts of the key, and then of the data, are loaded into.
        for (family, expected) in [(Family::V4, [1, 9, 10, 11, 2, 13]), (Family::V6, [1, 2, 3, 17, 18, 22])] {
            let expressions = lower(family, &statement);
            let registers: Vec<u32> = expressions
                .iter()
                .filter_map(|expression| match expression {
                    Expression::Payload { dreg, .. }
                    | Expression::MetaLoad { dreg, .. }
                    | Expression::Ct { dreg, .. } => Some(dreg.number()),
                    _ => None,
                })
                .collect();
            assert_eq!(registers, expected);
            let last = expressions.last().expect("an update");
            assert!(
                matches!(last, Expression::Update { key, data, timeout_ms: 60_000, .. }
                    if key.number() == 1 && data.number() == expected[4]),
                "{last:?}"
            );
        }
    }
}
