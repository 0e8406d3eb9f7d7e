//! Stock nft in the namespace of this thread.

use std::collections::BTreeMap;

pub(crate) use crate::netns::nft;

/// A listing of a table by its sets and chains; what is said of the table itself is under "table". Elements are sorted: nft prints them in the order of the kernel's hash.
/// Maps to kinds say which types they have, where the text gives examples of them.
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
            } else if text != "}" {
                blocks.entry("table".to_owned()).or_default().push(text.to_owned());
            }
            continue;
        }
        if let Some(rest) = text.strip_prefix("elements = {") {
            elements = Some(Vec::new());
            text = rest.trim();
        }
        match &mut elements {
            None => {
                let types = text.strip_prefix("type ").filter(|types| types.contains("classid"));
                let text = types.map_or_else(|| text.to_owned(), typeof_kinds);
                blocks.entry(block.clone()).or_default().push(text);
            }
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

/// `typeof` for the types of a map to kinds, or of one of what they mean.
fn typeof_kinds(types: &str) -> String {
    let names = [
        ("ipv4_addr", "ip daddr"),
        ("ipv6_addr", "ip6 daddr"),
        ("inet_proto", "meta l4proto"),
        ("inet_service", "th dport"),
    ];
    let exprs = names.into_iter().fold(types.to_owned(), |text, (name, expr)| text.replace(name, expr));
    format!("typeof {}", exprs.replace("classid", "meta priority"))
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
