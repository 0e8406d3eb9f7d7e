//! Recorded messages for tests.

use std::fs;
use std::path::Path;

use super::decode::Step;
use crate::netlink::messages;

/// The messages of a recording in `testdata/trace`, as bytes.
pub(super) fn recording(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/trace").join(format!("{name}.txt"));
    let text = fs::read_to_string(path).expect("a recording");
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("a text"), 16).expect("a byte");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// The steps in it.
pub(super) fn recorded(name: &str) -> Vec<Step> {
    let steps = recording(name);
    let step = |bytes: &Vec<u8>| Step::read(&messages(bytes).next().expect("one").expect("whole")).expect("a step");
    steps.iter().map(step).collect()
}

/// The same with the names that a trace gives its table and chains: what was recorded was made by hand.
pub(super) fn renamed(mut steps: Vec<Step>) -> Vec<Step> {
    let names = [
        ("tr", "traced"),
        ("pre", "prerouting-first"),
        ("preend", "prerouting-last"),
        ("forw", "forward-first"),
        ("forwend", "forward-last"),
        ("postend", "postrouting-last"),
    ];
    for step in steps.iter_mut().filter(|step| step.place.table == "trc") {
        let (_, name) = names.iter().find(|(name, _)| *name == step.place.chain).expect("a chain of the recording");
        (step.place.table, step.place.chain) = ("trace".to_owned(), (*name).to_owned());
    }
    steps
}
