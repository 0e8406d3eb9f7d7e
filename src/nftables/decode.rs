//! What the kernel says, as values. Pure, and total: nothing that can come in makes it panic.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::request::NftablesMessage as _;
use super::{lower, uapi, udata};
use crate::model::{Family, Protocol};
use crate::netlink::{ATTRIBUTE_HEADER, Attribute, Attributes, Message, children, find, u16_at, u32_at};
use crate::ruleset::kept::Kept;
use crate::ruleset::names::ChainName;
use crate::ruleset::read::Remembered;
use crate::ruleset::types::{Data, DataDef, Element, Key, Selector, SetDef, Value, Verdict};

/// Whether a message belongs to a table.
pub(super) fn is_of_table(message: &Message<'_>, family: u8, table: &str) -> bool {
    message.family() == Some(family)
        && find(message.attributes(), uapi::NFTA_TABLE).and_then(|name| name.text()) == Some(table)
}

/// The text in an attribute of a message.
pub(super) fn text<'a>(message: &Message<'a>, kind: u16) -> Option<&'a str> {
    find(message.attributes(), kind)?.text()
}

/// The number in an attribute.
pub(super) fn number_in(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    find(attributes, kind)?.number()
}

/// Whether the kernel's object is what our message would make. The kernel says everything that it was told, and adds
/// handles, counters and defaults; so each attribute of ours has to be there with the same value. It leaves out some
/// numbers that are 0. `except` names attributes of the outermost level that the kernel does not give back.
///
/// Only our own message marks which attributes hold others; the kernel does not.
pub(super) fn covers(actual: Attributes<'_>, wanted: Attributes<'_>, except: &[u16]) -> bool {
    let (Some(actual), Some(wanted)) = (collect(actual), collect(wanted)) else { return false };
    let kinds: BTreeSet<u16> = wanted.iter().map(|attribute| attribute.kind).collect();
    kinds.into_iter().filter(|kind| !except.contains(kind)).all(|kind| {
        let of_kind = |all: &[Attribute<'_>]| all.iter().filter(|a| a.kind == kind).count();
        if let (0, 1) = (of_kind(&actual), of_kind(&wanted)) {
            return wanted.iter().any(|a| a.kind == kind && a.number() == Some(0));
        }
        // Several of a kind are a list: of the same length, in the same order.
        let mut pairs = wanted.iter().filter(|a| a.kind == kind).zip(actual.iter().filter(|a| a.kind == kind));
        of_kind(&wanted) == of_kind(&actual) && pairs.all(|(wanted, actual)| same(actual, wanted))
    })
}

fn same(actual: &Attribute<'_>, wanted: &Attribute<'_>) -> bool {
    if !wanted.nested {
        return actual.value == wanted.value;
    }
    // A rejection by TCP reset has no code, but nft sends one; the kernel forgets it.
    if expression_name(wanted) == Some("reject") && expression_name(actual) == Some("reject") {
        return reject_of(wanted).is_some() && reject_of(wanted) == reject_of(actual);
    }
    covers(actual.attributes(), wanted.attributes(), &[])
}

/// `NFTA_EXPR_NAME` of an expression in a list.
fn expression_name<'a>(attribute: &Attribute<'a>) -> Option<&'a str> {
    let name = find(attribute.attributes(), 1)?;
    find(attribute.attributes(), 2)?;
    name.text()
}

/// `NFTA_REJECT_TYPE`, and `NFTA_REJECT_ICMP_CODE` where it means something.
fn reject_of(attribute: &Attribute<'_>) -> Option<(u32, Option<u8>)> {
    let data = find(attribute.attributes(), 2)?;
    let kind = find(data.attributes(), 1)?.number()?;
    let code = find(data.attributes(), 2).and_then(|code| code.value.first().copied());
    Some((kind, code.filter(|_| kind == 0)))
}

