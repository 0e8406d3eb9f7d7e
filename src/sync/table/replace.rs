//! A table made anew in the place of one that cannot be changed into it.
//!
//! It is one transaction: packets meet the old table until it is done, and the new one with all that is in it from then on.
//! Established connections are no business of the tables. Clients with affinity are taken along; only one that comes
//! between the reading of them and the commit may choose again.

use std::mem;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::super::mend::new_table;
use super::super::report::SyncError;
use super::{Pass, Table};
use crate::diff::{Installed, Operation, Stage, Transaction};
use crate::errors;
use crate::model::FrontendKey;
use crate::nftables::{CommitError, KeptClients, Snapshot, table_flag};
use crate::ruleset::base::{self, Frame, FrameFacts};
use crate::ruleset::extras::Extras;
use crate::ruleset::frontend::Frontend;
use crate::ruleset::kept::Kept;
use crate::ruleset::names::SetName;

/// How long clients with affinity are looked for: some 50,000 are read in that time. The old table serves meanwhile.
const READING: Duration = Duration::from_secs(2);

/// What became of a table that was to be made anew in one transaction.
pub(super) enum Replaced {
    /// It is there, with all that is wanted of it.
    Whole,
    /// The kernel takes the transaction not at all; what was there still is.
    Refused {
        /// Why.
        error: SyncError,
        /// The clients that were to keep their endpoint.
        clients: Vec<Kept>,
    },
}

impl Table {
    /// Reads the frame of the table, but for the elements of its sets, and makes the table ours if it has lost its owner.
    pub(super) fn look(&mut self, pass: &mut Pass<'_>, frame: &Frame) -> Result<Snapshot, SyncError> {
        let snapshot = self.dump(pass, frame)?;
        self.owned = self.to_own && snapshot.table_flags == table_flag::OWNED && snapshot.owner.is_none();
        if let Some(owner) = snapshot.owner {
            return Err(CommitError::Owned(owner).into());
        }
        if !self.to_own || snapshot.table_flags != table_flag::PERSIST {
            return Ok(snapshot);
        }
        // First it is ours, and then it is read: from here on it stays what it is.
        self.send(pass, &Transaction { family: self.family, operations: vec![Operation::OwnTable] })?;
        info!("table {} had lost its owner, and is adopted", self.name());
        self.dump(pass, frame)
    }

    /// Whether the table has parts that nobody has needed since this process began. They stay until it is made anew.
    pub(super) fn keeps_extras(&mut self, snapshot: &Snapshot) -> bool {
        let unknown = snapshot.foreign_sets.iter().filter_map(|name| SetName::parse(name));
        let extras = unknown.fold(self.facts.extras, |extras, set| extras.with(Extras::of_set(set)));
        let keeps = extras != self.facts.extras;
        self.facts.extras = extras;
        keeps
    }

    fn dump(&self, pass: &mut Pass<'_>, frame: &Frame) -> Result<Snapshot, SyncError> {
        let on_demand = |name| base::on_demand(name, &self.facts);
        Ok(pass.kernel.dump(self.family, &frame.sets, &frame.chains, &on_demand)?)
    }

    /// Makes the table anew because of what it is, and says so.
    pub(super) fn replace_other(&mut self, pass: &mut Pass<'_>, before: &Snapshot) -> Result<(), SyncError> {
        self.replace(pass, before)?;
        let table = self.name();
        if self.owned && before.table_flags == 0 {
            info!("table {table} has been replaced by one that nobody else can change");
        } else {
            info!("table {table} was not as this version makes it; it has been replaced");
        }
        self.tell_flags(before);
        Ok(())
    }

    /// Makes the table anew, as it is, but as one that everybody may change: one that loses its owner is listed by older
    /// nft in a way that it cannot read.
    pub(in crate::sync) fn disown(&mut self, pass: &mut Pass<'_>) -> Result<(), SyncError> {
        if !self.owned {
            return Ok(());
        }
        if !self.known {
            self.read_back(pass)?;
        }
        let before = Snapshot { table: true, table_flags: table_flag::OWNED, ..Snapshot::default() };
        // With all that is in it: what is done with each kind is among the elements below.
        let chains = base::all_chains(self.installed.chains(), &self.sent);
        let frame = Frame { chains, elements: Vec::new(), ..base::frame(&self.sent) };
        let mut transaction = new_table(self.family, &frame, &before, false);
        let elements = self.installed.elements_by_set();
        transaction.operations.extend(elements.into_iter().map(|(set, list)| Operation::AddElements(set, list)));
        if self.sent.affinity {
            let clients = self.clients(pass, &before, |key| self.installed.frontend(key));
            transaction.operations.extend(remember(&clients));
        }
        self.send(pass, &transaction)
    }

