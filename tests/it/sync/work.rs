//! How much is sent for a change, counted.

use std::collections::BTreeSet;
use std::time::Instant;

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::Operation;
use nftproxyd::model::{Event, Family, ObjectName, Scheduler, Service, Slice, TrafficPolicy};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::ruleset::names::{By, SetName, TableName};
use nftproxyd::ruleset::types::{Element, Value};
use nftproxyd::sync::{Engine, Facts};

use crate::support::cluster::{Cluster, address, endpoints, facts, of_every_kind, plain_service, ready, slice_of};

const SERVICES: u16 = 10_000;

/// What is done with each kind: one element for all Services of it.
const DISPATCH: [SetName; 3] = [SetName::Dispatch, SetName::DispatchLast, SetName::DispatchAffinity];

/// A cluster of plain Services with ten endpoints each, synced.
fn large() -> Engine<InMemoryKernel> {
    scheduled(Scheduler::Random)
}

/// The same with this scheduler.
fn scheduled(scheduler: Scheduler) -> Engine<InMemoryKernel> {
    let mut cluster = Cluster { node: of_every_kind(0, None).node, ..Cluster::default() };
    for index in 0..SERVICES {
        let service = plain_service(index);
        let slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 10));
        cluster.slices.insert(slice.name.clone(), slice);
        cluster.services.insert(service.name.clone(), service);
    }
    let facts = Facts { scheduler, ..facts(NodePortAddresses::All) };
    let mut engine = cluster.engine(InMemoryKernel::recorder(), facts);
    let report = engine.sync(Instant::now());
    assert_eq!(report.failures, 0);
    // Kind, cluster IP and endpoints; the largest transaction is far from holding all.
    let elements = engine.kernel().committed().iter().flat_map(|transaction| &transaction.operations);
    let of_services =
        |operation: &&Operation| matches!(operation, Operation::AddElements(set, _) if !DISPATCH.contains(set));
    let elements = elements.filter(of_services);
    assert_eq!(elements.map(Operation::len).sum::<usize>(), usize::from(SERVICES) * 12);
    let most = engine.kernel().committed().iter().map(nftproxyd::diff::Transaction::len).max();
    assert!(most.is_some_and(|most| most < 8_000), "{most:?}");
    engine.kernel().take_committed();
    engine
}

/// Another proxy may serve what has not been sent yet: a table that is new drops nothing before it has everything.
#[test]
fn addresses_without_a_service_are_dropped_only_when_all_services_are_in_place() {
    let mut cluster = of_every_kind(0, None);
    for index in 0..SERVICES {
        let service = plain_service(index);
        let slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 2));
        cluster.slices.insert(slice.name.clone(), slice);
        cluster.services.insert(service.name.clone(), service);
    }
    assert!(!cluster.cidrs.is_empty());
    let mut engine = cluster.engine(InMemoryKernel::recorder(), facts(NodePortAddresses::All));
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let sent = engine.kernel().committed().iter().filter(|sent| sent.family == Family::V4);
    let texts: Vec<String> = sent.map(|transaction| transaction.text(TableName::NODE)).collect();
    let drops = texts.iter().position(|text| text.contains("jump unserved")).expect("it is sent");
    let last = texts.iter().rposition(|text| text.contains("add element")).expect("there are Services");
    assert!(drops > last && last > 2, "{drops} of {}, elements until {last}", texts.len());
}

/// What was sent since the last time, in one list.
fn take(engine: &mut Engine<InMemoryKernel>) -> Vec<Operation> {
    engine.kernel().take_committed().into_iter().flat_map(|transaction| transaction.operations).collect()
}

/// Applies an event, syncs, and returns what was sent. All of it has to be about this one Service.
fn change(engine: &mut Engine<InMemoryKernel>, index: u16, event: Event) -> Vec<Operation> {
    let service = plain_service(index);
    let dumps = engine.kernel().dumps();
    engine.apply(event);
    let report = engine.sync(Instant::now());
    assert_eq!((report.failures, report.transactions), (0, 1));
    assert_eq!(report.services, BTreeSet::from([service.name.clone()]), "nobody else was looked at");
    assert_eq!(engine.kernel().dumps(), dumps, "nothing was read");
    let operations = take(engine);
    assert_eq!(operations.iter().map(Operation::len).sum::<usize>(), report.operations);
    for operation in &operations {
        if let Operation::AddElements(set, elements) | Operation::DeleteElements(set, elements) = operation
            && !DISPATCH.contains(set)
        {
            for element in elements {
                let address = service.cluster_ips.v4.map(Value::Address);
                assert_eq!(element.key.first().copied(), address, "{operation:?}");
            }
        }
    }
    operations
}

/// Elements deleted and added, and other objects created.
fn counts(operations: &[Operation]) -> (usize, usize, usize) {
    let mut counts = (0, 0, 0);
    for operation in operations {
        match operation {
            Operation::DeleteElements(..) => counts.0 += operation.len(),
            Operation::AddElements(..) => counts.1 += operation.len(),
            _ => counts.2 += operation.len(),
        }
    }
    counts
}

