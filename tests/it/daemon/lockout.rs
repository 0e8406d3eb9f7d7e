//! Objects that have the address of the API server: whatever they do to others, the daemon still hears of changes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{NODE_IP, Node, PROGRAM, echo_server, echoes, ip, node_object, run_to_end, slice_of, socket, web, yaml};
use crate::api::Api;
use crate::certificates::{P256, Pair, SERVER};
use crate::netns::set_sysctl;
use crate::support::daemon::Daemon;
use crate::support::namespace::Namespace;
use crate::support::objects::{self, service, service_cidr};
use crate::support::packet::Protocol;

/// Where the API server is: on another machine, which the node has for a neighbour.
const SERVER_IP: &str = "192.0.2.1";
const SERVER_AT: &str = "192.0.2.1:6443";
const SERVER_V6: &str = "2001:db8::1";
const SERVER_AT_V6: &str = "[2001:db8::1]:6443";
/// A pod that is no API server.
const HIJACKER: &str = "192.0.2.10:7777";
/// The cluster IP of the API server's own Service.
const OWN_IP: &str = "172.30.0.1";

/// A node and its API server.
struct Plane {
    node: Node,
    api: Api,
    authority: Option<Pair>,
    // After the API server, which has a socket in it.
    _elsewhere: Namespace,
}

impl Plane {
    /// `None` where tests cannot have nodes.
    fn new(with_tls: bool) -> Option<Plane> {
        let node = Node::new()?;
        let elsewhere = Namespace::further().expect("a node can be made, and so can this");
        let id = elsewhere.id();
        node.ip(&format!("link add plane type veth peer name eth0 netns {id}"));
        node.ip("link set plane up");
        node.ip(&format!("route add {SERVER_IP} dev plane src {NODE_IP}"));
        // In IPv6 nobody answers for an address of another device.
        node.ip("addr add fd00:2::2/64 dev plane nodad");
        node.ip(&format!("-6 route add {SERVER_V6} dev plane"));
        let listener = elsewhere.run(|| {
            for device in ["all", "eth0"] {
                set_sysctl(&format!("ipv6/conf/{device}/disable_ipv6"), "0").expect("it is ours");
            }
            for line in [
                "link set eth0 up".to_owned(),
                format!("addr add {SERVER_IP}/32 dev eth0"),
                format!("route add {NODE_IP} dev eth0"),
                format!("addr add {SERVER_V6}/128 dev eth0 nodad"),
                "-6 route add fd00:2::/64 dev eth0".to_owned(),
            ] {
                let status = Command::new("ip").args(line.split(' ')).status().expect("ip is installed");
                assert!(status.success(), "ip {line}");
            }
            // For both families.
            TcpListener::bind("[::]:6443").expect("nobody else is there")
        });
        let api = Api::start(listener);
        let authority = with_tls.then(|| Pair::authority("cluster", P256));
        if let Some(authority) = &authority {
            let server = authority.signs("kube-apiserver", P256, SERVER);
            api.set_tls(&server.certificate, &server.key, None);
        }
        echo_server(&node, socket(HIJACKER));
        let plane = Plane { node, api, authority, _elsewhere: elsewhere };
        plane.apply(&[service_cidr(), node_object(&["10.1.0.0/16"])]);
        plane.apply(&web("web", "172.30.1.1", &["10.1.0.1:8080"]));
        Some(plane)
    }

    fn apply(&self, objects: &[Value]) {
        for object in objects {
            self.api.apply(object.clone());
        }
    }

