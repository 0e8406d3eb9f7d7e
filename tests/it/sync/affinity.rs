//! Clients are forgotten when the endpoint that they are remembered with goes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::{Conditions, Endpoint, Event, Family, Node, ObjectName, Service, TrafficPolicy};
use nftproxyd::nftables::in_memory::{Fault, InMemoryKernel};
use nftproxyd::ruleset::names::SetName;
use nftproxyd::ruleset::types::{Data, Element, Key, Value};
use nftproxyd::sync::{Engine, Report};

use crate::support::cluster::{
    Cluster, address, endpoints, facts, ip, name, net, of_every_kind, plain_service, port, ready, slice_of,
};

const SECOND: Duration = Duration::from_secs(1);

fn sticky(index: u16) -> Service {
    let mut service = Service { affinity: Some(60), ..plain_service(index) };
    service.ports[0].node_port = Some(port(30_000 + index));
    service
}

/// Two Services with affinity and three endpoints each, and one without.
fn cluster() -> Cluster {
    let mut cluster = of_every_kind(0, None);
    for service in [sticky(1), sticky(2), plain_service(3)] {
        let slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 3));
        cluster.slices.insert(slice.name.clone(), slice);
        cluster.services.insert(service.name.clone(), service);
    }
    cluster
}

/// An engine in sync that has done its sweeps of the start, and the time by then.
fn start(kernel: InMemoryKernel) -> (Engine<InMemoryKernel>, Instant) {
    let mut engine = cluster().engine(kernel, facts(NodePortAddresses::All));
    let mut now = Instant::now();
    assert_eq!(engine.sync(now).failures, 0);
    while let Some(wake) = engine.wake_at() {
        now = wake;
        assert_eq!(engine.sync(now).failures, 0);
    }
    (engine, now + 10 * SECOND)
}

/// What the kernel learns of a client of an address and port.
fn entry(client: u8, destination: IpAddr, number: u16, endpoint: u8) -> Element {
    let tcp = nftproxyd::model::Protocol::Tcp;
    let client = Value::Address(address(Family::V4, 203, 0, client));
    let key = Key::from_slice(&[client, Value::Address(destination), Value::Protocol(tcp), Value::Port(number)]);
    let data = [Value::Address(address(Family::V4, 10, 124, endpoint)), Value::Port(8080)];
    Element { key, key_end: None, data: Data::Values(data.into()), comment: None }
}

fn cluster_ip(index: u16) -> IpAddr {
    plain_service(index).cluster_ips.v4.expect("an address")
}

fn learn(kernel: &mut InMemoryKernel, entries: &[Element]) {
    entries.iter().for_each(|entry| kernel.put(Family::V4, SetName::Affinity, entry.clone()));
}

fn remembered(kernel: &InMemoryKernel) -> Vec<Element> {
    kernel.elements_of(Family::V4, SetName::Affinity)
}

/// The Service's endpoints are these from now on.
fn endpoints_of(service: &ObjectName, lasts: &[u8]) -> Event {
    let endpoints = lasts.iter().map(|last| ready(address(Family::V4, 10, 124, *last))).collect();
    Event::from(slice_of(service, Family::V4, endpoints))
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort_unstable();
    elements
}

#[test]
fn clients_of_an_endpoint_that_goes_are_forgotten_and_others_kept() {
    let (mut engine, now) = start(InMemoryKernel::new());
    let node = ip("10.125.0.1");
    let gone = vec![
        entry(1, cluster_ip(1), 80, 2),
        // By the node port, whatever the node's address.
        entry(1, node, 30_001, 2),
        // No frontend any more, and one that has no affinity.
        entry(1, cluster_ip(9), 80, 1),
        entry(1, cluster_ip(3), 80, 1),
    ];
    let kept = vec![
        entry(2, cluster_ip(1), 80, 1),
        entry(2, node, 30_001, 3),
        // The same endpoint, which another Service still has.
        entry(1, cluster_ip(2), 80, 2),
        entry(1, node, 30_002, 2),
    ];
    learn(engine.kernel(), &gone);
    learn(engine.kernel(), &kept);
    // Another endpoint comes: no reason to look.
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 2, 3, 4]));
    engine.sync(now);
    assert_eq!(engine.wake_at(), None);
    assert_eq!(remembered(engine.kernel()).len(), 8);

    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3, 4]));
    assert_eq!(engine.sync(now).failures, 0);
    assert_eq!(remembered(engine.kernel()), sorted(kept.clone()));

    // A packet that was under way is found by a second look.
    learn(engine.kernel(), &gone[..2]);
    let second = engine.wake_at().expect("a second look");
    assert_eq!(second, now + SECOND);
    assert!(!engine.is_due(second - Duration::from_millis(1)) && engine.is_due(second));
    engine.sync(second);
    assert_eq!(remembered(engine.kernel()), sorted(kept));
    // The chain for four endpoints goes some time.
    assert!(engine.wake_at().is_none_or(|at| at > second + 10 * SECOND), "there is no third");
}

