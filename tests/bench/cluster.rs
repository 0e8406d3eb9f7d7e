//! Measures the daemon, and on demand a kube-proxy by the same hand, from the start to single changes and churn.
//!
//! `cargo bench --bench cluster -- 10000x10 44000x1` measures clusters of so many Services x endpoints each, and prints a
//! table; `--help` names the options. It needs root, and touches nothing outside of network namespaces of its own. The
//! API server is a stand-in, a process of its own, unless a real one is given. What is said to be forwarding is shown by
//! real connections. Nothing passes or fails by a number: only what does not work at all is an error.

#[path = "../support/api/mod.rs"]
mod api;
mod changes;
mod churn;
mod control_plane;
mod floor;
mod kernel_memory;
mod netlink;
#[path = "../support/netns/mod.rs"]
mod netns;
mod network;
mod objects;
mod options;
mod picture;
mod process;
mod proxy;
mod run;
mod schedulers;
mod sheet;
mod size;
mod stand_in;
mod start;
mod targets;
mod traffic;
mod writer;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use control_plane::ControlPlane;
use network::Network;
use options::Options;
use run::Run;
use sheet::Sheet;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, size] = arguments.as_slice()
        && first == stand_in::ARGUMENT
    {
        stand_in::main(size.parse().expect("the benchmark knows what it asks for"));
        return ExitCode::SUCCESS;
    }
    let options = Options::parse();
    if netns::Namespace::for_test().is_none() {
        return ExitCode::SUCCESS;
    }
    match measure(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<()> {
    let network = &Network::new().context("cannot make network namespaces")?;
    let programs = options.programs();
    let circumstances = circumstances(options)?;
    println!("{circumstances}");
    // The proxies, the API server and whoever writes to it live on the node.
    network.node.enter();
    traffic::serve(&network.backend);
    let mut sheet = Sheet::new(programs.len() > 1);
    for size in options.sizes() {
        for program in &programs {
            let control_plane = ControlPlane::start(options.control_plane().as_ref(), size)?;
            let (effort, sheet, longest) = (options.effort(), &mut sheet, Duration::ZERO);
            let run = Run { network, control_plane, program, size, effort, sheet, longest };
            run.measure().with_context(|| format!("{} at {size}", program.path.display()))?;
        }
    }
    println!("\n{}", sheet.table());
    if let Some(path) = &options.svg {
        let picture = sheet.picture(circumstances).context("nothing to draw was measured")?;
        std::fs::write(path, picture.svg()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What else the numbers depend on.
fn circumstances(options: &Options) -> Result<String> {
    let system = nix::sys::utsname::uname()?;
    let processors = std::thread::available_parallelism()?;
    let versions = options.programs().iter().map(proxy::Program::version).collect::<Result<Vec<_>>>()?;
    let api_server = if options.control_plane().is_some() { "kube-apiserver" } else { "a stand-in" };
    let build = if cfg!(debug_assertions) { "a debug build: its numbers mean nothing" } else { "a release build" };
    Ok(format!(
        "{}, {} {} {}, {processors} processors; {}; API server: {api_server}; {build}",
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        system.sysname().display(),
        system.release().display(),
        system.machine().display(),
        versions.join(", "),
    ))
}
