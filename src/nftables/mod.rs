//! Transactions to bytes, bytes to the kernel, and what is in the kernel back to values.
//!
//! Encoding and decoding are pure; only the socket does I/O. [`Kernel`] is the seam: [`LinuxKernel`] speaks netlink,
//! [`InMemoryKernel`](in_memory::InMemoryKernel) keeps the tables in memory. [`Guard`] is beside that: tables that nobody
//! looks at, but for the kernel.

mod chains;
mod clients;
mod counts;
mod decode;
mod encode;
mod expected;
mod expressions;
mod guard;
pub mod in_memory;
mod kernel;
mod linux;
mod lookup;
mod lower;
mod monitor;
mod numbers;
mod owner;
mod probe;
mod raise;
mod request;
mod rules;
mod table;
mod uapi;
mod udata;
mod words;

#[cfg(test)]
mod wire;

pub use clients::{Clients, LinuxClients, ReadClients, Slice};
pub use guard::{Guard, NoGuard};
pub use kernel::{
    CommitError, Committed, Element as DumpedElement, KeptClients, Kernel, KernelError, Snapshot, Unread, table_flag,
};
pub use linux::LinuxKernel;
pub use monitor::{Audience, Heard, Monitor};
pub use owner::{Owner, Protection};
pub use probe::ProbeError;
pub use rules::Rules;
