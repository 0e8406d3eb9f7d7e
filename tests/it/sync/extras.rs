//! Sets and chains that not every table has: they come with the first Service that needs them, without anything else being
//! touched, and stay.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::Operation;
use nftproxyd::model::{Event, Family, Service};
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::nftables::{Kernel, LinuxKernel};
use nftproxyd::ruleset::extras::Extras;
use nftproxyd::ruleset::names::{ChainName, SetName};
use nftproxyd::ruleset::text;
use nftproxyd::sync::Engine;

use crate::support::cluster::{Cluster, facts, of_every_kind, with_extras};
use crate::support::namespace::Namespace;
use crate::support::nft::{nft, table};

/// Longer than a chain stays that nobody uses.
const LATER: Duration = Duration::from_hours(2);

/// The chains with the rule that pings meet.
const PINGED: [ChainName; 2] = [ChainName::NatPrerouting, ChainName::Services];

/// The same Service, which asks for nothing that not every table has, and as it does.
fn both_ways() -> (Cluster, Service) {
    let cluster = of_every_kind(2, Some(60));
    let asking = with_extras(cluster.clone());
    let service = asking.services.values().find(|service| service.ranges_everywhere).expect("there are ranges");
    assert_eq!(service.ping, Some(true));
    (cluster, service.clone())
}

fn sets<K: Kernel>(engine: &Engine<K>, family: Family) -> BTreeSet<SetName> {
    engine.ruleset(family).sets.iter().map(|(def, _)| def.name).collect()
}

#[test]
fn a_table_gets_what_its_first_service_needs_and_nothing_else_is_touched() {
    let (cluster, service) = both_ways();
    let mut engine = cluster.engine(InMemoryKernel::new(), facts(NodePortAddresses::All));
    let now = Instant::now();
    assert_eq!(engine.sync(now).failures, 0);
    let missing = |engine: &Engine<InMemoryKernel>, family| {
        let there = sets(engine, family);
        SetName::ALL.into_iter().filter(|set| !there.contains(set)).collect::<BTreeSet<_>>()
    };
    let extra: BTreeSet<SetName> = SetName::ALL.into_iter().filter(|set| !Extras::NONE.has_set(*set)).collect();
    let without: Vec<_> = Family::ALL.map(|family| text::ruleset(&engine.ruleset(family))).into();
    Family::ALL.into_iter().for_each(|family| assert_eq!(missing(&engine, family), extra));

    engine.kernel().take_committed();
    let dumps = engine.kernel().dumps();
    engine.apply(Event::Service(service.clone()));
    let report = engine.sync(now);
    assert_eq!((report.failures, report.error_text()), (0, String::new()));
    assert_eq!(engine.kernel().dumps(), dumps, "nothing was read");
    for transaction in engine.kernel().take_committed() {
        for operation in &transaction.operations {
            match operation {
                Operation::AddSet(def) => assert!(extra.contains(&def.name), "{operation:?}"),
                Operation::AddChain(chain) | Operation::AddRules(chain) => {
                    let of_extras = ChainName::EXTRA.contains(&chain.name);
                    let picks = matches!(chain.name, ChainName::Pick(_));
                    assert!(of_extras || picks || PINGED.contains(&chain.name), "{operation:?}");
                }
                Operation::FlushChain(chain) => assert!(PINGED.contains(chain), "{operation:?}"),
                Operation::AddElements(..) | Operation::DeleteElements(..) => {}
                other => panic!("{other:?}"),
            }
        }
        // Three sets, two chains of two rules with a verdict each, two chains with one rule more; a range and a kind for each
        // port, its entry, and addresses.
        assert!(transaction.len() <= 60, "{} operations", transaction.len());
    }
    for family in Family::ALL {
        assert_eq!(missing(&engine, family), BTreeSet::new());
        assert!(engine.elements(family)[&SetName::NodeportAllowedSources] > 0);
    }

    // They stay, empty, and the next Service finds them.
    let before = &cluster.services[&service.name];
    engine.apply(Event::Service(before.clone()));
    engine.sync(now);
    assert_eq!(engine.sync(now + LATER).failures, 0);
    for family in Family::ALL {
        assert_eq!(missing(&engine, family), BTreeSet::new());
        assert_eq!(engine.elements(family)[&SetName::NodeportAllowedSources], 0);
    }
    engine.kernel().take_committed();
    engine.apply(Event::Service(service));
    assert_eq!(engine.sync(now + LATER).failures, 0);
    let sent = engine.kernel().take_committed();
    let sets = sent.iter().flat_map(|it| &it.operations).filter(|it| matches!(it, Operation::AddSet(_)));
    assert_eq!(sets.count(), 0);

    // One that never had such a Service has none of it.
    let fresh = cluster.expected(facts(NodePortAddresses::All));
    assert_eq!(Family::ALL.map(|family| text::ruleset(&fresh.ruleset(family))).as_slice(), without);
}

#[test]
fn a_restart_finds_them_and_leaves_them_where_they_are() {
    let Some(namespace) = Namespace::for_test() else { return };
    namespace.run(|| {
        let (cluster, service) = both_ways();
        let start = |cluster: &Cluster| {
            cluster.engine(LinuxKernel::open().expect("a netlink socket"), facts(NodePortAddresses::Primary))
        };
        let mut engine = start(&cluster);
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        let plain = Family::ALL.map(|family| table(text::family(family)));
        engine.apply(Event::Service(service.clone()));
        assert_eq!(engine.sync(Instant::now()).failures, 0);
        let asked = Family::ALL.map(|family| table(text::family(family)));
        assert!(plain.iter().zip(&asked).all(|(plain, asked)| plain.len() + 5 <= asked.len()));

        // With the Service: nothing is sent. Without it: only its elements go, one by one.
        let mut with = cluster.clone();
        with.services.insert(service.name.clone(), service);
        assert_eq!(start(&with).sync(Instant::now()).transactions, 0);
        let handles = || {
            let listed = nft(&["-a", "list", "ruleset"], "");
            listed.lines().filter(|line| line.contains("chain ") || line.contains("set ")).map(str::to_owned).collect()
        };
        let before: Vec<String> = handles();
        let mut restarted = start(&cluster);
        let report = restarted.sync(Instant::now());
        assert_eq!((report.failures, report.error_text()), (0, String::new()));
        let still_there = |line: &String| before.contains(line) || line.contains("pick-");
        assert!(handles().iter().all(still_there), "nothing is made anew");
        let again = start(&cluster).sync(Instant::now());
        assert_eq!((again.failures, again.transactions), (0, 0), "once is enough");

        // A table that is made anew has none of it.
        for family in Family::ALL {
            nft(&["delete", "table", text::family(family), "nftproxyd"], "");
        }
        assert_eq!(start(&cluster).sync(Instant::now()).failures, 0);
        assert_eq!(Family::ALL.map(|family| table(text::family(family))), plain);
    });
}
