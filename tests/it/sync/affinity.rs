//! Clients are forgotten when the endpoint that they are remembered with goes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::{Conditions, Endpoint, Event, Family, Node, ObjectName, Service, TrafficPolicy};
use nftproxyd::nftables::in_memory::{Fault, InMemoryKernel};
use nftproxyd::nftables::{Clients, KernelError};
use nftproxyd::ruleset::names::SetName;
use nftproxyd::ruleset::types::{Data, Element, Key, Value};
use nftproxyd::sync::{Engine, News, Purpose, Report};

use crate::looks::{look, news};
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
    assert_eq!(sync_and_look(&mut engine, now).failures, 0);
    while let Some(at) = next_look(&engine, now) {
        now = at;
        assert_eq!(sync_and_look(&mut engine, now).failures, 0);
    }
    (engine, now + 10 * SECOND)
}

/// A sync, and the looks that are due after it.
fn sync_and_look(engine: &mut Engine<InMemoryKernel>, now: Instant) -> Report {
    let report = engine.sync(now);
    look(engine, now);
    report
}

/// When the next look is that has a reason. The others are half a minute apart.
fn next_look(engine: &Engine<InMemoryKernel>, now: Instant) -> Option<Instant> {
    engine.look_at().filter(|at| *at < now + 15 * SECOND)
}

/// The next look of IPv4, and when it is; those of IPv6 find nobody.
fn next_v4(engine: &mut Engine<InMemoryKernel>) -> (Instant, Purpose) {
    loop {
        let at = engine.look_at().expect("another look");
        let (family, purpose) = engine.look(at).expect("it is due");
        if family == Family::V4 {
            return (at, purpose);
        }
        engine.hear(family, News::End(Ok(Clients { count: 0, torn: false, took: Duration::ZERO })), at);
    }
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
    sync_and_look(&mut engine, now);
    assert_eq!(next_look(&engine, now), None);
    assert_eq!(remembered(engine.kernel()).len(), 8);

    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3, 4]));
    assert_eq!(sync_and_look(&mut engine, now).failures, 0);
    assert_eq!(remembered(engine.kernel()), sorted(kept.clone()));

    // A packet that was under way is found by a second look.
    learn(engine.kernel(), &gone[..2]);
    let second = engine.look_at().expect("a second look");
    assert_eq!(second, now + SECOND);
    assert_eq!(engine.look(second - Duration::from_millis(1)), None);
    sync_and_look(&mut engine, second);
    assert_eq!(remembered(engine.kernel()), sorted(kept));
    assert_eq!(next_look(&engine, second), None, "there is no third");
}

#[test]
fn clients_are_forgotten_with_their_service_and_with_its_affinity() {
    for end in [Event::ServiceGone(name("plain-00001")), Event::Service(Service { affinity: None, ..sticky(1) })] {
        let (mut engine, now) = start(InMemoryKernel::new());
        let other = entry(1, cluster_ip(2), 80, 2);
        learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 1), entry(1, ip("10.125.0.1"), 30_001, 1), other.clone()]);
        engine.apply(end);
        sync_and_look(&mut engine, now);
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
    let (mut engine, now) = start(InMemoryKernel::new());
    let entries: Vec<Element> = (1..=100).map(|client| entry(client, cluster_ip(1), 80, 2)).collect();
    learn(engine.kernel(), &entries);
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    engine.sync(now);
    // Others change tables of theirs, as they may: what runs out is no sign of it.
    engine.kernel().disturb();
    let (family, _) = engine.look(now).expect("a look");
    for news in news(&mut engine, family) {
        engine.hear(family, news, now);
    }
    let (mut failed, mut turns) = (0, 0);
    for client in [1, 2, 50, 99] {
        engine.kernel().remove(Family::V4, SetName::Affinity, &entries[client].key);
    }
    while engine.has_to_forget() {
        turns += 1;
        let report = engine.forget(now);
        let family = report.families.v4.expect("it tried");
        failed += family.failed_commits + family.failed_cleanups;
    }
    assert_eq!((failed, remembered(engine.kernel())), (0, vec![]));
    assert!(turns <= 50, "{turns} transactions: they are found by halves");
    assert!(!engine.is_behind(), "the table is what it was");
    assert_eq!(engine.look_at(), Some(now + SECOND));
}

#[test]
fn an_endpoint_that_is_back_keeps_its_clients() {
    let (mut engine, now) = start(InMemoryKernel::new());
    let entries = [entry(1, cluster_ip(1), 80, 2), entry(2, cluster_ip(1), 80, 3)];
    learn(engine.kernel(), &entries);
    engine.apply(endpoints_of(&name("plain-00001"), &[1]));
    engine.sync(now);
    let (family, _) = engine.look(now).expect("a look");
    // One is back before the clients have been read, the other before they are forgotten.
    let found = news(&mut engine, family);
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 2]));
    engine.sync(now);
    for news in found {
        engine.hear(family, news, now);
    }
    assert!(engine.has_to_forget());
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 2, 3]));
    assert!(!engine.has_to_forget(), "the table is not what it should be");
    engine.sync(now);
    while engine.has_to_forget() {
        assert_eq!(engine.forget(now).transactions, 0);
    }
    assert_eq!(remembered(engine.kernel()), entries);
}