    /// Makes the table anew, with all that is wanted of it: parts of what there is (`before`) cannot be changed in place.
    pub(super) fn replace(&mut self, pass: &mut Pass<'_>, before: &Snapshot) -> Result<(), SyncError> {
        let (refused, clients) = match self.replace_at_once(pass, before)? {
            Replaced::Whole => return Ok(()),
            Replaced::Refused { error, clients } => (error, clients),
        };
        // Because of a Service, or of the size, as it needs nothing that was there: the Services follow in portions, as at a
        // start, and the one is found.
        debug!("the table cannot be replaced at once: {}", errors::text(&refused));
        let facts = self.facts.before_all_services();
        self.send_empty(pass, &facts, before, &clients)?;
        self.is_now(Installed::with_common(base::common(&facts)), facts);
        self.unfinished = true;
        Ok(())
    }

    /// The same in one transaction, which the kernel may refuse.
    pub(super) fn replace_at_once(&mut self, pass: &mut Pass<'_>, before: &Snapshot) -> Result<Replaced, SyncError> {
        let empty = Installed::with_common(base::common(&self.facts));
        let mut stage = Stage::default();
        let dirty = mem::take(&mut self.dirty);
        for name in &dirty {
            let wanted = pass.cluster.wanted(name, self.family, &empty);
            self.note_shortage(pass, name, &wanted);
            stage.service(&empty, name, wanted);
        }
        self.dirty = dirty;
        stage.nodeport_ips(self.nodeport_ips.clone());
        let elements = stage.transaction(self.family, &empty, |name| base::on_demand(name, &self.facts));
        let mut transaction = new_table(self.family, &base::frame(&self.facts), before, self.to_own);
        transaction.operations.extend(elements.operations);
        let clients = self.clients(pass, before, |key| stage.frontend(key));
        transaction.operations.extend(remember(&clients));
        match self.send(pass, &transaction) {
            Ok(()) => {
                let mut installed = empty;
                pass.report.note_stage(&stage, &installed);
                stage.commit(&mut installed, &transaction);
                self.is_now(installed, self.facts.clone());
                self.unfinished = false;
                self.dirty.iter().for_each(|name| drop(self.refused.remove(name)));
                self.dirty.clear();
                Ok(Replaced::Whole)
            }
            Err(error @ (SyncError::Disturbed(_) | SyncError::Commit(CommitError::Refused { .. }))) => {
                Ok(Replaced::Refused { error, clients })
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the table anew without Services. What is remembered of clients is not worth a failure.
    fn send_empty(
        &mut self,
        pass: &mut Pass<'_>,
        facts: &FrameFacts,
        before: &Snapshot,
        clients: &[Kept],
    ) -> Result<(), SyncError> {
        let transaction = new_table(self.family, &base::frame(facts), before, self.to_own);
        let mut with_clients = transaction.clone();
        with_clients.operations.extend(remember(clients));
        match self.send(pass, &with_clients) {
            Err(SyncError::Disturbed(_) | SyncError::Commit(CommitError::Refused { .. })) if !clients.is_empty() => {
                self.send(pass, &transaction)
            }
            other => other,
        }
    }

    /// The clients with affinity that `frontend`, a frontend of the new table, still sends where they were sent.
    pub(super) fn clients<'a>(
        &self,
        pass: &mut Pass<'_>,
        before: &Snapshot,
        frontend: impl Fn(&FrontendKey) -> Option<&'a Frontend>,
    ) -> Vec<Kept> {
        if !self.facts.affinity || !before.table {
            return Vec::new();
        }
        let started = Instant::now();
        let frontend_of = |key: &FrontendKey| frontend(key).map(|frontend| -> &Frontend { frontend });
        let mut remembering = self.sweeper.remembering(frontend_of, self.facts.detector.as_ref());
        let mut wanted = |client: &_| !remembering.is_stale(client);
        let table = self.name();
        match pass.kernel.kept(self.family, READING, &mut wanted) {
            Ok(KeptClients { clients, complete }) => {
                let count = clients.len();
                if !complete {
                    warn!(
                        "table {table} is replaced: {count} clients keep their endpoint; others choose again, as \
                         reading them all takes too long"
                    );
                }
                debug!("{count} clients keep their endpoint in table {table}, read in {:?}", started.elapsed());
                clients
            }
            Err(error) => {
                warn!("table {table} is replaced, and clients with affinity choose again: {}", errors::text(&error));
                Vec::new()
            }
        }
    }
}

/// What makes the new table remember them.
pub(super) fn remember(clients: &[Kept]) -> Option<Operation> {
    (!clients.is_empty()).then(|| Operation::Remember(clients.to_vec()))
}
