//! Chains that hand over to one with a counter, in the hands of others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::model::{Family, Scheduler};
use nftproxyd::nftables::LinuxKernel;
use nftproxyd::ruleset::kinds::Kind;
use nftproxyd::ruleset::names::ChainName;

use crate::support::cluster::{Cluster, facts, of_every_kind};
use crate::support::namespace::Namespace;
use crate::support::nft::{assert_same, nft, table};

/// Everything takes turns.
fn turning() -> Cluster {
    let mut cluster = of_every_kind(1, Some(60));
    cluster.services.values_mut().for_each(|service| service.scheduler = Some(Scheduler::RoundRobin));
    cluster
}

/// What takes a chain away as nft takes it: nothing may lead to it.
fn without(name: &str) -> String {
    let mut script = String::new();
    let kind = ChainName::parse(name).and_then(Kind::of_chain).expect("a kind").class();
    let class = format!("{:x}:{:x}", kind >> 16, kind & 0xffff);
    for map in ["dispatch", "dispatch-last"] {
        script += &format!("delete element ip nftproxyd {map} {{ {class} }}\n");
    }
    script + &format!("flush chain ip nftproxyd {name}\ndelete chain ip nftproxyd {name}\n")
}

#[test]
fn chains_that_hand_over_are_put_right() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        let mut engine =
            turning().engine(LinuxKernel::open().expect("a netlink socket"), facts(NodePortAddresses::Primary));
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        let before: BTreeMap<String, Vec<String>> = table("ip");
        let is_there = |name: &str| before.keys().any(|key| key.ends_with(&format!(" {name} {{")));
        let handing = |counter| ["cluster", "masq"].map(|mark| format!("{mark}-rr-2-{counter}"));
        let counter = (0..56).find(|counter| handing(*counter).iter().all(|name| is_there(name)));
        let counter = counter.expect("a Service that is reached in both ways");
        let (owner, [one, other]) = (format!("rr-2-{counter}"), handing(counter));
        let flush = |name: &str| format!("flush chain ip nftproxyd {name}\n");
        let all = [&owner, &one, &other];
        let damages = [
            ("the counter flushed", flush(&owner)),
            ("one that hands over flushed", flush(&one)),
            ("all flushed", all.map(|name| flush(name)).concat()),
            ("one that hands over deleted", without(&one)),
            ("all that hand over deleted", without(&one) + &without(&other)),
            ("all deleted", without(&one) + &without(&other) + &without(&owner)),
            ("the counter deleted", flush(&one) + &flush(&other) + &without(&owner)),
            ("the counter deleted and one that hands over", flush(&one) + &without(&other) + &without(&owner)),
            ("a chain that has its own counter deleted", without("np-masq-rr-2-0") + &without("np-rr-2-0")),
        ];
        for (what, script) in damages {
            nft(&["-f", "-"], &script);
            engine.distrust(Family::V4);
            let mut now = Instant::now();
            let mut report = engine.sync(now);
            if report.failures > 0 {
                println!("{what}: {}", report.error_text());
                now += Duration::from_secs(10);
                report = engine.sync(now);
            }
            assert_eq!((report.failures, report.error_text()), (0, String::new()), "{what}");
            assert!(engine.is_in_line(), "{what}");
            assert_same(&table("ip"), &before, what);
            println!("{what}: {} operations", report.operations);
        }
    });
}
