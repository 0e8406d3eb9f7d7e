//! What the kernel refuses, or does not answer: who suffers, what is said about it, and when it is tried again.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::Operation;
use nftproxyd::model::{Event, Family, FrontendAt, FrontendKey, Protocol, Service};
use nftproxyd::nftables::in_memory::{Fault, InMemoryKernel};
use nftproxyd::nftables::table_flag;
use nftproxyd::ruleset::elements::element_key;
use nftproxyd::ruleset::names::SetName;
use nftproxyd::sync::{Engine, Standing};

use crate::support::cluster::{Cluster, LONGEST_RETRY, endpoints, facts, of_every_kind, plain_service, port, slice_of};

/// So many plain Services with two endpoints each.
pub(super) fn plain(count: u16) -> Cluster {
    let mut cluster = of_every_kind(0, None);
    for service in (0..count).map(plain_service) {
        let slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 2));
        cluster.slices.insert(slice.name.clone(), slice);
        cluster.services.insert(service.name.clone(), service);
    }
    cluster
}

pub(super) fn engine(cluster: &Cluster, kernel: InMemoryKernel) -> Engine<InMemoryKernel> {
    cluster.engine(kernel, facts(NodePortAddresses::Primary))
}

pub(super) fn key(index: u16) -> FrontendKey {
    let address = plain_service(index).cluster_ips.v4.expect("an address");
    FrontendKey { at: FrontendAt::Address(address), protocol: Protocol::Tcp, port: port(80) }
}

/// The kernel refuses the Service's verdict from now on.
fn refuse(kernel: &mut InMemoryKernel, index: u16) {
    kernel.refuse(SetName::ServiceIps, Some(element_key(&key(index))));
}

/// What the log says at level INFO and above, while something runs on this thread.
pub(super) fn log_of(run: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // With one subscriber alone, a callsite that a thread without any meets first is switched off for all.
    static ANOTHER: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
        tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(io::sink).finish().into()
    });
    LazyLock::force(&ANOTHER);
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, run);
    let bytes = log.0.lock().expect("no panic").clone();
    String::from_utf8(bytes).expect("UTF-8").lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_refused_service_is_named_once_and_does_not_keep_back_others() {
    let log = log_of(|| {
        let mut engine = engine(&plain(50), InMemoryKernel::new());
        refuse(engine.kernel(), 7);
        refuse(engine.kernel(), 31);
        let mut now = Instant::now();
        let report = engine.sync(now);
        assert_eq!((report.failures, report.error_text()), (2, String::new()));
        for index in 0..50 {
            assert_eq!(engine.installed(Family::V4).frontend(&key(index)).is_some(), ![7, 31].contains(&index));
        }
        assert!(!engine.is_behind() && !engine.is_due(now));

        let mut waits = Vec::new();
        for _ in 0..7 {
            let wake = engine.wake_at().expect("another attempt");
            waits.push((wake - now).as_millis());
            assert!(!engine.is_due(wake - Duration::from_millis(1)));
            now = wake;
            let attempts = engine.kernel().attempts();
            assert_eq!(engine.sync(now).failures, 2);
            // Both together, each alone; the table is not read back, or all Services would be looked at.
            assert_eq!(engine.kernel().attempts() - attempts, 3);
        }
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 5_000, 5_000]);

        // Others change, and a refused one does: it is tried at once, and nothing is said that was said before.
        engine.apply(Event::ServiceGone(plain_service(3).name));
        let mut changed = plain_service(7);
        changed.created = 1;
        engine.apply(Event::Service(changed));
        let report = engine.sync(now);
        assert_eq!((report.failures, report.transactions), (1, 1));
        assert_eq!(engine.installed(Family::V4).frontend(&key(3)), None);

        engine.kernel().accept_all();
        assert_eq!(engine.sync(now + LONGEST_RETRY).failures, 0);
        assert_eq!(engine.installed(Family::V4).frontend_count(), 49);
        assert_eq!(engine.wake_at(), None);
    });
    let errors: Vec<&String> = log.iter().filter(|line| line.starts_with("ERROR")).collect();
    assert_eq!(errors.len(), 2, "{log:#?}");
    assert!(errors[0].contains("shop/plain-00007") && errors[0].contains("10.96.0.7"), "{}", errors[0]);
    assert!(errors[1].contains("shop/plain-00031") && errors[1].contains("Invalid argument"), "{}", errors[1]);
    // An empty kernel has nothing that could be in the way: there is no word of reading it back.
    assert_eq!(log.len(), 2, "{log:#?}");
}

