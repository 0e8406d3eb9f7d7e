//! How nftproxyd is started, and what its log says.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Start, Work};
use crate::api::synthetic;

/// Level 2 logs each sync.
pub(crate) const ARGUMENTS: &[&str] =
    &["run", "-v", "2", "--logging-format", "json", "--hostname-override", synthetic::NODE];

pub(crate) fn config(kubeconfig: &Path) -> Value {
    json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig}})
}

/// The line about the first sync that succeeded.
pub(crate) fn start(line: &str) -> Option<Start> {
    let fields = fields(line, "in sync")?;
    let number = |name: &str| fields[name].as_u64();
    let millis = |name: &str| number(name).map(Duration::from_millis);
    Some(Start {
        listing: millis("listing_ms")?,
        building: millis("building_ms")?,
        in_kernel: millis("kernel_ms")?,
        longest: Duration::from_micros(number("longest_us")?),
        operations: number("operations")?,
    })
}

/// The line about a later sync.
pub(crate) fn work(line: &str) -> Option<Work> {
    let fields = fields(line, "synced")?;
    let number = |name: &str| fields[name].as_u64();
    let micros = |name: &str| number(name).map(Duration::from_micros);
    Some(Work {
        syncs: 1,
        operations: number("operations")?,
        bytes: number("bytes")?,
        in_kernel: micros("kernel_us")?,
        longest: micros("longest_us")?,
    })
}

fn fields(line: &str, message: &str) -> Option<Value> {
    // Most lines are of another kind: they are not parsed.
    let fields: Value = line.contains(message).then(|| serde_json::from_str(line).ok())??;
    (fields["message"] == message).then_some(fields)
}
