//! Who may say that all is well, and when: the loop with all that hangs observers it, on a kernel in memory that takes one
//! family's rules, or one Service, and not the others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc as threads};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::*;
use crate::app::take_over::Steps;
use crate::config::{NodePortAddresses, Overrides};
use crate::conntrack::{Flow, Flows, FlowsError, Swept};
use crate::diff::Transaction;
use crate::health::{Moment, State};
use crate::localhost::{Ports, Timeouts};
use crate::metrics::daemon::Standing as Told;
use crate::model::FrontendAt;
use crate::model::Kind;
use crate::nftables::in_memory::{Fault, InMemoryClients, InMemoryKernel};
use crate::nftables::{CommitError, Committed, DumpedElement, KeptClients, KernelError, Snapshot, Unread};
use crate::ruleset::counted::FrontendCount;
use crate::ruleset::elements::element_key;
use crate::ruleset::kept::Kept;
use crate::ruleset::names::TableName;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::read::Remembered;
use crate::ruleset::types::{Chain, Key, SetDef};
use crate::source::convert::{Converter, Options};
use crate::sync;
use crate::sync::Sample;
use crate::sync::{Counter, Counts, Disturbance, Facts, Inputs, Reader};
use crate::testing::log::captured;

const MINUTE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);

/// A kernel that the test can change while the loop has it.
#[derive(Clone, Default)]
struct Shared {
    kernel: Arc<Mutex<InMemoryKernel>>,
    /// After so many commits somebody deletes the table of IPv4; never, if 0.
    lost_after: Arc<AtomicUsize>,
}

impl Shared {
    fn get(&self) -> std::sync::MutexGuard<'_, InMemoryKernel> {
        self.kernel.lock().expect("no panic")
    }

    /// There is no permission to change the table of a family, until the hooks are forgotten.
    fn deny(&self, denied: Family) {
        self.get().on_commit(move |_, transaction| (transaction.family == denied).then_some(Fault::Permission));
    }
}

impl Kernel for Shared {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        let mut kernel = self.get();
        let committed = kernel.commit(transaction);
        if kernel.attempts() == self.lost_after.load(Ordering::Relaxed) {
            kernel.delete_table(Family::V4);
        }
        committed
    }

    fn dump(
        &mut self,
        family: Family,
        sets: &[SetDef],
        chains: &[Chain],
        on_demand: &dyn Fn(ChainName) -> Option<Chain>,
    ) -> Result<Snapshot, KernelError> {
        self.get().dump(family, sets, chains, on_demand)
    }

    fn read_elements(
        &mut self,
        family: Family,
        set: &SetDef,
        each: &mut dyn FnMut(Option<DumpedElement>),
    ) -> Result<BTreeSet<String>, KernelError> {
        self.get().read_elements(family, set, each)
    }

    fn client(&mut self, family: Family, key: &Key) -> Result<Option<Kept>, KernelError> {
        self.get().client(family, key)
    }

    fn chains(&mut self, family: Family) -> Result<Vec<Result<Chain, Unread>>, KernelError> {
        self.get().chains(family)
    }

    fn frontend_counts(&mut self, family: Family) -> Result<Vec<FrontendCount>, KernelError> {
        self.get().frontend_counts(family)
    }

    fn kept(
        &mut self,
        family: Family,
        patience: Duration,
        wanted: &mut dyn FnMut(&Remembered) -> bool,
    ) -> Result<KeptClients, KernelError> {
        self.get().kept(family, patience, wanted)
    }

    fn undisturbed(&mut self, family: Family) -> Result<bool, KernelError> {
        self.get().undisturbed(family)
    }
}

/// What the thread that cleans up does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    TookOver,
    Looked(Family),
}

/// No connections, but who looks at them is known.
struct NoFlows(threads::Sender<Did>);

impl Flows for NoFlows {
    fn delete_udp(&mut self, family: Family, _: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
        // The test may have ended.
        let _ = self.0.send(Did::Looked(family));
        Ok(Swept { seen: 0, deleted: 0, failed: 0, incomplete: false })
    }

    fn delete_unanswered(&mut self, _: Family, _: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
        Ok(Swept::default())
    }

    fn delete_tcp(&mut self, _: Family, _: &mut dyn FnMut(&Flow) -> bool) -> Result<Swept, FlowsError> {
        unreachable!("nobody asks for resets")
    }
}

