//! Who takes turns by which counter, whatever was before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::*;
use crate::diff::{Operation, Stage};
use crate::model::{Family, FrontendAt, FrontendKey, TrafficPolicy};
use crate::ruleset::backend::Backend;
use crate::ruleset::base::DISPATCH_SIZE;
use crate::ruleset::frontend::Action;
use crate::ruleset::names::{Masquerade, SetName};
use crate::ruleset::slots::Slots;
use crate::ruleset::types::Chain;

fn address(last: u16) -> IpAddr {
    let [high, low] = last.to_be_bytes();
    [10, 96, high, low].into()
}

fn name(index: u16) -> ObjectName {
    ObjectName::new("shop", &format!("s{index}")).expect("a name")
}

/// What a Service wants that takes turns over so many endpoints: an address for each of its ports, or two.
fn wanted(index: u16, ports: &[(&str, usize)], second: bool) -> ServicePart {
    let slots = |endpoints: usize| Slots {
        by: if endpoints > 1 { By::Turn(0) } else { By::Random },
        list: (0..endpoints).map(|at| Backend { address: address(at as u16), port: NonZeroU16::MIN }).collect(),
    };
    let frontend = |at: usize, port_name: &str, endpoints, masquerade| {
        let port = NonZeroU16::MIN.saturating_add(at as u16);
        let high = if masquerade == Masquerade::Always { 0x4000 } else { 0 };
        let key = FrontendKey { at: FrontendAt::Address(address(index + high)), protocol: Protocol::Tcp, port };
        let action =
            Action::Forward { policy: TrafficPolicy::Cluster, masquerade, affinity: None, slots: slots(endpoints) };
        (key, Frontend { service: name(index), port_name: port_name.into(), action, allowed_sources: None })
    };
    let mut part = ServicePart::default();
    for (at, (port_name, endpoints)) in ports.iter().enumerate() {
        part.frontends.push(frontend(at, port_name, *endpoints, Masquerade::Never));
        part.frontends.extend(second.then(|| frontend(at, port_name, *endpoints, Masquerade::Always)));
    }
    part.frontends.sort_by_key(|(key, _)| *key);
    part
}

/// Installs what these Services want, in one transaction. What goes to the kernel is in an order that it takes.
fn install(installed: &mut Installed, services: Vec<(u16, ServicePart)>) -> usize {
    let mut stage = Stage::default();
    for (index, part) in services {
        stage.service(installed, &name(index), part);
    }
    let chain = |name| Some(Chain { name, hook: None, rules: Vec::new() });
    let transaction = stage.transaction(Family::V4, installed, chain);
    let mut chains: BTreeSet<ChainName> = installed.chains().collect();
    let added = transaction.operations.iter().filter_map(|operation| match operation {
        Operation::AddChain(chain) => Some(chain.name),
        _ => None,
    });
    for chain in added {
        assert!(chains.insert(chain), "{chain} is there");
        assert!(chain.counter().is_none_or(|counter| chains.contains(&counter)), "{chain} has nowhere to go");
    }
    stage.commit(installed, &transaction);
    transaction.operations.len()
}

/// The counter of each Service port.
fn counters(installed: &Installed) -> BTreeMap<(usize, String), BTreeSet<By>> {
    let mut counters: BTreeMap<_, BTreeSet<By>> = BTreeMap::new();
    for (_, frontend) in installed.frontends() {
        for (_, slots) in frontend.action.slots() {
            let port = format!("{}:{}", frontend.service, frontend.port_name);
            counters.entry((slots.len(), port)).or_default().insert(slots.by);
        }
    }
    counters
}

#[test]
fn counters_are_for_one_port_each_while_there_are_some() {
    let mut installed = Installed::default();
    let of = |index| (index, wanted(index, &[("http", 3)], true));
    install(&mut installed, (0..60).map(of).collect());
    let all = counters(&installed);
    let one: Vec<By> = all.values().map(|counters| *counters.first().expect("one")).collect();
    assert!(all.values().all(|counters| counters.len() == 1), "both addresses take turns together: {all:?}");
    let turns: BTreeSet<By> = one.iter().copied().filter(|by| matches!(by, By::Turn(_))).collect();
    assert_eq!(turns.len(), usize::from(By::COUNTERS));
    assert_eq!(one.iter().filter(|by| **by == By::Random).count(), 60 - turns.len(), "who finds none has none");

    assert_eq!(install(&mut installed, (0..60).map(of).collect()), 0, "it stays as it is");
    // One goes; who is looked at next gets its counter.
    install(&mut installed, vec![(7, ServicePart::default())]);
    install(&mut installed, (0..60).filter(|index| *index != 7).map(of).collect());
    let random = counters(&installed).into_values().filter(|counters| counters.contains(&By::Random)).count();
    assert_eq!(random, 60 - 1 - turns.len());
}

