//! A network namespace that a thread of the test lives in.
//!
//! Namespaces belong to threads, so nothing needs a name below `/run/netns`: the kernel removes the namespace when the
//! thread, its sockets and its child processes are gone, however the test ends.

use std::any::Any;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own, with nothing in it but a loopback device that is down.
pub(crate) struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    _permit: Permit,
}

impl Namespace {
    /// Makes the namespace. Waits while as many as the machine has processors exist (at least two): packets are judged
    /// by what has come back after a while, and that works best when everybody gets a turn. A test therefore makes
    /// one, not several.
    ///
    /// # Errors
    /// What `unshare(2)` says, above all `EPERM` without `CAP_SYS_ADMIN`.
    pub(crate) fn new() -> io::Result<Namespace> {
        let permit = Permit::acquire();
        let (jobs, todo) = channel::<Job>();
        let (ready, made) = channel();
        let thread = thread::Builder::new().name("node".to_owned()).spawn(move || {
            let result = unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            let usable = result.is_ok();
            // The receiver waits for this one message, and a namespace that could not be made has no jobs.
            if ready.send(result).is_ok() && usable {
                todo.into_iter().for_each(|job| job());
            }
        })?;
        made.recv().map_err(io::Error::other)??;
        Ok(Namespace { jobs: Some(jobs), thread: Some(thread), _permit: permit })
    }

    /// Runs `job` on the thread of the namespace: its sockets, devices, threads and child processes, and what it writes
    /// below `/proc/sys/net`, belong there. A panic of the job is one of the caller.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel::<Result<T, Box<dyn Any + Send>>>();
        let job = Box::new(move || {
            // The caller waits, unless it is unwinding itself.
            let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
        });
        self.jobs.as_ref().expect("jobs are taken until the drop").send(job).expect("the thread outlives every job");
        result.recv().expect("each job answers").unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It only ever runs jobs that catch their panics.
            let _ = thread.join();
        }
    }
}

/// Says that a test is skipped because this machine does not let it have a network namespace, where it is seen although
/// the test passes. In CI (`CI` set in the environment) the test fails instead: nobody would notice there.
pub(crate) fn skip(why: &io::Error) {
    assert!(std::env::var_os("CI").is_none(), "no permission for network namespaces: {why}");
    let test = thread::current();
    // Not `eprintln`, which the test runner keeps to itself; a closed stderr is nothing to fail for.
    let _ = writeln!(
        io::stderr(),
        "skipped: no permission for network namespaces: {} ({why})",
        test.name().unwrap_or("a test")
    );
}

/// One of the namespaces that may exist at a time.
struct Permit;

static IN_USE: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Permit {
    fn acquire() -> Permit {
        let most = thread::available_parallelism().map_or(2, |n| n.get().max(2));
        let in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut in_use = FREED.wait_while(in_use, |n| *n >= most).unwrap_or_else(PoisonError::into_inner);
        *in_use += 1;
        Permit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *IN_USE.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
