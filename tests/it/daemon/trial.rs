//! `--service-proxy-name`: a daemon that serves only the Services that are labelled for it, beside kube-proxy, of which
//! it touches nothing.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::take_over::{Clients, node_with_echo};
use super::{Node, PATIENCE, run_to_end, socket, web, yaml};
use crate::netns::{has, skip};
use crate::support::daemon::Daemon;
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;

const LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The Service on trial, in the range of cluster IPs: who has not heard of it may drop it.
const TRIED: &str = "172.30.1.50:80";
/// One that is nobody's: it has the label of somebody else.
const OTHERS: &str = "172.30.1.51:80";

fn labelled(name: &str, cluster_ip: &str, endpoint: &str, label: &str) -> Vec<Value> {
    let mut objects = web(name, cluster_ip, &[endpoint]);
    objects[0]["metadata"]["labels"] = json!({LABEL: label});
    objects
}

/// A node on which kube-proxy's rules serve a Service, and on whose ports something listens.
fn node(command: &[&str], rules: &str) -> Option<(Node, [TcpListener; 2])> {
    let node = node_with_echo()?;
    let file = format!("{}/testdata/kube-proxy/{rules}", env!("CARGO_MANIFEST_DIR"));
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).stdin(std::fs::File::open(file).expect("it is there")).stdout(Stdio::null());
    assert!(node.world.run(move || program.status()).expect("it can be run").success());
    let ports = ["0.0.0.0:10256", "127.0.0.1:10249"].map(socket);
    let ports = node.world.run(move || ports.map(|at| TcpListener::bind(at).expect("it is free")));
    node.write("tried.yaml", &yaml(&labelled("tried", "172.30.1.50", "10.1.0.9:8080", "trial")));
    node.write("others.yaml", &yaml(&labelled("others", "172.30.1.51", "10.1.0.9:8080", "somebody")));
    Some((node, ports))
}

/// What the tables of others hold.
fn others(node: &Node) -> String {
    let listing = node.nft(&["list", "ruleset"]).expect("nft works");
    let ours = |table: &&str| !table.contains(" nftproxyd");
    let tables = listing.split_inclusive("\n}\n").filter(ours).map(without_counters);
    tables.collect()
}

fn without_counters(table: &str) -> String {
    let word = |word: &str| if word.parse::<u64>().is_ok() { "N".to_owned() } else { word.to_owned() };
    let line = |line: &str| {
        if line.contains("counter packets") {
            line.split(' ').map(word).collect::<Vec<_>>().join(" ")
        } else {
            line.to_owned()
        }
    };
    table.lines().map(|text| line(text) + "\n").collect()
}

fn established(node: &Node) -> String {
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    node.world.run(move || std::fs::read_to_string(path).expect("connections are tracked"))
}

fn trial(node: &mut Node) {
    // As kube-proxy's own file may have it.
    let config = node.write_config(&json!({
        "healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249",
    }));
    let folder = node.folder();
    let arguments = ["--manifests".as_ref(), folder.as_os_str(), "--config".as_ref(), config.as_os_str()];
    let name = ["--service-proxy-name".as_ref(), "trial".as_ref()];
    node.spawn_with(&[&arguments[..], &name].concat());
    node.wait_for_log("ready", |line| line.contains(" ready"));
}

