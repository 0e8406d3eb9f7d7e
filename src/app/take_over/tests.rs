use std::sync::Mutex;
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::config::{self, Overrides};
use crate::diff::{Operation, Transaction};
use crate::model::{Event, Kind};
use crate::nftables::in_memory::InMemoryKernel;
use crate::ruleset::names::{ChainName, SetName};
use crate::testing::log::captured;

/// A node as a test has it.
#[derive(Debug, Clone, Default)]
struct Node(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    beside: Option<&'static str>,
    unproved: Option<&'static str>,
    looks: usize,
    removed: bool,
}

impl Node {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().expect("nobody panics"))
    }

    /// Waits until the thread has looked so often again.
    fn looked(&self, times: usize) {
        let (before, end) = (self.with(|node| node.looks), Instant::now() + Duration::from_secs(30));
        while self.with(|node| node.looks) < before + times {
            assert!(Instant::now() < end, "it does not look again");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Steps for Node {
    fn beside(&mut self) -> Option<String> {
        self.with(|node| {
            node.looks += 1;
            node.beside.map(str::to_owned)
        })
    }

    fn proved(&mut self, _: &[Sample]) -> Result<(), String> {
        self.with(|node| node.unproved.map_or(Ok(()), |why| Err(why.to_owned())))
    }

    fn remove(&mut self) {
        self.with(|node| node.removed = true);
    }
}

#[test]
fn nothing_is_removed_before_all_is_as_it_should_be() {
    let node = Node::default();
    let readiness = Readiness::new(TableName::NODE, [Awaited::TakeOver]);
    let waits = || readiness.held_up_by().last().cloned().unwrap_or_default();
    let (nudged, nudges) = channel();
    let nudge = move || nudged.send(()).expect("the test listens");
    let take_over = TakeOver::spawn(node.clone(), readiness.clone(), nudge).expect("a thread");
    let tell = |told: Told| take_over.told.send(told).expect("it listens");

    node.with(|node| node.beside = Some("kube-proxy (pid 7)"));
    tell(Some(Vec::new()));
    node.looked(2);
    assert_eq!(waits(), "the take-over from kube-proxy (kube-proxy (pid 7) still runs on this node: stop it first)");
    node.with(|node| (node.beside, node.unproved) = (None, Some("nothing is served")));
    node.looked(2);
    assert_eq!(waits(), "the take-over from kube-proxy (nothing is served)");
    // A family falls out of line, and nothing is looked for until it is in line again.
    tell(None);
    node.with(|node| node.unproved = None);
    std::thread::sleep(2 * AGAIN);
    assert!(!node.with(|node| node.removed) && !take_over.is_done());
    tell(Some(Vec::new()));
    nudges.recv_timeout(Duration::from_secs(30)).expect("it is done");
    assert!(node.with(|node| node.removed) && take_over.is_done());
    assert!(!readiness.held_up_by().iter().any(|what| what.contains("take-over")));
}

#[test]
fn the_reason_is_said_once() {
    let node = Node::default();
    node.with(|node| node.unproved = Some("nothing is served"));
    let (told, hears) = channel();
    told.send(Some(Vec::new())).expect("it listens");
    let looking = node.clone();
    let process = std::thread::spawn(move || {
        looking.looked(2);
        // It ends.
        drop(told);
    });
    let readiness = Readiness::new(TableName::NODE, [Awaited::TakeOver]);
    let log = captured(|| assert!(!follow(node.clone(), &hears, &readiness), "the process has ended before"));
    process.join().expect("no panic");
    assert_eq!(log.matches("not taken over yet, and stay in force: nothing is served").count(), 1, "{log}");
    assert!(!node.with(|node| node.removed));
}

/// An engine whose table serves the cluster IP 10.96.0.1, if it is to.
fn engine(serves: bool) -> Engine<InMemoryKernel> {
    let overrides = Overrides { hostname_override: Some("n1".to_owned()), ..Overrides::default() };
    let config = config::load(None, &overrides).expect("defaults are valid").config;
    let convert = crate::app::converter(&config);
    let mut engine = Engine::new(InMemoryKernel::new(), crate::app::facts(&config));
    let service = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
    });
    let slice = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.0.1"]}],
    });
    let mut events = convert.service(&serde_json::from_value(service).expect("a Service"));
    if serves {
        events.extend(convert.slice(&serde_json::from_value(slice).expect("an EndpointSlice")));
    }
    Kind::ALL.into_iter().for_each(|kind| engine.apply(Event::ListStarted(kind)));
    events.into_iter().for_each(|event| engine.apply(event));
    Kind::ALL.into_iter().for_each(|kind| engine.apply(Event::ListDone(kind)));
    assert!(engine.sample(Family::V4, None).is_none(), "nothing is in line yet");
    engine.sync(Instant::now());
    assert!(engine.is_in_line());
    engine
}

fn served(engine: &mut Engine<InMemoryKernel>, theirs: &[&str]) -> Result<(), String> {
    let samples: Vec<Sample> = Family::ALL.into_iter().filter_map(|family| engine.sample(family, None)).collect();
    let theirs = theirs.iter().map(|address| address.parse().expect("an address")).collect();
    served_instead(&theirs, &samples, engine.kernel())
}

#[test]
fn what_is_served_instead_is_asked_of_the_kernel() {
    assert_eq!(served(&mut engine(true), &["10.96.0.1"]), Ok(()));
    assert_eq!(served(&mut engine(true), &[]), Ok(()));
    assert_eq!(served(&mut engine(false), &[]), Ok(()), "there is nothing to serve in place of");
    let log = captured(|| assert_eq!(served(&mut engine(true), &["10.96.0.1", "10.96.0.2"]), Ok(())));
    assert!(
        log.contains("of 2 addresses that kube-proxy's rules serve, 1 are no cluster IPs here: 10.96.0.2"),
        "{log}"
    );
    let why = served(&mut engine(true), &["10.96.0.2", "fd00::1"]).expect_err("none of them is ours");
    assert!(why.starts_with("its rules serve 2 cluster IPs, such as 10.96.0.2, fd00::1, and none of them"), "{why}");
    let why = served(&mut engine(false), &["10.96.0.1"]).expect_err("it has no endpoint");
    assert!(why.starts_with("no Service with endpoints is known here"), "{why}");
}

/// Whatever of the table is lost shows, before it is known here.
#[test]
fn a_table_that_has_lost_something_serves_nothing() {
    let damages: [(Vec<Operation>, &str); 4] = [
        (vec![Operation::DeleteTable], "its rules are not as they should be"),
        (vec![Operation::FlushChain(ChainName::NatPrerouting)], "its rules are not as they should be"),
        (Vec::new(), "service-ips does not hold it"),
        (Vec::new(), "endpoints does not hold it"),
    ];
    for (mut operations, words) in damages {
        let mut engine = engine(true);
        if operations.is_empty() {
            let set = SetName::parse(words.split(' ').next().expect("a word")).expect("a set");
            let elements = engine.kernel().elements(Family::V4, &base::set(set)).expect("they can be read");
            assert!(!elements.is_empty());
            operations.push(Operation::DeleteElements(set, elements));
        }
        engine.kernel().commit(&Transaction { family: Family::V4, operations }).expect("somebody may");
        let why = served(&mut engine, &["10.96.0.1"]).expect_err(words);
        assert_eq!(why, format!("table ip nftproxyd does not serve Service shop/web: {words}"));
    }
}
