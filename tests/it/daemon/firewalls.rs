//! A host whose firewall drops what it forwards, as Docker, ufw and others leave it: kube-proxy's mode iptables has let
//! Services through there, and a change to nftproxyd must not cut them off.
//!
//! A client and a pod have network namespaces of their own, and reach each other through the node.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{NODE_IP, Node, PATIENCE, echoes, node_object, run_to_end, socket, web, yaml};
use crate::netns::skip;
use crate::support::namespace::Namespace;
use crate::support::objects::service_cidr;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/kube-proxy/");
/// A client that has waited so long has lost its SYN: it is sent again after a second.
const AT_ONCE: Duration = Duration::from_millis(900);

/// One of the kinds of iptables, of a family.
#[derive(Clone, Copy)]
struct Tool {
    /// `iptables-nft` and the like.
    name: &'static str,
    v6: bool,
}

const NFT: Tool = Tool { name: "iptables-nft", v6: false };
const NFT_V6: Tool = Tool { name: "ip6tables-nft", v6: true };
const LEGACY: Tool = Tool { name: "iptables-legacy", v6: false };
const LEGACY_V6: Tool = Tool { name: "ip6tables-legacy", v6: true };

impl Tool {
    fn service(self) -> &'static str {
        if self.v6 { "[fd00:172:30::7]:80" } else { "172.30.1.7:80" }
    }

    fn endpoint(self) -> &'static str {
        if self.v6 { "[fd00:1:9::1]:7777" } else { "10.1.9.1:7777" }
    }

    /// What kube-proxy would write for the Service beside the rules of others: its jumps come first.
    fn kube_proxy(self) -> String {
        let rules = std::fs::read_to_string(FILES.to_owned() + "iptables.rules").expect("the file is there");
        let mut text = rules.replace("192.0.2.10:7777", self.endpoint()).replace("192.0.2.10/32", "10.1.9.1/32");
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            text = text.replace(&format!(":{chain} ACCEPT [0:0]\n"), "");
            text = text.replace(&format!("-A {chain} -m"), &format!("-I {chain} -m"));
        }
        if self.v6 {
            for (v4, v6) in [
                ("172.30.1.7/32", "fd00:172:30::7/128"),
                ("172.30.1.4/32", "fd00:172:30::4/128"),
                ("10.1.9.1/32", "fd00:1:9::1/128"),
                ("10.1.0.0/16", "fd00:1::/64"),
                ("127.0.0.0/8", "::1/128"),
                ("10.1.0.9:81", "[fd00:1::9]:81"),
                ("icmp-port-unreachable", "icmp6-port-unreachable"),
            ] {
                text = text.replace(v4, v6);
            }
        }
        text
    }
}

/// A node between a client and a pod, with kube-proxy's rules or without.
struct Net {
    node: Node,
    client: Namespace,
    pod: Namespace,
}

