//! What is understood of a host's rules, and what that decides.

use std::process::Command;

use super::advice::{Place, accepting};
use super::legacy::Saved;
use super::tables::list_with_rules;
use super::walk::{Chain, Fate, fate, needed};
use crate::testing::{in_network_namespace, run};

const MARK: u32 = 0x4000;

/// Kube-proxy's part of `FORWARD`.
const KUBE: &str = "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-SERVICES -d 172.30.1.4/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable\n";

fn chains(text: &str) -> Vec<Chain> {
    Saved::read(text, "filter", MARK).chains
}

fn base<'a>(chains: &'a [Chain], name: &str) -> &'a Chain {
    chains.iter().find(|chain| chain.name == name).expect("it is there")
}

/// A table whose `FORWARD` has a policy and these rules.
fn forward(policy: &str, rules: &[&str]) -> String {
    let names = ["DOCKER-USER", "KUBE-FORWARD", "KUBE-SERVICES", "X", "Y"];
    let declared: String = names.iter().map(|name| format!(":{name} - [0:0]\n")).collect();
    let rules: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
    format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [0:0]\n{declared}{rules}{KUBE}COMMIT\n")
}

const JUMP: &str = "FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD";
const SERVICES: &str = "FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES";
const REJECT: &str = "FORWARD -j REJECT --reject-with icmp-host-prohibited";

#[test]
fn a_chain_that_makes_packets_pass_is_needed_where_the_rest_drops_them() {
    let cases: [(&str, &[&str], bool, &str); 18] = [
        ("ACCEPT", &[JUMP, SERVICES], false, "nothing drops; KUBE-SERVICES goes too"),
        ("DROP", &[JUMP], true, "the policy"),
        ("DROP", &[SERVICES], false, "nothing leads there"),
        ("ACCEPT", &[JUMP, REJECT], true, "a last rule"),
        ("ACCEPT", &[REJECT, JUMP], false, "it is too late"),
        ("ACCEPT", &[JUMP, "FORWARD -i eth0 -j DROP"], true, "it may drop"),
        ("ACCEPT", &["FORWARD -i eth0 -j DROP", JUMP], false, "it drops with and without"),
        ("ACCEPT", &["FORWARD -i eth0 -j DROP", JUMP, REJECT], true, "a part comes through"),
        ("ACCEPT", &[JUMP, "FORWARD -m conntrack --ctstate INVALID -j DROP"], false, "nothing of a Service"),
        ("ACCEPT", &[JUMP, "FORWARD -j X", "X -j Y", "Y -j DROP"], true, "at the end of two jumps"),
        ("ACCEPT", &[JUMP, "FORWARD -i eth0 -g X", "X -j DROP"], true, "it may lead there"),
        ("ACCEPT", &[JUMP, "FORWARD -j X", "X -j RETURN", "X -j DROP"], false, "nothing comes there"),
        ("DROP", &["FORWARD -m conntrack --ctstate DNAT -j ACCEPT", JUMP], true, "replies of other connections"),
        ("DROP", &["FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT", JUMP], false, "accepted"),
        (
            "DROP",
            &[
                JUMP,
                "FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "FORWARD -m state --state NEW -j ACCEPT",
            ],
            false,
            "accepted by two",
        ),
        (
            "DROP",
            &["FORWARD -j X", "X -m conntrack ! --ctstate INVALID,UNTRACKED -j ACCEPT", JUMP],
            false,
            "accepted there",
        ),
        ("DROP", &[JUMP, "FORWARD -i eth0 -j RETURN", "FORWARD -j ACCEPT"], true, "a part goes around it"),
        ("DROP", &["FORWARD -s 10.0.0.0/8 -j ACCEPT", JUMP], true, "of some sources"),
    ];
    for (policy, rules, expected, what) in cases {
        let chains = chains(&forward(policy, rules));
        let wanted: &[(&str, &str)] = if expected { &[("FORWARD", "KUBE-FORWARD")] } else { &[] };
        let found = needed(&chains);
        assert!(
            found.iter().map(|(from, to)| (from.as_str(), to.as_str())).eq(wanted.iter().copied()),
            "{what}: {found:?}"
        );
    }
}

