use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::doctor::Grade;
use crate::metrics::daemon::{Followed, KindState};

fn daemon() -> Daemon {
    Daemon {
        frontends: BTreeMap::new(),
        version: "0.1.0".to_owned(),
        healthy: true,
        node_eligible: true,
        awaited: Vec::new(),
        kinds: BTreeMap::new(),
        families: BTreeMap::new(),
        service_changes_pending: 0,
        endpoint_changes_pending: 0,
        rejected_objects: BTreeMap::new(),
        overlaps: Vec::new(),
        ready: Some(true),
        started_seconds_ago: Some(7),
        obstacles: Vec::new(),
        pod_cidrs: Vec::new(),
        cluster_cidrs: Vec::new(),
        wanted_connections: Some(9),
        failing_health_checks: BTreeMap::new(),
        resets_connections: false,
    }
}

fn state() -> FamilyState {
    FamilyState {
        standing: Standing::InLine,
        reason: None,
        in_line_seconds_ago: Some(0),
        synced_seconds_ago: None,
        lag_seconds: 0,
        refused_services: 0,
        refused: BTreeMap::new(),
        repairs: 0,
        affinity_clients: 0,
        affinity_clients_limit: 0,
        frame: None,
    }
}

/// Subjects, grades and words of what is not well.
fn said(daemon: &Daemon) -> Vec<(Subject, Grade, String)> {
    let bad = judge(daemon).into_iter().filter(|finding| finding.grade != Grade::Ok);
    bad.map(|finding| (finding.subject, finding.grade, [finding.what, finding.proof.join("; ")].join(" | "))).collect()
}

#[test]
fn a_map_that_fills_is_to_be_looked_at() {
    let found = |clients, limit| {
        judge_clients("IPv4", &FamilyState { affinity_clients: clients, affinity_clients_limit: limit, ..state() })
    };
    for (clients, limit) in [(0, 0), (5, 0), (0, 262_144), (235_929, 262_144)] {
        assert_eq!(found(clients, limit), None);
    }
    for clients in [235_930, 262_144, u64::MAX] {
        let finding = found(clients, 262_144).expect("it fills");
        assert_eq!(finding.grade, Grade::Check);
        assert!(finding.what.contains(&format!("remembers {clients} IPv4 clients")), "{finding:?}");
    }
}

#[test]
fn a_daemon_that_hears_of_nothing_is_not_fine() {
    let following = |kinds: &[(&str, Followed)]| {
        let state = |followed| KindState { followed, since_seconds: 3, heard_seconds_ago: Some(4), reason: None };
        let kinds = kinds.iter().map(|(kind, followed)| ((*kind).to_owned(), state(*followed)));
        judge_source(&Daemon { kinds: kinds.collect(), ..daemon() })
    };
    let follows = following(&[("Service", Followed::Follows), ("ServiceCIDR", Followed::Absent)]);
    assert_eq!((follows.grade, follows.what.contains("follows Service;")), (Grade::Ok, true), "{follows:?}");
    assert_eq!(following(&[]).grade, Grade::Ok);
    for followed in [Followed::Begins, Followed::Lost, Followed::Unknown] {
        let lost = following(&[("Node", Followed::Follows), ("Service", followed)]);
        assert_eq!(lost.grade, Grade::Wrong, "{followed:?}");
        assert!(lost.what.contains("NOT FOLLOWED: Service for 3 s"), "{lost:?}");
    }
    let address = "127.0.0.1:10249".parse().expect("an address");
    let refused = absent(&AskError::NotReached(address, io::ErrorKind::ConnectionRefused.into()));
    let grades: Vec<_> = refused.iter().map(|finding| (finding.subject, finding.grade)).collect();
    assert_eq!(grades, [(Subject::Daemon, Grade::Check), (Subject::ApiServer, Grade::Unread)]);
}

