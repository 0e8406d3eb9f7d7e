//! When the loop syncs, by a clock that stands still while anybody has something to do.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::{Event, Family, Kind, Service};
use nftproxyd::nftables::in_memory::{InMemoryClients, InMemoryKernel};
use nftproxyd::nftables::{Clients, KernelError, ReadClients, Slice};
use nftproxyd::sync::{self, Counter, Disturbance, Engine, Inputs, Observer, Question, Reader, Report};
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
    questions: mpsc::Sender<Question>,
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

/// Nobody counts connections.
fn uncounted() -> Counter {
    Counter::spawn(|_| panic!("no Service goes by its connections")).expect("a thread")
}

/// No clients are remembered.
fn nobody() -> Reader {
    Reader::spawn(InMemoryClients::default()).expect("a thread")
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
    with_loop_and(InMemoryClients::default(), min_sync_period, node_ports, script).await
}

/// The same where clients are read like this.
async fn with_loop_and<F: Future<Output = ()>>(
    clients: impl ReadClients + Send + 'static,
    min_sync_period: Duration,
    node_ports: NodePortAddresses,
    script: impl FnOnce(Senders) -> F,
) -> Engine<InMemoryKernel> {
    let (event_sender, events) = mpsc::channel(1_000);
    let (address_sender, addresses) = watch::channel(BTreeSet::new());
    let (disturbance_sender, disturbances) = mpsc::channel(1);
    let (question_sender, questions) = mpsc::channel(1);
    let synced = Arc::new(Mutex::new(Vec::new()));
    let senders = Senders {
        events: event_sender,
        addresses: address_sender,
        disturbances: disturbance_sender,
        questions: question_sender,
        synced: Arc::clone(&synced),
    };
    let start = Instant::now();
    let mut note = Note { start, synced };
    let mut engine = Engine::new(InMemoryKernel::new(), facts(node_ports));
    let servers = watch::channel(BTreeSet::new()).1;
    let clients = Reader::spawn(clients).expect("a thread");
    let (node_ports, connections) = (watch::channel(NodePortAddresses::default()).1, uncounted());
    let inputs = Inputs { events, addresses, node_ports, servers, disturbances, clients, connections, questions };
    tokio::join!(sync::run(&mut engine, inputs, min_sync_period, &mut note), script(senders));
    engine
}

