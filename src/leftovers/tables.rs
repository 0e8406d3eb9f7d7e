//! Tables and chains of others in nftables, among them those of iptables-nft.

use std::collections::BTreeMap;
use std::io;

use super::early::{self, EarlyTable};
use super::names::TABLE;
use super::plan::Jump;
use super::rules;
use super::values::{
    DATA_VERDICT, EXPRESSION_DATA, EXPRESSION_NAME, IMMEDIATE_DATA, VERDICT_CHAIN, be32, inside, string, terminated,
};
use super::walk::{Chain, Rule};
use crate::netlink::{Builder, Bus, DUMP, Dump, REQUEST, Socket, attributes};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
pub(crate) const SUBSYSTEM: u16 = 10 << 8;
pub(crate) const GET_TABLE: u16 = SUBSYSTEM | 1;
pub(crate) const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
pub(crate) const TABLE_NAME: u16 = 1;
pub(crate) const CHAIN_TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;
pub(crate) const HOOK_NUMBER: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;
/// `NF_IP_PRI_NAT_DST`.
const TRANSLATION: i32 = -100;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
/// `NF_DROP`.
pub(crate) const DROP: u32 = 0;
/// `NFPROTO_*` of the families whose chains see IP packets on their way through the node.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// The others.
const OTHER_FAMILIES: [(u8, &str); 3] = [(3, "arp"), (5, "netdev"), (7, "bridge")];
/// `NF_INET_*`.
pub(crate) const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// How often a listing that the kernel interrupted is begun again.
pub(crate) const ATTEMPTS: usize = 5;
/// Length of `struct nfgenmsg`.
pub(crate) const FAMILY_HEADER: usize = 4;

/// Tables, with their chains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Listed {
    /// By family (as nft writes it) and name.
    pub(crate) tables: BTreeMap<(&'static str, String), Vec<Chain>>,
}