#[test]
fn what_the_daemon_says_of_itself_is_judged() {
    use Grade::*;
    use Subject::{ApiServer, HealthChecks, ServiceAddresses, Tables};
    let well = judge(&daemon());
    assert_eq!(well[0].what, "the daemon runs: nftproxyd 0.1.0 since 7 s, healthy, ready");
    assert_eq!(said(&daemon()), []);
    let one = |daemon: Daemon, subject, grade, words: &[&str]| {
        let said = said(&daemon);
        assert!(said.len() == 1 && (said[0].0, said[0].1) == (subject, grade), "{said:?}");
        words.iter().for_each(|word| assert!(said[0].2.contains(word), "{word}: {said:?}"));
    };
    one(Daemon { healthy: false, ..daemon() }, Subject::Daemon, Wrong, &["not healthy"]);
    let awaited = vec!["table ip nftproxyd (why)".to_owned()];
    let waits = Daemon { ready: Some(false), awaited: awaited.clone(), ..daemon() };
    one(waits, Subject::Daemon, Wrong, &["not ready", "waits for table ip nftproxyd (why)"]);
    one(Daemon { awaited, ..daemon() }, Subject::Daemon, Check, &["waits for table"]);
    // Of a version that does not say whether it is ready.
    assert_eq!(said(&Daemon { ready: None, started_seconds_ago: None, ..daemon() }), []);

    let family = |state| Daemon { families: [("IPv6".to_owned(), state)].into(), ..daemon() };
    let failing = FamilyState { standing: Standing::Failing, reason: Some("no permission".to_owned()), ..state() };
    one(family(failing), Tables, Wrong, &["IPv6", "no permission"]);
    let refused = [("shop/web".to_owned(), "too many".to_owned())].into();
    one(
        family(FamilyState { refused_services: 2, refused, ..state() }),
        Tables,
        Check,
        &["2 Services", "shop/web: too many"],
    );
    one(Daemon { rejected_objects: [("Service".to_owned(), 2)].into(), ..daemon() }, ApiServer, Note, &["2 Service"]);
    one(Daemon { overlaps: vec!["a range".to_owned()], ..daemon() }, ServiceAddresses, Check, &["a range"]);
    one(Daemon { obstacles: vec!["Service x".to_owned()], ..daemon() }, ServiceAddresses, Check, &["Service x"]);
    let failing = [("shop/lb".to_owned(), "0.0.0.0:31999: in use".to_owned())].into();
    one(
        Daemon { failing_health_checks: failing, ..daemon() },
        HealthChecks,
        Check,
        &["shop/lb", "0.0.0.0:31999: in use"],
    );
}

#[test]
fn pods_outside_of_the_clusters_range_are_named() {
    let net = |text: &&str| text.parse().expect("a range");
    let of = |pods: &[&str], cluster: &[&str]| {
        let ranges = |texts: &[&str]| texts.iter().map(net).collect();
        said(&Daemon { pod_cidrs: ranges(pods), cluster_cidrs: ranges(cluster), ..daemon() })
    };
    for (pods, cluster) in [
        (&["10.244.0.0/24"][..], &["10.244.0.0/16"][..]),
        (&["10.244.0.0/24", "fd00:1::/64"], &["10.244.0.0/16", "fd00:1::/48"]),
        // Nothing is said of a family without a range: then nothing of it counts as a pod, which has its own words.
        (&["10.244.0.0/24", "fd00:1::/64"], &["10.244.0.0/16"]),
        (&["10.244.0.0/24"], &[]),
        (&[], &["10.244.0.0/16"]),
        (&["10.244.0.0/16"], &["10.244.0.0/16"]),
    ] {
        assert_eq!(of(pods, cluster), [], "{pods:?} {cluster:?}");
    }
    for (pods, cluster, words) in [
        (
            &["10.244.0.0/24"][..],
            &["10.99.0.0/16"][..],
            "spec.podCIDRs of the Node: 10.244.0.0/24; clusterCIDR: 10.99.0.0/16",
        ),
        (&["10.244.0.0/15"], &["10.244.0.0/16"], "10.244.0.0/15"),
        (&["10.244.0.0/24", "fd00:2::/64"], &["10.244.0.0/16", "fd00:1::/48"], "fd00:2::/64; clusterCIDR: fd00:1::/48"),
    ] {
        let said = of(pods, cluster);
        assert!(said.len() == 1 && said[0].0 == Subject::PodRange && said[0].1 == Grade::Check, "{said:?}");
        assert!(said[0].2.contains(words), "{said:?}");
    }
}
