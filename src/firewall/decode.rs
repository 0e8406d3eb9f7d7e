//! Rules of nftables as the kernel lists them, expression by expression (include/uapi/linux/netfilter/nf_tables.h). Pure.
//!
//! What is not understood becomes a condition that may hold or not, and leaves nothing known in the registers.

use std::collections::BTreeMap;

use super::rule::{Action, Comparison, Field, Gives, Marked, Rule, Step};
use super::xt;
use crate::leftovers::values::{
    BITWISE_FROM, BITWISE_MASK, BITWISE_OPERATION, BITWISE_TO, BITWISE_XOR, CMP_DATA, CMP_OPERATION, CMP_REGISTER,
    DATA_VALUE, DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, IMMEDIATE_DATA, LOAD_KEY, LOAD_TO, LOOKUP_TO,
    META_MARK, PAYLOAD_BASE, PAYLOAD_LENGTH, PAYLOAD_OFFSET, PAYLOAD_TO, RANGE_FROM, RANGE_OPERATION, RANGE_REGISTER,
    RANGE_TO, VERDICT_CHAIN, VERDICT_CODE, XT_INFO, XT_NAME, XT_REVISION, be32, inside, string,
};
use crate::netlink::attributes;

/// `NFTA_META_SREG`, `NFTA_CT_SREG` and `NFTA_CT_DIRECTION`.
const META_FROM: u16 = 3;
const CT_FROM: u16 = 4;
const CT_DIRECTION: u16 = 3;
/// `NFT_CT_MARK` and `NFT_CT_ZONE`.
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
/// `NFTA_PAYLOAD_SREG`.
const PAYLOAD_FROM: u16 = 5;
const PAYLOAD_LINK: u32 = 0;
/// `NFTA_IMMEDIATE_DREG`.
const IMMEDIATE_TO: u16 = 1;
/// `NFTA_BITWISE_LEN`.
const BITWISE_LENGTH: u16 = 3;
/// `NFTA_BYTEORDER_*`.
const BYTEORDER_FROM: u16 = 1;
const BYTEORDER_TO: u16 = 2;
const BYTEORDER_LENGTH: u16 = 4;
const BYTEORDER_SIZE: u16 = 5;
/// `NFTA_LOOKUP_*`, and `NFT_LOOKUP_F_INV`.
const LOOKUP_SET: u16 = 1;
const LOOKUP_FROM: u16 = 2;
const LOOKUP_FLAGS: u16 = 5;
const LOOKUP_INVERTED: u32 = 1;
/// `NFTA_FIB_*`.
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
/// `NFTA_NAT_FAMILY`.
const NAT_FAMILY: u16 = 2;
/// `NFTA_OBJREF_IMM_TYPE`, and `NFT_OBJECT_*` of what never keeps a rule from matching.
const OBJECT_TYPE: u16 = 1;
const HARMLESS_OBJECTS: [u32; 6] = [1, 3, 6, 7, 8, 9];
/// No register is longer, and nothing that is loaded.
const LONGEST: usize = 64;

/// Reads the expressions of a rule.
pub(super) fn rule(expressions: &[u8]) -> Rule {
    let mut steps = Vec::new();
    for (_, expression) in attributes(expressions) {
        let data: Data<'_> =
            Data(inside(expression, EXPRESSION_DATA).into_iter().flat_map(attributes).collect::<BTreeMap<_, _>>());
        let name = inside(expression, EXPRESSION_NAME).map(string).unwrap_or_default();
        match read(&name, &data) {
            Some(read) => steps.extend(read),
            // It may have loaded anything.
            None => steps.extend([
                Step::Forget { to: 0, length: 80 },
                Step::May(format!("it has the expression {name}, which is not understood")),
            ]),
        }
    }
    Rule { steps }
}

/// The attributes of an expression.
struct Data<'a>(BTreeMap<u16, &'a [u8]>);

impl Data<'_> {
    fn bytes(&self, kind: u16) -> &[u8] {
        self.0.get(&kind).copied().unwrap_or_default()
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.0.get(&kind).and_then(|bytes| be32(bytes))
    }

    fn length(&self, kind: u16) -> Option<usize> {
        self.number(kind).and_then(|length| usize::try_from(length).ok()).filter(|length| *length <= LONGEST)
    }

    /// Where a register begins.
    fn place(&self, kind: u16) -> Option<usize> {
        place(self.number(kind)?)
    }

    /// A value in an attribute of `NFTA_DATA_*`.
    fn value(&self, kind: u16) -> Option<Vec<u8>> {
        inside(self.bytes(kind), DATA_VALUE).map(<[u8]>::to_vec)
    }
}

