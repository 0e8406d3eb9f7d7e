//! Somebody else changes nftables while the tables are written: no Service is to blame, and it costs little.

use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::{Event, Family};
use nftproxyd::nftables::in_memory::{Fault, InMemoryKernel};
use nftproxyd::ruleset::elements::element_key;
use nftproxyd::ruleset::names::{ChainName, SetName};
use nftproxyd::sync::{Engine, Standing};
use nix::errno::Errno;

use super::refusals::{engine, key, log_of, plain};
use crate::support::cluster::{Cluster, endpoints, facts, plain_service, slice_of};

/// Enough for several transactions.
const SERVICES: u16 = 700;
/// The longest pause after a disturbance.
const SOON: Duration = Duration::from_millis(200);

fn cluster() -> Cluster {
    let mut cluster = plain(SERVICES);
    cluster.slices.values_mut().for_each(|slice| {
        *slice = slice_of(&slice.service, Family::V4, endpoints(Family::V4, 10));
    });
    cluster
}

/// Syncs whenever it is time, as the loop does, until the tables are in line, and returns how often. The time of a sync is
/// that of the test.
fn settle(engine: &mut Engine<InMemoryKernel>, now: &mut Instant) -> usize {
    let mut took = Duration::ZERO;
    for syncs in 1..200 {
        let started = Instant::now();
        let report = engine.sync(*now);
        // The other family's may have been a longer one.
        took = took.max(started.elapsed());
        if engine.is_in_line() {
            return syncs;
        }
        assert!(!engine.is_due(*now), "no busy loop");
        let wake = engine.wake_at().expect("another attempt");
        assert!(
            wake - *now <= SOON + took,
            "after a disturbance it does not wait ever longer: {}",
            report.error_text()
        );
        *now = wake;
    }
    panic!("it never comes to an end: {:?}", Family::ALL.map(|family| engine.standing(family)));
}

#[track_caller]
fn assert_whole(kernel: &InMemoryKernel) {
    assert_eq!(kernel.elements_of(Family::V4, SetName::ServiceIps).len(), usize::from(SERVICES));
    assert_eq!(kernel.elements_of(Family::V4, SetName::Endpoints).len(), usize::from(SERVICES) * 10);
}

/// Commits tried by a start that nobody disturbs.
fn undisturbed_start() -> usize {
    let mut engine = engine(&cluster(), InMemoryKernel::new());
    settle(&mut engine, &mut Instant::now());
    engine.kernel().attempts()
}

/// Commits tried by a start on a kernel that somebody disturbs. In the end all is there, nobody was blamed, and the log has
/// `most` lines at most.
#[track_caller]
fn disturbed_start(kernel: InMemoryKernel, most: usize) -> usize {
    let mut tried = 0;
    let log = log_of(|| {
        let mut engine = engine(&cluster(), kernel);
        let mut now = Instant::now();
        settle(&mut engine, &mut now);
        // As the loop does at the end of a start.
        engine.check_undisturbed();
        settle(&mut engine, &mut now);
        assert_whole(engine.kernel());
        tried = engine.kernel().attempts();
    });
    no_blame(&log, most);
    tried
}

fn no_blame(log: &[String], most: usize) {
    assert!(!log.iter().any(|line| line.starts_with("ERROR") || line.contains("service=")), "{log:#?}");
    assert!(log.len() <= most, "{log:#?}");
}

type Harm = fn(&mut InMemoryKernel);

const HARMS: [(&str, Harm); 4] = [
    ("a table is deleted", |kernel| kernel.delete_table(Family::V4)),
    ("all is flushed", |kernel| Family::ALL.into_iter().for_each(|family| kernel.delete_table(family))),
    ("a chain is flushed", |kernel| kernel.flush_chain(Family::V4, ChainName::Services)),
    ("an element is deleted", |kernel| {
        kernel.remove(Family::V4, SetName::ServiceIps, &element_key(&key(3)));
    }),
];

/// The table goes before each of the commits of a start, once or again and again.
#[test]
fn a_start_that_is_disturbed_begins_again_and_blames_nobody() {
    let commits = undisturbed_start();
    assert!(commits >= 8, "{commits}");
    for (what, harm) in HARMS {
        for at in 1..=commits + 1 {
            let mut kernel = InMemoryKernel::new();
            kernel.on_commit(move |kernel, _| {
                if kernel.attempts() == at {
                    harm(kernel);
                }
                None
            });
            let tried = disturbed_start(kernel, 4);
            assert!(tried <= 2 * commits + 2, "{what} before commit {at}: {tried} commits instead of {commits}");
        }
    }
}

