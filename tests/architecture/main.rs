//! Holds the source code to its architecture: which layer may use which (the picture is in `src/lib.rs`), that neither
//! layers nor files use each other in a circle, where `unsafe` and Kubernetes' types may be, what stays free of I/O, how
//! long a file may get, and where tests get network namespaces from.
//!
//! It reads the code as text: comments, strings and test code are taken out, the rest is looked at word by word. That
//! is enough for paths as rustfmt leaves them; whoever wants to get around it can.

mod checker;
mod circles;
mod rust;
mod source;

use std::path::Path;

use rust::{Token, tokens, without_comments_and_text};
use source::{SourceFile, files_below, is_for_tests, lines_with, source_files};

/// The layers, and which others each may use. There is a use for each of these.
const LAYERS: [(&str, &[&str]); 34] = [
    ("model", &[]),
    ("config", &["model", "addresses"]),
    ("source", &["model"]),
    ("ruleset", &["model", "balance"]),
    ("diff", &["ruleset", "model"]),
    ("nftables", &["diff", "ruleset", "model", "netlink", "sys"]),
    ("sys", &[]),
    ("netlink", &["sys"]),
    ("errors", &[]),
    ("keyed", &[]),
    ("secrets", &[]),
    ("threads", &[]),
    ("yaml", &[]),
    ("printable", &[]),
    ("addresses", &["model", "netlink"]),
    ("balance", &["model"]),
    ("sync", &["nftables", "diff", "ruleset", "model", "addresses", "balance", "config"]),
    ("conntrack", &["model", "netlink"]),
    ("http", &[]),
    ("health", &["model", "addresses", "http"]),
    ("metrics", &["model", "http"]),
    ("events", &["model"]),
    ("sysctl", &["config"]),
    ("status", &["model", "ruleset", "nftables", "conntrack", "metrics"]),
    ("leftovers", &["netlink"]),
    ("routing", &["model", "sysctl", "netlink"]),
    ("listening", &["model", "leftovers"]),
    ("localhost", &["model", "conntrack", "metrics", "events", "listening", "netlink"]),
    ("firewall", &["model", "leftovers", "routing", "netlink"]),
    (
        "doctor",
        &["nftables", "ruleset", "model", "leftovers", "listening", "routing", "sysctl", "config", "status", "metrics"],
    ),
    ("trace", &["nftables", "ruleset", "model", "netlink", "routing"]),
    (
        "explain",
        &[
            "nftables",
            "ruleset",
            "model",
            "conntrack",
            "status",
            "metrics",
            "firewall",
            "routing",
            "listening",
            "sysctl",
        ],
    ),
    ("cli", &["config", "model"]),
    ("logging", &["config"]),
];

/// What every layer may use, and what uses none of them.
const COMMON: [&str; 6] = ["errors", "keyed", "secrets", "threads", "yaml", "printable"];

/// What puts the layers together, and may use all of them; no layer uses these.
const ASSEMBLY: [&str; 3] = ["app", "lib", "main"];

/// Path prefixes of code that takes values and returns values: no runtime, no I/O, no clock, no environment.
const PURE: [&str; 24] = [
    "src/model/",
    "src/ruleset/",
    "src/diff/",
    "src/balance/",
    "src/conntrack/plan",
    "src/conntrack/gone",
    "src/conntrack/open",
    "src/health/state",
    "src/localhost/plan",
    "src/trace/connections",
    "src/trace/decode",
    "src/trace/expressions",
    "src/trace/hook",
    "src/trace/packet",
    "src/trace/report",
    "src/trace/table",
    "src/firewall/bits",
    "src/firewall/decode",
    "src/firewall/legacy",
    "src/firewall/packet",
    "src/firewall/step",
    "src/firewall/view",
    "src/firewall/walk",
    "src/firewall/xt",
];

/// What pure code must not mention.
const IMPURE: [&str; 5] = ["tokio", "std::fs", "std::env", "Instant::now", "SystemTime::now"];

/// Path prefixes of the code that may see Kubernetes' own types.
const KUBERNETES: [&str; 2] = ["src/source/", "src/events"];

/// Parts of the paths of files that are compiled for tests only: the borders do not hold for them.
const TEST_FILES: [&str; 5] = ["/tests.rs", "_tests.rs", "/tests/", "/testing/", "src/nftables/wire.rs"];

/// The only module with `unsafe`.
const UNSAFE: &str = "src/sys/";

/// The only place where tests make or enter network namespaces, and decide what cannot run on a machine.
const NAMESPACES: &str = "tests/support/netns/";

