//! Tables and chains of others in nftables: leftovers of kube-proxy, and what drops packets.

use std::collections::BTreeMap;
use std::io;

use nix::sys::socket::SockProtocol;

use super::Finding;
use crate::nlmsg::{Builder, DUMP, Dump, REQUEST, Socket, attributes};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// Length of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFPROTO_*` of the families whose chains see IP packets on their way through the node.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];
/// `NF_INET_*`.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// How often a listing that the kernel interrupted is begun again.
const ATTEMPTS: usize = 5;

/// The table of kube-proxy in its nftables mode.
const KUBE_PROXY: &str = "kube-proxy";
/// Chains of kube-proxy in its other modes. Others of kubelet begin with `KUBE-` too, and are none of them.
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

/// A table, with its chains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Listed {
    /// By family and name.
    tables: BTreeMap<(&'static str, String), Vec<Chain>>,
}

/// A chain, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    name: String,
    /// The hook at which what no rule accepts is dropped.
    drops_at: Option<&'static str>,
}

/// Lists the tables of this network namespace.
pub(super) fn list() -> io::Result<Listed> {
    for _ in 0..ATTEMPTS {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        let mut listed = Listed::default();
        let mut complete = true;
        for kind in [GET_TABLE, GET_CHAIN] {
            let request = Builder::message(kind, REQUEST | DUMP, socket.next_sequence(), &[0; FAMILY_HEADER]).finish();
            complete &= socket.dump(&request, |message| listed.take(kind, message.payload))? == Dump::Complete;
        }
        if complete {
            return Ok(listed);
        }
    }
    Err(io::Error::other("the tables change all the time"))
}

impl Listed {
    /// Takes in a message; one that cannot be read is of no table that matters.
    fn take(&mut self, kind: u16, payload: &[u8]) {
        let Some(&(_, family)) =
            payload.first().and_then(|number| FAMILIES.iter().find(|(family, _)| family == number))
        else {
            return;
        };
        let parts: BTreeMap<u16, &[u8]> = attributes(payload.get(FAMILY_HEADER..).unwrap_or_default()).collect();
        let text = |kind: u16| parts.get(&kind).map(|bytes| string(bytes));
        if kind == GET_TABLE {
            if let Some(table) = text(TABLE_NAME) {
                self.tables.entry((family, table)).or_default();
            }
        } else if let (Some(table), Some(name)) = (text(CHAIN_TABLE), text(CHAIN_NAME)) {
            let hook = parts.get(&CHAIN_HOOK).and_then(|hook| {
                let number = attributes(hook).find(|(kind, _)| *kind == HOOK_NUMBER)?.1;
                HOOKS.get(usize::try_from(be32(number)?).ok()?).copied()
            });
            let drops = parts.get(&CHAIN_POLICY).and_then(|policy| be32(policy)) == Some(DROP);
            let chain = Chain { name, drops_at: hook.filter(|_| drops) };
            self.tables.entry((family, table)).or_default().push(chain);
        }
    }
}

/// A text that may end in a zero.
fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What makes a chain that drops let the traffic of Services through. A translated connection is known by its state, in
/// both directions, but not yet where its first packet comes in.
fn accepting(chain: &str, family: &str, hook: &str) -> String {
    let rule = |what: &str| format!("nft insert rule {chain} {what} accept");
    let translated = rule("ct status dnat");
    match hook {
        "forward" => format!("for connections to pods and other nodes: {translated}"),
        "input" => format!(
            "for endpoints on the host network: {translated}; for health checks, also with the ports of Services that \
             have one: {}",
            rule("tcp dport 10256")
        ),
        "prerouting" => {
            let (header, range) = if family == "ip6" { ("ip6", "fd00:10:96::/112") } else { ("ip", "10.96.0.0/12") };
            format!(
                "for connections to Services, with their addresses and with the node ports: {}; {}; {translated}",
                rule(&format!("{header} daddr {range}")),
                rule("tcp dport 30000-32767")
            )
        }
        _ => format!("for connections of this node to Services: {translated}"),
    }
}

/// What there is to say about the tables.
pub(super) fn judge(listed: &Listed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of_nftables: Vec<_> = listed.tables.keys().filter(|(_, table)| table == KUBE_PROXY).collect();
    if !of_nftables.is_empty() {
        let list = |what: &str, between: &str| {
            let each = of_nftables.iter().map(|(family, table)| format!("{what} {family} {table}"));
            each.collect::<Vec<_>>().join(between)
        };
        findings.push(Finding::wrong(
            format!("rules of kube-proxy's nftables mode: {}", list("table", ", ")),
            format!("stop kube-proxy, then: {}", list("nft delete table", "; ")),
        ));
    }
    for ((family, table), chains) in &listed.tables {
        let left: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).filter(|name| of_kube_proxy(name)).collect();
        if !left.is_empty() {
            let tool = if *family == "ip6" { "ip6tables-nft" } else { "iptables-nft" };
            let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
            findings.push(Finding::wrong(
                format!("chains of kube-proxy's iptables or ipvs mode in table {family} {table}: {shown}{more}"),
                format!("stop kube-proxy, then: kube-proxy --cleanup (it works with {tool})"),
            ));
        }
        for (chain, hook) in chains.iter().filter_map(|chain| Some((&chain.name, chain.drops_at?))) {
            let what = format!("chain {family} {table} {chain} drops what no rule accepts, at hook {hook}");
            findings.push(Finding::doubtful(what, accepting(&format!("{family} {table} {chain}"), family, hook)));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine("there is nothing of kube-proxy in nftables, and no chain that drops by default"));
    }
    findings
}

fn of_kube_proxy(chain: &str) -> bool {
    CHAINS.contains(&chain) || CHAIN_PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn chains_of_kubelet_are_left_alone() {
        let cases = [
            ("KUBE-SVC-X", true),
            ("KUBE-SERVICES", true),
            ("KUBE-KUBELET-CANARY", false),
            ("KUBE-IPTABLES-HINT", false),
            ("KUBE-FIREWALL", false),
            // Made by kubelet and by kube-proxy.
            ("KUBE-MARK-MASQ", false),
            ("KUBE-POSTROUTING", false),
        ];
        for (chain, expected) in cases {
            assert_eq!(of_kube_proxy(chain), expected, "{chain}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_taken_in(bytes in proptest::collection::vec(any::<u8>(), 0..128), chain: bool) {
            let mut listed = Listed::default();
            listed.take(if chain { GET_CHAIN } else { GET_TABLE }, &bytes);
        }
    }
}
