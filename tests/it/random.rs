//! Random clusters, changed at random and synced at random moments.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nftproxyd::config::NodePortAddresses;
use nftproxyd::diff::{self, Installed, Recovered};
use nftproxyd::model::{Family, FrontendAt, FrontendKey, ObjectName};
use nftproxyd::nftables::in_memory::{Fault, InMemoryKernel};
use nftproxyd::nftables::{Kernel, LinuxKernel};
use nftproxyd::ruleset::elements::{self, element_key};
use nftproxyd::ruleset::kinds::Kind;
use nftproxyd::ruleset::names::{By, ChainName, Pick, SetName};
use nftproxyd::ruleset::read::Contents;
use nftproxyd::ruleset::types::{Element, Rule, Statement, Value};
use nftproxyd::sync::Engine;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::properties::replayed;
use crate::support::cluster::{
    Change, Cluster, LONGEST_RETRY, change, cluster, facts, node_ports, without_counter, without_slots,
};
use crate::support::namespace::Namespace;

pub(crate) fn runner(cases: u32) -> TestRunner {
    TestRunner::new(replayed(Config { cases, max_shrink_iters: 2_000, ..Config::default() }, file!()))
}

/// Changes, in the portions that are synced together.
pub(crate) fn changes(syncs: usize) -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 0..5), 1..syncs)
}

/// What the kernel in memory holds of a table, but for what it learns itself.
fn held(kernel: &InMemoryKernel, family: Family) -> Vec<(SetName, Element)> {
    let sets = SetName::ALL.into_iter().filter(|set| *set != SetName::Affinity);
    let mut all: Vec<_> =
        sets.flat_map(|set| kernel.elements_of(family, set).into_iter().map(move |element| (set, element))).collect();
    all.sort_unstable();
    all
}

/// All but what is done with each kind, as chains that nobody uses any more stay for a while.
fn of_services(elements: &[(SetName, Element)]) -> Vec<(SetName, Element)> {
    let dispatch = [SetName::Dispatch, SetName::DispatchLast, SetName::DispatchAffinity];
    elements.iter().filter(|(set, _)| !dispatch.contains(set)).cloned().collect()
}

/// How many elements each set has, but for those that have none.
fn counts(elements: &[(SetName, Element)]) -> BTreeMap<SetName, usize> {
    let mut counts = BTreeMap::new();
    elements.iter().for_each(|(set, _)| *counts.entry(*set).or_default() += 1);
    counts
}

/// The same, as the engine counts along.
fn counted<K: Kernel>(engine: &Engine<K>, family: Family) -> BTreeMap<SetName, usize> {
    engine.elements(family).iter().filter(|(_, count)| **count > 0).map(|(set, count)| (*set, *count)).collect()
}

/// The kernel holds what the engine believes, with every chain; and that is what the cluster needs.
fn check(engine: &mut Engine<InMemoryKernel>, cluster: &Cluster, node_ports: &NodePortAddresses) {
    let expected = cluster.expected(facts(node_ports.clone()));
    for family in Family::ALL {
        let installed = engine.installed(family).all_elements();
        let ruleset = engine.ruleset(family);
        assert_eq!(held(engine.kernel(), family), installed, "{family}");
        assert_eq!(counted(engine, family), counts(&installed), "{family}");
        for chain in &ruleset.chains {
            assert_eq!(engine.kernel().rules_of(family, chain.name).as_ref(), Some(&chain.rules), "{}", chain.name);
        }
        let wanted = expected.installed(family);
        assert_eq!(
            without_slots(&of_services(&installed)),
            without_slots(&of_services(&wanted.all_elements())),
            "{family}"
        );
        // Which counter a Service has depends on what was before; how many there are does not.
        let in_use = |installed: &Installed| {
            let idle = installed.idle();
            // What not every table has stays as well.
            let extra = |chain: &ChainName| ChainName::EXTRA.contains(chain);
            let needed: BTreeSet<ChainName> =
                installed.chains().filter(|chain| !idle.contains(chain)).flat_map(|chain| chain.counter()).collect();
            let chains = installed.chains().filter(|chain| !idle.contains(chain) && !extra(chain));
            // A counter stays for as long as an idle chain hands over to it.
            let kept: BTreeSet<ChainName> = idle.iter().filter_map(|chain| chain.counter()).collect();
            let of_elements = of_kinds(&installed.all_elements());
            let chains =
                chains.filter(|chain| !kept.contains(chain) || needed.contains(chain) || of_elements.contains(chain));
            let mut chains: Vec<ChainName> = chains.map(any_counter).collect();
            chains.sort_unstable();
            chains
        };
        assert_eq!(in_use(engine.installed(family)), in_use(wanted), "{family}");
        // Affinity and answers to pings, once used, stay prepared; everything else of the frame is as for a new table.
        let of_affinity =
            [ChainName::Remember, ChainName::MasqueradeMarked, ChainName::NatInput, ChainName::NatPostrouting];
        for chain in expected.ruleset(family).chains {
            let turns = matches!(chain.name, ChainName::Pick(Pick { by: By::Turn(_), .. }));
            if !of_affinity.contains(&chain.name) && !turns {
                let rules = engine.kernel().rules_of(family, chain.name).map(without_pings);
                assert_eq!(rules, Some(without_pings(chain.rules)), "{}", chain.name);
            }
        }
    }
}

