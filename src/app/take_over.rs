//! `--take-over`: what kube-proxy has left is removed, once everything is in place.

use std::path::Path;

use tracing::{info, warn};

use crate::leftovers::{self, Outcome, Remaining};

/// Removes it and says what has gone and what remains, a line each. Takes its time where there is much.
/// `mark` is the bit that we mark packets with.
pub(super) fn take_over(mark: u32) {
    let Outcome { removed, kept, remains, dropping } = leftovers::remove(Path::new("/"), mark);
    if removed.is_empty() && kept.is_empty() && remains.is_empty() {
        info!("there is nothing of kube-proxy to take over from");
    }
    for what in removed {
        info!("taken over from kube-proxy: removed {what}");
    }
    for Remaining { what, fix } in kept {
        info!("kept from kube-proxy: {what}; {fix}");
    }
    for Remaining { what, fix } in dropping {
        warn!("connections to Services may fail: {what}; fix: {fix}");
    }
    for Remaining { what, fix } in remains {
        warn!("not removed: {what}; fix: {fix}");
    }
}
