//! `--take-over`: what kube-proxy has left is removed, once this proxy has shown that it serves in its place.
//!
//! A thread of its own waits for that: nobody else runs on that node beside, all tables are in line, and the kernel, asked
//! for one Service of each family, holds what sends packets to its endpoints. As long as that is not so, kube-proxy's rules
//! stay and serve, the reason is said, and the proxy is not ready: a rollout stops there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tracing::{info, warn};

use super::ready::{Awaited, Readiness};
use crate::leftovers::{self, Outcome, Remaining};
use crate::model::Family;
use crate::nftables::{Kernel, LinuxKernel};
use crate::ruleset::base;
use crate::ruleset::elements::shared_element;
use crate::ruleset::frontend::Shared;
use crate::ruleset::names::TableName;
use crate::sync::{Engine, Sample};
use crate::threads;

/// The pause before it is looked again whether somebody else still runs.
const AGAIN: Duration = Duration::from_secs(1);

/// The same whether all is served: that reads all rules of kube-proxy, which may be a while, and for as long as nobody
/// does anything about it. Another sample is looked at when it comes.
const PROOF_AGAIN: Duration = Duration::from_secs(5);

/// How many addresses a line of the log names.
const MOST_NAMED: usize = 5;

/// Samples of the families that serve something; `None` while not every table is in line.
pub(super) type Told = Option<Vec<Sample>>;

/// What is done, and what has to be so before.
pub(super) trait Steps: Send + 'static {
    /// Whoever else serves the node, in words.
    fn beside(&mut self) -> Option<String>;
    /// Whether this proxy serves in the other's place. Says why not.
    fn proved(&mut self, samples: &[Sample]) -> Result<(), String>;
    /// Removes what the other has left.
    fn remove(&mut self);
}

/// The thread, and what it is told.
#[derive(Debug)]
pub(super) struct TakeOver {
    told: Sender<Told>,
    /// What was told last.
    last: Told,
    done: Arc<AtomicBool>,
}

impl TakeOver {
    /// Starts the thread. It calls `nudge` when all is done.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn spawn(
        steps: impl Steps,
        readiness: Readiness,
        nudge: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<TakeOver> {
        let (told, hears) = channel();
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        threads::spawn("take-over", move || {
            if follow(steps, &hears, &readiness) {
                readiness.comes(Awaited::TakeOver);
                is_done.store(true, Ordering::Release);
                nudge();
            }
        })?;
        Ok(TakeOver { told, last: None, done })
    }

    /// Says how the tables stand now, if that is news.
    pub(super) fn tell<K: Kernel>(&mut self, engine: &Engine<K>) {
        let before = |family| self.last.iter().flatten().find(|sample| sample.family == family);
        let samples = || Family::ALL.into_iter().filter_map(|family| engine.sample(family, before(family))).collect();
        let now = engine.is_in_line().then(samples);
        if now != self.last {
            self.last.clone_from(&now);
            // It ends before us only when it is done.
            let _ = self.told.send(now);
        }
    }

    /// Whether everything has been removed.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

/// Waits until it may be done, and does it. False if the process ends before.
fn follow(mut steps: impl Steps, hears: &Receiver<Told>, readiness: &Readiness) -> bool {
    let mut latest: Told = None;
    let mut said = None;
    let mut pause = None;
    loop {
        let told = match pause {
            None => hears.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(pause) => hears.recv_timeout(pause),
        };
        match told {
            Ok(told) => latest = told,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        hears.try_iter().for_each(|told| latest = told);
        let Some(samples) = &latest else {
            pause = None;
            continue;
        };
        let (obstacle, again) = match steps.beside() {
            Some(beside) => (Err(format!("{beside} still runs on this node: stop it first")), AGAIN),
            None => (steps.proved(samples), PROOF_AGAIN),
        };
        // It may have taken a while.
        hears.try_iter().for_each(|told| latest = told);
        match obstacle {
            Ok(()) if latest.is_some() => {
                steps.remove();
                return true;
            }
            Ok(()) => pause = None,
            Err(why) => {
                if said.as_ref() != Some(&why) {
                    warn!("kube-proxy's rules are not taken over yet, and stay in force: {why}");
                }
                readiness.awaits(Awaited::TakeOver, Some(&why));
                said = Some(why);
                pause = Some(again);
            }
        }
    }
}

/// The steps on a node.
pub(super) struct OnNode<B> {
    /// The name of the tables.
    pub(super) table: TableName,
    /// The bit that we mark packets with.
    pub(super) mark: u32,
    /// Who else serves the node.
    pub(super) beside: B,
}

impl<B: FnMut() -> Option<String> + Send + 'static> Steps for OnNode<B> {
    fn beside(&mut self) -> Option<String> {
        (self.beside)()
    }

    fn proved(&mut self, samples: &[Sample]) -> Result<(), String> {
        let theirs = match leftovers::served_addresses(Path::new("/")) {
            Ok(theirs) => theirs,
            Err(error) => return Err(format!("its rules cannot be read: {error}")),
        };
        let mut kernel = LinuxKernel::of(self.table).map_err(|error| error.to_string())?;
        served_instead(&theirs, samples, &mut kernel)
    }

    fn remove(&mut self) {
        remove(self.mark);
    }
}

/// Whether the kernel says that what kube-proxy's rules serve at these cluster IPs is served by our tables.
fn served_instead(theirs: &BTreeSet<IpAddr>, samples: &[Sample], kernel: &mut impl Kernel) -> Result<(), String> {
    for sample in samples {
        let of_service = |why| format!("table {} does not serve Service {}: {why}", sample.table(), sample.service);
        sample.is_served(kernel).map_err(of_service)?;
    }
    if theirs.is_empty() {
        return Ok(());
    }
    if samples.is_empty() {
        return Err(format!(
            "no Service with endpoints is known here, and its rules serve {} cluster IPs, such as {}: does nftproxyd follow \
             the right cluster?",
            theirs.len(),
            named(theirs.iter())
        ));
    }
    let mut missing = Vec::new();
    for address in theirs {
        let (set, element) = shared_element(Shared::ClusterIp(*address));
        if !kernel.holds(Family::of(*address), &base::set(set), &element).map_err(|error| error.to_string())? {
            missing.push(address);
        }
    }
    if missing.len() == theirs.len() {
        return Err(format!(
            "its rules serve {} cluster IPs, such as {}, and none of them is served here: does nftproxyd follow the right \
             cluster?",
            theirs.len(),
            named(missing.into_iter())
        ));
    }
    if !missing.is_empty() {
        info!(
            "of {} addresses that kube-proxy's rules serve, {} are no cluster IPs here: {}",
            theirs.len(),
            missing.len(),
            named(missing.into_iter())
        );
    }
    Ok(())
}

pub(super) fn named<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> String {
    addresses.take(MOST_NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Removes it and says what has gone and what remains, a line each. Takes its time where there is much.
/// `mark` is the bit that we mark packets with.
fn remove(mark: u32) {
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

#[cfg(test)]
mod tests;
