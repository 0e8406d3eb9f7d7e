//! What the daemon leaves behind when it ends, what it does when it starts again, and what it repairs.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    NODE_IP, Node, difference, echo_server, echoes, node_object, service_cidr, socket, web, write_everything, yaml,
};
use crate::support::http;
use crate::support::outcome::Fate;

fn start(node: &mut Node) {
    node.start(&json!({"detectLocalMode": "NodeCIDR"}));
}

/// Waits until both tables are as they were.
fn wait_for_tables(node: &mut Node, what: &str, wanted: &str) {
    node.eventually(what, |node| match node.tables() {
        Ok(tables) if tables == wanted => Ok(()),
        Ok(tables) => Err(difference(wanted, &tables)),
        Err(error) => Err(error.to_string()),
    });
}

#[test]
fn foreign_changes_are_repaired() {
    let Some(mut node) = Node::unprotected() else { return };
    write_everything(&node);
    const OTHER: &str =
        "table inet other {\n set s { type inet_service; elements = { 1, 2 }; }\n chain c { accept; }\n}\n";
    start(&mut node);
    let before = node.tables().expect("both tables are there");
    let damages: &[(&str, &[&str])] = &[
        ("a table deleted", &["delete table ip nftproxyd"]),
        ("both tables deleted", &["delete table ip nftproxyd", "delete table ip6 nftproxyd"]),
        ("everything flushed", &["flush ruleset"]),
        ("rules flushed", &["flush table ip nftproxyd"]),
        ("a chain flushed", &["flush chain ip6 nftproxyd cluster-pick-2"]),
        ("elements flushed", &["flush map ip nftproxyd service-ips", "flush map ip nftproxyd endpoints"]),
        ("a frontend deleted", &["delete element ip nftproxyd service-ips { 172.30.1.1 . tcp . 80 }"]),
        (
            "what is done with each kind flushed",
            &["flush map ip nftproxyd dispatch", "flush map ip6 nftproxyd dispatch-last"],
        ),
        ("an endpoint deleted", &["delete element ip6 nftproxyd endpoints { fd00:172:30::1 . tcp . 80 . 1 }"]),
        ("a source range deleted", &["flush set ip nftproxyd allowed-sources"]),
        ("a frontend added", &["add element ip nftproxyd service-ips { 172.30.1.9 . tcp . 81 : f800:1 }"]),
        ("an endpoint added", &["add element ip nftproxyd endpoints { 172.30.1.1 . tcp . 80 . 7 : 10.9.9.9 . 9 }"]),
        (
            "a frontend replaced",
            &[
                "delete element ip nftproxyd service-ips { 172.30.1.1 . tcp . 80 }",
                "add element ip nftproxyd service-ips { 172.30.1.1 . tcp . 80 : f800:1 }",
            ],
        ),
        ("a rule added", &["add rule ip nftproxyd cluster-pick-1 counter accept"]),
        ("a rule inserted", &["insert rule ip6 nftproxyd cluster-pick-2 accept"]),
        ("a chain added", &["add chain ip nftproxyd stranger", "add rule ip nftproxyd stranger accept"]),
        ("a set added", &["add set ip nftproxyd strangers { type inet_service; }"]),
        ("a table asleep", &["add table ip6 nftproxyd { flags dormant; }"]),
        ("both tables asleep", &DORMANT),
        ("a table asleep and flushed", &[DORMANT[0], "flush table ip nftproxyd"]),
    ];
    for (what, commands) in damages {
        node.world.nft(&["-f", "-"], OTHER).expect("another table can be made");
        let other = || ["list", "table", "inet", "other"];
        let other_before = node.nft(&other()).expect("another table is there");
        let script: String = commands.iter().map(|command| format!("{command}\n")).collect();
        node.world.nft(&["-f", "-"], &script).unwrap_or_else(|error| panic!("{what}: {error}"));
        wait_for_tables(&mut node, what, &before);
        if commands.contains(&"flush ruleset") {
            assert!(node.nft(&other()).is_err(), "{what}: another table is not ours to restore");
        } else {
            assert_eq!(node.nft(&other()).expect("another table is there"), other_before, "{what}");
            node.nft(&["delete", "table", "inet", "other"]).expect("another table is there");
        }
    }
    // And it goes on to follow changes.
    node.replace("more.yaml", &yaml(&web("more", "172.30.1.5", &["10.1.0.5:8080"])));
    node.wait_forward("after all that", "172.30.1.5:80", &["10.1.0.5:8080"]);
    node.stop();
}