#[test]
fn clients_are_forgotten_with_their_service_and_with_its_affinity() {
    for end in [Event::ServiceGone(name("plain-00001")), Event::Service(Service { affinity: None, ..sticky(1) })] {
        let (mut engine, now) = start(InMemoryKernel::new());
        let other = entry(1, cluster_ip(2), 80, 2);
        learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 1), entry(1, ip("10.125.0.1"), 30_001, 1), other.clone()]);
        engine.apply(end);
        engine.sync(now);
        assert_eq!(remembered(engine.kernel()), [other]);
    }
}

#[test]
fn what_went_while_nobody_looked_is_forgotten_at_the_start() {
    let (mut engine, _) = start(InMemoryKernel::new());
    let mut kernel = std::mem::take(engine.kernel());
    let kept = entry(1, cluster_ip(1), 80, 1);
    learn(&mut kernel, &[kept.clone(), entry(2, cluster_ip(1), 80, 77)]);
    let (mut engine, _) = start(kernel);
    assert_eq!(remembered(engine.kernel()), [kept]);
}

#[test]
fn an_entry_that_runs_out_meanwhile_does_not_keep_the_others() {
    // The first client's entry is gone when its deletion arrives.
    for (times, left) in [(1, 0), (3, 0), (9, 1)] {
        let (mut engine, now) = start(InMemoryKernel::new());
        let entries: Vec<Element> = (1..=6).map(|client| entry(client, cluster_ip(1), 80, 2)).collect();
        engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
        // The change itself is not disturbed: there is nothing to remove yet.
        engine.sync(now);
        learn(engine.kernel(), &entries);
        let mut races = times;
        engine.kernel().on_commit(move |kernel, _| {
            let learnt = remembered(kernel);
            let gone = learnt.iter().find(|entry| entry.data == self::entry(1, cluster_ip(1), 80, 2).data);
            if let Some(entry) = gone.filter(|_| races > 0) {
                kernel.remove(Family::V4, SetName::Affinity, &entry.key);
                races -= 1;
            }
            None
        });
        let report = engine.sync(now + SECOND);
        engine.kernel().forget_hooks();
        let failed = report.families.v4.expect("it looked").failed_commits;
        assert_eq!(failed, left, "{times} races: only the last attempt counts");
        assert_eq!(remembered(engine.kernel()).len(), left, "{times} races");
        // What is left is seen to later.
        assert_eq!(engine.wake_at().is_some(), left > 0);
        engine.sync(now + 2 * SECOND);
        assert_eq!(remembered(engine.kernel()), []);
    }
}

#[test]
fn failures_are_tried_again_at_growing_intervals() {
    let (mut engine, mut now) = start(InMemoryKernel::new());
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    engine.sync(now);
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2)]);
    let mut waits = Vec::new();
    for _ in 0..9 {
        let wake = engine.wake_at().expect("another attempt");
        waits.push((wake - now).as_secs());
        now = wake;
        engine.kernel().fail_next(Fault::Permission);
        assert_eq!(engine.sync(now).failures, 0, "the table is in sync all the same");
    }
    assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 64, 64]);
    engine.sync(now + 64 * SECOND);
    assert_eq!(remembered(engine.kernel()), []);
    assert_eq!(engine.wake_at(), None);
}

