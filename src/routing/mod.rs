//! Where the kernel would send a packet of this network namespace, and what else it asks for on the way: interfaces,
//! routes, neighbours, and settings below `/proc/sys/net`. It looks, and changes nothing.
//!
//! * `links`: interfaces, and the addresses of this node.
//! * `route`: the route of a packet, as rtnetlink(7) tells it.

mod links;
mod route;

pub use links::{Link, links, local_addresses};
pub use route::{Hop, Question, Refusal, Route, address_type, route};
