//! kube-proxy's tables of nftables, and its chains in the tables of iptables-nft, removed over netlink.
//!
//! Chains of iptables-nft hold expressions that only iptables can read. Rules are deleted by their handles and chains by
//! their names, so that they need not be read.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;

use super::advice::{self, Place};
use super::names::{IPTABLES, TABLE, is_chain};
use super::plan::Plan;
use super::tables::{self, ATTEMPTS, Listed, SUBSYSTEM, family_header, jumps};
use super::values::{be32, terminated};
use super::walk::needed;
use super::{Outcome, Remaining};
use crate::netlink::{ACK, Builder, Bus, REQUEST, Socket, attributes};

const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `struct nfgenmsg` of the beginning and the end of a batch: for nftables, whose number is in network byte order.
const BATCH_HEADER: [u8; 4] = [0, 0, 0, 10];
/// `NFNL_BATCH_GENID`: carry it out only if nothing has changed since.
const BATCH_GENERATION: u16 = 1;
const GENERATION_ID: u16 = 1;
/// `struct nfgenmsg` of a question about all families.
const NO_FAMILY: [u8; 4] = [0; 4];
/// Attributes of the messages that delete.
const TABLE_ATTRIBUTE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;

/// Chains for one transaction: few enough for a socket's buffer.
const CHAINS_AT_ONCE: usize = 500;

/// What is to be removed, as of a generation of the tables.
struct Inventory {
    generation: u32,
    /// Families with a table of kube-proxy.
    tables: Vec<&'static str>,
    /// By family and table of iptables.
    plans: BTreeMap<(&'static str, String), Plan<u64>>,
    /// All tables, with the rules of those that filter.
    listed: Listed,
}

/// One thing to delete.
enum Deletion<'a> {
    Table {
        family: &'a str,
    },
    Rule {
        family: &'a str,
        table: &'a str,
        chain: &'a str,
        handle: u64,
    },
    /// All rules of a chain.
    Rules {
        family: &'a str,
        table: &'a str,
        chain: &'a str,
    },
    Chain {
        family: &'a str,
        table: &'a str,
        chain: &'a str,
    },
}

/// Removes them.
pub(super) fn remove(mark: u32, outcome: &mut Outcome) {
    let found = match switch(mark) {
        Ok(found) => found,
        Err(error) => {
            let what = format!("kube-proxy's tables and chains in nftables cannot be removed: {error}");
            let fix = "as root or with CAP_NET_ADMIN: nftproxyd cleanup --kube-proxy".to_owned();
            return outcome.remains.push(Remaining { what, fix });
        }
    };
    outcome.removed.extend(found.tables.iter().map(|family| format!("table {family} {TABLE}")));
    for ((family, table), plan) in &found.plans {
        let tool = if *family == "ip6" { "ip6tables" } else { "iptables" };
        let (jumps, chains) = (plan.jumps.len(), plan.chains.len());
        let what =
            format!("{chains} chains of kube-proxy in table {family} {table}, with {jumps} rules that led there");
        let removed = if plan.is_empty() { Ok(()) } else { remove_chains(family, table, &plan.chains) };
        if !plan.is_empty() {
            outcome.note(what, removed, format!("nothing leads there any more; see: {tool}-nft-save | grep KUBE-"));
        }
        for (chain, by) in &plan.kept {
            let what = format!("chain {family} {table} {chain} (chain {by} of somebody else leads to it)");
            let fix = "leave it, or have its owner use another chain for marks".to_owned();
            outcome.remains.push(Remaining { what, fix });
        }
    }
    for ((family, table), chains) in &found.listed.tables {
        let place = Place::Nft(family, table);
        let needed = found.plans.get(&(*family, table.clone())).map_or(&[][..], |plan| &plan.needed);
        needed.iter().for_each(|(from, chain)| outcome.keep(&place, chains, from, chain));
        if table != TABLE {
            outcome.dropping.extend(advice::dropping(&place, chains, needed));
        }
    }
}

/// Deletes, in one transaction, kube-proxy's tables and the rules that lead to its chains. Returns what it has found.
fn switch(mark: u32) -> io::Result<Inventory> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let result = find(mark).and_then(|found| commit(&found.switch(), Some(found.generation)).map(|()| found));
        match result {
            // Somebody else has changed something in between.
            Err(error) if attempt < ATTEMPTS && is_conflict(&error) => {}
            result => return result,
        }
    }
}

fn is_conflict(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
        || matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ERESTART | Errno::EINTR | Errno::ENOENT))
}

