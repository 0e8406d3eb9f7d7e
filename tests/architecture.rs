//! Holds the source code to its architecture: which layer may use which (the picture is in `src/lib.rs`), where
//! `unsafe` and Kubernetes' types may be, what stays free of I/O, how long a file may get, and where tests get network
//! namespaces from.
//!
//! It reads the code as text: comments, strings and test code are taken out, the rest is looked at word by word. That
//! is enough for paths as rustfmt leaves them; whoever wants to get around it can.

use std::fs;
use std::path::Path;

/// The layers, and which others each may use.
const LAYERS: [(&str, &[&str]); 21] = [
    ("model", &[]),
    ("config", &["model", "addresses"]),
    ("source", &["model"]),
    ("ruleset", &["model"]),
    ("diff", &["ruleset", "model"]),
    ("nftables", &["diff", "ruleset", "model", "netlink", "sys"]),
    ("sys", &[]),
    ("netlink", &["sys"]),
    ("errors", &[]),
    ("keyed", &[]),
    ("threads", &[]),
    ("addresses", &["model", "netlink"]),
    ("conntrack", &["model", "nftables", "netlink"]),
    ("http", &[]),
    ("health", &["model", "addresses", "http"]),
    ("metrics", &["model", "http"]),
    ("events", &["model"]),
    ("sysctl", &["config"]),
    ("status", &["model", "ruleset", "nftables", "conntrack", "metrics"]),
    ("leftovers", &["netlink"]),
    ("doctor", &["model", "nftables", "leftovers", "sysctl", "config"]),
];

/// What every layer may use, and what uses none of them.
const COMMON: [&str; 3] = ["errors", "keyed", "threads"];

/// What puts the layers together, and may use all of them; no layer uses these.
const ASSEMBLY: [&str; 6] = ["app", "cli", "lib", "logging", "main", "sync"];

/// Path prefixes of code that takes values and returns values: no runtime, no I/O, no clock, no environment.
const PURE: [&str; 5] = ["src/model/", "src/ruleset/", "src/diff/", "src/conntrack/plan", "src/health/state"];

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
const MAX_LINES: usize = 700;

#[test]
fn every_layer_uses_only_those_that_it_may() {
    hold(borders);
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
    let needs = include_str!("support/netns/needs.rs");
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
        return vec![format!("{}: the layer `{layer}` is not known to tests/architecture.rs", file.path)];
    };
    file.modules_used()
        .into_iter()
        .filter(|(_, used)| *used != layer && !may_use.contains(used) && !COMMON.contains(used))
        .map(|(line, used)| format!("{}:{line}: `{layer}` must not use `{used}`", file.path))
        .collect()
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
    // This file has all of them as texts.
    let in_text = in_text.filter(|_| file.path != "tests/architecture.rs");
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

// --- source files --------------------------------------------------------------------------------------------------

/// A file of Rust code.
struct SourceFile {
    /// From the top of the repository: `src/model/mod.rs`.
    path: String,
    /// As it is.
    text: String,
    /// The words and signs of its code, without comments, texts and tests.
    tokens: Vec<Token>,
    /// How many of its lines are tests.
    test_lines: usize,
}

impl SourceFile {
    fn new(path: &str, text: &str) -> SourceFile {
        let all = tokens(&without_comments_and_text(text));
        let (tokens, test_lines) =
            if is_for_tests(path) { (Vec::new(), text.lines().count()) } else { without_tests(all) };
        SourceFile { path: path.to_owned(), text: text.to_owned(), tokens, test_lines }
    }

    /// The module below the crate that the file belongs to; `lib` or `main` for the roots.
    fn top_module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split(['/', '.']).next().unwrap_or(inside)
    }

    /// How far the file's module is below the crate: 0 for `src/lib.rs`, 2 for `src/model/node.rs`.
    fn depth(&self) -> usize {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        match inside {
            "lib.rs" | "main.rs" => 0,
            _ if inside.ends_with("/mod.rs") => inside.matches('/').count(),
            _ => inside.matches('/').count() + 1,
        }
    }

    fn is_under(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// The crate's modules that the code names, with lines: by `crate::`, or by enough `super::`.
    fn modules_used(&self) -> Vec<(usize, &str)> {
        let mut used = Vec::new();
        for start in 0..self.tokens.len() {
            if start > 0 && self.tokens[start - 1].is("::") {
                continue;
            }
            // `after` is behind the last `::` of the part that leads to the crate's root.
            let after = if self.is_path_step(start, "crate") {
                start + 2
            } else {
                let supers = (0_usize..).take_while(|&step| self.is_path_step(start + 2 * step, "super")).count();
                if supers == 0 || supers != self.depth() {
                    continue;
                }
                start + 2 * supers
            };
            used.extend(self.heads(after));
        }
        used
    }

    /// Whether there is `word::` at a position.
    fn is_path_step(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(word))
            && self.tokens.get(at + 1).is_some_and(|token| token.is("::"))
    }

    /// The first word of a path, or of every path in braces.
    fn heads(&self, at: usize) -> Vec<(usize, &str)> {
        let rest = self.tokens.get(at..).unwrap_or_default();
        if !matches!(rest, [first, ..] if first.is("{")) {
            return rest.first().map(|token| (token.line, token.text.as_str())).into_iter().collect();
        }
        let mut heads = Vec::new();
        let mut braces = 0_usize;
        let mut at_head = false;
        for token in rest {
            match token.text.as_str() {
                "{" => {
                    braces += 1;
                    at_head = braces == 1;
                }
                "}" if braces == 1 => break,
                "}" => braces -= 1,
                "," if braces == 1 => at_head = true,
                word if at_head => {
                    heads.push((token.line, word));
                    at_head = false;
                }
                _ => {}
            }
        }
        heads
    }

    /// A complaint for each place where a path (`std::fs`, `unsafe`) is mentioned.
    fn mentions(&self, path: &str, verdict: &str) -> Vec<String> {
        let lines = lines_with(&self.tokens, path);
        lines.into_iter().map(|line| format!("{}:{line}: `{path}` {verdict}", self.path)).collect()
    }
}

