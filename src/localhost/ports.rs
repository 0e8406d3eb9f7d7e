//! What is to be served, for whoever knows it and for those who serve it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::plan::{Plan, Served, Way};
use crate::model::{FrontendKey, ObjectName, PerFamily};

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
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.lock().timeouts
    }

    pub(super) fn way(&self, key: &FrontendKey) -> Option<Way> {
        self.lock().plan.way(key)
    }

    /// As [`Plan::changes`], with whether there are no others and all is known.
    pub(super) fn changes(&self, most: usize) -> (Vec<(FrontendKey, bool)>, bool) {
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
