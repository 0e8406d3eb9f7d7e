//! Every dependency has a licence from the list in `deny.toml`, and comes from crates.io.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn dependencies_are_permissively_licensed_and_from_crates_io() {
    let allowed = allowed_licences(&read("deny.toml"));
    let packages = packages();
    assert!(packages.len() > 50, "cargo metadata lists only {} packages", packages.len());

    let complaints: Vec<String> = packages.iter().filter_map(|package| complaint(package, &allowed)).collect();
    assert!(complaints.is_empty(), "see deny.toml for what is allowed:\n{}", complaints.join("\n"));
}

#[test]
fn every_allowed_licence_is_one_that_a_dependency_needs() {
    let allowed = allowed_licences(&read("deny.toml"));
    let packages = packages();
    for licence in &allowed {
        let mut others = allowed.clone();
        others.remove(licence);
        assert!(
            packages.iter().any(|package| complaint(package, &others).is_some()),
            "no dependency needs {licence} any more: remove it from deny.toml"
        );
    }
}

#[test]
fn foreign_sources_and_licences_are_found() {
    let allowed = BTreeSet::from(["MIT".to_owned()]);
    let package =
        |license: Value, source: Value| json!({ "name": "some", "version": "1", "license": license, "source": source });
    let verdict = |license: &str, source: &str| complaint(&package(license.into(), source.into()), &allowed);

    assert_eq!(verdict("MIT", CRATES_IO), None);
    assert_eq!(verdict("GPL-3.0-only", CRATES_IO).as_deref(), Some("some 1: licence GPL-3.0-only"));
    assert_eq!(
        verdict("MIT", "git+https://example.org/some").as_deref(),
        Some("some 1: comes from git+https://example.org/some")
    );
    assert_eq!(complaint(&package(Value::Null, CRATES_IO.into()), &allowed).as_deref(), Some("some 1: no licence"));
    assert_eq!(complaint(&package("MIT".into(), Value::Null), &allowed).as_deref(), Some("some 1: is a path"));
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = BTreeSet::from(["MIT".to_owned(), "ISC".to_owned(), "A WITH exception".to_owned()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("MIT OR GPL-3.0-only", true),
        ("GPL-3.0-only OR MIT", true),
        ("MIT AND GPL-3.0-only", false),
        ("MIT AND ISC", true),
        ("Unlicense/MIT", true),
        ("(GPL-3.0-only OR MIT) AND ISC", true),
        ("(GPL-3.0-only OR MIT) AND Zlib", false),
        ("GPL-3.0-only OR MIT AND ISC", true),
        ("MIT OR ISC AND GPL-3.0-only", true),
        ("ISC AND (GPL-3.0-only OR (MIT AND ISC))", true),
        ("A WITH exception", true),
        ("A", false),
        ("MIT WITH exception", false),
        ("", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("MIT ISC", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression:?}");
    }
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The packages that a build for this machine can contain, as `cargo metadata` describes them.
fn packages() -> Vec<Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("there is a list of packages");
    packages.iter().filter(|package| package["name"] != env!("CARGO_PKG_NAME")).cloned().collect()
}

/// The texts in the list `allow = [...]`.
fn allowed_licences(deny_toml: &str) -> BTreeSet<String> {
    let (_, list) = deny_toml.split_once("\nallow = [").expect("deny.toml has a list `allow`");
    let (list, _) = list.split_once(']').expect("the list ends");
    list.lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once('"'))
        .map(|(id, _)| id.to_owned())
        .collect()
}

/// What is wrong with a package, if anything.
fn complaint(package: &Value, allowed: &BTreeSet<String>) -> Option<String> {
    let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
    match package["source"].as_str() {
        Some(CRATES_IO) => {}
        Some(source) => return Some(format!("{name}: comes from {source}")),
        None => return Some(format!("{name}: is a path")),
    }
    match package["license"].as_str() {
        None => Some(format!("{name}: no licence")),
        Some(licence) if is_allowed(licence, allowed) => None,
        Some(licence) => Some(format!("{name}: licence {licence}")),
    }
}

/// Whether an SPDX licence expression can be met with the licences given. `A/B` is the old way to write `A OR B`. What
/// cannot be parsed is not allowed.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut parser = Parser { words: spaced.split_whitespace().collect(), next: 0, allowed };
    parser.any_of() == Some(true) && parser.next == parser.words.len()
}

struct Parser<'a> {
    words: Vec<&'a str>,
    next: usize,
    allowed: &'a BTreeSet<String>,
}

impl Parser<'_> {
    /// `all_of (OR all_of)*`
    fn any_of(&mut self) -> Option<bool> {
        let mut met = self.all_of()?;
        while self.take("OR") {
            met |= self.all_of()?;
        }
        Some(met)
    }

    /// `single (AND single)*`
    fn all_of(&mut self) -> Option<bool> {
        let mut met = self.single()?;
        while self.take("AND") {
            met &= self.single()?;
        }
        Some(met)
    }

    /// `( any_of )`, `LICENCE` or `LICENCE WITH EXCEPTION`
    fn single(&mut self) -> Option<bool> {
        if self.take("(") {
            let met = self.any_of()?;
            return self.take(")").then_some(met);
        }
        let mut licence = self.identifier()?;
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.identifier()?);
        }
        Some(self.allowed.contains(&licence))
    }

    fn identifier(&mut self) -> Option<String> {
        let word = *self.words.get(self.next)?;
        self.next += 1;
        (!["(", ")", "AND", "OR", "WITH"].contains(&word)).then(|| word.to_owned())
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.words.get(self.next) == Some(&word);
        self.next += usize::from(found);
        found
    }
}
