//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::control_plane;
use crate::proxy::{Kind, Program};
use crate::run::Effort;
use crate::size::Size;

/// Measures nftproxyd against an API server, in network namespaces of its own. Needs root.
///
/// By default the API server is a stand-in. Nothing passes or fails by a number.
#[derive(Debug, Parser)]
#[command(name = "cluster", bin_name = "cargo bench --bench cluster --", version)]
pub(crate) struct Options {
    /// Clusters of so many Services x endpoints each [default: 1000x10 10000x10]
    #[arg(value_name = "SERVICESxENDPOINTS")]
    sizes: Vec<Size>,
    /// One small cluster and few changes: whether everything works, and ratios, in some seconds
    #[arg(long)]
    short: bool,
    /// How many changes of each kind [default: 100, with --short 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=5_000))]
    changes: Option<u16>,
    /// Another build of the daemon
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_nftproxyd"), hide_default_value = true)]
    nftproxyd: PathBuf,
    /// Has the daemon choose endpoints so where a Service does not say
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
    /// Also tells what changes cost by the scheduler of a Service
    #[arg(long)]
    schedulers: bool,
    /// Measures this kube-proxy as well
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
    /// Uses a real API server
    #[arg(long, value_name = "PATH", requires = "etcd")]
    kube_apiserver: Option<PathBuf>,
    /// The etcd of the API server
    #[arg(long, value_name = "PATH", requires = "kube_apiserver")]
    etcd: Option<PathBuf>,
    /// Also draws times from changes to packets, of the last of the sizes, beside those of the kube-proxy
    #[arg(long, value_name = "FILE", requires = "kube_proxy")]
    pub(crate) svg: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub(crate) fn sizes(&self) -> Vec<Size> {
        let default = |sizes: &[(usize, usize)]| {
            sizes.iter().map(|&(services, endpoints)| Size { services, endpoints }).collect::<Vec<_>>()
        };
        match (self.sizes.is_empty(), self.short) {
            (false, _) => self.sizes.clone(),
            (true, true) => default(&[(300, 10)]),
            (true, false) => default(&[(1_000, 10), (10_000, 10)]),
        }
    }

    pub(crate) fn effort(&self) -> Effort {
        let (changes, churn) = if self.short { (10, 2) } else { (100, 20) };
        Effort {
            changes: self.changes.map_or(changes, usize::from),
            churn: Duration::from_secs(churn),
            schedulers: self.schedulers || self.short,
        }
    }

    /// The proxies to measure.
    pub(crate) fn programs(&self) -> Vec<Program> {
        let ours = Program {
            kind: Kind::Nftproxyd,
            path: self.nftproxyd.clone(),
            arguments: self.scheduler.iter().map(|name| format!("--scheduler={name}")).collect(),
        };
        let theirs = self.kube_proxy.clone().map(|path| Program { kind: Kind::KubeProxy, path, arguments: Vec::new() });
        [Some(ours), theirs].into_iter().flatten().collect()
    }

    /// The programs of a real API server, where it is to be one.
    pub(crate) fn control_plane(&self) -> Option<control_plane::Programs> {
        let (kube_apiserver, etcd) = self.kube_apiserver.clone().zip(self.etcd.clone())?;
        Some(control_plane::Programs { kube_apiserver, etcd })
    }
}
