//! What there is to say about tables and chains of others, in nftables and in legacy iptables: leftovers of kube-proxy, and
//! what drops packets.

#[cfg(test)]
use super::Grade;
use super::{Finding, Subject};
use crate::leftovers::advice::{Place, accepting, dropped};
use crate::leftovers::early::{self, EarlyTable, Target};
use crate::leftovers::legacy::Table;
use crate::leftovers::sign::{is_missed, is_sign};
use crate::leftovers::tables::{EarlyTables, Listed};
use crate::leftovers::walk::{Chain, Fate, culprit, fate, needed};
use crate::leftovers::{TABLE, is_chain, proof};
use crate::model::{Family, PerFamily};

/// Where packets of Services are forwarded to.
#[derive(Debug, Clone, Default)]
pub(super) struct Forwarded {
    pub(super) targets: PerFamily<Vec<Target>>,
    /// Whether there is no Service of the family, but of the other.
    pub(super) unused: PerFamily<bool>,
}

impl Forwarded {
    /// Whether a base chain lets these packets pass, if its table has these rules.
    fn opens(&self, families: &[Family], rules: Option<&EarlyTable>, base: &str) -> Opens {
        if families.iter().all(|family| self.unused[*family]) {
            return Opens::Unused;
        }
        // A chain of both families has to let both pass.
        let targets: Vec<Target> = families.iter().flat_map(|family| self.targets[*family].iter().cloned()).collect();
        match rules.map_or(early::Opens::No, |rules| rules.opens(base, &targets)) {
            early::Opens::No => Opens::No,
            early::Opens::Some => Opens::Some,
            early::Opens::All => Opens::All,
        }
    }
}

/// Whether a chain at hook `forward` lets packets of Services pass that its policy, or its end, would drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opens {
    /// There are none of its family.
    Unused,
    No,
    Some,
    All,
}

/// What there is to say about a base chain that filters. `saved` is what the program of legacy iptables has printed; `opens`
/// is asked about a chain at hook `forward`.
fn judge_chain(
    place: &Place<'_>,
    chains: &[Chain],
    base: &Chain,
    saved: Option<&str>,
    opens: impl Fn(&str) -> Opens,
) -> Option<Finding> {
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
        Fate::Accepted => Some(Finding::ok(
            Subject::Firewall,
            format!("{chain} drops what no rule accepts, but accepts connections to Services"),
        )),
        Fate::AcceptedIfMarked => Some(Finding::ok(
            Subject::Firewall,
            format!(
                "{chain} drops what no rule accepts, but accepts connections to Services that are masqueraded; others, as \
                 from a pod to a pod of another node, need a rule of the network plug-in, as with kube-proxy"
            ),
        )),
        fate => {
            let what = dropped(place, base, fate)?;
            let shown = match culprit(chains, base).filter(|_| fate == Fate::DroppedByRule) {
                Some((chain, nth)) => proof::Rule { place, chain, nth, saved }.text(),
                None => proof::policy(place, &base.name),
            };
            let fix = accepting(place, chains, base);
            let finding = match (hook, opens(&base.name)) {
                ("forward", Opens::All) => {
                    return Some(Finding::ok(
                        Subject::Firewall,
                        format!("{what}, but it accepts packets to pods before"),
                    ));
                }
                ("forward", Opens::Some) => {
                    let what = format!("{what}; whether it lets packets to pods pass, rules of another program decide");
                    Finding::note(Subject::Firewall, what, fix)
                }
                ("forward", Opens::Unused) => {
                    let what = format!("{what}; there is no Service of this family");
                    Finding::note(Subject::Firewall, what, fix)
                }
                // Firewalls of hosts are meant to drop what comes to these; kube-proxy does not help there either.
                ("input", _) => Finding::note(Subject::Firewall, what, fix),
                _ => Finding::check(Subject::Firewall, what, fix),
            };
            Some(finding.proof(shown))
        }
    }
}

