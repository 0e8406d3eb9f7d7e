//! Whether a node stays well for hours: a cluster that changes all the time, faults one after the other, and live clients
//! that count every answer that is wrong, missing or late.
//!
//! `cargo bench --bench soak -- --minutes 60`; `--help` names the options. It needs root, and touches nothing outside of
//! network namespaces of its own. It fails by what was lost where nothing may be lost, and by what grows; never by how
//! long something took.

#[path = "../../support/api/mod.rs"]
mod api;
mod clients;
mod cluster;
mod daemon;
mod faults;
#[path = "../../support/netns/mod.rs"]
mod netns;
#[path = "../network.rs"]
mod network;
#[path = "../../support/numbers.rs"]
mod numbers;
mod pods;
#[path = "../process.rs"]
#[allow(dead_code, reason = "it needs less than benchmarks do")]
mod process;
mod pulse;
mod tally;
mod truth;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;

use api::Api;
use cluster::{Churn, Cluster};
use daemon::{Lives, Starter};
use faults::{Faults, Site};
use network::Network;
use pulse::Pulse;
use tally::Tally;
use truth::Truth;

/// Lets a node live through faults under load, in network namespaces of its own. Needs root.
#[derive(Debug, Parser)]
#[command(name = "soak", bin_name = "cargo bench --bench soak --", version)]
struct Options {
    /// How long
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    minutes: u16,
    /// How many Services there are beside those that clients use
    #[arg(long, value_name = "N", default_value = "2000", value_parser = clap::value_parser!(u16).range(10..=50_000))]
    services: u16,
    /// Changes of them each second
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    changes: u16,
    /// Where the order of faults and changes begins
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Another build of the daemon
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_nftproxyd"), hide_default_value = true)]
    nftproxyd: PathBuf,
    /// A flag for the daemon; may be given several times
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    flag: Vec<String>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if netns::Namespace::for_test().is_none() {
        return ExitCode::SUCCESS;
    }
    match soak(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all was well.
fn soak(options: &Options) -> Result<bool> {
    let network = Arc::new(Network::new().context("cannot make network namespaces")?);
    // The API server and whoever writes to it live on the node.
    network.node.enter();
    pods::serve(&network.backend);
    let api = Arc::new(Api::start(TcpListener::bind("127.0.0.1:0").context("no port on the node")?));
    let (truth, tally) = (Arc::new(Truth::default()), Arc::new(Tally::default()));
    let cluster = Arc::new(Cluster::new(Arc::clone(&api), Arc::clone(&truth), usize::from(options.services)));
    let starter = Starter::new(&options.nftproxyd, &options.flag, &api.kubeconfig())?;
    let mut lives = Lives::start(starter)?;
    let site = Site { network: Arc::clone(&network), api, cluster: Arc::clone(&cluster), truth: Arc::clone(&truth) };
    let whole = site.wait_whole(Instant::now())?;
    println!("{} Services; {:?} from the start of the daemon to the first packet", cluster.len(), whole);

    let end = Instant::now() + Duration::from_secs(60) * u32::from(options.minutes);
    let churn = Churn::begin(Arc::clone(&cluster), options.seed, u32::from(options.changes));
    let pulse = Pulse::begin(&truth, &tally);
    let clients = clients::begin(&network.client, &truth, &tally);
    let mut faults = Faults::new(options.seed, Arc::clone(&tally));
    // Quiet to begin with: what is lost now is nobody's fault but the proxy's.
    thread::sleep(Duration::from_secs(5));
    while Instant::now() < end {
        faults.next(&site, &mut lives)?;
    }
    let changes = churn.end();
    thread::sleep(clients::PATIENCE + Duration::from_secs(1));
    clients.end();
    pulse.end();
    truth.is_disturbed();
    site.wait_whole(Instant::now())?;
    let wrong = site.wrong_at_the_end();
    lives.end()?;
    println!("{changes} changes beside, seed {}", options.seed);
    println!("{}\n{lives}", tally.report());
    wrong.iter().for_each(|wrong| println!("at the end: {wrong}"));
    let faults = tally.faults().into_iter().chain(lives.faults());
    let faults: Vec<String> =
        faults.chain((!wrong.is_empty()).then(|| "the end is not as it should be".to_owned())).collect();
    faults.iter().for_each(|fault| println!("NOT WELL: {fault}"));
    Ok(faults.is_empty())
}
