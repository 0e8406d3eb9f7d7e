//! The list of what is in the program (`deploy/sbom`): every package that is linked into it with the checksum of `Cargo.lock`,
//! every C library, how they depend on each other, and nothing else; each time the same.

#[path = "support/netns/mod.rs"]
mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn sbom() -> Command {
    let mut command = Command::new(Path::new(REPOSITORY).join("deploy/sbom"));
    command.arg(env!("CARGO_BIN_EXE_nftproxyd"));
    command
}

fn texts<'a>(values: &'a Value, field: &str) -> Vec<&'a str> {
    values.as_array().expect("a list").iter().map(|value| value[field].as_str().expect("text")).collect()
}

/// `name@version` of all that `cargo tree` says is linked.
fn linked() -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--locked", "--edges=normal", "--prefix=none", "--format={p}"]).current_dir(REPOSITORY);
    let name = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = (words.next().expect("a name"), words.next().expect("a version"));
        format!("{name}@{}", version.trim_start_matches('v'))
    };
    run(&mut tree).lines().map(name).collect()
}

/// Checksums by `name@version`.
fn locked() -> BTreeMap<String, String> {
    let lock = std::fs::read_to_string(Path::new(REPOSITORY).join("Cargo.lock")).expect("a file");
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")).map(str::to_owned));
        line.map(|line| line.trim_end_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]").skip(1);
    packages
        .filter_map(|package| {
            let (name, version) = (field(package, "name")?, field(package, "version")?);
            Some((format!("{name}@{version}"), field(package, "checksum")?))
        })
        .collect()
}

#[test]
fn it_lists_what_is_linked_and_nothing_else() {
    if !netns::has(&["jq", "dpkg-query"]) {
        return;
    }
    let document: Value = serde_json::from_str(&run(&mut sbom())).expect("JSON");
    assert_eq!((&document["bomFormat"], &document["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let root = format!("{}@{}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    assert_eq!(document["metadata"]["component"]["purl"], format!("pkg:cargo/{root}"));

    let checksums = locked();
    let mut expected = linked();
    assert!(expected.remove(&root) && expected.len() > 100, "{} packages", expected.len());
    let mut libraries = BTreeSet::new();
    for component in document["components"].as_array().expect("a list") {
        let field = |name: &str| component[name].as_str().unwrap_or_else(|| panic!("{name} of {component}"));
        assert!(component["licenses"][0]["expression"].as_str().is_some_and(|text| !text.contains('/')), "{component}");
        let id = format!("{}@{}", field("name"), field("version"));
        if field("purl").starts_with("pkg:deb/") {
            libraries.insert(field("name").to_owned());
        } else {
            assert!(expected.remove(&id), "{id} is not linked, or comes twice");
            assert_eq!(component["hashes"][0]["content"].as_str(), checksums.get(&id).map(String::as_str), "{id}");
        }
    }
    assert_eq!(expected, BTreeSet::new(), "not in the list");
    assert_eq!(libraries, ["libc6", "libgcc-s1", "libmnl0", "libnftnl11"].map(str::to_owned).into());

    // Whatever depends on something, and on what, is described, once.
    let described = texts(&document["dependencies"], "ref");
    let mut references = texts(&document["components"], "bom-ref");
    references.push(document["metadata"]["component"]["bom-ref"].as_str().expect("text"));
    assert_eq!(described.iter().collect::<BTreeSet<_>>(), references.iter().collect());
    assert_eq!(described.len(), references.len());
    for entry in document["dependencies"].as_array().expect("a list") {
        let on = entry["dependsOn"].as_array().expect("a list");
        assert!(on.iter().all(|on| described.contains(&on.as_str().expect("text"))), "{entry}");
        if entry["ref"] == format!("pkg:cargo/{root}") {
            let names: Vec<_> = on.iter().filter_map(Value::as_str).collect();
            for name in ["pkg:cargo/nftnl@", "pkg:cargo/tokio@", "pkg:deb/"] {
                assert!(names.iter().any(|on| on.starts_with(name)), "{name}: {names:?}");
            }
            // Of a package of a package.
            assert!(!names.iter().any(|on| on.starts_with("pkg:cargo/nftnl-sys@")), "{names:?}");
        }
    }
}

#[test]
fn it_is_the_same_each_time() {
    if !netns::has(&["jq", "dpkg-query"]) {
        return;
    }
    let first = run(&mut sbom());
    let second = run(sbom().env("TZ", "Asia/Tokyo").env("LC_ALL", "C.UTF-8").current_dir("/"));
    assert!(first == second, "they differ");
    assert!(!first.contains(REPOSITORY), "a path of this machine is in it");
}