#[test]
fn the_ports_of_health_checks_are_needed_where_input_drops() {
    let accept = "-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/a:http health check node port\" -m tcp --dport 31999 -j ACCEPT\n";
    for (policy, rules, accept, expected) in [
        ("DROP", "", accept, true),
        ("DROP", "-A INPUT -m conntrack --ctstate DNAT -j ACCEPT\n", accept, true),
        ("DROP", "", "", false),
        ("ACCEPT", "", accept, false),
        ("ACCEPT", "-A INPUT -j DROP\n", accept, true),
        // As fail2ban and kubelet have it.
        ("ACCEPT", "-A INPUT -s 192.0.2.1/32 -j DROP\n", accept, false),
        ("DROP", "-A INPUT -m state --state NEW -j ACCEPT\n", accept, false),
    ] {
        let text = format!(
            "*filter\n:INPUT {policy} [0:0]\n:KUBE-NODEPORTS - [0:0]\n-A INPUT -j KUBE-NODEPORTS\n{rules}{accept}COMMIT\n"
        );
        assert_eq!(needed(&chains(&text)).len(), usize::from(expected), "{text}");
    }
}

#[test]
fn a_chain_that_drops_is_told_from_one_that_accepts_services() {
    let dnat = "FORWARD -m conntrack --ctstate DNAT -j ACCEPT";
    let cases: [(&str, &[&str], Fate); 11] = [
        ("ACCEPT", &[], Fate::Pass),
        ("DROP", &[], Fate::DroppedByPolicy),
        ("ACCEPT", &[REJECT], Fate::DroppedByRule),
        ("ACCEPT", &["FORWARD -i eth0 -j DROP"], Fate::Pass),
        ("DROP", &[dnat], Fate::Accepted),
        ("ACCEPT", &[dnat, REJECT], Fate::Pass),
        ("ACCEPT", &[REJECT, dnat], Fate::DroppedByRule),
        ("DROP", &["FORWARD -i eth0 -m conntrack --ctstate DNAT -j ACCEPT"], Fate::DroppedByPolicy),
        ("DROP", &["FORWARD -j DOCKER-USER", "DOCKER-USER -m conntrack --ctstate DNAT -j ACCEPT"], Fate::Accepted),
        ("DROP", &[JUMP], Fate::AcceptedIfMarked),
        ("DROP", &["FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"], Fate::DroppedByPolicy),
    ];
    for (policy, rules, expected) in cases {
        let chains = chains(&forward(policy, rules));
        assert_eq!(fate(&chains, base(&chains, "FORWARD"), &|_| false), expected, "{policy} {rules:?}");
    }
    // Another bit than that of the rules.
    let chains = Saved::read(&forward("DROP", &[JUMP]), "filter", 0x8000).chains;
    assert_eq!(fate(&chains, base(&chains, "FORWARD"), &|_| false), Fate::DroppedByPolicy);
    assert_eq!(needed(&chains).len(), 1, "established connections pass by it");
}

#[test]
fn a_command_is_that_of_whoever_owns_the_table() {
    let docker = chains(&forward("DROP", &["FORWARD -j DOCKER-USER", "DOCKER-USER -j RETURN"]));
    let after_reject = chains(&forward("DROP", &[REJECT, "FORWARD -j DOCKER-USER"]));
    let plain = chains(&forward("DROP", &[])).into_iter().filter(|c| c.name != "DOCKER-USER").collect::<Vec<_>>();
    let dnat = "-m conntrack --ctstate DNAT -j ACCEPT";
    for (place, chains, expected) in [
        (Place::Nft("ip", "filter"), &plain, format!("iptables -I FORWARD {dnat}")),
        (Place::Nft("ip6", "filter"), &plain, format!("ip6tables -I FORWARD {dnat}")),
        (Place::Nft("ip", "mangle"), &plain, format!("iptables -t mangle -I FORWARD {dnat}")),
        (Place::Nft("ip", "filter"), &docker, format!("iptables -I DOCKER-USER {dnat}")),
        (Place::Nft("ip", "filter"), &after_reject, format!("iptables -I FORWARD {dnat}")),
        (Place::Legacy("ip6tables-legacy", "filter"), &plain, format!("ip6tables-legacy -I FORWARD {dnat}")),
        (Place::Nft("inet", "filter"), &plain, "nft insert rule inet filter FORWARD ct status dnat accept".to_owned()),
        (Place::Nft("ip", "fw"), &plain, "nft insert rule ip fw FORWARD ct status dnat accept".to_owned()),
    ] {
        let found = accepting(&place, chains, base(chains, "FORWARD"));
        assert_eq!(found, format!("for connections to pods and other nodes: {expected}"));
    }
}

