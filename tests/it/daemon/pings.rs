//! Pings of Services: in both families, of clients outside, of pods by an interface that has no address, and of the node.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::{
    CLIENT, CLIENT_V6, NODE_IP, NODE_IP_V6, NODE_NAME, Node, OTHER_IP, PATIENCE, ip, node_object, run_to_end,
    service_cidr, socket, yaml,
};
use crate::support::objects::{endpoint_slice, service};
use crate::support::packet::Protocol;
use crate::support::world::{Echo, Interface, World};

/// How long an answer is waited for where there may be none.
const SILENCE: Duration = Duration::from_millis(60);
const PODS: [&str; 2] = ["10.1.0.99", "fd00:1::99"];
/// A client, a pod and the node, in both families.
const SOURCES: [[&str; 2]; 3] = [[CLIENT, CLIENT_V6], PODS, [NODE_IP, NODE_IP_V6]];

/// A node whose pods are behind an interface without an address, as Calico's are.
fn node() -> Option<Node> {
    let cidrs = ["10.1.0.0/16", "fd00:1::/64"].map(|cidr| cidr.parse().expect("a range")).to_vec();
    let pods = Interface { name: "cali0".to_owned(), ips: Vec::new(), cidrs };
    let world = World::new(&[ip(NODE_IP), ip(OTHER_IP), ip(NODE_IP_V6)], &[pods])?;
    let files = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir(files.path().join("manifests")).expect("a folder can be made");
    let node = Node { daemon: None, files, world, table_owner: "off" };
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    node.write("cidr.yaml", &yaml(&[service_cidr()]));
    Some(node)
}

/// The cluster IPs, external IPs and load-balancer IPs of the Service with this number.
fn addresses(last: u8) -> [[String; 2]; 3] {
    [
        [format!("172.30.5.{last}"), format!("fd00:172:30::5:{last}")],
        [format!("198.51.100.{last}"), format!("2001:db8:e::{last}")],
        [format!("198.51.101.{last}"), format!("2001:db8:f::{last}")],
    ]
}

/// A Service with endpoints on another node.
fn pinged(name: &str, last: u8, ping: Option<&str>, spec: &Value) -> Vec<Value> {
    let [cluster, external, balancer] = addresses(last);
    let mut service = service("shop", name, &cluster.map(|text| ip(&text)), spec);
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["externalIPs"] = json!(external);
    service["spec"]["ports"] = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    service["status"]["loadBalancer"]["ingress"] = balancer.iter().map(|ip| json!({"ip": ip})).collect();
    if let Some(ping) = ping {
        service["metadata"]["annotations"] = json!({"nftproxyd.io/ping": ping});
    }
    let slice = |word: &str, pod: &str| {
        endpoint_slice("shop", &format!("{name}-{word}"), name, ("http", Protocol::Tcp), &[(socket(pod), "elsewhere")])
    };
    vec![service, slice("4", "10.1.0.1:8080"), slice("6", "[fd00:1::1]:8080")]
}

impl Node {
    /// Whether each source gets an answer from this address, and from no other.
    #[track_caller]
    fn answers(&mut self, address: &[String; 2], expected: bool) {
        for source in SOURCES {
            for (family, to) in address.iter().enumerate() {
                let (from, to) = (ip(source[family]), ip(to));
                let echo = self.world.ping(from, to, if expected { PATIENCE } else { SILENCE });
                assert_eq!(echo == Echo::Answered(to), expected, "{from} to {to}: {echo:?}\n{}", self.log());
                assert!(expected || !matches!(echo, Echo::Answered(_)), "{from} to {to}: {echo:?}");
            }
        }
    }

    /// Waits for both families: each has a transaction of its own.
    fn wait_answer(&mut self, last: u8, expected: bool) {
        let [cluster, ..] = addresses(last);
        for (from, to) in [CLIENT, CLIENT_V6].into_iter().zip(&cluster) {
            let (from, to): (IpAddr, IpAddr) = (ip(from), ip(to));
            self.eventually("pings", |node| match node.world.ping(from, to, SILENCE) {
                echo if (echo == Echo::Answered(to)) == expected => Ok(()),
                echo => Err(format!("{echo:?}")),
            });
        }
    }
}