fn find(mark: u32) -> io::Result<Inventory> {
    let mut socket = Socket::open(Bus::Netfilter)?;
    let generation = generation(&mut socket)?;
    let listed = tables::list_with_rules(mark)?;
    let families = ["ip", "ip6"];
    let is_there = |family: &&'static str| listed.tables.contains_key(&(*family, TABLE.to_owned()));
    let mut plans = BTreeMap::new();
    for ((family, table), chains) in &listed.tables {
        let is_of_iptables = families.contains(family) && IPTABLES.contains(&table.as_str());
        if is_of_iptables && chains.iter().any(|chain| is_chain(&chain.name)) {
            let jumps = jumps(&mut socket, family, table)?;
            let needed = needed(chains);
            let chains = chains.iter().map(|chain| (chain.name.clone(), chain.hook.is_some())).collect();
            plans.insert((*family, table.clone()), Plan::of(&chains, &jumps, needed));
        }
    }
    let tables = families.into_iter().filter(is_there).collect();
    Ok(Inventory { generation, tables, plans, listed })
}

impl Inventory {
    fn switch(&self) -> Vec<Deletion<'_>> {
        let tables = self.tables.iter().map(|family| Deletion::Table { family });
        let rules = self.plans.iter().flat_map(|((family, table), plan)| {
            plan.jumps.iter().map(move |jump| Deletion::Rule { family, table, chain: &jump.from, handle: jump.rule })
        });
        tables.chain(rules).collect()
    }
}

/// Removes chains that nothing outside of them leads to. First all lose their rules, since chains lead to each other.
fn remove_chains(family: &str, table: &str, chains: &[String]) -> io::Result<()> {
    for some in chains.chunks(CHAINS_AT_ONCE) {
        commit(&some.iter().map(|chain| Deletion::Rules { family, table, chain }).collect::<Vec<_>>(), None)?;
    }
    for some in chains.chunks(CHAINS_AT_ONCE) {
        commit(&some.iter().map(|chain| Deletion::Chain { family, table, chain }).collect::<Vec<_>>(), None)?;
    }
    Ok(())
}

/// The number of the last change of any table.
fn generation(socket: &mut Socket) -> io::Result<u32> {
    let request = Builder::message(GET_GENERATION, REQUEST | ACK, socket.next_sequence(), &NO_FAMILY).finish();
    let mut generation = None;
    socket.dump(&request, |message| {
        let id = attributes(message.payload.get(NO_FAMILY.len()..).unwrap_or_default());
        generation = id.filter(|(kind, _)| *kind == GENERATION_ID).find_map(|(_, value)| be32(value)).or(generation);
    })?;
    generation.ok_or_else(|| io::Error::other("the kernel does not say which generation its tables are of"))
}

/// Carries them out together or not at all; with a generation, only if nothing has changed since.
fn commit(deletions: &[Deletion<'_>], generation: Option<u32>) -> io::Result<()> {
    let Some(last) = deletions.len().checked_sub(1) else {
        return Ok(());
    };
    let mut socket = Socket::open(Bus::Netfilter)?;
    let first = socket.next_sequence();
    let begin = Builder::message(BATCH_BEGIN, REQUEST, first, &BATCH_HEADER);
    let mut batch = match generation {
        Some(id) => begin.attribute(BATCH_GENERATION, &id.to_be_bytes()),
        None => begin,
    }
    .finish();
    let mut answered = first;
    for (index, deletion) in deletions.iter().enumerate() {
        answered = socket.next_sequence();
        batch.extend(deletion.message(if index == last { REQUEST | ACK } else { REQUEST }, answered));
    }
    batch.extend(Builder::message(BATCH_END, REQUEST, socket.next_sequence(), &BATCH_HEADER).finish());
    socket.execute_batch(&batch, first..=answered)
}

impl Deletion<'_> {
    fn message(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let message = |kind, family: &str, table: &str| {
            Builder::message(kind, flags, sequence, &family_header(family))
                .attribute(TABLE_ATTRIBUTE, &terminated(table))
        };
        match *self {
            Deletion::Table { family } => message(DELETE_TABLE, family, TABLE),
            Deletion::Rule { family, table, chain, handle } => message(DELETE_RULE, family, table)
                .attribute(RULE_CHAIN, &terminated(chain))
                .attribute(RULE_HANDLE, &handle.to_be_bytes()),
            Deletion::Rules { family, table, chain } => {
                message(DELETE_RULE, family, table).attribute(RULE_CHAIN, &terminated(chain))
            }
            Deletion::Chain { family, table, chain } => {
                message(DELETE_CHAIN, family, table).attribute(CHAIN_NAME, &terminated(chain))
            }
        }
        .finish()
    }
}
