//! Forgets the clients of endpoints that are gone.

use std::time::Instant;

use super::super::affinity;
use super::super::report::SyncError;
use super::{Pass, Table};
use crate::diff::{Operation, Transaction};
use crate::nftables::CommitError;
use crate::ruleset::names::SetName;

impl Table {
    /// Forgets the clients of endpoints that are gone, if it is time to look.
    pub(super) fn sweep(&mut self, pass: &mut Pass<'_>) {
        if self.sweeper.begins(pass.now) {
            let started = Instant::now();
            let forgotten = self.forget_stale(pass);
            pass.report.family(self.family).failed_cleanups += usize::from(forgotten.is_err());
            self.sweeper.ends(self.family, pass.now, started.elapsed(), &forgotten);
        }
    }

    /// Returns how many entries were deleted.
    fn forget_stale(&mut self, pass: &mut Pass<'_>) -> Result<usize, SyncError> {
        let mut attempt = 1;
        let mut deleted = 0;
        'look: loop {
            let stale = self.sweeper.stale(pass.kernel, self.family, &self.installed, self.sent.detector.as_ref())?;
            for some in stale.chunks(affinity::DELETIONS_PER_TRANSACTION) {
                let operations = vec![Operation::DeleteElements(SetName::Affinity, some.to_vec())];
                match self.send(pass, &Transaction { family: self.family, operations }) {
                    Ok(()) => deleted += some.len(),
                    // One of them has run out: no fault of anybody, unless it goes on.
                    Err(error) => {
                        if error.is_disturbance() {
                            // Not only the entry is gone, perhaps.
                            self.distrust();
                        } else if !matches!(error, SyncError::Commit(CommitError::Refused { .. } | CommitError::Busy)) {
                            return Err(error);
                        }
                        if attempt == affinity::ATTEMPTS {
                            return Err(error);
                        }
                        attempt += 1;
                        pass.report.family(self.family).failed_commits -= 1;
                        continue 'look;
                    }
                }
            }
            return Ok(deleted);
        }
    }
}
