//! Node ports on 127.0.0.1 and ::1, in user space.
//!
//! The kernel's rules cannot do it without `route_localnet`, which lets neighbours reach whatever listens on loopback
//! (CVE-2020-8558), and not at all for IPv6. So the daemon listens there, and nowhere else, and connects each client to an
//! address of the node that accepts node ports: what the tables do with connections (policies, affinity, schedulers,
//! refusal, counters) they do with these. Where no address of the node does, it is the Service's cluster IP. The client's
//! address is lost: the Service sees the node's.
//!
//! * [`plan`](Served): which sockets are wanted. Pure.
//! * `listeners`, `sockets`, `poll`: they are opened, closed and waited for, all as one.
//! * `streams`, `passing`, `pipes`: connections of TCP and SCTP.
//! * `datagrams`, `clients`: UDP.
//! * `serve`: the thread that all of it runs on. Whoever has much to send there delays no rule.

mod clients;
mod datagrams;
mod listeners;
mod passing;
mod pipes;
mod plan;
mod poll;
mod serve;
mod sockets;
mod streams;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

pub use self::listeners::Keeper;
pub use self::plan::Served;
use self::plan::{Plan, Way};
pub use self::serve::{Outside, spawn};
use crate::model::{FrontendKey, ObjectName, PerFamily};

/// Whether a socket of this name is one of those that listen here.
pub fn is_name(name: &str) -> bool {
    plan::named(name).is_some()
}

/// How long nothing may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// On a connection that one side has closed.
    pub half_closed: Duration,
    /// From a client of UDP and for it.
    pub silent: Duration,
}

/// What is to be served, for whoever knows it and for those who serve it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ports(Arc<Board>);

#[derive(Debug)]
struct Board {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    timeouts: Timeouts,
    /// Whether all is known that there was at the start.
    settled: bool,
}

impl Ports {
    /// None, in no family.
    pub fn new(timeouts: Timeouts) -> Ports {
        let state = State { plan: Plan::default(), timeouts, settled: false };
        Ports(Arc::new(Board { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// The families in which they are served.
    pub fn on(&self) -> PerFamily<bool> {
        self.lock().plan.on()
    }

    /// Serves them in these families from now on; of another all is forgotten. What is served in a new one has to be said.
    pub fn switch(&self, on: PerFamily<bool>) {
        self.lock().plan.switch(on);
        self.0.changed.notify_one();
    }

    /// Connections go to these addresses of the node.
    pub fn lead_to(&self, nodes: PerFamily<Option<IpAddr>>) {
        self.lock().plan.lead_to(nodes);
    }

    /// A Service has these node ports, and no others.
    pub fn serve(&self, service: &ObjectName, ports: impl IntoIterator<Item = (FrontendKey, Served)>) {
        self.lock().plan.serve(service, ports);
        self.0.changed.notify_one();
    }

    /// All is known that there was at the start.
    pub fn settle(&self) {
        if !std::mem::replace(&mut self.lock().settled, true) {
            self.0.changed.notify_one();
        }
    }

    /// What counts from now on.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.lock().timeouts = timeouts;
        self.0.changed.notify_one();
    }

    /// Waits until something may have changed.
    async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn timeouts(&self) -> Timeouts {
        self.lock().timeouts
    }

    fn way(&self, key: &FrontendKey) -> Option<Way> {
        self.lock().plan.way(key)
    }

    /// As [`Plan::changes`], with whether there are no others and all is known.
    fn changes(&self, most: usize) -> (Vec<(FrontendKey, bool)>, bool) {
        let mut state = self.lock();
        let changes = state.plan.changes(most);
        let settled = state.settled && changes.len() < most;
        (changes, settled)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each step leaves it whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