#[tokio::test(start_paused = true)]
async fn questions_are_answered_with_what_has_come_before_them() {
    with_loop(Duration::ZERO, NodePortAddresses::All, |senders| async move {
        let ask = async |index: u16| -> bool {
            let (reply, answer) = tokio::sync::oneshot::channel();
            let name = plain_service(index).name;
            let question = Question::new(move |known| {
                reply.send(known.store.service(&name).is_some()).expect("it is waited for");
            });
            senders.questions.send(question).await.expect("the loop runs");
            answer.await.expect("it is answered")
        };
        assert!(!ask(1).await);
        senders.send(Event::Service(plain_service(1))).await;
        assert!(ask(1).await, "before anything was listed");
        senders.lists(&Kind::ALL).await;
        senders.syncs().await;
        assert!(!ask(1).await, "it was not in the list");
        senders.send(Event::Service(plain_service(2))).await;
        assert!(ask(2).await);
    })
    .await;
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
async fn a_whole_list_is_one_sync_however_long_it_is() {
    // More than the loop takes in at once, and than the channel holds.
    const SERVICES: u16 = 5_000;
    let mut engine = with_loop(Duration::ZERO, NodePortAddresses::All, |senders| async move {
        senders.lists(&Kind::ALL[1..]).await;
        senders.send(Event::ListStarted(Kind::ALL[0])).await;
        for index in 0..SERVICES {
            senders.send(Event::Service(plain_service(index))).await;
        }
        assert_eq!(senders.syncs().await, [], "the list is not complete");
        senders.send(Event::ListDone(Kind::ALL[0])).await;
        assert_eq!(senders.syncs().await, [(MINUTE, usize::from(SERVICES))]);
    })
    .await;
    // Both families' frames, and the elements in portions.
    let transactions = engine.kernel().take_committed().len();
    assert!(transactions <= 6, "{transactions} transactions");
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

/// Clients that are not read before somebody says so, or for a long time.
struct Slow {
    begun: Arc<AtomicUsize>,
    go_on: Receiver<()>,
}

impl Slow {
    /// Longer than any test waits.
    const STUCK: Duration = Duration::from_secs(30);

    fn new() -> (Slow, Arc<AtomicUsize>, Sender<()>) {
        let (sender, go_on) = channel();
        let begun = Arc::new(AtomicUsize::new(0));
        (Slow { begun: Arc::clone(&begun), go_on }, begun, sender)
    }
}

impl ReadClients for Slow {
    fn count(&mut self, _: Family) -> Result<Option<usize>, KernelError> {
        Ok(None)
    }

    fn read(&mut self, _: Family, _: &mut dyn FnMut(Slice) -> bool) -> Result<Clients, KernelError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _ = self.go_on.recv_timeout(Slow::STUCK);
        Ok(Clients { count: 0, torn: false, took: Duration::ZERO })
    }
}

/// Lists what there is: one Service, with session affinity.
async fn list_sticky(senders: &Senders) {
    for kind in Kind::ALL {
        senders.send(Event::ListStarted(kind)).await;
        if kind == Kind::Service {
            senders.send(Event::Service(Service { affinity: Some(60), ..plain_service(1) })).await;
        }
        senders.send(Event::ListDone(kind)).await;
    }
}

/// Waits until so many looks have begun; a look takes a time that the clock of the test does not know.
async fn until_begun(begun: &AtomicUsize, looks: usize) {
    let end = std::time::Instant::now() + Slow::STUCK;
    while begun.load(Ordering::SeqCst) < looks {
        assert!(std::time::Instant::now() < end, "{begun:?} looks");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn affinity_is_looked_at_again_without_an_event() {
    let (slow, begun, go_on) = Slow::new();
    with_loop_and(slow, Duration::ZERO, NodePortAddresses::All, |senders| async move {
        list_sticky(&senders).await;
        // A first look and a second, of each family, and then those for the count.
        for looks in 1..=7 {
            until_begun(&begun, looks).await;
            go_on.send(()).expect("it waits");
        }
        let syncs = senders.syncs().await;
        assert_eq!(syncs.len(), 1, "no look is a sync: {syncs:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_look_that_never_ends_keeps_nobody_back() {
    let (slow, begun, go_on) = Slow::new();
    let mut ended = std::time::Instant::now();
    let ended_here = &mut ended;
    let engine = with_loop_and(slow, Duration::ZERO, NodePortAddresses::All, |senders| async move {
        list_sticky(&senders).await;
        until_begun(&begun, 1).await;
        senders.syncs().await;
        for index in 2..10 {
            senders.send(Event::Service(plain_service(index))).await;
            assert_eq!(senders.syncs().await.len(), 1, "Service {index}");
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "it is the same look all the time");
        *ended_here = std::time::Instant::now();
    })
    .await;
    assert_eq!(engine.installed(Family::V4).frontend_count(), 9);
    assert!(ended.elapsed() < Slow::STUCK / 2, "nor the end of the loop");
    drop(go_on);
}

/// A source that has one more event whenever one is taken in, and what happens meanwhile.
struct Endless {
    more: Option<mpsc::Sender<Event>>,
    disturbances: mpsc::Sender<Disturbance>,
    addresses: watch::Sender<BTreeSet<std::net::IpAddr>>,
    heard: usize,
    synced: usize,
    repaired: bool,
    moved: bool,
    /// Set by another task of the same thread.
    other_task: Arc<AtomicBool>,
    /// How many events it took until all of that had happened.
    served_after: Option<usize>,
}

impl Endless {
    /// After so many it gives up: many times what is taken in at once.
    const MOST: usize = 50_000;
}

impl Observer<InMemoryKernel> for Endless {
    fn hears(&mut self, _: &Engine<InMemoryKernel>, _: &Event) {
        self.heard += 1;
        if self.heard == 100 {
            // The loop is among its events now.
            self.disturbances.try_send(Disturbance::Table(Family::V4)).expect("there is room");
            self.addresses.send_replace(BTreeSet::from([ip("10.125.0.9")]));
        }
        if self.heard == Endless::MOST {
            self.more = None;
        }
        if let Some(more) = &self.more {
            let index = u16::try_from(self.heard % 7).expect("small");
            let service = Service { affinity: self.heard.is_multiple_of(2).then_some(60), ..plain_service(index) };
            more.try_send(Event::Service(service)).expect("there is room");
        }
    }

    fn queued(&mut self, _: &Engine<InMemoryKernel>) {}

    fn begins(&mut self, _: &Engine<InMemoryKernel>) {}

    fn synced(&mut self, engine: &Engine<InMemoryKernel>, report: &Report) {
        self.synced += 1;
        self.repaired |= self.heard >= 100 && report.families.v4.as_ref().is_some_and(|family| family.full);
        self.moved |= engine.installed(Family::V4).nodeport_ips().contains(&ip("10.125.0.9"));
        let others = self.repaired && self.moved && self.other_task.load(Ordering::Relaxed);
        if others && self.synced > 1 && self.served_after.is_none() {
            self.served_after = Some(self.heard);
            self.more = None;
        }
    }
}

/// By the real clock: one that can be stopped goes on only when nobody has anything to do.
#[tokio::test]
async fn a_source_that_never_pauses_keeps_nobody_waiting() {
    for min_sync_period in [Duration::ZERO, Duration::from_millis(1)] {
        let (more, events) = mpsc::channel(1_000);
        let (addresses, address_receiver) = watch::channel(BTreeSet::new());
        let (disturbances, disturbance_receiver) = mpsc::channel(16);
        for kind in Kind::ALL {
            more.try_send(Event::ListStarted(kind)).expect("there is room");
            more.try_send(Event::ListDone(kind)).expect("there is room");
        }
        let other_task = Arc::new(AtomicBool::new(false));
        let turn = Arc::clone(&other_task);
        let other = tokio::spawn(async move {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            turn.store(true, Ordering::Relaxed);
        });
        let mut source = Endless {
            more: Some(more),
            disturbances,
            addresses,
            heard: 0,
            synced: 0,
            repaired: false,
            moved: false,
            other_task,
            served_after: None,
        };
        let ranges = NodePortAddresses::Cidrs(vec!["10.125.0.0/16".parse().expect("a range")]);
        let mut engine = Engine::new(InMemoryKernel::new(), facts(ranges));
        let inputs = Inputs {
            events,
            addresses: address_receiver,
            node_ports: watch::channel(NodePortAddresses::default()).1,
            servers: watch::channel(BTreeSet::new()).1,
            disturbances: disturbance_receiver,
            clients: nobody(),
            connections: uncounted(),
            questions: mpsc::channel(1).1,
        };
        sync::run(&mut engine, inputs, min_sync_period, &mut source).await;
        other.await.expect("it does not panic");
        let Endless { heard, synced, repaired, moved, served_after, .. } = source;
        assert!(
            served_after.is_some(),
            "{min_sync_period:?}: {heard} events, {synced} syncs, repaired: {repaired}, address taken in: {moved}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_who_never_stops_disturbing_does_not_keep_back_the_events() {
    /// Disturbs again at every sync, until the Service is in the table.
    struct Vandal {
        disturbances: Option<mpsc::Sender<Disturbance>>,
        syncs: usize,
        done: bool,
    }
    impl Observer<InMemoryKernel> for Vandal {
        fn hears(&mut self, _: &Engine<InMemoryKernel>, _: &Event) {}

        fn queued(&mut self, _: &Engine<InMemoryKernel>) {}

        fn begins(&mut self, _: &Engine<InMemoryKernel>) {}

        fn synced(&mut self, engine: &Engine<InMemoryKernel>, _: &Report) {
            self.syncs += 1;
            self.done = engine.installed(Family::V4).frontend_count() > 0;
            if self.done || self.syncs == 1_000 {
                self.disturbances = None;
            }
            if let Some(disturbances) = &self.disturbances {
                while disturbances.try_send(Disturbance::Table(Family::V4)).is_ok() {}
            }
        }
    }
    let (sender, events) = mpsc::channel(1_000);
    let (_addresses, addresses) = watch::channel(BTreeSet::new());
    let (disturbances, disturbance_receiver) = mpsc::channel(16);
    let mut vandal = Vandal { disturbances: Some(disturbances), syncs: 0, done: false };
    let mut engine = Engine::new(InMemoryKernel::new(), facts(NodePortAddresses::All));
    let (servers, disturbances) = (watch::channel(BTreeSet::new()).1, disturbance_receiver);
    let inputs = Inputs {
        node_ports: watch::channel(NodePortAddresses::default()).1,
        events,
        addresses,
        servers,
        disturbances,
        clients: nobody(),
        connections: uncounted(),
        questions: mpsc::channel(1).1,
    };
    let script = async {
        for kind in Kind::ALL {
            sender.send(Event::ListStarted(kind)).await.expect("the loop runs");
            sender.send(Event::ListDone(kind)).await.expect("the loop runs");
        }
        // The disturbances have begun.
        while sender.capacity() < 1_000 {
            tokio::task::yield_now().await;
        }
        sender.send(Event::Service(plain_service(1))).await.expect("the loop runs");
        drop(sender);
    };
    tokio::join!(sync::run(&mut engine, inputs, Duration::ZERO, &mut vandal), script);
    assert!(vandal.done && vandal.syncs < 1_000, "{} syncs", vandal.syncs);
}
