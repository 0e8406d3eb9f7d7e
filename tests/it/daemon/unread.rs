//! A log that nobody reads.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Node, node_object, web, yaml};
use crate::support::daemon::Daemon;

/// How long a daemon may take to end whose last lines nobody reads.
const END: Duration = Duration::from_secs(30);

/// Services whose transactions, told element by element, are more than may wait to be read.
fn many(nth: usize) -> String {
    let endpoints: Vec<String> = (0..20).map(|host| format!("10.{}.7.{host}:8080", 1 + nth)).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let service = |n: usize| web(&format!("s{n}"), &format!("172.30.{}.{}", 2 + n / 250, n % 250), &endpoints);
    yaml(&(0..500).flat_map(service).collect::<Vec<_>>())
}

fn start(node: &mut Node) {
    node.write("node.yaml", &yaml(&[node_object(&[])]));
    node.write("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.1:8080"])));
    let config = node.write_config(&json!({}));
    let folder = node.folder();
    let arguments = [
        "run".as_ref(),
        "--manifests".as_ref(),
        folder.as_os_str(),
        "--config".as_ref(),
        config.as_os_str(),
        "-v".as_ref(),
        "5".as_ref(),
    ];
    node.daemon = Some(Daemon::start_unheard(&node.world, &arguments).expect("the daemon can be started"));
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_what_is_lost_is_counted() {
    let Some(mut node) = Node::new() else { return };
    start(&mut node);
    node.wait_forward("the first endpoint", "172.30.1.1:80", &["10.1.0.1:8080"]);
    for round in 0..4 {
        node.replace("many.yaml", &many(round));
        let endpoint = format!("10.1.0.{}:8080", 2 + round);
        node.replace("web.yaml", &yaml(&web("web", "172.30.1.1", &[&endpoint])));
        node.wait_forward("another endpoint", "172.30.1.1:80", &[&endpoint]);
        let last = format!("10.{}.7.0:8080", 1 + round);
        let others: Vec<String> = (0..20).map(|host| last.replace(".0:", &format!(".{host}:"))).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        node.wait_forward("another Service", "172.30.3.249:80", &others);
    }
    // Who reads at last hears how much it has missed, and goes on.
    node.daemon().read();
    node.wait_for_log("the count", |line| line.contains(" lines of the log were lost: "));
    node.replace("web.yaml", &yaml(&web("web", "172.30.1.1", &["10.1.0.9:8080"])));
    node.wait_forward("another endpoint", "172.30.1.1:80", &["10.1.0.9:8080"]);
    node.wait_for_log("what comes after it", |line| line.contains("10.1.0.9"));
    let daemon = node.daemon();
    let status = daemon.terminate(END).expect("it ends");
    let log = daemon.log();
    assert!(status.success(), "{status}");
    assert!(log.lines().last().is_some_and(|line| line.ends_with("nftproxyd stops; the rules stay")), "{log}");
}

#[test]
fn a_daemon_whose_log_nobody_reads_ends() {
    let Some(mut node) = Node::new() else { return };
    start(&mut node);
    node.replace("many.yaml", &many(0));
    let endpoints: Vec<String> = (0..20).map(|host| format!("10.1.7.{host}:8080")).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    node.wait_forward("all Services", "172.30.3.249:80", &endpoints);
    let start = Instant::now();
    let status = node.daemon().terminate(END).expect("it ends");
    assert!(status.success(), "{status}");
    println!("it ended after {:?}", start.elapsed());
}