#[test]
fn a_service_keeps_its_counter_with_another_number_of_endpoints() {
    let mut installed = Installed::default();
    install(&mut installed, (0..5).map(|index| (index, wanted(index, &[("", 3)], false))).collect());
    install(&mut installed, vec![(4, wanted(4, &[("", 4)], false))]);
    assert_eq!(counters(&installed)[&(4, "shop/s4:".to_owned())], [By::Turn(4)].into());
    // But one for which there is a chain comes before.
    install(&mut installed, vec![(4, wanted(4, &[("", 3)], false)), (3, wanted(3, &[("", 4)], false))]);
    assert_eq!(counters(&installed)[&(4, "shop/s3:".to_owned())], [By::Turn(4)].into());
}

#[test]
fn a_counter_stays_for_as_long_as_a_chain_hands_over_to_it() {
    let mut installed = Installed::default();
    install(&mut installed, vec![(0, wanted(0, &[("", 3)], true))]);
    let names = |chains: &BTreeSet<ChainName>| chains.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&installed.chains().collect()), ["rr-3-0", "masq-rr-3-0"]);
    install(&mut installed, vec![(0, ServicePart::default())]);
    assert_eq!(names(installed.idle()), ["masq-rr-3-0"]);
    installed.chains_deleted(&installed.idle().iter().copied().collect::<Vec<_>>());
    assert_eq!(names(installed.idle()), ["rr-3-0"]);
}

#[test]
fn no_counter_takes_a_chain_where_there_are_too_many() {
    let mut installed = Installed::default();
    let of = |index: u16| {
        let ports: Vec<(String, usize)> =
            (0..40).map(|at| (format!("p{at}"), 2 + usize::from(index) + 60 * at)).collect();
        let ports: Vec<(&str, usize)> = ports.iter().map(|(name, endpoints)| (&**name, *endpoints)).collect();
        (index, wanted(index, &ports, false))
    };
    install(&mut installed, (0..60).map(of).collect());
    let turning = counters(&installed).into_values().filter(|counters| !counters.contains(&By::Random)).count();
    assert!((MOST_CHAINS - 60..=MOST_CHAINS).contains(&turning), "{turning}");
}

/// Each counter has one more chain where an address is masqueraded, which takes a place in the maps of kinds, too.
#[test]
fn chains_that_hand_over_count_as_well() {
    let all = || (0..60 * 56_u16).map(|index| (index, wanted(index, &[("", 2 + usize::from(index) / 56)], true)));
    let places =
        |installed: &Installed| installed.all_elements().iter().filter(|(set, _)| *set == SetName::Dispatch).count();
    let mut at_once = Installed::default();
    install(&mut at_once, all().collect());
    let mut in_portions = Installed::default();
    for one in all() {
        install(&mut in_portions, vec![one]);
    }
    // All have one address first, and then two.
    let mut later = Installed::default();
    let first = all().map(|(index, _)| (index, wanted(index, &[("", 2 + usize::from(index) / 56)], false)));
    install(&mut later, first.collect());
    install(&mut later, all().collect());
    for installed in [&at_once, &in_portions, &later] {
        let places = places(installed);
        assert!((MOST_CHAINS..DISPATCH_SIZE as usize - 1_000).contains(&places), "{places}");
    }
    assert_eq!(install(&mut at_once, all().collect()), 0, "it stays as it is");
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    /// Nobody shares a counter, whoever comes, goes and changes, alone or together.
    #[test]
    fn nobody_shares_a_counter(
        steps in prop::collection::vec(prop::collection::btree_map(0u16..4, (0usize..4, 1usize..4, any::<bool>()), 1..4), 1..12),
    ) {
        let mut installed = Installed::default();
        for step in steps {
            let part = |index, (first, second, twice): (usize, usize, bool)| match first {
                0 => ServicePart::default(),
                _ => wanted(index, &[("a", first), ("b", second)], twice),
            };
            let services = || step.iter().map(|(index, shape)| (*index, part(*index, *shape))).collect::<Vec<_>>();
            install(&mut installed, services());
            prop_assert_eq!(install(&mut installed, services()), 0, "a second time costs nothing");
            let all = counters(&installed);
            let mut seen = BTreeSet::new();
            for ((slots, port), counters) in all {
                prop_assert_eq!(counters.len(), 1, "{} takes turns together", port);
                let by = counters.first().copied();
                prop_assert_eq!(matches!(by, Some(By::Turn(_))), slots > 1, "there are enough");
                prop_assert!(slots == 1 || seen.insert((slots, by)), "{port} has the counter of another: {by:?}");
            }
        }
    }
}
