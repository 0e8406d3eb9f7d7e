use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use prometheus_parse::{Sample, Scrape, Value};
use serde::Deserialize;

use super::*;
use crate::http::bind;
use crate::metrics::{EndpointOf, FrontendOf, Had, Stability, TABLE, Type};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol};
use crate::testing::http::{Client, request};
use crate::testing::in_network_namespace_async;

/// What kube-proxy exports, and where that is written down.
#[derive(Deserialize)]
struct KubeProxy {
    bounds: BTreeMap<String, Vec<f64>>,
    own: Vec<Expected>,
    client: Vec<Expected>,
    process: Vec<Expected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    name: String,
    #[serde(rename = "type")]
    metric_type: String,
    labels: BTreeSet<String>,
    bounds: Option<String>,
}

/// Metrics of which each has a value.
fn metrics() -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.requested("GET", "192.0.2.1:6443", Some(200), Duration::from_millis(30));
    metrics.requested("GET", "192.0.2.1:6443", None, Duration::from_secs(90));
    metrics.set_rejected_objects("Service", 2);
    metrics.set_followed("Node", Some((true, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)))));
    metrics.set_map_elements(Family::V6, "service-ips", 12_345);
    metrics.sync_duration[Family::V4].observe(0.003);
    metrics.no_local_endpoints[1][Family::V4].set(7.0);
    metrics.healthz_answered(503);
    let (service, port) = (ObjectName::new("shop", "web").expect("a name"), "http".into());
    let at = FrontendAt::Address([10, 96, 0, 80].into());
    let key = FrontendKey { at, protocol: Protocol::Tcp, port: 80.try_into().expect("not 0") };
    metrics.connections.read([(FrontendOf { service, port, key }, 7)], Instant::now());
    let (service, port) = (ObjectName::new("shop", "web").expect("a name"), "http".into());
    let endpoint = ([10, 1, 0, 1], 8080).into();
    metrics.endpoints.ended(EndpointOf { service, port, endpoint }, Had::default(), Instant::now());
    Arc::new(metrics)
}

fn daemon() -> Daemon {
    Daemon {
        version: "0.0.0".to_owned(),
        healthy: true,
        node_eligible: false,
        awaited: vec!["a test".to_owned()],
        kinds: BTreeMap::new(),
        families: BTreeMap::new(),
        frontends: BTreeMap::new(),
        service_changes_pending: 0,
        endpoint_changes_pending: 7,
        rejected_objects: BTreeMap::new(),
        overlaps: Vec::new(),
        ready: Some(true),
        started_seconds_ago: Some(5),
        obstacles: Vec::new(),
        pod_cidrs: Vec::new(),
        cluster_cidrs: Vec::new(),
        wanted_connections: Some(9),
        failing_health_checks: BTreeMap::new(),
        resets_connections: false,
    }
}

fn zpages() -> ZPages {
    let status = || "daemon    nftproxyd 0.0.0, healthy\n".to_owned();
    let flags = [("cleanup", "false"), ("v", "2"), ("write-config-to", "")];
    let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    ZPages { status: Box::new(status), flags, history: Box::new(Vec::new) }
}

async fn with_server(test: impl AsyncFnOnce(&str, Arc<Metrics>)) {
    let metrics = metrics();
    let address = "127.0.0.1:10249";
    let listener = bind(address.parse().expect("an address")).expect("free");
    let body = r#"{"kubeproxy.config.k8s.io":{}}"#.to_owned();
    let serving = tokio::spawn(serve(
        listener,
        Budget::default(),
        Arc::clone(&metrics),
        tokio::sync::watch::channel(body).1,
        daemon,
        zpages(),
        Services(Box::new(|_, _| false)),
    ));
    test(address, metrics).await;
    serving.abort();
}