/// Somebody flushes thirty times, before every so many commits.
#[test]
fn a_storm_costs_a_commit_or_two_for_each_flush() {
    const FLUSHES: usize = 30;
    let commits = undisturbed_start();
    for every in 1..commits {
        let mut flushes = 0;
        let mut kernel = InMemoryKernel::new();
        kernel.on_commit(move |kernel, _| {
            if kernel.attempts() % every == 0 && flushes < FLUSHES {
                flushes += 1;
                Family::ALL.into_iter().for_each(|family| kernel.delete_table(family));
            }
            None
        });
        let tried = disturbed_start(kernel, 6);
        assert!(tried <= FLUSHES * every + 2 * commits + 2, "every {every}: {tried} commits");
    }
}

/// In a repair and in a change, at each commit: what is refused then is sent again, and nothing is blamed.
#[test]
fn a_repair_that_is_disturbed_begins_again() {
    for at in 1..4 {
        let log = log_of(|| {
            let mut engine = engine(&plain(20), InMemoryKernel::new());
            let mut now = Instant::now();
            settle(&mut engine, &mut now);
            engine.kernel().flush_chain(Family::V4, ChainName::Services);
            engine.distrust(Family::V4);
            for index in 0..20 {
                let slice = slice_of(&plain_service(index).name, Family::V4, endpoints(Family::V4, 3));
                engine.apply(Event::from(slice));
            }
            let at = engine.kernel().attempts() + at;
            engine.kernel().on_commit(move |kernel, _| {
                if kernel.attempts() == at {
                    kernel.delete_table(Family::V4);
                }
                None
            });
            settle(&mut engine, &mut now);
            engine.kernel().forget_hooks();
            // After the last commit there is nothing that could notice.
            engine.check_undisturbed();
            settle(&mut engine, &mut now);
            assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ServiceIps).len(), 20);
            assert_eq!(engine.kernel().elements_of(Family::V4, SetName::Endpoints).len(), 60);
        });
        no_blame(&log, 4);
    }
}

/// During a large transaction nobody listens to what others do: afterwards the table is read, once, and until then nobody
/// says that it is in line.
#[test]
fn what_nobody_has_heard_is_looked_for() {
    let harm = |kernel: &mut InMemoryKernel| kernel.remove(Family::V4, SetName::ServiceIps, &element_key(&key(3)));
    for (harmed, always) in [(true, false), (false, false), (false, true)] {
        let mut engine = engine(&plain(20), InMemoryKernel::new());
        let mut now = Instant::now();
        settle(&mut engine, &mut now);
        let mut unheard = true;
        engine.kernel().on_commit(move |kernel, transaction| {
            let of_ours = transaction.family == Family::V4 && (always || std::mem::take(&mut unheard));
            if of_ours && harmed {
                assert!(harm(kernel));
            }
            of_ours.then_some(Fault::Unheard)
        });
        let slice = slice_of(&plain_service(7).name, Family::V4, endpoints(Family::V4, 3));
        engine.apply(Event::from(slice));
        let report = engine.sync(now);
        assert_eq!(report.failures, 0);
        assert_eq!(engine.standing(Family::V4), Standing::Behind, "harmed: {harmed}");
        assert!(engine.is_due(now), "at once");
        let report = engine.sync(now);
        let read = report.families.v4.expect("it was looked at");
        assert!(read.full && read.repaired == harmed, "harmed: {harmed}");
        assert_eq!(engine.standing(Family::V4), Standing::InLine, "even if others never rest: {always}");
        assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ServiceIps).len(), 20);
    }
}

