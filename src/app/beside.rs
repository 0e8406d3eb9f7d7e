//! A kube-proxy that runs on the node beside this proxy.
//!
//! It is seen in two ways. Where processes of the node are visible, by its name, as one that shares the network namespace.
//! And everywhere by the port of its metrics, which it has where we have not got it: in k3s, say, kube-proxy is a part of
//! another process.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::config::METRICS_PORT;
use crate::status;

/// The name of its process.
const NAME: &str = "kube-proxy";

/// It in words, if one is seen. `metrics` is where this proxy serves its own metrics, or would.
pub(super) fn kube_proxy(metrics: SocketAddr) -> Option<String> {
    process(Path::new("/proc")).or_else(|| server(metrics))
}

fn process(proc: &Path) -> Option<String> {
    let network = |of: &Path| fs::metadata(of.join("ns/net")).ok().map(|it| (it.dev(), it.ino()));
    let program = |of: &Path| fs::metadata(of.join("exe")).ok().map(|it| (it.dev(), it.ino()));
    let ours = proc.join("self");
    let (our_network, our_program) = (network(&proc.join("thread-self"))?, program(&ours)?);
    let found = fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
        let id: u32 = entry.file_name().to_str()?.parse().ok()?;
        let of = entry.path();
        let name = fs::read_to_string(of.join("comm")).ok()?;
        // What has not got so far that it gives itself a name may be another of us.
        let is_it = name.trim_end() == NAME && network(&of)? == our_network && program(&of)? != our_program;
        is_it.then_some(id)
    })?;
    Some(format!("{NAME} (pid {found})"))
}

fn server(metrics: SocketAddr) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let usual = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), METRICS_PORT);
    let at = |address| runtime.block_on(status::kube_proxy_mode(address)).map(|mode| (mode, address));
    let (mode, address) = at(metrics).or_else(|| if metrics == usual { None } else { at(usual) })?;
    Some(format!("{NAME} (mode {mode}, with its metrics at {address})"))
}
