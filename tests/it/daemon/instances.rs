//! Two daemons on one node: one serves, the other waits for its end.

use std::ffi::OsString;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::take_over::{Clients, connect, node_with_echo};
use super::{Node, PATIENCE, echoes, run_to_end, web, yaml};
use crate::support::daemon::Daemon;

pub(super) const WAITS: &str = "serves this node as node-a since ";

/// Starts a daemon beside whichever is there.
pub(super) fn another(node: &Node) -> Daemon {
    let (folder, config) = (node.folder(), node.write_config(&serde_json::json!({})));
    let owner = format!("--table-owner={}", node.table_owner).into();
    let manifests = ["run".into(), "--manifests".into(), folder.into()];
    let arguments = manifests.into_iter().chain(["--config".into(), config.into(), "-v".into(), "2".into(), owner]);
    let arguments: Vec<OsString> = arguments.collect();
    Daemon::start(&node.world, &arguments).expect("the daemon can be started")
}

pub(super) fn wait_for(daemon: &Daemon, words: &str) -> String {
    daemon.wait_for_log(|line| line.contains(words), PATIENCE).unwrap_or_else(|log| panic!("{words}: {log}"))
}

/// A Service that is new reaches the tables.
fn something_new_is_served(node: &mut Node, number: u8) {
    let address = format!("172.30.9.{number}");
    node.write(&format!("new-{number}.yaml"), &yaml(&web(&format!("new-{number}"), &address, &["10.1.0.9:8080"])));
    node.wait_forward("what is new", &format!("{address}:80"), &["10.1.0.9:8080"]);
}

#[test]
fn one_serves_and_another_waits_until_it_ends() {
    let Some(mut node) = node_with_echo() else { return };
    node.start(&serde_json::json!({}));
    let mut stream = connect(&node);
    let clients = Clients::start(&node);
    let second = another(&node);
    let third = another(&node);
    for waiting in [&second, &third] {
        let line = wait_for(waiting, WAITS);
        assert!(line.contains("another nftproxyd (pid ") && line.ends_with("; waiting until it ends"), "{line}");
    }
    // They would have been at it by now.
    sleep(Duration::from_millis(500));
    for waiting in [&second, &third] {
        let log = waiting.log();
        assert_eq!(log.matches(WAITS).count(), 1, "{log}");
        for word in ["nf_conntrack", "serving /", "in sync", "WARN"] {
            assert!(!log.contains(word), "{word}: {log}");
        }
    }
    assert!(!node.log().contains("changed by somebody else"), "{}", node.log());
    something_new_is_served(&mut node, 1);

    // It is told to end; one of the two follows.
    node.stop();
    let end = std::time::Instant::now() + PATIENCE;
    while !second.log().contains(" ready") && !third.log().contains(" ready") {
        assert!(std::time::Instant::now() < end, "{}\n{}", second.log(), third.log());
        sleep(Duration::from_millis(10));
    }
    let (mut serving, mut waiting) = if second.log().contains(" ready") { (second, third) } else { (third, second) };
    assert!(!waiting.log().contains("in sync"), "{}", waiting.log());
    something_new_is_served(&mut node, 2);
    // It is killed; the last one follows.
    serving.kill();
    wait_for(&waiting, " ready");
    something_new_is_served(&mut node, 3);
    let served = clients.stop();
    assert!(served > 10, "{served} connections are too few to say anything");
    echoes(&mut stream, "after all of them").expect("the connection lives");
    assert!(!waiting.log().contains("repaired"), "{}", waiting.log());
    assert!(waiting.terminate(PATIENCE).expect("it ends").success());
}

#[test]
fn who_waits_ends_when_it_is_told_to() {
    let Some(mut node) = node_with_echo() else { return };
    node.start(&serde_json::json!({}));
    let before = node.tables().expect("the tables are there");
    let mut second = another(&node);
    wait_for(&second, WAITS);
    second.signal(Signal::SIGUSR1).expect("it is there");
    assert!(second.terminate(PATIENCE).expect("it ends").success(), "{}", second.log());
    assert_eq!(node.tables().expect("the tables are there"), before);
    node.stop();
}

#[test]
fn nothing_is_cleaned_up_below_a_daemon() {
    let Some(mut node) = node_with_echo() else { return };
    node.start(&serde_json::json!({}));
    for command in [&["cleanup"][..], &["run", "--cleanup"]] {
        let ended = run_to_end(&node, true, command);
        assert_eq!(ended.status, Some(1), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(WAITS) && ended.stderr.contains(": stop it first; nothing was removed"),
            "{}",
            ended.stderr
        );
    }
    node.tables().expect("the tables are there");
    node.stop();
    assert_eq!(run_to_end(&node, true, &["cleanup"]).status, Some(0));
    node.tables().expect_err("they are gone");
}

/// What anybody may do must not keep the proxy from its work.
#[test]
fn who_may_not_write_tables_keeps_nobody_from_it() {
    let Some(mut node) = node_with_echo() else { return };
    // perl-base is part of every Debian.
    let script = "socket(S, AF_UNIX, SOCK_STREAM, 0) && bind(S, pack_sockaddr_un(\"\\0nftproxyd\")) && listen(S, 9) \
                  or die $!; $| = 1; print \"bound\\n\"; sleep 600";
    let arguments = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", "perl", "-MSocket", "-e", script];
    let squatter = Daemon::start_program(&node.world, "setpriv", &arguments).expect("it can be started");
    wait_for(&squatter, "bound");
    node.start(&serde_json::json!({}));
    node.wait_for_log("a warning", |line| line.contains("WARN") && line.contains("this one serves beside it"));
    something_new_is_served(&mut node, 1);
    node.stop();
    drop(squatter);
}