#[test]
fn paths_are_those_of_kube_proxy() {
    in_network_namespace_async(async || {
        with_server(async |address, _| {
            const ALL_WELL: &str = "[+]ping ok\nhealthz check passed\n";
            const STATUS: &str = concat!(
                r#"{"version":"0.0.0","healthy":true,"nodeEligible":false,"awaited":["a test"],"kinds":{},"families":{},"#,
                r#""frontends":{},"serviceChangesPending":0,"endpointChangesPending":7,"rejectedObjects":{},"overlaps":[],"#,
                r#""ready":true,"startedSecondsAgo":5,"obstacles":[],"podCidrs":[],"clusterCidrs":[],"wantedConnections":9,"#,
                r#""failingHealthChecks":{},"resetsConnections":false}"#
            );
            #[rustfmt::skip]
            let cases = [
                ("GET", "/proxyMode", 200, PLAIN, "nftables"),
                ("POST", "/proxyMode", 200, PLAIN, "nftables"),
                ("GET", "/healthz", 200, PLAIN, "ok"),
                ("GET", "/healthz?verbose", 200, PLAIN, ALL_WELL),
                ("GET", "/healthz?verbose=1&x=y", 200, PLAIN, ALL_WELL),
                ("GET", "/healthz?quiet", 200, PLAIN, "ok"),
                ("GET", "/healthz/ping", 200, PLAIN, "ok"),
                ("GET", "/configz", 200, JSON, r#"{"kubeproxy.config.k8s.io":{}}"#),
                ("GET", "/nftproxyd/status", 200, JSON, STATUS),
                ("GET", "/nftproxyd/history", 200, JSON, "[]"),
                ("GET", "/nftproxyd/accounting", 200, JSON, ACCOUNTED),
                ("GET", "/", 404, PLAIN, "404 page not found\n"),
                ("GET", "/livez", 404, PLAIN, "404 page not found\n"),
                ("GET", "/readyz", 404, PLAIN, "404 page not found\n"),
                ("GET", "/metrics/", 404, PLAIN, "404 page not found\n"),
            ];
            for (method, path, status, content_type, body) in cases {
                let answer = request(address, method, path).await;
                assert_eq!((answer.status, &*answer.body), (status, body), "{method} {path}");
                assert_eq!(answer.header("content-type"), Some(content_type), "{method} {path}");
                assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{method} {path}");
            }
        })
        .await;
    });
}

/// What kube-proxy 1.36.2 has answered, but for its values.
#[test]
fn statusz_and_flagz_are_those_of_kube_proxy() {
    const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                           guarantees and is for debugging purposes only.\n";
    in_network_namespace_async(async || {
        with_server(async |address, _| {
            let ask = async |path: &str, accept: &str| {
                let line = format!("Accept: {accept}\r\n");
                Client::connect(address).await.request_with("GET", path, &line).await
            };
            let wanted = |kind: &str, version: &str| format!("as={kind};v={version};g=config.k8s.io");
            for (path, kind) in [("/statusz", "Statusz"), ("/flagz", "Flagz")] {
                for (version, form) in [("v1alpha1", "json"), ("v1beta1", "json"), ("v1beta1", "yaml")] {
                    let answer = ask(path, &format!("application/{form};{}", wanted(kind, version))).await;
                    assert_eq!(answer.status, 200);
                    let content_type = format!("application/{form};g=config.k8s.io;v={version};as={kind}");
                    assert_eq!(answer.header("content-type"), Some(&*content_type));
                    let page = path.trim_start_matches('/');
                    let warning = format!(
                        "299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\""
                    );
                    assert_eq!(answer.header("warning"), (version == "v1alpha1").then_some(&*warning));
                    let object: serde_json::Value = serde_yaml::from_str(&answer.body).expect("readable");
                    let rest = match kind {
                        "Flagz" => "  \"flags\": {\n    \"cleanup\": \"false\",\n    \"v\": \"2\",\n    \
                                    \"write-config-to\": \"\"\n  }\n}"
                            .to_owned(),
                        _ => format!(
                            "  \"startTime\": {},\n  \"uptimeSeconds\": {},\n  \"goVersion\": \"\",\n  \
                             \"binaryVersion\": \"{}\",\n  \"emulationVersion\": \"1.36\",\n  \"paths\": [\n    \
                             \"/configz\",\n    \"/flagz\",\n    \"/healthz\",\n    \"/metrics\",\n    \
                             \"/nftproxyd\",\n    \"/proxyMode\",\n    \"/statusz\"\n  ]\n}}",
                            object["startTime"],
                            object["uptimeSeconds"],
                            env!("CARGO_PKG_VERSION")
                        ),
                    };
                    let body = format!(
                        "{{\n  \"kind\": \"{kind}\",\n  \"apiVersion\": \"config.k8s.io/{version}\",\n  \
                         \"metadata\": {{\n    \"name\": \"nftproxyd\"\n  }},\n{rest}"
                    );
                    if form == "json" {
                        assert_eq!(answer.body, body);
                    } else {
                        let same: serde_json::Value = serde_json::from_str(&body).expect("JSON");
                        assert_eq!(object, same);
                    }
                }
                let refused = ask(path, "application/json").await;
                assert_eq!((refused.status, refused.header("content-type")), (406, Some("application/json")));
                assert_eq!((refused.body.len(), refused.body.contains("\"NotAcceptable\"")), (237, true));
                for accept in ["text/plain", "*/*"] {
                    let text = ask(path, accept).await;
                    assert_eq!((text.status, text.header("content-type")), (200, Some(PLAIN)));
                    let head = format!("\nnftproxyd {}\n{WARNING}", path.trim_start_matches('/'));
                    assert!(text.body.starts_with(&head), "{}", text.body);
                }
            }
            let status = request(address, "GET", "/statusz").await.body;
            for part in [
                "\nStarted: ",
                "\nUp: 0 hr 0",
                "\nEmulation version: 1.36\n",
                "\n\ndaemon    nftproxyd 0.0.0, healthy\n",
            ] {
                assert!(status.contains(part), "{part:?}: {status}");
            }
            assert!(request(address, "GET", "/flagz").await.body.ends_with("\ncleanup=false\nv=2\nwrite-config-to=\n"));
        })
        .await;
    });
}

#[test]
fn health_checks_of_the_port_are_counted_until_reset() {
    in_network_namespace_async(async || {
        with_server(async |address, _| {
            let value = async |name: &str| {
                let scrape = scraped(&request(address, "GET", "/metrics/slis").await.body);
                scrape.samples.into_iter().find(|sample| sample.metric == name).map(|sample| sample.value)
            };
            assert_eq!(value("kubernetes_healthchecks_total").await, None);
            for _ in 0..3 {
                request(address, "GET", "/healthz").await;
            }
            assert_eq!(value("kubernetes_healthchecks_total").await, Some(Value::Counter(3.0)));
            assert_eq!(value("kubernetes_healthcheck").await, Some(Value::Gauge(1.0)));
            assert!(matches!(value("process_start_time_seconds").await, Some(Value::Gauge(_))));
            assert_eq!(request(address, "DELETE", "/metrics/slis").await.status, 200);
            assert_eq!(value("kubernetes_healthchecks_total").await, None);
        })
        .await;
    });
}

#[test]
fn dashboards_of_kube_proxy_find_what_they_read() {
    in_network_namespace_async(async || {
        with_server(async |address, _| {
            let answer = request(address, "GET", "/metrics").await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), Some(EXPOSITION));
            let start: u64 = answer.header("process-start-time-unix").expect("there").parse().expect("a number");
            assert!(start > 1_700_000_000, "{start}");
            let scrape = scraped(&answer.body);
            let file = include_str!("../../../testdata/metrics/kube-proxy.yaml");
            let KubeProxy { bounds, own, client, process } = serde_yaml::from_str(file).expect("valid");
            for (metrics, alpha) in [(&own, true), (&client, true), (&process, false)] {
                for wanted in metrics {
                    hold(wanted, alpha, &bounds, &scrape);
                }
            }
        })
        .await;
    });
}