/// Where a register begins: `NFT_REG_1` to `NFT_REG_4` have 16 bytes each, `NFT_REG32_00` and those that follow four. That
/// of the verdict is none of these.
fn place(register: u32) -> Option<usize> {
    match register {
        1..=4 => usize::try_from(register * 16).ok(),
        8..=23 => usize::try_from((register - 8) * 4 + 16).ok(),
        _ => None,
    }
}

fn read(name: &str, data: &Data<'_>) -> Option<Vec<Step>> {
    let one = |step: Step| Some(vec![step]);
    let may = |why: &str| one(Step::May(why.to_owned()));
    match name {
        "counter" | "log" | "last" | "flow_offload" => Some(Vec::new()),
        "immediate" => match data.place(IMMEDIATE_TO) {
            Some(to) => one(Step::Put { to, data: data.value(IMMEDIATE_DATA)? }),
            None => Some(action(data.bytes(IMMEDIATE_DATA))?.map(Step::Do).into_iter().collect()),
        },
        "meta" => match (data.place(META_FROM), data.number(LOAD_KEY)?) {
            (Some(from), META_MARK) => one(Step::Mark { of: Marked::Packet, from }),
            // A priority, or that packets are to be traced.
            (Some(_), _) => Some(Vec::new()),
            (None, key) => one(Step::Load { to: data.place(LOAD_TO)?, field: Field::Meta(key) }),
        },
        "ct" => match (data.place(CT_FROM), data.number(LOAD_KEY)?) {
            (Some(from), CT_MARK) => one(Step::Mark { of: Marked::Connection, from }),
            // One of its two directions may have another.
            (Some(from), CT_ZONE) => one(Step::Zone { from: data.bytes(CT_DIRECTION).is_empty().then_some(from) }),
            (Some(_), _) => Some(Vec::new()),
            (None, key) => {
                let reply = data.bytes(CT_DIRECTION).first() == Some(&1);
                one(Step::Load { to: data.place(LOAD_TO)?, field: Field::Ct { key, reply } })
            }
        },
        "payload" => {
            let base = data.number(PAYLOAD_BASE)?;
            if data.number(PAYLOAD_FROM).is_some() {
                return Some(if base == PAYLOAD_LINK { Vec::new() } else { vec![Step::Mangle] });
            }
            let (offset, length) = (data.number(PAYLOAD_OFFSET)?, data.length(PAYLOAD_LENGTH)?);
            let field = Field::Payload { base, offset: usize::try_from(offset).ok()?, length };
            one(Step::Load { to: data.place(PAYLOAD_TO)?, field })
        }
        "bitwise" => bitwise(data),
        "byteorder" => {
            let (from, to) = (data.place(BYTEORDER_FROM)?, data.place(BYTEORDER_TO)?);
            let (length, size) = (data.length(BYTEORDER_LENGTH)?, data.length(BYTEORDER_SIZE)?);
            let swaps = cfg!(target_endian = "little") && size > 0 && length % size == 0;
            if swaps { one(Step::Swap { from, to, length, size }) } else { one(Step::Forget { to, length }) }
        }
        "cmp" => {
            let by = match data.number(CMP_OPERATION)? {
                0 => Comparison::Equal,
                1 => Comparison::Unequal,
                2 => Comparison::Less,
                3 => Comparison::AtMost,
                4 => Comparison::More,
                5 => Comparison::AtLeast,
                _ => return None,
            };
            one(Step::Compare { from: data.place(CMP_REGISTER)?, by, data: data.value(CMP_DATA)? })
        }
        "range" => {
            let inverted = data.number(RANGE_OPERATION)? != 0;
            let (low, high) = (data.value(RANGE_FROM)?, data.value(RANGE_TO)?);
            one(Step::Range { from: data.place(RANGE_REGISTER)?, inverted, low, high })
        }
        "lookup" => {
            let gives = match data.number(LOOKUP_TO) {
                None => Gives::Nothing,
                Some(0) => Gives::Verdict,
                Some(register) => Gives::Data { to: place(register)? },
            };
            let inverted = data.number(LOOKUP_FLAGS).unwrap_or_default() & LOOKUP_INVERTED != 0;
            let set = string(data.bytes(LOOKUP_SET));
            one(Step::LookUp { from: data.place(LOOKUP_FROM)?, set, inverted, gives })
        }
        "fib" => {
            let field = Field::Fib { result: data.number(FIB_RESULT)?, flags: data.number(FIB_FLAGS)? };
            one(Step::Load { to: data.place(LOAD_TO)?, field })
        }
        "match" => xt::matched(&string(data.bytes(XT_NAME)), data.number(XT_REVISION)?, data.bytes(XT_INFO)),
        "target" => Some(xt::target(&string(data.bytes(XT_NAME)), data.number(XT_REVISION)?, data.bytes(XT_INFO))),
        "notrack" => one(Step::NoTrack),
        "reject" => one(Step::Do(Action::Reject)),
        // In a table of both families it is for one.
        "nat" => Some(of_family(data.number(NAT_FAMILY), Step::Do(Action::Translate))),
        "masq" | "redir" => one(Step::Do(Action::Translate)),
        "queue" => one(Step::Do(Action::Give("a program that listens to its queue".to_owned()))),
        "tproxy" => Some(vec![
            Step::May("a program has to listen for it".to_owned()),
            Step::Do(Action::Give("a transparent proxy".to_owned())),
        ]),
        "synproxy" => one(Step::Do(Action::Give("a proxy for SYN".to_owned()))),
        "fwd" => one(Step::Do(Action::Give("another device".to_owned()))),
        "dup" => Some(Vec::new()),
        "limit" | "quota" | "connlimit" => may("it has a limit"),
        "objref" => match data.number(OBJECT_TYPE) {
            Some(kind) if HARMLESS_OBJECTS.contains(&kind) => Some(Vec::new()),
            _ => may("it has a limit with a name"),
        },
        "dynset" => may("it adds to a set, which may be full or have a limit"),
        // Without a register to load into, it changes an option of TCP.
        "exthdr" if data.number(LOAD_TO).is_none() => Some(Vec::new()),
        "exthdr" => one(Step::May("it asks for an option of a header".to_owned())).map(forgetting(data)),
        "numgen" | "hash" => one(Step::Forget { to: data.place(if name == "hash" { 2 } else { 1 })?, length: 4 }),
        _ => None,
    }
}

