//! Forgets the clients of endpoints that are gone.

use std::io;
use std::time::Instant;

use nix::errno::Errno;

use super::super::affinity::Purpose;
use super::super::report::Report;
use super::{Pass, Table};
use crate::diff::{Operation, Transaction};
use crate::nftables::{Clients, CommitError, KernelError, Slice};
use crate::ruleset::kept;
use crate::ruleset::names::SetName;

impl Table {
    /// When to begin a look at the clients that the kernel remembers. There is a time to look only while the table is as it
    /// should be.
    pub(in crate::sync) fn look_at(&self) -> Option<Instant> {
        if self.is_behind() { None } else { self.sweeper.look_at() }
    }

    /// Whether a look begins, and for what.
    pub(in crate::sync) fn begins_look(&mut self, now: Instant) -> Option<Purpose> {
        if self.is_behind() { None } else { self.sweeper.begins(now) }
    }

    /// Some clients have been read.
    pub(in crate::sync) fn looks_at(&mut self, slice: Slice) {
        self.sweeper.takes(slice, |key| self.installed.frontend(key), self.sent.detector.as_ref());
    }

    /// All have been read, or it has failed.
    pub(in crate::sync) fn has_looked(&mut self, end: Result<Clients, KernelError>, report: &mut Report, now: Instant) {
        match end {
            Ok(clients) => {
                self.remembers.note(self.name(), clients.count);
                self.sweeper.has_read(clients, self.family, now);
            }
            Err(error) => self.cannot_forget(&error, report, now),
        }
    }

    /// Whether there are clients to forget.
    pub(in crate::sync) fn has_to_forget(&self) -> bool {
        !self.is_behind() && self.sweeper.has_found()
    }

    /// Forgets some clients, in one small transaction.
    pub(in crate::sync) fn forget(&mut self, pass: &mut Pass<'_>) {
        let now = pass.now;
        let portion = self.sweeper.portion(|key| self.installed.frontend(key), self.sent.detector.as_ref());
        if portion.is_empty() {
            return self.sweeper.deleted(0, self.family, now);
        }
        let elements = portion.iter().map(kept::element).collect();
        let operations = vec![Operation::DeleteElements(SetName::Affinity, elements)];
        match self.commit(pass, &Transaction { family: self.family, operations }) {
            Ok(()) => self.sweeper.deleted(portion.len(), self.family, now),
            Err(CommitError::Refused { source, .. }) if is_not_there(&source) => {
                pass.report.family(self.family).failed_commits -= 1;
                self.sweeper.halve(portion, self.family, now);
            }
            Err(error) => {
                // Whether it is done shows when the table is read back.
                self.known &= !matches!(error, CommitError::Unknown(_));
                self.cannot_forget(&error, pass.report, now);
            }
        }
    }

    fn cannot_forget(&mut self, error: &dyn std::error::Error, report: &mut Report, now: Instant) {
        report.family(self.family).failed_cleanups += 1;
        self.sweeper.fails(error, self.family, now);
    }
}

/// One of the entries has run out, as a rule: that says nothing of the table. Who deletes the table instead is heard of, or
/// found out by the next sync, as everywhere.
fn is_not_there(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOENT as i32)
}
