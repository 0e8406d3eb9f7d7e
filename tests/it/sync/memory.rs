//! How much memory a cluster takes, and how often a change asks for some, counted.

use std::collections::BTreeSet;
use std::time::Instant;

use allocation_counter::{AllocationInfo, measure, opt_out};
use arcstr::ArcStr;
use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::recover;
use nftproxyd::model::{Event, Family, Kind, ObjectName, Places, Service, Slice};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::ruleset::read::Contents;
use nftproxyd::sync::Engine;

use crate::support::cluster::{Cluster, address, endpoints, facts, of_every_kind, plain_service, ready, slice_of};

/// An engine that has synced so many plain Services with so many endpoints each, and what it keeps of them: its own
/// objects, as a source would hand them over, each with texts of its own.
fn synced(services: u16, per_service: u8) -> (Engine<InMemoryKernel>, AllocationInfo) {
    let node = of_every_kind(0, None).node;
    let kernel = InMemoryKernel::recorder();
    let mut engine = Cluster { node, ..Cluster::default() }.engine(kernel, facts(NodePortAddresses::All));
    engine.sync(Instant::now());
    engine.kernel().take_committed();
    let kept = measure(|| {
        for kind in [Kind::Service, Kind::EndpointSlice] {
            engine.apply(Event::ListStarted(kind));
            for index in 0..services {
                engine.apply(match kind {
                    Kind::Service => Event::Service(plain_service(index)),
                    _ => Event::from(slice(index, per_service)),
                });
            }
            engine.apply(Event::ListDone(kind));
        }
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        engine.kernel().take_committed();
    });
    (engine, kept)
}

/// With names of pods as a Deployment gives them, and names of nodes that are shared, as a source hands them over.
fn slice(index: u16, per_service: u8) -> Slice {
    thread_local! {
        static NODES: Vec<ArcStr> = (0..100).map(|node| format!("ip-10-0-12-{node}.internal").into()).collect();
    }
    let Service { name, .. } = plain_service(index);
    let pods: Vec<String> = (0..per_service).map(|pod| format!("{}-7d9f8b6c5d-x{pod:03}z", name.name())).collect();
    let node = |pod: u16| NODES.with(|nodes| nodes.get(usize::from((index + pod) % 100)).cloned());
    let places = Places::new((0..).zip(&pods).map(|(number, pod)| (Some(pod.as_str()), node(number))));
    Slice { places, ..slice_of(&name, Family::V4, endpoints(Family::V4, per_service)) }
}

/// What this guards: 44,000 Services with one endpoint in 64 MiB of resident memory, 10,000 with ten in 32 MiB, of which
/// some 10 MiB are the program itself. Bytes as asked for; the heap adds 8 to 16 to each piece.
#[test]
fn a_service_takes_little_memory() {
    const SERVICES: u16 = 3_000;
    let per_service =
        |info: AllocationInfo| (info.bytes_current / i64::from(SERVICES), info.count_current / i64::from(SERVICES));
    let (_one, with_one) = synced(SERVICES, 1);
    let (_ten, with_ten) = synced(SERVICES, 10);
    let one @ (bytes, pieces) = per_service(with_one);
    assert!(bytes <= 940 && pieces <= 16, "bytes and pieces for each Service: {one:?}");
    let ten @ (bytes, pieces) = per_service(with_ten);
    assert!(bytes <= 1_510 && pieces <= 16, "bytes and pieces for each Service with ten endpoints: {ten:?}");
}

/// What this guards: a restart with 44,000 Services in 64 MiB. The elements come one by one, each with a comment of its own.
#[test]
fn a_table_is_read_back_in_little_memory() {
    const SERVICES: u16 = 3_000;
    let (engine, _) = synced(SERVICES, 1);
    let elements = engine.installed(Family::V4).all_elements();
    let info = measure(|| {
        let mut contents = Contents::new(Family::V4);
        for (set, element) in &elements {
            let mut element = element.clone();
            element.comment = element.comment.map(|comment| comment.as_str().into());
            contents.element(*set, element);
        }
        let known = |name: &ObjectName| engine.store().service(name).map(|it| it.name.clone());
        let chains = engine.installed(Family::V4).chains();
        let found = recover(contents, chains, BTreeSet::new(), known);
        let right = || (found.installed.all_elements() == elements, found.unknown.len(), found.missing.len());
        opt_out(|| assert_eq!(right(), (true, 0, 0)));
    });
    let most = info.bytes_max / u64::from(SERVICES);
    assert!(most <= 480, "bytes for each Service at the most: {most}");
}

/// A change allocates the same whatever the number of Services, and little.
#[test]
fn a_change_allocates_what_it_changes() {
    let replaced = |services: u16| {
        let (mut engine, _) = synced(services, 10);
        let mut counts = Vec::new();
        // The first ones let buffers grow.
        for last in 100..110 {
            let mut slice = slice(7, 10);
            slice.endpoints[3] = ready(address(Family::V4, 10, 124, last));
            let info = measure(|| {
                engine.apply(Event::from(slice));
                let report = engine.sync(Instant::now());
                opt_out(|| assert_eq!((report.transactions, report.operations), (1, 2)));
            });
            engine.kernel().take_committed();
            counts.push(info.count_total);
        }
        counts.last().copied()
    };
    let (few, many) = (replaced(100), replaced(8_000));
    assert_eq!(few, many);
    assert!(many.is_some_and(|count| count <= 45), "{many:?}");
}