/// What the kernel does not find may be something else than the table, such as a module: it is found, whether nobody else
/// changes anything or somebody keeps changing other tables.
#[test]
fn a_service_that_is_refused_with_the_error_of_a_lost_table_is_found() {
    for (errno, churn) in
        [Errno::ENOENT, Errno::EEXIST, Errno::EBUSY, Errno::EINVAL].into_iter().flat_map(|e| [(e, false), (e, true)])
    {
        let mut kernel = InMemoryKernel::new();
        kernel.on_commit(move |kernel, _| {
            if churn {
                kernel.disturb();
            }
            None
        });
        let log = log_of(|| {
            let mut engine = engine(&plain(256), kernel);
            engine.kernel().refuse_with(SetName::ServiceIps, Some(element_key(&key(100))), errno);
            let mut now = Instant::now();
            let syncs = settle(&mut engine, &mut now);
            assert!(syncs <= 2, "{errno}, {churn}: {syncs} syncs");
            let Standing::InLineBut(refused) = engine.standing(Family::V4) else {
                panic!("{:?}", engine.standing(Family::V4))
            };
            assert!(refused.contains(&plain_service(100).name) && refused.services().count() == 1);
            assert_eq!(engine.installed(Family::V4).frontend_count(), 255);
            // As much as without: both frames, the whole, two halves at each of eight levels; and once more if disturbed.
            assert!(engine.kernel().attempts() <= 30, "{}", engine.kernel().attempts());

            // Again and again: no reading back, which costs what there is.
            for _ in 0..5 {
                now = engine.wake_at().expect("another attempt");
                let report = engine.sync(now);
                assert_eq!(report.failures, 1);
                assert!(engine.is_in_line());
                assert!(!report.families.v4.expect("it was tried").full);
            }

            if churn {
                // One of those changes is of this table, while nobody listens: he who begins to is not told that all is well.
                assert!(engine.kernel().remove(Family::V4, SetName::ServiceIps, &element_key(&key(3))));
                now = engine.wake_at().expect("another attempt");
                engine.sync(now);
                assert!(engine.is_in_line(), "it is not known yet");
                engine.check_undisturbed();
                assert_eq!(engine.standing(Family::V4), Standing::Behind);
                settle(&mut engine, &mut now);
                assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ServiceIps).len(), 255);
            }

            // Now the table is lost after all, when others are to be sent with it.
            engine.kernel().delete_table(Family::V4);
            for index in 0..200 {
                let slice = slice_of(&plain_service(index).name, Family::V4, endpoints(Family::V4, 3));
                engine.apply(Event::from(slice));
            }
            settle(&mut engine, &mut now);
            assert_eq!(engine.installed(Family::V4).frontend_count(), 255);
            assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ServiceIps).len(), 255);
            engine.kernel().accept_all();
            engine.sync(engine.wake_at().expect("another attempt"));
            assert_eq!(engine.standing(Family::V4), Standing::InLine);
        });
        let blamed: Vec<&String> = log.iter().filter(|line| line.starts_with("ERROR")).collect();
        assert!(blamed.iter().all(|line| line.contains("plain-00100")), "{log:#?}");
        assert!(blamed.len() <= 2 && log.len() <= 8, "{log:#?}");
    }
}

/// Both families are disturbed at once, and what the one learns is not lost to the other.
#[test]
fn what_disturbs_one_family_is_not_forgotten_for_the_other() {
    let log = log_of(|| {
        let cluster = crate::support::cluster::of_every_kind(40, None);
        let mut engine = cluster.engine(InMemoryKernel::new(), facts(NodePortAddresses::All));
        let mut now = Instant::now();
        settle(&mut engine, &mut now);
        let whole = Family::ALL.map(|family| engine.installed(family).frontend_count());
        // Changes of both families meet a kernel that has lost both tables.
        let mut lost = false;
        engine.kernel().on_commit(move |kernel, _| {
            if !std::mem::replace(&mut lost, true) {
                Family::ALL.into_iter().for_each(|family| kernel.delete_table(family));
            }
            None
        });
        let names: Vec<_> = cluster.services.keys().cloned().collect();
        names.iter().for_each(|name| engine.apply(Event::ServiceGone(name.clone())));
        let report = engine.sync(now);
        for family in Family::ALL {
            let failed = report.families[family].as_ref().map(|report| report.failed_commits);
            assert_eq!(failed, Some(1), "{family} stops at once");
            assert_eq!(engine.standing(family), Standing::Behind);
        }
        now += SOON + Duration::from_secs(1);
        settle(&mut engine, &mut now);
        cluster.services.values().for_each(|service| engine.apply(Event::Service(service.clone())));
        settle(&mut engine, &mut now);
        assert_eq!(Family::ALL.map(|family| engine.installed(family).frontend_count()), whole);
    });
    no_blame(&log, 4);
}
