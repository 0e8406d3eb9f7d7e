//! Every dependency has a licence from the list in `deny.toml`, and comes from crates.io; and every C library that the
//! program is linked with is in `deploy/linked-libraries`, with its licence, which is named wherever the program is passed on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Packages that say that they link something, which is part of themselves: their licence is that of the package.
const LINK_THEMSELVES: [&str; 4] = ["aws-lc-rs", "aws-lc-sys", "k8s-openapi", "ring"];

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

// --- C libraries ---------------------------------------------------------------------------------------------------

/// The libraries in `deploy/linked-libraries`: name without version, and licence.
fn declared() -> BTreeMap<String, String> {
    let text = read("deploy/linked-libraries");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let library = |line: &str| {
        let (name, rest) = line.split_once(' ').expect("a name, a licence, an address");
        let (licence, _) = rest.trim().rsplit_once(' ').expect("a name, a licence, an address");
        (name.to_owned(), licence.trim().to_owned())
    };
    lines.map(library).collect()
}

/// The libraries that `ldd` prints, by name without version. That of the kernel is no file.
fn libraries(ldd: &str) -> BTreeSet<String> {
    let files = ldd.lines().filter_map(|line| line.split_whitespace().next());
    let names = files.filter_map(|file| file.rsplit('/').next()?.split_once(".so")).map(|(name, _)| name);
    names.filter(|name| *name != "linux-vdso").map(str::to_owned).collect()
}

#[test]
fn every_c_library_is_declared_with_its_licence() {
    let output =
        Command::new("ldd").arg(env!("CARGO_BIN_EXE_nftproxyd")).output().expect("ldd comes with the C library");
    assert!(output.status.success(), "ldd: {}", String::from_utf8_lossy(&output.stderr));
    let linked = libraries(&String::from_utf8_lossy(&output.stdout));
    let declared: BTreeSet<String> = declared().into_keys().collect();
    let unknown: Vec<_> = linked.difference(&declared).collect();
    assert!(
        unknown.is_empty(),
        "the program needs {unknown:?}: put them with their licences in deploy/linked-libraries"
    );
    // There is a loader for each architecture.
    let unneeded: Vec<_> = declared.difference(&linked).filter(|name| !name.starts_with("ld-linux-")).collect();
    assert!(unneeded.is_empty(), "the program does not need {unneeded:?}: remove them from deploy/linked-libraries");
}

#[test]
fn every_package_that_links_a_c_library_is_known() {
    let declared = declared();
    let packages = packages();
    let linking = packages.iter().filter_map(|package| Some((package["name"].as_str()?, package["links"].as_str()?)));
    let foreign: Vec<_> = linking.filter(|(name, _)| !LINK_THEMSELVES.contains(name)).collect();
    assert!(!foreign.is_empty(), "no package links a C library: is there still a use for this test?");
    for (name, links) in foreign {
        assert!(declared.contains_key(&format!("lib{links}")), "{name} links {links}: see deploy/linked-libraries");
    }
}

#[test]
fn the_licences_of_c_libraries_are_named_where_the_program_is_passed_on() {
    let declared = declared();
    let image = read("deploy/Containerfile");
    let label = image.split("image.licenses=").nth(1).and_then(|rest| rest.lines().next()).expect("a label");
    for (name, licence) in &declared {
        assert!(label.contains(licence.as_str()), "deploy/Containerfile: the label names no {licence}, for {name}");
    }
    let notices = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/third-party-notices")).output();
    let notices = notices.expect("it can be started");
    assert!(notices.status.success(), "{}", String::from_utf8_lossy(&notices.stderr));
    let notices = String::from_utf8_lossy(&notices.stdout).into_owned();
    // Every program is linked with the C library and the compiler's; these two are our choice.
    for (file, text) in [
        ("README.md", read("README.md")),
        ("deploy/debian/copyright", read("deploy/debian/copyright")),
        ("deploy/third-party-notices", notices),
    ] {
        for name in ["libnftnl", "libmnl"] {
            let licence = &declared[name];
            assert!(text.contains(name) && text.contains(licence.as_str()), "{file} has no {name} with {licence}");
        }
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("General Public License, version 3"), "{file} does not say what the whole is under");
    }
}

#[test]
fn libraries_are_read_off_what_ldd_prints() {
    let printed = "\tlinux-vdso.so.1 (0x00007f9728a5e000)
\tlibnftnl.so.11 => /lib/x86_64-linux-gnu/libnftnl.so.11 (0x00007f9728a12000)
\tlibgcc_s.so.1 => not found
\t/lib64/ld-linux-x86-64.so.2 (0x00007f9728a60000)
";
    let expected = ["libnftnl", "libgcc_s", "ld-linux-x86-64"].map(str::to_owned);
    assert_eq!(libraries(printed), BTreeSet::from(expected));
    assert!(declared().contains_key("libnftnl") && !declared().contains_key("libreadline"));
    assert_eq!(declared()["libgcc_s"], "GPL-3.0-or-later WITH GCC-exception-3.1");
}

// --- packages ------------------------------------------------------------------------------------------------------

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
