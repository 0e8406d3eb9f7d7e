//! Measures connections through a table that is loaded: how many new ones a second, how long `connect` takes, and
//! round trips of established ones; through Services and straight to a pod. Needs root.
//!
//! `cargo bench --bench connections -- 10000x10 --kube-proxy PATH` measures a cluster of so many Services x endpoints
//! (default: 1000x10), and the same with another proxy's rules. Everything happens in network namespaces of its own:
//! for each proxy a client, a node that forwards, and a backend that owns every pod's address. What all are compared
//! with is a connection straight to a pod through a node that tracks connections and has no rules; a second node like
//! it shows how far two that are equal differ. Turns are short and alternate, and a figure of one turn is compared with
//! those of the same round only, so that what disturbs the machine disturbs all of them. What is printed after ± is the
//! error of that alone: where its memory happens to be can make a node up to 1 % slower than its equal for a whole run.
//! Nothing passes or fails here.
//!
//! In an emulator whose clock counts instructions (`qemu-system-x86_64 -icount shift=0`) the times are instructions.

#[path = "../../support/api/mod.rs"]
mod api;
#[path = "../../support/netns/mod.rs"]
mod netns;
mod network;
mod report;
mod rules;
mod traffic;

use std::path::PathBuf;

use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use network::Network;
use report::{Report, Turn};
use rules::{Rules, Running};
use traffic::Path;

/// Command line.
#[derive(Parser)]
#[command(about = "Measures connections through Services and straight to a pod")]
struct Options {
    /// Clusters to measure
    #[arg(value_name = "SERVICESxENDPOINTS", value_parser = size, default_value = "1000x10")]
    sizes: Vec<(usize, usize)>,
    /// Also measure the rules of this kube-proxy
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
    /// Its mode
    #[arg(long, value_name = "MODE", default_value = "nftables")]
    kube_proxy_mode: String,
    /// Another build of the daemon than this one
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_nftproxyd"))]
    nftproxyd: PathBuf,
    /// Measure a second build of the daemon as well
    #[arg(long, value_name = "PATH")]
    other: Option<PathBuf>,
    /// Also measure the rules of this file, in nft's language
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// Rounds of turns
    #[arg(long, default_value_t = 400)]
    rounds: usize,
    /// New connections and round trips of each turn
    #[arg(long, default_value_t = 100)]
    turn: usize,
    /// Make the client one from outside of the cluster, which is masqueraded, instead of a pod
    #[arg(long)]
    outside: bool,
    /// Processor that makes all the connections
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let parse = || {
        let (services, endpoints) = text.split_once('x')?;
        Some((services.parse().ok()?, endpoints.parse().ok()?))
    };
    parse().filter(|&(services, endpoints)| services > 0 && endpoints > 0).ok_or_else(|| "as in 1000x10".to_owned())
}

fn main() {
    let options = Options::parse();
    if netns::Namespace::for_test().is_none() {
        return;
    }
    for &(services, endpoints) in &options.sizes {
        measure(services, endpoints, &options);
    }
}

fn measure(services: usize, endpoints: usize, options: &Options) {
    let mut all: Vec<(&str, Rules)> =
        vec![("tracking only", Rules::Tracking), ("tracking only, again", Rules::Tracking)];
    all.push(("nftproxyd", Rules::Nftproxyd(options.nftproxyd.clone())));
    all.extend(options.other.clone().map(|path| ("other nftproxyd", Rules::Nftproxyd(path))));
    for path in &options.rules {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("rules");
        all.push((name, Rules::File(path.clone())));
    }
    all.extend(
        options.kube_proxy.clone().map(|path| ("kube-proxy", Rules::KubeProxy(path, options.kube_proxy_mode.clone()))),
    );
    let sets: Vec<(Network, Running)> = all
        .iter()
        .map(|(_, rules)| {
            let network = Network::new(options.outside);
            let running = rules.start(&network, services, endpoints);
            (network, running)
        })
        .collect();

    let mut paths = Vec::new();
    for ((name, rules), (network, _)) in all.iter().zip(&sets) {
        for (to, address) in rules.destinations(services, endpoints) {
            if traffic::reached(network, address, rules.patience()) {
                paths.push((*name, to, Path::new(network, address)));
            } else {
                println!("{name}: {to} ({address}) is not reached");
            }
        }
    }
    // Only now, and only until the end: the daemons would inherit it.
    let everywhere = sched_getaffinity(Pid::from_raw(0)).expect("this thread's own");
    let mut cpu = CpuSet::new();
    cpu.set(options.cpu).expect("--cpu is a number of a processor");
    sched_setaffinity(Pid::from_raw(0), &cpu).expect("--cpu is a processor of this machine");

    let mut report = Report::new(paths.iter().map(|(name, to, _)| (*name, *to)).collect());
    for round in 0..options.rounds {
        for place in 0..paths.len() {
            // Nobody always follows the same one.
            let step = if round % 2 == 0 { place } else { paths.len() - 1 - place };
            let which = (round / 2 + step) % paths.len();
            let path = &paths[which].2;
            let turn = Turn {
                connections: path.connections(options.turn),
                latencies: path.latencies(options.turn / 2),
                round_trips: path.round_trips(options.turn),
            };
            report.add(which, turn);
        }
        sets.iter().for_each(|(network, _)| network.forget_connections());
    }
    sched_setaffinity(Pid::from_raw(0), &everywhere).expect("it was so before");
    println!(
        "\n{services} Services x {endpoints} endpoints, {} rounds of {} connections:\n",
        options.rounds, options.turn
    );
    print!("{report}");
}
