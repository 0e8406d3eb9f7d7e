//! Holds the dashboard, the alerts, their pages and the ServiceMonitor in `deploy/` to the metrics and pods that there are.

use std::collections::BTreeSet;
use std::path::Path;

use nftproxyd::metrics::{TABLE, Type};
use serde::Deserialize as _;
use serde_json::{Value, json};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(name: &str) -> Vec<Value> {
    let text = read(name);
    serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML")).collect()
}

fn rules() -> Vec<Value> {
    let [file] = &documents("prometheus-rules.yaml")[..] else { panic!("one document") };
    let groups = file["spec"]["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// The texts of all fields of this name.
fn texts(value: &Value, field: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if name == field {
                    found.extend(value.as_str().map(str::to_owned));
                }
                texts(value, field, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, field, found)),
        _ => {}
    }
}

/// The series that a scrape gives.
fn series() -> BTreeSet<String> {
    let mut series = BTreeSet::from(["up".to_owned()]);
    for metric in TABLE {
        match metric.metric_type {
            Type::Histogram(_) => {
                series.extend(["bucket", "sum", "count"].map(|part| format!("{}_{part}", metric.name)));
            }
            Type::Counter | Type::Gauge => drop(series.insert(metric.name.to_owned())),
        }
    }
    series
}

/// The words of an expression that have the prefix of some metric.
fn metrics_in(expression: &str) -> Vec<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = ["kubeproxy_", "nftproxyd_", "rest_client_", "process_", "kubernetes_", "go_"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn expressions_read_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).expect("JSON");
    let mut expressions = Vec::new();
    texts(&dashboard["panels"], "expr", &mut expressions);
    let panels = expressions.len();
    texts(&rules().into(), "expr", &mut expressions);
    assert!(panels > 30 && expressions.len() >= panels + 10, "{} expressions", expressions.len());
    texts(&dashboard["templating"], "query", &mut expressions);

    let series = series();
    let mut read = BTreeSet::new();
    for expression in &expressions {
        for metric in metrics_in(expression) {
            assert!(series.contains(metric), "there is no {metric}: {expression}");
            read.insert(metric);
        }
        assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{expression}");
        assert_eq!(expression.matches('{').count(), expression.matches('}').count(), "{expression}");
    }
    for metric in TABLE.iter().filter(|metric| metric.name.starts_with("nftproxyd_")) {
        let is_read = read.iter().any(|word| word.strip_suffix("_bucket").unwrap_or(word) == metric.name);
        assert!(is_read, "nobody shows {}", metric.name);
    }
}

#[test]
fn panels_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).expect("JSON");
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64()), "{panel}");
        let at = |field: &str| panel["gridPos"][field].as_u64().expect("a number");
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} covers another", panel["title"]);
            }
        }
    }
}

#[test]
fn alerts_say_what_to_do() {
    let mut names = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().expect("a name").to_owned();
        assert!(["critical", "warning", "info"].map(Value::from).contains(&rule["labels"]["severity"]), "{name}");
        for text in ["summary", "description", "runbook_url"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| !text.is_empty()), "{name}: {text}");
        }
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
}

/// The anchor of a heading, as it is made where pages are shown.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[test]
fn every_alert_has_its_page() {
    let page = read("runbook.md");
    let parts: Vec<&str> = page.split("\n## ").skip(1).collect();
    let anchors: Vec<String> = parts.iter().map(|part| anchor(part.lines().next().unwrap_or_default())).collect();
    let mut wanted = Vec::new();
    for rule in rules() {
        let url = rule["annotations"]["runbook_url"].as_str().expect("a runbook");
        let (file, to) = url.split_once('#').expect("an anchor");
        assert_eq!(file, "deploy/runbook.md", "{}", rule["alert"]);
        assert_eq!(to, rule["alert"].as_str().expect("a name").to_lowercase());
        wanted.push(to.to_owned());
    }
    assert_eq!(anchors, wanted, "in the same order");
    for part in parts {
        for word in ["\n- First look: ", "\n- Fix: "] {
            assert_eq!(part.matches(word).count(), 1, "{word:?}: {part}");
        }
        for link in part.split("](#").skip(1).filter_map(|rest| rest.split_once(')')) {
            assert!(anchors.iter().any(|anchor| anchor == link.0), "{}", link.0);
        }
    }
}

