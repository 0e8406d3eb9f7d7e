//! Do packets between ports of one bridge meet connection tracking? Where pods share a bridge, the answer of a neighbour
//! would come past it, from an address that the client has not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Finding, Subject};
use crate::model::{Family, PerFamily};
use crate::routing::{BRIDGE_SETTINGS, Link, bridge_setting, shows_to_filters};
use crate::sysctl::read_number;

/// What there is to say about the bridges that lead to pods, by the family of the pods.
pub(super) fn judge(root: &Path, links: &BTreeMap<u32, Link>, to_pods: &PerFamily<BTreeSet<u32>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_loaded = root.join(BRIDGE_SETTINGS).exists();
    for family in Family::ALL {
        let bridges = to_pods[family].iter().filter_map(|index| Some((index, links.get(index)?)));
        let bridges = bridges.filter(|(_, link)| link.kind == "bridge");
        let name = bridge_setting(family);
        let value = read_number(&root.join(BRIDGE_SETTINGS).join(name));
        let unseen: Vec<&str> = bridges
            .clone()
            .filter(|(_, link)| !shows_to_filters(root, link, family).unwrap_or(false))
            .map(|(_, link)| link.name.as_str())
            .collect();
        if unseen.is_empty() {
            findings.extend(bridges.map(|(_, link)| link.name.as_str()).next().map(|bridge| {
                Finding::ok(
                    Subject::Bridges,
                    format!("{family} packets between pods of bridge {bridge} meet connection tracking"),
                )
            }));
            continue;
        }
        let what = format!(
            "{family} packets between ports of bridge {} do not meet connection tracking: a pod there that reaches its \
             neighbour through a Service gets the answer from the wrong address, and drops it",
            unseen.join(", ")
        );
        let set = format!("sysctl -w net.bridge.{name}=1");
        findings.push(match value {
            _ if !is_loaded => Finding::check(
                Subject::Bridges,
                what,
                format!(
                    "modprobe br_netfilter && {set}; for every start: echo br_netfilter > /etc/modules-load.d/br_netfilter.conf"
                ),
            )
            .proof(format!("/{BRIDGE_SETTINGS} is not there: module br_netfilter is not loaded")),
            Ok(value) => Finding::check(Subject::Bridges, what, set).proof(format!("net.bridge.{name} = {value}")),
            Err(error) => Finding::unread(
                Subject::Bridges,
                format!("nobody can tell whether {family} packets between ports of bridge {} meet connection tracking", unseen.join(", ")),
                format!("sysctl net.bridge.{name}; it should be 1"),
            )
            .proof(format!("/{BRIDGE_SETTINGS}/{name}: {error}")),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn bridges_of_pods_need_the_module_and_its_switch() {
        let link = |kind: &str, calls| Link { name: format!("{kind}0"), kind: kind.to_owned(), master: None, calls };
        use Grade::{Check, Ok, Unread};
        let neither = [false; 2];
        let cases = [
            (None, link("bridge", neither), [Some(Check), Some(Check)]),
            (None, link("bridge", [true; 2]), [Some(Check), Some(Check)]),
            (None, link("veth", neither), [None, None]),
            (Some(["0", "1"]), link("bridge", neither), [Some(Check), Some(Ok)]),
            (Some(["1", "0"]), link("bridge", neither), [Some(Ok), Some(Check)]),
            (Some(["0", "0"]), link("bridge", [true, false]), [Some(Ok), Some(Check)]),
            (Some(["x", "1"]), link("bridge", neither), [Some(Unread), Some(Ok)]),
        ];
        for (values, link, expected) in cases {
            let root = tempfile::tempdir().expect("a folder");
            if let Some([v4, v6]) = values {
                let folder = root.path().join(BRIDGE_SETTINGS);
                fs::create_dir_all(&folder).expect("a folder");
                fs::write(folder.join("bridge-nf-call-iptables"), v4).expect("a file");
                fs::write(folder.join("bridge-nf-call-ip6tables"), v6).expect("a file");
            }
            let links = BTreeMap::from([(3, link.clone())]);
            for (family, expected) in Family::ALL.into_iter().zip(expected) {
                let mut to_pods: PerFamily<BTreeSet<u32>> = PerFamily::default();
                to_pods[family].extend([3, 9]);
                let findings = judge(root.path(), &links, &to_pods);
                assert_eq!(
                    findings.first().map(|finding| finding.grade),
                    expected,
                    "{values:?} {link:?} {family}: {findings:?}"
                );
                let loads = findings.iter().any(|finding| finding.fix.contains("modprobe br_netfilter"));
                assert_eq!(loads, values.is_none() && expected.is_some(), "{findings:?}");
            }
            assert_eq!(judge(root.path(), &links, &PerFamily::default()), [], "no pod is behind a bridge");
        }
    }
}