/// What the test sees and moves.
struct Outside {
    kernel: Shared,
    health: Health,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<Event>,
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    disturbances: mpsc::Sender<Disturbance>,
    attempted: oneshot::Receiver<()>,
    readiness: Readiness,
    standings: Standings,
    did: threads::Receiver<Did>,
    convert: Converter,
    next: AtomicUsize,
}

impl Outside {
    async fn send(&self, events: Vec<Event>) {
        for event in events {
            self.events.send(event).await.expect("the loop runs");
        }
    }

    /// Lists everything: these Services, by name and protocol, with cluster IPs of both families.
    async fn lists(&self, services: &[(&str, &str)]) {
        for kind in Kind::ALL {
            self.send(vec![Event::ListStarted(kind)]).await;
            if kind == Kind::Service {
                for (nth, (name, protocol)) in (1..).zip(services) {
                    self.send(self.service(name, nth, protocol)).await;
                }
            }
            self.send(vec![Event::ListDone(kind)]).await;
        }
    }

    fn service(&self, name: &str, last: u8, protocol: &str) -> Vec<Event> {
        let spec = json!({
            "type": "ClusterIP", "ipFamilies": ["IPv4", "IPv6"], "clusterIP": format!("10.96.0.{last}"),
            "clusterIPs": [format!("10.96.0.{last}"), format!("fd00::{last}")],
            "ports": [{"port": 80, "protocol": protocol}],
        });
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        self.convert.service(&serde_json::from_value(object).expect("a Service"))
    }

    /// The Service has another endpoint in one family; the table of the other has nothing to do. Waits until the loop has
    /// nothing to do, but for not as long as a retry.
    async fn churn(&self, name: &str, family: Family, protocol: &str) {
        let last = self.next.fetch_add(1, Ordering::Relaxed);
        let (kind, address) = match family {
            Family::V4 => ("IPv4", format!("10.1.0.{last}")),
            Family::V6 => ("IPv6", format!("fd00:1::{last}")),
        };
        let object: Value = json!({
            "metadata": {"namespace": "shop", "name": format!("{name}-{kind}"),
                         "labels": {"kubernetes.io/service-name": name}},
            "addressType": kind, "endpoints": [{"addresses": [address], "nodeName": "n1"}],
            "ports": [{"name": "", "port": 8080, "protocol": protocol}],
        });
        let object = serde_json::from_value(object).expect("an EndpointSlice");
        self.send(self.convert.slice(&object)).await;
        sleep(Duration::from_millis(1)).await;
    }

    /// What is done next; the loop runs meanwhile.
    async fn does(&self) -> Did {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            if let Ok(did) = self.did.try_recv() {
                return did;
            }
            assert!(std::time::Instant::now() < end, "nothing is done");
            // The loop's clock stands still, but for what it waits for.
            std::thread::sleep(Duration::from_millis(1));
            sleep(Duration::from_micros(1)).await;
        }
    }

    /// Whether each family is healthy, with a patience of nothing.
    fn healthy(&self, family: Family) -> bool {
        self.health.report().families[family].expect("both are proxied").healthy
    }

    fn in_sync(&self, family: Family) -> bool {
        self.metrics.in_sync[family].get() == 1.0
    }

    /// How a family's table is told to stand.
    fn told(&self, family: Family) -> FamilyStanding {
        self.standings.get()[family].clone()
    }

    /// What holds up the start: the service manager is told that the proxy is ready when nothing does.
    fn held_up_by(&self) -> Vec<String> {
        self.readiness.held_up_by()
    }
}

/// Why a table that somebody else owns cannot be synced.
const OWNED: &str = "no permission to change nftables: run as root or with CAP_NET_ADMIN";

/// A minute from now, but for the time that the test takes.
fn later() -> std::time::Instant {
    std::time::Instant::now() + MINUTE
}

/// How the start names the table of a family that has an owner.
fn owned(family: Family) -> String {
    let table = if family == Family::V4 { "table ip nftproxyd" } else { "table ip6 nftproxyd" };
    format!("{table} ({OWNED})")
}

/// Waits for the thread that takes over.
fn wait_done(outside: &Outside) {
    let end = std::time::Instant::now() + PATIENCE;
    while !outside.held_up_by().is_empty() {
        assert!(std::time::Instant::now() < end, "it is never ready: {:?}", outside.held_up_by());
        std::thread::yield_now();
    }
}