/// What code of tests must not mention elsewhere for that.
const MAKERS: [&str; 3] = ["unshare(", "CLONE_NEWNET", "setns"];

/// The same in texts, as far as a line shows it. The last are other rules for tests that cannot run.
const MAKERS_IN_TEXT: [&str; 9] = [
    "netns add",
    "netns exec",
    "\"netns\"",
    "unshare --net",
    "\"--net\"",
    "NFTPROXYD_REQUIRE",
    "var(\"CI\")",
    "var_os(\"CI\")",
    "eprintln!(\"skipped",
];

/// The only code of the program itself that does.
const PROGRAM_WITH_NAMESPACES: &str = "src/doctor/mod.rs";

/// Where inputs of random tests are that have failed once: `replayed` in tests/support/properties.rs.
const REGRESSIONS: &str = "testdata/proptest-regressions/";

/// The only module that makes threads.
const THREADS: &str = "src/threads.rs";

/// Lines of a file without its tests.
const MAX_LINES: usize = 600;

#[test]
fn every_layer_uses_only_those_that_it_may() {
    hold(borders);
}

#[test]
fn every_layer_uses_all_that_it_may() {
    let complaints = idle_permissions(&source_files("src"));
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn no_file_needs_itself_by_way_of_others() {
    let files = source_files("src");
    let complaints = circles::between_files(&files);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
    let complaints = circles::between_rooms(&files);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn unsafe_code_is_in_one_file() {
    hold(unsafe_code);
}

#[test]
fn kubernetes_types_stay_at_the_border() {
    hold(kubernetes_types);
}

#[test]
fn pure_code_has_no_effects() {
    hold(effects);
}

#[test]
fn threads_are_made_where_a_failure_is_expected() {
    hold(threads);
}

#[test]
fn files_are_short_enough_to_be_read() {
    hold(length);
}

#[test]
fn ignored_tests_say_why() {
    let mut files = source_files("src");
    files.extend(source_files("tests"));
    report(&files, ignored_without_reason);
}

#[test]
fn tests_take_namespaces_from_one_place() {
    let mut files = source_files("src");
    files.extend(source_files("tests"));
    report(&files, namespaces);

    // What CI may lack, some test needs.
    let needs = include_str!("../support/netns/needs.rs");
    let (_, list) = needs.split_once("const NOT_IN_CI").expect("the list");
    let (list, _) = list.split_once("];").expect("its end");
    let names: Vec<&str> = list.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next()).collect();
    assert!(!names.is_empty(), "{list}");
    files.retain(|file| !file.path.contains("netns"));
    for name in names {
        let (skipped, program) = (format!("skip(\"{name}\""), format!("\"{name}\""));
        let needs = |line: &str| line.contains(&skipped) || (line.contains("has(") && line.contains(&program));
        assert!(files.iter().any(|file| file.text.lines().any(needs)), "no test needs {name}");
    }
}

#[test]
fn inputs_that_failed_are_kept() {
    let mut files = source_files("src");
    files.extend(source_files("tests"));
    report(&files, forgotten_failures);
    // What is kept has a test that reads it.
    if Path::new(env!("CARGO_MANIFEST_DIR")).join(REGRESSIONS).exists() {
        for kept in files_below(REGRESSIONS, "txt") {
            let source = kept.replace(".txt", ".rs");
            let source = source.strip_prefix(REGRESSIONS).expect("it is below");
            let is_read = |file: &SourceFile| file.path == source && file.text.contains("replayed(");
            assert!(files.iter().any(is_read), "{kept}: no test reads it");
        }
    }
}

/// Checks all files of `src`.
fn hold(rule: fn(&SourceFile) -> Vec<String>) {
    report(&source_files("src"), rule);
}

fn report(files: &[SourceFile], rule: fn(&SourceFile) -> Vec<String>) {
    let complaints: Vec<String> = files.iter().flat_map(rule).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

// --- the rules -----------------------------------------------------------------------------------------------------

fn borders(file: &SourceFile) -> Vec<String> {
    let layer = file.top_module();
    if is_for_tests(&file.path) || ASSEMBLY.contains(&layer) {
        return Vec::new();
    }
    let Some((_, may_use)) = LAYERS.into_iter().find(|(name, _)| *name == layer) else {
        return vec![format!("{}: the layer `{layer}` is not known to tests/architecture", file.path)];
    };
    file.modules_used()
        .into_iter()
        .filter(|(_, used)| *used != layer && !may_use.contains(used) && !COMMON.contains(used))
        .map(|(line, used)| format!("{}:{line}: `{layer}` must not use `{used}`", file.path))
        .collect()
}

/// Entries of [`LAYERS`] that nothing makes use of.
fn idle_permissions(files: &[SourceFile]) -> Vec<String> {
    let is_used = |layer: &str, other: &str| {
        let mut files = files.iter().filter(|file| file.top_module() == layer && !is_for_tests(&file.path));
        files.any(|file| file.modules_used().iter().any(|(_, used)| *used == other))
    };
    let permissions = LAYERS.iter().flat_map(|(layer, may_use)| may_use.iter().map(move |other| (*layer, *other)));
    let idle = permissions.filter(|(layer, other)| !is_used(layer, other));
    idle.map(|(layer, other)| format!("LAYERS: `{layer}` does not use `{other}`: take it out")).collect()
}

fn unsafe_code(file: &SourceFile) -> Vec<String> {
    if file.path.starts_with(UNSAFE) { Vec::new() } else { file.mentions("unsafe", "belongs in src/sys") }
}

fn kubernetes_types(file: &SourceFile) -> Vec<String> {
    if file.is_under(&KUBERNETES) {
        return Vec::new();
    }
    file.mentions("k8s_openapi", "belongs in src/source/ and src/events")
}

fn effects(file: &SourceFile) -> Vec<String> {
    if !file.is_under(&PURE) {
        return Vec::new();
    }
    IMPURE.iter().flat_map(|path| file.mentions(path, "has no place in pure code")).collect()
}

fn threads(file: &SourceFile) -> Vec<String> {
    if file.path == THREADS {
        return Vec::new();
    }
    let makers = ["thread::spawn", "thread::Builder", "spawn_blocking", "scope.spawn"];
    makers.iter().flat_map(|maker| file.mentions(maker, "belongs in src/threads.rs")).collect()
}

fn length(file: &SourceFile) -> Vec<String> {
    let lines = file.text.lines().count() - file.test_lines;
    if lines <= MAX_LINES {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines without tests, more than {MAX_LINES}: divide it", file.path)]
}

fn namespaces(file: &SourceFile) -> Vec<String> {
    if file.path.starts_with(NAMESPACES) {
        return Vec::new();
    }
    // Few have a word of it, and the others need not be read.
    let may_have = MAKERS.iter().any(|maker| file.text.contains(maker.trim_end_matches('(')));
    let all = if may_have { tokens(&without_comments_and_text(&file.text)) } else { Vec::new() };
    let program: &[Token] = if file.path == PROGRAM_WITH_NAMESPACES { &file.tokens } else { &[] };
    let in_code = MAKERS.iter().flat_map(|maker| {
        let allowed = lines_with(program, maker);
        let found = lines_with(&all, maker).into_iter().filter(move |line| !allowed.contains(line));
        found.map(move |line| (line, *maker))
    });
    let lines = file.text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let in_text = lines.flat_map(|(index, line)| {
        MAKERS_IN_TEXT.into_iter().filter(|maker| line.contains(maker)).map(move |maker| (index + 1, maker))
    });
    // This folder has all of them as texts.
    let in_text = in_text.filter(|_| !file.path.starts_with("tests/architecture/"));
    let complaint = |(line, maker)| format!("{}:{line}: `{maker}` belongs in {NAMESPACES}", file.path);
    in_code.chain(in_text).map(complaint).collect()
}

fn forgotten_failures(file: &SourceFile) -> Vec<String> {
    let all = if file.text.contains("proptest") { tokens(&without_comments_and_text(&file.text)) } else { Vec::new() };
    let runs = ["proptest!", "TestRunner::new("].iter().flat_map(|run| lines_with(&all, run));
    let is_replayed = |line: usize| file.text.lines().skip(line - 1).take(2).any(|line| line.contains("replayed("));
    runs.filter(|line| !is_replayed(*line))
        .map(|line| format!("{}:{line}: see tests/support/properties.rs: what fails would be forgotten", file.path))
        .collect()
}

fn ignored_without_reason(file: &SourceFile) -> Vec<String> {
    let tokens = tokens(&without_comments_and_text(&file.text));
    let bare = |window: &[Token]| matches!(window, [a, b, c] if a.is("[") && b.is("ignore") && c.is("]"));
    tokens
        .windows(3)
        .filter(|window| bare(window))
        .map(|window| format!("{}:{}: #[ignore] needs a reason: #[ignore = \"...\"]", file.path, window[1].line))
        .collect()
}
