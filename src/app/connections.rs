//! Counts open connections for the sync loop, over ctnetlink.

use std::sync::Arc;

use crate::conntrack::{Conntrack, Counted, Look, Open, period};
use crate::errors;
use crate::sync::{Counts, Tracked};

/// The kernel's table of connections.
pub(super) struct Connections {
    conntrack: Conntrack,
    /// What was counted last, and as what the count takes it.
    tracked: Arc<Tracked>,
    counted: Counted,
    open: Open,
}

impl Connections {
    pub(super) fn new(conntrack: Conntrack) -> Connections {
        Connections { conntrack, tracked: Arc::default(), counted: Counted::default(), open: Open::default() }
    }

    /// Counts those of these frontends.
    ///
    /// # Errors
    /// Why the kernel cannot be asked.
    pub(super) fn count(&mut self, tracked: &Arc<Tracked>) -> Result<Counts, String> {
        if !Arc::ptr_eq(tracked, &self.tracked) {
            self.counted = Counted::new(tracked.iter().copied());
            self.tracked = Arc::clone(tracked);
        }
        let look = self.conntrack.count(&self.counted, &mut self.open);
        let Look { incomplete, took, .. } = look.map_err(|error| errors::text(&error))?;
        let seen = self.open.iter().map(|((number, endpoint), seen)| (number, endpoint, seen));
        Ok(Counts { seen: seen.collect(), incomplete, pause: period(took) })
    }
}
