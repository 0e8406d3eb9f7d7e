//! The one rule for tests that cannot run on a machine: said loudly at home, a failure in CI.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::{env, fs, thread};

/// What the machine of CI does not have either, and why; tests that need it are skipped there as well.
const NOT_IN_CI: [(&str, &str); 2] = [
    ("IPVS", "the kernel of the CI machine has no IPVS"),
    ("a limit that only the host may set", "a kernel may let each network namespace have its own"),
];

/// Says that this test is skipped, and what it lacks, in one line on stderr. The caller then returns.
///
/// # Panics
/// Where `CI` is set in the environment: nobody would read it there. Except for what is known to be missing there.
pub(crate) fn skip(missing: &str, why: impl Display) {
    let test = test();
    let why = why.to_string().trim().replace('\n', "; ");
    let is_known = NOT_IN_CI.iter().any(|(known, _)| *known == missing);
    assert!(env::var_os("CI").is_none() || is_known, "{test} cannot run without {missing}: {why}");
    // Not `eprintln`, which the test harness keeps to itself when a test passes. A closed stderr is nothing to fail for.
    let _ = io::stderr().write_all(format!("SKIPPED {test}: needs {missing}: {why}\n").as_bytes());
}

/// Whether these programs are installed; if not, the test is skipped as [`skip`] says.
pub(crate) fn has(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| !is_installed(program));
    if let Some(program) = missing {
        skip(program, "it is not installed");
    }
    missing.is_none()
}

/// Whether an error is one of the machine, which does not let us have what a test needs, and not one of the test.
pub(crate) fn lacks_permission(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

fn is_installed(program: &str) -> bool {
    let is_executable = |file: fs::Metadata| file.is_file() && file.permissions().mode() & 0o111 != 0;
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| fs::metadata(folder.join(program)).is_ok_and(is_executable))
}

/// The name of the test, which its thread has, or of the benchmark.
fn test() -> String {
    let thread = thread::current();
    match thread.name() {
        Some(name) if name != "main" => name.to_owned(),
        _ => {
            let program = env::args().next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            program.split('-').next().unwrap_or_default().to_owned()
        }
    }
}
