//! The metrics port of the daemon.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use prometheus_parse::{Scrape, Value as Sample};
use serde_json::{Value, json};

use crate::api::Api;
use crate::support::daemon::Daemon;
use crate::support::world::World;

const PATIENCE: Duration = Duration::from_secs(60);

/// A GET request from the node itself; the head and the body of the answer.
fn get(world: &World, port: u16, path: &str) -> io::Result<(String, String)> {
    let path = path.to_owned();
    world.run(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("half an answer"))?;
        Ok((head.to_owned(), body.to_owned()))
    })
}

/// The values of counters and gauges, by name and labels as they are written.
fn values(world: &World) -> BTreeMap<String, f64> {
    let Ok((_, body)) = get(world, 10249, "/metrics") else { return BTreeMap::new() };
    let scrape = Scrape::parse(body.lines().map(|line| Ok(line.to_owned()))).expect("the text format of Prometheus");
    let value = |sample: &Sample| match sample {
        Sample::Counter(value) | Sample::Gauge(value) | Sample::Untyped(value) => Some(*value),
        _ => None,
    };
    let samples = scrape.samples.iter().filter_map(|sample| {
        let family = sample.labels.get("ip_family").or_else(|| sample.labels.get("kind"));
        let key = [sample.metric.as_str(), family.unwrap_or_default(), sample.labels.get("map").unwrap_or_default()];
        Some((key.join(" ").trim_end().to_owned(), value(&sample.value)?))
    });
    samples.collect()
}