    /// Starts the daemon, with these variables in its environment, on the API server by this address.
    fn start(&mut self, server: &str, variables: &[&str]) {
        let mut kubeconfig: Value = serde_json::from_str(&self.api.kubeconfig()).expect("JSON");
        let cluster = &mut kubeconfig["clusters"][0]["cluster"];
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        objects::merge(cluster, &json!({"server": format!("{scheme}://{server}")}));
        if let Some(authority) = &self.authority {
            std::fs::write(self.node.file("ca.crt"), &authority.certificate).expect("a file can be written");
            objects::merge(cluster, &json!({"certificate-authority": "ca.crt"}));
        }
        let path = self.node.file("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).expect("a file can be written");
        let config = self.node.write_config(&json!({"clientConnection": {"kubeconfig": path}}));
        let config = format!("--config={}", config.display());
        let arguments: Vec<&str> = variables.iter().copied().chain([PROGRAM, &config, "-v=2"]).collect();
        let daemon = Daemon::start_program(&self.node.world, "env", &arguments).expect("the daemon can be started");
        self.node.daemon = Some(daemon);
        self.node.wait_for_log("in sync", |line| line.contains(" in sync services="));
    }

    /// Changes arrive, also over new connections.
    fn changes_arrive(&mut self, what: &str, name: &str, cluster_ip: &str) {
        self.api.disconnect_all();
        self.apply(&web(name, cluster_ip, &["10.1.0.2:8080"]));
        self.node.wait_forward(what, &format!("{cluster_ip}:80"), &["10.1.0.2:8080"]);
    }

    /// Waits until whoever else on the node connects to this address comes to the hijacker; else to nobody, or to the API
    /// server.
    fn others_come_to(&mut self, what: &str, to: SocketAddr, wanted: Met) {
        self.node.eventually(what, |node| match node.world.run(move || meet(to)) {
            met if met == wanted => Ok(()),
            met => Err(format!("{met:?}")),
        });
    }

    fn warnings(&self, text: &str) -> usize {
        self.node.log().lines().filter(|line| line.contains("WARN") && line.contains(text)).count()
    }
}

#[derive(Debug, PartialEq)]
enum Met {
    Hijacker,
    Server,
    Nobody,
}

fn meet(to: SocketAddr) -> Met {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(700)) else { return Met::Nobody };
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("it is not zero");
    // To a server, with TLS or without, this is no request; it answers so, or not at all.
    match echoes(&mut stream, "hello, is anybody there?\r\n\r\n") {
        Ok(()) => Met::Hijacker,
        Err(_) => Met::Server,
    }
}

/// An external IP that is the API server's, with its port.
fn evil() -> Vec<Value> {
    let fields = json!({
        "ports": [{"name": "https", "port": 6443, "targetPort": 7777}], "externalIPs": [SERVER_IP]
    });
    let endpoints = slice_of("evil", ("https", Protocol::Tcp), &[HIJACKER]);
    vec![service("shop", "evil", &[ip("172.30.1.66")], &fields), endpoints]
}

fn wide() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "wide"},
        "spec": {"cidrs": ["192.0.2.0/24", "2001:db8::/64"]}
    })
}

#[test]
fn a_service_with_the_address_of_the_api_server() {
    const SAID: &str = "Service shop/evil: spec.externalIPs: 192.0.2.1:6443 is the address of the API server";
    let Some(mut plane) = Plane::new(true) else { return };
    let server = socket(SERVER_AT);
    plane.start(SERVER_AT, &[]);
    plane.others_come_to("before", server, Met::Server);
    plane.apply(&evil());
    plane.others_come_to("as with kube-proxy", server, Met::Hijacker);
    plane.node.wait_for_log("it is said", |line| line.contains("WARN") && line.contains(SAID));
    let doctor = |plane: &Plane| run_to_end(&plane.node, true, &["doctor"]).stdout;
    assert!(doctor(&plane).contains(&format!("check  {SAID}")), "{}", doctor(&plane));
    plane.changes_arrive("new connections", "two", "172.30.1.2");
    plane.others_come_to("still", server, Met::Hijacker);
    assert_eq!(plane.warnings(SAID), 1, "{}", plane.node.log());

    // A new daemon finds it in the tables.
    plane.node.stop();
    plane.start(SERVER_AT, &[]);
    plane.node.wait_for_log("it is said again", |line| line.contains("WARN") && line.contains(SAID));
    plane.changes_arrive("new connections of a new daemon", "three", "172.30.1.3");
    plane.api.disconnect_all();
    plane.api.delete("Service", "shop", "evil");
    plane.others_come_to("it is gone", server, Met::Server);
    plane.node.eventually("the doctor is content", |node| {
        let report = run_to_end(node, true, &["doctor"]).stdout;
        if report.contains(SAID) { Err(report) } else { Ok(()) }
    });
    plane.apply(&evil());
    plane.others_come_to("it is back", server, Met::Hijacker);
    plane.node.eventually("it is said once more", |node| {
        match node.log().lines().filter(|line| line.contains(SAID)).count() {
            2 => Ok(()),
            other => Err(format!("said {other} times")),
        }
    });
    plane.node.stop();
}

#[test]
fn a_service_cidr_with_the_address_of_the_api_server() {
    in_a_service_cidr(SERVER_AT, "192.0.2.0/24 holds the address of the API server: 192.0.2.1;");
}

#[test]
fn a_service_cidr_with_the_address_of_the_api_server_v6() {
    in_a_service_cidr(SERVER_AT_V6, "2001:db8::/64 holds the address of the API server: 2001:db8::1;");
}

