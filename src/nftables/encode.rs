//! From a transaction to the one piece of memory that is sent.

use std::ffi::{CStr, CString};
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::time::Duration;

use smallvec::SmallVec;

use super::kernel::table_flag;
use super::numbers::{c_name, protocol_family, verdict};
use super::request::NftablesMessage as _;
use super::uapi::{self, msg, set_flag};
use super::{lower, udata};
use crate::diff::{Operation, Transaction};
use crate::model::Family;
use crate::netlink::{ATTRIBUTE_HEADER, Message, children};
use crate::ruleset::kept::Kept;
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::types::{Data, DataDef, Element, Hook, HookPoint, Rule, Selector, SetDef, Statement, Value};
use crate::sys::{self, CName, ElementValue, Expression, Header, Messages, Register};

/// What our tables say about themselves.
pub(super) const TABLE_COMMENT: &str = "Kubernetes Services; written by nftproxyd";

/// nft's `TYPE_UID` of include/datatype.h; see [`type_code`].
pub(super) const TYPE_UID: u32 = 24;
/// nft's `TYPE_CLASSID`, the type of `meta priority`.
pub(super) const TYPE_CLASSID: u32 = 23;

/// A key or data as registers hold it.
pub(super) type Packed = SmallVec<[u8; 64]>;

/// A transaction as bytes, and which message belongs to which operation.
///
/// Layout: the begin message, one message per object or list of elements, the end message. Sequence numbers count up
/// by one from [`Batch::first_sequence`]. Only the last message before the end asks for an answer: kernels before 6.10
/// answer neither begin nor end. Errors are answered in any case.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    messages: Messages,
    parts: Vec<Part>,
    first_sequence: u32,
}

/// A message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Position in [`Transaction::operations`].
    pub(super) operation: usize,
    /// Which rules or elements of the operation it carries; empty where there is nothing to count.
    pub(super) items: Range<usize>,
    /// Where it begins in [`Batch::bytes`].
    pub(super) at: usize,
}

/// Something that cannot be put into a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EncodeError {
    /// Position in [`Transaction::operations`].
    pub(super) operation: usize,
    /// The object, as text: `map service-ips, element 10.96.0.1 . tcp . 80`.
    pub(super) object: String,
    /// What is wrong with it.
    pub(super) reason: String,
}

impl Batch {
    /// What is to be sent, all at once.
    pub(super) fn bytes(&self) -> &[u8] {
        self.messages.bytes()
    }

    /// The messages between begin and end, in order.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The sequence number of the message that is answered in any case: the last one before the end.
    pub(super) fn last_sequence(&self) -> u32 {
        self.first_sequence.wrapping_add(self.parts.len() as u32)
    }

    /// The message with this sequence number; `None` for those that begin and end the batch, and for foreign ones.
    pub(super) fn part(&self, sequence: u32) -> Option<&Part> {
        let index = sequence.wrapping_sub(self.first_sequence) as usize;
        index.checked_sub(1).and_then(|index| self.parts.get(index))
    }

    /// Whether a sequence number is one of this batch.
    pub(super) fn contains(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.first_sequence) as usize <= self.parts.len() + 1
    }

    /// A batch without its end, which the kernel checks and then aborts.
    pub(super) fn bytes_without_end(&self) -> &[u8] {
        let bytes = self.bytes();
        // The end is a netlink header and an nfgenmsg.
        &bytes[..bytes.len() - 20]
    }

    /// The element that holds the byte at this offset of a message, counted within the message.
    pub(super) fn element_at(&self, part: &Part, offset: usize) -> Option<usize> {
        let message = Message::first(&self.bytes()[part.at..])?;
        let list = message.attributes().flatten().find(|a| a.kind == uapi::NFTA_SET_ELEM_LIST_ELEMENTS)?;
        // An offset that points at the list itself names no element.
        let position = children(&list).position(|element| {
            let begin = element.offset;
            (begin..begin + element.value.len() + ATTRIBUTE_HEADER).contains(&offset)
        })?;
        part.items.clone().nth(position)
    }
}