/// The same with nothing known of what it loads.
fn forgetting(data: &Data<'_>) -> impl FnOnce(Vec<Step>) -> Vec<Step> {
    let to = data.place(LOAD_TO);
    move |mut steps| {
        steps.extend(to.map(|to| Step::Forget { to, length: 16 }));
        steps
    }
}

/// A step for packets of a family alone, which `NFPROTO_*` says.
fn of_family(family: Option<u32>, step: Step) -> Vec<Step> {
    const NFPROTO: Field = Field::Meta(crate::leftovers::values::META_NFPROTO);
    match family.and_then(|family| u8::try_from(family).ok()) {
        Some(family @ (2 | 10)) => vec![
            Step::Load { to: 16, field: NFPROTO },
            Step::Compare { from: 16, by: Comparison::Equal, data: vec![family] },
            step,
        ],
        _ => vec![step],
    }
}

fn bitwise(data: &Data<'_>) -> Option<Vec<Step>> {
    let (from, to) = (data.place(BITWISE_FROM)?, data.place(BITWISE_TO)?);
    let length = data.length(BITWISE_LENGTH)?;
    let masks = data.value(BITWISE_MASK).zip(data.value(BITWISE_XOR));
    Some(vec![match (data.number(BITWISE_OPERATION).unwrap_or_default(), masks) {
        (0, Some((mask, xor))) if mask.len() == length => Step::Mask { from, to, mask, xor },
        // Shifts, and what two registers come to.
        _ => Step::Forget { to, length },
    }])
}

/// What a verdict does, in an attribute of `NFTA_DATA_*`: `Some(None)` for `continue`.
pub(super) fn action(data: &[u8]) -> Option<Option<Action>> {
    /// `NF_*` and `NFT_*`; the upper half of the number says which queue.
    const DROP: u32 = 0;
    const ACCEPT: u32 = 1;
    const QUEUE: u32 = 3;
    const CONTINUE: i32 = -1;
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;
    let verdict = inside(data, DATA_VERDICT)?;
    let code = inside(verdict, VERDICT_CODE).and_then(be32)?;
    let chain = || inside(verdict, VERDICT_CHAIN).map(string);
    Some(Some(match (code.cast_signed(), code & 0xff) {
        (CONTINUE, _) => return Some(None),
        (JUMP, _) => Action::Jump(chain()?),
        (GOTO, _) => Action::Goto(chain()?),
        (RETURN, _) => Action::Return,
        (_, DROP) => Action::Drop,
        (_, ACCEPT) => Action::Accept,
        (_, QUEUE) => Action::Give("a program that listens to its queue".to_owned()),
        _ => return None,
    }))
}
