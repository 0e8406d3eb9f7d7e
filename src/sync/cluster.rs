//! What the Services of the cluster want of the tables.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use super::balancing::Balancing;
use crate::diff::Installed;
use crate::model::claims::{Claims, Owner};
use crate::model::policy::{self, Target};
use crate::model::store::Store;
use crate::model::{Family, ObjectName, PerFamily, Protocol, ServicePort, Slice};
use crate::ruleset::backend::Backend;
use crate::ruleset::service::{self, ServiceFacts, ServicePart};
use crate::ruleset::slots;

/// What is known of the cluster, for those who ask what a Service wants of a table.
pub(super) struct Cluster<'a> {
    pub(super) store: &'a Store,
    pub(super) claims: &'a Claims,
    pub(super) facts: &'a PerFamily<ServiceFacts>,
    pub(super) balancing: &'a Balancing,
}

impl Cluster<'_> {
    /// What one Service wants; nothing if it is gone. `installed` is what there is: endpoints keep their slots.
    pub(super) fn wanted(&self, name: &ObjectName, family: Family, installed: &Installed) -> ServicePart {
        let Some(service) = self.store.service(name) else { return ServicePart::default() };
        let zone = self.store.node().and_then(|node| node.zone.as_deref());
        service::part(
            service,
            family,
            &self.facts[family],
            |key, port, role| self.claims.owner(key) == Some(Owner { service: name, port: &port.name, role }),
            |port| policy::choose(service, port, family, self.store.slices(name), zone),
            |port| self.balancing.of(name, port, family),
            |key| installed.frontend(key),
        )
    }

    /// The name as it is held already, if there is such a Service.
    pub(super) fn known(&self, name: &ObjectName) -> Option<ObjectName> {
        self.store.service(name).map(|service| service.name.clone())
    }

    /// About what reading a family's table costs the kernel: the squares of the numbers of elements of its large sets, which
    /// hold cluster IPs, frontends and endpoints. Goes through all Services: only for a start.
    pub(super) fn squares(&self, family: Family) -> u64 {
        let (mut frontends, mut endpoints) = (0u64, 0u64);
        for service in self.store.services().filter(|service| service.cluster_ips[family].is_some()) {
            let slices = self.store.slices(&service.name).iter().filter(|slice| slice.family == family);
            let of_each: usize = slices.map(|slice| slice.endpoints.len()).sum();
            let scheduler = service.scheduler.unwrap_or(self.facts[family].scheduler);
            let slots = slots::expected(of_each, scheduler, service.maglev_size.map(NonZeroU16::get));
            frontends += service.ports.len() as u64;
            endpoints += (service.ports.len() * slots) as u64;
        }
        frontends.saturating_pow(2).saturating_mul(2).saturating_add(endpoints.saturating_pow(2))
    }

    /// All Services that there are. Only for a read-back of the table.
    pub(super) fn services(&self) -> BTreeSet<ObjectName> {
        self.store.services().map(|service| service.name.clone()).collect()
    }
}

/// All endpoints of a TCP port, in whatever state, for deciding which connections to reset.
pub fn listed(store: &Store, name: &ObjectName, port_name: &str, family: Family) -> Vec<Backend> {
    of_port(store, name, (port_name, Protocol::Tcp), |port, slices| policy::listed(port, family, slices))
}

/// The endpoints that still serve a UDP port, for deciding which connections to forget.
pub fn serving(store: &Store, name: &ObjectName, port_name: &str, family: Family) -> Vec<Backend> {
    of_port(store, name, (port_name, Protocol::Udp), |port, slices| policy::serving(port, family, slices))
}

fn of_port(
    store: &Store,
    name: &ObjectName,
    (port_name, protocol): (&str, Protocol),
    chosen: impl Fn(&ServicePort, &[Slice]) -> Vec<Target>,
) -> Vec<Backend> {
    let Some(service) = store.service(name) else { return Vec::new() };
    let port = service.ports.iter().find(|port| &*port.name == port_name && port.protocol == protocol);
    port.map(|port| chosen(port, store.slices(name)).iter().map(Backend::from).collect()).unwrap_or_default()
}