/// Compares one metric.
fn hold(wanted: &Expected, alpha: bool, bounds: &BTreeMap<String, Vec<f64>>, scrape: &Scrape) {
    let name = &*wanted.name;
    let help = scrape.docs.get(name).unwrap_or_else(|| panic!("{name} is not there"));
    assert_eq!(help.starts_with("[ALPHA] "), alpha, "{name}: {help}");
    let samples: Vec<&Sample> = scrape.samples.iter().filter(|sample| sample.metric == name).collect();
    assert!(!samples.is_empty(), "{name} has no value");
    let with_family = wanted.labels.contains("ip_family");
    let families: BTreeSet<Option<&str>> = samples.iter().map(|sample| sample.labels.get("ip_family")).collect();
    let both = BTreeSet::from([Some("IPv4"), Some("IPv6")]);
    assert_eq!(families, if with_family { both } else { BTreeSet::from([None]) }, "{name}");
    for sample in samples {
        #[expect(clippy::disallowed_methods, reason = "they are sorted")]
        let labels: BTreeSet<String> = sample.labels.keys().cloned().collect();
        assert_eq!(labels, wanted.labels, "{name}");
        let (found, found_bounds) = match &sample.value {
            Value::Counter(_) => ("counter", None),
            Value::Gauge(_) => ("gauge", None),
            Value::Histogram(buckets) => ("histogram", Some(buckets)),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(found, wanted.metric_type, "{name}");
        if let Some(buckets) = found_bounds {
            let found: Vec<f64> =
                buckets.iter().map(|bucket| bucket.less_than).filter(|bound| bound.is_finite()).collect();
            let key = wanted.bounds.as_deref().expect("a histogram has bounds");
            assert_eq!(found, bounds[key], "{name}");
        }
    }
}

#[test]
fn all_of_the_table_is_exported_and_nothing_else() {
    in_network_namespace_async(async || {
        with_server(async |address, metrics| {
            metrics.healthcheck();
            let mut body = request(address, "GET", "/metrics").await.body;
            body.push_str(&request(address, "GET", "/metrics/slis").await.body);
            let exported: BTreeMap<&str, &str> = body
                .lines()
                .filter_map(|line| line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')))
                .collect();
            let type_name = |metric_type| match metric_type {
                Type::Counter => "counter",
                Type::Gauge => "gauge",
                Type::Histogram(_) => "histogram",
            };
            // Connection tracking may be off in a network namespace, and then it has no fill.
            let may_miss = ["nftproxyd_conntrack_entries", "nftproxyd_conntrack_entries_limit"];
            let table: BTreeMap<&str, &str> = TABLE
                .iter()
                .filter(|metric| !may_miss.contains(&metric.name) || exported.contains_key(metric.name))
                .map(|metric| (metric.name, type_name(metric.metric_type)))
                .collect();
            assert_eq!(exported, table);
            for metric in TABLE.iter().filter(|metric| table.contains_key(metric.name)) {
                assert!(body.contains(&format!("# HELP {} {}\n", metric.name, metric.help())), "{}", metric.name);
            }
            for line in [
                "rest_client_requests_total{code=\"<error>\",host=\"192.0.2.1:6443\",method=\"GET\"} 1\n",
                "nftproxyd_map_elements{ip_family=\"IPv6\",map=\"service-ips\"} 12345\n",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"} 0\n",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 1\n",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 1\n",
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 7\n",
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 0\n",
                "kubeproxy_proxy_healthz_total{code=\"503\"} 1\n",
            ] {
                assert!(body.contains(line), "{line}{body}");
            }
        })
        .await;
    });
}

#[test]
fn names_follow_the_conventions() {
    let names: BTreeSet<&str> = TABLE.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), TABLE.len(), "a name occurs twice");
    for metric in TABLE {
        assert!(!metric.meaning.is_empty(), "{}", metric.name);
        if metric.name.starts_with("nftproxyd_") {
            assert_eq!(metric.name.ends_with("_total"), metric.metric_type == Type::Counter, "{}", metric.name);
            assert_eq!(metric.stability, Stability::Alpha, "{}", metric.name);
        }
        if let Type::Histogram(bounds) = metric.metric_type {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{}", metric.name);
        }
    }
}

/// Reads the text format with somebody else's parser.
fn scraped(text: &str) -> Scrape {
    let lines = text.lines().map(|line| Ok(line.to_owned()));
    Scrape::parse(lines).expect("the text format of Prometheus")
}

#[tokio::test]
async fn those_who_ask_at_the_same_time_get_one_text() {
    let exposition = Exposition::default();
    let made = std::cell::Cell::new(0);
    let ask = || {
        exposition.text(|| {
            made.set(made.get() + 1);
            made.get().to_string()
        })
    };
    let all = futures::future::join_all((0..100).map(|_| ask())).await;
    assert!(all.iter().all(|text| text == "1"), "{all:?}");
    assert_eq!((ask().await, ask().await), ("2".into(), "3".into()), "it is not older than the question");
}

/// One connection, of which the kernel counted nothing.
const ACCOUNTED: &str = r#"[{"service":"shop/web","port":"http","endpoint":"10.1.0.1:8080","ended":1,"packetsIn":0,"packetsOut":0,"bytesIn":0,"bytesOut":0}]"#;
