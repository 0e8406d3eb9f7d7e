//! The proxy that is measured: nftproxyd, or a kube-proxy by the same hand.

mod kube_proxy;
mod nftproxyd;

use std::fmt;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{Log, Memory, Process};

/// Longer than anything here should take: kube-proxy needs minutes for large clusters.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// Of nftproxyd: others can change its tables.
pub(crate) const UNPROTECTED: &[&str] = &["--table-owner=off"];

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nftproxyd,
    KubeProxy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Nftproxyd => "nftproxyd",
            Kind::KubeProxy => "kube-proxy",
        })
    }
}

/// A proxy that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    /// More for its command line.
    pub(crate) arguments: Vec<String>,
}

/// What a proxy says of its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) listing: Duration,
    pub(crate) building: Duration,
    pub(crate) in_kernel: Duration,
    pub(crate) longest: Duration,
    pub(crate) operations: u64,
}

/// What a proxy says of one change, or of several.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    pub(crate) syncs: u64,
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) in_kernel: Duration,
    /// Of its transactions.
    pub(crate) longest: Duration,
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.syncs += other.syncs;
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.in_kernel += other.in_kernel;
        self.longest = self.longest.max(other.longest);
    }
}

/// A running proxy. Killed when dropped; its rules stay.
pub(crate) struct Proxy {
    kind: Kind,
    process: Process,
    log: Log,
    started: Instant,
    longest: Duration,
    _folder: tempfile::TempDir,
}

impl Program {
    /// Starts it in this thread's network namespace.
    pub(crate) fn start(&self, kubeconfig: &str) -> Result<Proxy> {
        self.start_with(kubeconfig, &[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(&self, kubeconfig: &str, more: &[&str]) -> Result<Proxy> {
        let folder = tempfile::tempdir().context("no folder for configuration files")?;
        let (connection, config) = (folder.path().join("kubeconfig"), folder.path().join("config.yaml"));
        std::fs::write(&connection, kubeconfig)?;
        let (content, arguments) = match self.kind {
            Kind::Nftproxyd => (nftproxyd::config(&connection), nftproxyd::ARGUMENTS),
            Kind::KubeProxy => (kube_proxy::config(&connection), kube_proxy::ARGUMENTS),
        };
        std::fs::write(&config, content.to_string())?;
        let mut command = Command::new(&self.path);
        command.args(arguments).args(&self.arguments).args(more).arg("--config").arg(&config);
        let started = Instant::now();
        let mut process = Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let log = Log::of(process.0.stderr.take().context("no pipe for the log")?);
        Ok(Proxy { kind: self.kind, process, log, started, longest: Duration::ZERO, _folder: folder })
    }

    /// What it says of itself.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(&self.path).arg("--version").output();
        let output = output.with_context(|| format!("cannot start {}", self.path.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Proxy {
    /// When the process was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.process.stop(PATIENCE)
    }

    /// Waits until it says that its rules are in the kernel. Returns when it said so, and what else.
    pub(crate) fn wait_in_sync(&mut self) -> Result<(Instant, Option<Start>)> {
        match self.kind {
            Kind::Nftproxyd => {
                let (at, start) = self.log.wait_for(PATIENCE, nftproxyd::start)?;
                Ok((at, Some(start)))
            }
            Kind::KubeProxy => {
                let (at, ()) = self.log.wait_for(PATIENCE, kube_proxy::is_synced)?;
                Ok((at, None))
            }
        }
    }

    /// Waits until it has said what a change cost it; with that comes what else it has said. For nftproxyd only.
    pub(crate) fn next_work(&mut self) -> Result<Work> {
        let changes_anything = |line: &str| nftproxyd::work(line).filter(|work| work.operations > 0);
        let (_, mut work) = self.log.wait_for(PATIENCE, changes_anything)?;
        self.longest = self.longest.max(work.longest);
        work += self.work_so_far();
        Ok(work)
    }

    /// What it has said of changes since it was last asked.
    pub(crate) fn work_so_far(&mut self) -> Work {
        let mut sum = Work::default();
        self.log.drain().iter().filter_map(|line| nftproxyd::work(line)).for_each(|work| sum += work);
        self.longest = self.longest.max(sum.longest);
        sum
    }

    /// The longest time that any of its transactions took after its start, as far as it has been asked. For nftproxyd only.
    pub(crate) fn longest(&mut self) -> Duration {
        self.work_so_far();
        self.longest
    }

    /// Waits until it has nothing more to do: it uses next to no processor time.
    pub(crate) fn settle(&self) -> Result<()> {
        let (look, little) = (Duration::from_millis(500), Duration::from_millis(20));
        let deadline = Instant::now() + PATIENCE;
        let mut before = self.process.cpu()?;
        let mut quiet = 0;
        while quiet < 2 {
            if Instant::now() > deadline {
                bail!("the proxy does not come to rest");
            }
            thread::sleep(look);
            let now = self.process.cpu()?;
            quiet = if now - before <= little { quiet + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        self.process.memory()
    }
}