fn is_tried_beside(command: &[&str], rules: &str) {
    if !has(&[command[0]]) {
        return skip(rules, format!("there is no {}", command[0]));
    }
    let Some((mut node, ports)) = node(command, rules) else { return };
    let (before, timeout) = (others(&node), established(&node));
    assert!(before.contains("172.30.1.7"), "{before}");
    let clients = Clients::start(&node);
    trial(&mut node);
    node.wait_forward("its own", TRIED, &["10.1.0.9:8080"]);
    let other_port = node.fate(Protocol::Tcp, "172.30.1.50:81");
    assert!(matches!(other_port, Fate::Reject(_)), "a port that the Service does not have: {other_port:?}");
    for not_its_own in [OTHERS, "172.30.1.1:80"] {
        assert!(!matches!(node.fate(Protocol::Tcp, not_its_own), Fate::Forward { .. }), "{not_its_own}");
    }
    let map = node.nft(&["list", "map", "ip", "nftproxyd.trial", "service-ips"]).expect("it is there");
    assert!(map.contains("shop/tried") && map.matches("shop/").count() == 1, "{map}");
    assert_eq!(others(&node), before, "nothing of others has changed");
    assert_eq!(established(&node), timeout, "the limits of connection tracking are kube-proxy's");
    let log = node.log();
    assert!(log.contains("port 10256 is left to the kube-proxy beside; 0.0.0.0:10356 is used"), "{log}");
    assert!(!log.contains("cannot listen") && !log.contains("taken over"), "{log}");

    let status = run_to_end(&node, true, &["status", "--service-proxy-name", "trial"]);
    assert!(status.stdout.contains("healthy") && status.stdout.contains("shop/tried"), "{}", status.stdout);
    assert_eq!(status.status, Some(0), "{}", status.stderr);
    let refused = run_to_end(&node, true, &["cleanup", "--service-proxy-name", "trial"]);
    assert!(refused.stderr.contains("another nftproxyd (pid "), "{}", refused.stderr);

    // Another that serves the node takes the rest over from kube-proxy; the one on trial goes on, whoever comes last.
    drop(ports);
    let folder = node.folder();
    let name = format!("--hostname-override={}", super::NODE_NAME);
    let whole = ["run".as_ref(), "--manifests".as_ref(), folder.as_os_str(), name.as_ref(), "--take-over".as_ref()];
    let mut whole = Daemon::start(&node.world, &whole).expect("it can be started");
    whole.wait_for_log(|line| line.contains(" ready"), PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    node.wait_forward("its own", TRIED, &["10.1.0.9:8080"]);
    node.wait_forward("the other's", "172.30.1.1:80", &["10.1.0.1:8080"]);
    // Nobody else serves it: that is known when all is taken over.
    node.wait_fate("a cluster IP that nobody serves", OTHERS, |fate| *fate == Fate::Drop);
    assert!(clients.stop() > 10);

    // It loses the label, and is the other's, once that has had time for it; the table of the trial goes when it is told to.
    node.replace("tried.yaml", &yaml(&web("tried", "172.30.1.50", &["10.1.0.8:8080"])));
    node.wait_forward("the other's", TRIED, &["10.1.0.8:8080"]);
    node.stop();
    let removed = run_to_end(&node, true, &["cleanup", "--service-proxy-name=trial"]);
    let lines = "removed table ip nftproxyd.trial\nremoved table ip6 nftproxyd.trial\n";
    assert_eq!((removed.status, removed.stdout.as_str()), (Some(0), lines), "{}", removed.stderr);
    let tables = node.names_of_tables();
    assert!(tables.contains("table ip nftproxyd\n") && !tables.contains("trial"), "{tables}");
    node.wait_forward("the other's", TRIED, &["10.1.0.8:8080"]);
    assert!(whole.terminate(PATIENCE).expect("it ends").success());
}

#[test]
fn one_service_is_tried_beside_mode_nftables() {
    is_tried_beside(&["nft", "-f", "-"], "nftables.nft");
}

#[test]
fn one_service_is_tried_beside_mode_iptables() {
    is_tried_beside(&["iptables-nft-restore"], "iptables.rules");
}

/// Nothing is touched where what is asked for makes no sense.
#[test]
fn a_trial_takes_nothing_over() {
    let Some(node) = Node::new() else { return };
    let folder = node.folder().display().to_string();
    let run = ["--manifests", &folder, "--service-proxy-name"];
    let ended = run_to_end(&node, true, &[&run[..], &["trial", "--take-over"]].concat());
    assert!(ended.status == Some(1) && ended.stderr.contains("Error: --take-over: not with"), "{}", ended.stderr);
    let ended = run_to_end(&node, true, &[&run[..], &["a b"]].concat());
    assert!(ended.stderr.contains("--service-proxy-name: \"a b\" cannot be the value of a label"), "{}", ended.stderr);
    assert_eq!(node.names_of_tables(), "");
}

/// Without a cluster there is nothing to do, and nothing is done.
#[test]
fn who_knows_no_cluster_changes_nothing() {
    let Some(node) = Node::new() else { return };
    let set = "echo 432000 >/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    let mut command = Command::new("sh");
    command.args(["-c", set]);
    assert!(node.world.run(move || command.status()).expect("a shell").success());
    for arguments in [&[][..], &["run"], &["--kubeconfig=/nowhere/kubeconfig"]] {
        let ended = run_to_end(&node, true, arguments);
        assert_eq!(ended.status, Some(1), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("kubeconfig"), "{}", ended.stderr);
        assert_eq!(ended.stdout.contains("Usage: nftproxyd"), arguments.is_empty(), "{arguments:?}: {}", ended.stdout);
        assert_eq!((established(&node).trim(), node.names_of_tables().as_str()), ("432000", ""), "{arguments:?}");
    }
}
