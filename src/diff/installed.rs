//! What one family's table holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::model::{FrontendKey, ObjectName};
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::service::{self, Frontend, Shared};
use crate::ruleset::types::Element;

/// The elements and the chains made on demand that one family's table holds.
///
/// Invariant: every frontend is listed in the unit of the Service that it names, unless it was recovered from a table
/// and its Service was never staged since.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installed {
    pub(super) frontends: HashMap<FrontendKey, Frontend>,
    pub(super) units: HashMap<ObjectName, Unit>,
    /// How many Services need each shared element. Zero: it was found in the table and nobody needs it yet.
    pub(super) shared: HashMap<Shared, u32>,
    pub(super) nodeport_ips: BTreeSet<IpAddr>,
    pub(super) chains: BTreeSet<ChainName>,
    /// Elements of frontends that were found in the table but are not what the proxy would write: kept as they are,
    /// to be deleted one by one when the frontend is staged.
    pub(super) damaged: HashMap<FrontendKey, Vec<(SetName, Element)>>,
    /// Whether there may be elements that no Service needs: set after a recovery.
    pub(super) leftovers: bool,
}

/// What was installed for one Service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Unit {
    pub(super) frontends: Box<[FrontendKey]>,
    pub(super) shared: Box<[Shared]>,
}

impl Installed {
    /// What is installed for a frontend.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    /// The number of frontends.
    pub fn frontend_count(&self) -> usize {
        self.frontends.len()
    }

    /// The number of Services that something is installed for.
    pub fn service_count(&self) -> usize {
        self.units.len()
    }

    /// The chains made on demand that the table holds.
    pub fn chains(&self) -> &BTreeSet<ChainName> {
        &self.chains
    }

    /// The addresses of the node that accept node ports.
    pub fn nodeport_ips(&self) -> &BTreeSet<IpAddr> {
        &self.nodeport_ips
    }

    /// Whether there may be elements that no Service needs, to be removed by [`Stage::leftovers`](super::Stage).
    pub fn has_leftovers(&self) -> bool {
        self.leftovers
    }

    /// The names of all Services that something is installed for, in no order. For a resync, not for a change.
    #[expect(clippy::disallowed_methods, reason = "whoever asks puts them into a set")]
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.units.keys()
    }

    /// The elements that the table holds for a frontend.
    pub(super) fn elements(&self, key: &FrontendKey) -> Vec<(SetName, Element)> {
        if let Some(damaged) = self.damaged.get(key) {
            return damaged.clone();
        }
        self.frontends.get(key).map(|frontend| service::elements(key, frontend)).unwrap_or_default()
    }

    /// All elements of the table, sorted: what a dump of it must show. For tests and listings.
    #[expect(clippy::disallowed_methods, reason = "they are sorted")]
    pub fn all_elements(&self) -> Vec<(SetName, Element)> {
        let mut elements: Vec<_> =
            self.frontends.iter().flat_map(|(key, frontend)| service::elements(key, frontend)).collect();
        elements.extend(self.damaged.values().flatten().cloned());
        elements.extend(self.shared.keys().map(|shared| service::shared_element(*shared)));
        elements.extend(self.nodeport_ips.iter().map(|address| service::nodeport_ip_element(*address)));
        elements.sort_unstable();
        elements
    }

    /// How many elements each set of the table has. Costs time in proportion to their number, and no memory.
    #[expect(clippy::disallowed_methods, reason = "they are counted")]
    pub fn element_counts(&self) -> BTreeMap<SetName, usize> {
        let mut counts = BTreeMap::new();
        let mut count = |set| *counts.entry(set).or_default() += 1;
        let regular = self.frontends.iter().flat_map(|(key, frontend)| service::elements(key, frontend));
        regular.for_each(|(set, _)| count(set));
        self.damaged.values().flatten().for_each(|(set, _)| count(*set));
        self.shared.keys().for_each(|shared| count(service::shared_element(*shared).0));
        self.nodeport_ips.iter().for_each(|_| count(SetName::NodeportIps));
        counts
    }
}
