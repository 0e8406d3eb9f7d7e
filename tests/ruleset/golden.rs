//! The text of the sample, reviewed as files. `UPDATE_GOLDEN=1 cargo test --test ruleset` rewrites them.

use std::path::Path;

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::Family;
use nftproxyd::ruleset::base::{self, Detector, FrameFacts, NodePortScope};
use nftproxyd::ruleset::extras::Extras;
use nftproxyd::ruleset::names::{By, ChainName, Masquerade, Pick, SetName, TableName};
use nftproxyd::ruleset::text;

use super::sample;

fn check(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/ruleset").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (is, should)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(is, should, "{file}, line {}", number + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "lines of {file}");
}

/// Facts unlike those of the sample in every respect.
pub(crate) fn other_facts(family: Family) -> FrameFacts {
    FrameFacts {
        table: TableName::NODE,
        family,
        detector: Some(Detector::InterfacePrefix("veth".into())),
        mark: 0x1,
        masquerade_all: false,
        service_cidrs: vec![],
        node_ports: NodePortScope::All,
        stray_cluster_ips: true,
        affinity: false,
        keeps_ports: false,
        counters: true,
        extras: Extras::NONE,
        node_ip: None,
    }
}

#[test]
fn sample_as_text() {
    check("sample-ipv4.nft", &text::ruleset(&sample::ruleset(&sample::facts(Family::V4))));
    check("sample-ipv6.nft", &text::ruleset(&sample::ruleset(&sample::facts(Family::V6))));
}

#[test]
fn other_facts_as_text() {
    check("other-ipv4.nft", &text::ruleset(&sample::ruleset(&other_facts(Family::V4))));
    check("other-ipv6.nft", &text::ruleset(&sample::ruleset(&other_facts(Family::V6))));
}

/// With all that not every table has.
pub(crate) fn extra_facts(family: Family) -> FrameFacts {
    let node_ip = Some(sample::ip(family, "10.125.0.1"));
    FrameFacts { extras: Extras::ALL, node_ip, ..sample::facts(family) }
}

#[test]
fn extras_as_text() {
    let facts = |family| FrameFacts { affinity: false, keeps_ports: false, ..extra_facts(family) };
    check("extras-ipv4.nft", &text::ruleset(&sample::ruleset(&facts(Family::V4))));
    check("extras-ipv6.nft", &text::ruleset(&sample::ruleset(&facts(Family::V6))));
}

#[test]
fn order_of_elements_does_not_matter() {
    let ruleset = sample::ruleset(&sample::facts(Family::V4));
    let mut reversed = ruleset.clone();
    reversed.sets.iter_mut().for_each(|(_, elements)| elements.reverse());
    assert_ne!(reversed, ruleset);
    assert_eq!(text::ruleset(&reversed), text::ruleset(&ruleset));
}

#[test]
fn transaction_as_text() {
    let ruleset = sample::ruleset(&sample::facts(Family::V4));
    let sets = [SetName::ServiceIps, SetName::AllowedSources, SetName::Affinity];
    let mut operations = vec![Operation::DeleteTable, Operation::AddTable];
    for (def, elements) in ruleset.sets.iter().filter(|(def, _)| sets.contains(&def.name)) {
        operations.push(Operation::AddSet(def.clone()));
        operations.push(Operation::AddElements(def.name, elements.clone()));
        operations.push(Operation::DeleteElements(def.name, elements.iter().take(1).cloned().collect()));
    }
    for chain in ruleset.chains.iter().filter(|chain| matches!(chain.name, ChainName::RejectIt | ChainName::NatOutput))
    {
        operations.push(Operation::AddChain(chain.clone()));
        operations.push(Operation::FlushChain(chain.name));
        operations.push(Operation::AddRules(chain.clone()));
    }
    operations.push(Operation::DeleteChain(ChainName::RememberFor(60)));
    operations.push(Operation::DeleteForeignChain("stray".to_owned()));
    operations.push(Operation::DeleteForeignSet("stray".to_owned()));
    check("transaction.nft", &Transaction { family: Family::V4, operations }.text(TableName::NODE));
}

