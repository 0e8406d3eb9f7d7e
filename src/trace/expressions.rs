//! The expressions of the rules of a trace's table, as attributes. Numbers are those of
//! include/uapi/linux/netfilter/nf_tables.h.

use std::time::Duration;

use crate::model::Family;
use crate::netlink::Builder;

/// `NFT_REG32_00`; there are 16, of four bytes each.
const FIRST_REGISTER: u32 = 8;
/// `NFT_META_L4PROTO`.
const META_PROTOCOL: u32 = 16;
/// `NFT_META_NFTRACE`.
const META_TRACE: u32 = 12;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK: u32 = 1;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT: u32 = 2;
/// What an expression that counts is called.
pub(super) const COUNTER: &str = "counter";
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;

/// A part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    Protocol,
}

impl Part {
    /// How many bytes of registers it takes.
    pub(super) fn padded(self, family: Family) -> usize {
        match (self, family) {
            (Part::SourceAddress | Part::DestinationAddress, Family::V6) => 16,
            _ => 4,
        }
    }

    /// `enum datatypes` of nft's include/datatype.h: only for its listing.
    pub(super) fn type_of_nft(self, family: Family) -> u32 {
        match (self, family) {
            (Part::SourceAddress | Part::DestinationAddress, Family::V4) => 7,
            (Part::SourceAddress | Part::DestinationAddress, Family::V6) => 8,
            (Part::Protocol, _) => 12,
            (Part::SourcePort | Part::DestinationPort, _) => 13,
        }
    }
}

/// An expression: its name and its attributes. A value is one of [`Value`].
#[derive(Debug, Clone)]
pub(super) struct Nest {
    name: &'static str,
    data: Vec<(u16, Value)>,
}

