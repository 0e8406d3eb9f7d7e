use super::super::tables::list_early;
use super::*;
use crate::testing::netns::has;
use crate::testing::{in_network_namespace, run};

fn concern(to: Option<&str>, protocol: Option<u8>, ports: Option<(u16, u16)>) -> Concern {
    Concern { to: to.map(|to| to.parse().expect("a range")), protocol, ports, ..Concern::default() }
}

/// Hook, chain and number, concern and whether it drops.
fn said(found: &[Early]) -> Vec<(&'static str, &str, usize, Concern, bool)> {
    found.iter().map(|it| (it.hook, it.chain.as_str(), it.nth, it.concern.clone(), it.drops)).collect()
}

#[test]
fn rules_of_nft_are_read() {
    in_network_namespace(|| {
        let script = "add table ip r; add chain ip r p { type filter hook prerouting priority raw; }
            add chain ip r o { type filter hook output priority -250; }
            add chain ip r late { type filter hook prerouting priority 0; }; add rule ip r late drop
            add chain ip r f { type filter hook forward priority raw; }; add rule ip r f drop
            add chain ip r c; add rule ip r c counter udp dport 53 notrack
            add rule ip r p ip daddr 10.96.0.0/12 notrack; add rule ip r p ip daddr 10.0.0.0/8 jump c
            add rule ip r p iifname eth0 drop; add rule ip r p ip daddr 10.96.0.1 tcp dport 30000-32767 drop
            add rule ip r p tcp dport { 1, 2 } drop; add rule ip r p ip saddr 10.96.0.1 drop
            add rule ip r p ip daddr != 10.96.0.1 drop; add rule ip r p meta l4proto sctp drop
            add rule ip r p ct state new drop; add rule ip r p tcp flags syn drop; add rule ip r p tcp sport 53 notrack
            add rule ip r o ip daddr 10.96.0.1 accept; add rule ip r o drop
            add table inet s; add chain inet s p { type filter hook prerouting priority -300; }
            add rule inet s p ip6 daddr fd00:172:30::/112 notrack; add rule inet s p drop";
        for line in script.lines().flat_map(|line| line.split("; add ")) {
            let line = line.trim();
            let command = if line.starts_with("add ") { line.to_owned() } else { format!("add {line}") };
            run(&["nft", &command]);
        }
        let tables = list_early().expect("they can be listed");
        let found = tables[&("ip", "r".to_owned())].found();
        assert_eq!(
            said(&found),
            [
                ("prerouting", "p", 0, concern(Some("10.96.0.0/12"), None, None), false),
                ("prerouting", "c", 0, concern(Some("10.0.0.0/8"), Some(17), Some((53, 53))), false),
                ("prerouting", "p", 3, concern(Some("10.96.0.1/32"), Some(6), Some((30000, 32767))), true),
                ("prerouting", "p", 7, concern(None, Some(132), None), true),
            ]
        );
        let found = tables[&("inet", "s".to_owned())].found();
        assert_eq!(
            said(&found),
            [
                ("prerouting", "p", 0, concern(Some("fd00:172:30::/112"), None, None), false),
                ("prerouting", "p", 1, concern(None, None, None), true),
            ]
        );
    });
}

/// Both kinds of iptables say the same of the same rules.
#[test]
fn rules_of_iptables_are_read() {
    const RULES: [&str; 9] = [
        "-d 10.96.0.0/12 -j NOTRACK",
        "-d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack",
        "-p tcp -m tcp --dport 30000:32767 -m comment --comment \"no node ports\" -j DROP",
        "-d 172.17.0.2/32 ! -i docker0 -j DROP",
        "-p tcp -m tcp --sport 53 -j DROP",
        "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j DROP",
        "-j CT --zone 7",
        "-m mark --mark 0x1 -j DROP",
        "-j DROP",
    ];
    let expected = [
        ("prerouting", "PREROUTING", 0, concern(Some("10.96.0.0/12"), None, None), false),
        ("prerouting", "PREROUTING", 1, concern(Some("10.96.0.10/32"), Some(17), Some((53, 53))), false),
        ("prerouting", "PREROUTING", 2, concern(None, Some(6), Some((30000, 32767))), true),
        ("prerouting", "PREROUTING", 8, concern(None, None, None), true),
    ];
    let lines: String = RULES.iter().map(|rule| format!("-A PREROUTING {rule}\n")).collect();
    let saved = format!("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{lines}COMMIT\n");
    assert_eq!(said(&EarlyTable::of_saved(&saved).found()), expected);
    if !has(&["iptables-nft"]) {
        return;
    }
    in_network_namespace(|| {
        for rule in RULES {
            let rule = rule.replace(" -m comment --comment \"no node ports\"", "");
            let words = ["iptables-nft", "-t", "raw", "-A", "PREROUTING"].into_iter().chain(rule.split(' '));
            run(&words.collect::<Vec<_>>());
        }
        let tables = list_early().expect("they can be listed");
        assert_eq!(said(&tables[&("ip", "raw".to_owned())].found()), expected);
    });
}

