//! The checker itself: that the rules see what breaks them, and nothing else.

use crate::source::SourceFile;
use crate::{
    MAX_LINES, borders, effects, forgotten_failures, ignored_without_reason, kubernetes_types, length, namespaces,
    threads, unsafe_code,
};

#[test]
fn borders_are_seen_to_be_crossed() {
    for (path, code, expected) in [
        (
            "src/model/node.rs",
            "use crate::ruleset::names::SetName;",
            "src/model/node.rs:1: `model` must not use `ruleset`",
        ),
        ("src/model/mod.rs", "\n\nfn f() { crate::app::run() }", "src/model/mod.rs:3: `model` must not use `app`"),
        (
            "src/ruleset/build.rs",
            "use crate::{model::Service, diff::Plan};",
            "src/ruleset/build.rs:1: `ruleset` must not use `diff`",
        ),
        ("src/diff/mod.rs", "use super::nftables::Kernel;", "src/diff/mod.rs:1: `diff` must not use `nftables`"),
        (
            "src/diff/plan.rs",
            "use super::super::nftables::Kernel;",
            "src/diff/plan.rs:1: `diff` must not use `nftables`",
        ),
        (
            "src/diff.rs",
            "use super::{\n    model::Service,\n    sync,\n};",
            "src/diff.rs:3: `diff` must not use `sync`",
        ),
        (
            "src/conntrack/plan.rs",
            "use crate::diff::{a, b};",
            "src/conntrack/plan.rs:1: `conntrack` must not use `diff`",
        ),
        ("src/new/mod.rs", "", "src/new/mod.rs: the layer `new` is not known to tests/architecture"),
        (
            "src/health/state.rs",
            "#[cfg(test)]\nmod tests { use crate::sync; }\nuse crate::source;",
            "src/health/state.rs:3: `health` must not use `source`",
        ),
    ] {
        assert_eq!(borders(&SourceFile::new(path, code)), [expected], "{path}: {code}");
    }
}

#[test]
fn allowed_uses_are_left_alone() {
    for (path, code) in [
        ("src/nftables/encode.rs", "use crate::{diff::Transaction, model::{Family, nftables}, ruleset};"),
        ("src/model/node.rs", "use super::ids::Family; pub(crate) struct A; pub(super) struct B;"),
        ("src/model/node.rs", "//! [`crate::ruleset`]\n/* crate::diff /* crate::diff */ crate::diff */"),
        (
            "src/model/node.rs",
            "const A: &str = \"crate::diff \\\" crate::diff\"; const B: &str = r#\"\" crate::diff\"#;",
        ),
        (
            "src/model/node.rs",
            "const QUOTE: char = '\"'; const TICK: char = '\\''; // \"\nfn f<'a>(_: &'a str) {} // crate::diff",
        ),
        ("src/model/node.rs", "#[cfg(test)]\nuse crate::diff::{a, b};"),
        (
            "src/model/node.rs",
            "#[cfg(test)]\n#[expect(x, reason = \"y\")]\nmod tests {\n    fn f() { crate::diff::f(); }\n}",
        ),
        ("src/model/tests.rs", "use crate::diff::Transaction;"),
        ("src/model/kernel_tests.rs", "use crate::diff::Transaction;"),
        ("src/testing/mod.rs", "use crate::diff::Transaction;"),
        ("src/app.rs", "use crate::nftables::Kernel;"),
        ("src/sync/batch.rs", "use crate::nftables::Kernel;"),
        ("src/main.rs", "use nftproxyd::app;"),
    ] {
        assert_eq!(borders(&SourceFile::new(path, code)), [""; 0], "{path}: {code}");
    }
}

#[test]
fn other_rules_are_seen_to_be_broken() {
    type Rule = fn(&SourceFile) -> Vec<String>;
    let long = "fn f() {}\n".repeat(MAX_LINES + 1);
    let long_tests = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    let cases: [(Rule, &str, &str, usize); 29] = [
        (unsafe_code, "src/nftables/socket.rs", "fn f() { unsafe { g() } }", 1),
        (unsafe_code, "src/sys/nftnl.rs", "fn f() { unsafe { g() } }", 0),
        (unsafe_code, "src/lib.rs", "#![deny(unsafe_code)] // unsafe", 0),
        (kubernetes_types, "src/app.rs", "use k8s_openapi::api::core::v1::Service;", 1),
        (kubernetes_types, "src/model/service.rs", "use k8s_openapi::api::core::v1::Service;", 1),
        (kubernetes_types, "src/source/convert/service.rs", "use k8s_openapi::api::core::v1::Service;", 0),
        (kubernetes_types, "src/source/file.rs", "use k8s_openapi::api::core::v1::Service;", 0),
        (effects, "src/health/state.rs", "let now = std::time::Instant::now();", 1),
        (effects, "src/ruleset/build.rs", "async fn f() { tokio::task::yield_now().await; std::fs::read(p); }", 2),
        (effects, "src/health/server.rs", "use tokio::net::TcpListener;", 0),
        (effects, "src/diff/plan.rs", "fn f(now: Instant) {}", 0),
        (threads, "src/app/run.rs", "fn f() { std::thread::spawn(g); tokio::task::spawn_blocking(g); }", 2),
        (threads, "src/threads.rs", "fn f() { thread::Builder::new(); }", 0),
        (length, "src/sync.rs", &long, 1),
        (length, "src/sync.rs", &long_tests, 0),
        (namespaces, "tests/support/netns/mod.rs", "fn f() { unshare(CLONE_NEWNET); setns(x, y); var_os(\"CI\") }", 0),
        (namespaces, "tests/it/packets.rs", "fn f() { nix::sched::unshare(CloneFlags::CLONE_NEWNET); }", 2),
        (namespaces, "tests/it/packets.rs", "use nix::sched::setns;\n// unshare(x)\nfn f() { start(\"unshare\"); }", 1),
        (namespaces, "tests/it/packets.rs", "fn f() { run(&[\"ip\", \"netns\", \"add\", \"a\"]); }", 1),
        (namespaces, "tests/it/packets.rs", "fn f() { run(\"ip netns add a\"); } // ip netns add a", 1),
        (namespaces, "tests/it/packets.rs", "fn f() { if std::env::var_os(\"CI\").is_none() { return; } }", 1),
        (namespaces, "src/nftables/wire.rs", "const REQUIRE: &str = \"NFTPROXYD_REQUIRE_NETNS\";", 1),
        (namespaces, "src/doctor/mod.rs", "fn f() { unshare(CloneFlags::CLONE_NEWNET); }", 0),
        (
            namespaces,
            "src/doctor/mod.rs",
            "fn f() { unshare(x); }\n#[cfg(test)]\nmod tests { fn f() { unshare(x); } }",
            1,
        ),
        (forgotten_failures, "src/records.rs", "use proptest;\nproptest! {\n    #[test]\n    fn f() {}\n}", 1),
        (forgotten_failures, "src/records.rs", "proptest! {\n    #![proptest_config(replayed(x, file!()))]\n}", 0),
        (forgotten_failures, "tests/it/random.rs", "use proptest;\nfn f() { TestRunner::new(Config::default()) }", 1),
        (ignored_without_reason, "tests/packets.rs", "#[test]\n#[ignore]\nfn f() {}", 1),
        (ignored_without_reason, "tests/packets.rs", "#[ignore = \"slow\"]\nfn f() {} // #[ignore]", 0),
    ];
    for (rule, path, code, expected) in cases {
        let complaints = rule(&SourceFile::new(path, code));
        assert_eq!(complaints.len(), expected, "{path}: {complaints:?}");
    }
}
