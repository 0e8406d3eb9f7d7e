//! Large made-up clusters.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The node that local endpoints of a synthetic cluster are on; there are [`NODES`] such nodes.
pub const NODE: &str = "node-0";
/// Endpoints are spread over this many nodes.
pub const NODES: usize = 100;

/// `services` Services, at most 262,144, called `load/service-0` and so on: TCP 80 at 10.96.0.0/14, with one
/// EndpointSlice of `endpoints` endpoints each, at 10.128.0.0/9, port 8080.
pub fn cluster(services: usize, endpoints: usize) -> impl Iterator<Item = Value> {
    (0..services).flat_map(move |index| [service(index), slice(index, endpoints)])
}

/// Where Service number `index` is reached.
pub fn cluster_ip(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + u32::try_from(index).expect("at most 262,143"))
}

/// Service number `index`.
pub fn service(index: usize) -> Value {
    let address = cluster_ip(index);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("service-{index}"), "namespace": "load", "uid": uid(index),
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": format!("service-{index}")},
        },
        "status": {"loadBalancer": {}},
    })
}

/// The EndpointSlice of Service number `index`.
pub fn slice(index: usize, endpoints: usize) -> Value {
    let name = format!("service-{index}");
    let endpoint = |number: usize| {
        let pod = index * endpoints + number;
        let address = format!("10.{}.{}.{}", 128 + (pod >> 16), (pod >> 8) & 255, pod & 255);
        json!({
            "addresses": [address], "nodeName": format!("node-{}", pod % NODES),
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "load", "name": format!("{name}-{number}"), "uid": uid(pod)},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-slice"), "namespace": "load", "uid": uid(index),
                     "creationTimestamp": "2026-01-01T00:00:00Z",
                     "labels": {"kubernetes.io/service-name": name,
                                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

/// The EndpointSlice of Service number `index` with these pods, all on one node.
pub fn slice_of(index: usize, pods: &[Ipv4Addr]) -> Value {
    let mut slice = slice(index, 1);
    let endpoint = slice["endpoints"][0].take();
    let endpoints = pods.iter().map(|pod| {
        let mut endpoint = endpoint.clone();
        endpoint["addresses"][0] = json!(pod);
        endpoint
    });
    slice["endpoints"] = endpoints.collect();
    slice
}

/// The Node of [`NODE`], with this address.
pub fn node(address: Ipv4Addr) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {}},
        "status": {"addresses": [{"type": "InternalIP", "address": address.to_string()}]}})
}

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}
