//! From what is installed and what is wanted to a small, ordered transaction.
//!
//! * [`Installed`] is what one family's table holds, as far as it concerns Services.
//! * A [`Stage`] collects what Services want; [`Stage::transaction`] is the difference, [`Stage::commit`] makes it the
//!   installed state once the kernel has it.
//! * [`recover`] makes an [`Installed`] of the elements that the kernel has.
//!
//! Nothing here is proportional to the number of Services, only to what is staged.

mod counters;
mod installed;
mod recover;
mod stage;
mod text;
mod transaction;
mod turns;

pub use installed::{FrontendCounts, Installed};
pub use recover::{Recovered, recover};
pub use stage::Stage;
pub use transaction::{Operation, Transaction};

#[cfg(test)]
mod tests;