#[derive(Debug, Clone)]
enum Value {
    Number(u32),
    Long(u64),
    Text(&'static str),
    /// `NFTA_DATA_VALUE` in a nest.
    Data(Vec<u8>),
    /// `NFTA_DATA_VERDICT` in a nest, with a code and a chain.
    Verdict(i32, Option<&'static str>),
}

impl Nest {
    fn new(name: &'static str, data: impl Into<Vec<(u16, Value)>>) -> Nest {
        Nest { name, data: data.into() }
    }

    /// `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
    pub(super) fn write(&self, element: Builder) -> Builder {
        element.attribute(1, &terminated(self.name)).nested(2, |data| {
            self.data.iter().fold(data, |data, (kind, value)| match value {
                Value::Number(number) => data.attribute(*kind, &number.to_be_bytes()),
                Value::Long(number) => data.attribute(*kind, &number.to_be_bytes()),
                Value::Text(text) => data.attribute(*kind, &terminated(text)),
                Value::Data(bytes) => data.nested(*kind, |value| value.attribute(1, bytes)),
                Value::Verdict(code, chain) => data.nested(*kind, |value| {
                    value.nested(2, |verdict| {
                        let verdict = verdict.attribute(1, &code.to_be_bytes());
                        chain.iter().fold(verdict, |verdict, chain| verdict.attribute(2, &terminated(chain)))
                    })
                }),
            })
        })
    }
}

/// The text with the NUL that ends it.
pub(super) fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Loads a part of a key into registers, from the one on that is so many bytes behind the first.
pub(super) fn load(part: Part, family: Family, at: usize) -> Nest {
    let register = FIRST_REGISTER + u32::try_from(at / 4).unwrap_or_default();
    let payload = |base, offset, length| {
        let numbers = [(1, register), (2, base), (3, offset), (4, length)];
        Nest::new("payload", numbers.map(|(kind, number)| (kind, Value::Number(number))))
    };
    match (part, family) {
        (Part::SourceAddress, Family::V4) => payload(NETWORK, 12, 4),
        (Part::DestinationAddress, Family::V4) => payload(NETWORK, 16, 4),
        (Part::SourceAddress, Family::V6) => payload(NETWORK, 8, 16),
        (Part::DestinationAddress, Family::V6) => payload(NETWORK, 24, 16),
        (Part::SourcePort, _) => payload(TRANSPORT, 0, 2),
        (Part::DestinationPort, _) => payload(TRANSPORT, 2, 2),
        (Part::Protocol, _) => Nest::new("meta", [(1, Value::Number(register)), (2, Value::Number(META_PROTOCOL))]),
    }
}

/// Loads a key.
pub(super) fn load_all(parts: &[Part], family: Family) -> Vec<Nest> {
    let mut at = 0;
    let load = |part: &Part| {
        let loaded = load(*part, family, at);
        at += part.padded(family);
        loaded
    };
    parts.iter().map(load).collect()
}

/// Loads so many bytes of the transport header.
pub(super) fn transport(offset: u32, length: u32) -> Nest {
    let numbers = [(1, FIRST_REGISTER), (2, TRANSPORT), (3, offset), (4, length)];
    Nest::new("payload", numbers.map(|(kind, number)| (kind, Value::Number(number))))
}

/// `& MASK` of what is in the first registers.
pub(super) fn mask(mask: &[u8]) -> Nest {
    let length = u32::try_from(mask.len()).unwrap_or_default();
    let numbers = [(1, FIRST_REGISTER), (2, FIRST_REGISTER), (3, length)];
    let mut data = numbers.map(|(kind, number)| (kind, Value::Number(number))).to_vec();
    data.extend([(4, Value::Data(mask.to_vec())), (5, Value::Data(vec![0; mask.len()]))]);
    Nest::new("bitwise", data)
}

/// Goes on only if the first registers hold this.
pub(super) fn equal(value: &[u8]) -> Nest {
    compare(0, value)
}

/// Goes on only if they do not.
pub(super) fn unequal(value: &[u8]) -> Nest {
    compare(1, value)
}

/// `NFT_CMP_EQ` is 0, `NFT_CMP_NEQ` is 1.
fn compare(operation: u32, value: &[u8]) -> Nest {
    let numbers = [(1, Value::Number(FIRST_REGISTER)), (2, Value::Number(operation)), (3, Value::Data(value.to_vec()))];
    Nest::new("cmp", numbers)
}

/// Goes on only if the key in the registers is in a set.
pub(super) fn is_in(set: &'static str) -> Nest {
    Nest::new("lookup", [(1, Value::Text(set)), (2, Value::Number(FIRST_REGISTER))])
}

/// `fib daddr type local`.
pub(super) fn is_of_the_node() -> [Nest; 2] {
    // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
    let fib = [(1, Value::Number(FIRST_REGISTER)), (2, Value::Number(3)), (3, Value::Number(2))];
    [Nest::new("fib", fib), equal(&LOCAL.to_ne_bytes())]
}

/// `return`.
pub(super) fn back() -> Nest {
    verdict(-5, None)
}

/// `goto CHAIN`.
pub(super) fn goto(chain: &'static str) -> Nest {
    verdict(-4, Some(chain))
}

/// Into `NFT_REG_VERDICT`.
fn verdict(code: i32, chain: Option<&'static str>) -> Nest {
    Nest::new("immediate", [(1, Value::Number(0)), (2, Value::Verdict(code, chain))])
}

/// `limit rate RATE/second burst RATE packets`.
pub(super) fn limit(rate: u32) -> Nest {
    let data = [
        (1, Value::Long(rate.into())),
        (2, Value::Long(1)),
        (3, Value::Number(rate)),
        // NFT_LIMIT_PKTS.
        (4, Value::Number(0)),
    ];
    Nest::new("limit", data)
}

/// `counter`.
pub(super) fn counter() -> Nest {
    Nest::new(COUNTER, [(1, Value::Long(0)), (2, Value::Long(0))])
}

/// `add @SET { KEY timeout TIME }` of the key in the registers.
pub(super) fn add_to(set: &'static str, time: Duration) -> Nest {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let data = [
        (1, Value::Text(set)),
        // NFT_DYNSET_OP_ADD.
        (3, Value::Number(0)),
        (4, Value::Number(FIRST_REGISTER)),
        (6, Value::Long(milliseconds)),
    ];
    Nest::new("dynset", data)
}

/// `meta nftrace set 1`.
pub(super) fn have_traced() -> [Nest; 2] {
    [
        Nest::new("immediate", [(1, Value::Number(FIRST_REGISTER)), (2, Value::Data(vec![1]))]),
        Nest::new("meta", [(2, Value::Number(META_TRACE)), (3, Value::Number(FIRST_REGISTER))]),
    ]
}
