//! Which connections have to be reset after a sync: those to endpoints that are gone, of the Services that ask for it.
//!
//! Gone is what no slice of the Service lists any more. An endpoint that is terminating, not ready, or not for this node is
//! there, and its open connections go on. The connections of a Service that is gone itself are left alone: its pods may live,
//! and its addresses answer nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::conntrack::{Frontends, Listed};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol};
use crate::nftables::Kernel;
use crate::sync::{self, Engine, Report};

/// The frontends of a Service, each with the endpoints that there are.
type Frontend = (FrontendKey, Listed);

/// Follows the endpoints of the Services that ask. One changed Service costs what that Service has, and nothing where it does
/// not ask.
#[derive(Debug, Default)]
pub(super) struct Resets {
    /// Whether all Services ask.
    all: bool,
    /// What was last looked at, of those that ask and have frontends of TCP.
    known: BTreeMap<ObjectName, PerFamily<Vec<Frontend>>>,
    /// Those to be looked at when the table is in line: a packet that comes before meets the old rules.
    pending: PerFamily<BTreeSet<ObjectName>>,
    /// Those with session affinity whose endpoints have changed. Until the kernel has forgotten their clients, it may send the
    /// next packet where the last one went.
    remembered: PerFamily<BTreeSet<ObjectName>>,
    /// Whether clients have been forgotten since these were looked at.
    forgot: bool,
}

impl Resets {
    pub(super) fn new(all: bool) -> Resets {
        Resets { all, ..Resets::default() }
    }

    /// Whether any Service asks.
    pub(super) fn any(&self) -> bool {
        !self.known.is_empty()
    }

    /// A sync has ended. Adds what has to be looked at: of Services whose endpoints have changed, and in the families of
    /// `all`, where any may have gone unseen, of all.
    pub(super) fn synced<K: Kernel>(
        &mut self,
        engine: &Engine<K>,
        report: &Report,
        all: PerFamily<bool>,
        frontends: &mut Frontends,
    ) {
        for name in &report.examined {
            if self.known.contains_key(name) || self.asks(engine, name) {
                for family in Family::ALL {
                    self.pending[family].insert(name.clone());
                }
            }
        }
        for family in Family::ALL.into_iter().filter(|family| !engine.is_family_behind(*family)) {
            let mut names = mem::take(&mut self.pending[family]);
            if all[family] {
                // In proportion to what there is: at a start, a repair or a take-over, never for a change.
                let asking = engine.store().services().filter(|service| self.all || service.reset_connections);
                names.extend(asking.map(|service| service.name.clone()));
            }
            self.look(engine, family, &names, all[family], frontends);
        }
    }

    /// The kernel has forgotten some clients, or it has not. When it has forgotten all that it should, adds what has to be
    /// looked at once more: a client may have sent something meanwhile.
    pub(super) fn forgot<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report, frontends: &mut Frontends) {
        self.forgot |= report.operations > 0;
        if !self.forgot || engine.has_to_forget() {
            return;
        }
        self.forgot = false;
        for family in Family::ALL.into_iter().filter(|family| !engine.is_family_behind(*family)) {
            let names = mem::take(&mut self.remembered[family]);
            self.look(engine, family, &names, true, frontends);
            self.remembered[family].clear();
        }
    }

    fn asks<K: Kernel>(&self, engine: &Engine<K>, name: &ObjectName) -> bool {
        engine.store().service(name).is_some_and(|service| self.all || service.reset_connections)
    }

    /// Looks at these Services, and adds their frontends of which endpoints have changed, or all where that is to be `anyhow`.
    fn look<K: Kernel>(
        &mut self,
        engine: &Engine<K>,
        family: Family,
        names: &BTreeSet<ObjectName>,
        anyhow: bool,
        frontends: &mut Frontends,
    ) {
        let mut found = false;
        let mut left = Vec::new();
        for name in names {
            let now = self.wanted(engine, family, name);
            let before = mem::replace(&mut self.known.entry(name.clone()).or_default()[family], now.clone());
            let mut changes = false;
            for (key, listed) in &now {
                if anyhow || !before.contains(&(*key, Arc::clone(listed))) {
                    frontends.resets.insert(*key, Some(Arc::clone(listed)));
                    changes = true;
                }
            }
            found |= changes;
            left.extend(before.into_iter().map(|(key, _)| key).filter(|key| now.iter().all(|(other, _)| key != other)));
            if changes && engine.store().service(name).is_some_and(|service| service.affinity.is_some()) {
                self.remembered[family].insert(name.clone());
            }
            if Family::ALL.into_iter().all(|family| self.known[name][family].is_empty()) {
                self.known.remove(name);
            }
        }
        found |= !left.is_empty();
        // What waits for a second look must not be done to whoever has the frontend now.
        for key in left {
            frontends.resets.insert_if_new(key, || self.listed(engine, &key));
        }
        if found {
            self.set_addresses(engine, family, frontends);
        }
    }

    /// The frontends of TCP that a Service has, if it asks.
    fn wanted<K: Kernel>(&self, engine: &Engine<K>, family: Family, name: &ObjectName) -> Vec<Frontend> {
        if !self.asks(engine, name) {
            return Vec::new();
        }
        let mut of_ports: BTreeMap<&str, Listed> = BTreeMap::new();
        let installed = engine.installed(family).frontends_of(name).filter(|(key, _)| key.protocol == Protocol::Tcp);
        let with_endpoints = installed.map(|(key, frontend)| {
            let listed = of_ports.entry(&frontend.port_name).or_insert_with(|| {
                let listed = sync::listed(engine.store(), name, &frontend.port_name, family);
                listed.iter().map(|it| SocketAddr::new(it.address, it.port.get())).collect()
            });
            (*key, Arc::clone(listed))
        });
        with_endpoints.collect()
    }

    /// What is known of a frontend, if it is of a Service that asks.
    fn listed<K: Kernel>(&self, engine: &Engine<K>, key: &FrontendKey) -> Option<Listed> {
        let frontend = engine.installed(key.family()).frontend(key)?;
        let of_service = &self.known.get(&frontend.service)?[key.family()];
        of_service.iter().find(|(other, _)| other == key).map(|(_, listed)| Arc::clone(listed))
    }

    /// Where node ports are, and which frontends go before those that are looked at. In proportion to the addresses that the
    /// node has for node ports.
    fn set_addresses<K: Kernel>(&self, engine: &Engine<K>, family: Family, frontends: &mut Frontends) {
        let addresses = engine.node_port_addresses();
        let node_ports: Vec<FrontendKey> = frontends.resets.node_ports(family).collect();
        for key in node_ports {
            for address in addresses.iter().filter(|address: &&IpAddr| Family::of(**address) == family) {
                let first = FrontendKey { at: FrontendAt::Address(*address), ..key };
                if engine.installed(family).frontend(&first).is_some() {
                    frontends.resets.insert_if_new(first, || self.listed(engine, &first));
                }
            }
        }
        frontends.node_port_addresses = Arc::new(addresses);
    }
}

#[cfg(test)]
mod tests;
