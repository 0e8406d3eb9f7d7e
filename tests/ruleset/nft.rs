//! What stock nft makes of the text. Needs root and nft; each load happens in a network namespace of its own.

use nftproxyd::model::Family;
use nftproxyd::ruleset::base::{Detector, FrameFacts};
use nftproxyd::ruleset::text;

use super::netns::{Namespace, has, nft};
use super::{golden, sample};

/// The listing and the bytecode of what a script makes; `None` where it cannot be tried.
fn loaded(script: &str) -> Option<(String, String)> {
    let namespace = Namespace::for_test()?;
    Some(namespace.run(|| {
        nft(&["-f", "-"], script);
        let bytecode = nft(&["--debug=netlink", "list", "ruleset"], "");
        // The first lines say which set or rule (by a handle), the rest is the bytecode.
        let bytecode = bytecode.lines().filter(|line| line.starts_with("  [ ")).collect::<Vec<_>>().join("\n");
        (nft(&["list", "ruleset"], ""), bytecode)
    }))
}

/// nft before 1.1.0 aborts when it reads the IPv6 `remember-` chains: see `nftproxyd::ruleset::text`.
fn reads_long_updates() -> bool {
    let version = nft(&["--version"], "");
    let numbers = version.split('v').nth(1).unwrap().split(' ').next().unwrap();
    let numbers: Vec<u32> = numbers.split('.').map(|number| number.parse().unwrap()).collect();
    numbers >= vec![1, 1, 0]
}

fn all_facts(family: Family) -> Vec<FrameFacts> {
    let sample = sample::facts(family);
    let affinity = family == Family::V4 || reads_long_updates();
    let mut all = vec![
        FrameFacts { affinity, ..sample.clone() },
        golden::other_facts(family),
        FrameFacts { detector: None, affinity, ..sample.clone() },
        FrameFacts {
            detector: Some(Detector::Interface("cni0".into())),
            affinity: false,
            keeps_ports: false,
            ..sample.clone()
        },
        FrameFacts { affinity: false, keeps_ports: false, ..golden::extra_facts(family) },
        FrameFacts { masquerade_all: true, affinity: false, keeps_ports: false, ..sample.clone() },
    ];
    let everything = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    all.push(FrameFacts {
        detector: Some(Detector::Source(everything.parse().unwrap())),
        affinity: false,
        keeps_ports: false,
        service_cidrs: ["10.96.0.0/16", "10.97.0.1/32"].map(|cidr| sample::net(family, cidr)).to_vec(),
        ..sample
    });
    all
}

/// What nft lists can be loaded again and is then the same, down to the bytecode.
#[test]
fn listing_is_a_fixed_point() {
    if !has(&["nft"]) {
        return;
    }
    for family in Family::ALL {
        for facts in all_facts(family) {
            let script = text::ruleset(&sample::ruleset(&facts));
            let Some((listing, bytecode)) = loaded(&script) else { return };
            assert!(bytecode.lines().count() > 100, "{bytecode}");
            let Some((again, same_bytecode)) = loaded(&listing) else { return };
            assert_eq!(sorted(&again), sorted(&listing), "{facts:?}");
            assert_eq!(same_bytecode, bytecode, "{facts:?}");
        }
    }
}

/// Rules and definitions are written as nft prints them.
#[test]
fn text_is_what_nft_prints() {
    if !has(&["nft"]) {
        return;
    }
    for family in Family::ALL {
        for facts in all_facts(family) {
            let script = text::ruleset(&sample::ruleset(&facts));
            let Some((listing, _)) = loaded(&script) else { return };
            // The one line that nft shortens.
            let script = script.replace("meta l4proto tcp reject with tcp reset", "reject with tcp reset");
            assert_eq!(sorted(&script), sorted(&listing), "{facts:?}");
        }
    }
}

/// The chains with their rules in order, and all else with its elements sorted: nft prints elements in the order of the
/// kernel's hash.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut elements: Option<Vec<String>> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut line = line;
        if let Some(rest) = line.strip_prefix("elements = {") {
            elements = Some(Vec::new());
            line = rest.trim();
        }
        match &mut elements {
            None => lines.push(line.to_owned()),
            Some(found) => {
                let is_last = line.ends_with('}');
                let parts = line.trim_end_matches('}').split(',').map(str::trim).filter(|part| !part.is_empty());
                found.extend(parts.map(str::to_owned));
                if is_last {
                    found.sort();
                    lines.append(found);
                    elements = None;
                }
            }
        }
    }
    lines
}
