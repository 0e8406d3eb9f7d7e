//! What several tests need: a network namespace of their own, and an HTTP client.

pub(crate) mod http;

use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// Set to make a test that cannot run fail, instead of saying that it was skipped.
const REQUIRE: &str = "NFTPROXYD_REQUIRE_NETNS";

/// Runs a test on a thread with a network namespace of its own, in which only `lo` is there and up. The host's rules,
/// addresses and connections are out of its reach; everything in the namespace goes with the thread.
pub(crate) fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {}
            Err(Errno::EPERM) if std::env::var_os(REQUIRE).is_none() => {
                eprintln!("skipped: making a network namespace needs root");
                return;
            }
            Err(errno) => panic!("cannot make a network namespace: {errno}"),
        }
        run(&["ip", "link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The same for a test that awaits.
pub(crate) fn in_network_namespace_async<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    in_network_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
}

/// Runs a command in the namespace of this thread; it has to succeed.
pub(crate) fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
