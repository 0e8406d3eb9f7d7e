//! `nftproxyd explain`.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{ExplainArgs, LineOutput, NodeArgs};
use crate::explain::{self, Explanation, Informants, Place, Question};
use crate::metrics::services::{Node, Query, ServiceFacts};
use crate::model::Family;
use crate::nftables::LinuxKernel;
use crate::status;

/// Says what becomes of connections. The exit status is that of the gravest.
pub(super) fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let question = Question {
        from: args.from,
        to: args.to.clone(),
        protocol: args.protocol.map(Into::into),
        arriving_by: args.arriving_by.clone(),
        probe: args.probe,
    };
    let explanations = match &args.manifests {
        Some(folder) => of_manifests(folder, args, &question)?,
        None => here(args, &question)?,
    };
    let text = match args.output {
        LineOutput::Text => explanations.iter().map(explain::text).collect::<Vec<_>>().join("\n"),
        LineOutput::Json => serde_json::to_string_pretty(&explanations).context("cannot write JSON")? + "\n",
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write")?;
    let gravest = explanations.iter().map(|explanation| explanation.verdict).max();
    Ok(gravest.map_or(0, explain::Verdict::exit_status).into())
}

fn here(args: &ExplainArgs, question: &Question) -> anyhow::Result<Vec<Explanation>> {
    let table = super::table(args.service_proxy_name.as_deref());
    let address = args.metrics_bind_address.unwrap_or_else(|| super::metrics_address(table));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let daemon = runtime.block_on(status::ask(address)).map_err(|error| error.to_string());
    let answers = daemon.is_ok();
    let mut services = |query: &Query| {
        let asked = answers.then(|| runtime.block_on(status::ask_services(address, query)));
        asked.and_then(Result::ok).unwrap_or_default()
    };
    let mut kernel = LinuxKernel::of(table)?;
    let mut informants = Informants { daemon, services: &mut services, place: Place::Here(Path::new("/")) };
    Ok(explain::explain(&mut kernel, question, &mut informants)?)
}

/// Goes by what would be installed.
fn of_manifests(folder: &Path, args: &ExplainArgs, question: &Question) -> anyhow::Result<Vec<Explanation>> {
    let node_args = NodeArgs {
        config: args.config.clone(),
        hostname_override: args.hostname_override.clone(),
        service_proxy_name: args.service_proxy_name.clone(),
        ..NodeArgs::default()
    };
    let mut engine = super::render::load(folder, &node_args)?;
    let node = engine.store().node();
    let addresses: BTreeSet<IpAddr> =
        node.iter().flat_map(|node| Family::ALL.map(|family| node.addresses[family])).flatten().collect();
    let facts: Vec<ServiceFacts> = {
        let zone = node.and_then(|node| node.zone.as_deref());
        let store = engine.store();
        let node = Node { zone, ..Node::default() };
        store.services().map(|service| ServiceFacts::new(service, store.slices(&service.name), node)).collect()
    };
    let mut services = |query: &Query| match query {
        Query::Name(name) => facts.iter().filter(|facts| facts.name == name.as_str()).cloned().collect(),
        _ => Vec::new(),
    };
    let daemon = Err("is not asked".to_owned());
    let mut informants = Informants { daemon, services: &mut services, place: Place::Manifests(&addresses) };
    Ok(explain::explain(engine.kernel(), question, &mut informants)?)
}
