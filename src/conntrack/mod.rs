//! Stale UDP flows: what connection tracking still sends to an endpoint that does not serve any more.
//!
//! The rules choose an endpoint for the first packet of a flow only; the kernel's connection tracking sends the rest
//! the same way. A TCP client of an endpoint that is gone gets an error and connects anew. A UDP client that keeps
//! using one socket (a resolver, for instance) gets nothing, and each of its packets prolongs the entry. So these
//! entries are deleted once the rules have changed; the next packet is a first packet again.
//!
//! * [`plan`](Frontends): which entries are stale. Pure.
//! * [`netlink`](Conntrack): lists and deletes entries. I/O.
//! * [`worker`](Worker): does it on a thread of its own, so that a large table of connections delays no rule.

mod netlink;
mod plan;
mod worker;

pub use netlink::{Conntrack, Flows, FlowsError, Swept};
pub use plan::{Flow, Frontends, Rule, Tuple, Zones, stale};
pub use worker::{Sweep, Worker};
