//! The cases that people ask about, each with its number in the list of kube-proxy's behaviour that this proxy keeps to.

use std::collections::BTreeSet;

use serde_json::json;

use crate::example::{
    CLIENT, CLUSTER_IP, E1, EXTERNAL_IP, Example, FRONTENDS, LOAD_BALANCER_IP, NODE_PORT, POD, THE_NODE, e1, e2,
    hinted, not_ready, slice, terminating,
};

/// Number, rule, variation of the example, and packets: source, destination, what becomes of it. `(m)`: masqueraded.
type Case = (u8, &'static str, Example, Vec<(&'static str, &'static str, &'static str)>);

/// The number of cases in the list.
const COUNT: u8 = 40;

/// Those that are not about packets: number, where it is tested, that file, and the test's name.
const ELSEWHERE: [(u8, &str, &str); 6] = [
    (35, include_str!("../../src/conntrack/plan.rs"), "flows_to_what_does_not_serve_are_stale"),
    (36, include_str!("../../src/conntrack/plan.rs"), "flows_to_what_does_not_serve_are_stale"),
    (37, include_str!("../../src/conntrack/plan.rs"), "flows_of_before_an_outage_are_stale_in_it_and_after_it"),
    (38, include_str!("../../src/conntrack/plan.rs"), "flows_to_what_does_not_serve_are_stale"),
    (39, include_str!("../../src/model/policy/tests.rs"), "health_check_weight"),
    (40, include_str!("../../src/health/checks.rs"), "the_answer_is_that_of_kube_proxy"),
];

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let example = Example::new;
    let internal_local = || example().spec(json!({"internalTrafficPolicy": "Local"}));
    let external_local = || example().spec(json!({"externalTrafficPolicy": "Local"}));
    let ranges = |ranges: &[&str]| example().spec(json!({"loadBalancerSourceRanges": ranges}));
    let everywhere = |expected: &'static str| {
        let sources = [POD, THE_NODE, CLIENT, E1];
        FRONTENDS.iter().flat_map(|to| sources.map(|from| (from, *to, expected))).collect()
    };
    vec![
        // Cluster IPs.
        (1, "a pod reaches every endpoint, as itself", example(),
            vec![(POD, CLUSTER_IP, "e1 e2")]),
        (2, "an endpoint that reaches itself is masqueraded", example(),
            vec![(E1, CLUSTER_IP, "e1(m) e2")]),
        (3, "the node is masqueraded", example(),
            vec![(THE_NODE, CLUSTER_IP, "e1(m) e2(m)")]),
        (4, "internal Local: only this node's endpoints, for everybody", internal_local(),
            vec![(CLIENT, CLUSTER_IP, "e1(m)"), (POD, CLUSTER_IP, "e1"), (THE_NODE, CLUSTER_IP, "e1(m)")]),
        (5, "a port that the cluster IP does not have is refused", example(),
            vec![(POD, "tcp 172.30.0.1:81", "reject")]),
        (6, "so is the right port of another protocol", example(),
            vec![(POD, "udp 172.30.0.1:80", "reject"), (POD, "sctp 172.30.0.1:80", "reject")]),
        (7, "a cluster IP that is not allocated is silent", example(),
            vec![(POD, "tcp 172.30.99.99:80", "drop")]),
        // No endpoints.
        (8, "without endpoints every frontend refuses everybody", example().endpoints(&[]), everywhere("reject")),
        (8, "endpoints that are not ready are none", example().endpoints(&[not_ready(e1()), not_ready(e2())]),
            everywhere("reject")),
        (9, "internal Local, but nothing here: silence", internal_local().endpoints(&[e2()]),
            vec![(POD, CLUSTER_IP, "drop"), (THE_NODE, CLUSTER_IP, "drop"), (CLIENT, CLUSTER_IP, "drop"),
                 (CLIENT, NODE_PORT, "e2(m)")]),
        // External Local.
        (10, "external Local, but nothing here: silence for clients", external_local().endpoints(&[e2()]),
            vec![(CLIENT, NODE_PORT, "drop"), (CLIENT, LOAD_BALANCER_IP, "drop"), (CLIENT, EXTERNAL_IP, "drop")]),
        (11, "... pods take the short way to any endpoint, as themselves", external_local().endpoints(&[e2()]),
            vec![(POD, NODE_PORT, "e2"), (POD, LOAD_BALANCER_IP, "e2"), (POD, EXTERNAL_IP, "e2")]),
        (12, "... and so does the node, masqueraded", external_local().endpoints(&[e2()]),
            vec![(THE_NODE, LOAD_BALANCER_IP, "e2(m)"), (THE_NODE, NODE_PORT, "e2(m)")]),
        (13, "external Local keeps the client's address", external_local(),
            vec![(CLIENT, LOAD_BALANCER_IP, "e1"), (CLIENT, NODE_PORT, "e1"), (CLIENT, EXTERNAL_IP, "e1"),
                 (CLIENT, CLUSTER_IP, "e1(m) e2(m)")]),
        (14, "external Cluster masquerades everybody, even pods", example(),
            vec![(POD, LOAD_BALANCER_IP, "e1(m) e2(m)"), (CLIENT, LOAD_BALANCER_IP, "e1(m) e2(m)"),
                 (THE_NODE, NODE_PORT, "e1(m) e2(m)")]),
        (15, "who cannot be told to be a pod is served as a client", external_local().no_detector(),
            vec![(POD, LOAD_BALANCER_IP, "e1"), (THE_NODE, LOAD_BALANCER_IP, "e1(m) e2(m)")]),
        // Source ranges.
        (16, "a source outside of the ranges is dropped", ranges(&["198.51.100.0/24"]),
            vec![(CLIENT, LOAD_BALANCER_IP, "drop"), ("198.51.100.9", LOAD_BALANCER_IP, "e1(m) e2(m)")]),
        (17, "ranges concern the load-balancer IP only", ranges(&["198.51.100.0/24"]),
            vec![(CLIENT, NODE_PORT, "e1(m) e2(m)"), (CLIENT, EXTERNAL_IP, "e1(m) e2(m)"), (POD, CLUSTER_IP, "e1 e2")]),
        (18, "pods and the node are no exception", ranges(&["198.51.100.0/24"]),
            vec![(POD, LOAD_BALANCER_IP, "drop"), (THE_NODE, LOAD_BALANCER_IP, "drop")]),
        (19, "where the node is allowed, its packets may carry the load-balancer IP",
            ranges(&["192.0.2.0/24"]).addresses(&["198.18.0.1"]),
            vec![("198.18.0.1", LOAD_BALANCER_IP, "e1(m) e2(m)"), (THE_NODE, LOAD_BALANCER_IP, "e1(m) e2(m)"),
                 (CLIENT, LOAD_BALANCER_IP, "drop")]),
        (20, "a /0 among the ranges lifts them all", ranges(&["0.0.0.0/0", "198.51.100.0/24"]),
            vec![(CLIENT, LOAD_BALANCER_IP, "e1(m) e2(m)"), (POD, LOAD_BALANCER_IP, "e1(m) e2(m)")]),
        (21, "white space around a range is no matter", ranges(&[" 198.51.100.0/24"]),
            vec![(CLIENT, LOAD_BALANCER_IP, "drop"), ("198.51.100.9", LOAD_BALANCER_IP, "e1(m) e2(m)")]),
        // Addresses that are not served.
        (22, "node ports on other addresses of the node are left alone", example().addresses(&["192.0.2.99"]),
            vec![(CLIENT, "tcp 192.0.2.99:30080", "pass"), (CLIENT, NODE_PORT, "e1(m) e2(m)")]),
        (23, "the address of a balancer that is a proxy is left alone",
            example().with(json!({"status": {"loadBalancer": {"ingress": [{"ip": "5.6.7.8", "ipMode": "Proxy"}]}}})),
            vec![(CLIENT, "tcp 5.6.7.8:80", "pass"), (POD, "tcp 5.6.7.8:80", "pass")]),
        // Topology.
        (24, "hints keep traffic in the zone", example().endpoints(&[hinted(e1(), &["a"], &[]), hinted(e2(), &["b"], &[])]),
            vec![(POD, CLUSTER_IP, "e1")]),
        (25, "... if every ready endpoint has one", example().endpoints(&[hinted(e1(), &["a"], &[]), e2()]),
            vec![(POD, CLUSTER_IP, "e1 e2")]),
        (26, "... and one is for this zone", example().endpoints(&[hinted(e1(), &["b"], &[]), hinted(e2(), &["c"], &[])]),
            vec![(POD, CLUSTER_IP, "e1 e2")]),
        (27, "hints of what is not ready do not count",
            example().endpoints(&[not_ready(hinted(e1(), &["a"], &[])), hinted(e2(), &["b"], &[])]),
            vec![(POD, CLUSTER_IP, "e2")]),
        (28, "hints for nodes come before hints for zones",
            example().endpoints(&[hinted(e1(), &["a"], &["n1"]), hinted(e2(), &["a"], &["n2"])]),
            vec![(POD, CLUSTER_IP, "e1")]),
        (29, "... unless none is for this node",
            example().endpoints(&[hinted(e1(), &["a"], &["n3"]), hinted(e2(), &["b"], &["n2"])]),
            vec![(POD, CLUSTER_IP, "e1")]),
        (30, "Local policies know no zones",
            external_local().endpoints(&[hinted(e1(), &["b"], &[]), hinted(e2(), &["a"], &[])]),
            vec![(CLIENT, LOAD_BALANCER_IP, "e1"), (POD, CLUSTER_IP, "e2")]),
        // States of endpoints.
        (31, "each list has its own last resort", external_local().endpoints(&[terminating(e1()), e2()]),
            vec![(CLIENT, LOAD_BALANCER_IP, "e1"), (POD, CLUSTER_IP, "e2")]),
        (32, "a pod that runs comes before one that leaves the same address",
            example().slices(vec![slice("web-a", &[terminating(e1())]), slice("web-b", &[e1(), terminating(e2())])]),
            vec![(POD, CLUSTER_IP, "e1")]),
        (32, "... in any order",
            example().slices(vec![slice("web-a", &[e1(), terminating(e2())]), slice("web-b", &[terminating(e1())])]),
            vec![(POD, CLUSTER_IP, "e1")]),
        (33, "a port's number may differ from slice to slice",
            example().slices(vec![slice("web-a", &[e1()]), {
                let mut other = slice("web-b", &[e2()]);
                other["ports"][0]["port"] = json!(8080);
                other
            }]),
            vec![(POD, CLUSTER_IP, "e1 10.180.1.1:8080")]),
        (34, "leading zeros are dropped",
            example().spec(json!({"clusterIP": "172.30.0.041", "clusterIPs": ["172.30.0.041"]})).endpoints(&[{
                let mut endpoint = e1();
                endpoint["addresses"] = json!(["10.180.00.001"]);
                endpoint
            }]),
            vec![(POD, "tcp 172.30.0.41:80", "e1")]),
        // Health checks.
        (40, "an endpoint that leaves is no longer announced, but still served", external_local().endpoints(&[terminating(e1())]),
            vec![(CLIENT, LOAD_BALANCER_IP, "e1")]),
    ]
}

#[test]
fn every_named_case() {
    let mut numbers = BTreeSet::new();
    for (number, rule, example, packets) in cases() {
        example.check(&format!("{number}: {rule}"), &packets);
        numbers.insert(number);
    }
    for (number, file, test) in ELSEWHERE {
        assert!(file.contains(&format!("fn {test}()")), "{number}: the test {test} is no longer where it was");
        numbers.insert(number);
    }
    assert_eq!(numbers, (1..=COUNT).collect(), "every number has a case, here or elsewhere");
}