#[test]
fn addresses_of_services_that_ask_for_it_answer_pings() {
    let Some(mut node) = node() else { return };
    let ranges = json!({"loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:113::/48"]});
    node.write("asks.yaml", &yaml(&pinged("asks", 1, Some("true"), &json!({}))));
    node.write("quiet.yaml", &yaml(&pinged("quiet", 2, None, &json!({}))));
    node.write("empty.yaml", &yaml(&pinged("empty", 3, Some("true"), &json!({}))[..1]));
    node.write("local.yaml", &yaml(&pinged("local", 4, Some("true"), &json!({"externalTrafficPolicy": "Local"}))));
    node.write("guarded.yaml", &yaml(&pinged("guarded", 5, Some("true"), &ranges)));
    // An endpoint in the network of the node, so that what the node sends to itself is masqueraded.
    let mut here = pinged("here", 7, Some("true"), &json!({}));
    here[1]["endpoints"][0]["addresses"] = json!([NODE_IP]);
    here[2]["endpoints"][0]["addresses"] = json!([NODE_IP_V6]);
    here[1..].iter_mut().for_each(|slice| slice["endpoints"][0]["nodeName"] = json!(NODE_NAME));
    node.write("here.yaml", &yaml(&here));
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    addresses(7).iter().for_each(|address| node.answers(address, true));
    addresses(1).iter().for_each(|address| node.answers(address, true));
    for last in [2, 3] {
        addresses(last).iter().for_each(|address| node.answers(address, false));
    }
    // What is not answered fares as without: a cluster IP refuses, other addresses are none of ours.
    for last in [2, 3] {
        let [cluster, external, balancer] = addresses(last).map(|[v4, _]| ip(&v4));
        assert_eq!(node.world.ping(ip(CLIENT), cluster, SILENCE), Echo::Refused);
        for address in [external, balancer] {
            assert_eq!(node.world.ping(ip(PODS[0]), address, SILENCE), Echo::GoneOn(address));
        }
    }
    // From outside this node has no endpoint for these; and these have ranges.
    for (last, answering) in [(4, [true, false, false]), (5, [true, true, false])] {
        addresses(last).iter().zip(answering).for_each(|(address, expected)| node.answers(address, expected));
    }
    // TCP goes its way.
    node.wait_forward("it is served", "172.30.5.1:80", &["10.1.0.1:8080"]);
    let doctor = run_to_end(&node, true, &["doctor"]).stdout;
    assert!(!doctor.contains("not as it has to be"), "{doctor}");

    // The last endpoint goes and comes back.
    node.replace("asks.yaml", &yaml(&pinged("asks", 1, Some("true"), &json!({}))[..1]));
    node.wait_answer(1, false);
    addresses(1).iter().for_each(|address| node.answers(address, false));
    node.replace("asks.yaml", &yaml(&pinged("asks", 1, Some("true"), &json!({}))));
    node.wait_answer(1, true);
    addresses(1).iter().for_each(|address| node.answers(address, true));

    // What others take away comes back.
    node.nft(&["flush", "set", "ip", "nftproxyd", "ping-ips"]).expect("the table has no owner");
    node.wait_answer(1, true);

    node.replace("asks.yaml", &yaml(&pinged("asks", 1, Some("maybe"), &json!({}))));
    node.wait_answer(1, false);
    node.wait_for_log("the value is named", |line| {
        line.contains(
            "metadata.annotations[nftproxyd.io/ping]: \"maybe\" is neither true nor false; pings are answered",
        )
    });
    node.stop();
    let status = run_to_end(&node, true, &["status"]);
    assert!(!status.stdout.contains("missing") && !status.stdout.contains("not of nftproxyd"), "{status:?}");
}

#[test]
fn all_services_answer_pings_where_that_is_configured() {
    let Some(mut node) = node() else { return };
    node.write("quiet.yaml", &yaml(&pinged("quiet", 2, None, &json!({}))));
    node.write("not.yaml", &yaml(&pinged("not", 6, Some("false"), &json!({}))));
    node.start(&json!({"detectLocalMode": "NodeCIDR", "nftables": {"ping": true}}));
    addresses(2).iter().for_each(|address| node.answers(address, true));
    addresses(6).iter().for_each(|address| node.answers(address, false));
    node.stop();
    // Without the setting nobody does; the set stays, as the table does.
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    node.wait_answer(2, false);
    addresses(2).iter().for_each(|address| node.answers(address, false));
    node.nft(&["list", "set", "ip", "nftproxyd", "ping-ips"]).expect("it is there");
    node.stop();
}
