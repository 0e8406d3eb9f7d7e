//! What is kube-proxy's by its name. kubelet has chains that begin with `KUBE-` too (`KUBE-FIREWALL`, `KUBE-MARK-DROP`,
//! `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`), so every name is spelt out.

/// The table of kube-proxy's mode `nftables`, of families `ip` and `ip6`.
pub(crate) const TABLE: &str = "kube-proxy";

/// The chain that takes the place of kube-proxy's table where Calico looks for it.
pub(super) const SIGN: &str = "served-by-nftproxyd";
/// What it says about itself.
pub(super) const SIGN_COMMENT: &str =
    "a sign for Calico (nftablesMode: Auto) that nftables serve; no packet comes here";

/// The device that holds the virtual addresses in mode `ipvs`.
pub(super) const DEVICE: &str = "kube-ipvs0";

/// Tables of iptables that kube-proxy has chains in.
pub(super) const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains that nobody but kube-proxy makes.
const CHAINS: [&str; 11] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-PROXY-CANARY",
];

const CHAIN_PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];

/// Chains of table `nat` that old releases of kubelet make as well. They are kube-proxy's where others of its are.
pub(super) const SHARED_CHAINS: [&str; 2] = [MARK_MASQUERADE, POSTROUTING];

/// Marks packets that [`POSTROUTING`] masquerades.
pub(super) const MARK_MASQUERADE: &str = "KUBE-MARK-MASQ";
/// See [`MARK_MASQUERADE`].
pub(super) const POSTROUTING: &str = "KUBE-POSTROUTING";

/// Sends connections to the chains of their Services.
pub(super) const SERVICES: &str = "KUBE-SERVICES";
/// How the names of chains of Services begin, to which [`SERVICES`] sends connections to cluster IPs.
pub(super) const SERVICE_CHAINS: [&str; 2] = ["KUBE-SVC-", "KUBE-SVL-"];

/// Accepts, in table `filter`, what kube-proxy's modes `iptables` and `ipvs` forward.
pub(super) const FORWARD: &str = "KUBE-FORWARD";

/// Accepts, in table `filter`, the ports of health checks; translates, in table `nat`, node ports. Of mode `iptables`.
pub(super) const NODE_PORTS: &str = "KUBE-NODEPORTS";

/// IP sets of mode `ipvs`, without the beginning that says the family.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The longest name that an IP set can have; kube-proxy cuts off the rest.
const LONGEST_SET: usize = 31;

/// Whether a chain of iptables is kube-proxy's and nobody else's.
pub(crate) fn is_chain(name: &str) -> bool {
    CHAINS.contains(&name) || CHAIN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Names of all IP sets of kube-proxy.
pub(super) fn sets() -> impl Iterator<Item = String> {
    let name = |prefix: &str, set: &str| {
        let mut name = format!("{prefix}{set}");
        name.truncate(LONGEST_SET);
        name
    };
    SETS.into_iter().flat_map(move |set| [name("KUBE-", set), name("KUBE-6-", set)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kubelet_are_left_alone() {
        let cases = [
            ("KUBE-SVC-X", true),
            ("KUBE-SERVICES", true),
            ("KUBE-KUBELET-CANARY", false),
            ("KUBE-IPTABLES-HINT", false),
            ("KUBE-FIREWALL", false),
            ("KUBE-MARK-DROP", false),
            // Made by kubelet and by kube-proxy.
            ("KUBE-MARK-MASQ", false),
            ("KUBE-POSTROUTING", false),
            // Of kube-router.
            ("KUBE-ROUTER-FORWARD", false),
        ];
        for (chain, expected) in cases {
            assert_eq!(is_chain(chain), expected, "{chain}");
        }
    }

    #[test]
    fn names_of_sets_can_be_those_of_sets() {
        let all: Vec<String> = sets().collect();
        assert!(all.iter().all(|name| name.len() <= LONGEST_SET));
        for name in ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-6-LOAD-BALANCER-SOURCE-CID"] {
            assert!(all.iter().any(|one| one == name), "{name}");
        }
    }
}
