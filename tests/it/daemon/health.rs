//! What the daemon answers over HTTP.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{NODE_IP, NODE_NAME, Node, OTHER_IP, ip, node_object, socket, web, yaml};
use crate::support::objects::{endpoint_slice, service};
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

/// An HTTP answer: status, head and body.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

/// GET from the node itself; `None` when nobody listens.
pub(super) fn get(node: &Node, server: &str, path: &str) -> Result<Option<Answer>, String> {
    const WAIT: Duration = Duration::from_secs(10);
    let server: SocketAddr = socket(server);
    let path = path.to_owned();
    let text = node.world.run(move || {
        let mut stream = TcpStream::connect_timeout(&server, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.take(1 << 20).read_to_string(&mut text)?;
        io::Result::Ok(text)
    });
    match text {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(text) => {
            let (head, body) = text.split_once("\r\n\r\n").ok_or("no end of the head")?;
            let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or("no status")?;
            Ok(Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() }))
        }
    }
}

/// Waits for an answer of this kind.
pub(super) fn wait_for(
    node: &mut Node,
    what: &str,
    server: &str,
    path: &str,
    wanted: impl Fn(Option<&Answer>) -> bool,
) {
    node.eventually(what, |node| {
        let answer = get(node, server, path)?;
        if wanted(answer.as_ref()) { Ok(()) } else { Err(format!("{server}{path}: {answer:?}")) }
    });
}

/// A Service with a health check, and its slice with so many endpoints on the node and one elsewhere.
pub(super) fn checked(name: &str, cluster_ip: &str, port: u16, local: u8) -> Vec<Value> {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "more", "port": 81, "targetPort": 8080}]
    });
    let mut endpoints = vec![(socket("10.9.0.1:8080"), "elsewhere")];
    endpoints.extend((1..=local).map(|nth| (socket(&format!("10.1.0.{nth}:8080")), NODE_NAME)));
    let slice = endpoint_slice("shop", &format!("{name}-1"), name, ("http", Protocol::Tcp), &endpoints);
    vec![service("shop", name, &[ip(cluster_ip)], &spec), slice]
}

fn body(name: &str, local: usize) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": \
         {local},\n\t\"serviceProxyHealthy\": true\n}}"
    )
}

/// Waits until the health check of a Service says so many local endpoints.
fn wait_for_check(node: &mut Node, what: &str, server: &str, name: &str, local: usize) {
    let status = if local > 0 { 200 } else { 503 };
    let weight = format!("x-load-balancing-endpoint-weight: {local}");
    wait_for(node, what, server, "/", |answer| {
        answer.is_some_and(|answer| {
            answer.status == status
                && answer.body == body(name, local)
                && ["content-type: application/json", "x-content-type-options: nosniff", &weight]
                    .iter()
                    .all(|header| answer.head.lines().any(|line| line == *header))
        })
    });
}

