//! What is wrong around the daemon, looked for once when it has started: as `nftproxyd doctor` does at any time.

use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::ready::Readiness;
use crate::config::Config;
use crate::doctor::{self, Finding, Grade, Report};
use crate::events::{Events, Notice};
use crate::metrics::daemon::Daemon;
use crate::sys::release_free_memory;
use crate::threads;

/// A start that takes longer is not waited for: what keeps it from its end may be found.
const LONGEST_START: Duration = Duration::from_secs(60);
/// Until those who serve health checks have tried their ports.
const SETTLE: Duration = Duration::from_secs(2);
/// So many lines are written at most.
const NAMED: usize = 20;

/// Looks around once, on a thread of its own, and says what is to be done: a line for each finding, and one Event. Where no
/// thread can be had, it is left out.
pub(super) async fn look_around(
    readiness: Readiness,
    config: Config,
    status: impl Fn() -> Daemon + Send + 'static,
    events: Events,
) {
    // Whether it has come or not.
    let _ = timeout(LONGEST_START, readiness.ready()).await;
    sleep(SETTLE).await;
    let (sender, report) = oneshot::channel();
    let examine = move || {
        let report = doctor::examine_around(Path::new("/"), &config, &status());
        release_free_memory();
        // The process may be about to end.
        let _ = sender.send(report);
    };
    if let Err(error) = threads::spawn("doctor", examine) {
        return debug!("the doctor does not look around: {error}");
    }
    if let Ok(report) = report.await {
        tell(&report, &events);
    }
}

fn tell(report: &Report, events: &Events) {
    let mut serious: Vec<&Finding> = report.findings.iter().filter(|finding| finding.grade >= Grade::Check).collect();
    serious.sort_by_key(|finding| std::cmp::Reverse(finding.grade));
    for finding in serious.iter().take(NAMED) {
        let Finding { what, proof, fix, .. } = finding;
        let seen: String = proof.iter().map(|proof| format!("; seen: {proof}")).collect();
        warn!("doctor: {what}{seen}; fix: {fix}");
    }
    if let more @ 1.. = serious.len().saturating_sub(NAMED) {
        warn!("doctor: and {more} more; see: nftproxyd doctor");
    }
    match report.summary() {
        None => info!("doctor: nothing is wrong around this daemon"),
        Some(summary) if serious.is_empty() => info!("doctor: {summary}; see: nftproxyd doctor"),
        Some(summary) => {
            let whats = serious.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>().join("; ");
            events.say(Notice::found_by_doctor(format!("{summary} (nftproxyd doctor says what to do): {whats}")));
        }
    }
}