/// What the dashboard "Proxy" and the alerts of kubernetes-mixin read of kube-proxy, but for what the documentation says
/// there is not.
#[test]
fn dashboard_and_alerts_of_kubernetes_mixin_go_on_working() {
    const READ: [(&str, &[&str]); 10] = [
        ("up", &[]),
        ("kubeproxy_sync_proxy_rules_duration_seconds_count", &[]),
        ("kubeproxy_sync_proxy_rules_duration_seconds_bucket", &[]),
        ("kubeproxy_network_programming_duration_seconds_count", &[]),
        ("kubeproxy_network_programming_duration_seconds_bucket", &[]),
        ("rest_client_requests_total", &["code"]),
        ("rest_client_request_duration_seconds_bucket", &["verb"]),
        ("process_resident_memory_bytes", &[]),
        ("process_cpu_seconds_total", &[]),
        ("go_goroutines", &[]),
    ];
    let series = series();
    let documented = read("observability.md");
    for (name, labels) in READ {
        if !series.contains(name) {
            assert_eq!(name, "go_goroutines");
            assert!(documented.contains("`go_goroutines`"), "it is not said that there is none");
            continue;
        }
        let of_series = |metric: &&nftproxyd::metrics::Definition| {
            name == metric.name || name.strip_prefix(metric.name).is_some_and(|rest| rest.starts_with('_'))
        };
        if let Some(metric) = TABLE.iter().filter(of_series).max_by_key(|metric| metric.name.len()) {
            assert!(labels.iter().all(|label| metric.labels.contains(label)), "{name}: {labels:?}");
        }
    }
    // Its alert about versions compares those of all components that have this.
    assert!(!series.contains("kubernetes_build_info"));
}

#[test]
fn the_service_monitor_finds_the_pods() {
    let [service, _] = &documents("servicemonitor.yaml")[..] else { panic!("two documents") };
    let selector = service["spec"]["selector"].as_object().expect("labels");
    let selects = |labels: &Value| selector.iter().all(|(label, value)| labels[label] == *value);
    let [daemon_set] = &documents("kubernetes/base/daemonset.yaml")[..] else { panic!("one document") };
    let [kustomization] = &documents("kubernetes/base/kustomization.yaml")[..] else { panic!("one document") };
    let template = &daemon_set["spec"]["template"];
    assert!(selects(&template["metadata"]["labels"]), "{template}");
    // That of kubeadm, which the patches leave as it is.
    assert!(selects(&json!({"k8s-app": "kube-proxy"})));
    assert!(!selects(&json!({"k8s-app": "kube-dns"})));
    assert_eq!(service["metadata"]["namespace"], kustomization["namespace"], "it selects in its own");
    let [container] = &template["spec"]["containers"].as_array().expect("containers")[..] else { panic!("one") };
    let ports = container["ports"].as_array().expect("ports");
    assert!(ports.iter().any(|port| port["containerPort"] == service["spec"]["ports"][0]["targetPort"]));
}

#[test]
fn the_service_monitor_finds_the_port() {
    let [service, monitor] = &documents("servicemonitor.yaml")[..] else { panic!("two documents") };
    assert_eq!((&service["kind"], &monitor["kind"]), (&"Service".into(), &"ServiceMonitor".into()));
    assert_eq!(service["spec"]["ports"][0]["port"], 10249);
    assert_eq!(service["spec"]["ports"][0]["name"], monitor["spec"]["endpoints"][0]["port"]);
    let selected = monitor["spec"]["selector"]["matchLabels"].as_object().expect("labels");
    for (label, value) in selected {
        assert_eq!(&service["metadata"]["labels"][label], value, "{label}");
    }
    let job_label = monitor["spec"]["jobLabel"].as_str().expect("a label");
    assert_eq!(service["metadata"]["labels"][job_label], "kube-proxy", "alerts look for this job");
}

#[test]
fn the_documentation_has_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/observability.md");
    let text = std::fs::read_to_string(path).expect("readable");
    let documented: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(name, rest)| {
            Some((name, rest.split(" | ").collect::<Vec<_>>())).filter(|(_, cells)| cells.len() == 3)
        })
        .map(|(name, cells)| format!("{name} {} {}", cells[0], cells[1]))
        .filter(|row| row.contains('_'))
        .collect();
    let exported: BTreeSet<String> = TABLE
        .iter()
        .map(|metric| {
            let metric_type = match metric.metric_type {
                Type::Counter => "counter",
                Type::Gauge => "gauge",
                Type::Histogram(_) => "histogram",
            };
            let labels = if metric.labels.is_empty() { "–".to_owned() } else { metric.labels.join(", ") };
            format!("{} {metric_type} {labels}", metric.name)
        })
        .collect();
    assert_eq!(documented, exported);
}
