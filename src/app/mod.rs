//! Builds the parts and wires them together; the only module that knows all of them.

mod accounting;
mod after_kube_proxy;
mod beside;
mod cleanup;
mod connections;
mod daemon_status;
mod explain;
mod flagz;
mod frontend_counts;
mod guard;
mod instance;
mod linger;
mod listen;
mod look_around;
mod observers;
mod one_shot;
mod ownership;
mod ports;
mod ready;
mod reload;
mod render;
mod run;
mod service_manager;
mod signals;
mod status;
mod take_over;
mod trace;
mod watch;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{Command, NodeArgs};
use crate::config::{self, Config, Loaded, LogFormat, Logging};
use crate::logging;
use crate::model::{Family, PerFamily};
use crate::ruleset::names::TableName;
use crate::source::convert::{Converter, Options};
use crate::sync::Facts;

/// The longest wait between two attempts of a sync that fails.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How long to wait before an address that could not be listened on is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// Does what the command line asks for, and returns the exit status.
///
/// # Errors
/// One error with its causes, to be printed on one line.
pub fn main(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Doctor(args) => return one_shot::doctor(&args),
        Command::Status(args) => return status::status(&args),
        Command::Explain(args) => return explain::explain(&args),
        Command::Trace(args) => return trace::trace(&args),
        Command::Run(args) => run::run(*args),
        Command::Render(args) => render::render(&args),
        Command::CheckConfig(args) => one_shot::check_config(&args.file),
        Command::Cleanup(args) if args.kube_proxy => one_shot::clean_up_after_kube_proxy(),
        Command::Cleanup(args) if args.after_kube_proxy => after_kube_proxy::cleanup(&args),
        Command::Cleanup(args) => one_shot::cleanup(args.service_proxy_name.as_deref()),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The end of the process: why it fails, if it does, behind all that was logged before.
pub fn end(failure: Option<&str>) {
    failure.into_iter().for_each(logging::last_words);
    logging::flush();
}

/// Reads the configuration, and begins to log as it says.
fn configuration(args: &NodeArgs, manifests: Option<PathBuf>) -> anyhow::Result<Loaded> {
    let loaded = load(args, manifests)?;
    logging::init(loaded.config.logging);
    Ok(with_warnings(loaded))
}

/// As [`configuration`], for the daemon.
fn daemon_configuration(args: &NodeArgs, manifests: Option<PathBuf>) -> anyhow::Result<Loaded> {
    let loaded = load(args, manifests)?;
    logging::init_queued(loaded.config.logging)?;
    Ok(with_warnings(loaded))
}

fn load(args: &NodeArgs, manifests: Option<PathBuf>) -> anyhow::Result<Loaded> {
    let overrides = args.overrides(manifests);
    let loaded = config::load(args.config.as_deref(), &overrides);
    if loaded.is_err() && overrides.wants_json() {
        // Whoever reads the log reads this, too.
        logging::init(Logging { format: LogFormat::Json, ..Logging::default() });
    }
    Ok(loaded?)
}

fn with_warnings(loaded: Loaded) -> Loaded {
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    loaded
}

fn converter(config: &Config) -> Arc<Converter> {
    let options = Options {
        node_name: config.node_name.clone(),
        allow_external_ips: config.allow_external_ips,
        service_proxy_name: config.service_proxy_name.clone(),
    };
    Arc::new(Converter::new(options))
}

/// The tables of a proxy with this name, or of the one that serves the node.
fn table(service_proxy_name: Option<&str>) -> TableName {
    service_proxy_name.map_or(TableName::NODE, TableName::of_proxy)
}

/// Where the daemon of these tables serves its metrics, unless it was told otherwise.
fn metrics_address(table: TableName) -> SocketAddr {
    let port = if table == TableName::NODE { config::METRICS_PORT } else { config::METRICS_PORT_BESIDE };
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn facts(config: &Config) -> Facts {
    Facts {
        table: table(config.service_proxy_name.as_deref()),
        detect_local: config.detect_local.clone(),
        node_ports: config.node_port_addresses.clone(),
        masquerade_bit: config.masquerade_bit,
        masquerade_all: config.masquerade_all,
        node_ips: PerFamily::from_fn(|family| {
            let specific = !config.bind_address.is_unspecified() && Family::of(config.bind_address) == family;
            specific.then_some(config.bind_address)
        }),
        scheduler: config.scheduler,
        hashes: true,
        counters: config.count_connections,
        ping: config.ping,
        longest_retry: LONGEST_RETRY.min(config.sync_period),
    }
}