/// What an administrator types to switch our rules off.
const DORMANT: [&str; 2] = ["add table ip nftproxyd { flags dormant; }", "add table ip6 nftproxyd { flags dormant; }"];

/// A dormant table looks complete, and no packet meets it: packets decide.
#[test]
fn a_dormant_table_is_awoken() {
    const WEB: (&str, &[&str]) = ("172.30.1.1:80", &["10.1.0.1:8080"]);
    const WEB_SIX: (&str, &[&str]) = ("[fd00:172:30::1]:80", &["[fd00:1::1]:8080", "[fd00:1::2]:8080"]);
    let Some(mut node) = Node::unprotected() else { return };
    write_everything(&node);
    let serve = |node: &mut Node, what: &str| {
        for (to, endpoints) in [WEB, WEB_SIX] {
            node.wait_forward(what, to, endpoints);
        }
    };
    let asleep = |node: &mut Node, what: &str| {
        node.world.nft(&["-f", "-"], &DORMANT.join("\n")).expect("anybody may change the tables");
        for (to, _) in [WEB, WEB_SIX] {
            node.wait_fate(what, to, |fate| matches!(fate, Fate::Pass(_)));
        }
    };
    asleep(&mut node, "before the first start, empty");
    start(&mut node);
    serve(&mut node, "started with sleeping tables");
    let before = node.tables().expect("both tables are there");
    for killed in [true, false] {
        if killed {
            node.kill();
        } else {
            node.stop();
        }
        asleep(&mut node, "without the daemon");
        start(&mut node);
        serve(&mut node, "started again");
        node.wait_for_log("what was wrong", |line| line.contains("table ip nftproxyd was dormant"));
        node.wait_for_log("what was wrong", |line| line.contains("table ip6 nftproxyd was dormant"));
        assert_eq!(node.tables().expect("both tables are there"), before, "killed: {killed}");
    }
    for round in 0..5 {
        let awake = node.log().matches("it is awake again").count();
        node.world.nft(&["-f", "-"], &DORMANT.join("\n")).expect("anybody may change the tables");
        serve(&mut node, &format!("put to sleep, round {round}"));
        node.eventually("it is said", |node| {
            let said = node.log().matches("it is awake again").count() - awake;
            if said == 2 { Ok(()) } else { Err(format!("{said} times")) }
        });
        assert_eq!(node.tables().expect("both tables are there"), before, "round {round}");
    }
    node.stop();
}

/// Carries out commands of nft one by one, each a transaction, from one program or from one each, which takes longer.
fn nft_one_by_one(node: &Node, commands: &str, one_program: bool) {
    let mut command = Command::new(if one_program { "nft" } else { "sh" });
    let lines: String =
        if one_program { commands.to_owned() } else { commands.lines().map(|line| format!("nft {line}\n")).collect() };
    command.args(one_program.then_some("-i")).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = node.world.spawn(command).expect("it is installed");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it reads");
    child.wait().expect("it ends");
}