impl Net {
    /// `None` where tests cannot have nodes.
    fn new() -> Option<Net> {
        let node = Node::new()?;
        let further = || Namespace::further().expect("a node can be made, and so can this");
        let net = Net { node, client: further(), pod: further() };
        for (name, namespace, [node_v4, node_v6], [v4, v6]) in [
            ("client", &net.client, ["198.18.1.254", "fd00:18:1::fe"], ["198.18.1.1", "fd00:18:1::1"]),
            ("pod", &net.pod, ["10.1.9.254", "fd00:1:9::fe"], ["10.1.9.1", "fd00:1:9::1"]),
        ] {
            let id = namespace.id();
            let in_node = format!(
                "link add {name} type veth peer name eth0 netns {id}\nlink set {name} up\n\
                 addr add {node_v4}/24 dev {name}\naddr add {node_v6}/64 dev {name} nodad\n"
            );
            net.node.world.run(move || batch(&in_node));
            let inside = format!(
                "link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
                 route add default via {node_v4}\n-6 route add default via {node_v6}\n"
            );
            namespace.run(move || {
                std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").expect("it is ours");
                std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").expect("it is ours");
                for line in inside.lines() {
                    let words: Vec<&str> = line.split(' ').collect();
                    let status = Command::new("ip").args(words).status().expect("ip is installed");
                    assert!(status.success(), "ip {line}");
                }
            });
        }
        net.pod.run(|| {
            let listener = TcpListener::bind("[::]:7777").expect("nobody else is there");
            std::thread::spawn(move || {
                for mut stream in listener.incoming().map_while(Result::ok) {
                    std::thread::spawn(move || {
                        let mut bytes = [0; 64];
                        while let Ok(length @ 1..) = stream.read(&mut bytes) {
                            if stream.write_all(&bytes[..length]).is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        });
        net.node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
        net.node.write("cidr.yaml", &yaml(&[service_cidr()]));
        for (name, tool) in [("echo", NFT), ("echo-six", NFT_V6)] {
            let cluster_ip = socket(tool.service()).ip().to_string();
            net.node.write(&format!("{name}.yaml"), &yaml(&web(name, &cluster_ip, &[tool.endpoint()])));
        }
        Some(net)
    }

    /// Runs a program in the node.
    fn try_run(&self, command: &str, input: &str) -> Output {
        let (command, input) = (command.to_owned(), input.to_owned());
        self.node.world.run(move || {
            let mut child = Command::new("sh")
                .args(["-c", &command])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("there is a shell");
            child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
            child.wait_with_output().expect("it ends")
        })
    }

    /// The same; it has to succeed.
    fn run(&self, command: &str, input: &str) -> String {
        let output = self.try_run(command, input);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Makes the firewall, and the rules of kube-proxy beside it. `None`, said loudly, where the kernel lacks legacy
    /// iptables.
    fn load(&self, tool: Tool, firewall: &Firewall) -> Option<()> {
        let Tool { name, .. } = tool;
        let probe = self.try_run(&format!("{name} -t filter -S"), "");
        if !probe.status.success() {
            skip(name, String::from_utf8_lossy(&probe.stderr));
            return None;
        }
        if let Some(file) = firewall.file {
            let rules = std::fs::read_to_string(FILES.to_owned() + file).expect("the file is there");
            self.run(&format!("{name}-restore"), &rules);
        }
        self.run(&format!("{name}-restore --noflush"), &tool.kube_proxy());
        for rule in firewall.rules {
            self.run(&format!("{name} {rule}"), "");
        }
        Some(())
    }

    /// The configuration that has made kube-proxy's rules.
    fn config() -> Value {
        json!({"clusterCIDR": "10.1.0.0/16,fd00:1::/64"})
    }

    /// Starts the daemon with `--take-over` and these fields of the configuration, and waits until it has taken over.
    fn take_over(&mut self, config: &Value, said: &str) {
        let (folder, config) = (self.node.folder(), self.node.write_config(config));
        let arguments: [&OsStr; 5] =
            ["--take-over".as_ref(), "--manifests".as_ref(), folder.as_ref(), "--config".as_ref(), config.as_ref()];
        self.node.spawn_with(&arguments);
        self.node.wait_for_log(said, |line| line.contains(said));
    }

    /// One connection of the client to a Service, which sends something and gets it back.
    fn connect(&self, to: &'static str) -> io::Result<TcpStream> {
        self.client.run(move || connect(socket(to)))
    }

    /// The first one: neighbours have to find each other, which may take a second attempt.
    fn first_connect(&self, to: &'static str) -> io::Result<TcpStream> {
        self.connect(to).or_else(|_| self.connect(to))
    }

    fn doctor(&self) -> String {
        let doctor = run_to_end(&self.node, true, &["doctor"]);
        doctor.stdout + &doctor.stderr
    }

    /// What the doctor, in the node as it is, advises about a chain.
    fn fix(&self, chain: &str) -> String {
        let report = self.doctor();
        let (_, about) = report.split_once(chain).unwrap_or_else(|| panic!("{chain} is not named: {report}"));
        let fix = about.lines().find(|line| line.trim_start().starts_with("fix: ")).expect("there is a fix");
        let (_, command) = fix.split_once("nodes: ").unwrap_or_else(|| panic!("no command: {fix}"));
        command.to_owned()
    }
}

fn batch(commands: &str) {
    for line in commands.lines() {
        let status = Command::new("ip").args(line.split(' ')).status().expect("ip is installed");
        assert!(status.success(), "ip {line}");
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, AT_ONCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    echoes(&mut stream, "hello")?;
    Ok(stream)
}

/// Connections of the client, one after the other, until one fails.
struct Clients {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU32>,
    thread: JoinHandle<Option<io::Error>>,
}

impl Clients {
    fn start(net: &Net, to: &'static str) -> Clients {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&served));
        let clients = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = connect(socket(to)) {
                    return Some(error);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            None
        };
        let thread = net.client.run(move || std::thread::spawn(clients));
        Clients { stop, served, thread }
    }

    /// Waits until as many more have been served, or one was not.
    fn serve_more(&self, more: u32) {
        let (wanted, end) = (self.served.load(Ordering::Relaxed) + more, Instant::now() + PATIENCE);
        while self.served.load(Ordering::Relaxed) < wanted && !self.thread.is_finished() && Instant::now() < end {
            sleep(Duration::from_millis(5));
        }
    }

    /// Every connection has been answered.
    #[track_caller]
    fn assert_all_served(self, log: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let served = self.served.load(Ordering::Relaxed);
        if let Some(error) = self.thread.join().expect("clients do not panic") {
            panic!("connection {served} failed: {error}\n{log}");
        }
        assert!(served > 40, "{served} connections are too few to say anything");
    }
}

/// What the host has beside kube-proxy's rules.
struct Firewall {
    file: Option<&'static str>,
    /// Arguments of iptables.
    rules: &'static [&'static str],
    /// Arguments of iptables with which the host does not drop any more.
    open: &'static [&'static str],
}

const POLICY: Firewall = Firewall { file: None, rules: &["-P FORWARD DROP"], open: &["-P FORWARD ACCEPT"] };
const REJECTING: Firewall = Firewall {
    file: Some("rejecting.rules"),
    rules: &[],
    open: &["-D FORWARD -j REJECT --reject-with icmp-host-prohibited"],
};
const DOCKER: Firewall =
    Firewall { file: Some("docker.rules"), rules: &[], open: &["-P FORWARD ACCEPT", "-F DOCKER-ISOLATION-STAGE-2"] };
const UFW: Firewall =
    Firewall { file: Some("ufw.rules"), rules: &[], open: &["-P FORWARD ACCEPT", "-F ufw-reject-forward"] };

/// Chains of kube-proxy that are left.
fn left(saved: &str) -> Vec<&str> {
    let kubelets = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"];
    let chains = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    chains.filter(|chain| chain.starts_with("KUBE-") && !kubelets.contains(chain)).collect()
}

/// A take-over with clients that connect all the time, a second start, and the end of it.
fn services_go_on(tool: Tool, firewall: &Firewall) {
    const KEPT: &str = "kept from kube-proxy: chain KUBE-FORWARD of ";
    let Some(mut net) = Net::new() else { return };
    let Some(()) = net.load(tool, firewall) else { return };
    let Tool { name, .. } = tool;
    let save = format!("{name}-save");
    let mut old = net.first_connect(tool.service()).expect("kube-proxy serves");
    let clients = Clients::start(&net, tool.service());
    clients.serve_more(50);
    // Everything is done when the first of its lines is written.
    net.take_over(&Net::config(), "taken over from kube-proxy: removed ");
    clients.serve_more(50);
    clients.assert_all_served(&net.node.log());
    net.node.wait_for_log(KEPT, |line| line.contains(KEPT));
    let log = net.node.log();
    assert!(log.contains("removed 5 chains of kube-proxy in table"), "{log}");
    assert!(!log.contains("may fail") && !log.contains("not removed"), "{log}");
    assert_eq!(left(&net.run(&save, "")), ["KUBE-FORWARD"]);

    let report = net.doctor();
    assert!(!report.contains("chains of kube-proxy's iptables or ipvs mode"), "{report}");
    if !name.contains("legacy") {
        assert!(
            report.contains("KUBE-FORWARD of kube-proxy has to stay: FORWARD drops packets that it accepts"),
            "{report}"
        );
        assert!(!report.contains("FORWARD drops what no rule accepts, at hook"), "{report}");
    }

    // A second time the same is said, calmly.
    net.node.stop();
    let clients = Clients::start(&net, tool.service());
    net.take_over(&Net::config(), KEPT);
    clients.serve_more(50);
    let log = net.node.log();
    clients.assert_all_served(&log);
    let about = log.lines().filter(|line| line.contains("take_over")).collect::<Vec<_>>();
    assert!(about.len() == 1 && about[0].contains(" INFO "), "{log}");

    // When the host drops no more, the rest goes.
    for rule in firewall.open {
        net.run(&format!("{name} {rule}"), "");
    }
    let clients = Clients::start(&net, tool.service());
    clients.serve_more(10);
    let cleaned = run_to_end(&net.node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!(cleaned.status, Some(0), "{} {}", cleaned.stdout, cleaned.stderr);
    assert!(cleaned.stdout.starts_with("removed 1 chains of kube-proxy in table"), "{}", cleaned.stdout);
    assert_eq!(left(&net.run(&save, "")), [""; 0]);
    clients.serve_more(50);
    clients.assert_all_served(&cleaned.stdout);
    echoes(&mut old, "still").expect("a connection lives through all of it");
    net.node.stop();
}

#[test]
fn a_policy_of_iptables_nft_cuts_nobody_off() {
    services_go_on(NFT, &POLICY);
}

#[test]
fn a_policy_of_iptables_nft_cuts_nobody_off_with_ipv6() {
    services_go_on(NFT_V6, &POLICY);
}

#[test]
fn a_policy_of_legacy_iptables_cuts_nobody_off() {
    services_go_on(LEGACY, &POLICY);
}

#[test]
fn a_policy_of_legacy_iptables_cuts_nobody_off_with_ipv6() {
    services_go_on(LEGACY_V6, &POLICY);
}

#[test]
fn a_last_rule_that_rejects_cuts_nobody_off() {
    services_go_on(NFT, &REJECTING);
}

#[test]
fn rules_of_docker_cut_nobody_off() {
    services_go_on(NFT, &DOCKER);
}

#[test]
fn rules_of_docker_in_legacy_iptables_cut_nobody_off() {
    services_go_on(LEGACY, &DOCKER);
}

#[test]
fn rules_of_ufw_cut_nobody_off() {
    services_go_on(NFT, &UFW);
}

/// Where nothing drops, nothing stays; where another table drops, kube-proxy's rules have not helped, and it is said.
#[test]
fn a_table_of_nft_that_drops_is_named() {
    const OPEN: Firewall = Firewall { file: None, rules: &[], open: &[] };
    const DROPS: &str = "connections to Services may fail: chain inet fw f drops what no rule accepts, at hook forward";
    const FIX: &str = "nft insert rule inet fw f ct status dnat accept";
    let Some(mut net) = Net::new() else { return };
    net.load(NFT, &OPEN).expect("iptables-nft is there");
    net.first_connect(NFT.service()).expect("kube-proxy serves");
    net.run("nft -f -", "table inet fw {\nchain f { type filter hook forward priority 0; policy drop; }\n}\n");
    net.connect(NFT.service()).expect_err("kube-proxy cannot help");
    net.take_over(&Net::config(), DROPS);
    net.node.wait_for_log(FIX, |line| line.contains(DROPS) && line.ends_with(FIX));
    net.connect(NFT.service()).expect_err("nor does this");
    assert!(!net.node.log().contains("kept"), "{}", net.node.log());
    assert_eq!(left(&net.run("iptables-nft-save", "")), [""; 0]);
    assert_eq!(net.fix("check  chain inet fw f drops"), FIX);
    net.run(FIX, "");
    for tool in [NFT, NFT_V6] {
        net.connect(tool.service()).expect("it helps");
    }
    let report = net.doctor();
    assert!(
        report.contains("ok     chain inet fw f drops what no rule accepts, but accepts connections to Services"),
        "{report}"
    );
    net.node.stop();
}

/// After a start of the node there is nothing of kube-proxy any more, nor what it had accepted: that is said, not that all
/// is well.
#[test]
fn a_policy_that_nobody_opens_any_more_is_named() {
    const DROPS: &str =
        "connections to Services may fail: chain ip filter FORWARD drops what no rule accepts, at hook forward";
    let Some(mut net) = Net::new() else { return };
    net.run("iptables-nft -P FORWARD DROP", "");
    net.take_over(&Net::config(), "there is nothing of kube-proxy to take over from");
    net.node.wait_for_log(DROPS, |line| line.contains(" WARN ") && line.contains(DROPS));
    net.connect(NFT.service()).expect_err("nobody accepts it");
    let log = net.node.log();
    let (_, fix) = log.split_once(DROPS).and_then(|(_, rest)| rest.split_once("nodes: ")).expect("there is a fix");
    let (fix, _) = fix.split_once('\n').expect("a line");
    let cleaned = run_to_end(&net.node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!(cleaned.status, Some(0), "{} {}", cleaned.stdout, cleaned.stderr);
    assert!(cleaned.stdout.starts_with("there is nothing of kube-proxy\ncheck: "), "{}", cleaned.stdout);
    // Said again by each start, until it is mended.
    net.run(fix, "");
    net.connect(NFT.service()).expect("it helps");
    net.node.stop();
    net.take_over(&Net::config(), "there is nothing of kube-proxy to take over from");
    net.connect(NFT.service()).expect("it still does");
    net.node.stop();
    assert!(!net.node.log().contains("may fail"), "{}", net.node.log());
}

/// `cleanup --kube-proxy` by hand, beside a daemon that has not been told to take over.
#[test]
fn a_clean_up_by_hand_cuts_nobody_off() {
    let Some(mut net) = Net::new() else { return };
    net.load(NFT, &POLICY).expect("iptables-nft is there");
    net.node.start(&Net::config());
    let clients = Clients::start(&net, NFT.service());
    clients.serve_more(10);
    let cleaned = run_to_end(&net.node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!(cleaned.status, Some(0), "{} {}", cleaned.stdout, cleaned.stderr);
    assert!(
        cleaned.stdout.contains("kept: chain KUBE-FORWARD of table ip filter, with the rule that leads there"),
        "{}",
        cleaned.stdout
    );
    clients.serve_more(50);
    // What it says can be done instead.
    let (_, instead) = cleaned.stdout.split_once("to be without it: ").expect("it is said");
    let (command, then) = instead.lines().next().unwrap_or_default().split_once("; ").expect("two commands");
    assert_eq!(then, "nftproxyd cleanup --kube-proxy");
    net.run(command, "");
    let cleaned = run_to_end(&net.node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!(cleaned.status, Some(0), "{} {}", cleaned.stdout, cleaned.stderr);
    assert_eq!(left(&net.run("iptables-nft-save", "")), [""; 0]);
    clients.serve_more(50);
    clients.assert_all_served(&cleaned.stdout);
    let again = run_to_end(&net.node, true, &["cleanup", "--kube-proxy"]);
    assert_eq!((again.status, again.stdout.as_str()), (Some(0), "there is nothing of kube-proxy\n"));
    net.node.stop();
}

#[test]
fn another_mark_than_kube_proxys_is_named() {
    let Some(mut net) = Net::new() else { return };
    net.load(NFT, &POLICY).expect("iptables-nft is there");
    net.take_over(
        &json!({"nftables": {"masqueradeBit": 15}}),
        "accepts another mark than that of masqueradeBit; fix: ",
    );
    net.connect(NFT.service()).expect_err("nobody accepts its mark");
    let cleaned = run_to_end(&net.node, true, &["cleanup", "--kube-proxy"]);
    assert!(cleaned.stdout.contains("accepts another mark than that of masqueradeBit"), "{}", cleaned.stdout);
    net.node.stop();
}

/// A load balancer asks the node for its health: `KUBE-NODEPORTS` lets it where `INPUT` drops.
#[test]
fn health_checks_of_load_balancers_are_not_cut_off() {
    const CHECK: &str = "192.0.2.10:31999";
    let Some(mut net) = Net::new() else { return };
    net.load(NFT, &POLICY).expect("iptables-nft is there");
    let mut balanced = web("balanced", "172.30.1.3", &[&format!("{NODE_IP}:8080")]);
    balanced[0]["spec"]["type"] = json!("LoadBalancer");
    balanced[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced[0]["spec"]["healthCheckNodePort"] = json!(31999);
    balanced[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    net.node.write("balanced.yaml", &yaml(&balanced));
    net.run("iptables-nft -P INPUT DROP", "");
    net.run("iptables-nft -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "");
    net.run("iptables-nft -A KUBE-NODEPORTS -p tcp -m tcp --dport 31999 -j ACCEPT", "");
    net.take_over(&Net::config(), "taken over from kube-proxy: removed ");
    let client = &net.client;
    net.node.eventually("the health check", |_| {
        let check = client.run(|| TcpStream::connect_timeout(&socket(CHECK), AT_ONCE));
        check.map(drop).map_err(|error| error.to_string())
    });
    net.node
        .wait_for_log("said", |line| line.contains("kept from kube-proxy: chain KUBE-NODEPORTS of table ip filter"));
    assert_eq!(left(&net.run("iptables-nft-save", "")), ["KUBE-FORWARD", "KUBE-NODEPORTS"]);
    net.node.stop();
}

/// What the doctor prints for a host that drops is typed in: Services work, iptables does as well, and the doctor is
/// content.
fn the_advice_helps(tool: Tool, file: Option<&str>, rules: &[&str], expected: &str) {
    let Some(mut net) = Net::new() else { return };
    let program = tool.name.trim_end_matches("-nft");
    if let Some(file) = file {
        let rules = std::fs::read_to_string(FILES.to_owned() + file).expect("the file is there");
        net.run(&format!("{program}-restore"), &rules);
    }
    for rule in rules {
        net.run(&format!("{program} {rule}"), "");
    }
    net.node.start(&Net::config());
    net.connect(tool.service()).expect_err("it is dropped");
    let family = if tool.v6 { "ip6" } else { "ip" };
    let fix = net.fix(&format!("chain {family} filter FORWARD"));
    assert_eq!(fix, expected);
    net.run(&fix, "");
    net.connect(tool.service()).expect("it helps");
    for arguments in ["-L -n", "-S"] {
        net.run(&format!("{program} {arguments}"), "");
    }
    net.run(&fix.replace(" -I ", " -C "), "");
    let missing = net.try_run(&format!("{program} -C FORWARD -p tcp --dport 4321 -j ACCEPT"), "");
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let saved = net.run(&format!("{program}-save"), "");
    assert!(saved.contains("--ctstate DNAT -j ACCEPT") && !saved.contains("incompatible"), "{saved}");
    let report = net.doctor();
    assert!(!report.contains(&format!("check  chain {family} filter FORWARD")), "{report}");
    assert!(!report.contains(&format!("a rule of chain {family} filter FORWARD")), "{report}");
    net.node.stop();
}

#[test]
fn the_advice_for_a_policy_helps() {
    let expected = "iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT";
    the_advice_helps(NFT, None, &["-P FORWARD DROP"], expected);
    the_advice_helps(NFT_V6, None, &["-P FORWARD DROP"], &expected.replace("iptables", "ip6tables"));
}

#[test]
fn the_advice_for_rules_of_others_helps() {
    let expected = "iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT";
    the_advice_helps(NFT, Some("rejecting.rules"), &[], expected);
    the_advice_helps(NFT, Some("ufw.rules"), &[], expected);
    the_advice_helps(NFT, Some("docker.rules"), &[], &expected.replace("FORWARD", "DOCKER-USER"));
}
