//! The page to look at, on the metrics port.

use serde_json::{Value, json};

use super::{Node, health, ip, node_object, slice_of, web, yaml};
use crate::support::objects::service;
use crate::support::packet::Protocol;

const METRICS: &str = "127.0.0.1:10249";

/// A Service without endpoints.
fn lonely(name: &str, cluster_ip: &str, patch: &Value) -> Value {
    let mut spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    crate::support::objects::merge(&mut spec, patch);
    service("shop", name, &[ip(cluster_ip)], &spec)
}

fn wait_for_page(node: &mut Node, what: &str, parts: &[&str], absent: &[&str]) {
    node.eventually(what, |node| {
        let page = health::get(node, METRICS, "/statusz")?.ok_or("nobody listens")?.body;
        // Below is what has changed.
        let (page, changes) = page.split_once("\nlast changes\n").ok_or("no changes")?;
        if !changes.contains(" shop/") || !changes.contains(": written in ") {
            return Err(format!("no change: {changes}"));
        }
        let has = |part: &&&str| page.contains(**part);
        match parts.iter().find(|part| !has(part)).or(absent.iter().find(has)) {
            Some(part) => Err(format!("{part:?}: {page}")),
            None => Ok(()),
        }
    });
}

#[test]
fn what_is_refused_or_dropped_is_named_with_the_reason() {
    let Some(mut node) = Node::new() else { return };
    let elsewhere = |name: &str, port: &str, ready: bool| {
        let mut slice = slice_of(name, (port, Protocol::Tcp), &["10.9.0.1:8080", "10.9.0.2:8080"]);
        for endpoint in slice["endpoints"].as_array_mut().expect("there are some") {
            endpoint["conditions"] = json!({"ready": ready});
            endpoint["nodeName"] = json!("elsewhere");
        }
        slice
    };
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    let empty = || lonely("empty", "172.30.1.2", &json!({}));
    node.write("empty.yaml", &yaml(&[empty()]));
    let slow = [lonely("slow", "172.30.1.3", &json!({})), elsewhere("slow", "http", false)];
    node.write("slow.yaml", &yaml(&slow));
    let wrong = [lonely("wrong", "172.30.1.4", &json!({})), elsewhere("wrong", "https", true)];
    node.write("wrong.yaml", &yaml(&wrong));
    let local = json!({"internalTrafficPolicy": "Local"});
    let away = [lonely("away", "172.30.1.5", &local), elsewhere("away", "http", true)];
    node.write("away.yaml", &yaml(&away));
    node.start(&json!({}));
    let parts = [
        "\ndaemon    nftproxyd ",
        ", healthy\n",
        "\nIPv4      in sync; ",
        "\nIPv6      in sync; ",
        "\nfrontends IPv4: 5, of which 3 are refused, 1 dropped\n",
        "\n          shop/empty:http refused: there is no EndpointSlice of IPv4\n",
        "\n          shop/slow:http refused: none of 2 endpoints is ready\n",
        "\n          shop/wrong:http refused: no endpoint has the port \"http\" (tcp)\n",
        "\n          shop/away:http dropped: its traffic policy is Local, and only other nodes have endpoints\n",
        "\nfrontends IPv6: 0, of which 0 are refused, 0 dropped\n",
    ];
    wait_for_page(&mut node, "all of them", &parts, &["shop/web", "more ports"]);

    node.replace("empty.yaml", &yaml(&[empty(), slice_of("empty", ("http", Protocol::Tcp), &["10.1.0.2:8080"])]));
    let parts = ["\nfrontends IPv4: 5, of which 2 are refused, 1 dropped\n"];
    wait_for_page(&mut node, "an endpoint has come", &parts, &["shop/empty"]);
    node.remove("away.yaml");
    let parts = ["\nfrontends IPv4: 4, of which 2 are refused, 0 dropped\n"];
    wait_for_page(&mut node, "a Service has gone", &parts, &["shop/away"]);

    let many = (0..30).map(|nth| lonely(&format!("many-{nth:02}"), &format!("172.30.2.{nth}"), &json!({})));
    node.write("many.yaml", &yaml(&many.collect::<Vec<_>>()));
    let parts = [
        "\nfrontends IPv4: 34, of which 32 are refused, 0 dropped\n",
        "\n          shop/many-19:http refused: there is no EndpointSlice of IPv4\n",
        "\n          and 12 more ports of Services\n",
    ];
    wait_for_page(&mut node, "many", &parts, &["shop/many-20", "shop/slow"]);

    // A new daemon finds the tables, and says the same.
    node.stop();
    node.start(&json!({}));
    wait_for_page(&mut node, "after a start", &parts, &["shop/many-20", "shop/slow"]);
    let flags = health::get(&node, METRICS, "/flagz").expect("it answers").expect("it listens").body;
    let config = node.file("config.yaml").display().to_string();
    for flag in [format!("\nconfig={config}\n"), "\nv=2\n".to_owned(), "\ncleanup=false\n".to_owned()] {
        assert!(flags.contains(&flag), "{flag}: {flags}");
    }
    node.stop();
}
