//! A cluster with an API server, which is the stand-in of `tests/support/api`.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Node, PATIENCE, slice, web};
use crate::api::{Api, Gone, Verb, Watches, synthetic};
use crate::support::objects::service_cidr;
use crate::support::outcome::{Fate, Passed};

/// A node with an API server in it.
pub(super) fn node_with_api() -> Option<(Node, Api)> {
    let node = Node::new()?;
    let listener = node.world.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("loopback has free ports");
    let api = Api::start(listener);
    std::fs::write(node.file("kubeconfig"), api.kubeconfig()).expect("a file can be written");
    Some((node, api))
}

/// Starts the daemon on the API server, as kube-proxy is started: without a subcommand.
fn spawn(node: &mut Node) {
    let kubeconfig = node.file("kubeconfig");
    let config = node.write_config(&json!({"clientConnection": {"kubeconfig": kubeconfig}}));
    let config = format!("--config={}", config.display());
    node.spawn_with(&[config.as_ref(), "--hostname-override=node-0".as_ref()]);
}

pub(super) fn start(node: &mut Node) {
    spawn(node);
    wait_for_sync(node);
}

fn wait_for_sync(node: &mut Node) -> String {
    node.wait_for_log("in sync", |line| line.contains(" in sync services="))
}

pub(super) fn apply(api: &Api, objects: &[Value]) {
    for object in objects {
        api.apply(object.clone());
    }
}

/// Waits until the API server has been asked for this.
fn wait_for_requests(node: &mut Node, api: &Api, plural: &str, verb: Verb) {
    node.eventually(&format!("{plural} {verb:?}"), |_| match api.requests_for(plural, verb).is_empty() {
        false => Ok(()),
        true => Err("not asked for".to_owned()),
    });
}

fn unallocated_is_dropped(node: &mut Node, what: &str) {
    node.wait_fate(what, "172.30.9.9:80", |fate| *fate == Fate::Drop);
}

#[test]
fn objects_are_listed_page_by_page_and_watched() {
    const SERVICES: usize = 1_100;
    let Some((mut node, api)) = node_with_api() else { return };
    for object in synthetic::cluster(SERVICES, 2) {
        api.apply(object);
    }
    apply(&api, &[service_cidr()]);
    start(&mut node);
    let table = node.table("ip").expect("the table is there");
    assert_eq!(table.matches("comment \"load/service-").count(), SERVICES, "all Services of all pages");
    for plural in ["services", "endpointslices"] {
        let lists = api.requests_for(plural, Verb::List);
        assert!(lists.iter().any(|list| list.continued), "{plural} in pages: {lists:?}");
        assert!(lists.iter().all(|list| list.limit.is_some_and(|limit| limit < SERVICES)), "{plural}: {lists:?}");
    }
    unallocated_is_dropped(&mut node, "the ServiceCIDR");
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    node.wait_forward("a Service comes", "172.30.1.1:80", &["10.1.0.1:8080"]);
    apply(&api, &[slice("web", &["10.1.0.2:8080"])]);
    node.wait_forward("its endpoint changes", "172.30.1.1:80", &["10.1.0.2:8080"]);
    api.delete("EndpointSlice", "shop", "web-1");
    node.wait_fate("its slice goes", "172.30.1.1:80", |fate| matches!(fate, Fate::Reject(_)));
    api.delete("Service", "shop", "web");
    node.wait_fate("it goes", "172.30.1.1:80", |fate| *fate == Fate::Drop);
    node.stop();
}

/// A table of the test's own that loses what goes to and comes from a port, but on connections that begin from now on.
pub(super) fn lose_old_connections(node: &Node, port: u16) {
    let lost = format!(
        "table inet lost {{
            set new {{ type inet_service; flags dynamic; size 1000; }}
            chain lost {{
                type filter hook output priority -300;
                tcp dport {port} tcp flags & (syn | ack) == syn add @new {{ tcp sport }}
                tcp dport {port} tcp sport != @new counter drop
                tcp sport {port} tcp dport != @new counter drop
            }}
        }}"
    );
    node.world.nft(&["-f", "-"], &lost).expect("rules of the test's own");
}