/// Asks until a metric has the value.
fn wait_for(world: &World, daemon: &Daemon, metric: &str, wanted: f64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let values = values(world);
        if values.get(metric) == Some(&wanted) {
            return;
        }
        assert!(Instant::now() < end, "{metric} is not {wanted}: {values:#?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn objects(endpoint: &str) -> Value {
    json!([
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
         "spec": {"clusterIP": "172.30.0.10", "externalIPs": ["nowhere"], "ports": [{"port": 80}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
         "endpoints": [{"addresses": [endpoint]}], "ports": [{"name": "", "port": 8080}]},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web", "namespace": "shop"}},
    ])
}

#[test]
fn the_daemon_tells_what_it_does() {
    let address = "192.0.2.2".parse().expect("an address");
    let Some(world) = World::new(&[address], &[]) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |objects: &Value| {
        let text: Vec<String> =
            objects.as_array().expect("a list").iter().map(|object| format!("---\n{object}\n")).collect();
        let next = folder.path().join("next");
        std::fs::write(&next, text.concat()).expect("written");
        std::fs::rename(next, folder.path().join("all.yaml")).expect("moved");
    };
    write(&objects("10.1.0.1"));
    let manifests = folder.path().to_str().expect("text");
    // Somebody else changes the table below.
    let arguments = [
        "run",
        "--manifests",
        manifests,
        "--hostname-override",
        "n1",
        "--logging-format",
        "json",
        "--table-owner",
        "off",
    ];
    let daemon = Daemon::start(&world, &arguments).expect("it starts");

    wait_for(&world, &daemon, "nftproxyd_services IPv4", 1.0);
    let before = values(&world);
    assert_eq!(before["nftproxyd_rejected_objects Service"], 1.0);
    assert_eq!(before["nftproxyd_map_elements IPv4 endpoints"], 1.0);
    assert!(before["kubeproxy_sync_proxy_rules_last_timestamp_seconds IPv4"] > 1.7e9);
    assert!(before["process_resident_memory_bytes"] > 1e6);

    write(&objects("10.1.0.2"));
    let metric = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    wait_for(&world, &daemon, metric, before[metric] + 1.0);

    // Somebody else is heard of only once the daemon listens, which is after the first sync.
    let end = Instant::now() + PATIENCE;
    while values(&world)["nftproxyd_foreign_changes_total IPv4"] == 0.0 {
        assert!(Instant::now() < end, "nobody noticed:\n{}", daemon.log());
        world.nft(&["flush", "map", "ip", "nftproxyd", "endpoints"], "").expect("nft runs");
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_for(&world, &daemon, "nftproxyd_map_elements IPv4 endpoints", 1.0);
    let repairs = values(&world)["nftproxyd_repairs_total IPv4"];
    assert!(repairs >= 1.0, "{repairs}");

    for (path, status, body) in
        [("/proxyMode", "200", "nftables"), ("/healthz", "200", "ok"), ("/livez", "404", "404 page not found\n")]
    {
        let (head, found) = get(&world, 10249, path).expect("an answer");
        assert_eq!((head.split(' ').nth(1), &*found), (Some(status), body), "{path}");
    }
    let (_, configz) = get(&world, 10249, "/configz").expect("an answer");
    let configz: Value = serde_json::from_str(&configz).expect("JSON");
    assert_eq!(configz["kubeproxy.config.k8s.io"]["mode"], "nftables");
    get(&world, 10256, "/livez").expect("an answer");
    wait_for(&world, &daemon, "kubeproxy_sync_proxy_rules_service_changes_pending", 0.0);

    let log = daemon.log();
    let log: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let says = |line: &&Value, word: &str| line["message"].as_str().is_some_and(|message| message.contains(word));
    let faults: Vec<&Value> = log.iter().filter(|line| says(line, "nowhere")).collect();
    assert_eq!(faults.len(), 1, "each fault is said once: {faults:?}");
    let kinds: Vec<&Value> = log.iter().filter(|line| says(line, "not read")).map(|line| &line["kinds"]).collect();
    assert_eq!(kinds, ["apps/v1 Deployment, v1 ConfigMap"], "all at once");
}

#[test]
fn clients_with_affinity_are_counted_and_those_of_an_endpoint_that_goes_are_forgotten() {
    const CLIENTS: usize = 2_000;
    let Some(world) = World::new(&["192.0.2.2".parse().expect("an address")], &[]) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |endpoints: &[&str]| {
        let objects = json!([
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
             "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}], "sessionAffinity": "ClientIP"}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
             "endpoints": endpoints.iter().map(|endpoint| json!({"addresses": [endpoint]})).collect::<Vec<_>>(),
             "ports": [{"name": "", "port": 8080}]},
        ]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let next = folder.path().join("next");
        std::fs::write(&next, list.to_string()).expect("written");
        std::fs::rename(next, folder.path().join("all.yaml")).expect("moved");
    };
    write(&["10.1.0.1", "10.1.0.2"]);
    let manifests = folder.path().to_str().expect("text");
    let arguments = ["run", "--manifests", manifests, "--hostname-override", "n1", "--table-owner", "off"];
    let daemon = Daemon::start(&world, &arguments).expect("it starts");
    wait_for(&world, &daemon, "nftproxyd_map_elements IPv4 endpoints", 2.0);
    assert_eq!(values(&world)["nftproxyd_affinity_clients_limit IPv4"], 262_144.0);
    let clients = (0..CLIENTS).map(|nth| {
        let (high, low, endpoint) = (nth / 250, nth % 250, nth % 2 + 1);
        format!("203.0.{high}.{low} . 10.96.0.1 . tcp . 80 timeout 1h : 10.1.0.{endpoint} . 8080")
    });
    let clients = clients.collect::<Vec<_>>().join(", ");
    world.nft(&["-f", "-"], &format!("add element ip nftproxyd affinity {{ {clients} }}")).expect("there is room");
    write(&["10.1.0.1"]);
    // What the second look has found, after the first.
    wait_for(&world, &daemon, "nftproxyd_affinity_clients IPv4", (CLIENTS / 2) as f64);
    let map = world.nft(&["list", "map", "ip", "nftproxyd", "affinity"], "").expect("it is there");
    assert_eq!((map.matches(": 10.1.0.1 ").count(), map.matches(": 10.1.0.2 ").count()), (CLIENTS / 2, 0));
    assert_eq!(values(&world)["kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total IPv4"], 0.0);
}

#[test]
fn the_daemon_tells_the_api_server_and_of_it() {
    let address = "192.0.2.2".parse().expect("an address");
    let Some(world) = World::new(&[address], &[]) else { return };
    let api = Api::start(world.run(|| TcpListener::bind("127.0.0.1:0")).expect("a free port"));
    api.apply(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]},
    }));
    // Its health check cannot be served: that is the proxy's own port.
    api.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "lb", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "172.30.0.11", "externalTrafficPolicy": "Local",
                 "healthCheckNodePort": 10256, "ports": [{"port": 80, "nodePort": 30080}]},
    }));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).expect("written");
    let config = folder.path().join("config.yaml");
    let text = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig}, "metricsBindAddress": "0.0.0.0:10249",
    });
    std::fs::write(&config, text.to_string()).expect("written");
    let arguments = ["--config", config.to_str().expect("text"), "--hostname-override", "n1"];
    let daemon = Daemon::start(&world, &arguments).expect("it starts");

    wait_for(&world, &daemon, "nftproxyd_services IPv4", 1.0);
    let latency = || {
        let (_, body) = get(&world, 10249, "/metrics").expect("an answer");
        let name = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} ";
        let line = body.lines().find_map(|line| line.strip_prefix(name));
        line.expect("it is there").parse::<f64>().expect("a number")
    };
    assert_eq!(latency(), 0.0);
    let now = jiff::Timestamp::now().to_string();
    api.apply(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "lb-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "lb"},
                     "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": now, "other": "x"}},
        "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "n2"}], "ports": [{"name": "", "port": 8080}],
    }));
    let end = Instant::now() + PATIENCE;
    while latency() != 1.0 {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }

    for namespace in ["default", "shop"] {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        while !api.requests().iter().any(|request| request.resource == path) {
            assert!(Instant::now() < end, "nothing came to {path}\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for code in ["200", "201"] {
        let sample = format!("rest_client_requests_total{{code=\"{code}\",host=\"{}\",method=", api.address());
        while !get(&world, 10249, "/metrics").is_ok_and(|(_, body)| body.contains(&sample)) {
            assert!(Instant::now() < end, "there is no {sample}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