/// A node on which all is as it should be.
struct Script(threads::Sender<Did>);

impl Steps for Script {
    fn beside(&mut self) -> Option<String> {
        None
    }

    fn proved(&mut self, _: &[Sample]) -> Result<(), String> {
        Ok(())
    }

    fn remove(&mut self) {
        // The test may have ended.
        let _ = self.0.send(Did::TookOver);
    }
}

/// Runs the loop and a script that talks to it, and returns the log.
fn with_loop<F: Future<Output = ()>>(min_sync_period: Duration, script: impl FnOnce(Outside) -> F) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    captured(|| runtime.expect("a runtime").block_on(run_with(min_sync_period, script)))
}

async fn run_with<F: Future<Output = ()>>(min_sync_period: Duration, script: impl FnOnce(Outside) -> F) {
    let overrides = Overrides { hostname_override: Some("n1".to_owned()), ..Overrides::default() };
    let config = config::load(None, &overrides).expect("defaults are valid").config;
    let kernel = Shared::default();
    let node_ports = NodePortAddresses::Cidrs(vec!["10.125.0.0/16".parse().expect("a range")]);
    let mut engine = Engine::new(kernel.clone(), Facts { node_ports, ..crate::app::facts(&config) });
    let (event_sender, events) = mpsc::channel(1_000);
    let (address_sender, addresses) = watch::channel(BTreeSet::new());
    let (disturbance_sender, disturbances) = mpsc::channel(16);
    let (attempted_sender, attempted) = oneshot::channel();
    let readiness = Readiness::new(TableName::NODE, [Awaited::TakeOver]);
    let standings = Standings::default();
    let (did_sender, did) = threads::channel();
    let metrics = Arc::new(Metrics::new());
    // Whoever waits at all is unhealthy at once.
    let health = Health::new(State::new(Family::ALL, Duration::ZERO, Moment::now()));
    let flows = NoFlows(did_sender.clone());
    let nudges = disturbance_sender.clone();
    let nudge = move || {
        // The test may have ended.
        let _ = nudges.try_send(Disturbance::TakenOver);
    };
    let take_over = TakeOver::spawn(Script(did_sender), readiness.clone(), nudge).expect("a thread");
    let timeouts = Timeouts { half_closed: Duration::ZERO, silent: Duration::ZERO };
    let mut observers = Observers {
        conntrack: Worker::spawn(flows, || true, |_: &Sweep| {}).expect("a thread"),
        health: health.clone(),
        counting: Counting::new(Arc::clone(&metrics)),
        checks: watch::channel(Checks::default()).0,
        readiness: readiness.clone(),
        standings: standings.clone(),
        unserved: Unserved::default(),
        spreading: Spreading(Events::nowhere()),
        accounting: Accounting::new(false, Ledger::default(), watch::channel(()).0),
        resets: Resets::default(),
        localhost: Localhost::new(Ports::new(timeouts), watch::channel(PerFamily::default()).1),
        known: Known::default(),
        recorder: Recorder::new(History::default(), "n1", TableName::NODE),
        owned: watch::channel(false).0,
        take_over: Some(take_over),
        attempted: Some(attempted_sender),
        unchecked: None,
    };
    let outside = Outside {
        kernel,
        health,
        metrics,
        events: event_sender,
        addresses: address_sender,
        disturbances: disturbance_sender,
        attempted,
        readiness,
        standings,
        did,
        convert: Converter::new(Options {
            node_name: "n1".to_owned(),
            allow_external_ips: true,
            service_proxy_name: None,
        }),
        next: AtomicUsize::new(1),
    };
    let clients = Reader::spawn(InMemoryClients::default()).expect("a thread");
    let servers = watch::channel(BTreeSet::new()).1;
    let connections = Counter::spawn(|_| Ok(Counts::default())).expect("a thread");
    let questions = mpsc::channel(1).1;
    let (_, node_ports) = watch::channel(NodePortAddresses::default());
    let inputs = Inputs { events, addresses, node_ports, servers, disturbances, clients, connections, questions };
    tokio::join!(sync::run(&mut engine, inputs, min_sync_period, &mut observers), script(outside));
}

