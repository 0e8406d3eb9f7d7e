//! What a sync did, and why it did not come to its end.

use std::collections::BTreeSet;
use std::time::Duration;

use arcstr::ArcStr;

use crate::diff::{Installed, Stage};
use crate::errors;
use crate::model::{Family, FrontendKey, ObjectName, PerFamily, Protocol};
use crate::nftables::{CommitError, Committed, KernelError};
use crate::ruleset::frontend::Frontend;
use crate::ruleset::names::By;

/// What a sync did.
#[derive(Debug, Default)]
pub struct Report {
    /// Transactions committed.
    pub transactions: usize,
    /// Kernel objects created or deleted.
    pub operations: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time that the kernel took.
    pub in_kernel: Duration,
    /// Time that its longest transaction took.
    pub longest_in_kernel: Duration,
    /// Services and tables that could not be synced.
    pub failures: usize,
    /// UDP frontends whose flows have to be checked: they do not lead to all that they led to, or other endpoints serve.
    pub udp: Vec<UdpChange>,
    /// The families in which all frontends have to be checked, of UDP not only those of `udp`: flows may have begun
    /// without the rules.
    pub udp_all: PerFamily<bool>,
    /// Services whose frontends changed.
    pub services: BTreeSet<ObjectName>,
    /// Services that were looked at, whether or not their frontends changed.
    pub examined: BTreeSet<ObjectName>,
    /// Services whose weights are not met, and why, if that was not told before.
    pub misfits: Vec<(ObjectName, String)>,
    /// What was done in each family that there was something to do in, and time to do it. How a table stands after that,
    /// or if there is nothing, says [`Engine::standing`](super::Engine::standing).
    pub families: PerFamily<Option<FamilyReport>>,
    /// The first error that kept a whole table from being synced.
    pub(super) fatal: Option<SyncError>,
}

/// What a sync did in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FamilyReport {
    /// How long it took.
    pub elapsed: Duration,
    /// Whether the table was read back and compared as a whole.
    pub full: bool,
    /// Whether somebody else had changed the table, or may have, and it was in fact not as it should be.
    pub repaired: bool,
    /// What each transaction cost.
    pub commits: Vec<Committed>,
    /// Transactions that failed.
    pub failed_commits: usize,
    /// Failures to forget the clients of endpoints that are gone.
    pub failed_cleanups: usize,
}

/// A UDP frontend whose connections may have to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpChange {
    /// The frontend.
    pub key: FrontendKey,
    /// Whether it is still there, and whose it is.
    pub service: Option<(ObjectName, ArcStr)>,
}

impl Report {
    /// The first error that kept a whole table from being synced, as text; empty if there is none.
    pub fn error_text(&self) -> String {
        self.fatal.as_ref().map(|error| errors::text(error)).unwrap_or_default()
    }

    pub(super) fn family(&mut self, family: Family) -> &mut FamilyReport {
        self.families[family].get_or_insert_default()
    }

    /// Notes a transaction that the kernel has taken.
    pub(super) fn note_commit(&mut self, committed: Committed) {
        self.transactions += 1;
        self.operations += committed.operations;
        self.bytes += committed.bytes;
        self.in_kernel += committed.elapsed;
        self.longest_in_kernel = self.longest_in_kernel.max(committed.elapsed);
    }

    /// Notes what is about to be made the installed state.
    pub(super) fn note_stage(&mut self, stage: &Stage, installed: &Installed) {
        self.examined.extend(stage.services().cloned());
        for (key, frontend) in stage.frontends() {
            let old = installed.frontend(key);
            self.services.extend(frontend.into_iter().chain(old).map(|frontend| frontend.service.clone()));
            // What serves is told otherwise (`sync::udp`).
            let only_slots = || frontend.zip(old).is_some_and(|(new, old)| leads_to_all_of(new, old));
            if key.protocol == Protocol::Udp && !only_slots() {
                let service = frontend.map(|frontend| (frontend.service.clone(), frontend.port_name.clone()));
                self.udp.push(UdpChange { key: *key, service });
            }
        }
    }
}

/// Whether a frontend is of the same port as before, and all endpoints that it led to are still among its own, or it has as many
/// slots as before, in turns or several for an endpoint: no flow of it has become stale. One that gets no slot for a while, as it
/// has the most connections, serves those; of one that serves no more it is told otherwise.
fn leads_to_all_of(new: &Frontend, old: &Frontend) -> bool {
    let all =
        |it: &'_ Frontend| it.action.slots().flat_map(|(_, slots)| slots.iter().copied()).collect::<BTreeSet<_>>();
    let turns =
        |it: &'_ Frontend| it.action.slots().map(|(local, slots)| (local, slots.by, slots.len())).collect::<Vec<_>>();
    let (ours, before, taken) = (all(new), all(old), turns(new));
    let is_shared = |(_, by, slots): &(bool, By, usize)| matches!(by, By::Turn(_)) || ours.len() < *slots;
    let as_many = taken == turns(old) && taken.iter().all(is_shared);
    new.service == old.service
        && new.port_name == old.port_name
        && !before.is_empty()
        && (before.is_subset(&ours) || as_many)
}

/// A sync did not come to its end. What was committed before stays; the rest is tried again later.
#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    #[error(transparent)]
    Read(#[from] KernelError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The kernel refused something, but perhaps only because others have changed nftables since the table was read.
    #[error("somebody else has changed nftables meanwhile")]
    Disturbed(#[source] CommitError),
}

impl SyncError {
    /// Whether the kernel itself is well, but others are at work.
    pub(super) fn is_disturbance(&self) -> bool {
        matches!(self, SyncError::Disturbed(_) | SyncError::Read(KernelError::Restless))
    }
}
