//! The loop around the engine: waits, coalesces, syncs.

use std::collections::BTreeSet;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{self, sleep_until};
use tracing::{debug, info, warn};

use super::counter::Counter;
use super::engine::{Engine, Overlap};
use super::obstacle::Obstacle;
use super::question::Question;
use super::reader::{News, Reader};
use super::report::Report;
use super::reports::{self, Reports};
use super::standing::Standing;
use crate::addresses::NodePortAddresses;
use crate::model::{Event, Family};
use crate::nftables::Kernel;

/// How many events are taken in before the loop looks at anything else.
const EVENTS_AT_ONCE: usize = 4_096;

/// How many disturbances are heard before it does: more than there are kinds.
const DISTURBANCES_AT_ONCE: usize = 16;

/// The clients of endpoints that are gone are forgotten portion by portion, each when nothing else waits, but one at least
/// within this time.
const LONGEST_FORGETTING: Duration = Duration::from_millis(20);

/// What the loop listens to.
pub struct Inputs {
    /// Objects. When the channel closes the loop ends.
    pub events: mpsc::Receiver<Event>,
    /// The node's own addresses.
    pub addresses: watch::Receiver<BTreeSet<IpAddr>>,
    /// Which of them accept node ports, where that changes while it runs.
    pub node_ports: watch::Receiver<NodePortAddresses>,
    /// The addresses of the API server, where it is reached past the tables.
    pub servers: watch::Receiver<BTreeSet<SocketAddr>>,
    /// What others do to the tables.
    pub disturbances: mpsc::Receiver<Disturbance>,
    /// Which clients the kernel remembers; it is asked.
    pub clients: Reader,
    /// How many connections are open; it is asked.
    pub connections: Counter,
    /// What people want to know, one at a time and never before what is to be synced.
    pub questions: mpsc::Receiver<Question>,
}

/// Somebody else has been at work in nftables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// This family's table was changed.
    Table(Family),
    /// From now on every change of a table is told; before, something may have changed unheard.
    Listening,
    /// The rules of the proxy that served this node too are gone.
    TakenOver,
}

/// What hangs beside the line: it hears of every sync and never holds one up.
pub trait Observer<K> {
    /// An event has come, and is about to be taken in.
    fn hears(&mut self, engine: &Engine<K>, event: &Event);
    /// Something waits to be synced.
    fn queued(&mut self, engine: &Engine<K>);
    /// A sync begins; it takes up all that waits.
    fn begins(&mut self, engine: &Engine<K>);
    /// It has ended.
    fn synced(&mut self, engine: &Engine<K>, report: &Report);
    /// Clients of endpoints that are gone have been forgotten, or could not be; or all that are remembered have been counted.
    fn forgot(&mut self, _engine: &Engine<K>, _report: &Report) {}
    /// These ranges of cluster IPs of a family hold addresses of the node now, and no others.
    fn overlaps(&mut self, _family: Family, _overlaps: &[Overlap]) {}
    /// These objects have the address of the API server now, and no others.
    fn obstacles(&mut self, _obstacles: &[Obstacle]) {}
}

