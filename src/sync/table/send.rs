//! What goes to the kernel, and what its answers mean.

use tracing::debug;

use super::super::pass::Pass;
use super::super::report::SyncError;
use super::Table;
use crate::diff::{Operation, Transaction};
use crate::nftables::CommitError;
use crate::ruleset::base;
use crate::ruleset::types::Chain;

/// How often a busy kernel is asked again before the sync counts as failed.
const BUSY_ATTEMPTS: u32 = 5;

impl Table {
    /// Sends a transaction, if there is anything in it, and notes what that cost and changed.
    pub(super) fn send(&mut self, pass: &mut Pass<'_>, transaction: &Transaction) -> Result<(), SyncError> {
        self.commit(pass, transaction).map_err(|error| self.judge(pass, error))
    }

    /// The same without asking what a failure means.
    pub(super) fn commit(&mut self, pass: &mut Pass<'_>, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        if tracing::enabled!(tracing::Level::TRACE) {
            transaction.text(self.facts.table).lines().for_each(|line| tracing::trace!("transaction: {line}"));
        }
        let mut attempt = 0;
        let committed = loop {
            attempt += 1;
            match pass.kernel.commit(transaction) {
                Err(CommitError::Busy) if attempt < BUSY_ATTEMPTS => debug!("the kernel is busy; trying again"),
                other => break other,
            }
        };
        let report = pass.report.family(self.family);
        let committed = committed.inspect_err(|_| report.failed_commits += 1)?;
        report.commits.push(committed);
        self.unheard |= committed.unheard;
        pass.report.note_commit(committed);
        self.note_sent(transaction);
        Ok(())
    }

    /// What the failure of a commit means. A refusal is about what was sent only if the table is what it is taken for:
    /// whoever deletes the table makes the kernel refuse every Service.
    fn judge(&mut self, pass: &mut Pass<'_>, error: CommitError) -> SyncError {
        let mut as_known = !matches!(error, CommitError::Refused { .. }) || self.is_undisturbed(pass);
        if !as_known && self.only_others {
            as_known = self.has_frame(pass);
            // The kernel has told that somebody was at work, and tells it once: he may have been at this table all the same.
            self.doubted = true;
        }
        if as_known { SyncError::Commit(error) } else { SyncError::Disturbed(error) }
    }

    /// Whether the kernel can tell that nobody else has changed the table since it was last asked.
    pub(super) fn is_undisturbed(&self, pass: &mut Pass<'_>) -> bool {
        self.owned || pass.kernel.undisturbed(self.family).unwrap_or(false)
    }

    /// Whether the kernel's table still has the sets and chains of the frame.
    fn has_frame(&self, pass: &mut Pass<'_>) -> bool {
        let frame = base::frame(&self.sent);
        let on_demand = |name| base::on_demand(name, &self.sent);
        pass.kernel.dump(self.family, &frame.sets, &frame.chains, &on_demand).is_ok_and(|snapshot| {
            let is_there =
                |chain: &Chain| snapshot.chains.contains(&chain.name) || snapshot.other_rules.contains(&chain.name);
            snapshot.table
                && frame.sets.iter().all(|set| snapshot.sets.contains(&set.name))
                && frame.chains.iter().all(is_there)
        })
    }

    fn note_sent(&mut self, transaction: &Transaction) {
        for operation in &transaction.operations {
            match operation {
                Operation::OwnTable => self.owned = true,
                Operation::DeleteTable => {
                    self.owned = false;
                    self.elements.clear();
                }
                Operation::AddElements(set, elements) => *self.elements.entry(*set).or_default() += elements.len(),
                Operation::DeleteElements(set, elements) => {
                    // Those that the kernel writes are not counted.
                    if let Some(count) = self.elements.get_mut(set) {
                        *count = count.saturating_sub(elements.len());
                    }
                }
                _ => {}
            }
        }
    }
}
