//! What stock nft makes of the text. Needs root and nft; each load happens in a network namespace of its own.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use nftproxyd::model::Family;
use nftproxyd::ruleset::base::{Detector, FrameFacts};
use nftproxyd::ruleset::text;

use super::{golden, sample};

/// Runs in a thread that has a fresh network namespace, which goes away with it.
fn in_new_namespace<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run()
    });
    thread.join().unwrap()
}

/// Whether the tests of this module can run; where `NFTPROXYD_REQUIRE_ROOT` is set, they have to.
fn can_run() -> bool {
    let why_not = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if Command::new("nft").arg("--version").output().is_err() {
        "no nft"
    } else {
        return true;
    };
    assert!(std::env::var_os("NFTPROXYD_REQUIRE_ROOT").is_none(), "{why_not}");
    eprintln!("skipped: {why_not}");
    false
}

fn nft(args: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The listing and the bytecode of what a script makes.
fn loaded(script: &str) -> (String, String) {
    let script = script.to_owned();
    in_new_namespace(move || {
        nft(&["-f", "-"], &script);
        let bytecode = nft(&["--debug=netlink", "list", "ruleset"], "");
        // The first lines say which set or rule (by a handle), the rest is the bytecode.
        let bytecode = bytecode.lines().filter(|line| line.starts_with("  [ ")).collect::<Vec<_>>().join("\n");
        (nft(&["list", "ruleset"], ""), bytecode)
    })
}

/// nft before 1.1.1 aborts when it reads the IPv6 `remember-` chains: see `nftproxyd::ruleset::text`.
fn reads_long_updates() -> bool {
    let version = nft(&["--version"], "");
    let numbers = version.split('v').nth(1).unwrap().split(' ').next().unwrap();
    let numbers: Vec<u32> = numbers.split('.').map(|number| number.parse().unwrap()).collect();
    numbers >= vec![1, 1, 1]
}

fn all_facts(family: Family) -> Vec<FrameFacts> {
    let sample = sample::facts(family);
    let affinity = family == Family::V4 || reads_long_updates();
    let mut all = vec![
        FrameFacts { affinity, ..sample.clone() },
        golden::other_facts(family),
        FrameFacts { detector: None, affinity, ..sample.clone() },
        FrameFacts { detector: Some(Detector::Interface("cni0".into())), affinity: false, ..sample.clone() },
        FrameFacts { masquerade_all: true, affinity: false, ..sample.clone() },
    ];
    let everything = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    all.push(FrameFacts {
        detector: Some(Detector::Source(everything.parse().unwrap())),
        affinity: false,
        service_cidrs: ["10.96.0.0/16", "10.97.0.1/32"].map(|cidr| sample::net(family, cidr)).to_vec(),
        ..sample
    });
    all
}

/// What nft lists can be loaded again and is then the same, down to the bytecode.
#[test]
fn listing_is_a_fixed_point() {
    if !can_run() {
        return;
    }
    for family in Family::ALL {
        for facts in all_facts(family) {
            let script = text::ruleset(&sample::ruleset(&facts));
            let (listing, bytecode) = loaded(&script);
            assert!(bytecode.lines().count() > 100, "{bytecode}");
            let (again, same_bytecode) = loaded(&listing);
            assert_eq!(sorted(&again), sorted(&listing), "{facts:?}");
            assert_eq!(same_bytecode, bytecode, "{facts:?}");
        }
    }
}

/// Rules and definitions are written as nft prints them.
#[test]
fn text_is_what_nft_prints() {
    if !can_run() {
        return;
    }
    for family in Family::ALL {
        for facts in all_facts(family) {
            let script = text::ruleset(&sample::ruleset(&facts));
            let (listing, _) = loaded(&script);
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
