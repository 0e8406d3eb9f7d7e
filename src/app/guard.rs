//! Has the guard stand for as long as the daemon serves.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::errors;
use crate::nftables::{Guard, NoGuard};
use crate::ruleset::names::TableName;

/// How often it is tried in the beginning: whoever served before takes its guard along when it ends, which can be a moment
/// after it has given up the right to serve.
const AT_FIRST: u32 = 20;
const SOON: Duration = Duration::from_millis(100);

/// The pause between later attempts.
const LATER: Duration = Duration::from_secs(2);

/// Has the guard stand from the first time that this is polled, and until it is dropped. Nothing needs it: where it cannot
/// be had that is said, once for each reason, and it is tried again.
///
/// What the kernel needs for it, milliseconds, others of this thread wait for.
pub(super) async fn stand(table: TableName, wanted: bool) {
    if !wanted {
        return std::future::pending().await;
    }
    let mut said = None;
    let mut soon = AT_FIRST;
    loop {
        match Guard::new(table) {
            Ok(guard) => {
                info!("tables {} keep open connections translated while others flush tables", table.guard());
                let _guard = guard;
                return std::future::pending().await;
            }
            Err(error @ NoGuard::Unsupported) => {
                info!("no guard: {}; if others flush the tables, open connections can be cut", errors::text(&error));
                return std::future::pending().await;
            }
            Err(error) => {
                let error = errors::text(&error);
                if soon == 0 && said.as_ref() != Some(&error) {
                    warn!("no guard: {error}; until there is one, flushes of the tables can cut open connections");
                    said = Some(error);
                }
            }
        }
        sleep(if soon == 0 { LATER } else { SOON }).await;
        soon = soon.saturating_sub(1);
    }
}