/// A Node that the cluster autoscaler is about to remove.
fn leaving_object() -> Value {
    let mut object = node_object(&[]);
    object["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    object
}

fn refused(answer: Option<&Answer>) -> bool {
    answer.is_none()
}

#[test]
fn health_checks_of_services_follow_them() {
    let Some(mut node) = Node::new() else { return };
    let at = |port: u16| format!("{NODE_IP}:{port}");
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("web.yaml", &yaml(&checked("web", "172.30.1.1", 32000, 2)));
    node.write("api.yaml", &yaml(&checked("api", "172.30.1.2", 32001, 0)));
    node.start(&json!({}));
    wait_for_check(&mut node, "two endpoints", &at(32000), "web", 2);
    wait_for_check(&mut node, "no endpoints", &at(32001), "api", 0);
    wait_for(&mut node, "any path", &at(32000), "/any/path?x", |answer| answer.is_some_and(|a| a.status == 200));
    wait_for(&mut node, "only on the node IP", &format!("{OTHER_IP}:32000"), "/", refused);

    node.replace("web.yaml", &yaml(&checked("web", "172.30.1.1", 32000, 0)));
    wait_for_check(&mut node, "its endpoints went", &at(32000), "web", 0);
    node.replace("api.yaml", &yaml(&checked("api", "172.30.1.2", 32001, 1)));
    wait_for_check(&mut node, "an endpoint came", &at(32001), "api", 1);

    node.replace("web.yaml", &yaml(&checked("web", "172.30.1.1", 32002, 3)));
    wait_for_check(&mut node, "another port", &at(32002), "web", 3);
    wait_for(&mut node, "the port before", &at(32000), "/", refused);

    // A port that another Service has given up.
    node.replace("api.yaml", &yaml(&checked("api", "172.30.1.2", 32000, 1)));
    wait_for_check(&mut node, "the port of another Service", &at(32000), "api", 1);
    wait_for(&mut node, "the port before", &at(32001), "/", refused);

    let mut cluster = checked("web", "172.30.1.1", 32002, 3);
    cluster[0]["spec"]["externalTrafficPolicy"] = json!("Cluster");
    cluster[0]["spec"].as_object_mut().expect("a specification").remove("healthCheckNodePort");
    node.replace("web.yaml", &yaml(&cluster));
    wait_for(&mut node, "no health check any more", &at(32002), "/", refused);
    node.remove("api.yaml");
    wait_for(&mut node, "the Service is gone", &at(32000), "/", refused);
    node.stop();
}

#[test]
fn the_proxy_says_whether_it_is_healthy_where_it_is_told_to() {
    let Some(mut node) = Node::new() else { return };
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.start(&json!({"healthzBindAddress": format!("{OTHER_IP}:10300")}));
    let at = format!("{OTHER_IP}:10300");
    for path in ["/healthz", "/livez"] {
        wait_for(&mut node, path, &at, path, |answer| answer.is_some_and(|answer| answer.status == 200));
    }
    wait_for(&mut node, "another address", &format!("{NODE_IP}:10300"), "/healthz", refused);
    wait_for(&mut node, "the usual port", &format!("{OTHER_IP}:10256"), "/healthz", refused);

    // A node that is about to go gets no new connections from load balancers, but the proxy is alive.
    node.replace("node.yaml", &yaml(&[leaving_object()]));
    wait_for(&mut node, "leaving", &at, "/healthz", |answer| answer.is_some_and(|answer| answer.status == 503));
    wait_for(&mut node, "leaving", &at, "/livez", |answer| answer.is_some_and(|answer| answer.status == 200));
    let eligible = |wanted: bool| {
        move |answer: Option<&Answer>| {
            let (status, body) =
                (if wanted { 200 } else { 503 }, format!("\"nodeEligible\":{wanted},\"healthy\":true"));
            answer.is_some_and(|answer| answer.status == status && answer.body.contains(&body))
        }
    };
    wait_for(&mut node, "leaving", &at, "/healthz", eligible(false));
    node.replace("node.yaml", &yaml(&[node_object(&[])]));
    wait_for(&mut node, "staying", &at, "/healthz", eligible(true));
    let mut deleted = node_object(&[]);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-21T00:00:00Z");
    node.replace("node.yaml", &yaml(&[deleted]));
    wait_for(&mut node, "being deleted", &at, "/healthz", eligible(false));
    // When its object is gone, what it said last counts.
    for (object, wanted) in [(node_object(&[]), true), (leaving_object(), false)] {
        node.replace("node.yaml", &yaml(&[object]));
        wait_for(&mut node, "again", &at, "/healthz", eligible(wanted));
        node.remove("node.yaml");
        let name = format!("after-{wanted}");
        node.write(&format!("{name}.yaml"), &yaml(&web(&name, "172.30.1.9", &["10.1.0.9:8080"])));
        node.wait_forward("changes after that", "172.30.1.9:80", &["10.1.0.9:8080"]);
        wait_for(&mut node, "gone", &at, "/healthz", eligible(wanted));
        node.remove(&format!("{name}.yaml"));
        node.wait_fate("removed", "172.30.1.9:80", |fate| !matches!(fate, Fate::Forward { .. }));
    }
    node.stop();
}

#[test]
fn a_health_check_whose_port_is_busy_is_counted_until_it_is_free() {
    const METRICS: &str = "127.0.0.1:10249";
    let Some(mut node) = Node::new() else { return };
    let at = format!("{NODE_IP}:32000");
    let address = socket(&at);
    let other = node.world.run(move || std::net::TcpListener::bind(address)).expect("nobody else is there");
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("web.yaml", &yaml(&checked("web", "172.30.1.1", 32000, 1)));
    node.start(&json!({}));
    let failing = |number: u8| {
        let sample = format!("\nnftproxyd_health_checks_failing{{ip_family=\"IPv4\"}} {number}\n");
        move |answer: Option<&Answer>| answer.is_some_and(|answer| answer.body.contains(&sample))
    };
    wait_for(&mut node, "it cannot be served", METRICS, "/metrics", failing(1));
    drop(other);
    // Nothing changes in the cluster.
    wait_for_check(&mut node, "the port is free", &at, "web", 1);
    wait_for(&mut node, "it is served", METRICS, "/metrics", failing(0));
    node.stop();
}
