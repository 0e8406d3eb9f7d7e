//! Reads what frontends have counted, for the metrics, on a thread of its own.

use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::watch;
use tracing::warn;

use crate::metrics::{FrontendOf, Metrics};
use crate::model::Family;
use crate::nftables::{Kernel, KernelError, LinuxKernel};
use crate::ruleset::counted::FrontendCount;
use crate::sync::Told;
use crate::{errors, threads};

/// After a reading there is none for so many times as long as it took: of 10,000 frontends that is some 5 seconds, of a few
/// each question is answered by a new one.
const PAUSE: u32 = 50;

/// Has the metrics count connections by what the tables count that this kernel is about to change. It tells what is deleted;
/// the rest is read when the metrics are asked for, and once at once: what is there already was counted before.
///
/// # Errors
/// There is no socket or no thread to be had.
pub(super) fn count(kernel: &mut LinuxKernel, metrics: &Arc<Metrics>) -> anyhow::Result<()> {
    let mut reader = LinuxKernel::of(kernel.table())?;
    let told = Arc::clone(metrics);
    kernel.tell_last_counts(move |counts, at| {
        for (frontend, connections) in counts.into_iter().map(of) {
            told.connections.deleted(frontend, connections, at);
        }
    });
    let (asks, asked) = sync_channel(1);
    let (answers, answered) = watch::channel(());
    // There is room for it.
    let _ = asks.try_send(());
    metrics.connections.read_by(asks, answered);
    let metrics = Arc::downgrade(metrics);
    threads::spawn("counters", move || {
        let (mut not_before, mut failures) = (Instant::now(), Told::default());
        for () in asked {
            let begun = Instant::now();
            if begun >= not_before {
                if let Err(error) = read(&mut reader, &metrics, begun)
                    && let Some(before) = failures.again(begun)
                {
                    warn!("what frontends have counted cannot be read: {}{before}", errors::text(&error));
                }
                not_before = Instant::now() + begun.elapsed() * PAUSE;
            }
            answers.send_replace(());
        }
    })?;
    Ok(())
}

fn read(kernel: &mut LinuxKernel, metrics: &Weak<Metrics>, begun: Instant) -> Result<(), KernelError> {
    let mut counts = Vec::new();
    for family in Family::ALL {
        counts.extend(kernel.frontend_counts(family)?);
    }
    if let Some(metrics) = metrics.upgrade() {
        metrics.connections.read(counts.into_iter().map(of), begun);
    }
    Ok(())
}

fn of(count: FrontendCount) -> (FrontendOf, u64) {
    let FrontendCount { key, service, port_name, packets, .. } = count;
    (FrontendOf { service, port: port_name, key }, packets)
}