/// The rules, but for those that pings meet.
fn without_pings(mut rules: Vec<Rule>) -> Vec<Rule> {
    rules.retain(|rule| rule.statements.first() != Some(&Statement::EchoRequest));
    rules
}

/// The chains of the kinds that frontends hold.
fn of_kinds(elements: &[(SetName, Element)]) -> BTreeSet<ChainName> {
    elements.iter().filter_map(|(_, element)| Kind::of_data(&element.data)?.on_demand()).collect()
}

/// The same chain, whichever counter it takes turns by.
fn any_counter(chain: ChainName) -> ChainName {
    match chain {
        ChainName::Pick(pick) => ChainName::Pick(without_counter(pick)),
        other => other,
    }
}

#[test]
fn any_walk_leads_to_the_table_of_the_last_cluster() {
    let input = (cluster(), changes(8), node_ports());
    runner(200)
        .run(&input, |(mut cluster, portions, node_ports)| {
            let mut engine = cluster.engine(InMemoryKernel::new(), facts(node_ports.clone()));
            let mut now = Instant::now();
            for portion in portions {
                let report = engine.sync(now);
                prop_assert_eq!(report.failures, 0);
                check(&mut engine, &cluster, &node_ports);
                let attempts = engine.kernel().attempts();
                prop_assert!(!engine.is_due(now) && !engine.is_behind());
                engine.sync(now);
                prop_assert_eq!(engine.kernel().attempts(), attempts, "a second sync sends nothing");
                portion.into_iter().for_each(|change| cluster.change(&mut engine, change));
                now += Duration::from_millis(300);
            }
            engine.sync(now);
            check(&mut engine, &cluster, &node_ports);
            Ok(())
        })
        .expect("every walk");
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
enum Trouble {
    Commit(Fault),
    /// Elements of one of the frontends that there are; of which set, and which of its slots.
    Refuse {
        endpoints: bool,
        which: usize,
    },
    RefuseNodeAddresses,
    AcceptAll,
    DeleteTable(Family),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let faults =
        vec![Fault::Busy, Fault::Unknown { applied: true }, Fault::Unknown { applied: false }, Fault::Permission];
    prop_oneof![
        3 => select(faults).prop_map(Trouble::Commit),
        4 => (any::<bool>(), 0usize..100).prop_map(|(endpoints, which)| Trouble::Refuse { endpoints, which }),
        1 => Just(Trouble::RefuseNodeAddresses),
        1 => Just(Trouble::AcceptAll),
        1 => select(&Family::ALL[..]).prop_map(Trouble::DeleteTable),
    ]
}

/// What is written for each Service: its frontends, without the numbers of slots.
type Parts = BTreeMap<ObjectName, BTreeMap<FrontendKey, BTreeMap<(SetName, Element), usize>>>;

/// Reads the parts of all Services off a kernel. Fails where there is an element that is part of no whole frontend.
fn parts(kernel: &InMemoryKernel, keys: &BTreeSet<FrontendKey>) -> Parts {
    let mut parts = Parts::new();
    for family in Family::ALL {
        let mut elements = of_services(&held(kernel, family));
        let mut contents = Contents::new(family);
        elements.iter().cloned().for_each(|(set, element)| contents.element(set, element));
        let Recovered { installed: found, unknown, .. } = diff::recover(contents, [], BTreeSet::new(), |_| None);
        assert_eq!(unknown, []);
        let shared =
            [SetName::ClusterIps, SetName::PingIps, SetName::LocalEndpoints, SetName::Hairpin, SetName::NodeportIps];
        elements.retain(|(set, _)| !shared.contains(set));
        let mut written = 0;
        for key in keys.iter().filter(|key| key.family() == family) {
            if let Some(frontend) = found.frontend(key) {
                let elements = elements::elements(key, frontend);
                written += elements.len();
                parts.entry(frontend.service.clone()).or_default().insert(*key, without_slots(&elements));
            }
        }
        assert_eq!(written, elements.len(), "frontends are whole: {elements:#?}");
    }
    parts
}

/// Every frontend that the Services of a cluster claim.
pub(crate) fn keys(cluster: &Cluster) -> BTreeSet<FrontendKey> {
    let mut keys = BTreeSet::new();
    for service in cluster.services.values() {
        for port in &service.ports {
            let addresses = Family::ALL.into_iter().filter_map(|family| service.cluster_ips[family]);
            let addresses = addresses.chain(service.external_ips.iter().chain(&service.load_balancer_ips).copied());
            let at = |at, number| FrontendKey { at, protocol: port.protocol, port: number };
            keys.extend(addresses.map(|address| at(FrontendAt::Address(address), port.port)));
            let node_ports = Family::ALL.into_iter().filter_map(|family| Some((family, port.node_port?)));
            keys.extend(node_ports.map(|(family, number)| at(FrontendAt::NodePort(family), number)));
        }
    }
    keys
}

#[test]
fn trouble_never_leaves_half_a_service_and_passes() {
    let portions =
        prop::collection::vec((prop::collection::vec(change(), 0..4), prop::collection::vec(trouble(), 0..3)), 1..7);
    runner(200)
        .run(&(cluster(), portions, node_ports()), |(mut cluster, portions, node_ports)| {
            let mut engine = cluster.engine(InMemoryKernel::new(), facts(node_ports.clone()));
            let mut now = Instant::now();
            let mut seen = keys(&cluster);
            let mut before = Parts::new();
            let mut refused: BTreeSet<FrontendKey> = BTreeSet::new();
            // Whether nothing went wrong yet but refusals of Services.
            let mut only_refusals = true;
            for (changes, troubles) in portions {
                changes.into_iter().for_each(|change| cluster.change(&mut engine, change));
                let claimed = keys(&cluster);
                seen.extend(claimed.iter().copied());
                for trouble in troubles {
                    match trouble {
                        Trouble::Commit(fault) => {
                            only_refusals = false;
                            engine.kernel().fail_next(fault);
                        }
                        Trouble::Refuse { endpoints, which } => {
                            if let Some(key) = claimed.iter().nth(which % claimed.len().max(1)) {
                                refused.insert(*key);
                                if let FrontendAt::NodePort(_) = key.at {
                                    // Its elements look alike in both families.
                                    let at = |family| FrontendKey { at: FrontendAt::NodePort(family), ..*key };
                                    refused.extend(Family::ALL.map(at));
                                }
                                refuse(engine.kernel(), key, endpoints);
                            }
                        }
                        Trouble::RefuseNodeAddresses => {
                            only_refusals = false;
                            engine.kernel().refuse(SetName::NodeportIps, None);
                        }
                        // What was refused once may wait for its next attempt.
                        Trouble::AcceptAll => engine.kernel().accept_all(),
                        Trouble::DeleteTable(family) => {
                            // A refusal in the other family may be due to it, as far as is known.
                            only_refusals = false;
                            engine.kernel().delete_table(family);
                            engine.distrust(family);
                            before = parts(engine.kernel(), &seen);
                        }
                    }
                }
                let report = engine.sync(now);
                let mut fresh = cluster.expected(facts(node_ports.clone()));
                let wanted = parts(fresh.kernel(), &seen);
                let holds = parts(engine.kernel(), &seen);
                prop_assert!(!only_refusals || report.error_text().is_empty(), "{}", report.error_text());
                if !engine.is_behind() {
                    for family in Family::ALL {
                        let installed = engine.installed(family).all_elements();
                        assert_eq!(held(engine.kernel(), family), installed, "{family}");
                        assert_eq!(counted(&engine, family), counts(&installed), "{family}");
                    }
                }
                for name in before.keys().chain(wanted.keys()) {
                    for family in Family::ALL {
                        let of = |parts: &Parts| {
                            let part = parts.get(name).cloned().unwrap_or_default();
                            part.into_iter().filter(|(key, _)| key.family() == family).collect::<BTreeMap<_, _>>()
                        };
                        let (old, new, is) = (of(&before), of(&wanted), of(&holds));
                        // What it had may have passed to another, which may or may not have come to have it.
                        let passed = |key| wanted.iter().any(|(other, part)| other != name && part.contains_key(key));
                        let kept = old.iter().filter(|(key, _)| is.contains_key(key) || !passed(key));
                        let kept: BTreeMap<_, _> = kept.map(|(key, part)| (*key, part.clone())).collect();
                        let whole = is == new || is == kept;
                        prop_assert!(whole, "{}: {:?}\nwas {:?}\nwanted {:?}", name, is, old, new);
                        if only_refusals && !new.keys().any(|key| refused.contains(key)) {
                            prop_assert_eq!(is, new, "{} is not refused", name);
                        }
                    }
                }
                before = holds;
                now += Duration::from_millis(700);
            }
            engine.kernel().accept_all();
            for _ in 0..20 {
                now += LONGEST_RETRY;
                engine.sync(now);
            }
            check(&mut engine, &cluster, &node_ports);
            Ok(())
        })
        .expect("every walk");
}

/// Refuses the verdict of a frontend, or its first endpoint.
fn refuse(kernel: &mut InMemoryKernel, key: &FrontendKey, endpoints: bool) {
    let by_address = matches!(key.at, FrontendAt::Address(_));
    let mut element = element_key(key);
    let set = match (by_address, endpoints) {
        (true, false) => SetName::ServiceIps,
        (false, false) => SetName::ServiceNodeports,
        (true, true) => SetName::Endpoints,
        (false, true) => SetName::NodeportEndpoints,
    };
    if endpoints {
        element.push(Value::Slot(0));
    }
    kernel.refuse(set, Some(element));
}

/// What the kernel of the machine holds is what the engine believes.
fn check_kernel(engine: &mut Engine<LinuxKernel>, cluster: &Cluster, node_ports: &NodePortAddresses) {
    let expected = cluster.expected(facts(node_ports.clone()));
    for family in Family::ALL {
        let ruleset = engine.ruleset(family);
        let installed = engine.installed(family).all_elements();
        let sets: Vec<_> = ruleset.sets.iter().map(|(def, _)| def.clone()).collect();
        let snapshot = engine.kernel().dump(family, &sets, &ruleset.chains, &|_| None).expect("a dump");
        assert_eq!(snapshot.sets.len(), sets.len(), "{:?}", snapshot.other_sets);
        assert_eq!(snapshot.chains, ruleset.chains.iter().map(|chain| chain.name).collect());
        assert!(snapshot.other_chains.is_empty() && snapshot.other_rules.is_empty(), "{snapshot:?}");
        assert!(snapshot.foreign_chains.is_empty() && snapshot.foreign_sets.is_empty(), "{snapshot:?}");
        assert!(snapshot.foreign_other.is_empty(), "{snapshot:?}");
        let mut held: Vec<(SetName, Element)> = Vec::new();
        for set in sets.iter().filter(|set| !set.dynamic) {
            let elements = engine.kernel().elements(family, set).expect("a dump");
            held.extend(elements.into_iter().map(|element| (set.name, element)));
        }
        held.sort_unstable();
        assert_eq!(held, installed, "{family}");
        assert_eq!(counted(engine, family), counts(&installed), "{family}");
        let expected = expected.installed(family).all_elements();
        assert_eq!(without_slots(&of_services(&held)), without_slots(&of_services(&expected)), "{family}");
    }
}

#[test]
fn the_machines_kernel_holds_the_same() {
    let Some(namespace) = Namespace::for_test() else { return };
    let walk = |(mut cluster, portions, node_ports): (Cluster, Vec<Vec<Change>>, NodePortAddresses)| {
        let open = || LinuxKernel::open().expect("a netlink socket");
        let mut engine = cluster.engine(open(), facts(node_ports.clone()));
        let mut now = Instant::now();
        for portion in portions {
            let report = engine.sync(now);
            prop_assert_eq!((report.failures, report.error_text()), (0, String::new()));
            check_kernel(&mut engine, &cluster, &node_ports);

            let mut again = cluster.engine(open(), facts(node_ports.clone()));
            let report = again.sync(now);
            // The rules that some Services need stay, once used, until a start finds no such Service.
            let used = |engine: &Engine<LinuxKernel>| {
                Family::ALL.map(|family| engine.frame(family).map(|it| (it.affinity, it.keeps_ports, it.extras)))
            };
            let forgotten = used(&engine) != used(&again);
            prop_assert!(forgotten || report.transactions == 0, "a restart sends nothing: {:?}", report);
            prop_assert_eq!(report.failures, 0);
            check_kernel(&mut again, &cluster, &node_ports);
            engine = again;

            portion.into_iter().for_each(|change| cluster.change(&mut engine, change));
            now += Duration::from_millis(300);
        }
        // What changed while nobody looked is all that a restart sends.
        let mut restarted = cluster.engine(open(), facts(node_ports.clone()));
        let report = restarted.sync(now);
        prop_assert_eq!(report.failures, 0);
        check_kernel(&mut restarted, &cluster, &node_ports);
        Ok(())
    };
    namespace.run(move || {
        runner(25).run(&(cluster(), changes(6), node_ports()), walk).expect("every walk");
    });
}
