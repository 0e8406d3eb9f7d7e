//! The daemon as an operator meets it: started as kube-proxy is, configured, changed while it runs, and asked.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::{Api, KINDS, Request, Verb};
use crate::netns::has;
use crate::support::daemon::Daemon;
use crate::support::http::{self, Answer};
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(30);
const PROGRAM: &str = env!("CARGO_BIN_EXE_nftproxyd");
const KUBEADM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/kubeadm");
const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n";

fn node() -> Option<World> {
    World::new(&[IpAddr::from([192, 0, 2, 10])], &[])
}

/// Runs the program in the node until it ends.
fn run(world: &World, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    world.run(move || command.output()).expect("it can be started")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("it can be written");
    path.to_str().expect("temporary paths are text").to_owned()
}

fn sysctl(world: &World, name: &str) -> String {
    let path = format!("/proc/sys/{name}");
    world.run(move || fs::read_to_string(path)).expect("it can be read").trim().to_owned()
}

/// Waits until the daemon has ended, and returns its exit code.
fn exit_code(daemon: &mut Daemon) -> Option<i32> {
    let end = Instant::now() + PATIENCE;
    while daemon.alive() {
        assert!(Instant::now() < end, "it has not ended:\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    daemon.terminate(PATIENCE).expect("it has ended").code()
}

fn wait_for(daemon: &Daemon, text: &str) -> String {
    daemon.wait_for_log(|line| line.contains(text), PATIENCE).unwrap_or_else(|log| panic!("{text:?}: {log}"))
}

/// The DaemonSet of kubeadm with another image: the command line, the files and their places are as they were.
#[test]
fn the_daemon_set_of_kubeadm_runs_unchanged() {
    if !has(&["openssl", "socat"]) {
        return;
    }
    // The second address is that of the API server in kubeadm's kubeconfig.
    let Some(world) = World::new(&[IpAddr::from([192, 0, 2, 10]), IpAddr::from([192, 0, 2, 1])], &[]) else { return };
    let api = world.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(Api::start)).expect("loopback is up");
    let account = folder();
    let _tls = serve_with_tls(&world, &api, &account);
    api.apply(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
    }));
    api.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "type": "NodePort", "clusterIP": "10.96.0.80", "clusterIPs": ["10.96.0.80"], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}],
        },
    }));
    // The volumes: the ConfigMap, and the ServiceAccount's token with the certificate of the cluster.
    let volume = folder();
    for file in ["config.conf", "kubeconfig.conf"] {
        fs::copy(Path::new(KUBEADM).join(file), volume.path().join(file)).expect("it can be copied");
    }
    write(&account, "token", "the-token");
    let command = fs::read_to_string(Path::new(KUBEADM).join("command")).expect("it can be read");
    // What the kubelet does with it.
    let words: Vec<String> = command.lines().map(|word| word.replace("$(NODE_NAME)", "node-a")).collect();
    let image = "mount -t tmpfs none /usr/local/bin && ln -s \"$1\" /usr/local/bin/kube-proxy &&
        mount -t tmpfs none /var/lib && mkdir /var/lib/kube-proxy && mount --bind \"$2\" /var/lib/kube-proxy &&
        account=/var/run/secrets/kubernetes.io/serviceaccount &&
        mount -t tmpfs none /var/run && mkdir -p $account && mount --bind \"$3\" $account &&
        shift 3 && exec \"$@\"";
    // Outside of what is mounted over: the program may be anywhere.
    let path = |folder: &TempDir| folder.path().to_str().expect("temporary paths are text").to_owned();
    let (volume, account) = (path(&volume), path(&account));
    let arguments = ["--mount", "sh", "-c", image, "sh", PROGRAM, &volume, &account];
    let arguments: Vec<&str> = arguments.into_iter().chain(words.iter().map(String::as_str)).collect();
    let mut daemon = Daemon::start_program(&world, "unshare", &arguments).expect("it can be started");
    wait_for(&daemon, "in sync");
    wait_for(&daemon, "nftables is used instead of iptables");
    wait_for(&daemon, "may be incomplete or incorrect: nodePortAddresses is not set");
    assert!(daemon.log().contains("node-a"), "{}", daemon.log());
    let listing = world.nft(&["list", "table", "ip", "nftproxyd"], "").expect("the table is there");
    assert!(listing.contains("10.96.0.80 . tcp . 80") && listing.contains("shop/web"), "{listing}");
    let healthz = http::get(&world, (Ipv4Addr::LOCALHOST, 10256).into(), "/healthz");
    assert_eq!(healthz, Answer::Status(200), "{}", daemon.log());
    assert_eq!(sysctl(&world, "net/netfilter/nf_conntrack_tcp_timeout_established"), "86400");
    let end = Instant::now() + PATIENCE;
    while api.requests().iter().all(|request| request.verb != Verb::Other) {
        assert!(Instant::now() < end, "no event:\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = daemon.terminate(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}: {}", daemon.log());
    assert_allowed(&api.requests());
}

