//! From what is installed and what is wanted to a small, ordered transaction.

mod transaction;

pub use transaction::{Operation, Transaction};
