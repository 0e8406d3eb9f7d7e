//! What there is to say about tables and chains of others in nftables: leftovers of kube-proxy, and what drops packets.

use super::Finding;
use crate::leftovers::advice::{Place, accepting, dropped};
use crate::leftovers::sign::{is_missed, is_sign};
use crate::leftovers::tables::Listed;
use crate::leftovers::walk::{Chain, Fate, fate, needed};
use crate::leftovers::{TABLE, is_chain};

/// What there is to say about a base chain that filters.
fn judge_chain(place: &Place<'_>, chains: &[Chain], base: &Chain) -> Option<Finding> {
    let hook = base.hook?;
    let fate = match fate(chains, base, &|_| false) {
        // First packets come in there untranslated, or are all that comes: a rule for translated ones does not help.
        _ if hook == "prerouting" || !base.filters => {
            if base.drops {
                Fate::DroppedByPolicy
            } else {
                Fate::Pass
            }
        }
        fate => fate,
    };
    let chain = place.chain_name(&base.name);
    match fate {
        Fate::Pass => None,
        Fate::Accepted => {
            Some(Finding::fine(format!("{chain} drops what no rule accepts, but accepts connections to Services")))
        }
        Fate::AcceptedIfMarked => Some(Finding::fine(format!(
            "{chain} drops what no rule accepts, but accepts connections to Services that are masqueraded; others, as \
             from a pod to a pod of another node, need a rule of the network plug-in, as with kube-proxy"
        ))),
        fate => {
            let what = dropped(place, base, fate)?;
            Some(Finding::doubtful(what, accepting(place, chains, base)))
        }
    }
}

/// What there is to say about the tables.
pub(super) fn judge(listed: &Listed) -> Vec<Finding> {
    let mut findings = Vec::new();
    let leftover = |(_, table): &&(&str, String), chains: &[Chain]| table == TABLE && !is_sign(chains);
    let of_nftables = listed.tables.iter().filter(|(key, chains)| leftover(key, chains));
    let of_nftables: Vec<_> = of_nftables.map(|(key, _)| key).collect();
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
    if is_missed(listed) {
        findings.push(Finding::doubtful(
            "Calico serves this node by nftables, and there is no chain in table ip kube-proxy or ip6 kube-proxy: with \
             nftablesMode Auto, Felix takes that for a kube-proxy without nftables, and starts anew with iptables",
            "kubectl patch felixconfiguration default --type merge --patch '{\"spec\":{\"nftablesMode\":\"Enabled\"}}'",
        ));
    }
    for ((family, table), chains) in &listed.tables {
        let place = Place::Nft(family, table);
        let needed = needed(chains);
        for (from, chain) in &needed {
            let chain = place.chain_name(chain);
            let what = format!("{chain} of kube-proxy has to stay: {from} drops packets that it accepts");
            findings.push(Finding::fine(what));
        }
        let stays = |name: &str| needed.iter().any(|(_, chain)| chain == name);
        let names = chains.iter().map(|chain| chain.name.as_str());
        let left: Vec<_> = names.filter(|name| is_chain(name) && !stays(name)).collect();
        if !left.is_empty() {
            let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
            findings.push(Finding::wrong(
                format!("chains of kube-proxy's iptables or ipvs mode in table {family} {table}: {shown}{more}"),
                "when nftproxyd is in sync and kube-proxy stopped: nftproxyd cleanup --kube-proxy",
            ));
        }
        if table != TABLE {
            findings.extend(chains.iter().filter_map(|base| judge_chain(&place, chains, base)));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::fine("there is nothing of kube-proxy in nftables, and no chain that drops by default"));
    }
    findings
}
