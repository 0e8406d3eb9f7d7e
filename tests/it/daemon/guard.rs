//! Tables that others can flush: what is done meanwhile to connections that are open. Where the kernel can give tables an
//! owner (Linux 5.12), nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nftproxyd::nftables::LinuxKernel;
use nix::sys::signal::Signal;
use serde_json::json;

use super::instances::{WAITS, another, wait_for};
use super::take_over::{Clients, Owner, node_with_echo};
use super::{Node, PATIENCE, node_object, run_to_end, service_cidr, socket, web, yaml};
use crate::netns::skip;

/// What the daemon says where it can have a guard, and where it cannot.
const STANDS: &str = "tables nftproxyd-guard keep open connections translated";
const NONE: &str = "no guard: tables cannot have an owner on this kernel";

/// Others can change the tables: where the kernel cannot do better that is so by itself.
fn unprotected(node: Node) -> Node {
    let can_own = node.world.run(|| LinuxKernel::open().expect("a socket").can_own().expect("it can be asked"));
    Node { table_owner: if can_own { "off" } else { "auto" }, ..node }
}

/// Starts the daemon. `false` where there is no guard.
fn start(node: &mut Node) -> bool {
    node.start(&json!({}));
    let has =
        node.wait_for_log("a guard or none", |line| line.contains(STANDS) || line.contains(NONE)).contains(STANDS);
    if !has {
        skip("a guard", "this kernel knows no owners of tables");
    }
    has
}

/// Whether there is a guard, as the daemon says.
pub(super) fn stands(node: &Node) -> bool {
    node.log().contains(STANDS)
}

fn listed(node: &Node) -> String {
    node.nft(&["list", "tables"]).expect("tables can be listed")
}

pub(super) const GUARD: &str = "table ip nftproxyd-guard\ntable ip6 nftproxyd-guard\n";
pub(super) const TABLES: &str = "table ip nftproxyd\ntable ip6 nftproxyd\n";

/// Connections on which the server alone speaks, all the time.
struct Pushed {
    /// What the client of each has heard; it adds `CUT` when that comes to an end.
    heard: Vec<Arc<AtomicUsize>>,
}

const CUT: usize = 1 << 32;
const PUSH: Duration = Duration::from_millis(10);

impl Pushed {
    /// Servers at these addresses of the node, and so many clients of each of these frontends.
    fn start(node: &Node, servers: &[&str], frontends: &[&str], clients: usize) -> Pushed {
        for server in servers {
            let at = socket(server);
            node.world.run(move || serve(at));
        }
        let frontends: Vec<SocketAddr> = frontends.iter().map(|frontend| socket(frontend)).collect();
        let heard = frontends.iter().flat_map(|to| (0..clients).map(|_| client(node, *to))).collect();
        Pushed { heard }
    }

    /// How many are cut, and how many have not heard anything for this long.
    fn lost(&self) -> (usize, usize) {
        let heard = || self.heard.iter().map(|heard| heard.load(Ordering::Relaxed));
        let before: Vec<usize> = heard().collect();
        let mut silent = usize::MAX;
        for _ in 0..100 {
            thread::sleep(10 * PUSH);
            silent = heard().zip(&before).filter(|(now, before)| now == *before && *now < CUT).count();
            if silent == 0 {
                break;
            }
        }
        (heard().filter(|heard| *heard >= CUT).count(), silent)
    }
}

fn serve(at: SocketAddr) {
    let listener = TcpListener::bind(at).expect("the address is the node's");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                while stream.write_all(b"x").is_ok() {
                    thread::sleep(PUSH);
                }
            });
        }
    });
}

fn client(node: &Node, to: SocketAddr) -> Arc<AtomicUsize> {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let mut stream =
        node.world.run(move || TcpStream::connect_timeout(&to, PATIENCE)).expect("the Service can be reached");
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            count.fetch_add(length, Ordering::Relaxed);
        }
        count.fetch_add(CUT, Ordering::Relaxed);
    });
    heard
}

