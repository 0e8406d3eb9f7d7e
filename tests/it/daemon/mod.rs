//! The daemon as its users see it: manifests, an API server, the command line, and what it leaves behind.
//!
//! Everything here is waited for with a generous deadline, and nothing is said about how long it takes.

mod accounted;
mod answers;
mod api;
mod back;
mod commands;
mod counted;
mod credentials;
mod crowd;
mod doctor;
mod firewalls;
mod flows;
mod following;
mod guard;
mod health;
mod incidents;
mod instances;
mod kinds;
mod localhost;
mod lockout;
mod manifests;
mod node_incidents;
mod owned;
mod pings;
mod proxies;
mod ranges;
mod readers;
mod ready;
mod refusals;
mod repair;
mod resets;
mod schedulers;
mod stale_flows;
mod statusz;
mod take_over;
mod trace;
mod trial;
mod unread;
mod unsteady;
mod ways;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::daemon::Daemon;
use crate::support::objects::{self, endpoint_slice, service, service_cidr};
use crate::support::outcome::Fate;
use crate::support::packet::Protocol;
use crate::support::world::{Probe, World};

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_nftproxyd");
/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a packet is looked for before it is sent again.
const LOOK: Duration = Duration::from_millis(20);
/// The name of the node.
const NODE_NAME: &str = "node-a";
/// Its addresses; the first of each family are those of its Node object.
const NODE_IP: &str = "192.0.2.10";
const OTHER_IP: &str = "192.0.2.77";
const NODE_IP_V6: &str = "2001:db8::10";
/// A client outside the cluster.
const CLIENT: &str = "203.0.113.7";
const CLIENT_V6: &str = "2001:db8:113::7";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// A node with a folder of manifests and, once started, the daemon.
struct Node {
    // Before the world, whose threads it needs.
    daemon: Option<Daemon>,
    files: TempDir,
    world: World,
    /// What `--table-owner` is.
    table_owner: &'static str,
}

impl Node {
    /// `None` where tests cannot have nodes.
    fn new() -> Option<Node> {
        let world = World::new(&[ip(NODE_IP), ip(OTHER_IP), ip(NODE_IP_V6)], &[])?;
        let files = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(files.path().join("manifests")).expect("a folder can be made");
        Some(Node { daemon: None, files, world, table_owner: "auto" })
    }

    /// One whose tables others can change.
    fn unprotected() -> Option<Node> {
        Some(Node { table_owner: "off", ..Node::new()? })
    }

    /// A file beside the manifests.
    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn folder(&self) -> PathBuf {
        self.file("manifests")
    }

