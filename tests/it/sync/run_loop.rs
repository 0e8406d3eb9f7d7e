//! When the loop syncs, by a clock that stands still while anybody has something to do.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::{Event, Family, Kind, Service};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::sync::{self, Disturbance, Engine, Inputs, Observer, Report};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::support::cluster::{address, facts, ip, plain_service};

const MINUTE: Duration = Duration::from_secs(60);

/// One sync: when, and how many Services it changed.
type Synced = (Duration, usize);

/// What talks to a loop.
struct Senders {
    events: mpsc::Sender<Event>,
    addresses: watch::Sender<BTreeSet<std::net::IpAddr>>,
    disturbances: mpsc::Sender<Disturbance>,
    synced: Arc<Mutex<Vec<Synced>>>,
}

impl Senders {
    async fn send(&self, event: Event) {
        self.events.send(event).await.expect("the loop runs");
    }

    async fn lists(&self, kinds: &[Kind]) {
        for kind in kinds {
            self.send(Event::ListStarted(*kind)).await;
            self.send(Event::ListDone(*kind)).await;
        }
    }

    /// The syncs since the last time. Waits a minute for them: nothing that the loop does takes longer.
    async fn syncs(&self) -> Vec<Synced> {
        sleep(MINUTE).await;
        std::mem::take(&mut *self.synced.lock().expect("no panic"))
    }
}

/// Takes note of every sync.
struct Note {
    start: Instant,
    synced: Arc<Mutex<Vec<Synced>>>,
}

impl Observer<InMemoryKernel> for Note {
    fn hears(&mut self, _: &Engine<InMemoryKernel>, _: &Event) {}

    fn queued(&mut self, _: &Engine<InMemoryKernel>) {}

    fn begins(&mut self, _: &Engine<InMemoryKernel>) {}

    fn synced(&mut self, _: &Engine<InMemoryKernel>, report: &Report) {
        self.synced.lock().expect("no panic").push((self.start.elapsed(), report.services.len()));
    }
}

/// Runs a loop and a script that talks to it; the loop ends when the script has dropped its senders.
async fn with_loop<F: Future<Output = ()>>(
    min_sync_period: Duration,
    node_ports: NodePortAddresses,
    script: impl FnOnce(Senders) -> F,
) -> Engine<InMemoryKernel> {
    let (event_sender, events) = mpsc::channel(1_000);
    let (address_sender, addresses) = watch::channel(BTreeSet::new());
    let (disturbance_sender, disturbances) = mpsc::channel(1);
    let synced = Arc::new(Mutex::new(Vec::new()));
    let senders = Senders {
        events: event_sender,
        addresses: address_sender,
        disturbances: disturbance_sender,
        synced: Arc::clone(&synced),
    };
    let start = Instant::now();
    let mut note = Note { start, synced };
    let mut engine = Engine::new(InMemoryKernel::new(), facts(node_ports));
    let inputs = Inputs { events, addresses, disturbances };
    tokio::join!(sync::run(&mut engine, inputs, min_sync_period, &mut note), script(senders));
    engine
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_every_kind_was_listed() {
    let engine = with_loop(Duration::ZERO, NodePortAddresses::All, |senders| async move {
        senders.send(Event::Service(plain_service(1))).await;
        senders.lists(&Kind::ALL[..3]).await;
        senders.addresses.send(BTreeSet::from([ip("10.125.0.1")])).expect("the loop runs");
        senders.disturbances.send(Disturbance::Table(Family::V4)).await.expect("the loop runs");
        assert_eq!(senders.syncs().await, []);
        senders.lists(&Kind::ALL[3..]).await;
        assert_eq!(senders.syncs().await, [(MINUTE, 0)], "at once; the list of Services was empty");
    })
    .await;
    assert!(!engine.is_behind());
}

#[tokio::test(start_paused = true)]
async fn a_lone_event_is_synced_at_once_and_many_together() {
    with_loop(Duration::ZERO, NodePortAddresses::All, |senders| async move {
        senders.lists(&Kind::ALL).await;
        assert_eq!(senders.syncs().await, [(Duration::ZERO, 0)]);
        senders.send(Event::Service(plain_service(1))).await;
        assert_eq!(senders.syncs().await, [(MINUTE, 1)]);
        for index in 2..502 {
            senders.events.try_send(Event::Service(plain_service(index))).expect("there is room");
        }
        assert_eq!(senders.syncs().await, [(2 * MINUTE, 500)]);
        senders.send(Event::Service(plain_service(1))).await;
        assert_eq!(senders.syncs().await, [], "nothing has changed");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn syncs_keep_their_distance() {
    let ms = Duration::from_millis;
    with_loop(ms(1_000), NodePortAddresses::All, |senders| async move {
        senders.lists(&Kind::ALL).await;
        assert_eq!(senders.syncs().await, [(Duration::ZERO, 0)]);
        // The first at once; those of the next second together at its end.
        for index in 0..15 {
            senders.send(Event::Service(plain_service(index))).await;
            sleep(ms(110)).await;
        }
        let syncs = senders.syncs().await;
        assert_eq!(syncs, [(MINUTE, 1), (MINUTE + ms(1_000), 9), (MINUTE + ms(2_000), 5)]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn addresses_and_foreign_changes_make_it_sync() {
    let engine = with_loop(
        Duration::ZERO,
        NodePortAddresses::Cidrs(vec!["10.125.0.0/16".parse().expect("a range")]),
        |senders| async move {
            senders.lists(&Kind::ALL).await;
            senders.syncs().await;
            senders.addresses.send(BTreeSet::from([address(Family::V4, 10, 125, 9)])).expect("the loop runs");
            assert_eq!(senders.syncs().await.len(), 1);
            senders.disturbances.send(Disturbance::Table(Family::V6)).await.expect("the loop runs");
            assert_eq!(senders.syncs().await.len(), 1);
            // Nobody listens to addresses and foreign changes any more: the loop does not mind.
            let Senders { events, synced, .. } = senders;
            events.send(Event::Service(plain_service(1))).await.expect("the loop runs");
            sleep(MINUTE).await;
            assert_eq!(synced.lock().expect("no panic").len(), 1);
        },
    )
    .await;
    assert_eq!(engine.installed(Family::V4).nodeport_ips(), &BTreeSet::from([ip("10.125.0.9")]));
}

#[tokio::test(start_paused = true)]
async fn what_came_before_the_end_is_synced() {
    let engine = with_loop(Duration::ZERO, NodePortAddresses::All, |senders| async move {
        senders.lists(&Kind::ALL).await;
        senders.send(Event::Service(plain_service(1))).await;
    })
    .await;
    assert_eq!(engine.installed(Family::V4).frontend_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn affinity_is_looked_at_again_without_an_event() {
    with_loop(Duration::ZERO, NodePortAddresses::All, |senders| async move {
        for kind in Kind::ALL {
            senders.send(Event::ListStarted(kind)).await;
            if kind == Kind::Service {
                senders.send(Event::Service(Service { affinity: Some(60), ..plain_service(1) })).await;
            }
            senders.send(Event::ListDone(kind)).await;
        }
        let syncs = senders.syncs().await;
        assert_eq!(syncs.len(), 2, "{syncs:?}");
        assert!(syncs[1].0 >= Duration::from_secs(1) && syncs[1].0 < Duration::from_millis(1_100), "{syncs:?}");
    })
    .await;
}