fn collect(attributes: Attributes<'_>) -> Option<Vec<Attribute<'_>>> {
    attributes.collect::<Result<Vec<_>, _>>().ok()
}

/// The elements in a message of type `NEWSETELEM`. Those that are not of the set's shape are `Err`, with the element as text.
pub(super) fn elements<'a>(
    message: &Message<'a>,
    family: Family,
    set: &'a SetDef,
) -> impl Iterator<Item = Result<Element, String>> + use<'a> {
    let list = find(message.attributes(), uapi::NFTA_SET_ELEM_LIST_ELEMENTS);
    list.into_iter().flat_map(|list| children(&list)).map(move |raw| {
        element(&raw, family, set).ok_or_else(|| {
            let key = find(raw.attributes(), uapi::NFTA_SET_ELEM_KEY).map_or(&[] as &[u8], |key| key.value);
            let hex: String = key.iter().skip(ATTRIBUTE_HEADER).map(|byte| format!("{byte:02x}")).collect();
            format!("{}, element 0x{hex}", set.name)
        })
    })
}

/// The clients in such a message of the map `affinity` (`set`). What is none of ours is left out, and whose time is over.
pub(super) fn kept<'a>(message: &Message<'a>, family: Family, set: &'a SetDef) -> impl Iterator<Item = Kept> + use<'a> {
    let list = find(message.attributes(), uapi::NFTA_SET_ELEM_LIST_ELEMENTS);
    list.into_iter().flat_map(|list| children(&list)).filter_map(move |raw| {
        let client = Remembered::read(&element(&raw, family, set)?)?;
        let time = |kind| {
            let bytes = find(raw.attributes(), kind)?.value.try_into().ok()?;
            Some(Duration::from_millis(u64::from_be_bytes(bytes)))
        };
        let (timeout, expires) = (time(uapi::NFTA_SET_ELEM_TIMEOUT)?, time(uapi::NFTA_SET_ELEM_EXPIRATION)?);
        (!expires.is_zero()).then_some(Kept { client, timeout, expires: expires.min(timeout) })
    })
}

/// One of them.
pub(super) fn element(raw: &Attribute<'_>, family: Family, set: &SetDef) -> Option<Element> {
    let value = |kind| find(raw.attributes(), kind).map(|a| find(a.attributes(), uapi::NFTA_DATA_VALUE));
    let key = unpack(value(uapi::NFTA_SET_ELEM_KEY)??.value, family, &set.key)?.collect::<Option<Key>>()?;
    let key_end = match value(uapi::NFTA_SET_ELEM_KEY_END) {
        None => None,
        Some(end) => Some(unpack(end?.value, family, &set.key)?.collect::<Option<Key>>()?),
    };
    if let Some(flags) = find(raw.attributes(), uapi::NFTA_SET_ELEM_FLAGS)
        && flags.number() != Some(0)
    {
        // The end of an interval of another kind, or a catch-all.
        return None;
    }
    let data = match &set.data {
        DataDef::None => Data::None,
        DataDef::Values(exprs) => {
            Data::Values(unpack(value(uapi::NFTA_SET_ELEM_DATA)??.value, family, exprs)?.collect::<Option<_>>()?)
        }
        DataDef::Verdict => Data::Verdict(verdict(&find(raw.attributes(), uapi::NFTA_SET_ELEM_DATA)?)?),
    };
    let comment = find(raw.attributes(), uapi::NFTA_SET_ELEM_USERDATA)
        .and_then(|user_data| udata::read_comment(user_data.value))
        .map(Into::into);
    Some(Element { key, key_end, data, comment })
}

fn verdict(data: &Attribute<'_>) -> Option<Verdict> {
    let verdict = find(data.attributes(), uapi::NFTA_DATA_VERDICT)?;
    let chain = || ChainName::parse(find(verdict.attributes(), uapi::NFTA_VERDICT_CHAIN)?.text()?);
    match find(verdict.attributes(), uapi::NFTA_VERDICT_CODE)?.number()? {
        uapi::NF_DROP => Some(Verdict::Drop),
        uapi::NFT_GOTO => chain().map(Verdict::Goto),
        uapi::NFT_JUMP => chain().map(Verdict::Jump),
        _ => None,
    }
}

