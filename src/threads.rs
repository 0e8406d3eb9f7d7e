//! Threads, and what is said when none can be had.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Held while a thread is made, so that nobody takes the one that a library was promised.
static MAKING: Mutex<()> = Mutex::new(());

/// How long the kernel may take to count a thread out that has ended.
const COUNTED_OUT: Duration = Duration::from_secs(1);

/// Starts a thread.
///
/// # Errors
/// One line that names the limits to look at.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let _turn = turn();
    named(name).spawn(body).map_err(|source| explain(name, &source))
}

/// Starts a thread that ends with a scope.
///
/// # Errors
/// As [`spawn`].
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let _turn = turn();
    named(name).spawn_scoped(scope, body).map_err(|source| explain(name, &source))
}

/// Calls what starts a thread in a library that panics if it cannot, sooner or later. Tries before whether one can be had.
/// Only another process of the same user can still take it away in between.
///
/// # Errors
/// As [`spawn`].
pub(crate) fn for_library<T>(name: &str, make: impl FnOnce() -> T) -> io::Result<T> {
    let _turn = turn();
    // "PID/task/TID".
    let tried = named(name).spawn(|| fs::read_link("/proc/thread-self"));
    let task = tried.map_err(|source| explain(name, &source))?.join();
    if let Ok(Ok(task)) = task {
        // It is counted for a moment after it has ended, but not when it is listed no longer.
        let (task, end) = (Path::new("/proc").join(task), Instant::now() + COUNTED_OUT);
        while task.exists() && Instant::now() < end {
            thread::yield_now();
        }
    }
    Ok(make())
}

/// Has the runtime that this is awaited in make its first thread for work that blocks. Without any it panics when a
/// library asks for one (the client does, to look up the API server's name); with one, work waits for it.
///
/// # Errors
/// As [`spawn`].
pub(crate) async fn first_of_runtime() -> io::Result<()> {
    let first = for_library("names", || tokio::task::spawn_blocking(|| ()))?;
    first.await.map_err(io::Error::other)
}

fn named(name: &str) -> Builder {
    Builder::new().name(name.to_owned())
}

fn turn() -> MutexGuard<'static, ()> {
    // It guards nothing that a panic could leave half done.
    MAKING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a failure to start a thread comes from, as far as can be told. The kernel says EAGAIN for each of its limits.
fn explain(name: &str, source: &io::Error) -> io::Error {
    let user = match getrlimit(Resource::RLIMIT_NPROC) {
        Ok((RLIM_INFINITY, _)) => "has no limit".to_owned(),
        Ok((most, _)) => format!("may have {most} in all"),
        Err(_) => "may have a limit".to_owned(),
    };
    io::Error::new(
        source.kind(),
        format!(
            "cannot start the thread {name}: {source}. Limits on processes and threads: this user {user} \
             (RLIMIT_NPROC; LimitNPROC= of a unit), or look at pids.max of the control group (TasksMax= of a unit)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_limits() {
        let again = io::Error::from_raw_os_error(nix::libc::EAGAIN);
        let text = explain("sync", &again).to_string();
        for word in ["thread sync", "temporarily unavailable", "RLIMIT_NPROC", "TasksMax"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_thread_has_its_name_and_its_result() {
        let thread = spawn("some", || thread::current().name().map(str::to_owned)).expect("there is room");
        assert_eq!(thread.join().expect("it does not panic").as_deref(), Some("some"));
        assert_eq!(for_library("one", || 1).expect("there is room"), 1);
    }
}
