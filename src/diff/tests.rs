//! Properties of the difference: whatever the way there, the table ends up as it should.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::{FrontendCounts, Installed, Operation, Recovered, Stage, Transaction};
use crate::model::{Family, FrontendAt, FrontendKey, ObjectName, Protocol, TrafficPolicy};
use crate::ruleset::backend::Backend;
use crate::ruleset::elements::dispatch_elements;
use crate::ruleset::frontend::{Action, Frontend, Shared};
use crate::ruleset::kinds::Kind;
use crate::ruleset::names::{By, ChainName, Masquerade, Pick, SetName};
use crate::ruleset::ranges::Range;
use crate::ruleset::read::Contents;
use crate::ruleset::service::ServicePart;
use crate::ruleset::slots::{Slots, arrange};
use crate::ruleset::types::{Chain, Data, Element, Key, Value, Verdict};

/// A table as the kernel would keep it: refuses what the kernel refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    elements: BTreeMap<(SetName, Vec<u8>), Element>,
    chains: BTreeSet<ChainName>,
}

impl Table {
    fn apply(&mut self, transaction: &Transaction) {
        for operation in &transaction.operations {
            match operation {
                Operation::AddChain(chain) => assert!(self.chains.insert(chain.name), "{} is there", chain.name),
                Operation::AddRules(chain) => assert!(self.chains.contains(&chain.name)),
                Operation::AddElements(set, elements) => elements.iter().for_each(|element| self.add(*set, element)),
                Operation::DeleteElements(set, elements) => {
                    for element in elements {
                        assert!(self.elements.remove(&key(*set, element)).is_some(), "{set}: {element:?} is not there");
                    }
                }
                other => panic!("{other:?} does not belong to a change of Services"),
            }
        }
    }

    fn add(&mut self, set: SetName, element: &Element) {
        if let Data::Verdict(Verdict::Goto(chain @ (ChainName::Pick(_) | ChainName::RememberFor(_)))) = element.data {
            assert!(self.chains.contains(&chain), "{chain} is not there");
        }
        assert!(self.elements.insert(key(set, element), element.clone()).is_none(), "{set}: {element:?} is there");
    }

    fn sorted(&self) -> Vec<(SetName, Element)> {
        let mut all: Vec<_> = self.elements.iter().map(|((set, _), element)| (*set, element.clone())).collect();
        all.extend(fixed());
        all.sort_unstable();
        all
    }
}

/// The elements of the frame.
fn fixed() -> impl Iterator<Item = (SetName, Element)> {
    Kind::fixed().into_iter().flat_map(dispatch_elements)
}

fn key(set: SetName, element: &Element) -> (SetName, Vec<u8>) {
    (set, format!("{:?}{:?}", element.key, element.key_end).into_bytes())
}

fn chain(name: ChainName) -> Option<Chain> {
    Some(Chain { name, hook: None, rules: Vec::new() })
}

/// Stages these Services on top of what is installed and applies the transaction to the table.
fn step(installed: &mut Installed, table: &mut Table, wanted: &[(ObjectName, ServicePart)]) {
    let mut stage = Stage::default();
    for (name, wanted) in wanted {
        stage.service(installed, name, wanted.clone());
    }
    let transaction = stage.transaction(Family::V4, installed, chain);
    table.apply(&transaction);
    stage.commit(installed, &transaction);
    assert_eq!(installed.frontend_counts(), recount(installed));
}

/// What the frontends do, one by one.
fn recount(installed: &Installed) -> FrontendCounts {
    let mut counts = FrontendCounts::default();
    for (_, frontend) in installed.frontends() {
        *match frontend.action {
            Action::Reject => &mut counts.refused,
            Action::Drop => &mut counts.dropped,
            Action::Forward { .. } | Action::Split { .. } => &mut counts.served,
        } += 1;
    }
    counts
}

/// Deletes the chains that nobody uses.
fn tidy(installed: &mut Installed, table: &mut Table) {
    let idle: Vec<ChainName> = installed.idle().iter().copied().collect();
    for (set, element) in idle.iter().filter_map(|name| Kind::of_chain(*name)).flat_map(dispatch_elements) {
        assert!(table.elements.remove(&key(set, &element)).is_some(), "{set}: {element:?} is not there");
    }
    idle.iter().for_each(|name| assert!(table.chains.remove(name)));
    installed.chains_deleted(&idle);
}

