//! The daemon's lives: it is stopped, killed and started again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::api::synthetic;
use crate::process::{Log, Process};

/// For whatever a daemon has to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// A daemon holds what it needs once it has lived for so long.
const GROWN_UP: Duration = Duration::from_secs(8);
/// What a daemon may hold more than the first did when it was grown up: the cluster's size varies.
const GROWTH: u64 = 6 << 20;
/// What it may have more of open: connections come and go.
const MORE_DESCRIPTORS: usize = 12;

/// How to start it.
pub(crate) struct Starter {
    program: PathBuf,
    arguments: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Starter {
    pub(crate) fn new(program: &Path, flags: &[String], kubeconfig: &str) -> Result<Starter> {
        let folder = tempfile::tempdir().context("no folder for configuration files")?;
        let (connection, config) = (folder.path().join("kubeconfig"), folder.path().join("config.yaml"));
        std::fs::write(&connection, kubeconfig)?;
        let content = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "clientConnection": {"kubeconfig": connection}});
        std::fs::write(&config, content.to_string())?;
        let config = config.to_str().context("a folder whose name is not UTF-8")?;
        let mut arguments: Vec<String> =
            ["run", "--hostname-override", synthetic::NODE, "--config", config].map(Into::into).into();
        arguments.extend_from_slice(flags);
        Ok(Starter { program: program.to_owned(), arguments, _folder: folder })
    }

    /// Starts it in this thread's network namespace.
    fn start(&self) -> Result<Life> {
        // The kernel kills the daemon when this thread ends, even if the program was killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::start(&mut command)?;
        let log = Log::of(process.0.stderr.take().context("no pipe for the log")?);
        Ok(Life { process, log, began: Instant::now() })
    }
}

/// One process.
struct Life {
    process: Process,
    log: Log,
    began: Instant,
}

/// One after the other.
pub(crate) struct Lives {
    starter: Starter,
    now: Life,
    /// Resident memory in bytes and descriptors of those that were grown up, in order.
    held: Vec<(u64, usize)>,
    warnings: usize,
    lines: usize,
    panics: Vec<String>,
}

impl Lives {
    pub(crate) fn start(starter: Starter) -> Result<Lives> {
        let now = starter.start()?;
        Ok(Lives { starter, now, held: Vec::new(), warnings: 0, lines: 0, panics: Vec::new() })
    }

    fn pid(&self) -> i32 {
        self.now.process.0.id().cast_signed()
    }

    /// Looks at what it holds and at what it has said.
    ///
    /// # Errors
    /// It has ended by itself.
    pub(crate) fn look(&mut self) -> Result<()> {
        let lines = self.now.log.drain();
        self.lines += lines.len();
        self.warnings += lines.iter().filter(|line| line.contains(" WARN ") || line.contains("ERROR")).count();
        self.panics.extend(lines.into_iter().filter(|line| line.contains("panicked")));
        if let Some(status) = self.now.process.0.try_wait()? {
            bail!("the daemon has ended ({status}); its last lines are:\n{}", self.now.log);
        }
        if self.now.began.elapsed() >= GROWN_UP {
            let process = procfs::process::Process::new(self.pid()).context("the daemon has ended")?;
            self.held.push((self.now.process.memory()?.resident, process.fd_count()?));
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.now = self.starter.start()?;
        Ok(())
    }

    /// Ends it as a lack of memory does.
    pub(crate) fn end_by_force(&mut self) -> Result<()> {
        self.look()?;
        self.now.process.0.kill()?;
        self.now.process.0.wait()?;
        Ok(())
    }

    /// Ends it as a lack of memory does, and starts the next.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.end_by_force()?;
        self.next()
    }

    /// Starts the next beside it, and ends it when that waits.
    pub(crate) fn hand_over(&mut self, end: fn(&mut Lives) -> Result<()>) -> Result<()> {
        let mut next = self.starter.start()?;
        next.log.wait_for(PATIENCE, |line| line.contains("another nftproxyd (pid ").then_some(()))?;
        end(self)?;
        self.now = next;
        Ok(())
    }

    /// Ends it as an administrator does.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.look()?;
        self.now.process.stop(PATIENCE).with_context(|| format!("the last lines of the daemon are:\n{}", self.now.log))
    }

    /// Ends it as an administrator does, and starts the next.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.next()
    }

    /// Ends the last one.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.stop()
    }

    /// What must not have happened.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = self.panics.clone();
        if let (Some(first), Some(last)) = (self.held.first(), self.held.last()) {
            if last.0 > first.0 + first.0 / 4 + GROWTH {
                faults.push(format!("memory has grown from {} to {} KiB", first.0 >> 10, last.0 >> 10));
            }
            if last.1 > first.1 + MORE_DESCRIPTORS {
                faults.push(format!("descriptors have grown from {} to {}", first.1, last.1));
            }
        } else {
            faults.push("no daemon lived long enough to say what it holds".to_owned());
        }
        faults
    }
}

impl fmt::Display for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib: Vec<u64> = self.held.iter().map(|(bytes, _)| bytes >> 10).collect();
        let range =
            |values: &[u64]| format!("{}..{}", values.iter().min().unwrap_or(&0), values.iter().max().unwrap_or(&0));
        let descriptors: Vec<u64> = self.held.iter().map(|(_, count)| *count as u64).collect();
        let last = |values: &[u64]| values.last().copied().unwrap_or_default();
        write!(
            f,
            "resident {} KiB, at last {}; descriptors {}, at last {}; {} lines of the log, {} of them warnings or worse",
            range(&kib),
            last(&kib),
            range(&descriptors),
            last(&descriptors),
            self.lines,
            self.warnings
        )
    }
}