/// Encodes a transaction of a table; its messages get the sequence numbers from `first_sequence` on. `echoes`: the kernel is to
/// tell which frontends it deletes, and what they have counted.
pub(super) fn encode(
    table: TableName,
    transaction: &Transaction,
    first_sequence: u32,
    echoes: bool,
) -> Result<Batch, EncodeError> {
    let mut encoder = Encoder { echoes, ..Encoder::new(transaction.family, table.as_str(), first_sequence) };
    for (position, operation) in transaction.operations.iter().enumerate() {
        encoder.operation(position, operation)?;
    }
    Ok(encoder.finish())
}

/// Writes the messages of a batch.
pub(super) struct Encoder {
    family: Family,
    table: CString,
    messages: Messages,
    parts: Vec<Part>,
    first_sequence: u32,
    element: sys::SetElement,
    echoes: bool,
}

impl Encoder {
    /// An empty batch for a table. `table` holds no NUL.
    pub(super) fn new(family: Family, table: &str, first_sequence: u32) -> Self {
        let mut messages = Messages::default();
        messages.batch(true, first_sequence);
        Encoder {
            family,
            table: c_name(table),
            messages,
            parts: Vec::new(),
            first_sequence,
            element: sys::SetElement::new(),
            echoes: false,
        }
    }

    /// Ends the batch.
    pub(super) fn finish(mut self) -> Batch {
        if let Some(last) = self.parts.last() {
            self.messages.add_flags(last.at, uapi::NLM_F_ACK);
        }
        let end = self.first_sequence.wrapping_add(self.parts.len() as u32 + 1);
        self.messages.batch(false, end);
        Batch { messages: self.messages, parts: self.parts, first_sequence: self.first_sequence }
    }

    /// Appends the messages of one operation.
    pub(super) fn operation(&mut self, position: usize, operation: &Operation) -> Result<(), EncodeError> {
        match operation {
            Operation::AddTable => self.add_table(position, 0, TABLE_COMMENT),
            Operation::OwnTable => self.add_table(position, table_flag::OWNED, TABLE_COMMENT),
            Operation::DeleteTable => {
                let header = self.begin(position, 0..0, msg::DELTABLE, 0);
                self.messages.table(header, &sys::Table::new(&self.table));
            }
            Operation::AddSet(set) => self.add_set(position, set).map_err(|reason| EncodeError {
                operation: position,
                object: format!("set {}", set.name),
                reason,
            })?,
            Operation::AddChain(chain) => self.add_chain(position, &chain.name.to_string(), chain.hook),
            Operation::AddRules(chain) => {
                let name = c_name(&chain.name.to_string());
                for (index, rule) in chain.rules.iter().enumerate() {
                    check_rule(self.family, rule).map_err(|reason| EncodeError {
                        operation: position,
                        object: format!("chain {}, rule {}", chain.name, index + 1),
                        reason,
                    })?;
                    let expressions = lower::lower_rule(self.family, rule);
                    self.add_rule(position, index, &name, rule.comment, &expressions);
                }
            }
            Operation::FlushChain(chain) => {
                let header = self.begin(position, 0..0, msg::DELRULE, 0);
                self.messages.rule(header, &sys::Rule::new(&self.table, &c_name(&chain.to_string())));
            }
            Operation::DeleteChain(chain) => {
                let header = self.begin(position, 0..0, msg::DELCHAIN, 0);
                self.messages.chain(header, &sys::Chain::new(&self.table, &c_name(&chain.to_string())));
            }
            Operation::DeleteForeignChain(name) => {
                let name = foreign_name(position, "chain", name)?;
                let header = self.begin(position, 0..0, msg::DELCHAIN, 0);
                self.messages.chain(header, &sys::Chain::new(&self.table, &name));
            }
            Operation::DeleteForeignSet(name) => {
                let name = foreign_name(position, "set", name)?;
                let header = self.begin(position, 0..0, msg::DELSET, 0);
                self.messages.set(header, &sys::Set::new(&self.table, &name));
            }
            Operation::AddElements(set, elements) => {
                self.elements(position, *set, elements, msg::NEWSETELEM, uapi::NLM_F_CREATE)?;
            }
            Operation::Remember(clients) => self.remember(position, clients)?,
            Operation::DeleteElements(set, elements) => {
                let flags = if self.echoes && set.is_entry() { uapi::NLM_F_ECHO } else { 0 };
                self.elements(position, *set, elements, msg::DELSETELEM, flags)?;
            }
        }
        Ok(())
    }

