//! What the counters of frontends say.

use std::time::{Duration, Instant};

use super::decode;
use super::kernel::KernelError;
use super::lookup::{AT_ONCE, get};
use super::numbers::protocol_family;
use super::request::{NftablesMessage as _, Request, open, unexpected};
use super::table::NOT_THERE;
use super::uapi::{self, msg};
use crate::diff::{Operation, Transaction};
use crate::errors;
use crate::model::{Family, FrontendKey};
use crate::netlink::{Attribute, Message, Socket, children, find};
use crate::ruleset::base;
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::elements::{element_key, entry_set};
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::types::{Element, Key};

/// Who is told what frontends have counted that are deleted.
pub(super) type Listener = Box<dyn FnMut(Vec<FrontendCount>, Instant) + Send>;

/// How long the counters of a table are read that is to be replaced: some 40,000 in that time. The old table serves meanwhile.
const READING: Duration = Duration::from_secs(1);

/// What frontends had counted that a transaction deletes.
///
/// The kernel says it along with its answer (`NLM_F_ECHO`), up to the last packet. Where many are deleted, or all with their
/// table, it is read before: what comes between that and the commit is lost.
pub(super) struct Deleted {
    table: TableName,
    family: Family,
    elements: Vec<(SetName, Vec<Element>)>,
    with_table: bool,
    counts: Vec<FrontendCount>,
}

impl Deleted {
    /// Those that a transaction deletes, if they are asked for. What the kernel is not to tell is read; counters are worth
    /// no failure.
    pub(super) fn by(table: TableName, transaction: &Transaction, socket: Option<&mut Socket>) -> Deleted {
        let operations = if socket.is_some() { &transaction.operations[..] } else { &[] };
        let elements = operations.iter().filter_map(|operation| match operation {
            Operation::DeleteElements(set, elements) if set.is_entry() => Some((*set, elements.clone())),
            _ => None,
        });
        let mut deleted = Deleted {
            table,
            family: transaction.family,
            elements: elements.collect(),
            with_table: operations.contains(&Operation::DeleteTable),
            counts: Vec::new(),
        };
        if let Some(socket) = socket
            && !deleted.is_echoed()
            && let Err(error) = deleted.read(socket)
        {
            tracing::debug!("what is deleted is not counted to its end: {}", errors::text(&error));
        }
        deleted
    }

    /// Whether the kernel is to tell.
    pub(super) fn is_echoed(&self) -> bool {
        let count: usize = self.elements.iter().map(|(_, elements)| elements.len()).sum();
        !self.with_table && (1..=AT_ONCE).contains(&count)
    }

    fn read(&mut self, socket: &mut Socket) -> Result<(), KernelError> {
        let (table, family) = (self.table, self.family);
        let Deleted { elements, counts: found, .. } = self;
        if self.with_table {
            let until = Instant::now() + READING;
            for set in SetName::ENTRIES {
                let texts = [(uapi::NFTA_TABLE, table.as_str()), (uapi::NFTA_NAME, set.as_str())];
                let kind = msg::GETSETELEM;
                let request = Request { kind, family: protocol_family(family), dump: true, texts: &texts };
                // What is not read of a dump goes with its socket.
                let each = |message: &Message<'_>| found.extend(counts(message, family, set));
                match request.ask_while(&mut open()?, || Instant::now() < until, each)? {
                    Ok(_) | Err(NOT_THERE) => {}
                    Err(errno) => return Err(unexpected("read counters", errno)),
                }
            }
            return Ok(());
        }
        for (set, elements) in elements {
            for some in elements.chunks(AT_ONCE) {
                let each = |message: &Message<'_>| found.extend(counts(message, family, *set));
                let keys: Vec<&Key> = some.iter().map(|element| &element.key).collect();
                get(socket, table, family, *set, &keys, each)?;
            }
        }
        Ok(())
    }

    /// The kernel says something besides its answer.
    pub(super) fn echo(&mut self, message: &Message<'_>) {
        let name = decode::text(message, uapi::NFTA_NAME).and_then(SetName::parse);
        if message.nftables() == Some(msg::DELSETELEM)
            && message.family() == Some(protocol_family(self.family))
            && let Some(set) = name.filter(|set| set.is_entry())
        {
            self.counts.extend(counts(message, self.family, set));
        }
    }

    /// What they had counted.
    pub(super) fn counts(&self) -> &[FrontendCount] {
        &self.counts
    }
}

/// What the frontends in a message with elements of one of their maps have counted; those that do not count are left out.
pub(super) fn counts<'a>(
    message: &Message<'a>,
    family: Family,
    set: SetName,
) -> impl Iterator<Item = FrontendCount> + use<'a> {
    let def = base::set(set);
    let list = find(message.attributes(), uapi::NFTA_SET_ELEM_LIST_ELEMENTS);
    list.into_iter().flat_map(|list| children(&list)).filter_map(move |raw| {
        let (packets, bytes) = counter(&raw)?;
        FrontendCount::read(family, set, &decode::element(&raw, family, &def)?, packets, bytes)
    })
}

/// What these frontends of a family have counted, each asked for by its key.
pub(super) fn of(
    socket: &mut Socket,
    table: TableName,
    family: Family,
    keys: &[FrontendKey],
) -> Result<Vec<FrontendCount>, KernelError> {
    let mut found = Vec::new();
    for key in keys {
        let set = entry_set(key);
        get(socket, table, family, set, &[&element_key(key)], |message| {
            // An element that stands for all keys is of none of them.
            found.extend(counts(message, family, set).filter(|count| count.key == *key));
        })?;
    }
    Ok(found)
}

/// Packets and bytes of an element's counter.
fn counter(element: &Attribute<'_>) -> Option<(u64, u64)> {
    let expression = find(element.attributes(), uapi::NFTA_SET_ELEM_EXPR)?;
    if find(expression.attributes(), uapi::NFTA_EXPR_NAME)?.text() != Some("counter") {
        return None;
    }
    let data = find(expression.attributes(), uapi::NFTA_EXPR_DATA)?;
    let number = |kind| Some(u64::from_be_bytes(find(data.attributes(), kind)?.value.try_into().ok()?));
    Some((number(uapi::NFTA_COUNTER_PACKETS)?, number(uapi::NFTA_COUNTER_BYTES)?))
}
