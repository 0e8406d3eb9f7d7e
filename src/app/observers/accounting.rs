//! Keeps the list of the frontends whose connections are accounted for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::conntrack::Accounts;
use crate::model::Family;
use crate::nftables::Kernel;
use crate::sync::{Engine, Report};

/// The list, for whoever hears of connections.
#[derive(Debug, Clone, Default)]
pub(in crate::app) struct Ledger(Arc<Mutex<Accounts>>);

impl Ledger {
    pub(in crate::app) fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows what is installed. One changed Service costs what that Service has.
pub(in crate::app) struct Accounting {
    /// Whether all Services are accounted for.
    all: bool,
    ledger: Ledger,
    /// Tells that there is something to account for, or nothing any more, or that something is forgotten at another time.
    changed: watch::Sender<()>,
}

impl Accounting {
    pub(in crate::app) fn new(all: bool, ledger: Ledger, changed: watch::Sender<()>) -> Accounting {
        Accounting { all, ledger, changed }
    }

    /// A sync has ended. What becomes old while nothing is synced is up to whoever hears of connections.
    pub(super) fn synced<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) {
        if report.examined.is_empty() {
            return;
        }
        let now = Instant::now();
        // No connection ends in between: a frontend that changes hands is somebody's at any time.
        let mut accounts = self.ledger.lock();
        let before = awaited(&accounts);
        for name in &report.examined {
            let installed = Family::ALL.into_iter().flat_map(|family| engine.installed(family).frontends_of(name));
            let is_accounted = self.all
                || match engine.store().service(name) {
                    Some(service) => service.accounting,
                    // It is gone, and as it was.
                    None => accounts.has(name),
                };
            if is_accounted {
                accounts.account(name, installed.map(|(key, frontend)| (*key, frontend.port_name.clone())), now);
            } else if !accounts.is_empty() {
                accounts.forget(name, installed.map(|(key, _)| *key));
            }
        }
        let is_awaited = awaited(&accounts);
        drop(accounts);
        if is_awaited != before {
            self.changed.send_replace(());
        }
    }
}

/// Whether anything is listened for, and when the next frontend is forgotten.
fn awaited(accounts: &Accounts) -> (bool, Option<Instant>) {
    (accounts.is_empty(), accounts.next_to_forget())
}
