//! Tables that nobody but the daemon can change (Linux 6.9), and what is left of them when it ends, well or not.

use std::io::{self, Write as _};

use nftproxyd::nftables::LinuxKernel;
use serde_json::{Value, json};

use super::take_over::{Clients, connect, node_with_echo};
use super::{Ended, Node, difference, echoes, run_to_end, web, yaml};

/// A node with an echo server; `None` also where the kernel is too old.
fn node() -> Option<Node> {
    let node = node_with_echo()?;
    let can_own = node.world.run(|| LinuxKernel::open().expect("a socket").can_own().expect("it can be asked"));
    if !can_own {
        writeln!(io::stderr(), "skipped: no tables that persist").expect("a standard error");
    }
    can_own.then_some(node)
}

fn start(node: &mut Node) -> String {
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
    node.wait_for_log("in sync", |line| line.contains(" in sync services="))
}

fn listing(node: &Node) -> String {
    node.nft(&["list", "ruleset"]).expect("a listing")
}

/// How often nft says something of the flags of our tables.
fn flags(node: &Node) -> usize {
    let list = |family| node.nft(&["list", "table", family, "nftproxyd"]).expect("a listing");
    ["ip", "ip6"].map(list).concat().lines().filter(|line| line.starts_with("\tflags")).count()
}

fn run(node: &Node, command: &[&str]) -> String {
    let Ended { status, stdout, stderr } = run_to_end(node, true, command);
    assert_eq!(status, Some(0), "{command:?}: {stdout}{stderr}");
    stdout
}

fn is_as(node: &Node, wanted: &str, what: &str) {
    let tables = node.tables().expect("both tables are there");
    assert!(tables == wanted, "{what}: {}", difference(wanted, &tables));
}

const ATTEMPTS: [&str; 9] = [
    "delete table ip nftproxyd",
    "flush table ip6 nftproxyd",
    "add table ip nftproxyd { flags dormant; }",
    "add rule ip nftproxyd services counter accept",
    "flush chain ip nftproxyd services",
    "add chain ip nftproxyd theirs",
    "add element ip nftproxyd service-ips { 172.30.1.9 . tcp . 81 : drop }",
    "flush map ip nftproxyd endpoints",
    "add counter ip6 nftproxyd theirs",
];

#[test]
fn nobody_else_can_change_the_tables() {
    let Some(mut node) = node() else { return };
    start(&mut node);
    let before = node.tables().expect("both tables are there");
    let mut stream = connect(&node);
    let clients = Clients::start(&node);
    let owner = node.daemon().id();
    for round in 0..5 {
        node.nft(&["add", "table", "inet", "other"]).expect("tables of others can be made");
        for attempt in ATTEMPTS {
            let error = node.world.nft(&["-f", "-"], attempt).expect_err(attempt).to_string();
            assert!(error.contains("Operation not permitted"), "{attempt}: {error}");
        }
        node.nft(&["flush", "ruleset"]).expect("it can be said");
        assert!(!listing(&node).contains("inet other"), "that of another is gone");
        is_as(&node, &before, "after all that");
        echoes(&mut stream, &format!("round {round}")).expect("the connection lives");
    }
    let served = clients.stop();
    assert!(served > 10, "{served} connections are too few to say anything");
    // The daemon can.
    node.replace("more.yaml", &yaml(&web("more", "172.30.1.5", &["10.1.0.5:8080"])));
    node.wait_forward("a change", "172.30.1.5:80", &["10.1.0.5:8080"]);

    for said in [run(&node, &["status"]), run_to_end(&node, true, &["doctor"]).stdout] {
        let owned = said.lines().filter(|line| line.contains("owned by") && line.contains(&format!("process {owner}")));
        assert_eq!(owned.count(), 2, "process {owner}: {said}");
    }
    let status: Value = serde_json::from_str(&run(&node, &["status", "-o", "json"])).expect("JSON");
    for table in 0..2 {
        let table = &status["tables"][table];
        assert_eq!((&table["protection"], &table["ownerPid"]), (&json!("owned"), &json!(owner)), "{table}");
        assert_eq!(table["ownerName"], json!("nftproxyd"), "{table}");
    }
    let ended = run_to_end(&node, true, &["cleanup"]);
    assert_eq!(ended.status, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains(&format!("another nftproxyd (pid {owner}, ")), "{}", ended.stderr);
    let log = node.log();
    assert!(!log.contains("changed by somebody else") && !log.contains("repaired"), "nobody listens: {log}");
    node.stop();
}

