//! Child processes, and what the kernel says of them.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Lines that are kept to be shown when something goes wrong.
const LAST_WORDS: usize = 20;

/// A child process. Killed when dropped.
pub(crate) struct Process(pub(crate) Child);

/// What a process holds of memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) peak: u64,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Process(child))
    }

    /// Ends it as an administrator does.
    pub(crate) fn stop(&mut self, patience: Duration) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM)?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the process ends with {status}"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
        bail!("the process does not end")
    }

    /// Processor time used so far, by it and by its children that have ended.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let stat = self.proc()?.stat()?;
        let ticks = stat.utime + stat.stime + stat.cutime.unsigned_abs() + stat.cstime.unsigned_abs();
        Ok(Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64))
    }

    /// What it holds by itself, without children.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = self.proc()?.status()?;
        let bytes = |kib: Option<u64>| kib.unwrap_or_default() * 1024;
        Ok(Memory { resident: bytes(status.vmrss), peak: bytes(status.vmhwm) })
    }

    fn proc(&self) -> Result<procfs::process::Process> {
        procfs::process::Process::new(self.0.id().cast_signed()).context("a process that is measured has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that a process writes, with the moment at which each came.
pub(crate) struct Log {
    lines: Receiver<(Instant, String)>,
    last: Vec<String>,
}

impl Log {
    pub(crate) fn of(output: impl Read + Send + 'static) -> Log {
        let (sender, lines) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            // Reads on when nobody listens any more: a full pipe would hold up the process.
            lines.for_each(|line| drop(sender.send((Instant::now(), line))));
        });
        Log { lines, last: Vec::new() }
    }

    /// The next line that is wanted; those before it are dropped.
    ///
    /// # Errors
    /// It does not come in time, or the process has ended: says what it said last.
    pub(crate) fn wait_for<T>(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<(Instant, T)> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, line)) => {
                    let found = wanted(&line);
                    self.keep(line);
                    if let Some(found) = found {
                        return Ok((at, found));
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("a line of the log does not come; the last are:\n{self}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the process has ended; its last lines are:\n{self}"),
            }
        }
    }

    /// The lines that have come.
    pub(crate) fn drain(&mut self) -> Vec<String> {
        let lines: Vec<String> = self.lines.try_iter().map(|(_, line)| line).collect();
        lines.iter().for_each(|line| self.keep(line.clone()));
        lines
    }

    fn keep(&mut self, line: String) {
        if self.last.len() == LAST_WORDS {
            self.last.remove(0);
        }
        self.last.push(line);
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.last.join("\n"))
    }
}
