//! What one family's table holds.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use smallvec::SmallVec;

use super::turns::Turns;
use crate::keyed::{Keyed, KeyedTable};
use crate::model::{FrontendKey, ObjectName};
use crate::ruleset::elements;
use crate::ruleset::frontend::{Action, Frontend, Shared};
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::types::Element;

/// The elements and the chains made on demand that one family's table holds.
///
/// Invariant: every frontend is listed in the unit of the Service that it names, unless it was recovered from a table
/// and its Service was never staged since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installed {
    frontends: KeyedTable<Placed>,
    /// How many of them refuse connections, and how many drop them.
    refused: usize,
    dropped: usize,
    pub(super) units: KeyedTable<Unit>,
    /// Who takes turns by which counter.
    pub(super) turns: Turns,
    /// How many Services need each shared element. Zero: it was found in the table and nobody needs it yet.
    pub(super) shared: HashMap<Shared, u32>,
    pub(super) nodeport_ips: BTreeSet<IpAddr>,
    /// The chains made on demand, with how many elements hold their kind, and how many of them hand over to it.
    pub(super) chains: BTreeMap<ChainName, u32>,
    /// Those of them that stay although nobody uses them.
    pub(super) common: BTreeSet<ChainName>,
    /// Those that nobody uses, and that do not stay for that.
    pub(super) idle: BTreeSet<ChainName>,
    /// Elements of frontends that were found in the table but are not what the proxy would write: kept as they are,
    /// to be deleted one by one when the frontend is staged.
    pub(super) damaged: HashMap<FrontendKey, Vec<(SetName, Element)>>,
    /// Whether there may be elements that no Service needs: set after a recovery.
    pub(super) unclaimed: bool,
}

/// How many frontends do what with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrontendCounts {
    /// They lead to endpoints: those of all clients, or those from inside the cluster.
    pub served: usize,
    /// They are refused: there is no endpoint at all.
    pub refused: usize,
    /// They are dropped: there are endpoints only where the traffic policy does not let them go.
    pub dropped: usize,
}

/// A frontend where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    key: FrontendKey,
    frontend: Frontend,
}

/// What was installed for one Service: mostly its cluster IP and the one frontend there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) service: ObjectName,
    pub(super) frontends: SmallVec<[FrontendKey; 1]>,
    pub(super) shared: SmallVec<[Shared; 1]>,
}

impl Unit {
    pub(super) fn empty(service: ObjectName) -> Unit {
        Unit { service, frontends: SmallVec::new(), shared: SmallVec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.shared.is_empty()
    }
}

impl Keyed for Placed {
    type Key = FrontendKey;

    fn key(&self) -> &FrontendKey {
        &self.key
    }
}

impl Keyed for Unit {
    type Key = ObjectName;

    fn key(&self) -> &ObjectName {
        &self.service
    }
}

impl Installed {
    /// What is installed for a frontend.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key).map(|placed| &placed.frontend)
    }

