//! Source ranges that hold for all that is reached from outside: packets in both families, what is said of them, and what
//! becomes of what others change.

use serde_json::{Value, json};

use super::incidents::{explain, incident, is_well};
use super::{CLIENT, CLIENT_V6, NODE_IP, NODE_IP_V6, NODE_NAME, Node, ip, node_object, run_to_end, socket, yaml};
use crate::support::objects::{endpoint_slice, service};
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

/// Clients of the next range.
const OTHERS: [&str; 2] = ["203.0.114.7", "2001:db8:114::7"];

/// A Service that clients of 203.0.113.0/24 and 2001:db8:113::/48 may use, with one endpoint here and one elsewhere.
fn guarded(name: &str, last: u8, policy: &str) -> Vec<Value> {
    let cluster_ips = [ip(&format!("172.30.4.{last}")), ip(&format!("fd00:172:30::4:{last}"))];
    let port = |name, protocol, number: u16, node_port: u16| json!({"name": name, "protocol": protocol, "port": number, "targetPort": 8080, "nodePort": node_port + u16::from(last)});
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": policy,
        "externalIPs": [format!("198.51.100.{last}"), format!("2001:db8:e::{last}")],
        "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:113::/48"],
        "ports": [port("http", "TCP", 80, 30_400), port("dns", "UDP", 53, 30_500)],
    });
    let mut service = service("shop", name, &cluster_ips, &spec);
    service["metadata"]["annotations"] = json!({"nftproxyd.io/source-ranges-everywhere": "true"});
    let slice = |word: &str, port, protocol, pods: [&str; 2]| {
        let endpoints = [(socket(pods[0]), NODE_NAME), (socket(pods[1]), "elsewhere")];
        endpoint_slice("shop", &format!("{name}-{word}"), name, (port, protocol), &endpoints)
    };
    let (v4, v6) = (["10.1.0.1:8080", "10.1.0.2:8080"], ["[fd00:1::1]:8080", "[fd00:1::2]:8080"]);
    vec![
        service,
        slice("http-4", "http", Protocol::Tcp, v4),
        slice("http-6", "http", Protocol::Tcp, v6),
        slice("dns-4", "dns", Protocol::Udp, v4),
        slice("dns-6", "dns", Protocol::Udp, v6),
    ]
}

fn start() -> Option<Node> {
    let mut node = Node::unprotected()?;
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    node.write("all.yaml", &yaml(&guarded("all", 1, "Cluster")));
    node.write("here.yaml", &yaml(&guarded("here", 2, "Local")));
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    Some(node)
}

/// All that is reached from outside, of the Service with this number: in both families, by TCP and UDP.
fn outside(last: u8) -> [(Protocol, [String; 2]); 4] {
    let at = |v4: &str, v6: &str, port: u16| [format!("{v4}:{port}"), format!("[{v6}]:{port}")];
    let (external, external_v6) = (format!("198.51.100.{last}"), format!("2001:db8:e::{last}"));
    [
        (Protocol::Tcp, at(NODE_IP, NODE_IP_V6, 30_400 + u16::from(last))),
        (Protocol::Udp, at(NODE_IP, NODE_IP_V6, 30_500 + u16::from(last))),
        (Protocol::Tcp, at(&external, &external_v6, 80)),
        (Protocol::Udp, at(&external, &external_v6, 53)),
    ]
}