/// The same rules as `iptables-save` prints them and as the kernel lists them.
#[test]
fn rules_are_understood_alike_in_both_forms() {
    let rules = [
        "FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
        "FORWARD -m conntrack ! --ctstate INVALID,UNTRACKED -j ACCEPT",
        "FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,SNAT -j ACCEPT",
        "FORWARD -m conntrack --ctstate NEW --ctorigdstport 80 -j ACCEPT",
        "FORWARD -m state --state NEW,ESTABLISHED -j DROP",
        "FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "FORWARD -m mark ! --mark 0x4000/0x4000 -m comment --comment \"a ! -j DROP\" -j RETURN",
        "FORWARD -m mark --mark 0x0/0x4000 -j ACCEPT",
        "FORWARD -m mark --mark 0x4001/0x4001 -j ACCEPT",
        "FORWARD -m mark --mark 0x4000 -j ACCEPT",
        "FORWARD -i eth0 -p tcp -m tcp --dport 80 -j DROP",
        "FORWARD -m limit --limit 3/min -j ACCEPT",
        "FORWARD -j X",
        "FORWARD -g X",
        "FORWARD -j MARK --set-xmark 0x4000/0x4000",
        "FORWARD -j LOG --log-prefix \"-j DROP\"",
        "FORWARD -j REJECT",
        "FORWARD -j DROP",
        "FORWARD -j RETURN",
        "X",
    ];
    in_network_namespace(move || {
        for (tool, family) in [("iptables-nft", "ip"), ("ip6tables-nft", "ip6")] {
            run(&[tool, "-N", "X"]);
            run(&[tool, "-P", "FORWARD", "DROP"]);
            for rule in rules {
                run(&["sh", "-c", &format!("{tool} -A {rule}")]);
            }
            let listed = list_with_rules(MARK).expect("tables can be listed");
            let listed = &listed.tables[&(family, "filter".to_owned())];
            let saved =
                Command::new(tool.to_owned() + "-save").args(["-t", "filter"]).output().expect("it is installed");
            let saved = chains(&String::from_utf8_lossy(&saved.stdout));
            for name in ["FORWARD", "X"] {
                let (listed, saved) = (base(listed, name), base(&saved, name));
                assert!(!saved.rules.is_empty());
                for (nth, (listed, saved)) in listed.rules.iter().zip(&saved.rules).enumerate() {
                    let shown = if name == "X" { "" } else { rules[nth] };
                    assert_eq!(listed, saved, "{tool} {shown}");
                }
                assert_eq!(listed, saved, "{tool}");
            }
        }
    });
}

#[test]
fn rules_of_nft_are_understood() {
    in_network_namespace(|| {
        for (rules, expected) in [
            ("ct status dnat accept", Fate::Accepted),
            ("ct status & dnat == dnat counter accept", Fate::Accepted),
            ("ct state established,related accept; add rule inet t f ct state new accept", Fate::Accepted),
            (
                "ct state established,related accept; add rule inet t f meta mark & 0x4000 == 0x4000 accept",
                Fate::AcceptedIfMarked,
            ),
            (
                "ct state established,related accept; add rule inet t f meta mark & 0x4000 != 0 accept",
                Fate::AcceptedIfMarked,
            ),
            ("ct state invalid drop; add rule inet t f ct status dnat log accept", Fate::Accepted),
            ("ct state { established, related } accept; add rule inet t f ct status dnat accept", Fate::Accepted),
            ("ct status dnat ct state new accept", Fate::DroppedByPolicy),
            ("ct status != dnat accept", Fate::DroppedByPolicy),
            ("ct status snat accept", Fate::DroppedByPolicy),
            ("meta nfproto ipv4 ct status dnat accept", Fate::DroppedByPolicy),
            ("ct status dnat drop", Fate::DroppedByRule),
            ("reject", Fate::DroppedByRule),
            ("iifname eth0 reject", Fate::DroppedByPolicy),
            ("ct status dnat limit rate 1/second accept", Fate::DroppedByPolicy),
            ("ct state vmap { established : accept, related : accept, new : accept }", Fate::DroppedByPolicy),
            ("meta mark 0x4000 accept", Fate::DroppedByPolicy),
        ] {
            run(&["nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }"]);
            run(&["nft", &format!("add rule inet t f {rules}")]);
            let listed = list_with_rules(MARK).expect("tables can be listed");
            let chains = &listed.tables[&("inet", "t".to_owned())];
            assert_eq!(fate(chains, base(chains, "f"), &|_| false), expected, "{rules}");
            run(&["nft", "delete table inet t"]);
        }
    });
}
