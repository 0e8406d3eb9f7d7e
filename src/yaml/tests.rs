//! What becomes of documents.

use std::time::{Duration, Instant};

use super::*;

/// The only document of a text, on one line.
fn shown(text: &str) -> String {
    let documents = documents(text).unwrap_or_else(|err| panic!("{text:?}: {err}"));
    assert_eq!(documents.len(), 1, "{text:?}");
    documents[0].tree.to_string()
}

fn refused(text: &str) -> String {
    documents(text).expect_err("it is refused").to_string()
}

#[test]
fn texts_are_texts_where_they_are_quoted() {
    let cases = [
        ("a: yes\nb: \"yes\"\nc: 'on'\nd: |-\n  5\n", r#"{a: yes, b: "yes", c: "on", d: "5"}"#),
        ("{a: !!str on, b: !!int \"5\", c: !own 7, d: ! 8}", r#"{a: "on", b: 5, c: "7", d: "8"}"#),
        ("on: 1\n5: 2\n", "{true: 1, 5: 2}"),
        ("{\"a\": [1, null, {}], \"b\":\n\t\"x\\ny\"}", r#"{a: [1, null, {}], b: "x\ny"}"#),
        ("a: &x [1]\nb: *x\n", "{a: [1], b: [1]}"),
        ("base: &base {a: 1, c: 3}\nmore: {<<: *base, b: 2, c: 4}\n", "{base: {a: 1, c: 3}, more: {b: 2, c: 4, a: 1}}"),
        ("a: &a {x: 1}\nb: &b {x: 2, z: 3}\nc: {<<: [*a, *b]}\n", "{a: {x: 1}, b: {x: 2, z: 3}, c: {x: 1, z: 3}}"),
        ("\u{feff}a: 1", "{a: 1}"),
        ("a: 2026-01-01", "{a: \"2026-01-01\"}"),
    ];
    for (text, expected) in cases {
        assert_eq!(shown(text), expected, "{text:?}");
    }
    let refusals = [
        ("a: !!int x", "\"x\" is not of the type !!int at line 1"),
        ("a:\n  ? [b]\n  : c\n", "a key that is a list or a section at line 2"),
        ("~: 1", "a key that is null at line 1"),
        ("a: &a [*a]", "an alias within what it stands for at line 1"),
        ("<<: 5", "a merge key (<<) takes a section"),
    ];
    for (text, expected) in refusals {
        let found = refused(text);
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
}

#[test]
fn documents_and_their_lines() {
    let found = documents("# first\na: 1\n---\n# nothing\n---\nb: 2\n...\n---\n").expect("YAML");
    let found: Vec<_> = found.iter().map(|document| (document.tree.to_string(), document.line)).collect();
    let expected = [("{a: 1}", 2), ("null", 3), ("{b: 2}", 5), ("null", 8)];
    assert_eq!(found, expected.map(|(tree, line)| (tree.to_owned(), line)));
    assert_eq!(documents("").expect("YAML"), []);
}

#[test]
fn keys_that_come_twice_are_named() {
    let text = "a: 1\nb:\n- c: 1\n  d: {e: 1, e: 2}\n  c: 2\na: 3\nx: {<<: {a: 1}, a: 2}\n";
    let found = |document: &Document| document.duplicates.iter().map(ToString::to_string).collect::<Vec<_>>();
    let yaml = &documents(text).expect("YAML")[0];
    assert_eq!(found(yaml), ["b[0].d.e (line 4)", "b[0].c (lines 3 and 5)", "a (lines 1 and 6)"]);
    assert_eq!(yaml.tree.at("a"), Some(&Tree::Scalar(Scalar::Int(3), "3".into())), "the last counts");
    let json = json(r#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 2}"#).expect("JSON");
    assert_eq!(found(&json), ["a", "b[0].c"]);
}

#[test]
fn paths_lead_to_values() {
    let tree = &documents("m: {labels: {a.b/c: 5}}\np: [{}, {q: yes}]").expect("YAML")[0].tree;
    assert_eq!(tree.find("m.labels.a.b/c").map(ToString::to_string).as_deref(), Some("5"));
    assert_eq!(tree.find("p[1].q").map(ToString::to_string).as_deref(), Some("yes"));
    assert_eq!((tree.find("p[2].q"), tree.find("p[0].q"), tree.find("mm")), (None, None, None));
}

#[test]
fn what_is_nested_too_deep_is_refused_at_once() {
    let deep = |open: &str| format!("first: 1\na: {}", open.repeat(200_000 / open.len()));
    let block: String = (0..600).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let compact = format!("a:\n{}\n", "- ".repeat(100_000));
    let started = Instant::now();
    for text in [deep("["), deep("{a: "), deep("[{a: "), deep("{? "), block, compact] {
        let found = refused(&text);
        assert!(found.starts_with("nested deeper than 128 levels at line "), "{found}");
    }
    assert!(refused(&deep("[")).contains(" at line 2 "));
    // Minutes, where it costs the square of the depth.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // Brackets that are no nesting.
    for text in [format!("a: \"{}\"", "[".repeat(1000)), format!("a: 1 # {}", "[".repeat(1000))] {
        shown(&text);
    }
    let just = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    shown(&just(DEEPEST));
    refused(&just(DEEPEST + 1));
}

#[test]
fn aliases_do_not_multiply_without_end() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(9);
        text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    assert!(refused(&text).starts_with("its aliases stand for too much at line "));
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(1000));
    assert!(refused(&long).starts_with("its aliases stand for too much"));
    let mut deep = format!("a0: &a0 {}x{}\n", "[".repeat(60), "]".repeat(60));
    for level in 1..4 {
        deep.push_str(&format!("a{level}: &a{level} {}*a{}{}\n", "[".repeat(60), level - 1, "]".repeat(60)));
    }
    assert!(refused(&deep).starts_with("nested deeper than"));
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let value = serde_json::json!({
        "yes": "n", "texts": ["on", "No", "5", "0755", "1e5", "", "~", "null", "a: b", "a:", "-", "- a", "#", "x #y", "\n", "\u{1}",
            "[", "{", "&a", "*a", "!a", "|", ">", "%", "@", "`", "'", "\"", "é", "<<", "=", "?", "1:30", "::/0", "10.0.0.0/8", " a"],
        "nested": {"list": [[1, [2]], {"a": {"b": true, "c": null}}, []], "none": {}, "number": -5, "part": 0.5},
    });
    let written = text(&value);
    let document = &documents(&written).unwrap_or_else(|err| panic!("{err}: {written}"))[0];
    assert_eq!(document.tree, json(&value.to_string()).expect("JSON").tree, "{written}");
    let plain =
        serde_json::json!({"clusterCIDR": "10.0.0.0/8", "metricsBindAddress": "127.0.0.1:10249", "name": "node-1"});
    assert_eq!(text(&plain), "clusterCIDR: 10.0.0.0/8\nmetricsBindAddress: 127.0.0.1:10249\nname: node-1\n");
    let date = serde_json::json!({"at": "2026-11-30T11:28:56Z"});
    assert_eq!(text(&date), "at: \"2026-11-30T11:28:56Z\"\n", "a time to some readers");
    // Other readers have the rules of YAML 1.2.
    assert_eq!(serde_yaml::from_str::<serde_json::Value>(&written).expect("YAML"), value);
}
