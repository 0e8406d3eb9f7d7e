//! Accounts for connections by endpoint, on a thread of its own, while any Service asks for it.
//!
//! The kernel counts packets and bytes of each connection then (`nf_conntrack_acct`), and tells of each that ends, of whatever
//! Service or none, as it can tell no less: both cost all connections of the node something. Nobody is told to count no
//! more when nobody asks for it: others may have come to rely on it.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::{info, warn};

use super::observers::Ledger;
use crate::conntrack::{Ended, Ends};
use crate::metrics::{EndpointOf, Had, Metrics};
use crate::sync::Told;
use crate::{sysctl, threads};

/// Starts the thread. It ends when nobody can want anything any more.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn account(ledger: Ledger, mut wanted: watch::Receiver<bool>, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    threads::spawn("accounting", move || {
        // Made here: without the thread, nobody could drop it where tasks run.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
            Ok(runtime) => runtime,
            Err(error) => return warn!("connections cannot be accounted for: {error}"),
        };
        runtime.block_on(async move {
            let mut lost = Told::default();
            while wanted.wait_for(|wanted| *wanted).await.is_ok() {
                match Ends::open() {
                    Ok(mut ends) => {
                        sysctl::account(Path::new("/"));
                        info!("connections are accounted for by endpoint");
                        tokio::select! {
                            () = follow(&mut ends, &ledger, &metrics, &mut lost) => {}
                            // It is over, or the process is about to end.
                            _ = wanted.wait_for(|wanted| !*wanted) => info!("connections are not accounted for any more"),
                        }
                    }
                    Err(error) => {
                        warn!("connections cannot be accounted for: cannot hear of those that end: {error}");
                        // Until somebody asks anew.
                        let _ = wanted.wait_for(|wanted| !*wanted).await;
                    }
                }
            }
        });
    })?;
    Ok(())
}

/// Listens until the socket fails, which is said; then it is opened anew.
async fn follow(ends: &mut AsyncFd<Ends>, ledger: &Ledger, metrics: &Metrics, told: &mut Told) {
    loop {
        let mut ready = match ends.readable_mut().await {
            Ok(ready) => ready,
            Err(error) => return warn!("cannot hear of connections that end: {error}"),
        };
        let now = Instant::now();
        match ready.get_inner_mut().read(|ended| book(&ended, ledger, metrics, now)) {
            Ok(false) => {}
            Ok(true) => {
                metrics.accounting_lost.inc();
                if let Some(before) = told.again(now) {
                    warn!("more connections end than can be accounted for{before}: some are missing");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return warn!("cannot hear of connections that end: {error}"),
        }
        // Whoever wants it to end has a turn.
        tokio::task::yield_now().await;
    }
}

fn book(ended: &Ended, ledger: &Ledger, metrics: &Metrics, now: Instant) {
    let Some((service, port)) = ledger.lock().of(ended).cloned() else { return };
    let both = |of: fn(crate::conntrack::Traffic) -> u64| [of(ended.original), of(ended.reply)];
    let had = Had { packets: both(|traffic| traffic.packets), bytes: both(|traffic| traffic.bytes) };
    metrics.endpoints.ended(EndpointOf { service, port, endpoint: ended.endpoint }, had, now);
}