#[test]
fn a_table_that_is_gone_meanwhile_is_left_to_the_sync() {
    let (mut engine, now) = start(InMemoryKernel::new());
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2), entry(2, cluster_ip(1), 80, 2)]);
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    engine.sync(now);
    let (family, _) = engine.look(now).expect("a look");
    for news in news(&mut engine, family) {
        engine.hear(family, news, now);
    }
    engine.kernel().delete_table(Family::V4);
    engine.forget(now);
    engine.distrust(Family::V4);
    assert!(!engine.has_to_forget());
    assert_eq!(engine.look(now + SECOND), None);
    assert_eq!(engine.sync(now).failures, 0);
    while engine.has_to_forget() {
        engine.forget(now);
    }
    assert!(!engine.is_behind() && engine.look_at().is_some());
}

#[test]
fn failures_are_tried_again_at_growing_intervals() {
    let (mut engine, mut now) = start(InMemoryKernel::new());
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    sync_and_look(&mut engine, now);
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2)]);
    let mut waits = Vec::new();
    for nth in 0..9 {
        let (at, _) = next_v4(&mut engine);
        waits.push((at - now).as_secs());
        now = at;
        let family = Family::V4;
        let failed = if nth % 2 == 0 {
            // It cannot be deleted.
            for news in news(&mut engine, family) {
                engine.hear(family, news, now);
            }
            engine.kernel().fail_next(Fault::Permission);
            engine.forget(now)
        } else {
            engine.hear(family, News::End(Err(KernelError::Restless)), now).expect("a report")
        };
        assert_eq!(failed.families.v4.expect("it tried").failed_cleanups, 1);
        assert!(!engine.is_behind() && !engine.has_to_forget(), "the table is in sync all the same");
    }
    // From half a minute on, clients are counted in between.
    assert_eq!(waits, [1, 1, 2, 4, 8, 16, 30, 30, 30]);
    look(&mut engine, now + 64 * SECOND);
    assert_eq!(remembered(engine.kernel()), []);
    assert_eq!(next_look(&engine, now + 64 * SECOND), None);
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
    sync_and_look(&mut engine, start);
    sync_and_look(&mut engine, start + 10 * SECOND);
    // The pause after the last look is over.
    let start = start + 20 * SECOND;
    learn(engine.kernel(), &[from_inside()]);
    // No entry tells whether its client is inside, so at first it is forgotten with those outside.
    apply(&mut engine, split(TrafficPolicy::Local));
    sync_and_look(&mut engine, start);
    assert_eq!(remembered(engine.kernel()), []);
    // Another Service loses an endpoint every 0.4 s. From the second look on the client is remembered.
    let mut forgotten = Vec::new();
    for round in 1..=25_u32 {
        learn(engine.kernel(), &[from_inside()]);
        let now = start + round * Duration::from_millis(400);
        engine.apply(endpoints_of(&name("plain-00002"), &[u8::try_from(100 + round).expect("small")]));
        assert_eq!(sync_and_look(&mut engine, now).failures, 0);
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
    sync_and_look(&mut engine, start);
    sync_and_look(&mut engine, start + 10 * SECOND);
    let mut now = start + 20 * SECOND;
    // The eighth client is a pod, the hundredth is not.
    let outside = entry(100, ip("10.125.0.1"), 30_001, 2);
    learn(engine.kernel(), &[from_inside(), outside]);
    apply(&mut engine, split(TrafficPolicy::Local));
    sync_and_look(&mut engine, now);
    assert_eq!(remembered(engine.kernel()), [from_inside()]);
    while let Some(at) = next_look(&engine, now) {
        now = at;
        sync_and_look(&mut engine, now);
    }
    assert_eq!(remembered(engine.kernel()), [from_inside()], "nor at the second look");
    // An endpoint that is gone is gone for pods, too.
    engine.apply(endpoints_of(&name("plain-00001"), &[1]));
    sync_and_look(&mut engine, now + 10 * SECOND);
    assert_eq!(remembered(engine.kernel()), []);
}

#[test]
fn what_is_regained_is_not_forgotten() {
    let (mut engine, now) = start(InMemoryKernel::new());
    apply(&mut engine, split(TrafficPolicy::Local));
    sync_and_look(&mut engine, now);
    apply(&mut engine, split(TrafficPolicy::Cluster));
    sync_and_look(&mut engine, now);
    apply(&mut engine, split(TrafficPolicy::Local));
    sync_and_look(&mut engine, now);
    // Everybody may go everywhere again: nothing is left of what was lost, not even for the second look.
    apply(&mut engine, split(TrafficPolicy::Cluster));
    sync_and_look(&mut engine, now);
    learn(engine.kernel(), &[from_inside()]);
    look(&mut engine, now + SECOND);
    assert_eq!(remembered(engine.kernel()), [from_inside()]);
}

