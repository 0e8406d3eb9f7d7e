//! A [`Config`] as a KubeProxyConfiguration: what `/configz` shows.

use serde_json::{Value, json};

use super::{Config, DetectLocal, LogFormat, NodePortAddresses, Source};

/// The configuration that is in force. The mode is always `nftables`, which is what runs.
pub fn effective(config: &Config) -> Value {
    let kubeconfig = match &config.source {
        Source::Api { kubeconfig, .. } => kubeconfig.display().to_string(),
        Source::Manifests(_) => String::new(),
    };
    let mode = match &config.detect_local {
        DetectLocal::ClusterCidr(_) => "ClusterCIDR",
        DetectLocal::NodeCidr => "NodeCIDR",
        DetectLocal::BridgeInterface(_) => "BridgeInterface",
        DetectLocal::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
    };
    let node_ports: Value = match &config.node_port_addresses {
        NodePortAddresses::All => Value::Null,
        NodePortAddresses::Primary => json!(["primary"]),
        NodePortAddresses::Cidrs(cidrs) => cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().into(),
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": config.bind_address,
        "bindAddressHardFail": config.bind_address_hard_fail,
        "clientConnection": { "kubeconfig": kubeconfig },
        "detectLocalMode": mode,
        "healthzBindAddress": config.healthz_bind_address.to_string(),
        "hostnameOverride": config.node_name,
        "logging": {
            "format": match config.logging.format { LogFormat::Text => "text", LogFormat::Json => "json" },
            "verbosity": config.logging.verbosity,
        },
        "metricsBindAddress": config.metrics_bind_address.to_string(),
        "mode": "nftables",
        "nftables": { "masqueradeAll": config.masquerade_all, "masqueradeBit": config.masquerade_bit },
        "nodePortAddresses": node_ports,
    })
}
