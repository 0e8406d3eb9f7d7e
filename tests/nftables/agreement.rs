//! The kernel in memory and the real one say the same to any transaction, and hold the same afterwards.

use std::cell::Cell;
use std::collections::BTreeMap;

use nftproxyd::diff::{Operation, Transaction};
use nftproxyd::model::Family;
use nftproxyd::nftables::in_memory::InMemoryKernel;
use nftproxyd::nftables::{CommitError, Kernel, LinuxKernel, Snapshot, table_flag};
use nftproxyd::ruleset::names::{ChainName, SetName};
use nftproxyd::ruleset::types::{Chain, Data, Element, Key, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::frame;
use crate::netns::{in_namespace, try_nft as nft};
use crate::properties::replayed;

/// A small world, so that the same names meet often.
fn chains() -> Vec<Chain> {
    let all = frame::chains(Family::V4);
    let names = [ChainName::RejectIt, ChainName::Pick(frame::pick(2)), ChainName::Unserved, ChainName::Services];
    all.into_iter().filter(|chain| names.contains(&chain.name) || chain.name == ChainName::NatOutput).collect()
}

fn operation() -> impl Strategy<Value = Operation> {
    let set = || {
        let names = [
            SetName::ServiceIps,
            SetName::ServiceNodeports,
            SetName::ClusterIps,
            SetName::NodeportIps,
            SetName::Endpoints,
        ];
        prop::sample::select(frame::sets().into_iter().filter(|set| names.contains(&set.name)).collect::<Vec<_>>())
    };
    let chain = || prop::sample::select(chains());
    let element = || {
        let target = prop::sample::select(vec![
            Verdict::Drop,
            Verdict::Goto(ChainName::RejectIt),
            Verdict::Goto(ChainName::Pick(frame::pick(2))),
            Verdict::Goto(ChainName::NatOutput),
        ]);
        (0..4_u32, target).prop_map(|(n, verdict)| frame::service(Family::V4, n, verdict))
    };
    let elements = || prop::collection::vec(element(), 0..4);
    let addresses = || {
        prop::collection::vec(
            (0..4_u32).prop_map(|n| Element {
                key: Key::from_slice(&[frame::address(Family::V4, 96, n)]),
                key_end: None,
                data: Data::None,
                comment: None,
            }),
            0..4,
        )
    };
    prop_oneof![
        1 => Just(Operation::AddTable),
        1 => Just(Operation::DeleteTable),
        4 => set().prop_map(Operation::AddSet),
        6 => chain().prop_map(Operation::AddChain),
        4 => chain().prop_map(Operation::AddRules),
        2 => chain().prop_map(|chain| Operation::FlushChain(chain.name)),
        2 => chain().prop_map(|chain| Operation::DeleteForeignChain(chain.name.to_string())),
        2 => set().prop_map(|set| Operation::DeleteForeignSet(set.name.to_string())),
        8 => elements().prop_map(|elements| Operation::AddElements(SetName::ServiceIps, elements)),
        3 => elements().prop_map(|elements| Operation::DeleteElements(SetName::ServiceIps, elements)),
        3 => addresses().prop_map(|elements| Operation::AddElements(SetName::ClusterIps, elements)),
        2 => addresses().prop_map(|elements| Operation::DeleteElements(SetName::ClusterIps, elements)),
    ]
}

/// What a commit came to: the operation that was refused, if one was.
fn outcome(result: Result<nftproxyd::nftables::Committed, CommitError>) -> Option<usize> {
    match result {
        Ok(_) => None,
        Err(CommitError::Refused { operation, .. }) => Some(operation),
        Err(other) => panic!("{other}"),
    }
}

/// Everything that a kernel tells about a table.
fn everything(kernel: &mut dyn Kernel, family: Family) -> (Snapshot, BTreeMap<SetName, Vec<Element>>) {
    let sets = frame::sets();
    let snapshot = kernel.dump(family, &sets, &chains(), &|_| None).expect("a dump");
    let mut elements = BTreeMap::new();
    for set in sets.iter().filter(|set| !set.dynamic && snapshot.sets.contains(&set.name)) {
        let mut of_set = kernel.elements(family, set).expect("the elements");
        of_set.sort();
        elements.insert(set.name, of_set);
    }
    (snapshot, elements)
}

#[test]
fn the_kernel_in_memory_behaves_like_the_real_one() {
    in_namespace(|| {
        let mut runner = TestRunner::new(replayed(Config::with_cases(100), file!()));
        let (applied, refused) = (Cell::new(0), Cell::new(0));
        let transactions = prop::collection::vec(prop::collection::vec(operation(), 1..6), 1..12);
        runner
            .run(&(transactions, any::<bool>(), prop::num::u8::ANY), |(transactions, furnished, sleeps)| {
                let family = Family::V4;
                let (mut in_memory, mut real) = (InMemoryKernel::new(), LinuxKernel::open().expect("a netlink socket"));
                let start = Transaction { family, operations: vec![Operation::AddTable, Operation::DeleteTable] };
                real.commit(&start).expect("an empty kernel");
                if furnished {
                    let mut operations = vec![Operation::AddTable];
                    operations.extend(frame::sets().into_iter().map(Operation::AddSet));
                    operations.extend(chains().into_iter().map(Operation::AddChain));
                    let transaction = Transaction { family, operations };
                    in_memory.commit(&transaction).expect("the kernel in memory takes it");
                    real.commit(&transaction).expect("the kernel takes it");
                }
                for (position, operations) in transactions.into_iter().enumerate() {
                    if (sleeps >> (position % 8)) & 1 == 1 && in_memory.has_table(family) {
                        nft(&["-f", "-"], "add table ip nftproxyd { flags dormant; }").expect("anybody may do that");
                        in_memory.set_flags(family, table_flag::DORMANT);
                    }
                    let transaction = Transaction { family, operations };
                    let expected = outcome(in_memory.commit(&transaction));
                    let count = if expected.is_none() { &applied } else { &refused };
                    count.set(count.get() + 1);
                    prop_assert_eq!(outcome(real.commit(&transaction)), expected, "{:#?}", transaction);
                    prop_assert_eq!(
                        everything(&mut real, family),
                        everything(&mut in_memory, family),
                        "{:#?}",
                        transaction
                    );
                }
                Ok(())
            })
            .expect("the same everywhere");
        assert!(applied.get() > 50 && refused.get() > 50, "{applied:?} applied, {refused:?} refused");
    });
}