fn in_a_service_cidr(server_at: &str, said: &str) {
    let said = &format!("ServiceCIDR wide: spec.cidrs: {said}");
    let Some(mut plane) = Plane::new(false) else { return };
    let server = socket(server_at);
    plane.start(server_at, &[]);
    plane.others_come_to("before", server, Met::Server);
    plane.apply(&[wide()]);
    plane.others_come_to("as with kube-proxy", server, Met::Nobody);
    plane.node.wait_for_log("it is said", |line| line.contains("WARN") && line.contains(said));
    plane.changes_arrive("new connections", "two", "172.30.1.2");

    plane.node.stop();
    plane.start(server_at, &[]);
    plane.others_come_to("still", server, Met::Nobody);
    plane.changes_arrive("new connections of a new daemon", "three", "172.30.1.3");
    assert_eq!(plane.warnings(said), 1, "{}", plane.node.log());
    plane.api.disconnect_all();
    plane.api.delete("ServiceCIDR", "", "wide");
    plane.others_come_to("it is gone", server, Met::Server);
    plane.node.stop();
}

/// By its cluster IP, the API server is found with the tables, not past them.
#[test]
fn an_api_server_behind_a_service() {
    let Some(mut plane) = Plane::new(false) else { return };
    let own_fields = json!({"ports": [{"name": "https", "port": 443, "targetPort": 6443}]});
    let mut own = service("default", "kubernetes", &[ip(OWN_IP)], &own_fields);
    own["spec"]["externalIPs"] = json!([SERVER_IP]);
    let endpoints = objects::endpoint_slice(
        "default",
        "kubernetes",
        "kubernetes",
        ("https", Protocol::Tcp),
        &[(socket(SERVER_AT), "elsewhere")],
    );
    plane.apply(&[own, endpoints]);
    plane.start(SERVER_AT, &[]);
    let by_service = format!("{OWN_IP}:443");
    plane.others_come_to("the Service works", socket(&by_service), Met::Server);
    plane.node.stop();
    let counter = "table ip seen { counter past {}; chain output { type filter hook output priority -300; \
                   meta priority 6e66:7078 tcp flags syn counter name past; }; }";
    plane.node.world.nft(&["-f", "-"], counter).expect("rules of the test's own");
    let passed_by = |plane: &Plane| {
        let listing = plane.node.nft(&["list", "counters", "table", "ip", "seen"]).expect("it is there");
        !listing.contains("packets 0 ")
    };
    // In a pod at once; elsewhere when there is nobody past the tables.
    for (what, variables, asked) in [
        ("in a pod", &["KUBERNETES_SERVICE_HOST=172.30.0.1"][..], false),
        ("by a kubeconfig", &["KUBERNETES_SERVICE_HOST=172.30.0.2"], true),
    ] {
        plane.start(&by_service, variables);
        assert_eq!(passed_by(&plane), asked, "{what}: whether somebody was looked for past the tables");
        let cluster_ip = if asked { "172.30.1.3" } else { "172.30.1.2" };
        plane.changes_arrive(what, &format!("web-{}", u8::from(asked)), cluster_ip);
        assert_eq!(plane.warnings("the address of the API server"), 0, "{}", plane.node.log());
        plane.node.stop();
    }
    // The address is its own.
    plane.start(SERVER_AT, &[]);
    plane.changes_arrive("as at first", "last", "172.30.1.4");
    assert_eq!(plane.warnings("the address of the API server"), 0, "{}", plane.node.log());
    plane.node.stop();
}

/// The tables of a version that let nobody pass.
#[test]
fn a_table_of_before_is_completed_in_place() {
    let Some(mut node) = Node::unprotected() else { return };
    let mut sticky = web("sticky", "172.30.1.2", &["10.1.0.1:8080"]);
    sticky[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    node.write("services.yaml", &yaml(&sticky));
    node.start(&json!({}));
    let wanted = node.tables().expect("the tables are there");
    assert_eq!(wanted.matches("meta priority != 6e66:7078 jump services").count(), 2, "{wanted}");
    node.stop();
    let before = "flush chain ip nftproxyd nat-output
        add rule ip nftproxyd nat-output jump services
        flush chain ip6 nftproxyd nat-output
        add rule ip6 nftproxyd nat-output jump services
        add element ip nftproxyd affinity { 203.0.113.7 . 172.30.1.2 . tcp . 80 timeout 1h : 10.1.0.1 . 8080 }";
    node.world.nft(&["-f", "-"], before).expect("as the version before has it");
    node.start(&json!({}));
    let table = node.tables().expect("the tables are there");
    assert_eq!(table.matches("meta priority != 6e66:7078 jump services").count(), 2, "{table}");
    assert_eq!(table.matches("\t\tjump services").count(), 0, "of the version before: {table}");
    assert!(table.contains("203.0.113.7 . 172.30.1.2 . tcp . 80"), "nobody is forgotten: {table}");
    assert!(!node.log().contains("has been replaced"), "{}", node.log());
    node.stop();
}
