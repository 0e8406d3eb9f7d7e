//! From a rule's expressions back to its statements: the inverse of [`super::lower`]. Pure, and total.
//!
//! What a few expressions look like is lowered again, and has to give those very expressions: a rule is understood whole,
//! or not at all.

use std::net::IpAddr;

use ipnet::IpNet;

use super::lower::{self, lower};
use super::uapi;
use crate::model::{Family, Protocol};
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::types::{Hashed, Selector, Statement, Verdict};
use crate::sys::{Bytes, CName, Comparison, Expression, Lookup, PayloadBase, Register, RejectWith};

/// The statements that these expressions are made of.
///
/// # Errors
/// The position of an expression that is not understood.
pub(super) fn raise(family: Family, expressions: &[Expression]) -> Result<Vec<Statement>, usize> {
    let mut statements = Vec::new();
    let mut at = 0;
    while let Some(rest) = expressions.get(at..).filter(|rest| !rest.is_empty()) {
        let statement = resembles(family, rest).ok_or(at)?;
        let again = lower(family, &statement);
        if again.is_empty() || !rest.starts_with(&again) {
            return Err(at);
        }
        at += again.len();
        statements.push(statement);
    }
    Ok(statements)
}

/// The statement that expressions may begin with. What it says is checked by lowering it again.
fn resembles(family: Family, expressions: &[Expression]) -> Option<Statement> {
    if let Some(statement) = with_key(family, expressions) {
        return Some(statement);
    }
    match expressions {
        [Expression::Payload { offset, .. }, Expression::Cmp { comparison, data, .. }, ..] => {
            let prefix_length = u8::try_from(data.len() * 8).ok()?;
            in_net(family, *offset, data, prefix_length, *comparison)
        }
        [
            Expression::Payload { offset, .. },
            Expression::Bitwise { mask, .. },
            Expression::Cmp { comparison, data, .. },
            ..,
        ] => {
            let prefix_length = ipnet::ip_mask_to_prefix(address(family, mask)?).ok()?;
            in_net(family, *offset, data, prefix_length, *comparison)
        }
        [
            Expression::MetaLoad { key: uapi::meta::L4PROTO, .. },
            Expression::Cmp { .. },
            Expression::Payload { base: PayloadBase::Transport, len: 1, .. },
            Expression::Cmp { .. },
            ..,
        ] => Some(Statement::EchoRequest),
        [Expression::MetaLoad { key, .. }, Expression::Cmp { comparison, data, .. }, ..] => {
            let negated = *comparison == Comparison::NotEqual;
            match *key {
                uapi::meta::IIFNAME => {
                    let prefix = data.len() < uapi::IFNAMSIZ;
                    let name = std::str::from_utf8(data).ok()?.trim_end_matches('\0').into();
                    Some(Statement::InputInterface { name, prefix, negated })
                }
                uapi::meta::L4PROTO => Protocol::from_number(*data.first()?).map(Statement::L4ProtoIs),
                uapi::meta::PRIORITY => Some(Statement::Priority { value: number(data)?, negated }),
                _ => None,
            }
        }
        [Expression::FibType { destination, .. }, Expression::Cmp { comparison, .. }, ..] => Some(match destination {
            true => Statement::DestinationIsLocal { negated: *comparison == Comparison::NotEqual },
            false => Statement::SourceIsLocal,
        }),
        [Expression::Ct { .. }, Expression::Cmp { .. }, ..] => Some(Statement::DirectionOriginal),
        [Expression::Ct { .. }, Expression::Bitwise { .. }, Expression::Cmp { .. }, ..] => Some(Statement::StatusDnat),
        [Expression::MetaLoad { .. }, Expression::Bitwise { mask, .. }, Expression::Cmp { .. }, ..] => {
            Some(Statement::MarkHas(number(mask)?))
        }
        [Expression::MetaLoad { .. }, Expression::Bitwise { mask, xor, .. }, Expression::MetaSet { .. }, ..] => {
            Some(match number(xor)? {
                0 => Statement::ClearMark(!number(mask)?),
                bits => Statement::SetMark(bits),
            })
        }
        [Expression::Immediate { data, .. }, Expression::MetaSet { .. }, ..] => {
            Some(Statement::SetPriority(number(data)?))
        }
        [Expression::Immediate { data, .. }, Expression::Dnat { port: None, .. }, ..] => {
            Some(Statement::DnatTo(address(family, data)?))
        }
        [Expression::Masquerade { flags }, ..] => Some(Statement::Masquerade { keep_port: *flags == 0 }),
        [Expression::Reject(RejectWith::TcpReset), ..] => Some(Statement::RejectTcp),
        [Expression::Reject(RejectWith::Icmp(_)), ..] => Some(Statement::Reject),
        [Expression::Verdict { code, chain }, ..] => {
            let chain = || ChainName::parse(chain.as_ref()?.to_str().ok()?);
            Some(Statement::Verdict(match *code {
                uapi::NF_DROP => Verdict::Drop,
                uapi::NFT_GOTO => Verdict::Goto(chain()?),
                uapi::NFT_JUMP => Verdict::Jump(chain()?),
                _ => return None,
            }))
        }
        _ => None,
    }
}

