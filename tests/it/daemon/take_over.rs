//! A node changes from kube-proxy to nftproxyd with `--take-over`: what kube-proxy has left is removed once everything is
//! in place, connections stay up, and no new one fails meanwhile.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{NODE_IP, Node, PROGRAM, echo_server, echoes, health, run_to_end, socket, web, write_everything, yaml};
use crate::netns::{has, skip};
use crate::support::daemon::Daemon;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/kube-proxy");
/// The Service that kube-proxy's rules serve, and its endpoint.
const SERVICE: &str = "172.30.1.7:80";
const ENDPOINT_PORT: u16 = 7777;
const PATIENCE: Duration = Duration::from_secs(30);
/// Tables and chains of others, which have to be there afterwards.
const FOREIGN: &str =
    "table inet other { set s { type inet_service; elements = { 1, 2 }; }\nchain kube-proxy { accept\n}\n}\n";

/// A node with an echo server behind the Service.
pub(super) fn node_with_echo() -> Option<Node> {
    let node = Node::new()?;
    write_everything(&node);
    let endpoint = format!("{NODE_IP}:{ENDPOINT_PORT}");
    node.write("echo.yaml", &yaml(&web("echo", "172.30.1.7", &[&endpoint])));
    echo_server(&node, socket(&endpoint));
    Some(node)
}

/// Such a node that kube-proxy has left.
fn node(leave: impl FnOnce(&Node)) -> Option<Node> {
    let node = node_with_echo()?;
    node.world.nft(&["-f", "-"], FOREIGN).expect("another table can be made");
    leave(&node);
    Some(node)
}

/// Runs a program in the node; its input is a file of `testdata/kube-proxy` if one is named.
fn try_run(node: &Node, command: &[&str], input: Option<&str>) -> io::Result<Output> {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]);
    if let Some(file) = input {
        program.stdin(std::fs::File::open(Path::new(FILES).join(file))?);
    }
    node.world.run(move || program.output())
}

fn run(node: &Node, command: &[&str], input: Option<&str>) -> String {
    let output = try_run(node, command, input).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A connection through the Service's address.
pub(super) fn connect(node: &Node) -> TcpStream {
    let stream = node.world.run(|| {
        let stream = TcpStream::connect_timeout(&socket(SERVICE), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        io::Result::Ok(stream)
    });
    stream.expect("the Service works from the node")
}

/// Clients that connect through the Service's address, one after the other.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32, String>>,
}

impl Clients {
    /// A connection that gets no answer at once is a failure: a SYN that was lost is sent again after a second.
    pub(super) fn start(node: &Node) -> Clients {
        const AT_ONCE: Duration = Duration::from_millis(900);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let clients = move || {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut stream = TcpStream::connect_timeout(&socket(SERVICE), AT_ONCE)
                    .map_err(|error| format!("connection {count}: {error}"))?;
                stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
                echoes(&mut stream, "hello").map_err(|error| format!("connection {count}: no echo: {error}"))?;
                count += 1;
            }
            Ok(count)
        };
        let thread = node.world.run(move || std::thread::spawn(clients));
        Clients { stop, thread }
    }

    /// How many there were; all have been served.
    pub(super) fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("clients do not panic").unwrap_or_else(|why| panic!("a client failed: {why}"))
    }
}

/// Starts the daemon with `--take-over`.
fn start(node: &mut Node) {
    let (folder, config) = (node.folder(), node.write_config(&json!({})));
    let arguments: [&OsStr; 5] =
        ["--take-over".as_ref(), "--manifests".as_ref(), folder.as_ref(), "--config".as_ref(), config.as_ref()];
    node.spawn_with(&arguments);
}

/// Starts the daemon with `--take-over` and waits until it has said all of `lines`. A connection lives through it, and new
/// ones never fail.
fn take_over(node: &mut Node, lines: &[&str]) {
    let mut stream = connect(node);
    echoes(&mut stream, "through kube-proxy").expect("kube-proxy's rules work");
    let clients = Clients::start(node);
    start(node);
    for line in lines {
        node.wait_for_log(line, |found| found.contains(line));
        echoes(&mut stream, line).expect("the connection lives");
    }
    let log = node.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text}: {log}"));
    assert!(at("in sync services=") < at("taken over"), "first everything is in place: {log}");
    let served = clients.stop();
    assert!(served > 10, "{served} connections are too few to say anything");
    echoes(&mut stream, "through nftproxyd").expect("the connection lives");
    drop(connect(node));
    node.wait_forward("from outside", "172.30.1.1:80", &["10.1.0.1:8080"]);
    let other = node.nft(&["list", "table", "inet", "other"]).expect("tables of others stay");
    assert!(other.contains("chain kube-proxy") && other.contains("elements = { 1, 2 }"), "{other}");
}