/// Where a path or other code is.
fn lines_with(code: &[Token], path: &str) -> Vec<usize> {
    let wanted = tokens(path);
    code.windows(wanted.len())
        .filter(|window| window.iter().zip(&wanted).all(|(token, wanted)| token.text == wanted.text))
        .map(|window| window[0].line)
        .collect()
}

fn is_for_tests(path: &str) -> bool {
    TEST_FILES.iter().any(|part| path.contains(part))
}

/// All Rust files below a folder of the repository, sorted by path.
fn source_files(folder: &str) -> Vec<SourceFile> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: String| {
        let text = fs::read_to_string(top.join(&path)).expect("source code is text");
        SourceFile::new(&path, &text)
    };
    let files: Vec<SourceFile> = files_below(folder, "rs").into_iter().map(read).collect();
    assert!(!files.is_empty(), "there is no code in {folder}");
    files
}

/// The paths of all files of a kind below a folder of the repository, sorted.
fn files_below(folder: &str, extension: &str) -> Vec<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![top.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be listed") {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path.strip_prefix(top).expect("it is below the top").display().to_string());
            }
        }
    }
    files.sort();
    files
}

// --- reading Rust --------------------------------------------------------------------------------------------------

/// A word, `::`, or any other sign.
struct Token {
    /// Counted from 1.
    line: usize,
    text: String,
}

impl Token {
    fn is(&self, text: &str) -> bool {
        self.text == text
    }
}

/// Whether a character can be part of a word.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn tokens(code: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|character: char| !is_word(character)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, behind) = rest.split_at(length);
            tokens.push(Token { line: index + 1, text: text.to_owned() });
            rest = behind.trim_start();
        }
    }
    tokens
}

/// Takes out every item that is marked `#[cfg(test)]`; also says how many lines they have.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, usize) {
    let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
    let is_marked =
        |rest: &[Token]| rest.len() >= mark.len() && rest.iter().zip(mark).all(|(token, word)| token.is(word));
    let mut kept = Vec::new();
    let mut lines = 0;
    let mut rest = tokens;
    while let Some(at) = (0..rest.len()).find(|at| is_marked(&rest[*at..])) {
        let marked = rest.split_off(at);
        kept.append(&mut rest);
        let end = mark.len() + end_of_item(&marked[mark.len()..]);
        lines += 1 + marked[end - 1].line - marked[0].line;
        rest = marked.into_iter().skip(end).collect();
    }
    kept.append(&mut rest);
    (kept, lines)
}

/// The position behind an item: behind its `;`, or behind the brace that closes its body.
fn end_of_item(tokens: &[Token]) -> usize {
    let mut braces = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            ";" if braces == 0 => return at + 1,
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if braces == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Code without comments and without what is inside of texts and characters; lines stay where they are.
fn without_comments_and_text(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let after_word = kept.chars().next_back().is_some_and(is_word);
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_text(rest).filter(|_| !after_word) {
            length
        } else if first == '"' {
            text(rest)
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if skipped == 0 {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (gone, behind) = rest.split_at(skipped);
            kept.push(' ');
            kept.extend(gone.chars().filter(|character| *character == '\n'));
            rest = behind;
        }
    }
    kept
}

/// Length of the comment `/* ... */` that the code begins with; they can be nested.
fn block_comment(code: &str) -> usize {
    let mut open = 0_usize;
    let mut at = 0;
    while at < code.len() {
        let rest = &code.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            open += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            open -= 1;
            at += 2;
            if open == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    code.len()
}

/// Length of the raw text (`r"..."`, `r#"..."#`, `br"..."`, `cr"..."`) that the code begins with, if it does.
fn raw_text(code: &str) -> Option<usize> {
    let opening = code.strip_prefix(['b', 'c']).unwrap_or(code).strip_prefix('r')?;
    let quoted = opening.trim_start_matches('#');
    let hashes = opening.len() - quoted.len();
    let body = quoted.strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let begin = code.len() - body.len();
    Some(body.find(&closing).map_or(code.len(), |end| begin + end + closing.len()))
}

/// Length of the text that the code begins with.
fn text(code: &str) -> usize {
    quoted(code, b'"')
}

/// Length of the character that the code begins with; 0 where it is a lifetime.
fn character(code: &str) -> usize {
    let mut inside = code.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => quoted(code, b'\''),
        (Some(one), Some('\'')) => 2 + one.len_utf8(),
        _ => 0,
    }
}

/// Length from one quote to the next that has no backslash before it.
fn quoted(code: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in code.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    code.len()
}

// --- the checker itself --------------------------------------------------------------------------------------------

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
        ("src/new/mod.rs", "", "src/new/mod.rs: the layer `new` is not known to tests/architecture.rs"),
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
