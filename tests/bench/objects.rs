//! The cluster that is measured: made-up Services, and probe Services that have one endpoint or none.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

use crate::api::synthetic;
use crate::network;
use crate::size::Size;

/// The namespace of all objects.
pub(crate) const NAMESPACE: &str = "load";
/// Real API servers keep the first cluster IPs for themselves.
const FIRST: usize = 256;
/// The number of probe Services.
pub(crate) const PROBES: usize = 5;
/// Probes count down from the last cluster IP of 10.96.0.0/14 but one.
const LAST: usize = 262_142;
/// How many Services are looked at before a start counts as complete.
const SAMPLES: usize = 20;

/// The node's Node.
pub(crate) fn node() -> Value {
    synthetic::node(network::NODE)
}

/// Everything but the Node, in an order in which it can be created: the cluster, and each probe with endpoint 0.
pub(crate) fn cluster(size: Size) -> impl Iterator<Item = Value> {
    let probes = (0..PROBES).flat_map(|probe| [probe_service(probe), probe_slice(probe, &[pod(0)])]);
    let services = move |number| [service(number), slice(size, number)];
    (0..size.services).flat_map(services).chain(probes)
}

fn service(number: usize) -> Value {
    synthetic::service(FIRST + number)
}

/// The EndpointSlice of Service `number`.
pub(crate) fn slice(size: Size, number: usize) -> Value {
    synthetic::slice(FIRST + number, size.endpoints)
}

/// Where Service `number` is reached.
pub(crate) fn address(number: usize) -> SocketAddrV4 {
    address_of(FIRST + number)
}

fn address_of(index: usize) -> SocketAddrV4 {
    SocketAddrV4::new(synthetic::cluster_ip(index), 80)
}

/// Numbers of Services spread over the cluster, the first and the last among them.
pub(crate) fn samples(size: Size) -> Vec<usize> {
    let count = SAMPLES.min(size.services);
    (0..count).map(|sample| sample * (size.services - 1) / (count - 1).max(1)).collect()
}

/// Service number `turn` of an order that goes all over the cluster.
pub(crate) fn spread(size: Size, turn: usize) -> usize {
    turn * 7_919 % size.services
}

/// A pod that belongs to no Service of the cluster.
pub(crate) fn pod(number: usize) -> Ipv4Addr {
    let [.., high, low] = u32::try_from(number % 60_000).expect("a small number").to_be_bytes();
    Ipv4Addr::new(10, 255, high, low)
}

/// A probe's Service.
pub(crate) fn probe_service(probe: usize) -> Value {
    synthetic::service(LAST - probe)
}

/// A probe's EndpointSlice with these pods.
pub(crate) fn probe_slice(probe: usize, pods: &[Ipv4Addr]) -> Value {
    synthetic::slice_of(LAST - probe, pods)
}

/// A Service that names its scheduler, if it is one; `place` tells it from others of its sort.
pub(crate) fn scheduled_service(place: usize, scheduler: &str) -> Value {
    let mut service = synthetic::service(LAST - PROBES - place);
    service["metadata"]["annotations"] = json!({"nftproxyd.io/scheduler": scheduler});
    service
}

/// A part of its endpoints, by their weight.
pub(crate) fn scheduled_slice(place: usize, weight: u16, pods: &[Ipv4Addr]) -> Value {
    let mut slice = synthetic::slice_of(LAST - PROBES - place, pods);
    slice["metadata"]["name"] = json!(format!("scheduled-{place}-{weight}"));
    slice["metadata"]["annotations"] = json!({"nftproxyd.io/weight": weight.to_string()});
    slice
}

/// Where a probe is reached.
pub(crate) fn probe_address(probe: usize) -> SocketAddrV4 {
    address_of(LAST - probe)
}

/// The EndpointSlice of Service `number` with one pod replaced by this one.
pub(crate) fn with_replaced(size: Size, number: usize, pod: Ipv4Addr) -> Value {
    let mut slice = slice(size, number);
    slice["endpoints"][elsewhere(size)]["addresses"][0] = json!(pod);
    slice
}

/// The EndpointSlice of Service `number` with one pod more.
pub(crate) fn with_one_more(size: Size, number: usize, pod: Ipv4Addr) -> Value {
    let mut slice = slice(size, number);
    let mut endpoint = slice["endpoints"][elsewhere(size)].clone();
    endpoint["addresses"][0] = json!(pod);
    slice["endpoints"].as_array_mut().expect("a list").push(endpoint);
    slice
}

/// The position of an endpoint that is on another node, if there are several: one on this node has elements of its own,
/// and changes that are compared shall be alike.
fn elsewhere(size: Size) -> usize {
    usize::from(size.endpoints > 1)
}
