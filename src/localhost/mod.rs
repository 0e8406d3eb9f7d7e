//! Node ports on 127.0.0.1 and ::1, in user space.
//!
//! The kernel's rules cannot do it without `route_localnet`, which lets neighbours reach whatever listens on loopback
//! (CVE-2020-8558), and not at all for IPv6. So the daemon listens there, and nowhere else, and connects each client to an
//! address of the node that accepts node ports: what the tables do with connections (policies, affinity, schedulers,
//! refusal, counters) they do with these. Where no address of the node does, it is the Service's cluster IP. The client's
//! address is lost: the Service sees the node's.
//!
//! * [`plan`](Served): which sockets are wanted. Pure. [`ports`](Ports) is what is shared of it.
//! * `listeners`, `sockets`, `poll`: they are opened, closed and waited for, all as one.
//! * `streams`, `passing`, `pipes`: connections of TCP and SCTP.
//! * `datagrams`, `clients`: UDP.
//! * `descriptors`: how many of them all of this may have.
//! * `serve`: the thread that all of it runs on. Whoever has much to send there delays no rule.

mod clients;
mod datagrams;
mod descriptors;
mod listeners;
mod passing;
mod pipes;
mod plan;
mod poll;
mod ports;
mod serve;
mod sockets;
mod streams;

pub use self::listeners::Keeper;
pub use self::plan::Served;
pub use self::ports::{Ports, Timeouts};
pub use self::serve::{Outside, spawn};

/// Whether a socket of this name is one of those that listen here.
pub fn is_name(name: &str) -> bool {
    plan::named(name).is_some()
}