/// A thousand Services that the kernel refuses: a few are named, and the number of the others.
#[test]
fn many_refused_services_make_few_lines() {
    let log = log_of(|| {
        let mut engine = engine(&plain(1_200), InMemoryKernel::new());
        (0..1_000).for_each(|index| refuse(engine.kernel(), index));
        let now = Instant::now();
        assert_eq!(engine.sync(now).failures, 1_000);
        assert_eq!(engine.installed(Family::V4).frontend_count(), 200);
        let Standing::InLineBut(refused) = engine.standing(Family::V4) else {
            panic!("{:?}", engine.standing(Family::V4))
        };
        assert_eq!(refused.services().count(), 1_000);
        let text = refused.to_string();
        assert!(text.ends_with(" and 990 more") && text.len() < 2_000, "{text}");
        assert_eq!(engine.sync(engine.wake_at().expect("another attempt")).failures, 1_000);
        engine.kernel().accept_all();
        engine.sync(now + LONGEST_RETRY);
        assert_eq!(engine.standing(Family::V4), Standing::InLine);
    });
    assert_eq!(log.len(), 11, "each is said once: {log:#?}");
    assert!(log[10].contains("and 990 more Services are refused"), "{}", log[10]);
}

#[test]
fn finding_the_refused_service_costs_a_logarithm() {
    let mut engine = engine(&plain(256), InMemoryKernel::new());
    let now = Instant::now();
    refuse(engine.kernel(), 100);
    engine.sync(now);
    // Two frames, each in two parts, and two sets of node addresses; the whole, and two halves at each of eight levels.
    assert_eq!(engine.kernel().attempts(), 6 + 1 + 2 * 8);
}

#[test]
fn a_refused_service_keeps_what_it_had() {
    let mut engine = engine(&plain(3), InMemoryKernel::new());
    let mut now = Instant::now();
    engine.sync(now);
    let before = engine.installed(Family::V4).frontend(&key(1)).cloned();
    assert!(before.is_some());
    refuse(engine.kernel(), 1);
    // A third endpoint would need another verdict.
    for index in 0..3 {
        let slice = slice_of(&plain_service(index).name, Family::V4, endpoints(Family::V4, 3));
        engine.apply(Event::from(slice));
    }
    let report = engine.sync(now);
    assert_eq!(report.failures, 1);
    assert_eq!(report.services, [plain_service(0).name, plain_service(2).name].into());
    assert_eq!(engine.installed(Family::V4).frontend(&key(1)), before.as_ref());
    // Also through a read-back, with all that belongs to it, whose need only the Service could tell.
    for _ in 0..3 {
        now += LONGEST_RETRY;
        engine.distrust(Family::V4);
        assert_eq!(engine.sync(now).failures, 1);
        assert_eq!(engine.installed(Family::V4).frontend(&key(1)), before.as_ref());
        assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ClusterIps).len(), 3);
    }
    // It goes without leaving anything.
    engine.apply(Event::ServiceGone(plain_service(1).name));
    assert_eq!(engine.sync(now).failures, 0);
    assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ClusterIps).len(), 2);
    assert_eq!(engine.kernel().elements_of(Family::V4, SetName::ServiceIps).len(), 2);
}

#[test]
fn a_table_that_has_to_be_replaced_may_hold_a_refused_service() {
    let mut engine = engine(&plain(20), InMemoryKernel::new());
    let now = Instant::now();
    engine.sync(now);
    engine.kernel().add_foreign_object(Family::V4, "counter theirs");
    refuse(engine.kernel(), 5);
    engine.distrust(Family::V4);
    let report = engine.sync(now);
    assert_eq!((report.failures, report.error_text()), (1, String::new()));
    assert_eq!(engine.installed(Family::V4).frontend_count(), 19);
    engine.kernel().accept_all();
    engine.sync(now + LONGEST_RETRY);
    assert_eq!(engine.installed(Family::V4).frontend_count(), 20);
}

