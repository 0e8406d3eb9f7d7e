//! The nft of other Debian releases, which `tests/nft-versions` fetches, and others on demand.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::nft::blocks;
use super::world::World;
use crate::netns::{Namespace, skip};

/// The nft of a Debian release.
#[derive(Debug, Clone)]
pub(crate) struct Nft(pub(crate) PathBuf);

impl Nft {
    /// `None`, said loudly, where it is not there.
    pub(crate) fn of(suite: &str) -> Option<Nft> {
        let found = Path::new(env!("CARGO_BIN_EXE_nftproxyd"))
            .ancestors()
            .map(|folder| folder.join("nft-versions").join(suite).join("nft"))
            .find(|path| path.is_file());
        if found.is_none() {
            skip(&format!("nft of {suite}"), "run tests/nft-versions");
        }
        found.map(Nft)
    }

    /// Runs it in the namespace of this thread.
    pub(crate) fn output_here(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nft can be run");
        // One that crashes does not read it.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("nft ends")
    }

    /// The same; it has to succeed, and to complain about nothing.
    fn try_run(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let Output { status, stdout, stderr } = self.output_here(arguments, input);
        let stderr = String::from_utf8_lossy(&stderr);
        if status.success() && stderr.is_empty() {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        } else {
            Err(format!("{} {arguments:?}: {status}: {stderr}", self.0.display()))
        }
    }

    /// Whether it lists what the node holds, and loads its own listing where it can.
    fn reads(&self, suite: &str, world: &World) -> Result<(), String> {
        let nft = self.clone();
        let (listing, json) =
            world.run(move || (nft.try_run(&["list", "ruleset"], ""), nft.output_here(&["-j", "list", "ruleset"], "")));
        let listing = listing?;
        // 0.9.8 writes commas too many where a rule updates a map; 1.0.6 leaves these rules out, and says so.
        let has_affinity = listing.contains("update @affinity");
        if suite != "bullseye" || !has_affinity {
            let name = self.0.display();
            if !json.status.success() {
                let stderr = String::from_utf8_lossy(&json.stderr);
                return Err(format!("{name} -j list ruleset: {}: {stderr}", json.status));
            }
            serde_json::from_slice::<Value>(&json.stdout)
                .map_err(|error| format!("{name} -j list ruleset: {error}"))?;
        }
        // See nftproxyd-ruleset(7) for which loads what.
        let loads = match suite {
            "bullseye" => false,
            "bookworm" => !listing.contains("table ip6") || !has_affinity,
            _ => true,
        };
        if !loads {
            return Ok(());
        }
        // A table with an owner would be gone with the nft that loads it.
        let text: String = listing
            .lines()
            .filter(|line| !line.trim_start().starts_with("flags owner"))
            .map(|line| format!("{line}\n"))
            .collect();
        let elsewhere = Namespace::new().map_err(|error| error.to_string())?;
        let again = elsewhere.run(|| {
            self.try_run(&["-f", "-"], &text)?;
            self.try_run(&["list", "ruleset"], "")
        })?;
        // What clients have left runs out.
        let lasting = |listing: &str| {
            let mut blocks = blocks(listing);
            blocks.values_mut().for_each(|lines| lines.retain(|line| !line.contains(" expires ")));
            blocks
        };
        if lasting(&again) == lasting(&text) {
            Ok(())
        } else {
            Err(format!("{}: its listing is not what it makes of it:\n{text}\n---\n{again}", self.0.display()))
        }
    }
}

/// Paths of other builds of nft, separated by colons, that have to list the tables, too: the variable of this name.
const MORE: &str = "NFTPROXYD_NFT";

/// What the nft of other releases makes of the node's tables that it should not; one line each.
pub(crate) fn cannot_read(world: &World) -> Vec<String> {
    let suites = ["bullseye", "bookworm", "trixie"];
    let of_suites = suites.iter().filter_map(|suite| Nft::of(suite)?.reads(suite, world).err());
    let more = env::var_os(MORE).unwrap_or_default();
    let more = env::split_paths(&more).filter(|path| !path.as_os_str().is_empty()).map(Nft);
    let others = more.filter_map(|nft| world.run(move || nft.try_run(&["list", "ruleset"], "")).err());
    of_suites.chain(others).collect()
}
