//! What each alert in `deploy/prometheus-rules.yaml` fires at, and at what it does not, by Prometheus' own `promtool`.

#[path = "support/netns/mod.rs"]
mod netns;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// What one alert does while Prometheus follows some series of values, one every half a minute.
struct Case {
    alert: &'static str,
    /// The labels of the one that fires, which goes to one of several nodes.
    labels: Value,
    summary: &'static str,
    series: &'static [(&'static str, &'static str)],
    /// When it is looked at, in minutes, and whether it is there.
    minutes: &'static [(u32, bool)],
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    vec![
        // As long as one node answers, it is not all of them.
        Case {
            alert: "NftproxydDown",
            labels: json!({"severity": "critical"}),
            summary: "No nftproxyd can be scraped.",
            series: &[
                (r#"up{job="kube-proxy", instance="a"}"#, "1x19 0x59 1x40"),
                (r#"up{job="kube-proxy", instance="b"}"#, "1x39 0x39 1x40"),
                (r#"up{job="other", instance="b"}"#, "1x120"),
            ],
            minutes: &[(0, false), (9, false), (19, false), (34, false), (36, true), (39, true), (41, false)],
        },
        Case {
            alert: "NftproxydDown",
            labels: json!({"severity": "critical"}),
            summary: "No nftproxyd can be scraped.",
            series: &[(r#"up{job="other", instance="b"}"#, "1x120")],
            minutes: &[(14, false), (16, true)],
        },
        // One of three nodes, for twenty minutes; another for ten.
        Case {
            alert: "NftproxydNodeDown",
            labels: json!({"severity": "warning", "job": "kube-proxy", "instance": "b"}),
            summary: "nftproxyd on b cannot be scraped.",
            series: &[
                (r#"up{job="kube-proxy", instance="a"}"#, "1x120"),
                (r#"up{job="kube-proxy", instance="b"}"#, "1x19 0x39 1x60"),
                (r#"up{job="kube-proxy", instance="c"}"#, "1x19 0x19 1x80"),
            ],
            minutes: &[(9, false), (24, false), (26, true), (29, true), (31, false)],
        },
        Case {
            alert: "NftproxydNeverSynced",
            labels: json!({"severity": "critical", "job": "kube-proxy", "instance": "b"}),
            summary: "nftproxyd on b has not written any rules since it started.",
            series: &[
                (r#"up{job="kube-proxy", instance="a"}"#, "1x80"),
                (r#"up{job="kube-proxy", instance="b"}"#, "1x80"),
                (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{instance="a", ip_family="IPv4"}"#, "0x3 100x80"),
                (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{instance="b", ip_family="IPv4"}"#, "0x19 600x60"),
            ],
            minutes: &[(4, false), (6, true), (9, true), (11, false)],
        },
        // A quiet cluster: one change comes, half a minute after the last sync or an hour, and is stuck for ten minutes. Node b
        // has changes all the time, which are in force at once; on c one was taken back.
        Case {
            alert: "NftproxydStuck",
            labels: json!({"severity": "critical", "instance": "a", "ip_family": "IPv4"}),
            summary: "nftproxyd on a does not get IPv4 rules into the kernel.",
            series: &[
                (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{instance="a", ip_family="IPv4"}"#, "570x39 1200x40"),
                (r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{instance="a", ip_family="IPv4"}"#, "569x19 600x60"),
                (r#"nftproxyd_in_sync{instance="a", ip_family="IPv4"}"#, "1x19 0x19 1x40"),
                (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{instance="b", ip_family="IPv4"}"#, "0+30x80"),
                (r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{instance="b", ip_family="IPv4"}"#, "1+30x80"),
                (r#"nftproxyd_in_sync{instance="b", ip_family="IPv4"}"#, "0x80"),
                (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{instance="c", ip_family="IPv4"}"#, "30x80"),
                (r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{instance="c", ip_family="IPv4"}"#, "40x80"),
                (r#"nftproxyd_in_sync{instance="c", ip_family="IPv4"}"#, "1x80"),
            ],
            minutes: &[(9, false), (14, false), (17, true), (19, true), (21, false)],
        },
        Case {
            alert: "NftproxydStuck",
            labels: json!({"severity": "critical", "instance": "a", "ip_family": "IPv6"}),
            summary: "nftproxyd on a does not get IPv6 rules into the kernel.",
            series: &[
                (r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{instance="a", ip_family="IPv6"}"#, "30x160"),
                (r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{instance="a", ip_family="IPv6"}"#, "29x119 3600x40"),
                (r#"nftproxyd_in_sync{instance="a", ip_family="IPv6"}"#, "1x119 0x40"),
            ],
            minutes: &[(59, false), (64, false), (66, true)],
        },
        Case {
            alert: "NftproxydNotInSync",
            labels: json!({"severity": "critical", "instance": "b", "ip_family": "IPv6"}),
            summary: "The IPv6 table of nftproxyd on b is not what it should be.",
            series: &[
                (r#"nftproxyd_in_sync{instance="a", ip_family="IPv6"}"#, "1x9 0x7 1x80"),
                (r#"nftproxyd_in_sync{instance="b", ip_family="IPv4"}"#, "1x80"),
                (r#"nftproxyd_in_sync{instance="b", ip_family="IPv6"}"#, "1x19 0x19 1x40"),
            ],
            minutes: &[(9, false), (14, false), (16, true), (21, false)],
        },
        // Two nodes, of which one hears nothing of EndpointSlices for ten minutes.
        Case {
            alert: "NftproxydNotFollowing",
            labels: json!({"severity": "critical", "instance": "b", "kind": "EndpointSlice"}),
            summary: "nftproxyd on b does not hear of changes of EndpointSlice objects.",
            series: &[
                (r#"nftproxyd_source_following{instance="a", kind="EndpointSlice"}"#, "1x80"),
                (r#"nftproxyd_source_following{instance="b", kind="Service"}"#, "1x80"),
                (r#"nftproxyd_source_following{instance="b", kind="EndpointSlice"}"#, "1x19 0x19 1x40"),
            ],
            minutes: &[(9, false), (11, false), (13, true), (19, true), (21, false)],
        },
        Case {
            alert: "NftproxydSyncFails",
            labels: json!({"severity": "warning", "instance": "b", "ip_family": "IPv4"}),
            summary: "The kernel on b refuses IPv4 transactions.",
            series: &[
                (r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{instance="a", ip_family="IPv4"}"#, "0x19 1x100"),
                (r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{instance="b", ip_family="IPv4"}"#, "0x19 0+1x39 40x60"),
            ],
            minutes: &[(9, false), (19, false), (25, true), (55, false)],
        },
        Case {
            alert: "NftproxydServicesRefused",
            labels: json!({"severity": "warning", "instance": "b", "ip_family": "IPv4"}),
            summary: "The kernel on b refuses 2 Services (IPv4).",
            series: &[
                (r#"nftproxyd_refused_services{instance="a", ip_family="IPv4"}"#, "0x19 1x19 0x60"),
                (r#"nftproxyd_refused_services{instance="b", ip_family="IPv4"}"#, "0x19 2x39 0x40"),
            ],
            minutes: &[(9, false), (24, false), (26, true), (31, false)],
        },
        // Two nodes, on one of which the port of a health check is busy for ten minutes.
        Case {
            alert: "NftproxydHealthCheckFails",
            labels: json!({"severity": "warning", "instance": "b", "ip_family": "IPv4"}),
            summary: "nftproxyd on b cannot serve the health checks of 2 Services (IPv4).",
            series: &[
                (r#"nftproxyd_health_checks_failing{instance="a", ip_family="IPv4"}"#, "0x80"),
                (r#"nftproxyd_health_checks_failing{instance="b", ip_family="IPv4"}"#, "0x19 2x19 0x40"),
            ],
            minutes: &[(9, false), (14, false), (16, true), (19, true), (21, false)],
        },
        // In IPv4 all takes 5 to 10 s, in IPv6 less.
        Case {
            alert: "NftproxydSlow",
            labels: json!({"severity": "warning", "ip_family": "IPv4"}),
            summary: "It takes 9.95s until a changed endpoint is used (IPv4).",
            series: &[
                (r#"kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy", ip_family="IPv4", le="5"}"#, "0x200"),
                (r#"kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy", ip_family="IPv4", le="10"}"#, "0+10x200"),
                (r#"kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy", ip_family="IPv4", le="+Inf"}"#, "0+10x200"),
                (r#"kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy", ip_family="IPv6", le="5"}"#, "0+10x200"),
                (r#"kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy", ip_family="IPv6", le="10"}"#, "0+10x200"),
                (r#"kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy", ip_family="IPv6", le="+Inf"}"#, "0+10x200"),
            ],
            minutes: &[(50, false), (70, true)],
        },
        Case {
            alert: "NftproxydTableChanged",
            labels: json!({"severity": "warning", "instance": "b", "ip_family": "IPv4"}),
            summary: "Somebody changes the IPv4 table nftproxyd on b.",
            series: &[
                (r#"nftproxyd_foreign_changes_total{instance="a", ip_family="IPv4"}"#, "0x19 3x200"),
                (r#"nftproxyd_foreign_changes_total{instance="b", ip_family="IPv4"}"#, "0x19 10x200"),
            ],
            minutes: &[(9, false), (11, true), (90, false)],
        },
        Case {
            alert: "NftproxydObjectsRejected",
            labels: json!({"severity": "info", "instance": "b", "kind": "Service"}),
            summary: "nftproxyd on b cannot use a part of 3 objects of kind Service.",
            series: &[
                (r#"nftproxyd_rejected_objects{instance="b", kind="Node"}"#, "0x120"),
                (r#"nftproxyd_rejected_objects{instance="b", kind="Service"}"#, "0x19 3x79 0x20"),
            ],
            minutes: &[(9, false), (39, false), (41, true), (51, false)],
        },
        // Three of four requests fail on one node, one of four on the other.
        Case {
            alert: "NftproxydApiErrors",
            labels: json!({"severity": "warning", "instance": "b"}),
            summary: "nftproxyd on b hardly gets an answer from the API server.",
            series: &[
                (r#"rest_client_requests_total{job="kube-proxy", instance="a", code="<error>"}"#, "0+1x120"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="a", code="200"}"#, "0+3x120"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="b", code="<error>"}"#, "0x39 0+2x80"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="b", code="503"}"#, "0x39 0+1x80"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="b", code="200"}"#, "0+1x120"),
            ],
            minutes: &[(19, false), (50, true)],
        },
        // A token is revoked on one node; on the other it was replaced a moment too late.
        Case {
            alert: "NftproxydApiRefuses",
            labels: json!({"severity": "warning", "instance": "b", "code": "401"}),
            summary: "The API server refuses requests of nftproxyd on b (401).",
            series: &[
                (r#"rest_client_requests_total{job="kube-proxy", instance="a", code="401", method="GET"}"#, "0x19 2x80"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="a", code="200", method="GET"}"#, "0+3x100"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="a", code="404", method="GET"}"#, "0+3x100"),
                (r#"rest_client_requests_total{job="kube-proxy", instance="b", code="401", method="GET"}"#, "0x19 0+2x39 80x60"),
            ],
            minutes: &[(9, false), (12, false), (18, true), (29, true), (45, false)],
        },
        Case {
            alert: "NftproxydApiRefuses",
            labels: json!({"severity": "warning", "instance": "b", "code": "403"}),
            summary: "The API server refuses requests of nftproxyd on b (403).",
            series: &[(r#"rest_client_requests_total{job="kube-proxy", instance="b", code="403", method="GET"}"#, "0x19 0+1x80")],
            minutes: &[(9, false), (12, false), (20, true)],
        },
        Case {
            alert: "NftproxydConntrackFills",
            labels: json!({"severity": "warning", "instance": "b"}),
            summary: "Connection tracking on b is 95% full.",
            series: &[
                (r#"nftproxyd_conntrack_entries{instance="a"}"#, "90x80"),
                (r#"nftproxyd_conntrack_entries_limit{instance="a"}"#, "100x80"),
                (r#"nftproxyd_conntrack_entries{instance="b"}"#, "5x19 95x19 5x40"),
                (r#"nftproxyd_conntrack_entries_limit{instance="b"}"#, "100x80"),
            ],
            minutes: &[(9, false), (14, false), (16, true), (21, false)],
        },
        // Two families on a node, of which one has room for clients, and the other has none left for ten minutes.
        Case {
            alert: "NftproxydAffinityFills",
            labels: json!({"severity": "warning", "instance": "a", "ip_family": "IPv6"}),
            summary: "The map of clients with session affinity on a is 95% full (IPv6).",
            series: &[
                (r#"nftproxyd_affinity_clients{instance="a", ip_family="IPv4"}"#, "90x80"),
                (r#"nftproxyd_affinity_clients_limit{instance="a", ip_family="IPv4"}"#, "100x80"),
                (r#"nftproxyd_affinity_clients{instance="a", ip_family="IPv6"}"#, "0x19 95x19 90x40"),
                (r#"nftproxyd_affinity_clients_limit{instance="a", ip_family="IPv6"}"#, "100x80"),
            ],
            minutes: &[(9, false), (14, false), (16, true), (19, true), (21, false)],
        },
    ]
}

fn spec() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus-rules.yaml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file: Value = serde_yaml::from_str(&text).expect("YAML");
    file["spec"].clone()
}

fn rules() -> Vec<Value> {
    let spec = spec();
    let groups = spec["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
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

fn run_promtool(arguments: &[&str], file: &Path) -> Option<Output> {
    Some(Command::new(promtool()?).args(arguments).arg(file).output().expect("it can be run"))
}

/// The alerts in a file of Prometheus.
fn rules_file(folder: &Path) -> PathBuf {
    let path = folder.join("rules.yaml");
    std::fs::write(&path, serde_yaml::to_string(&spec()).expect("YAML")).expect("written");
    path
}

#[test]
fn prometheus_accepts_the_alerts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(output) = run_promtool(&["check", "rules"], &rules_file(folder.path())) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// All that promtool wants to know is in the case, but for the annotations that are always the same.
#[test]
fn alerts_fire_when_they_should_and_at_no_other_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rules = rules();
    let test = |Case { alert, labels, summary, series, minutes }: Case| {
        let rule = rules.iter().find(|rule| rule["alert"] == alert).unwrap_or_else(|| panic!("there is no {alert}"));
        let mut annotations = rule["annotations"].clone();
        annotations["summary"] = json!(summary);
        let fires = json!([{"exp_labels": labels, "exp_annotations": annotations}]);
        let at = |(minute, is_there): &(u32, bool)| {
            let alerts = if *is_there { fires.clone() } else { json!([]) };
            json!({"eval_time": format!("{minute}m"), "alertname": alert, "exp_alerts": alerts})
        };
        let input = series.iter().map(|(series, values)| json!({"series": series, "values": values}));
        json!({
            "interval": "30s",
            "input_series": input.collect::<Vec<_>>(),
            "alert_rule_test": minutes.iter().map(at).collect::<Vec<_>>(),
        })
    };
    let tests: Vec<Value> = cases().into_iter().map(test).collect();
    let file = json!({"rule_files": [rules_file(folder.path())], "evaluation_interval": "30s", "tests": tests});
    let path = folder.path().join("test.yaml");
    std::fs::write(&path, file.to_string()).expect("written");
    let Some(output) = run_promtool(&["test", "rules"], &path) else { return };
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

#[test]
fn every_alert_is_tried_both_ways() {
    let rules = rules();
    let names: BTreeSet<&str> = rules.iter().filter_map(|rule| rule["alert"].as_str()).collect();
    for wanted in [true, false] {
        let cases = cases();
        let tried = cases.iter().filter(|case| case.minutes.iter().any(|(_, is_there)| *is_there == wanted));
        assert_eq!(tried.map(|case| case.alert).collect::<BTreeSet<_>>(), names, "{wanted}");
    }
}

/// A node that is well: what it tells fires nothing.
#[test]
fn nothing_fires_in_a_healthy_cluster() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let per_node: [(&str, &str); 12] = [
        ("up{job=\"kube-proxy\", NODE}", "1x240"),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}", "30x240"),
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}",
            "29x240",
        ),
        (
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}",
            "0x240",
        ),
        ("nftproxyd_in_sync{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}", "1x240"),
        ("nftproxyd_source_following{job=\"kube-proxy\", NODE, kind=\"Service\"}", "1x240"),
        ("nftproxyd_health_checks_failing{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}", "0x240"),
        ("nftproxyd_refused_services{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}", "0x240"),
        ("nftproxyd_foreign_changes_total{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}", "0x240"),
        ("nftproxyd_rejected_objects{job=\"kube-proxy\", NODE, kind=\"Service\"}", "0x240"),
        ("rest_client_requests_total{job=\"kube-proxy\", NODE, code=\"200\"}", "0+1x240"),
        ("nftproxyd_affinity_clients{job=\"kube-proxy\", NODE, ip_family=\"IPv4\"}", "0x240"),
    ];
    let nodes = ["instance=\"a\"", "instance=\"b\""];
    let series = nodes.iter().flat_map(|node| {
        per_node.map(|(series, values)| json!({"series": series.replace("NODE", node), "values": values}))
    });
    let rules = rules();
    let quiet = rules.iter().flat_map(|rule| {
        [1, 20, 60, 110].map(|at| json!({"eval_time": format!("{at}m"), "alertname": rule["alert"], "exp_alerts": []}))
    });
    let test = json!({
        "interval": "30s", "input_series": series.collect::<Vec<_>>(), "alert_rule_test": quiet.collect::<Vec<_>>()
    });
    let file = json!({"rule_files": [rules_file(folder.path())], "evaluation_interval": "30s", "tests": [test]});
    let path = folder.path().join("test.yaml");
    std::fs::write(&path, file.to_string()).expect("written");
    let Some(output) = run_promtool(&["test", "rules"], &path) else { return };
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}
