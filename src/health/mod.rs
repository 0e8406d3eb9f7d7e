//! How the proxy and the Services are: what load balancers and probes ask.
//!
//! * [`State`]: is the proxy keeping up with changes? Pure; time comes in as an argument.
//! * [`Health`]: the same, shared, with the clock.
//! * `serve`: `/healthz`, `/livez` and `/readyz` on the health port.
//! * [`CheckServer`]: the health check of each Service that has a `healthCheckNodePort`.

mod checks;
mod server;
mod state;

pub use checks::{BindFailure, CheckServer, HealthCheck, HealthChecks};
pub use server::Question;
pub(crate) use server::serve;
pub use state::{FamilyHealth, HealthReport, Moment, State};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crate::model::Family;

impl Moment {
    /// The time now.
    pub fn now() -> Moment {
        Moment { wall: SystemTime::now(), steady: Instant::now() }
    }
}

/// The state that the sync loop writes and the servers read.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

impl Health {
    /// Shares a state.
    pub fn new(state: State) -> Health {
        Health(Arc::new(Mutex::new(state)))
    }

    /// See [`State::change_queued`].
    pub fn change_queued(&self, family: Family) {
        self.state().change_queued(family, Moment::now());
    }

    /// See [`State::sync_started`].
    pub fn sync_started(&self, family: Family) {
        self.state().sync_started(family);
    }

    /// See [`State::sync_succeeded`].
    pub fn sync_succeeded(&self, family: Family) {
        self.state().sync_succeeded(family, Moment::now());
    }

    /// See [`State::sync_failed`].
    pub fn sync_failed(&self, family: Family) {
        self.state().sync_failed(family);
    }

    /// See [`State::nothing_waits`].
    pub fn nothing_waits(&self, family: Family) {
        self.state().nothing_waits(family);
    }

    /// See [`State::set_node_eligible`].
    pub fn set_node_eligible(&self, eligible: bool) {
        self.state().set_node_eligible(eligible);
    }

    /// Whether the proxy keeps up in all families.
    pub fn healthy(&self) -> bool {
        self.state().healthy(Moment::now())
    }

    /// See [`State::report`].
    pub fn report(&self) -> HealthReport {
        self.state().report(Moment::now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every method of State leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
