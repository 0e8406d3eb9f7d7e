//! A transaction: what is sent to the kernel as one atomic batch.

use std::collections::BTreeMap;

use crate::model::Family;
use crate::ruleset::kept::Kept;
use crate::ruleset::names::{ChainName, SetName};
use crate::ruleset::types::{Chain, Element, SetDef};

/// Operations on one family's table, applied in order, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Whose table.
    pub family: Family,
    /// In order; an object is created before it is referred to.
    pub operations: Vec<Operation>,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Creates our table. If it is there only its flags become none: one that is dormant wakes, and gets no base chains
    /// more in the same transaction; flags that cannot be cleared are an error.
    AddTable,
    /// Creates our table as one that only the socket may change that this is sent by, and that outlives it (flags `owner`
    /// and `persist`, Linux 6.9). One that has outlived its owner is adopted; any other that is there is an error.
    OwnTable,
    /// Deletes our table with all that is in it.
    DeleteTable,
    /// Creates a set or map.
    AddSet(SetDef),
    /// Creates a chain without its rules, if it is not there.
    AddChain(Chain),
    /// Appends all rules of the chain.
    AddRules(Chain),
    /// Deletes all rules of a chain.
    FlushChain(ChainName),
    /// Deletes a chain of ours, with its rules.
    DeleteChain(ChainName),
    /// Deletes a chain that is not ours, with its rules, by name.
    DeleteForeignChain(String),
    /// Deletes a set that is not ours, by name.
    DeleteForeignSet(String),
    /// Adds elements. One that is there with other data is an error: it has to be deleted first.
    AddElements(SetName, Vec<Element>),
    /// Deletes elements by key (and end of interval); one that is not there is an error.
    DeleteElements(SetName, Vec<Element>),
    /// Adds clients to the map `affinity` that have been remembered for a while.
    Remember(Vec<Kept>),
}

impl Transaction {
    /// An empty transaction.
    pub fn new(family: Family) -> Self {
        Transaction { family, operations: Vec::new() }
    }

    /// Appends one operation for each set that these elements are of.
    pub fn elements(
        &mut self,
        operation: fn(SetName, Vec<Element>) -> Operation,
        elements: impl IntoIterator<Item = (SetName, Element)>,
    ) {
        let mut by_set: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
        for (set, element) in elements {
            by_set.entry(set).or_default().push(element);
        }
        self.operations.extend(by_set.into_iter().map(|(set, elements)| operation(set, elements)));
    }

    /// The number of kernel objects that it creates or deletes: elements, rules, chains, sets and tables.
    pub fn len(&self) -> usize {
        self.operations.iter().map(Operation::len).sum()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }
}

impl Operation {
    /// The number of kernel objects that this step creates or deletes.
    pub fn len(&self) -> usize {
        match self {
            Operation::AddElements(_, elements) | Operation::DeleteElements(_, elements) => elements.len(),
            Operation::AddRules(chain) => chain.rules.len(),
            Operation::Remember(clients) => clients.len(),
            _ => 1,
        }
    }

    /// Whether it does nothing (a list of elements or rules that is empty).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