/// Each family as the one whose table cannot be written, with the other.
const BOTH_WAYS: [(Family, Family); 2] = [(Family::V4, Family::V6), (Family::V6, Family::V4)];

#[test]
fn nothing_is_ready_or_taken_over_while_a_family_was_never_in_line() {
    for (failing, other) in BOTH_WAYS {
        let log = with_loop(Duration::ZERO, |mut outside| async move {
            outside.kernel.deny(failing);
            assert_eq!(outside.held_up_by().len(), Kind::ALL.len() + 3);
            outside.lists(&[("web", "TCP")]).await;
            for _ in 0..20 {
                outside.churn("web", other, "TCP").await;
                assert!(outside.kernel.get().has_table(other) && !outside.kernel.get().has_table(failing));
                assert_eq!(outside.held_up_by(), [owned(failing), "the take-over from kube-proxy".to_owned()]);
                assert_eq!((outside.told(other).standing, outside.told(other).reason), (Told::InLine, None));
                let told = outside.told(failing);
                assert_eq!((told.standing, told.reason.as_deref()), (Told::Failing, Some(OWNED)));
                assert_eq!(told.in_line_seconds_ago(later()), None, "it never was");
                assert_eq!((outside.healthy(failing), outside.healthy(other)), (false, true));
                assert_eq!((outside.in_sync(failing), outside.in_sync(other)), (false, true));
                assert_eq!(outside.metrics.sync_last[failing].get(), 0.0);
                assert!(outside.metrics.sync_last[other].get() > 0.0);
            }
            assert!(!outside.health.healthy());
            assert_eq!(outside.did.try_recv().ok(), None, "nothing is removed");
            outside.attempted.try_recv().expect("what others do is listened to all the same");

            outside.kernel.get().forget_hooks();
            sleep(MINUTE).await;
            assert_eq!(outside.did.recv_timeout(PATIENCE), Ok(Did::TookOver));
            wait_done(&outside);
            assert_eq!((outside.healthy(failing), outside.healthy(other)), (true, true));
            assert_eq!((outside.in_sync(failing), outside.in_sync(other)), (true, true));
            assert!(outside.metrics.sync_last[failing].get() > 0.0);
        });
        let in_sync: Vec<&str> = log.lines().filter(|line| line.contains("in sync services=1")).collect();
        assert_eq!(in_sync.len(), 1, "{log}");
        let failed = log.find("cannot be synced").expect("it is said");
        assert!(failed < log.find("in sync services=").expect("it is said"), "{log}");
    }
}

#[test]
fn a_family_that_fails_later_is_unhealthy_whatever_the_other_does() {
    for (failing, other) in BOTH_WAYS {
        with_loop(Duration::ZERO, |outside| async move {
            outside.lists(&[("web", "TCP")]).await;
            sleep(MINUTE).await;
            assert_eq!(outside.did.recv_timeout(PATIENCE), Ok(Did::TookOver));
            assert!(outside.health.healthy() && outside.in_sync(failing) && outside.in_sync(other));
            let last = outside.metrics.sync_last[failing].get();
            assert_eq!(outside.told(failing).in_line_seconds_ago(later()), Some(0));

            outside.kernel.deny(failing);
            outside.churn("web", failing, "TCP").await;
            for _ in 0..20 {
                outside.churn("web", other, "TCP").await;
                assert_eq!((outside.healthy(failing), outside.healthy(other)), (false, true));
                assert_eq!((outside.in_sync(failing), outside.in_sync(other)), (false, true));
                assert_eq!(outside.metrics.sync_last[failing].get(), last);
                let told = outside.told(failing);
                assert_eq!((told.standing, told.reason.as_deref()), (Told::Failing, Some(OWNED)));
                let ago = told.in_line_seconds_ago(later()).expect("it was once");
                assert!((60..120).contains(&ago), "{ago}");
                assert_eq!(outside.told(other).standing, Told::InLine);
                assert_eq!(outside.held_up_by(), Vec::<String>::new(), "the start is over");
            }
            outside.kernel.get().forget_hooks();
            sleep(MINUTE).await;
            assert!(outside.health.healthy() && outside.in_sync(failing) && outside.in_sync(other));
            assert_eq!((outside.told(failing).standing, outside.told(failing).reason), (Told::InLine, None));
            assert!(outside.metrics.sync_last[failing].get() > last);

            // The same when somebody has been at the table and it cannot be repaired.
            outside.kernel.deny(failing);
            outside.kernel.get().delete_table(failing);
            outside.disturbances.send(Disturbance::Table(failing)).await.expect("the loop runs");
            for _ in 0..20 {
                outside.churn("web", other, "TCP").await;
                assert_eq!((outside.healthy(failing), outside.healthy(other)), (false, true));
                assert_eq!((outside.in_sync(failing), outside.in_sync(other)), (false, true));
            }
        });
    }
}

