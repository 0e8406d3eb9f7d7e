//! What the kernel should hold: the fixed frame of a family's table, and the elements of each Service in it.
//!
//! * [`types`]: tables, chains, sets, maps, rules and elements as values, in nft's words.
//! * [`names`]: the names of our sets and chains; they are part of the interface (`nft list ruleset`).
//! * [`base`]: the frame: every set, and every chain with its rules; [`extras`]: which parts of it are not always there.
//! * [`kinds`]: what is done with a connection to a frontend, as the number that its element holds.
//! * [`frontend`]: what is installed for an address and port, [`backend`] where its connections go; [`service`]: what a Service wants.
//! * [`slots`]: which endpoint is in which of a frontend's slots, by scheduler and weights; [`hash`]: how packets find theirs.
//! * [`elements`]: the elements of a frontend; [`read`]: the frontend of elements.
//! * [`counted`]: what its element has counted.
//! * [`text`]: all of it as a script for `nft -f`.
//! * [`eval`]: what a ruleset does to a packet.

pub mod backend;
pub mod base;
pub mod counted;
pub mod elements;
pub mod eval;
pub mod extras;
pub mod frontend;
pub mod hash;
pub mod kept;
pub mod kinds;
pub mod names;
mod phrases;
pub mod ranges;
pub mod read;
pub mod service;
pub mod slots;
pub mod text;
pub mod types;

use crate::model::Family;
use names::TableName;
use types::{Chain, Element, SetDef};

/// All that one family's table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The table's name.
    pub table: TableName,
    /// The table's family.
    pub family: Family,
    /// Every set and map with its elements, in the order in which they are created.
    pub sets: Vec<(SetDef, Vec<Element>)>,
    /// Every chain, in an order in which each is created before a rule refers to it.
    pub chains: Vec<Chain>,
}