/// `plain-00001` with its node port open for outside as this policy says, and its endpoint 1 on this node, 2 elsewhere.
fn split(policy: TrafficPolicy) -> [Event; 2] {
    let here = |last| Endpoint {
        conditions: Conditions { ready: true, serving: true, terminating: false, local: true },
        ..ready(address(Family::V4, 10, 124, last))
    };
    let endpoints = vec![here(1), ready(address(Family::V4, 10, 124, 2))];
    let slice = slice_of(&name("plain-00001"), Family::V4, endpoints);
    [Event::Service(Service { external_policy: policy, ..sticky(1) }), Event::from(slice)]
}

fn apply(engine: &mut Engine<InMemoryKernel>, events: impl IntoIterator<Item = Event>) {
    events.into_iter().for_each(|event| engine.apply(event));
}

/// A client of a node port that is sent to the endpoint elsewhere: right if it is inside the cluster.
fn from_inside() -> Element {
    entry(8, ip("10.125.0.1"), 30_001, 2)
}

#[test]
fn clients_that_are_right_are_kept_while_others_lose_theirs() {
    let (mut engine, start) = start(InMemoryKernel::new());
    apply(&mut engine, split(TrafficPolicy::Cluster));
    engine.sync(start);
    engine.sync(start + 10 * SECOND);
    // The pause after the last look is over.
    let start = start + 20 * SECOND;
    learn(engine.kernel(), &[from_inside()]);
    // No entry tells whether its client is inside, so at first it is forgotten with those outside.
    apply(&mut engine, split(TrafficPolicy::Local));
    engine.sync(start);
    assert_eq!(remembered(engine.kernel()), []);
    // Another Service loses an endpoint every 0.4 s. From the second look on the client is remembered.
    let mut forgotten = Vec::new();
    for round in 1..=25_u32 {
        learn(engine.kernel(), &[from_inside()]);
        let now = start + round * Duration::from_millis(400);
        engine.apply(endpoints_of(&name("plain-00002"), &[u8::try_from(100 + round).expect("small")]));
        assert_eq!(engine.sync(now).failures, 0);
        if remembered(engine.kernel()).is_empty() {
            forgotten.push(round * 400);
        }
    }
    assert!(forgotten.iter().all(|at| *at < 3_000), "after so many milliseconds: {forgotten:?}");
}

#[test]
fn pods_keep_what_a_policy_takes_from_clients_outside() {
    let (mut engine, start) = start(InMemoryKernel::new());
    let node = Node { pod_cidrs: [net("203.0.0.0/28")].into(), ..Node::default() };
    apply(&mut engine, split(TrafficPolicy::Cluster).into_iter().chain([Event::Node(node)]));
    engine.sync(start);
    engine.sync(start + 10 * SECOND);
    let mut now = start + 20 * SECOND;
    // The eighth client is a pod, the hundredth is not.
    let outside = entry(100, ip("10.125.0.1"), 30_001, 2);
    learn(engine.kernel(), &[from_inside(), outside]);
    apply(&mut engine, split(TrafficPolicy::Local));
    engine.sync(now);
    assert_eq!(remembered(engine.kernel()), [from_inside()]);
    while let Some(wake) = engine.wake_at() {
        now = wake;
        engine.sync(now);
    }
    assert_eq!(remembered(engine.kernel()), [from_inside()], "nor at the second look");
    // An endpoint that is gone is gone for pods, too.
    engine.apply(endpoints_of(&name("plain-00001"), &[1]));
    engine.sync(now + 10 * SECOND);
    assert_eq!(remembered(engine.kernel()), []);
}

#[test]
fn what_is_regained_is_not_forgotten() {
    let (mut engine, now) = start(InMemoryKernel::new());
    apply(&mut engine, split(TrafficPolicy::Local));
    engine.sync(now);
    apply(&mut engine, split(TrafficPolicy::Cluster));
    engine.sync(now);
    apply(&mut engine, split(TrafficPolicy::Local));
    engine.sync(now);
    // Everybody may go everywhere again: nothing is left of what was lost, not even for the second look.
    apply(&mut engine, split(TrafficPolicy::Cluster));
    engine.sync(now);
    learn(engine.kernel(), &[from_inside()]);
    while let Some(wake) = engine.wake_at() {
        engine.sync(wake);
    }
    assert_eq!(remembered(engine.kernel()), [from_inside()]);
}

