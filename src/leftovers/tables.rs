//! Tables and chains of others in nftables, among them those of iptables-nft.

use std::collections::BTreeMap;
use std::io;

use nix::sys::socket::SockProtocol;

use super::plan::Jump;
use crate::nlmsg::{Builder, DUMP, Dump, REQUEST, Socket, attributes};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFPROTO_*` of the families whose chains see IP packets on their way through the node.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// `NF_INET_*`.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// How often a listing that the kernel interrupted is begun again.
pub(super) const ATTEMPTS: usize = 5;
/// Length of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// Tables, with their chains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Listed {
    /// By family (as nft writes it) and name.
    pub(crate) tables: BTreeMap<(&'static str, String), Vec<Chain>>,
}

/// A chain, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: String,
    /// The hook that it is at.
    pub(crate) hook: Option<&'static str>,
    /// Whether what no rule accepts is dropped there.
    pub(crate) drops: bool,
}

/// Lists the tables of this network namespace.
pub(crate) fn list() -> io::Result<Listed> {
    for _ in 0..ATTEMPTS {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        let mut listed = Listed::default();
        let mut complete = true;
        for kind in [GET_TABLE, GET_CHAIN] {
            let request = Builder::message(kind, REQUEST | DUMP, socket.next_sequence(), &[0; FAMILY_HEADER]).finish();
            complete &= socket.dump(&request, |message| listed.take(kind, message.payload))? == Dump::Complete;
        }
        if complete {
            return Ok(listed);
        }
    }
    Err(io::Error::other("the tables change all the time"))
}

/// Lists the rules of a table that jump to a chain or go there, by their handles.
///
/// # Errors
/// Also when rules changed meanwhile: then it is to be listed again.
pub(super) fn jumps(socket: &mut Socket, family: &str, table: &str) -> io::Result<Vec<Jump<u64>>> {
    let header = family_header(family);
    let request = Builder::message(GET_RULE, REQUEST | DUMP, socket.next_sequence(), &header)
        .attribute(RULE_TABLE, &terminated(table))
        .finish();
    let mut found = Vec::new();
    let ended = socket.dump(&request, |message| {
        let payload = message.payload.get(FAMILY_HEADER..).unwrap_or_default();
        // Old kernels take no notice of the name in the request.
        found.extend(jumps_of_rule(payload).filter(|(in_table, _)| in_table == table).map(|(_, jump)| jump));
    })?;
    match ended {
        Dump::Complete => Ok(found),
        Dump::Interrupted => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// The jumps in a rule, each with the rule's table.
fn jumps_of_rule(payload: &[u8]) -> impl Iterator<Item = (String, Jump<u64>)> {
    let parts: BTreeMap<u16, &[u8]> = attributes(payload).collect();
    let part = |kind| parts.get(&kind).copied();
    let rule = part(RULE_HANDLE).and_then(|handle| Some(u64::from_be_bytes(*handle.first_chunk()?)));
    let place = Option::zip(part(RULE_TABLE).map(string), part(RULE_CHAIN).map(string)).zip(rule);
    let expressions = part(RULE_EXPRESSIONS).unwrap_or_default();
    place.into_iter().flat_map(move |((table, from), rule)| {
        attributes(expressions)
            .filter_map(|(_, expression)| target(expression))
            .map(move |to| (table.clone(), Jump { from: from.clone(), to, rule }))
    })
}

/// The chain that an expression leads to.
fn target(expression: &[u8]) -> Option<String> {
    let inside = |bytes, kind| attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value);
    if string(inside(expression, EXPRESSION_NAME)?) != "immediate" {
        return None;
    }
    let path = [EXPRESSION_DATA, IMMEDIATE_DATA, DATA_VERDICT, VERDICT_CHAIN];
    path.into_iter().try_fold(expression, inside).map(string)
}

impl Listed {
    /// Takes in a message; one that cannot be read is of no table that matters.
    fn take(&mut self, kind: u16, payload: &[u8]) {
        let Some(&(_, family)) =
            payload.first().and_then(|number| FAMILIES.iter().find(|(family, _)| family == number))
        else {
            return;
        };
        let parts: BTreeMap<u16, &[u8]> = attributes(payload.get(FAMILY_HEADER..).unwrap_or_default()).collect();
        let text = |kind: u16| parts.get(&kind).map(|bytes| string(bytes));
        if kind == GET_TABLE {
            if let Some(table) = text(TABLE_NAME) {
                self.tables.entry((family, table)).or_default();
            }
        } else if let (Some(table), Some(name)) = (text(CHAIN_TABLE), text(CHAIN_NAME)) {
            let hook = parts.get(&CHAIN_HOOK).and_then(|hook| {
                let number = attributes(hook).find(|(kind, _)| *kind == HOOK_NUMBER)?.1;
                HOOKS.get(usize::try_from(be32(number)?).ok()?).copied()
            });
            let drops = parts.get(&CHAIN_POLICY).and_then(|policy| be32(policy)) == Some(DROP);
            self.tables.entry((family, table)).or_default().push(Chain { name, hook, drops });
        }
    }
}

/// `struct nfgenmsg` for requests about a family.
pub(super) fn family_header(family: &str) -> [u8; FAMILY_HEADER] {
    let number = FAMILIES.iter().find(|(_, name)| *name == family).map_or(0, |(number, _)| *number);
    [number, 0, 0, 0]
}

/// A text as netlink has it.
pub(super) fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A text that may end in a zero.
pub(super) fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// A number in network byte order.
pub(super) fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

        #[test]
        fn any_bytes_can_be_taken_in(bytes in proptest::collection::vec(any::<u8>(), 0..128), chain: bool) {
            let mut listed = Listed::default();
            listed.take(if chain { GET_CHAIN } else { GET_TABLE }, &bytes);
            let _ = jumps_of_rule(&bytes).count();
        }
    }
}
