//! Keeps the list of the frontends whose connections are accounted for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arcstr::ArcStr;
use tokio::sync::watch;

use crate::conntrack::Accounts;
use crate::model::{Family, FrontendKey, ObjectName};
use crate::nftables::Kernel;
use crate::sync::{Engine, Report};

/// Whose a frontend is: a Service, and the name of its port.
pub(in crate::app) type Owner = (ObjectName, ArcStr);

/// The list, for whoever hears of connections.
#[derive(Debug, Clone, Default)]
pub(in crate::app) struct Ledger(Arc<Mutex<Accounts<Owner>>>);

impl Ledger {
    pub(in crate::app) fn lock(&self) -> MutexGuard<'_, Accounts<Owner>> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows what is installed. One changed Service costs what that Service has.
pub(in crate::app) struct Accounting {
    /// Whether all Services are accounted for.
    all: bool,
    ledger: Ledger,
    frontends: BTreeMap<ObjectName, Vec<FrontendKey>>,
    /// Whether there is anything to account for.
    wanted: watch::Sender<bool>,
}

impl Accounting {
    pub(in crate::app) fn new(all: bool, ledger: Ledger, wanted: watch::Sender<bool>) -> Accounting {
        Accounting { all, ledger, frontends: BTreeMap::new(), wanted }
    }

    /// A sync has ended.
    pub(super) fn synced<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report) {
        if report.examined.is_empty() {
            return;
        }
        let mut accounts = self.ledger.lock();
        for name in &report.examined {
            for key in self.frontends.remove(name).into_iter().flatten() {
                // Another Service may have it by now.
                if accounts.owner(&key).is_some_and(|(service, _)| service == name) {
                    accounts.close(&key);
                }
            }
            if !self.all && engine.store().service(name).is_none_or(|service| !service.accounting) {
                continue;
            }
            let installed = Family::ALL.into_iter().flat_map(|family| engine.installed(family).frontends_of(name));
            let mut keys = Vec::new();
            for (key, frontend) in installed {
                accounts.open(*key, (name.clone(), frontend.port_name.clone()));
                keys.push(*key);
            }
            if !keys.is_empty() {
                self.frontends.insert(name.clone(), keys);
            }
        }
        let is_wanted = !accounts.is_empty();
        drop(accounts);
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, is_wanted) != is_wanted);
    }
}