fn tables(node: &Node) -> Vec<String> {
    let mut tables: Vec<String> = node.names_of_tables().lines().map(str::to_owned).collect();
    tables.sort();
    tables
}

#[test]
fn from_mode_nftables() {
    let Some(mut node) = node(|node| drop(run(node, &["nft", "-f", "-"], Some("nftables.nft")))) else { return };
    // It is left alone unless told otherwise, and the newer table decides.
    node.start(&json!({}));
    node.stop();
    assert_eq!(tables(&node).iter().filter(|table| table.ends_with(" kube-proxy")).count(), 2, "they stay");
    node.nft(&["delete table ip nftproxyd; delete table ip6 nftproxyd"]).expect("they are there");

    take_over(&mut node, &["removed table ip kube-proxy", "removed table ip6 kube-proxy"]);
    assert_eq!(tables(&node), ["table inet other", "table ip nftproxyd", "table ip6 nftproxyd"]);
    node.stop();
    // A second time there is nothing to do.
    start(&mut node);
    node.wait_for_log("said", |line| line.contains("there is nothing of kube-proxy to take over from"));
    node.stop();
}

/// Felix takes nftables where kube-proxy has a chain there, and starts anew when there is none: at no moment of a take-over
/// may there be none.
#[test]
fn calico_goes_on_to_see_that_nftables_serve() {
    let felix = "table ip calico { chain cali-FORWARD { }\n}\n";
    let Some(mut node) = node(|node| drop(run(node, &["nft", "-f", "-"], Some("nftables.nft")))) else { return };
    node.world.nft(&["-f", "-"], felix).expect("a table can be made");
    // As knftables asks, without a pause.
    let asked = || Command::new("nft").args(["--json", "list", "chains", "ip"]).output().expect("nft can be run");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let watch = move || {
        let mut looks = 0;
        while !stopped.load(Ordering::Relaxed) {
            let output = asked();
            let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let chains = list["nftables"].as_array().expect("a list").iter().filter_map(|it| it.get("chain"));
            assert!(chains.filter(|chain| chain["table"] == "kube-proxy").count() > 0, "look {looks}: {list}");
            looks += 1;
        }
        looks
    };
    let watch = node.world.run(move || std::thread::spawn(watch));
    take_over(
        &mut node,
        &["removed table ip kube-proxy", "removed table ip6 kube-proxy", "kept from kube-proxy: an empty chain"],
    );
    let sign = |node: &Node, family: &str| node.nft(&["list", "table", family, "kube-proxy"]).expect("it is there");
    for family in ["ip", "ip6"] {
        let sign = sign(&node, family);
        assert!(sign.contains("chain served-by-nftproxyd {") && sign.matches("chain").count() == 1, "{sign}");
        assert!(sign.contains("comment \"a sign for Calico (nftablesMode: Auto)"), "{sign}");
    }
    // It is no leftover, neither of a second start nor for who looks.
    node.stop();
    start(&mut node);
    node.wait_for_log("said", |line| line.contains("there is nothing of kube-proxy to take over from"));
    let doctor = run_to_end(&node, true, &["doctor"]).stdout;
    assert!(!doctor.contains("rules of kube-proxy's nftables mode"), "{doctor}");
    assert!(sign(&node, "ip6").contains("served-by-nftproxyd"));
    stop.store(true, Ordering::Relaxed);
    assert!(watch.join().expect("there was a chain at each look") > 5);
    // On the way back it goes, and what kube-proxy has made by then does not.
    node.stop();
    node.nft(&["add chain ip6 kube-proxy services"]).expect("kube-proxy may");
    let removed = run_to_end(&node, true, &["cleanup"]).stdout;
    for family in ["ip", "ip6"] {
        let line = format!("removed chain {family} kube-proxy served-by-nftproxyd, the sign for Calico");
        assert!(removed.contains(&line), "{removed}");
    }
    assert_eq!(tables(&node), ["table inet other", "table ip calico", "table ip6 kube-proxy"]);
    assert!(!sign(&node, "ip6").contains("served-by-nftproxyd"));
    let missed = |node: &Node| run_to_end(node, true, &["doctor"]).stdout.contains("Felix takes that for a kube-proxy");
    assert!(!missed(&node), "kube-proxy has a chain");
    node.nft(&["delete table ip6 kube-proxy"]).expect("it is there");
    assert!(missed(&node));
}

