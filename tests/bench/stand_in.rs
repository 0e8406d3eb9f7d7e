//! The stand-in for an API server, as a process of its own: neither its memory nor its work are the proxy's or the
//! client's.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::api::Api;
use crate::objects;
use crate::process::Process;
use crate::size::Size;

/// The first argument of the benchmark's program that makes it the stand-in.
pub(crate) const ARGUMENT: &str = "--stand-in";

/// Starts it in this thread's network namespace. Returns its kubeconfig once it holds the cluster.
pub(crate) fn start(size: Size) -> Result<(Process, String)> {
    let program = std::env::current_exe().context("the benchmark cannot find itself")?;
    let mut command = Command::new(program);
    command.args([ARGUMENT, &size.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = Process::start(&mut command)?;
    let mut kubeconfig = String::new();
    BufReader::new(process.0.stdout.take().context("no pipe")?).read_line(&mut kubeconfig)?;
    anyhow::ensure!(!kubeconfig.is_empty(), "the stand-in for an API server has ended");
    Ok((process, kubeconfig))
}

/// What the process does: it serves until whoever started it is gone.
pub(crate) fn main(size: Size) {
    let api = Api::local();
    api.apply(objects::node());
    for object in objects::cluster(size) {
        api.apply(object);
    }
    println!("{}", api.kubeconfig());
    // The end of the input is the end of the benchmark, whatever its reason.
    let _ = io::stdin().read_to_end(&mut Vec::new());
}
