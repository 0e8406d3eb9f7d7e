//! Keeps the list of node ports that are served on localhost.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::sync::watch;

use crate::localhost::{Ports, Served};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, PerFamily, ServicePortName};
use crate::nftables::Kernel;
use crate::ruleset::frontend::Frontend;
use crate::sync::{Engine, Report};

/// Follows what is installed, in the families where it is wanted. One changed Service costs what that Service has.
pub(in crate::app) struct Localhost {
    ports: Ports,
    /// The families in which it is wanted. Whoever changes it wakes the sync loop.
    wanted: watch::Receiver<PerFamily<bool>>,
}

impl Localhost {
    pub(in crate::app) fn new(ports: Ports, mut wanted: watch::Receiver<PerFamily<bool>>) -> Localhost {
        ports.switch(*wanted.borrow_and_update());
        Localhost { ports, wanted }
    }

    /// Something may have changed besides Services.
    pub(super) fn queued<K: Kernel>(&mut self, engine: &Engine<K>) {
        if self.wanted.has_changed().unwrap_or(false) {
            let (before, wanted) = (self.ports.on(), *self.wanted.borrow_and_update());
            self.ports.switch(wanted);
            // Through all frontends, when the configuration has changed.
            let begins = Family::ALL.into_iter().filter(|family| wanted[*family] && !before[*family]);
            let is_node_port = |(key, _): &(&FrontendKey, &Frontend)| matches!(key.at, FrontendAt::NodePort(_));
            let all = begins.flat_map(|family| engine.installed(family).frontends().filter(is_node_port));
            let services: BTreeSet<&ObjectName> = all.map(|(_, frontend)| &frontend.service).collect();
            services.into_iter().for_each(|name| self.serve(engine, name));
        }
        if self.is_on() {
            self.ports.lead_to(PerFamily::from_fn(|family| engine.node_port_address(family)));
        }
    }

    /// A sync has ended.
    pub(super) fn synced<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) {
        if self.is_on() {
            self.ports.lead_to(PerFamily::from_fn(|family| engine.node_port_address(family)));
            report.examined.iter().for_each(|name| self.serve(engine, name));
        }
        if engine.is_in_line() {
            self.ports.settle();
        }
    }

    fn is_on(&self) -> bool {
        let on = self.ports.on();
        on.v4 || on.v6
    }

    fn serve<K: Kernel>(&self, engine: &Engine<K>, name: &ObjectName) {
        let on = self.ports.on();
        let families = Family::ALL.into_iter().filter(|family| on[*family]);
        let frontends = families.flat_map(|family| engine.installed(family).frontends_of(name));
        let node_ports = frontends.filter(|(key, _)| matches!(key.at, FrontendAt::NodePort(_)));
        self.ports.serve(name, node_ports.map(|(key, frontend)| (*key, served(engine, key, frontend))));
    }
}

fn served<K: Kernel>(engine: &Engine<K>, key: &FrontendKey, frontend: &Frontend) -> Served {
    let service = engine.store().service(&frontend.service);
    let cluster_ip = service.and_then(|service| {
        let mut ports = service.ports.iter();
        let port = ports.find(|port| port.protocol == key.protocol && port.name == frontend.port_name)?;
        Some(SocketAddr::new(service.cluster_ips[key.family()]?, port.port.get()))
    });
    let endpoints: BTreeSet<SocketAddr> =
        frontend.action.inside().iter().map(|backend| SocketAddr::new(backend.address, backend.port.get())).collect();
    let port =
        ServicePortName { service: frontend.service.clone(), port: frontend.port_name.clone(), protocol: key.protocol };
    Served { port, cluster_ip, endpoints: endpoints.into_iter().collect() }
}
