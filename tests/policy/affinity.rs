//! Session affinity: a client goes where it went, as long as that is where it could go.

use serde_json::{Value, json};

use nftproxyd::model::Family;
use nftproxyd::ruleset::names::SetName;
use nftproxyd::ruleset::types::{Data, Element, Key, Value as Part};

use crate::cluster::{Cluster, destination_of, ip};
use crate::example::{
    self, CLIENT, CLUSTER_IP, EXTERNAL_IP, Example, FRONTENDS, LOAD_BALANCER_IP, NODE_PORT, POD, THE_NODE, e1, e2,
    not_ready, slice, terminating,
};

/// What the kernel remembers after a client's connection to a frontend went to an endpoint.
fn remembered(client: &str, frontend: &str, endpoint: &str) -> Element {
    let (protocol, to) = destination_of(frontend);
    let key = [Part::Address(ip(client)), Part::Address(to.ip()), Part::Protocol(protocol), Part::Port(to.port())];
    let data = [Part::Address(ip(endpoint)), Part::Port(80)];
    Element { key: Key::from_slice(&key), key_end: None, data: Data::Values(data.into()), comment: None }
}

fn sticky() -> Example {
    Example::new().spec(json!({"sessionAffinity": "ClientIP"}))
}

#[track_caller]
fn check(cluster: &Cluster, known: &[Element], source: &str, to: &str, expected: &str) {
    let (protocol, destination) = destination_of(to);
    let trace = cluster.trace_knowing(known, ip(source), protocol, destination);
    assert_eq!(example::shown(&trace.outcome), expected, "{source} -> {to}\n{trace}");
}

#[test]
fn a_client_that_is_known_goes_where_it_went() {
    for external_policy in ["Cluster", "Local"] {
        let cluster = sticky().spec(json!({"externalTrafficPolicy": external_policy})).cluster();
        for source in [POD, THE_NODE, CLIENT] {
            for to in FRONTENDS {
                for (name, endpoint) in [("e1", example::E1), ("e2", example::E2)] {
                    let is_internal = to == CLUSTER_IP;
                    if external_policy == "Local" && !is_internal && source == CLIENT && name == "e2" {
                        // It could not have gone there.
                        continue;
                    }
                    let masqueraded =
                        if is_internal { source != POD } else { external_policy == "Cluster" || source == THE_NODE };
                    let expected = format!("{name}{}", if masqueraded { "(m)" } else { "" });
                    check(&cluster, &[remembered(source, to, endpoint)], source, to, &expected);
                }
            }
        }
    }
}

/// Each frontend remembers its own clients, and each client for itself. (kube-proxy shares what it remembers between the
/// frontends of a service port.)
#[test]
fn others_know_nothing_of_it() {
    let cluster = sticky().cluster();
    let known = [remembered(POD, CLUSTER_IP, example::E2)];
    check(&cluster, &known, POD, CLUSTER_IP, "e2");
    check(&cluster, &known, "10.0.0.3", CLUSTER_IP, "e1 e2");
    check(&cluster, &known, THE_NODE, CLUSTER_IP, "e1(m) e2(m)");
    for to in [LOAD_BALANCER_IP, EXTERNAL_IP, NODE_PORT] {
        check(&cluster, &known, POD, to, "e1(m) e2(m)");
    }
    check(&cluster, &known, POD, "udp 172.30.0.1:80", "reject");
    // Without session affinity nobody asks.
    check(&Example::new().cluster(), &known, POD, CLUSTER_IP, "e1 e2");
}

/// What is remembered is forgotten with the endpoint, for the others it stays.
#[test]
fn clients_of_an_endpoint_that_is_gone_are_forgotten() {
    let external = |policy: &str| json!({"spec": {"externalTrafficPolicy": policy}});
    let e3 = || json!({"addresses": ["10.180.0.3"], "nodeName": "n1"});
    // What is there before and after: a change of the Service, its endpoints; and who is remembered after that.
    type Case =
        (&'static str, (Value, Vec<Value>), (Value, Vec<Value>), Vec<(&'static str, &'static str, &'static str)>);
    let none = || json!({});
    #[rustfmt::skip]
    let cases: Vec<Case> = vec![
        ("nothing changes", (none(), vec![e1(), e2()]), (none(), vec![e1(), e2()]),
            vec![(POD, CLUSTER_IP, "e1"), (POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e1"), (CLIENT, NODE_PORT, "e2")]),
        ("one more", (none(), vec![e1(), e2()]), (none(), vec![e1(), e2(), e3()]),
            vec![(POD, CLUSTER_IP, "e1"), (POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e1"), (CLIENT, NODE_PORT, "e2")]),
        ("one is gone", (none(), vec![e1(), e2()]), (none(), vec![e2()]),
            vec![(POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e2")]),
        ("one is not ready", (none(), vec![e1(), e2()]), (none(), vec![not_ready(e1()), e2()]),
            vec![(POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e2")]),
        ("one shuts down", (none(), vec![e1(), e2()]), (none(), vec![e1(), terminating(e2())]),
            vec![(POD, CLUSTER_IP, "e1"), (CLIENT, NODE_PORT, "e1")]),
        ("all are gone", (none(), vec![e1(), e2()]), (none(), vec![]), vec![]),
        ("affinity is switched off", (none(), vec![e1(), e2()]),
            (json!({"spec": {"sessionAffinity": "None"}}), vec![e1(), e2()]), vec![]),
        // A Local policy forbids the client outside what it was allowed before.
        ("the policy becomes Local", (external("Cluster"), vec![e1(), e2()]), (external("Local"), vec![e1(), e2()]),
            vec![(POD, CLUSTER_IP, "e1"), (POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e1")]),
        ("the policy becomes Cluster", (external("Local"), vec![e1(), e2()]), (external("Cluster"), vec![e1(), e2()]),
            vec![(POD, CLUSTER_IP, "e1"), (POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e1"), (CLIENT, NODE_PORT, "e2")]),
        // It goes on serving as the last resort of clients outside, but pods have a better one.
        ("the local one shuts down", (external("Local"), vec![e1(), e2()]), (external("Local"), vec![terminating(e1()), e2()]),
            vec![(POD, CLUSTER_IP, "e2"), (CLIENT, NODE_PORT, "e2")]),
    ];
    for (what, (service, endpoints), (later_service, later_endpoints), expected) in cases {
        let mut cluster = sticky().with(service).endpoints(&endpoints).cluster();
        for (source, to) in [(POD, CLUSTER_IP), (CLIENT, NODE_PORT)] {
            for endpoint in [example::E1, example::E2] {
                // One client for each, so that all can be remembered.
                let client = if endpoint == example::E1 { source } else { second(source) };
                cluster.engine.kernel().put(Family::V4, SetName::Affinity, remembered(client, to, endpoint));
            }
        }
        cluster.apply(&sticky().with(later_service).services[0]);
        cluster.apply(&slice("web", &later_endpoints));
        cluster.sync();
        let kernel = cluster.engine.kernel();
        let mut left = kernel.elements_of(Family::V4, SetName::Affinity);
        let mut wanted: Vec<Element> = expected
            .iter()
            .map(|(source, to, name)| match *name {
                "e1" => remembered(source, to, example::E1),
                _ => remembered(second(source), to, example::E2),
            })
            .collect();
        left.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(left, wanted, "{what}");
    }
}

/// The neighbour of a source.
fn second(source: &str) -> &'static str {
    if source == POD { "10.0.0.3" } else { "203.0.113.6" }
}