/// Lists the tables of this network namespace.
pub(crate) fn list() -> io::Result<Listed> {
    for _ in 0..ATTEMPTS {
        let mut socket = Socket::open(Bus::Netfilter)?;
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

/// The same, with the rules of tables that filter: of others, not of kube-proxy's own, which have a few for each Service.
/// `mark` is the bit that we mark with.
pub(crate) fn list_with_rules(mark: u32) -> io::Result<Listed> {
    for _ in 0..ATTEMPTS {
        let mut listed = list()?;
        match listed.take_in_rules(mark) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(|()| listed),
        }
    }
    Err(io::Error::other("the tables change all the time"))
}

/// The family and the name of a table.
type TableKey = (&'static str, String);

/// Tables, as far as rules matter that see packets early.
pub(crate) type EarlyTables = BTreeMap<TableKey, EarlyTable>;

/// Tables that have chains ahead of destination translation where packets come in or are sent, or chains at hook `forward`,
/// with all of their rules.
///
/// # Errors
/// They cannot be listed.
pub(crate) fn list_early() -> io::Result<EarlyTables> {
    for _ in 0..ATTEMPTS {
        match try_list_early() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    Err(io::Error::other("the tables change all the time"))
}

fn try_list_early() -> io::Result<EarlyTables> {
    let mut socket = Socket::open(Bus::Netfilter)?;
    let mut tables = EarlyTables::new();
    let request = Builder::message(GET_CHAIN, REQUEST | DUMP, socket.next_sequence(), &[0; FAMILY_HEADER]).finish();
    let ended = socket.dump(&request, |message| {
        // kube-proxy's own has none.
        match base_chain(message.payload) {
            Some((key, (chain, "forward", _))) => tables.entry(key).or_default().forward.push(chain),
            Some((key, (chain, hook @ ("prerouting" | "output"), ..TRANSLATION))) => {
                tables.entry(key).or_default().bases.push((chain, hook));
            }
            _ => {}
        }
    })?;
    if ended == Dump::Interrupted {
        return Err(io::ErrorKind::Interrupted.into());
    }
    for ((family, table), found) in &mut tables {
        dump_rules(&mut socket, family, table, |chain, parts| {
            let expressions = parts.get(&RULE_EXPRESSIONS).copied().unwrap_or_default();
            found.rules.entry(chain.to_owned()).or_default().push(early::rule(expressions));
        })?;
    }
    Ok(tables)
}

/// The table of a base chain, its name, its hook and its priority.
fn base_chain(payload: &[u8]) -> Option<(TableKey, (String, &'static str, i32))> {
    let (_, family) = FAMILIES.iter().find(|(number, _)| payload.first() == Some(number))?;
    let parts: BTreeMap<u16, &[u8]> = attributes(payload.get(FAMILY_HEADER..)?).collect();
    let hook: BTreeMap<u16, &[u8]> = attributes(parts.get(&CHAIN_HOOK)?).collect();
    let name = HOOKS.get(usize::try_from(be32(hook.get(&HOOK_NUMBER)?)?).ok()?)?;
    let priority = be32(hook.get(&HOOK_PRIORITY)?)?.cast_signed();
    let text = |kind| parts.get(&kind).map(|bytes| string(bytes));
    Some(((*family, text(CHAIN_TABLE)?), (text(CHAIN_NAME)?, *name, priority)))
}

/// The bit that we mark with, as a rule of a table of ours says.
pub(crate) fn mark_of(table: &str) -> io::Result<Option<u32>> {
    let mut mark = None;
    for family in ["ip", "ip6"] {
        let mut socket = Socket::open(Bus::Netfilter)?;
        dump_rules(&mut socket, family, table, |_, parts| {
            mark = mark.or_else(|| rules::mark(parts.get(&RULE_EXPRESSIONS).copied().unwrap_or_default()));
        })?;
    }
    Ok(mark)
}

/// Gives the attributes of all rules of a table to `each`, with the name of the chain.
///
/// # Errors
/// Also when rules changed meanwhile: then it is to be listed again.
pub(crate) fn dump_rules(
    socket: &mut Socket,
    family: &str,
    table: &str,
    mut each: impl FnMut(&str, &BTreeMap<u16, &[u8]>),
) -> io::Result<()> {
    let request = Builder::message(GET_RULE, REQUEST | DUMP, socket.next_sequence(), &family_header(family))
        .attribute(RULE_TABLE, &terminated(table))
        .finish();
    let ended = socket.dump(&request, |message| {
        let parts = attributes(message.payload.get(FAMILY_HEADER..).unwrap_or_default()).collect::<BTreeMap<_, _>>();
        let text = |kind| parts.get(&kind).map(|bytes| string(bytes));
        // Old kernels take no notice of the name in the request.
        if text(RULE_TABLE).is_some_and(|of| of == table)
            && let Some(chain) = text(RULE_CHAIN)
        {
            each(&chain, &parts);
        }
    })?;
    match ended {
        Dump::Complete => Ok(()),
        Dump::Interrupted => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Lists the rules of a table that jump to a chain or go there, by their handles.
///
/// # Errors
/// Also when rules changed meanwhile: then it is to be listed again.
pub(super) fn jumps(socket: &mut Socket, family: &str, table: &str) -> io::Result<Vec<Jump<u64>>> {
    let mut found = Vec::new();
    dump_rules(socket, family, table, |from, parts| found.extend(jumps_of_rule(from, parts)))?;
    Ok(found)
}

/// The jumps in a rule.
pub(super) fn jumps_of_rule(from: &str, parts: &BTreeMap<u16, &[u8]>) -> impl Iterator<Item = Jump<u64>> {
    let rule = parts.get(&RULE_HANDLE).and_then(|handle| Some(u64::from_be_bytes(*handle.first_chunk()?)));
    let expressions = parts.get(&RULE_EXPRESSIONS).copied().unwrap_or_default();
    rule.into_iter().flat_map(move |rule| {
        attributes(expressions).filter_map(|(_, expression)| target(expression)).map(move |to| Jump {
            from: from.to_owned(),
            to,
            rule,
        })
    })
}

/// The chain that an expression leads to.
fn target(expression: &[u8]) -> Option<String> {
    if string(inside(expression, EXPRESSION_NAME)?) != "immediate" {
        return None;
    }
    let path = [EXPRESSION_DATA, IMMEDIATE_DATA, DATA_VERDICT, VERDICT_CHAIN];
    path.into_iter().try_fold(expression, inside).map(string)
}

impl Listed {
    fn take_in_rules(&mut self, mark: u32) -> io::Result<()> {
        let mut socket = Socket::open(Bus::Netfilter)?;
        for ((family, table), chains) in &mut self.tables {
            if table == TABLE || !chains.iter().any(|chain| chain.filters) {
                continue;
            }
            let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
            dump_rules(&mut socket, family, table, |chain, parts| {
                let expressions = parts.get(&RULE_EXPRESSIONS).copied().unwrap_or_default();
                rules.entry(chain.to_owned()).or_default().push(rules::rule(expressions, mark));
            })?;
            for chain in chains {
                chain.rules = rules.remove(&chain.name).unwrap_or_default();
            }
        }
        Ok(())
    }

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
            let filters = hook.is_some() && text(CHAIN_TYPE).is_some_and(|kind| kind != "nat");
            let chain = Chain { name, hook, drops, filters, rules: Vec::new() };
            self.tables.entry((family, table)).or_default().push(chain);
        }
    }
}

/// A family as nft writes it.
pub(crate) fn family_name(number: u8) -> Option<&'static str> {
    FAMILIES.into_iter().chain(OTHER_FAMILIES).find(|(family, _)| *family == number).map(|(_, name)| name)
}

/// `struct nfgenmsg` for requests about a family.
pub(crate) fn family_header(family: &str) -> [u8; FAMILY_HEADER] {
    let mut all = FAMILIES.into_iter().chain(OTHER_FAMILIES);
    [all.find(|(_, name)| *name == family).map_or(0, |(number, _)| number), 0, 0, 0]
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
            let parts = attributes(&bytes).collect();
            let _ = jumps_of_rule("chain", &parts).count();
            let _ = rules::rule(&bytes, 0x4000);
        }
    }
}