/// The parts of a concatenation, if the length is right; a part that makes no sense is `None`.
fn unpack<'a>(
    bytes: &'a [u8],
    family: Family,
    exprs: &'a [Selector],
) -> Option<impl Iterator<Item = Option<Value>> + use<'a>> {
    let lengths = exprs.iter().map(move |expr| lower::length(family, *expr));
    let total: usize = match exprs {
        [expr] => lower::length(family, *expr),
        _ => lengths.clone().map(|length| length.next_multiple_of(4)).sum(),
    };
    let mut at = 0;
    (bytes.len() == total).then(|| {
        exprs.iter().zip(lengths).map(move |(expr, length)| {
            let from = at;
            at += length.next_multiple_of(4);
            read_value(bytes.get(from..from + length)?, *expr)
        })
    })
}

fn read_value(bytes: &[u8], expr: Selector) -> Option<Value> {
    match expr {
        Selector::SourceAddress
        | Selector::DestinationAddress
        | Selector::OriginalSource
        | Selector::OriginalDestination
        | Selector::ReplySource => {
            let address = match bytes.len() {
                4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
                _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
            };
            Some(Value::Address(address))
        }
        Selector::L4Proto | Selector::HeaderProtocol => Protocol::from_number(*bytes.first()?).map(Value::Protocol),
        Selector::DestinationPort | Selector::OriginalPort | Selector::ReplyPort => {
            Some(Value::Port(u16::from_be(u16_at(bytes, 0)?)))
        }
        Selector::Priority => Some(Value::Class(u32_at(bytes, 0)?)),
        Selector::RandomSlot { .. } | Selector::NextSlot { .. } | Selector::HashedSlot { .. } => {
            Some(Value::Slot(u32_at(bytes, 0)?))
        }
    }
}

/// Whether a message has an attribute.
pub(super) fn has(message: &Message<'_>, kind: u16) -> bool {
    has_in(message.attributes(), kind)
}