/// The way to the server is lost for the connections that there are, as when a load balancer fails: nobody says so.
#[test]
fn a_connection_that_is_dead_without_a_word_is_given_up() {
    // Bookmarks come once a minute: what only waits for one needs 90 s.
    const PATIENCE: Duration = Duration::from_secs(45);
    let Some((mut node, api)) = node_with_api() else { return };
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    start(&mut node);
    for plural in ["services", "endpointslices"] {
        wait_for_requests(&mut node, &api, plural, Verb::Watch);
    }
    lose_old_connections(&node, api.address().port());
    let began = std::time::Instant::now();
    apply(&api, &web("new", "172.30.1.2", &["10.1.0.2:8080"]));
    while !node.table("ip").expect("the table is there").contains("shop/new") {
        assert!(began.elapsed() < PATIENCE, "nothing new after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("noticed after {:?}", began.elapsed());
    node.wait_forward("what came meanwhile", "172.30.1.2:80", &["10.1.0.2:8080"]);
    node.stop();
}

#[test]
fn changes_are_not_lost_when_versions_expire_or_connections_break() {
    let Some((mut node, api)) = node_with_api() else { return };
    apply(&api, &[service_cidr()]);
    apply(&api, &web("old", "172.30.1.1", &["10.1.0.1:8080"]));
    apply(&api, &web("web", "172.30.1.2", &["10.1.0.1:8080"]));
    start(&mut node);
    for (round, gone) in [None, Some(Gone::InStream), Some(Gone::AsStatus), None].into_iter().enumerate() {
        let what = format!("round {round}, {gone:?}");
        let endpoint = format!("10.1.{round}.2:8080");
        api.disconnect_all();
        api.delete("Service", "shop", "old");
        api.delete("EndpointSlice", "shop", "old-1");
        apply(&api, &[slice("web", &[&endpoint])]);
        if let Some(gone) = gone {
            api.set_gone(gone);
            api.expire();
        }
        // While watches are being resumed.
        apply(&api, &web("late", "172.30.1.3", &[&endpoint]));
        node.wait_forward(&what, "172.30.1.2:80", &[&endpoint]);
        node.wait_forward(&what, "172.30.1.3:80", &[&endpoint]);
        node.wait_fate(&what, "172.30.1.1:80", |fate| *fate == Fate::Drop);
        apply(&api, &web("old", "172.30.1.1", &["10.1.0.1:8080"]));
        api.delete("Service", "shop", "late");
        node.wait_forward(&what, "172.30.1.1:80", &["10.1.0.1:8080"]);
        node.wait_fate(&what, "172.30.1.3:80", |fate| *fate == Fate::Drop);
    }
    assert!(node.daemon().alive());
    node.stop();
}

#[test]
fn nothing_is_written_before_every_kind_was_listed() {
    let Some((mut node, api)) = node_with_api() else { return };
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    // Slow, and the list of one kind fails: all others are there, and watched.
    api.set_list_delay(Duration::from_millis(300));
    api.set_absent(&["nodes"]);
    spawn(&mut node);
    for plural in ["services", "endpointslices", "servicecidrs"] {
        wait_for_requests(&mut node, &api, plural, Verb::Watch);
        assert_eq!(node.names_of_tables(), "", "{plural}");
    }
    wait_for_requests(&mut node, &api, "nodes", Verb::List);
    node.wait_for_log("why", |line| line.contains("kind=Node") && line.contains("nothing is known yet"));
    apply(&api, &[slice("web", &["10.1.0.2:8080"])]);
    assert_eq!(node.names_of_tables(), "", "nothing is written");
    api.set_absent(&[]);
    wait_for_sync(&mut node);
    node.wait_forward("all is listed", "172.30.1.1:80", &["10.1.0.2:8080"]);
    node.stop();
}

#[test]
fn an_api_server_that_fails_is_asked_again() {
    let Some((mut node, api)) = node_with_api() else { return };
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    api.set_status(Some(500));
    spawn(&mut node);
    node.wait_for_log("it fails", |line| line.contains("WARN") && line.contains("cannot read from the API server"));
    assert_eq!(node.names_of_tables(), "", "nothing is known");
    api.set_status(None);
    wait_for_sync(&mut node);
    node.wait_for_log("it answers", |line| line.contains("answers again"));
    node.wait_forward("it answers", "172.30.1.1:80", &["10.1.0.1:8080"]);

    api.set_status(Some(503));
    api.disconnect_all();
    apply(&api, &[slice("web", &["10.1.0.2:8080"])]);
    node.wait_for_log("what is known stays", |line| line.contains("what is known stays in force"));
    node.wait_forward("what is known stays", "172.30.1.1:80", &["10.1.0.1:8080"]);
    api.set_status(None);
    node.wait_forward("it answers again", "172.30.1.1:80", &["10.1.0.2:8080"]);
    node.stop();
}

#[test]
fn watches_that_end_at_once_are_said_once_until_one_lasts() {
    said_once(Watches::End, "without an event");
}

#[test]
fn watches_that_a_gateway_answers_are_said_once_until_one_lasts() {
    let why = "502 Bad Gateway: <html> <body>Please log in.</body> </html>";
    said_once(Watches::Html(502), why);
}

#[test]
fn versions_that_are_always_expired_are_said_once_until_a_watch_lasts() {
    said_once(Watches::Gone(Gone::InStream), "410 Expired");
}

fn said_once(watches: Watches, why: &str) {
    const KINDS: [&str; 4] = ["Service", "EndpointSlice", "Node", "ServiceCIDR"];
    let Some((mut node, api)) = node_with_api() else { return };
    apply(&api, &[service_cidr()]);
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    api.set_watches(watches);
    start(&mut node);
    let begun = |line: &str| line.contains("WARN") && line.contains("cannot read from the API server");
    let ended = |line: &str| line.contains("answers again");
    let about = |line: &str, kind: &str| line.split(' ').any(|word| word == format!("kind={kind}"));
    let count = |node: &Node, wanted: &dyn Fn(&str) -> bool| node.log().lines().filter(|line| wanted(line)).count();
    for kind in KINDS {
        let line = node.wait_for_log("it is said", |line| begun(line) && about(line, kind));
        assert!(line.contains(why) && line.contains("what is known stays in force"), "{line}");
        assert!(line.contains(" since=") && line.contains(" attempts="), "{line}");
    }
    let first = api.requests_for("services", Verb::Watch).len();
    node.eventually("two more attempts", |_| match api.requests_for("services", Verb::Watch).len() {
        attempts if attempts >= first + 2 => Ok(()),
        attempts => Err(format!("{attempts} attempts")),
    });
    assert_eq!(count(&node, &begun), 4, "once for each kind\n{}", node.log());
    assert_eq!(count(&node, &ended), 0, "nothing is followed yet\n{}", node.log());
    let lists = count(&node, &|line| line.contains("INFO") && line.contains("listing again"));
    assert!(lists <= 4, "{lists} lines\n{}", node.log());
    node.wait_forward("what is known stays in force", "172.30.1.1:80", &["10.1.0.1:8080"]);

    // Nothing changes: it is watches that last.
    api.set_watches(Watches::Follow);
    for kind in KINDS {
        node.wait_for_log("it is over", |line| ended(line) && about(line, kind));
    }
    assert_eq!(count(&node, &begun), 4, "{}", node.log());
    apply(&api, &web("late", "172.30.1.3", &["10.1.0.3:8080"]));
    node.wait_forward("it is followed", "172.30.1.3:80", &["10.1.0.3:8080"]);
    // A kind that never changes is as good as new, too: the next fault is said again, and is the first.
    api.set_status(Some(503));
    api.disconnect_all();
    for kind in KINDS {
        let anew = |line: &str| begun(line) && about(line, kind) && line.contains("503");
        let line = node.wait_for_log("it fails anew", anew);
        assert!(line.contains("attempts=1 "), "{line}");
    }
    node.stop();
}

#[test]
fn an_object_that_cannot_be_read_is_named_and_stops_nothing() {
    let Some((mut node, api)) = node_with_api() else { return };
    let bad = |name: &str, address: &str| {
        let mut objects = web(name, address, &["10.1.0.9:8080"]);
        objects[0]["spec"]["ports"] = json!("eighty");
        objects
    };
    apply(&api, &bad("bad", "172.30.1.1"));
    apply(&api, &web("web", "172.30.1.2", &["10.1.0.1:8080"]));
    start(&mut node);
    let named = |name: &'static str| move |line: &str| line.contains(name) && line.contains("spec.ports");
    node.wait_for_log("in a list", named("shop/bad"));
    node.wait_forward("beside it", "172.30.1.2:80", &["10.1.0.1:8080"]);
    apply(&api, &bad("worse", "172.30.1.3"));
    apply(&api, &[slice("web", &["10.1.0.2:8080"])]);
    node.wait_for_log("in a watch", named("shop/worse"));
    node.wait_forward("behind it", "172.30.1.2:80", &["10.1.0.2:8080"]);
    apply(&api, &web("bad", "172.30.1.1", &["10.1.0.3:8080"]));
    node.wait_for_log("repaired", |line| line.contains("shop/bad") && line.contains("nothing is wrong any more"));
    node.wait_forward("repaired", "172.30.1.1:80", &["10.1.0.3:8080"]);
    node.stop();
}

#[test]
fn service_cidrs_are_optional() {
    let Some((mut node, api)) = node_with_api() else { return };
    api.set_absent(&["servicecidrs"]);
    apply(&api, &[service_cidr()]);
    apply(&api, &web("web", "172.30.1.1", &["10.1.0.1:8080"]));
    start(&mut node);
    node.wait_for_log("it is said", |line| line.contains("no ServiceCIDRs to read"));
    node.wait_forward("a Service", "172.30.1.1:80", &["10.1.0.1:8080"]);
    node.wait_fate("an unallocated address", "172.30.9.9:80", |fate| *fate == Fate::Pass(Passed::Out));
    node.stop();
}

#[test]
fn a_large_cluster_takes_little_memory_and_small_changes_little_work() {
    const SERVICES: usize = 10_000;
    const LIMIT: u64 = 64 << 20;
    // For a moment there are the elements of the kernel as well, to be compared.
    const LIMIT_AFTER_READING_BACK: u64 = 128 << 20;
    let Some((mut node, api)) = node_with_api() else { return };
    for object in synthetic::cluster(SERVICES, 10) {
        api.apply(object);
    }
    spawn(&mut node);
    let started = |line: &str| line.contains(&format!(" in sync services={SERVICES} "));
    node.daemon().wait_for_log(started, 5 * PATIENCE).unwrap_or_else(|log| panic!("in sync: {log}"));
    let after_start = node.daemon().resident_memory().expect("the daemon runs");

    // One endpoint of ten is replaced: nothing but elements of this Service.
    let mut changed = synthetic::slice(5_000, 10);
    changed["endpoints"][3]["addresses"] = json!(["10.1.0.1"]);
    let log_before = node.log().lines().count();
    api.apply(changed);
    node.eventually("the endpoint is there", |node| {
        let element = "get element ip nftproxyd endpoints { 10.96.19.136 . tcp . 80 . 3 }";
        let found = node.nft(&element.split(' ').collect::<Vec<_>>()).map_err(|error| error.to_string())?;
        if found.contains("10.1.0.1 . 8080") { Ok(()) } else { Err(found) }
    });
    node.eventually("the sync is in the log", |node| {
        let operations: usize = node.log().lines().skip(log_before).filter_map(operations).sum();
        match operations {
            0 => Err("no sync".to_owned()),
            1..=10 => Ok(()),
            many => panic!("{many} operations for one endpoint\n{}", node.log()),
        }
    });
    let memory = node.daemon().resident_memory().expect("the daemon runs");
    println!("{SERVICES} Services x 10 endpoints: {} KiB after the start, {} KiB now", after_start >> 10, memory >> 10);
    assert!(after_start.max(memory) < LIMIT, "{} and {} KiB resident", after_start >> 10, memory >> 10);

    for killed in [true, false] {
        if killed {
            node.kill();
        } else {
            node.stop();
        }
        spawn(&mut node);
        let line = node.daemon().wait_for_log(started, 5 * PATIENCE).unwrap_or_else(|log| panic!("in sync: {log}"));
        // What has lost its owner is read back and compared; what never had one is replaced at once.
        let nothing = ["operations=0 ", "operations=2 "].iter().any(|nothing| line.contains(nothing));
        assert!(nothing || !killed, "nothing is sent: {line}");
        let memory = node.daemon().resident_memory().expect("the daemon runs");
        println!("{} KiB after a restart, killed: {killed}: {line}", memory >> 10);
        assert!(memory < LIMIT_AFTER_READING_BACK, "{} KiB resident", memory >> 10);
    }
    node.stop();
}

/// The operations of the sync that a line of the log is about.
fn operations(line: &str) -> Option<usize> {
    let (_, rest) = line.split_once(" synced ")?;
    rest.split(' ').find_map(|field| field.strip_prefix("operations=")?.parse().ok())
}
