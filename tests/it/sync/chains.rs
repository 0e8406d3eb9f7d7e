//! Chains that are made when first used, and go when nobody uses them any more.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::Operation;
use nftproxyd::model::{Event, Family};
use nftproxyd::nftables::in_memory::{Fault, InMemoryKernel};
use nftproxyd::nftables::{Kernel, LinuxKernel};
use nftproxyd::ruleset::names::ChainName;
use nftproxyd::sync::Engine;

use crate::support::cluster::{Cluster, facts, of_every_kind, plain_service, ready, slice_of};
use crate::support::namespace::Namespace;

/// Longer than an unused chain stays.
const LATER: Duration = Duration::from_secs(31);

/// One Service with so many endpoints.
fn scaled(endpoints: u16) -> Event {
    let endpoint = |n: u16| ready(Ipv4Addr::from(0x0a7c_0000 + u32::from(n)).into());
    Event::from(slice_of(&plain_service(1).name, Family::V4, (1..=endpoints).map(endpoint).collect()))
}

/// An engine with this one Service, which has one endpoint.
fn engine<K: Kernel>(kernel: K) -> Engine<K> {
    let mut cluster = Cluster { node: of_every_kind(0, None).node, ..Cluster::default() };
    cluster.services.insert(plain_service(1).name, plain_service(1));
    let mut engine = cluster.engine(kernel, facts(NodePortAddresses::All));
    engine.apply(scaled(1));
    assert_eq!(engine.sync(Instant::now()).failures, 0);
    engine
}

fn chains<K: Kernel>(engine: &Engine<K>) -> BTreeSet<ChainName> {
    engine.ruleset(Family::V4).chains.iter().map(|chain| chain.name).collect()
}

fn scale_up_and_down<K: Kernel>(engine: &mut Engine<K>, most: u16, now: Instant) {
    for endpoints in (1..=most).chain((1..most).rev()) {
        engine.apply(scaled(endpoints));
        let report = engine.sync(now);
        assert_eq!((report.failures, report.error_text()), (0, String::new()), "{endpoints} endpoints");
    }
}

#[test]
fn a_service_that_was_large_leaves_no_chains() {
    let mut engine = engine(InMemoryKernel::new());
    let (before, installed) = (chains(&engine), engine.installed(Family::V4).all_elements());
    let now = Instant::now();
    scale_up_and_down(&mut engine, 401, now);
    assert_eq!(chains(&engine).len() - before.len(), 401 - 16, "there are always those for up to 16");
    let at = engine.wake_at().expect("they go");
    assert!(at > now + Duration::from_secs(20) && !engine.is_due(at - Duration::from_millis(1)) && engine.is_due(at));
    assert!(!engine.is_behind(), "that is no reason to be behind");
    assert_eq!(engine.sync(at).failures, 0);
    assert_eq!((chains(&engine), engine.wake_at()), (before.clone(), None));
    assert_eq!(engine.installed(Family::V4).all_elements(), installed);

    // One that is used again by then stays.
    engine.apply(scaled(20));
    engine.sync(now);
    engine.apply(scaled(1));
    engine.sync(now);
    engine.apply(scaled(20));
    engine.sync(now + LATER / 2);
    assert_eq!(engine.sync(now + LATER).failures, 0);
    assert_eq!(chains(&engine).len(), before.len() + 1);
}

/// Linux before 6.2 takes a chain for busy for a while after it has lost its last user.
#[test]
fn a_chain_that_cannot_go_yet_is_no_failure() {
    let mut engine = engine(InMemoryKernel::new());
    let before = chains(&engine);
    let now = Instant::now();
    scale_up_and_down(&mut engine, 20, now);
    engine.kernel().on_commit(|_, transaction| {
        let deletes = |operation: &Operation| matches!(operation, Operation::DeleteChain(_));
        transaction.operations.iter().any(deletes).then_some(Fault::Busy)
    });
    let report = engine.sync(now + LATER);
    assert_eq!((report.failures, report.error_text()), (0, String::new()));
    assert!(!engine.is_behind() && chains(&engine).len() == before.len() + 4);
    engine.kernel().forget_hooks();
    // The Service works meanwhile, and so does what was to go.
    engine.apply(scaled(18));
    assert_eq!(engine.sync(now + LATER).failures, 0);
    engine.apply(scaled(1));
    assert_eq!(engine.sync(now + LATER).failures, 0);
    assert_eq!(engine.sync(now + 2 * LATER).failures, 0);
    assert_eq!(chains(&engine), before);
}

#[test]
fn the_machines_kernel_lets_them_go() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        let mut engine = engine(LinuxKernel::open().expect("a socket"));
        let before = chains(&engine);
        let now = Instant::now();
        scale_up_and_down(&mut engine, 40, now);
        assert_eq!(chains(&engine).len(), before.len() + 24);
        assert_eq!(engine.sync(now + LATER).failures, 0);
        assert_eq!(chains(&engine), before);
        // What the kernel holds is what the engine believes.
        engine.distrust(Family::V4);
        let report = engine.sync(now + LATER);
        assert_eq!((report.failures, report.operations), (0, 0));
        assert_eq!(chains(&engine), before);
    });
}