#[test]
fn what_a_killed_daemon_leaves_is_adopted() {
    let Some(mut node) = node() else { return };
    start(&mut node);
    let before = node.tables().expect("both tables are there");
    let mut stream = connect(&node);
    let clients = Clients::start(&node);
    node.kill();
    is_as(&node, &before, "the tables stay");
    let report = run_to_end(&node, true, &["doctor"]).stdout;
    assert!(report.contains("table ip nftproxyd, table ip6 nftproxyd lost the daemon that owned it"), "{report}");
    assert!(run(&node, &["status"]).contains("ip nftproxyd: has lost its owner"));
    let line = start(&mut node);
    assert!(line.contains("operations=2 "), "nothing but an owner for each: {line}");
    assert_eq!(node.log().matches("had lost its owner, and is adopted").count(), 2, "{}", node.log());
    is_as(&node, &before, "adopted");
    assert!(node.nft(&["delete", "table", "ip", "nftproxyd"]).is_err(), "they are owned again");

    // Something has changed meanwhile, of the table and of what is wanted.
    node.kill();
    let script = "delete element ip nftproxyd service-ips { 172.30.1.1 . tcp . 80 }
        add counter ip6 nftproxyd theirs";
    node.world.nft(&["-f", "-"], script).expect("everybody may change what has no owner");
    start(&mut node);
    is_as(&node, &before, "repaired");
    let served = clients.stop();
    assert!(served > 10, "{served} connections are too few to say anything");
    echoes(&mut stream, "still").expect("the connection lives");

    // What has no owner goes with everything else.
    node.kill();
    node.nft(&["flush", "ruleset"]).expect("it can be said");
    assert!(node.table("ip").is_err(), "it is gone");
    start(&mut node);
    is_as(&node, &before, "made again");
    node.kill();
    assert_eq!(run(&node, &["cleanup"]), "removed table ip nftproxyd\nremoved table ip6 nftproxyd\n");
    assert_eq!(listing(&node), "");
}

/// The tables without owner are those of a version that knows of none: so is the way back to it.
#[test]
fn a_stop_leaves_tables_that_everybody_can_change_and_read() {
    let Some(mut node) = node() else { return };
    start(&mut node);
    let before = node.tables().expect("both tables are there");
    assert_eq!(flags(&node), 2, "{}", listing(&node));
    let mut stream = connect(&node);
    let clients = Clients::start(&node);
    node.stop();
    assert_eq!(flags(&node), 0, "{}", listing(&node));
    is_as(&node, &before, "stopped");
    let saved = node.nft(&["list", "table", "ip", "nftproxyd"]).expect("a listing");
    // nft before 1.1.0 has its troubles with what a listing of IPv4 says, but can read it.
    let read = node.world.nft(&["-c", "-f", "-"], &saved).map_err(|error| error.to_string());
    assert!(read.as_ref().err().is_none_or(|error| !error.contains("syntax error")), "{read:?}");

    node.table_owner = "off";
    let line = start(&mut node);
    assert!(line.contains("operations=0 "), "they are as without an owner: {line}");
    node.stop();
    is_as(&node, &before, "never owned");

    node.table_owner = "on";
    start(&mut node);
    is_as(&node, &before, "owned again");
    assert_eq!(node.log().matches("has been replaced by one that nobody else can change").count(), 2, "{}", node.log());
    node.stop();
    assert_eq!(flags(&node), 2, "they are left as they are");
    let line = start(&mut node);
    assert!(line.contains("operations=2 "), "nothing but an owner for each: {line}");
    node.stop();

    // Where there is no owner, there is none that has ended either.
    node.table_owner = "off";
    start(&mut node);
    assert_eq!(flags(&node), 0, "{}", listing(&node));
    is_as(&node, &before, "not owned again");
    let served = clients.stop();
    assert!(served > 10, "{served} connections are too few to say anything");
    echoes(&mut stream, "at last").expect("the connection lives");
    node.stop();
}
