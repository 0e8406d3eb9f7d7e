//! The chains of the frame, and those that are made when first used and go when nobody uses them any more.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::debug;

use super::super::report::SyncError;
use super::{Pass, Table};
use crate::diff::{Operation, Transaction};
use crate::errors;
use crate::nftables::CommitError;
use crate::ruleset::base::{self, FrameFacts};
use crate::ruleset::elements;
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{By, ChainName, Pick};

/// How long a chain stays that nobody uses. A packet may be on its way to it, and making it anew is dear: a Service that goes
/// to and fro between two numbers of endpoints has both.
const STAYS: Duration = Duration::from_secs(30);

/// The same of one that has a counter: each looks into `endpoints`, and to make another costs the kernel a walk over that map.
/// There are few.
const COUNTER_STAYS: Duration = Duration::from_hours(1);

fn stays(chain: ChainName) -> Duration {
    match chain {
        ChainName::Pick(Pick { by: By::Turn(_), .. }) if chain.counter().is_none() => COUNTER_STAYS,
        _ => STAYS,
    }
}

/// The chains that nobody uses, with the time when each goes.
#[derive(Debug, Default)]
pub(super) struct Idle(BTreeMap<ChainName, Instant>);

impl Idle {
    /// When the next one goes.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }
}

impl Table {
    /// Deletes the chains that nobody has used for a while. What goes wrong is no failure of the sync: it is tried again.
    pub(super) fn tidy(&mut self, pass: &mut Pass<'_>) {
        let idle = self.installed.idle();
        self.idle.0.retain(|chain, _| idle.contains(chain));
        for chain in idle {
            self.idle.0.entry(*chain).or_insert(pass.now + stays(*chain));
        }
        let due: Vec<ChainName> =
            self.idle.0.iter().filter(|(_, at)| **at <= pass.now).map(|(chain, _)| *chain).collect();
        if due.is_empty() {
            return;
        }
        let mut transaction = Transaction::new(self.family);
        let kinds = due.iter().filter_map(|chain| Kind::of_chain(*chain));
        transaction.elements(Operation::DeleteElements, kinds.flat_map(elements::dispatch_elements));
        transaction.operations.extend(due.iter().map(|chain| Operation::DeleteChain(*chain)));
        match self.send(pass, &transaction) {
            Ok(()) => {
                self.installed.chains_deleted(&due);
                self.idle.0.retain(|chain, _| !due.contains(chain));
            }
            Err(error) => {
                pass.report.family(self.family).failed_commits -= 1;
                debug!("{} chains that nobody uses cannot be deleted yet: {}", due.len(), errors::text(&error));
                self.idle.0.extend(due.into_iter().map(|chain| (chain, pass.now + STAYS)));
                // Linux before 6.2 may say that a chain is busy that is not any more.
                let as_it_was = matches!(
                    error,
                    SyncError::Commit(CommitError::Refused { .. } | CommitError::Busy | CommitError::Permission)
                );
                if !as_it_was {
                    self.distrust();
                }
            }
        }
    }

    /// Sends the chains whose rules are others by these facts, of the frame and those made on demand, and the sets and chains
    /// that belong to the frame by these facts only.
    pub(super) fn send_frame(&mut self, pass: &mut Pass<'_>, facts: FrameFacts) -> Result<(), SyncError> {
        if self.sent == facts {
            return Ok(());
        }
        let present = base::all_chains(self.installed.chains(), &self.sent);
        let mut transaction = Transaction::new(self.family);
        let new_sets = base::sets(&facts).filter(|set| !self.sent.extras.has_set(*set));
        transaction.operations.extend(new_sets.map(|set| Operation::AddSet(base::set_for(set, &facts))));
        let mut dispatched = Vec::new();
        for chain in base::all_chains(self.installed.chains(), &facts) {
            if present.contains(&chain) {
                continue;
            }
            if present.iter().any(|other| other.name == chain.name) {
                transaction.operations.push(Operation::FlushChain(chain.name));
            } else {
                dispatched.extend(Kind::of_chain(chain.name).into_iter().flat_map(elements::dispatch_elements));
                transaction.operations.push(Operation::AddChain(chain.clone()));
            }
            transaction.operations.push(Operation::AddRules(chain));
        }
        transaction.elements(Operation::AddElements, dispatched);
        self.send(pass, &transaction)?;
        self.installed.set_common(base::common(&facts));
        self.sent = facts;
        Ok(())
    }
}