#[test]
fn replacing_a_table_reports_what_changed() {
    let mut cluster = plain(2);
    let udp = plain_service(1);
    let mut udp = Service { ports: udp.ports.clone(), ..udp };
    udp.ports[0].protocol = Protocol::Udp;
    cluster.services.insert(udp.name.clone(), udp.clone());
    let mut engine = engine(&cluster, InMemoryKernel::new());
    let now = Instant::now();
    engine.sync(now);
    engine.kernel().add_foreign_object(Family::V4, "counter theirs");
    engine.distrust(Family::V4);
    let report = engine.sync(now);
    assert_eq!(report.services.len(), 2);
    assert_eq!(report.udp.len(), 1);
    assert_eq!(report.udp[0].service.as_ref().map(|(name, _)| name), Some(&udp.name));
}

#[test]
fn an_unknown_outcome_is_read_back_at_once_and_then_at_intervals() {
    for applied in [false, true] {
        let log = log_of(|| {
            let mut engine = engine(&plain(5), InMemoryKernel::new());
            let mut now = Instant::now();
            engine.sync(now);
            let unknown = Fault::Unknown { applied };
            let drop_one = |index: u16| Event::ServiceGone(plain_service(index).name);

            engine.kernel().fail_next(unknown.clone());
            engine.apply(drop_one(0));
            assert_eq!(engine.sync(now).failures, 0, "once is put right in the same sync");
            assert_eq!(engine.installed(Family::V4).frontend_count(), 4);

            let mut waits = Vec::new();
            engine.apply(drop_one(1));
            for _ in 0..6 {
                // An applied change leaves nothing to send, so give each attempt another one.
                engine.apply(Event::Service(plain_service(50 + u16::try_from(waits.len()).expect("few"))));
                (0..2).for_each(|_| engine.kernel().fail_next(unknown.clone()));
                engine.sync(now);
                let Some(wake) = engine.wake_at() else { break };
                assert!(!engine.is_due(wake - Duration::from_millis(1)), "an event does not make it hurry");
                waits.push((wake - now).as_millis());
                now = wake;
            }
            if !applied {
                assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 5_000]);
            }
            for _ in 0..20 {
                now += LONGEST_RETRY;
                engine.sync(now);
            }
            assert!(!engine.is_behind());
            let held = engine.kernel().elements_of(Family::V4, SetName::ServiceIps).len();
            assert_eq!(held, engine.installed(Family::V4).frontend_count());
            assert_eq!(engine.installed(Family::V4).frontend(&key(1)), None);
        });
        let errors = log.iter().filter(|line| line.starts_with("ERROR")).count();
        assert!(errors <= 1, "{log:#?}");
        if !applied {
            assert_eq!(errors, 1);
            assert!(log.last().is_some_and(|line| line.contains("is in sync again")), "{log:#?}");
        }
    }
}

#[test]
fn a_busy_kernel_is_asked_again_without_reading_it_back() {
    let mut engine = engine(&plain(2), InMemoryKernel::new());
    let now = Instant::now();
    engine.sync(now);
    engine.apply(Event::ServiceGone(plain_service(0).name));
    (0..4).for_each(|_| engine.kernel().fail_next(Fault::Busy));
    let attempts = engine.kernel().attempts();
    assert_eq!(engine.sync(now).failures, 0);
    assert_eq!(engine.kernel().attempts() - attempts, 5);

    engine.apply(Event::ServiceGone(plain_service(1).name));
    (0..5).for_each(|_| engine.kernel().fail_next(Fault::Busy));
    let report = engine.sync(now);
    assert_eq!(report.failures, 1);
    assert!(report.error_text().contains("busy"), "{}", report.error_text());
    engine.kernel().take_committed();
    let again = engine.sync(engine.wake_at().expect("another attempt"));
    assert_eq!((again.failures, again.transactions), (0, 1));
    // Only this; a table that was read back would show in the Services that are looked at, were there any change.
    assert!(matches!(engine.kernel().committed()[0].operations[..], [Operation::DeleteElements(..), ..]));
}