/// Serves the stand-in where kubeadm's kubeconfig looks for it, with a certificate that `account` then has as `ca.crt`.
fn serve_with_tls(world: &World, api: &Api, account: &TempDir) -> Daemon {
    let certificate = account.path().join("ca.crt");
    let key = account.path().join("key");
    let mut openssl = Command::new("openssl");
    openssl
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=kubernetes".split(' '));
    openssl.args(["-addext", "subjectAltName=IP:192.0.2.1", "-addext", "basicConstraints=critical,CA:false"]);
    openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key);
    let made = openssl.output().expect("openssl is installed");
    assert!(made.status.success(), "{}", stderr(&made));
    let listen = format!(
        "OPENSSL-LISTEN:6443,bind=192.0.2.1,reuseaddr,fork,verify=0,cert={},key={}",
        certificate.display(),
        key.display()
    );
    Daemon::start_program(world, "socat", &[listen, format!("TCP:{}", api.address())]).expect("socat is installed")
}

/// Every request was made with the token, and is one that the ClusterRole of `deploy/` allows.
fn assert_allowed(requests: &[Request]) {
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubernetes/base/rbac.yaml"));
    let file = file.expect("it can be read");
    let role = serde_yaml::from_str::<serde_json::Value>(file.split("\n---\n").next().expect("a document"));
    let role = role.expect("it is YAML");
    let has = |list: &serde_json::Value, what: &str| list.as_array().is_some_and(|list| list.contains(&json!(what)));
    let mut asked = BTreeSet::new();
    for request in requests {
        assert_eq!(request.authorization.as_deref(), Some("Bearer the-token"), "{request:?}");
        let (resource, verb) = match request.verb {
            Verb::List => (request.resource.as_str(), "list"),
            Verb::Watch => (request.resource.as_str(), "watch"),
            Verb::Other => {
                assert_eq!(request.resource, "/apis/events.k8s.io/v1/namespaces/default/events");
                ("events", if request.method == "POST" { "create" } else { "patch" })
            }
        };
        let kind = KINDS.iter().find(|kind| kind.plural == resource);
        let group =
            kind.map_or("events.k8s.io", |kind| kind.api_version.split_once('/').map_or("", |(group, _)| group));
        let allowed = role["rules"].as_array().expect("rules").iter().any(|rule| {
            has(&rule["apiGroups"], group) && has(&rule["resources"], resource) && has(&rule["verbs"], verb)
        });
        assert!(allowed, "{group}/{resource} {verb} is not granted in deploy/kubernetes/base/rbac.yaml");
        asked.insert((resource, verb));
    }
    for kind in KINDS {
        assert!(asked.contains(&(kind.plural, "list")) && asked.contains(&(kind.plural, "watch")), "{asked:?}");
    }
    assert!(asked.contains(&("events", "create")), "{asked:?}");
}