#[test]
fn open_connections_live_through_flushes() {
    const EACH: usize = 20;
    let Some(mut node) = Node::new().map(unprotected) else { return };
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"]), service_cidr()]));
    let servers = ["192.0.2.10:8080", "[2001:db8::10]:8080"];
    let mut objects = web("web", "172.30.1.1", &servers[..1]);
    objects.extend(web("six", "fd00:172:30::1", &servers[1..]));
    node.write("web.yaml", &yaml(&objects));
    let has_guard = start(&mut node);
    let pushed = Pushed::start(&node, &servers, &["172.30.1.1:80", "[fd00:172:30::1]:80"], EACH);
    assert_eq!(pushed.lost(), (0, 0), "before");
    for round in 0..3 {
        // The daemon is kept from repairing until every server has sent something.
        node.daemon().signal(Signal::SIGSTOP).expect("the daemon runs");
        node.nft(&["flush", "ruleset"]).expect("anybody may");
        let left = listed(&node);
        thread::sleep(20 * PUSH);
        node.daemon().signal(Signal::SIGCONT).expect("the daemon is there");
        if !has_guard {
            assert_eq!(left, "");
            let (cut, silent) = pushed.lost();
            println!("{} connections, one flush: {cut} are cut, {silent} hear nothing", 2 * EACH);
            assert_eq!(cut + silent, 2 * EACH, "without a guard");
            return;
        }
        assert_eq!(left, GUARD, "round {round}");
        assert_eq!(pushed.lost(), (0, 0), "round {round}");
    }
    for _ in 0..20 {
        node.nft(&["flush", "ruleset"]).expect("anybody may");
        thread::sleep(PUSH);
    }
    node.wait_forward("it is repaired", "172.30.1.1:80", &["192.0.2.10:8080"]);
    node.wait_forward("it is repaired", "[fd00:172:30::1]:80", &["[2001:db8::10]:8080"]);
    assert_eq!(pushed.lost(), (0, 0), "after a storm");
    println!("{} connections, 23 flushes, none lost", 2 * EACH);
    node.stop();
}

#[test]
fn it_ends_with_its_daemon_and_the_next_has_its_own() {
    let Some(mut node) = node_with_echo().map(unprotected) else { return };
    if !start(&mut node) {
        return;
    }
    let clients = Clients::start(&node);
    for killed in [false, true] {
        let report = run_to_end(&node, true, &["doctor"]).stdout;
        let owner = format!("(process {}, nftproxyd): open connections stay translated", node.daemon().id());
        let said: Vec<&str> = report.lines().filter(|line| line.contains("nftproxyd-guard")).collect();
        assert!(
            said.len() == 2 && said.iter().all(|line| line.starts_with("ok ") && line.contains(&owner)),
            "{report}"
        );

        // One that waits has none.
        let next = another(&node);
        wait_for(&next, WAITS);
        assert!(!next.log().contains("guard"), "{}", next.log());
        if killed {
            node.kill();
        } else {
            node.stop();
        }
        node.daemon = Some(next);
        node.wait_for_log("its own", |line| line.contains(STANDS));
        assert_eq!(listed(&node), format!("{TABLES}{GUARD}"), "killed: {killed}");
        assert!(!node.log().contains("no guard"), "{}", node.log());
    }
    clients.stop();
    node.kill();
    assert_eq!(listed(&node), TABLES);
    let removed = run_to_end(&node, true, &["cleanup"]).stdout;
    assert_eq!(removed, "removed table ip nftproxyd\nremoved table ip6 nftproxyd\n");
    assert_eq!(listed(&node), "");
}

#[test]
fn that_of_another_is_waited_for() {
    let Some(mut node) = node_with_echo().map(unprotected) else { return };
    let Some(owner) = Owner::of(&node, "ip6 nftproxyd-guard") else { return };
    node.start(&json!({}));
    let line = node.wait_for_log("why", |line| line.contains("no guard: "));
    assert!(
        line.contains("WARN")
            && line.contains("table ip6 nftproxyd-guard is owned by netlink port ")
            && line.contains(", nft)"),
        "{line}"
    );
    node.stop();
    let ended = run_to_end(&node, true, &["cleanup"]);
    assert_eq!(
        (ended.status, ended.stdout.as_str()),
        (Some(1), "removed table ip nftproxyd\nremoved table ip6 nftproxyd\n")
    );
    let words = "table ip6 nftproxyd-guard is owned by netlink port ";
    assert!(
        ended.stderr.contains(words) && ended.stderr.contains("it goes when that program ends"),
        "{}",
        ended.stderr
    );

    node.start(&json!({}));
    drop(owner);
    node.wait_for_log("its own", |line| line.contains(STANDS));
    let said = node.log().matches("no guard: ").count();
    assert!(said <= 1, "once is enough: {}", node.log());
    node.stop();

    // What nobody owns is of no use to anybody.
    node.nft(&["add table ip nftproxyd-guard; add chain ip nftproxyd-guard theirs"]).expect("it can be made");
    let report = run_to_end(&node, true, &["doctor"]).stdout;
    let words = "check  table ip nftproxyd-guard has no owner: it is of no use\n       fix: nft delete table ip nftproxyd-guard\n";
    assert!(report.contains(words), "{report}");
    let removed = run_to_end(&node, true, &["cleanup"]).stdout;
    assert_eq!(removed, "removed table ip nftproxyd\nremoved table ip6 nftproxyd\nremoved table ip nftproxyd-guard\n");
    assert_eq!(listed(&node), "");
}