/// Whether there is an attribute of a type.
pub(super) fn has_in(attributes: Attributes<'_>, kind: u16) -> bool {
    find(attributes, kind).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diff::{Operation, Transaction};
    use crate::netlink::messages;
    use crate::nftables::counts::counts;
    use crate::nftables::encode::encode;
    use crate::ruleset::names::By;
    use crate::ruleset::names::{Masquerade, Pick, SetName, TableName};

    const ALL: [Selector; 10] = [
        Selector::SourceAddress,
        Selector::DestinationAddress,
        Selector::L4Proto,
        Selector::HeaderProtocol,
        Selector::DestinationPort,
        Selector::Priority,
        Selector::RandomSlot { modulus: 2, offset: 0 },
        Selector::OriginalSource,
        Selector::OriginalDestination,
        Selector::OriginalPort,
    ];

    fn value(family: Family, expr: Selector) -> BoxedStrategy<Value> {
        match expr {
            Selector::L4Proto | Selector::HeaderProtocol => {
                prop::sample::select(Protocol::ALL.to_vec()).prop_map(Value::Protocol).boxed()
            }
            Selector::DestinationPort | Selector::OriginalPort => any::<u16>().prop_map(Value::Port).boxed(),
            Selector::Priority => any::<u32>().prop_map(Value::Class).boxed(),
            Selector::RandomSlot { .. } => any::<u32>().prop_map(Value::Slot).boxed(),
            _ if family == Family::V4 => {
                any::<[u8; 4]>().prop_map(|bytes| Value::Address(IpAddr::V4(bytes.into()))).boxed()
            }
            _ => any::<[u8; 16]>().prop_map(|bytes| Value::Address(IpAddr::V6(bytes.into()))).boxed(),
        }
    }

    fn values(family: Family, exprs: &[Selector]) -> BoxedStrategy<Vec<Value>> {
        exprs.iter().map(|expr| value(family, *expr)).collect::<Vec<_>>().boxed()
    }

    fn data(family: Family, def: &DataDef) -> BoxedStrategy<Data> {
        let pick = |slots: u32| {
            ChainName::Pick(Pick {
                nodeport: slots.is_multiple_of(2),
                masquerade: Masquerade::Always,
                sticky: slots.is_multiple_of(3),
                local: slots.is_multiple_of(5),
                by: if slots.is_multiple_of(7) { By::Turn(7) } else { By::Random },
                slots,
            })
        };
        match def {
            DataDef::None => Just(Data::None).boxed(),
            DataDef::Values(exprs) => values(family, exprs).prop_map(|values| Data::Values(values.into())).boxed(),
            DataDef::Verdict => prop_oneof![
                Just(Verdict::Drop),
                (1..=u32::MAX).prop_map(move |slots| Verdict::Goto(pick(slots))),
                Just(Verdict::Jump(ChainName::Services)),
            ]
            .prop_map(Data::Verdict)
            .boxed(),
        }
    }

    /// A family, a set of any shape, and elements for it.
    fn world() -> impl Strategy<Value = (Family, SetDef, Vec<Element>)> {
        let exprs = |most| prop::collection::vec(prop::sample::select(ALL.to_vec()), 1..=most);
        let map = prop_oneof![Just(DataDef::None), exprs(2).prop_map(DataDef::Values), Just(DataDef::Verdict)];
        (prop::sample::select(Family::ALL.to_vec()), exprs(4), map, any::<bool>()).prop_flat_map(
            |(family, key, data_def, interval)| {
                let end = if interval { values(family, &key).prop_map(Some).boxed() } else { Just(None).boxed() };
                let comment = prop::option::of("[^\\x00]{0,30}");
                let element = (values(family, &key), end, data(family, &data_def), comment).prop_map(
                    |(key, end, data, comment)| Element {
                        key: key.into(),
                        key_end: end.map(Into::into),
                        data,
                        comment: comment.map(Into::into),
                    },
                );
                let set = SetDef {
                    name: SetName::ServiceIps,
                    key,
                    data: data_def,
                    interval,
                    dynamic: false,
                    size: None,
                    counter: false,
                };
                (Just(family), Just(set), prop::collection::vec(element, 1..50))
            },
        )
    }

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn decoding_undoes_encoding((family, set, wanted) in world()) {
            let operations = vec![Operation::AddElements(set.name, wanted.clone())];
            let batch = encode(TableName::NODE, &Transaction { family, operations }, 7, false).expect("elements that can be encoded");
            let mut got = Vec::new();
            for message in messages(batch.bytes()) {
                for element in elements(&message.expect("a message"), family, &set) {
                    got.push(element.expect("an element"));
                }
            }
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..300), (family, set, _) in world()) {
            read_everything(&bytes, family, &set);
        }

        #[test]
        fn damaged_messages_are_harmless(
            (family, set, wanted) in world(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let operations = vec![Operation::AddElements(set.name, wanted)];
            let batch = encode(TableName::NODE, &Transaction { family, operations }, 7, false).expect("elements that can be encoded");
            let mut bytes = batch.bytes().to_vec();
            for (index, byte) in damage {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            read_everything(&bytes, family, &set);
            bytes.truncate(cut.index(bytes.len()));
            read_everything(&bytes, family, &set);
        }
    }

    fn read_everything(bytes: &[u8], family: Family, set: &SetDef) {
        let attributes = || Attributes::new(bytes, 0);
        assert!(!covers(attributes(), attributes(), &[]) || collect(attributes()).is_some());
        udata::read_comment(bytes);
        for message in messages(bytes).map_while(Result::ok) {
            is_of_table(&message, 2, "nftproxyd");
            elements(&message, family, set).count();
            counts(&message, family, set.name).count();
            covers(message.attributes(), message.attributes(), &[]);
        }
        // The same bytes behind a header that says what they are.
        let message = Message { kind: uapi::SUBSYSTEM | 12, flags: 0, sequence: 0, port: 0, payload: bytes };
        elements(&message, family, set).count();
        counts(&message, family, set.name).count();
    }
}
