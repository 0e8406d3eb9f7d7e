//! What is odd about a configuration on this host and this Node, though each value can be used: kube-proxy's checks at its
//! start, after it has learned the addresses of the Node.

use std::net::{IpAddr, SocketAddr};

use super::{Config, DetectLocal, NodePortAddresses};
use crate::model::{Family, Node, PerFamily};

/// What the host can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Whether it has IPv6, and has not switched it off.
    pub has_v6: bool,
}

/// What an administrator should look at, one line each. Where kube-proxy would end (a single-stack host whose ranges of
/// pods are all of the other family), it is a line too: Services work, only pods are not told from others.
pub fn sanity(config: &Config, node: &Node, host: Host) -> Vec<String> {
    let primary = primary_family(config, node);
    let other = if primary == Family::V4 { Family::V6 } else { Family::V4 };
    let mut lines = Vec::new();
    if primary == Family::V6 && !host.has_v6 {
        lines.push("the node's address is of IPv6, which this host has not, or has switched off".to_owned());
    }

    let detection = ranges_of_pods(config, node);
    if let Some((field, ranges)) = &detection
        && ranges[other]
        && !ranges[primary]
    {
        lines.push(format!("{field} has no range of {primary}, the family of the node's address: no traffic of {primary} counts as of a pod"));
    }
    match &config.node_port_addresses {
        NodePortAddresses::Cidrs(cidrs) => {
            let has = PerFamily::from_fn(|family| cidrs.iter().any(|cidr| Family::of(cidr.addr()) == family));
            let dual_stack = host.has_v6 && detection.as_ref().is_some_and(|(_, ranges)| ranges.v4 && ranges.v6);
            if !has[primary] {
                lines.push(format!("nodePortAddresses has no range of {primary}, the family of the node's address: all {primary} addresses accept node ports"));
            } else if dual_stack && !has[other] {
                lines.push(format!(
                    "nodePortAddresses has no range of {other}: all {other} addresses accept node ports"
                ));
            }
        }
        NodePortAddresses::All => {
            lines.push(
                "nodePortAddresses is not set, so all addresses of the node accept node ports; consider [\"primary\"]"
                    .to_owned(),
            );
        }
        // What a word does not name is closed.
        NodePortAddresses::Primary | NodePortAddresses::Words { .. } => {}
    }
    if !host.has_v6 {
        let addresses = [
            ("healthzBindAddress", config.healthz_bind_address),
            ("metricsBindAddress", Some(config.metrics_bind_address)),
        ];
        let of_v6 = |address: &SocketAddr| Family::of(address.ip()) == Family::V6 && !address.ip().is_unspecified();
        for (field, address) in addresses {
            if let Some(address) = address.filter(of_v6) {
                lines.push(format!("{field} is {address}, but this host has no IPv6"));
            }
        }
    }
    lines
}

/// The family of `bindAddress` if it is specific, else of the Node's address.
fn primary_family(config: &Config, node: &Node) -> Family {
    let specific: Option<IpAddr> = Some(config.bind_address).filter(|address| !address.is_unspecified());
    specific.map_or(node.primary.unwrap_or(Family::V4), Family::of)
}

/// The field that says where pods are, and for which families it does; `None` if interfaces say it, or nothing.
fn ranges_of_pods(config: &Config, node: &Node) -> Option<(&'static str, PerFamily<bool>)> {
    match &config.detect_local {
        DetectLocal::ClusterCidr(cidrs) => Some(("clusterCIDR", PerFamily::from_fn(|family| cidrs[family].is_some()))),
        DetectLocal::NodeCidr => {
            let has = |family| node.pod_cidrs.iter().any(|cidr| Family::of(cidr.addr()) == family);
            Some(("spec.podCIDRs of the Node", PerFamily::from_fn(has)))
        }
        DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Overrides, parse};

    fn of(fields: &str, primary: Family, has_v6: bool) -> String {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n{fields}"
        );
        let overrides = Overrides { hostname_override: Some("n".to_owned()), ..Overrides::default() };
        let config = parse(Path::new("f"), &text, &overrides).expect("it can be used").config;
        let pod_cidrs = ["fd00:1::/64".parse().expect("a range")].into();
        sanity(&config, &Node { primary: Some(primary), pod_cidrs, ..Node::default() }, Host { has_v6 }).join("\n")
    }

    #[test]
    fn what_is_odd_is_named() {
        let cases = [
            ("", Family::V4, false, ""),
            ("clusterCIDR: 10.0.0.0/8,fd00::/8\nnodePortAddresses: [10.0.0.0/8, 'fd00::/8']", Family::V4, true, ""),
            (
                "clusterCIDR: 10.0.0.0/8,fd00::/8\nnodePortAddresses: [10.0.0.0/8]",
                Family::V4,
                true,
                "nodePortAddresses has no range of IPv6: all IPv6",
            ),
            ("clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [10.0.0.0/8]", Family::V4, true, ""),
            ("nodePortAddresses: [10.0.0.0/8]", Family::V6, true, "nodePortAddresses has no range of IPv6, the family"),
            ("clusterCIDR: fd00::/8", Family::V4, true, "clusterCIDR has no range of IPv4"),
            ("clusterCIDR: fd00::/8\nbindAddress: fd00::5", Family::V4, true, ""),
            ("detectLocalMode: NodeCIDR", Family::V4, true, "spec.podCIDRs of the Node has no range of IPv4"),
            ("metricsBindAddress: '[::1]:10249'", Family::V4, false, "metricsBindAddress is [::1]:10249, but"),
            ("healthzBindAddress: '[::]:10256'", Family::V4, false, ""),
            ("", Family::V6, false, "the node's address is of IPv6"),
        ];
        for (fields, primary, has_v6, expected) in cases {
            let found = of(fields, primary, has_v6);
            assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{fields}: {found:?}");
            assert!(found.lines().count() < 2, "{fields}: {found}");
        }
    }
}