#[test]
fn a_service_that_the_kernel_refuses_is_named_and_keeps_nobody_back() {
    for (family, _) in BOTH_WAYS {
        let log = with_loop(Duration::ZERO, |outside| async move {
            let refuse = |outside: &Outside| {
                let address = if family == Family::V4 { "10.96.0.1" } else { "fd00::1" };
                let at = FrontendAt::Address(address.parse().expect("an address"));
                let port = std::num::NonZeroU16::new(80).expect("a port");
                let key = crate::model::FrontendKey { at, protocol: crate::model::Protocol::Tcp, port };
                outside.kernel.get().refuse(SetName::ServiceIps, Some(element_key(&key)));
            };
            refuse(&outside);
            outside.lists(&[("web", "TCP"), ("api", "TCP")]).await;
            sleep(MINUTE).await;
            assert_eq!(outside.did.recv_timeout(PATIENCE), Ok(Did::TookOver), "no pass without a failure came by");
            wait_done(&outside);
            assert!(outside.health.healthy() && outside.in_sync(family));
            assert_eq!(outside.metrics.refused_services[family].get(), 1.0);
            let told = outside.told(family);
            assert_eq!((told.standing, told.refused_services), (Told::InLine, 1));
            let [(name, why)] = &told.refused[..] else { panic!("{told:?}") };
            assert_eq!(name.to_string(), "shop/web");
            assert!(why.contains("Invalid argument"), "{why}");
            assert!(outside.metrics.sync_last[family].get() > 0.0);
            let frontends = || outside.kernel.get().elements_of(family, SetName::ServiceIps).len();
            assert_eq!(frontends(), 1, "the other is there");

            // A change of it waits for nothing, and is not measured.
            outside.churn("web", family, "TCP").await;
            sleep(MINUTE).await;
            assert!(outside.health.healthy() && outside.in_sync(family));
            outside.kernel.get().accept_all();
            sleep(MINUTE).await;
            assert_eq!(outside.metrics.refused_services[family].get(), 0.0);
            let told = outside.told(family);
            assert_eq!((told.standing, told.refused_services, told.refused), (Told::InLine, 0, Vec::new()));
            assert_eq!(frontends(), 2);
        });
        let line = log.lines().find(|line| line.contains("in sync but for ")).expect("it is said");
        assert!(line.contains("in sync but for shop/web (the kernel refused table ip"), "{line}");
        assert!(line.contains("Invalid argument (os error 22)) services=2"), "{line}");
    }
}

#[test]
fn flows_that_kube_proxys_rules_made_meanwhile_are_looked_at_once_they_are_gone() {
    with_loop(Duration::ZERO, |outside| async move {
        outside.kernel.deny(Family::V6);
        outside.lists(&[("dns", "UDP")]).await;
        outside.churn("dns", Family::V4, "UDP").await;
        assert_eq!(outside.did.recv_timeout(PATIENCE), Ok(Did::Looked(Family::V4)), "nothing holds up stale flows");
        outside.kernel.get().forget_hooks();
        sleep(MINUTE).await;
        while outside.does().await != Did::TookOver {}
        // In either order: that of the family that is in line only now may be on its way already.
        let mut looked = PerFamily::from_fn(|_| false);
        while !(looked.v4 && looked.v6) {
            match outside.does().await {
                Did::Looked(family) => looked[family] = true,
                Did::TookOver => panic!("twice"),
            }
        }
    });
}

