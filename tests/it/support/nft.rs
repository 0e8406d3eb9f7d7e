//! Stock nft in the namespace of this thread.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs nft with a text as its input; it has to succeed. Returns what it prints.
pub(crate) fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("nft reads");
    let output = child.wait_with_output().expect("nft ends");
    assert!(output.status.success(), "nft {arguments:?} < {input}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A listing of a table by its sets and chains. Elements are sorted: nft prints them in the order of the kernel's hash.
pub(crate) fn blocks(listing: &str) -> BTreeMap<String, Vec<String>> {
    let mut blocks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut block = String::new();
    let mut elements: Option<Vec<String>> = None;
    for line in listing.lines() {
        let mut text = line.trim();
        if text.is_empty() || !line.starts_with('\t') {
            continue;
        }
        if !line.starts_with("\t\t") {
            if text.ends_with('{') {
                text.clone_into(&mut block);
                blocks.entry(block.clone()).or_default();
            }
            continue;
        }
        if let Some(rest) = text.strip_prefix("elements = {") {
            elements = Some(Vec::new());
            text = rest.trim();
        }
        match &mut elements {
            None => blocks.entry(block.clone()).or_default().push(text.to_owned()),
            Some(found) => {
                let parts = text.trim_end_matches('}').split(',').map(str::trim).filter(|part| !part.is_empty());
                found.extend(parts.map(str::to_owned));
                if text.ends_with('}') {
                    found.sort();
                    let found = elements.take().unwrap_or_default();
                    blocks.entry(block.clone()).or_default().extend(found);
                }
            }
        }
    }
    blocks
}

/// The listing of our table.
pub(crate) fn table(family: &str) -> BTreeMap<String, Vec<String>> {
    blocks(&nft(&["list", "table", family, "nftproxyd"], ""))
}

/// Fails where two listings differ, and says in what.
#[track_caller]
pub(crate) fn assert_same(
    is: &BTreeMap<String, Vec<String>>,
    expected: &BTreeMap<String, Vec<String>>,
    what: impl std::fmt::Display,
) {
    for (block, lines) in is {
        assert_eq!(Some(lines), expected.get(block), "{what}: {block}");
    }
    for block in expected.keys() {
        assert!(is.contains_key(block), "{what}: {block} is not there");
    }
}