/// What a table with these elements, read in this order, says is installed.
fn recover(
    family: Family,
    elements: impl IntoIterator<Item = (SetName, Element)>,
    chains: impl IntoIterator<Item = ChainName>,
) -> (Installed, Vec<(SetName, Element)>) {
    let mut contents = Contents::new(family);
    elements.into_iter().for_each(|(set, element)| contents.element(set, element));
    let Recovered { installed, unknown, .. } = super::recover(contents, chains, BTreeSet::new(), |_| None);
    assert_eq!(installed.frontend_counts(), recount(&installed));
    (installed, unknown)
}

/// The same for a table, which gets the verdicts that it lacks.
fn recover_table(table: &mut Table) -> Installed {
    let mut contents = Contents::new(Family::V4);
    table.sorted().into_iter().for_each(|(set, element)| contents.element(set, element));
    let found = super::recover(contents, table.chains.iter().copied(), BTreeSet::new(), |_| None);
    found.missing.iter().for_each(|(set, element)| table.add(*set, element));
    found.installed
}

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn backend(last: u8) -> Backend {
    Backend { address: address(last), port: NonZeroU16::MIN }
}

/// No turns: who has which counter depends on what was before.
fn slots(minimum: usize) -> impl Strategy<Value = Slots> {
    let by = prop_oneof![Just(By::Random), Just(By::SourceAndPort), Just(By::Maglev)];
    let list = prop::collection::btree_set(0u8..8, minimum..5);
    (by, list).prop_map(|(by, set)| Slots { by, list: set.into_iter().map(backend).collect() })
}

fn action() -> impl Strategy<Value = Action> {
    let masquerade = prop_oneof![Just(Masquerade::Never), Just(Masquerade::FromOutside), Just(Masquerade::Always)];
    let policy = prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let affinity = prop::option::of(1u32..3);
    prop_oneof![
        Just(Action::Reject),
        Just(Action::Drop),
        (policy, masquerade, affinity.clone(), slots(1))
            .prop_map(|(policy, masquerade, affinity, slots)| Action::Forward { policy, masquerade, affinity, slots }),
        (affinity, slots(1), slots(0)).prop_map(|(affinity, cluster, local)| Action::Split {
            affinity,
            cluster,
            local
        }),
    ]
}

fn frontend_key() -> impl Strategy<Value = FrontendKey> {
    let at = prop_oneof![
        (0u8..4).prop_map(|last| FrontendAt::Address(address(last))),
        Just(FrontendAt::NodePort(Family::V4))
    ];
    let port = (1u16..3).prop_filter_map("a port", NonZeroU16::new);
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (at, protocol, port).prop_map(|(at, protocol, port)| FrontendKey { at, protocol, port })
}

fn sources() -> impl Strategy<Value = Option<Box<[Range]>>> {
    prop::option::of(prop::collection::btree_set(0u8..4, 1..3).prop_map(|set| {
        set.into_iter().map(|last| Range { first: address(last * 8), last: address(last * 8 + 3) }).collect()
    }))
}

/// What some Services want of one table. The claims make sure that each frontend belongs to one of them only.
fn cluster() -> impl Strategy<Value = Vec<(ObjectName, ServicePart)>> {
    let frontends = prop::collection::btree_map(frontend_key(), (0usize..3, action(), sources(), 0u8..2), 0..10);
    let shared = prop::collection::vec(prop::collection::btree_set(0u8..4, 0..3), 3);
    (frontends, shared).prop_map(|(frontends, shared)| {
        let mut services: Vec<(ObjectName, ServicePart)> = (0..3)
            .map(|index| (ObjectName::new("shop", &format!("s{index}")).expect("a name"), ServicePart::default()))
            .collect();
        for (key, (index, action, allowed_sources, port)) in frontends {
            let (name, wanted) = &mut services[index];
            let port_name = if port == 0 { "" } else { "http" }.into();
            let frontend = Frontend { service: name.clone(), port_name, action, allowed_sources };
            wanted.frontends.push((key, frontend));
        }
        for ((_, wanted), shared) in services.iter_mut().zip(shared) {
            let one = |last| if last < 2 { Shared::ClusterIp(address(last)) } else { Shared::Hairpin(address(last)) };
            wanted.shared = shared.into_iter().map(one).collect();
            wanted.shared.sort_unstable();
        }
        services
    })
}

