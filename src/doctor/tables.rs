//! What there is to say about tables and chains of others in nftables: leftovers of kube-proxy, and what drops packets.

use super::Finding;
use crate::leftovers::tables::Listed;
use crate::leftovers::{TABLE, is_chain};

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
    let of_nftables: Vec<_> = listed.tables.keys().filter(|(_, table)| table == TABLE).collect();
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
        let left: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).filter(|name| is_chain(name)).collect();
        if !left.is_empty() {
            let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
            findings.push(Finding::wrong(
                format!("chains of kube-proxy's iptables or ipvs mode in table {family} {table}: {shown}{more}"),
                "when nftproxyd is in sync and kube-proxy stopped: nftproxyd cleanup --kube-proxy",
            ));
        }
        for (chain, hook) in
            chains.iter().filter(|chain| chain.drops).filter_map(|chain| Some((&chain.name, chain.hook?)))
        {
            let what = format!("chain {family} {table} {chain} drops what no rule accepts, at hook {hook}");
            findings.push(Finding::doubtful(what, accepting(&format!("{family} {table} {chain}"), family, hook)));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine("there is nothing of kube-proxy in nftables, and no chain that drops by default"));
    }
    findings
}