#[test]
fn node_ports_and_external_ips_are_open_to_the_ranges_only() {
    let Some(mut node) = start() else { return };
    for (last, local) in [(1, false), (2, true)] {
        for (protocol, both) in outside(last) {
            for (family, to) in both.iter().enumerate() {
                let [client, other] = [[CLIENT, CLIENT_V6], OTHERS].map(|clients| ip(clients[family]));
                let here = socket(["10.1.0.1:8080", "[fd00:1::1]:8080"][family]);
                match node.fate_from(client, protocol, to) {
                    Fate::Forward { endpoint, masqueraded, .. } => {
                        assert!(!local || endpoint == here, "{to}: {endpoint}");
                        assert_eq!(masqueraded, Some(!local), "{to}");
                    }
                    fate => panic!("{client} to {to}: {fate:?}"),
                }
                assert_eq!(node.fate_from(other, protocol, to), Fate::Drop, "{other} to {to}");
                // Pods and the node are in no range either.
                for inside in [["10.1.0.99", "fd00:1::99"], [NODE_IP, NODE_IP_V6]] {
                    assert_eq!(node.fate_from(ip(inside[family]), protocol, to), Fate::Drop, "{inside:?} to {to}");
                }
            }
        }
        // The cluster IP is open to all, and so is what is no port of the Service.
        for (other, to) in
            OTHERS.into_iter().zip([format!("172.30.4.{last}:80"), format!("[fd00:172:30::4:{last}]:80")])
        {
            let fate = node.fate_from(ip(other), Protocol::Tcp, &to);
            assert!(matches!(fate, Fate::Forward { .. }), "{other} to {to}: {fate:?}");
        }
        assert!(matches!(node.fate_from(ip(OTHERS[0]), Protocol::Tcp, "192.0.2.10:30399"), Fate::Pass(_)));
    }
    // The node itself, where its address is in a range.
    let mut all = guarded("all", 1, "Cluster");
    all[0]["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.0/24"]);
    node.replace("all.yaml", &yaml(&all));
    let to = format!("{NODE_IP}:30401");
    node.eventually("the node may", |node| match node.fate_from(ip(NODE_IP), Protocol::Tcp, &to) {
        Fate::Forward { .. } => Ok(()),
        fate => Err(format!("{fate:?}")),
    });
    assert_eq!(node.fate_from(ip(CLIENT), Protocol::Tcp, &to), Fate::Drop);

    // Without the annotation all may, and the sets stay.
    all[0]["metadata"]["annotations"] = json!({"nftproxyd.io/source-ranges-everywhere": "sometimes"});
    node.replace("all.yaml", &yaml(&all));
    node.wait_forward("it is open", &to, &["10.1.0.1:8080", "10.1.0.2:8080"]);
    node.wait_for_log("the value is named", |line| {
        line.contains(
            "metadata.annotations[nftproxyd.io/source-ranges-everywhere]: \"sometimes\" is neither true nor false",
        )
    });
    node.nft(&["list", "set", "ip", "nftproxyd", "nodeport-allowed-sources"]).expect("it is there");
    node.stop();
}

#[test]
fn source_ranges_of_a_node_port_are_told() {
    let Some(mut node) = start() else { return };
    for to in [format!("{NODE_IP}:30401"), format!("{NODE_IP}:30402"), "198.51.100.1:80".to_owned()] {
        assert_eq!(node.fate_from(ip(OTHERS[0]), Protocol::Tcp, &to), Fate::Drop);
        let words = "203.0.114.7 is in none of loadBalancerSourceRanges (203.0.113.0/24)";
        incident(&node, &format!("{} {to}", OTHERS[0]), "source-ranges", "dropped", &[words]);
        explain(&node, &format!("{} {to}", OTHERS[0])).is_silent("external-traffic-policy");
        is_well(&node, &format!("{CLIENT} {to}"), &["source-ranges"]);
    }
    let status = run_to_end(&node, true, &["status", "*:30401"]).stdout;
    assert!(status.contains("Cluster, ranges") && status.contains("203.0.113.0/24"), "{status}");
    let doctor = run_to_end(&node, true, &["doctor"]).stdout;
    assert!(!doctor.contains("not as it has to be"), "{doctor}");
    let render = run_to_end(
        &node,
        true,
        &[
            "render",
            "--manifests",
            &node.folder().display().to_string(),
            "--config",
            &node.file("config.yaml").display().to_string(),
        ],
    );
    assert!(render.stdout.contains("goto nodeport-source-ranges-local"), "{}", render.stdout);
    node.stop();
    // Nobody is asked for what only a daemon could say.
    let status = run_to_end(&node, true, &["status", "shop/all"]);
    assert!(status.stdout.contains("Cluster, ranges") && !status.stdout.contains("missing"), "{status:?}");
}