/// An element of any shape, that may or may not belong to a frontend.
fn any_element() -> impl Strategy<Value = (SetName, Element)> {
    let sets: Vec<SetName> = SetName::ALL.into_iter().filter(|set| *set != SetName::Affinity).collect();
    let value = || {
        prop_oneof![
            (1u8..3).prop_map(|last| Value::Address(address(last))),
            Just(Value::Protocol(Protocol::Tcp)),
            (0u16..2).prop_map(Value::Port),
            (0u32..2).prop_map(Value::Slot),
        ]
    };
    let frontend = |at: u8| vec![Value::Address(address(at)), Value::Protocol(Protocol::Tcp), Value::Port(1)];
    let key = (prop_oneof![(1u8..3).prop_map(frontend), Just(vec![])], 0usize..2, prop::collection::vec(value(), 0..2))
        .prop_map(|(key, from, more)| key.into_iter().skip(from).chain(more).collect::<Key>());
    let verdict = prop_oneof![Just(Verdict::Drop), Just(Verdict::Goto(ChainName::RejectIt))];
    let data = prop_oneof![
        Just(Data::None),
        verdict.prop_map(Data::Verdict),
        prop::collection::vec(value(), 1..3).prop_map(|values| Data::Values(values.into_iter().collect())),
        Just(Data::Values([Value::Address(address(9)), Value::Port(9)].into_iter().collect())),
    ];
    let comment = prop::option::of(prop::sample::select(vec!["shop/web:http", "odd"]));
    let key = key.prop_filter("a key", |key| !key.is_empty());
    (prop::sample::select(sets), key.clone(), prop::option::weighted(0.2, key), data, comment).prop_map(
        |(set, key, key_end, data, comment)| (set, Element { key, key_end, data, comment: comment.map(Into::into) }),
    )
}

fn fresh(wanted: &[(ObjectName, ServicePart)]) -> Vec<(SetName, Element)> {
    let (mut installed, mut table) = (Installed::default(), Table::default());
    step(&mut installed, &mut table, wanted);
    table.sorted()
}