/// What there is to say about tables of nftables.
pub(super) fn judge(listed: &Listed, early: &EarlyTables, forwarded: &Forwarded) -> Vec<Finding> {
    let mut findings = Vec::new();
    let leftover = |(_, table): &&(&str, String), chains: &[Chain]| table == TABLE && !is_sign(chains);
    let of_nftables = listed.tables.iter().filter(|(key, chains)| leftover(key, chains));
    let of_nftables: Vec<_> = of_nftables.map(|(key, _)| key).collect();
    if !of_nftables.is_empty() {
        let list = |what: &str, between: &str| {
            let each = of_nftables.iter().map(|(family, table)| format!("{what} {family} {table}"));
            each.collect::<Vec<_>>().join(between)
        };
        findings.push(
            Finding::wrong(
                Subject::KubeProxy,
                format!("rules of kube-proxy's nftables mode: {}", list("table", ", ")),
                format!("stop kube-proxy, then: {}", list("nft delete table", "; ")),
            )
            .proof(format!("nft list tables: {}", list("table", ", "))),
        );
    }
    if is_missed(listed) {
        findings.push(Finding::check(
            Subject::Calico,
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
            findings.push(Finding::ok(Subject::KubeProxy, what));
        }
        let stays = |name: &str| needed.iter().any(|(_, chain)| chain == name);
        let names = chains.iter().map(|chain| chain.name.as_str());
        let left: Vec<_> = names.filter(|name| is_chain(name) && !stays(name)).collect();
        if !left.is_empty() {
            let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
            findings.push(Finding::wrong(
                Subject::KubeProxy,
                format!("chains of kube-proxy's iptables or ipvs mode in table {family} {table}: {shown}{more}"),
                "when nftproxyd is in sync and kube-proxy stopped: nftproxyd cleanup --kube-proxy",
            ));
        }
        if table != TABLE {
            let rules = early.get(&(*family, table.clone()));
            let families: &[Family] = match *family {
                "ip" => &[Family::V4],
                "ip6" => &[Family::V6],
                _ => &Family::ALL,
            };
            let opens = |base: &str| forwarded.opens(families, rules, base);
            findings.extend(chains.iter().filter_map(|base| judge_chain(&place, chains, base, None, opens)));
        }
    }
    if findings.is_empty() {
        let what = "there is nothing of kube-proxy in nftables, and no chain that drops by default";
        findings.push(Finding::ok(Subject::Firewall, what));
    }
    findings
}

/// What there is to say about the chains of a table of legacy iptables that drop.
pub(super) fn judge_legacy(table: &Table, mark: u32, forwarded: &Forwarded) -> Vec<Finding> {
    let Ok(saved) = &table.saved else { return Vec::new() };
    let chains = Table::chains(saved, &table.name, mark);
    let place = Place::Legacy(table.program, &table.name);
    let rules = EarlyTable::of_saved(saved);
    let family = if table.program == "ip6tables-legacy" { Family::V6 } else { Family::V4 };
    let opens = |base: &str| forwarded.opens(&[family], Some(&rules), base);
    chains.iter().filter_map(|base| judge_chain(&place, &chains, base, Some(saved), opens)).collect()
}

/// Whether the chain is there with which kube-proxy and kubelet keep neighbours from loopback addresses.
pub(super) fn guards_loopback(listed: Option<&Listed>, legacy: &[Table]) -> bool {
    const GUARD: &str = "KUBE-FIREWALL";
    let listed = listed.into_iter().flat_map(|listed| listed.tables.values().flatten());
    let in_legacy = legacy.iter().filter_map(|table| table.saved.as_ref().ok());
    listed.into_iter().any(|chain| chain.name == GUARD)
        || in_legacy.into_iter().any(|saved| saved.contains(":KUBE-FIREWALL "))
}

/// The worst that these come to.
#[cfg(test)]
fn worst(findings: &[Finding]) -> Grade {
    findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(saved: &str) -> Vec<Finding> {
        let table = Table { program: "iptables-legacy", name: "filter".to_owned(), saved: Ok(saved.to_owned()) };
        let target = |range: &str, device| Target { range: range.parse().expect("a range"), device };
        let pods = vec![target("10.244.0.0/16", None), target("10.244.0.5/32", Some("cni0".to_owned()))];
        let forwarded = Forwarded { targets: PerFamily { v4: pods, v6: Vec::new() }, ..Forwarded::default() };
        let findings = judge_legacy(&table, 0x4000, &forwarded);
        // Where all Services are of the other family, it matters to none.
        let unused = Forwarded { unused: PerFamily { v4: true, v6: false }, ..forwarded };
        assert!(worst(&judge_legacy(&table, 0x4000, &unused)) <= Grade::Note);
        findings
    }

    #[test]
    fn chains_of_legacy_iptables_that_drop_are_named() {
        let rejects = ":FORWARD ACCEPT [0:0]\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        let findings = legacy(rejects);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].grade, findings[0].subject), (Grade::Check, Subject::Firewall));
        let text = "chain FORWARD of table filter of iptables-legacy, rule 2: -A FORWARD -j REJECT --reject-with \
                    icmp-host-prohibited";
        assert_eq!(findings[0].proof, [text]);
        assert!(
            findings[0].fix.ends_with("iptables-legacy -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT"),
            "{findings:?}"
        );
        let findings = legacy(":FORWARD DROP [0:0]\n");
        assert_eq!(findings[0].proof, ["chain FORWARD of table filter of iptables-legacy: policy drop"]);
        for fine in
            [":FORWARD ACCEPT [0:0]\n", ":FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n"]
        {
            assert_eq!(worst(&legacy(fine)), Grade::Ok, "{fine}");
        }
    }

    #[test]
    fn firewalls_that_let_pods_through_are_left_alone() {
        let cases = [
            // As flannel, and as bridges with rules of their own.
            (
                ":FORWARD DROP [0:0]\n:FL - [0:0]\n-A FORWARD -m comment --comment \"a b\" -j FL\n-A FL -s 10.244.0.0/16 -j ACCEPT\n-A FL -d 10.244.0.0/16 -j ACCEPT\n",
                Grade::Ok,
            ),
            (":FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.244.0.0/14 -j ACCEPT\n-A FORWARD -j REJECT\n", Grade::Ok),
            // To the pods of this node alone.
            (":FORWARD DROP [0:0]\n-A FORWARD -o cni0 -j ACCEPT\n", Grade::Note),
            (":FORWARD DROP [0:0]\n-A FORWARD -o cni+ -j ACCEPT\n", Grade::Note),
            // As Calico.
            (":FORWARD DROP [0:0]\n-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT\n", Grade::Note),
            (":FORWARD DROP [0:0]\n-A FORWARD -o docker0 -j ACCEPT\n", Grade::Check),
            (":FORWARD DROP [0:0]\n-A FORWARD -d 10.244.0.0/24 -p tcp --dport 80 -j ACCEPT\n", Grade::Check),
            (":FORWARD DROP [0:0]\n-A FORWARD -s 10.244.0.0/16 -j ACCEPT\n", Grade::Check),
            (":FORWARD ACCEPT [0:0]\n-A FORWARD -j REJECT\n-A FORWARD -d 10.244.0.0/16 -j ACCEPT\n", Grade::Check),
            // What comes to the host itself.
            (":INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n", Grade::Note),
        ];
        for (saved, grade) in cases {
            assert_eq!(worst(&legacy(saved)), grade, "{saved}");
        }
    }
}