    /// Notes the beginning of a message and makes its header.
    fn begin(&mut self, operation: usize, items: Range<usize>, kind: u16, flags: u16) -> Header {
        self.parts.push(Part { operation, items, at: self.messages.len() });
        let sequence = self.first_sequence.wrapping_add(self.parts.len() as u32);
        Header { kind: uapi::SUBSYSTEM | kind, family: protocol_family(self.family), flags, sequence }
    }

    /// Appends the table with flags (`table_flag`).
    pub(super) fn add_table(&mut self, position: usize, flags: u32, comment: &str) {
        let mut table = sys::Table::new(&self.table);
        let mut user_data = Vec::new();
        udata::comment(comment, &mut user_data);
        table.describe(flags, &user_data);
        let header = self.begin(position, 0..0, msg::NEWTABLE, uapi::NLM_F_CREATE);
        self.messages.table(header, &table);
    }

    fn add_set(&mut self, position: usize, def: &SetDef) -> Result<(), String> {
        let name = c_name(def.name.as_str());
        let lengths = |exprs: &[Selector]| exprs.iter().map(|e| lower::length(self.family, *e)).collect::<Vec<_>>();
        let padded = |lengths: &[usize]| lengths.iter().map(|length| length.next_multiple_of(4)).sum::<usize>();
        let key = lengths(&def.key);
        let key_length = padded(&key);
        if def.key.is_empty() || key_length > Register::COUNT * 4 {
            return Err(format!("its key has {key_length} bytes, and can have 1 to 64"));
        }
        if def.interval && def.key.len() == 1 {
            return Err("intervals are supported in concatenated keys only".to_owned());
        }
        let mut flags = 0;
        let mut set = sys::Set::new(&self.table, &name);
        if def.interval {
            flags |= set_flag::INTERVAL | set_flag::CONCAT;
            set.fields(&key.iter().map(|length| *length as u8).collect::<Vec<_>>());
        }
        if def.data != DataDef::None {
            flags |= set_flag::MAP;
        }
        if def.dynamic {
            flags |= set_flag::TIMEOUT | set_flag::EVAL;
        }
        if let Some(size) = def.size {
            set.size(size);
        }
        if def.counter {
            // Elements that come without one get a copy of it.
            set.count();
        }
        // nft gives a single value's own length here, without padding.
        let wire_length = |lengths: &[usize]| match lengths {
            [length] => *length as u32,
            lengths => padded(lengths) as u32,
        };
        // The number joins a set with rules of the same batch that name it by number; ours use names.
        set.key(self.parts.len() as u32 + 1, flags, type_code(self.family, &def.key), wire_length(&key));
        match &def.data {
            DataDef::None => {}
            DataDef::Verdict => set.map_to(uapi::DATA_VERDICT, 0),
            DataDef::Values(data) => set.map_to(type_code(self.family, data), wire_length(&lengths(data))),
        }
        set.user_data(&udata::set(self.family, def));
        let header = self.begin(position, 0..0, msg::NEWSET, uapi::NLM_F_CREATE | uapi::NLM_F_EXCL);
        self.messages.set(header, &set);
        Ok(())
    }

    /// Appends a chain without rules; one with a hook is of type nat.
    pub(super) fn add_chain(&mut self, position: usize, name: &str, hook: Option<Hook>) {
        let mut chain = sys::Chain::new(&self.table, &c_name(name));
        if let Some(hook) = hook {
            // enum nf_inet_hooks.
            let number = match hook.hook {
                HookPoint::Prerouting => 0,
                HookPoint::Input => 1,
                HookPoint::Output => 3,
                HookPoint::Postrouting => 4,
            };
            chain.attach(c"nat", number, hook.priority);
        }
        let header = self.begin(position, 0..0, msg::NEWCHAIN, uapi::NLM_F_CREATE);
        self.messages.chain(header, &chain);
    }

