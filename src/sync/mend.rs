//! What makes the frame of a table that was read back the wanted one.

use std::collections::BTreeSet;

use crate::diff::{Operation, Transaction};
use crate::model::Family;
use crate::nftables::{Snapshot, table_flag};
use crate::ruleset::base::Frame;
use crate::ruleset::names::ChainName;
use crate::ruleset::types::Chain;

/// Whether parts of the table can only be changed along with the table: that it is to be `owned`, too, or not.
pub(super) fn must_be_replaced(frame: &Frame, snapshot: &Snapshot, owned: bool) -> bool {
    let there = |name| snapshot.chains.contains(name) || snapshot.other_rules.contains(name);
    let right_flags = match snapshot.table_flags {
        _ if !snapshot.table => true,
        flags if owned => flags == table_flag::OWNED,
        0 => true,
        // A transaction that wakes a table cannot give it a base chain.
        table_flag::DORMANT => frame.chains.iter().all(|chain| chain.hook.is_none() || there(&chain.name)),
        _ => false,
    };
    !right_flags
        || !snapshot.other_sets.is_empty()
        || !snapshot.other_chains.is_empty()
        || !snapshot.foreign_other.is_empty()
}

/// The table with nothing but this frame, in place of the one `before`.
pub(super) fn new_table(family: Family, frame: &Frame, before: &Snapshot, owned: bool) -> Transaction {
    let mut transaction = Transaction::new(family);
    // Only what is there can be deleted; but to add a table that has flags is to clear them, which may be refused.
    if before.table_flags == 0 {
        transaction.operations.push(Operation::AddTable);
    }
    transaction.operations.push(Operation::DeleteTable);
    transaction
        .operations
        .extend(frame_repairs(family, frame, &Snapshot::default(), &BTreeSet::new(), |_| None, owned).operations);
    transaction.elements(Operation::AddElements, frame.elements.iter().cloned());
    transaction
}

/// What makes the frame of a table that holds `snapshot` the wanted one. `lost` are chains made on demand that are needed and
/// not there, those that others hand over to first.
pub(super) fn frame_repairs(
    family: Family,
    frame: &Frame,
    snapshot: &Snapshot,
    lost: &BTreeSet<ChainName>,
    on_demand: impl Fn(ChainName) -> Option<Chain>,
    owned: bool,
) -> Transaction {
    let mut transaction = Transaction::new(family);
    let operations = &mut transaction.operations;
    if !snapshot.table || snapshot.table_flags == table_flag::DORMANT {
        operations.push(if owned { Operation::OwnTable } else { Operation::AddTable });
    }
    let missing_sets = frame.sets.iter().filter(|set| !snapshot.sets.contains(&set.name));
    operations.extend(missing_sets.cloned().map(Operation::AddSet));
    let known = |chain: &ChainName| snapshot.chains.contains(chain) || snapshot.other_rules.contains(chain);
    let missing: Vec<&Chain> = frame.chains.iter().filter(|chain| !known(&chain.name)).collect();
    operations.extend(missing.iter().map(|chain| Operation::AddChain((*chain).clone())));
    operations.extend(
        missing.iter().filter(|chain| !chain.rules.is_empty()).map(|chain| Operation::AddRules((*chain).clone())),
    );
    for chain in lost.iter().filter_map(|name| on_demand(*name)) {
        operations.extend([Operation::AddChain(chain.clone()), Operation::AddRules(chain)]);
    }
    for name in &snapshot.other_rules {
        let chain = frame.chains.iter().find(|chain| chain.name == *name).cloned().or_else(|| on_demand(*name));
        operations.push(Operation::FlushChain(*name));
        operations.extend(chain.filter(|chain| !chain.rules.is_empty()).map(Operation::AddRules));
    }
    operations.extend(snapshot.foreign_chains.iter().cloned().map(Operation::DeleteForeignChain));
    operations.extend(snapshot.foreign_sets.iter().cloned().map(Operation::DeleteForeignSet));
    transaction
}