/// The chains that differ by what is a pod.
#[test]
fn detectors() {
    let cluster = ChainName::Pick(Pick {
        nodeport: false,
        masquerade: Masquerade::FromOutside,
        sticky: false,
        local: false,
        by: By::Random,
        slots: 3,
    });
    let mark = "meta mark set meta mark | 0x00004000";
    let source = Detector::Source(sample::net(Family::V4, "10.124.0.0/16"));
    let cases = [
        (
            Some(source.clone()),
            false,
            Some(format!("ip saddr != 10.124.0.0/16 {mark}")),
            Some("ip saddr 10.124.0.0/16 "),
        ),
        (
            Some(Detector::Interface("cni0".into())),
            false,
            Some(format!("iifname != \"cni0\" {mark}")),
            Some("iifname \"cni0\" "),
        ),
        (
            Some(Detector::InterfacePrefix("cali".into())),
            false,
            Some(format!("iifname != \"cali*\" {mark}")),
            Some("iifname \"cali*\" "),
        ),
        (None, false, None, None),
        (Some(source), true, Some(mark.to_owned()), Some("ip saddr 10.124.0.0/16 ")),
        (None, true, Some(mark.to_owned()), None),
    ];
    for (detector, masquerade_all, marking, pod) in cases {
        let facts = FrameFacts { detector, masquerade_all, ..sample::facts(Family::V4) };
        let dnat =
            "meta priority set none dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints";
        let lines = text::chain_lines(Family::V4, &base::on_demand(cluster, &facts).unwrap());
        let expected: Vec<String> = marking.into_iter().chain([dnat.to_owned()]).collect();
        assert_eq!(lines, expected, "{facts:?}");
        for (chain, key, cluster, local) in [
            (ChainName::ExternalLocal, "ip daddr . meta l4proto . th dport", "@cluster-policy", "@local-policy"),
            (ChainName::NodeportLocal, "meta l4proto . th dport", "@nodeport-cluster-policy", "@nodeport-local-policy"),
        ] {
            let chain = base::frame(&facts).chains.into_iter().find(|it| it.name == chain).unwrap();
            let by = |map| format!("meta priority set {key} map {map} meta priority vmap @dispatch-last");
            let expected: Vec<String> = pod
                .map(|pod| format!("{pod}{}", by(cluster)))
                .into_iter()
                .chain([format!("fib saddr type local goto {}-from-node", chain.name), by(local)])
                .collect();
            assert_eq!(text::chain_lines(Family::V4, &chain), expected, "{facts:?}");
        }
    }
}

#[test]
fn impossible_chains_are_not_made() {
    let facts = sample::facts(Family::V6);
    let pick = |slots| {
        let (masquerade, by) = (Masquerade::Never, By::Turn(0));
        ChainName::Pick(Pick { nodeport: true, masquerade, sticky: true, local: true, by, slots })
    };
    for name in [pick(0), pick(Pick::MOST_SLOTS + 1), ChainName::RememberFor(0), ChainName::Services] {
        assert_eq!(base::on_demand(name, &facts), None, "{name}");
    }
    assert!(base::on_demand(pick(Pick::MOST_SLOTS), &facts).is_some());
}

/// Every chain is there before a rule refers to it, so that any prefix of the list can be sent.
#[test]
fn targets_come_first() {
    for family in Family::ALL {
        let facts = extra_facts(family);
        let ruleset = sample::ruleset(&facts);
        let text = text::ruleset(&ruleset);
        let mut seen: Vec<String> = Vec::new();
        let mut jumps = 0;
        for chain in &ruleset.chains {
            for line in text::chain_lines(family, chain) {
                let words: Vec<&str> = line.split(' ').collect();
                for pair in words.windows(2).filter(|pair| ["jump", "goto"].contains(&pair[0])) {
                    assert!(seen.contains(&pair[1].to_owned()), "{}: {line}\n{text}", chain.name);
                    jumps += 1;
                }
            }
            seen.push(chain.name.to_string());
        }
        assert_eq!(jumps, 15);
    }
}