#[test]
fn looks_that_fail_do_not_forget_what_is_regained_meanwhile() {
    let (mut engine, mut now) = start(InMemoryKernel::new());
    apply(&mut engine, split(TrafficPolicy::Cluster));
    sync_and_look(&mut engine, now);
    // Somebody's entry that has to go: each look has something to send, and fails at it.
    let stubborn = entry(9, cluster_ip(9), 80, 1);
    now += 10 * SECOND;
    sync_and_look(&mut engine, now);
    apply(&mut engine, split(TrafficPolicy::Local));
    sync_and_look(&mut engine, now);
    for _ in 0..4 {
        learn(engine.kernel(), std::slice::from_ref(&stubborn));
        now = engine.look_at().expect("another attempt");
        engine.kernel().fail_next(Fault::Permission);
        sync_and_look(&mut engine, now);
    }
    apply(&mut engine, split(TrafficPolicy::Cluster));
    sync_and_look(&mut engine, now);
    learn(engine.kernel(), &[from_inside(), stubborn]);
    now += 64 * SECOND;
    sync_and_look(&mut engine, now);
    assert_eq!(remembered(engine.kernel()), [from_inside()]);
}

#[test]
fn deletions_are_reported_as_every_transaction_is() {
    /// At the end of the reading.
    const NONE: (usize, usize, usize, usize, bool) = (0, 0, 0, 0, false);
    let (mut engine, now) = start(InMemoryKernel::new());
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    let plain = sync_and_look(&mut engine, now);
    let counts = |report: &Report| {
        let family = report.families.v4.clone().unwrap_or_default();
        (report.transactions, family.commits.len(), family.failed_commits, family.failed_cleanups, family.repaired)
    };
    assert_eq!(counts(&plain), (1, 1, 0, 0, false));
    // One look fails, the next succeeds.
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2)]);
    engine.kernel().fail_next(Fault::Permission);
    assert_eq!(look(&mut engine, now + SECOND).iter().map(counts).collect::<Vec<_>>(), [NONE, (0, 0, 1, 1, false)]);
    assert_eq!(look(&mut engine, now + 2 * SECOND).iter().map(counts).collect::<Vec<_>>(), [NONE, (1, 1, 0, 0, false)]);
    assert_eq!(remembered(engine.kernel()), []);
    // That clients are forgotten is no sign that somebody had changed the table.
    learn(engine.kernel(), &[entry(1, cluster_ip(1), 80, 2)]);
    engine.distrust(Family::V4);
    assert_eq!(counts(&sync_and_look(&mut engine, now + 9 * SECOND)), NONE);
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
    sync_and_look(&mut engine, now);
    assert_eq!(remembered(engine.kernel()), []);
    let lengths: Vec<usize> = engine.kernel().take_committed()[1..].iter().map(|one| one.len()).collect();
    assert_eq!(lengths.iter().sum::<usize>(), 1_700);
    assert!(lengths.iter().all(|length| *length <= 128), "{lengths:?}");
}

#[test]
fn looking_takes_a_fifth_of_the_time_at_most() {
    let (mut engine, now) = start(InMemoryKernel::new());
    let took = Duration::from_millis(20);
    let counted = |engine: &mut Engine<InMemoryKernel>, torn| {
        let (at, purpose) = next_v4(engine);
        engine.hear(Family::V4, News::End(Ok(Clients { count: 7, torn, took })), at);
        (at, purpose)
    };
    engine.apply(endpoints_of(&name("plain-00001"), &[1, 3]));
    engine.sync(now);
    assert_eq!(counted(&mut engine, false), (now, Purpose::Forget));
    engine.apply(endpoints_of(&name("plain-00001"), &[1]));
    engine.sync(now);
    assert_eq!(counted(&mut engine, false), (now + 4 * took, Purpose::Forget));
    assert_eq!(engine.clients(Family::V4), 7);
    let (mut last, purpose) = counted(&mut engine, true);
    assert_eq!((last - now >= SECOND, purpose), (true, Purpose::Forget), "the second look");
    // The others, which have no reason, take a hundredth. One that was torn is a reason for the next.
    for (torn, expected) in
        [(false, Purpose::Forget), (false, Purpose::Count), (true, Purpose::Count), (false, Purpose::Forget)]
    {
        assert_eq!(counted(&mut engine, torn), (last + 30 * SECOND, expected));
        last += 30 * SECOND;
    }
    let (at, _) = next_v4(&mut engine);
    engine.hear(Family::V4, News::End(Ok(Clients { count: 7, torn: false, took: SECOND })), at);
    assert_eq!(next_v4(&mut engine).0, at + 100 * SECOND);
    assert!(engine.look(at + 1_000 * SECOND).is_none_or(|(family, _)| family == Family::V6), "one at a time");
}