/// Runs the engine until its source ends.
///
/// An event is handled at once. Events that are waiting when a sync begins go into it together (up to 4096), so those
/// that arrive while the kernel is at work make one transaction. `min_sync_period` is the least time from the end of one
/// sync to the beginning of the next.
///
/// It goes in rounds: a sync if one is due, then something of everything that waits, then a turn for other tasks. So a
/// source that is faster than its events are taken in delays nobody else for longer than a round.
pub async fn run<K: Kernel>(
    engine: &mut Engine<K>,
    mut inputs: Inputs,
    min_sync_period: Duration,
    observer: &mut impl Observer<K>,
) {
    let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
    let mut reports = Reports::default();
    let mut not_before = now();
    let mut starting = Some(now());
    let mut checked = false;
    let mut forgot = now();
    engine.set_addresses(inputs.addresses.borrow_and_update().clone());
    loop {
        let start = now();
        let due = engine.is_due(start);
        if due && start >= not_before {
            observer.begins(engine);
            let report = engine.sync(start);
            if starting.is_some() && !checked && engine.is_in_line() {
                // Nobody listens yet, and what a table lost after its last commit did not show. Once is enough: others may
                // change tables of their own all the time.
                checked = true;
                engine.check_undisturbed();
            }
            log(engine, &report, start, &mut starting);
            observer.synced(engine, &report);
            not_before = now() + min_sync_period;
            continue;
        }
        for family in Family::ALL {
            if let Some(overlaps) = engine.overlaps(family) {
                observer.overlaps(family, &overlaps);
                reports.overlaps(family, &overlaps);
            }
        }
        if let Some(obstacles) = engine.obstacles() {
            observer.obstacles(&obstacles);
            reports.obstacles(obstacles);
        }
        if let Some((family, purpose)) = engine.look(now()) {
            inputs.clients.ask(family, purpose);
        }
        if let Some(tracked) = engine.begin_count(now()) {
            inputs.connections.ask(tracked);
        }
        // There may always be something else.
        if engine.has_to_forget() && now() >= forgot + LONGEST_FORGETTING {
            forget(engine, observer);
            forgot = now();
        }
        let forgets = engine.has_to_forget();
        let wake = if due { Some(not_before) } else { engine.wake_at() };
        let wake = wake.into_iter().chain(engine.look_at()).chain(engine.count_at()).min();
        let wake = async {
            match wake {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            count = inputs.events.recv_many(&mut events, EVENTS_AT_ONCE) => {
                if count == 0 {
                    return;
                }
                take(engine, observer, &mut events);
            }
            Some(disturbance) = inputs.disturbances.recv() => disturb(engine, disturbance),
            Ok(()) = inputs.addresses.changed() => {
                engine.set_addresses(inputs.addresses.borrow_and_update().clone());
            }
            Ok(()) = inputs.node_ports.changed() => {
                engine.set_node_ports(inputs.node_ports.borrow_and_update().clone());
            }
            Ok(()) = inputs.servers.changed() => {
                engine.set_servers(inputs.servers.borrow_and_update().clone());
            }
            () = wake => {}
            news = inputs.clients.next() => hear(engine, observer, news),
            counts = inputs.connections.next() => engine.hear_counts(counts, now()),
            Some(question) = inputs.questions.recv() => engine.answer(question),
            () = ready(()), if forgets => {
                forget(engine, observer);
                forgot = now();
            }
        }
        if let Some(news) = inputs.clients.try_next() {
            hear(engine, observer, news);
        }
        // The first that had something to say may have something to say always.
        for _ in 0..DISTURBANCES_AT_ONCE {
            let Ok(disturbance) = inputs.disturbances.try_recv() else { break };
            disturb(engine, disturbance);
        }
        if let Ok(question) = inputs.questions.try_recv() {
            engine.answer(question);
        }
        if inputs.addresses.has_changed().unwrap_or(false) {
            engine.set_addresses(inputs.addresses.borrow_and_update().clone());
        }
        observer.queued(engine);
        // Others have their turn, the watchdog's heartbeat above all: it shall beat while there is much to do.
        yield_now().await;
    }
}

/// Takes in what was found about clients.
fn hear<K: Kernel>(engine: &mut Engine<K>, observer: &mut impl Observer<K>, (family, news): (Family, News)) {
    if let Some(report) = engine.hear(family, news, now()) {
        observer.forgot(engine, &report);
    }
}

fn forget<K: Kernel>(engine: &mut Engine<K>, observer: &mut impl Observer<K>) {
    let report = engine.forget(now());
    observer.forgot(engine, &report);
}

fn disturb<K: Kernel>(engine: &mut Engine<K>, disturbance: Disturbance) {
    match disturbance {
        Disturbance::Table(family) => engine.distrust(family),
        Disturbance::Listening => engine.check_undisturbed(),
        Disturbance::TakenOver => engine.serve_alone(),
    }
}

/// The time by the runtime's clock, which tests can stop.
fn now() -> Instant {
    time::Instant::now().into_std()
}

/// Takes in the events at hand.
fn take<K: Kernel>(engine: &mut Engine<K>, observer: &mut impl Observer<K>, events: &mut Vec<Event>) {
    for event in events.drain(..) {
        reports::log_faults(engine.store().faults(), &event);
        observer.hears(engine, &event);
        engine.apply(event);
    }
}

/// Logs a sync that began at `start`. `starting`: since when the loop is on its way to having every table in line.
fn log<K: Kernel>(engine: &Engine<K>, report: &Report, start: Instant, starting: &mut Option<Instant>) {
    let Report { transactions, operations, bytes, .. } = report;
    let longest_us = whole(report.longest_in_kernel.as_micros());
    if engine.is_in_line()
        && let Some(since) = starting.take()
    {
        let services = engine.store().services().count();
        let listing_ms = whole((start - since).as_millis());
        let building_ms = whole((now() - start).saturating_sub(report.in_kernel).as_millis());
        let kernel_ms = whole(report.in_kernel.as_millis());
        match refused(engine) {
            None => info!(services, operations, listing_ms, building_ms, kernel_ms, longest_us, "in sync"),
            Some(refused) => {
                warn!(
                    services,
                    operations, listing_ms, building_ms, kernel_ms, longest_us, "in sync but for {refused}"
                );
            }
        }
    } else {
        let kernel_us = whole(report.in_kernel.as_micros());
        debug!(transactions, operations, bytes, kernel_us, longest_us, failures = report.failures, "synced");
    }
}

/// The Services that the kernel refuses, for the log, if there are any.
fn refused<K: Kernel>(engine: &Engine<K>) -> Option<String> {
    let refused = Family::ALL.into_iter().filter_map(|family| match engine.standing(family) {
        Standing::InLineBut(refused) => Some(refused.to_string()),
        _ => None,
    });
    refused.reduce(|v4, v6| format!("{v4}; {v6}"))
}

/// A number that is one in JSON, too: `u128` would be a text there.
fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
