//! Tables that nobody else can change, and what becomes of them at the end.
//!
//! A table that has lost its owner (Linux clears the flag `owner` and leaves `persist`) is nothing that nft before 1.1.0 can
//! read back: it lists an empty line of flags, and a file with that, such as a saved ruleset, is refused as a whole. So
//! tables are given up in time: each is replaced, in one transaction, by the same one without flags.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use crate::cli::TableOwner;
use crate::nftables::LinuxKernel;
use crate::sync::Engine;

/// How long the process takes at its end to give up its tables.
const PATIENCE: Duration = Duration::from_secs(5);

/// What it means that tables have lost their owner.
const ORPHANS: &str = "until the next start, or nftproxyd cleanup, nft before 1.1.0 cannot read a saved ruleset";

/// What becomes of the tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    /// Nobody else can change them.
    pub(super) own: bool,
    /// They are given up at the end.
    give_up: bool,
}

/// Says that the last sync is over, and then, by the inner one, that the tables are given up.
pub(super) type LastSync = oneshot::Receiver<oneshot::Receiver<()>>;

impl Ownership {
    pub(super) fn new(wanted: TableOwner, kernel: &mut LinuxKernel) -> anyhow::Result<Ownership> {
        let own = wanted != TableOwner::Off && kernel.can_own()?;
        anyhow::ensure!(
            own || wanted != TableOwner::On,
            "--table-owner=on needs Linux 6.9 or later: use --table-owner=auto"
        );
        Ok(Ownership { own, give_up: own && wanted == TableOwner::Auto })
    }

    /// After the last sync: says that it is over, and gives up the tables.
    pub(super) fn end(self, engine: &mut Engine<LinuxKernel>, last_sync: oneshot::Sender<oneshot::Receiver<()>>) {
        let (given_up, giving_up) = oneshot::channel();
        // Nobody waits for it when the process fails.
        let _ = last_sync.send(giving_up);
        if self.give_up {
            let report = engine.disown_tables(Instant::now());
            if report.failures > 0 {
                let error = report.error_text();
                warn!("the tables cannot be given up ({error}): they stay without an owner; {ORPHANS}");
            }
        }
        let _ = given_up.send(());
    }
}

/// Waits until the tables are given up, for as long as there is patience. Says whether the thread comes to its end, well or
/// not; otherwise it is left behind: what the kernel is doing for it is done as a whole or not at all.
pub(super) async fn given_up(last_sync: LastSync) -> bool {
    let Ok(giving_up) = last_sync.await else { return true };
    let in_time = timeout(PATIENCE, giving_up).await.is_ok();
    if !in_time {
        warn!("the tables could not be given up in time: they may stay without an owner; {ORPHANS}");
    }
    in_time
}
