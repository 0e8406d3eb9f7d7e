//! `nftproxyd render`: what would be installed, as an nft script.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use super::{configuration, converter, facts};
use crate::cli::{NodeArgs, RenderArgs};
use crate::model::{Event, Family};
use crate::nftables::in_memory::InMemoryKernel;
use crate::printable::printable;
use crate::ruleset::text;
use crate::source::file;
use crate::sync::Engine;

/// Prints the script on standard output, and what could not be used of the manifests on standard error.
pub(super) fn render(args: &RenderArgs) -> anyhow::Result<()> {
    let engine = load(&args.manifests, &args.node)?;
    let mut script = String::new();
    for family in Family::ALL {
        script.push_str(&text::ruleset(&engine.ruleset(family)));
    }
    io::stdout().write_all(script.as_bytes()).context("cannot write the script")
}

/// An engine that has installed the manifests, in memory.
///
/// The node's addresses are those of its Node object, since it may be another machine.
pub(super) fn load(manifests: &Path, node: &NodeArgs) -> anyhow::Result<Engine<InMemoryKernel>> {
    let config = configuration(node, Some(manifests.to_owned()))?.config;
    let mut engine = Engine::new(InMemoryKernel::new(), facts(&config));
    file::load_once(manifests, &config.node_name, converter(&config), &mut |event| {
        if let Event::Rejects { object, rejects } = &event {
            rejects.iter().for_each(|reject| eprintln!("{}", printable(&format!("{object}: {reject}"))));
        }
        engine.apply(event);
    })?;
    let node = engine.store().node().map(|node| node.addresses).unwrap_or_default();
    let addresses: BTreeSet<_> = Family::ALL.iter().filter_map(|family| node[*family]).collect();
    engine.set_addresses(addresses);
    let report = engine.sync(Instant::now());
    anyhow::ensure!(
        engine.is_in_line() && report.failures == 0,
        "the ruleset contradicts itself: {}",
        report.error_text()
    );
    Ok(engine)
}