    /// Appends a rule that consists of these expressions.
    pub(super) fn add_rule(
        &mut self,
        position: usize,
        index: usize,
        chain: &CStr,
        comment: Option<&str>,
        expressions: &[Expression],
    ) {
        let mut message = sys::Rule::new(&self.table, chain);
        for expression in expressions {
            message.push(sys::NftnlExpr::build(expression));
        }
        if let Some(comment) = comment {
            let mut user_data = Vec::new();
            udata::comment(comment, &mut user_data);
            message.user_data(&user_data);
        }
        let header = self.begin(position, index..index + 1, msg::NEWRULE, uapi::NLM_F_CREATE | uapi::NLM_F_APPEND);
        self.messages.rule(header, &message);
    }

    fn elements(
        &mut self,
        position: usize,
        set: SetName,
        elements: &[Element],
        kind: u16,
        flags: u16,
    ) -> Result<(), EncodeError> {
        elements.iter().try_for_each(|element| self.check(position, set, element))?;
        let deleting = kind == msg::DELSETELEM;
        let mut user_data = Vec::new();
        self.fill(position, set, elements, (kind, flags), |element, raw| {
            fill_element(element, deleting, raw, &mut user_data);
        });
        Ok(())
    }

    fn remember(&mut self, position: usize, clients: &[Kept]) -> Result<(), EncodeError> {
        let set = SetName::Affinity;
        clients.iter().try_for_each(|kept| self.check(position, set, &kept.element()))?;
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.fill(position, set, clients, (msg::NEWSETELEM, uapi::NLM_F_CREATE), |kept, raw| {
            fill_element(&kept.element(), false, raw, &mut Vec::new());
            raw.times(Some((milliseconds(kept.timeout), milliseconds(kept.expires))));
        });
        self.element.times(None);
        Ok(())
    }

    fn check(&self, operation: usize, set: SetName, element: &Element) -> Result<(), EncodeError> {
        let object = || element_words(set, element);
        check_element(self.family, element).map_err(|reason| EncodeError { operation, object: object(), reason })
    }

    /// Appends messages with elements, as many as it takes.
    fn fill<T>(
        &mut self,
        position: usize,
        set: SetName,
        elements: &[T],
        (kind, flags): (u16, u16),
        mut fill: impl FnMut(&T, &mut sys::SetElement),
    ) {
        let raw_set = sys::Set::new(&self.table, &c_name(set.as_str()));
        let mut done = 0;
        while done < elements.len() {
            let header = self.begin(position, done..done, kind, flags);
            let rest = &elements[done..];
            let fill = |index: usize, raw: &mut sys::SetElement| {
                let Some(element) = rest.get(index) else { return false };
                fill(element, raw);
                true
            };
            done += self.messages.elements(header, &raw_set, &mut self.element, fill);
            if let Some(part) = self.parts.last_mut() {
                part.items.end = done;
            }
        }
    }
}

/// What would not fit into registers or a message.
fn check_rule(family: Family, rule: &Rule) -> Result<(), String> {
    if rule.statements.len() > 32 {
        return Err("it has more than 32 statements".to_owned());
    }
    for statement in &rule.statements {
        let (key, data): (&[Selector], &[Selector]) = match statement {
            Statement::InputInterface { name, .. } if name.is_empty() || name.len() >= uapi::IFNAMSIZ => {
                return Err(format!("{name:?} is no interface name: it must have 1 to 15 bytes"));
            }
            Statement::SourceIn { net, .. } | Statement::DestinationIn { net, .. }
                if Family::of(net.addr()) != family =>
            {
                return Err(format!("{net} is no {family} network"));
            }
            Statement::InSet { key, .. }
            | Statement::VerdictMap { key, .. }
            | Statement::PriorityFromMap { key, .. }
            | Statement::DnatMap { key, .. } => (key, &[]),
            Statement::Update { key, data, .. } => (key, data),
            _ => continue,
        };
        let units: usize = key.iter().chain(data).map(|expr| lower::length(family, *expr).div_ceil(4)).sum();
        if key.is_empty() || units > Register::COUNT {
            return Err("its key and data must have 1 to 64 bytes".to_owned());
        }
    }
    Ok(())
}

