//! The checker itself: that the rules see what breaks them, and nothing else.

use crate::source::SourceFile;
use crate::{
    LAYERS, MAX_LINES, borders, circles, effects, forgotten_failures, idle_permissions, ignored_without_reason,
    kubernetes_types, length, namespaces, threads, unsafe_code,
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

#[test]
fn a_permission_without_a_use_is_seen() {
    let all: Vec<(String, String)> = LAYERS
        .iter()
        .map(|(layer, uses)| {
            (format!("src/{layer}/mod.rs"), uses.iter().map(|used| format!("use crate::{used};\n")).collect())
        })
        .collect();
    let all: Vec<SourceFile> = all.iter().map(|(path, code)| SourceFile::new(path, code)).collect();
    assert_eq!(idle_permissions(&all), [""; 0]);
    let mut few = all;
    few.retain(|file| file.path != "src/logging/mod.rs");
    few.push(SourceFile::new("src/logging/mod.rs", "// use crate::config;\n#[cfg(test)]\nuse crate::config;"));
    few.push(SourceFile::new("src/logging/tests.rs", "use crate::config;"));
    assert_eq!(idle_permissions(&few), ["LAYERS: `logging` does not use `config`: take it out"]);
}

/// Made-up files, and the arrows that tie them, as `from -> to`.
type Room<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn circles_are_seen() {
    let cases: [Room<'_>; 13] = [
        (
            "two",
            &[("src/m/a.rs", "use super::b::B;"), ("src/m/b.rs", "fn f() { crate::m::a::f() }")],
            &["a->b", "b->a"],
        ),
        (
            "three, and one that only looks on",
            &[
                ("src/m/a.rs", "use crate::m::{self, b::{B, C as D}};"),
                ("src/m/b.rs", "use super::c;\nfn f() -> Vec<c::C> {}"),
                ("src/m/c.rs", "pub(super) use super::a::A;"),
                ("src/m/d.rs", "use super::a::A;"),
                ("src/m/mod.rs", "mod a; mod b; mod c; mod d;"),
            ],
            &["a->b", "b->c", "c->a"],
        ),
        (
            "through what a mod.rs passes on, under another name too",
            &[
                ("src/m/a.rs", "use crate::n::B;"),
                ("src/n/mod.rs", "mod b; pub use b::{Inner as B};"),
                ("src/n/b.rs", "use crate::m::{A, X};"),
                ("src/m/mod.rs", "mod a;\npub use self::a::A;"),
            ],
            &["a->b", "b->a"],
        ),
        (
            "through what a mod.rs only imports for itself",
            &[
                ("src/m/mod.rs", "mod a; mod b; use b::B;"),
                ("src/m/a.rs", "use super::B;"),
                ("src/m/b.rs", "use super::a::A;"),
            ],
            &["a->b", "b->a"],
        ),
        (
            "through a module that is imported first",
            &[
                ("src/m/a.rs", "use crate::n;\nfn f() { n::f() }"),
                ("src/n/mod.rs", "mod b; pub use b::f;"),
                ("src/n/b.rs", "use crate::m::a;"),
            ],
            &["a->b", "b->a"],
        ),
        (
            "by paths in code, out of a module in braces",
            &[
                ("src/m/a.rs", "mod inner { fn f() { super::super::b::f() } }\nfn g() {}"),
                ("src/m/b.rs", "fn f() { g(1, super::a::g()) }"),
            ],
            &["a->b", "b->a"],
        ),
        (
            "of cousins, by child modules and everything of a module",
            &[
                ("src/m/mod.rs", "mod a; mod n;"),
                ("src/m/a.rs", "use super::n::b::*;"),
                ("src/m/n/mod.rs", "mod b; mod c;"),
                ("src/m/n/b.rs", "use super::c;"),
                ("src/m/n/c.rs", "use super::super::a;"),
            ],
            &["a->b", "b->c", "c->a"],
        ),
        // None:
        ("one way", &[("src/m/a.rs", "use super::b::B;"), ("src/m/b.rs", "use crate::m::c;"), ("src/m/c.rs", "")], &[]),
        (
            "a room",
            &[
                ("src/m/mod.rs", "mod a; pub use a::A; fn f() { a::f() }"),
                ("src/m/a.rs", "use super::f; use crate::m::g;"),
                ("src/lib.rs", "mod m; pub use m::A;"),
            ],
            &[],
        ),
        (
            "two that pass by each other in one room",
            &[
                ("src/m/mod.rs", "mod a; pub use a::A; pub struct M;"),
                ("src/m/a.rs", "use crate::n::M;"),
                ("src/n/mod.rs", "mod b; pub use b::B; pub struct M;"),
                ("src/n/b.rs", "use crate::m::M;"),
            ],
            &[],
        ),
        (
            "tests, comments and texts",
            &[
                ("src/m/a.rs", "use super::b::B;"),
                ("src/m/b.rs", "// super::a::A\nconst A: &str = \"super::a\";\n#[cfg(test)]\nuse super::a::A;"),
                ("src/m/tests.rs", "use super::b::B;\nuse super::a::A;"),
            ],
            &[],
        ),
        (
            "names that are no modules here",
            &[
                ("src/m/a.rs", "use std::b::B; use b::X;\nfn f() { c::b::f(); B::new(); x.b::<u8>() }"),
                ("src/m/b.rs", "use super::a;"),
            ],
            &[],
        ),
        ("another crate", &[("src/main.rs", "use crate::a::A;"), ("src/a.rs", "use crate::main::f;")], &[]),
    ];
    for (what, files, expected) in cases {
        let files: Vec<SourceFile> = files.iter().map(|(path, code)| SourceFile::new(path, code)).collect();
        let complaints = circles::between_files(&files);
        let stem = |path: &str| path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs").to_owned();
        let arrows: Vec<String> = circles::arrows(&files)
            .into_iter()
            .filter(|arrow| complaints.iter().any(|complaint| complaint.contains(&arrow.to_string())))
            .map(|arrow| format!("{}->{}", stem(arrow.from), stem(arrow.to)))
            .collect();
        assert_eq!(arrows, expected, "{what}: {complaints:?}");
        assert_eq!(complaints.len(), usize::from(!expected.is_empty()), "{what}: {complaints:?}");
    }
}

#[test]
fn a_circle_says_what_ties_it() {
    let files = [
        SourceFile::new("src/m/a.rs", "\nuse crate::n::b::{\n    B,\n};"),
        SourceFile::new("src/n/b.rs", "fn f() { crate::m::a::f() }\nuse crate::o::O;"),
        SourceFile::new("src/o.rs", ""),
    ];
    let arrows = "\n    src/m/a.rs:3 uses src/n/b.rs by `n::b::B`\n    src/n/b.rs:1 uses src/m/a.rs by `m::a::f`";
    assert_eq!(circles::between_files(&files), [format!("a circle of 2 files:{arrows}")]);
    assert_eq!(circles::between_rooms(&files), [format!("a circle of 2 rooms:{arrows}")]);
}

/// No two files need each other, and yet neither room can be understood without the other.
#[test]
fn circles_of_rooms_are_seen_without_one_of_files() {
    let files = [
        SourceFile::new("src/m/a.rs", "use crate::n::b::B;"),
        SourceFile::new("src/m/c.rs", ""),
        SourceFile::new("src/n/b.rs", ""),
        SourceFile::new("src/n/d.rs", "use crate::m::c::C;"),
    ];
    assert_eq!(circles::between_files(&files), [""; 0]);
    let complaints = circles::between_rooms(&files);
    assert!(matches!(&complaints[..], [one] if one.starts_with("a circle of 2 rooms:")), "{complaints:?}");
}
