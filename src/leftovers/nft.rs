//! kube-proxy's tables of nftables, and its chains in the tables of iptables-nft, removed over netlink.
//!
//! Chains of iptables-nft hold expressions that only iptables can read. Rules are deleted by their handles and chains by
//! their names, so that they need not be read.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;

use super::advice::{self, Place};
use super::names::{IPTABLES, SIGN, TABLE, is_chain};
use super::plan::Plan;
use super::sign;
use super::steps::{Step, commit};
use super::tables::{self, ATTEMPTS, Listed, SUBSYSTEM, jumps};
use super::values::be32;
use super::walk::needed;
use super::{Outcome, Remaining};
use crate::netlink::{ACK, Builder, Bus, REQUEST, Socket, attributes};

const GET_GENERATION: u16 = SUBSYSTEM | 16;
const GENERATION_ID: u16 = 1;
/// `struct nfgenmsg` of a question about all families.
const NO_FAMILY: [u8; 4] = [0; 4];

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
    if sign::is_wanted(&found.listed) && !found.tables.is_empty() {
        let what = format!("an empty chain {SIGN} in each, by which Calico sees that nftables serve");
        let fix =
            "to do without: nftablesMode: Enabled in FelixConfiguration, then nft delete table for each".to_owned();
        outcome.kept.push(Remaining { what, fix });
    }
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
    let is_there = |family: &&'static str| {
        listed.tables.get(&(*family, TABLE.to_owned())).is_some_and(|chains| !sign::is_sign(chains))
    };
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
    fn switch(&self) -> Vec<Step<'_>> {
        let sign = sign::is_wanted(&self.listed);
        let tables = self.tables.iter().flat_map(move |&family| {
            let steps = [Step::DeleteTable { family }, Step::AddTable { family }, Step::AddSign { family }];
            steps.into_iter().take(if sign { 3 } else { 1 })
        });
        let rules = self.plans.iter().flat_map(|((family, table), plan)| {
            plan.jumps.iter().map(move |jump| Step::DeleteRule { family, table, chain: &jump.from, handle: jump.rule })
        });
        tables.chain(rules).collect()
    }
}

/// Removes chains that nothing outside of them leads to. First all lose their rules, since chains lead to each other.
fn remove_chains(family: &str, table: &str, chains: &[String]) -> io::Result<()> {
    for some in chains.chunks(CHAINS_AT_ONCE) {
        commit(&some.iter().map(|chain| Step::DeleteRules { family, table, chain }).collect::<Vec<_>>(), None)?;
    }
    for some in chains.chunks(CHAINS_AT_ONCE) {
        commit(&some.iter().map(|chain| Step::DeleteChain { family, table, chain }).collect::<Vec<_>>(), None)?;
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
