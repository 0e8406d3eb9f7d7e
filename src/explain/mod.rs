//! `nftproxyd explain`: what becomes of a packet on this node, and why. It looks, and sends nothing, unless it is told to.
//!
//! Our own table is read back and followed by the evaluator that the tests of the policy hold to a second statement of the
//! rules; what is not ours by [`firewall`](crate::firewall) and [`routing`](crate::routing). What only the daemon knows it is
//! asked for, where it runs.
//!
//! * `question`, `facts`: the packet, and what has to be known of it. Values.
//! * `judge`: what the facts come to. Pure. `report`, `text`: that, for programs and for people. Pure.
//! * `look`: finds out the facts; of what manifests come to, without a kernel, those of our table alone.
//! * `connections`, `next_hops`: those that there are to an endpoint, and whether the next machine on the way there answers.
//! * `around`: what is around our table, on `node`. `follow`: the ways of the first packet, of its answer and of what follows.

mod around;
mod connections;
mod error;
mod facts;
mod follow;
mod judge;
mod look;
mod next_hops;
mod node;
mod question;
mod report;
#[cfg(test)]
mod tests;
mod text;

pub use error::ExplainError;
pub use look::{Informants, Question, explain};
pub use node::Place;
pub use question::Asked;
pub use report::{Cause, Effect, EndpointReport, Explanation, Reason, Stage, Verdict};
pub use text::text;
