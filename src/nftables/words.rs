//! Operations in words, for whoever reads why one was refused.

use super::encode::element_words;
use crate::diff::{Operation, Transaction};
use crate::ruleset::names::{SetName, TableName};
use crate::ruleset::text;
use crate::ruleset::types::Element;

/// What an operation is about, as text; `item` is the rule or element, where it is known.
pub(super) fn words(name: TableName, transaction: &Transaction, operation: usize, item: Option<usize>) -> String {
    let count = |elements: &[Element]| match elements {
        [] => "no element".to_owned(),
        [_] => "1 element".to_owned(),
        elements => format!("one of {} elements", elements.len()),
    };
    let table = text::table(name, transaction.family);
    let object = match transaction.operations.get(operation) {
        None => return "the transaction".to_owned(),
        Some(Operation::AddTable | Operation::OwnTable | Operation::DeleteTable) => {
            return format!("table {table}");
        }
        Some(Operation::AddSet(set)) => format!("set {}", set.name),
        Some(Operation::AddChain(chain)) => format!("chain {}", chain.name),
        Some(Operation::FlushChain(chain)) => format!("chain {chain}"),
        Some(Operation::AddRules(chain)) => match item {
            Some(item) => format!("chain {}, rule {}", chain.name, item + 1),
            None => format!("chain {}, rules", chain.name),
        },
        Some(Operation::DeleteChain(chain)) => format!("chain {chain}"),
        Some(Operation::DeleteForeignChain(name)) => format!("chain {name:?}"),
        Some(Operation::DeleteForeignSet(name)) => format!("set {name:?}"),
        Some(Operation::Remember(clients)) => match item.and_then(|item| clients.get(item)) {
            Some(kept) => element_words(SetName::Affinity, &kept.element()),
            None => format!("{}, one of {} clients", SetName::Affinity, clients.len()),
        },
        Some(Operation::AddElements(set, elements) | Operation::DeleteElements(set, elements)) => {
            match item.and_then(|item| elements.get(item)) {
                Some(element) => element_words(*set, element),
                None => format!("{set}, {}", count(elements)),
            }
        }
    };
    format!("table {table}, {object}")
}