/// A statement that looks a key up, or writes one.
fn with_key(family: Family, expressions: &[Expression]) -> Option<Statement> {
    let loads = Loads::read(family, expressions);
    let key = || loads.selectors.iter().map(|(_, selector)| *selector).collect::<Vec<_>>();
    match expressions.get(loads.length..)? {
        [Expression::Lookup { set, lookup, .. }, rest @ ..] => {
            let name = set_name(set)?;
            Some(match (lookup, rest) {
                (Lookup::In, _) => Statement::InSet { key: key(), set: name, negated: false },
                (Lookup::NotIn, _) => Statement::InSet { key: key(), set: name, negated: true },
                (Lookup::Verdict, _) => Statement::VerdictMap { key: key(), map: name },
                (Lookup::Data(_), [Expression::Dnat { .. }, ..]) => Statement::DnatMap { key: key(), map: name },
                (Lookup::Data(_), _) => Statement::PriorityFromMap { key: key(), map: name },
            })
        }
        [Expression::Update { set, data, timeout_ms, .. }, ..] => {
            let is_key = |(register, _): &&(Register, Selector)| register < data;
            let of_key = loads.selectors.iter().take_while(is_key).count();
            let all = key();
            let (key, data) = all.split_at_checked(of_key)?;
            let timeout = u32::try_from(timeout_ms / 1000).ok()?;
            Some(Statement::Update { map: set_name(set)?, key: key.to_vec(), timeout, data: data.to_vec() })
        }
        _ => None,
    }
}

/// Values that are loaded into one register after the other, from the first on.
struct Loads {
    /// Each with the register that it begins in.
    selectors: Vec<(Register, Selector)>,
    /// The number of expressions that it takes.
    length: usize,
}

impl Loads {
    /// Those that expressions begin with, as many as there are.
    fn read(family: Family, expressions: &[Expression]) -> Loads {
        let mut loads = Loads { selectors: Vec::new(), length: 0 };
        let mut next = Register::FIRST;
        while let Some(rest) = expressions.get(loads.length..)
            && let Some((selector, length)) = load(family, rest, next)
        {
            loads.selectors.push((next, selector));
            loads.length += length;
            next = next.after(lower::length(family, selector));
        }
        loads
    }
}

/// What is loaded into this register first, and by how many expressions.
fn load(family: Family, expressions: &[Expression], into: Register) -> Option<(Selector, usize)> {
    const OF_ONE: [Selector; 11] = [
        Selector::SourceAddress,
        Selector::DestinationAddress,
        Selector::L4Proto,
        Selector::HeaderProtocol,
        Selector::DestinationPort,
        Selector::Priority,
        Selector::OriginalSource,
        Selector::OriginalDestination,
        Selector::OriginalPort,
        Selector::ReplySource,
        Selector::ReplyPort,
    ];
    let first = expressions.first()?;
    let simple = OF_ONE.into_iter().find(|selector| lower::load_one(family, *selector, into) == *first);
    if let Some(selector) = simple {
        return Some((selector, 1));
    }
    match expressions {
        [Expression::Number { dreg, random, modulus, offset }, ..] if *dreg == into => {
            let (modulus, offset) = (*modulus, *offset);
            let selector = match random {
                true => Selector::RandomSlot { modulus, offset },
                false => Selector::NextSlot { modulus, offset },
            };
            Some((selector, 1))
        }
        [Expression::Payload { offset: at, .. }, Expression::Hash { dreg, modulus, offset, .. }, ..]
            if *dreg == into =>
        {
            let of = if is_source(family, *at)? { Hashed::Source } else { Hashed::Destination };
            Some((Selector::HashedSlot { of, modulus: *modulus, offset: *offset }, 2))
        }
        [
            Expression::Payload { .. },
            Expression::Payload { base: PayloadBase::Transport, .. },
            Expression::Hash { dreg, modulus, offset, .. },
            ..,
        ] if *dreg == into => {
            let of = Hashed::SourceAndPort;
            Some((Selector::HashedSlot { of, modulus: *modulus, offset: *offset }, 3))
        }
        _ => None,
    }
}

/// Whether the address at this place of the header is the source's; `None` if there is none.
fn is_source(family: Family, offset: u32) -> Option<bool> {
    [true, false].into_iter().find(|source| lower::address_offset(family, *source) == offset)
}

fn in_net(family: Family, offset: u32, data: &[u8], length: u8, comparison: Comparison) -> Option<Statement> {
    let net = IpNet::new(address(family, data)?, length).ok()?;
    let negated = comparison == Comparison::NotEqual;
    Some(match is_source(family, offset)? {
        true => Statement::SourceIn { net, negated },
        false => Statement::DestinationIn { net, negated },
    })
}

/// An address that begins with these bytes, and has nothing but zeros after them.
fn address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    fn padded<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        let mut all = [0; N];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(all)
    }
    match family {
        Family::V4 => padded::<4>(bytes).map(IpAddr::from),
        Family::V6 => padded::<16>(bytes).map(IpAddr::from),
    }
}

fn number(bytes: &Bytes) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.as_slice().try_into().ok()?))
}

fn set_name(name: &CName) -> Option<SetName> {
    SetName::parse(name.to_str().ok()?)
}
