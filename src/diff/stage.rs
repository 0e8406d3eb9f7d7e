//! Collects what some Services want and works out the difference to what is installed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use smallvec::SmallVec;

use super::counters::Giver;
use super::installed::{Installed, Unit};
use super::transaction::{Operation, Transaction};
use crate::model::{Family, FrontendKey, ObjectName};
use crate::ruleset::elements;
use crate::ruleset::frontend::{Frontend, Shared};
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::service::ServicePart;
use crate::ruleset::types::{Chain, Element};

/// Changes of some Services that go to the kernel as one transaction.
///
/// A frontend that passes from one Service to another may be staged by both, in either order: the one that wants it
/// wins over the one that no longer does.
#[derive(Debug, Clone, Default)]
pub struct Stage {
    units: BTreeMap<ObjectName, Unit>,
    frontends: BTreeMap<FrontendKey, Option<Frontend>>,
    shared: BTreeMap<Shared, i64>,
    nodeport_ips: Option<BTreeSet<IpAddr>>,
    unclaimed: bool,
    counters: Giver,
    weight: usize,
}

impl Stage {
    /// Stages what one Service wants; nothing, if it is gone. Each Service at most once.
    pub fn service(&mut self, installed: &Installed, name: &ObjectName, mut wanted: ServicePart) {
        self.counters.give(installed, name, &mut wanted);
        let mut unit = Unit::empty(name.clone());
        let old = installed.units.get(name).unwrap_or(&unit);
        for key in &old.frontends {
            // Still this Service's? Another may have taken the frontend over in an earlier transaction.
            if let Some(frontend) = installed.frontend(key).filter(|frontend| frontend.service == *name) {
                self.weight += frontend.weight();
                self.frontends.entry(*key).or_insert(None);
            }
        }
        for shared in &old.shared {
            *self.shared.entry(*shared).or_default() -= 1;
        }
        unit.frontends.reserve_exact(wanted.frontends.len());
        for (key, frontend) in wanted.frontends {
            unit.frontends.push(key);
            if installed.frontend(&key) == Some(&frontend) && !installed.damaged.contains_key(&key) {
                self.frontends.remove(&key);
                continue;
            }
            self.weight += frontend.weight();
            self.frontends.insert(key, Some(frontend));
        }
        for shared in &wanted.shared {
            *self.shared.entry(*shared).or_default() += 1;
        }
        unit.shared = SmallVec::from_slice(&wanted.shared);
        self.units.insert(name.clone(), unit);
    }

    /// Stages the addresses of the node that accept node ports.
    pub fn nodeport_ips(&mut self, addresses: BTreeSet<IpAddr>) {
        self.nodeport_ips = Some(addresses);
    }

    /// Stages the removal of frontends and shared elements that were found in the table and that nobody wants. To be
    /// called after a recovery, when every Service has been staged and committed. `spared` are Services that could not be
    /// committed yet: their elements stay. Call it again once they are committed.
    #[expect(clippy::disallowed_methods, reason = "it all goes into sorted maps")]
    pub fn unclaimed(&mut self, installed: &Installed, spared: &[ServicePart]) {
        self.unclaimed = spared.is_empty();
        let mut listed: HashSet<&FrontendKey> =
            installed.units.iter_unordered().flat_map(|unit| &unit.frontends).collect();
        listed.extend(spared.iter().flat_map(|wanted| wanted.frontends.iter().map(|(key, _)| key)));
        let found = installed.frontends().map(|(key, _)| key).chain(installed.damaged.keys());
        for key in found.filter(|key| !listed.contains(key)) {
            self.frontends.entry(*key).or_insert(None);
        }
        let needed: HashSet<&Shared> = spared.iter().flat_map(|wanted| &wanted.shared).collect();
        for (shared, users) in &installed.shared {
            if *users == 0 && !needed.contains(shared) {
                self.shared.entry(*shared).or_default();
            }
        }
    }

