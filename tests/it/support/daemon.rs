//! The daemon as a child process in a node.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::world::World;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_nftproxyd");

/// A running daemon. It is killed when this is dropped, and when the test ends in any other way.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Starts the daemon in `world`.
    ///
    /// # Errors
    /// When the program cannot be started; that it ends at once is not an error yet.
    pub(crate) fn start<A: AsRef<OsStr>>(world: &World, arguments: &[A]) -> io::Result<Daemon> {
        Daemon::start_program(world, PROGRAM, arguments)
    }

    /// Starts another program as if it were the daemon.
    pub(crate) fn start_program<A: AsRef<OsStr>>(world: &World, program: &str, arguments: &[A]) -> io::Result<Daemon> {
        let mut daemon = Daemon::start_unread(world, program, arguments)?;
        daemon.read();
        Ok(daemon)
    }

    /// As [`Daemon::start`], and nobody reads what it writes until [`Daemon::read`].
    pub(crate) fn start_unheard<A: AsRef<OsStr>>(world: &World, arguments: &[A]) -> io::Result<Daemon> {
        Daemon::start_unread(world, PROGRAM, arguments)
    }

    /// Reads all that it has written, and will write.
    pub(crate) fn read(&mut self) {
        let log = &self.log;
        self.readers.extend(self.child.stdout.take().map(|pipe| Log::follow(log, pipe)));
        self.readers.extend(self.child.stderr.take().map(|pipe| Log::follow(log, pipe)));
    }

    /// Starts it as a service manager does that has told it where to be notified, and has kept a socket of it under this
    /// name since before.
    pub(crate) fn start_managed<A: AsRef<OsStr>>(
        world: &World,
        manager: &Path,
        kept: Option<(&str, OwnedFd)>,
        arguments: &[A],
    ) -> io::Result<Daemon> {
        let mut command = Command::new("setpriv");
        // It is the third descriptor of a process that knows by the number that it is the one.
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"";
        command.args(["--pdeathsig", "KILL", "--", "sh", "-c", script, "sh", PROGRAM]).args(arguments);
        command.env("NOTIFY_SOCKET", manager).stdout(Stdio::piped()).stderr(Stdio::piped());
        match kept {
            Some((name, socket)) => command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name).stdin(socket),
            None => command.stdin(Stdio::null()),
        };
        let mut daemon = Daemon { child: world.spawn(command)?, log: Arc::default(), readers: Vec::new() };
        daemon.read();
        Ok(daemon)
    }

    fn start_unread<A: AsRef<OsStr>>(world: &World, program: &str, arguments: &[A]) -> io::Result<Daemon> {
        // The kernel kills the daemon when the thread of the node ends, even if the test itself was killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = world.spawn(command)?;
        Ok(Daemon { child, log: Arc::default(), readers: Vec::new() })
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// All that it has written to stdout and stderr.
    pub(crate) fn log(&self) -> String {
        self.log.lines().join("\n")
    }

    /// Waits for a line of the log, past or to come, and returns it.
    ///
    /// # Errors
    /// The log, when there was no such line in time.
    pub(crate) fn wait_for_log(&self, wanted: impl Fn(&str) -> bool, patience: Duration) -> Result<String, String> {
        let end = Instant::now() + patience;
        let mut lines = self.log.lines();
        loop {
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("not in the log within {patience:?}:\n{}", lines.join("\n")));
            }
            lines = self.log.written.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Limits how many descriptors it may have; those that it has stay.
    pub(crate) fn limit_descriptors(&self, limit: u32) -> io::Result<()> {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.child.id().to_string(), &format!("--nofile={limit}:")]);
        let status = command.status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("prlimit: {status}"))) }
    }

    /// Its resident memory in bytes, from procfs.
    pub(crate) fn resident_memory(&self) -> io::Result<u64> {
        let status = procfs::process::Process::new(self.child.id().cast_signed())
            .and_then(|process| process.status())
            .map_err(io::Error::other)?;
        status.vmrss.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("the daemon has ended"))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Asks it to end, and returns how it ended.
    ///
    /// # Errors
    /// When it has not ended in time; then it is killed.
    pub(crate) fn terminate(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        if self.alive() {
            self.signal(Signal::SIGTERM)?;
        }
        let end = Instant::now() + patience;
        loop {
            let over = Instant::now() >= end;
            if let Some(status) = self.child.try_wait()? {
                self.read_the_rest();
                return Ok(status);
            } else if over {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.kill();
        Err(io::Error::other(format!("the daemon did not end within {patience:?}:\n{}", self.log())))
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.read_the_rest();
    }

    fn read_the_rest(&mut self) {
        for reader in self.readers.drain(..) {
            // A reader has no reason to panic, and the lines that it has read are there anyway.
            let _ = reader.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The lines that a process has written.
#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    written: Condvar,
}

impl Log {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads lines until the pipe is closed.
    fn follow(log: &Arc<Log>, pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = Arc::clone(log);
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                log.lines().push(String::from_utf8_lossy(&line).into_owned());
                log.written.notify_all();
            }
        })
    }
}