/// What a kernel cannot know to be wrong, or what would not fit.
pub(super) fn check_element(family: Family, element: &Element) -> Result<(), String> {
    let values = |data: &Data| match data {
        Data::Values(values) => values.iter().copied().collect::<SmallVec<[Value; 2]>>(),
        Data::None | Data::Verdict(_) => SmallVec::new(),
    };
    let all = element.key.iter().chain(element.key_end.iter().flatten()).copied().chain(values(&element.data));
    for value in all {
        if let Value::Address(address) = value
            && Family::of(address) != family
        {
            return Err(format!("{address} is no {family} address"));
        }
    }
    let longest = element.key.len().max(element.key_end.as_ref().map_or(0, |key| key.len()));
    if element.key.is_empty() || pack(&element.key).len() > 64 || longest > Register::COUNT {
        return Err("its key must have 1 to 64 bytes".to_owned());
    }
    if element.key_end.as_ref().is_some_and(|end| pack(end).len() != pack(&element.key).len()) {
        return Err("both ends of an interval must have the same parts".to_owned());
    }
    if matches!(&element.data, Data::Values(values) if values.is_empty() || pack(values).len() > 64) {
        return Err("its data must have 1 to 64 bytes".to_owned());
    }
    Ok(())
}

fn fill_element(element: &Element, deleting: bool, raw: &mut sys::SetElement, user_data: &mut Vec<u8>) {
    raw.key(&pack(&element.key), element.key_end.as_ref().map(|end| pack(end)).as_deref());
    if deleting {
        raw.value(ElementValue::None);
        raw.user_data(None);
        return;
    }
    match &element.data {
        Data::None => raw.value(ElementValue::None),
        Data::Values(values) => raw.value(ElementValue::Data(&pack(values))),
        Data::Verdict(decision) => {
            let (code, chain) = verdict(*decision);
            raw.value(ElementValue::Verdict(code, chain.as_deref()));
        }
    }
    match &element.comment {
        None => raw.user_data(None),
        Some(comment) => {
            user_data.clear();
            udata::comment(comment, user_data);
            raw.user_data(Some(user_data));
        }
    }
}

/// Values as they are concatenated: each begins at a multiple of 4 bytes, unless there is only one.
pub(super) fn pack(values: &[Value]) -> Packed {
    let mut packed = Packed::new();
    for value in values {
        packed.resize(packed.len().next_multiple_of(4), 0);
        match value {
            Value::Address(std::net::IpAddr::V4(address)) => packed.extend_from_slice(&address.octets()),
            Value::Address(std::net::IpAddr::V6(address)) => packed.extend_from_slice(&address.octets()),
            Value::Protocol(protocol) => packed.push(protocol.number()),
            Value::Port(port) => packed.extend_from_slice(&port.to_be_bytes()),
            Value::Slot(number) | Value::Class(number) => packed.extend_from_slice(&number.to_ne_bytes()),
        }
    }
    if values.len() > 1 {
        packed.resize(packed.len().next_multiple_of(4), 0);
    }
    packed
}

/// nft's number of a type: 6 bits for each part (`enum datatypes` of nft's include/datatype.h, `concat_subtype_add`).
///
/// A slot is `uid` there, a number of 32 bits in host byte order, and not the `integer` that nft itself makes of its
/// `typeof`. Readers that know the `typeof` prefer that. nft before 1.0.3 does not know it in a concatenation and goes
/// by this number; an integer has no size for it, and it aborts when it lists two elements that differ in it.
fn type_code(family: Family, exprs: &[Selector]) -> u32 {
    exprs.iter().fold(0, |code, expr| {
        let part = match expr {
            Selector::SourceAddress
            | Selector::DestinationAddress
            | Selector::OriginalSource
            | Selector::OriginalDestination
            | Selector::ReplySource => match family {
                Family::V4 => 7,
                Family::V6 => 8,
            },
            Selector::L4Proto | Selector::HeaderProtocol => 12,
            Selector::DestinationPort | Selector::OriginalPort | Selector::ReplyPort => 13,
            Selector::Priority => TYPE_CLASSID,
            Selector::RandomSlot { .. } | Selector::NextSlot { .. } | Selector::HashedSlot { .. } => TYPE_UID,
        };
        code << 6 | part
    })
}

