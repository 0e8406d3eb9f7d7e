//! What the daemon says of how it follows its API server.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::{apply, node_with_api, start};
use super::{Ended, Node, run_to_end, web};
use crate::api::Api;
use crate::support::http::{self, Answer};
use crate::support::objects::service_cidr;

const KINDS: [&str; 4] = ["EndpointSlice", "Node", "Service", "ServiceCIDR"];
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// What the metrics say of each kind.
fn followed(node: &Node) -> Vec<Option<bool>> {
    let text = http::body(&node.world, METRICS, "/metrics").unwrap_or_default();
    let of = |kind: &str| {
        let name = format!("nftproxyd_source_following{{kind=\"{kind}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map(|value| value == "1")
    };
    KINDS.iter().map(|kind| of(kind)).collect()
}

pub(super) fn wait_followed(node: &mut Node, wanted: bool) -> Duration {
    let began = Instant::now();
    node.eventually(&format!("followed: {wanted}"), |node| match followed(node) {
        all if all.iter().all(|kind| *kind == Some(wanted)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    began.elapsed()
}

fn doctor(node: &Node) -> Ended {
    run_to_end(node, true, &["doctor"])
}

#[test]
fn a_cluster_that_is_not_followed_is_not_said_to_be() {
    let Some((mut node, api)) = node_with_api() else { return };
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    let this = || json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0"}});
    apply(&api, &[service_cidr(), this()]);
    start(&mut node);
    wait_followed(&mut node, true);
    let status = run_to_end(&node, true, &["status"]).stdout;
    let lines: Vec<&str> = status.lines().collect();
    assert!(lines[0].ends_with(", healthy"), "{status}");
    assert!(
        lines[1].starts_with("cluster   follows EndpointSlice, Node, Service, ServiceCIDR; heard of each"),
        "{status}"
    );
    assert!(lines[2].starts_with("IPv4      in sync; "), "{status}");
    let found = doctor(&node);
    assert!(found.stdout.starts_with("ok     the daemon runs: nftproxyd "), "{}", found.stdout);

    assert!(found.stdout.contains("\nok     the daemon follows EndpointSlice, "), "{}", found.stdout);

    let address = api.address();
    drop(api);
    let lost = wait_followed(&mut node, false);
    println!("lost after {lost:?}");
    assert!(lost < Duration::from_secs(10), "it shall be said within 5 s: {lost:?}");
    let log = node.log();
    for kind in KINDS {
        let warns = |line: &&str| line.contains("WARN") && line.contains(&format!("kind={kind} "));
        let warning = log.lines().find(warns).unwrap_or_else(|| panic!("{kind}: {log}"));
        assert!(warning.contains("what is known stays in force") && warning.contains("since="), "{warning}");
    }
    let status = run_to_end(&node, true, &["status"]).stdout;
    let lines: Vec<&str> = status.lines().collect();
    assert!(lines[0].ends_with(", healthy, but DOES NOT FOLLOW the API server"), "{status}");
    assert!(
        lines[1].starts_with("cluster   NOT FOLLOWED: EndpointSlice for ") && lines[1].contains("refused"),
        "{status}"
    );
    assert!(lines[2].starts_with("IPv4      in sync with what is known; "), "{status}");
    let page = super::health::get(&node, "127.0.0.1:10249", "/statusz").expect("it answers").expect("it listens").body;
    let is_there = |line: &str| page.lines().any(|of_page| of_page.starts_with(line));
    assert!(is_there("cluster   NOT FOLLOWED: EndpointSlice for ") && is_there("IPv4      in sync with "), "{page}");
    let json: Value = serde_json::from_str(&run_to_end(&node, true, &["status", "-o", "json"]).stdout).expect("JSON");
    let service = &json["daemon"]["kinds"]["Service"];
    assert_eq!(service["followed"], "Lost", "{json}");
    assert!(service["heardSecondsAgo"].is_u64() && service["reason"].is_string(), "{json}");
    let found = doctor(&node);
    assert_eq!(found.status, Some(1), "{}", found.stdout);
    assert!(
        found.stdout.contains("\nWRONG  the daemon does not follow the API server: NOT FOLLOWED: "),
        "{}",
        found.stdout
    );
    // As kube-proxy has it: what it serves goes on.
    assert_eq!(http::get(&node.world, HEALTH, "/healthz"), Answer::Status(200));
    node.wait_forward("what is known", "172.30.1.1:80", &["10.1.0.1:8080"]);

    let api = Api::start(node.world.run(move || TcpListener::bind(address)).expect("the same port"));
    apply(&api, &web("new", "172.30.1.2", &["10.1.0.2:8080"]));
    apply(&api, &[service_cidr(), this()]);
    wait_followed(&mut node, true);
    node.wait_forward("what is new", "172.30.1.2:80", &["10.1.0.2:8080"]);
    let log = node.log();
    for kind in KINDS {
        let answers = |line: &&str| line.contains("answers again") && line.ends_with(&format!("kind={kind}"));
        assert_eq!(log.lines().filter(answers).count(), 1, "{kind}: {log}");
    }
    assert!(run_to_end(&node, true, &["status"]).stdout.contains("\nIPv4      in sync; "));
    assert!(!doctor(&node).stdout.contains("WRONG"));
    node.stop();
}

/// Where nothing is followed, nothing is claimed of it.
#[test]
fn manifests_are_not_followed_at_an_api_server() {
    let Some(mut node) = Node::new() else { return };
    node.write("web.yaml", &super::yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    node.start(&json!({}));
    assert_eq!(followed(&node), [None; 4]);
    let status = run_to_end(&node, true, &["status"]).stdout;
    assert!(!status.contains("cluster"), "{status}");
    let found = doctor(&node);
    assert!(found.stdout.contains("\nok     manifests are read, no API server is followed\n"), "{}", found.stdout);
    node.stop();
}
