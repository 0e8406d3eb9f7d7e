//! A [`Config`] as a KubeProxyConfiguration with every field: what `--write-config-to` writes and `/configz` shows.

use std::time::Duration;

use serde_json::{Value, json};

use super::fields::SERVICE_PROXY_NAME;
use super::kube_proxy::{API_VERSION, KIND};
use super::{Config, DetectLocal, LogFormat, NodePortAddresses, Source};

/// The configuration that is in force, with all defaults. The mode is always `nftables`, which is what runs; fields that
/// have no effect have their zero value. Reading it back gives the same configuration.
pub fn effective(config: &Config) -> Value {
    let kubeconfig = match &config.source {
        Source::Api { kubeconfig, .. } => kubeconfig.display().to_string(),
        Source::Manifests(_) => String::new(),
    };
    let (mode, cidrs, bridge, prefix) = detect_local(&config.detect_local);
    let conntrack = &config.conntrack;
    // Where it is one family, the ranges say which.
    let localhost = config.localhost_node_ports;
    let mut effective = json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "bindAddress": config.bind_address,
        "bindAddressHardFail": config.bind_address_hard_fail,
        "clientConnection": {
            "acceptContentTypes": "", "burst": 0, "contentType": "", "kubeconfig": kubeconfig, "qps": 0,
        },
        "clusterCIDR": cidrs,
        "configSyncPeriod": "0s",
        "conntrack": {
            "maxPerCore": conntrack.max_per_core,
            "min": conntrack.min,
            "tcpBeLiberal": conntrack.tcp_be_liberal,
            "tcpCloseWaitTimeout": duration(conntrack.tcp_close_wait_timeout),
            "tcpEstablishedTimeout": duration(conntrack.tcp_established_timeout),
            "udpStreamTimeout": duration(conntrack.udp_stream_timeout),
            "udpTimeout": duration(conntrack.udp_timeout),
        },
        "detectLocal": { "bridgeInterface": bridge, "interfaceNamePrefix": prefix },
        "detectLocalMode": mode,
        "enableProfiling": false,
        "featureGates": { "AllowServiceExternalIPs": config.allow_external_ips },
        "healthzBindAddress": config.healthz_bind_address.map(|address| address.to_string()).unwrap_or_default(),
        "hostnameOverride": config.node_name,
        "iptables": {
            "localhostNodePorts": localhost.v4 && localhost.v6, "masqueradeAll": false, "masqueradeBit": 14,
            "minSyncPeriod": "0s", "syncPeriod": "0s",
        },
        "ipvs": {
            "excludeCIDRs": null, "minSyncPeriod": "0s", "scheduler": "", "strictARP": false, "syncPeriod": "0s",
            "tcpFinTimeout": "0s", "tcpTimeout": "0s", "udpTimeout": "0s",
        },
        "logging": {
            "flushFrequency": "5s",
            "format": match config.logging.format { LogFormat::Text => "text", LogFormat::Json => "json" },
            "options": { "json": { "infoBufferSize": "0" }, "text": { "infoBufferSize": "0" } },
            "verbosity": config.logging.verbosity,
        },
        "metricsBindAddress": config.metrics_bind_address.to_string(),
        "mode": "nftables",
        "nftables": {
            "accounting": config.accounting,
            "countConnections": config.count_connections,
            "masqueradeAll": config.masquerade_all,
            "masqueradeBit": config.masquerade_bit,
            "minSyncPeriod": duration(config.min_sync_period),
            "ping": config.ping,
            "resetConnections": config.reset_connections,
            "scheduler": config.scheduler.name(),
            "syncPeriod": duration(config.sync_period),
        },
        "nodePortAddresses": node_ports(&config.node_port_addresses),
        "oomScoreAdj": config.oom_score_adj,
        "portRange": "",
        "showHiddenMetricsForVersion": "",
        "windowsRunAsService": false,
        "winkernel": {
            "enableDSR": false, "forwardHealthCheckVip": false, "networkName": "", "rootHnsEndpointName": "",
            "sourceVip": "",
        },
    });
    if let Some(name) = &config.service_proxy_name {
        effective[SERVICE_PROXY_NAME] = name.as_str().into();
    }
    effective
}

fn detect_local(detect: &DetectLocal) -> (&'static str, String, &str, &str) {
    match detect {
        DetectLocal::ClusterCidr(cidrs) => {
            let cidrs: Vec<_> = [cidrs.v4, cidrs.v6].into_iter().flatten().map(|cidr| cidr.to_string()).collect();
            ("ClusterCIDR", cidrs.join(","), "", "")
        }
        DetectLocal::NodeCidr => ("NodeCIDR", String::new(), "", ""),
        DetectLocal::BridgeInterface(bridge) => ("BridgeInterface", String::new(), bridge, ""),
        DetectLocal::InterfaceNamePrefix(prefix) => ("InterfaceNamePrefix", String::new(), "", prefix),
    }
}

fn node_ports(addresses: &NodePortAddresses) -> Vec<String> {
    match addresses {
        NodePortAddresses::Primary => vec!["primary".to_owned()],
        NodePortAddresses::All => vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
        NodePortAddresses::Cidrs(cidrs) => cidrs.iter().map(ToString::to_string).collect(),
        NodePortAddresses::Words { primary, localhost, cidrs } => {
            let words = [("primary", *primary), ("localhost", *localhost)].into_iter().filter(|(_, said)| *said);
            words.map(|(word, _)| word.to_owned()).chain(cidrs.iter().map(ToString::to_string)).collect()
        }
    }
}

/// As Go reads durations: whole seconds where that is exact.
fn duration(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ns", duration.as_nanos()),
    }
}