fn foreign_name(operation: usize, what: &str, name: &str) -> Result<CName, EncodeError> {
    let error = |reason: &str| EncodeError { operation, object: format!("{what} {name:?}"), reason: reason.to_owned() };
    if name.is_empty() || name.len() > 255 {
        return Err(error("a name has 1 to 255 bytes"));
    }
    CString::new(name).map_err(|_| error("a name holds no NUL"))
}

/// An element as text: `map service-ips, element 10.96.0.1 . tcp . 80`.
pub(super) fn element_words(set: SetName, element: &Element) -> String {
    format!("{set}, element {}", KeyWords(&element.key, element.key_end.as_ref().map(|key| key.as_slice())))
}

struct KeyWords<'a>(&'a [Value], Option<&'a [Value]>);

impl fmt::Display for KeyWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, value) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(" . ")?;
            }
            write_value(f, *value)?;
            if let Some(end) = self.1.and_then(|end| end.get(position))
                && end != value
            {
                f.write_char('-')?;
                write_value(f, *end)?;
            }
        }
        Ok(())
    }
}

fn write_value(f: &mut fmt::Formatter<'_>, value: Value) -> fmt::Result {
    match value {
        Value::Address(address) => write!(f, "{address}"),
        Value::Protocol(protocol) => write!(f, "{protocol}"),
        Value::Port(port) => write!(f, "{port}"),
        Value::Slot(slot) => write!(f, "{slot}"),
        Value::Class(class) => write!(f, "{:x}:{:x}", class >> 16, class & 0xffff),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::netlink::{find, messages};
    use crate::ruleset::names::ChainName;
    use crate::ruleset::types::Chain;
    use crate::ruleset::types::Key;

    fn address_element(n: u32, comment: Option<&str>) -> Element {
        let address = Value::Address(std::net::Ipv4Addr::from(n).into());
        let key = Key::from_slice(&[address, Value::Protocol(Protocol::Tcp), Value::Port(80)]);
        Element {
            key,
            key_end: None,
            data: Data::Verdict(crate::ruleset::types::Verdict::Drop),
            comment: comment.map(Into::into),
        }
    }

    #[test]
    fn a_batch_is_one_piece_that_asks_for_one_answer() {
        let elements: Vec<_> = (0..10_000).map(|n| address_element(n, None)).collect();
        let operations = vec![
            Operation::AddTable,
            Operation::AddElements(SetName::ServiceIps, Vec::new()),
            Operation::AddElements(SetName::ServiceIps, elements.clone()),
            Operation::FlushChain(ChainName::Services),
        ];
        // Sequence numbers may wrap around in the middle of a batch.
        for first in [1, u32::MAX - 2] {
            let batch = encode(
                TableName::NODE,
                &Transaction { family: Family::V4, operations: operations.clone() },
                first,
                false,
            )
            .expect("bytes");
            let all: Vec<_> = messages(batch.bytes()).collect::<Result<_, _>>().expect("messages");
            assert_eq!(all.len(), batch.parts().len() + 2);
            assert!(all.iter().enumerate().all(|(n, message)| message.sequence == first.wrapping_add(n as u32)));
            let acks: Vec<_> = all.iter().filter(|m| m.flags & uapi::NLM_F_ACK != 0).map(|m| m.sequence).collect();
            assert_eq!(acks, [batch.last_sequence()]);
            // NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END.
            assert_eq!((all[0].kind, all[all.len() - 1].kind), (16, 17));
            assert_eq!(batch.part(first), None);
            assert_eq!(batch.part(first.wrapping_add(1)).map(|part| part.operation), Some(0));
            assert_eq!(batch.part(batch.last_sequence()).map(|part| part.operation), Some(3));
            assert_eq!(batch.part(batch.last_sequence().wrapping_add(1)), None);
            assert!(batch.contains(first) && !batch.contains(first.wrapping_sub(1)));

            // The elements are all there, in order, in lists that fit into an attribute.
            let lists: Vec<_> = batch.parts().iter().filter(|part| part.operation == 2).collect();
            assert!(lists.len() > 5);
            assert_eq!((lists[0].items.start, lists[lists.len() - 1].items.end), (0, elements.len()));
            assert!(lists.windows(2).all(|pair| pair[0].items.end == pair[1].items.start));
            for part in lists {
                let message = Message::first(&batch.bytes()[part.at..]).expect("a message");
                let list = find(message.attributes(), uapi::NFTA_SET_ELEM_LIST_ELEMENTS).expect("a list");
                let positions: Vec<_> = children(&list).map(|element| element.offset).collect();
                assert_eq!(positions.len(), part.items.len());
                for (item, offset) in part.items.clone().zip(positions).step_by(97) {
                    assert_eq!(batch.element_at(part, offset), Some(item));
                    assert_eq!(batch.element_at(part, offset + 8), Some(item));
                }
                assert_eq!(batch.element_at(part, list.offset), None);
                assert_eq!(batch.element_at(part, usize::MAX), None);
            }
        }
    }

    #[test]
    fn long_comments_are_cut() {
        let text = "ä".repeat(200);
        let transaction = Transaction {
            family: Family::V4,
            operations: vec![Operation::AddElements(SetName::ServiceIps, vec![address_element(1, Some(&text))])],
        };
        let batch = encode(TableName::NODE, &transaction, 0, false).expect("bytes");
        let bytes = batch.bytes();
        let cut = &text.as_bytes()[..128];
        assert!(bytes.windows(129).any(|window| window[..128] == *cut && window[128] == 0));
    }

    #[test]
    fn what_cannot_be_encoded_is_named() {
        let long = Element { key: Key::from_elem(Value::Slot(0), 17), ..address_element(1, None) };
        let uneven = Element { key_end: Some(Key::from_slice(&[Value::Port(1)])), ..address_element(1, None) };
        let empty = Element { key: Key::new(), ..address_element(1, None) };
        let interval = SetDef {
            name: SetName::ClusterIps,
            key: vec![Selector::DestinationAddress],
            data: DataDef::None,
            interval: true,
            dynamic: false,
            size: None,
            counter: false,
        };
        let add = |element| Operation::AddElements(SetName::ServiceIps, vec![element]);
        let rule = |statement| {
            let rules = vec![Rule { statements: vec![statement], comment: None }];
            Operation::AddRules(Chain { name: ChainName::Services, hook: None, rules })
        };
        let interface =
            |name: &str| rule(Statement::InputInterface { name: name.into(), prefix: true, negated: false });
        let vmap = |key| rule(Statement::VerdictMap { key, map: SetName::ServiceIps });
        let net = "10.0.0.0/8".parse().expect("a network");
        let cases = [
            (Family::V6, add(address_element(0x0a60_0001, None)), "service-ips, element 10.96.0.1 . tcp . 80", "IPv6"),
            (Family::V4, add(long), "service-ips, element 0 . 0", "64 bytes"),
            (Family::V4, add(uneven), "service-ips, element 0.0.0.1-1 . tcp . 80", "both ends"),
            (Family::V4, add(empty), "service-ips, element ", "64 bytes"),
            (Family::V4, Operation::AddSet(interval), "set cluster-ips", "concatenated"),
            (Family::V4, interface("0123456789abcdef"), "chain services, rule 1", "15 bytes"),
            (Family::V4, interface(""), "chain services, rule 1", "15 bytes"),
            (Family::V4, vmap(vec![Selector::SourceAddress; 17]), "chain services, rule 1", "64 bytes"),
            (Family::V6, vmap(vec![Selector::SourceAddress; 5]), "chain services, rule 1", "64 bytes"),
            (Family::V4, vmap(vec![]), "chain services, rule 1", "64 bytes"),
            (Family::V6, rule(Statement::SourceIn { net, negated: false }), "chain services, rule 1", "IPv6 network"),
            (Family::V4, Operation::DeleteForeignChain("a\0b".to_owned()), "chain \"a\\0b\"", "NUL"),
            (Family::V4, Operation::DeleteForeignSet("x".repeat(256)), "set \"xxx", "255"),
        ];
        for (family, operation, object, reason) in cases {
            let transaction = Transaction { family, operations: vec![Operation::AddTable, operation] };
            let error = encode(TableName::NODE, &transaction, 0, false).expect_err(object);
            assert_eq!(error.operation, 1);
            assert!(error.object.starts_with(object), "{error:?}");
            assert!(error.reason.contains(reason), "{error:?}");
        }
    }
}
