//! Tells conntrack, health, metrics and the health checks of Services about each sync.

mod accounting;
mod checks;
mod counting;
mod flows;
mod history;
mod known;
mod localhost;
mod resets;
mod spreading;
mod standings;
mod unserved;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::{oneshot, watch};
use tracing::warn;

pub(super) use self::accounting::{Accounting, Ledger};
pub(super) use self::checks::{Checks, serve_health_checks};
use self::counting::Counting;
pub(super) use self::history::History;
use self::history::Recorder;
pub(super) use self::known::{Facts, Known, frame_state};
pub(super) use self::localhost::Localhost;
use self::resets::Resets;
use self::spreading::Spreading;
pub(super) use self::standings::{FamilyStanding, Standings};
pub(super) use self::unserved::Named;
use self::unserved::Unserved;
use super::ready::{Awaited, Readiness};
use super::take_over::TakeOver;
use crate::config::{self, Config, Host};
use crate::conntrack::{Conntrack, Frontends, Sweep, Worker};
use crate::events::Events;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::model::{Event, Family, PerFamily};
use crate::nftables::Kernel;
use crate::sync::{Engine, Observer, Obstacle, Overlap, Report, Standing};
use crate::sys::release_free_memory;
use crate::sysctl;

/// So many UDP frontends are checked at once only after a start or a repair, where their list takes some megabytes: 10 of
/// them with 44,000 Services.
const MANY_FRONTENDS: usize = 1_000;

/// Hears of every sync and tells the others.
pub(super) struct Observers {
    conntrack: Worker,
    health: Health,
    counting: Counting,
    checks: watch::Sender<Checks>,
    readiness: Readiness,
    standings: Standings,
    unserved: Unserved,
    spreading: Spreading,
    accounting: Accounting,
    resets: Resets,
    localhost: Localhost,
    known: Known,
    recorder: Recorder,
    owned: watch::Sender<bool>,
    /// Until kube-proxy's leftovers are removed, if that is to be done.
    take_over: Option<TakeOver>,
    /// To be told when no table waits for its first attempt any more: from then on changes are small.
    attempted: Option<oneshot::Sender<()>>,
    /// Until the Node is known, and what is odd about the two has been said.
    unchecked: Option<Config>,
}

/// What is written here for others to read.
pub(super) struct Published {
    pub(super) health: Health,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Readiness,
    pub(super) standings: Standings,
    pub(super) known: Known,
    pub(super) accounting: Accounting,
    pub(super) localhost: Localhost,
    pub(super) history: History,
    /// Whether nobody else can change any of the tables.
    pub(super) owned: watch::Sender<bool>,
    pub(super) checks: watch::Sender<Checks>,
    pub(super) events: Events,
}

impl Observers {
    pub(super) fn new(
        take_over: Option<TakeOver>,
        attempted: oneshot::Sender<()>,
        config: Config,
        published: Published,
    ) -> anyhow::Result<Observers> {
        let Published {
            health,
            metrics,
            readiness,
            standings,
            known,
            accounting,
            localhost,
            history,
            owned,
            checks,
            events,
        } = published;
        let conntrack = Conntrack::open().context("cannot use connection tracking")?;
        let counted = Arc::clone(&metrics);
        let count = move |pass: &Sweep| {
            counting::count_sweep(&counted, pass);
            if pass.frontends >= MANY_FRONTENDS {
                release_free_memory();
            }
        };
        let picks_up = || sysctl::picks_up(Path::new("/"));
        let conntrack = Worker::spawn(conntrack, picks_up, count)?;
        let table = crate::app::table(config.service_proxy_name.as_deref());
        Ok(Observers {
            conntrack,
            health,
            counting: Counting::new(metrics),
            checks,
            readiness,
            standings,
            unserved: Unserved::default(),
            spreading: Spreading(events),
            accounting,
            resets: Resets::new(config.reset_connections),
            localhost,
            known,
            recorder: Recorder::new(history, &config.node_name, table),
            owned,
            take_over,
            attempted: Some(attempted),
            unchecked: Some(config),
        })
    }

    /// Whether another proxy's rules serve the node until this one has taken over from it.
    pub(super) fn takes_over(&self) -> bool {
        self.take_over.is_some()
    }

    /// Says how the tables stand to those who ask, and then to those who wait for them: what is said to be ready is in line.
    fn tell_standing<K: Kernel>(&self, engine: &Engine<K>) {
        self.known.tell(engine);
        self.standings.tell(engine);
        self.readiness.tables(|family| engine.standing(family));
    }

