//! Programs that tests drive, in the network namespace of the calling thread.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

/// Runs stock nft with a text as its input, and returns what it prints.
///
/// # Errors
/// What nft says, or that it cannot be started.
pub(crate) fn try_nft(arguments: &[impl AsRef<OsStr>], input: &str) -> io::Result<String> {
    fed(Command::new("nft").args(arguments), input)
}

/// The same where it has to succeed.
#[track_caller]
pub(crate) fn nft(arguments: &[&str], input: &str) -> String {
    try_nft(arguments, input).unwrap_or_else(|error| panic!("nft {arguments:?} < {input}: {error}"))
}

/// Runs `ip` with these arguments, which no blanks are in; it has to succeed.
#[track_caller]
pub(crate) fn ip(arguments: &str) {
    fed(Command::new("ip").args(arguments.split(' ')), "").unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
}

/// Runs a command; it has to succeed.
#[track_caller]
pub(crate) fn run(command: &[&str]) {
    fed(Command::new(command[0]).args(&command[1..]), "").unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

/// Runs a program that reads `input`, and returns what it prints.
///
/// # Errors
/// The program's name with what it says on stderr, or why it cannot be started.
pub(crate) fn fed(command: &mut Command, input: &str) -> io::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    // A program that ends early says why itself.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}