#[test]
fn one_familys_failure_does_not_keep_back_the_other() {
    let cluster = of_every_kind(1, None);
    let mut engine = engine(&cluster, InMemoryKernel::new());
    // IPv4 comes first.
    engine.kernel().fail_next(Fault::Permission);
    let now = Instant::now();
    let report = engine.sync(now);
    assert_eq!(report.failures, 1);
    assert!(report.error_text().contains("CAP_NET_ADMIN"), "{}", report.error_text());
    assert!(!engine.kernel().has_table(Family::V4) && engine.kernel().has_table(Family::V6));
    assert!(engine.is_behind() && !engine.is_due(now));
    // A change concerns both; the one that failed waits for its time.
    let attempts = engine.kernel().attempts();
    engine.apply(Event::ServiceGone(cluster.services.keys().next().expect("a Service").clone()));
    assert!(engine.is_due(now));
    engine.sync(now);
    assert_eq!(engine.kernel().attempts(), attempts + 1);
    assert_eq!(engine.sync(now + LONGEST_RETRY).failures, 0);
    assert!(engine.kernel().has_table(Family::V4) && !engine.is_behind());
}

#[test]
fn without_the_first_lists_nothing_is_touched() {
    let mut engine = Engine::new(InMemoryKernel::recorder(), facts(NodePortAddresses::All));
    engine.apply(Event::Service(plain_service(0)));
    assert!(!engine.is_due(Instant::now()));
    assert_eq!(engine.sync(Instant::now()).transactions, 0);
    assert_eq!(engine.kernel().dumps(), 0);
}

#[test]
fn flags_are_told_when_they_are_gone_and_not_before() {
    for flags in [table_flag::DORMANT, table_flag::PERSIST, table_flag::DORMANT | 0x80] {
        let mut engine = engine(&plain(5), InMemoryKernel::new());
        let now = Instant::now();
        assert_eq!(engine.sync(now).failures, 0);
        engine.kernel().set_flags(Family::V6, flags);
        engine.distrust(Family::V6);
        (0..5).for_each(|_| engine.kernel().fail_next(Fault::Busy));
        let log = log_of(|| assert_eq!(engine.sync(now).failures, 1));
        assert!(log.len() == 1 && log[0].contains("cannot be synced: the kernel is busy"), "{log:#?}");
        assert!(engine.is_family_behind(Family::V6) && engine.kernel().flags_of(Family::V6) == Some(flags));

        let log = log_of(|| assert_eq!(engine.sync(now + LONGEST_RETRY).failures, 0));
        let told = if flags == table_flag::DORMANT { "ip6 nftproxyd was dormant" } else { "had the flags 0x" };
        assert_eq!(log.iter().filter(|line| line.contains(told)).count(), 1, "{log:#?}");
        assert_eq!(engine.kernel().flags_of(Family::V6), Some(0));
        assert!(!engine.is_behind());
        // The table that wakes keeps what it holds; others are made anew.
        let operations = engine.kernel().take_committed().pop().expect("a transaction").operations;
        assert_eq!(operations.contains(&Operation::DeleteTable), flags != table_flag::DORMANT, "{operations:?}");
    }
}

#[test]
fn a_table_of_another_owner_is_named_once() {
    let mut engine = engine(&plain(5), InMemoryKernel::new());
    let mut now = Instant::now();
    assert_eq!(engine.sync(now).failures, 0);
    engine.kernel().set_flags(Family::V4, table_flag::OWNER);
    engine.distrust(Family::V4);
    let log = log_of(|| {
        for _ in 0..4 {
            assert_eq!(engine.sync(now).failures, 1);
            assert!(engine.is_family_behind(Family::V4) && !engine.is_family_behind(Family::V6));
            now += LONGEST_RETRY;
        }
        engine.kernel().delete_table(Family::V4);
        assert_eq!(engine.sync(now).failures, 0);
    });
    assert_eq!(log.len(), 2, "{log:#?}");
    assert!(
        log[0].contains("ERROR")
            && log[0].contains("table ip nftproxyd cannot be synced: the table belongs to netlink port 4242")
    );
    assert!(log[1].ends_with("is in sync again"), "{log:#?}");
    assert_eq!(engine.installed(Family::V4).frontend_count(), 5);
}
