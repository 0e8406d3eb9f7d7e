//! Whether the proxy keeps up with what changes in the cluster.

use std::time::{Duration, Instant, SystemTime};

use crate::model::{Family, PerFamily};

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What people read. It may jump.
    pub wall: SystemTime,
    /// What durations are measured with. It never goes back.
    pub steady: Instant,
}

/// What the proxy's health is decided from, as kube-proxy does: a family is unhealthy when a change has been waiting for
/// two sync periods. A proxy that has nothing to do is healthy, also without an API server.
#[derive(Debug, Clone)]
pub struct State {
    /// How long a change may wait.
    patience: Duration,
    families: PerFamily<Option<Progress>>,
    /// Whether load balancers may send new connections to this node.
    node_eligible: bool,
}

/// One family.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// The last successful sync, at first the start.
    last_updated: SystemTime,
    /// The oldest change that no sync has taken up.
    waiting: Option<Instant>,
    /// The oldest change in the sync that is under way.
    in_hand: Option<Instant>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    /// When it was asked for.
    pub now: SystemTime,
    /// The newest successful sync of any family.
    pub last_updated: SystemTime,
    /// Whether the node is to get new connections: it is known, is not being deleted, and is not about to be.
    pub node_eligible: bool,
    /// Each family that is proxied.
    pub families: PerFamily<Option<FamilyHealth>>,
}

/// What is answered about a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyHealth {
    /// Its last successful sync.
    pub last_updated: SystemTime,
    /// Whether it keeps up.
    pub healthy: bool,
    /// For how long the oldest change has been waiting for the end of a sync.
    pub waiting: Option<Duration>,
}

impl State {
    /// The state when the sync loop starts. `sync_period` is the configuration's `syncPeriod`.
    pub fn new(families: impl IntoIterator<Item = Family>, sync_period: Duration, now: Moment) -> State {
        let mut state =
            State { patience: sync_period.saturating_mul(2), families: PerFamily::default(), node_eligible: false };
        for family in families {
            state.families[family] = Some(Progress { last_updated: now.wall, waiting: None, in_hand: None });
        }
        state
    }

    /// A change is waiting for a sync.
    pub fn change_queued(&mut self, family: Family, now: Moment) {
        if let Some(progress) = &mut self.families[family] {
            progress.waiting.get_or_insert(now.steady);
        }
    }

    /// A sync takes up all that is waiting. What is queued from now on waits for the next one: it cannot be taken for
    /// done when this one ends.
    pub fn sync_started(&mut self, family: Family) {
        if let Some(progress) = &mut self.families[family] {
            let waiting = progress.waiting.take();
            progress.in_hand = progress.in_hand.or(waiting);
        }
    }

    /// The sync is done: the kernel holds what it took up.
    pub fn sync_succeeded(&mut self, family: Family, now: Moment) {
        if let Some(progress) = &mut self.families[family] {
            progress.in_hand = None;
            progress.last_updated = now.wall;
        }
    }

    /// The sync failed, or left the family alone: what it took up is still waiting, since when it was queued.
    pub fn sync_failed(&mut self, family: Family) {
        if let Some(progress) = &mut self.families[family] {
            progress.waiting = progress.in_hand.take().or(progress.waiting);
        }
    }

    /// Nothing is to be done any more although no sync took anything up: a change has been taken back.
    pub fn nothing_waits(&mut self, family: Family) {
        if let Some(progress) = &mut self.families[family] {
            (progress.waiting, progress.in_hand) = (None, None);
        }
    }

    /// What the Node object says: neither being deleted nor tainted `ToBeDeletedByClusterAutoscaler`. Until it was seen
    /// the node is not eligible; when it is gone, what it said last counts.
    pub fn set_node_eligible(&mut self, eligible: bool) {
        self.node_eligible = eligible;
    }

    /// Whether all families keep up.
    pub fn healthy(&self, now: Moment) -> bool {
        self.report(now).healthy()
    }

    /// All that is known.
    pub fn report(&self, now: Moment) -> HealthReport {
        let families = PerFamily::from_fn(|family| {
            self.families[family].as_ref().map(|progress| {
                let since = progress.in_hand.or(progress.waiting);
                let waiting = since.map(|since| now.steady.saturating_duration_since(since));
                let healthy = waiting.is_none_or(|waiting| waiting < self.patience);
                FamilyHealth { last_updated: progress.last_updated, healthy, waiting }
            })
        });
        let newest = [families.v4, families.v6].into_iter().flatten().map(|report| report.last_updated).max();
        HealthReport {
            now: now.wall,
            last_updated: newest.unwrap_or(now.wall),
            node_eligible: self.node_eligible,
            families,
        }
    }
}