/// Somebody else who owns a table of ours, until this is dropped. `None` where the kernel knows no owners (before 5.12).
pub(super) struct Owner(Child);

impl Owner {
    pub(super) fn of(node: &Node, table: &str) -> Option<Owner> {
        let mut command = Command::new("nft");
        command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut owner = Owner(node.world.spawn(command).expect("nft is installed"));
        let stdin = owner.0.stdin.as_mut().expect("a pipe");
        stdin.write_all(format!("add table {table} {{ flags owner; }}\n").as_bytes()).expect("nft reads");
        let end = Instant::now() + PATIENCE;
        while !node.nft(&["list", "tables"]).expect("nft works").contains(table) {
            if owner.0.try_wait().expect("it is ours").is_some() || Instant::now() > end {
                skip("owners of tables", "this kernel, or this nft, knows none");
                return None;
            }
        }
        Some(owner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The table of one family belongs to somebody else: what kube-proxy has left of either stays, however often the other
/// family is synced, and nobody is told that all is well. When the table is free, everything follows.
#[test]
fn nothing_is_taken_over_while_a_family_is_not_in_line() {
    let Some(mut node) = node(|node| drop(run(node, &["nft", "-f", "-"], Some("nftables.nft")))) else { return };
    let Some(owner) = Owner::of(&node, "ip6 nftproxyd") else { return };
    let manager = UnixDatagram::bind(node.file("notify")).expect("a socket can be bound");
    manager.set_nonblocking(true).expect("it can be");
    let heard = || {
        let mut text = [0; 256];
        manager.recv(&mut text).ok().map(|length| String::from_utf8_lossy(&text[..length]).trim().to_owned())
    };
    let socket = format!("NOTIFY_SOCKET={}", node.file("notify").display());
    let config = node.write_config(&json!({"nftables": {"syncPeriod": "1s"}}));
    let folder = node.folder();
    let arguments: [&OsStr; 7] = [
        socket.as_ref(),
        PROGRAM.as_ref(),
        "--take-over".as_ref(),
        "--manifests".as_ref(),
        folder.as_ref(),
        "--config".as_ref(),
        config.as_ref(),
    ];
    node.daemon = Some(Daemon::start_program(&node.world, "env", &arguments).expect("it can be started"));
    node.wait_for_log("why", |line| line.contains("table ip6 nftproxyd cannot be synced"));
    let churn = |node: &mut Node, nth: u8| {
        let endpoint = format!("10.1.0.{nth}:8080");
        node.replace("web.yaml", &yaml(&web("churn", "172.30.1.8", &[&endpoint])));
        node.wait_forward("the other family", "172.30.1.8:80", &[&endpoint]);
    };
    let health = format!("{NODE_IP}:10256");
    let unwell = |answer: Option<&health::Answer>| {
        answer.is_some_and(|answer| answer.status == 503 && answer.body.contains(r#""IPv6":{"#))
    };
    (20..40).for_each(|nth| churn(&mut node, nth));
    health::wait_for(&mut node, "it is unhealthy", &health, "/healthz", unwell);
    for nth in 40..60 {
        churn(&mut node, nth);
        let answer = health::get(&node, &health, "/healthz").expect("it is served");
        assert!(unwell(answer.as_ref()), "a sync of the other family heals nothing: {answer:?}");
    }
    let status = run_to_end(&node, true, &["status"]).stdout;
    assert!(status.contains("NOT HEALTHY\n") && status.contains("IPv6      NEVER IN SYNC"), "{status}");
    let is_there = ["table ip kube-proxy", "table ip6 kube-proxy"].map(str::to_owned);
    assert!(is_there.iter().all(|table| tables(&node).contains(table)), "{:?}", tables(&node));
    assert_eq!(heard(), None, "the service manager hears nothing");
    let awaited = health::get(&node, &health, "/readyz").expect("it is served").expect("somebody listens");
    let lines: Vec<&str> = awaited.body.lines().collect();
    assert_eq!(awaited.status, 503);
    assert!(
        matches!(lines[..], [table, "waiting for: the take-over from kube-proxy"]
            if table.starts_with("waiting for: table ip6 nftproxyd (the table belongs to netlink port")),
        "{lines:?}"
    );
    let log = node.log();
    assert!(!log.contains("in sync") && !log.contains("taken over"), "{log}");

    drop(owner);
    for line in [" in sync services=", "removed table ip kube-proxy", "removed table ip6 kube-proxy"] {
        node.wait_for_log(line, |found| found.contains(line));
    }
    node.eventually("it is ready", |_| heard().filter(|text| text == "READY=1").map(drop).ok_or("silent".to_owned()));
    health::wait_for(&mut node, "it is healthy", &health, "/healthz", |answer| {
        answer.is_some_and(|answer| answer.status == 200)
    });
    assert_eq!(tables(&node), ["table inet other", "table ip nftproxyd", "table ip6 nftproxyd"]);
    let map = node.nft(&["list", "map", "ip6", "nftproxyd", "service-ips"]).expect("it is there");
    assert!(map.contains("shop/web-six"), "{map}");
    node.stop();
}

/// What is left of iptables when kube-proxy's part is gone: chains of kubelet and of CNI, and the rules that lead there.
fn assert_only_others_remain(saved: &str) {
    let kube = saved.lines().filter(|line| line.contains("KUBE-"));
    let strangers: Vec<&str> = kube
        .filter(|line| {
            !["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"].iter().any(|name| line.contains(name))
        })
        .collect();
    assert!(strangers.is_empty(), "{strangers:#?}\n{saved}");
    for line in [
        ":KUBE-IPTABLES-HINT - ",
        ":KUBE-FIREWALL - ",
        "-A INPUT -j KUBE-FIREWALL",
        "--ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        ":CNI-HOSTPORT-DNAT - ",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.1.0.9:81",
    ] {
        assert!(saved.contains(line), "{line} is somebody else's:\n{saved}");
    }
}

#[test]
fn from_mode_iptables() {
    if !has(&["iptables-nft-restore", "ip6tables-nft-restore"]) {
        return;
    }
    let Some(mut node) = node(|node| {
        run(node, &["iptables-nft-restore"], Some("iptables.rules"));
        run(node, &["ip6tables-nft-restore"], Some("ip6tables.rules"));
    }) else {
        return;
    };
    let lines = [
        "removed 6 chains of kube-proxy in table ip filter, with 9 rules that led there",
        "removed 1 chains of kube-proxy in table ip mangle, with 0 rules that led there",
        "removed 7 chains of kube-proxy in table ip nat, with 3 rules that led there",
        "removed 3 chains of kube-proxy in table ip6 nat, with 2 rules that led there",
    ];
    take_over(&mut node, &lines);
    assert_only_others_remain(&run(&node, &["iptables-nft-save"], None));
    assert!(!run(&node, &["ip6tables-nft-save"], None).contains("KUBE-"));
    assert!(!node.log().contains("not removed"), "{}", node.log());
    node.stop();
}

#[test]
fn from_mode_iptables_with_legacy_iptables() {
    if !has(&["iptables-legacy-restore"]) {
        return;
    }
    let mut has_legacy = true;
    let Some(mut node) = node(|node| {
        let loaded = try_run(node, &["iptables-legacy-restore"], Some("iptables.rules")).expect("it is installed");
        has_legacy = loaded.status.success();
    }) else {
        return;
    };
    if !has_legacy {
        return skip("legacy iptables", "this kernel has none");
    }
    let lines = [
        "removed 6 chains of kube-proxy in table filter of iptables-legacy, with 9 rules that led there",
        "removed 7 chains of kube-proxy in table nat of iptables-legacy, with 3 rules that led there",
    ];
    take_over(&mut node, &lines);
    let log = node.log();
    assert_only_others_remain(&run(&node, &["iptables-legacy-save"], None));
    assert!(!log.contains("not removed"), "{log}");
    node.stop();
}

/// Without a daemon: `cleanup --kube-proxy`. IP sets that rules of iptables use, and a chain that somebody else uses.
#[test]
fn cleanup_removes_the_same_and_says_what_remains() {
    if !has(&["iptables-nft-restore", "ipset"]) {
        return;
    }
    let Some(node) = node(|node| {
        for command in [
            "create KUBE-CLUSTER-IP hash:ip,port",
            "create KUBE-6-LOOP-BACK hash:ip,port,ip family inet6",
            "create OTHER hash:ip",
        ] {
            let words: Vec<&str> = ["ipset"].into_iter().chain(command.split(' ')).collect();
            run(node, &words, None);
        }
        run(node, &["nft", "-f", "-"], Some("nftables.nft"));
        run(node, &["iptables-nft-restore"], Some("iptables.rules"));
        let rule = "iptables-nft -t nat -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT";
        run(node, &rule.split(' ').collect::<Vec<_>>(), None);
        run(node, &"iptables-nft -t nat -A CNI-HOSTPORT-DNAT -j KUBE-MARK-MASQ".split(' ').collect::<Vec<_>>(), None);
    }) else {
        return;
    };
    let cleaned = run_to_end(&node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!(cleaned.status, Some(1), "something remains: {} {}", cleaned.stdout, cleaned.stderr);
    for line in [
        "removed table ip kube-proxy\n",
        "removed 5 chains of kube-proxy in table ip nat, with 2 rules that led there\n",
        "removed IP sets KUBE-6-LOOP-BACK, KUBE-CLUSTER-IP\n",
        "remains: chain ip nat KUBE-MARK-MASQ (chain CNI-HOSTPORT-DNAT of somebody else leads to it)\n",
        "remains: chain ip nat KUBE-POSTROUTING (chain CNI-HOSTPORT-DNAT of somebody else leads to it)\n",
    ] {
        assert!(cleaned.stdout.contains(line), "{line}{}", cleaned.stdout);
    }
    let saved = run(&node, &["iptables-nft-save"], None);
    assert!(saved.contains("-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING"));
    assert!(!saved.contains("KUBE-SERVICES"), "{saved}");
    assert_eq!(run(&node, &["ipset", "list", "-name"], None), "OTHER\n");

    run(&node, &"iptables-nft -t nat -F CNI-HOSTPORT-DNAT".split(' ').collect::<Vec<_>>(), None);
    let again = run_to_end(&node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!(
        (again.status, again.stdout.as_str()),
        (Some(0), "there is nothing of kube-proxy\n"),
        "{}",
        again.stderr
    );
}

/// IPVS keeps its connections itself: those end with the virtual server. So do the node's own, whose source was on the
/// device.
#[test]
fn from_mode_ipvs() {
    if !has(&["ipset"]) {
        return;
    }
    let mut has_ipvs = true;
    let Some(mut node) = node(|node| {
        let service = "ipvsadm -A -t 172.30.1.7:80 -s rr";
        has_ipvs =
            try_run(node, &service.split(' ').collect::<Vec<_>>(), None).is_ok_and(|output| output.status.success());
        if has_ipvs {
            for command in [
                "ipvsadm -a -t 172.30.1.7:80 -r 192.0.2.10:7777 -m",
                "ipvsadm -A -t 192.0.2.10:30080 -s rr",
                "ipvsadm -A -t [fd00:172:30::1]:80 -s rr",
                "ipvsadm -A -t 192.0.2.10:8888 -s rr",
                "ip link add kube-ipvs0 type dummy",
                "ip address add 172.30.1.7/32 dev kube-ipvs0",
                "ip address add fd00:172:30::1/128 dev kube-ipvs0 nodad",
                "ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
                "ipset add KUBE-NODE-PORT-TCP 30080",
            ] {
                run(node, &command.split(' ').collect::<Vec<_>>(), None);
            }
        }
    }) else {
        return;
    };
    if !has_ipvs {
        return skip("IPVS", "this kernel has none, or ipvsadm is not installed");
    }
    echoes(&mut connect(&node), "through IPVS").expect("kube-proxy's virtual server works");
    start(&mut node);
    for line in [
        "removed 3 virtual servers of IPVS",
        "removed device kube-ipvs0",
        "removed IP sets KUBE-NODE-PORT-TCP",
        "1 virtual servers of IPVS that are none of kube-proxy's: tcp 192.0.2.10:8888",
    ] {
        node.wait_for_log(line, |found| found.contains(line));
    }
    echoes(&mut connect(&node), "through nftproxyd").expect("the Service works");
    let servers = run(&node, &["ipvsadm", "-Sn"], None);
    assert_eq!(servers, "-A -t 192.0.2.10:8888 -s rr\n");
    node.stop();
}

/// What `/readyz` says that is awaited.
fn awaited(node: &Node) -> String {
    let answer = health::get(node, &format!("{NODE_IP}:10256"), "/readyz").expect("it is served");
    answer.map(|answer| answer.body).unwrap_or_default()
}

/// Starts the daemon with `--take-over`, and waits until it says why it does not take over.
fn start_in_vain(node: &mut Node, why: &str) {
    start(node);
    node.wait_for_log("why", |line| line.contains("kube-proxy's rules are not taken over yet") && line.contains(why));
    node.eventually("it is not ready", |node| {
        let awaited = awaited(node);
        let words = format!("waiting for: the take-over from kube-proxy ({why}");
        awaited.contains(&words).then_some(()).ok_or(awaited)
    });
    assert!(tables(node).contains(&"table ip kube-proxy".to_owned()), "{:?}", tables(node));
    assert!(!node.log().contains("taken over from"), "{}", node.log());
    drop(connect(node));
}

fn taken_over(node: &mut Node) {
    node.wait_for_log("taken over", |line| line.contains("removed table ip6 kube-proxy"));
    node.eventually("it is ready", |node| {
        let awaited = awaited(node);
        (!awaited.contains("take-over")).then_some(()).ok_or(awaited)
    });
}

/// A process of its name in the same network namespace, and none in another.
#[test]
fn a_kube_proxy_that_runs_beside_is_named_before_anything_is_removed() {
    let Some(mut node) = node(|node| drop(run(node, &["nft", "-f", "-"], Some("nftables.nft")))) else { return };
    let program = node.file("kube-proxy");
    std::fs::copy("/bin/sleep", &program).expect("there is a sleep");
    let start_one = |namespaced: bool| {
        let mut command = Command::new(&program);
        command.arg("600");
        if namespaced { node.world.spawn(command) } else { command.spawn() }.expect("it can be started")
    };
    let (mut elsewhere, mut beside) = (start_one(false), start_one(true));
    start_in_vain(&mut node, &format!("kube-proxy (pid {}) still runs on this node", beside.id()));
    beside.kill().and_then(|()| beside.wait()).expect("it ends");
    taken_over(&mut node);
    elsewhere.kill().and_then(|()| elsewhere.wait()).expect("it ends");
}

/// One that is a part of another process is seen by its port.
#[test]
fn a_kube_proxy_in_another_process_is_seen_by_its_port() {
    let Some(mut node) = node(|node| drop(run(node, &["nft", "-f", "-"], Some("nftables.nft")))) else { return };
    let listener = node.world.run(|| std::net::TcpListener::bind("127.0.0.1:10249").expect("the port is free"));
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    listener.set_nonblocking(true).expect("it can be");
    let serving = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            stream.set_nonblocking(false).expect("it can be");
            let mut request = [0; 1024];
            let length = io::Read::read(&mut stream, &mut request).unwrap_or(0);
            let mode = request[..length].starts_with(b"GET /proxyMode ");
            let (status, body) = if mode { ("200 OK", "ipvs") } else { ("404 Not Found", "404 page not found") };
            let text =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.as_bytes());
        }
    });
    start_in_vain(&mut node, "kube-proxy (mode ipvs, with its metrics at 127.0.0.1:10249) still runs on this node");
    stop.store(true, Ordering::Relaxed);
    serving.join().expect("no panic");
    taken_over(&mut node);
}

/// A daemon that follows another cluster, or nothing, removes nothing.
#[test]
fn rules_whose_services_are_not_served_instead_stay() {
    for (rules, command) in [("nftables.nft", &["nft", "-f", "-"][..]), ("iptables.rules", &["iptables-nft-restore"])] {
        if !has(&command[..1]) {
            skip("iptables", "there is no iptables-nft");
            continue;
        }
        let Some(mut node) = node(|node| drop(run(node, command, Some(rules)))) else { return };
        for manifest in ["services.yaml", "echo.yaml"] {
            node.remove(manifest);
        }
        start(&mut node);
        let why = "no Service with endpoints is known here, and its rules serve";
        node.wait_for_log(rules, |line| line.contains("not taken over yet") && line.contains(why));
        node.write("other.yaml", &yaml(&web("other", "172.30.200.1", &["10.1.0.1:8080"])));
        let why = "and none of them is served here: does nftproxyd follow the right cluster?";
        node.wait_for_log(rules, |line| line.contains("not taken over yet") && line.contains(why));
        drop(connect(&node));
        assert!(!node.log().contains("taken over from"), "{}", node.log());
        // The right one after all.
        let endpoint = format!("{NODE_IP}:{ENDPOINT_PORT}");
        node.write("echo.yaml", &yaml(&web("echo", "172.30.1.7", &[&endpoint])));
        node.wait_for_log(rules, |line| line.contains("taken over from kube-proxy: removed"));
        drop(connect(&node));
        node.stop();
    }
}