    /// What is installed for a Service.
    pub fn frontends_of(&self, service: &ObjectName) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        let keys = self.units.get(service).into_iter().flat_map(|unit| &unit.frontends);
        keys.filter_map(|key| Some((key, self.frontend(key)?)))
    }

    /// All that is installed, in no order. For a start or a repair, not for a change.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        self.frontends.iter_unordered().map(|placed| (&placed.key, &placed.frontend))
    }

    /// The number of frontends.
    pub fn frontend_count(&self) -> usize {
        self.frontends.len()
    }

    /// How many of them do what. It is counted as they come and go: it costs nothing to ask.
    pub fn frontend_counts(&self) -> FrontendCounts {
        let (refused, dropped) = (self.refused, self.dropped);
        FrontendCounts { served: self.frontends.len() - refused - dropped, refused, dropped }
    }

    /// This is installed for a frontend now; `None`: it is gone.
    pub(super) fn place(&mut self, key: FrontendKey, frontend: Option<Frontend>) {
        self.count_unserved(frontend.as_ref(), 1);
        self.turns.count(&key, frontend.as_ref(), 1);
        let before = match frontend {
            Some(frontend) => self.frontends.insert(Placed { key, frontend }),
            None => self.frontends.remove(&key),
        };
        let before = before.map(|placed| placed.frontend);
        self.count_unserved(before.as_ref(), -1);
        self.turns.count(&key, before.as_ref(), -1);
    }

    fn count_unserved(&mut self, frontend: Option<&Frontend>, by: isize) {
        match frontend.map(|frontend| &frontend.action) {
            Some(Action::Reject) => self.refused = self.refused.saturating_add_signed(by),
            Some(Action::Drop) => self.dropped = self.dropped.saturating_add_signed(by),
            Some(Action::Forward { .. } | Action::Split { .. }) | None => {}
        }
    }

    /// Room for so many frontends.
    pub(super) fn with_capacity(frontends: usize) -> Installed {
        Installed { frontends: KeyedTable::with_capacity(frontends), ..Installed::default() }
    }

    /// The number of Services that something is installed for.
    pub fn service_count(&self) -> usize {
        self.units.len()
    }

    /// Nothing but a frame with these chains that are made on demand in general.
    pub fn with_common(common: BTreeSet<ChainName>) -> Installed {
        Installed { chains: common.iter().map(|chain| (*chain, 0)).collect(), common, ..Installed::default() }
    }

    /// The chains made on demand that the table holds.
    pub fn chains(&self) -> impl Iterator<Item = ChainName> {
        self.chains.keys().copied()
    }

    /// Whether it holds this one.
    pub(super) fn has_chain(&self, chain: ChainName) -> bool {
        self.chains.contains_key(&chain)
    }

    /// How many they are.
    pub(super) fn chain_count(&self) -> usize {
        self.chains.len()
    }

    /// The chains made on demand that nobody uses any more.
    pub fn idle(&self) -> &BTreeSet<ChainName> {
        &self.idle
    }

    /// The frame is now one with these chains: they have been made, if they were not there.
    pub fn set_common(&mut self, common: BTreeSet<ChainName>) {
        for chain in &common {
            self.chains.entry(*chain).or_default();
        }
        self.common = common;
        let unused = self.chains.iter().filter(|(chain, uses)| **uses == 0 && !self.common.contains(*chain));
        self.idle = unused.map(|(chain, _)| *chain).collect();
    }

    /// This chain is there now. Those that are always there are none of ours: nobody counts who uses them.
    pub(super) fn chain_added(&mut self, chain: ChainName) {
        if ChainName::FIXED.contains(&chain) {
            return;
        }
        if let Entry::Vacant(entry) = self.chains.entry(chain) {
            entry.insert(0);
            if let Some(counter) = chain.counter() {
                self.use_chain(counter, true);
            }
        }
    }

    /// These chains are no longer there.
    pub fn chains_deleted(&mut self, chains: &[ChainName]) {
        for chain in chains {
            self.idle.remove(chain);
            if self.chains.remove(chain).is_some()
                && let Some(counter) = chain.counter()
            {
                self.use_chain(counter, false);
            }
        }
    }

    /// Elements have been added, or deleted.
    pub(super) fn count_uses<'a>(&mut self, elements: impl IntoIterator<Item = &'a Element>, added: bool) {
        for kind in elements.into_iter().filter_map(|element| Kind::of_data(&element.data)) {
            self.count_use(kind, added);
        }
    }

    /// An element with this kind has been added, or deleted.
    pub(super) fn count_use(&mut self, kind: Kind, added: bool) {
        if let Some(chain) = kind.on_demand() {
            self.use_chain(chain, added);
        }
    }

    /// Somebody leads to a chain now, or no longer does: an element with its kind, or a chain that hands over to it.
    fn use_chain(&mut self, chain: ChainName, added: bool) {
        let Some(uses) = self.chains.get_mut(&chain) else { return };
        *uses = if added { *uses + 1 } else { uses.saturating_sub(1) };
        if *uses == 0 && !self.common.contains(&chain) {
            self.idle.insert(chain);
        } else {
            self.idle.remove(&chain);
        }
    }

    /// Whether the table holds this address as a Service's cluster IP.
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        self.shared.contains_key(&Shared::ClusterIp(address))
    }

    /// The addresses of the node that accept node ports.
    pub fn nodeport_ips(&self) -> &BTreeSet<IpAddr> {
        &self.nodeport_ips
    }

    /// Whether there may be elements that no Service needs, to be removed by [`Stage::unclaimed`](super::Stage).
    pub fn has_unclaimed(&self) -> bool {
        self.unclaimed
    }

    /// The names of all Services that something is installed for, in no order. For a resync, not for a change.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.units.iter_unordered().map(|unit| &unit.service)
    }

    /// What is installed, in no order.
    fn placed(&self) -> impl Iterator<Item = (SetName, Element)> {
        self.frontends.iter_unordered().flat_map(|placed| elements::elements(&placed.key, &placed.frontend))
    }

    /// The elements that the table holds for a frontend.
    pub fn elements(&self, key: &FrontendKey) -> Vec<(SetName, Element)> {
        if let Some(damaged) = self.damaged.get(key) {
            return damaged.clone();
        }
        self.frontend(key).map(|frontend| elements::elements(key, frontend)).unwrap_or_default()
    }

    /// What is done with each kind.
    pub(super) fn dispatched(&self) -> impl Iterator<Item = (SetName, Element)> {
        let on_demand = self.chains.keys().filter_map(|chain| Kind::of_chain(*chain));
        Kind::fixed().into_iter().chain(on_demand).flat_map(elements::dispatch_elements)
    }

    /// All elements of the table, sorted: what a dump of it must show. Not for a change.
    #[expect(clippy::disallowed_methods, reason = "they are sorted")]
    pub fn all_elements(&self) -> Vec<(SetName, Element)> {
        let mut elements: Vec<_> = self.placed().collect();
        elements.extend(self.damaged.values().flatten().cloned());
        elements.extend(self.shared.keys().map(|shared| elements::shared_element(*shared)));
        elements.extend(self.nodeport_ips.iter().map(|address| elements::nodeport_ip_element(*address)));
        elements.extend(self.dispatched());
        elements.sort_unstable();
        elements
    }

    /// The same by set. For a table that is made anew as it was.
    pub fn elements_by_set(&self) -> BTreeMap<SetName, Vec<Element>> {
        let mut sets: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
        for (set, element) in self.all_elements() {
            sets.entry(set).or_default().push(element);
        }
        sets
    }

    /// How many elements each set of the table has. Costs time in proportion to their number, and no memory.
    #[expect(clippy::disallowed_methods, reason = "they are counted")]
    pub fn element_counts(&self) -> BTreeMap<SetName, usize> {
        let mut counts = BTreeMap::new();
        let mut count = |set| *counts.entry(set).or_default() += 1;
        self.placed().for_each(|(set, _)| count(set));
        self.damaged.values().flatten().for_each(|(set, _)| count(*set));
        self.shared.keys().for_each(|shared| count(elements::shared_element(*shared).0));
        self.nodeport_ips.iter().for_each(|_| count(SetName::NodeportIps));
        self.dispatched().for_each(|(set, _)| count(set));
        counts
    }
}
