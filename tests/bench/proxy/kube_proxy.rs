//! How kube-proxy is started, and what its log says.

use std::path::Path;

use serde_json::{Value, json};

use crate::api::synthetic;

/// Level 2 logs each sync.
pub(crate) const ARGUMENTS: &[&str] = &["-v", "2", "--hostname-override", synthetic::NODE];

/// The stand-in for an API server speaks JSON only. What is set of connection tracking belongs to the machine, not to
/// the network namespace, and is left alone.
pub(crate) fn config(kubeconfig: &Path) -> Value {
    json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig, "contentType": "application/json"},
        "conntrack": {"maxPerCore": 0, "min": 0}})
}

/// Whether the line tells of a sync that has ended.
pub(crate) fn is_synced(line: &str) -> Option<()> {
    line.contains("SyncProxyRules complete").then_some(())
}
