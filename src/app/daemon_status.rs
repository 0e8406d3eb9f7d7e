//! What the daemon says of itself.

use std::time::{Instant, SystemTime};

use ipnet::IpNet;

use super::observers::{Facts, FamilyStanding, Named, frame_state};
use crate::health::Health;
use crate::metrics::daemon::{self, Daemon, FamilyState, FrontendsState, KindState};
use crate::metrics::{Metrics, timestamp};
use crate::model::{Family, Kind, PerFamily};
use crate::source::{Followed, Following, State};

/// What is said of the start, and of the configuration that it was made with.
pub(super) struct Start {
    /// When it was.
    pub(super) began: Instant,
    /// What is still awaited.
    pub(super) awaited: Vec<String>,
    /// Whether nothing of that holds up anybody.
    pub(super) ready: bool,
    /// `clusterCIDR`, where it tells pods from others.
    pub(super) cluster_cidrs: Vec<IpNet>,
    /// The limit of tracked connections; 0 leaves it alone.
    pub(super) wanted_connections: u64,
}

/// All that is known at the moment.
pub(super) fn daemon_status(
    metrics: &Metrics,
    health: &Health,
    standings: PerFamily<FamilyStanding>,
    start: Start,
    facts: Facts,
    following: &Following,
) -> Daemon {
    let report = health.report();
    let now = timestamp(SystemTime::now());
    let count = |value: f64| value.max(0.0) as u64;
    let family_state = |family| {
        let stands: &FamilyStanding = &standings[family];
        let (synced, queued) = (metrics.sync_last[family].get(), metrics.sync_last_queued[family].get());
        // What the metrics know is counted from the newest change.
        let since_newest = if queued > synced { count(now - queued) } else { 0 };
        let since_oldest =
            report.families[family].and_then(|family| family.waiting).map_or(0, |waiting| waiting.as_secs());
        FamilyState {
            standing: stands.standing,
            reason: stands.reason.clone(),
            in_line_seconds_ago: stands.in_line_seconds_ago(Instant::now()),
            synced_seconds_ago: (synced > 0.0).then(|| count(now - synced)),
            lag_seconds: since_oldest.max(since_newest),
            refused_services: stands.refused_services as u64,
            refused: stands.refused.iter().map(|(name, why)| (name.to_string(), why.clone())).collect(),
            repairs: count(metrics.repairs[family].get()),
            affinity_clients: count(metrics.affinity_clients[family].get()),
            affinity_clients_limit: count(metrics.affinity_clients_limit[family].get()),
            frame: facts.frames[family].as_ref().map(frame_state),
        }
    };
    let frontends_state = |family| {
        let [served, refused, dropped] = metrics.frontends.each_ref().map(|gauge| count(gauge[family].get()));
        let Named { ports, more } = &standings[family].unserved;
        let unserved = ports.iter().cloned().collect();
        FrontendsState { served, refused, dropped, unserved, unserved_more: *more as u64 }
    };
    Daemon {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        healthy: report.healthy(),
        node_eligible: report.node_eligible,
        awaited: start.awaited,
        kinds: following.kinds().into_iter().map(|(kind, state)| (kind.to_string(), kind_state(state))).collect(),
        families: Family::ALL.into_iter().map(|family| (family.to_string(), family_state(family))).collect(),
        frontends: Family::ALL.into_iter().map(|family| (family.to_string(), frontends_state(family))).collect(),
        service_changes_pending: count(metrics.service_changes_pending.get()),
        endpoint_changes_pending: count(metrics.endpoint_changes_pending.get()),
        rejected_objects: metrics.rejected_objects().into_iter().filter(|(_, objects)| *objects > 0).collect(),
        overlaps: Family::ALL.into_iter().flat_map(|family| standings[family].overlaps.clone()).collect(),
        ready: Some(start.ready),
        started_seconds_ago: Some(start.began.elapsed().as_secs()),
        obstacles: facts.obstacles,
        pod_cidrs: facts.pod_cidrs,
        cluster_cidrs: start.cluster_cidrs,
        wanted_connections: Some(start.wanted_connections),
        failing_health_checks: facts.failing_health_checks,
        resets_connections: facts.resets_connections,
    }
}

fn kind_state(Followed { state, since, heard, reason }: Followed) -> KindState {
    let followed = match state {
        State::Begins => daemon::Followed::Begins,
        State::Follows => daemon::Followed::Follows,
        State::Absent => daemon::Followed::Absent,
        State::Lost => daemon::Followed::Lost,
    };
    let heard_seconds_ago = heard.map(|heard| heard.elapsed().as_secs());
    KindState { followed, since_seconds: since.elapsed().as_secs(), heard_seconds_ago, reason }
}

