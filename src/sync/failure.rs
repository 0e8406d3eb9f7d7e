//! When what failed is tried again.

use std::time::{Duration, Instant};

/// The first wait after a failure; it doubles with each further one.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(200);

/// What failed before and will be tried again.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// When to try again.
    pub(super) at: Instant,
    /// How long that is after the last time.
    pub(super) wait: Duration,
    /// What went wrong, for the log: said again only when it changes.
    pub(super) error: String,
}

impl Failure {
    /// One more, after a `previous` one.
    pub(super) fn after(previous: Option<&Failure>, error: String, now: Instant, longest: Duration) -> Failure {
        let wait = previous.map_or(FIRST_RETRY, |previous| previous.wait * 2).min(longest);
        Failure { at: now + wait, wait, error }
    }

    /// The same, to be tried again no later than after `longest`.
    pub(super) fn within(self, longest: Duration, now: Instant) -> Failure {
        let wait = self.wait.min(longest);
        Failure { at: now + wait, wait, ..self }
    }
}
