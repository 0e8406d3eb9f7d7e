//! What the kernel should hold: the fixed frame of a family's table, and the elements of each Service in it.
//!
//! * [`types`]: tables, chains, sets, maps, rules and elements as values, in nft's words.
//! * [`names`]: the names of our sets and chains; they are part of the interface (`nft list ruleset`).

pub mod names;
pub mod types;
