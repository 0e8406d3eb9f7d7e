//! Packages hold what documents name, and name nobody who is not there; and the page of what is supported says something of
//! each thing that people ask for.

use std::fs;
use std::path::{Path, PathBuf};

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// The patterns of what is packed, of the section of `Cargo.toml` with this heading.
fn packed(heading: &str, before: &str) -> Vec<String> {
    let text = read("Cargo.toml");
    let section = text.split(&format!("\n[{heading}]\n")).nth(1).expect("a section");
    let section = section.split("\n[").next().expect("text");
    let patterns = section.lines().filter_map(|line| line.trim().strip_prefix(before)?.split('"').next());
    patterns.map(str::to_owned).collect()
}

/// As far as these patterns go.
fn fits(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((folder, "*/*")) => path.starts_with(folder),
        Some((folder, ending)) => {
            let name = path.strip_prefix(folder).unwrap_or("/");
            name.ends_with(ending) && !name.contains('/')
        }
    }
}

#[test]
fn packages_hold_all_that_documents_name() {
    let mut files = Vec::new();
    for folder in ["deploy/chart", "deploy/kubernetes"] {
        files_below(&in_repository(folder), &mut files);
    }
    for entry in fs::read_dir(in_repository("deploy")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if matches!(path.extension().and_then(|ending| ending.to_str()), Some("md" | "yaml" | "json" | "svg")) {
            files.push(path);
        }
    }
    files.extend(["README.md", "CHANGELOG.md"].map(in_repository));
    assert!(files.len() > 30, "only {} files were found", files.len());
    for (heading, before) in [("package.metadata.deb", "[\""), ("package.metadata.generate-rpm", "{ source = \"")] {
        let patterns = packed(heading, before);
        for file in &files {
            let path = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("below it").to_str().expect("text");
            assert!(
                patterns.iter().any(|pattern| fits(pattern, path)),
                "{heading}: nothing takes {path}: {patterns:?}"
            );
        }
    }
    assert!(!fits("deploy/*.md", "deploy/kubernetes/README.md") && !fits("deploy/*.md", "README.md"));
}

/// Whoever publishes packages puts his own there (see `deploy/package`); until then they are names that nobody can have.
#[test]
fn packages_name_nobody_who_is_not_there() {
    let manifest = read("Cargo.toml");
    for name in ["localhost", "kubernetes.io"] {
        assert!(!manifest.contains(name), "Cargo.toml has {name}");
    }
    let field = |name: &str| {
        let line = manifest.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")));
        line.and_then(|line| line.split('"').next()).unwrap_or_else(|| panic!("no {name}"))
    };
    let maintainer = field("maintainer");
    assert!(field("homepage").starts_with("https://"));
    assert!(read("deploy/debian/changelog").contains(&format!(" -- {maintainer}  ")), "{maintainer}");
}

/// Each row has to say something; that packages ask for these libraries is looked at by `deploy/package`.
#[test]
fn the_page_of_what_is_supported_names_what_is_asked_for() {
    let page = read("deploy/support.md");
    let rows: Vec<Vec<&str>> =
        page.lines().filter(|line| line.starts_with("| ")).map(|row| row.split('|').collect()).collect();
    for name in [
        "5.10",
        "5.12",
        "6.9",
        "6.16",
        "Debian 12",
        "Debian 13",
        "Ubuntu 22.04",
        "RHEL 9",
        "1.36",
        "Calico",
        "Flannel",
        "Cilium",
        "Antrea",
        "OVN",
        "AWS VPC",
        "kindnet",
        "NodeLocal DNS",
        "MetalLB",
        "kube-vip",
        "firewalld",
        "ufw",
        "Docker",
    ] {
        let mut rows = rows.iter().filter(|row| row[1].contains(name)).peekable();
        assert!(rows.peek().is_some(), "no row for {name}");
        assert!(rows.any(|row| row[2..].iter().any(|cell| cell.trim().len() > 2)), "the row for {name} says nothing");
    }
    // As the manual says it.
    assert!(page.contains("glibc 2.34 and libnftnl 1.2.1"));
    assert!(read("README.md").contains("libnftnl 1.2.1 and libmnl, glibc 2.34"));
    for (version, place) in
        [("Linux 5.10", "man/nftproxyd.8"), ("Linux 6.9", "man/nftproxyd.8"), ("5.12", "man/nftproxyd.8")]
    {
        assert!(read(place).contains(version), "{place}: {version}");
    }
}