proptest! {
    #![proptest_config(crate::testing::replayed(ProptestConfig::default(), file!()))]

    #[test]
    fn any_way_leads_to_the_same_table(states in prop::collection::vec(cluster(), 1..5), apart in any::<bool>(), reversed in any::<bool>()) {
        let (mut installed, mut table) = (Installed::default(), Table::default());
        for mut state in states {
            let expected = fresh(&state);
            if reversed {
                state.reverse();
            }
            if apart {
                // A frontend must be given up before another Service can have it, unless both go together.
                let gone: Vec<_> = state.iter().map(|(name, _)| (name.clone(), ServicePart::default())).collect();
                for one in &gone {
                    step(&mut installed, &mut table, std::slice::from_ref(one));
                }
                for one in &state {
                    step(&mut installed, &mut table, std::slice::from_ref(one));
                }
            } else {
                step(&mut installed, &mut table, &state);
            }
            tidy(&mut installed, &mut table);
            prop_assert_eq!(&table.sorted(), &expected);
            prop_assert_eq!(&installed.all_elements(), &expected);
            step(&mut installed, &mut table, &state);
            let mut stage = Stage::default();
            state.iter().for_each(|(name, wanted)| stage.service(&installed, name, wanted.clone()));
            prop_assert!(stage.transaction(Family::V4, &installed, chain).is_empty(), "a second time costs nothing");
        }
    }

    #[test]
    fn a_frontend_may_change_hands_in_any_order(first in cluster(), second in cluster(), order in Just([0usize, 1, 2]).prop_shuffle()) {
        let (mut installed, mut table) = (Installed::default(), Table::default());
        step(&mut installed, &mut table, &first);
        for index in order {
            step(&mut installed, &mut table, std::slice::from_ref(&second[index]));
        }
        tidy(&mut installed, &mut table);
        prop_assert_eq!(table.sorted(), fresh(&second));
    }

    #[test]
    fn what_was_installed_is_read_back(state in cluster(), later in cluster()) {
        let (mut installed, mut table) = (Installed::default(), Table::default());
        step(&mut installed, &mut table, &state);
        // A dump may show elements twice.
        let twice = table.sorted().into_iter().chain(table.sorted());
        let (mut found, unknown) = recover(Family::V4, twice, table.chains.iter().copied());
        prop_assert_eq!(unknown, vec![]);
        prop_assert_eq!(found.all_elements(), table.sorted());
        step(&mut found, &mut table, &later);
        let gone: Vec<ObjectName> = found.services().filter(|name| !later.iter().any(|(other, _)| other == *name)).cloned().collect();
        let gone: Vec<_> = gone.into_iter().map(|name| (name, ServicePart::default())).collect();
        step(&mut found, &mut table, &gone);
        let mut stage = Stage::default();
        stage.unclaimed(&found, &[]);
        let transaction = stage.transaction(Family::V4, &found, chain);
        table.apply(&transaction);
        stage.commit(&mut found, &transaction);
        tidy(&mut found, &mut table);
        prop_assert_eq!(table.sorted(), fresh(&later));
        prop_assert!(!found.has_unclaimed());
    }

    #[test]
    fn a_set_that_is_read_again_leaves_no_trace(before in cluster(), state in cluster(), set in prop::sample::select(SetName::ALL.to_vec())) {
        let elements = fresh(&state);
        let (all, _) = recover(Family::V4, elements.clone(), []);
        let (others, _) = recover(Family::V4, elements.iter().filter(|(other, _)| *other != set).cloned(), []);
        let mut contents = Contents::new(Family::V4);
        for (_, element) in fresh(&before).into_iter().filter(|(other, _)| *other == set) {
            contents.element(set, element);
        }
        contents.forget(set);
        elements.iter().for_each(|(set, element)| contents.element(*set, element.clone()));
        prop_assert_eq!(super::recover(contents, [], BTreeSet::new(), |_| None).installed, all);

        let mut contents = Contents::new(Family::V4);
        elements.into_iter().for_each(|(set, element)| contents.element(set, element));
        contents.forget(set);
        prop_assert_eq!(super::recover(contents, [], BTreeSet::new(), |_| None).installed, others);
    }

    #[test]
    fn no_element_is_lost(elements in prop::collection::vec(any_element(), 0..12)) {
        let (installed, unknown) = recover(Family::V4, elements.clone(), []);
        let mut found = installed.all_elements();
        found.extend(unknown);
        found.sort_unstable();
        found.dedup();
        let mut expected = elements;
        expected.extend(fixed());
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_table_is_mended(state in cluster(), lost in prop::collection::btree_set(0usize..40, 0..6), added in prop::collection::vec((frontend_key(), 0u32..9), 0..3)) {
        let (mut installed, mut table) = (Installed::default(), Table::default());
        step(&mut installed, &mut table, &state);
        let expected = table.sorted();
        for index in lost {
            if let Some((set, element)) = expected.get(index) {
                table.elements.remove(&key(*set, element));
            }
        }
        for (frontend, slot) in added {
            let mut element = expected.first().map(|(_, element)| element.clone()).unwrap_or(Element {
                key: Default::default(), key_end: None, data: Data::None, comment: None,
            });
            element.key = crate::ruleset::elements::element_key(&frontend);
            element.key.push(Value::Slot(slot));
            element.key_end = None;
            let set = if matches!(frontend.at, FrontendAt::NodePort(_)) { SetName::NodeportEndpoints } else { SetName::Endpoints };
            element.data = Data::Values([Value::Address(address(99)), Value::Port(9)].into_iter().collect());
            element.comment = None;
            table.elements.insert(key(set, &element), element);
        }
        let mut found = recover_table(&mut table);
        step(&mut found, &mut table, &state);
        let mut stage = Stage::default();
        stage.unclaimed(&found, &[]);
        let transaction = stage.transaction(Family::V4, &found, chain);
        table.apply(&transaction);
        stage.commit(&mut found, &transaction);
        tidy(&mut found, &mut table);
        prop_assert_eq!(table.sorted(), expected);
    }

    #[test]
    fn arranged_slots_hold_the_wanted_endpoints(installed in prop::collection::vec(0u8..12, 0..8), wanted in prop::collection::btree_set(0u8..12, 0..8)) {
        let installed: Vec<Backend> = installed.into_iter().map(backend).collect();
        let wanted: Vec<Backend> = wanted.into_iter().map(backend).collect();
        let slots = arrange(&installed, &wanted);
        let mut sorted = slots.to_vec();
        sorted.sort_unstable();
        prop_assert_eq!(&sorted, &wanted);
        // Those that could stay did: every endpoint whose (first) installed slot still exists.
        for (slot, backend) in installed.iter().enumerate().take(wanted.len()) {
            let first = installed.iter().position(|other| other == backend) == Some(slot);
            if first && wanted.contains(backend) {
                prop_assert_eq!(slots[slot], *backend);
            }
        }
    }
}

#[test]
fn removing_one_of_many_endpoints_changes_a_handful_of_elements() {
    let name = ObjectName::new("shop", "web").expect("a name");
    let key = FrontendKey { at: FrontendAt::Address(address(1)), protocol: Protocol::Tcp, port: NonZeroU16::MIN };
    let many: Vec<Backend> =
        (1..=250).map(|port| Backend { address: address(9), port: NonZeroU16::MIN.saturating_add(port) }).collect();
    let wanted = |slots: &[Backend]| ServicePart {
        frontends: vec![(
            key,
            Frontend {
                service: name.clone(),
                port_name: "http".into(),
                action: Action::Forward {
                    policy: TrafficPolicy::Cluster,
                    masquerade: Masquerade::Always,
                    affinity: None,
                    slots: slots.into(),
                },
                allowed_sources: None,
            },
        )],
        shared: vec![],
        ..ServicePart::default()
    };
    let (mut installed, mut table) = (Installed::default(), Table::default());
    step(&mut installed, &mut table, &[(name.clone(), wanted(&many))]);
    let mut fewer = many.clone();
    fewer.remove(17);
    let mut stage = Stage::default();
    stage.service(&installed, &name, wanted(&arrange(&many, &fewer)));
    let transaction = stage.transaction(Family::V4, &installed, chain);
    table.apply(&transaction);
    // The kind and slot 17 rewritten; the last slot gone; and the two verdicts of a kind that is new.
    let elements = transaction
        .operations
        .iter()
        .filter(|operation| matches!(operation, Operation::AddElements(..) | Operation::DeleteElements(..)));
    assert_eq!(elements.map(Operation::len).sum::<usize>(), 7);
}

#[test]
fn chains_that_are_always_there_are_no_idle_ones() {
    // As where a table is made anew, in one transaction with all that it holds.
    let mut transaction = Transaction::new(Family::V4);
    let chains = ChainName::FIXED.into_iter().map(|name| Chain { name, hook: None, rules: Vec::new() });
    transaction.operations.extend(chains.map(Operation::AddChain));
    let mut installed = Installed::with_common(BTreeSet::new());
    Stage::default().commit(&mut installed, &transaction);
    // The frame changes.
    installed.set_common(BTreeSet::new());
    assert_eq!((installed.chains().count(), installed.idle().len()), (0, 0));
    let mut elements = installed.all_elements();
    elements.dedup();
    assert_eq!(elements, installed.all_elements(), "what is done with each kind is there once");
}

#[test]
fn a_chain_is_made_again_that_only_damaged_frontends_lead_to() {
    let pick =
        Pick { nodeport: true, masquerade: Masquerade::Never, sticky: false, local: true, by: By::Random, slots: 2 };
    let chain = ChainName::Pick(pick);
    // Others have deleted the chain, what leads to it, and the entry of a frontend of which this is left.
    let left = |port| {
        let key: Key = [Value::Protocol(Protocol::Tcp), Value::Port(port)].into_iter().collect();
        Element { key, key_end: None, data: Kind::Pick(pick).data(), comment: None }
    };
    let mut contents = Contents::new(Family::V4);
    contents.element(SetName::NodeportLocalPolicy, left(30_017));
    let Recovered { mut installed, lost, .. } = super::recover(contents, [], BTreeSet::new(), |_| None);
    assert_eq!(lost, BTreeSet::from([chain]));
    assert!(installed.idle().is_empty());
    // Another frontend comes to use it, and then what was left goes: it is in use as before.
    let operation = |make: fn(SetName, Vec<Element>) -> Operation, port| Transaction {
        family: Family::V4,
        operations: vec![make(SetName::NodeportLocalPolicy, vec![left(port)])],
    };
    Stage::default().commit(&mut installed, &operation(Operation::AddElements, 30_016));
    Stage::default().commit(&mut installed, &operation(Operation::DeleteElements, 30_017));
    assert!(installed.idle().is_empty(), "{:?}", installed.idle());
}