/// The sum of a metric over both families.
fn metric(node: &Node, name: &str) -> f64 {
    let text = http::body(&node.world, (Ipv4Addr::LOCALHOST, 10249).into(), "/metrics").expect("it is served");
    let samples = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Flushes that hit the middle of a repair, again and again: it begins anew, nobody is blamed, and little is done in vain.
#[test]
fn bursts_of_foreign_changes_are_repaired_soon_after_the_last() {
    const SERVICES: usize = 1_000;
    const CHANGES: usize = 30;
    let Some(mut node) = Node::unprotected() else { return };
    let mut objects = vec![node_object(&["10.1.0.0/16", "fd00:1::/64"]), service_cidr()];
    for nth in 0..SERVICES {
        let (high, low) = (nth / 250, nth % 250);
        let endpoints = [1, 2, 3].map(|host| format!("10.{host}.{high}.{low}:8080"));
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        objects.extend(web(&format!("s{nth}"), &format!("172.30.{high}.{low}"), &endpoints));
    }
    objects.extend(web("six", "fd00:172:30::1", &["[fd00:1::1]:8080", "[fd00:1::2]:8080"]));
    node.write("all.yaml", &yaml(&objects));
    start(&mut node);
    let before = node.tables().expect("both tables are there");
    let commits = metric(&node, "nftproxyd_transaction_operations_count");
    let both = |command: &str| command.replace("ip nftproxyd", "ip6 nftproxyd") + command;
    let kinds = [
        ("flush ruleset\n".to_owned(), false),
        ("flush ruleset\n".to_owned(), false),
        ("flush ruleset\n".to_owned(), false),
        ("flush ruleset\n".to_owned(), true),
        (both("delete table ip nftproxyd\n"), false),
        (both("flush chain ip nftproxyd services\nflush map ip nftproxyd service-ips\n"), true),
    ];
    for (change, one_program) in kinds {
        let names =
            ["nftproxyd_transaction_operations_count", "kubeproxy_sync_proxy_rules_nftables_sync_failures_total"];
        let [committed, failed] = names.map(|name| metric(&node, name));
        let lines = node.log().lines().count();
        let first = Instant::now();
        nft_one_by_one(&node, &change.repeat(CHANGES), one_program);
        let last = Instant::now();
        // Their difference would take longer to work out than the repair.
        node.eventually(&change, |node| match node.tables() {
            Ok(tables) if tables == before => Ok(()),
            _ => Err("not whole".to_owned()),
        });
        let took = last.elapsed();
        node.eventually("it is in sync", |node| match metric(node, "nftproxyd_in_sync") {
            2.0 => Ok(()),
            other => Err(format!("{other} of 2 families")),
        });
        let [committed, failed] = [metric(&node, names[0]) - committed, metric(&node, names[1]) - failed];
        let log = node.log();
        let said: Vec<&str> = log.lines().skip(lines).filter(|line| !line.contains(" DEBUG ")).collect();
        println!(
            "{CHANGES} x {change:?} in {:?}: whole {took:?} after the last; {committed} transactions, {failed} failed, {} lines",
            last - first,
            said.len()
        );
        let each = (change.lines().count() * CHANGES) as f64;
        assert!(failed <= each * 2.0 + 4.0, "{failed} transactions failed");
        assert!(committed <= (each + 2.0) * commits, "{committed} transactions, {commits} at the start");
        assert!(!said.iter().any(|line| line.contains("refused") || line.contains("ERROR")), "{said:#?}");
        // Of each table: that somebody was at it, that the sync has to begin again, and that it is in sync again, for each
        // time that it came to its end meanwhile.
        let ends = said.iter().filter(|line| line.contains("is in sync again")).count();
        assert!(said.len() <= 2 * ends + 4, "{said:#?}");
    }
    node.stop();
}

/// Clients that connect all the time, while everything is flushed again and again. A first packet that met no rules is
/// sent again after a second, and after three and seven and fifteen if that one met none either.
#[test]
fn connections_that_began_without_rules_are_served_at_their_next_packet() {
    const CLIENTS: usize = 12;
    const LONGEST: Duration = Duration::from_secs(25);
    let Some(mut node) = Node::unprotected() else { return };
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"]), service_cidr()]));
    let mut objects = web("web", "172.30.1.1", &["192.0.2.10:8080"]);
    objects.extend(web("six", "fd00:172:30::1", &["[2001:db8::10]:8080"]));
    node.write("web.yaml", &yaml(&objects));
    for server in ["192.0.2.10:8080", "[2001:db8::10]:8080"] {
        echo_server(&node, socket(server));
    }
    start(&mut node);
    let (done, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|nth| {
            let to = socket(if nth % 2 == 0 { "172.30.1.1:80" } else { "[fd00:172:30::1]:80" });
            let (done, refused, over) = (Arc::clone(&done), Arc::clone(&refused), Arc::clone(&over));
            node.world.run(move || {
                thread::spawn(move || {
                    let mut took = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        // Whoever is refused, in the moment of a flush, knows at once: it does not hang.
                        match TcpStream::connect_timeout(&to, LONGEST) {
                            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => panic!("{to}: {error}"),
                            Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                            Ok(_) => 0,
                        };
                        took.push(begun.elapsed());
                        done.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(10));
                    }
                    took
                })
            })
        })
        .collect();
    let all_connect = |node: &mut Node, what: &str| {
        let before = done.load(Ordering::Relaxed);
        node.eventually(what, |_| match done.load(Ordering::Relaxed) - before {
            more if more >= 20 * CLIENTS => Ok(()),
            more => Err(format!("{more} more connections")),
        });
    };
    all_connect(&mut node, "before");
    for _ in 0..3 {
        // The daemon is kept from repairing until all of them have met the gap.
        node.daemon().signal(Signal::SIGSTOP).expect("the daemon runs");
        node.nft(&["flush", "ruleset"]).expect("anybody may");
        thread::sleep(Duration::from_millis(200));
        node.daemon().signal(Signal::SIGCONT).expect("the daemon is there");
        all_connect(&mut node, "after a gap");
    }
    for _ in 0..10 {
        node.nft(&["flush", "ruleset"]).expect("anybody may");
        thread::sleep(Duration::from_millis(100));
    }
    all_connect(&mut node, "after a storm");
    over.store(true, Ordering::Relaxed);
    let took: Vec<Vec<Duration>> = clients.into_iter().map(|client| client.join().expect("none hangs")).collect();
    let waited = took.iter().map(|took| took.iter().filter(|took| **took >= Duration::from_millis(900)).count());
    let waited: Vec<usize> = waited.collect();
    let longest = took.iter().flatten().max().expect("there were some");
    let [done, refused] = [&done, &refused].map(|counter| counter.load(Ordering::Relaxed));
    println!("{done} connections, of which {waited:?} waited, at most {longest:?}, and {refused} were refused");
    assert!(refused * 50 <= done, "{refused} of {done} connections were refused");
    assert!(waited.iter().all(|waited| *waited >= 1), "a gap that nobody met shows nothing: {waited:?}");
    node.stop();
}

