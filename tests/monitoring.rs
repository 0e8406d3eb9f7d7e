//! Holds the dashboard, the alerts and the ServiceMonitor in `deploy/` to the metrics that there are.

#[path = "support/netns/mod.rs"]
mod netns;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| !text.is_empty()), "{name}: {text}");
        }
        assert!(names.insert(name.clone()), "{name} is there twice");
    }
}

/// promtool as it is installed, or as `tests/promtool` has unpacked it.
fn promtool() -> Option<PathBuf> {
    let here = std::env::current_exe().expect("it runs");
    let target = here.ancestors().map(|folder| folder.join("promtool"));
    let found = [PathBuf::from("promtool")].into_iter().chain(target);
    let runs =
        |path: &PathBuf| Command::new(path).arg("--version").output().is_ok_and(|output| output.status.success());
    let found = found.into_iter().find(runs);
    if found.is_none() {
        netns::skip("promtool", "run tests/promtool");
    }
    found
}

fn run_promtool(arguments: &[&str], rules: &Path) -> Option<Output> {
    Some(Command::new(promtool()?).args(arguments).arg(rules).output().expect("it can be run"))
}

/// The alerts in a file of Prometheus.
fn rules_file(folder: &Path) -> PathBuf {
    let [file] = &documents("prometheus-rules.yaml")[..] else { panic!("one document") };
    let path = folder.join("rules.yaml");
    std::fs::write(&path, serde_yaml::to_string(&file["spec"]).expect("YAML")).expect("written");
    path
}

#[test]
fn prometheus_accepts_the_alerts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(output) = run_promtool(&["check", "rules"], &rules_file(folder.path())) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Has Prometheus follow series of values, one every half a minute, and say at these minutes whether an alert is there; all
/// of it as promtool wants it, but for the annotation that is the rule's own `description`.
fn is_alert_at(name: &str, series: &[(&str, &str)], alert: &Value, minutes: &[(u32, bool)]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut alert = alert.clone();
    alert["exp_annotations"]["description"] =
        rules().iter().find(|rule| rule["alert"] == name).expect("it is there")["annotations"]["description"].clone();
    let series: Vec<_> = series.iter().map(|(series, values)| json!({"series": series, "values": values})).collect();
    let at = |(minute, is_there): &(u32, bool)| {
        let alerts = if *is_there { json!([alert]) } else { json!([]) };
        json!({"eval_time": format!("{minute}m"), "alertname": name, "exp_alerts": alerts})
    };
    let test = json!({
        "rule_files": [rules_file(folder.path())],
        "evaluation_interval": "30s",
        "tests": [{
            "interval": "30s",
            "input_series": series,
            "alert_rule_test": minutes.iter().map(at).collect::<Vec<_>>(),
        }],
    });
    let path = folder.path().join("test.yaml");
    std::fs::write(&path, test.to_string()).expect("written");
    let Some(output) = run_promtool(&["test", "rules"], &path) else { return };
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

/// Two nodes, of which one hears nothing of EndpointSlices for ten minutes.
#[test]
fn a_kind_that_is_not_followed_is_an_alert() {
    let alert = json!({
        "exp_labels": {"severity": "critical", "instance": "b", "kind": "EndpointSlice"},
        "exp_annotations": {"summary": "nftproxyd on b does not hear of changes of EndpointSlice objects."},
    });
    let series = [
        ("nftproxyd_source_following{instance=\"a\", kind=\"EndpointSlice\"}", "1x80"),
        ("nftproxyd_source_following{instance=\"b\", kind=\"Service\"}", "1x80"),
        ("nftproxyd_source_following{instance=\"b\", kind=\"EndpointSlice\"}", "1x19 0x19 1x40"),
    ];
    let minutes = [(9, false), (11, false), (13, true), (19, true), (21, false)];
    is_alert_at("NftproxydNotFollowing", &series, &alert, &minutes);
}

/// Two families on a node, of which one has room for clients, and the other has none left for ten minutes.
#[test]
fn a_map_of_clients_that_fills_is_an_alert() {
    let alert = json!({
        "exp_labels": {"severity": "warning", "instance": "a", "ip_family": "IPv6"},
        "exp_annotations": {"summary": "The map of clients with session affinity on a is 95% full (IPv6)."},
    });
    let series = [
        ("nftproxyd_affinity_clients{instance=\"a\", ip_family=\"IPv4\"}", "90x80"),
        ("nftproxyd_affinity_clients_limit{instance=\"a\", ip_family=\"IPv4\"}", "100x80"),
        ("nftproxyd_affinity_clients{instance=\"a\", ip_family=\"IPv6\"}", "0x19 95x19 90x40"),
        ("nftproxyd_affinity_clients_limit{instance=\"a\", ip_family=\"IPv6\"}", "100x80"),
    ];
    let minutes = [(9, false), (14, false), (16, true), (19, true), (21, false)];
    is_alert_at("NftproxydAffinityFills", &series, &alert, &minutes);
}

/// Two nodes, on one of which the port of a health check is busy for ten minutes.
#[test]
fn a_health_check_that_is_not_served_is_an_alert() {
    let alert = json!({
        "exp_labels": {"severity": "warning", "instance": "b", "ip_family": "IPv4"},
        "exp_annotations": {"summary": "nftproxyd on b cannot serve the health checks of 2 Services (IPv4)."},
    });
    let series = [
        ("nftproxyd_health_checks_failing{instance=\"a\", ip_family=\"IPv4\"}", "0x80"),
        ("nftproxyd_health_checks_failing{instance=\"b\", ip_family=\"IPv4\"}", "0x19 2x19 0x40"),
    ];
    let minutes = [(9, false), (14, false), (16, true), (19, true), (21, false)];
    is_alert_at("NftproxydHealthCheckFails", &series, &alert, &minutes);
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