    /// Writes a manifest as `cp` does.
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder().join(name), text).expect("a manifest can be written");
    }

    /// Writes a manifest elsewhere and moves it into place.
    fn replace(&self, name: &str, text: &str) {
        let written = self.file("next");
        std::fs::write(&written, text).expect("a file can be written");
        std::fs::rename(written, self.folder().join(name)).expect("a file can be moved");
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder().join(name)).expect("the manifest is there");
    }

    /// Starts the daemon on the manifests with these fields in its configuration, and waits until it is in sync.
    fn start(&mut self, config: &Value) {
        self.spawn(config);
        self.wait_for_log("in sync", |line| line.contains(" in sync services="));
    }

    /// Starts the daemon on the manifests.
    fn spawn(&mut self, config: &Value) {
        let config = self.write_config(config);
        let folder = self.folder();
        let arguments =
            ["run".as_ref(), "--manifests".as_ref(), folder.as_os_str(), "--config".as_ref(), config.as_os_str()];
        self.spawn_with(&arguments);
    }

    /// Starts the daemon with these arguments and much to say.
    fn spawn_with(&mut self, arguments: &[&std::ffi::OsStr]) {
        assert!(self.daemon.is_none(), "one daemon at a time");
        let owner = format!("--table-owner={}", self.table_owner);
        let more = ["-v".as_ref(), "2".as_ref(), owner.as_ref()];
        let arguments: Vec<_> = arguments.iter().copied().chain(more).collect();
        self.daemon = Some(Daemon::start(&self.world, &arguments).expect("the daemon can be started"));
    }

    /// Writes a configuration that has these fields.
    fn write_config(&self, fields: &Value) -> PathBuf {
        let mut config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
            "hostnameOverride": NODE_NAME
        });
        objects::merge(&mut config, fields);
        // A daemon that has just been started may be about to read it.
        let (path, written) = (self.file("config.yaml"), self.file("config.next"));
        std::fs::write(&written, yaml(&[config])).expect("a file can be written");
        std::fs::rename(written, &path).expect("a file can be moved");
        path
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the daemon was started")
    }

    fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Ends the daemon as an administrator does.
    fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon was started");
        let status = daemon.terminate(PATIENCE).expect("the daemon ends");
        assert!(status.success(), "{status}\n{}", daemon.log());
    }

    /// Ends the daemon as a lack of memory does.
    fn kill(&mut self) {
        self.daemon.take().expect("the daemon was started").kill();
    }

    /// Waits until `look` says that all is well.
    fn eventually(&mut self, what: &str, mut look: impl FnMut(&mut Node) -> Result<(), String>) {
        let end = Instant::now() + PATIENCE;
        loop {
            let over = Instant::now() >= end;
            let Err(why) = look(self) else { return };
            assert!(!over, "{what}: still {why}\n{}", self.log());
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits for a line of the log, past or to come, and returns it.
    fn wait_for_log(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.daemon().wait_for_log(wanted, PATIENCE).unwrap_or_else(|log| panic!("{what}: {log}"))
    }

    /// What becomes of a first packet from outside.
    fn fate(&mut self, protocol: Protocol, to: &str) -> Fate {
        let destination = socket(to);
        self.fate_from(ip(if destination.is_ipv4() { CLIENT } else { CLIENT_V6 }), protocol, to)
    }

    /// What becomes of a first packet of this client.
    fn fate_from(&mut self, client: IpAddr, protocol: Protocol, to: &str) -> Fate {
        let probe = Probe { clients: vec![client], protocol, destination: socket(to) };
        self.world.probe_once(&probe, LOOK)
    }

    /// Waits until a TCP connection from outside goes to one of these endpoints.
    fn wait_forward(&mut self, what: &str, to: &str, endpoints: &[&str]) {
        let endpoints: Vec<SocketAddr> = endpoints.iter().map(|endpoint| socket(endpoint)).collect();
        self.eventually(what, |node| match node.fate(Protocol::Tcp, to) {
            Fate::Forward { endpoint, .. } if endpoints.contains(&endpoint) => Ok(()),
            fate => Err(format!("{to}: {fate:?}")),
        });
    }

    /// Waits until TCP connections from outside have another fate.
    fn wait_fate(&mut self, what: &str, to: &str, wanted: impl Fn(&Fate) -> bool) {
        self.eventually(what, |node| match node.fate(Protocol::Tcp, to) {
            fate if wanted(&fate) => Ok(()),
            fate => Err(format!("{to}: {fate:?}")),
        });
    }

    /// Runs `nft` with a script or arguments.
    fn nft(&self, arguments: &[&str]) -> io::Result<String> {
        self.world.nft(arguments, "")
    }

    /// The names of all tables but the guard's, which some kernels have while a daemon runs.
    fn names_of_tables(&self) -> String {
        let list = self.nft(&["list", "tables"]).expect("tables can be listed");
        list.lines().filter(|line| !line.ends_with("-guard")).map(|line| format!("{line}\n")).collect()
    }

    /// What stock nft lists of our table of a family (`ip`, `ip6`), in an order that depends on its contents alone, and
    /// without the owner.
    fn table(&self, family: &str) -> io::Result<String> {
        Ok(sorted(&without_owner(&self.nft(&["list", "table", family, "nftproxyd"])?)))
    }

    /// Both tables.
    fn tables(&self) -> io::Result<String> {
        Ok(self.table("ip")? + &self.table("ip6")?)
    }

    /// Runs `ip` in the node.
    fn ip(&self, arguments: &str) {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        let status = self.world.run(move || command.status()).expect("ip can be run");
        assert!(status.success(), "ip {arguments}: {status}");
    }
}

/// A listing without what is said of the owner of a table.
fn without_owner(listing: &str) -> String {
    let flags = |line: &&str| !line.starts_with("\tflags");
    let lines = listing.lines().filter(flags).map(|line| line.split(" # progname").next().unwrap_or(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// A listing with the elements of each set, and the sets and chains, in the order of their texts: the kernel lists
/// elements in an order of its own, and chains in that of their making.
fn sorted(listing: &str) -> String {
    let mut blocks: Vec<String> = vec![String::new()];
    let mut elements: Option<String> = None;
    for line in listing.lines() {
        // What stands between blocks, and behind whichever is the last.
        if line.is_empty() || line == "}" {
            continue;
        }
        let begins = ["\tset ", "\tmap ", "\tchain "].iter().any(|start| line.starts_with(start));
        if begins {
            blocks.push(String::new());
        }
        let block = blocks.last_mut().expect("there is one from the beginning");
        if let Some(list) = elements.as_mut() {
            list.push_str(line);
        } else if let Some((_, list)) = line.split_once("elements = {") {
            elements = Some(list.to_owned());
        } else {
            block.extend([line, "\n"]);
        }
        if let Some(list) = elements.take_if(|list| list.trim_end().ends_with('}')) {
            let list = list.trim_end().trim_end_matches('}');
            let mut list: Vec<&str> = list.split(',').map(str::trim).filter(|element| !element.is_empty()).collect();
            list.sort_unstable();
            list.iter().for_each(|element| block.extend(["\t\t\t", element, "\n"]));
        }
    }
    blocks.sort_unstable();
    blocks.concat()
}

/// The lines that only one of two listings has.
fn difference(wanted: &str, found: &str) -> String {
    let lacks = |all: &str, line: &str| !all.lines().any(|other| other == line);
    let missing = wanted.lines().filter(|line| lacks(found, line)).map(|line| format!("\n-{line}"));
    let surplus = found.lines().filter(|line| lacks(wanted, line)).map(|line| format!("\n+{line}"));
    missing.chain(surplus).collect()
}

/// Documents of a manifest.
fn yaml(documents: &[Value]) -> String {
    let text = |document| serde_yaml::to_string(document).expect("a value can be written");
    documents.iter().map(|document| format!("---\n{}", text(document))).collect()
}

/// A Service of one TCP port 80 called `http`, with its slice of ready endpoints elsewhere.
fn web(name: &str, cluster_ip: &str, endpoints: &[&str]) -> Vec<Value> {
    let port = json!({"name": "http", "port": 80, "targetPort": 8080});
    vec![service("shop", name, &[ip(cluster_ip)], &json!({"ports": [port]})), slice(name, endpoints)]
}

/// The slice of [`web`].
fn slice(name: &str, endpoints: &[&str]) -> Value {
    slice_of(name, ("http", Protocol::Tcp), endpoints)
}

fn slice_of(name: &str, port: (&str, Protocol), endpoints: &[&str]) -> Value {
    let endpoints: Vec<_> = endpoints.iter().map(|endpoint| (socket(endpoint), "elsewhere")).collect();
    endpoint_slice("shop", &format!("{name}-1"), name, port, &endpoints)
}

/// The object of the node.
fn node_object(pod_cidrs: &[&str]) -> Value {
    let pod_cidrs: Vec<String> = pod_cidrs.iter().map(|&cidr| cidr.to_owned()).collect();
    objects::node(NODE_NAME, &[ip(NODE_IP), ip(NODE_IP_V6)], &Map::new(), &pod_cidrs)
}

/// Services in every part of the tables.
fn write_everything(node: &Node) {
    node.write("node.yaml", &yaml(&[node_object(&["10.1.0.0/16", "fd00:1::/64"])]));
    node.write("cidr.yaml", &yaml(&[service_cidr()]));
    let mut sticky = web("sticky", "172.30.1.2", &["10.1.0.1:8080", "10.1.0.2:8080"]);
    sticky[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    let mut balanced = web("balanced", "172.30.1.3", &["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"]);
    balanced[0]["spec"]["type"] = json!("LoadBalancer");
    balanced[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced[0]["spec"]["loadBalancerSourceRanges"] = json!(["203.0.113.0/24"]);
    balanced[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    balanced[0]["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.3"}]);
    let objects = [
        web("web", "172.30.1.1", &["10.1.0.1:8080"]),
        web("web-six", "fd00:172:30::1", &["[fd00:1::1]:8080", "[fd00:1::2]:8080"]),
        sticky,
        balanced,
        web("empty", "172.30.1.4", &["10.1.0.1:8080"])[..1].to_vec(),
    ];
    node.write("services.yaml", &yaml(&objects.concat()));
}

/// How a program ended, and what it wrote.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs nftproxyd to its end in the node, as root or as `nobody`. One that does not end is killed and has no status.
fn run_to_end(node: &Node, root: bool, arguments: &[&str]) -> Ended {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]);
    if root {
        command.arg(PROGRAM);
    } else {
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        command.arg(readable_program(node));
    }
    command.args(arguments);
    let output = node.world.run(move || command.output()).expect("a program can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// The program at a place that everybody can reach; the checkout may be one that only its owner can read.
fn readable_program(node: &Node) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let program = node.file("nftproxyd");
    if !program.exists() {
        for path in [node.files.path().to_owned(), node.folder()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        if std::fs::hard_link(PROGRAM, &program).is_err() {
            std::fs::copy(PROGRAM, &program).expect("the program can be copied");
        }
    }
    program
}

/// A server in the node that echoes what it reads, on each connection until it is closed, as long as the test runs.
fn echo_server(node: &Node, at: SocketAddr) {
    node.world.run(move || {
        let listener = TcpListener::bind(at).expect("the address is the node's");
        let echo = |mut stream: TcpStream| {
            let mut bytes = [0; 64];
            while let Ok(length @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..length]).is_err() {
                    return;
                }
            }
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || echo(stream));
            }
        });
    });
}

fn echoes(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes)?;
    if bytes == text.as_bytes() { Ok(()) } else { Err(io::Error::other("not an echo")) }
}
