//! Runs tests in fresh network namespaces.

use std::process::{Command, Stdio};
use std::{env, io, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread that is alone in a new network namespace. Says so when that is not possible; where the
/// variable `CI` is set, that is a failure.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    let entered = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            test();
            Ok::<(), nix::errno::Errno>(())
        });
        match thread.join() {
            Ok(entered) => entered,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    if let Err(error) = entered {
        assert!(env::var_os("CI").is_none(), "cannot make a network namespace: {error}");
        eprintln!("skipped: no permission to make a network namespace ({error}); run as root");
    }
}

/// Runs stock nft on a text, in this thread's namespace. Returns what it prints.
pub(crate) fn nft(arguments: &[&str], input: &str) -> io::Result<String> {
    use std::io::Write;
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