    /// Has connections looked at whose endpoints are not what they were: after a change, or in the families of `all` any.
    fn clean<K: Kernel>(&mut self, engine: &Engine<K>, report: &Report, all: PerFamily<bool>) {
        let mut frontends = flows::to_check(engine, report, all);
        self.resets.synced(engine, report, all, &mut frontends);
        self.conntrack.clean(frontends);
    }

    /// Says whether anything may be taken over from kube-proxy, and looks at all flows when that is done: its rules have made
    /// flows until then, which may be long after the first sync.
    fn follow_take_over<K: Kernel>(&mut self, engine: &Engine<K>) {
        let Some(take_over) = &mut self.take_over else { return };
        if take_over.is_done() {
            self.take_over = None;
            let all = PerFamily::from_fn(|_| true);
            self.clean(engine, &Report::default(), all);
        } else {
            take_over.tell(engine);
        }
    }
}

impl<K: Kernel> Observer<K> for Observers {
    fn hears(&mut self, engine: &Engine<K>, event: &Event) {
        self.counting.hears(engine, event);
        self.recorder.hears(engine, event);
        self.spreading.hears(engine.store(), event);
        if let Event::ListDone(kind) = event {
            self.readiness.comes(Awaited::FirstList(*kind));
        }
    }

    fn queued(&mut self, engine: &Engine<K>) {
        self.counting.queued(engine);
        self.recorder.queued(engine);
        self.localhost.queued(engine);
        for family in Family::ALL {
            if engine.is_family_behind(family) {
                self.health.change_queued(family);
            } else {
                self.health.nothing_waits(family);
            }
        }
        self.tell_standing(engine);
        self.follow_take_over(engine);
        // A change of the Node alone needs no sync.
        if let Some(node) = engine.store().node() {
            self.health.set_node_eligible(!node.leaving);
            if let Some(config) = self.unchecked.take() {
                let host = Host { has_v6: sysctl::has_v6(Path::new("/")) };
                for line in config::sanity(&config, node, host) {
                    warn!("the configuration may be incomplete or incorrect: {line}");
                }
            }
        }
    }

    fn begins(&mut self, _: &Engine<K>) {
        Family::ALL.into_iter().for_each(|family| self.health.sync_started(family));
    }

    fn synced(&mut self, engine: &Engine<K>, report: &Report) {
        for family in Family::ALL {
            match (engine.standing(family).is_in_line(), report.families[family].is_some()) {
                (true, true) => self.health.sync_succeeded(family),
                (true, false) => self.health.nothing_waits(family),
                (false, _) => self.health.sync_failed(family),
            }
        }
        self.counting.synced(engine, report);
        self.recorder.synced(engine, report);
        self.spreading.synced(report);
        self.accounting.synced(engine, report);
        self.localhost.synced(engine, report);
        let news = self.unserved.update(engine, report);
        for family in Family::ALL.into_iter().filter(|family| news[*family]) {
            self.standings.unserved(family, self.unserved.named(engine, family));
        }
        self.tell_standing(engine);
        let owns_all = Family::ALL.into_iter().all(|family| engine.owns(family));
        self.owned.send_if_modified(|owned| std::mem::replace(owned, owns_all) != owns_all);
        if Family::ALL.into_iter().all(|family| engine.standing(family) != Standing::Behind)
            && let Some(attempted) = self.attempted.take()
        {
            // Nobody listens any more when the daemon is about to end.
            let _ = attempted.send(());
        }
        self.clean(engine, report, report.udp_all);
        self.known.resets_connections(self.resets.any());
        self.follow_take_over(engine);
        self.checks.send_if_modified(|checks| checks::update_checks(checks, engine, report));
        // A start, or a repair: everything has been listed, read and written at once.
        if Family::ALL.into_iter().any(|family| report.families[family].as_ref().is_some_and(|family| family.full)) {
            release_free_memory();
        }
    }

    fn forgot(&mut self, engine: &Engine<K>, report: &Report) {
        self.counting.forgot(engine, report);
        let mut frontends = Frontends::default();
        self.resets.forgot(engine, report, &mut frontends);
        self.conntrack.clean(frontends);
    }

    fn overlaps(&mut self, family: Family, overlaps: &[Overlap]) {
        self.standings.overlap(family, overlaps);
    }

    fn obstacles(&mut self, obstacles: &[Obstacle]) {
        self.known.obstacles(obstacles);
    }
}

#[cfg(test)]
mod tests;