    /// About how many elements are staged.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// The Services that are staged.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.units.keys()
    }

    /// The frontends that change, with what is wanted of them.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontendKey, Option<&Frontend>)> {
        self.frontends.iter().map(|(key, frontend)| (key, frontend.as_ref()))
    }

    /// What is wanted of a frontend, if it changes.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)?.as_ref()
    }

    /// The operations that bring the table from `installed` to what is staged: chains first, then deletions, then
    /// additions, so that nothing refers to what is not there and an element with new data replaces its old self.
    pub fn transaction(
        &self,
        family: Family,
        installed: &Installed,
        on_demand: impl Fn(ChainName) -> Option<Chain>,
    ) -> Transaction {
        let mut changes = Changes::default();
        for (key, frontend) in &self.frontends {
            let old = installed.elements(key);
            let new = frontend.as_ref().map(|frontend| elements::elements(key, frontend)).unwrap_or_default();
            changes.difference(old, new);
        }
        for (shared, delta) in &self.shared {
            let users = installed.shared.get(shared);
            let wanted = users.copied().map_or(0, i64::from) + delta > 0;
            match (users.is_some(), wanted) {
                (false, true) => changes.add(elements::shared_element(*shared)),
                (true, false) => changes.delete(elements::shared_element(*shared)),
                _ => {}
            }
        }
        if let Some(wanted) = &self.nodeport_ips {
            for address in installed.nodeport_ips.difference(wanted) {
                changes.delete(elements::nodeport_ip_element(*address));
            }
            for address in wanted.difference(&installed.nodeport_ips) {
                changes.add(elements::nodeport_ip_element(*address));
            }
        }
        let mut transaction = Transaction::new(family);
        for (kind, name) in changes.chains(&installed.chains) {
            if let Some(chain) = on_demand(name) {
                transaction.operations.push(Operation::AddChain(chain.clone()));
                transaction.operations.push(Operation::AddRules(chain));
                elements::dispatch_elements(kind).for_each(|element| changes.add(element));
            }
        }
        transaction
            .operations
            .extend(changes.delete.into_iter().map(|(set, list)| Operation::DeleteElements(set, list)));
        transaction.operations.extend(changes.add.into_iter().map(|(set, list)| Operation::AddElements(set, list)));
        transaction
    }

    /// Makes what is staged the installed state: `transaction` has been applied.
    pub fn commit(self, installed: &mut Installed, transaction: &Transaction) {
        for (key, frontend) in self.frontends {
            installed.damaged.remove(&key);
            installed.place(key, frontend);
        }
        for (shared, delta) in self.shared {
            let users = i64::from(installed.shared.get(&shared).copied().unwrap_or(0)) + delta;
            if users > 0 {
                installed.shared.insert(shared, u32::try_from(users).unwrap_or(u32::MAX));
            } else {
                installed.shared.remove(&shared);
            }
        }
        for (name, unit) in self.units {
            if unit.is_empty() {
                installed.units.remove(&name);
            } else {
                installed.units.insert(unit);
            }
        }
        if let Some(addresses) = self.nodeport_ips {
            installed.nodeport_ips = addresses;
        }
        installed.unclaimed &= !self.unclaimed;
        for operation in &transaction.operations {
            match operation {
                Operation::AddChain(chain) => installed.chain_added(chain.name),
                Operation::AddElements(_, elements) => installed.count_uses(elements, true),
                Operation::DeleteElements(_, elements) => installed.count_uses(elements, false),
                _ => {}
            }
        }
    }
}

/// Elements to delete and to add, by set.
#[derive(Default)]
struct Changes {
    delete: BTreeMap<SetName, Vec<Element>>,
    add: BTreeMap<SetName, Vec<Element>>,
}

impl Changes {
    fn add(&mut self, (set, element): (SetName, Element)) {
        self.add.entry(set).or_default().push(element);
    }

    fn delete(&mut self, (set, element): (SetName, Element)) {
        self.delete.entry(set).or_default().push(element);
    }

    /// What is only in `old` is deleted, what is only in `new` is added.
    fn difference(&mut self, mut old: Vec<(SetName, Element)>, mut new: Vec<(SetName, Element)>) {
        old.sort_unstable();
        new.sort_unstable();
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.cmp(new),
            };
            if order == Ordering::Equal {
                old.next();
                new.next();
            } else if order == Ordering::Less {
                old.next().into_iter().for_each(|element| self.delete(element));
            } else {
                new.next().into_iter().for_each(|element| self.add(element));
            }
        }
    }

    /// The chains of the added kinds that are not there.
    fn chains(&self, present: &BTreeMap<ChainName, u32>) -> BTreeMap<Kind, ChainName> {
        let kinds = self.add.values().flatten().filter_map(|element| Kind::of_data(&element.data));
        // The one with the counter comes first in the order of kinds.
        let with_counters = kinds.flat_map(Kind::with_counter);
        let on_demand = with_counters.filter_map(|kind| Some((kind, kind.on_demand()?)));
        on_demand.filter(|(_, chain)| !present.contains_key(chain)).collect()
    }
}
