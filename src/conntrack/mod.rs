//! Stale flows: what connection tracking still sends to an endpoint that does not serve any more, or to none.
//!
//! The rules choose an endpoint for the first packet of a flow only; the kernel's connection tracking sends the rest
//! the same way. A TCP client of an endpoint that is gone gets an error and connects anew, as a rule. A UDP client that keeps
//! using one socket (a resolver, for instance) gets nothing, and each of its packets prolongs the entry. So these
//! entries are deleted once the rules have changed; the next packet is a first packet again.
//!
//! A connection of TCP or SCTP whose first packet met no rules, because the tables were not there yet or somebody had
//! flushed them, goes nowhere, and each repetition of that packet follows it. These entries are deleted, too, when the
//! rules are in place.
//!
//! A TCP client of a dead node gets no error, and waits for many minutes. Where a Service asks for it, the entries of its
//! connections to endpoints that are gone are deleted too; see `gone`.
//!
//! * [`plan`](Frontends): which entries are stale. Pure.
//! * [`gone`](Resets): which connections lead to an endpoint that is gone. Pure.
//! * [`open`](Open): how many connections are open, which is asked for by Services that are shared by that. Pure.
//! * [`ended`](Accounts): whose the connections were that have ended. Pure.
//! * [`netlink`](Conntrack): lists, counts and deletes entries. I/O.
//! * [`worker`](Worker): does it on a thread of its own, so that a large table of connections delays no rule.

mod ended;
mod gone;
mod netlink;
mod open;
mod plan;
mod worker;

pub use ended::{Account, Accounts, Ended, Forgotten, KEPT, MOST_KEPT, Traffic};
pub use gone::{Listed, Resets};
pub use netlink::{Conntrack, Ends, Flows, FlowsError, Look, Swept};
pub use open::{Counted, Open, PERIOD, period};
pub use plan::{Flow, Frontends, Rule, Tuple, Zones, gone, stale, stranded};
pub use worker::{Sweep, Worker};