/// Before anybody listens to what others do.
#[test]
fn what_was_lost_behind_the_start_is_noticed_at_its_end() {
    let commits = AtomicUsize::new(0);
    let commits = &commits;
    with_loop(Duration::ZERO, |outside| async move {
        outside.lists(&[("web", "TCP")]).await;
        sleep(MINUTE).await;
        commits.store(outside.kernel.get().attempts(), Ordering::Relaxed);
    });
    let log = with_loop(Duration::ZERO, |outside| async move {
        outside.kernel.lost_after.store(commits.load(Ordering::Relaxed), Ordering::Relaxed);
        outside.lists(&[("web", "TCP")]).await;
        sleep(MINUTE).await;
        assert_eq!(outside.did.recv_timeout(PATIENCE), Ok(Did::TookOver));
        assert!(outside.kernel.get().attempts() > commits.load(Ordering::Relaxed));
        assert!(outside.kernel.get().has_table(Family::V4));
    });
    assert_eq!(log.lines().filter(|line| line.contains("in sync services=")).count(), 1, "{log}");
}

#[test]
fn disturbances_that_wait_are_repaired_together() {
    with_loop(Duration::ZERO, |outside| async move {
        outside.lists(&[("web", "TCP")]).await;
        sleep(MINUTE).await;
        let read = |family: Family| outside.metrics.sync_full_duration[family].get_sample_count();
        assert_eq!((read(Family::V4), read(Family::V6)), (1, 1));
        for nth in 0..16 {
            let family = Family::ALL[nth % 2];
            outside.disturbances.try_send(Disturbance::Table(family)).expect("there is room");
        }
        sleep(MINUTE).await;
        assert_eq!((read(Family::V4), read(Family::V6)), (2, 2));
    });
}

#[test]
fn a_change_that_is_taken_back_before_it_was_synced_waits_no_longer() {
    with_loop(MINUTE, |outside| async move {
        outside.lists(&[]).await;
        sleep(Duration::from_secs(1)).await;
        assert!(outside.health.healthy());
        let address = BTreeSet::from(["10.125.0.9".parse().expect("an address")]);
        outside.addresses.send(address).expect("the loop runs");
        sleep(Duration::from_secs(1)).await;
        assert_eq!((outside.healthy(Family::V4), outside.in_sync(Family::V4)), (false, false), "it waits");
        assert_eq!(outside.told(Family::V4).standing, Told::Behind);
        outside.addresses.send(BTreeSet::new()).expect("the loop runs");
        sleep(Duration::from_secs(1)).await;
        assert_eq!((outside.healthy(Family::V4), outside.in_sync(Family::V4)), (true, true));
        assert_eq!(outside.told(Family::V4).standing, Told::InLine);
    });
}

/// A list is awaited until it is complete, and then the tables, which are written when all are.
#[test]
fn the_start_names_the_lists_that_are_missing() {
    with_loop(Duration::ZERO, |outside| async move {
        let (mut missing, last) = (Kind::ALL.to_vec(), Kind::EndpointSlice);
        missing.retain(|kind| *kind != last);
        let all = outside.held_up_by();
        for kind in missing {
            let name = format!("the first list of {kind}s");
            assert!(all.contains(&name) && outside.held_up_by().contains(&name), "{all:?}");
            outside.send(vec![Event::ListStarted(kind)]).await;
            sleep(MINUTE).await;
            assert!(outside.held_up_by().contains(&name), "it has only begun");
            outside.send(vec![Event::ListDone(kind)]).await;
            sleep(MINUTE).await;
            assert!(!outside.held_up_by().contains(&name), "{kind}");
        }
        let rest = ["the first list of EndpointSlices", "table ip nftproxyd", "table ip6 nftproxyd"];
        assert_eq!(outside.held_up_by()[..3], rest);
        assert!(Family::ALL.into_iter().all(|family| outside.told(family).standing == Told::Behind));
        outside.send(vec![Event::ListStarted(last), Event::ListDone(last)]).await;
        sleep(MINUTE).await;
        wait_done(&outside);
    });
}

/// The names are bounded, and the count is not.
#[test]
fn of_many_refused_services_some_are_named() {
    with_loop(Duration::ZERO, |outside| async move {
        outside.kernel.get().refuse(SetName::ServiceIps, None);
        let names: Vec<String> = (1..=50).map(|nth| format!("web-{nth:02}")).collect();
        let services: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "TCP")).collect();
        outside.lists(&services).await;
        sleep(MINUTE).await;
        let told = outside.told(Family::V6);
        assert_eq!((told.standing, told.refused_services, told.refused.len()), (Told::InLine, 50, 20));
        assert_eq!(told.refused[19].0.to_string(), "shop/web-20");
    });
}
