//! The way back to kube-proxy: the tables go when its rules serve, and not before.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use super::take_over::{Clients, connect, node_with_echo};
use super::{Node, PATIENCE, echoes, run_to_end};
use crate::netns::{has, skip};
use crate::support::daemon::Daemon;

/// What the metrics of the kube-proxy beside say, from one to the next.
const NONE: u8 = 0;
const STARTING: u8 = 1;
const SYNCED: u8 = 2;
const END: u8 = 3;

/// Serves the metrics of a kube-proxy in this state.
fn metrics(node: &Node, state: &Arc<AtomicU8>) -> std::thread::JoinHandle<()> {
    let state = Arc::clone(state);
    node.world.run(move || {
        std::thread::spawn(move || {
            let listener = TcpListener::bind("127.0.0.1:10249").expect("the port is free");
            listener.set_nonblocking(true).expect("it can be");
            while state.load(Ordering::Relaxed) != END {
                let Ok((mut stream, _)) = listener.accept() else {
                    sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).expect("it can be");
                let _ = stream.read(&mut [0; 1024]);
                let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
                let [v4, v6] =
                    if state.load(Ordering::Relaxed) == SYNCED { ["1.7e+09", "1.7e+09"] } else { ["1.7e+09", "0"] };
                let body =
                    format!("# HELP {name} x\n{name}{{ip_family=\"IPv4\"}} {v4}\n{name}{{ip_family=\"IPv6\"}} {v6}\n");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
            }
        })
    })
}

/// The rules of kube-proxy for the Service, and no others: what else the tables serve is named, and not waited for for ever.
fn write_rules(node: &Node, command: &[&str], rules: &str) {
    let file = format!("{}/testdata/kube-proxy/{rules}", env!("CARGO_MANIFEST_DIR"));
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).stdin(std::fs::File::open(file).expect("it is there"));
    assert!(node.world.run(move || program.status()).expect("it can be run").success());
}

fn back(command: &[&str], rules: &str) {
    if !has(&command[..1]) {
        return skip(rules, format!("there is no {}", command[0]));
    }
    let Some(mut node) = node_with_echo() else { return };
    node.remove("services.yaml");
    // At the end of an owner its table is replaced, which is another test's affair.
    node.table_owner = "off";
    node.start(&json!({}));
    let (mut stream, clients) = (connect(&node), Clients::start(&node));
    let tables = |node: &Node| node.names_of_tables().matches(" nftproxyd\n").count();
    let refused = run_to_end(&node, true, &["cleanup", "--after-kube-proxy"]);
    assert!(refused.status == Some(1) && refused.stderr.contains("another nftproxyd (pid "), "{}", refused.stderr);
    node.stop();

    let state = Arc::new(AtomicU8::new(NONE));
    let mut cleanup =
        Daemon::start(&node.world, &["cleanup", "--after-kube-proxy", "--stay"]).expect("it can be started");
    let waits =
        |line: &str| line.contains("waiting for kube-proxy, whose metrics are at 127.0.0.1:10249, to write its rules");
    cleanup.wait_for_log(waits, PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    // It starts; one family has been written, and says so; then both say so, but the rules are not there.
    let serving = metrics(&node, &state);
    for now in [STARTING, SYNCED] {
        state.store(now, Ordering::Relaxed);
        sleep(Duration::from_secs(1));
        assert_eq!(tables(&node), 2, "{}", cleanup.log());
        assert!(cleanup.alive(), "{}", cleanup.log());
    }
    write_rules(&node, command, rules);
    let done = |line: &str| line.contains("all is removed; this waits to be stopped");
    cleanup.wait_for_log(done, PATIENCE).unwrap_or_else(|log| panic!("{log}"));
    assert!(cleanup.log().contains("kube-proxy's rules serve what the tables of nftproxyd serve"), "{}", cleanup.log());
    assert_eq!(tables(&node), 0);
    assert!(clients.stop() > 10);
    echoes(&mut stream, "all the time").expect("the connection lives");
    assert!(cleanup.terminate(PATIENCE).expect("it ends").success());
    // Again there is nothing to wait for.
    let again = run_to_end(&node, true, &["cleanup", "--after-kube-proxy"]);
    assert_eq!((again.status, again.stdout.as_str()), (Some(0), "there is no table nftproxyd\n"), "{}", again.stderr);
    state.store(END, Ordering::Relaxed);
    serving.join().expect("no panic");
}

#[test]
fn tables_go_when_mode_nftables_serves() {
    back(&["nft", "-f", "-"], "nftables.nft");
}

#[test]
fn tables_go_when_mode_iptables_serves() {
    back(&["iptables-nft-restore"], "iptables.rules");
}

/// Who is stopped before has removed nothing.
#[test]
fn nothing_goes_where_no_kube_proxy_comes() {
    let Some(mut node) = node_with_echo() else { return };
    node.start(&json!({}));
    node.stop();
    let mut cleanup = Daemon::start(&node.world, &["cleanup", "--after-kube-proxy"]).expect("it can be started");
    cleanup
        .wait_for_log(|line| line.contains("waiting for kube-proxy"), PATIENCE)
        .unwrap_or_else(|log| panic!("{log}"));
    sleep(Duration::from_secs(1));
    let end = cleanup.terminate(PATIENCE).expect("it ends");
    assert!(!end.success(), "{}", cleanup.log());
    assert!(cleanup.log().contains("nothing was removed"), "{}", cleanup.log());
    drop(connect(&node));
}
