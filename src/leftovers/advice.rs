//! What an administrator can type so that a chain lets the traffic of Services through.

use super::Remaining;
use super::names::{FORWARD, NODE_PORTS, is_chain};
use super::walk::{Chain, Does, Fate, Match, Rule, fate};

/// Tables of iptables-nft, of families `ip` and `ip6`. A rule by nft there may be one that iptables cannot read: then it
/// shows none of the table.
const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// The chain that Docker leaves to others, ahead of its own.
const OF_DOCKER: &str = "DOCKER-USER";

/// Where a chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// In a table of nftables, of a family.
    Nft(&'a str, &'a str),
    /// In a table of legacy iptables, by the program of its family.
    Legacy(&'a str, &'a str),
}

impl Place<'_> {
    /// What the table is called.
    pub(crate) fn table_name(&self) -> String {
        match self {
            Place::Nft(family, table) => format!("table {family} {table}"),
            Place::Legacy(program, table) => format!("table {table} of {program}"),
        }
    }

    /// What a chain is called.
    pub(crate) fn chain_name(&self, chain: &str) -> String {
        match self {
            Place::Nft(family, table) => format!("chain {family} {table} {chain}"),
            Place::Legacy(program, table) => format!("chain {chain} of table {table} of {program}"),
        }
    }

    fn is_v6(&self) -> bool {
        matches!(self, Place::Nft("ip6", _) | Place::Legacy("ip6tables-legacy", _))
    }

    /// The command of iptables that is to change a base chain, with its table, where it is one of iptables.
    fn iptables(&self, chain: &Chain) -> Option<String> {
        let is_of_iptables = chain.hook.is_some_and(|hook| chain.name == hook.to_uppercase());
        let (program, table) = match self {
            Place::Nft("ip", table) => ("iptables", *table),
            Place::Nft("ip6", table) => ("ip6tables", *table),
            Place::Nft(..) => return None,
            Place::Legacy(program, table) => (*program, *table),
        };
        let option = if table == "filter" { String::new() } else { format!(" -t {table}") };
        (is_of_iptables && TABLES.contains(&table)).then(|| format!("{program}{option}"))
    }
}

/// `ct status dnat`, as iptables says it.
const DNAT: &str = "-m conntrack --ctstate DNAT";

/// What makes a base chain that drops let the traffic of Services through. A translated connection is known by its state,
/// in both directions, but not yet where its first packet comes in.
pub(crate) fn accepting(place: &Place<'_>, chains: &[Chain], base: &Chain) -> String {
    let rule = |by_iptables: &str, by_nft: &str| match (place.iptables(base), place) {
        (None, Place::Nft(family, table)) => format!("nft insert rule {family} {table} {} {by_nft} accept", base.name),
        (iptables, _) => insert(&iptables.unwrap_or_default(), &base.name, by_iptables),
    };
    let translated = match place.iptables(base) {
        Some(iptables) => insert(&iptables, before_drop(chains, base), DNAT),
        None => rule(DNAT, "ct status dnat"),
    };
    match base.hook {
        Some("forward") => format!("for connections to pods and other nodes: {translated}"),
        Some("input") => format!(
            "for endpoints on the host network: {translated}; for health checks, also with the ports of Services that \
             have one: {}",
            rule("-p tcp --dport 10256", "tcp dport 10256")
        ),
        Some("prerouting") => {
            let (header, range) = if place.is_v6() { ("ip6", "fd00:10:96::/112") } else { ("ip", "10.96.0.0/12") };
            format!(
                "for connections to Services, with their addresses and with the node ports: {}; {}; {translated}",
                rule(&format!("-d {range}"), &format!("{header} daddr {range}")),
                rule("-p tcp --dport 30000:32767", "tcp dport 30000-32767")
            )
        }
        _ => format!("for connections of this node to Services: {translated}"),
    }
}

fn insert(iptables: &str, chain: &str, matches: &str) -> String {
    format!("{iptables} -I {chain} {matches} -j ACCEPT")
}

/// The chain that the rule is best put into.
fn before_drop<'a>(chains: &'a [Chain], base: &'a Chain) -> &'a str {
    let accept = Rule { matches: Match::TRANSLATED, does: Does::Accept };
    let mut tried = chains.to_vec();
    let Some(chain) = tried.iter_mut().find(|chain| chain.name == OF_DOCKER) else {
        return &base.name;
    };
    chain.rules.insert(0, accept);
    match fate(&tried, base, &|_| false) {
        Fate::Pass | Fate::Accepted => OF_DOCKER,
        _ => &base.name,
    }
}

/// Chains at hook `forward` that drop packets of Services by default, with what to do, when kube-proxy's chains are gone
/// but for those that are `needed`.
pub(super) fn dropping<'a>(
    place: &'a Place<'_>,
    chains: &'a [Chain],
    needed: &'a [(String, String)],
) -> impl Iterator<Item = Remaining> {
    let gone = |to: &str| is_chain(to) && !needed.iter().any(|(_, chain)| chain == to);
    let bases = chains.iter().filter(|chain| chain.filters && chain.hook == Some("forward"));
    bases.filter_map(move |base| {
        let mut what = dropped(place, base, fate(chains, base, &gone))?;
        if needed.iter().any(|(from, chain)| *from == base.name && chain == FORWARD) {
            what.push_str(", and KUBE-FORWARD accepts another mark than that of masqueradeBit");
        }
        Some(Remaining { what, fix: accepting(place, chains, base) })
    })
}

/// That a base chain drops packets of Services by default, if it does.
pub(crate) fn dropped(place: &Place<'_>, base: &Chain, fate: Fate) -> Option<String> {
    let (chain, hook) = (place.chain_name(&base.name), base.hook?);
    match fate {
        Fate::DroppedByPolicy => Some(format!("{chain} drops what no rule accepts, at hook {hook}")),
        Fate::DroppedByRule => Some(format!("a rule of {chain} drops or refuses all that comes to it, at hook {hook}")),
        Fate::Pass | Fate::Accepted | Fate::AcceptedIfMarked => None,
    }
}

/// What an administrator can do to be without a chain of kube-proxy that packets pass by.
pub(super) fn without(place: &Place<'_>, chains: &[Chain], from: &str, chain: &str) -> String {
    let base = chains.iter().find(|chain| chain.name == from);
    let iptables = base.and_then(|base| place.iptables(base)).unwrap_or_default();
    if chain == NODE_PORTS {
        return format!(
            "it does not learn of new health checks; when rules of your own accept their ports: {iptables} -F {chain}; \
             nftproxyd cleanup --kube-proxy"
        );
    }
    let at = base.map_or(from, |base| before_drop(chains, base));
    let accept = insert(&iptables, at, "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT");
    format!("to be without it: {accept}; nftproxyd cleanup --kube-proxy")
}
