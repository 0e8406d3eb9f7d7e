//! The cluster that examples are about: node `n1` in zone `a` with the address 192.0.2.1, pods in 10.0.0.0/8, cluster IPs
//! in 172.30.0.0/16, and one Service of every frontend with an endpoint on the node (`e1`) and one elsewhere (`e2`).

use nftproxyd::sync::Facts;
use serde_json::{Value, json};

use crate::cluster::{self, Cluster, NODE, merge};

/// Sources: a pod of the node, the node, and a client outside.
pub(crate) const POD: &str = "10.0.0.2";
pub(crate) const THE_NODE: &str = "192.0.2.1";
pub(crate) const CLIENT: &str = "203.0.113.5";

/// The endpoints' addresses.
pub(crate) const E1: &str = "10.180.0.1";
pub(crate) const E2: &str = "10.180.1.1";

/// The frontends of the Service.
pub(crate) const CLUSTER_IP: &str = "tcp 172.30.0.1:80";
pub(crate) const LOAD_BALANCER_IP: &str = "tcp 198.18.0.1:80";
pub(crate) const EXTERNAL_IP: &str = "tcp 198.19.0.1:80";
pub(crate) const NODE_PORT: &str = "tcp 192.0.2.1:30080";
pub(crate) const FRONTENDS: [&str; 4] = [CLUSTER_IP, LOAD_BALANCER_IP, EXTERNAL_IP, NODE_PORT];

/// Names for the endpoints in what is expected.
const NAMES: [(&str, &str); 2] = [("e1", "10.180.0.1:80"), ("e2", "10.180.1.1:80")];

/// The example, or a variation of it.
pub(crate) struct Example {
    pub(crate) facts: Facts,
    /// The addresses on the node's interfaces.
    pub(crate) addresses: Vec<&'static str>,
    pub(crate) services: Vec<Value>,
    pub(crate) slices: Vec<Value>,
    pub(crate) service_cidrs: Vec<Value>,
}

impl Example {
    pub(crate) fn new() -> Example {
        Example {
            facts: cluster::facts(),
            addresses: vec![THE_NODE],
            services: vec![web()],
            slices: vec![slice("web", &[e1(), e2()])],
            service_cidrs: vec![cluster::service_cidr("kubernetes", &["172.30.0.0/16"])],
        }
    }

    /// With other values in the Service, given as a JSON merge patch.
    pub(crate) fn with(mut self, patch: Value) -> Example {
        merge(&mut self.services[0], &patch);
        self
    }

    /// With other values in the Service's `spec`.
    pub(crate) fn spec(self, patch: Value) -> Example {
        self.with(json!({"spec": patch}))
    }

    /// With other endpoints.
    pub(crate) fn endpoints(self, endpoints: &[Value]) -> Example {
        self.slices(vec![slice("web", endpoints)])
    }

    /// With other slices.
    pub(crate) fn slices(self, slices: Vec<Value>) -> Example {
        Example { slices, ..self }
    }

    /// With one more Service.
    pub(crate) fn and(mut self, service: Value) -> Example {
        self.services.push(service);
        self
    }

    /// With more addresses on the node's interfaces.
    pub(crate) fn addresses(mut self, more: &[&'static str]) -> Example {
        self.addresses.extend(more);
        self
    }

    /// Without any detection of pods.
    pub(crate) fn no_detector(mut self) -> Example {
        self.facts.detect_local = nftproxyd::config::DetectLocal::ClusterCidr(Default::default());
        self
    }

    /// The cluster, in sync.
    pub(crate) fn cluster(&self) -> Cluster {
        let addresses: Vec<_> = self.addresses.iter().map(|text| cluster::ip(text)).collect();
        let mut cluster = Cluster::new(self.facts.clone(), &addresses);
        cluster.apply(&cluster::node(&[THE_NODE], &["10.0.0.0/24"], "a"));
        for object in self.service_cidrs.iter().chain(&self.services).chain(&self.slices) {
            cluster.apply(object);
        }
        cluster.sync();
        cluster
    }

    /// Checks packets: source, destination, what becomes of it.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, packets: &[(&str, &str, &str)]) {
        check(&self.cluster(), what, packets);
    }
}

/// As [`Example::check`], for a cluster that has gone on.
#[track_caller]
pub(crate) fn check(cluster: &Cluster, what: &str, packets: &[(&str, &str, &str)]) {
    cluster.check(what, &NAMES, packets);
}

/// An outcome in words, with the names of the example's endpoints.
pub(crate) fn shown(outcome: &nftproxyd::ruleset::eval::Outcome) -> String {
    cluster::shown(outcome, &NAMES)
}

/// The Service.
pub(crate) fn web() -> Value {
    json!({
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "172.30.0.1", "clusterIPs": ["172.30.0.1"], "ipFamilies": ["IPv4"],
            "externalIPs": ["198.19.0.1"],
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.18.0.1"}]}},
    })
}

/// Another Service, created later, with nothing but a cluster IP and a TCP port 80.
pub(crate) fn other(name: &str, cluster_ip: &str, spec: &Value) -> Value {
    let mut object = json!({
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "creationTimestamp": "2026-02-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP"}],
        },
    });
    merge(&mut object["spec"], spec);
    object
}

/// A slice of the Service `web`, with TCP port 80.
pub(crate) fn slice(name: &str, endpoints: &[Value]) -> Value {
    slice_of("web", name, endpoints)
}

/// A slice of any Service.
pub(crate) fn slice_of(service: &str, name: &str, endpoints: &[Value]) -> Value {
    json!({
        "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// The endpoint on this node, ready.
pub(crate) fn e1() -> Value {
    json!({"addresses": [E1], "nodeName": NODE, "conditions": {"ready": true}})
}

/// The endpoint on another node, ready.
pub(crate) fn e2() -> Value {
    json!({"addresses": [E2], "nodeName": "n2", "conditions": {"ready": true}})
}

/// The same endpoint with hints: zones and nodes.
pub(crate) fn hinted(mut endpoint: Value, zones: &[&str], nodes: &[&str]) -> Value {
    let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    endpoint["hints"] = json!({"forZones": named(zones), "forNodes": named(nodes)});
    endpoint
}

/// The same endpoint, shutting down but still serving.
pub(crate) fn terminating(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    endpoint
}

/// The same endpoint, not ready.
pub(crate) fn not_ready(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    endpoint
}
