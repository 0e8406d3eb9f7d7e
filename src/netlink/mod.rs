//! Transactions to bytes, bytes to the kernel, and what is in the kernel back to values.
//!
//! Encoding and decoding are pure; only the socket does I/O. [`Kernel`] is the seam: the real one speaks netlink, the
//! fake one keeps the tables in memory.

mod attributes;
mod decode;
mod encode;
mod expression;
pub mod fake;
mod kernel;
mod linux;
mod lower;
mod monitor;
mod probe;
mod socket;
mod sys;
mod uapi;
mod udata;

#[cfg(test)]
mod wire;

pub use kernel::{CommitError, Committed, Element as DumpedElement, Kernel, KernelError, Snapshot, table_flag};
pub use linux::Netlink;
pub use monitor::{Heard, Monitor};
pub use probe::ProbeError;
pub use sys::release_free_memory;
