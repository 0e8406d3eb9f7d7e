//! A network namespace that a thread of the test lives in, for as long as the test: the parent of the node's processes,
//! which the kernel kills when it ends (`setpriv --pdeathsig`).

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::netns::{self, NAMESPACES, PROGRAMS, has, lacks_permission};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of its own, with nothing in it but a loopback device that is up.
pub(crate) struct Namespace {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    _permit: Option<Permit>,
}

impl Namespace {
    /// Makes the namespace. Waits while as many as the machine has processors exist (at least two): packets are judged
    /// by what has come back after a while, and that works best when everybody gets a turn. A test therefore makes
    /// one, not several.
    ///
    /// # Errors
    /// Those of [`netns::Namespace::new`].
    pub(crate) fn new() -> io::Result<Namespace> {
        Namespace::make(Some(Permit::acquire()))
    }

    /// One more, for a test that has one already: a neighbour of the node. It waits for nobody.
    pub(crate) fn further() -> io::Result<Namespace> {
        Namespace::make(None)
    }

    fn make(permit: Option<Permit>) -> io::Result<Namespace> {
        let namespace = netns::Namespace::new()?;
        let (jobs, todo) = channel::<Job>();
        let thread = thread::Builder::new().name("node".to_owned()).spawn(move || {
            namespace.enter();
            todo.into_iter().for_each(|job| job());
        })?;
        Ok(Namespace { jobs: Some(jobs), thread: Some(thread), _permit: permit })
    }

    /// One for a test. `None`, said loudly, where this machine cannot have it.
    pub(crate) fn for_test() -> Option<Namespace> {
        if !has(&PROGRAMS) {
            return None;
        }
        Namespace::new().inspect_err(skip).ok()
    }

    /// What `ip link set DEVICE netns ...` calls it, from any namespace.
    pub(crate) fn id(&self) -> i32 {
        self.run(|| nix::unistd::gettid().as_raw())
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

/// Says that a test is skipped because this machine does not let it have a network namespace.
///
/// # Panics
/// Where `CI` is set, as [`netns::skip`] does, and when it is another error.
pub(crate) fn skip(why: &io::Error) {
    assert!(lacks_permission(why), "cannot make a network namespace: {why}");
    netns::skip(NAMESPACES, why);
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