/// In nftables as in the text of iptables: `tests` of the doctor have the cases.
#[test]
fn rules_that_accept_packets_to_pods_are_read() {
    if !has(&["iptables-nft", "ip6tables-nft"]) {
        return;
    }
    let target = |range: &str, device: Option<&str>| Target {
        range: range.parse().expect("a range"),
        device: device.map(str::to_owned),
    };
    in_network_namespace(|| {
        let opens = |family: &'static str, table: &str, chain: &str, targets: &[Target]| {
            list_early().expect("they can be listed")[&(family, table.to_owned())].opens(chain, targets)
        };
        let pods = [target("10.244.0.0/16", None), target("10.244.0.5/32", Some("cali12"))];
        for (rule, expected) in [
            ("-i lo -j ACCEPT", Opens::No),
            ("-s 10.244.0.0/16 -j ACCEPT", Opens::No),
            ("-o cali+ -j ACCEPT", Opens::Some),
            ("-o cali12 -j ACCEPT", Opens::Some),
            ("-o cali1 -j ACCEPT", Opens::No),
            ("-m mark --mark 0x10000/0x10000 -j ACCEPT", Opens::Some),
            ("-d 10.244.0.0/16 -j ACCEPT", Opens::All),
        ] {
            run(&["iptables-nft", "-F"]);
            run(&["iptables-nft", "-A", "FORWARD", "-p", "tcp", "-j", "ACCEPT"]);
            let words = ["iptables-nft", "-A", "FORWARD"].into_iter().chain(rule.split(' '));
            run(&words.collect::<Vec<_>>());
            assert_eq!(opens("ip", "filter", "FORWARD", &pods), expected, "{rule}");
        }
        run(&["nft", "add table inet fw { chain f { type filter hook forward priority 0; policy drop; }; }"]);
        run(&["nft", "add rule inet fw f oifname cali* accept; add rule inet fw f ip6 daddr fd00:1::/48 accept"]);
        assert_eq!(opens("inet", "fw", "f", &pods), Opens::Some);
        assert_eq!(opens("inet", "fw", "f", &[target("fd00:1:0:1::/64", None)]), Opens::All);
        run(&["nft", "insert rule inet fw f drop"]);
        assert_eq!(opens("inet", "fw", "f", &pods), Opens::No);
    });
}

#[test]
fn what_may_pass_before_ends_the_certainty() {
    let found =
        |rules: &str| EarlyTable::of_saved(&format!(":PREROUTING ACCEPT [0:0]\n:C - [0:0]\n{rules}")).found().len();
    for (rules, expected) in [
        ("-A PREROUTING -j DROP", 1),
        ("-A PREROUTING -i lo -j ACCEPT\n-A PREROUTING -j DROP", 0),
        ("-A PREROUTING -j C\n-A C -j DROP", 1),
        ("-A PREROUTING -i eth0 -j C\n-A C -j DROP", 0),
        ("-A PREROUTING -g C\n-A C -j DROP", 0),
        ("-A PREROUTING -j C\n-A C -s 192.0.2.0/24 -j RETURN\n-A C -j DROP\n-A PREROUTING -j DROP", 0),
        ("-A PREROUTING -d 10.0.0.0/8 -j C\n-A C -d 10.96.0.0/12 -j DROP", 0),
        ("-A PREROUTING -j LOG --log-prefix \"a b \"\n-A PREROUTING -j NOTRACK", 1),
        ("-A PREROUTING -j UNKNOWN\n-A PREROUTING -j DROP", 1),
        ("-A PREROUTING -j PREROUTING\n-A PREROUTING -j DROP", 0),
    ] {
        assert_eq!(found(rules), expected, "{rules}");
    }
}

use proptest::prelude::*;

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    #[test]
    fn any_bytes_and_words_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..128), text in "(-[Ajdpmg]| |DROP|\n|:|[A-Z0-9.:/\"]){0,40}") {
        let _ = rule(&bytes);
        let _ = EarlyTable::of_saved(&text).found();
    }
}
