//! The documentation names every field, flag, metric and endpoint of kube-proxy, each in the place where it is looked
//! for.

use std::collections::BTreeSet;

use nftproxyd::config::{FLAGS, field_paths};
use nftproxyd::metrics::TABLE;
use serde_yaml::Value;

const COMMAND: &str = include_str!("../man/nftproxyd.8");
const CONFIGURATION: &str = include_str!("../man/nftproxyd.yaml.5");
const OBSERVABILITY: &str = include_str!("../deploy/observability.md");

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

/// Flags that the command line has a meaning of its own for, beside those in [`FLAGS`], which set no field.
const OWN_FLAGS: [&str; 7] = ["config", "master", "write-config-to", "init-only", "cleanup", "version", "help"];

// --- man pages -----------------------------------------------------------------------------------------------------

/// The flags in a line of a man page, with whether a dagger marks each.
fn flags_in(line: &str) -> Vec<(String, bool)> {
    let flag = |text: &str| {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        (name.trim_start_matches("\\-").replace("\\-", "-"), rest.starts_with("No \\(dg"))
    };
    line.split(" Fl ").skip(1).map(flag).collect()
}

/// The first words of the entries of the configuration's manual: paths of fields, with their flags.
fn fields_described() -> BTreeSet<(String, Option<(String, bool)>)> {
    let entries = CONFIGURATION.lines().filter_map(|line| line.strip_prefix(".It Va "));
    entries
        .flat_map(|entry| {
            let field = entry.split(' ').next().unwrap_or_default().to_owned();
            let flags: Vec<_> = flags_in(entry).into_iter().map(Some).collect();
            let flags = if flags.is_empty() { vec![None] } else { flags };
            flags.into_iter().map(move |flag| (field.clone(), flag))
        })
        .collect()
}

#[test]
fn the_manual_has_every_field_with_its_flags() {
    let path = |field: &str| field_paths().find(|path| field == *path || field.starts_with(&format!("{path}.")));
    let mut known = BTreeSet::from([("hostnameOverride".to_owned(), Some(("hostname-override".to_owned(), true)))]);
    for flag in FLAGS {
        for field in flag.fields {
            let path = path(field).unwrap_or_else(|| panic!("--{}: there is no field {field}", flag.name));
            known.insert((path.to_owned(), Some((flag.name.to_owned(), flag.beats_file))));
        }
    }
    let with_flags: BTreeSet<String> = known.iter().map(|(field, _)| field.clone()).collect();
    known.extend(field_paths().filter(|path| !with_flags.contains(*path)).map(|path| (path.to_owned(), None)));
    let described = fields_described();
    let missing: Vec<_> = known.difference(&described).collect();
    let unknown: Vec<_> = described.difference(&known).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "nftproxyd.yaml(5): missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn the_manual_has_every_flag_without_a_field() {
    let (_, section) = COMMAND.split_once("\n.Sh FLAGS OF KUBE-PROXY\n").expect("a section about flags");
    let (section, _) = section.split_once("\n.Sh ").expect("the section ends");
    let entries = section.lines().filter(|line| line.starts_with(".It Fl "));
    let described: BTreeSet<String> = entries.flat_map(flags_in).map(|(name, _)| name).collect();
    let without_field = FLAGS.iter().filter(|flag| flag.fields.is_empty()).map(|flag| flag.name);
    let known: BTreeSet<String> = without_field.chain(OWN_FLAGS).map(str::to_owned).collect();
    assert_eq!(described, known);
}

// --- tables --------------------------------------------------------------------------------------------------------

/// The rows of a table, found by the beginning of its heading.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let table = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn it_is_said_what_becomes_of_every_metric_of_kube_proxy() {
    let metrics: Value = serde_yaml::from_str(include_str!("../testdata/metrics/kube-proxy.yaml")).expect("YAML");
    let names = |parts: &[&str]| -> BTreeSet<String> {
        let items = parts.iter().flat_map(|part| metrics[*part].as_sequence().expect("a list"));
        items.map(|item| item.as_str().or(item["name"].as_str()).expect("a name").to_owned()).collect()
    };
    let said = |heading: &str| -> BTreeSet<String> {
        let rows = rows(OBSERVABILITY, heading);
        let cells = rows.iter().map(|row| row[0]).filter(|cell| !cell.contains('*'));
        cells.map(|cell| cell.trim_matches('`').to_owned()).collect()
    };
    let exported: BTreeSet<String> = TABLE.iter().map(|metric| metric.name.to_owned()).collect();
    let theirs = names(&["own", "client", "process", "slis"]);
    assert_eq!(theirs.difference(&exported).collect::<Vec<_>>(), Vec::<&String>::new(), "not exported");
    let documented = said("| Metric | Type |");
    assert_eq!(theirs.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new(), "not documented");

    let others = names(&["others"]);
    assert_eq!(said("| Metric of kube-proxy | Why"), others);
    assert_eq!(others.intersection(&exported).collect::<Vec<_>>(), Vec::<&String>::new(), "exported nevertheless");
}

#[test]
fn it_is_said_what_becomes_of_every_endpoint_of_kube_proxy() {
    let rows = rows(OBSERVABILITY, "| Endpoint | What");
    for path in ENDPOINTS {
        let is_there = rows.iter().any(|row| row[0].contains(&format!("`{path}`")));
        assert!(is_there, "{path} is not in deploy/observability.md");
    }
}
