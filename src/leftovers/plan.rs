//! What has to go from a table of iptables. Pure, and the same for both kinds of iptables.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{MARK_MASQUERADE, POSTROUTING, SHARED_CHAINS, is_chain};

/// A rule that jumps to a chain, or goes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Jump<Rule> {
    /// The chain that the rule is in.
    pub(super) from: String,
    /// The chain that it leads to.
    pub(super) to: String,
    /// How the rule is named when it is deleted.
    pub(super) rule: Rule,
}

/// What has to go from a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan<Rule> {
    /// Rules of chains that stay, which lead to chains that go.
    pub(super) jumps: Vec<Jump<Rule>>,
    /// Chains of kube-proxy.
    pub(super) chains: Vec<String>,
    /// Chains of kube-proxy that have to stay, each with a chain of somebody else that leads to it, or to one that does.
    pub(super) kept: BTreeMap<String, String>,
    /// Chains of kube-proxy that still make packets pass, each with the chain at a hook that leads there.
    pub(super) needed: Vec<(String, String)>,
}

impl<Rule: Clone> Plan<Rule> {
    /// Plans for a table with these chains, each with whether it is at a hook, and these jumps between them.
    ///
    /// At a hook, a jump to a chain of kube-proxy is kube-proxy's. In any other chain it is of somebody who counts on the
    /// chain (CNI's plug-in for host ports may mark packets by `KUBE-MARK-MASQ`): then it stays, and what it needs too.
    ///
    /// So do chains that are `needed`, with the jumps to them: each after the chain at a hook that the jump is in.
    pub(super) fn of(
        chains: &BTreeMap<String, bool>,
        jumps: &[Jump<Rule>],
        needed: Vec<(String, String)>,
    ) -> Plan<Rule> {
        let is_used = chains.keys().any(|chain| is_chain(chain));
        let is_ours = |chain: &str| is_used && (is_chain(chain) || SHARED_CHAINS.contains(&chain));
        let at_hook = |chain: &str| chains.get(chain) == Some(&true);
        let mut kept: BTreeMap<String, String> = BTreeMap::new();
        let mut todo: Vec<(&str, &str)> = jumps
            .iter()
            .filter(|jump| is_ours(&jump.to) && !is_ours(&jump.from) && !at_hook(&jump.from))
            .map(|jump| (jump.to.as_str(), jump.from.as_str()))
            .collect();
        while let Some((chain, by)) = todo.pop() {
            if kept.insert(chain.to_owned(), by.to_owned()).is_some() {
                continue;
            }
            todo.extend(
                jumps.iter().filter(|jump| jump.from == chain && is_ours(&jump.to)).map(|j| (j.to.as_str(), by)),
            );
            if chain == MARK_MASQUERADE && chains.contains_key(POSTROUTING) {
                todo.push((POSTROUTING, by));
            }
        }
        let mut passing: BTreeSet<&str> = BTreeSet::new();
        let mut todo: Vec<&str> = needed.iter().map(|(_, chain)| chain.as_str()).collect();
        while let Some(chain) = todo.pop() {
            if passing.insert(chain) {
                todo.extend(jumps.iter().filter(|j| j.from == chain && is_ours(&j.to)).map(|j| j.to.as_str()));
            }
        }
        let stays = |chain: &str| kept.contains_key(chain) || passing.contains(chain);
        // Whoever marks packets wants them masqueraded.
        let is_needed = |jump: &Jump<Rule>| {
            (jump.to == POSTROUTING && kept.contains_key(POSTROUTING))
                || needed.iter().any(|(from, to)| jump.from == *from && jump.to == *to)
        };
        let going: BTreeSet<&String> = chains.keys().filter(|chain| is_ours(chain) && !stays(chain)).collect();
        let leads_in = |jump: &&Jump<Rule>| is_ours(&jump.to) && at_hook(&jump.from) && !is_needed(jump);
        let jumps = jumps.iter().filter(leads_in).cloned().collect();
        Plan { jumps, chains: going.into_iter().cloned().collect(), kept, needed }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.chains.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(chains: &[&str], jumps: &[(&str, &str)]) -> Plan<usize> {
        plan_with(chains, jumps, &[])
    }

    fn plan_with(chains: &[&str], jumps: &[(&str, &str)], needed: &[(&str, &str)]) -> Plan<usize> {
        let at_hook = ["PREROUTING", "POSTROUTING", "FORWARD"];
        let chains = chains.iter().map(|chain| ((*chain).to_owned(), at_hook.contains(chain))).collect();
        let jump =
            |(rule, (from, to)): (usize, &(&str, &str))| Jump { from: (*from).to_owned(), to: (*to).to_owned(), rule };
        let needed = needed.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        Plan::of(&chains, &jumps.iter().enumerate().map(jump).collect::<Vec<_>>(), needed)
    }

    fn rules(plan: &Plan<usize>) -> Vec<usize> {
        plan.jumps.iter().map(|jump| jump.rule).collect()
    }

    #[test]
    fn chains_of_kube_proxy_go_with_the_jumps_to_them() {
        let chains =
            ["PREROUTING", "POSTROUTING", "KUBE-SERVICES", "KUBE-SVC-A", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "CNI-X"];
        let jumps = [
            ("PREROUTING", "KUBE-SERVICES"),
            ("KUBE-SERVICES", "KUBE-SVC-A"),
            ("KUBE-SVC-A", "KUBE-MARK-MASQ"),
            ("POSTROUTING", "KUBE-POSTROUTING"),
            ("PREROUTING", "CNI-X"),
        ];
        let plan = plan(&chains, &jumps);
        assert_eq!(rules(&plan), [0, 3]);
        assert_eq!(plan.chains, ["KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-SERVICES", "KUBE-SVC-A"]);
        assert!(plan.kept.is_empty() && !plan.is_empty());
    }

    #[test]
    fn what_others_count_on_stays() {
        let chains = ["PREROUTING", "POSTROUTING", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "CNI-DN-X"];
        let jumps = [
            ("PREROUTING", "KUBE-SERVICES"),
            ("KUBE-SERVICES", "KUBE-MARK-MASQ"),
            ("POSTROUTING", "KUBE-POSTROUTING"),
            ("CNI-DN-X", "KUBE-MARK-MASQ"),
        ];
        let plan = plan(&chains, &jumps);
        assert_eq!(rules(&plan), [0], "marked packets are still masqueraded");
        assert_eq!(plan.chains, ["KUBE-SERVICES"]);
        let kept: Vec<_> = plan.kept.iter().map(|(chain, by)| (chain.as_str(), by.as_str())).collect();
        assert_eq!(kept, [("KUBE-MARK-MASQ", "CNI-DN-X"), ("KUBE-POSTROUTING", "CNI-DN-X")]);
    }

    #[test]
    fn what_makes_packets_pass_stays_with_the_jump_to_it() {
        let chains = ["FORWARD", "INPUT", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-PROXY-CANARY"];
        let jumps = [("FORWARD", "KUBE-FORWARD"), ("FORWARD", "KUBE-SERVICES"), ("OTHER", "KUBE-FORWARD")];
        let plan = plan_with(&chains, &jumps, &[("FORWARD", "KUBE-FORWARD")]);
        assert_eq!(rules(&plan), [1]);
        assert_eq!(plan.chains, ["KUBE-PROXY-CANARY", "KUBE-SERVICES"]);
        // When the rest is gone, there is nothing more to do.
        let again = plan_with(&["FORWARD", "KUBE-FORWARD"], &jumps[..1], &[("FORWARD", "KUBE-FORWARD")]);
        assert!(again.is_empty() && again.needed.len() == 1);
    }

    #[test]
    fn where_only_kubelet_was_nothing_goes() {
        let chains = ["POSTROUTING", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-MARK-DROP", "KUBE-KUBELET-CANARY"];
        assert!(plan(&chains, &[("POSTROUTING", "KUBE-POSTROUTING")]).is_empty());
    }
}
