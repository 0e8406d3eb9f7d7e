//! The sign for Calico that nftables serve the node's Services.
//!
//! Felix, with `nftablesMode: Auto`, takes nftables where `ip kube-proxy` or `ip6 kube-proxy` has a chain. It looks every
//! 15 seconds (felix/nftables/utils.go, felix/dataplane/linux/int_dataplane.go) and starts anew, with iptables, when
//! there is none any more. So where Felix has tables of its own, an empty chain takes the place of kube-proxy's table: it
//! is at no hook, no packet meets it.

use std::collections::BTreeMap;
use std::io;

use super::names::{SIGN, TABLE};
use super::steps::{Step, commit};
use super::tables::{self, Listed};
use super::walk::Chain;

/// The table of Felix, in every family that it serves.
const FELIX: &str = "calico";

/// Whether Felix serves the node by nftables.
pub(super) fn is_wanted(listed: &Listed) -> bool {
    listed.tables.keys().any(|(_, table)| table == FELIX)
}

/// Whether a table of kube-proxy's name is the sign, and nothing else.
pub(crate) fn is_sign(chains: &[Chain]) -> bool {
    matches!(chains, [chain] if chain.name == SIGN)
}

/// Whether Felix has tables and neither kube-proxy's nor the sign is there: with `nftablesMode: Auto` it starts anew soon.
pub(crate) fn is_missed(listed: &Listed) -> bool {
    let is_kube_proxys = |((family, table), chains): (&(&'static str, String), &Vec<Chain>)| {
        ["ip", "ip6"].contains(family) && table == TABLE && !chains.is_empty()
    };
    is_wanted(listed) && !listed.tables.iter().any(is_kube_proxys)
}

/// Removes the sign; the rest of the table stays, if there is any. Returns what is gone, one line each.
///
/// # Errors
/// The tables cannot be listed or changed.
pub fn remove_sign() -> io::Result<Vec<String>> {
    let found = find(&tables::list()?.tables);
    let steps: Vec<Step<'_>> = found.iter().map(|(_, step)| step.clone()).collect();
    commit(&steps, None)?;
    Ok(found.into_iter().map(|(line, _)| line).collect())
}

fn find(tables: &BTreeMap<(&'static str, String), Vec<Chain>>) -> Vec<(String, Step<'static>)> {
    let of_kube_proxy = tables.iter().filter(|((_, table), _)| table == TABLE);
    let signs = of_kube_proxy.filter_map(|((family, _), chains)| {
        let alone = is_sign(chains);
        let is_there = chains.iter().any(|chain| chain.name == SIGN);
        let line = format!("chain {family} {TABLE} {SIGN}, the sign for Calico");
        is_there.then_some(if alone {
            (line, Step::DeleteTable { family })
        } else {
            (line, Step::DeleteChain { family, table: TABLE, chain: SIGN })
        })
    });
    signs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str) -> Chain {
        Chain { name: name.to_owned(), hook: None, drops: false, filters: false, rules: Vec::new() }
    }

    fn listed(tables: &[(&'static str, &str, &[&str])]) -> Listed {
        let tables = tables.iter().map(|(family, table, chains)| {
            ((*family, (*table).to_owned()), chains.iter().map(|name| chain(name)).collect())
        });
        Listed { tables: tables.collect() }
    }

    #[test]
    fn it_is_missed_where_felix_looks_for_kube_proxy_in_vain() {
        let felix = ("ip", FELIX, &["filter-FORWARD"][..]);
        let cases: [(&[_], bool, bool); 6] = [
            (&[felix], true, true),
            (&[felix, ("ip", TABLE, &["services"])], true, false),
            (&[felix, ("ip6", TABLE, &[SIGN])], true, false),
            (&[felix, ("ip6", TABLE, &[]), ("inet", TABLE, &["services"])], true, true),
            (&[("ip", "nftproxyd", &["services"])], false, false),
            (&[], false, false),
        ];
        for (tables, wanted, missed) in cases {
            let listed = listed(tables);
            assert_eq!((is_wanted(&listed), is_missed(&listed)), (wanted, missed), "{tables:?}");
        }
    }

    #[test]
    fn it_goes_and_nothing_else() {
        let listed = listed(&[
            ("ip", TABLE, &[SIGN]),
            ("ip6", TABLE, &["services", SIGN]),
            ("inet", "other", &[SIGN]),
            ("inet", TABLE, &["services"]),
        ]);
        let found = find(&listed.tables);
        assert_eq!(found[0].0, "chain ip kube-proxy served-by-nftproxyd, the sign for Calico");
        assert_eq!(found[0].1, Step::DeleteTable { family: "ip" });
        assert_eq!(found[1].1, Step::DeleteChain { family: "ip6", table: TABLE, chain: SIGN });
        assert_eq!(found.len(), 2);
    }
}