#[test]
fn a_change_costs_what_it_changes() {
    let mut engine = large();
    let slice = |index: u16, lasts: &[u8]| -> Slice {
        let endpoints = lasts.iter().map(|last| ready(address(Family::V4, 10, 124, *last))).collect();
        slice_of(&plain_service(index).name, Family::V4, endpoints)
    };
    let event = |index, lasts: &[u8]| Event::from(slice(index, lasts));

    // The same once more.
    engine.apply(event(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
    assert!(!engine.is_due(Instant::now()));

    let sent = change(&mut engine, 1, event(1, &[1, 2, 3, 99, 5, 6, 7, 8, 9, 10]));
    assert_eq!(counts(&sent), (1, 1, 0), "an endpoint is replaced");

    // The kind, the new endpoint. There is a chain for so few.
    let eleven = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    let sent = change(&mut engine, 2, event(2, &eleven));
    assert_eq!(counts(&sent), (1, 2, 0), "the first Service with eleven endpoints");
    let sent = change(&mut engine, 3, event(3, &eleven));
    assert_eq!(counts(&sent), (1, 2, 0), "the second one");

    // The kind; the last endpoint moves into the gap.
    let sent = change(&mut engine, 2, event(2, &[1, 2, 4, 5, 6, 7, 8, 9, 10, 11]));
    assert_eq!(counts(&sent), (3, 2, 0), "an endpoint goes");
    let sent = change(&mut engine, 3, event(3, &eleven[..10]));
    assert_eq!(counts(&sent), (2, 1, 0), "the last endpoint goes");

    let mut unready = slice(4, &eleven[..10]);
    unready.endpoints[4].conditions.ready = false;
    unready.endpoints[4].conditions.serving = false;
    let sent = change(&mut engine, 4, Event::from(unready));
    assert_eq!(counts(&sent), (3, 2, 0), "an endpoint is not ready, the first time that there are nine");
    let sent = change(&mut engine, 4, event(4, &eleven[..10]));
    assert_eq!(counts(&sent), (1, 2, 0), "it is ready again");

    // The kind and seven endpoints; and cluster-pick-17 with two rules and two verdicts.
    let seventeen: Vec<u8> = (1..=17).collect();
    let sent = change(&mut engine, 6, event(6, &seventeen));
    assert_eq!(counts(&sent), (1, 8 + 2, 3), "the first Service with seventeen endpoints");
    let sent = change(&mut engine, 7, event(7, &seventeen));
    assert_eq!(counts(&sent), (1, 8, 0), "the second one");

    let sent = change(&mut engine, 5, Event::ServiceGone(plain_service(5).name));
    assert_eq!(counts(&sent), (12, 0, 0), "a Service goes; its slice is still there");
    let sent = change(&mut engine, 5, Event::Service(plain_service(5)));
    assert_eq!(counts(&sent), (0, 12, 0), "a Service comes");
    let sent = change(&mut engine, SERVICES, Event::Service(plain_service(SERVICES)));
    assert_eq!(counts(&sent), (0, 2, 0), "a Service without endpoints comes");

    let several: Vec<ObjectName> = (100..110).map(|index| plain_service(index).name).collect();
    several.iter().for_each(|name| engine.apply(Event::ServiceGone(name.clone())));
    let report = engine.sync(Instant::now());
    assert_eq!((report.transactions, report.operations), (1, 120), "changes that come together go together");
    assert_eq!(report.services, several.into_iter().collect());
}

/// Where all take turns, those that have a counter and those that found none.
#[test]
fn turns_cost_no_more_than_chance() {
    let mut engine = scheduled(Scheduler::RoundRobin);
    let event = |index: u16, lasts: &[u8]| {
        let endpoints = lasts.iter().map(|last| ready(address(Family::V4, 10, 124, *last))).collect();
        Event::from(slice_of(&plain_service(index).name, Family::V4, endpoints))
    };
    let kind = |engine: &Engine<InMemoryKernel>, index: u16| {
        let installed = engine.installed(Family::V4);
        let (_, frontend) = installed.frontends_of(&plain_service(index).name).next().expect("it is served");
        frontend.action.slots().next().map(|(_, slots)| slots.by).expect("it has endpoints")
    };
    let turns = (0..SERVICES).filter(|index| matches!(kind(&engine, *index), By::Turn(_))).count();
    assert_eq!(turns, usize::from(By::COUNTERS));
    let (with, without) = (1, SERVICES - 1);
    assert!(matches!(kind(&engine, with), By::Turn(_)) && kind(&engine, without) == By::Random);
    for index in [with, without] {
        let sent = change(&mut engine, index, event(index, &[1, 2, 3, 99, 5, 6, 7, 8, 9, 10]));
        assert_eq!(counts(&sent), (1, 1, 0), "an endpoint is replaced");
    }
    let eleven = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    // The kind and two endpoints; rr-11-K and cluster-rr-11-K with three rules and two verdicts each.
    let sent = change(&mut engine, with, event(with, &eleven));
    assert_eq!(counts(&sent), (2, 3 + 4, 2 + 3), "the first Service with eleven endpoints");
    let sent = change(&mut engine, with, event(with, &eleven[..10]));
    assert_eq!(counts(&sent), (2, 1, 0), "and back");
    // It has the chain that is there.
    let sent = change(&mut engine, without, event(without, &eleven));
    assert_eq!(counts(&sent), (2, 3, 0), "the next Service with eleven endpoints");
    assert!(matches!(kind(&engine, without), By::Turn(_)));
}

/// One Service with ten endpoints, three of them on this node.
fn three_of_ten_here(internal_policy: TrafficPolicy) -> Cluster {
    let service = Service { internal_policy, ..plain_service(1) };
    let mut slice = slice_of(&service.name, Family::V4, endpoints(Family::V4, 10));
    slice.endpoints[4..7].iter_mut().for_each(|endpoint| endpoint.conditions.local = true);
    let mut cluster = Cluster { node: of_every_kind(0, None).node, ..Cluster::default() };
    cluster.slices.insert(slice.name.clone(), slice);
    cluster.services.insert(service.name.clone(), service);
    cluster
}

#[test]
fn a_traffic_policy_changes_in_one_transaction() {
    let mut engine =
        three_of_ten_here(TrafficPolicy::Cluster).engine(InMemoryKernel::recorder(), facts(NodePortAddresses::All));
    engine.sync(Instant::now());
    engine.kernel().take_committed();
    let mut set = |internal_policy| {
        engine.apply(Event::Service(Service { internal_policy, ..plain_service(1) }));
        let report = engine.sync(Instant::now());
        assert_eq!((report.failures, report.transactions), (0, 1));
        counts(&take(&mut engine))
    };
    // The kind and all slots; and cluster-pick-local-3 with two rules and two verdicts.
    assert_eq!(set(TrafficPolicy::Local), (11, 4 + 2, 3));
    assert_eq!(set(TrafficPolicy::Cluster), (4, 11, 0));
    assert_eq!(set(TrafficPolicy::Local), (11, 4, 0));
}

/// Version 0.1.0 let a cluster IP with `internalTrafficPolicy: Local` lead to a chain of policy Cluster.
#[test]
fn a_cluster_ip_with_policy_local_of_an_earlier_version_is_taken_over_at_once() {
    let mut earlier = three_of_ten_here(TrafficPolicy::Cluster);
    let local: Vec<_> = earlier.slices.values_mut().flat_map(|slice| slice.endpoints[4..7].to_vec()).collect();
    earlier.slices.values_mut().for_each(|slice| slice.endpoints = local.clone().into());
    let mut engine = earlier.engine(InMemoryKernel::new(), facts(NodePortAddresses::All));
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let mut kernel = std::mem::take(engine.kernel());
    let before = kernel.elements_of(Family::V4, SetName::Endpoints);
    kernel.take_committed();

    let mut engine = three_of_ten_here(TrafficPolicy::Local).engine(kernel, facts(NodePortAddresses::All));
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    let sent: Vec<_> =
        engine.kernel().take_committed().into_iter().filter(|sent| !sent.operations.is_empty()).collect();
    let [transaction] = &sent[..] else { panic!("{sent:#?}") };
    assert_eq!(counts(&transaction.operations), (4, 4 + 2, 3));
    let after = engine.kernel().elements_of(Family::V4, SetName::Endpoints);
    let data = |elements: &[Element]| elements.iter().map(|element| element.data.clone()).collect::<Vec<_>>();
    assert_eq!(data(&after), data(&before), "the same endpoints, in the same order of slots");
    let slots: Vec<_> = after.iter().filter_map(|element| element.key.last().copied()).collect();
    assert_eq!(slots, [65_536, 65_537, 65_538].map(Value::Slot));
    assert!(!engine.is_behind());
}

#[test]
fn the_number_of_services_does_not_show_in_the_frame() {
    let shape = |count: u16| {
        let mut engine =
            of_every_kind(count, Some(60)).engine(InMemoryKernel::recorder(), facts(NodePortAddresses::Primary));
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        Family::ALL.map(|family| {
            let ruleset = engine.ruleset(family);
            let sets: Vec<_> = ruleset.sets.iter().map(|(def, _)| def.clone()).collect();
            (sets, ruleset.chains, engine.installed(family).frontend_count())
        })
    };
    // Six Services of each: a thousand and twenty.
    let (one, many) = (shape(1), shape(170));
    for (one, many) in one.into_iter().zip(many) {
        assert_eq!(one.0, many.0, "sets");
        assert_eq!(one.1, many.1, "chains and rules");
        assert!(many.2 > 7_000 && many.2 == one.2 * 170, "{} and {} frontends", one.2, many.2);
    }
}