impl HealthReport {
    /// Whether all families keep up.
    pub fn healthy(&self) -> bool {
        [self.families.v4, self.families.v6].iter().flatten().all(|report| report.healthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Family = Family::V4;
    const V6: Family = Family::V6;

    /// Something that happens, so many seconds after the start.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Queued(Family),
        Started(Family),
        Succeeded(Family),
        Failed(Family),
        NothingWaits(Family),
    }
    /// Steps, when it is asked, whether IPv4 and IPv6 are healthy then, why.
    type Case = (&'static [(u64, Step)], u64, bool, bool, &'static str);
    use Step::{Failed, NothingWaits, Queued, Started, Succeeded};

    /// The state after these steps, and a clock in seconds since the start.
    fn after(steps: &[(u64, Step)]) -> (State, impl Fn(u64) -> Moment) {
        let start = Moment { wall: SystemTime::UNIX_EPOCH, steady: Instant::now() };
        let at = move |seconds| {
            let passed = Duration::from_secs(seconds);
            Moment { wall: start.wall + passed, steady: start.steady + passed }
        };
        let mut state = State::new(Family::ALL, Duration::from_secs(30), start);
        for (seconds, step) in steps {
            match *step {
                Queued(family) => state.change_queued(family, at(*seconds)),
                Started(family) => state.sync_started(family),
                Succeeded(family) => state.sync_succeeded(family, at(*seconds)),
                Failed(family) => state.sync_failed(family),
                NothingWaits(family) => state.nothing_waits(family),
            }
        }
        (state, at)
    }

    #[test]
    fn a_family_is_unhealthy_when_a_change_waits_for_two_sync_periods() {
        #[rustfmt::skip]
        let cases: [Case; 17] = [
            (&[], 1_000_000, true, true, "idle"),
            (&[(10, Queued(V4))], 69, true, true, "waits, not too long"),
            (&[(10, Queued(V4))], 70, false, true, "waits for exactly two periods"),
            (&[(10, Queued(V6))], 70, true, false, "the other family"),
            (&[(10, Queued(V4)), (60, Queued(V4))], 70, false, true, "the oldest change counts"),
            (&[(10, Queued(V4)), (11, Started(V4))], 70, false, true, "the sync hangs"),
            (&[(10, Queued(V4)), (11, Started(V4)), (12, Succeeded(V4))], 1000, true, true, "done"),
            (&[(10, Queued(V4)), (11, Started(V4)), (12, Failed(V4))], 70, false, true, "failed: waits since it was queued"),
            (&[(10, Queued(V4)), (11, Started(V4)), (12, Failed(V4)), (42, Started(V4)), (43, Succeeded(V4))], 1000, true, true, "repeated"),
            (&[(10, Queued(V4)), (11, Started(V4)), (12, Queued(V4)), (13, Succeeded(V4))], 71, true, true, "queued during the sync"),
            (&[(10, Queued(V4)), (11, Started(V4)), (12, Queued(V4)), (13, Succeeded(V4))], 72, false, true, "queued during the sync, not done"),
            (&[(10, Queued(V4)), (11, Started(V4)), (20, Queued(V4)), (21, Failed(V4))], 70, false, true, "the older of two"),
            (&[(10, Started(V4)), (11, Failed(V4))], 1000, true, true, "a resync fails with nothing waiting"),
            (&[(10, Queued(V4)), (11, Started(V4)), (12, Started(V4))], 70, false, true, "started twice"),
            (&[(10, Queued(V4)), (10, Queued(V6)), (11, Started(V4)), (12, Succeeded(V4))], 70, true, false, "only one is done"),
            (&[(10, Queued(V4)), (11, Started(V4)), (11, Failed(V4)), (12, Started(V4)), (12, Failed(V4))], 70, false, true, "left alone by sync after sync"),
            (&[(10, Queued(V4)), (20, NothingWaits(V4)), (30, Queued(V4))], 89, true, true, "taken back, and another"),
        ];
        for (steps, asked_at, v4, v6, why) in cases {
            let (state, at) = after(steps);
            let report = state.report(at(asked_at));
            let healthy = |family: Family| report.families[family].expect("both are proxied").healthy;
            assert_eq!((healthy(V4), healthy(V6)), (v4, v6), "{why}");
            assert_eq!(state.healthy(at(asked_at)), v4 && v6, "{why}");
        }
    }

    #[test]
    fn the_report_names_the_newest_sync() {
        let (state, at) = after(&[(5, Succeeded(V4)), (9, Succeeded(V6))]);
        let report = state.report(at(20));
        assert_eq!((report.now, report.last_updated), (at(20).wall, at(9).wall));
        assert_eq!(report.families.v4.map(|family| family.last_updated), Some(at(5).wall));
        assert_eq!(report.families.v6.map(|family| family.last_updated), Some(at(9).wall));
    }

    #[test]
    fn a_family_that_is_not_proxied_plays_no_part() {
        let (_, at) = after(&[]);
        let mut state = State::new([V4], Duration::from_secs(30), at(0));
        state.change_queued(V6, at(0));
        let report = state.report(at(1000));
        assert_eq!((report.healthy(), report.families.v6), (true, None));
    }

    #[test]
    fn a_node_is_eligible_once_it_was_seen() {
        let (mut state, at) = after(&[]);
        assert!(!state.report(at(0)).node_eligible);
        state.set_node_eligible(true);
        assert!(state.report(at(0)).node_eligible);
    }
}