#[test]
fn looks_that_fail_do_not_forget_what_is_regained_meanwhile() {
    let (mut engine, mut now) = start(InMemoryKernel::new());
    apply(&mut engine, split(TrafficPolicy::Cluster));
    engine.sync(now);
    // Somebody's entry that has to go: each look has something to send, and fails at it.
    let stubborn = entry(9, cluster_ip(9), 80, 1);
    now += 10 * SECOND;
    engine.sync(now);
    apply(&mut engine, split(TrafficPolicy::Local));
    engine.sync(now);
    for _ in 0..4 {
        learn(engine.kernel(), std::slice::from_ref(&stubborn));
        now = engine.wake_at().expect("another attempt");
        engine.kernel().fail_next(Fault::Permission);
        engine.sync(now);
    }
    apply(&mut engine, split(TrafficPolicy::Cluster));
    engine.sync(now);
    learn(engine.kernel(), &[from_inside(), stubborn]);
    now = engine.wake_at().expect("another attempt");
    engine.sync(now);
    assert_eq!(remembered(engine.kernel()), [from_inside()]);
}

#[test]
fn deletions_are_reported_as_every_transaction_is() {
    let (mut engine, now) = start(InMemoryKernel::new());
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    let plain = engine.sync(now);
    let counts = |report: &Report| {
        let family = report.families.v4.clone().expect("something was done");
        (report.transactions, family.commits.len(), family.failed_commits, family.failed_cleanups, family.repaired)
    };
    assert_eq!(counts(&plain), (1, 1, 0, 0, false));
    // One look fails, the next succeeds.
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2)]);
    engine.kernel().fail_next(Fault::Permission);
    assert_eq!(counts(&engine.sync(now + SECOND)), (0, 0, 1, 1, false));
    assert_eq!(counts(&engine.sync(now + 2 * SECOND)), (1, 1, 0, 0, false));
    assert_eq!(remembered(engine.kernel()), []);
    // That clients are forgotten is no sign that somebody had changed the table.
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2)]);
    engine.distrust(Family::V4);
    assert_eq!(counts(&engine.sync(now + 9 * SECOND)), (1, 1, 0, 0, false));
    assert_eq!(remembered(engine.kernel()), []);
    assert!(!engine.elements(Family::V4).contains_key(&SetName::Affinity), "the kernel's own are not counted");
}

#[test]
fn many_clients_go_in_portions() {
    let (mut engine, now) = start(InMemoryKernel::new());
    let entries = (0..1_700_u16).map(|client| {
        let mut entry = entry(1, cluster_ip(1), 80, 2);
        let [high, low] = client.to_be_bytes();
        entry.key[0] = Value::Address(IpAddr::from([203, 1, high, low]));
        entry
    });
    learn(engine.kernel(), &entries.collect::<Vec<_>>());
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    engine.kernel().take_committed();
    engine.sync(now);
    assert_eq!(remembered(engine.kernel()), []);
    let lengths: Vec<usize> = engine.kernel().take_committed()[1..].iter().map(|one| one.len()).collect();
    assert_eq!(lengths, [500, 500, 500, 200]);
}

#[test]
fn looking_takes_a_tenth_of_the_time_at_most() {
    let slow = Duration::from_millis(20);
    let mut kernel = InMemoryKernel::new();
    kernel.on_elements(move |_, set| {
        let start = Instant::now();
        // That is the set which the kernel itself writes.
        while set.dynamic && start.elapsed() < slow {}
    });
    let (mut engine, now) = start(kernel);
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    engine.sync(now);
    engine.apply(endpoints_of(&name("plain-00001"), &[1]));
    engine.sync(now);
    let wake = engine.wake_at().expect("another look");
    assert!(wake - now >= slow * 10, "{:?}", wake - now);
    assert!(wake - now < SECOND);
}
