//! Network namespaces for unit tests, tests and benchmarks: the one place that makes them, and the one rule for what
//! cannot run on a machine (see [`skip`]).
//!
//! Namespaces have no names below `/run/netns`. They belong to threads, processes, sockets and open files, and the kernel
//! removes one when the last of these is gone, however a test ends. Nothing outside of them is touched.

#![allow(dead_code, unused_imports, reason = "each test program uses a part of it")]

mod needs;
mod programs;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread::{self, Scope, ScopedJoinHandle};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) use needs::{has, lacks_permission, skip};
pub(crate) use programs::{fed, ip, nft, run, try_nft};

/// What every namespace needs, and nearly every test in one.
pub(crate) const PROGRAMS: [&str; 2] = ["ip", "nft"];

/// What is missing when a namespace cannot be made.
pub(crate) const NAMESPACES: &str = "permission to make network namespaces";

/// A network namespace with nothing in it but a loopback device that is up. It is there at least as long as this.
pub(crate) struct Namespace(File);

impl Namespace {
    /// Makes one. The calling thread stays where it is.
    ///
    /// # Errors
    /// What `unshare(2)` says, above all `EPERM` without `CAP_SYS_ADMIN`, and what `ip` says.
    pub(crate) fn new() -> io::Result<Namespace> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                Errno::EINVAL => io::Error::new(io::ErrorKind::Unsupported, "the kernel has no network namespaces"),
                errno => errno.into(),
            })?;
            fed(std::process::Command::new("ip").args(["link", "set", "lo", "up"]), "")?;
            File::open("/proc/thread-self/ns/net").map(Namespace)
        };
        thread::scope(|scope| finish(spawn(scope, make)))
    }

    /// One for a test. `None`, said by [`skip`], where this machine cannot have it.
    pub(crate) fn for_test() -> Option<Namespace> {
        if !has(&PROGRAMS) {
            return None;
        }
        match Namespace::new() {
            Ok(namespace) => Some(namespace),
            Err(error) if lacks_permission(&error) => {
                skip(NAMESPACES, error);
                None
            }
            Err(error) => panic!("cannot make a network namespace: {error}"),
        }
    }

    /// Moves this thread, and what it starts from now on, into the namespace.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("whoever made the namespace may enter it");
    }

    /// Runs something on a thread in the namespace: its sockets, devices, threads and child processes, and what it writes
    /// below `/proc/sys/net`, belong there. Its panic is one of the caller.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let enter_and_run = || {
            self.enter();
            job()
        };
        thread::scope(|scope| finish(spawn(scope, enter_and_run)))
    }

    /// Joins it with another one by a pair of veth devices: `device` here, `peer` there, both down.
    pub(crate) fn join(&self, device: &str, other: &Namespace, peer: &str) {
        // By a path that child processes can open, too.
        let other = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.run(|| ip(&format!("link add {device} type veth peer name {peer} netns {other}")));
    }
}

/// Runs a test on a thread in a network namespace of its own, unless it is skipped (see [`Namespace::for_test`]).
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    if let Some(namespace) = Namespace::for_test() {
        namespace.run(test);
    }
}

/// Writes a setting of this thread's namespace: `set_sysctl("ipv4/ip_forward", "1")`.
///
/// # Errors
/// The setting's name, and what the kernel says; `NotFound` where it knows no such setting.
pub(crate) fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys/net").join(name), value)
        .map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))
}

/// Starts a thread of the same name: panics and skips tell it, and it is that of the test.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    job: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    let name = thread::current().name().unwrap_or("unnamed").to_owned();
    thread::Builder::new().name(name).spawn_scoped(scope, job).expect("a thread can be started")
}

fn finish<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}
