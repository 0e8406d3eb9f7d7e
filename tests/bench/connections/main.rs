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
//! The daemon is measured a second time with frontends that count their connections, beside the one without.
//!
//! For each scheduler a Service that asks for it is added; and where the kernel has IPVS, and `ipvsadm` is there, its
//! schedulers are measured beside them. A table of its own is of flows of one UDP datagram, to both families.
//!
//! Node ports by 127.0.0.1, which the daemon serves itself, are compared with the same by the node's address.
//!
//! In an emulator whose clock counts instructions (`qemu-system-x86_64 -icount shift=0`) the times are instructions.

#[path = "../../support/api/mod.rs"]
mod api;
mod flows;
mod localhost;
#[path = "../../support/netns/mod.rs"]
mod netns;
mod network;
mod report;
mod rules;
mod scheduled;
mod traffic;

use std::path::PathBuf;

use clap::Parser;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use flows::Flows;
use network::Network;
use report::{COUNTING, FlowReport, Report, Turn};
use rules::{Cluster, Rules, Running};
use traffic::Path;

/// Command line.
#[derive(Parser)]
#[command(about = "Measures connections through Services and straight to a pod")]
struct Options {
    /// Clusters to measure [default: 1000x10]
    #[arg(value_name = "SERVICESxENDPOINTS", value_parser = size)]
    sizes: Vec<(usize, usize)>,
    /// A small cluster and few rounds: whether everything works, in some seconds
    #[arg(long)]
    short: bool,
    /// Schedulers of Services that are added
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "random,rr,sh,mh")]
    schedulers: Vec<String>,
    /// Only flows of one packet
    #[arg(long)]
    only_flows: bool,
    /// Only node ports on localhost, beside those at the node's address
    #[arg(long)]
    only_localhost: bool,
    /// Do not tell a proxy which addresses are pods'
    #[arg(long)]
    pods_unknown: bool,
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
    /// Rounds of turns [default: 400, with --short 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// New connections, round trips and flows of each turn
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=100))]
    turn: u16,
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
    let sizes = match (options.sizes.as_slice(), options.short) {
        ([], true) => &[(100, 10)],
        ([], false) => &[(1_000, 10)],
        (sizes, _) => sizes,
    };
    let rounds = options.rounds.unwrap_or(if options.short { 2 } else { 20 }).min(50);
    localhost::measure(options.nftproxyd.clone(), rounds);
    if options.only_localhost {
        return;
    }
    for &(services, endpoints) in sizes {
        let (schedulers, knows_pods) = (options.schedulers.clone(), !options.pods_unknown);
        measure(&Cluster { services, endpoints, schedulers, knows_pods }, &options);
    }
}

fn measure(cluster: &Cluster, options: &Options) {
    let mut all: Vec<(&str, Rules)> =
        vec![("tracking only", Rules::Tracking), ("tracking only, again", Rules::Tracking)];
    all.push(("nftproxyd", Rules::Nftproxyd(options.nftproxyd.clone())));
    all.push((COUNTING, Rules::Counting(options.nftproxyd.clone())));
    all.extend(options.other.clone().map(|path| ("other nftproxyd", Rules::Nftproxyd(path))));
    for path in &options.rules {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("rules");
        all.push((name, Rules::File(path.clone())));
    }
    all.extend(
        options.kube_proxy.clone().map(|path| ("kube-proxy", Rules::KubeProxy(path, options.kube_proxy_mode.clone()))),
    );
    match Network::new(options.outside).in_node(rules::has_ipvs) {
        Ok(()) => all.push(("IPVS", Rules::Ipvs)),
        Err(reason) => println!("IPVS is not measured: {reason}"),
    }
    let sets: Vec<(Network, Running)> = all
        .iter()
        .map(|(_, rules)| {
            let network = Network::new(options.outside);
            let running = rules.start(&network, cluster);
            (network, running)
        })
        .collect();

    let (mut paths, mut flow_names, mut flows) = (Vec::new(), Vec::new(), Vec::new());
    for ((name, rules), (network, _)) in all.iter().zip(&sets) {
        for (to, address) in rules.destinations(cluster) {
            if traffic::reached(network, address, rules.patience()) {
                paths.push((*name, to, Path::new(network, address)));
            } else {
                println!("{name}: {to} ({address}) is not reached");
            }
        }
        for (to, addresses) in rules.flows(cluster) {
            for (which, address) in addresses.into_iter().enumerate() {
                let Some(way) = address.map(|address| Flows::new(network, address)) else { continue };
                if way.is_reached(rules.patience()) {
                    flows.push((flow_names.len(), which, way));
                } else {
                    println!("{name}: {to} ({address:?}) is not reached by datagrams");
                }
            }
            flow_names.push((*name, to));
        }
    }
    if options.only_flows {
        paths.clear();
    }
    // Only now, and only until the end: the daemons would inherit it.
    let everywhere = sched_getaffinity(Pid::from_raw(0)).expect("this thread's own");
    let mut cpu = CpuSet::new();
    cpu.set(options.cpu).expect("--cpu is a number of a processor");
    sched_setaffinity(Pid::from_raw(0), &cpu).expect("--cpu is a processor of this machine");

    let rounds = options.rounds.unwrap_or(if options.short { 3 } else { 400 });
    let count = usize::from(options.turn);
    let mut report = Report::new(paths.iter().map(|(name, to, _)| (*name, to.clone())).collect());
    let mut flow_report = FlowReport::new(flow_names);
    for round in 0..rounds {
        for which in order(round, paths.len()) {
            let path = &paths[which].2;
            let turn = Turn {
                connections: path.connections(count),
                latencies: path.latencies(count / 2),
                round_trips: path.round_trips(count),
            };
            report.add(which, turn);
        }
        for which in order(round, flows.len()) {
            let (number, address, way) = &flows[which];
            flow_report.add(*number, *address, way.take(count));
        }
        sets.iter().for_each(|(network, _)| network.forget_connections());
    }
    sched_setaffinity(Pid::from_raw(0), &everywhere).expect("it was so before");
    let Cluster { services, endpoints, .. } = cluster;
    println!("\n{services} Services x {endpoints} endpoints, {rounds} rounds of {count}:\n");
    if !paths.is_empty() {
        println!("{report}");
    }
    print!("{flow_report}");
}

/// In which order all have their turn in a round: nobody always follows the same one.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| {
        let step = if round.is_multiple_of(2) { place } else { count - 1 - place };
        (round / 2 + step) % count
    })
}
