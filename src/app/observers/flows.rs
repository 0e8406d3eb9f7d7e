//! Which frontends have their flows checked after a sync, and where these may still go.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::conntrack::{Frontends, Rule};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, Protocol};
use crate::nftables::Kernel;
use crate::sync::{self, Engine, Report, UdpChange};

/// The frontends whose flows have to be checked after a sync: UDP frontends that changed, and in the families of `all`, where
/// flows may have begun without the rules, all that there are.
pub(super) fn to_check<K: Kernel>(engine: &Engine<K>, report: &Report, all: PerFamily<bool>) -> Frontends {
    let mut frontends = Frontends::default();
    for UdpChange { key, service } in &report.udp {
        let rule = match service {
            Some((service, port)) => may_go_on(engine, key, service, port),
            None => Rule::Gone,
        };
        insert(&mut frontends, key, rule);
    }
    // In proportion to what is installed: at a start, a repair or a take-over, never for a change.
    for family in Family::ALL.into_iter().filter(|family| all[*family]) {
        let mut restored = HashSet::new();
        for (key, frontend) in engine.installed(family).frontends() {
            if key.protocol == Protocol::Udp {
                insert(&mut frontends, key, may_go_on(engine, key, &frontend.service, &frontend.port_name));
            } else if frontend.action.inside().len() + frontend.action.outside().len() > 0 {
                restored.insert(*key);
            }
        }
        frontends.restored[family] = (!restored.is_empty()).then(|| Arc::new(restored));
    }
    if !frontends.is_empty() {
        frontends.node_port_addresses = Arc::new(engine.node_port_addresses());
    }
    frontends
}

fn may_go_on<K: Kernel>(engine: &Engine<K>, key: &FrontendKey, service: &ObjectName, port: &str) -> Rule {
    let serving = sync::serving(engine.store(), service, port, key.family());
    Rule::endpoints(serving.iter().map(|backend| SocketAddr::new(backend.address, backend.port.get())))
}

fn insert(frontends: &mut Frontends, key: &FrontendKey, rule: Rule) {
    match key.at {
        FrontendAt::Address(address) => frontends.by_address.insert(SocketAddr::new(address, key.port.get()), rule),
        FrontendAt::NodePort(family) => frontends.by_node_port.insert((family, key.port.get()), rule),
    };
}

#[cfg(test)]
mod tests;