/// In a container `/proc/sys` is read-only, and what it says fits nobody.
#[test]
fn read_only_sysctls_are_one_warning_and_one_event() {
    let Some(world) = node() else { return };
    let api = world.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(Api::start)).expect("loopback is up");
    let files = folder();
    let kubeconfig = write(&files, "kubeconfig", &api.kubeconfig());
    // No defaults.
    let conntrack = "conntrack: {maxPerCore: 4321, min: 4321, tcpEstablishedTimeout: 4321s, udpTimeout: 43s}";
    let config = write(&files, "c", &format!("{HEADER}clientConnection: {{kubeconfig: {kubeconfig}}}\n{conntrack}\n"));
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let arguments = ["--mount", "sh", "-c", read_only, "sh", PROGRAM, "--config", &config, "--hostname-override=n"];
    let mut daemon = Daemon::start_program(&world, "unshare", &arguments).expect("it can be started");
    wait_for(&daemon, "in sync");
    let end = Instant::now() + PATIENCE;
    let about_conntrack = |events: &[Value]| {
        let about = events.iter().filter(|event| event["reason"] == "FailedToSetConntrack");
        about.map(|event| event["note"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    while about_conntrack(&api.events()).is_empty() {
        assert!(Instant::now() < end, "no event: {:?}\n{}", api.events(), daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = daemon.terminate(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}: {}", daemon.log());

    let log = daemon.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("connection tracking is not set up")).collect();
    let notes = about_conntrack(&api.events());
    assert_eq!((warnings.len(), notes.len()), (1, 1), "{log}\n{notes:?}");
    for text in [warnings[0], &notes[0]] {
        for setting in
            ["nf_conntrack_max", "nf_conntrack_tcp_timeout_established = 4321", "udp_timeout = 43 (Read-only"]
        {
            assert!(text.contains(setting), "{setting}: {text}");
        }
    }
    assert_eq!(api.events()[0]["reason"], "Starting");
}

/// Who starts it as systemd does, hears that it is ready, that it lives, and that it stops.
#[test]
fn the_service_manager_is_told() {
    let Some(world) = node() else { return };
    let files = folder();
    let manager = UnixDatagram::bind(files.path().join("notify")).expect("a socket can be bound");
    manager.set_read_timeout(Some(PATIENCE)).expect("it is no zero");
    let hear = || {
        let mut text = [0; 256];
        let length = manager.recv(&mut text).expect("it says something in time");
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    };
    let socket = format!("NOTIFY_SOCKET={}", files.path().join("notify").display());
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo");
    let arguments = [&socket, "WATCHDOG_USEC=20000", PROGRAM, "--manifests", manifests, "--hostname-override=node-1"];
    let mut daemon = Daemon::start_program(&world, "env", &arguments).expect("it can be started");
    let mut heard = vec![hear()];
    while heard.last().is_some_and(|text| text != "READY=1") {
        heard.push(hear());
    }
    let listing = world.nft(&["list", "map", "ip", "nftproxyd", "service-ips"], "").expect("the map is there");
    assert!(listing.contains("shop/web"), "it is ready before its rules are: {listing}");
    let signs_of_life = (0..3).map(|_| hear()).filter(|text| text == "WATCHDOG=1").count();
    assert_eq!(signs_of_life, 3);

    daemon.signal(nix::sys::signal::Signal::SIGTERM).expect("it can be told");
    let mut heard = hear();
    while heard == "WATCHDOG=1" {
        heard = hear();
    }
    assert_eq!(heard, "STOPPING=1");
    assert!(daemon.terminate(PATIENCE).expect("it ends").success(), "{}", daemon.log());
}

/// A volume of the kubelet: `name` is a link to `..data/name`, and `..data` one to a folder that is never written to.
fn publish(volume: &TempDir, version: u32, text: &str) -> String {
    let path = |name: &str| volume.path().join(name);
    let folder = format!("..{version}");
    fs::create_dir(path(&folder)).expect("a folder");
    fs::write(path(&folder).join("config.conf"), text).expect("a file");
    symlink(&folder, path("..data_tmp")).expect("a link");
    fs::rename(path("..data_tmp"), path("..data")).expect("it can be renamed");
    let file = path("config.conf");
    if !file.is_symlink() {
        symlink("..data/config.conf", &file).expect("a link");
    }
    file.to_str().expect("temporary paths are text").to_owned()
}

#[test]
fn an_update_of_the_config_map_is_applied_or_ends_the_process() {
    let Some(world) = node() else { return };
    let (volume, manifests) = (folder(), folder());
    let config = publish(&volume, 1, &format!("{HEADER}conntrack: {{maxPerCore: 0, udpTimeout: 61s}}\n"));
    let arguments =
        ["--config", &config, "--manifests", manifests.path().to_str().expect("text"), "--hostname-override", "n"];
    let mut daemon = Daemon::start(&world, &arguments).expect("it can be started");
    wait_for(&daemon, "in sync");
    assert_eq!(sysctl(&world, "net/netfilter/nf_conntrack_udp_timeout"), "61");

    publish(&volume, 2, &format!("{HEADER}conntrack: {{maxPerCore: 0, udpTimeout: 62s}}\n"));
    wait_for(&daemon, "has changed in conntrack.udpTimeout: applied");
    assert_eq!(sysctl(&world, "net/netfilter/nf_conntrack_udp_timeout"), "62");
    let configz = http::body(&world, (Ipv4Addr::LOCALHOST, 10249).into(), "/configz").expect("it is served");
    assert!(configz.contains("\"udpTimeout\":\"62s\""), "what is in force: {configz}");

    publish(&volume, 3, &format!("{HEADER}clusterCIDR: nonsense\n"));
    wait_for(&daemon, "cannot be used; what it said before stays in force");
    assert!(daemon.alive());

    publish(&volume, 4, &format!("{HEADER}clusterCIDR: 10.0.0.0/8\nconntrack: {{maxPerCore: 0, udpTimeout: 62s}}\n"));
    assert_eq!(exit_code(&mut daemon), Some(1));
    assert!(
        daemon.log().contains("has changed in clusterCIDR: nftproxyd ends to be started again"),
        "{}",
        daemon.log()
    );
    world.nft(&["list", "table", "ip", "nftproxyd"], "").expect("the rules stay");
}

#[test]
fn signals_make_it_read_its_configuration_or_nothing() {
    use nix::sys::signal::Signal;
    let Some(world) = node() else { return };
    let (hidden, manifests) = (folder(), folder());
    let says = |seconds: u32| format!("{HEADER}conntrack: {{maxPerCore: 0, udpTimeout: {seconds}s}}\n");
    let config = write(&hidden, "config", &says(61));
    // A folder that may be passed but not read cannot be watched; for root that takes to be without two capabilities.
    std::os::unix::fs::chown(hidden.path(), Some(65_534), Some(65_534)).expect("it is ours");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    fs::set_permissions(hidden.path(), mode).expect("it is ours");
    let limited = ["--bounding-set=-dac_override,-dac_read_search", PROGRAM];
    let manifests = manifests.path().to_str().expect("text");
    let arguments = ["--config", &config, "--manifests", manifests, "--hostname-override", "n"];
    let arguments = [&limited[..], &arguments].concat();
    let mut daemon = Daemon::start_program(&world, "setpriv", &arguments).expect("it can be started");
    wait_for(&daemon, "in sync");
    wait_for(&daemon, "so that changes take the signal SIGHUP or a restart");

    write(&hidden, "config", &says(62));
    daemon.signal(Signal::SIGHUP).expect("it can be told");
    wait_for(&daemon, "has changed in conntrack.udpTimeout: applied");
    assert_eq!(sysctl(&world, "net/netfilter/nf_conntrack_udp_timeout"), "62");
    daemon.signal(Signal::SIGHUP).expect("it can be told");
    wait_for(&daemon, "SIGHUP: ");
    wait_for(&daemon, "says what it said before");
    fs::remove_file(&config).expect("it is there");
    daemon.signal(Signal::SIGHUP).expect("it can be told");
    wait_for(&daemon, "cannot be read; what it said before stays in force");
    write(&hidden, "config", "nonsense");
    daemon.signal(Signal::SIGHUP).expect("it can be told");
    wait_for(&daemon, "cannot be used; what it said before stays in force");
    for (signal, name) in [(Signal::SIGUSR1, "SIGUSR1"), (Signal::SIGUSR2, "SIGUSR2"), (Signal::SIGALRM, "SIGALRM")] {
        daemon.signal(signal).expect("it can be told");
        wait_for(&daemon, &format!("{name} has no meaning here and is ignored"));
        daemon.signal(signal).expect("it can be told");
    }
    assert!(daemon.alive());
    write(&hidden, "config", &format!("{}clusterCIDR: 10.0.0.0/8\n", says(62)));
    daemon.signal(Signal::SIGHUP).expect("it can be told");
    assert_eq!(exit_code(&mut daemon), Some(1));
    let log = daemon.log();
    assert_eq!(log.matches(" has no meaning here").count(), 3, "each is said once: {log}");
    assert!(log.contains("has changed in clusterCIDR: nftproxyd ends to be started again"), "{log}");

    let arguments = ["--manifests", manifests, "--hostname-override", "n"];
    let mut daemon = Daemon::start(&world, &arguments).expect("it can be started");
    wait_for(&daemon, "in sync");
    daemon.signal(Signal::SIGHUP).expect("it can be told");
    wait_for(&daemon, "SIGHUP: there is no configuration file to read again");
    assert!(daemon.terminate(PATIENCE).expect("it ends").success(), "{}", daemon.log());
}

/// The program at a place that everybody can reach.
fn readable_program(folder: &TempDir) -> String {
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    fs::set_permissions(folder.path(), mode(0o755)).expect("it is ours");
    let program = folder.path().join("nftproxyd").to_str().expect("temporary paths are text").to_owned();
    // By another process: a descriptor that a child of another test inherits would keep it from being started.
    let status = Command::new("cp").args([PROGRAM, &program]).status().expect("cp can be run");
    assert!(status.success(), "{status}");
    program
}

/// Lets an unprivileged user, of whom nobody else has processes, have one thread more each time until the daemon is in
/// sync. Before, it ends with one line that names the limit, whichever thread it is that cannot be had.
fn climb(world: &World, program: &str, arguments: &[&str]) {
    let user = (1 << 20) + std::process::id() % (1 << 20) * 4 + u32::from(arguments.contains(&"--manifests"));
    let (user_id, group_id) = (format!("--reuid={user}"), format!("--regid={user}"));
    for (refused, threads) in (1..=16).enumerate() {
        let limit = format!("--nproc={threads}");
        let as_user = [&user_id, &group_id, "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin"];
        let limited = ["prlimit", &limit, program];
        let all = [&as_user[..], &limited, arguments].concat();
        let mut daemon = Daemon::start_program(world, "setpriv", &all).expect("it can be started");
        let end = Instant::now() + PATIENCE;
        while daemon.alive() && !daemon.log().contains(" in sync services=") {
            assert!(Instant::now() < end, "{threads} threads: neither in sync nor ended:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        let alive = daemon.alive();
        let status = daemon.terminate(PATIENCE).expect("it ends");
        let log = daemon.log();
        assert!(!log.contains("panicked"), "{threads} threads:\n{log}");
        if alive {
            assert!(status.success(), "{status}: {log}");
            assert!(refused >= 3, "only {refused} threads could be refused: this user is not limited\n{log}");
            return;
        }
        let named = log.lines().filter(|line| line.starts_with("Error: ") && line.contains("RLIMIT_NPROC"));
        assert_eq!((status.code(), named.count()), (Some(1), 1), "{threads} threads:\n{log}");
    }
    panic!("never in sync");
}

#[test]
fn a_thread_that_cannot_be_had_is_one_clear_line() {
    let Some(world) = node() else { return };
    let files = folder();
    let program = readable_program(&files);
    let config = write(&files, "config", HEADER);
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo");
    let copied = files.path().join("manifests");
    fs::create_dir(&copied).expect("a folder");
    for file in fs::read_dir(manifests).expect("it is there").map(|file| file.expect("an entry")) {
        fs::copy(file.path(), copied.join(file.file_name())).expect("it can be copied");
    }
    let copied = copied.to_str().expect("temporary paths are text");
    climb(&world, &program, &["--config", &config, "--manifests", copied, "--hostname-override=node-1"]);

    // It tries in a namespace of a thread's own, if it can.
    let user = format!("--reuid={}", (1 << 28) + std::process::id());
    let arguments = [
        &user,
        "--clear-groups",
        "--inh-caps=+net_admin",
        "--ambient-caps=+net_admin",
        "prlimit",
        "--nproc=1",
        &program,
    ];
    let arguments = [&arguments[..], &["doctor"]].concat();
    let mut doctor = Daemon::start_program(&world, "setpriv", &arguments).expect("it can be started");
    exit_code(&mut doctor);
    assert!(doctor.log().contains("every feature of nftables that is needed (checked, not tried)"), "{}", doctor.log());

    // The name of the API server is looked up on a thread.
    let api = world.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(Api::start)).expect("loopback is up");
    api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}));
    let kubeconfig = api.kubeconfig().replace("127.0.0.1", "localhost");
    assert!(kubeconfig.contains("//localhost:"), "{kubeconfig}");
    let kubeconfig = write(&files, "kubeconfig", &kubeconfig);
    climb(&world, &program, &["--kubeconfig", &kubeconfig, "--hostname-override=node-1"]);
}

#[test]
fn one_shots_do_what_they_say() {
    let Some(world) = node() else { return };
    let files = folder();
    let good = write(&files, "good", &format!("{HEADER}ipvs: {{strictARP: true}}\n"));
    let bad = write(&files, "bad", &format!("{HEADER}clusterCIDR: x\noomScoreAdj: 2000\nbindAddress: w\n"));
    let to = files.path().join("written");
    let to = to.to_str().expect("text");

    let output = run(&world, &["check-config", &good]);
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(said.starts_with("warning: no effect with nftables: ipvs.strictARP\nAPI server: "), "{said}");
    assert!(said.ends_with(&format!("\n{good} can be used\n")), "{said}");
    // With a kubeconfig, relative to whose folder files are.
    write(&files, "token", "secret\n");
    let kubeconfig = |user: &str| {
        let text = format!(
            "{{clusters: [{{name: c, cluster: {{server: '192.0.2.1:6443'}}}}], users: [{{name: u, user: {user}}}], \
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}], current-context: x}}"
        );
        write(&files, "kubeconfig", &text)
    };
    let named = kubeconfig("{tokenFile: token}");
    let of_file = write(&files, "of-file", &format!("{HEADER}clientConnection: {{kubeconfig: {named}}}\n"));
    let output = run(&world, &["check-config", &of_file]);
    let token = files.path().join("token");
    let expected = format!(
        "API server: http://192.0.2.1:6443/ (kubeconfig {named}, context \"x\")\nproxy: none\n\
         credentials: token (file {})\n{of_file} can be used\n",
        token.display()
    );
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), expected), "{}", stderr(&output));
    kubeconfig("{tokenFile: missing}");
    let output = run(&world, &["check-config", &of_file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("user \"u\": tokenFile: file "), "{}", stderr(&output));
    let output = run(&world, &["check-config", &bad]);
    assert_eq!(output.status.code(), Some(1));
    for field in ["clusterCIDR: \"x\"", "oomScoreAdj: 2000", "bindAddress: \"w\""] {
        assert!(stderr(&output).contains(field), "{field}: {}", stderr(&output));
    }

    let output = run(&world, &["--cluster-cidr=10.0.0.0/8", "--write-config-to", to, "--hostname-override=n"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(fs::read_to_string(to).expect("it is written").contains("clusterCIDR: 10.0.0.0/8"));
    assert_eq!(run(&world, &["check-config", to]).status.code(), Some(0));

    // 4321 is no default.
    let output =
        run(&world, &["--init-only", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=4321s"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(sysctl(&world, "net/netfilter/nf_conntrack_tcp_timeout_established"), "4321");
    assert_eq!(world.nft(&["list", "tables"], "").expect("nft works"), "", "no table is written");

    let output = run(&world, &["--init-only", "-v1", "--version=v1.30.0", "--conntrack-max-per-core=0"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for line in ["FLAG: --conntrack-max-per-core=\"0\"", "--version=v1.30.0 has no effect"] {
        assert!(stderr(&output).contains(line), "{line}: {}", stderr(&output));
    }

    let version = format!("nftproxyd {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&run(&world, &["--version"])), version);
    assert!(stdout(&run(&world, &["--version=raw"])).starts_with(&version));
    world.nft(&["add table ip nftproxyd"], "").expect("a table can be made");
    let output = run(&world, &["--cleanup"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "removed table ip nftproxyd\n"));

    assert_eq!(run(&world, &["--no-such-flag"]).status.code(), Some(2));
    assert_eq!(run(&world, &["--conntrack-min=x"]).status.code(), Some(1));
    assert_eq!(run(&world, &["--config=/nonexistent"]).status.code(), Some(1));
}

#[test]
fn the_doctor_names_what_is_wrong_and_how_to_mend_it() {
    let Some(world) = node() else { return };
    world.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0")).expect("it can be written");
    world.nft(&["add table ip kube-proxy"], "").expect("a table can be made");
    let output = run(&world, &["doctor"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for line in [
        "WRONG  table ip nftproxyd is not there: no Service of IPv4 is served\n",
        "WRONG  IPv4 packets are not forwarded\n       seen: net.ipv4.ip_forward = 0\n       fix: sysctl -w \
         net.ipv4.ip_forward=1\n",
        "WRONG  rules of kube-proxy's nftables mode: table ip kube-proxy\n       seen: nft list tables: table ip \
         kube-proxy\n       fix: stop kube-proxy, then: nft delete table ip kube-proxy\n",
        "ok     the kernel has every feature of nftables that is needed (tried in a network namespace of its own)\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    world.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("it can be written");
    world.nft(&["delete table ip kube-proxy"], "").expect("it can be deleted");
    let output = run(&world, &["doctor"]);
    let text = stdout(&output);
    let wrong = text.lines().filter(|line| line.starts_with("WRONG"));
    assert!(
        wrong.map(|line| line.ends_with(" is served")).eq([true; 2]),
        "nothing but that there are no tables: {text}"
    );
    let tables = world.nft(&["list", "tables"], "").expect("they can be listed");
    assert_eq!(tables, "", "the trial leaves nothing behind");

    // As in a container that may not make namespaces.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", PROGRAM, "doctor"]);
    let output = world.run(move || command.output()).expect("it can be started");
    assert!(stdout(&output).contains("nftables that is needed (checked, not tried)\n"), "{}", stdout(&output));
}

#[test]
fn the_status_is_that_of_the_kernel() {
    if !has(&["conntrack"]) {
        return;
    }
    let Some(world) = node() else { return };
    let output = run(&world, &["status"]);
    assert_eq!(output.status.code(), Some(1), "without a table");
    let manifests = folder();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo")).expect("it is there") {
        let path = file.expect("it can be listed").path();
        let text = fs::read_to_string(&path).expect("it can be read");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let local = "  type: ClusterIP\n  internalTrafficPolicy: Local\n";
        write(&manifests, name, &text.replace("  type: ClusterIP\n", local));
    }
    let path = manifests.path().to_str().expect("temporary paths are text");
    let mut daemon =
        Daemon::start(&world, &["run", "--manifests", path, "--hostname-override", "node-1"]).expect("it can start");
    wait_for(&daemon, "in sync");
    let connection = "conntrack -I -p tcp -s 203.0.113.7 -d 10.96.0.80 --sport 4000 --dport 80 -r 10.124.0.11 \
                      -q 203.0.113.7 --reply-port-src 8080 --reply-port-dst 4000 --state ESTABLISHED -t 600";
    let mut command = Command::new("sh");
    command.args(["-c", connection]);
    let output = world.run(move || command.output()).expect("it can be started");
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&run(&world, &["status"]));
    let expected =
        format!("daemon    nftproxyd {}, healthy\nIPv4      in sync; last synced ", env!("CARGO_PKG_VERSION"));
    assert!(text.starts_with(&expected) && text.contains("\nIPv6      in sync; last synced "), "{text}");
    let output = run(&world, &["status", "-o", "json"]);
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!((&all["daemon"]["healthy"], &all["daemon"]["nodeEligible"]), (&json!(true), &json!(true)), "{all}");
    assert_eq!((&all["daemonError"], &all["daemon"]["awaited"]), (&json!(null), &json!([])), "{all}");
    assert_eq!(all["daemon"]["families"]["IPv6"]["standing"], "InLine", "{all}");
    assert_eq!(all["nodePorts"]["IPv4"], json!({"everywhere": false, "addresses": []}), "{all}");
    filtered(&world);
    // It outlives the daemon.
    daemon.terminate(PATIENCE).expect("it ends");

    let output = run(&world, &["status", "shop/web"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        !stdout(&output).contains("web-1") && stdout(&output).contains(" 10.124.0.11:8080 "),
        "{}",
        stdout(&output)
    );
    let output = run(&world, &["status"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.starts_with("daemon    not reached at 127.0.0.1:10249 (Connection refused"), "{text}");
    assert!(text.contains("tcp 10.96.0.80:80") && text.contains("*:30080 (IPv6)"), "{text}");
    let output = run(&world, &["status", "-o", "json"]);
    let all: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(all["daemon"], json!(null));
    assert!(all["daemonError"].as_str().is_some_and(|error| error.starts_with("not reached at ")), "{all}");
    let frontends = all["frontends"].as_array().expect("a list");
    let web = frontends.iter().find(|frontend| frontend["address"] == "10.96.0.80" && frontend["port"] == 80);
    let web = web.expect("it is there");
    let endpoints = web["endpoints"].as_array().expect("it is a list");
    let of = |address: &str| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint["address"] == address);
        endpoint.map(|endpoint| endpoint["connections"].clone())
    };
    assert_eq!((of("10.124.0.11:8080"), of("10.124.0.12:8080")), (Some(1.into()), Some(0.into())), "{web}");
    assert_eq!((&web["policy"], &web["damaged"]), (&json!("Cluster"), &json!(false)));
    let dns: Vec<&Value> = frontends.iter().filter(|frontend| frontend["service"] == "shop/dns:dns").collect();
    assert!(dns.len() == 2 && dns.iter().all(|dns| dns["policy"] == "Local"), "{dns:?}");

    let slot = "delete element ip nftproxyd endpoints { 10.96.0.80 . tcp . 80 . 0 }\n";
    world.nft(&["-f", "-"], slot).expect("the element is there");
    let text = stdout(&run(&world, &["status"]));
    let damaged: Vec<&str> = text.lines().filter(|line| line.contains("damaged")).collect();
    assert!(
        matches!(damaged[..], [line] if line.contains("tcp 10.96.0.80:80 ") && line.contains(" Cluster, damaged ")),
        "{text}"
    );
}

/// What is said of one Service while the daemon of [`the_status_is_that_of_the_kernel`] runs.
fn filtered(world: &World) {
    let status = |what: &str| run(world, &["status", what]);
    for (what, frontends, others) in [
        ("shop", 8, true),
        ("shop/web", 6, false),
        ("shop/web:http", 6, false),
        ("10.96.0.80", 1, false),
        ("10.96.0.80:80", 1, false),
        ("*:30080", 2, false),
        ("127.0.0.1", 0, false),
    ] {
        let output = status(what);
        let text = stdout(&output);
        let lines = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(lines("shop/web:http ") + lines("shop/dns"), frontends, "{what}: {text}");
        assert_eq!((lines("shop/dns") > 0, text.contains("\ntotal: ")), (others, true), "{what}: {text}");
        let expected = if frontends == 0 { 3 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{what}: {}", stderr(&output));
    }
    let text = stdout(&status("10.96.0.80:80"));
    let line = text.lines().find(|line| line.contains(" 10.124.0.11:8080 ")).expect("it is an endpoint");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[6..], ["10.124.0.11:8080", "web-1", "node-1", "33.3%", "1", "1"], "{text}");
    assert!(text.ends_with(", 3 endpoints, 1 connection (1 unanswered)\n"), "{text}");
    let output = status("shop/none");
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    assert_eq!(stderr(&output), "the tables have no frontend of shop/none\n");
    let output = status("10.96.0");
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    assert!(stderr(&output).contains("\"10.96.0\" is none of NAMESPACE, "), "{}", stderr(&output));
}

/// A table that somebody else owns cannot be synced; the other one can.
#[test]
fn a_table_that_was_never_synced_is_not_said_to_be_in_sync() {
    let Some(world) = node() else { return };
    let mut owner = Command::new("nft");
    owner.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut owner = world.spawn(owner).expect("it can be started");
    let mut input = owner.stdin.take().expect("it is piped");
    input.write_all(b"add table ip6 nftproxyd { flags owner; }\n").expect("it reads");
    let end = Instant::now() + PATIENCE;
    while !world.nft(&["list", "tables"], "").expect("tables can be listed").contains("ip6 nftproxyd") {
        assert!(Instant::now() < end, "it makes no table");
        std::thread::sleep(Duration::from_millis(5));
    }
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/demo");
    let daemon = Daemon::start(&world, &["run", "--manifests", manifests, "--hostname-override", "node-1"])
        .expect("it can start");
    wait_for(&daemon, "table ip6 nftproxyd cannot be synced");
    let ask = || -> Value {
        let body = http::body(&world, (Ipv4Addr::LOCALHOST, 10249).into(), "/nftproxyd/status").expect("it is served");
        serde_json::from_str(&body).expect("it is JSON")
    };
    let standing = |said: &Value| ["IPv4", "IPv6"].map(|family| said["families"][family]["standing"].clone());
    let wait_until = |what: &str, is_so: &dyn Fn(&Value) -> bool| {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = ask();
            if is_so(&said) {
                return said;
            }
            assert!(Instant::now() < end, "not {what}: {said}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let said = wait_until("the other waits for its table", &|said| {
        standing(said)[0] == "InLine"
            && said["awaited"][0].as_str().is_some_and(|awaited| awaited.contains("(the table belongs"))
    });
    assert_ne!(standing(&said)[1], "InLine", "{said}");
    let reason = said["families"]["IPv6"]["reason"].as_str().expect("it is known");
    assert!(reason.starts_with("the table belongs to netlink port"), "{said}");
    assert_eq!(said["awaited"], json!([format!("table ip6 nftproxyd ({reason})")]));
    assert_eq!(
        (&said["families"]["IPv6"]["standing"], &said["families"]["IPv6"]["inLineSecondsAgo"]),
        (&json!("Failing"), &json!(null))
    );
    assert_eq!(said["families"]["IPv6"]["syncedSecondsAgo"], json!(null));
    let text = stdout(&run(&world, &["status"]));
    assert!(text.contains("\nIPv4      in sync; ") && !text.contains("\nIPv6      in sync"), "{text}");
    assert!(text.contains(&format!("\nIPv6      NEVER IN SYNC: {reason}")), "{text}");
    assert!(text.contains(&format!("\nstart     waits for table ip6 nftproxyd ({reason})\n")), "{text}");

    // Its table goes with it.
    drop(input);
    owner.kill().expect("it can be ended");
    owner.wait().expect("it ends");
    let said = wait_until("in line in both", &|said| standing(said) == ["InLine", "InLine"]);
    assert_eq!(said["awaited"], json!([]));
    let text = stdout(&run(&world, &["status"]));
    assert!(text.contains("\nIPv6      in sync; ") && !text.contains("waits for"), "{text}");
}
