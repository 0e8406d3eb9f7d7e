//! The README names every field, flag, metric and endpoint of kube-proxy.

use nftproxyd::config::{FLAGS, field_paths};
use nftproxyd::metrics::TABLE;
use serde_yaml::Value;

const README: &str = include_str!("../README.md");

/// Paths of kube-proxy's two ports.
const ENDPOINTS: [&str; 12] = [
    "/healthz",
    "/livez",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/healthz/ping",
    "/configz",
    "/statusz",
    "/flagz",
    "/debug/pprof",
    "/debug/flags",
    "/debug/flags/v",
];

#[test]
fn the_readme_names_every_field_and_flag() {
    let missing: Vec<String> = field_paths()
        .map(|path| format!("`{path}`"))
        .chain(FLAGS.iter().map(|flag| format!("`--{}`", flag.name)))
        .filter(|name| !README.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "not in README.md: {}", missing.join(", "));
}

/// The first cells of the rows of a table, found by its heading, with what is said about each.
fn rows(heading: &str) -> Vec<(&'static str, &'static str)> {
    let table = README.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.trim_matches('|').split_once(" | ")).map(|(a, b)| (a.trim(), b.trim())).collect()
}

#[test]
fn the_readme_says_what_becomes_of_every_metric_of_kube_proxy() {
    let metrics: Value = serde_yaml::from_str(include_str!("../testdata/metrics/kube-proxy.yaml")).expect("YAML");
    let names = |part: &str| -> Vec<String> {
        let items = metrics[part].as_sequence().expect("a list").iter();
        items.map(|item| item.as_str().or(item["name"].as_str()).expect("a name").to_owned()).collect()
    };
    let rows = rows("| Metric | What");
    let said = |name: &str| rows.iter().find(|(cell, _)| *cell == format!("`{name}`")).map(|(_, said)| *said);
    let exported = |name: &str| TABLE.iter().any(|metric| metric.name == name);
    for part in ["own", "client", "process", "slis"] {
        for name in names(part) {
            let said = said(&name).unwrap_or_else(|| panic!("{name} is not in README.md"));
            assert!(exported(&name) && !said.starts_with("not exported"), "{name}: {said}");
        }
    }
    for name in names("others") {
        let said = said(&name).unwrap_or_else(|| panic!("{name} is not in README.md"));
        assert!(!exported(&name) && said.starts_with("not exported"), "{name}: {said}");
    }
    let known: Vec<String> = ["own", "client", "process", "slis", "others"].into_iter().flat_map(names).collect();
    for (cell, _) in rows.iter().filter(|(cell, _)| !cell.contains('*')) {
        assert!(known.iter().any(|name| *cell == format!("`{name}`")), "{cell} is none of kube-proxy's");
    }
}

#[test]
fn the_readme_says_what_becomes_of_every_endpoint_of_kube_proxy() {
    let rows = rows("| Endpoint | What");
    for path in ENDPOINTS {
        assert!(rows.iter().any(|(cell, _)| cell.contains(&format!("`{path}`"))), "{path} is not in README.md");
    }
}