/// Tells the metrics how kinds are followed.
pub(super) fn count_followed(metrics: &Metrics, kind: Kind, followed: &Followed) {
    let heard = followed.heard.and_then(|heard| SystemTime::now().checked_sub(heard.elapsed()));
    let is_there = followed.state != State::Absent;
    metrics.set_followed(&kind.to_string(), is_there.then_some((followed.state == State::Follows, heard)));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::health::{Moment, State as HealthState};
    use crate::metrics::daemon::Standing;

    const FAMILY: Family = Family::V4;

    #[test]
    fn what_is_said_follows_what_is_known() {
        let metrics = Metrics::new();
        let health = Health::new(HealthState::new(Family::ALL, Duration::from_secs(30), Moment::now()));
        let now = timestamp(SystemTime::now());
        let status = |metrics: &Metrics, health: &Health| {
            let awaited = vec!["all".to_owned()];
            let start = Start {
                began: Instant::now(),
                awaited,
                ready: false,
                cluster_cidrs: Vec::new(),
                wanted_connections: 0,
            };
            daemon_status(metrics, health, PerFamily::default(), start, Facts::default(), &Following::default())
        };
        let state = |metrics: &Metrics| status(metrics, &health).families[&FAMILY.to_string()].clone();

        assert_eq!((state(&metrics).standing, state(&metrics).in_line_seconds_ago), (Standing::Behind, None));
        // As the sync loop leaves it at the start.
        Family::ALL.into_iter().for_each(|family| metrics.sync_last_queued[family].set(now - 100.0));
        let daemon = status(&metrics, &health);
        assert!(daemon.healthy && !daemon.node_eligible, "nothing waits, and the node is not known");
        assert_eq!(daemon.awaited, ["all"]);
        let first = state(&metrics);
        assert_eq!((first.standing, first.synced_seconds_ago), (Standing::Behind, None));
        assert!(first.lag_seconds >= 100, "{first:?}");

        metrics.sync_last[FAMILY].set(now - 50.0);
        let synced = state(&metrics);
        assert_eq!((synced.standing, synced.lag_seconds), (Standing::Behind, 0), "times say nothing of the table");
        assert!(synced.synced_seconds_ago.is_some_and(|seconds| seconds >= 50), "{synced:?}");

        // A change comes, and another: the first one has been waiting for longer.
        metrics.sync_last_queued[FAMILY].set(now - 40.0);
        assert!(state(&metrics).lag_seconds >= 40);
        metrics.sync_last_queued[FAMILY].set(now);
        let earlier = Moment { steady: Moment::now().steady - Duration::from_secs(70), ..Moment::now() };
        let mut waits = HealthState::new(Family::ALL, Duration::from_secs(30), earlier);
        waits.change_queued(FAMILY, earlier);
        waits.set_node_eligible(true);
        let daemon = status(&metrics, &Health::new(waits));
        assert!(!daemon.healthy && daemon.node_eligible);
        let state = &daemon.families["IPv4"];
        assert_eq!(state.standing, Standing::Behind);
        assert!(state.lag_seconds >= 70, "{state:?}");

        metrics.repairs[FAMILY].inc();
        metrics.affinity_clients[FAMILY].set(7.0);
        metrics.affinity_clients_limit[FAMILY].set(9.0);
        metrics.set_rejected_objects("Service", 3);
        metrics.set_rejected_objects("Node", 0);
        metrics.service_changes_pending.set(4.0);
        let daemon = status(&metrics, &health);
        let state = &daemon.families["IPv4"];
        assert_eq!((state.repairs, daemon.service_changes_pending), (1, 4));
        assert_eq!((state.affinity_clients, state.affinity_clients_limit), (7, 9));
        assert_eq!(daemon.rejected_objects.into_iter().collect::<Vec<_>>(), [("Service".to_owned(), 3)]);
    }
    #[test]
    fn a_kind_is_counted_as_followed_while_it_is() {
        let metrics = Metrics::new();
        let mut followed = Followed { state: State::Begins, since: Instant::now(), heard: None, reason: None };
        let mut counted = |state, heard| {
            (followed.state, followed.heard) = (state, heard);
            count_followed(&metrics, Kind::Service, &followed);
            let text = metrics.text();
            let lines = text.lines().filter(|line| line.starts_with("nftproxyd_source_"));
            lines.map(|line| line.replace("nftproxyd_source_", "")).collect::<Vec<_>>()
        };
        assert_eq!(counted(State::Begins, None), ["following{kind=\"Service\"} 0"]);
        let heard = Instant::now().checked_sub(Duration::from_secs(40));
        let lines = counted(State::Follows, heard);
        let [following, last] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(following, "following{kind=\"Service\"} 1");
        let at: f64 = last.rsplit(' ').next().expect("a value").parse().expect("a number");
        assert!((timestamp(SystemTime::now()) - at - 40.0).abs() < 20.0, "{last}");
        assert_eq!(counted(State::Lost, heard)[0], "following{kind=\"Service\"} 0");
        assert!(!counted(State::Absent, heard).iter().any(|line| line.starts_with("following")), "nothing to follow");
    }
}