#[test]
fn a_restart_changes_nothing_and_disturbs_nobody() {
    let Some(mut node) = Node::unprotected() else { return };
    write_everything(&node);
    let server = format!("{NODE_IP}:7777");
    node.write("echo.yaml", &yaml(&web("echo", "172.30.1.7", &[&server])));
    start(&mut node);
    echo_server(&node, socket(&server));
    let mut stream = node.world.run(|| {
        let stream = TcpStream::connect_timeout(&socket("172.30.1.7:80"), Duration::from_secs(30))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        io::Result::Ok(stream)
    });
    let stream = stream.as_mut().expect("the Service works from the node");
    echoes(stream, "before").expect("the connection works");
    let before = node.tables().expect("both tables are there");
    for killed in [false, true, false] {
        if killed {
            node.kill();
        } else {
            node.stop();
        }
        assert_eq!(node.tables().expect("the tables stay"), before, "killed: {killed}");
        echoes(stream, "without").expect("the connection works without the daemon");
        start(&mut node);
        let line = node.wait_for_log("in sync", |line| line.contains(" in sync services="));
        assert!(line.contains("operations=0 "), "nothing is sent: {line}");
        echoes(stream, "again").expect("the connection works after a start");
        assert_eq!(node.tables().expect("the tables are there"), before, "killed: {killed}");
    }
    node.stop();
}

#[test]
fn a_start_repairs_what_changed_meanwhile() {
    let Some(mut node) = Node::new() else { return };
    write_everything(&node);
    start(&mut node);
    let before = node.tables().expect("both tables are there");
    node.kill();
    node.world
        .nft(
            &["-f", "-"],
            "delete element ip nftproxyd service-ips { 172.30.1.1 . tcp . 80 }
             add element ip nftproxyd endpoints { 172.30.1.8 . tcp . 80 . 0 : 10.9.9.9 . 9 }
             insert rule ip nftproxyd cluster-pick-1 drop
             delete table ip6 nftproxyd",
        )
        .expect("anybody may change the table");
    start(&mut node);
    wait_for_tables(&mut node, "started", &before);
    node.stop();

    // The objects changed as well.
    node.remove("cidr.yaml");
    let services = yaml(
        &[web("web", "172.30.1.1", &["10.1.0.6:8080"]), web("new", "172.30.1.6", &["10.1.0.6:8080", "10.1.0.7:8080"])]
            .concat(),
    );
    node.replace("services.yaml", &services);
    start(&mut node);
    node.wait_forward("a changed Service", "172.30.1.1:80", &["10.1.0.6:8080"]);
    node.wait_forward("a new Service", "172.30.1.6:80", &["10.1.0.6:8080", "10.1.0.7:8080"]);
    let tables = node.tables().expect("both tables are there");
    for gone in ["shop/sticky", "shop/balanced", "shop/empty", "shop/web-six", "172.30.1.3", "198.51.100.3"] {
        assert!(!tables.contains(gone), "{gone} is gone:\n{tables}");
    }
    node.stop();
}
